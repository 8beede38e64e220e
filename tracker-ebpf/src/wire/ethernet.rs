//! Ethernet II header (IEEE 802.3, RFC 894).

use super::{be16, be64, put16};

/// Bytes of the header.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const QINQ: u16 = 0x88a8;

/// The EtherType of a header.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> u16 {
    be16(header, 12)
}

/// Its source, above two bytes of zeros.
#[inline(always)]
pub fn source(header: &[u8; LEN]) -> u64 {
    be64(header, 6) & !0xffff
}

/// Writes a header.
#[inline(always)]
pub fn emit(header: &mut [u8; LEN], destination: &[u8; 6], source: &[u8; 6], ethertype: u16) {
    for word in [0, 2, 4] {
        put16(header, word, be16(destination, word));
        put16(header, 6 + word, be16(source, word));
    }
    put16(header, 12, ethertype);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ethernet::EtherType;
    use pnet_packet::ethernet::{EthernetPacket, MutableEthernetPacket};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(destination: [u8; 6], source: [u8; 6], ethertype: u16) {
            let mut header = [0xaa; LEN];
            emit(&mut header, &destination, &source, ethertype);
            let packet = EthernetPacket::new(&header).expect("a whole header");
            prop_assert_eq!(packet.get_destination().octets(), destination);
            prop_assert_eq!(packet.get_source().octets(), source);
            prop_assert_eq!(packet.get_ethertype().0, ethertype);
            prop_assert_eq!(parse(&header), ethertype);
        }

        #[test]
        fn parses_what_pnet_writes(mut header: [u8; LEN], ethertype: u16) {
            let mut packet = MutableEthernetPacket::new(&mut header).expect("a whole header");
            packet.set_ethertype(EtherType(ethertype));
            prop_assert_eq!(parse(&header), ethertype);
        }
    }
}

//! IPv4 header without options (RFC 791).

use super::{be16, be32, checksum::Sum, put16, put32};

/// Bytes of a header without options.
pub const LEN: usize = 20;
/// Where a header says what it carries.
pub const PROTOCOL_AT: usize = 9;
/// Where a header has the time to live.
pub const TTL_AT: usize = 8;
/// Where a header has the source address.
pub const SOURCE_AT: usize = 12;
/// Where a header has the destination address.
pub const DESTINATION_AT: usize = 16;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Time to live of a probe.
pub const TTL: u8 = 64;

/// What Tracker reads of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole packet.
    pub total_len: u16,
    /// Time to live.
    pub ttl: u8,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// True for a version 4 header without options, of an unfragmented packet that carries `protocol`:
/// the cheap test that foreign packets fail first.
#[inline(always)]
pub fn carries(header: &[u8; LEN], protocol: u8) -> bool {
    header[PROTOCOL_AT] == protocol && header[0] == 0x45 && be16(header, 6) & 0x3fff == 0
}

/// Reads a header for which [`carries`] holds.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Header {
    Header {
        total_len: be16(header, 2),
        ttl: header[TTL_AT],
        source: be32(header, SOURCE_AT),
        destination: be32(header, DESTINATION_AT),
    }
}

/// The pseudo-header's part of an upper-layer checksum (RFC 768).
#[inline(always)]
pub const fn pseudo_header(source: u32, destination: u32, len: u16, protocol: u8) -> Sum {
    Sum::new()
        .u32(source)
        .u32(destination)
        .u16(len)
        .u16(protocol as u16)
}

/// True if the header's checksum is right.
#[inline(always)]
pub fn checksum_ok(header: &[u8; LEN]) -> bool {
    Sum::new()
        .u32(be32(header, 0))
        .u32(be32(header, 4))
        .u32(be32(header, 8))
        .u32(be32(header, 12))
        .u32(be32(header, 16))
        .folded()
        == 0xffff
}

/// Writes a header with "don't fragment" and, as RFC 6864 section 4.1 allows with it, identification 0. `dscp` is that of RFC
/// 2474, 0 to 63.
#[inline(always)]
pub fn emit(
    header: &mut [u8; LEN],
    dscp: u8,
    total_len: u16,
    protocol: u8,
    source: u32,
    destination: u32,
) {
    let first = 0x4500_0000 | (dscp as u32) << 18 | total_len as u32;
    let fragment = 0x0000_4000u32;
    let ttl_protocol = ((TTL as u16) << 8) | protocol as u16;
    let checksum = Sum::new()
        .u32(first)
        .u32(fragment)
        .u16(ttl_protocol)
        .u32(source)
        .u32(destination)
        .checksum();
    put32(header, 0, first);
    put32(header, 4, fragment);
    put16(header, 8, ttl_protocol);
    put16(header, 10, checksum);
    put32(header, 12, source);
    put32(header, 16, destination);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ip::IpNextHeaderProtocol;
    use pnet_packet::ipv4::{Ipv4Packet, MutableIpv4Packet, checksum};
    use proptest::prelude::*;

    /// A header without options of an unfragmented packet, otherwise arbitrary.
    fn plain(mut header: [u8; LEN]) -> [u8; LEN] {
        let mut packet = MutableIpv4Packet::new(&mut header).expect("a whole header");
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_flags(packet.get_flags() & 0b110);
        packet.set_fragment_offset(0);
        let right = checksum(&packet.to_immutable());
        packet.set_checksum(right);
        header
    }

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(dscp in 0u8..64, total_len: u16, protocol: u8, source: u32, destination: u32) {
            let mut header = [0xaa; LEN];
            emit(&mut header, dscp, total_len, protocol, source, destination);
            let packet = Ipv4Packet::new(&header).expect("a whole header");
            prop_assert_eq!((packet.get_version(), packet.get_header_length()), (4, 5));
            prop_assert_eq!((packet.get_dscp(), packet.get_ecn()), (dscp, 0));
            prop_assert_eq!(packet.get_total_length(), total_len);
            prop_assert_eq!(packet.get_identification(), 0);
            prop_assert_eq!((packet.get_flags(), packet.get_fragment_offset()), (0b010, 0));
            prop_assert_eq!(packet.get_ttl(), TTL);
            prop_assert_eq!(packet.get_next_level_protocol().0, protocol);
            prop_assert_eq!(packet.get_source().to_bits(), source);
            prop_assert_eq!(packet.get_destination().to_bits(), destination);
            prop_assert_eq!(packet.get_checksum(), checksum(&packet));
            prop_assert!(carries(&header, protocol) && checksum_ok(&header));
        }

        #[test]
        fn parses_what_pnet_writes(header: [u8; LEN], protocol: u8) {
            let mut header = plain(header);
            let mut packet = MutableIpv4Packet::new(&mut header).expect("a whole header");
            packet.set_next_level_protocol(IpNextHeaderProtocol(protocol));
            let right = checksum(&packet.to_immutable());
            packet.set_checksum(right);
            let packet = Ipv4Packet::new(&header).expect("a whole header");
            prop_assert!(carries(&header, protocol) && checksum_ok(&header));
            prop_assert!(!carries(&header, protocol ^ 1));
            prop_assert_eq!(parse(&header), Header {
                total_len: packet.get_total_length(),
                ttl: packet.get_ttl(),
                source: packet.get_source().to_bits(),
                destination: packet.get_destination().to_bits(),
            });
        }

        #[test]
        fn a_flipped_bit_fails_the_checksum(header: [u8; LEN], bit in 0..LEN * 8) {
            let mut header = plain(header);
            prop_assert!(checksum_ok(&header));
            header[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!checksum_ok(&header));
        }
    }

    #[test]
    fn fragments_options_and_versions_are_told_apart() {
        let header = plain([0; LEN]);
        assert!(carries(&header, 0));
        for (first, fragment) in (0..=255u8).flat_map(|first| [(first, 0), (first, 1), (first, 2)])
        {
            for fragment in
                [0x0000u16, 0x2000, 0x0001, 0x1fff, 0x4000, 0x8000].map(|f| f | fragment)
            {
                let mut header = header;
                header[0] = first;
                header[6..8].copy_from_slice(&fragment.to_be_bytes());
                let is_whole = fragment & !0xc000 == 0;
                assert_eq!(
                    carries(&header, 0),
                    first == 0x45 && is_whole,
                    "{first:#x} {fragment:#x}"
                );
            }
        }
    }
}

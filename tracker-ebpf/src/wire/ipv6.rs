//! IPv6 header without extension headers (RFC 8200).

use super::{be16, be64, checksum::Sum, put16, put32, put64};

/// Bytes of the header.
pub const LEN: usize = 40;
/// Where a header says what it carries.
pub const NEXT_HEADER_AT: usize = 6;
/// Where a header has the hop limit.
pub const HOP_LIMIT_AT: usize = 7;
/// Where a header has the source address.
pub const SOURCE_AT: usize = 8;
/// Where a header has the destination address.
pub const DESTINATION_AT: usize = 24;
/// Next-header number of ICMPv6.
pub const ICMP: u8 = 58;
/// Next-header number of UDP.
pub const UDP: u8 = 17;
/// Hop limit of a probe.
pub const HOP_LIMIT: u8 = 64;

/// A 128-bit address as two words, host order: BPF has no 128-bit arithmetic worth having.
pub type Address = [u64; 2];

/// What Tracker reads of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes after this header.
    pub payload_len: u16,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

/// The address in sixteen bytes of network order.
#[inline(always)]
pub fn address(bytes: &[u8; 16]) -> Address {
    [be64(bytes, 0), be64(bytes, 8)]
}

/// True for a version 6 header directly followed by `next_header`.
#[inline(always)]
pub fn carries(header: &[u8; LEN], next_header: u8) -> bool {
    header[NEXT_HEADER_AT] == next_header && header[0] & 0xf0 == 0x60
}

/// Reads a header for which [`carries`] holds.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Header {
    Header {
        payload_len: be16(header, 4),
        hop_limit: header[HOP_LIMIT_AT],
        source: [be64(header, 8), be64(header, 16)],
        destination: [be64(header, 24), be64(header, 32)],
    }
}

/// The pseudo-header's part of an upper-layer checksum (RFC 8200 section 8.1).
#[inline(always)]
pub const fn pseudo_header(
    source: Address,
    destination: Address,
    len: u16,
    next_header: u8,
) -> Sum {
    Sum::new()
        .u64(source[0])
        .u64(source[1])
        .u64(destination[0])
        .u64(destination[1])
        .u16(len)
        .u16(next_header as u16)
}

/// Writes a header with flow label 0. `dscp` is that of RFC 2474, 0 to 63.
#[inline(always)]
pub fn emit(
    header: &mut [u8; LEN],
    dscp: u8,
    payload_len: u16,
    next_header: u8,
    source: Address,
    destination: Address,
) {
    put32(header, 0, 0x6000_0000 | (dscp as u32) << 22);
    put16(header, 4, payload_len);
    put16(header, 6, u16::from_be_bytes([next_header, HOP_LIMIT]));
    put64(header, 8, source[0]);
    put64(header, 16, source[1]);
    put64(header, 24, destination[0]);
    put64(header, 32, destination[1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ip::IpNextHeaderProtocol;
    use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(dscp in 0u8..64, payload_len: u16, next: u8, source: [u8; 16], destination: [u8; 16]) {
            let mut header = [0xaa; LEN];
            emit(&mut header, dscp, payload_len, next, address(&source), address(&destination));
            let packet = Ipv6Packet::new(&header).expect("a whole header");
            prop_assert_eq!(packet.get_version(), 6);
            prop_assert_eq!((packet.get_traffic_class(), packet.get_flow_label()), (dscp << 2, 0));
            prop_assert_eq!(packet.get_payload_length(), payload_len);
            prop_assert_eq!(packet.get_next_header().0, next);
            prop_assert_eq!(packet.get_hop_limit(), HOP_LIMIT);
            prop_assert_eq!(packet.get_source().octets(), source);
            prop_assert_eq!(packet.get_destination().octets(), destination);
            prop_assert!(carries(&header, next));
        }

        #[test]
        fn parses_what_pnet_writes(mut header: [u8; LEN], version in 0u8..16, next: u8) {
            let mut packet = MutableIpv6Packet::new(&mut header).expect("a whole header");
            packet.set_version(version);
            packet.set_next_header(IpNextHeaderProtocol(next));
            let packet = Ipv6Packet::new(&header).expect("a whole header");
            prop_assert_eq!(carries(&header, next), version == 6);
            prop_assert!(!carries(&header, next ^ 1));
            prop_assert_eq!(parse(&header), Header {
                payload_len: packet.get_payload_length(),
                hop_limit: packet.get_hop_limit(),
                source: address(&packet.get_source().octets()),
                destination: address(&packet.get_destination().octets()),
            });
        }

        #[test]
        fn pseudo_header_sums_as_pnet_does(source: [u8; 16], destination: [u8; 16], payload: Vec<u8>, next: u8) {
            let right = pnet_packet::util::ipv6_checksum(
                &payload,
                usize::MAX / 2,
                &[],
                &source.into(),
                &destination.into(),
                IpNextHeaderProtocol(next),
            );
            let sum = pseudo_header(address(&source), address(&destination), payload.len() as u16, next);
            let sum = payload.chunks(2).fold(sum, |sum, word| {
                sum.u16(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))
            });
            prop_assert_eq!(sum.checksum(), right);
        }
    }
}

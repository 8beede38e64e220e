//! What the parsers of received packets need of a version of IP: one parser serves both.

use super::{Bytes, address, address::Address, be16, be32, checksum::Sum, icmp, ipv4, ipv6};
use crate::abi::Family;

/// What is read of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Hops that it has left (TTL, hop limit).
    pub hops: u8,
    /// Bytes after this header, as it says.
    pub room: usize,
}

/// A version of IP.
pub trait Version {
    /// A header without options (IPv4) or extension headers (IPv6).
    type Header;
    /// Its bytes.
    const LEN: usize;
    /// Its family.
    const FAMILY: Family;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;

    /// The header at an offset; `None` if the packet is too short.
    fn header<B: Bytes + ?Sized>(packet: &B, at: usize) -> Option<&Self::Header>;

    /// What it says to carry.
    fn protocol(header: &Self::Header) -> u8;

    /// True for a header of this version and length, of an unfragmented packet that carries `protocol`.
    fn carries(header: &Self::Header, protocol: u8) -> bool;

    /// Reads a header for which [`Version::carries`] holds.
    fn fields(header: &Self::Header) -> Fields;

    /// True if the header's own checksum is right, or there is none.
    fn checksum_ok(header: &Self::Header) -> bool;

    /// The pseudo-header's part of the checksum of ICMP: none in IPv4 (RFC 792), that of RFC 4443 section 2.3 in IPv6.
    fn icmp_pseudo_header(header: &Self::Header) -> Sum;

    /// True for an ICMP type that says what became of a packet.
    fn is_error(kind: u8) -> bool;

    /// Bytes of the whole packet, as its header says.
    fn total_len(header: &Self::Header) -> u32;

    /// True if routers may fragment the packet.
    fn may_be_fragmented(header: &Self::Header) -> bool;

    /// Copies the addresses to the first bytes of these.
    fn copy_addresses(header: &Self::Header, source: &mut [u8; 16], destination: &mut [u8; 16]);

    /// The last words of source and destination address.
    fn last_words(header: &Self::Header) -> (u32, u32);
}

/// IPv4.
pub enum V4 {}

/// IPv6.
pub enum V6 {}

impl Version for V4 {
    type Header = [u8; ipv4::LEN];
    const LEN: usize = ipv4::LEN;
    const FAMILY: Family = Family::Ipv4;
    const ICMP: u8 = ipv4::ICMP;
    const ECHO: u8 = icmp::ECHO;
    const ECHO_REPLY: u8 = icmp::ECHO_REPLY;

    #[inline(always)]
    fn header<B: Bytes + ?Sized>(packet: &B, at: usize) -> Option<&Self::Header> {
        packet.at(at)
    }

    #[inline(always)]
    fn protocol(header: &Self::Header) -> u8 {
        header[ipv4::PROTOCOL_AT]
    }

    #[inline(always)]
    fn carries(header: &Self::Header, protocol: u8) -> bool {
        ipv4::carries(header, protocol)
    }

    #[inline(always)]
    fn fields(header: &Self::Header) -> Fields {
        let header = ipv4::parse(header);
        Fields {
            source: address::of_ipv4(header.source),
            destination: address::of_ipv4(header.destination),
            hops: header.ttl,
            room: usize::from(header.total_len).saturating_sub(ipv4::LEN),
        }
    }

    #[inline(always)]
    fn checksum_ok(header: &Self::Header) -> bool {
        ipv4::checksum_ok(header)
    }

    #[inline(always)]
    fn icmp_pseudo_header(_: &Self::Header) -> Sum {
        Sum::new()
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        icmp::is_error(kind)
    }

    #[inline(always)]
    fn total_len(header: &Self::Header) -> u32 {
        u32::from(ipv4::parse(header).total_len)
    }

    #[inline(always)]
    fn may_be_fragmented(header: &Self::Header) -> bool {
        // "Don't fragment" of RFC 791.
        be16(header, 6) & 0x4000 == 0
    }

    #[inline(always)]
    fn copy_addresses(header: &Self::Header, source: &mut [u8; 16], destination: &mut [u8; 16]) {
        source[..4].copy_from_slice(&header[ipv4::SOURCE_AT..ipv4::DESTINATION_AT]);
        destination[..4].copy_from_slice(&header[ipv4::DESTINATION_AT..]);
    }

    #[inline(always)]
    fn last_words(header: &Self::Header) -> (u32, u32) {
        (
            be32(header, ipv4::SOURCE_AT),
            be32(header, ipv4::DESTINATION_AT),
        )
    }
}

impl Version for V6 {
    type Header = [u8; ipv6::LEN];
    const LEN: usize = ipv6::LEN;
    const FAMILY: Family = Family::Ipv6;
    const ICMP: u8 = ipv6::ICMP;
    const ECHO: u8 = icmp::ECHO_V6;
    const ECHO_REPLY: u8 = icmp::ECHO_REPLY_V6;

    #[inline(always)]
    fn header<B: Bytes + ?Sized>(packet: &B, at: usize) -> Option<&Self::Header> {
        packet.at(at)
    }

    #[inline(always)]
    fn protocol(header: &Self::Header) -> u8 {
        header[ipv6::NEXT_HEADER_AT]
    }

    #[inline(always)]
    fn carries(header: &Self::Header, protocol: u8) -> bool {
        ipv6::carries(header, protocol)
    }

    #[inline(always)]
    fn fields(header: &Self::Header) -> Fields {
        let header = ipv6::parse(header);
        Fields {
            source: address::of_ipv6(header.source),
            destination: address::of_ipv6(header.destination),
            hops: header.hop_limit,
            room: usize::from(header.payload_len),
        }
    }

    #[inline(always)]
    fn checksum_ok(_: &Self::Header) -> bool {
        true
    }

    #[inline(always)]
    fn icmp_pseudo_header(header: &Self::Header) -> Sum {
        let ipv6::Header {
            source,
            destination,
            payload_len,
            ..
        } = ipv6::parse(header);
        ipv6::pseudo_header(source, destination, payload_len, ipv6::ICMP)
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        icmp::is_error_v6(kind)
    }

    #[inline(always)]
    fn total_len(header: &Self::Header) -> u32 {
        ipv6::LEN as u32 + u32::from(ipv6::parse(header).payload_len)
    }

    #[inline(always)]
    fn may_be_fragmented(_: &Self::Header) -> bool {
        false
    }

    #[inline(always)]
    fn copy_addresses(header: &Self::Header, source: &mut [u8; 16], destination: &mut [u8; 16]) {
        source.copy_from_slice(&header[ipv6::SOURCE_AT..ipv6::DESTINATION_AT]);
        destination.copy_from_slice(&header[ipv6::DESTINATION_AT..]);
    }

    #[inline(always)]
    fn last_words(header: &Self::Header) -> (u32, u32) {
        const LAST: usize = 12;
        (
            be32(header, ipv6::SOURCE_AT + LAST),
            be32(header, ipv6::DESTINATION_AT + LAST),
        )
    }
}

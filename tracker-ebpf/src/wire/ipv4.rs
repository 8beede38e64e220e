//! IPv4 header without options (RFC 791).

use super::{be16, be32, checksum::Sum, put};

/// Bytes of a header without options.
pub const LEN: usize = 20;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
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
    header[9] == protocol && header[0] == 0x45 && be16(header, 6) & 0x3fff == 0
}

/// Reads a header for which [`carries`] holds.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Header {
    Header {
        total_len: be16(header, 2),
        ttl: header[8],
        source: be32(header, 12),
        destination: be32(header, 16),
    }
}

/// True where the header's checksum is right.
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

/// Writes a header with "don't fragment" and, as RFC 6864 section 4.1 allows with it, identification 0.
#[inline(always)]
pub const fn emit(header: &mut [u8; LEN], total_len: u16, protocol: u8, source: u32, destination: u32) {
    let first = 0x4500_0000 | total_len as u32;
    let fragment = 0x0000_4000u32;
    let ttl_protocol = ((TTL as u16) << 8) | protocol as u16;
    let checksum = Sum::new()
        .u32(first)
        .u32(fragment)
        .u16(ttl_protocol)
        .u32(source)
        .u32(destination)
        .checksum();
    put(header, 0, first.to_be_bytes());
    put(header, 4, fragment.to_be_bytes());
    put(header, 8, ttl_protocol.to_be_bytes());
    put(header, 10, checksum.to_be_bytes());
    put(header, 12, source.to_be_bytes());
    put(header, 16, destination.to_be_bytes());
}

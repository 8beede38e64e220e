//! A probe: what it says of itself, and the frame that carries it.

use super::{be32, be64, checksum::Sum, ethernet, icmp, ipv4, ipv6, put, vlan};
use crate::abi::{Family, Path, Tracker};

/// Bytes of [`Mark`] on the wire: the first bytes after the ICMP header.
pub const LEN: usize = 32;
/// The first four bytes of every probe's payload: "TRKR".
pub const MARK: u32 = 0x5452_4b52;

/// What a probe says of itself. All but `token` is claimed; `token` proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Tracker slot.
    pub tracker: u32,
    /// Sequence number, from 1.
    pub sequence: u64,
    /// When the probe was sent.
    pub sent_mono_ns: u64,
    /// [`super::token::token`] of the above and the slot's epoch.
    pub token: u64,
}

impl Mark {
    /// True where a payload begins with [`MARK`].
    #[inline(always)]
    pub fn is_present(payload: &[u8; LEN]) -> bool {
        be32(payload, 0) == MARK
    }

    /// Reads a payload for which [`Mark::is_present`] holds.
    #[inline(always)]
    pub fn parse(payload: &[u8; LEN]) -> Self {
        Self {
            tracker: be32(payload, 4),
            sequence: be64(payload, 8),
            sent_mono_ns: be64(payload, 16),
            token: be64(payload, 24),
        }
    }

    /// Writes a payload.
    #[inline(always)]
    pub const fn emit(&self, payload: &mut [u8; LEN]) {
        put(payload, 0, MARK.to_be_bytes());
        put(payload, 4, self.tracker.to_be_bytes());
        put(payload, 8, self.sequence.to_be_bytes());
        put(payload, 16, self.sent_mono_ns.to_be_bytes());
        put(payload, 24, self.token.to_be_bytes());
    }

    /// The payload's part of a checksum.
    #[inline(always)]
    pub const fn sum(&self) -> Sum {
        Sum::new()
            .u32(MARK)
            .u32(self.tracker)
            .u64(self.sequence)
            .u64(self.sent_mono_ns)
            .u64(self.token)
    }
}

/// Where the IP header begins in [`Frame`]: room for a tagged Ethernet header before it, and every
/// field of every later header naturally aligned, so that stores need not be split.
const IP_AT: usize = 20;
/// Bytes of [`Frame`]: the longest headers and [`Mark`], in whole 8-byte words.
const FRAME_LEN: usize = 104;

/// A probe's frame without the zeros that fill a larger payload.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Frame([u8; FRAME_LEN]);

/// Bytes of an untagged IPv4 probe with the smallest payload.
pub const LEN_V4: usize = ethernet::LEN + ipv4::LEN + icmp::LEN + LEN;
/// Bytes of an untagged IPv6 probe with the smallest payload.
pub const LEN_V6: usize = ethernet::LEN + ipv6::LEN + icmp::LEN + LEN;

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

/// A `&mut [u8; N]` at a constant offset of the frame; the compiler removes the check.
macro_rules! part {
    ($frame:expr, $at:expr, $len:expr) => {
        // The range is constant and inside the frame, so this never takes the other branch.
        match $frame.0.get_mut($at..$at + $len) {
            Some(part) => match part.first_chunk_mut::<{ $len }>() {
                Some(part) => part,
                None => return,
            },
            None => return,
        }
    };
}

impl Frame {
    /// An empty frame.
    #[inline(always)]
    pub const fn new() -> Self {
        Self([0; FRAME_LEN])
    }

    /// Offset of the frame's first byte in [`Frame::bytes`].
    #[inline(always)]
    pub const fn start(tagged: bool) -> usize {
        IP_AT - ethernet::LEN - if tagged { vlan::LEN } else { 0 }
    }

    /// Offset past the last byte of the probe's headers and mark in [`Frame::bytes`].
    #[inline(always)]
    pub const fn end(family: Family) -> usize {
        IP_AT + icmp::LEN + LEN + match family {
            Family::Ipv4 => ipv4::LEN,
            Family::Ipv6 => ipv6::LEN,
        }
    }

    /// The buffer; the frame is `start..end` of it.
    #[inline(always)]
    pub const fn bytes(&self) -> &[u8; FRAME_LEN] {
        &self.0
    }

    /// Bytes on the wire of a whole probe, with `payload` bytes after the ICMP header.
    #[inline(always)]
    pub const fn wire_len(tagged: bool, family: Family, payload: u16) -> u32 {
        (Self::end(family) - Self::start(tagged) - LEN) as u32 + payload as u32
    }

    /// Writes the link-layer header of `path`.
    #[inline(always)]
    pub fn emit_link(&mut self, path: &Path, family: Family) {
        let ethertype = match family {
            Family::Ipv4 => ethernet::IPV4,
            Family::Ipv6 => ethernet::IPV6,
        };
        if path.vlan == 0 {
            let header = part!(self, IP_AT - ethernet::LEN, ethernet::LEN);
            ethernet::emit(header, path.next_hop_mac, path.source_mac, ethertype);
        } else {
            let header = part!(self, IP_AT - vlan::LEN - ethernet::LEN, ethernet::LEN);
            ethernet::emit(header, path.next_hop_mac, path.source_mac, ethernet::VLAN);
            let tag = part!(self, IP_AT - vlan::LEN, vlan::LEN);
            vlan::emit(tag, path.vlan, ethertype);
        }
    }

    /// Writes the IPv4 and ICMP headers and the mark.
    #[inline(always)]
    pub fn emit_ipv4(&mut self, tracker: &Tracker, mark: &Mark) {
        let payload = tracker.payload;
        let total_len = payload.wrapping_add((ipv4::LEN + icmp::LEN) as u16);
        let source = be32(&tracker.source, 0);
        let destination = be32(&tracker.behind, 0);
        let header = part!(self, IP_AT, ipv4::LEN);
        ipv4::emit(header, total_len, ipv4::ICMP, source, destination);
        let header = part!(self, IP_AT + ipv4::LEN, icmp::LEN);
        icmp::emit(header, icmp::ECHO, tracker.icmp_id, mark.sequence as u16, mark.sum());
        mark.emit(part!(self, IP_AT + ipv4::LEN + icmp::LEN, LEN));
    }

    /// Writes the IPv6 and ICMPv6 headers and the mark.
    #[inline(always)]
    pub fn emit_ipv6(&mut self, tracker: &Tracker, mark: &Mark) {
        let payload_len = tracker.payload.wrapping_add(icmp::LEN as u16);
        let source = ipv6::address(&tracker.source);
        let destination = ipv6::address(&tracker.behind);
        let header = part!(self, IP_AT, ipv6::LEN);
        ipv6::emit(header, payload_len, ipv6::ICMP, source, destination);
        let sum = ipv6::pseudo_header(source, destination, payload_len, ipv6::ICMP);
        let sum = mark.sum().plus(sum);
        let header = part!(self, IP_AT + ipv6::LEN, icmp::LEN);
        icmp::emit(header, icmp::ECHO_V6, tracker.icmp_id, mark.sequence as u16, sum);
        mark.emit(part!(self, IP_AT + ipv6::LEN + icmp::LEN, LEN));
    }
}

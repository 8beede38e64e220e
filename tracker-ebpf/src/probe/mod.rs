//! The kinds of probes, a file each: how it is written, what may answer it and what proves that, and how long it is. [`frame`]
//! is what carries them all; [`reply`] recognises what brings a probe header back, [`answer`] what brings back something else.

pub mod answer;
pub mod frame;
pub mod header;
pub mod icmp;
pub mod reply;
pub mod stamp;
pub mod tcp;
pub mod udp;

pub use frame::{LEN_V4, LEN_V6, emit, emit_reset, wire_len};
pub use header::{LEN, MAGIC, ProbeHeader};

use crate::{
    abi::{Family, Probe},
    wire,
};

/// Bytes of the header before what [`crate::abi::Tracker::payload`] counts, whatever the kind of probe. Of TCP the first bytes of a
/// longer one.
pub const HEADER_LEN: usize = wire::icmp::LEN;
const _: () = assert!(wire::udp::LEN == HEADER_LEN && wire::tcp::PORTS_LEN == HEADER_LEN);

/// Bytes above IP by which most foreign packets are told from what may be ours.
pub const FIRST_LEN: usize = wire::tcp::FLAGS_AT + 1;

/// Two of the first bytes above IP. Byte by byte: they are a copy on the stack, where the verifier refuses words that are not aligned.
#[inline(always)]
const fn first_word(first: &[u8; FIRST_LEN], at: usize) -> u16 {
    u16::from_be_bytes([first[at], first[at + 1]])
}

/// False for a packet that is none of ours, as far as its protocol and the first bytes above its IP header tell. `is_short` tells
/// whether it may be one of so many bytes above IP, `word` reads the two bytes at an offset above IP.
#[inline(always)]
pub fn may_be_ours(
    protocol: u8,
    family: Family,
    first: &[u8; FIRST_LEN],
    is_short: impl Fn(usize) -> bool,
    word: impl Fn(usize) -> Option<u16>,
) -> bool {
    match protocol {
        wire::tcp::PROTOCOL => tcp::may_be_ours(first, is_short),
        wire::udp::PROTOCOL => udp::may_be_ours(first) || stamp::may_be_ours(first, word),
        protocol => protocol == icmp::protocol(family),
    }
}

/// The IP protocol number of a kind of probe.
#[inline(always)]
pub const fn protocol(probe: Probe, family: Family) -> u8 {
    match probe {
        Probe::Icmp => icmp::protocol(family),
        Probe::Udp | Probe::Stamp => wire::udp::PROTOCOL,
        Probe::Tcp => wire::tcp::PROTOCOL,
    }
}

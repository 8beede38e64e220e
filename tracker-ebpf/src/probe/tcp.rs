//! Probes that are TCP SYNs. They have no probe header: a SYN's sequence number, which what answers it acknowledges, is made of the
//! probe's own number and its token.

use super::{
    FIRST_LEN, HEADER_LEN,
    answer::{Above, Evidence, Message},
    frame::Content,
};
use crate::{
    abi::is_own_port,
    wire::{
        Bytes, BytesMut, be32,
        checksum::Sum,
        put64,
        tcp::{FLAGS_AT, Header, LEN, PORTS_LEN, SYN_LEN, flags, len, parse},
    },
};

/// [`crate::abi::Tracker::payload`] of a SYN.
pub const SYN_PAYLOAD: u16 = (SYN_LEN - HEADER_LEN) as u16;
/// [`crate::abi::Tracker::payload`] of the segment that ends a connection.
pub const RESET_PAYLOAD: u16 = (LEN - HEADER_LEN) as u16;

/// How many bits of a SYN's sequence number tell the probe's own.
const SEQUENCE_BITS: u32 = 8;
const SEQUENCE_MASK: u32 = (1 << SEQUENCE_BITS) - 1;

/// Flags of what takes a connection.
const ANSWERED: u8 = flags::SYN | flags::ACK;
/// Flags of what refuses one.
const REFUSED: u8 = flags::RST | flags::ACK;

/// Bytes above the IP header in which an answer is recognised.
pub const REPLY_LEN: usize = LEN;
/// Bytes above the IP header in which a quoted SYN is.
pub const QUOTE_LEN: usize = PORTS_LEN;

/// Writes the probe above IP.
#[inline(always)]
pub(super) fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    content: &Content,
    pseudo: Sum,
) -> Option<()> {
    syn(content).emit_syn(frame.at_mut(at)?, pseudo);
    Some(())
}

/// Writes the segment that ends the connection which the answer to the probe would open.
#[inline(always)]
pub(super) fn emit_reset<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    content: &Content,
    pseudo: Sum,
) -> Option<()> {
    let syn = syn(content);
    let reset = Header {
        sequence: syn.sequence.wrapping_add(1),
        flags: flags::RST,
        ..syn
    };
    reset.emit(frame.at_mut(at)?, pseudo);
    // A frame of Ethernet's least size has bytes behind it.
    if let Some(padding) = frame.at_mut::<{ SYN_LEN - LEN }>(at + LEN) {
        put64(padding, 0, 0);
    }
    Some(())
}

/// The header of a SYN.
#[inline(always)]
fn syn(content: &Content) -> Header {
    let (tracker, probe_header) = (content.tracker, content.probe_header);
    Header {
        source: content.flow,
        destination: tracker.port,
        sequence: initial_sequence(probe_header.token, tracker.salt, probe_header.number),
        acknowledged: 0,
        flags: flags::SYN,
    }
}

/// The sequence number of a SYN: its only bytes that come back. The low bits tell which of the last 256 probes it
/// is, hidden by `salt`; the others are of its token. So of all numbers only those of the probes
/// under way are right, and only those that see them know which these are.
#[inline(always)]
pub const fn initial_sequence(token: u64, salt: u8, sequence: u64) -> u32 {
    ((token as u32) << SEQUENCE_BITS) | ((sequence as u32 ^ salt as u32) & SEQUENCE_MASK)
}

/// The sequence number of the probe that a SYN's number tells, if `sent` is that of the last one: never
/// a later one.
#[inline(always)]
pub const fn probe_sequence(number: u32, salt: u8, sent: u64) -> u64 {
    let low = (number ^ salt as u32) as u64;
    sent.wrapping_sub(sent.wrapping_sub(low) & SEQUENCE_MASK as u64)
}

/// True if the first bytes above IP may be those of an answer; `is_short` tells whether the packet may be one of so many bytes above IP.
#[inline(always)]
pub(super) fn may_be_ours(first: &[u8; FIRST_LEN], is_short: impl Fn(usize) -> bool) -> bool {
    // Without data and options it may be a challenge ACK.
    first[FLAGS_AT] & (flags::SYN | flags::RST) != 0 || is_short(LEN)
}

/// Reads a segment in a packet that has `room` for it.
#[inline(always)]
pub(super) fn read<B: Bytes + ?Sized>(packet: &B, at: usize, room: usize) -> Option<Above> {
    let segment: &[u8; LEN] = packet.at(at)?;
    // Of a connection that goes on, as nearly all are. A challenge ACK has no data, and no options if its SYN has no timestamp.
    if segment[FLAGS_AT] & (flags::SYN | flags::RST) == 0 && room != LEN {
        return None;
    }
    let header = parse(segment);
    let acknowledged = header.acknowledged.wrapping_sub(1);
    let (message, number, own) = match header.flags {
        ANSWERED => (Message::Reply, acknowledged, header.destination),
        REFUSED => (Message::Reset, acknowledged, header.destination),
        flags::SYN => (Message::Probe, header.sequence, header.source),
        flags::ACK if room == LEN => (Message::Held, acknowledged, header.destination),
        _ => return None,
    };
    if !is_own_port(own) {
        return None;
    }
    let ports = [header.source, header.destination];
    let len = len(segment);
    let is_whole = len >= LEN && len <= room;
    Some(Above::new(message, Evidence::Syn(number), ports, is_whole))
}

/// What an error quotes of a SYN that begins with these bytes.
#[inline(always)]
pub(super) fn quoted(ports: &[u8; QUOTE_LEN]) -> Evidence {
    Evidence::Syn(be32(ports, 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_tells_its_probe(token: u64, salt: u8, sequence in 1u64.., later in 0u64..256) {
            let number = initial_sequence(token, salt, sequence);
            let sent = sequence.saturating_add(later);
            prop_assert_eq!(probe_sequence(number, salt, sent), sequence);
            prop_assert!(probe_sequence(number, salt, sequence - 1) < sequence || sequence <= 256);
        }
    }
}

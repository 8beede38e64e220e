//! Probes that are STAMP test packets without authentication (RFC 8762 section 4.2.1 and 4.3.1), with padding after them (RFC 8972
//! section 4.1). A reflector sends back their first bytes, in which the probe's number, slot and token are.

use super::{
    FIRST_LEN, HEADER_LEN,
    answer::{Above, Evidence, Message},
    first_word,
    frame::Content,
    udp::datagram,
};
use crate::{
    abi::is_own_port,
    window::whole_sequence,
    wire::{Bytes, BytesMut, be16, be32, checksum::Sum, put16, put32, put64, udp},
};

/// Bytes of a test packet, either way.
pub const LEN: usize = 44;
/// The port on which reflectors listen (RFC 8762 section 4.1).
pub const PORT: u16 = 862;
/// Bytes of the header of what makes a packet longer.
pub const TLV_LEN: usize = 4;

/// Bytes of a test packet that come back, and of a reflector's as far as these.
pub const CLAIM_LEN: usize = 14;
/// See [`CLAIM_LEN`].
pub const REFLECTED_LEN: usize = CLAIM_AT + CLAIM_LEN;
/// Where a reflector's packet has the first bytes of the sender's.
const CLAIM_AT: usize = 24;

/// Bytes above the IP header in which a reflector's packet is recognised.
pub const REPLY_LEN: usize = udp::LEN + REFLECTED_LEN;
/// Bytes above the IP header in which a quoted probe is.
pub const QUOTE_LEN: usize = udp::LEN + CLAIM_LEN;

/// The error estimate of every probe, by which those that come back are told from others' packets: a clock that is
/// not synchronised, and 42 seconds of error (84 * 2^31 * 2^-32; RFC 4656 section 4.1.2). The timestamp is none.
pub const ESTIMATE: u16 = 0x1f54;

/// Flags and type of extra padding: not recognised unless the reflector says so.
const PADDING: u16 = 0x8001;
/// How many bits of the timestamp are of the token; the others are the tracker slot.
const TOKEN_BITS: u32 = 40;

/// Writes the probe above IP.
#[inline(always)]
pub(super) fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    content: &Content,
    pseudo: Sum,
) -> Option<()> {
    let (tracker, probe_header) = (content.tracker, content.probe_header);
    let claim = Claim::new(
        probe_header.tag(),
        probe_header.tracker,
        probe_header.number,
        probe_header.token,
    );
    let mut rest = claim.sum().plus(pseudo);
    if tracker.payload as usize >= LEN + TLV_LEN {
        let padding = frame.at_mut(at + HEADER_LEN + LEN)?;
        rest = rest.plus(emit_padding(padding, tracker.payload));
    }
    datagram(content).emit(frame.at_mut(at)?, rest);
    claim.emit(frame.at_mut(at + HEADER_LEN)?);
    Some(())
}

/// True if the first bytes above IP may be those of an answer; `word` reads the two bytes at an offset above IP.
#[inline(always)]
pub(super) fn may_be_ours(first: &[u8; FIRST_LEN], word: impl Fn(usize) -> Option<u16>) -> bool {
    let has_estimate = |at| word(udp::LEN + at) == Some(ESTIMATE);
    (is_own_port(first_word(first, 2)) && has_estimate(REFLECTED_LEN - 2))
        || (is_own_port(first_word(first, 0)) && has_estimate(CLAIM_LEN - 2))
}

/// Reads a datagram in a packet that has `room` for it.
#[inline(always)]
pub(super) fn read<B: Bytes + ?Sized>(packet: &B, at: usize, room: usize) -> Option<Above> {
    let datagram = udp::parse(packet.at(at)?);
    let (source, destination) = (datagram.source, datagram.destination);
    let reply = match is_own_port(destination) {
        true => packet.at(at + udp::LEN).and_then(Claim::of_reply),
        false => None,
    };
    let (message, claim) = match reply {
        Some(claim) => (Message::Reply, claim),
        None if is_own_port(source) => {
            let claim = Claim::of_probe(packet.at(at + udp::LEN)?)?;
            (Message::Probe, claim)
        }
        None => return None,
    };
    let len = usize::from(datagram.len);
    // Many reflectors send no more than they must know of the probe.
    let least = match message {
        Message::Reply => REFLECTED_LEN,
        _ => LEN,
    };
    let is_whole = len >= udp::LEN + least && len <= room;
    let ports = [source, destination];
    Some(Above::new(message, Evidence::Stamp(claim), ports, is_whole))
}

/// What an error quotes of a probe whose UDP header is at `at`.
#[inline(always)]
pub(super) fn quoted<B: Bytes + ?Sized>(packet: &B, at: usize) -> Option<Evidence> {
    Claim::of_probe(packet.at(at + udp::LEN)?).map(Evidence::Stamp)
}

/// What of a probe comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Sequence number, from 0.
    pub number: u32,
    /// Tracker slot, hidden by the instance's tag, and token, where others have a time.
    pub timestamp: u64,
}

impl Claim {
    /// That of a probe. The slot is exclusive-ored with the low bits of the instance's tag: among 2^24 numbers, another
    /// instance's slot is hardly ever one that is in use here. A token of 40 bits is less than others have; it is so much
    /// that a million guesses a second find one in twelve days, and only while a probe with that number is under way.
    #[inline(always)]
    pub const fn new(tag: u32, tracker: u32, sequence: u64, token: u64) -> Self {
        let slot = (tracker ^ tag) as u64;
        Self {
            number: sequence.wrapping_sub(1) as u32,
            timestamp: (slot << TOKEN_BITS) | (token >> (64 - TOKEN_BITS)),
        }
    }

    /// The tracker slot, if this is a probe of the instance with this tag. Probes of builds before there were tags are
    /// read with the tag 0.
    #[inline(always)]
    pub const fn tracker(&self, tag: u32) -> u32 {
        const SLOTS: u32 = (1 << (64 - TOKEN_BITS)) - 1;
        ((self.timestamp >> TOKEN_BITS) as u32) ^ (tag & SLOTS)
    }

    /// The probe's sequence number, if `sent` is that of the last one: never a later one.
    #[inline(always)]
    pub const fn sequence(&self, sent: u64) -> u64 {
        whole_sequence(self.number.wrapping_add(1), sent)
    }

    /// Reads what may be the first bytes of a probe.
    #[inline(always)]
    pub fn of_probe(packet: &[u8; CLAIM_LEN]) -> Option<Self> {
        Self::read(packet, 0)
    }

    /// Reads what may be the first bytes of a reflector's packet.
    #[inline(always)]
    pub fn of_reply(packet: &[u8; REFLECTED_LEN]) -> Option<Self> {
        Self::read(packet, CLAIM_AT)
    }

    #[inline(always)]
    fn read<const N: usize>(packet: &[u8; N], at: usize) -> Option<Self> {
        // The timestamp in halves: a copy of the packet may lie so that only words of 32 bits are aligned.
        (be16(packet, at + 12) == ESTIMATE).then(|| Self {
            number: be32(packet, at),
            timestamp: (u64::from(be32(packet, at + 4)) << 32) | u64::from(be32(packet, at + 8)),
        })
    }

    /// Writes a probe.
    #[inline(always)]
    pub fn emit(&self, packet: &mut [u8; LEN]) {
        put32(packet, 0, self.number);
        put64(packet, 4, self.timestamp);
        put16(packet, 12, ESTIMATE);
        put16(packet, 14, 0);
        put32(packet, 16, 0);
        for at in [20, 28, 36] {
            put64(packet, at, 0);
        }
    }

    /// The probe's part of a checksum.
    #[inline(always)]
    pub const fn sum(&self) -> Sum {
        (Sum::new().u32(self.number).u64(self.timestamp)).u16(ESTIMATE)
    }
}

/// Writes the header of the padding that makes a packet one of `len` bytes, and tells its part of a checksum.
#[inline(always)]
pub fn emit_padding(header: &mut [u8; TLV_LEN], len: u16) -> Sum {
    let padding = len.wrapping_sub((LEN + TLV_LEN) as u16);
    put16(header, 0, PADDING);
    put16(header, 2, padding);
    Sum::new().u16(PADDING).u16(padding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_claim_comes_back(tag: u32, tracker in 0u32..1 << 24, sequence in 1u64.., token: u64, later in 0u64..1 << 32) {
            let claim = Claim::new(tag, tracker, sequence, token);
            let mut packet = [0xaa; LEN];
            claim.emit(&mut packet);
            prop_assert_eq!(Claim::of_probe(packet.first_chunk().expect("a claim")), Some(claim));
            // As a reflector puts it together: its own fields first.
            let mut reply = [0x55; REFLECTED_LEN];
            reply[24..38].copy_from_slice(&packet[..14]);
            prop_assert_eq!(Claim::of_reply(&reply), Some(claim));
            prop_assert_eq!(claim.tracker(tag), tracker);
            prop_assert_eq!(claim.tracker(tag ^ 1), tracker ^ 1);
            let sent = sequence.saturating_add(later);
            prop_assert_eq!(claim.sequence(sent), sequence);
            prop_assert!(packet[14..].iter().all(|byte| *byte == 0));
            let sum = packet.chunks(2).fold(Sum::new(), |sum, word| sum.u16(u16::from_be_bytes([word[0], word[1]])));
            prop_assert_eq!(claim.sum().folded(), sum.folded());
            let other = Claim::new(tag, tracker, sequence, token ^ (1 << 24));
            prop_assert_ne!(claim, other);
        }

        #[test]
        fn others_packets_make_no_claim(packet: [u8; REFLECTED_LEN]) {
            let own = ESTIMATE.to_be_bytes();
            prop_assert_eq!(Claim::of_reply(&packet).is_some(), packet[36..] == own);
            prop_assert_eq!(Claim::of_probe(packet.first_chunk().expect("a claim")).is_some(), packet[12..14] == own);
        }
    }

    #[test]
    fn padding_is_a_tlv() {
        let mut header = [0xaa; TLV_LEN];
        let sum = emit_padding(&mut header, 1_000);
        assert_eq!(header, [0x80, 1, 0x03, 0xb8]);
        assert_eq!(sum.folded(), 0x8001 + 952);
    }
}

//! The probe header: what a probe of ICMP or UDP says of itself, and its reply brings back.

use crate::wire::{be32, be64, checksum::Sum, put32, put64};

/// Bytes of [`ProbeHeader`] on the wire: the first bytes after the ICMP or UDP header.
pub const LEN: usize = 32;
/// The first four bytes of every probe's payload: "TRKR".
pub const MAGIC: u32 = 0x5452_4b52;

/// What a probe says of itself. All but `token` is claimed; `token` proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeHeader {
    /// Tracker slot.
    pub tracker: u32,
    /// The instance's tag above the low half of the sequence number, which is from 1. Builds before there were tags
    /// wrote the whole sequence number.
    pub number: u64,
    /// When the probe was sent.
    pub sent_mono_ns: u64,
    /// [`crate::wire::token::token`] of the above and the slot's epoch.
    pub token: u64,
}

impl ProbeHeader {
    /// What a probe of the instance with this tag bears for a sequence number.
    #[inline(always)]
    pub const fn number(tag: u32, sequence: u64) -> u64 {
        ((tag as u64) << 32) | (sequence as u32 as u64)
    }

    /// The tag of the instance that sent it.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        (self.number >> 32) as u32
    }

    /// The low half of its sequence number.
    #[inline(always)]
    pub const fn sequence(&self) -> u32 {
        self.number as u32
    }

    /// True if a payload begins with [`MAGIC`].
    #[inline(always)]
    pub fn is_present(payload: &[u8; LEN]) -> bool {
        be32(payload, 0) == MAGIC
    }

    /// Reads a payload for which [`ProbeHeader::is_present`] holds.
    #[inline(always)]
    pub fn parse(payload: &[u8; LEN]) -> Self {
        Self {
            tracker: be32(payload, 4),
            number: be64(payload, 8),
            sent_mono_ns: be64(payload, 16),
            token: be64(payload, 24),
        }
    }

    /// Writes a payload.
    #[inline(always)]
    pub fn emit(&self, payload: &mut [u8; LEN]) {
        put32(payload, 0, MAGIC);
        put32(payload, 4, self.tracker);
        put64(payload, 8, self.number);
        put64(payload, 16, self.sent_mono_ns);
        put64(payload, 24, self.token);
    }

    /// The payload's part of a checksum.
    #[inline(always)]
    pub const fn sum(&self) -> Sum {
        Sum::new()
            .u32(MAGIC)
            .u32(self.tracker)
            .u64(self.number)
            .u64(self.sent_mono_ns)
            .u64(self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn probe_headers()(tracker: u32, number: u64, sent_mono_ns: u64, token: u64) -> ProbeHeader {
            ProbeHeader { tracker, number, sent_mono_ns, token }
        }
    }

    proptest! {
        #[test]
        fn marks_come_back(probe_header in probe_headers(), old: [u8; LEN]) {
            let mut payload = old;
            probe_header.emit(&mut payload);
            prop_assert_eq!(ProbeHeader::number(probe_header.tag(), u64::from(probe_header.sequence()) | 5 << 32), probe_header.number);
            prop_assert!(ProbeHeader::is_present(&payload));
            prop_assert_eq!(&payload[..4], b"TRKR");
            prop_assert_eq!(ProbeHeader::parse(&payload), probe_header);
            let sum = payload.chunks(2).fold(Sum::new(), |sum, word| {
                sum.u16(u16::from_be_bytes([word[0], word[1]]))
            });
            prop_assert_eq!(probe_header.sum().folded(), sum.folded());
        }

        #[test]
        fn only_marks_are_present(payload: [u8; LEN]) {
            prop_assert_eq!(ProbeHeader::is_present(&payload), payload.starts_with(b"TRKR"));
        }
    }
}

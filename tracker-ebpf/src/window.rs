//! Which probes of a tracker were answered: a bit for each sequence number, in words that are used in turn.
//!
//! The send program clears a word before the first probe of that word exists, the receive program sets bits, and the
//! daemon reads them. All three, and the simulation that checks them, take place and worth of a reply from here.

use crate::{abi::Tracker, verdict::Verdict};

/// The sequence number that has this low half, if `sent` is that of the last probe: never a later one.
#[inline(always)]
pub const fn whole_sequence(low: u32, sent: u64) -> u64 {
    sent.wrapping_sub((sent as u32).wrapping_sub(low) as u64)
}

/// Sequence numbers of a word.
const WORD: u64 = u64::BITS as u64;

/// A tracker's bit set in WINDOWS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First word.
    pub first: u32,
    /// Words, less one; words are a power of two.
    pub mask: u32,
}

impl Window {
    /// The word and bit of a sequence number, or of its low half: a window has less than 2^26 words.
    #[inline(always)]
    pub const fn position(self, sequence: u64) -> (u32, u64) {
        (
            self.first + ((sequence / WORD) as u32 & self.mask),
            1 << (sequence % WORD),
        )
    }

    /// The word that must be cleared before this probe is sent, if it is the first of its word. All that the word
    /// held was judged long before, because [`Window::words`] are enough.
    #[inline(always)]
    pub const fn stale_word(self, sequence: u64) -> Option<u32> {
        if sequence.is_multiple_of(WORD) || sequence == 1 {
            Some(self.position(sequence).0)
        } else {
            None
        }
    }

    /// Words that a tracker needs: all probes under way, the longest run, and the words being
    /// cleared and filled.
    pub const fn words(interval_ns: u64, timeout_ns: u64) -> u32 {
        let in_flight = timeout_ns / interval_ns + 2;
        let longest_run = 64;
        ((in_flight + longest_run).div_ceil(WORD) as u32 + 1).next_power_of_two()
    }
}

impl Window {
    /// True if the bit of this probe is still its own, or nearly: `sent` is the number of the last one.
    #[inline(always)]
    pub const fn remembers(self, sequence: u64, sent: u64) -> bool {
        // The word being cleared for the probes to come is none of these.
        (sent / WORD).wrapping_sub(sequence / WORD) < self.mask as u64
    }
}

/// What a reply is worth that is proven to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// The first within the timeout: it counts, and took this long.
    Counts {
        /// From the probe to the reply.
        rtt_ns: u64,
    },
    /// The probe was answered before.
    Duplicate,
    /// It came after the timeout.
    Late,
    /// The tracker has no place to note it.
    Nowhere,
}

impl Tracker {
    /// Its bit set.
    #[inline(always)]
    pub const fn window(&self) -> Window {
        Window {
            first: self.window_first,
            mask: self.window_mask,
        }
    }

    /// What a reply that arrives now is worth. `set` sets a bit of a word and says whether it was set, or that there
    /// is no such word; it is called only for a reply that is in time.
    #[inline(always)]
    pub fn admit(
        &self,
        sequence: u64,
        sent_mono_ns: u64,
        now_mono_ns: u64,
        set: impl FnOnce(u32, u64) -> Option<bool>,
    ) -> Worth {
        let rtt_ns = now_mono_ns.saturating_sub(sent_mono_ns);
        if rtt_ns > self.timeout_ns {
            return Worth::Late;
        }
        let (word, bit) = self.window().position(sequence);
        match set(word, bit) {
            Some(false) => Worth::Counts { rtt_ns },
            Some(true) => Worth::Duplicate,
            None => Worth::Nowhere,
        }
    }

    /// True if a counted reply is worth waking the daemon: `verdict` is what it last decided.
    #[inline(always)]
    pub const fn reports(&self, verdict: u8) -> bool {
        verdict != Verdict::Up as u8 || self.expects_silence != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_cleared_once_a_round_before_its_first_probe() {
        let window = Window { first: 8, mask: 3 };
        let cleared = (1..=300).filter_map(|sequence| {
            let word = window.stale_word(sequence)?;
            assert_eq!(word, window.position(sequence).0);
            Some((sequence, word))
        });
        let cleared: Vec<_> = cleared.collect();
        assert_eq!(cleared, [(1, 8), (64, 9), (128, 10), (192, 11), (256, 8)]);
    }

    #[test]
    fn a_probe_is_remembered_until_its_word_may_be_cleared() {
        let window = Window { first: 8, mask: 3 };
        for sent in [1, 63, 64, 200, 255, 256, 1_000, 1 << 40] {
            let remembered = (1..=sent.min(2_000)).map(|back| sent + 1 - back);
            let cleared: Vec<_> = [sent, sent + 1]
                .into_iter()
                .filter_map(|sequence| window.stale_word(sequence))
                .collect();
            let mut count = 0;
            for sequence in remembered.filter(|sequence| window.remembers(*sequence, sent)) {
                count += 1;
                let (word, _) = window.position(sequence);
                let is_new = sequence / 64 == (sent + 1) / 64;
                assert!(
                    is_new
                        || sent < 64
                        || !cleared[..].contains(&word)
                        || sequence / 64 == sent / 64
                );
            }
            assert!(count > 128 || count == sent, "{sent}: {count}");
        }
    }

    #[test]
    fn a_reply_counts_once_and_in_time() {
        let tracker = Tracker {
            timeout_ns: 50,
            window_first: 4,
            window_mask: 1,
            ..Tracker::default()
        };
        let mut words = [0u64; 6];
        let mut admit = |sequence, sent_ns, now_ns| {
            tracker.admit(sequence, sent_ns, now_ns, |word, bit| {
                let word = words.get_mut(word as usize)?;
                let was_set = *word & bit != 0;
                *word |= bit;
                Some(was_set)
            })
        };
        assert_eq!(admit(65, 100, 151), Worth::Late);
        assert_eq!(admit(65, 100, 150), Worth::Counts { rtt_ns: 50 });
        assert_eq!(admit(65, 100, 140), Worth::Duplicate);
        // A time of the future in a probe cannot bear a right token; time still can't run backwards.
        assert_eq!(admit(66, 100, 90), Worth::Counts { rtt_ns: 0 });
        assert_eq!(words, [0, 0, 0, 0, 0, 6]);
        let lost = Tracker {
            window_first: 6,
            ..tracker
        };
        assert_eq!(lost.admit(1, 0, 0, |_, _| None), Worth::Nowhere);
    }

    #[test]
    fn replies_are_reported_while_they_matter() {
        let mut tracker = Tracker::default();
        let reported = |tracker: &Tracker| {
            [Verdict::Unknown, Verdict::Up, Verdict::Down]
                .map(|verdict| tracker.reports(verdict as u8))
        };
        assert_eq!(reported(&tracker), [true, false, true]);
        tracker.expects_silence = 1;
        assert_eq!(reported(&tracker), [true; 3]);
    }
}

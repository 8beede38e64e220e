//! The probes of one cohort that are under way, and whether their loss would prove anything (pure).
//!
//! All of a cohort have the same timeout, so those sent first are judged first: plain queues.

use std::collections::VecDeque;

/// A tick later than this is a stall for every probe under way, however long its timeout.
pub const STALL_MIN_NS: u64 = 5_000_000;

/// `sent_ns` of what an earlier daemon sent, whenever that was.
pub const INHERITED_NS: u64 = 0;

/// Probes that were sent in one call.
#[derive(Clone, Copy, Debug)]
struct Batch {
    sent_ns: u64,
    deadline_ns: u64,
    count: u32,
}

/// One probe whose timeout has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueProbe {
    /// Whose it is.
    pub slot: u32,
    /// When it was sent; [`INHERITED_NS`] if an earlier daemon did.
    pub sent_ns: u64,
    /// The hub did not keep up while it was under way: if it was not answered, that proves nothing.
    pub is_void: bool,
}

/// Probes under way, in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    batches: VecDeque<Batch>,
    slots: VecDeque<u32>,
    /// Entries of `slots` that were sent; those behind are queued.
    counted: usize,
    /// Losses of probes sent before this prove nothing.
    void_until_ns: u64,
}

impl InFlight {
    /// Whether a tick this late makes losses with this timeout inconclusive: replies may have waited for it, or have found no
    /// program that took them.
    pub const fn is_stall(late_ns: u64, timeout_ns: u64) -> bool {
        late_ns >= STALL_MIN_NS && late_ns >= timeout_ns / 2
    }

    /// When the next probe is to be judged.
    #[inline]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        Some(self.batches.front()?.deadline_ns)
    }

    /// What is under way proves nothing by silence; false if nothing is.
    pub fn void(&mut self, now_ns: u64) -> bool {
        if self.batches.is_empty() {
            return false;
        }
        self.void_until_ns = now_ns;
        true
    }

    /// Queues a probe of this slot for the next batch.
    #[inline]
    pub fn queue(&mut self, slot: u32) {
        self.slots.push_back(slot);
    }

    /// Notes that all queued probes were sent.
    #[inline]
    pub fn sent(&mut self, sent_ns: u64, deadline_ns: u64) {
        let count = self.slots.len() - self.counted;
        if count > 0 {
            self.counted += count;
            self.batches.push_back(Batch {
                sent_ns,
                deadline_ns,
                count: count as u32,
            });
        }
    }

    /// Waits once more for so many probes of an earlier daemon, which count if answered and prove nothing else.
    pub fn inherit(&mut self, slot: u32, count: u64, deadline_ns: u64) {
        for _ in 0..count {
            self.queue(slot);
        }
        self.sent(INHERITED_NS, deadline_ns);
        self.void_until_ns = self.void_until_ns.max(INHERITED_NS + 1);
    }

    /// The next probe whose timeout has passed.
    #[inline]
    pub fn due(&mut self, now_ns: u64) -> Option<DueProbe> {
        let batch = self.batches.front_mut()?;
        if batch.deadline_ns > now_ns {
            return None;
        }
        let sent_ns = batch.sent_ns;
        batch.count -= 1;
        if batch.count == 0 {
            self.batches.pop_front();
        }
        self.counted -= 1;
        Some(DueProbe {
            slot: self.slots.pop_front()?,
            sent_ns,
            is_void: sent_ns < self.void_until_ns,
        })
    }

    /// Forgets all probes of a slot.
    pub fn forget(&mut self, slot: u32) {
        self.forget_all(|entry| entry == slot);
    }

    /// Forgets all probes of the slots that are gone, however many, in one walk over what is under way.
    pub fn forget_all(&mut self, is_gone: impl Fn(u32) -> bool) {
        let mut entries = std::mem::take(&mut self.slots).into_iter();
        for batch in &mut self.batches {
            let before = self.slots.len();
            let of_batch = entries.by_ref().take(batch.count as usize);
            self.slots.extend(of_batch.filter(|&entry| !is_gone(entry)));
            batch.count = (self.slots.len() - before) as u32;
        }
        self.batches.retain(|batch| batch.count > 0);
        self.counted = self.slots.len();
        self.slots.extend(entries.filter(|&entry| !is_gone(entry)));
    }

    /// Empties it, and keeps its memory.
    pub fn clear(&mut self) {
        self.batches.clear();
        self.slots.clear();
        (self.counted, self.void_until_ns) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn landed(in_flight: &mut InFlight, now_ns: u64) -> Vec<(u32, bool)> {
        std::iter::from_fn(|| in_flight.due(now_ns))
            .map(|landed| (landed.slot, landed.is_void))
            .collect()
    }

    fn two_flights() -> InFlight {
        let mut in_flight = InFlight::default();
        for (sent_ns, slots) in [(100 * MS, [1, 2, 3]), (110 * MS, [2, 3, 4])] {
            for slot in slots {
                in_flight.queue(slot);
            }
            in_flight.sent(sent_ns, sent_ns + 50 * MS);
        }
        in_flight
    }

    #[test]
    fn probes_land_in_order_at_their_deadline() {
        let mut in_flight = two_flights();
        assert_eq!(in_flight.next_deadline_ns(), Some(150 * MS));
        assert_eq!(landed(&mut in_flight, 150 * MS - 1), []);
        let first = [(1, false), (2, false), (3, false)];
        assert_eq!(landed(&mut in_flight, 150 * MS), first);
        assert_eq!(in_flight.next_deadline_ns(), Some(160 * MS));
        in_flight.sent(160 * MS, 170 * MS);
        assert_eq!(landed(&mut in_flight, 200 * MS).len(), 3);
        assert_eq!(in_flight.next_deadline_ns(), None);
    }

    #[test]
    fn a_stall_voids_what_was_sent_before_it_and_nothing_else() {
        let mut in_flight = two_flights();
        assert!(in_flight.void(110 * MS));
        let voids = landed(&mut in_flight, 200 * MS).into_iter();
        assert_eq!(
            voids.map(|(_, is_void)| is_void).collect::<Vec<_>>(),
            [true, true, true, false, false, false]
        );
        // Nothing under way, nothing to excuse.
        assert!(!in_flight.void(300 * MS));
    }

    #[test]
    fn half_a_timeout_is_a_stall_but_no_less_than_five_milliseconds() {
        assert!(!InFlight::is_stall(25 * MS - 1, 50 * MS));
        assert!(InFlight::is_stall(25 * MS, 50 * MS));
        assert!(!InFlight::is_stall(STALL_MIN_NS - 1, MS));
        assert!(InFlight::is_stall(STALL_MIN_NS, MS));
    }

    #[test]
    fn who_is_forgotten_does_not_land() {
        let mut in_flight = two_flights();
        in_flight.forget(2);
        in_flight.forget(1);
        assert_eq!(landed(&mut in_flight, 150 * MS), [(3, false)]);
        in_flight.queue(5);
        in_flight.forget(3);
        in_flight.sent(120 * MS, 170 * MS);
        assert_eq!(landed(&mut in_flight, 160 * MS), [(4, false)]);
        assert_eq!(landed(&mut in_flight, 170 * MS), [(5, false)]);
        assert_eq!(in_flight.next_deadline_ns(), None);
    }

    #[test]
    fn what_is_inherited_proves_nothing_by_silence() {
        let mut in_flight = InFlight::default();
        in_flight.inherit(7, 2, 50 * MS);
        in_flight.queue(7);
        in_flight.sent(10 * MS, 60 * MS);
        assert_eq!(
            landed(&mut in_flight, 60 * MS),
            [(7, true), (7, true), (7, false)]
        );
    }
}

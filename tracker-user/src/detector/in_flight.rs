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
struct Flight {
    sent_ns: u64,
    deadline_ns: u64,
    count: u32,
}

/// One probe whose timeout has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Whose it is.
    pub slot: u32,
    /// When it was sent; [`INHERITED_NS`] where an earlier daemon did.
    pub sent_ns: u64,
    /// The hub did not keep up while it was under way: if it was not answered, that proves nothing.
    pub is_void: bool,
}

/// Probes under way, in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub struct Flights {
    flights: VecDeque<Flight>,
    slots: VecDeque<u32>,
    /// Entries of `slots` that belong to a flight; those behind are boarding.
    counted: usize,
    /// Losses of probes sent before this prove nothing.
    void_until_ns: u64,
}

impl Flights {
    /// True where a tick so late leaves the hub in no position to blame anybody for a probe of that timeout: replies
    /// may have waited for it, or it was not there to take them.
    pub const fn is_stall(late_ns: u64, timeout_ns: u64) -> bool {
        late_ns >= STALL_MIN_NS && late_ns >= timeout_ns / 2
    }

    /// When the next probe is to be judged.
    #[inline]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        Some(self.flights.front()?.deadline_ns)
    }

    /// What is under way proves nothing by silence; false where nothing is.
    pub fn void(&mut self, now_ns: u64) -> bool {
        if self.flights.is_empty() {
            return false;
        }
        self.void_until_ns = now_ns;
        true
    }

    /// A probe of this slot goes with the next flight.
    #[inline]
    pub fn board(&mut self, slot: u32) {
        self.slots.push_back(slot);
    }

    /// Those that boarded were sent.
    #[inline]
    pub fn depart(&mut self, sent_ns: u64, deadline_ns: u64) {
        let count = self.slots.len() - self.counted;
        if count > 0 {
            self.counted += count;
            self.flights.push_back(Flight {
                sent_ns,
                deadline_ns,
                count: count as u32,
            });
        }
    }

    /// Waits once more for so many probes of an earlier daemon, which count if answered and prove nothing else.
    pub fn inherit(&mut self, slot: u32, count: u64, deadline_ns: u64) {
        for _ in 0..count {
            self.board(slot);
        }
        self.depart(INHERITED_NS, deadline_ns);
        self.void_until_ns = self.void_until_ns.max(INHERITED_NS + 1);
    }

    /// The next probe whose timeout has passed.
    #[inline]
    pub fn land(&mut self, now_ns: u64) -> Option<Landed> {
        let flight = self.flights.front_mut()?;
        if flight.deadline_ns > now_ns {
            return None;
        }
        let sent_ns = flight.sent_ns;
        flight.count -= 1;
        if flight.count == 0 {
            self.flights.pop_front();
        }
        self.counted -= 1;
        Some(Landed {
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
        for flight in &mut self.flights {
            let before = self.slots.len();
            let of_flight = entries.by_ref().take(flight.count as usize);
            self.slots
                .extend(of_flight.filter(|&entry| !is_gone(entry)));
            flight.count = (self.slots.len() - before) as u32;
        }
        self.flights.retain(|flight| flight.count > 0);
        self.counted = self.slots.len();
        self.slots.extend(entries.filter(|&entry| !is_gone(entry)));
    }

    /// Empties it, and keeps its memory.
    pub fn clear(&mut self) {
        self.flights.clear();
        self.slots.clear();
        (self.counted, self.void_until_ns) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn landed(flights: &mut Flights, now_ns: u64) -> Vec<(u32, bool)> {
        std::iter::from_fn(|| flights.land(now_ns))
            .map(|landed| (landed.slot, landed.is_void))
            .collect()
    }

    fn two_flights() -> Flights {
        let mut flights = Flights::default();
        for (sent_ns, slots) in [(100 * MS, [1, 2, 3]), (110 * MS, [2, 3, 4])] {
            for slot in slots {
                flights.board(slot);
            }
            flights.depart(sent_ns, sent_ns + 50 * MS);
        }
        flights
    }

    #[test]
    fn probes_land_in_order_at_their_deadline() {
        let mut flights = two_flights();
        assert_eq!(flights.next_deadline_ns(), Some(150 * MS));
        assert_eq!(landed(&mut flights, 150 * MS - 1), []);
        let first = [(1, false), (2, false), (3, false)];
        assert_eq!(landed(&mut flights, 150 * MS), first);
        assert_eq!(flights.next_deadline_ns(), Some(160 * MS));
        flights.depart(160 * MS, 170 * MS);
        assert_eq!(landed(&mut flights, 200 * MS).len(), 3);
        assert_eq!(flights.next_deadline_ns(), None);
    }

    #[test]
    fn a_stall_voids_what_was_sent_before_it_and_nothing_else() {
        let mut flights = two_flights();
        assert!(flights.void(110 * MS));
        let voids = landed(&mut flights, 200 * MS).into_iter();
        assert_eq!(
            voids.map(|(_, is_void)| is_void).collect::<Vec<_>>(),
            [true, true, true, false, false, false]
        );
        // Nothing under way, nothing to excuse.
        assert!(!flights.void(300 * MS));
    }

    #[test]
    fn half_a_timeout_is_a_stall_but_no_less_than_five_milliseconds() {
        assert!(!Flights::is_stall(25 * MS - 1, 50 * MS));
        assert!(Flights::is_stall(25 * MS, 50 * MS));
        assert!(!Flights::is_stall(STALL_MIN_NS - 1, MS));
        assert!(Flights::is_stall(STALL_MIN_NS, MS));
    }

    #[test]
    fn who_is_forgotten_does_not_land() {
        let mut flights = two_flights();
        flights.forget(2);
        flights.forget(1);
        assert_eq!(landed(&mut flights, 150 * MS), [(3, false)]);
        flights.board(5);
        flights.forget(3);
        flights.depart(120 * MS, 170 * MS);
        assert_eq!(landed(&mut flights, 160 * MS), [(4, false)]);
        assert_eq!(landed(&mut flights, 170 * MS), [(5, false)]);
        assert_eq!(flights.next_deadline_ns(), None);
    }

    #[test]
    fn what_is_inherited_proves_nothing_by_silence() {
        let mut flights = Flights::default();
        flights.inherit(7, 2, 50 * MS);
        flights.board(7);
        flights.depart(10 * MS, 60 * MS);
        assert_eq!(
            landed(&mut flights, 60 * MS),
            [(7, true), (7, true), (7, false)]
        );
    }
}

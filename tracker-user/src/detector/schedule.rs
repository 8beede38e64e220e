//! When each tracker's next probe is due: pure arithmetic over time, no clock and no allocation in
//! the tick.
//!
//! Trackers of one interval and timeout form a [`Cohort`] and are spread over the interval evenly, so
//! that what is due in a tick is a contiguous range of the cohort. Each keeps its place, so a tracker's
//! probes are exactly one interval apart. A tick that comes late sends what is still fresh; what is
//! staler than half an interval is skipped, so probes of one tracker are never bunched.

/// Shortest time between two ticks.
pub const TICK_NS: u64 = 1_000_000;

/// Longest time between two ticks: commands and replies wake the thread, so this only bounds the age of what it
/// looks at by itself.
const IDLE_NS: u64 = 1_000_000_000;

/// When the tick after the one at `now_ns` should be, if something is due at `next_ns`; `planned_ns` is when this
/// one should have been. An early wake-up (a reply, a command) does not shift the grid of ticks.
#[inline]
pub fn next_tick_ns(planned_ns: u64, now_ns: u64, next_ns: u64) -> u64 {
    let soonest_ns = if planned_ns > now_ns {
        planned_ns.min(now_ns + TICK_NS)
    } else {
        now_ns + TICK_NS
    };
    next_ns.clamp(soonest_ns, now_ns + IDLE_NS)
}

/// What a turn is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has come: send.
    Take,
    /// It, and those after it up to this number of turns in all, are too long past and are dropped.
    Skip(u64),
}

/// A group of trackers with the same interval and timeout.
#[derive(Debug)]
pub struct Cohort {
    /// Time between two probes of one tracker, nanoseconds.
    pub interval_ns: u64,
    /// How long a probe may stay unanswered, nanoseconds.
    pub timeout_ns: u64,
    members: Vec<u32>,
    /// The member whose turn is next.
    next: usize,
    /// When the first member's turn of this round is (was), in monotonic nanoseconds.
    round_ns: u64,
}

impl Cohort {
    /// An empty cohort.
    pub const fn new(interval_ns: u64, timeout_ns: u64) -> Self {
        Self {
            interval_ns,
            timeout_ns,
            members: Vec::new(),
            next: 0,
            round_ns: 0,
        }
    }

    /// Number of trackers.
    pub const fn len(&self) -> usize {
        self.members.len()
    }

    /// True without trackers.
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Offset of a member's turn within a round.
    #[inline]
    const fn offset_ns(&self, member: usize) -> u64 {
        if member == 0 {
            return 0;
        }
        let (member, len) = (member as u64, self.members.len() as u64);
        match self.interval_ns.checked_mul(member) {
            Some(product) => product / len,
            // More than five million members at an hour: only then the slow way.
            None => (self.interval_ns as u128 * member as u128 / len as u128) as u64,
        }
    }

    /// When the next probe of this cohort is due; `None` when it is empty.
    #[inline]
    pub const fn next_due_ns(&self) -> Option<u64> {
        if self.members.is_empty() {
            return None;
        }
        Some(self.round_ns + self.offset_ns(self.next))
    }

    /// Adds a tracker; the others' next turns stay in order and none is lost.
    pub fn add(&mut self, tracker: u32, now_ns: u64) {
        let due_ns = self.next_due_ns().unwrap_or(now_ns);
        self.members.push(tracker);
        self.anchor(due_ns);
    }

    /// Removes a tracker; false if it is not a member.
    pub fn remove(&mut self, tracker: u32) -> bool {
        let before = self.members.len();
        self.remove_all(|member| member == tracker);
        self.members.len() < before
    }

    /// Removes the trackers that are gone, however many, in one walk over the members.
    pub fn remove_all(&mut self, is_gone: impl Fn(u32) -> bool) {
        if self.members.is_empty() {
            return;
        }
        // Whose turn is next from now on keeps the time that it had.
        let stays = |at: &usize| !is_gone(self.members[*at]);
        let in_round = (self.next..self.members.len()).find(stays);
        let heir = in_round.or_else(|| (0..self.next).find(stays));
        let due_ns = heir.map(|heir| {
            let round_ns = if in_round.is_some() {
                self.round_ns
            } else {
                self.round_ns + self.interval_ns
            };
            round_ns + self.offset_ns(heir)
        });
        let before = heir.map_or(0, |heir| (0..heir).filter(stays).count());
        self.members.retain(|&member| !is_gone(member));
        self.next = before;
        if let Some(due_ns) = due_ns {
            self.anchor(due_ns);
        }
    }

    /// Makes the next member's turn be at `due_ns`.
    fn anchor(&mut self, due_ns: u64) {
        self.round_ns = due_ns.saturating_sub(self.offset_ns(self.next));
    }

    /// Calls `turn` in order for the members whose turn has come, until `limit` were taken. Whole rounds that were
    /// missed are told to each member at once, however many they are.
    #[inline]
    pub fn tick(&mut self, now_ns: u64, limit: usize, mut turn: impl FnMut(u32, Turn)) {
        let stale_ns = (self.interval_ns / 2).max(TICK_NS);
        if let Some(due_ns) = self.next_due_ns()
            && let Some(late_ns) = now_ns.checked_sub(due_ns + stale_ns)
            && let rounds = late_ns / self.interval_ns
            && rounds > 0
        {
            for member in &self.members {
                turn(*member, Turn::Skip(rounds));
            }
            self.round_ns += rounds * self.interval_ns;
        }
        let mut taken = 0;
        while let Some(due_ns) = self.next_due_ns()
            && due_ns <= now_ns
            && taken < limit
        {
            let tracker = self.members[self.next];
            if now_ns - due_ns > stale_ns {
                turn(tracker, Turn::Skip(1));
            } else {
                turn(tracker, Turn::Take);
                taken += 1;
            }
            self.next += 1;
            if self.next == self.members.len() {
                self.next = 0;
                self.round_ns += self.interval_ns;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn tick(cohort: &mut Cohort, now_ns: u64) -> (Vec<u32>, Vec<u32>) {
        let (mut taken, mut skipped) = (Vec::new(), Vec::new());
        cohort.tick(now_ns, usize::MAX, |one, turn| match turn {
            Turn::Take => taken.push(one),
            Turn::Skip(turns) => skipped.extend((0..turns).map(|_| one)),
        });
        (taken, skipped)
    }

    fn cohort(trackers: u32, interval_ns: u64) -> Cohort {
        let mut cohort = Cohort::new(interval_ns, interval_ns);
        for tracker in 0..trackers {
            cohort.add(tracker, 0);
        }
        cohort
    }

    #[test]
    fn spreads_evenly_and_repeats_exactly() {
        let mut cohort = cohort(10, 10 * MS);
        for now in 0..30 {
            assert_eq!(tick(&mut cohort, now * MS).0, [(now % 10) as u32]);
        }
    }

    #[test]
    fn a_late_tick_sends_the_fresh_and_skips_the_stale() {
        let mut cohort = cohort(10, 10 * MS);
        assert_eq!(tick(&mut cohort, 0).0, [0]);
        let (taken, skipped) = tick(&mut cohort, 9 * MS);
        assert_eq!(skipped, [1, 2, 3]);
        assert_eq!(taken, [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_long_stall_counts_every_turn_and_does_not_bunch() {
        let mut cohort = cohort(4, 4 * MS);
        let mut calls = 0;
        let (mut taken, mut skipped) = (Vec::new(), 0);
        cohort.tick(3_600_003 * MS, usize::MAX, |one, turn| {
            calls += 1;
            match turn {
                Turn::Take => taken.push(one),
                Turn::Skip(turns) => skipped += turns,
            }
        });
        // One turn each millisecond, from 0 on.
        assert_eq!(taken.len() as u64 + skipped, 3_600_004);
        assert!(taken.len() <= 4 && calls <= 12, "{taken:?}, {calls}");
        let mut once = taken.clone();
        once.dedup();
        assert_eq!(once, taken);
        assert_eq!(tick(&mut cohort, 3_600_000 * MS + 4 * MS).0.len(), 1);
    }

    proptest! {
        /// Each turn that has come is taken or skipped, however late ticks are, and only what is stale is skipped.
        #[test]
        fn every_turn_counts_once(
            trackers in 1u32..20, interval_ms in 1u64..40, steps in prop::collection::vec(0u64..500_000_000, 1..40),
        ) {
            let interval = interval_ms * MS;
            let mut cohort = cohort(trackers, interval);
            let first: Vec<u64> = (0..trackers as usize).map(|member| cohort.offset_ns(member)).collect();
            let mut counted = vec![0u64; trackers as usize];
            let mut now = 0;
            for step in steps {
                now += step;
                let stale_ns = (interval / 2).max(TICK_NS);
                let mut fresh = true;
                cohort.tick(now, usize::MAX, |one, turn| {
                    let due = first[one as usize] + counted[one as usize] * interval;
                    let (turns, oldest_skipped) = match turn {
                        Turn::Take => (1, None),
                        Turn::Skip(turns) => (turns, Some(due + (turns - 1) * interval)),
                    };
                    counted[one as usize] += turns;
                    fresh &= oldest_skipped.is_none_or(|due| now - due >= stale_ns);
                    fresh &= oldest_skipped.is_some() || now - due <= stale_ns;
                });
                prop_assert!(fresh);
                for (at, counted) in counted.iter().enumerate() {
                    let come = now.checked_sub(first[at]).map_or(0, |since| since / interval + 1);
                    prop_assert_eq!(*counted, come);
                }
            }
        }

        /// However ticks fall and members come and go, no member is taken twice within half an
        /// interval, and while ticks are timely none is skipped or left out.
        #[test]
        fn nobody_is_bunched_or_forgotten(
            trackers in 1u32..50, steps in prop::collection::vec(1u64..4, 50..300),
        ) {
            let interval = 20 * MS;
            let mut cohort = cohort(trackers, interval);
            let mut last = vec![None::<u64>; trackers as usize];
            let mut now = 0;
            for step in steps {
                now += step * MS;
                let (taken, skipped) = tick(&mut cohort, now);
                prop_assert!(skipped.is_empty());
                for tracker in taken {
                    let seen = &mut last[tracker as usize];
                    if let Some(before) = *seen {
                        prop_assert!(now - before >= interval / 2);
                        prop_assert!(now - before <= interval + 4 * MS);
                    }
                    *seen = Some(now);
                }
            }
            if now > interval + 4 * MS {
                prop_assert!(last.iter().all(Option::is_some));
            }
        }

        #[test]
        fn removal_keeps_the_others_turns(remove in 0u32..10, at in 0u64..20) {
            let mut cohort = cohort(10, 10 * MS);
            for now in 0..=at {
                tick(&mut cohort, now * MS);
            }
            prop_assert!(cohort.remove(remove));
            prop_assert!(!cohort.remove(remove));
            let mut seen = Vec::new();
            for now in at + 1..=at + 12 {
                seen.extend(tick(&mut cohort, now * MS).0);
            }
            for other in (0..10).filter(|other| *other != remove) {
                prop_assert!(seen.contains(&other), "{other} missing in {seen:?}");
            }
            prop_assert!(!seen.contains(&remove));
        }
    }
}

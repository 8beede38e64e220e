//! How well the hub keeps up, measured where it would first be late.
//!
//! Each figure has one writer, and any number of readers that cost it nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// How long at least, and at most twice as long, a lateness counts as recent.
const RECENT_NS: u64 = 10_000_000_000;

/// Above this age of what the threads know, nothing that was known counts any more: verdicts are then
/// `unknown`, with cause `stalled`.
pub const STALLED_NS: u64 = 3_000_000_000;

/// How well a daemon keeps up.
#[derive(Debug, Default)]
pub struct Health {
    /// Turns of the main loop.
    pub main: Beat,
    /// Turns of the sending thread.
    pub send: Beat,
    /// How long after its time the sending thread woke up.
    pub tick: Lateness,
    /// How long a reply that is waited for lay in the ring buffer.
    pub ring: Lateness,
    /// How long after its time the daemon's own loop saw its timer.
    pub timer: Lateness,
    /// Ticks so late that probes under way proved nothing.
    pub stalls: AtomicU64,
}

/// The turns of one thread, noted by that thread alone.
#[derive(Debug, Default)]
pub struct Beat {
    turned_mono_ns: AtomicU64,
    signs: AtomicU64,
}

impl Beat {
    /// Notes the end of a turn, at a time of the monotonic clock.
    pub fn turn(&self, now_mono_ns: u64) {
        self.turned_mono_ns.store(now_mono_ns, Ordering::Relaxed);
        self.progress();
    }

    /// Notes progress within a turn that takes long: the thread is late, and does not hang.
    pub fn progress(&self) {
        self.signs.fetch_add(1, Ordering::Relaxed);
    }

    /// When the last turn ended, by the monotonic clock; 0 before the first.
    pub fn turned_mono_ns(&self) -> u64 {
        self.turned_mono_ns.load(Ordering::Relaxed)
    }

    /// A number that is different after each turn and each progress.
    pub fn signs(&self) -> u64 {
        self.signs.load(Ordering::Relaxed)
    }
}

impl Health {
    /// How old what the daemon knows is: the time since the sending thread and the main loop both last ended a
    /// turn, in nanoseconds.
    pub fn age_ns(&self, now_mono_ns: u64) -> u64 {
        let turned_ns = self.main.turned_mono_ns().min(self.send.turned_mono_ns());
        now_mono_ns.saturating_sub(turned_ns)
    }
}

/// Latenesses of one kind.
#[derive(Debug, Default)]
pub struct Lateness {
    max_ns: AtomicU64,
    /// Which stretch of [`RECENT_NS`] the next two are of.
    stretch: AtomicU64,
    greatest_ns: AtomicU64,
    greatest_before_ns: AtomicU64,
    /// When the next one is due; 0 if that is not known.
    due_ns: AtomicU64,
}

/// A kind of lateness in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figure {
    /// The greatest of the last 10 to 20 seconds, what is overdue now included.
    pub recent_ns: u64,
    /// The greatest since the start.
    pub max_ns: u64,
}

impl Lateness {
    /// Records a lateness that was measured now.
    pub fn note(&self, now_ns: u64, late_ns: u64) {
        let stretch = now_ns / RECENT_NS;
        let before = self.stretch.swap(stretch, Ordering::Relaxed);
        if before != stretch {
            let greatest_ns = self.greatest_ns.swap(0, Ordering::Relaxed);
            let is_next = before + 1 == stretch;
            self.greatest_before_ns
                .store(if is_next { greatest_ns } else { 0 }, Ordering::Relaxed);
        }
        self.greatest_ns.fetch_max(late_ns, Ordering::Relaxed);
        self.max_ns.fetch_max(late_ns, Ordering::Relaxed);
    }

    /// Says when the next one is due, so that one that never comes is late too.
    pub fn expect(&self, due_ns: u64) {
        self.due_ns.store(due_ns, Ordering::Relaxed);
    }

    /// The figures at this time.
    pub fn figure(&self, now_ns: u64) -> Figure {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let noted_ns = match (now_ns / RECENT_NS).checked_sub(of(&self.stretch)) {
            Some(0) | None => of(&self.greatest_ns).max(of(&self.greatest_before_ns)),
            Some(1) => of(&self.greatest_ns),
            Some(_) => 0,
        };
        let due_ns = of(&self.due_ns);
        let overdue_ns = if due_ns == 0 {
            0
        } else {
            now_ns.saturating_sub(due_ns)
        };
        let recent_ns = noted_ns.max(overdue_ns);
        Figure {
            recent_ns,
            max_ns: of(&self.max_ns).max(recent_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn what_was_late_is_recent_for_a_while_and_the_greatest_for_ever() {
        let lateness = Lateness::default();
        lateness.note(100 * S, 7);
        lateness.note(101 * S, 3);
        for (at_s, recent_ns) in [(101, 7), (109, 7), (110, 7), (119, 7), (120, 0), (1000, 0)] {
            let figure = lateness.figure(at_s * S);
            assert_eq!((figure.recent_ns, figure.max_ns), (recent_ns, 7), "{at_s}");
        }
        lateness.note(112 * S, 2);
        assert_eq!(lateness.figure(113 * S).recent_ns, 7);
        lateness.note(121 * S, 1);
        assert_eq!(lateness.figure(122 * S).recent_ns, 2);
        lateness.note(150 * S, 0);
        assert_eq!(lateness.figure(150 * S).recent_ns, 0);
        assert_eq!(lateness.figure(150 * S).max_ns, 7);
    }

    #[test]
    fn the_age_is_that_of_the_thread_that_turned_longest_ago() {
        let health = Health::default();
        health.main.turn(100 * S);
        health.send.turn(102 * S);
        assert_eq!(health.age_ns(103 * S), 3 * S);
        health.main.progress();
        assert_eq!(health.age_ns(103 * S), 3 * S, "progress is no turn");
        health.main.turn(103 * S);
        assert_eq!(health.age_ns(103 * S), S);
        // A reader whose clock was read before the turn.
        assert_eq!(health.age_ns(101 * S), 0);
    }

    #[test]
    fn what_is_overdue_is_late_before_it_comes() {
        let lateness = Lateness::default();
        lateness.note(100 * S, 0);
        lateness.expect(101 * S);
        assert_eq!(lateness.figure(101 * S).recent_ns, 0);
        assert_eq!(lateness.figure(131 * S).recent_ns, 30 * S);
        assert_eq!(lateness.figure(131 * S).max_ns, 30 * S);
    }
}

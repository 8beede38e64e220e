//! The specification: what a tracker's verdict must be, found by looking at everything that became of its probes.
//! No state machine, and nothing of the code under test.

use tracker_ebpf::verdict::{Rules, Verdict};

/// Most probes of a history.
pub const PROBES: usize = 64;

/// What really became of each probe; bit and index `n` are the `n`-th probe.
#[derive(Clone, Debug)]
pub struct Record {
    pub rules: Rules,
    /// The service must stop the probes.
    pub expects_silence: bool,
    /// Probes that were really sent.
    pub sent: usize,
    pub sent_ns: [u64; PROBES],
    /// When each had its full timeout.
    pub deadline_ns: [u64; PROBES],
    /// Probes whose timeout has passed.
    pub over: usize,
    /// A genuine reply came, by the right way, within the timeout.
    pub answered: u64,
    /// The hub did not keep up while they were under way.
    pub stalled: u64,
    /// The device swallowed them.
    pub swallowed: u64,
    /// Probes before this one tell of what is past: a fault, other probes, an earlier daemon.
    pub barrier: usize,
    /// The verdict until probes from the barrier on decide.
    pub base: Verdict,
    /// It was up when the hub stopped being able to send, and nothing was decided since.
    pub was_up: bool,
    /// Replies that were not reported to the daemon at once, because the ring buffer was full: it may find them
    /// only when their probes are judged.
    pub is_deaf: bool,
}

/// What decides now, and the probe it ends with (from 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    pub up: usize,
    pub down: usize,
    /// The verdicts with replies that count only once their probes' timeouts have passed.
    pub up_in_order: usize,
    pub down_in_order: usize,
}

/// Bits below `end`.
const fn below(end: usize) -> u64 {
    if end >= PROBES {
        u64::MAX
    } else {
        (1 << end) - 1
    }
}

/// Where the newest `count` set bits in a row end (from 1); 0 for none.
pub fn newest_run(mut bits: u64, count: u8) -> usize {
    for _ in 1..count {
        bits &= bits >> 1;
    }
    match bits {
        0 => 0,
        _ => (u64::BITS - bits.leading_zeros()) as usize + usize::from(count) - 1,
    }
}

/// The newest run of `count` bits if probes in `void` count neither way.
pub fn newest_run_around(bits: u64, void: u64, end: usize, count: u8) -> usize {
    let mut run = 0;
    let mut found = 0;
    for at in (0..end).filter(|at| void >> at & 1 == 0) {
        run = if bits >> at & 1 == 1 { run + 1 } else { 0 };
        if run >= usize::from(count) {
            found = at + 1;
        }
    }
    found
}

impl Record {
    /// Nothing yet.
    pub fn new(rules: Rules, expects_silence: bool) -> Self {
        Self {
            rules,
            expects_silence,
            sent: 0,
            sent_ns: [0; PROBES],
            deadline_ns: [0; PROBES],
            over: 0,
            answered: 0,
            stalled: 0,
            swallowed: 0,
            barrier: 0,
            base: Verdict::Unknown,
            was_up: false,
            is_deaf: false,
        }
    }

    /// Begins anew in place: times are never read of probes that were not sent.
    pub fn reset(&mut self, rules: Rules, expects_silence: bool) {
        (self.rules, self.expects_silence) = (rules, expects_silence);
        (self.sent, self.over, self.barrier) = (0, 0, 0);
        (self.answered, self.stalled, self.swallowed) = (0, 0, 0);
        (self.base, self.was_up, self.is_deaf) = (Verdict::Unknown, false, false);
    }

    /// Another daemon goes on: what is under way is waited for until then, and is a reply or nothing.
    pub fn inherit(&mut self, verdict: Verdict, until_ns: u64) {
        self.stall();
        self.deadline_ns[self.over..self.sent].fill(until_ns);
        self.forget(verdict, self.sent);
        self.was_up = false;
    }

    /// Where something was decided, what was before the fault no longer matters.
    pub fn decide(&mut self) {
        if self.was_up && self.decided() != Decided::default() {
            self.was_up = false;
        }
    }

    /// The hub did not keep up: it was in no position to judge what is under way.
    pub fn stall(&mut self) {
        self.stalled |= below(self.sent) & !below(self.over);
    }

    /// Time passes.
    pub fn pass(&mut self, now_ns: u64) {
        while self.over < self.sent && self.deadline_ns[self.over] <= now_ns {
            self.over += 1;
        }
    }

    /// Unanswered probes that prove nothing.
    pub const fn void(&self) -> u64 {
        self.stalled & !self.answered & below(self.over)
    }

    /// Probes that were really sent, had their full timeout and no reply, while the hub kept up.
    pub const fn lost(&self) -> u64 {
        below(self.over) & !self.answered & !self.stalled
    }

    /// Probes that count.
    const fn counting(&self) -> u64 {
        !below(self.barrier)
    }

    /// The newest runs that decide.
    pub fn decided(&self) -> Decided {
        let counting = self.counting();
        let (over, void) = (below(self.over) & counting, self.void() & counting);
        let lost = self.lost() & counting & !self.swallowed;
        let answered = self.answered & counting;
        let run = |bits, count| match void {
            0 => newest_run(bits, count),
            _ => newest_run_around(bits, void, self.over, count),
        };
        if self.expects_silence {
            // One reply is enough, and what was sent before the last one answered counts no more.
            let (down, down_in_order) = (newest_run(answered, 1), newest_run(answered & over, 1));
            return Decided {
                up: run(lost & !below(down), self.rules.rise),
                down,
                up_in_order: run(lost & !below(down_in_order), self.rules.rise),
                down_in_order,
            };
        }
        let up_in_order = run(answered & over, self.rules.rise);
        let down = run(lost, self.rules.fall);
        Decided {
            // Replies count when they come, not when their probes' timeouts have passed.
            up: up_in_order.max(newest_run(answered, self.rules.rise)),
            down,
            up_in_order,
            down_in_order: down,
        }
    }

    /// What the verdict must be.
    pub fn verdict(&self, decided: Decided) -> Verdict {
        self.newest(decided.up, decided.down)
    }

    /// What it may be while replies were not told of.
    pub fn verdict_in_order(&self, decided: Decided) -> Verdict {
        self.newest(decided.up_in_order, decided.down_in_order)
    }

    fn newest(&self, up: usize, down: usize) -> Verdict {
        match (up, down) {
            (0, 0) => self.base,
            _ if up > down => Verdict::Up,
            _ => Verdict::Down,
        }
    }

    /// What was sent so far tells nothing of what comes; the verdict stays for now.
    pub fn forget(&mut self, verdict: Verdict, before: usize) {
        (self.base, self.barrier) = (verdict, before);
    }

    /// The hub can't send: says what the verdict is then. What was up is down where that proves that nothing can
    /// pass, else undecided; so is what only an earlier fault made down.
    pub fn fault(&mut self, verdict: Verdict, proves: bool, before: usize) -> Verdict {
        self.was_up |= verdict == Verdict::Up;
        let after = match verdict {
            Verdict::Up | Verdict::Unknown if self.was_up && proves => Verdict::Down,
            Verdict::Up => Verdict::Unknown,
            // Such a fault alone made it down, and is over.
            Verdict::Down if self.was_up && !proves => Verdict::Unknown,
            _ => verdict,
        };
        self.forget(after, before);
        after
    }

    /// The first of the newest `fall` losses in a row: where what makes it down began.
    pub fn losing_from(&self) -> usize {
        let lost = self.lost() & self.counting();
        let void = self.void();
        let mut first = self.over;
        let mut run = 0;
        for at in (self.barrier..self.over).rev() {
            if void >> at & 1 == 1 {
                continue;
            }
            if lost >> at & 1 == 0 || run == self.rules.fall {
                break;
            }
            (first, run) = (at, run + 1);
        }
        first
    }
}

/// At the latest this long after the break is a tracker down, when the hub is at most `late_ns` late and a call of the
/// send program takes `call_ns`: the next turn is at most an interval after the break, `fall` turns are `fall`
/// intervals; the last of them, and the end of its timeout, each wait for a tick.
pub const fn promised_ns(
    fall: u8,
    interval_ns: u64,
    timeout_ns: u64,
    tick_ns: u64,
    late_ns: u64,
    call_ns: u64,
) -> u64 {
    fall as u64 * interval_ns + timeout_ns + 2 * (tick_ns + late_ns + call_ns)
}

//! One tracker, its kernel, its network and its hub, through one random history.
//!
//! Schedule, judging and counting are the real code (by way of [`Code`]); what is simulated is what they meet: time,
//! replies, and whatever goes wrong. Everything follows from the seed.

use std::{fmt::Write as _, marker::PhantomData};

use tracker_ebpf::{
    abi::{Tracker, TroubleState},
    verdict::{Cause, Rules, Verdict},
    window::{Window, Worth},
};
use tracker_user::detector::{
    in_flight::InFlight,
    schedule::{self, Cohort, TICK_NS},
    tracker::TrackerAccount,
};

use super::{
    code::Code,
    spec::{PROBES, Record, promised_ns},
};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
/// A stall, as docs/internals/detector.md says.
const STALL_NS: u64 = 5 * MS;
/// The tracker's slot; others of its cohort have higher ones.
const SLOT: u32 = 0;
/// When a history begins.
const BEGIN_NS: u64 = 1_000_000 * MS;
/// Ticks after which a history must have ended.
const TICKS_MAX: u32 = 100_000;

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    #[inline(always)]
    fn below(&mut self, end: u64) -> u64 {
        scale(self.next(), end)
    }

    /// From `low` to `high`, both included.
    #[inline(always)]
    fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// One time in `of`.
    #[inline(always)]
    fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    #[inline(always)]
    fn pick<T: Copy, const N: usize>(&mut self, from: &[T; N]) -> T {
        from[self.below(N as u64) as usize]
    }
}

/// A random number made one below `end`.
#[inline(always)]
const fn scale(random: u64, end: u64) -> u64 {
    ((random as u128 * end as u128) >> 64) as u64
}

/// What comes back of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Reply = 0,
    WrongPath = 1,
    Corrupt = 2,
}

/// Packets on their way back, in the order in which they arrive.
struct Wire {
    /// Time, probe and kind.
    packets: [u64; 3 * PROBES],
    head: usize,
    tail: usize,
}

impl Wire {
    #[inline(always)]
    fn push(&mut self, at_ns: u64, probe: usize, kind: Kind) {
        let packet = at_ns << 8 | (probe as u64) << 2 | kind as u64;
        let mut at = self.tail;
        while at > self.head && self.packets[at - 1] > packet {
            self.packets[at] = self.packets[at - 1];
            at -= 1;
        }
        self.packets[at] = packet;
        self.tail += 1;
    }

    #[inline(always)]
    fn next_ns(&self) -> u64 {
        if self.head < self.tail {
            self.packets[self.head] >> 8
        } else {
            u64::MAX
        }
    }

    #[inline(always)]
    fn pop(&mut self) -> (u64, usize, Kind) {
        let packet = self.packets[self.head];
        self.head += 1;
        let kind = match packet & 3 {
            0 => Kind::Reply,
            1 => Kind::WrongPath,
            _ => Kind::Corrupt,
        };
        (packet >> 8, (packet >> 2) as usize & (PROBES - 1), kind)
    }
}

/// What the network does to probes, in 256ths, and how long a reply takes.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    lost: u8,
    twice: u8,
    strange: u8,
    low_ns: u64,
    spread_ns: u64,
}

impl Weather {
    const OUT: u8 = u8::MAX;

    fn draw(rng: &mut Rng, timeout_ns: u64) -> Self {
        let twice = rng.pick(&[0, 0, 100]);
        let clear = Self {
            twice,
            low_ns: 20 * US,
            spread_ns: rng.below(timeout_ns / 2 + 1),
            ..Self::default()
        };
        match rng.below(10) {
            0..=2 => clear,
            3..=5 => Self {
                lost: Self::OUT,
                ..clear
            },
            6 => Self {
                lost: rng.pick(&[30, 80, 128, 200]),
                ..clear
            },
            7 => Self {
                spread_ns: rng.below(timeout_ns + 1),
                ..clear
            },
            8 => Self {
                low_ns: rng.below(timeout_ns),
                spread_ns: rng.below(2 * timeout_ns),
                ..clear
            },
            _ => Self {
                lost: rng.pick(&[0, 128]),
                strange: rng.pick(&[60, 128, 255]),
                ..clear
            },
        }
    }
}

/// How the next calls of the send program end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    Succeed,
    /// The program refuses the frame, or the call fails.
    Refuse,
    /// The call is cut short before this tracker.
    Cut,
}

/// What a history is about.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    rules: Rules,
    expects_silence: bool,
    interval_ns: u64,
    timeout_ns: u64,
    /// How many probes.
    probes: usize,
    /// Probes of an earlier time.
    start: u64,
    /// How late the hub's thread wakes up, at most.
    late_ns: u64,
    /// What a call of the send program takes.
    call_ns: u64,
    /// More happens than losses and delays.
    is_rough: bool,
}

impl Setup {
    fn draw(rng: &mut Rng) -> Self {
        let interval_ns = rng.pick(&[1, 2, 5, 10, 10, 20, 50, 100, 333, 1_000]) * MS;
        let timeout_ns = match rng.below(8) {
            0 => interval_ns / 4,
            1..=2 => interval_ns / 2,
            3..=4 => interval_ns,
            5..=6 => interval_ns * rng.range(5, 20) / 4,
            _ => interval_ns * rng.range(5, 20),
        };
        let bits = rng.next();
        let is_rough = bits & 3 == 0;
        let few = |most: u64, bits: u64| 1 + scale(bits, most) as u8;
        let rules = match bits >> 2 & 15 {
            0 => Rules {
                fall: few(24, bits << 20),
                rise: few(16, bits << 40),
            },
            _ => Rules {
                fall: few(5, bits << 20),
                rise: few(4, bits << 40),
            },
        };
        let probes = match bits >> 5 & 15 {
            0 => rng.range(16, PROBES as u64),
            _ => rng.range(8, 16),
        };
        Self {
            rules,
            expects_silence: bits >> 9 & 7 == 0,
            interval_ns,
            timeout_ns: timeout_ns.max(MS),
            probes: probes as usize,
            start: rng.below(400).saturating_sub(100),
            late_ns: match is_rough {
                true => rng.pick(&[0, 300 * US, 3 * MS, 25 * MS]),
                false => rng.pick(&[0, 0, 100 * US, 300 * US]),
            },
            call_ns: rng.pick(&[0, 20 * US, 100 * US]),
            is_rough,
        }
    }
}

/// A reply that the receive program reported.
#[derive(Clone, Copy, Default)]
struct Told {
    epoch: u32,
    sequence: u64,
    received_ns: u64,
}

/// Everything; used for one history after the other.
pub struct World<C, const TELLS: bool> {
    rng: Rng,
    setup: Setup,
    /// As it was drawn: of the other, turns that come to nothing are taken.
    drawn: Setup,
    /// Monotonic time, and how far the clock on the wall is ahead.
    now_ns: u64,
    wall_ahead_ns: u64,
    // --- the hub's thread
    account: TrackerAccount,
    /// Counters as they were last: lost, skipped, void.
    floor: [u64; 3],
    in_flight: InFlight,
    cohort: Cohort,
    fault: Option<Cause>,
    planned_ns: u64,
    tick_at_ns: u64,
    stopped_until_ns: u64,
    // --- its kernel
    tracker: Tracker,
    words: [u64; 8],
    sent: u64,
    verdict: Verdict,
    trouble: TroubleState,
    told: Vec<Told>,
    calls: Calls,
    is_swallowing: bool,
    is_full: bool,
    // --- the network
    wire: Wire,
    weather: Weather,
    // --- what is true
    record: Record,
    /// Probes before this one bear another epoch.
    renewed: usize,
    wrong_path: Option<usize>,
    counted: u32,
    duplicates: u32,
    late: u32,
    /// When the present outage began, if nothing else has interfered since.
    out_since_ns: Option<u64>,
    last_turn_ns: u64,
    /// On what the last check was done.
    seen: (u64, usize, usize, Verdict),
    ticks: u32,
    changes: u32,
    others: u32,
    /// What happened, where that is told.
    log: String,
    code: PhantomData<C>,
}

/// What histories came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    pub histories: u64,
    pub probes: u64,
    /// Ticks of the hub's thread.
    pub ticks: u64,
    /// New verdicts or causes.
    pub changes: u64,
}

impl std::ops::AddAssign for Played {
    fn add_assign(&mut self, more: Self) {
        self.histories += more.histories;
        self.probes += more.probes;
        self.ticks += more.ticks;
        self.changes += more.changes;
    }
}

macro_rules! say {
    ($world:expr, $($what:tt)*) => {
        if TELLS {
            let at_us = ($world.now_ns - BEGIN_NS) / US;
            let _ = write!($world.log, "{at_us:>9} us  ");
            let _ = writeln!($world.log, $($what)*);
        }
    };
}

macro_rules! require {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

type Checked = Result<(), String>;

impl<C: Code, const TELLS: bool> World<C, TELLS> {
    pub fn new() -> Self {
        let rules = Rules { fall: 1, rise: 1 };
        let mut rng = Rng(0);
        let setup = Setup::draw(&mut rng);
        Self {
            setup,
            drawn: setup,
            rng,
            now_ns: 0,
            wall_ahead_ns: 0,
            account: TrackerAccount::new(rules, false, MS, 0, None),
            floor: [0; 3],
            in_flight: InFlight::default(),
            cohort: Cohort::new(MS, MS),
            fault: None,
            planned_ns: 0,
            tick_at_ns: 0,
            stopped_until_ns: 0,
            tracker: Tracker::default(),
            words: [0; 8],
            sent: 0,
            verdict: Verdict::Unknown,
            trouble: TroubleState::default(),
            told: Vec::with_capacity(PROBES),
            calls: Calls::Succeed,
            is_swallowing: false,
            is_full: false,
            wire: Wire {
                packets: [0; 3 * PROBES],
                head: 0,
                tail: 0,
            },
            weather: Weather::default(),
            record: Record::new(rules, false),
            renewed: 0,
            wrong_path: None,
            counted: 0,
            duplicates: 0,
            late: 0,
            out_since_ns: None,
            last_turn_ns: 0,
            seen: (0, 0, 0, Verdict::Unknown),
            ticks: 0,
            changes: 0,
            others: 0,
            log: String::new(),
            code: PhantomData,
        }
    }

    /// Plays the history of a seed; what went wrong, if anything did.
    pub fn play(&mut self, seed: u64) -> Result<Played, String> {
        self.begin(seed);
        self.run().map(|()| Played {
            histories: 1,
            probes: self.record.sent as u64,
            ticks: self.ticks.into(),
            changes: self.changes.into(),
        })
    }

    /// Plays the history and tells it step by step.
    pub fn tell(&mut self, seed: u64) -> String {
        let result = self.play(seed);
        let log = &self.log;
        let end = match result {
            Ok(_) => "as specified".to_owned(),
            Err(what) => format!("WRONG: {what}"),
        };
        format!("history {seed}: {:?}\n{log}{end}\n", self.drawn)
    }

    fn begin(&mut self, seed: u64) {
        let mut rng = Rng(seed.wrapping_mul(0xa076_1d64_78bd_642f));
        let setup = Setup::draw(&mut rng);
        self.rng = rng;
        (self.setup, self.drawn) = (setup, setup);
        self.now_ns = BEGIN_NS;
        self.wall_ahead_ns = 1_000_000_000 * MS;
        let words = Window::words(setup.interval_ns, setup.timeout_ns).min(4);
        self.tracker = Tracker {
            timeout_ns: setup.timeout_ns,
            window_first: 3,
            window_mask: words - 1,
            epoch: 1,
            active: 1,
            expects_silence: setup.expects_silence.into(),
            ..Tracker::default()
        };
        // As if everything had been answered in earlier rounds of the bit set.
        self.words = [u64::MAX; 8];
        self.sent = setup.start;
        if setup.start > 0 {
            let (word, bit) = self.tracker.window().position(setup.start);
            self.words[word as usize] = bit | (bit - 1);
        }
        self.account = TrackerAccount::new(
            C::rules(setup.rules),
            setup.expects_silence,
            setup.interval_ns,
            setup.start,
            None,
        );
        self.floor = [0; 3];
        self.in_flight.clear();
        while self.others > 0 {
            self.cohort.remove(self.others);
            self.others -= 1;
        }
        self.cohort.remove(SLOT);
        self.cohort.interval_ns = setup.interval_ns;
        self.cohort.timeout_ns = setup.timeout_ns;
        self.cohort.add(SLOT, self.clock());
        self.fault = None;
        self.planned_ns = 0;
        self.tick_at_ns = self.now_ns;
        self.stopped_until_ns = 0;
        self.verdict = Verdict::Unknown;
        self.trouble = TroubleState::default();
        self.told.clear();
        self.calls = Calls::Succeed;
        (self.is_swallowing, self.is_full) = (false, false);
        (self.wire.head, self.wire.tail) = (0, 0);
        self.record.reset(setup.rules, setup.expects_silence);
        self.renewed = 0;
        self.wrong_path = None;
        (self.counted, self.duplicates, self.late) = (0, 0, 0);
        self.out_since_ns = None;
        self.last_turn_ns = 0;
        self.seen = (0, 0, 0, Verdict::Unknown);
        (self.ticks, self.changes) = (0, 0);
        self.change_weather();
    }

    /// The daemon's time.
    #[inline(always)]
    fn clock(&self) -> u64 {
        C::clock(self.now_ns, self.now_ns.wrapping_add(self.wall_ahead_ns))
    }

    fn run(&mut self) -> Checked {
        loop {
            // A reply that is told of wakes the thread, so it is asked anew each time.
            let tick_ns = self.tick_at_ns.max(self.stopped_until_ns);
            if self.wire.next_ns() <= tick_ns {
                self.receive()?;
                continue;
            }
            self.now_ns = self.now_ns.max(tick_ns);
            if self.setup.is_rough && self.rng.once_in(24) {
                self.act()?;
            }
            self.tick()?;
            if self.cohort.is_empty() && self.record.over == self.record.sent {
                return self.end();
            }
            self.ticks += 1;
            require!(self.ticks < TICKS_MAX, "the history does not end");
        }
    }

    /// The next packet arrives.
    #[inline(always)]
    fn receive(&mut self) -> Checked {
        let (at_ns, probe, kind) = self.wire.pop();
        self.now_ns = self.now_ns.max(at_ns);
        let sequence = self.setup.start + 1 + probe as u64;
        if kind == Kind::Corrupt || probe < self.renewed {
            // Before anything else is looked at, the token fails.
            self.trouble.corrupt += 1;
            self.trouble.corrupt_mono_ns = self.now_ns;
            say!(self, "probe {probe}: a corrupt reply");
            return Ok(());
        }
        if kind == Kind::WrongPath {
            self.trouble.wrong_path += 1;
            self.trouble.wrong_path_sequence = self.trouble.wrong_path_sequence.max(sequence);
            self.wrong_path = self.wrong_path.max(Some(probe));
            say!(self, "probe {probe}: a reply by another way");
            return Ok(());
        }
        let sent_ns = self.record.sent_ns[probe];
        let words = &mut self.words;
        let worth = C::admit(
            &self.tracker,
            sequence,
            sent_ns,
            self.now_ns,
            |word, bit| {
                let word = words.get_mut(word as usize)?;
                let was_set = *word & bit != 0;
                *word |= bit;
                Some(was_set)
            },
        );
        say!(self, "probe {probe}: a reply, which is {worth:?}");
        let is_timely = self.now_ns - sent_ns <= self.setup.timeout_ns;
        let is_first = self.record.answered >> probe & 1 == 0;
        match worth {
            Worth::Counts { .. } => {
                require!(is_timely && is_first, "probe {probe}: counted");
                self.counted += 1;
            }
            Worth::Duplicate => {
                require!(is_timely && !is_first, "probe {probe}: called a duplicate");
                self.duplicates += 1;
                return Ok(());
            }
            Worth::Late => {
                require!(!is_timely, "probe {probe}: called late");
                self.late += 1;
                return Ok(());
            }
            Worth::Nowhere => return Err(format!("probe {probe}: nowhere to note it")),
        }
        self.record.answered |= 1 << probe;
        if !C::reports(&self.tracker, self.verdict as u8) {
            return Ok(());
        }
        if self.is_full {
            self.record.is_deaf = true;
            return Ok(());
        }
        self.told.push(Told {
            epoch: self.tracker.epoch,
            sequence,
            received_ns: self.now_ns,
        });
        let wake_ns = self.now_ns + self.wakes_after();
        self.tick_at_ns = self.tick_at_ns.min(wake_ns);
        Ok(())
    }

    #[inline(always)]
    fn wakes_after(&mut self) -> u64 {
        match self.setup.late_ns {
            0 => 0,
            late_ns => self.rng.below(late_ns + 1),
        }
    }

    /// What the hub's thread does in a tick: the engine's order.
    #[inline(always)]
    fn tick(&mut self) -> Checked {
        let now_ns = self.clock();
        self.check_promise()?;
        let late_ns = match self.planned_ns {
            0 => 0,
            planned_ns => now_ns.saturating_sub(planned_ns),
        };
        if late_ns >= STALL_NS {
            C::note_late(&mut self.in_flight, now_ns, late_ns, self.setup.timeout_ns);
            if late_ns >= self.setup.timeout_ns / 2 {
                say!(self, "a stall");
                self.record.stall();
                self.out_since_ns = None;
            }
        }
        self.record.pass(self.now_ns);
        self.take_replies(now_ns)?;
        while let Some(landed) = self.in_flight.due(now_ns) {
            let sequence = self.account.next();
            let probe = (sequence - self.setup.start) as usize - 1;
            let window = self.tracker.window();
            let (word, bit) = window.position(sequence);
            let is_replied = self.words[word as usize & 7] & bit != 0;
            let judged = C::judge(
                &mut self.account,
                is_replied,
                landed.is_void,
                landed.sent_ns,
            );
            if let Some(claim) = judged.claim {
                let has_left = match claim.sent_since_ns {
                    Some(since_ns) => self.has_left(probe, since_ns),
                    None => true,
                };
                self.account
                    .conclude(claim, C::has_left(has_left), &self.trouble);
            }
            self.settle(now_ns, Some(probe), judged.since_ns)?;
        }
        self.check()?;
        self.send(now_ns)?;
        let due_ns = self.cohort.next_due_ns().unwrap_or(u64::MAX);
        let deadline_ns = self.in_flight.next_deadline_ns().unwrap_or(u64::MAX);
        let next_ns = due_ns.min(deadline_ns);
        let planned_before_ns = self.planned_ns;
        self.planned_ns = schedule::next_tick_ns(planned_before_ns, now_ns, next_ns);
        // The thread sleeps for this long, whatever clocks say.
        let began_ns = self.now_ns;
        let nap_ns = self.planned_ns.saturating_sub(self.clock());
        self.tick_at_ns = self.now_ns + nap_ns + self.wakes_after();
        if self.record.over < self.record.sent {
            let due_ns = self.record.deadline_ns[self.record.over].max(began_ns + TICK_NS);
            require!(
                self.now_ns + nap_ns <= due_ns,
                "the next tick is planned after a probe's timeout"
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn take_replies(&mut self, now_ns: u64) -> Checked {
        if self.told.is_empty() {
            return Ok(());
        }
        for at in 0..self.told.len() {
            let Told {
                epoch,
                sequence,
                received_ns,
            } = self.told[at];
            if epoch != self.tracker.epoch {
                continue;
            }
            let (window, words) = (self.tracker.window(), &self.words);
            let since_ns = C::early(&mut self.account, sequence, received_ns, |sequence| {
                let (word, bit) = window.position(sequence);
                words[word as usize & 7] & bit != 0
            });
            if since_ns.is_some() {
                self.settle(now_ns, None, since_ns)?;
            }
        }
        self.told.clear();
        Ok(())
    }

    /// Whether what was sent since then left the device. Where it did not, nothing counts up to this probe.
    fn has_left(&mut self, probe: usize, since_ns: u64) -> bool {
        let swallowed = self.record.swallowed;
        let sent = 0..self.record.sent;
        let has_left = !sent
            .rev()
            .take_while(|at| self.record.sent_ns[*at] >= since_ns)
            .any(|at| swallowed >> at & 1 == 1);
        if !has_left {
            say!(self, "probe {probe}: did not leave the hub");
            self.out_since_ns = None;
            let over = std::mem::replace(&mut self.record.over, probe);
            self.record.decide();
            let verdict = match self.record.is_deaf {
                true => self.verdict,
                false => self.record.verdict(self.record.decided()),
            };
            self.record.over = over;
            self.record.fault(verdict, false, probe + 1);
        }
        has_left
    }

    /// What is reported, after probe `judged` or an early reply.
    #[inline(always)]
    fn settle(&mut self, now_ns: u64, judged: Option<usize>, since_ns: Option<u64>) -> Checked {
        let change = self.account.take_change();
        let account = self.account.judge_state();
        let counters = [account.lost, account.skipped, account.void];
        require!(
            counters
                .iter()
                .zip(self.floor)
                .all(|(now, floor)| *now >= floor),
            "a counter falls: {:?}, {counters:?}",
            self.floor
        );
        self.floor = counters;
        let Some(change) = change else {
            return Ok(());
        };
        say!(
            self,
            "REPORTED {} {}{}",
            change.verdict.as_str(),
            change.cause.as_str(),
            judged.map_or(String::new(), |probe| format!(", by probe {probe}"))
        );
        self.changes += 1;
        if !change.has_turned {
            return Ok(());
        }
        self.verdict = change.verdict;
        if let (Verdict::Down, Some(probe), false) =
            (change.verdict, judged, self.setup.expects_silence)
        {
            self.check_down(probe, change.cause, since_ns)?;
        }
        if change.misses_replies {
            let (window, words) = (self.tracker.window(), &self.words);
            let is_replied = |sequence| {
                let (word, bit) = window.position(sequence);
                words[word as usize & 7] & bit != 0
            };
            if C::catch_up(&mut self.account, now_ns, is_replied) {
                let change = self.account.take_change();
                self.verdict = self.account.machine().verdict();
                self.changes += 1;
                say!(self, "REPORTED at once {change:?}");
            }
        }
        Ok(())
    }

    /// Never down without `fall` real losses in a row; when they began, and why it is down.
    fn check_down(&mut self, probe: usize, cause: Cause, since_ns: Option<u64>) -> Checked {
        let over = std::mem::replace(&mut self.record.over, probe + 1);
        let first = self.record.losing_from();
        let lost = self.record.lost() & !self.record.swallowed;
        self.record.over = over;
        let run = (first..=probe).filter(|at| lost >> at & 1 == 1).count();
        let fall = usize::from(self.setup.rules.fall);
        require!(run == fall, "down after {run} losses, not {fall}");
        let first_ns = self.record.sent_ns[first];
        require!(
            since_ns.is_some_and(|since_ns| since_ns <= first_ns && first_ns <= since_ns + MS)
                || self.clock() != self.now_ns,
            "down since {since_ns:?}, not since {first_ns}"
        );
        let wanted = if self.wrong_path.is_some_and(|probe| probe >= first) {
            Cause::WrongPath
        } else if self.trouble.corrupt_mono_ns >= first_ns {
            Cause::Corrupt
        } else {
            Cause::NoReply
        };
        require!(
            cause == wanted,
            "down for {}, not {}",
            cause.as_str(),
            wanted.as_str()
        );
        Ok(())
    }

    /// Once an outage has lasted as long as is promised, the tracker is down.
    #[inline(always)]
    fn check_promise(&mut self) -> Checked {
        let Some(since_ns) = self.out_since_ns else {
            return Ok(());
        };
        let Setup {
            rules,
            interval_ns,
            timeout_ns,
            late_ns,
            call_ns,
            ..
        } = self.setup;
        let within_ns = promised_ns(
            rules.fall,
            interval_ns,
            timeout_ns,
            TICK_NS,
            late_ns,
            call_ns,
        );
        require!(
            self.now_ns <= since_ns + within_ns || self.verdict == Verdict::Down,
            "not down {} us after the break; promised are {within_ns} ns",
            (self.now_ns - since_ns) / US
        );
        Ok(())
    }

    /// The verdict is the one that everything so far makes it.
    #[inline(always)]
    fn check(&mut self) -> Checked {
        let record = &self.record;
        let seen = (record.answered, record.over, record.barrier, self.verdict);
        if seen == self.seen {
            // Nothing has come and nothing is over since.
            return Ok(());
        }
        self.seen = seen;
        let decided = self.record.decided();
        let wanted = self.record.verdict(decided);
        let got = self.account.machine().verdict();
        self.record.decide();
        let is_right =
            got == wanted || (self.record.is_deaf && got == self.record.verdict_in_order(decided));
        require!(
            is_right,
            "is {}, not {}: {decided:?}",
            got.as_str(),
            wanted.as_str()
        );
        require!(self.verdict == got, "the kernel knows another verdict");
        Ok(())
    }

    #[inline(always)]
    fn send(&mut self, now_ns: u64) -> Checked {
        let can_send = self.fault.is_none();
        let spacing_ns = match self.setup.interval_ns >= 1_000 * MS {
            true => self.setup.interval_ns / 2,
            false => 0,
        };
        let (mut taken, mut skipped) = (0, 0);
        let account = &mut self.account;
        self.cohort.tick(now_ns, 64, |slot, turn| {
            if slot != SLOT {
                return;
            }
            if C::turn(account, turn, can_send, now_ns, spacing_ns) {
                taken += 1;
            } else {
                skipped += 1;
            }
        });
        if skipped > 0 {
            say!(self, "{skipped} turns skipped");
            self.out_since_ns = None;
            self.setup.probes = self.setup.probes.saturating_sub(skipped.min(2));
        }
        if taken == 0 {
            if self.record.sent >= self.setup.probes {
                self.cohort.remove(SLOT);
            }
            return Ok(());
        }
        self.check_turn(taken)?;
        let sent_before = self.record.sent;
        for _ in 0..taken {
            if self.calls == Calls::Succeed && self.record.sent < PROBES {
                self.send_one();
            }
        }
        self.now_ns += self.setup.call_ns;
        for probe in sent_before..self.record.sent {
            self.record.deadline_ns[probe] = self.now_ns + self.setup.timeout_ns;
        }
        let deadline_ns = C::deadline(self.clock(), self.setup.timeout_ns);
        let mut is_refused = false;
        for _ in 0..taken {
            let attempted = self.calls != Calls::Cut;
            if attempted && C::was_sent(&mut self.account, self.sent) {
                self.in_flight.queue(SLOT);
                continue;
            }
            self.account.was_not_sent(attempted);
            is_refused |= attempted;
            say!(self, "a probe was not sent: {:?}", self.calls);
        }
        self.in_flight.sent(now_ns, deadline_ns);
        if is_refused {
            let verdict = self.verdict;
            let wanted = self.record.fault(verdict, false, self.record.sent);
            self.settle(now_ns, None, None)?;
            require!(
                self.verdict == wanted,
                "a probe was refused: not {wanted:?}"
            );
        }
        let unsent = self.record.sent == sent_before;
        if unsent {
            self.out_since_ns = None;
            self.setup.probes = self.setup.probes.saturating_sub(1);
        }
        if self.record.sent >= self.setup.probes {
            self.cohort.remove(SLOT);
            self.out_since_ns = None;
        } else if self.rng.0 >> 61 == 0 {
            self.change_weather();
        }
        Ok(())
    }

    /// Turns are an interval apart, neither bunched nor forgotten.
    #[inline(always)]
    fn check_turn(&mut self, taken: u32) -> Checked {
        let Setup {
            interval_ns,
            late_ns,
            call_ns,
            is_rough,
            ..
        } = self.setup;
        let apart_ns = self.now_ns - self.last_turn_ns;
        let is_first = std::mem::replace(&mut self.last_turn_ns, self.now_ns) == 0;
        if is_first || interval_ns <= 2 * MS {
            return Ok(());
        }
        require!(taken == 1, "{taken} probes at once");
        require!(
            apart_ns + TICK_NS >= interval_ns / 2,
            "two probes only {apart_ns} ns apart"
        );
        let slack_ns = TICK_NS + late_ns + call_ns;
        require!(
            is_rough || apart_ns + slack_ns >= interval_ns && apart_ns <= interval_ns + slack_ns,
            "two probes {apart_ns} ns apart"
        );
        Ok(())
    }

    /// The send program, and what becomes of its probe.
    #[inline(always)]
    fn send_one(&mut self) {
        self.sent += 1;
        if let Some(word) = C::stale_word(self.tracker.window(), self.sent) {
            self.words[word as usize & 7] = 0;
        }
        let probe = self.record.sent;
        self.record.sent += 1;
        self.record.sent_ns[probe] = self.now_ns;
        let random = self.rng.next();
        let weather = &self.weather;
        if self.is_swallowing {
            self.record.swallowed |= 1 << probe;
            say!(self, "probe {probe} sent; the device swallows it");
            return;
        }
        let lost = weather.lost;
        if lost == Weather::OUT || (random as u8) < lost {
            say!(self, "probe {probe} sent; it is lost");
            return;
        }
        let kind = if (random >> 8) as u8 >= weather.strange {
            Kind::Reply
        } else if random >> 16 & 1 == 0 {
            Kind::WrongPath
        } else {
            Kind::Corrupt
        };
        let mut delay_ns = weather.low_ns + scale(random << 24, weather.spread_ns + 1);
        if random >> 17 & 31 == 0 {
            // At the very edge.
            delay_ns = self.setup.timeout_ns + (random >> 22 & 1);
        }
        self.wire.push(self.now_ns + delay_ns, probe, kind);
        say!(
            self,
            "probe {probe} sent; {kind:?} after {} us",
            delay_ns / US
        );
        if ((random >> 56) as u8) < weather.twice {
            let again_ns = delay_ns + self.rng.below(self.setup.timeout_ns);
            self.wire.push(self.now_ns + again_ns, probe, kind);
            say!(self, "and once more after {} us", again_ns / US);
        }
    }

    fn change_weather(&mut self) {
        self.weather = Weather::draw(&mut self.rng, self.setup.timeout_ns);
        let is_out = self.weather.lost == Weather::OUT && !self.setup.expects_silence;
        let is_undisturbed = self.fault.is_none()
            && self.calls == Calls::Succeed
            && self.others == 0
            && !self.is_swallowing
            && self.setup.late_ns < MS;
        if !is_out {
            self.out_since_ns = None;
        } else if is_undisturbed {
            self.out_since_ns = self.out_since_ns.or(Some(self.now_ns));
        }
        say!(self, "{:?}", self.weather);
    }

    /// Something happens that has nothing to do with the network.
    #[cold]
    fn act(&mut self) -> Checked {
        self.out_since_ns = None;
        let verdict = self.verdict;
        let now_ns = self.clock();
        match self.rng.below(16) {
            0..=2 => {
                let most_ns = self.rng.pick(&[
                    8 * MS,
                    self.setup.timeout_ns,
                    3 * self.setup.interval_ns,
                    5_000 * MS,
                ]);
                let stop_ns = self.rng.range(MS, most_ns.max(2 * MS));
                self.stopped_until_ns = self.now_ns + stop_ns;
                say!(self, "the hub stops for {} us", stop_ns / US);
                while self.wire.next_ns() <= self.stopped_until_ns {
                    self.receive()?;
                }
                self.now_ns = self.stopped_until_ns;
            }
            3..=4 => {
                let step_ns = self.rng.pick(&[
                    1,
                    20 * MS,
                    3_600_000 * MS,
                    (20 * MS).wrapping_neg(),
                    (3_600_000 * MS).wrapping_neg(),
                ]);
                self.wall_ahead_ns = self.wall_ahead_ns.wrapping_add(step_ns);
                say!(
                    self,
                    "the clock is set, by {} ms",
                    step_ns as i64 / MS as i64
                );
            }
            5..=6 if !self.record.is_deaf => {
                let cause = self.rng.pick(&[
                    Cause::InterfaceDown,
                    Cause::NextHopUnresolved,
                    Cause::SendFailed,
                ]);
                say!(self, "the hub can't send: {}", cause.as_str());
                self.fault = Some(cause);
                self.account.fault(cause);
                let wanted =
                    (self.record).fault(verdict, cause != Cause::SendFailed, self.record.sent);
                self.settle(now_ns, None, None)?;
                require!(
                    self.verdict == wanted,
                    "{} made it {:?}",
                    cause.as_str(),
                    self.verdict
                );
            }
            7..=9 if self.fault.is_some() => {
                say!(self, "the hub can send again");
                self.fault = None;
                self.account.mended();
                self.settle(now_ns, None, None)?;
                require!(self.verdict == verdict, "mended: {:?}", self.verdict);
            }
            10 => {
                say!(self, "its probes are different from now on");
                self.tracker.epoch += 1;
                self.renewed = self.record.sent;
                C::renew(&mut self.account, self.sent);
                self.record.forget(verdict, self.record.sent);
            }
            11 if self.fault.is_none() => self.restart()?,
            12 => {
                self.calls =
                    self.rng
                        .pick(&[Calls::Succeed, Calls::Succeed, Calls::Refuse, Calls::Cut]);
                say!(self, "calls: {:?}", self.calls);
            }
            13 => {
                self.is_swallowing = !self.is_swallowing;
                say!(self, "the device swallows frames: {}", self.is_swallowing);
            }
            14 => {
                self.is_full = !self.is_full;
                say!(self, "the ring buffer is full: {}", self.is_full);
            }
            15 if !self.cohort.is_empty() => {
                if self.others < 3 && self.rng.once_in(2) {
                    self.others += 1;
                    self.cohort.add(self.others, now_ns);
                } else if self.others > 0 {
                    self.cohort.remove(self.others);
                    self.others -= 1;
                }
                // Who comes and goes moves the others' turns.
                self.last_turn_ns = 0;
                say!(self, "others of its cohort: {}", self.others);
            }
            _ => {}
        }
        Ok(())
    }

    /// The daemon is killed, and another goes on from what the kernel has.
    fn restart(&mut self) -> Checked {
        let gap_ns = self
            .rng
            .pick(&[0, 10 * MS, self.setup.timeout_ns, 3_000 * MS]);
        say!(
            self,
            "killed; the next daemon comes after {} us",
            gap_ns / US
        );
        let verdict = self.verdict;
        let cause = self.account.machine().cause();
        let account = *self.account.judge_state();
        let end_ns = self.now_ns + gap_ns;
        while self.wire.next_ns() <= end_ns {
            self.receive()?;
        }
        self.now_ns = end_ns;
        (self.tick_at_ns, self.planned_ns) = (end_ns, 0);
        self.last_turn_ns = 0;
        self.account = TrackerAccount::new(
            C::rules(self.setup.rules),
            self.setup.expects_silence,
            self.setup.interval_ns,
            self.sent,
            Some((verdict, cause, account)),
        );
        self.in_flight.clear();
        let under_way = self.sent - account.judged;
        let deadline_ns = self.clock() + self.setup.timeout_ns;
        if under_way > 0 {
            self.in_flight.inherit(SLOT, under_way, deadline_ns);
        }
        if self.cohort.remove(SLOT) {
            self.cohort.add(SLOT, self.clock());
        }
        self.record.inherit(verdict, end_ns + self.setup.timeout_ns);
        Ok(())
    }

    /// Every probe is accounted for.
    fn end(&mut self) -> Checked {
        let account = *self.account.judge_state();
        let sent = self.record.sent as u64;
        let lost = account.lost + u64::from(account.lost_pending);
        let answered = u64::from(self.record.answered.count_ones());
        require!(
            account.judged == self.sent,
            "judged {} of {}",
            account.judged,
            self.sent
        );
        require!(
            u64::from(self.counted) == answered,
            "counted {} replies of {answered}",
            self.counted
        );
        require!(
            answered + lost + account.void == sent,
            "of {sent} probes {answered} answered, {lost} lost, {} void",
            account.void
        );
        let really = u64::from(self.record.lost().count_ones());
        require!(
            lost == really || self.record.swallowed != 0,
            "{lost} lost, not {really}"
        );
        Ok(())
    }
}

//! The thread that writes the history: takes the members' counters once a second, on the second, and follows the events.
//!
//! What is known is locked for no more than a few trackers at a time, and only to learn where their counters are; the counters
//! themselves are read without.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use tracker_ebpf::{
    abi,
    rtt::{self, BUCKETS, Rtts},
};

use super::answers::{Answers, Known};
use crate::{
    desired::model::ServiceId,
    host::{
        history::{self, Rtt, Value},
        privileges, repeats,
    },
};

/// How many trackers are looked up while what is known is locked.
const SLICE: usize = 128;
/// How often the places of counters are looked up anew, in seconds; trackers may move without other notice.
const LOOK_UP: u64 = 5;
/// So many seconds after a change they are looked up each time: trackers find their places some time after it.
const RESTLESS: u64 = 10;
/// How often rows are written, in seconds.
const WRITE: u64 = 5;
/// How often what was written is brought to the disk, in seconds.
const SYNC: u64 = 60;
/// How long the end of the daemon waits for the disk.
const END: Duration = Duration::from_secs(2);

/// The running thread, seen from the main loop.
pub struct SamplerThread {
    stop: mpsc::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

/// Starts the thread.
///
/// # Errors
/// When the system has no thread left.
pub fn start(answers: Answers) -> io::Result<SamplerThread> {
    let (stop, wanted) = mpsc::channel();
    let (ended, stopped) = mpsc::channel();
    thread::Builder::new()
        .name("tracker-history".to_owned())
        .spawn(move || {
            privileges::limit_thread("the thread that writes the history");
            run(&answers, &wanted);
            // The main loop may have waited long enough.
            let _ = ended.send(());
        })?;
    Ok(SamplerThread { stop, stopped })
}

impl SamplerThread {
    /// Ends the thread, which writes what it has; a disk that does not answer is not waited for.
    pub fn stop(self) {
        // A thread that is gone has done so.
        let _ = self.stop.send(());
        let _ = self.stopped.recv_timeout(END);
    }
}

fn run(answers: &Answers, stop: &mpsc::Receiver<()>) {
    let mut sampler = Sampler::default();
    loop {
        let now = Timestamp::now();
        let into_second =
            Duration::from_nanos(now.subsec_nanosecond().rem_euclid(1_000_000_000) as u64);
        match stop.recv_timeout(Duration::from_secs(1) - into_second) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
        // The wait may end a little before the second does.
        let now = (Timestamp::now() + Duration::from_millis(100)).as_second();
        sampler.tick(answers, now);
    }
    write(answers, Timestamp::now().as_second());
    sync(answers, Timestamp::now().as_second());
}

/// Writes what is to be written.
fn write(answers: &Answers, now: i64) {
    answers.history().write(now, |writer| {
        writer.follow(answers.feed())?;
        writer.expire(now);
        writer.flush()
    });
}

/// Brings to the disk what was written. Readers do not wait for that.
fn sync(answers: &Answers, now: i64) {
    let files = answers
        .history()
        .write(now, |writer| Ok(writer.take_unsynced()));
    for file in files.into_iter().flatten() {
        if let Err(error) = file.sync_data() {
            let text = format_args!(
                "cannot bring the history to the disk: {error}; check the disk of [hub] state"
            );
            repeats::warn("history sync", text);
        }
    }
}

/// A tracker's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    sent: u64,
    lost: u64,
    received: u64,
    rtt_sum_ns: u64,
    rtt_min_ns: u64,
    rtt_max_ns: u64,
}

/// What was counted within a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    sent: u64,
    lost: u64,
    received: u64,
    rtt_sum_ns: u64,
    /// Shortest and longest of those round-trip times that are known one by one.
    rtt_ns: Option<(u64, u64)>,
    /// 99th percentile, if it is known.
    p99_ns: Option<u64>,
}

impl Counts {
    const fn of(state: &abi::State) -> Self {
        Self {
            sent: state.send.sent,
            lost: state.judge.lost,
            received: state.receive.received,
            rtt_sum_ns: state.receive.rtt_sum_ns,
            rtt_min_ns: state.receive.rtt_min_ns,
            rtt_max_ns: state.receive.rtt_max_ns,
        }
    }

    /// What was counted since `before`; all of it, if these are of another tracker or began anew.
    fn since(&self, before: Self, rtt_last_ns: u64) -> Counted {
        let has_fallen = self.sent < before.sent
            || self.lost < before.lost
            || self.received < before.received
            || self.rtt_sum_ns < before.rtt_sum_ns;
        let before = if has_fallen { Self::default() } else { before };
        let received = self.received - before.received;
        let rtt_sum_ns = self.rtt_sum_ns - before.rtt_sum_ns;
        let is_first = before.received == 0;
        let (mut min, mut max) = (rtt_last_ns, rtt_last_ns);
        if is_first || self.rtt_min_ns < before.rtt_min_ns {
            min = min.min(self.rtt_min_ns);
        }
        if is_first || self.rtt_max_ns > before.rtt_max_ns {
            max = max.max(self.rtt_max_ns);
        }
        Counted {
            sent: self.sent - before.sent,
            lost: self.lost - before.lost,
            received,
            // The kernel may have counted a reply and not added its time yet.
            rtt_sum_ns: if received == 1 {
                rtt_last_ns
            } else {
                rtt_sum_ns
            },
            rtt_ns: (received > 0).then_some((min, max)),
            p99_ns: None,
        }
    }
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.received += other.received;
        self.rtt_sum_ns = self.rtt_sum_ns.saturating_add(other.rtt_sum_ns);
        self.rtt_ns = match (self.rtt_ns, other.rtt_ns) {
            (Some((min, max)), Some((least, most))) => Some((min.min(least), max.max(most))),
            (one, another) => one.or(another),
        };
    }

    fn value(&self) -> Value {
        let us = |ns: u64| ns.saturating_add(500) / 1_000;
        let rtt = self.rtt_ns.zip(self.rtt_sum_ns.checked_div(self.received));
        Value {
            sent: self.sent,
            lost: self.lost,
            rtt: rtt.map(|((min, max), mean)| {
                let (min_us, max_us) = (us(min.min(mean)), us(max.max(mean)));
                Rtt {
                    min_us,
                    mean_us: us(mean),
                    p99_us: history::p99_us(self.p99_ns, min_us, max_us),
                    max_us,
                }
            }),
        }
    }
}

/// A slot's counters, and when they were read.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    tick: u64,
    counts: Counts,
}

/// A member.
#[derive(Debug)]
struct Column {
    /// Its name in the history.
    key: String,
    /// Its number there.
    number: u32,
    /// Where its trackers' counters are.
    slots: Vec<Option<u32>>,
    /// Where its round-trip times are.
    path: Option<u32>,
}

/// Takes the members' counters.
#[derive(Debug, Default)]
struct Sampler {
    /// Seconds since the start.
    tick: u64,
    columns: Vec<Column>,
    /// The generation of the state tree that the columns are of, and the second in which it was first seen.
    generation: Option<(u64, u64)>,
    has_missing: bool,
    /// The numbers that the columns have are of this epoch of the history.
    epoch: Option<u64>,
    /// By slot.
    before: Vec<Before>,
    /// Round-trip times as they were last read, by path slot.
    rtts: Vec<Option<Box<Rtts>>>,
    /// The second in which counters were last read; 0 if they never were.
    sampled: u64,
    /// What was counted in it, by column.
    counted: Vec<Counted>,
    row: Vec<(u32, Value)>,
}

/// How far the columns have been looked up.
#[derive(Clone, Copy, Default)]
struct Cursor {
    service: usize,
    member: usize,
    tracker: usize,
}

impl Sampler {
    /// Takes a second that ends now, and writes what is due.
    fn tick(&mut self, answers: &Answers, now: i64) {
        if !answers.history().is_on() {
            // What happens meanwhile is not counted into the first second after it.
            *self = Self::default();
            return;
        }
        self.tick += 1;
        if self.look_up(answers) && self.sample(answers) {
            answers.history().write(now, |writer| {
                if self.epoch != Some(writer.epoch()) {
                    for column in &mut self.columns {
                        column.number = writer.number(&column.key);
                    }
                    self.epoch = Some(writer.epoch());
                }
                self.row.clear();
                self.row.extend(
                    self.columns
                        .iter()
                        .zip(&self.counted)
                        .map(|(column, counted)| (column.number, counted.value())),
                );
                writer.second(now - 1, &self.row)
            });
        }
        if self.tick.is_multiple_of(WRITE) {
            write(answers, now);
        }
        if self.tick.is_multiple_of(SYNC) {
            sync(answers, now);
        }
    }

    /// Looks up where the members' counters are, if that may have changed. False if it cannot be known now.
    fn look_up(&mut self, answers: &Answers) -> bool {
        let Ok(generation) = answers.read(|known| known.tree.generation()) else {
            return false;
        };
        if let Some((known, seen)) = self.generation
            && known == generation
        {
            let is_due = self.has_missing
                || self.tick - seen < RESTLESS
                || self.tick.is_multiple_of(LOOK_UP);
            if !is_due {
                return true;
            }
        } else {
            self.generation = Some((generation, self.tick));
        }
        let Ok(services) = answers.read(|known| known.tree.numbers()) else {
            return false;
        };
        let (mut columns, mut cursor) = (Vec::with_capacity(self.columns.len()), Cursor::default());
        loop {
            let more = answers.read(|known| {
                let is_same = known.tree.generation() == generation;
                is_same.then(|| slice(known, &services, &mut cursor, &mut columns))
            });
            match more {
                Ok(Some(true)) => {}
                Ok(Some(false)) => break,
                // The next second finds what changed.
                Ok(None) | Err(_) => {
                    self.generation = None;
                    return false;
                }
            }
        }
        self.has_missing = columns.iter().any(|column| column.slots.contains(&None));
        self.columns = columns;
        self.epoch = None;
        true
    }

    /// Reads the counters. False if they cannot be read now.
    fn sample(&mut self, answers: &Answers) -> bool {
        let readers = answers.read(|known| (known.states.clone(), known.rtts.clone()));
        let Ok((states, rtts_now)) = readers else {
            return false;
        };
        let Self {
            tick,
            columns,
            before,
            rtts,
            sampled,
            counted,
            ..
        } = self;
        counted.clear();
        counted.extend(columns.iter().map(|column| {
            let mut sum = Counted::default();
            for slot in column.slots.iter().flatten() {
                sum.add(count(before, *slot, *tick, *sampled, &states.state(*slot)));
            }
            if let Some(path) = column.path {
                sum.p99_ns = p99_ns(rtts, path, &rtts_now.rtts(path));
            }
            sum
        }));
        *sampled = *tick;
        true
    }
}

/// The 99th percentile of what was counted of a member since its round-trip times were last read.
fn p99_ns(before: &mut Vec<Option<Box<Rtts>>>, path: u32, now: &Rtts) -> Option<u64> {
    let at = path as usize;
    if at >= before.len() {
        before.resize(at + 1, None);
    }
    let Some(known) = &mut before[at] else {
        before[at] = Some(Box::new(*now));
        return None;
    };
    let known = std::mem::replace(&mut **known, *now);
    // Another member has the place, or the kernel's counts began anew.
    let has_fallen = now.iter().zip(&known).any(|(now, before)| now < before);
    let mut counts = [0; BUCKETS];
    for (count, (now, before)) in counts.iter_mut().zip(now.iter().zip(&known)) {
        *count = if has_fallen { *now } else { now - before };
    }
    rtt::quantile_ns(&counts, 0.99)
}

/// What a slot's tracker counted since counters were last read, in second `sampled`.
fn count(
    before: &mut Vec<Before>,
    slot: u32,
    tick: u64,
    sampled: u64,
    state: &abi::State,
) -> Counted {
    let at = slot as usize;
    if at >= before.len() {
        before.resize(at + 1, Before::default());
    }
    let counts = Counts::of(state);
    let known = std::mem::replace(&mut before[at], Before { tick, counts });
    let since = match sampled {
        // What was counted before the first second is of no known time.
        0 => counts,
        // The slot was of no tracker, or of none that was read: what it counted is new.
        sampled if known.tick < sampled => Counts::default(),
        _ => known.counts,
    };
    counts.since(since, state.receive.rtt_last_ns)
}

/// Looks up the next trackers; false if there are no more.
fn slice(
    known: &Known,
    services: &[ServiceId],
    cursor: &mut Cursor,
    columns: &mut Vec<Column>,
) -> bool {
    let mut left = SLICE;
    while let Some(id) = services.get(cursor.service) {
        let service = known.tree.service(*id);
        let member =
            service.and_then(|service| Some((service, service.members.get(cursor.member)?)));
        let Some((service, member)) = member else {
            *cursor = Cursor {
                service: cursor.service + 1,
                ..Cursor::default()
            };
            continue;
        };
        if left == 0 {
            return true;
        }
        if cursor.tracker == 0 {
            columns.push(Column {
                key: history::key(
                    &service.name,
                    &member.settings.name,
                    member.settings.endpoint,
                ),
                number: 0,
                slots: Vec::with_capacity(member.trackers.len()),
                path: member.slot,
            });
        }
        let trackers = member.trackers.iter().skip(cursor.tracker).take(left);
        if let Some(column) = columns.last_mut() {
            column.slots.extend(trackers.map(|tracker| tracker.slot));
        }
        let taken = left.min(member.trackers.len().saturating_sub(cursor.tracker));
        left -= taken;
        cursor.tracker += taken;
        if cursor.tracker >= member.trackers.len() {
            (cursor.member, cursor.tracker) = (cursor.member + 1, 0);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sent: u64, lost: u64, rtts_ns: &[u64]) -> abi::State {
        let mut state = abi::State::default();
        state.send.sent = sent;
        state.judge.lost = lost;
        state.receive.received = rtts_ns.len() as u64;
        state.receive.rtt_sum_ns = rtts_ns.iter().sum();
        state.receive.rtt_min_ns = rtts_ns.iter().copied().min().unwrap_or(0);
        state.receive.rtt_max_ns = rtts_ns.iter().copied().max().unwrap_or(0);
        state.receive.rtt_last_ns = rtts_ns.last().copied().unwrap_or(0);
        state
    }

    fn value(counted: Counted) -> (u64, u64, Option<(u64, u64, u64)>) {
        let Value { sent, lost, rtt } = counted.value();
        (
            sent,
            lost,
            rtt.map(|rtt| (rtt.min_us, rtt.mean_us, rtt.max_us)),
        )
    }

    #[test]
    fn what_is_counted_within_a_second_is_told() {
        let mut before = Vec::new();
        let mut count = |tick, sampled, state| value(count(&mut before, 3, tick, sampled, &state));
        // Counters of a lifetime before the first second.
        assert_eq!(count(1, 0, state(100, 7, &[1_000, 9_000])), (0, 0, None));
        assert_eq!(
            count(2, 1, state(101, 7, &[1_000, 9_000, 4_000])),
            (1, 0, Some((4, 4, 4)))
        );
        // Two replies, the first of them shorter than any before.
        let rtts = [1_000, 9_000, 4_000, 500, 7_500];
        assert_eq!(count(3, 2, state(103, 8, &rtts)), (2, 1, Some((1, 4, 8))));
        assert_eq!(count(4, 3, state(103, 9, &rtts)), (0, 1, None));
        // The slot has another tracker, whose counters are smaller.
        assert_eq!(count(5, 4, state(2, 0, &[2_000])), (2, 0, Some((2, 2, 2))));
        // It was of no tracker for a while: greater counters are another one's too.
        assert_eq!(
            count(9, 8, state(50, 1, &[2_000, 3_000])),
            (50, 1, Some((2, 3, 3)))
        );
    }

    #[test]
    fn the_percentile_is_of_what_was_counted_since() {
        let mut before = Vec::new();
        let mut now = [0; rtt::WORDS];
        now[rtt::bucket(2_000_000)] = 50;
        assert_eq!(p99_ns(&mut before, 3, &now), None);
        assert_eq!(p99_ns(&mut before, 3, &now), None);
        now[rtt::bucket(40_000)] += 2;
        let found = p99_ns(&mut before, 3, &now).unwrap();
        assert_eq!(rtt::bucket(found), rtt::bucket(40_000));
        // Another member has the place.
        let mut other = [0; rtt::WORDS];
        other[rtt::bucket(700_000)] = 1;
        let found = p99_ns(&mut before, 3, &other).unwrap();
        assert_eq!(rtt::bucket(found), rtt::bucket(700_000));
    }

    #[test]
    fn a_member_is_the_sum_of_its_trackers() {
        let mut sum = Counted::default();
        assert_eq!(value(sum), (0, 0, None));
        sum.add(Counts::of(&state(3, 1, &[1_000, 3_000])).since(Counts::default(), 3_000));
        sum.add(Counts::of(&state(1, 1, &[])).since(Counts::default(), 0));
        sum.add(Counts::of(&state(1, 0, &[8_000])).since(Counts::default(), 8_000));
        assert_eq!(value(sum), (5, 2, Some((1, 4, 8))));
    }
}

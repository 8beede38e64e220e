//! The ordered event stream: every change of a verdict, numbered without gap or repeat.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracker_ebpf::verdict::{Cause, Verdict};

use super::admin::Admin;
use crate::config::words;

/// So many events are kept for those who ask later.
pub const CAPACITY: usize = 65_536;

/// What an event tells. Readers skip kinds that they do not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A change of a verdict.
    #[default]
    Verdict,
    /// A change of an admin state, or of what counts by one.
    Admin,
    /// The end of what was known of something that was removed.
    Removed,
}

words! {
    EventKind { Verdict = "verdict", Admin = "admin", Removed = "removed" }
}

/// A change of a verdict: of a tracker (service, member and behind are set), a member (service and
/// member), a service (service), or a chain (chain).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When it was reported.
    pub time: Timestamp,
    /// Name of the service; null for a chain's own change.
    pub service: Option<Arc<str>>,
    /// Name of the member; null for a service's own change. A member's own change is reported only if the service has several.
    pub member: Option<Arc<str>>,
    /// Behind address of the tracker; null for a member's or a service's own change.
    pub behind: Option<IpAddr>,
    /// Verdict before.
    pub from: Verdict,
    /// Verdict from now on.
    pub to: Verdict,
    /// Cause of the change.
    pub cause: Cause,
    /// Microseconds from the first probe that showed it to the report; null if there was none.
    pub detection_us: Option<u64>,
    /// More about the cause, as in `status`; null if there is no more.
    #[serde(default)]
    pub detail: Option<Arc<str>>,
    /// Name of the chain, for its own change; else null.
    #[serde(default)]
    pub chain: Option<Arc<str>>,
    /// What it tells.
    #[serde(default)]
    pub kind: EventKind,
    /// Number of the first event of the burst that it belongs to: events of one interface, endpoint or hub fault within a second.
    #[serde(default)]
    pub group: u64,
    /// The verdict that counts from now on, if an admin state makes it another one than `to`; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Verdict>,
    /// The admin state from now on, of an event of kind `admin`; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Arc<Admin>>,
    /// What is at fault, by which bursts are told apart.
    #[serde(skip)]
    pub fault: Option<Box<Fault>>,
    /// The positions of member and tracker within the service, for a tracker's own change: of no use to readers, which see no
    /// positions.
    #[serde(skip)]
    pub tracker: Option<(u32, u32)>,
}

/// What a change of a tracker's verdict is put down to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The hub did not keep up.
    Hub,
    /// An interface is down or missing.
    Interface(Arc<str>),
    /// What stands at an endpoint, or is reached through it.
    Endpoint(IpAddr),
}

/// Puts events into bursts.
#[derive(Debug, Default)]
pub struct Bursts {
    /// The number of the first event, and the time by the monotonic clock, of the latest burst of each fault, and of changes
    /// for the better apart from those for the worse.
    latest: HashMap<(Fault, bool), (u64, u64)>,
}

/// How long a burst lasts.
const BURST_NS: u64 = 1_000_000_000;

impl Bursts {
    /// Gives events their groups; the first event will have the number `next`. What follows from a tracker's change, in the
    /// same call, belongs to its group.
    pub fn group(&mut self, events: &mut [Event], next: u64, now_mono_ns: u64) {
        if self.latest.len() > events.len().max(1_024) {
            self.latest
                .retain(|_, (_, begun_ns)| now_mono_ns.saturating_sub(*begun_ns) <= BURST_NS);
        }
        let mut above = None;
        for (seq, event) in (next..).zip(events) {
            event.group = match event.fault.take() {
                Some(fault) => {
                    let fault = *fault;
                    let is_better = event.to == Verdict::Up;
                    let entry = self.latest.entry((fault, is_better));
                    let (first, begun_ns) = entry.or_insert((seq, now_mono_ns));
                    if now_mono_ns.saturating_sub(*begun_ns) > BURST_NS {
                        (*first, *begun_ns) = (seq, now_mono_ns);
                    }
                    *first
                }
                None => above.unwrap_or(seq),
            };
            above = Some(event.group);
        }
    }
}

/// An event and its place in the stream; prints as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Numbered {
    /// Number of the event, from 1, without gap or repeat within `run`.
    pub seq: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Name of the sequence of numbers that `seq` belongs to.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub run: Arc<str>,
    /// Name of the hub.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub hub: Arc<str>,
    /// Instance of the daemon.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub instance: Arc<str>,
}

fn is_empty(run: &Arc<str>) -> bool {
    run.is_empty()
}

/// Tells a reader that event numbers began anew since the one that it named: all that is kept follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// Always true.
    pub reset: bool,
    /// The present sequence of numbers.
    pub run: Arc<str>,
}

/// The place of a reader in the stream: the last event that it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The sequence of numbers, if the reader knows it.
    pub run: Option<String>,
    /// The number.
    pub seq: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(run) = &self.run {
            write!(f, "{run}:")?;
        }
        write!(f, "{}", self.seq)
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    /// Reads `SEQ` or `RUN:SEQ`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (run, seq) = match text.rsplit_once(':') {
            Some((run, seq)) => (Some(run.to_owned()), seq),
            None => (None, text),
        };
        let seq = seq.parse();
        let seq =
            seq.map_err(|_| "give SEQ or RUN:SEQ, as in 7 or 1f0c3a52b6d98e74:7".to_owned())?;
        Ok(Self { run, seq })
    }
}

/// Tells a follower that was too slow what it missed, in the place of the lost events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    /// So many events are lost to this follower.
    pub missed: u64,
    /// The number of the event that comes next.
    pub next: u64,
}

/// The newest events, numbered.
#[derive(Debug)]
pub struct EventLog {
    events: VecDeque<Event>,
    capacity: usize,
    next: u64,
    run: Arc<str>,
    hub: Arc<str>,
    instance: Arc<str>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new(CAPACITY, 1)
    }
}

impl EventLog {
    /// An empty log that keeps `capacity` events, at least one, and numbers the first one `next`.
    pub fn new(capacity: usize, next: u64) -> Self {
        Self {
            events: VecDeque::new(),
            capacity: capacity.max(1),
            next,
            run: "".into(),
            hub: "".into(),
            instance: "".into(),
        }
    }

    /// A log of this hub and instance.
    #[must_use]
    pub fn of_hub(mut self, hub: &str, instance: &str) -> Self {
        (self.hub, self.instance) = (hub.into(), instance.into());
        self
    }

    /// A log whose numbers are of the sequence `run`.
    #[must_use]
    pub fn of_run(mut self, run: &str) -> Self {
        self.run = run.into();
        self
    }

    /// A log that goes on where another one ended: `events` are its last, and `next` comes next.
    pub fn resume(capacity: usize, events: Vec<Event>, next: u64) -> Self {
        let mut log = Self::new(capacity, next.saturating_sub(events.len() as u64));
        for event in events {
            log.push(event);
        }
        log
    }

    /// Adds an event, at the expense of the oldest when full, and returns its number.
    pub fn push(&mut self, event: Event) -> u64 {
        if self.events.len() == self.capacity {
            self.events.pop_front();
        }
        self.events.push_back(event);
        let seq = self.next;
        self.next += 1;
        seq
    }

    /// The number of the oldest event that is kept; that of the next one when none is.
    pub fn first(&self) -> u64 {
        self.next - self.events.len() as u64
    }

    /// The number that the next event will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many events after number `seq` are no longer kept, and those that are.
    pub fn since(&self, seq: u64) -> (u64, impl Iterator<Item = Numbered> + '_) {
        let wanted = seq.saturating_add(1);
        let missed = self.first().saturating_sub(wanted);
        let skip = wanted.saturating_sub(self.first());
        let skip = usize::try_from(skip)
            .unwrap_or(usize::MAX)
            .min(self.events.len());
        let numbers = self.first() + skip as u64..;
        let kept = numbers
            .zip(self.events.range(skip..))
            .map(|(seq, event)| Numbered {
                seq,
                event: event.clone(),
                run: self.run.clone(),
                hub: self.hub.clone(),
                instance: self.instance.clone(),
            });
        (missed, kept)
    }
}

/// The log as its one writer and many readers share it. A reader keeps only its own place, so none
/// can hold up the writer or another.
#[derive(Clone, Debug)]
pub struct EventFeed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<EventLog>,
    next: watch::Sender<u64>,
}

/// What a reader gets at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// So many events before these are lost to this reader.
    pub missed: u64,
    /// In order, without gap.
    pub events: Vec<Numbered>,
}

impl Default for EventFeed {
    fn default() -> Self {
        Self::new(EventLog::default())
    }
}

impl EventFeed {
    /// A feed of `log`.
    pub fn new(log: EventLog) -> Self {
        let (next, _) = watch::channel(log.next());
        Self {
            shared: Arc::new(Shared {
                log: Mutex::new(log),
                next,
            }),
        }
    }

    /// Adds events and wakes those who wait for them.
    pub fn publish(&self, events: impl IntoIterator<Item = Event>) {
        let mut log = self.log();
        let before = log.next();
        for event in events {
            log.push(event);
        }
        let next = log.next();
        drop(log);
        if next != before {
            self.shared.next.send_replace(next);
        }
    }

    /// At most `limit` events after number `seq`.
    pub fn read(&self, seq: u64, limit: usize) -> Batch {
        let log = self.log();
        let (missed, events) = log.since(seq);
        Batch {
            missed,
            events: events.take(limit).collect(),
        }
    }

    /// The last `count` events that are kept, and the number of the next one.
    pub fn last(&self, count: usize) -> (Vec<Event>, u64) {
        let log = self.log();
        let skip = log.events.len().saturating_sub(count);
        (log.events.range(skip..).cloned().collect(), log.next())
    }

    /// The numbers of the oldest event that is kept and of the next one to come.
    pub fn bounds(&self) -> (u64, u64) {
        let log = self.log();
        (log.first(), log.next())
    }

    /// The sequence that the numbers belong to.
    pub fn run(&self) -> Arc<str> {
        self.log().run.clone()
    }

    /// Wakes its owner whenever events were added.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.next.subscribe()
    }

    fn log(&self) -> MutexGuard<'_, EventLog> {
        // Every change of the log is complete before anything can panic.
        self.shared
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn example() -> Event {
        Event {
            time: "2026-01-01T00:00:00Z".parse().unwrap(),
            service: Some("fw-1".into()),
            member: Some("active".into()),
            behind: Some("10.20.0.9".parse().unwrap()),
            from: Verdict::Up,
            to: Verdict::Down,
            cause: Cause::NoReply,
            detection_us: Some(312_000),
            detail: None,
            chain: None,
            kind: EventKind::Verdict,
            group: 0,
            effective: None,
            admin: None,
            fault: None,
            tracker: None,
        }
    }

    #[test]
    fn json_is_the_contract_s_example() {
        let json = r#"{"seq":7,"time":"2026-01-01T00:00:00Z","service":"fw-1","member":"active","behind":"10.20.0.9","from":"up","to":"down","cause":"no-reply","detection_us":312000,"detail":null,"chain":null,"kind":"verdict","group":0}"#;
        let event = Numbered {
            seq: 7,
            event: example(),
            run: "".into(),
            hub: "".into(),
            instance: "".into(),
        };
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Numbered>(json).unwrap(), event);
    }

    #[test]
    fn services_and_chains_say_null() {
        let event = Event {
            service: None,
            member: None,
            behind: None,
            detection_us: None,
            detail: Some("x".into()),
            chain: Some("internet".into()),
            ..example()
        };
        let json = r#"{"seq":8,"time":"2026-01-01T00:00:00Z","service":null,"member":null,"behind":null,"from":"up","to":"down","cause":"no-reply","detection_us":null,"detail":"x","chain":"internet","kind":"verdict","group":0}"#;
        let event = Numbered {
            seq: 8,
            event,
            run: "".into(),
            hub: "".into(),
            instance: "".into(),
        };
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Numbered>(json).unwrap(), event);
    }

    #[test]
    fn events_of_one_fault_within_a_second_share_a_group() {
        let of = |fault: Option<Fault>, to: Verdict| Event {
            fault: fault.map(Box::new),
            to,
            ..example()
        };
        let (one, two) = (
            Fault::Interface("eth1".into()),
            Fault::Interface("eth2".into()),
        );
        let mut bursts = Bursts::default();
        let mut groups = |next: u64, at_ns: u64, events: &[Event]| {
            let mut events = events.to_vec();
            bursts.group(&mut events, next, at_ns);
            events.iter().map(|event| event.group).collect::<Vec<_>>()
        };
        let down = Verdict::Down;
        // What follows from a tracker's change belongs to its group.
        assert_eq!(
            groups(1, 0, &[of(Some(one.clone()), down), of(None, down)]),
            [1, 1]
        );
        assert_eq!(
            groups(
                3,
                500_000_000,
                &[
                    of(Some(two), down),
                    of(Some(one.clone()), down),
                    of(None, down)
                ]
            ),
            [3, 1, 1]
        );
        // The recovery is another burst; so is the same fault later.
        assert_eq!(
            groups(6, 900_000_000, &[of(Some(one.clone()), Verdict::Up)]),
            [6]
        );
        assert_eq!(
            groups(7, 1_000_000_001, &[of(Some(one), down), of(None, down)]),
            [7, 7]
        );
        // What has no fault stands alone.
        assert_eq!(groups(9, 1_000_000_002, &[of(None, down)]), [9]);
    }

    #[test]
    fn a_full_log_is_a_few_megabytes() {
        assert!(
            size_of::<Event>() * CAPACITY <= 10 << 20,
            "{}",
            size_of::<Event>()
        );
    }

    #[test]
    fn an_event_names_its_run_and_a_place_may() {
        let mut log = EventLog::new(8, 7).of_run("a:b");
        log.push(example());
        let (_, mut events) = log.since(0);
        let json = serde_json::to_string(&events.next().unwrap()).unwrap();
        assert!(
            json.ends_with(r#","kind":"verdict","group":0,"run":"a:b"}"#),
            "{json}"
        );
        let place = |text: &str| {
            text.parse::<Place>()
                .ok()
                .map(|place| (place.run, place.seq))
        };
        assert_eq!(place("7"), Some((None, 7)));
        assert_eq!(place("a:b:7"), Some((Some("a:b".to_owned()), 7)));
        for bad in ["", "a", "a:", ":", "-1", "a:-1"] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_empty_log_has_missed_nothing() {
        let log = EventLog::default();
        assert_eq!((log.first(), log.next()), (1, 1));
        let (missed, mut events) = log.since(0);
        assert_eq!((missed, events.next()), (0, None));
    }

    proptest! {
        /// Readers of any pace: each sees every number exactly once, or is told how many it missed.
        #[test]
        fn a_reader_misses_nothing_untold(
            capacity in 1usize..9,
            steps in prop::collection::vec((0usize..12, prop::bool::ANY, 1usize..9), 1..40),
        ) {
            let feed = EventFeed::new(EventLog::new(capacity, 1));
            let mut seen = 0;
            let mut published = 0;
            for (count, read, limit) in steps {
                feed.publish((0..count).map(|index| Event {
                    detection_us: Some(published + 1 + index as u64),
                    ..example()
                }));
                published += count as u64;
                if !read {
                    continue;
                }
                let batch = feed.read(seen, limit);
                let kept = (capacity as u64).min(published);
                prop_assert_eq!(batch.missed, (published - kept).saturating_sub(seen));
                seen += batch.missed;
                for numbered in &batch.events {
                    seen += 1;
                    prop_assert_eq!(numbered.seq, seen);
                    prop_assert_eq!(numbered.event.detection_us, Some(seen));
                }
                prop_assert_eq!(batch.events.len() as u64, (published - (seen - batch.events.len() as u64)).min(limit as u64));
            }
            prop_assert_eq!(feed.bounds(), (published - (capacity as u64).min(published) + 1, published + 1));
            prop_assert_eq!(*feed.subscribe().borrow(), published + 1);
        }
    }
}

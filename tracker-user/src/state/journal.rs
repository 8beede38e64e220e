//! What one daemon leaves to the next, beside the kernel's maps: what it watched and where in the maps each
//! tracker has its place, what was reported last, and the newest events with their numbers.
//!
//! A journal is a [`Snapshot`], and what happened since: lines of JSON, each of them complete in itself. It is
//! written before anybody is told, so that no event number is ever given twice.

mod saved;

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracker_ebpf::verdict::{Cause, Verdict};

use crate::{
    config::{Chain, ModeChoice, Service},
    desired::model as desired,
    state::{
        events::{Event, EventKind},
        flaps::{FLAPS_MAX, Flaps},
        hold_down::{Held, TrackerState},
        tree::{Shown, StateTree},
    },
};

/// Event numbers do not come near this in the life of any hub.
const MAX_NUMBER: u64 = 1 << 53;

/// Everything that a daemon leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What tells the network namespace from all others of this boot: interfaces are others in another one.
    pub namespace: (u64, u64),
    /// The configured mode: a way that another one made them take says nothing of devices.
    pub mode: ModeChoice,
    /// In the order in which they are reported.
    pub services: Vec<SavedService>,
    /// The chains.
    #[serde(with = "saved::chains")]
    pub chains: Vec<Chain>,
    /// The newest events.
    pub events: Vec<Event>,
    /// The number of the event that comes next.
    pub next: u64,
    /// Names the sequence of event numbers; empty in what an older version wrote.
    #[serde(default)]
    pub run: String,
}

/// A service, and its places in the maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedService {
    /// What is configured.
    #[serde(with = "saved::service")]
    pub service: Service,
    /// Since when its verdict is what it is.
    pub since: Timestamp,
    /// As in `service`.
    pub members: Vec<SavedMember>,
    /// When it left a verdict of `up` or `down`.
    #[serde(default)]
    pub flaps: SavedFlaps,
    /// The priority numbers that are kept in use without preemption.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<u16>,
}

/// How often a service left a verdict of `up` or `down`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFlaps {
    /// When, by the monotonic clock: the newest of them, oldest first.
    pub recent_mono_ns: Vec<u64>,
    /// How often in all.
    pub total: u64,
}

/// A member's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedMember {
    /// Index into PATHS.
    pub path: u32,
    /// As in the configured member.
    pub trackers: Vec<SavedTracker>,
}

/// A tracker's place, and what was reported of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedTracker {
    /// Index into TRACKERS and STATE.
    pub slot: u32,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// More about the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// A change that was not reported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<SavedHeld>,
}

/// A change of a tracker's verdict that `hold_down` holds back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedHeld {
    /// The verdict to come.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// More about the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Since when, by the monotonic clock.
    pub since_mono_ns: u64,
    /// How long it took to find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection_ns: Option<u64>,
}

impl SavedService {
    /// A service as it is desired and reported; `None` before all of it has its place in the maps.
    pub fn new(service: &desired::Service, tree: &StateTree) -> Option<Self> {
        let state = tree.service(service.id)?;
        let members = state.members.iter().map(|member| {
            let trackers = member.trackers.iter().map(|entry| {
                Some(SavedTracker {
                    slot: entry.slot?,
                    // What maintenance holds back is reported after its end, by the next daemon if need be.
                    verdict: entry.told(),
                    cause: entry.shown.cause,
                    detail: entry.shown.detail.clone(),
                    held: entry.held.as_ref().map(SavedHeld::from),
                })
            });
            Some(SavedMember {
                path: member.slot?,
                trackers: trackers.collect::<Option<_>>()?,
            })
        });
        Some(Self {
            service: service.settings.clone(),
            since: state.since,
            members: members.collect::<Option<_>>()?,
            flaps: SavedFlaps {
                recent_mono_ns: state.flaps.recent_mono_ns.clone().into(),
                total: state.flaps.total,
            },
            kept: state.kept(),
        })
    }

    /// What was reported of it, and what was held back.
    pub fn shown(&self) -> Shown {
        let trackers = self.members.iter().map(|member| {
            let trackers = member.trackers.iter();
            trackers
                .map(|tracker| (tracker.shown(), tracker.held.as_ref().map(Held::from)))
                .collect()
        });
        Shown {
            since: self.since,
            flaps: Flaps {
                recent_mono_ns: self.flaps.recent_mono_ns.clone().into(),
                total: self.flaps.total,
            },
            trackers: trackers.collect(),
            kept: self.kept.clone(),
        }
    }
}

impl From<&Held> for SavedHeld {
    fn from(held: &Held) -> Self {
        let TrackerState {
            verdict,
            cause,
            detail,
        } = held.state.clone();
        Self {
            verdict,
            cause,
            detail,
            since_mono_ns: held.since_mono_ns,
            detection_ns: held.detection_ns,
        }
    }
}

impl From<&SavedHeld> for Held {
    fn from(saved: &SavedHeld) -> Self {
        Self {
            state: TrackerState {
                verdict: saved.verdict,
                cause: saved.cause,
                detail: saved.detail.clone(),
            },
            since_mono_ns: saved.since_mono_ns,
            detection_ns: saved.detection_ns,
        }
    }
}

impl SavedTracker {
    /// What was reported of it.
    pub fn shown(&self) -> TrackerState {
        TrackerState {
            verdict: self.verdict,
            cause: self.cause,
            detail: self.detail.clone(),
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The first.
    Snapshot(Snapshot),
    /// What was reported, and which member's which tracker each is about. Flaps are not counted by it: the snapshot
    /// before has them, or an older version wrote it.
    Events(Vec<(Event, Option<(u32, u32)>)>),
    /// What was reported.
    Told {
        /// When, by the monotonic clock.
        mono_ns: u64,
        /// The events, and which member's which tracker each is about.
        events: Vec<(Event, Option<(u32, u32)>)>,
    },
    /// What is held back of a tracker from here on.
    Held {
        /// The service's name.
        service: String,
        /// Positions of member and tracker within it.
        tracker: (u32, u32),
        /// The change, if there is one.
        held: Option<SavedHeld>,
    },
    /// The priority numbers of a service that are kept in use without preemption from here on.
    Kept {
        /// The service's name.
        service: String,
        /// The numbers.
        kept: Vec<u16>,
    },
    /// A service that came.
    Added(SavedService),
    /// A service that went, and what was reported of that.
    Removed {
        /// Its name.
        service: String,
        /// What was reported.
        events: Vec<Event>,
    },
}

impl Record {
    /// Events as they are published, and when by the monotonic clock.
    pub fn of(events: &[Event], mono_ns: u64) -> Self {
        let with_place = events.iter().map(|event| (event.clone(), event.tracker));
        Self::Told {
            mono_ns,
            events: with_place.collect(),
        }
    }

    /// The record of these events for a journal whose snapshot was taken after them.
    #[must_use]
    pub fn after_snapshot(self) -> Self {
        match self {
            Self::Told { events, .. } => Self::Events(events),
            record => record,
        }
    }

    /// The line that says it.
    pub fn line(&self) -> Vec<u8> {
        // Plain structures with string keys cannot fail to be written.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl Snapshot {
    /// Reads a journal: its snapshot, brought up to date by what follows.
    ///
    /// # Errors
    /// Where it is not one; what was found.
    pub fn read(journal: &[u8]) -> Result<Self, String> {
        let mut snapshot = None;
        let lines = journal.split(|byte| *byte == b'\n');
        for (number, line) in (1..).zip(lines.filter(|line| !line.is_empty())) {
            // What it quotes may be anything, and is to be one line of the log.
            let plain = |error: serde_json::Error| error.to_string().replace(char::is_control, "?");
            let record = serde_json::from_slice(line)
                .map_err(|error| format!("line {number}: {}", plain(error)))?;
            match (&mut snapshot, record) {
                (_, Record::Snapshot(first)) => snapshot = Some(first),
                (Some(snapshot), record) => snapshot.take(record),
                (None, _) => return Err("it does not begin with a snapshot".to_owned()),
            }
        }
        let snapshot = snapshot.ok_or_else(|| "it is empty".to_owned())?;
        snapshot.check()?;
        Ok(snapshot)
    }

    /// Whether a daemon can go on from this: what looks like a journal may be another's, or damaged.
    fn check(&self) -> Result<(), String> {
        let kept = self.events.len() as u64;
        if !(1 + kept..=MAX_NUMBER).contains(&self.next) {
            let next = self.next;
            return Err(format!("{kept} events before number {next}"));
        }
        let mut names = HashSet::new();
        for SavedService { service, .. } in &self.services {
            let name = &service.name;
            service
                .check()
                .map_err(|why| format!("service {name:?}: {why}"))?;
            if !names.insert(name) {
                return Err(format!("service {name:?} is there twice"));
            }
        }
        Ok(())
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Snapshot(_) => {}
            Record::Events(events) => {
                for (event, tracker) in events {
                    self.tell(&event, tracker, None);
                    self.push(event);
                }
            }
            Record::Told { mono_ns, events } => {
                for (event, tracker) in events {
                    self.tell(&event, tracker, Some(mono_ns));
                    self.push(event);
                }
            }
            Record::Held {
                service,
                tracker,
                held,
            } => {
                if let Some(saved) = self.tracker(&service, tracker) {
                    saved.held = held;
                }
            }
            Record::Kept { service, kept } => {
                if let Some(saved) = self.service(&service) {
                    saved.kept = kept;
                }
            }
            Record::Added(added) => {
                let name = &added.service.name;
                self.services.retain(|saved| saved.service.name != *name);
                self.services.push(added);
            }
            Record::Removed { service, events } => {
                self.services.retain(|saved| saved.service.name != *service);
                events.into_iter().for_each(|event| self.push(event));
            }
        }
    }

    fn push(&mut self, event: Event) {
        self.events.push(event);
        self.next = self.next.saturating_add(1);
    }

    fn service(&mut self, name: &str) -> Option<&mut SavedService> {
        let mut services = self.services.iter_mut();
        services.find(|saved| saved.service.name == name)
    }

    fn tracker(
        &mut self,
        service: &str,
        (member, tracker): (u32, u32),
    ) -> Option<&mut SavedTracker> {
        let member = self.service(service)?.members.get_mut(member as usize)?;
        member.trackers.get_mut(tracker as usize)
    }

    /// Takes over what an event reported, and when.
    fn tell(&mut self, event: &Event, tracker: Option<(u32, u32)>, mono_ns: Option<u64>) {
        if event.kind != EventKind::Verdict {
            return;
        }
        let Some(name) = event.service.as_deref() else {
            return;
        };
        match tracker {
            Some(place) => {
                if let Some(tracker) = self.tracker(name, place) {
                    tracker.verdict = event.to;
                    tracker.cause = event.cause;
                    tracker.detail = event.detail.as_deref().map(str::to_owned);
                    tracker.held = None;
                }
            }
            None if event.member.is_none() => {
                let Some(saved) = self.service(name) else {
                    return;
                };
                saved.since = event.time;
                if let Some(mono_ns) = mono_ns
                    && event.from != Verdict::Unknown
                {
                    saved.flaps.total = saved.flaps.total.saturating_add(1);
                    saved.flaps.recent_mono_ns.push(mono_ns);
                    let beyond = saved.flaps.recent_mono_ns.len().saturating_sub(FLAPS_MAX);
                    saved.flaps.recent_mono_ns.drain(..beyond);
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::{config, state::events::tests::example};

    impl Snapshot {
        fn member(&mut self) -> &mut config::Member {
            std::sync::Arc::make_mut(&mut self.services[0].service.members[0])
        }
    }

    const CONFIG: &str = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.2\"\ninterface = \"eth1\"\n\
        behind = [\"10.20.0.9\", \"10.20.0.10\"]\npolicy = \"all\"\nreturns = [\"eth1\", \"eth2\"]\n";

    fn services() -> Vec<Service> {
        config::parse(CONFIG, Path::new("test.toml"))
            .unwrap()
            .services
    }

    fn saved(service: Service) -> SavedService {
        let tracker = |slot| SavedTracker {
            slot,
            verdict: Verdict::Up,
            cause: Cause::Replied,
            detail: None,
            held: None,
        };
        SavedService {
            service,
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            members: vec![SavedMember {
                path: 3,
                trackers: vec![tracker(7), tracker(9)],
            }],
            flaps: SavedFlaps::default(),
            kept: Vec::new(),
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            namespace: (4, 4_026_531_840),
            mode: ModeChoice::Auto,
            services: services().into_iter().map(saved).collect(),
            chains: vec![Chain {
                name: "internet".to_owned(),
                services: vec!["fw-1".to_owned()],
            }],
            events: vec![example()],
            next: 8,
            run: "r1".to_owned(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let line = Record::Snapshot(snapshot()).line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Snapshot::read(&line).unwrap(), snapshot());
    }

    #[test]
    fn what_happened_since_counts() {
        let mut journal = Record::Snapshot(snapshot()).line();
        let down = Event {
            tracker: Some((0, 1)),
            ..example()
        };
        let own = Event {
            member: None,
            behind: None,
            time: "2026-01-02T00:00:00Z".parse().unwrap(),
            ..example()
        };
        journal.extend(Record::of(&[down, own], 77).line());
        let mut other = saved(services().remove(0));
        other.service.name = "fw-2".to_owned();
        journal.extend(Record::Added(other.clone()).line());
        let read = Snapshot::read(&journal).unwrap();
        let [first, second] = &read.services[..] else {
            panic!("{read:?}");
        };
        let verdicts = first.members[0].trackers.iter();
        let verdicts: Vec<_> = verdicts.map(|tracker| tracker.verdict).collect();
        assert_eq!(verdicts, [Verdict::Up, Verdict::Down]);
        assert_eq!(first.since.to_string(), "2026-01-02T00:00:00Z");
        let flaps = SavedFlaps {
            recent_mono_ns: vec![77],
            total: 1,
        };
        assert_eq!(first.flaps, flaps);
        let own = Event {
            member: None,
            ..example()
        };
        let after = Record::of(&[own], 99).after_snapshot().line();
        let read = Snapshot::read(&[&journal[..], &after].concat()).unwrap();
        assert_eq!(read.services[0].flaps, flaps);
        assert_eq!((second, read.next, read.events.len()), (&other, 11, 4));

        let gone = Record::Removed {
            service: "fw-1".to_owned(),
            events: vec![example()],
        };
        journal.extend(gone.line());
        let read = Snapshot::read(&journal).unwrap();
        assert_eq!(read.services, [other]);
        assert_eq!((read.next, read.events.len()), (11, 4));
    }

    #[test]
    fn what_is_held_back_stands_until_it_is_reported_or_over() {
        let held = SavedHeld {
            verdict: Verdict::Down,
            cause: Cause::NoReply,
            detail: None,
            since_mono_ns: 5,
            detection_ns: Some(3),
        };
        let record = |held: Option<SavedHeld>| Record::Held {
            service: "fw-1".to_owned(),
            tracker: (0, 1),
            held,
        };
        let down = Event {
            tracker: Some((0, 1)),
            ..example()
        };
        let mut journal = Record::Snapshot(snapshot()).line();
        journal.extend(record(Some(held.clone())).line());
        let of = |journal: &[u8]| {
            let snapshot = Snapshot::read(journal).unwrap();
            snapshot.services[0].members[0].trackers[1].held.clone()
        };
        assert_eq!(of(&journal), Some(held));
        let over = [&journal[..], &record(None).line()].concat();
        assert_eq!(of(&over), None);
        let told = [&journal[..], &Record::of(&[down], 9).line()].concat();
        assert_eq!(of(&told), None);
    }

    /// The journal of the version before `run`, `flaps`, `held` and `told`.
    #[test]
    fn an_older_journal_is_read() {
        let mut text = String::from_utf8(Record::Snapshot(snapshot()).line()).unwrap();
        for new in [
            r#","run":"r1""#,
            r#","flaps":{"recent_mono_ns":[],"total":0}"#,
        ] {
            assert!(text.contains(new), "{text}");
            text = text.replace(new, "");
        }
        let event = serde_json::to_string(&example()).unwrap();
        text.push_str(&format!("{{\"events\":[[{event},[0,1]]]}}\n"));
        let read = Snapshot::read(text.as_bytes()).unwrap();
        assert_eq!((read.next, read.run.as_str()), (9, ""));
        assert_eq!(
            read.services[0].members[0].trackers[1].verdict,
            Verdict::Down
        );
    }

    #[test]
    fn a_tracker_of_an_older_version_has_the_new_keys_defaults() {
        let mut left: serde_json::Value =
            serde_json::from_slice(&Record::Snapshot(snapshot()).line()).unwrap();
        let members = &mut left["snapshot"]["services"][0]["service"]["members"];
        members[0]["trackers"] = serde_json::json!([{"behind": "10.20.0.9"}]);
        members[0]["policy"] = "Any".into();
        let mut read = Snapshot::read(left.to_string().as_bytes()).unwrap();
        let read = read.member().trackers[0].clone();
        let text =
            "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n";
        let config = config::parse(text, Path::new("test.toml")).unwrap();
        assert_eq!(read, config.services[0].members[0].trackers[0]);
    }

    /// Version 1 with every key, as it was first written.
    #[test]
    fn version_1_is_read() {
        let text = r#"{"snapshot":{"namespace":[4,4026531840],"mode":"auto","services":[{"service":{"name":"fw-1",
            "origin":"run-time","members":[{"role":"standby","endpoint":"10.9.0.2","interface":"eth1","source":"10.9.0.1",
            "returns":["eth2"],"return_hop":"endpoint","policy":{"AtLeast":1},"trackers":[{"behind":"10.20.0.9",
            "probe":"udp","port":862,"protocol":"stamp","interval":{"secs":2,"nanos":0},"timeout":{"secs":0,"nanos":7000000},
            "fall":5,"rise":4,"payload":44,"expect":"silence","flow":"rotate","refused":"up","hold_down":{"secs":3,"nanos":0},
            "return_ttl":63}]},{"role":"active","endpoint":"10.9.0.3","interface":null,"source":null,"returns":[],
            "return_hop":"any","policy":"All","trackers":[{"behind":"10.20.0.9"}]}]},"since":"2026-01-01T00:00:00Z",
            "members":[{"path":3,"trackers":[{"slot":7,"verdict":"up","cause":"replied"}]},{"path":4,"trackers":[{"slot":9,
            "verdict":"down","cause":"no-reply"}]}]}],"chains":[{"name":"internet","services":["fw-1"]}],"events":[],"next":8,
            "run":"r1"}}"#;
        let mut read = Snapshot::read(text.replace('\n', " ").as_bytes()).unwrap();
        assert_eq!(read.chains, snapshot().chains);
        assert_eq!(read.services[0].service.owner, config::Owner::Api);
        let config = "[[service]]\nname = \"fw-1\"\n[[service.member]]\nrole = \"standby\"\nendpoint = \"10.9.0.2\"\n\
            interface = \"eth1\"\nsource = \"10.9.0.1\"\nreturns = [\"eth2\"]\nreturn_hop = \"endpoint\"\npolicy = 1\n\
            behind = [\"10.20.0.9\"]\nprobe = \"udp\"\nprotocol = \"stamp\"\ninterval = \"2s\"\ntimeout = \"7ms\"\nfall = 5\n\
            rise = 4\npayload = 44\nexpect = \"silence\"\nflow = \"rotate\"\nrefused = \"up\"\nhold_down = \"3s\"\n\
            return_ttl = 63\n[[service.member]]\nrole = \"active\"\nendpoint = \"10.9.0.3\"\nbehind = [\"10.20.0.9\"]\n\
            policy = \"all\"\n";
        let config = config::parse(config, Path::new("test.toml")).unwrap();
        assert_eq!(*read.member(), *config.services[0].members[0]);
        let members = &read.services[0].service.members;
        assert_eq!(members[1], config.services[0].members[1]);
        let written = Record::Snapshot(read.clone()).line();
        assert_eq!(Snapshot::read(&written).unwrap(), read);
    }

    /// A snapshot with a pool in place of the first service.
    fn with_pool() -> Snapshot {
        let config = "[[service]]\nname = \"fw-1\"\nmembers_up = 2\npreempt = false\n[[service.member]]\nname = \"a\"\n\
            weight = 7\npriority = 0\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\", \"10.20.0.8\"]\n\
            [[service.member]]\npriority = 9\nendpoint = \"10.9.0.3\"\nbehind = [\"10.20.0.9\"]\n\
            [[service.member]]\nrole = \"standby\"\nname = \"c\"\nendpoint = \"10.9.0.4\"\nbehind = [\"10.20.0.9\"]\n";
        let mut services = config::parse(config, Path::new("test.toml"))
            .unwrap()
            .services;
        let mut snapshot = snapshot();
        snapshot.services[0].service = services.remove(0);
        snapshot
    }

    #[test]
    fn a_pool_and_what_is_kept_in_use_of_it_are_read() {
        let left = with_pool();
        let mut journal = Record::Snapshot(left.clone()).line();
        assert_eq!(Snapshot::read(&journal).unwrap(), left);
        let kept = |service: &str, kept: &[u16]| Record::Kept {
            service: service.to_owned(),
            kept: kept.to_vec(),
        };
        journal.extend(kept("fw-1", &[0, 9]).line());
        journal.extend(kept("gone", &[1]).line());
        let read = Snapshot::read(&journal).unwrap();
        assert_eq!(read.services[0].kept, [0, 9]);
        assert_eq!(read.services[0].shown().kept, [0, 9]);
        // It stays when the journal begins anew, and can end.
        let mut anew = Record::Snapshot(read).line();
        assert_eq!(Snapshot::read(&anew).unwrap().services[0].kept, [0, 9]);
        anew.extend(kept("fw-1", &[]).line());
        assert_eq!(Snapshot::read(&anew).unwrap().services[0].kept, [0u16; 0]);
        // What has no pool is written as before there were any.
        let text = String::from_utf8(Record::Snapshot(snapshot()).line()).unwrap();
        for new in [
            "name\":\"active",
            "priority",
            "weight",
            "members_up",
            "keeps",
            "kept",
        ] {
            assert!(!text.contains(new), "{new} in {text}");
        }
        assert!(text.contains("\"role\":\"active\""), "{text}");
    }

    #[test]
    fn a_pool_that_no_document_has_is_refused() {
        let with = |change: &dyn Fn(&mut Service)| {
            let mut left = with_pool();
            change(&mut left.services[0].service);
            Snapshot::read(&Record::Snapshot(left).line())
        };
        let member = |service: &mut Service, at: usize, change: fn(&mut config::Member)| {
            change(std::sync::Arc::make_mut(&mut service.members[at]));
        };
        assert!(with(&|_| {}).is_ok());
        type Change<'c> = &'c dyn Fn(&mut Service);
        let changes: [(&str, Change<'_>); 6] = [
            ("member \"a\" is there twice", &|service| {
                member(service, 1, |member| member.name = "a".into());
            }),
            ("a name has no spaces", &|service| {
                member(service, 0, |member| member.name = "a b".into());
            }),
            ("weight 0", &|service| {
                member(service, 0, |member| member.weight = 0);
            }),
            ("weight 257", &|service| {
                member(service, 0, |member| member.weight = 257);
            }),
            ("4 of 3 members", &|service| {
                service.members_up = config::Policy::AtLeast(4);
            }),
            ("0 of 3 members", &|service| {
                service.members_up = config::Policy::AtLeast(0);
            }),
        ];
        for (what, change) in changes {
            let why = with(change).unwrap_err();
            assert!(why.contains(what), "{what}: {why}");
        }
        let twice = with(&|service| {
            member(service, 0, |member| {
                (member.role, member.priority) = (Some(config::Role::Standby), 1);
            });
        });
        assert!(twice.unwrap_err().contains("roles [Standby, Standby]"));
    }

    #[test]
    fn what_no_daemon_could_go_on_from_is_refused() {
        let with = |change: fn(&mut Snapshot)| {
            let mut snapshot = snapshot();
            change(&mut snapshot);
            Snapshot::read(&Record::Snapshot(snapshot).line())
        };
        assert!(with(|_| {}).is_ok());
        type Change = fn(&mut Snapshot);
        let changes: [(&str, Change); 9] = [
            ("number", |left| left.next = 0),
            ("number", |left| left.next = 1),
            ("number", |left| left.next = u64::MAX),
            ("twice", |left| left.services.push(left.services[0].clone())),
            ("name", |left| left.services[0].service.name.clear()),
            ("members", |left| left.services[0].service.members.clear()),
            ("0 trackers", |left| left.member().trackers.clear()),
            ("tracker", |left| {
                left.member().trackers[0].interval = Duration::ZERO
            }),
            ("tracker", |left| left.member().trackers[0].rise = 0),
        ];
        for (what, change) in changes {
            let why = with(change).unwrap_err();
            assert!(why.contains(what), "{what}: {why}");
        }
    }

    #[test]
    fn an_interval_beyond_all_time_is_refused() {
        let mut left = snapshot();
        let tracker = &mut left.member().trackers[0];
        tracker.probe = config::Probe::Tcp;
        tracker.port = Some(1);
        tracker.interval = Duration::MAX;
        assert!(Snapshot::read(&Record::Snapshot(left).line()).is_err());
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let events = Record::of(&[example()], 77).line();
        let mut torn = Record::Snapshot(snapshot()).line();
        torn.extend(&events[..events.len() / 2]);
        for bad in [&b""[..], b"\n\n", b"{}", b"\0\xff garbage", &events, &torn] {
            assert!(Snapshot::read(bad).is_err(), "{bad:?}");
        }
    }
}

//! The reporting state: what is known of every tracker, member, service and chain, as it is told.
//!
//! A tree has no clock and does no input or output. It is built from a configuration, told of
//! changes with the time at which they were seen, answers with the events they cause, and can be
//! asked for the status at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracker_ebpf::abi::Proof;
use tracker_ebpf::verdict::{Cause, Verdict};

use crate::api::types::{
    ChainStatus, Counters, HeldStatus, LatenessUs, ListedMember, ListedService, MemberStatus,
    RttUs, ServiceStatus, Status, TrackerStatus,
};
use crate::config::{Config, Member, Origin, Policy, Protocol, Role, Service, Tracker};
use crate::desired::diff::{self, Used};
use crate::plan::mode::{Mode, SendWay};
use crate::state::events::Event;

/// A moment, by the clocks that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `CLOCK_MONOTONIC`, in nanoseconds: for durations.
    pub mono_ns: u64,
    /// `CLOCK_BOOTTIME`, in nanoseconds, which is never set and goes on while the machine is suspended: what tells a wall
    /// clock that was set.
    pub boot_ns: u64,
    /// For people.
    pub wall: Timestamp,
}

/// A tracker by its place on the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackerRef {
    /// The service's number: its position in [`Config::services`], or what [`StateTree::add`] gave it.
    pub service: u32,
    /// Position in [`Service::members`].
    pub member: u32,
    /// Position in [`Member::trackers`].
    pub tracker: u32,
}

/// How far a status that is put together in slices has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Position in the list of services.
    service: usize,
    member: usize,
    tracker: usize,
}

impl Cursor {
    const fn next_service(&mut self) {
        *self = Self {
            service: self.service + 1,
            member: 0,
            tracker: 0,
        };
    }
}

/// What is known of one tracker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackerState {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// More about the cause, such as who sent an ICMP error.
    pub detail: Option<String>,
}

/// How a member's probes go out and replies are received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberPath {
    /// The outgoing interface, once known.
    pub interface: Option<String>,
    /// How the receive program is attached there.
    pub mode: Option<Mode>,
    /// How probes leave.
    pub send: Option<SendWay>,
    /// What proves each tracker's probes to have passed; the reply, where nothing is said.
    pub proofs: Vec<Proof>,
}

/// The reporting state of one daemon.
#[derive(Clone, Debug)]
pub struct StateTree {
    hub: String,
    instance: String,
    /// By number, which is also the order in which they are reported.
    services: BTreeMap<u32, ServiceState>,
    /// The number of the next addition; never that of a service which was removed.
    next: u32,
    chains: Vec<ChainState>,
    flap_window_ns: u64,
    /// The wall clock less the boot clock, nanoseconds, by which every `since` was told.
    wall_offset_ns: Option<i128>,
    /// Changes when numbers may mean other services than before.
    generation: u64,
    /// When each change that is held down becomes due, by the monotonic clock.
    due: BTreeSet<(u64, TrackerRef)>,
}

#[derive(Clone, Debug)]
struct ServiceState {
    name: Arc<str>,
    origin: Origin,
    members: Vec<MemberState>,
    verdict: Verdict,
    since: Timestamp,
    flaps: Flaps,
}

/// A wall clock that is off by so much was set, and did not just run a little faster or slower.
const CLOCK_STEP_NS: i128 = 1_000_000_000;
/// Most flaps of a service that are remembered one by one.
pub const FLAPS_MAX: usize = 1024;

/// When a service left a verdict of `up` or `down`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaps {
    /// By the monotonic clock: the newest of them, oldest first.
    pub recent_mono_ns: VecDeque<u64>,
    /// How often in all.
    pub total: u64,
}

impl Flaps {
    fn note(&mut self, now_mono_ns: u64) {
        self.total = self.total.saturating_add(1);
        if self.recent_mono_ns.len() == FLAPS_MAX {
            self.recent_mono_ns.pop_front();
        }
        self.recent_mono_ns.push_back(now_mono_ns);
    }

    /// How many were in the last `window_ns`.
    fn recent(&self, now_mono_ns: u64, window_ns: u64) -> u64 {
        let is_old = |flap_ns: &u64| now_mono_ns.saturating_sub(*flap_ns) > window_ns;
        let old = self.recent_mono_ns.partition_point(is_old);
        (self.recent_mono_ns.len() - old) as u64
    }
}

#[derive(Clone, Debug)]
struct MemberState {
    config: Member,
    path: MemberPath,
    trackers: Vec<TrackerSlot>,
    /// How many trackers there are of each verdict: a member may have very many trackers, and none
    /// of them should cost a walk over all when it changes.
    tally: Tally,
    verdict: Verdict,
}

#[derive(Clone, Debug, Default)]
struct TrackerSlot {
    /// What is reported.
    shown: TrackerState,
    /// What will be, if it lasts.
    held: Option<Held>,
}

/// A change of a tracker's verdict that is reported once it has lasted for `hold_down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is to be reported.
    pub state: TrackerState,
    /// Since when, by the monotonic clock.
    pub since_mono_ns: u64,
    /// From the first probe that showed it to then.
    pub detection_ns: Option<u64>,
}

/// What is reported of a service, and what is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Since when its verdict is what it is.
    pub since: Timestamp,
    /// How often it changed.
    pub flaps: Flaps,
    /// By member and tracker.
    pub trackers: Vec<Vec<(TrackerState, Option<Held>)>>,
}

#[derive(Clone, Debug)]
struct ChainState {
    name: Arc<str>,
    /// Numbers of services.
    services: Vec<u32>,
    verdict: Verdict,
}

/// How many there are of each verdict.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    unknown: usize,
    up: usize,
    down: usize,
}

impl Tally {
    fn of(&mut self, verdict: Verdict) -> &mut usize {
        match verdict {
            Verdict::Unknown => &mut self.unknown,
            Verdict::Up => &mut self.up,
            Verdict::Down => &mut self.down,
        }
    }

    fn count(verdicts: impl Iterator<Item = Verdict>) -> Self {
        let mut tally = Self::default();
        for verdict in verdicts {
            *tally.of(verdict) += 1;
        }
        tally
    }

    /// Up when `wanted` are, down when so many no longer can be.
    fn at_least(self, wanted: usize) -> Verdict {
        if self.up >= wanted {
            Verdict::Up
        } else if self.up + self.unknown < wanted {
            Verdict::Down
        } else {
            Verdict::Unknown
        }
    }

    fn any(self) -> Verdict {
        self.at_least(1)
    }

    fn all(self) -> Verdict {
        self.at_least(self.unknown + self.up + self.down)
    }

    fn by(self, policy: Policy) -> Verdict {
        match policy {
            Policy::Any => self.any(),
            Policy::All => self.all(),
            Policy::AtLeast(wanted) => self.at_least(usize::from(wanted)),
        }
    }
}

impl Held {
    /// When it is to be reported, by the monotonic clock.
    fn due_ns(&self, hold_down: Duration) -> u64 {
        let hold_down_ns = u64::try_from(hold_down.as_nanos()).unwrap_or(u64::MAX);
        self.since_mono_ns.saturating_add(hold_down_ns)
    }

    fn status(&self, hold_down: Duration, now_mono_ns: u64) -> HeldStatus {
        HeldStatus {
            verdict: self.state.verdict,
            cause: self.state.cause,
            due_ms: self.due_ns(hold_down).saturating_sub(now_mono_ns) / 1_000_000,
            detail: self.state.detail.clone(),
        }
    }
}

impl MemberState {
    /// The outgoing interface, as far as it is known.
    fn interface(&self) -> Option<&String> {
        let configured = self.config.interface.as_ref();
        self.path.interface.as_ref().or(configured)
    }

    /// The tracker that decides: the first with the member's own verdict. Every policy has one.
    fn deciding(&self) -> TrackerState {
        let slot = self
            .trackers
            .iter()
            .find(|slot| slot.shown.verdict == self.verdict);
        slot.map(|slot| slot.shown.clone()).unwrap_or_default()
    }
}

impl ServiceState {
    /// The member in use: the active one while up, else the standby one while up.
    fn selected(&self) -> Role {
        let up = |role| {
            self.members
                .iter()
                .any(|member| member.config.role == role && member.verdict == Verdict::Up)
        };
        if !up(Role::Active) && up(Role::Standby) {
            Role::Standby
        } else {
            Role::Active
        }
    }

    /// What decides: the selected member while up, else the first with the service's own verdict.
    fn deciding(&self) -> TrackerState {
        let selected = self.selected();
        let decides = |member: &&MemberState| {
            member.verdict == self.verdict
                && (self.verdict != Verdict::Up || member.config.role == selected)
        };
        let member = self.members.iter().find(decides);
        member.map(MemberState::deciding).unwrap_or_default()
    }
}

impl ServiceState {
    /// Reports the end of what was known of a service: whoever follows the events is not left with
    /// a verdict that nobody will change any more.
    fn retire(&self, seen: Seen, events: &mut Vec<Event>) {
        let mut end = |member, behind, from| {
            if from != Verdict::Unknown {
                let subject = Subject {
                    service: Some(&self.name),
                    member,
                    behind,
                    chain: None,
                };
                let why = TrackerState {
                    detail: Some("removed".to_owned()),
                    ..Default::default()
                };
                events.push(seen.event(subject, from, why, Verdict::Unknown));
            }
        };
        for member in &self.members {
            let role = Some(member.config.role);
            for (config, slot) in member.config.trackers.iter().zip(&member.trackers) {
                end(role, Some(config.behind), slot.shown.verdict);
            }
            if self.members.len() > 1 {
                end(role, None, member.verdict);
            }
        }
        end(None, None, self.verdict);
    }

    fn listed(&self) -> ListedService {
        let members = self.members.iter().map(|member| ListedMember {
            role: member.config.role,
            endpoint: member.config.endpoint,
            interface: member.interface().cloned(),
            behind: member
                .config
                .trackers
                .iter()
                .map(|tracker| tracker.behind)
                .collect(),
        });
        ListedService {
            name: self.name.to_string(),
            origin: self.origin,
            verdict: self.verdict,
            cause: self.deciding().cause,
            members: members.collect(),
        }
    }
}

/// What an event is about; everything else about it is its cause.
struct Subject<'a> {
    service: Option<&'a Arc<str>>,
    member: Option<Role>,
    behind: Option<IpAddr>,
    chain: Option<&'a Arc<str>>,
}

/// When and how fast a change was seen.
#[derive(Clone, Copy)]
struct Seen {
    now: Stamp,
    detection_ns: Option<u64>,
}

impl Seen {
    fn event(self, subject: Subject<'_>, from: Verdict, why: TrackerState, to: Verdict) -> Event {
        Event {
            time: self.now.wall,
            service: subject.service.cloned(),
            member: subject.member,
            behind: subject.behind,
            from,
            to,
            cause: why.cause,
            detection_us: self.detection_ns.map(|ns| ns / 1000),
            detail: why.detail.map(Arc::from),
            chain: subject.chain.cloned(),
            tracker: None,
        }
    }
}

impl StateTree {
    /// A tree on which nothing is known yet.
    pub fn new(config: &Config, now: Stamp) -> Self {
        let mut tree = Self {
            hub: String::new(),
            instance: String::new(),
            services: BTreeMap::new(),
            next: 0,
            chains: Vec::new(),
            flap_window_ns: 0,
            wall_offset_ns: None,
            generation: 0,
            due: BTreeSet::new(),
        };
        // Nothing was known before, so nothing can have changed.
        let _ = tree.replace(config, now, |_| Used::default());
        tree
    }

    /// A tree on which what `known` says of each service was reported or held back before, by a daemon that had this
    /// configuration and is gone.
    pub fn resume(config: &Config, now: Stamp, known: impl Fn(u32) -> Option<Shown>) -> Self {
        let mut tree = Self::new(config, now);
        let seen = Seen {
            now,
            detection_ns: None,
        };
        // It was all reported.
        let mut told = Vec::new();
        for number in tree.services.keys().copied().collect::<Vec<_>>() {
            let (Some(service), Some(known)) = (tree.services.get_mut(&number), known(number))
            else {
                continue;
            };
            for (at, (member, known)) in (0..).zip(service.members.iter_mut().zip(known.trackers)) {
                let slots = member.trackers.iter_mut().zip(&member.config.trackers);
                for (tracker, ((slot, config), (shown, held))) in (0..).zip(slots.zip(known)) {
                    (slot.shown, slot.held) = (shown, held);
                    if let Some(held) = &mut slot.held {
                        held.since_mono_ns = held.since_mono_ns.min(now.mono_ns);
                        let at = TrackerRef {
                            service: number,
                            member: at,
                            tracker,
                        };
                        tree.due.insert((held.due_ns(config.hold_down), at));
                    }
                }
                let shown = member.trackers.iter().map(|slot| slot.shown.verdict);
                member.tally = Tally::count(shown);
            }
            for member in 0..service.members.len() {
                tree.settle_member(number, member, seen, &mut told);
            }
            tree.settle_service(number, seen, &mut told);
            if let Some(service) = tree.services.get_mut(&number) {
                (service.since, service.flaps) = (known.since, known.flaps);
            }
        }
        tree.settle_chains(None, seen, &mut told);
        tree
    }

    /// What is reported of a service, and what is held back.
    pub fn shown(&self, service: u32) -> Option<Shown> {
        let service = self.services.get(&service)?;
        let members = service.members.iter().map(|member| {
            let slots = member.trackers.iter();
            slots
                .map(|slot| (slot.shown.clone(), slot.held.clone()))
                .collect()
        });
        Some(Shown {
            since: service.since,
            flaps: service.flaps.clone(),
            trackers: members.collect(),
        })
    }

    /// What is reported of a tracker.
    pub fn tracker(&self, at: TrackerRef) -> Option<&TrackerState> {
        let member = self
            .services
            .get(&at.service)?
            .members
            .get(at.member as usize)?;
        Some(&member.trackers.get(at.tracker as usize)?.shown)
    }

    /// What is held back of a tracker.
    pub fn held(&self, at: TrackerRef) -> Option<&Held> {
        let member = self
            .services
            .get(&at.service)?
            .members
            .get(at.member as usize)?;
        member.trackers.get(at.tracker as usize)?.held.as_ref()
    }

    /// Takes another configuration. Trackers that go on ([`diff`]) keep their state; so do members their path, and
    /// `used` says what they use. What is new is unknown, which may change the verdict of what contains it. What is gone
    /// is unknown from here on.
    pub fn replace(
        &mut self,
        config: &Config,
        now: Stamp,
        used: impl Fn(diff::Place) -> Used,
    ) -> Vec<Event> {
        self.generation += 1;
        self.keep_clock(now);
        self.hub.clone_from(&config.hub.name);
        self.instance.clone_from(&config.hub.instance);
        self.flap_window_ns = config.hub.flap_window.as_nanos() as u64;
        let pairs = {
            let old = self.services.iter().flat_map(|(number, service)| {
                let members = (0..).zip(&service.members);
                members.map(|(at, member)| ((*number, at), &*service.name, &member.config))
            });
            diff::members(old, &config.services, used)
        };
        let mut old_services: HashMap<Arc<str>, (u32, ServiceState)> =
            std::mem::take(&mut self.services)
                .into_iter()
                .map(|(number, service)| (service.name.clone(), (number, service)))
                .collect();
        let old_chains: HashMap<Arc<str>, Verdict> = self
            .chains
            .drain(..)
            .map(|chain| (chain.name, chain.verdict))
            .collect();

        self.services = (0..)
            .zip(&config.services)
            .map(|(number, service)| {
                let old = old_services.remove(service.name.as_str());
                let old = old.map(|(_, state)| state);
                let goes_on = |at| pairs.old((number, at)).map(|(_, at)| at);
                (number, service_state(service, old, goes_on, now))
            })
            .collect();
        self.next = config.services.len() as u32;
        let numbers: HashMap<&str, u32> = config
            .services
            .iter()
            .map(|service| service.name.as_str())
            .zip(0..)
            .collect();
        self.chains = config
            .chains
            .iter()
            .map(|chain| ChainState {
                name: chain.name.as_str().into(),
                services: chain
                    .services
                    .iter()
                    .filter_map(|name| numbers.get(name.as_str()).copied())
                    .collect(),
                verdict: old_chains
                    .get(chain.name.as_str())
                    .copied()
                    .unwrap_or_default(),
            })
            .collect();

        self.due.clear();
        for (&service, state) in &self.services {
            for (member, state) in state.members.iter().enumerate() {
                let slots = state.trackers.iter().zip(&state.config.trackers);
                for (tracker, (slot, config)) in slots.enumerate() {
                    if let Some(held) = &slot.held {
                        let at = TrackerRef {
                            service,
                            member: member as u32,
                            tracker: tracker as u32,
                        };
                        self.due.insert((held.due_ns(config.hold_down), at));
                    }
                }
            }
        }

        let mut events = Vec::new();
        let seen = Seen {
            now,
            detection_ns: None,
        };
        let mut gone: Vec<_> = old_services.into_values().collect();
        gone.sort_by_key(|(number, _)| *number);
        for (_, service) in &gone {
            service.retire(seen, &mut events);
        }
        for service in self.services.keys().copied().collect::<Vec<_>>() {
            for member in 0..self.services[&service].members.len() {
                self.settle_member(service, member, seen, &mut events);
            }
            self.settle_service(service, seen, &mut events);
        }
        // A chain may have lost or gained a service whose own verdict did not change.
        self.settle_chains(None, seen, &mut events);
        events
    }

    /// Takes one more service, of which nothing is known yet, and says its number. The name must be new.
    pub fn add(&mut self, service: &Service, now: Stamp) -> u32 {
        let number = self.next;
        self.next += 1;
        self.services
            .insert(number, service_state(service, None, |_| None, now));
        number
    }

    /// The service of this name.
    pub fn find(&self, name: &str) -> Option<u32> {
        let mut services = self.services.iter();
        services
            .find(|(_, service)| &*service.name == name)
            .map(|(number, _)| *number)
    }

    /// Takes a service off, which no chain may name; what was known of it is unknown from here on.
    pub fn remove(&mut self, service: u32, now: Stamp) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(gone) = self.services.remove(&service) {
            self.due.retain(|(_, at)| at.service != service);
            let seen = Seen {
                now,
                detection_ns: None,
            };
            gone.retire(seen, &mut events);
        }
        events
    }

    /// Moves every `since` along with a wall clock that was set, so that it tells the time of the change by the clock of
    /// now. Slewing (`adjtimex(2)`) is left alone until it adds up to a second: a time that is told stays the same.
    pub fn keep_clock(&mut self, now: Stamp) {
        let offset_ns = now.wall.as_nanosecond() - i128::from(now.boot_ns);
        let before_ns = *self.wall_offset_ns.get_or_insert(offset_ns);
        let step_ns = offset_ns - before_ns;
        if step_ns.abs() < CLOCK_STEP_NS {
            return;
        }
        self.wall_offset_ns = Some(offset_ns);
        for service in self.services.values_mut() {
            let since_ns = service.since.as_nanosecond() + step_ns;
            service.since = Timestamp::from_nanosecond(since_ns).unwrap_or(now.wall);
        }
    }

    /// Takes what was found of a tracker. `detection_ns` is the time from the first probe that
    /// showed it. Nothing happens when there is no such tracker (any more).
    pub fn tracker_changed(
        &mut self,
        at: TrackerRef,
        state: TrackerState,
        now: Stamp,
        detection_ns: Option<u64>,
    ) -> Vec<Event> {
        self.keep_clock(now);
        let mut events = Vec::new();
        let Some((hold_down, slot)) = self.slot(at) else {
            return events;
        };
        if state.verdict == slot.shown.verdict {
            // Back before it was reported, or only another cause for the same verdict.
            slot.shown = state;
            if let Some(held) = slot.held.take() {
                self.due.remove(&(held.due_ns(hold_down), at));
            }
            return events;
        }
        if hold_down.is_zero() {
            let seen = Seen { now, detection_ns };
            self.show(at, state, seen, &mut events);
            return events;
        }
        match &mut slot.held {
            // A hub that does not keep up is not why somebody is down.
            Some(held) if held.state.verdict == state.verdict => {
                if state.cause != Cause::Stalled {
                    held.state = state;
                }
            }
            held => {
                let new = Held {
                    state,
                    since_mono_ns: now.mono_ns,
                    detection_ns,
                };
                let due_ns = new.due_ns(hold_down);
                if let Some(before) = held.replace(new) {
                    self.due.remove(&(before.due_ns(hold_down), at));
                }
                self.due.insert((due_ns, at));
            }
        }
        events
    }

    /// When, by the monotonic clock, [`Self::tick`] next has something to do.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due_mono_ns, _)| *due_mono_ns)
    }

    /// Reports the changes that have lasted for their `hold_down`.
    pub fn tick(&mut self, now: Stamp) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(&(due_mono_ns, at)) = self.due.first() {
            if due_mono_ns > now.mono_ns {
                break;
            }
            self.due.pop_first();
            let Some(held) = self.slot(at).and_then(|(_, slot)| slot.held.take()) else {
                continue;
            };
            // The wait is part of how long the report took.
            let waited_ns = now.mono_ns.saturating_sub(held.since_mono_ns);
            let detection_ns = held.detection_ns.map(|ns| ns.saturating_add(waited_ns));
            let seen = Seen { now, detection_ns };
            self.show(at, held.state, seen, &mut events);
        }
        events
    }

    /// Takes how a member's probes go out. Nothing happens when there is no such member.
    pub fn member_path(&mut self, service: u32, member: u32, path: MemberPath) {
        let member = self
            .services
            .get_mut(&service)
            .and_then(|service| service.members.get_mut(member as usize));
        if let Some(member) = member {
            member.path = path;
        }
    }

    /// A number that is different after each [`Self::replace`], which may give services other numbers.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The services by their numbers, in the order in which they are reported.
    pub fn numbers(&self) -> Vec<u32> {
        self.services.keys().copied().collect()
    }

    /// Everything that is known, put together at once. `counters` is asked for each tracker once.
    pub fn whole_status(&self, now: Stamp, counters: impl Fn(TrackerRef) -> Counters) -> Status {
        let (mut status, numbers) = self.outline_of(None, self.numbers());
        let (mut cursor, into) = (Cursor::default(), &mut status.services);
        while self.status_slice(&numbers, &mut cursor, usize::MAX, now, &counters, into) {}
        status
    }

    /// A status of everything, or of the service `name`, or of the chain `name` and its services, that lacks the
    /// services: these are to be added by [`Self::status_slice`], by their numbers, while the generation is the same.
    ///
    /// # Errors
    /// When nothing has this name; the error says what there is.
    pub fn outline(&self, name: Option<&str>) -> Result<(Status, Vec<u32>, u64), String> {
        let Some(name) = name else {
            let (status, numbers) = self.outline_of(None, self.numbers());
            return Ok((status, numbers, self.generation));
        };
        let chain = self.chains.iter().find(|chain| &*chain.name == name);
        let service = self.find(name);
        if chain.is_none() && service.is_none() {
            return Err(self.no_such(name));
        }
        let mut numbers: Vec<u32> = chain
            .map(|chain| chain.services.clone())
            .unwrap_or_default();
        numbers.extend(service.filter(|service| !numbers.contains(service)));
        let (status, numbers) = self.outline_of(Some(chain), numbers);
        Ok((status, numbers, self.generation))
    }

    fn outline_of(
        &self,
        chain: Option<Option<&ChainState>>,
        numbers: Vec<u32>,
    ) -> (Status, Vec<u32>) {
        let chains = match chain {
            None => self.chains.iter().map(ChainState::status).collect(),
            Some(chain) => chain.map(ChainState::status).into_iter().collect(),
        };
        let status = Status {
            hub: self.hub.clone(),
            instance: self.instance.clone(),
            services: Vec::with_capacity(numbers.len()),
            chains,
            steering: None,
            lateness_us: LatenessUs::default(),
            stalls: 0,
            run: String::new(),
            as_of_ms: 0,
        };
        (status, numbers)
    }

    /// Adds the next services of `numbers` to a status, about `limit` trackers at a time; a service of more trackers
    /// is taken up in the middle. Returns whether there is more. `counters` is asked for each tracker once.
    pub fn status_slice(
        &self,
        numbers: &[u32],
        cursor: &mut Cursor,
        limit: usize,
        now: Stamp,
        counters: impl Fn(TrackerRef) -> Counters,
        into: &mut Vec<ServiceStatus>,
    ) -> bool {
        let mut left = limit;
        while let Some(number) = numbers.get(cursor.service) {
            if left == 0 {
                return true;
            }
            let Some(service) = self.services.get(number) else {
                // Removed meanwhile; what was taken of it is still what it was.
                cursor.next_service();
                continue;
            };
            if (cursor.member, cursor.tracker) == (0, 0) {
                // It has at least one tracker, which is taken in the same slice.
                into.push(self.service_status(service, now));
            }
            let status = into.last_mut();
            let status = status.and_then(|status| status.members.get_mut(cursor.member));
            let (Some(member), Some(status)) = (service.members.get(cursor.member), status) else {
                cursor.next_service();
                continue;
            };
            let from = cursor.tracker.min(member.trackers.len());
            let to = from.saturating_add(left).min(member.trackers.len());
            for at in from..to {
                let (Some(config), Some(slot)) =
                    (member.config.trackers.get(at), member.trackers.get(at))
                else {
                    break;
                };
                let proof = member.path.proofs.get(at).copied().unwrap_or_default();
                let at = TrackerRef {
                    service: *number,
                    member: cursor.member as u32,
                    tracker: at as u32,
                };
                let counters = counters(at);
                status
                    .trackers
                    .push(tracker_status(config, slot, now.mono_ns, proof, &counters));
            }
            left -= to - from;
            cursor.tracker = to;
            if to == member.trackers.len() {
                (cursor.member, cursor.tracker) = (cursor.member + 1, 0);
                if cursor.member == service.members.len() {
                    cursor.next_service();
                }
            }
        }
        false
    }

    /// What `tracker service list` shows of these services.
    pub fn list(&self, numbers: &[u32]) -> Vec<ListedService> {
        let services = numbers
            .iter()
            .filter_map(|number| self.services.get(number));
        services.map(ServiceState::listed).collect()
    }

    fn no_such(&self, name: &str) -> String {
        let list = |kind: &str, names: &mut dyn Iterator<Item = &Arc<str>>| {
            let names: Vec<&str> = names.map(|name| &**name).collect();
            match names.as_slice() {
                [] => None,
                [name] => Some(format!("the {kind} {name}")),
                names => Some(format!("the {kind}s {}", names.join(", "))),
            }
        };
        let services = list(
            "service",
            &mut self.services.values().map(|service| &service.name),
        );
        let chains = list("chain", &mut self.chains.iter().map(|chain| &chain.name));
        let known: Vec<_> = services.into_iter().chain(chains).collect();
        let known = if known.is_empty() {
            "none at all".to_owned()
        } else {
            known.join(" and ")
        };
        format!("no service or chain is named {name:?}; this hub has {known}")
    }

    /// A tracker and its `hold_down`.
    fn slot(&mut self, at: TrackerRef) -> Option<(Duration, &mut TrackerSlot)> {
        let member = self
            .services
            .get_mut(&at.service)?
            .members
            .get_mut(at.member as usize)?;
        let hold_down = member.config.trackers.get(at.tracker as usize)?.hold_down;
        Some((hold_down, member.trackers.get_mut(at.tracker as usize)?))
    }

    /// Reports a tracker's new verdict, and what follows from it: tracker, member, service, chain.
    fn show(&mut self, at: TrackerRef, state: TrackerState, seen: Seen, events: &mut Vec<Event>) {
        let (number, index) = (at.service, at.member as usize);
        let Some(service) = self.services.get_mut(&number) else {
            return;
        };
        let name = &service.name;
        let member = &mut service.members[index];
        let slot = &mut member.trackers[at.tracker as usize];
        let (from, to) = (slot.shown.verdict, state.verdict);
        slot.shown = state.clone();
        *member.tally.of(from) -= 1;
        *member.tally.of(to) += 1;
        let subject = Subject {
            service: Some(name),
            member: Some(member.config.role),
            behind: Some(member.config.trackers[at.tracker as usize].behind),
            chain: None,
        };
        events.push(Event {
            tracker: Some((at.member, at.tracker)),
            ..seen.event(subject, from, state, to)
        });
        self.settle_member(number, index, seen, events);
        if self.settle_service(number, seen, events) {
            self.settle_chains(Some(number), seen, events);
        }
    }

    fn settle_member(&mut self, service: u32, index: usize, seen: Seen, events: &mut Vec<Event>) {
        let Some(service) = self.services.get_mut(&service) else {
            return;
        };
        // The only member's change is the service's own.
        let own = service.members.len() > 1;
        let member = &mut service.members[index];
        let (from, to) = (member.verdict, member.tally.by(member.config.policy));
        if from == to {
            return;
        }
        member.verdict = to;
        if own {
            let subject = Subject {
                service: Some(&service.name),
                member: Some(member.config.role),
                behind: None,
                chain: None,
            };
            events.push(seen.event(subject, from, member.deciding(), to));
        }
    }

    /// Whether the service's verdict changed.
    fn settle_service(&mut self, service: u32, seen: Seen, events: &mut Vec<Event>) -> bool {
        let Some(service) = self.services.get_mut(&service) else {
            return false;
        };
        let from = service.verdict;
        let to = Tally::count(service.members.iter().map(|member| member.verdict)).any();
        if from == to {
            return false;
        }
        service.verdict = to;
        service.since = seen.now.wall;
        if from != Verdict::Unknown {
            service.flaps.note(seen.now.mono_ns);
        }
        let subject = Subject {
            service: Some(&service.name),
            member: None,
            behind: None,
            chain: None,
        };
        events.push(seen.event(subject, from, service.deciding(), to));
        true
    }

    /// Settles the chains that contain `service`, or all.
    fn settle_chains(&mut self, service: Option<u32>, seen: Seen, events: &mut Vec<Event>) {
        for chain in &mut self.chains {
            if service.is_some_and(|service| !chain.services.contains(&service)) {
                continue;
            }
            let services = chain
                .services
                .iter()
                .filter_map(|service| self.services.get(service));
            let verdicts = services.clone().map(|service| service.verdict);
            let (from, to) = (chain.verdict, Tally::count(verdicts).all());
            if from == to {
                continue;
            }
            chain.verdict = to;
            let why = services
                .clone()
                .find(|service| service.verdict == to)
                .map(ServiceState::deciding)
                .unwrap_or_default();
            let subject = Subject {
                service: None,
                member: None,
                behind: None,
                chain: Some(&chain.name),
            };
            events.push(seen.event(subject, from, why, to));
        }
    }

    /// The status of a service without its trackers.
    fn service_status(&self, service: &ServiceState, now: Stamp) -> ServiceStatus {
        let members = service.members.iter().map(|member| MemberStatus {
            role: member.config.role,
            endpoint: member.config.endpoint,
            interface: member.interface().cloned(),
            mode: member.path.mode,
            verdict: member.verdict,
            cause: member.deciding().cause,
            trackers: Vec::new(),
            send: member.path.send,
            steered: None,
            replied: None,
            last_verdict: None,
        });
        ServiceStatus {
            name: service.name.to_string(),
            verdict: service.verdict,
            cause: service.deciding().cause,
            since: service.since,
            selected: service.selected(),
            members: members.collect(),
            steered: None,
            replied: None,
            flaps: service.flaps.recent(now.mono_ns, self.flap_window_ns),
            flaps_total: service.flaps.total,
            last_verdict: None,
        }
    }
}

impl ChainState {
    fn status(&self) -> ChainStatus {
        ChainStatus {
            name: self.name.to_string(),
            verdict: self.verdict,
            last_verdict: None,
        }
    }
}

fn tracker_status(
    config: &Tracker,
    slot: &TrackerSlot,
    now_mono_ns: u64,
    proof: Proof,
    counters: &Counters,
) -> TrackerStatus {
    let state = &slot.shown;
    let held = slot.held.as_ref();
    TrackerStatus {
        behind: config.behind,
        probe: config.probe,
        verdict: state.verdict,
        cause: state.cause,
        sent: counters.sent,
        received: counters.received,
        lost: counters.lost,
        duplicate: counters.duplicate,
        rtt_us: RttUs::from(counters),
        late: counters.late,
        corrupt: counters.corrupt,
        wrong_path: counters.wrong_path,
        elsewhere: counters.elsewhere,
        skipped: counters.skipped,
        void: counters.void,
        proof,
        port: config.port,
        return_ttl: counters.return_ttl,
        return_mac: counters.return_mac.map(mac),
        protocol: Some(config.protocol).filter(|protocol| *protocol != Protocol::Echo),
        detail: state.detail.clone(),
        held: held.map(|held| held.status(config.hold_down, now_mono_ns)),
        last_verdict: None,
    }
}

/// As people write it.
fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// A service's state in a new configuration, with what the old one knew of it; `goes_on` says which of its old members
/// a new one is.
fn service_state(
    config: &Service,
    old: Option<ServiceState>,
    goes_on: impl Fn(u32) -> Option<u32>,
    now: Stamp,
) -> ServiceState {
    let (verdict, since, flaps, old_members) = match old {
        Some(old) => (old.verdict, old.since, old.flaps, old.members),
        None => (Verdict::Unknown, now.wall, Flaps::default(), Vec::new()),
    };
    let mut old_members: Vec<_> = old_members.into_iter().map(Some).collect();
    let members = (0..).zip(&config.members).map(|(at, member)| {
        let old = goes_on(at).and_then(|old| old_members.get_mut(old as usize)?.take());
        member_state(member, old)
    });
    ServiceState {
        name: config.name.as_str().into(),
        origin: config.origin,
        members: members.collect(),
        verdict,
        since,
        flaps,
    }
}

fn member_state(config: &Member, old: Option<MemberState>) -> MemberState {
    let (path, verdict, old_config, old_trackers) = match old {
        Some(old) => (old.path, old.verdict, old.config.trackers, old.trackers),
        None => Default::default(),
    };
    let pairs = diff::trackers(&old_config, &config.trackers).into_iter();
    let trackers: Vec<TrackerSlot> = pairs
        .map(|old| old_trackers.get(old?).cloned())
        .map(Option::unwrap_or_default)
        .collect();
    MemberState {
        config: config.clone(),
        path,
        tally: Tally::count(trackers.iter().map(|slot| slot.shown.verdict)),
        trackers,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config;

    impl StateTree {
        /// Everything that is known, at a time of the monotonic clock.
        fn status_at(&self, mono_ns: u64, counters: impl Fn(TrackerRef) -> Counters) -> Status {
            self.status_by(None, usize::MAX, mono_ns, counters).unwrap()
        }

        /// Everything that is known.
        fn status(&self, counters: impl Fn(TrackerRef) -> Counters) -> Status {
            self.status_at(0, counters)
        }

        fn status_of(
            &self,
            name: &str,
            counters: impl Fn(TrackerRef) -> Counters,
        ) -> Result<Status, String> {
            self.status_by(Some(name), usize::MAX, 0, counters)
        }

        /// Puts a status together in slices of so many trackers.
        fn status_by(
            &self,
            name: Option<&str>,
            limit: usize,
            mono_ns: u64,
            counters: impl Fn(TrackerRef) -> Counters,
        ) -> Result<Status, String> {
            let now = Stamp {
                mono_ns,
                boot_ns: mono_ns,
                wall: Timestamp::UNIX_EPOCH,
            };
            let (mut status, numbers, _) = self.outline(name)?;
            let (mut cursor, into) = (Cursor::default(), &mut status.services);
            while self.status_slice(&numbers, &mut cursor, limit, now, &counters, into) {}
            Ok(status)
        }
    }

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Stamp {
        Stamp {
            mono_ns: ms * MS,
            boot_ns: ms * MS,
            wall: Timestamp::from_millisecond(1_767_225_600_000 + ms as i64).unwrap(),
        }
    }

    fn place(service: u32, member: u32, tracker: u32) -> TrackerRef {
        TrackerRef {
            service,
            member,
            tracker,
        }
    }

    fn state(verdict: Verdict) -> TrackerState {
        let cause = match verdict {
            Verdict::Up => Cause::Replied,
            Verdict::Down | Verdict::Unknown => Cause::NoReply,
        };
        TrackerState {
            verdict,
            cause,
            detail: None,
        }
    }

    fn unused(_: diff::Place) -> Used {
        Used::default()
    }

    fn read(text: &str) -> Config {
        config::parse(text, Path::new("hub.toml")).unwrap()
    }

    /// A service of one member with `count` trackers.
    fn single(name: &str, policy: &str, count: usize) -> String {
        let behind: Vec<_> = (1..=count)
            .map(|last| format!("\"10.20.0.{last}\""))
            .collect();
        format!(
            "[[service]]\nname = \"{name}\"\nendpoint = \"10.9.0.2\"\npolicy = {policy}\nbehind = [{}]\n",
            behind.join(",")
        )
    }

    const PAIR: &str = r#"
[[service]]
name = "pair"
[[service.member]]
role = "active"
endpoint = "10.9.1.2"
interface = "eth2"
behind = ["10.20.1.9"]
[[service.member]]
role = "standby"
endpoint = "10.9.2.2"
behind = ["10.20.2.9"]
"#;

    /// An event as a short line: subject, change, cause.
    fn short(event: &Event) -> String {
        let part = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let subject = match &event.chain {
            Some(chain) => format!("chain {chain}"),
            None => format!(
                "{} {} {}",
                part(event.service.as_ref().map(|name| name.to_string())),
                part(event.member.map(|member| member.to_string())),
                part(event.behind.map(|behind| behind.to_string()))
            ),
        };
        let (from, to) = (event.from.as_str(), event.to.as_str());
        format!("{subject} {from}>{to} {}", event.cause.as_str())
    }

    fn shorts(events: &[Event]) -> Vec<String> {
        events.iter().map(short).collect()
    }

    #[test]
    fn flaps_are_counted_while_they_are_recent() {
        let text = format!(
            "[hub]\nflap_window = \"10s\"\n{}",
            single("fw", "\"any\"", 1)
        );
        let config = read(&text);
        let mut tree = StateTree::new(&config, at(0));
        let flaps = |tree: &mut StateTree, ms: u64| {
            let status = tree.status_at(ms * MS, |_| Counters::default());
            (status.services[0].flaps, status.services[0].flaps_total)
        };
        let verdicts = [Verdict::Up, Verdict::Down, Verdict::Up, Verdict::Unknown];
        for (second, verdict) in (1u64..).zip(verdicts) {
            let found = state(verdict);
            tree.tracker_changed(place(0, 0, 0), found, at(second * 1000), None);
        }
        // Not the first decision: nothing was left for it.
        assert_eq!(flaps(&mut tree, 4_000), (3, 3));
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(5_000), None);
        assert_eq!(flaps(&mut tree, 12_000), (3, 3));
        assert_eq!(flaps(&mut tree, 12_001), (2, 3));
        // A reload forgets none.
        tree.replace(&config, at(13_000), unused);
        assert_eq!(flaps(&mut tree, 13_001), (1, 3));
        assert_eq!(flaps(&mut tree, 14_001), (0, 3));
        for flap in 0..2 * FLAPS_MAX as u64 {
            let verdict = [Verdict::Down, Verdict::Up][flap as usize % 2];
            tree.tracker_changed(place(0, 0, 0), state(verdict), at(15_000 + flap), None);
        }
        assert_eq!(flaps(&mut tree, 17_100), (1024, 2051));
    }

    /// A status put together in slices of any size is the one that is put together at once.
    #[test]
    fn slices_make_the_whole_status() {
        let mut text = String::new();
        for (name, trackers) in [("a", 1), ("b", 7), ("c", 1), ("d", 3)] {
            text.push_str(&single(name, "\"any\"", trackers));
        }
        text.push_str("[[chain]]\nname = \"net\"\nservices = [\"b\", \"d\"]\n");
        let mut tree = StateTree::new(&read(&text), at(0));
        tree.tracker_changed(place(1, 0, 3), state(Verdict::Up), at(1), None);
        let counters = |at: TrackerRef| Counters {
            sent: u64::from(at.service * 100 + at.tracker),
            ..Counters::default()
        };
        for name in [None, Some("net"), Some("b")] {
            let whole = tree.status_by(name, usize::MAX, 0, counters).unwrap();
            for limit in 1..12 {
                let sliced = tree.status_by(name, limit, 0, counters).unwrap();
                assert_eq!(sliced, whole, "{limit}");
            }
        }
        // No slice looks at more trackers than it is allowed to.
        let (mut status, numbers, _) = tree.outline(None).unwrap();
        let (mut cursor, asked) = (Cursor::default(), std::cell::Cell::new(0));
        let counted = |at: TrackerRef| {
            asked.set(asked.get() + 1);
            counters(at)
        };
        let mut slices = 0;
        loop {
            asked.set(0);
            let into = &mut status.services;
            let more = tree.status_slice(&numbers, &mut cursor, 3, at(0), counted, into);
            assert!(asked.get() <= 3, "{}", asked.get());
            slices += 1;
            if !more {
                break;
            }
        }
        assert!(slices >= 4, "{slices}");
        // A service that goes meanwhile leaves the others whole.
        let (mut status, numbers, _) = tree.outline(None).unwrap();
        let (mut cursor, into) = (Cursor::default(), &mut status.services);
        tree.status_slice(&numbers, &mut cursor, 4, at(0), counters, into);
        tree.remove(1, at(2));
        while tree.status_slice(&numbers, &mut cursor, 4, at(0), counters, into) {}
        let names: Vec<_> = into.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!(into[3].members[0].trackers.len(), 3);
    }

    #[test]
    fn policies_decide_as_the_contract_says() {
        use Verdict::{Down as D, Unknown as U, Up as P};
        let cases = [
            ("\"any\"", [U, U, U], U),
            ("\"any\"", [D, U, D], U),
            ("\"any\"", [D, P, U], P),
            ("\"any\"", [D, D, D], D),
            ("\"all\"", [P, P, P], P),
            ("\"all\"", [P, U, P], U),
            ("\"all\"", [P, U, D], D),
            ("2", [P, U, U], U),
            ("2", [P, U, P], P),
            ("2", [P, U, D], U),
            ("2", [D, U, D], D),
            ("2", [D, P, D], D),
            ("2", [U, U, D], U),
        ];
        for (policy, verdicts, expected) in cases {
            let mut tree = StateTree::new(&read(&single("fw", policy, 3)), at(0));
            for (tracker, verdict) in (0..).zip(verdicts) {
                tree.tracker_changed(place(0, 0, tracker), state(verdict), at(1), None);
            }
            let status = tree.status(|_| Counters::default());
            let service = &status.services[0];
            assert_eq!(
                service.members[0].verdict, expected,
                "{policy} {verdicts:?}"
            );
            assert_eq!(service.verdict, expected);
        }
    }

    #[test]
    fn the_cause_is_that_of_the_tracker_that_decides() {
        let mut tree = StateTree::new(&read(&single("fw", "\"all\"", 3)), at(0));
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(1), None);
        let refused = TrackerState {
            verdict: Verdict::Down,
            cause: Cause::Unreachable,
            detail: Some("type 3".to_owned()),
        };
        let events = tree.tracker_changed(place(0, 0, 2), refused, at(2), Some(5_999));
        assert_eq!(
            shorts(&events),
            [
                "fw active 10.20.0.3 unknown>down unreachable",
                "fw - - unknown>down unreachable"
            ]
        );
        for event in &events {
            assert_eq!(event.detail.as_deref(), Some("type 3"));
            assert_eq!(event.detection_us, Some(5));
            assert_eq!(event.time, at(2).wall);
        }
        let status = tree.status(|_| Counters::default());
        let service = &status.services[0];
        assert_eq!(service.cause, Cause::Unreachable);
        assert_eq!(service.members[0].cause, Cause::Unreachable);
        assert_eq!(service.members[0].trackers[1].cause, Cause::NoReply);
        assert_eq!(service.since, at(2).wall);
    }

    #[test]
    fn a_pair_is_up_by_either_member_and_says_which_is_in_use() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"pair\", \"fw\"]\n";
        let text = format!("{PAIR}{}{chain}", single("fw", "\"any\"", 1));
        let mut tree = StateTree::new(&read(&text), at(0));
        let selected = |tree: &StateTree| tree.status(|_| Counters::default()).services[0].selected;
        assert_eq!(selected(&tree), Role::Active);
        let mut tell = |service, member, verdict| {
            let events =
                tree.tracker_changed(place(service, member, 0), state(verdict), at(1), None);
            (shorts(&events), selected(&tree))
        };
        let lines = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            tell(0, 1, Verdict::Up),
            (
                lines(&[
                    "pair standby 10.20.2.9 unknown>up replied",
                    "pair standby - unknown>up replied",
                    "pair - - unknown>up replied",
                ]),
                Role::Standby
            )
        );
        assert_eq!(
            tell(0, 0, Verdict::Up),
            (
                lines(&[
                    "pair active 10.20.1.9 unknown>up replied",
                    "pair active - unknown>up replied",
                ]),
                Role::Active
            )
        );
        assert_eq!(
            tell(1, 0, Verdict::Up),
            (
                lines(&[
                    "fw active 10.20.0.1 unknown>up replied",
                    "fw - - unknown>up replied",
                    "chain net unknown>up replied",
                ]),
                Role::Active
            )
        );
        assert_eq!(
            tell(0, 0, Verdict::Down),
            (
                lines(&[
                    "pair active 10.20.1.9 up>down no-reply",
                    "pair active - up>down no-reply",
                ]),
                Role::Standby
            )
        );
        assert_eq!(
            tell(0, 1, Verdict::Down),
            (
                lines(&[
                    "pair standby 10.20.2.9 up>down no-reply",
                    "pair standby - up>down no-reply",
                    "pair - - up>down no-reply",
                    "chain net up>down no-reply",
                ]),
                Role::Active
            )
        );
        // A chain with a service that is down is down, whatever is unknown of the others.
        assert_eq!(
            tell(1, 0, Verdict::Unknown).0,
            lines(&[
                "fw active 10.20.0.1 up>unknown no-reply",
                "fw - - up>unknown no-reply"
            ])
        );
    }

    #[test]
    fn another_cause_for_the_same_verdict_is_no_event() {
        let mut tree = StateTree::new(&read(&single("fw", "\"any\"", 1)), at(0));
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(1), None);
        let stalled = TrackerState {
            cause: Cause::Stalled,
            ..state(Verdict::Up)
        };
        let events = tree.tracker_changed(place(0, 0, 0), stalled, at(2), None);
        assert_eq!(events, []);
        let status = tree.status(|_| Counters::default());
        assert_eq!(status.services[0].cause, Cause::Stalled);
        assert_eq!(status.services[0].since, at(1).wall);
    }

    #[test]
    fn a_stall_is_not_why_a_held_service_is_down() {
        let text = format!("{}hold_down = \"100ms\"\n", single("fw", "\"any\"", 1));
        let mut tree = StateTree::new(&read(&text), at(0));
        let down = state(Verdict::Down);
        let stalled = TrackerState {
            cause: Cause::Stalled,
            ..down.clone()
        };
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(1), None);
        tree.tick(at(200));
        tree.tracker_changed(place(0, 0, 0), down.clone(), at(300), None);
        tree.tracker_changed(place(0, 0, 0), stalled, at(390), None);
        let told = tree.tick(at(400));
        assert!(!told.is_empty());
        assert!(
            told.iter().all(|event| event.cause == down.cause),
            "{told:?}"
        );
    }

    #[test]
    fn places_that_do_not_exist_are_ignored() {
        let mut tree = StateTree::new(&read(&single("fw", "\"any\"", 1)), at(0));
        for place in [place(1, 0, 0), place(0, 1, 0), place(0, 0, 1)] {
            assert_eq!(
                tree.tracker_changed(place, state(Verdict::Up), at(1), None),
                []
            );
        }
        tree.member_path(0, 1, MemberPath::default());
        tree.member_path(1, 0, MemberPath::default());
    }

    #[test]
    fn a_change_is_held_down_until_it_lasted() {
        let text = format!("{}hold_down = \"100ms\"\n", single("fw", "\"any\"", 1));
        let mut tree = StateTree::new(&read(&text), at(0));
        let only = place(0, 0, 0);
        let verdict = |tree: &StateTree| tree.status(|_| Counters::default()).services[0].verdict;
        assert_eq!(
            tree.tracker_changed(only, state(Verdict::Up), at(10), Some(MS)),
            []
        );
        assert_eq!(verdict(&tree), Verdict::Unknown);
        assert_eq!(tree.next_due(), Some(110 * MS));
        assert_eq!(tree.tick(at(109)), []);
        let events = tree.tick(at(111));
        assert_eq!(
            shorts(&events),
            [
                "fw active 10.20.0.1 unknown>up replied",
                "fw - - unknown>up replied"
            ]
        );
        assert_eq!(events[0].detection_us, Some(102_000));
        assert_eq!((events[0].time, tree.next_due()), (at(111).wall, None));

        // A flap that does not last is not reported.
        assert_eq!(
            tree.tracker_changed(only, state(Verdict::Down), at(200), None),
            []
        );
        assert_eq!(
            tree.tracker_changed(only, state(Verdict::Up), at(299), None),
            []
        );
        assert_eq!((tree.next_due(), tree.tick(at(400))), (None, vec![]));

        // Another cause for the held verdict does not start anew; another verdict does.
        tree.tracker_changed(only, state(Verdict::Down), at(500), None);
        let refused = TrackerState {
            cause: Cause::Refused,
            ..state(Verdict::Down)
        };
        tree.tracker_changed(only, refused, at(550), None);
        assert_eq!(tree.next_due(), Some(600 * MS));
        tree.tracker_changed(only, state(Verdict::Unknown), at(560), None);
        assert_eq!(tree.next_due(), Some(660 * MS));
        assert_eq!(tree.tick(at(659)), []);
        assert_eq!(shorts(&tree.tick(at(660)))[1], "fw - - up>unknown no-reply");
    }

    #[test]
    fn status_has_paths_counters_and_names() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"fw\"]\n";
        let hub = "[hub]\nname = \"hub-1\"\ninstance = \"blue\"\n";
        let text = format!("{hub}{PAIR}{}{chain}", single("fw", "\"any\"", 2));
        let mut tree = StateTree::new(&read(&text), at(0));
        let path = MemberPath {
            interface: Some("eth9".to_owned()),
            mode: Some(Mode::XdpGeneric),
            send: Some(SendWay::TcRedirect),
            proofs: Vec::new(),
        };
        tree.member_path(0, 1, path);
        let counters = |place: TrackerRef| Counters {
            sent: u64::from(place.service * 100 + place.member * 10 + place.tracker),
            ..Counters::default()
        };
        let status = tree.status(counters);
        assert_eq!(
            (status.hub.as_str(), status.instance.as_str()),
            ("hub-1", "blue")
        );
        let [active, standby] = status.services[0].members.as_slice() else {
            panic!("{status:?}");
        };
        assert_eq!(
            (active.interface.as_deref(), active.mode),
            (Some("eth2"), None)
        );
        assert_eq!(standby.interface.as_deref(), Some("eth9"));
        assert_eq!(standby.mode, Some(Mode::XdpGeneric));
        assert_eq!(standby.send, Some(SendWay::TcRedirect));
        assert_eq!(standby.trackers[0].sent, 10);
        assert_eq!(status.services[1].members[0].trackers[1].sent, 101);

        let one = tree.status_of("pair", counters).unwrap();
        assert_eq!((one.services.len(), one.chains.len()), (1, 0));
        assert_eq!(one.services[0], status.services[0]);
        let chain = tree.status_of("net", counters).unwrap();
        assert_eq!(
            (chain.services[0].name.as_str(), chain.chains.len()),
            ("fw", 1)
        );
        assert_eq!(
            tree.status_of("x", counters).unwrap_err(),
            "no service or chain is named \"x\"; this hub has the services pair, fw and the chain net"
        );
    }

    #[test]
    fn a_new_configuration_keeps_what_is_the_same() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"a\", \"b\"]\n";
        let (a, b) = (single("a", "\"all\"", 2), single("b", "\"any\"", 1));
        let mut tree = StateTree::new(&read(&format!("{a}{b}{chain}")), at(0));
        for place in [place(0, 0, 0), place(0, 0, 1), place(1, 0, 0)] {
            tree.tracker_changed(place, state(Verdict::Up), at(1), None);
        }
        let path = MemberPath {
            interface: Some("eth1".to_owned()),
            ..MemberPath::default()
        };
        tree.member_path(0, 0, path);
        let before = tree.status(|_| Counters::default());
        assert_eq!(
            tree.replace(&read(&format!("{a}{b}{chain}")), at(2), unused),
            []
        );
        assert_eq!(tree.status(|_| Counters::default()), before);

        // In another order, and beside a new one.
        let c = single("c", "\"any\"", 1);
        assert_eq!(
            tree.replace(&read(&format!("{c}{b}{a}{chain}")), at(3), unused),
            []
        );
        let after = tree.status(|_| Counters::default());
        assert_eq!(after.services[0].verdict, Verdict::Unknown);
        assert_eq!(after.services[2], before.services[0]);
        assert_eq!(after.services[1], before.services[1]);
        assert_eq!(after.chains, before.chains);

        // A third tracker is unknown, and so is what needs all three.
        let events = tree.replace(
            &read(&format!("{}{b}{chain}", single("a", "\"all\"", 3))),
            at(4),
            unused,
        );
        assert_eq!(
            shorts(&events),
            ["a - - up>unknown no-reply", "chain net up>unknown no-reply"]
        );
        let status = tree.status(|_| Counters::default());
        let member = &status.services[0].members[0];
        let verdicts: Vec<_> = member
            .trackers
            .iter()
            .map(|tracker| tracker.verdict)
            .collect();
        assert_eq!(verdicts, [Verdict::Up, Verdict::Up, Verdict::Unknown]);
        assert_eq!(member.interface.as_deref(), Some("eth1"));
        assert_eq!(status.services[0].since, at(4).wall);
        assert_eq!(status.services[1].since, at(1).wall);

        // Nor does what changes no packet begin anew.
        let slower =
            format!("{b}interval = \"2s\"\nfall = 7\ninterface = \"eth7\"\nreturns = [\"eth7\"]\n");
        let eth7 = |_| Used {
            interface: vec!["eth7".to_owned()],
            sources: Vec::new(),
        };
        let mut other = tree.clone();
        assert_eq!(
            shorts(&other.replace(&read(&slower), at(5), eth7)),
            [
                "a active 10.20.0.1 up>unknown no-reply",
                "a active 10.20.0.2 up>unknown no-reply",
            ]
        );

        // A tracker with another payload is another tracker. What is gone says so.
        let faster = format!("{b}payload = 100\n");
        let events = tree.replace(&read(&faster), at(5), unused);
        assert_eq!(
            shorts(&events),
            [
                "a active 10.20.0.1 up>unknown no-reply",
                "a active 10.20.0.2 up>unknown no-reply",
                "b - - up>unknown no-reply"
            ]
        );
        assert_eq!(events[0].detail.as_deref(), Some("removed"));
    }

    #[test]
    fn a_board_goes_on_from_what_was_shown() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"a\", \"b\"]\n";
        let (a, b) = (single("a", "\"all\"", 2), single("b", "\"any\"", 1));
        let config = read(&format!("{a}{b}{PAIR}{chain}"));
        let mut tree = StateTree::new(&config, at(0));
        for place in [place(0, 0, 0), place(0, 0, 1), place(1, 0, 0)] {
            tree.tracker_changed(place, state(Verdict::Up), at(1), None);
        }
        tree.tracker_changed(place(2, 1, 0), state(Verdict::Down), at(2), None);
        let shown: Vec<_> = (0..3).filter_map(|number| tree.shown(number)).collect();
        let resumed =
            StateTree::resume(&config, at(9), |number| shown.get(number as usize).cloned());
        let status = |tree: &StateTree| tree.status(|_| Counters::default());
        assert_eq!(status(&resumed), status(&tree));
        let mut trees = [tree, resumed];
        let [before, after] = trees
            .each_mut()
            .map(|tree| tree.tracker_changed(place(0, 0, 1), state(Verdict::Down), at(10), None));
        assert_eq!(before, after);
        assert_eq!(after[0].tracker, Some((0, 1)));
    }

    #[test]
    fn services_come_and_go_beside_the_others() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"b\"]\n";
        let (a, b) = (single("a", "\"any\"", 1), single("b", "\"any\"", 1));
        let mut tree = StateTree::new(&read(&format!("{a}{b}{chain}")), at(0));
        tree.tracker_changed(place(1, 0, 0), state(Verdict::Up), at(1), None);
        let held = format!("{}hold_down = \"1s\"\n", single("c", "\"any\"", 1));
        let c = &read(&held).services[0];
        let number = tree.add(c, at(2));
        assert_eq!((number, tree.find("c")), (2, Some(2)));
        tree.tracker_changed(place(2, 0, 0), state(Verdict::Down), at(3), None);
        assert_eq!(tree.next_due(), Some(1003 * MS));

        // Nothing was reported of it, so nothing ends; its number is not given again.
        assert_eq!(tree.remove(2, at(4)), []);
        assert_eq!((tree.next_due(), tree.find("c")), (None, None));
        assert_eq!(tree.add(c, at(5)), 3);
        let names = |tree: &StateTree| -> Vec<_> {
            let list = tree.list(&tree.numbers()).into_iter();
            list.map(|service| (service.name, service.verdict))
                .collect()
        };
        let c_and = |name: &str, verdict| {
            vec![
                (name.to_owned(), verdict),
                ("c".to_owned(), Verdict::Unknown),
            ]
        };
        tree.remove(0, at(6));
        assert_eq!(names(&tree), c_and("b", Verdict::Up));

        // The others keep their numbers, and their changes reach the chain.
        let events = tree.tracker_changed(place(1, 0, 0), state(Verdict::Down), at(7), None);
        assert_eq!(
            shorts(&events).last().unwrap(),
            "chain net up>down no-reply"
        );
        let ended = tree.remove(1, at(8));
        assert_eq!(
            shorts(&ended),
            [
                "b active 10.20.0.9 down>unknown no-reply",
                "b - - down>unknown no-reply"
            ]
            .map(|line| line.replace("0.9", "0.1"))
        );
    }

    #[test]
    fn what_is_held_down_survives_a_new_configuration() {
        let held = |name| format!("{}hold_down = \"1s\"\n", single(name, "\"any\"", 1));
        let mut tree = StateTree::new(&read(&format!("{}{}", held("a"), held("b"))), at(0));
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(1), None);
        tree.tracker_changed(place(1, 0, 0), state(Verdict::Down), at(2), None);
        tree.replace(&read(&held("b")), at(3), unused);
        assert_eq!(tree.next_due(), Some(1002 * MS));
        assert_eq!(
            shorts(&tree.tick(at(1002)))[1],
            "b - - unknown>down no-reply"
        );
    }

    fn naive(policy: Policy, verdicts: &[Verdict]) -> Verdict {
        let up = verdicts
            .iter()
            .filter(|verdict| **verdict == Verdict::Up)
            .count();
        let down = verdicts
            .iter()
            .filter(|verdict| **verdict == Verdict::Down)
            .count();
        let (is_up, is_down) = match policy {
            Policy::Any => (up >= 1, down == verdicts.len()),
            Policy::All => (up == verdicts.len(), down >= 1),
            Policy::AtLeast(wanted) => {
                let wanted = usize::from(wanted);
                (up >= wanted, verdicts.len() - down < wanted)
            }
        };
        match (is_up, is_down) {
            (true, _) => Verdict::Up,
            (_, true) => Verdict::Down,
            _ => Verdict::Unknown,
        }
    }

    proptest! {
        /// Against a model without memory: after any changes, with or without hold-down, every
        /// verdict is that of the rules, and the events of each subject join without a gap.
        #[test]
        fn events_and_status_agree_with_the_rules(
            policy in prop::sample::select(&["\"any\"", "\"all\"", "1", "2", "3"][..]),
            hold_ms in prop::sample::select(&[0u64, 30][..]),
            changes in prop::collection::vec((0u32..2, 0u32..3, 0usize..3, 1u64..40), 0..60),
        ) {
            let hold = format!("hold_down = \"{hold_ms}ms\"\n");
            let chain = "[[chain]]\nname = \"net\"\nservices = [\"a\", \"b\"]\n";
            let (a, b) = (single("a", policy, 3), single("b", policy, 3));
            let config = read(&format!("{a}{hold}{b}{hold}{chain}"));
            let mut tree = StateTree::new(&config, at(0));
            let mut told = [[Verdict::Unknown; 3]; 2];
            let mut last: HashMap<String, Verdict> = HashMap::new();
            let mut now = 0;
            let mut follow = |events: Vec<Event>| {
                for event in events {
                    let text = short(&event);
                    let subject = text.rsplitn(3, ' ').last().unwrap().to_owned();
                    let before = last.insert(subject, event.to).unwrap_or_default();
                    assert_eq!(before, event.from, "{text}");
                    assert_ne!(event.from, event.to, "{text}");
                }
            };
            for (service, tracker, verdict, wait) in changes {
                now += wait;
                follow(tree.tick(at(now)));
                let verdict = [Verdict::Unknown, Verdict::Up, Verdict::Down][verdict];
                told[service as usize][tracker as usize] = verdict;
                follow(tree.tracker_changed(place(service, 0, tracker), state(verdict), at(now), None));
                if hold_ms == 0 {
                    prop_assert_eq!(tree.next_due(), None);
                }
            }
            follow(tree.tick(at(now + hold_ms)));
            prop_assert_eq!(tree.next_due(), None);

            let status = tree.status(|_| Counters::default());
            let mut services = Vec::new();
            for (service, told) in status.services.iter().zip(told) {
                let expected = naive(config.services[0].members[0].policy, &told);
                prop_assert_eq!(service.verdict, expected);
                let event = last.get(&format!("{} - -", service.name)).copied().unwrap_or_default();
                prop_assert_eq!(event, expected);
                services.push(expected);
                for (tracker, told) in service.members[0].trackers.iter().zip(told) {
                    prop_assert_eq!(tracker.verdict, told);
                }
            }
            let expected = naive(Policy::All, &services);
            prop_assert_eq!(status.chains[0].verdict, expected);
            prop_assert_eq!(last.get("chain net").copied().unwrap_or_default(), expected);
        }

        /// A change is reported not before it lasted, and at the first tick after.
        #[test]
        fn hold_down_is_exact(hold_ms in 1u64..1000, early in 0u64..1000) {
            let text = format!("{}hold_down = \"{hold_ms}ms\"\n", single("fw", "\"any\"", 1));
            let config = read(&text);
            prop_assert_eq!(config.services[0].members[0].trackers[0].hold_down, Duration::from_millis(hold_ms));
            let mut tree = StateTree::new(&config, at(0));
            tree.tracker_changed(place(0, 0, 0), state(Verdict::Down), at(7), None);
            prop_assert_eq!(tree.tick(at(7 + early % hold_ms)), vec![]);
            prop_assert_eq!(tree.tick(at(7 + hold_ms)).len(), 2);
        }
    }
}

//! The reporting state: what is known of every tracker, member, service and chain, as it is told.
//!
//! The tree has no clock and does no input or output. It follows the desired state, is told of changes with the time at which
//! they were seen, and answers with the events that they cause. `api::status` makes the status of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracker_ebpf::abi::Proof;
use tracker_ebpf::verdict::{Cause, Verdict};

use super::admin::Admin;
use super::events::{Event, EventKind, Fault};
use super::flaps::Flaps;
use super::hold_down::{Held, TrackerState};
use super::policy::Tally;
use super::selection::{Choice, Selected, Selection, Standing};
use crate::config::{Hub, Member, Owner, Policy};
use crate::desired::diff::{Diff, MemberDiff, ServiceDiff};
use crate::desired::model::{Desired, MemberId, Service, ServiceId, TrackerRef};
use crate::plan::mode::{Mode, SendWay};

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
#[derive(Clone, Debug, Default)]
pub struct StateTree {
    hub: String,
    instance: String,
    desired: Desired,
    services: BTreeMap<ServiceId, ServiceState>,
    chains: Vec<ChainState>,
    flap_window_ns: u64,
    /// The wall clock less the boot clock, nanoseconds, by which every `since` was told.
    wall_offset_ns: Option<i128>,
    /// Changes when a position may mean another tracker than before.
    generation: u64,
    /// When admin states end, by the wall clock.
    ends: BTreeSet<(Timestamp, AdminOf)>,
    /// The services that a service lies behind, and those that lie behind it.
    before: HashMap<ServiceId, Vec<ServiceId>>,
    behind: HashMap<ServiceId, Vec<ServiceId>>,
    /// When each change that is held down becomes due, by the monotonic clock.
    due: BTreeSet<(u64, TrackerRef)>,
    /// Services whose members in use are others than were written down.
    unkept: BTreeSet<ServiceId>,
}

/// A wall clock that is off by so much was set, and did not just run a little faster or slower.
const CLOCK_STEP_NS: i128 = 1_000_000_000;

/// Beside the time of `rise` replies, a member has this time until its first verdict: its next hop has to be found. A service
/// without preemption keeps the member in use from then on.
const GRACE: Duration = Duration::from_secs(10);

/// What is reported of a service.
#[derive(Clone, Debug)]
pub struct ServiceState {
    /// Its number.
    pub id: ServiceId,
    /// Its name.
    pub name: Arc<str>,
    /// Where it was named.
    pub owner: Owner,
    /// Its members, in the order of the settings.
    pub members: Vec<MemberState>,
    /// The positions of its members by their numbers, if those are not the positions.
    positions: HashMap<u32, usize>,
    /// How many members must be up.
    members_up: Policy,
    /// Whether it is a high-availability pair.
    is_pair: bool,
    /// Whether a member with a lower priority number takes over when it comes up.
    preempt: bool,
    /// How many members there are of each verdict that counts.
    tally: Tally,
    /// Which members are in use.
    selection: Selection,
    /// Its verdict, by what counts of its members.
    pub verdict: Verdict,
    /// What counts of it, by its admin state.
    pub effective: Verdict,
    /// What an operator imposes on it.
    pub admin: Arc<Admin>,
    /// The verdict that was last reported, if maintenance held back a change.
    told: Option<Verdict>,
    /// Since when.
    pub since: Timestamp,
    /// How often it left a verdict.
    pub flaps: Flaps,
    /// A service that it lies behind and that counts as down, while its verdict is unknown for that reason.
    pub depends: Option<Arc<str>>,
    /// How often its verdict changed, by verdict and cause, since the daemon's start.
    pub transitions: Vec<((Verdict, Cause), u64)>,
}

/// What is reported of a member.
#[derive(Clone, Debug)]
pub struct MemberState {
    /// Its number within the service.
    pub id: u32,
    /// What is configured.
    pub settings: Arc<Member>,
    /// How its probes go out.
    pub path: MemberPath,
    /// Its place in PATHS, once it has one.
    pub slot: Option<u32>,
    /// Its trackers, in the order of the settings.
    pub trackers: Vec<TrackerEntry>,
    /// How many trackers there are of each verdict: a member may have very many trackers, and none
    /// of them should cost a walk over all when it changes.
    tally: Tally,
    /// Its verdict.
    pub verdict: Verdict,
    /// What counts of it, by its admin state.
    pub effective: Verdict,
    /// Whether something else than `unknown` ever counted of it.
    is_decided: bool,
    /// What an operator imposes on it.
    pub admin: Arc<Admin>,
    /// The verdict that was last reported, if maintenance held back a change.
    told: Option<Verdict>,
}

/// What is reported of a tracker.
#[derive(Clone, Debug, Default)]
pub struct TrackerEntry {
    /// What is reported.
    pub shown: TrackerState,
    /// What will be, if it lasts.
    pub held: Option<Held>,
    /// Its place in the maps, once it has one.
    pub slot: Option<u32>,
    /// The verdict that was last reported, if maintenance held back a change.
    told: Option<Verdict>,
}

impl TrackerEntry {
    /// The verdict that was last reported.
    pub fn told(&self) -> Verdict {
        self.told.unwrap_or(self.shown.verdict)
    }
}

/// What was reported of a service, and what was held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Since when its verdict is what it is.
    pub since: Timestamp,
    /// How often it changed.
    pub flaps: Flaps,
    /// By member and tracker.
    pub trackers: Vec<Vec<(TrackerState, Option<Held>)>>,
    /// The priority numbers that are kept in use without preemption.
    pub kept: Vec<u16>,
}

/// What is reported of a chain.
#[derive(Clone, Debug)]
pub struct ChainState {
    /// Its name.
    pub name: Arc<str>,
    /// Numbers of its services.
    pub services: Vec<ServiceId>,
    /// Its verdict.
    pub verdict: Verdict,
}

impl MemberState {
    /// The outgoing interface, as far as it is known.
    pub fn interface(&self) -> Option<&String> {
        let configured = self.settings.interface.as_ref();
        self.path.interface.as_ref().or(configured)
    }

    /// The tracker that decides: the first with the member's own verdict. Every policy has one.
    pub fn deciding(&self) -> TrackerState {
        let slot = self
            .trackers
            .iter()
            .find(|slot| slot.shown.verdict == self.verdict);
        slot.map(|slot| slot.shown.clone()).unwrap_or_default()
    }

    /// What decides whether it is in use.
    fn standing(&self) -> Standing {
        Standing {
            priority: self.settings.priority,
            effective: self.effective,
            is_decided: self.is_decided,
        }
    }
}

impl ServiceState {
    /// Whether it has several members and is no high-availability pair.
    pub fn is_pool(&self) -> bool {
        self.members.len() > 1 && !self.is_pair
    }

    /// How many members must be up.
    pub fn needed(&self) -> usize {
        self.members_up.needed(self.members.len())
    }

    fn choice(&self) -> Choice {
        Choice {
            // A pair has one member in use.
            needed: if self.is_pair { 1 } else { self.needed() },
            preempt: self.preempt,
        }
    }

    /// The members that are up and in use.
    fn in_use(&self) -> impl Iterator<Item = &MemberState> {
        let used = self.selection.used(self.choice());
        self.members.iter().filter(move |member| {
            member.effective == Verdict::Up && used.contains(&member.settings.priority)
        })
    }

    /// The member in use of a pair, or the only one; of a pool those that are up and have the priority numbers in use.
    pub fn selected(&self) -> Selected {
        let name = |member: &MemberState| member.settings.name.clone();
        if self.is_pool() {
            return Selected::Several(self.in_use().map(name).collect());
        }
        // If none is up, it is the active one.
        let first = || {
            self.members
                .iter()
                .min_by_key(|member| member.settings.priority)
        };
        let one = self.in_use().next().or_else(first);
        Selected::One(one.map_or_else(|| "".into(), name))
    }

    /// The priority numbers that are kept in use without preemption.
    pub fn kept(&self) -> Vec<u16> {
        self.selection.kept()
    }

    /// Has something else count of a member.
    fn set_effective(&mut self, index: usize, effective: Verdict) {
        let member = &mut self.members[index];
        let from = member.standing();
        member.effective = effective;
        member.is_decided |= effective != Verdict::Unknown;
        let to = member.standing();
        if from != to {
            *self.tally.of(from.effective) -= 1;
            *self.tally.of(to.effective) += 1;
            self.selection.change(from, to);
        }
    }

    /// What decides: the first selected member while up, else the first with the service's own verdict.
    pub fn deciding(&self) -> TrackerState {
        if let Some(before) = &self.depends {
            return TrackerState {
                verdict: Verdict::Unknown,
                cause: Cause::Depends,
                detail: Some(format!("{before} is down")),
            };
        }
        let mut members = self.members.iter();
        let member = match self.verdict {
            Verdict::Up => self.in_use().next(),
            verdict => members.find(|member| member.effective == verdict),
        };
        let Some(member) = member else {
            return TrackerState::default();
        };
        let name = &member.settings.name;
        let of_member = member.deciding();
        let is_lacking = self.is_pool() && self.verdict != Verdict::Up;
        let detail = match (member.admin.is_auto(), of_member.detail) {
            (false, _) => Some(format!("{name} is in admin state {}", member.admin.text())),
            (true, Some(detail)) if is_lacking => Some(format!("{name}: {detail}")),
            (true, detail) => detail,
        };
        TrackerState {
            detail: match is_lacking {
                true => Some(self.lack(detail)),
                false => detail,
            },
            ..of_member
        }
    }

    /// How many members of a pool that is not up are, and more about the first that is not.
    fn lack(&self, detail: Option<String>) -> String {
        let Tally { up, .. } = self.tally;
        let (count, needed) = (self.members.len(), self.needed());
        let more = detail.map(|detail| format!("; {detail}"));
        format!(
            "{up} of {count} members up, {needed} needed{}",
            more.unwrap_or_default()
        )
    }

    /// Whether events of this member and its trackers are held back.
    fn is_muted(&self, member: &MemberState) -> bool {
        self.admin.is_maintenance() || member.admin.is_maintenance()
    }

    /// Reports what maintenance held back, of what is in maintenance no more.
    fn tell_held(&mut self, seen: Seen, events: &mut Vec<Event>) {
        if self.admin.is_maintenance() {
            return;
        }
        let own = self.members.len() > 1;
        for index in 0..self.members.len() {
            if self.members[index].admin.is_maintenance() {
                continue;
            }
            let member = &mut self.members[index];
            for at in 0..member.trackers.len() {
                let entry = &mut member.trackers[at];
                if let Some(told) = entry
                    .told
                    .take()
                    .filter(|told| *told != entry.shown.verdict)
                {
                    events.push(tracker_event(
                        &self.name, member, index, at as u32, seen, told,
                    ));
                }
            }
            if let Some(told) = member
                .told
                .take()
                .filter(|told| own && *told != member.verdict)
            {
                events.push(member_event(&self.name, member, seen, told));
            }
        }
        if let Some(told) = self.told.take().filter(|told| *told != self.verdict) {
            events.push(service_event(self, seen, told));
        }
    }

    /// When each change that is held back becomes due.
    fn due(&self) -> impl Iterator<Item = (u64, TrackerRef)> {
        self.members.iter().flat_map(|member| {
            let id = MemberId {
                service: self.id,
                member: member.id,
            };
            let entries = member.trackers.iter().zip(&member.settings.trackers);
            (0..)
                .zip(entries)
                .filter_map(move |(at, (entry, settings))| {
                    let held = entry.held.as_ref()?;
                    Some((held.due_ns(settings.hold_down), id.tracker(at)))
                })
        })
    }

    /// The member of a number, and its position.
    fn member(&self, id: u32) -> Option<(usize, &MemberState)> {
        let at = match self.positions.is_empty() {
            true => id as usize,
            false => *self.positions.get(&id)?,
        };
        Some((at, self.members.get(at)?))
    }

    fn member_mut(&mut self, id: u32) -> Option<&mut MemberState> {
        let (at, _) = self.member(id)?;
        self.members.get_mut(at)
    }

    /// Reports the end of what was known of a service: a reader of the events is not left with a verdict that will never
    /// change again.
    fn retire(&self, seen: Seen, events: &mut Vec<Event>) {
        for member in &self.members {
            self.retire_member(member, seen, events);
        }
        let told = self.told.unwrap_or(self.verdict);
        events.extend(self.end(None, None, told, seen));
    }

    /// Reports the end of what was known of a member.
    fn retire_member(&self, member: &MemberState, seen: Seen, events: &mut Vec<Event>) {
        let trackers = member.settings.trackers.iter().zip(&member.trackers);
        events.extend(trackers.filter_map(|(config, slot)| {
            self.end(Some(member), Some(config.behind), slot.told(), seen)
        }));
        if self.members.len() > 1 {
            let told = member.told.unwrap_or(member.verdict);
            events.extend(self.end(Some(member), None, told, seen));
        }
    }

    fn end(
        &self,
        member: Option<&MemberState>,
        behind: Option<IpAddr>,
        from: Verdict,
        seen: Seen,
    ) -> Option<Event> {
        let subject = Subject {
            service: Some(&self.name),
            member: member.map(|member| &member.settings.name),
            behind,
            chain: None,
        };
        let why = TrackerState {
            detail: Some("removed".to_owned()),
            ..Default::default()
        };
        (from != Verdict::Unknown).then(|| Event {
            kind: EventKind::Removed,
            ..seen.event(subject, from, why, Verdict::Unknown)
        })
    }
}

/// What an admin state is imposed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdminOf {
    /// The service.
    pub service: ServiceId,
    /// The number of one of its members; `None`: the service itself.
    pub member: Option<u32>,
}

/// What an event is about; everything else about it is its cause.
struct Subject<'a> {
    service: Option<&'a Arc<str>>,
    member: Option<&'a Arc<str>>,
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
            member: subject.member.cloned(),
            behind: subject.behind,
            from,
            to,
            cause: why.cause,
            detection_us: self.detection_ns.map(|ns| ns / 1000),
            detail: why.detail.map(Arc::from),
            chain: subject.chain.cloned(),
            kind: EventKind::Verdict,
            group: 0,
            effective: None,
            admin: None,
            fault: None,
            tracker: None,
        }
    }
}

impl StateTree {
    /// The state of a hub before anything is known of it.
    pub fn new(hub: &Hub, desired: &Desired, now: Stamp) -> Self {
        let mut tree = Self::default();
        tree.set_hub(hub);
        // Nothing was known before, so nothing can have changed.
        let diff = crate::desired::diff::diff(&Desired::default(), desired);
        let _ = tree.apply(desired, &diff, now);
        tree
    }

    /// Takes the names of hub and instance, and how long a flap counts as recent.
    pub fn set_hub(&mut self, hub: &Hub) {
        self.hub.clone_from(&hub.name);
        self.instance.clone_from(&hub.instance);
        self.flap_window_ns = hub.flap_window.as_nanos() as u64;
    }

    /// Takes what an earlier daemon reported and held back of services. It was all reported, so it is no event.
    pub fn restore(&mut self, known: impl IntoIterator<Item = (ServiceId, Shown)>, now: Stamp) {
        let seen = Seen {
            now,
            detection_ns: None,
        };
        let mut told = Vec::new();
        for (service, known) in known {
            let Some(state) = self.services.get_mut(&service) else {
                continue;
            };
            for (member, known) in state.members.iter_mut().zip(known.trackers) {
                let id = MemberId {
                    service,
                    member: member.id,
                };
                let entries = member.trackers.iter_mut().zip(&member.settings.trackers);
                for (at, ((entry, settings), (shown, held))) in (0..).zip(entries.zip(known)) {
                    (entry.shown, entry.held) = (shown, held);
                    if let Some(held) = &mut entry.held {
                        held.since_mono_ns = held.since_mono_ns.min(now.mono_ns);
                        self.due
                            .insert((held.due_ns(settings.hold_down), id.tracker(at)));
                    }
                }
                let shown = member.trackers.iter().map(|entry| entry.shown.verdict);
                member.tally = Tally::count(shown);
            }
            self.update(service, seen, &mut told);
            if let Some(state) = self.services.get_mut(&service) {
                (state.since, state.flaps) = (known.since, known.flaps);
                state.selection.resume(&known.kept);
                // It was counted by the earlier daemon.
                state.transitions.clear();
            }
        }
        self.update_chains(None, seen, &mut told);
    }

    /// What is reported of a service, and what is held back.
    pub fn shown(&self, service: ServiceId) -> Option<Shown> {
        let service = self.services.get(&service)?;
        let members = service.members.iter().map(|member| {
            let entries = member.trackers.iter();
            entries
                .map(|entry| (entry.shown.clone(), entry.held.clone()))
                .collect()
        });
        Some(Shown {
            since: service.since,
            flaps: service.flaps.clone(),
            trackers: members.collect(),
            kept: service.kept(),
        })
    }

    /// Takes another desired state. Trackers that go on keep their state; so do members their path. What is new is unknown,
    /// which may change the verdict of what contains it. What is gone is unknown from here on.
    pub fn apply(&mut self, desired: &Desired, diff: &Diff, now: Stamp) -> Vec<Event> {
        let mut changed = diff.changed.iter();
        let has_same_chains = Arc::ptr_eq(self.desired.chains(), desired.chains());
        if !has_same_chains || changed.any(|service| service.old.is_some()) {
            self.generation += 1;
        }
        self.keep_clock(now);
        let seen = Seen {
            now,
            detection_ns: None,
        };
        let mut events = Vec::new();
        for service in &diff.removed {
            if let Some(gone) = self.take(service.id) {
                gone.retire(seen, &mut events);
            }
        }
        for service in &diff.changed {
            let old = self.take(service.new.id);
            if let Some(old) = &old {
                let names: HashSet<&str> = (service.members.iter())
                    .map(|member| &*member.new.name)
                    .collect();
                for (id, member) in &service.removed {
                    // An only member that is replaced shows in the service's own verdict.
                    let is_gone = old.members.len() > 1 || !names.contains(&*member.name);
                    if let Some((_, member)) = old.member(id.member).filter(|_| is_gone) {
                        old.retire_member(member, seen, &mut events);
                    }
                }
            }
            let new = service_state(service, old, now);
            self.due.extend(new.due());
            let ends = new.members.iter().filter_map(|member| {
                let of = AdminOf {
                    service: new.id,
                    member: Some(member.id),
                };
                Some((member.admin.until?, of))
            });
            self.ends.extend(ends);
            self.services.insert(new.id, new);
        }
        self.desired = desired.clone();
        if !has_same_chains {
            self.take_chains();
        }
        self.take_order();
        let mut has_changed = !has_same_chains;
        for service in &diff.changed {
            has_changed |= self.update(service.new.id, seen, &mut events);
        }
        if has_changed {
            // A chain may have lost or gained a service whose own verdict did not change.
            self.update_chains(None, seen, &mut events);
        }
        events
    }

    /// Takes a service off, with what is due of it.
    fn take(&mut self, service: ServiceId) -> Option<ServiceState> {
        let gone = self.services.remove(&service)?;
        for due in gone.due() {
            self.due.remove(&due);
        }
        Some(gone)
    }

    /// Takes which services lie behind others.
    fn take_order(&mut self) {
        self.before.clear();
        self.behind.clear();
        let services = self.desired.services();
        if services
            .iter()
            .all(|service| service.settings.after.is_empty())
        {
            return;
        }
        let numbers: HashMap<&str, ServiceId> = (services.iter())
            .map(|service| (service.settings.name.as_str(), service.id))
            .collect();
        for service in services.iter() {
            let after = service.settings.after.iter();
            for before in after.filter_map(|name| numbers.get(name.as_str())) {
                self.before.entry(service.id).or_default().push(*before);
                self.behind.entry(*before).or_default().push(service.id);
            }
        }
    }

    fn take_chains(&mut self) {
        let known: HashMap<Arc<str>, Verdict> = self
            .chains
            .drain(..)
            .map(|chain| (chain.name, chain.verdict))
            .collect();
        let services = self.desired.services().iter();
        let numbers: HashMap<&str, ServiceId> = services
            .map(|service| (service.settings.name.as_str(), service.id))
            .collect();
        let chains = self.desired.chains().iter().map(|chain| {
            let services = chain.services.iter();
            ChainState {
                name: chain.name.as_str().into(),
                services: services
                    .filter_map(|name| numbers.get(name.as_str()).copied())
                    .collect(),
                verdict: known.get(chain.name.as_str()).copied().unwrap_or_default(),
            }
        });
        self.chains = chains.collect();
    }

    /// Notes where in the maps a member has its place.
    pub fn place_member(&mut self, member: MemberId, slot: u32) {
        let service = self.services.get_mut(&member.service);
        if let Some(member) = service.and_then(|service| service.member_mut(member.member)) {
            member.slot = Some(slot);
        }
    }

    /// Notes where in the maps a tracker has its place.
    pub fn place_tracker(&mut self, at: TrackerRef, slot: u32) {
        if let Some((_, entry)) = self.entry(at) {
            entry.slot = Some(slot);
        }
    }

    /// The name of the hub, and that of the instance.
    pub fn names(&self) -> (&str, &str) {
        (&self.hub, &self.instance)
    }

    /// How long a flap counts as recent.
    pub const fn flap_window_ns(&self) -> u64 {
        self.flap_window_ns
    }

    /// The service of a number.
    pub fn service(&self, id: ServiceId) -> Option<&ServiceState> {
        self.services.get(&id)
    }

    /// All services, in the order in which they are reported.
    pub fn services(&self) -> impl Iterator<Item = &ServiceState> {
        let services = self.desired.services().iter();
        services.filter_map(|service| self.services.get(&service.id))
    }

    /// All chains, in the order in which they are reported.
    pub fn chains(&self) -> &[ChainState] {
        &self.chains
    }

    fn member(&self, at: TrackerRef) -> Option<&MemberState> {
        let (_, member) = self.services.get(&at.service)?.member(at.member)?;
        Some(member)
    }

    /// What is reported of a tracker.
    pub fn tracker(&self, at: TrackerRef) -> Option<&TrackerState> {
        Some(&self.member(at)?.trackers.get(at.tracker as usize)?.shown)
    }

    /// What is held back of a tracker.
    pub fn held(&self, at: TrackerRef) -> Option<&Held> {
        let entry = self.member(at)?.trackers.get(at.tracker as usize)?;
        entry.held.as_ref()
    }

    /// The name of a tracker's service, and the positions of its member and itself.
    pub fn position(&self, at: TrackerRef) -> Option<(Arc<str>, (u32, u32))> {
        let service = self.services.get(&at.service)?;
        let (member, _) = service.member(at.member)?;
        Some((service.name.clone(), (member as u32, at.tracker)))
    }

    /// What is desired.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The service of this name, as it is desired.
    pub fn settings(&self, name: &str) -> Option<&Arc<Service>> {
        self.desired.named(name)
    }

    /// The service of this name.
    pub fn find(&self, name: &str) -> Option<ServiceId> {
        self.desired.named(name).map(|service| service.id)
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
        let Some((hold_down, entry)) = self.entry(at) else {
            return events;
        };
        if state.verdict == entry.shown.verdict {
            // Back before it was reported, or only another cause for the same verdict.
            entry.shown = state;
            if let Some(held) = entry.held.take() {
                self.due.remove(&(held.due_ns(hold_down), at));
            }
            return events;
        }
        if hold_down.is_zero() {
            let seen = Seen { now, detection_ns };
            self.show(at, state, seen, &mut events);
            return events;
        }
        match &mut entry.held {
            // A hub that does not keep up is not why a service is down.
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
            let Some(held) = self.entry(at).and_then(|(_, entry)| entry.held.take()) else {
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

    /// Imposes an admin state on a service, or on one of its members, and returns what that changes; nothing if there is no such
    /// service or member, or it is in this state already. When maintenance ends, each object that differs from what was last
    /// reported is reported.
    pub fn set_admin(&mut self, of: AdminOf, admin: Admin, now: Stamp) -> Vec<Event> {
        let seen = Seen {
            now,
            detection_ns: None,
        };
        let mut events = Vec::new();
        self.ends.extend(admin.until.map(|until| (until, of)));
        let admin = Arc::new(admin);
        let Some(service) = self.services.get_mut(&of.service) else {
            return events;
        };
        let counted = service.effective;
        let mut subject = Subject {
            service: Some(&service.name),
            member: None,
            behind: None,
            chain: None,
        };
        match of.member {
            None if service.admin == admin => return events,
            None => {
                service.admin = admin.clone();
                service.effective = admin.effective(service.verdict, counted);
                let counts = (counted, service.effective);
                events.push(admin_event(
                    subject,
                    &admin,
                    seen,
                    service.deciding(),
                    counts,
                ));
            }
            Some(id) => {
                let Some((index, member)) = service.member(id) else {
                    return events;
                };
                if member.admin == admin {
                    return events;
                }
                subject.member = Some(&member.settings.name);
                let effective = admin.effective(member.verdict, member.effective);
                let counts = (member.effective, effective);
                events.push(admin_event(
                    subject,
                    &admin,
                    seen,
                    member.deciding(),
                    counts,
                ));
                service.members[index].admin = admin;
                service.set_effective(index, effective);
            }
        }
        service.tell_held(seen, &mut events);
        let is_changed = self.update_service(of.service, seen, &mut events);
        let counts = self
            .services
            .get(&of.service)
            .map(|service| service.effective);
        if is_changed || counts != Some(counted) {
            self.update_chains(self.alone(of.service), seen, &mut events);
        }
        events
    }

    /// Imposes what an earlier daemon kept, which is no event: it was reported. `effective` counts while it is maintenance.
    pub fn restore_admin(&mut self, of: AdminOf, admin: Admin, effective: Verdict, now: Stamp) {
        self.ends.extend(admin.until.map(|until| (until, of)));
        let Some(service) = self.services.get_mut(&of.service) else {
            return;
        };
        match of.member {
            None => {
                service.effective = admin.effective(service.verdict, effective);
                service.admin = Arc::new(admin);
            }
            Some(id) => {
                if let Some((index, member)) = service.member(id) {
                    let effective = admin.effective(member.verdict, effective);
                    service.members[index].admin = Arc::new(admin);
                    service.set_effective(index, effective);
                }
            }
        }
        let kept = service.kept();
        let seen = Seen {
            now,
            detection_ns: None,
        };
        // What follows was reported by the earlier daemon.
        let mut told = Vec::new();
        self.update_service(of.service, seen, &mut told);
        if let Some(service) = self.services.get_mut(&of.service)
            && !kept.is_empty()
        {
            // What is kept in use is so by all admin states together, and others may follow.
            service.selection.resume(&kept);
        }
        self.update_chains(self.alone(of.service), seen, &mut told);
    }

    /// What is imposed on a service or a member, and what counts of it; `None` if there is no such one.
    pub fn admin(&self, of: AdminOf) -> Option<(&Arc<Admin>, Verdict)> {
        let service = self.services.get(&of.service)?;
        match of.member {
            None => Some((&service.admin, service.effective)),
            Some(id) => {
                let (_, member) = service.member(id)?;
                Some((&member.admin, member.effective))
            }
        }
    }

    /// Takes off what has an admin state whose time is over.
    pub fn admin_due(&mut self, now: Stamp) -> Vec<AdminOf> {
        let mut due = Vec::new();
        while let Some(&(until, of)) = self.ends.first().filter(|(until, _)| *until <= now.wall) {
            self.ends.pop_first();
            // It may be in another state by now, or gone.
            let is_it = |(admin, _): (&Arc<Admin>, Verdict)| admin.until == Some(until);
            if self.admin(of).is_some_and(is_it) {
                due.push(of);
            }
        }
        due
    }

    /// Takes how a member's probes go out. Nothing happens when there is no such member.
    pub fn member_path(&mut self, member: MemberId, path: MemberPath) {
        let service = self.services.get_mut(&member.service);
        if let Some(member) = service.and_then(|service| service.member_mut(member.member)) {
            member.path = path;
        }
    }

    /// A number that is different after each [`Self::apply`], which may give positions another meaning.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes off the services whose priority numbers kept in use have changed since this was last asked, with these numbers.
    pub fn take_kept(&mut self) -> Vec<(Arc<str>, Vec<u16>)> {
        let services = std::mem::take(&mut self.unkept).into_iter();
        let services = services.filter_map(|id| self.services.get(&id));
        services
            .map(|service| (service.name.clone(), service.kept()))
            .collect()
    }

    /// The services by their numbers, in the order in which they are reported.
    pub fn numbers(&self) -> Vec<ServiceId> {
        let services = self.desired.services().iter();
        services.map(|service| service.id).collect()
    }

    /// A tracker and its `hold_down`.
    fn entry(&mut self, at: TrackerRef) -> Option<(Duration, &mut TrackerEntry)> {
        let member = self.services.get_mut(&at.service)?.member_mut(at.member)?;
        let hold_down = member.settings.trackers.get(at.tracker as usize)?.hold_down;
        Some((hold_down, member.trackers.get_mut(at.tracker as usize)?))
    }

    /// Reports a tracker's new verdict, and what follows from it: tracker, member, service, chain.
    fn show(&mut self, at: TrackerRef, state: TrackerState, seen: Seen, events: &mut Vec<Event>) {
        let number = at.service;
        let Some(service) = self.services.get_mut(&number) else {
            return;
        };
        let Some((index, _)) = service.member(at.member) else {
            return;
        };
        let is_muted = service.is_muted(&service.members[index]);
        let name = &service.name;
        let member = &mut service.members[index];
        let slot = &mut member.trackers[at.tracker as usize];
        let (from, to) = (slot.shown.verdict, state.verdict);
        slot.shown = state;
        *member.tally.of(from) -= 1;
        *member.tally.of(to) += 1;
        match is_muted {
            true => drop(slot.told.get_or_insert(from)),
            false => events.push(tracker_event(name, member, index, at.tracker, seen, from)),
        }
        self.update_member(number, index, seen, events);
        if self.update_service(number, seen, events) {
            self.update_chains(self.alone(number), seen, events);
        }
    }

    /// Derives the verdicts of a service and its members; true if the service's verdict changed.
    fn update(&mut self, service: ServiceId, seen: Seen, events: &mut Vec<Event>) -> bool {
        let members = self.services.get(&service);
        for member in 0..members.map_or(0, |service| service.members.len()) {
            self.update_member(service, member, seen, events);
        }
        self.update_service(service, seen, events)
    }

    fn update_member(&mut self, service: u32, index: usize, seen: Seen, events: &mut Vec<Event>) {
        let Some(service) = self.services.get_mut(&service) else {
            return;
        };
        // The only member's change is the service's own.
        let own = service.members.len() > 1;
        let is_muted = service.is_muted(&service.members[index]);
        let member = &mut service.members[index];
        let (from, to) = (member.verdict, member.tally.by(member.settings.policy));
        member.verdict = to;
        let effective = member.admin.effective(to, member.effective);
        service.set_effective(index, effective);
        let member = &mut service.members[index];
        if from == to {
            return;
        }
        if is_muted {
            member.told.get_or_insert(from);
        } else if own {
            events.push(member_event(&service.name, member, seen, from));
        }
    }

    /// Whether what counts of the service changed.
    fn update_service(&mut self, service: u32, seen: Seen, events: &mut Vec<Event>) -> bool {
        let mut is_changed = false;
        let mut next = vec![service];
        // What lies behind a service follows it; there are no circles.
        while let Some(service) = next.pop() {
            if self.update_alone(service, seen, events) {
                is_changed = true;
                next.extend(self.behind.get(&service).into_iter().flatten());
            }
        }
        is_changed
    }

    /// A service, if no other one lies behind it, which would change with it.
    fn alone(&self, service: ServiceId) -> Option<ServiceId> {
        (!self.behind.contains_key(&service)).then_some(service)
    }

    /// A service that this one lies behind and that counts as down.
    fn down_before(&self, service: ServiceId) -> Option<Arc<str>> {
        let before = self.before.get(&service)?.iter();
        let mut before = before.filter_map(|id| self.services.get(id));
        let down = before.find(|service| service.effective == Verdict::Down)?;
        Some(down.name.clone())
    }

    /// Derives the verdict of one service; true if what counts of it changed.
    fn update_alone(&mut self, service: u32, seen: Seen, events: &mut Vec<Event>) -> bool {
        let before = self.down_before(service);
        let Some(service) = self.services.get_mut(&service) else {
            return false;
        };
        let from = service.verdict;
        let measured = service.tally.by(service.members_up);
        if !service.preempt {
            let before = service.kept();
            service.selection.settle(service.choice(), seen.now.mono_ns);
            if service.kept() != before {
                self.unkept.insert(service.id);
            }
        }
        // A `down` that was told before is not taken back.
        service.depends = before.filter(|_| (from, measured) != (Verdict::Down, Verdict::Down));
        let to = match service.depends {
            Some(_) => Verdict::Unknown,
            None => measured,
        };
        let counted = service.effective;
        service.verdict = to;
        service.effective = service.admin.effective(to, counted);
        if from != to {
            service.since = seen.now.wall;
            let what = (to, service.deciding().cause);
            // There are few causes.
            match service
                .transitions
                .iter_mut()
                .find(|(known, _)| *known == what)
            {
                Some((_, count)) => *count += 1,
                None => service.transitions.push((what, 1)),
            }
            if from != Verdict::Unknown {
                service.flaps.note(seen.now.mono_ns);
            }
            match service.admin.is_maintenance() {
                true => drop(service.told.get_or_insert(from)),
                false => events.push(service_event(service, seen, from)),
            }
        }
        service.effective != counted
    }

    /// Derives the verdicts of the chains that contain `service`, or all.
    fn update_chains(&mut self, service: Option<u32>, seen: Seen, events: &mut Vec<Event>) {
        for chain in &mut self.chains {
            if service.is_some_and(|service| !chain.services.contains(&service)) {
                continue;
            }
            let services = chain
                .services
                .iter()
                .filter_map(|service| self.services.get(service));
            let verdicts = services.clone().map(|service| service.effective);
            let (from, to) = (chain.verdict, Tally::count(verdicts).all());
            if from == to {
                continue;
            }
            chain.verdict = to;
            let why = services
                .clone()
                .find(|service| service.effective == to)
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
}

/// A change of a tracker's verdict.
fn tracker_event(
    service: &Arc<str>,
    member: &MemberState,
    index: usize,
    tracker: u32,
    seen: Seen,
    from: Verdict,
) -> Event {
    let state = member.trackers[tracker as usize].shown.clone();
    let subject = Subject {
        service: Some(service),
        member: Some(&member.settings.name),
        behind: Some(member.settings.trackers[tracker as usize].behind),
        chain: None,
    };
    let fault = match (state.cause, member.interface()) {
        (Cause::Stalled, _) => Fault::Hub,
        (Cause::InterfaceDown | Cause::InterfaceMissing, Some(name)) => {
            Fault::Interface(name.as_str().into())
        }
        _ => Fault::Endpoint(member.settings.endpoint),
    };
    let to = state.verdict;
    Event {
        tracker: Some((index as u32, tracker)),
        fault: Some(Box::new(fault)),
        ..seen.event(subject, from, state, to)
    }
}

/// A change of a member's verdict.
fn member_event(service: &Arc<str>, member: &MemberState, seen: Seen, from: Verdict) -> Event {
    let subject = Subject {
        service: Some(service),
        member: Some(&member.settings.name),
        behind: None,
        chain: None,
    };
    Event {
        effective: (member.effective != member.verdict).then_some(member.effective),
        ..seen.event(subject, from, member.deciding(), member.verdict)
    }
}

/// A change of a service's verdict.
fn service_event(service: &ServiceState, seen: Seen, from: Verdict) -> Event {
    let subject = Subject {
        service: Some(&service.name),
        member: None,
        behind: None,
        chain: None,
    };
    Event {
        effective: (service.effective != service.verdict).then_some(service.effective),
        ..seen.event(subject, from, service.deciding(), service.verdict)
    }
}

/// A change of an admin state: from and to are what counted and what counts.
fn admin_event(
    subject: Subject<'_>,
    admin: &Arc<Admin>,
    seen: Seen,
    why: TrackerState,
    counted: (Verdict, Verdict),
) -> Event {
    let why = TrackerState {
        detail: Some(admin.text()),
        ..why
    };
    Event {
        kind: EventKind::Admin,
        admin: Some(admin.clone()),
        ..seen.event(subject, counted.0, why, counted.1)
    }
}

/// A service's state by new settings, with what was known of it.
fn service_state(service: &ServiceDiff, old: Option<ServiceState>, now: Stamp) -> ServiceState {
    let settings = &service.new.settings;
    let old = old.unwrap_or_else(|| ServiceState {
        id: service.new.id,
        name: settings.name.as_str().into(),
        owner: settings.owner,
        members: Vec::new(),
        positions: HashMap::new(),
        members_up: settings.members_up,
        is_pair: false,
        preempt: settings.preempt,
        tally: Tally::default(),
        selection: Selection::default(),
        verdict: Verdict::Unknown,
        effective: Verdict::Unknown,
        admin: Arc::default(),
        told: None,
        since: now.wall,
        flaps: Flaps::default(),
        transitions: Vec::new(),
        depends: None,
    });
    // What is in use when preemption is switched off stays in use.
    let kept: HashSet<u32> = match (settings.preempt, old.preempt) {
        (true, _) => HashSet::new(),
        (false, true) => old.in_use().map(|member| member.id).collect(),
        (false, false) => {
            let kept: BTreeSet<u16> = old.kept().into_iter().collect();
            let in_use = old.in_use();
            in_use
                .filter(|member| kept.contains(&member.settings.priority))
                .map(|member| member.id)
                .collect()
        }
    };
    let mut imposed: HashMap<Arc<str>, (Arc<Admin>, Verdict)> = HashMap::new();
    let mut before: HashMap<u32, MemberState> = HashMap::new();
    for member in old.members {
        if !member.admin.is_auto() {
            let name = member.settings.name.clone();
            imposed.insert(name, (member.admin.clone(), member.effective));
        }
        before.insert(member.id, member);
    }
    let members: Vec<MemberState> = (service.members.iter())
        .map(|member| {
            let old = before.remove(&member.id.member);
            let is_new = old.is_none();
            let mut state = member_state(member, old);
            // An operator names a member: what is imposed stays when it is connected in another way.
            if let Some((admin, effective)) = imposed.get(&state.settings.name).filter(|_| is_new) {
                state.admin = admin.clone();
                state.effective = admin.effective(state.verdict, *effective);
                state.is_decided |= state.effective != Verdict::Unknown;
            }
            state
        })
        .collect();
    let has_positions = (0..).zip(&members).all(|(at, member)| member.id == at);
    let positions = (0..).zip(&members).filter(|_| !has_positions);
    let came = service.members.iter().filter(|member| member.old.is_none());
    let grace = came.flat_map(|member| &member.new.trackers).map(|tracker| {
        let first = tracker.interval.saturating_mul(tracker.rise.into());
        first.saturating_add(tracker.timeout).saturating_add(GRACE)
    });
    let grace_ns = |grace: Duration| u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let grace_ends_ns = grace
        .max()
        .map(|grace| now.mono_ns.saturating_add(grace_ns(grace)));
    let selection = Selection::new(
        members.iter().map(MemberState::standing),
        (members.iter())
            .filter(|member| kept.contains(&member.id))
            .map(|member| member.settings.priority),
        grace_ends_ns.map_or(old.selection.grace_ends_ns(), |ends| {
            ends.max(old.selection.grace_ends_ns())
        }),
    );
    ServiceState {
        owner: settings.owner,
        positions: positions.map(|(at, member)| (member.id, at)).collect(),
        members_up: settings.members_up,
        is_pair: settings.is_pair(),
        preempt: settings.preempt,
        tally: Tally::count(members.iter().map(|member| member.effective)),
        selection,
        members,
        ..old
    }
}

fn member_state(member: &MemberDiff, old: Option<MemberState>) -> MemberState {
    let old = old.unwrap_or_else(|| MemberState {
        id: member.id.member,
        settings: member.new.clone(),
        path: MemberPath::default(),
        slot: None,
        trackers: Vec::new(),
        tally: Tally::default(),
        verdict: Verdict::Unknown,
        effective: Verdict::Unknown,
        is_decided: false,
        admin: Arc::default(),
        told: None,
    });
    let trackers = member.trackers.iter();
    let trackers: Vec<TrackerEntry> = trackers
        .map(|at| old.trackers.get((*at)?).cloned())
        .map(Option::unwrap_or_default)
        .collect();
    MemberState {
        id: member.id.member,
        settings: member.new.clone(),
        tally: Tally::count(trackers.iter().map(|entry| entry.shown.verdict)),
        trackers,
        ..old
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use glob::Pattern;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{
            status::{self, Cursor, Facts, NotSteered},
            types::{Counters, ListedService, Status},
        },
        config::{self, Config, Policy, Service},
        desired::{diff::diff, model::Used},
        detector::lateness::Health,
        state::flaps::FLAPS_MAX,
    };

    impl StateTree {
        /// The tree of a configuration.
        fn of(config: &Config, now: Stamp) -> Self {
            let desired = Desired::new(config.services.clone(), config.chains.clone());
            Self::new(&config.hub, &desired, now)
        }

        fn replace(
            &mut self,
            config: &Config,
            now: Stamp,
            used: impl Fn(MemberId) -> Used,
        ) -> Vec<Event> {
            let (services, chains) = (config.services.clone(), config.chains.clone());
            let desired = self.desired.next(services, chains, used);
            self.set_hub(&config.hub);
            self.go_to(&desired, now)
        }

        fn go_to(&mut self, desired: &Desired, now: Stamp) -> Vec<Event> {
            let diff = diff(&self.desired, desired);
            self.apply(desired, &diff, now)
        }

        fn add(&mut self, service: &Service, now: Stamp) -> ServiceId {
            let (desired, id) = self.desired.with(service.clone());
            assert_eq!(self.go_to(&desired, now), []);
            id
        }

        fn remove(&mut self, service: ServiceId, now: Stamp) -> Vec<Event> {
            let desired = self.desired.without(service);
            self.go_to(&desired, now)
        }

        fn list(&self, services: &[ServiceId]) -> Vec<ListedService> {
            status::list(self, services)
        }

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
            let names: Vec<_> = name
                .map(|name| Pattern::new(name).unwrap())
                .into_iter()
                .collect();
            let outline = status::outline(self, &names)?;
            let (mut cursor, mut services) = (Cursor::default(), Vec::new());
            let (facts, into) = (facts(counters), &mut services);
            while status::slice(self, &outline, &mut cursor, limit, now, &facts, into) {}
            let frame = outline.frame(None, String::new(), &Health::default(), 0);
            Ok(Status { services, ..frame })
        }
    }

    fn facts<C: Fn(TrackerRef) -> Counters>(
        counters: C,
    ) -> Facts<impl Fn(TrackerRef, Option<u32>) -> Counters, NotSteered> {
        Facts {
            counters: move |at: TrackerRef, _: Option<u32>| counters(at),
            steered: None,
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

    fn unused(_: MemberId) -> Used {
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
                part(event.member.as_ref().map(|member| member.to_string())),
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
        let mut tree = StateTree::of(&config, at(0));
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
        let mut tree = StateTree::of(&read(&text), at(0));
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
        let outline = status::outline(&tree, &[]).unwrap();
        let (mut cursor, asked) = (Cursor::default(), std::cell::Cell::new(0));
        let mut services = Vec::new();
        let counted = |at: TrackerRef| {
            asked.set(asked.get() + 1);
            counters(at)
        };
        let mut slices = 0;
        loop {
            asked.set(0);
            let (facts, into) = (facts(counted), &mut services);
            let more = status::slice(&tree, &outline, &mut cursor, 3, at(0), &facts, into);
            assert!(asked.get() <= 3, "{}", asked.get());
            slices += 1;
            if !more {
                break;
            }
        }
        assert!(slices >= 4, "{slices}");
        // A service that goes meanwhile leaves the others whole.
        let outline = status::outline(&tree, &[]).unwrap();
        let (mut cursor, mut services) = (Cursor::default(), Vec::new());
        let (facts, into) = (facts(counters), &mut services);
        status::slice(&tree, &outline, &mut cursor, 4, at(0), &facts, into);
        tree.remove(1, at(2));
        while status::slice(&tree, &outline, &mut cursor, 4, at(0), &facts, into) {}
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
            let mut tree = StateTree::of(&read(&single("fw", policy, 3)), at(0));
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
        let mut tree = StateTree::of(&read(&single("fw", "\"all\"", 3)), at(0));
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
        let mut tree = StateTree::of(&read(&text), at(0));
        let selected = |tree: &StateTree| {
            tree.status(|_| Counters::default()).services[0]
                .selected
                .clone()
        };
        let one = |name: &str| Selected::One(name.into());
        assert_eq!(selected(&tree), one("active"));
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
                one("standby")
            )
        );
        assert_eq!(
            tell(0, 0, Verdict::Up),
            (
                lines(&[
                    "pair active 10.20.1.9 unknown>up replied",
                    "pair active - unknown>up replied",
                ]),
                one("active")
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
                one("active")
            )
        );
        assert_eq!(
            tell(0, 0, Verdict::Down),
            (
                lines(&[
                    "pair active 10.20.1.9 up>down no-reply",
                    "pair active - up>down no-reply",
                ]),
                one("standby")
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
                one("active")
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
        let mut tree = StateTree::of(&read(&single("fw", "\"any\"", 1)), at(0));
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
        let mut tree = StateTree::of(&read(&text), at(0));
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
        let mut tree = StateTree::of(&read(&single("fw", "\"any\"", 1)), at(0));
        for place in [place(1, 0, 0), place(0, 1, 0), place(0, 0, 1)] {
            assert_eq!(
                tree.tracker_changed(place, state(Verdict::Up), at(1), None),
                []
            );
        }
        tree.member_path(place(0, 1, 0).of(), MemberPath::default());
        tree.member_path(place(1, 0, 0).of(), MemberPath::default());
    }

    #[test]
    fn a_change_is_held_down_until_it_lasted() {
        let text = format!("{}hold_down = \"100ms\"\n", single("fw", "\"any\"", 1));
        let mut tree = StateTree::of(&read(&text), at(0));
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
        let mut tree = StateTree::of(&read(&text), at(0));
        let path = MemberPath {
            interface: Some("eth9".to_owned()),
            mode: Some(Mode::XdpGeneric),
            send: Some(SendWay::TcRedirect),
            proofs: Vec::new(),
        };
        tree.member_path(place(0, 1, 0).of(), path);
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
            "no service or chain is named \"x\"; the nearest name is \"pair\", and `tracker service list` shows all"
        );
    }

    #[test]
    fn a_new_configuration_keeps_what_is_the_same() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"a\", \"b\"]\n";
        let (a, b) = (single("a", "\"all\"", 2), single("b", "\"any\"", 1));
        let mut tree = StateTree::of(&read(&format!("{a}{b}{chain}")), at(0));
        for place in [place(0, 0, 0), place(0, 0, 1), place(1, 0, 0)] {
            tree.tracker_changed(place, state(Verdict::Up), at(1), None);
        }
        let path = MemberPath {
            interface: Some("eth1".to_owned()),
            ..MemberPath::default()
        };
        tree.member_path(place(0, 0, 0).of(), path);
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
    fn the_state_goes_on_from_what_was_shown() {
        let chain = "[[chain]]\nname = \"net\"\nservices = [\"a\", \"b\"]\n";
        let (a, b) = (single("a", "\"all\"", 2), single("b", "\"any\"", 1));
        let config = read(&format!("{a}{b}{PAIR}{chain}"));
        let mut tree = StateTree::of(&config, at(0));
        for place in [place(0, 0, 0), place(0, 0, 1), place(1, 0, 0)] {
            tree.tracker_changed(place, state(Verdict::Up), at(1), None);
        }
        tree.tracker_changed(place(2, 1, 0), state(Verdict::Down), at(2), None);
        let shown: Vec<_> = (0..3)
            .filter_map(|id| Some((id, tree.shown(id)?)))
            .collect();
        let mut resumed = StateTree::of(&config, at(9));
        resumed.restore(shown, at(9));
        let status = |tree: &StateTree| {
            let mut status = tree.status(|_| Counters::default());
            // They are counted since the start of a daemon.
            for service in &mut status.services {
                service.transitions.clear();
            }
            status
        };
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
        let mut tree = StateTree::of(&read(&format!("{a}{b}{chain}")), at(0));
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
        let mut tree = StateTree::of(&read(&format!("{}{}", held("a"), held("b"))), at(0));
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(1), None);
        tree.tracker_changed(place(1, 0, 0), state(Verdict::Down), at(2), None);
        tree.replace(&read(&held("b")), at(3), unused);
        assert_eq!(tree.next_due(), Some(1002 * MS));
        assert_eq!(
            shorts(&tree.tick(at(1002)))[1],
            "b - - unknown>down no-reply"
        );
    }

    /// A pool with lines of the service, and of each of its members, which have one tracker each.
    fn pool(lines: &str, members: &[&str]) -> String {
        let mut text = format!("[[service]]\nname = \"pool\"\n{lines}\n");
        for (number, lines) in members.iter().enumerate() {
            text.push_str(&format!(
                "[[service.member]]\nendpoint = \"10.9.{number}.2\"\nbehind = [\"10.20.{number}.9\"]\n{lines}\n"
            ));
        }
        text
    }

    fn named(names: &[&str]) -> Vec<String> {
        names
            .iter()
            .map(|name| format!("name = \"{name}\""))
            .collect()
    }

    /// The names of the members in use.
    fn in_use(tree: &StateTree) -> Vec<String> {
        let status = tree.status(|_| Counters::default());
        let names = status.services[0].selected.names().iter();
        names.map(ToString::to_string).collect()
    }

    fn lines_of(lines: &[String]) -> Vec<&str> {
        lines.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_pool_is_up_while_enough_of_its_members_are() {
        let names = named(&["a", "b", "c"]);
        let text = pool("members_up = 2", &lines_of(&names));
        let mut tree = StateTree::of(&read(&text), at(0));
        let mut tell = |member, verdict| {
            let events = tree.tracker_changed(place(0, member, 0), state(verdict), at(1), None);
            let details: Vec<_> = (events.iter())
                .filter(|event| event.member.is_none())
                .map(|event| event.detail.as_deref().unwrap_or_default().to_owned())
                .collect();
            (shorts(&events), details, in_use(&tree))
        };
        let of_member = |name: &str, number: u8, change: &str| {
            vec![
                format!("pool {name} 10.20.{number}.9 {change}"),
                format!("pool {name} - {change}"),
            ]
        };
        let with = |mut lines: Vec<String>, service: &str| {
            lines.push(format!("pool - - {service}"));
            lines
        };
        let none: [&str; 0] = [];
        assert_eq!(
            tell(0, Verdict::Up),
            (
                of_member("a", 0, "unknown>up replied"),
                vec![],
                vec!["a".to_owned()]
            )
        );
        let (lines, details, used) = tell(1, Verdict::Up);
        assert_eq!(
            lines,
            with(
                of_member("b", 1, "unknown>up replied"),
                "unknown>up replied"
            )
        );
        assert_eq!(
            (details, used),
            (vec![String::new()], vec!["a".to_owned(), "b".to_owned()])
        );
        tell(2, Verdict::Up);
        let (lines, _, used) = tell(0, Verdict::Down);
        assert_eq!(lines, of_member("a", 0, "up>down no-reply"));
        assert_eq!(used, ["b", "c"]);
        let (lines, details, used) = tell(2, Verdict::Down);
        assert_eq!(
            lines,
            with(of_member("c", 2, "up>down no-reply"), "up>down no-reply")
        );
        assert_eq!(details, ["1 of 3 members up, 2 needed"]);
        assert_eq!(used, ["b"]);
        // One that is unknown may still be up.
        let (lines, ..) = tell(2, Verdict::Unknown);
        assert_eq!(
            lines,
            with(
                of_member("c", 2, "down>unknown no-reply"),
                "down>unknown no-reply"
            )
        );
        tell(1, Verdict::Down);
        let (.., used) = tell(2, Verdict::Down);
        assert_eq!(used, none);
        let status = tree.status(|_| Counters::default());
        let service = &status.services[0];
        assert_eq!(
            (service.members_up, &service.selected),
            (Some(2), &Selected::Several(vec![]))
        );
        let member = &service.members[1];
        assert_eq!(
            (
                member.name.as_str(),
                member.role,
                member.priority,
                member.weight
            ),
            ("b", None, Some(0), Some(1))
        );
    }

    #[test]
    fn priority_numbers_are_used_from_the_lowest_on_and_admin_states_count() {
        let lines = [
            "name = \"a\"",
            "name = \"b\"\npriority = 1",
            "name = \"c\"\npriority = 1",
            "name = \"d\"\npriority = 2",
        ];
        let mut tree = StateTree::of(&read(&pool("members_up = 2", &lines)), at(0));
        for member in 0..4 {
            tree.tracker_changed(place(0, member, 0), state(Verdict::Up), at(1), None);
        }
        assert_eq!(in_use(&tree), ["a", "b", "c"]);
        let impose = |tree: &mut StateTree, member, word: &str| {
            let admin: Admin = serde_json::from_str(&format!(
                "{{\"state\":\"{word}\",\"reason\":null,\"until\":null,\"by\":null}}"
            ))
            .unwrap();
            let of = AdminOf {
                service: 0,
                member: Some(member),
            };
            shorts(&tree.set_admin(of, admin, at(2)))
        };
        assert_eq!(impose(&mut tree, 1, "down"), ["pool b - up>down replied"]);
        assert_eq!(in_use(&tree), ["a", "c"]);
        impose(&mut tree, 0, "down");
        assert_eq!(in_use(&tree), ["c", "d"]);
        // One in maintenance counts as before, whatever its probes say.
        impose(&mut tree, 2, "maintenance");
        tree.tracker_changed(place(0, 2, 0), state(Verdict::Down), at(3), None);
        assert_eq!(in_use(&tree), ["c", "d"]);
        let told = impose(&mut tree, 3, "down");
        assert_eq!(
            told,
            ["pool d - up>down replied", "pool - - up>down replied"]
        );
        impose(&mut tree, 0, "auto");
        assert_eq!(in_use(&tree), ["a", "c"]);
    }

    #[test]
    fn a_pair_without_preemption_keeps_its_standby_until_that_falls() {
        let text = PAIR.replacen("name = \"pair\"", "name = \"pair\"\npreempt = false", 1);
        let config = read(&text);
        let mut tree = StateTree::of(&config, at(0));
        let tell = |tree: &mut StateTree, member, verdict, ms| {
            tree.tracker_changed(place(0, member, 0), state(verdict), at(ms), None);
            in_use(tree).concat()
        };
        // The order of first verdicts decides nothing.
        assert_eq!(tell(&mut tree, 1, Verdict::Up, 1), "standby");
        assert_eq!(tell(&mut tree, 0, Verdict::Up, 2), "active");
        assert_eq!(tree.take_kept(), [("pair".into(), vec![0])]);
        assert_eq!(tell(&mut tree, 0, Verdict::Down, 3), "standby");
        assert_eq!(tree.take_kept(), [("pair".into(), vec![1])]);
        assert_eq!(tell(&mut tree, 0, Verdict::Up, 4), "standby");
        assert_eq!(tree.take_kept(), []);

        // The next daemon goes on with it.
        let mut next = StateTree::of(&config, at(5));
        next.restore([(0, tree.shown(0).unwrap())], at(5));
        assert_eq!(in_use(&next), ["standby"]);
        assert_eq!(tell(&mut next, 1, Verdict::Down, 6), "active");
        assert_eq!(tell(&mut next, 1, Verdict::Up, 7), "active");

        // With preemption the active one is back at once; without it again, what is in use stays.
        let preempting = read(PAIR);
        tree.replace(&preempting, at(8), unused);
        assert_eq!(in_use(&tree), ["active"]);
        tell(&mut tree, 0, Verdict::Down, 9);
        tree.replace(&config, at(10), unused);
        assert_eq!(tell(&mut tree, 0, Verdict::Up, 11), "standby");
        // None is up: the active one has the name, and the first that comes is in use.
        assert_eq!(tell(&mut tree, 0, Verdict::Down, 12), "standby");
        assert_eq!(tell(&mut tree, 1, Verdict::Down, 13), "active");
        assert_eq!(tell(&mut tree, 1, Verdict::Up, 14), "standby");
        assert_eq!(tell(&mut tree, 0, Verdict::Up, 15), "standby");
    }

    #[test]
    fn an_active_that_comes_late_leaves_the_standby_in_use() {
        let text = PAIR.replacen("name = \"pair\"", "name = \"pair\"\npreempt = false", 1);
        let mut tree = StateTree::of(&read(&text), at(0));
        tree.tracker_changed(place(0, 1, 0), state(Verdict::Up), at(1), None);
        assert_eq!(in_use(&tree), ["standby"]);
        tree.tracker_changed(place(0, 0, 0), state(Verdict::Up), at(60_000), None);
        assert_eq!(in_use(&tree), ["standby"]);
    }

    #[test]
    fn a_change_of_one_member_of_a_pool_leaves_the_others_alone() {
        let text = |b: &str, more: &str| {
            pool("members_up = 2", &["name = \"a\"", b, "name = \"c\""]) + more
        };
        let config = read(&text("name = \"b\"", ""));
        let mut tree = StateTree::of(&config, at(0));
        for member in 0..3 {
            tree.tracker_changed(place(0, member, 0), state(Verdict::Up), at(1), None);
        }
        let slots = [(0u32, 7u32), (1, 8), (2, 9)];
        for (member, slot) in slots {
            tree.place_tracker(place(0, member, 0), slot);
        }
        let known = |tree: &StateTree| {
            let service = tree.services().next().unwrap();
            let members = service.members.iter();
            let members = members.map(|member| {
                let name = member.settings.name.to_string();
                (name, member.verdict, member.trackers[0].slot)
            });
            (service.since, members.collect::<Vec<_>>())
        };
        let before = known(&tree);
        // Weights, priorities and the order change what is in use, and nothing else.
        let events = tree.replace(
            &read(&text("name = \"b\"\nweight = 9\npriority = 3", "")),
            at(2),
            unused,
        );
        assert_eq!((events, known(&tree)), (vec![], before.clone()));
        assert_eq!(in_use(&tree), ["a", "c"]);

        // Another endpoint is another member, which is told; the service stays up by the others.
        let moved = text("name = \"b\"", "").replace("10.9.1.2", "10.9.9.2");
        let events = tree.replace(&read(&moved), at(3), unused);
        assert_eq!(
            shorts(&events),
            [
                "pool b 10.20.1.9 up>unknown no-reply",
                "pool b - up>unknown no-reply"
            ]
        );
        assert!(events.iter().all(|event| event.kind == EventKind::Removed));
        let (since, members) = known(&tree);
        assert_eq!(since, before.0);
        assert_eq!([&members[0], &members[2]], [&before.1[0], &before.1[2]]);
        assert_eq!(members[1], ("b".to_owned(), Verdict::Unknown, None));
        // Its number is a new one: what is found of the old one changes nothing.
        assert_eq!(
            tree.tracker_changed(place(0, 1, 0), state(Verdict::Down), at(4), None),
            []
        );
        tree.tracker_changed(place(0, 3, 0), state(Verdict::Up), at(4), None);
        assert_eq!(in_use(&tree), ["a", "b", "c"]);

        // Without its last members but one, too few are up.
        let fewer = read(&pool("members_up = 2", &["name = \"c\"", "name = \"z\""]));
        let fewer = Config {
            services: vec![Service {
                members: vec![
                    config.services[0].members[2].clone(),
                    fewer.services[0].members[1].clone(),
                ],
                ..fewer.services[0].clone()
            }],
            ..fewer
        };
        let events = tree.replace(&fewer, at(5), unused);
        assert_eq!(
            shorts(&events),
            [
                "pool a 10.20.0.9 up>unknown no-reply",
                "pool a - up>unknown no-reply",
                "pool b 10.20.1.9 up>unknown no-reply",
                "pool b - up>unknown no-reply",
                "pool - - up>unknown no-reply",
            ]
        );
    }

    /// Each change of a member of a large pool costs the same.
    #[test]
    fn a_pool_that_falls_takes_linear_time() {
        for lines in ["", "preempt = false"] {
            crate::growth::assert_linear("changes of members", 1_000, |count| {
                let ranks: Vec<_> = (0..count)
                    .map(|at| format!("name = \"m{at}\"\npriority = {at}"))
                    .collect();
                let mut text = format!("[[service]]\nname = \"pool\"\n{lines}\n");
                for (at, rank) in ranks.iter().enumerate() {
                    let endpoint = std::net::Ipv4Addr::from(0x0a1e_0000 + at as u32);
                    text.push_str(&format!(
                        "[[service.member]]\n{rank}\nendpoint = \"{endpoint}\"\nbehind = [\"10.20.0.9\"]\n"
                    ));
                }
                let config = read(&text);
                let mut tree = StateTree::of(&config, at(0));
                // Other numbers than positions, as after a change.
                let mut turned = config.clone();
                turned.services[0].members.rotate_left(1);
                tree.replace(&turned, at(1), unused);
                crate::growth::processor_time(|| {
                    for verdict in [Verdict::Up, Verdict::Down] {
                        for member in 0..count as u32 {
                            tree.tracker_changed(place(0, member, 0), state(verdict), at(2), None);
                        }
                    }
                })
            });
        }
    }

    #[test]
    fn what_is_imposed_on_a_member_stays_with_its_name() {
        let names = named(&["a", "b"]);
        let text = pool("", &lines_of(&names));
        let mut tree = StateTree::of(&read(&text), at(0));
        let until = at(60_000).wall;
        let admin: Admin = serde_json::from_str(&format!(
            "{{\"state\":\"down\",\"reason\":null,\"until\":\"{until}\",\"by\":null}}"
        ))
        .unwrap();
        let of = |member| AdminOf {
            service: 0,
            member: Some(member),
        };
        tree.set_admin(of(1), admin.clone(), at(1));
        tree.replace(&read(&text.replace("10.9.1.2", "10.9.7.2")), at(2), unused);
        let (kept, effective) = tree.admin(of(2)).unwrap();
        assert_eq!((&**kept, effective), (&admin, Verdict::Down));
        assert_eq!(tree.admin_due(at(60_000)), [of(2)]);
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
            let mut tree = StateTree::of(&config, at(0));
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

        /// Against a model without memory: whatever changes of a pool, its verdict is that of the rules over what counts of its
        /// members, and what is in use follows from their priorities.
        #[test]
        fn a_pool_agrees_with_the_rules(
            priorities in prop::collection::vec(0u16..3, 2..6),
            members_up in prop::sample::select(&["\"any\"", "\"all\"", "1", "2"][..]),
            changes in prop::collection::vec((0u32..6, 0usize..3, 0usize..4), 0..60),
        ) {
            let lines: Vec<_> = (priorities.iter().enumerate())
                .map(|(at, priority)| format!("name = \"m{at}\"\npriority = {priority}"))
                .collect();
            let config = read(&pool(&format!("members_up = {members_up}"), &lines_of(&lines)));
            let policy = config.services[0].members_up;
            let mut tree = StateTree::of(&config, at(0));
            let count = priorities.len();
            let mut measured = vec![Verdict::Unknown; count];
            let mut counts = measured.clone();
            let mut imposed = vec![0; count];
            let mut last = Verdict::Unknown;
            for (step, (member, verdict, admin)) in (1..).zip(changes) {
                let at_member = member as usize % count;
                let mut events = Vec::new();
                if admin == imposed[at_member] {
                    let verdict = [Verdict::Unknown, Verdict::Up, Verdict::Down][verdict];
                    measured[at_member] = verdict;
                    let place = place(0, at_member as u32, 0);
                    events.extend(tree.tracker_changed(place, state(verdict), at(step), None));
                } else {
                    imposed[at_member] = admin;
                    let word = ["auto", "maintenance", "up", "down"][admin];
                    let admin = serde_json::json!({"state": word, "reason": null, "until": null, "by": null});
                    let of = AdminOf { service: 0, member: Some(at_member as u32) };
                    events.extend(tree.set_admin(of, serde_json::from_value(admin).unwrap(), at(step)));
                }
                counts[at_member] = match imposed[at_member] {
                    0 => measured[at_member],
                    1 => counts[at_member],
                    2 => Verdict::Up,
                    _ => Verdict::Down,
                };
                let verdict = naive(policy, &counts);
                let own = events.iter().filter(|event| event.member.is_none());
                for event in own {
                    prop_assert_eq!((event.from, event.to), (last, verdict));
                    last = verdict;
                }
                prop_assert_eq!(last, verdict);
                let status = tree.status(|_| Counters::default());
                prop_assert_eq!(status.services[0].verdict, verdict);
                let found: Vec<_> = status.services[0].members.iter().map(|member| member.effective).collect();
                prop_assert_eq!(&found, &counts);

                let mut order: Vec<u16> = priorities.clone();
                order.sort_unstable();
                order.dedup();
                let mut expected = vec![false; count];
                for priority in order {
                    if expected.iter().filter(|used| **used).count() >= policy.needed(count) {
                        break;
                    }
                    for (at, expected) in expected.iter_mut().enumerate() {
                        *expected |= priorities[at] == priority && counts[at] == Verdict::Up;
                    }
                }
                let expected: Vec<_> = (0..count).filter(|at| expected[*at]).map(|at| format!("m{at}")).collect();
                prop_assert_eq!(in_use(&tree), expected);
            }
        }

        /// A change is reported not before it lasted, and at the first tick after.
        #[test]
        fn hold_down_is_exact(hold_ms in 1u64..1000, early in 0u64..1000) {
            let text = format!("{}hold_down = \"{hold_ms}ms\"\n", single("fw", "\"any\"", 1));
            let config = read(&text);
            prop_assert_eq!(config.services[0].members[0].trackers[0].hold_down, Duration::from_millis(hold_ms));
            let mut tree = StateTree::of(&config, at(0));
            tree.tracker_changed(place(0, 0, 0), state(Verdict::Down), at(7), None);
            prop_assert_eq!(tree.tick(at(7 + early % hold_ms)), vec![]);
            prop_assert_eq!(tree.tick(at(7 + hold_ms)).len(), 2);
        }
    }
}

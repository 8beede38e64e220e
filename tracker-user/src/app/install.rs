//! Places in the kernel's maps for the services: at the start, at each reload, and for what is added
//! and removed in between.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Result, bail};
use tracker_ebpf::{
    abi,
    verdict::{Cause, Rules, Verdict},
    window::Window,
};

use super::{Attachment, Daemon, Leaving, Tracker, nanoseconds, stamp};
use crate::{
    config::{self, Addition, Config, Expect, Flow, Member, Origin, Refused, Service},
    datapath::loader::Sizes,
    desired::{
        diff::{self, Pairs, Used},
        slots::{BuddyAllocator, SlotAllocator},
    },
    detector::{
        engine::{Command, TrackerSpec},
        flows::{FlowRule, Share, Turnover},
        streams::StreamAllocator,
    },
    host::ports,
    plan::{
        address::address_bytes,
        member::{self, Fault},
    },
    state::tree::{TrackerRef, TrackerState},
};

/// BuddyAllocator of WINDOWS for each tracker that may be added: what one with a timeout of up to 448 intervals
/// needs, though most need only half of it.
const ROOM_WORDS: usize = 8;

/// So many trackers give their places back at a time, in about 10 ms.
const LEAVING_SLICE: usize = 1_024;
/// BuddyAllocator of WINDOWS for each TCP tracker's share of the source ports: a run of twice as many as there are trackers of one
/// port, beside the one of half that size before it.
const STREAM_WORDS: usize = 3;

/// What is free in the maps.
pub(super) struct Places {
    pub(super) slots: SlotAllocator,
    pub(super) paths: SlotAllocator,
    pub(super) words: BuddyAllocator,
    /// By which answers to the probes of TCP trackers are told apart.
    pub(super) streams: StreamAllocator,
    room: u32,
}

impl Places {
    pub(super) fn new(sizes: Sizes, room: u32) -> Self {
        Self {
            slots: SlotAllocator::new(sizes.trackers),
            paths: SlotAllocator::new(sizes.paths),
            words: BuddyAllocator::new(sizes.words),
            streams: StreamAllocator::default(),
            room,
        }
    }

    /// Says that a place in the maps that an earlier daemon gave is in use; false where it was taken.
    pub(super) fn claim(&mut self, slot: u32, entry: &abi::Tracker) -> bool {
        if !self.slots.claim(slot) {
            return false;
        }
        if !self.words.claim(entry.window_first, entry.words()) {
            self.slots.give(slot);
            return false;
        }
        if entry.probe == abi::Probe::Tcp
            && !(self.streams).claim(&entry.stream(), slot, entry.flow_first)
        {
            self.words.give(entry.window_first, entry.words());
            self.slots.give(slot);
            return false;
        }
        true
    }

    /// Gives a tracker's place back, but for that of its stream.
    fn give(&mut self, slot: u32, entry: &abi::Tracker) {
        self.slots.give(slot);
        self.words.give(entry.window_first, entry.words());
    }

    /// Whether what comes finds place once what goes has given its own back; nothing is taken.
    fn check(&self, going: &Going, coming: &Coming<'_>) -> Result<()> {
        let slots = self.slots.available() + going.words.len();
        let paths = self.paths.available() + going.paths;
        let trackers = coming.trackers.len();
        let mut words = self.words.clone();
        for (first, count) in &going.words {
            words.give(*first, *count);
        }
        let mut fits = trackers <= slots && coming.paths <= paths;
        for tracker in &coming.trackers {
            fits = fits && words.take(words_of(tracker)).is_some();
        }
        let mut streams = HashMap::new();
        let tcp = coming.trackers.iter();
        for tracker in tcp.filter(|tracker| tracker.kind() == abi::Probe::Tcp) {
            *streams.entry(entry(tracker, 0).stream()).or_insert(0) += 1;
        }
        for (key, coming) in &streams {
            let needs = self.streams.needs(key, *coming);
            fits = fits && needs.is_none_or(|count| words.take(count).is_some());
        }
        if !fits {
            bail!(
                "no room for {trackers} more trackers in the maps of this daemon, which has {slots} free; raise room of \
                 [hub], now {}, and restart it",
                self.room
            );
        }
        Ok(())
    }
}

/// What gives its places back.
#[derive(Default)]
struct Going {
    paths: usize,
    words: Vec<(u32, u32)>,
}

impl Going {
    fn tracker(&mut self, tracker: &Tracker) {
        let entry = &tracker.entry;
        self.words.push((entry.window_first, entry.words()));
    }
}

/// What needs places.
#[derive(Default)]
struct Coming<'a> {
    paths: usize,
    trackers: Vec<&'a config::Tracker>,
}

impl Daemon {
    /// Gives every member and tracker of the config its place, keeping those that go on as `pairs` says; the rest of
    /// those that were there gives its places back first. Says what is known of trackers whose probes go on at another
    /// pace: the engine was told anew of them.
    pub(super) fn install(&mut self, pairs: &Pairs) -> Vec<(u32, TrackerState)> {
        let mut old = std::mem::take(&mut self.members);
        let services = std::mem::take(&mut self.config.services);
        let mut kept = Vec::new();
        for (number, service) in (0..).zip(&services) {
            for (at, member) in (0..).zip(&service.members) {
                let place = (number, at);
                let known = pairs.old(place).and_then(|place| old.remove(&place));
                let known = known.map(|known| self.keep_wanted(known, member));
                kept.push((place, service, member, known));
            }
        }
        for gone in old.into_values() {
            self.uninstall_member(gone);
        }
        self.by_slot.clear();
        self.shared.core().slots.clear();
        let mut repaced = Vec::new();
        for (place, service, member, known) in kept {
            let (known, kept) = known.unzip();
            let kept = kept.unwrap_or_default();
            self.install_member(place, service, member, known, kept, &mut repaced);
        }
        self.config.services = services;
        repaced
    }

    /// What an installed member uses that its configuration may leave open.
    pub(super) fn used(&self, place: (u32, u32)) -> Used {
        let plan = self
            .members
            .get(&place)
            .and_then(|member| member.plan.as_ref());
        let Some(plan) = plan else {
            return Used::default();
        };
        let sources = plan.probings.iter().flatten();
        Used {
            interface: plan
                .ifindex()
                .map_or_else(Vec::new, |ifindex| self.names(ifindex)),
            sources: sources.map(|probing| probing.source).collect(),
        }
    }

    /// The names of an interface, the one that the kernel shows first.
    pub(super) fn names(&self, ifindex: u32) -> Vec<String> {
        let link = self.netlink.observed.links.get(&ifindex);
        link.map_or_else(Vec::new, |link| link.names().map(str::to_owned).collect())
    }

    /// Which members of a config go on as which of the installed ones.
    fn pairs(&self, config: &Config) -> Pairs {
        let old = self.members.iter();
        let old = old.map(|(place, known)| (*place, known.service_name.as_str(), &known.config));
        diff::members(old, &config.services, |place| self.used(place))
    }

    /// Takes those trackers off a member that it no longer has. Those that go on come back in the order of the new
    /// ones.
    fn keep_wanted(
        &mut self,
        mut known: Attachment,
        member: &Member,
    ) -> (Attachment, Vec<Option<Kept>>) {
        let pairs = diff::trackers(&known.config.trackers, &member.trackers);
        // Trackers that found no place are missing.
        let before = std::mem::take(&mut known.trackers);
        let mut before: HashMap<usize, Tracker> = match before.len() == known.config.trackers.len()
        {
            true => before.into_iter().enumerate().collect(),
            false => {
                before.iter().for_each(|gone| self.uninstall_tracker(gone));
                HashMap::new()
            }
        };
        let kept: Vec<Option<Tracker>> =
            pairs.into_iter().map(|old| before.remove(&old?)).collect();
        for gone in before.values() {
            self.uninstall_tracker(gone);
        }
        let kept = kept.into_iter().zip(&member.trackers);
        let kept = kept.map(|(tracker, wanted)| Some(self.keep_tracker(tracker?, wanted)));
        (known, kept.collect())
    }

    /// Has a tracker's place hold another pace, thresholds or bounds of replies. What the engine counts by intervals and
    /// timeouts begins anew, from the same verdict.
    fn keep_tracker(&mut self, mut tracker: Tracker, wanted: &config::Tracker) -> Kept {
        if tracker.config == *wanted {
            return Kept {
                tracker,
                resume: None,
            };
        }
        let pace = |tracker: &config::Tracker| (tracker.interval, tracker.timeout);
        let keeps_pace = pace(&tracker.config) == pace(wanted);
        let rules = |tracker: &config::Tracker| (tracker.fall, tracker.rise);
        if keeps_pace && rules(&tracker.config) != rules(wanted) {
            let rules = Rules {
                fall: wanted.fall,
                rise: wanted.rise,
            };
            self.sender.command(Command::SetRules(tracker.slot, rules));
        }
        let mut resume = None;
        if !keeps_pace {
            self.sender.command(Command::Remove(tracker.slot));
            let state = self.kernel.states().state(tracker.slot);
            let verdict = Verdict::from_u8(state.receive.verdict);
            resume = Some((verdict, Cause::from_u8(state.judge.cause)));
        }
        let before = tracker.entry;
        tracker.entry = same_place(&entry(wanted, before.path), &before);
        if tracker.entry.words() != before.words() {
            // Nothing is written into its bit set any more.
            let idle = abi::Tracker {
                active: 0,
                ..before
            };
            if let Err(error) = self.kernel.set_tracker(tracker.slot, &idle) {
                tracing::warn!("{error:#}");
            }
            self.places.words.give(before.window_first, before.words());
        } else if keeps_pace
            && tracker.entry != before
            && let Err(error) = self.kernel.set_tracker(tracker.slot, &tracker.entry)
        {
            tracing::warn!("{error:#}");
        }
        let before_words = before.words();
        tracker.config = wanted.clone();
        Kept {
            resume: resume.map(|resume| (resume, before_words)),
            tracker,
        }
    }

    /// Gives the engine a tracker whose pace is another one, in the same place.
    fn repace(
        &mut self,
        mut tracker: Tracker,
        (resume, before_words): ((Verdict, Cause), u32),
    ) -> Option<Tracker> {
        let words = tracker.entry.words();
        if words != before_words {
            let Some(first) = self.places.words.take(words_of(&tracker.config)) else {
                self.sender.command(Command::Remove(tracker.slot));
                self.places.slots.give(tracker.slot);
                return None;
            };
            tracker.entry.window_first = first;
            self.kernel.clear_window(&tracker.entry);
        }
        // What is reported of it from before, and replies to what was sent at the old pace, are of another generation.
        self.epoch = self.epoch.wrapping_add(1);
        tracker.entry.epoch = self.epoch;
        if let Err(error) = self.kernel.set_tracker(tracker.slot, &tracker.entry) {
            tracing::warn!("{error:#}");
        }
        Some(self.start_tracker(&tracker.config, tracker.slot, tracker.entry, Some(resume)))
    }

    /// Gives a member of which `known` is installed already what it lacks. `kept` are its trackers that go on, by
    /// position; `repaced` gets what is known of those whose pace is another one. Whether there is room was seen before.
    pub(super) fn install_member(
        &mut self,
        (service, at): (u32, u32),
        config: &Service,
        member: &Member,
        known: Option<Attachment>,
        kept: Vec<Option<Kept>>,
        repaced: &mut Vec<(u32, TrackerState)>,
    ) {
        let mut kept = kept.into_iter();
        self.place_member(
            (service, at),
            config,
            member,
            known,
            |daemon, attachment, tracker| match kept.next().flatten() {
                Some(Kept {
                    tracker,
                    resume: None,
                }) => Some(tracker),
                Some(Kept {
                    tracker,
                    resume: Some(resume),
                }) => {
                    attachment.plan = None;
                    let (verdict, cause) = resume.0;
                    let state = TrackerState {
                        verdict,
                        cause,
                        detail: None,
                    };
                    repaced.push((tracker.slot, state));
                    daemon.repace(tracker, resume)
                }
                None => {
                    attachment.plan = None;
                    daemon.install_tracker(tracker, attachment.path, None)
                }
            },
        );
    }

    /// Gives a member its place, `known` or a new one, and each of its trackers what `install` makes of it.
    pub(super) fn place_member(
        &mut self,
        (service, at): (u32, u32),
        config: &Service,
        member: &Member,
        known: Option<Attachment>,
        mut install: impl FnMut(&mut Self, &mut Attachment, &config::Tracker) -> Option<Tracker>,
    ) {
        let known = known.or_else(|| {
            Some(Attachment {
                service,
                member: at,
                service_name: config.name.clone(),
                config: member.clone(),
                path: self.take_path()?,
                plan: None,
                entry: abi::Path::default(),
                moving: None,
                trackers: Vec::new(),
            })
        });
        let Some(mut attachment) = known else {
            return;
        };
        attachment.service = service;
        attachment.member = at;
        attachment.config = member.clone();
        attachment.trackers.clear();
        for (tracker_at, tracker) in (0..).zip(&member.trackers) {
            let Some(installed) = install(self, &mut attachment, tracker) else {
                continue;
            };
            let at = TrackerRef {
                service,
                member: at,
                tracker: tracker_at,
            };
            self.by_slot.insert(installed.slot, at);
            self.shared.core().slots.insert(at, installed.slot);
            attachment.trackers.push(installed);
        }
        self.members.insert((service, at), attachment);
    }

    /// A path slot for a new member.
    fn take_path(&mut self) -> Option<u32> {
        let path = self.places.paths.take()?;
        if let Some(steering) = &self.steering {
            steering.reset(path);
        }
        Some(path)
    }

    /// Gives a tracker a new place. One that an earlier daemon had elsewhere goes on from its verdict and, where they
    /// could be read, its counters.
    pub(super) fn install_tracker(
        &mut self,
        tracker: &config::Tracker,
        path: u32,
        left: Option<((Verdict, Cause), Option<abi::State>)>,
    ) -> Option<Tracker> {
        let slot = self.places.slots.take()?;
        let window_first = self.places.words.take(words_of(tracker))?;
        self.epoch = self.epoch.wrapping_add(1);
        let entry = abi::Tracker {
            epoch: self.epoch,
            window_first,
            salt: self.kernel.salt(slot, self.epoch),
            ..entry(tracker, path)
        };
        let entry = abi::Tracker {
            flow_first: self.flow_first(&entry, slot)?,
            ..entry
        };
        let (resume, state) = left.unzip();
        self.kernel.reset(slot, &entry, state.flatten());
        Some(self.start_tracker(tracker, slot, entry, resume))
    }

    /// ICMP identifier or source port with which a tracker begins.
    fn flow_first(&mut self, entry: &abi::Tracker, slot: u32) -> Option<u16> {
        Some(match entry.probe {
            abi::Probe::Icmp => self.icmp_base ^ slot as u16,
            abi::Probe::Udp | abi::Probe::Stamp => {
                abi::FIXED_PORTS | (slot as u16 & abi::PORTS_MASK)
            }
            abi::Probe::Tcp => self.take_stream(entry.stream(), slot)?,
        })
    }

    /// The first source port of a TCP tracker, which tells it from others of the same port of the same address.
    fn take_stream(&mut self, key: abi::StreamKey, slot: u32) -> Option<u16> {
        let places = &mut self.places;
        let placed = places.streams.take(key, slot, &mut places.words)?;
        let group = places.streams.group(&key)?;
        match (placed.left, group.slots.len()) {
            (None, 2..) => {
                let at = group.streams.first + u32::from(placed.class);
                self.kernel.set_stream(at, u64::from(slot) + 1);
            }
            _ => {
                if let Err(error) = self.kernel.set_streams(&key, group) {
                    tracing::warn!("{error:#}");
                }
            }
        }
        if let Some(left) = placed.left {
            for (class, other) in (0..).zip(&group.slots) {
                if let Some(other) = other.filter(|other| *other != slot) {
                    let share = group.share(class);
                    self.sender.command(Command::SetShare(other, share));
                }
            }
            places.words.give(left.first, left.mask() + 1);
        }
        Some(StreamAllocator::first_port(placed.class))
    }

    /// Gives back the source ports of a TCP tracker.
    fn give_stream(&mut self, key: abi::StreamKey, slot: u32) {
        let places = &mut self.places;
        if let Some(at) = places.streams.give(&key, slot) {
            self.kernel.set_stream(at, 0);
        }
        if let Some(left) = places.streams.forget_empty(&key) {
            self.kernel.remove_streams(&key);
            places.words.give(left.first, left.mask() + 1);
        }
    }

    /// Takes over what an earlier daemon wrote of TCP trackers' ports, before its trackers are.
    pub(super) fn adopt_streams(&mut self) {
        for (key, streams) in self.kernel.streams() {
            let places = &mut self.places;
            if !places.streams.adopt(key, streams, &mut places.words) {
                self.kernel.remove_streams(&key);
            }
        }
    }

    /// Takes out of the maps what it wrote of trackers that are no more.
    pub(super) fn settle_streams(&mut self) {
        let keys: Vec<_> = (self.places.streams.groups().map(|(key, _)| *key)).collect();
        for key in keys {
            let places = &mut self.places;
            if let Some(left) = places.streams.forget_empty(&key) {
                self.kernel.remove_streams(&key);
                places.words.give(left.first, left.mask() + 1);
            } else if let Some(group) = places.streams.group(&key)
                && let Err(error) = self.kernel.set_streams(&key, group)
            {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// By which flows a tracker's probes go.
    fn flow_rule(&self, tracker: &config::Tracker, entry: &abi::Tracker) -> FlowRule {
        let share = match entry.probe {
            abi::Probe::Tcp => {
                let group = self.places.streams.group(&entry.stream());
                let class = StreamAllocator::class(entry.flow_first);
                group.map(|group| group.share(class)).unwrap_or_default()
            }
            _ => Share::default(),
        };
        FlowRule {
            turnover: match (tracker.flow, tracker.expect) {
                (Flow::Rotate, _) => Turnover::Always,
                (Flow::Fixed, Expect::Reply) => Turnover::OnLoss,
                (Flow::Fixed, Expect::Silence) => Turnover::Never,
            },
            is_connection: entry.probe == abi::Probe::Tcp,
            is_identifier: entry.probe == abi::Probe::Icmp,
            first: entry.flow_first,
            share,
        }
    }

    /// Has the engine take a tracker whose place is prepared, or was its place before.
    pub(super) fn start_tracker(
        &self,
        tracker: &config::Tracker,
        slot: u32,
        entry: abi::Tracker,
        resume: Option<(Verdict, Cause)>,
    ) -> Tracker {
        // What goes on from a verdict is not at fault before it is known to be.
        let fault = resume.is_none().then(Fault::pending);
        self.sender.command(Command::Install(TrackerSpec {
            slot,
            epoch: entry.epoch,
            path: entry.path,
            interval_ns: nanoseconds(tracker.interval),
            timeout_ns: nanoseconds(tracker.timeout),
            rules: Rules {
                fall: tracker.fall,
                rise: tracker.rise,
            },
            window: entry.window(),
            fault: fault.as_ref().map(|fault| fault.cause),
            expects_silence: tracker.expect == Expect::Silence,
            flows: self.flow_rule(tracker, &entry),
            resume,
        }));
        Tracker {
            slot,
            generation: entry.epoch,
            config: tracker.clone(),
            entry,
            fault,
        }
    }

    fn uninstall_member(&mut self, member: Attachment) {
        for tracker in &member.trackers {
            self.uninstall_tracker(tracker);
        }
        self.clear_path(member.path);
        self.places.paths.give(member.path);
    }

    /// Ends a member's probes at once, and has its places freed by and by: those of 65,534 trackers take half a second, for
    /// which others' verdicts do not wait.
    fn begin_leaving(&mut self, member: Attachment) {
        let slots = member.trackers.iter().map(|tracker| tracker.slot);
        self.sender.commands(slots.map(Command::Remove));
        self.leaving.push(Leaving {
            path: member.path,
            trackers: member.trackers,
        });
    }

    /// Frees places of trackers that are leaving, of so many at most.
    fn free_leaving(&mut self, most: usize) {
        let mut left = most;
        while let Some(mut member) = self.leaving.pop() {
            let from = member.trackers.len().saturating_sub(left);
            for tracker in member.trackers.drain(from..) {
                left -= 1;
                self.free_tracker(&tracker);
            }
            if !member.trackers.is_empty() {
                self.leaving.push(member);
                break;
            }
            self.clear_path(member.path);
            self.places.paths.give(member.path);
        }
        self.tell_room();
    }

    /// Frees places of some of the trackers that are leaving.
    pub(super) fn free_some(&mut self) {
        self.free_leaving(LEAVING_SLICE);
    }

    /// Frees the places of all trackers that are leaving: whatever comes may need them.
    pub(super) fn free_all(&mut self) {
        if !self.leaving.is_empty() {
            self.free_leaving(usize::MAX);
        }
    }

    /// Who gets the place next is not sent by the old path, and `cleanup` finds no neighbour in it.
    pub(super) fn clear_path(&self, path: u32) {
        let cause = Cause::InterfaceMissing;
        self.sender
            .command(Command::SetPath(path, abi::Path::default(), Some(cause)));
    }

    fn uninstall_tracker(&mut self, tracker: &Tracker) {
        self.sender.command(Command::Remove(tracker.slot));
        self.free_tracker(tracker);
    }

    /// Frees the places of a tracker for which nothing is sent any more.
    fn free_tracker(&mut self, tracker: &Tracker) {
        let gone = abi::Tracker {
            active: 0,
            ..tracker.entry
        };
        if let Err(error) = self.kernel.set_tracker(tracker.slot, &gone) {
            tracing::warn!("{error:#}");
        }
        if let Some(at) = self.by_slot.remove(&tracker.slot) {
            self.shared.core().slots.remove(&at);
        }
        if tracker.entry.probe == abi::Probe::Tcp {
            self.give_stream(tracker.entry.stream(), tracker.slot);
        }
        self.places.give(tracker.slot, &tracker.entry);
    }

    /// Adds a service; says so, or why nothing was changed.
    pub(super) async fn add_service(&mut self, addition: &Addition) -> Result<String, String> {
        let name = addition.name.clone();
        let refused = |why: String| format!("cannot add service {name:?}: {why}");
        self.free_all();
        let service = addition.service(&self.config).map_err(refused)?;
        if self.shared.core().tree.find(&service.name).is_some() {
            return Err(refused(format!(
                "there is one of this name; give another, or remove that one first with `tracker service remove {name}`"
            )));
        }
        let services = self.config.services.iter().chain([&service]);
        let members = services.flat_map(|service| &service.members);
        if let Some(why) = config::crowded(members.flat_map(|member| &member.trackers)) {
            return Err(refused(why));
        }
        let coming = Coming {
            paths: service.members.len(),
            trackers: service
                .members
                .iter()
                .flat_map(|member| &member.trackers)
                .collect(),
        };
        let room = self.places.check(&Going::default(), &coming);
        room.map_err(|error| refused(error.to_string()))?;
        let number = self.shared.core().tree.add(&service, stamp());
        for (at, member) in (0..).zip(&service.members) {
            let place = (number, at);
            self.install_member(place, &service, member, None, Vec::new(), &mut Vec::new());
        }
        self.tell_room();
        self.journal_added(&service, number);
        for member in &service.members {
            let followed = self
                .netlink
                .follow_one(member.endpoint, member::route_key(member));
            if let Err(error) = followed.await {
                tracing::error!("{error:#}");
            }
        }
        tracing::info!("added service {name}");
        self.config.services.push(service);
        Ok(format!("added {name}"))
    }

    /// Removes a service; says so, or why nothing was changed.
    pub(super) fn remove_service(&mut self, name: &str) -> Result<String, String> {
        let refused = |why: String| format!("cannot remove service {name:?}: {why}");
        let Some(number) = self.shared.core().tree.find(name) else {
            let known = self.config.services.iter();
            let likeliest = config::likeliest(name, known.map(|service| service.name.as_str()));
            return Err(refused(match likeliest {
                Some(likeliest) => {
                    format!("there is none of this name; did you mean {likeliest:?}?")
                }
                None => "this hub has no services; `tracker service add` makes one".to_owned(),
            }));
        };
        let mut chains = self.config.chains.iter();
        if let Some(chain) =
            chains.find(|chain| chain.services.iter().any(|service| service == name))
        {
            return Err(refused(format!(
                "the chain {:?} names it; take it out of the chain in the configuration and reload first",
                chain.name
            )));
        }
        let events = self.shared.core().tree.remove(number, stamp());
        self.publish_removal(name, events);
        let places: Vec<_> = self.members_of(number).collect();
        for place in places {
            if let Some(gone) = self.members.remove(&place) {
                self.begin_leaving(gone);
            }
        }
        self.free_some();
        self.config.services.retain(|service| service.name != name);
        self.is_following_more = true;
        tracing::info!("removed service {name}");
        Ok(format!("removed {name}"))
    }

    fn members_of(&self, service: u32) -> impl Iterator<Item = (u32, u32)> {
        let members = self.members.range((service, 0)..=(service, u32::MAX));
        members.map(|(place, _)| *place)
    }

    /// Has `tracker service list` say how many trackers still find place.
    pub(super) fn tell_room(&self) {
        self.shared.core().free = self.places.slots.available() as u32;
    }

    pub(super) async fn reload(&mut self, config: Config) {
        match self.try_reload(config).await {
            Ok(()) => tracing::info!("reloaded, watching {}", self.extent()),
            Err(error) => tracing::error!("not reloaded, the running config stays: {error:#}"),
        }
    }

    async fn try_reload(&mut self, mut config: Config) -> Result<()> {
        self.free_all();
        let (old, new) = (&self.config.hub, &config.hub);
        if (
            &old.instance,
            &old.socket,
            &old.bpffs,
            &old.state,
            &old.metrics,
            old.mode,
            old.room,
        ) != (
            &new.instance,
            &new.socket,
            &new.bpffs,
            &new.state,
            &new.metrics,
            new.mode,
            new.room,
        ) {
            bail!(
                "instance, socket, bpffs, state, metrics, mode and room of [hub] change only with a restart"
            );
        }
        let taken_over = keep_added(&mut config, &self.config.services);
        let pairs = self.pairs(&config);
        self.check_room(&config, &pairs)?;
        say_taken_over(&taken_over);
        let used = |place| self.used(place);
        let mut events = self.shared.core().tree.replace(&config, stamp(), used);
        self.config = config;
        self.sender
            .command(Command::SetPorts(Arc::new(ports::read())));
        let repaced = self.install(&pairs);
        events.extend(self.catch_up(repaced));
        self.begin_journal(events);
        self.tell_room();
        self.follow_members().await;
        self.reconcile().await;
        Ok(())
    }

    /// Whether what is new in a config finds a place beside what stays: nothing is taken.
    fn check_room(&self, config: &Config, pairs: &Pairs) -> Result<()> {
        let members = config.services.iter().flat_map(|service| &service.members);
        if let Some(why) = config::crowded(members.flat_map(|member| &member.trackers)) {
            bail!(why);
        }
        let mut old: BTreeMap<(u32, u32), &Attachment> = self
            .members
            .iter()
            .map(|(place, known)| (*place, known))
            .collect();
        let (mut going, mut coming) = (Going::default(), Coming::default());
        for (number, service) in (0..).zip(&config.services) {
            for (at, member) in (0..).zip(&service.members) {
                let known = pairs.old((number, at)).and_then(|place| old.remove(&place));
                coming.paths += usize::from(known.is_none());
                let known = known.map_or(&[][..], |known| &known.trackers);
                let before: Vec<_> = known.iter().map(|known| known.config.clone()).collect();
                let mut is_kept = vec![false; known.len()];
                let pairs = diff::trackers(&before, &member.trackers);
                for (pair, tracker) in pairs.into_iter().zip(&member.trackers) {
                    let keeps_words = |at: usize| known[at].entry.words() == words_of(tracker);
                    match pair {
                        Some(at) if keeps_words(at) => is_kept[at] = true,
                        _ => coming.trackers.push(tracker),
                    }
                }
                let gone = known.iter().zip(is_kept).filter(|(_, is_kept)| !is_kept);
                gone.for_each(|(tracker, _)| going.tracker(tracker));
            }
        }
        for gone in old.into_values() {
            going.paths += 1;
            gone.trackers
                .iter()
                .for_each(|tracker| going.tracker(tracker));
        }
        self.places.check(&going, &coming)
    }
}

/// Adds to a configuration those of an earlier one's services that were added at run time, but not those that it
/// names itself: their names are returned.
pub(super) fn keep_added(config: &mut Config, before: &[Service]) -> Vec<String> {
    let named: HashSet<&str> = config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    let added = before.iter();
    let added = added.filter(|service| service.origin == Origin::RunTime);
    let (taken_over, stay): (Vec<_>, Vec<_>) =
        added.partition(|service| named.contains(service.name.as_str()));
    config.services.extend(stay.into_iter().cloned());
    let names = taken_over.into_iter().map(|service| service.name.clone());
    names.collect()
}

/// Says which services are no longer what was added at run time.
pub(super) fn say_taken_over(names: &[String]) {
    for name in names {
        tracing::info!(
            "service {name}, added at run time, is now in the configuration, which counts"
        );
    }
}

/// What the maps say of a tracker wherever its place is.
pub(super) fn entry(tracker: &config::Tracker, path: u32) -> abi::Tracker {
    let probe = tracker.kind();
    abi::Tracker {
        behind: address_bytes(tracker.behind),
        timeout_ns: nanoseconds(tracker.timeout),
        path,
        window_mask: window_words(tracker) - 1,
        payload: tracker.wire_payload(),
        flow_mask: match tracker.flow {
            Flow::Fixed => 0,
            Flow::Rotate => u16::MAX,
        },
        port: tracker.port.unwrap_or(0),
        expects_silence: u8::from(tracker.expect == Expect::Silence),
        return_ttl: tracker.return_ttl.unwrap_or(0),
        refused_is_reply: u8::from(tracker.refused == Refused::Up),
        family: tracker.behind.into(),
        probe,
        ..Default::default()
    }
}

/// Members by service and position.
pub(super) type Members = BTreeMap<(u32, u32), Attachment>;

/// A tracker that goes on. Where its pace is another one, with the verdict from which it does, and how many words its
/// bit set had.
pub(super) struct Kept {
    tracker: Tracker,
    resume: Option<((Verdict, Cause), u32)>,
}

/// What the maps say of a tracker that keeps its place, once it is configured otherwise.
pub(super) fn same_place(wanted: &abi::Tracker, before: &abi::Tracker) -> abi::Tracker {
    abi::Tracker {
        source: before.source,
        epoch: before.epoch,
        window_first: before.window_first,
        flow_first: before.flow_first,
        salt: before.salt,
        proof: before.proof,
        active: before.active,
        ..*wanted
    }
}

/// BuddyAllocator of a tracker's bit set. Where send times are kept there is one for each probe under way, and as many words
/// of bits.
fn window_words(tracker: &config::Tracker) -> u32 {
    let (interval, timeout) = (tracker.interval, tracker.timeout);
    let words = Window::words(nanoseconds(interval), nanoseconds(timeout));
    if !tracker.kind().keeps_times() {
        return words;
    }
    let in_flight = nanoseconds(timeout) / nanoseconds(interval) + 2;
    words.max((in_flight as u32).next_power_of_two())
}

/// BuddyAllocator of WINDOWS that a tracker takes.
fn words_of(tracker: &config::Tracker) -> u32 {
    window_words(tracker) << u32::from(tracker.kind().keeps_times())
}

/// Map sizes for a config, with room for trackers that come later.
pub(super) fn sizes(config: &Config) -> Sizes {
    let members = config.services.iter().flat_map(|service| &service.members);
    let trackers = members.clone().flat_map(|member| &member.trackers);
    let room = config.hub.room as usize;
    let words: usize = trackers
        .clone()
        .map(|tracker| {
            let streams = match tracker.kind() {
                abi::Probe::Tcp => STREAM_WORDS,
                _ => 0,
            };
            words_of(tracker) as usize + streams
        })
        .sum();
    let size = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Sizes {
        trackers: size(trackers.count() + room),
        // Each of them may be a service of its own.
        paths: size(members.count() + room),
        words: size(words + room * ROOM_WORDS),
    }
}

//! The places of members and trackers in the kernel's maps, and what stands there.
//!
//! The installer goes by a [`Diff`] of desired states: at the start, at a reload, when a service is added or removed, and
//! after a restart, once it has adopted what an earlier daemon left. It writes through [`TrackerMaps`] and commands the sending
//! thread through [`Commands`], so it runs without a kernel in tests.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use tracker_ebpf::{
    abi,
    verdict::{Cause, Rules, Verdict},
};

use crate::{
    config::{self, Expect, Flow},
    datapath::{
        adopt::{Maps, Sizes},
        error::DatapathError,
        loader::Kernel,
    },
    desired::{
        diff::{Diff, MemberDiff},
        model::{Desired, MemberId, TrackerRef, Used},
    },
    detector::{
        engine::{Command, TrackerSpec},
        flows::{FlowRule, Share, Turnover},
        streams::{Group, StreamAllocator},
    },
    error::full,
    plan::{
        address::{address_bytes, address_from},
        member::{Fault, MemberPlan, Probing},
        observed::Observed,
    },
    reconcile::{
        map_space::{Added, MapSpace, NoRoom, Removed, entry, nanoseconds, same_place, words_of},
        sender::Sender,
    },
    state::{hold_down::TrackerState, journal::SavedService},
};

/// So many trackers give their places back at a time, in about 10 ms.
const FREE_AT_ONCE: usize = 1_024;

/// The maps that hold trackers.
pub trait TrackerMaps {
    /// Writes a tracker.
    ///
    /// # Errors
    /// What the kernel answered.
    fn set_tracker(&mut self, slot: u32, tracker: &abi::Tracker) -> Result<(), DatapathError>;
    /// Prepares a place for a new tracker: a state of zeros, or the one that it had elsewhere, and an empty bit set.
    fn reset(&mut self, slot: u32, tracker: &abi::Tracker, left: Option<abi::State>);
    /// Empties a tracker's bit set.
    fn clear_window(&mut self, tracker: &abi::Tracker);
    /// Writes which trackers of one TCP port there are.
    ///
    /// # Errors
    /// What the kernel answered.
    fn set_streams(&mut self, key: &abi::StreamKey, group: &Group) -> Result<(), DatapathError>;
    /// Writes one tracker of a TCP port.
    fn set_stream(&mut self, at: u32, word: u64);
    /// Forgets a TCP port.
    fn remove_streams(&mut self, key: &abi::StreamKey);
    /// All TCP ports.
    fn streams(&self) -> Vec<(abi::StreamKey, abi::Streams)>;
    /// A number that differs between the trackers that one slot has had.
    fn salt(&self, slot: u32, epoch: u32) -> u8;
    /// What is counted of a slot.
    fn state(&self, slot: u32) -> abi::State;
}

impl TrackerMaps for Kernel {
    fn set_tracker(&mut self, slot: u32, tracker: &abi::Tracker) -> Result<(), DatapathError> {
        Self::set_tracker(self, slot, tracker)
    }

    fn reset(&mut self, slot: u32, tracker: &abi::Tracker, left: Option<abi::State>) {
        Self::reset(self, slot, tracker, left);
    }

    fn clear_window(&mut self, tracker: &abi::Tracker) {
        Self::clear_window(self, tracker);
    }

    fn set_streams(&mut self, key: &abi::StreamKey, group: &Group) -> Result<(), DatapathError> {
        Self::set_streams(self, key, group)
    }

    fn set_stream(&mut self, at: u32, word: u64) {
        Self::set_stream(self, at, word);
    }

    fn remove_streams(&mut self, key: &abi::StreamKey) {
        Self::remove_streams(self, key);
    }

    fn streams(&self) -> Vec<(abi::StreamKey, abi::Streams)> {
        Self::streams(self)
    }

    fn salt(&self, slot: u32, epoch: u32) -> u8 {
        Self::salt(self, slot, epoch)
    }

    fn state(&self, slot: u32) -> abi::State {
        self.states().state(slot)
    }
}

/// What takes commands for the engine.
pub trait Commands {
    /// Hands over commands, which are obeyed in order.
    fn commands(&self, commands: impl IntoIterator<Item = Command>);

    /// Hands over one command.
    fn command(&self, command: Command) {
        self.commands([command]);
    }
}

impl Commands for Sender {
    fn commands(&self, commands: impl IntoIterator<Item = Command>) {
        Self::commands(self, commands);
    }
}

/// A tracker that has its place in the maps.
#[derive(Clone, Debug)]
pub struct InstalledTracker {
    /// Index into TRACKERS and STATE.
    pub slot: u32,
    /// Tells it from others that have had the slot: the epoch with which the engine took it.
    pub generation: u32,
    /// What TRACKERS holds.
    pub entry: abi::Tracker,
    /// Why it can't probe, the member's path aside.
    pub fault: Option<Fault>,
}

/// A member that has its place in the maps.
#[derive(Clone, Debug)]
pub struct InstalledMember {
    /// What is configured.
    pub settings: Arc<config::Member>,
    /// Index into PATHS.
    pub path: u32,
    /// What the kernel was last brought in line with.
    pub plan: Option<MemberPlan>,
    /// What PATHS holds, or will once the sending thread has obeyed.
    entry: abi::Path,
    /// In the order of the settings; `None` for one that found no place.
    pub trackers: Vec<Option<InstalledTracker>>,
}

impl InstalledMember {
    fn new(settings: &Arc<config::Member>, path: u32, entry: abi::Path) -> Self {
        Self {
            settings: settings.clone(),
            path,
            plan: None,
            entry,
            trackers: Vec::new(),
        }
    }

    /// A tracker, with its settings.
    pub fn tracker(&self, at: u32) -> Option<(&InstalledTracker, &config::Tracker)> {
        let at = at as usize;
        Some((
            self.trackers.get(at)?.as_ref()?,
            self.settings.trackers.get(at)?,
        ))
    }

    fn installed(&self) -> impl Iterator<Item = &InstalledTracker> {
        self.trackers.iter().flatten()
    }
}

/// A place in the maps that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// A member got an index into PATHS.
    Member {
        /// The member.
        id: MemberId,
        /// The index.
        path: u32,
        /// No earlier daemon gave it to this member: what is counted there is another one's.
        is_new: bool,
    },
    /// A tracker got an index into TRACKERS and STATE.
    Tracker(TrackerRef, u32),
}

/// A member that was removed: nothing is sent for it any more, and its places are not free yet.
struct Leaving {
    path: u32,
    trackers: Vec<InstalledTracker>,
}

/// A verdict and its cause.
type Known = (Verdict, Cause);

/// A tracker that goes on. If its pace is another one: the verdict from which it goes on, and how many words its bit set had.
struct Kept {
    tracker: InstalledTracker,
    resume: Option<(Known, u32)>,
}

/// The maps of an earlier daemon.
pub struct LeftMaps {
    /// What becomes of them.
    pub maps: Maps,
    /// What TRACKERS holds, if the maps are taken over.
    pub entries: Vec<abi::Tracker>,
    /// What PATHS holds.
    pub paths: Vec<abi::Path>,
    /// What STATE holds, if the maps are not taken over.
    pub states: Vec<abi::State>,
}

/// Trackers of an earlier daemon that could not be taken over where they are: verdict and cause, and what was counted, by
/// member and position in its settings.
#[derive(Default)]
pub struct LeftTrackers(HashMap<(MemberId, usize), (Known, Option<abi::State>)>);

/// Places of members and trackers.
pub struct Installer {
    members: BTreeMap<MemberId, InstalledMember>,
    /// The tracker of each slot.
    by_slot: HashMap<u32, TrackerRef>,
    space: MapSpace,
    leaving: Vec<Leaving>,
    /// The epoch that was given last.
    epoch: u32,
    icmp_base: u16,
    placed: Vec<Placed>,
}

impl Installer {
    /// An installer of empty maps with room for `room` trackers beside those of the configuration. The seed makes epochs and
    /// identifiers that differ from those of other daemons.
    pub fn new(sizes: Sizes, room: u32, seed: u64) -> Self {
        Self {
            members: BTreeMap::new(),
            by_slot: HashMap::new(),
            space: MapSpace::new(sizes, room),
            leaving: Vec::new(),
            epoch: seed as u32 >> 1,
            icmp_base: (seed >> 10) as u16,
            placed: Vec::new(),
        }
    }

    /// An installed member.
    pub fn member(&self, id: MemberId) -> Option<&InstalledMember> {
        self.members.get(&id)
    }

    /// All installed members.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &InstalledMember)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// The tracker that has a slot.
    pub fn at(&self, slot: u32) -> Option<TrackerRef> {
        self.by_slot.get(&slot).copied()
    }

    /// The tracker that has a slot, if it is the one of this generation.
    pub fn of_generation(&self, slot: u32, generation: u32) -> Option<TrackerRef> {
        let at = self.at(slot)?;
        let (tracker, _) = self.members.get(&at.of())?.tracker(at.tracker)?;
        (tracker.generation == generation).then_some(at)
    }

    /// How many trackers still find place.
    pub const fn available(&self) -> u32 {
        self.space.slots.available() as u32
    }

    /// Whether every tracker has found its place.
    pub fn is_complete(&self, desired: &Desired) -> bool {
        desired.members().all(|(id, settings)| {
            let member = self.members.get(&id);
            member.is_some_and(|member| member.installed().count() == settings.trackers.len())
        })
    }

    /// Takes the places that were given since the last call.
    pub fn placed(&mut self) -> Vec<Placed> {
        std::mem::take(&mut self.placed)
    }

    /// What a member uses that its settings may leave open.
    pub fn used(&self, id: MemberId, observed: &Observed) -> Used {
        let member = self.members.get(&id);
        let Some(plan) = member.and_then(|member| member.plan.as_ref()) else {
            return Used::default();
        };
        let sources = plan.probings.iter().flatten();
        Used {
            interface: plan
                .ifindex()
                .map_or_else(Vec::new, |ifindex| observed.names(ifindex)),
            sources: sources.map(|probing| probing.source).collect(),
        }
    }

    /// Checks that what a diff adds finds place beside what stays. Allocates nothing.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn check(&self, diff: &Diff) -> Result<(), NoRoom> {
        let (mut removed, mut added) = (Removed::default(), Added::default());
        for (id, _) in diff.removed_members() {
            if let Some(gone) = self.members.get(&id) {
                removed.paths += 1;
                gone.installed()
                    .for_each(|tracker| removed.tracker(&tracker.entry));
            }
        }
        for leaving in &self.leaving {
            removed.paths += 1;
            leaving
                .trackers
                .iter()
                .for_each(|tracker| removed.tracker(&tracker.entry));
        }
        for member in diff.members() {
            let known = self.members.get(&member.id);
            added.paths += usize::from(known.is_none());
            let installed = |at: usize| known?.trackers.get(at)?.as_ref();
            member
                .ended()
                .filter_map(installed)
                .for_each(|tracker| removed.tracker(&tracker.entry));
            for (from, settings) in member.trackers.iter().zip(&member.new.trackers) {
                match from.and_then(installed) {
                    Some(tracker) if tracker.entry.words() == words_of(settings) => {}
                    Some(tracker) => {
                        removed.tracker(&tracker.entry);
                        added.trackers.push(settings);
                    }
                    None => added.trackers.push(settings),
                }
            }
        }
        self.space.check(&removed, &added)
    }

    /// Gives places to what a diff adds, frees those of what it removes, and rewrites what goes on with other settings.
    /// `left` has trackers of an earlier daemon that were not adopted. Returns what is known of trackers whose probes go on at
    /// another pace: the engine was told anew of them.
    pub fn apply(
        &mut self,
        diff: &Diff,
        left: &mut LeftTrackers,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Vec<(u32, TrackerState)> {
        for (id, _) in diff.removed_members() {
            if let Some(gone) = self.members.remove(&id) {
                self.begin_leaving(gone, engine);
            }
        }
        let mut changed = Vec::new();
        for member in diff.members() {
            if member
                .old
                .as_ref()
                .is_some_and(|old| Arc::ptr_eq(old, &member.new))
            {
                continue;
            }
            let known = self.members.remove(&member.id);
            let known = known.map(|known| self.keep_trackers(known, member, maps, engine));
            changed.push((member, known));
        }
        if diff.adds() {
            self.free_all(maps, engine);
        }
        let mut repaced = Vec::new();
        for (member, known) in changed {
            let (known, kept) = known.unzip();
            let kept = kept.unwrap_or_default();
            self.install_member(member, known, kept, left, &mut repaced, maps, engine);
        }
        repaced
    }

    /// Gives places to what goes on unchanged from an earlier daemon and could not be adopted where it is.
    pub fn complete(
        &mut self,
        desired: &Desired,
        left: &mut LeftTrackers,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) {
        for (id, settings) in desired.members() {
            let known = self.members.get(&id);
            if known.is_some_and(|member| member.trackers.iter().all(Option::is_some)) {
                continue;
            }
            let member = MemberDiff {
                id,
                old: Some(settings.clone()),
                new: settings.clone(),
                trackers: (0..settings.trackers.len()).map(Some).collect(),
            };
            let known = self.members.remove(&id);
            let known = known.map(|known| self.keep_trackers(known, &member, maps, engine));
            let (known, kept) = known.unzip();
            let kept = kept.unwrap_or_default();
            // Equal settings: none is of another pace.
            let mut repaced = Vec::new();
            self.install_member(&member, known, kept, left, &mut repaced, maps, engine);
        }
    }

    /// Frees the places of those trackers of a member that end. Those that go on come back in the order of the new settings.
    fn keep_trackers(
        &mut self,
        mut known: InstalledMember,
        member: &MemberDiff,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> (InstalledMember, Vec<Option<Kept>>) {
        let mut before = std::mem::take(&mut known.trackers);
        for at in member.ended() {
            if let Some(gone) = before.get_mut(at).and_then(Option::take) {
                engine.command(Command::Remove(gone.slot));
                self.free_tracker(&gone, maps);
            }
        }
        let settings = known.settings.clone();
        let new = member.trackers.iter().zip(&member.new.trackers);
        let kept = new.map(|(from, new)| {
            let from = (*from)?;
            let tracker = before.get_mut(from)?.take()?;
            let old = settings.trackers.get(from)?;
            Some(self.keep_tracker(tracker, old, new, maps, engine))
        });
        let kept = kept.collect();
        (known, kept)
    }

    /// Has a tracker's place hold another pace, thresholds or bounds of replies. What the engine counts by intervals and
    /// timeouts begins anew, from the same verdict.
    fn keep_tracker(
        &mut self,
        mut tracker: InstalledTracker,
        old: &config::Tracker,
        new: &config::Tracker,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Kept {
        if old == new {
            return Kept {
                tracker,
                resume: None,
            };
        }
        let pace = |tracker: &config::Tracker| (tracker.interval, tracker.timeout);
        let keeps_pace = pace(old) == pace(new);
        let rules = |tracker: &config::Tracker| (tracker.fall, tracker.rise);
        if keeps_pace && rules(old) != rules(new) {
            let rules = Rules {
                fall: new.fall,
                rise: new.rise,
            };
            engine.command(Command::SetRules(tracker.slot, rules));
        }
        let mut resume = None;
        if !keeps_pace {
            engine.command(Command::Remove(tracker.slot));
            let state = maps.state(tracker.slot);
            let verdict = Verdict::from_u8(state.receive.verdict);
            resume = Some((verdict, Cause::from_u8(state.judge.cause)));
        }
        let before = tracker.entry;
        tracker.entry = same_place(&entry(new, before.path), &before);
        if tracker.entry.words() != before.words() {
            // Nothing is written into its bit set any more.
            let idle = abi::Tracker {
                active: 0,
                ..before
            };
            warn(maps.set_tracker(tracker.slot, &idle));
            self.space.words.give(before.window_first, before.words());
        } else if keeps_pace && tracker.entry != before {
            warn(maps.set_tracker(tracker.slot, &tracker.entry));
        }
        Kept {
            resume: resume.map(|resume| (resume, before.words())),
            tracker,
        }
    }

    /// Gives the engine a tracker whose pace is another one, in the same place.
    fn repace(
        &mut self,
        mut tracker: InstalledTracker,
        settings: &config::Tracker,
        (resume, before_words): (Known, u32),
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Option<InstalledTracker> {
        let words = tracker.entry.words();
        if words != before_words {
            let Some(first) = self.space.words.take(words_of(settings)) else {
                engine.command(Command::Remove(tracker.slot));
                self.space.slots.give(tracker.slot);
                return None;
            };
            tracker.entry.window_first = first;
            maps.clear_window(&tracker.entry);
        }
        // What is reported of it from before, and replies to what was sent at the old pace, are of another generation.
        tracker.entry.epoch = self.next_epoch();
        warn(maps.set_tracker(tracker.slot, &tracker.entry));
        Some(self.start_tracker(settings, tracker.slot, tracker.entry, Some(resume), engine))
    }

    fn next_epoch(&mut self) -> u32 {
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch
    }

    /// Gives a member its place, `known` or a new one, and its trackers theirs. `kept` are its trackers that go on, by
    /// position. Whether there is room was checked before.
    #[expect(
        clippy::too_many_arguments,
        reason = "what goes on, what was left, and the two outlets"
    )]
    fn install_member(
        &mut self,
        member: &MemberDiff,
        known: Option<InstalledMember>,
        kept: Vec<Option<Kept>>,
        left: &mut LeftTrackers,
        repaced: &mut Vec<(u32, TrackerState)>,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) {
        let id = member.id;
        let known = known.or_else(|| {
            let path = self.space.paths.take()?;
            self.placed.push(Placed::Member {
                id,
                path,
                is_new: true,
            });
            Some(InstalledMember::new(
                &member.new,
                path,
                abi::Path::default(),
            ))
        });
        let Some(mut installed) = known else {
            return;
        };
        installed.settings = member.new.clone();
        let mut kept = kept.into_iter();
        let new = member.trackers.iter().zip(&member.new.trackers);
        for (at, (from, settings)) in (0..).zip(new) {
            let tracker = match kept.next().flatten() {
                Some(Kept {
                    tracker,
                    resume: None,
                }) => Some(tracker),
                Some(Kept {
                    tracker,
                    resume: Some(resume),
                }) => {
                    installed.plan = None;
                    let (verdict, cause) = resume.0;
                    let state = TrackerState {
                        verdict,
                        cause,
                        detail: None,
                    };
                    repaced.push((tracker.slot, state));
                    self.repace(tracker, settings, resume, maps, engine)
                }
                None => {
                    // Its source is not known before the next reconciliation.
                    installed.plan = None;
                    let left = from.and_then(|from| left.0.remove(&(id, from)));
                    self.install_tracker(settings, installed.path, left, maps, engine)
                }
            };
            if let Some(tracker) = &tracker {
                let at = id.tracker(at);
                self.by_slot.insert(tracker.slot, at);
                self.placed.push(Placed::Tracker(at, tracker.slot));
            }
            installed.trackers.push(tracker);
        }
        self.members.insert(id, installed);
    }

    /// Gives a tracker a new place. One that an earlier daemon had elsewhere goes on from its verdict and, if they
    /// could be read, its counters.
    fn install_tracker(
        &mut self,
        settings: &config::Tracker,
        path: u32,
        left: Option<(Known, Option<abi::State>)>,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Option<InstalledTracker> {
        let slot = self.space.slots.take()?;
        let window_first = self.space.words.take(words_of(settings))?;
        let epoch = self.next_epoch();
        let entry = abi::Tracker {
            epoch,
            window_first,
            salt: maps.salt(slot, epoch),
            ..entry(settings, path)
        };
        let entry = abi::Tracker {
            flow_first: self.flow_first(&entry, slot, maps, engine)?,
            ..entry
        };
        let (resume, state) = left.unzip();
        maps.reset(slot, &entry, state.flatten());
        Some(self.start_tracker(settings, slot, entry, resume, engine))
    }

    /// ICMP identifier or source port with which a tracker begins.
    fn flow_first(
        &mut self,
        entry: &abi::Tracker,
        slot: u32,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Option<u16> {
        Some(match entry.probe.get() {
            abi::Probe::Icmp => self.icmp_base ^ slot as u16,
            abi::Probe::Udp | abi::Probe::Stamp => {
                abi::FIXED_PORTS | (slot as u16 & abi::PORTS_MASK)
            }
            abi::Probe::Tcp => self.take_stream(entry.stream(), slot, maps, engine)?,
        })
    }

    /// The first source port of a TCP tracker, which tells it from others of the same port of the same address.
    fn take_stream(
        &mut self,
        key: abi::StreamKey,
        slot: u32,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> Option<u16> {
        let space = &mut self.space;
        let placed = space.streams.take(key, slot, &mut space.words)?;
        let group = space.streams.group(&key)?;
        match (placed.left, group.slots.len()) {
            (None, 2..) => {
                let at = group.streams.first + u32::from(placed.class);
                maps.set_stream(at, u64::from(slot) + 1);
            }
            _ => warn(maps.set_streams(&key, group)),
        }
        if let Some(left) = placed.left {
            for (class, other) in (0..).zip(&group.slots) {
                if let Some(other) = other.filter(|other| *other != slot) {
                    let share = group.share(class);
                    engine.command(Command::SetShare(other, share));
                }
            }
            space.words.give(left.first, left.mask() + 1);
        }
        Some(StreamAllocator::first_port(placed.class))
    }

    /// Frees the source ports of a TCP tracker.
    fn give_stream(&mut self, key: abi::StreamKey, slot: u32, maps: &mut impl TrackerMaps) {
        let space = &mut self.space;
        if let Some(at) = space.streams.give(&key, slot) {
            maps.set_stream(at, 0);
        }
        if let Some(left) = space.streams.forget_empty(&key) {
            maps.remove_streams(&key);
            space.words.give(left.first, left.mask() + 1);
        }
    }

    /// Takes over what an earlier daemon wrote of TCP trackers' ports, before its trackers are adopted.
    fn adopt_streams(&mut self, maps: &mut impl TrackerMaps) {
        for (key, streams) in maps.streams() {
            let space = &mut self.space;
            if !space.streams.adopt(key, streams, &mut space.words) {
                maps.remove_streams(&key);
            }
        }
    }

    /// Takes ports of trackers that were not adopted out of the maps.
    fn rewrite_streams(&mut self, maps: &mut impl TrackerMaps) {
        let keys: Vec<_> = (self.space.streams.groups().map(|(key, _)| *key)).collect();
        for key in keys {
            let space = &mut self.space;
            if let Some(left) = space.streams.forget_empty(&key) {
                maps.remove_streams(&key);
                space.words.give(left.first, left.mask() + 1);
            } else if let Some(group) = space.streams.group(&key) {
                warn(maps.set_streams(&key, group));
            }
        }
    }

    /// By which flows a tracker's probes go.
    fn flow_rule(&self, settings: &config::Tracker, entry: &abi::Tracker) -> FlowRule {
        let share = match entry.probe.get() {
            abi::Probe::Tcp => {
                let group = self.space.streams.group(&entry.stream());
                let class = StreamAllocator::class(entry.flow_first);
                group.map(|group| group.share(class)).unwrap_or_default()
            }
            _ => Share::default(),
        };
        FlowRule {
            turnover: match (settings.flow, settings.expect) {
                (Flow::Rotate, _) => Turnover::Always,
                (Flow::Fixed, Expect::Reply) => Turnover::OnLoss,
                (Flow::Fixed, Expect::Silence) => Turnover::Never,
            },
            is_connection: entry.probe == abi::Probe::Tcp.into(),
            is_identifier: entry.probe == abi::Probe::Icmp.into(),
            first: entry.flow_first,
            share,
        }
    }

    /// Has the engine take a tracker whose place is prepared, or was its place before.
    fn start_tracker(
        &self,
        settings: &config::Tracker,
        slot: u32,
        entry: abi::Tracker,
        resume: Option<Known>,
        engine: &impl Commands,
    ) -> InstalledTracker {
        // What goes on from a verdict is not at fault before it is known to be.
        let fault = resume.is_none().then(Fault::pending);
        engine.command(Command::Install(TrackerSpec {
            slot,
            epoch: entry.epoch,
            path: entry.path,
            interval_ns: nanoseconds(settings.interval),
            timeout_ns: nanoseconds(settings.timeout),
            rules: Rules {
                fall: settings.fall,
                rise: settings.rise,
            },
            window: entry.window(),
            fault: fault.as_ref().map(|fault| fault.cause),
            expects_silence: settings.expect == Expect::Silence,
            flows: self.flow_rule(settings, &entry),
            resume,
        }));
        InstalledTracker {
            slot,
            generation: entry.epoch,
            entry,
            fault,
        }
    }

    /// Ends a member's probes at once, and has its places freed by and by: those of 65,534 trackers take half a second, for
    /// which others' verdicts do not wait.
    fn begin_leaving(&mut self, member: InstalledMember, engine: &impl Commands) {
        let slots = member.installed().map(|tracker| tracker.slot);
        engine.commands(slots.map(Command::Remove));
        self.leaving.push(Leaving {
            path: member.path,
            trackers: member.trackers.into_iter().flatten().collect(),
        });
    }

    /// Whether places of removed members are still to be freed.
    pub const fn is_freeing(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Frees places of removed members, of so many trackers at most.
    fn free(&mut self, most: usize, maps: &mut impl TrackerMaps, engine: &impl Commands) {
        let mut left = most;
        while let Some(mut member) = self.leaving.pop() {
            let from = member.trackers.len().saturating_sub(left);
            for tracker in member.trackers.drain(from..) {
                left -= 1;
                self.free_tracker(&tracker, maps);
            }
            if !member.trackers.is_empty() {
                self.leaving.push(member);
                break;
            }
            clear_path(member.path, engine);
            self.space.paths.give(member.path);
        }
    }

    /// Frees places of some trackers of removed members.
    pub fn free_some(&mut self, maps: &mut impl TrackerMaps, engine: &impl Commands) {
        self.free(FREE_AT_ONCE, maps, engine);
    }

    /// Frees the places of all removed members.
    pub fn free_all(&mut self, maps: &mut impl TrackerMaps, engine: &impl Commands) {
        self.free(usize::MAX, maps, engine);
    }

    /// Frees the places of a tracker for which nothing is sent any more.
    fn free_tracker(&mut self, tracker: &InstalledTracker, maps: &mut impl TrackerMaps) {
        let gone = abi::Tracker {
            active: 0,
            ..tracker.entry
        };
        warn(maps.set_tracker(tracker.slot, &gone));
        self.by_slot.remove(&tracker.slot);
        if tracker.entry.probe == abi::Probe::Tcp.into() {
            self.give_stream(tracker.entry.stream(), tracker.slot, maps);
        }
        self.space.give(tracker.slot, &tracker.entry);
    }

    /// Takes over the places that an earlier daemon gave to what was desired then, if the maps agree. Returns what the maps tell
    /// of those trackers, by slot, and the others.
    pub fn adopt(
        &mut self,
        desired: &Desired,
        saved: &[SavedService],
        left: &LeftMaps,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) -> (Vec<(u32, TrackerState)>, LeftTrackers) {
        let entries = &left.entries;
        if let Some(epoch) = entries.iter().map(|entry| entry.epoch).max() {
            // No two generations of a slot have the same one.
            self.epoch = epoch;
        }
        if !entries.is_empty() {
            self.adopt_streams(maps);
        }
        let (mut found, mut handover) = (Vec::new(), LeftTrackers::default());
        for (service, saved) in desired.services().iter().zip(saved) {
            for ((id, settings), saved) in service.members().zip(&saved.members) {
                let has_place = !entries.is_empty() && self.space.paths.claim(saved.path);
                let path = left.paths.get(saved.path as usize);
                let path = path.copied().unwrap_or_default();
                let mut installed = InstalledMember::new(settings, saved.path, path);
                let trackers = settings.trackers.iter().enumerate();
                for (at, settings) in trackers {
                    let Some(saved) = saved.trackers.get(at) else {
                        installed.trackers.push(None);
                        continue;
                    };
                    let place = has_place.then(|| {
                        let entry = *entries.get(saved.slot as usize)?;
                        self.adopt_tracker(
                            settings,
                            installed.path,
                            saved.slot,
                            entry,
                            engine,
                            maps,
                        )
                    });
                    let tracker = place.flatten();
                    match &tracker {
                        Some((tracker, (verdict, cause))) => {
                            let detail = saved.detail.clone().filter(|_| *cause == saved.cause);
                            let state = TrackerState {
                                verdict: *verdict,
                                cause: *cause,
                                detail,
                            };
                            found.push((tracker.slot, state));
                            let at = id.tracker(at as u32);
                            self.by_slot.insert(tracker.slot, at);
                            self.placed.push(Placed::Tracker(at, tracker.slot));
                        }
                        None => {
                            // Read before the slot gets another tracker.
                            let state = match left.maps {
                                Maps::Anew => left.states.get(saved.slot as usize).copied(),
                                Maps::Adopt | Maps::Grow => Some(maps.state(saved.slot)),
                            };
                            let known = (saved.verdict, saved.cause);
                            handover.0.insert((id, at), (known, state));
                        }
                    }
                    installed.trackers.push(tracker.map(|(tracker, _)| tracker));
                }
                if has_place {
                    self.placed.push(Placed::Member {
                        id,
                        path: saved.path,
                        is_new: false,
                    });
                    self.members.insert(id, installed);
                }
            }
        }
        self.deactivate(entries, maps);
        self.rewrite_streams(maps);
        (found, handover)
    }

    /// Takes a tracker's place over, if the maps agree that it was this tracker's.
    fn adopt_tracker(
        &mut self,
        settings: &config::Tracker,
        path: u32,
        slot: u32,
        before: abi::Tracker,
        engine: &impl Commands,
        maps: &impl TrackerMaps,
    ) -> Option<(InstalledTracker, Known)> {
        let expected = abi::Tracker {
            active: 1,
            ..same_place(&entry(settings, path), &before)
        };
        if before != expected || !self.space.claim(slot, &before) {
            return None;
        }
        if before.probe == abi::Probe::Icmp.into() {
            self.icmp_base = before.flow_first ^ slot as u16;
        }
        let state = maps.state(slot);
        let verdict = Verdict::from_u8(state.receive.verdict);
        let known = (verdict, Cause::from_u8(state.judge.cause));
        let tracker = self.start_tracker(settings, slot, before, Some(known), engine);
        Some((tracker, known))
    }

    /// Takes trackers of an earlier daemon that were not adopted out of use.
    fn deactivate(&self, entries: &[abi::Tracker], maps: &mut impl TrackerMaps) {
        for (slot, entry) in (0..).zip(entries) {
            if entry.active == 0 || self.by_slot.contains_key(&slot) {
                continue;
            }
            let gone = abi::Tracker {
                active: 0,
                ..*entry
            };
            warn(maps.set_tracker(slot, &gone));
        }
    }

    /// Empties paths of an earlier daemon that no member has any more.
    pub fn clear_left(&self, paths: &[abi::Path], engine: &impl Commands) {
        let used: HashSet<u32> = self.members.values().map(|member| member.path).collect();
        for (path, _) in (0..).zip(paths).filter(|(_, path)| path.interface != 0) {
            if !used.contains(&path) {
                clear_path(path, engine);
            }
        }
    }

    /// Brings the maps in line with a member's plan, if it differs from the present one.
    pub fn set_plan(
        &mut self,
        id: MemberId,
        plan: MemberPlan,
        maps: &mut impl TrackerMaps,
        engine: &impl Commands,
    ) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.plan.as_ref() == Some(&plan) {
            return;
        }
        let before = member.plan.as_ref().and_then(MemberPlan::ifindex);
        // Replies under way may arrive where nothing receives them any more.
        let is_deaf = member.plan.as_ref().is_some_and(|before| {
            let mut heard = before.receive.iter();
            heard.any(|ifindex| !plan.receive.contains(ifindex))
        });
        let has_moved = is_deaf || (before.is_some() && before != plan.ifindex());
        for (tracker, probing) in member.trackers.iter_mut().zip(&plan.probings) {
            let Some(tracker) = tracker else { continue };
            self.epoch = self.epoch.wrapping_add(1);
            set_probing(tracker, probing, self.epoch, has_moved, maps, engine);
        }
        let (entry, cause) = match &plan.path {
            Ok(entry) => (*entry, None),
            // Replies under way came by the last one: they are still expected where they arrive, and count or are late.
            Err(fault) => {
                let last = abi::Path {
                    egress: abi::Egress::None.into(),
                    ..member.entry
                };
                (last, Some(fault.cause))
            }
        };
        let entry = abi::Path {
            endpoint: address_bytes(member.settings.endpoint),
            endpoint_family: member.settings.endpoint.into(),
            interface: plan.neighbour.map_or(0, |(ifindex, _)| ifindex),
            ..entry
        };
        member.plan = Some(plan);
        member.entry = entry;
        engine.command(Command::SetPath(member.path, entry, cause));
    }

    /// Has replies under way count for nothing that could arrive on an interface alone that receives no more.
    pub fn renew_receiving(&self, ifindex: u32, engine: &impl Commands) {
        let is_hearing = |member: &&InstalledMember| {
            let plan = member.plan.as_ref();
            plan.is_some_and(|plan| plan.receive.contains(&ifindex))
        };
        for member in self.members.values().filter(is_hearing) {
            for tracker in member.installed() {
                engine.command(Command::Renew(tracker.slot, tracker.entry.epoch));
            }
        }
    }
}

/// What a member of an earlier daemon used that its settings left open.
pub fn left_used(
    left: &LeftMaps,
    saved: Option<&SavedService>,
    at: usize,
    observed: &Observed,
) -> Used {
    let Some(saved) = saved.and_then(|saved| saved.members.get(at)) else {
        return Used::default();
    };
    let ifindex = left
        .paths
        .get(saved.path as usize)
        .map(|path| match path.interface {
            // No neighbour is kept on a tunnel, from which probes leave by the interface itself.
            0 => path.ifindex,
            interface => interface,
        });
    let trackers = saved.trackers.iter();
    let found = trackers.filter_map(|tracker| left.entries.get(tracker.slot as usize));
    Used {
        interface: ifindex.map_or_else(Vec::new, |ifindex| observed.names(ifindex)),
        sources: found
            .map(|entry| address_from(entry.family.get(), entry.source))
            .collect(),
    }
}

/// Empties a path: the next member that gets it is not sent for by it, and `cleanup` finds no neighbour in it.
fn clear_path(path: u32, engine: &impl Commands) {
    let cause = Cause::InterfaceMissing;
    engine.command(Command::SetPath(path, abi::Path::default(), Some(cause)));
}

fn warn(written: Result<(), DatapathError>) {
    if let Err(error) = written {
        tracing::warn!("{}", full(&error));
    }
}

/// Gives a tracker its source address and its proof, or the reason why it can't probe.
fn set_probing(
    tracker: &mut InstalledTracker,
    probing: &Result<Probing, Fault>,
    epoch: u32,
    has_moved: bool,
    maps: &mut impl TrackerMaps,
    engine: &impl Commands,
) {
    let fault = match probing {
        Ok(probing) => {
            let (source, proof) = (address_bytes(probing.source), probing.proof);
            let was_active = tracker.entry.active != 0;
            if was_active
                && (tracker.entry.source, tracker.entry.proof) == (source, proof.into())
                && !has_moved
            {
                None
            } else {
                if was_active {
                    // What proves the old probes must not count for the new ones, and what comes back by an interface that
                    // receives no more is not waited for.
                    tracker.entry.epoch = epoch;
                }
                (tracker.entry.source, tracker.entry.proof) = (source, proof.into());
                tracker.entry.active = 1;
                let written = maps.set_tracker(tracker.slot, &tracker.entry);
                if written.is_err() && !was_active {
                    // To be written again.
                    tracker.entry.active = 0;
                }
                if was_active {
                    // After the map: a probe sent in between bears the new epoch already, and is ignored.
                    engine.command(Command::Renew(tracker.slot, epoch));
                }
                written.err().map(|error| Fault::cannot_write(&error))
            }
        }
        Err(fault) => Some(fault.clone()),
    };
    if tracker.fault != fault {
        engine.command(Command::SetFault(
            tracker.slot,
            fault.as_ref().map(|fault| fault.cause),
        ));
        tracker.fault = fault;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{cell::RefCell, collections::BTreeSet, path::Path};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::Config,
        desired::diff::diff,
        reconcile::map_space::{self, sizes},
    };

    /// Takes commands down instead of obeying them.
    #[derive(Default)]
    pub(in crate::reconcile) struct Recorded(RefCell<Vec<Command>>);

    impl Recorded {
        /// The commands since the last call.
        pub(in crate::reconcile) fn taken(&self) -> Vec<Command> {
            self.0.take()
        }
    }

    impl Commands for Recorded {
        fn commands(&self, commands: impl IntoIterator<Item = Command>) {
            self.0.borrow_mut().extend(commands);
        }
    }

    /// The maps in memory.
    #[derive(Clone, Default)]
    struct Memory {
        trackers: BTreeMap<u32, abi::Tracker>,
        streams: HashMap<abi::StreamKey, Vec<u32>>,
        states: HashMap<u32, abi::State>,
    }

    impl TrackerMaps for Memory {
        fn set_tracker(&mut self, slot: u32, tracker: &abi::Tracker) -> Result<(), DatapathError> {
            self.trackers.insert(slot, *tracker);
            Ok(())
        }

        fn reset(&mut self, slot: u32, tracker: &abi::Tracker, left: Option<abi::State>) {
            self.trackers.insert(slot, *tracker);
            self.states.insert(slot, left.unwrap_or_default());
        }

        fn clear_window(&mut self, _: &abi::Tracker) {}

        fn set_streams(
            &mut self,
            key: &abi::StreamKey,
            group: &Group,
        ) -> Result<(), DatapathError> {
            let slots = group.slots.iter().flatten().copied().collect();
            self.streams.insert(*key, slots);
            Ok(())
        }

        fn set_stream(&mut self, _: u32, _: u64) {}

        fn remove_streams(&mut self, key: &abi::StreamKey) {
            self.streams.remove(key);
        }

        fn streams(&self) -> Vec<(abi::StreamKey, abi::Streams)> {
            Vec::new()
        }

        fn salt(&self, slot: u32, epoch: u32) -> u8 {
            (slot ^ epoch) as u8
        }

        fn state(&self, slot: u32) -> abi::State {
            self.states.get(&slot).copied().unwrap_or_default()
        }
    }

    const ROOM: u32 = 64;

    fn config(text: &str) -> Config {
        let text = format!("[hub]\nroom = {ROOM}\n{text}");
        config::parse(&text, Path::new("test.toml")).expect("a good configuration")
    }

    fn service(name: &str, behind: &str, lines: &str) -> String {
        format!(
            "[[service]]\nname = \"{name}\"\nendpoint = \"10.9.0.2\"\nbehind = [{behind}]\n{lines}\n"
        )
    }

    struct World {
        installer: Installer,
        desired: Desired,
        maps: Memory,
        engine: Recorded,
    }

    impl World {
        fn new(config: &Config) -> Self {
            let mut world = Self {
                installer: Installer::new(sizes(config), ROOM, 1 << 20),
                desired: Desired::default(),
                maps: Memory::default(),
                engine: Recorded::default(),
            };
            world.go_to(config).expect("room");
            world
        }

        /// Replaces the configuration; nothing changes if there is no room.
        fn go_to(&mut self, config: &Config) -> Result<Vec<(u32, TrackerState)>, NoRoom> {
            let services = config.services.clone();
            let desired = self.desired.next(services, Vec::new(), |_| Used::default());
            let changed = diff(&self.desired, &desired);
            self.installer.check(&changed)?;
            let mut left = LeftTrackers::default();
            let (maps, engine) = (&mut self.maps, &self.engine);
            let repaced = self.installer.apply(&changed, &mut left, maps, engine);
            self.desired = desired;
            Ok(repaced)
        }

        fn free_all(&mut self) {
            self.installer.free_all(&mut self.maps, &self.engine);
        }

        /// Each desired tracker has a place of its own, with what is configured.
        fn check(&self) {
            let (mut slots, mut words, mut paths) =
                (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            assert!(self.installer.is_complete(&self.desired));
            for (id, settings) in self.desired.members() {
                let member = self.installer.member(id).expect("an installed member");
                assert!(Arc::ptr_eq(&member.settings, settings), "held once");
                assert!(paths.insert(member.path));
                for (at, settings) in (0..).zip(&settings.trackers) {
                    let (tracker, _) = member.tracker(at).expect("an installed tracker");
                    assert!(slots.insert(tracker.slot));
                    assert_eq!(self.installer.at(tracker.slot), Some(id.tracker(at)));
                    let entry = self.maps.trackers[&tracker.slot];
                    assert_eq!(entry, tracker.entry);
                    assert_eq!(
                        entry,
                        same_place(&map_space::entry(settings, member.path), &entry)
                    );
                    for word in entry.window_first..entry.window_first + entry.words() {
                        assert!(words.insert(word), "word {word} is given twice");
                    }
                }
            }
        }

        fn slot(&self, service: &str, at: usize) -> u32 {
            let service = self.desired.named(service).expect("a service");
            let (id, _) = service.members().next().expect("a member");
            let member = self.installer.member(id).expect("an installed member");
            member.trackers[at].as_ref().expect("a tracker").slot
        }
    }

    #[test]
    fn what_goes_on_keeps_its_place_and_hears_of_nothing() {
        let (a, b) = (
            service("a", "\"10.20.0.1\", \"10.20.0.2\"", ""),
            service("b", "\"10.20.0.3\"", ""),
        );
        let mut world = World::new(&config(&format!("{a}{b}")));
        world.check();
        let before = (world.slot("a", 0), world.slot("a", 1), world.slot("b", 0));
        world.engine.taken();
        let maps = world.maps.clone();
        world.go_to(&config(&format!("{b}{a}"))).unwrap();
        assert_eq!(world.engine.taken().len(), 0);
        assert_eq!(maps.trackers, world.maps.trackers);
        // One tracker less, another order: the one that stays stays.
        let a = service("a", "\"10.20.0.2\"", "");
        world.go_to(&config(&format!("{b}{a}"))).unwrap();
        world.check();
        assert_eq!(
            (world.slot("a", 0), world.slot("b", 0)),
            (before.1, before.2)
        );
        assert_eq!(world.maps.trackers[&before.0].active, 0);
        let told = world.engine.taken();
        assert!(
            matches!(told[..], [Command::Remove(slot)] if slot == before.0),
            "{told:?}"
        );
    }

    #[test]
    fn another_pace_is_another_generation_in_the_same_place() {
        let at = |lines: &str| config(&service("a", "\"10.20.0.1\"", lines));
        let mut world = World::new(&at("interval = \"1s\""));
        let slot = world.slot("a", 0);
        let generation = |world: &World| world.maps.trackers[&slot].epoch;
        let before = generation(&world);
        assert_eq!(
            world.installer.of_generation(slot, before),
            world.installer.at(slot)
        );
        world.engine.taken();
        let repaced = world.go_to(&at("interval = \"2s\"")).unwrap();
        assert_eq!(repaced.len(), 1);
        assert_eq!(world.slot("a", 0), slot);
        assert_eq!(world.installer.of_generation(slot, before), None);
        assert!(generation(&world) != before);
        let told = world.engine.taken();
        assert!(
            matches!(told[..], [Command::Remove(_), Command::Install(_)]),
            "{told:?}"
        );
        // Thresholds alone begin nothing anew.
        let repaced = world.go_to(&at("interval = \"2s\"\nfall = 9")).unwrap();
        assert_eq!(repaced.len(), 0);
        assert!(matches!(world.engine.taken()[..], [Command::SetRules(..)]));
        world.check();
    }

    #[test]
    fn what_has_no_room_changes_nothing() {
        let few = config(&service("a", "\"10.20.0.1\"", ""));
        let mut world = World::new(&few);
        let behind: Vec<_> = (0..=ROOM + 1)
            .map(|last| format!("\"10.20.0.{}\"", last + 1))
            .collect();
        let many = config(&service("b", &behind.join(","), ""));
        let maps = world.maps.clone();
        let refused = world.go_to(&many).unwrap_err().to_string();
        assert!(
            refused.starts_with("no room for 66 more trackers"),
            "{refused}"
        );
        assert_eq!(maps.trackers, world.maps.trackers);
        world.check();
        // Places that are being freed count as free.
        let most = config(&service("b", &behind[1..].join(","), ""));
        world.go_to(&most).unwrap();
        world.check();
        world.go_to(&config("")).unwrap();
        assert!(world.installer.is_freeing());
        world.go_to(&most).unwrap();
        world.check();
        assert_eq!(world.installer.available(), 0);
    }

    #[test]
    fn an_earlier_daemons_places_are_taken_over_where_the_maps_agree() {
        let text = format!(
            "{}{}",
            service("a", "\"10.20.0.1\", \"10.20.0.2\"", ""),
            service(
                "b",
                "\"10.20.0.3\"",
                "probe = \"udp\"\nprotocol = \"echo\"\nport = 7"
            )
        );
        let config = config(&text);
        let mut old = World::new(&config);
        // As after a reconciliation.
        for tracker in old.maps.trackers.values_mut() {
            tracker.active = 1;
        }
        let saved: Vec<SavedService> = old
            .desired
            .services()
            .iter()
            .map(|service| SavedService {
                service: service.settings.clone(),
                since: jiff::Timestamp::UNIX_EPOCH,
                members: service
                    .members()
                    .map(|(id, _)| {
                        let member = old.installer.member(id).unwrap();
                        let trackers = member.installed();
                        crate::state::journal::SavedMember {
                            path: member.path,
                            trackers: trackers
                                .map(|tracker| crate::state::journal::SavedTracker {
                                    slot: tracker.slot,
                                    verdict: Verdict::Up,
                                    cause: Cause::Replied,
                                    detail: None,
                                    held: None,
                                })
                                .collect(),
                        }
                    })
                    .collect(),
                flaps: Default::default(),
                kept: Vec::new(),
            })
            .collect();
        let moved = old.slot("a", 1);
        // What the maps say of one is not what the journal says.
        let mut maps = old.maps.clone();
        maps.trackers.get_mut(&moved).unwrap().payload += 1;
        let sizes = sizes(&config);
        let entries = (0..sizes.trackers).map(|slot| maps.trackers.get(&slot).copied());
        let left = LeftMaps {
            maps: Maps::Adopt,
            entries: entries.map(Option::unwrap_or_default).collect(),
            paths: vec![abi::Path::default(); sizes.paths as usize],
            states: Vec::new(),
        };
        let mut new = World {
            installer: Installer::new(sizes, ROOM, 9),
            desired: Desired::new(config.services.clone(), Vec::new()),
            maps,
            engine: Recorded::default(),
        };
        let (found, mut handed_over) =
            new.installer
                .adopt(&new.desired, &saved, &left, &mut new.maps, &new.engine);
        assert_eq!(found.len(), 2);
        assert_eq!(new.maps.trackers[&moved].active, 0);
        assert!(!new.installer.is_complete(&new.desired));
        let (maps, engine) = (&mut new.maps, &new.engine);
        new.installer
            .complete(&new.desired, &mut handed_over, maps, engine);
        new.check();
        for (name, at) in [("a", 0), ("b", 0)] {
            assert_eq!(new.slot(name, at), old.slot(name, at));
        }
        // The other one goes on from its verdict.
        let resumed =
            new.engine.taken().into_iter().filter(
                |command| matches!(command, Command::Install(spec) if spec.resume.is_some()),
            );
        assert_eq!(resumed.count(), 3);
    }

    proptest! {
        /// After any configurations in a row every tracker has its place, no place is given twice, and at the end all is free.
        #[test]
        fn places_are_given_once_and_come_back(
            steps in prop::collection::vec(
                prop::collection::vec((0u8..4, prop::collection::btree_set(1u8..9, 1..6), 0u8..4, 1u32..4), 0..4),
                1..6,
            ),
        ) {
            let largest = config("");
            let mut sizes = sizes(&largest);
            (sizes.trackers, sizes.paths, sizes.words) = (128, 128, 4096);
            let mut world = World {
                installer: Installer::new(sizes, ROOM, 3),
                desired: Desired::default(),
                maps: Memory::default(),
                engine: Recorded::default(),
            };
            for step in &steps {
                let mut names = BTreeSet::new();
                let services = step.iter().filter(|(name, ..)| names.insert(*name));
                let text: String = services.map(|(name, behind, probe, interval)| {
                    let behind: Vec<_> = behind.iter().map(|last| format!("\"10.20.0.{last}\"")).collect();
                    let probe = match probe {
                        0 => "probe = \"icmp\"",
                        1 => "probe = \"udp\"\nprotocol = \"echo\"\nport = 7",
                        2 => "probe = \"udp\"\nprotocol = \"stamp\"\nport = 862",
                        _ => "probe = \"tcp\"\nport = 443",
                    };
                    service(&format!("fw-{name}"), &behind.join(","), &format!("{probe}\ninterval = \"{interval}s\"\ntimeout = \"3s\""))
                }).collect();
                world.go_to(&config(&text)).unwrap();
                world.check();
            }
            world.go_to(&config("")).unwrap();
            world.free_all();
            prop_assert_eq!(world.installer.available(), 128);
            prop_assert!(world.maps.streams.is_empty());
            prop_assert!(world.maps.trackers.values().all(|tracker| tracker.active == 0));
            prop_assert!(world.installer.by_slot.is_empty());
            // All words in one piece again.
            let mut words = world.installer.space.words.clone();
            prop_assert_eq!(words.take(4096), Some(0));
        }
    }

    #[test]
    fn another_source_is_another_member() {
        let at = |lines: &str| config(&service("a", "\"10.20.0.1\"", lines));
        let mut world = World::new(&at(""));
        // Nothing is known to be used, so a source that is named now is another one.
        world.engine.taken();
        world.go_to(&at("source = \"10.9.0.1\"")).unwrap();
        world.check();
        let told = world.engine.taken();
        let removed = told
            .iter()
            .filter(|command| matches!(command, Command::Remove(_)));
        let installed = told
            .iter()
            .filter(|command| matches!(command, Command::Install(spec) if spec.resume.is_none()));
        assert_eq!((removed.count(), installed.count()), (1, 1), "{told:?}");
    }
}

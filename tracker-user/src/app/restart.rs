//! Going on where an earlier daemon of the instance ended, and leaving what the next one needs for that.

use std::{
    collections::{HashMap, HashSet},
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use tracker_ebpf::{
    abi,
    verdict::{Cause, Verdict},
};

use super::{Attachment, Daemon, Tracker, install, stamp};
use crate::{
    config::{self, Config, Member, Service},
    datapath::{
        journal::Journal,
        loader::{self, Maps},
        pins::Pins,
    },
    desired::diff::{self, Used},
    host::tag,
    state::{
        events::{CAPACITY, Event},
        journal::{
            Record, SavedFlaps, SavedHeld, SavedMember, SavedService, SavedTracker, Snapshot,
        },
        tree::{Flaps, Held, Shown, StateTree, TrackerRef, TrackerState},
    },
};

/// Of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// What an earlier daemon left of a member, for the trackers that it has now.
#[derive(Default)]
struct Left<'a> {
    member: Option<(&'a Member, &'a SavedMember)>,
    /// Positions of those of its trackers that go on, by position of the present ones.
    pairs: Vec<Option<usize>>,
}

impl<'a> Left<'a> {
    fn new(member: &'a Member, saved: &'a SavedMember, now: &Member) -> Self {
        Self {
            member: Some((member, saved)),
            pairs: diff::trackers(&member.trackers, &now.trackers),
        }
    }

    /// What goes on as the tracker at a position.
    fn tracker(&self, at: usize) -> Option<(&'a config::Tracker, &'a SavedTracker)> {
        let (member, saved) = self.member?;
        let at = self.pairs.get(at).copied().flatten()?;
        Some((member.trackers.get(at)?, saved.trackers.get(at)?))
    }
}

/// What an earlier daemon left of everything.
pub(super) struct Predecessor {
    /// What it watched and reported; `None` where nothing can go on.
    pub(super) snapshot: Option<Snapshot>,
    /// The number of the next event, and the last ones before it.
    pub(super) events: Vec<Event>,
    pub(super) next: u64,
    /// Names the sequence of event numbers that goes on, or a new one.
    pub(super) run: String,
}

/// Opens the journal of the instance and reads what an earlier daemon wrote.
pub(super) fn read_journal(pins: &Pins, namespace: (u64, u64)) -> (Journal, Predecessor) {
    let (journal, text) = Journal::open(pins);
    let read = text.map(|text| {
        let text = text.map_err(|error| format!("{error:#}"))?;
        Snapshot::read(&text)
    });
    let snapshot = match read {
        Some(Ok(snapshot)) => Some(snapshot),
        Some(Err(why)) => {
            let journal = pins.journal();
            tracing::warn!(
                "cannot read the journal that an earlier daemon left at {}: {why}; beginning anew, with event 1",
                journal.display()
            );
            None
        }
        None => None,
    };
    let Some(mut snapshot) = snapshot else {
        let (snapshot, events, next, run) = (None, Vec::new(), 1, new_run());
        return (
            journal,
            Predecessor {
                snapshot,
                events,
                next,
                run,
            },
        );
    };
    let (events, next) = (std::mem::take(&mut snapshot.events), snapshot.next);
    let run = match snapshot.run.is_empty() {
        true => new_run(),
        false => std::mem::take(&mut snapshot.run),
    };
    let is_here = snapshot.namespace == namespace;
    if !is_here {
        tracing::warn!(
            "an earlier daemon of this instance ran in another network namespace; beginning anew, with event {next}"
        );
    }
    let snapshot = is_here.then_some(snapshot);
    (
        journal,
        Predecessor {
            snapshot,
            events,
            next,
            run,
        },
    )
}

/// A name for a sequence of event numbers that no other one has.
fn new_run() -> String {
    match loader::random() {
        Ok([run, _]) => format!("{run:016x}"),
        // Time alone tells sequences of one hub apart unless its clock goes back.
        Err(_) => format!("{:016x}", stamp().wall.as_nanosecond()),
    }
}

/// The instance's tag: that of the pinned maps, else that of the state directory, else a new one. The state directory keeps it.
pub(super) fn tag(state: &Path, pins: &Pins) -> Result<u32> {
    let kept = tag::read(state);
    let known = *kept.as_ref().unwrap_or(&None);
    let tag = match loader::pinned_tag(pins).or(known) {
        Some(tag) => tag,
        None => (loader::random()?[0] as u32).max(1),
    };
    if known != Some(tag)
        && let Err(error) = tag::keep(state, tag)
    {
        tracing::warn!(
            "the tag of this instance's probes does not outlive its pins: {:#}",
            kept.err().unwrap_or(error)
        );
    }
    Ok(tag)
}

/// What tells this network namespace from all others of this boot: its inode number, with the namespace's cookie, which
/// the kernel never gives again (SO_NETNS_COOKIE, Linux 5.14). An inode number is soon that of another namespace.
pub(super) fn namespace() -> Result<(u64, u64)> {
    let path = "/proc/self/ns/net";
    let found = std::fs::metadata(path).with_context(|| format!("cannot look at {path}"))?;
    let cookie = cookie().context("cannot ask for the cookie of the network namespace")?;
    Ok((found.ino(), cookie))
}

fn cookie() -> std::io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`, through the pointer, and `len` itself.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match got {
        0 => Ok(cookie),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The tree as the earlier daemon had it.
pub(super) fn tree(snapshot: &Snapshot, config: &Config) -> StateTree {
    let before = Config {
        services: snapshot
            .services
            .iter()
            .map(|saved| saved.service.clone())
            .collect(),
        chains: snapshot.chains.clone(),
        ..config.clone()
    };
    let shown = |number: u32| {
        let saved = snapshot.services.get(number as usize)?;
        let trackers = saved.members.iter().map(|member| {
            let trackers = member.trackers.iter();
            trackers
                .map(|tracker| (tracker.shown(), tracker.held.as_ref().map(Held::from)))
                .collect()
        });
        Some(Shown {
            since: saved.since,
            flaps: Flaps {
                recent_mono_ns: saved.flaps.recent_mono_ns.clone().into(),
                total: saved.flaps.total,
            },
            trackers: trackers.collect(),
        })
    };
    StateTree::resume(&before, stamp(), shown)
}

impl Daemon {
    /// Gives every member and tracker of the config its place: that which an earlier daemon gave it, where that
    /// can be, with all that is known there. Says what the maps tell of those; `None` where not all found place.
    pub(super) fn install_left(
        &mut self,
        snapshot: &Snapshot,
        maps: Maps,
        paths: &[abi::Path],
        left_states: Vec<abi::State>,
    ) -> Option<Vec<(u32, TrackerState)>> {
        let entries = match maps {
            Maps::Adopt | Maps::Grow => self.kernel.trackers(),
            Maps::Anew => Vec::new(),
        };
        if let Some(epoch) = entries.iter().map(|entry| entry.epoch).max() {
            // No two generations of a slot have the same one.
            self.epoch = epoch;
        }
        let old = (0..).zip(&snapshot.services).flat_map(|(number, saved)| {
            let members = (0..).zip(&saved.service.members);
            members.map(move |(at, member)| ((number, at), saved.service.name.as_str(), member))
        });
        let used = |place| self.left_used(snapshot, paths, &entries, place);
        let pairs = diff::members(old, &self.config.services, used);
        if !entries.is_empty() {
            self.adopt_streams();
        }
        let services = std::mem::take(&mut self.config.services);
        let mut found = Vec::new();
        let mut kept = Vec::new();
        for (number, service) in (0..).zip(&services) {
            for (at, member) in (0..).zip(&service.members) {
                let place = (number, at);
                let left = pairs.old(place).and_then(|(service, at)| {
                    let saved = snapshot.services.get(service as usize)?;
                    let old = saved.service.members.get(at as usize)?;
                    Some(Left::new(old, saved.members.get(at as usize)?, member))
                });
                let left = left.unwrap_or_default();
                let mut known =
                    self.adopt_member(place, &service.name, member, &left, &entries, &mut found);
                if let Some((known, _)) = &mut known {
                    let entry = paths.get(known.path as usize);
                    known.entry = entry.copied().unwrap_or_default();
                }
                kept.push((place, service, member, known, left));
            }
        }
        self.deactivate(&entries, &found);
        self.settle_streams();
        // Read before any slot gets another generation.
        let mut states: HashMap<u32, abi::State> = HashMap::new();
        for (_, _, member, known, left) in &kept {
            for at in 0..member.trackers.len() {
                let adopted = known
                    .as_ref()
                    .and_then(|(_, adopted)| adopted.get(at)?.as_ref());
                if adopted.is_none()
                    && let Some((_, saved)) = left.tracker(at)
                {
                    let state = match maps {
                        Maps::Anew => left_states.get(saved.slot as usize).copied(),
                        Maps::Adopt | Maps::Grow => Some(self.kernel.states().state(saved.slot)),
                    };
                    states.extend(state.map(|state| (saved.slot, state)));
                }
            }
        }
        for (place, service, member, known, left) in kept {
            let (known, adopted) = known.unzip();
            let mut adopted = adopted.unwrap_or_default().into_iter();
            let mut position = 0..;
            self.place_member(
                place,
                service,
                member,
                known,
                |daemon, attachment, tracker| {
                    let at = position.next()?;
                    adopted.next().flatten().or_else(|| {
                        // Its source is not known before the next reconciliation.
                        attachment.plan = None;
                        let left = left.tracker(at).map(|(_, saved)| {
                            let state = states.remove(&saved.slot);
                            ((saved.verdict, saved.cause), state)
                        });
                        daemon.install_tracker(tracker, attachment.path, left)
                    })
                },
            );
        }
        self.config.services = services;
        let used: HashSet<u32> = self.members.values().map(|member| member.path).collect();
        for (path, _) in (0..).zip(paths).filter(|(_, path)| path.interface != 0) {
            if !used.contains(&path) {
                self.clear_path(path);
            }
        }
        (self.by_slot.len() == self.config.tracker_count()).then_some(found)
    }

    /// What a member of an earlier daemon used that its configuration left open.
    pub(super) fn left_used(
        &self,
        snapshot: &Snapshot,
        paths: &[abi::Path],
        entries: &[abi::Tracker],
        (service, at): diff::Place,
    ) -> Used {
        let saved = snapshot.services.get(service as usize);
        let Some(saved) = saved.and_then(|saved| saved.members.get(at as usize)) else {
            return Used::default();
        };
        let ifindex = paths
            .get(saved.path as usize)
            .map(|path| match path.interface {
                // No neighbour is kept on a tunnel, from which probes leave by the interface itself.
                0 => path.ifindex,
                interface => interface,
            });
        let trackers = saved.trackers.iter();
        let found = trackers.filter_map(|tracker| entries.get(tracker.slot as usize));
        Used {
            interface: ifindex.map_or_else(Vec::new, |ifindex| self.names(ifindex)),
            sources: found
                .map(|entry| loader::address(entry.family, entry.source))
                .collect(),
        }
    }

    /// Takes a member's places over from an earlier daemon.
    fn adopt_member(
        &mut self,
        (service, at): (u32, u32),
        name: &str,
        member: &Member,
        left: &Left<'_>,
        entries: &[abi::Tracker],
        found: &mut Vec<(u32, TrackerState)>,
    ) -> Option<(Attachment, Vec<Option<Tracker>>)> {
        let (_, saved) = left.member?;
        if entries.is_empty() || !self.places.paths.claim(saved.path) {
            return None;
        }
        let trackers = member.trackers.iter().enumerate().map(|(at, tracker)| {
            let (old, saved_tracker) = left.tracker(at)?;
            let (adopted, state) =
                self.adopt_tracker(tracker, old, saved.path, saved_tracker, entries)?;
            found.push((adopted.slot, state));
            Some(adopted)
        });
        let trackers = trackers.collect();
        let attachment = Attachment {
            service,
            member: at,
            service_name: name.to_owned(),
            config: member.clone(),
            path: saved.path,
            plan: None,
            entry: abi::Path::default(),
            moving: None,
            trackers: Vec::new(),
        };
        Some((attachment, trackers))
    }

    /// Takes a tracker's place over, where the maps agree that it was that of the `old` one, as which it goes on.
    fn adopt_tracker(
        &mut self,
        tracker: &config::Tracker,
        old: &config::Tracker,
        path: u32,
        saved: &SavedTracker,
        entries: &[abi::Tracker],
    ) -> Option<(Tracker, TrackerState)> {
        let slot = saved.slot;
        let before = *entries.get(slot as usize)?;
        let expected = abi::Tracker {
            active: 1,
            ..install::same_place(&install::entry(old, path), &before)
        };
        let entry = install::same_place(&install::entry(tracker, path), &before);
        // With a bit set of another size it needs another place, where its counters go on.
        if before != expected
            || entry.words() != before.words()
            || !self.places.claim(slot, &before)
        {
            return None;
        }
        if entry != before
            && let Err(error) = self.kernel.set_tracker(slot, &entry)
        {
            tracing::warn!("{error:#}");
        }
        if entry.probe == abi::Probe::Icmp {
            self.icmp_base = entry.flow_first ^ slot as u16;
        }
        let state = self.kernel.states().state(slot);
        let verdict = Verdict::from_u8(state.receive.verdict);
        let cause = Cause::from_u8(state.judge.cause);
        let detail = saved.detail.clone().filter(|_| cause == saved.cause);
        let adopted = self.start_tracker(tracker, slot, entry, Some((verdict, cause)));
        let state = TrackerState {
            verdict,
            cause,
            detail,
        };
        Some((adopted, state))
    }

    /// Takes out of use what an earlier daemon's maps hold of trackers that are no more.
    fn deactivate(&mut self, entries: &[abi::Tracker], found: &[(u32, TrackerState)]) {
        let mut is_kept = vec![false; entries.len()];
        for (slot, _) in found {
            is_kept[*slot as usize] = true;
        }
        let gone = (0..).zip(entries).zip(is_kept);
        for ((slot, entry), is_kept) in gone {
            if entry.active == 0 || is_kept {
                continue;
            }
            let gone = abi::Tracker {
                active: 0,
                ..*entry
            };
            if let Err(error) = self.kernel.set_tracker(slot, &gone) {
                tracing::warn!("{error:#}");
            }
        }
    }

    /// Reports what the maps of an earlier daemon tell and nobody was told yet.
    pub(super) fn catch_up(&mut self, found: Vec<(u32, TrackerState)>) -> Vec<Event> {
        let mut core = self.shared.core();
        let mut events = Vec::new();
        for (slot, state) in found {
            if let Some(at) = self.by_slot.get(&slot) {
                let shown = core.tree.tracker(*at);
                if state.detail.is_none()
                    && core.tree.held(*at).is_none()
                    && shown.is_some_and(|shown| {
                        (shown.verdict, shown.cause) == (state.verdict, state.cause)
                    })
                {
                    // Its detail stands.
                    continue;
                }
                events.extend(core.tree.tracker_changed(*at, state, stamp(), None));
            }
        }
        events
    }

    /// Learns from the paths of an earlier daemon what would take time to learn anew: the endpoints' MAC addresses,
    /// and the devices by which redirected frames do not leave.
    pub(super) fn learn(&mut self, paths: &[abi::Path], snapshot: &Snapshot) {
        for path in paths {
            if let Some(key) = loader::neighbour(path)
                && path.next_hop_mac != [0; 6]
                && path.via != abi::Via::Nowhere
            {
                self.neighbours.learn(key, path.next_hop_mac);
            }
            let link = self.netlink.observed.links.get(&path.ifindex);
            if path.via == abi::Via::TcRedirect
                && snapshot.mode == self.config.hub.mode
                && let Some(link) = link.filter(|link| link.takes_frames())
            {
                self.not_leaving.insert(path.ifindex, link.caps());
            }
        }
    }

    /// Gives back those neighbour entries of an earlier daemon that are not needed.
    pub(super) fn release_left(&self, paths: &[abi::Path]) {
        let left = paths.iter().filter_map(loader::neighbour);
        self.neighbours.release_left(left);
    }

    /// Reports events: they are in the journal before anybody sees them.
    pub(super) fn publish(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.write_journal(&Record::of(&events, stamp().mono_ns));
        self.log_changes(&events);
        self.shared.feed.publish(events);
    }

    /// Writes changes of verdict into the log.
    fn log_changes(&mut self, events: &[Event]) {
        for (level, line) in self.verdict_log.lines(stamp().mono_ns, events) {
            match level {
                tracing::Level::WARN => tracing::warn!("{line}"),
                _ => tracing::info!("{line}"),
            }
        }
    }

    /// Says how many changes were left out of the log, once that is due.
    pub(super) fn end_log_window(&mut self) {
        if let Some((_, line)) = self.verdict_log.end_window(stamp().mono_ns) {
            tracing::warn!("{line}");
        }
    }

    /// Writes down what is held back of a tracker from here on.
    pub(super) fn journal_held(&mut self, at: TrackerRef, held: Option<&Held>) {
        let Some(member) = self.members.get(&(at.service, at.member)) else {
            return;
        };
        let record = Record::Held {
            service: member.service_name.clone(),
            tracker: (at.member, at.tracker),
            held: held.map(SavedHeld::from),
        };
        self.write_journal(&record);
    }

    /// Reports the end of a service.
    pub(super) fn publish_removal(&mut self, service: &str, events: Vec<Event>) {
        let service = service.to_owned();
        let record = Record::Removed {
            service,
            events: events.clone(),
        };
        self.write_journal(&record);
        self.log_changes(&events);
        self.shared.feed.publish(events);
    }

    /// Writes down a service that was added.
    pub(super) fn journal_added(&mut self, service: &Service, number: u32) {
        if let Some(saved) = self.saved(service, number) {
            self.write_journal(&Record::Added(saved));
        }
    }

    /// Writes everything down anew, and reports events.
    pub(super) fn begin_journal(&mut self, events: Vec<Event>) {
        self.begin_journal_with(&Record::of(&events, stamp().mono_ns));
        self.log_changes(&events);
        self.shared.feed.publish(events);
    }

    fn write_journal(&mut self, record: &Record) {
        if !self.is_forgetful && !self.journal.append(&record.line()) {
            self.begin_journal_with(record);
        }
    }

    fn begin_journal_with(&mut self, record: &Record) {
        let mut text = Record::Snapshot(self.snapshot()).line();
        // The snapshot has its effects already.
        text.extend(record.clone().after_snapshot().line());
        let begun = self.journal.begin(&text);
        if let Err(error) = &begun {
            self.journal.give_up();
            if !self.is_forgetful {
                tracing::warn!(
                    "cannot write the journal: {error:#}; the next daemon will not go on from this one"
                );
            }
        }
        self.is_forgetful = begun.is_err();
    }

    fn snapshot(&self) -> Snapshot {
        let (events, next) = self.shared.feed.last(CAPACITY);
        let numbers: HashMap<&str, u32> = self
            .members
            .iter()
            .map(|((number, _), member)| (member.service_name.as_str(), *number))
            .collect();
        let saved = |service: &Service| self.saved(service, *numbers.get(service.name.as_str())?);
        Snapshot {
            namespace: self.namespace,
            mode: self.config.hub.mode,
            services: self.config.services.iter().filter_map(saved).collect(),
            chains: self.config.chains.clone(),
            events,
            next,
            run: self.shared.feed.run().to_string(),
        }
    }

    fn saved(&self, service: &Service, number: u32) -> Option<SavedService> {
        let shown = self.shared.core().tree.shown(number)?;
        let members = (0..).zip(shown.trackers).map(|(at, shown)| {
            let member = self.members.get(&(number, at))?;
            let trackers = member.trackers.iter().zip(shown);
            let trackers = trackers.map(|(tracker, (shown, held))| SavedTracker {
                slot: tracker.slot,
                verdict: shown.verdict,
                cause: shown.cause,
                detail: shown.detail,
                held: held.as_ref().map(SavedHeld::from),
            });
            Some(SavedMember {
                path: member.path,
                trackers: trackers.collect(),
            })
        });
        Some(SavedService {
            service: service.clone(),
            since: shown.since,
            members: members.collect::<Option<_>>()?,
            flaps: SavedFlaps {
                recent_mono_ns: shown.flaps.recent_mono_ns.into(),
                total: shown.flaps.total,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Each namespace is gone before the next one is made, which may get its inode number.
    #[test]
    fn no_two_network_namespaces_are_taken_for_one() {
        let own = namespace().expect("an identity");
        assert_eq!(namespace().expect("an identity"), own);
        let make = || -> Option<(u64, u64)> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            namespace().ok()
        };
        let made = (0..16).map(|_| std::thread::spawn(make).join().expect("a thread"));
        let Some(made) = made.collect::<Option<Vec<_>>>() else {
            println!("skipped: cannot make network namespaces");
            return;
        };
        let all: HashSet<_> = made.iter().map(|(_, cookie)| *cookie).collect();
        assert_eq!(all.len(), made.len(), "{made:?}");
        assert!(!all.contains(&own.1));
    }
}

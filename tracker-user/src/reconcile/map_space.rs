//! What is free in the maps of trackers, and what of them a tracker's settings need.

use std::{collections::HashMap, time::Duration};

use tracker_ebpf::{abi, window::Window};

use crate::{
    config::{self, Config, Expect, Flow, Refused},
    datapath::adopt::Sizes,
    desired::slots::{BuddyAllocator, SlotAllocator},
    detector::streams::StreamAllocator,
    plan::address::address_bytes,
};

/// Words of WINDOWS for each tracker that may be added: what one with a timeout of up to 448 intervals
/// needs, though most need only half of it.
const ROOM_WORDS: usize = 8;

/// Words of WINDOWS for each TCP tracker's share of the source ports: a run of twice as many as there are trackers of one
/// port, beside the one of half that size before it.
const STREAM_WORDS: usize = 3;

/// What is free in the maps.
pub(super) struct MapSpace {
    pub(super) slots: SlotAllocator,
    pub(super) paths: SlotAllocator,
    pub(super) words: BuddyAllocator,
    /// By which answers to the probes of TCP trackers are told apart.
    pub(super) streams: StreamAllocator,
    room: u32,
}

impl MapSpace {
    pub(super) fn new(sizes: Sizes, room: u32) -> Self {
        Self {
            slots: SlotAllocator::new(sizes.trackers),
            paths: SlotAllocator::new(sizes.paths),
            words: BuddyAllocator::new(sizes.words),
            streams: StreamAllocator::default(),
            room,
        }
    }

    /// Marks a place that an earlier daemon gave as in use; false if it is taken already.
    pub(super) fn claim(&mut self, slot: u32, entry: &abi::Tracker) -> bool {
        if !self.slots.claim(slot) {
            return false;
        }
        if !self.words.claim(entry.window_first, entry.words()) {
            self.slots.give(slot);
            return false;
        }
        if entry.probe == abi::Probe::Tcp.into()
            && !(self.streams).claim(&entry.stream(), slot, entry.flow_first)
        {
            self.words.give(entry.window_first, entry.words());
            self.slots.give(slot);
            return false;
        }
        true
    }

    /// Frees a tracker's place, but for that of its stream.
    pub(super) fn give(&mut self, slot: u32, entry: &abi::Tracker) {
        self.slots.give(slot);
        self.words.give(entry.window_first, entry.words());
    }

    /// Checks that the added trackers fit once the removed ones are freed. Allocates nothing.
    pub(super) fn check(&self, removed: &Removed, added: &Added<'_>) -> Result<(), NoRoom> {
        let slots = self.slots.available() + removed.words.len();
        let paths = self.paths.available() + removed.paths;
        let trackers = added.trackers.len();
        let mut words = self.words.clone();
        for (first, count) in &removed.words {
            words.give(*first, *count);
        }
        let mut fits = trackers <= slots && added.paths <= paths;
        for tracker in &added.trackers {
            fits = fits && words.take(words_of(tracker)).is_some();
        }
        let mut streams = HashMap::new();
        let tcp = added.trackers.iter();
        for tracker in tcp.filter(|tracker| tracker.kind() == abi::Probe::Tcp) {
            *streams.entry(entry(tracker, 0).stream()).or_insert(0) += 1;
        }
        for (key, count) in &streams {
            let needs = self.streams.needs(key, *count);
            fits = fits && needs.is_none_or(|count| words.take(count).is_some());
        }
        match fits {
            true => Ok(()),
            false => Err(NoRoom {
                trackers,
                free: slots,
                room: self.room,
            }),
        }
    }
}

/// There is no room for what is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {trackers} more trackers in the maps of this daemon, which has {free} free; raise room of \
     [hub], now {room}, and restart it"
)]
pub struct NoRoom {
    trackers: usize,
    free: usize,
    room: u32,
}

/// Places that are freed.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) paths: usize,
    /// First word of each tracker's bit set, and how many it has.
    words: Vec<(u32, u32)>,
}

impl Removed {
    pub(super) fn tracker(&mut self, entry: &abi::Tracker) {
        self.words.push((entry.window_first, entry.words()));
    }
}

/// What needs places.
#[derive(Default)]
pub(super) struct Added<'a> {
    pub(super) paths: usize,
    pub(super) trackers: Vec<&'a config::Tracker>,
}

/// A duration in the unit of the maps.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the maps say of a tracker wherever its place is.
pub(super) fn entry(settings: &config::Tracker, path: u32) -> abi::Tracker {
    let probe = settings.kind();
    abi::Tracker {
        behind: address_bytes(settings.behind),
        timeout_ns: nanoseconds(settings.timeout),
        path,
        window_mask: window_words(settings) - 1,
        payload: settings.wire_payload(),
        dscp: settings.dscp,
        rotates: u8::from(settings.flow == Flow::Rotate),
        port: settings.port.unwrap_or(0),
        expects_silence: u8::from(settings.expect == Expect::Silence),
        return_ttl: settings.return_ttl.unwrap_or(0),
        refused_is_reply: u8::from(settings.refused == Refused::Up),
        family: settings.behind.into(),
        probe: probe.into(),
        ..Default::default()
    }
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

/// Words of a tracker's bit set. If send times are kept, there is one for each probe under way, and as many words
/// of bits.
fn window_words(settings: &config::Tracker) -> u32 {
    let (interval, timeout) = (settings.interval, settings.timeout);
    let words = Window::words(nanoseconds(interval), nanoseconds(timeout));
    if !settings.kind().keeps_times() {
        return words;
    }
    let in_flight = nanoseconds(timeout) / nanoseconds(interval) + 2;
    words.max((in_flight as u32).next_power_of_two())
}

/// Words of WINDOWS that a tracker takes.
pub(super) fn words_of(settings: &config::Tracker) -> u32 {
    window_words(settings) << u32::from(settings.kind().keeps_times())
}

/// Map sizes for a configuration, with room for trackers that come later.
pub fn sizes(config: &Config) -> Sizes {
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

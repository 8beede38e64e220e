//! Which TCP trackers that ask one port of one address use which source ports (pure).
//!
//! A SYN-ACK brings back a port and a number, so the port must tell the tracker. Trackers of one port of one address share
//! all source ports evenly, by their lowest bits; one that is alone has all of them. Where more come than there are
//! shares, each share is halved.

use std::collections::HashMap;

use tracker_ebpf::abi::{FIXED_PORTS, PORTS_MASK, StreamKey, Streams};

use crate::{desired::slots::BuddyAllocator, detector::flows::Share};

/// The trackers of one port of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its run of words in WINDOWS.
    pub streams: Streams,
    /// The tracker slot of each share.
    pub slots: Vec<Option<u32>>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// The share of a place.
    pub fn share(&self, class: u16) -> Share {
        let mask = self.streams.mask() as u16;
        Share {
            class: class & mask,
            mask,
        }
    }

    /// The words of WINDOWS, in order.
    pub fn words(&self) -> impl Iterator<Item = (u32, u64)> {
        let words = self.slots.iter();
        let words = words.map(|slot| slot.map_or(0, |slot| u64::from(slot) + 1));
        (self.streams.first..).zip(words)
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct StreamAllocator {
    groups: HashMap<StreamKey, Group>,
}

/// A tracker's place among those of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which share it has.
    pub class: u16,
    /// All shares were halved, and the words that were used before are to be given back.
    pub left: Option<Streams>,
}

impl StreamAllocator {
    /// The first source port of a place.
    pub const fn first_port(class: u16) -> u16 {
        FIXED_PORTS + class
    }

    /// The place whose first source port this is.
    pub const fn class(first_port: u16) -> u16 {
        first_port.wrapping_sub(FIXED_PORTS) & PORTS_MASK
    }

    /// Those that ask a port.
    pub fn group(&self, key: &StreamKey) -> Option<&Group> {
        self.groups.get(key)
    }

    /// Gives a tracker a place. The words that it leaves are not given back yet, because programs may still use them.
    pub fn take(
        &mut self,
        key: StreamKey,
        slot: u32,
        words: &mut BuddyAllocator,
    ) -> Option<Placed> {
        let Some(group) = self.groups.get_mut(&key) else {
            let first = words.take(1)?;
            let group = Group {
                streams: Streams { first, bits: 0 },
                slots: vec![Some(slot)],
            };
            self.groups.insert(key, group);
            return Some(Placed {
                class: 0,
                left: None,
            });
        };
        let free = group.slots.iter().position(Option::is_none);
        let (class, left) = match free {
            Some(class) => (class, None),
            None if group.slots.len() > usize::from(PORTS_MASK) => return None,
            None => {
                let (class, bits) = (group.slots.len(), group.streams.bits + 1);
                let first = words.take(1 << bits)?;
                group.slots.resize(class * 2, None);
                let left = std::mem::replace(&mut group.streams, Streams { first, bits });
                (class, Some(left))
            }
        };
        group.slots[class] = Some(slot);
        let class = class as u16;
        Some(Placed { class, left })
    }

    /// The words that it would take beside those that it has, if so many trackers came.
    pub fn needs(&self, key: &StreamKey, coming: usize) -> Option<u32> {
        let group = self.groups.get(key);
        let slots = group.map_or(&[][..], |group| &group.slots);
        let wanted = slots.iter().flatten().count() + coming;
        let wanted = wanted.max(1).next_power_of_two();
        (wanted > slots.len()).then_some(wanted as u32)
    }

    /// Takes over a group of an earlier daemon, with none of its trackers yet.
    pub fn adopt(&mut self, key: StreamKey, streams: Streams, words: &mut BuddyAllocator) -> bool {
        if key.zero != 0
            || streams.mask() > u32::from(PORTS_MASK)
            || !words.claim(streams.first, streams.mask() + 1)
        {
            return false;
        }
        let slots = vec![None; streams.mask() as usize + 1];
        self.groups.insert(key, Group { streams, slots });
        true
    }

    /// Says that a tracker has this place; false if another one has it, or there is none.
    pub fn claim(&mut self, key: &StreamKey, slot: u32, first_port: u16) -> bool {
        let place = self.groups.get_mut(key).and_then(|group| {
            let class = usize::from(Self::class(first_port));
            group.slots.get_mut(class)
        });
        match place {
            Some(place @ None) => {
                *place = Some(slot);
                true
            }
            _ => false,
        }
    }

    /// Gives a tracker's place back: says which word of WINDOWS was its.
    pub fn give(&mut self, key: &StreamKey, slot: u32) -> Option<u32> {
        let group = self.groups.get_mut(key)?;
        let class = group.slots.iter().position(|taken| *taken == Some(slot))?;
        group.slots[class] = None;
        Some(group.streams.first + class as u32)
    }

    /// Forgets a group without trackers: says what it had.
    pub fn forget_empty(&mut self, key: &StreamKey) -> Option<Streams> {
        let is_empty = self.groups.get(key)?.is_empty();
        is_empty
            .then(|| self.groups.remove(key))
            .flatten()
            .map(|group| group.streams)
    }

    /// Each group.
    pub fn groups(&self) -> impl Iterator<Item = (&StreamKey, &Group)> {
        self.groups.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::detector::flows::Ports;

    fn key() -> StreamKey {
        StreamKey::new([7; 16], 443, tracker_ebpf::abi::Family::Ipv4)
    }

    #[test]
    fn each_has_ports_of_its_own_however_many_come() {
        let (mut words, mut places) = (BuddyAllocator::new(16_384), StreamAllocator::default());
        let mut first = HashSet::new();
        for slot in 0..2_048 {
            let placed = places.take(key(), slot, &mut words).expect("a place");
            assert!(first.insert(StreamAllocator::first_port(placed.class)));
            if let Some(left) = placed.left {
                words.give(left.first, left.mask() + 1);
            }
        }
        assert_eq!(places.take(key(), 9_999, &mut words), None);
        let group = places.group(&key()).expect("a group");
        assert_eq!((group.streams.mask(), group.slots.len()), (2_047, 2_048));
        let ports = Ports::default();
        for (class, (at, word)) in (0..).zip(group.words()) {
            let share = group.share(class);
            let port = StreamAllocator::first_port(class);
            assert!(ports.has(share, port) && ports.count(share) >= 16);
            assert_eq!(group.streams.place(port), at);
            assert_eq!(
                u64::from(group.slots[usize::from(class)].expect("a slot")) + 1,
                word
            );
        }
        // One that goes makes room.
        assert!(places.give(&key(), 5).is_some());
        let placed = places.take(key(), 9_999, &mut words).expect("a place");
        assert_eq!((placed.class, placed.left), (5, None));
    }

    #[test]
    fn what_an_earlier_daemon_gave_is_claimed_once() {
        let (mut words, mut places) = (BuddyAllocator::new(64), StreamAllocator::default());
        for slot in 0..3 {
            let placed = places.take(key(), slot, &mut words).expect("a place");
            if let Some(left) = placed.left {
                words.give(left.first, left.mask() + 1);
            }
        }
        let streams = places.group(&key()).expect("a group").streams;
        let (mut words, mut next) = (BuddyAllocator::new(64), StreamAllocator::default());
        assert!(next.adopt(key(), streams, &mut words));
        assert!(!next.adopt(StreamKey { zero: 1, ..key() }, streams, &mut words));
        assert!(next.claim(&key(), 1, StreamAllocator::first_port(1)));
        assert!(!next.claim(&key(), 2, StreamAllocator::first_port(1)));
        assert!(!next.claim(&key(), 2, StreamAllocator::first_port(9)));
        assert_eq!(next.forget_empty(&key()), None);
        assert!(next.give(&key(), 1).is_some());
        assert_eq!(next.forget_empty(&key()), Some(streams));
    }
}

//! Who uses which slot of the kernel's maps: pure bookkeeping.

use std::collections::BTreeMap;

/// Numbered places, handed out lowest first.
#[derive(Clone, Debug)]
pub struct Slots {
    next: u32,
    capacity: u32,
    free: Vec<u32>,
}

impl Slots {
    /// So many places, all free.
    pub const fn new(capacity: u32) -> Self {
        Self {
            next: 0,
            capacity,
            free: Vec::new(),
        }
    }

    /// A free place.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.next;
            (slot < self.capacity).then(|| {
                self.next += 1;
                slot
            })
        })
    }

    /// Gives a place back.
    pub fn give(&mut self, slot: u32) {
        self.free.push(slot);
    }
}

/// Runs of words, in sizes that are powers of two.
#[derive(Clone, Debug)]
pub struct Words {
    next: u32,
    capacity: u32,
    free: BTreeMap<u32, Vec<u32>>,
}

impl Words {
    /// So many words, all free.
    pub const fn new(capacity: u32) -> Self {
        Self {
            next: 0,
            capacity,
            free: BTreeMap::new(),
        }
    }

    /// The first of `count` free words.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        if let Some(first) = self.free.get_mut(&count).and_then(Vec::pop) {
            return Some(first);
        }
        let end = self
            .next
            .checked_add(count)
            .filter(|end| *end <= self.capacity)?;
        Some(std::mem::replace(&mut self.next, end))
    }

    /// Gives a run back.
    pub fn give(&mut self, first: u32, count: u32) {
        self.free.entry(count).or_default().push(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_bounded() {
        let mut slots = Slots::new(2);
        assert_eq!(
            (slots.take(), slots.take(), slots.take()),
            (Some(0), Some(1), None)
        );
        slots.give(0);
        assert_eq!((slots.take(), slots.take()), (Some(0), None));
    }

    #[test]
    fn runs_of_words_never_overlap() {
        let mut words = Words::new(8);
        assert_eq!(
            (words.take(2), words.take(4), words.take(4)),
            (Some(0), Some(2), None)
        );
        words.give(2, 4);
        assert_eq!(
            (words.take(2), words.take(4), words.take(1)),
            (Some(6), Some(2), None)
        );
    }
}

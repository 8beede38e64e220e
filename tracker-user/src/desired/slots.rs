//! Who uses which slot of the kernel's maps: pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet};

/// Numbered places, handed out lowest first.
#[derive(Clone, Debug)]
pub struct SlotAllocator {
    next: u32,
    capacity: u32,
    free: Vec<u32>,
}

impl SlotAllocator {
    /// So many places, all free.
    pub const fn new(capacity: u32) -> Self {
        Self {
            next: 0,
            capacity,
            free: Vec::new(),
        }
    }

    /// How many places are free.
    pub const fn available(&self) -> usize {
        (self.capacity - self.next) as usize + self.free.len()
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

    /// Takes a certain place; false if it is not free.
    pub fn claim(&mut self, slot: u32) -> bool {
        if slot >= self.capacity {
            return false;
        }
        if slot >= self.next {
            self.free.extend(self.next..slot);
            self.next = slot + 1;
            return true;
        }
        let at = self.free.iter().position(|free| *free == slot);
        at.is_some_and(|at| {
            self.free.swap_remove(at);
            true
        })
    }

    /// Gives a place back.
    pub fn give(&mut self, slot: u32) {
        self.free.push(slot);
    }
}

/// Runs of words, in sizes that are powers of two. A run is split if a smaller one is wanted, and
/// joined with its other half once both are free, so that no history of sizes uses words up.
#[derive(Clone, Debug)]
pub struct BuddyAllocator {
    /// First words of the free runs, by size. Each is a multiple of its size.
    free: BTreeMap<u32, BTreeSet<u32>>,
}

impl BuddyAllocator {
    /// So many words, all free.
    pub fn new(capacity: u32) -> Self {
        let mut words = Self {
            free: BTreeMap::new(),
        };
        let mut first = 0;
        while first < capacity {
            let size = 1 << (capacity - first).ilog2();
            words.free.entry(size).or_default().insert(first);
            first += size;
        }
        words
    }

    /// The first of `count` free words, a power of two.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        let larger = self.free.range(count..);
        let (size, first) = larger
            .filter_map(|(size, runs)| Some((*size, *runs.first()?)))
            .next()?;
        self.forget(size, first);
        let mut half = size / 2;
        while half >= count {
            self.free.entry(half).or_default().insert(first + half);
            half /= 2;
        }
        Some(first)
    }

    /// Takes a certain run; false if not all of it is free.
    pub fn claim(&mut self, first: u32, count: u32) -> bool {
        if !count.is_power_of_two() || !first.is_multiple_of(count) {
            return false;
        }
        // The free run that holds it, halved until it is the run itself.
        let mut larger = self.free.range(count..);
        let holding = larger
            .find_map(|(size, runs)| runs.get(&(first & !(size - 1))).map(|run| (*size, *run)));
        let Some((mut size, run)) = holding else {
            return false;
        };
        self.forget(size, run);
        while size > count {
            size /= 2;
            // The half that holds it stays taken; the other is free.
            let other = (first & !(size - 1)) ^ size;
            self.free.entry(size).or_default().insert(other);
        }
        true
    }

    /// Gives a run back.
    pub fn give(&mut self, mut first: u32, mut count: u32) {
        while self.forget(count, first ^ count) {
            first &= !count;
            count *= 2;
        }
        self.free.entry(count).or_default().insert(first);
    }

    /// Whether a run was free, which it is no longer.
    fn forget(&mut self, size: u32, first: u32) -> bool {
        let runs = self.free.get_mut(&size);
        runs.is_some_and(|runs| runs.remove(&first))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_are_reused_and_bounded() {
        let mut slots = SlotAllocator::new(2);
        assert_eq!(slots.available(), 2);
        assert_eq!(
            (slots.take(), slots.take(), slots.take()),
            (Some(0), Some(1), None)
        );
        slots.give(0);
        assert_eq!(slots.available(), 1);
        assert_eq!((slots.take(), slots.take()), (Some(0), None));
    }

    #[test]
    fn runs_of_words_are_joined_again() {
        let mut words = BuddyAllocator::new(8);
        let small: Vec<_> = std::iter::from_fn(|| words.take(2)).collect();
        assert_eq!(small, [0, 2, 4, 6]);
        for first in small {
            words.give(first, 2);
        }
        assert_eq!((words.take(8), words.take(1)), (Some(0), None));
    }

    #[test]
    fn certain_slots_are_claimed_once() {
        let mut slots = SlotAllocator::new(5);
        assert!(slots.claim(3) && slots.claim(1));
        assert!(!slots.claim(3) && !slots.claim(5));
        assert_eq!(slots.available(), 3);
        let mut others: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        others.sort_unstable();
        assert_eq!(others, [0, 2, 4]);
    }

    proptest! {
        /// What one keeper of words gave out, another can be told of, in any order, with more words or as many;
        /// both then have the same ones left.
        #[test]
        fn certain_runs_of_words_are_claimed_once(
            capacity in 1u32..200, more in 0u32..100,
            orders in prop::collection::vec((0u32..6, any::<u32>()), 1..60),
        ) {
            let mut words = BuddyAllocator::new(capacity);
            let taken = orders.iter().filter_map(|(order, key)| Some((*key, words.take(1 << order)?, 1 << order)));
            let mut taken: Vec<(u32, u32, u32)> = taken.collect();
            taken.sort_unstable();
            let (mut same, mut larger) = (BuddyAllocator::new(capacity), BuddyAllocator::new(capacity + more));
            for (_, first, count) in &taken {
                for words in [&mut same, &mut larger] {
                    prop_assert!(words.claim(*first, *count));
                    prop_assert!(!words.claim(*first, *count));
                }
            }
            let all = |words: &mut BuddyAllocator| -> Vec<u32> {
                let mut all: Vec<u32> = std::iter::from_fn(|| words.take(1)).collect();
                all.sort_unstable();
                all
            };
            prop_assert_eq!(all(&mut same), all(&mut words));
            let used: u32 = taken.iter().map(|(_, _, count)| count).sum();
            prop_assert_eq!(all(&mut larger).len() as u32, capacity + more - used);
        }

        /// Whatever was taken and given back: no word is in two runs, none is outside, and all come
        /// back.
        #[test]
        fn runs_of_words_never_overlap(
            capacity in 1u32..200,
            steps in prop::collection::vec((0u32..6, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut words = BuddyAllocator::new(capacity);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (order, which, gives) in steps {
                if gives && !taken.is_empty() {
                    let (first, count) = taken.swap_remove(which.index(taken.len()));
                    words.give(first, count);
                } else if let Some(first) = words.take(1 << order) {
                    taken.push((first, 1 << order));
                }
                let mut used = vec![false; capacity as usize];
                for (first, count) in &taken {
                    for word in *first..first + count {
                        prop_assert!(!std::mem::replace(&mut used[word as usize], true));
                    }
                }
            }
            for (first, count) in taken {
                words.give(first, count);
            }
            let free = |words: &BuddyAllocator| {
                let all = words.free.iter().filter(|(_, runs)| !runs.is_empty());
                all.map(|(size, runs)| (*size, runs.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(free(&words), free(&BuddyAllocator::new(capacity)));
        }
    }
}

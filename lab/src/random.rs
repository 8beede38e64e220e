//! Tests by random inputs, which all follow from one number.
//!
//! `TRACKER_SEED` is that number: with it a test has the same inputs in the same order. `TRACKER_SOAK_SECONDS` has a test go
//! on for this long, from a number of its own if none is given. A test runs in rounds, each with the seed after the
//! last one's, and one that fails says which: with that as `TRACKER_SEED`, the failure comes in the first round.

use std::fmt::Display;
use std::io::Read as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::pace::slow;

/// The variable that names the first round's seed.
pub const SEED: &str = "TRACKER_SEED";
/// The variable that says for how many seconds to go on.
pub const SOAK: &str = "TRACKER_SOAK_SECONDS";
/// How long a test goes on at most unless it is told to.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where a test begins unless something else is said: any number would do.
const FIRST: u64 = 1;
/// Bytes on which programs' and parsers' decisions turn.
const TELLING: [u8; 16] = [
    0, 1, 2, 4, 5, 6, 7, 8, 0x11, 0x3a, 0x40, 0x45, 0x60, 0x7f, 0x80, 0xff,
];

/// SplitMix64 (Steele, Lea and Flood 2014): any seed will do, neighbours' sequences have nothing in common.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The choices that follow from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    /// Any number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % (end as u64).max(1)) as usize
    }

    /// True once in `n` times.
    pub fn is_one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// Puts items into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// This many random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    /// A part of what has `len` bytes, short more often than long.
    pub fn part(&mut self, len: usize) -> Range<usize> {
        let first = self.below(len);
        let longest = *self.pick(&[1, 2, 4, 8, 40, usize::MAX]);
        let count = 1 + self.below((len - first.min(len)).min(longest));
        first..(first + count).min(len)
    }

    /// Damages bytes in one way: bits, bytes, words, and parts that are taken out, doubled, moved, cut off, or replaced
    /// by a part of `other`.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        if bytes.is_empty() {
            let len = self.below(40);
            *bytes = self.bytes(len);
            return;
        }
        let at = self.below(bytes.len());
        match self.below(16) {
            0..=4 => bytes[at] ^= 1 << self.below(8),
            5 | 6 => bytes[at] = self.byte(),
            7 | 8 => bytes[at] = *self.pick(&TELLING),
            9 => {
                let word = *self.pick(&[0u16, 1, 0x7fff, 0x8000, 0xffff]);
                let end = (at + 2).min(bytes.len());
                bytes[at..end].copy_from_slice(&word.to_be_bytes()[..end - at]);
            }
            10 => bytes.truncate(at),
            11 => {
                let more = self.below(64);
                let more = self.bytes(more);
                bytes.extend(more);
            }
            12 => {
                let part = self.part(bytes.len());
                bytes.drain(part);
            }
            13 => {
                let part = self.part(bytes.len());
                let doubled = bytes[part.clone()].to_vec();
                bytes.splice(part.end..part.end, doubled);
            }
            14 => bytes.insert(at, self.0 as u8),
            _ => {
                let part = self.part(other.len());
                let end = (at + part.len()).min(bytes.len());
                bytes.splice(at..end, other[part].iter().copied());
            }
        }
    }
}

/// The rounds of one test.
#[derive(Debug)]
pub struct Rounds {
    first: u64,
    done: u64,
    most: u64,
    begun: Instant,
    until: Instant,
    inputs: u64,
}

/// One round; if it ends in a panic, it prints the seed that repeats it.
#[derive(Debug)]
pub struct Round {
    /// Its seed.
    pub seed: u64,
    /// Its choices.
    pub random: Random,
}

impl Rounds {
    /// This many rounds, fewer on a machine that is busy, unless the environment wants others.
    ///
    /// # Panics
    /// If a variable is set and not a number.
    #[must_use]
    pub fn new(most: u64) -> Self {
        let soak = number(SOAK).map(Duration::from_secs);
        let first = number(SEED).unwrap_or_else(|| match soak {
            None => FIRST,
            Some(_) => fresh(),
        });
        let begun = Instant::now();
        Self {
            first,
            done: 0,
            most: if soak.is_some() { u64::MAX } else { most },
            begun,
            until: begun + soak.unwrap_or(slow(PATIENCE)),
            inputs: 0,
        }
    }

    /// Counts inputs.
    pub fn took(&mut self, inputs: u64) {
        self.inputs += inputs;
    }

    /// How many were counted.
    #[must_use]
    pub const fn inputs(&self) -> u64 {
        self.inputs
    }

    /// Says what was done: of what how many, how fast, and what came of it. `cargo xtask test --soak` repeats lines that
    /// name a seed.
    pub fn sum_up(&self, what: &str, of: &str, outcomes: impl Display) {
        let Self {
            inputs,
            done,
            first,
            ..
        } = self;
        let rate = *inputs as f64 / self.begun.elapsed().as_secs_f64();
        println!(
            "{what}: {inputs} {of}, {rate:.0}/s, in {done} rounds from {SEED}={first}: {outcomes}"
        );
    }
}

impl Iterator for Rounds {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let is_over = Instant::now() >= self.until;
        // One round at least, whatever the time.
        if self.done > 0 && (is_over || self.done >= self.most) {
            return None;
        }
        let seed = self.first.wrapping_add(self.done);
        self.done += 1;
        Some(Round {
            seed,
            random: Random::new(seed),
        })
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("TEST");
            eprintln!(
                "repeat it with: {SEED}={} cargo xtask test -- {test}",
                self.seed
            );
        }
    }
}

/// What such a variable says, if it is set.
///
/// # Panics
/// If that is not a number.
#[must_use]
pub fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|error| panic!("{variable}={value}: {error}; give a whole number")))
}

/// A new seed, from the system's random numbers.
#[must_use]
pub fn fresh() -> u64 {
    let mut bytes = [0; 4];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    // Short enough to be typed. The process id stands in if there are no random numbers.
    match read {
        Ok(()) => u32::from_ne_bytes(bytes).into(),
        Err(_) => std::process::id().into(),
    }
}

/// How often each outcome was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(std::collections::BTreeMap<String, u64>);

impl Tally {
    /// One more.
    pub fn add(&mut self, outcome: impl std::fmt::Debug) {
        *self.0.entry(format!("{outcome:?}")).or_default() += 1;
    }

    /// How many of these were seen.
    #[must_use]
    pub fn of(&self, outcome: impl std::fmt::Debug) -> u64 {
        self.0.get(&format!("{outcome:?}")).copied().unwrap_or(0)
    }

    /// Fails unless each of these was seen at least once in `n` inputs: inputs that all end in the same way prove
    /// nothing. Fewer than `20 n` inputs may lack some by chance.
    ///
    /// # Panics
    /// If one was not.
    #[track_caller]
    pub fn require(&self, outcomes: &[impl std::fmt::Debug], n: u64) {
        let total: u64 = self.0.values().sum();
        let outcomes = if total < 20 * n { &[] } else { outcomes };
        for outcome in outcomes {
            let seen = self.of(outcome);
            assert!(
                seen * n >= total.max(1),
                "{outcome:?}: {seen} of {total} inputs: {self}"
            );
        }
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: u64 = self.0.values().sum();
        for (at, (outcome, count)) in self.0.iter().enumerate() {
            let share = 100.0 * *count as f64 / total.max(1) as f64;
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{outcome} {share:.1} %")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_everything() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            let mut bytes = random.bytes(100);
            for _ in 0..1_000 {
                random.damage(&mut bytes, b"another");
            }
            bytes
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn damage_of_anything_is_something() {
        for seed in 0..10_000 {
            let mut random = Random::new(seed);
            for other in [&b""[..], b"x", &[7; 100]] {
                let len = random.below(3);
                let mut bytes = random.bytes(len);
                random.damage(&mut bytes, other);
                assert!(bytes.len() < 300);
            }
        }
    }

    #[test]
    fn what_was_seldom_is_told() {
        let mut tally = Tally::default();
        (0..999).for_each(|_| tally.add("often"));
        tally.add("seldom");
        tally.require(&["often", "never"], 100);
        tally.require(&["often"], 2);
        assert_eq!(tally.to_string(), "\"often\" 99.9 %, \"seldom\" 0.1 %");
        let missed = std::panic::catch_unwind(|| tally.require(&["seldom"], 50));
        assert!(missed.is_err());
    }
}

//! How fine the history is, and for how long. Pure.

use crate::config::words;

/// How fine rows are. The finer, the shorter they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// A row a second, for an hour.
    Second,
    /// A row a minute, for a week.
    Minute,
    /// A row an hour, for two years.
    Hour,
}

words! {
    Tier { Second = "1s", Minute = "1m", Hour = "1h" }
}

/// A file of a series ends after this part of the time for which the series is kept.
const PARTS: i64 = 16;
/// The part of the whole size that is for events, and below which no tier is shortened in favour of others: one in so many.
const SHARE: u64 = 10;
/// Bytes of a row but for its values.
const ROW_BYTES: f64 = 17.0;

impl Tier {
    /// Every tier, the finest first.
    pub const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    /// From one row to the next, seconds.
    pub const fn step_s(self) -> i64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
        }
    }

    /// How long rows are kept if there is room, seconds.
    pub const fn kept_s(self) -> i64 {
        match self {
            Self::Second => 3_600,
            Self::Minute => 7 * 24 * 3_600,
            Self::Hour => 2 * 365 * 24 * 3_600,
        }
    }

    /// After how many seconds a file ends.
    pub(super) const fn part_s(self) -> i64 {
        self.kept_s() / PARTS
    }

    /// The finest tier that reaches back to `seconds` ago.
    pub fn reaching(seconds: i64) -> Self {
        let reaches = |tier: &Self| seconds <= tier.kept_s();
        Self::ALL.into_iter().find(reaches).unwrap_or(Self::Hour)
    }

    /// What a member takes of a row, bytes; measured with one probe a second. The flags, and three numbers of microseconds of two
    /// bytes each at most in most networks; of longer steps also the number of probes.
    const fn value_bytes(self) -> f64 {
        match self {
            Self::Second => 5.5,
            Self::Minute => 7.5,
            Self::Hour => 8.5,
        }
    }
}

/// How the whole size is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Most bytes of events.
    pub(super) events: u64,
    /// Most bytes of all tiers together.
    pub(super) tiers: u64,
    /// A tier with no more than this is shortened last.
    pub(super) floor: u64,
    /// A file ends once it is longer.
    pub(super) file: u64,
}

impl Budget {
    pub(super) const fn new(size: u64) -> Self {
        let share = size / SHARE;
        Self {
            events: share,
            tiers: size - share,
            floor: share,
            file: share / PARTS as u64,
        }
    }
}

/// How many seconds back each tier reaches in `size` bytes with so many members that are probed once a second.
pub fn reach(size: u64, members: usize) -> [(Tier, i64); 3] {
    let budget = Budget::new(size);
    let (mut left, floor) = (budget.tiers as f64, budget.floor as f64);
    let rate =
        |tier: Tier| (ROW_BYTES + tier.value_bytes() * members as f64) / tier.step_s() as f64;
    let wanted = |tier: Tier| rate(tier) * tier.kept_s() as f64;
    let mut reach = Tier::ALL.map(|tier| (tier, tier.kept_s()));
    // The coarsest takes what it needs first, but leaves the finer ones their least.
    for (at, tier) in Tier::ALL.into_iter().enumerate().rev() {
        let others: f64 = Tier::ALL[..at]
            .iter()
            .map(|tier| wanted(*tier).min(floor))
            .sum();
        let taken = wanted(tier).min((left - others).max(0.0));
        left -= taken;
        if taken < wanted(tier) {
            reach[at].1 = (taken / rate(tier)) as i64;
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finest_tier_is_shortened_first() {
        let whole = Tier::ALL.map(Tier::kept_s);
        let of = |size: u64, members| reach(size, members).map(|(_, reach)| reach);
        assert_eq!(of(256 << 20, 100), whole);
        assert_eq!(of(1 << 40, 10_000), whole);
        let mut before = whole;
        for members in (0..20_000).step_by(100) {
            let reach = of(256 << 20, members);
            for at in 0..3 {
                assert!(
                    reach[at] <= before[at] && reach[at] > 0,
                    "{members}: {reach:?} {before:?}"
                );
            }
            // What is coarser gives only once what is finer has nothing above its least left.
            let least = (256u64 << 20) / 10;
            let is_least = |at: usize| {
                let tier = Tier::ALL[at];
                let bytes = reach[at] as f64 * (ROW_BYTES + tier.value_bytes() * members as f64)
                    / tier.step_s() as f64;
                bytes <= least as f64 * 1.01
            };
            assert!(
                reach[2] == whole[2] || (is_least(0) && is_least(1)),
                "{members}: {reach:?}"
            );
            assert!(reach[1] == whole[1] || is_least(0), "{members}: {reach:?}");
            before = reach;
        }
        assert!(
            before[0] < whole[0] && before[1] < whole[1] && before[2] < whole[2],
            "{before:?}"
        );
    }

    #[test]
    fn the_step_follows_the_time() {
        assert_eq!(Tier::reaching(-5), Tier::Second);
        assert_eq!(Tier::reaching(3_600), Tier::Second);
        assert_eq!(Tier::reaching(3_601), Tier::Minute);
        assert_eq!(Tier::reaching(7 * 86_400), Tier::Minute);
        assert_eq!(Tier::reaching(8 * 86_400), Tier::Hour);
        assert_eq!(Tier::reaching(i64::MAX), Tier::Hour);
    }
}

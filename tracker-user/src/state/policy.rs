//! How verdicts of trackers make one of a member, and those of members one of a service (pure).

use tracker_ebpf::verdict::Verdict;

use crate::config::Policy;

/// How many there are of each verdict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    unknown: usize,
    /// How many are up.
    pub up: usize,
    down: usize,
}

impl Tally {
    /// The number of one verdict.
    pub fn of(&mut self, verdict: Verdict) -> &mut usize {
        match verdict {
            Verdict::Unknown => &mut self.unknown,
            Verdict::Up => &mut self.up,
            Verdict::Down => &mut self.down,
        }
    }

    /// Counts verdicts.
    pub fn count(verdicts: impl Iterator<Item = Verdict>) -> Self {
        let mut tally = Self::default();
        for verdict in verdicts {
            *tally.of(verdict) += 1;
        }
        tally
    }

    /// Up when `wanted` are, down when so many no longer can be.
    pub fn at_least(self, wanted: usize) -> Verdict {
        if self.up >= wanted {
            Verdict::Up
        } else if self.up + self.unknown < wanted {
            Verdict::Down
        } else {
            Verdict::Unknown
        }
    }

    /// Up when one is.
    pub fn any(self) -> Verdict {
        self.at_least(1)
    }

    /// Up when all are.
    pub fn all(self) -> Verdict {
        self.at_least(self.unknown + self.up + self.down)
    }

    /// The verdict by a policy.
    pub fn by(self, policy: Policy) -> Verdict {
        match policy {
            Policy::Any => self.any(),
            Policy::All => self.all(),
            Policy::AtLeast(wanted) => self.at_least(usize::from(wanted)),
        }
    }
}

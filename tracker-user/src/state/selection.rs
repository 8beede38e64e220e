//! Which members of a service are in use, by their priority numbers (pure).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracker_ebpf::verdict::Verdict;

/// The names of the members in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum Selected {
    /// The only member of a service, or one of a pair.
    One(Arc<str>),
    /// Those of a pool, in the order of the configuration.
    Several(Vec<Arc<str>>),
}

impl Selected {
    /// The names.
    pub fn names(&self) -> &[Arc<str>] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }

    /// Whether the member of a name is in use.
    pub fn has(&self, name: &str) -> bool {
        self.names().iter().any(|selected| &**selected == name)
    }
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names() {
            [] => f.write_str("none"),
            names => f.write_str(&names.join(", ")),
        }
    }
}

/// What of a member decides whether it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its priority number.
    pub priority: u16,
    /// What counts of it.
    pub effective: Verdict,
    /// Whether there was a verdict of it.
    pub is_decided: bool,
}

/// How the members of a service are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How many members must be in use, if so many are up.
    pub needed: usize,
    /// Whether a lower priority number takes over as soon as a member of it is up.
    pub preempt: bool,
}

/// The priority numbers of a service that are in use. All members that are up and have one of these numbers are selected. It is
/// kept up to date with each change of a member: a pool may have very many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// How many members are up, by priority number.
    up: BTreeMap<u16, usize>,
    /// Of how many members there was no verdict yet, by priority number.
    undecided: BTreeMap<u16, usize>,
    /// The numbers in use as they were last settled, if nothing preempts.
    used: BTreeSet<u16>,
    /// Whether those stay in use until their members fall.
    is_kept: bool,
    /// Until when members without a verdict yet may still take over, by the monotonic clock.
    grace_ends_ns: u64,
}

impl Selection {
    /// The selection of these members, which goes on with priority numbers in use; nothing else counts until `grace_ends_ns`.
    pub fn new(
        members: impl Iterator<Item = Standing>,
        kept: impl IntoIterator<Item = u16>,
        grace_ends_ns: u64,
    ) -> Self {
        let mut selection = Self {
            used: kept.into_iter().collect(),
            grace_ends_ns,
            ..Self::default()
        };
        selection.is_kept = !selection.used.is_empty();
        for member in members {
            selection.count(member);
        }
        selection
    }

    fn count(&mut self, member: Standing) {
        if member.effective == Verdict::Up {
            *self.up.entry(member.priority).or_default() += 1;
        }
        if !member.is_decided {
            *self.undecided.entry(member.priority).or_default() += 1;
        }
    }

    /// Takes a change of one member, which keeps its priority.
    pub fn change(&mut self, from: Standing, to: Standing) {
        let take = |counts: &mut BTreeMap<u16, usize>| {
            let Some(count) = counts.get_mut(&from.priority) else {
                return;
            };
            *count -= 1;
            if *count == 0 {
                counts.remove(&from.priority);
            }
        };
        if from.effective == Verdict::Up {
            take(&mut self.up);
        }
        if !from.is_decided {
            take(&mut self.undecided);
        }
        self.count(to);
    }

    /// The numbers in use if these are preferred: as few others as are needed, the lowest first.
    fn chosen(&self, needed: usize, preferred: &BTreeSet<u16>) -> BTreeSet<u16> {
        let mut chosen = BTreeSet::new();
        let mut count = 0;
        for priority in preferred {
            if let Some(up) = self.up.get(priority) {
                chosen.insert(*priority);
                count += up;
            }
        }
        for (priority, up) in &self.up {
            if count >= needed {
                break;
            }
            if chosen.insert(*priority) {
                count += up;
            }
        }
        chosen
    }

    /// Takes note of what is in use from now on. Costs as much as there are numbers in use.
    pub fn settle(&mut self, choice: Choice, now_mono_ns: u64) {
        if choice.preempt {
            self.used.clear();
            self.is_kept = false;
            return;
        }
        let is_over = now_mono_ns >= self.grace_ends_ns;
        let preferred = match self.is_kept || is_over {
            true => std::mem::take(&mut self.used),
            false => BTreeSet::new(),
        };
        self.used = self.chosen(choice.needed, &preferred);
        // A start is a race of first verdicts: which of them comes first says nothing of the members.
        let first_undecided = self.undecided.keys().next();
        let may_be_preempted = match (first_undecided, self.used.last()) {
            (Some(undecided), Some(used)) => undecided < used,
            _ => false,
        };
        let goes_on = !preferred.is_disjoint(&self.used);
        self.is_kept = !self.used.is_empty() && (goes_on || is_over || !may_be_preempted);
    }

    /// The priority numbers in use; nothing if no member is up.
    pub fn used(&self, choice: Choice) -> BTreeSet<u16> {
        match choice.preempt {
            true => self.chosen(choice.needed, &BTreeSet::new()),
            false => self.used.clone(),
        }
    }

    /// The priority numbers that stay in use until their members fall.
    pub fn kept(&self) -> Vec<u16> {
        match self.is_kept {
            true => self.used.iter().copied().collect(),
            false => Vec::new(),
        }
    }

    /// Goes on from what an earlier daemon kept in use; first verdicts had their time with it.
    pub fn resume(&mut self, kept: &[u16]) {
        self.grace_ends_ns = 0;
        if !kept.is_empty() {
            self.used = kept.iter().copied().collect();
            self.is_kept = true;
        }
    }

    /// Until when members without a verdict may still take over, by the monotonic clock.
    pub const fn grace_ends_ns(&self) -> u64 {
        self.grace_ends_ns
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Members as a list, and the selection by walks over all of them.
    #[derive(Debug)]
    struct Naive {
        members: Vec<Standing>,
        /// Members in use.
        used: Vec<bool>,
        /// Whether they stay in use.
        is_kept: bool,
    }

    impl Naive {
        fn is_up(&self, at: usize) -> bool {
            self.members[at].effective == Verdict::Up
        }

        /// Adds members by ascending priority number, all of one number together, until so many are in use.
        fn fill(&self, mut used: Vec<bool>, needed: usize) -> Vec<bool> {
            let mut numbers: Vec<u16> = (self.members.iter())
                .map(|member| member.priority)
                .collect();
            numbers.sort_unstable();
            for number in numbers {
                if used.iter().filter(|used| **used).count() >= needed {
                    break;
                }
                for (used, member) in used.iter_mut().zip(&self.members) {
                    *used |= member.effective == Verdict::Up && member.priority == number;
                }
            }
            used
        }

        fn settle(&mut self, choice: Choice, is_over: bool) {
            let all = 0..self.members.len();
            let none = vec![false; self.members.len()];
            if choice.preempt {
                self.used = self.fill(none, choice.needed);
                self.is_kept = false;
                return;
            }
            let keeps = self.is_kept || is_over;
            // Members in use that are up, and members that have a number with one of those in common.
            let stays = |at: usize| keeps && self.used[at] && self.is_up(at);
            let with = |at: usize| {
                let priority = self.members[at].priority;
                let mut all = all.clone();
                self.is_up(at)
                    && all.any(|other| stays(other) && self.members[other].priority == priority)
            };
            let from: Vec<bool> = all.clone().map(with).collect();
            let goes_on = from.contains(&true);
            let used = self.fill(from, choice.needed);
            let worst = (all.clone().filter(|at| used[*at]))
                .map(|at| self.members[at].priority)
                .max();
            let better_may_come = worst.is_some_and(|worst| {
                let mut members = self.members.iter();
                members.any(|member| !member.is_decided && member.priority < worst)
            });
            self.is_kept = worst.is_some() && (goes_on || is_over || !better_may_come);
            self.used = used;
        }
    }

    proptest! {
        /// What is in use is what walks over all members find, after any changes of verdicts.
        #[test]
        fn selection_agrees_with_walks_over_all_members(
            priorities in prop::collection::vec(0u16..4, 1..7),
            needed in 1usize..8,
            preempt in any::<bool>(),
            changes in prop::collection::vec((0usize..7, 0u8..3), 0..40),
            grace in 0u64..40,
        ) {
            let choice = Choice { needed, preempt };
            let members: Vec<_> = (priorities.iter())
                .map(|priority| Standing { priority: *priority, ..Standing::default() })
                .collect();
            let mut selection = Selection::new(members.iter().copied(), [], grace);
            let mut naive = Naive { used: vec![false; members.len()], is_kept: false, members };
            for (now, (at, verdict)) in (0..).zip(changes) {
                let at = at % naive.members.len();
                let from = naive.members[at];
                let effective = [Verdict::Unknown, Verdict::Up, Verdict::Down][usize::from(verdict)];
                let is_decided = from.is_decided || effective != Verdict::Unknown;
                let to = Standing { effective, is_decided, ..from };
                naive.members[at] = to;
                selection.change(from, to);
                selection.settle(choice, now);
                naive.settle(choice, now >= grace);
                let used = selection.used(choice);
                let found: Vec<bool> = (naive.members.iter())
                    .map(|member| member.effective == Verdict::Up && used.contains(&member.priority))
                    .collect();
                prop_assert_eq!(&found, &naive.used, "{:?}", naive.members);
                prop_assert_eq!(selection.kept().is_empty(), !naive.is_kept);
                // No number is in use without a member, and as many are as can be.
                let up = naive.members.iter().filter(|member| member.effective == Verdict::Up).count();
                let count = found.iter().filter(|found| **found).count();
                prop_assert!(count >= needed.min(up), "{count} of {needed}, {up} up");
            }
            // One that begins with the same members and what is kept goes on as this one.
            let again = Selection::new(naive.members.iter().copied(), selection.kept(), grace);
            if naive.is_kept || preempt {
                prop_assert_eq!(again.used(choice), selection.used(choice));
            }
        }
    }

    /// A list of members by priority, and which of them are up in each step; what is in use then.
    fn steps(priorities: &[u16], choice: Choice, steps: &[(&[bool], &[u16])]) {
        let stand = |at: usize, is_up: bool| Standing {
            priority: priorities[at],
            effective: if is_up { Verdict::Up } else { Verdict::Down },
            is_decided: true,
        };
        let before = (0..priorities.len()).map(|at| stand(at, false));
        let mut selection = Selection::new(before.clone(), [], 0);
        let mut last: Vec<bool> = vec![false; priorities.len()];
        for (number, (up, used)) in steps.iter().enumerate() {
            for at in 0..priorities.len() {
                selection.change(stand(at, last[at]), stand(at, up[at]));
                last[at] = up[at];
            }
            selection.settle(choice, number as u64);
            let found: Vec<u16> = selection.used(choice).into_iter().collect();
            assert_eq!(found, *used, "step {number}");
        }
    }

    #[test]
    fn the_next_numbers_fill_up() {
        let (t, f) = (true, false);
        let choice = Choice {
            needed: 2,
            preempt: true,
        };
        steps(
            &[0, 1, 1, 2],
            choice,
            &[
                (&[t, t, t, t], &[0, 1]),
                (&[t, f, f, t], &[0, 2]),
                (&[f, t, t, t], &[1]),
                (&[f, t, f, t], &[1, 2]),
                (&[f, f, f, t], &[2]),
                (&[f, f, f, f], &[]),
            ],
        );
    }

    #[test]
    fn without_preemption_what_is_in_use_stays_until_it_falls() {
        let (t, f) = (true, false);
        let choice = Choice {
            needed: 1,
            preempt: false,
        };
        steps(
            &[0, 0, 1],
            choice,
            &[
                (&[t, t, t], &[0]),
                (&[t, f, t], &[0]),
                (&[f, f, t], &[1]),
                (&[t, t, t], &[1]),
                (&[t, t, f], &[0]),
                (&[t, t, t], &[0]),
                (&[f, f, f], &[]),
                (&[f, f, t], &[1]),
                (&[t, f, t], &[1]),
            ],
        );
    }

    #[test]
    fn a_start_is_no_race_of_first_verdicts() {
        let choice = Choice {
            needed: 1,
            preempt: false,
        };
        let fresh = |priority| Standing {
            priority,
            ..Standing::default()
        };
        let up = |priority| Standing {
            priority,
            effective: Verdict::Up,
            is_decided: true,
        };
        let begun = || {
            let mut selection = Selection::new([fresh(0), fresh(1)].into_iter(), [], 10);
            selection.change(fresh(1), up(1));
            selection.settle(choice, 1);
            assert_eq!(selection.used(choice), BTreeSet::from([1]));
            assert!(selection.kept().is_empty());
            selection
        };
        // The first verdict of the better member comes soon.
        let mut soon = begun();
        soon.change(fresh(0), up(0));
        soon.settle(choice, 9);
        assert_eq!(soon.used(choice), BTreeSet::from([0]));
        // It comes late.
        let mut late = begun();
        late.change(fresh(0), up(0));
        late.settle(choice, 10);
        assert_eq!(late.used(choice), BTreeSet::from([1]));
        assert_eq!(late.kept(), [1]);
    }
}

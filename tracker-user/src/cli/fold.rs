//! One fault, few lines: the events of one burst, folded for people (pure).

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tracker_ebpf::verdict::Verdict;

use super::table;
use super::text::count;
use crate::state::events::{EventKind, Numbered};

/// How long after its first event a burst may go on, by the hub's wall clock: a second, and what the clock's steps may add.
const BURST: SignedDuration = SignedDuration::from_millis(1_200);
/// So many services are named in the line of a burst.
const NAMED: usize = 3;

/// Folds events as they come: what happens to the first service of a burst is told at once, and all else in one line when the
/// burst is over.
#[derive(Debug, Default)]
pub struct Fold {
    bursts: HashMap<u64, Burst>,
}

#[derive(Debug)]
struct Burst {
    begun: Timestamp,
    to: Verdict,
    /// The service that the first event is about.
    service: Option<Arc<str>>,
    /// What is folded.
    folded: Vec<Numbered>,
}

impl Fold {
    /// What to print of this event, and of bursts that are over by then; each line ends in a newline.
    pub fn event(&mut self, numbered: Numbered) -> String {
        let event = &numbered.event;
        let mut text = self.over(event.time);
        // A daemon without groups gives 0.
        if event.kind == EventKind::Admin || event.group == 0 {
            text.push_str(&line(&numbered));
            return text;
        }
        match self.bursts.get_mut(&event.group) {
            Some(burst) if burst.service != event.service => burst.folded.push(numbered),
            Some(_) => text.push_str(&line(&numbered)),
            None => {
                text.push_str(&line(&numbered));
                let burst = Burst {
                    begun: event.time,
                    to: event.to,
                    service: event.service.clone(),
                    folded: Vec::new(),
                };
                self.bursts.insert(event.group, burst);
            }
        }
        text
    }

    /// What to print of the bursts that are over at a time.
    pub fn over(&mut self, now: Timestamp) -> String {
        // A clock that was set back would keep a burst open for long.
        self.take(|burst| now.duration_since(burst.begun).abs() > BURST)
    }

    /// What to print when no more events come.
    pub fn end(&mut self) -> String {
        self.take(|_| true)
    }

    /// Whether events are held back until their burst is over.
    pub fn is_open(&self) -> bool {
        !self.bursts.is_empty()
    }

    fn take(&mut self, is_over: impl Fn(&Burst) -> bool) -> String {
        let mut over: Vec<_> = self.bursts.extract_if(|_, burst| is_over(burst)).collect();
        over.sort_by_key(|(group, _)| *group);
        over.iter()
            .map(|(group, burst)| burst.text(*group))
            .collect()
    }
}

impl Burst {
    fn text(&self, group: u64) -> String {
        let [first, .., last] = &*self.folded else {
            return self.folded.iter().map(line).collect();
        };
        let is = |of: fn(&Numbered) -> bool| self.folded.iter().filter(|event| of(event)).count();
        let parts = [
            (is(|one| one.event.chain.is_some()), "chain"),
            (
                is(|one| one.event.service.is_some() && one.event.member.is_none()),
                "service",
            ),
            (
                is(|one| one.event.member.is_some() && one.event.behind.is_none()),
                "member",
            ),
            (is(|one| one.event.behind.is_some()), "tracker"),
        ];
        let parts = parts.iter().filter(|(number, _)| *number > 0);
        let parts: Vec<_> = parts.map(|(number, what)| count(*number, what)).collect();
        let mut text = format!(
            "{:.3}  #{}-#{}  with #{group}: {} {}",
            first.event.time,
            first.seq,
            last.seq,
            parts.join(", "),
            self.to.as_str()
        );
        let mut seen = HashSet::new();
        let names = self
            .folded
            .iter()
            .filter_map(|one| one.event.service.as_ref());
        let names: Vec<&str> = names
            .filter(|name| seen.insert(*name))
            .map(|name| &**name)
            .collect();
        if !names.is_empty() {
            let more = if names.len() > NAMED { ", ..." } else { "" };
            let shown = names[..names.len().min(NAMED)].join(", ");
            // Writing to a String cannot fail.
            let _ = write!(text, ": {shown}{more}");
        }
        text.push('\n');
        text
    }
}

fn line(numbered: &Numbered) -> String {
    table::event(numbered) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::events::tests::example;

    /// An event of a tracker, or of a service, in a group, so many milliseconds after the first.
    fn event(seq: u64, group: u64, service: &str, is_service: bool, ms: i64) -> Numbered {
        let mut event = example();
        event.time += SignedDuration::from_millis(ms);
        event.service = Some(service.into());
        event.group = group;
        if is_service {
            (event.member, event.behind) = (None, None);
        }
        Numbered {
            seq,
            event,
            run: "r1".into(),
            hub: "".into(),
            instance: "".into(),
        }
    }

    #[test]
    fn a_burst_is_told_at_once_and_its_rest_in_one_line() {
        let mut fold = Fold::default();
        let first = fold.event(event(1, 1, "fw-1", false, 0));
        assert_eq!(first, line(&event(1, 1, "fw-1", false, 0)));
        assert_eq!(
            fold.event(event(2, 1, "fw-1", true, 0)),
            line(&event(2, 1, "fw-1", true, 0))
        );
        for number in 2..=200 {
            let name = format!("fw-{number}");
            let seq = 2 * number - 1;
            assert_eq!(fold.event(event(seq, 1, &name, false, 5)), "");
            assert_eq!(fold.event(event(seq + 1, 1, &name, true, 5)), "");
        }
        // What is not of the burst is not held back.
        let other = event(401, 401, "vpn", false, 900);
        assert_eq!(fold.event(other.clone()), line(&other));
        assert!(fold.is_open());
        let over = fold.over(event(0, 0, "", false, 1_300).event.time);
        assert_eq!(
            over,
            "2026-01-01T00:00:00.005Z  #3-#400  with #1: 199 services, 199 trackers down: fw-2, fw-3, fw-4, ...\n"
        );
        // The later burst goes on.
        assert!(fold.is_open());
        assert_eq!(fold.end(), "");
        assert!(!fold.is_open());
    }

    #[test]
    fn a_single_event_stays_as_it_is() {
        let mut fold = Fold::default();
        fold.event(event(1, 1, "fw-1", false, 0));
        let mut chain = event(2, 1, "fw-1", true, 0);
        (chain.event.service, chain.event.chain) = (None, Some("internet".into()));
        assert_eq!(fold.event(chain.clone()), "");
        // A later event ends the burst; both lines come in order.
        let later = event(3, 3, "fw-1", false, 5_000);
        assert_eq!(fold.event(later.clone()), line(&chain) + &line(&later));
    }

    #[test]
    fn what_an_operator_did_and_what_has_no_group_is_never_folded() {
        let mut fold = Fold::default();
        let mut admin = event(1, 1, "fw-1", true, 0);
        admin.event.kind = EventKind::Admin;
        let mut second = event(2, 1, "fw-2", true, 0);
        second.event.kind = EventKind::Admin;
        let old = [event(3, 0, "fw-3", true, 0), event(4, 0, "fw-4", true, 0)];
        for one in [&admin, &second, &old[0], &old[1]] {
            assert_eq!(fold.event(one.clone()), line(one));
        }
        assert!(!fold.is_open());
    }
}

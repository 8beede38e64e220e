//! Logs that replies are forged, replayed or altered, at a bounded rate.
//!
//! The kernel counts such packets where they arrive; nothing of them comes up here. The counts are looked at
//! while those of the whole hub go on, and only so many trackers at a time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How often at most one tracker is spoken of.
const TRACKER: Duration = Duration::from_secs(60);
/// How often at most anything is said.
const LINE: Duration = Duration::from_secs(1);
/// So many trackers are looked at in a turn: a fraction of a millisecond.
const STEP: u32 = 8_192;

/// What was counted of packets that prove nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They bear a probe header, and token, addresses or checksum are wrong.
    pub corrupt: u64,
    /// They answer a probe that was answered before.
    pub duplicate: u64,
    /// They name no tracker; only known of the hub.
    pub stale: u64,
}

impl Counts {
    /// What came since `before`. A count that went back began anew.
    fn since(self, before: Self) -> Self {
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            corrupt: since(self.corrupt, before.corrupt),
            duplicate: since(self.duplicate, before.duplicate),
            stale: since(self.stale, before.stale),
        }
    }
}

/// What there is to say, of a tracker's slot or of packets of no tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The tracker's slot.
    pub slot: Option<u32>,
    /// Packets since this was last said.
    pub counts: Counts,
}

/// What was said, and when.
#[derive(Debug, Default)]
pub struct ForgeryLog {
    hub: Counts,
    said: HashMap<Option<u32>, (Counts, Instant)>,
    last: Option<Instant>,
    next: u32,
    /// So many trackers are still to be looked at.
    left: u32,
}

impl ForgeryLog {
    /// Takes a turn; `hub` counts the packets of all, `of` those of a slot in use.
    pub fn look(
        &mut self,
        now: Instant,
        hub: Counts,
        slots: u32,
        of: impl Fn(u32) -> Option<Counts>,
    ) -> Option<Finding> {
        if hub != self.hub {
            self.hub = hub;
            // The present round may have passed those that it concerns.
            self.left = slots;
        }
        if self.last.is_some_and(|last| now - last < LINE) {
            return None;
        }
        let stale = Counts {
            stale: hub.stale,
            ..Counts::default()
        };
        if let Some(finding) = self.judge(now, None, stale) {
            return Some(finding);
        }
        for _ in 0..self.left.min(STEP) {
            let slot = self.next;
            self.next = (slot + 1) % slots.max(1);
            self.left -= 1;
            match of(slot) {
                Some(counts) => {
                    if let Some(finding) = self.judge(now, Some(slot), counts) {
                        // The next turn goes on behind it, and comes back for what is silenced now.
                        self.left = slots;
                        return Some(finding);
                    }
                }
                None => {
                    self.said.remove(&Some(slot));
                }
            }
        }
        None
    }

    fn judge(&mut self, now: Instant, slot: Option<u32>, counts: Counts) -> Option<Finding> {
        let said = self.said.get(&slot);
        let (before, last) = said.map_or((Counts::default(), None), |(before, last)| {
            (*before, Some(*last))
        });
        let since = counts.since(before);
        if since == Counts::default() {
            return None;
        }
        if last.is_some_and(|last| now - last < TRACKER) {
            // Not forgotten: its minute passes also if nothing more comes.
            self.left = self.left.max(1);
            return None;
        }
        self.said.insert(slot, (counts, now));
        self.last = Some(now);
        Some(Finding {
            slot,
            counts: since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corrupt(corrupt: u64) -> Counts {
        Counts {
            corrupt,
            ..Counts::default()
        }
    }

    /// Looks twice a second at trackers, each with as many packets as seconds have passed; returns what was said when.
    fn watch(slots: u32, seconds: u32) -> Vec<(u32, Finding)> {
        let start = Instant::now();
        let mut log = ForgeryLog::default();
        let mut said = Vec::new();
        for half in 1..=2 * seconds {
            let now = start + half * Duration::from_millis(500);
            let each = u64::from(half) * 1_000_000;
            let hub = corrupt(each * u64::from(slots));
            let found = log.look(now, hub, slots, |_| Some(corrupt(each)));
            said.extend(found.map(|finding| (half, finding)));
        }
        said
    }

    #[test]
    fn a_flood_at_one_tracker_is_a_line_a_minute() {
        let said = watch(1, 600);
        assert_eq!(said.len(), 10, "{said:?}");
        let total: u64 = said.iter().map(|(_, finding)| finding.counts.corrupt).sum();
        // None is counted twice, none is left out but those of the last minute.
        assert_eq!(total, u64::from(said[9].0) * 1_000_000);
    }

    #[test]
    fn a_flood_at_many_is_a_line_a_second_and_none_is_left_out() {
        let said = watch(50, 50);
        assert_eq!(said.len(), 50, "{said:?}");
        let mut slots: Vec<_> = said
            .iter()
            .filter_map(|(_, finding)| finding.slot)
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..50).collect::<Vec<_>>());
        for pair in said.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= 2, "{pair:?}");
        }
    }

    #[test]
    fn of_very_many_each_is_found() {
        let slots = 3 * STEP;
        let start = Instant::now();
        let mut log = ForgeryLog::default();
        let culprit = slots - 1;
        let mut said = Vec::new();
        for half in 0..20 {
            let now = start + half * Duration::from_millis(500);
            let of = |slot| Some(corrupt(u64::from(slot == culprit)));
            said.extend(log.look(now, corrupt(1), slots, of));
        }
        assert_eq!(
            said,
            [Finding {
                slot: Some(culprit),
                counts: corrupt(1)
            }]
        );
    }

    #[test]
    fn what_is_of_no_tracker_is_told_too_and_a_new_tenant_begins_at_nothing() {
        let start = Instant::now();
        let mut log = ForgeryLog::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        let hub = |corrupt, stale| Counts {
            corrupt,
            stale,
            duplicate: 0,
        };
        let found = log.look(at(0), hub(0, 7), 1, |_| None).unwrap();
        assert_eq!((found.slot, found.counts.stale), (None, 7));
        let found = log.look(at(2), hub(9, 7), 1, |_| Some(corrupt(9)));
        assert_eq!(found.unwrap().counts, corrupt(9));
        assert_eq!(
            log.look(at(70), hub(12, 7), 1, |_| Some(corrupt(3))),
            Some(Finding {
                slot: Some(0),
                counts: corrupt(3)
            })
        );
        assert_eq!(log.look(at(200), hub(12, 7), 1, |_| Some(corrupt(3))), None);
    }
}

//! Loss and round-trip time over the last answers, from the differences of their counters (pure).

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::api::types::{MemberStatus, ServiceStatus, TrackerStatus};

/// So many samples are kept: a minute, at one answer a second.
pub const KEPT: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Stands for an interval in which every probe was lost.
const ALL_LOST: char = '×';

/// The counters of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    received: u64,
    lost: u64,
    rtt_us: Option<u64>,
}

/// What happened between two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    received: u32,
    lost: u32,
    /// The last round-trip time; `None` if no reply came.
    rtt_us: Option<u32>,
}

/// The samples of one tracker, or of the trackers of a member together.
#[derive(Clone, Debug, Default)]
pub struct Series {
    last: Option<Totals>,
    samples: VecDeque<Sample>,
}

impl Series {
    fn add(&mut self, totals: Totals) {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let Some(last) = self.last.replace(totals) else {
            return;
        };
        let differences = totals
            .received
            .checked_sub(last.received)
            .zip(totals.lost.checked_sub(last.lost));
        // Counters that went back are those of another daemon; what was before them says nothing of it.
        let Some((received, lost)) = differences else {
            return;
        };
        if (received, lost) == (0, 0) {
            return;
        }
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            received: narrow(received),
            lost: narrow(lost),
            rtt_us: totals.rtt_us.filter(|_| received > 0).map(narrow),
        });
    }

    /// Percentage of the probes of the kept samples that were lost; `None` until there were any.
    pub fn loss(&self) -> Option<f64> {
        let of = |of: fn(&Sample) -> u32| {
            self.samples
                .iter()
                .map(|sample| u64::from(of(sample)))
                .sum::<u64>()
        };
        let (received, lost) = (of(|sample| sample.received), of(|sample| sample.lost));
        (received + lost > 0).then(|| lost as f64 * 100.0 / (received + lost) as f64)
    }

    /// The last round-trip time in microseconds; `None` if no reply came lately.
    pub fn rtt_us(&self) -> Option<u64> {
        match self.samples.back() {
            Some(sample) => sample.rtt_us.map(u64::from),
            None => self.last?.rtt_us,
        }
    }

    /// The last `width` round-trip times as bars from 0 to the longest of them.
    pub fn bars(&self, width: usize) -> String {
        let shown = self
            .samples
            .iter()
            .skip(self.samples.len().saturating_sub(width));
        let most = shown
            .clone()
            .filter_map(|sample| sample.rtt_us)
            .max()
            .unwrap_or(0)
            .max(1);
        let bar = |us: u32| {
            let last = BARS.len() as u64 - 1;
            let height = (u64::from(us) * last).div_ceil(u64::from(most));
            BARS[usize::try_from(height.min(last)).unwrap_or(0)]
        };
        shown
            .map(|sample| sample.rtt_us.map_or(ALL_LOST, bar))
            .collect()
    }
}

/// The series of a service's members and trackers.
#[derive(Clone, Debug, Default)]
pub struct ServiceSeries {
    members: Vec<MemberSeries>,
}

#[derive(Clone, Debug)]
struct MemberSeries {
    name: String,
    endpoint: IpAddr,
    whole: Series,
    trackers: Vec<Series>,
}

impl ServiceSeries {
    /// Adds an answer about the service, with its trackers.
    pub fn add(&mut self, service: &ServiceStatus) {
        let is_same = |series: &MemberSeries, member: &MemberStatus| {
            (series.name.as_str(), series.endpoint) == (member.name(), member.endpoint)
                && series.trackers.len() == member.trackers.len()
        };
        let members = &service.members;
        let are_same = members.len() == self.members.len()
            && self
                .members
                .iter()
                .zip(members)
                .all(|(series, member)| is_same(series, member));
        if !are_same {
            let new = members.iter().map(|member| MemberSeries {
                name: member.name().to_owned(),
                endpoint: member.endpoint,
                whole: Series::default(),
                trackers: vec![Series::default(); member.trackers.len()],
            });
            self.members = new.collect();
        }
        for (series, member) in self.members.iter_mut().zip(members) {
            let mut whole = Totals::default();
            for (series, tracker) in series.trackers.iter_mut().zip(&member.trackers) {
                let totals = Totals::from(tracker);
                series.add(totals);
                whole.received += totals.received;
                whole.lost += totals.lost;
                // One that gets no replies keeps its last time.
                whole.rtt_us = whole.rtt_us.max(series.rtt_us());
            }
            series.whole.add(whole);
        }
    }

    /// The trackers of a member together; their longest round-trip time counts.
    pub fn member(&self, position: usize) -> Option<&Series> {
        self.members.get(position).map(|member| &member.whole)
    }

    /// A tracker.
    pub fn tracker(&self, member: usize, tracker: usize) -> Option<&Series> {
        self.members.get(member)?.trackers.get(tracker)
    }
}

impl From<&TrackerStatus> for Totals {
    fn from(tracker: &TrackerStatus) -> Self {
        Self {
            received: tracker.received,
            lost: tracker.lost,
            rtt_us: tracker.rtt_us.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::tests::example;

    fn totals(received: u64, lost: u64, rtt_us: u64) -> Totals {
        Totals {
            received,
            lost,
            rtt_us: Some(rtt_us),
        }
    }

    #[test]
    fn differences_count_and_not_totals() {
        let mut series = Series::default();
        series.add(totals(1_000, 900, 41));
        // What was lost before is not shown, but the last round-trip time is.
        assert_eq!((series.loss(), series.rtt_us()), (None, Some(41)));
        series.add(totals(1_003, 901, 50));
        assert_eq!((series.loss(), series.rtt_us()), (Some(25.0), Some(50)));
        // Nothing new is no sample; losses alone are one without a time.
        series.add(totals(1_003, 901, 50));
        assert_eq!(series.bars(9), "█");
        series.add(totals(1_003, 905, 50));
        assert_eq!((series.loss(), series.rtt_us()), (Some(62.5), None));
        assert_eq!(series.bars(9), "█×");
    }

    #[test]
    fn counters_that_went_back_begin_anew() {
        let mut series = Series::default();
        for one in [
            totals(10, 0, 5),
            totals(20, 0, 5),
            totals(3, 0, 5),
            totals(6, 1, 7),
        ] {
            series.add(one);
        }
        assert_eq!(series.samples.len(), 2);
        assert_eq!(series.samples[1].received, 3);
    }

    #[test]
    fn bars_are_of_the_last_samples() {
        let mut series = Series::default();
        for (number, rtt_us) in [0, 900, 100, 200, 400, 800, 0].into_iter().enumerate() {
            series.add(totals(number as u64, 0, rtt_us));
        }
        assert_eq!(series.bars(5), "▂▃▅█▁");
        for number in 10..200 {
            series.add(totals(number, 0, 1));
        }
        assert_eq!(series.samples.len(), KEPT);
    }

    #[test]
    fn a_member_is_its_trackers_together() {
        let mut service = example().services.remove(0);
        let mut second = service.members[0].trackers[0].clone();
        second.rtt_us.last = Some(90);
        service.members[0].trackers.push(second);
        let mut series = ServiceSeries::default();
        series.add(&service);
        service.members[0].trackers[0].received += 3;
        service.members[0].trackers[1].lost += 1;
        series.add(&service);
        let member = series.member(0).unwrap();
        // The second tracker got no reply: its time does not count.
        assert_eq!((member.loss(), member.rtt_us()), (Some(25.0), Some(41)));
        assert_eq!(series.tracker(0, 1).unwrap().loss(), Some(100.0));
        assert!(series.tracker(0, 2).is_none() && series.member(1).is_none());
        // Other trackers are other series.
        service.members[0].trackers.pop();
        series.add(&service);
        assert_eq!(series.member(0).unwrap().loss(), None);
    }
}

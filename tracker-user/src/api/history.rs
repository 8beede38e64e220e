//! `GET /v1/history/NAME`: what is asked, and what is answered.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Refused;
use crate::{
    error::full,
    host::history::{Found, FoundMember, History, HistoryError, Point, Tier},
    state::events::{EventFeed, Numbered},
};

/// From when on, if nothing is said.
const DEFAULT_SINCE: SignedDuration = SignedDuration::from_hours(1);

/// Loss, round-trip times and events of a service over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceHistory {
    /// Name of the service.
    pub service: String,
    /// From when on.
    pub since: Timestamp,
    /// From one point to the next, seconds.
    pub step_s: i64,
    /// Its members, also those that are gone.
    pub members: Vec<MemberHistory>,
    /// Its events since then, the oldest first: verdicts, and what operators imposed. The newest 10,000 if there are more.
    pub transitions: Vec<Numbered>,
}

/// Loss and round-trip times of a member over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberHistory {
    /// Name of the member.
    pub member: String,
    /// Its endpoint.
    pub endpoint: IpAddr,
    /// The oldest first; steps in which the daemon did not run have none.
    pub points: Vec<HistoryPoint>,
}

/// One step of a member: when it began (Unix time, seconds), probes sent, probes found lost, and the shortest, mean, 99th percentile and
/// longest round-trip time in microseconds. Times are null if there was no reply. The percentile is right within a third, and never beyond
/// the shortest and the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryPoint(
    pub i64,
    pub u64,
    pub u64,
    pub Option<u64>,
    pub Option<u64>,
    pub Option<u64>,
    pub Option<u64>,
);

impl HistoryPoint {
    /// When the step began, seconds of Unix time.
    pub const fn time(&self) -> i64 {
        self.0
    }

    /// Probes sent.
    pub const fn sent(&self) -> u64 {
        self.1
    }

    /// Probes found lost.
    pub const fn lost(&self) -> u64 {
        self.2
    }

    /// 99th percentile of the round-trip times, microseconds.
    pub const fn rtt_p99_us(&self) -> Option<u64> {
        self.5
    }

    /// Shortest, mean and longest round-trip time, microseconds.
    pub fn rtt_us(&self) -> Option<(u64, u64, u64)> {
        Some((self.3?, self.4?, self.6?))
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryWanted {
    since: Timestamp,
    tier: Tier,
    now: Timestamp,
}

impl HistoryWanted {
    /// The history since a time, an hour ago by default, in steps of a tier, the finest that reaches back so far by default.
    pub fn new(since: Option<Timestamp>, tier: Option<Tier>, now: Timestamp) -> Self {
        let since =
            since.unwrap_or_else(|| now.saturating_sub(DEFAULT_SINCE).unwrap_or(Timestamp::MIN));
        let reaching = || Tier::reaching(now.as_second().saturating_sub(since.as_second()));
        Self {
            since,
            tier: tier.unwrap_or_else(reaching),
            now,
        }
    }
}

/// A time, or how long before `now` it was.
///
/// # Errors
/// When it is neither.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        // Longer ago than there is a calendar is as long ago as that.
        return Ok(now.checked_sub(ago).unwrap_or(Timestamp::MIN));
    }
    let wanted = "give how long ago, such as 6h, or a time, such as 2026-01-31T18:00:00Z";
    text.parse()
        .map_err(|_| format!("neither a duration nor a time; {wanted}"))
}

/// The tier of a step.
///
/// # Errors
/// When there is no such step.
pub fn step(text: &str) -> Result<Tier, String> {
    let mut words = Tier::WORDS.iter();
    let found = words.find(|(word, _)| *word == text);
    let words: Vec<_> = Tier::WORDS.iter().map(|(word, _)| *word).collect();
    found
        .map(|(_, tier)| *tier)
        .ok_or_else(|| format!("no such step; give {}", words.join(", ")))
}

impl ServiceHistory {
    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty() && self.transitions.is_empty()
    }
}

/// Reads the history of a service.
///
/// # Errors
/// When none is kept, or the disk does not answer.
pub fn read(
    history: &History,
    feed: &EventFeed,
    service: &str,
    wanted: HistoryWanted,
) -> Result<ServiceHistory, Refused> {
    let HistoryWanted { since, tier, now } = wanted;
    let found = history.read(service, since.as_second(), tier, feed, now.as_second());
    let Found { members, events } = found.map_err(|error| match error {
        HistoryError::Off => Refused::Unknown(full(&error).to_string()),
        _ => Refused::Unavailable(full(&error).to_string()),
    })?;
    Ok(ServiceHistory {
        service: service.to_owned(),
        since,
        step_s: tier.step_s(),
        members: members.into_iter().filter_map(member).collect(),
        transitions: events,
    })
}

/// A member that has points; what is no address is of a later version.
fn member(found: FoundMember) -> Option<MemberHistory> {
    if found.points.is_empty() {
        return None;
    }
    Some(MemberHistory {
        member: found.name,
        endpoint: found.endpoint.parse().ok()?,
        points: found.points.iter().map(point).collect(),
    })
}

fn point(Point { time, value }: &Point) -> HistoryPoint {
    let rtt = value.rtt;
    HistoryPoint(
        *time,
        value.sent,
        value.lost,
        rtt.map(|rtt| rtt.min_us),
        rtt.map(|rtt| rtt.mean_us),
        rtt.map(|rtt| rtt.p99_us),
        rtt.map(|rtt| rtt.max_us),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
        let of = |text| since(text, now).map(|time| time.to_string());
        assert_eq!(of("6h"), Ok("2026-01-31T18:00:00Z".to_owned()));
        assert_eq!(of("0s"), Ok(now.to_string()));
        assert_eq!(
            of("2026-01-31T18:00:00+01:00"),
            Ok("2026-01-31T17:00:00Z".to_owned())
        );
        assert_eq!(of("99999999y"), Ok(Timestamp::MIN.to_string()));
        for bad in ["", "6", "yesterday", "2026-01-31", "-6h"] {
            assert!(since(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_step_follows_since() {
        let now: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
        let step_of = |text| HistoryWanted::new(Some(since(text, now).unwrap()), None, now).tier;
        assert_eq!(HistoryWanted::new(None, None, now).tier, Tier::Second);
        assert_eq!(
            (step_of("1h"), step_of("61m"), step_of("8d")),
            (Tier::Second, Tier::Minute, Tier::Hour)
        );
        let given = HistoryWanted::new(Some(since("8d", now).unwrap()), Some(Tier::Second), now);
        assert_eq!(given.tier, Tier::Second);
        assert!(step("2s").unwrap_err().contains("1s, 1m, 1h"));
        assert_eq!(step("1m"), Ok(Tier::Minute));
    }

    #[test]
    fn a_point_is_a_list_as_documented() {
        let point = HistoryPoint(1, 2, 3, Some(4), Some(5), None, Some(6));
        assert_eq!(serde_json::to_string(&point).unwrap(), "[1,2,3,4,5,null,6]");
        assert_eq!(point.rtt_us(), Some((4, 5, 6)));
    }
}

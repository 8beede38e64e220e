//! The status in the Prometheus text format.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use tracker_ebpf::verdict::Verdict;

use super::types::{ChainStatus, Late, MemberStatus, ServiceStatus, Status, TrackerStatus};
use crate::config::{Probe, Protocol};

/// Media type of the page: the Prometheus text format, version 0.0.4.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric: everything that is said of it, in one place. The page of metrics and the reference are made from these.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its HELP text.
    pub help: &'static str,
    /// What its samples are of, and their values.
    pub of: Of,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A count that never falls.
    Counter,
}

impl Kind {
    /// The word of the text format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// What the samples of a metric are of, and how the value is read. Without a value there is no sample.
pub enum Of {
    /// One sample a tracker.
    Tracker(fn(&TrackerStatus) -> Option<f64>),
    /// One sample a member.
    Member(fn(&MemberStatus) -> Option<f64>),
    /// One sample a service.
    Service(fn(&ServiceStatus) -> f64),
    /// One sample a chain.
    Chain(fn(&ChainStatus) -> f64),
    /// One sample a kind of lateness.
    Lateness(fn(Late) -> f64),
    /// One sample.
    Hub(fn(&Status) -> f64),
}

impl Of {
    /// The labels that tell samples apart.
    pub const fn labels(&self) -> &'static str {
        match self {
            Self::Tracker(_) => "service, member, endpoint, behind, probe, port, protocol, tracker",
            Self::Member(_) => "service, member, endpoint",
            Self::Service(_) => "service",
            Self::Chain(_) => "chain",
            Self::Lateness(_) => "of",
            Self::Hub(_) => "",
        }
    }
}

/// All metrics, in the order of the page.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "tracker_up",
        kind: Kind::Gauge,
        help: "1 if the tracker is up.",
        of: Of::Tracker(|t| Some(up(t.verdict))),
    },
    Metric {
        name: "tracker_unknown",
        kind: Kind::Gauge,
        help: "1 if the tracker is neither up nor down.",
        of: Of::Tracker(|t| Some(unknown(t.verdict))),
    },
    Metric {
        name: "tracker_sent_total",
        kind: Kind::Counter,
        help: "Probes that really left.",
        of: Of::Tracker(|t| Some(t.sent as f64)),
    },
    Metric {
        name: "tracker_received_total",
        kind: Kind::Counter,
        help: "Probes answered in time.",
        of: Of::Tracker(|t| Some(t.received as f64)),
    },
    Metric {
        name: "tracker_lost_total",
        kind: Kind::Counter,
        help: "Probes not answered in time.",
        of: Of::Tracker(|t| Some(t.lost as f64)),
    },
    Metric {
        name: "tracker_duplicate_total",
        kind: Kind::Counter,
        help: "Replies to probes already answered.",
        of: Of::Tracker(|t| Some(t.duplicate as f64)),
    },
    Metric {
        name: "tracker_late_total",
        kind: Kind::Counter,
        help: "Replies after the timeout.",
        of: Of::Tracker(|t| Some(t.late as f64)),
    },
    Metric {
        name: "tracker_corrupt_total",
        kind: Kind::Counter,
        help: "Packets that bear a probe header and fail the token.",
        of: Of::Tracker(|t| Some(t.corrupt as f64)),
    },
    Metric {
        name: "tracker_wrong_path_total",
        kind: Kind::Counter,
        help: "Replies on an interface outside returns, by another hop, or with another TTL.",
        of: Of::Tracker(|t| Some(t.wrong_path as f64)),
    },
    Metric {
        name: "tracker_elsewhere_total",
        kind: Kind::Counter,
        help: "Replies from another address or port than was asked.",
        of: Of::Tracker(|t| Some(t.elsewhere as f64)),
    },
    Metric {
        name: "tracker_icmp_errors_total",
        kind: Kind::Counter,
        help: "ICMP and ICMPv6 errors about probes.",
        of: Of::Tracker(|t| Some(t.icmp_errors as f64)),
    },
    Metric {
        name: "tracker_skipped_total",
        kind: Kind::Counter,
        help: "Probes that were due and not sent.",
        of: Of::Tracker(|t| Some(t.skipped as f64)),
    },
    Metric {
        name: "tracker_void_total",
        kind: Kind::Counter,
        help: "Probes sent whose outcome proves nothing.",
        of: Of::Tracker(|t| Some(t.void as f64)),
    },
    Metric {
        name: "tracker_rtt_last_seconds",
        kind: Kind::Gauge,
        help: "Last round-trip time; one-way if the proof is the arrival.",
        of: Of::Tracker(|t| seconds(t.rtt_us.last)),
    },
    Metric {
        name: "tracker_rtt_min_seconds",
        kind: Kind::Gauge,
        help: "Shortest round-trip time.",
        of: Of::Tracker(|t| seconds(t.rtt_us.min)),
    },
    Metric {
        name: "tracker_rtt_avg_seconds",
        kind: Kind::Gauge,
        help: "Mean round-trip time.",
        of: Of::Tracker(|t| seconds(t.rtt_us.avg)),
    },
    Metric {
        name: "tracker_rtt_max_seconds",
        kind: Kind::Gauge,
        help: "Longest round-trip time.",
        of: Of::Tracker(|t| seconds(t.rtt_us.max)),
    },
    Metric {
        name: "tracker_service_up",
        kind: Kind::Gauge,
        help: "1 if the service is up.",
        of: Of::Service(|s| up(s.verdict)),
    },
    Metric {
        name: "tracker_service_unknown",
        kind: Kind::Gauge,
        help: "1 if the service is neither up nor down.",
        of: Of::Service(|s| unknown(s.verdict)),
    },
    Metric {
        name: "tracker_steered_total",
        kind: Kind::Counter,
        help: "Packets of others sent through the service; only while there is steering.",
        of: Of::Member(|m| m.steered.map(|count| count as f64)),
    },
    Metric {
        name: "tracker_replied_total",
        kind: Kind::Counter,
        help: "Replies to packets of others given back as from the endpoint; only while there is steering.",
        of: Of::Member(|m| m.replied.map(|count| count as f64)),
    },
    Metric {
        name: "tracker_service_flaps",
        kind: Kind::Gauge,
        help: "How often the service left up or down in the last flap_window.",
        of: Of::Service(|s| s.flaps as f64),
    },
    Metric {
        name: "tracker_service_flaps_total",
        kind: Kind::Counter,
        help: "How often the service left up or down.",
        of: Of::Service(|s| s.flaps_total as f64),
    },
    Metric {
        name: "tracker_chain_up",
        kind: Kind::Gauge,
        help: "1 if every service of the chain is up.",
        of: Of::Chain(|c| up(c.verdict)),
    },
    Metric {
        name: "tracker_hub_lateness_recent_seconds",
        kind: Kind::Gauge,
        help: "How late the hub was at most in the last 10 to 20 seconds.",
        of: Of::Lateness(|late| late.recent as f64 / 1e6),
    },
    Metric {
        name: "tracker_hub_lateness_max_seconds",
        kind: Kind::Gauge,
        help: "How late the hub was at most since the start.",
        of: Of::Lateness(|late| late.max as f64 / 1e6),
    },
    Metric {
        name: "tracker_hub_age_seconds",
        kind: Kind::Gauge,
        help: "Time since the daemon's threads both last ended a turn; above 3 every verdict is unknown.",
        of: Of::Hub(|hub| hub.as_of_ms as f64 / 1e3),
    },
    Metric {
        name: "tracker_hub_stalls_total",
        kind: Kind::Counter,
        help: "How often the hub was so late that probes proved nothing.",
        of: Of::Hub(|hub| hub.stalls as f64),
    },
];

fn up(verdict: Verdict) -> f64 {
    f64::from(u8::from(verdict == Verdict::Up))
}

fn unknown(verdict: Verdict) -> f64 {
    f64::from(u8::from(verdict == Verdict::Unknown))
}

fn seconds(us: Option<u64>) -> Option<f64> {
    us.map(|us| us as f64 / 1e6)
}

/// What tells two trackers of a member apart for people, if anything does.
type Key = (IpAddr, Probe, Option<u16>, Option<Protocol>);

fn key(tracker: &TrackerStatus) -> Key {
    (
        tracker.behind,
        tracker.probe,
        tracker.port,
        tracker.protocol,
    )
}

/// The status in the Prometheus text format, version 0.0.4.
pub fn render(status: &Status) -> String {
    let mut trackers = Vec::new();
    for service in &status.services {
        for member in &service.members {
            // Two series with the same labels would make the whole page invalid.
            let mut alike: HashMap<Key, u32> = HashMap::new();
            for tracker in &member.trackers {
                *alike.entry(key(tracker)).or_default() += 1;
            }
            for (index, tracker) in member.trackers.iter().enumerate() {
                let twin = (alike[&key(tracker)] > 1).then_some(index);
                trackers.push((labels(service, member, tracker, twin), tracker));
            }
        }
    }
    let named = |kind: &str, name: &str| format!("{kind}=\"{}\"", escaped(name));
    let mut members = Vec::new();
    for service in &status.services {
        let of_service = service.members.iter();
        members.extend(of_service.map(|member| (member_labels(service, member), member)));
    }
    let late = &status.lateness_us;
    let kinds = [
        ("tick", late.tick),
        ("ring", late.ring),
        ("timer", late.timer),
    ];
    let mut text = String::new();
    for metric in METRICS {
        let mut family = Family::new(&mut text, metric);
        match metric.of {
            Of::Tracker(value) => {
                for (labels, tracker) in &trackers {
                    family.sample(labels, value(tracker));
                }
            }
            Of::Member(value) => {
                for (labels, member) in &members {
                    family.sample(labels, value(member));
                }
            }
            Of::Service(value) => {
                for service in &status.services {
                    family.sample(&named("service", &service.name), Some(value(service)));
                }
            }
            Of::Chain(value) => {
                for chain in &status.chains {
                    family.sample(&named("chain", &chain.name), Some(value(chain)));
                }
            }
            Of::Lateness(value) => {
                for (kind, late) in kinds {
                    family.sample(&named("of", kind), Some(value(late)));
                }
            }
            Of::Hub(value) => family.sample("", Some(value(status))),
        }
    }
    text
}

/// The samples of one metric, after a head that is written before the first of them.
struct Family<'a> {
    text: &'a mut String,
    metric: &'a Metric,
    has_head: bool,
}

impl<'a> Family<'a> {
    const fn new(text: &'a mut String, metric: &'a Metric) -> Self {
        Self {
            text,
            metric,
            has_head: false,
        }
    }

    fn sample(&mut self, labels: &str, value: Option<f64>) {
        let Some(value) = value else { return };
        let Metric {
            name, kind, help, ..
        } = self.metric;
        // Writing to a String cannot fail.
        if !std::mem::replace(&mut self.has_head, true) {
            let kind = kind.as_str();
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        let _ = writeln!(self.text, "{name}{{{labels}}} {value}");
    }
}

fn member_labels(service: &ServiceStatus, member: &MemberStatus) -> String {
    format!(
        "service=\"{}\",member=\"{}\",endpoint=\"{}\"",
        escaped(&service.name),
        member.role,
        member.endpoint
    )
}

fn labels(
    service: &ServiceStatus,
    member: &MemberStatus,
    tracker: &TrackerStatus,
    twin: Option<usize>,
) -> String {
    let mut labels = member_labels(service, member);
    // Writing to a String cannot fail.
    let (behind, probe) = (tracker.behind, tracker.probe);
    let _ = write!(labels, ",behind=\"{behind}\",probe=\"{probe}\"");
    if let Some(port) = tracker.port {
        let _ = write!(labels, ",port=\"{port}\"");
    }
    if let Some(protocol) = tracker.protocol {
        let _ = write!(labels, ",protocol=\"{protocol}\"");
    }
    if let Some(index) = twin {
        let _ = write!(labels, ",tracker=\"{index}\"");
    }
    labels
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::types::tests::example;
    use super::*;

    #[test]
    fn a_page_grows_in_proportion_to_the_trackers() {
        crate::growth::assert_linear("a page", 2_000, |count| {
            let mut status = example();
            let trackers = &mut status.services[0].members[0].trackers;
            let first = trackers[0].clone();
            *trackers = (0..count as u32)
                .map(|behind| TrackerStatus {
                    behind: std::net::Ipv4Addr::from(behind).into(),
                    ..first.clone()
                })
                .collect();
            crate::growth::processor_time(|| render(&status))
        });
    }

    #[test]
    fn the_page_says_what_the_status_says() {
        let mut status = example();
        status.services[0].name = "fw\"1\\".to_owned();
        let page = render(&status);
        let labels = r#"service="fw\"1\\",member="active",endpoint="10.9.0.2",behind="10.20.0.9",probe="icmp""#;
        for line in [
            "# TYPE tracker_up gauge".to_owned(),
            format!("tracker_up{{{labels}}} 1"),
            format!("tracker_unknown{{{labels}}} 0"),
            format!("tracker_sent_total{{{labels}}} 120"),
            format!("tracker_lost_total{{{labels}}} 0"),
            format!("tracker_rtt_min_seconds{{{labels}}} 0.000035"),
            r#"tracker_service_up{service="fw\"1\\"} 1"#.to_owned(),
            r#"tracker_chain_up{chain="internet"} 1"#.to_owned(),
            r#"tracker_service_flaps{service="fw\"1\\"} 0"#.to_owned(),
            r#"tracker_service_flaps_total{service="fw\"1\\"} 2"#.to_owned(),
            r#"tracker_hub_lateness_recent_seconds{of="tick"} 0.000061"#.to_owned(),
            r#"tracker_hub_lateness_max_seconds{of="tick"} 0.000912"#.to_owned(),
            "tracker_hub_stalls_total{} 1".to_owned(),
        ] {
            assert!(
                page.lines().any(|have| have == line),
                "{line}\nnot in\n{page}"
            );
        }
    }

    #[test]
    fn steering_is_counted_for_each_member() {
        let mut status = example();
        assert!(!render(&status).contains("tracker_steered_total"));
        let member = &mut status.services[0].members[0];
        (member.steered, member.replied) = (Some(12), Some(11));
        let page = render(&status);
        let labels = r#"service="fw-1",member="active",endpoint="10.9.0.2""#;
        for line in [
            format!("tracker_steered_total{{{labels}}} 12"),
            format!("tracker_replied_total{{{labels}}} 11"),
        ] {
            assert!(
                page.lines().any(|have| have == line),
                "{line}\nnot in\n{page}"
            );
        }
    }

    #[test]
    fn no_series_is_there_twice_and_none_without_a_value() {
        let mut status = example();
        let member = &mut status.services[0].members[0];
        member.trackers[0].rtt_us = Default::default();
        let twin = member.trackers[0].clone();
        member.trackers.push(twin);
        let page = render(&status);
        assert!(!page.contains("tracker_rtt"), "{page}");
        let mut seen = HashSet::new();
        for line in page.lines() {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(series.to_owned()), "{series} twice in\n{page}");
        }
        let page = render(&Status {
            services: vec![],
            chains: vec![],
            ..status
        });
        for line in page.lines() {
            assert!(line.contains("tracker_hub_"), "{line}");
        }
    }
}

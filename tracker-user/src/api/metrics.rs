//! The status as metrics, in the Prometheus text format (version 0.0.4) or as OpenMetrics.
//!
//! Series are bounded by the number of services and members; those of trackers are written for the services that a request names.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
};

use axum::http::HeaderValue;
use glob::Pattern;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet, prometheus_text, text},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tracker_ebpf::{
    rtt::{self, BUCKETS, Rtts},
    verdict::Verdict,
};

use super::types::{
    ChainStatus, Late, MemberStatus, ReloadStatus, ServiceStatus, Status, TrackerStatus, Transition,
};
use crate::{
    config::{Probe, Protocol},
    state::admin::Admin,
};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The Prometheus text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What an Accept header prefers (RFC 9110, section 12.5.1); the Prometheus text format if there is none.
    pub fn accepted(header: Option<&HeaderValue>) -> Self {
        let text = header
            .and_then(|header| header.to_str().ok())
            .unwrap_or_default();
        let quality = |wanted: &[&str]| {
            let ranges = text.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next()?;
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
                wanted.contains(&kind).then_some(quality.unwrap_or(1.0))
            });
            ranges.fold(0.0, f64::max)
        };
        let open = quality(&["application/openmetrics-text"]);
        match open > 0.0 && open >= quality(&["text/plain", "text/*"]) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }
}

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
    /// Counts by size, and their sum.
    Histogram,
}

impl Kind {
    /// The word of the text format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// What the samples of a metric are of, and how the value is read. Without a value there is no sample.
pub enum Of {
    /// One sample a tracker.
    Tracker(fn(&TrackerStatus) -> Option<f64>),
    /// One sample a member.
    Member(fn(&MemberStatus) -> Option<f64>),
    /// Round-trip times of each member, in seconds.
    Rtts,
    /// One sample a member: the sum over its trackers.
    Sum(fn(&TrackerStatus) -> u64),
    /// One sample a member: whether it is in use.
    Selected,
    /// One sample a service.
    Service(fn(&ServiceStatus) -> f64),
    /// One sample a service and state, of services and members with an admin state.
    Admin,
    /// One sample a service, verdict and cause.
    Transitions(fn(&Transition) -> f64),
    /// One sample, with the version as a label.
    Build,
    /// One sample, once there was a reload.
    Reload(fn(&ReloadStatus) -> f64),
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
            Self::Member(_) | Self::Sum(_) | Self::Selected | Self::Rtts => {
                "service, member, endpoint"
            }
            Self::Service(_) => "service",
            Self::Admin => "service, member, state",
            Self::Transitions(_) => "service, verdict, cause",
            Self::Build => "version",
            Self::Reload(_) => "",
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
        name: "tracker_member_sent_total",
        kind: Kind::Counter,
        help: "Probes that really left, of all trackers of the member.",
        of: Of::Sum(|t| t.sent),
    },
    Metric {
        name: "tracker_member_received_total",
        kind: Kind::Counter,
        help: "Probes answered in time, of all trackers of the member.",
        of: Of::Sum(|t| t.received),
    },
    Metric {
        name: "tracker_member_lost_total",
        kind: Kind::Counter,
        help: "Probes not answered in time, of all trackers of the member.",
        of: Of::Sum(|t| t.lost),
    },
    Metric {
        name: "tracker_member_duplicate_total",
        kind: Kind::Counter,
        help: "Replies to probes already answered, of all trackers of the member.",
        of: Of::Sum(|t| t.duplicate),
    },
    Metric {
        name: "tracker_member_late_total",
        kind: Kind::Counter,
        help: "Replies after the timeout, of all trackers of the member.",
        of: Of::Sum(|t| t.late),
    },
    Metric {
        name: "tracker_member_corrupt_total",
        kind: Kind::Counter,
        help: "Packets that bear a probe header and fail the token, of all trackers of the member.",
        of: Of::Sum(|t| t.corrupt),
    },
    Metric {
        name: "tracker_member_wrong_path_total",
        kind: Kind::Counter,
        help: "Replies on an interface outside returns, by another hop, or with another TTL, of all trackers of the member.",
        of: Of::Sum(|t| t.wrong_path),
    },
    Metric {
        name: "tracker_member_elsewhere_total",
        kind: Kind::Counter,
        help: "Replies from another address or port than was asked, of all trackers of the member.",
        of: Of::Sum(|t| t.elsewhere),
    },
    Metric {
        name: "tracker_member_icmp_errors_total",
        kind: Kind::Counter,
        help: "ICMP and ICMPv6 errors about probes, of all trackers of the member.",
        of: Of::Sum(|t| t.icmp_errors),
    },
    Metric {
        name: "tracker_member_skipped_total",
        kind: Kind::Counter,
        help: "Probes that were due and not sent, of all trackers of the member.",
        of: Of::Sum(|t| t.skipped),
    },
    Metric {
        name: "tracker_member_void_total",
        kind: Kind::Counter,
        help: "Probes sent whose outcome proves nothing, of all trackers of the member.",
        of: Of::Sum(|t| t.void),
    },
    Metric {
        name: "tracker_member_up",
        kind: Kind::Gauge,
        help: "1 if the member counts as up, by its admin state if it has one.",
        of: Of::Member(|m| Some(up(m.effective))),
    },
    Metric {
        name: "tracker_member_unknown",
        kind: Kind::Gauge,
        help: "1 if the member counts as neither up nor down.",
        of: Of::Member(|m| Some(unknown(m.effective))),
    },
    Metric {
        name: "tracker_member_selected",
        kind: Kind::Gauge,
        help: "1 if the member is in use: the service's `selected` names it.",
        of: Of::Selected,
    },
    Metric {
        name: "tracker_member_weight",
        kind: Kind::Gauge,
        help: "Share of the member of a pool among members of equal priority.",
        of: Of::Member(|m| m.weight.map(f64::from)),
    },
    Metric {
        name: "tracker_member_trackers",
        kind: Kind::Gauge,
        help: "Number of trackers.",
        of: Of::Member(|m| Some(m.trackers.len() as f64)),
    },
    Metric {
        name: "tracker_member_trackers_up",
        kind: Kind::Gauge,
        help: "Number of trackers that are up.",
        of: Of::Member(|m| {
            Some(
                m.trackers
                    .iter()
                    .filter(|t| t.verdict == Verdict::Up)
                    .count() as f64,
            )
        }),
    },
    Metric {
        name: "tracker_member_rtt_seconds",
        kind: Kind::Histogram,
        help: "Round-trip times of all trackers of the member since the daemon's start; one-way if the proof is the arrival.",
        of: Of::Rtts,
    },
    Metric {
        name: "tracker_member_rtt_min_seconds",
        kind: Kind::Gauge,
        help: "Shortest round-trip time of all trackers of the member; one-way if the proof is the arrival.",
        of: Of::Member(|m| seconds(m.trackers.iter().filter_map(|t| t.rtt_us.min).min())),
    },
    Metric {
        name: "tracker_member_rtt_last_seconds",
        kind: Kind::Gauge,
        help: "Longest of the last round-trip times of the member's trackers.",
        of: Of::Member(|m| seconds(m.trackers.iter().filter_map(|t| t.rtt_us.last).max())),
    },
    Metric {
        name: "tracker_member_rtt_max_seconds",
        kind: Kind::Gauge,
        help: "Longest round-trip time of all trackers of the member.",
        of: Of::Member(|m| seconds(m.trackers.iter().filter_map(|t| t.rtt_us.max).max())),
    },
    Metric {
        name: "tracker_service_up",
        kind: Kind::Gauge,
        help: "1 if the service counts as up, by its admin state if it has one.",
        of: Of::Service(|s| up(s.effective)),
    },
    Metric {
        name: "tracker_service_unknown",
        kind: Kind::Gauge,
        help: "1 if the service counts as neither up nor down.",
        of: Of::Service(|s| unknown(s.effective)),
    },
    Metric {
        name: "tracker_service_since_seconds",
        kind: Kind::Gauge,
        help: "Time of the last change of the service's verdict, in seconds since 1970.",
        of: Of::Service(|s| s.since.as_second() as f64),
    },
    Metric {
        name: "tracker_admin",
        kind: Kind::Gauge,
        help: "1 for each service and member on which an operator imposes a state; member is empty of a service.",
        of: Of::Admin,
    },
    Metric {
        name: "tracker_service_transitions_total",
        kind: Kind::Counter,
        help: "Changes of the service's verdict, by the verdict that it changed to and the cause, since the daemon's start.",
        of: Of::Transitions(|t| t.count as f64),
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
        name: "tracker_build_info",
        kind: Kind::Gauge,
        help: "1, with the version of the daemon.",
        of: Of::Build,
    },
    Metric {
        name: "tracker_config_last_reload_success",
        kind: Kind::Gauge,
        help: "1 if the last reload took the configuration; once there was one.",
        of: Of::Reload(|reload| f64::from(u8::from(reload.ok))),
    },
    Metric {
        name: "tracker_config_last_reload_seconds",
        kind: Kind::Gauge,
        help: "Time of the last reload, in seconds since 1970; once there was one.",
        of: Of::Reload(|reload| reload.time.as_second() as f64),
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

/// The kernel's buckets whose ends metrics tell: 16 us to 17 s.
const TOLD: std::ops::RangeInclusive<usize> = 8..=48;

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

/// Reads what the kernel counted of a member's round-trip times, by its place in the maps.
pub type ReadRtts = Box<dyn Fn(u32) -> Rtts + Send + Sync>;

/// The page of a status. Trackers have series of their own in the services that `series` match.
pub fn render(status: Status, rtts: ReadRtts, series: Vec<Pattern>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page {
        status,
        rtts,
        series,
        format,
    }));
    let mut text = String::new();
    // Writing to a string does not fail, and no metric has a type that a format lacks.
    let _ = match format {
        Format::Prometheus => prometheus_text::encode(&mut text, &registry),
        Format::OpenMetrics => text::encode(&mut text, &registry),
    };
    text
}

/// Labels of a sample.
type Labels = Vec<(&'static str, String)>;

struct Page {
    status: Status,
    rtts: ReadRtts,
    series: Vec<Pattern>,
    format: Format,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let services = &self.status.services;
        let members = || self.members();
        let trackers = self.trackers();
        let late = &self.status.lateness_us;
        let kinds = [
            ("tick", late.tick),
            ("ring", late.ring),
            ("timer", late.timer),
        ];
        for metric in METRICS {
            let mut family = Family {
                encoder: &mut encoder,
                metric,
                format: self.format,
                samples: Vec::new(),
            };
            match metric.of {
                Of::Tracker(value) => {
                    for (labels, tracker) in &trackers {
                        family.sample(|| labels.clone(), value(tracker));
                    }
                }
                Of::Member(value) => {
                    for (service, member) in members() {
                        family.sample(|| member_labels(service, member), value(member));
                    }
                }
                Of::Selected => {
                    for service in services {
                        let selected = service.selected.names().iter();
                        let selected: HashSet<&str> = selected.map(|name| &**name).collect();
                        for member in &service.members {
                            let is_selected = selected.contains(member.name());
                            family.sample(
                                || member_labels(service, member),
                                Some(f64::from(u8::from(is_selected))),
                            );
                        }
                    }
                }
                // The samples of the others are single values.
                Of::Rtts => {
                    self.encode_rtts(&mut encoder, metric)?;
                    continue;
                }
                Of::Sum(value) => {
                    for (service, member) in members() {
                        let sum: u64 = member.trackers.iter().map(value).sum();
                        family.sample(|| member_labels(service, member), Some(sum as f64));
                    }
                }
                Of::Service(value) => {
                    for service in services {
                        family.sample(|| named("service", &service.name), Some(value(service)));
                    }
                }
                Of::Admin => {
                    for service in services {
                        family.admin(service, "", &service.admin);
                        for member in &service.members {
                            family.admin(service, member.name(), &member.admin);
                        }
                    }
                }
                Of::Transitions(value) => {
                    for service in services {
                        for transition in &service.transitions {
                            let labels = || {
                                let mut labels = named("service", &service.name);
                                labels.push(("verdict", transition.to.as_str().to_owned()));
                                labels.push(("cause", transition.cause.as_str().to_owned()));
                                labels
                            };
                            family.sample(labels, Some(value(transition)));
                        }
                    }
                }
                Of::Chain(value) => {
                    for chain in &self.status.chains {
                        family.sample(|| named("chain", &chain.name), Some(value(chain)));
                    }
                }
                Of::Lateness(value) => {
                    for (kind, late) in kinds {
                        family.sample(|| named("of", kind), Some(value(late)));
                    }
                }
                Of::Build => {
                    family.sample(|| named("version", env!("CARGO_PKG_VERSION")), Some(1.0))
                }
                Of::Reload(value) => {
                    let reload = self.status.last_reload.as_ref();
                    family.sample(Vec::new, reload.map(value));
                }
                Of::Hub(value) => family.sample(Vec::new, Some(value(&self.status))),
            }
            family.write()?;
        }
        Ok(())
    }
}

impl Page {
    /// The members, each with its service.
    fn members(&self) -> impl Iterator<Item = (&ServiceStatus, &MemberStatus)> {
        let services = self.status.services.iter();
        services.flat_map(|service| service.members.iter().map(move |member| (service, member)))
    }

    /// Writes the histograms of members. Of the kernel's buckets, those that end at powers of two are told, from 16 us to 17 s: what
    /// is between is of use only to percentiles of the history.
    fn encode_rtts(&self, encoder: &mut DescriptorEncoder<'_>, metric: &Metric) -> fmt::Result {
        let members: Vec<_> = self
            .members()
            .filter_map(|(service, member)| Some((service, member, member.path?)))
            .collect();
        if members.is_empty() {
            return Ok(());
        }
        let Metric { name, help, .. } = metric;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (service, member, path) in members {
            let rtts = (self.rtts)(path);
            let mut buckets = Vec::new();
            let counts = &rtts[..BUCKETS];
            let mut counted = 0;
            for (bucket, count) in counts.iter().enumerate() {
                counted += count;
                if TOLD.contains(&bucket) && bucket % 2 == 0 {
                    buckets.push((rtt::end_ns(bucket) as f64 / 1e9, counted));
                    counted = 0;
                }
            }
            buckets.push((f64::INFINITY, counted));
            let labels = member_labels(service, member);
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    rtts[rtt::SUM] as f64 / 1e9,
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }

    /// The trackers that have series of their own, with their labels.
    fn trackers(&self) -> Vec<(Labels, &TrackerStatus)> {
        let mut trackers = Vec::new();
        let is_wanted = |service: &&ServiceStatus| {
            self.series
                .iter()
                .any(|name| name.matches(&service.name) || name.as_str() == service.name)
        };
        for service in self.status.services.iter().filter(is_wanted) {
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
        trackers
    }
}

/// The samples of one metric.
struct Family<'f, 'e> {
    encoder: &'f mut DescriptorEncoder<'e>,
    metric: &'static Metric,
    format: Format,
    samples: Vec<(Labels, f64)>,
}

impl Family<'_, '_> {
    fn sample(&mut self, labels: impl FnOnce() -> Labels, value: Option<f64>) {
        if let Some(value) = value {
            self.samples.push((labels(), value));
        }
    }

    fn admin(&mut self, service: &ServiceStatus, member: &str, admin: &Admin) {
        let labels = || {
            let mut labels = named("service", &service.name);
            labels.push(("member", member.to_owned()));
            labels.push(("state", admin.state.as_str().to_owned()));
            labels
        };
        self.sample(labels, (!admin.is_auto()).then_some(1.0));
    }

    /// Writes them, after a head if there are any.
    fn write(self) -> fmt::Result {
        if self.samples.is_empty() {
            return Ok(());
        }
        let Metric {
            name, kind, help, ..
        } = self.metric;
        // The library gives counters this end.
        let base = name
            .strip_suffix("_total")
            .filter(|_| *kind == Kind::Counter);
        // In OpenMetrics a counter's family has the name without the end, which must not be that of another family.
        let is_taken = self.format == Format::OpenMetrics
            && METRICS.iter().any(|metric| Some(metric.name) == base);
        let (name, kind) = match base {
            Some(base) if !is_taken => (base, MetricType::Counter),
            Some(_) => (*name, MetricType::Unknown),
            None => (*name, MetricType::Gauge),
        };
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in &self.samples {
            let mut sample = family.encode_family(labels)?;
            // Every count is exact in an f64 up to 2^53; a whole number is written as one.
            match (kind, value.fract() == 0.0) {
                (MetricType::Counter, true) => {
                    sample.encode_counter::<NoLabelSet, _, f64>(&(*value as u64), None)?;
                }
                (MetricType::Counter, false) => {
                    sample.encode_counter::<NoLabelSet, _, f64>(value, None)?;
                }
                (_, true) => ConstGauge::new(*value as i64).encode(sample)?,
                (_, false) => ConstGauge::new(*value).encode(sample)?,
            }
        }
        Ok(())
    }
}

fn named(kind: &'static str, name: &str) -> Labels {
    vec![(kind, name.to_owned())]
}

fn member_labels(service: &ServiceStatus, member: &MemberStatus) -> Labels {
    vec![
        ("service", service.name.clone()),
        ("member", member.name().to_owned()),
        ("endpoint", member.endpoint.to_string()),
    ]
}

fn labels(
    service: &ServiceStatus,
    member: &MemberStatus,
    tracker: &TrackerStatus,
    twin: Option<usize>,
) -> Labels {
    let mut labels = member_labels(service, member);
    labels.push(("behind", tracker.behind.to_string()));
    labels.push(("probe", tracker.probe.to_string()));
    labels.extend(tracker.port.map(|port| ("port", port.to_string())));
    labels.extend(
        tracker
            .protocol
            .map(|protocol| ("protocol", protocol.to_string())),
    );
    labels.extend(twin.map(|index| ("tracker", index.to_string())));
    labels
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::types::tests::example;
    use super::*;

    /// The page with the series of all trackers.
    fn render(status: &Status) -> String {
        let all = Pattern::new("*").unwrap();
        super::render(status.clone(), none(), vec![all], Format::Prometheus)
    }

    /// No round-trip time was counted.
    fn none() -> ReadRtts {
        Box::new(|_| [0; rtt::WORDS])
    }

    #[test]
    fn round_trip_times_of_a_member_are_a_histogram() {
        let read: ReadRtts = Box::new(|path| {
            assert_eq!(path, 7);
            let mut rtts = [0; rtt::WORDS];
            rtts[rtt::bucket(3_000)] = 1;
            rtts[rtt::bucket(40_000)] = 5;
            rtts[rtt::bucket(41_000)] += 1;
            rtts[rtt::bucket(30_000_000_000)] = 2;
            rtts[rtt::SUM] = 60_000_250_000;
            rtts
        });
        let mut status = example();
        status.services[0].members[0].path = Some(7);
        let page = super::render(status, read, Vec::new(), Format::Prometheus);
        let labels = r#"service="fw-1",member="active",endpoint="10.9.0.2""#;
        let of = |le: &str, count: u64| {
            format!("tracker_member_rtt_seconds_bucket{{{labels},le=\"{le}\"}} {count}\n")
        };
        for line in [
            "# TYPE tracker_member_rtt_seconds histogram\n".to_owned(),
            of("1.6384e-05", 1),
            of("3.2768e-05", 1),
            of("6.5536e-05", 7),
            of("17.179869184", 7),
            of("+Inf", 9),
            format!("tracker_member_rtt_seconds_sum{{{labels}}} 60.00025\n"),
            format!("tracker_member_rtt_seconds_count{{{labels}}} 9\n"),
        ] {
            assert!(page.contains(&line), "{line}{page}");
        }
        assert_eq!(
            page.matches("tracker_member_rtt_seconds_bucket").count(),
            22,
            "{page}"
        );
    }

    #[test]
    fn the_format_is_negotiated() {
        let of = |text: &'static str| Format::accepted(Some(&HeaderValue::from_static(text)));
        assert_eq!(Format::accepted(None), Format::Prometheus);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (header, format) in [
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            (prometheus, Format::OpenMetrics),
            (
                "text/plain, application/openmetrics-text;q=0.5",
                Format::Prometheus,
            ),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("nonsense;;;,,q=", Format::Prometheus),
        ] {
            assert_eq!(of(header), format, "{header}");
        }
    }

    #[test]
    fn trackers_have_series_only_on_request() {
        let status = example();
        let page = |names: &[&str]| {
            let names = names.iter().map(|name| Pattern::new(name).unwrap());
            super::render(status.clone(), none(), names.collect(), Format::Prometheus)
        };
        for (names, has_some) in [
            (&[][..], false),
            (&["fw-2"], false),
            (&["fw-1"], true),
            (&["x", "fw-*"], true),
        ] {
            assert_eq!(page(names).contains("behind="), has_some, "{names:?}");
            assert!(page(names).contains("tracker_member_sent_total{service=\"fw-1\",member=\"active\",endpoint=\"10.9.0.2\"} 120\n"));
        }
    }

    /// A family has the name of its samples without `_total`, so a gauge and a counter must not share it.
    #[test]
    fn families_of_openmetrics_have_names_of_their_own() {
        let page = super::render(example(), none(), Vec::new(), Format::OpenMetrics);
        assert!(page.ends_with("# EOF\n"), "{page}");
        let mut seen = HashSet::new();
        for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(seen.insert(name.to_owned()), "{name} twice in\n{page}");
        }
        assert!(
            page.contains("# TYPE tracker_member_sent counter\n"),
            "{page}"
        );
    }

    #[test]
    fn what_operators_impose_and_what_changed_is_there() {
        let mut status = example();
        let service = &mut status.services[0];
        service.admin.state = crate::state::admin::AdminState::Maintenance;
        service.effective = Verdict::Down;
        service.transitions = vec![Transition {
            to: Verdict::Down,
            cause: tracker_ebpf::verdict::Cause::NoReply,
            count: 3,
        }];
        status.last_reload = Some(ReloadStatus {
            time: "2026-01-01T00:00:00Z".parse().unwrap(),
            ok: false,
        });
        let page = render(&status);
        for line in [
            r#"tracker_admin{service="fw-1",member="",state="maintenance"} 1"#,
            r#"tracker_service_up{service="fw-1"} 0"#,
            r#"tracker_service_transitions_total{service="fw-1",verdict="down",cause="no-reply"} 3"#,
            "tracker_config_last_reload_success 0",
            "tracker_config_last_reload_seconds 1767225600",
        ] {
            assert!(
                page.lines().any(|have| have == line),
                "{line}\nnot in\n{page}"
            );
        }
    }

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
            "tracker_hub_stalls_total 1".to_owned(),
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
            let is_of_hub = ["tracker_hub_", "tracker_build_info"];
            assert!(is_of_hub.iter().any(|name| line.contains(name)), "{line}");
        }
    }
}

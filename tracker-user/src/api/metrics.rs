//! The status in the Prometheus text format, and a server for it that does nothing else.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracker_ebpf::verdict::Verdict;

use super::server::Api;
use super::types::{ChainStatus, Late, MemberStatus, ServiceStatus, Status, TrackerStatus};
use crate::config::{Probe, Protocol};
use crate::host::repeats;

/// A client has this long for its request and for the answer together.
const PATIENCE: Duration = Duration::from_secs(10);
/// A request line and headers of more bytes are refused.
const MAX_REQUEST: usize = 8192;
/// Time between two attempts to listen on an address that is not there.
pub const BIND_AGAIN: Duration = Duration::from_secs(1);
/// More clients at a time wait in the listener's own queue.
const MAX_CLIENTS: usize = 32;

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

/// Listens on an address.
///
/// # Errors
/// One line that says what to do; the address may come later.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!("cannot serve metrics on {address}: {error}; set hub.metrics to a free address of this hub")
    })
}

/// Answers `GET /metrics` for ever. Dropping the future ends every connection.
pub async fn serve(listener: TcpListener, api: impl Api) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        // Never closed, so this does not fail; each client's time is limited, so it ends.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_) = clients.join_next() => {}
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let api = api.clone();
                clients.spawn(async move {
                    // A client that is slow or went away is no fault of the daemon.
                    let _ = timeout(PATIENCE, answer(stream, api)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                let text =
                    format_args!("cannot accept a client of the metrics: {error}; trying again");
                repeats::warn("accept a client of the metrics", text);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, api: impl Api) -> io::Result<()> {
    let mut request = Vec::new();
    let complete = loop {
        if request.windows(4).any(|four| four == b"\r\n\r\n") {
            break true;
        }
        if request.len() >= MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            break false;
        }
    };
    let text = String::from_utf8_lossy(&request);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let path = target.map(|target| target.split('?').next().unwrap_or_default());
    let valid = complete && version.is_some_and(|version| version.starts_with("HTTP/1."));
    let (code, body) = match (valid, method, path) {
        (false, ..) => ("400 Bad Request", "not an HTTP/1 request\n".to_owned()),
        (true, Some("GET" | "HEAD"), Some("/metrics")) => match api.status(None).await {
            Ok(status) => {
                // Of many trackers it takes a while, and others' answers do not wait for it.
                let page = tokio::task::spawn_blocking(move || render(&status));
                ("200 OK", page.await.map_err(io::Error::other)?)
            }
            Err(error) => ("503 Service Unavailable", format!("{error}\n")),
        },
        (true, Some("GET" | "HEAD"), _) => ("404 Not Found", "see /metrics\n".to_owned()),
        (true, ..) => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let allow = if code.starts_with("405") {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    let mut response = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if method != Some("HEAD") {
        response.push_str(&body);
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::{Read, Write};

    use super::super::types::tests::example;
    use super::*;
    use crate::state::events::EventFeed;

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

    #[derive(Clone)]
    struct Fixed;

    impl Api for Fixed {
        async fn status(&self, _: Option<&str>) -> Result<Status, String> {
            Ok(example())
        }

        fn events(&self) -> EventFeed {
            EventFeed::default()
        }
    }

    #[test]
    fn requests_are_answered_or_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                serve(TcpListener::from_std(listener).unwrap(), Fixed).await;
            });
        });
        let page = render(&example());
        let ask = |request: &str| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        // Clients that say nothing are no hindrance.
        let _silent: Vec<_> = (0..MAX_CLIENTS / 2)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: hub\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", page.len())),
            "{head}"
        );
        assert_eq!(body, page);
        assert!(ask("HEAD /metrics HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1\r\n", "400"),
            ("\r\n\r\n", "400"),
        ];
        for (request, code) in cases {
            let answer = ask(request);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code} ")),
                "{request:?}: {answer}"
            );
        }
        let endless = format!(
            "GET /metrics HTTP/1.1\r\nX: {}",
            "x".repeat(2 * MAX_REQUEST)
        );
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        // The server may close before it was sent all.
        let _ = stream.write_all(endless.as_bytes());
        let mut first = [0; 12];
        if stream.read_exact(&mut first).is_ok() {
            assert_eq!(&first, b"HTTP/1.1 400");
        }
    }
}

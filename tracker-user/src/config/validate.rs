//! From a document to a complete, valid [`Config`]: defaults, inheritance, ranges and rules.
//!
//! Every function reports what is wrong and goes on with a stand-in, so that one run finds all
//! problems; the caller discards the result when there were any.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tracker_ebpf::{abi, wire::stamp};

use ipnet::IpNet;

use super::document::{At, Entry, Section, likeliest};
use super::{
    Chain, Config, Expect, Flow, Hub, Member, ModeChoice, Origin, Policy, Probe, Protocol, Refused,
    ReturnHop, Role, Service, Steering, Tracker,
};

const MS: Duration = Duration::from_millis(1);
const INTERVAL: RangeInclusive<Duration> = MS..=Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = MS..=Duration::from_secs(60);
const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
const FLAP_WINDOW: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const COUNT: RangeInclusive<u32> = 1..=60;
/// What the probe's own mark, sequence, time and token take.
const MIN_PAYLOAD: u32 = 32;
/// What a STAMP packet takes, and one with padding at least.
const STAMP_PAYLOAD: u32 = stamp::LEN as u32;
const STAMP_PADDED: u32 = (stamp::LEN + stamp::TLV_LEN) as u32;
/// An IPv4 packet of 65,535 bytes less its header (20) and that of ICMP or UDP (8).
const MAX_PAYLOAD: u32 = 65_507;

/// Sequence numbers tell probes in flight apart; the ranges above must keep within them.
const MAX_IN_FLIGHT: u128 = 65_000;
const _: () = {
    let longest = TIMEOUT
        .end()
        .as_nanos()
        .div_ceil(INTERVAL.start().as_nanos());
    assert!(longest + *COUNT.end() as u128 <= MAX_IN_FLIGHT);
};

const DEFAULT_ROOM: u32 = 1024;
const DEFAULT_FLAP_WINDOW: Duration = Duration::from_secs(600);
const MAX_ROOM: u32 = 1_000_000;
const DEFAULT_INSTANCE: &str = "default";
/// Of a Unix socket's path: `sun_path` less the terminating zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
const MAX_INSTANCE: usize = 64;
/// Of a hub, a service or a chain, bytes: names stand in every line of output.
pub(crate) const MAX_NAME: usize = 255;
/// `IFNAMSIZ` less the terminating zero (linux/if.h).
const MAX_INTERFACE: usize = 127;

const ROOT_KEYS: &[&str] = &["hub", "defaults", "service", "chain", "steering"];
const HUB_KEYS: &[&str] = &[
    "name",
    "instance",
    "socket",
    "metrics",
    "bpffs",
    "mode",
    "room",
    "flap_window",
];
const TRACKER_KEYS: &[&str] = &[
    "probe",
    "port",
    "protocol",
    "interval",
    "timeout",
    "fall",
    "rise",
    "payload",
    "expect",
    "flow",
    "refused",
    "hold_down",
    "return_ttl",
];
const SERVICE_KEYS: &[&str] = &[
    "name",
    "endpoint",
    "interface",
    "behind",
    "policy",
    "returns",
    "return_hop",
    "source",
    "member",
];
const MEMBER_KEYS: &[&str] = &[
    "role",
    "endpoint",
    "interface",
    "behind",
    "policy",
    "returns",
    "return_hop",
    "source",
    "tracker",
];
const CHAIN_KEYS: &[&str] = &["name", "services"];
const STEERING_KEYS: &[&str] = &["uplinks", "sources", "mark"];

/// Where a key that is unknown in one table belongs, if it is known in another.
fn elsewhere(key: &str) -> Option<String> {
    let places = [
        ("[defaults] or a [[service]]", TRACKER_KEYS),
        ("a [[service]]", SERVICE_KEYS),
        ("a [[service.member]]", MEMBER_KEYS),
        ("a [[chain]]", CHAIN_KEYS),
        ("[hub]", HUB_KEYS),
        ("[steering]", STEERING_KEYS),
        ("the top level of the file", ROOT_KEYS),
    ];
    let (place, _) = places.iter().find(|(_, keys)| keys.contains(&key))?;
    Some(format!(" (`{key}` belongs in {place})"))
}

pub(super) fn config(mut root: Section<'_>) -> Config {
    root.only(&[ROOT_KEYS], &elsewhere);
    let hub = hub(root.take_table("hub"));
    let defaults = match root.take_table("defaults") {
        Some(section) => {
            section.only(&[TRACKER_KEYS], &elsewhere);
            Settings::read(&section, Level::Defaults)
        }
        None => Settings::default(),
    };

    let sections = root.take_tables("service", "service", |index, table| {
        let name = table.get("name").and_then(|name| name.get_ref().as_str());
        match name {
            Some(name) => format!("[[service]] \"{}\"", name.escape_debug()),
            None => format!("[[service]] {}", index + 1),
        }
    });
    let mut names = Names::default();
    let services: Vec<Service> = sections
        .into_iter()
        .map(|section| service(section, &defaults, &mut names))
        .collect();

    let sections = root.take_tables("chain", "chain", |index, table| {
        let name = table.get("name").and_then(|name| name.get_ref().as_str());
        match name {
            Some(name) => format!("[[chain]] \"{}\"", name.escape_debug()),
            None => format!("[[chain]] {}", index + 1),
        }
    });
    let mut chain_names = Names::default();
    let chains = sections
        .into_iter()
        .map(|section| chain(&section, &names, &mut chain_names))
        .collect();

    let trackers = services.iter().flat_map(|service| &service.members);
    if let Some(why) = crowded(trackers.flat_map(|member| &member.trackers)) {
        root.sink.problem(root.at, why);
    }

    let steering = root
        .take_table("steering")
        .map(|section| steering(&section));
    Config {
        hub,
        services,
        chains,
        steering,
        defaults: Defaults(defaults),
    }
}

/// Why trackers of TCP are too many for the source ports by which their replies are told apart, where they are.
pub fn crowded<'t>(trackers: impl Iterator<Item = &'t Tracker>) -> Option<String> {
    let mut of = HashMap::new();
    for tracker in trackers.filter(|tracker| tracker.probe == Probe::Tcp) {
        let count = of.entry((tracker.behind, tracker.port)).or_insert(0);
        *count += 1;
        let most = abi::PORTS_MASK + 1;
        if *count > most {
            return Some(format!(
                "more than {most} trackers with probe \"tcp\" ask port {} of {}, and their replies could not be told \
                 apart; take some away, or have them ask another port or address",
                tracker.port.unwrap_or_default(),
                tracker.behind
            ));
        }
    }
    None
}

/// `[defaults]` of a configuration, for services that are added to it later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults(Settings);

/// A service that is added to a configuration later: the keys of the short form, and nothing else.
pub(super) fn addition(mut section: Section<'_>, defaults: &Defaults) -> Service {
    section.title = "the service".to_owned();
    service(section, &defaults.0, &mut Names::default())
}

fn hub(section: Option<Section<'_>>) -> Hub {
    let mut hub = Hub {
        name: String::new(),
        instance: DEFAULT_INSTANCE.to_owned(),
        socket: PathBuf::new(),
        metrics: None,
        bpffs: PathBuf::from("/sys/fs/bpf"),
        mode: ModeChoice::Auto,
        room: DEFAULT_ROOM,
        flap_window: DEFAULT_FLAP_WINDOW,
    };
    let mut socket = None;
    let mut name = None;
    if let Some(section) = section {
        section.only(&[HUB_KEYS], &elsewhere);
        let value = |key| section.entry(key);
        name = value("name").and_then(|entry| entry.parsed("a name", checked_name));
        if let Some(instance) =
            value("instance").and_then(|entry| entry.parsed("a name", checked_instance))
        {
            hub.instance = instance.value;
        }
        socket = value("socket").and_then(|entry| entry.parsed("a path", socket_path));
        hub.metrics = value("metrics")
            .and_then(|entry| entry.parsed("an address and port", socket_address))
            .map(|metrics| metrics.value);
        if let Some(bpffs) = value("bpffs").and_then(|entry| entry.parsed("a path", absolute)) {
            hub.bpffs = bpffs.value;
        }
        if let Some(mode) = value("mode").and_then(|entry| entry.word(ModeChoice::WORDS)) {
            hub.mode = mode.value;
        }
        if let Some(room) = value("room").and_then(|entry| entry.integer(0..=MAX_ROOM)) {
            hub.room = room.value;
        }
        if let Some(window) = value("flap_window").and_then(|entry| entry.duration(FLAP_WINDOW)) {
            hub.flap_window = window.value;
        }
    }
    hub.name = name.map_or_else(hostname, |name| name.value);
    hub.socket = socket.map_or_else(
        || PathBuf::from(format!("/run/tracker/{}.sock", hub.instance)),
        |socket| socket.value,
    );
    hub
}

fn hostname() -> String {
    // What gethostname(2) answers in this UTS namespace, without a call into C.
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if checked_name(name.trim()).is_ok() => name.trim().to_owned(),
        _ => "hub".to_owned(),
    }
}

/// Where a tracker key was written: an outer value gives way to an inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    BuiltIn,
    Defaults,
    Service,
    Member,
    Tracker,
}

/// The tracker keys of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Settings {
    probe: Option<(Level, At<Probe>)>,
    port: Option<(Level, At<u16>)>,
    protocol: Option<(Level, At<Protocol>)>,
    interval: Option<At<Duration>>,
    timeout: Option<At<Duration>>,
    fall: Option<At<u32>>,
    rise: Option<At<u32>>,
    payload: Option<(Level, At<u32>)>,
    expect: Option<At<Expect>>,
    flow: Option<At<Flow>>,
    refused: Option<At<Refused>>,
    hold_down: Option<At<Duration>>,
    return_ttl: Option<At<u8>>,
}

impl Settings {
    fn read(section: &Section<'_>, level: Level) -> Self {
        let value = |key| section.entry(key);
        Self {
            probe: value("probe")
                .and_then(|entry| entry.word(Probe::WORDS))
                .map(|probe| (level, probe)),
            port: value("port")
                .and_then(|entry| entry.integer(1..=u16::MAX.into()))
                .map(|At { value, at }| {
                    let value = value as u16;
                    (level, At { value, at })
                }),
            protocol: value("protocol")
                .and_then(|entry| entry.word(Protocol::WORDS))
                .map(|protocol| (level, protocol)),
            interval: value("interval").and_then(|entry| entry.duration(INTERVAL)),
            timeout: value("timeout").and_then(|entry| entry.duration(TIMEOUT)),
            fall: value("fall").and_then(|entry| entry.integer(COUNT)),
            rise: value("rise").and_then(|entry| entry.integer(COUNT)),
            payload: value("payload")
                .and_then(|entry| payload(&entry))
                .map(|payload| (level, payload)),
            expect: value("expect").and_then(|entry| entry.word(Expect::WORDS)),
            flow: value("flow").and_then(|entry| entry.word(Flow::WORDS)),
            refused: value("refused").and_then(|entry| entry.word(Refused::WORDS)),
            hold_down: value("hold_down").and_then(|entry| entry.duration(HOLD_DOWN)),
            return_ttl: value("return_ttl")
                .and_then(|entry| entry.integer(1..=u8::MAX.into()))
                .map(|At { value, at }| At {
                    value: value as u8,
                    at,
                }),
        }
    }

    /// These settings, and the outer ones where these say nothing.
    fn within(self, outer: &Self) -> Self {
        Self {
            probe: self.probe.or(outer.probe),
            port: self.port.or(outer.port),
            protocol: self.protocol.or(outer.protocol),
            interval: self.interval.or(outer.interval),
            timeout: self.timeout.or(outer.timeout),
            fall: self.fall.or(outer.fall),
            rise: self.rise.or(outer.rise),
            payload: self.payload.or(outer.payload),
            expect: self.expect.or(outer.expect),
            flow: self.flow.or(outer.flow),
            refused: self.refused.or(outer.refused),
            hold_down: self.hold_down.or(outer.hold_down),
            return_ttl: self.return_ttl.or(outer.return_ttl),
        }
    }

    fn tracker(&self, section: &Section<'_>, behind: At<IpAddr>) -> Tracker {
        let (probe_level, probe) = match self.probe {
            Some((level, probe)) => (level, probe.value),
            None => (Level::BuiltIn, Probe::default()),
        };
        // A key for others among the trackers that inherit it is no mistake.
        let is_meant = |level: Level| {
            !(level < probe_level || (level, probe_level) == (Level::Defaults, Level::BuiltIn))
        };
        let protocol = match (probe, self.protocol) {
            (Probe::Udp, Some((_, protocol))) => protocol.value,
            (Probe::Icmp | Probe::Tcp, Some((level, protocol))) if is_meant(level) => {
                section.problem(
                    protocol.at,
                    format_args!(
                        "{} but {} has only one; delete {} or set {}",
                        section
                            .sink
                            .setting("protocol", &format!("\"{}\"", protocol.value)),
                        section.sink.setting("probe", &format!("\"{probe}\"")),
                        section.sink.key("protocol"),
                        section.sink.setting("probe", "\"udp\""),
                    ),
                );
                Protocol::default()
            }
            _ => Protocol::default(),
        };
        let port = match (probe, self.port) {
            (Probe::Udp | Probe::Tcp, Some((_, port))) => Some(port.value),
            (Probe::Udp, None) if protocol == Protocol::Stamp => Some(stamp::PORT),
            (Probe::Udp | Probe::Tcp, None) => {
                section.problem(
                    self.probe.map_or(behind.at, |(_, probe)| probe.at),
                    format_args!(
                        "{} needs {}, which is missing; {} {}",
                        section.sink.setting("probe", &format!("\"{probe}\"")),
                        section.sink.key("port"),
                        section.sink.wording("add", "give"),
                        section.sink.setting("port", "N"),
                    ),
                );
                None
            }
            (Probe::Icmp, Some((level, port))) => {
                if is_meant(level) {
                    section.problem(
                        port.at,
                        format_args!(
                            "{} but {} has no ports; delete {} or set {} or \"tcp\"",
                            section.sink.setting("port", &port.value.to_string()),
                            section.sink.setting("probe", "\"icmp\""),
                            section.sink.key("port"),
                            section.sink.setting("probe", "\"udp\""),
                        ),
                    );
                }
                None
            }
            (Probe::Icmp, None) => None,
        };
        fn or<T>(setting: Option<At<T>>, default: T) -> T {
            setting.map_or(default, |setting| setting.value)
        }
        let interval = or(self.interval, Duration::from_secs(1));
        let timeout = or(self.timeout, Duration::from_millis(500));
        let most = abi::STREAM_FLIGHTS_MAX;
        if probe == Probe::Tcp && timeout > interval * most {
            let at = self
                .timeout
                .or(self.interval)
                .map_or(behind.at, |timeout| timeout.at);
            section.problem(
                at,
                format_args!(
                    "the timeout is longer than {most} intervals, and a SYN tells no more probes apart; give a shorter \
                     {} or a longer {}",
                    section.sink.key("timeout"),
                    section.sink.key("interval"),
                ),
            );
        }
        Tracker {
            behind: behind.value,
            probe,
            port,
            protocol,
            interval,
            timeout,
            fall: or(self.fall, 3) as u8,
            rise: or(self.rise, 2) as u8,
            payload: self.payload(section, probe, protocol, is_meant),
            expect: or(self.expect, Expect::default()),
            flow: or(self.flow, Flow::default()),
            refused: or(self.refused, Refused::default()),
            hold_down: or(self.hold_down, Duration::ZERO),
            return_ttl: self.return_ttl.map(|ttl| ttl.value),
        }
    }

    /// Bytes after the header of a probe.
    fn payload(
        &self,
        section: &Section<'_>,
        probe: Probe,
        protocol: Protocol,
        is_meant: impl Fn(Level) -> bool,
    ) -> u16 {
        let least = match (probe, protocol) {
            (Probe::Tcp, _) => 0,
            (Probe::Udp, Protocol::Stamp) => STAMP_PAYLOAD,
            (Probe::Icmp | Probe::Udp, _) => MIN_PAYLOAD,
        };
        let Some((level, payload)) = self.payload else {
            return least as u16;
        };
        let value = payload.value;
        let setting = || section.sink.setting("payload", &value.to_string());
        let key = section.sink.key("payload");
        let why = match (probe, protocol) {
            (Probe::Tcp, _) => format!(
                "{} but a SYN carries no data, and firewalls drop those that do; delete {key}",
                setting()
            ),
            (Probe::Udp, Protocol::Stamp) if value != STAMP_PAYLOAD && value < STAMP_PADDED => {
                format!(
                    "{} but a STAMP packet has {STAMP_PAYLOAD} bytes, or {STAMP_PADDED} to {MAX_PAYLOAD} with padding; give \
                     one of these or delete {key}",
                    setting()
                )
            }
            _ => return value as u16,
        };
        // A size for the others among the trackers that inherit it is no mistake.
        if is_meant(level) {
            section.problem(payload.at, why);
        }
        least as u16
    }
}

fn payload(entry: &Entry<'_>) -> Option<At<u32>> {
    let payload = entry.integer(0..=MAX_PAYLOAD)?;
    if payload.value < MIN_PAYLOAD {
        entry.refuse(format_args!(
            "too small: the probe's own mark, sequence, time and token take {MIN_PAYLOAD} bytes; give {MIN_PAYLOAD} to {MAX_PAYLOAD}"
        ));
        return None;
    }
    Some(payload)
}

fn service(mut section: Section<'_>, defaults: &Settings, names: &mut Names) -> Service {
    section.only(&[SERVICE_KEYS, TRACKER_KEYS], &elsewhere);
    let name = names.read(&section, "service");
    let settings = Settings::read(&section, Level::Service).within(defaults);
    let long = section.has("member");
    let service_title = section.title.clone();
    let member_sections = section.take_tables("member", "service.member", |index, _| {
        format!("[[service.member]] {} of {service_title}", index + 1)
    });

    if !long {
        let parts = Parts {
            section: &section,
            outer: None,
            trackers: Vec::new(),
        };
        let members = member(parts, Role::Active, settings).into_iter().collect();
        return Service {
            name,
            origin: Origin::Config,
            members,
        };
    }

    for key in ["endpoint", "behind"] {
        if let Some(entry) = section.entry(key) {
            entry.refuse("the short form cannot be mixed with [[service.member]]; move it into each [[service.member]]");
        }
    }
    if member_sections.is_empty() {
        section.problem(section.at, "no member: add a [[service.member]]");
    }
    if member_sections.len() > 2 {
        section.problem(
            member_sections[2].at,
            format_args!(
                "{} members, but a service has at most one active and one standby; make the others services of their own",
                member_sections.len()
            ),
        );
    }
    let pair = member_sections.len() > 1;
    let mut roles: HashMap<Role, usize> = HashMap::new();
    let mut attachments = HashSet::new();
    let mut members = Vec::new();
    for mut inner in member_sections {
        inner.only(&[MEMBER_KEYS, TRACKER_KEYS], &elsewhere);
        let role = role(&inner, pair, &mut roles);
        let member_title = inner.title.clone();
        let trackers = inner.take_tables("tracker", "service.member.tracker", |index, _| {
            format!("[[service.member.tracker]] {} of {member_title}", index + 1)
        });
        let settings = Settings::read(&inner, Level::Member).within(&settings);
        let parts = Parts {
            section: &inner,
            outer: Some(&section),
            trackers,
        };
        let Some(member) = member(parts, role, settings) else {
            continue;
        };
        if !attachments.insert((member.endpoint, member.interface.clone())) {
            inner.problem(
                inner.at,
                "same endpoint and interface as the other member; give this member its own",
            );
        }
        members.push(member);
    }
    Service {
        name,
        origin: Origin::Config,
        members,
    }
}

fn role(section: &Section<'_>, pair: bool, seen: &mut HashMap<Role, usize>) -> Role {
    let Some(entry) = section.entry("role") else {
        if pair {
            let _ = section.required("role", "\"active\" or \"standby\"");
        }
        return Role::Active;
    };
    let Some(At { value: role, at }) = entry.word(Role::WORDS) else {
        return Role::Active;
    };
    if !pair && role == Role::Standby {
        entry.refuse("the only member of a service is its active one; delete the key, or add the active member");
    }
    if let Some(first) = seen.insert(role, at) {
        entry.refuse(format_args!(
            "line {} has it already; a service has one active and one standby member",
            section.sink.line(first)
        ));
    }
    role
}

/// What a member is made of.
struct Parts<'p, 'a> {
    /// The member's own table, or that of the service in the short form.
    section: &'p Section<'a>,
    /// The service's table in the long form.
    outer: Option<&'p Section<'a>>,
    trackers: Vec<Section<'a>>,
}

impl<'p> Parts<'p, '_> {
    /// A key that the service may set for its members.
    fn inherited(&self, key: &'p str) -> Option<Entry<'p>> {
        let own = self.section.entry(key);
        own.or_else(|| self.outer.and_then(|outer| outer.entry(key)))
    }
}

/// `None` when the endpoint, without which nothing can be made, is missing or wrong.
fn member(parts: Parts<'_, '_>, role: Role, settings: Settings) -> Option<Member> {
    let section = parts.section;
    let endpoint = section
        .required("endpoint", "\"ADDRESS\", the service's own address")
        .and_then(|entry| unicast(&entry));
    let interface = parts
        .inherited("interface")
        .and_then(|entry| entry.parsed("an interface name", checked_interface))
        .map(|interface| interface.value);
    if let (Some(endpoint), false) = (endpoint, parts.inherited("interface").is_some())
        && matches!(endpoint.value, IpAddr::V6(address) if address.is_unicast_link_local())
    {
        section.problem(
            endpoint.at,
            format_args!(
                "endpoint {} is link-local, so its interface cannot be found from a route; {} {}",
                endpoint.value,
                section.sink.wording("add", "give"),
                section.sink.setting("interface", "\"NAME\""),
            ),
        );
    }

    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut trackers = Vec::new();
    let mut add = |section: &Section<'_>, entry: &Entry<'_>, settings: &Settings| {
        let Some(behind) = unicast(entry) else {
            return;
        };
        if endpoint.is_some_and(|endpoint| endpoint.value == behind.value) {
            entry.refuse("the endpoint's own address answers without passing the service; give an address behind it");
        }
        let tracker = settings.tracker(section, behind);
        // Two trackers whose probes are the same on the wire are one tracker.
        let identity = (
            (tracker.behind, tracker.kind() as u8, tracker.port),
            (tracker.payload, tracker.expect, tracker.flow),
        );
        match seen.get(&identity) {
            Some(first) => entry.refuse(format_args!(
                "{} has the same tracker in the same member; delete one",
                section.sink.place(*first)
            )),
            None => {
                seen.insert(identity, behind.at);
            }
        }
        trackers.push(tracker);
    };
    let mut written = 0;
    if let Some(behind) = section.entry("behind") {
        for entry in behind.list("a list of addresses, such as [\"192.0.2.9\"]") {
            written += 1;
            add(section, &entry, &settings);
        }
    }
    for inner in &parts.trackers {
        written += 1;
        inner.only(&[&["behind"], TRACKER_KEYS], &elsewhere);
        let settings = Settings::read(inner, Level::Tracker).within(&settings);
        if let Some(entry) = inner.required("behind", "\"ADDRESS\"") {
            add(inner, &entry, &settings);
        }
    }
    if written == 0 && !section.has("behind") {
        section.missing(
            "behind",
            section.sink.wording("[\"ADDRESS\"]", "ADDRESS"),
            ", an address that is reached only through the service",
        );
    }

    let source = parts
        .inherited("source")
        .and_then(|entry| {
            let source = unicast(&entry)?;
            // Inherited, it may be meant for the other member.
            let unused = !trackers.is_empty()
                && !trackers
                    .iter()
                    .any(|tracker| tracker.behind.is_ipv4() == source.value.is_ipv4());
            if unused && section.has("source") {
                entry.refuse("no behind address is of its family, so no probe would use it; delete it or give one of their family");
            }
            Some(source.value)
        });
    let return_hop = parts
        .inherited("return_hop")
        .and_then(|entry| entry.word(ReturnHop::WORDS));
    let returns = parts.inherited("returns").map(|entry| {
        let names = distinct(&entry, "a list of interface names", |element| {
            element.parsed("an interface name", checked_interface)
        });
        if names.len() > abi::RETURNS_MAX {
            let most = abi::RETURNS_MAX;
            entry.refuse(format!(
                "replies may arrive on {most} interfaces at most; name fewer"
            ));
        }
        names
    });
    let policy = parts
        .inherited("policy")
        .and_then(|entry| policy(&entry, written, &section.title));
    Some(Member {
        role,
        endpoint: endpoint?.value,
        interface,
        source,
        returns: returns.unwrap_or_default(),
        return_hop: return_hop.map_or_else(ReturnHop::default, |word| word.value),
        policy: policy.unwrap_or_default(),
        trackers,
    })
}

fn policy(entry: &Entry<'_>, trackers: u32, member: &str) -> Option<Policy> {
    let number = || format!("a number of trackers from 1 to {trackers}");
    if entry.is_string() {
        let without_quotes = entry.sink.wording(" without quotes", "");
        let wanted = format!("\"any\", \"all\" or {}{without_quotes}", number());
        return entry
            .parsed(&wanted, |text| match text {
                "any" => Ok(Policy::Any),
                "all" => Ok(Policy::All),
                _ => Err(format!("not a policy; give {wanted}")),
            })
            .map(|policy| policy.value);
    }
    let wanted = entry.integer(1..=u16::MAX.into())?.value;
    if trackers > 0 && wanted > trackers {
        entry.refuse(format_args!(
            "more than the {trackers} trackers of {member}; give \"any\", \"all\" or {}",
            number()
        ));
        return None;
    }
    Some(Policy::AtLeast(wanted as u16))
}

fn chain(section: &Section<'_>, services: &Names, names: &mut Names) -> Chain {
    section.only(&[CHAIN_KEYS], &elsewhere);
    let name = names.read(section, "chain");
    let known = |entry: &Entry<'_>| {
        entry.parsed("the name of a service", |text| {
            if services.places.contains_key(text) {
                return Ok(text.to_owned());
            }
            let known = services.places.keys().map(String::as_str);
            Err(match likeliest(text, known) {
                Some(likely) => format!("no [[service]] has this name; did you mean {likely:?}?"),
                None => "no [[service]] has this name: there are none; add one".to_owned(),
            })
        })
    };
    let services = section
        .required("services", "[\"NAME\", ...]")
        .map(|entry| distinct(&entry, "a list of service names", known))
        .unwrap_or_default();
    Chain { name, services }
}

fn steering(section: &Section<'_>) -> Steering {
    section.only(&[STEERING_KEYS], &elsewhere);
    let uplinks = section.entry("uplinks").map(|entry| {
        distinct(&entry, "a list of interface names", |element| {
            element.parsed("an interface name", checked_interface)
        })
    });
    let sources = section.entry("sources").map(|entry| {
        distinct(&entry, "a list of prefixes", |element| {
            element.parsed("a prefix", |text| {
                text.parse::<IpNet>()
                    .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                    .map_err(|_| "not a prefix; give one such as \"192.0.2.0/24\"".to_owned())
            })
        })
    });
    let mark = section
        .entry("mark")
        .and_then(|entry| entry.integer(1..=u32::MAX));
    if section.has("uplinks") && !section.has("sources") {
        let _ = section.required("sources", "[\"PREFIX\"], who may send tracker packets");
    }
    if let (Some(entry), false) = (section.entry("sources"), section.has("uplinks"))
        && section.has("mark")
    {
        entry.refuse("there are no `uplinks` on which their packets could arrive; add `uplinks`, or delete it");
    }
    if !section.has("uplinks") && !section.has("mark") {
        section.problem(
            section.at,
            "neither `uplinks` nor `mark`, so nothing would be steered; add one",
        );
    }
    Steering {
        uplinks: uplinks.unwrap_or_default(),
        sources: sources.unwrap_or_default(),
        mark: mark.map(|mark| mark.value),
    }
}

/// Names that must be unique, and where they were given.
#[derive(Default)]
struct Names {
    places: HashMap<String, usize>,
}

impl Names {
    /// Reads `name`, which must be there, well-formed and new.
    fn read(&mut self, section: &Section<'_>, what: &str) -> String {
        let Some(entry) = section.required("name", "\"NAME\"") else {
            return String::new();
        };
        let Some(name) = entry.parsed("a name", checked_name) else {
            return String::new();
        };
        match self.places.get(&name.value) {
            Some(first) => entry.refuse(format_args!(
                "the {what} of line {} has this name; give each its own",
                section.sink.line(*first)
            )),
            None => {
                self.places.insert(name.value.clone(), name.at);
            }
        }
        name.value
    }
}

/// The elements of a list, each of which must be valid and new.
fn distinct<T: PartialEq>(
    entry: &Entry<'_>,
    wanted: &str,
    parse: impl Fn(&Entry<'_>) -> Option<At<T>>,
) -> Vec<T> {
    let mut values: Vec<T> = Vec::new();
    for element in entry.list(wanted) {
        let Some(parsed) = parse(&element) else {
            continue;
        };
        if values.contains(&parsed.value) {
            element.refuse("already in the list; delete one");
        } else {
            values.push(parsed.value);
        }
    }
    values
}

/// An address that a single host can have, and that can be reached over a wire.
fn unicast(entry: &Entry<'_>) -> Option<At<IpAddr>> {
    let parsed = entry.parsed("an address in quotes", |text| {
        text.parse::<IpAddr>().map_err(|_| {
            let why = if text.contains('/') {
                "an address alone, without a prefix length"
            } else if text.contains('%') {
                "an address alone; name the interface by `interface`"
            } else {
                "an IPv4 or IPv6 address, such as \"192.0.2.9\" or \"2001:db8::9\""
            };
            format!("not an IP address; give {why}")
        })
    })?;
    match not_a_hosts(parsed.value) {
        None => Some(parsed),
        Some(why) => {
            entry.refuse(format_args!("{why}; give a unicast address of one host"));
            None
        }
    }
}

/// Why an address is none that a single host can have, if it is not.
fn not_a_hosts(address: IpAddr) -> Option<&'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if address.is_loopback() {
        Some("a loopback address, which never leaves a host")
    } else if mapped {
        Some("an IPv4 address written as IPv6")
    } else {
        None
    }
}

/// What of a service that comes from elsewhere than a document the daemon could not work with, if there is anything: the
/// ranges and rules that a document is held to.
pub(super) fn checked_service(service: &Service) -> Result<(), String> {
    checked_name(&service.name)?;
    let roles: Vec<Role> = service.members.iter().map(|member| member.role).collect();
    match roles[..] {
        [Role::Active] | [Role::Active, Role::Standby] | [Role::Standby, Role::Active] => {}
        _ => return Err(format!("members {roles:?}")),
    }
    service.members.iter().try_for_each(checked_member)
}

fn checked_member(member: &Member) -> Result<(), String> {
    let behinds = member.trackers.iter().map(|tracker| tracker.behind);
    let addresses = behinds.chain([member.endpoint]).chain(member.source);
    for address in addresses {
        if let Some(why) = not_a_hosts(address) {
            return Err(format!("{address} is {why}"));
        }
    }
    for interface in member.interface.iter().chain(&member.returns) {
        checked_interface(interface)?;
    }
    let count = member.trackers.len();
    let needed = match member.policy {
        Policy::Any | Policy::All => 1,
        Policy::AtLeast(needed) => needed.into(),
    };
    if !(1..=count).contains(&needed) || member.returns.len() > abi::RETURNS_MAX {
        let returns = member.returns.len();
        return Err(format!("{needed} of {count} trackers, {returns} returns"));
    }
    for tracker in &member.trackers {
        let payload = u32::from(tracker.payload);
        let is_size = match tracker.kind() {
            // It has none, whatever an earlier version wrote down.
            abi::Probe::Tcp => {
                tracker.timeout <= tracker.interval.saturating_mul(abi::STREAM_FLIGHTS_MAX)
            }
            abi::Probe::Stamp => {
                payload == STAMP_PAYLOAD || (STAMP_PADDED..=MAX_PAYLOAD).contains(&payload)
            }
            abi::Probe::Icmp | abi::Probe::Udp => (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&payload),
        };
        let is_sound = INTERVAL.contains(&tracker.interval)
            && TIMEOUT.contains(&tracker.timeout)
            && HOLD_DOWN.contains(&tracker.hold_down)
            && COUNT.contains(&tracker.fall.into())
            && COUNT.contains(&tracker.rise.into())
            && is_size
            && tracker.port.is_some() == (tracker.probe != Probe::Icmp)
            && tracker.port != Some(0)
            && tracker.return_ttl != Some(0)
            && tracker.behind != member.endpoint;
        if !is_sound {
            return Err(format!("tracker {tracker:?}"));
        }
    }
    Ok(())
}

/// A name that can stand in a line of output, a path and a command without quoting.
fn checked_name(text: &str) -> Result<String, String> {
    let wrong = |char: char| char.is_whitespace() || char.is_control() || char == '/';
    if text.is_empty() {
        Err("an empty name; give at least one character".to_owned())
    } else if text.len() > MAX_NAME {
        Err(format!(
            "longer than the {MAX_NAME} bytes a name can have; give a shorter one"
        ))
    } else if text.contains(wrong) {
        Err("a name has no spaces, control characters or '/'; leave them out".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Whether `text` can name an instance; the error says why not and what to do.
pub fn checked_instance(text: &str) -> Result<String, String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    // It is a directory of the BPF file system, which refuses dots in names.
    if text.is_empty()
        || text.len() > MAX_INSTANCE
        || text.starts_with('-')
        || !text.chars().all(allowed)
    {
        Err(format!(
            "not usable as a directory name in the BPF file system; give 1 to {MAX_INSTANCE} letters, digits, '_' or '-', not '-' first"
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// As the kernel judges it (`dev_valid_name`), but as long as an alternative name may be (`ALTIFNAMSIZ`).
fn checked_interface(text: &str) -> Result<String, String> {
    let wrong =
        |char: char| char.is_whitespace() || char.is_control() || char == '/' || char == ':';
    if text.is_empty() || text == "." || text == ".." {
        Err("not an interface name; give one that `ip link` shows".to_owned())
    } else if text.len() > MAX_INTERFACE {
        Err(format!(
            "longer than the {MAX_INTERFACE} bytes an interface's alternative name can have; give a name that `ip link` shows"
        ))
    } else if text.contains(wrong) {
        Err("an interface name has no spaces, control characters, '/' or ':'; give one that `ip link` shows".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains(char::is_control) {
        return Err("not an absolute path; give one that begins with '/'".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "longer than the {MAX_SOCKET_PATH} bytes a socket's path can have; give a shorter one"
        ));
    }
    absolute(text)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "not an address and port; give one such as \"127.0.0.1:9469\" or \"[::1]:9469\"".to_owned()
    })
}

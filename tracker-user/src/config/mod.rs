//! The configuration: its types, and how a TOML file becomes them.
//!
//! A [`Config`] is complete and valid: defaults are filled in, every name resolves, every number is
//! in range. Whatever is wrong with a file is found in one pass and reported as one self-contained
//! line each, `FILE:LINE: ...`, that names the key, says why and what to do.

mod action;
mod api;
#[cfg(test)]
mod book;
mod chain;
mod document;
mod file;
mod history;
mod hub;
pub mod keys;
mod options;
mod order;
pub mod reference;
mod request;
mod service;
mod settings;
mod steering;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracker_ebpf::{abi, probe};

pub use file::{Defaults, crowded};
pub(crate) use keys::NAME_MAX;
pub use options::{ServiceOptions, options};
pub use order::misplaced;
pub use request::{Invalid, body, service as requested};
pub use service::default_name;
pub use values::checked_instance;

/// What Tracker's own mark, sequence, time and token take of a probe, bytes.
const PROBE_HEADER: u32 = 32;

/// Larger files are refused: no sensible configuration is, and `FILE` may be a device.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What one daemon is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The host and its daemon.
    pub hub: Hub,
    /// In the order of the file. Names are unique.
    pub services: Vec<Service>,
    /// In the order of the file. Names are unique, and every service they name exists.
    pub chains: Vec<Chain>,
    /// Tracker packets that others send.
    pub steering: Option<Steering>,
    /// The API over TCP.
    pub api: Api,
    /// Most bytes that the history takes; 0 if none is kept.
    pub history_size: u64,
    /// What services that are added later inherit.
    pub defaults: Defaults,
    /// What follows from verdicts, in the order of the file. Names are unique.
    pub actions: Vec<Action>,
}

impl Config {
    /// This configuration without services, chains and actions.
    pub fn without_services(&self) -> Self {
        Self {
            hub: self.hub.clone(),
            services: Vec::new(),
            chains: Vec::new(),
            steering: self.steering.clone(),
            api: self.api.clone(),
            history_size: self.history_size,
            defaults: self.defaults.clone(),
            actions: Vec::new(),
        }
    }

    /// What actions name as a service and no service of the file is called, each with the action's name.
    pub fn unnamed_services(&self) -> Vec<(&str, &str)> {
        let names = self.services.iter().map(|service| service.name.as_str());
        action::unknown(&self.actions, &names.collect())
    }

    /// The number of trackers of all services.
    pub fn tracker_count(&self) -> usize {
        self.services
            .iter()
            .flat_map(|service| &service.members)
            .map(|member| member.trackers.len())
            .sum()
    }
}

/// The host that runs the daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Hub {
    /// What the hub calls itself in reports; the hostname by default.
    pub name: String,
    /// Tells several daemons on one host apart; a path component that bpffs accepts.
    pub instance: String,
    /// The daemon's Unix socket.
    pub socket: PathBuf,
    /// Where to serve metrics, if at all.
    pub metrics: Option<SocketAddr>,
    /// Where the BPF file system is, or is to be, mounted.
    pub bpffs: PathBuf,
    /// The directory of what outlives a reboot.
    pub state: PathBuf,
    /// The group whose members may read by the socket.
    pub socket_group: Option<String>,
    /// How to attach to interfaces.
    pub mode: ModeChoice,
    /// So many trackers find place beside those of the file, without a restart.
    pub room: u32,
    /// How long a service's change of verdict counts as recent.
    pub flap_window: Duration,
}

/// The part of the API that changes nothing, over TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Api {
    /// Where to serve it, if at all.
    pub listen: Option<SocketAddr>,
    /// A file with the token that requests must bear.
    pub token_file: Option<PathBuf>,
    /// Certificate and key, for HTTPS.
    pub tls: Option<Tls>,
    /// Whether the web page is served.
    pub web: bool,
}

/// Files in PEM, for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those that it is signed by.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How the programs are to be attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModeChoice {
    /// The fastest that each interface can really do.
    Auto,
    /// XDP in the driver.
    XdpNative,
    /// XDP in the kernel's generic hook.
    XdpGeneric,
    /// TC ingress.
    Tc,
}

/// An inline network function.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique among services.
    pub name: String,
    /// What may change it.
    pub owner: Owner,
    /// One, an active and a standby one in either order, or a pool. Names are unique.
    pub members: Vec<Arc<Member>>,
    /// How many members must be up.
    pub members_up: Policy,
    /// Whether a member with a lower priority number takes over when it comes up.
    pub preempt: bool,
    /// Names of the services that it lies behind.
    pub after: Vec<String>,
}

impl Service {
    /// Whether it is a high-availability pair: two members, both with a role.
    pub fn is_pair(&self) -> bool {
        self.members.len() == 2 && self.members.iter().all(|member| member.role.is_some())
    }

    /// Whether it is a pool: more than one member, and no pair.
    pub fn is_pool(&self) -> bool {
        self.members.len() > 1 && !self.is_pair()
    }

    /// Whether the daemon can work with it, wherever it comes from.
    ///
    /// # Errors
    /// What of it no document could say.
    pub fn check(&self) -> Result<(), String> {
        service::check(self)
    }
}

/// What may change a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The configuration's file.
    #[default]
    File,
    /// The API.
    Api,
}

/// One attachment of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// What it is called; unique in its service.
    pub name: Arc<str>,
    /// Its part in a high-availability pair, if it has one.
    pub role: Option<Role>,
    /// Members with the lowest number are in use first.
    pub priority: u16,
    /// Its share among members of equal priority.
    pub weight: u16,
    /// The service's own address on the hub's side; the next hop of every probe.
    pub endpoint: IpAddr,
    /// The only way out for its probes; `None`: found from the endpoint's own route.
    pub interface: Option<String>,
    /// The source address of probes of the same family; `None`: the interface's address.
    pub source: Option<IpAddr>,
    /// The interfaces on which a reply may arrive; empty: the outgoing one.
    pub returns: Vec<String>,
    /// Who may bring a reply there.
    pub return_hop: ReturnHop,
    /// How the trackers decide.
    pub policy: Policy,
    /// What a map of nftables has for it.
    pub mark: Option<u32>,
    /// At least one.
    pub trackers: Vec<Tracker>,
}

/// A member's part in a high-availability pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// In use while up.
    Active,
    /// In use while the active member is not up.
    Standby,
}

impl Role {
    /// The priority of a member with this role.
    pub const fn priority(self) -> u16 {
        match self {
            Self::Active => 0,
            Self::Standby => 1,
        }
    }
}

/// Who may bring a reply on a member's own interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReturnHop {
    /// Anybody.
    Any,
    /// Only a frame with the endpoint's MAC address.
    Endpoint,
}

/// How many must be up: of a member's trackers, or of a service's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// One that is up suffices.
    #[default]
    Any,
    /// Every one must be up.
    All,
    /// So many must be up; from 1 to their number.
    AtLeast(u16),
}

impl Policy {
    /// How many of `count` must be up, at least one.
    pub fn needed(self, count: usize) -> usize {
        match self {
            Self::Any => 1,
            Self::All => count.max(1),
            Self::AtLeast(needed) => needed.into(),
        }
    }
}

/// One stream of probes from a member to a behind address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tracker {
    /// The address that is reached only through the service.
    pub behind: IpAddr,
    /// The kind of probe.
    pub probe: Probe,
    /// The destination port; present exactly for UDP and TCP.
    pub port: Option<u16>,
    /// What the datagrams of UDP are.
    pub protocol: Protocol,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long a reply may take; may exceed the interval.
    pub timeout: Duration,
    /// So many consecutive losses make it down.
    pub fall: u8,
    /// So many consecutive replies make it up.
    pub rise: u8,
    /// Bytes after the probe's own header; none of TCP.
    pub payload: u16,
    /// Whether a reply is wanted.
    pub expect: Expect,
    /// Whether each probe is a flow of its own.
    pub flow: Flow,
    /// DSCP of the probes.
    pub dscp: u8,
    /// What a TCP reset from the behind address means.
    pub refused: Refused,
    /// How long a change must last before it is reported.
    pub hold_down: Duration,
    /// Hops (TTL, hop limit) that a reply must have left when it arrives; any if not given.
    pub return_ttl: Option<u8>,
}

/// The defaults of the configuration, for a tracker that an older version has written down with fewer keys.
impl Default for Tracker {
    fn default() -> Self {
        Self {
            behind: Ipv4Addr::UNSPECIFIED.into(),
            probe: keys::PROBE.default_word(Probe::WORDS),
            port: None,
            protocol: keys::PROTOCOL.default_word(Protocol::WORDS),
            interval: keys::INTERVAL.default_duration(),
            timeout: keys::TIMEOUT.default_duration(),
            fall: keys::FALL.default_integer() as u8,
            rise: keys::RISE.default_integer() as u8,
            payload: PROBE_HEADER as u16,
            expect: keys::EXPECT.default_word(Expect::WORDS),
            flow: keys::FLOW.default_word(Flow::WORDS),
            dscp: keys::DSCP.default_integer() as u8,
            refused: keys::REFUSED.default_word(Refused::WORDS),
            hold_down: keys::HOLD_DOWN.default_duration(),
            return_ttl: None,
        }
    }
}

/// The kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// ICMP or ICMPv6 echo.
    Icmp,
    /// A UDP datagram.
    Udp,
    /// A TCP SYN.
    Tcp,
}

/// What the datagrams of UDP probes are, and what answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// An echo service sends them back (RFC 862).
    Echo,
    /// A STAMP reflector answers (RFC 8762).
    Stamp,
}

impl Tracker {
    /// What its probes are on the wire.
    pub const fn kind(&self) -> abi::Probe {
        match (self.probe, self.protocol) {
            (Probe::Icmp, _) => abi::Probe::Icmp,
            (Probe::Udp, Protocol::Echo) => abi::Probe::Udp,
            (Probe::Udp, Protocol::Stamp) => abi::Probe::Stamp,
            (Probe::Tcp, _) => abi::Probe::Tcp,
        }
    }

    /// Bytes after the first eight of what the IP header precedes; see [`abi::Tracker::payload`].
    pub const fn wire_payload(&self) -> u16 {
        match self.probe {
            Probe::Tcp => probe::tcp::SYN_PAYLOAD,
            Probe::Icmp | Probe::Udp => self.payload,
        }
    }
}

/// Whether a reply is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// A reply means up.
    Reply,
    /// The service must stop the probe: a reply means down.
    Silence,
}

/// Whether each probe is a flow of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// One ICMP identifier or source port for all probes.
    Fixed,
    /// A new one for each probe.
    Rotate,
}

/// What a TCP reset from the behind address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The probe was stopped.
    Down,
    /// The probe passed.
    Up,
}

/// An ordered list of services; up when all of them are.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Unique among chains.
    pub name: String,
    /// Names of services, each once.
    pub services: Vec<String>,
}

/// Tracker packets that others send.
#[derive(Clone, Debug, PartialEq)]
pub struct Steering {
    /// The interfaces on which remote probers' packets arrive.
    pub uplinks: Vec<String>,
    /// Who may send them.
    pub sources: Vec<IpNet>,
    /// `SO_MARK` of local programs' tracker packets.
    pub mark: Option<u32>,
    /// The bits of a packet's mark that are compared with `mark`.
    pub mark_mask: u32,
}

/// What follows from the verdicts of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Unique among actions.
    pub name: String,
    /// Names and patterns of services, each once; at least one.
    pub services: Vec<String>,
    /// What to do while no member is up.
    pub when_all_down: WhenAllDown,
    /// Present exactly if traffic is to go around the service while no member is up.
    pub bypass_via: Option<IpAddr>,
    /// What is made before any verdict is known.
    pub at_start: AtStart,
    /// What is done.
    pub kind: ActionKind,
}

/// What an action does, with the settings of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Keeps a next-hop group of the kernel.
    NexthopGroup {
        /// Id of the group; unique among actions.
        id: u32,
        /// Present if only the flows of a member that goes are to move.
        resilient: Option<ResilientGroup>,
    },
    /// Keeps a route.
    Route {
        /// The destination; prefix, table and metric are unique among actions.
        prefix: IpNet,
        /// Id of the group of another action, by which it leads; else it leads by the selected member.
        group: Option<u32>,
        /// Metric, as the kernel lists it.
        metric: u32,
        /// Number of the routing table.
        table: u32,
    },
    /// Keeps the elements of a map of nftables.
    Nftables {
        /// The map; unique among actions.
        map: MapName,
        /// How many elements it has.
        buckets: u16,
        /// How long they live unless they are renewed; for ever if not given.
        lease: Option<Duration>,
    },
    /// Runs a program for each event.
    Hook {
        /// Program and arguments.
        command: Vec<String>,
        /// The user whose rights it has; that of this process if not given.
        user: Option<String>,
        /// How long a run may take.
        timeout: Duration,
        /// How often a run that failed is repeated.
        retries: u32,
    },
    /// Sends each event to a server.
    Webhook {
        /// Where to: https, or http to this machine itself.
        url: String,
        /// A file with header fields for each request.
        headers_file: Option<PathBuf>,
        /// How long a request may take.
        timeout: Duration,
        /// How often a request that failed is repeated.
        retries: u32,
    },
    /// Writes a number into a file.
    TrackFile {
        /// The file; unique among actions.
        path: PathBuf,
        /// The number while a member is up.
        up: i32,
        /// The number while none is.
        down: i32,
    },
    /// Tells FRR's `bfdd` what becomes of its sessions.
    Frr {
        /// Its socket; unique among actions.
        socket: PathBuf,
    },
}

/// Settings of a resilient next-hop group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResilientGroup {
    /// Number of buckets.
    pub buckets: u16,
    /// How long a bucket must be idle before it may move.
    pub idle_timer: Duration,
    /// How long the group may be out of balance; zero: for ever.
    pub unbalanced_timer: Duration,
}

/// A map of nftables.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct MapName {
    /// `inet`, `ip` or `ip6`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The map.
    pub name: String,
}

impl fmt::Display for MapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

/// The kind of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActionType {
    /// A next-hop group.
    NexthopGroup,
    /// A route.
    Route,
    /// A map of nftables.
    Nftables,
    /// A program.
    Hook,
    /// A request to a server.
    Webhook,
    /// A number in a file.
    TrackFile,
    /// BFD sessions of FRR.
    Frr,
}

/// What an action does while no member is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenAllDown {
    /// It leaves everything as it is.
    Keep,
    /// Packets are dropped, or the route is removed.
    Withdraw,
    /// Packets go around the service.
    Bypass,
}

/// What an action makes before any verdict is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtStart {
    /// A group or route of all members that are not known to be down.
    All,
    /// Nothing until a member is up.
    None,
}

/// Of these names, the one that is most like `name`.
pub fn likeliest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    document::likeliest(name, known)
}

/// Gives an enum its words, in the order of its variants: one list for reading and printing.
macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {$(
        impl $type {
            /// Every word, with what it means.
            pub const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];

            /// The word used in the configuration and in every output.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": [$($word),+] })
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                let known = Self::WORDS.iter().find(|(word, _)| *word == text);
                known.map(|(_, value)| *value).ok_or_else(|| {
                    let unexpected = serde::de::Unexpected::Str(&text);
                    serde::de::Error::invalid_value(unexpected, &stringify!($type))
                })
            }
        }
    )+};
}
pub(crate) use words;

words! {
    ModeChoice { Auto = "auto", XdpNative = "xdp-native", XdpGeneric = "xdp-generic", Tc = "tc" }
    Owner { File = "file", Api = "api" }
    Role { Active = "active", Standby = "standby" }
    ReturnHop { Any = "any", Endpoint = "endpoint" }
    Probe { Icmp = "icmp", Udp = "udp", Tcp = "tcp" }
    Protocol { Echo = "echo", Stamp = "stamp" }
    Expect { Reply = "reply", Silence = "silence" }
    Flow { Fixed = "fixed", Rotate = "rotate" }
    Refused { Down = "down", Up = "up" }
    ActionType { NexthopGroup = "nexthop-group", Route = "route", Nftables = "nftables", Hook = "hook", Webhook = "webhook", TrackFile = "track-file", Frr = "frr" }
    WhenAllDown { Keep = "keep", Withdraw = "withdraw", Bypass = "bypass" }
    AtStart { All = "all", None = "none" }
}

/// One thing that is wrong with a configuration; prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    file: PathBuf,
    line: Option<usize>,
    excerpt: Option<Excerpt>,
    text: String,
}

/// The line of the file that a problem is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line.
    pub text: String,
    /// The bytes of it that are wrong.
    pub marked: Range<usize>,
}

impl Problem {
    /// The line of the file, to be shown with the problem.
    pub fn excerpt(&self) -> Option<&Excerpt> {
        self.excerpt.as_ref()
    }

    /// The problem on one line, with the column too: FILE:LINE:COLUMN: what is wrong.
    pub fn located(&self) -> String {
        let (Some(line), Some(excerpt)) = (self.line, &self.excerpt) else {
            return self.to_string();
        };
        let before = excerpt.text.get(..excerpt.marked.start);
        let column = before.map_or(0, |before| before.chars().count()) + 1;
        format!("{}:{line}:{column}: {}", self.file.display(), self.text)
    }

    /// The line of the file, from 1; `None` when the file as a whole could not be read.
    pub fn line(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// Everything that is wrong with a configuration, in the order of the file; never empty. Prints one
/// self-contained line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// What is wrong, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn one(file: &Path, line: Option<usize>, text: String) -> Self {
        Self {
            problems: vec![Problem {
                file: file.to_owned(),
                line,
                excerpt: None,
                text,
            }],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads and validates the configuration in `path`. Touches nothing else.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |error: std::io::Error| {
        let text =
            format!("cannot read the configuration: {error}; check the path and its permissions");
        ConfigError::one(path, None, text)
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let text = format!(
            "cannot read the configuration: larger than {} MiB; give a Tracker configuration",
            MAX_FILE_BYTES >> 20
        );
        return Err(ConfigError::one(path, None, text));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, path),
        Err(error) => {
            let valid = &bytes[..error.valid_up_to()];
            let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
            let text = "not valid TOML: not UTF-8 here; save the file as UTF-8".to_owned();
            Err(ConfigError::one(path, Some(line), text))
        }
    }
}

/// Validates the configuration in `text`; `file` is only what errors call it.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let sink = document::Sink::new(text, file);
    let config = document::root(&sink).map(|root| file::config(root));
    match (sink.into_error(), config) {
        (None, Some(config)) => Ok(config),
        (Some(error), _) => Err(error),
        // A document that does not parse leaves a problem in the sink.
        (None, None) => unreachable!("no document and no problem"),
    }
}

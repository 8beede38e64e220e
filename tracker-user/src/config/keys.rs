//! Every key of the configuration: where it may stand, its type, range and default, and what it means.
//!
//! This table is the only place with a key's name, range and default. From it come the known keys of each table of the file, the
//! checks of files, of services added at run time and of journals, the options of `tracker service add`, the JSON schema and the
//! reference page.

use std::{ops::RangeInclusive, time::Duration};

use tracker_ebpf::{abi, probe::stamp};

use super::{
    ActionType, AtStart, Expect, Flow, ModeChoice, PROBE_HEADER, Probe, Protocol, Refused,
    ReturnHop, Role, WhenAllDown,
};

/// A table of the file.
///
/// Inner tables follow outer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The top level.
    Root,
    /// `[hub]`.
    Hub,
    /// `[defaults]`.
    Defaults,
    /// `[[service]]`.
    Service,
    /// `[[service.member]]`.
    Member,
    /// `[[service.member.tracker]]`.
    Tracker,
    /// `[[chain]]`.
    Chain,
    /// `[steering]`.
    Steering,
    /// `[api]`.
    Api,
    /// `tls` of `[api]`.
    Tls,
    /// `[history]`.
    History,
    /// `[[action]]`.
    Action,
    /// `values` of `[[action]]`.
    Values,
}

impl Table {
    /// Every table, in the order of the reference page.
    pub const ALL: [Self; 13] = [
        Self::Root,
        Self::Hub,
        Self::Defaults,
        Self::Service,
        Self::Member,
        Self::Tracker,
        Self::Chain,
        Self::Steering,
        Self::Api,
        Self::Tls,
        Self::History,
        Self::Action,
        Self::Values,
    ];

    /// How the file writes it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Root => "top level",
            Self::Hub => "[hub]",
            Self::Defaults => "[defaults]",
            Self::Service => "[[service]]",
            Self::Member => "[[service.member]]",
            Self::Tracker => "[[service.member.tracker]]",
            Self::Chain => "[[chain]]",
            Self::Steering => "[steering]",
            Self::Api => "[api]",
            Self::Tls => "[api.tls]",
            Self::History => "[history]",
            Self::Action => "[[action]]",
            Self::Values => "[action.values]",
        }
    }
}

/// Settings of trackers: an inner table's value replaces that of an outer one.
const SETTING: &[Table] = &[
    Table::Defaults,
    Table::Service,
    Table::Member,
    Table::Tracker,
];
/// Settings of members, which a service may have for all of its members.
const OF_MEMBER: &[Table] = &[Table::Service, Table::Member];

/// Type and range of a value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A whole number.
    Integer {
        /// The least.
        least: u32,
        /// The greatest.
        most: u32,
        /// Why it cannot be less, if that is not evident.
        why_least: Option<&'static str>,
    },
    /// A whole number, which some words stand for too.
    Code {
        /// The greatest; the least is 0.
        most: u32,
        /// The words, each with its number.
        words: &'static [(&'static str, u32)],
    },
    /// A time with its unit.
    Duration {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// A number of bytes with its unit, or 0.
    Size {
        /// The least but 0.
        least: u64,
        /// The greatest.
        most: u64,
    },
    /// One of some words.
    Word(fn() -> Vec<&'static str>),
    /// `any`, `all`, or a number of what this says.
    Policy(&'static str),
    /// A name of so many bytes at most.
    Name(usize),
    /// A directory name of the BPF file system, of so many bytes at most.
    Instance(usize),
    /// `true` or `false`.
    Flag,
    /// An absolute path.
    Path,
    /// The absolute path of a Unix socket, of so many bytes at most.
    Socket(usize),
    /// An address and a port.
    SocketAddress,
    /// The address of one host.
    Host,
    /// A list of addresses of hosts.
    Hosts,
    /// The name of an interface, of so many bytes at most.
    Interface(usize),
    /// A list of interface names, of so many elements at most.
    Interfaces(Option<usize>),
    /// A list of prefixes.
    Prefixes,
    /// One prefix.
    Prefix,
    /// A list of services.
    Services,
    /// A name or pattern of services, or a list of them.
    Selector,
    /// Family, table and name of a map of nftables.
    MapName,
    /// The URL of a server.
    Url,
    /// A program and its arguments, as a list.
    Command,
    /// A whole number with a sign.
    Signed {
        /// The least.
        least: i32,
        /// The greatest.
        most: i32,
    },
    /// A table or a list of tables.
    Tables(Table),
}

/// What holds if a key is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// It must be given.
    Required,
    /// This value, written as in the file but without quotes.
    Is(&'static str),
    /// What this says.
    Text(&'static str),
}

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// The tables that may have it.
    pub tables: &'static [Table],
    /// Type and range.
    pub value: Value,
    /// What holds if it is not given.
    pub default: Default,
    /// What it means, in one sentence.
    pub doc: &'static str,
    /// Whether the programs in the kernel read it.
    pub is_read_by_kernel: bool,
}

/// What the fields of most keys are.
const PLAIN: Key = Key {
    name: "",
    tables: &[],
    value: Value::Path,
    default: Default::Required,
    doc: "",
    is_read_by_kernel: false,
};

const fn integer(least: u32, most: u32) -> Value {
    Value::Integer {
        least,
        most,
        why_least: None,
    }
}

const fn duration(least: Duration, most: Duration) -> Value {
    Value::Duration { least, most }
}

/// Names of DSCP values: RFC 2474 (class selectors), 2597 (assured forwarding), 3246 (`ef`), 5865 (`va`), 8622 (`le`).
const DSCP_NAMES: &[(&str, u32)] = &[
    ("df", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("va", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of a hub, a service or a chain, bytes: names stand in every line of output.
pub(crate) const NAME_MAX: usize = 255;
/// `ALTIFNAMSIZ` less the terminating zero (linux/if.h): an interface's alternative names are longer than its name.
const INTERFACE_MAX: usize = 127;
/// `sun_path` less the terminating zero (unix(7)).
const SOCKET_MAX: usize = 107;
/// `bfdd` cuts longer ones (`char addr[64]` in its `distributed_bfd_init`).
const FRR_SOCKET_MAX: usize = 63;
/// An IPv4 packet of 65,535 bytes less its header (20) and that of ICMP or UDP (8).
const PAYLOAD_MAX: u32 = 65_507;

macro_rules! words {
    ($type:ident) => {
        Value::Word(|| $type::WORDS.iter().map(|(word, _)| *word).collect())
    };
}

/// `[hub]`
pub static HUB: Key = Key {
    name: "hub",
    tables: &[Table::Root],
    value: Value::Tables(Table::Hub),
    default: Default::Text("defaults"),
    doc: "The host and its daemon.",
    ..PLAIN
};
/// `[defaults]`
pub static DEFAULTS: Key = Key {
    name: "defaults",
    tables: &[Table::Root],
    value: Value::Tables(Table::Defaults),
    default: Default::Text("defaults"),
    doc: "Settings of all trackers that say nothing else.",
    ..PLAIN
};
/// `[[service]]`
pub static SERVICE: Key = Key {
    name: "service",
    tables: &[Table::Root],
    value: Value::Tables(Table::Service),
    default: Default::Text("none"),
    doc: "The services.",
    ..PLAIN
};
/// `[[chain]]`
pub static CHAIN: Key = Key {
    name: "chain",
    tables: &[Table::Root],
    value: Value::Tables(Table::Chain),
    default: Default::Text("none"),
    doc: "The chains.",
    ..PLAIN
};
/// `[steering]`
pub static STEERING: Key = Key {
    name: "steering",
    tables: &[Table::Root],
    value: Value::Tables(Table::Steering),
    default: Default::Text("nothing is steered"),
    doc: "Tracker packets that others send, brought into the services.",
    ..PLAIN
};

/// `[api]`
pub static API: Key = Key {
    name: "api",
    tables: &[Table::Root],
    value: Value::Tables(Table::Api),
    default: Default::Text("only the socket"),
    doc: "The part of the API that changes nothing, over TCP.",
    ..PLAIN
};
/// `[api] listen`
pub static LISTEN: Key = Key {
    name: "listen",
    tables: &[Table::Api],
    value: Value::SocketAddress,
    default: Default::Text("no address"),
    doc: "The address on which the part of the API that changes nothing is served; one that is not loopback needs `tls` and `token_file`.",
    ..PLAIN
};
/// `[api] token_file`
pub static TOKEN_FILE: Key = Key {
    name: "token_file",
    tables: &[Table::Api],
    value: Value::Path,
    default: Default::Text("no token is asked for"),
    doc: "A file with the token that requests must bear (`Authorization: Bearer TOKEN`); read at start and reload.",
    ..PLAIN
};
/// `[api] tls`
pub static TLS: Key = Key {
    name: "tls",
    tables: &[Table::Api],
    value: Value::Tables(Table::Tls),
    default: Default::Text("plain HTTP"),
    doc: "Certificate and key, for HTTPS.",
    ..PLAIN
};
/// `[api] web`
pub static WEB: Key = Key {
    name: "web",
    tables: &[Table::Api],
    value: Value::Flag,
    default: Default::Is("false"),
    doc: "Whether the web page is served at `/`.",
    ..PLAIN
};
/// `[api.tls] certificate`
pub static CERTIFICATE: Key = Key {
    name: "certificate",
    tables: &[Table::Tls],
    value: Value::Path,
    default: Default::Required,
    doc: "A file with the certificate and those that it is signed by, in PEM.",
    ..PLAIN
};
/// `[api.tls] key`
pub static TLS_KEY: Key = Key {
    name: "key",
    tables: &[Table::Tls],
    value: Value::Path,
    default: Default::Required,
    doc: "A file with the certificate's private key, in PEM.",
    ..PLAIN
};

/// `[history]`
pub static HISTORY: Key = Key {
    name: "history",
    tables: &[Table::Root],
    value: Value::Tables(Table::History),
    default: Default::Text("defaults"),
    doc: "What is kept of loss, round-trip time and events.",
    ..PLAIN
};
/// `[history] size`
pub static HISTORY_SIZE: Key = Key {
    name: "size",
    tables: &[Table::History],
    value: Value::Size {
        least: 1 << 20,
        most: 1 << 40,
    },
    default: Default::Is("256MiB"),
    doc: "Most bytes that the history takes in the state directory; `0` keeps none.",
    ..PLAIN
};

/// `[hub] name`
pub static HUB_NAME: Key = Key {
    name: "name",
    tables: &[Table::Hub],
    value: Value::Name(NAME_MAX),
    default: Default::Text("the hostname"),
    doc: "What the hub calls itself in reports.",
    ..PLAIN
};
/// `[hub] instance`
pub static INSTANCE: Key = Key {
    name: "instance",
    tables: &[Table::Hub],
    value: Value::Instance(64),
    default: Default::Is("default"),
    doc: "Tells several daemons on one host apart.",
    ..PLAIN
};
/// `[hub] socket`
pub static SOCKET: Key = Key {
    name: "socket",
    tables: &[Table::Hub],
    value: Value::Socket(SOCKET_MAX),
    default: Default::Text("/run/tracker/INSTANCE.sock"),
    doc: "The daemon's Unix socket.",
    ..PLAIN
};
/// `[hub] metrics`
pub static METRICS: Key = Key {
    name: "metrics",
    tables: &[Table::Hub],
    value: Value::SocketAddress,
    default: Default::Text("not served"),
    doc: "Address and port on which metrics are served.",
    ..PLAIN
};
/// `[hub] bpffs`
pub static BPFFS: Key = Key {
    name: "bpffs",
    tables: &[Table::Hub],
    value: Value::Path,
    default: Default::Is("/sys/fs/bpf"),
    doc: "Where the BPF file system is, or is to be, mounted.",
    ..PLAIN
};
/// `[hub] state`
pub static STATE: Key = Key {
    name: "state",
    tables: &[Table::Hub],
    value: Value::Path,
    default: Default::Text("/var/lib/tracker/INSTANCE"),
    doc: "The directory of what outlives a reboot: services and admin states of the API, and the tag by which the instance's probes \
          are told from those of others.",
    ..PLAIN
};
/// `[hub] socket_group`
pub static SOCKET_GROUP: Key = Key {
    name: "socket_group",
    tables: &[Table::Hub],
    value: Value::Name(NAME_MAX),
    default: Default::Text("root alone"),
    doc: "The group whose members may read by the socket; root alone changes anything.",
    ..PLAIN
};
/// `[hub] mode`
pub static MODE: Key = Key {
    name: "mode",
    tables: &[Table::Hub],
    value: words!(ModeChoice),
    default: Default::Is("auto"),
    doc: "How replies are received: `auto` is native XDP, but TC where that is missing or would switch off an offload of the device or its peer; the others are this way or not at all. `tc` also sends by TC.",
    is_read_by_kernel: true,
};
/// `[hub] room`
pub static ROOM: Key = Key {
    name: "room",
    tables: &[Table::Hub],
    value: integer(0, 1_000_000),
    default: Default::Is("1024"),
    doc: "So many trackers can be added beside those of the file, without a restart.",
    is_read_by_kernel: true,
};
/// `[hub] flap_window`
pub static FLAP_WINDOW: Key = Key {
    name: "flap_window",
    tables: &[Table::Hub],
    value: duration(Duration::from_secs(1), DAY),
    default: Default::Is("10m"),
    doc: "How long a change of a service's verdict counts as one of its `flaps`.",
    ..PLAIN
};

/// `[[service]] name`
pub static SERVICE_NAME: Key = Key {
    name: "name",
    tables: &[Table::Service],
    value: Value::Name(NAME_MAX),
    doc: "What the service is called; unique among services.",
    ..PLAIN
};
/// `role`
pub static ROLE: Key = Key {
    name: "role",
    tables: &[Table::Member],
    value: words!(Role),
    default: Default::Text("`active`, of an only member without `priority`; else none"),
    doc: "A member's part in a high-availability pair: the active one is in use while it is up, else the standby.",
    ..PLAIN
};
/// `[[service.member]] name`
pub static MEMBER_NAME: Key = Key {
    name: "name",
    tables: &[Table::Member],
    value: Value::Name(NAME_MAX),
    default: Default::Text("the role, else the endpoint"),
    doc: "What the member is called; unique in its service.",
    ..PLAIN
};
/// `priority`
pub static PRIORITY: Key = Key {
    name: "priority",
    tables: &[Table::Member],
    value: integer(0, u16::MAX as u32),
    default: Default::Text("0; of a standby 1"),
    doc: "Members with the lowest number that are up are in use, those of the next numbers while `members_up` are not reached.",
    ..PLAIN
};
/// `weight`
pub static WEIGHT: Key = Key {
    name: "weight",
    tables: &[Table::Member],
    value: integer(1, 256),
    default: Default::Is("1"),
    doc: "A member's share among members of equal priority.",
    ..PLAIN
};
/// `members_up`
pub static MEMBERS_UP: Key = Key {
    name: "members_up",
    tables: &[Table::Service],
    value: Value::Policy("members"),
    default: Default::Is("any"),
    doc: "How many of the service's members must be up: one, all, or at least so many.",
    ..PLAIN
};
/// `preempt`
pub static PREEMPT: Key = Key {
    name: "preempt",
    tables: &[Table::Service],
    value: Value::Flag,
    default: Default::Is("true"),
    doc: "Whether a member with a lower priority number is in use again as soon as it is up; `false` leaves what is in use until it falls.",
    ..PLAIN
};
/// `endpoint`
pub static ENDPOINT: Key = Key {
    name: "endpoint",
    tables: OF_MEMBER,
    value: Value::Host,
    doc: "The service's own address, the next hop of its probes.",
    is_read_by_kernel: true,
    ..PLAIN
};
/// `interface`
pub static INTERFACE: Key = Key {
    name: "interface",
    tables: OF_MEMBER,
    value: Value::Interface(INTERFACE_MAX),
    default: Default::Text("found from the endpoint's own route"),
    doc: "The only way out for its probes.",
    is_read_by_kernel: true,
};
/// `behind`, a list
pub static BEHIND: Key = Key {
    name: "behind",
    tables: OF_MEMBER,
    value: Value::Hosts,
    doc: "Addresses that are reached only through the service; each becomes a tracker.",
    is_read_by_kernel: true,
    ..PLAIN
};
/// `policy`
pub static POLICY: Key = Key {
    name: "policy",
    tables: OF_MEMBER,
    value: Value::Policy("trackers"),
    default: Default::Is("any"),
    doc: "How many of a member's trackers must be up: one, all, or at least so many.",
    ..PLAIN
};
/// `returns`
pub static RETURNS: Key = Key {
    name: "returns",
    tables: OF_MEMBER,
    value: Value::Interfaces(Some(abi::RETURNS_MAX)),
    default: Default::Text("the outgoing interface"),
    doc: "Interfaces on which a reply may arrive.",
    is_read_by_kernel: true,
};
/// `return_hop`
pub static RETURN_HOP: Key = Key {
    name: "return_hop",
    tables: OF_MEMBER,
    value: words!(ReturnHop),
    default: Default::Is("any"),
    doc: "Which MAC address may bring a reply on the member's own interface: any, or the endpoint's.",
    is_read_by_kernel: true,
};
/// `source`
pub static SOURCE: Key = Key {
    name: "source",
    tables: OF_MEMBER,
    value: Value::Host,
    default: Default::Text("the address that the kernel would take for this next hop"),
    doc: "The source address of probes of its family.",
    is_read_by_kernel: true,
};
/// `mark` of a member
pub static MEMBER_MARK: Key = Key {
    name: "mark",
    tables: OF_MEMBER,
    value: integer(0, u32::MAX),
    default: Default::Text("none"),
    doc: "The mark that a map of nftables has for the member (`[[action]]` of kind `nftables`).",
    ..PLAIN
};
/// `[[service.member]]`
pub static MEMBER: Key = Key {
    name: "member",
    tables: &[Table::Service],
    value: Value::Tables(Table::Member),
    default: Default::Text("one member, with the service's own keys"),
    doc: "The members of the long form: an active and a standby one, or any number of them.",
    ..PLAIN
};
/// `[[service.member.tracker]]`
pub static TRACKER: Key = Key {
    name: "tracker",
    tables: &[Table::Member],
    value: Value::Tables(Table::Tracker),
    default: Default::Text("none beside those of `behind`"),
    doc: "Trackers with settings of their own.",
    ..PLAIN
};
/// `behind` of a tracker
pub static TRACKER_BEHIND: Key = Key {
    name: "behind",
    tables: &[Table::Tracker],
    value: Value::Host,
    doc: "The address that is reached only through the service.",
    is_read_by_kernel: true,
    ..PLAIN
};

/// `probe`
pub static PROBE: Key = Key {
    name: "probe",
    tables: SETTING,
    value: words!(Probe),
    default: Default::Is("icmp"),
    doc: "The kind of probe.",
    is_read_by_kernel: true,
};
/// `port`
pub static PORT: Key = Key {
    name: "port",
    tables: SETTING,
    value: integer(1, u16::MAX as u32),
    default: Default::Text("862 of `stamp`; `tcp` and `udp` with `echo` need it"),
    doc: "The destination port of probes that have one.",
    is_read_by_kernel: true,
};
/// `protocol`
pub static PROTOCOL: Key = Key {
    name: "protocol",
    tables: SETTING,
    value: words!(Protocol),
    default: Default::Is("echo"),
    doc: "What the datagrams of `udp` are: those of an echo service (RFC 862) or of STAMP (RFC 8762).",
    is_read_by_kernel: true,
};
/// `interval`
pub static INTERVAL: Key = Key {
    name: "interval",
    tables: SETTING,
    value: duration(MS, HOUR),
    default: Default::Is("1s"),
    doc: "From one probe to the next.",
    ..PLAIN
};
/// `timeout`
pub static TIMEOUT: Key = Key {
    name: "timeout",
    tables: SETTING,
    value: duration(MS, Duration::from_secs(60)),
    default: Default::Is("500ms"),
    doc: "How long a reply may take; may exceed the interval.",
    is_read_by_kernel: true,
};
/// `fall`
pub static FALL: Key = Key {
    name: "fall",
    tables: SETTING,
    value: integer(1, 60),
    default: Default::Is("3"),
    doc: "So many losses in a row make it down.",
    is_read_by_kernel: true,
};
/// `rise`
pub static RISE: Key = Key {
    name: "rise",
    tables: SETTING,
    value: integer(1, 60),
    default: Default::Is("2"),
    doc: "So many replies in a row make it up.",
    is_read_by_kernel: true,
};
/// `payload`
pub static PAYLOAD: Key = Key {
    name: "payload",
    tables: SETTING,
    value: Value::Integer {
        least: PROBE_HEADER,
        most: PAYLOAD_MAX,
        why_least: Some("the probe's own mark, sequence, time and token take 32 bytes"),
    },
    default: Default::Text("32, 44 of `stamp`"),
    doc: "Bytes after the ICMP or UDP header; none of `tcp`; of `stamp` 44, or 48 and more with padding.",
    is_read_by_kernel: true,
};
/// `expect`
pub static EXPECT: Key = Key {
    name: "expect",
    tables: SETTING,
    value: words!(Expect),
    default: Default::Is("reply"),
    doc: "What the service must do with the probe: pass it, or stop it.",
    ..PLAIN
};
/// `flow`
pub static FLOW: Key = Key {
    name: "flow",
    tables: SETTING,
    value: words!(Flow),
    default: Default::Is("fixed"),
    doc: "One ICMP identifier or source port while it passes, or another for each probe.",
    is_read_by_kernel: true,
};
/// `dscp`
pub static DSCP: Key = Key {
    name: "dscp",
    tables: SETTING,
    value: Value::Code {
        most: 63,
        words: DSCP_NAMES,
    },
    default: Default::Is("0"),
    doc: "DSCP of the probes: which class of service they have on the way.",
    is_read_by_kernel: true,
};
/// `refused`
pub static REFUSED: Key = Key {
    name: "refused",
    tables: SETTING,
    value: words!(Refused),
    default: Default::Is("down"),
    doc: "What a refusal by the behind address means: the probe was stopped, or it passed.",
    is_read_by_kernel: true,
};
/// `hold_down`
pub static HOLD_DOWN: Key = Key {
    name: "hold_down",
    tables: SETTING,
    value: duration(Duration::ZERO, DAY),
    default: Default::Is("0s"),
    doc: "How long a change must last before it is reported.",
    ..PLAIN
};
/// `return_ttl`
pub static RETURN_TTL: Key = Key {
    name: "return_ttl",
    tables: SETTING,
    value: integer(1, u8::MAX as u32),
    default: Default::Text("any"),
    doc: "TTL (hop limit) with which a reply must arrive.",
    is_read_by_kernel: true,
};

/// `[[chain]] name`
pub static CHAIN_NAME: Key = Key {
    name: "name",
    tables: &[Table::Chain],
    value: Value::Name(NAME_MAX),
    doc: "What the chain is called; unique among chains.",
    ..PLAIN
};
/// `[[chain]] services`
pub static SERVICES: Key = Key {
    name: "services",
    tables: &[Table::Chain],
    value: Value::Services,
    doc: "Names of services, in the order of the chain.",
    ..PLAIN
};

/// `[[service]] after`
pub static AFTER: Key = Key {
    name: "after",
    tables: &[Table::Service],
    value: Value::Services,
    default: Default::Text("none"),
    doc: "Services that this one lies behind: while one of them is down, it is not known whether this one passes traffic.",
    ..PLAIN
};

/// `[steering] uplinks`
pub static UPLINKS: Key = Key {
    name: "uplinks",
    tables: &[Table::Steering],
    value: Value::Interfaces(None),
    default: Default::Text("none"),
    doc: "Interfaces on which remote probers' packets arrive.",
    is_read_by_kernel: true,
};
/// `[steering] sources`
pub static SOURCES: Key = Key {
    name: "sources",
    tables: &[Table::Steering],
    value: Value::Prefixes,
    default: Default::Text("none; `uplinks` need it"),
    doc: "Prefixes from which remote probers send.",
    is_read_by_kernel: true,
};
/// `[steering] mark`
pub static MARK: Key = Key {
    name: "mark",
    tables: &[Table::Steering],
    value: integer(1, u32::MAX),
    default: Default::Text("local programs' packets are not steered"),
    doc: "`SO_MARK` of local programs' tracker packets.",
    is_read_by_kernel: true,
};
/// `[steering] mark_mask`
pub static MARK_MASK: Key = Key {
    name: "mark_mask",
    tables: &[Table::Steering],
    value: integer(1, u32::MAX),
    default: Default::Text("as far as the highest bit of `mark`"),
    doc: "The bits of a packet's mark that are compared with `mark`.",
    is_read_by_kernel: true,
};

/// `[[action]]`
pub static ACTION: Key = Key {
    name: "action",
    tables: &[Table::Root],
    value: Value::Tables(Table::Action),
    default: Default::Text("none"),
    doc: "What follows from verdicts; done by `tracker act`, never by the daemon.",
    ..PLAIN
};
/// `[[action]] name`
pub static ACTION_NAME: Key = Key {
    name: "name",
    tables: &[Table::Action],
    value: Value::Name(NAME_MAX),
    default: Default::Text("kind and service, as in `route:fw-1`"),
    doc: "What the action is called; unique among actions.",
    ..PLAIN
};
/// `[[action]] service`
pub static ACTION_SERVICE: Key = Key {
    name: "service",
    tables: &[Table::Action],
    value: Value::Selector,
    default: Default::Text("must be given; of a `route` with `group`: that of the group"),
    doc: "The services whose verdicts count: a name, a pattern with `*`, `?` or `[...]`, or a list of these.",
    ..PLAIN
};
/// `[[action]] kind`
pub static ACTION_KIND: Key = Key {
    name: "kind",
    tables: &[Table::Action],
    value: words!(ActionType),
    doc: "What is done.",
    ..PLAIN
};
/// `[[action]] when_all_down`
pub static WHEN_ALL_DOWN: Key = Key {
    name: "when_all_down",
    tables: &[Table::Action],
    value: words!(WhenAllDown),
    default: Default::Is("keep"),
    doc: "What to do of a `nexthop-group` or a `route` while no member is up: leave it as it is, drop packets (`route`: remove it), \
          or send them by `bypass_via`.",
    ..PLAIN
};
/// `[[action]] bypass_via`
pub static BYPASS_VIA: Key = Key {
    name: "bypass_via",
    tables: &[Table::Action],
    value: Value::Host,
    default: Default::Text("none; `bypass` needs it"),
    doc: "The router on one of the hub's own networks that takes the traffic around the service.",
    ..PLAIN
};
/// `[[action]] at_start`
pub static AT_START: Key = Key {
    name: "at_start",
    tables: &[Table::Action],
    value: words!(AtStart),
    default: Default::Is("all"),
    doc: "What is made before any verdict is known, if nothing is there: a group or route of all members that are not known to be \
          down (`track-file`: the value of `up`), or nothing until a member is up (`track-file`: the value of `down`).",
    ..PLAIN
};
/// `[[action]] id`
pub static GROUP_ID: Key = Key {
    name: "id",
    tables: &[Table::Action],
    value: integer(1, i32::MAX as u32),
    default: Default::Text("none; `nexthop-group` needs it"),
    doc: "Id of the next-hop group in the kernel; no other program may have an object of this id.",
    ..PLAIN
};
/// `[[action]] resilient`
pub static RESILIENT: Key = Key {
    name: "resilient",
    tables: &[Table::Action],
    value: Value::Flag,
    default: Default::Is("false"),
    doc: "Whether only the flows of a member that goes move to others: a resilient next-hop group.",
    ..PLAIN
};
/// `[[action]] buckets`
pub static BUCKETS: Key = Key {
    name: "buckets",
    tables: &[Table::Action],
    value: integer(1, u16::MAX as u32),
    default: Default::Text("128 of a `resilient` group, 256 of `nftables`"),
    doc: "Into how many parts flows fall by their hash, of a `resilient` group and of `nftables`; some times the number of members.",
    ..PLAIN
};
/// `[[action]] idle_timer`
pub static IDLE_TIMER: Key = Key {
    name: "idle_timer",
    tables: &[Table::Action],
    value: duration(Duration::ZERO, DAY),
    default: Default::Is("2m"),
    doc: "How long a bucket of a `resilient` group must have no packet before it may move to a member that came back.",
    ..PLAIN
};
/// `[[action]] unbalanced_timer`
pub static UNBALANCED_TIMER: Key = Key {
    name: "unbalanced_timer",
    tables: &[Table::Action],
    value: duration(Duration::ZERO, DAY),
    default: Default::Is("0s"),
    doc: "How long a `resilient` group may be out of balance before buckets in use move too; `0s`: for ever.",
    ..PLAIN
};
/// `[[action]] prefix`
pub static PREFIX: Key = Key {
    name: "prefix",
    tables: &[Table::Action],
    value: Value::Prefix,
    default: Default::Text("none; `route` needs it"),
    doc: "The destination of the route.",
    ..PLAIN
};
/// `[[action]] group`
pub static ROUTE_GROUP: Key = Key {
    name: "group",
    tables: &[Table::Action],
    value: integer(1, i32::MAX as u32),
    default: Default::Text("the selected member"),
    doc: "Id of the `nexthop-group` by which the route leads; without it, the route leads by the selected member.",
    ..PLAIN
};
/// `[[action]] metric`
pub static METRIC: Key = Key {
    name: "metric",
    tables: &[Table::Action],
    value: integer(0, i32::MAX as u32),
    default: Default::Text("the kernel's: 0 of IPv4, 1024 of IPv6"),
    doc: "Metric of the route.",
    ..PLAIN
};
/// `[[action]] table`
pub static ROUTE_TABLE: Key = Key {
    name: "table",
    tables: &[Table::Action],
    value: integer(1, i32::MAX as u32),
    default: Default::Is("254"),
    doc: "Number of the routing table; 254 is `main`.",
    ..PLAIN
};
/// `[[action]] map`
pub static MAP: Key = Key {
    name: "map",
    tables: &[Table::Action],
    value: Value::MapName,
    default: Default::Text("none; `nftables` needs it"),
    doc: "The map of nftables whose elements are kept, one for each number below `buckets`: marks or addresses of members, by its type.",
    ..PLAIN
};
/// `[[action]] lease`
pub static LEASE: Key = Key {
    name: "lease",
    tables: &[Table::Action],
    value: duration(Duration::from_secs(3), DAY),
    default: Default::Text("elements stay"),
    doc: "How long elements of the map live unless `tracker act` renews them; the map needs `flags timeout`.",
    ..PLAIN
};
/// `[[action]] command`
pub static COMMAND: Key = Key {
    name: "command",
    tables: &[Table::Action],
    value: Value::Command,
    default: Default::Text("none; `hook` needs it"),
    doc: "The program, by its absolute path, and its arguments; no shell is involved.",
    ..PLAIN
};
/// `[[action]] user`
pub static USER: Key = Key {
    name: "user",
    tables: &[Table::Action],
    value: Value::Name(32),
    default: Default::Text("that of `tracker act`"),
    doc: "The user whose rights the program of a `hook` has.",
    ..PLAIN
};
/// `[[action]] timeout`
pub static ACTION_TIMEOUT: Key = Key {
    name: "timeout",
    tables: &[Table::Action],
    value: duration(Duration::from_millis(100), HOUR),
    default: Default::Is("10s"),
    doc: "How long a run of a `hook` may take before all of its processes are killed, and a request of a `webhook`.",
    ..PLAIN
};
/// `[[action]] retries`
pub static RETRIES: Key = Key {
    name: "retries",
    tables: &[Table::Action],
    value: integer(0, 100),
    default: Default::Is("3"),
    doc: "How often a run of a `hook` or a request of a `webhook` that failed is repeated, each time after a longer pause.",
    ..PLAIN
};
/// `[[action]] url`
pub static URL: Key = Key {
    name: "url",
    tables: &[Table::Action],
    value: Value::Url,
    default: Default::Text("none; `webhook` needs it"),
    doc: "Where events are sent by POST: `https`, by the system's authorities; `http` only to this machine itself.",
    ..PLAIN
};
/// `[[action]] headers_file`
pub static HEADERS_FILE: Key = Key {
    name: "headers_file",
    tables: &[Table::Action],
    value: Value::Path,
    default: Default::Text("none"),
    doc: "A file with header fields for each request, `Name: value` a line; read at start and reload.",
    ..PLAIN
};
/// `[[action]] path`
pub static TRACK_PATH: Key = Key {
    name: "path",
    tables: &[Table::Action],
    value: Value::Path,
    default: Default::Text("none; `track-file` needs it"),
    doc: "The file into which the number is written.",
    ..PLAIN
};
/// `[[action]] socket`
pub static FRR_SOCKET: Key = Key {
    name: "socket",
    tables: &[Table::Action],
    value: Value::Socket(FRR_SOCKET_MAX),
    default: Default::Text("none; `frr` needs it"),
    doc: "The socket of FRR's `bfdd --dplaneaddr unix:PATH`.",
    ..PLAIN
};
/// `[[action]] values`
pub static VALUES: Key = Key {
    name: "values",
    tables: &[Table::Action],
    value: Value::Tables(Table::Values),
    default: Default::Text("defaults"),
    doc: "The numbers that a `track-file` has.",
    ..PLAIN
};
/// `[action.values] up`
pub static VALUE_UP: Key = Key {
    name: "up",
    tables: &[Table::Values],
    value: Value::Signed {
        least: i32::MIN,
        most: i32::MAX,
    },
    default: Default::Is("0"),
    doc: "The number while one of the services is up.",
    ..PLAIN
};
/// `[action.values] down`
pub static VALUE_DOWN: Key = Key {
    name: "down",
    tables: &[Table::Values],
    value: Value::Signed {
        least: i32::MIN,
        most: i32::MAX,
    },
    default: Default::Is("-254"),
    doc: "The number while none is; keepalived adds it, times its own `weight`, to the priority, and -254 is a fault.",
    ..PLAIN
};

/// Units of sizes, the greatest first.
const SIZE_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// The bytes of a size such as `256MiB`, or of `0`.
pub fn parsed_size(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (unit, bytes) = SIZE_UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text.strip_suffix(unit)?.trim_end();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| is_number)?
        .checked_mul(*bytes)
}

/// A size in the greatest unit that makes it a whole number.
pub fn size_text(bytes: u64) -> String {
    let whole = |(_, unit): &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(*unit);
    match SIZE_UNITS.iter().find(whole) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Every key, in the order of the reference page.
pub static ALL: &[&Key] = &[
    &HUB,
    &DEFAULTS,
    &SERVICE,
    &CHAIN,
    &STEERING,
    &API,
    &HISTORY,
    &ACTION,
    &HUB_NAME,
    &INSTANCE,
    &SOCKET,
    &METRICS,
    &BPFFS,
    &STATE,
    &SOCKET_GROUP,
    &MODE,
    &ROOM,
    &FLAP_WINDOW,
    &SERVICE_NAME,
    &MEMBERS_UP,
    &PREEMPT,
    &MEMBER_NAME,
    &ROLE,
    &PRIORITY,
    &WEIGHT,
    &ENDPOINT,
    &INTERFACE,
    &BEHIND,
    &POLICY,
    &RETURNS,
    &RETURN_HOP,
    &SOURCE,
    &MEMBER_MARK,
    &MEMBER,
    &TRACKER,
    &TRACKER_BEHIND,
    &PROBE,
    &PORT,
    &PROTOCOL,
    &INTERVAL,
    &TIMEOUT,
    &FALL,
    &RISE,
    &PAYLOAD,
    &EXPECT,
    &FLOW,
    &DSCP,
    &REFUSED,
    &HOLD_DOWN,
    &RETURN_TTL,
    &CHAIN_NAME,
    &SERVICES,
    &AFTER,
    &UPLINKS,
    &SOURCES,
    &MARK,
    &MARK_MASK,
    &LISTEN,
    &TOKEN_FILE,
    &TLS,
    &WEB,
    &CERTIFICATE,
    &TLS_KEY,
    &HISTORY_SIZE,
    &ACTION_NAME,
    &ACTION_SERVICE,
    &ACTION_KIND,
    &WHEN_ALL_DOWN,
    &BYPASS_VIA,
    &AT_START,
    &GROUP_ID,
    &RESILIENT,
    &BUCKETS,
    &IDLE_TIMER,
    &UNBALANCED_TIMER,
    &PREFIX,
    &ROUTE_GROUP,
    &METRIC,
    &ROUTE_TABLE,
    &MAP,
    &LEASE,
    &COMMAND,
    &USER,
    &ACTION_TIMEOUT,
    &RETRIES,
    &URL,
    &HEADERS_FILE,
    &TRACK_PATH,
    &FRR_SOCKET,
    &VALUES,
    &VALUE_UP,
    &VALUE_DOWN,
];

/// What a STAMP packet takes, and one with padding at least, bytes.
pub const STAMP_PAYLOAD: u32 = stamp::LEN as u32;
/// A STAMP packet with the least padding, bytes: a TLV of its own.
pub const STAMP_PADDED: u32 = (stamp::LEN + stamp::TLV_LEN) as u32;

/// Sequence numbers tell probes in flight apart; the ranges of `timeout`, `interval` and `fall` keep within them.
const IN_FLIGHT_MAX: u128 = 65_000;
const _: () = {
    let longest = TIMEOUT
        .durations()
        .end()
        .as_nanos()
        .div_ceil(INTERVAL.durations().start().as_nanos());
    assert!(longest + *FALL.integers().end() as u128 <= IN_FLIGHT_MAX);
};

/// The keys of a table.
pub fn of(table: Table) -> impl Iterator<Item = &'static Key> {
    ALL.iter()
        .copied()
        .filter(move |key| key.tables.contains(&table))
}

/// The settings of trackers, which inner tables inherit from outer ones.
pub fn settings() -> impl Iterator<Item = &'static Key> {
    of(Table::Defaults)
}

impl Key {
    /// The range of whole numbers, empty of another type.
    pub const fn integers(&self) -> RangeInclusive<u32> {
        match self.value {
            Value::Integer { least, most, .. } => least..=most,
            Value::Code { most, .. } => 0..=most,
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The range of whole numbers with a sign, empty of another type.
    pub const fn signed(&self) -> RangeInclusive<i32> {
        match self.value {
            Value::Signed { least, most } => least..=most,
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The range of times, empty of another type.
    pub const fn durations(&self) -> RangeInclusive<Duration> {
        match self.value {
            Value::Duration { least, most } => least..=most,
            _ => MS..=Duration::ZERO,
        }
    }

    /// The range of sizes but 0, empty of another type.
    pub const fn sizes(&self) -> RangeInclusive<u64> {
        match self.value {
            Value::Size { least, most } => least..=most,
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The most bytes or elements of a name, a path or a list; 0 if the type has no such limit.
    pub const fn most(&self) -> usize {
        match self.value {
            Value::Name(most)
            | Value::Instance(most)
            | Value::Socket(most)
            | Value::Interface(most)
            | Value::Interfaces(Some(most)) => most,
            _ => 0,
        }
    }

    /// The default as the file would have it, without quotes; empty if there is none.
    pub const fn default_text(&self) -> &'static str {
        match self.default {
            Default::Is(text) => text,
            Default::Required | Default::Text(_) => "",
        }
    }

    /// The default of a whole number; 0 if there is none.
    pub fn default_integer(&self) -> u32 {
        self.default_text().parse().unwrap_or_default()
    }

    /// The default of a whole number with a sign; 0 if there is none.
    pub fn default_signed(&self) -> i32 {
        self.default_text().parse().unwrap_or_default()
    }

    /// The default of a flag; false if there is none.
    pub fn default_flag(&self) -> bool {
        self.default_text() == "true"
    }

    /// The default of a time; zero if there is none.
    pub fn default_duration(&self) -> Duration {
        humantime::parse_duration(self.default_text()).unwrap_or_default()
    }

    /// The default of a size; zero if there is none.
    pub fn default_size(&self) -> u64 {
        parsed_size(self.default_text()).unwrap_or_default()
    }

    /// The default among these words, which must be the key's.
    pub fn default_word<T: Copy>(&self, words: &[(&str, T)]) -> T {
        let text = self.default_text();
        let found = words.iter().find(|(word, _)| *word == text);
        found.unwrap_or(&words[0]).1
    }

    /// Whether it says something only of a service with more than one member.
    pub fn is_of_several(&self) -> bool {
        self.name == MEMBERS_UP.name || self.name == PREEMPT.name
    }

    /// Whether inner tables inherit it.
    pub fn is_setting(&self) -> bool {
        self.tables.contains(&Table::Defaults)
    }

    /// Its name as error texts quote it.
    pub fn quoted(&self) -> String {
        format!("`{}`", self.name)
    }

    /// What stands for its value in usage texts; `None` of tables.
    pub fn placeholder(&self) -> Option<String> {
        Some(match self.value {
            Value::Integer { .. } | Value::Signed { .. } => "N".to_owned(),
            Value::Code { .. } => "N|NAME".to_owned(),
            Value::Duration { .. } => "D".to_owned(),
            Value::Size { .. } => "SIZE".to_owned(),
            Value::Word(words) => words().join("|"),
            Value::Policy(_) => "any|all|N".to_owned(),
            Value::Name(_) | Value::Instance(_) | Value::Services | Value::Selector => {
                "NAME".to_owned()
            }
            Value::MapName => "FAMILY TABLE MAP".to_owned(),
            Value::Url => "URL".to_owned(),
            Value::Command => "PROGRAM".to_owned(),
            Value::Flag => "true|false".to_owned(),
            Value::Path | Value::Socket(_) => "PATH".to_owned(),
            Value::SocketAddress => "ADDRESS:PORT".to_owned(),
            Value::Host | Value::Hosts => "IP".to_owned(),
            Value::Interface(_) | Value::Interfaces(_) => "IF".to_owned(),
            Value::Prefix | Value::Prefixes => "PREFIX".to_owned(),
            Value::Tables(_) => return None,
        })
    }

    /// Whether its value is a list.
    pub const fn is_list(&self) -> bool {
        matches!(
            self.value,
            Value::Hosts
                | Value::Interfaces(_)
                | Value::Prefixes
                | Value::Services
                | Value::Command
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_in_each_table() {
        for table in Table::ALL {
            let mut names: Vec<_> = of(table).map(|key| key.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", table.title());
            assert!(count > 0, "{}", table.title());
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1KiB", 1 << 10),
            ("256MiB", 1 << 28),
            ("3GiB", 3 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parsed_size(text), Some(bytes), "{text}");
            assert_eq!(size_text(bytes), text);
        }
        for bad in [
            "",
            "MiB",
            "1",
            "1MB",
            "1.5GiB",
            "-1MiB",
            "+1MiB",
            "1mib",
            "99999999999TiB",
            "1MiB ",
        ] {
            assert_eq!(parsed_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn defaults_are_values_of_their_keys() {
        for key in ALL {
            assert!(key.doc.ends_with('.'), "{}", key.name);
            let Default::Is(text) = key.default else {
                continue;
            };
            let is_value = match key.value {
                Value::Integer { .. } | Value::Code { .. } => {
                    text.parse().is_ok_and(|n| key.integers().contains(&n))
                }
                Value::Signed { .. } => text.parse().is_ok_and(|n| key.signed().contains(&n)),
                Value::Duration { .. } => humantime::parse_duration(text)
                    .is_ok_and(|duration| key.durations().contains(&duration)),
                Value::Size { .. } => {
                    parsed_size(text).is_some_and(|size| key.sizes().contains(&size))
                }
                Value::Word(words) => words().contains(&text),
                Value::Policy(_) => text == "any",
                Value::Flag => matches!(text, "true" | "false"),
                Value::Path => text.starts_with('/'),
                Value::Instance(most) => (1..=most).contains(&text.len()),
                _ => false,
            };
            assert!(is_value, "{} = {text}", key.name);
        }
    }
}

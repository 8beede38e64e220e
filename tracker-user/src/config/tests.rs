use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

/// The example of the product contract, less its comments.
const CONTRACT: &str = r#"[hub]
name = "hub-1"
instance = "default"
socket = "/run/tracker/default.sock"
metrics = "127.0.0.1:9469"
bpffs = "/sys/fs/bpf"
mode = "auto"

[defaults]
probe = "icmp"
interval = "1s"
timeout = "500ms"
fall = 3
rise = 2
payload = 32
expect = "reply"
flow = "fixed"
refused = "down"
hold_down = "0s"

[[service]]
name = "fw-1"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.20.0.9", "2001:db8:20::9"]
policy = "any"
returns = ["eth1"]
source = "10.9.0.1"
interval = "100ms"

[[service]]
name = "fw-pair"
[[service.member]]
role = "active"
endpoint = "10.9.1.2"
interface = "eth2"
behind = ["10.20.1.9"]
[[service.member]]
role = "standby"
endpoint = "10.9.2.2"
interface = "eth3"
[[service.member.tracker]]
behind = "10.20.2.9"
probe = "tcp"
port = 443

[[chain]]
name = "internet"
services = ["fw-1", "fw-pair"]

[steering]
uplinks = ["eth0"]
sources = ["192.0.2.0/24"]
mark = 0x7472
mark_mask = 0xffff
"#;

/// What every short case below builds on: a valid service of five lines.
const SERVICE: &str = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.2\"\n\
                       interface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(text, Path::new("hub.toml"))
}

fn valid(text: &str) -> Config {
    read(text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
}

/// The one problem of a configuration.
fn problem(text: &str) -> String {
    let error = read(text).expect_err(text);
    let printed = error.to_string();
    assert_eq!(error.problems().len(), 1, "{printed}");
    assert!(!printed.contains('\n'), "{printed}");
    printed
}

fn tracker(behind: &str) -> Tracker {
    Tracker {
        behind: behind.parse().unwrap(),
        probe: Probe::Icmp,
        port: None,
        protocol: Protocol::Echo,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        fall: 3,
        rise: 2,
        payload: 32,
        expect: Expect::Reply,
        flow: Flow::Fixed,
        refused: Refused::Down,
        hold_down: Duration::ZERO,
        dscp: 0,
        return_ttl: None,
    }
}

#[test]
fn contract_example_is_valid() {
    let slow = |behind| Tracker {
        interval: Duration::from_millis(100),
        ..tracker(behind)
    };
    let config = valid(CONTRACT);
    let expected = Config {
        hub: Hub {
            name: "hub-1".to_owned(),
            instance: "default".to_owned(),
            socket: "/run/tracker/default.sock".into(),
            socket_group: None,
            metrics: Some("127.0.0.1:9469".parse().unwrap()),
            bpffs: "/sys/fs/bpf".into(),
            state: "/var/lib/tracker/default".into(),
            mode: ModeChoice::Auto,
            room: 1024,
            flap_window: Duration::from_secs(600),
        },
        history_size: 256 << 20,
        actions: Vec::new(),
        services: vec![
            Service {
                name: "fw-1".to_owned(),
                owner: Owner::File,
                after: Vec::new(),
                members_up: Policy::Any,
                preempt: true,
                members: vec![Arc::new(Member {
                    name: "active".into(),
                    role: Some(Role::Active),
                    priority: 0,
                    weight: 1,
                    endpoint: "10.9.0.2".parse().unwrap(),
                    interface: Some("eth1".to_owned()),
                    source: Some("10.9.0.1".parse().unwrap()),
                    returns: vec!["eth1".to_owned()],
                    return_hop: ReturnHop::Any,
                    policy: Policy::Any,
                    mark: None,
                    trackers: vec![slow("10.20.0.9"), slow("2001:db8:20::9")],
                })],
            },
            Service {
                name: "fw-pair".to_owned(),
                owner: Owner::File,
                after: Vec::new(),
                members_up: Policy::Any,
                preempt: true,
                members: vec![
                    Arc::new(Member {
                        name: "active".into(),
                        role: Some(Role::Active),
                        priority: 0,
                        weight: 1,
                        endpoint: "10.9.1.2".parse().unwrap(),
                        interface: Some("eth2".to_owned()),
                        source: None,
                        returns: vec![],
                        return_hop: ReturnHop::Any,
                        policy: Policy::Any,
                        mark: None,
                        trackers: vec![tracker("10.20.1.9")],
                    }),
                    Arc::new(Member {
                        name: "standby".into(),
                        role: Some(Role::Standby),
                        priority: 1,
                        weight: 1,
                        endpoint: "10.9.2.2".parse().unwrap(),
                        interface: Some("eth3".to_owned()),
                        source: None,
                        returns: vec![],
                        return_hop: ReturnHop::Any,
                        policy: Policy::Any,
                        mark: None,
                        trackers: vec![Tracker {
                            probe: Probe::Tcp,
                            port: Some(443),
                            payload: 0,
                            ..tracker("10.20.2.9")
                        }],
                    }),
                ],
            },
        ],
        chains: vec![Chain {
            name: "internet".to_owned(),
            services: vec!["fw-1".to_owned(), "fw-pair".to_owned()],
        }],
        steering: Some(Steering {
            uplinks: vec!["eth0".to_owned()],
            sources: vec!["192.0.2.0/24".parse().unwrap()],
            mark: Some(0x7472),
            mark_mask: 0xffff,
        }),
        api: Api::default(),
        defaults: config.defaults.clone(),
    };
    assert_eq!(config, expected);
    assert_eq!(config.tracker_count(), 4);
}

#[test]
fn nothing_is_required_of_a_file() {
    let config = valid("");
    assert!(config.services.is_empty() && config.chains.is_empty());
    assert_eq!(config.hub.instance, "default");
    assert_eq!(config.hub.socket, Path::new("/run/tracker/default.sock"));
    assert_eq!(config.hub.bpffs, Path::new("/sys/fs/bpf"));
    assert_eq!(config.hub.metrics, None);
    assert!(!config.hub.name.is_empty());
    let config = valid("[hub]\ninstance = \"blue\"\n");
    assert_eq!(config.hub.socket, Path::new("/run/tracker/blue.sock"));
}

#[test]
fn inner_values_win_over_outer_ones() {
    let config = valid(
        r#"
[defaults]
interval = "10ms"
fall = 5
rise = 4
payload = 100
[[service]]
name = "pair"
fall = 6
rise = 5
payload = 101
policy = "all"
interface = "eth1"
returns = ["eth1", "eth9"]
source = "10.9.0.1"
[[service.member]]
role = "standby"
endpoint = "10.9.0.2"
behind = ["10.20.0.9"]
rise = 6
payload = 102
[[service.member.tracker]]
behind = "10.20.0.10"
payload = 103
[[service.member]]
role = "active"
endpoint = "10.9.0.3"
interface = "eth2"
returns = ["eth2"]
source = "10.9.0.7"
policy = 1
behind = ["10.20.0.9"]
"#,
    );
    let [standby, active] = config.services[0].members.as_slice() else {
        panic!("{config:?}");
    };
    assert_eq!(
        (standby.role, active.role),
        (Some(Role::Standby), Some(Role::Active))
    );
    let seen: Vec<_> = standby
        .trackers
        .iter()
        .map(|tracker| {
            (
                tracker.interval.as_millis(),
                tracker.fall,
                tracker.rise,
                tracker.payload,
            )
        })
        .collect();
    assert_eq!(seen, [(10, 6, 6, 102), (10, 6, 6, 103)]);
    assert_eq!(standby.interface.as_deref(), Some("eth1"));
    assert_eq!(standby.returns, ["eth1", "eth9"]);
    assert_eq!(standby.source, Some("10.9.0.1".parse().unwrap()));
    assert_eq!(standby.policy, Policy::All);
    assert_eq!(active.interface.as_deref(), Some("eth2"));
    assert_eq!(active.returns, ["eth2"]);
    assert_eq!(active.source, Some("10.9.0.7".parse().unwrap()));
    assert_eq!(active.policy, Policy::AtLeast(1));
    assert_eq!(active.trackers[0].rise, 5);
}

#[test]
fn an_inherited_port_is_for_those_that_have_ports() {
    let config = valid(&format!("[defaults]\nport = 443\n{SERVICE}"));
    assert_eq!(config.services[0].members[0].trackers[0].port, None);
    let error = problem(&format!("{SERVICE}port = 443\n"));
    assert!(
        error.starts_with("hub.toml:6: port = 443 but probe = \"icmp\""),
        "{error}"
    );
    let error = problem(&format!(
        "[defaults]\nport = 1\nprobe = \"icmp\"\n{SERVICE}"
    ));
    assert!(error.starts_with("hub.toml:2: "), "{error}");
    for probe in ["udp", "tcp"] {
        let error = problem(&format!("{SERVICE}probe = \"{probe}\"\n"));
        assert!(error.starts_with("hub.toml:6: "), "{error}");
        assert!(error.contains("needs `port`"), "{error}");
    }
}

/// Problems that one line added to [`SERVICE`], as its sixth, makes.
#[test]
fn each_bad_line_is_named_with_its_reason() {
    let cases = [
        (
            "intervall = \"1s\"",
            "unknown key `intervall` in [[service]] \"fw-1\"; did you mean `interval`?",
        ),
        ("iface = \"eth1\"", "did you mean `interface`?"),
        (
            "role = \"active\"",
            "(`role` belongs in a [[service.member]])",
        ),
        ("zzz = 1", "the nearest known key is `"),
        (
            "interval = \"0ms\"",
            "interval = \"0ms\" in [[service]] \"fw-1\": out of range; give 1ms to 1h",
        ),
        ("interval = \"3601s\"", "out of range; give 1ms to 1h"),
        ("timeout = \"61s\"", "out of range; give 1ms to 1m"),
        ("timeout = \"999us\"", "out of range; give 1ms to 1m"),
        (
            "interval = 1",
            "must be a duration in quotes with its unit, such as \"100ms\", not a whole number",
        ),
        (
            "interval = \"fast\"",
            "interval = \"fast\" in [[service]] \"fw-1\": not a duration",
        ),
        ("hold_down = \"25h\"", "out of range; give 0s to 1day"),
        ("dscp = 64", "give a whole number from 0 to 63"),
        ("dscp = -1", "give a whole number from 0 to 63"),
        (
            "dscp = \"gold\"",
            "not a name of a value; give 0 to 63, or one of df, le, cs1",
        ),
        ("dscp = true", "a whole number from 0 to 63"),
        ("return_ttl = 0", "give a whole number from 1 to 255"),
        ("fall = 0", "give a whole number from 1 to 60"),
        ("fall = 61", "give a whole number from 1 to 60"),
        ("rise = -1", "give a whole number from 1 to 60"),
        (
            "rise = \"2\"",
            "must be a whole number from 1 to 60, not a string",
        ),
        (
            "rise = 99999999999999999999",
            "give a whole number from 1 to 60",
        ),
        (
            "payload = 31",
            "too small: the probe's own mark, sequence, time and token take 32 bytes",
        ),
        ("payload = 65508", "out of range"),
        ("probe = \"ping\"", "not one of \"icmp\", \"udp\", \"tcp\""),
        ("protocol = \"twamp\"", "not one of \"echo\", \"stamp\""),
        (
            "probe = 1",
            "must be one of \"icmp\", \"udp\", \"tcp\", not a whole number",
        ),
        ("expect = \"nothing\"", "not one of \"reply\", \"silence\""),
        ("flow = \"random\"", "not one of \"fixed\", \"rotate\""),
        ("refused = \"yes\"", "not one of \"down\", \"up\""),
        (
            "policy = \"most\"",
            "not a policy; give \"any\", \"all\" or a number of trackers from 1 to 1",
        ),
        ("policy = 2", "more than the 1 trackers of"),
        ("policy = 0", "out of range"),
        ("policy = true", "not a boolean"),
        ("returns = []", "an empty list"),
        (
            "return_hop = \"gateway\"",
            "not one of \"any\", \"endpoint\"",
        ),
        (
            "returns = \"eth1\"",
            "must be a list of interface names, not a string",
        ),
        ("returns = [\"eth1\", \"eth1\"]", "already in the list"),
        (
            "returns = [\"a\", \"b\", \"c\", \"d\", \"e\"]",
            "on 4 interfaces at most",
        ),
        (
            "returns = [\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]",
            "longer than the 127 bytes",
        ),
        ("source = \"224.0.0.1\"", "a multicast address"),
        (
            "source = \"2001:db8::1\"",
            "no behind address is of its family",
        ),
        ("port = 0", "out of range"),
        ("port = 70000", "out of range"),
        ("endpoint = \"10.9.0.3\"", "not valid TOML"),
        ("oops", "not valid TOML"),
        ("member = []", "the short form cannot be mixed"),
        (
            "member = 3",
            "`member` must be a list of tables, not a whole number; write each as [[service.member]]",
        ),
        (
            "probe = \"icmp\"\nflow = \"rotate\"\nrise = 0",
            "give a whole number from 1 to 60",
        ),
    ];
    for (line, expected) in cases {
        let error = read(&format!("{SERVICE}{line}\n")).expect_err(line);
        let first = error.to_string();
        assert!(first.contains(expected), "{line}: {first}");
        let at = match line {
            // Found wrong where the short form's keys are.
            "member = []" => vec![1, 3, 5],
            "member = 3" => vec![1, 3, 5, 6],
            "probe = \"icmp\"\nflow = \"rotate\"\nrise = 0" => vec![8],
            _ => vec![6],
        };
        let lines: Vec<_> = error.problems().iter().filter_map(Problem::line).collect();
        assert_eq!(lines, at, "{line}: {first}");
        for printed in first.lines() {
            assert!(printed.starts_with("hub.toml:"), "{printed}");
        }
    }
}

/// Problems of one of the service's own lines.
#[test]
fn each_bad_value_is_named_with_its_reason() {
    let cases = [
        (
            "\"10.9.0.2\"",
            "\"10.9.0.256\"",
            3,
            "not an IP address; give an IPv4 or IPv6",
        ),
        (
            "\"10.9.0.2\"",
            "\"10.9.0.2/24\"",
            3,
            "without a prefix length",
        ),
        (
            "\"10.9.0.2\"",
            "\"fe80::1%eth1\"",
            3,
            "name the interface by `interface`",
        ),
        (
            "\"10.9.0.2\"",
            "10",
            3,
            "must be an address in quotes, not a whole number",
        ),
        ("\"10.9.0.2\"", "\"0.0.0.0\"", 3, "the unspecified address"),
        ("\"10.9.0.2\"", "\"::\"", 3, "the unspecified address"),
        (
            "\"10.9.0.2\"",
            "\"255.255.255.255\"",
            3,
            "the broadcast address",
        ),
        ("\"10.9.0.2\"", "\"127.0.0.1\"", 3, "a loopback address"),
        ("\"10.9.0.2\"", "\"::1\"", 3, "a loopback address"),
        ("\"10.9.0.2\"", "\"ff02::1\"", 3, "a multicast address"),
        (
            "\"10.9.0.2\"",
            "\"::ffff:10.9.0.2\"",
            3,
            "an IPv4 address written as IPv6",
        ),
        ("endpoint = \"10.9.0.2\"\n", "", 1, "missing key `endpoint`"),
        ("behind = [\"10.20.0.9\"]\n", "", 1, "missing key `behind`"),
        (
            "name = \"fw-1\"\n",
            "",
            1,
            "missing key `name` in [[service]] 1",
        ),
        ("[\"10.20.0.9\"]", "[]", 5, "an empty list"),
        (
            "[\"10.20.0.9\"]",
            "\"10.20.0.9\"",
            5,
            "must be a list of addresses",
        ),
        (
            "[\"10.20.0.9\"]",
            "[\"10.20.0.9\",\n\"224.1.1.1\"]",
            6,
            "behind = \"224.1.1.1\" in",
        ),
        (
            "\"10.20.0.9\"",
            "\"10.9.0.2\"",
            5,
            "the endpoint's own address answers without",
        ),
        (
            "\"10.20.0.9\"",
            "\"10.20.0.9\", \"10.20.0.9\"",
            5,
            "line 5 has the same tracker",
        ),
        ("\"fw-1\"", "\"\"", 2, "an empty name"),
        (
            "\"fw-1\"",
            "\"fw 1\"",
            2,
            "no spaces, control characters or '/'",
        ),
        (
            "\"fw-1\"",
            "\"fw/1\"",
            2,
            "no spaces, control characters or '/'",
        ),
        (
            "\"fw-1\"",
            "\"fw\\u001b1\"",
            2,
            "no spaces, control characters or '/'",
        ),
        ("\"fw-1\"", "7", 2, "must be a name, not a whole number"),
        (
            "\"eth1\"",
            "\"eth 1\"",
            4,
            "an interface name has no spaces",
        ),
        ("\"eth1\"", "\"a/b\"", 4, "an interface name has no spaces"),
        ("\"eth1\"", "\"\"", 4, "not an interface name"),
        (
            "\"eth1\"",
            "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"",
            4,
            "longer than the 127 bytes",
        ),
    ];
    for (old, new, line, expected) in cases {
        assert!(SERVICE.contains(old));
        let error = problem(&SERVICE.replacen(old, new, 1));
        assert!(
            error.starts_with(&format!("hub.toml:{line}: ")),
            "{new}: {error}"
        );
        assert!(error.contains(expected), "{new}: {error}");
    }
    let text = SERVICE.replace("10.9.0.2", "fe80::2");
    assert!(read(&text).is_ok());
    let error = problem(&text.replace("interface = \"eth1\"\n", ""));
    assert!(
        error.contains("is link-local") && error.contains("hub.toml:3:"),
        "{error}"
    );
}

#[test]
fn the_hub_is_checked() {
    let cases = [
        (
            "[hub]\ninstance = \"../x\"",
            2,
            "not usable as a directory name",
        ),
        (
            "[hub]\ninstance = \"\"",
            2,
            "not usable as a directory name",
        ),
        (
            "[hub]\ninstance = \"a.b\"",
            2,
            "not usable as a directory name",
        ),
        ("[hub]\nname = \"\"", 2, "an empty name"),
        ("[hub]\nsocket = \"run.sock\"", 2, "not an absolute path"),
        ("[hub]\nbpffs = \"bpf\"", 2, "not an absolute path"),
        (
            "[hub]\nmetrics = \"localhost\"",
            2,
            "not an address and port",
        ),
        (
            "[hub]\nmode = \"native\"",
            2,
            "not one of \"auto\", \"xdp-native\", \"xdp-generic\", \"tc\"",
        ),
        ("[hub]\nmodes = \"auto\"", 2, "did you mean `mode`?"),
        (
            "\n\n[hubs]\n",
            3,
            "unknown key `hubs` in the file; did you mean `hub`?",
        ),
        (
            "interval = \"1s\"",
            1,
            "(`interval` belongs in [defaults] or a [[service]])",
        ),
        (
            "hub = 3",
            1,
            "`hub` must be a table, not a whole number; write it as [hub]",
        ),
        ("[service]\nname = \"x\"", 1, "write each as [[service]]"),
        (
            "[defaults]\nbehind = [\"10.0.0.1\"]",
            2,
            "unknown key `behind` in [defaults]",
        ),
        (
            "[hub]\nname = \"a\"\nname = \"b\"",
            3,
            "not valid TOML: duplicate key",
        ),
        ("[hub", 1, "not valid TOML"),
    ];
    for (text, line, expected) in cases {
        let error = problem(text);
        assert!(
            error.starts_with(&format!("hub.toml:{line}: ")),
            "{text}: {error}"
        );
        assert!(error.contains(expected), "{text}: {error}");
    }
    let long = format!("[hub]\nsocket = \"/{}\"", "s".repeat(107));
    assert!(problem(&long).contains("longer than the 107 bytes"));
}

#[test]
fn pairs_are_checked() {
    let pair = |first: &str, second: &str, more: &str| {
        format!(
            "[[service]]\nname = \"p\"\n[[service.member]]\n{first}\nendpoint = \"10.9.1.2\"\nbehind = [\"10.20.1.9\"]\n\
             [[service.member]]\n{second}\nendpoint = \"10.9.2.2\"\nbehind = [\"10.20.1.9\"]\n{more}"
        )
    };
    let (active, standby) = ("role = \"active\"", "role = \"standby\"");
    assert!(read(&pair(active, standby, "")).is_ok());
    assert!(read(&pair(standby, active, "")).is_ok());
    let third = "[[service.member]]\nrole = \"standby\"\nendpoint = \"10.9.3.2\"\nbehind = [\"10.20.1.9\"]\n";
    let cases = [
        (
            pair(active, active, ""),
            "hub.toml:8: role = \"active\"",
            "line 4 has it already",
        ),
        (
            pair(active, "", ""),
            "hub.toml:7: missing key `role`",
            "add role = \"active\" or \"standby\"",
        ),
        (
            pair("role = \"backup\"", standby, ""),
            "hub.toml:4:",
            "not one of \"active\", \"standby\"",
        ),
        (
            pair(
                active,
                standby,
                "[[service.member.tracker]]\nprobe = \"icmp\"\n",
            ),
            "hub.toml:11:",
            "missing key `behind`",
        ),
        (
            pair(
                active,
                standby,
                "[[service.member.tracker]]\nbehind = \"10.20.1.9\"\ninterval = \"2s\"\n",
            ),
            "hub.toml:12:",
            "line 10 has the same tracker",
        ),
        (
            pair(active, standby, "policy = 2\n"),
            "hub.toml:11:",
            "more than the 1 trackers of [[service.member]] 2 of [[service]] \"p\"",
        ),
        (
            pair(active, standby, "trackers = []\n"),
            "hub.toml:11:",
            "did you mean `tracker`?",
        ),
        (
            pair(active, standby, "tracker = [1]\n"),
            "hub.toml:11:",
            "write each as [[service.member.tracker]]",
        ),
    ];
    for (text, start, expected) in cases {
        let error = problem(&text);
        assert!(error.starts_with(start), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let three = problem(&pair(active, standby, third));
    assert!(
        three.contains("line 8 has it already; a service has one active and one standby member, and members of a pool have"),
        "{three}"
    );
    let same = problem(&pair(active, standby, "").replace("10.9.2.2", "10.9.1.2"));
    assert!(same.contains("same endpoint and interface"), "{same}");
    let lone = "[[service]]\nname = \"p\"\n[[service.member]]\nrole = \"standby\"\nendpoint = \"10.9.1.2\"\nbehind = [\"10.20.1.9\"]\n";
    assert!(problem(lone).starts_with("hub.toml:4: role"));
    let lone = valid(&lone.replace("role = \"standby\"\n", ""));
    assert_eq!(lone.services[0].members[0].role, Some(Role::Active));
    let mixed = problem(&format!(
        "[[service]]\nname = \"p\"\nendpoint = \"10.9.0.2\"\n{}",
        "[[service.member]]\nendpoint = \"10.9.1.2\"\nbehind = [\"10.20.1.9\"]\n"
    ));
    assert!(
        mixed.starts_with("hub.toml:3: endpoint = \"10.9.0.2\""),
        "{mixed}"
    );
}

#[test]
fn trackers_that_differ_on_the_wire_are_not_duplicates() {
    let text = "[[service]]\nname = \"p\"\npolicy = 2\n[[service.member]]\nendpoint = \"10.9.1.2\"\n\
                behind = [\"10.20.1.9\"]\n[[service.member.tracker]]\nbehind = \"10.20.1.9\"\npayload = 1400\n";
    assert_eq!(valid(text).services[0].members[0].trackers.len(), 2);
}

#[test]
fn names_and_chains_are_checked() {
    let chain = |line: &str| format!("{SERVICE}[[chain]]\nname = \"c\"\n{line}\n");
    assert!(read(&chain("services = [\"fw-1\"]")).is_ok());
    let cases = [
        (
            chain("services = [\"fw-2\"]"),
            "hub.toml:8: services = \"fw-2\"",
            "did you mean \"fw-1\"?",
        ),
        (
            chain("services = [\"fw-1\", \"fw-1\"]"),
            "hub.toml:8:",
            "already in the list",
        ),
        (chain("services = []"), "hub.toml:8:", "an empty list"),
        (
            chain(""),
            "hub.toml:6:",
            "missing key `services` in [[chain]] \"c\"",
        ),
        (
            chain("services = [\"fw-1\"]\npolicy = 1"),
            "hub.toml:9:",
            "unknown key `policy` in [[chain]] \"c\"",
        ),
        (
            format!(
                "{}{}",
                chain("services = [\"fw-1\"]"),
                "[[chain]]\nname = \"c\"\nservices = [\"fw-1\"]\n"
            ),
            "hub.toml:10:",
            "the chain of line 7 has this name",
        ),
        (
            format!("{SERVICE}{SERVICE}"),
            "hub.toml:7: name = \"fw-1\"",
            "the service of line 2 has this name",
        ),
        (
            SERVICE.replace("fw-1", &"x".repeat(256)),
            "hub.toml:2: name = ",
            "longer than the 255 bytes a name can have",
        ),
    ];
    for (text, start, expected) in cases {
        let error = problem(&text);
        assert!(error.starts_with(start), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn steering_is_checked() {
    let both =
        valid("[steering]\nuplinks = [\"eth0\"]\nsources = [\"192.0.2.9\", \"2001:db8::/32\"]");
    let sources = both.steering.expect("steering").sources;
    let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["192.0.2.9/32", "2001:db8::/32"]);
    assert_eq!(
        valid("[steering]\nmark = 1")
            .steering
            .expect("steering")
            .mark,
        Some(1)
    );
    let cases = [
        (
            "[steering]\nuplinks = [\"eth0\"]",
            "hub.toml:1: missing key `sources`",
        ),
        (
            "[steering]\nsources = [\"192.0.2.0/24\"]",
            "hub.toml:1: neither `uplinks` nor `mark`",
        ),
        ("[steering]\nmark = 0", "hub.toml:2: mark = 0"),
        (
            "[steering]\nmark = 0x10001\nmark_mask = 0xffff",
            "hub.toml:3: mark_mask = 0xffff in [steering]: `mark` has bits outside it",
        ),
        (
            "[steering]\nmark_mask = 1\nuplinks = [\"eth0\"]\nsources = [\"192.0.2.0/24\"]",
            "hub.toml:2: mark_mask = 1 in [steering]: there is no `mark`",
        ),
        (
            "[steering]\nmark = 1\nsources = [\"x\"]",
            "hub.toml:3: sources = \"x\"",
        ),
        ("[steering]\nmarks = 1", "hub.toml:2: unknown key `marks`"),
        (
            "[steering]\nmark = 1\nsources = [\"192.0.2.0/24\"]",
            "hub.toml:3: sources = [\"192.0.2.0/24\"] in [steering]: there are no `uplinks`",
        ),
        (
            "[steering]\nuplinks = []\nsources = [\"192.0.2.0/24\"]",
            "hub.toml:2: uplinks = [] in [steering]: an empty list",
        ),
    ];
    for (text, expected) in cases {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// The tracker that these lines in [`SERVICE`] make.
fn with_lines(lines: &str) -> Tracker {
    valid(&format!("{SERVICE}{lines}")).services[0].members[0].trackers[0].clone()
}

#[test]
fn kinds_of_probes_have_payloads_and_ports_of_their_own() {
    let of = |lines: &str| {
        let tracker = with_lines(lines);
        (tracker.port, tracker.payload, tracker.wire_payload())
    };
    let (tcp, stamp) = (
        "probe = \"tcp\"\nport = 443\n",
        "probe = \"udp\"\nprotocol = \"stamp\"\n",
    );
    assert_eq!(of(tcp), (Some(443), 0, 20));
    assert_eq!(of(stamp), (Some(862), 44, 44));
    assert_eq!(
        of(&format!("{stamp}port = 863\npayload = 48\n")),
        (Some(863), 48, 48)
    );
    assert_eq!(of(&format!("{stamp}payload = 44\n")), (Some(862), 44, 44));
    // What is inherited is for others.
    let inherited = |defaults: &str, lines: &str| {
        let config = valid(&format!("[defaults]\n{defaults}\n{SERVICE}{lines}"));
        config.services[0].members[0].trackers[0].clone()
    };
    assert_eq!(inherited("payload = 1400", tcp).payload, 0);
    assert_eq!(inherited("payload = 32", stamp).payload, 44);
    assert_eq!(inherited("payload = 1400", stamp).payload, 1_400);
    assert_eq!(
        inherited("protocol = \"stamp\"", "").protocol,
        Protocol::Echo
    );
    assert_eq!(
        inherited("protocol = \"stamp\"", tcp).protocol,
        Protocol::Echo
    );
    assert_eq!(inherited("refused = \"up\"", tcp).refused, Refused::Up);
    let stamp_by_default = inherited("protocol = \"stamp\"", "probe = \"udp\"\n");
    assert_eq!(
        (stamp_by_default.protocol, stamp_by_default.port),
        (Protocol::Stamp, Some(862))
    );
}

#[test]
fn what_a_kind_of_probe_cannot_have_is_refused() {
    let (tcp, stamp) = (
        "probe = \"tcp\"\nport = 443\n",
        "probe = \"udp\"\nprotocol = \"stamp\"\n",
    );
    for (lines, expected) in [
        (
            format!("{tcp}payload = 32\n"),
            "8: payload = 32 but a SYN carries no data, and firewalls drop those that do; delete `payload`",
        ),
        (
            format!("{stamp}payload = 46\n"),
            "8: payload = 46 but a STAMP packet has 44 bytes, or 48 to 65507 with padding; give one of these or delete \
             `payload`",
        ),
        (
            format!("{tcp}protocol = \"stamp\"\n"),
            "8: protocol = \"stamp\" but probe = \"tcp\" has only one; delete `protocol` or set probe = \"udp\"",
        ),
        (
            "protocol = \"echo\"\n".to_owned(),
            "6: protocol = \"echo\" but probe = \"icmp\" has only one; delete `protocol` or set probe = \"udp\"",
        ),
        (
            format!("{tcp}interval = \"1ms\"\ntimeout = \"251ms\"\n"),
            "9: the timeout is longer than 250 intervals, and a SYN tells no more probes apart; give a shorter `timeout` or \
             a longer `interval`",
        ),
    ] {
        let error = problem(&format!("{SERVICE}{lines}"));
        assert!(
            error.starts_with(&format!("hub.toml:{expected}")),
            "{error}"
        );
    }
    with_lines(&format!("{tcp}interval = \"1ms\"\ntimeout = \"250ms\"\n"));
    with_lines("interval = \"1ms\"\ntimeout = \"251ms\"\n");
}

/// So many services that all ask one port of one address.
fn asking_one_port(count: usize, more: &str) -> String {
    (0..count)
        .map(|number| {
            let name = format!("\"fw-{number}\"");
            let tcp = format!("probe = \"tcp\"\nport = 443\n{more}\n");
            SERVICE.replace("\"fw-1\"", &name) + &tcp
        })
        .collect()
}

#[test]
fn more_tcp_trackers_than_can_be_told_apart_are_refused() {
    valid(&asking_one_port(2_048, ""));
    let more = asking_one_port(1, "flow = \"rotate\"").replace("fw-0", "rotating");
    let error = problem(&(asking_one_port(2_048, "") + &more));
    assert!(
        error.contains("more than 2048 trackers with probe \"tcp\" ask port 443 of 10.20.0.9"),
        "{error}"
    );
}

#[test]
fn an_unreadable_file_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "{}: cannot read the configuration: ",
            path.display()
        )),
        "{error}"
    );
    std::fs::write(&path, b"[hub]\nname = \"\xff\"\n").unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:2: not valid TOML: not UTF-8", path.display())),
        "{error}"
    );
    std::fs::write(&path, SERVICE).unwrap();
    assert_eq!(load(&path), parse(SERVICE, &path));
    let error = load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("larger than 16 MiB"), "{error}");
}

#[test]
fn a_class_of_service_has_a_number_or_a_name() {
    for (given, expected) in [
        ("0", 0),
        ("63", 63),
        ("\"ef\"", 46),
        ("\"cs6\"", 48),
        ("\"af41\"", 34),
    ] {
        let config = valid(&format!("{SERVICE}dscp = {given}\n"));
        assert_eq!(
            config.services[0].members[0].trackers[0].dscp, expected,
            "{given}"
        );
    }
    let inherited = valid(&format!("[defaults]\ndscp = \"cs6\"\n{SERVICE}"));
    assert_eq!(inherited.services[0].members[0].trackers[0].dscp, 48);
}

/// Words and values a configuration is made of, valid and not, to be put together at random.
fn fragment() -> impl Strategy<Value = String> {
    let keys = "name|endpoint|interface|behind|policy|returns|return_hop|source|member|role|tracker|probe|port|protocol|\
                interval|timeout|fall|rise|payload|expect|flow|dscp|refused|hold_down|return_ttl|services|uplinks|mark|x";
    const VALUES: &[&str] = &[
        "\"a\"",
        "\"10.0.0.1\"",
        "[\"10.0.0.1\"]",
        "3",
        "-1",
        "\"1s\"",
        "[]",
        "{}",
        "[{}]",
        "true",
        "1.5",
        "1979-05-27",
        "\"icmp\"",
        "\"active\"",
        "[[1]]",
        "\"\\u0000\"",
        "'''\nx\n'''",
        "[\n1,\n2]",
    ];
    let line =
        (keys, prop::sample::select(VALUES)).prop_map(|(key, value)| format!("{key} = {value}"));
    const HEADERS: &[&str] = &[
        "[hub]",
        "[defaults]",
        "[[service]]",
        "[[service.member]]",
        "[[service.member.tracker]]",
        "[[chain]]",
        "[steering]",
        "[service]",
        "[[hub]]",
    ];
    prop_oneof![
        6 => line,
        3 => prop::sample::select(HEADERS).prop_map(str::to_owned),
        1 => ".{0,20}",
    ]
}

proptest! {
    /// Whatever the text, there is a valid configuration or problems of one line each.
    #[test]
    fn no_text_panics_or_goes_unexplained(lines in prop::collection::vec(fragment(), 0..24)) {
        let text = lines.join("\n");
        match read(&text) {
            Ok(config) => {
                for member in config.services.iter().flat_map(|service| &service.members) {
                    prop_assert!(!member.trackers.is_empty());
                }
            }
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                let count = text.lines().count().max(1) + 1;
                for problem in error.problems() {
                    prop_assert!((1..=count).contains(&problem.line().unwrap()));
                    let printed = problem.to_string();
                    prop_assert!(!printed.contains(char::is_control), "{printed:?}");
                }
            }
        }
    }

    /// Every duration within the range is taken as written, every one outside is refused.
    #[test]
    fn intervals_are_taken_as_written(ms in 0u64..4_000_000) {
        let result = read(&format!("{SERVICE}interval = \"{ms}ms\"\n"));
        if (1..=3_600_000).contains(&ms) {
            let config = result.unwrap();
            prop_assert_eq!(config.services[0].members[0].trackers[0].interval, Duration::from_millis(ms));
        } else {
            prop_assert!(result.is_err());
        }
    }
}

/// A service of the API with the keys that each must have, and these.
fn requested(keys: Json) -> Result<Service, Vec<Invalid>> {
    let mut body = json!({"endpoint": "10.9.0.2", "behind": ["10.20.0.9"]});
    let object = body.as_object_mut().unwrap();
    object.extend(keys.as_object().unwrap().clone());
    super::requested(Some("fw-9"), &body, &valid("").defaults)
}

#[test]
fn a_service_of_the_api_is_as_in_the_file() {
    let file = "[defaults]\ninterval = \"20ms\"\nrise = 7\n[[service]]\nname = \"fw-9\"\nendpoint = \"10.9.0.2\"\n\
                interface = \"eth1\"\nbehind = [\"10.20.0.9\", \"2001:db8:20::9\"]\nsource = \"10.9.0.1\"\n\
                timeout = \"1s\"\nfall = 5\npayload = 64\nreturns = [\"eth1\", \"eth2\"]\npolicy = 2\n\
                expect = \"silence\"\nflow = \"rotate\"\ndscp = 46\nrefused = \"up\"\nhold_down = \"3s\"\n\
                return_hop = \"endpoint\"\nreturn_ttl = 63\n";
    let config = valid(file);
    let body = json!({
        "endpoint": "10.9.0.2",
        "interface": "eth1",
        "source": "10.9.0.1",
        "timeout": "1s",
        "fall": 5,
        "payload": 64,
        "returns": ["eth1", "eth2"],
        "policy": 2,
        "behind": ["10.20.0.9", "2001:db8:20::9"],
        "expect": "silence",
        "flow": "rotate",
        "dscp": "ef",
        "refused": "up",
        "hold_down": "3s",
        "return_hop": "endpoint",
        "return_ttl": 63,
    });
    let expected = Service {
        owner: Owner::Api,
        ..config.services[0].clone()
    };
    let given = super::requested(Some("fw-9"), &body, &config.defaults);
    assert_eq!(given.as_ref(), Ok(&expected));
    // With its name in the body, as in a list of services, it is the same.
    let mut named = body;
    named["name"] = json!("fw-9");
    for name in [None, Some("fw-9")] {
        assert_eq!(super::requested(name, &named, &config.defaults), given);
    }
    let least = requested(json!({})).unwrap();
    assert_eq!(least.members[0].trackers, [tracker("10.20.0.9")]);
}

#[test]
fn a_wrong_service_of_the_api_is_refused_in_the_words_of_its_keys() {
    let mixed = |setting: &str| {
        format!(
            "{setting} in the service: the short form cannot be mixed with [[service.member]]; move it into each [[service.member]]"
        )
    };
    let [behind, endpoint] = ["behind = [\"10.20.0.9\"]", "endpoint = \"10.9.0.2\""].map(mixed);
    let cases = [
        (
            json!({"interval": "0ms"}),
            vec![(
                "/interval",
                "interval = \"0ms\" in the service: out of range; give 1ms to 1h",
            )],
        ),
        (
            json!({"interval": "5", "fall": 0}),
            vec![
                (
                    "/fall",
                    "fall = 0 in the service: out of range; give a whole number from 1 to 60",
                ),
                (
                    "/interval",
                    "interval = \"5\" in the service: not a duration (time unit needed, for example 5sec or 5ms); give a \
                     duration in quotes with its unit, such as \"100ms\"",
                ),
            ],
        ),
        (
            json!({"name": "fw-8"}),
            vec![(
                "/name",
                "name = \"fw-8\" but the request's path names \"fw-9\"; leave the key out, or give the same name",
            )],
        ),
        (
            json!({"endpoint": "10.9.0.2/24"}),
            vec![(
                "/endpoint",
                "endpoint = \"10.9.0.2/24\" in the service: not an IP address; give an address alone, without a prefix length",
            )],
        ),
        (
            json!({"behind": ["10.20.0.9", "10.20.0.9"]}),
            vec![(
                "/behind/1",
                "behind = \"10.20.0.9\" in the service: /behind/0 has the same tracker in the same member; delete one",
            )],
        ),
        (
            json!({"behind": []}),
            vec![(
                "/behind",
                "behind = [] in the service: an empty list; give a list of addresses, such as [\"192.0.2.9\"] or leave it out",
            )],
        ),
        (
            json!({"endpoint": "fe80::2"}),
            vec![(
                "/endpoint",
                "endpoint fe80::2 is link-local, so its interface cannot be found from a route; add interface = \"NAME\" in \
                 the service",
            )],
        ),
        (
            json!({"port": 70_000}),
            vec![(
                "/port",
                "port = 70000 in the service: out of range; give a whole number from 1 to 65535",
            )],
        ),
        (
            json!({"port": 7, "probe": "icmp"}),
            vec![(
                "/port",
                "port = 7 but probe = \"icmp\" has no ports; delete `port` or set probe = \"udp\" or \"tcp\" in the service",
            )],
        ),
        (
            json!({"probe": "ping"}),
            vec![(
                "/probe",
                "probe = \"ping\" in the service: not one of \"icmp\", \"udp\", \"tcp\"",
            )],
        ),
        (
            json!({"policy": 2}),
            vec![(
                "/policy",
                "policy = 2 in the service: more than the 1 trackers of the service; give \"any\", \"all\" or a number of \
                 trackers from 1 to 1",
            )],
        ),
        (
            json!({"policy": "most"}),
            vec![(
                "/policy",
                "policy = \"most\" in the service: not a policy; give \"any\", \"all\" or a number of trackers from 1 to 1 \
                 without quotes",
            )],
        ),
        (
            json!({"interface": "an interface"}),
            vec![(
                "/interface",
                "interface = \"an interface\" in the service: an interface name has no spaces, control characters, '/' or ':'; \
                 give one that `ip link` shows",
            )],
        ),
        // What JSON has and TOML has not, and the other way round.
        (
            json!({"fall": null}),
            vec![("/fall", "null is not a value; leave the key out")],
        ),
        (
            json!({"fall": 1.0}),
            vec![(
                "/fall",
                "fall = 1.0 in the service: must be a whole number from 1 to 60, not a fraction",
            )],
        ),
        (
            json!({"fall": u64::MAX}),
            vec![(
                "/fall",
                "fall = 18446744073709551615 in the service: out of range; give a whole number from 1 to 60",
            )],
        ),
        // A key is never more than a key.
        (
            json!({"fall = 3\n[[service]]": 1}),
            vec![(
                "/fall = 3\n[[service]]",
                "unknown key `fall = 3\\n[[service]]` in the service; did you mean `fall`?",
            )],
        ),
        (
            json!({"fall~/": 1}),
            vec![(
                "/fall~0~1",
                "unknown key `fall~/` in the service; did you mean `fall`?",
            )],
        ),
        (
            json!({"nterval": "1s"}),
            vec![(
                "/nterval",
                "unknown key `nterval` in the service; did you mean `interval`?",
            )],
        ),
        (
            json!({"member": [{"endpoint": "10.9.0.2"}]}),
            vec![
                ("/behind", &behind),
                ("/endpoint", &endpoint),
                (
                    "/member/0/behind",
                    "missing key `behind` in [[service.member]] 1 of the service; add behind = [\"ADDRESS\"], an address that \
                     is reached only through the service",
                ),
            ],
        ),
    ];
    for (keys, expected) in cases {
        let invalid = requested(keys.clone()).expect_err(&keys.to_string());
        let found = invalid.iter();
        let found: Vec<_> = found
            .map(|invalid| (invalid.pointer.as_str(), invalid.problem.as_str()))
            .collect();
        assert_eq!(found, expected, "{keys}");
        // The key is the last name in the pointer.
        for Invalid { key, pointer, .. } in invalid {
            let key = key.replace('~', "~0").replace('/', "~1");
            assert!(pointer.contains(&format!("/{key}")), "{key} {pointer}");
        }
    }
    let defaults = valid("").defaults;
    for (name, quoted) in [("fw 9", "fw 9"), ("fw\n9\"", r#"fw\n9\""#)] {
        let body = json!({"endpoint": "10.9.0.2", "behind": ["10.20.0.9"]});
        let invalid = super::requested(Some(name), &body, &defaults).unwrap_err();
        let expected = format!(
            "name = \"{quoted}\" in the service: a name has no spaces, control characters or '/'; leave them out"
        );
        assert_eq!(invalid, [Invalid::at("/name".to_owned(), expected)]);
    }
    for body in [json!([]), json!("x"), json!(null), json!(1)] {
        let invalid = super::requested(Some("fw-9"), &body, &defaults).unwrap_err();
        assert!(
            invalid[0].problem.contains("must be a JSON object"),
            "{invalid:?}"
        );
    }
    let invalid = super::requested(None, &json!({}), &defaults).unwrap_err();
    let pointers: Vec<_> = invalid
        .iter()
        .map(|invalid| invalid.pointer.as_str())
        .collect();
    assert_eq!(pointers, ["/name", "/endpoint", "/behind"]);
}

/// A tracker that its kind of probe can have, in any of its settings.
fn any_tracker() -> impl Strategy<Value = Tracker> {
    let probe = prop_oneof![
        Just((Probe::Icmp, None, Protocol::Echo)),
        (1u16..).prop_map(|port| (Probe::Udp, Some(port), Protocol::Echo)),
        (1u16..).prop_map(|port| (Probe::Udp, Some(port), Protocol::Stamp)),
        (1u16..).prop_map(|port| (Probe::Tcp, Some(port), Protocol::Echo)),
    ];
    let times = (1u64..3_600_000, 1u64..60_000, 0u64..3_600_000);
    let counts = (1u8..=60, 1u8..=60, 44u16..1_400, 0u8..64);
    let words = (any::<[bool; 3]>(), prop::option::of(1u8..=255), 0u32..4);
    (probe, times, counts, words).prop_map(|(probe, times, counts, words)| {
        let (probe, port, protocol) = probe;
        let (interval, timeout, hold_down) = times;
        let (fall, rise, payload, dscp) = counts;
        // A STAMP packet has 44 bytes, or 48 and more.
        let payload = if payload < 48 { 44 } else { payload };
        let ([expect, flow, refused], return_ttl, behind) = words;
        Tracker {
            behind: Ipv4Addr::from(0x0a14_0000 + behind).into(),
            probe,
            port,
            protocol,
            interval: Duration::from_millis(interval),
            // A SYN tells no more than 250 intervals apart.
            timeout: Duration::from_millis(timeout.min(interval * 200)),
            fall,
            rise,
            payload: if probe == Probe::Tcp { 0 } else { payload },
            expect: if expect {
                Expect::Silence
            } else {
                Expect::Reply
            },
            flow: if flow { Flow::Rotate } else { Flow::Fixed },
            dscp,
            refused: if refused { Refused::Up } else { Refused::Down },
            hold_down: Duration::from_millis(hold_down),
            return_ttl,
        }
    })
}

/// A member of this number with some of these trackers.
fn any_member(number: u8) -> impl Strategy<Value = Member> {
    let trackers = prop_oneof![
        // Those of the short form, which differ in nothing but the address behind.
        any_tracker().prop_map(|tracker| vec![tracker]),
        (any_tracker(), 2u32..5).prop_map(|(tracker, count)| {
            let behind = (0..count).map(|at| Ipv4Addr::from(0x0a15_0000 + at).into());
            behind
                .map(|behind| Tracker {
                    behind,
                    ..tracker.clone()
                })
                .collect()
        }),
        prop::collection::vec(any_tracker(), 1..4),
    ];
    let text = |name: &'static str| prop::option::of(Just(name.to_owned()));
    let source = prop::option::of(Just("10.9.0.1".parse().unwrap()));
    let returns = prop::sample::subsequence(vec!["eth1".to_owned(), "eth2".to_owned()], 0..=2);
    let words = (any::<bool>(), 0usize..3);
    let rank = (any::<bool>(), any::<u16>(), 1u16..=256);
    (trackers, text("eth1"), source, returns, words, rank).prop_map(
        move |(trackers, interface, source, returns, (is_endpoint, policy), rank)| {
            let (is_named, priority, weight) = rank;
            let endpoint = Ipv4Addr::new(10, 9, number, 2).into();
            Member {
                name: match is_named {
                    true => format!("fw-{number}").into(),
                    false => default_name(None, endpoint),
                },
                role: None,
                priority,
                weight,
                endpoint,
                interface,
                source,
                returns,
                mark: is_endpoint.then_some(7),
                return_hop: if is_endpoint {
                    ReturnHop::Endpoint
                } else {
                    ReturnHop::Any
                },
                policy: match policy {
                    0 => Policy::Any,
                    1 => Policy::All,
                    _ => Policy::AtLeast(trackers.len() as u16),
                },
                trackers,
            }
        },
    )
}

/// Members, the first ones with these roles, the names that go with them, and the usual weight.
fn with_roles(mut members: Vec<Member>, roles: &[Role]) -> Vec<Member> {
    for (member, role) in members.iter_mut().zip(roles) {
        if member.name == default_name(None, member.endpoint) {
            member.name = default_name(Some(*role), member.endpoint);
            member.weight = 1;
        }
        (member.role, member.priority) = (Some(*role), role.priority());
    }
    members
}

/// A service with one member, a pair or a pool.
fn any_service() -> impl Strategy<Value = Service> {
    let members = (any_member(0), any_member(1), any_member(2), any_member(3));
    let shape = (1usize..=4, 0usize..=2, any::<bool>(), 0usize..4);
    (members, shape).prop_map(|(members, (count, roles, preempt, up))| {
        let (one, two, three, four) = members;
        let mut members = vec![one, two, three, four];
        members.truncate(count);
        let members = with_roles(members, &[Role::Active, Role::Standby][..roles]);
        Service {
            name: "fw-9".to_owned(),
            owner: Owner::Api,
            after: Vec::new(),
            members_up: match up {
                0 => Policy::Any,
                1 => Policy::All,
                up => Policy::AtLeast(up.min(members.len()) as u16),
            },
            preempt,
            members: members.into_iter().map(Arc::new).collect(),
        }
    })
}

proptest! {
    /// What is kept of a service makes the same one, whatever the file's [defaults] are then.
    #[test]
    fn a_service_survives_as_the_body_of_a_request(service in any_service()) {
        prop_assert_eq!(service.check(), Ok(()));
        let body = body(&service);
        let other = "[defaults]\nprobe = \"udp\"\nport = 9\ninterval = \"7s\"\ntimeout = \"6s\"\nfall = 9\nrise = 9\npayload = 99\n\
                     expect = \"silence\"\nflow = \"rotate\"\ndscp = 9\nrefused = \"up\"\nhold_down = \"9s\"\n";
        for defaults in ["", other] {
            let defaults = valid(defaults).defaults;
            let again = super::requested(None, &body, &defaults);
            // Random trackers may be the same, which no service can have.
            if let Err(invalid) = &again {
                let is_twice = |invalid: &Invalid| invalid.problem.contains("the same tracker");
                prop_assert!(invalid.iter().all(is_twice), "{invalid:?} {body}");
                continue;
            }
            prop_assert_eq!(again.as_ref(), Ok(&service), "{}", body);
        }
    }
}

/// A pool of members with these lines, on lines 4, 9, ... of the file; and lines of the service on line 3.
fn pool(service: &str, members: &[&str]) -> String {
    let mut text = format!("[[service]]\nname = \"p\"\n{service}\n");
    for (number, lines) in members.iter().enumerate() {
        text.push_str(&format!(
            "[[service.member]]\nendpoint = \"10.9.{number}.2\"\ninterface = \"eth{number}\"\nbehind = [\"10.20.{number}.9\"]\n{lines}\n"
        ));
    }
    text
}

#[test]
fn members_of_a_pool_have_names_priorities_and_weights() {
    let text = pool(
        "members_up = 2\npreempt = false",
        &["name = \"a\"\nweight = 256", "priority = 65535", ""],
    );
    let config = valid(&text);
    let service = &config.services[0];
    assert_eq!(
        (service.members_up, service.preempt, service.is_pool()),
        (Policy::AtLeast(2), false, true)
    );
    let ranks: Vec<_> = (service.members.iter())
        .map(|member| (&*member.name, member.role, member.priority, member.weight))
        .collect();
    assert_eq!(
        ranks,
        [
            ("a", None, 0, 256),
            ("10.9.1.2", None, 65_535, 1),
            ("10.9.2.2", None, 0, 1)
        ]
    );
    // A role is a priority, with names or without; a pair has roles alone.
    let mixed = pool(
        "members_up = \"all\"",
        &[
            "role = \"standby\"",
            "role = \"active\"\nname = \"x\"",
            "priority = 2",
        ],
    );
    let mixed = &valid(&mixed).services[0];
    let ranks: Vec<_> = (mixed.members.iter())
        .map(|member| (&*member.name, member.priority))
        .collect();
    assert_eq!(ranks, [("standby", 1), ("x", 0), ("10.9.2.2", 2)]);
    assert!(mixed.is_pool() && !mixed.is_pair());
    let pair = pool(
        "",
        &["role = \"standby\"\nname = \"b\"", "role = \"active\""],
    );
    assert!(valid(&pair).services[0].is_pair());
    // An only member has a role unless it has a priority.
    let lone = |lines: &str| {
        let config = valid(&pool("members_up = 1", &[lines]));
        let member = &config.services[0].members[0];
        (member.name.to_string(), member.role)
    };
    assert_eq!(lone(""), ("active".to_owned(), Some(Role::Active)));
    assert_eq!(lone("name = \"a\""), ("a".to_owned(), Some(Role::Active)));
    assert_eq!(lone("priority = 0"), ("10.9.0.2".to_owned(), None));
    // The endpoint is a name, in the form in which it is printed.
    let six = pool("", &["", ""]).replace("10.9.1.2", "2001:DB8::0:1");
    assert_eq!(&*valid(&six).services[0].members[1].name, "2001:db8::1");
}

#[test]
fn pools_are_checked() {
    let cases = [
        (
            pool("", &["name = \"a\"", "name = \"a\""]),
            "hub.toml:13: name = \"a\" in [[service.member]] 2 of [[service]] \"p\"",
            "the member of line 8 has this name; give each its own",
        ),
        (
            pool("", &["name = \"10.9.1.2\"", ""]),
            "hub.toml:9: a member without `name` is called by its endpoint, \"10.9.1.2\"",
            "the name of the member of line 8 too; give each its own name = \"NAME\" in [[service.member]] 2",
        ),
        (
            pool("", &["", ""]).replace("10.9.1.2", "10.9.0.2"),
            "hub.toml:9: a member without `name` is called by its endpoint, \"10.9.0.2\"",
            "the member of line 4 too",
        ),
        (
            pool("", &["name = \"x\"", "role = \"active\"", "priority = 1"]),
            "hub.toml:4: missing key `priority`",
            "add priority = N, because other members have roles",
        ),
        (
            pool(
                "",
                &["name = \"active\"\npriority = 3", "role = \"active\""],
            ),
            "hub.toml:10: a member without `name` is called by its role, \"active\"",
            "the member of line 8 too",
        ),
        (
            pool(
                "",
                &["role = \"active\"\npriority = 0", "role = \"standby\""],
            ),
            "hub.toml:9: priority = 0",
            "a role is a priority already: active is 0, standby is 1; delete one of the two",
        ),
        (
            pool("", &["name = \"a/b\"", ""]),
            "hub.toml:8: name = \"a/b\"",
            "no spaces, control characters or '/'",
        ),
        (
            pool("", &["priority = 65536", ""]),
            "hub.toml:8: priority = 65536",
            "give a whole number from 0 to 65535",
        ),
        (
            pool("", &["weight = 0", ""]),
            "hub.toml:8: weight = 0",
            "give a whole number from 1 to 256",
        ),
        (
            pool("", &["weight = 257", ""]),
            "hub.toml:8:",
            "give a whole number from 1 to 256",
        ),
        (
            pool("members_up = 3", &["", ""]),
            "hub.toml:3: members_up = 3 in [[service]] \"p\"",
            "more than the 2 members of [[service]] \"p\"; give \"any\", \"all\" or a number of members from 1 to 2",
        ),
        (
            pool("members_up = 0", &["", ""]),
            "hub.toml:3: members_up = 0",
            "out of range; give a whole number from 1 to",
        ),
        (
            pool("members_up = \"most\"", &["", ""]),
            "hub.toml:3: members_up = \"most\"",
            "not a policy; give \"any\", \"all\" or a number of members from 1 to 2",
        ),
        (
            pool("preempt = \"no\"", &["", ""]),
            "hub.toml:3: preempt = \"no\"",
            "must be true or false",
        ),
        (
            pool("weight = 2", &["", ""]),
            "hub.toml:3: unknown key `weight`",
            "(`weight` belongs in a [[service.member]])",
        ),
        (
            pool("", &["members_up = 2", ""]),
            "hub.toml:8: unknown key `members_up`",
            "(`members_up` belongs in a [[service]])",
        ),
        (
            format!("{SERVICE}members_up = 2\n"),
            "hub.toml:6: members_up = 2",
            "more than the 1 members of [[service]] \"fw-1\"",
        ),
    ];
    for (text, start, expected) in cases {
        let error = problem(&text);
        assert!(error.starts_with(start), "{error}\nnot {start}");
        assert!(error.contains(expected), "{error}\nnot {expected}");
    }
    let same = pool("", &["name = \"a\"", ""])
        .replace("10.9.1.2", "10.9.0.2")
        .replace("eth1", "eth0");
    let same = problem(&same);
    assert!(
        same.starts_with("hub.toml:9: same endpoint and interface as member \"a\""),
        "{same}"
    );
    // A request says where, too.
    let member = |name: &str, net: u8| json!({"name": name, "endpoint": format!("10.9.{net}.2"), "interface": "eth1", "behind": ["10.20.0.9"]});
    let body = json!({"member": [member("a", 0), member("b", 1), member("a", 2)], "members_up": 4});
    let invalid = super::requested(Some("p"), &body, &valid("").defaults).unwrap_err();
    let found: Vec<_> = (invalid.iter())
        .map(|invalid| (invalid.pointer.as_str(), invalid.key.as_str()))
        .collect();
    assert_eq!(
        found,
        [("/member/2/name", "name"), ("/members_up", "members_up")]
    );
    assert!(
        invalid[0]
            .problem
            .contains("the member of /member/0/name has this name"),
        "{invalid:?}"
    );
}

#[test]
fn a_pool_of_many_members_is_read_soon() {
    let text = |count: usize| {
        let member = |at: usize| {
            format!(
                "[[service.member]]\nname = \"fw-{at}\"\nendpoint = \"{}\"\nbehind = [\"10.20.0.9\"]\n",
                Ipv4Addr::from(0x0a1e_0000 + at as u32)
            )
        };
        let members: String = (0..count).map(member).collect();
        format!("[[service]]\nname = \"p\"\n{members}")
    };
    assert_eq!(valid(&text(5_000)).services[0].members.len(), 5_000);
    crate::growth::assert_linear("members", 2_000, |count| {
        let text = text(count);
        crate::growth::processor_time(|| parse(&text, Path::new("test.toml")).unwrap())
    });
}

#[test]
fn flap_window_is_checked() {
    let window = |text: &str| valid(text).hub.flap_window;
    assert_eq!(window(""), Duration::from_secs(600));
    assert_eq!(
        window("[hub]\nflap_window = \"1h\"\n"),
        Duration::from_secs(3600)
    );
    for bad in ["0s", "25h"] {
        let error = problem(&format!("[hub]\nflap_window = \"{bad}\"\n"));
        assert!(error.contains("out of range; give 1s to "), "{error}");
    }
}

#[test]
fn room_is_checked() {
    assert_eq!(valid("").hub.room, 1024);
    assert_eq!(valid("[hub]\nroom = 0\n").hub.room, 0);
    assert_eq!(valid("[hub]\nroom = 1_000_000\n").hub.room, 1_000_000);
    let error = problem("[hub]\nroom = 1000001\n");
    assert!(
        error.contains("give a whole number from 0 to 1000000"),
        "{error}"
    );
}

#[test]
fn a_mistake_that_many_trackers_inherit_is_told_once_and_soon() {
    let text = |count: usize| {
        let behind =
            (0..count as u32).map(|at| format!("\"{}\"", Ipv4Addr::from(0x0a14_0000 + at)));
        let behind: Vec<_> = behind.collect();
        format!(
            "[[service]]\nname = \"fw\"\nendpoint = \"10.9.0.2\"\nbehind = [{}]\nprobe = \"udp\"\n",
            behind.join(",\n")
        )
    };
    let error = parse(&text(3_000), Path::new("test.toml")).unwrap_err();
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    crate::growth::assert_linear("errors", 3_000, |count| {
        let text = text(count);
        crate::growth::processor_time(|| parse(&text, Path::new("test.toml")))
    });
}

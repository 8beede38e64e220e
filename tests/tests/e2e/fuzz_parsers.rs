//! What people, programs and earlier daemons hand to the parsers of the daemon and its command line: whatever it is, it is
//! taken as something that the daemon can work with, or refused in one line that says what is wrong.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use tracker_ebpf::rtt;
use tracker_ebpf::verdict::{Cause, Verdict};
use tracker_lab::random::{Random, Rounds, Tally};
use tracker_user::api::types::Status;
use tracker_user::cli::args::{Cli, Command, ServiceCommand};
use tracker_user::config::{
    self, Config, ConfigError, Invalid, ServiceOptions,
    keys::{Default, Value},
};
use tracker_user::desired::{
    diff::diff,
    model::{Desired, Used},
};
use tracker_user::state::events::{Event, EventKind, EventLog, Missed, Numbered};
use tracker_user::state::journal::{
    Record, SavedFlaps, SavedHeld, SavedMember, SavedService, SavedTracker, Snapshot,
};
use tracker_user::state::tree::{Stamp, StateTree};
use tracker_user::{
    api::{metrics, status},
    cli::table,
};

/// Inputs of one round.
const INPUTS: u64 = 200;
/// Pages of the book with configurations.
const BOOK: [&str; 3] = [
    include_str!("../../../docs/configuration.md"),
    include_str!("../../../docs/probes.md"),
    include_str!("../../../docs/steering.md"),
];
/// Every key that there is.
const EVERYTHING: &str = r#"[hub]
name = "hub-1"
instance = "default"
socket = "/run/tracker/default.sock"
socket_group = "adm"
metrics = "127.0.0.1:9469"
bpffs = "/sys/fs/bpf"
state = "/var/lib/tracker/default"
mode = "auto"
room = 16
flap_window = "10m"

[api]
listen = "192.0.2.1:9470"
token_file = "/etc/tracker/token"
tls = { certificate = "/etc/tracker/tls.crt", key = "/etc/tracker/tls.key" }
web = true
[history]
size = "64MiB"

[defaults]
probe = "icmp"
interval = "1s"
timeout = "500ms"
fall = 3
rise = 2
payload = 32
expect = "reply"
flow = "fixed"
dscp = "ef"
refused = "down"
hold_down = "0s"

[[service]]
name = "fw-1"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.20.0.9", "2001:db8:20::9"]
policy = 2
returns = ["eth1", "eth2"]
return_hop = "endpoint"
source = "10.9.0.1"
mark = 7
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
endpoint = "fe80::2"
interface = "eth3"
[[service.member.tracker]]
behind = "10.20.2.9"
probe = "udp"
port = 443
flow = "rotate"

[[service]]
name = "fw-pool"
members_up = 2
preempt = false
[[service.member]]
name = "a"
priority = 1
weight = 3
endpoint = "10.9.3.2"
interface = "eth4"
behind = ["10.20.3.9"]
[[service.member]]
endpoint = "10.9.4.2"
interface = "eth5"
behind = ["10.20.3.9"]

[[chain]]
name = "internet"
services = ["fw-1", "fw-pair"]

[steering]
uplinks = ["eth0"]
sources = ["192.0.2.0/24", "2001:db8::/32"]
mark = 0x7472

[[action]]
name = "group"
service = ["fw-*", "fw-pair"]
kind = "nexthop-group"
id = 4000
resilient = true
buckets = 64
idle_timer = "30s"
unbalanced_timer = "5m"
when_all_down = "bypass"
bypass_via = "192.0.2.1"
at_start = "none"

[[action]]
kind = "route"
prefix = "10.50.0.0/16"
group = 4000
metric = 10
table = 100

[[action]]
service = "fw-1"
kind = "nftables"
map = "inet steer members"
buckets = 64
lease = "30s"

[[action]]
service = "fw-1"
kind = "hook"
command = ["/bin/true", "x"]
user = "nobody"
timeout = "5s"
retries = 1

[[action]]
service = "fw-1"
kind = "webhook"
url = "https://example.net/x"
headers_file = "/etc/tracker/headers"

[[action]]
service = "fw-1"
kind = "track-file"
path = "/run/tracker-act/fw-1"
values = { up = 0, down = -50 }
"#;
/// Values that a config or a request may have, in TOML and as they are written in JSON.
const VALUES: [&str; 36] = [
    "0",
    "1",
    "-1",
    "2",
    "60",
    "61",
    "65507",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e400",
    "0x7472",
    "nan",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"1ms\"",
    "\"1h\"",
    "\"18446744073709551615s\"",
    "\"1ns\"",
    "\"any\"",
    "\"silence\"",
    "\"standby\"",
    "\"10.9.0.2\"",
    "\"::ffff:10.9.0.2\"",
    "\"0.0.0.0\"",
    "\"fe80::1%eth0\"",
    "\"10.0.0.0/33\"",
    "\"\\u0000\"",
    "\"\\u202e\\n\"",
    "1979-05-27T07:32:00Z",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "null",
    "\"xdp-native\"",
];

/// The configurations of the book, and one with all keys.
fn corpus() -> Vec<&'static str> {
    let blocks = BOOK.iter().flat_map(|page| page.split("```toml\n").skip(1));
    let mut corpus: Vec<&str> = blocks
        .filter_map(|block| block.split("```").next())
        .collect();
    assert!(corpus.len() >= 8, "the book has configurations");
    corpus.push(EVERYTHING);
    corpus
}

/// A text with lines taken out, doubled, moved and given other values, and damage within.
fn damaged(random: &mut Random, text: &str, other: &str) -> Vec<u8> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let others: Vec<&str> = other.lines().collect();
    for _ in 0..random.below(5) {
        let at = random.below(lines.len());
        let Some(line) = lines.get(at).cloned() else {
            break;
        };
        match random.below(6) {
            0 => drop(lines.remove(at)),
            1 => {
                let to = random.below(lines.len());
                lines.insert(to, line);
            }
            2 => lines.insert(at, (*random.pick(&others)).to_owned()),
            3 => {
                let to = random.below(lines.len());
                lines.swap(at, to);
            }
            _ => {
                if let Some((key, _)) = line.split_once('=') {
                    lines[at] = format!("{key}= {}", random.pick(&VALUES));
                }
            }
        }
    }
    let mut bytes = (lines.join("\n") + "\n").into_bytes();
    for _ in 0..*random.pick(&[0, 0, 0, 0, 0, 1, 2, 8]) {
        random.damage(&mut bytes, other.as_bytes());
    }
    bytes
}

/// Every problem is one line that names the file and the line, and says something.
fn assert_plain(error: &ConfigError, file: &Path, lines: usize) {
    assert!(!error.problems().is_empty());
    let printed = error.to_string();
    assert_eq!(printed.lines().count(), error.problems().len(), "{printed}");
    for problem in error.problems() {
        let line = problem.line().expect("a line");
        assert!((1..=lines + 1).contains(&line), "{problem}");
        let printed = problem.to_string();
        let start = format!("{}:{line}: ", file.display());
        let said = printed.strip_prefix(&start).expect(&printed);
        assert!(said.len() > 10, "{printed}");
        assert!(!printed.contains(char::is_control), "{printed:?}");
    }
}

/// What the rest of the daemon makes of a configuration before it touches the kernel.
fn use_it(config: &Config) {
    for service in &config.services {
        service.check().expect(&service.name);
    }
    let names: HashSet<&str> = config
        .services
        .iter()
        .map(|service| &*service.name)
        .collect();
    assert_eq!(names.len(), config.services.len(), "names are unique");
    for chain in &config.chains {
        let known = |name: &String| names.contains(name.as_str());
        assert!(chain.services.iter().all(known), "{chain:?}");
    }
    let now = Stamp {
        mono_ns: 1,
        boot_ns: 1,
        wall: Timestamp::UNIX_EPOCH,
    };
    let desired = Desired::new(config.services.clone(), config.chains.clone());
    let tree = StateTree::new(&config.hub, &desired, now);
    let status = status::whole(&tree, now);
    let json = serde_json::to_string(&status).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Status>(&json).expect("itself"),
        status
    );
    let _ = (
        table::status(&status, &table::Layout::default()),
        metrics::render(
            status.clone(),
            Box::new(|_| [0; rtt::WORDS]),
            Vec::new(),
            metrics::Format::Prometheus,
        ),
    );
}

#[test]
fn fuzz_configurations() -> Result<()> {
    let corpus = corpus();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("hub.toml");
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(20);
    while let Some(mut round) = rounds.next() {
        for _ in 0..INPUTS {
            let random = &mut round.random;
            let (text, other) = (*random.pick(&corpus), *random.pick(&corpus));
            let bytes = damaged(random, text, other);
            // As `tracker check` reads it, and what cannot be a text only so.
            let read = match std::str::from_utf8(&bytes) {
                Ok(text) if !random.is_one_in(16) => config::parse(text, &file),
                _ => {
                    fs::write(&file, &bytes)?;
                    config::load(&file)
                }
            };
            match read {
                Ok(config) => {
                    use_it(&config);
                    let text = std::str::from_utf8(&bytes)?;
                    assert_eq!(config::parse(text, &file), Ok(config), "the same twice");
                    tally.add("accepted");
                }
                Err(error) => {
                    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
                    assert_plain(&error, &file, lines);
                    let is_toml = !error.to_string().contains("not valid TOML");
                    tally.add(if is_toml { "refused" } else { "not TOML" });
                }
            }
        }
        rounds.took(INPUTS);
    }
    rounds.sum_up("configurations", "files", &tally);
    tally.require(&["accepted", "refused", "not TOML"], 20);
    Ok(())
}

/// A word of a command line.
fn word(random: &mut Random) -> String {
    let mut word = match random.below(4) {
        0 => random.pick(&VALUES).trim_matches('"').to_owned(),
        1 => {
            let len = random.below(20);
            String::from_utf8_lossy(&random.bytes(len)).into_owned()
        }
        _ => (*random.pick(&[
            "fw-9",
            "10.9.0.2",
            "10.20.0.9",
            "2001:db8::9",
            "eth1",
            "icmp",
            "udp",
            "tcp",
            "9",
            "100ms",
            "1s",
            "any",
        ]))
        .to_owned(),
    };
    if random.is_one_in(8) {
        let mut bytes = word.into_bytes();
        random.damage(&mut bytes, b"--endpoint");
        word = String::from_utf8_lossy(&bytes).into_owned();
    }
    word
}

fn maybe<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.is_one_in(4).then(|| value(random))
}

fn addition(random: &mut Random) -> ServiceOptions {
    let number = |random: &mut Random| match random.below(3) {
        0 => random.word() as i64,
        _ => random.below(100) as i64,
    };
    let or = |random: &mut Random, usual: &str| match random.is_one_in(6) {
        true => word(random),
        false => usual.to_owned(),
    };
    let mut keys = Map::new();
    for key in config::options() {
        let is_asked = key.default == Default::Required || random.is_one_in(4);
        if !is_asked {
            continue;
        }
        let value = match (key.value, random.is_one_in(12)) {
            (_, true) => Json::from(word(random)),
            (Value::Integer { .. }, _) => Json::from(number(random)),
            (Value::Duration { .. }, _) => Json::from(or(random, "10ms")),
            (Value::Word(words), _) => {
                let words = words();
                let at = random.below(words.len());
                Json::from(or(random, words[at]))
            }
            (Value::Policy(_), _) => match random.is_one_in(2) {
                true => Json::from(number(random)),
                false => Json::from(or(random, "all")),
            },
            (Value::Hosts, _) => {
                let count = random.below(4);
                let hosts = (0..count).map(|at| or(random, &format!("10.20.0.{at}9")));
                hosts.collect()
            }
            (_, _) if key.is_list() => {
                let count = random.below(3);
                (0..count).map(|_| or(random, "eth1")).collect()
            }
            (_, _) => {
                let usual = match key.name {
                    "endpoint" => "10.9.0.2",
                    "source" => "10.9.0.1",
                    _ => "eth1",
                };
                Json::from(or(random, usual))
            }
        };
        keys.insert(key.name.to_owned(), value);
    }
    ServiceOptions {
        name: or(random, "fw-9"),
        keys,
    }
}

#[test]
fn fuzz_additions_and_command_lines() -> Result<()> {
    let config = config::parse(EVERYTHING, Path::new("hub.toml")).context("the corpus")?;
    let options = config::options().map(|key| format!("--{}", key.name.replace('_', "-")));
    let options: Vec<String> = options.chain(["--socket".to_owned()]).collect();
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(20);
    while let Some(mut round) = rounds.next() {
        for _ in 0..INPUTS / 2 {
            let random = &mut round.random;
            let line = [
                "tracker",
                "service",
                "add",
                "fw-9",
                "--endpoint",
                "10.9.0.2",
                "--behind",
                "10.20.0.9",
            ];
            let mut words: Vec<String> = line.map(str::to_owned).into();
            for _ in 0..random.below(5) {
                let option = random.pick(&options).clone();
                words.extend([option, word(random)]);
            }
            if random.is_one_in(4) {
                let at = 1 + random.below(words.len() - 1);
                words[at] = word(random);
            }
            let addition = match Cli::try_parse_from(&words) {
                Ok(Cli {
                    command: Command::Service(service),
                }) => match service.command {
                    ServiceCommand::Add(add) => *add.service,
                    _ => addition(random),
                },
                Ok(_) => addition(random),
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    tally.add("not a command");
                    addition(random)
                }
            };
            // As it comes from the command to the daemon.
            let body = Json::Object(addition.keys.clone());
            match config::requested(Some(&addition.name), &body, &config.defaults) {
                Ok(service) => {
                    assert_eq!(service.check(), Ok(()), "{addition:?}");
                    // What is kept of it makes the same one.
                    let kept = config::body(&service);
                    let again = config::requested(None, &kept, &config.defaults);
                    assert_eq!(again.as_ref(), Ok(&service), "{kept}");
                    tally.add("accepted");
                }
                Err(invalid) => {
                    assert!(!invalid.is_empty());
                    for Invalid {
                        problem, pointer, ..
                    } in invalid
                    {
                        assert!(problem.len() > 10, "{problem}");
                        assert!(!problem.contains(char::is_control), "{problem:?}");
                        let is_missing = problem.starts_with("missing key");
                        let is_there = body.pointer(&pointer).is_some() || pointer == "/name";
                        assert!(is_there || is_missing, "{pointer}: {problem}: {body}");
                    }
                    tally.add("refused");
                }
            }
        }
        rounds.took(INPUTS / 2);
    }
    rounds.sum_up("services added", "commands", &tally);
    tally.require(&["accepted", "refused", "not a command"], 20);
    Ok(())
}

fn event(random: &mut Random, service: &str) -> Event {
    const VERDICTS: [Verdict; 3] = [Verdict::Unknown, Verdict::Up, Verdict::Down];
    Event {
        time: Timestamp::from_second(random.below(1 << 32) as i64).expect("in range"),
        service: (!random.is_one_in(8)).then(|| service.into()),
        member: maybe(random, |random| (*random.pick(&["active", "a"])).into()),
        behind: maybe(random, |random| [10, 20, 0, random.byte()].into()),
        from: *random.pick(&VERDICTS),
        to: *random.pick(&VERDICTS),
        cause: *random.pick(&[Cause::Replied, Cause::NoReply]),
        detection_us: maybe(random, Random::word),
        detail: maybe(random, |_| "type 3 code 1".into()),
        chain: None,
        kind: *random.pick(&[EventKind::Verdict, EventKind::Admin, EventKind::Removed]),
        group: random.word(),
        effective: None,
        admin: None,
        fault: None,
        tracker: None,
    }
}

fn held(random: &mut Random) -> SavedHeld {
    SavedHeld {
        verdict: Verdict::Down,
        cause: Cause::NoReply,
        detail: maybe(random, |_| "type 3 code 1".into()),
        since_mono_ns: random.word(),
        detection_ns: maybe(random, Random::word),
    }
}

/// A journal as a daemon leaves it.
fn journal(random: &mut Random, config: &Config) -> Vec<u8> {
    let services = config.services.iter().map(|service| SavedService {
        service: service.clone(),
        since: Timestamp::UNIX_EPOCH,
        members: service
            .members
            .iter()
            .map(|member| SavedMember {
                path: random.below(9) as u32,
                trackers: (member.trackers.iter())
                    .map(|_| SavedTracker {
                        slot: random.below(9) as u32,
                        verdict: Verdict::Up,
                        cause: Cause::Replied,
                        detail: None,
                        held: maybe(random, held),
                    })
                    .collect(),
            })
            .collect(),
        flaps: SavedFlaps {
            recent_mono_ns: (0..random.below(4)).map(|_| random.word()).collect(),
            total: random.word(),
        },
        kept: (0..random.below(3))
            .map(|_| random.below(3) as u16)
            .collect(),
    });
    let services: Vec<SavedService> = services.collect();
    let snapshot = Snapshot {
        namespace: (4, 4_026_531_840),
        mode: config.hub.mode,
        chains: config.chains.clone(),
        events: (0..random.below(4))
            .map(|_| event(random, "fw-1"))
            .collect(),
        next: 8 + random.below(1_000) as u64,
        services: services.clone(),
        run: "1f0c3a52b6d98e74".to_owned(),
    };
    let mut journal = Record::Snapshot(snapshot).line();
    for _ in 0..random.below(5) {
        let record = match random.below(6) {
            0 => Record::Added(random.pick(&services).clone()),
            1 => Record::Removed {
                service: "fw-pair".to_owned(),
                events: vec![event(random, "fw-pair")],
            },
            kind => {
                let place = maybe(random, |random| {
                    (random.below(3) as u32, random.below(3) as u32)
                });
                let events = vec![(event(random, "fw-1"), place)];
                match (kind, place) {
                    (2, Some(tracker)) => Record::Held {
                        service: "fw-1".to_owned(),
                        tracker,
                        held: maybe(random, held),
                    },
                    (2, None) => Record::Kept {
                        service: "fw-pool".to_owned(),
                        kept: vec![random.below(4) as u16],
                    },
                    (3, _) => Record::Events(events),
                    _ => Record::Told {
                        mono_ns: random.word(),
                        events,
                    },
                }
            }
        };
        journal.extend(record.line());
    }
    journal
}

/// A text of JSON with other numbers and strings, lines in another order, or damage.
fn damaged_json(random: &mut Random, text: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let mut text = text;
    for _ in 0..*random.pick(&[0, 1, 1, 2, 4]) {
        let is_number = |byte: u8| byte.is_ascii_digit();
        let from = random.below(text.len());
        let number = (from..text.len()).find(|at| is_number(text[*at]));
        match (random.below(3), number) {
            (0, _) | (_, None) => random.damage(&mut text, other),
            (_, Some(first)) => {
                let len = text[first..]
                    .iter()
                    .take_while(|byte| is_number(**byte))
                    .count();
                let value = random.pick(&VALUES).bytes();
                text.splice(first..first + len, value);
            }
        }
    }
    text
}

#[test]
fn fuzz_journals() -> Result<()> {
    let config = config::parse(EVERYTHING, Path::new("hub.toml")).context("the corpus")?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(20);
    while let Some(mut round) = rounds.next() {
        for _ in 0..INPUTS {
            let random = &mut round.random;
            let text = match random.is_one_in(16) {
                true => {
                    let len = random.below(400);
                    random.bytes(len)
                }
                false => journal(random, &config),
            };
            let other = journal(random, &config);
            let text = damaged_json(random, text, &other);
            let snapshot = match Snapshot::read(&text) {
                Ok(snapshot) => snapshot,
                Err(why) => {
                    assert!(
                        !why.is_empty() && !why.contains(char::is_control),
                        "{why:?}"
                    );
                    tally.add("refused");
                    continue;
                }
            };
            tally.add("taken");
            // What a daemon does with it.
            let saved = snapshot.services.iter();
            let services: Vec<_> = saved.map(|saved| saved.service.clone()).collect();
            for service in &services {
                service.check().expect(&service.name);
            }
            let before = Desired::new(services, snapshot.chains.clone());
            let now = Stamp {
                mono_ns: 1,
                boot_ns: 1,
                wall: Timestamp::UNIX_EPOCH,
            };
            let mut tree = StateTree::new(&config.hub, &before, now);
            let saved = before.services().iter().zip(&snapshot.services);
            tree.restore(
                saved.map(|(service, saved)| (service.id, saved.shown())),
                now,
            );
            let (services, chains) = (config.services.clone(), config.chains.clone());
            let after = before.next(services, chains, |_| Used::default());
            let _ = tree.apply(&after, &diff(&before, &after), now);
            let _ = status::whole(&tree, now);
            let next = snapshot.next;
            let mut log = EventLog::resume(8, snapshot.events, next);
            assert_eq!(log.next(), next);
            assert_eq!(log.push(event(random, "fw-1")), next);
            assert!(log.first() >= 1);
            let (_, kept) = log.since(0);
            assert!(kept.last().is_some_and(|last| last.seq == next));
        }
        rounds.took(INPUTS);
    }
    rounds.sum_up("journals", "texts", &tally);
    tally.require(&["taken", "refused"], 10);
    Ok(())
}

/// What clients read: lines of a daemon of another version, or of something that is no daemon.
#[test]
fn fuzz_answers() -> Result<()> {
    let config = config::parse(EVERYTHING, Path::new("hub.toml")).context("the corpus")?;
    let now = Stamp {
        mono_ns: 1,
        boot_ns: 1,
        wall: Timestamp::UNIX_EPOCH,
    };
    let desired = Desired::new(config.services.clone(), config.chains.clone());
    let tree = StateTree::new(&config.hub, &desired, now);
    let status = serde_json::to_vec(&status::whole(&tree, now))?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(20);
    while let Some(mut round) = rounds.next() {
        for _ in 0..INPUTS {
            let random = &mut round.random;
            let seq = random.word();
            let text = match random.below(3) {
                0 => status.clone(),
                1 => serde_json::to_vec(&Missed {
                    missed: seq,
                    next: 1,
                })?,
                _ => serde_json::to_vec(&Numbered {
                    run: "1f0c3a52b6d98e74".into(),
                    hub: "hub-1".into(),
                    instance: "default".into(),
                    seq,
                    event: event(random, "fw-1"),
                })?,
            };
            let text = damaged_json(random, text, &status);
            let mut is_read = false;
            if let Ok(status) = serde_json::from_slice::<Status>(&text) {
                let _ = (
                    table::status(&status, &table::Layout::default()),
                    metrics::render(
                        status.clone(),
                        Box::new(|_| [0; rtt::WORDS]),
                        Vec::new(),
                        metrics::Format::Prometheus,
                    ),
                );
                is_read = true;
            }
            if let Ok(numbered) = serde_json::from_slice::<Numbered>(&text) {
                let _ = table::event(&numbered);
                is_read = true;
            }
            if let Ok(missed) = serde_json::from_slice::<Missed>(&text) {
                let _ = table::missed(&missed);
                is_read = true;
            }
            tally.add(if is_read { "read" } else { "garbled" });
        }
        rounds.took(INPUTS);
    }
    rounds.sum_up("answers", "lines", &tally);
    tally.require(&["read", "garbled"], 10);
    Ok(())
}

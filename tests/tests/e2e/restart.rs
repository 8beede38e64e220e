//! A daemon that goes on where another one of its instance ended, however that ended.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::daemon::{Config, SOON, lines};
use tracker_lab::{Lab, Status, Tracker, netns, transfer};

/// Ids of everything pinned in one directory, by name. Among the links may be programs, if TC has filters and no
/// links (before Linux 6.6): each daemon attaches its own, so their ids change, and 0 stands for each.
fn pinned(tracker: &Tracker, kind: &str) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(tracker.pins().join(format!("{kind}s")))?.flatten() {
        let id_as = |kind: &str| -> Result<u64> {
            let mut command = Command::new("bpftool");
            command
                .args(["-j", kind, "show", "pinned"])
                .arg(entry.path());
            let shown: Value = serde_json::from_slice(&netns::check(&mut command)?.stdout)?;
            shown["id"].as_u64().context("an id")
        };
        let id = id_as(kind).or_else(|error| match kind {
            "link" => id_as("prog").map(|_| 0),
            _ => Err(error),
        })?;
        found.push((entry.file_name().to_string_lossy().into_owned(), id));
    }
    found.sort();
    Ok(found)
}

/// The event numbers are 1, 2, 3 ... without gap or repeat; says how many there are.
fn whole(tracker: &Tracker) -> Result<usize> {
    let events = tracker.events()?;
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    let expected: Vec<u64> = (1..=events.len() as u64).collect();
    assert_eq!(numbers, expected, "{}", lines(&events));
    Ok(events.len())
}

/// What must not have changed over a restart beside what goes on counting.
fn assert_goes_on(before: &Status, after: &Status, service: &str) {
    assert_eq!(after.verdict(service), before.verdict(service));
    assert_eq!(
        after.service(service)["since"],
        before.service(service)["since"]
    );
    for counter in ["sent", "received", "lost", "duplicate"] {
        let (before, after) = (
            before.count(service, counter),
            after.count(service, counter),
        );
        assert!(after >= before, "{counter}: {before}, then {after}");
    }
}

#[test]
fn a_killed_daemon_s_successor_goes_on() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let clean = lab.hub.look()?;
    let [one, two] = lab.services() else {
        unreachable!("two services")
    };
    let config = format!("{}{}", one.toml("fw-1"), two.toml("fw-2"));
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    two.break_forwarding()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let events = whole(&tracker)?;
    let (maps, links) = (pinned(&tracker, "map")?, pinned(&tracker, "link")?);

    for round in 0..3 {
        tracker.kill()?;
        tracker.run()?;
        let first = tracker.status()?;
        assert_eq!(first.verdict("fw-1"), "up", "round {round}");
        assert_eq!(first.verdict("fw-2"), "down", "round {round}");
        let after = tracker.wait_alive(SOON, "fw-1")?;
        for service in ["fw-1", "fw-2"] {
            assert_goes_on(&before, &after, service);
        }
        assert_eq!(
            after.count("fw-1", "lost"),
            before.count("fw-1", "lost"),
            "what nobody waited for is no loss"
        );
        assert_eq!(whole(&tracker)?, events, "round {round}");
        assert_eq!(pinned(&tracker, "map")?, maps, "round {round}");
        assert_eq!(pinned(&tracker, "link")?, links, "round {round}");
    }

    // It is no picture of the past.
    one.break_forwarding()?;
    two.mend()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    assert!(whole(&tracker)? > events);
    tracker.terminate()?;
    assert_eq!(lab.hub.look()?, clean);
    assert!(!tracker.pins().exists());
    Ok(())
}

#[test]
fn keep_hands_over_and_a_clean_end_does_not() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.service().toml("fw-1");
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.terminate()?;
    tracker.keep(true);
    tracker.run()?;
    // It began anew: nothing was left.
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let events = whole(&tracker)?;
    let links = pinned(&tracker, "link")?;
    tracker.terminate()?;
    assert_eq!(pinned(&tracker, "link")?, links, "they stay");
    tracker.keep(false);
    tracker.run()?;
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_goes_on(&before, &after, "fw-1");
    assert_eq!(whole(&tracker)?, events);
    assert_eq!(pinned(&tracker, "link")?, links);
    tracker.terminate()?;
    assert!(!tracker.pins().exists());
    Ok(())
}

#[test]
fn what_breaks_while_nobody_runs_is_found_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let events = tracker.events()?.len();
    tracker.kill()?;
    lab.service().break_forwarding()?;
    tracker.run()?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_goes_on(&down, &down, "fw-1");
    // Three losses of its own, not those of the time in which no daemon ran.
    assert!(down.count("fw-1", "lost") >= before.count("fw-1", "lost") + 3);
    let events = &tracker.events()?[events..];
    assert_eq!(events.len(), 2, "{}", lines(events));
    let detection = events[0].detection_us.context("how long it took")?;
    // How far apart they left is the machine's matter too.
    assert!(
        detection >= 200_000,
        "three probes had 200 ms each, not {detection} us"
    );
    // And the other way round.
    tracker.kill()?;
    lab.service().mend()?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    whole(&tracker)?;
    Ok(())
}

#[test]
fn an_interface_that_went_while_nobody_ran_is_missed_and_found_again() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.kill()?;
    lab.hub.ip("link delete eth1\n")?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "down", "interface-missing")?;
    tracker.kill()?;
    lab.service().plug(&lab.hub)?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.kill()?;
    // It went and came back: the pin that is left is attached to nothing.
    lab.hub.ip("link delete eth1\n")?;
    lab.service().plug(&lab.hub)?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;
    whole(&tracker)?;
    Ok(())
}

#[test]
fn somebody_took_the_private_interfaces_while_nobody_ran() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    tracker.kill()?;
    let links = lab.hub.run("ip -brief link")?;
    let private = links
        .split_whitespace()
        .find(|word| word.starts_with("trk-"));
    let private = private.and_then(|name| name.split('@').next());
    lab.hub.ip(&format!(
        "link delete {}\n",
        private.context("a private one")?
    ))?;
    tracker.run()?;
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_goes_on(&before, &after, "fw-1");
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

#[test]
fn another_config_keeps_what_is_the_same() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [one, two, three] = lab.services() else {
        unreachable!("three services")
    };
    let chain = "[[chain]]\nname = \"net\"\nservices = [\"fw-1\"]\n";
    let few = |services: String| Config::new(services).hub("room = 1");
    let first = few(format!("{}{}{chain}", one.toml("fw-1"), two.toml("fw-2")));
    let mut tracker = Tracker::start(&lab.hub, &first)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    tracker.service("add fw-9 --endpoint 10.9.2.2 --behind 10.20.2.9")?;
    tracker.wait_verdict("fw-9", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let links = pinned(&tracker, "link")?;
    let maps = pinned(&tracker, "map")?;

    // One that goes, one that comes, another order, and no room for them in the old maps.
    tracker.kill()?;
    let more = (0..9).map(|number| format!("\"10.20.2.{}\"", 100 + number));
    let more: Vec<String> = more.collect();
    let added = format!(
        "[[service]]\nname = \"fw-3\"\nendpoint = \"{}\"\nbehind = [\"{}\", {}]\n",
        three.endpoint,
        three.behind,
        more.join(", ")
    );
    tracker.write(few(format!("{added}{}{chain}", one.toml("fw-1"))))?;
    tracker.run()?;
    tracker.wait_verdict("fw-3", "up", "replied")?;
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_goes_on(&before, &after, "fw-1");
    assert_goes_on(&before, &after, "fw-9");
    assert_eq!(after.count("fw-1", "lost"), before.count("fw-1", "lost"));
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    assert_eq!(tracker.history("fw-9")?.len(), 1);
    let gone = tracker.history("fw-2")?;
    assert_eq!(gone.last().context("an event")?.0, "unknown", "{gone:?}");
    assert!(after.service("fw-2").is_null());
    assert_ne!(pinned(&tracker, "map")?, maps, "larger ones");
    let kept = pinned(&tracker, "link")?;
    let on_first = links.iter().find(|link| link.0.starts_with("receive-"));
    let on_first = on_first.context("a link")?;
    assert!(kept.contains(on_first), "{on_first:?} in {kept:?}");
    whole(&tracker)?;

    // Back to the first: all have place in the maps that there are, and fw-9 is one of the file now.
    tracker.kill()?;
    let maps = pinned(&tracker, "map")?;
    tracker.write(few(format!(
        "{}{}{}{chain}",
        one.toml("fw-1"),
        two.toml("fw-2"),
        three.toml("fw-9")
    )))?;
    tracker.run()?;
    for service in ["fw-1", "fw-2", "fw-9"] {
        tracker.wait_verdict(service, "up", "replied")?;
    }
    let list = tracker.services()?;
    assert_eq!(list["services"][2]["owner"], "file");
    assert_eq!(pinned(&tracker, "map")?, maps);
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    assert_goes_on(&before, &tracker.wait_alive(SOON, "fw-1")?, "fw-1");
    whole(&tracker)?;
    Ok(())
}

#[test]
fn another_mode_takes_the_place_of_the_one_before() -> Result<()> {
    let lab = Lab::new()?;
    let mode = |mode: &str| Config::new(lab.service().toml("fw-1")).mode(mode);
    let receives = |tracker: &Tracker| -> Result<Vec<(String, u64)>> {
        let mut links = pinned(tracker, "link")?;
        links.retain(|link| link.0.starts_with("receive-"));
        Ok(links)
    };
    let mut tracker = Tracker::start(&lab.hub, mode("xdp-native"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // `auto` takes TC on a veth, also if an earlier daemon left XDP.
    for (configured, taken) in [
        ("xdp-generic", "xdp-generic"),
        ("auto", "tc"),
        ("xdp-native", "xdp-native"),
        ("auto", "tc"),
        ("tc", "tc"),
        ("xdp-native", "xdp-native"),
    ] {
        tracker.kill()?;
        tracker.write(mode(configured))?;
        tracker.run()?;
        let status = tracker.wait_alive(SOON, "fw-1")?;
        assert_eq!(status.member("fw-1", "active")["mode"], taken);
        // Those of the mode before go once those of this one are there.
        tracker.wait_for("one link to receive by", SOON, |_| {
            receives(&tracker).is_ok_and(|links| links.len() == 1)
        })?;
        let events = tracker.events()?;
        let log = tracker.log();
        assert_eq!(events.len(), 2, "{configured}: {}\n{log}", lines(&events));
    }
    Ok(())
}

#[test]
fn what_was_added_and_removed_stays_so() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.service("add fw-2 --endpoint 10.9.1.2 --behind 10.20.1.9 --interval 30ms")?;
    tracker.service("add fw-3 --endpoint 10.9.1.2 --behind 10.20.1.9")?;
    for service in ["fw-1", "fw-2", "fw-3"] {
        tracker.wait_verdict(service, "up", "replied")?;
    }
    tracker.service("remove fw-3")?;
    let events = whole(&tracker)?;
    let before = tracker.wait_alive(SOON, "fw-2")?;
    tracker.kill()?;
    tracker.run()?;
    let after = tracker.wait_alive(SOON, "fw-2")?;
    assert_goes_on(&before, &after, "fw-2");
    assert!(after.service("fw-3").is_null());
    assert_eq!(whole(&tracker)?, events);
    // Its place is free again, with nothing of the last tenant.
    tracker.service("add fw-4 --endpoint 10.9.1.2 --behind 10.20.1.9")?;
    let status = tracker.wait_verdict("fw-4", "up", "replied")?;
    assert!(status.count("fw-4", "sent") < before.count("fw-2", "sent"));
    tracker.service("remove fw-2")?;
    Ok(())
}

/// Writes a value of the pinned map HUB or of the journal.
fn overwrite(pin: &Path, key: u8, value: &[u8]) -> Result<()> {
    let hex = |bytes: &[u8]| -> Vec<String> {
        bytes.iter().map(|byte| format!("0x{byte:02x}")).collect()
    };
    let mut command = Command::new("bpftool");
    command.args(["map", "update", "pinned"]).arg(pin);
    command.args(["key", "hex"]).args(hex(&[key, 0, 0, 0]));
    command.args(["value", "hex"]).args(hex(value));
    netns::check(&mut command)?;
    Ok(())
}

#[test]
fn maps_of_another_version_are_not_misread() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [one, two] = lab.services() else {
        unreachable!("two services")
    };
    two.break_forwarding()?;
    let config = format!("{}{}", one.toml("fw-1"), two.toml("fw-2"));
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let events = whole(&tracker)?;
    let (maps, links) = (pinned(&tracker, "map")?, pinned(&tracker, "link")?);
    tracker.kill()?;
    // The version comes after the key; all else is left as if it had another meaning.
    let mut hub = vec![0xa5; 32];
    hub[16..20].copy_from_slice(&9_999u32.to_ne_bytes());
    overwrite(&tracker.pins().join("maps/HUB"), 0, &hub)?;

    tracker.run()?;
    let log = tracker.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("0x270f")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("not taken over"), "{}", said[0]);
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(after.verdict("fw-2"), "down");
    assert_eq!(
        after.service("fw-1")["since"],
        before.service("fw-1")["since"]
    );
    assert_eq!(after.count("fw-1", "lost"), 0);
    assert_eq!(whole(&tracker)?, events, "no event, and none repeated");
    assert_eq!(pinned(&tracker, "link")?, links, "nothing was detached");
    assert_ne!(pinned(&tracker, "map")?, maps);
    two.mend()?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    whole(&tracker)?;
    Ok(())
}

#[test]
fn a_journal_of_garbage_is_not_misread() -> Result<()> {
    let lab = Lab::new()?;
    let clean = lab.hub.look()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let garbage: [(u8, &[u8], &str); 4] = [
        (0, &[0xff; 8], "it is no journal"),
        (
            0,
            &[7, 0, 0, 0, 0x4a, 0x4b, 0x52, 0x54],
            "it is of version 7",
        ),
        (
            1,
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            "longer than it can be",
        ),
        (9, b"\0garbage", "line 1"),
    ];
    for (word, value, expected) in garbage {
        tracker.wait_verdict("fw-1", "up", "replied")?;
        tracker.kill()?;
        overwrite(&tracker.pins().join("journal"), word, value)?;
        tracker.run()?;
        let log = tracker.log();
        assert!(log.contains(expected), "{expected}: {log}");
        tracker.wait_verdict("fw-1", "up", "replied")?;
        tracker.wait_alive(SOON, "fw-1")?;
        assert_eq!(whole(&tracker)?, 2, "it began anew");
    }
    tracker.terminate()?;
    assert_eq!(lab.hub.look()?, clean);
    Ok(())
}

/// A transfer through the hub's interface, which must not lose a byte, nor need a byte again.
#[test]
fn other_traffic_does_not_notice() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let links = pinned(&tracker, "link")?;
    transfer::unharmed_by(&lab, || {
        (0..5).try_for_each(|_| {
            tracker.kill()?;
            tracker.run()?;
            tracker.wait_alive(SOON, "fw-1").map(drop)
        })
    })?;
    assert_eq!(pinned(&tracker, "link")?, links);
    Ok(())
}

/// Killed at any moment, also while it takes over what another killed one left.
#[test]
fn killed_at_any_moment() -> Result<()> {
    const ROUNDS: u64 = 24;
    let lab = Lab::with_services(2)?;
    let clean = lab.hub.look()?;
    let [one, two] = lab.services() else {
        unreachable!("two services")
    };
    let small = Config::new(one.toml("fw-1")).hub("room = 0");
    // Each larger than the one before.
    let large = |round: u64| {
        let both = format!("{}{}", one.toml("fw-1"), two.toml("fw-2"));
        Config::new(both).hub(format!("room = {}", 10 * round))
    };
    let mut tracker = Tracker::start(&lab.hub, &small)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    for round in 0..ROUNDS {
        tracker.kill()?;
        // Both ways: maps that are taken over, and maps that are too small.
        tracker.write(if round % 2 == 1 {
            large(round)
        } else {
            small.clone()
        })?;
        tracker.launch()?;
        // Somewhere in the start, which takes some hundred milliseconds, or after it.
        let moment = Duration::from_millis((round * 29) % 350);
        let until = Instant::now() + moment;
        while Instant::now() < until {
            sleep(Duration::from_millis(1));
        }
    }
    tracker.kill()?;
    tracker.write(&small)?;
    tracker.run()?;
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_goes_on(&before, &after, "fw-1");
    assert_eq!(after.count("fw-1", "lost"), before.count("fw-1", "lost"));
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    whole(&tracker)?;
    let left: Vec<_> = fs::read_dir(tracker.pins())?.flatten().collect();
    let mut names: Vec<_> = left.iter().map(fs::DirEntry::file_name).collect();
    names.sort();
    assert_eq!(names, ["journal", "links", "maps", "public"]);
    tracker.kill()?;
    tracker.cleanup()?;
    assert_eq!(lab.hub.look()?, clean);
    assert!(!tracker.pins().exists());
    Ok(())
}

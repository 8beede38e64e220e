//! What is no event on a hub: a reload that changes no packet, a restart by the unit; what is said where, and counters
//! that never fall.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker_lab::daemon::{SOON, lines};
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::pace::pause;
use tracker_lab::{Config, Lab, Status, Tracker, netns};

const COUNTERS: [&str; 9] = [
    "sent",
    "received",
    "lost",
    "void",
    "skipped",
    "duplicate",
    "late",
    "corrupt",
    "wrong_path",
];

fn counters(status: &Status) -> [u64; 9] {
    COUNTERS.map(|counter| status.count("fw-1", counter))
}

fn assert_none_falls(before: [u64; 9], after: [u64; 9]) {
    let falls = before
        .iter()
        .zip(after)
        .any(|(before, after)| after < *before);
    assert!(!falls, "{COUNTERS:?}: {before:?}, then {after:?}");
}

/// The only tracker of `fw-1`.
fn tracker(status: &Status) -> &Value {
    &status.service("fw-1")["members"][0]["trackers"][0]
}

fn output(tracker: &Tracker, arguments: &[&str]) -> Result<String> {
    let output = netns::check(&mut tracker.client(arguments))?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn what_a_stall_costs_is_counted_and_no_counter_falls() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut before = counters(&tracker.wait_alive(SOON, "fw-1")?);
    let first = before;
    for round in 0..3 {
        // Probes that are under way when the hub stops, with and without a reply.
        if round == 1 {
            lab.service().break_forwarding()?;
        }
        tracker.signal(Signal::SIGSTOP)?;
        pause(Duration::from_secs(1));
        tracker.signal(Signal::SIGCONT)?;
        if round == 1 {
            lab.service().mend()?;
        }
        for _ in 0..20 {
            let after = counters(&tracker.status()?);
            assert_none_falls(before, after);
            before = after;
            pause(Duration::from_millis(10));
        }
    }
    // Three seconds of a probe each 20 ms; the first and last turns may still be in time.
    let skipped = before[4] - first[4];
    assert!((140..=170).contains(&skipped), "{skipped} of 150");
    let status = tracker.wait_alive(SOON, "fw-1")?;
    let [sent, received, lost, void, ..] = counters(&status);
    // At most 200 ms of probes are under way, and at most two losses wait for the end of their run.
    let others = sent - received.min(sent) - lost - void;
    assert!(others <= 12 + 2, "{others} of {sent}");
    Ok(())
}

#[test]
fn a_reload_that_changes_no_packet_is_no_event() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let written = service.toml("fw-1");
    let found = written.replace(&format!("interface = \"{}\"\n", service.interface), "");
    assert_ne!(written, found);
    let tracker = Tracker::start(&lab.hub, &found)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut before = tracker.wait_alive(SOON, "fw-1")?;
    let since = before.service("fw-1")["since"].clone();
    let events = tracker.events()?.len();
    let with = |more: &str| service.toml_with("fw-1", more);
    let returns = format!("returns = [\"{}\"]", service.interface);
    let reloads = [
        written.clone(),
        with(&returns),
        with("source = \"10.9.0.1\""),
        with("fall = 5\nrise = 1"),
        with("hold_down = \"2s\"\npolicy = \"all\""),
        with("interval = \"40ms\""),
        // Its bit set has another size.
        with("interval = \"40ms\"\ntimeout = \"8s\""),
        with("interval = \"10ms\"\ntimeout = \"150ms\""),
        found.clone(),
        format!("[[chain]]\nname = \"net\"\nservices = [\"fw-1\"]\n{found}"),
    ];
    for reload in reloads {
        assert!(tracker.reload(&reload)?, "{reload}");
        let after = tracker.wait_alive(SOON, "fw-1")?;
        assert_none_falls(counters(&before), counters(&after));
        assert_eq!(
            after.count("fw-1", "lost"),
            before.count("fw-1", "lost"),
            "{reload}"
        );
        assert_eq!(after.verdict("fw-1"), "up");
        assert_eq!(after.service("fw-1")["since"], since, "{reload}");
        before = after;
    }
    let mut told = tracker.events()?;
    told.retain(|event| event.service.is_some());
    assert_eq!(told.len(), events, "{}", lines(&told));
    // What was reloaded is what is done: one loss of a single probe decides.
    assert!(tracker.reload(&with("fall = 1"))?);
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

#[test]
fn a_restart_that_keeps_is_no_event_whatever_is_under_way() -> Result<()> {
    let lab = Lab::new()?;
    let config = |hold: &str| {
        lab.service()
            .toml_with("fw-1", &format!("hold_down = \"{hold}\""))
    };
    let mut tracker_ = Tracker::start(&lab.hub, &config("0s"))?;
    tracker_.keep(true);
    tracker_.terminate()?;
    tracker_.run()?;
    tracker_.wait_verdict("fw-1", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker_.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker_.wait_verdict("fw-1", "up", "replied")?;
    assert!(tracker_.reload(&config("60s"))?);
    lab.service().break_forwarding()?;
    let before = tracker_.wait_for("a change that is held back", SOON, |status| {
        tracker(status)["held"]["verdict"] == "down"
    })?;
    assert_eq!(before.verdict("fw-1"), "up");
    let table = output(&tracker_, &["status"]).unwrap_or_default();
    let due_ms = |status: &Status| tracker(status)["held"]["due_ms"].as_u64();
    let mut left = due_ms(&before).context("when it is due")?;
    let run = before.0["run"].as_str().context("a run")?.to_owned();
    assert!(!run.is_empty());
    assert!(table.contains("; down no-reply in "), "{table}");
    let events = tracker_.events()?;
    for kill in [false, true] {
        if kill {
            tracker_.kill()?;
        } else {
            tracker_.terminate()?;
            assert!(tracker_.pins().exists());
        }
        tracker_.run()?;
        let after = tracker_.status()?;
        assert_none_falls(counters(&before), counters(&after));
        for key in ["verdict", "since", "flaps", "flaps_total"] {
            assert_eq!(
                after.service("fw-1")[key],
                before.service("fw-1")[key],
                "{key}"
            );
        }
        assert_eq!(after.service("fw-1")["flaps_total"], 2);
        assert_eq!(after.0["run"], run.as_str());
        // It goes on from when it began.
        let now = due_ms(&after).context("it is still held back")?;
        assert!(now <= left, "{now} ms, after {left}");
        left = now;
        let since_then = tracker_.events()?;
        assert_eq!(lines(&since_then), lines(&events));
    }
    // With a shorter hold it is over already.
    assert!(tracker_.reload(&config("100ms"))?);
    tracker_.wait_verdict("fw-1", "down", "no-reply")?;

    // What is left goes with cleanup.
    tracker_.terminate()?;
    tracker_.cleanup()?;
    assert!(!tracker_.pins().exists());
    let links = lab.hub.run("ip -brief link")?;
    assert!(!links.contains("trk-"), "{links}");
    Ok(())
}

#[test]
fn counters_go_on_in_maps_of_another_size_and_place() -> Result<()> {
    let lab = Lab::new()?;
    let one = |more: &str| Config::new(lab.service().toml_with("fw-1", more)).hub("room = 0");
    let mut tracker = Tracker::start(&lab.hub, one(""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut before = tracker.wait_alive(SOON, "fw-1")?;
    // Another bit set, which may need larger maps.
    for more in [
        "timeout = \"9s\"",
        "interval = \"300ms\"\ntimeout = \"20ms\"",
        "",
    ] {
        tracker.kill()?;
        tracker.write(one(more))?;
        tracker.run()?;
        let after = tracker.wait_alive(SOON, "fw-1")?;
        assert_none_falls(counters(&before), counters(&after));
        assert_eq!(
            after.count("fw-1", "lost"),
            before.count("fw-1", "lost"),
            "{more}"
        );
        before = after;
    }
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

#[test]
fn a_reader_is_told_that_numbers_began_anew() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let run = |tracker: &Tracker| -> Result<String> {
        let status = tracker.status()?;
        Ok(status.0["run"].as_str().context("a run")?.to_owned())
    };
    let first = run(&tracker)?;
    let told = |tracker: &Tracker, since: &str| -> Result<Vec<Value>> {
        let text = output(tracker, &["events", "--json", "--since", since])?;
        let lines = text.lines().map(serde_json::from_str);
        Ok(lines.collect::<Result<_, _>>()?)
    };
    let all = told(&tracker, &format!("{first}:0"))?;
    assert!(
        all.iter().all(|event| event["run"] == first.as_str()),
        "{all:?}"
    );
    assert_eq!(told(&tracker, &format!("{first}:1"))?.len(), all.len() - 1);

    // Nothing is kept: numbers begin anew.
    tracker.terminate()?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let second = run(&tracker)?;
    assert_ne!(first, second);
    for since in [format!("{first}:1"), "4000".to_owned()] {
        let told = told(&tracker, &since)?;
        assert_eq!(told[0]["reset"], true, "{told:?}");
        assert_eq!(told[0]["run"], second.as_str());
        assert_eq!(told[1]["seq"], 1, "{told:?}");
        assert_eq!(told.len(), 1 + tracker.events()?.len());
    }
    let text = output(&tracker, &["events", "--since", &format!("{first}:1")])?;
    assert!(text.starts_with("event numbers began anew (run "), "{text}");
    let mut ahead = tracker.client(&["events", "--since", &format!("{second}:4000")]);
    let ahead = ahead.output()?;
    let said = String::from_utf8(ahead.stderr)?;
    assert!(said.contains("has not happened yet"), "{said}");
    Ok(())
}

#[test]
fn changes_of_verdict_are_in_the_log() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let log = tracker.log();
    for said in [
        "INFO fw-1: unknown -> up, replied",
        "WARN fw-1: up -> down, no-reply",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    Ok(())
}

#[test]
fn an_interface_is_found_by_an_alternative_name() -> Result<()> {
    let lab = Lab::new()?;
    let (service, long) = (lab.service(), "firewall-uplink-number-0-of-this-hub");
    let named = service.toml("fw-1").replace(
        &format!("\"{}\"", service.interface),
        &format!("\"{long}\""),
    );
    let tracker = Tracker::start(&lab.hub, &named)?;
    tracker.wait_verdict("fw-1", "unknown", "interface-missing")?;
    let device = &service.interface;
    lab.hub
        .ip(&format!("link property add dev {device} altname {long}\n"))?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(
        status.member("fw-1", "active")["interface"],
        device.to_string().as_str()
    );
    // Its other name is the same interface.
    assert!(tracker.reload(&service.toml("fw-1"))?);
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    // The path is checked by what is there, changing nothing.
    let path = tracker.config();
    let path = path.to_str().context("a path")?;
    let here = netns::check(&mut tracker.command(&["check", "--here", path]))?;
    let here = String::from_utf8(here.stdout)?;
    let expected = format!(
        "fw-1/active: by {device} to {}, from 10.9.0.1",
        service.endpoint
    );
    assert!(here.lines().any(|line| line == expected), "{here}");
    assert!(
        here.contains("remark: only ICMP watches service fw-1: "),
        "{here}"
    );
    tracker.write(&named.replace(long, "eth99"))?;
    let here = netns::check(&mut tracker.command(&["check", "--here", path]))?;
    let here = String::from_utf8(here.stdout)?;
    assert!(
        here.contains("interface-missing: there is no interface eth99"),
        "{here}"
    );
    Ok(())
}

#[test]
fn a_port_of_a_bridge_is_told_of_its_bridge() -> Result<()> {
    let lab = Lab::new()?;
    let device = lab.service().interface.clone();
    lab.hub.ip(&format!(
        "link add br9 type bridge\naddress flush dev {device}\nlink set {device} master br9\nlink set br9 up\n\
         address add 10.9.0.1/24 dev br9\n"
    ))?;
    let tracker = Tracker::start(
        &lab.hub,
        &lab.service().toml_with("fw-1", "source = \"10.9.0.1\""),
    )?;
    tracker.wait_for("a word about the bridge", SOON, |status| {
        let told = tracker_detail(status);
        told.contains(&format!("{device} is a port of the bridge br9"))
            && told.contains("interface = \"br9\"")
    })?;
    Ok(())
}

fn tracker_detail(status: &Status) -> String {
    tracker(status)["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn an_xdp_program_of_others_before_ours_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let program = Foreign::new(&lab, Hook::Xdp, "foreign")?;
    let device = &lab.service().interface;
    lab.hub.ip(&format!(
        "link set dev {device} xdpdrv pinned {}\n",
        program.pin()
    ))?;
    let config = Config::new(lab.service().toml("fw-1")).mode("auto");
    let tracker = Tracker::start(&lab.hub, config)?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(tracker_detail(&status), "");
    lab.service().break_forwarding()?;
    let status = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let told = tracker_detail(&status);
    assert!(
        told.starts_with("XDP program ")
            && told.contains(&format!("on {device} sees replies first")),
        "{told}"
    );
    lab.hub.ip(&format!("link set dev {device} xdp off\n"))?;
    Ok(())
}

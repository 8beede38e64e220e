//! The command line: exit codes, the shape of its JSON, the order of its events.

use std::process::Output;

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::daemon::lines;
use tracker_lab::{Event, Lab, Tracker};

fn run(tracker: &Tracker, arguments: &[&str]) -> Result<Output> {
    tracker
        .client(arguments)
        .output()
        .with_context(|| format!("run tracker {arguments:?}"))
}

/// Insists on the keys of the contract; more are no fault, programs ignore what they do not know.
fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} is missing in {value:#}");
    }
}

fn one_line(output: &Output) -> Result<String> {
    let text = String::from_utf8(output.stderr.clone())?;
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text:?}");
    Ok(text)
}

#[test]
fn exit_codes() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let config = lab.services()[0].toml("fw-1") + &lab.services()[1].toml("fw-2");
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    assert_eq!(run(&tracker, &["status"])?.status.code(), Some(0));

    lab.services()[0].break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    for arguments in [&["status"][..], &["status", "--json"], &["status", "fw-1"]] {
        assert_eq!(
            run(&tracker, arguments)?.status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
    assert_eq!(run(&tracker, &["status", "fw-2"])?.status.code(), Some(0));

    let unknown = run(&tracker, &["status", "nonesuch"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(one_line(&unknown)?.contains("nonesuch"));

    tracker.terminate()?;
    let nobody = run(&tracker, &["status"])?;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        one_line(&nobody)?.contains("tracker.sock"),
        "it names the socket"
    );
    assert_eq!(run(&tracker, &["events"])?.status.code(), Some(1));
    assert_eq!(
        run(&tracker, &["status", "--nonesuch"])?.status.code(),
        Some(64)
    );
    assert_eq!(run(&tracker, &[])?.status.code(), Some(64));
    assert_eq!(run(&tracker, &["--help"])?.status.code(), Some(0));
    Ok(())
}

#[test]
fn status_has_the_keys_of_the_contract() -> Result<()> {
    let lab = Lab::new()?;
    let config =
        lab.service().toml("fw-1") + "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n";
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(tracker_lab::daemon::SOON, "fw-1")?.0;
    has_keys(&status, &["chains", "hub", "instance", "services"]);
    assert_eq!(status["hub"], "hub-1");
    assert_eq!(status["instance"], tracker.instance());
    assert_eq!(
        status["chains"][0],
        serde_json::json!({"name": "internet", "verdict": "up", "services": ["fw-1"]})
    );

    let service = &status["services"][0];
    has_keys(
        service,
        &["cause", "members", "name", "selected", "since", "verdict"],
    );
    assert_eq!(service["selected"], "active");
    let since = service["since"].as_str().context("read since")?;
    assert!(
        since.len() >= 20 && since.as_bytes()[10] == b'T' && since.ends_with('Z'),
        "{since}"
    );

    let member = &service["members"][0];
    has_keys(
        member,
        &[
            "cause",
            "endpoint",
            "interface",
            "mode",
            "role",
            "trackers",
            "verdict",
        ],
    );
    assert_eq!(member["role"], "active");
    assert_eq!(member["endpoint"], "10.9.0.2");
    assert_eq!(member["interface"], "eth1");
    let mode = member["mode"].as_str().context("read mode")?;
    assert!(
        ["xdp-native", "xdp-generic", "tc"].contains(&mode),
        "{mode}"
    );

    let one = &member["trackers"][0];
    has_keys(
        one,
        &[
            "behind",
            "cause",
            "duplicate",
            "lost",
            "probe",
            "received",
            "rtt_us",
            "sent",
            "verdict",
        ],
    );
    assert_eq!(one["behind"], "10.20.0.9");
    assert_eq!(one["probe"], "icmp");
    let number = |value: &Value| {
        value
            .as_u64()
            .with_context(|| format!("{value} is no number"))
    };
    assert!(number(&one["sent"])? >= number(&one["received"])?);
    assert_eq!(number(&one["duplicate"])?, 0);
    let rtt = &one["rtt_us"];
    has_keys(rtt, &["avg", "last", "max", "min"]);
    let (least, average, most) = (
        number(&rtt["min"])?,
        number(&rtt["avg"])?,
        number(&rtt["max"])?,
    );
    assert!(least <= average && average <= most, "{rtt}");
    assert!((1..1_000_000).contains(&most), "{rtt}");
    Ok(())
}

#[test]
fn the_table_shows_what_matters() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let table = String::from_utf8(run(&tracker, &["status"])?.stdout)?;
    for word in ["fw-1", "up", "replied", "eth1", "10.9.0.2", "10.20.0.9"] {
        assert!(table.contains(word), "{word} is not in\n{table}");
    }
    Ok(())
}

#[test]
fn events_have_an_order_without_gaps() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..3 {
        service.break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        service.mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    let events = tracker.events()?;
    assert!(events.len() >= 7);
    for pair in events.windows(2) {
        assert_eq!(pair[1].seq, pair[0].seq + 1, "{}", lines(&events));
    }
    // Each change starts where the one before it ended.
    let own: Vec<_> = events
        .iter()
        .filter(|event| event.is_of_service("fw-1"))
        .collect();
    assert_eq!(own[0].from, "unknown");
    for pair in own.windows(2) {
        assert_eq!(pair[1].from, pair[0].to, "{own:#?}");
    }
    // The tracker is reported by itself, with its address.
    assert!(
        events
            .iter()
            .any(|event| event.behind.as_deref() == Some("10.20.0.9"))
    );

    let since = events[3].seq;
    let output = run(
        &tracker,
        &["events", "--json", "--since", &since.to_string()],
    )?;
    let rest: Vec<_> = String::from_utf8(output.stdout)?
        .lines()
        .map(Event::parse)
        .collect::<Result<_>>()?;
    assert_eq!(rest, events[4..], "those after number {since}");
    Ok(())
}

#[test]
fn follow_tells_as_it_happens() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let follower = tracker.follow()?;
    for _ in 0..2 {
        lab.service().break_forwarding()?;
        let (_, down) =
            follower.wait_for(|event| event.is_of_service("fw-1") && event.to == "down")?;
        assert_eq!(down.cause, "no-reply");
        lab.service().mend()?;
        follower.wait_for(|event| event.is_of_service("fw-1") && event.to == "up")?;
    }
    drop(tracker);
    follower.wait_for_end()?;
    Ok(())
}

#[test]
fn every_command_has_help() -> Result<()> {
    for command in ["run", "check", "status", "events", "doctor", "cleanup"] {
        let output = std::process::Command::new(tracker_lab::daemon::binary())
            .args([command, "--help"])
            .output()?;
        assert!(output.status.success(), "{command}");
        assert!(output.stdout.len() > 100, "{command}");
    }
    Ok(())
}

#[test]
fn doctor_tells_the_mode_of_an_interface() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let config = tracker.config();
    for json in [false, true] {
        let mut command = tracker.command(&["doctor", "--config"]);
        command.arg(&config).args(json.then_some("--json"));
        let output = tracker_lab::netns::check(&mut command)?;
        let text = String::from_utf8(output.stdout)?;
        if json {
            serde_json::from_str::<Value>(&text).context("parse doctor's JSON")?;
        }
        for word in ["eth1", "xdp-native"] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }
    Ok(())
}

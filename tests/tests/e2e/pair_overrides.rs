//! A high-availability pair whose members and trackers are probed each in its own way.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Config, Lab, Status, Tracker};

/// The active member is probed fast; one address of the standby slowly, and with another `fall`.
const PAIR: &str = r#"
[[service]]
name = "fw-pair"
interval = "50ms"
fall = 4
[[service.member]]
role = "active"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.20.0.9", "2001:db8:20::9"]
policy = "all"
interval = "10ms"
timeout = "60ms"
fall = 5
rise = 4
[[service.member]]
role = "standby"
endpoint = "10.9.1.2"
interface = "eth2"
[[service.member.tracker]]
behind = "10.20.1.9"
interval = "100ms"
timeout = "150ms"
fall = 2
rise = 1
[[service.member.tracker]]
behind = "2001:db8:20:1::9"
"#;

fn member<'s>(status: &'s Status, role: &str) -> &'s str {
    status.member("fw-pair", role)["verdict"]
        .as_str()
        .unwrap_or_default()
}

/// Waits for the verdicts of both members, and which of them is selected.
fn wait(tracker: &Tracker<'_>, active: &str, standby: &str, selected: &str) -> Result<Status> {
    let what = format!("active {active}, standby {standby}, selected {selected}");
    tracker.wait_for(&what, LATER, |status| {
        member(status, "active") == active
            && member(status, "standby") == standby
            && status.selected("fw-pair") == selected
    })
}

/// The changes of members and service since an event, as lines, and the last event's number.
fn changes(tracker: &Tracker<'_>, since: &mut u64) -> Result<Vec<String>> {
    let events = tracker.events()?;
    let new = events.iter().filter(|event| event.seq > *since);
    let lines = new
        .filter(|event| event.behind.is_none())
        .map(|event| {
            let who = event.member.as_deref().unwrap_or("service");
            format!("{who} {} {}", event.to, event.cause)
        })
        .collect();
    *since = events.last().map_or(*since, |event| event.seq);
    Ok(lines)
}

#[test]
fn failover_and_return_without_flapping() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [active, standby] = [&lab.services()[0], &lab.services()[1]];
    let tracker = Tracker::start(&lab.hub, Config::new(PAIR))?;
    let all_up = |status: &Status| {
        [
            active.behind.to_string(),
            active.behind6.to_string(),
            standby.behind.to_string(),
            standby.behind6.to_string(),
        ]
        .iter()
        .all(|behind| status.tracker("fw-pair", behind)["verdict"] == "up")
    };
    tracker.wait_for("all four trackers to be up", LATER, all_up)?;
    let mut seen = 0;
    changes(&tracker, &mut seen)?;

    // The active fails over, and comes back: one event each way, and the service never changes.
    for _ in 0..2 {
        active.break_forwarding()?;
        let status = wait(&tracker, "down", "up", "standby")?;
        assert_eq!(
            (status.verdict("fw-pair"), status.cause("fw-pair")),
            ("up", "replied")
        );
        assert_eq!(status.member("fw-pair", "active")["cause"], "no-reply");
        assert_eq!(changes(&tracker, &mut seen)?, ["active down no-reply"]);
        active.mend()?;
        tracker.wait_for("all to be up again", LATER, all_up)?;
        wait(&tracker, "up", "up", "active")?;
        assert_eq!(changes(&tracker, &mut seen)?, ["active up replied"]);
    }

    // Policy all: one address of two takes the active member down, and back.
    active.block(active.behind)?;
    wait(&tracker, "down", "up", "standby")?;
    assert_eq!(changes(&tracker, &mut seen)?, ["active down no-reply"]);
    active.mend()?;
    wait(&tracker, "up", "up", "active")?;
    assert_eq!(changes(&tracker, &mut seen)?, ["active up replied"]);

    // The standby fails first, which changes nothing for the service; then the active.
    standby.break_forwarding()?;
    let status = wait(&tracker, "up", "down", "active")?;
    assert_eq!(status.verdict("fw-pair"), "up");
    active.break_forwarding()?;
    tracker.wait_verdict("fw-pair", "down", "no-reply")?;
    assert_eq!(
        changes(&tracker, &mut seen)?,
        [
            "standby down no-reply",
            "active down no-reply",
            "service down no-reply"
        ]
    );
    // The standby is back first.
    standby.mend()?;
    tracker.wait_verdict("fw-pair", "up", "replied")?;
    wait(&tracker, "down", "up", "standby")?;
    active.mend()?;
    wait(&tracker, "up", "up", "active")?;
    assert_eq!(
        changes(&tracker, &mut seen)?,
        [
            "standby up replied",
            "service up replied",
            "active up replied"
        ]
    );

    // The active's cable: another cause, the same failover.
    lab.hub.ip("link set eth1 down\n")?;
    let status = wait(&tracker, "down", "up", "standby")?;
    assert_eq!(
        status.member("fw-pair", "active")["cause"],
        "interface-down"
    );
    assert_eq!(status.verdict("fw-pair"), "up");
    Ok(())
}

/// Each tracker keeps its own interval, and is judged by its own `fall`.
#[test]
fn every_tracker_by_its_own_rules() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [active, standby] = [&lab.services()[0], &lab.services()[1]];
    let tracker = Tracker::start(&lab.hub, Config::new(PAIR))?;
    wait(&tracker, "up", "up", "active")?;
    let sent = |status: &Status, behind: std::net::Ipv4Addr| {
        status.tracker("fw-pair", behind)["sent"]
            .as_u64()
            .unwrap_or_default()
    };
    let sent6 = |status: &Status| {
        status.tracker("fw-pair", standby.behind6)["sent"]
            .as_u64()
            .unwrap_or_default()
    };
    let before = tracker.status()?;
    let after = tracker.wait_for("twenty probes by the slowest", SOON, |status| {
        sent(status, standby.behind) >= sent(&before, standby.behind) + 20
    })?;
    // In the order of their intervals, 10, 50 and 100 ms; a busy machine skips turns, most of the fastest.
    let slowest = sent(&after, standby.behind) - sent(&before, standby.behind);
    let inherited = sent6(&after) - sent6(&before);
    let fastest = sent(&after, active.behind) - sent(&before, active.behind);
    assert!(
        fastest > inherited && inherited > slowest,
        "{fastest}, {inherited}, {slowest}"
    );

    // What was lost when it is first seen down is at least its `fall`.
    active.break_forwarding()?;
    standby.break_forwarding()?;
    let down = wait(&tracker, "down", "down", "active")?;
    for (behind, fall) in [
        (active.behind.to_string(), 5),
        (active.behind6.to_string(), 5),
        (standby.behind.to_string(), 2),
        (standby.behind6.to_string(), 4),
    ] {
        let lost = down.tracker("fw-pair", &behind)["lost"].as_u64();
        if down.tracker("fw-pair", &behind)["verdict"] == "down" {
            assert!(lost >= Some(fall), "{behind}: {lost:?} of {fall}");
        }
    }
    Ok(())
}

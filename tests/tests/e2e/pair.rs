//! High-availability pairs, and policies over several behind addresses.

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::{Lab, Tracker};

const PAIR: &str = r#"
[[service]]
name = "fw-pair"
[[service.member]]
role = "active"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.20.0.9"]
[[service.member]]
role = "standby"
endpoint = "10.9.1.2"
interface = "eth2"
[[service.member.tracker]]
behind = "10.20.1.9"
"#;

#[test]
fn standby_takes_over_and_gives_back() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [active, standby] = [&lab.services()[0], &lab.services()[1]];
    let tracker = Tracker::start(&lab.hub, PAIR)?;
    tracker.wait_for("both members to be up", SOON, |status| {
        status.member("fw-pair", "active")["verdict"] == "up"
            && status.member("fw-pair", "standby")["verdict"] == "up"
    })?;
    assert_eq!(tracker.status()?.selected("fw-pair"), "active");

    active.break_forwarding()?;
    let status = tracker.wait_for("the standby to be selected", SOON, |status| {
        status.selected("fw-pair") == "standby"
    })?;
    assert_eq!(status.verdict("fw-pair"), "up");
    assert_eq!(status.member("fw-pair", "active")["verdict"], "down");
    assert_eq!(status.member("fw-pair", "active")["cause"], "no-reply");

    active.mend()?;
    tracker.wait_for("the active to be selected again", SOON, |status| {
        status.selected("fw-pair") == "active"
    })?;
    let went_down = tracker
        .history("fw-pair")?
        .iter()
        .any(|(to, _)| to == "down");
    assert!(!went_down, "one member was up all the time");

    active.break_forwarding()?;
    standby.break_forwarding()?;
    tracker.wait_verdict("fw-pair", "down", "no-reply")?;
    standby.mend()?;
    let status = tracker.wait_verdict("fw-pair", "up", "replied")?;
    assert_eq!(status.selected("fw-pair"), "standby");
    Ok(())
}

#[test]
fn policies_any_all_and_number() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.answer_for_all()?;
    let config: String = [("any", "\"any\"", 1), ("all", "\"all\"", 2), ("two", "2", 3)]
        .into_iter()
        .map(|(name, policy, ten)| {
            format!(
                "[[service]]\nname = \"{name}\"\nendpoint = \"10.9.0.2\"\ninterface = \"eth1\"\n\
                 behind = [\"10.20.0.{ten}1\", \"10.20.0.{ten}2\", \"10.20.0.{ten}3\"]\npolicy = {policy}\n"
            )
        })
        .collect();
    let tracker = Tracker::start(&lab.hub, &config)?;
    // How many of the three addresses are blocked, and the verdicts of any, all and two.
    for (blocked, verdicts) in [
        (0, ["up", "up", "up"]),
        (1, ["up", "down", "up"]),
        (2, ["up", "down", "down"]),
        (3, ["down", "down", "down"]),
    ] {
        if blocked > 0 {
            for ten in 1..=3 {
                service.block(format_args!("10.20.0.{ten}{blocked}"))?;
            }
        }
        let what = format!("{verdicts:?} with {blocked} of 3 blocked");
        let settled = |name: &str, status: &tracker_lab::Status| {
            (1..=3).all(|one| {
                let ten = ["any", "all", "two"]
                    .iter()
                    .position(|n| *n == name)
                    .unwrap_or(0)
                    + 1;
                let wanted = if one <= blocked { "down" } else { "up" };
                status.tracker(name, format_args!("10.20.0.{ten}{one}"))["verdict"] == wanted
            })
        };
        let status = tracker.wait_for(&what, SOON, |status| {
            ["any", "all", "two"]
                .iter()
                .all(|name| settled(name, status))
        })?;
        let found = ["any", "all", "two"].map(|name| status.verdict(name));
        assert_eq!(found, verdicts, "with {blocked} of 3 blocked");
    }
    Ok(())
}

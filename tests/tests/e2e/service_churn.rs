//! Services that come and go by the thousand, beside one that stays.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tracker_lab::daemon::{Config, SOON};
use tracker_lab::pace::{pause, slow};
use tracker_lab::status::Event;
use tracker_lab::{Lab, Tracker};

/// One of these tests loads the machine, another must not be disturbed.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names in `tracker service list --json`.
fn names(list: &Value) -> Vec<&str> {
    let services = list["services"].as_array().into_iter().flatten();
    services
        .filter_map(|service| service["name"].as_str())
        .collect()
}

/// What the daemon counts as `skipped` is also a machine that did not keep up, so a second hub runs beside it, which
/// is not changed: if the first one alone skips, the additions caused it.
#[test]
fn others_lose_no_probe() -> Result<()> {
    const SERVICES: usize = 200;
    let _alone = alone();
    let labs = [Lab::new()?, Lab::new()?];
    let start = |lab| {
        let lab: &Lab = lab;
        lab.service().answer_for_all()?;
        let config = Config::new(lab.service().toml("fw-1"));
        let defaults = "interval = \"10ms\"\ntimeout = \"500ms\"";
        let tracker = Tracker::start(&lab.hub, config.defaults(defaults))?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        anyhow::Ok(tracker)
    };
    let (tracker, control) = (start(&labs[0])?, start(&labs[1])?);
    let (mut calm, mut seen) = (0, Vec::new());
    while calm < 3 && seen.len() < 6 {
        let before = [tracker.wait_alive(SOON, "fw-1")?, control.status()?];
        for step in 0..SERVICES {
            let (third, last) = (1 + step / 200, 1 + step % 200);
            tracker.service(&format!(
                "add extra-{step} --endpoint 10.9.0.2 --behind 10.20.{third}.{last}"
            ))?;
            // Ten at a time, or it would be a test of how much the machine can send.
            if step >= 10 {
                tracker.service(&format!("remove extra-{}", step - 10))?;
            }
        }
        tracker.wait_verdict(&format!("extra-{}", SERVICES - 1), "up", "replied")?;
        for step in SERVICES - 10..SERVICES {
            tracker.service(&format!("remove extra-{step}"))?;
        }
        let after = [tracker.wait_alive(SOON, "fw-1")?, control.status()?];
        assert_eq!(names(&tracker.services()?), ["fw-1"]);
        let of_fw = |event: &Event| event.service.as_deref() == Some("fw-1");
        let events = tracker.events()?.into_iter().filter(of_fw).count();
        assert_eq!(events, 2, "its tracker up, itself up, and nothing since");
        let count = |hub: usize, what: &str| {
            after[hub].count("fw-1", what) - before[hub].count("fw-1", what)
        };
        assert!(count(0, "sent") > 20);
        assert_eq!(count(0, "lost"), 0);
        let skipped = [count(0, "skipped"), count(1, "skipped")];
        if skipped[0] == 0 {
            return Ok(());
        }
        calm += usize::from(skipped[1] == 0);
        seen.push(skipped);
    }
    assert!(
        calm < 3,
        "skipped, and by a hub that was left alone: {seen:?}"
    );
    Ok(())
}

/// Sizes of all kinds, so that the words of answered probes are split and joined again.
#[test]
fn ten_thousand_come_and_go() -> Result<()> {
    let _alone = alone();
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // What each descriptor is of. Files of the state directory are opened when there is something to write.
    let state = tracker.state().display().to_string();
    let open = || -> Result<Vec<String>> {
        let mut open = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", tracker.pid()?))? {
            // One may be closed meanwhile.
            if let Ok(link) = fs::read_link(entry?.path()) {
                open.push(link.display().to_string());
            }
        }
        open.retain(|link| !link.starts_with(&state));
        Ok(open)
    };
    let free = tracker.services()?["free"].clone();
    let descriptors = open()?;
    let timeouts = ["20ms", "500ms", "3s", "20s", "60s"];
    let mut there = VecDeque::new();
    for step in 0..10_000_usize {
        let timeout = timeouts[step % timeouts.len()];
        let interval = format!("{}ms", 5 + step % 997);
        let body = json!({"endpoint":"10.9.0.2","behind":["10.20.0.9"],"interval":interval,"timeout":timeout});
        let (status, said) =
            tracker.http("PUT", &format!("/v1/services/s{step}"), &body.to_string())?;
        ensure!(status == 201, "{step}: {status} {said}");
        there.push_back(step);
        while there.len() > step % 5 {
            // Now the oldest, now the newest.
            let gone = if step % 2 == 0 {
                there.pop_front()
            } else {
                there.pop_back()
            };
            let gone = gone.context("one that is there")?;
            let (status, said) = tracker.http("DELETE", &format!("/v1/services/s{gone}"), "")?;
            ensure!(status == 204, "{step}: {status} {said}");
        }
    }
    for left in there {
        tracker.service(&format!("remove s{left}"))?;
    }
    assert_eq!(tracker.services()?["free"], free);
    assert_eq!(names(&tracker.services()?), ["fw-1"]);
    // The last connections end in time of their own.
    let deadline = Instant::now() + slow(SOON);
    while open()?.len() > descriptors.len() + 1 {
        ensure!(
            Instant::now() < deadline,
            "{:#?} after {descriptors:#?}",
            open()?
        );
        pause(Duration::from_millis(50));
    }
    tracker.wait_alive(SOON, "fw-1")?;
    // All of the room is still there, in one piece.
    let behind: Vec<String> = (0..1024)
        .map(|last| format!("10.20.{}.{}", last / 256, last % 256))
        .collect();
    let body = json!({"endpoint": "10.9.0.2", "behind": behind}).to_string();
    let (status, said) = tracker.http("PUT", "/v1/services/all", &body)?;
    assert_eq!(status, 201, "{said}");
    Ok(())
}

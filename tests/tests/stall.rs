//! A hub that does not keep up blames nobody.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tracker_tests::daemon::{SOON, lines};
use tracker_tests::pace::pause;
use tracker_tests::{Lab, Tracker};

fn never_down(tracker: &Tracker) -> Result<()> {
    let events = tracker.events()?;
    assert!(
        events.iter().all(|event| event.to != "down"),
        "a healthy service went down:\n{}",
        lines(&events)
    );
    Ok(())
}

#[test]
fn stopped_for_ten_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.signal(Signal::SIGSTOP)?;
    pause(Duration::from_secs(10));
    tracker.signal(Signal::SIGCONT)?;
    tracker.wait_alive(SOON, "fw-1")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    never_down(&tracker)
}

#[test]
fn stopped_again_and_again() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // Shorter and longer than the timeout, and longer than timeout x fall.
    for stop_ms in [50, 150, 250, 450, 700, 1100] {
        tracker.signal(Signal::SIGSTOP)?;
        pause(Duration::from_millis(stop_ms));
        tracker.signal(Signal::SIGCONT)?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    never_down(&tracker)
}

#[test]
fn what_broke_while_it_was_stopped_is_found_afterwards() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.signal(Signal::SIGSTOP)?;
    lab.service().break_forwarding()?;
    pause(Duration::from_secs(1));
    tracker.signal(Signal::SIGCONT)?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert!(down.count("fw-1", "lost") >= 3);
    Ok(())
}

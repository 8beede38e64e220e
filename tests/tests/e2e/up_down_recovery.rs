//! The main job: a firewall that stops passing traffic is down although its own address answers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker_lab::pace::slow;
use tracker_lab::{Config, Lab, Tracker};

#[test]
fn firewall_breaks_and_recovers() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(up.tracker("fw-1", service.behind)["verdict"], "up");
    assert_eq!(up.count("fw-1", "lost"), 0);

    let broken = Instant::now();
    service.break_forwarding()?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let noticed = broken.elapsed();
    assert!(
        lab.hub.pings(service.endpoint)?,
        "its own address still answers"
    );
    assert!(down.count("fw-1", "lost") >= 3, "down after `fall` losses");

    let events = tracker.events()?;
    let event = events
        .iter()
        .find(|event| event.is_of_service("fw-1") && event.to == "down")
        .context("find the down event")?;
    assert_eq!(
        (event.from.as_str(), event.cause.as_str()),
        ("up", "no-reply")
    );
    let detection = Duration::from_micros(event.detection_us.context("read detection_us")?);
    assert!(
        detection >= slow(Duration::from_millis(200)),
        "{detection:?}: a probe counts as lost only after its full timeout"
    );
    assert!(
        detection <= noticed + slow(Duration::from_millis(100)),
        "{detection:?}, but it was seen {noticed:?} after the break"
    );

    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(tracker_lab::daemon::SOON, "fw-1")?;
    let verdicts: Vec<_> = tracker
        .history("fw-1")?
        .into_iter()
        .map(|(to, _)| to)
        .collect();
    assert_eq!(verdicts, ["up", "down", "up"]);
    Ok(())
}

#[test]
fn fall_and_rise_are_counted() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let config = Config::new(service.toml_with("fw-1", "fall = 10\nrise = 10"));
    let tracker = Tracker::start(&lab.hub, &config)?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert!(up.count("fw-1", "received") >= 10);

    service.break_forwarding()?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert!(down.count("fw-1", "lost") >= 10);
    Ok(())
}

#[test]
fn down_from_the_start_is_down() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.break_forwarding()?;
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_eq!(
        tracker.history("fw-1")?,
        [("down".to_owned(), "no-reply".to_owned())]
    );
    Ok(())
}

#[test]
fn a_timeout_longer_than_the_interval_is_waited_for() -> Result<()> {
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1"))
        .defaults("interval = \"10ms\"\ntimeout = \"1500ms\"\nfall = 2");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let broken = Instant::now();
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    // Minus one interval: the last probe to be answered may have left before the break.
    assert!(broken.elapsed() >= slow(Duration::from_millis(1490)));
    Ok(())
}

/// At the start the next hop is not resolved yet, so that the first turn is lost; the next is far away.
#[test]
fn the_first_probe_does_not_wait_for_a_long_interval() -> Result<()> {
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1")).defaults("interval = \"1h\"\nrise = 1");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

//! The hub's interface: down, deleted, made again, made late.

use anyhow::Result;
use tracker_tests::daemon::LATER;
use tracker_tests::{Lab, Tracker};

#[test]
fn interface_down_and_up() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub.ip("link set eth1 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    lab.hub.ip("link set eth1 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

#[test]
fn cable_pulled_at_the_other_end() -> Result<()> {
    let lab = Lab::new()?;
    let firewall = &lab.service().firewall;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    firewall.ip("link set eth0 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    firewall.ip("link set eth0 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn interface_deleted_and_made_again() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..2 {
        lab.hub.ip("link del eth1\n")?;
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        lab.service().plug(&lab.hub)?;
        tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
        tracker.wait_alive(LATER, "fw-1")?;
    }
    Ok(())
}

#[test]
fn interface_missing_at_the_start() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("link del eth1\n")?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "unknown", "interface-missing")?;
    lab.service().plug(&lab.hub)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

#[test]
fn interface_renamed_is_missing() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub
        .ip("link set eth1 down\nlink set eth1 name other\nlink set other up\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-missing")?;
    lab.hub
        .ip("link set other down\nlink set other name eth1\nlink set eth1 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn the_address_changes_while_running() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // Another source in the same network; the old one is answered no more.
    lab.hub
        .ip("address del 10.9.0.1/24 dev eth1\naddress add 10.9.0.55/24 dev eth1\n")?;
    lab.service()
        .firewall
        .nft("add rule inet firewall outage ip saddr 10.9.0.1 drop\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

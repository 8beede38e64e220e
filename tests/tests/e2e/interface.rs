//! The hub's interface: down, deleted, made again, made late.

use anyhow::Result;
use tracker_lab::daemon::LATER;
use tracker_lab::{Lab, Tracker};

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

/// The kernel takes IPv6 addresses away before it reports the interface down: two faults in a row, of
/// which the second decides.
#[test]
fn what_was_up_is_down_with_its_interface_whatever_went_first() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let config = service.toml("fw-1").replace(
        "behind = [",
        &format!("behind = [\"{}\", ", service.behind6),
    );
    let tracker = Tracker::start(&lab.hub, &config)?;
    let both = |status: &tracker_lab::status::Status, verdict: &str| {
        let trackers = [
            status.tracker("fw-1", service.behind),
            status.tracker("fw-1", service.behind6),
        ];
        trackers.iter().all(|tracker| tracker["verdict"] == verdict)
    };
    tracker.wait_for("both up", LATER, |status| both(status, "up"))?;
    lab.hub.ip("link set eth1 down\n")?;
    let down = tracker.wait_for("both down", LATER, |status| both(status, "down"))?;
    for behind in [service.behind.to_string(), service.behind6.to_string()] {
        assert_eq!(down.tracker("fw-1", behind)["cause"], "interface-down");
    }
    Ok(())
}

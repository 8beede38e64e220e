//! The next hop: never there, late, or suddenly another device.

use std::time::Duration;

use anyhow::Result;
use tracker_lab::daemon::LATER;
use tracker_lab::pace::pause;
use tracker_lab::{Lab, Tracker};

#[test]
fn an_endpoint_that_never_answers_is_not_blamed() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(
        &lab.hub,
        r#"
        [[service]]
        name = "nobody"
        endpoint = "10.9.0.77"
        interface = "eth1"
        behind = ["10.20.0.9"]
        "#,
    )?;
    tracker.wait_verdict("nobody", "unknown", "next-hop-unresolved")?;
    pause(Duration::from_secs(2));
    let status = tracker.wait_verdict("nobody", "unknown", "next-hop-unresolved")?;
    assert_eq!(
        status.count("nobody", "sent"),
        0,
        "there is nobody to send to"
    );
    assert_eq!(status.count("nobody", "lost"), 0);
    Ok(())
}

#[test]
fn an_endpoint_that_appears_late_comes_up() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service
        .firewall
        .ip("address del 10.9.0.2/24 dev eth0\naddress add 10.9.0.3/24 dev eth0\n")?;
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "unknown", "next-hop-unresolved")?;
    service.firewall.ip("address add 10.9.0.2/24 dev eth0\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn a_new_mac_that_is_announced_is_followed() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service
        .firewall
        .sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    service
        .firewall
        .ip("link set eth0 address 02:00:00:00:00:99\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

#[test]
fn a_new_mac_that_is_not_announced_is_found() -> Result<()> {
    let lab = Lab::new()?;
    lab.doubt_neighbours_soon()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // The second while the kernel has only just asked for the first.
    for mac in ["02:00:00:00:00:99", "02:00:00:00:00:98"] {
        service.change_mac_silently(mac)?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        service.asks_for_neighbours()?;
        tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    }
    Ok(())
}

#[test]
fn a_flushed_neighbour_table_is_filled_again() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub.ip("neigh flush dev eth1\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

#[test]
fn an_endpoint_that_goes_away_is_the_next_hops_fault() -> Result<()> {
    let lab = Lab::new()?;
    lab.doubt_neighbours_soon()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    service
        .firewall
        .ip("address del 10.9.0.2/24 dev eth0\naddress add 10.9.0.3/24 dev eth0\n")?;
    // The neighbour entry outlives the device for a while: first the probes go unanswered, then the next hop is unresolved.
    tracker.wait_verdict_within(LATER, "fw-1", "down", "next-hop-unresolved")?;
    service.firewall.ip("address add 10.9.0.2/24 dev eth0\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

//! A hub, a service and a behind address without any IPv4.

use anyhow::Result;
use tracker_lab::{Lab, Tracker};

#[test]
fn ipv6_only() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    lab.hub.ip("address del 10.9.0.1/24 dev eth1\n")?;
    let tracker = Tracker::start(
        &lab.hub,
        r#"
        [[service]]
        name = "fw-1"
        endpoint = "2001:db8:9::2"
        interface = "eth1"
        behind = ["2001:db8:20::9"]
        "#,
    )?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(
        up.tracker("fw-1", service.behind6)["behind"],
        "2001:db8:20::9"
    );
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert!(lab.hub.pings(service.endpoint6)?);
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn both_families_through_one_endpoint_each() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(
        &lab.hub,
        r#"
        [[service]]
        name = "four"
        endpoint = "10.9.0.2"
        interface = "eth1"
        behind = ["10.20.0.9"]
        [[service]]
        name = "six"
        endpoint = "2001:db8:9::2"
        interface = "eth1"
        behind = ["2001:db8:20::9"]
        "#,
    )?;
    tracker.wait_verdict("four", "up", "replied")?;
    tracker.wait_verdict("six", "up", "replied")?;
    lab.service()
        .firewall
        .nft("add rule inet firewall outage meta nfproto ipv6 drop\n")?;
    tracker.wait_verdict("six", "down", "no-reply")?;
    assert_eq!(tracker.status()?.verdict("four"), "up");
    Ok(())
}

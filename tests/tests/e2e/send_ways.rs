//! The ways out of the hub: XDP redirect if the interface can, TC redirect if it cannot, and a change from one to the other.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::skip::tells_xdp_features;
use tracker_lab::{Config, Lab, Tracker, skip};

/// How many frames have left the hub's interface by XDP redirect, by the driver's own count.
fn redirected(lab: &Lab) -> Result<u64> {
    let statistics = lab.hub.run("ethtool -S eth1")?;
    Ok(statistics
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("tx_queue") && name.ends_with("xdp_xmit"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum())
}

fn offload(lab: &Lab, state: &str) -> Result<()> {
    let firewall = &lab.service().firewall;
    firewall
        .run(&format!("ethtool -K eth0 gro {state}"))
        .map(drop)
}

#[test]
fn a_peer_without_xdp_and_gro_gets_tc_redirect() -> Result<()> {
    let lab = Lab::new()?;
    offload(&lab, "off")?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(redirected(&lab)?, 0);
    assert_eq!(status.count("fw-1", "lost"), 0);
    Ok(())
}

#[test]
fn a_peer_with_gro_gets_xdp_redirect() -> Result<()> {
    if !tells_xdp_features() {
        skip!("this kernel has no netdev family, and does not tell what devices take (Linux 6.3)");
    }
    let lab = Lab::new()?;
    offload(&lab, "on")?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = redirected(&lab)?;
    tracker.wait_alive(SOON, "fw-1")?;
    let redirected = redirected(&lab)? - before;
    assert!(redirected >= 15, "{redirected} frames by XDP redirect");
    Ok(())
}

#[test]
fn the_way_is_changed_while_running() -> Result<()> {
    if !tells_xdp_features() {
        skip!("this kernel has no netdev family, and does not tell what devices take (Linux 6.3)");
    }
    let lab = Lab::new()?;
    offload(&lab, "off")?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..3 {
        let before = redirected(&lab)?;
        offload(&lab, "on")?;
        tracker.wait_for("XDP redirect to be taken up", SOON, |_| {
            redirected(&lab).is_ok_and(|count| count > before)
        })?;
        offload(&lab, "off")?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    let history = tracker.history("fw-1")?;
    assert!(history.iter().all(|(to, _)| to != "down"), "{history:?}");
    Ok(())
}

#[test]
fn what_cannot_leave_is_send_failed_and_nobodys_fault() -> Result<()> {
    let lab = Lab::new()?;
    offload(&lab, "off")?;
    // A queue without room: the interface drops every frame before it is sent, and counts none as sent.
    let closed = "tc qdisc add dev eth1 root pfifo limit 0";
    if !lab.hub.succeeds(closed)? {
        skip!("this kernel has no pfifo queue (`{closed}`)");
    }
    lab.hub.run("tc qdisc del dev eth1 root")?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // Not for want of ARP: the next hop stays known.
    lab.hub.run(closed)?;
    let failed = tracker.wait_for("the cause send-failed", SOON, |status| {
        status.cause("fw-1") == "send-failed"
    })?;
    assert_eq!(failed.verdict("fw-1"), "unknown");
    assert_eq!(
        failed.tracker("fw-1", lab.service().behind)["detail"],
        "what is handed to eth1 does not leave it"
    );
    let history = tracker.history("fw-1")?;
    assert!(
        history.iter().all(|(_, cause)| cause != "no-reply"),
        "{history:?}"
    );
    lab.hub.run("tc qdisc del dev eth1 root")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn every_mode_of_receiving_works() -> Result<()> {
    let lab = Lab::new()?;
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let config = Config::new(lab.service().toml("fw-1")).mode(mode);
        let tracker = Tracker::start(&lab.hub, &config)?;
        let status = tracker.wait_verdict("fw-1", "up", "replied")?;
        assert_eq!(status.member("fw-1", "active")["mode"], mode);
        lab.service().break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        lab.service().mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    Ok(())
}

/// A service on an interface made of `eth1` by `hub` and of `eth0` by `firewall`, in 10.9.7.0/24.
fn works_over(interface: &str, hub: &str, firewall: &str) -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let kind = hub.lines().next().unwrap_or_default();
    if !lab.hub.succeeds(&format!("ip {kind}"))? {
        skip!("this kernel cannot `ip {kind}`");
    }
    let rest: String = hub
        .lines()
        .skip(1)
        .map(|line| format!("{line}\n"))
        .collect();
    lab.hub.ip(&format!(
        "{rest}address add 10.9.7.1/24 dev {interface}\nlink set {interface} up\n"
    ))?;
    service.firewall.ip(firewall)?;
    // Whatever the firewall calls its end.
    service.firewall.nft(
        "add rule inet firewall forward ip daddr 10.20.0.0/16 counter name forwarded accept\n",
    )?;
    let config = format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.7.2\"\ninterface = \"{interface}\"\nbehind = [\"10.20.0.9\"]\n"
    );
    let tracker = Tracker::start(&lab.hub, Config::new(config).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(status.count("fw-1", "lost"), 0);
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

#[test]
fn over_a_bridge() -> Result<()> {
    works_over(
        "br1",
        "link add br1 type bridge\nlink set eth1 master br1",
        "address add 10.9.7.2/24 dev eth0\n",
    )
}

#[test]
fn over_macvlan() -> Result<()> {
    works_over(
        "mac1",
        "link add link eth1 name mac1 type macvlan mode bridge",
        "address add 10.9.7.2/24 dev eth0\n",
    )
}

#[test]
fn over_vxlan() -> Result<()> {
    works_over(
        "vx1",
        "link add vx1 type vxlan id 7 local 10.9.0.1 remote 10.9.0.2 dstport 4789 dev eth1",
        "link add vx1 type vxlan id 7 local 10.9.0.2 remote 10.9.0.1 dstport 4789 dev eth0\n\
         address add 10.9.7.2/24 dev vx1\nlink set vx1 up\n",
    )
}

#[test]
fn over_vlan() -> Result<()> {
    works_over(
        "eth1.10",
        "link add link eth1 name eth1.10 type vlan id 10",
        "link add link eth0 name eth0.10 type vlan id 10\n\
         address add 10.9.7.2/24 dev eth0.10\nlink set eth0.10 up\n",
    )
}

/// Another service on the device below: its receive program sees the upper service's replies first, and
/// must let them pass.
#[test]
fn one_service_above_another() -> Result<()> {
    let uppers = [
        (
            "br1",
            "link add br1 type bridge\nlink set eth1 master br1\n",
        ),
        (
            "mac1",
            "link add link eth1 name mac1 type macvlan mode bridge\n",
        ),
    ];
    for (upper, make) in uppers {
        let lab = Lab::new()?;
        let service = lab.service();
        lab.hub.ip(&format!(
            "{make}address add 10.9.7.1/24 dev {upper}\nlink set {upper} up\n"
        ))?;
        service.firewall.ip("address add 10.9.7.2/24 dev eth0\n")?;
        let above = format!(
            "[[service]]\nname = \"above\"\nendpoint = \"10.9.7.2\"\ninterface = \"{upper}\"\nbehind = [\"10.20.0.9\"]\n"
        );
        let config = Config::new(above + &service.toml("below")).mode("auto");
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("above", "up", "replied")?;
        tracker.wait_alive(SOON, "above")?;
        service.break_forwarding()?;
        tracker.wait_verdict("above", "down", "no-reply")?;
    }
    Ok(())
}

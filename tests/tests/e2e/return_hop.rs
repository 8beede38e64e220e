//! Which neighbour brings the replies back on the member's own interface: the endpoint, or another one.

use anyhow::{Context as _, Result};
use tracker_lab::daemon::SOON;
use tracker_lab::{Config, Lab, Tracker};

/// Replies to the hub come from another MAC address of the same network segment, or no longer.
fn answer_by_another(lab: &Lab, is_another: bool) -> Result<()> {
    lab.service().firewall.ip(match is_another {
        true => "route add 10.9.0.1/32 dev other\n",
        false => "route del 10.9.0.1/32 dev other\n",
    })
}

fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.service()
        .firewall
        .ip("link add other link eth0 type macvlan mode bridge\n\
         address add 10.9.0.3/24 dev other noprefixroute\nlink set other up\n")?;
    Ok(lab)
}

#[test]
fn a_reply_by_another_router_of_the_segment() -> Result<()> {
    for mode in ["auto", "tc"] {
        let lab = lab()?;
        let service = lab.service();
        let config = Config::new(service.toml_with("fw-1", "return_hop = \"endpoint\"")).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        answer_by_another(&lab, true)?;
        let down = tracker.wait_verdict("fw-1", "down", "wrong-path")?;
        let other = service.firewall.run("ip -o link show other")?;
        let mac = other
            .split_whitespace()
            .skip_while(|word| *word != "link/ether");
        let mac = mac.into_iter().nth(1).context("the other MAC address")?;
        assert_eq!(
            down.tracker("fw-1", service.behind)["detail"],
            format!(
                "a reply arrived on eth1, brought by another MAC address {mac} than the endpoint's"
            )
        );
        answer_by_another(&lab, false)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    Ok(())
}

/// A router of a redundant pair may send from its own address what it receives by the pair's: no fault unless the
/// config says so.
#[test]
fn anybody_may_bring_it_otherwise() -> Result<()> {
    let lab = lab()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    answer_by_another(&lab, true)?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(status.count("fw-1", "wrong_path"), 0);
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

/// What is compared with follows the neighbour table: a box that takes over the endpoint's address is the endpoint.
#[test]
fn another_box_takes_over_the_endpoint() -> Result<()> {
    let lab = lab()?;
    let service = lab.service();
    let more = "return_hop = \"endpoint\"\nfall = 60";
    let tracker = Tracker::start(&lab.hub, &service.toml_with("fw-1", more))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    service
        .firewall
        .ip("link set eth0 address 02:00:00:00:77:01\n")?;
    // As a router does that takes over; the kernel believes it at once.
    service
        .firewall
        .sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
    service
        .firewall
        .ip("link set eth0 down\nlink set eth0 up\nroute replace 10.20.0.0/16 via 10.30.0.2\n")?;
    tracker.wait_for("replies brought by the new address", SOON, |status| {
        status.verdict("fw-1") == "up"
    })?;
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

/// A reply with more hops left than it must have did not pass the service.
#[test]
fn a_reply_with_another_ttl() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    let seen = up.tracker("fw-1", service.behind)["return_ttl"].clone();
    let seen = seen.as_u64().context("the TTL of a reply")?;
    assert_eq!(seen, 63, "one router between");
    let config = service.toml_with("fw-1", &format!("return_ttl = {seen}"));
    assert!(tracker.reload(&config)?);
    tracker.wait_alive(SOON, "fw-1")?;
    // As if there were no router between.
    service.host.sysctl("net/ipv4/ip_default_ttl", "65")?;
    let down = tracker.wait_verdict("fw-1", "down", "wrong-path")?;
    assert_eq!(
        down.tracker("fw-1", service.behind)["detail"],
        "a reply arrived on eth1 with TTL 64, not 63"
    );
    service.host.sysctl("net/ipv4/ip_default_ttl", "64")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

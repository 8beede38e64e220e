//! Whatever the hub's own routing says, a probe goes out of the service's interface, through the service.

use anyhow::Result;
use tracker_lab::{Config, Lab, Tracker};

/// The service is up through its firewall (by the firewall's own count), and the firewall decides over the verdict.
fn is_up_through_the_firewall(lab: &Lab, config: impl Into<Config>) -> Result<()> {
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let (forwarded, sent) = (
        service.forwarded()?,
        tracker.status()?.count("fw-1", "sent"),
    );
    let status = tracker.wait_alive(tracker_lab::daemon::SOON, "fw-1")?;
    let (forwarded, sent) = (
        service.forwarded()? - forwarded,
        status.count("fw-1", "sent") - sent,
    );
    assert!(
        forwarded >= 15,
        "the firewall forwarded {forwarded} of {sent} probes"
    );
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

#[test]
fn no_route_at_all() -> Result<()> {
    let lab = Lab::new()?;
    assert!(!lab.hub.succeeds("ip route get 10.20.0.9")?);
    is_up_through_the_firewall(&lab, &lab.service().toml("fw-1"))
}

#[test]
fn the_table_says_another_interface() -> Result<()> {
    let lab = Lab::with_services(2)?;
    // The second service's firewall would even answer for the address itself.
    let decoy = &lab.services()[1];
    decoy.firewall.ip("address add 10.20.0.9/32 dev lo\n")?;
    lab.hub.ip("route add 10.20.0.0/24 via 10.9.1.2\n")?;
    assert!(lab.hub.run("ip route get 10.20.0.9")?.contains("eth2"));
    assert!(lab.hub.pings("10.20.0.9")?);
    is_up_through_the_firewall(&lab, &lab.service().toml("fw-1"))
}

#[test]
fn the_table_says_blackhole() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub
        .ip("route add blackhole 10.20.0.0/24\nroute add blackhole 2001:db8:20::/64\n")?;
    is_up_through_the_firewall(&lab, &lab.service().toml("fw-1"))
}

#[test]
fn the_hub_owns_the_address() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("address add 10.20.0.9/32 dev lo\n")?;
    assert!(lab.hub.run("ip route get 10.20.0.9")?.contains("local"));
    is_up_through_the_firewall(&lab, &lab.service().toml("fw-1"))
}

#[test]
fn the_hub_owns_the_ipv6_address() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("address add 2001:db8:20::9/128 dev lo\n")?;
    is_up_through_the_firewall(
        &lab,
        r#"
        [[service]]
        name = "fw-1"
        endpoint = "2001:db8:9::2"
        interface = "eth1"
        behind = ["2001:db8:20::9"]
        "#,
    )
}

#[test]
fn strict_reverse_path_filters_everywhere() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    for namespace in [&lab.hub, &service.firewall, &service.host] {
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    }
    lab.hub.sysctl("net/ipv4/conf/eth1/rp_filter", "1")?;
    is_up_through_the_firewall(&lab, &service.toml("fw-1"))
}

#[test]
fn the_hubs_own_packet_filter_drops_everything() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.nft(
        "table inet closed {
           chain input { type filter hook input priority filter; policy drop; }
           chain output { type filter hook output priority filter; policy drop; }
         }",
    )?;
    assert!(!lab.hub.pings(lab.service().endpoint)?);
    is_up_through_the_firewall(&lab, &lab.service().toml("fw-1"))
}

#[test]
fn the_source_that_the_config_names() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    lab.hub.ip("address add 10.9.0.111/24 dev eth1\n")?;
    service.firewall.nft(
        "add counter inet firewall from_source
         insert rule inet firewall forward ip saddr 10.9.0.111 counter name from_source\n",
    )?;
    let config = service.toml_with("fw-1", "source = \"10.9.0.111\"");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let counter = service
        .firewall
        .run("nft list counter inet firewall from_source")?;
    assert!(!counter.contains("packets 0 "), "{counter}");
    Ok(())
}

#[test]
fn the_interface_is_found_from_the_endpoints_route() -> Result<()> {
    let lab = Lab::new()?;
    is_up_through_the_firewall(
        &lab,
        r#"
        [[service]]
        name = "fw-1"
        endpoint = "10.9.0.2"
        behind = ["10.20.0.9"]
        "#,
    )
}

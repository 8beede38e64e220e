//! Link-local endpoints, the same on several interfaces; next hops of one family, addresses behind of the other.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Lab, Tracker};

/// `count` services whose firewalls are all fe80::2 on the hub's side, and nothing else in IPv6.
fn lab(count: u8) -> Result<Lab> {
    let lab = Lab::with_services(count)?;
    for service in lab.services() {
        service.firewall.ip(&format!(
            "address del {}/64 dev eth0\naddress add fe80::2/64 dev eth0\n\
             route add {}/128 dev eth0\n",
            service.endpoint6, service.hub_address6
        ))?;
    }
    Ok(lab)
}

fn toml(name: &str, endpoint: &str, interface: &str, behind: &[String], more: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\ninterface = \"{interface}\"\nbehind = {behind:?}\npolicy = \"all\"\n{more}\n"
    )
}

#[test]
fn the_same_endpoint_on_several_interfaces() -> Result<()> {
    let lab = lab(3)?;
    let names = ["fw-1", "fw-2", "fw-3"];
    // IPv4 behind an IPv6 next hop as well.
    let config: String = lab
        .services()
        .iter()
        .zip(names)
        .map(|(service, name)| {
            let behind = [service.behind6.to_string(), service.behind.to_string()];
            toml(name, "fe80::2", &service.interface, &behind, "")
        })
        .collect();
    // No reply to a link-local source would reach the hub.
    for service in lab.services() {
        service.firewall.nft(&format!(
            "add counter inet firewall proper
             insert rule inet firewall forward ip6 saddr {} counter name proper\n",
            service.hub_address6
        ))?;
    }
    let tracker = Tracker::start(&lab.hub, &config)?;
    for (broken, service) in lab.services().iter().enumerate() {
        tracker.wait_for("all up", LATER, |status| {
            names.iter().all(|name| status.verdict(name) == "up")
        })?;
        let counter = service
            .firewall
            .run("nft list counter inet firewall proper")?;
        assert!(!counter.contains("packets 0 "), "{counter}");
        service.break_forwarding()?;
        let down = tracker.wait_for("both addresses down", SOON, |status| {
            [service.behind6.to_string(), service.behind.to_string()]
                .iter()
                .all(|behind| status.tracker(names[broken], behind)["verdict"] == "down")
        })?;
        assert_eq!(down.cause(names[broken]), "no-reply");
        for other in (0..3).filter(|other| *other != broken) {
            tracker.wait_alive(SOON, names[other])?;
            assert_eq!(down.verdict(names[other]), "up");
        }
        service.mend()?;
    }
    tracker.wait_for("all up", LATER, |status| {
        names.iter().all(|name| status.verdict(name) == "up")
    })?;
    // Another box takes one over: the same address on the other interfaces has nothing to do with it.
    let firewall = &lab.services()[1].firewall;
    firewall.sysctl("net/ipv6/conf/eth0/ndisc_notify", "1")?;
    firewall.ip("link set eth0 address 02:00:00:00:00:99\n")?;
    for name in names {
        tracker.wait_alive(LATER, name)?;
    }
    Ok(())
}

#[test]
fn a_link_local_endpoint_needs_its_interface() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tracker.toml");
    std::fs::write(
        &file,
        "[[service]]\nname = \"fw-1\"\nendpoint = \"fe80::2\"\nbehind = [\"2001:db8:20::9\"]\n",
    )?;
    for command in [&["check"][..], &["run", "--config"]] {
        let output = lab
            .hub
            .command(tracker_lab::daemon::binary())
            .args(command)
            .arg(&file)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let told = said.lines().filter(|line| line.contains("tracker.toml:"));
        assert_eq!(told.count(), 1, "{said}");
        for word in [
            "tracker.toml:3",
            "fe80::2 is link-local",
            "interface = \"NAME\"",
        ] {
            assert!(said.contains(word), "{word} in {said}");
        }
    }
    Ok(())
}

/// The next hop's family and that of the address behind have nothing to do with each other.
#[test]
fn next_hops_of_the_other_family() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let (v4, v6) = ([service.behind.to_string()], [service.behind6.to_string()]);
    let names = ["v4-over-v6", "v6-over-v4"];
    let config = toml(names[0], "2001:db8:9::2", "eth1", &v4, "")
        + &toml(names[1], "10.9.0.2", "eth1", &v6, "");
    let tracker = Tracker::start(&lab.hub, &config)?;
    for name in names {
        tracker.wait_verdict_within(LATER, name, "up", "replied")?;
    }
    service.break_forwarding()?;
    for name in names {
        tracker.wait_verdict(name, "down", "no-reply")?;
    }
    service.mend()?;
    for name in names {
        tracker.wait_verdict_within(LATER, name, "up", "replied")?;
    }
    Ok(())
}

/// As on an unnumbered link (RFC 8950): no IPv4 between hub and service, IPv4 behind it.
#[test]
fn an_unnumbered_link() -> Result<()> {
    let lab = lab(1)?;
    let service = lab.service();
    let link_local = lab
        .hub
        .run("ip -6 -brief address show dev eth1 scope link")?;
    let link_local = link_local
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .unwrap_or_default()
        .to_owned();
    lab.hub
        .ip("address del 10.9.0.1/24 dev eth1\naddress add 10.9.255.1/32 dev lo\n")?;
    service.firewall.ip(&format!(
        "address del 10.9.0.2/24 dev eth0\nroute add 10.9.255.1/32 via inet6 {link_local} dev eth0\n"
    ))?;
    let behind = [service.behind.to_string()];
    let config = toml(
        "unnumbered",
        "fe80::2",
        "eth1",
        &behind,
        "source = \"10.9.255.1\"",
    ) + &toml("no-source", "fe80::2", "eth1", &behind, "");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict_within(LATER, "unnumbered", "up", "replied")?;
    let status = tracker.wait_verdict("no-source", "unknown", "send-failed")?;
    let detail = status.tracker("no-source", service.behind)["detail"].to_string();
    assert!(
        detail.contains("eth1 has no usable IPv4 address"),
        "{detail}"
    );
    service.break_forwarding()?;
    tracker.wait_verdict("unnumbered", "down", "no-reply")?;
    service.mend()?;
    tracker.wait_verdict_within(LATER, "unnumbered", "up", "replied")?;
    Ok(())
}

/// Without a link-local address of its own, the hub's kernel solicits no neighbour; the cause says so.
#[test]
fn a_hub_without_link_local_address() -> Result<()> {
    let lab = Lab::new()?;
    let behind = [lab.service().behind6.to_string()];
    let tracker = Tracker::start(
        &lab.hub,
        &toml("fw-1", "2001:db8:9::2", "eth1", &behind, ""),
    )?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    lab.hub.sysctl("net/ipv6/conf/eth1/addr_gen_mode", "1")?;
    lab.hub
        .ip("link set eth1 down\nlink set eth1 up\naddress add 2001:db8:9::1/64 dev eth1\n")?;
    let status = tracker.wait_verdict("fw-1", "down", "next-hop-unresolved")?;
    let detail = status.tracker("fw-1", lab.service().behind6)["detail"].to_string();
    assert!(
        detail.contains("eth1 has no IPv6 link-local address"),
        "{detail}"
    );
    lab.hub.ip("address add fe80::1/64 dev eth1\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

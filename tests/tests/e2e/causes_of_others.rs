//! What others say of a probe that they do not let through is the cause.

use anyhow::{Context as _, Result};
use tracker_lab::servers::{TcpEcho, UdpEcho};
use tracker_lab::{Config, Lab, Tracker};

const PORT: u16 = 7_007;

fn config(lab: &Lab, behind: impl std::fmt::Display, more: &str) -> Config {
    Config::new(lab.service().toml_to("fw-1", behind, more))
}

#[test]
fn the_firewall_rejects() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behinds = service.behinds();
    let _echo = UdpEcho::start(&service.host, &behinds, PORT)?;
    let (v4, v6) = (service.behind.to_string(), service.behind6.to_string());
    let (from, from6) = (service.endpoint, service.endpoint6);
    let udp = format!("probe = \"udp\"\nport = {PORT}");
    let by_icmp = "reject with icmp type admin-prohibited";
    let by_icmpv6 = "reject with icmpv6 type admin-prohibited";
    let no_port = "reject with icmp type port-unreachable";
    for (mode, behind, probe, rule, detail) in [
        (
            "xdp-native",
            &v4,
            "",
            by_icmp,
            format!("ICMP type 3 code 13 (administratively prohibited) from {from}"),
        ),
        (
            "xdp-native",
            &v6,
            "",
            by_icmpv6,
            format!("ICMPv6 type 1 code 1 (administratively prohibited) from {from6}"),
        ),
        (
            "tc",
            &v4,
            udp.as_str(),
            no_port,
            format!("ICMP type 3 code 3 (port unreachable) from {from}"),
        ),
        (
            "tc",
            &v6,
            udp.as_str(),
            by_icmpv6,
            format!("ICMPv6 type 1 code 1 (administratively prohibited) from {from6}"),
        ),
    ] {
        let config = config(&lab, behind, probe).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let family = if behind.contains(':') { "ip6" } else { "ip" };
        service.firewall.nft(&format!(
            "add rule inet firewall outage {family} daddr {behind} {rule}\n"
        ))?;
        let down = tracker.wait_verdict("fw-1", "down", "unreachable")?;
        let shown = down.tracker("fw-1", behind);
        assert_eq!(shown["detail"], detail, "{shown}");
        assert!(down.count("fw-1", "icmp_errors") > 0, "{shown}");
        let events = tracker.events()?;
        let event = events
            .iter()
            .find(|event| event.is_of_service("fw-1") && event.to == "down")
            .context("find the down event")?;
        assert!(
            event.detection_us >= Some(200_000),
            "{event}: an error only explains what took its full timeout"
        );
        service.mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    Ok(())
}

/// No program has the port behind the service, and the host says so.
#[test]
fn nobody_listens() -> Result<()> {
    let lab = Lab::new()?;
    let behind = lab.service().behind;
    let udp = format!("probe = \"udp\"\nport = {PORT}");
    let tracker = Tracker::start(&lab.hub, config(&lab, behind, &udp))?;
    let down = tracker.wait_verdict("fw-1", "down", "refused")?;
    let detail = format!("ICMP type 3 code 3 (port unreachable) from {behind}");
    assert_eq!(down.tracker("fw-1", behind)["detail"], detail);
    Ok(())
}

/// A loop of routes: the error comes from a router on the way.
#[test]
fn the_service_routes_in_a_loop() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    service
        .host
        .ip(&format!("address del {}/32 dev eth0\n", service.behind))?;
    service.host.sysctl("net/ipv4/ip_forward", "1")?;
    let down = tracker.wait_verdict("fw-1", "down", "unreachable")?;
    let detail = down.tracker("fw-1", service.behind)["detail"].clone();
    let detail = detail.as_str().unwrap_or_default();
    assert!(
        detail.starts_with("ICMP type 11 code 0 (TTL exceeded, as in a routing loop) from "),
        "{detail}"
    );
    Ok(())
}

/// The service sends probes back to the hub, which is no router: no ICMP error tells of it.
#[test]
fn the_service_sends_probes_back_to_the_hub() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let (v4, v6) = (service.behind.to_string(), service.behind6.to_string());
    let mac = service.firewall.run("ip -o link show eth0")?;
    let mac = mac
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let mac = mac.into_iter().nth(1).context("the MAC address of eth0")?;
    for (mode, behind, probe) in [
        ("xdp-native", &v4, ""),
        ("tc", &v6, ""),
        ("tc", &v4, "probe = \"udp\"\nport = 7007"),
        ("xdp-native", &v6, "probe = \"tcp\"\nport = 443"),
    ] {
        let _echo = UdpEcho::start(&service.host, &service.behinds(), PORT)?;
        let _server = TcpEcho::start(&service.host, &service.behinds(), 443)?;
        let config = config(&lab, behind, probe).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let (hub, len) = match behind.contains(':') {
            true => ("2001:db8:9::1", 128),
            false => ("10.9.0.1", 32),
        };
        let way = format!("{behind}/{len} via {hub} dev eth0");
        service.firewall.ip(&format!("route add {way}\n"))?;
        let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
        let detail = format!(
            "its probes come back to the hub on eth1, sent by {mac}, with TTL 63: a routing loop, unless the hub is the next \
             router on the way to {behind}"
        );
        assert_eq!(
            down.tracker("fw-1", behind)["detail"],
            detail,
            "{mode} {probe}"
        );
        service.firewall.ip(&format!("route del {way}\n"))?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    Ok(())
}

/// A router with a smaller MTU says so, as path MTU discovery wants it; the small tracker beside stays up.
#[test]
fn a_packet_is_too_big() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let (behind, behind6) = (service.behind.to_string(), service.behind6.to_string());
    let toml = format!(
        "{}{}",
        service.toml_with("small", ""),
        [("v4", &behind), ("v6", &behind6)]
            .map(|(name, behind)| service.toml_to(name, behind, "payload = 1400"))
            .concat()
    );
    let tracker = Tracker::start(&lab.hub, &toml)?;
    for name in ["small", "v4", "v6"] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    service.firewall.ip("link set eth1 mtu 1300\n")?;
    for (name, behind, error, from) in [
        (
            "v4",
            &behind,
            "ICMP type 3 code 4 (fragmentation needed)",
            service.endpoint.to_string(),
        ),
        (
            "v6",
            &behind6,
            "ICMPv6 type 2 code 0 (packet too big)",
            service.endpoint6.to_string(),
        ),
    ] {
        let down = tracker.wait_verdict(name, "down", "unreachable")?;
        assert_eq!(
            down.tracker(name, behind)["detail"],
            format!("{error} from {from}")
        );
    }
    assert_eq!(tracker.history("small")?.len(), 1);
    Ok(())
}

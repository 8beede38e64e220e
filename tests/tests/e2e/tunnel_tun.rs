//! A service at the other end of a layer-3 tunnel, whose packets have no Ethernet header. A tun device here: its
//! tunnel is a thread of the test.

use anyhow::Result;
use serde_json::Value;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::servers::{Reflector, TcpEcho, half_open};
use tracker_lab::tun::Tunnel;
use tracker_lab::{Config, Lab, Tracker, skip};

const SERVICE: &str = r#"
[[service]]
name = "fw-1"
endpoint = "10.9.7.2"
interface = "tun0"
behind = ["10.20.0.9", "2001:db8:20::9"]
policy = "all"
"#;

/// Gives both ends of a tunnel their addresses and sets them up.
fn set_up(lab: &Lab) -> Result<()> {
    for (namespace, host) in [(&lab.hub, 1), (&lab.service().firewall, 2)] {
        namespace.ip(&format!(
            "address replace 10.9.7.{host}/24 dev tun0\n\
             address replace 2001:db8:97::{host}/64 dev tun0\n\
             link set tun0 up\n"
        ))?;
    }
    Ok(())
}

/// A lab whose hub and firewall are connected by tun0 too; `None` if the kernel has no tun devices.
fn lab_with_tunnel() -> Result<Option<(Lab, Tunnel)>> {
    let lab = Lab::new()?;
    if !lab.hub.succeeds("ip tuntap add dev tun0 mode tun")? {
        return Ok(None);
    }
    lab.hub.ip("link del tun0\n")?;
    let tunnel = connect(&lab)?;
    lab.service()
        .firewall
        .nft("add rule inet firewall forward iifname tun0 counter name forwarded accept\n")?;
    Ok(Some((lab, tunnel)))
}

fn connect(lab: &Lab) -> Result<Tunnel> {
    let tunnel = Tunnel::new("tun0", [&lab.hub, &lab.service().firewall])?;
    set_up(lab)?;
    Ok(tunnel)
}

macro_rules! lab_with_tunnel {
    () => {
        match lab_with_tunnel()? {
            Some(made) => made,
            None => skip!("this kernel has no tun devices (`ip tuntap add`)"),
        }
    };
}

#[test]
fn down_and_up_through_a_tunnel() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, Config::new(SERVICE).mode("auto"))?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = service.forwarded()?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    let member = status.member("fw-1", "active");
    assert_eq!(
        (&member["interface"], &member["mode"], &member["send"]),
        (&"tun0".into(), &"tc".into(), &"tc-redirect".into())
    );
    assert_eq!(status.count("fw-1", "lost"), up.count("fw-1", "lost"));
    assert!(service.forwarded()? >= before + 15);

    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    // The endpoint itself still answers through the tunnel.
    assert!(lab.hub.pings("10.9.7.2")?);
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;

    // One family alone.
    service.block("10.20.0.9")?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let verdict = |behind: &str| &down.tracker("fw-1", behind)["verdict"];
    assert_eq!(
        (verdict("10.20.0.9"), verdict("2001:db8:20::9")),
        (&"down".into(), &"up".into())
    );
    // A tunnel has no MAC addresses: there is no neighbour entry to keep.
    assert_eq!(lab.hub.run("ip neigh show dev tun0")?, "");
    let history = tracker.history("fw-1")?;
    assert!(
        history
            .iter()
            .all(|(_, cause)| cause != "next-hop-unresolved"),
        "{history:?}"
    );
    Ok(())
}

/// Kinds of probes whose replies bear no mark; the end of a connection leaves by the tunnel like its SYN.
#[test]
fn tcp_and_stamp_through_a_tunnel() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    let service = lab.service();
    let behinds = service.behinds();
    let server = TcpEcho::start(&service.host, &behinds, 443)?;
    let _reflector = Reflector::start(&service.host, &behinds, 862)?;
    let services = [
        ("tcp", "probe = \"tcp\"\nport = 443"),
        ("stamp", "probe = \"udp\"\nprotocol = \"stamp\""),
        ("udp", "probe = \"udp\"\nport = 9"),
    ]
    .map(|(name, probe)| SERVICE.replace("fw-1", name) + probe + "\n");
    let tracker = Tracker::start(&lab.hub, Config::new(services.concat()).mode("auto"))?;
    for name in ["tcp", "stamp"] {
        tracker.wait_verdict(name, "up", "replied")?;
        tracker.wait_alive(SOON, name)?;
    }
    tracker.wait_verdict("udp", "down", "refused")?;
    assert_eq!(server.accepted(), 0);
    tracker.wait_for("no connection to be half open", SOON, |_| {
        half_open(&service.host).is_ok_and(|count| count == 0)
    })?;
    drop(server);
    tracker.wait_verdict("tcp", "down", "refused")?;
    // An error that quotes no more of a SYN than it must.
    service
        .firewall
        .nft("add rule inet firewall outage reject with icmpx type admin-prohibited\n")?;
    for name in ["tcp", "stamp"] {
        tracker.wait_verdict(name, "down", "unreachable")?;
    }
    Ok(())
}

/// A tun device lives as long as its process: a VPN that ends takes the interface along.
#[test]
fn the_tunnels_process_ends_and_comes_back() -> Result<()> {
    let (lab, mut tunnel) = lab_with_tunnel!();
    let tracker = Tracker::start(&lab.hub, Config::new(SERVICE).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..2 {
        drop(tunnel);
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        tunnel = connect(&lab)?;
        tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    Ok(())
}

/// A persistent device stays without its process, and has no carrier.
#[test]
fn a_persistent_device_loses_its_carrier() -> Result<()> {
    let (lab, tunnel) = lab_with_tunnel!();
    drop(tunnel);
    for namespace in [&lab.hub, &lab.service().firewall] {
        namespace.ip("tuntap add dev tun0 mode tun\n")?;
    }
    let tunnel = connect(&lab)?;
    let tracker = Tracker::start(&lab.hub, Config::new(SERVICE).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    drop(tunnel);
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    let _tunnel = connect(&lab)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

/// rp_filter, and a packet filter that drops everything, are of the hub's own stack.
#[test]
fn the_hubs_own_filters_do_not_matter() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    for interface in ["all", "tun0"] {
        lab.hub
            .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
    }
    lab.hub.nft(
        "table inet closed {
           chain input { type filter hook input priority filter; policy drop; }
           chain output { type filter hook output priority filter; policy drop; }
         }",
    )?;
    let tracker = Tracker::start(&lab.hub, Config::new(SERVICE).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

/// Replies by the tunnel to probes that left by Ethernet, and the other way round.
#[test]
fn a_tunnel_in_returns() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    let service = lab.service();
    let reply_by = |address: &str, way: &str| {
        let family = if address.contains(':') { "-6" } else { "-4" };
        service
            .firewall
            .run(&format!("ip {family} route replace {address} {way}"))
    };
    reply_by("10.9.0.1/32", "dev tun0")?;
    let config = service.toml_with("fw-1", "returns = [\"tun0\"]");
    let tracker = Tracker::start(&lab.hub, Config::new(config).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    drop(tracker);

    reply_by("10.9.7.1/32", "via 10.9.0.1 dev eth0")?;
    reply_by("2001:db8:97::1/128", "via 2001:db8:9::1 dev eth0")?;
    // The firewall's way to the hub's other address is as it was.
    reply_by("10.9.0.1/32", "dev eth0")?;
    let config = SERVICE.replace("policy", "returns = [\"eth1\"]\npolicy");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

/// The hub's own address on the tunnel: a probe that left by Ethernet comes back through it.
#[test]
fn a_probe_comes_back_by_the_tunnel() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    let service = lab.service();
    let config = service
        .toml("fw-1")
        .replace("10.20.0.9", "10.9.7.1\", \"2001:db8:97::1");
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(config.replace("behind", "policy = \"all\"\nbehind")).mode("auto"),
    )?;
    let status = tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    assert_eq!(status.tracker("fw-1", "10.9.7.1")["proof"], "arrival");
    tracker.wait_alive(SOON, "fw-1")?;
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// XDP sees no such packet: asked for by name, it is refused and said so, before and while running.
#[test]
fn xdp_is_refused() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    for (mode, expected) in [
        ("xdp-native", Value::Null),
        ("xdp-generic", Value::Null),
        ("tc", "tc".into()),
        ("auto", "tc".into()),
    ] {
        let config = Config::new(SERVICE).mode(mode);
        let tracker = Tracker::start(&lab.hub, &config)?;
        let config = tracker.config();
        let config = config.to_string_lossy();
        let mut doctor = tracker.command(&["doctor", "--json", "--config", &config]);
        let doctor: Value =
            serde_json::from_slice(&tracker_lab::netns::check(&mut doctor)?.stdout)?;
        assert_eq!(doctor["interfaces"][0]["name"], "tun0");
        assert_eq!(doctor["interfaces"][0]["mode"], expected, "{doctor}");
        if expected.is_null() {
            let status = tracker.wait_verdict("fw-1", "unknown", "send-failed")?;
            let detail = &status.tracker("fw-1", "10.20.0.9")["detail"];
            assert_eq!(
                detail,
                "cannot receive on tun0: it has no Ethernet header, which XDP needs; set hub.mode to auto or tc"
            );
            let remark = doctor["interfaces"][0]["detail"]
                .as_str()
                .unwrap_or_default();
            assert!(
                !remark.is_empty()
                    && detail
                        .as_str()
                        .is_some_and(|detail| detail.ends_with(remark))
            );
        } else {
            let status = tracker.wait_verdict("fw-1", "up", "replied")?;
            assert_eq!(status.member("fw-1", "active")["mode"], expected);
            assert_eq!(doctor["interfaces"][0]["send"], "tc-redirect");
        }
    }
    Ok(())
}

/// The MTU counts IP bytes; there is no Ethernet header to leave room for.
#[test]
fn as_large_as_the_mtu() -> Result<()> {
    let (lab, _tunnel) = lab_with_tunnel!();
    for namespace in [&lab.hub, &lab.service().firewall] {
        namespace.ip("link set tun0 mtu 1400\n")?;
    }
    let fits = Tracker::start(
        &lab.hub,
        Config::new(SERVICE.replace("policy", "payload = 1352\npolicy")).mode("auto"),
    )?;
    fits.wait_verdict("fw-1", "up", "replied")?;
    drop(fits);
    let exceeds = Tracker::start(
        &lab.hub,
        Config::new(SERVICE.replace("policy", "payload = 1353\npolicy")).mode("auto"),
    )?;
    let status = exceeds.wait_for("the larger header not to fit", SOON, |status| {
        status.tracker("fw-1", "2001:db8:20::9")["cause"] == "send-failed"
    })?;
    assert_eq!(
        status.tracker("fw-1", "2001:db8:20::9")["detail"],
        "a packet of 1401 bytes does not fit the MTU 1400 of tun0"
    );
    exceeds.wait_for("the smaller one to do", SOON, |status| {
        status.tracker("fw-1", "10.20.0.9")["verdict"] == "up"
    })?;
    Ok(())
}

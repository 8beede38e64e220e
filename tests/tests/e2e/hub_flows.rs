//! Flows on a hub: paths that lose packets, firewalls that eat resets, and services that condemn flows.

use std::time::Duration;

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::pace::pause;
use tracker_lab::servers::{Reflector, TcpEcho, UdpEcho};
use tracker_lab::{Config, Lab, Service, Status, Tracker};

const TCP: u16 = 7_443;
const UDP: u16 = 7_007;
const STAMP: u16 = 862;

/// Of each kind so many trackers, which together come to 20,000 probes in 20 s.
const TRACKERS: usize = 10;
const PROBES: u64 = 20_000;

fn sums(status: &Status, kind: &str) -> [u64; 2] {
    ["sent", "lost"].map(|counter| {
        let each = (0..TRACKERS).map(|number| status.count(&format!("{kind}-{number}"), counter));
        each.sum()
    })
}

/// A connection whose SYN-ACK, or the reset after it, is lost stands in the way of the next: that costs no more probes than
/// the packets that the path loses.
#[test]
fn tcp_loses_what_the_path_loses() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let _server = TcpEcho::start(&service.host, &service.behinds(), TCP)?;
    let kinds = [
        ("icmp", String::new()),
        ("fixed", format!("probe = \"tcp\"\nport = {TCP}\n")),
        (
            "rotate",
            format!("probe = \"tcp\"\nport = {TCP}\nflow = \"rotate\"\n"),
        ),
    ];
    let services: String = (0..TRACKERS)
        .flat_map(|number| {
            kinds
                .iter()
                .map(move |(kind, keys)| service.toml_with(&format!("{kind}-{number}"), keys))
        })
        .collect();
    let fast = "interval = \"10ms\"\ntimeout = \"100ms\"";
    let tracker = Tracker::start(&lab.hub, Config::new(services).defaults(fast))?;
    for number in 0..TRACKERS {
        for (kind, _) in &kinds {
            tracker.wait_verdict(&format!("{kind}-{number}"), "up", "replied")?;
        }
    }
    service.firewall.nft(
        "table inet loss { chain forward { type filter hook forward priority -5; numgen random mod 100 < 1 drop\n}\n}\n",
    )?;
    pause(Duration::from_millis(500));
    let before = tracker.status()?;
    let since = tracker.events()?.len();
    let patience = Duration::from_secs(60);
    let after = tracker.wait_for("20,000 probes of each kind", patience, |status| {
        kinds
            .iter()
            .all(|(kind, _)| sums(status, kind)[0] - sums(&before, kind)[0] >= PROBES)
    })?;
    let losses = kinds.each_ref().map(|(kind, _)| {
        let [before, after] = [&before, &after].map(|status| sums(status, kind));
        let [sent, lost] = [0, 1].map(|at| (after[at] - before[at]) as f64);
        (*kind, lost / sent)
    });
    let events = tracker.events()?.split_off(since);
    let downs = kinds.each_ref().map(|(kind, _)| {
        let of_kind = events.iter().filter(|event| {
            event.to == "down"
                && event.behind.is_none()
                && event
                    .service
                    .as_deref()
                    .is_some_and(|name| name.starts_with(kind))
        });
        of_kind.count()
    });
    println!("lost {losses:?}, down {downs:?} times");
    let [(_, icmp), tcp @ ..] = losses;
    assert!((0.01..0.04).contains(&icmp), "the path loses {icmp}");
    for (kind, lost) in tcp {
        assert!(lost <= 1.5 * icmp, "{kind} loses {lost}, icmp {icmp}");
    }
    // Three of a hundred in a row are a matter of a minute at this rate.
    for down in &downs[1..] {
        assert!(*down <= downs[0] + 3, "down {downs:?} times");
    }
    Ok(())
}

/// A firewall that passes few resets, or none: the server holds each connection for a minute.
#[test]
fn resets_that_are_eaten_are_no_outage() -> Result<()> {
    for rule in ["limit rate over 2/second drop", "drop"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let _server = TcpEcho::start(&service.host, &service.behinds(), TCP)?;
        service.firewall.nft(&format!(
            "table inet resets {{ chain forward {{ type filter hook forward priority -5;
               iifname \"eth0\" tcp flags & rst == rst {rule}\n}}\n}}\n"
        ))?;
        let toml = service.toml_with("fw-1", &format!("probe = \"tcp\"\nport = {TCP}"));
        let tracker = Tracker::start(&lab.hub, &toml)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let before = tracker.wait_alive(SOON, "fw-1")?;
        pause(Duration::from_secs(4));
        let after = tracker.status()?;
        let [sent, lost] =
            ["sent", "lost"].map(|key| after.count("fw-1", key) - before.count("fw-1", key));
        assert!(lost * 20 <= sent, "{rule}: {lost} of {sent} lost");
        assert_eq!(tracker.history("fw-1")?.len(), 1, "{rule}");
    }
    Ok(())
}

/// A firewall that judges flows, not packets: while `judge` has rules, whatever comes is condemned for an hour.
const CONDEMNS: &str = "table inet condemned {
  set ports { type ipv4_addr . inet_service; size 65536; flags dynamic,timeout; timeout 1h; }
  set ids { typeof icmp id; size 65536; flags dynamic,timeout; timeout 1h; }
  chain judge {}
  chain forward {
    type filter hook forward priority -5;
    iifname \"eth0\" jump judge
    iifname \"eth0\" meta l4proto { tcp, udp } ip saddr . th sport @ports drop
    iifname \"eth0\" icmp id @ids drop
  }
}
";

fn condemn(service: &Service) -> Result<()> {
    service.firewall.nft(
        "add rule inet condemned judge meta l4proto { tcp, udp } update @ports { ip saddr . th sport } drop
         add rule inet condemned judge icmp type echo-request update @ids { icmp id } drop\n",
    )
}

fn detail(status: &Status, name: &str) -> String {
    let tracker = &status.service(name)["members"][0]["trackers"][0];
    tracker["detail"].as_str().unwrap_or_default().to_owned()
}

/// What was condemned while the service was broken is dropped for ever; new flows pass as soon as it is mended.
#[test]
fn condemned_flows_do_not_keep_a_mended_service_down() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behinds = service.behinds();
    let _server = TcpEcho::start(&service.host, &behinds, TCP)?;
    let echo = UdpEcho::start(&service.host, &behinds, UDP)?;
    let _reflector = Reflector::start(&service.host, &behinds, STAMP)?;
    service.firewall.nft(CONDEMNS)?;
    let kinds = [
        ("icmp", String::new()),
        ("udp", format!("probe = \"udp\"\nport = {UDP}")),
        (
            "stamp",
            format!("probe = \"udp\"\nprotocol = \"stamp\"\nport = {STAMP}"),
        ),
        ("tcp", format!("probe = \"tcp\"\nport = {TCP}")),
    ];
    let services: String = (kinds.iter())
        .map(|(kind, keys)| service.toml_with(kind, keys))
        .collect();
    let mut tracker = Tracker::start(&lab.hub, &services)?;
    for (kind, _) in &kinds {
        tracker.wait_verdict(kind, "up", "replied")?;
    }
    let known = echo.seen();
    assert_eq!(known.len(), 1, "one flow while all is well");
    condemn(service)?;
    for (kind, _) in &kinds {
        tracker.wait_verdict(kind, "down", "no-reply")?;
    }
    pause(Duration::from_secs(1));
    service.firewall.nft("flush chain inet condemned judge\n")?;
    for (kind, _) in &kinds {
        tracker.wait_verdict(kind, "up", "replied")?;
        tracker.wait_for("what is known of flows", SOON, |status| {
            detail(status, kind).starts_with("old flows are still dropped, new ones pass")
        })?;
    }
    // It stays on the flow that passes, and so does the next daemon.
    let of_udp = tracker.wait_alive(SOON, "udp")?.count("udp", "received");
    let known = echo.seen();
    tracker.wait_for("more replies", SOON, |status| {
        status.count("udp", "received") > of_udp + 5
    })?;
    assert_eq!(echo.seen(), known);
    tracker.kill()?;
    tracker.run()?;
    let of_udp = tracker.status()?.count("udp", "received");
    tracker.wait_for("replies to the next daemon", SOON, |status| {
        status.count("udp", "received") > of_udp + 5
    })?;
    assert_eq!(echo.seen(), known);
    for (kind, _) in &kinds {
        let verdicts = tracker.history(kind)?;
        assert_eq!(verdicts.len(), 3, "{kind}: {verdicts:?}");
    }
    Ok(())
}

/// Rotation uses all ports that the hub gives to no socket and reserves for none, and none soon again.
#[test]
fn rotation_uses_free_ports_in_turn() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind = service.behind.into();
    let echo = UdpEcho::start(&service.host, &[behind], UDP)?;
    lab.hub
        .sysctl("net/ipv4/ip_local_port_range", "20000 60999")?;
    lab.hub
        .sysctl("net/ipv4/ip_local_reserved_ports", "61500-62000,1024")?;
    let keys = format!("probe = \"udp\"\nport = {UDP}\nflow = \"rotate\"");
    let toml = service.toml_with("fw-1", &keys);
    let fast = "interval = \"2ms\"\ntimeout = \"100ms\"";
    let tracker = Tracker::start(&lab.hub, Config::new(toml).defaults(fast))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_for("5,000 replies", Duration::from_secs(40), |status| {
        status.count("fw-1", "received") > 5_000
    })?;
    let received = status.count("fw-1", "received");
    let ports: Vec<u16> = echo.seen().iter().map(|from| from.port()).collect();
    assert!(
        ports.len() as u64 >= received,
        "{} ports for {received}",
        ports.len()
    );
    let is_free = |port: &u16| {
        (1_025..20_000).contains(port) || *port >= 61_000 && !(61_500..=62_000).contains(port)
    };
    let other = ports.iter().find(|port| !is_free(port));
    assert_eq!(other, None);
    assert!(ports.iter().any(|port| *port < 20_000), "those below too");
    Ok(())
}

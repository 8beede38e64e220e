//! Probes that the service must stop.

use std::time::Duration;

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::pace::pause;
use tracker_lab::servers::{Reflector, TcpEcho, UdpEcho};
use tracker_lab::{Config, Lab, Tracker};

const PORT: u16 = 7_007;

#[test]
fn a_firewall_that_fails_open() -> Result<()> {
    for mode in ["xdp-native", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let _echo = UdpEcho::start(&service.host, &[service.behind.into()], PORT)?;
        let rule = format!("add rule inet firewall outage udp dport {PORT} drop\n");
        service.firewall.nft(&rule)?;
        // The same service must pass one and stop the other.
        let config = Config::new(format!(
            "{}[[service.member]]\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{behind}\"]\npolicy = \"all\"\n\
             [[service.member.tracker]]\nbehind = \"{behind}\"\nprobe = \"udp\"\nport = {PORT}\nexpect = \"silence\"\n",
            "[[service]]\nname = \"fw-1\"\n",
            service.endpoint,
            service.interface,
            behind = service.behind,
        ))
        .mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        let up = tracker.wait_for(
            "both to be as they should",
            tracker_lab::daemon::SOON,
            |status| status.verdict("fw-1") == "up",
        )?;
        let trackers = &up.member("fw-1", "active")["trackers"];
        assert_eq!(trackers[0]["cause"], "replied");
        assert_eq!(
            (&trackers[1]["verdict"], &trackers[1]["cause"]),
            (&"up".into(), &"no-reply".into())
        );

        service.mend()?;
        tracker.wait_verdict("fw-1", "down", "unexpected-reply")?;
        service.firewall.nft(&rule)?;
        tracker.wait_for("silence again", tracker_lab::daemon::SOON, |status| {
            status.verdict("fw-1") == "up"
        })?;

        // A reject stops it too. What nothing can pass is broken all the same: the other tracker says so.
        service.mend()?;
        tracker.wait_verdict("fw-1", "down", "unexpected-reply")?;
        service.firewall.nft(&rule.replace("drop", "reject"))?;
        tracker.wait_for("silence again", tracker_lab::daemon::SOON, |status| {
            status.verdict("fw-1") == "up"
        })?;
        service.break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
    }
    Ok(())
}

/// A service that fails open and then passes nothing at all works at no moment in between.
#[test]
fn a_firewall_that_fails_open_and_dies() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let _echo = UdpEcho::start(&service.host, &[service.behind.into()], PORT)?;
    let config = format!(
        "[[service]]\nname = \"fw-1\"\npolicy = \"all\"\n[[service.member]]\nendpoint = \"{}\"\n\
         interface = \"{}\"\nbehind = [\"{behind}\"]\n[[service.member.tracker]]\nbehind = \"{behind}\"\n\
         probe = \"udp\"\nport = {PORT}\nexpect = \"silence\"\nrise = 1\n",
        service.endpoint,
        service.interface,
        behind = service.behind,
    );
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "down", "unexpected-reply")?;
    service.break_forwarding()?;
    let down = tracker.wait_for("the other tracker to find out", SOON, |status| {
        let trackers = &status.member("fw-1", "active")["trackers"];
        trackers[0]["cause"] == "no-reply" && trackers[1]["verdict"] == "up"
    })?;
    assert_eq!(down.verdict("fw-1"), "down");
    let events = tracker.events()?;
    let of_service = events.iter().filter(|event| event.is_of_service("fw-1"));
    let ups: Vec<_> = of_service.filter(|event| event.to == "up").collect();
    assert!(ups.is_empty(), "{ups:?}");
    Ok(())
}

/// Replies that come too late to count are replies all the same.
#[test]
fn a_late_reply_is_a_leak() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let rule = "add rule inet firewall outage udp dport 862 drop\n";
    service.firewall.nft(rule)?;
    let late = |_: &mut Vec<u8>| pause(Duration::from_millis(150));
    let behind = [service.behind.into()];
    let _reflector = Reflector::start_altering(&service.host, &behind, 862, late)?;
    let keys = "probe = \"udp\"\nprotocol = \"stamp\"\nexpect = \"silence\"\ninterval = \"200ms\"\n\
                timeout = \"100ms\"\nrise = 1";
    let tracker = Tracker::start(&lab.hub, &service.toml_with("fw-1", keys))?;
    tracker.wait_verdict("fw-1", "up", "no-reply")?;
    service.mend()?;
    let down = tracker.wait_verdict("fw-1", "down", "unexpected-reply")?;
    assert!(down.count("fw-1", "late") > 0);
    assert_eq!(down.count("fw-1", "received"), 0);
    service.firewall.nft(rule)?;
    tracker.wait_verdict("fw-1", "up", "no-reply")?;
    Ok(())
}

/// A reset is as good as silence, unless it is to be taken for a reply.
#[test]
fn a_port_that_must_be_closed() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let server = TcpEcho::start(&service.host, &[service.behind.into()], PORT)?;
    let rule = "add rule inet firewall outage meta l4proto tcp";
    service.firewall.nft(&format!("{rule} drop\n"))?;
    let probe = format!("probe = \"tcp\"\nport = {PORT}\nexpect = \"silence\"");
    let services = [
        service.toml_with("closed", &probe),
        service.toml_with("strict", &format!("{probe}\nrefused = \"up\"")),
    ];
    let tracker = Tracker::start(&lab.hub, &services.concat())?;
    for name in ["closed", "strict"] {
        tracker.wait_verdict(name, "up", "no-reply")?;
    }
    service.mend()?;
    for name in ["closed", "strict"] {
        tracker.wait_verdict(name, "down", "unexpected-reply")?;
    }
    service
        .firewall
        .nft(&format!("{rule} reject with tcp reset\n"))?;
    tracker.wait_verdict("closed", "up", "no-reply")?;
    assert_eq!(tracker.status()?.verdict("strict"), "down");
    assert_eq!(server.accepted(), 0);
    Ok(())
}

/// One packet that slips through is enough, whatever `fall` is.
#[test]
fn a_single_leak_is_seen() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service
        .firewall
        .nft("add rule inet firewall outage iifname eth0 drop\n")?;
    let more = "expect = \"silence\"\nfall = 60\nrise = 5";
    let tracker = Tracker::start(&lab.hub, &service.toml_with("fw-1", more))?;
    tracker.wait_verdict("fw-1", "up", "no-reply")?;
    // Every fiftieth packet, that is one probe a second.
    service
        .firewall
        .nft("insert rule inet firewall outage iifname eth0 numgen inc mod 50 == 0 accept\n")?;
    let down = tracker.wait_verdict("fw-1", "down", "unexpected-reply")?;
    assert!(down.count("fw-1", "received") >= 1);
    tracker.wait_verdict("fw-1", "up", "no-reply")?;
    Ok(())
}

//! STAMP probes, to a reflector of RFC 8762.

use std::net::IpAddr;

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::servers::{Reflector, UdpEcho};
use tracker_lab::{Config, Lab, Service, Tracker};

/// The port of STAMP, which a config need not name.
const PORT: u16 = 862;

fn toml(service: &Service, name: &str, behind: IpAddr, more: &str) -> String {
    service.toml_to(
        name,
        behind,
        &format!("probe = \"udp\"\nprotocol = \"stamp\"\n{more}"),
    )
}

#[test]
fn a_reflector_answers_until_the_firewall_does_not_pass() -> Result<()> {
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let _reflector = Reflector::start(&service.host, &service.behinds(), PORT)?;
        for behind in service.behinds() {
            let toml = toml(service, "fw-1", behind, "");
            let config = Config::new(toml).mode(mode);
            let tracker = Tracker::start(&lab.hub, config)?;
            tracker.wait_verdict("fw-1", "up", "replied")?;
            let status = tracker.wait_alive(SOON, "fw-1")?;
            for counter in ["duplicate", "corrupt"] {
                assert_eq!(
                    status.count("fw-1", counter),
                    0,
                    "{mode}, {behind}: {counter}"
                );
            }
            let shown = status.tracker("fw-1", behind);
            let words = [&shown["probe"], &shown["protocol"]];
            assert_eq!(words, [&"udp".into(), &serde_json::Value::from("stamp")]);
            assert_eq!(shown["port"], PORT);
            assert!(shown["rtt_us"]["last"].as_u64().is_some(), "{shown}");
            service.break_forwarding()?;
            tracker.wait_verdict("fw-1", "down", "no-reply")?;
            service.mend()?;
            tracker.wait_verdict("fw-1", "up", "replied")?;
        }
    }
    Ok(())
}

/// Many reflectors send back no more of the probe than they must: 38 bytes.
#[test]
fn a_short_reply_counts() -> Result<()> {
    for mode in ["auto", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let behinds = service.behinds();
        let cut = |reply: &mut Vec<u8>| reply.truncate(38);
        let _reflector = Reflector::start_altering(&service.host, &behinds, PORT, cut)?;
        for behind in behinds {
            let toml = toml(service, "fw-1", behind, "");
            let config = Config::new(toml).hub(format!("mode = \"{mode}\""));
            let tracker = Tracker::start(&lab.hub, config)?;
            tracker.wait_verdict("fw-1", "up", "replied")?;
        }
    }
    Ok(())
}

/// Through a NAT, as new flows, and of full size.
#[test]
fn a_nat_new_flows_and_padding() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.firewall.nft(
        "table inet nat { chain out { type nat hook postrouting priority srcnat;
           oifname \"eth1\" meta l4proto udp masquerade to :20000-29999 random\n}\n}\n",
    )?;
    let [behind, behind6] = service.behinds();
    for (behind, more, is_rotating) in [
        (behind, "payload = 1472", false),
        (behind6, "payload = 48\nflow = \"rotate\"", true),
    ] {
        let reflector = Reflector::start(&service.host, &[behind], PORT)?;
        let toml = toml(service, "fw-1", behind, more);
        let tracker = Tracker::start(&lab.hub, &toml)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        tracker.wait_alive(SOON, "fw-1")?;
        let seen = reflector.seen();
        for from in &seen {
            assert!((20_000..30_000).contains(&from.port()), "{from}: no NAT");
        }
        assert_eq!(seen.len() > 1, is_rotating, "{seen:?}");
    }
    Ok(())
}

/// What is not a reflector's answer to one of our probes is no reply, however near it comes.
#[test]
fn only_a_right_answer_counts() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind = [IpAddr::from(service.behind)];
    let toml = toml(service, "fw-1", behind[0], "");
    // A host that echoes the datagram unchanged is no reflector.
    let echo = UdpEcho::start(&service.host, &behind, PORT)?;
    let tracker = Tracker::start(&lab.hub, &toml)?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_eq!(down.count("fw-1", "corrupt"), 0);
    drop(echo);
    let reflector = Reflector::start(&service.host, &behind, PORT)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    drop(reflector);
    // Another token in what seems to be ours is known for what it is.
    let altering = Reflector::start_altering(&service.host, &behind, PORT, |reply| reply[35] ^= 1)?;
    let down = tracker.wait_verdict("fw-1", "down", "corrupt")?;
    assert!(down.count("fw-1", "corrupt") > 0);
    drop(altering);
    // The host says that the port is closed.
    let mended = Reflector::start(&service.host, &behind, PORT)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    drop(mended);
    let down = tracker.wait_verdict("fw-1", "down", "refused")?;
    let detail = format!("ICMP type 3 code 3 (port unreachable) from {}", behind[0]);
    assert_eq!(down.tracker("fw-1", behind[0])["detail"], detail);
    Ok(())
}

/// One daemon after the other, and at run time.
#[test]
fn restarts_and_run_time_additions() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let _reflector = Reflector::start(&service.host, &service.behinds(), PORT)?;
    let toml = toml(service, "fw-1", service.behind.into(), "");
    let mut tracker = Tracker::start(&lab.hub, &toml)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.service(&format!(
        "add fw-2 --endpoint {} --interface {} --behind {} --probe udp --protocol stamp",
        service.endpoint, service.interface, service.behind
    ))?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    assert!(!tracker.log().contains("cannot"), "{}", tracker.log());
    tracker.kill()?;
    tracker.run()?;
    for name in ["fw-1", "fw-2"] {
        let status = tracker.wait_alive(SOON, name)?;
        assert_eq!(status.verdict(name), "up", "{name}");
        assert_eq!(tracker.history(name)?.len(), 1, "{name}");
    }
    Ok(())
}

//! The address behind the service is the hub's own: a probe leaves by eth1, passes the firewall, comes back on eth2, and
//! is itself the proof.
//!
//! ```text
//!   hub eth1 10.9.0.1 ------ 10.9.0.2 eth0 firewall eth2 10.40.0.1 ------ 10.40.0.2 eth2 hub
//!            2001:db8:9::1   2001:db8:9::2          2001:db8:40::1        2001:db8:40::2
//! ```

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Lab, Status, Tracker, skip};

const SERVICE: &str = r#"
[[service]]
name = "fw-1"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.40.0.2", "2001:db8:40::2"]
policy = "all"
"#;

const BEHIND: [&str; 2] = ["10.40.0.2", "2001:db8:40::2"];

/// A lab whose firewall has the hub on both sides.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    plug_second(&lab)?;
    Ok(lab)
}

/// Connects the firewall's other side with the hub.
fn plug_second(lab: &Lab) -> Result<()> {
    let firewall = &lab.service().firewall;
    lab.hub.ip(&format!(
        "link add eth2 type veth peer name eth2 netns {}\n\
         address add 10.40.0.2/24 dev eth2\n\
         address add 2001:db8:40::2/64 dev eth2\n\
         link set eth2 up\n",
        firewall.name()
    ))?;
    firewall.ip("address add 10.40.0.1/24 dev eth2\n\
         address add 2001:db8:40::1/64 dev eth2\n\
         link set eth2 up\n")
}

fn each_is(status: &Status, key: &str, word: &str) -> bool {
    BEHIND
        .iter()
        .all(|behind| status.tracker("fw-1", behind)[key] == word)
}

/// Down when the firewall passes nothing, up when it does, and it is the firewall that decides.
fn follows_the_firewall(lab: &Lab, tracker: &Tracker) -> Result<()> {
    let service = lab.service();
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    let (before, wrong) = (
        service.forwarded()?,
        tracker.status()?.count("fw-1", "wrong_path"),
    );
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert!(service.forwarded()? >= before + 15);
    assert!(each_is(&status, "proof", "arrival"), "{status:?}");
    assert_eq!(status.count("fw-1", "wrong_path"), wrong);
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn the_arriving_probe_is_the_proof() -> Result<()> {
    let lab = lab()?;
    let tracker = Tracker::start(&lab.hub, SERVICE)?;
    follows_the_firewall(&lab, &tracker)?;
    // Nothing answers: what the firewall has carried for the hub are requests alone.
    lab.service().firewall.nft(
        "add rule inet firewall outage icmp type echo-reply drop
         add rule inet firewall outage icmpv6 type echo-reply drop\n",
    )?;
    tracker.wait_alive(SOON, "fw-1")?;
    let status = tracker.status()?;
    for behind in BEHIND {
        let tracker = status.tracker("fw-1", behind);
        assert!(tracker["rtt_us"]["last"].is_u64(), "{tracker}");
        assert_eq!(tracker["duplicate"], 0);
    }
    // The receive program is on the interface by which the probes come back.
    let config = tracker.config();
    let config = config.to_string_lossy();
    let mut doctor = tracker.command(&["doctor", "--json", "--config", &config]);
    let doctor = String::from_utf8(tracker_lab::netns::check(&mut doctor)?.stdout)?;
    let doctor: serde_json::Value = serde_json::from_str(&doctor)?;
    let names = [0, 1].map(|at| &doctor["interfaces"][at]["name"]);
    assert_eq!(names, [&"eth1", &"eth2"], "{doctor}");
    let mode = &status.member("fw-1", "active")["mode"];
    assert_eq!(&doctor["interfaces"][1]["mode"], mode, "{doctor}");
    let table = tracker_lab::netns::check(&mut tracker.client(&["status"]))?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.matches(" one-way").count(), 2, "{table}");
    Ok(())
}

/// Kinds of probes whose replies bear no mark prove themselves no less when they come back.
#[test]
fn a_syn_and_a_stamp_packet_arrive() -> Result<()> {
    let lab = lab()?;
    for mode in ["xdp-native", "tc"] {
        for probe in [
            "probe = \"tcp\"\nport = 443",
            "probe = \"udp\"\nprotocol = \"stamp\"",
        ] {
            let config = format!("{SERVICE}{probe}\n");
            let config = tracker_lab::Config::new(config).mode(mode);
            let tracker = Tracker::start(&lab.hub, config)?;
            follows_the_firewall(&lab, &tracker)?;
        }
    }
    // The stack answered none of them.
    assert_eq!(tracker_lab::servers::tcp_counter(&lab.hub, "OutRsts")?, 0);
    assert_eq!(tracker_lab::servers::udp_counter(&lab.hub, "NoPorts")?, 0);
    Ok(())
}

#[test]
fn in_every_mode() -> Result<()> {
    let lab = lab()?;
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let config = tracker_lab::Config::new(SERVICE).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        follows_the_firewall(&lab, &tracker)?;
    }
    Ok(())
}

/// The source of the arriving probe is the hub's own address, a martian to its stack, which never sees it.
#[test]
fn martians_and_the_hubs_own_filters_do_not_matter() -> Result<()> {
    let lab = lab()?;
    for interface in ["all", "eth1", "eth2"] {
        for (key, value) in [
            ("rp_filter", "1"),
            ("log_martians", "1"),
            ("accept_local", "0"),
        ] {
            lab.hub
                .sysctl(&format!("net/ipv4/conf/{interface}/{key}"), value)?;
        }
    }
    lab.hub.nft(
        "table inet closed {
           chain input { type filter hook input priority filter; policy drop;
             icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }
           chain output { type filter hook output priority filter; policy drop;
             icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }
         }",
    )?;
    let tracker = Tracker::start(&lab.hub, SERVICE)?;
    follows_the_firewall(&lab, &tracker)
}

/// A service that sends the probe back where it came from has not passed it.
#[test]
fn a_probe_turned_round_is_on_the_wrong_path() -> Result<()> {
    let lab = lab()?;
    let firewall = &lab.service().firewall;
    let tracker = Tracker::start(&lab.hub, SERVICE)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    firewall.ip("route add 10.40.0.2/32 via 10.9.0.1\n\
         route add 2001:db8:40::2/128 via 2001:db8:9::1\n")?;
    let turned = tracker.wait_for("both on the wrong path", LATER, |status| {
        each_is(status, "verdict", "down") && each_is(status, "cause", "wrong-path")
    })?;
    for behind in BEHIND {
        let wrong = turned.tracker("fw-1", behind)["wrong_path"].as_u64();
        assert!(wrong.is_some_and(|wrong| wrong >= 3), "{turned:?}");
    }
    firewall.ip("route del 10.40.0.2/32\nroute del 2001:db8:40::2/128\n")?;
    follows_the_firewall(&lab, &tracker)
}

/// Both interfaces on one switch that floods: a copy of the probe arrives where it is to come back, past the firewall.
#[test]
fn a_flooded_copy_is_no_proof() -> Result<()> {
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let lab = lab()?;
        let flood = "table netdev switch {
           chain flood {
             type filter hook ingress device \"eth0\" priority 0
             dup to \"eth2\"
           }
         }";
        if lab.service().firewall.nft(flood).is_err() {
            skip!("this kernel has no nftables copies at ingress (`dup to`)");
        }
        lab.service().break_forwarding()?;
        let config = tracker_lab::Config::new(SERVICE).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
        assert!(each_is(&down, "proof", "arrival"), "{down:?}");
        assert_eq!(down.count("fw-1", "received"), 0);
        lab.service().mend()?;
        let up = tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
        assert_eq!(up.count("fw-1", "duplicate"), 0);
    }
    Ok(())
}

#[test]
fn the_address_goes_and_comes_back() -> Result<()> {
    let lab = lab()?;
    let tracker = Tracker::start(&lab.hub, SERVICE)?;
    follows_the_firewall(&lab, &tracker)?;
    lab.hub.ip("address del 10.40.0.2/24 dev eth2\n\
         address del 2001:db8:40::2/64 dev eth2\n")?;
    let gone = tracker.wait_for("both down", LATER, |status| {
        each_is(status, "verdict", "down")
    })?;
    assert!(each_is(&gone, "proof", "reply"), "{gone:?}");
    lab.hub.ip("address add 10.40.0.2/24 dev eth2\n\
         address add 2001:db8:40::2/64 dev eth2\n")?;
    follows_the_firewall(&lab, &tracker)
}

/// The interface with the address goes away with it, and comes back.
#[test]
fn the_interface_of_the_address_is_made_again() -> Result<()> {
    let lab = lab()?;
    let tracker = Tracker::start(&lab.hub, SERVICE)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    // Its other end goes too: the firewall has no way to the address, and says so.
    lab.hub.ip("link del eth2\n")?;
    tracker.wait_verdict("fw-1", "down", "unreachable")?;
    plug_second(&lab)?;
    follows_the_firewall(&lab, &tracker)
}

/// An address on the loopback tells not where its probes come back: `returns` does.
#[test]
fn on_the_hubs_loopback() -> Result<()> {
    let lab = lab()?;
    let firewall = &lab.service().firewall;
    lab.hub.ip("address add 10.50.0.9/32 dev lo\n\
         address add 2001:db8:50::9/128 dev lo\n")?;
    firewall.ip("route add 10.50.0.9/32 via 10.40.0.2\n\
         route add 2001:db8:50::9/128 via 2001:db8:40::2\n")?;
    let config = SERVICE
        .replace("10.40.0.2", "10.50.0.9")
        .replace("2001:db8:40::2", "2001:db8:50::9");
    let tracker = Tracker::start(&lab.hub, &config)?;
    let status = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let stranded = status.tracker("fw-1", "10.50.0.9");
    let advice = "the hub has this address itself; set returns to the interface on which its probes come back";
    assert_eq!(
        (&stranded["proof"], &stranded["detail"]),
        (&"reply".into(), &advice.into())
    );
    drop(tracker);

    let config = config.replace("policy", "returns = [\"eth2\"]\npolicy");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

/// One service beyond which a host answers, beside one that leads back to the hub, in one member.
#[test]
fn beside_a_reply() -> Result<()> {
    let lab = lab()?;
    let config = SERVICE.replace("\"2001:db8:40::2\"", "\"10.20.0.9\"");
    let tracker = Tracker::start(&lab.hub, &config)?;
    let status = tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    let proof = |behind: &str| &status.tracker("fw-1", behind)["proof"];
    assert_eq!(
        (proof("10.40.0.2"), proof("10.20.0.9")),
        (&"arrival".into(), &"reply".into())
    );
    lab.service().block("10.20.0.9")?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_eq!(down.tracker("fw-1", "10.40.0.2")["verdict"], "up");
    Ok(())
}

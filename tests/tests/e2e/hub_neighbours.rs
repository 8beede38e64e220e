//! The hub's neighbour entries and addresses: what an operator or another program made stays as it is, and probes leave from
//! the address that the kernel would take.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::pace::{pause, slow};
use tracker_lab::tun::{Parcel, Tunnel};
use tracker_lab::{Lab, Tracker};

/// The hub's entry of the firewall, as `ip` shows it.
fn entry(lab: &Lab) -> Result<String> {
    let shown = lab.hub.run("ip -d neigh show 10.9.0.2 dev eth1")?;
    Ok(shown.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The firewall's MAC address.
fn firewall_mac(lab: &Lab) -> Result<String> {
    let link = lab.service().firewall.run("ip -j link show dev eth0")?;
    let link: Value = serde_json::from_str(&link).context("read ip's JSON")?;
    let mac = link[0]["address"].as_str();
    mac.map(str::to_owned).context("find the MAC address")
}

/// The firewall answers no ARP request.
fn be_mute(lab: &Lab) -> Result<()> {
    let firewall = &lab.service().firewall;
    firewall.sysctl("net/ipv4/conf/eth0/arp_ignore", "8")
}

/// The detail of the only tracker.
fn detail(tracker: &Tracker<'_>) -> Result<String> {
    let status = tracker.status()?;
    let trackers = &status.service("fw-1")["members"][0]["trackers"];
    Ok(trackers[0]["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn entries_of_others_are_used_and_stay_as_they_are() -> Result<()> {
    let kinds: [(&str, &[&str]); 5] = [
        ("nud permanent", &["PERMANENT"]),
        (
            "nud noarp extern_learn proto zebra",
            &["NOARP", "extern_learn", "proto zebra"],
        ),
        ("nud reachable extern_learn", &["extern_learn"]),
        ("managed", &["managed"]),
        ("nud reachable proto static", &["proto static"]),
    ];
    for (kind, words) in kinds {
        let lab = Lab::new()?;
        let service = lab.service();
        let is_static = kind.contains("permanent") || kind.contains("noarp");
        let mac = match kind {
            "managed" => String::new(),
            _ => format!("lladdr {}", firewall_mac(&lab)?),
        };
        if is_static {
            be_mute(&lab)?;
        }
        let set = format!("neigh replace 10.9.0.2 {mac} dev eth1 {kind}\n");
        lab.hub.ip(&set)?;
        let stays = |when: &str| {
            let now = entry(&lab)?;
            let has = words.iter().all(|word| now.contains(word));
            let is_ours = now.contains("proto 116") || now.contains("proto kernel");
            let is_managed = now.contains("managed");
            ensure!(
                has && !is_ours && is_managed == (kind == "managed"),
                "{kind}, {when}: {now}"
            );
            Ok(())
        };
        let mut tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        stays("up")?;
        service.break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        // The daemon has solicited the endpoint by now, and tried again what failed.
        pause(Duration::from_millis(700));
        stays("down")?;
        service.mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        if kind == "nud permanent" {
            // The kernel drops all others with the carrier.
            service.firewall.ip("link set eth0 down\n")?;
            tracker.wait_verdict("fw-1", "down", "interface-down")?;
            stays("without carrier")?;
            service.firewall.ip("link set eth0 up\n")?;
            tracker.wait_verdict("fw-1", "up", "replied")?;
            stays("with carrier again")?;
        }
        tracker.kill()?;
        stays("killed")?;
        tracker.run()?;
        tracker.wait_alive(SOON, "fw-1")?;
        stays("restarted")?;
        assert!(tracker.reload(&service.toml_to("fw-1", "10.20.0.10", ""))?);
        stays("another behind address")?;
        let other = service
            .toml("fw-1")
            .replace("endpoint = \"10.9.0.2\"", "endpoint = \"10.9.0.3\"");
        assert!(tracker.reload(&other)?);
        stays("another endpoint")?;
        assert!(tracker.reload(&service.toml("fw-1"))?);
        tracker.wait_alive(SOON, "fw-1")?;
        tracker.terminate()?;
        stays("terminated")?;
        assert!(!is_static || lab.hub.pings("10.9.0.2")?, "{kind}");
    }
    Ok(())
}

#[test]
fn an_entry_that_becomes_permanent_stays_permanent() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let mut tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let kept = entry(&lab)?;
    assert!(
        kept.contains("managed") && kept.contains("proto 116"),
        "{kept}"
    );
    let permanent = |when: &str| {
        let now = entry(&lab)?;
        let is_there = now.contains("PERMANENT") && !now.contains("managed");
        ensure!(is_there, "{when}: {now}");
        Ok(())
    };
    let set = format!(
        "neigh replace 10.9.0.2 lladdr {} dev eth1 nud permanent\n",
        firewall_mac(&lab)?
    );
    lab.hub.ip(&set)?;
    be_mute(&lab)?;
    assert!(tracker.reload(&service.toml_with("fw-1", "rise = 3"))?);
    tracker.wait_alive(SOON, "fw-1")?;
    permanent("reloaded")?;
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    pause(Duration::from_millis(700));
    permanent("down")?;
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.kill()?;
    tracker.run()?;
    tracker.wait_alive(SOON, "fw-1")?;
    permanent("restarted")?;
    tracker.kill()?;
    tracker.cleanup()?;
    permanent("cleaned up")?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.terminate()?;
    permanent("terminated")?;
    // Removed while the daemon runs, the endpoint is asked for, and does not answer.
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub.ip("neigh del 10.9.0.2 dev eth1\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "down", "next-hop-unresolved")?;
    lab.hub.ip(&set)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    permanent("set again")?;
    Ok(())
}

/// What is kept for Tracker bears its mark, and goes back to the kernel's care: after SIGTERM, a removal, and by `cleanup`.
#[test]
fn entries_that_are_kept_are_given_back() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let never = "[[service]]\nname = \"never\"\nendpoint = \"10.9.0.77\"\ninterface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n";
    let both = format!("{}{never}", service.toml("fw-1"));
    let kept = || {
        let all = lab.hub.run("ip -d neigh show nud all dev eth1")?;
        let kept = all.lines().filter(|line| line.contains("managed"));
        let marked = all.lines().filter(|line| line.contains("proto 116"));
        Ok::<_, anyhow::Error>((kept.count(), marked.count(), all))
    };
    // One entry of the kernel's own is there before.
    assert!(lab.hub.pings("10.9.0.2")?);
    let mut tracker = Tracker::start(&lab.hub, &both)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("never", "unknown", "next-hop-unresolved")?;
    let all = kept()?;
    assert_eq!((all.0, all.1), (2, 2), "{}", all.2);
    assert!(tracker.reload(never)?);
    let all = kept()?;
    assert_eq!((all.0, all.1), (1, 1), "removed: {}", all.2);
    assert!(tracker.reload(&both)?);
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.kill()?;
    tracker.cleanup()?;
    let all = kept()?;
    assert_eq!((all.0, all.1), (0, 0), "cleaned up: {}", all.2);
    assert!(!all.2.contains("10.9.0.77"), "{}", all.2);
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.terminate()?;
    let all = kept()?;
    assert_eq!((all.0, all.1), (0, 0), "terminated: {}", all.2);
    assert!(all.2.contains("10.9.0.2"), "{}", all.2);
    Ok(())
}

/// A box with another MAC address takes over and says nothing. The kernel's own timers are the usual ones.
#[test]
fn a_silent_change_of_the_mac_address_is_found_soon() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let v6 = format!(
        "[[service]]\nname = \"v6\"\nendpoint = \"{}\"\ninterface = \"eth1\"\nbehind = [\"{}\"]\n",
        service.endpoint6, service.behind6
    );
    let tracker = Tracker::start(&lab.hub, &format!("{}{v6}", service.toml("fw-1")))?;
    for name in ["fw-1", "v6"] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    for last in ["a1", "a2"] {
        let from = firewall_mac(&lab)?;
        let to = format!("02:00:00:00:00:{last}");
        service.change_mac_silently(&to)?;
        let mut downs = Vec::new();
        for name in ["fw-1", "v6"] {
            tracker.wait_verdict(name, "down", "no-reply")?;
            downs.push((name, Instant::now()));
        }
        service.asks_for_neighbours()?;
        for (name, since) in downs {
            tracker.wait_verdict_within(slow(Duration::from_secs(8)), name, "up", "replied")?;
            let took = since.elapsed();
            ensure!(took < slow(Duration::from_secs(8)), "{name}: {took:?}");
        }
        assert_eq!(
            detail(&tracker)?,
            format!("the MAC address of 10.9.0.2 changed from {from} to {to}")
        );
    }
    Ok(())
}

#[test]
fn another_netmask_is_no_event() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub
        .ip("address add 10.9.0.1/25 dev eth1\naddress del 10.9.0.1/24 dev eth1\n")?;
    tracker.wait_alive(SOON, "fw-1")?;
    lab.hub
        .ip("address add 10.9.0.1/24 dev eth1\naddress del 10.9.0.1/25 dev eth1\n")?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(tracker.history("fw-1")?.len(), 1, "{}", tracker.log());
    Ok(())
}

/// The firewall passes nothing that has another source than this.
fn pass_only(lab: &Lab, family: &str, source: &str) -> Result<()> {
    lab.service().firewall.nft(&format!(
        "add table inet sources\nflush table inet sources\n\
         add chain inet sources forward {{ type filter hook forward priority 0; }}\n\
         add rule inet sources forward iifname eth0 {family} saddr != {source} drop\n"
    ))
}

#[test]
fn the_source_is_the_one_that_the_kernel_would_take() -> Result<()> {
    let lab = Lab::new()?;
    let (hub, service) = (&lab.hub, lab.service());
    let v6 = format!(
        "[[service]]\nname = \"v6\"\nendpoint = \"fe80::2\"\ninterface = \"eth1\"\nbehind = [\"{}\"]\n",
        service.behind6
    );
    service
        .firewall
        .ip("address add fe80::2/64 dev eth0 nodad\n")?;
    // An address with a peer beside another one.
    hub.ip(
        "address flush dev eth1 scope global\naddress add 192.0.2.10/32 dev eth1\n\
         address add 10.9.0.1 peer 10.9.0.2/32 dev eth1\n\
         address add 2001:db8:9::1/64 dev eth1 nodad\naddress add fd00:9::1/64 dev eth1 nodad\n",
    )?;
    pass_only(&lab, "ip6", "2001:db8:9::1")?;
    let mut tracker = Tracker::start(hub, &format!("{}{v6}", service.toml("fw-1")))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("v6", "up", "replied")?;
    // A deprecated address, newer, is none to send from; nor is it after a restart.
    hub.ip("address add 2001:db8:9::100/64 dev eth1 preferred_lft 0 nodad\n")?;
    tracker.wait_alive(SOON, "v6")?;
    // The first IPv6 probes of new namespaces may be lost.
    let before = tracker.history("v6")?.len();
    tracker.kill()?;
    tracker.run()?;
    tracker.wait_alive(SOON, "v6")?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(tracker.history("v6")?.len(), before, "{}", tracker.log());
    // The one in use is deprecated while there is another.
    hub.ip(
        "address change 2001:db8:9::100/64 dev eth1 preferred_lft forever valid_lft forever\n\
         address change 2001:db8:9::1/64 dev eth1 preferred_lft 0\n",
    )?;
    pass_only(&lab, "ip6", "2001:db8:9::100")?;
    tracker.wait_alive(LATER, "v6")?;
    Ok(())
}

#[test]
fn a_source_that_the_hub_does_not_have_is_not_the_services_fault() -> Result<()> {
    let lab = Lab::new()?;
    let (hub, service) = (&lab.hub, lab.service());
    hub.ip("address add 10.9.0.111/24 dev eth1\n")?;
    let tracker = Tracker::start(hub, &service.toml_with("fw-1", "source = \"10.9.0.111\""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // As a virtual address that moves to another hub.
    hub.ip("address del 10.9.0.111/24 dev eth1\n")?;
    tracker.wait_verdict("fw-1", "unknown", "send-failed")?;
    assert_eq!(
        detail(&tracker)?,
        "the hub does not have the source address 10.9.0.111"
    );
    hub.ip("address add 10.9.0.111/32 dev lo\n")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// Replies are 80 ms under way. The cable is pulled and put back meanwhile: they arrive where they are expected, none of them
/// came a wrong way, and the hub's stack sees none.
#[test]
fn replies_under_way_while_the_path_changes() -> Result<()> {
    let lab = Lab::new()?;
    let (hub, service) = (&lab.hub, lab.service());
    let (firewall, host) = (&service.firewall, &service.host);
    let tunnel = Tunnel::new("far", [firewall, host])?;
    firewall.ip("link set far up\nroute replace 10.20.0.0/16 dev far\n")?;
    firewall.nft("add rule inet firewall forward iifname far accept\n")?;
    host.ip("link set far up\nroute replace default dev far\n")?;
    tunnel.carry_by(Box::new(|from, packet| {
        vec![Parcel {
            to: from.other(),
            after: slow(Duration::from_millis(40)),
            packet,
        }]
    }));
    hub.nft(
        "table inet seen {\n\
         counter replies { }\n\
         chain input { type filter hook input priority 0; icmp type echo-reply counter name replies; }\n}\n",
    )?;
    let more = "interval = \"20ms\"\ntimeout = \"500ms\"";
    let tracker = Tracker::start(hub, &service.toml_with("fw-1", more))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..10 {
        tracker.wait_alive(SOON, "fw-1")?;
        firewall.ip("link set eth0 down\n")?;
        pause(Duration::from_millis(10));
        firewall.ip("link set eth0 up\n")?;
        tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    }
    let events = tracker.history("fw-1")?;
    assert!(
        events.iter().any(|(_, cause)| cause == "interface-down"),
        "{events:?}"
    );
    let status = tracker.status()?;
    assert_eq!(status.count("fw-1", "wrong_path"), 0);
    let seen = hub.run("nft list counter inet seen replies")?;
    assert!(seen.contains("packets 0 "), "{seen}");
    Ok(())
}

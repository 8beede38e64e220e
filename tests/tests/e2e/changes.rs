//! What changes underneath: each gives its own cause, and needs no restart to recover.
//!
//! More of it in interface.rs, next_hop.rs and self_healing.rs.

use anyhow::Result;
use nix::sys::signal::Signal;
use tracker_lab::daemon::LATER;
use tracker_lab::skip::{linux, tells_xdp_features};
use tracker_lab::{Config, Lab, Status, Tracker};

/// The ways out of an interface; the second one is better.
const WAYS: [&str; 2] = ["tc-redirect", "xdp-redirect"];

/// Whether probes can leave by this way on this kernel.
fn is_possible(by: &str) -> bool {
    by != "xdp-redirect" || tells_xdp_features()
}

/// An interface that takes redirected frames, or one that does not: the way out differs, and what must be renewed.
fn redirect(lab: &Lab, by: &str) -> Result<()> {
    let state = if by == "xdp-redirect" { "on" } else { "off" };
    let gro = format!("ethtool -K eth0 gro {state}");
    lab.service().firewall.run(&gro).map(drop)
}

fn start<'lab>(lab: &'lab Lab, by: &str) -> Result<Tracker<'lab>> {
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    alive(&tracker, by)?;
    Ok(tracker)
}

/// Up with new replies, by the way that is meant.
fn alive(tracker: &Tracker<'_>, by: &str) -> Result<()> {
    tracker.wait_for(by, LATER, |status| {
        status.member("fw-1", "active")["send"] == by
    })?;
    tracker.wait_alive(LATER, "fw-1").map(drop)
}

/// The detail of the only tracker.
fn detail(status: &Status) -> String {
    let trackers = &status.service("fw-1")["members"][0]["trackers"];
    trackers[0]["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn renamed_moved_away_and_replaced() -> Result<()> {
    for by in WAYS.into_iter().filter(|by| is_possible(by)) {
        let lab = Lab::new()?;
        let (hub, service) = (&lab.hub, lab.service());
        redirect(&lab, by)?;
        let tracker = start(&lab, by)?;
        let elsewhere = lab.add_namespace("elsewhere")?;
        let configure = "address add 10.9.0.1/24 dev eth1\nlink set eth1 up\n";

        // Renamed while it is up, if the kernel allows that (Linux 6.2).
        let rename = |from: &str, to: &str| match linux() >= (6, 2) {
            true => hub.ip(&format!("link set {from} name {to}\n")),
            false => hub.ip(&format!(
                "link set {from} down\nlink set {from} name {to}\nlink set {to} up\n"
            )),
        };
        rename("eth1", "other")?;
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        rename("other", "eth1")?;
        alive(&tracker, by)?;

        // Moved away and back, while the daemon runs and while it is stopped: the interface keeps its index.
        hub.ip(&format!("link set eth1 netns {}\n", elsewhere.name()))?;
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        let left = elsewhere.run("ip -details link show dev eth1")?;
        assert!(!left.contains("prog/xdp"), "the program went along: {left}");
        elsewhere.ip(&format!("link set eth1 netns {}\n", hub.name()))?;
        hub.ip(configure)?;
        alive(&tracker, by)?;
        let index = hub.enter(|| Ok(nix::net::if_::if_nametoindex("eth1")?))?;
        let away_and_back = format!(
            "link set eth1 netns {}\n-netns {} link set eth1 netns {}\n{configure}",
            elsewhere.name(),
            elsewhere.name(),
            hub.name()
        );
        tracker.signal(Signal::SIGSTOP)?;
        for line in away_and_back.lines() {
            hub.run(&format!("ip {line}"))?;
        }
        tracker.signal(Signal::SIGCONT)?;
        alive(&tracker, by)?;

        // Another device of the same name and index, while the daemon is stopped.
        tracker.signal(Signal::SIGSTOP)?;
        hub.ip(&format!(
            "link del eth1\n\
             link add eth1 index {index} type veth peer name eth0 netns {}\n\
             {configure}",
            service.firewall.name()
        ))?;
        service
            .firewall
            .ip("address add 10.9.0.2/24 dev eth0\nlink set eth0 up\n")?;
        redirect(&lab, by)?;
        tracker.signal(Signal::SIGCONT)?;
        alive(&tracker, by)?;

        service.break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        service.mend()?;
        alive(&tracker, by)?;
    }
    Ok(())
}

#[test]
fn addresses_of_the_interface() -> Result<()> {
    let lab = Lab::new()?;
    let (hub, service) = (&lab.hub, lab.service());
    service.firewall.nft(
        "add counter inet firewall first
         add counter inet firewall second
         insert rule inet firewall forward ip saddr 10.9.0.1 counter name first
         insert rule inet firewall forward ip saddr 10.9.0.7 counter name second\n",
    )?;
    let sources = || -> Result<[bool; 2]> {
        let mut used = [false; 2];
        for (name, used) in ["first", "second"].iter().zip(&mut used) {
            let reset = format!("nft reset counter inet firewall {name}");
            *used = !service.firewall.run(&reset)?.contains("packets 0 ");
        }
        Ok(used)
    };
    let tracker = Tracker::start(hub, &service.toml("fw-1"))?;
    tracker.wait_alive(LATER, "fw-1")?;
    assert_eq!(sources()?, [true, false]);

    // None left: a probe would have no source address, which is no fault of the service.
    hub.ip("address del 10.9.0.1/24 dev eth1\n")?;
    let none = tracker.wait_verdict("fw-1", "unknown", "send-failed")?;
    assert_eq!(
        detail(&none),
        "eth1 has no usable IPv4 address to send from"
    );
    // The source follows to another one, and back with the first.
    hub.ip("address add 10.9.0.7/24 dev eth1\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    sources()?;
    tracker.wait_alive(LATER, "fw-1")?;
    assert_eq!(sources()?, [false, true]);
    hub.ip("address add 10.9.0.1/24 dev eth1\naddress del 10.9.0.7/24 dev eth1\n")?;
    // The kernel takes a network's secondary addresses along with its primary one.
    if !hub.run("ip address show dev eth1")?.contains("10.9.0.1/24") {
        hub.ip("address add 10.9.0.1/24 dev eth1\n")?;
    }
    tracker.wait_alive(LATER, "fw-1")?;
    sources()?;
    tracker.wait_alive(LATER, "fw-1")?;
    assert_eq!(sources()?, [true, false]);
    Ok(())
}

#[test]
fn neighbours_macs_and_mtu() -> Result<()> {
    // The best that the kernel can do.
    let [way, better] = WAYS;
    let by = if is_possible(better) { better } else { way };
    let lab = Lab::new()?;
    let (hub, service) = (&lab.hub, lab.service());
    redirect(&lab, by)?;
    let config = Config::new(service.toml_with("fw-1", "payload = 600"));
    let tracker = Tracker::start(hub, config)?;
    alive(&tracker, by)?;
    let ups = || Ok::<_, anyhow::Error>(tracker.history("fw-1")?.len());
    let before = ups()?;

    // Flushed, deleted, and our own address changed: nothing is lost for long enough to tell.
    hub.ip("neigh flush dev eth1\n")?;
    alive(&tracker, by)?;
    hub.ip("neigh del 10.9.0.2 dev eth1\n")?;
    alive(&tracker, by)?;
    hub.ip("link set eth1 address 02:00:00:00:00:77\n")?;
    alive(&tracker, by)?;
    let seen = service.firewall.run("ip neigh show 10.9.0.1")?;
    assert!(ups()? == before, "{:?} {seen}", tracker.history("fw-1")?);

    // Another box, by the operator's own word; and the right one again.
    hub.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:bb dev eth1 nud permanent\n")?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let lost = tracker.status()?.count("fw-1", "lost");
    tracker.wait_for("more losses", LATER, |status| {
        status.count("fw-1", "lost") > lost + 20
    })?;
    let kept = hub.run("ip neigh show 10.9.0.2")?;
    assert!(
        kept.contains("02:00:00:00:00:bb") && kept.contains("PERMANENT"),
        "{kept}"
    );
    hub.ip("neigh del 10.9.0.2 dev eth1\n")?;
    alive(&tracker, by)?;

    // A packet of 628 bytes; the device counts as one that cannot take it, then as one that can.
    hub.ip("link set eth1 mtu 600\n")?;
    let status = tracker.wait_verdict("fw-1", "unknown", "send-failed")?;
    assert_eq!(
        detail(&status),
        "a packet of 628 bytes does not fit the MTU 600 of eth1"
    );
    hub.ip("link set eth1 mtu 628\n")?;
    alive(&tracker, by)?;
    hub.ip("link set eth1 mtu 1500\n")?;
    alive(&tracker, by)?;

    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    service.mend()?;
    alive(&tracker, by)?;
    Ok(())
}

/// The devices below one that is made of others.
#[test]
fn what_lies_below() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let hub = &lab.hub;
    hub.ip("link add br1 type bridge\nlink set eth1 master br1\n\
         address add 10.9.7.1/24 dev br1\nlink set br1 up\n")?;
    lab.service()
        .firewall
        .ip("address add 10.9.7.2/24 dev eth0\n")?;
    let config = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.7.2\"\ninterface = \"br1\"\nbehind = [\"10.20.0.9\"]\n";
    let tracker = Tracker::start(hub, tracker_lab::Config::new(config).mode("auto"))?;
    tracker.wait_alive(LATER, "fw-1")?;
    // The bridge's only port leaves it, comes back, loses its cable.
    hub.ip("link set eth1 nomaster\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    hub.ip("link set eth1 master br1\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    hub.ip("link set eth1 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    hub.ip("link set eth1 up\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    // Another cable to another firewall with the endpoint's address.
    lab.service()
        .firewall
        .ip("address del 10.9.7.2/24 dev eth0\n")?;
    let second = &lab.services()[1];
    second.host.ip("address add 10.20.0.9/32 dev eth0\n")?;
    second.firewall.ip("address add 10.9.7.2/24 dev eth0\n")?;
    hub.ip("link set eth1 nomaster\nlink set eth2 master br1\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    second.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

//! Services on devices that only some kernels have, and lines that are bad but not broken.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::{Config, Lab, Tracker, skip};

/// A service on an interface of the hub in 10.9.7.0/24.
fn on(interface: &str) -> String {
    format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.7.2\"\ninterface = \"{interface}\"\nbehind = [\"10.20.0.9\"]\n"
    )
}

/// Lets the firewall forward whatever it calls its end.
fn forward_from_anywhere(lab: &Lab) -> Result<()> {
    lab.service()
        .firewall
        .nft("add rule inet firewall forward ip daddr 10.20.0.0/16 counter name forwarded accept\n")
}

/// Down when the firewall no longer forwards, and up when it does.
fn breaks_and_mends(lab: &Lab, tracker: &Tracker) -> Result<()> {
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// Frames that have left the hub's `eth1` by XDP redirect, by the driver's own count.
fn redirected(lab: &Lab) -> Result<u64> {
    let statistics = lab.hub.run("ethtool -S eth1")?;
    let counts = statistics
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("tx_queue") && name.ends_with("xdp_xmit"));
    Ok(counts
        .filter_map(|(_, count)| count.parse::<u64>().ok())
        .sum())
}

#[test]
fn vlan() -> Result<()> {
    let lab = Lab::new()?;
    let add = "ip link add link eth1 name eth1.10 type vlan id 10";
    if !lab.hub.succeeds(add)? {
        skip!("this kernel has no 802.1Q devices (`{add}`)");
    }
    let firewall = &lab.service().firewall;
    // With GRO the parent takes redirected frames, and the send program adds the tag, if the kernel reports XDP features.
    firewall.run("ethtool -K eth0 gro on")?;
    firewall.ip("link add link eth0 name eth0.10 type vlan id 10\n\
         address add 10.9.7.2/24 dev eth0.10\nlink set eth0.10 up\n")?;
    lab.hub
        .ip("address add 10.9.7.1/24 dev eth1.10\nlink set eth1.10 up\n")?;
    forward_from_anywhere(&lab)?;
    let tracker = Tracker::start(&lab.hub, Config::new(on("eth1.10")).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = redirected(&lab)?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(status.count("fw-1", "lost"), 0);
    let by_xdp = status.member("fw-1", "active")["send"] == "xdp-redirect";
    assert_eq!(redirected(&lab)? > before, by_xdp, "{}", status.0);
    assert_eq!(by_xdp, tracker_lab::skip::tells_xdp_features());
    breaks_and_mends(&lab, &tracker)?;

    // What is sent by the parent must not outlive the VLAN device.
    lab.hub.ip("link set eth1.10 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    lab.hub.ip("link set eth1.10 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    lab.hub.ip("link set eth1 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    lab.hub.ip("link set eth1 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

/// What an XDP program of the veth's other end sends back is delivered only while this end has a native program too.
#[test]
fn auto_is_native_where_the_other_end_runs_xdp() -> Result<()> {
    let lab = Lab::new()?;
    let service = Foreign::new(&lab, Hook::Xdp, "service")?;
    lab.service().firewall.ip(&format!(
        "link set dev eth0 xdpdrv pinned {}\n",
        service.pin()
    ))?;
    let config = || Config::new(lab.service().toml("fw-1")).mode("auto");
    let mut tracker = Tracker::start(&lab.hub, config())?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(status.member("fw-1", "active")["mode"], "xdp-native");
    assert!(service.seen()? > 0);
    let doctor = tracker.command(&["doctor"]).output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        doctor.contains("interface eth1: receive xdp-native"),
        "{doctor}"
    );
    assert!(tracker.terminate()?.success());

    // The operator's own choice to have no TSO says nothing of the other end.
    lab.service()
        .firewall
        .ip("link set dev eth0 xdpdrv off\n")?;
    lab.hub.run("ethtool -K eth1 tso off")?;
    tracker.run()?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(status.member("fw-1", "active")["mode"], "tc");
    Ok(())
}

/// By default, offloads and the largest MTU of the service's interface and of its peer are left as they were, and the log
/// says once why a faster way to receive was not taken.
#[test]
fn auto_switches_nothing_off() -> Result<()> {
    let lab = Lab::new()?;
    let firewall = &lab.service().firewall;
    let look = || -> Result<[String; 3]> {
        Ok([
            lab.hub.run("ethtool -k eth1")?,
            firewall.run("ethtool -k eth0")?,
            firewall.run("ip -details link show dev eth0")?,
        ])
    };
    // Neither counters nor states, but the lines with limits.
    let limits = |shown: &[String; 3]| -> Vec<String> {
        let words = shown[2].split_whitespace().collect::<Vec<_>>();
        let limit = words.windows(2).filter(|pair| pair[0] == "maxmtu");
        let limit = limit.map(|pair| pair.join(" "));
        let offloads = shown[..2].iter().flat_map(|shown| shown.lines());
        offloads.map(str::to_owned).chain(limit).collect()
    };
    let before = limits(&look()?);
    assert!(
        before
            .iter()
            .any(|line| line.contains("tcp-segmentation-offload: on")),
        "{before:?}"
    );
    let mut tracker = Tracker::start(
        &lab.hub,
        Config::new(lab.service().toml("fw-1")).mode("auto"),
    )?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(status.member("fw-1", "active")["mode"], "tc");
    assert_eq!(limits(&look()?), before);
    let why = "eth1: receiving by tc; on a veth, native XDP switches off the peer's TSO";
    assert_eq!(tracker.log().matches(why).count(), 1, "{}", tracker.log());
    let doctor = tracker.command(&["doctor"]).output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        doctor.contains("interface eth1: receive tc")
            && doctor.contains("switches off the peer's TSO"),
        "{doctor}"
    );
    // A larger MTU, with the daemon running.
    firewall.ip("link set eth0 mtu 9000\n")?;
    lab.hub.ip("link set eth1 mtu 9000\n")?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(tracker.events()?.len(), 2, "{:?}", tracker.events()?);
    firewall.ip("link set eth0 mtu 1500\n")?;
    lab.hub.ip("link set eth1 mtu 1500\n")?;
    assert!(tracker.terminate()?.success());

    // What is asked for is done, and costs offloads, but no MTU: packets of several buffers pass.
    tracker.write(&lab.service().toml("fw-1"))?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_ne!(limits(&look()?), before);
    firewall.ip("link set eth0 mtu 9000\n")?;
    lab.hub.ip("link set eth1 mtu 9000\n")?;
    let endpoint = lab.service().endpoint;
    assert!(lab.hub.succeeds(&format!(
        "ping -n -c 2 -i 0.02 -W 1 -M do -s 8900 {endpoint}"
    ))?);
    tracker.wait_alive(SOON, "fw-1").map(drop)
}

#[test]
fn vrf() -> Result<()> {
    let lab = Lab::new()?;
    let add = "ip link add vrf1 type vrf table 100";
    if !lab.hub.succeeds(add)? {
        skip!("this kernel has no VRF devices (`{add}`)");
    }
    lab.hub
        .ip("link set vrf1 up\nlink set eth1 master vrf1\n")?;
    // The endpoint is known to the VRF's table alone.
    assert!(!lab.hub.succeeds("ip route get 10.9.0.2")?);
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(status.count("fw-1", "lost"), 0);
    breaks_and_mends(&lab, &tracker)?;
    // Out of the VRF and into it again.
    for master in ["nomaster", "master vrf1"] {
        lab.hub.ip(&format!("link set eth1 {master}\n"))?;
        tracker.wait_alive(LATER, "fw-1")?;
    }
    breaks_and_mends(&lab, &tracker)
}

#[test]
fn bond_of_two_legs() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let add = "ip link add bond1 type bond mode active-backup miimon 50";
    if !lab.hub.succeeds(add)? {
        skip!("this kernel has no bonding (`{add}`)");
    }
    lab.hub.ip(&format!(
        "link add leg2 type veth peer name leg2 netns {}\n\
         link set eth1 down\nlink set eth1 master bond1\nlink set leg2 master bond1\n\
         address add 10.9.7.1/24 dev bond1\nlink set bond1 up\n",
        service.firewall.name()
    ))?;
    service.firewall.ip(
        "link add br1 type bridge\nlink set eth0 master br1\nlink set leg2 master br1\n\
         link set leg2 up\naddress add 10.9.7.2/24 dev br1\nlink set br1 up\n",
    )?;
    forward_from_anywhere(&lab)?;
    // Slow enough that the bond has moved to its other leg before `fall` losses had their timeout.
    let config = Config::new(on("bond1"))
        .mode("auto")
        .defaults("interval = \"200ms\"\ntimeout = \"200ms\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    // Its driver would run an XDP program on the legs.
    assert_eq!(up.member("fw-1", "active")["mode"], "tc");
    service.firewall.ip("link set eth0 down\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    service
        .firewall
        .ip("link set eth0 up\nlink set leg2 down\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    let history = tracker.history("fw-1")?;
    assert_eq!(
        history.len(),
        1,
        "one leg was there all the time: {history:?}"
    );
    breaks_and_mends(&lab, &tracker)?;
    service.firewall.ip("link set eth0 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    service.firewall.ip("link set eth0 up\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}

/// An address of the service's own device, on an interface that has no line at all.
#[test]
fn behind_on_a_dummy() -> Result<()> {
    let lab = Lab::new()?;
    let firewall = &lab.service().firewall;
    let add =
        "link add dummy1 type dummy\naddress add 10.20.0.77/32 dev dummy1\nlink set dummy1 up\n";
    if firewall.ip(add).is_err() {
        skip!("this kernel has no dummy devices (`ip link add dummy1 type dummy`)");
    }
    let config = lab
        .service()
        .toml("fw-1")
        .replace("10.20.0.9", "10.20.0.77");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    firewall.ip("link del dummy1\n")?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    firewall.ip(add)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// A line behind the firewall that delays, loses or doubles packets.
#[test]
fn bad_line() -> Result<()> {
    let lab = Lab::new()?;
    let firewall = &lab.service().firewall;
    let netem = |what: &str| firewall.run(&format!("tc qdisc replace dev eth1 root netem {what}"));
    if netem("delay 1ms").is_err() {
        skip!("this kernel has no netem (`tc qdisc add root netem`)");
    }
    netem("delay 50ms")?;
    let config = Config::new(lab.service().toml_with("fw-1", "fall = 8"));
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    let rtt = &status.tracker("fw-1", "10.20.0.9")["rtt_us"];
    assert!(rtt["min"].as_u64() >= Some(50_000), "{rtt}");

    // Eight losses in a row: once in a hundred million probes.
    netem("loss random 10%")?;
    tracker.wait_for("lost probes", LATER, |status| {
        status.count("fw-1", "lost") >= 3
    })?;
    netem("duplicate 30%")?;
    let status = tracker.wait_for("doubled replies", LATER, |status| {
        status.count("fw-1", "duplicate") >= 3
    })?;
    assert!(status.count("fw-1", "received") <= status.count("fw-1", "sent"));
    assert_eq!(status.verdict("fw-1"), "up");
    assert_eq!(tracker.history("fw-1")?.len(), 1);

    netem("loss random 100%")?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    netem("delay 1ms")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

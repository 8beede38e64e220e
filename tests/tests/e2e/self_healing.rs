//! What the daemon made is removed by another program: the daemon makes it anew, and no service goes down.

use anyhow::{Context as _, Result};
use tracker_lab::daemon::LATER;
use tracker_lab::{Config, Lab, Tracker, netns};

/// The private interface's end on which nothing is attached, as the hub's namespace lists it.
fn private_interface(lab: &Lab) -> Result<String> {
    let links = lab.hub.run("ip -brief link")?;
    links
        .lines()
        .filter_map(|line| line.split(['@', ' ']).next())
        .find(|name| name.starts_with("trk-") && name.ends_with('b'))
        .map(str::to_owned)
        .with_context(|| format!("find the private interface in {links}"))
}

#[test]
fn private_interface_deleted() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..2 {
        let name = private_interface(&lab)?;
        lab.hub.ip(&format!("link del {name}\n"))?;
        tracker.wait_alive(LATER, "fw-1")?;
    }
    let downs = tracker.history("fw-1")?;
    assert!(downs.iter().all(|(to, _)| to != "down"), "{downs:?}");
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

#[test]
fn orphan_of_the_private_interfaces_does_not_stop_a_start() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let orphan = private_interface(&lab)?;
    let pair = orphan.strip_suffix('b').context("read the pair's name")?;
    let other = format!("{pair}a");
    tracker.kill()?;
    let elsewhere = lab.service().host.name().to_owned();
    lab.hub
        .ip(&format!("link set {other} netns {elsewhere}\n"))?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

#[test]
fn receive_program_detached() -> Result<()> {
    let lab = Lab::new()?;
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        // Slow enough that the daemon notices before `fall` losses had their timeout.
        let config = Config::new(lab.service().toml("fw-1"))
            .mode(mode)
            .defaults("interval = \"500ms\"\ntimeout = \"1s\"\nrise = 1");
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let links = tracker.pins().join("links");
        let pin = std::fs::read_dir(&links)?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("receive-"))
            .with_context(|| format!("find the receive link below {}", links.display()))?;
        let mut detach = std::process::Command::new("bpftool");
        detach.args(["link", "detach", "pinned"]).arg(pin.path());
        let is_filter = lab
            .hub
            .run("tc filter show dev eth1 ingress")?
            .contains("trk_tc_recv");
        if is_filter {
            // Before TCX, Linux 6.6.
            lab.hub.run("tc filter del dev eth1 ingress")?;
        } else {
            netns::check(&mut detach)?;
        }
        let before = tracker.status()?.count("fw-1", "received");
        tracker.wait_for("replies after the detachment", LATER, |status| {
            status.count("fw-1", "received") > before + 2
        })?;
        assert_eq!(
            tracker.history("fw-1")?.len(),
            1,
            "{mode}: up once, never down"
        );
    }
    Ok(())
}

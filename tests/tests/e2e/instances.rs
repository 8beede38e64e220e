//! Several daemons, on one hub or with one source address: none takes another's probes for its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use tracker_ebpf::abi;
use tracker_lab::daemon::LATER;
use tracker_lab::servers::{Reflector, TcpEcho, UdpEcho};
use tracker_lab::{Config, Lab, Tracker};

const NAMES: [&str; 6] = ["icmp", "icmp-6", "udp", "udp-6", "stamp", "tcp"];

/// Every kind of probe, of both families, from one source to one behind address.
fn config(lab: &Lab) -> Config {
    let service = lab.service();
    let udp = "probe = \"udp\"\nport = 7007";
    let services = [
        service.toml("icmp"),
        service.toml_to("icmp-6", service.behind6, ""),
        service.toml_with("udp", udp),
        service.toml_to("udp-6", service.behind6, udp),
        service.toml_with("stamp", "probe = \"udp\"\nprotocol = \"stamp\""),
        service.toml_with("tcp", "probe = \"tcp\"\nport = 443"),
    ];
    Config::new(services.concat()).mode("tc")
}

fn quiet(tracker: &Tracker<'_>) -> Result<()> {
    let status = tracker.status()?;
    for name in NAMES {
        for counter in ["corrupt", "duplicate", "wrong_path", "elsewhere"] {
            assert_eq!(status.count(name, counter), 0, "{name}: {counter}");
        }
    }
    let log = tracker.log();
    assert!(!log.contains("prove"), "{log}");
    Ok(())
}

#[test]
fn two_instances_on_one_interface() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind = service.behinds();
    let _servers = (
        UdpEcho::start(&service.host, &behind, 7_007)?,
        Reflector::start(&service.host, &behind, 862)?,
        TcpEcho::start(&service.host, &behind, 443)?,
    );
    let trackers = [
        Tracker::start(&lab.hub, config(&lab))?,
        Tracker::start(&lab.hub, config(&lab))?,
    ];
    for tracker in &trackers {
        for name in NAMES {
            tracker.wait_verdict_within(LATER, name, "up", "replied")?;
        }
    }
    let told =
        |tracker: &Tracker<'_>| NAMES.map(|name| tracker.history(name).map(|told| told.len()).ok());
    let before = trackers.each_ref().map(told);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        trackers.iter().try_for_each(quiet)?;
    }
    // Replies that the other one's programs see first, or that they consume, must not be missing here.
    assert_eq!(trackers.each_ref().map(told), before);
    service.break_forwarding()?;
    for tracker in &trackers {
        for name in NAMES {
            tracker.wait_verdict_within(LATER, name, "down", "no-reply")?;
        }
        quiet(tracker)?;
    }
    Ok(())
}

/// The tag in the state directory is that of the pins, outlives them, and is made anew if it is missing.
#[test]
fn the_tag_is_kept() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, lab.service().toml("fw-1").as_str())?;
    let file = tracker.state().join("tag");
    let kept = || std::fs::read_to_string(&file).context("read the tag");
    let first = kept()?;
    assert_eq!(first.len(), 9, "{first:?}");
    tracker.terminate()?;
    tracker.run()?;
    assert_eq!(kept()?, first, "without pins");
    // From the pins.
    tracker.kill()?;
    std::fs::write(&file, "damaged\n")?;
    tracker.run()?;
    assert_eq!(kept()?, first, "without a file");
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.terminate()?;
    std::fs::remove_file(&file)?;
    tracker.run()?;
    assert_ne!(kept()?, first, "with neither");
    tracker.wait_verdict("fw-1", "up", "replied").map(drop)
}

/// Maps of version 7, which had no tag in HUB, are copied: counters go on, and the token's key.
#[test]
fn maps_without_a_tag_are_taken_over() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, lab.service().toml("fw-1").as_str())?;
    let received = tracker.wait_alive(LATER, "fw-1")?.count("fw-1", "received");
    tracker.kill()?;
    let pin = tracker.pins().join("maps/HUB");
    let hub = |pin: &Path| -> Result<abi::Hub> {
        let map = Map::Array(MapData::from_pin(pin)?);
        Ok(Array::try_from(map)?.get(&0, 0)?)
    };
    let new = hub(&pin)?;
    let mut old = Array::<MapData, abi::UntaggedHub>::create(1, 0)?;
    let entry = abi::UntaggedHub {
        key: new.key,
        version: 7,
        private_ifindex: new.private_ifindex,
    };
    old.set(0, entry, 0)?;
    std::fs::remove_file(&pin)?;
    old.pin(&pin)?;

    tracker.run()?;
    let status = tracker.wait_alive(LATER, "fw-1")?;
    assert!(status.count("fw-1", "received") > received);
    assert_eq!(status.count("fw-1", "corrupt"), 0);
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    let log = tracker.log();
    assert!(
        log.contains("going on from an earlier daemon, with 1 of its trackers"),
        "{log}"
    );
    assert!(!log.contains("not taken over"), "{log}");
    let now = hub(&pin)?;
    assert_eq!((now.key, now.version), (new.key, abi::VERSION));
    // The state directory had it.
    assert_eq!(now.tag, new.tag);
    Ok(())
}

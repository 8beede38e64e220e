//! Several daemons, on one hub or with one source address: none takes another's probes for its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use tracker_ebpf::abi;
use tracker_lab::daemon::LATER;
use tracker_lab::servers::{Reflector, TcpEcho, UdpEcho};
use tracker_lab::{Config, Lab, Tracker};

/// `BPF_F_MMAPABLE` of linux/bpf.h.
const BPF_F_MMAPABLE: u32 = 1 << 10;

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

/// What a build before the layouts were hashed would have left: the pins of a killed daemon, in the layouts of then.
fn age(pins: &Path, version: u32) -> Result<abi::Hub> {
    let of = |name: &str| MapData::from_pin(pins.join(name));
    let remove = |name: &str| std::fs::remove_file(pins.join(name));
    let hub: Array<_, abi::Hub> = Array::try_from(Map::Array(of("HUB")?))?;
    let hub = hub.get(&0, 0)?;
    if version == abi::earlier::UNTAGGED {
        let mut old = Array::<MapData, abi::earlier::Hub>::create(1, 0)?;
        let entry = abi::earlier::Hub {
            key: hub.key,
            version,
            private_ifindex: hub.private_ifindex,
        };
        old.set(0, entry, 0)?;
        remove("HUB")?;
        old.pin(pins.join("HUB"))?;
    } else {
        let mut same: Array<_, abi::Hub> = Array::try_from(Map::Array(of("HUB")?))?;
        same.set(0, abi::Hub { version, ..hub }, 0)?;
    }

    let paths: Array<_, abi::PathEntry> = Array::try_from(Map::Array(of("PATHS")?))?;
    let mut old = Array::<MapData, abi::Path>::create(paths.len(), BPF_F_MMAPABLE)?;
    for (at, entry) in (0..).zip(paths.iter()) {
        old.set(at, entry?.path(), 0)?;
    }
    remove("PATHS")?;
    old.pin(pins.join("PATHS"))?;

    let trackers = Map::Array(of("TRACKERS")?);
    let mut trackers: Array<_, abi::Tracker> = Array::try_from(trackers)?;
    for at in 0..trackers.len() {
        let mut tracker = trackers.get(&at, 0)?;
        if tracker.rotates != 0 {
            (tracker.rotates, tracker.dscp) = (0xff, 0xff);
        }
        trackers.set(at, tracker, 0)?;
    }

    let counters = Map::PerCpuArray(of("COUNTERS")?);
    let counters: PerCpuArray<_, [u64; 16]> = PerCpuArray::try_from(counters)?;
    let mut old = PerCpuArray::<MapData, [u64; 15]>::create(1, 0)?;
    let kept = counters.get(&0, 0)?;
    let kept = kept.iter().map(|all| std::array::from_fn(|at| all[at]));
    old.set(0, PerCpuValues::try_from(kept.collect::<Vec<_>>())?, 0)?;
    remove("COUNTERS")?;
    old.pin(pins.join("COUNTERS"))?;
    Ok(hub)
}

/// Maps of earlier layouts are copied: counters go on, the token's key, and the flows of trackers.
#[test]
fn maps_of_earlier_layouts_are_taken_over() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let config = [
        service.toml("fw-1"),
        service.toml_with("rotating", "flow = \"rotate\""),
    ];
    let mut tracker = Tracker::start(&lab.hub, config.concat().as_str())?;
    for version in [abi::earlier::UNTAGGED, abi::earlier::COUNTED] {
        let status = tracker.wait_alive(LATER, "fw-1")?;
        let received = status.count("fw-1", "received");
        tracker.wait_alive(LATER, "rotating")?;
        tracker.kill()?;
        let maps = tracker.pins().join("maps");
        let old = age(&maps, version)?;

        tracker.run()?;
        let status = tracker.wait_alive(LATER, "fw-1")?;
        assert!(status.count("fw-1", "received") > received, "{version}");
        for name in ["fw-1", "rotating"] {
            for counter in ["corrupt", "lost"] {
                assert_eq!(
                    status.count(name, counter),
                    0,
                    "{version}: {name} {counter}"
                );
            }
            assert_eq!(tracker.history(name)?.len(), 1, "{version}: {name}");
        }
        let log = tracker.log();
        assert!(
            log.contains("going on from an earlier daemon, with 2 of its trackers"),
            "{log}"
        );
        assert!(!log.contains("not taken over"), "{log}");
        let hub: Array<_, abi::Hub> =
            Array::try_from(Map::Array(MapData::from_pin(maps.join("HUB"))?))?;
        let now = hub.get(&0, 0)?;
        assert_eq!((now.key, now.version), (old.key, abi::VERSION));
        // From HUB, or from the state directory.
        assert_eq!(now.tag, old.tag);
    }
    Ok(())
}

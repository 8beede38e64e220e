//! What stays in the kernel when the daemon ends: nothing, or what `tracker cleanup` then removes.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tracker_lab::daemon::{KernelObject, SOON};
use tracker_lab::pace::slow;
use tracker_lab::{Config, Lab, Tracker, netns, skip};

/// Programs, maps and links: those the process holds, and those it has pinned.
fn objects(tracker: &Tracker) -> Result<BTreeSet<KernelObject>> {
    let held = KernelObject::held_by(tracker.pid()?)?;
    let pinned = KernelObject::pinned_below(&tracker.pins());
    for kind in ["map", "link"] {
        assert!(
            pinned.iter().any(|object| object.kind == kind),
            "no {kind} is pinned below {}: {pinned:?}",
            tracker.pins().display()
        );
    }
    Ok(held.union(&pinned).cloned().collect())
}

/// Waits until the kernel has freed these objects, which it does some time after the last reference is gone.
fn wait_until_gone(objects: &BTreeSet<KernelObject>) -> Result<()> {
    let deadline = Instant::now() + slow(SOON);
    loop {
        let left: Vec<_> = objects.iter().filter(|object| object.exists()).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("still in the kernel: {left:?}");
        }
        sleep(Duration::from_millis(50));
    }
}

/// The filters that take part at the hub's ingress.
fn filters(lab: &Lab) -> Result<String> {
    lab.hub.run("tc filter show dev eth1 ingress")
}

fn is_clean(lab: &Lab, tracker: &Tracker, before: &str) -> Result<()> {
    assert_eq!(lab.hub.look()?, before);
    assert!(!tracker.pins().exists(), "{}", tracker.pins().display());
    let neighbours = lab.hub.run("ip neigh show")?;
    for flag in ["managed", "extern_learn", "PERMANENT"] {
        assert!(!neighbours.contains(flag), "{flag} in {neighbours}");
    }
    Ok(())
}

fn in_mode(lab: &Lab, mode: &str) -> Config {
    Config::new(lab.service().toml("fw-1")).mode(mode)
}

fn sigterm_leaves_nothing_of(mode: &str) -> Result<()> {
    let lab = Lab::new()?;
    let before = lab.hub.look()?;
    let mut tracker = Tracker::start(&lab.hub, in_mode(&lab, mode))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_ne!(lab.hub.look()?, before, "a running daemon can be seen");
    let objects = objects(&tracker)?;

    let status = tracker.terminate()?;
    assert!(status.success(), "{status}: {}", tracker.log());
    is_clean(&lab, &tracker, &before)?;
    assert!(!tracker.socket().exists());
    wait_until_gone(&objects)
}

#[test]
fn sigterm_leaves_nothing() -> Result<()> {
    sigterm_leaves_nothing_of("xdp-native")
}

#[test]
fn sigterm_leaves_nothing_at_tc() -> Result<()> {
    sigterm_leaves_nothing_of("tc")
}

fn sigkill_and_cleanup_leave_nothing_of(mode: &str) -> Result<()> {
    let lab = Lab::new()?;
    let before = lab.hub.look()?;
    let mut tracker = Tracker::start(&lab.hub, in_mode(&lab, mode))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let objects = objects(&tracker)?;

    tracker.kill()?;
    assert!(tracker.pins().exists(), "a killed daemon leaves its pins");
    tracker.cleanup()?;
    is_clean(&lab, &tracker, &before)?;
    wait_until_gone(&objects)?;
    tracker.cleanup() // Nothing left to do is no error.
}

#[test]
fn sigkill_and_cleanup_leave_nothing() -> Result<()> {
    sigkill_and_cleanup_leave_nothing_of("xdp-native")
}

#[test]
fn sigkill_and_cleanup_leave_nothing_at_tc() -> Result<()> {
    sigkill_and_cleanup_leave_nothing_of("tc")
}

#[test]
fn an_operators_filters_stay() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.run("tc qdisc add dev eth1 clsact")?;
    let add = "tc filter add dev eth1 ingress protocol ip pref 7 u32 match u32 0 0";
    if !lab.hub.succeeds(add)? {
        skip!("this kernel has no u32 filter (`{add}`)");
    }
    let before = (lab.hub.look()?, filters(&lab)?);
    let mut tracker = Tracker::start(&lab.hub, in_mode(&lab, "tc"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.terminate()?;
    assert_eq!((lab.hub.look()?, filters(&lab)?), before);
    // One that comes while the daemon runs keeps the qdisc that the daemon may have made.
    lab.hub.run("tc qdisc del dev eth1 clsact")?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let _ = lab.hub.succeeds("tc qdisc add dev eth1 clsact")?;
    lab.hub.run(add)?;
    tracker.kill()?;
    tracker.cleanup()?;
    let left = filters(&lab)?;
    assert!(left.contains("pref 7 u32"), "{left}");
    assert!(!left.contains("tracker"), "{left}");
    Ok(())
}

#[test]
fn cleanup_spares_the_other_instances() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let mut victim = Tracker::start(&lab.hub, &lab.services()[0].toml("fw-1"))?;
    let other = Tracker::start(&lab.hub, &lab.services()[1].toml("fw-2"))?;
    victim.wait_verdict("fw-1", "up", "replied")?;
    other.wait_verdict("fw-2", "up", "replied")?;
    victim.kill()?;
    victim.cleanup()?;
    other.wait_alive(SOON, "fw-2")?;
    assert_eq!(other.history("fw-2")?.len(), 1);
    Ok(())
}

#[test]
fn a_new_daemon_takes_over_after_sigkill() -> Result<()> {
    let lab = Lab::new()?;
    let before = lab.hub.look()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut seen = objects(&tracker)?;
    tracker.kill()?;

    tracker.run()?;
    assert_eq!(tracker.status()?.verdict("fw-1"), "up", "at once");
    tracker.wait_alive(SOON, "fw-1")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    seen.extend(objects(&tracker)?);
    tracker.terminate()?;
    is_clean(&lab, &tracker, &before)?;
    wait_until_gone(&seen)
}

#[test]
fn a_second_daemon_of_one_instance_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let config = tracker.config();
    let second = tracker
        .command(&["run", "--config"])
        .arg(config)
        .output()
        .context("run a second daemon")?;
    assert_eq!(second.status.code(), Some(1));
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(tracker.history("fw-1")?.len(), 1, "the first is untouched");
    Ok(())
}

/// A directory that may have become a mount.
struct Unmounted(tempfile::TempDir);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_bpffs_that_is_not_mounted_is_mounted() -> Result<()> {
    let lab = Lab::new()?;
    let bpffs = Unmounted(tempfile::tempdir()?);
    let path = bpffs.0.path();
    assert!(!netns::is_bpffs(path));
    let config =
        Config::new(lab.service().toml("fw-1")).hub(format!("bpffs = \"{}\"", path.display()));
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert!(netns::is_bpffs(path));
    let pins = path.join("tracker").join(tracker.instance());
    assert!(pins.join("maps").is_dir(), "{}", pins.display());
    tracker.terminate()?;
    assert!(!pins.exists(), "{}", pins.display());
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_nothing() -> Result<()> {
    netns::ensure_bpffs()?;
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("tracker.toml");
    let instance = format!("failed-{}", lab.id());
    let refused = [
        (
            "socket = \"/proc/nowhere/tracker.sock\"",
            "cannot listen on /proc/nowhere",
        ),
        ("bpffs = \"/proc/nowhere\"", "cannot make /proc/nowhere"),
    ];
    for (line, message) in refused {
        let socket = directory.path().join("tracker.sock");
        let socket = format!("socket = \"{}\"\n", socket.display());
        let socket = if line.starts_with("socket") {
            ""
        } else {
            &socket
        };
        let hub = format!("[hub]\ninstance = \"{instance}\"\n{socket}{line}\n");
        std::fs::write(&path, hub + &lab.service().toml("fw-1"))?;
        let mut command = lab.hub.command(tracker_lab::daemon::binary());
        let output = command.args(["run", "--config"]).arg(&path).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{line}: {stderr}");
        assert!(stderr.contains(message), "{line}: {stderr}");
        let pins = std::path::Path::new("/sys/fs/bpf/tracker").join(&instance);
        assert!(!pins.exists(), "{line}: {} is left", pins.display());
        let links = lab.hub.run("ip -brief link")?;
        assert!(!links.contains("trk-"), "{line}: {links}");
    }
    Ok(())
}

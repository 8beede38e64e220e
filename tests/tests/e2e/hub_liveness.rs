//! A daemon that hangs says so and ends; what is not there yet, is taken away or steps does not keep it from working.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tracker_lab::clock::SteppedClock;
use tracker_lab::daemon::{SOON, binary, lines};
use tracker_lab::hang::Hang;
use tracker_lab::pace::slow;
use tracker_lab::{Config, Lab, Namespace, Status, Tracker};

/// From the last turn until every verdict is unknown (see `as_of_ms`), and what a busy machine adds.
const STALL: Duration = Duration::from_secs(6);
/// From the hang of a thread until the daemon ends itself, and what a busy machine adds.
const HANG: Duration = Duration::from_secs(60);
const METRICS: &str = "metrics = \"127.0.0.1:9469\"\n";

/// A program that runs the daemon by the words of `prefix`, to be its binary.
fn wrapped(directory: &TempDir, prefix: &str) -> Result<PathBuf> {
    let path = directory.path().join("tracker-wrapped");
    let text = format!("#!/bin/sh\nexec {prefix} {} \"$@\"\n", binary().display());
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn scrape(hub: &Namespace) -> Result<String> {
    hub.run("curl -sf -m 5 http://127.0.0.1:9469/metrics")
}

/// Waits until something is so.
fn wait(what: &str, patience: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + slow(patience);
    while Instant::now() < end {
        if is()? {
            return Ok(());
        }
        sleep(Duration::from_millis(50));
    }
    anyhow::bail!("waited in vain for {what}")
}

/// Waits for a daemon's end and returns its exit code; `hang` is the thread of it that stands still, if any.
fn ends(tracker: &mut Tracker, hang: Option<&Hang>, patience: Duration) -> Result<Option<i32>> {
    let mut code = None;
    wait("the daemon's end", patience, || {
        if let Some(hang) = hang {
            hang.reap();
        }
        Ok(match tracker.exited()? {
            Some(status) => {
                code = Some(status);
                true
            }
            None => false,
        })
    })?;
    Ok(code.and_then(|status| status.code()))
}

/// No verdict is told of a daemon that does not know it; what it last knew stands beside it.
fn says_that_it_stalls(status: &Status) {
    let json = &status.0;
    assert!(json["as_of_ms"].as_u64() > Some(3_000), "{json}");
    let service = status.service("fw-1");
    let member = &service["members"][0];
    for one in [service, member, &member["trackers"][0]] {
        assert_eq!(one["verdict"], "unknown", "{json:#}");
        assert_eq!(one["cause"], "stalled", "{json:#}");
        assert_eq!(one["last_verdict"], "up", "{json:#}");
    }
}

#[test]
fn a_main_loop_that_hangs_is_seen_and_ended() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let supervisor = directory.path().join("notify");
    let messages = UnixDatagram::bind(&supervisor)?;
    messages.set_nonblocking(true)?;
    let config = Config::new(lab.service().toml("fw-1"))
        .hub(METRICS)
        .environment("NOTIFY_SOCKET", supervisor.display().to_string())
        .environment("WATCHDOG_USEC", "1000000");
    let mut tracker = Tracker::start(&lab.hub, config)?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    ensure!(status.0["as_of_ms"].as_u64() <= Some(3_000), "{}", status.0);
    let page = scrape(&lab.hub)?;
    assert!(
        page.contains("tracker_service_up{service=\"fw-1\"} 1"),
        "{page}"
    );
    let hang = Hang::new(tracker.pid()?, "tracker")?;

    let status = tracker.wait_verdict_within(STALL, "fw-1", "unknown", "stalled")?;
    says_that_it_stalls(&status);
    let table = tracker.client(&["status"]).output()?;
    assert_eq!(table.status.code(), Some(2));
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("stalled (was up)"), "{table}");
    assert!(table.contains("has not kept up"), "{table}");
    let page = scrape(&lab.hub)?;
    assert!(
        page.contains("tracker_service_up{service=\"fw-1\"} 0"),
        "{page}"
    );
    assert!(
        page.contains("tracker_service_unknown{service=\"fw-1\"} 1"),
        "{page}"
    );
    assert!(page.contains("tracker_hub_age_seconds"), "{page}");

    let said = said(&messages);
    assert!(said.contains(&"READY=1".to_owned()), "{said:?}");
    let fed = said.iter().filter(|message| *message == "WATCHDOG=1");
    assert!(fed.count() >= 1, "{said:?}");
    // Nothing feeds the supervisor's watchdog any more.
    sleep(Duration::from_secs(2));
    let later = self::said(&messages);
    assert!(!later.contains(&"WATCHDOG=1".to_owned()), "{later:?}");
    let is_said = |message: &String| message.starts_with("STATUS=stalled for ");
    assert!(later.iter().any(is_said), "{later:?}");

    assert_eq!(
        ends(&mut tracker, None, HANG)?,
        Some(70),
        "{}",
        tracker.log()
    );
    drop(hang);
    let log = tracker.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(
        told[0].contains("the main loop has hung for 30 s, since 20"),
        "{log}"
    );
    // As after a crash: the next one goes on.
    assert!(tracker.pins().join("journal").exists());
    tracker.run()?;
    assert!(
        tracker.log().contains("going on from an earlier daemon"),
        "{}",
        tracker.log()
    );
    tracker.wait_alive(SOON, "fw-1")?;
    let events = tracker.events()?;
    assert!(
        events.iter().all(|event| event.to != "down"),
        "{}",
        lines(&events)
    );
    Ok(())
}

fn said(messages: &UnixDatagram) -> Vec<String> {
    let mut said = Vec::new();
    let mut bytes = [0; 512];
    while let Ok(length) = messages.recv(&mut bytes) {
        said.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    said
}

#[test]
fn a_sending_thread_that_hangs_for_a_while_is_seen_and_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let hang = Hang::new(tracker.pid()?, "tracker-send")?;
    let status = tracker.wait_verdict_within(STALL, "fw-1", "unknown", "stalled")?;
    says_that_it_stalls(&status);
    drop(hang);
    let status = tracker.wait_alive(SOON, "fw-1")?;
    ensure!(status.0["as_of_ms"].as_u64() <= Some(3_000), "{}", status.0);
    assert!(
        status.service("fw-1")["last_verdict"].is_null(),
        "{}",
        status.0
    );
    let events = tracker.events()?;
    assert!(
        events.iter().all(|event| event.to != "down"),
        "{}",
        lines(&events)
    );
    Ok(())
}

#[test]
fn sigterm_ends_a_daemon_that_hangs() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for thread in ["tracker", "tracker-send"] {
        let hang = Hang::new(tracker.pid()?, thread)?;
        let begun = Instant::now();
        tracker.signal(Signal::SIGTERM)?;
        let code = ends(&mut tracker, Some(&hang), Duration::from_secs(8))?;
        assert!(
            begun.elapsed() < slow(Duration::from_secs(5)),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(code, Some(70), "{thread}: {}", tracker.log());
        drop(hang);
        // What is left is what a crash leaves.
        tracker.run()?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    Ok(())
}

/// Waits until a process that was just started has signals blocked, which is before it does anything.
fn wait_blocked(tracker: &Tracker) -> Result<()> {
    let path = format!("/proc/{}/status", tracker.pid()?);
    wait("blocked signals", SOON, || {
        let text = fs::read_to_string(&path)?;
        let mask = text.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let mask = u64::from_str_radix(mask.context("no SigBlk")?.trim(), 16)?;
        Ok(mask & 1 << (Signal::SIGTERM as u32 - 1) != 0)
    })
}

#[test]
fn signals_during_a_start_count() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [first, second] = lab.services() else {
        anyhow::bail!("two services");
    };
    let mut tracker = Tracker::start(&lab.hub, &first.toml("fw-1"))?;
    assert!(tracker.terminate()?.success());
    // A reload is kept for when the start is over.
    tracker.launch()?;
    wait_blocked(&tracker)?;
    // The file that it starts with was read by then, or will be: both ways the second service is there in the end.
    tracker.write(&format!("{}{}", first.toml("fw-1"), second.toml("fw-2")))?;
    tracker.signal(Signal::SIGHUP)?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    wait("the reload", SOON, || {
        Ok(tracker.log().contains("reloaded, watching"))
    })?;
    assert!(tracker.terminate()?.success());
    // An end is one at any time of the start.
    for delay_ms in [0, 30, 100, 200, 300] {
        tracker.launch()?;
        wait_blocked(&tracker)?;
        sleep(Duration::from_millis(delay_ms));
        let begun = Instant::now();
        tracker.signal(Signal::SIGTERM)?;
        let code = ends(&mut tracker, None, SOON)?;
        assert!(
            begun.elapsed() < slow(Duration::from_secs(5)),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(code, Some(0), "{}", tracker.log());
        assert!(!tracker.pins().exists(), "{delay_ms} ms: pins are left");
        let links = lab.hub.run("ip -brief link")?;
        assert!(!links.contains("trk-"), "{delay_ms} ms: {links}");
    }
    Ok(())
}

#[test]
fn a_metrics_address_may_come_later() -> Result<()> {
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("metrics = \"10.50.0.1:946\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    wait("a warning", SOON, || {
        Ok(tracker
            .log()
            .contains("cannot serve metrics on 10.50.0.1:946"))
    })?;
    lab.hub.ip("address add 10.50.0.1/32 dev lo\n")?;
    wait("metrics", SOON, || {
        lab.hub
            .succeeds("curl -sf -m 2 -o /dev/null http://10.50.0.1:946/metrics")
    })?;
    assert_eq!(
        tracker.log().matches("cannot serve metrics").count(),
        1,
        "{}",
        tracker.log()
    );
    Ok(())
}

#[test]
fn a_socket_that_was_removed_is_made_anew() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for _ in 0..2 {
        fs::remove_file(tracker.socket())?;
        wait("the socket", SOON, || Ok(tracker.socket().exists()))?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    let mode = fs::metadata(tracker.socket())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // One that another process made is left alone.
    fs::remove_file(tracker.socket())?;
    fs::write(tracker.socket(), "not a socket")?;
    wait("a warning", SOON, || {
        Ok(tracker.log().contains("cannot be made anew"))
    })?;
    assert_eq!(fs::read_to_string(tracker.socket())?, "not a socket");
    fs::remove_file(tracker.socket())?;
    wait("the socket", SOON, || Ok(tracker.socket().exists()))?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert!(tracker.terminate()?.success());
    assert!(!tracker.socket().exists());
    Ok(())
}

/// A daemon that sees a BPF file system of its own, as a unit does on a host where none is mounted.
#[test]
fn cleanup_and_a_second_daemon_are_refused_whatever_bpffs_they_see() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let own = wrapped(
        &directory,
        "unshare -m sh -c 'mount -t bpf bpf /sys/fs/bpf && exec \"$@\"' x",
    )?;
    let config = Config::new(lab.service().toml("fw-1")).binary(&own);
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let links = || lab.hub.run("ip -brief link");
    let before = links()?;
    for command in [
        vec!["cleanup", "--instance", tracker.instance()],
        vec!["run", "--config", path(&tracker.config())],
    ] {
        let output = lab.hub.command(binary()).args(&command).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{command:?}: {said}");
        assert!(
            said.contains("another daemon of the instance"),
            "{command:?}: {said}"
        );
    }
    assert_eq!(links()?, before);
    let leftover = tracker.pins();
    assert!(!leftover.exists(), "{}", leftover.display());
    tracker.wait_alive(SOON, "fw-1")?;
    let events = tracker.events()?;
    assert!(
        events.iter().all(|event| event.to != "down"),
        "{}",
        lines(&events)
    );
    Ok(())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[test]
fn a_read_only_proc_sys_is_enough() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let own = wrapped(
        &directory,
        "unshare -m sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"' x",
    )?;
    let config = Config::new(lab.service().toml("fw-1")).binary(&own);
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let doctor = lab.hub.command(&own).args(["doctor"]).output()?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success(), "{said}");
    // The private interfaces carry nothing of the stack's, also when they are made anew.
    let names = tracker_user::plan::observed::private_names(tracker.instance());
    lab.hub.ip(&format!("link del {}\n", names[0]))?;
    wait("the private interfaces", SOON, || {
        Ok(lab.hub.run(&format!("ip link show {}", names[1])).is_ok())
    })?;
    tracker.wait_alive(SOON, "fw-1")?;
    for name in &names {
        let addresses = lab.hub.run(&format!("ip -6 address show {name}"))?;
        assert_eq!(addresses, "", "{name}");
    }
    Ok(())
}

#[test]
fn the_soft_limit_of_open_files_is_raised() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let own = wrapped(&directory, "prlimit --nofile=32:4096")?;
    let config = Config::new(lab.service().toml("fw-1")).binary(&own);
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", tracker.pid()?))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.context("no limit")?.split_whitespace().collect();
    assert_eq!(files[3..5], ["4096", "4096"]);
    Ok(())
}

/// Without a descriptor left, a client is not answered; the daemon neither spins nor fills its log.
#[test]
fn clients_without_descriptors_fill_no_log() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let own = wrapped(&directory, "prlimit --nofile=90:90")?;
    let config = Config::new(lab.service().toml("fw-1")).binary(&own);
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let clients: Vec<_> = (0..100)
        .filter_map(|_| std::os::unix::net::UnixStream::connect(tracker.socket()).ok())
        .collect();
    wait("a refusal", SOON, || {
        Ok(tracker.log().contains("cannot accept a client"))
    })?;
    let before = tracker.log().lines().count();
    sleep(Duration::from_secs(2));
    let more = tracker.log().lines().count() - before;
    assert!(more <= 3, "{more} lines: {}", tracker.log());
    drop(clients);
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

#[test]
fn since_follows_a_clock_that_is_set() -> Result<()> {
    let lab = Lab::new()?;
    let clock = SteppedClock::new()?;
    // Fifty years back, as a machine without a clock that keeps time starts.
    let years = 50 * 365 * 86_400;
    clock.step(-years)?;
    let config = clock.rules(Config::new(lab.service().toml("fw-1")));
    let tracker = Tracker::start(&lab.hub, config)?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    let since = |status: &Status| -> Result<jiff::Timestamp> {
        let since = status.service("fw-1")["since"].as_str();
        Ok(since.context("no since")?.parse()?)
    };
    let now = jiff::Timestamp::now();
    let is_near = |time: jiff::Timestamp| time.duration_since(now).abs().as_secs() < 60;
    ensure!(
        !is_near(since(&status)?),
        "the clock was not set: {}",
        since(&status)?
    );
    clock.step(0)?;
    // The main loop compares the clocks twice a second.
    wait("the time by the clock of now", SOON, || {
        Ok(is_near(since(&tracker.status()?)?))
    })?;
    let status = tracker.status()?;
    // The same each time.
    assert_eq!(since(&tracker.status()?)?, since(&status)?);
    Ok(())
}

#[test]
fn a_time_namespace_changes_no_time() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let day = "unshare -T --monotonic 86400 --boottime 86400 --fork --kill-child=SIGTERM";
    if !Command::new("unshare")
        .args(["-T", "true"])
        .status()?
        .success()
    {
        tracker_lab::skip!("no time namespaces here");
    }
    let own = wrapped(&directory, day)?;
    let config = Config::new(lab.service().toml("fw-1")).binary(&own);
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker.wait_alive(SOON, "fw-1")?;
    for event in tracker
        .events()?
        .iter()
        .filter(|event| event.to != "unknown")
    {
        let hour_us = 3_600_000_000;
        assert!(event.detection_us < Some(hour_us), "{event:?}");
    }
    let status = tracker.status()?;
    let rtt = &status.tracker("fw-1", lab.service().behind)["rtt_us"];
    assert!(rtt["max"].as_u64() < Some(10_000_000), "{rtt}");
    ensure!(status.0["as_of_ms"].as_u64() <= Some(3_000), "{}", status.0);
    Ok(())
}

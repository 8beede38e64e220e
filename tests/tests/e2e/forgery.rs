//! Forged, altered and replayed replies, and those of other instances: none counts, however many there are.

use std::thread;
use std::time::{Duration, Instant};

use crate::forge::{capture, forgeries};
use anyhow::{Context as _, Result, bail};
use tracker_lab::daemon::{SOON, lines};
use tracker_lab::flood::flood;
use tracker_lab::pace::slow;
use tracker_lab::{Config, Lab, Tracker};

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(4);

/// User and system time that a process has used.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(')').context("read /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}

#[test]
fn a_flood_changes_no_verdict() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [good, bad] = lab.services() else {
        bail!("two services");
    };
    let config = format!("{}{}", good.toml("fw-1"), bad.toml("fw-2"));
    // Probes that are lost to a queue that overflows are the flood's doing, not a forged verdict's.
    let config = Config::new(config).defaults("interval = \"50ms\"\ntimeout = \"1s\"\nfall = 5");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    let replies = [capture(good)?, capture(bad)?];
    bad.break_forwarding()?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    let events = tracker.events()?;
    let before = tracker.status()?;
    let (started, used) = (Instant::now(), cpu_time(tracker.pid()?)?);

    // Both at once: a processor makes some 700,000 a second, and receives them.
    let sent: u64 = thread::scope(|scope| {
        let floods = [(good, &replies[0]), (bad, &replies[1])].map(|(service, reply)| {
            let frames: Vec<_> = forgeries(reply).into_values().collect();
            scope.spawn(move || flood(&service.firewall, "eth0", &frames, slow(FLOOD)))
        });
        let floods = floods.map(|flood| flood.join().expect("a flood does not panic"));
        floods.into_iter().sum::<Result<u64>>()
    })?;
    let rate = sent as f64 / started.elapsed().as_secs_f64();
    println!("{sent} forged replies, {rate:.0} a second");
    let (elapsed, used) = (started.elapsed(), cpu_time(tracker.pid()?)? - used);
    println!("the daemon used {used:?} in {elapsed:?}");

    // The one goes on, the other stays down; a cause may now be `corrupt`.
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(after.verdict("fw-2"), "down");
    let now = tracker.events()?;
    assert_eq!(now.len(), events.len(), "{}", lines(&now[events.len()..]));
    for service in ["fw-1", "fw-2"] {
        let grown = |counter| after.count(service, counter) - before.count(service, counter);
        assert!(grown("corrupt") > 10_000, "{service}: {}", grown("corrupt"));
        // A genuine one that comes again is the first of its probe, a duplicate, or too late by now.
        let again = grown("duplicate") + grown("late");
        assert!(again > 10_000, "{service}: {again}");
    }
    let received = after.count("fw-2", "received") - before.count("fw-2", "received");
    assert_eq!(received, 0, "forged replies count");
    let [sent, received] = ["sent", "received"].map(|name| after.count("fw-1", name));
    assert!(received <= sent, "{received} replies to {sent} probes");
    // It is the kernel that counts them: the daemon does not notice how many there are.
    assert!(used < elapsed / 2, "{used:?} of {elapsed:?}");
    let log = tracker.log();
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("corrupt"))
        .collect();
    assert!(
        told.iter().any(|line| line.contains("fw-1/active")),
        "{log}"
    );
    assert!(
        told.iter().any(|line| line.contains("fw-2/active")),
        "{log}"
    );
    // Two trackers, in less than a minute.
    assert!(told.len() <= 2 + elapsed.as_secs() as usize / 60, "{log}");
    let nobody = log.matches("of no tracker").count();
    assert!(
        (1..=1 + elapsed.as_secs() as usize / 60).contains(&nobody),
        "{log}"
    );
    Ok(())
}

/// Each kind by itself: what becomes of a handful.
#[test]
fn each_kind_is_counted_for_what_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    // A replayed reply is a duplicate while its probe's timeout lasts, so that is longer than a busy machine takes for all kinds.
    let config =
        Config::new(service.toml("fw-1")).defaults("interval = \"50ms\"\ntimeout = \"60s\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for (kind, frame) in forgeries(&capture(service)?) {
        let before = tracker.status()?;
        flood(
            &service.firewall,
            "eth0",
            &[frame],
            Duration::from_millis(1),
        )?;
        let counter = match kind {
            "replayed" => Some("duplicate"),
            "of no tracker" | "of another instance" => None,
            _ => Some("corrupt"),
        };
        let after = tracker.wait_alive(SOON, "fw-1")?;
        for name in ["corrupt", "duplicate", "late", "wrong_path"] {
            let grown = after.count("fw-1", name) - before.count("fw-1", name);
            assert_eq!(grown > 0, Some(name) == counter, "{kind}: {name} {grown}");
        }
        let [sent, received] = ["sent", "received"].map(|name| after.count("fw-1", name));
        assert!(received <= sent, "{kind}: {received} of {sent}");
    }
    Ok(())
}

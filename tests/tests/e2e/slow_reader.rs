//! A client that asks for the events and does not read them: it delays no other client, costs no memory, and is told
//! what it missed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tracker_lab::daemon::LATER;
use tracker_lab::{Config, Lab, Tracker};

const TRACKERS: usize = 2_000;
/// Events that the daemon keeps.
const KEPT: u64 = tracker_user::state::events::CAPACITY as u64;

/// Resident memory of a process, in kilobytes.
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("VmRSS")?.parse()?)
}

/// The number of the last event so far.
fn last(tracker: &Tracker, run: &str) -> Result<u64> {
    let (_, events) = tracker.http("GET", &format!("/v1/events?since={run}:1000000000"), "")?;
    // "event 1000000000 of run R has not happened yet, the last is N; ..."
    let (_, rest) = events.split_once("the last is ").context(events.clone())?;
    let (number, _) = rest.split_once(';').context(events.clone())?;
    Ok(number.parse()?)
}

/// A line of the stream: the numbers that it accounts for.
fn accounts_for(line: &str) -> Result<std::ops::Range<u64>> {
    let value: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
    if let Some(missed) = value["missed"].as_u64() {
        let next = value["next"].as_u64().context("next")?;
        return Ok(next - missed..next);
    }
    let seq = value["seq"].as_u64().context(line.to_owned())?;
    Ok(seq..seq + 1)
}

#[test]
fn who_does_not_read_learns_what_was_missed() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.answer_for_all()?;
    let behind: Vec<_> = (0..TRACKERS)
        .map(|at| format!("\"10.20.{}.{}\"", 1 + at / 250, 1 + at % 250))
        .collect();
    let config = format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"{}\"\ninterface = \"eth1\"\nbehind = [{}]\n",
        service.endpoint,
        behind.join(",")
    );
    let config = Config::new(config)
        .hub("room = 0")
        .defaults("interval = \"200ms\"\ntimeout = \"1s\"\nrise = 1");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_for("all to be up", LATER, |status| {
        let trackers = status.member("fw-1", "active")["trackers"].as_array();
        let mut trackers = trackers.into_iter().flatten();
        trackers.all(|tracker| tracker["verdict"] == "up")
    })?;

    let run = tracker.status()?.0["run"]
        .as_str()
        .context("run")?
        .to_owned();
    let mut slow = UnixStream::connect(tracker.socket())?;
    slow.write_all(b"GET /v1/events?since=0&follow=true HTTP/1.0\r\n\r\n")?;
    let pid = tracker.pid()?;
    let mut full = None;
    // Each turn is an event a tracker, and one of the service.
    let turn = |state: &str| -> Result<()> {
        let enough = last(&tracker, &run)? + TRACKERS as u64 + 1;
        lab.hub.ip(&format!("link set eth1 {state}\n"))?;
        let deadline = Instant::now() + LATER;
        while last(&tracker, &run)? < enough {
            ensure!(Instant::now() < deadline, "{}", tracker.log());
            sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    // The log is overrun by a quarter.
    while last(&tracker, &run)? < KEPT * 5 / 4 {
        turn("down")?;
        turn("up")?;
        if full.is_none() && last(&tracker, &run)? > KEPT {
            full = Some(memory(pid)?);
        }
    }
    let grown = memory(pid)?.saturating_sub(full.context("the log was never full")?);
    assert!(
        grown < 8 << 10,
        "{grown} kB more for events that are not kept"
    );

    // What waited in the socket's buffer, then the gap, then everything to the end.
    let end = last(&tracker, &run)?;
    slow.set_read_timeout(Some(LATER))?;
    let mut next = 1;
    let mut gaps = 0;
    // The head ends with an empty line; a body of HTTP/1.0 is not in chunks.
    let mut lines = BufReader::new(slow).lines();
    while !lines.next().context("a head")??.is_empty() {}
    for line in lines {
        let range = accounts_for(&line?)?;
        ensure!(range.start == next, "{range:?} after {next}");
        gaps += u64::from(range.end - range.start > 1);
        next = range.end;
        if next > end {
            break;
        }
    }
    assert!(next > end, "the stream ended at {next}, before {end}");
    assert!(gaps >= 1, "nothing was missed, and so nothing tested");

    // A client that gives the number of its last event gets those after it.
    let from = end - 1_000;
    let output = tracker.client(&["events", "--json", "--since", &from.to_string()]);
    let output = tracker_lab::netns::check(&mut { output })?;
    let text = String::from_utf8(output.stdout)?;
    let mut next = from + 1;
    for line in text.lines() {
        let range = accounts_for(line)?;
        assert_eq!(range, next..next + 1);
        next = range.end;
    }
    assert!(next > end, "{next}");
    Ok(())
}

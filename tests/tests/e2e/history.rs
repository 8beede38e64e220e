//! The history: what was lost and when, across restarts and reboots.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::{Config, Lab, Tracker, netns};

fn now() -> Result<i64> {
    Ok(SystemTime::now()
        .duration_since(UNIX_EPOCH)?
        .as_secs()
        .cast_signed())
}

/// `tracker history NAME --json`.
fn history(tracker: &Tracker, name: &str) -> Result<Value> {
    let output = netns::check(&mut tracker.client(&["history", name, "--json"]))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// By second: sent, lost, and the mean round-trip time in microseconds.
type Seconds = BTreeMap<i64, (u64, u64, Option<u64>)>;

/// Probes sent and lost, and the mean round-trip time, by second, of the only member.
fn seconds(history: &Value) -> Result<Seconds> {
    let points = history["members"][0]["points"]
        .as_array()
        .context("points")?;
    let points = points.iter().map(|point| {
        let number = |at: usize| point[at].as_u64();
        let (time, sent) = (
            point[0].as_i64().context("a time")?,
            number(1).context("sent")?,
        );
        let times = [3, 4, 6].map(number);
        assert!(
            times.iter().all(Option::is_some) || times.iter().all(Option::is_none),
            "{point}"
        );
        assert!(times.is_sorted(), "{point}: shortest, mean, longest");
        let p99 = number(5);
        assert!(
            times[0] <= p99 && p99 <= times[2],
            "{point}: the percentile is between shortest and longest"
        );
        Ok((time, (sent, number(2).context("lost")?, times[1])))
    });
    points.collect()
}

/// Sums of sent and lost over these seconds, and whether all of them had a reply.
fn sum(seconds: &BTreeMap<i64, (u64, u64, Option<u64>)>, range: Range<i64>) -> (u64, u64, bool) {
    let part = || seconds.range(range.clone()).map(|(_, second)| *second);
    (
        part().map(|(sent, ..)| sent).sum(),
        part().map(|(_, lost, _)| lost).sum(),
        part().all(|(.., rtt)| rtt.is_some()),
    )
}

fn kinds(history: &Value) -> Vec<String> {
    let events = history["transitions"].as_array().into_iter().flatten();
    let text = |event: &Value| {
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", word("kind"), word("to"))
    };
    let own = events.filter(|event| event["member"].is_null());
    own.map(text).collect()
}

#[test]
fn a_fault_is_in_the_history_and_stays_there() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let mut tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // What was lost before the first reply is found lost by then.
    let up = now()? + 2;
    sleep(Duration::from_secs(4));
    let broken = now()?;
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    sleep(Duration::from_secs(2));
    let mended = now()? + 1;
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    sleep(Duration::from_secs(4));
    tracker.service("set fw-1 --state maintenance --reason drill")?;
    tracker.service("set fw-1 --state auto")?;

    let told = history(&tracker, "fw-1")?;
    assert_eq!(
        (told["service"].as_str(), told["step_s"].as_i64()),
        (Some("fw-1"), Some(1))
    );
    let points = seconds(&told)?;
    let (sent, lost, replied) = sum(&points, up..broken);
    assert!(sent > 0 && lost == 0 && replied, "before: {points:?}");
    let (sent, lost, _) = sum(&points, broken..mended);
    assert!(
        sent > 0 && lost > 0,
        "broken from {broken} to {mended}: {points:?}"
    );
    let silent = points
        .range(broken + 1..mended - 1)
        .all(|(_, (.., rtt))| rtt.is_none());
    assert!(silent, "broken from {broken} to {mended}: {points:?}");
    // A probe is found lost once its timeout has passed.
    let (sent, lost, replied) = sum(&points, mended + 2..i64::MAX);
    assert!(
        sent > 0 && lost == 0 && replied,
        "mended at {mended}: {points:?}"
    );
    let events = kinds(&told);
    assert_eq!(
        events[..3],
        ["verdict up", "verdict down", "verdict up"],
        "{events:?}"
    );
    assert!(
        events[3..]
            .iter()
            .filter(|event| event.starts_with("admin "))
            .count()
            >= 2,
        "{events:?}"
    );

    for reboots in [false, true] {
        tracker.kill()?;
        if reboots {
            tracker.cleanup()?;
        }
        tracker.run()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let again = history(&tracker, "fw-1")?;
        let left = seconds(&again)?;
        for (second, point) in &points {
            assert_eq!(left.get(second), Some(point), "second {second}");
        }
        let left = kinds(&again);
        assert_eq!(left[..events.len()], events, "each once");
    }

    let svg = tracker.state().join("a.svg");
    let path = svg.display().to_string();
    netns::check(&mut tracker.client(&["history", "fw-1", "--svg", &path]))?;
    let svg = fs::read_to_string(svg)?;
    assert!(
        svg.starts_with("<svg")
            && svg.contains("class=\"lost\"")
            && svg.contains("class=\"event\"")
    );
    let text = netns::check(&mut tracker.client(&["history", "fw-1", "--since", "10m"]))?.stdout;
    let text = String::from_utf8(text)?;
    assert!(
        text.contains("RTT-MEAN") && text.contains("admin state"),
        "{text}"
    );
    let unknown = tracker.client(&["history", "fw-2"]).output()?;
    let error = String::from_utf8(unknown.stderr)?;
    assert!(
        !unknown.status.success() && error.contains("no service is named \"fw-2\""),
        "{error}"
    );
    Ok(())
}

#[test]
fn nothing_is_kept_if_it_is_off_until_a_reload() -> Result<()> {
    let lab = Lab::new()?;
    let of_size = |size: &str| {
        Config::new(format!(
            "{}[history]\nsize = \"{size}\"\n",
            lab.service().toml("fw-1")
        ))
    };
    let tracker = Tracker::start(&lab.hub, of_size("0"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    sleep(Duration::from_secs(2));
    let refused = tracker.client(&["history", "fw-1"]).output()?;
    let error = String::from_utf8(refused.stderr)?;
    assert!(
        !refused.status.success() && error.contains("[history] size is \"0\""),
        "{error}"
    );
    assert!(!tracker.state().join("history").exists());

    assert!(tracker.reload(of_size("1MiB"))?);
    sleep(Duration::from_secs(4));
    let points = seconds(&history(&tracker, "fw-1")?)?;
    let (sent, lost, _) = sum(&points, i64::MIN..i64::MAX);
    assert!(sent > 0 && lost == 0, "{points:?}");
    Ok(())
}

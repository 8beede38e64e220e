//! The history as a whole: files written, read, damaged, rotated.

use std::{collections::BTreeMap, fs};

use super::*;
use crate::state::events::{Event, EventLog, tests::example};

const START: i64 = 1_767_225_600;
const MEBIBYTE: u64 = 1 << 20;

fn value(sent: u64, lost: u64, us: Option<u64>) -> Value {
    Value {
        sent,
        lost,
        rtt: us.map(|us| Rtt {
            min_us: us,
            mean_us: us,
            p99_us: us,
            max_us: us,
        }),
    }
}

fn feed() -> EventFeed {
    EventFeed::new(EventLog::new(1_000, 1).of_run("run"))
}

/// Writes seconds with a member of each of these services.
fn write(
    history: &History,
    seconds: std::ops::Range<i64>,
    services: &[&str],
    of: impl Fn(i64) -> Value,
) {
    for second in seconds {
        let time = START + second;
        history.write(time, |writer| {
            let row = services
                .iter()
                .map(|name| (writer.number(&key(name, "active", "10.0.0.2")), of(second)));
            let row: Vec<_> = row.collect();
            writer.second(time, &row)?;
            writer.expire(time);
            writer.flush()
        });
    }
}

fn points(history: &History, service: &str, tier: Tier) -> Vec<(i64, Value)> {
    let found = history
        .read(service, i64::MIN, tier, &feed(), START)
        .unwrap();
    let points = found.members.into_iter().flat_map(|member| member.points);
    points
        .map(|point| (point.time - START, point.value))
        .collect()
}

fn files(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir.join(DIRECTORY)).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (
            entry.file_name().into_string().unwrap(),
            entry.metadata().unwrap().len(),
        )
    });
    entries.collect()
}

fn path_of(dir: &Path, series: &str) -> PathBuf {
    let names = files(dir).into_keys();
    let name = names.filter(|name| name.starts_with(series)).max().unwrap();
    dir.join(DIRECTORY).join(name)
}

#[test]
fn what_is_written_is_read_by_service_and_tier() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 256 * MEBIBYTE);
    let of = |second: i64| match second % 10 {
        9 => value(10, 10, None),
        _ => value(10, 0, Some(100 + second as u64)),
    };
    write(&history, 0..150, &["fw-1", "fw-10"], of);
    let seconds = points(&history, "fw-1", Tier::Second);
    assert_eq!(
        seconds,
        (0..150)
            .map(|second| (second, of(second)))
            .collect::<Vec<_>>()
    );
    let minutes = points(&history, "fw-10", Tier::Minute);
    let first = Value {
        sent: 600,
        lost: 60,
        rtt: Some(Rtt {
            min_us: 100,
            mean_us: 129,
            p99_us: 158,
            max_us: 158,
        }),
    };
    assert_eq!(minutes.len(), 2);
    assert_eq!(minutes[0], (0, first));
    assert_eq!(points(&history, "fw-1", Tier::Hour), []);
    assert_eq!(points(&history, "fw", Tier::Second), []);
    let since = history
        .read("fw-1", START + 140, Tier::Second, &feed(), START)
        .unwrap();
    assert_eq!(since.members[0].points.len(), 10);
    assert_eq!(
        (
            since.members[0].name.as_str(),
            since.members[0].endpoint.as_str()
        ),
        ("active", "10.0.0.2")
    );
}

#[test]
fn members_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 256 * MEBIBYTE);
    let of = |second| value(second as u64, 0, None);
    write(&history, 0..5, &["a", "b"], of);
    write(&history, 5..10, &["b"], of);
    write(&history, 10..15, &["c", "b", "a"], of);
    let times = |name| {
        points(&history, name, Tier::Second)
            .into_iter()
            .map(|(time, value)| {
                assert_eq!(value, of(time));
                time
            })
    };
    assert!(times("a").eq((0..5).chain(10..15)));
    assert!(times("b").eq(0..15));
    assert!(times("c").eq(10..15));
    // Very many names, each for a second: those that are gone are given up, and what is known of the minute is not.
    for second in 15..50 {
        let names: Vec<_> = (0..200)
            .map(|number| format!("x-{second}-{number}"))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).chain(["a"]).collect();
        write(&history, second..second + 1, &names, of);
    }
    write(&history, 60..61, &["a"], of);
    let sum = |from: i64, to: i64| (from..to).sum::<i64>() as u64;
    assert_eq!(
        points(&history, "a", Tier::Minute),
        [(0, value(sum(0, 5) + sum(10, 50), 0, None))]
    );
    assert_eq!(
        points(&history, "x-20-7", Tier::Minute),
        [(0, value(20, 0, None))]
    );
    // The hour is over once a minute of the next one is.
    write(&history, 3_600..3_601, &["a"], of);
    for second in 3_660..3_720 {
        let names: Vec<_> = (0..200)
            .map(|number| format!("y-{second}-{number}"))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).chain(["a"]).collect();
        write(&history, second..second + 1, &names, of);
    }
    let known = history.write(START, |writer| Ok(writer.columns())).unwrap();
    assert!(known <= 60 * 200 + 1, "{known} columns");
    write(&history, 3_720..3_721, &["a"], of);
    let minutes = points(&history, "a", Tier::Minute);
    assert_eq!(minutes[3..], [(3_660, value(sum(3_660, 3_720), 0, None))]);
    assert_eq!(
        points(&history, "y-3700-7", Tier::Minute),
        [(3_660, value(3_700, 0, None))]
    );
}

#[test]
fn a_minute_and_an_hour_go_on_after_a_restart() {
    let of = |second| value(1, u64::from(second % 7 == 0), Some(second as u64));
    let whole = tempfile::tempdir().unwrap();
    let history = History::new(whole.path(), 256 * MEBIBYTE);
    write(&history, 0..7_300, &["a"], of);
    let broken = tempfile::tempdir().unwrap();
    // Each daemon is killed after some seconds: what it did not write of longer steps is made again from what it wrote.
    for (from, to) in [
        (0, 30),
        (30, 61),
        (61, 3_590),
        (3_590, 3_605),
        (3_605, 7_199),
        (7_199, 7_300),
    ] {
        write(
            &History::new(broken.path(), 256 * MEBIBYTE),
            from..to,
            &["a"],
            of,
        );
    }
    let again = History::new(broken.path(), 256 * MEBIBYTE);
    for tier in Tier::ALL {
        let known = points(&history, "a", tier);
        assert!(!known.is_empty());
        assert_eq!(points(&again, "a", tier), known, "{tier}");
    }
}

#[test]
fn a_tail_that_is_torn_anywhere_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let of = |second| value(second as u64, 1, Some(7));
    write(&History::new(dir.path(), 256 * MEBIBYTE), 0..4, &["a"], of);
    let path = path_of(dir.path(), "1s");
    let before = fs::metadata(&path).unwrap().len() as usize;
    write(
        &History::new(dir.path(), 256 * MEBIBYTE),
        4..6,
        &["a", "b"],
        of,
    );
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        let torn = tempfile::tempdir().unwrap();
        fs::create_dir(torn.path().join(DIRECTORY)).unwrap();
        let into = torn.path().join(DIRECTORY).join(path.file_name().unwrap());
        fs::write(&into, &whole[..len]).unwrap();
        let history = History::new(torn.path(), 256 * MEBIBYTE);
        let left = points(&history, "a", Tier::Second);
        assert!(
            left.iter()
                .enumerate()
                .all(|(at, point)| *point == (at as i64, of(at as i64))),
            "{len}"
        );
        assert!(
            left.len() < 6 && (len < before || left.len() >= 4),
            "{len}: {left:?}"
        );
        // It is written on as if nothing had been.
        write(&history, 10..12, &["a", "c"], of);
        drop(history);
        let history = History::new(torn.path(), 256 * MEBIBYTE);
        assert_eq!(
            points(&history, "a", Tier::Second).len(),
            left.len() + 2,
            "{len}"
        );
        assert_eq!(points(&history, "c", Tier::Second).len(), 2, "{len}");
    }
}

#[test]
fn damage_anywhere_is_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let of = |second| value(second as u64, 1, Some(7));
    write(&History::new(dir.path(), 256 * MEBIBYTE), 0..6, &["a"], of);
    let path = path_of(dir.path(), "1s");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        let left = points(&History::new(dir.path(), 256 * MEBIBYTE), "a", Tier::Second);
        assert!(left.len() < 6, "{at}");
        assert!(
            left.iter()
                .enumerate()
                .all(|(at, point)| *point == (at as i64, of(at as i64))),
            "{at}"
        );
        // A header that is damaged was kept aside.
        let aside = files(dir.path())
            .into_keys()
            .filter(|name| !name.ends_with(".seg"));
        let aside: Vec<_> = aside.collect();
        assert_eq!(
            aside.len(),
            usize::from(at < frame::HEADER_LEN),
            "{at}: {aside:?}"
        );
        for name in aside {
            fs::remove_file(dir.path().join(DIRECTORY).join(name)).unwrap();
        }
    }
}

#[test]
fn another_version_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &History::new(dir.path(), 256 * MEBIBYTE),
        0..2,
        &["a"],
        |_| value(1, 0, None),
    );
    let path = path_of(dir.path(), "1s");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 9;
    fs::write(&path, &bytes).unwrap();
    let history = History::new(dir.path(), 256 * MEBIBYTE);
    assert_eq!(points(&history, "a", Tier::Second), []);
    write(&history, 2..4, &["a"], |_| value(1, 0, None));
    assert_eq!(points(&history, "a", Tier::Second).len(), 2);
    let aside = path.with_extension("seg.version-9");
    assert_eq!(fs::read(aside).unwrap(), bytes);
}

#[test]
fn it_keeps_within_its_size_and_shortens_the_finest_first() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), MEBIBYTE);
    let names: Vec<_> = (0..150).map(|number| format!("fw-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let of = |second| value(1, 0, Some(300 + second as u64 % 50));
    for hour in 0..30 {
        write(&history, hour * 3_600..hour * 3_600 + 900, &names, of);
        let bytes: u64 = files(dir.path()).values().sum();
        assert!(bytes <= MEBIBYTE, "{bytes} after {hour} hours");
    }
    let oldest = |tier| points(&history, "fw-7", tier)[0].0;
    assert_eq!(oldest(Tier::Hour), 0, "all hours are there");
    let newest = 29 * 3_600 + 900;
    assert!(
        oldest(Tier::Second) > newest - 3_600,
        "seconds are shortened"
    );
    let tier_bytes = |name: &str| {
        files(dir.path())
            .iter()
            .filter(|(file, _)| file.starts_with(name))
            .map(|(_, bytes)| bytes)
            .sum::<u64>()
    };
    assert!(
        tier_bytes("1s") >= MEBIBYTE / 20,
        "{} bytes of seconds",
        tier_bytes("1s")
    );
}

#[test]
fn rows_that_are_old_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 256 * MEBIBYTE);
    write(&history, 0..10, &["a"], |_| value(1, 0, None));
    write(&history, 5_000..5_010, &["a"], |_| value(1, 0, None));
    write(&history, 9_000..9_010, &["a"], |_| value(1, 0, None));
    let times: Vec<_> = points(&history, "a", Tier::Second)
        .into_iter()
        .map(|(time, _)| time)
        .collect();
    assert!(
        times.iter().all(|time| *time >= 5_000) && times.contains(&9_009),
        "{times:?}"
    );
    let minutes: Vec<_> = points(&history, "a", Tier::Minute)
        .into_iter()
        .map(|(time, _)| time)
        .collect();
    assert_eq!(minutes, [0, 4_980]);
}

#[test]
fn what_is_too_long_for_the_size_is_refused_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 64 << 10);
    let names: Vec<_> = (0..5_000)
        .map(|number| format!("a-service-with-a-long-name-{number}"))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let time = START;
    let written = history.write(time, |writer| {
        let row: Vec<_> = names
            .iter()
            .map(|name| (writer.number(name), Value::default()))
            .collect();
        writer.second(time, &row)?;
        writer.flush()
    });
    assert_eq!(written, None);
    write(&history, 5..10, &["a"], |_| value(1, 0, None));
    assert_eq!(points(&history, "a", Tier::Second).len(), 5);
    assert!(files(dir.path()).values().sum::<u64>() <= 64 << 10);
}

fn event(name: &str, at: i64) -> Event {
    Event {
        service: Some(name.into()),
        time: jiff::Timestamp::from_second(START + at).unwrap(),
        ..example()
    }
}

#[test]
fn each_event_is_kept_once_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let feed = feed();
    let seqs = |history: &History, feed: &EventFeed, since| {
        let found = history
            .read("fw-1", START + since, Tier::Second, feed, START)
            .unwrap();
        let events = found
            .events
            .into_iter()
            .map(|event| (event.run.to_string(), event.seq));
        events.collect::<Vec<_>>()
    };
    let run = |seqs: &[u64]| {
        seqs.iter()
            .map(|seq| ("run".to_owned(), *seq))
            .collect::<Vec<_>>()
    };
    feed.publish([event("fw-1", 0), event("fw-2", 1), event("fw-1", 2)]);
    let history = History::new(dir.path(), MEBIBYTE);
    assert_eq!(seqs(&history, &feed, 0), run(&[1, 3]));
    assert_eq!(seqs(&history, &feed, 1), run(&[3]));
    drop(history);
    // The next daemon has the same events in its feed, and others.
    feed.publish([event("fw-1", 3)]);
    let history = History::new(dir.path(), MEBIBYTE);
    assert_eq!(seqs(&history, &feed, 0), run(&[1, 3, 4]));
    drop(history);
    // After a reboot numbers begin anew.
    let other = EventFeed::new(EventLog::new(1_000, 1).of_run("other"));
    other.publish([event("fw-1", 9)]);
    let history = History::new(dir.path(), MEBIBYTE);
    assert_eq!(
        seqs(&history, &other, 0),
        [run(&[1, 3, 4]), vec![("other".to_owned(), 1)]].concat()
    );
}

#[test]
fn events_keep_within_a_tenth() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), MEBIBYTE);
    let feed = EventFeed::new(EventLog::new(1_000, 1).of_run("run"));
    for burst in 0..20 {
        feed.publish((0..100).map(|at| event("fw-1", burst * 100 + at)));
        history.write(START, |writer| {
            writer.follow(&feed).and_then(|()| writer.flush())
        });
        let bytes: u64 = files(dir.path()).values().sum();
        assert!(bytes <= MEBIBYTE / 10, "{bytes}");
    }
    let found = history
        .read("fw-1", i64::MIN, Tier::Second, &feed, START)
        .unwrap();
    assert!(
        found.events.len() > 100 && found.events.len() < 2_000,
        "{}",
        found.events.len()
    );
    assert_eq!(found.events.last().unwrap().seq, 2_000);
}

#[test]
fn nothing_is_kept_of_size_0() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::new(dir.path(), 0);
    write(&history, 0..5, &["a"], |_| value(1, 0, None));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let refused = history
        .read("a", 0, Tier::Second, &feed(), START)
        .unwrap_err();
    assert!(refused.to_string().contains("[history] size"), "{refused}");
    history.set_size(MEBIBYTE);
    write(&history, 5..10, &["a"], |_| value(1, 0, None));
    assert_eq!(points(&history, "a", Tier::Second).len(), 5);
    history.set_size(0);
    assert!(history.read("a", 0, Tier::Second, &feed(), START).is_err());
}

#[test]
fn a_disk_that_refuses_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    fs::write(&file, "precious").unwrap();
    let history = History::new(&file, MEBIBYTE);
    write(&history, 0..3, &["a"], |_| value(1, 0, None));
    assert!(matches!(
        history.read("a", 0, Tier::Second, &feed(), START),
        Err(HistoryError::Directory { .. })
    ));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    fs::remove_file(&file).unwrap();
    write(&history, 3..6, &["a"], |_| value(1, 0, None));
    assert_eq!(points(&history, "a", Tier::Second).len(), 3);
    // Files that are deleted under it are no end either.
    fs::remove_dir_all(file.join(DIRECTORY)).unwrap();
    write(&history, 6..9, &["a"], |_| value(1, 0, None));
    assert_eq!(points(&history, "a", Tier::Second), []);
}

//! SIGHUP: what stays the same goes on, what changed begins anew, and a bad file changes nothing.

use anyhow::Result;
use serde_json::Value;
use tracker_lab::daemon::{Config, SOON};
use tracker_lab::{Lab, Tracker};

fn owners(list: &Value) -> Vec<String> {
    let services = list["services"].as_array().into_iter().flatten();
    let shown = |service: &Value| format!("{} {}", service["name"], service["owner"]);
    services
        .map(|service| shown(service).replace('"', ""))
        .collect()
}

#[test]
fn unchanged_services_go_on_and_changed_ones_begin_anew() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [one, two, three] = lab.services() else {
        unreachable!("three services")
    };
    let (first, second) = (one.toml("fw-1"), two.toml("fw-2"));
    let tracker = Tracker::start(&lab.hub, &format!("{first}{second}"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;

    // Another order, one that is new, and one with other probes.
    let changed = two.toml_with("fw-2", "payload = 100");
    let third = three.toml("fw-3");
    assert!(tracker.reload(&format!("{third}{changed}{first}"))?);
    let after = tracker.status()?;
    assert_eq!(after.verdict("fw-1"), "up");
    assert_eq!(
        after.service("fw-1")["since"],
        before.service("fw-1")["since"]
    );
    assert!(after.count("fw-1", "sent") >= before.count("fw-1", "sent"));
    assert_eq!(after.count("fw-1", "lost"), before.count("fw-1", "lost"));
    assert!(after.count("fw-2", "sent") < before.count("fw-2", "sent"));
    assert_eq!(tracker.history("fw-1")?.len(), 1, "up, and nothing since");
    let history = tracker.history("fw-2")?;
    assert_eq!(history[1].0, "unknown", "{history:?}");
    tracker.wait_verdict("fw-2", "up", "replied")?;
    tracker.wait_verdict("fw-3", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-1")?;

    // What the file no longer names is gone, and says so.
    assert!(tracker.reload(&first)?);
    let status = tracker.status()?;
    assert!(status.service("fw-3").is_null());
    assert_eq!(
        tracker.history("fw-3")?.last().map(|last| last.0.clone()),
        Some("unknown".to_owned())
    );
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_the_log_says_so() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let good = lab.service().toml("fw-1");
    let tracker = Tracker::start(&lab.hub, &good)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-1")?;
    let second = lab.services()[1].toml("fw-2");
    let cases = [
        (
            Config::new(format!("{good}{second}interfce = \"eth1\"\n")),
            "unknown key `interfce`",
        ),
        (Config::new(format!("{good}[[service]\n")), "not valid TOML"),
        (
            Config::new(format!("{good}{second}")).hub("room = 7"),
            "mode and room of [hub] change only with a restart",
        ),
    ];
    for (config, expected) in cases {
        assert!(!tracker.reload(&config)?);
        let log = tracker.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("not reloaded"))
            .unwrap_or_default();
        assert!(line.contains(expected), "{line}");
        let after = tracker.wait_alive(SOON, "fw-1")?;
        assert!(after.service("fw-2").is_null());
        assert_eq!(after.count("fw-1", "lost"), before.count("fw-1", "lost"));
    }
    assert_eq!(tracker.history("fw-1")?.len(), 1, "up, and nothing since");
    assert!(tracker.reload(&format!("{good}{second}"))?);
    tracker.wait_verdict("fw-2", "up", "replied")?;
    Ok(())
}

/// A reload that replaces every tracker needs no more room than there is.
#[test]
fn a_full_house_can_be_changed() -> Result<()> {
    let lab = Lab::new()?;
    let config = |lines: &str| Config::new(lab.service().toml_with("fw-1", lines)).hub("room = 0");
    let tracker = Tracker::start(&lab.hub, config(""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for interval in ["30ms", "40ms", "50ms"] {
        assert!(tracker.reload(config(&format!("interval = \"{interval}\"")))?);
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    let more = Config::new(format!(
        "{}{}",
        lab.service().toml("fw-1"),
        lab.service().toml("fw-2")
    ));
    assert!(!tracker.reload(more.hub("room = 0"))?);
    assert!(
        tracker
            .log()
            .contains("raise room of [hub], now 0, and restart it")
    );
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

#[test]
fn what_was_added_stays_unless_the_file_names_it() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let first = lab.service().toml("fw-1");
    let tracker = Tracker::start(&lab.hub, &first)?;
    tracker.service("add fw-2 --endpoint 10.9.1.2 --behind 10.20.1.9")?;
    tracker.service("add fw-3 --endpoint 10.9.1.2 --behind 10.20.1.9")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    tracker.wait_verdict("fw-3", "up", "replied")?;
    let before = tracker.wait_alive(SOON, "fw-3")?;

    // The file now has another fw-2.
    let second = lab.services()[1].toml_with("fw-2", "interval = \"50ms\"");
    assert!(tracker.reload(&format!("{first}{second}"))?);
    assert_eq!(
        owners(&tracker.services()?),
        ["fw-1 file", "fw-2 file", "fw-3 api"]
    );
    assert!(
        tracker
            .log()
            .contains("service fw-2, added by the API, is now in the configuration")
    );
    let after = tracker.wait_alive(SOON, "fw-3")?;
    assert_eq!(after.count("fw-3", "lost"), before.count("fw-3", "lost"));
    assert_eq!(tracker.history("fw-3")?.len(), 1, "up, and nothing since");
    tracker.wait_verdict("fw-2", "up", "replied")?;

    // One of the file is the file's to remove; it has been taken over for good.
    for service in ["fw-1", "fw-2"] {
        let owned = tracker.service_refused(&format!("remove {service}"))?;
        assert!(
            owned.contains("the configuration's file owns it"),
            "{owned}"
        );
        assert!(!tracker.status()?.service(service).is_null());
    }
    assert!(tracker.reload(&first)?);
    assert_eq!(owners(&tracker.services()?), ["fw-1 file", "fw-3 api"]);
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(SOON, "fw-3")?;
    Ok(())
}

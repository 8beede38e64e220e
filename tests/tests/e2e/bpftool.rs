//! What an operator reads with bpftool: names, not bytes.

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::{Lab, Tracker};

/// `bpftool -j map dump pinned`: the entries as BTF formats them.
fn dump(tracker: &Tracker, map: &str) -> Result<Vec<Value>> {
    let path = tracker.pins().join("maps").join(map);
    let output = tracker_lab::netns::check(
        std::process::Command::new("bpftool")
            .args(["-j", "map", "dump", "pinned"])
            .arg(&path),
    )?;
    let entries: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("parse bpftool's dump of {map}"))?;
    entries
        .as_array()
        .with_context(|| format!("{map} is no array"))?
        .iter()
        .map(|entry| {
            let formatted = &entry["formatted"]["value"];
            assert!(formatted.is_object(), "{map} has no field names: {entry}");
            Ok(formatted.clone())
        })
        .collect()
}

/// All the numbers below a key, wherever it is nested.
fn numbers(value: &Value, key: &str, found: &mut Vec<u64>) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                if name == key {
                    found.extend(inner.as_u64());
                }
                numbers(inner, key, found);
            }
        }
        Value::Array(array) => array.iter().for_each(|inner| numbers(inner, key, found)),
        _ => {}
    }
}

#[test]
fn config_and_state_print_field_names() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_alive(tracker_lab::daemon::SOON, "fw-1")?;
    for map in ["TRACKERS", "STATE"] {
        assert!(!dump(&tracker, map)?.is_empty(), "{map} is empty");
    }
    // The counters are the ones that the status shows.
    let state = dump(&tracker, "STATE")?;
    for counter in ["sent", "received"] {
        let mut found = Vec::new();
        state
            .iter()
            .for_each(|entry| numbers(entry, counter, &mut found));
        let shown = tracker.status()?.count("fw-1", counter);
        let most = found.iter().max().copied().unwrap_or(0);
        assert!(
            (20..=shown).contains(&most),
            "{counter} is {shown} in the status, {most} in STATE"
        );
    }
    Ok(())
}

//! What people see on a terminal: `tracker watch` and `tracker status`.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracker_lab::{Lab, Tracker, daemon::binary};

use crate::terminal::Terminal;

/// Starts a `tracker` command that talks to this daemon on a terminal.
fn on_terminal(
    lab: &Lab,
    tracker: &Tracker,
    size: (u16, u16),
    environment: &[(&str, &str)],
    words: &[&str],
) -> Result<Terminal> {
    let (binary, socket) = (binary(), tracker.socket());
    let binary = binary.to_str().context("name the binary")?;
    let socket = socket.to_str().context("name the socket")?;
    let words = [&[binary], words, &["--socket", socket]].concat();
    Terminal::start(&lab.hub, size, environment, &words)
}

fn chain(lab: &Lab) -> String {
    lab.service().toml("fw-1") + "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n"
}

/// The line of the screen that begins with these words.
fn has_line(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| {
        let mut rest = line.split_whitespace();
        words.iter().all(|word| rest.next() == Some(*word))
    })
}

#[test]
fn the_live_view_follows_the_daemon_through_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &chain(&lab))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut view = on_terminal(&lab, &tracker, (80, 24), &[], &["watch"])?;
    let text = view.wait_for("what is up", |text| {
        has_line(text, &["fw-1", "up", "replied"]) && has_line(text, &["chain", "internet", "up"])
    })?;
    assert!(text.contains("1 service: 1 up"), "{text}");
    // Loss comes from the difference of two answers.
    view.wait_for("a loss of nothing", |text| text.contains(" 0% "))?;

    lab.service().break_forwarding()?;
    let text = view.wait_for("what is down", |text| {
        has_line(text, &["fw-1", "down", "no-reply"]) && text.contains("up -> down  no-reply")
    })?;
    assert!(has_line(&text, &["chain", "internet", "down"]), "{text}");
    // The second line of the list is the service.
    view.press("j\r")?;
    view.wait_for("its trackers", |text| {
        text.contains("10.20.0.9 icmp") && text.contains("10.9.0.2 by eth1")
    })?;
    view.press("\u{1b}")?;
    view.wait_for("the list again", |text| text.contains("EVENTS  "))?;

    tracker.kill()?;
    view.wait_for("no answer", |text| {
        text.contains("no answer since") && has_line(text, &["fw-1", "down"])
    })?;
    lab.service().mend()?;
    tracker.run()?;
    let text = view.wait_for("what is up again", |text| {
        has_line(text, &["fw-1", "up", "replied"]) && text.contains("down -> up  replied")
    })?;
    assert!(!text.contains("no answer"), "{text}");
    // The stream went on where it was: the first of its events is there once.
    let first = text.matches("#1 ").count();
    assert!(first <= 1, "{text}");

    view.press("q")?;
    let ended = view.end()?;
    assert_eq!(ended.status.code(), Some(0));
    assert!(
        !ended.text.contains("fw-1"),
        "the screen is as before: {}",
        ended.text
    );
    Ok(())
}

#[test]
fn a_new_daemon_s_events_replace_those_of_the_former() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &chain(&lab))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let view = on_terminal(&lab, &tracker, (120, 40), &[], &["watch", "fw-*"])?;
    view.wait_for("an event", |text| text.contains("unknown -> up"))?;
    // Without --keep the next one begins anew, with event 1.
    tracker.terminate()?;
    view.wait_for("no answer", |text| text.contains("no answer since"))?;
    tracker.run()?;
    let text = view.wait_for("the new events", |text| {
        text.contains("event numbers began anew") && text.contains("unknown -> up")
    })?;
    assert_eq!(text.matches("#1 ").count(), 1, "{text}");
    view.signal(Signal::SIGTERM)?;
    assert_eq!(view.end()?.status.code(), Some(0));
    Ok(())
}

#[test]
fn signals_give_the_terminal_back() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &chain(&lab))?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let view = on_terminal(&lab, &tracker, (80, 24), &[], &["watch"])?;
        view.wait_for("the view", |text| text.contains("q quit"))?;
        view.signal(signal)?;
        let ended = view.end()?;
        assert_eq!(ended.status.code(), Some(0), "{signal}");
        assert!(
            ended.bytes.contains("\u{1b}[?1049h"),
            "{signal}: it was taken over"
        );
    }
    // Ctrl-C is a key while the terminal is taken over.
    let mut view = on_terminal(&lab, &tracker, (80, 24), &[], &["watch"])?;
    view.wait_for("the view", |text| text.contains("q quit"))?;
    view.press("\u{3}")?;
    assert_eq!(view.end()?.status.code(), Some(0));
    Ok(())
}

#[test]
fn what_cannot_be_watched_is_said_in_one_line() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &chain(&lab))?;
    let output = tracker.client(&["watch"]).output()?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr)?;
    assert!(
        said.contains("must be a terminal") && said.lines().count() == 1,
        "{said}"
    );
    let ended = on_terminal(&lab, &tracker, (200, 24), &[], &["watch", "fw-2"])?.end()?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.text.contains("the nearest name is \"fw-1\""),
        "{}",
        ended.text
    );
    assert!(!ended.bytes.contains("\u{1b}[?1049h"), "{}", ended.bytes);
    Ok(())
}

#[test]
fn status_on_a_terminal_has_problems_first_in_80_columns() -> Result<()> {
    const LONG: &str = "a-service-with-a-name-that-widens-nothing-at-all";
    let lab = Lab::with_services(3)?;
    let [first, second, third] = lab.services() else {
        anyhow::bail!("three services");
    };
    let config = first.toml("fw-1") + &second.toml("fw-2") + &third.toml(LONG);
    let tracker = Tracker::start(&lab.hub, &config)?;
    for name in ["fw-1", "fw-2", LONG] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    second.break_forwarding()?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    tracker.service(&format!("set {LONG} --state down --reason drained"))?;
    let status = |environment: &[(&str, &str)], words: &[&str]| -> Result<_> {
        let words = [&["status"], words].concat();
        on_terminal(&lab, &tracker, (80, 24), environment, &words)?.end()
    };

    let ended = status(&[], &[])?;
    assert_eq!(ended.status.code(), Some(2));
    let lines: Vec<_> = ended.text.lines().collect();
    let at = |word: &str| lines.iter().position(|line| line.starts_with(word));
    let (fw_1, fw_2) = (at("fw-1 "), at("fw-2 "));
    assert!(fw_2 < fw_1 && fw_2 == Some(1), "{}", ended.text);
    assert!(ended.text.contains("up (forced down)"), "{}", ended.text);
    assert!(
        ended
            .text
            .contains("3 services: 2 down, 1 up; 1 forced; 3 trackers"),
        "{}",
        ended.text
    );
    // A line that the terminal had to wrap would be two.
    assert_eq!(lines.len(), 6, "{}", ended.text);
    assert!(
        ended.bytes.contains("\u{1b}[38;5;9mdown") || ended.bytes.contains("\u{1b}[31m"),
        "{:?}",
        ended.bytes
    );

    let plain = |text: &str| !text.contains("\u{1b}[3");
    assert!(plain(&status(&[("NO_COLOR", "1")], &[])?.bytes));
    assert!(plain(&status(&[], &["--color", "never"])?.bytes));
    let down = status(&[], &["--down"])?;
    assert!(
        !down.text.contains("fw-1 ") && down.text.contains("fw-2 "),
        "{}",
        down.text
    );
    assert_eq!(down.status.code(), Some(2));

    // A pipe has the order of the configuration, and everything.
    let pipe = String::from_utf8(tracker.client(&["status"]).output()?.stdout)?;
    let at = |word: &str| pipe.find(word);
    assert!(
        at("fw-1") < at("fw-2") && at("fw-2") < at(LONG) && at(LONG).is_some(),
        "{pipe}"
    );
    assert!(
        pipe.contains("drained") && !pipe.contains("3 services"),
        "{pipe}"
    );
    assert!(plain(&pipe));
    let coloured = tracker
        .client(&["status", "--color", "always"])
        .output()?
        .stdout;
    assert!(!plain(&String::from_utf8(coloured)?));
    let json = tracker
        .client(&["status", "--down", "--json"])
        .output()?
        .stdout;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    let names: Vec<_> = json["services"]
        .as_array()
        .context("services")?
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["fw-2", LONG]);
    Ok(())
}

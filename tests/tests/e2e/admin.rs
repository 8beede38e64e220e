//! Admin states: what an operator imposes counts, the verdict stays measured, and maintenance holds events back until its end.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tracker_lab::{
    Config, Lab, Tracker,
    daemon::{LATER, SOON},
    netns,
};

/// The events after a number, as JSON.
fn since(tracker: &Tracker, seq: u64) -> Result<Vec<Value>> {
    let seq = seq.to_string();
    let output = netns::check(&mut tracker.client(&["events", "--json", "--since", &seq]))?;
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

fn last(tracker: &Tracker) -> Result<u64> {
    Ok(tracker.events()?.last().map_or(0, |event| event.seq))
}

/// What an event is about, its kind, and what changed.
fn short(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
    let about = ["service", "member", "behind", "chain"].map(text).join(" ");
    format!(
        "{about}: {} {} -> {}",
        text("kind"),
        text("from"),
        text("to")
    )
}

#[test]
fn maintenance_holds_back_what_its_end_tells() -> Result<()> {
    let lab = Lab::new()?;
    let chain = "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n";
    let text = format!("{}{chain}", lab.service().toml("fw-1"));
    let mut tracker = Tracker::start(&lab.hub, Config::new(text))?;
    tracker.keep(true);
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = last(&tracker)?;
    let said = tracker.service("set fw-1 --state maintenance --reason rules")?;
    assert!(
        said.starts_with("set fw-1 to maintenance by uid 0: rules"),
        "{said}"
    );
    lab.service().break_forwarding()?;
    let status = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let service = status.service("fw-1");
    assert_eq!(service["effective"], "up", "{service:#}");
    let admin = json!({"state":"maintenance","reason":"rules","until":null,"by":"uid 0"});
    assert_eq!(service["admin"], admin, "{service:#}");
    assert_eq!(status.0["chains"][0]["verdict"], "up");
    let told: Vec<_> = since(&tracker, before)?.iter().map(short).collect();
    assert_eq!(told, ["fw-1 - - -: admin up -> up"]);

    // The next daemon knows what was told and what was not.
    tracker.kill()?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let told: Vec<_> = since(&tracker, before)?.iter().map(short).collect();
    assert_eq!(told, ["fw-1 - - -: admin up -> up"]);
    assert_eq!(tracker.status()?.service("fw-1")["effective"], "up");

    tracker.service("set fw-1 --state auto")?;
    let told = since(&tracker, before + 1)?;
    let told: Vec<_> = told.iter().map(short).collect();
    let behind = lab.service().behinds()[0];
    let expected = [
        "fw-1 - - -: admin up -> down".to_owned(),
        format!("fw-1 active {behind} -: verdict up -> down"),
        "fw-1 - - -: verdict up -> down".to_owned(),
        "- - - internet: verdict up -> down".to_owned(),
    ];
    for event in &expected {
        assert!(told.contains(event), "{event} is not in {told:#?}");
    }
    // What came back meanwhile is no event at all.
    let before = last(&tracker)?;
    tracker.service("set fw-1 --state maintenance")?;
    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    tracker.service("set fw-1 --state auto")?;
    let kinds: Vec<_> = since(&tracker, before)?
        .iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert_eq!(kinds, ["admin", "admin"]);
    tracker.terminate()?;
    tracker.cleanup()
}

#[test]
fn what_is_forced_counts_for_selection_chain_and_exit_code() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [one, two] = lab.services() else {
        anyhow::bail!("two services")
    };
    let member = |service: &tracker_lab::Service, role: &str, interface: &str| {
        let behind = service.behinds()[0];
        let endpoint = service.endpoint;
        format!(
            "[[service.member]]\nrole = \"{role}\"\nendpoint = \"{endpoint}\"\ninterface = \"{interface}\"\nbehind = [\"{behind}\"]\n"
        )
    };
    let text = format!(
        "[[service]]\nname = \"pair\"\n{}{}[[chain]]\nname = \"internet\"\nservices = [\"pair\"]\n",
        member(one, "active", "eth1"),
        member(two, "standby", "eth2")
    );
    let tracker = Tracker::start(&lab.hub, Config::new(text))?;
    tracker.wait_for("both members to be up", SOON, |status| {
        ["active", "standby"]
            .iter()
            .all(|role| status.member("pair", role)["verdict"] == "up")
    })?;
    let code =
        || -> Result<Option<i32>> { Ok(tracker.client(&["status"]).output()?.status.code()) };
    assert_eq!(code()?, Some(0));
    tracker.service("set pair --member active --state down --reason drain")?;
    let status = tracker.status()?;
    assert_eq!(status.selected("pair"), "standby");
    let active = status.member("pair", "active");
    assert_eq!(
        (&active["verdict"], &active["effective"]),
        (&json!("up"), &json!("down"))
    );
    assert_eq!(code()?, Some(0));
    tracker.service("set pair --member standby --state down")?;
    let status = tracker.status()?;
    assert_eq!(
        (status.verdict("pair"), &status.0["chains"][0]["verdict"]),
        ("down", &json!("down"))
    );
    assert_eq!(code()?, Some(2));
    // What the service itself is forced to counts above its members.
    tracker.service("set pair --state up")?;
    let status = tracker.status()?;
    assert_eq!(status.service("pair")["effective"], "up");
    assert_eq!(status.0["chains"][0]["verdict"], "up");
    assert_eq!(code()?, Some(0));
    let events = since(&tracker, 0)?;
    let admin = events
        .iter()
        .filter(|event| event["kind"] == "admin")
        .count();
    assert_eq!(admin, 3, "{events:#?}");
    let of_chain: Vec<_> = events
        .iter()
        .filter(|event| event["chain"] == "internet")
        .map(|event| event["to"].clone())
        .collect();
    assert_eq!(of_chain, ["up", "down", "up"]);
    Ok(())
}

#[test]
fn it_ends_by_time_and_survives_a_reboot() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.service("set fw-1 --state down --for 1h --reason x")?;
    // A reboot takes the pins, and leaves the state directory.
    tracker.kill()?;
    tracker.cleanup()?;
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.status()?;
    let service = status.service("fw-1");
    assert_eq!(
        (&service["effective"], &service["admin"]["state"]),
        (&json!("down"), &json!("down"))
    );
    let until: jiff::Timestamp = service["admin"]["until"]
        .as_str()
        .context("until")?
        .parse()?;
    ensure!(until > jiff::Timestamp::now(), "{until}");
    tracker.service("set fw-1 --state down --for 1s")?;
    tracker.wait_for("its end", LATER, |status| {
        let service = status.service("fw-1");
        service["effective"] == "up" && service["admin"]["state"] == "auto"
    })?;
    // Nothing of it is left for the next daemon.
    tracker.kill()?;
    tracker.cleanup()?;
    tracker.run()?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(status.service("fw-1")["effective"], "up");
    Ok(())
}

#[test]
fn what_makes_no_sense_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = (
        tracker.status()?.service("fw-1")["admin"].clone(),
        tracker.events()?.len(),
    );
    for (words, expected) in [
        (
            "set fw-l --state up",
            "no service is named \"fw-l\"; did you mean \"fw-1\"?",
        ),
        (
            "set fw-1 --member standby --state up",
            "has no member \"standby\"; it has active",
        ),
        (
            "set fw-1 --state up --reason a\u{7}b",
            "a reason is one line",
        ),
    ] {
        let said = tracker.service_refused(words)?;
        assert!(said.contains(expected), "{words}: {said}");
    }
    let usage = tracker
        .client(&["service", "set", "fw-1", "--state", "off"])
        .output()?;
    assert_eq!(usage.status.code(), Some(64));
    let after = (
        tracker.status()?.service("fw-1")["admin"].clone(),
        tracker.events()?.len(),
    );
    assert_eq!(after, before);
    Ok(())
}

/// A cable out is one fault, however many services it takes.
#[test]
fn events_of_one_fault_share_a_group() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let services: String = (1..=20)
        .map(|number| {
            lab.service()
                .toml_to(&format!("fw-{number}"), format!("10.20.0.{number}"), "")
        })
        .collect();
    let tracker = Tracker::start(&lab.hub, &services)?;
    tracker.wait_for("all to be up", LATER, |status| {
        (1..=20).all(|number| status.verdict(&format!("fw-{number}")) == "up")
    })?;
    let before = last(&tracker)?;
    lab.hub.ip("link set eth1 down\n")?;
    tracker.wait_for("all to be down", LATER, |status| {
        (1..=20).all(|number| status.verdict(&format!("fw-{number}")) == "down")
    })?;
    let events = since(&tracker, before)?;
    assert_eq!(events.len(), 40, "{events:#?}");
    assert!(
        events
            .iter()
            .all(|event| event["cause"] == "interface-down"),
        "{events:#?}"
    );
    let first = events[0]["seq"].clone();
    assert!(
        events.iter().all(|event| event["group"] == first),
        "{events:#?}"
    );
    for key in ["hub", "instance", "run"] {
        assert!(
            events
                .iter()
                .all(|event| event[key].as_str().is_some_and(|text| !text.is_empty())),
            "{key}"
        );
    }
    Ok(())
}

/// What lies behind a dead service is unknown, not down.
#[test]
fn what_lies_behind_a_dead_service_is_unknown() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let first = lab.service().toml("fw-1");
    // So slow that the first is down long before.
    let second = lab.service().toml_to(
        "fw-2",
        "10.20.0.77",
        "after = [\"fw-1\"]\ninterval = \"300ms\"\nfall = 10\n",
    );
    let chain = "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\", \"fw-2\"]\n";
    let tracker = Tracker::start(&lab.hub, &format!("{first}{second}{chain}"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let status = tracker.wait_verdict("fw-2", "unknown", "depends")?;
    assert_eq!(status.0["chains"][0]["verdict"], "down");
    // It stays so when its own probes are found lost.
    tracker.wait_for("its tracker to be down", LATER, |status| {
        status.tracker("fw-2", "10.20.0.77")["verdict"] == "down"
    })?;
    assert_eq!(tracker.status()?.cause("fw-2"), "depends");
    assert!(tracker.history("fw-2")?.iter().all(|(to, _)| to != "down"));
    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    // A down that was told before is not taken back.
    lab.service().block("10.20.0.77")?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_eq!(tracker.status()?.verdict("fw-2"), "down");
    Ok(())
}

//! Pools: any number of members; `members_up` says how many must be up, and priorities say which are in use.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tracker_lab::{
    Config, Lab, Service, Status, Tracker,
    daemon::{LATER, SOON},
    netns,
};

/// A member of the pool that a real firewall is.
fn member(name: &str, service: &Service, more: &str) -> String {
    format!(
        "[[service.member]]\nname = \"{name}\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\"]\n{more}\n",
        service.endpoint, service.interface, service.behind
    )
}

/// A pool of the lab's firewalls: a, b, c and so on, each with lines of its own.
fn pool(lab: &Lab, service: &str, members: &[&str]) -> String {
    let mut text = format!("[[service]]\nname = \"fw-pool\"\n{service}\n");
    for ((name, service), more) in ["a", "b", "c"].iter().zip(lab.services()).zip(members) {
        text.push_str(&member(name, service, more));
    }
    text
}

/// The pool's member of this name, as JSON.
fn of<'s>(status: &'s Status, name: &str) -> &'s Value {
    status.member("fw-pool", name)
}

fn verdict<'s>(status: &'s Status, name: &str) -> &'s str {
    of(status, name)["verdict"].as_str().unwrap_or_default()
}

fn sent(status: &Status, name: &str) -> u64 {
    of(status, name)["trackers"][0]["sent"]
        .as_u64()
        .unwrap_or_default()
}

/// Waits until these members are in use and the service has a verdict.
fn wait(tracker: &Tracker<'_>, used: &[&str], verdict: &str) -> Result<Status> {
    let what = format!("{used:?} in use and the service {verdict}");
    tracker.wait_for(&what, LATER, |status| {
        status.in_use("fw-pool") == used && status.verdict("fw-pool") == verdict
    })
}

/// The changes since an event that are not of trackers, as lines, and the last event's number.
fn changes(tracker: &Tracker<'_>, since: &mut u64) -> Result<Vec<String>> {
    let events = tracker.events()?;
    let new = events.iter().filter(|event| event.seq > *since);
    let lines = new.filter(|event| event.behind.is_none()).map(|event| {
        let subject = event.member.as_deref().unwrap_or("service");
        format!("{subject} {} -> {} {}", event.from, event.to, event.cause)
    });
    let lines = lines.collect();
    *since = events.last().map_or(*since, |event| event.seq);
    Ok(lines)
}

#[test]
fn a_pool_is_up_while_enough_of_its_firewalls_forward() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [a, b, c] = lab.services() else {
        anyhow::bail!("three services")
    };
    let text = pool(&lab, "members_up = 2", &["", "weight = 3", ""]);
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(text).hub("metrics = \"127.0.0.1:9469\""),
    )?;
    let status = wait(&tracker, &["a", "b", "c"], "up")?;
    assert_eq!(status.service("fw-pool")["members_up"], 2);
    let shown = of(&status, "b");
    assert_eq!(
        (&shown["priority"], &shown["weight"], &shown["role"]),
        (&json!(0), &json!(3), &Value::Null)
    );
    let mut seen = 0;
    changes(&tracker, &mut seen)?;

    // One stops forwarding while its own address answers: the service stays up by the others.
    b.break_forwarding()?;
    lab.hub
        .run(&format!("ping -n -c 1 -w 5 {}", b.endpoint))
        .context("the firewall's own address answers")?;
    wait(&tracker, &["a", "c"], "up")?;
    assert_eq!(changes(&tracker, &mut seen)?, ["b up -> down no-reply"]);
    let page = lab.hub.run("curl -sf http://127.0.0.1:9469/metrics")?;
    for (member, up) in [("a", 1), ("b", 0), ("c", 1)] {
        for metric in ["tracker_member_selected", "tracker_member_up"] {
            let start = format!("{metric}{{service=\"fw-pool\",member=\"{member}\",");
            let line = page.lines().find(|line| line.starts_with(&start));
            let value = line.and_then(|line| line.rsplit(' ').next());
            assert_eq!(value, Some(up.to_string().as_str()), "{start} in\n{page}");
        }
    }
    let table = netns::check(&mut tracker.command(&[
        "status",
        "--socket",
        &tracker.socket().to_string_lossy(),
        "fw-pool",
    ]))?;
    let table = String::from_utf8(table.stdout)?;
    assert!(table.contains("selected: a, c"), "{table}");

    // A second one: too few are left.
    c.break_forwarding()?;
    wait(&tracker, &["a"], "down")?;
    assert_eq!(
        changes(&tracker, &mut seen)?,
        ["c up -> down no-reply", "service up -> down no-reply"]
    );
    let seq = (seen - 1).to_string();
    let output = netns::check(&mut tracker.client(&["events", "--json", "--since", &seq]))?;
    let last: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(last["detail"], "1 of 3 members up, 2 needed", "{last}");
    let code = tracker.client(&["status"]).output()?.status.code();
    assert_eq!(code, Some(2));

    b.mend()?;
    wait(&tracker, &["a", "b"], "up")?;
    a.break_forwarding()?;
    b.break_forwarding()?;
    wait(&tracker, &[], "down")?;
    for service in [a, b, c] {
        service.mend()?;
    }
    wait(&tracker, &["a", "b", "c"], "up")?;
    Ok(())
}

#[test]
fn priorities_decide_and_preemption_can_be_switched_off() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [a, _, c] = lab.services() else {
        anyhow::bail!("three services")
    };
    let lines = ["", "priority = 1", "priority = 2"];
    let mut tracker = Tracker::start(&lab.hub, &pool(&lab, "preempt = false", &lines))?;
    tracker.keep(true);
    tracker.wait_for("all members to be up", LATER, |status| {
        ["a", "b", "c"]
            .iter()
            .all(|name| verdict(status, name) == "up")
    })?;
    wait(&tracker, &["a"], "up")?;
    a.break_forwarding()?;
    wait(&tracker, &["b"], "up")?;
    a.mend()?;
    tracker.wait_for("a to be up again", SOON, |status| {
        verdict(status, "a") == "up"
    })?;
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["b"]);

    // The next daemon keeps it too, whether the one before could end in good order or not.
    tracker.kill()?;
    tracker.run()?;
    let status = tracker.wait_for("all members to be known", SOON, |status| {
        ["a", "b", "c"]
            .iter()
            .all(|name| verdict(status, name) == "up")
    })?;
    assert_eq!(status.in_use("fw-pool"), ["b"]);
    tracker.terminate()?;
    tracker.run()?;
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["b"]);

    // It stays through a reload, until preemption is allowed.
    let more = pool(
        &lab,
        "preempt = false\nmembers_up = 1",
        &["weight = 9", "priority = 1", "priority = 7"],
    );
    ensure!(tracker.reload(&more)?, "{}", tracker.log());
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["b"]);
    ensure!(
        tracker.reload(&pool(&lab, "", &lines))?,
        "{}",
        tracker.log()
    );
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["a"]);

    // Until two are up the next number is in use too.
    let two = pool(
        &lab,
        "members_up = 2",
        &["", "priority = 1", "priority = 1"],
    );
    ensure!(tracker.reload(&two)?, "{}", tracker.log());
    wait(&tracker, &["a", "b", "c"], "up")?;
    c.break_forwarding()?;
    wait(&tracker, &["a", "b"], "up")?;
    tracker.terminate()?;
    tracker.cleanup()
}

/// A reload that changes one member leaves the counters and `since` of the others alone.
#[test]
fn a_reload_of_one_member_disturbs_no_other() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [_, b, c] = lab.services() else {
        anyhow::bail!("three services")
    };
    c.second_cable(&lab.hub, 4)?;
    c.firewall
        .nft("add rule inet firewall forward iifname \"eth4\" accept\n")?;
    let tracker = Tracker::start(&lab.hub, &pool(&lab, "members_up = 2", &["", "", ""]))?;
    let first = tracker.wait_for("twenty probes of each member", LATER, |status| {
        status.verdict("fw-pool") == "up"
            && ["a", "b", "c"].iter().all(|name| sent(status, name) >= 20)
    })?;
    let since = first.service("fw-pool")["since"].clone();
    let mut seen = 0;
    changes(&tracker, &mut seen)?;

    // A weight and a priority change nothing but what is in use.
    let ranked = pool(&lab, "members_up = 2", &["", "weight = 7", "priority = 1"]);
    ensure!(tracker.reload(&ranked)?, "{}", tracker.log());
    let status = tracker.status()?;
    assert_eq!(of(&status, "b")["weight"], 7);
    assert_eq!(status.in_use("fw-pool"), ["a", "b"]);
    for name in ["a", "b", "c"] {
        ensure!(
            sent(&status, name) >= sent(&first, name),
            "the counters of {name} went on: {:#}",
            status.0
        );
        assert_eq!(verdict(&status, name), "up");
    }
    assert_eq!(changes(&tracker, &mut seen)?, [""; 0]);

    // Another endpoint: this member begins anew, by itself.
    let moved = ranked
        .replace(&c.endpoint.to_string(), "10.9.104.2")
        .replace("\"eth3\"", "\"eth4\"");
    let before = tracker.status()?;
    ensure!(tracker.reload(&moved)?, "{}", tracker.log());
    let status = tracker.wait_for("the moved member to be up", LATER, |status| {
        of(status, "c")["endpoint"] == "10.9.104.2" && verdict(status, "c") == "up"
    })?;
    for name in ["a", "b"] {
        ensure!(
            sent(&status, name) > sent(&before, name),
            "the counters of {name} went on: {:#}",
            status.0
        );
        assert_eq!(of(&status, name)["trackers"][0]["lost"], 0);
    }
    assert_eq!(status.service("fw-pool")["since"], since);
    assert_eq!(
        changes(&tracker, &mut seen)?,
        ["c up -> unknown no-reply", "c unknown -> up replied"]
    );
    // Without a member the others go on, and with one more.
    let fewer = format!(
        "[[service]]\nname = \"fw-pool\"\n{}",
        member("b", b, "weight = 2")
    );
    ensure!(tracker.reload(&fewer)?, "{}", tracker.log());
    let status = tracker.status()?;
    assert_eq!(status.service("fw-pool")["since"], since);
    ensure!(sent(&status, "b") > sent(&before, "b"), "{:#}", status.0);
    assert_eq!(status.selected("fw-pool"), "b");
    ensure!(tracker.reload(&moved)?, "{}", tracker.log());
    let status = wait(&tracker, &["a", "b"], "up")?;
    ensure!(sent(&status, "b") > sent(&before, "b"), "{:#}", status.0);
    Ok(())
}

/// What `PUT` has of a member.
fn body(name: &str, service: &Service, weight: u32) -> Value {
    json!({
        "name": name,
        "weight": weight,
        "endpoint": service.endpoint.to_string(),
        "interface": service.interface,
        "behind": [service.behind.to_string()],
    })
}

#[test]
fn the_api_has_pools_which_survive_a_restart() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let [a, b, c] = lab.services() else {
        anyhow::bail!("three services")
    };
    let mut tracker = Tracker::start(&lab.hub, "")?;
    tracker.keep(true);
    let put = |tracker: &Tracker<'_>, body: &Value| {
        tracker.http("PUT", "/v1/services/fw-pool", &body.to_string())
    };
    let wanted = json!({
        "members_up": 2,
        "interval": "20ms",
        "timeout": "200ms",
        "member": [body("a", a, 1), body("b", b, 2), body("c", c, 1)],
    });
    let (code, said) = put(&tracker, &wanted)?;
    ensure!(code == 201, "{code} {said}");
    wait(&tracker, &["a", "b", "c"], "up")?;
    let (_, kept) = tracker.http("GET", "/v1/services/fw-pool", "")?;
    let kept: Value = serde_json::from_str(&kept)?;
    assert_eq!(
        (&kept["members_up"], &kept["member"][1]["weight"]),
        (&json!(2), &json!(2)),
        "{kept:#}"
    );
    let list = tracker.services()?;
    assert_eq!(list["services"][0]["members"][2]["name"], "c", "{list:#}");

    // Only what changes is new.
    let before = tracker.status()?;
    let changed = json!({
        "members_up": 1,
        "interval": "20ms",
        "timeout": "200ms",
        "member": [body("a", a, 5), body("c", c, 1)],
    });
    let (code, said) = put(&tracker, &changed)?;
    ensure!(code == 200, "{code} {said}");
    let status = tracker.status()?;
    assert_eq!(status.in_use("fw-pool"), ["a", "c"]);
    for name in ["a", "c"] {
        ensure!(sent(&status, name) >= sent(&before, name), "{:#}", status.0);
    }
    assert_eq!(
        status.service("fw-pool")["since"],
        before.service("fw-pool")["since"]
    );

    // Each bad shape is refused, with its place, and changes nothing.
    let cases = [
        (
            json!({"member": [body("a", a, 1), body("a", b, 1)]}),
            "/member/1/name",
            "the member of /member/0/name has this name",
        ),
        (
            json!({"member": [body("a", a, 1), body("b", b, 257)]}),
            "/member/1/weight",
            "1 to 256",
        ),
        (
            json!({"member": [body("a", a, 1), body("b", b, 1)], "members_up": 3}),
            "/members_up",
            "more than the 2 members",
        ),
    ];
    for (body, pointer, problem) in cases {
        let (code, said) = put(&tracker, &body)?;
        let said: Value = serde_json::from_str(&said)?;
        let error = &said["errors"][0];
        assert_eq!(
            (code, &error["pointer"]),
            (422, &json!(pointer)),
            "{said:#}"
        );
        let text = error["problem"].as_str().unwrap_or_default();
        assert!(text.contains(problem), "{said:#}");
    }
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["a", "c"]);

    // A restart keeps it, and a reboot, which leaves the state directory alone.
    let events = tracker.events()?.len();
    tracker.kill()?;
    tracker.run()?;
    let after = tracker.status()?;
    assert_eq!(after.in_use("fw-pool"), ["a", "c"]);
    ensure!(sent(&after, "a") >= sent(&status, "a"), "{:#}", after.0);
    assert_eq!(tracker.events()?.len(), events);
    tracker.kill()?;
    tracker.cleanup()?;
    tracker.run()?;
    let status = wait(&tracker, &["a", "c"], "up")?;
    assert_eq!(of(&status, "a")["weight"], 5);
    tracker.terminate()?;
    tracker.cleanup()
}

#[test]
fn an_admin_state_is_imposed_on_a_member_by_its_name() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let b = &lab.services()[1];
    let text = pool(&lab, "members_up = 2", &["", "", ""]);
    let mut tracker = Tracker::start(&lab.hub, text.as_str())?;
    tracker.keep(true);
    wait(&tracker, &["a", "b", "c"], "up")?;
    let said = tracker.service("set fw-pool --member b --state down --reason drain")?;
    assert!(said.starts_with("set fw-pool/b to down"), "{said}");
    wait(&tracker, &["a", "c"], "up")?;
    tracker.service("set fw-pool --member c --state down")?;
    let status = wait(&tracker, &["a"], "down")?;
    let shown = of(&status, "b");
    assert_eq!(
        (&shown["verdict"], &shown["effective"]),
        (&json!("up"), &json!("down"))
    );
    // By the endpoint as well, and over the API.
    tracker.service("set fw-pool --member 10.9.2.2 --state auto")?;
    wait(&tracker, &["a", "c"], "up")?;
    let (code, said) = tracker.http("GET", "/v1/services/fw-pool/members/b/admin", "")?;
    ensure!(code == 200 && said.contains("drain"), "{code} {said}");
    let refused = tracker.service_refused("set fw-pool --member bb --state down")?;
    assert!(
        refused.contains("has no member \"bb\"; it has a, b and c; did you mean \"b\"?"),
        "{refused}"
    );
    // It stays with the name through a restart, and through another endpoint.
    tracker.terminate()?;
    tracker.run()?;
    wait(&tracker, &["a", "c"], "up")?;
    b.second_cable(&lab.hub, 5)?;
    b.firewall
        .nft("add rule inet firewall forward iifname \"eth5\" accept\n")?;
    let moved = text
        .replace(&b.endpoint.to_string(), "10.9.105.2")
        .replace("\"eth2\"", "\"eth5\"");
    ensure!(tracker.reload(&moved)?, "{}", tracker.log());
    tracker.wait_for("the moved member to be up", LATER, |status| {
        of(status, "b")["endpoint"] == "10.9.105.2" && verdict(status, "b") == "up"
    })?;
    assert_eq!(tracker.status()?.in_use("fw-pool"), ["a", "c"]);
    let (code, said) = tracker.http("DELETE", "/v1/services/fw-pool/members/b/admin", "")?;
    ensure!(code == 204, "{code} {said}");
    wait(&tracker, &["a", "b", "c"], "up")?;
    tracker.terminate()?;
    tracker.cleanup()
}

//! Services that are added and removed while the daemon runs.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::{fs, io, thread};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Uid, setfsuid};
use serde_json::{Value, json};
use tracker_lab::daemon::{Config, LATER, SOON};
use tracker_lab::{Lab, Tracker, http};

/// The names in `tracker service list --json`, each with its owner.
fn names(list: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let services = list["services"].as_array().into_iter().flatten();
    services
        .map(|service| (text(&service["name"]), text(&service["owner"])))
        .collect()
}

fn own(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, owner): &(&str, &str)| ((*name).to_owned(), (*owner).to_owned());
    pairs.iter().map(own).collect()
}

#[test]
fn endpoint_and_behind_are_enough() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(
        tracker.service("add fw-2 --endpoint 10.9.1.2 --behind 10.20.1.9 2001:db8:20:1::9")?,
        "added fw-2\n"
    );
    let status = tracker.wait_verdict("fw-2", "up", "replied")?;
    assert_eq!(status.member("fw-2", "active")["interface"], "eth2");
    let list = tracker.services()?;
    let expected = json!({"name":"fw-2","owner":"api","verdict":"up","cause":"replied","members":[
        {"role":"active","endpoint":"10.9.1.2","interface":"eth2","behind":["10.20.1.9","2001:db8:20:1::9"],"name":"active"}]});
    assert_eq!(list["services"][1], expected);
    assert_eq!(list["free"], 1022);
    let table = tracker.service("list")?;
    assert!(
        table.lines().count() == 3 && table.contains("  api  "),
        "{table}"
    );
    let one = tracker.service("list fw-2 --json")?;
    let one: Value = serde_json::from_str(&one)?;
    assert_eq!(one["services"], json!([expected]));
    assert_eq!(one["free"], 1022);
    let unknown = tracker.service("list fw-3").unwrap_err().to_string();
    assert!(unknown.contains("fw-3"), "{unknown}");

    lab.services()[1].break_forwarding()?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    lab.services()[1].mend()?;
    tracker.wait_verdict("fw-2", "up", "replied")?;

    assert_eq!(tracker.service("remove fw-2")?, "removed fw-2\n");
    assert_eq!(names(&tracker.services()?), own(&[("fw-1", "file")]));
    assert_eq!(tracker.services()?["free"], 1024);
    let status = tracker.status()?;
    assert!(status.service("fw-2").is_null());
    // The events say that nothing is known of it any more; the numbers have no gap.
    let events = tracker.events()?;
    let last = events
        .iter()
        .rfind(|event| event.is_of_service("fw-2"))
        .context("its last event")?;
    assert_eq!((last.from.as_str(), last.to.as_str()), ("up", "unknown"));
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    // Nothing is sent for it any more.
    let before = lab.services()[1].forwarded()?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(lab.services()[1].forwarded()?, before);
    Ok(())
}

#[test]
fn every_option_counts() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let tracker = Tracker::start(&lab.hub, "")?;
    lab.hub.ip("address add 10.9.0.77/32 dev eth1\n")?;
    tracker.service(
        "add fw-1 --endpoint 10.9.0.2 --behind 10.20.0.9 --behind 10.20.0.10 --interface eth1 --source 10.9.0.77 \
         --probe icmp --interval 30ms --timeout 150ms --fall 4 --rise 3 --payload 100 --returns eth1 eth2 --policy all",
    )?;
    // One of two does not answer.
    tracker.wait_for("the one to be up and the other down", SOON, |status| {
        status.tracker("fw-1", "10.20.0.9")["verdict"] == "up"
            && status.tracker("fw-1", "10.20.0.10")["verdict"] == "down"
            && status.verdict("fw-1") == "down"
    })?;
    lab.service().answer_for_all()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // What the kernel has been told of it.
    let dump = |map: &str| -> Result<Value> {
        let path = tracker.pins().join("maps").join(map);
        let output = tracker_lab::netns::check(
            std::process::Command::new("bpftool")
                .args(["-j", "map", "lookup", "pinned"])
                .arg(path)
                .args(["key", "0", "0", "0", "0"]),
        )?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let entry = &dump("TRACKERS")?["formatted"]["value"];
    assert_eq!(entry["payload"], 100);
    assert_eq!(entry["timeout_ns"], 150_000_000);
    assert_eq!(entry["source"][3], 77);
    let returns = &dump("PATHS")?["formatted"]["value"]["returns"];
    assert!(returns[1] != 0, "{returns}");
    Ok(())
}

#[test]
fn a_bad_addition_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let text = format!(
        "{}[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n",
        lab.service().toml("fw-1")
    );
    let tracker = Tracker::start(&lab.hub, Config::new(text).hub("room = 2"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = (tracker.services()?, tracker.events()?.len());
    let to = "--endpoint 10.9.0.2 --behind 10.20.0.9";
    let cases = [
        (
            format!("add fw-9 {to} --interval 0ms"),
            "cannot add service \"fw-9\": interval = \"0ms\" in the service: out of range; give 1ms to 1h",
        ),
        (
            format!("add fw-9 {to} --timeout 2h --payload 8"),
            "payload = 8 in the service: too small",
        ),
        (
            format!("add fw-9 {to} --port 70000"),
            "port = 70000 in the service: out of range",
        ),
        (
            format!("add fw-9 {to} --policy 2"),
            "policy = 2 in the service: more than the 1 trackers",
        ),
        (
            format!("add fw-9 {to} --interface a/b"),
            "interface = \"a/b\" in the service: an interface name has no",
        ),
        (
            "add fw-9 --endpoint 10.9.0.2 --behind 10.9.0.2".to_owned(),
            "behind = \"10.9.0.2\" in the service: the endpoint's own address answers",
        ),
        (
            "add fw-9 --endpoint 10.9.0.300 --behind 10.20.0.9".to_owned(),
            "endpoint = \"10.9.0.300\" in the service: not an IP address",
        ),
        (
            format!("add a/b {to}"),
            "name = \"a/b\" in the service: a name has no spaces",
        ),
        (
            format!("add fw-1 {to}"),
            "cannot add service \"fw-1\": there is one of this name",
        ),
        (
            "add fw-9 --endpoint 10.9.0.2 --behind 10.20.0.1 10.20.0.2 10.20.0.3".to_owned(),
            "no room for 3 more trackers in the maps of this daemon, which has 2 free; raise room of [hub], now 2, and restart it",
        ),
        (
            "remove fw-l".to_owned(),
            "cannot remove service \"fw-l\": there is none of this name; did you mean \"fw-1\"?",
        ),
        (
            "remove fw-1".to_owned(),
            "cannot remove service \"fw-1\": the chain \"internet\" names it",
        ),
    ];
    for (words, expected) in cases {
        let said = tracker.service_refused(&words)?;
        assert!(said.contains(expected), "{words}: {said}");
        let after = (tracker.services()?, tracker.events()?.len());
        assert_eq!(after, before, "{words}");
    }
    // Wrong usage is another matter.
    let usage = tracker.client(&["service", "add", "fw-9"]).output()?;
    assert_eq!(usage.status.code(), Some(64));
    Ok(())
}

/// The places of a large service are freed while others are served; what comes in between finds them free.
#[test]
fn what_comes_right_after_a_large_removal_finds_room() -> Result<()> {
    const TRACKERS: usize = 3_000;
    let lab = Lab::new()?;
    let room = format!("room = {TRACKERS}");
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(lab.service().toml("fw-1")).hub(room.as_str()),
    )?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let behind: Vec<_> = (0..TRACKERS)
        .map(|at| format!("10.20.{}.{}", 1 + at / 250, 1 + at % 250))
        .collect();
    let add = format!(
        "add large --endpoint 10.9.0.2 --interval 60s --behind {}",
        behind.join(" ")
    );
    for _ in 0..2 {
        tracker.service(&add)?;
        assert_eq!(tracker.services()?["free"], 0);
        tracker.service("remove large")?;
    }
    tracker.service(&add)?;
    tracker.service("remove large")?;
    let until = std::time::Instant::now() + LATER;
    while tracker.services()?["free"] != TRACKERS {
        assert!(std::time::Instant::now() < until, "{}", tracker.services()?);
    }
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

#[test]
fn what_is_removed_makes_room() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(lab.service().toml("fw-1")).hub("room = 2"),
    )?;
    let add = |name: &str, behind: &str| {
        tracker.service(&format!("add {name} --endpoint 10.9.0.2 --behind {behind}"))
    };
    for _ in 0..3 {
        add("a", "10.20.0.1")?;
        add("b", "10.20.0.2")?;
        assert_eq!(tracker.services()?["free"], 0);
        let full = tracker.service_refused("add c --endpoint 10.9.0.2 --behind 10.20.0.3")?;
        assert!(full.contains("no room for 1 more trackers"), "{full}");
        tracker.service("remove a")?;
        add("c", "10.20.0.3")?;
        // The service that has the slot now is not judged by the probes of the one before it.
        tracker.wait_verdict("c", "up", "replied")?;
        tracker.service("remove b")?;
        tracker.service("remove c")?;
    }
    // One of the file is the file's to remove, and makes room as well.
    let owned = tracker.service_refused("remove fw-1")?;
    assert!(
        owned.contains("the configuration's file owns it; change it there and reload"),
        "{owned}"
    );
    assert_eq!(tracker.services()?["free"], 2);
    Ok(())
}

#[test]
fn many_clients_at_a_time() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let add = |name: &str, behind: &str| {
        let body = json!({"endpoint": "10.9.0.2", "behind": [behind]}).to_string();
        let only_new = [("If-None-Match", "*")];
        tracker.answer(
            "PUT",
            &format!("/v1/services/{name}"),
            &only_new,
            body.as_bytes(),
        )
    };
    let contended = thread::scope(|scope| -> Result<usize> {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let add = &add;
                scope.spawn(move || -> Result<usize> {
                    for step in 0..20 {
                        let said = add(
                            &format!("c{client}-{step}"),
                            &format!("10.20.{client}.{step}"),
                        )?;
                        ensure!(said.status == 201, "{said:?}");
                    }
                    let mut won = 0;
                    for step in 0..20 {
                        let said = add(&format!("contended-{step}"), "10.20.100.1")?;
                        ensure!(
                            said.status == 201
                                || said.status == 412
                                    && said.text.contains("there is one of this name"),
                            "{said:?}"
                        );
                        won += usize::from(said.status == 201);
                    }
                    Ok(won)
                })
            })
            .collect();
        let mut won = 0;
        for client in clients {
            won += client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(won)
    })?;
    assert_eq!(contended, 20, "each name was given once");
    let list = names(&tracker.services()?);
    let distinct: BTreeSet<_> = list.iter().collect();
    assert_eq!((list.len(), distinct.len()), (181, 181));
    tracker.wait_for("all to be up", LATER, |status| {
        let services = status.0["services"].as_array();
        services.is_some_and(|services| services.iter().all(|service| service["verdict"] == "up"))
    })?;
    Ok(())
}

#[test]
fn nonsense_is_answered_and_does_no_harm() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let before = tracker.services()?["free"].clone();
    let name = "/v1/services/a";
    let long = format!("/v1/services/{}", "x".repeat(1 << 17));
    let much = vec![b' '; (4 << 20) + 1];
    let requests: [(&str, &str, &[u8], u16); 19] = [
        ("PUT", name, b"nonsense", 400),
        ("PUT", name, b"\xff\xfe\x00\x01", 400),
        ("PUT", name, b"", 400),
        ("PUT", name, b"{", 400),
        ("PUT", name, b"[]", 422),
        ("PUT", name, br#"{"endpoint":2,"behind":3}"#, 422),
        ("PUT", name, br#"{"endpoint":"","behind":[""]}"#, 422),
        (
            "PUT",
            name,
            br#"{"name":"a\n[[service]]\nb","endpoint":"10.9.0.2","behind":["10.20.0.9"]}"#,
            422,
        ),
        (
            "PUT",
            name,
            br#"{"endpoint":"10.9.0.2","behind":["10.20.0.9"],"fall":-9223372036854775808}"#,
            422,
        ),
        (
            "PUT",
            name,
            br#"{"endpoint":"10.9.0.2","behind":["10.20.0.9"],"member":[]}"#,
            422,
        ),
        (
            "PUT",
            "/v1/services/a%0A%22",
            br#"{"endpoint":"10.9.0.2","behind":["10.20.0.9"]}"#,
            422,
        ),
        (
            "PUT",
            "/v1/services",
            br#"[{"name":"a","endpoint":"10.9.0.2","behind":["10.20.0.9"]}]"#,
            422,
        ),
        ("PUT", name, &much, 413),
        ("PUT", "/v1/services/a?dry_run=maybe", b"{}", 400),
        ("PUT", "/v1/services/a?x=1", b"{}", 400),
        ("POST", "/v1/services", b"{}", 405),
        ("DELETE", "/v1/services/b", b"", 404),
        ("GET", "/v1/service", b"", 404),
        ("GET", "/v1/status?service=[", b"", 404),
    ];
    for (method, path, body, status) in requests {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
        let said = tracker
            .answer(method, path, &[], body)
            .with_context(|| format!("{path} {shown}"))?;
        assert_eq!(said.status, status, "{path} {shown}: {said:?}");
        assert_eq!(
            said.header("content-type"),
            Some("application/problem+json")
        );
        let problem = said.json()?;
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        let detail = problem["detail"].as_str().context("a detail")?;
        assert!(detail.len() < 600 && !detail.contains('\n'), "{detail}");
    }
    // What is no HTTP at all, or has too long a head, ends its connection.
    for request in [
        &b"\n\n"[..],
        b"{\"command\":\"status\"}\n\n",
        b"GET / HTTP/9\r\n\r\n",
    ] {
        let said = http::exchange(&tracker.socket(), request)?;
        assert!(
            said.is_empty() || said.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    let said = http::exchange(&tracker.socket(), &http::request("DELETE", &long, &[], b""));
    assert!(said.is_err() || said.is_ok_and(|said| said.starts_with(b"HTTP/1.1 4")));
    assert_eq!(tracker.services()?["free"], before);
    assert_eq!(names(&tracker.services()?), own(&[("fw-1", "file")]));
    Ok(())
}

#[test]
fn only_the_socket_s_owner_may_ask() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let socket = tracker.socket();
    assert_eq!(fs::metadata(&socket)?.permissions().mode() & 0o777, 0o600);
    // So that nothing but the socket's own mode is in the way.
    let directory = socket.parent().context("its directory")?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let connect = |user: u32| {
        let socket = socket.clone();
        // The user of file access is one of this thread alone, which ends here.
        let thread = thread::spawn(move || {
            setfsuid(Uid::from_raw(user));
            UnixStream::connect(socket)
                .map(drop)
                .map_err(|error| error.kind())
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))
    };
    assert_eq!(connect(0)?, Ok(()));
    assert_eq!(connect(65_534)?, Err(io::ErrorKind::PermissionDenied));
    Ok(())
}

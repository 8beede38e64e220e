//! The API of a real daemon: every call against the OpenAPI document, services that outlive the daemon, a state directory that is
//! damaged or cannot be written, and clients that do not go on.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use jsonschema::Validator;
use nix::unistd::{Gid, Group};
use redb::{Database, ReadableDatabase as _, TableDefinition};
use serde_json::{Value as Json, json};
use tracker_lab::{
    Lab, Tracker,
    daemon::{Config, LATER, SOON},
    hang::Hang,
    http::{self, Answer},
    pace::slow,
};

/// A user and a group that no test needs otherwise.
const STRANGER: u32 = 65_534;
/// Most bytes of a request's body.
const MAX_BODY: usize = tracker_user::api::routes::MAX_BODY;

/// What Schemathesis looks at. Not whether valid data is accepted: the document cannot say that an address is of this family or a
/// service finds room. Nor whether what was deleted is gone: of an admin state that is `auto`, and of a service another test sees it.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,unsupported_method,allow_header_conformance,ensure_resource_availability";

/// The OpenAPI document of a daemon, and which of its answers were given.
struct Document {
    json: Json,
    validators: HashMap<String, Validator>,
    given: BTreeSet<String>,
}

impl Document {
    fn of(tracker: &Tracker) -> Result<Self> {
        let answer = tracker.answer("GET", "/v1/openapi.json", &[], b"")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(Self {
            json: answer.json()?,
            validators: HashMap::new(),
            given: BTreeSet::new(),
        })
    }

    /// The path of the document that has a path of a request.
    fn path(&self, path: &str) -> Option<String> {
        let path = path.split('?').next().unwrap_or_default();
        let has = |template: &&String| {
            let (mut parts, mut given) = (template.split('/'), path.split('/'));
            loop {
                match (parts.next(), given.next()) {
                    (None, None) => return true,
                    (Some(part), Some(given)) if part == given || part.starts_with('{') => {}
                    _ => return false,
                }
            }
        };
        let paths = self.json["paths"].as_object()?;
        // A path without names comes first.
        let mut matching: Vec<_> = paths.keys().filter(has).collect();
        matching.sort_by_key(|template| template.contains('{'));
        matching.first().map(|template| (*template).clone())
    }

    /// Every answer that the document has, as "method path status".
    fn documented(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (path, operations) in self.json["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                let statuses = operation["responses"].as_object().into_iter().flatten();
                all.extend(statuses.map(|(status, _)| format!("{method} {path} {status}")));
            }
        }
        all
    }

    fn validate(&mut self, schema: &Json, value: &Json) -> Result<()> {
        let key = schema.to_string();
        if !self.validators.contains_key(&key) {
            let mut schema = schema.clone();
            schema["components"] = self.json["components"].clone();
            let validator =
                jsonschema::validator_for(&schema).map_err(|error| anyhow!("{error}"))?;
            self.validators.insert(key.clone(), validator);
        }
        let errors = self.validators[&key].iter_errors(value);
        let errors: Vec<_> = errors
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(errors.is_empty(), "{errors:?}: {value}");
        Ok(())
    }

    /// Whether an answer is one that the document has; takes note of it.
    fn judge(&mut self, method: &str, path: &str, answer: &Answer) -> Result<()> {
        let status = answer.status.to_string();
        let method = method.to_lowercase();
        let Some(template) = self.path(path) else {
            ensure!(answer.status == 404, "nothing is at {path}: {answer:?}");
            return self.validate(
                &json!({"$ref": "#/components/schemas/Problem"}),
                &answer.json()?,
            );
        };
        let operations = self.json["paths"][&template].clone();
        let operations = operations.as_object().context("operations")?;
        let operation = match operations.get(&method) {
            Some(operation) => {
                self.given.insert(format!("{method} {template} {status}"));
                operation
            }
            None => {
                ensure!(answer.status == 405, "{method} {path}: {answer:?}");
                let methods = operations
                    .keys()
                    .map(|method| format!("{method} {template} 405"));
                self.given.extend(methods);
                operations.values().next().context("an operation")?
            }
        };
        let response = operation["responses"].get(&status).with_context(|| {
            format!("the document has no {status} of {method} {template}: {answer:?}")
        })?;
        let Some(content) = response["content"].as_object() else {
            ensure!(
                answer.text.is_empty(),
                "{method} {template} {status} has no body: {answer:?}"
            );
            return Ok(());
        };
        let kind = answer.header("content-type").unwrap_or_default();
        let of_kind = content.get(kind).with_context(|| {
            format!("{method} {template} {status} is not of type {kind:?}: {answer:?}")
        })?;
        let value = match kind.contains("json") && !kind.contains("ndjson") {
            true => answer.json()?,
            false => Json::from(answer.text.clone()),
        };
        self.validate(&of_kind["schema"].clone(), &value)
            .with_context(|| format!("{method} {template} {status}"))?;
        if kind.contains("ndjson") {
            let line_schema = response["x-lines"].clone();
            for line in answer.text.lines() {
                self.validate(&line_schema, &serde_json::from_str(line)?)?;
            }
        }
        Ok(())
    }
}

/// Does something as another user and group; the thread that does so ends with it.
fn as_user<T: Send>(user: u32, group: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let change = move || {
        // The wrappers of the C library would change all threads of the process.
        let calls = [
            (libc::SYS_setgroups, [0, 0, 0]),
            (libc::SYS_setresgid, [group; 3]),
            (libc::SYS_setresuid, [user; 3]),
        ];
        for (call, [real, effective, saved]) in calls {
            // SAFETY: an empty list of groups is not read; the other two take numbers alone.
            let done = unsafe {
                libc::syscall(
                    call,
                    u64::from(real),
                    u64::from(effective),
                    u64::from(saved),
                )
            };
            ensure!(
                done == 0,
                "become user {user}: {}",
                std::io::Error::last_os_error()
            );
        }
        work()
    };
    thread::scope(|scope| scope.spawn(change).join()).map_err(|_| anyhow!("the thread panicked"))?
}

/// The group that may read, and the lines of `[hub]` that say so.
fn readers() -> Result<(Group, String)> {
    let group = Group::from_gid(Gid::from_raw(1))?.context("a group of number 1")?;
    let lines = format!("socket_group = \"{}\"", group.name);
    Ok((group, lines))
}

fn service(behind: &str) -> Vec<u8> {
    json!({"endpoint": "10.9.0.2", "behind": [behind]})
        .to_string()
        .into_bytes()
}

/// The names of the services of an owner.
fn owned(tracker: &Tracker, owner: &str) -> Result<Vec<String>> {
    let list = tracker.services()?;
    let services = list["services"].as_array().context("services")?.iter();
    let services = services.filter(|service| service["owner"] == owner);
    let mut names: Vec<_> = services
        .map(|service| service["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    // After a restart those of the API are in the order of their names.
    names.sort();
    Ok(names)
}

/// The file in which changes are kept.
fn store(tracker: &Tracker) -> PathBuf {
    tracker.state().join("api.redb")
}

/// A server of as many clients as it serves at a time.
fn crowd(tracker: &Tracker) -> Result<Vec<UnixStream>> {
    (0..tracker_user::api::http::MAX_CLIENTS)
        .map(|_| {
            let mut stream = http::connect(&tracker.socket(), LATER)?;
            stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")?;
            Ok(stream)
        })
        .collect()
}

#[test]
fn every_answer_is_in_the_document_and_every_one_of_the_document_is_given() -> Result<()> {
    let lab = Lab::new()?;
    let (group, group_lines) = readers()?;
    let text =
        lab.service().toml("fw-1") + "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n";
    let config = Config::new(text).hub(format!("room = 4\n{group_lines}"));
    let mut tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut document = Document::of(&tracker)?;
    let run = tracker.status()?.0["run"]
        .as_str()
        .context("run")?
        .to_owned();
    let ahead = format!("/v1/events?since={run}:1000000");
    let big = vec![b' '; MAX_BODY + 1];
    let name = "/v1/services/fw-9";
    let good = service("10.20.0.9");
    let other = service("10.20.0.10");
    let all = |names: &[&str]| {
        let services = names
            .iter()
            .map(|name| json!({"name": name, "endpoint": "10.9.0.2", "behind": ["10.20.0.9"]}));
        json!({"services": services.collect::<Vec<_>>()})
            .to_string()
            .into_bytes()
    };
    let (none, mine, of_file) = (all(&[]), all(&["fw-7", "fw-8"]), all(&["fw-1"]));
    let admin = "/v1/services/fw-7/admin";
    let of_member = "/v1/services/fw-7/members/active/admin";
    let down: &[u8] = b"{\"state\":\"down\"}";
    let info: &[u8] = b"{\"filter\":\"info\"}";
    let sse = [("Accept", "text/event-stream")];
    let only_new = [("If-None-Match", "*")];
    // Method, path, headers, body, and the status of the answer.
    type Called<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], &'c [u8], u16);
    let calls: Vec<Called<'_>> = vec![
        ("GET", "/v1/status", &[], b"", 200),
        ("GET", "/v1/status?trackers=false", &[], b"", 200),
        (
            "GET",
            "/v1/status?service=fw-*&service=internet",
            &[],
            b"",
            200,
        ),
        ("GET", "/v1/status?service=nobody", &[], b"", 404),
        // What is no pattern is a name.
        ("GET", "/v1/status?service=%5B", &[], b"", 404),
        ("GET", "/v1/status?service=", &[], b"", 400),
        ("GET", "/v1/services", &[], b"", 200),
        ("GET", "/v1/services?service=fw-1", &[], b"", 200),
        ("GET", "/v1/services?service=nobody", &[], b"", 404),
        ("GET", "/v1/services?x=1", &[], b"", 400),
        ("GET", "/v1/services/fw-1", &[], b"", 200),
        ("GET", "/v1/services/nobody", &[], b"", 404),
        ("GET", "/v1/services/fw-1?x=1", &[], b"", 400),
        ("GET", "/v1/events", &[], b"", 200),
        ("GET", "/v1/events?follow=false", &sse, b"", 200),
        ("GET", &ahead, &[], b"", 422),
        ("GET", "/v1/events?since=x", &[], b"", 400),
        ("GET", "/v1/health", &[], b"", 200),
        ("GET", "/v1/health?x=1", &[], b"", 400),
        ("GET", "/v1/doctor", &[], b"", 200),
        ("GET", "/v1/doctor?x=1", &[], b"", 400),
        ("PUT", "/v1/doctor", &[], b"{}", 405),
        ("GET", "/v1/log", &[], b"", 200),
        ("GET", "/v1/log?x=1", &[], b"", 400),
        ("PUT", "/v1/log", &[], info, 200),
        ("PUT", "/v1/log?x=1", &[], info, 400),
        ("PUT", "/v1/log", &[], b"{}", 422),
        ("PUT", "/v1/log", &[], br#"{"filter":7}"#, 422),
        ("PUT", "/v1/log", &[], br#"{"filter":"loud"}"#, 422),
        ("PUT", "/v1/log", &[], b"{", 400),
        ("PUT", "/v1/log", &[], &big, 413),
        ("DELETE", "/v1/log", &[], b"", 405),
        ("GET", "/metrics", &[], b"", 200),
        ("GET", "/metrics?x=1", &[], b"", 400),
        ("GET", "/v1/openapi.json", &[], b"", 200),
        ("GET", "/v1/openapi.json?x=1", &[], b"", 400),
        ("GET", "/v1/nowhere", &[], b"", 404),
        ("GET", "/", &[], b"", 404),
        ("POST", "/v1/status", &[], b"", 405),
        ("POST", "/v1/services", &[], b"{}", 405),
        ("POST", name, &[], b"{}", 405),
        ("PATCH", "/v1/events", &[], b"", 405),
        ("DELETE", "/v1/health", &[], b"", 405),
        ("OPTIONS", "/metrics", &[], b"", 405),
        ("PUT", "/v1/openapi.json", &[], b"{}", 405),
        // One service of the API.
        ("PUT", "/v1/services/fw-9?dry_run=true", &[], &good, 200),
        ("GET", name, &[], b"", 404),
        ("PUT", name, &only_new, &good, 201),
        ("PUT", name, &[], &good, 200),
        ("PUT", name, &[], &other, 200),
        ("GET", name, &[], b"", 200),
        ("PUT", name, &only_new, &good, 412),
        ("PUT", name, &[], b"{}", 422),
        ("PUT", name, &[], b"{", 400),
        ("PUT", name, &[], &big, 413),
        ("PUT", "/v1/services/fw-1", &[], &good, 409),
        ("DELETE", "/v1/services/fw-1", &[], b"", 409),
        ("DELETE", "/v1/services/nobody", &[], b"", 404),
        ("DELETE", "/v1/services/fw-9?dry_run=maybe", &[], b"", 400),
        ("DELETE", "/v1/services/fw-9?dry_run=true", &[], b"", 200),
        ("DELETE", name, &[], b"", 204),
        // All of them.
        ("PUT", "/v1/services", &[], &mine, 200),
        // What operators impose on one of them, and on its member.
        ("GET", admin, &[], b"", 200),
        ("GET", "/v1/services/nobody/admin", &[], b"", 404),
        ("GET", "/v1/services/fw-7/admin?x=1", &[], b"", 400),
        ("POST", admin, &[], b"{}", 405),
        ("PUT", admin, &[], down, 200),
        ("PUT", admin, &[], b"{\"state\":\"off\"}", 422),
        ("PUT", admin, &[], b"{", 400),
        ("PUT", admin, &[], &big, 413),
        ("PUT", "/v1/services/nobody/admin", &[], down, 404),
        ("DELETE", "/v1/services/fw-7/admin?x=1", &[], b"", 400),
        ("DELETE", "/v1/services/nobody/admin", &[], b"", 404),
        ("DELETE", admin, &[], b"", 204),
        ("GET", of_member, &[], b"", 200),
        (
            "GET",
            "/v1/services/fw-7/members/standby/admin",
            &[],
            b"",
            404,
        ),
        (
            "GET",
            "/v1/services/fw-7/members/active/admin?x=1",
            &[],
            b"",
            400,
        ),
        ("POST", of_member, &[], b"{}", 405),
        ("PUT", of_member, &[], down, 200),
        ("PUT", of_member, &[], b"{}", 422),
        ("PUT", of_member, &[], b"{", 400),
        ("PUT", of_member, &[], &big, 413),
        (
            "PUT",
            "/v1/services/fw-7/members/standby/admin",
            &[],
            down,
            404,
        ),
        (
            "DELETE",
            "/v1/services/fw-7/members/active/admin?x=1",
            &[],
            b"",
            400,
        ),
        (
            "DELETE",
            "/v1/services/fw-7/members/standby/admin",
            &[],
            b"",
            404,
        ),
        ("DELETE", of_member, &[], b"", 204),
        ("GET", "/v1/history/fw-1", &[], b"", 200),
        ("GET", "/v1/history/fw-1?since=6h&step=1m", &[], b"", 200),
        ("GET", "/v1/history/fw-1?since=yesterday", &[], b"", 400),
        ("GET", "/v1/history/nobody", &[], b"", 404),
        ("POST", "/v1/history/fw-1", &[], b"", 405),
        ("PUT", "/v1/services?dry_run=true", &[], &none, 200),
        ("PUT", "/v1/services", &[], &of_file, 409),
        ("PUT", "/v1/services", &[], b"[]", 422),
        ("PUT", "/v1/services", &[], b"", 400),
        ("PUT", "/v1/services", &[], &big, 413),
    ];
    for (method, path, headers, body, status) in calls {
        let answer = tracker.answer(method, path, headers, body)?;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        document.judge(method, path, &answer)?;
    }
    assert_eq!(owned(&tracker, "api")?, ["fw-7", "fw-8"]);

    // A member of the group may read, and change nothing.
    let directory = tracker.socket();
    let directory = directory.parent().context("its directory")?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let writes: [(&str, &str, &[u8]); 8] = [
        ("PUT", "/v1/log", info),
        ("PUT", "/v1/services", &none),
        ("PUT", name, &good),
        ("DELETE", "/v1/services/fw-7", b""),
        ("PUT", admin, down),
        ("DELETE", admin, b""),
        ("PUT", of_member, down),
        ("DELETE", of_member, b""),
    ];
    for (method, path, body) in writes {
        let answer = as_user(STRANGER, group.gid.as_raw(), || {
            tracker.answer(method, path, &[], body)
        })?;
        assert_eq!(answer.status, 403, "{answer:?}");
        document.judge(method, path, &answer)?;
    }

    // Bodies that do not come.
    let late = ["/v1/services", name, admin, of_member, "/v1/log"].map(|path| {
        let socket = tracker.socket();
        thread::spawn(move || -> Result<_> {
            let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{");
            let bytes = http::exchange(&socket, head.as_bytes())?;
            Ok((path, Answer::parse(&bytes)?))
        })
    });
    for late in late {
        let (path, answer) = late.join().map_err(|_| anyhow!("the client panicked"))??;
        assert_eq!(answer.status, 408, "{answer:?}");
        document.judge("PUT", path, &answer)?;
    }

    // More clients than there are places for.
    let clients = crowd(&tracker)?;
    let mut operations_of = Vec::new();
    for (path, operations) in document.json["paths"]
        .clone()
        .as_object()
        .context("paths")?
    {
        for method in operations.as_object().context("operations")?.keys() {
            let method = method.to_uppercase();
            let path = path.replace("{name}", "fw-9").replace("{member}", "active");
            operations_of.push((method, path));
        }
    }
    for (method, path) in &operations_of {
        let answer = tracker.answer(method, path, &[], b"")?;
        assert_eq!(answer.status, 503, "{method} {path}: {answer:?}");
        document.judge(method, path, &answer)?;
    }
    drop(clients);
    tracker.wait_alive(SOON, "fw-1")?;
    // A head that is too long.
    let long = "x".repeat(20_000);
    for (method, path) in &operations_of {
        let answer = tracker.answer(method, path, &[("X-Long", &long)], b"")?;
        assert_eq!(answer.status, 431, "{method} {path}: {answer:?}");
        document.judge(method, path, &answer)?;
    }
    tracker.wait_alive(SOON, "fw-1")?;

    // A state directory that cannot be written, here since the file's place is taken.
    assert!(tracker.terminate()?.success());
    tracker.run()?;
    let kept = store(&tracker).with_extension("kept");
    fs::rename(store(&tracker), &kept)?;
    fs::create_dir(store(&tracker))?;
    // What is logged is not kept.
    for (method, path, body) in writes.into_iter().filter(|(_, path, _)| *path != "/v1/log") {
        let answer = tracker.answer(method, path, &[], body)?;
        assert_eq!(answer.status, 507, "{answer:?}");
        assert!(answer.text.contains("nothing was changed"), "{answer:?}");
        document.judge(method, path, &answer)?;
    }
    assert_eq!(owned(&tracker, "api")?, ["fw-7", "fw-8"]);
    fs::remove_dir(store(&tracker))?;
    fs::rename(&kept, store(&tracker))?;
    // It goes on as soon as that is mended.
    assert_eq!(
        tracker
            .answer("DELETE", "/v1/services/fw-7", &[], b"")?
            .status,
        204
    );

    // A daemon whose main loop stands.
    {
        let _hang = Hang::new(tracker.pid()?, "tracker")?;
        let until = Instant::now() + slow(SOON);
        let answer = loop {
            let answer = tracker.answer("GET", "/v1/health", &[], b"")?;
            if answer.status == 503 {
                break answer;
            }
            assert!(Instant::now() < until, "{answer:?}");
            thread::sleep(Duration::from_millis(100));
        };
        assert_eq!(answer.json()?["ok"], false);
        document.judge("GET", "/v1/health", &answer)?;
    }
    let missing: Vec<_> = document
        .documented()
        .difference(&document.given)
        .cloned()
        .collect();
    assert!(missing.is_empty(), "never given: {missing:?}");
    Ok(())
}

/// Services in every shape that a body can have, on a hub with two services.
fn shapes() -> [(&'static str, Json); 3] {
    [
        (
            "plain",
            json!({"endpoint": "10.9.0.2", "behind": ["10.20.0.9"]}),
        ),
        (
            "set",
            json!({"endpoint": "10.9.0.2", "behind": ["10.20.0.9", "2001:db8:20::9"], "interface": "eth1", "policy": "all",
                "interval": "50ms", "timeout": "300ms", "fall": 4, "rise": 3, "payload": 100, "dscp": "ef", "returns": ["eth1", "eth2"],
                "hold_down": "10ms", "return_hop": "any"}),
        ),
        (
            "pair",
            json!({"interval": "30ms", "member": [
                {"role": "active", "endpoint": "10.9.0.2", "tracker": [
                    {"behind": "10.20.0.9"},
                    {"behind": "10.20.0.9", "flow": "rotate", "payload": 200},
                ]},
                {"role": "standby", "endpoint": "10.9.1.2", "behind": ["10.20.1.9"]},
            ]}),
        ),
    ]
}

fn bodies(tracker: &Tracker) -> Result<Vec<Json>> {
    let bodies = shapes().map(|(name, _)| {
        let answer = tracker.answer("GET", &format!("/v1/services/{name}"), &[], b"")?;
        ensure!(answer.status == 200, "{answer:?}");
        answer.json()
    });
    bodies.into_iter().collect()
}

/// Ends the daemon as a reboot does: nothing of it is left but its files.
fn reboot(tracker: &mut Tracker) -> Result<()> {
    tracker.kill()?;
    tracker.cleanup()?;
    ensure!(!tracker.pins().exists(), "pins are left");
    tracker.run()
}

#[test]
fn services_of_the_api_survive_restart_and_reboot() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    for (name, body) in shapes() {
        let (status, said) =
            tracker.http("PUT", &format!("/v1/services/{name}"), &body.to_string())?;
        ensure!(status == 201, "{name}: {said}");
        tracker.wait_verdict(name, "up", "replied")?;
    }
    assert_eq!(
        tracker
            .http("PUT", "/v1/services/gone", &shapes()[0].1.to_string())?
            .0,
        201
    );
    assert_eq!(tracker.http("DELETE", "/v1/services/gone", "")?.0, 204);
    let before = bodies(&tracker)?;
    let check = |tracker: &Tracker| -> Result<()> {
        assert_eq!(bodies(tracker)?, before);
        assert_eq!(owned(tracker, "api")?, ["pair", "plain", "set"]);
        assert_eq!(owned(tracker, "file")?, ["fw-1"]);
        for (name, _) in shapes() {
            tracker.wait_verdict(name, "up", "replied")?;
        }
        Ok(())
    };
    tracker.kill()?;
    tracker.run()?;
    check(&tracker)?;
    assert!(tracker.terminate()?.success());
    tracker.run()?;
    check(&tracker)?;
    // Other defaults are for those that are added from then on.
    let config = Config::new(lab.service().toml("fw-1"))
        .defaults("interval = \"1s\"\ntimeout = \"700ms\"\nfall = 9");
    tracker.write(&config)?;
    reboot(&mut tracker)?;
    check(&tracker)?;
    // A file that names one takes it over, for good.
    let taken = lab.services()[1].toml("plain");
    tracker.write(Config::new(lab.service().toml("fw-1") + &taken))?;
    reboot(&mut tracker)?;
    assert_eq!(owned(&tracker, "file")?, ["fw-1", "plain"]);
    assert!(
        tracker
            .log()
            .contains("service plain, added by the API, is now in the configuration"),
        "{}",
        tracker.log()
    );
    tracker.write(&config)?;
    reboot(&mut tracker)?;
    assert_eq!(owned(&tracker, "api")?, ["pair", "set"]);
    Ok(())
}

#[test]
fn a_store_that_cannot_be_read_is_said_kept_aside_and_made_anew() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let add = |tracker: &Tracker| -> Result<()> {
        let (status, said) = tracker.http(
            "PUT",
            "/v1/services/fw-9",
            &String::from_utf8(service("10.20.0.9"))?,
        )?;
        ensure!(status == 201, "{said}");
        Ok(())
    };
    let later = |path: PathBuf| -> Result<()> {
        let meta = TableDefinition::<&str, u64>::new("meta");
        let database = Database::open(path)?;
        let version = database
            .begin_read()?
            .open_table(meta)?
            .get("version")?
            .context("a version")?
            .value();
        let transaction = database.begin_write()?;
        transaction
            .open_table(meta)?
            .insert("version", version + 1)?;
        Ok(transaction.commit()?)
    };
    type Damage<'d> = (&'static str, &'d dyn Fn(PathBuf) -> Result<()>);
    let damage: [Damage<'_>; 4] = [
        ("damaged-0", &|path| Ok(fs::write(path, b"nonsense")?)),
        ("damaged-1", &|path| Ok(fs::write(path, vec![0; 1 << 20])?)),
        ("damaged-2", &|path| {
            let whole = fs::read(&path)?;
            Ok(fs::write(path, &whole[..whole.len() / 2])?)
        }),
        ("version-2-0", &later),
    ];
    for (suffix, damage) in damage {
        add(&tracker)?;
        tracker.kill()?;
        tracker.cleanup()?;
        damage(store(&tracker)).context(suffix)?;
        let before = tracker.log().len();
        tracker.run()?;
        let log = tracker.log()[before..].to_owned();
        let aside = store(&tracker).with_extension(format!("redb.{suffix}"));
        assert!(aside.exists(), "{suffix}: {log}");
        let said: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(said.len(), 1, "{suffix}: {log}");
        assert!(
            said[0].contains(&*aside.to_string_lossy()),
            "{suffix}: {log}"
        );
        assert!(!log.contains("panicked"), "{suffix}: {log}");
        if suffix.starts_with("version") {
            assert!(
                said[0].contains("is of version 2, and this `tracker` reads version 1"),
                "{log}"
            );
        }
        assert_eq!(owned(&tracker, "api")?, [""; 0], "{suffix}");
        tracker.wait_alive(SOON, "fw-1")?;
    }
    // What is added from then on is kept.
    add(&tracker)?;
    reboot(&mut tracker)?;
    assert_eq!(owned(&tracker, "api")?, ["fw-9"]);
    Ok(())
}

#[test]
fn all_services_are_replaced_or_none() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("room = 4");
    let tracker = Tracker::start(&lab.hub, config)?;
    let list = |services: &[(&str, &str)]| {
        let services = services.iter().map(
            |(name, behind)| json!({"name": name, "endpoint": "10.9.0.2", "behind": [behind]}),
        );
        json!({"services": services.collect::<Vec<_>>()}).to_string()
    };
    let put = |query: &str, body: &str| -> Result<(u16, Json)> {
        let (status, said) = tracker.http("PUT", &format!("/v1/services{query}"), body)?;
        Ok((status, serde_json::from_str(&said).context(said)?))
    };
    let changed = |said: &Json, what: &str| said[what].clone();
    let first = list(&[("a", "10.20.0.1"), ("b", "10.20.0.2"), ("c", "10.20.0.3")]);
    let (status, said) = put("?dry_run=true", &first)?;
    assert_eq!(
        (status, changed(&said, "added")),
        (200, json!(["a", "b", "c"]))
    );
    assert_eq!(said["dry_run"], true);
    assert_eq!(owned(&tracker, "api")?, [""; 0]);
    assert!(!store(&tracker).exists(), "a trial was kept");
    let (status, said) = put("", &first)?;
    assert_eq!(
        (status, changed(&said, "added")),
        (200, json!(["a", "b", "c"]))
    );
    for name in ["a", "b", "c"] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    let before = tracker.wait_alive(SOON, "a")?;
    // One stays, one is changed, one goes, one comes.
    let second = list(&[("a", "10.20.0.1"), ("b", "10.20.0.22"), ("d", "10.20.0.4")]);
    for query in ["?dry_run=true", ""] {
        let (status, said) = put(query, &second)?;
        let found = ["added", "changed", "removed", "unchanged"].map(|what| changed(&said, what));
        assert_eq!(status, 200);
        assert_eq!(
            found,
            [json!(["d"]), json!(["b"]), json!(["c"]), json!(1)],
            "{query}"
        );
    }
    assert_eq!(owned(&tracker, "api")?, ["a", "b", "d"]);
    let after = tracker.wait_alive(SOON, "a")?;
    assert_eq!(after.service("a")["since"], before.service("a")["since"]);
    assert!(after.count("a", "sent") > before.count("a", "sent"));
    // The last one is wrong, has no room, is there twice, or is the file's.
    let wrong = [
        (
            list(&[("a", "10.20.0.1"), ("x", "10.9.0.2")]),
            422,
            "/services/1/behind/0",
        ),
        (
            list(&[("a", "10.20.0.1"), ("a", "10.20.0.2")]),
            422,
            "/services/1/name",
        ),
        (
            list(&[
                ("1", "10.20.0.1"),
                ("2", "10.20.0.1"),
                ("3", "10.20.0.1"),
                ("4", "10.20.0.1"),
                ("5", "10.20.0.1"),
            ]),
            422,
            "",
        ),
        (list(&[("fw-1", "10.20.0.1")]), 409, ""),
    ];
    let list_before = tracker.services()?;
    for (body, wanted, pointer) in wrong {
        for query in ["", "?dry_run=true"] {
            let (status, said) = put(query, &body)?;
            assert_eq!(status, wanted, "{body}: {said}");
            if status == 422 {
                assert_eq!(said["errors"][0]["pointer"], pointer, "{said}");
            }
            assert_eq!(owned(&tracker, "api")?, ["a", "b", "d"], "{body}");
        }
    }
    assert_eq!(tracker.services()?["free"], list_before["free"]);
    assert_eq!(put("", &list(&[]))?.0, 200);
    assert_eq!(owned(&tracker, "api")?, [""; 0]);
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

#[test]
fn the_group_of_the_socket_reads_and_others_do_not_connect() -> Result<()> {
    let lab = Lab::new()?;
    let (group, lines) = readers()?;
    let tracker = Tracker::start(&lab.hub, Config::new(lab.service().toml("fw-1")).hub(lines))?;
    let socket = tracker.socket();
    assert_eq!(fs::metadata(&socket)?.permissions().mode() & 0o777, 0o660);
    let directory = socket.parent().context("its directory")?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let gid = group.gid.as_raw();
    let read = as_user(STRANGER, gid, || {
        tracker.answer("GET", "/v1/status", &[], b"")
    })?;
    assert_eq!(read.status, 200);
    let body = service("10.20.0.9");
    let refused = as_user(STRANGER, gid, || {
        tracker.answer("PUT", "/v1/services/fw-9", &[], &body)
    })?;
    assert_eq!(refused.status, 403);
    assert!(
        refused.text.contains("only root may change anything"),
        "{refused:?}"
    );
    assert_eq!(owned(&tracker, "api")?, [""; 0]);
    let stranger = as_user(STRANGER, STRANGER, || {
        Ok(UnixStream::connect(&socket)
            .map(drop)
            .map_err(|error| error.kind()))
    })?;
    assert_eq!(stranger, Err(std::io::ErrorKind::PermissionDenied));
    assert_eq!(
        tracker
            .answer("PUT", "/v1/services/fw-9", &[], &body)?
            .status,
        201
    );
    Ok(())
}

#[test]
fn clients_that_do_not_go_on_delay_no_other_and_are_ended() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let behind: Vec<String> = (0..1_000)
        .map(|at| format!("10.20.{}.{}", 1 + at / 250, 1 + at % 250))
        .collect();
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(lab.service().toml("fw-1")).hub("room = 2000"),
    )?;
    // A long answer, which no buffer holds.
    let body = json!({"endpoint": "10.9.0.2", "behind": behind, "interval": "1s"}).to_string();
    assert_eq!(tracker.http("PUT", "/v1/services/long", &body)?.0, 201);
    let stuck: [&[u8]; 5] = [
        b"",
        b"GET /v1/status HTTP/1.1\r\nHost:",
        b"PUT /v1/services/fw-9 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"PUT /v1/services/fw-9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"end",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let mut clients = Vec::new();
    for bytes in stuck.iter().cycle().take(100) {
        let mut stream = http::connect(&tracker.socket(), LATER)?;
        stream.write_all(bytes)?;
        clients.push(stream);
    }
    // Others are answered while these wait, and probes go on.
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(
        tracker
            .http(
                "PUT",
                "/v1/services/fw-9",
                &String::from_utf8(service("10.20.0.9"))?
            )?
            .0,
        201
    );
    tracker.wait_verdict("fw-9", "up", "replied")?;
    // All are ended, also those whose answer is never read: their places are free again.
    let until = Instant::now() + slow(LATER);
    loop {
        let count = fs::read_dir(format!("/proc/{}/fd", tracker.pid()?))?.flatten();
        let sockets = count.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        });
        if sockets.count() < 50 {
            break;
        }
        assert!(Instant::now() < until, "{}", tracker.log());
        thread::sleep(Duration::from_millis(200));
    }
    for (mut stream, sent) in clients.into_iter().zip(stuck.iter().cycle()) {
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        if sent.starts_with(b"PUT") {
            assert!(said.starts_with("HTTP/1.1 408"), "{said}");
        }
    }
    tracker.wait_alive(SOON, "fw-1")?;
    Ok(())
}

/// What keeps Schemathesis from following the events, which have no end: server-sent events are followed unless the request says no.
const HOOKS: &str = r#"
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.path == "/v1/events":
        query = case.query if isinstance(case.query, dict) else {}
        values = query.get("follow")
        values = values if isinstance(values, list) else [values]
        if values == [None] or any(str(value).lower() in ("true", "none", "") for value in values):
            case.query = {**query, "follow": "false"}
"#;

/// Passes connections of a TCP port of the hub on to the daemon's socket: Schemathesis knows no Unix sockets.
fn bridge(lab: &Lab, tracker: &Tracker) -> Result<SocketAddr> {
    let listener = lab.hub.enter(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
    let address = listener.local_addr()?;
    let socket = tracker.socket();
    // Ends with the test's process.
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&socket) else {
                continue;
            };
            let (Ok(mut near_in), Ok(mut far_in)) = (near.try_clone(), far.try_clone()) else {
                continue;
            };
            let (mut near, mut far) = (near, far);
            thread::spawn(move || {
                let _ = std::io::copy(&mut near_in, &mut far);
                let _ = far.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut far_in, &mut near);
                let _ = near.shutdown(Shutdown::Both);
            });
        }
    });
    Ok(address)
}

/// Requests that are made from the document, valid and not: no answer is a failure of the daemon, or one that the document has not.
#[test]
fn schemathesis_finds_nothing() -> Result<()> {
    let program = std::env::var_os("TRACKER_SCHEMATHESIS");
    let program = program.context(
        "find schemathesis: `cargo xtask test` installs it and sets TRACKER_SCHEMATHESIS",
    )?;
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("room = 64");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let pid = tracker.pid()?;
    let address = bridge(&lab, &tracker)?;
    let directory = tempfile::tempdir()?;
    let hooks = directory.path().join("hooks.py");
    fs::write(&hooks, HOOKS)?;
    let seconds = slow(Duration::from_secs(40)).as_secs();
    let output = lab
        .hub
        .command(program)
        .args([
            "run",
            &format!("http://{address}/v1/openapi.json"),
            "--seed",
            "1",
            "--no-color",
        ])
        .args([
            "--max-time",
            &seconds.to_string(),
            "--request-timeout",
            "30",
        ])
        .args(["--checks", CHECKS, "--continue-on-failure"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", directory.path())
        .current_dir(directory.path())
        .output()
        .context("start schemathesis")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {said}\n{}\nlog:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        tracker.log()
    );
    // It is worth nothing if it did not try all of them.
    let paths = Document::of(&tracker)?.json["paths"].clone();
    let operations: usize = paths
        .as_object()
        .context("paths")?
        .values()
        .filter_map(|path| path.as_object())
        .flat_map(|path| path.keys())
        .filter(|key| ["get", "put", "delete"].contains(&key.as_str()))
        .count();
    let tested = |count: usize| said.contains(&format!("Tested: {count}\n"));
    // The document's own path, from which the others are read, is not among them.
    ensure!(
        tested(operations) || tested(operations - 1),
        "not {operations}: {said}"
    );
    assert_eq!(tracker.pid()?, pid, "the daemon is another one");
    assert!(!tracker.log().contains("panicked"), "{}", tracker.log());
    tracker.wait_alive(SOON, "fw-1")?;
    // Of the tracker: what was imposed on service and member changes what these count as, and no measured verdict.
    let events = tracker.events()?.into_iter();
    let measured: Vec<_> = events
        .filter(|event| event.service.as_deref() == Some("fw-1") && event.behind.is_some())
        .collect();
    assert_eq!(measured.len(), 1, "a verdict changed: {measured:?}");
    Ok(())
}

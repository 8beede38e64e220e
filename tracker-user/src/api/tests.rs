//! The server as a whole, with answers that are fixed: connections and their limits, calls, refusals, and the event stream.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{self, Body},
    http::{Method, Request, Response},
};
use glob::Pattern;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::Semaphore,
    time,
};
use tower_service::Service as _;
use tracker_ebpf::rtt;

use super::{
    client::{Call, ClientError},
    history::{HistoryWanted, ServiceHistory},
    http::{self, MAX_CLIENTS, PATIENCE},
    metrics, openapi,
    problem::Refused,
    routes::{self, Api, MAX_BODY, Scope, ServiceChange, ServicesWanted},
    socket::{self, BindError},
    types::{self, Changed, Health, List, Status},
};
use crate::{
    config::Invalid,
    detector::lateness,
    doctor,
    state::{
        admin::Admin,
        events::{self, EventFeed, EventLog, Missed, Numbered},
    },
};

/// Answers that are fixed; of services, a change only says what was asked.
#[derive(Clone)]
struct Fixed(EventFeed);

/// A name whose status is long.
const LONG: &str = "long";

impl Api for Fixed {
    fn document(&self) -> Json {
        openapi::document::<Self>()
    }

    async fn history(&self, name: &str, _: HistoryWanted) -> Result<ServiceHistory, Refused> {
        Err(Refused::Unknown(format!("no {name}")))
    }

    fn admin(&self, service: &str, _: Option<&str>) -> Result<Admin, Refused> {
        Err(Refused::Unknown(format!("no {service}")))
    }

    async fn set_admin(&self, _: &str, _: Option<&str>, admin: Admin) -> Result<Admin, Refused> {
        Ok(admin)
    }

    async fn status(&self, names: &[Pattern]) -> Result<Status, Refused> {
        match names {
            [name] if !matches!(name.as_str(), "fw-1" | LONG) => {
                Err(Refused::Unknown(format!("no {name}")))
            }
            _ => Ok(types::tests::example()),
        }
    }

    async fn status_body(&self, names: Vec<Pattern>, _: bool) -> Result<Body, Refused> {
        let status = self.status(&names).await?;
        match names.iter().any(|name| name.as_str() == LONG) {
            true => Ok(Body::from(vec![b'x'; 8 << 20])),
            false => Ok(Body::from(serde_json::to_vec(&status).unwrap())),
        }
    }

    fn events(&self) -> EventFeed {
        self.0.clone()
    }

    fn chained(&self, names: &[Pattern]) -> Vec<String> {
        let names = names.iter().filter(|name| name.as_str() == "internet");
        names.map(|_| "fw-1".to_owned()).collect()
    }

    async fn doctor(&self) -> Result<doctor::Report, Refused> {
        Err(Refused::Unknown("nothing".to_owned()))
    }

    fn rtts(&self) -> Result<metrics::ReadRtts, Refused> {
        Ok(Box::new(|_| [0; rtt::WORDS]))
    }

    fn health(&self) -> Health {
        Health::new(&lateness::Health::default(), 0)
    }

    async fn services(&self, _: &[Pattern]) -> Result<List, Refused> {
        Ok(List {
            services: Vec::new(),
            free: 7,
        })
    }

    fn service(&self, name: &str) -> Result<Json, Refused> {
        Ok(json!({"name": name}))
    }

    async fn change(&self, change: ServiceChange) -> Result<Changed, Refused> {
        let dry_run = change.is_trial;
        let changed = match change.wanted {
            ServicesWanted::Put {
                name, is_new: true, ..
            } if name == "there" => {
                return Err(Refused::Exists("there is one".to_owned()));
            }
            ServicesWanted::Put { name, body, .. } => match body.get("port") {
                Some(port) => {
                    return Err(Refused::Invalid {
                        attempt: format!("cannot add {name}"),
                        errors: vec![Invalid::at("/port".to_owned(), format!("no {port}"))],
                    });
                }
                None => Changed {
                    added: vec![name],
                    ..Changed::default()
                },
            },
            ServicesWanted::All(services) => Changed {
                unchanged: services.len() as u64,
                ..Changed::default()
            },
            ServicesWanted::Removed(name) if name == "of-file" => {
                return Err(Refused::Owned("the file's".to_owned()));
            }
            ServicesWanted::Removed(name) => Changed {
                removed: vec![name],
                ..Changed::default()
            },
        };
        Ok(Changed { dry_run, ..changed })
    }
}

fn feed(capacity: usize) -> EventFeed {
    EventFeed::new(EventLog::new(capacity, 1).of_run("r1"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A server on a Unix socket.
struct Daemon {
    dir: tempfile::TempDir,
    feed: EventFeed,
}

impl Daemon {
    fn start(capacity: usize) -> Self {
        let daemon = Self {
            dir: tempfile::tempdir().unwrap(),
            feed: feed(capacity),
        };
        let (path, feed) = (daemon.socket(), daemon.feed.clone());
        let (ready, wait) = std::sync::mpsc::channel();
        // Ends with the test's process.
        std::thread::spawn(move || {
            runtime().block_on(async {
                let socket = socket::bind(&path, None).unwrap();
                ready.send(()).unwrap();
                http::serve_unix(socket, routes::router(&Fixed(feed), Scope::All)).await;
            });
        });
        wait.recv().unwrap();
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/d.sock")
    }

    fn publish(&self, count: usize) {
        self.feed
            .publish(std::iter::repeat_n(events::tests::example(), count));
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What comes until the connection ends.
    fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has seen enough answers and closes the connection.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// Head and body of an answer to HTTP/1.0, whose body is not in chunks.
    fn get(&self, path: &str, header: &str) -> (String, String) {
        let answer = self.exchange(format!("GET {path} HTTP/1.0\r\n{header}\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn events(&self, query: &str) -> Vec<String> {
        let (_, body) = self.get(&format!("/v1/events{query}"), "");
        body.lines().map(str::to_owned).collect()
    }

    fn call(&self, method: Method, parts: &[&str]) -> Result<String, ClientError> {
        Call::new(&self.socket(), method, parts).ask_text()
    }
}

fn seqs(lines: &[String]) -> Vec<u64> {
    let seq = |line: &String| serde_json::from_str::<Numbered>(line).expect(line).seq;
    lines.iter().map(seq).collect()
}

#[test]
fn status_is_the_contract_s_and_unknown_names_are_refused() {
    let daemon = Daemon::start(8);
    let socket = daemon.socket();
    let ask = |name: &str| {
        let call = Call::new(&socket, Method::GET, &["v1", "status"]);
        call.names(&[name.to_owned()]).ask::<Status>()
    };
    let (text, status) = ask("fw-1").unwrap();
    assert_eq!(text, types::tests::CONTRACT);
    assert_eq!(status, types::tests::example());
    let error = ask("x").unwrap_err();
    let ClientError::Refused(problem) = error else {
        panic!("{error}")
    };
    assert_eq!((problem.status, problem.detail.as_str()), (404, "no x"));
    let (head, body) = daemon.get("/v1/status", "");
    assert_eq!(body, types::tests::CONTRACT);
    assert!(head.contains("content-type: application/json"), "{head}");
}

#[test]
fn bad_requests_are_refused_and_do_no_harm() {
    let daemon = Daemon::start(8);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let name = format!(
        "GET /v1/status?service={} HTTP/1.0\r\n\r\n",
        "x".repeat(300)
    );
    let names = format!(
        "GET /v1/status?x{} HTTP/1.0\r\n\r\n",
        "&service=x".repeat(300)
    );
    let put = |body: &str| {
        let length = body.len();
        format!("PUT /v1/services/x HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let deep = put(&"[".repeat(100_000));
    let much = put(&" ".repeat(MAX_BODY + 1));
    let cases: [(&str, &str); 17] = [
        ("{\"command\":\"status\"}\n\n", "400"),
        ("\u{0}\u{1b}[2J\n", "400"),
        ("GET /v1/status HTTP/9.9\r\n\r\n", "400"),
        (&long, "4"),
        (&many, "4"),
        ("GET / HTTP/1.0\r\n\r\n", "404"),
        ("GET /v1/status/x HTTP/1.0\r\n\r\n", "404"),
        ("POST /v1/status HTTP/1.0\r\n\r\n", "405"),
        ("GET /v1/status?nam=x HTTP/1.0\r\n\r\n", "400"),
        ("GET /v1/status?trackers=maybe HTTP/1.0\r\n\r\n", "400"),
        ("GET /v1/status?service= HTTP/1.0\r\n\r\n", "400"),
        ("GET /v1/status?service=%5B HTTP/1.0\r\n\r\n", "404"),
        ("GET /v1/events?since=-1 HTTP/1.0\r\n\r\n", "400"),
        (&name, "400"),
        (&names, "400"),
        (&deep, "400"),
        (&much, "413"),
    ];
    for (request, status) in cases {
        let shown = &request[..request.len().min(60)];
        let answer = daemon.exchange(request.as_bytes());
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.starts_with("HTTP/1."), "{shown}: {answer}");
        assert!(line[9..].starts_with(status), "{shown}: {answer}");
        assert!(answer.len() < 1_000, "{shown}: {answer}");
        if let Some((head, body)) = answer
            .split_once("\r\n\r\n")
            .filter(|(_, body)| !body.is_empty())
        {
            assert!(
                head.contains("content-type: application/problem+json"),
                "{head}"
            );
            let problem: super::problem::Problem = serde_json::from_str(body).unwrap();
            assert_eq!(problem.kind, "about:blank");
            assert!(!problem.detail.contains('\n'), "{problem:?}");
        }
    }
    daemon.call(Method::GET, &["v1", "status"]).unwrap();
}

#[test]
fn services_are_listed_put_and_removed() {
    let daemon = Daemon::start(8);
    let (text, list) = Call::new(&daemon.socket(), Method::GET, &["v1", "services"])
        .ask::<List>()
        .unwrap();
    assert_eq!(
        (text.as_str(), list.free),
        ("{\"services\":[],\"free\":7}", 7)
    );
    let put = |name: &str, body: &Json, is_new: bool| {
        let socket = daemon.socket();
        let call = Call::new(&socket, Method::PUT, &["v1", "services", name]).body(body);
        let call = if is_new { call.only_new() } else { call };
        call.ask::<Changed>().map(|(_, changed)| changed)
    };
    // A name comes as it was given, whatever a path makes of its characters.
    for name in ["fw-1", "a b", "a/b", "%2F", "é?#&", "..", "{name}"] {
        assert_eq!(put(name, &json!({}), true).unwrap().added, [name]);
        daemon
            .call(Method::DELETE, &["v1", "services", name])
            .unwrap();
    }
    let status = |refused: Result<_, ClientError>| match refused {
        Err(ClientError::Refused(problem)) => (problem.status, problem.errors),
        other => panic!("{other:?}"),
    };
    let refused = status(put("fw-1", &json!({"port": 9}), false).map(drop));
    assert_eq!(
        refused,
        (422, vec![Invalid::at("/port".to_owned(), "no 9")])
    );
    assert_eq!(status(put("there", &json!({}), true).map(drop)).0, 412);
    assert_eq!(put("there", &json!({}), false).unwrap().added, ["there"]);
    let removed = daemon.call(Method::DELETE, &["v1", "services", "of-file"]);
    assert_eq!(status(removed.map(drop)).0, 409);
    let all = |body: &Json| {
        let socket = daemon.socket();
        let call = Call::new(&socket, Method::PUT, &["v1", "services"]).body(body);
        call.query("dry_run", "true").ask::<Changed>()
    };
    let (_, changed) = all(&json!({"services": [{}, {}]})).unwrap();
    assert_eq!((changed.unchanged, changed.dry_run), (2, true));
    for body in [
        json!([]),
        json!({}),
        json!({"services": {}}),
        json!({"services": [], "x": 1}),
    ] {
        assert_eq!(status(all(&body).map(drop)).0, 422);
    }
}

/// The answer of a router to a request that came over no socket.
fn routed(router: &mut axum::Router, method: &str, path: &str) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::from("{}"))
        .unwrap();
    let answer = runtime().block_on(router.call(request));
    answer.unwrap_or_else(|never| match never {})
}

#[test]
fn who_is_not_known_changes_nothing_and_each_scope_has_its_calls() {
    let api = Fixed(feed(8));
    let changes = [
        ("PUT", "/v1/services"),
        ("PUT", "/v1/services/x"),
        ("DELETE", "/v1/services/x"),
    ];
    // Nothing says who is at the other end of a TCP connection.
    for (scope, status) in [
        (Scope::All, 403),
        (Scope::ReadOnly, 405),
        (Scope::Metrics, 404),
    ] {
        let mut router = routes::router(&api, scope);
        for (method, path) in changes {
            assert_eq!(
                routed(&mut router, method, path).status(),
                status,
                "{scope:?} {method} {path}"
            );
        }
        assert_eq!(routed(&mut router, "GET", "/metrics").status(), 200);
        let refused = routed(&mut router, "POST", "/metrics");
        assert_eq!(refused.status(), 405);
        assert_eq!(refused.headers()["allow"], "GET,HEAD");
        let read = routed(&mut router, "GET", "/v1/status").status();
        assert_eq!(read == 200, scope != Scope::Metrics, "{scope:?}");
    }
}

#[test]
fn events_are_what_there_was_when_not_followed() {
    let daemon = Daemon::start(1000);
    assert_eq!(daemon.events(""), [""; 0]);
    daemon.publish(700);
    assert_eq!(seqs(&daemon.events("")), (1..=700).collect::<Vec<_>>());
    assert_eq!(seqs(&daemon.events("?since=698")), [699, 700]);
    assert_eq!(daemon.events("?since=700"), [""; 0]);
    // Numbers that were not given yet are of another run; so is what says so.
    for query in [
        "?since=701",
        "?since=other:3",
        "?since=18446744073709551615",
    ] {
        let anew = daemon.events(query);
        assert_eq!(anew[0], r#"{"reset":true,"run":"r1"}"#);
        assert_eq!(seqs(&anew[1..]), (1..=700).collect::<Vec<_>>());
    }
    assert_eq!(seqs(&daemon.events("?since=r1:699")), [700]);
    let (head, ahead) = daemon.get("/v1/events?since=r1:701", "");
    assert!(head.starts_with("HTTP/1.0 422"), "{head}");
    assert!(
        ahead.contains("event 701 of run r1 has not happened yet, the last is 700"),
        "{ahead}"
    );
    // By name, by pattern, and by a chain that names the service.
    for (names, count) in [("fw-1", 2), ("fw-*", 2), ("internet", 2), ("fw-2", 0)] {
        assert_eq!(
            daemon.events(&format!("?since=698&service={names}")).len(),
            count,
            "{names}"
        );
    }
}

#[test]
fn what_is_no_longer_kept_is_told() {
    let daemon = Daemon::start(10);
    daemon.publish(25);
    let lines = daemon.events("?since=3");
    assert_eq!(lines[0], "{\"missed\":12,\"next\":16}");
    assert_eq!(seqs(&lines[1..]), (16..=25).collect::<Vec<_>>());
    assert_eq!(seqs(&daemon.events("")), (16..=25).collect::<Vec<_>>());
}

#[test]
fn server_sent_events_have_what_a_browser_needs_to_go_on() {
    let daemon = Daemon::start(3);
    daemon.publish(5);
    let accept = "Accept: text/event-stream\r\n";
    let ask = |header: &str| daemon.get("/v1/events?follow=false", &format!("{accept}{header}"));
    let (head, body) = ask("");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let parts: Vec<&str> = body.trim_end().split("\n\n").collect();
    let [third, fourth, fifth] = &parts[..] else {
        panic!("{body}")
    };
    for (part, seq) in [(third, 3), (fourth, 4), (fifth, 5)] {
        let data = part
            .strip_prefix(&format!("id: r1:{seq}\nevent: event\ndata: "))
            .expect(part);
        assert_eq!(seqs(&[data.to_owned()]), [seq]);
    }
    // What a browser sends when it connects again is its last id.
    let (_, rest) = ask("Last-Event-ID: r1:4\r\n");
    assert_eq!(rest.trim_end(), *fifth);
    let (_, missed) = ask("Last-Event-ID: r1:1\r\n");
    assert!(
        missed.starts_with("event: missed\ndata: {\"missed\":1,\"next\":3}\n\nid: r1:3\n"),
        "{missed}"
    );
    let (_, reset) = ask("Last-Event-ID: r0:4\r\n");
    assert!(
        reset.starts_with("event: reset\ndata: {\"reset\":true,\"run\":\"r1\"}\n\n"),
        "{reset}"
    );
    let (head, _) = ask("Last-Event-ID: nonsense\r\n");
    assert!(head.starts_with("HTTP/1.0 400"), "{head}");
    // They are followed unless the request says otherwise.
    let mut stream = daemon.connect();
    let request = format!("GET /v1/events?since=5 HTTP/1.0\r\n{accept}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next().unwrap().unwrap().is_empty() {}
    daemon.publish(1);
    assert_eq!(lines.next().unwrap().unwrap(), "id: r1:6");
}

#[test]
fn stuck_clients_delay_no_other_and_a_slow_follower_learns_what_it_missed() {
    let daemon = Daemon::start(2000);
    let request = b"GET /v1/events?follow=true HTTP/1.0\r\n\r\n";
    let _silent: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    let mut slow = daemon.connect();
    slow.write_all(request).unwrap();
    let mut quick = daemon.connect();
    quick.write_all(request).unwrap();
    let mut quick = BufReader::new(quick).lines();
    while !quick.next().unwrap().unwrap().is_empty() {}

    // Far more than a socket's buffers hold, while `slow` does not read.
    let mut seen = 0;
    for _ in 0..30 {
        daemon.publish(500);
        for _ in 0..500 {
            let line = quick.next().unwrap().unwrap();
            seen += 1;
            assert_eq!(seqs(&[line]), [seen]);
        }
    }
    daemon.call(Method::GET, &["v1", "status"]).unwrap();

    let mut next = 1;
    let mut missed = 0;
    let mut lines = BufReader::new(slow).lines();
    while !lines.next().unwrap().unwrap().is_empty() {}
    for line in lines {
        let line = line.unwrap();
        if let Ok(gap) = serde_json::from_str::<Missed>(&line) {
            missed += gap.missed;
            assert_eq!(gap.next, next + gap.missed);
            next = gap.next;
        } else {
            assert_eq!(seqs(&[line]), [next]);
            next += 1;
        }
        if next > seen {
            break;
        }
    }
    assert!(missed > 0, "the buffers held everything");
}

#[test]
fn a_client_too_many_is_told_and_one_that_leaves_frees_its_place() {
    let daemon = Daemon::start(8);
    for _ in 0..3 {
        let clients: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| {
                let mut stream = daemon.connect();
                stream
                    .write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
                    .unwrap();
                stream
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        // One too many is told so at once ...
        loop {
            match daemon.call(Method::GET, &["v1", "status"]) {
                Err(ClientError::Refused(why)) if why.detail.contains("clients are connected") => {
                    break;
                }
                _ => assert!(Instant::now() < until, "all are let in"),
            }
        }
        drop(clients);
        // ... and let in once the others have left.
        while daemon.call(Method::GET, &["v1", "status"]).is_err() {
            assert!(Instant::now() < until, "no place was freed");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_removed() {
    let daemon = Daemon::start(8);
    let path = daemon.socket();
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bind = |path: &std::path::Path| socket::bind(path, None);
    let error = bind(&path).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error}");

    let stale = daemon.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let (listener, first) = bind(&stale).unwrap().into_parts();
    // One that lost its place leaves the new one's alone.
    drop(listener);
    let second = bind(&stale).unwrap();
    drop(first);
    assert!(stale.exists());
    drop(second);
    assert!(!stale.exists());

    let file = daemon.dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let error = bind(&file).unwrap_err();
    assert!(matches!(error, BindError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let error = bind(&file.join("x.sock")).unwrap_err().to_string();
    assert!(error.contains("cannot create its directory"), "{error}");
    assert!(!error.contains('\n'));
    let error = socket::bind(&stale, Some("no-such-group")).unwrap_err();
    assert!(matches!(error, BindError::NoGroup { .. }), "{error}");
}

/// A client over a pipe of 64 KiB, while the clock only moves when all else waits.
async fn with_client<T>(
    api: Fixed,
    client: impl AsyncFnOnce(DuplexStream) -> T,
) -> (T, Option<Duration>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let slots = Arc::new(Semaphore::new(1));
    let slot = slots.clone().try_acquire_owned().unwrap();
    let router = routes::router(&api, Scope::All);
    let begun = time::Instant::now();
    let server = tokio::spawn(async move {
        http::connection(far, std::future::pending(), Some(0), router, slot).await;
        begun.elapsed()
    });
    let said = client(near).await;
    // A day is more than any limit.
    let mut server = pin!(time::timeout(Duration::from_secs(86_400), server));
    let ended = server.as_mut().await.ok().map(Result::unwrap);
    assert_eq!(slots.available_permits() == 1, ended.is_some());
    (said, ended)
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn a_client_that_does_not_go_on_is_ended() {
    let limit = PATIENCE..PATIENCE * 2;
    // The head of a request: none, half, and a byte a second for ever.
    for head in [
        "",
        "GET /v1/status HTTP/1.1\r\n",
        "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let (_kept, ended) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        }));
        assert!(limit.contains(&ended.expect(head)), "{head:?}: {ended:?}");
    }
    let (_, ended) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
        while stream.write_all(b"x").await.is_ok() {
            time::sleep(Duration::from_secs(1)).await;
        }
    }));
    assert!(limit.contains(&ended.unwrap()), "{ended:?}");
    // A body that does not come is answered.
    let (said, ended) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
        let head = "PUT /v1/services/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }));
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(limit.contains(&ended.unwrap()), "{ended:?}");
    // An answer that is not taken.
    let (_kept, ended) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
        let head = format!("GET /v1/status?service={LONG} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }));
    assert!(limit.contains(&ended.unwrap()), "{ended:?}");
}

#[test]
fn a_client_that_closed_its_side_is_answered_but_does_not_follow() {
    let daemon = Daemon::start(8);
    let ask = |request: &str| {
        let mut stream = daemon.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).map(|_| said)
    };
    // Many times: whether the end is seen before the request is answered is up to the scheduler.
    for _ in 0..50 {
        let said = ask("GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said:?}");
    }
    // It ends, however long nothing happens.
    ask("GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n").expect("an end");
    // A body whose rest will not come.
    let head = "PUT /v1/services/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
    let said = ask(head).unwrap();
    assert!(
        said.starts_with("HTTP/1.1 400") && said.contains("before its end"),
        "{said:?}"
    );
}

#[test]
fn a_reader_that_takes_a_long_answer_slowly_has_all_of_it() {
    let (taken, _) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
        let head = format!("GET /v1/status?service={LONG} HTTP/1.0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut taken, mut piece) = (0, vec![0; 60 << 10]);
        loop {
            match stream.read(&mut piece).await.unwrap() {
                0 => return taken,
                count => taken += count,
            }
            time::sleep(PATIENCE / 2).await;
        }
    }));
    assert!(taken > 8 << 20, "{taken}");
}

#[test]
fn a_follower_may_leave_its_stream_unread() {
    let feed = feed(100_000);
    feed.publish(std::iter::repeat_n(events::tests::example(), 50_000));
    let api = Fixed(feed);
    let (_kept, ended) = paused().block_on(with_client(api, async |mut stream| {
        let head = "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }));
    assert_eq!(ended, None);
}

#[test]
fn a_silent_stream_of_server_sent_events_is_kept_alive() {
    let (said, _) = paused().block_on(with_client(Fixed(feed(8)), async |mut stream| {
        let head = "GET /v1/events HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b": \n\n: \n\n") {
            let mut piece = [0; 1_000];
            let count = time::timeout(Duration::from_secs(60), stream.read(&mut piece)).await;
            said.extend_from_slice(&piece[..count.expect("nothing for a minute").unwrap()]);
        }
        said.len()
    }));
    assert!(said > 0);
}

#[test]
fn the_document_names_every_call_and_resolves_every_reference() {
    let document = openapi::document::<Fixed>();
    let count = document["paths"].as_object().unwrap().values();
    let count: usize = count.map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(count, routes::table::<Fixed>().len());
    fn references<'d>(value: &'d Json, into: &mut Vec<&'d str>) {
        match value {
            Json::Object(object) => {
                into.extend(object.get("$ref").and_then(Json::as_str));
                object.values().for_each(|value| references(value, into));
            }
            Json::Array(list) => list.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').expect(reference);
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// A body that the server may send whole is one of the tests' own, too.
#[test]
fn metrics_and_health_are_as_their_calls_say() {
    let mut router = routes::router(&Fixed(feed(8)), Scope::All);
    let metrics = routed(&mut router, "GET", "/metrics");
    let kind = metrics.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(kind.starts_with("text/plain"), "{kind}");
    let page = runtime()
        .block_on(body::to_bytes(metrics.into_body(), 1 << 20))
        .unwrap();
    assert!(String::from_utf8_lossy(&page).contains("# TYPE "));
    let health = routed(&mut router, "GET", "/v1/health");
    let body = runtime()
        .block_on(body::to_bytes(health.into_body(), 1 << 20))
        .unwrap();
    let health: Health = serde_json::from_slice(&body).unwrap();
    assert_eq!(health.stalls, 0);
}

//! A running daemon, whose clients send it whatever they like, and whose predecessors left whatever they did: it answers
//! in one line, keeps its memory, and goes on or begins anew.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use serde_json::Value;
use tracker_ebpf::abi::map;
use tracker_lab::daemon::{Config, LATER, lines};
use tracker_lab::pace::slow;
use tracker_lab::random::{Random, Rounds, Tally};
use tracker_lab::{Lab, Tracker, http, netns};
use tracker_user::datapath::mmap::Mapped;

/// Requests of one round.
const REQUESTS: u64 = 200;
/// What a client may ask, as far as the body; none of it touches the service that is watched.
const CORPUS: [(&str, &str); 17] = [
    ("GET /v1/status", ""),
    ("GET /v1/status?service=fw-1&trackers=false", ""),
    ("GET /v1/events", ""),
    ("GET /v1/events?since=1&follow=true&service=fw-9", ""),
    ("GET /v1/services", ""),
    ("GET /v1/services?service=fw-*", ""),
    ("GET /v1/services/fw-1", ""),
    ("GET /v1/health", ""),
    ("GET /metrics?trackers=fw-1", ""),
    ("GET /v1/openapi.json", ""),
    ("HEAD /v1/status", ""),
    (
        "PUT /v1/services/fw-9",
        r#"{"endpoint":"10.9.0.7","behind":["10.20.0.77"]}"#,
    ),
    (
        "PUT /v1/services/fw-8?dry_run=false",
        r#"{"name":"fw-8","endpoint":"10.9.0.8","behind":["10.20.0.8"],"probe":"udp","port":7,"interval":"1h","timeout":"1ms","fall":60,"rise":1,"payload":64,"returns":["eth1"],"policy":1}"#,
    ),
    (
        "PUT /v1/services",
        r#"{"services":[{"name":"fw-7","member":[{"role":"active","endpoint":"10.9.0.2","tracker":[{"behind":"10.20.0.9","probe":"tcp","port":443}]}]}]}"#,
    ),
    ("PUT /v1/services?dry_run=true", r#"{"services":[]}"#),
    ("DELETE /v1/services/fw-9", ""),
    ("DELETE /v1/services/fw-8", ""),
];
/// More than a request's head may have.
const LONG: usize = 200_000;

/// A request as its bytes: the head, which says how long the body is, unless that is damaged too.
fn whole(line: &str, body: &[u8]) -> Vec<u8> {
    let (method, path) = line.split_once(' ').unwrap_or((line, "/"));
    http::request(method, path, &[], body)
}

fn request(random: &mut Random) -> Vec<u8> {
    let (line, body) = *random.pick(&CORPUS);
    let mut bytes = match random.below(12) {
        0 => {
            let len = random.below(300);
            return random.bytes(len);
        }
        1 => {
            let byte = *random.pick(b"[{\"0 x");
            let len = random.below(LONG);
            whole("PUT /v1/services/fw-9", &vec![byte; len])
        }
        2 => {
            // A name, an address, a number that is too long to be one.
            let long = "9".repeat(random.below(LONG));
            let body = body.replacen("10.9.0", &long, 1).replacen("64", &long, 1);
            let line = match random.is_one_in(2) {
                true => line.replacen("fw-9", &long, 1),
                false => line.to_owned(),
            };
            whole(&line, body.as_bytes())
        }
        // A body that is damaged within, and arrives whole.
        3..=6 => {
            let mut body = body.as_bytes().to_vec();
            for _ in 0..*random.pick(&[0, 1, 1, 2, 5]) {
                let (_, other) = *random.pick(&CORPUS);
                random.damage(&mut body, other.as_bytes());
            }
            return whole(line, &body);
        }
        _ => whole(line, body.as_bytes()),
    };
    for _ in 0..*random.pick(&[0, 0, 1, 1, 2, 5]) {
        let (line, body) = *random.pick(&CORPUS);
        random.damage(&mut bytes, &whole(line, body.as_bytes()));
    }
    bytes
}

/// Sends a request and takes the answer; a request that may be answered for ever is given up after a short time.
fn ask(socket: &Path, request: &[u8]) -> Result<Vec<u8>> {
    let goes_on = request.windows(6).any(|part| part == b"follow");
    let patience = match goes_on {
        true => Duration::from_millis(20),
        false => LATER,
    };
    let mut stream = http::connect(socket, patience)?;
    // A daemon that has seen enough closes the connection.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            ensure!(goes_on, "no end of the answer: {answer:?}");
        }
        // What it did not read is reset.
        Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
        _ => {}
    }
    Ok(answer)
}

/// Resident memory in KiB, and open files.
fn resources(pid: u32) -> Result<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|rest| rest.split_whitespace().next());
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((resident.context("VmRSS")?.parse()?, files))
}

/// Takes off what requests added.
fn remove_added(tracker: &Tracker) -> Result<()> {
    let list = tracker.services()?;
    for service in list["services"].as_array().context("services")? {
        if service["owner"] == "api" {
            let name = service["name"].as_str().context("a name")?;
            let name: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let (status, said) = tracker.http("DELETE", &format!("/v1/services/{name}"), "")?;
            ensure!(status == 204, "{status} {said}");
        }
    }
    Ok(())
}

/// What came of a request: an answer of HTTP that is no fault of the daemon's, or nothing at all.
fn judge(answer: &[u8]) -> Result<&'static str> {
    if answer.is_empty() {
        return Ok("nothing said");
    }
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context(text.clone().into_owned())?;
    let status: u16 = head
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .context(head.to_owned())?;
    match status {
        200..300 => Ok("answered"),
        400..500 => {
            // What is not HTTP is refused without a text.
            if !body.is_empty() && !head.contains("content-length: 0") {
                // What follows a request may be answered too.
                let mut values = serde_json::Deserializer::from_str(body).into_iter::<Value>();
                let problem = values.next().context("a problem")?;
                let problem = problem.context(text.clone().into_owned())?;
                let why = problem["detail"].as_str().context("a detail")?;
                ensure!(why.len() > 10 && !why.contains('\n'), "{why}");
                ensure!(why.len() < 20_000, "{} bytes of detail: {why}", why.len());
            }
            Ok("refused")
        }
        _ => bail!("{text}"),
    }
}

#[test]
fn fuzz_requests_to_a_running_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("room = 8");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let pid = tracker.pid()?;
    let mut first = None;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(4);
    while let Some(mut round) = rounds.next() {
        for _ in 0..REQUESTS {
            let request = request(&mut round.random);
            let shown =
                || String::from_utf8_lossy(&request[..request.len().min(2_000)]).into_owned();
            let answer = ask(&tracker.socket(), &request).with_context(shown)?;
            let outcome = judge(&answer).with_context(shown)?;
            tally.add(outcome);
        }
        remove_added(&tracker)?;
        // The first round finds out how much it is; none after that needs much more.
        let (resident, files) = resources(pid)?;
        let (resident_first, files_first) = *first.get_or_insert((resident, files));
        assert!(
            resident < resident_first + (16 << 10),
            "{resident_first} KiB, then {resident}"
        );
        assert!(
            files <= files_first + 8,
            "{files_first} files, then {files}"
        );
        rounds.took(REQUESTS);
    }
    rounds.sum_up("requests", "requests", &tally);
    tally.require(&["answered", "refused"], 20);
    assert_eq!(tracker.pid()?, pid, "the daemon is the same");
    tracker.wait_alive(LATER, "fw-1")?;
    assert_eq!(
        tracker.history("fw-1")?.len(),
        1,
        "nobody's verdict changed"
    );
    Ok(())
}

/// Requests for metrics: those of a scraper, or of any other program that found the port.
#[test]
fn fuzz_requests_for_metrics() -> Result<()> {
    const CORPUS: [&str; 5] = [
        "GET /metrics HTTP/1.1\r\nHost: hub-1:9469\r\nAccept: text/plain\r\n\r\n",
        "HEAD / HTTP/1.0\r\n\r\n",
        "GET /metrics?name=x HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "GET http://localhost:9469/metrics HTTP/1.1\n\n",
    ];
    let lab = Lab::new()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("metrics = \"127.0.0.1:9469\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let pid = tracker.pid()?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(4);
    lab.hub.enter(|| {
        while let Some(mut round) = rounds.next() {
            for _ in 0..REQUESTS {
                let random = &mut round.random;
                let mut request = random.pick(&CORPUS).as_bytes().to_vec();
                for _ in 0..*random.pick(&[0, 0, 1, 2, 8]) {
                    random.damage(&mut request, CORPUS[0].as_bytes());
                }
                if random.is_one_in(16) {
                    let len = random.below(LONG);
                    request.extend(vec![b'x'; len]);
                }
                let mut stream = TcpStream::connect("127.0.0.1:9469")?;
                stream.set_read_timeout(Some(slow(LATER)))?;
                let _ = stream.write_all(&request);
                let _ = stream.shutdown(Shutdown::Write);
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer) {
                    Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                        let request = String::from_utf8_lossy(&request).into_owned();
                        return Err(error).context(request);
                    }
                    _ => {}
                }
                let status = answer.get(..12).map(String::from_utf8_lossy);
                tally.add(status.unwrap_or_default());
            }
            rounds.took(REQUESTS);
        }
        Ok(())
    })?;
    rounds.sum_up("metrics", "requests", &tally);
    // An answer is of the version that the request was of.
    tally.require(&["HTTP/1.1 200", "HTTP/1.0 404"], 30);
    assert_eq!(tracker.pid()?, pid, "the daemon is the same");
    tracker.wait_alive(LATER, "fw-1")?;
    assert_eq!(
        tracker.history("fw-1")?.len(),
        1,
        "nobody's verdict changed"
    );
    Ok(())
}

/// What may have happened to what an earlier daemon left.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// Words of the journal are others.
    Journal,
    /// Digits of the journal's text are others.
    Digits,
    /// There is no journal.
    NoJournal,
    /// Entries of this map are others.
    Entries(&'static str),
    /// This map is missing.
    NoMap(&'static str),
    /// This map is one of another kind and size.
    OtherMap(&'static str),
    /// The links are gone.
    NoLinks,
}

fn damage(random: &mut Random, tracker: &Tracker) -> Result<Damage> {
    let maps = [
        map::HUB,
        map::TRACKERS,
        map::PATHS,
        map::STATE,
        map::WINDOWS,
        map::CURSOR,
    ];
    let of_all = *random.pick(&map::ALL);
    let damage = match random.below(10) {
        0 | 1 => Damage::Journal,
        2 | 3 => Damage::Digits,
        4 => Damage::NoJournal,
        5 | 6 => Damage::Entries(maps[random.below(maps.len())]),
        7 => Damage::NoMap(of_all),
        8 => Damage::OtherMap(of_all),
        _ => Damage::NoLinks,
    };
    let pins = tracker.pins();
    let journal = pins.join("journal");
    match damage {
        Damage::Journal => {
            let words = Mapped::<u64>::new(&MapData::from_pin(journal)?)?;
            for _ in 0..1 + random.below(8) {
                let at = match random.is_one_in(4) {
                    true => random.below(2),
                    false => random.below(400),
                };
                let value = *random.pick(&[0, 1, 1 << 20, u64::MAX, 0x2020_2020_2020_2020]);
                let word = words.at(at as u32).context("a word")?;
                // SAFETY: a valid element of a map that no process uses now.
                unsafe {
                    word.write_volatile(if random.is_one_in(2) {
                        random.word()
                    } else {
                        value
                    })
                };
            }
        }
        Damage::Digits => {
            let words = Mapped::<u64>::new(&MapData::from_pin(journal)?)?;
            for at in 2..words.len() {
                let Some(word) = words.at(at) else { break };
                // SAFETY: a valid element of a map that no process uses now.
                let mut bytes = unsafe { word.read_volatile() }.to_ne_bytes();
                for byte in bytes.iter_mut().filter(|byte| byte.is_ascii_digit()) {
                    if random.is_one_in(30) {
                        *byte = *random.pick(b"0019");
                    }
                }
                // SAFETY: a valid element of a map that no process uses now.
                unsafe { word.write_volatile(u64::from_ne_bytes(bytes)) };
            }
        }
        Damage::NoJournal => fs::remove_file(journal)?,
        Damage::Entries(name) => {
            let pin = pins.join("maps").join(name);
            let info = MapData::from_pin(&pin)?.info()?;
            for _ in 0..1 + random.below(4) {
                let key = random.below(info.max_entries().min(4) as usize) as u32;
                let value = random.bytes(info.value_size() as usize);
                update(&pin, key, &value)?;
            }
        }
        Damage::NoMap(name) => fs::remove_file(pins.join("maps").join(name))?,
        Damage::OtherMap(name) => {
            let pin = pins.join("maps").join(name);
            fs::remove_file(&pin)?;
            let kind = *random.pick(&["array", "hash", "lru_hash", "percpu_array"]);
            let size = random.pick(&["4", "8", "24", "64", "256"]).to_string();
            let mut command = Command::new("bpftool");
            command.args(["map", "create"]).arg(&pin);
            command.args([
                "type", kind, "key", "4", "value", &size, "entries", "16", "name", "other",
            ]);
            netns::check(&mut command)?;
        }
        Damage::NoLinks => {
            for link in fs::read_dir(pins.join("links"))?.flatten() {
                fs::remove_file(link.path())?;
            }
        }
    }
    Ok(damage)
}

fn update(pin: &Path, key: u32, value: &[u8]) -> Result<()> {
    let hex = |bytes: &[u8]| -> Vec<String> {
        bytes.iter().map(|byte| format!("0x{byte:02x}")).collect()
    };
    let mut command = Command::new("bpftool");
    command.args(["map", "update", "pinned"]).arg(pin);
    command.args(["key", "hex"]).args(hex(&key.to_ne_bytes()));
    command.args(["value", "hex"]).args(hex(value));
    netns::check(&mut command)?;
    Ok(())
}

#[test]
fn fuzz_what_an_earlier_daemon_left() -> Result<()> {
    let lab = Lab::new()?;
    let clean = lab.hub.look()?;
    let config = Config::new(lab.service().toml("fw-1")).hub("room = 8");
    let mut tracker = Tracker::start(&lab.hub, config)?;
    tracker
        .service("add fw-2 --endpoint 10.9.0.2 --behind 10.20.0.9 --interval 50ms --payload 64")?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(12);
    while let Some(mut round) = rounds.next() {
        tracker.wait_verdict("fw-1", "up", "replied")?;
        tracker.kill()?;
        let before = tracker.log().len();
        let damage = damage(&mut round.random, &tracker)?;
        let log = |tracker: &Tracker| tracker.log()[before..].to_owned();
        tracker
            .run()
            .with_context(|| format!("{damage:?}: {}", log(&tracker)))?;
        let alive = tracker
            .wait_alive(LATER, "fw-1")
            .and_then(|_| tracker.wait_verdict_within(LATER, "fw-1", "up", "replied"));
        alive.with_context(|| format!("{damage:?}: {}", log(&tracker)))?;
        let log = log(&tracker);
        assert!(!log.contains("panicked"), "{damage:?}: {log}");
        for line in log.lines() {
            let plain = line.replace('\u{1b}', "");
            assert!(!plain.contains(char::is_control), "{damage:?}: {line:?}");
        }
        // Numbers have no gap, wherever they begin.
        let events = tracker.events()?;
        let is_next = |pair: &[tracker_lab::Event]| pair[1].seq == pair[0].seq + 1;
        assert!(
            events.windows(2).all(is_next),
            "{damage:?}: {}",
            lines(&events)
        );
        let kind = format!("{damage:?}");
        tally.add(kind.split('(').next().unwrap_or_default());
        rounds.took(1);
    }
    rounds.sum_up("successors", "restarts", &tally);
    tracker.terminate()?;
    assert_eq!(lab.hub.look()?, clean);
    assert!(!tracker.pins().exists(), "pins are left");
    Ok(())
}

//! `cargo xtask bench`: what it costs, how fast it is, how soon it finds out; against fping on the same
//! targets in the same run, because these are ratios that hold and absolute times that wander.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tracker_lab::{Config, Lab, Tracker, daemon::SOON};

use crate::sh;

/// Behind addresses of the throughput runs: a /16 without its first and last.
const TARGETS: u32 = 65_534;
/// How long throughput is measured.
const WINDOW: Duration = Duration::from_secs(10);
/// Behind addresses of the detection runs.
const TRACKERS: u32 = 1_000;
const INTERVAL_MS: u64 = 10;
const TIMEOUT_MS: u64 = 20;
const FALL: u64 = 3;
/// Breaks whose detection is timed.
const BREAKS: u32 = 5;
/// Services of the history's run, and how long it is measured: longer than from one write to the disk to the next.
const SERVICES: u32 = 10_000;
const HISTORY: Duration = Duration::from_secs(70);
/// How long the hub runs beside full load of all processors.
const LOAD: Duration = Duration::from_secs(60);

/// The figures, with the keys of the contract; what was not measured is null.
#[derive(Default, Serialize)]
struct Figures {
    empty_ns: Option<f64>,
    foreign_ns: Option<f64>,
    reply_ns: Option<f64>,
    send_ns: Option<f64>,
    fping_rps: Option<f64>,
    tracker_rps: Option<f64>,
    fping_cpu_us: Option<f64>,
    tracker_cpu_us: Option<f64>,
    loop_rps: Option<f64>,
    reflector_fping_rps: Option<f64>,
    reflector_tracker_rps: Option<f64>,
    detect_p50_us: Option<u64>,
    detect_p99_us: Option<u64>,
    false_transitions: Option<u64>,
    kernel_bytes_per_tracker: Option<u64>,
    rss_mb: Option<f64>,
    history_cpu_percent: Option<f64>,
    histories_per_s: Option<f64>,
    /// Why a figure is null, by its key.
    missing: BTreeMap<&'static str, String>,
}

impl Figures {
    /// Records why these figures were not measured, and says so. The other figures are still measured: one of them
    /// that fails on a busy machine says nothing of the rest.
    fn miss(&mut self, json: bool, keys: &[&'static str], error: &anyhow::Error) {
        say(
            json,
            &format!("  {}: not measured: {error:#}", keys.join(", ")),
        );
        for key in keys {
            self.missing.insert(key, format!("{error:#}"));
        }
    }

    /// Whether any figure was measured.
    fn has_any(&self) -> bool {
        let object = serde_json::to_value(self).unwrap_or_default();
        object
            .as_object()
            .is_some_and(|figures| figures.values().any(Value::is_number))
    }
}

/// Runs the bench on the release binary `tracker`.
///
/// # Errors
/// If not one figure could be measured. A single figure that fails is null, with its reason in `missing`.
pub fn run(json: bool, tracker: &Path) -> Result<()> {
    let mut figures = Figures::default();
    say(json, "program time (BPF_PROG_TEST_RUN), ns a packet");
    if let Err(error) = programs(&mut figures) {
        let keys = ["empty_ns", "foreign_ns", "reply_ns", "send_ns"];
        figures.miss(json, &keys, &error);
    }
    show(json, "  empty", figures.empty_ns);
    show(json, "  foreign", figures.foreign_ns);
    show(json, "  counted reply", figures.reply_ns);
    show(json, "  send, live frames to a veth", figures.send_ns);
    say(
        json,
        "round trips over hub, firewall and host, 65,534 targets",
    );
    match fping(Forwarding::Everywhere) {
        Ok((rate, _)) => figures.fping_rps = Some(rate.round()),
        Err(error) => figures.miss(json, &["fping_rps"], &error),
    }
    show(json, "  fping, a second", figures.fping_rps);
    match throughput(tracker, Forwarding::Everywhere) {
        Ok((rate, _)) => figures.tracker_rps = Some(rate.round()),
        Err(error) => figures.miss(json, &["tracker_rps"], &error),
    }
    show(json, "  tracker, a second", figures.tracker_rps);
    match fping(Forwarding::BesideHub) {
        Ok((_, cpu_us)) => figures.fping_cpu_us = Some(round(cpu_us)),
        Err(error) => figures.miss(json, &["fping_cpu_us"], &error),
    }
    show(json, "  fping, CPU us each", figures.fping_cpu_us);
    match throughput(tracker, Forwarding::BesideHub) {
        Ok((_, cpu_us)) => figures.tracker_cpu_us = Some(round(cpu_us)),
        Err(error) => figures.miss(json, &["tracker_cpu_us"], &error),
    }
    show(json, "  tracker, CPU us each", figures.tracker_cpu_us);
    say(
        json,
        "detection, 1,000 trackers, interval 10 ms, timeout 20 ms, fall 3",
    );
    detection(&mut figures, tracker, json);
    say(json, "history, 10,000 services, a probe a second");
    match history(tracker) {
        Ok(percent) => figures.history_cpu_percent = Some(round(percent)),
        Err(error) => figures.miss(json, &["history_cpu_percent"], &error),
    }
    show(
        json,
        "  its thread, percent of a processor",
        figures.history_cpu_percent,
    );
    say(json, "simulated histories of one tracker, checked");
    match cargo_bench("tracker-user", "histories") {
        Ok(found) => figures.histories_per_s = found["histories_per_s"].as_f64(),
        Err(error) => figures.miss(json, &["histories_per_s"], &error),
    }
    show(json, "  a second of one processor", figures.histories_per_s);
    for key in ["loop_rps", "reflector_fping_rps", "reflector_tracker_rps"] {
        let reason = "this bench has no XDP reflector yet".to_owned();
        figures.missing.insert(key, reason);
    }
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    ensure!(figures.has_any(), "no figure could be measured");
    Ok(())
}

fn say(json: bool, line: &str) {
    if json {
        eprintln!("{line}");
    } else {
        println!("{line}");
    }
}

fn show(json: bool, what: &str, figure: Option<impl std::fmt::Display>) {
    if let Some(figure) = figure {
        say(json, &format!("{what}: {figure}"));
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The figures of a bench of the workspace, which prints one JSON object last.
fn cargo_bench(package: &str, name: &str) -> Result<Value> {
    let mut command = sh::cargo();
    command.args(["bench", "--locked", "--quiet"]);
    command.args(["--package", package, "--bench", name]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo bench")?;
    ensure!(
        output.status.success(),
        "the bench `{name}` failed; its message is above"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .rfind(|line| line.starts_with('{'))
        .context("no figures from cargo bench")?;
    Ok(serde_json::from_str(line)?)
}

/// The programs' own time, measured by a bench that links the eBPF object.
fn programs(figures: &mut Figures) -> Result<()> {
    let found = cargo_bench("tracker-tests", "programs")?;
    figures.empty_ns = found["empty_ns"].as_f64();
    figures.foreign_ns = found["foreign_ns"].as_f64();
    figures.reply_ns = found["reply_ns"].as_f64();
    figures.send_ns = found["send_ns"].as_f64();
    Ok(())
}

/// Which processors forward and answer. Namespaces share the machine, and a packet that is sent is
/// forwarded and answered in the sender's own context unless told otherwise; firewall and host are told,
/// by RPS, as a network card with several queues would.
#[derive(Clone, Copy, PartialEq)]
enum Forwarding {
    /// On all processors: the path, which is the same for each program compared, is as fast as the machine.
    Everywhere,
    /// All but the first, to which the hub's process is bound: what that process uses is the hub's own.
    BesideHub,
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get().min(63))
}

/// A hub, a firewall and a host that answers for all targets.
fn throughput_lab(path: Forwarding) -> Result<Lab> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.answer_for_all()?;
    let all = (1u64 << processors()) - 1;
    let mask = match path {
        Forwarding::BesideHub if processors() > 1 => all & !1,
        Forwarding::Everywhere | Forwarding::BesideHub => all,
    };
    for (namespace, device) in [
        (&service.firewall, "eth0"),
        (&service.firewall, "eth1"),
        (&service.host, "eth0"),
    ] {
        // `ip netns exec` for once: it mounts the namespace's own /sys, where the switch is.
        let write = format!("echo {mask:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus");
        sh::run(Command::new("ip").args(["netns", "exec", namespace.name(), "sh", "-c", &write]))?;
    }
    Ok(lab)
}

/// One round of fping over the path; it needs the route that Tracker does not. Round trips a second, and
/// microseconds of processor time each.
fn fping_once(path: Forwarding) -> Result<Option<(f64, f64)>> {
    let lab = throughput_lab(path)?;
    let endpoint = lab.service().endpoint;
    lab.hub
        .ip(&format!("route add 10.20.0.0/16 via {endpoint}\n"))?;
    let mut command = match path {
        Forwarding::Everywhere => lab.hub.command("fping"),
        Forwarding::BesideHub => {
            let mut command = lab.hub.command("taskset");
            command.args(["--cpu-list", "0", "fping"]);
            command
        }
    };
    // No pause between packets, no retries; one round, because fping 5.1 has 65,535 sequence numbers
    // and keeps each for ten seconds. It ends when the last reply is in.
    command.args(["-q", "-i", "0", "-r", "0", "-t", "1000", "-c", "1"]);
    command.args(["-g", "10.20.0.1", "10.20.255.254"]);
    let before_us = children_cpu_us();
    let begun = Instant::now();
    let output = command
        .output()
        .context("cannot run fping; `cargo xtask setup` installs it")?;
    let elapsed = begun.elapsed();
    let used_us = children_cpu_us() - before_us;
    let text = String::from_utf8_lossy(&output.stderr);
    let received = |line: &str| -> Option<u64> {
        line.split_once("xmt/rcv/%loss = ")?
            .1
            .split('/')
            .nth(1)?
            .parse()
            .ok()
    };
    let replies: u64 = text.lines().filter_map(received).sum();
    let is_whole = replies * 100 >= u64::from(TARGETS) * 99;
    Ok(is_whole.then_some((
        replies as f64 / elapsed.as_secs_f64(),
        used_us as f64 / replies as f64,
    )))
}

/// [`fping_once`] until nearly all replies came: if a busy machine drops some, fping waits for its
/// timeout at the end, which would make it look slower than it is.
fn fping(path: Forwarding) -> Result<(f64, f64)> {
    for _ in 0..5 {
        if let Some(figures) = fping_once(path)? {
            return Ok(figures);
        }
    }
    bail!("in five rounds fping never got nearly all replies; the machine is too busy to measure")
}

/// Processor time of ended children, microseconds.
fn children_cpu_us() -> u64 {
    // SAFETY: the structure is plain data and the call only fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64)
        .sum()
}

/// Processor time of a process so far, microseconds.
fn process_cpu_us(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every architecture that Linux still has.
    Ok(ticks * 10_000)
}

fn behinds(count: u32) -> impl Iterator<Item = std::net::Ipv4Addr> {
    (1..=count).map(|at| std::net::Ipv4Addr::from(0x0a14_0000 + at))
}

fn service_toml(lab: &Lab, count: u32) -> String {
    let service = lab.service();
    let list: Vec<String> = behinds(count).map(|ip| format!("\"{ip}\"")).collect();
    format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [{}]\n",
        service.endpoint,
        service.interface,
        list.join(", ")
    )
}

fn counted(tracker: &Tracker<'_>) -> Result<u64> {
    let output = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(tracker.pins().join("maps/COUNTERS"))
        .output()
        .context("cannot run bpftool")?;
    let dump: Value = serde_json::from_slice(&output.stdout).context("bpftool's JSON")?;
    let cpus = dump[0]["formatted"]["values"]
        .as_array()
        .context("COUNTERS has no values")?;
    Ok(cpus
        .iter()
        .filter_map(|cpu| cpu["value"]["reply_counted"].as_u64())
        .sum())
}

/// The daemon over the same path to the same targets, as [`fping`].
fn throughput(binary: &Path, path: Forwarding) -> Result<(f64, f64)> {
    let lab = throughput_lab(path)?;
    // More than fits if the rate is measured; what fits beside the path if the cost is measured.
    let interval = match path {
        Forwarding::Everywhere => "200ms",
        Forwarding::BesideHub => "1s",
    };
    let config = Config::new(service_toml(&lab, TARGETS))
        .defaults(format!("interval = \"{interval}\"\ntimeout = \"1s\""))
        .binary(binary);
    let tracker = Tracker::start(&lab.hub, config)?;
    let pid = tracker.pid()?;
    if path == Forwarding::BesideHub {
        let pid = pid.to_string();
        let mut bind = Command::new("taskset");
        sh::quiet(bind.args(["--all-tasks", "--cpu-list", "--pid", "0", &pid]))?;
    }
    let patience = Instant::now() + Duration::from_secs(30);
    while counted(&tracker)? < 4 * u64::from(TARGETS) {
        ensure!(
            Instant::now() < patience,
            "replies are too slow: {}",
            tracker.log()
        );
        thread::sleep(Duration::from_millis(100));
    }
    let (replies, cpu_us, begun) = (counted(&tracker)?, process_cpu_us(pid)?, Instant::now());
    thread::sleep(WINDOW);
    let replies = (counted(&tracker)? - replies) as f64;
    let elapsed = begun.elapsed();
    let cpu_us = process_cpu_us(pid)? - cpu_us;
    Ok((replies / elapsed.as_secs_f64(), cpu_us as f64 / replies))
}

/// Wall time of the event of each tracker's turn to `verdict` after event number `since`.
fn turns(tracker: &Tracker<'_>, since: u64, verdict: &str) -> Result<(u64, Vec<Timestamp>)> {
    let output = tracker
        .client(&["events", "--json", "--since", &since.to_string()])
        .output()
        .context("cannot run tracker events")?;
    let mut last = since;
    let mut times = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let event: Value = serde_json::from_str(line)?;
        last = event["seq"].as_u64().context("an event without seq")?;
        if !event["behind"].is_null() && event["to"] == verdict {
            times.push(
                event["time"]
                    .as_str()
                    .context("an event without time")?
                    .parse()?,
            );
        }
    }
    Ok((last, times))
}

/// The firewall's route to what is behind it, changed by an `ip` that already runs: between the break and
/// the reading of the clock is one write to a pipe; starting a command, or `ip_forward`, would take milliseconds.
struct Switch {
    ip: Child,
    gateway: String,
}

impl Switch {
    fn new(lab: &Lab) -> Result<Self> {
        let firewall = &lab.service().firewall;
        let route = firewall.run("ip route show 10.20.0.0/16")?;
        let gateway = route
            .split_whitespace()
            .nth(2)
            .context("the firewall has no such route")?;
        let mut command = firewall.command("ip");
        let ip = command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Self {
            ip,
            gateway: gateway.to_owned(),
        })
    }

    fn set(&mut self, route: &str) -> Result<()> {
        let pipe = self.ip.stdin.as_mut().context("ip has no standard input")?;
        writeln!(pipe, "route replace {route}")?;
        Ok(pipe.flush()?)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Its standard input closes first, which ends it.
        drop(self.ip.stdin.take());
        let _ = self.ip.wait();
    }
}

/// Measures detection, memory and false transitions with one daemon; each is missing on its own.
fn detection(figures: &mut Figures, binary: &Path, json: bool) {
    let keys = [
        "detect_p50_us",
        "detect_p99_us",
        "kernel_bytes_per_tracker",
        "rss_mb",
        "false_transitions",
    ];
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => return figures.miss(json, &keys, &error),
    };
    let tracker = match detection_daemon(&lab, binary) {
        Ok(tracker) => tracker,
        Err(error) => return figures.miss(json, &keys, &error),
    };
    if let Err(error) = detection_times(figures, &lab, &tracker, json) {
        figures.miss(json, &["detect_p50_us", "detect_p99_us"], &error);
    }
    if let Err(error) = memory(figures, &tracker) {
        figures.miss(json, &["kernel_bytes_per_tracker", "rss_mb"], &error);
    }
    show(
        json,
        "  kernel maps, bytes a tracker",
        figures.kernel_bytes_per_tracker,
    );
    show(json, "  daemon, MB resident", figures.rss_mb);
    match transitions_under_load(&tracker) {
        Ok(downs) => figures.false_transitions = Some(downs),
        Err(error) => figures.miss(json, &["false_transitions"], &error),
    }
    show(
        json,
        "  false transitions in a minute of full load",
        figures.false_transitions,
    );
}

/// Starts the daemon of the detection runs.
fn detection_daemon<'lab>(lab: &'lab Lab, binary: &Path) -> Result<Tracker<'lab>> {
    lab.service().answer_for_all()?;
    // Without room for more: what is measured is what a tracker takes, not what is kept free.
    let config = Config::new(service_toml(lab, TRACKERS))
        .hub("room = 0")
        .defaults(format!(
            "interval = \"{INTERVAL_MS}ms\"\ntimeout = \"{TIMEOUT_MS}ms\"\nfall = {FALL}\nrise = 2"
        ))
        .binary(binary);
    Tracker::start(&lab.hub, config)
}

/// Waits until all trackers turned to `verdict` after event number `since`; the last number, and when each turned.
fn all_turn(tracker: &Tracker<'_>, since: u64, verdict: &str) -> Result<(u64, Vec<Timestamp>)> {
    let patience = Instant::now() + SOON;
    loop {
        let (last, times) = turns(tracker, since, verdict)?;
        if times.len() >= TRACKERS as usize {
            return Ok((last, times));
        }
        ensure!(
            Instant::now() < patience,
            "only {} of {TRACKERS} trackers turned {verdict}: {}",
            times.len(),
            tracker.log()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Breaks the service some times and takes the time from each break to each tracker's event.
fn detection_times(
    figures: &mut Figures,
    lab: &Lab,
    tracker: &Tracker<'_>,
    json: bool,
) -> Result<()> {
    let (mut seq, _) = all_turn(tracker, 0, "up")?;
    let mut detections_us = Vec::new();
    let mut switch = Switch::new(lab)?;
    for _ in 0..BREAKS {
        let broken = Timestamp::now();
        switch.set("blackhole 10.20.0.0/16")?;
        let (_, times) = all_turn(tracker, seq, "down")?;
        for time in times.iter().take(TRACKERS as usize) {
            detections_us.push(time.duration_since(broken).as_micros().max(0) as u64);
        }
        switch.set(&format!("10.20.0.0/16 via {}", switch.gateway))?;
        (seq, _) = all_turn(tracker, seq, "up")?;
    }
    detections_us.sort_unstable();
    let at = |percent: usize| {
        detections_us[(detections_us.len() * percent / 100).min(detections_us.len() - 1)]
    };
    (figures.detect_p50_us, figures.detect_p99_us) = (Some(at(50)), Some(at(99)));
    let bound_us = (FALL * INTERVAL_MS + TIMEOUT_MS + 5) * 1_000;
    show(json, "  break to event, median us", figures.detect_p50_us);
    show(
        json,
        &format!("  99th percentile us (promised: {bound_us})"),
        figures.detect_p99_us,
    );
    Ok(())
}

/// Processor time that the thread of the history takes, percent.
fn history(binary: &Path) -> Result<f64> {
    let lab = Lab::new()?;
    let service = lab.service();
    let services = (0..SERVICES).map(|number| {
        format!(
            "[[service]]\nname = \"fw-{number}\"\nendpoint = \"{}\"\nbehind = [\"{}\"]\n",
            service.endpoint, service.behind
        )
    });
    let of = |services: String| {
        Config::new(services)
            .hub(format!("room = {SERVICES}"))
            .defaults("interval = \"1s\"\ntimeout = \"500ms\"")
            .binary(binary)
    };
    // They are added by a reload: the status of so many is broken off while the daemon starts.
    let tracker = Tracker::start(&lab.hub, of(service.toml("first")))?;
    ensure!(
        tracker.reload(of(services.collect()))?,
        "the services were refused: {}",
        tracker.log()
    );
    // Until all have their places.
    thread::sleep(WINDOW);
    let pid = tracker.pid()?;
    let (before_ns, begun) = (thread_cpu_ns(pid, "tracker-history")?, Instant::now());
    thread::sleep(HISTORY);
    let taken_ns = thread_cpu_ns(pid, "tracker-history")? - before_ns;
    Ok(taken_ns as f64 / begun.elapsed().as_nanos() as f64 * 100.0)
}

/// Processor time of a thread so far, nanoseconds.
fn thread_cpu_ns(pid: u32, name: &str) -> Result<u64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            let ran = read("schedstat");
            let ran = ran.split(' ').next().unwrap_or_default();
            return ran.parse().context("schedstat of a thread");
        }
    }
    bail!("process {pid} has no thread {name}")
}

/// How many trackers of a healthy service turn down while all processors are busy.
fn transitions_under_load(tracker: &Tracker<'_>) -> Result<u64> {
    let (seq, _) = turns(tracker, 0, "down")?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        thread::sleep(LOAD);
        stop.store(true, Ordering::Relaxed);
    });
    let (_, downs) = turns(tracker, seq, "down")?;
    Ok(downs.len() as u64)
}

/// What the kernel charges for the instance's maps, and the daemon's resident memory.
fn memory(figures: &mut Figures, tracker: &Tracker<'_>) -> Result<()> {
    let mut bytes = 0;
    for entry in fs::read_dir(tracker.pins().join("maps"))?.flatten() {
        let output = Command::new("bpftool")
            .args(["-j", "map", "show", "pinned"])
            .arg(entry.path())
            .output()
            .context("cannot run bpftool")?;
        let map: Value = serde_json::from_slice(&output.stdout).context("bpftool's JSON")?;
        bytes += map["bytes_memlock"]
            .as_u64()
            .context("a map without memlock")?;
    }
    figures.kernel_bytes_per_tracker = Some(bytes / u64::from(TRACKERS));
    let status = fs::read_to_string(format!("/proc/{}/status", tracker.pid()?))?;
    let kilobytes: Option<f64> = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    figures.rss_mb = kilobytes.map(|kilobytes| round(kilobytes / 1024.0));
    Ok(())
}

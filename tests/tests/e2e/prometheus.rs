//! The metrics before a real Prometheus: it takes them in both formats, the shipped rules fire, and every query of the shipped
//! dashboard is answered.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tracker_lab::{
    Config, Lab, Tracker,
    daemon::{LATER, SOON},
    netns,
    pace::slow,
};

const METRICS: &str = "metrics = \"127.0.0.1:9469\"\n";

/// Where Prometheus and promtool are; `cargo xtask test` unpacks them.
fn tools() -> Option<PathBuf> {
    let tools = std::env::var_os("TRACKER_PROMETHEUS").map(PathBuf::from);
    if tools.is_none() {
        tracker_lab::skip::report(
            "prometheus",
            "this kernel has no Prometheus beside it (TRACKER_PROMETHEUS is not set)",
        );
    }
    tools
}

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist")
}

/// What promtool prints of a page, on both outputs; it must end well.
fn lint(tools: &Path, page: &str) -> Result<String> {
    let mut child = Command::new(tools.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("its input")?
        .write_all(page.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{}: {said}\n{page}", output.status);
    Ok(said)
}

#[test]
fn the_shipped_rules_fire_as_their_tests_say() -> Result<()> {
    let Some(tools) = tools() else { return Ok(()) };
    let rules = dist().join("prometheus");
    for words in [
        ["check", "rules", "tracker.rules.yml"],
        ["test", "rules", "tracker.rules.test.yml"],
    ] {
        netns::check(
            Command::new(tools.join("promtool"))
                .args(words)
                .current_dir(&rules),
        )?;
    }
    Ok(())
}

#[test]
fn promtool_has_nothing_to_say_whatever_names_are() -> Result<()> {
    let Some(tools) = tools() else { return Ok(()) };
    let lab = Lab::new()?;
    let tracker = Tracker::start(
        &lab.hub,
        Config::new(lab.service().toml("fw-1")).hub(METRICS),
    )?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let nasty = "a\"b\\c{}=,é";
    let add = [
        "service",
        "add",
        nasty,
        "--endpoint",
        "10.9.0.2",
        "--behind",
        "10.20.0.9",
    ];
    netns::check(&mut tracker.client(&add))?;
    tracker.service("set fw-1 --state maintenance")?;
    let page = lab
        .hub
        .run("curl -sf http://127.0.0.1:9469/metrics?trackers=*")?;
    assert_eq!(lint(&tools, &page)?, "");
    let label = r#"service="a\"b\\c{}=,é""#;
    assert!(
        page.contains(&format!("tracker_service_up{{{label}}} ")),
        "{page}"
    );
    assert!(
        page.contains(&format!("tracker_sent_total{{{label},")),
        "{page}"
    );
    assert!(
        page.contains("tracker_admin{service=\"fw-1\",member=\"\",state=\"maintenance\"} 1\n"),
        "{page}"
    );
    // Without being asked for, trackers have no series; those of a service that is gone go.
    let page = lab.hub.run("curl -sf http://127.0.0.1:9469/metrics")?;
    assert!(!page.contains("behind=") && page.contains(label), "{page}");
    netns::check(&mut tracker.client(&["service", "remove", nasty]))?;
    let page = lab
        .hub
        .run("curl -sf http://127.0.0.1:9469/metrics?trackers=*")?;
    assert!(!page.contains(label), "{page}");
    Ok(())
}

/// A Prometheus in the hub's namespace, which ends with this.
struct Prometheus<'l> {
    lab: &'l Lab,
    child: Child,
    directory: TempDir,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'l> Prometheus<'l> {
    fn start(lab: &'l Lab, tools: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let rules = dist().join("prometheus/tracker.rules.yml");
        let rules = fs::canonicalize(rules)?;
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [{}]\nscrape_configs:\n\
             - job_name: tracker\n  static_configs: [{{targets: ['127.0.0.1:9469']}}]\n",
            rules.display()
        );
        fs::write(directory.path().join("prometheus.yml"), config)?;
        let log = fs::File::create(directory.path().join("log"))?;
        let mut command = lab
            .hub
            .command_that_dies_of(Signal::SIGKILL, tools.join("prometheus"));
        command
            .arg(format!(
                "--config.file={}",
                directory.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg("--web.listen-address=127.0.0.1:9090")
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("start Prometheus")?;
        Ok(Self {
            lab,
            child,
            directory,
        })
    }

    fn get(&self, path: &str, query: Option<&str>) -> Result<Value> {
        let mut command = self.lab.hub.command("curl");
        command.args([
            "-s",
            "-m",
            "10",
            "-G",
            &format!("http://127.0.0.1:9090{path}"),
        ]);
        if let Some(query) = query {
            command
                .arg("--data-urlencode")
                .arg(format!("query={query}"));
        }
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("{path} {query:?}: {text:?}"))
    }

    /// Waits until `is` holds of the first value that a query has.
    fn wait(&self, query: &str, is: impl Fn(f64) -> bool) -> Result<()> {
        let end = Instant::now() + slow(LATER);
        loop {
            let answer = self.get("/api/v1/query", Some(query));
            let value = answer
                .as_ref()
                .ok()
                .and_then(|answer| answer["data"]["result"][0]["value"][1].as_str());
            if value.and_then(|value| value.parse().ok()).is_some_and(&is) {
                return Ok(());
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.directory.path().join("log"))?;
                bail!("waited in vain for {query}: {answer:?}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn a_real_prometheus_scrapes_alerts_and_answers_the_dashboard() -> Result<()> {
    let Some(tools) = tools() else { return Ok(()) };
    let lab = Lab::new()?;
    let chain = "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\"]\n";
    let text = format!("{}{chain}", lab.service().toml("fw-1"));
    let tracker = Tracker::start(&lab.hub, Config::new(text).hub(METRICS))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let prometheus = Prometheus::start(&lab, &tools)?;
    prometheus.wait("tracker_service_up{service=\"fw-1\"}", |value| value == 1.0)?;
    // It was offered OpenMetrics, and took it.
    let targets = prometheus.get("/api/v1/targets", None)?;
    assert_eq!(
        targets["data"]["activeTargets"][0]["health"], "up",
        "{targets}"
    );
    let metadata = prometheus.get("/api/v1/metadata", None)?;
    assert_eq!(
        metadata["data"]["tracker_member_sent"][0]["type"], "counter",
        "{metadata}"
    );

    lab.service().break_forwarding()?;
    tracker.wait_verdict_within(SOON, "fw-1", "down", "no-reply")?;
    prometheus.wait("tracker_service_up{service=\"fw-1\"}", |value| value == 0.0)?;
    prometheus.wait(
        "ALERTS{alertname=\"TrackerServiceDown\",alertstate=\"firing\",service=\"fw-1\"}",
        |value| value == 1.0,
    )?;
    prometheus.wait(
        "tracker_service_transitions_total{verdict=\"down\",cause=\"no-reply\"}",
        |value| value == 1.0,
    )?;

    let dashboard = fs::read_to_string(dist().join("grafana/tracker.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let mut count = 0;
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            let query = target["expr"].as_str().context("a query")?;
            let query = query
                .replace("$__rate_interval", "10s")
                .replace("$job", "tracker")
                .replace("$instance", ".*")
                .replace("$service", ".*");
            let answer = prometheus.get("/api/v1/query", Some(&query))?;
            assert_eq!(answer["status"], "success", "{query}: {answer}");
            let is_empty = answer["data"]["result"]
                .as_array()
                .is_none_or(Vec::is_empty);
            // No operator imposes anything here.
            assert_eq!(
                is_empty,
                query.starts_with("tracker_admin{"),
                "{query}: {answer}"
            );
            count += 1;
        }
    }
    assert!(count >= 20, "{count} queries");

    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    prometheus.wait(
        "count(ALERTS{alertname=\"TrackerServiceDown\"}) or vector(0)",
        |value| value == 0.0,
    )?;
    Ok(())
}

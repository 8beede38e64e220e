//! The daemon under test, spoken to through its command line and its API.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::netns::{BPFFS, Namespace, ensure_bpffs};
use crate::pace::{slow, slow_config};
use crate::status::{Event, Status};
use crate::{http, interrupt};

/// How long anything that should happen at once may take on a machine that is busy with other tests. As all times of
/// tests, it is stretched if the machine is slow: see [`crate::pace`].
pub const SOON: Duration = Duration::from_secs(10);
/// How long what waits for the kernel's own timers (a neighbour entry going stale) may take.
pub const LATER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Where the binary under test is: `TRACKER_BIN`, else the release build of this workspace.
#[must_use]
pub fn binary() -> PathBuf {
    std::env::var_os("TRACKER_BIN").map_or_else(
        || {
            let here = Path::new(env!("CARGO_MANIFEST_DIR"));
            here.parent().unwrap_or(here).join("target/release/tracker")
        },
        PathBuf::from,
    )
}

/// A config for [`Tracker::start`]: the services, and what differs from the defaults of tests (20 ms interval, 200 ms
/// timeout, native XDP).
#[derive(Debug, Clone)]
pub struct Config {
    services: String,
    mode: String,
    hub: String,
    defaults: String,
    binary: PathBuf,
    environment: Vec<(String, String)>,
}

impl Config {
    /// Services (and chains) in TOML.
    #[must_use]
    pub fn new(services: impl Into<String>) -> Self {
        Self {
            services: services.into(),
            // `auto` takes TC on each veth: tests would hardly run the XDP programs.
            mode: "xdp-native".into(),
            hub: String::new(),
            defaults: "interval = \"20ms\"\ntimeout = \"200ms\"".into(),
            binary: binary(),
            environment: Vec::new(),
        }
    }

    /// One more variable in the daemon's environment.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Another `hub.mode` than native XDP.
    #[must_use]
    pub fn mode(mut self, mode: impl Into<String>) -> Self {
        self.mode = mode.into();
        self
    }

    /// More lines for `[hub]`, which has name, instance, socket and mode already.
    #[must_use]
    pub fn hub(mut self, lines: impl Into<String>) -> Self {
        self.hub = lines.into();
        self
    }

    /// The lines of `[defaults]`, instead of the usual ones.
    #[must_use]
    pub fn defaults(mut self, lines: impl Into<String>) -> Self {
        self.defaults = lines.into();
        self
    }

    /// Another binary than [`binary`].
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }
}

impl From<&String> for Config {
    fn from(services: &String) -> Self {
        Self::new(services)
    }
}

impl From<&str> for Config {
    fn from(services: &str) -> Self {
        Self::new(services)
    }
}

impl From<&Config> for Config {
    fn from(config: &Config) -> Self {
        config.clone()
    }
}

/// A running daemon; dropped, it is stopped and everything it made is removed.
#[derive(Debug)]
pub struct Tracker<'lab> {
    hub: &'lab Namespace,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    instance: String,
    directory: TempDir,
    child: Option<Child>,
    keep: bool,
}

impl<'lab> Tracker<'lab> {
    /// Writes the config, starts the daemon on the hub and waits until it answers.
    ///
    /// # Errors
    /// When it does not start or does not answer; the message has its log.
    pub fn start(hub: &'lab Namespace, config: impl Into<Config>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        ensure_bpffs()?;
        let config = config.into();
        ensure!(
            config.binary.is_file(),
            "find the daemon at {}: no such file; build it (cargo xtask build) or set TRACKER_BIN",
            config.binary.display()
        );
        let owner = hub.name().trim_end_matches("-hub");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut tracker = Self {
            hub,
            binary: config.binary.clone(),
            environment: config.environment.clone(),
            instance: format!("{owner}-{number}"),
            directory: tempfile::tempdir().context("make a temporary directory")?,
            child: None,
            keep: false,
        };
        tracker.write_config(&config)?;
        tracker.run()?;
        Ok(tracker)
    }

    /// Gives the next daemon another config.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, config: impl Into<Config>) -> Result<()> {
        self.write_config(&config.into())
    }

    /// Has the next daemon started with or without `--keep`.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    fn write_config(&self, config: &Config) -> Result<()> {
        let is_in_hub = config.hub.lines().any(|line| line.starts_with("mode"));
        let mode = match is_in_hub {
            true => String::new(),
            false => format!("mode = \"{}\"", config.mode),
        };
        // Builds before this one do not know the key.
        let is_new = self.binary == binary() && !config.hub.contains("state =");
        let state = match is_new {
            true => format!("state = \"{}\"", self.state().display()),
            false => String::new(),
        };
        let text = format!(
            "[hub]\nname = \"hub-1\"\ninstance = \"{}\"\nsocket = \"{}\"\n{state}\n{}\n{}\n[defaults]\n{}\n{}",
            self.instance,
            self.socket().display(),
            mode,
            config.hub,
            config.defaults,
            config.services
        );
        fs::write(self.config(), slow_config(&text)).context("write the config")
    }

    /// Gives the daemon another config by SIGHUP and waits until it says what came of it: true if it took it.
    ///
    /// # Errors
    /// When it says nothing soon.
    pub fn reload(&self, config: impl Into<Config>) -> Result<bool> {
        let said = |what: &str| self.log().matches(what).count();
        let [taken, refused] = ["reloaded, watching", "not reloaded"];
        let before = (said(taken), said(refused));
        self.write_config(&config.into())?;
        self.signal(Signal::SIGHUP)?;
        let deadline = Instant::now() + slow(SOON);
        while Instant::now() < deadline {
            interrupt::check()?;
            match (said(taken) > before.0, said(refused) > before.1) {
                (true, _) => return Ok(true),
                (_, true) => return Ok(false),
                _ => sleep(POLL),
            }
        }
        bail!("wait for the reload; the daemon's log:\n{}", self.log())
    }

    /// Runs `tracker service` with these words; returns what it prints.
    ///
    /// # Errors
    /// When it is refused.
    pub fn service(&self, words: &str) -> Result<String> {
        let words: Vec<_> = words.split_whitespace().collect();
        let output = crate::netns::check(&mut self.client(&[&["service"], &words[..]].concat()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `tracker service` with these words, which must be refused with exit code 1 and one line; returns the line.
    ///
    /// # Errors
    /// When it is not refused like that.
    pub fn service_refused(&self, words: &str) -> Result<String> {
        let split: Vec<_> = words.split_whitespace().collect();
        let output = self.client(&[&["service"], &split[..]].concat()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && output.stdout.is_empty(),
            "`tracker service {words}`: {}: {said}",
            output.status
        );
        ensure!(said.lines().count() == 1, "not one line: {said:?}");
        Ok(said)
    }

    /// The services, by `tracker service list --json`.
    ///
    /// # Errors
    /// When there is no answer or no JSON.
    pub fn services(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.service("list --json")?).context("parse the list of services")
    }

    /// Sends the daemon's API a request, as a program would that does not use the command; returns status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn http(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let answer = self.answer(method, path, &[], body.as_bytes())?;
        Ok((answer.status, answer.text))
    }

    /// As [`Self::http`], with header fields; returns the whole answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn answer(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<http::Answer> {
        http::ask(&self.socket(), method, path, headers, body)
    }

    /// Starts the daemon again, with the same config, after [`Self::terminate`] or [`Self::kill`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn run(&mut self) -> Result<()> {
        self.launch()?;
        let deadline = Instant::now() + slow(SOON);
        loop {
            interrupt::check()?;
            let Err(error) = self.status() else {
                return Ok(());
            };
            if let Some(status) = self.exited()? {
                bail!("start the daemon: {status}; its log:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!(
                    "wait for the daemon to answer: {error:#}; its log:\n{}",
                    self.log()
                );
            }
            sleep(POLL);
        }
    }

    /// Starts the daemon again like [`Self::run`], but does not wait for it.
    ///
    /// # Errors
    /// When there is one already, or it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "run the daemon: it runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("open the log")?;
        // SIGTERM: a daemon whose test was killed still detaches by itself.
        let mut command = self.hub.command_that_dies_of(Signal::SIGTERM, &self.binary);
        command
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .args(self.keep.then_some("--keep"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // Ctrl-C is for the test, which stops the daemon in good order.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// A `tracker` command on the hub; give it [`Self::socket`] if it talks to the daemon.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.hub.command(&self.binary);
        command.args(arguments);
        command
    }

    /// A `tracker` command that talks to this daemon.
    #[must_use]
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.arg("--socket").arg(self.socket());
        command
    }

    /// The status, by `tracker status --json`.
    ///
    /// # Errors
    /// When there is no answer, no JSON, or an exit code that does not fit the verdicts.
    pub fn status(&self) -> Result<Status> {
        let output = self
            .client(&["status", "--json"])
            .output()
            .context("start `tracker status`")?;
        let code = output.status.code();
        ensure!(
            matches!(code, Some(0 | 2)),
            "`tracker status`: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let status = Status(
            serde_json::from_slice(&output.stdout).context("parse `tracker status --json`")?,
        );
        Ok(status)
    }

    /// Asks for the status again and again until it is as wanted; returns it.
    ///
    /// # Errors
    /// After `patience`, with the last status, the events and the daemon's log.
    pub fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        mut wanted: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let patience = slow(patience);
        let started = Instant::now();
        let mut last = Status::default();
        loop {
            interrupt::check()?;
            match self.status() {
                Ok(status) if wanted(&status) => return Ok(status),
                Ok(status) => last = status,
                Err(error) if started.elapsed() > patience => {
                    return Err(error)
                        .with_context(|| format!("wait for {what}; its log:\n{}", self.log()));
                }
                Err(_) => {}
            }
            if started.elapsed() > patience {
                let events = self
                    .events()
                    .map_or_else(|error| format!("{error:#}"), |events| lines(&events));
                bail!(
                    "waited {patience:?} in vain for {what}\nlast status: {:#}\nevents:\n{events}\nlog:\n{}",
                    last.0,
                    self.log()
                );
            }
            sleep(POLL);
        }
    }

    /// Waits until a service has a verdict and a cause.
    ///
    /// # Errors
    /// As [`Self::wait_for`], after [`SOON`].
    pub fn wait_verdict(&self, service: &str, verdict: &str, cause: &str) -> Result<Status> {
        self.wait_verdict_within(SOON, service, verdict, cause)
    }

    /// Like [`Self::wait_verdict`], with another patience.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_verdict_within(
        &self,
        patience: Duration,
        service: &str,
        verdict: &str,
        cause: &str,
    ) -> Result<Status> {
        let what = format!("{service} to be {verdict}: {cause}");
        self.wait_for(&what, patience, |status| {
            status.verdict(service) == verdict && status.cause(service) == cause
        })
    }

    /// Waits until a service is up *and* twenty more replies have come since the call: it is not an old verdict.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_alive(&self, patience: Duration, service: &str) -> Result<Status> {
        let before = self.status()?.count(service, "received");
        let what = format!("{service} to be up with new replies (had {before})");
        self.wait_for(&what, patience, |status| {
            status.verdict(service) == "up" && status.count(service, "received") >= before + 20
        })
    }

    /// All events so far.
    ///
    /// # Errors
    /// When there is no answer or a line is not as the contract says.
    pub fn events(&self) -> Result<Vec<Event>> {
        let output = crate::netns::check(&mut self.client(&["events", "--json"]))?;
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(Event::parse)
            .collect()
    }

    /// Listens to the events from now on, by `tracker events --follow`.
    ///
    /// # Errors
    /// When the command cannot start.
    pub fn follow(&self) -> Result<Follower> {
        let mut child = self
            .client(&["events", "--follow", "--json"])
            .stdout(Stdio::piped())
            // It complains when the daemon ends, as tests make it.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start `tracker events --follow`")?;
        let stdout = child.stdout.take().context("read its output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Follower { child, lines })
    }

    /// The changes of the service itself so far, as `(verdict, cause)`.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub fn history(&self, service: &str) -> Result<Vec<(String, String)>> {
        let events = self.events()?.into_iter();
        Ok(events
            .filter(|event| event.is_of_service(service))
            .map(|event| (event.to, event.cause))
            .collect())
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid()?;
        kill(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("send {signal} to the daemon, process {pid}"))
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        Ok(child.id())
    }

    /// Stops the daemon with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not end soon.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + slow(SOON);
        while Instant::now() < deadline {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            sleep(POLL);
        }
        bail!(
            "wait for the daemon to end after SIGTERM; its log:\n{}",
            self.log()
        );
    }

    /// Kills the daemon with SIGKILL, so that it cannot tidy up.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill().context("kill the daemon")?;
        child.wait().context("wait for the killed daemon")?;
        Ok(())
    }

    /// How the daemon ended, once it has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait().context("wait for the daemon")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Its instance, unique to this test.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("tracker.sock")
    }

    /// Its config file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("tracker.toml")
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The directory of its pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join("tracker").join(&self.instance)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("tracker.log")
    }

    /// What it has written to its standard output and error so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Removes what a killed daemon left, by `tracker cleanup`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cleanup(&self) -> Result<()> {
        crate::netns::check(&mut self.command(&["cleanup", "--instance", &self.instance])).map(drop)
    }
}

/// Events for a message, one a line.
#[must_use]
pub fn lines(events: &[Event]) -> String {
    events
        .iter()
        .map(Event::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl Drop for Tracker<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            // A stopped process does not get to its SIGTERM.
            let _ = self.signal(Signal::SIGCONT);
            if let Err(error) = self.terminate() {
                eprintln!("{error:#}");
                let _ = self.kill();
            }
        }
        if self.pins().exists() {
            if let Err(error) = self.cleanup() {
                eprintln!("{error:#}");
            }
            let _ = fs::remove_dir_all(self.pins());
        }
    }
}

/// A running `tracker events --follow`; dropped, it is killed.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Follower {
    /// Waits for the next event that is as wanted, passing over others; tells also when it came.
    ///
    /// # Errors
    /// When none comes soon, or a line is not as the contract says.
    pub fn wait_for(&self, mut wanted: impl FnMut(&Event) -> bool) -> Result<(Instant, Event)> {
        let mut seen = Vec::new();
        while let Some((when, event)) = self.next(SOON)? {
            if wanted(&event) {
                return Ok((when, event));
            }
            seen.push(event);
        }
        bail!(
            "waited in vain for an event; before that:\n{}",
            lines(&seen)
        )
    }

    /// The next event, and when it came; `None` if none comes within this time.
    ///
    /// # Errors
    /// When the command has ended, or a line is not as the contract says.
    pub fn next(&self, patience: Duration) -> Result<Option<(Instant, Event)>> {
        let deadline = Instant::now() + slow(patience);
        loop {
            interrupt::check()?;
            match self.lines.recv_timeout(POLL) {
                Ok((when, line)) => return Ok(Some((when, Event::parse(&line)?))),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(error) => bail!("follow the events: {error}"),
            }
        }
    }

    /// Waits for the command to end by itself, as it must when the daemon ends.
    ///
    /// # Errors
    /// When it does not end soon.
    pub fn wait_for_end(mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + slow(SOON);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(POLL);
        }
        bail!("`tracker events --follow` goes on without its daemon")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel objects that a daemon holds or has pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelObject {
    /// `prog`, `map` or `link`, as bpftool calls it.
    pub kind: &'static str,
    /// Its id.
    pub id: u32,
}

impl KernelObject {
    /// Everything that a process holds open, by /proc/PID/fdinfo.
    ///
    /// Ids and not a comparison of whole lists: other tests load and unload beside this one.
    ///
    /// # Errors
    /// When the process does not exist.
    pub fn held_by(pid: u32) -> Result<BTreeSet<Self>> {
        let directory = format!("/proc/{pid}/fdinfo");
        let entries = fs::read_dir(&directory).with_context(|| format!("list {directory}"))?;
        let mut objects = BTreeSet::new();
        for entry in entries.flatten() {
            let Ok(info) = fs::read_to_string(entry.path()) else {
                continue; // Closed in the meantime.
            };
            for line in info.lines() {
                for (kind, key) in [
                    ("prog", "prog_id:"),
                    ("map", "map_id:"),
                    ("link", "link_id:"),
                ] {
                    if let Some(id) = line.strip_prefix(key).and_then(|id| id.trim().parse().ok()) {
                        objects.insert(Self { kind, id });
                    }
                }
            }
        }
        Ok(objects)
    }

    /// Everything pinned below a directory.
    #[must_use]
    pub fn pinned_below(directory: &Path) -> BTreeSet<Self> {
        let mut objects = BTreeSet::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                objects.extend(Self::pinned_below(&path));
                continue;
            }
            for kind in ["prog", "map", "link"] {
                let output = Command::new("bpftool")
                    .args(["-j", kind, "show", "pinned"])
                    .arg(&path)
                    .output();
                let id = output
                    .ok()
                    .and_then(|output| {
                        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
                    })
                    .and_then(|shown| u32::try_from(shown["id"].as_u64()?).ok());
                if let Some(id) = id {
                    objects.insert(Self { kind, id });
                }
            }
        }
        objects
    }

    /// Whether the kernel still has it.
    #[must_use]
    pub fn exists(&self) -> bool {
        Command::new("bpftool")
            .args([self.kind, "show", "id", &self.id.to_string()])
            .output()
            .is_ok_and(|output| output.status.success())
    }
}

//! What is tested, and the system that it is installed in.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker_lab::Namespace;
use tracker_lab::daemon::SOON;
use tracker_lab::netns::check;
use tracker_lab::pace::slow;

/// What `cargo xtask test` makes for these tests; it names each in the environment.
pub struct Made {
    /// The package.
    pub deb: PathBuf,
    /// That package with a higher version.
    pub newer: PathBuf,
    /// The root of a container image.
    pub container: PathBuf,
    /// The directory of a Debian system.
    pub debian: PathBuf,
}

impl Made {
    /// `None` if the tests were not started by `cargo xtask test`.
    pub fn of_environment() -> Option<Self> {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        Some(Self {
            deb: path("TRACKER_DEB")?,
            newer: path("TRACKER_DEB_NEWER")?,
            container: path("TRACKER_CONTAINER")?,
            debian: path("TRACKER_DEBIAN")?,
        })
    }
}

/// Why a test of this binary is skipped outside of `cargo xtask test`.
pub const NOT_MADE: &str =
    "no package was made for this run; run `cargo xtask test --test package`";

/// Where a system is mounted; in a mount namespace of its own, so that all can use one path and nothing stays.
const MOUNTED: &str = "/run/tracker-tests/.debian";

/// A copy of the Debian system, which is changed as a test likes: its changes are in memory. It is mounted in a mount namespace
/// that a process of the test holds, and goes with that process.
pub struct Debian<'lab> {
    holder: Child,
    hub: &'lab Namespace,
}

impl<'lab> Debian<'lab> {
    /// Mounts it on the hub, with the hub's own /sys and a BPF file system of its own.
    pub fn new(hub: &'lab Namespace, made: &Made) -> Result<Self> {
        Self::mount(
            hub,
            made,
            "mount -t proc proc proc
             mount -t sysfs sysfs sys
             mount -t bpf -o mode=0700 bpf sys/fs/bpf
             mount -t tmpfs -o mode=0755 tmpfs run
             mount --rbind /dev dev",
        )
    }

    /// Mounts it as it is on disk, for what mounts the rest itself.
    pub fn bare(hub: &'lab Namespace, made: &Made) -> Result<Self> {
        Self::mount(hub, made, "")
    }

    fn mount(hub: &'lab Namespace, made: &Made, more: &str) -> Result<Self> {
        fs::create_dir_all(MOUNTED).context("make a place for the system")?;
        let script = format!(
            "set -e
             mount -t tmpfs -o mode=0755 tmpfs {MOUNTED}
             mkdir {MOUNTED}/upper {MOUNTED}/work {MOUNTED}/root
             mount -t overlay -o lowerdir=\"$0\",upperdir={MOUNTED}/upper,workdir={MOUNTED}/work overlay {MOUNTED}/root
             cd {MOUNTED}/root
             {more}
             echo mounted
             exec sleep infinity"
        );
        let mut holder = hub
            .command("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg(&made.debian)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the holder of the system")?;
        let mut line = String::new();
        let said = holder.stdout.take().context("a pipe")?;
        BufReader::new(said).read_line(&mut line)?;
        let system = Self { holder, hub };
        ensure!(line == "mounted\n", "the system is not mounted: {line:?}");
        system.copy(&made.deb, "var/cache/tracker.deb")?;
        system.copy(&made.newer, "var/cache/newer.deb")?;
        Ok(system)
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.path(to);
        fs::copy(from, &to)
            .map(drop)
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))
    }

    /// A file of the system, as this process sees it.
    pub fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{MOUNTED}/root", self.holder.id()))
            .join(file.trim_start_matches('/'))
    }

    /// Writes a file of the system.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// A command in the mount namespace of the system, outside of its root.
    pub fn beside(&self, program: &str) -> Command {
        let mut command = self.hub.command_that_dies_of(Signal::SIGKILL, "nsenter");
        command
            .arg("--target")
            .arg(self.holder.id().to_string())
            .args(["--mount", "--wd=/", "--", program]);
        command
    }

    /// The root of the system in that namespace.
    pub fn root() -> String {
        format!("{MOUNTED}/root")
    }

    /// A command in the system, by chroot.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.beside("chroot");
        command
            .arg(Self::root())
            .arg(program)
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a command line in the system; returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = check(self.command("sh").args(["-c", line]))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All files of the system but those of dpkg's own data base and of logs.
    pub fn files(&self) -> Result<BTreeSet<String>> {
        Ok(files_of(&self.run(LIST)?))
    }
}

impl Drop for Debian<'_> {
    fn drop(&mut self) {
        // It ends with this thread anyway.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Waits until a service has a verdict; returns the status. `tracker` makes the command that asks.
pub fn wait_verdict(service: &str, verdict: &str, tracker: impl Fn() -> Command) -> Result<Value> {
    let deadline = Instant::now() + slow(SOON);
    loop {
        let output = tracker().args(["status", "--json"]).output()?;
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let is = |found: &Value| found["name"] == service && found["verdict"] == verdict;
        if status["services"].as_array().into_iter().flatten().any(is) {
            return Ok(status);
        }
        ensure!(
            Instant::now() < deadline,
            "{service} is not {verdict}: {status} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        sleep(Duration::from_millis(50));
    }
}

/// Lists all files of a system but those of dpkg's own data base, and what systemd writes at each boot.
pub const LIST: &str = "find / -xdev -path /tmp -prune -o -path /var/log -prune -o -path /var/lib/dpkg -prune \
                        -o -path /var/cache -prune -o -path /var/lib/systemd/timers -prune -o -path /var/lib/systemd/catalog -prune \
                        -o -path /run -prune -o -print; find /run -path '*tracker*' ! -path '/run/systemd/*'";

/// The lines of that list.
pub fn files_of(list: &str) -> BTreeSet<String> {
    list.lines().map(str::to_owned).collect()
}

/// What is in one of them and not in the other.
pub fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let less = before.difference(after).map(|file| format!("- {file}"));
    let more = after.difference(before).map(|file| format!("+ {file}"));
    less.chain(more).collect()
}

//! Installed where systemd is the init: a Debian 12 that is booted in a container, with the hub's network. What systemd does
//! with the units, and what the package's scripts do to them, is the real thing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::netns::check;
use tracker_lab::pace::slow;
use tracker_lab::{Lab, Namespace, skip, transfer};

use crate::made::{Debian, LIST, Made, NOT_MADE, difference, files_of, wait_verdict};

/// Where systemd has its cgroups on a host with both versions of them; none of these is there with the second version alone.
const BOTH: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];

/// A booted system.
struct Machine<'lab> {
    /// Holds the process namespace of nspawn and the machine.
    outer: Child,
    /// Its init.
    init: u32,
    cgroups: Vec<String>,
    _debian: Debian<'lab>,
}

impl<'lab> Machine<'lab> {
    /// Boots it; `None` with the reason if nothing can be booted here.
    fn boot(hub: &'lab Namespace, debian: Debian<'lab>) -> Result<Result<Self, String>> {
        // In cgroups of its own, or two machines would share them, and they would stay.
        let cgroups = BOTH.map(|root| format!("{root}/{}", hub.name()));
        let cgroups: Vec<_> = cgroups
            .into_iter()
            .filter(|cgroup| fs::create_dir(cgroup).is_ok())
            .collect();
        let enter = cgroups
            .iter()
            .map(|cgroup| format!("echo $$ > {cgroup}/cgroup.procs && "));
        let enter: String = enter.collect();
        let is_under_systemd = Path::new("/run/systemd/system").is_dir();
        let script = format!("{enter}exec systemd-nspawn \"$@\"");
        let log = tempfile::tempfile()?;
        // In a process namespace that ends with its first process, nspawn: that does not take the machine with it when it is
        // killed.
        let mut command = debian.beside("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args([
                "sh",
                "-c",
                &script,
                "sh",
                "--quiet",
                "--boot",
                "--console=pipe",
            ])
            .args(["--register=no", "--capability=all", "--private-users=no"])
            // The machine is no sandbox: only the unit is.
            .arg("--system-call-filter=bpf perf_event_open @mount @resources")
            .args((!is_under_systemd).then_some("--keep-unit"))
            .arg(format!("--directory={}", Debian::root()))
            .arg(format!("--network-namespace-path={}", hub.path().display()))
            // A hub may write to /proc/sys and mount in /sys.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        if !cgroups.is_empty() {
            command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0");
        }
        let outer = command.spawn().context("start systemd-nspawn")?;
        let mut machine = Self {
            outer,
            init: 0,
            cgroups,
            _debian: debian,
        };
        let deadline = Instant::now() + slow(LATER);
        loop {
            if machine.outer.try_wait()?.is_some() || Instant::now() > deadline {
                return Ok(Err(said(&log)?));
            }
            // The outer process has one child, nspawn, and that has one, the machine's first process.
            machine.init = only_child(machine.outer.id())
                .and_then(only_child)
                .unwrap_or(0);
            let state = machine.init > 0 && {
                let mut command = machine.command("systemctl");
                let output = command.arg("is-system-running").output()?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                ["running", "degraded"].contains(&said.trim())
            };
            if state {
                return Ok(Ok(machine));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A command in the machine.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.to_string())
            .args(["--all", "--root", "--wd", "--", program])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            );
        command
    }

    /// Runs a command line in the machine; returns what it printed.
    fn run(&self, line: &str) -> Result<String> {
        let output = check(self.command("sh").args(["-c", line]))
            .with_context(|| format!("in the machine: {line}\n{}", self.journal()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn journal(&self) -> String {
        let mut command = self.command("journalctl");
        let output = command
            .args(["--no-pager", "--lines=40", "--unit=tracker*"])
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// A property of a unit.
    fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run(&format!("systemctl show --property={name} --value {unit}"))?;
        Ok(value.trim().to_owned())
    }

    /// Writes a file of the machine.
    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path =
            Path::new(&format!("/proc/{}/root", self.init)).join(file.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Waits until a service has a verdict; returns the status.
    fn wait_verdict(&self, service: &str, verdict: &str) -> Result<Value> {
        wait_verdict(service, verdict, || self.command("tracker")).with_context(|| self.journal())
    }
}

/// The first child of a process.
fn only_child(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn said(mut log: &fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    Ok(text
        .lines()
        .last()
        .unwrap_or("it does not come up")
        .to_owned())
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // The machine goes with its process namespace. It ends with this thread anyway.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        for cgroup in &self.cgroups {
            let deadline = Instant::now() + slow(SOON);
            while Instant::now() < deadline {
                // Children first; each only once it is empty.
                let _ = Command::new("find")
                    .args([cgroup, "-depth", "-type", "d", "-delete"])
                    .stderr(Stdio::null())
                    .status();
                if !Path::new(cgroup).exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

#[test]
fn installed_upgraded_removed_and_purged() -> Result<()> {
    let Some(made) = Made::of_environment() else {
        skip!("{NOT_MADE}");
    };
    let lab = Lab::new()?;
    let clean = lab.hub.look()?;
    let machine = match Machine::boot(&lab.hub, Debian::bare(&lab.hub, &made)?)? {
        Ok(machine) => machine,
        Err(why) => skip!("this kernel lets no systemd boot in a container here: {why}"),
    };
    let before = files_of(&machine.run(LIST)?);

    // It runs as soon as it is installed, idle.
    machine.run("dpkg --install /var/cache/tracker.deb")?;
    assert_eq!(
        machine.property("tracker", "ActiveState")?,
        "active",
        "{}",
        machine.journal()
    );
    assert!(
        machine
            .property("tracker", "StatusText")?
            .starts_with("watching 0 services")
    );
    assert_eq!(
        machine.run("tracker service list --json")?.trim(),
        r#"{"services":[],"free":1024}"#
    );

    // Configured, by reloads; one that is not valid changes nothing.
    let config = format!(
        "[defaults]\ninterval = \"20ms\"\ntimeout = \"200ms\"\n{}",
        lab.service().toml("fw-1")
    );
    machine.write("/etc/tracker/tracker.toml", &config)?;
    machine.run("systemctl reload tracker")?;
    machine.wait_verdict("fw-1", "up")?;
    // The journal has the change with its fields.
    let told = machine.run("journalctl --sync; journalctl --quiet --unit tracker --output json TRACKER_SERVICE=fw-1 TRACKER_TO=up")?;
    for field in [
        r#""TRACKER_CAUSE":"replied""#,
        r#""SYSLOG_IDENTIFIER":"tracker""#,
        r#""PRIORITY":"6""#,
        r#""MESSAGE":"fw-1: unknown -> up, replied"#,
    ] {
        ensure!(told.contains(field), "{field}: {told}");
    }
    machine.write("/etc/tracker/tracker.toml", "[hub]\nnonsense = 1\n")?;
    assert!(machine.run("systemctl reload tracker").is_err());
    let status = machine.wait_verdict("fw-1", "up")?;
    machine.write("/etc/tracker/tracker.toml", &config)?;
    machine.run("systemctl reload tracker")?;
    let alive = machine.property("tracker", "WatchdogTimestampMonotonic")?;

    // A further instance, in a network namespace of its own.
    let example = fs::read_to_string(dist().join("examples/instance.toml"))?;
    let drop_in = fs::read_to_string(dist().join("examples/netns.conf"))?;
    machine.write("/etc/tracker/red.toml", &example)?;
    machine.write(
        "/etc/systemd/system/tracker@red.service.d/netns.conf",
        &drop_in,
    )?;
    machine
        .run("mkdir -p /run/netns && touch /run/netns/red && unshare --net=/run/netns/red true")?;
    machine.run("systemctl daemon-reload && systemctl enable --now tracker@red")?;
    let interfaces = || machine.run("nsenter --net=/run/netns/red cat /proc/net/dev");
    let private = tracker_user::plan::observed::private_names("red");
    assert!(interfaces()?.contains(&private[0]), "{}", interfaces()?);
    machine.run("tracker status --socket /run/tracker/red.sock || [ $? = 2 ]")?;

    // An upgrade restarts both, which is no event and costs no other packet.
    let events = machine.run("tracker events --json")?;
    let pids = || -> Result<[String; 2]> {
        Ok([
            machine.property("tracker", "MainPID")?,
            machine.property("tracker@red", "MainPID")?,
        ])
    };
    let old = pids()?;
    transfer::unharmed_by(&lab, || machine.run("dpkg --install /var/cache/newer.deb"))?;
    let after = machine.wait_verdict("fw-1", "up")?;
    for (old, new) in old.iter().zip(&pids()?) {
        ensure!(
            old != new && new != "0",
            "{old} {new}: {}",
            machine.journal()
        );
    }
    assert_eq!(
        machine.run("tracker events --json")?,
        events,
        "an upgrade is no event: {}",
        machine.journal()
    );
    assert_eq!(after["run"], status["run"]);
    assert_eq!(
        after["services"][0]["since"],
        status["services"][0]["since"]
    );
    assert_ne!(
        machine.property("tracker", "WatchdogTimestampMonotonic")?,
        alive
    );
    assert_eq!(machine.run("cat /etc/tracker/tracker.toml")?, config);

    // What the operator has stopped stays so.
    machine.run("systemctl disable --now tracker && dpkg --install /var/cache/newer.deb")?;
    assert_eq!(machine.property("tracker", "ActiveState")?, "inactive");
    machine.run("systemctl enable --now tracker")?;
    assert_eq!(machine.run("tracker events --json")?, events);

    machine.run("dpkg --remove tracker-hub")?;
    assert_eq!(
        machine.run("ls /sys/fs/bpf/tracker 2>/dev/null || true")?,
        ""
    );
    assert!(!interfaces()?.contains(&private[0]), "{}", interfaces()?);
    lab.hub.ip("route del 10.30.0.0/24\n")?;
    assert_eq!(lab.hub.look()?, clean, "no program and no interface stays");

    machine.run("dpkg --purge tracker-hub")?;
    // The operator's own.
    machine.run("rm -r /etc/tracker /etc/systemd/system/tracker@red.service.d")?;
    let left = difference(&before, &files_of(&machine.run(LIST)?));
    assert_eq!(left, [""; 0]);
    assert_eq!(
        machine.run("systemctl list-units --all --plain --no-legend 'tracker*'")?,
        ""
    );
    Ok(())
}

fn dist() -> std::path::PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("dist")
}

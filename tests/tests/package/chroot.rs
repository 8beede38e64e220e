//! Installed where systemd is not the init: in a chroot, as an image or an installer does it. The daemon is then started by
//! others, here by the test, with the unit's own command line.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracker_lab::daemon::SOON;
use tracker_lab::netns::check;
use tracker_lab::pace::slow;
use tracker_lab::{Lab, skip, transfer};

use crate::made::{Debian, Made, NOT_MADE, difference, wait_verdict};

const UNIT: &str = "/usr/lib/systemd/system/tracker.service";

/// The values of a key of the installed unit.
fn of_unit(debian: &Debian, key: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(debian.path(UNIT)).context("read the installed unit")?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let values = lines.filter(|(named, _)| *named == key);
    Ok(values.map(|(_, value)| value.to_owned()).collect())
}

/// A daemon that runs in the system as its unit says, supervised by this test.
struct Supervised<'d, 'lab> {
    debian: &'d Debian<'lab>,
    child: Child,
    messages: UnixDatagram,
}

impl<'d, 'lab> Supervised<'d, 'lab> {
    /// Starts it, and waits until it says that it is ready.
    fn start(debian: &'d Debian<'lab>) -> Result<Self> {
        let socket = debian.path("/run/notify");
        let _ = fs::remove_file(&socket);
        let messages = UnixDatagram::bind(&socket).context("listen for the daemon's messages")?;
        messages.set_read_timeout(Some(slow(SOON)))?;
        let line = of_unit(debian, "ExecStart")?.concat();
        let granted = of_unit(debian, "CapabilityBoundingSet")?.concat();
        let granted: String = granted
            .split_whitespace()
            .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        let log = fs::File::create(debian.path("/run/log"))?;
        let mut command = debian.command("setpriv");
        command
            .arg(format!("--bounding-set=-all{granted}"))
            .arg("--no-new-privs")
            .args(line.split_whitespace())
            .env("NOTIFY_SOCKET", "/run/notify")
            .env("WATCHDOG_USEC", "400000")
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("start the daemon")?;
        let started = Self {
            debian,
            child,
            messages,
        };
        started.wait_message("READY=1")?;
        Ok(started)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.debian.path("/run/log")).unwrap_or_default()
    }

    fn wait_message(&self, wanted: &str) -> Result<()> {
        let mut bytes = [0; 512];
        let deadline = Instant::now() + slow(SOON);
        while Instant::now() < deadline {
            let length = self
                .messages
                .recv(&mut bytes)
                .with_context(|| format!("wait for {wanted}; the log:\n{}", self.log()))?;
            if String::from_utf8_lossy(&bytes[..length]).contains(wanted) {
                return Ok(());
            }
        }
        anyhow::bail!("the daemon does not say {wanted}")
    }

    /// The daemon's own process: that of `nsenter` became it.
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Reloads as the unit's ExecReload lines do; false if one of them fails.
    fn reload(&self) -> Result<bool> {
        for line in of_unit(self.debian, "ExecReload")? {
            // As systemd reads it.
            let line = line.replace("$$", "$");
            let mut command = self.debian.command("sh");
            command.args(["-c", &line]);
            command.env("MAINPID", self.child.id().to_string());
            if !command.stderr(Stdio::null()).status()?.success() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends it as systemd does.
    fn stop(mut self) -> Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(())
    }
}

#[test]
fn installed_upgraded_removed_and_purged() -> Result<()> {
    let Some(made) = Made::of_environment() else {
        skip!("{NOT_MADE}");
    };
    let lab = Lab::new()?;
    let clean = lab.hub.look()?;
    let debian = Debian::new(&lab.hub, &made)?;
    let before = debian.files()?;

    debian.run("dpkg --install /var/cache/tracker.deb")?;
    let enabled = "/etc/systemd/system/multi-user.target.wants/tracker.service";
    assert!(
        debian.path(enabled).is_symlink(),
        "it starts at the next boot"
    );
    for file in [
        "/usr/share/man/man1/tracker-run.1.gz",
        "/usr/share/bash-completion/completions/tracker",
        "/usr/share/zsh/vendor-completions/_tracker",
        "/usr/share/fish/vendor_completions.d/tracker.fish",
        "/usr/share/tracker-hub/tracker.schema.json",
        "/usr/share/doc/tracker-hub/docs/install.md",
        "/usr/share/doc/tracker-hub/examples/pair.toml",
        "/usr/lib/systemd/system/tracker@.service",
    ] {
        assert!(debian.path(file).is_file(), "{file}");
    }
    // The configuration as it comes, and the examples, are valid.
    debian.run(
        "set -e; for file in /etc/tracker/tracker.toml /usr/share/doc/tracker-hub/examples/*.toml; do tracker check $file; done",
    )?;
    assert_eq!(debian.run("dpkg --verify tracker-hub")?, "");

    let config = |interval| {
        format!(
            "[hub]\nmode = \"xdp-native\"\n[defaults]\ninterval = \"{interval}\"\ntimeout = \"200ms\"\n{}",
            lab.service().toml("fw-1")
        )
    };
    debian.write("/etc/tracker/tracker.toml", &config("20ms"))?;
    let daemon = Supervised::start(&debian)?;
    wait_verdict("fw-1", "up", || debian.command("tracker"))?;
    daemon.wait_message("WATCHDOG=1")?;

    // A file that is not valid is refused before the daemon hears of it.
    debian.write("/etc/tracker/tracker.toml", "[hub]\nnonsense = 1\n")?;
    assert!(!daemon.reload()?);
    debian.write("/etc/tracker/tracker.toml", &config("25ms"))?;
    assert!(daemon.reload()?, "{}", daemon.log());
    let status = wait_verdict("fw-1", "up", || debian.command("tracker"))?;
    let events = debian.run("tracker events --json")?;

    // An upgrade does not touch the daemon; its successor takes over.
    transfer::unharmed_by(&lab, || {
        debian.run("dpkg --install /var/cache/newer.deb")?;
        ensure!(
            debian
                .run("dpkg-query -W -f '${Version}' tracker-hub")?
                .ends_with("-2")
        );
        wait_verdict("fw-1", "up", || debian.command("tracker"))?;
        daemon.stop()
    })?;
    let text = fs::read_to_string(debian.path("/etc/tracker/tracker.toml"))?;
    assert_eq!(text, config("25ms"), "the operator's file stays");
    let daemon = Supervised::start(&debian)?;
    let after = wait_verdict("fw-1", "up", || debian.command("tracker"))?;
    assert_eq!(
        debian.run("tracker events --json")?,
        events,
        "an upgrade is no event"
    );
    assert_eq!(after["run"], status["run"]);
    assert_eq!(
        after["services"][0]["since"],
        status["services"][0]["since"]
    );

    // While a daemon runs that nothing here can end, a removal says so and goes on.
    let output = check(debian.command("dpkg").args(["--remove", "tracker-hub"]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("another daemon") || said.contains("runs"),
        "{said}"
    );
    assert!(
        said.contains("instance default stays in the kernel"),
        "{said}"
    );
    assert!(debian.path("/sys/fs/bpf/tracker/default").is_dir());
    daemon.stop()?;

    // Installed again over it, it goes on; then it ends before the removal.
    debian.run("dpkg --install /var/cache/newer.deb")?;
    let daemon = Supervised::start(&debian)?;
    wait_verdict("fw-1", "up", || debian.command("tracker"))?;
    assert_eq!(debian.run("tracker events --json")?, events);
    daemon.stop()?;
    debian.run("dpkg --remove tracker-hub")?;
    assert!(!debian.path("/sys/fs/bpf/tracker/default").exists());
    lab.hub.ip("route del 10.30.0.0/24\n")?;
    assert_eq!(lab.hub.look()?, clean, "no program and no interface stays");
    assert!(
        debian.path("/var/lib/tracker/default").is_dir(),
        "state stays until the purge"
    );
    assert!(debian.path("/etc/tracker/tracker.toml").is_file());

    debian.run("dpkg --purge tracker-hub")?;
    assert_eq!(difference(&before, &debian.files()?), [""; 0]);
    Ok(())
}

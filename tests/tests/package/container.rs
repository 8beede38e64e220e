//! The container image: one program in an empty root, with the mounts and capabilities that docs/install.md names, as a
//! container engine would start it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tracker_lab::daemon::SOON;
use tracker_lab::netns::{BPFFS, ensure_bpffs};
use tracker_lab::pace::slow;
use tracker_lab::{Lab, skip};

use crate::made::{Made, NOT_MADE};

/// The flags of the engine's command line in docs/install.md: those that begin so, without it.
fn documented(flag: &str) -> Result<Vec<String>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(here.parent().unwrap_or(here).join("docs/install.md"))?;
    let (_, command) = page.split_once("podman run").context("the command")?;
    let (command, _) = command.split_once("```").context("its end")?;
    let words = command.split_whitespace();
    let values: Vec<_> = words.filter_map(|word| word.strip_prefix(flag)).collect();
    Ok(values.iter().map(|value| (*value).to_owned()).collect())
}

/// What is left out of what the documentation names.
#[derive(Default)]
struct Without<'a> {
    capability: Option<&'a str>,
    volume: Option<&'a str>,
}

/// A container without an engine.
struct Container<'lab> {
    lab: &'lab Lab,
    root: tempfile::TempDir,
}

impl<'lab> Container<'lab> {
    fn new(lab: &'lab Lab, image: &Path) -> Result<Self> {
        ensure_bpffs()?;
        let root = tempfile::tempdir().context("make the root")?;
        let copied = Command::new("cp")
            .arg("--recursive")
            .arg(image.join("."))
            .arg(root.path())
            .status()?;
        ensure!(copied.success(), "copy the image: {copied}");
        // An engine makes these; the image has none of them.
        for directory in [
            "proc",
            "sys",
            "dev",
            "run/tracker",
            "etc/tracker",
            "var/lib/tracker",
        ] {
            fs::create_dir_all(root.path().join(directory))?;
        }
        Ok(Self { lab, root })
    }

    /// A command in the container, as the documentation says but for what is left out.
    fn command(&self, without: &Without) -> Result<Command> {
        let capabilities = documented("--cap-add=")?;
        let kept: Vec<caps::Capability> = capabilities
            .iter()
            .filter(|name| Some(name.as_str()) != without.capability)
            .map(|name| format!("CAP_{name}").parse::<caps::Capability>())
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let volumes = documented("--volume=")?;
        ensure!(
            volumes.iter().any(|volume| volume.starts_with(BPFFS)),
            "{volumes:?}"
        );
        let has_bpffs = without.volume != Some(BPFFS);
        let root: PathBuf = self.root.path().to_owned();
        let mut command = self.lab.hub.command("/tracker");
        let enter = move || {
            let at = |directory: &str| root.join(directory);
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(
                Some("proc"),
                &at("proc"),
                Some("proc"),
                MsFlags::empty(),
                none,
            )?;
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(
                Some(&at("proc/sys")),
                &at("proc/sys"),
                none,
                MsFlags::MS_BIND,
                none,
            )?;
            mount(none, &at("proc/sys"), none, read_only, none)?;
            mount(
                Some("sysfs"),
                &at("sys"),
                Some("sysfs"),
                MsFlags::MS_RDONLY,
                none,
            )?;
            if has_bpffs {
                mount(Some(BPFFS), &at("sys/fs/bpf"), none, MsFlags::MS_BIND, none)?;
            }
            nix::unistd::chroot(&root)?;
            nix::unistd::chdir("/")?;
            for capability in caps::all() {
                if !kept.contains(&capability) {
                    caps::drop(None, caps::CapSet::Bounding, capability)
                        .map_err(|_| std::io::Error::last_os_error())?;
                }
            }
            Ok(())
        };
        // SAFETY: the child runs the closure alone, before exec. It allocates, which glibc's allocator allows after a fork.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// The output of a command: its exit code, what it printed, and what it said.
    fn output(
        &self,
        without: &Without,
        arguments: &[&str],
    ) -> Result<(Option<i32>, String, String)> {
        let output = self.command(without)?.args(arguments).output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }

    fn write_config(&self) -> Result<()> {
        // A bpffs that others use too: the instance is the lab's own.
        let text = format!(
            "[hub]\ninstance = \"{}-c\"\nsocket = \"/run/tracker/default.sock\"\n[defaults]\ninterval = \"20ms\"\ntimeout = \"200ms\"\n{}",
            self.lab.id(),
            self.lab.service().toml("fw-1")
        );
        fs::write(self.root.path().join("etc/tracker/tracker.toml"), text)?;
        Ok(())
    }
}

/// A daemon in a container, which ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CONFIG: &str = "/etc/tracker/tracker.toml";

#[test]
fn what_is_documented_is_enough() -> Result<()> {
    let Some(made) = Made::of_environment() else {
        skip!("{NOT_MADE}");
    };
    let lab = Lab::new()?;
    let container = Container::new(&lab, &made.container)?;
    container.write_config()?;
    let whole = Without::default();
    let doctor = || container.output(&whole, &["doctor", "--config", CONFIG]);
    let (code, said, error) = doctor()?;
    assert_eq!(code, Some(0), "{said}{error}");

    let mut daemon = container.command(&whole)?;
    let daemon = Daemon(
        daemon
            .args(["run", "--config", CONFIG])
            .stderr(std::process::Stdio::null())
            .spawn()?,
    );
    let deadline = Instant::now() + slow(SOON);
    loop {
        let (code, said, error) = container.output(&whole, &["status", "--json"])?;
        let status: Value = serde_json::from_str(&said).unwrap_or_default();
        if code == Some(0) && status["services"][0]["verdict"] == "up" {
            break;
        }
        if Instant::now() > deadline {
            bail!("it is not up: {said}{error}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(daemon);
    let instance = format!("{}-c", lab.id());
    let (code, said, error) = container.output(&whole, &["cleanup", "--instance", &instance])?;
    assert_eq!(code, Some(0), "{said}{error}");
    Ok(())
}

/// What is missing is named before the daemon fails for want of it.
#[test]
fn doctor_says_what_a_container_lacks() -> Result<()> {
    let Some(made) = Made::of_environment() else {
        skip!("{NOT_MADE}");
    };
    let lab = Lab::new()?;
    let container = Container::new(&lab, &made.container)?;
    container.write_config()?;
    for capability in ["NET_ADMIN", "BPF", "PERFMON", "SYS_ADMIN"] {
        let without = Without {
            capability: Some(capability),
            ..Default::default()
        };
        let (code, said, _) = container.output(&without, &["doctor", "--config", CONFIG])?;
        assert_eq!(code, Some(1), "{capability}: {said}");
        let line = said.lines().find(|line| line.starts_with("FAIL"));
        let line = line.with_context(|| format!("{capability}: {said}"))?;
        assert!(line.contains(&format!("CAP_{capability}")), "{line}");
        let (code, _, error) = container.output(&without, &["run", "--config", CONFIG])?;
        assert_eq!(code, Some(1), "{capability}: {error}");
        assert!(error.contains(&format!("CAP_{capability}")), "{error}");
    }
    let without = Without {
        volume: Some(BPFFS),
        ..Default::default()
    };
    let (_, said, _) = container.output(&without, &["doctor", "--config", CONFIG])?;
    assert!(said.contains("warn  BPF file system"), "{said}");
    Ok(())
}

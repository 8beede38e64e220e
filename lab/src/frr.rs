//! FRR's real daemons in a namespace, from a tree into which Debian's package was unpacked.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::daemon::SOON;
use crate::netns::Namespace;
use crate::pace::{pause, slow};

/// The tree that `cargo xtask test` unpacks FRR into.
///
/// # Errors
/// When the environment does not name it.
pub fn tree() -> Result<PathBuf> {
    std::env::var_os("TRACKER_FRR")
        .map(PathBuf::from)
        .context("TRACKER_FRR does not name FRR's tree; run the tests by `cargo xtask test`")
}

/// FRR's daemons of one router. Dropped, they end.
#[derive(Debug)]
pub struct Frr {
    directory: TempDir,
    running: Vec<(String, Child)>,
}

impl Frr {
    /// A router without daemons.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory for FRR")?;
        // FRR's package makes a group for its terminals, and its daemons demand to be in it. Only they see this file.
        let mut groups = fs::read("/etc/group").context("read /etc/group")?;
        groups.extend(b"frrvty:x:64123:root\n");
        fs::write(directory.path().join("group"), groups)?;
        Ok(Self {
            directory,
            running: Vec::new(),
        })
    }

    /// A path in the router's own directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts a daemon (`zebra`, `bfdd`, `bgpd`, `ospfd`) with a configuration and further options, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        &mut self,
        namespace: &Namespace,
        name: &str,
        config: &str,
        options: &[&str],
    ) -> Result<()> {
        let tree = tree()?;
        let file = self.path(&format!("{name}.conf"));
        fs::write(&file, config)?;
        let log = File::create(self.path(&format!("{name}.log")))?;
        let mut command = namespace.command(tree.join("usr/lib/frr").join(name));
        let libraries = tree.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        command.env(
            "LD_LIBRARY_PATH",
            format!("{0}:{0}/frr", libraries.display()),
        );
        let socket = self.path("zserv");
        command.args(["-u", "root", "-g", "root", "--log", "stdout"]);
        command
            .args(["-A", "127.0.0.1", "-P", "0", "-z"])
            .arg(socket);
        command.arg("-i").arg(self.path(&format!("{name}.pid")));
        command.arg("-f").arg(&file);
        command.arg("--vty_socket").arg(self.directory.path());
        if name == "bfdd" {
            command.arg("--bfdctl").arg(self.path("bfdd.sock"));
        }
        command.args(options);
        command.stdout(log.try_clone()?).stderr(log);
        let groups = CString::new(self.path("group").into_os_string().into_encoded_bytes())?;
        let private = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(
                Some(groups.as_c_str()),
                c"/etc/group",
                none,
                MsFlags::MS_BIND,
                none,
            )?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes three system calls on texts made before; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(private) };
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        self.running.push((name.to_owned(), child));
        let deadline = Instant::now() + slow(SOON);
        while self.vty(name, "show version").is_err() {
            ensure!(
                Instant::now() < deadline,
                "{name} does not answer: {}",
                self.log(name)
            );
            pause(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends a daemon, by SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.running.iter().position(|(running, _)| running == name);
        let at = at.with_context(|| format!("{name} is not running"))?;
        let (_, mut child) = self.running.remove(at);
        child.kill()?;
        child.wait()?;
        // A socket that is left would be taken for the next one's.
        let _ = fs::remove_file(self.path(&format!("{name}.vty")));
        Ok(())
    }

    /// What a daemon has logged.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// What a daemon answers to a command of its terminal.
    ///
    /// # Errors
    /// When it does not answer, or refuses the command.
    pub fn vty(&self, daemon: &str, command: &str) -> Result<String> {
        let path = self.path(&format!("{daemon}.vty"));
        let mut stream =
            UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(slow(SOON)))?;
        ask(&mut stream, "enable")?;
        ask(&mut stream, command).with_context(|| format!("{daemon}: {command}"))
    }

    /// What a daemon answers in JSON.
    ///
    /// # Errors
    /// When it does not answer, or with something else.
    pub fn json(&self, daemon: &str, command: &str) -> Result<serde_json::Value> {
        let text = self.vty(daemon, command)?;
        serde_json::from_str(&text).with_context(|| format!("{daemon}: {command}: {text}"))
    }
}

/// One command by the protocol of vtysh: text and a zero; the answer ends in three zeros and a status.
fn ask(stream: &mut UnixStream, command: &str) -> Result<String> {
    stream.write_all(command.as_bytes())?;
    stream.write_all(&[0])?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let [text @ .., 0, 0, 0, status] = answer.as_slice() {
            let text = String::from_utf8_lossy(text).into_owned();
            ensure!(*status == 0, "status {status}: {text}");
            return Ok(text);
        }
        match stream.read(&mut piece)? {
            0 => bail!("the daemon closed the connection"),
            len => answer.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            // One that has ended needs no more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

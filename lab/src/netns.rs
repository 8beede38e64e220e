//! Network namespaces that belong to a process and are removed when it ends.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::statfs::{FsType, statfs};

/// Where the owners of namespaces are recorded, one locked file each.
const OWNERS: &str = "/run/tracker-tests";
/// Where the kernel's BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The claim of this process on everything named after [`Owner::id`].
///
/// The claim is a lock and not a process id: the kernel drops it with the process, however that dies, and it cannot be
/// mistaken for a later process that got the same number.
#[derive(Debug)]
pub struct Owner {
    id: String,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Owner {
    /// Claims a fresh random name; the first claim of a process also [`sweep`]s.
    ///
    /// # Errors
    /// When `/run/tracker-tests` cannot be written: the tests need root.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        fs::create_dir_all(OWNERS).with_context(|| format!("create {OWNERS} (run as root)"))?;
        let id = format!("trk-{}", random_word());
        let path = Path::new(OWNERS).join(&id);
        // Locked before it has its name, or another process could take it for a dead owner's.
        let unnamed = Path::new(OWNERS).join(format!(".{id}"));
        let file =
            File::create_new(&unnamed).with_context(|| format!("create {}", unnamed.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| anyhow!("lock {}: {error}", unnamed.display()))?;
        fs::rename(&unnamed, &path).with_context(|| format!("name {}", path.display()))?;
        Ok(Self {
            id,
            path,
            _lock: lock,
        })
    }

    /// The name: a prefix of all namespaces, and an instance of the daemon.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        remove_pins(&self.id);
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the namespaces and pins of owners that died without tidying up. Best effort: reports, never fails.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(OWNERS) else {
        return; // No process ever owned a namespace here.
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.starts_with('.') {
            continue; // Not locked yet: its owner is just being born.
        }
        let Ok(file) = File::open(&path) else {
            continue; // Its owner has just tidied up.
        };
        let Ok(_claimed) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            continue; // Its owner lives.
        };
        for namespace in namespaces_of(name) {
            if let Err(error) = delete(&namespace) {
                eprintln!("{error:#}");
            }
        }
        remove_pins(name);
        let _ = fs::remove_file(&path);
    }
}

/// The names of the namespaces that an owner has at this moment.
#[must_use]
pub fn namespaces_of(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn remove_pins(id: &str) {
    let Ok(entries) = fs::read_dir(Path::new(BPFFS).join("tracker")) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(id) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn delete(namespace: &str) -> Result<()> {
    check(Command::new("ip").args(["netns", "delete", namespace])).map(drop)
}

/// Five letters and digits: 60 million names, short enough for 15-byte interface names made from them.
fn random_word() -> String {
    let mut bits = RandomState::new().hash_one(std::process::id());
    (0..5)
        .map(|_| {
            let digit = char::from_digit((bits % 36) as u32, 36).unwrap_or('0');
            bits /= 36;
            digit
        })
        .collect()
}

/// Mounts the BPF file system if it is not mounted.
///
/// The daemon does so too; a mount that several daemons race for would hide the pins of the first.
///
/// # Errors
/// When the kernel refuses the mount.
pub fn ensure_bpffs() -> Result<()> {
    static MOUNT: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _threads = MOUNT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    fs::create_dir_all(OWNERS).with_context(|| format!("create {OWNERS} (run as root)"))?;
    let directory = File::open(OWNERS).with_context(|| format!("open {OWNERS}"))?;
    let _processes = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow!("lock {OWNERS}: {error}"))?;
    if !is_bpffs(Path::new(BPFFS)) {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount bpf on {BPFFS}"))?;
    }
    Ok(())
}

/// Whether a BPF file system is mounted at `path`.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// A network namespace; dropped, it is deleted with all interfaces in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes `OWNER-role` with `lo` up, and with what disturbs tests off: duplicate address detection, router
    /// advertisements and ICMP rate limits.
    ///
    /// # Errors
    /// When `ip netns add` fails, most often for want of root.
    pub fn new(owner: &Owner, role: &str) -> Result<Self> {
        let name = format!("{}-{role}", owner.id());
        check(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        for (key, value) in [
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        // Per namespace only since Linux 6.11; before that the machine's own limit holds, and is enough for tests.
        let _ = namespace.sysctl("net/ipv4/icmp_msgs_per_sec", "1000000");
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that `setns` and `nsenter --net` take.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run inside. The process dies with the thread that starts it.
    ///
    /// Only the network changes: `ip netns exec` would also mount a fresh /sys, without the BPF file system.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_that_dies_of(Signal::SIGKILL, program)
    }

    /// Like [`Self::command`], with the signal that it gets when the thread that started it ends.
    #[must_use]
    pub fn command_that_dies_of(
        &self,
        signal: Signal,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Command {
        let namespace = File::open(self.path());
        let mut command = Command::new(program);
        let enter = move || {
            let namespace = namespace.as_ref().map_err(|error| error.kind())?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(signal)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls on a file opened before; it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command line (split at white space, no quoting) and returns what it printed.
    ///
    /// # Errors
    /// When it cannot start or exits with anything but 0; the message has its stderr.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = check(&mut self.line(line)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What an operator would see in it: interfaces, programs on them, qdiscs.
    ///
    /// # Errors
    /// Those of `ip` and `tc`.
    pub fn look(&self) -> Result<String> {
        let links: serde_json::Value = serde_json::from_str(&self.run("ip -j -d link show")?)?;
        let mut look: Vec<String> = links
            .as_array()
            .context("list the interfaces")?
            .iter()
            .map(|link| {
                // Not the flags of the carrier, which the kernel updates up to a second late.
                let flags = link["flags"].as_array();
                let up = flags.is_some_and(|flags| flags.contains(&"UP".into()));
                format!(
                    "{} up {up} xdp {} promiscuity {}",
                    link["ifname"], link["xdp"], link["promiscuity"]
                )
            })
            .collect();
        look.push(self.run("tc qdisc show")?);
        Ok(look.join("\n"))
    }

    /// Whether a command line exits with 0.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn succeeds(&self, line: &str) -> Result<bool> {
        let output = self
            .line(line)?
            .output()
            .with_context(|| format!("run `{line}` in {}", self.name))?;
        Ok(output.status.success())
    }

    fn line(&self, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let program = words.next().context("run an empty command line")?;
        let mut command = self.command(program);
        command.args(words);
        Ok(command)
    }

    /// Runs `ip` commands, one a line, without the leading `ip`.
    ///
    /// # Errors
    /// At the first that fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        feed(self.command("ip").args(["-batch", "-"]), batch)
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// When nft rejects it; nothing of it is loaded then.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        feed(self.command("nft").args(["-f", "-"]), ruleset)
    }

    /// Writes a sysctl, named by its path below /proc/sys.
    ///
    /// # Errors
    /// When it does not exist or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("set {key} to {value}"))
        })
    }

    /// Runs `work` on a thread inside, for sockets and the like.
    ///
    /// # Errors
    /// Those of `work`, and those of entering. A panic of `work` goes on here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace =
            File::open(self.path()).with_context(|| format!("open namespace {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter namespace {}", self.name))?;
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("in {}", self.name))
    }

    /// Whether an address answers an ordinary ping within two seconds (see [`crate::pace`]): the first of an interface
    /// that has just come up may wait a second for the neighbour.
    ///
    /// # Errors
    /// When ping cannot start.
    pub fn pings(&self, address: impl std::fmt::Display) -> Result<bool> {
        let patience = crate::pace::slow(Duration::from_secs(2)).as_secs();
        self.succeeds(&format!("ping -n -c 1 -i 0.2 -w {patience} {address}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot start or exits with anything but 0; the message has its stderr.
pub fn check(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("start `{}` (is it installed?)", shown(command)))?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(output)
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}` (is it installed?)", shown(command)))?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("{}, given:\n{input}", failure(command, &output));
    }
    // It may be done before it has read everything, but then it has said why above.
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("write to `{}`", shown(command)))
        }
        _ => Ok(()),
    }
}

fn failure(command: &Command, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    format!("`{}`: {}: {}", shown(command), output.status, said.trim())
}

/// A command as one would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

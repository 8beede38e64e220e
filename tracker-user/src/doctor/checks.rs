//! What is looked at beside the interfaces themselves.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    thread,
};

use aya::{EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions, programs::Program};
use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::{FsFlags, statvfs},
};
use tracker_ebpf::{abi, probe};

use super::{By, Check, Interface, State};
use crate::{
    config::Config,
    datapath::{OBJECT, error::DatapathError, object, pins, public},
    error::full,
    host::{preflight, privileges, realtime, trial},
    net::{ethtool, rtnetlink::Netlink, sysfs::Sysfs},
    plan::mode::SendWay,
};

/// Descriptors of a daemon without interfaces: maps, programs, sockets, clients.
const OPEN_FILES: u64 = 512;
/// Descriptors of each interface: links of the programs on it, its counters.
const OPEN_FILES_EACH: u64 = 4;

/// Everything but what single interfaces are like.
pub(super) fn of_host(config: Option<&Config>, by: By, netlink: &Netlink) -> Vec<Check> {
    let mut checks = Vec::new();
    match by {
        By::Command => {
            let needed = needed();
            let can_load = needed.iter().all(|check| check.state != State::Fail);
            checks.extend(needed);
            if can_load {
                checks.extend(programs());
            }
            checks.push(real_time());
            checks.push(counters());
        }
        By::Daemon => checks.push(Check::ok("start", "the daemon has started")),
    }
    checks.extend(throttling());
    let default_bpffs = PathBuf::from("/sys/fs/bpf");
    checks.push(bpffs(
        config.map_or(&default_bpffs, |config| &config.hub.bpffs),
    ));
    checks.extend(verdict_maps(
        config.map_or(&default_bpffs, |config| &config.hub.bpffs),
    ));
    if let Some(config) = config {
        let socket = config.hub.socket.parent();
        checks.extend(socket.map(socket_directory));
        checks.push(state_directory(&config.hub.state));
    }
    checks.push(match netlink.has_xdp_features() {
        true => Check::ok(
            "xdp-features (Linux 6.3)",
            "the kernel tells which devices take redirected frames",
        ),
        false => Check::warn(
            "xdp-features (Linux 6.3)",
            "the kernel does not tell which devices take redirected frames",
            "every device is sent to by TC redirect, which costs more; boot a newer kernel for less",
        ),
    });
    checks.push(sysctls());
    checks.push(open_files(netlink.observed.links.values().count() as u64));
    checks.extend(clock());
    let families = [("ipv4", "neighbours (IPv4)"), ("ipv6", "neighbours (IPv6)")];
    checks.extend(families.into_iter().filter_map(|(family, name)| {
        // Only the first network namespace shows the limit, which holds for all of them together.
        let limit = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
        let limit = fs::read_to_string(limit).ok()?.trim().parse().ok()?;
        neighbours(name, config?, family == "ipv4", limit)
    }));
    checks
}

/// What the daemon asks for before anything else, by the same functions ([`preflight::require`]).
fn needed() -> Vec<Check> {
    let mut checks = vec![match preflight::require_root() {
        Ok(()) => Check::ok("root", "running as root"),
        Err(error) => Check::fail("root", &full(&error).to_string()),
    }];
    checks.push(match privileges::require() {
        Ok(()) => Check::ok("capabilities", "all that the daemon cannot do without"),
        Err(error) => Check::fail("capabilities", &full(&error).to_string()),
    });
    // Without these, a kernel refuses anything.
    if checks.iter().all(|check| check.state != State::Fail) {
        checks.push(match preflight::live_frames() {
            Ok(()) => Check::ok("live frames (Linux 5.18)", "the kernel sends them"),
            Err(error) => Check::fail("live frames (Linux 5.18)", &full(&error).to_string()),
        });
    }
    checks
}

/// Whether the kernel takes the programs, compiles them, and has the newer way to attach them.
fn programs() -> Vec<Check> {
    let compiled = match try_programs() {
        Ok(compiled) => compiled,
        Err(error) => {
            return vec![Check::fail(
                "programs load and run",
                &full(&error).to_string(),
            )];
        }
    };
    let jit = match compiled {
        true => Check::ok("JIT compiler", "the kernel compiles the programs"),
        false => Check::warn(
            "JIT compiler",
            "off: programs are interpreted and slow",
            "set net.core.bpf_jit_enable=1",
        ),
    };
    let tcx = match trial::tcx() {
        Ok(true) => Check::ok(
            "TCX (Linux 6.6)",
            "TC programs attach beside others and are pinned",
        ),
        Ok(false) | Err(_) => Check::warn(
            "TCX (Linux 6.6)",
            "missing: clsact filters are used, which a killed daemon leaves until its next start",
            "`tracker cleanup` removes them; boot a newer kernel for links that go by themselves",
        ),
    };
    vec![
        Check::ok(
            "programs load and run",
            "the verifier takes them all, and live frames run",
        ),
        jit,
        tcx,
    ]
}

/// Loads all programs, pinned nowhere and attached to nothing, and runs one live frame that is dropped. True if the kernel
/// compiled it.
fn try_programs() -> Result<bool, DatapathError> {
    let mut ebpf = EbpfLoader::new()
        // Large, and of no use to a trial.
        .map_max_entries(tracker_ebpf::public::VERDICTS, 1)
        .load(OBJECT)
        .map_err(DatapathError::Maps)?;
    let generic = [abi::program::RECEIVE_GENERIC, abi::program::STEER_GENERIC];
    for name in abi::program::ALL
        .into_iter()
        .chain(generic)
        .chain(abi::program::STEERING_ALL)
    {
        object::load(&mut ebpf, name)?;
    }
    let Some(Program::Xdp(send)) = ebpf.program_mut(abi::program::SEND) else {
        return Err(DatapathError::NotInObject(abi::program::SEND));
    };
    send.test_run(TestRunOptions {
        data_in: Some(&[0; probe::LEN_V4]),
        repeat: 1,
        attrs: TestRunAttrs::new().xdp_live_frames(1),
        ..Default::default()
    })?;
    Ok(send.info()?.size_jitted() > 0)
}

/// Whether the sending thread gets its priority; tried by a thread that ends.
fn real_time() -> Check {
    const NAME: &str = "real-time priority";
    match thread::spawn(realtime::prefer).join() {
        Ok(Ok(())) => Check::ok(NAME, "the sending thread runs before ordinary work"),
        Ok(Err(error)) => Check::warn(
            NAME,
            format!(
                "refused ({error}): a busy hub delays probes, and their losses then count as void"
            ),
            "grant CAP_SYS_NICE, or a limit RLIMIT_RTPRIO of 10 or more",
        ),
        Err(_) => Check::warn(NAME, "cannot be tried", "report this: it is a bug"),
    }
}

/// How much of the time the kernel lets real-time threads have.
fn throttling() -> Option<Check> {
    const NAME: &str = "real-time throttling";
    let read = |name: &str| -> Option<i64> {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let (runtime, period) = (read("sched_rt_runtime_us")?, read("sched_rt_period_us")?);
    Some(match runtime {
        ..0 => Check::ok(NAME, "off"),
        0 => Check::warn(
            NAME,
            "real-time threads get no time at all",
            "set kernel.sched_rt_runtime_us to 950000",
        ),
        _ if runtime * 2 < period => Check::warn(
            NAME,
            format!(
                "real-time threads get {runtime} us of each {period} us, then stand still: probes are late"
            ),
            "set kernel.sched_rt_runtime_us to 950000",
        ),
        _ => Check::ok(
            NAME,
            format!("{runtime} us of each {period} us: more than the sending thread takes"),
        ),
    })
}

/// Whether interfaces' counters can be read without waiting for other users of the kernel's network locks.
fn counters() -> Check {
    const NAME: &str = "interface counters";
    match Sysfs::mount() {
        Ok(_) => Check::ok(NAME, "a sysfs of this network namespace can be mounted"),
        Err(error) => Check::warn(
            NAME,
            format!(
                "no sysfs can be mounted ({error}): they are asked by netlink, and whatever keeps RTNL delays verdicts"
            ),
            "grant CAP_SYS_ADMIN, and allow fsopen(), fsconfig() and fsmount()",
        ),
    }
}

fn bpffs(path: &Path) -> Check {
    const NAME: &str = "BPF file system";
    let shown = path.display();
    if pins::is_mounted(path) {
        return match is_read_only(path) {
            true => Check::fail(
                NAME,
                &format!("mounted read-only at {shown}; mount it for writing"),
            ),
            false => Check::ok(NAME, format!("mounted at {shown}")),
        };
    }
    match can_be_made(path) {
        true => Check::warn(
            NAME,
            format!("not mounted at {shown}: the daemon mounts it"),
            "in a container, mount the host's there: what the daemon keeps is lost with its own",
        ),
        false => Check::fail(
            NAME,
            &format!("not mounted at {shown}, and the directory cannot be made; mount it there"),
        ),
    }
}

/// Whether programs of other users can open the verdict maps.
fn verdict_maps(bpffs: &Path) -> Option<Check> {
    const NAME: &str = "verdict maps";
    if !pins::is_mounted(bpffs) {
        return None;
    }
    let shown = bpffs.display();
    Some(match public::closed_above(bpffs) {
        Ok(None) => Check::ok(NAME, format!("every user can read those below {shown}")),
        Ok(Some((directory, mode))) => Check::ok(
            NAME,
            format!(
                "only root can read those below {shown}: {} has mode {mode:04o}; mode 0711 lets others read them",
                directory.display()
            ),
        ),
        Err(error) => Check::ok(NAME, format!("it is not known who can read them ({error})")),
    })
}

/// The directory of the socket, without which the daemon does not start.
fn socket_directory(directory: &Path) -> Check {
    const NAME: &str = "socket directory";
    let shown = directory.display();
    match is_writable(directory) {
        true => Check::ok(NAME, format!("{shown} can be written to")),
        false => Check::fail(
            NAME,
            &format!(
                "{shown} is on a read-only file system; mount one for writing there, or set another hub.socket"
            ),
        ),
    }
}

/// The directory of what outlives a reboot, without which the daemon runs.
fn state_directory(directory: &Path) -> Check {
    const NAME: &str = "state directory";
    let shown = directory.display();
    match is_writable(directory) {
        true => Check::ok(NAME, format!("{shown} can be written to")),
        false => Check::warn(
            NAME,
            format!(
                "{shown} is on a read-only file system: the tag of the instance's probes does not outlive its pins"
            ),
            "mount one for writing there, or set another hub.state",
        ),
    }
}

/// Whether a directory that the daemon makes, or finds, can be written to.
fn is_writable(directory: &Path) -> bool {
    !is_read_only(existing(directory))
}

/// A path, or the nearest directory above it that exists.
fn existing(path: &Path) -> &Path {
    let mut above = path.ancestors();
    above.find(|path| path.exists()).unwrap_or(path)
}

fn can_be_made(path: &Path) -> bool {
    path.exists() || !is_read_only(existing(path))
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn sysctls() -> Check {
    const NAME: &str = "/proc/sys";
    match is_read_only(Path::new("/proc/sys")) {
        false => Check::ok(NAME, "can be written to"),
        true => Check::warn(
            NAME,
            "read-only: IPv6 stays on on the private interfaces, which send router solicitations to each other",
            "nothing need be done; for less noise, mount it for writing",
        ),
    }
}

fn open_files(interfaces: u64) -> Check {
    const NAME: &str = "open files";
    let needed = OPEN_FILES + OPEN_FILES_EACH * interfaces;
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < needed => Check::warn(
            NAME,
            format!("at most {hard}, and {interfaces} interfaces may take {needed}"),
            format!("raise the hard limit (LimitNOFILE, ulimit -Hn) to {needed} or more"),
        ),
        Ok((_, hard)) => Check::ok(NAME, format!("{hard}, of which {needed} may be needed")),
        Err(error) => Check::warn(NAME, format!("unknown ({error})"), "nothing need be done"),
    }
}

fn clock() -> Option<Check> {
    const NAME: &str = "clock";
    Some(match trial::is_clock_synchronised()? {
        true => Check::ok(NAME, "synchronised"),
        false => Check::warn(
            NAME,
            "not synchronised: times of events may be wrong, verdicts are not affected",
            "run chrony or systemd-timesyncd",
        ),
    })
}

/// Whether the kernel's neighbour table has room for the endpoints of a family beside the hub's own neighbours; `None` without
/// such endpoints.
fn neighbours(name: &str, config: &Config, is_ipv4: bool, limit: usize) -> Option<Check> {
    let members = config.services.iter().flat_map(|service| &service.members);
    let endpoints: HashSet<_> = members
        .map(|member| member.endpoint)
        .filter(|endpoint| endpoint.is_ipv4() == is_ipv4)
        .collect();
    let count = endpoints.len();
    let family = if is_ipv4 { "ipv4" } else { "ipv6" };
    let key = format!("net.{family}.neigh.default.gc_thresh3");
    let check = match count <= limit / 2 {
        true => Check::ok(
            name,
            format!("{count} endpoints, of {limit} entries ({key})"),
        ),
        false => Check::warn(
            name,
            format!("{count} endpoints take more than half of the {limit} entries of this host"),
            format!("set {key} to {} or more", 4 * count),
        ),
    };
    (count > 0).then_some(check)
}

/// What slows probing down on an interface.
pub(super) fn of_interface(interface: &Interface) -> Option<Check> {
    let processors = thread::available_parallelism().map_or(1, usize::from) as u32;
    match (interface.send, ethtool::queues(&interface.name)) {
        (Some(SendWay::XdpRedirect), Some((now, most))) => {
            too_few_queues(&interface.name, now, most, processors)
        }
        _ => None,
    }
}

/// Drivers of NICs (mlx5, i40e) refuse frames that a processor redirects whose number is not below their queues.
fn too_few_queues(name: &str, now: u32, most: u32, processors: u32) -> Option<Check> {
    (now < processors).then(|| {
        Check::warn(
            format!("queues of {name}"),
            format!("{now} for {processors} processors: the driver may refuse probes that others of them send"),
            format!("ethtool -L {name} combined {}", most.min(processors)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_neighbour_table_has_room_or_not() {
        let service = |number: u32, endpoint: &str| {
            format!(
                "[[service]]\nname = \"fw-{number}\"\nendpoint = \"{endpoint}\"\nbehind = [\"10.20.0.9\"]\n"
            )
        };
        let text: String = ["10.9.0.2", "10.9.0.3", "10.9.0.3"]
            .into_iter()
            .zip(1..)
            .map(|(endpoint, number)| service(number, endpoint))
            .collect();
        let config = config::parse(&text, Path::new("test")).expect("a good config");
        let found = |is_ipv4, limit| neighbours("neighbours", &config, is_ipv4, limit);
        assert_eq!(found(true, 4).map(|check| check.state), Some(State::Ok));
        let check = found(true, 3).expect("endpoints");
        assert_eq!(check.state, State::Warn);
        assert!(
            check
                .detail
                .ends_with("set net.ipv4.neigh.default.gc_thresh3 to 8 or more"),
            "{}",
            check.detail
        );
        assert!(found(false, 3).is_none());
    }

    #[test]
    fn queues_are_held_against_processors() {
        assert!(too_few_queues("eth0", 8, 8, 8).is_none());
        let check = too_few_queues("eth0", 2, 63, 8).expect("a warning");
        assert_eq!(check.remedy.as_deref(), Some("ethtool -L eth0 combined 8"));
    }

    #[test]
    fn directories_are_looked_at_before_they_are_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("a/b/c");
        assert_eq!(existing(&deep), directory.path());
        assert_eq!(state_directory(&deep).state, State::Ok);
        assert!(!deep.exists());
        // /proc/sys is read-only in some containers.
        let nowhere = Path::new("/proc/sys/none");
        let is_read_only = is_read_only(Path::new("/proc/sys"));
        assert_eq!(socket_directory(nowhere).state == State::Fail, is_read_only);
        assert_eq!(state_directory(nowhere).state == State::Warn, is_read_only);
    }
}

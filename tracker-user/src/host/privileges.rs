//! What the daemon may do: less once it is set up than while it is being set up, and never more again.
//!
//! `dist/tracker.service` grants the same; a test holds it against the constants here.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::errno::Errno;
use nix::unistd::{self, Gid};

use crate::error::full;

/// What the running daemon keeps.
pub const RUN: [Capability; 3] = [
    // Interfaces, neighbours, clsact filters; `/proc/sys/net` goes by it too.
    Capability::CAP_NET_ADMIN,
    // Programs that a reload loads. Linux 5.18 asks for it at every `bpf()` if unprivileged_bpf_disabled is
    // set; from 5.19 on, links and live frames go by the descriptor alone.
    Capability::CAP_BPF,
    // Without it the verifier takes no difference of packet pointers.
    Capability::CAP_PERFMON,
];

/// What it needs besides while it starts.
pub const START: [Capability; 6] = [
    // The bounding set is emptied.
    Capability::CAP_SETPCAP,
    // A program is taken by its id; the BPF file system may have to be mounted.
    Capability::CAP_SYS_ADMIN,
    // The sending thread's real-time priority.
    Capability::CAP_SYS_NICE,
    // The packet sockets: by one next hops are solicited, one watches for replies that come a wrong way.
    Capability::CAP_NET_RAW,
    // Metrics and the API on a port below 1024.
    Capability::CAP_NET_BIND_SERVICE,
    // The group of the socket, which only its members may give a file to.
    Capability::CAP_SETGID,
];

/// What [`START`] has and the unit in `dist` does not grant, because it grants the same in another way: `LimitRTPRIO` the
/// priority, `SupplementaryGroups` of a drop-in the group of the socket; and under `NoNewPrivileges` nothing comes of a bounding set
/// that is not empty.
pub const UNIT_LACKS: [Capability; 3] = [
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SETGID,
];

/// Why this process lacks capabilities, or cannot give up others.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// It is not known what it has.
    #[error("cannot read the capabilities")]
    Read(#[source] CapsError),
    /// Some are missing.
    #[error(
        "loading eBPF programs needs {0}, which this process lacks; grant them, or run it as root outside a container"
    )]
    Missing(String),
    /// Those that are not needed cannot be given up.
    #[error("cannot give up capabilities")]
    GiveUp(#[source] GiveUpError),
}

/// What the kernel answered to a thread that gives up capabilities.
#[derive(Debug, thiserror::Error)]
pub enum GiveUpError {
    /// To prctl(2).
    #[error(transparent)]
    Prctl(#[from] Errno),
    /// To a change of the sets.
    #[error(transparent)]
    Caps(#[from] CapsError),
}

/// Refuses to go on if one is missing without which the daemon could not start.
///
/// # Errors
/// One line that names them.
pub fn require() -> Result<(), PrivilegesError> {
    let held = caps::read(None, CapSet::Effective).map_err(PrivilegesError::Read)?;
    // Of the others, each is needed only by some; what they are needed for says so.
    let needed = RUN.iter().chain([&Capability::CAP_SYS_ADMIN]);
    let missing: Vec<_> = needed
        .filter(|capability| !held.contains(capability))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(PrivilegesError::Missing(missing.join(", ")));
    }
    Ok(())
}

/// Gives up, for this thread and those that it starts later, whatever is needed neither to start nor to
/// run, and the ways to get anything back.
///
/// # Errors
/// As the kernel answers.
pub fn limit_to_start() -> Result<(), PrivilegesError> {
    let give_up = || -> Result<(), GiveUpError> {
        nix::sys::prctl::set_no_new_privs()?;
        caps::clear(None, CapSet::Ambient)?;
        let bounding = caps::read(None, CapSet::Bounding)?;
        let is_limited = |capability| RUN.contains(capability) || START.contains(capability);
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            for capability in bounding {
                if !RUN.contains(&capability) {
                    caps::drop(None, CapSet::Bounding, capability)?;
                }
            }
        } else if !bounding.iter().all(is_limited) {
            // Nothing can come of it: programs that this process may start gain nothing (no_new_privs).
            tracing::warn!("the bounding set stays as it is; grant CAP_SETPCAP");
        }
        keep(|capability| RUN.contains(&capability) || START.contains(&capability))
    };
    give_up().map_err(PrivilegesError::GiveUp)
}

/// Makes this thread, and those that it starts later, members of a group: only then can they give files to the group without a
/// capability.
///
/// # Errors
/// As the kernel answers.
pub fn join(group: Gid) -> Result<(), Errno> {
    let mut groups = unistd::getgroups()?;
    if groups.contains(&group) || unistd::getegid() == group {
        return Ok(());
    }
    groups.push(group);
    let groups: Vec<libc::gid_t> = groups.into_iter().map(Gid::as_raw).collect();
    // setgroups(3) of glibc has every thread do it and aborts the process if one may not: the watchdog's has given the
    // capability up. The system call is about the calling thread alone.
    // SAFETY: the kernel reads that many group numbers from the vector.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Gives up, for this thread and those that it starts later, whatever is not needed to run.
///
/// # Errors
/// As the kernel answers.
pub fn limit_to_run() -> Result<(), PrivilegesError> {
    keep(|capability| RUN.contains(&capability)).map_err(PrivilegesError::GiveUp)
}

/// Gives up, for this thread and those that it starts later, whatever is not needed to run; logs a failure, which `thread` names.
pub fn limit_thread(thread: &str) {
    if let Err(error) = limit_to_run() {
        tracing::error!("{}; {thread} keeps more than it needs", full(&error));
    }
}

/// What `tracker act` keeps of the capabilities that it has.
pub const ACT: [Capability; 5] = [
    // Next hops and routes.
    Capability::CAP_NET_ADMIN,
    // The user of a hook, and the end of a hook that runs as another user.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
    // The socket of FRR's bfdd, which only the user frr may write to.
    Capability::CAP_DAC_OVERRIDE,
];

/// Gives up, for this thread and those that it starts later, whatever `tracker act` does not need, and the ways to get anything
/// back; logs a failure.
pub fn limit_to_act() {
    let give_up = || -> Result<(), GiveUpError> {
        nix::sys::prctl::set_no_new_privs()?;
        caps::clear(None, CapSet::Ambient)?;
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            for capability in caps::read(None, CapSet::Bounding)? {
                if !ACT.contains(&capability) {
                    caps::drop(None, CapSet::Bounding, capability)?;
                }
            }
        }
        keep(|capability| ACT.contains(&capability))
    };
    if let Err(error) = give_up() {
        tracing::error!("{}", full(&PrivilegesError::GiveUp(error)));
    }
}

fn keep(is_kept: impl Fn(Capability) -> bool) -> Result<(), GiveUpError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = held.into_iter().filter(|held| is_kept(*held)).collect();
    // In this order: what is effective must be permitted.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(())
}

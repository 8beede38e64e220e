//! What the daemon needs of this kernel, tried one by one before anything is changed.

use std::io;

use super::{
    privileges::{self, PrivilegesError},
    trial,
};

/// The kernel release that live frames need (`BPF_F_TEST_XDP_LIVE_FRAMES`).
pub const LINUX_MIN: (u32, u32) = (5, 18);

/// Why a command cannot do its work on this host.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// It does not run as root.
    #[error("loading and removing eBPF programs needs root; run this with sudo")]
    Root,
    /// It lacks capabilities.
    #[error(transparent)]
    Privileges(#[from] PrivilegesError),
    /// The kernel is too old.
    #[error(
        "Linux {}.{} cannot send live frames, which need {}.{}; boot a newer kernel",
        .0.0, .0.1, LINUX_MIN.0, LINUX_MIN.1
    )]
    Kernel((u32, u32)),
    /// The kernel has live frames, and does not run one.
    #[error(
        "the kernel runs no live frame; a container's seccomp profile or a security module may forbid bpf(): allow it"
    )]
    LiveFrames(#[source] io::Error),
}

/// The running kernel's version; zeros if it can't be read.
pub fn linux_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.trim().parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Refuses to go on without root.
///
/// # Errors
/// One line that says what to do.
pub fn require_root() -> Result<(), PreflightError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(PreflightError::Root);
    }
    Ok(())
}

/// Refuses to start if the daemon could not work.
///
/// # Errors
/// One line that says what is missing and what to do.
pub fn require() -> Result<(), PreflightError> {
    require_root()?;
    privileges::require()?;
    live_frames()
}

/// Refuses to go on with a kernel that sends no live frames. Its version is named only if it explains that.
///
/// # Errors
/// One line that says what to do.
pub fn live_frames() -> Result<(), PreflightError> {
    trial::live_frames().map_err(|error| match linux_version() {
        version if version < LINUX_MIN => PreflightError::Kernel(version),
        _ => PreflightError::LiveFrames(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_named() {
        assert_eq!(
            PreflightError::Kernel((5, 10)).to_string(),
            "Linux 5.10 cannot send live frames, which need 5.18; boot a newer kernel"
        );
    }
}

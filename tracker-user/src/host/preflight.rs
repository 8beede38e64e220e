//! What the daemon needs of this kernel, tried one by one before anything is changed.

use anyhow::{Result, bail};

use super::privileges;

/// The kernel release that live frames need (`BPF_F_TEST_XDP_LIVE_FRAMES`).
pub const LINUX_MIN: (u32, u32) = (5, 18);

/// The running kernel's version; zeros where it can't be read.
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
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading and removing eBPF programs needs root; run this with sudo");
    }
    Ok(())
}

/// Refuses to start where the daemon could not work.
///
/// # Errors
/// One line that says what is missing and what to do.
pub fn require() -> Result<()> {
    require_root()?;
    privileges::require()?;
    let version = linux_version();
    if version < LINUX_MIN {
        bail!(
            "Linux {}.{} cannot send live frames, which need {}.{}; boot a newer kernel",
            version.0,
            version.1,
            LINUX_MIN.0,
            LINUX_MIN.1
        );
    }
    Ok(())
}

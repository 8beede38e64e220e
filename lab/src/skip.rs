//! Skipping a test, always with a reason that can be checked.

use std::io::Write;

/// Ends the test (a function returning `anyhow::Result<()>`) as skipped and prints why.
///
/// Only for what this kernel lacks, and only after probing for it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skip::report(module_path!(), &format!($($reason)*));
        return Ok(());
    }};
}

/// Ends the test as skipped if it does not run as root: the kernel would refuse everything.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::skip::is_root() {
            $crate::skip!("needs root");
        }
    };
}

/// Whether the process may load programs and make network namespaces.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Prints the line `SKIP: TEST: REASON` past the capture of the test runner, which would swallow it.
pub fn report(test: &str, reason: &str) {
    // With stderr closed, there is nowhere to report it.
    let _ = writeln!(std::io::stderr(), "SKIP: {test}: {reason}");
}

/// Whether the kernel tells which devices take redirected frames (the netdev family, Linux 6.3). Without that all probes leave by TC.
#[must_use]
pub fn tells_xdp_features() -> bool {
    linux() >= (6, 3)
}

/// The running kernel's version, for what came with one; zeros if it can't be read.
#[must_use]
pub fn linux() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.trim().parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

//! `cargo xtask load`: builds and becomes the daemon.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Result, anyhow, bail};

use crate::{build, sh, toolchain::Need};

/// Returns only when the daemon could not be started.
pub fn run(config: &Path) -> Result<()> {
    let tracker = build::tracker(&[Need::Build])?;
    let mut daemon = Command::new(&tracker);
    daemon.args(["run", "--config"]).arg(config);
    if !sh::is_root() {
        bail!(
            "loading eBPF programs needs root: run `sudo {}`",
            sh::show(&daemon)
        );
    }
    // Replaced, not started: the daemon gets the terminal's and the supervisor's signals itself.
    let error = daemon.exec();
    Err(anyhow!("cannot start `{}`: {error}", sh::show(&daemon)))
}

//! `cargo xtask bench`.

use std::path::Path;

use anyhow::{Result, bail};

/// Runs the bench on the release binary `tracker`.
pub fn run(_json: bool, tracker: &Path) -> Result<()> {
    bail!("the bench of {} is not written yet", tracker.display())
}

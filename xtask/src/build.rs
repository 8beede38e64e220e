//! `cargo xtask build`: the daemon with the eBPF object inside, in one file.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{setup, sh, toolchain::Need};

/// Builds and prints the path and the size.
pub fn run() -> Result<()> {
    let tracker = tracker(&[Need::Build])?;
    let bytes = fs::metadata(&tracker)
        .with_context(|| format!("cargo did not leave {}", tracker.display()))?
        .len();
    println!("{} ({:.1} MB)", tracker.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Sets up what is missing, builds, and returns the path of the release binary.
pub fn tracker(needs: &[Need]) -> Result<PathBuf> {
    setup::ensure(needs)?;
    sh::run(sh::cargo().args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "tracker-user",
    ]))?;
    Ok(target_dir()?.join("release/tracker"))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    let mut command = sh::cargo();
    command.args(["metadata", "--format-version=1", "--no-deps", "--locked"]);
    let metadata = sh::output(&mut command)
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .with_context(|| format!("`{}` failed", sh::show(&command)))?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(target.into())
}

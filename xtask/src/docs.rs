//! `cargo xtask docs`: what of the documentation is generated from the code, and whether the tree has it as it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, setup, sh, toolchain::Need};

/// Writes the generated files into the tree.
pub fn run() -> Result<()> {
    setup::ensure(&[Need::Build])?;
    generate(sh::root())
}

/// The generated files that the tree has otherwise, or not at all.
///
/// # Errors
/// If they cannot be generated or read.
pub fn check() -> Result<()> {
    let fresh = build::target_dir()?.join("docs-check");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot empty {}", fresh.display()))?;
    }
    generate(&fresh)?;
    let mut stale = Vec::new();
    for file in files(&fresh)? {
        let name = file.strip_prefix(&fresh)?;
        if fs::read(&file)? != fs::read(sh::root().join(name)).unwrap_or_default() {
            stale.push(name.display().to_string());
        }
    }
    if !stale.is_empty() {
        bail!(
            "not as generated: {}; run `cargo xtask docs` and commit what it writes",
            stale.join(", ")
        );
    }
    Ok(())
}

fn generate(root: &Path) -> Result<()> {
    sh::run(
        sh::cargo()
            .args(["run", "--quiet", "--release", "--locked"])
            .args(["--package", "tracker-user", "--example", "reference", "--"])
            .arg(root),
    )
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}

//! `cargo xtask docs`: what of the documentation is generated from the code, and whether the tree has it as it is.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{build, setup, sh, toolchain::Need};

/// Writes the generated files into the tree, and the pictures if they are wanted.
pub fn run(screenshots: bool) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    generate(sh::root())?;
    match screenshots {
        true => pictures(),
        false => Ok(()),
    }
}

/// Has a test write pictures of the web page, which shows a real daemon.
fn pictures() -> Result<()> {
    sh::require_root(
        "loading eBPF programs and making network namespaces",
        "cargo xtask docs --screenshots",
    )?;
    let tracker = build::tracker(&[Need::Build, Need::Demo, Need::Test])?;
    let images = sh::root().join("docs/images");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    sh::run(
        sh::cargo()
            .args([
                "test",
                "--release",
                "--locked",
                "--package",
                "tracker-tests",
                "--test",
                "e2e",
                "--",
            ])
            .args(["--exact", "web::pictures_of_the_documentation"])
            .env("TRACKER_BIN", tracker)
            .env("TRACKER_SCREENSHOTS", images),
    )
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
    for file in sh::files(&fresh, |_| true)? {
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

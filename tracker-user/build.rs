//! Builds the eBPF object from `../tracker-ebpf` into `OUT_DIR/tracker.bpf.o`, which the library embeds.
//! Any cargo command thus works on an object that matches its source.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

#[path = "../xtask/src/bpf.rs"]
mod bpf;

fn main() {
    if let Err(message) = build() {
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let workspace = Path::new("..");
    for path in [
        "tracker-ebpf/src",
        "tracker-ebpf/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for name in ["XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed={}", bpf::record_file()?.display());
    let toolchain = bpf::Toolchain::load()?;

    let variable = |name| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = bpf_target_dir(&out_dir);
    let mut command = toolchain.cargo(&variable("CARGO")?, "build", &target_dir, &[]);
    command.args(bpf::PACKAGE_ARGS);
    if env::var_os("CARGO_FEATURE_BPF_LOG").is_some() {
        command.args(["--features", bpf::LOG_FEATURE]);
    }
    let output = command
        .output()
        .map_err(|error| format!("cannot run cargo for the eBPF object: {error}"))?;
    if !output.status.success() {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo::error={line}");
        }
        return Err(format!(
            "the eBPF object did not build with {} and {}; if these have moved, run `cargo xtask setup`",
            toolchain.rustc.display(),
            toolchain.linker.display()
        ));
    }

    let object = bpf::Toolchain::artifact(&target_dir, "tracker-bpf");
    fs::copy(&object, out_dir.join("tracker.bpf.o"))
        .map_err(|error| format!("cannot copy the eBPF object {}: {error}", object.display()))?;
    Ok(())
}

/// A target directory beside the profiles, so that debug, release and lint compile aya once. Not the
/// calling cargo's own: that one is locked.
fn bpf_target_dir(out_dir: &Path) -> PathBuf {
    // TARGET_DIR/PROFILE/build/PACKAGE-HASH/out, which cargo does not promise.
    match out_dir.ancestors().nth(2) {
        Some(build) if build.ends_with("build") => build.join("../../bpf"),
        _ => out_dir.join("bpf"),
    }
}

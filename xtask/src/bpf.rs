//! How the eBPF object is built: the recorded toolchain and the one cargo command that uses it.
//!
//! `tracker-user/build.rs` includes this file as a module, so a build, a lint and the proof at the end
//! of `cargo xtask setup` cannot disagree on a flag. Standard library only, for that reason.
#![allow(
    dead_code,
    reason = "xtask and tracker-user's build script each use a part"
)]

use std::{
    env,
    ffi::OsStr,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The target that rustc and bpf-linker build for.
pub const TARGET: &str = "bpfel-unknown-none";

/// Where `core` for [`TARGET`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Debian's own rustc, with its prebuilt `core`.
    Debian,
    /// The developer's own rustc with the `rust-src` component: `core` is built with the object.
    RustSrc,
}

impl Way {
    /// Parses the name that [`Display`](fmt::Display) writes.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Debian, Self::RustSrc]
            .into_iter()
            .find(|way| way.to_string() == name)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::RustSrc => "rust-src",
        })
    }
}

/// What `cargo xtask setup` found or installed, recorded for the build script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where `core` comes from.
    pub way: Way,
    /// The compiler itself, not a rustup proxy.
    pub rustc: PathBuf,
    /// First line of `rustc --version`; a change makes the object stale.
    pub rustc_version: String,
    /// bpf-linker.
    pub linker: PathBuf,
    /// First line of `bpf-linker --version`.
    pub linker_version: String,
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/tracker`.
///
/// # Errors
/// Neither variable is set.
pub fn cache_dir() -> Result<PathBuf, String> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("tracker"))
        .ok_or_else(|| {
            "cannot place the toolchain's cache: neither XDG_CACHE_HOME nor HOME is an absolute \
             path; set one"
                .into()
        })
}

/// The file that records the toolchain, `key=value` a line.
///
/// # Errors
/// As [`cache_dir`].
pub fn record_file() -> Result<PathBuf, String> {
    Ok(cache_dir()?.join("toolchain"))
}

impl Toolchain {
    /// Reads the record.
    ///
    /// # Errors
    /// One line that names the file, what is wrong with it and what to do.
    pub fn load() -> Result<Self, String> {
        let file = record_file()?;
        let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                "the eBPF toolchain is not set up: run `cargo xtask setup`".into()
            }
            _ => format!(
                "cannot read {}: {error}; run `cargo xtask setup`",
                file.display()
            ),
        })?;
        Self::parse(&text).map_err(|key| {
            format!(
                "{} has no usable `{key}`: run `cargo xtask setup`",
                file.display()
            )
        })
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let get = |key: &'static str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find_map(|(k, value)| (k == key && !value.is_empty()).then_some(value))
                .ok_or(key)
        };
        Ok(Self {
            way: Way::from_name(get("way")?).ok_or("way")?,
            rustc: get("rustc")?.into(),
            rustc_version: get("rustc_version")?.into(),
            linker: get("linker")?.into(),
            linker_version: get("linker_version")?.into(),
        })
    }

    /// The text of the record.
    pub fn to_text(&self) -> String {
        format!(
            "way={}\nrustc={}\nrustc_version={}\nlinker={}\nlinker_version={}\n",
            self.way,
            self.rustc.display(),
            self.rustc_version,
            self.linker.display(),
            self.linker_version
        )
    }

    /// `cargo <subcommand>` for [`TARGET`] in the release profile; the caller names the package.
    ///
    /// Nothing of the calling cargo leaks in: neither its flags, nor clippy's or sccache's wrapper, nor
    /// its target directory (whose lock it holds). The job server is kept, so that both share the cores.
    /// `more_flags` go to rustc.
    pub fn cargo(
        &self,
        cargo: &OsStr,
        subcommand: &str,
        target_dir: &Path,
        more_flags: &[&str],
    ) -> Command {
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_callers_own) {
                command.env_remove(&name);
            }
        }
        let linker = format!("-Clinker={}", self.linker.display());
        let mut flags = vec![
            linker.as_str(),
            // Debug information is what bpf-linker makes the BTF from.
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            // The default, generic, rejects 32-bit atomics.
            "-Ctarget-cpu=v3",
        ];
        flags.extend(more_flags);
        command
            .env("RUSTC", &self.rustc)
            // Empty, not unset: a wrapper in ~/.cargo/config.toml would come back otherwise.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "")
            // The BPF target is tier 3 and its intrinsics are unstable, on stable compilers too.
            .env("RUSTC_BOOTSTRAP", "1")
            // \x1f separates, so a path may contain spaces.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .args([subcommand, "--release", "--target", TARGET, "--target-dir"])
            .arg(target_dir);
        if self.way == Way::RustSrc {
            command.arg("-Zbuild-std=core");
        }
        command
    }

    /// Where [`Toolchain::cargo`] leaves the binary `name`.
    pub fn artifact(target_dir: &Path, name: &str) -> PathBuf {
        target_dir.join(TARGET).join("release").join(name)
    }
}

/// The feature of [`PACKAGE_ARGS`] with diagnostics through aya-log besides.
pub const LOG_FEATURE: &str = "log";

/// Arguments of [`Toolchain::cargo`] that select Tracker's programs.
pub const PACKAGE_ARGS: [&str; 7] = [
    "--package",
    "tracker-ebpf",
    "--bin",
    "tracker-bpf",
    "--features",
    "bpf",
    "--locked",
];

fn is_callers_own(name: &str) -> bool {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_TERM_",
    ];
    let callers = ["CARGO_", "CLIPPY_", "RUSTC", "RUSTDOC", "RUSTFLAGS"];
    callers.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_broken_one_names_the_key() {
        let toolchain = Toolchain {
            way: Way::RustSrc,
            rustc: "/opt/rust src/bin/rustc".into(),
            rustc_version: "rustc 1.96.0 (a=b)".into(),
            linker: "/opt/bpf-linker".into(),
            linker_version: "bpf-linker 0.13.0".into(),
        };
        let text = toolchain.to_text();
        assert_eq!(Toolchain::parse(&text), Ok(toolchain));
        assert_eq!(
            Toolchain::parse(&text.replace("rust-src\n", "guess\n")),
            Err("way")
        );
        assert_eq!(
            Toolchain::parse(&text.replace("linker=", "l=")),
            Err("linker")
        );
    }

    #[test]
    fn the_callers_flags_go_and_its_registry_stays() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
        ] {
            assert!(is_callers_own(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_HTTP_PROXY",
            "PATH",
            "RUSTUP_HOME",
        ] {
            assert!(!is_callers_own(name), "{name}");
        }
    }
}

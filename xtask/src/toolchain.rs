//! What Tracker needs from the machine, how to find it and how to install it. All package names and
//! versions are the constants below.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bpf::{self, Toolchain, Way},
    sh,
};

/// bpf-linker, from crates.io.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker is built with. It reads bitcode up to this version, so a rustc with a newer
/// LLVM cannot be used.
const LLVM: u32 = 22;
/// What building bpf-linker needs.
const LLVM_PACKAGES: &[&str] = &["llvm-22-dev"];
/// Debian's compiler and its prebuilt `core` for the BPF target.
const RUST_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
/// Where [`RUST_PACKAGES`] install the compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Its clippy: package and program.
const DEBIAN_CLIPPY: Tool = ("clippy-driver", "rust-web-clippy");

/// A program and the Debian package that has it.
pub type Tool = (&'static str, &'static str);

/// What the demo runs.
const DEMO_TOOLS: &[Tool] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("bpftool", "bpftool"),
];
/// What the tests run besides.
const TEST_TOOLS: &[Tool] = &[
    ("ethtool", "ethtool"),
    ("wg", "wireguard-tools"),
    // For programs from PyPI.
    ("python3", "python3-venv"),
    // The example of an eBPF program that reads the verdict maps.
    ("clang", "clang"),
    ("/usr/include/bpf/bpf_helpers.h", "libbpf-dev"),
    // The web page is shown in a real browser.
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
];
/// axe-core, from the npm registry: finds what of the web page not everybody can use.
const AXE_VERSION: &str = "4.14.1";
/// What the bench runs besides what the demo runs.
const BENCH_TOOLS: &[Tool] = &[("fping", "fping")];
/// What `cargo xtask test --kernel` runs besides.
const EMULATE_TOOLS: &[Tool] = &[
    ("python3", "python3-venv"),
    ("depmod", "kmod"),
    // By which virtme-ng finds out a kernel's version.
    ("file", "file"),
];

/// cargo-deb, from crates.io.
const CARGO_DEB_VERSION: &str = "3.8.0";
/// What `cargo xtask package` runs besides.
const PACKAGE_TOOLS: &[Tool] = &[
    ("dpkg-deb", "dpkg"),
    // By which cargo-deb finds out what the program depends on.
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("strip", "binutils"),
];
/// What the tests of the package run besides.
const DEBIAN_TOOLS: &[Tool] = &[
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("systemd-analyze", "systemd"),
];
/// The release of Debian in which the package is tested.
const DEBIAN: &str = "bookworm";
/// Packages of that system besides the required ones: systemd as init.
const DEBIAN_PACKAGES: &str = "systemd,systemd-sysv,dbus";
/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A compiler and a linker for the eBPF object.
    Build,
    /// rustfmt and clippy.
    Lint,
    /// The network tools of the demo.
    Demo,
    /// Those that only tests run.
    Test,
    /// Those that only the bench runs.
    Bench,
    /// An emulated machine for tests under another kernel.
    Emulate,
    /// What makes a Debian package.
    Package,
    /// What makes and boots a Debian system, for tests of the package.
    Debian,
}

/// Something that is not there.
pub enum Missing {
    /// The eBPF toolchain: why what is recorded cannot be used.
    Toolchain(String),
    /// A program, and its package.
    Tool(Tool),
    /// A rustup component.
    Component(&'static str),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Toolchain(why) => f.write_str(why),
            Self::Tool((program, package)) => {
                write!(f, "`{program}` (Debian package {package})")
            }
            Self::Component(name) => write!(f, "rustup component {name}"),
        }
    }
}

/// What of `needs` is missing. Starts a few short programs and asks no package manager.
pub fn missing(needs: &[Need]) -> Vec<Missing> {
    let mut missing = Vec::new();
    for need in needs {
        match need {
            Need::Build => missing.extend(recorded().err().map(Missing::Toolchain)),
            Need::Lint => {
                for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
                    if sh::output(sh::cargo().args([subcommand, "--version"])).is_none() {
                        missing.push(Missing::Component(component));
                    }
                }
            }
            Need::Demo => missing.extend(missing_tools(DEMO_TOOLS)),
            Need::Test => missing.extend(missing_tools(TEST_TOOLS)),
            Need::Bench => missing.extend(missing_tools(BENCH_TOOLS)),
            Need::Emulate => missing.extend(missing_tools(EMULATE_TOOLS)),
            Need::Package => missing.extend(missing_tools(PACKAGE_TOOLS)),
            Need::Debian => missing.extend(missing_tools(DEBIAN_TOOLS)),
        }
    }
    missing
}

fn missing_tools(tools: &[Tool]) -> impl Iterator<Item = Missing> {
    tools
        .iter()
        .filter(|(program, _)| sh::find(program).is_none())
        .map(|tool| Missing::Tool(*tool))
}

/// The recorded toolchain, if it is still what was recorded.
pub fn recorded() -> Result<Toolchain, String> {
    let toolchain = Toolchain::load()?;
    let now = inspect_rustc(toolchain.way, &toolchain.rustc)?;
    if now != toolchain.rustc_version {
        return Err(format!(
            "{} has changed to {now}",
            toolchain.rustc.display()
        ));
    }
    let now = inspect_linker(&toolchain.linker)?;
    if now != toolchain.linker_version {
        return Err(format!(
            "{} has changed to {now}",
            toolchain.linker.display()
        ));
    }
    Ok(toolchain)
}

/// Checks that a compiler can build the object; returns its version.
fn inspect_rustc(way: Way, rustc: &Path) -> Result<String, String> {
    let name = rustc.display();
    let text = sh::output(Command::new(rustc).arg("-vV")).ok_or(format!("{name} does not run"))?;
    let version = text.lines().next().unwrap_or_default();
    let field = |key| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(numbers)
            .unwrap_or_default()
    };
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if field("release: ") < numbers(wanted) {
        return Err(format!("{name} is {version}, older than {wanted}"));
    }
    let llvm = field("LLVM version: ");
    if llvm.first() > Some(&LLVM) {
        return Err(format!(
            "{name} has LLVM {}, newer than bpf-linker's LLVM {LLVM}",
            llvm[0]
        ));
    }
    let query = ["--print", "target-libdir", "--target", bpf::TARGET];
    let core_is_there = match way {
        Way::Debian => sh::output(Command::new(rustc).args(query))
            .and_then(|dir| fs::read_dir(dir).ok())
            .is_some_and(|mut dir| {
                dir.any(|file| {
                    file.is_ok_and(|file| {
                        file.file_name().to_string_lossy().starts_with("libcore-")
                    })
                })
            }),
        Way::RustSrc => rustc
            .ancestors()
            .nth(2)
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir()),
    };
    if !core_is_there {
        return Err(match way {
            Way::Debian => format!("{name} has no prebuilt core for {}", bpf::TARGET),
            Way::RustSrc => format!("{name} has no rust-src component"),
        });
    }
    Ok(version.to_owned())
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split(['.', '-'])
        .map_while(|part| part.parse().ok())
        .collect()
}

fn inspect_linker(linker: &Path) -> Result<String, String> {
    let name = linker.display();
    let version = sh::output(Command::new(linker).arg("--version"))
        .and_then(|text| text.lines().next().map(str::to_owned))
        .ok_or(format!("{name} is missing or does not run"))?;
    if !version.split(' ').any(|word| word == BPF_LINKER_VERSION) {
        return Err(format!("{name} is {version}, not {BPF_LINKER_VERSION}"));
    }
    Ok(version)
}

/// Finds or installs a compiler and a linker, proves that they work together and records them.
pub fn install(forced: Option<Way>) -> Result<Toolchain> {
    let (way, rustc) = install_rustc(forced)?;
    let linker = install_linker()?;
    let toolchain = Toolchain {
        way,
        rustc_version: inspect_rustc(way, &rustc).map_err(|why| anyhow!(why))?,
        rustc,
        linker_version: inspect_linker(&linker).map_err(|why| anyhow!(why))?,
        linker,
    };
    prove(&toolchain)?;
    let file = bpf::record_file().map_err(|why| anyhow!(why))?;
    let text = toolchain.to_text();
    // Written only when it differs: the build script builds anew when this file is touched.
    if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        fs::write(&file, text)
            .with_context(|| format!("cannot record the toolchain in {}", file.display()))?;
    }
    sh::say(format_args!("recorded in {}", file.display()));
    Ok(toolchain)
}

/// The first that works of: Debian's compiler, the developer's with rust-src, then the same two by
/// installing what is missing. Debian's comes first because its LLVM is the one bpf-linker is built with,
/// while rustup's moves on with each stable release.
fn install_rustc(forced: Option<Way>) -> Result<(Way, PathBuf)> {
    let ways: &[Way] = match &forced {
        Some(way) => std::slice::from_ref(way),
        None => &[Way::Debian, Way::RustSrc],
    };
    let mut reasons = Vec::new();
    for &way in ways {
        match present_rustc(way) {
            Ok((rustc, version)) => {
                sh::say(format_args!(
                    "compiler: {version}, {} (way {way}): already installed",
                    rustc.display()
                ));
                return Ok((way, rustc));
            }
            Err(why) => reasons.push(why),
        }
    }
    for &way in ways {
        let installed = match way {
            Way::Debian => Apt::install(
                RUST_PACKAGES,
                "a compiler with prebuilt core for the BPF target (120 MB, about 20 s)",
            ),
            Way::RustSrc => rustup(&["rust-src"]),
        };
        match installed.and_then(|()| present_rustc(way).map_err(|why| anyhow!(why))) {
            Ok((rustc, version)) => {
                sh::say(format_args!(
                    "compiler: {version}, {} (way {way}): installed",
                    rustc.display()
                ));
                return Ok((way, rustc));
            }
            Err(error) => {
                sh::say(format_args!("way {way} does not work here: {error:#}"));
                reasons.push(format!("{error:#}"));
            }
        }
    }
    bail!(
        "no compiler for the eBPF object ({}); install Debian's {} or run `rustup component add rust-src`",
        reasons.join("; "),
        RUST_PACKAGES.join(" and ")
    )
}

fn present_rustc(way: Way) -> Result<(PathBuf, String), String> {
    let rustc = match way {
        Way::Debian => PathBuf::from(DEBIAN_RUSTC),
        Way::RustSrc => sh::output(Command::new("rustc").args(["--print", "sysroot"]))
            .map(|sysroot| Path::new(&sysroot).join("bin/rustc"))
            .ok_or("rustc is not on PATH")?,
    };
    let version = inspect_rustc(way, &rustc)?;
    Ok((rustc, version))
}

fn install_linker() -> Result<PathBuf> {
    let home = bpf::cache_dir()
        .map_err(|why| anyhow!(why))?
        .join("bpf-linker");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let linker = home.join("bin/bpf-linker");
    if let Ok(version) = inspect_linker(&linker) {
        sh::say(format_args!(
            "linker: {version}, {}: already installed",
            linker.display()
        ));
        return Ok(linker);
    }
    let prefix = match llvm_prefix() {
        Some(prefix) => prefix,
        None => {
            Apt::install(LLVM_PACKAGES, "what bpf-linker is built with (about 20 s)")?;
            llvm_prefix().ok_or_else(|| {
                anyhow!(
                    "cannot build bpf-linker: no llvm-config of LLVM {LLVM} found; set LLVM_PREFIX to \
                     where it is installed"
                )
            })?
        }
    };
    // The packages alone may be enough: a linker that lost its libLLVM to an upgrade runs again.
    if inspect_linker(&linker).is_err() {
        sh::say(format_args!(
            "cargo install bpf-linker {BPF_LINKER_VERSION} with LLVM {LLVM} of {}: the linker for the BPF \
             target; takes one to two minutes on two cores",
            prefix.display()
        ));
        // bpf-linker's default feature is a newer LLVM: it builds against this one, then fails on memset.
        let feature = format!("llvm-{LLVM}");
        sh::quiet(
            Command::new(sh::cargo_path())
                .args([
                    "install",
                    "bpf-linker",
                    "--locked",
                    "--force",
                    "--version",
                    BPF_LINKER_VERSION,
                ])
                .args(["--no-default-features", "--features", &feature, "--root"])
                .arg(&home)
                .env("LLVM_PREFIX", &prefix)
                .env_remove("CARGO_TARGET_DIR")
                .current_dir("/"),
        )?;
    }
    Ok(linker)
}

fn llvm_prefix() -> Option<PathBuf> {
    let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    named
        .into_iter()
        .chain([format!("/usr/lib/llvm-{LLVM}").into()])
        .find(|prefix| {
            sh::output(Command::new(prefix.join("bin/llvm-config")).arg("--version"))
                .is_some_and(|version| numbers(&version).first() == Some(&LLVM))
        })
}

/// Builds a program that needs `core`, a map and a memset that is not inlined: what a linker with the
/// wrong LLVM fails on.
fn prove(toolchain: &Toolchain) -> Result<()> {
    let dir = bpf::cache_dir().map_err(|why| anyhow!(why))?.join("proof");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let (manifest, source) = (dir.join("Cargo.toml"), dir.join("main.rs"));
    fs::write(&manifest, PROOF_MANIFEST)
        .and_then(|()| fs::write(&source, PROOF_SOURCE))
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    let result = sh::quiet(
        toolchain
            .cargo(&sh::cargo_path(), "build", &dir.join("target"), &[])
            .arg("--manifest-path")
            .arg(&manifest),
    )
    .context("the toolchain cannot build an eBPF program");
    // Only scrap; what failed to build has been printed.
    let _ = fs::remove_dir_all(&dir);
    result?;
    sh::say("proof: a small eBPF program builds and links");
    Ok(())
}

const PROOF_MANIFEST: &str = r#"[package]
name = "proof"
edition = "2024"
[[bin]]
name = "proof"
path = "main.rs"
[profile.release]
panic = "abort"
[workspace]
"#;

const PROOF_SOURCE: &str = r#"#![no_std]
#![no_main]
#[unsafe(no_mangle)]
static mut BUFFER: [u8; 4096] = [0; 4096];
#[unsafe(link_section = "xdp")]
#[unsafe(no_mangle)]
extern "C" fn proof(ctx: *mut u32) -> u32 {
    // SAFETY: never run.
    unsafe { (&raw mut BUFFER).write_bytes(*ctx as u8, 1) };
    2
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

/// Fails, with the one command that root has to run, when `missing` takes packages and this is not root.
pub fn require_root_for_packages(missing: &[Missing]) -> Result<()> {
    let mut packages = Vec::new();
    for missing in missing {
        match missing {
            Missing::Tool((_, package)) => packages.push(*package),
            Missing::Toolchain(_) => {
                let has_rustc = [Way::Debian, Way::RustSrc]
                    .into_iter()
                    .any(|way| present_rustc(way).is_ok());
                if !has_rustc {
                    packages.extend(RUST_PACKAGES);
                }
                if llvm_prefix().is_none() {
                    packages.extend(LLVM_PACKAGES);
                }
            }
            Missing::Component(_) => {}
        }
    }
    if !packages.is_empty() && !sh::is_root() {
        bail!(
            "cannot install packages: not root; run as root `apt-get update && apt-get install -y \
             --no-install-recommends {}`, then this again",
            packages.join(" ")
        );
    }
    Ok(())
}

/// Installs what lint needs.
pub fn install_components(components: &[&'static str]) -> Result<()> {
    rustup(components).map_err(|error| {
        anyhow!(
            "lint needs {}: {error:#}; install them with the package manager that has your cargo",
            components.join(" and ")
        )
    })
}

fn rustup(components: &[&str]) -> Result<()> {
    sh::say(format_args!(
        "rustup component add {}",
        components.join(" ")
    ));
    sh::quiet(
        Command::new("rustup")
            .args(["component", "add"])
            .args(components),
    )
}

/// Debian's clippy for Debian's compiler, installed when apt has it: the eBPF crate is then linted, not
/// only built without warnings.
pub fn debian_clippy(toolchain: &Toolchain) -> Option<OsString> {
    if toolchain.way != Way::Debian {
        return None;
    }
    let (program, package) = DEBIAN_CLIPPY;
    // Beside the compiler: another clippy on PATH belongs to another compiler.
    let driver = toolchain.rustc.with_file_name(program);
    if !driver.is_file() {
        Apt::install(&[package], "clippy for the eBPF crate (a few seconds)").ok()?;
    }
    let theirs = sh::output(Command::new(&driver).arg("--rustc").arg("--version"))?;
    (theirs == toolchain.rustc_version).then(|| driver.into())
}

/// Installs programs.
pub fn install_tools(tools: &[Tool]) -> Result<()> {
    let packages: Vec<_> = tools.iter().map(|(_, package)| *package).collect();
    Apt::install(&packages, "network tools that it runs (about 10 s)")
}

/// Installs packages that no [`Tool`] stands for.
pub fn install_packages(packages: &[&str], why: &str) -> Result<()> {
    Apt::install(packages, why)
}

/// The script of axe-core, which is fetched once and stays in the cache.
///
/// # Errors
/// If npm cannot fetch it, or the cache cannot be written.
pub fn axe() -> Result<PathBuf> {
    let cache = bpf::cache_dir().map_err(|why| anyhow!(why))?;
    let home = cache.join(format!("axe-core-{AXE_VERSION}"));
    let script = home.join("package/axe.min.js");
    if script.is_file() {
        return Ok(script);
    }
    let partial = cache.join("axe-core.partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    sh::say(format_args!(
        "npm pack axe-core@{AXE_VERSION}: for the tests of the web page"
    ));
    let package = format!("axe-core@{AXE_VERSION}");
    sh::quiet(
        Command::new("npm")
            .args(["pack", "--silent", &package])
            .current_dir(&partial),
    )?;
    let archive = format!("axe-core-{AXE_VERSION}.tgz");
    sh::quiet(
        Command::new("tar")
            .args(["-xzf", &archive])
            .current_dir(&partial),
    )?;
    let _ = fs::remove_dir_all(&home);
    fs::rename(&partial, &home).with_context(|| format!("cannot make {}", home.display()))?;
    Ok(script)
}

/// The packages that apt knows whose names begin so, after a refresh of its lists.
pub fn known_packages(prefix: &str) -> Vec<String> {
    Apt::refresh();
    sh::output(Command::new("apt-cache").args(["pkgnames", prefix]))
        .map(|names| names.lines().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// cargo-deb in the cache, installed if it is not there.
pub fn cargo_deb() -> Result<PathBuf> {
    let home = bpf::cache_dir()
        .map_err(|why| anyhow!(why))?
        .join("cargo-deb");
    let program = home.join("bin/cargo-deb");
    let version = sh::output(Command::new(&program).arg("--version"));
    let is_it = |said: &str| said.split(' ').any(|word| word == CARGO_DEB_VERSION);
    if !version.as_deref().is_some_and(is_it) {
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        sh::say(format_args!(
            "cargo install cargo-deb {CARGO_DEB_VERSION}: makes the Debian package; takes two to four minutes on two cores"
        ));
        sh::quiet(
            Command::new(sh::cargo_path())
                .args(["install", "cargo-deb", "--locked", "--force"])
                .args(["--version", CARGO_DEB_VERSION])
                // With the compression library inside: one more package less to install.
                .args([
                    "--no-default-features",
                    "--features",
                    "debug-id,static-lzma",
                ])
                .arg("--root")
                .arg(&home)
                .env_remove("CARGO_TARGET_DIR")
                .current_dir("/"),
        )?;
    }
    Ok(program)
}

/// A minimal Debian system in a directory of the cache, made if it is not there. It is never changed again.
pub fn debian() -> Result<PathBuf> {
    let cache = bpf::cache_dir().map_err(|why| anyhow!(why))?.join("debian");
    let system = cache.join(format!("{DEBIAN}-{}", DEBIAN_PACKAGES.replace(',', "-")));
    if system.exists() {
        return Ok(system);
    }
    Apt::refresh();
    let mirror = mirror()?;
    let partial = cache.join("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    sh::say(format_args!(
        "debootstrap {DEBIAN}: the system that the package is tested in (240 MB in the cache, one to three minutes)"
    ));
    let mut make = Command::new("debootstrap");
    make.args(["--variant=minbase", "--include", DEBIAN_PACKAGES, DEBIAN])
        .arg(&partial)
        .arg(mirror);
    if let Some(proxy) = apt_proxy() {
        make.env("http_proxy", proxy);
    }
    sh::quiet(&mut make)?;
    // Under its name only when it is whole: a later run trusts that.
    fs::rename(&partial, &system).with_context(|| format!("cannot make {}", system.display()))?;
    Ok(system)
}

/// Where this machine's apt has Debian from.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets =
        sh::output(&mut command).with_context(|| format!("`{}` failed", sh::show(&command)))?;
    mirror_in(&targets).map(str::to_owned).ok_or_else(|| {
        anyhow!("apt is configured with no repository of Debian itself: name one in /etc/apt/sources.list")
    })
}

/// The first repository of Debian in a list of `apt-get indextargets`; updates and security have other labels or none of the
/// packages that a system begins with.
fn mirror_in(targets: &str) -> Option<&str> {
    targets
        .lines()
        .find_map(|line| line.strip_suffix(" Debian Debian main"))
}

/// The proxy that apt is configured with, unless the environment names one.
fn apt_proxy() -> Option<String> {
    if env::var_os("http_proxy").is_some() {
        return None;
    }
    let said = sh::output(Command::new("apt-config").args(["shell", "P", "Acquire::http::Proxy"]))?;
    let proxy = said.strip_prefix("P='")?.strip_suffix('\'')?;
    (!proxy.is_empty() && proxy != "DIRECT").then(|| proxy.to_owned())
}

/// Downloads a package and unpacks it into a directory, without installing it.
///
/// # Errors
/// If apt cannot download it, or the directory cannot be written.
pub fn unpack_package(package: &str, dir: &Path) -> Result<()> {
    unpack(package, dir, |partial| {
        sh::say(format_args!("apt-get download {package}"));
        sh::quiet(apt_get().args(["download", package]).current_dir(partial))
    })
}

/// Downloads a package and what it depends on beyond what is installed, and unpacks all of it into one directory.
///
/// Nothing is installed, removed or replaced: a package that conflicts with an installed one can still be used.
///
/// # Errors
/// If apt cannot download them, or the directory cannot be written.
pub fn unpack_with_dependencies(package: &str, dir: &Path) -> Result<()> {
    unpack(package, dir, |partial| {
        // apt demands this directory below the one that it downloads to.
        let archives = partial.join("archives");
        fs::create_dir_all(archives.join("partial"))?;
        sh::say(format_args!(
            "apt-get install --download-only {package}: unpacked into {}, not installed",
            dir.display()
        ));
        let mut download = apt_get();
        download
            .args(["install", "--download-only", "--no-install-recommends"])
            .arg("-o")
            .arg(format!("Dir::Cache::Archives={}", archives.display()))
            .arg(package);
        sh::quiet(&mut download)?;
        for archive in debs(&archives)? {
            fs::rename(
                &archive,
                partial.join(archive.file_name().unwrap_or_default()),
            )?;
        }
        Ok(())
    })
}

/// The Debian packages in a directory.
fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Has `download` put packages into a directory, and unpacks these into `dir`.
fn unpack(package: &str, dir: &Path, download: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // In a directory of its own until it is complete: a later run trusts what has the right name.
    let partial = dir.with_file_name(format!("{package}.partial"));
    let _ = fs::remove_dir_all(&partial);
    let tree = partial.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    Apt::refresh();
    download(&partial)
        .with_context(|| format!("cannot download {package} (is there a network?)"))?;
    let archives = debs(&partial)?;
    if archives.is_empty() {
        bail!("apt-get left no package in {}", partial.display());
    }
    for archive in archives {
        sh::quiet(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&archive)
                .arg(&tree),
        )
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    }
    fs::rename(&tree, dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

/// apt, with the package lists refreshed once.
struct Apt;

impl Apt {
    /// Installs packages, and never removes one to do so.
    fn install(packages: &[&str], why: &str) -> Result<()> {
        let names = packages.join(" ");
        if sh::find("apt-get").is_none() {
            bail!(
                "cannot install {names} ({why}): this system has no apt-get; install their like, then run \
                 `cargo xtask setup` again"
            );
        }
        if !sh::is_root() {
            bail!("cannot install {names} ({why}): not root");
        }
        Self::refresh();
        sh::say(format_args!("apt-get install {names}: {why}"));
        sh::quiet(
            apt_get()
                .args(["install", "--no-install-recommends", "--no-remove"])
                .args(packages),
        )
    }

    /// Refreshes the lists, once.
    fn refresh() {
        static UPDATED: Once = Once::new();
        UPDATED.call_once(Self::update);
    }

    /// A failure is told and no more: the lists that are there may do, and if not the installation says
    /// so.
    fn update() {
        const ATTEMPTS: u32 = 3;
        sh::say("apt-get update: refreshes the package lists (about 10 s)");
        for attempt in 1..=ATTEMPTS {
            match sh::quiet(apt_get().arg("update")) {
                Ok(()) => break,
                Err(error) => sh::say(format_args!("attempt {attempt} of {ATTEMPTS}: {error:#}")),
            }
            // Another apt may hold the lists; unlike dpkg's, their lock has no timeout option.
            if attempt < ATTEMPTS {
                thread::sleep(Duration::from_secs(10));
            }
        }
    }
}

/// apt-get that asks nothing and waits for other package managers.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1")
        .args([
            "-qq",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args([
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
        ]);
    command
}

#[cfg(test)]
mod tests {
    use super::{mirror_in, numbers};

    #[test]
    fn the_mirror_is_debians_own() {
        let targets = "http://example.com/rust  . main\n\
            http://example.com/security Debian Debian-Security main\n\
            http://example.com/debian Debian Debian main\n";
        assert_eq!(mirror_in(targets), Some("http://example.com/debian"));
        assert_eq!(mirror_in(""), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("1.100.0") > numbers("1.95"));
        assert!(numbers("1.95.0-nightly") >= numbers("1.95"));
        assert_eq!(numbers("22.1.8").first(), Some(&22));
        assert!(numbers("").is_empty());
    }
}

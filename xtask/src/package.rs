//! `cargo xtask package`: the Debian package, its debug symbols, and the root of a container image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build, setup, sh,
    toolchain::{self, Need},
};

/// What to call the package's version.
#[derive(clap::Args)]
pub struct Args {
    /// The package's version; by default that of the workspace, with revision 1
    #[arg(long, value_name = "VERSION")]
    deb_version: Option<String>,
}

/// What was made.
pub struct Package {
    /// The package.
    pub deb: PathBuf,
    /// What the installed program is: its size without debug symbols.
    pub program_bytes: u64,
}

/// How much time goes into a package.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// For users: the best compression, and debug symbols in a package of their own.
    Full,
    /// For tests.
    Quick,
}

/// The command itself.
pub fn run(args: &Args) -> Result<()> {
    let tracker = build::tracker(&[Need::Build, Need::Package])?;
    let dir = build::target_dir()?.join("package");
    // What an earlier run left may be of another version.
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let package = debian(args.deb_version.as_deref(), &dir, Care::Full)?;
    let root = container(&tracker, &dir.join("container"))?;
    println!(
        "{}: the program has {} without debug symbols",
        package.deb.display(),
        megabytes(package.program_bytes)
    );
    for entry in fs::read_dir(&dir)?.flatten() {
        let bytes = entry.metadata()?.len();
        if entry.path().is_file() {
            println!("{} ({})", entry.path().display(), megabytes(bytes));
        }
    }
    println!("{} ({})", root.path.display(), root.what);
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Makes the Debian package of the release binary that was built last.
pub fn debian(version: Option<&str>, dir: &Path, care: Care) -> Result<Package> {
    let tool = toolchain::cargo_deb()?;
    stage()?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut command = Command::new(tool);
    command
        .args(["deb", "--no-build", "--package", "tracker-user"])
        .arg("--output")
        .arg(dir)
        .current_dir(sh::root());
    match care {
        Care::Full => command.arg("--dbgsym"),
        Care::Quick => command.args(["--fast", "--no-dbgsym", "--no-separate-debug-symbols"]),
    };
    if let Some(version) = version {
        command.args(["--deb-version", version]);
    }
    let made = sh::output(&mut command).with_context(|| {
        format!(
            "`{}` failed; run it to see why, in {}",
            sh::show(&command),
            sh::root().display()
        )
    })?;
    let deb = made
        .lines()
        .map(PathBuf::from)
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("cargo-deb names no package")?;
    let contents = sh::output(Command::new("dpkg-deb").arg("--contents").arg(&deb))
        .with_context(|| format!("dpkg-deb cannot read {}", deb.display()))?;
    Ok(Package {
        program_bytes: size_in(&contents, "./usr/bin/tracker")
            .with_context(|| format!("{} has no program", deb.display()))?,
        deb,
    })
}

/// The size of a file in a list of `dpkg-deb --contents`.
fn size_in(contents: &str, file: &str) -> Option<u64> {
    let line = contents.lines().find(|line| line.ends_with(file))?;
    line.split_whitespace().nth(2)?.parse().ok()
}

/// Directories of `dist` that are shipped whole if they are there.
const SHIPPED_WHOLE: &[&str] = &["prometheus", "grafana"];

/// Puts what goes to /usr/share/tracker-hub where cargo-deb's list of assets looks for it.
fn stage() -> Result<()> {
    let share = build::target_dir()?.join("release/package/share");
    if share.exists() {
        fs::remove_dir_all(&share).with_context(|| format!("cannot empty {}", share.display()))?;
    }
    copy(
        &sh::root().join("tracker.schema.json"),
        &share.join("tracker.schema.json"),
    )?;
    for name in SHIPPED_WHOLE {
        let from = sh::root().join("dist").join(name);
        if from.is_dir() {
            for file in sh::files(&from, |_| true)? {
                copy(&file, &share.join(name).join(file.strip_prefix(&from)?))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The root of a container image.
pub struct Root {
    /// The directory; its `Containerfile` is beside it.
    pub path: PathBuf,
    /// What it has.
    pub what: String,
}

/// Makes the root of a container image: the program of the package, and the libraries that it loads.
pub fn container(tracker: &Path, dir: &Path) -> Result<Root> {
    let root = dir.join("root");
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let program = root.join("tracker");
    copy(tracker, &program)?;
    sh::quiet(Command::new("strip").arg(&program))?;
    let libraries = libraries(tracker)?;
    for library in &libraries {
        copy(library, &root.join(library.strip_prefix("/")?))?;
    }
    copy(
        &sh::root().join("dist/Containerfile"),
        &dir.join("Containerfile"),
    )?;
    let bytes = fs::metadata(&program)?.len();
    let what = format!(
        "the program, {}, and {} libraries",
        megabytes(bytes),
        libraries.len()
    );
    Ok(Root { path: root, what })
}

/// The shared libraries that a program loads, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = sh::output(Command::new("ldd").arg(program))
        .with_context(|| format!("ldd cannot read {}", program.display()))?;
    let found: Vec<PathBuf> = paths_of(&list).collect();
    if found.is_empty() {
        bail!("ldd names no library of {}", program.display());
    }
    Ok(found)
}

/// The paths in ldd's output.
fn paths_of(list: &str) -> impl Iterator<Item = PathBuf> {
    list.lines().filter_map(|line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(path))
    })
}

/// What the tests of the package are given.
pub struct ForTests {
    /// The package of this tree.
    pub deb: PathBuf,
    /// That package with a higher version.
    pub newer: PathBuf,
    /// The root of a container image.
    pub root: PathBuf,
    /// The directory of a Debian 12 to install in, which must not be changed.
    pub debian: PathBuf,
}

/// Makes what the tests of the package need.
pub fn for_tests(tracker: &Path) -> Result<ForTests> {
    setup::ensure(&[Need::Package, Need::Debian])?;
    let dir = build::target_dir()?.join("package-tests");
    let version = env!("CARGO_PKG_VERSION");
    let make = |revision: &str| {
        let version = format!("{version}-{revision}");
        debian(Some(&version), &dir, Care::Quick).map(|package| package.deb)
    };
    Ok(ForTests {
        deb: make("1")?,
        newer: make("2")?,
        root: container(tracker, &dir.join("container"))?.path,
        debian: toolchain::debian()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_libraries_are_read() {
        let contents = "-rw-r--r-- 0/0     12 2026-12-01 00:00 ./usr/share/doc/usr/bin/tracker.md\n\
                        -rwxr-xr-x 0/0 15904720 2026-12-01 00:00 ./usr/bin/tracker\n";
        assert_eq!(size_in(contents, "./usr/bin/tracker"), Some(15_904_720));
        assert_eq!(size_in(contents, "./usr/bin/other"), None);
        let list = "\tlinux-vdso.so.1 (0x00007fd6)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fd6)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007fd6)\n";
        let paths: Vec<_> = paths_of(list).collect();
        assert_eq!(
            paths,
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}

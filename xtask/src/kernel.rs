//! `cargo xtask test --kernel VERSION`: the end-to-end tests under one of Debian's stock kernels, in an emulated machine.
//!
//! virtme-ng boots the kernel in QEMU with this machine's own files, read only, so that the tests and the daemon that
//! were built here run there as they are. Hardware virtualisation is not asked for: most tests run in virtual machines
//! and containers, which lack it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tracker_lab::{interrupt, pace};

use crate::{
    bpf, build, python, setup, sh,
    test::{Binary, Outcome, PACKAGE_TESTS, Totals, build_tests},
    toolchain::{self, Need},
};

/// virtme-ng, from PyPI.
const VIRTME_NG: python::Tool = python::Tool {
    package: "virtme-ng",
    version: "1.42",
    program: "vng",
};
/// The emulator: its program and its package.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// A static busybox, for virtme-ng's initial file system.
const BUSYBOX: &str = "busybox-static";
/// The daemon's name among the tests in the machine.
const TRACKER: &str = "tracker";
/// How many times longer all times in tests are under emulation, unless the environment says otherwise.
const SLOWNESS: u32 = 5;
/// How long one file of tests may take there before it is ended.
const FILE_LIMIT: Duration = Duration::from_secs(20 * 60);
/// How long the machine may run at all.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// How long it may take until the tests begin.
const BOOT_LIMIT: Duration = Duration::from_secs(5 * 60);
const POLL: Duration = Duration::from_millis(200);

/// Which tests: as in `cargo xtask test`.
pub struct Selection<'a> {
    pub package: &'a str,
    pub tests: &'a [String],
    pub runner: &'a [String],
}

/// A kernel that can be booted.
struct Kernel {
    release: String,
    image: PathBuf,
}

/// Builds the tests here and runs them under a kernel of that series.
pub fn run(series: &str, selection: &Selection) -> Result<Outcome> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "cannot test under Linux {series}: Debian's kernels are booted on x86-64 only"
    );
    ensure!(
        series.split('.').count() == 2 && series.split('.').all(|part| part.parse::<u16>().is_ok()),
        "cannot test under Linux {series}: name a series, such as 6.1 or 6.12"
    );
    interrupt::catch()?;
    setup::ensure(&[Need::Build, Need::Demo, Need::Test, Need::Emulate])?;
    let cache = bpf::cache_dir().map_err(|why| anyhow!(why))?;
    let kernel = kernel(&cache.join("kernels"), series)?;
    let vng = python::tool(&VIRTME_NG)?;
    let schemathesis = python::tool(&python::SCHEMATHESIS)?;
    let busybox = busybox(&cache)?;
    let qemu = qemu(&cache)?;
    let tracker = build::tracker(&[])?;
    let mut binaries = build_tests(selection.package, selection.tests)?;
    // What a package does to a system does not depend on the kernel, and takes a system to install in.
    binaries.retain(|binary| binary.name != PACKAGE_TESTS);

    // The one directory that the machine may write to.
    let shared = build::target_dir()?.join(format!("kernel-{series}"));
    let lock = shared.with_file_name(format!("kernel-{series}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    ensure!(
        lock.try_lock().is_ok(),
        "another test under Linux {series} runs in {}; wait for its end",
        shared.display()
    );
    let mut outcome = Outcome {
        totals: Totals::default(),
        trouble: None,
        tests_took: Duration::ZERO,
    };
    let begun = Instant::now();
    let mut failed = Vec::new();
    let listed: Vec<_> = (binaries.iter())
        .map(|binary| Ok((binary, binary.tests()?)))
        .collect::<Result<_>>()?;
    let (mut left, runner) = units(&listed, selection.runner);
    // One turn, and one more after each unit in which the machine ended.
    while !left.is_empty() {
        let _ = fs::remove_dir_all(&shared);
        share(&shared, &tracker, &binaries)
            .and_then(|()| {
                let script = script(&shared, &left, &runner, &schemathesis);
                fs::write(shared.join("run.sh"), script)
            })
            .with_context(|| format!("cannot write to {}", shared.display()))?;
        sh::say(format_args!(
            "booting Linux {} without hardware virtualisation; its console is in {}",
            kernel.release,
            shared.join("console").display()
        ));
        let machine = Machine::boot(&vng, &busybox, &qemu, &kernel, &shared)?;
        outcome
            .totals
            .add(Totals::read(Some(machine), &mut io::stdout())?);
        let words = |file| fs::read_to_string(shared.join(file)).unwrap_or_default();
        failed.extend(words("failed").lines().map(str::to_owned));
        if shared.join("ended").exists() {
            break;
        }
        eprint!("{}", last_lines(&shared.join("console"), 25));
        let begun = words("begun").lines().count();
        if begun == 0 {
            bail!(
                "the machine with Linux {} ended before the first test: above are the last words of its console",
                kernel.release
            );
        }
        let ended_in = left.drain(..begun).next_back();
        let name = ended_in.map_or_else(String::new, |unit| unit.name());
        sh::say(format_args!(
            "the machine ended in {name}: above are the last words of its console; going on with the tests that are left"
        ));
        failed.push(format!("{name} (the machine ended)"));
    }
    outcome.tests_took = begun.elapsed();
    if !failed.is_empty() {
        outcome.trouble = Some(format!(
            "failed under Linux {}: {}",
            kernel.release,
            failed.join(", ")
        ));
    }
    Ok(outcome)
}

/// What runs in one process: the tests of one file, or with filters that are no files all of a binary that they select.
struct Unit<'a> {
    binary: &'a Binary,
    module: Option<String>,
    /// The tests of the file; none if the runner chooses. A part of their names would select tests of other files too: `send::` is in
    /// `tc_send::`.
    tests: Vec<String>,
}

impl Unit<'_> {
    fn name(&self) -> String {
        let module = self.module.as_ref();
        module.map_or_else(
            || self.binary.name.clone(),
            |module| format!("{} {module}", self.binary.name),
        )
    }
}

/// All units: files in the order in which they are named, else in the binaries'; and the options that are left for the runner.
fn units<'a>(
    listed: &[(&'a Binary, Vec<String>)],
    runner: &[String],
) -> (Vec<Unit<'a>>, Vec<String>) {
    let (files, words): (Vec<_>, Vec<_>) =
        (runner.iter().cloned()).partition(|word| word.ends_with("::") && !word.starts_with('-'));
    let has_filters = words.iter().any(|word| !word.starts_with('-'));
    if has_filters {
        let unit = |binary| Unit {
            binary,
            module: None,
            tests: Vec::new(),
        };
        let units = listed.iter().map(|(binary, _)| unit(*binary));
        return (units.collect(), runner.to_vec());
    }
    let mut units = Vec::new();
    for (binary, tests) in listed {
        let file = |test: &String| Some(format!("{}::", test.split_once("::")?.0));
        let mut modules: Vec<_> = tests.iter().filter_map(file).collect();
        modules.dedup();
        if !files.is_empty() {
            let has = |file: &&String| modules.contains(file);
            modules = files.iter().filter(has).cloned().collect();
        } else if modules.is_empty() {
            units.push(Unit {
                binary,
                module: None,
                tests: Vec::new(),
            });
        }
        units.extend(modules.into_iter().map(|module| {
            Unit {
                binary,
                tests: (tests.iter())
                    .filter(|test| test.starts_with(&module))
                    .cloned()
                    .collect(),
                module: Some(module),
            }
        }));
    }
    (units, words)
}

/// The newest kernel of a series: the one in the cache, else Debian's.
fn kernel(dir: &Path, series: &str) -> Result<Kernel> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let cached: Vec<_> = fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let package = match newest(&cached, series) {
        Some(package) => package.to_owned(),
        None => {
            let known = toolchain::known_packages(&format!("linux-image-{series}"));
            let package = newest(&known, series).with_context(|| {
                format!(
                    "cannot test under Linux {series}: apt knows no package linux-image-{series}.*-amd64; add the \
                     suite that has it to apt's sources (bookworm-backports, for one)"
                )
            })?;
            toolchain::unpack_package(package, &dir.join(package))?;
            package.to_owned()
        }
    };
    let tree = dir.join(&package);
    let release = package.trim_start_matches("linux-image-").to_owned();
    // Debian's package lists its modules when it is installed, which it is not.
    let modules = [tree.clone(), tree.join("usr")]
        .into_iter()
        .find(|base| base.join("lib/modules").join(&release).is_dir())
        .with_context(|| {
            format!(
                "the package {package} has no modules: remove {}",
                tree.display()
            )
        })?;
    if !modules
        .join("lib/modules")
        .join(&release)
        .join("modules.dep")
        .is_file()
    {
        let depmod = sh::find("depmod").context("cannot find depmod")?;
        sh::quiet(
            Command::new(depmod)
                .arg("--basedir")
                .arg(&modules)
                .arg(&release),
        )?;
    }
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(
        image.is_file(),
        "the package {package} has no kernel: remove {}",
        tree.display()
    );
    Ok(Kernel { release, image })
}

/// Of packages' names, that of the newest stock kernel of a series; not of the variants (cloud, rt).
fn newest<'a>(packages: &'a [String], series: &str) -> Option<&'a str> {
    // 6.1.0-56 and 6.12.117+deb12 are what is between the prefix and the architecture.
    let version = |package: &str| -> Option<Vec<u32>> {
        let version = package
            .strip_prefix("linux-image-")?
            .strip_suffix("-amd64")?;
        version.strip_prefix(series)?.strip_prefix('.')?;
        version
            .split(['.', '-', '+'])
            .filter(|part| !part.starts_with("deb") && !part.starts_with("bpo"))
            .map(|part| part.parse().ok())
            .collect()
    };
    packages
        .iter()
        .filter_map(|package| Some((version(package)?, package.as_str())))
        .max()
        .map(|(_, package)| package)
}

/// A busybox that needs no libraries. Not installed: Debian has but one busybox at a time, and initramfs-tools the other.
fn busybox(cache: &Path) -> Result<PathBuf> {
    let tree = cache.join("kernels").join(BUSYBOX);
    let find = || {
        ["bin/busybox", "usr/bin/busybox"]
            .map(|path| tree.join(path))
            .into_iter()
            .find(|path| path.is_file())
    };
    if let Some(busybox) = find() {
        return Ok(busybox);
    }
    let _ = fs::remove_dir_all(&tree);
    toolchain::unpack_package(BUSYBOX, &tree)?;
    find().with_context(|| format!("the package {BUSYBOX} has no busybox"))
}

/// The emulator that this machine has, else one that is unpacked into the cache with its libraries.
///
/// It is not installed: Debian's qemu-system-x86 breaks other versions of qemu-utils, which a machine may have for its own
/// purposes. QEMU finds its firmware and modules relative to its own program (since 5.2).
fn qemu(cache: &Path) -> Result<PathBuf> {
    let (program, package) = QEMU;
    if let Some(found) = sh::find(program) {
        return Ok(found);
    }
    let tree = cache.join("qemu");
    let real = tree.join("usr/bin").join(program);
    if !real.is_file() {
        let _ = fs::remove_dir_all(&tree);
        toolchain::unpack_with_dependencies(package, &tree)?;
    }
    ensure!(real.is_file(), "the package {package} has no {program}");
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries: Vec<_> = ["usr/lib", "lib"]
        .iter()
        .map(|base| tree.join(base).join(&triple))
        .map(|path| path.display().to_string())
        .collect();
    let wrapper = tree.join(program);
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        quoted(&libraries.join(":")),
        quoted(&real.to_string_lossy())
    );
    fs::write(&wrapper, script)
        .and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", wrapper.display()))?;
    ensure!(
        sh::output(Command::new(&wrapper).arg("--version")).is_some(),
        "{} does not run: remove {} to have it unpacked anew",
        wrapper.display(),
        tree.display()
    );
    Ok(wrapper)
}

/// The daemon and the tests as they are now, under their own names: a build beside a long run must not change it.
fn share(shared: &Path, tracker: &Path, binaries: &[Binary]) -> io::Result<()> {
    let bin = shared.join("bin");
    fs::create_dir_all(&bin)?;
    let tests = binaries
        .iter()
        .map(|binary| (binary.path.as_path(), binary.name.as_str()));
    for (path, name) in tests.chain([(tracker, TRACKER)]) {
        // Compilers replace a file and do not write into it, so a second name keeps what it had.
        fs::hard_link(path, bin.join(name))
            .or_else(|_| fs::copy(path, bin.join(name)).map(drop))?;
    }
    Ok(())
}

/// What the machine runs: each unit in a process of its own, one after the other. It notes in `begun` which it came to, in
/// `failed` which failed, and makes `ended` last. There is no udev, so nothing else makes /dev/net/tun.
fn script(shared: &Path, units: &[Unit], runner: &[String], schemathesis: &Path) -> String {
    let slowness = std::env::var(pace::SLOWNESS).unwrap_or_else(|_| SLOWNESS.to_string());
    let shared = quoted(&shared.to_string_lossy());
    let mut runner: Vec<_> = runner.iter().map(|word| quoted(word)).collect();
    if !runner.iter().any(|word| word.contains("--test-threads")) {
        runner.push("--test-threads=2".into());
    }
    let runner = runner.join(" ");
    let mut script = format!(
        "exec >{shared}/output 2>&1 </dev/null\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export {}={} RUST_BACKTRACE=0 TRACKER_BIN=/run/tracker-bin/{TRACKER} {}={}\n\
         mkdir /run/tracker-bin && cp {shared}/bin/{TRACKER} /run/tracker-bin/\n\
         modprobe --quiet tun\n\
         uname -sr\n\
         touch {shared}/failed\n",
        pace::SLOWNESS,
        quoted(&slowness),
        python::SCHEMATHESIS_VARIABLE,
        quoted(&schemathesis.to_string_lossy())
    );
    let limit = FILE_LIMIT.as_secs();
    for unit in units {
        let Binary { name, dir, .. } = unit.binary;
        let dir = quoted(&dir.to_string_lossy());
        let tests = match unit.tests.as_slice() {
            [] => String::new(),
            tests => format!("--exact {}", tests.join(" ")),
        };
        let title = quoted(&unit.name());
        // A copy in memory: the shared directory is slow to read from.
        script += &format!(
            "echo; echo '     Running' {title}; echo {title} >>{shared}/begun; sync\n\
             [ -e /run/tracker-bin/{name} ] || cp {shared}/bin/{name} /run/tracker-bin/\n\
             (cd {dir} && exec timeout --kill-after=10 {limit} /run/tracker-bin/{name} {tests} {runner}) || \
             echo {title} >>{shared}/failed\n"
        );
    }
    script + &format!("touch {shared}/ended\n")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A machine that runs the script; reading it gives what the tests print, until it is off.
struct Machine {
    vng: Child,
    shared: PathBuf,
    output: Option<File>,
    started: Instant,
}

impl Machine {
    fn boot(
        vng: &Path,
        busybox: &Path,
        qemu: &Path,
        kernel: &Kernel,
        shared: &Path,
    ) -> Result<Self> {
        let console = File::create(shared.join("console"))
            .with_context(|| format!("cannot write to {}", shared.display()))?;
        let bin = vng.parent().unwrap_or(vng);
        let path = std::env::join_paths(std::iter::once(bin.to_owned()).chain(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()),
        ))?;
        let mut command = Command::new(vng);
        command
            .args([
                "--disable-kvm",
                "--verbose",
                "--memory",
                "2G",
                "--cpus",
                "2",
            ])
            .arg("--run")
            .arg(&kernel.image)
            .arg("--busybox")
            .arg(busybox)
            .arg("--qemu")
            .arg(qemu)
            .arg("--rwdir")
            .arg(shared)
            .arg("--")
            .arg(format!(
                // The guest also ends by itself, if this process is no longer there to end it.
                "timeout --kill-after=10 {} sh {}",
                LIMIT.as_secs(),
                quoted(&shared.join("run.sh").to_string_lossy())
            ))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            // A group of its own, so that all of it can be ended at once.
            .process_group(0);
        let vng = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", sh::show(&command)))?;
        Ok(Self {
            vng,
            shared: shared.to_owned(),
            output: None,
            started: Instant::now(),
        })
    }

    /// Fails if it is no use to wait longer.
    fn check(&self) -> Result<()> {
        interrupt::check()?;
        let age = self.started.elapsed();
        if self.output.is_none() && age > BOOT_LIMIT {
            eprint!("{}", last_lines(&self.shared.join("console"), 25));
            bail!(
                "the machine did not come up in {BOOT_LIMIT:?}: above are the last words of its console"
            );
        }
        ensure!(
            age < LIMIT,
            "the machine was not done in {LIMIT:?}, and was ended"
        );
        Ok(())
    }
}

impl Read for Machine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Asked before the file is read: what was written before the end is still found.
            let is_off = self.vng.try_wait()?.is_some();
            if self.output.is_none() {
                self.output = File::open(self.shared.join("output")).ok();
            }
            let count = match &mut self.output {
                Some(output) => output.read(buffer)?,
                None => 0,
            };
            if count > 0 || is_off {
                return Ok(count);
            }
            self.check().map_err(io::Error::other)?;
            thread::sleep(POLL);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.vng.try_wait(), Ok(Some(_))) {
            return;
        }
        let group = self.vng.id().cast_signed();
        // SAFETY: only sends a signal; the group is that of a child that was not waited for yet, so it is still ours.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = self.vng.wait();
    }
}

fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stock_kernel_of_a_series_is_taken() {
        let packages: Vec<String> = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-57-amd64-unsigned",
            "linux-image-6.1.0-57-amd64-dbg",
            "linux-image-6.1.0-57-arm64",
            "linux-image-6.1-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.9+bpo-amd64",
            "linux-image-amd64",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(newest(&packages, "6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(
            newest(&packages, "6.12"),
            Some("linux-image-6.12.117+deb12-amd64")
        );
        assert_eq!(newest(&packages, "5.10"), None);
    }

    #[test]
    fn files_of_tests_run_by_themselves_in_the_order_given() {
        let binary = |name: &str| Binary {
            name: name.into(),
            path: "/t".into(),
            dir: "/w".into(),
        };
        let (e2e, prog) = (binary("e2e"), binary("prog"));
        let tests = |names: &[&str]| names.iter().copied().map(String::from).collect::<Vec<_>>();
        let listed = [
            (&e2e, tests(&["pair::a", "pair::b", "stall::c"])),
            (&prog, tests(&["send::d", "tc_send::e"])),
        ];
        let named = |runner: &[&str]| {
            let (units, rest) = units(&listed, &tests(runner));
            (units.iter().map(Unit::name).collect::<Vec<_>>(), rest)
        };
        let all = tests(&["e2e pair::", "e2e stall::", "prog send::", "prog tc_send::"]);
        assert_eq!(named(&[]), (all, Vec::new()));
        assert_eq!(units(&listed, &tests(&["send::"])).0[0].tests, ["send::d"]);
        assert_eq!(
            named(&["stall::", "--nocapture", "pair::"]),
            (
                tests(&["e2e stall::", "e2e pair::"]),
                tests(&["--nocapture"])
            )
        );
        assert_eq!(
            named(&["pair::", "b"]),
            (tests(&["e2e", "prog"]), tests(&["pair::", "b"]))
        );
    }

    #[test]
    fn the_script_takes_any_path_and_filter() {
        let binaries = [Binary {
            name: "pair".into(),
            path: "/t/pair-1".into(),
            dir: "/w/tests".into(),
        }];
        let units = [
            Unit {
                binary: &binaries[0],
                module: None,
                tests: Vec::new(),
            },
            Unit {
                binary: &binaries[0],
                module: Some("pair::".into()),
                tests: vec!["pair::a".into(), "pair::b".into()],
            },
        ];
        let script = script(
            Path::new("/t/it's/kernel-6.1"),
            &units,
            &["two words".into()],
            Path::new("/t/schemathesis"),
        );
        assert!(
            script.contains(r"cp '/t/it'\''s/kernel-6.1'/bin/pair /run/tracker-bin/"),
            "{script}"
        );
        assert!(
            script.contains("/run/tracker-bin/pair  'two words' --test-threads=2)"),
            "{script}"
        );
        assert!(
            script.contains(
                "/run/tracker-bin/pair --exact pair::a pair::b 'two words' --test-threads=2)"
            ),
            "{script}"
        );
        let checked = Command::new("sh")
            .args(["-n", "-c", &script])
            .status()
            .unwrap();
        assert!(checked.success(), "{script}");
    }
}

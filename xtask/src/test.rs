//! `cargo xtask test`: every test of the workspace, then one line with the totals.

use std::{
    env, fmt,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bpf, build, kernel, package, python, sh, soak,
    toolchain::{self, Need},
};

/// Which tests to run; all unless something is named.
#[derive(clap::Args)]
pub struct Args {
    /// Only this package's tests
    #[arg(short, long)]
    package: Option<String>,
    /// Only this binary of tests (e2e, prog, package, histories); may be given several times. Files are modules: `-- route_moves::`
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Run the end-to-end tests under Debian's kernel of this series instead (6.1, 6.12), in an emulated machine
    ///
    /// The kernel comes from apt and stays in the cache of `setup`; virtme-ng comes from PyPI. Emulation is 10 to 50
    /// times slower than hardware, so all times of the tests are longer; $TRACKER_TEST_SLOWNESS says how many times.
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
    /// Run the fault matrix, the simulation and the fuzzers for this many minutes, with new random inputs
    ///
    /// The time is split among them. What was done, and what repeats a failure, is said at the end. All follows from one
    /// seed, which is printed; $TRACKER_SEED sets it.
    #[arg(long, value_name = "MINUTES", value_parser = soak::minutes, conflicts_with_all = ["package", "test", "kernel", "runner"])]
    soak: Option<u32>,
    /// Part of the tests' names, and options of the test runner (`--nocapture`, `--test-threads 1`)
    #[arg(last = true, value_name = "FILTER")]
    runner: Vec<String>,
}

/// How many of the tests that took longest are named.
const LONGEST: usize = 10;

/// Builds and runs the tests.
pub fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    sh::require_root(
        "loading eBPF programs and making network namespaces",
        "cargo xtask test",
    )?;
    let Outcome {
        totals,
        trouble,
        tests_took,
    } = match (&args.kernel, args.soak) {
        (None, Some(minutes)) => soak::run(minutes)?,
        (None, None) => native(args)?,
        (Some(series), _) => kernel::run(
            series,
            &kernel::Selection {
                package: args.package.as_deref().unwrap_or("tracker-tests"),
                tests: &args.test,
                runner: &args.runner,
            },
        )?,
    };
    let took = begun.elapsed().as_secs();
    let tests = tests_took.as_secs();
    sh::say(format_args!(
        "took {took} s: tests {tests} s, builds and installs {} s",
        took.saturating_sub(tests)
    ));
    for (test, took) in totals.longest() {
        sh::say(format_args!("  {:5.1} s  {test}", took.as_secs_f64()));
    }
    // Here and not where they happened: a test that did not run is easily missed among those that did.
    for skip in &totals.skips {
        println!("SKIP: {skip}");
    }
    // The last line of stdout, whatever happens next.
    println!("{totals}");
    if totals.failed > 0 {
        bail!("{} of the tests failed", totals.failed);
    }
    if let Some(trouble) = trouble {
        bail!("{trouble}");
    }
    if totals.passed + totals.ignored == 0 {
        bail!("no test ran: nothing matches");
    }
    if env::var_os("CI").is_some_and(|ci| ci != "false")
        && let Some(skip) = totals.skips.iter().find(|skip| !skip.contains("kernel"))
    {
        bail!(
            "CI accepts only skips that the kernel excuses (\"this kernel has no ...\"), not `{skip}`"
        );
    }
    Ok(())
}

/// What became of the tests.
pub struct Outcome {
    pub totals: Totals,
    /// What went wrong, which failed tests usually explain.
    pub trouble: Option<String>,
    /// How long the tests ran, without what was built and installed before.
    pub tests_took: Duration,
}

/// Under the kernel that runs here.
fn native(args: &Args) -> Result<Outcome> {
    let tracker = build::tracker(&[Need::Build, Need::Demo, Need::Test])?;
    let has_e2e = takes(args, E2E_TESTS);
    let schemathesis = match has_e2e {
        true => Some(python::tool(&python::SCHEMATHESIS)?),
        false => None,
    };
    let prometheus = match has_e2e {
        true => Some(prometheus()?),
        false => None,
    };
    let frr = has_e2e.then(frr).transpose()?;
    // Without it the tests of the web page report what they leave out.
    let axe = has_e2e.then(toolchain::axe).and_then(|axe| {
        axe.inspect_err(|error| sh::say(format_args!("cannot fetch axe-core: {error:#}")))
            .ok()
    });
    let of_package = takes(args, PACKAGE_TESTS)
        .then(|| package::for_tests(&tracker))
        .transpose()?;
    // In the release profile, so that the daemon under test and the tests share one set of dependencies.
    let cargo_test = || {
        let mut command = sh::cargo();
        command.args(["test", "--release", "--locked", "--no-fail-fast"]);
        match &args.package {
            Some(package) => command.args(["--package", package]),
            None => command.arg("--workspace"),
        };
        command.env("TRACKER_BIN", &tracker);
        command.envs(prometheus.iter().map(|path| ("TRACKER_PROMETHEUS", path)));
        command.envs(
            schemathesis
                .iter()
                .map(|path| (python::SCHEMATHESIS_VARIABLE, path)),
        );
        command.envs(frr.iter().map(|path| ("TRACKER_FRR", path)));
        if let Some(axe) = &axe {
            command.env("TRACKER_AXE", axe);
        }
        if let Some(made) = &of_package {
            command
                .env("TRACKER_DEB", &made.deb)
                .env("TRACKER_DEB_NEWER", &made.newer)
                .env("TRACKER_CONTAINER", &made.root)
                .env("TRACKER_DEBIAN", &made.debian);
        }
        command
    };
    let programs = || {
        let mut command = cargo_test();
        match args.test.as_slice() {
            [] => command.args(["--lib", "--bins", "--tests"]),
            tests => command.args(tests.iter().flat_map(|test| ["--test", test])),
        };
        command
    };
    // By itself, so that it is known how long the tests take.
    sh::run(programs().arg("--no-run"))?;
    let begun = Instant::now();
    let mut command = programs();
    // The test harness reports how long each test takes if the compiler is nightly, or with this variable. Only the
    // test programs are to see it: in the environment of rustc it would build other dependencies.
    command.env(RUNNER, "env RUSTC_BOOTSTRAP=1");
    command
        .args(["--", "-Z", "unstable-options", "--report-time"])
        .args(&args.runner);
    let mut outcome = outcome(&mut command)?;
    if args.test.is_empty() {
        let mut command = cargo_test();
        command.args(["--doc", "--"]).args(&args.runner);
        let more = self::outcome(&mut command)?;
        outcome.totals.add(more.totals);
        outcome.trouble = outcome.trouble.or(more.trouble);
    }
    outcome.tests_took = begun.elapsed();
    Ok(outcome)
}

/// The tree of a package that only tests need: unpacked into the cache, not installed. `program` is in it once it is whole.
fn unpacked(
    package: &str,
    program: &str,
    unpack: fn(&str, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = bpf::cache_dir().map_err(|why| anyhow!(why))?;
    let tree = cache.join(package);
    if !tree.join(program).is_file() {
        unpack(package, &tree)?;
    }
    Ok(tree)
}

/// Where Prometheus and promtool are.
fn prometheus() -> Result<PathBuf> {
    let tree = unpacked("prometheus", "usr/bin/promtool", toolchain::unpack_package)?;
    Ok(tree.join("usr/bin"))
}

/// Where FRR is.
fn frr() -> Result<PathBuf> {
    let unpack = toolchain::unpack_with_dependencies;
    unpacked("frr", "usr/lib/frr/bfdd", unpack)
}

/// The binary of end-to-end tests, which need programs of others.
const E2E_TESTS: &str = "e2e";
/// The binary of tests that need a package.
pub const PACKAGE_TESTS: &str = "package";

/// Whether a binary of tests is among those to be run.
fn takes(args: &Args, binary: &str) -> bool {
    let is_package = args
        .package
        .as_deref()
        .is_none_or(|name| name == "tracker-tests");
    is_package && (args.test.is_empty() || args.test.iter().any(|test| test == binary))
}

/// What cargo takes the program from that runs test programs.
const RUNNER: &str = if cfg!(target_arch = "aarch64") {
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER"
} else {
    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
};

fn outcome(command: &mut Command) -> Result<Outcome> {
    let (status, totals) = watch(command)?;
    let trouble = (!status.success())
        .then(|| format!("`{}` failed ({status}): see above", sh::show(command)));
    Ok(Outcome {
        totals,
        trouble,
        tests_took: Duration::ZERO,
    })
}

/// A built binary of tests.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    /// As `--test` names it.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Where cargo would run it.
    pub dir: PathBuf,
}

impl Binary {
    /// The names of its tests.
    pub fn tests(&self) -> Result<Vec<String>> {
        let mut command = Command::new(&self.path);
        command.args(["--list", "--format", "terse"]);
        let list =
            sh::output(&mut command).with_context(|| format!("`{}` failed", sh::show(&command)))?;
        Ok(named(&list))
    }
}

/// The tests in a terse list.
pub fn named(list: &str) -> Vec<String> {
    let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
    tests.map(str::to_owned).collect()
}

/// Builds the tests as `cargo xtask test` does, and asks cargo where they are.
pub fn build_tests(package: &str, tests: &[String]) -> Result<Vec<Binary>> {
    let mut command = sh::cargo();
    command
        .args(["test", "--release", "--locked", "--no-run", "--quiet"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--package", package]);
    for test in tests {
        command.args(["--test", test]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", sh::show(&command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): see above",
            sh::show(&command),
            output.status
        );
    }
    let mut binaries = binaries(&String::from_utf8_lossy(&output.stdout));
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(binaries)
}

/// The test binaries in cargo's messages.
fn binaries(messages: &str) -> Vec<Binary> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            Some(Binary {
                name: text(&message["target"]["name"])?,
                path: text(&message["executable"])?.into(),
                dir: Path::new(message["manifest_path"].as_str()?)
                    .parent()?
                    .into(),
            })
        })
        .collect()
}

/// Runs a test runner, passes on what it prints and counts.
pub fn watch(command: &mut Command) -> Result<(std::process::ExitStatus, Totals)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::show(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // The test harness reports skips on stderr, past the runner's capture.
    let on_stderr = thread::spawn(move || Totals::read(stderr, &mut io::stderr()));
    let mut totals = Totals::read(stdout, &mut io::stdout())?;
    let more = on_stderr
        .join()
        .map_err(|_| anyhow!("the reader of stderr panicked"))??;
    totals.skips.extend(more.skips);
    totals.told.extend(more.told);
    totals.times.extend(more.times);
    Ok((child.wait()?, totals))
}

/// Counted from what test runners print. To them a skipped test is one that passed, and so it is in `passed`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    passed: usize,
    failed: usize,
    ignored: usize,
    skips: Vec<String>,
    /// What tests say of what they did with random inputs.
    pub told: Vec<String>,
    /// How long tests took.
    times: Vec<(String, Duration)>,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.passed.saturating_sub(self.skips.len());
        let skipped = self.ignored + self.skips.len();
        write!(
            f,
            "{passed} passed, {} failed, {skipped} skipped",
            self.failed
        )
    }
}

impl Totals {
    /// Adds what another run gave.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skips.extend(other.skips);
        self.told.extend(other.told);
        self.times.extend(other.times);
    }

    /// The tests that took longest, with how long they took.
    fn longest(&self) -> Vec<(&str, Duration)> {
        let mut times: Vec<_> = self
            .times
            .iter()
            .map(|(test, took)| (test.as_str(), *took))
            .collect();
        times.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        times.truncate(LONGEST);
        times
    }

    /// Reads to the end, and passes on what it reads.
    pub fn read(from: Option<impl Read>, to: &mut impl Write) -> Result<Self> {
        let mut totals = Self::default();
        let mut lines = BufReader::new(from.context("a pipe of cargo test is missing")?);
        let mut line = Vec::new();
        // Bytes, not `lines()`: a test may print what is not UTF-8.
        while lines.read_until(b'\n', &mut line)? > 0 {
            to.write_all(&line)?;
            to.flush()?;
            totals.take(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        Ok(totals)
    }

    fn take(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                summary
                    .split(['.', ';'])
                    .filter_map(|part| part.trim().split_once(' '))
                    .find_map(|(number, name)| (name == what).then(|| number.parse().ok())?)
                    .unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
            self.ignored += count("ignored");
        } else if let Some((test, took)) = timed(line) {
            self.times.push((test.to_owned(), took));
        } else if let Some((_, skip)) = line.split_once("SKIP: ") {
            self.skips.push(skip.to_owned());
        } else if soak::tells(line) {
            self.told.push(line.trim().to_owned());
        }
    }
}

/// A test and how long it took, in a line such as `test NAME ... ok <1.234s>`.
fn timed(line: &str) -> Option<(&str, Duration)> {
    let (test, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (_, seconds) = result.split_once('<')?;
    let seconds: f64 = seconds.strip_suffix("s>")?.parse().ok()?;
    Some((test, Duration::try_from_secs_f64(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"tracker_lab"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"pair"},"profile":{"test":true},"executable":"/t/deps/pair-1"}
{"reason":"compiler-artifact","manifest_path":"/w/user/Cargo.toml","target":{"name":"tracker"},"profile":{"test":false},"executable":"/t/tracker"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            binaries(messages),
            [Binary {
                name: "pair".into(),
                path: "/t/deps/pair-1".into(),
                dir: "/w/tests".into()
            }]
        );
    }

    #[test]
    fn totals_add_up_over_test_binaries() {
        let output = "test a ... ok <0.500s>\n\
            test b ... FAILED <61.250s>\n\
            test c ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            SKIP: up::vlan: this kernel has no 8021q\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.20s\n";
        let mut copy = Vec::new();
        let totals = Totals::read(Some(output.as_bytes()), &mut copy).unwrap();
        assert_eq!(copy, output.as_bytes());
        assert_eq!(
            totals,
            Totals {
                passed: 15,
                failed: 2,
                ignored: 1,
                skips: vec!["up::vlan: this kernel has no 8021q".into()],
                told: Vec::new(),
                times: vec![
                    ("a".into(), Duration::from_millis(500)),
                    ("b".into(), Duration::from_millis(61_250)),
                ],
            }
        );
        assert_eq!(totals.longest()[0], ("b", Duration::from_millis(61_250)));
        assert_eq!(totals.to_string(), "14 passed, 2 failed, 2 skipped");
    }
}

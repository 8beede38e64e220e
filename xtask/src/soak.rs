//! `cargo xtask test --soak MINUTES`: what tests by random inputs find when they have more time than a few seconds.

use std::{env, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};
use tracker_lab::random::{self, SEED, SOAK};

use crate::{
    build,
    test::{self, Binary, Outcome, Totals},
    toolchain::Need,
};

/// The longest soak: a week.
const MOST: u32 = 7 * 24 * 60;
/// The binaries with tests by random inputs.
const BINARIES: [(&str, &str); 3] = [
    ("tracker-tests", "e2e"),
    ("tracker-tests", "prog"),
    ("tracker-user", SIMULATION),
];
/// The tests with the faults; each takes seconds.
const FAULTS: &str = "fault_matrix::";
/// The binary with the simulation of schedule and verdict.
const SIMULATION: &str = "histories";
/// Shares of the time. A row of the matrix takes seconds, a history or a frame microseconds.
const MATRIX: u64 = 5;
const HISTORIES: u64 = 2;
const FUZZERS: u64 = 5;

/// One process of tests that obeys the two variables.
struct Part {
    /// What the summary calls it, and what repeats it.
    package: &'static str,
    test: String,
    /// The tests whose names begin or end like this; all of the binary unless something is named.
    name: Option<String>,
    command: Command,
    share: u64,
}

/// As clap has it checked: from 1 to a week.
pub fn minutes(text: &str) -> Result<u32, String> {
    let minutes = text
        .parse()
        .ok()
        .filter(|minutes| (1..=MOST).contains(minutes));
    minutes.ok_or_else(|| {
        format!(
            "not a time to soak; give a whole number of minutes from 1 to {MOST}, which is a week"
        )
    })
}

/// Whether a line tells what was done with random inputs, or how to do it again.
pub fn tells(line: &str) -> bool {
    let seed = format!("{SEED}=");
    (line.contains(&seed) && !line.starts_with(&seed)) || line.contains(" faults in ")
}

/// Runs everything that obeys the two variables, one after the other.
pub fn run(minutes: u32) -> Result<Outcome> {
    let seed = match env::var(SEED) {
        Err(_) => random::fresh(),
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("{SEED}={seed}: give a whole number, or unset it"))?,
    };
    let tracker = build::tracker(&[Need::Build, Need::Demo, Need::Test])?;
    let parts = parts()?;
    let begun = Instant::now();
    let shares: u64 = parts.iter().map(|part| part.share).sum();
    let mut totals = Totals::default();
    let mut summary = Vec::new();
    let mut trouble = None;
    println!(
        "soaking for {minutes} min in {} parts, {SEED}={seed}",
        parts.len()
    );
    for mut part in parts {
        let seconds = (u64::from(minutes) * 60 * part.share / shares).max(1);
        part.command
            .env("TRACKER_BIN", &tracker)
            .env(SEED, seed.to_string())
            .env(SOAK, seconds.to_string());
        let what = match &part.name {
            Some(name) => format!("{} -- {name}", part.test),
            None => part.test.clone(),
        };
        println!("\n--- {what}, {seconds} s");
        let begun = Instant::now();
        let (status, found) = test::watch(&mut part.command)?;
        let took = begun.elapsed().as_secs();
        let outcome = if status.success() { "ok" } else { "FAILED" };
        summary.push(format!("{what}: {outcome}, {took} s"));
        summary.extend(found.told.iter().map(|line| format!("  {line}")));
        if !status.success() {
            summary.push(format!(
                "  all of it again: {SEED}={seed} {SOAK}={seconds} cargo xtask test --package {} --test {what}",
                part.package
            ));
            trouble = Some(format!("{what} failed ({status}): see above"));
        }
        totals.add(found);
    }
    println!("\nsoaked for {minutes} min, {SEED}={seed}");
    for line in summary {
        println!("  {line}");
    }
    Ok(Outcome {
        totals,
        trouble,
        tests_took: begun.elapsed(),
    })
}

/// What there is to run, with its share of the time.
fn parts() -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (package, name) in BINARIES {
        for binary in test::build_tests(package, &[name.to_owned()])? {
            if name == SIMULATION {
                parts.push(part(package, &binary, None, HISTORIES));
                continue;
            }
            let tests = binary.tests()?;
            if tests.iter().any(|test| test.starts_with(FAULTS)) {
                parts.push(part(package, &binary, Some(FAULTS.to_owned()), MATRIX));
            }
            let fuzzers = fuzzers(tests).into_iter();
            parts.extend(fuzzers.map(|name| part(package, &binary, Some(name), 0)));
        }
    }
    // The fuzzers have one share together; a common multiple makes it whole.
    let count = parts.iter().filter(|part| part.share == 0).count() as u64;
    if count == 0 {
        bail!("no test of the workspace is a fuzzer: none is named fuzz_...");
    }
    for part in &mut parts {
        part.share = match part.share {
            0 => FUZZERS,
            share => share * count,
        };
    }
    Ok(parts)
}

fn part(package: &'static str, binary: &Binary, name: Option<String>, share: u64) -> Part {
    let mut command = Command::new(&binary.path);
    command
        .current_dir(&binary.dir)
        .env("CARGO_MANIFEST_DIR", &binary.dir)
        .arg("--nocapture");
    if let Some(name) = &name {
        command.arg(name);
        if name != FAULTS {
            command.arg("--exact");
        }
    }
    Part {
        package,
        test: binary.name.clone(),
        name,
        command,
        share,
    }
}

/// Those whose last name begins with `fuzz_`.
fn fuzzers(mut tests: Vec<String>) -> Vec<String> {
    tests.retain(|test| {
        let last = test.rsplit("::").next();
        last.is_some_and(|last| last.starts_with("fuzz_"))
    });
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_whole_number_of_minutes() {
        assert_eq!(minutes("1"), Ok(1));
        assert_eq!(minutes("10080"), Ok(MOST));
        for wrong in ["0", "-1", "1.5", "1h", "", "10081", "99999999999"] {
            let why = minutes(wrong).unwrap_err();
            assert!(why.contains("from 1 to 10080"), "{wrong}: {why}");
        }
    }

    #[test]
    fn lines_that_tell_of_random_inputs_are_found() {
        for line in [
            "trk_xdp_recv: 144000 frames, 25800/s, in 300 rounds from TRACKER_SEED=1: Foreign 61.6 %",
            "repeat it with: TRACKER_SEED=4 cargo xtask test -- fuzz_x",
            "12 histories from TRACKER_SEED=9: 3 a second",
            "17 faults in 240 s",
        ] {
            assert!(tells(line), "{line}");
        }
        for line in ["TRACKER_SEED=1", "running 3 tests", "test fuzz_x ... ok"] {
            assert!(!tells(line), "{line}");
        }
    }

    #[test]
    fn fuzzers_are_found_by_their_names() {
        let list = "fuzz_journals: test\nprog::fuzz_send::other: test\nmodule::fuzz_x: test\nfuzz_b: benchmark\n";
        assert_eq!(
            fuzzers(test::named(list)),
            ["fuzz_journals", "module::fuzz_x"]
        );
    }
}

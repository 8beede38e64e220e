//! The fault matrix: each row breaks something real and holds the daemon to its verdict and cause, or to its silence.
//!
//! `TRACKER_SOAK_SECONDS` repeats the rows for this long, in random order, which `TRACKER_SEED` repeats.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::matrix::stage::{Expected, Row, play};
use crate::matrix::{rows, table};
use anyhow::{Result, ensure};
use tracker_ebpf::verdict::Cause;
use tracker_lab::pace;
use tracker_lab::random::{self, Random, SEED, SOAK};

/// Rows that are played beside each other: they wait most of the time.
const BESIDE: usize = 4;
/// Troubles that are told in full.
const TOLD: usize = 5;

/// What became of all rows so far.
struct Matrix {
    rows: Vec<Row>,
    results: Mutex<(Vec<table::Result>, Vec<String>)>,
}

impl Matrix {
    fn play(&self, at: usize) {
        let row = &self.rows[at];
        let played = play(row);
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (results, troubles) = &mut *results;
        let mut of_row: Vec<String> = Vec::new();
        for trouble in played.iter().filter_map(|played| played.trouble.as_ref()) {
            let trouble = format!("{}: {trouble}", row.fault);
            // What went wrong with the whole row is told once.
            if !of_row.contains(&trouble) {
                of_row.push(trouble);
            }
        }
        results[at].times += 1;
        results[at].failed += u32::from(!of_row.is_empty());
        results[at].played.extend(played);
        troubles.extend(of_row);
    }

    /// Plays these once: most of them beside each other, then those that disturb others, until `is_over`.
    fn play_all(&self, order: &[usize], is_over: impl Fn() -> bool + Sync) {
        let (alone, beside): (Vec<_>, Vec<_>) =
            order.iter().partition(|at| self.rows[**at].is_alone);
        let next = Mutex::new(beside.into_iter());
        let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..BESIDE {
                scope.spawn(|| {
                    while let Some(at) = take().filter(|_| !is_over()) {
                        self.play(at);
                    }
                });
            }
        });
        for at in alone {
            if !is_over() {
                self.play(at);
            }
        }
    }
}

/// All rows; on a machine on which a row takes minutes, the first of each expectation.
fn chosen() -> Vec<Row> {
    let rows = rows::all();
    if !pace::is_slow() {
        return rows;
    }
    let mut known: Vec<Expected> = Vec::new();
    let mut chosen = Vec::new();
    for row in rows {
        let new: Vec<_> = row
            .watched
            .iter()
            .map(|watched| watched.expected)
            .filter(|expected| !known.contains(expected))
            .collect();
        if !new.is_empty() {
            known.extend(new);
            chosen.push(row);
        }
    }
    chosen
}

#[test]
fn each_fault_has_its_verdict_and_cause() -> Result<()> {
    let rows = chosen();
    let mut order: Vec<_> = (0..rows.len()).collect();
    let matrix = Matrix {
        results: Mutex::new((vec![table::Result::default(); rows.len()], Vec::new())),
        rows,
    };
    let started = Instant::now();
    // Past the runner's capture: this is for people.
    let mut stdout = std::io::stdout();
    match random::number(SOAK) {
        None => matrix.play_all(&order, || false),
        Some(seconds) => {
            let seed = random::number(SEED).unwrap_or_else(random::fresh);
            let mut random = Random::new(seed);
            writeln!(stdout, "\nfault matrix for {seconds} s: {SEED}={seed}")?;
            let is_over = || started.elapsed() >= Duration::from_secs(seconds);
            while !is_over() {
                random.shuffle(&mut order);
                matrix.play_all(&order, is_over);
            }
        }
    }
    let (results, troubles) = matrix
        .results
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let played = matrix.rows.iter().zip(&results);
    let played: Vec<_> = played.filter(|(_, result)| result.times > 0).collect();
    let count: u32 = played.iter().map(|(_, result)| result.times).sum();
    writeln!(
        stdout,
        "\n{}{count} faults in {:.0} s",
        table::print(played.into_iter()),
        started.elapsed().as_secs_f64()
    )?;
    ensure!(
        troubles.is_empty(),
        "not as expected:\n\n{}",
        troubles[..troubles.len().min(TOLD)].join("\n\n")
    );
    Ok(())
}

/// Checks that the rows produce every cause: one that no row produces is untested.
#[test]
fn the_matrix_has_every_cause() -> Result<()> {
    // What a tracker is by that is up.
    let mut produced = BTreeSet::from(["replied"]);
    // Of services alone: `admin::what_lies_behind_a_dead_service_is_unknown`.
    produced.insert(Cause::Depends.as_str());
    for row in rows::all() {
        for watched in &row.watched {
            match watched.expected {
                Expected::Becomes(_, cause) | Expected::StaysBut(cause) => {
                    produced.insert(cause);
                }
                Expected::Stays => {}
            }
        }
    }
    let known: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    let missing: Vec<_> = known.difference(&produced).copied().collect();
    assert_eq!(missing, [""; 0], "causes without a row");
    Ok(())
}

#[test]
fn each_row_has_a_name_of_its_own() {
    let rows = rows::all();
    let names: BTreeSet<_> = rows.iter().map(|row| row.fault).collect();
    assert_eq!(names.len(), rows.len());
}

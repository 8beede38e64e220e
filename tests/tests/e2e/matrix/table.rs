//! The table that people read.

use std::fmt::Write as _;
use std::time::Duration;

use super::stage::{Played, Row};

/// All that is known of one row.
#[derive(Clone, Default)]
pub struct Result {
    pub times: u32,
    pub failed: u32,
    pub played: Vec<Played>,
}

/// A line for each tracker; those of both address families are one if they do not differ.
struct Line {
    fault: String,
    tracker: String,
    expected: String,
    got: String,
    after: String,
    back: String,
}

impl Line {
    fn cells(&self) -> [&str; 6] {
        [
            &self.fault,
            &self.tracker,
            &self.expected,
            &self.got,
            &self.after,
            &self.back,
        ]
    }
}

/// Least and most, in milliseconds.
fn times<'a>(times: impl Iterator<Item = &'a Option<Duration>>) -> String {
    let mut ms: Vec<_> = times.flatten().map(Duration::as_millis).collect();
    ms.sort_unstable();
    match (ms.first(), ms.last()) {
        (Some(least), Some(most)) if least == most => format!("{most} ms"),
        (Some(least), Some(most)) => format!("{least}-{most} ms"),
        _ => "-".to_owned(),
    }
}

fn lines(row: &Row, result: &Result) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, watched) in row.watched.iter().enumerate() {
        let of_tracker: Vec<_> = result
            .played
            .iter()
            .filter(|played| played.watched == at)
            .collect();
        let mut kinds: Vec<&str> = Vec::new();
        for played in &of_tracker {
            if !kinds.contains(&played.got.as_str()) {
                kinds.push(&played.got);
            }
        }
        for got in kinds {
            let same: Vec<_> = of_tracker
                .iter()
                .filter(|played| played.got == got)
                .collect();
            let families: String = [(false, " 4"), (true, " 6")]
                .into_iter()
                .filter(|(is_v6, _)| same.iter().any(|played| played.is_v6 == *is_v6))
                .map(|(_, word)| word)
                .collect();
            let is_right = same.iter().all(|played| played.trouble.is_none());
            lines.push(Line {
                fault: match lines.is_empty() {
                    true => row.fault.to_owned(),
                    false => String::new(),
                },
                tracker: format!("{}{families}", watched.label),
                expected: watched.expected.to_string(),
                got: format!("{got}{}", if is_right { "" } else { "  <-- WRONG" }),
                after: times(same.iter().map(|played| &played.after)),
                back: times(same.iter().map(|played| &played.back)),
            });
        }
    }
    if result.times > 1
        && let Some(line) = lines.first_mut()
    {
        let _ = write!(
            line.fault,
            " ({} times, {} wrong)",
            result.times, result.failed
        );
    }
    lines
}

/// The whole matrix.
pub fn print<'a>(rows: impl Iterator<Item = (&'a Row, &'a Result)>) -> String {
    let heads = [
        "FAULT",
        "TRACKERS",
        "EXPECTED",
        "GOT",
        "AFTER",
        "BACK AFTER",
    ];
    let lines: Vec<_> = rows.flat_map(|(row, result)| lines(row, result)).collect();
    let mut widths = heads.map(str::len);
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line.cells()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut put = |cells: [&str; 6]| {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    };
    put(heads);
    for line in &lines {
        put(line.cells());
    }
    text
}

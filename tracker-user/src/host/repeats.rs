//! Log lines that may repeat without end: each is written at most once a minute, with a count of what was left out.
//!
//! A line is known by its subject, which names what is wrong and with what ("accept metrics"), not by its text:
//! the text may hold figures that change. The first line of a subject is written at once. [`Repeats::flush`] writes the
//! last of those that were left out once the minute is over, so that nothing is lost when a fault ends.

use std::{
    collections::HashMap,
    fmt::{Arguments, Write as _},
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::Level;

/// How long the lines of a subject after the first are left out.
const QUIET: Duration = Duration::from_secs(60);
/// Subjects that are known at a time. Lines of more subjects within a minute are counted together.
const MAX_SUBJECTS: usize = 1_024;
/// The subject of those that are too many.
const OTHERS: &str = "others";

static LOG: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);
/// Lines that have no subject, by their text.
static LINES: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);

/// Writes a line to the log unless one of the same subject was written in the last minute.
pub fn log(level: Level, subject: &str, line: Arguments<'_>) {
    let line = LOG.lock().take(Instant::now(), level, subject, line);
    if let Some(line) = line {
        write(level, &line);
    }
}

/// Writes a warning to the log unless one of the same subject was written in the last minute.
pub fn warn(subject: &str, line: Arguments<'_>) {
    log(Level::WARN, subject, line);
}

/// Whether a line was written in the last minute, word for word, so that it is to be left out.
pub fn is_repeated(level: Level, line: &str) -> bool {
    LINES.lock().is_repeated(Instant::now(), level, line)
}

/// Writes what was left out and is a minute old. Called about once a second.
pub fn flush() {
    let now = Instant::now();
    let mut lines = LOG.lock().flush(now);
    lines.extend(LINES.lock().flush(now));
    for (level, line) in lines {
        write(level, &line);
    }
}

fn write(level: Level, line: &str) {
    match level {
        Level::ERROR => tracing::error!("{line}"),
        Level::WARN => tracing::warn!("{line}"),
        Level::INFO => tracing::info!("{line}"),
        _ => tracing::debug!("{line}"),
    }
}

/// What was written and left out (pure).
#[derive(Debug, Default)]
pub struct Repeats {
    subjects: HashMap<String, Subject>,
}

#[derive(Debug)]
struct Subject {
    written: Instant,
    left_out: u64,
    last: Option<(Level, String)>,
}

impl Repeats {
    /// Takes a line; returns what is to be written of it now.
    pub fn take(
        &mut self,
        now: Instant,
        level: Level,
        subject: &str,
        line: Arguments<'_>,
    ) -> Option<String> {
        let is_full = self.subjects.len() >= MAX_SUBJECTS && !self.subjects.contains_key(subject);
        let subject = if is_full { OTHERS } else { subject };
        match self.subjects.get_mut(subject) {
            Some(known) if known.is_quiet(now) => {
                known.left_out += 1;
                let text = &mut known.last.get_or_insert((level, String::new())).1;
                text.clear();
                // Writing to a String does not fail.
                let _ = text.write_fmt(line);
                None
            }
            Some(known) => {
                let text = counted(&line.to_string(), known.left_out);
                *known = Subject::written(now);
                Some(text)
            }
            None => {
                self.subjects
                    .insert(subject.to_owned(), Subject::written(now));
                Some(line.to_string())
            }
        }
    }

    /// Takes a line that is its own subject; returns whether it is to be left out. Of more lines within a minute than there are
    /// subjects, those after are not known again.
    pub fn is_repeated(&mut self, now: Instant, level: Level, line: &str) -> bool {
        match self.subjects.get_mut(line) {
            // What was left out of an earlier minute is still to be written: this joins it.
            Some(known) if known.left_out > 0 || known.is_quiet(now) => {
                known.left_out += 1;
                known.last.get_or_insert_with(|| (level, line.to_owned()));
                true
            }
            Some(known) => {
                *known = Subject::written(now);
                false
            }
            None => {
                if self.subjects.len() < MAX_SUBJECTS {
                    self.subjects.insert(line.to_owned(), Subject::written(now));
                }
                false
            }
        }
    }

    /// What was left out of subjects whose minute is over, each by its last line. Subjects without a line left
    /// out for a minute are forgotten.
    pub fn flush(&mut self, now: Instant) -> Vec<(Level, String)> {
        let mut lines = Vec::new();
        self.subjects.retain(|_, known| {
            if known.is_quiet(now) {
                return true;
            }
            let Some((level, line)) = known.last.take() else {
                return false;
            };
            lines.push((level, counted(&line, known.left_out - 1)));
            *known = Subject::written(now);
            true
        });
        lines
    }
}

impl Subject {
    const fn written(now: Instant) -> Self {
        Self {
            written: now,
            left_out: 0,
            last: None,
        }
    }

    /// Whether the subject's lines are left out now.
    fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.written) < QUIET
    }
}

fn counted(line: &str, more: u64) -> String {
    match more {
        0 => line.to_owned(),
        more => format!("{line} (and {more} more like this in the last minute)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_secs(second)
    }

    #[test]
    fn a_line_is_written_once_a_minute_with_a_count() {
        let mut repeats = Repeats::default();
        let mut written = Vec::new();
        for second in 0..150 {
            let line = repeats.take(at(second), Level::WARN, "late", format_args!("{second} ms"));
            written.extend(line);
            written.extend(repeats.flush(at(second)).into_iter().map(|(_, line)| line));
        }
        let wanted = [
            "0 ms",
            "60 ms (and 59 more like this in the last minute)",
            "120 ms (and 59 more like this in the last minute)",
        ];
        assert_eq!(written, wanted);
        // The last ones are told too, and then there is silence.
        let rest = repeats.flush(at(180));
        let wanted = "149 ms (and 28 more like this in the last minute)";
        assert_eq!(rest, [(Level::WARN, wanted.to_owned())]);
        assert_eq!(repeats.flush(at(600)), []);
        assert!(repeats.subjects.is_empty());
    }

    #[test]
    fn subjects_do_not_silence_each_other_and_are_bounded() {
        let mut repeats = Repeats::default();
        let mut written = 0;
        for one in 0..5_000 {
            let subject = format!("subject {one}");
            let line = repeats.take(at(0), Level::INFO, &subject, format_args!("x"));
            written += usize::from(line.is_some());
        }
        assert_eq!(written, MAX_SUBJECTS + 1);
        assert_eq!(repeats.subjects.len(), MAX_SUBJECTS + 1);
        let (_, others) = repeats.flush(at(60)).pop().expect("the others");
        assert!(others.contains("more like this"), "{others}");
    }
}

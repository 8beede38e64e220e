//! The daemon's log: to the systemd journal with fields, else as lines on standard error, in the form that their reader
//! understands. What is logged can be changed while the daemon runs.

use std::{fmt, os::fd::AsFd, sync::OnceLock};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use super::repeats;
use crate::state::verdict_log;

/// Target of lines that answer what an operator has just asked for.
pub const ANSWER: &str = "tracker_user::answer";
/// What is logged by default.
pub const DEFAULT_FILTER: &str = "info";
/// Environment variable with what is logged from the start.
const VARIABLE: &str = "TRACKER_LOG";
/// Most bytes of a filter.
pub const FILTER_MAX: usize = 1_000;

/// What is logged now, and how to change it.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Logs from here on. To the journal if standard error is that, each line with its fields (`TRACKER_SERVICE` and so on); to
/// standard error if not, or if the journal's own socket cannot be reached.
pub fn begin() {
    let filter =
        EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let (filter, handle) = reload::Layer::new(filter);
    let log = tracing_subscriber::registry().with(filter).with(Unrepeated);
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let is_journal = stream.is_some_and(|stream| is_journal(&stream, std::io::stderr()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .fmt_fields(tracing_subscriber::fmt::format::debug_fn(message_only));
    if !is_journal {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        log.with(lines.with_ansi(is_terminal)).init();
    } else if let Ok(journal) = tracing_journald::layer() {
        log.with(journal_fields(journal)).init();
    } else {
        log.with(lines.event_format(Journal)).init();
    }
    // A second call has panicked above.
    let _ = FILTER.set(handle);
}

fn journal_fields(journal: tracing_journald::Layer) -> tracing_journald::Layer {
    journal
        .with_syslog_identifier("tracker".to_owned())
        .with_field_prefix(Some("TRACKER".to_owned()))
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        })
}

/// What is logged now: a level, or directives as `tracker_user::net=debug,info`. `None` if this process has no log.
pub fn filter() -> Option<String> {
    FILTER.get()?.with_current(EnvFilter::to_string).ok()
}

/// Logs by another filter from now on.
///
/// # Errors
/// What is wrong with it, and what to give instead; then nothing is changed.
pub fn set_filter(wanted: &str) -> Result<(), String> {
    let parsed = parse(wanted)?;
    let handle = FILTER.get().ok_or("this process has no log")?;
    handle.reload(parsed).map_err(|error| error.to_string())
}

fn parse(wanted: &str) -> Result<EnvFilter, String> {
    let hint = "give a level (off, error, warn, info, debug, trace) or directives as tracker_user::net=debug,info";
    let shown: String = wanted.escape_debug().take(60).collect();
    let said =
        |why: &dyn fmt::Display| format!("\"{shown}\" is no filter of the log: {why}; {hint}");
    if wanted.trim().is_empty() {
        return Err(said(&"it is empty"));
    }
    if wanted.len() > FILTER_MAX {
        return Err(said(&format_args!("it is longer than {FILTER_MAX} bytes")));
    }
    // A word that is no level is taken for the name of a module, and then everything in that module is logged.
    let is_word = |directive: &str| {
        !directive.contains(['=', '[', ':'])
            && directive.parse::<tracing::metadata::LevelFilter>().is_err()
    };
    if let Some(word) = wanted
        .split(',')
        .map(str::trim)
        .find(|directive| is_word(directive))
    {
        return Err(said(&format_args!("{:?} is no level", word)));
    }
    EnvFilter::try_new(wanted).map_err(|error| said(&error))
}

/// Writes the text of a line and leaves its fields out, which are for the journal.
fn message_only(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        _ => Ok(()),
    }
}

/// Leaves warnings and errors out that were written in the last minute, word for word; [`repeats::flush`] writes them with
/// their count. Lines of [`verdict_log::TARGET`] have a limit of their own, and those of [`ANSWER`] are asked for.
struct Unrepeated;

impl<S: Subscriber> Layer<S> for Unrepeated {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let of = event.metadata();
        if *of.level() > Level::WARN || [verdict_log::TARGET, ANSWER].contains(&of.target()) {
            return true;
        }
        let mut line = Message::default();
        event.record(&mut line);
        !repeats::is_repeated(*of.level(), &line.0)
    }
}

/// The text of a line.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Whether a file is the one that `$JOURNAL_STREAM` names by device and inode (systemd.exec(5)): the variable is
/// inherited by programs whose output goes elsewhere.
fn is_journal(stream: &str, file: impl AsFd) -> bool {
    let named = stream.split_once(':').and_then(|(device, inode)| {
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    let found = nix::sys::stat::fstat(file);
    let found = found.ok().map(|found| (found.st_dev, found.st_ino));
    named.is_some() && named == found
}

/// Lines with a priority in front, for the journal.
struct Journal;

impl Journal {
    /// Of syslog(3).
    const fn priority(level: Level) -> u8 {
        match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        }
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", Self::priority(*event.metadata().level()))?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::unix::fs::MetadataExt as _,
        sync::{Arc, Mutex, PoisonError},
    };

    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let (device, inode) = {
            let found = file.metadata().unwrap();
            (found.dev(), found.ino())
        };
        assert!(is_journal(&format!("{device}:{inode}"), &file));
        for other in [
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
        ] {
            assert!(!is_journal(&other, &file), "{other}");
        }
        for nonsense in ["", ":", "7", "a:b"] {
            assert!(!is_journal(nonsense, &file), "{nonsense}");
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_the_journal_begin_with_their_priority() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(tracing_subscriber::fmt::format::debug_fn(message_only))
            .event_format(Journal);
        let log = tracing_subscriber::registry().with(Unrepeated).with(layer);
        tracing::subscriber::with_default(log, || {
            tracing::error!("cannot do {}", 1);
            // Again: once is enough, but not of what counts each time.
            tracing::error!("cannot do {}", 1);
            tracing::error!("cannot do {}", 2);
            for _ in 0..2 {
                tracing::warn!(target: verdict_log::TARGET, service = "fw-1", "fw-1: up -> down");
            }
            tracing::info!("ready");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let expected =
            "<3>cannot do 1\n<3>cannot do 2\n<4>fw-1: up -> down\n<4>fw-1: up -> down\n<6>ready\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn filters_are_levels_or_directives() {
        for good in ["debug", "WARN", "off", "tracker_user::net=debug,info"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(2_000);
        for bad in [
            "",
            " ",
            "loud",
            "a=b=c",
            "tracker_user=loud",
            "info,verbose",
            &long,
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains("give a level"), "{error}");
            assert!(error.len() < 400, "{error}");
        }
    }
}

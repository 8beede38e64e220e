//! The daemon's log: lines on standard error, in the form that their reader understands.

use std::{fmt, os::fd::AsFd};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Logs to standard error from here on. If that is the systemd journal, each line begins with its priority
/// (sd-daemon(3)) and has neither time nor colour, which the journal adds itself.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_env("TRACKER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let stream = std::env::var("JOURNAL_STREAM").ok();
    if stream.is_some_and(|stream| is_journal(&stream, std::io::stderr())) {
        log.event_format(Journal).init();
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        log.with_ansi(is_terminal).init();
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
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Journal)
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!("cannot do {}", 1);
            tracing::warn!("fw-1: up -> down");
            tracing::info!("ready");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>cannot do 1\n<4>fw-1: up -> down\n<6>ready\n");
    }
}

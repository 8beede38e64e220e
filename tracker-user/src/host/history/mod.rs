//! What is kept of loss, round-trip time and events: append-only files in the state directory, of a bounded size.
//!
//! Rows of one second are given by a sampler; those of a minute and an hour are made of them. What is not on disk when the machine
//! crashes is lost, what is there is read again; the rows of a longer step that were not complete are made again from those of the
//! shorter one.

mod bucket;
mod frame;
mod read;
mod series;
mod tier;
mod writer;

use std::{
    fmt::Arguments,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

pub use read::{Found, FoundMember, Point, key};
pub use tier::{Tier, reach};
pub use writer::Writer;

use super::repeats;
use crate::state::events::EventFeed;

/// The directory below the state directory.
const DIRECTORY: &str = "history";
/// How long a reader waits for what writes, which a disk may hold up.
const WAIT: Duration = Duration::from_secs(2);

/// What one member's probes had in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// Probes sent.
    pub sent: u64,
    /// Probes that were found lost, of this step or an earlier one.
    pub lost: u64,
    /// Round-trip times; none if there was no reply.
    pub rtt: Option<Rtt>,
}

/// Round-trip times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rtt {
    /// Shortest.
    pub min_us: u64,
    /// Mean.
    pub mean_us: u64,
    /// 99th percentile, at least the shortest and at most the longest.
    pub p99_us: u64,
    /// Longest.
    pub max_us: u64,
}

/// A 99th percentile in microseconds, between the shortest and the longest time; the longest if it is not known.
pub fn p99_us(found_ns: Option<u64>, min_us: u64, max_us: u64) -> u64 {
    found_ns
        .map_or(max_us, |ns| ns / 1_000)
        .clamp(min_us, max_us)
}

/// Why the history cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The directory cannot be made.
    #[error("cannot make {}; check [hub] state and its disk, or set [history] size to \"0\"", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}; check the disk, or delete it", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}; what was to be kept of the last seconds is lost; make room on the disk, or set [history] size to \"0\"", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// One step of all members is longer than everything may be.
    #[error(
        "one step of all members takes {need} bytes, more than [history] size leaves for it; set a greater one"
    )]
    TooSmall {
        /// Bytes of the step.
        need: u64,
    },
    /// It is switched off.
    #[error("no history is kept: [history] size is \"0\"; set a size, and reload")]
    Off,
    /// What writes it waits for the disk.
    #[error("the history is being written, or opened, for more than {} s; try again, and check the disk if that lasts", WAIT.as_secs())]
    Busy,
}

/// Writes a line about the history to the log, once a minute at most.
fn warn(line: Arguments<'_>) {
    repeats::warn("history", line);
}

/// The history of a daemon, for what writes and what reads it. Cheap to clone.
#[derive(Clone)]
pub struct History {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    size: u64,
    /// None until the directory could be opened, and while nothing is kept.
    writer: Option<Writer>,
}

impl History {
    /// The history in a state directory, of at most `size` bytes; of 0 bytes, none is kept. Nothing is opened yet.
    pub fn new(state: &Path, size: u64) -> Self {
        let state_of = State { size, writer: None };
        Self {
            shared: Arc::new(Shared {
                directory: state.join(DIRECTORY),
                state: Mutex::new(state_of),
            }),
        }
    }

    /// Takes another size. What is there and does not fit is deleted when the next is written; with 0 it stays as it is.
    pub fn set_size(&self, size: u64) {
        let mut state = self.shared.state.lock();
        state.size = size;
        match (&mut state.writer, size) {
            (writer, 0) => *writer = None,
            (Some(writer), size) => writer.set_size(size),
            (None, _) => {}
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.shared.state.lock().size > 0
    }

    /// Writes something, if anything is kept: `write` is called while no one else reads or writes. A failure is logged.
    pub fn write<T>(
        &self,
        now: i64,
        write: impl FnOnce(&mut Writer) -> Result<T, HistoryError>,
    ) -> Option<T> {
        let mut state = self.shared.state.lock();
        let written = state.writer(&self.shared.directory, now).and_then(write);
        match written {
            Ok(written) => Some(written),
            Err(HistoryError::Off) => None,
            Err(error) => {
                warn(format_args!("{}", crate::error::full(&error)));
                None
            }
        }
    }

    /// What is known of a service since a time, as fine as the tier.
    ///
    /// # Errors
    /// When nothing is kept, or the disk does not answer.
    pub fn read(
        &self,
        service: &str,
        since: i64,
        tier: Tier,
        feed: &EventFeed,
        now: i64,
    ) -> Result<Found, HistoryError> {
        let (rows, events) = {
            let mut state = self
                .shared
                .state
                .try_lock_for(WAIT)
                .ok_or(HistoryError::Busy)?;
            let writer = state.writer(&self.shared.directory, now)?;
            // What cannot be written is said in the log; what is there can be read all the same.
            let written = writer.follow(feed).and_then(|()| writer.flush());
            if let Err(error) = written {
                warn(format_args!("{}", crate::error::full(&error)));
            }
            writer.files(tier, since)
        };
        read::read(&rows, &events, service, since)
    }
}

impl State {
    fn writer(&mut self, directory: &Path, now: i64) -> Result<&mut Writer, HistoryError> {
        if self.size == 0 {
            return Err(HistoryError::Off);
        }
        if self.writer.is_none() {
            self.writer = Some(Writer::open(directory, self.size, now)?);
        }
        self.writer.as_mut().ok_or(HistoryError::Off)
    }
}

#[cfg(test)]
mod tests;

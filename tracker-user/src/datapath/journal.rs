//! Where the journal is kept: in a pinned map of its own, outside of the programs' maps. There it lives and dies
//! with what it tells of: a reboot or `tracker cleanup` takes both, and no file system has to be writable.
//!
//! The memory of the map is written like a file that is only appended to, and the length last: a daemon that is
//! killed at any moment leaves whole lines. What no longer fits makes a new map, which takes the old one's place
//! once it is complete.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    maps::{Array, MapData, MapError},
    pin::PinError,
};

use super::{mmap::Mapped, pins::Pins};

/// `BPF_F_MMAPABLE` (Linux 5.5).
const MMAPABLE: u32 = 1 << 10;
/// What the first word says: "TRKJ" and the version of what follows.
const MAGIC: u64 = 0x5452_4b4a_0000_0000 | VERSION;
/// Version of the journal, which has nothing to do with that of the other maps.
const VERSION: u64 = 1;
/// The word with the length, bytes.
const LENGTH: u32 = 1;
/// The word with which the text begins.
const TEXT: u32 = 2;
/// Least room that is left for what is appended, bytes.
const ROOM: usize = 128 << 10;

/// Why a journal cannot be read or begun.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// An earlier or later daemon wrote it.
    #[error("it is of version {0}, not {VERSION}")]
    Version(u32),
    /// Something else is in the map.
    #[error("it is no journal")]
    Foreign,
    /// Its length is beyond the end of the map.
    #[error("it is said to be longer than it can be")]
    TooLong,
    /// No map is as large as what is to be kept.
    #[error("what is to be kept is too large")]
    TooLarge,
    /// The new map cannot be pinned.
    #[error("cannot pin it")]
    Pin(#[source] PinError),
    /// The new map cannot take the place of the old one.
    #[error("cannot pin it as {}", .path.display())]
    Replace {
        /// The pin.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The kernel gives no such map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The map cannot be read as memory.
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// A journal that is being written.
pub struct Journal {
    pins: Pins,
    memory: Option<Mapped<u64>>,
    length: usize,
}

impl Journal {
    /// The instance's journal, and what a predecessor left in it, if it did, or why that can't be read.
    pub fn open(pins: &Pins) -> (Self, Option<Result<Vec<u8>, JournalError>>) {
        let mut journal = Self {
            pins: pins.clone(),
            memory: None,
            length: 0,
        };
        let pin = pins.journal();
        if !pin.exists() {
            return (journal, None);
        }
        let found = map(&pin).and_then(|memory| {
            let text = read(&memory)?;
            journal.length = text.len();
            journal.memory = Some(memory);
            Ok(text)
        });
        (journal, Some(found))
    }

    /// Adds a line; false if there is no room for it, or no journal.
    pub fn append(&mut self, line: &[u8]) -> bool {
        let Some(memory) = &self.memory else {
            return false;
        };
        if self.length + line.len() > room(memory) {
            return false;
        }
        write(memory, self.length, line);
        self.length += line.len();
        true
    }

    /// Leaves nothing to the next daemon: better than what is no longer true.
    pub fn give_up(&mut self) {
        self.memory = None;
        // It may not exist, which is as good.
        let _ = fs::remove_file(self.pins.journal());
    }

    /// Begins anew with this line, in a map that has room for it and more.
    ///
    /// # Errors
    /// Where the kernel gives no such map, or it can't be pinned.
    pub fn begin(&mut self, line: &[u8]) -> Result<(), JournalError> {
        let bytes = line.len() + ROOM.max(line.len() / 2);
        let words = u32::try_from(bytes.div_ceil(8)).map_err(|_| JournalError::TooLarge)?;
        let array = Array::<MapData, u64>::create(words + TEXT, MMAPABLE)?;
        let (pin, next) = (self.pins.journal(), self.pins.next_journal());
        // A predecessor may have been killed just here.
        let _ = fs::remove_file(&next);
        array.pin(&next).map_err(JournalError::Pin)?;
        let memory = map(&next)?;
        write(&memory, 0, line);
        set(&memory, 0, MAGIC);
        fs::rename(&next, &pin).map_err(|source| JournalError::Replace { path: pin, source })?;
        self.memory = Some(memory);
        self.length = line.len();
        Ok(())
    }
}

fn map(pin: &Path) -> Result<Mapped<u64>, JournalError> {
    let data = MapData::from_pin(pin)?;
    Ok(Mapped::new(&data)?)
}

fn room(memory: &Mapped<u64>) -> usize {
    memory.len().saturating_sub(TEXT) as usize * 8
}

fn word(memory: &Mapped<u64>, at: u32) -> u64 {
    memory.at(at).map_or(0, |word| {
        // SAFETY: a valid, aligned element.
        unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Acquire)
    })
}

fn set(memory: &Mapped<u64>, at: u32, value: u64) {
    if let Some(word) = memory.at(at) {
        // SAFETY: a valid, aligned element; the order of stores is that of the program, also for a reader that comes
        // after this process was killed.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
    }
}

fn read(memory: &Mapped<u64>) -> Result<Vec<u8>, JournalError> {
    let magic = word(memory, 0);
    if magic != MAGIC {
        return Err(match magic ^ MAGIC {
            other if other >> 32 == 0 => JournalError::Version(magic as u32),
            _ => JournalError::Foreign,
        });
    }
    let length = usize::try_from(word(memory, LENGTH)).map_err(|_| JournalError::TooLong)?;
    if length > room(memory) {
        return Err(JournalError::TooLong);
    }
    let words = (0..length.div_ceil(8)).map(|at| word(memory, TEXT + at as u32));
    let mut text: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    text.truncate(length);
    Ok(text)
}

/// Writes bytes behind those that are there, and then how many there are.
fn write(memory: &Mapped<u64>, from: usize, bytes: &[u8]) {
    let mut at = from;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (word_at, shift) = (TEXT + (at / 8) as u32, at % 8);
        let (now, later) = rest.split_at(rest.len().min(8 - shift));
        let mut value = word(memory, word_at).to_ne_bytes();
        value[shift..shift + now.len()].copy_from_slice(now);
        set(memory, word_at, u64::from_ne_bytes(value));
        at += now.len();
        rest = later;
    }
    set(memory, LENGTH, at as u64);
}

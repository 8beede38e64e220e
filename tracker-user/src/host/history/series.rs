//! The files of one tier, or of the events: appended to at the end, deleted at the beginning.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    HistoryError, Value,
    frame::{self, COLUMNS, EVENT, FRAME_HEAD, FRAME_MAX, Foreign, HEADER_LEN, ROW},
};

/// What the names of files end with.
const SUFFIX: &str = ".seg";
/// A column that has no number in the open file.
const UNNUMBERED: u32 = u32::MAX;
/// A file is at least this many times as long as the names of its columns, if the whole size allows.
const TIMES_COLUMNS: u64 = 8;

/// A series of files.
pub(super) struct Series {
    directory: PathBuf,
    name: &'static str,
    /// Seconds from row to row; 0 of events.
    step_s: u32,
    /// The oldest first.
    files: VecDeque<SeriesFile>,
    /// The last of them, if it can be appended to.
    open: Option<Open>,
    /// What is not written to it yet.
    buffer: Vec<u8>,
    /// What is written and may not be on disk.
    unsynced: Vec<Arc<File>>,
}

/// A file of a series.
#[derive(Clone, Debug)]
pub(super) struct SeriesFile {
    number: u64,
    /// When it was made, seconds of Unix time.
    pub(super) created: i64,
    /// What of it is whole.
    pub(super) bytes: u64,
    pub(super) path: PathBuf,
}

struct Open {
    file: Arc<File>,
    /// The columns' numbers in the file, by their names.
    ids: HashMap<Arc<str>, u32>,
    /// The columns' numbers in the file, by their numbers in rows.
    order: Vec<u32>,
    /// What the names take.
    column_bytes: u64,
    is_unsynced: bool,
}

impl Open {
    fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            ids: HashMap::new(),
            order: Vec::new(),
            column_bytes: 0,
            is_unsynced: false,
        }
    }
}

/// When a file ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Once it is longer, in bytes.
    pub(super) file: u64,
    /// Once it is longer and its columns' names are many, in bytes.
    pub(super) most: u64,
    /// Once it is older, in seconds.
    pub(super) part_s: i64,
}

/// The last things in a series.
#[derive(Default)]
pub(super) struct Last {
    /// The time of the last row or event.
    pub(super) time: Option<i64>,
    /// The last event.
    pub(super) event: Option<Vec<u8>>,
}

impl Series {
    /// Opens the files of a series. Of the last one, what was not written whole is cut off.
    pub(super) fn open(
        directory: &Path,
        name: &'static str,
        step_s: u32,
    ) -> Result<Self, HistoryError> {
        let mut series = Self {
            directory: directory.to_owned(),
            name,
            step_s,
            files: VecDeque::new(),
            open: None,
            buffer: Vec::new(),
            unsynced: Vec::new(),
        };
        let mut numbers = series.numbers().map_err(|source| HistoryError::Read {
            path: directory.to_owned(),
            source,
        })?;
        numbers.sort_unstable();
        for number in numbers {
            let path = series.path(number);
            match series.look(number, &path) {
                Ok(Some(file)) => series.files.push_back(file),
                Ok(None) => {}
                Err(source) => return Err(HistoryError::Read { path, source }),
            }
        }
        if let Some(last) = series.files.back_mut() {
            let path = last.path.clone();
            let opened = mend(last).map_err(|source| HistoryError::Read { path, source })?;
            series.open = Some(opened);
        }
        Ok(series)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory
            .join(format!("{}-{number:010}{SUFFIX}", self.name))
    }

    /// The numbers of the files that there are.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let digits = name.to_str().and_then(|name| {
                let rest = name.strip_prefix(self.name)?.strip_prefix('-')?;
                rest.strip_suffix(SUFFIX)
            });
            numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// Looks at a file's header. What is not of this version is kept aside; a file without a whole header has nothing in it.
    fn look(&self, number: u64, path: &Path) -> io::Result<Option<SeriesFile>> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut header = [0; HEADER_LEN];
        if bytes < HEADER_LEN as u64 {
            fs::remove_file(path)?;
            return Ok(None);
        }
        file.read_exact(&mut header)?;
        match frame::parse_header(&header, self.step_s) {
            Ok(created) => Ok(Some(SeriesFile {
                number,
                created,
                bytes,
                path: path.to_owned(),
            })),
            Err(why) => {
                let (suffix, what) = match why {
                    Foreign::Damaged => ("damaged".to_owned(), "is damaged".to_owned()),
                    Foreign::Version(found) => (
                        format!("version-{found}"),
                        format!(
                            "is of version {found}, and this `tracker` reads version {}",
                            frame::VERSION
                        ),
                    ),
                };
                let mut aside = path.as_os_str().to_owned();
                aside.push(format!(".{suffix}"));
                fs::rename(path, &aside)?;
                tracing::error!(
                    "the history's file {} {what}; it is kept as {} and does not count into [history] size",
                    path.display(),
                    Path::new(&aside).display()
                );
                Ok(None)
            }
        }
    }

    /// The bytes of all files, with what is still to be written.
    pub(super) fn bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|file| file.bytes).sum();
        files + self.buffer.len() as u64
    }

    /// The bytes that are still to be written.
    pub(super) fn pending(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// The files in which something of `since` or later may be, the oldest first.
    pub(super) fn since(&self, since: i64) -> Vec<SeriesFile> {
        let ends = self
            .files
            .iter()
            .skip(1)
            .map(|next| next.created)
            .chain([i64::MAX]);
        let files = self.files.iter().zip(ends).filter(|(_, end)| *end >= since);
        files.map(|(file, _)| file.clone()).collect()
    }

    /// What stands last in the series.
    pub(super) fn last(&self) -> Last {
        for file in self.files.iter().rev() {
            let mut last = Last::default();
            let _ = each_frame(file, |kind, mut content| {
                if kind == ROW || kind == EVENT {
                    last.time = frame::take_time(&mut content).or(last.time);
                }
                if kind == EVENT {
                    last.event = Some(content.to_vec());
                }
                true
            });
            if last.time.is_some() {
                return last;
            }
        }
        Last::default()
    }

    /// Appends a row that began at `time`; `keys` has the names of its columns.
    pub(super) fn row(
        &mut self,
        time: i64,
        row: &[(u32, Value)],
        keys: &[Arc<str>],
        limits: Limits,
    ) -> Result<(), HistoryError> {
        self.begin_file(time, limits)?;
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let mut added = Vec::new();
        for (column, _) in row {
            let at = *column as usize;
            let Some(key) = keys.get(at) else { continue };
            if at >= open.order.len() {
                open.order.resize(at + 1, UNNUMBERED);
            }
            if open.order[at] != UNNUMBERED {
                continue;
            }
            let next = open.ids.len() as u32;
            open.order[at] = *open.ids.entry(key.clone()).or_insert_with(|| {
                added.push(key.clone());
                next
            });
        }
        let before = self.buffer.len();
        frame::columns(&mut self.buffer, &added);
        open.column_bytes += (self.buffer.len() - before) as u64;
        let mut values = vec![None; open.ids.len()];
        for (column, value) in row {
            let id = open
                .order
                .get(*column as usize)
                .copied()
                .unwrap_or(UNNUMBERED);
            if let Some(place) = values.get_mut(id as usize) {
                *place = Some(*value);
            }
        }
        frame::row(&mut self.buffer, time, &values);
        Ok(())
    }

    /// Forgets the columns' numbers in rows.
    pub(super) fn forget(&mut self) {
        if let Some(open) = &mut self.open {
            open.order = Vec::new();
        }
    }

    /// Appends an event.
    pub(super) fn event(
        &mut self,
        time: i64,
        json: &[u8],
        limits: Limits,
    ) -> Result<(), HistoryError> {
        self.begin_file(time, limits)?;
        frame::event(&mut self.buffer, time, json);
        Ok(())
    }

    /// Makes the next file if there is none to append to, or if the open one has reached its end.
    fn begin_file(&mut self, now: i64, limits: Limits) -> Result<(), HistoryError> {
        if let (Some(open), Some(last)) = (&self.open, self.files.back()) {
            let most = (open.column_bytes * TIMES_COLUMNS).clamp(limits.file, limits.most);
            let is_long = last.bytes + self.pending() >= most;
            let is_old = now.saturating_sub(last.created) >= limits.part_s;
            if !is_long && !is_old {
                return Ok(());
            }
            self.write()?;
        }
        self.close();
        let number = self.files.back().map_or(1, |last| last.number + 1);
        let path = self.path(number);
        let failed = |source| HistoryError::Write {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        if let Err(error) = file.write_all_at(&frame::header(self.step_s, now), 0) {
            // What has no header is of no use; that it cannot be removed is found by the next start.
            let _ = fs::remove_file(&path);
            return Err(failed(error));
        }
        self.files.push_back(SeriesFile {
            number,
            created: now,
            bytes: HEADER_LEN as u64,
            path,
        });
        self.open = Some(Open::new(file));
        Ok(())
    }

    /// Appends to no file any longer, until the next one is made.
    fn close(&mut self) {
        if let Some(open) = self.open.take()
            && open.is_unsynced
        {
            self.unsynced.push(open.file);
        }
    }

    /// Writes what is to be written. If that fails, it is dropped, and the next file is begun.
    pub(super) fn write(&mut self) -> Result<(), HistoryError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let (Some(open), Some(last)) = (&mut self.open, self.files.back_mut()) else {
            return Ok(());
        };
        match open.file.write_all_at(&buffer, last.bytes) {
            Ok(()) => {
                last.bytes += buffer.len() as u64;
                open.is_unsynced = true;
                // The next batch is about as long.
                self.buffer = buffer;
                self.buffer.clear();
                Ok(())
            }
            Err(source) => {
                // What was written in part is damage that a reader skips, if it cannot be cut off.
                let _ = open.file.set_len(last.bytes);
                let path = last.path.clone();
                self.close();
                if self
                    .files
                    .back()
                    .is_some_and(|last| last.bytes <= HEADER_LEN as u64)
                {
                    self.files.pop_back();
                    let _ = fs::remove_file(&path);
                }
                Err(HistoryError::Write { path, source })
            }
        }
    }

    /// Drops what is to be written, and begins the next file.
    pub(super) fn drop_pending(&mut self) {
        self.buffer.clear();
        self.close();
    }

    /// Deletes the oldest file, unless it is the only one.
    pub(super) fn shorten(&mut self) -> bool {
        if self.files.len() < 2 {
            return false;
        }
        let Some(oldest) = self.files.pop_front() else {
            return false;
        };
        if let Err(error) = fs::remove_file(&oldest.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            super::warn(format_args!(
                "cannot delete {}: {error}; the history takes more than [history] size until it is deleted",
                oldest.path.display()
            ));
        }
        true
    }

    /// Deletes the files in which everything is older than `kept_s` seconds.
    pub(super) fn expire(&mut self, now: i64, kept_s: i64) {
        while self
            .files
            .get(1)
            .is_some_and(|next| next.created.saturating_add(kept_s) <= now)
        {
            self.shorten();
        }
    }

    /// Takes the files that have something that may not be on disk.
    pub(super) fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(open) = &mut self.open
            && std::mem::take(&mut open.is_unsynced)
        {
            files.push(open.file.clone());
        }
        files
    }
}

/// Opens a file to append to it, and cuts off what was not written whole.
fn mend(last: &mut SeriesFile) -> io::Result<Open> {
    let file = OpenOptions::new().write(true).open(&last.path)?;
    let mut open = Open::new(file);
    let good = each_frame(last, |kind, content| {
        if kind == COLUMNS {
            for key in frame::keys(content) {
                let next = open.ids.len() as u32;
                open.ids.entry(key.into()).or_insert(next);
            }
            open.column_bytes += content.len() as u64;
        }
        true
    })?;
    if good < last.bytes {
        open.file.set_len(good)?;
        open.file.sync_data()?;
        tracing::warn!(
            "the last {} bytes of {} were not written whole, as after a crash; they are cut off",
            last.bytes - good,
            last.path.display()
        );
        last.bytes = good;
    }
    Ok(open)
}

/// Gives the kind and content of each frame of a file to `each`, while that returns true and they are whole; returns where the
/// first begins that is not.
pub(super) fn each_frame(
    file: &SeriesFile,
    mut each: impl FnMut(u8, &[u8]) -> bool,
) -> io::Result<u64> {
    let open = File::open(&file.path)?;
    let mut reader = BufReader::with_capacity(64 << 10, open.take(file.bytes));
    io::copy(
        &mut reader.by_ref().take(HEADER_LEN as u64),
        &mut io::sink(),
    )?;
    let mut good = HEADER_LEN as u64;
    let mut content = Vec::new();
    loop {
        let mut head = [0; FRAME_HEAD];
        if !fill(&mut reader, &mut head)? {
            return Ok(good);
        }
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
        let (len, crc) = (word(0) as usize, word(4));
        let left = file.bytes.saturating_sub(good + FRAME_HEAD as u64);
        if len == 0 || len > FRAME_MAX || len as u64 > left {
            return Ok(good);
        }
        content.resize(len, 0);
        if !fill(&mut reader, &mut content)? || crc32fast::hash(&content) != crc {
            return Ok(good);
        }
        let [kind, content @ ..] = &content[..] else {
            return Ok(good);
        };
        good += (FRAME_HEAD + len) as u64;
        if !each(*kind, content) {
            return Ok(good);
        }
    }
}

/// Reads so many bytes; false if there are less.
fn fill(reader: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

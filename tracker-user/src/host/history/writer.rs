//! Writes the history, and keeps within its size.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    HistoryError, Tier, Value,
    bucket::Bucket,
    frame::{self, COLUMNS, ROW},
    series::{Limits, Series, SeriesFile, each_frame},
    tier::Budget,
};
use crate::{
    host::directory::make,
    state::events::{EventFeed, Numbered},
};

/// The name of the series of events.
const EVENTS: &str = "events";
/// A file of events ends after this time, seconds.
const EVENTS_PART_S: i64 = 90 * 24 * 3_600;
/// So many events are copied out of the feed at a time.
const BATCH: usize = 256;
/// So many columns that are gone are known beside those that are there.
const SPARE_COLUMNS: usize = 1_024;

fn next_epoch() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What writes the history.
pub struct Writer {
    directory: PathBuf,
    budget: Budget,
    /// The names of columns by their numbers, and the other way round.
    keys: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    /// Changes when the numbers mean other columns.
    epoch: u64,
    /// By tier.
    tiers: [Series; 3],
    minute: Bucket,
    hour: Bucket,
    events: Series,
    /// The last event that was taken from the feed, and the last that was written: run and number.
    taken: Option<(Arc<str>, u64)>,
    written: Option<(Arc<str>, u64)>,
    /// From so many columns on, those that are gone are given up.
    compact_at: usize,
}

impl Writer {
    /// Opens or makes the files, and makes what was not complete of longer steps again.
    pub(super) fn open(directory: &Path, size: u64, now: i64) -> Result<Self, HistoryError> {
        make(directory).map_err(|source| HistoryError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let tier = |tier: Tier| Series::open(directory, tier.as_str(), tier.step_s() as u32);
        let mut writer = Self {
            directory: directory.to_owned(),
            budget: Budget::new(size),
            keys: Vec::new(),
            numbers: HashMap::new(),
            epoch: next_epoch(),
            tiers: [tier(Tier::Second)?, tier(Tier::Minute)?, tier(Tier::Hour)?],
            minute: Bucket::new(Tier::Minute.step_s()),
            hour: Bucket::new(Tier::Hour.step_s()),
            events: Series::open(directory, EVENTS, 0)?,
            taken: None,
            written: None,
            compact_at: SPARE_COLUMNS,
        };
        let last = writer.events.last().event;
        let last = last.and_then(|json| serde_json::from_slice::<Numbered>(&json).ok());
        writer.written = last.map(|event| (event.run, event.seq));
        writer.taken = writer.written.clone();
        writer.expire(now);
        writer.resume()?;
        Ok(writer)
    }

    /// Goes on with the minute and the hour that were not over.
    fn resume(&mut self) -> Result<(), HistoryError> {
        // Rows of minutes that are made here count into hours too, so hours come first.
        for (of, into) in [(Tier::Minute, Tier::Hour), (Tier::Second, Tier::Minute)] {
            let last = self.tiers[into as usize].last().time;
            let from = last.map_or(i64::MIN, |time| time.saturating_add(into.step_s()));
            for file in self.tiers[of as usize].since(from) {
                let mut columns = Vec::new();
                let mut failed = Ok(());
                let read = each_frame(&file, |kind, mut content| {
                    if kind == COLUMNS {
                        columns.extend(frame::keys(content).map(|key| self.number(key)));
                    }
                    if kind != ROW {
                        return true;
                    }
                    let Some(time) = frame::take_time(&mut content).filter(|time| *time >= from)
                    else {
                        return true;
                    };
                    let row = frame::cells(content)
                        .filter_map(|(id, value)| Some((*columns.get(id)?, value)));
                    let row: Vec<_> = row.collect();
                    failed = match into {
                        Tier::Hour => self.add_to_hour(time, &row),
                        _ => self.add_to_minute(time, &row),
                    };
                    failed.is_ok()
                });
                failed?;
                read.map_err(|source| HistoryError::Read {
                    path: file.path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    pub(super) const fn set_size(&mut self, size: u64) {
        self.budget = Budget::new(size);
    }

    /// A number that changes when [`Self::number`] gives columns other numbers.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of the column of this name.
    pub fn number(&mut self, key: &str) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let (key, number) = (Arc::<str>::from(key), self.keys.len() as u32);
        self.keys.push(key.clone());
        self.numbers.insert(key, number);
        number
    }

    /// How many columns are known.
    #[cfg(test)]
    pub(super) fn columns(&self) -> usize {
        self.keys.len()
    }

    /// Adds a row of one second, which began at `time`. It is written by [`Self::flush`].
    ///
    /// # Errors
    /// When a file that is to be ended cannot be written.
    pub fn second(&mut self, time: i64, row: &[(u32, Value)]) -> Result<(), HistoryError> {
        let added = self.add(Tier::Second, time, row);
        // The longer steps know of a second that could not be written.
        let minute = self.add_to_minute(time, row);
        if self.keys.len() > self.compact_at.max(2 * row.len()) {
            self.compact(row);
        }
        added.and(minute)
    }

    fn add_to_minute(&mut self, time: i64, row: &[(u32, Value)]) -> Result<(), HistoryError> {
        let Some((time, row)) = self.minute.add(time, row) else {
            return Ok(());
        };
        let added = self.add(Tier::Minute, time, &row);
        added.and(self.add_to_hour(time, &row))
    }

    fn add_to_hour(&mut self, time: i64, row: &[(u32, Value)]) -> Result<(), HistoryError> {
        let Some((time, row)) = self.hour.add(time, row) else {
            return Ok(());
        };
        self.add(Tier::Hour, time, &row)
    }

    fn add(&mut self, tier: Tier, time: i64, row: &[(u32, Value)]) -> Result<(), HistoryError> {
        let limits = Limits {
            file: self.budget.file,
            most: self.budget.floor / 4,
            part_s: tier.part_s(),
        };
        self.tiers[tier as usize].row(time, row, &self.keys, limits)
    }

    /// Gives up the columns that are neither in `row` nor in what is known of the minute and the hour.
    fn compact(&mut self, row: &[(u32, Value)]) {
        let mut is_used = vec![false; self.keys.len()];
        let columns = row.iter().map(|(column, _)| *column);
        for column in columns
            .chain(self.minute.columns())
            .chain(self.hour.columns())
        {
            is_used[column as usize] = true;
        }
        let keys = std::mem::take(&mut self.keys);
        self.numbers.clear();
        let renumbered = keys
            .iter()
            .zip(is_used)
            .map(|(key, is_used)| is_used.then(|| self.number(key)));
        let renumbered: Vec<_> = renumbered.collect();
        self.minute.renumber(&renumbered);
        self.hour.renumber(&renumbered);
        self.tiers.iter_mut().for_each(Series::forget);
        self.epoch = next_epoch();
        self.compact_at = 2 * self.keys.len() + SPARE_COLUMNS;
    }

    /// Takes over the events that happened since the last call. They are written by [`Self::flush`].
    ///
    /// # Errors
    /// When a file that is to be ended cannot be written.
    pub fn follow(&mut self, feed: &EventFeed) -> Result<(), HistoryError> {
        let run = feed.run();
        let (first, next) = feed.bounds();
        let mut seq = match &self.taken {
            Some((of, seq)) if *of == run && *seq < next => *seq,
            _ => first - 1,
        };
        let limits = Limits {
            file: self.budget.file,
            most: self.budget.file,
            part_s: EVENTS_PART_S,
        };
        loop {
            let batch = feed.read(seq, BATCH);
            if batch.missed > 0 {
                super::warn(format_args!(
                    "{} events came faster than they could be kept",
                    batch.missed
                ));
                seq += batch.missed;
            }
            if batch.events.is_empty() {
                return Ok(());
            }
            for event in &batch.events {
                // Plain structures with string keys cannot fail to be written.
                let json = serde_json::to_vec(event).unwrap_or_default();
                if let Err(error) = self
                    .events
                    .event(event.event.time.as_second(), &json, limits)
                {
                    // Those that were to be written before are lost with it; all are taken again.
                    self.taken = self.written.clone();
                    return Err(error);
                }
                seq = event.seq;
                self.taken = Some((run.clone(), seq));
            }
        }
    }

    /// Writes what was added, and deletes what does not fit any longer.
    ///
    /// # Errors
    /// When the disk does not take it; rows are dropped then, events are kept for the next time.
    pub fn flush(&mut self) -> Result<(), HistoryError> {
        while self.events.bytes() > self.budget.events && self.events.shorten() {}
        let events = self.events.write();
        match &events {
            Ok(()) => self.written = self.taken.clone(),
            Err(_) => self.taken = self.written.clone(),
        }
        let mut rows = Ok(());
        while self.tier_bytes() > self.budget.tiers {
            if !self.shorten() {
                let need = self.tiers.iter().map(Series::pending).sum();
                self.tiers.iter_mut().for_each(Series::drop_pending);
                rows = Err(HistoryError::TooSmall { need });
                break;
            }
        }
        for tier in &mut self.tiers {
            rows = rows.and(tier.write());
        }
        events.and(rows)
    }

    fn tier_bytes(&self) -> u64 {
        self.tiers.iter().map(Series::bytes).sum()
    }

    /// Deletes the oldest file of the finest tier that is above its least, else of the finest that has two.
    fn shorten(&mut self) -> bool {
        let floor = self.budget.floor;
        let above = self.tiers.iter_mut().find(|tier| tier.bytes() > floor);
        above.is_some_and(Series::shorten) || self.tiers.iter_mut().any(Series::shorten)
    }

    /// Deletes what is too old.
    pub fn expire(&mut self, now: i64) {
        for (tier, series) in Tier::ALL.into_iter().zip(&mut self.tiers) {
            series.expire(now, tier.kept_s());
        }
    }

    /// Takes the files, and the directory, that have something that may not be on disk.
    pub fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        let mut files = self.events.take_unsynced();
        files.extend(self.tiers.iter_mut().flat_map(Series::take_unsynced));
        // New files are on disk once their directory is.
        files.extend(File::open(&self.directory).ok().map(Arc::new));
        files
    }

    /// The files of a tier, and those of events, that may have something since a time.
    pub(super) fn files(&self, tier: Tier, since: i64) -> (Vec<SeriesFile>, Vec<SeriesFile>) {
        (
            self.tiers[tier as usize].since(since),
            self.events.since(since),
        )
    }
}

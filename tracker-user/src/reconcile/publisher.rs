//! Reports events: into the journal first, then into the log and to readers.

use crate::{
    datapath::journal::{Journal, JournalError},
    error::full,
    state::{
        events::{Bursts, Event, EventFeed},
        journal::{Record, SavedHeld, SavedService, Snapshot},
        verdict_log::{Line, VerdictLog},
    },
};

/// Where the journal is kept.
pub trait Store {
    /// Adds a line; false if there is no room for it, or no journal.
    fn append(&mut self, line: &[u8]) -> bool;
    /// Begins a new journal with these lines.
    ///
    /// # Errors
    /// What the kernel answered.
    fn begin(&mut self, lines: &[u8]) -> Result<(), JournalError>;
    /// Takes a journal away that would tell the next daemon what is no longer so.
    fn give_up(&mut self);
}

impl Store for Journal {
    fn append(&mut self, line: &[u8]) -> bool {
        Self::append(self, line)
    }

    fn begin(&mut self, lines: &[u8]) -> Result<(), JournalError> {
        Self::begin(self, lines)
    }

    fn give_up(&mut self) {
        Self::give_up(self);
    }
}

/// The journal, the log of verdicts, and the feed that readers follow.
pub struct Publisher<S> {
    journal: S,
    /// The journal can't be written.
    journal_failed: bool,
    verdict_log: VerdictLog,
    bursts: Bursts,
    feed: EventFeed,
}

impl<S: Store> Publisher<S> {
    /// A publisher of a feed, which goes on from what the journal has.
    pub fn new(journal: S, feed: EventFeed) -> Self {
        Self {
            journal,
            journal_failed: false,
            verdict_log: VerdictLog::default(),
            bursts: Bursts::default(),
            feed,
        }
    }

    /// Reports events: they are in the journal before any reader sees them. `snapshot` is called if the journal has to begin
    /// anew.
    pub fn publish(
        &mut self,
        mut events: Vec<Event>,
        now_mono_ns: u64,
        snapshot: impl FnOnce() -> Snapshot,
    ) -> LogLines {
        if events.is_empty() {
            return LogLines::default();
        }
        self.group(&mut events, now_mono_ns);
        self.write(&Record::of(&events, now_mono_ns), snapshot);
        self.show(events, now_mono_ns)
    }

    /// Reports the end of a service.
    pub fn publish_removal(
        &mut self,
        service: &str,
        mut events: Vec<Event>,
        now_mono_ns: u64,
        snapshot: impl FnOnce() -> Snapshot,
    ) -> LogLines {
        self.group(&mut events, now_mono_ns);
        let record = Record::Removed {
            service: service.to_owned(),
            events: events.clone(),
        };
        self.write(&record, snapshot);
        self.show(events, now_mono_ns)
    }

    /// Writes down a service that was added.
    pub fn add(&mut self, service: SavedService, snapshot: impl FnOnce() -> Snapshot) {
        self.write(&Record::Added(service), snapshot);
    }

    /// Writes down what is held back of a tracker from here on; the tracker by positions of its member and itself.
    pub fn hold(
        &mut self,
        service: &str,
        tracker: (u32, u32),
        held: Option<SavedHeld>,
        snapshot: impl FnOnce() -> Snapshot,
    ) {
        let record = Record::Held {
            service: service.to_owned(),
            tracker,
            held,
        };
        self.write(&record, snapshot);
    }

    /// Writes down which priority numbers of a service are kept in use from here on.
    pub fn keep(&mut self, service: &str, kept: Vec<u16>, snapshot: impl FnOnce() -> Snapshot) {
        let record = Record::Kept {
            service: service.to_owned(),
            kept,
        };
        self.write(&record, snapshot);
    }

    /// Writes everything down anew, and reports events, which the snapshot has the effects of.
    pub fn begin(
        &mut self,
        mut events: Vec<Event>,
        now_mono_ns: u64,
        snapshot: Snapshot,
    ) -> LogLines {
        self.group(&mut events, now_mono_ns);
        self.begin_with(&Record::of(&events, now_mono_ns), snapshot);
        self.show(events, now_mono_ns)
    }

    fn group(&mut self, events: &mut [Event], now_mono_ns: u64) {
        let (_, next) = self.feed.bounds();
        self.bursts.group(events, next, now_mono_ns);
    }

    /// Logs how many changes were left out of the log, once that is due.
    pub fn end_log_window(&mut self, now_mono_ns: u64) {
        if let Some(line) = self.verdict_log.end_window(now_mono_ns) {
            line.write();
        }
    }

    fn write(&mut self, record: &Record, snapshot: impl FnOnce() -> Snapshot) {
        if !self.journal_failed && !self.journal.append(&record.line()) {
            self.begin_with(record, snapshot());
        }
    }

    fn begin_with(&mut self, record: &Record, snapshot: Snapshot) {
        let mut text = Record::Snapshot(snapshot).line();
        // The snapshot has its effects already.
        text.extend(record.clone().after_snapshot().line());
        let begun = self.journal.begin(&text);
        if let Err(error) = &begun {
            self.journal.give_up();
            if !self.journal_failed {
                tracing::warn!(
                    "cannot write the journal: {}; the next daemon will not go on from this one",
                    full(error)
                );
            }
        }
        self.journal_failed = begun.is_err();
    }

    /// Shows events to readers, and returns their lines for the log.
    fn show(&mut self, events: Vec<Event>, now_mono_ns: u64) -> LogLines {
        let lines = LogLines(self.verdict_log.lines(now_mono_ns, &events));
        self.feed.publish(events);
        lines
    }
}

/// Lines for the log. They are written once nothing is locked: writing may block.
#[must_use]
#[derive(Default)]
pub struct LogLines(Vec<Line>);

impl LogLines {
    /// Writes the lines.
    pub fn write(self) {
        for line in self.0 {
            line.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ModeChoice,
        state::events::{EventLog, tests::example},
    };

    /// A journal in memory that holds so many bytes, and notes how many events readers had seen at each write.
    struct Memory {
        text: Vec<u8>,
        room: usize,
        works: bool,
        feed: EventFeed,
        seen: Vec<u64>,
    }

    impl Store for Memory {
        fn append(&mut self, line: &[u8]) -> bool {
            self.seen.push(self.feed.bounds().1);
            let fits = self.works && self.text.len() + line.len() <= self.room;
            if fits {
                self.text.extend(line);
            }
            fits
        }

        fn begin(&mut self, lines: &[u8]) -> Result<(), JournalError> {
            self.seen.push(self.feed.bounds().1);
            if !self.works {
                return Err(JournalError::TooLarge);
            }
            self.text = lines.to_vec();
            Ok(())
        }

        fn give_up(&mut self) {
            self.text.clear();
        }
    }

    fn publisher(room: usize) -> Publisher<Memory> {
        let feed = EventFeed::new(EventLog::new(8, 1));
        let memory = Memory {
            text: Vec::new(),
            room,
            works: true,
            feed: feed.clone(),
            seen: Vec::new(),
        };
        Publisher::new(memory, feed)
    }

    fn snapshot(next: u64) -> Snapshot {
        Snapshot {
            namespace: (1, 2),
            mode: ModeChoice::Auto,
            services: Vec::new(),
            chains: Vec::new(),
            events: Vec::new(),
            next,
            run: "run".to_owned(),
        }
    }

    #[test]
    fn an_event_is_in_the_journal_before_a_reader_sees_it() {
        let mut publisher = publisher(1 << 20);
        let _ = publisher.begin(Vec::new(), 0, snapshot(1));
        let _ = publisher.publish(vec![example()], 1, || unreachable!());
        let _ = publisher.publish(vec![example(), example()], 2, || unreachable!());
        let _ = publisher.publish(Vec::new(), 3, || unreachable!());
        assert_eq!(publisher.journal.seen, [1, 1, 2]);
        assert_eq!(publisher.feed.bounds().1, 4);
        assert_eq!(Snapshot::read(&publisher.journal.text).unwrap().next, 4);
    }

    #[test]
    fn a_journal_that_is_full_begins_anew() {
        let mut publisher = publisher(0);
        let _ = publisher.publish(vec![example()], 1, || snapshot(7));
        assert_eq!(Snapshot::read(&publisher.journal.text).unwrap().next, 8);
        let _ = publisher.publish(vec![example()], 1, || snapshot(8));
        assert_eq!(Snapshot::read(&publisher.journal.text).unwrap().next, 9);
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_no_journal() {
        let mut publisher = publisher(0);
        publisher.journal.works = false;
        let _ = publisher.publish(vec![example()], 1, || snapshot(1));
        assert!(publisher.journal_failed && publisher.journal.text.is_empty());
        // Readers see what there is to see, and no more is written before all is.
        publisher.journal.works = true;
        let _ = publisher.publish(vec![example()], 2, || unreachable!());
        assert_eq!(publisher.feed.bounds().1, 3);
        let _ = publisher.begin(Vec::new(), 3, snapshot(3));
        assert!(!publisher.journal_failed);
    }
}

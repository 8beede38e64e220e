//! What the live view knows and how it changes: by answers, events and keys (pure; the time comes with the messages).

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tracker_ebpf::verdict::Verdict;

use super::series::{Series, ServiceSeries};
use crate::api::types::{MemberStatus, ServiceStatus, Status};
use crate::cli::text::{self, Rank};
use crate::state::events::{Missed, Numbered};

/// So many events are kept, the newest.
const EVENTS: usize = 1_000;
/// The fewest lines in which the view is more than its list.
const LINES_WITH_EVENTS: u16 = 14;

/// What happens to the view.
#[derive(Debug)]
pub enum Message {
    /// An answer about all services of the view; with their trackers if these were asked for.
    Picture(Box<Status>),
    /// An answer about some services, with their trackers.
    Closer(Box<Status>),
    /// No answer came; why.
    NoAnswer(String),
    /// An event.
    Event(Box<Numbered>),
    /// Events that are lost.
    Missed(Missed),
    /// Event numbers began anew.
    Reset,
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has so many columns and lines.
    Size(u16, u16),
    /// The time.
    Time(Timestamp),
    /// The view ends; why, if that is a failure.
    End(Option<String>),
}

/// What to ask the daemon for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Services and chains by name or pattern; all if empty.
    pub names: Vec<String>,
    /// Whether every service's trackers are wanted.
    pub all_trackers: bool,
    /// The services whose trackers are wanted otherwise.
    pub closer: Vec<String>,
}

/// By what services are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// What is not up first; in the order of the configuration otherwise.
    #[default]
    Verdict,
    /// By name.
    Name,
    /// What loses most first.
    Loss,
    /// What takes longest first.
    Rtt,
}

impl Sort {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Name => "name",
            Self::Loss => "loss",
            Self::Rtt => "rtt",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Verdict => Self::Name,
            Self::Name => Self::Loss,
            Self::Loss => Self::Rtt,
            Self::Rtt => Self::Verdict,
        }
    }
}

/// A line of the list, by positions in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// A chain.
    Chain(usize),
    /// A service.
    Service(usize),
    /// A member of a service that has several.
    Member(usize, usize),
}

/// What a line is about, whatever its position.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Chain(String),
    Service(String),
    Member(String, usize),
}

/// A service that is looked at closely.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Name of the service.
    pub name: String,
    /// The last answer about it with trackers.
    pub status: Option<ServiceStatus>,
    /// Position of the chosen tracker among all of the service.
    pub selected: usize,
    /// First tracker that is shown.
    pub top: usize,
}

/// A line of the events.
#[derive(Clone, Debug)]
pub enum Entry {
    /// An event.
    Event(Box<Numbered>),
    /// Something about the stream itself.
    Note(String),
}

/// Everything that the view knows.
#[derive(Debug)]
pub struct Model {
    /// What the command line names.
    names: Vec<String>,
    /// The last answer about all services of the view.
    pub status: Option<Status>,
    /// When it came.
    pub answered: Timestamp,
    /// Why there was no answer since; `None` while there are answers.
    pub silent: Option<String>,
    /// The time.
    pub now: Timestamp,
    /// Events, the newest last.
    pub events: VecDeque<Entry>,
    /// By what services are sorted.
    pub sort: Sort,
    /// Whether only what is not up is listed.
    pub is_only_down: bool,
    /// Only what contains this text is listed, in lower case.
    pub filter: String,
    /// Whether keys go into the filter.
    pub is_typing: bool,
    /// Whether the help is shown.
    pub is_help: bool,
    /// The chain that the view is narrowed to.
    pub chain: Option<String>,
    /// The service that is opened.
    pub opened: Option<Opened>,
    /// Lines of the list, sorted and filtered.
    pub rows: Vec<Row>,
    /// Position of the chosen line.
    pub selected: usize,
    /// First line that is shown.
    pub top: usize,
    series: HashMap<String, ServiceSeries>,
    size: (u16, u16),
}

impl Model {
    /// A view of these names, or of everything.
    pub fn new(names: Vec<String>, now: Timestamp) -> Self {
        Self {
            names,
            status: None,
            answered: now,
            silent: None,
            now,
            events: VecDeque::new(),
            sort: Sort::default(),
            is_only_down: false,
            filter: String::new(),
            is_typing: false,
            is_help: false,
            chain: None,
            opened: None,
            rows: Vec::new(),
            selected: 0,
            top: 0,
            series: HashMap::new(),
            size: (80, 24),
        }
    }

    /// Takes a message in; returns true if the view ends, which [`Message::End`] says too.
    pub fn update(&mut self, message: Message) -> bool {
        match message {
            Message::Picture(status) => self.picture(*status),
            Message::Closer(status) => self.closer(&status),
            Message::NoAnswer(why) => self.silent = Some(why),
            Message::Event(event) => self.note(Entry::Event(event)),
            Message::Missed(missed) => {
                self.note(Entry::Note(format!(
                    "{} events are no longer kept",
                    missed.missed
                )));
            }
            Message::Reset => {
                self.events.clear();
                self.note(Entry::Note("event numbers began anew".to_owned()));
            }
            Message::Key(key) => return self.key(key),
            Message::Size(columns, lines) => self.size = (columns, lines),
            Message::Time(now) => self.now = now,
            Message::End(_) => return true,
        }
        self.scroll();
        false
    }

    fn note(&mut self, entry: Entry) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(entry);
    }

    fn picture(&mut self, status: Status) {
        (self.silent, self.answered) = (None, self.now);
        let subject = self.subject();
        if status.services.iter().any(|service| {
            service
                .members
                .iter()
                .any(|member| !member.trackers.is_empty())
        }) {
            self.closer(&status);
        }
        let names: HashSet<&str> = status
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        self.series.retain(|name, _| names.contains(name.as_str()));
        if self.chain.is_none()
            && self
                .opened
                .as_ref()
                .is_some_and(|opened| !names.contains(opened.name.as_str()))
        {
            self.opened = None;
        }
        drop(names);
        self.status = Some(status);
        self.order(subject);
    }

    fn closer(&mut self, status: &Status) {
        for service in &status.services {
            self.series
                .entry(service.name.clone())
                .or_default()
                .add(service);
            if let Some(opened) = &mut self.opened
                && opened.name == service.name
            {
                opened.status = Some(service.clone());
            }
        }
    }

    /// Sorts and filters the list; the chosen line stays chosen, unless it is the first.
    fn order(&mut self, subject: Option<Subject>) {
        self.rows = self.ordered();
        self.selected = match subject {
            Some(subject) if self.selected > 0 => {
                let position = self.rows.iter().position(|row| self.is(*row, &subject));
                position.unwrap_or(self.selected)
            }
            _ => 0,
        };
    }

    fn ordered(&self) -> Vec<Row> {
        let Some(status) = &self.status else {
            return Vec::new();
        };
        let matches = |text: &str| text.to_lowercase().contains(&self.filter);
        let is_shown = |rank| !self.is_only_down || rank != Rank::Up;
        let mut chains: Vec<_> = status.chains.iter().enumerate().collect();
        chains.retain(|(_, chain)| matches(&chain.name) && is_shown(Rank::from(chain.verdict)));
        let mut services: Vec<_> = status.services.iter().enumerate().collect();
        services.retain(|(_, service)| {
            let has = |member: &MemberStatus| {
                matches(&member.endpoint.to_string())
                    || member.interface.as_deref().is_some_and(matches)
            };
            is_shown(text::rank(service))
                && (self.filter.is_empty()
                    || matches(&service.name)
                    || matches(service.cause.as_str())
                    || service.members.iter().any(has))
        });
        match self.sort {
            Sort::Verdict => {
                chains.sort_by_key(|(_, chain)| Rank::from(chain.verdict));
                services.sort_by_key(|(_, service)| text::rank(service));
            }
            Sort::Name => {
                chains.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
                services.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
            }
            Sort::Loss => {
                let loss = |service| {
                    self.of_service(service)
                        .and_then(Series::loss)
                        .unwrap_or(-1.0)
                };
                services.sort_by_cached_key(|(_, service)| {
                    std::cmp::Reverse((loss(service) * 1e6) as i64)
                });
            }
            Sort::Rtt => {
                services.sort_by_cached_key(|(_, service)| {
                    std::cmp::Reverse(self.of_service(service).and_then(Series::rtt_us))
                });
            }
        }
        let rank = |position: &usize| Rank::from(status.chains[*position].verdict);
        let chains = chains.into_iter().map(|(position, _)| position);
        // What is up gives way to services that are not.
        let (before, after): (Vec<_>, Vec<_>) =
            chains.partition(|chain| self.sort != Sort::Verdict || rank(chain) != Rank::Up);
        let mut after = after.into_iter().map(Row::Chain).peekable();
        let mut rows: Vec<_> = before.into_iter().map(Row::Chain).collect();
        for (position, service) in services {
            if after.peek().is_some() && text::rank(service) == Rank::Up {
                rows.extend(after.by_ref());
            }
            rows.push(Row::Service(position));
            if service.members.len() > 1 {
                rows.extend((0..service.members.len()).map(|member| Row::Member(position, member)));
            }
        }
        rows.extend(after);
        rows
    }

    /// The figures of a service: those of the first member in use.
    pub fn of_service(&self, service: &ServiceStatus) -> Option<&Series> {
        let first = service.selected.names().first();
        let used = service
            .members
            .iter()
            .position(|member| Some(member.name()) == first.map(|name| &**name));
        self.of_member(service, used.unwrap_or(0))
    }

    /// The figures of a member.
    pub fn of_member(&self, service: &ServiceStatus, member: usize) -> Option<&Series> {
        self.series.get(&service.name)?.member(member)
    }

    /// The figures of a tracker.
    pub fn of_tracker(&self, service: &str, member: usize, tracker: usize) -> Option<&Series> {
        self.series.get(service)?.tracker(member, tracker)
    }

    fn service(&self, position: usize) -> Option<&ServiceStatus> {
        self.status.as_ref()?.services.get(position)
    }

    fn subject(&self) -> Option<Subject> {
        let name = |position: usize| Some(self.service(position)?.name.clone());
        Some(match *self.rows.get(self.selected)? {
            Row::Chain(position) => {
                Subject::Chain(self.status.as_ref()?.chains.get(position)?.name.clone())
            }
            Row::Service(position) => Subject::Service(name(position)?),
            Row::Member(position, member) => Subject::Member(name(position)?, member),
        })
    }

    fn is(&self, row: Row, subject: &Subject) -> bool {
        let is_named = |position: usize, wanted: &str| {
            self.service(position)
                .is_some_and(|service| service.name == *wanted)
        };
        match (row, subject) {
            (Row::Chain(position), Subject::Chain(wanted)) => {
                let chains = self.status.as_ref().map(|status| &status.chains);
                chains
                    .and_then(|chains| chains.get(position))
                    .is_some_and(|chain| chain.name == *wanted)
            }
            (Row::Service(position), Subject::Service(wanted)) => is_named(position, wanted),
            (Row::Member(position, member), Subject::Member(wanted, number)) => {
                member == *number && is_named(position, wanted)
            }
            _ => false,
        }
    }

    /// Takes a key; returns true if the view ends.
    fn key(&mut self, key: KeyEvent) -> bool {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => return true,
            _ if self.is_help => {
                self.is_help = false;
                return key.code == KeyCode::Char('q');
            }
            _ if self.is_typing => self.type_key(key.code),
            KeyCode::Char('q') => return true,
            KeyCode::Char('?') => self.is_help = true,
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-self.page()),
            KeyCode::PageDown | KeyCode::Char(' ') => self.go(self.page()),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Enter | KeyCode::Right => self.open(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.back(),
            // The other keys are those of the list.
            _ if self.opened.is_some() => {}
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('d') => {
                self.is_only_down = !self.is_only_down;
                self.reorder();
            }
            KeyCode::Char('s') => self.sort_by(self.sort.next()),
            KeyCode::Char('v') => self.sort_by(Sort::Verdict),
            KeyCode::Char('n') => self.sort_by(Sort::Name),
            KeyCode::Char('l') => self.sort_by(Sort::Loss),
            KeyCode::Char('r') => self.sort_by(Sort::Rtt),
            _ => {}
        }
        self.scroll();
        false
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(char) => self.filter.extend(char.to_lowercase()),
            _ => {}
        }
        self.reorder();
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.reorder();
    }

    fn reorder(&mut self) {
        let subject = self.subject();
        self.order(subject);
    }

    fn go(&mut self, by: isize) {
        match &mut self.opened {
            Some(opened) => {
                let trackers = opened.status.as_ref().map_or(0, count_trackers);
                opened.selected = opened
                    .selected
                    .saturating_add_signed(by)
                    .min(trackers.saturating_sub(1));
            }
            None => {
                let last = self.rows.len().saturating_sub(1);
                self.selected = self.selected.saturating_add_signed(by).min(last);
            }
        }
    }

    fn page(&self) -> isize {
        isize::try_from(self.lines()).unwrap_or(1).max(1)
    }

    fn open(&mut self) {
        if self.opened.is_some() {
            return;
        }
        match self.subject() {
            Some(Subject::Chain(name)) => {
                self.chain = Some(name);
                (self.selected, self.top) = (0, 0);
            }
            Some(Subject::Service(name) | Subject::Member(name, _)) => {
                self.opened = Some(Opened {
                    name,
                    status: None,
                    selected: 0,
                    top: 0,
                });
            }
            None => {}
        }
    }

    /// Leaves what was entered last.
    fn back(&mut self) {
        if self.opened.take().is_some() {
            return;
        }
        if !self.filter.is_empty() {
            self.filter.clear();
            self.reorder();
            return;
        }
        self.chain = None;
    }

    /// Brings the chosen line onto the screen.
    fn scroll(&mut self) {
        let lines = self.lines();
        let into = |selected: usize, top: usize| match selected {
            _ if selected < top => selected,
            _ if selected >= top + lines => selected + 1 - lines,
            _ => top,
        };
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
        self.top = into(
            self.selected,
            self.top.min(self.rows.len().saturating_sub(lines)),
        );
        if let Some(opened) = &mut self.opened {
            let trackers = opened.status.as_ref().map_or(0, count_trackers);
            opened.selected = opened.selected.min(trackers.saturating_sub(1));
            opened.top = into(
                opened.selected,
                opened.top.min(trackers.saturating_sub(lines)),
            );
        }
    }

    /// The lines for the list, or for the trackers of the opened service; at least one.
    pub fn lines(&self) -> usize {
        let around = if self.opened.is_some() { 9 } else { 4 };
        let lines = self.size.1.saturating_sub(around + self.event_lines());
        usize::from(lines.max(1))
    }

    /// The lines for events, with their head; none on a small terminal.
    pub fn event_lines(&self) -> u16 {
        match self.size.1 {
            ..LINES_WITH_EVENTS => 0,
            LINES_WITH_EVENTS..20 => 4,
            20..36 => 6,
            36.. => 11,
        }
    }

    /// What to ask the daemon for.
    pub fn wanted(&self) -> Wanted {
        let names = match &self.chain {
            Some(chain) => vec![chain.clone()],
            None => self.names.clone(),
        };
        let closer = match &self.opened {
            Some(opened) => vec![opened.name.clone()],
            None => {
                let shown = self.rows.iter().skip(self.top).take(self.lines());
                let positions = shown.filter_map(|row| match *row {
                    Row::Chain(_) => None,
                    Row::Service(position) | Row::Member(position, _) => Some(position),
                });
                let mut positions: Vec<_> = positions.collect();
                positions.dedup();
                let services = positions
                    .iter()
                    .filter_map(|position| self.service(*position));
                services.map(|service| service.name.clone()).collect()
            }
        };
        Wanted {
            names,
            // The order by a figure needs that of every service.
            all_trackers: matches!(self.sort, Sort::Loss | Sort::Rtt) && self.opened.is_none(),
            closer,
        }
    }
}

/// The time to wait before all services are asked for again: a second, or nine times as long as the last answer took, so that
/// the view never takes more than a tenth of the daemon's time.
pub fn pause(took: Duration) -> Duration {
    (took * 9).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

fn count_trackers(service: &ServiceStatus) -> usize {
    service
        .members
        .iter()
        .map(|member| member.trackers.len())
        .sum()
}

/// Whether an event is about a service.
pub fn is_about(event: &Numbered, service: &str) -> bool {
    event.event.service.as_deref() == Some(service)
}

/// The verdict that counts of what an event tells.
pub fn verdict_of(event: &Numbered) -> Verdict {
    event.event.effective.unwrap_or(event.event.to)
}

//! How the live view looks: the model as characters and styles (pure).

use std::collections::HashMap;

use jiff::Timestamp;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use tracker_ebpf::abi::Proof;
use tracker_ebpf::verdict::Verdict;

use super::model::{Entry, Model, Opened, Row, is_about, verdict_of};
use super::series::{KEPT, Series};
use crate::api::types::{MemberStatus, ServiceStatus, Status, TrackerStatus};
use crate::cli::table;
use crate::cli::text::{self, age, cut_end, cut_middle, duration, printable};
use crate::state::events::Numbered;

/// Every cause fits in this; details are cut.
const CAUSE_WIDTH: usize = 19;
/// What ages, losses and round-trip times need.
const AGE_WIDTH: usize = 6;
const LOSS_WIDTH: usize = 5;
const RTT_WIDTH: usize = 7;
/// From this width on, names and endpoints have room.
const WIDE: usize = 100;
/// Fewer bars tell nothing.
const LEAST_BARS: usize = 6;
/// What a line of a detail begins with.
const INDENT: usize = 2;

const LIST_KEYS: &str = " ? help  q quit  Enter open  / filter  d not up  s sort";
const OPENED_KEYS: &str = " ? help  q quit  Esc back  Up Down choose a tracker";
const HELP: [&str; 20] = [
    "Up Down k j       choose a line",
    "PgUp PgDn Space   by a page",
    "Home End g G      first and last line",
    "Enter Right       open: the trackers of a service, the services of a chain",
    "Esc Left          back; drops the filter",
    "d                 only what is not up, or all",
    "/                 only what contains a text: name, cause, endpoint, interface;",
    "                  Enter keeps it, Esc drops it",
    "s, or v n l r     sort: verdict (what is not up first), name, loss, rtt",
    "q Ctrl-C          quit",
    "",
    "LOSS and RTT are of the last minute, from the differences of the counters;",
    "RTT is the last round trip, the bars are from 0 to the longest, and × is",
    "an interval in which every probe was lost. A service's are those of its",
    "selected member, a member's those of its trackers together.",
    "",
    "(maintenance), (forced up), (forced down): what an operator imposes. It",
    "counts for what is first, for chains and for the numbers in the first line.",
    "(+11) beside an event: so many others are of the same fault.",
    "Any key closes this.",
];

/// The styles of the view.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    is_coloured: bool,
}

impl Theme {
    /// With or without colours.
    pub const fn new(is_coloured: bool) -> Self {
        Self { is_coloured }
    }

    fn verdict(self, verdict: Verdict) -> Style {
        let style = Style::new();
        match (verdict, self.is_coloured) {
            (Verdict::Up, false) => style,
            (_, false) => style.add_modifier(Modifier::BOLD),
            (Verdict::Up, true) => style.fg(Color::Green),
            (Verdict::Down, true) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Verdict::Unknown, true) => style.fg(Color::Yellow),
        }
    }

    fn alarm(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        match self.is_coloured {
            true => style.fg(Color::Yellow),
            false => style,
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const PLAIN: Style = Style::new();

/// Draws the view.
pub fn draw(model: &Model, theme: Theme, area: Rect, into: &mut Buffer) {
    let mut lines = Lines {
        area,
        next: area.y,
        into,
    };
    let Some(status) = &model.status else {
        lines.put(" waiting for the daemon", PLAIN);
        return;
    };
    let summary = text::summary(status);
    let title = format!(" {}/{}  {summary}", status.hub, status.instance);
    lines.put(&cut_end(&title, area.width.into()), BOLD);
    lines.next += 1;
    match &model.opened {
        Some(opened) => draw_opened(model, opened, theme, &mut lines),
        None => draw_list(model, status, theme, &mut lines),
    }
    if model.silent.is_some() {
        // The last picture stays, and is seen to be old.
        let dim = Style::new()
            .add_modifier(Modifier::DIM)
            .remove_modifier(Modifier::BOLD);
        into.set_style(area, dim);
    }
    let mut lines = Lines {
        area,
        next: area.y + 1,
        into,
    };
    draw_state(model, status, theme, &mut lines);
    lines.next = area.bottom().saturating_sub(1);
    let keys = if model.opened.is_some() {
        OPENED_KEYS
    } else {
        LIST_KEYS
    };
    lines.put(keys, Style::new().add_modifier(Modifier::REVERSED));
    if model.is_help {
        draw_help(area, lines.into);
    }
}

/// Lines from the top of an area downwards; what does not fit is not drawn.
struct Lines<'b> {
    area: Rect,
    next: u16,
    into: &'b mut Buffer,
}

impl Lines<'_> {
    fn put(&mut self, text: &str, style: Style) {
        self.parts([(0, text, style)]);
        if style.add_modifier.contains(Modifier::REVERSED) && self.next <= self.area.bottom() {
            let line = Rect {
                y: self.next - 1,
                height: 1,
                ..self.area
            };
            self.into.set_style(line.intersection(self.area), style);
        }
    }

    /// A line of parts, each with its first column.
    fn parts<'t>(&mut self, parts: impl IntoIterator<Item = (usize, &'t str, Style)>) {
        if self.next < self.area.bottom() {
            for (column, text, style) in parts {
                let left = usize::from(self.area.width).saturating_sub(column);
                let x = self.area.x
                    + u16::try_from(column)
                        .unwrap_or(u16::MAX)
                        .min(self.area.width);
                self.into.set_stringn(x, self.next, text, left, style);
            }
        }
        self.next += 1;
    }

    fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// The lines that are left above the last `below`.
    fn left(&self, below: u16) -> usize {
        usize::from(
            self.area
                .bottom()
                .saturating_sub(self.next)
                .saturating_sub(below),
        )
    }
}

/// The second line: whether the daemon answers, and what is listed.
fn draw_state(model: &Model, status: &Status, theme: Theme, lines: &mut Lines<'_>) {
    if let Some(why) = &model.silent {
        let since = clock(model.answered);
        lines.put(
            &format!(" no answer since {since}: {}", printable(why)),
            theme.alarm(),
        );
        return;
    }
    if status.is_stalled() {
        let text = format!(
            " the daemon has not kept up for {} s: no verdict is known",
            status.as_of_ms / 1_000
        );
        lines.put(&text, theme.alarm());
        return;
    }
    if model.opened.is_some() {
        return;
    }
    let mut text = format!(" sorted by {}", model.sort.as_str());
    if let Some(chain) = &model.chain {
        text = format!(" chain {chain};{text}");
    }
    if model.is_only_down {
        text.push_str("; only what is not up");
    }
    match (model.is_typing, model.filter.is_empty()) {
        (true, _) => text.push_str(&format!("; filter: {}_", model.filter)),
        (false, false) => text.push_str(&format!("; filter: {}", model.filter)),
        (false, true) => {}
    }
    lines.put(&text, PLAIN);
}

fn clock(time: Timestamp) -> String {
    format!("{}Z", time.strftime("%H:%M:%S"))
}

/// The columns of the list, from the left; what has no width is not shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Columns {
    name: usize,
    verdict: usize,
    cause: usize,
    age: usize,
    loss: usize,
    rtt: usize,
    bars: usize,
}

impl Columns {
    /// The columns for `width`, for cells of these widths: verdict and cause always have room, then come age, loss,
    /// round-trip time and bars.
    fn new(width: usize, names: usize, verdicts: usize, causes: usize, has_age: bool) -> Self {
        let mut columns = Self {
            name: names,
            verdict: verdicts,
            cause: causes.min(CAUSE_WIDTH),
            ..Self::default()
        };
        let mut left = width.saturating_sub(columns.name + columns.verdict + columns.cause + 3);
        let age = if has_age { AGE_WIDTH } else { 0 };
        let numbers = [
            (&mut columns.age, age),
            (&mut columns.loss, LOSS_WIDTH),
            (&mut columns.rtt, RTT_WIDTH),
        ];
        for (column, needed) in numbers {
            if needed > 0 && left > needed {
                *column = needed;
                left -= needed + 1;
            }
        }
        if left > LEAST_BARS {
            columns.bars = LEAST_BARS;
            left -= LEAST_BARS + 1;
        }
        let more = left.min(causes - columns.cause);
        columns.cause += more;
        left -= more;
        if columns.bars > 0 {
            columns.bars += left.min(KEPT - LEAST_BARS);
        }
        columns
    }

    /// Puts a line; `cells` are in the order of the columns.
    fn put(&self, lines: &mut Lines<'_>, cells: [&str; 7], styles: (Style, Style)) {
        let [name, verdict, cause, age, loss, rtt, bars] = cells;
        let right = |text: &str, width: usize| format!("{:>width$}", cut_end(text, width));
        let texts = [
            (
                cut_middle(name, self.name).into_owned(),
                self.name,
                styles.0,
            ),
            (verdict.to_owned(), self.verdict, styles.1),
            (
                cut_end(cause, self.cause).into_owned(),
                self.cause,
                styles.0,
            ),
            (right(age, self.age), self.age, styles.0),
            (right(loss, self.loss), self.loss, styles.0),
            (right(rtt, self.rtt), self.rtt, styles.0),
            (cut_end(bars, self.bars).into_owned(), self.bars, styles.0),
        ];
        let mut column = 1;
        let mut parts = Vec::new();
        for (text, width, style) in &texts {
            if *width > 0 {
                parts.push((column, text.as_str(), *style));
                column += width + 1;
            }
        }
        lines.parts(parts);
    }
}

/// The columns that names may take in the list.
fn name_width(width: usize) -> usize {
    match width {
        ..WIDE => (width / 5).max(12),
        _ => (width / 4).min(48),
    }
}

/// Marks a line as the chosen one.
fn choose(lines: &mut Lines<'_>) {
    let line = Rect {
        y: lines.next - 1,
        height: 1,
        ..lines.area
    };
    let line = line.intersection(lines.area);
    lines
        .into
        .set_style(line, Style::new().add_modifier(Modifier::REVERSED));
}

/// A line of the list.
struct Listed {
    name: String,
    verdict: String,
    counts: Verdict,
    cause: String,
    age: String,
    figures: Figures,
}

/// Loss and round-trip time as text.
#[derive(Default)]
struct Figures {
    loss: String,
    rtt: String,
    bars: String,
}

impl Figures {
    fn new(series: Option<&Series>, width: usize) -> Self {
        let Some(series) = series else {
            return Self::default();
        };
        Self {
            loss: series.loss().map_or_else(|| "-".to_owned(), percent),
            rtt: series.rtt_us().map_or_else(|| "-".to_owned(), duration),
            bars: series.bars(width),
        }
    }
}

/// A percentage in at most five characters; one that is not 0 is not shown as 0.
fn percent(percent: f64) -> String {
    match percent {
        0.0 => "0%".to_owned(),
        ..0.1 => "<0.1%".to_owned(),
        ..10.0 => format!("{percent:.1}%"),
        _ => format!("{percent:.0}%"),
    }
}

fn listed(model: &Model, status: &Status, row: Row, is_narrow: bool) -> Option<Listed> {
    match row {
        Row::Chain(position) => {
            let chain = status.chains.get(position)?;
            Some(Listed {
                name: format!("chain {}", chain.name),
                verdict: chain.verdict.as_str().to_owned(),
                counts: chain.verdict,
                cause: String::new(),
                age: String::new(),
                figures: Figures::default(),
            })
        }
        Row::Service(position) => {
            let service = status.services.get(position)?;
            let mut admins = vec![&service.admin];
            if let [member] = &*service.members {
                admins.push(&member.admin);
            }
            Some(Listed {
                name: service.name.clone(),
                verdict: text::verdict(service.verdict, admins),
                counts: service.effective,
                cause: text::cause(service.cause, service.last_verdict),
                age: age(service.since, model.now),
                figures: Figures::new(model.of_service(service), KEPT),
            })
        }
        Row::Member(position, number) => {
            let service = status.services.get(position)?;
            let member = service.members.get(number)?;
            let mark = if service.selected.has(member.name()) {
                '*'
            } else {
                ' '
            };
            Some(Listed {
                name: match is_narrow {
                    false if is_named(member) => {
                        format!(" {mark}{} {}", member.name(), member.endpoint)
                    }
                    _ => format!(" {mark}{}", member.name()),
                },
                verdict: text::verdict(member.verdict, [&member.admin]),
                counts: member.effective,
                cause: text::cause(member.cause, member.last_verdict),
                age: String::new(),
                figures: Figures::new(model.of_member(service, number), KEPT),
            })
        }
    }
}

/// Whether a member has another name than its endpoint.
fn is_named(member: &MemberStatus) -> bool {
    member.name().parse() != Ok(member.endpoint)
}

/// The cause of a service, and the members in use of several.
fn cause(service: &ServiceStatus) -> String {
    let cause = text::cause(service.cause, service.last_verdict);
    match service.members.len() {
        1 => cause,
        _ => format!("{cause}, on {}", text::selected(&service.selected)),
    }
}

fn draw_list(model: &Model, status: &Status, theme: Theme, lines: &mut Lines<'_>) {
    let is_narrow = lines.width() < WIDE;
    let shown = model.rows.iter().skip(model.top).take(model.lines());
    let shown: Vec<_> = shown
        .filter_map(|row| listed(model, status, *row, is_narrow))
        .collect();
    let most = |of: fn(&Listed) -> &str, least: &str| {
        let widths = shown.iter().map(|listed| text::width(of(listed)));
        widths.max().unwrap_or(0).max(least.len())
    };
    let columns = Columns::new(
        lines.width(),
        most(|listed| &listed.name, "SERVICE").min(name_width(lines.width())),
        most(|listed| &listed.verdict, "VERDICT"),
        most(|listed| &listed.cause, "CAUSE"),
        true,
    );
    let head = [
        "SERVICE",
        "VERDICT",
        "CAUSE",
        "FOR",
        "LOSS",
        "RTT",
        "LAST MINUTE",
    ];
    columns.put(lines, head, (BOLD, BOLD));
    let end = lines.next + u16::try_from(model.lines()).unwrap_or(u16::MAX);
    for (position, listed) in shown.iter().enumerate() {
        let Figures { loss, rtt, bars } = &listed.figures;
        let bars: Vec<char> = bars.chars().collect();
        let bars: String = bars[bars.len().saturating_sub(columns.bars)..]
            .iter()
            .collect();
        let cells = [
            &listed.name,
            &listed.verdict,
            &listed.cause,
            &listed.age,
            loss,
            rtt,
            &bars,
        ];
        columns.put(
            lines,
            cells.map(|cell| cell.as_str()),
            (PLAIN, theme.verdict(listed.counts)),
        );
        if model.top + position == model.selected {
            choose(lines);
        }
    }
    if shown.is_empty() {
        let why = match (
            status.services.is_empty(),
            model.is_only_down,
            model.filter.is_empty(),
        ) {
            (true, ..) => " no services",
            (_, _, false) => " nothing contains the filter's text; Esc drops it",
            (_, true, true) => " all up; d shows all",
            _ => " nothing to show",
        };
        lines.put(why, PLAIN);
    }
    lines.next = end;
    draw_events(model, lines, None, model.rows.len());
}

/// The newest events, with the burst of a fault as one line, or all of a service.
fn draw_events(model: &Model, lines: &mut Lines<'_>, service: Option<&str>, listed: usize) {
    if model.event_lines() == 0 {
        return;
    }
    let first = (model.top + 1).min(listed);
    let head = match service {
        Some(name) => format!(" EVENTS of {name}"),
        None => format!(
            " EVENTS{:>width$}",
            format!("line {first} of {listed} "),
            width = lines.width().saturating_sub(8)
        ),
    };
    lines.put(&head, BOLD);
    for line in event_lines(model, service, lines.left(1)) {
        let line = format!(" {line}");
        lines.put(&cut_end(&line, lines.width()), PLAIN);
    }
}

/// At most `most` lines of events, the newest last.
fn event_lines(model: &Model, service: Option<&str>, most: usize) -> Vec<String> {
    // The newest first; of a burst the first event is shown, in the place of its newest.
    let mut bursts: Vec<(&Entry, usize)> = Vec::new();
    let mut known: HashMap<u64, usize> = HashMap::new();
    for entry in model.events.iter().rev() {
        let Entry::Event(event) = entry else {
            if service.is_none() && bursts.len() < most {
                bursts.push((entry, 0));
            }
            continue;
        };
        if service.is_some_and(|service| !is_about(event, service)) {
            continue;
        }
        let group = event.event.group;
        let burst = known
            .get(&group)
            .filter(|_| group != 0 && service.is_none());
        if let Some((first, more)) = burst.and_then(|position| bursts.get_mut(*position)) {
            *first = entry;
            *more += 1;
            continue;
        }
        if bursts.len() == most {
            // The rest of the burst of the oldest line may be further back, but not far.
            if service.is_some() {
                break;
            }
            continue;
        }
        known.insert(group, bursts.len());
        bursts.push((entry, 0));
    }
    let lines = bursts.into_iter().rev().map(|(entry, more)| match entry {
        Entry::Note(text) => text.clone(),
        Entry::Event(event) => short(event, more),
    });
    lines.collect()
}

/// An event in one line, without the date, and the number of others of its burst.
fn short(event: &Numbered, more: usize) -> String {
    let line = table::event(event);
    let mut parts = line.splitn(3, "  ").skip(1);
    let (number, rest) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let more = if more > 0 {
        format!(" (+{more})")
    } else {
        String::new()
    };
    let counts = verdict_of(event);
    let counts = match counts == event.event.to {
        true => String::new(),
        false => format!("  (counts as {})", counts.as_str()),
    };
    format!(
        "{}  {number}{more}  {rest}{counts}",
        clock(event.event.time)
    )
}

fn draw_opened(model: &Model, opened: &Opened, theme: Theme, lines: &mut Lines<'_>) {
    let Some(service) = &opened.status else {
        lines.put(
            &format!(" {}: waiting for its trackers", opened.name),
            PLAIN,
        );
        return;
    };
    let verdict = text::verdict(service.verdict, [&service.admin]);
    let name = cut_middle(&service.name, lines.width() / 3).into_owned();
    let rest = format!("{}  for {}", cause(service), age(service.since, model.now));
    let at = text::width(&name) + 3;
    lines.parts([
        (1, &*name, BOLD),
        (at, &*verdict, theme.verdict(service.effective)),
        (at + text::width(&verdict) + 2, &*rest, PLAIN),
    ]);
    let trackers: Vec<_> = service
        .members
        .iter()
        .enumerate()
        .flat_map(|(number, member)| {
            let trackers = member.trackers.iter().enumerate();
            trackers.map(move |(position, tracker)| (number, member, position, tracker))
        })
        .collect();
    let shown = || {
        trackers
            .iter()
            .enumerate()
            .skip(opened.top)
            .take(model.lines())
    };
    let name = |member: &MemberStatus, tracker: &TrackerStatus| {
        format!("{} {} {}", member.name(), tracker.behind, probe(tracker))
    };
    let why = |tracker: &TrackerStatus| text::cause(tracker.cause, tracker.last_verdict);
    let widest = |of: &dyn Fn(&MemberStatus, &TrackerStatus) -> String, least: &str| {
        let widths = shown().map(|(_, (_, member, _, tracker))| text::width(&of(member, tracker)));
        widths.max().unwrap_or(0).max(least.len())
    };
    let verdict_text = |member: &MemberStatus, tracker: &TrackerStatus| {
        text::verdict(tracker.verdict, [&member.admin])
    };
    let columns = Columns::new(
        lines.width(),
        // Addresses are not cut before the terminal is narrow.
        widest(&name, "TRACKER").min(lines.width() / 2),
        widest(&verdict_text, "VERDICT"),
        widest(&|_, tracker| why(tracker), "CAUSE"),
        false,
    );
    let head = [
        "TRACKER",
        "VERDICT",
        "CAUSE",
        "",
        "LOSS",
        "RTT",
        "LAST MINUTE",
    ];
    columns.put(lines, head, (BOLD, BOLD));
    let end = lines.next + u16::try_from(model.lines()).unwrap_or(u16::MAX);
    for (position, (number, member, of, tracker)) in shown() {
        let figures = Figures::new(model.of_tracker(&service.name, *number, *of), columns.bars);
        let cells = [
            &name(member, tracker),
            &verdict_text(member, tracker),
            &why(tracker),
            "",
            &figures.loss,
            &figures.rtt,
            &*figures.bars,
        ];
        columns.put(lines, cells, (PLAIN, theme.verdict(tracker.verdict)));
        if position == opened.selected {
            choose(lines);
        }
    }
    lines.next = end;
    if let Some((_, member, _, tracker)) = trackers.get(opened.selected) {
        draw_tracker(service, member, tracker, lines);
    }
    draw_events(model, lines, Some(&service.name), 0);
}

fn probe(tracker: &TrackerStatus) -> String {
    let probe = match tracker.protocol {
        Some(protocol) => protocol.to_string(),
        None => tracker.probe.to_string(),
    };
    match tracker.port {
        Some(port) => format!("{probe}/{port}"),
        None => probe,
    }
}

/// Four lines about the chosen tracker.
fn draw_tracker(
    service: &ServiceStatus,
    member: &MemberStatus,
    tracker: &TrackerStatus,
    lines: &mut Lines<'_>,
) {
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let way = format!(
        "{} by {}; receives by {}, sends by {}",
        member.endpoint,
        or_none(member.interface.as_deref()),
        or_none(member.mode.map(|mode| mode.as_str())),
        or_none(member.send.map(|way| way.as_str())),
    );
    let us = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), duration);
    let times = match tracker.proof {
        Proof::Reply => "round trip",
        Proof::Arrival => "one way",
    };
    let rtt = &tracker.rtt_us;
    let counters = format!(
        "sent {}, received {}, lost {}, {times} {} to {}, mean {}",
        tracker.sent,
        tracker.received,
        tracker.lost,
        us(rtt.min),
        us(rtt.max),
        us(rtt.avg)
    );
    let rare = [
        ("late", tracker.late),
        ("duplicate", tracker.duplicate),
        ("wrong path", tracker.wrong_path),
        ("corrupt", tracker.corrupt),
        ("elsewhere", tracker.elsewhere),
        ("ICMP errors", tracker.icmp_errors),
        ("skipped", tracker.skipped),
        ("void", tracker.void),
    ];
    let rare = rare.iter().filter(|(_, number)| *number > 0);
    let rare: Vec<_> = rare
        .map(|(what, number)| format!("{what} {number}"))
        .collect();
    let mut why: Vec<String> = tracker
        .detail
        .iter()
        .map(|detail| printable(detail))
        .collect();
    if let Some(held) = &tracker.held {
        let due = duration(held.due_ms.saturating_mul(1_000));
        why.push(format!(
            "{} {} in {due}",
            held.verdict.as_str(),
            held.cause.as_str()
        ));
    }
    for admin in [&service.admin, &member.admin] {
        if !admin.is_auto() {
            why.push(printable(&admin.text()));
        }
    }
    for line in [way, counters, rare.join(", "), why.join("; ")] {
        let line = cut_end(&line, lines.width().saturating_sub(INDENT)).into_owned();
        lines.parts([(INDENT, &*line, PLAIN)]);
    }
}

fn draw_help(area: Rect, into: &mut Buffer) {
    for y in area.top()..area.bottom() {
        into.set_stringn(
            area.x,
            y,
            " ".repeat(area.width.into()),
            area.width.into(),
            PLAIN,
        );
    }
    into.set_style(area, Style::reset());
    let mut lines = Lines {
        area,
        next: area.y,
        into,
    };
    lines.put(" KEYS", BOLD);
    lines.next += 1;
    for line in HELP {
        lines.put(&format!(" {line}"), PLAIN);
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use tracker_ebpf::verdict::Cause;

    use super::super::model::{Message, Sort};
    use super::*;
    use crate::api::types::{ChainStatus, tests::example};
    use crate::cli::snapshot::assert_snapshot;
    use crate::growth::{assert_linear, processor_time};
    use crate::state::admin::{Admin, AdminState};
    use crate::state::events::tests::example as example_event;
    use crate::{config::Role, state::selection::Selected};

    /// So many seconds after the services of the example came up.
    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    /// Services of all kinds, as they are after so many answers.
    fn picture(answers: u64) -> Status {
        let mut of = example();
        let mut whole = of.services.remove(0);
        let tracker = &mut whole.members[0].trackers[0];
        tracker.received += 10 * answers;
        tracker.rtt_us.last = Some(40 + answers % 7 * 20);
        let named = |name: &str| {
            let mut service = whole.clone();
            service.name = name.to_owned();
            service
        };
        let mut down = named("fw-2");
        (down.verdict, down.effective, down.cause) = (Verdict::Down, Verdict::Down, Cause::NoReply);
        down.since = at(60);
        let member = &mut down.members[0];
        (member.verdict, member.effective, member.cause) =
            (Verdict::Down, Verdict::Down, Cause::NoReply);
        let tracker = &mut member.trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Down, Cause::NoReply);
        (tracker.received, tracker.lost) = (120, 10 * answers);
        tracker.detail = Some("probes come back to the hub on eth1 with TTL 62".to_owned());
        let mut long = named("customer-4711-frankfurt-firewall-07");
        (long.verdict, long.effective, long.cause) =
            (Verdict::Unknown, Verdict::Unknown, Cause::NextHopUnresolved);
        long.members[0].trackers[0].received = 120;
        let mut pair = named("fw-pair");
        let mut standby = pair.members[0].clone();
        (standby.role, standby.name) = (Some(Role::Standby), "standby".to_owned());
        standby.endpoint = "10.9.2.2".parse().unwrap();
        (pair.members[0].verdict, pair.members[0].effective) = (Verdict::Down, Verdict::Down);
        pair.members[0].cause = Cause::Unreachable;
        let tracker = &mut pair.members[0].trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Down, Cause::Unreachable);
        tracker.lost += answers;
        pair.members.push(standby);
        pair.selected = Selected::One("standby".into());
        let mut maintained = named("vpn");
        maintained.admin = Admin {
            state: AdminState::Maintenance,
            reason: Some("new rules".into()),
            by: Some("uid 0".into()),
            until: None,
        };
        of.services = vec![whole, down, long, pair, maintained];
        of.chains.push(ChainStatus {
            name: "cloud".to_owned(),
            verdict: Verdict::Down,
            services: Vec::new(),
            last_verdict: None,
        });
        of
    }

    fn event(seq: u64, group: u64, service: &str, seconds: i64) -> Message {
        let mut event = example_event();
        (event.time, event.group) = (at(seconds), group);
        event.service = Some(service.into());
        Message::Event(Box::new(Numbered {
            seq,
            event,
            run: "r1".into(),
            hub: "hub-1".into(),
            instance: "default".into(),
        }))
    }

    /// A view that has seen ten answers and some events.
    fn model(columns: u16, lines: u16) -> Model {
        let mut model = Model::new(vec![], at(0));
        model.update(Message::Size(columns, lines));
        for answers in 0..10 {
            model.update(Message::Time(at(240 + i64::try_from(answers).unwrap())));
            model.update(Message::Picture(Box::new(picture(answers))));
        }
        model.update(event(7, 7, "fw-2", 60));
        for seq in 8..20 {
            model.update(event(seq, 8, &format!("branch-{seq}"), 70));
        }
        model
    }

    fn press(model: &mut Model, code: KeyCode) -> bool {
        model.update(Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn keys(model: &mut Model, keys: &str) {
        for key in keys.chars() {
            assert!(!press(model, KeyCode::Char(key)), "{key} ends the view");
        }
    }

    fn buffer(model: &Model, columns: u16, lines: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        let theme = Theme::new(true);
        let drawn = terminal.draw(|frame| draw(model, theme, frame.area(), frame.buffer_mut()));
        drawn.unwrap().buffer.clone()
    }

    fn text_of(buffer: &Buffer) -> String {
        let width = usize::from(buffer.area.width);
        let lines = buffer.content().chunks(width).map(|cells| {
            let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned() + "\n"
        });
        lines.collect()
    }

    fn shown(model: &Model, columns: u16, lines: u16) -> String {
        text_of(&buffer(model, columns, lines))
    }

    #[test]
    fn the_list_at_both_sizes() {
        assert_snapshot("watch-80x24", &shown(&model(80, 24), 80, 24));
        assert_snapshot("watch-120x40", &shown(&model(120, 40), 120, 40));
    }

    #[test]
    fn an_opened_service_shows_its_trackers() {
        for (columns, lines) in [(80, 24), (120, 40)] {
            let mut model = model(columns, lines);
            // Past the chain that is down.
            keys(&mut model, "j");
            press(&mut model, KeyCode::Enter);
            assert_eq!(model.wanted().closer, ["fw-2"]);
            let status = picture(11);
            model.update(Message::Closer(Box::new(status)));
            assert_snapshot(
                &format!("opened-{columns}x{lines}"),
                &shown(&model, columns, lines),
            );
            press(&mut model, KeyCode::Esc);
            assert!(shown(&model, columns, lines).contains("fw-pair"));
        }
    }

    #[test]
    fn help_names_every_key_and_fits() {
        let mut model = model(80, 24);
        keys(&mut model, "?");
        assert_snapshot("help-80x24", &shown(&model, 80, 24));
        keys(&mut model, "x");
        assert!(shown(&model, 80, 24).contains("fw-pair"));
    }

    #[test]
    fn verdict_and_cause_are_there_on_every_terminal() {
        for columns in [50, 60, 80, 100, 200] {
            for lines in [8, 14, 24, 60] {
                let text = shown(&model(columns, lines), columns, lines);
                // At 80, the longest note beside a verdict takes their room.
                let has_bars = columns >= 100 || (columns == 80 && lines < 20);
                assert_eq!(text.contains("LAST MINUTE"), has_bars, "{columns}:\n{text}");
                assert_eq!(text.contains("RTT"), columns >= 80, "{columns}:\n{text}");
                for word in ["VERDICT", "CAUSE", "no-reply"] {
                    assert!(
                        text.contains(word),
                        "{columns}x{lines}: {word} is not in\n{text}"
                    );
                }
                assert_eq!(text.contains("EVENTS"), lines >= 14);
            }
        }
        // Nothing is drawn outside.
        for (columns, lines) in [(1, 1), (3, 2), (20, 4)] {
            let mut model = model(columns, lines);
            shown(&model, columns, lines);
            press(&mut model, KeyCode::Enter);
            model.update(Message::Closer(Box::new(picture(3))));
            shown(&model, columns, lines);
            keys(&mut model, "?");
            shown(&model, columns, lines);
        }
    }

    #[test]
    fn without_an_answer_the_last_picture_stays_dimmed() {
        let mut model = model(80, 24);
        let dimmed = |buffer: &Buffer| {
            let cells = buffer.content().iter();
            cells
                .filter(|cell| cell.modifier.contains(Modifier::DIM))
                .count()
        };
        let before = buffer(&model, 80, 24);
        assert_eq!(dimmed(&before), 0);
        model.update(Message::Time(at(300)));
        model.update(Message::NoAnswer("cannot reach the daemon".to_owned()));
        model.update(Message::Time(at(310)));
        let silent = buffer(&model, 80, 24);
        let text = text_of(&silent);
        // The time of the last answer, not of the first failure.
        assert!(
            text.contains(" no answer since 00:04:09Z: cannot reach the daemon\n"),
            "{text}"
        );
        assert!(
            text.contains("fw-pair") && dimmed(&silent) > 80 * 15,
            "{text}"
        );
        model.update(Message::Picture(Box::new(picture(10))));
        let after = buffer(&model, 80, 24);
        assert_eq!(dimmed(&after), 0);
        assert!(!text_of(&after).contains("no answer"));
    }

    #[test]
    fn lists_are_sorted_and_filtered() {
        let mut model = model(120, 40);
        let order = |model: &Model| {
            let status = model.status.as_ref().unwrap();
            let services = model.rows.iter().filter_map(|row| match row {
                Row::Service(position) => Some(status.services[*position].name.clone()),
                _ => None,
            });
            services.collect::<Vec<_>>().join(" ")
        };
        let long = "customer-4711-frankfurt-firewall-07";
        assert_eq!(order(&model), format!("fw-2 {long} fw-pair fw-1 vpn"));
        keys(&mut model, "n");
        assert_eq!(order(&model), format!("{long} fw-1 fw-2 fw-pair vpn"));
        keys(&mut model, "l");
        assert!(order(&model).starts_with("fw-2 "), "{}", order(&model));
        assert!(model.wanted().all_trackers);
        keys(&mut model, "ss");
        assert_eq!(model.sort, Sort::Verdict);
        keys(&mut model, "d");
        assert_eq!(order(&model), format!("fw-2 {long} fw-pair"));
        keys(&mut model, "d/FW-");
        assert_eq!(order(&model), "fw-2 fw-pair fw-1");
        // Keys are text while it is typed.
        keys(&mut model, "q");
        assert_eq!(order(&model), "");
        assert!(shown(&model, 120, 40).contains("filter: fw-q_"));
        press(&mut model, KeyCode::Backspace);
        press(&mut model, KeyCode::Enter);
        assert_eq!(order(&model), "fw-2 fw-pair fw-1");
        press(&mut model, KeyCode::Esc);
        assert_eq!(order(&model).split(' ').count(), 5);
        assert!(press(&mut model, KeyCode::Char('q')));
    }

    #[test]
    fn the_chosen_line_stays_when_the_order_changes() {
        let mut model = model(120, 40);
        let name = |model: &Model| {
            let status = model.status.as_ref().unwrap();
            match model.rows[model.selected] {
                Row::Service(position) | Row::Member(position, _) => {
                    status.services[position].name.clone()
                }
                Row::Chain(position) => status.chains[position].name.clone(),
            }
        };
        press(&mut model, KeyCode::End);
        assert_eq!(name(&model), "vpn");
        let mut next = picture(11);
        next.services[4].effective = Verdict::Down;
        model.update(Message::Picture(Box::new(next)));
        assert_eq!(
            (name(&model).as_str(), model.rows.len() > model.selected + 1),
            ("vpn", true)
        );
        // At the top, what fell last comes into view.
        press(&mut model, KeyCode::Home);
        let mut next = picture(12);
        next.chains[0].verdict = Verdict::Down;
        model.update(Message::Picture(Box::new(next)));
        assert_eq!((model.selected, name(&model).as_str()), (0, "internet"));
        // A chain narrows the view, and Esc widens it.
        press(&mut model, KeyCode::Enter);
        assert_eq!(model.wanted().names, ["internet"]);
        press(&mut model, KeyCode::Esc);
        assert!(model.wanted().names.is_empty());
    }

    #[test]
    fn a_view_of_many_services_grows_with_their_number() {
        let of = |count: usize| {
            let mut status = picture(0);
            let services = status.services.clone();
            let many = (0..count).map(|number| {
                let mut service = services[number % services.len()].clone();
                service.name = format!("{}-{number}", service.name);
                service
                    .members
                    .iter_mut()
                    .for_each(|member| member.trackers.clear());
                service
            });
            status.services = many.collect();
            status
        };
        assert_linear("a picture and its drawing", 10_000, |count| {
            let mut model = Model::new(vec![], at(0));
            model.update(Message::Picture(Box::new(of(count))));
            press(&mut model, KeyCode::End);
            let next = of(count);
            processor_time(|| {
                model.update(Message::Picture(Box::new(next)));
                shown(&model, 80, 24)
            })
        });
        // Only what is on the screen is asked about closely, and drawn.
        let mut model = Model::new(vec![], at(0));
        model.update(Message::Picture(Box::new(of(10_000))));
        press(&mut model, KeyCode::PageDown);
        let text = shown(&model, 80, 24);
        assert!(
            text.contains("10000 services: 2000 down, 2000 unknown, 6000 up"),
            "{text}"
        );
        let closer = model.wanted().closer;
        assert!((1..=24).contains(&closer.len()), "{closer:?}");
        assert!(
            closer.iter().all(|name| text.contains(name.as_str())),
            "{closer:?}\n{text}"
        );
        assert!(!model.wanted().all_trackers);
    }

    #[test]
    fn one_fault_is_one_line_of_events() {
        let mut model = model(80, 24);
        let text = shown(&model, 80, 24);
        assert!(text.contains("#8 (+11)  branch-8/active"), "{text}");
        assert!(!text.contains("branch-9"), "{text}");
        model.update(Message::Reset);
        let text = shown(&model, 80, 24);
        assert!(
            !text.contains("branch-8") && text.contains("event numbers began anew"),
            "{text}"
        );
    }
}

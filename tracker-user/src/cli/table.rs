//! Status and events as people read them.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use jiff::Timestamp;
use tracker_ebpf::abi::Proof;
use tracker_ebpf::verdict::Verdict;

use super::text::{self, Rank, cause, duration, printable};
use crate::api::types::{List, MemberStatus, ServiceStatus, Status, TrackerStatus};
use crate::state::admin::Admin;
use crate::state::events::{EventKind, Missed, Numbered, Reset};

const HEADER: [&str; 13] = [
    "SERVICE",
    "MEMBER",
    "ENDPOINT",
    "INTERFACE",
    "MODE",
    "BEHIND",
    "PROBE",
    "VERDICT",
    "CAUSE",
    "SINCE",
    "SENT",
    "LOST",
    "RTT",
];
const SERVICE: usize = 0;
const MEMBER: usize = 1;
const INTERFACE: usize = 3;
const VERDICT: usize = 7;
const CAUSE: usize = 8;
const SINCE: usize = 9;
/// Columns that are there only if they have something to say.
const MORE: [More; 4] = [
    ("STEERED", Of::Service(|service| service.steered)),
    ("REPLIED", Of::Service(|service| service.replied)),
    (
        "FLAPS",
        Of::Service(|service| (service.flaps > 0).then_some(service.flaps)),
    ),
    (
        "ICMP-ERRORS",
        Of::Tracker(|tracker| (tracker.icmp_errors > 0).then_some(tracker.icmp_errors)),
    ),
];
type More = (&'static str, Of);

/// What a column tells of.
#[derive(Clone, Copy)]
enum Of {
    Service(fn(&ServiceStatus) -> Option<u64>),
    Tracker(fn(&TrackerStatus) -> Option<u64>),
}

impl Of {
    /// Whether it has something to say.
    fn says(self, service: &ServiceStatus) -> bool {
        match self {
            Self::Service(value) => value(service).is_some(),
            Self::Tracker(value) => {
                let mut trackers = service.members.iter().flat_map(|member| &member.trackers);
                trackers.any(|tracker| value(tracker).is_some())
            }
        }
    }

    /// What it says in a line of this service, this tracker, or both.
    fn text(self, service: Option<&ServiceStatus>, tracker: Option<&TrackerStatus>) -> String {
        let value = match self {
            Self::Service(value) => service.and_then(value),
            Self::Tracker(value) => tracker.and_then(value),
        };
        value.map_or_else(String::new, |value| value.to_string())
    }
}
/// The first of the columns of numbers, which are the last.
const NUMBERS: usize = 10;
/// The columns that a terminal shows if they fit, the last of these first.
const DROPPED: [&str; 14] = [
    "MODE",
    "PROBE",
    "SENT",
    "STEERED",
    "REPLIED",
    "ICMP-ERRORS",
    "ENDPOINT",
    "INTERFACE",
    "FLAPS",
    "LOST",
    "RTT",
    FOR,
    "BEHIND",
    "MEMBER",
];
/// What a terminal shows in the place of `SINCE`: shorter, and what operators work out from it.
const FOR: &str = "FOR";
/// The columns between two of a table.
const GAP: usize = 2;
/// A cause takes so many columns before other columns are dropped for it: every cause fits, details are cut.
const CAUSE_WIDTH: usize = 24;

/// How a table is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Whether verdicts have a colour.
    pub colour: bool,
    /// The terminal; `None` if this goes to a pipe or a file, where nothing is sorted, cut or left out.
    pub screen: Option<Screen>,
    /// Whether only what is not up is shown.
    pub only_down: bool,
}

/// A terminal.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Its columns.
    pub width: usize,
    /// Whether all columns and details are shown, however wide the terminal is.
    pub is_wide: bool,
    /// The time, by which ages are shown.
    pub now: Timestamp,
}

impl Layout {
    /// The terminal to whose width a table is cut.
    const fn narrow(&self) -> Option<Screen> {
        match self.screen {
            Some(screen) if !screen.is_wide => Some(screen),
            _ => None,
        }
    }
}

/// The status as a table, chains after it; ends in a newline. A service of one tracker is one line;
/// any other is a line of its own, then one for each tracker.
pub fn status(status: &Status, layout: &Layout) -> String {
    let mut text = String::new();
    let mut services: Vec<_> = status.services.iter().collect();
    let mut chains: Vec<_> = status.chains.iter().collect();
    if layout.only_down {
        services.retain(|service| text::rank(service) != Rank::Up);
        chains.retain(|chain| chain.verdict != Verdict::Up);
    }
    if layout.screen.is_some() {
        services.sort_by_key(|service| text::rank(service));
        chains.sort_by_key(|chain| Rank::from(chain.verdict));
    }
    if status.services.is_empty() {
        text.push_str("no services\n");
    } else if services.is_empty() && chains.is_empty() {
        text.push_str("all up\n");
    }
    if !services.is_empty() {
        let says = |(_, of): &More| services.iter().any(|service| of.says(service));
        let more: Vec<More> = MORE.into_iter().filter(says).collect();
        let mut lines = Vec::new();
        for service in services {
            lines.extend(rows(service, &more, layout));
        }
        let heads = more.iter().map(|(head, _)| *head);
        let header: Vec<_> = HEADER.into_iter().chain(heads).collect();
        print_status(&mut text, header, lines, layout);
    }
    if !chains.is_empty() {
        let mut table = new(&["CHAIN", "VERDICT"], layout.colour);
        for chain in chains {
            let name = match layout.narrow() {
                Some(screen) => text::cut_middle(&chain.name, name_width(screen.width)),
                None => chain.name.as_str().into(),
            };
            table.add_row([Cell::new(name), verdict(chain.verdict)]);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        print(&mut text, &table);
    }
    if layout.screen.is_some() && !status.services.is_empty() {
        // Writing to a String does not fail.
        let _ = writeln!(text, "\n{}", text::summary(status));
    }
    if status.is_stalled() {
        let _ = writeln!(
            text,
            "\nthe daemon has not kept up for {} s: no verdict is known; its log says more",
            status.as_of_ms / 1_000
        );
    }
    text
}

/// The columns that a name may take on a terminal: one long name widens nothing.
fn name_width(width: usize) -> usize {
    (width / 4).clamp(16, 40)
}

/// Prints the lines of a status, on a terminal in as many of its columns as fit.
fn print_status(into: &mut String, mut header: Vec<&str>, mut lines: Vec<Line>, layout: &Layout) {
    let mut columns: Vec<usize> = (0..header.len()).collect();
    if let Some(screen) = layout.narrow() {
        header[SINCE] = FOR;
        columns = fit(&header, &mut lines, screen.width);
    }
    let shown: Vec<_> = columns.iter().map(|column| header[*column]).collect();
    let mut table = new(&shown, layout.colour);
    for (position, column) in columns.iter().enumerate() {
        if *column >= NUMBERS
            && let Some(column) = table.column_mut(position)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in lines {
        table.add_row(columns.iter().map(|column| match *column {
            VERDICT => Cell::new(&line.cells[VERDICT]).fg(colour(line.verdict)),
            column => Cell::new(&line.cells[column]),
        }));
    }
    print(into, &table);
}

/// Cuts the lines to a terminal's width and returns the columns that are left. Verdict, cause and the service's name stay.
fn fit(header: &[&str], lines: &mut [Line], most: usize) -> Vec<usize> {
    for line in &mut *lines {
        for column in [SERVICE, MEMBER, INTERFACE] {
            let cell = &mut line.cells[column];
            *cell = text::cut_middle(cell, name_width(most)).into_owned();
        }
    }
    let width = |column: usize| {
        let cells = lines.iter().map(|line| text::width(&line.cells[column]));
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let mut columns = vec![SERVICE, VERDICT];
    let taken = |columns: &[usize]| {
        columns
            .iter()
            .map(|column| width(*column) + GAP)
            .sum::<usize>()
    };
    let of_cause = width(CAUSE).min(CAUSE_WIDTH);
    for name in DROPPED.iter().rev() {
        let Some(column) = header.iter().position(|head| head == name) else {
            continue;
        };
        columns.push(column);
        if taken(&columns) + of_cause > most {
            columns.pop();
        }
    }
    let left = most.saturating_sub(taken(&columns)).max(CAUSE_WIDTH);
    columns.push(CAUSE);
    columns.sort_unstable();
    for line in lines {
        let cell = &mut line.cells[CAUSE];
        *cell = text::cut_end(cell, left).into_owned();
    }
    columns
}

/// The services as a table, one line a member; ends in a newline.
pub fn list(list: &List, layout: &Layout) -> String {
    let mut text = String::new();
    if list.services.is_empty() {
        text.push_str("no services\n");
        return text;
    }
    let header = [
        "SERVICE",
        "OWNER",
        "MEMBER",
        "ENDPOINT",
        "INTERFACE",
        "BEHIND",
        "VERDICT",
    ];
    let mut table = new(&header, layout.colour);
    for service in &list.services {
        for (position, member) in service.members.iter().enumerate() {
            let once = |text: &str| Cell::new(if position == 0 { text } else { "" });
            let behind: Vec<String> = member.behind.iter().map(ToString::to_string).collect();
            table.add_row([
                once(&service.name),
                once(service.owner.as_str()),
                Cell::new(member.name()),
                Cell::new(member.endpoint),
                Cell::new(member.interface.as_deref().unwrap_or("-")),
                Cell::new(behind.join(" ")),
                if position == 0 {
                    verdict(service.verdict)
                } else {
                    Cell::new("")
                },
            ]);
        }
    }
    print(&mut text, &table);
    text
}

fn new(header: &[&str], colour: bool) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        // One line a row, however narrow the terminal: what is cut in two cannot be searched.
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let last = header.len() - 1;
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    table
}

fn print(text: &mut String, table: &Table) {
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// A line of a status.
struct Line {
    /// The text of each column, with those of [`MORE`] that say something.
    cells: Vec<String>,
    verdict: Verdict,
}

/// The lines of a service.
fn rows(service: &ServiceStatus, more: &[More], layout: &Layout) -> Vec<Line> {
    let since = match layout.narrow() {
        Some(screen) => text::age(service.since, screen.now),
        None => seconds(service.since),
    };
    let line = |cells: [String; 13],
                verdict,
                service: Option<&ServiceStatus>,
                tracker: Option<&TrackerStatus>| {
        let values = more.iter().map(|(_, of)| of.text(service, tracker));
        Line {
            cells: cells.into_iter().chain(values).collect(),
            verdict,
        }
    };
    // A terminal has a note beside the verdict; the reason is for those that want to read on.
    let noted = |verdict, admins: &[&Admin]| match layout.screen {
        Some(_) => text::verdict(verdict, admins.iter().copied()),
        None => verdict.as_str().to_owned(),
    };
    let imposed = |admin: &Admin, effective| match layout.narrow() {
        Some(_) => String::new(),
        None => imposed(admin, effective),
    };
    if let [member] = service.members.as_slice()
        && let [tracker] = member.trackers.as_slice()
    {
        let mut cells = tracker_cells(member, tracker);
        cells[SERVICE] = service.name.clone();
        cells[VERDICT] = noted(tracker.verdict, &[&service.admin, &member.admin]);
        cells[CAUSE].push_str(&imposed(&service.admin, service.effective));
        cells[CAUSE].push_str(&imposed(&member.admin, member.effective));
        cells[SINCE] = since;
        return vec![line(cells, tracker.verdict, Some(service), Some(tracker))];
    }
    let mut cells: [String; 13] = Default::default();
    cells[SERVICE] = service.name.clone();
    if service.members.len() > 1 {
        let word = if layout.narrow().is_some() {
            "on"
        } else {
            "selected:"
        };
        cells[MEMBER] = format!("{word} {}", text::selected(&service.selected));
    }
    cells[VERDICT] = noted(service.verdict, &[&service.admin]);
    cells[CAUSE] = cause(service.cause, service.last_verdict);
    cells[CAUSE].push_str(&imposed(&service.admin, service.effective));
    for member in &service.members {
        let text = imposed(&member.admin, member.effective);
        if !text.is_empty() {
            cells[CAUSE].push_str(&format!("; {}{text}", member.name()));
        }
    }
    cells[SINCE] = since;
    let mut lines = vec![line(cells, service.verdict, Some(service), None)];
    for member in &service.members {
        for tracker in &member.trackers {
            if layout.only_down && tracker.verdict == Verdict::Up && member.effective == Verdict::Up
            {
                continue;
            }
            let mut cells = tracker_cells(member, tracker);
            cells[VERDICT] = noted(tracker.verdict, &[&member.admin]);
            lines.push(line(cells, tracker.verdict, None, Some(tracker)));
        }
    }
    lines
}

fn tracker_cells(member: &MemberStatus, tracker: &TrackerStatus) -> [String; 13] {
    let probe = match tracker.protocol {
        Some(protocol) => protocol.to_string(),
        None => tracker.probe.to_string(),
    };
    let probe = match tracker.port {
        Some(port) => format!("{probe}/{port}"),
        None => probe,
    };
    let why = match &tracker.detail {
        Some(detail) => format!("{} ({})", tracker.cause.as_str(), printable(detail)),
        None => cause(tracker.cause, tracker.last_verdict),
    };
    let why = match &tracker.held {
        Some(held) => format!(
            "{why}; {} {} in {}",
            held.verdict.as_str(),
            held.cause.as_str(),
            duration(held.due_ms.saturating_mul(1000))
        ),
        None => why,
    };
    [
        String::new(),
        member.name().to_owned(),
        member.endpoint.to_string(),
        member.interface.clone().unwrap_or_else(|| "-".to_owned()),
        member.mode.map_or("-", |mode| mode.as_str()).to_owned(),
        tracker.behind.to_string(),
        probe,
        String::new(),
        why,
        String::new(),
        tracker.sent.to_string(),
        tracker.lost.to_string(),
        match (tracker.rtt_us.last, tracker.proof) {
            (None, _) => "-".to_owned(),
            (Some(last), Proof::Reply) => duration(last),
            (Some(last), Proof::Arrival) => format!("{} one-way", duration(last)),
        },
    ]
}

fn verdict(verdict: Verdict) -> Cell {
    Cell::new(verdict.as_str()).fg(colour(verdict))
}

const fn colour(verdict: Verdict) -> Color {
    match verdict {
        Verdict::Up => Color::Green,
        Verdict::Down => Color::Red,
        Verdict::Unknown => Color::Yellow,
    }
}

/// What an operator imposes, and what counts by it; empty if nothing is imposed.
fn imposed(admin: &Admin, effective: Verdict) -> String {
    match admin.is_auto() {
        true => String::new(),
        false => format!(
            "; counts as {}: {}",
            effective.as_str(),
            printable(&admin.text())
        ),
    }
}

/// To the second: finer is noise to people, and in the JSON.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// One event as one line, without a newline.
pub fn event(numbered: &Numbered) -> String {
    let event = &numbered.event;
    let mut text = format!("{:.3}  #{}  ", event.time, numbered.seq);
    // Writing to a String cannot fail.
    if let Some(chain) = &event.chain {
        let _ = write!(text, "chain {chain}");
    }
    if let Some(service) = &event.service {
        let _ = write!(text, "{service}");
    }
    if let Some(member) = &event.member {
        let _ = write!(text, "/{member}");
    }
    if let Some(behind) = event.behind {
        let _ = write!(text, " {behind}");
    }
    let (from, to, cause) = (event.from.as_str(), event.to.as_str(), event.cause.as_str());
    let _ = match event.kind {
        EventKind::Admin => write!(text, "  admin state, {from} -> {to}"),
        EventKind::Verdict | EventKind::Removed => write!(text, "  {from} -> {to}  {cause}"),
    };
    if let Some(detail) = &event.detail {
        let _ = write!(text, " ({})", printable(detail));
    }
    if let Some(us) = event.detection_us {
        let _ = write!(text, "  after {}", duration(us));
    }
    text
}

/// Numbers that began anew as one line, without a newline.
pub fn reset(reset: &Reset) -> String {
    format!(
        "event numbers began anew (run {}); all that is kept follows",
        printable(&reset.run)
    )
}

/// A gap in the stream as one line, without a newline.
pub fn missed(missed: &Missed) -> String {
    format!(
        "{} events are no longer kept; the next is #{}",
        missed.missed, missed.next
    )
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::verdict::Cause;

    use super::*;
    use crate::cli::snapshot::assert_snapshot;
    use crate::config::Role;
    use crate::state::admin::AdminState;
    use crate::{api::types as json, state::events};

    const COLOURED: Layout = Layout {
        colour: true,
        screen: None,
        only_down: false,
    };

    /// As on a pipe.
    fn plain(of: &Status) -> String {
        status(of, &Layout::default())
    }

    /// As on a terminal without colours, three minutes after the example's services came up.
    fn on_terminal(of: &Status, width: usize, only_down: bool) -> String {
        let screen = Screen {
            width,
            is_wide: false,
            now: "2026-01-01T00:03:12Z".parse().unwrap(),
        };
        let layout = Layout {
            screen: Some(screen),
            only_down,
            ..Layout::default()
        };
        status(of, &layout)
    }

    /// Services of all kinds: up, with a long name and a long cause, a pair with a failed member, in maintenance.
    fn mixed() -> Status {
        let mut of = json::tests::example();
        let whole = of.services[0].clone();
        let mut long = whole.clone();
        long.name = "customer-4711-frankfurt-firewall-07".to_owned();
        (long.verdict, long.effective) = (Verdict::Unknown, Verdict::Unknown);
        let tracker = &mut long.members[0].trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Unknown, Cause::NextHopUnresolved);
        tracker.detail = Some("asking for 10.9.0.77 on eth1".to_owned());
        let mut pair = whole.clone();
        pair.name = "fw-pair".to_owned();
        let mut standby = pair.members[0].clone();
        (standby.role, standby.name) = (Some(Role::Standby), "standby".to_owned());
        (standby.verdict, standby.effective) = (Verdict::Down, Verdict::Down);
        (standby.trackers[0].verdict, standby.trackers[0].cause) = (Verdict::Down, Cause::NoReply);
        pair.members.push(standby);
        let mut maintained = whole.clone();
        maintained.name = "vpn".to_owned();
        maintained.admin = Admin {
            state: AdminState::Maintenance,
            reason: Some("new rules".into()),
            by: Some("uid 0".into()),
            until: None,
        };
        (maintained.verdict, maintained.cause) = (Verdict::Down, Cause::NoReply);
        let tracker = &mut maintained.members[0].trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Down, Cause::NoReply);
        of.services.extend([long, pair, maintained]);
        of
    }

    #[test]
    fn a_terminal_has_problems_first_and_verdict_and_cause_in_any_width() {
        assert_snapshot("status-80", &on_terminal(&mixed(), 80, false));
        for width in [40, 60, 80, 100, 132, 200] {
            let text = on_terminal(&mixed(), width, false);
            for line in text.lines().take_while(|line| !line.is_empty()) {
                assert!(text::width(line) <= width.max(64), "{width}: {line}");
            }
            for word in [
                "VERDICT",
                "CAUSE",
                "next-hop-unresolved",
                "no-reply",
                "down (maintenance)",
            ] {
                assert!(text.contains(word), "{width}: {word} is not in\n{text}");
            }
            assert_eq!(text.contains("MODE"), width == 200, "{width}:\n{text}");
        }
    }

    #[test]
    fn wide_cuts_nothing_and_gives_the_reason() {
        let screen = Screen {
            width: 40,
            is_wide: true,
            now: Timestamp::UNIX_EPOCH,
        };
        let layout = Layout {
            screen: Some(screen),
            ..Layout::default()
        };
        let text = status(&mixed(), &layout);
        for word in [
            "customer-4711-frankfurt-firewall-07",
            "next-hop-unresolved (asking for 10.9.0.77 on eth1)",
            "down (maintenance)",
            "counts as up: maintenance by uid 0: new rules",
            "2026-01-01T00:00:00Z",
            "MODE",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }

    #[test]
    fn a_pipe_has_all_services_in_the_order_of_the_configuration() {
        let text = plain(&mixed());
        let at = |word| text.find(word).unwrap();
        assert!(
            at("fw-1") < at("customer-4711-frankfurt-firewall-07"),
            "{text}"
        );
        assert!(
            at("customer-4711") < at("fw-pair") && at("fw-pair") < at("vpn"),
            "{text}"
        );
        assert!(!text.contains("services:"), "{text}");
    }

    #[test]
    fn only_what_is_not_up_is_shown_if_that_is_wanted() {
        let mut of = mixed();
        let text = on_terminal(&of, 80, true);
        assert!(!text.contains("fw-1 ") && !text.contains("CHAIN"), "{text}");
        assert!(
            text.contains("fw-pair") && text.contains("  standby"),
            "{text}"
        );
        assert!(!text.contains("  active  10"), "{text}");
        of.services.truncate(1);
        let text = on_terminal(&of, 80, true);
        assert_eq!(
            text,
            "all up\n\n1 service: 1 up; 1 chain: 1 up; 1 tracker\n"
        );
    }

    #[test]
    fn a_service_of_one_tracker_is_one_line() {
        assert_eq!(
            plain(&json::tests::example()),
            "\
SERVICE  MEMBER  ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE    SINCE                 SENT  LOST   RTT
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us

CHAIN     VERDICT
internet  up
"
        );
    }

    #[test]
    fn a_pair_is_a_line_of_its_own_and_one_for_each_tracker() {
        let mut example = json::tests::example();
        example.chains.clear();
        let service = &mut example.services[0];
        service.since = "2026-01-01T00:00:00.987654321Z".parse().unwrap();
        let mut standby = service.members[0].clone();
        (standby.role, standby.name) = (Some(Role::Standby), "standby".to_owned());
        (standby.interface, standby.mode) = (None, None);
        let tracker = &mut standby.trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Down, Cause::Unreachable);
        tracker.detail = Some("type 3 code 1 from 10.9.2.2\u{1b}[2J".to_owned());
        tracker.rtt_us.last = None;
        tracker.lost = 7;
        service.members.push(standby);
        let text = plain(&example);
        assert_eq!(
            text,
            "\
SERVICE  MEMBER            ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE                                          SINCE                 SENT  LOST   RTT
fw-1     selected: active                                                     up       replied                                        2026-01-01T00:00:00Z
         active            10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied                                                               120     0  41us
         standby           10.9.0.2  -          -           10.20.0.9  icmp   down     unreachable (type 3 code 1 from 10.9.2.2?[2J)                         120     7     -
"
        );
    }

    #[test]
    fn flaps_are_shown_where_there_are_any() {
        let mut example = json::tests::example();
        example.chains.clear();
        example.services.push(example.services[0].clone());
        example.services[1].flaps = 12;
        assert_eq!(
            plain(&example),
            "\
SERVICE  MEMBER  ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE    SINCE                 SENT  LOST   RTT  FLAPS
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us     12
"
        );
    }

    #[test]
    fn what_is_held_back_is_beside_the_cause() {
        let mut example = json::tests::example();
        example.services[0].members[0].trackers[0].held = Some(json::HeldStatus {
            verdict: Verdict::Down,
            cause: Cause::NoReply,
            due_ms: 1_250,
            detail: None,
        });
        let text = plain(&example);
        assert!(
            text.contains("  up       replied; down no-reply in 1.2s  "),
            "{text}"
        );
        let json = serde_json::to_string(&example).unwrap();
        let held = r#""held":{"verdict":"down","cause":"no-reply","due_ms":1250}"#;
        assert!(json.contains(held), "{json}");
    }

    #[test]
    fn an_arrival_took_one_way() {
        let mut example = json::tests::example();
        example.services[0].members[0].trackers[0].proof = Proof::Arrival;
        assert!(plain(&example).contains("  41us one-way\n"));
        let json = serde_json::to_string(&example).unwrap();
        assert!(json.contains(r#""proof":"arrival""#), "{json}");
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), example);
    }

    #[test]
    fn steering_has_two_more_columns() {
        let mut example = json::tests::example();
        example.chains.clear();
        let service = &mut example.services[0];
        (service.steered, service.replied) = (Some(1234), Some(7));
        assert_eq!(
            plain(&example),
            "\
SERVICE  MEMBER  ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE    SINCE                 SENT  LOST   RTT  STEERED  REPLIED
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us     1234        7
"
        );
    }

    #[test]
    fn icmp_errors_have_a_column_if_there_are_any() {
        let mut example = json::tests::example();
        example.chains.clear();
        assert!(!plain(&example).contains("ICMP"));
        example.services[0].members[0].trackers[0].icmp_errors = 12;
        assert_eq!(
            plain(&example),
            "\
SERVICE  MEMBER  ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE    SINCE                 SENT  LOST   RTT  ICMP-ERRORS
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us           12
"
        );
        let service = &mut example.services[0];
        let other = service.members[0].trackers[0].clone();
        service.members[0].trackers.push(other);
        service.members[0].trackers[1].icmp_errors = 0;
        let text = plain(&example);
        let ends: Vec<_> = text.lines().map(|line| line.ends_with("12")).collect();
        assert_eq!(ends, [false, false, true, false], "{text}");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        let example = json::tests::example();
        assert!(status(&example, &COLOURED).contains("\u{1b}["));
        assert!(!plain(&example).contains('\u{1b}'));
        let none = Status {
            services: vec![],
            chains: vec![],
            ..example
        };
        assert_eq!(status(&none, &COLOURED), "no services\n");
    }

    #[test]
    fn an_event_is_a_line() {
        let mut numbered = Numbered {
            seq: 7,
            event: events::tests::example(),
            run: "r1".into(),
            hub: "hub-1".into(),
            instance: "default".into(),
        };
        assert_eq!(
            event(&numbered),
            "2026-01-01T00:00:00.000Z  #7  fw-1/active 10.20.0.9  up -> down  no-reply  after 312.0ms"
        );
        let inner = &mut numbered.event;
        (inner.service, inner.member, inner.behind) = (None, None, None);
        (inner.chain, inner.detection_us) = (Some("internet".into()), None);
        assert_eq!(
            event(&numbered),
            "2026-01-01T00:00:00.000Z  #7  chain internet  up -> down  no-reply"
        );
        let gap = Missed {
            missed: 12,
            next: 16,
        };
        assert_eq!(
            missed(&gap),
            "12 events are no longer kept; the next is #16"
        );
    }
}

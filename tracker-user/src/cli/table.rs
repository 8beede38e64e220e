//! Status and events as people read them.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use jiff::Timestamp;
use tracker_ebpf::abi::Proof;
use tracker_ebpf::verdict::{Cause, Verdict};

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
const VERDICT: usize = 7;
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

/// The status as a table, chains after it; ends in a newline. A service of one tracker is one line;
/// any other is a line of its own, then one for each tracker.
pub fn status(status: &Status, colour: bool) -> String {
    let mut text = String::new();
    if status.services.is_empty() {
        text.push_str("no services\n");
    } else {
        let says = |(_, of): &More| status.services.iter().any(|service| of.says(service));
        let more: Vec<More> = MORE.into_iter().filter(says).collect();
        let heads = more.iter().map(|(head, _)| *head);
        let header: Vec<_> = HEADER.into_iter().chain(heads).collect();
        let mut table = new(&header, colour);
        for column in NUMBERS..header.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for service in &status.services {
            rows(&mut table, service, &more);
        }
        print(&mut text, &table);
    }
    if !status.chains.is_empty() {
        let mut table = new(&["CHAIN", "VERDICT"], colour);
        for chain in &status.chains {
            table.add_row([Cell::new(&chain.name), verdict(chain.verdict)]);
        }
        text.push('\n');
        print(&mut text, &table);
    }
    if status.is_stalled() {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\nthe daemon has not kept up for {} s: no verdict is known; its log says more",
            status.as_of_ms / 1_000
        );
    }
    text
}

/// The services as a table, one line a member; ends in a newline.
pub fn list(list: &List, colour: bool) -> String {
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
    let mut table = new(&header, colour);
    for service in &list.services {
        for (position, member) in service.members.iter().enumerate() {
            let once = |text: &str| Cell::new(if position == 0 { text } else { "" });
            let behind: Vec<String> = member.behind.iter().map(ToString::to_string).collect();
            table.add_row([
                once(&service.name),
                once(service.owner.as_str()),
                Cell::new(member.role),
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

fn rows(table: &mut Table, service: &ServiceStatus, more: &[More]) {
    let since = seconds(service.since);
    let values = |service: Option<&ServiceStatus>, tracker: Option<&TrackerStatus>| {
        let texts = more.iter().map(|(_, of)| of.text(service, tracker));
        texts.collect::<Vec<_>>()
    };
    if let [member] = service.members.as_slice()
        && let [tracker] = member.trackers.as_slice()
    {
        let mut cells = tracker_cells(member, tracker);
        cells[0] = service.name.clone();
        cells[8].push_str(&imposed(&service.admin, service.effective));
        cells[8].push_str(&imposed(&member.admin, member.effective));
        cells[9] = since;
        add(
            table,
            cells,
            tracker.verdict,
            values(Some(service), Some(tracker)),
        );
        return;
    }
    let mut cells: [String; 13] = Default::default();
    cells[0] = service.name.clone();
    if service.members.len() > 1 {
        cells[1] = format!("selected: {}", service.selected);
    }
    cells[8] = cause(service.cause, service.last_verdict);
    cells[8].push_str(&imposed(&service.admin, service.effective));
    for member in &service.members {
        let text = imposed(&member.admin, member.effective);
        if !text.is_empty() {
            cells[8].push_str(&format!("; {}{text}", member.role));
        }
    }
    cells[9] = since;
    add(table, cells, service.verdict, values(Some(service), None));
    for member in &service.members {
        for tracker in &member.trackers {
            add(
                table,
                tracker_cells(member, tracker),
                tracker.verdict,
                values(None, Some(tracker)),
            );
        }
    }
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
        member.role.to_string(),
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

fn add(table: &mut Table, cells: [String; 13], of: Verdict, more: Vec<String>) {
    let cells = cells.into_iter().enumerate().map(|(index, text)| {
        if index == VERDICT {
            verdict(of)
        } else {
            Cell::new(text)
        }
    });
    table.add_row(cells.chain(more.into_iter().map(Cell::new)));
}

fn verdict(verdict: Verdict) -> Cell {
    Cell::new(verdict.as_str()).fg(match verdict {
        Verdict::Up => Color::Green,
        Verdict::Down => Color::Red,
        Verdict::Unknown => Color::Yellow,
    })
}

/// A cause, with the verdict that it took the place of.
fn cause(cause: Cause, last: Option<Verdict>) -> String {
    match last {
        Some(last) => format!("{} (was {})", cause.as_str(), last.as_str()),
        None => cause.as_str().to_owned(),
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

fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

/// A detail tells of packets from the network; nothing of it may steer a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
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
    if let Some(member) = event.member {
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
    use super::*;
    use crate::config::Role;
    use crate::{api::types as json, state::events};

    #[test]
    fn a_service_of_one_tracker_is_one_line() {
        assert_eq!(
            status(&json::tests::example(), false),
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
        standby.role = Role::Standby;
        (standby.interface, standby.mode) = (None, None);
        let tracker = &mut standby.trackers[0];
        (tracker.verdict, tracker.cause) = (Verdict::Down, Cause::Unreachable);
        tracker.detail = Some("type 3 code 1 from 10.9.2.2\u{1b}[2J".to_owned());
        tracker.rtt_us.last = None;
        tracker.lost = 7;
        service.members.push(standby);
        let text = status(&example, false);
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
            status(&example, false),
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
        let text = status(&example, false);
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
        assert!(status(&example, false).contains("  41us one-way\n"));
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
            status(&example, false),
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
        assert!(!status(&example, false).contains("ICMP"));
        example.services[0].members[0].trackers[0].icmp_errors = 12;
        assert_eq!(
            status(&example, false),
            "\
SERVICE  MEMBER  ENDPOINT  INTERFACE  MODE        BEHIND     PROBE  VERDICT  CAUSE    SINCE                 SENT  LOST   RTT  ICMP-ERRORS
fw-1     active  10.9.0.2  eth1       xdp-native  10.20.0.9  icmp   up       replied  2026-01-01T00:00:00Z   120     0  41us           12
"
        );
        let service = &mut example.services[0];
        let other = service.members[0].trackers[0].clone();
        service.members[0].trackers.push(other);
        service.members[0].trackers[1].icmp_errors = 0;
        let text = status(&example, false);
        let ends: Vec<_> = text.lines().map(|line| line.ends_with("12")).collect();
        assert_eq!(ends, [false, false, true, false], "{text}");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        let example = json::tests::example();
        assert!(status(&example, true).contains("\u{1b}["));
        assert!(!status(&example, false).contains('\u{1b}'));
        let none = Status {
            services: vec![],
            chains: vec![],
            ..example
        };
        assert_eq!(status(&none, true), "no services\n");
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

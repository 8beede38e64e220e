//! Changes of verdict as lines of the log, at a bounded rate.
//!
//! The log is where an operator looks first, and the event stream has everything: so a burst is logged up to a limit,
//! services and chains before members and trackers, and then summed up.

use std::{collections::HashSet, fmt::Write as _};

use tracing::Level;
use tracker_ebpf::verdict::Verdict;

use super::events::{Event, EventKind};

/// Target of the lines, by which they are told from others.
pub const TARGET: &str = "tracker_user::verdict";

/// So many lines are logged in each [`WINDOW_NS`].
const LINES: u32 = 50;
/// How long a count of lines lasts.
const WINDOW_NS: u64 = 10_000_000_000;

/// A line for the log.
#[derive(Debug, PartialEq)]
pub struct Line {
    level: Level,
    text: String,
    /// The change that it tells; none if it counts some.
    event: Option<Box<Event>>,
}

impl Line {
    /// Writes it. The journal has the change's values as fields, which have the names that they have in JSON.
    pub fn write(self) {
        let Self { level, text, event } = self;
        macro_rules! write {
            ($level:expr) => {
                match event {
                    None => tracing::event!(target: TARGET, $level, "{text}"),
                    Some(event) => tracing::event!(
                        target: TARGET,
                        $level,
                        kind = event.kind.as_str(),
                        chain = event.chain.as_deref(),
                        service = event.service.as_deref(),
                        member = event.member.as_deref(),
                        behind = event.behind.map(tracing::field::display),
                        from = event.from.as_str(),
                        to = event.to.as_str(),
                        cause = event.cause.as_str(),
                        detail = event.detail.as_deref(),
                        detection_us = event.detection_us,
                        group = event.group,
                        "{text}"
                    ),
                }
            };
        }
        match level {
            Level::WARN => write!(Level::WARN),
            _ => write!(Level::INFO),
        }
    }
}

/// Which changes are still logged in the present window, by the monotonic clock.
#[derive(Debug, Default)]
pub struct VerdictLog {
    began_ns: u64,
    logged: u32,
    left_out: u64,
}

impl VerdictLog {
    /// The lines for changes that are reported together, the end of an earlier window's first.
    pub fn lines(&mut self, now_ns: u64, events: &[Event]) -> Vec<Line> {
        let mut lines: Vec<_> = self.end_window(now_ns).into_iter().collect();
        // What a service says of itself need not be said of its only tracker.
        let own = events.iter().filter(|event| event.member.is_none());
        let own: HashSet<_> = own
            .filter_map(|event| Some((event.service.as_deref()?, event.to as u8)))
            .collect();
        let is_said = |event: &&Event| {
            let service = event.service.as_deref();
            event.member.is_some()
                && service.is_some_and(|service| own.contains(&(service, event.to as u8)))
        };
        let whole = events.iter().filter(|event| event.member.is_none());
        let parts = events.iter().filter(|event| event.member.is_some());
        for event in whole.chain(parts.filter(|event| !is_said(event))) {
            if self.logged < LINES {
                self.logged += 1;
                lines.push(Line {
                    level: level(event),
                    text: line(event),
                    event: Some(Box::new(event.clone())),
                });
            } else {
                self.left_out += 1;
            }
        }
        lines
    }

    /// The line that ends a window in which not all was logged, once it is over.
    pub fn end_window(&mut self, now_ns: u64) -> Option<Line> {
        if now_ns.saturating_sub(self.began_ns) < WINDOW_NS {
            return None;
        }
        let left_out = self.left_out;
        *self = Self {
            began_ns: now_ns,
            ..Self::default()
        };
        (left_out > 0).then(|| {
            let text = format!(
                "{left_out} more changes of verdict were not logged; `tracker events` has them"
            );
            Line {
                level: Level::WARN,
                text,
                event: None,
            }
        })
    }
}

fn level(event: &Event) -> Level {
    match (event.from, event.to) {
        (_, Verdict::Up) | (Verdict::Unknown, Verdict::Unknown) => Level::INFO,
        _ => Level::WARN,
    }
}

fn line(event: &Event) -> String {
    let mut text = String::new();
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
        EventKind::Admin => write!(text, ": admin state, {from} -> {to}"),
        EventKind::Verdict | EventKind::Removed => write!(text, ": {from} -> {to}, {cause}"),
    };
    if let Some(detail) = &event.detail {
        let plain: String = detail
            .chars()
            .map(|char| if char.is_control() { '?' } else { char })
            .collect();
        let _ = write!(text, " ({plain})");
    }
    if let Some(us) = event.detection_us {
        let _ = write!(text, ", found within {} ms", us.div_ceil(1000));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::events::tests::example;
    use super::*;

    fn of_service(name: &str) -> Event {
        Event {
            service: Some(name.into()),
            member: None,
            behind: None,
            ..example()
        }
    }

    fn told(lines: &[Line]) -> Vec<(Level, &str)> {
        lines
            .iter()
            .map(|line| (line.level, line.text.as_str()))
            .collect()
    }

    #[test]
    fn a_service_and_its_tracker_are_one_line() {
        let mut log = VerdictLog::default();
        let lines = log.lines(1, &[example(), of_service("fw-1")]);
        assert_eq!(
            told(&lines),
            [(
                Level::WARN,
                "fw-1: up -> down, no-reply, found within 312 ms"
            )]
        );
        // A tracker that changes alone is told of; what it quotes is plain.
        let alone = Event {
            detail: Some("a\u{1b}[2J".into()),
            detection_us: None,
            ..example()
        };
        let lines = log.lines(2, &[alone]);
        assert_eq!(
            told(&lines),
            [(
                Level::WARN,
                "fw-1/active 10.20.0.9: up -> down, no-reply (a?[2J)"
            )]
        );
    }

    #[test]
    fn a_flood_is_bounded_services_first_and_summed_up() {
        let mut log = VerdictLog::default();
        let mut events: Vec<_> = (0..1000).map(|_| example()).collect();
        events.push(of_service("fw-2"));
        let lines = log.lines(WINDOW_NS, &events);
        assert_eq!(lines.len(), LINES as usize);
        assert!(lines[0].text.starts_with("fw-2: "), "{lines:?}");
        assert_eq!(log.lines(WINDOW_NS + 1, &events), []);
        assert_eq!(log.end_window(2 * WINDOW_NS - 1), None);
        let end = log.end_window(2 * WINDOW_NS).expect("a line").text;
        assert!(end.starts_with("1952 more changes of verdict"), "{end}");
        assert_eq!(log.end_window(9 * WINDOW_NS), None);
        assert_eq!(log.lines(9 * WINDOW_NS, &events[..3]).len(), 3);
    }
}

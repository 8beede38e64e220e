//! Text for terminals: widths, cuts, ages, and what is not up first (pure).

use std::borrow::Cow;

use jiff::Timestamp;
use tracker_ebpf::verdict::{Cause, Verdict};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::api::types::{ServiceStatus, Status};
use crate::state::{
    admin::{Admin, AdminState},
    selection::Selected,
};

/// Stands for what was cut off.
const ELLIPSIS: char = '…';

/// The columns of a terminal that a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// A text in at most `most` columns, its end cut off.
pub fn cut_end(text: &str, most: usize) -> Cow<'_, str> {
    if width(text) <= most {
        return text.into();
    }
    match most {
        0 => "".into(),
        _ => format!("{}{ELLIPSIS}", head(text, most - 1)).into(),
    }
}

/// A text in at most `most` columns, cut in the middle: names often differ only at the end.
pub fn cut_middle(text: &str, most: usize) -> Cow<'_, str> {
    if width(text) <= most {
        return text.into();
    }
    let Some(kept) = most.checked_sub(1) else {
        return "".into();
    };
    let end: String = text.chars().rev().collect();
    let end: String = head(&end, kept / 2).chars().rev().collect();
    format!("{}{ELLIPSIS}{end}", head(text, kept - kept / 2)).into()
}

/// The start of a text, in at most `most` columns.
fn head(text: &str, most: usize) -> &str {
    let mut taken = 0;
    for (at, char) in text.char_indices() {
        taken += char.width().unwrap_or(0);
        if taken > most {
            return &text[..at];
        }
    }
    text
}

/// A text without what could steer a terminal: details tell of packets from the network.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
}

/// Microseconds, short.
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

/// How long ago a time is, in two units at most; a time to come is now.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (..10, _, _) => format!("{days}d{:02}h", hours % 24),
        _ => format!("{days}d"),
    }
}

/// A cause, with the verdict that it took the place of.
pub fn cause(cause: Cause, last: Option<Verdict>) -> String {
    match last {
        Some(last) => format!("{} (was {})", cause.as_str(), last.as_str()),
        None => cause.as_str().to_owned(),
    }
}

/// So many names of members in use are shown; the others are counted.
const SELECTED: usize = 3;

/// The members in use.
pub fn selected(selected: &Selected) -> String {
    let names = selected.names();
    match names.len().saturating_sub(SELECTED) {
        0 => selected.to_string(),
        more => format!("{} +{more}", names[..SELECTED].join(", ")),
    }
}

/// A number and what it counts.
pub fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// What an operator imposes, in a word or two; `None` if the verdict counts.
pub const fn imposed(admin: &Admin) -> Option<&'static str> {
    match admin.state {
        AdminState::Auto => None,
        AdminState::Maintenance => Some("maintenance"),
        AdminState::Up => Some("forced up"),
        AdminState::Down => Some("forced down"),
    }
}

/// A verdict, with what an operator imposes beside it.
pub fn verdict<'a>(verdict: Verdict, admins: impl IntoIterator<Item = &'a Admin>) -> String {
    let mut notes: Vec<_> = admins.into_iter().filter_map(imposed).collect();
    notes.dedup();
    match notes.is_empty() {
        true => verdict.as_str().to_owned(),
        false => format!("{} ({})", verdict.as_str(), notes.join(", ")),
    }
}

/// How much something needs attention, most first: what is down, what is unknown, what is up with something below that is not, and
/// what is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is down.
    Down,
    /// It is unknown.
    Unknown,
    /// It is up, and a member or tracker of it is not.
    Impaired,
    /// It is up.
    Up,
}

impl From<Verdict> for Rank {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Down => Self::Down,
            Verdict::Unknown => Self::Unknown,
            Verdict::Up => Self::Up,
        }
    }
}

/// How much attention a service needs, by the verdicts that count.
pub fn rank(service: &ServiceStatus) -> Rank {
    let is_up = |verdict| verdict == Verdict::Up;
    let mut members = service.members.iter();
    let are_up = members.all(|member| {
        is_up(member.effective) && member.trackers.iter().all(|tracker| is_up(tracker.verdict))
    });
    match Rank::from(service.effective) {
        Rank::Up if !are_up => Rank::Impaired,
        rank => rank,
    }
}

/// How many services, chains and trackers have which verdict, in one line.
pub fn summary(status: &Status) -> String {
    let verdicts = |verdicts: &mut dyn Iterator<Item = Verdict>| {
        let (mut down, mut unknown, mut up) = (0, 0, 0);
        for verdict in verdicts {
            *match verdict {
                Verdict::Down => &mut down,
                Verdict::Unknown => &mut unknown,
                Verdict::Up => &mut up,
            } += 1;
        }
        let parts = [(down, "down"), (unknown, "unknown"), (up, "up")];
        let parts = parts.iter().filter(|(number, _)| *number > 0);
        let parts = parts.map(|(number, what)| format!("{number} {what}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let services = &status.services;
    let mut text = count(services.len(), "service");
    if !services.is_empty() {
        text = format!(
            "{text}: {}",
            verdicts(&mut services.iter().map(|service| service.effective))
        );
    }
    let members = services.iter().flat_map(|service| &service.members);
    let admins = services.iter().map(|service| &service.admin);
    let admins = admins.chain(members.clone().map(|member| &member.admin));
    let (mut maintained, mut forced) = (0, 0);
    for admin in admins.filter(|admin| !admin.is_auto()) {
        *(if admin.is_maintenance() {
            &mut maintained
        } else {
            &mut forced
        }) += 1;
    }
    for (number, what) in [(maintained, "in maintenance"), (forced, "forced")] {
        if number > 0 {
            text = format!("{text}; {number} {what}");
        }
    }
    let chains = &status.chains;
    if !chains.is_empty() {
        let of = verdicts(&mut chains.iter().map(|chain| chain.verdict));
        text = format!("{text}; {}: {of}", count(chains.len(), "chain"));
    }
    let trackers: usize = members.map(|member| member.trackers.len()).sum();
    if trackers > 0 {
        text = format!("{text}; {}", count(trackers, "tracker"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::tests::example;

    #[test]
    fn many_members_in_use_are_counted() {
        let of = |count: usize| {
            let names = (1..=count).map(|number| format!("fw-{number}").into());
            selected(&Selected::Several(names.collect()))
        };
        assert_eq!(selected(&Selected::One("active".into())), "active");
        assert_eq!((of(0), of(2)), ("none".to_owned(), "fw-1, fw-2".to_owned()));
        assert_eq!(of(3), "fw-1, fw-2, fw-3");
        assert_eq!(of(50), "fw-1, fw-2, fw-3 +47");
    }

    #[test]
    fn what_is_cut_has_an_ellipsis_and_the_width() {
        assert_eq!(cut_end("no-reply", 8), "no-reply");
        assert_eq!(cut_end("no-reply", 5), "no-r…");
        assert_eq!(cut_end("no-reply", 0), "");
        assert_eq!(cut_middle("customer-a-firewall-1", 9), "cust…ll-1");
        assert_eq!(cut_middle("customer-a-firewall-1", 10), "custo…ll-1");
        assert_eq!(cut_middle("ab", 1), "…");
        // A wide character takes two columns, and is not cut in two.
        for most in 0..12 {
            for cut in [
                cut_end("防火墙-防火墙", most),
                cut_middle("防火墙-防火墙", most),
            ] {
                assert!(width(&cut) <= most, "{cut} in {most}");
            }
        }
    }

    #[test]
    fn ages_have_two_units_at_most() {
        let ago = |seconds: i64| {
            let since = Timestamp::from_second(1_000_000).unwrap();
            age(since, Timestamp::from_second(1_000_000 + seconds).unwrap())
        };
        let texts = [-5, 59, 192, 14_820, 90_000, 864_000].map(ago);
        assert_eq!(texts, ["0s", "59s", "3m12s", "4h07m", "1d01h", "10d"]);
    }

    #[test]
    fn a_pair_with_a_failed_member_comes_before_what_is_whole() {
        let mut status = example();
        let service = &mut status.services[0];
        assert_eq!(rank(service), Rank::Up);
        service.members[0].trackers[0].verdict = Verdict::Down;
        assert_eq!(rank(service), Rank::Impaired);
        service.members[0].trackers[0].verdict = Verdict::Up;
        service.members[0].effective = Verdict::Down;
        assert_eq!(rank(service), Rank::Impaired);
        service.effective = Verdict::Down;
        assert_eq!(rank(service), Rank::Down);
        assert!(
            Rank::Down < Rank::Unknown
                && Rank::Unknown < Rank::Impaired
                && Rank::Impaired < Rank::Up
        );
    }

    #[test]
    fn the_summary_counts_what_counts() {
        let mut status = example();
        assert_eq!(
            summary(&status),
            "1 service: 1 up; 1 chain: 1 up; 1 tracker"
        );
        status.services.push(status.services[0].clone());
        status.services[1].effective = Verdict::Down;
        status.services[1].admin.state = AdminState::Down;
        status.services[0].members[0].admin.state = AdminState::Maintenance;
        let text =
            "2 services: 1 down, 1 up; 1 in maintenance; 1 forced; 1 chain: 1 up; 2 trackers";
        assert_eq!(summary(&status), text);
        (status.services, status.chains) = (vec![], vec![]);
        assert_eq!(summary(&status), "0 services");
    }
}

//! What is valid in a configuration and may not be what its author wants (pure).

use std::{collections::HashMap, time::Duration};

use crate::config::{Config, Expect, Flow, Probe, Service};
use crate::detector::flows::{Ports, Share};

/// So many services are named by a remark; the others are counted.
const NAMED: usize = 10;

/// One line each. They are no errors: nothing depends on them.
pub fn remarks(config: &Config) -> Vec<String> {
    let only_icmp = |service: &&Service| {
        let mut trackers = service.members.iter().flat_map(|member| &member.trackers);
        trackers.all(|tracker| tracker.probe == Probe::Icmp && tracker.expect == Expect::Reply)
    };
    let names = config.services.iter().filter(only_icmp);
    let names: Vec<&str> = names.map(|service| service.name.as_str()).collect();
    let mut remarks = Vec::new();
    if !names.is_empty() {
        let plural = if names.len() == 1 { "" } else { "s" };
        let more = match names.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        remarks.push(format!(
            "only ICMP watches service{plural} {}{more}: what stops TCP or UDP alone is not seen; add a tracker with another probe",
            names[..names.len().min(NAMED)].join(", ")
        ));
    }
    remarks.extend(soon_again(config));
    let unnamed = config.unnamed_services();
    remarks.extend(unnamed.iter().take(NAMED).map(|(action, service)| {
        format!(
            "action {action}: no [[service]] is called {service:?}; it does nothing until the API adds one, or correct the name"
        )
    }));
    if let Some(more) = unnamed.len().checked_sub(NAMED + 1) {
        let more = more + 1;
        remarks.push(format!(
            "actions name {more} more services that the file does not have"
        ));
    }
    remarks
}

/// For how long a firewall may remember a flow that it condemned.
const FLOW_MEMORY: Duration = Duration::from_secs(120);

/// Trackers whose rotating flows return before a firewall has forgotten them.
fn soon_again(config: &Config) -> Option<String> {
    let members = config.services.iter().flat_map(|service| {
        let members = service.members.iter();
        members.map(move |member| (service.name.as_str(), member))
    });
    let trackers = members.flat_map(|(name, member)| {
        let trackers = member.trackers.iter();
        trackers.map(move |tracker| (name, tracker))
    });
    let mut shares = HashMap::new();
    for (_, tracker) in trackers
        .clone()
        .filter(|(_, tracker)| tracker.probe == Probe::Tcp)
    {
        *shares
            .entry((tracker.behind, tracker.port))
            .or_insert(0usize) += 1;
    }
    let (ports, identifiers) = (Ports::default(), Ports::identifiers());
    let rest = |tracker: &crate::config::Tracker| {
        let sharing = shares.get(&(tracker.behind, tracker.port));
        let mask = match (tracker.probe, sharing) {
            (Probe::Tcp, Some(sharing)) => sharing.next_power_of_two() as u16 - 1,
            _ => 0,
        };
        let share = Share { class: 0, mask };
        let count = match tracker.probe {
            Probe::Icmp => identifiers.count(share),
            Probe::Udp | Probe::Tcp => ports.count(share),
        };
        tracker.interval.saturating_mul(count)
    };
    let mut soon: Vec<(&str, Duration)> = trackers
        .filter(|(_, tracker)| tracker.flow == Flow::Rotate)
        .map(|(name, tracker)| (name, rest(tracker)))
        .filter(|(_, rest)| *rest < FLOW_MEMORY)
        .collect();
    soon.dedup_by_key(|(name, _)| *name);
    let (first, rest) = soon.iter().min_by_key(|(_, rest)| *rest)?;
    let more = match soon.len() - 1 {
        0 => String::new(),
        more => format!(", and so do those of {more} more"),
    };
    Some(format!(
        "rotating flows of service {first} return after {} s{more}, when a firewall may still remember them; give it a \
         longer interval, or fewer tcp trackers of one port of one address",
        rest.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    #[test]
    fn flows_that_return_soon_are_named() {
        let of = |lines: &str, count: usize| {
            let each = (0..count).map(|number| {
                format!(
                    "[[service]]\nname = \"fw-{number}\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n\
                     port = 443\nflow = \"rotate\"\n{lines}\n"
                )
            });
            let text: String = each.collect();
            remarks(&config::parse(&text, Path::new("test.toml")).unwrap())
        };
        let udp = "probe = \"udp\"\nprotocol = \"echo\"\ntimeout = \"1ms\"\ninterval = ";
        assert_eq!(of(&format!("{udp}\"4ms\""), 1), [""; 0]);
        let found = of(&format!("{udp}\"3ms\""), 1);
        assert!(
            found[0].contains("service fw-0 return after 108 s, when"),
            "{found:?}"
        );
        let tcp = "probe = \"tcp\"\ninterval = \"100ms\"";
        assert_eq!(of(tcp, 16), [""; 0]);
        let found = of(tcp, 17);
        assert!(
            found[0].contains("return after 113 s, and so do those of 16 more"),
            "{found:?}"
        );
    }

    #[test]
    fn services_that_only_icmp_watches_are_named() {
        let service = |name: &str, lines: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n{lines}\n"
            )
        };
        let of = |text: &str| remarks(&config::parse(text, Path::new("test.toml")).unwrap());
        let tcp = service("tcp", "probe = \"tcp\"\nport = 443");
        assert_eq!(of(&tcp), [""; 0]);
        let found = of(&format!("{tcp}{}", service("fw-1", "")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("only ICMP watches service fw-1: "),
            "{found:?}"
        );
        let many: String = (0..13)
            .map(|number| service(&format!("fw-{number}"), ""))
            .collect();
        let found = of(&many);
        assert!(
            found[0].contains("services fw-0, ") && found[0].contains("fw-9 and 3 more: "),
            "{found:?}"
        );
    }
}

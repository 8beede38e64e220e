//! What is valid in a configuration and may not be what its author wants (pure).

use super::{Config, Expect, Probe, Service};

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
        let what = match names.len() {
            1 => "service",
            _ => "services",
        };
        let more = match names.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        remarks.push(format!(
            "only ICMP watches {what} {}{more}: what stops TCP or UDP alone is not seen; add a tracker with another probe",
            names[..names.len().min(NAMED)].join(", ")
        ));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

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

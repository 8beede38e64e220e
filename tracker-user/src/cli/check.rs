//! What `tracker check` prints: what a valid configuration leads to, and what is wrong with another one.

use std::{collections::BTreeMap, fmt::Write as _};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::config::{Config, ConfigError};

/// More interfaces are counted and not named.
const NAMED: usize = 10;

/// Memory of a daemon without trackers, in bytes. These three are measured by `cargo xtask bench`, and rounded up.
const MEMORY: usize = 11_000_000;
/// Memory of each tracker: in the daemon, and in the kernel's maps.
const MEMORY_EACH: usize = 1_700;
/// Memory of each place for a tracker that may be added.
const MEMORY_ROOM: usize = 500;

/// What the daemon will do, in a few lines however large the configuration is.
pub fn plan(config: &Config) -> Vec<String> {
    let members = || config.services.iter().flat_map(|service| &service.members);
    if members().next().is_none() {
        return Vec::new();
    }
    let mut by: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for member in members() {
        *by.entry(member.interface.as_deref()).or_default() += 1;
    }
    let routed = by.remove(&None).unwrap_or_default();
    let count = members().count();
    let plural = if count == 1 { "" } else { "s" };
    let mut ways: Vec<String> = by
        .iter()
        .take(NAMED)
        .map(|(name, count)| match (name, by.len()) {
            (Some(name), 1) if routed == 0 => format!("all out of {name}"),
            (Some(name), _) => format!("{count} out of {name}"),
            (None, _) => String::new(),
        })
        .collect();
    if by.len() > NAMED {
        let rest: usize = by.values().skip(NAMED).sum();
        ways.push(format!(
            "{rest} out of {} more interfaces",
            by.len() - NAMED
        ));
    }
    if routed > 0 {
        ways.push(format!("{routed} by the route to the endpoint"));
    }
    let trackers = members().flat_map(|member| &member.trackers);
    let rate: f64 = trackers
        .map(|tracker| tracker.interval.as_secs_f64().recip())
        .sum();
    let room = config.hub.room as usize;
    let memory = MEMORY + MEMORY_EACH * config.tracker_count() + MEMORY_ROOM * room;
    vec![
        format!("{count} member{plural}: {}", ways.join(", ")),
        format!(
            "{} probes a second, about {} MB of memory",
            if rate < 10.0 {
                format!("{rate:.1}")
            } else {
                format!("{rate:.0}")
            },
            memory.div_ceil(1_000_000)
        ),
    ]
}

/// Everything that is wrong: a line of the form FILE:LINE:COLUMN: for each problem, as compilers have it, so that editors find
/// the place; and below it the line of the file, with the place underlined.
pub fn errors(error: &ConfigError, is_coloured: bool) -> String {
    let renderer = match is_coloured {
        true => Renderer::styled(),
        false => Renderer::plain(),
    };
    let mut text = String::new();
    for problem in error.problems() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", problem.located());
        let (Some(line), Some(excerpt)) = (problem.line(), problem.excerpt()) else {
            continue;
        };
        if excerpt.text.trim().is_empty() {
            continue;
        }
        // Only the line, and not the file: the renderer looks through all that it is given.
        let snippet = Snippet::source(excerpt.text.as_str())
            .line_start(line)
            .annotation(AnnotationKind::Primary.span(excerpt.marked.clone()));
        let shown = renderer.render(&[Group::with_level(Level::ERROR).element(snippet)]);
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config, growth};

    fn services(count: usize, lines: &str) -> String {
        (0..count)
            .map(|number| {
                format!(
                    "[[service]]\nname = \"fw-{number}\"\nendpoint = \"10.9.0.2\"\ninterface = \"eth{}\"\n\
                     behind = [\"10.20.0.9\"]\n{lines}\n",
                    number % 12
                )
            })
            .collect()
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn the_plan_says_how_much_of_what() {
        assert_eq!(plan(&parse("").expect("an empty file")), [""; 0]);
        let one = plan(&parse(&services(1, "interval = \"250ms\"")).expect("one service"));
        assert_eq!(
            one,
            [
                "1 member: all out of eth0",
                "4.0 probes a second, about 12 MB of memory"
            ]
        );
        let routed =
            "[[service]]\nname = \"r\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n";
        let text = format!("{}{routed}", services(13, "interval = \"10ms\""));
        let many = plan(&parse(&text).expect("14 services"));
        assert!(
            many[0].starts_with("14 members: 2 out of eth0, 1 out of eth1, "),
            "{many:?}"
        );
        assert!(
            many[0].ends_with("2 out of 2 more interfaces, 1 by the route to the endpoint"),
            "{many:?}"
        );
        assert!(many[1].starts_with("1301 probes a second"), "{many:?}");
    }

    #[test]
    fn what_is_wrong_is_underlined() {
        let text = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n\
                    interfce = \"eth1\"\n  interval = \"0s\"\n";
        let error = parse(text).expect_err("two problems");
        let shown = errors(&error, false);
        let lines: Vec<_> = shown.lines().collect();
        let is = |line: &str, begin: &str| {
            let at = lines.iter().position(|found| found.starts_with(line));
            let at = at.unwrap_or_else(|| panic!("{line}: {shown}"));
            assert!(
                lines[at + 1..]
                    .iter()
                    .take(3)
                    .any(|found| found.trim_end() == begin),
                "{begin:?}: {shown}"
            );
        };
        is("test.toml:5:1: unknown key `interfce`", "  | ^^^^^^^^");
        is("test.toml:6:14: interval = \"0s\"", "  |              ^^^^");
        assert!(!shown.contains('\u{1b}'));
        assert!(errors(&error, true).contains('\u{1b}'));
    }

    /// A file of 100,000 services is to be checked in a second; only the growth can be asserted.
    #[test]
    fn a_large_file_takes_no_more_for_each_service() {
        growth::assert_linear("check", 2_000, |count| {
            let text = services(count, "");
            growth::processor_time(|| plan(&parse(&text).expect("a good file")))
        });
        growth::assert_linear("errors shown", 1_000, |count| {
            let text = services(count, "fall = 0");
            growth::processor_time(|| errors(&parse(&text).expect_err("problems"), false))
        });
    }
}

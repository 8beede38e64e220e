//! `tracker history`: as text, and as a picture.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use jiff::Timestamp;

use super::table;
use crate::{
    api::history::{HistoryPoint, MemberHistory, ServiceHistory},
    config::{Config, keys},
    host::history::{Tier, reach},
};

/// Most lines of events in a text.
const EVENT_LINES: usize = 5;
/// Most lines of all members' tables in a text, but for their heads.
const LINES: usize = 14;
/// Width of a picture, and of what is drawn in it.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const PLOT_WIDTH: f64 = WIDTH - LEFT - 20.0;
/// Height of a member's part of a picture, and of what is drawn in it.
const PART: f64 = 210.0;
const TOP: f64 = 50.0;
const PLOT_HEIGHT: f64 = 120.0;
/// Most bars of a member.
const BARS: usize = 435;
/// Most marks of events.
const MARKS: usize = 500;

/// Steps of a member, put together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bin {
    /// Whether there is any step in it.
    is_known: bool,
    time: i64,
    sent: u64,
    lost: u64,
    /// Shortest and longest round-trip time, and the mean with its weight.
    rtt: Option<(u64, u64, f64, f64)>,
    /// Greatest 99th percentile of the steps, below which at least 99 of 100 replies of all of them are.
    p99: Option<u64>,
}

impl Bin {
    fn add(&mut self, point: &HistoryPoint) {
        self.sent += point.sent();
        self.lost += point.lost();
        self.p99 = self.p99.max(point.rtt_p99_us());
        let Some((least, mean, most)) = point.rtt_us() else {
            return;
        };
        let weight = point.sent().saturating_sub(point.lost()).max(1) as f64;
        let (min, max, sum, weights) = self.rtt.get_or_insert((least, most, 0.0, 0.0));
        (*min, *max) = ((*min).min(least), (*max).max(most));
        (*sum, *weights) = (*sum + mean as f64 * weight, *weights + weight);
    }

    /// Part of the probes that were lost. A loss is found after the probe's timeout, so a step may have more than it sent.
    fn loss(&self) -> f64 {
        match self.lost {
            0 => 0.0,
            lost => (lost as f64 / self.sent.max(lost) as f64).min(1.0),
        }
    }

    fn mean(&self) -> Option<f64> {
        self.rtt.map(|(_, _, sum, weights)| sum / weights)
    }
}

/// The steps of a member, put together into `most` at most, and the seconds of each.
fn bins(points: &[HistoryPoint], step_s: i64, most: usize) -> (i64, Vec<Bin>) {
    let times = || points.iter().map(HistoryPoint::time);
    let (Some(first), Some(last)) = (times().min(), times().max()) else {
        return (step_s, Vec::new());
    };
    let steps = (last - first) / step_s.max(1) + 1;
    let width = step_s.max(1) * (steps as u64).div_ceil(most.max(1) as u64) as i64;
    let mut bins = vec![Bin::default(); most.max(1)];
    for point in points {
        if let Some(bin) = bins.get_mut(((point.time() - first) / width) as usize) {
            bin.add(point);
            bin.is_known = true;
            bin.time = first + (point.time() - first) / width * width;
        }
    }
    bins.retain(|bin| bin.is_known);
    (width, bins)
}

fn time(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MIN);
    time.to_string()
}

fn rtt(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0}us"),
        us if us < 100_000.0 => format!("{:.2}ms", us / 1_000.0),
        us => format!("{:.0}ms", us / 1_000.0),
    }
}

/// A history as people read it; ends in a newline.
pub fn text(history: &ServiceHistory) -> String {
    let mut text = String::new();
    let events = &history.transitions;
    let left_out = events.len().saturating_sub(EVENT_LINES);
    // Writing to a String does not fail.
    if left_out > 0 {
        let _ = writeln!(text, "{left_out} earlier events; --json prints all");
    }
    for event in &events[left_out..] {
        let _ = writeln!(text, "{}", table::event(event));
    }
    if events.is_empty() {
        let _ = writeln!(text, "no events since {:.0}", history.since);
    }
    let lines = LINES / history.members.len().max(1);
    for member in &history.members {
        let (width, bins) = bins(&member.points, history.step_s, lines);
        let _ = writeln!(
            text,
            "\n{}/{} {}, {width} s a line",
            history.service, member.member, member.endpoint
        );
        let _ = writeln!(
            text,
            "{:<20} {:>7} {:>7} {:>6} {:>8} {:>8} {:>8} {:>8}",
            "TIME", "SENT", "LOST", "LOSS", "RTT-MIN", "RTT-MEAN", "RTT-P99", "RTT-MAX"
        );
        for bin in bins {
            let none = || "-".to_owned();
            let (min, max) = bin.rtt.map_or_else(
                || (none(), none()),
                |(min, max, ..)| (rtt(min as f64), rtt(max as f64)),
            );
            let _ = writeln!(
                text,
                "{:<20} {:>7} {:>7} {:>5.1}% {:>8} {:>8} {:>8} {:>8}",
                time(bin.time),
                bin.sent,
                bin.lost,
                bin.loss() * 100.0,
                min,
                bin.mean().map_or_else(none, rtt),
                bin.p99.map_or_else(none, |us| rtt(us as f64)),
                max
            );
        }
    }
    if history.members.is_empty() {
        let _ = writeln!(
            text,
            "\nno loss and no round-trip times since {:.0}",
            history.since
        );
    }
    text
}

/// A text in a picture.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // What XML 1.0 does not allow.
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(' ')
            }
            char => escaped.push(char),
        }
    }
    escaped
}

/// A history as a picture (SVG 1.1) that refers to nothing outside: for each member the lost part as bars, and the shortest, mean and
/// longest round-trip time as a band with a line; events as marks.
pub fn svg(history: &ServiceHistory) -> String {
    let members = history.members.len();
    let height = TOP + PART * members.max(1) as f64;
    let name = escaped(&history.service);
    let points = || {
        history
            .members
            .iter()
            .flat_map(|member| &member.points)
            .map(HistoryPoint::time)
    };
    let first = points().min().unwrap_or(history.since.as_second());
    let last = points()
        .max()
        .map_or(first + 1, |last| last + history.step_s);
    let span = (last - first).max(1) as f64;
    let x = |time: f64| LEFT + (time - first as f64) / span * PLOT_WIDTH;
    let lost: u64 = history
        .members
        .iter()
        .flat_map(|member| &member.points)
        .map(HistoryPoint::lost)
        .sum();
    let mut svg = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-labelledby=\"title desc\">\n\
         <title id=\"title\">History of {name}</title>\n\
         <desc id=\"desc\">Loss and round-trip times of {members} members from {} to {}, {} s a step: {lost} probes lost, {} events.</desc>\n\
         <style>text{{font:12px sans-serif;fill:#222}}.h{{font-size:15px;font-weight:bold}}.lost{{fill:#c62828}}.band{{fill:#90caf9}}\
         .mean{{fill:none;stroke:#0d47a1;stroke-width:1.5}}.axis{{stroke:#888}}.event{{stroke:#6a1b9a;stroke-dasharray:3 2}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text class=\"h\" x=\"{LEFT}\" y=\"24\">{name}</text>\n",
        time(first),
        time(last),
        history.step_s,
        history.transitions.len(),
    );
    if members == 0 {
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{TOP}\">no loss and no round-trip times in this time</text>"
        );
    }
    for (at, member) in history.members.iter().enumerate() {
        part(&mut svg, history, member, TOP + PART * at as f64, &x);
    }
    let marks = history.transitions.len().saturating_sub(MARKS);
    for event in &history.transitions[marks..] {
        let at = event.event.time.as_second() as f64;
        if at < first as f64 || at > last as f64 {
            continue;
        }
        let _ = writeln!(
            svg,
            "<line class=\"event\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{height}\"><title>{1}</title></line>",
            x(at),
            escaped(&table::event(event)),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A member's part of a picture, below `top`.
fn part(
    svg: &mut String,
    history: &ServiceHistory,
    member: &MemberHistory,
    top: f64,
    x: &impl Fn(f64) -> f64,
) {
    let (width, bins) = bins(&member.points, history.step_s, BARS);
    let longest = bins
        .iter()
        .filter_map(|bin| bin.rtt.map(|(_, max, ..)| max))
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let (plot, bottom) = (top + 30.0, top + 30.0 + PLOT_HEIGHT);
    let y = |us: f64| bottom - us / longest * PLOT_HEIGHT;
    let _ = write!(
        svg,
        "<g>\n<text x=\"{LEFT}\" y=\"{:.1}\">{} {}: lost part (red, to 100 %), round-trip times (blue, shortest to longest, line: mean)</text>\n\
         <line class=\"axis\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{plot:.1}\" y2=\"{bottom:.1}\"/>\n\
         <line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>\n\
         <text x=\"4\" y=\"{:.1}\">{}</text>\n<text x=\"4\" y=\"{bottom:.1}\">0</text>\n",
        top + 18.0,
        member.member,
        member.endpoint,
        LEFT + PLOT_WIDTH,
        plot + 10.0,
        rtt(longest),
    );
    // A band ends where there is no reply.
    for run in bins.split(|bin| bin.rtt.is_none()) {
        let center = |bin: &Bin| x(bin.time as f64 + width as f64 / 2.0);
        let point = |bin: &Bin, us: f64| format!("{:.1},{:.1}", center(bin), y(us));
        let upper = run
            .iter()
            .filter_map(|bin| Some(point(bin, bin.rtt?.1 as f64)));
        let lower = run
            .iter()
            .rev()
            .filter_map(|bin| Some(point(bin, bin.rtt?.0 as f64)));
        let band: Vec<_> = upper.chain(lower).collect();
        let mean: Vec<_> = run
            .iter()
            .filter_map(|bin| Some(point(bin, bin.mean()?)))
            .collect();
        if !band.is_empty() {
            let _ = writeln!(
                svg,
                "<polygon class=\"band\" points=\"{}\"/>",
                band.join(" ")
            );
            let _ = writeln!(
                svg,
                "<polyline class=\"mean\" points=\"{}\"/>",
                mean.join(" ")
            );
        }
    }
    for bin in bins.iter().filter(|bin| bin.lost > 0) {
        let (from, to) = (x(bin.time as f64), x((bin.time + width) as f64));
        let height = (bin.loss() * PLOT_HEIGHT).max(1.0);
        let _ = writeln!(
            svg,
            "<rect class=\"lost\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}: {} of {} lost</title></rect>",
            bottom - height,
            (to - from).max(1.0),
            time(bin.time),
            bin.lost,
            bin.sent,
        );
    }
    let ends = (
        bins.first().map(|bin| bin.time),
        bins.last().map(|bin| bin.time + width),
    );
    if let (Some(first), Some(last)) = ends {
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{0:.1}\">{1}</text>\n<text x=\"{2:.1}\" y=\"{0:.1}\" text-anchor=\"end\">{3}</text>",
            bottom + 16.0,
            time(first),
            LEFT + PLOT_WIDTH,
            time(last),
        );
    }
    svg.push_str("</g>\n");
}

/// Writes a picture to a file: a new one, or in the place of a regular one, but of nothing else.
///
/// # Errors
/// When the file cannot be written, or is no regular one.
pub fn save(path: &Path, svg: &str) -> io::Result<()> {
    // A FIFO is not waited for, and a link is not followed.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    file.set_len(0)?;
    file.write_all(svg.as_bytes())
}

/// What `tracker check` says of the history: how far it reaches back.
pub fn check(config: &Config) -> Vec<String> {
    let size = config.history_size;
    if size == 0 {
        return vec!["no history is kept".to_owned()];
    }
    let members = config
        .services
        .iter()
        .map(|service| service.members.len())
        .sum();
    let tiers = reach(size, members).map(|(tier, seconds)| {
        let is_short = if seconds < tier.kept_s() {
            " instead of "
        } else {
            ""
        };
        let wanted = if seconds < tier.kept_s() {
            span(tier.kept_s())
        } else {
            String::new()
        };
        format!("{tier} steps for {}{is_short}{wanted}", span(seconds))
    });
    vec![format!(
        "history in {}: {}",
        keys::size_text(size),
        tiers.join(", ")
    )]
}

fn span(seconds: i64) -> String {
    const UNITS: [(i64, &str); 3] = [(24 * 3_600, "days"), (3_600, "hours"), (60, "minutes")];
    let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * unit);
    match unit {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} seconds"),
    }
}

/// The steps that can be asked for.
pub fn steps() -> impl Iterator<Item = &'static str> {
    Tier::WORDS.iter().map(|(word, _)| *word)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use super::*;
    use crate::config;

    fn history(points: impl IntoIterator<Item = HistoryPoint>) -> ServiceHistory {
        ServiceHistory {
            service: "fw<1>&\"2\"".to_owned(),
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            step_s: 1,
            members: vec![MemberHistory {
                member: "active".to_owned(),
                endpoint: "10.0.0.2".parse().unwrap(),
                points: points.into_iter().collect(),
            }],
            transitions: Vec::new(),
        }
    }

    fn point(time: i64) -> HistoryPoint {
        let time = 1_767_225_600 + time;
        match time % 100 {
            50..60 => HistoryPoint(time, 10, 10, None, None, None, None),
            _ => HistoryPoint(time, 10, 0, Some(100), Some(200), None, Some(1_500)),
        }
    }

    #[test]
    fn steps_are_put_together_without_loss() {
        let points: Vec<_> = (0..3_600).map(point).collect();
        for most in [1, 7, 16, 435, 5_000] {
            let (width, bins) = bins(&points, 1, most);
            assert!(bins.len() <= most && width >= 1, "{most}");
            assert_eq!(bins.iter().map(|bin| bin.sent).sum::<u64>(), 36_000);
            assert_eq!(bins.iter().map(|bin| bin.lost).sum::<u64>(), 3_600);
            assert!(
                bins.iter()
                    .all(|bin| bin.mean().is_none_or(|mean| (mean - 200.0).abs() < 0.01))
            );
            assert!(bins.windows(2).all(|pair| pair[0].time < pair[1].time));
        }
        assert_eq!(bins(&[], 1, 5).1, []);
    }

    #[test]
    fn a_text_fits_a_terminal() {
        let text = text(&history((0..3_600).map(point)));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() <= 24, "{text}");
        assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.contains("10.9%") && text.contains("1.50ms") && text.contains("200us"),
            "{text}"
        );
    }

    #[test]
    fn a_picture_is_well_formed_and_refers_to_nothing() {
        for points in [0, 1, 2, 5_000] {
            let svg = svg(&history((0..points).map(point)));
            let opened = svg.matches('<').count() - svg.matches("</").count();
            let closed = svg.matches("</").count() + svg.matches("/>").count();
            assert_eq!(opened, closed, "{svg}");
            assert!(
                svg.contains(
                    "<title id=\"title\">History of fw&lt;1&gt;&amp;&quot;2&quot;</title>"
                )
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let outside = svg.matches("http").count();
            assert_eq!(outside, 1, "the namespace alone");
        }
        let svg = svg(&history((40..70).map(point)));
        assert_eq!(svg.matches("class=\"lost\"").count(), 10);
        assert_eq!(
            svg.matches("<polygon").count(),
            2,
            "the band is broken where nothing came back"
        );
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svg");
        save(&path, "a longer one").unwrap();
        save(&path, "short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        let link = dir.path().join("link.svg");
        symlink(&path, &link).unwrap();
        assert!(save(&link, "x").is_err());
        assert!(save(dir.path(), "x").is_err());
        let pipe = dir.path().join("pipe.svg");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(save(&pipe, "x").is_err());
        assert!(save(Path::new("/dev/null"), "x").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
    }

    #[test]
    fn check_says_how_far_it_reaches() {
        let of = |size: &str| {
            let text = format!(
                "[history]\nsize = \"{size}\"\n[[service]]\nname = \"a\"\nendpoint = \"10.0.0.2\"\nbehind = [\"10.1.0.2\"]\n"
            );
            check(&config::parse(&text, &PathBuf::from("x")).unwrap()).join("\n")
        };
        assert_eq!(of("0"), "no history is kept");
        assert_eq!(
            of("256MiB"),
            "history in 256MiB: 1s steps for 60 minutes, 1m steps for 7 days, 1h steps for 730 days"
        );
        assert!(
            of("1MiB").contains("1h steps for 730 days"),
            "{}",
            of("1MiB")
        );
    }
}

//! `cargo xtask demo`: the main job as a story, on real namespaces with a real nftables firewall.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tracker_lab::daemon::SOON;
use tracker_lab::{Config, Lab, Namespace, Tracker, interrupt, netns};

const INTERVAL: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_millis(100);
const FALL: u32 = 3;
/// Of bpftool's dump: the send program's part, and the counters of the receive program's.
const STATE_LINES: usize = 27;
/// What a busy machine may add to a detection before the demo calls it too slow.
const SLACK: Duration = Duration::from_secs(1);

const DRAWING: &str = r"    hub                        firewall (nftables)                    host
    10.9.0.1 ------ eth1 ------ 10.9.0.2       10.30.0.1 ------------- 10.20.0.9
                                the endpoint                           behind the service
";

/// What the demo prints as JSON; a figure that it did not get to is null.
#[derive(Debug, Serialize)]
struct Figures {
    ok: bool,
    up_ms: Option<u128>,
    down_ms: Option<u128>,
    recovered_ms: Option<u128>,
    endpoint_answered_while_down: bool,
    interval_ms: u128,
    fall: u32,
}

/// Runs the demo with the daemon at `tracker`, telling the story on standard output, or with `json` on standard error
/// and the figures, last, on standard output.
///
/// # Errors
/// When anything was not as it must be, or on Ctrl-C. Nothing is left behind then either.
pub fn run(json: bool, tracker: &Path) -> Result<()> {
    interrupt::catch()?;
    let story = Story { on_stderr: json };
    let mut figures = Figures {
        ok: false,
        up_ms: None,
        down_ms: None,
        recovered_ms: None,
        endpoint_answered_while_down: false,
        interval_ms: INTERVAL.as_millis(),
        fall: FALL,
    };
    let told = tell(&story, tracker, &mut figures);
    figures.ok = told.is_ok();
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    told.context("demo")
}

fn tell(story: &Story, binary: &Path, figures: &mut Figures) -> Result<()> {
    story.line("A firewall stops passing traffic, although its own address still answers.\n");

    story.chapter("Three machines, in network namespaces of their own");
    let lab = Lab::new()?;
    let service = lab.service();
    story.line(DRAWING);
    story.line("The hub has no route to the address behind the firewall:\n");
    let route = story.show(&lab.hub, "hub", &format!("ip route get {}", service.behind))?;
    ensure!(!route, "the hub must have no route to {}", service.behind);

    story.chapter("The daemon, with these lines of config");
    let config = service.toml("fw-1");
    story.quote(&config);
    let started = Instant::now();
    let config = Config::new(config)
        .mode("auto")
        .binary(binary)
        .defaults(format!(
            "interval = \"{}ms\"\ntimeout = \"{}ms\"\nfall = {FALL}",
            INTERVAL.as_millis(),
            TIMEOUT.as_millis()
        ));
    let mut tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let up = started.elapsed();
    figures.up_ms = Some(up.as_millis());
    // A few more replies, so that the table below has figures worth reading.
    tracker.wait_alive(SOON, "fw-1")?;
    story.line(format_args!(
        "Up {up:.0?} after its start. What the daemon says:\n"
    ));
    story.status(&tracker)?;
    let follower = tracker.follow()?;

    story.chapter("The firewall stops forwarding");
    let broken = Instant::now();
    story.command("firewall", "nft add rule inet firewall outage drop\n");
    service.break_forwarding()?;
    let (seen, event) =
        follower.wait_for(|event| event.is_of_service("fw-1") && event.to == "down")?;
    let down = seen - broken;
    figures.down_ms = Some(down.as_millis());
    ensure!(
        event.cause == "no-reply",
        "the cause must be no-reply, not {}",
        event.cause
    );
    let expected = INTERVAL * FALL + TIMEOUT;
    ensure!(
        down <= expected + SLACK,
        "down took {down:?}, expected at most {expected:?}"
    );
    story.line(format_args!(
        "Down {down:.0?} after the break (fall {FALL} x interval {INTERVAL:?} + timeout {TIMEOUT:?} = {expected:?} \
         at most).\nYet the firewall's own address answers, which is all that an ordinary probe would see:\n"
    ));
    figures.endpoint_answered_while_down = story.show(
        &lab.hub,
        "hub",
        &format!("ping -n -c 1 -w 2 {}", service.endpoint),
    )?;
    ensure!(
        figures.endpoint_answered_while_down,
        "the firewall's own address must still answer"
    );
    story.line("What the daemon says, as a table, as events, and in the kernel's own words:\n");
    story.status(&tracker)?;
    story.events(&tracker)?;
    story.kernel_state(&tracker)?;

    story.chapter("The firewall forwards again");
    let mended = Instant::now();
    story.command("firewall", "nft flush chain inet firewall outage\n");
    service.mend()?;
    let (seen, _) = follower.wait_for(|event| event.is_of_service("fw-1") && event.to == "up")?;
    let recovered = seen - mended;
    figures.recovered_ms = Some(recovered.as_millis());
    story.line(format_args!("Up again {recovered:.0?} later:\n"));
    story.status(&tracker)?;
    drop(follower);

    story.chapter("The daemon ends, and nothing stays behind");
    nothing_stays(&mut tracker)?;
    drop(tracker);
    let id = lab.id().to_owned();
    drop(lab);
    let namespaces = netns::namespaces_of(&id);
    ensure!(
        namespaces.is_empty(),
        "namespaces were left behind: {namespaces:?}"
    );
    story.line("No program, no pin, no interface, no namespace.\n");
    story.line(format_args!(
        "up {up:.0?} after the start | down {down:.0?} after the break | up {recovered:.0?} after the repair"
    ));
    Ok(())
}

fn nothing_stays(tracker: &mut Tracker) -> Result<()> {
    let status = tracker.terminate()?;
    ensure!(
        status.success(),
        "the daemon must end well after SIGTERM, not with {status}; its log:\n{}",
        tracker.log()
    );
    ensure!(
        !tracker.pins().exists(),
        "pins were left behind at {}",
        tracker.pins().display()
    );
    Ok(())
}

/// Where the text goes: standard output, unless that is for the JSON.
struct Story {
    on_stderr: bool,
}

impl Story {
    fn line(&self, line: impl Display) {
        if self.on_stderr {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    fn chapter(&self, title: &str) {
        self.line(format_args!("== {title}\n"));
    }

    fn command(&self, place: &str, command: &str) {
        self.line(format_args!("    {place} # {command}"));
    }

    fn quote(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(format_args!("    {line}"));
        }
        self.line("");
    }

    /// Runs a command line and shows it with what it prints; tells whether it succeeded.
    fn show(&self, place: &Namespace, role: &str, command: &str) -> Result<bool> {
        self.command(role, command);
        let mut words = command.split_whitespace();
        let output = place
            .command(words.next().unwrap_or_default())
            .args(words)
            .output()
            .with_context(|| format!("run `{command}` (is it installed?)"))?;
        self.quote(&String::from_utf8_lossy(
            &[output.stdout, output.stderr].concat(),
        ));
        Ok(output.status.success())
    }

    fn status(&self, tracker: &Tracker) -> Result<()> {
        let output = tracker.client(&["status"]).output()?;
        self.command("hub", "tracker status");
        self.quote(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    fn events(&self, tracker: &Tracker) -> Result<()> {
        let output = netns::check(&mut tracker.client(&["events"]))?;
        self.command("hub", "tracker events");
        self.quote(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// The state of the first tracker, as bpftool prints it: with the names of the fields.
    fn kernel_state(&self, tracker: &Tracker) -> Result<()> {
        let path = tracker.pins().join("maps/STATE");
        let mut command = Command::new("bpftool");
        command.args(["map", "dump", "pinned"]).arg(&path);
        let output = netns::check(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.command(
            "hub",
            &format!("{} | head -{STATE_LINES}", netns::shown(&command)),
        );
        let excerpt: Vec<_> = text.lines().take(STATE_LINES).collect();
        self.quote(&excerpt.join("\n"));
        Ok(())
    }
}

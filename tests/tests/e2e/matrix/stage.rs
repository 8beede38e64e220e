//! One row of the matrix, played: a lab of its own, up, struck, judged, mended, up again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tracker_lab::clock::SteppedClock;
use tracker_lab::daemon::{Follower, LATER, SOON, lines};
use tracker_lab::foreign::Foreign;
use tracker_lab::servers::{Reflector, TcpEcho, UdpEcho};
use tracker_lab::tun::{Carrier, Tunnel};
use tracker_lab::{Config, Event, Lab, Service, Status, Tracker};

/// The port of the UDP echo service, if a row has one.
pub const PORT: u16 = 7_007;
/// Replies that must come while nothing may change: longer than any row needs to find out.
const ALIVE: u64 = 40;
/// Replies that must come at the end.
const ALIVE_AGAIN: u64 = 5;

/// What a tracker's service must become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This verdict, for this cause; once it is mended, up again.
    Becomes(&'static str, &'static str),
    /// Up, the whole time, with no event at all.
    Stays,
    /// Up, the whole time, with no event at all; meanwhile this is the cause.
    StaysBut(&'static str),
}

impl Expected {
    /// Down, for a cause.
    pub const fn down(cause: &'static str) -> Self {
        Self::Becomes("down", cause)
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Becomes(verdict, cause) => write!(f, "{verdict}, {cause}"),
            Self::Stays => f.write_str("no transition"),
            Self::StaysBut(cause) => write!(f, "no transition, {cause}"),
        }
    }
}

/// A tracker of a row, over each address family that the row has.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// A word that tells it from the row's others.
    pub label: &'static str,
    /// TOML of its service.
    pub lines: &'static str,
    /// What it must become.
    pub expected: Expected,
    /// How the cause's `detail` must begin, over IPv4 and IPv6.
    pub detail: [&'static str; 2],
    /// A counter in its status that proves that the fault is really there.
    pub counter: Option<&'static str>,
}

/// A fault, what it is done to, and what must come of it.
#[derive(Clone)]
pub struct Row {
    /// What is wrong, to be read after "a service that", or as it stands.
    pub fault: &'static str,
    pub watched: Vec<Watched>,
    /// IPv6 too.
    pub is_dual: bool,
    /// The behind addresses, if they are not the host's own.
    pub behind: Option<[&'static str; 2]>,
    /// It disturbs other tests on the same machine.
    pub is_alone: bool,
    /// Replies that must come while it is broken.
    pub replies: u64,
    pub setup: fn(&Lab, &mut Props) -> Result<()>,
    pub strike: fn(&mut Stage) -> Result<()>,
    /// What else shows that the fault is really there, or is not another one.
    pub proof: fn(&mut Stage) -> Result<()>,
    pub mend: Option<fn(&mut Stage) -> Result<()>>,
}

impl Row {
    /// A row that does nothing yet.
    pub fn new(fault: &'static str) -> Self {
        Self {
            fault,
            watched: Vec::new(),
            is_dual: true,
            behind: None,
            is_alone: false,
            replies: ALIVE,
            setup: |_, _| Ok(()),
            strike: |_| Ok(()),
            proof: |_| Ok(()),
            mend: None,
        }
    }

    /// A tracker with these lines of TOML, and what it must become.
    pub fn watch(mut self, label: &'static str, lines: &'static str, expected: Expected) -> Self {
        self.watched.push(Watched {
            label,
            lines,
            expected,
            detail: [""; 2],
            counter: None,
        });
        self
    }

    /// An ICMP tracker, and what it must become.
    pub fn icmp(self, expected: Expected) -> Self {
        self.watch("icmp", "", expected)
    }

    /// A UDP tracker, and what it must become. The host gets its echo service by [`Props::listen`].
    pub fn udp(self, expected: Expected) -> Self {
        self.watch("udp", "probe = \"udp\"\nport = 7007", expected)
    }

    /// A TCP tracker, and what it must become; the host listens likewise.
    pub fn tcp(self, expected: Expected) -> Self {
        self.watch("tcp", "probe = \"tcp\"\nport = 443", expected)
    }

    /// A STAMP tracker, and what it must become; the host reflects likewise.
    pub fn stamp(self, expected: Expected) -> Self {
        self.watch("stamp", "probe = \"udp\"\nprotocol = \"stamp\"", expected)
    }

    fn last(mut self, change: impl FnOnce(&mut Watched)) -> Self {
        if let Some(watched) = self.watched.last_mut() {
            change(watched);
        }
        self
    }

    /// How the last tracker's `detail` must begin.
    pub fn detail(self, v4: &'static str, v6: &'static str) -> Self {
        self.last(|watched| watched.detail = [v4, v6])
    }

    /// A counter of the last tracker that the fault must make grow.
    pub fn counts(self, counter: &'static str) -> Self {
        self.last(|watched| watched.counter = Some(counter))
    }

    /// IPv4 alone.
    pub const fn v4(mut self) -> Self {
        self.is_dual = false;
        self
    }

    /// Other addresses behind.
    pub const fn behind(mut self, v4: &'static str, v6: &'static str) -> Self {
        self.behind = Some([v4, v6]);
        self
    }

    /// Not beside other rows.
    pub const fn alone(mut self) -> Self {
        self.is_alone = true;
        self
    }

    /// Asks for fewer replies while it is broken, because the interval is long.
    pub const fn alive(mut self, replies: u64) -> Self {
        self.replies = replies;
        self
    }

    /// What the lab has besides, before the daemon starts.
    pub const fn setup(mut self, setup: fn(&Lab, &mut Props) -> Result<()>) -> Self {
        self.setup = setup;
        self
    }

    /// How it breaks.
    pub const fn breaks(mut self, strike: fn(&mut Stage) -> Result<()>) -> Self {
        self.strike = strike;
        self
    }

    /// See [`Row::proof`].
    pub const fn proves(mut self, proof: fn(&mut Stage) -> Result<()>) -> Self {
        self.proof = proof;
        self
    }

    /// How it is mended.
    pub const fn mends(mut self, mend: fn(&mut Stage) -> Result<()>) -> Self {
        self.mend = Some(mend);
        self
    }
}

/// What a lab has besides the usual, and goes away with it.
#[derive(Default)]
pub struct Props {
    pub line: Option<Tunnel>,
    /// What answers on the host: UDP, TCP, STAMP.
    pub servers: Option<(UdpEcho, TcpEcho, Reflector)>,
    pub clock: Option<SteppedClock>,
    /// A program that puts the replies into a VLAN.
    pub tag: Option<Foreign>,
}

impl Props {
    /// The host answers UDP, TCP and STAMP.
    pub fn listen(&mut self, service: &Service) -> Result<()> {
        let behinds = service.behinds();
        self.servers = Some((
            UdpEcho::start(&service.host, &behinds, PORT)?,
            TcpEcho::start(&service.host, &behinds, 443)?,
            Reflector::start(&service.host, &behinds, 862)?,
        ));
        Ok(())
    }
}

/// A row's lab while the daemon runs.
pub struct Stage<'lab> {
    pub lab: &'lab Lab,
    pub tracker: Tracker<'lab>,
    pub props: Props,
    services: String,
    names: Vec<String>,
}

impl Stage<'_> {
    pub fn service(&self) -> &Service {
        self.lab.service()
    }

    /// Rules for what the firewall forwards, before its own.
    pub fn forbid(&self, rules: &str) -> Result<()> {
        let rules = rules.lines().map(|rule| {
            let rule = rule.trim();
            format!("add rule inet firewall outage {rule}\n")
        });
        self.service().firewall.nft(&rules.collect::<String>())
    }

    /// Other rules in their place.
    pub fn mend(&self) -> Result<()> {
        self.service().mend()
    }

    /// The line between firewall and host carries like this from now on.
    pub fn line(&self, carrier: Carrier) -> Result<()> {
        let line = self.props.line.as_ref();
        line.context("find the line")?.carry_by(carrier);
        Ok(())
    }

    /// The daemon's config, and something more.
    pub fn config(&self, more: &str) -> Config {
        config(&self.services, &self.props, more)
    }

    /// Every tracker of the row has got so many replies since now.
    pub fn wait_alive(&self, replies: u64) -> Result<()> {
        let received = |status: &Status, name: &str| status.count(name, "received");
        let before = self.tracker.status()?;
        self.tracker.wait_for("replies", LATER, |status| {
            self.names
                .iter()
                .all(|name| received(status, name) >= received(&before, name) + replies)
        })?;
        Ok(())
    }
}

fn config(services: &str, props: &Props, more: &str) -> Config {
    let config = Config::new(format!("{services}{more}"))
        .defaults("interval = \"50ms\"\ntimeout = \"250ms\"");
    match &props.clock {
        Some(clock) => clock.rules(config),
        None => config,
    }
}

/// What became of one tracker.
#[derive(Clone, Debug)]
pub struct Played {
    /// Its place in [`Row::watched`].
    pub watched: usize,
    pub is_v6: bool,
    pub got: String,
    /// From the break until the event.
    pub after: Option<Duration>,
    /// From the mend until the event.
    pub back: Option<Duration>,
    /// Why it is not as expected.
    pub trouble: Option<String>,
}

/// A tracker under watch.
struct Case<'row> {
    watched: &'row Watched,
    name: String,
    played: Played,
}

/// Plays a row. What goes wrong is in the result, of each tracker.
pub fn play(row: &Row) -> Vec<Played> {
    let families: &[bool] = match row.is_dual {
        true => &[false, true],
        false => &[false],
    };
    let mut cases: Vec<_> = row
        .watched
        .iter()
        .enumerate()
        .flat_map(|(at, watched)| {
            families.iter().map(move |&is_v6| Case {
                watched,
                name: name(watched.label, is_v6),
                played: Played {
                    watched: at,
                    is_v6,
                    got: "not found out".to_owned(),
                    after: None,
                    back: None,
                    trouble: None,
                },
            })
        })
        .collect();
    if let Err(error) = perform(row, &mut cases) {
        let said = format!("{error:#}");
        for case in &mut cases {
            case.played.trouble.get_or_insert_with(|| said.clone());
        }
    }
    cases.into_iter().map(|case| case.played).collect()
}

/// The service of a tracker, over one of the address families.
fn name(label: &str, is_v6: bool) -> String {
    let label = label.replace([',', ' '], "-");
    format!("{label}-{}", if is_v6 { 6 } else { 4 })
}

fn toml(row: &Row, service: &Service, case: &Case) -> Result<String> {
    let (own, endpoint): (IpAddr, IpAddr) = match case.played.is_v6 {
        false => (service.behind.into(), service.endpoint.into()),
        true => (service.behind6.into(), service.endpoint6.into()),
    };
    let behind = match row.behind {
        Some(behinds) => behinds[usize::from(case.played.is_v6)].parse()?,
        None => own,
    };
    let (name, interface, lines) = (&case.name, &service.interface, case.watched.lines);
    // What must not be blamed gets time on a busy machine, unless the row is about time.
    let patient = match case.watched.expected {
        Expected::Becomes(..) => "",
        _ if lines.contains("timeout") => "",
        _ => "timeout = \"1s\"",
    };
    Ok(format!(
        "[[service]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\ninterface = \"{interface}\"\n\
         behind = [\"{behind}\"]\n{lines}\n{patient}\n"
    ))
}

fn perform(row: &Row, cases: &mut [Case]) -> Result<()> {
    let lab = Lab::new()?;
    let mut props = Props::default();
    (row.setup)(&lab, &mut props).context("set the scene")?;
    let services = cases
        .iter()
        .map(|case| toml(row, lab.service(), case))
        .collect::<Result<String>>()?;
    let tracker = Tracker::start(&lab.hub, config(&services, &props, ""))?;
    let mut stage = Stage {
        lab: &lab,
        tracker,
        props,
        services,
        names: cases.iter().map(|case| case.name.clone()).collect(),
    };
    let before = stage.tracker.wait_for("all to be up", LATER, |status| {
        let mut cases = cases.iter();
        cases.all(|case| status.verdict(&case.name) == "up")
    })?;
    let first = stage.tracker.events()?.last().map_or(0, |event| event.seq) + 1;
    let mut told = Told {
        follower: stage.tracker.follow()?,
        first,
        seen: Vec::new(),
    };

    let struck = Instant::now();
    (row.strike)(&mut stage).context("break it")?;
    for case in cases.iter_mut() {
        if let Expected::Becomes(verdict, cause) = case.watched.expected {
            let when = told.wait(&case.name, verdict, SOON);
            case.played.after = when.ok().map(|when| when.saturating_duration_since(struck));
            case.found(&stage, verdict, cause);
        }
        if let Expected::StaysBut(cause) = case.watched.expected {
            case.found(&stage, "up", cause);
        }
    }
    let staying: Vec<_> = cases
        .iter()
        .filter(|case| !matches!(case.watched.expected, Expected::Becomes(..)))
        .map(|case| case.name.clone())
        .collect();
    if !staying.is_empty() {
        let now = stage.tracker.status()?;
        let received = |status: &Status, name: &str| status.count(name, "received");
        // Whether they get them tells `check`, below.
        let _ = stage
            .tracker
            .wait_for("replies all the time", SOON, |status| {
                let mut staying = staying.iter();
                staying.all(|name| received(status, name) >= received(&now, name) + row.replies)
            });
    }
    for case in cases.iter_mut() {
        case.check_counter(&stage, &before);
    }
    (row.proof)(&mut stage).context("show that the fault is there")?;

    if let Some(mend) = row.mend {
        let mended = Instant::now();
        mend(&mut stage).context("mend it")?;
        for case in cases.iter_mut() {
            if matches!(case.watched.expected, Expected::Becomes(..)) {
                // What never went down needs no time to come back.
                let patience = match case.played.after {
                    Some(_) => LATER,
                    None => Duration::ZERO,
                };
                let when = told.wait(&case.name, "up", patience);
                case.note(
                    when.as_ref()
                        .map(drop)
                        .map_err(|error| format!("{error:#}")),
                );
                case.played.back = when.ok().map(|when| when.saturating_duration_since(mended));
            }
        }
    }
    stage.wait_alive_again(row, cases)?;
    let mut events = stage.tracker.events()?;
    events.retain(|event| event.seq >= first);
    for case in cases {
        case.check_events(row, &events);
    }
    Ok(())
}

impl Stage<'_> {
    /// What is up at the end is so by replies, not by an old verdict.
    fn wait_alive_again(&self, row: &Row, cases: &[Case]) -> Result<()> {
        let is_mended = row.mend.is_some();
        let before = self.tracker.status()?;
        let replies = ALIVE_AGAIN.min(row.replies);
        // A tracker that expects silence gets none.
        let names: Vec<_> = cases
            .iter()
            .filter(|case| is_mended || !matches!(case.watched.expected, Expected::Becomes(..)))
            .filter(|case| !case.watched.lines.contains("silence"))
            .map(|case| &case.name)
            .collect();
        self.tracker
            .wait_for("all to get replies at the end", LATER, |status| {
                names.iter().all(|name| {
                    status.verdict(name) == "up"
                        && status.count(name, "received")
                            >= before.count(name, "received") + replies
                })
            })?;
        Ok(())
    }
}

impl Case<'_> {
    fn note(&mut self, result: Result<(), String>) {
        if let Err(trouble) = result {
            self.played.trouble.get_or_insert(trouble);
        }
    }

    fn behind<'status>(&self, status: &'status Status) -> &'status serde_json::Value {
        &status.service(&self.name)["members"][0]["trackers"][0]
    }

    /// Waits for what is expected, and notes what there is.
    fn found(&mut self, stage: &Stage, verdict: &str, cause: &str) {
        let detail = self.watched.detail[usize::from(self.played.is_v6)];
        let name = self.name.clone();
        let is_so = |status: &Status| {
            let shown = self.behind(status)["detail"].as_str().unwrap_or_default();
            (status.verdict(&name), status.cause(&name)) == (verdict, cause)
                && shown.starts_with(detail)
        };
        let what = format!("{name} to be {verdict}, {cause}");
        let is_told = self.played.after.is_some() || verdict == "up";
        // The cause may be another for a while after the event.
        let patience = if is_told { LATER } else { Duration::ZERO };
        let waited = stage.tracker.wait_for(&what, patience, is_so);
        let status = match &waited {
            Ok(status) => Ok(status.clone()),
            Err(_) => stage.tracker.status(),
        };
        if let Ok(status) = status {
            self.played.got = match self.watched.expected {
                Expected::StaysBut(_) if waited.is_ok() => self.watched.expected.to_string(),
                _ => format!("{}, {}", status.verdict(&name), status.cause(&name)),
            };
            if !detail.is_empty() {
                let shown = self.behind(&status)["detail"].as_str().unwrap_or_default();
                let short = shown.split(" from ").next().unwrap_or_default();
                self.played.got += &format!(": {short}");
            }
        }
        self.note(waited.map(drop).map_err(|error| format!("{error:#}")));
    }

    /// The fault shows in the counter that it must show in.
    fn check_counter(&mut self, stage: &Stage, before: &Status) {
        let Some(counter) = self.watched.counter else {
            return;
        };
        let count = |status: &Status| status.count(&self.name, counter);
        let what = format!("{} to count as {counter}", self.name);
        let waited = stage
            .tracker
            .wait_for(&what, SOON, |status| count(status) >= count(before) + 3);
        self.note(waited.map(drop).map_err(|error| format!("{error:#}")));
    }

    /// Nothing was told but what had to be.
    fn check_events(&mut self, row: &Row, events: &[Event]) {
        let own: Vec<_> = events
            .iter()
            .filter(|event| event.service.as_deref() == Some(&*self.name))
            .cloned()
            .collect();
        let Expected::Becomes(verdict, _) = self.watched.expected else {
            match own.first() {
                None if self.watched.expected == Expected::Stays => {
                    self.played.got = "no transition".to_owned();
                }
                None => {}
                Some(event) => {
                    self.played.got = format!("{}, {}", event.to, event.cause);
                    self.note(Err(format!("transitions:\n{}", lines(&own))));
                }
            }
            return;
        };
        let told: Vec<_> = own
            .iter()
            .filter(|event| event.is_of_service(&self.name))
            .map(|event| event.to.as_str())
            // On its way down it may be that the hub cannot send, before it knows why.
            .filter(|to| *to != "unknown" || verdict == "unknown")
            .collect();
        let right: &[&str] = match row.mend {
            Some(_) => &[verdict, "up"],
            None => &[verdict],
        };
        if told != right {
            self.note(Err(format!(
                "{told:?} instead of {right:?}:\n{}",
                lines(&own)
            )));
        }
    }
}

/// The services' own events, as they come.
struct Told {
    follower: Follower,
    /// The first after the daemon was ready; it tells older ones too.
    first: u64,
    seen: Vec<(Instant, Event)>,
}

impl Told {
    /// When a service got a verdict; each event is good for one answer.
    fn wait(&mut self, service: &str, verdict: &str, patience: Duration) -> Result<Instant> {
        let first = self.first;
        let is_it = |event: &Event| {
            event.seq >= first && event.is_of_service(service) && event.to == verdict
        };
        let deadline = Instant::now() + tracker_lab::pace::slow(patience);
        loop {
            if let Some(at) = self.seen.iter().position(|(_, event)| is_it(event)) {
                return Ok(self.seen.remove(at).0);
            }
            if Instant::now() > deadline {
                let seen: Vec<_> = self.seen.drain(..).map(|(_, event)| event).collect();
                bail!(
                    "waited in vain for {service} to be {verdict}; other events:\n{}",
                    lines(&seen)
                );
            }
            self.seen
                .extend(self.follower.next(Duration::from_secs(1))?);
        }
    }
}

/// Fails if what the service forwarded while it was broken is not as `does` says.
pub fn forwards(stage: &Stage, does: bool) -> Result<()> {
    let before = stage.service().forwarded()?;
    tracker_lab::pace::pause(Duration::from_millis(400));
    let after = stage.service().forwarded()?;
    ensure!(
        (after > before) == does,
        "the firewall has forwarded {before}, then {after} packets from the hub's side"
    );
    Ok(())
}

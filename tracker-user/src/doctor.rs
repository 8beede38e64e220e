//! `tracker doctor`: what stops, slows or falsifies probing on this host, tried and not guessed if trying disturbs nothing. What
//! stops the daemon is found by the functions that the daemon itself calls when it starts.

mod checks;

use std::collections::{BTreeSet, HashSet};

use aya::programs::loaded_programs;
use schemars::JsonSchema;
use serde::Serialize;
use tracker_ebpf::{
    abi::{self, Egress},
    verdict::Cause,
};

use crate::{
    config::{self, Config, ModeChoice},
    net::{
        ethtool,
        rtnetlink::{Followed, Netlink, NetlinkError},
    },
    plan::{
        member::{self, Ways},
        mode::{Mode, SendWay},
        observed::{Link, LinkType, Observed},
        steering,
    },
};

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// True if the daemon can run.
    pub ok: bool,
    /// The kernel's release.
    pub kernel: String,
    /// What the daemon needs, and what it can use.
    pub checks: Vec<Check>,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// The daemon runs, with less than it could have.
    Warn,
    /// The daemon does not start.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Check {
    /// What.
    pub name: String,
    /// True if `state` is `ok`.
    pub ok: bool,
    /// Whether the daemon can't run without it.
    pub required: bool,
    /// What was found, and what to do, in one line.
    pub detail: String,
    /// `fail` means that the daemon does not start, `warn` that it runs, with less than it could have.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl Check {
    fn new(
        name: impl Into<String>,
        state: State,
        found: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        let found = found.into();
        Self {
            name: name.into(),
            ok: state == State::Ok,
            required: state == State::Fail,
            detail: match &remedy {
                Some(remedy) => format!("{found}; {remedy}"),
                None => found.clone(),
            },
            state,
            found,
            remedy,
        }
    }

    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, State::Ok, found, None)
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, State::Warn, found, Some(remedy.into()))
    }

    /// What the daemon itself says when it does not start, which names what to do after a semicolon.
    fn fail(name: impl Into<String>, error: &str) -> Self {
        match error.split_once("; ") {
            Some((found, remedy)) => Self::new(name, State::Fail, found, Some(remedy.to_owned())),
            None => Self::new(name, State::Fail, error, None),
        }
    }
}

/// Which process looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A command, which tries what a daemon needs to start.
    Command,
    /// The daemon, which has given up what it needed to start, and has thereby shown that it had it.
    Daemon,
}

/// What an interface can do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How replies would be received; `None` where the interface does not exist.
    #[schemars(with = "Option<String>")]
    pub mode: Option<Mode>,
    /// How probes would be sent.
    #[schemars(with = "Option<String>")]
    pub send: Option<SendWay>,
    /// How others' tracker packets would be steered that arrive here; for uplinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub steer: Option<Mode>,
    /// Why.
    pub detail: String,
}

impl Interface {
    fn unusable(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            mode: None,
            send: None,
            steer: None,
            detail: detail.into(),
        }
    }
}

/// Looks at everything; with a config, at the interfaces that it names, else at all.
///
/// # Errors
/// If the kernel does not even list its interfaces.
pub async fn report(config: Option<&Config>, by: By) -> Result<Report, NetlinkError> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut netlink = Netlink::connect().await?;
    let mut checks = checks::of_host(config, by, &netlink);
    let interfaces = match config {
        Some(config) => named(config, &mut netlink).await,
        None => {
            let links = netlink.observed.links.values();
            links
                .filter(|link| !link.is_private())
                .map(|link| describe(link, &netlink.observed, ModeChoice::Auto))
                .collect()
        }
    };
    checks.extend(interfaces.iter().flat_map(checks::of_interface));
    Ok(Report {
        ok: checks.iter().all(|check| check.state != State::Fail),
        kernel: release.trim().to_owned(),
        checks,
        interfaces,
    })
}

async fn named(config: &Config, netlink: &mut Netlink) -> Vec<Interface> {
    let members: Vec<_> = config
        .services
        .iter()
        .flat_map(|service| &service.members)
        .collect();
    let routes = members
        .iter()
        .filter_map(|member| member::route_key(member));
    let followed = Followed {
        routes: routes.collect(),
        ..Default::default()
    };
    // What is not known in time is shown as missing.
    let _ = netlink.follow(followed).await;
    let observed = &netlink.observed;
    let (owners, ways) = (observed.owners(), Ways::at_start(config.hub.mode));
    let mut names = BTreeSet::new();
    let mut receiving: HashSet<u32> = HashSet::new();
    let mut interfaces = Vec::new();
    for member in members {
        let route = member::route_key(member).and_then(|key| observed.routes.get(&key));
        match (&member.interface, route) {
            (Some(name), _) => {
                names.insert(name.clone());
            }
            (None, Some(ifindex)) => {
                names.extend(observed.links.get(ifindex).map(|link| link.name.clone()));
            }
            (None, None) => interfaces.push(Interface::unusable(
                &format!("(of {})", member.endpoint),
                "no route leads to this endpoint; give the member an interface",
            )),
        }
        names.extend(member.returns.iter().cloned());
        // Where probes come back to the hub.
        let plan = member::plan(member, observed, &owners, ways);
        receiving.extend(&plan.receive);
        let receive = plan.receive.iter();
        names.extend(receive.filter_map(|ifindex| Some(observed.links.get(ifindex)?.name.clone())));
    }
    let of_members = names.clone();
    let uplinks = config
        .steering
        .as_ref()
        .map_or(&[][..], |steering| &steering.uplinks);
    names.extend(uplinks.iter().cloned());
    interfaces.extend(names.into_iter().map(|name| {
        let Some(link) = observed.by_name(&name) else {
            return Interface::unusable(&name, "does not exist; its trackers wait until it does");
        };
        let mut interface = match of_members.contains(&name) {
            true => describe(link, observed, config.hub.mode),
            false => Interface::unusable(&name, "packets to be steered arrive here"),
        };
        if uplinks.contains(&name) {
            let is_receiving = receiving.contains(&link.index);
            let (mode, why) = steer(link, is_receiving, config.hub.mode);
            interface.steer = Some(mode);
            if let (Some(why), false) = (why, of_members.contains(&name)) {
                interface.detail = format!("{}; {why}", interface.detail);
            }
        }
        interface
    }));
    interfaces
}

/// What `tracker check --here` says: for each member, how its probes would leave this host now, or why not. Reads
/// links, addresses, neighbours and routes, and changes nothing.
///
/// # Errors
/// Where the kernel does not tell.
pub async fn here(config: &Config) -> Result<Vec<String>, NetlinkError> {
    let mut netlink = Netlink::connect().await?;
    let members = config.services.iter().flat_map(|service| {
        let members = service.members.iter();
        members.map(move |member| (service.name.as_str(), member))
    });
    let followed = Followed {
        endpoints: members.clone().map(|(_, member)| member.endpoint).collect(),
        routes: members
            .clone()
            .filter_map(|(_, member)| member::route_key(member))
            .collect(),
    };
    netlink.follow(followed).await?;
    let (observed, ways) = (&netlink.observed, Ways::at_start(config.hub.mode));
    let owners = observed.owners();
    let lines = members.map(|(service, member)| {
        let plan = member::plan(member, observed, &owners, ways);
        let subject = format!("{service}/{}", member.name);
        let missing = |name: &&String| observed.by_name(name).is_none();
        let returns = member.returns.iter().find(missing);
        let sources = plan.probings.iter();
        let source = sources.clone().find_map(|probing| probing.as_ref().ok());
        let fault = sources.filter_map(|probing| probing.as_ref().err()).next();
        match (&plan.interface, source) {
            (Some((_, name)), Some(probing)) => {
                let source = probing.source;
                let more = match (&plan.path, fault, returns) {
                    // Whether the endpoint answers is seen only by asking it.
                    (Err(why), _, _) if why.cause != Cause::NextHopUnresolved => {
                        format!("; remark: {}: {}", why.cause.as_str(), why.detail)
                    }
                    (_, Some(why), _) => {
                        format!("; remark: {}: {}", why.cause.as_str(), why.detail)
                    }
                    (_, _, Some(name)) => {
                        format!("; remark: there is no interface {name} now, which `returns` names")
                    }
                    _ => String::new(),
                };
                format!(
                    "{subject}: by {name} to {}, from {source}{more}",
                    member.endpoint
                )
            }
            (_, _) => {
                let why = plan.path.as_ref().err().or(fault);
                let why = why.map_or_else(String::new, |why| {
                    format!("{}: {}", why.cause.as_str(), why.detail)
                });
                format!("{subject}: remark: no probe would leave now: {why}")
            }
        }
    });
    let mut lines: Vec<String> = lines.collect();
    let uplinks = config
        .steering
        .iter()
        .flat_map(|steering| &steering.uplinks);
    let missing = uplinks.filter(|name| observed.by_name(name).is_none());
    lines.extend(
        missing
            .map(|name| format!("uplink {name}: remark: there is no interface of that name now")),
    );
    Ok(lines)
}

fn describe(link: &Link, observed: &Observed, choice: ModeChoice) -> Interface {
    let foreign = link.xdp_program.filter(|id| !is_ours(*id));
    if let (ModeChoice::XdpNative | ModeChoice::XdpGeneric, Some(id)) = (choice, foreign) {
        return Interface::unusable(
            &link.name,
            format!(
                "XDP program {id} of somebody else is attached; remove it, or set hub.mode to auto or tc"
            ),
        );
    }
    let modes = match Mode::allowed(link, choice, ethtool::offloads) {
        Ok(modes) => modes,
        Err(why) => return Interface::unusable(&link.name, why),
    };
    if link.link_type == LinkType::Other {
        return Interface::unusable(&link.name, member::OTHER_HEADER);
    }
    let (mode, why) = match (choice, modes.not_native, foreign) {
        (ModeChoice::Tc, ..) => (Mode::Tc, "chosen by hub.mode".to_owned()),
        (ModeChoice::XdpNative, ..) => (Mode::XdpNative, "chosen by hub.mode".to_owned()),
        (ModeChoice::XdpGeneric, ..) => (Mode::XdpGeneric, "chosen by hub.mode".to_owned()),
        (ModeChoice::Auto, not_native, Some(id)) => {
            let reason = not_native.map(|why| format!("{why}; ")).unwrap_or_default();
            let why = format!("{reason}XDP program {id} of somebody else stays where it is");
            (Mode::Tc, why)
        }
        (ModeChoice::Auto, Some(why), None) => (Mode::Tc, why),
        (ModeChoice::Auto, None, None) => (
            Mode::XdpNative,
            "native XDP costs no offload here".to_owned(),
        ),
    };
    let (_, _, egress) = member::way_out(link, observed, Ways::at_start(choice));
    let how = match egress {
        Egress::XdpRedirect => "the device takes redirected frames",
        Egress::TcRedirect | Egress::None => "the device takes no redirected frames",
    };
    let state = if link.is_running {
        ""
    } else {
        "; it is down now"
    };
    Interface {
        name: link.name.clone(),
        mode: Some(mode),
        send: SendWay::of(egress),
        steer: None,
        detail: format!("{why}; {how}{state}"),
    }
}

/// How an uplink's packets would be steered: by TC, and by XDP if its place is free; and why `auto` does not take XDP.
fn steer(link: &Link, is_receiving: bool, choice: ModeChoice) -> (Mode, Option<String>) {
    if link.xdp_program.is_some_and(|id| !is_ours(id)) {
        return (Mode::Tc, None);
    }
    let not_native = (choice == ModeChoice::Auto)
        .then(|| Mode::why_not_native(link, ethtool::offloads))
        .flatten();
    match (steering::fast(link, is_receiving, choice), not_native) {
        (Some(mode), None) => (mode, None),
        (_, why) => (Mode::Tc, why),
    }
}

/// True for the programs of any instance.
fn is_ours(id: u32) -> bool {
    let ours = abi::program::XDP_ON_HUB.map(Some);
    loaded_programs()
        .flatten()
        .any(|program| program.id() == id && ours.contains(&program.name_as_str()))
}

/// The report for people.
pub fn table(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = format!("kernel {}\n", report.kernel);
    for check in &report.checks {
        let mark = match check.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark}  {}: {}", check.name, check.detail);
    }
    for interface in &report.interfaces {
        let mode = interface.mode.map_or("-", Mode::as_str);
        let send = interface.send.map_or("-", SendWay::as_str);
        let steer = interface
            .steer
            .map(|mode| format!(", steer {}", mode.as_str()));
        let _ = writeln!(
            text,
            "interface {}: receive {mode}, send {send}{} ({})",
            interface.name,
            steer.unwrap_or_default(),
            interface.detail
        );
    }
    let verdict = if report.ok {
        "the daemon can run here"
    } else {
        "the daemon can't run here"
    };
    text.push_str(verdict);
    text.push('\n');
    text
}

/// Reads the config that doctor is to look at.
///
/// # Errors
/// As [`config::load`].
pub fn config(path: Option<&std::path::Path>) -> Result<Option<Config>, config::ConfigError> {
    path.map(config::load).transpose()
}

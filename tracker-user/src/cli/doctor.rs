//! `tracker doctor`: what this kernel and these interfaces can do, tried and not guessed where trying
//! disturbs nothing.

use std::collections::{BTreeSet, HashSet};

use anyhow::Result;
use aya::{
    EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    programs::{Program, loaded_programs},
};
use serde::Serialize;
use tracker_ebpf::{
    abi::{self, Egress},
    probe,
    verdict::Cause,
};

use crate::{
    config::{self, Config, ModeChoice},
    datapath::{OBJECT, object, pins},
    host::preflight,
    net::{
        ethtool,
        rtnetlink::{Followed, Netlink},
    },
    plan::{
        member::{self, Ways},
        mode::{Mode, SendWay},
        observed::{Link, LinkType, Observed},
        steering,
    },
};

/// What was found.
#[derive(Debug, Serialize)]
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

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether the daemon can't run without it.
    pub required: bool,
    /// What was found, or what to do.
    pub detail: String,
}

/// What an interface can do.
#[derive(Debug, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How replies would be received; `None` where the interface does not exist.
    pub mode: Option<Mode>,
    /// How probes would be sent.
    pub send: Option<SendWay>,
    /// How others' tracker packets would be steered that arrive here; for uplinks.
    #[serde(skip_serializing_if = "Option::is_none")]
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
/// Where the kernel does not even list its interfaces.
pub async fn examine(config: Option<&Config>) -> Result<Report> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut netlink = Netlink::connect().await?;
    let checks = checks(config, netlink.has_xdp_features());
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
    Ok(Report {
        ok: checks.iter().all(|check| check.ok || !check.required),
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
pub async fn here(config: &Config) -> Result<Vec<String>> {
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
        let subject = format!("{service}/{}", member.role);
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

fn checks(config: Option<&Config>, has_features: bool) -> Vec<Check> {
    let version = preflight::linux_version();
    let at_least = |major, minor| version >= (major, minor);
    let required = |name, ok: bool, found: &str, remedy: &str| Check {
        name,
        ok,
        required: true,
        detail: if ok { found } else { remedy }.to_owned(),
    };
    let optional = |name, ok: bool, found: &str, without: &str| Check {
        required: false,
        ..required(name, ok, found, without)
    };
    let is_root = nix::unistd::geteuid().is_root();
    let default_bpffs = std::path::PathBuf::from("/sys/fs/bpf");
    let bpffs_path = config.map_or(&default_bpffs, |config| &config.hub.bpffs);
    let is_mounted = pins::is_mounted(bpffs_path);
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    let mut checks = vec![
        required("root", is_root, "running as root", "run this with sudo"),
        required(
            "live frames (Linux 5.18)",
            version >= preflight::LINUX_MIN,
            "this kernel is new enough",
            "boot Linux 5.18 or newer: probes are sent as live frames",
        ),
    ];
    if is_root {
        let loaded = try_programs();
        checks.push(Check {
            name: "programs load and run",
            ok: loaded.is_ok(),
            required: true,
            detail: match loaded {
                Ok(()) => "the verifier takes them all, and live frames run".to_owned(),
                Err(error) => format!("{error:#}"),
            },
        });
    }
    let path = bpffs_path.display();
    checks.push(optional(
        "BPF file system",
        is_mounted,
        &format!("mounted at {path}"),
        &format!("not mounted at {path}; the daemon mounts it"),
    ));
    checks.push(optional(
        "JIT compiler",
        jit.trim() != "0",
        "on",
        "off: programs are interpreted and slow; set net.core.bpf_jit_enable=1",
    ));
    checks.push(optional(
        "TCX (Linux 6.6)",
        at_least(6, 6),
        "TC programs attach beside others and are pinned",
        "clsact filters are used instead, which a killed daemon leaves until `tracker cleanup` or its next start",
    ));
    checks.push(optional(
        "xdp-features (Linux 6.3)",
        has_features,
        "the kernel tells which devices take redirected frames",
        "every device is sent to by TC redirect",
    ));
    let families = [("ipv4", "neighbours (IPv4)"), ("ipv6", "neighbours (IPv6)")];
    checks.extend(families.into_iter().filter_map(|(family, name)| {
        // Only the first network namespace shows the limit, which holds for all of them together.
        let limit = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
        let limit = std::fs::read_to_string(limit).ok()?.trim().parse().ok()?;
        neighbours(config?, family == "ipv4", limit).map(|(ok, detail)| Check {
            name,
            ok,
            required: false,
            detail,
        })
    }));
    checks
}

/// Whether the kernel's neighbour table has room for the endpoints of a family beside the hub's own neighbours; `None` without
/// such endpoints.
fn neighbours(config: &Config, is_ipv4: bool, limit: usize) -> Option<(bool, String)> {
    let members = config.services.iter().flat_map(|service| &service.members);
    let endpoints: HashSet<_> = members
        .map(|member| member.endpoint)
        .filter(|endpoint| endpoint.is_ipv4() == is_ipv4)
        .collect();
    let count = endpoints.len();
    let family = if is_ipv4 { "ipv4" } else { "ipv6" };
    let key = format!("net.{family}.neigh.default.gc_thresh3");
    let ok = count <= limit / 2;
    let detail = match ok {
        true => format!("{count} endpoints, of {limit} entries ({key})"),
        false => format!(
            "{count} endpoints take more than half of the {limit} entries of this host; set {key} to {} or more",
            4 * count
        ),
    };
    (count > 0).then_some((ok, detail))
}

/// Loads all programs, pinned nowhere and attached to nothing, and runs one live frame that is dropped.
fn try_programs() -> Result<()> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let generic = [abi::program::RECEIVE_GENERIC, abi::program::STEER_GENERIC];
    for name in abi::program::ALL
        .into_iter()
        .chain(generic)
        .chain(abi::program::STEERING_ALL)
    {
        object::load(&mut ebpf, name)?;
    }
    if let Some(Program::Xdp(send)) = ebpf.program_mut(abi::program::SEND) {
        send.test_run(TestRunOptions {
            data_in: Some(&[0; probe::LEN_V4]),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..Default::default()
        })?;
    }
    Ok(())
}

/// The report for people.
pub fn table(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = format!("kernel {}\n", report.kernel);
    for check in &report.checks {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "without",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_neighbour_table_has_room_or_not() {
        let service = |number: u32, endpoint: &str| {
            format!(
                "[[service]]\nname = \"fw-{number}\"\nendpoint = \"{endpoint}\"\nbehind = [\"10.20.0.9\"]\n"
            )
        };
        let text: String = ["10.9.0.2", "10.9.0.3", "10.9.0.3"]
            .into_iter()
            .zip(1..)
            .map(|(endpoint, number)| service(number, endpoint))
            .collect();
        let config = config::parse(&text, std::path::Path::new("test")).expect("a good config");
        let found = |is_ipv4, limit| neighbours(&config, is_ipv4, limit);
        assert_eq!(found(true, 4).map(|(ok, _)| ok), Some(true));
        let (ok, detail) = found(true, 3).expect("endpoints");
        assert!(!ok);
        assert!(
            detail.ends_with("set net.ipv4.neigh.default.gc_thresh3 to 8 or more"),
            "{detail}"
        );
        assert_eq!(found(false, 3), None);
    }
}

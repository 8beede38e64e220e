//! `[[action]]`.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use axum::http::Uri;
use glob::Pattern;
use ipnet::IpNet;

use super::{
    Action, ActionKind, ActionType, AtStart, MapName, ResilientGroup, WhenAllDown,
    document::{At, Entry, Section},
    keys::{self, Key, Table},
    values::{absolute, checked_name, distinct, unicast},
};

/// Keys that only some kinds of actions have, with these kinds.
static OF_KINDS: &[(&Key, &[ActionType])] = {
    use ActionType::{Frr, Hook, NexthopGroup, Nftables, Route, TrackFile, Webhook};
    &[
        (&keys::WHEN_ALL_DOWN, &[NexthopGroup, Route, Nftables]),
        (&keys::BYPASS_VIA, &[NexthopGroup, Route, Nftables]),
        (&keys::AT_START, &[NexthopGroup, Route, Nftables, TrackFile]),
        (&keys::GROUP_ID, &[NexthopGroup]),
        (&keys::RESILIENT, &[NexthopGroup]),
        (&keys::BUCKETS, &[NexthopGroup, Nftables]),
        (&keys::IDLE_TIMER, &[NexthopGroup]),
        (&keys::UNBALANCED_TIMER, &[NexthopGroup]),
        (&keys::PREFIX, &[Route]),
        (&keys::ROUTE_GROUP, &[Route]),
        (&keys::METRIC, &[Route]),
        (&keys::ROUTE_TABLE, &[Route]),
        (&keys::MAP, &[Nftables]),
        (&keys::LEASE, &[Nftables]),
        (&keys::COMMAND, &[Hook]),
        (&keys::USER, &[Hook]),
        (&keys::ACTION_TIMEOUT, &[Hook, Webhook]),
        (&keys::RETRIES, &[Hook, Webhook]),
        (&keys::URL, &[Webhook]),
        (&keys::HEADERS_FILE, &[Webhook]),
        (&keys::TRACK_PATH, &[TrackFile]),
        (&keys::VALUES, &[TrackFile]),
        (&keys::FRR_SOCKET, &[Frr]),
    ]
};

/// Metric of an IPv6 route that is given none, or 0 (`IP6_RT_PRIO_USER`).
const METRIC6: u32 = 1_024;

/// Buckets of a resilient group, and of a map of nftables, if none are given.
const GROUP_BUCKETS: u16 = 128;
const MAP_BUCKETS: u16 = 256;

/// The most bytes of a program with its arguments: far below what execve(2) takes.
const COMMAND_MAX: usize = 65_536;

/// Reads all actions.
pub(super) fn read(mut sections: Vec<Section<'_>>) -> Vec<Action> {
    let found: Vec<_> = sections.iter_mut().map(action).collect();
    let mut actions: Vec<_> = sections
        .iter()
        .zip(found)
        .filter_map(|(section, action)| Some((section, action?)))
        .collect();
    complete(&mut actions);
    actions.into_iter().map(|(_, action)| action).collect()
}

/// What several actions must agree on: names, ids, groups that routes lead by, and what only one of them can own.
fn complete(actions: &mut [(&Section<'_>, Action)]) {
    let groups: HashMap<u32, Vec<String>> = actions
        .iter()
        .filter_map(|(_, action)| match action.kind {
            ActionKind::NexthopGroup { id, .. } => Some((id, action.services.clone())),
            _ => None,
        })
        .collect();
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut owned: HashMap<String, usize> = HashMap::new();
    for (section, action) in actions {
        if let ActionKind::Route {
            group: Some(group), ..
        } = action.kind
        {
            match groups.get(&group) {
                Some(services) if action.services.is_empty() => {
                    action.services.clone_from(services);
                }
                Some(_) => {}
                None => {
                    if let Some(entry) = section.entry(&keys::ROUTE_GROUP) {
                        entry.refuse(format_args!(
                            "no [[action]] of kind \"nexthop-group\" has this id; add one with {} = {group}",
                            keys::GROUP_ID.name
                        ));
                    }
                }
            }
        }
        if action.name.is_empty() {
            action.name = default_name(action);
        }
        let place = |at| section.sink.place(at);
        match names.get(&action.name) {
            Some(first) => section.problem(
                section.at,
                format_args!(
                    "the action of {} has the name {:?} too; give each its own by {}",
                    place(*first),
                    action.name,
                    keys::ACTION_NAME.quoted()
                ),
            ),
            None => drop(names.insert(action.name.clone(), section.at)),
        }
        let (what, key): (String, &'static Key) = match &action.kind {
            ActionKind::NexthopGroup { id, .. } => (format!("group {id}"), &keys::GROUP_ID),
            ActionKind::Route {
                prefix,
                metric,
                table,
                ..
            } => (
                format!("route to {prefix} of metric {metric} in table {table}"),
                &keys::PREFIX,
            ),
            ActionKind::Nftables { map, .. } => (format!("map {map}"), &keys::MAP),
            ActionKind::TrackFile { path, .. } => {
                (format!("file {}", path.display()), &keys::TRACK_PATH)
            }
            ActionKind::Frr { socket } => {
                (format!("socket {}", socket.display()), &keys::FRR_SOCKET)
            }
            ActionKind::Hook { .. } | ActionKind::Webhook { .. } => continue,
        };
        match owned.get(&what) {
            Some(first) => {
                if let Some(entry) = section.entry(key) {
                    entry.refuse(format_args!(
                        "the action of {} keeps the {what} already; give each its own",
                        place(*first)
                    ));
                }
            }
            None => drop(owned.insert(what, section.at)),
        }
    }
}

/// The name of an action that is given none.
fn default_name(action: &Action) -> String {
    let kind = match action.kind {
        ActionKind::NexthopGroup { .. } => ActionType::NexthopGroup,
        ActionKind::Route { .. } => ActionType::Route,
        ActionKind::Nftables { .. } => ActionType::Nftables,
        ActionKind::Hook { .. } => ActionType::Hook,
        ActionKind::Webhook { .. } => ActionType::Webhook,
        ActionKind::TrackFile { .. } => ActionType::TrackFile,
        ActionKind::Frr { .. } => ActionType::Frr,
    };
    let mut name = format!("{kind}:{}", action.services.join(","));
    let mut most = keys::ACTION_NAME.most().min(name.len());
    while !name.is_char_boundary(most) {
        most -= 1;
    }
    name.truncate(most);
    name
}

/// Reads one action; its name is empty if it is given none, and its services if those of its group count.
fn action(section: &mut Section<'_>) -> Option<Action> {
    section.only(Table::Action);
    let name = section
        .entry(&keys::ACTION_NAME)
        .and_then(|entry| entry.parsed("a name", checked_name));
    let kind = section.required(&keys::ACTION_KIND, "\"nexthop-group\"");
    let kind = kind?.word(ActionType::WORDS)?.value;
    for (key, kinds) in OF_KINDS {
        if let Some(entry) = section.entry(key)
            && !kinds.contains(&kind)
        {
            let kinds: Vec<_> = kinds.iter().map(|kind| format!("\"{kind}\"")).collect();
            entry.refuse(format_args!(
                "kind \"{kind}\" has no such key, only {}; delete it",
                kinds.join(" and ")
            ));
        }
    }
    let values = section.take_table(&keys::VALUES);
    let when_all_down = match section.entry(&keys::WHEN_ALL_DOWN) {
        Some(entry) => entry.word(WhenAllDown::WORDS)?.value,
        None => keys::WHEN_ALL_DOWN.default_word(WhenAllDown::WORDS),
    };
    let at_start = match section.entry(&keys::AT_START) {
        Some(entry) => entry.word(AtStart::WORDS)?.value,
        None => keys::AT_START.default_word(AtStart::WORDS),
    };
    let bypass_via = section.entry(&keys::BYPASS_VIA);
    let is_bypass = when_all_down == WhenAllDown::Bypass;
    if let (Some(entry), false) = (&bypass_via, is_bypass) {
        entry.refuse("used only with when_all_down = \"bypass\"; add that, or delete it");
    }
    if bypass_via.is_none() && is_bypass {
        let what = ", the router that takes the traffic around the service";
        section.missing(&keys::BYPASS_VIA, "\"ADDRESS\"", what);
    }
    let bypass_via = bypass_via.and_then(|entry| unicast(&entry));
    let services = services(section, kind);
    let kind = match kind {
        ActionType::NexthopGroup => group(section),
        ActionType::Route => route(section),
        ActionType::Nftables => nftables(section),
        ActionType::Hook => hook(section),
        ActionType::Webhook => webhook(section),
        ActionType::TrackFile => track_file(section, values.as_ref()),
        ActionType::Frr => frr(section),
    };
    if let (Some(ActionKind::Route { prefix, .. }), Some(At { value: bypass, .. })) =
        (&kind, &bypass_via)
        && !can_lead(prefix, *bypass)
        && let Some(entry) = section.entry(&keys::BYPASS_VIA)
    {
        entry.refuse("an IPv6 route cannot lead by an IPv4 router; give its IPv6 address");
    }
    Some(Action {
        name: name.map(|name| name.value).unwrap_or_default(),
        services: services?,
        when_all_down,
        bypass_via: bypass_via.map(|bypass| bypass.value),
        at_start,
        kind: kind?,
    })
}

/// Whether a route to a prefix can lead by a next hop of this address.
fn can_lead(prefix: &IpNet, next_hop: IpAddr) -> bool {
    matches!(prefix, IpNet::V4(_)) || next_hop.is_ipv6()
}

/// The services that count; empty if they are those of the group.
fn services(section: &Section<'_>, kind: ActionType) -> Option<Vec<String>> {
    let Some(entry) = section.entry(&keys::ACTION_SERVICE) else {
        if kind == ActionType::Route && section.has(&keys::ROUTE_GROUP) {
            return Some(Vec::new());
        }
        let _ = section.required(&keys::ACTION_SERVICE, "\"NAME\"");
        return None;
    };
    let one = |entry: &Entry<'_>| {
        entry.parsed("the name of a service or a pattern", |text| {
            let name = checked_name(text)?;
            match Pattern::new(&name) {
                Ok(_) => Ok(name),
                Err(error) => Err(format!(
                    "not a pattern ({}); give a name, or one with *, ? or [...]",
                    error.msg
                )),
            }
        })
    };
    if entry.is_string() {
        return one(&entry).map(|service| vec![service.value]);
    }
    let services = distinct(&entry, "a name or a list of names", one);
    (!services.is_empty()).then_some(services)
}

/// A whole number of a key, or its default.
fn integer(section: &Section<'_>, key: &'static Key) -> Option<u32> {
    match section.entry(key) {
        Some(entry) => entry.integer().map(|number| number.value),
        None => Some(key.default_integer()),
    }
}

fn group(section: &Section<'_>) -> Option<ActionKind> {
    let id = section
        .required(&keys::GROUP_ID, "NUMBER")
        .and_then(|entry| entry.integer());
    let is_resilient = match section.entry(&keys::RESILIENT) {
        Some(entry) => entry.boolean()?.value,
        None => keys::RESILIENT.default_flag(),
    };
    let time = |key: &'static Key| match section.entry(key) {
        Some(entry) => entry.duration().map(|time| time.value),
        None => Some(key.default_duration()),
    };
    let buckets = buckets(section, GROUP_BUCKETS);
    let (idle, unbalanced) = (time(&keys::IDLE_TIMER), time(&keys::UNBALANCED_TIMER));
    if !is_resilient {
        for key in [&keys::BUCKETS, &keys::IDLE_TIMER, &keys::UNBALANCED_TIMER] {
            if let Some(entry) = section.entry(key) {
                entry.refuse("used only with resilient = true; add that, or delete it");
            }
        }
    }
    let resilient = ResilientGroup {
        buckets: buckets?,
        idle_timer: idle?,
        unbalanced_timer: unbalanced?,
    };
    Some(ActionKind::NexthopGroup {
        id: id?.value,
        resilient: is_resilient.then_some(resilient),
    })
}

fn route(section: &Section<'_>) -> Option<ActionKind> {
    let prefix = section
        .required(&keys::PREFIX, "\"PREFIX\"")
        .and_then(|entry| {
            entry.parsed("a prefix", |text| {
                let parsed = text.parse::<IpNet>();
                let parsed = parsed.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                let prefix = parsed.map_err(|_| {
                    "not a prefix; give one such as \"192.0.2.0/24\" or \"2001:db8::/32\""
                        .to_owned()
                })?;
                match prefix.trunc() == prefix {
                    true => Ok(prefix),
                    false => Err(format!(
                        "it has bits beyond its length; give \"{}\"",
                        prefix.trunc()
                    )),
                }
            })
        });
    let group = match section.entry(&keys::ROUTE_GROUP) {
        Some(entry) => Some(entry.integer()?.value),
        None => None,
    };
    let metric = integer(section, &keys::METRIC);
    let table = integer(section, &keys::ROUTE_TABLE);
    let prefix = prefix?.value;
    let metric = match (prefix, metric?) {
        (IpNet::V6(_), 0) => METRIC6,
        (_, metric) => metric,
    };
    Some(ActionKind::Route {
        prefix,
        group,
        metric,
        table: table?,
    })
}

/// The number of buckets; this one if it is not given.
fn buckets(section: &Section<'_>, default: u16) -> Option<u16> {
    match section.entry(&keys::BUCKETS) {
        Some(entry) => u16::try_from(entry.integer()?.value).ok(),
        None => Some(default),
    }
}

fn nftables(section: &Section<'_>) -> Option<ActionKind> {
    let map = section
        .required(&keys::MAP, "\"inet TABLE MAP\"")
        .and_then(|entry| entry.parsed("a map of nftables", map_name));
    let lease = match section.entry(&keys::LEASE) {
        Some(entry) => Some(entry.duration()?.value),
        None => None,
    };
    let buckets = buckets(section, MAP_BUCKETS);
    Some(ActionKind::Nftables {
        map: map?.value,
        buckets: buckets?,
        lease,
    })
}

fn map_name(text: &str) -> Result<MapName, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let is_word = |word: &&str| {
        let mut bytes = word.bytes();
        bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    match words[..] {
        [family @ ("inet" | "ip" | "ip6"), table, name] if is_word(&table) && is_word(&name) => {
            Ok(MapName {
                family: family.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err(
            "not a map; give family (inet, ip or ip6), table and map, as in \"inet steer members\""
                .to_owned(),
        ),
    }
}

fn hook(section: &Section<'_>) -> Option<ActionKind> {
    let entry = section.required(&keys::COMMAND, "[\"/PATH/PROGRAM\", \"ARGUMENT\"]");
    let command = entry.and_then(|entry| {
        let elements = entry.list("a program and its arguments");
        let (mut command, mut is_sound) = (Vec::new(), !elements.is_empty());
        for (index, element) in elements.iter().enumerate() {
            let text = element.parsed("a text", |text| match () {
                () if text.contains('\0') => {
                    Err("a zero byte ends an argument; leave it out".to_owned())
                }
                () if index == 0 => absolute(text).map(|_| text.to_owned()),
                () => Ok(text.to_owned()),
            });
            is_sound &= text.is_some();
            command.extend(text.map(|text| text.value));
        }
        if command.iter().map(String::len).sum::<usize>() > COMMAND_MAX {
            entry.refuse(format_args!(
                "longer than {COMMAND_MAX} bytes; put it into a script"
            ));
            return None;
        }
        is_sound.then_some(command)
    });
    let user = match section.entry(&keys::USER) {
        Some(entry) => Some(entry.parsed("the name of a user", checked_name)?.value),
        None => None,
    };
    let timeout = action_timeout(section)?;
    let retries = integer(section, &keys::RETRIES);
    Some(ActionKind::Hook {
        command: command?,
        user,
        timeout,
        retries: retries?,
    })
}

fn action_timeout(section: &Section<'_>) -> Option<Duration> {
    match section.entry(&keys::ACTION_TIMEOUT) {
        Some(entry) => Some(entry.duration()?.value),
        None => Some(keys::ACTION_TIMEOUT.default_duration()),
    }
}

fn webhook(section: &Section<'_>) -> Option<ActionKind> {
    let url = section
        .required(&keys::URL, "\"https://example.net/PATH\"")
        .and_then(|entry| entry.parsed("a URL", checked_url));
    let headers_file = match section.entry(&keys::HEADERS_FILE) {
        Some(entry) => Some(entry.parsed("a path", absolute)?.value),
        None => None,
    };
    let (timeout, retries) = (action_timeout(section), integer(section, &keys::RETRIES));
    Some(ActionKind::Webhook {
        url: url?.value,
        headers_file,
        timeout: timeout?,
        retries: retries?,
    })
}

/// A URL without secrets in it, of a host that is asked by TLS or is this machine itself.
fn checked_url(text: &str) -> Result<String, String> {
    let uri: Option<Uri> = text.parse().ok();
    let parts = uri.as_ref().and_then(|uri| {
        let host = uri.host().filter(|host| !host.is_empty())?;
        Some((uri.scheme_str()?, host, uri.authority()?))
    });
    let Some((scheme, host, authority)) = parts else {
        return Err(
            "not a URL of a host; give one such as \"https://example.net/path\"".to_owned(),
        );
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        _ if authority.as_str().contains('@') => {
            Err("a user and a password have no place in it; put an Authorization header into `headers_file`".to_owned())
        }
        "https" => Ok(text.to_owned()),
        "http" if is_own => Ok(text.to_owned()),
        "http" => Err("anyone on the way could read and change it; give https, or a loopback address".to_owned()),
        _ => Err("neither https nor http; give https".to_owned()),
    }
}

fn track_file(section: &Section<'_>, values: Option<&Section<'_>>) -> Option<ActionKind> {
    let path = section
        .required(&keys::TRACK_PATH, "\"PATH\"")
        .and_then(|entry| entry.parsed("a path", absolute));
    let number = |key: &'static Key| match values.and_then(|values| values.entry(key)) {
        Some(entry) => entry.signed().map(|number| number.value),
        None => Some(key.default_signed()),
    };
    if let Some(values) = values {
        values.only(Table::Values);
    }
    let (up, down) = (number(&keys::VALUE_UP), number(&keys::VALUE_DOWN));
    Some(ActionKind::TrackFile {
        path: path?.value,
        up: up?,
        down: down?,
    })
}

fn frr(section: &Section<'_>) -> Option<ActionKind> {
    let socket = section
        .required(&keys::FRR_SOCKET, "\"/run/frr/bfdd_dplane.sock\"")
        .and_then(|entry| {
            entry.parsed("a path", |text| {
                let path = absolute(text)?;
                match text.len() <= keys::FRR_SOCKET.most() {
                    true => Ok(path),
                    false => Err(format!(
                        "longer than {} bytes, which bfdd cuts off; choose a shorter path for --dplaneaddr",
                        keys::FRR_SOCKET.most()
                    )),
                }
            })
        })?;
    Some(ActionKind::Frr {
        socket: socket.value,
    })
}

/// The services that actions name and the file does not have, each with the action's name.
pub(super) fn unknown<'a>(
    actions: &'a [Action],
    services: &HashSet<&str>,
) -> Vec<(&'a str, &'a str)> {
    let is_known = |pattern: &str| {
        services.contains(pattern)
            || Pattern::new(pattern)
                .is_ok_and(|pattern| services.iter().any(|name| pattern.matches(name)))
    };
    let named = actions.iter().flat_map(|action| {
        let services = action.services.iter();
        services.map(|service| (action.name.as_str(), service.as_str()))
    });
    named.filter(|(_, service)| !is_known(service)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, parse};

    fn parsed(text: &str) -> Result<Config, String> {
        parse(text, Path::new("hub.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_is_read_with_its_defaults() {
        let config = parsed(
            r#"
[[action]]
service = "fw-pool"
kind = "nexthop-group"
id = 4000
[[action]]
name = "res"
service = ["fw-*", "lb"]
kind = "nexthop-group"
id = 4001
resilient = true
idle_timer = "30s"
when_all_down = "bypass"
bypass_via = "10.0.0.1"
at_start = "none"
[[action]]
kind = "route"
prefix = "0.0.0.0/0"
group = 4001
[[action]]
service = "fw-1"
kind = "route"
prefix = "2001:db8::/32"
table = 100
when_all_down = "withdraw"
[[action]]
service = "fw-1"
kind = "hook"
command = ["/bin/echo", "a b", "a b"]
[[action]]
service = "fw-1"
kind = "track-file"
path = "/run/fw-1"
values = { down = -20 }
[[action]]
service = "fw-1"
kind = "nftables"
map = "inet steer members"
lease = "30s"
"#,
        )
        .unwrap();
        let actions = &config.actions;
        let names: Vec<&str> = actions.iter().map(|action| action.name.as_str()).collect();
        let expected = [
            "nexthop-group:fw-pool",
            "res",
            "route:fw-*,lb",
            "route:fw-1",
            "hook:fw-1",
            "track-file:fw-1",
            "nftables:fw-1",
        ];
        assert_eq!(names, expected);
        let keep = (WhenAllDown::Keep, AtStart::All);
        assert_eq!((actions[0].when_all_down, actions[0].at_start), keep);
        let group = ActionKind::NexthopGroup {
            id: 4_000,
            resilient: None,
        };
        assert_eq!(actions[0].kind, group);
        let group = ActionKind::NexthopGroup {
            id: 4_001,
            resilient: Some(ResilientGroup {
                buckets: 128,
                idle_timer: Duration::from_secs(30),
                unbalanced_timer: Duration::ZERO,
            }),
        };
        assert_eq!(actions[1].kind, group);
        assert_eq!(actions[1].bypass_via, Some([10, 0, 0, 1].into()));
        assert_eq!(actions[2].services, ["fw-*", "lb"]);
        let route = ActionKind::Route {
            prefix: "2001:db8::/32".parse().unwrap(),
            group: None,
            metric: 1_024,
            table: 100,
        };
        assert_eq!(actions[3].kind, route);
        let hook = ActionKind::Hook {
            command: ["/bin/echo", "a b", "a b"].map(str::to_owned).to_vec(),
            user: None,
            timeout: Duration::from_secs(10),
            retries: 3,
        };
        assert_eq!(actions[4].kind, hook);
        let file = ActionKind::TrackFile {
            path: "/run/fw-1".into(),
            up: 0,
            down: -20,
        };
        assert_eq!(actions[5].kind, file);
        let map = ActionKind::Nftables {
            map: MapName {
                family: "inet".to_owned(),
                table: "steer".to_owned(),
                name: "members".to_owned(),
            },
            buckets: 256,
            lease: Some(Duration::from_secs(30)),
        };
        assert_eq!(actions[6].kind, map);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let action = |lines: &str| format!("[[action]]\nservice = \"fw-1\"\n{lines}\n");
        let group = action("kind = \"nexthop-group\"\nid = 1");
        let rows: Vec<(String, &str)> = vec![
            (
                action("id = 1"),
                "missing key `kind` in [[action]] 1; add kind = \"nexthop-group\"",
            ),
            (
                "[[action]]\nkind = \"hook\"\ncommand = [\"/a\"]".to_owned(),
                "missing key `service` in [[action]] 1; add service = \"NAME\"",
            ),
            (
                action("kind = \"nexthop-group\""),
                "missing key `id` in [[action]] 1; add id = NUMBER",
            ),
            (
                action("kind = \"hook\"\ncommand = [\"/a\"]\nid = 4"),
                "id = 4 in [[action]] 1: kind \"hook\" has no such key, only \"nexthop-group\"; delete it",
            ),
            (
                action("kind = \"hook\"\ncommand = [\"echo\"]"),
                "command = \"echo\" in [[action]] 1: not an absolute path; give one that begins with '/'",
            ),
            (
                action("kind = \"route\"\nprefix = \"10.0.0.1/8\""),
                "prefix = \"10.0.0.1/8\" in [[action]] 1: it has bits beyond its length; give \"10.0.0.0/8\"",
            ),
            (
                action("kind = \"route\"\nprefix = \"10.0.0.0/8\"\ngroup = 9"),
                "group = 9 in [[action]] 1: no [[action]] of kind \"nexthop-group\" has this id; add one with id = 9",
            ),
            (
                format!(
                    "{group}{}",
                    group.replace("service = ", "name = \"b\"\nservice = ")
                ),
                "id = 1 in [[action]] \"b\": the action of line 1 keeps the group 1 already; give each its own",
            ),
            (
                format!("{group}{}", group.replace("id = 1", "id = 2")),
                "the action of line 1 has the name \"nexthop-group:fw-1\" too; give each its own by `name` in [[action]] 2",
            ),
            (
                action("kind = \"nexthop-group\"\nid = 1\nwhen_all_down = \"bypass\""),
                "missing key `bypass_via` in [[action]] 1; add bypass_via = \"ADDRESS\", the router that takes the traffic around the service",
            ),
            (
                action("kind = \"nexthop-group\"\nid = 1\nbypass_via = \"10.0.0.1\""),
                "bypass_via = \"10.0.0.1\" in [[action]] 1: used only with when_all_down = \"bypass\"; add that, or delete it",
            ),
            (
                action("kind = \"nexthop-group\"\nid = 1\nbuckets = 64"),
                "buckets = 64 in [[action]] 1: used only with resilient = true; add that, or delete it",
            ),
            (
                action("kind = \"nftables\"\nmap = \"steer members\""),
                "map = \"steer members\" in [[action]] 1: not a map; give family (inet, ip or ip6), table and map, as in \"inet steer members\"",
            ),
            (
                action("kind = \"webhook\"\nurl = \"http://example.net/x\""),
                "url = \"http://example.net/x\" in [[action]] 1: anyone on the way could read and change it; give https, or a loopback address",
            ),
            (
                action("kind = \"webhook\"\nurl = \"example\""),
                "url = \"example\" in [[action]] 1: not a URL of a host; give one such as \"https://example.net/path\"",
            ),
            (
                action("kind = \"track-file\"\npath = \"/a\"\nvalues = { up = 9999999999 }"),
                "up = 9999999999 in [values]: out of range; give a whole number from -2147483648 to 2147483647",
            ),
            (
                "[[action]]\nservice = \"fw-[\"\nkind = \"nexthop-group\"\nid = 1".to_owned(),
                "service = \"fw-[\" in [[action]] 1: not a pattern (invalid range pattern); give a name, or one with *, ? or [...]",
            ),
            (
                action("kind = \"nexthop-group\"\nid = 1\nressilient = true"),
                "unknown key `ressilient` in [[action]] 1; did you mean `resilient`?",
            ),
        ];
        for (text, expected) in rows {
            let error = parsed(&text).unwrap_err();
            let (_, said) = error.split_once(": ").unwrap();
            assert_eq!(said, expected, "{text}");
        }
    }

    #[test]
    fn a_url_has_no_secrets() {
        let with_password = ["https:", "//user:word@example.net/x"].concat();
        let why = checked_url(&with_password).unwrap_err();
        assert!(why.contains("headers_file"), "{why}");
        for good in [
            "https://example.net/x?y=z",
            "http://localhost:8080/",
            "http://127.0.0.1/",
        ] {
            assert_eq!(checked_url(good).as_deref(), Ok(good));
        }
        assert!(checked_url("ftp://example.net/x").is_err());
    }

    #[test]
    fn services_that_the_file_does_not_have_are_found() {
        let text = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n\
             [[action]]\nname = \"x\"\nservice = [\"fw-1\", \"fw-?\", \"fw-2\", \"lb-*\"]\nkind = \"nexthop-group\"\nid = 1\n";
        let config = parsed(text).unwrap();
        assert_eq!(config.unnamed_services(), [("x", "fw-2"), ("x", "lb-*")]);
    }
}

//! `[[service]]`, its members and their trackers.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tracker_ebpf::abi;

use super::{
    Member, Owner, Policy, Probe, ReturnHop, Role, Service,
    document::{At, Entry, Section},
    keys::{self, Key, STAMP_PADDED, STAMP_PAYLOAD, Table},
    settings::Settings,
    values::{Names, checked_interface, checked_name, distinct, not_a_hosts, unicast},
};

/// Reads one service.
pub(super) fn read(mut section: Section<'_>, defaults: &Settings, names: &mut Names) -> Service {
    section.only(Table::Service);
    let name = names.read(&section, &keys::SERVICE_NAME, keys::SERVICE.name);
    let settings = Settings::read(&section, Table::Service).within(defaults);
    let long = section.has(&keys::MEMBER);
    let after = section.entry(&keys::AFTER).map(|entry| {
        distinct(&entry, "a list of service names", |element| {
            element.parsed("the name of a service", checked_name)
        })
    });
    let after = after.unwrap_or_default();
    let service_title = section.title.clone();
    let member_sections = section.take_tables(&keys::MEMBER, "service.member", |index, _| {
        format!("[[service.member]] {} of {service_title}", index + 1)
    });

    if !long {
        let parts = Parts {
            section: &section,
            outer: None,
            trackers: Vec::new(),
        };
        let members = member(parts, Role::Active, settings)
            .map(Arc::new)
            .into_iter()
            .collect();
        return Service {
            name,
            owner: Owner::File,
            members,
            after,
        };
    }

    for key in [&keys::ENDPOINT, &keys::BEHIND] {
        if let Some(entry) = section.entry(key) {
            entry.refuse("the short form cannot be mixed with [[service.member]]; move it into each [[service.member]]");
        }
    }
    if member_sections.is_empty() {
        section.problem(section.at, "no member: add a [[service.member]]");
    }
    if member_sections.len() > 2 {
        section.problem(
            member_sections[2].at,
            format_args!(
                "{} members, but a service has at most one active and one standby; make the others services of their own",
                member_sections.len()
            ),
        );
    }
    let pair = member_sections.len() > 1;
    let mut roles: HashMap<Role, usize> = HashMap::new();
    let mut attachments = HashSet::new();
    let mut members = Vec::new();
    for mut inner in member_sections {
        inner.only(Table::Member);
        let role = role(&inner, pair, &mut roles);
        let member_title = inner.title.clone();
        let trackers = inner.take_tables(&keys::TRACKER, "service.member.tracker", |index, _| {
            format!("[[service.member.tracker]] {} of {member_title}", index + 1)
        });
        let settings = Settings::read(&inner, Table::Member).within(&settings);
        let parts = Parts {
            section: &inner,
            outer: Some(&section),
            trackers,
        };
        let Some(member) = member(parts, role, settings) else {
            continue;
        };
        if !attachments.insert((member.endpoint, member.interface.clone())) {
            inner.problem(
                inner.at,
                "same endpoint and interface as the other member; give this member its own",
            );
        }
        members.push(Arc::new(member));
    }
    Service {
        name,
        owner: Owner::File,
        members,
        after,
    }
}

fn role(section: &Section<'_>, pair: bool, seen: &mut HashMap<Role, usize>) -> Role {
    let Some(entry) = section.entry(&keys::ROLE) else {
        if pair {
            let _ = section.required(&keys::ROLE, "\"active\" or \"standby\"");
        }
        return Role::Active;
    };
    let Some(At { value: role, at }) = entry.word(Role::WORDS) else {
        return Role::Active;
    };
    if !pair && role == Role::Standby {
        entry.refuse("the only member of a service is its active one; delete the key, or add the active member");
    }
    if let Some(first) = seen.insert(role, at) {
        entry.refuse(format_args!(
            "{} has it already; a service has one active and one standby member",
            section.sink.place(first)
        ));
    }
    role
}

/// What a member is made of.
struct Parts<'p, 'a> {
    /// The member's own table, or that of the service in the short form.
    section: &'p Section<'a>,
    /// The service's table in the long form.
    outer: Option<&'p Section<'a>>,
    trackers: Vec<Section<'a>>,
}

impl<'p> Parts<'p, '_> {
    /// A key that the service may set for its members.
    fn inherited(&self, key: &'static Key) -> Option<Entry<'p>> {
        let own = self.section.entry(key);
        own.or_else(|| self.outer.and_then(|outer| outer.entry(key)))
    }
}

/// `None` when the endpoint, without which nothing can be made, is missing or wrong.
fn member(parts: Parts<'_, '_>, role: Role, settings: Settings) -> Option<Member> {
    let section = parts.section;
    let endpoint = section
        .required(&keys::ENDPOINT, "\"ADDRESS\", the service's own address")
        .and_then(|entry| unicast(&entry));
    let interface = parts
        .inherited(&keys::INTERFACE)
        .and_then(|entry| entry.parsed("an interface name", checked_interface))
        .map(|interface| interface.value);
    if let (Some(endpoint), false) = (endpoint, parts.inherited(&keys::INTERFACE).is_some())
        && matches!(endpoint.value, IpAddr::V6(address) if address.is_unicast_link_local())
    {
        section.problem(
            endpoint.at,
            format_args!(
                "endpoint {} is link-local, so its interface cannot be found from a route; add {}",
                endpoint.value,
                section.sink.setting(&keys::INTERFACE, "\"NAME\""),
            ),
        );
    }

    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut trackers = Vec::new();
    let mut add = |section: &Section<'_>, entry: &Entry<'_>, settings: &Settings| {
        let Some(behind) = unicast(entry) else {
            return;
        };
        if endpoint.is_some_and(|endpoint| endpoint.value == behind.value) {
            entry.refuse("the endpoint's own address answers without passing the service; give an address behind it");
        }
        let tracker = settings.tracker(section, behind);
        // Two trackers whose probes are the same on the wire are one tracker.
        let identity = (
            (tracker.behind, tracker.kind() as u8, tracker.port),
            (tracker.payload, tracker.expect, tracker.flow),
        );
        match seen.get(&identity) {
            Some(first) => entry.refuse(format_args!(
                "{} has the same tracker in the same member; delete one",
                section.sink.place(*first)
            )),
            None => {
                seen.insert(identity, behind.at);
            }
        }
        trackers.push(tracker);
    };
    let mut written = 0;
    if let Some(behind) = section.entry(&keys::BEHIND) {
        for entry in behind.list("a list of addresses, such as [\"192.0.2.9\"]") {
            written += 1;
            add(section, &entry, &settings);
        }
    }
    for inner in &parts.trackers {
        written += 1;
        inner.only(Table::Tracker);
        let settings = Settings::read(inner, Table::Tracker).within(&settings);
        if let Some(entry) = inner.required(&keys::TRACKER_BEHIND, "\"ADDRESS\"") {
            add(inner, &entry, &settings);
        }
    }
    if written == 0 && !section.has(&keys::BEHIND) {
        section.missing(
            &keys::BEHIND,
            "[\"ADDRESS\"]",
            ", an address that is reached only through the service",
        );
    }

    let source = parts
        .inherited(&keys::SOURCE)
        .and_then(|entry| {
            let source = unicast(&entry)?;
            // Inherited, it may be meant for the other member.
            let unused = !trackers.is_empty()
                && !trackers
                    .iter()
                    .any(|tracker| tracker.behind.is_ipv4() == source.value.is_ipv4());
            if unused && section.has(&keys::SOURCE) {
                entry.refuse("no behind address is of its family, so no probe would use it; delete it or give one of their family");
            }
            Some(source.value)
        });
    let return_hop = parts
        .inherited(&keys::RETURN_HOP)
        .and_then(|entry| entry.word(ReturnHop::WORDS));
    let returns = parts.inherited(&keys::RETURNS).map(|entry| {
        let names = distinct(&entry, "a list of interface names", |element| {
            element.parsed("an interface name", checked_interface)
        });
        let most = keys::RETURNS.most();
        if names.len() > most {
            entry.refuse(format!(
                "replies may arrive on {most} interfaces at most; name fewer"
            ));
        }
        names
    });
    let policy = parts
        .inherited(&keys::POLICY)
        .and_then(|entry| policy(&entry, written, &section.title));
    let mark = parts
        .inherited(&keys::MEMBER_MARK)
        .and_then(|entry| entry.integer());
    Some(Member {
        role,
        endpoint: endpoint?.value,
        interface,
        source,
        returns: returns.unwrap_or_default(),
        return_hop: return_hop.map_or_else(
            || keys::RETURN_HOP.default_word(ReturnHop::WORDS),
            |word| word.value,
        ),
        policy: policy.unwrap_or_default(),
        mark: mark.map(|mark| mark.value),
        trackers,
    })
}

fn policy(entry: &Entry<'_>, trackers: u32, member: &str) -> Option<Policy> {
    let number = || format!("a number of trackers from 1 to {trackers}");
    if entry.is_string() {
        let wanted = format!("\"any\", \"all\" or {} without quotes", number());
        return entry
            .parsed(&wanted, |text| match text {
                "any" => Ok(Policy::Any),
                "all" => Ok(Policy::All),
                _ => Err(format!("not a policy; give {wanted}")),
            })
            .map(|policy| policy.value);
    }
    let wanted = entry.integer_of(1..=u16::MAX.into())?.value;
    if trackers > 0 && wanted > trackers {
        entry.refuse(format_args!(
            "more than the {trackers} trackers of {member}; give \"any\", \"all\" or {}",
            number()
        ));
        return None;
    }
    Some(Policy::AtLeast(wanted as u16))
}

/// What of a service that comes from elsewhere than a document the daemon could not work with, if there is anything: the
/// ranges and rules that a document is held to.
pub(super) fn check(service: &Service) -> Result<(), String> {
    checked_name(&service.name)?;
    let roles: Vec<Role> = service.members.iter().map(|member| member.role).collect();
    match roles[..] {
        [Role::Active] | [Role::Active, Role::Standby] | [Role::Standby, Role::Active] => {}
        _ => return Err(format!("members {roles:?}")),
    }
    service
        .members
        .iter()
        .try_for_each(|member| checked_member(member))
}

fn checked_member(member: &Member) -> Result<(), String> {
    let behinds = member.trackers.iter().map(|tracker| tracker.behind);
    let addresses = behinds.chain([member.endpoint]).chain(member.source);
    for address in addresses {
        if let Some(why) = not_a_hosts(address) {
            return Err(format!("{address} is {why}"));
        }
    }
    for interface in member.interface.iter().chain(&member.returns) {
        checked_interface(interface)?;
    }
    let count = member.trackers.len();
    let needed = match member.policy {
        Policy::Any | Policy::All => 1,
        Policy::AtLeast(needed) => needed.into(),
    };
    if !(1..=count).contains(&needed) || member.returns.len() > keys::RETURNS.most() {
        let returns = member.returns.len();
        return Err(format!("{needed} of {count} trackers, {returns} returns"));
    }
    for tracker in &member.trackers {
        let payload = u32::from(tracker.payload);
        let sizes = keys::PAYLOAD.integers();
        let is_size = match tracker.kind() {
            // It has none, whatever an earlier version wrote down.
            abi::Probe::Tcp => {
                tracker.timeout <= tracker.interval.saturating_mul(abi::STREAM_FLIGHTS_MAX)
            }
            abi::Probe::Stamp => {
                payload == STAMP_PAYLOAD || (STAMP_PADDED..=*sizes.end()).contains(&payload)
            }
            abi::Probe::Icmp | abi::Probe::Udp => sizes.contains(&payload),
        };
        let is_sound = keys::INTERVAL.durations().contains(&tracker.interval)
            && keys::TIMEOUT.durations().contains(&tracker.timeout)
            && keys::HOLD_DOWN.durations().contains(&tracker.hold_down)
            && keys::FALL.integers().contains(&tracker.fall.into())
            && keys::RISE.integers().contains(&tracker.rise.into())
            && is_size
            && tracker.port.is_some() == (tracker.probe != Probe::Icmp)
            && tracker.port != Some(0)
            && tracker.return_ttl != Some(0)
            && tracker.behind != member.endpoint;
        if !is_sound {
            return Err(format!("tracker {tracker:?}"));
        }
    }
    Ok(())
}

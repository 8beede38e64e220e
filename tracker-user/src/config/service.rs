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
    let service_title = section.title.clone();
    let member_sections = section.take_tables(&keys::MEMBER, "service.member", |index, _| {
        format!("[[service.member]] {} of {service_title}", index + 1)
    });
    let count = if long {
        member_sections.len() as u32
    } else {
        1
    };
    let members_up = section
        .entry(&keys::MEMBERS_UP)
        .and_then(|entry| policy(&entry, count, &section.title, "members"));
    let preempt = section
        .entry(&keys::PREEMPT)
        .and_then(|entry| entry.boolean());
    let service = Service {
        name,
        owner: Owner::File,
        members: Vec::new(),
        members_up: members_up.unwrap_or_default(),
        preempt: preempt.is_none_or(|preempt| preempt.value),
        after: after.unwrap_or_default(),
    };

    if !long {
        let parts = Parts {
            section: &section,
            outer: None,
            trackers: Vec::new(),
        };
        let rank = Rank::of_role(Role::Active);
        let members = member(parts, rank, settings).map(Arc::new);
        return Service {
            members: members.into_iter().collect(),
            ..service
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
    let has_role = |member: &Section<'_>| member.has(&keys::ROLE);
    let mut ranks = Ranks {
        count: member_sections.len(),
        some_have_roles: member_sections.iter().any(has_role),
        roles: HashMap::new(),
        is_twice: false,
    };
    let mut named: HashMap<Arc<str>, usize> = HashMap::new();
    let mut attachments = HashMap::new();
    let mut members = Vec::new();
    for mut inner in member_sections {
        inner.only(Table::Member);
        let rank = ranks.read(&inner);
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
        let Some(member) = member(parts, rank, settings) else {
            continue;
        };
        let attachment = (member.endpoint, member.interface.clone());
        match attachments.get(&attachment) {
            Some(other) => inner.problem(
                inner.at,
                format_args!(
                    "same endpoint and interface as member {other:?}; give this member its own"
                ),
            ),
            None => {
                attachments.insert(attachment, member.name.clone());
                if !ranks.is_twice {
                    distinct_name(&inner, &member, &mut named);
                }
            }
        }
        members.push(Arc::new(member));
    }
    Service { members, ..service }
}

/// Reports a member whose name another one of the service has already.
fn distinct_name(section: &Section<'_>, member: &Member, named: &mut HashMap<Arc<str>, usize>) {
    let name = &member.name;
    let entry = section.entry(&keys::MEMBER_NAME);
    let at = entry.as_ref().map_or(section.at, Entry::at);
    let Some(first) = named.get(name) else {
        named.insert(name.clone(), at);
        return;
    };
    let first = section.sink.place(*first);
    match entry {
        Some(entry) => entry.refuse(format_args!(
            "the member of {first} has this name; give each its own"
        )),
        None => section.problem(
            at,
            format_args!(
                "a member without `name` is called by its {}, {name:?}, which is the name of the member of {first} too; give \
                 each its own {}",
                if member.role.is_some() { keys::ROLE.name } else { keys::ENDPOINT.name },
                section.sink.setting(&keys::MEMBER_NAME, "\"NAME\""),
            ),
        ),
    }
}

/// Where a member stands among those of its service.
#[derive(Clone, Copy)]
struct Rank {
    role: Option<Role>,
    priority: u16,
}

impl Rank {
    const fn of_role(role: Role) -> Self {
        Self {
            role: Some(role),
            priority: role.priority(),
        }
    }
}

/// What is known of a service's members before and while their roles and priorities are read.
struct Ranks {
    count: usize,
    some_have_roles: bool,
    /// The roles that were read, and where.
    roles: HashMap<Role, usize>,
    /// Whether the role that was read last is another member's too.
    is_twice: bool,
}

impl Ranks {
    fn read(&mut self, section: &Section<'_>) -> Rank {
        self.is_twice = false;
        let priority = section.entry(&keys::PRIORITY);
        let Some(entry) = section.entry(&keys::ROLE) else {
            return self.without_role(section, priority);
        };
        let Some(At { value: role, at }) = entry.word(Role::WORDS) else {
            return Rank::of_role(Role::Active);
        };
        if let Some(priority) = priority {
            priority.refuse(
                "a role is a priority already: active is 0, standby is 1; delete one of the two",
            );
        }
        if self.count == 1 && role == Role::Standby {
            entry.refuse("the only member of a service is its active one; delete the key, or add the active member");
        }
        if let Some(first) = self.roles.insert(role, at) {
            self.is_twice = true;
            entry.refuse(format_args!(
                "{} has it already; a service has one active and one standby member, and members of a pool have `priority` \
                 instead of a role",
                section.sink.place(first)
            ));
        }
        Rank::of_role(role)
    }

    fn without_role(&self, section: &Section<'_>, priority: Option<Entry<'_>>) -> Rank {
        let Some(entry) = priority else {
            match self.count {
                1 => return Rank::of_role(Role::Active),
                2 if self.some_have_roles => section.missing(
                    &keys::ROLE,
                    "\"active\" or \"standby\"",
                    ", because the other member has one",
                ),
                _ if self.some_have_roles => section.missing(
                    &keys::PRIORITY,
                    "N",
                    ", because other members have roles: active is 0, standby is 1",
                ),
                _ => {}
            }
            return Rank {
                role: None,
                priority: 0,
            };
        };
        let priority = entry.integer().map_or(0, |priority| priority.value);
        Rank {
            role: None,
            priority: priority as u16,
        }
    }
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
fn member(parts: Parts<'_, '_>, rank: Rank, settings: Settings) -> Option<Member> {
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
        .and_then(|entry| policy(&entry, written, &section.title, "trackers"));
    // In the short form both are the service's.
    let is_long = parts.outer.is_some();
    let name = section
        .entry(&keys::MEMBER_NAME)
        .filter(|_| is_long)
        .and_then(|entry| entry.parsed("a name", checked_name));
    let weight = section
        .entry(&keys::WEIGHT)
        .filter(|_| is_long)
        .and_then(|entry| entry.integer());
    let mark = parts
        .inherited(&keys::MEMBER_MARK)
        .and_then(|entry| entry.integer());
    let Rank { role, priority } = rank;
    let endpoint = endpoint?.value;
    Some(Member {
        name: name.map_or_else(
            || default_name(role, endpoint),
            |name| name.value.as_str().into(),
        ),
        role,
        priority,
        weight: weight.map_or_else(
            || keys::WEIGHT.default_integer() as u16,
            |weight| weight.value as u16,
        ),
        endpoint,
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

/// What a member is called that has no name: its role, else its endpoint.
pub fn default_name(role: Option<Role>, endpoint: IpAddr) -> Arc<str> {
    match role {
        Some(role) => role.as_str().into(),
        None => endpoint.to_string().into(),
    }
}

fn policy(entry: &Entry<'_>, count: u32, title: &str, what: &str) -> Option<Policy> {
    let number = || format!("a number of {what} from 1 to {count}");
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
    if count > 0 && wanted > count {
        entry.refuse(format_args!(
            "more than the {count} {what} of {title}; give \"any\", \"all\" or {}",
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
    let members = &service.members;
    let roles = || members.iter().filter_map(|member| member.role);
    let distinct: HashSet<Role> = roles().collect();
    let is_lone_standby = members.len() == 1 && distinct.contains(&Role::Standby);
    if members.is_empty() || distinct.len() != roles().count() || is_lone_standby {
        let roles: Vec<Role> = roles().collect();
        return Err(format!("{} members with roles {roles:?}", members.len()));
    }
    let mut names = HashSet::new();
    for member in members {
        let name = &*member.name;
        checked_name(name)?;
        if !names.insert(name) {
            return Err(format!("member {name:?} is there twice"));
        }
        let rank = (member.role, member.priority);
        let is_ranked = member
            .role
            .is_none_or(|role| role.priority() == member.priority);
        let weights = keys::WEIGHT.integers();
        if !is_ranked || !weights.contains(&member.weight.into()) {
            return Err(format!(
                "member {name:?} {rank:?}, weight {}",
                member.weight
            ));
        }
    }
    let needed = service.members_up.needed(members.len());
    if !(1..=members.len()).contains(&needed) {
        return Err(format!("{needed} of {} members", members.len()));
    }
    members.iter().try_for_each(|member| checked_member(member))
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
    let needed = member.policy.needed(count);
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

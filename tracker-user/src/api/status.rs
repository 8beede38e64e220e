//! What `status` and `service list` say, put together from facts: the one place where that is done.
//!
//! A large status is made in slices, so that what it is read from is never locked for more than a few trackers.

use std::{collections::HashSet, net::IpAddr};

use glob::Pattern;
use tracker_ebpf::abi;

use super::types::{
    ChainStatus, Counters, HeldStatus, LatenessUs, ListedMember, ListedService, MemberStatus,
    RttUs, ServiceStatus, Status, SteeringStatus, TrackerStatus, Transition,
};
use crate::{
    config::{self, Protocol, Role, Tracker},
    desired::model::{MemberId, ServiceId, TrackerRef},
    detector::lateness::Health,
    plan::address::mac_text,
    state::{
        hold_down::Held,
        tree::{AdminOf, ChainState, MemberState, ServiceState, Stamp, StateTree, TrackerEntry},
    },
};

/// What is known beside the state tree, while a slice is read.
pub struct Facts<C, S> {
    /// The counters of a tracker, which has a slot once it is installed. Called for each tracker once.
    pub counters: C,
    /// Packets that were steered to a member and replies that came back, while there is steering.
    pub steered: Option<S>,
}

/// No steering, for [`Facts::steered`].
pub type NotSteered = fn(Option<u32>) -> abi::Steered;

/// Which services a status is about, and what it says beside them.
#[derive(Clone, Debug)]
pub struct Outline {
    hub: String,
    instance: String,
    chains: Vec<ChainStatus>,
    /// The services, in the order in which they are reported.
    pub services: Vec<ServiceId>,
    /// The generation of the state tree to which the services' members and trackers belong.
    pub generation: u64,
}

/// How far a status that is put together in slices has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Position in the list of services.
    service: usize,
    member: usize,
    tracker: usize,
}

impl Cursor {
    /// Whether services of the outline are left.
    pub fn has_more(&self, outline: &Outline) -> bool {
        self.service < outline.services.len()
    }

    const fn next_service(&mut self) {
        *self = Self {
            service: self.service + 1,
            member: 0,
            tracker: 0,
        };
    }
}

/// The outline of a status of everything, or of the services and chains that `names` match, and the chains' services.
///
/// # Errors
/// When a name matches nothing; the error names what is most like it.
pub fn outline(tree: &StateTree, names: &[Pattern]) -> Result<Outline, String> {
    if names.is_empty() {
        return Ok(everything(tree));
    }
    let mut chains = vec![false; tree.chains().len()];
    let mut wanted = HashSet::new();
    for name in names {
        let mut is_known = false;
        if let Some(service) = tree.find(name.as_str()) {
            is_known = true;
            wanted.insert(service);
        } else if is_glob(name) {
            let matching = tree
                .services()
                .filter(|service| name.matches(&service.name));
            for service in matching {
                is_known = true;
                wanted.insert(service.id);
            }
        }
        for (chain, is_wanted) in tree.chains().iter().zip(&mut chains) {
            if *chain.name == *name.as_str() || name.matches(&chain.name) {
                (is_known, *is_wanted) = (true, true);
                wanted.extend(&chain.services);
            }
        }
        if !is_known {
            return Err(no_such(tree, name.as_str()));
        }
    }
    let services = tree.numbers().into_iter().filter(|id| wanted.contains(id));
    let chains = tree.chains().iter().zip(chains);
    let chains = chains.filter_map(|(chain, is_wanted)| is_wanted.then_some(chain));
    Ok(outline_of(tree, chains, services.collect()))
}

/// Whether a pattern may match more than its own text.
fn is_glob(pattern: &Pattern) -> bool {
    pattern.as_str().contains(['*', '?', '['])
}

/// The names of the services in the chains that `names` match.
pub fn chained(tree: &StateTree, names: &[Pattern]) -> Vec<String> {
    let is_wanted = |chain: &&ChainState| names.iter().any(|name| name.matches(&chain.name));
    let services = tree.chains().iter().filter(is_wanted);
    let services = services.flat_map(|chain| &chain.services);
    let services = services.filter_map(|id| tree.service(*id));
    services.map(|service| service.name.to_string()).collect()
}

fn everything(tree: &StateTree) -> Outline {
    outline_of(tree, tree.chains(), tree.numbers())
}

fn outline_of<'c>(
    tree: &StateTree,
    chains: impl IntoIterator<Item = &'c ChainState>,
    services: Vec<ServiceId>,
) -> Outline {
    let (hub, instance) = tree.names();
    Outline {
        hub: hub.to_owned(),
        instance: instance.to_owned(),
        chains: chains
            .into_iter()
            .map(|chain| chain_status(tree, chain))
            .collect(),
        services,
        generation: tree.generation(),
    }
}

impl Outline {
    /// The status, but for its services. Its age is that of `now_ns`.
    pub fn frame(
        &self,
        steering: Option<SteeringStatus>,
        run: String,
        health: &Health,
        now_ns: u64,
    ) -> Status {
        let mut status = Status {
            hub: self.hub.clone(),
            instance: self.instance.clone(),
            services: Vec::new(),
            chains: self.chains.clone(),
            steering,
            lateness_us: LatenessUs::new(health, now_ns),
            stalls: health.stalls.load(std::sync::atomic::Ordering::Relaxed),
            run,
            as_of_ms: health.age_ns(now_ns) / 1_000_000,
            last_reload: None,
        };
        if status.is_stalled() {
            status.stall();
        }
        status
    }
}

/// Adds the next services of an outline to a status, about `limit` trackers at a time; a service of more trackers is
/// taken up in the middle. Returns whether there is more.
pub fn slice<C, S>(
    tree: &StateTree,
    outline: &Outline,
    cursor: &mut Cursor,
    limit: usize,
    now: Stamp,
    facts: &Facts<C, S>,
    into: &mut Vec<ServiceStatus>,
) -> bool
where
    C: Fn(TrackerRef, Option<u32>) -> Counters,
    S: Fn(Option<u32>) -> abi::Steered,
{
    let mut left = limit;
    while let Some(id) = outline.services.get(cursor.service) {
        if left == 0 {
            return true;
        }
        let Some(service) = tree.service(*id) else {
            // Removed meanwhile; what was taken of it is still what it was.
            cursor.next_service();
            continue;
        };
        if (cursor.member, cursor.tracker) == (0, 0) {
            // It has at least one tracker, which is taken in the same slice.
            into.push(service_status(
                service,
                tree.flap_window_ns(),
                now,
                facts.steered.as_ref(),
            ));
        }
        let status = into.last_mut();
        let status = status.and_then(|status| status.members.get_mut(cursor.member));
        let (Some(member), Some(status)) = (service.members.get(cursor.member), status) else {
            cursor.next_service();
            continue;
        };
        let from = cursor.tracker.min(member.trackers.len());
        let to = from.saturating_add(left).min(member.trackers.len());
        let id = MemberId {
            service: *id,
            member: member.id,
        };
        let trackers = member.settings.trackers.iter().zip(&member.trackers);
        let trackers = (0..).zip(trackers).skip(from).take(to - from);
        status
            .trackers
            .extend(trackers.map(|(at, (settings, entry))| {
                let counters = (facts.counters)(id.tracker(at), entry.slot);
                tracker_status(member, settings, at, entry, now.mono_ns, &counters)
            }));
        left -= to - from;
        cursor.tracker = to;
        if to == member.trackers.len() {
            (cursor.member, cursor.tracker) = (cursor.member + 1, 0);
            if cursor.member == service.members.len() {
                cursor.next_service();
            }
        }
    }
    false
}

/// The status of everything that a tree knows, without counters, put together at once.
pub fn whole(tree: &StateTree, now: Stamp) -> Status {
    let facts: Facts<_, NotSteered> = Facts {
        counters: |_: TrackerRef, _: Option<u32>| Counters::default(),
        steered: None,
    };
    let (mut cursor, mut services) = (Cursor::default(), Vec::new());
    let outline = everything(tree);
    while slice(
        tree,
        &outline,
        &mut cursor,
        usize::MAX,
        now,
        &facts,
        &mut services,
    ) {}
    Status {
        services,
        ..outline.frame(None, String::new(), &Health::default(), 0)
    }
}

/// What `tracker service list` shows of these services.
pub fn list(tree: &StateTree, services: &[ServiceId]) -> Vec<ListedService> {
    let services = services.iter().filter_map(|id| tree.service(*id));
    services.map(listed).collect()
}

fn listed(service: &ServiceState) -> ListedService {
    let members = service.members.iter().map(|member| ListedMember {
        name: member.settings.name.to_string(),
        role: member.settings.role,
        endpoint: member.settings.endpoint,
        interface: member.interface().cloned(),
        behind: member
            .settings
            .trackers
            .iter()
            .map(|tracker| tracker.behind)
            .collect(),
    });
    ListedService {
        name: service.name.to_string(),
        owner: service.owner,
        verdict: service.verdict,
        cause: service.deciding().cause,
        members: members.collect(),
    }
}

fn no_such(tree: &StateTree, name: &str) -> String {
    let services = tree.services().map(|service| &*service.name);
    let chains = tree.chains().iter().map(|chain| &*chain.name);
    let what = match is_glob(&Pattern::new(name).unwrap_or_default()) {
        true => format!("no service or chain matches {name:?}"),
        false => format!("no service or chain is named {name:?}"),
    };
    match config::likeliest(name, services.chain(chains)) {
        Some(likeliest) => {
            format!(
                "{what}; the nearest name is {likeliest:?}, and `tracker service list` shows all"
            )
        }
        None => format!("{what}; this hub has none at all"),
    }
}

/// What to say if no service has this name.
pub fn no_such_service(tree: &StateTree, name: &str) -> String {
    let services = tree.services().map(|service| &*service.name);
    match config::likeliest(name, services) {
        Some(likeliest) => format!("no service is named {name:?}; did you mean {likeliest:?}?"),
        None => format!("no service is named {name:?}; this hub has none"),
    }
}

/// What an admin state is imposed on: a service, or one of its members by its name, else by its role or endpoint.
///
/// # Errors
/// When nothing has this name.
pub fn admin_of(tree: &StateTree, service: &str, member: Option<&str>) -> Result<AdminOf, String> {
    let state = tree.find(service).and_then(|id| tree.service(id));
    let state = state.ok_or_else(|| no_such_service(tree, service))?;
    let member = match member {
        None => None,
        Some(name) => {
            let mut members = state.members.iter();
            let named = members.find(|member| &*member.settings.name == name);
            let endpoint: Option<IpAddr> = name.parse().ok();
            let is_it = |member: &&MemberState| {
                let role = member.settings.role.map(Role::as_str);
                role == Some(name) || endpoint == Some(member.settings.endpoint)
            };
            let found = named.or_else(|| state.members.iter().find(is_it));
            let found = found.ok_or_else(|| no_such_member(state, name))?;
            Some(found.id)
        }
    };
    Ok(AdminOf {
        service: state.id,
        member,
    })
}

/// So many members are named when none has a name; the others are counted.
const NAMED: usize = 10;

/// What to say if no member of a service has this name.
fn no_such_member(service: &ServiceState, name: &str) -> String {
    let names = || service.members.iter().map(|member| &*member.settings.name);
    let mut known: Vec<String> = names().take(NAMED).map(str::to_owned).collect();
    if let more @ 1.. = service.members.len().saturating_sub(NAMED) {
        known.push(format!("{more} more"));
    }
    let last = known.pop().unwrap_or_default();
    let list = match known.is_empty() {
        true => last,
        false => format!("{} and {last}", known.join(", ")),
    };
    let service_name = &service.name;
    let text = format!("service {service_name:?} has no member {name:?}; it has {list}");
    match config::likeliest(name, names()) {
        Some(nearest) if service.is_pool() => format!("{text}; did you mean {nearest:?}?"),
        _ => text,
    }
}

/// The status of a service, whose trackers are still to be added.
fn service_status<S: Fn(Option<u32>) -> abi::Steered>(
    service: &ServiceState,
    flap_window_ns: u64,
    now: Stamp,
    steered: Option<&S>,
) -> ServiceStatus {
    let is_pool = service.is_pool();
    let members: Vec<MemberStatus> = service
        .members
        .iter()
        .map(|member| {
            let steered = steered.map(|steered| steered(member.slot));
            MemberStatus {
                name: member.settings.name.to_string(),
                role: member.settings.role,
                priority: is_pool.then_some(member.settings.priority),
                weight: is_pool.then_some(member.settings.weight),
                endpoint: member.settings.endpoint,
                interface: member.interface().cloned(),
                mode: member.path.mode,
                verdict: member.verdict,
                cause: member.deciding().cause,
                trackers: Vec::with_capacity(member.trackers.len()),
                send: member.path.send,
                steered: steered.map(|steered| steered.steered),
                replied: steered.map(|steered| steered.replied),
                effective: member.effective,
                admin: (*member.admin).clone(),
                last_verdict: None,
                mark: member.settings.mark,
                path: member.slot,
            }
        })
        .collect();
    let sum = |count: fn(&MemberStatus) -> Option<u64>| members.iter().map(count).sum();
    ServiceStatus {
        name: service.name.to_string(),
        verdict: service.verdict,
        cause: service.deciding().cause,
        since: service.since,
        selected: service.selected(),
        steered: sum(|member| member.steered),
        replied: sum(|member| member.replied),
        members,
        flaps: service.flaps.recent(now.mono_ns, flap_window_ns),
        flaps_total: service.flaps.total,
        effective: service.effective,
        admin: (*service.admin).clone(),
        owner: service.owner,
        transitions: (service.transitions.iter())
            .map(|&((to, cause), count)| Transition { to, cause, count })
            .collect(),
        last_verdict: None,
        members_up: is_pool.then(|| service.needed()),
    }
}

fn chain_status(tree: &StateTree, chain: &ChainState) -> ChainStatus {
    let services = chain.services.iter().filter_map(|id| tree.service(*id));
    ChainStatus {
        name: chain.name.to_string(),
        verdict: chain.verdict,
        services: services.map(|service| service.name.to_string()).collect(),
        last_verdict: None,
    }
}

fn tracker_status(
    member: &MemberState,
    settings: &Tracker,
    at: u32,
    entry: &TrackerEntry,
    now_mono_ns: u64,
    counters: &Counters,
) -> TrackerStatus {
    let state = &entry.shown;
    let held = entry.held.as_ref();
    TrackerStatus {
        behind: settings.behind,
        probe: settings.probe,
        verdict: state.verdict,
        cause: state.cause,
        sent: counters.sent,
        received: counters.received,
        lost: counters.lost,
        duplicate: counters.duplicate,
        rtt_us: RttUs::from(counters),
        late: counters.late,
        corrupt: counters.corrupt,
        wrong_path: counters.wrong_path,
        elsewhere: counters.elsewhere,
        icmp_errors: counters.icmp_errors,
        skipped: counters.skipped,
        void: counters.void,
        proof: member
            .path
            .proofs
            .get(at as usize)
            .copied()
            .unwrap_or_default(),
        port: settings.port,
        return_ttl: counters.return_ttl,
        return_mac: counters.return_mac.map(mac_text),
        protocol: Some(settings.protocol).filter(|protocol| *protocol != Protocol::Echo),
        detail: state.detail.clone(),
        held: held.map(|held| held_status(held, settings, now_mono_ns)),
        last_verdict: None,
    }
}

fn held_status(held: &Held, settings: &Tracker, now_mono_ns: u64) -> HeldStatus {
    let due_ns = held.due_ns(settings.hold_down);
    HeldStatus {
        verdict: held.state.verdict,
        cause: held.state.cause,
        due_ms: due_ns.saturating_sub(now_mono_ns) / 1_000_000,
        detail: held.state.detail.clone(),
    }
}

/// What `status` shows of a slot's state.
pub fn counters(state: &abi::State) -> Counters {
    let abi::State {
        send,
        notice,
        receive,
        trouble,
        judge,
    } = state;
    let rtt = |ns: u64| (receive.received > 0).then_some(ns);
    Counters {
        sent: send.sent,
        received: receive.received,
        lost: judge.lost,
        duplicate: trouble.duplicate.into(),
        late: trouble.late.into(),
        corrupt: trouble.corrupt.into(),
        wrong_path: trouble.wrong_path.into(),
        elsewhere: receive.elsewhere.into(),
        icmp_errors: notice.icmp_errors.into(),
        skipped: judge.skipped,
        void: judge.void,
        rtt_last_ns: rtt(receive.rtt_last_ns),
        rtt_min_ns: rtt(receive.rtt_min_ns),
        rtt_avg_ns: rtt(receive
            .rtt_sum_ns
            .checked_div(receive.received)
            .unwrap_or(0)),
        rtt_max_ns: rtt(receive.rtt_max_ns),
        return_ttl: (receive.ttl > 0).then_some(receive.ttl),
        return_mac: (receive.hop_mac != [0; 6]).then_some(receive.hop_mac),
    }
}

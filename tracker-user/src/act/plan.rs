//! From what is wanted and what the kernel has to what must be done (pure).
//!
//! Everything that is done leaves the kernel in a state that was right before or is right after: next hops are made before groups
//! refer to them, a group is replaced in one message, routes follow groups, and what is no longer used goes last.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::{self, Display},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    choice::{Choice, Chosen, Selector, choose},
    nexthop::{Entry, Family, Group, Hop, NextHop, Put, Resilient, WEIGHT_MAX, What},
    view::{Service, View},
};
use crate::config::{Action, ActionKind, MapName, ResilientGroup, WhenAllDown};

/// Protocol number of the routes and next hops of `tracker act` (`RTPROT_*`), by which others can tell them.
pub const PROTOCOL: u8 = 116;

/// The most that two conversions between milliseconds, `clock_t` and jiffies lose (HZ is 100 at least).
const TICK: Duration = Duration::from_millis(20);

/// The most next hops of a group: their attribute has 16 bits for its length.
const GROUP_MAX: usize = 4_096;

/// An interface, as far as next hops need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its names.
    pub names: Vec<String>,
    /// Whether it is up and has a carrier.
    pub is_usable: bool,
    /// Whether packets need the MAC address of a gateway there.
    pub has_gateways: bool,
}

/// What identifies a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteKey {
    /// The destination.
    pub prefix: IpNet,
    /// Number of the table.
    pub table: u32,
    /// Metric.
    pub metric: u32,
}

impl Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metric {}", self.prefix, self.metric)?;
        match self.table {
            254 => Ok(()),
            table => write!(f, " table {table}"),
        }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// By a next-hop group.
    Group(u32),
    /// By a next hop of its own.
    Hop(Hop),
    /// In another way, which these messages do not make.
    Other,
}

impl Display for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(id) => write!(f, "group {id}"),
            Self::Hop(hop) => write!(f, "a next hop {hop}"),
            Self::Other => f.write_str("another way"),
        }
    }
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Next-hop objects by id: all of them.
    pub objects: BTreeMap<u32, NextHop>,
    /// Routes of protocol 116.
    pub routes: BTreeMap<RouteKey, Lead>,
    /// The interfaces by which addresses are reached that actions go around a service by, without a router in between.
    pub on_link: HashMap<IpAddr, u32>,
}

impl Seen {
    /// Ids of the next hops that groups refer to.
    pub fn referred(&self) -> HashSet<u32> {
        let groups = self
            .objects
            .values()
            .filter_map(|object| match &object.what {
                What::Group(group) => Some(&group.entries),
                _ => None,
            });
        groups.flatten().map(|entry| entry.id).collect()
    }
}

/// What is `tracker act`'s own, of all that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Ids of next hops.
    pub hops: BTreeSet<u32>,
    /// Ids of groups.
    pub groups: BTreeSet<u32>,
    /// Routes.
    pub routes: BTreeSet<RouteKey>,
    /// Maps of nftables that have elements of ours.
    #[serde(default)]
    pub maps: BTreeSet<MapName>,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a next hop.
    CreateHop(Hop),
    /// Makes a group, or replaces its content.
    PutGroup {
        /// Name of the action.
        action: String,
        /// Id of the group.
        id: u32,
        /// Whether it is new.
        put: Put,
        /// Its next hops, each with its weight.
        entries: Vec<(Hop, u16)>,
        /// Present if it is resilient.
        resilient: Option<Resilient>,
    },
    /// Makes a route, or has it lead elsewhere.
    PutRoute {
        /// Name of the action.
        action: String,
        /// Which one.
        key: RouteKey,
        /// Where it leads.
        lead: Lead,
        /// Whether it is new.
        put: Put,
    },
    /// Removes a route.
    DeleteRoute(RouteKey),
    /// Removes a group that no action keeps any longer.
    DeleteGroup(u32),
    /// Removes a next hop.
    DeleteHop(u32),
}

/// Something that keeps an action from being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Name of the action.
    pub action: String,
    /// What is wrong and what to do.
    pub text: String,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub operations: Vec<Operation>,
    /// Where the traffic of actions goes from now on, by their names; those that do not change are left out.
    pub choices: BTreeMap<String, Choice>,
    /// What keeps actions from being done.
    pub troubles: Vec<Trouble>,
}

/// An action of the configuration, ready to be planned.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The action.
    pub action: Action,
    /// Its services.
    pub selector: Selector,
}

impl Rule {
    /// The rule of an action.
    pub fn of(action: &Action) -> Self {
        Self {
            selector: Selector::of(action),
            action: action.clone(),
        }
    }

    /// The id of the group that the action keeps, if it keeps one.
    pub fn group_id(&self) -> Option<u32> {
        match self.action.kind {
            ActionKind::NexthopGroup { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The route that the action keeps, if it keeps one.
    pub fn route_key(&self) -> Option<RouteKey> {
        match self.action.kind {
            ActionKind::Route {
                prefix,
                metric,
                table,
                ..
            } => Some(RouteKey {
                prefix,
                table,
                metric,
            }),
            _ => None,
        }
    }
}

/// What a plan is made from.
pub struct Planner<'p> {
    /// The actions.
    pub rules: &'p [Rule],
    /// What is known of services; `None` while the daemon did not answer yet.
    pub view: Option<&'p View>,
    /// Where the traffic of actions goes now, by their names.
    pub choices: &'p BTreeMap<String, Choice>,
    /// What the kernel has.
    pub seen: &'p Seen,
    /// What of that is ours.
    pub owned: &'p Owned,
    /// Next hops that the kernel refused not long ago.
    pub refused: &'p HashSet<Hop>,
    /// The services that changed since the last plan, if nothing else did: then only their actions are planned.
    pub changed: Option<&'p BTreeSet<String>>,
}

/// What is gathered while a plan is made.
#[derive(Default)]
struct Draft {
    plan: Plan,
    /// Next hops that must exist.
    needed: BTreeSet<Hop>,
    groups: Vec<Operation>,
    routes: Vec<Operation>,
    /// Groups that exist once the plan is done.
    present: BTreeSet<u32>,
    /// Groups whose content is replaced.
    replaced: HashSet<u32>,
}

impl Draft {
    fn trouble(&mut self, action: &Action, text: String) {
        self.plan.troubles.push(Trouble {
            action: action.name.clone(),
            text,
        });
    }
}

/// Interfaces by name.
type Names<'l> = HashMap<&'l str, u32>;

impl Planner<'_> {
    /// What is to be done.
    pub fn plan(&self) -> Plan {
        let mut draft = Draft::default();
        let links = self.seen.links.iter();
        let names: Names<'_> = links
            .flat_map(|(index, link)| link.names.iter().map(|name| (name.as_str(), *index)))
            .collect();
        let ids = self.ids();
        let present = self
            .owned
            .groups
            .iter()
            .filter(|id| self.is_our_group(**id));
        draft.present.extend(present);
        let rules = || self.rules.iter().filter(|rule| self.is_planned(rule));
        for rule in rules() {
            if let ActionKind::NexthopGroup { id, resilient } = &rule.action.kind {
                self.group(rule, *id, resilient.as_ref(), &names, &ids, &mut draft);
            }
        }
        for rule in rules() {
            if let ActionKind::Route {
                prefix,
                group,
                metric,
                table,
            } = rule.action.kind
            {
                let key = RouteKey {
                    prefix,
                    table,
                    metric,
                };
                self.route(rule, key, group, &names, &mut draft);
            }
        }
        for rule in rules() {
            if let ActionKind::Nftables { .. } = rule.action.kind {
                self.choose(rule, &mut draft);
            }
        }
        self.finish(draft, &ids)
    }

    fn services(&self, rule: &Rule) -> Vec<&Service> {
        let view = self.view.map(|view| rule.selector.select(view));
        view.unwrap_or_default()
    }

    /// Whether a rule is to be planned.
    fn is_planned(&self, rule: &Rule) -> bool {
        self.changed
            .is_none_or(|changed| changed.iter().any(|name| rule.selector.matches(name)))
    }

    /// Our next hops, each by one of its ids.
    fn ids(&self) -> HashMap<Hop, u32> {
        let mut ids = HashMap::new();
        for id in &self.owned.hops {
            if let Some(NextHop {
                what: What::Hop(hop),
                protocol: PROTOCOL,
                ..
            }) = self.seen.objects.get(id)
            {
                ids.entry(*hop).or_insert(*id);
            }
        }
        ids
    }

    fn is_our_group(&self, id: u32) -> bool {
        let object = self.seen.objects.get(&id);
        object.is_some_and(|object| {
            object.protocol == PROTOCOL && matches!(object.what, What::Group(_))
        })
    }

    /// Where the traffic of a rule is to go, noted in the draft if that changes.
    fn choose(&self, rule: &Rule, draft: &mut Draft) -> Option<Choice> {
        let last = self.choices.get(&rule.action.name);
        let next = self
            .view
            .and_then(|view| choose(&rule.action, &rule.selector, view, last));
        match next {
            Some(next) => {
                if last != Some(&next) {
                    let name = rule.action.name.clone();
                    draft.plan.choices.insert(name, next.clone());
                }
                Some(next)
            }
            None => last.cloned(),
        }
    }

    fn group(
        &self,
        rule: &Rule,
        id: u32,
        resilient: Option<&ResilientGroup>,
        names: &Names<'_>,
        ids: &HashMap<Hop, u32>,
        draft: &mut Draft,
    ) {
        let action = &rule.action;
        let there = self.seen.objects.get(&id);
        let current = match there {
            None => None,
            Some(NextHop {
                what: What::Group(group),
                protocol: PROTOCOL,
                ..
            }) if self.owned.groups.contains(&id) => Some(group),
            Some(other) => {
                draft.trouble(action, foreign(id, other));
                return;
            }
        };
        let resilient = resilient.map(|group| Resilient {
            buckets: group.buckets,
            idle_timer: group.idle_timer,
            unbalanced_timer: group.unbalanced_timer,
        });
        if let Some(current) = current {
            let kind = |resilient: &Option<Resilient>| resilient.map(|resilient| resilient.buckets);
            if kind(&current.resilient) != kind(&resilient) {
                let text = format!(
                    "group {id} is {}, and the kernel changes that of no group: end `tracker act`, run it with --withdraw, and start it again",
                    described(current.resilient)
                );
                draft.trouble(action, text);
                return;
            }
        }
        let choice = self.choose(rule, draft);
        self.prepare(rule, names, draft);
        let Some(entries) = choice.and_then(|choice| self.entries(rule, &choice, names, draft))
        else {
            return;
        };
        draft.present.insert(id);
        let is_same = current.is_some_and(|current| {
            let wanted = entries
                .iter()
                .map(|(hop, weight)| Some((*ids.get(hop)?, *weight)));
            let mut wanted: Vec<Option<(u32, u16)>> = wanted.collect();
            let there = current.entries.iter();
            let mut there: Vec<_> = there
                .map(|Entry { id, weight }| Some((*id, *weight)))
                .collect();
            wanted.sort_unstable();
            there.sort_unstable();
            wanted == there && is_like(current.resilient, resilient)
        });
        draft.needed.extend(entries.iter().map(|(hop, _)| *hop));
        if !is_same {
            draft.replaced.insert(id);
            draft.groups.push(Operation::PutGroup {
                action: action.name.clone(),
                id,
                put: match current {
                    None => Put::Create,
                    Some(_) => Put::Replace,
                },
                entries,
                resilient,
            });
        }
    }

    /// Has every next hop made that a change of verdicts may need, so that the change is one message.
    fn prepare(&self, rule: &Rule, names: &Names<'_>, draft: &mut Draft) {
        for service in self.services(rule) {
            for member in &service.members {
                let hop = self.hop(member.endpoint, member.interface.as_deref(), names);
                draft.needed.extend(hop);
            }
        }
        match rule.action.when_all_down {
            WhenAllDown::Keep => {}
            WhenAllDown::Withdraw => drop(draft.needed.insert(self.blackhole(rule))),
            WhenAllDown::Bypass => draft.needed.extend(self.bypass(rule)),
        }
    }

    /// The content of a group; `None` if nothing of it can be made now.
    fn entries(
        &self,
        rule: &Rule,
        choice: &Choice,
        names: &Names<'_>,
        draft: &mut Draft,
    ) -> Option<Vec<(Hop, u16)>> {
        match choice {
            Choice::Withdraw => Some(vec![(self.blackhole(rule), 1)]),
            Choice::Bypass => match self.bypass(rule) {
                Some(hop) => Some(vec![(hop, 1)]),
                None => {
                    draft.trouble(&rule.action, unreachable_bypass(&rule.action));
                    None
                }
            },
            Choice::Members(members) => {
                let mut entries: Vec<(Hop, u16)> = Vec::with_capacity(members.len());
                let mut places: HashMap<Hop, usize> = HashMap::new();
                for member in members {
                    let Some(hop) = self.hop_of(member, names) else {
                        continue;
                    };
                    // The kernel takes no next hop twice.
                    match places.get(&hop) {
                        Some(at) => {
                            let weight = &mut entries[*at].1;
                            *weight = weight.saturating_add(member.weight).min(WEIGHT_MAX);
                        }
                        None => {
                            places.insert(hop, entries.len());
                            entries.push((hop, member.weight.clamp(1, WEIGHT_MAX)));
                        }
                    }
                }
                if entries.len() > GROUP_MAX {
                    let text = format!(
                        "{} members, of which {GROUP_MAX} are used: a group has no more; make several groups",
                        entries.len()
                    );
                    draft.trouble(&rule.action, text);
                    entries.truncate(GROUP_MAX);
                }
                (!entries.is_empty()).then_some(entries)
            }
        }
    }

    fn hop_of(&self, member: &Chosen, names: &Names<'_>) -> Option<Hop> {
        self.hop(member.endpoint, member.interface.as_deref(), names)
    }

    /// The next hop of an address on an interface; `None` while the interface cannot be used.
    fn hop(&self, endpoint: IpAddr, interface: Option<&str>, names: &Names<'_>) -> Option<Hop> {
        let index = *names.get(interface?)?;
        let link = self.seen.links.get(&index)?;
        if !link.is_usable {
            return None;
        }
        let hop = match link.has_gateways {
            true => Hop::Gateway(endpoint, index),
            false => Hop::Interface(Family::of(endpoint), index),
        };
        (!self.refused.contains(&hop)).then_some(hop)
    }

    /// The next hop that drops packets. IPv6 routes take no IPv4 one, IPv4 routes take both.
    fn blackhole(&self, rule: &Rule) -> Hop {
        let services = self.services(rule).into_iter();
        let mut members = services.flat_map(|service| &service.members).peekable();
        let is_v6 = members.peek().is_some() && members.all(|member| member.endpoint.is_ipv6());
        Hop::Blackhole(if is_v6 { Family::V6 } else { Family::V4 })
    }

    /// The next hop around the service, if it is reached without a router in between.
    fn bypass(&self, rule: &Rule) -> Option<Hop> {
        let address = rule.action.bypass_via?;
        let index = *self.seen.on_link.get(&address)?;
        self.seen.links.get(&index).filter(|link| link.is_usable)?;
        Some(Hop::Gateway(address, index))
    }

    fn route(
        &self,
        rule: &Rule,
        key: RouteKey,
        group: Option<u32>,
        names: &Names<'_>,
        draft: &mut Draft,
    ) {
        let action = &rule.action;
        let choice = match group {
            Some(_) => self.choose(rule, draft),
            None => self.choose_one(rule, draft),
        };
        let there = self.seen.routes.get(&key);
        let lead = match choice {
            None => return,
            Some(Choice::Withdraw) => {
                if there.is_some() {
                    draft.routes.push(Operation::DeleteRoute(key));
                }
                return;
            }
            Some(Choice::Bypass) => match self.bypass(rule) {
                Some(hop) => Lead::Hop(hop),
                None => {
                    draft.trouble(action, unreachable_bypass(action));
                    return;
                }
            },
            Some(Choice::Members(members)) => match group {
                Some(group) if draft.present.contains(&group) => Lead::Group(group),
                Some(_) => return,
                None => {
                    let hop = members.iter().find_map(|member| self.hop_of(member, names));
                    match hop {
                        Some(hop) => Lead::Hop(hop),
                        None => return,
                    }
                }
            },
        };
        if let (IpNet::V6(_), Lead::Hop(Hop::Gateway(IpAddr::V4(gateway), _))) = (key.prefix, lead)
        {
            let text = format!(
                "the IPv6 route {key} cannot lead by {gateway}: give the service an IPv6 endpoint, or another prefix"
            );
            draft.trouble(action, text);
            return;
        }
        if there != Some(&lead) {
            draft.routes.push(Operation::PutRoute {
                action: action.name.clone(),
                key,
                lead,
                put: match there {
                    None => Put::Create,
                    Some(_) => Put::Replace,
                },
            });
        }
    }

    /// Of the members that a rule may send traffic to, the one that a route leads by: the present one as long as it is one of them.
    fn choose_one(&self, rule: &Rule, draft: &mut Draft) -> Option<Choice> {
        let name = &rule.action.name;
        let Some(Choice::Members(mut members)) = self.choose(rule, draft) else {
            return draft
                .plan
                .choices
                .get(name)
                .or(self.choices.get(name))
                .cloned();
        };
        let last = match self.choices.get(name) {
            Some(Choice::Members(last)) => last.first(),
            _ => None,
        };
        let same = |member: &Chosen| {
            last.is_some_and(|last| last.service == member.service && last.member == member.member)
        };
        let at = members.iter().position(same).unwrap_or_default();
        members.swap(0, at);
        members.truncate(1);
        let choice = Choice::Members(members);
        match self.choices.get(name) == Some(&choice) {
            true => drop(draft.plan.choices.remove(name)),
            false => drop(draft.plan.choices.insert(name.clone(), choice.clone())),
        }
        Some(choice)
    }

    /// Puts the operations in order, with those that remove what no action needs.
    fn finish(&self, mut draft: Draft, ids: &HashMap<Hop, u32>) -> Plan {
        let create = draft.needed.iter().filter(|hop| !ids.contains_key(hop));
        let mut operations: Vec<Operation> = create.map(|hop| Operation::CreateHop(*hop)).collect();
        operations.append(&mut draft.groups);
        operations.append(&mut draft.routes);
        if self.changed.is_some() {
            draft.plan.operations = operations;
            return draft.plan;
        }

        let routes: HashSet<RouteKey> = self.rules.iter().filter_map(Rule::route_key).collect();
        let obsolete = self.owned.routes.iter().filter(|key| !routes.contains(key));
        let obsolete = obsolete.filter(|key| self.seen.routes.contains_key(key));
        operations.extend(obsolete.map(|key| Operation::DeleteRoute(*key)));

        let groups: HashSet<u32> = self.rules.iter().filter_map(Rule::group_id).collect();
        for id in &self.owned.groups {
            if !groups.contains(id) && self.is_our_group(*id) {
                operations.push(Operation::DeleteGroup(*id));
            }
        }

        // While nothing is known of services, any next hop may be needed soon.
        if self.view.is_some() {
            operations.extend(self.unused(&draft, ids, &groups));
        }
        draft.plan.operations = operations;
        draft.plan
    }

    /// Removes our next hops that neither an action needs nor a group refers to that stays.
    fn unused(
        &self,
        draft: &Draft,
        ids: &HashMap<Hop, u32>,
        groups: &HashSet<u32>,
    ) -> Vec<Operation> {
        let mut used: HashSet<u32> = HashSet::new();
        for object in self.seen.objects.values() {
            let What::Group(Group { entries, .. }) = &object.what else {
                continue;
            };
            let is_replaced = draft.replaced.contains(&object.id);
            let is_going = self.owned.groups.contains(&object.id) && !groups.contains(&object.id);
            if !is_replaced && !is_going {
                used.extend(entries.iter().map(|entry| entry.id));
            }
        }
        let owned = self.owned.hops.iter().filter_map(|id| {
            let object = self.seen.objects.get(id)?;
            match object.what {
                What::Hop(hop) if object.protocol == PROTOCOL => Some((*id, hop)),
                _ => None,
            }
        });
        let unused = owned.filter(|(id, hop)| {
            let is_needed = draft.needed.contains(hop) && ids.get(hop) == Some(id);
            !is_needed && !used.contains(id)
        });
        unused.map(|(id, _)| Operation::DeleteHop(id)).collect()
    }
}

/// Whether a group has these settings, as far as the kernel can: it counts timers in ticks of its own.
fn is_like(current: Option<Resilient>, wanted: Option<Resilient>) -> bool {
    match (current, wanted) {
        (None, None) => true,
        (Some(current), Some(wanted)) => {
            let near = |one: Duration, other: Duration| one.abs_diff(other) <= TICK;
            current.buckets == wanted.buckets
                && near(current.idle_timer, wanted.idle_timer)
                && near(current.unbalanced_timer, wanted.unbalanced_timer)
        }
        _ => false,
    }
}

fn described(resilient: Option<Resilient>) -> String {
    match resilient {
        None => "not resilient".to_owned(),
        Some(resilient) => format!("resilient with {} buckets", resilient.buckets),
    }
}

/// Why an object of a group's id is not ours.
fn foreign(id: u32, object: &NextHop) -> String {
    let what = match &object.what {
        What::Group(_) => "a group",
        What::Hop(_) | What::Other => "a next hop",
    };
    format!(
        "id {id} is {what} of another program (protocol {}): give the action another id, or delete that by `ip nexthop del id {id}`",
        object.protocol
    )
}

fn unreachable_bypass(action: &Action) -> String {
    let address = action.bypass_via.map(|address| address.to_string());
    format!(
        "bypass_via {} is on no network of the hub's own that is up; give a router that is, or bring the interface up",
        address.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracker_ebpf::verdict::Verdict;

    use super::*;
    use crate::act::{
        choice::tests::{action, service},
        view::Service,
    };

    /// What the kernel does with next hops, groups and routes, as far as it matters here: a hop goes with its interface's carrier, a
    /// group with its last hop, a route with its group.
    #[derive(Clone, Default)]
    struct Kernel {
        seen: Seen,
        next: u32,
    }

    impl Kernel {
        fn new(links: usize) -> Self {
            let links = (0..links).map(|at| {
                let link = Link {
                    names: vec![format!("eth{}", letter(at))],
                    is_usable: true,
                    has_gateways: true,
                };
                (at as u32 + 1, link)
            });
            let foreign = |what| NextHop {
                id: 0,
                protocol: 3,
                what,
            };
            let mut kernel = Self {
                next: 10,
                ..Self::default()
            };
            kernel.seen.links = links.collect();
            let hop = What::Hop(Hop::Gateway([10, 0, 0, 77].into(), 1));
            kernel.seen.objects.insert(5, foreign(hop));
            let entries = vec![Entry { id: 5, weight: 1 }];
            let group = What::Group(Group {
                entries,
                resilient: None,
            });
            kernel.seen.objects.insert(6, foreign(group));
            for (id, object) in &mut kernel.seen.objects {
                object.id = *id;
            }
            kernel.seen.on_link.insert([10, 0, 0, 254].into(), u32::MAX);
            let uplink = Link {
                names: vec!["uplink".to_owned()],
                is_usable: true,
                has_gateways: true,
            };
            kernel.seen.links.insert(u32::MAX, uplink);
            kernel
        }

        fn group(&self, id: u32) -> Option<Vec<Hop>> {
            let What::Group(group) = &self.seen.objects.get(&id)?.what else {
                return None;
            };
            let hops = group.entries.iter().map(|entry| {
                match self.seen.objects.get(&entry.id).map(|object| &object.what) {
                    Some(What::Hop(hop)) => *hop,
                    other => panic!("group {id} refers to {other:?}"),
                }
            });
            Some(hops.collect())
        }

        fn remove(&mut self, id: u32) {
            self.seen.objects.remove(&id).expect("an object");
            let mut emptied = Vec::new();
            for object in self.seen.objects.values_mut() {
                if let What::Group(group) = &mut object.what {
                    group.entries.retain(|entry| entry.id != id);
                    emptied.extend(group.entries.is_empty().then_some(object.id));
                }
            }
            for id in emptied {
                self.remove(id);
            }
            self.seen.routes.retain(|_, lead| *lead != Lead::Group(id));
        }

        fn carrier(&mut self, index: u32, is_usable: bool) {
            self.seen.links.get_mut(&index).expect("a link").is_usable = is_usable;
            if is_usable {
                return;
            }
            let gone = self
                .seen
                .objects
                .values()
                .filter_map(|object| match object.what {
                    What::Hop(Hop::Gateway(_, of) | Hop::Interface(_, of)) if of == index => {
                        Some(object.id)
                    }
                    _ => None,
                });
            for id in gone.collect::<Vec<_>>() {
                self.remove(id);
            }
        }

        /// Carries out an operation, as the actor does; what is ours is noted.
        fn run(&mut self, operation: &Operation, owned: &mut Owned) {
            match operation {
                Operation::CreateHop(hop) => {
                    if let Hop::Gateway(_, index) = hop {
                        assert!(self.seen.links[index].is_usable, "{hop:?}");
                    }
                    self.next += 1;
                    let object = NextHop {
                        id: self.next,
                        protocol: PROTOCOL,
                        what: What::Hop(*hop),
                    };
                    self.seen.objects.insert(self.next, object);
                    owned.hops.insert(self.next);
                }
                Operation::PutGroup {
                    id,
                    put,
                    entries,
                    resilient,
                    ..
                } => {
                    assert!(!entries.is_empty());
                    let is_there = self.seen.objects.contains_key(id);
                    assert_eq!(is_there, *put == Put::Replace);
                    owned.groups.insert(*id);
                    let of = |hop: &Hop| {
                        let ours = owned.hops.iter().find(|id| {
                            let object = self.seen.objects.get(id);
                            object.is_some_and(|object| object.what == What::Hop(*hop))
                        });
                        *ours.expect("a next hop")
                    };
                    let entries = entries.iter().map(|(hop, weight)| Entry {
                        id: of(hop),
                        weight: *weight,
                    });
                    let object = NextHop {
                        id: *id,
                        protocol: PROTOCOL,
                        what: What::Group(Group {
                            entries: entries.collect(),
                            resilient: *resilient,
                        }),
                    };
                    self.seen.objects.insert(*id, object);
                }
                Operation::PutRoute { key, lead, put, .. } => {
                    assert_eq!(self.seen.routes.contains_key(key), *put == Put::Replace);
                    if let Lead::Group(id) = lead {
                        assert!(self.group(*id).is_some());
                    }
                    owned.routes.insert(*key);
                    self.seen.routes.insert(*key, *lead);
                }
                Operation::DeleteRoute(key) => {
                    self.seen.routes.remove(key).expect("a route");
                }
                Operation::DeleteGroup(id) | Operation::DeleteHop(id) => self.remove(*id),
            }
        }
    }

    fn letter(at: usize) -> char {
        char::from(b'a' + at as u8)
    }

    const MEMBERS: usize = 4;

    /// Something that happens.
    #[derive(Clone, Debug)]
    enum Step {
        Verdict(usize, Verdict),
        Carrier(usize, bool),
        /// The daemon does not keep up.
        Stall,
        /// The actor is killed after so many operations, and starts again.
        Kill(usize),
        /// Another program deletes the group.
        Deleted,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![
            3 => Just(Verdict::Up),
            3 => Just(Verdict::Down),
            1 => Just(Verdict::Unknown)
        ];
        let step = prop_oneof![
            8 => (0..MEMBERS, verdict).prop_map(|(at, verdict)| Step::Verdict(at, verdict)),
            4 => (0..MEMBERS, any::<bool>()).prop_map(|(at, is)| Step::Carrier(at, is)),
            1 => Just(Step::Stall),
            3 => (0..6_usize).prop_map(Step::Kill),
            1 => Just(Step::Deleted),
        ];
        proptest::collection::vec(step, 1..40)
    }

    fn when() -> impl Strategy<Value = WhenAllDown> {
        prop_oneof![
            Just(WhenAllDown::Keep),
            Just(WhenAllDown::Withdraw),
            Just(WhenAllDown::Bypass)
        ]
    }

    /// A pool as the daemon would tell of it.
    fn pool(verdicts: &[Verdict]) -> Service {
        let word = |verdict: &Verdict| match verdict {
            Verdict::Up => "up*",
            Verdict::Down => "down",
            Verdict::Unknown => "unknown",
        };
        let members = verdicts.iter().enumerate();
        let members = members.map(|(at, verdict)| format!("{}={}", letter(at), word(verdict)));
        let of = |wanted| verdicts.contains(&wanted);
        let own = match (of(Verdict::Up), of(Verdict::Unknown)) {
            (true, _) => "up",
            (false, true) => "unknown",
            (false, false) => "down",
        };
        let members: Vec<_> = members.collect();
        service(&format!("fw {own}: {}", members.join(" ")))
    }

    fn route_rule() -> Rule {
        Rule::of(&Action {
            name: "r".to_owned(),
            kind: ActionKind::Route {
                prefix: "10.5.0.0/16".parse().expect("a prefix"),
                group: Some(4_000),
                metric: 0,
                table: 254,
            },
            ..action(&["fw"], WhenAllDown::Keep)
        })
    }

    /// The whole of an actor's memory, and its plan as it is now.
    #[derive(Clone, Default)]
    struct Memory {
        choices: BTreeMap<String, Choice>,
        owned: Owned,
    }

    fn planned(rules: &[Rule], view: &View, memory: &Memory, kernel: &Kernel) -> Plan {
        let planner = Planner {
            rules,
            view: Some(view),
            choices: &memory.choices,
            seen: &kernel.seen,
            owned: &memory.owned,
            refused: &HashSet::new(),
            changed: None,
        };
        planner.plan()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever happens in whatever order, and wherever the actor is killed: a group is never empty nor refers to what is not
        /// there by our doing, its content is always what it was or what it is to be, what is others' stays, and in the end
        /// there is nothing left to do.
        #[test]
        fn groups_are_right_at_any_moment(steps in steps(), when in when()) {
            let rules = [Rule::of(&action(&["fw"], when)), route_rule()];
            let mut kernel = Kernel::new(MEMBERS);
            let foreign = || [5, 6];
            let mut memory = Memory::default();
            let mut verdicts = vec![Verdict::Unknown; MEMBERS];
            for step in steps {
                let mut is_stalled = false;
                let mut limit = usize::MAX;
                match step {
                    Step::Verdict(at, verdict) => verdicts[at] = verdict,
                    Step::Carrier(at, is_usable) => kernel.carrier(at as u32 + 1, is_usable),
                    Step::Stall => is_stalled = true,
                    Step::Kill(after) => limit = after,
                    Step::Deleted => {
                        if kernel.seen.objects.contains_key(&4_000) {
                            kernel.remove(4_000);
                        }
                    }
                }
                let told = match is_stalled {
                    true => vec![Verdict::Unknown; MEMBERS],
                    false => verdicts.clone(),
                };
                let view = View::of(vec![pool(&told)]);
                let others: Vec<_> =
                    foreign().map(|id| kernel.seen.objects.get(&id).cloned()).into();
                let mut rounds = 0;
                loop {
                    let plan = planned(&rules, &view, &memory, &kernel);
                    prop_assert!(plan.troubles.is_empty(), "{:?}", plan.troubles);
                    if plan.operations.is_empty() && plan.choices.is_empty() {
                        break;
                    }
                    rounds += 1;
                    prop_assert!(rounds < 4, "{:?}", plan.operations);
                    let before = kernel.group(4_000);
                    let wanted = plan.operations.iter().find_map(|operation| match operation {
                        Operation::PutGroup { entries, .. } => {
                            Some(entries.iter().map(|(hop, _)| *hop).collect::<Vec<_>>())
                        }
                        _ => None,
                    });
                    // As the actor does it: choices are kept before the kernel is changed.
                    memory.choices.extend(plan.choices.clone());
                    for (at, operation) in plan.operations.iter().enumerate() {
                        if at == limit {
                            limit = usize::MAX;
                            break;
                        }
                        kernel.run(operation, &mut memory.owned);
                        let now = kernel.group(4_000);
                        prop_assert!(now == before || now == wanted, "{operation:?}: {before:?} {now:?} {wanted:?}");
                        prop_assert!(now.is_some() || before.is_none(), "{operation:?} took the group away");
                        if is_stalled && before.is_some() {
                            let left = |hops: &Option<Vec<Hop>>| hops.clone().unwrap_or_default().into_iter().collect::<BTreeSet<_>>();
                            prop_assert!(left(&now).is_superset(&left(&before)), "a stall took something away");
                        }
                    }
                }
                let after: Vec<_> = foreign().map(|id| kernel.seen.objects.get(&id).cloned()).into();
                prop_assert_eq!(others, after);

                // What is up and can be used is in use, and nothing that is down as long as something is up.
                let usable: Vec<usize> = (0..MEMBERS)
                    .filter(|at| kernel.seen.links[&(*at as u32 + 1)].is_usable)
                    .collect();
                let up: BTreeSet<u32> = usable
                    .iter()
                    .filter(|at| told[**at] == Verdict::Up)
                    .map(|at| *at as u32 + 1)
                    .collect();
                let indexes = kernel.group(4_000).map(|hops| {
                    let indexes = hops.iter().map(|hop| match hop {
                        Hop::Gateway(_, index) => *index,
                        _ => 0,
                    });
                    indexes.collect::<BTreeSet<u32>>()
                });
                if !up.is_empty() {
                    let indexes = indexes.clone().expect("a group");
                    prop_assert!(indexes.is_superset(&up), "{indexes:?} {up:?}");
                    for index in indexes {
                        prop_assert!(index as usize <= MEMBERS && index > 0, "{index}");
                        prop_assert!(told[index as usize - 1] != Verdict::Down, "{index} is down");
                    }
                    prop_assert_eq!(kernel.seen.routes.len(), 1);
                } else if told.iter().all(|verdict| *verdict == Verdict::Down) {
                    let expected = match when {
                        WhenAllDown::Keep => None,
                        WhenAllDown::Withdraw => Some([0].into()),
                        WhenAllDown::Bypass => Some([u32::MAX].into()),
                    };
                    if expected.is_some() {
                        prop_assert_eq!(indexes, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_change_of_verdict_is_one_message() {
        let rules = [
            Rule::of(&action(&["fw"], WhenAllDown::Withdraw)),
            route_rule(),
        ];
        let mut kernel = Kernel::new(MEMBERS);
        let mut memory = Memory::default();
        let mut run = |verdicts: [Verdict; 2], kernel: &mut Kernel| {
            let view = View::of(vec![pool(&verdicts)]);
            let plan = planned(&rules, &view, &memory, kernel);
            memory.choices.extend(plan.choices.clone());
            for operation in &plan.operations {
                kernel.run(operation, &mut memory.owned);
            }
            plan.operations.len()
        };
        use Verdict::{Down, Unknown, Up};
        // Two next hops, one that drops, the group, the route.
        assert_eq!(run([Unknown, Unknown], &mut kernel), 5);
        assert_eq!(run([Up, Unknown], &mut kernel), 0);
        assert_eq!(run([Up, Down], &mut kernel), 1);
        assert_eq!(run([Down, Down], &mut kernel), 1);
        assert_eq!(kernel.group(4_000), Some(vec![Hop::Blackhole(Family::V4)]));
        assert_eq!(run([Down, Up], &mut kernel), 1);
        // Both carriers are lost, and one comes back.
        kernel.carrier(1, false);
        kernel.carrier(2, false);
        assert_eq!(kernel.group(4_000), None);
        assert_eq!(run([Down, Up], &mut kernel), 0);
        kernel.carrier(2, true);
        assert_eq!(run([Down, Up], &mut kernel), 3);
        assert_eq!(kernel.group(4_000).map(|hops| hops.len()), Some(1));
        assert_eq!(kernel.seen.routes.len(), 1);
    }

    #[test]
    fn an_id_of_another_program_is_refused() {
        let mut rule = Rule::of(&action(&["fw"], WhenAllDown::Keep));
        rule.action.kind = ActionKind::NexthopGroup {
            id: 6,
            resilient: None,
        };
        let kernel = Kernel::new(1);
        let view = View::of(vec![pool(&[Verdict::Up])]);
        let plan = planned(&[rule.clone()], &view, &Memory::default(), &kernel);
        assert_eq!(plan.operations, []);
        let text = "id 6 is a group of another program (protocol 3): give the action another id, or delete that by `ip nexthop del id 6`";
        assert_eq!(plan.troubles[0].text, text);
        // Of ours the kernel changes no kind.
        let mut memory = Memory::default();
        memory.owned.groups.insert(6);
        let mut kernel = kernel;
        kernel.seen.objects.get_mut(&6).expect("it").protocol = PROTOCOL;
        rule.action.kind = ActionKind::NexthopGroup {
            id: 6,
            resilient: Some(ResilientGroup {
                buckets: 64,
                idle_timer: std::time::Duration::ZERO,
                unbalanced_timer: std::time::Duration::ZERO,
            }),
        };
        let plan = planned(&[rule], &view, &memory, &kernel);
        assert!(
            plan.troubles[0]
                .text
                .starts_with("group 6 is not resilient, and")
        );
    }

    #[test]
    fn a_route_stays_with_its_member_and_goes_when_the_action_goes() {
        let mut rule = route_rule();
        let key = RouteKey {
            prefix: "10.5.0.0/16".parse().expect("a prefix"),
            table: 254,
            metric: 0,
        };
        rule.action.kind = ActionKind::Route {
            prefix: key.prefix,
            group: None,
            metric: 0,
            table: 254,
        };
        let mut kernel = Kernel::new(MEMBERS);
        let mut memory = Memory::default();
        let rules = [rule];
        let mut run = |rules: &[Rule], verdicts: [Verdict; 2], kernel: &mut Kernel| {
            let view = View::of(vec![pool(&verdicts)]);
            let plan = planned(rules, &view, &memory, kernel);
            memory.choices.extend(plan.choices.clone());
            for operation in &plan.operations {
                kernel.run(operation, &mut memory.owned);
            }
            match kernel.seen.routes.get(&key) {
                Some(Lead::Hop(Hop::Gateway(_, index))) => Some(*index),
                _ => None,
            }
        };
        use Verdict::{Down, Up};
        assert_eq!(run(&rules, [Up, Up], &mut kernel), Some(1));
        assert_eq!(run(&rules, [Down, Up], &mut kernel), Some(2));
        assert_eq!(run(&rules, [Up, Up], &mut kernel), Some(2));
        assert_eq!(run(&rules, [Down, Down], &mut kernel), Some(2));
        assert_eq!(run(&[], [Down, Down], &mut kernel), None);
    }

    #[test]
    fn timers_are_equal_within_the_kernels_ticks() {
        let of = |idle, unbalanced| {
            Some(Resilient {
                buckets: 64,
                idle_timer: Duration::from_millis(idle),
                unbalanced_timer: Duration::from_millis(unbalanced),
            })
        };
        assert!(is_like(of(20, 1_000), of(35, 1_005)));
        assert!(!is_like(of(20, 1_000), of(20, 1_100)));
        assert!(!is_like(None, of(20, 1_000)) && is_like(None, None));
    }

    #[test]
    fn equal_next_hops_share_and_weights_stay_in_range() {
        let rules = [Rule::of(&action(&["fw*"], WhenAllDown::Keep))];
        let mut two = pool(&[Verdict::Up]);
        two.name = "fw-2".to_owned();
        let mut one = pool(&[Verdict::Up]);
        one.members[0].weight = 200;
        two.members[0].weight = 100;
        let view = View::of(vec![one, two]);
        let plan = planned(&rules, &view, &Memory::default(), &Kernel::new(1));
        let Some(Operation::PutGroup { entries, .. }) = plan.operations.last() else {
            panic!("{plan:?}");
        };
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].1, 256);
    }
}

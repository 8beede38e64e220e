//! Which members an action sends traffic to, by what is known of its services (pure).
//!
//! What is not known changes nothing: a member whose verdict is `unknown` stays as it is, in or out. A member that is known to be
//! down goes as soon as another one can take its traffic. Nothing is ever left empty unless `when_all_down` says so.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use glob::Pattern;
use serde::{Deserialize, Serialize};
use tracker_ebpf::verdict::Verdict;

use super::view::{Member, Service, View};
use crate::{
    config::{Action, AtStart, WhenAllDown},
    state::admin::AdminState,
};

/// A member that takes traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Name of its service.
    pub service: String,
    /// Its name within the service.
    pub member: String,
    /// Its address.
    pub endpoint: IpAddr,
    /// The way out, if that is known.
    pub interface: Option<String>,
    /// Its share.
    pub weight: u16,
    /// The mark of packets that go to it, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
}

/// Where the traffic of an action goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// To these members; never none.
    Members(Vec<Chosen>),
    /// Nowhere.
    Withdraw,
    /// Around the service.
    Bypass,
}

/// The names and patterns of services of an action.
#[derive(Clone, Debug)]
pub struct Selector {
    names: HashSet<String>,
    patterns: Vec<Pattern>,
}

impl Selector {
    /// The selector of an action.
    pub fn of(action: &Action) -> Self {
        Self::new(&action.services)
    }

    /// A selector of these names and patterns.
    pub fn new<'t>(services: impl IntoIterator<Item = &'t String>) -> Self {
        let (names, patterns): (Vec<&String>, Vec<&String>) = services
            .into_iter()
            .partition(|text| Pattern::escape(text) == **text);
        // The configuration has checked the patterns.
        let patterns = patterns.iter().filter_map(|text| Pattern::new(text).ok());
        Self {
            names: names.into_iter().cloned().collect(),
            patterns: patterns.collect(),
        }
    }

    /// Whether a service counts.
    pub fn matches(&self, service: &str) -> bool {
        self.names.contains(service) || self.patterns.iter().any(|one| one.matches(service))
    }

    /// The services that count, in their order. Those that are named are not looked for among all.
    pub fn select<'v>(&self, view: &'v View) -> Vec<&'v Service> {
        if !self.patterns.is_empty() {
            let all = view.services().iter();
            return all.filter(|one| self.matches(&one.name)).collect();
        }
        let places = self.names.iter().filter_map(|name| view.place(name));
        let mut places: Vec<usize> = places.collect();
        places.sort_unstable();
        places.into_iter().map(|at| &view.services()[at]).collect()
    }
}

/// Where the traffic of an action is to go from now on; `None` if nothing is to change. `last` is where it goes now, `None` if
/// nothing was decided since the start.
pub fn choose(
    action: &Action,
    selector: &Selector,
    view: &View,
    last: Option<&Choice>,
) -> Option<Choice> {
    let now: HashMap<(&str, &str), &Chosen> = match last {
        Some(Choice::Members(members)) => {
            let members = members.iter();
            let named = members.map(|one| ((one.service.as_str(), one.member.as_str()), one));
            named.collect()
        }
        _ => HashMap::new(),
    };
    // One whose address changed is another member.
    let before = |service: &Service, member: &Member| {
        let one = now.get(&(service.name.as_str(), member.name.as_str()))?;
        (one.endpoint == member.endpoint).then_some(*one)
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    let (mut is_any, mut is_undecided) = (false, false);
    for service in selector.select(view) {
        is_any = true;
        let is_present = |member: &&Member| before(service, member).is_some();
        let is_held = |member: &&Member| match last {
            Some(_) => is_present(member),
            None => action.at_start == AtStart::All && member.effective != Verdict::Down,
        };
        let members = || service.members.iter();
        let picked: Vec<&Member> = match (service.effective, service.admin) {
            (Verdict::Down, AdminState::Down) => Vec::new(),
            (Verdict::Unknown, _) | (Verdict::Down, AdminState::Maintenance) => {
                is_undecided = true;
                members().filter(is_held).collect()
            }
            // One that is down may have members that are up: fewer than it needs.
            (Verdict::Up | Verdict::Down, _) => {
                let picked = in_use(service, is_held);
                match (picked.is_empty(), service.effective, service.admin) {
                    (false, ..) | (true, Verdict::Down, _) => picked,
                    (true, _, AdminState::Up) => {
                        let selected: Vec<_> =
                            members().filter(|member| member.is_selected).collect();
                        match selected.is_empty() {
                            true => members().collect(),
                            false => selected,
                        }
                    }
                    // Maintenance keeps it up although no member is.
                    (true, ..) => {
                        is_undecided = true;
                        members().filter(is_present).collect()
                    }
                }
            }
        };
        for member in picked {
            let before = before(service, member);
            let interface = member.interface.clone();
            chosen.push(Chosen {
                service: service.name.clone(),
                member: member.name.clone(),
                endpoint: member.endpoint,
                interface: interface.or_else(|| before?.interface.clone()),
                weight: member.weight,
                mark: member.mark,
            });
        }
    }
    if !chosen.is_empty() {
        return Some(Choice::Members(chosen));
    }
    if is_undecided || !is_any {
        return None;
    }
    match action.when_all_down {
        WhenAllDown::Keep => None,
        WhenAllDown::Withdraw => Some(Choice::Withdraw),
        WhenAllDown::Bypass => Some(Choice::Bypass),
    }
}

/// The members of a service that are up and selected, with those whose verdict is unknown if they are held, by priority. In the order
/// of the status, since the order within a group decides which flows go where.
fn in_use<'s>(service: &'s Service, is_held: impl Fn(&&'s Member) -> bool) -> Vec<&'s Member> {
    let up = || {
        let members = service.members.iter();
        members.filter(|member| member.effective == Verdict::Up)
    };
    let selected = up().filter(|member| member.is_selected).count();
    let members = service.members.iter();
    let picked = members.filter(|member| match member.effective {
        Verdict::Up => member.is_selected || selected == 0,
        Verdict::Unknown => is_held(member),
        Verdict::Down => false,
    });
    let wanted = match selected {
        0 => up().count(),
        selected => selected,
    };
    first(picked.collect(), wanted.max(1))
}

/// The members of the lowest priority number, and those of the next ones until so many are reached; in the order of the status.
fn first(mut members: Vec<&Member>, wanted: usize) -> Vec<&Member> {
    let mut priorities: Vec<u32> = members.iter().map(|member| member.priority).collect();
    priorities.sort_unstable();
    let last = priorities.get(wanted.min(priorities.len()).saturating_sub(1));
    let last = last.copied().unwrap_or_default();
    members.retain(|member| member.priority <= last);
    members
}

#[cfg(test)]
pub(super) mod tests {
    use tracker_ebpf::verdict::Cause;

    use super::*;
    use crate::config::ActionKind;

    /// An action of these services.
    pub(in crate::act) fn action(services: &[&str], when_all_down: WhenAllDown) -> Action {
        Action {
            name: "x".to_owned(),
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            when_all_down,
            bypass_via: (when_all_down == WhenAllDown::Bypass).then(|| [10, 0, 0, 254].into()),
            at_start: AtStart::All,
            kind: ActionKind::NexthopGroup {
                id: 4_000,
                resilient: None,
            },
        }
    }

    /// A service from a line such as `fw up: a=up* b=down c=unknown/1`: its verdict; each member with its verdict, `*` if it is
    /// selected, and its priority.
    pub(in crate::act) fn service(line: &str) -> Service {
        let verdict = |word: &str| match word {
            "up" => Verdict::Up,
            "down" => Verdict::Down,
            _ => Verdict::Unknown,
        };
        let (head, members) = line.split_once(": ").expect("a service");
        let (name, effective) = head.split_once(' ').expect("its verdict");
        let members = members.split(' ').enumerate().map(|(at, word)| {
            let (name, rest) = word.split_once('=').expect("a member");
            let (rest, priority) = rest.split_once('/').unwrap_or((rest, "0"));
            Member {
                name: name.to_owned(),
                endpoint: [10, 9, name.as_bytes()[0], at as u8 + 2].into(),
                interface: Some(format!("eth{name}")),
                effective: verdict(rest.trim_end_matches('*')),
                is_selected: rest.ends_with('*'),
                priority: priority.parse().expect("a priority"),
                weight: 1,
                mark: None,
                cause: Cause::default(),
                admin: AdminState::Auto,
                trackers: Vec::new(),
            }
        });
        Service {
            name: name.to_owned(),
            effective: verdict(effective),
            since: None,
            admin: AdminState::Auto,
            members: members.collect(),
        }
    }

    /// What is chosen, as names.
    fn names(choice: Option<&Choice>) -> String {
        match choice {
            None => "-".to_owned(),
            Some(Choice::Withdraw) => "withdraw".to_owned(),
            Some(Choice::Bypass) => "bypass".to_owned(),
            Some(Choice::Members(members)) => {
                let names: Vec<_> = members.iter().map(|one| one.member.as_str()).collect();
                names.join(" ")
            }
        }
    }

    /// Goes through views; each row is the services, and what is chosen.
    fn run(action: &Action, rows: &[(&[&str], &str)]) {
        let selector = Selector::of(action);
        let mut last = None;
        for (at, (services, expected)) in rows.iter().enumerate() {
            let view = View::of(services.iter().map(|line| service(line)).collect());
            let next = choose(action, &selector, &view, last.as_ref());
            last = next.or(last);
            assert_eq!(names(last.as_ref()), *expected, "row {at}: {services:?}");
        }
    }

    #[test]
    fn a_pool_loses_and_regains_members() {
        run(
            &action(&["fw"], WhenAllDown::Keep),
            &[
                (&["fw unknown: a=unknown b=unknown c=unknown"], "a b c"),
                (&["fw up: a=up* b=unknown c=unknown"], "a b c"),
                (&["fw up: a=up* b=up* c=down"], "a b"),
                (&["fw up: a=down b=up* c=down"], "b"),
                (&["fw down: a=down b=down c=down"], "b"),
                // The hub stalls.
                (&["fw unknown: a=unknown b=unknown c=unknown"], "b"),
                (&["fw up: a=down b=down c=up*"], "c"),
                (&["fw up: a=up* b=up* c=up*"], "a b c"),
                // Changed settings make one unknown for a while.
                (&["fw up: a=up* b=unknown c=up*"], "a b c"),
            ],
        );
    }

    #[test]
    fn a_pair_uses_one_member() {
        run(
            &action(&["fw"], WhenAllDown::Keep),
            &[
                (
                    &["fw unknown: active=unknown* standby=unknown/1"],
                    "active standby",
                ),
                (&["fw up: active=up* standby=unknown/1"], "active"),
                (&["fw up: active=up* standby=up/1"], "active"),
                (&["fw up: active=down standby=up*/1"], "standby"),
                (&["fw down: active=down standby=down*/1"], "standby"),
                (&["fw up: active=up* standby=down/1"], "active"),
                // Its settings changed: the standby is selected until it is known again, and it stays in use.
                (&["fw up: active=unknown standby=up*/1"], "active"),
                (&["fw up: active=up* standby=up/1"], "active"),
            ],
        );
    }

    #[test]
    fn spares_come_in_as_far_as_they_are_needed() {
        run(
            &action(&["fw"], WhenAllDown::Keep),
            &[
                (&["fw up: a=up* b=up*/1 c=up/2"], "a b"),
                (&["fw up: a=unknown b=up*/1 c=up*/2"], "a b"),
                (&["fw up: a=down b=up*/1 c=up*/2"], "b c"),
                // One that is unknown and was not in use does not come in.
                (&["fw up: a=unknown b=up*/1 c=up*/2"], "b c"),
            ],
        );
    }

    #[test]
    fn what_is_done_when_all_are_down_is_said_by_the_action() {
        let down: &[&str] = &["fw down: a=down b=down"];
        let unknown: &[&str] = &["fw unknown: a=unknown b=unknown"];
        for (when, expected) in [
            (WhenAllDown::Keep, "a b"),
            (WhenAllDown::Withdraw, "withdraw"),
            (WhenAllDown::Bypass, "bypass"),
        ] {
            run(
                &action(&["fw"], when),
                &[
                    (&["fw up: a=up* b=up*"], "a b"),
                    (down, expected),
                    (unknown, expected),
                    (&["fw up: a=up* b=down"], "a"),
                ],
            );
        }
        // Before anything is known, what is down is not used.
        run(&action(&["fw"], WhenAllDown::Keep), &[(down, "-")]);
    }

    #[test]
    fn several_services_share() {
        run(
            &action(&["fw-*"], WhenAllDown::Withdraw),
            &[
                (&["lb up: z=up*"], "-"),
                (&["fw-1 up: a=up*", "fw-2 unknown: b=unknown*"], "a b"),
                (&["fw-1 down: a=down*", "fw-2 unknown: b=unknown*"], "b"),
                (&["fw-1 down: a=down*", "fw-2 down: b=down*"], "withdraw"),
                (&["fw-1 up: a=up*", "fw-2 down: b=down*"], "a"),
                // One that was removed goes, but never the last.
                (&["fw-2 up: b=up*"], "b"),
                (&["lb up: z=up*"], "b"),
            ],
        );
    }

    #[test]
    fn admin_states_are_obeyed() {
        let action = action(&["fw"], WhenAllDown::Withdraw);
        let selector = Selector::of(&action);
        let imposed = |admin, line: &str| {
            let service = Service {
                admin,
                ..service(line)
            };
            View::of(vec![service])
        };
        let next = |view: &View, last: Option<Choice>| {
            let next = choose(&action, &selector, view, last.as_ref());
            next.or(last)
        };
        let last = next(&imposed(AdminState::Up, "fw up: a=down b=down*"), None);
        assert_eq!(names(last.as_ref()), "b");
        // Forced down although its members are up.
        let last = next(&imposed(AdminState::Down, "fw down: a=up* b=up"), last);
        assert_eq!(names(last.as_ref()), "withdraw");
        // Maintenance keeps it down although a member came up, and up although they fell.
        let last = next(
            &imposed(AdminState::Maintenance, "fw down: a=up* b=down"),
            last,
        );
        assert_eq!(names(last.as_ref()), "withdraw");
        let last = next(&imposed(AdminState::Auto, "fw up: a=up* b=up*"), last);
        assert_eq!(names(last.as_ref()), "a b");
        let last = next(
            &imposed(AdminState::Maintenance, "fw up: a=down b=up*"),
            last,
        );
        assert_eq!(names(last.as_ref()), "b");
        let last = next(
            &imposed(AdminState::Maintenance, "fw up: a=down b=down"),
            last,
        );
        assert_eq!(names(last.as_ref()), "b");
    }

    /// A pool that needs two members is down with one, which takes the traffic all the same: `when_all_down` is for none at all.
    #[test]
    fn a_member_that_is_up_is_used_although_its_service_is_down() {
        run(
            &action(&["fw"], WhenAllDown::Withdraw),
            &[
                (&["fw up: a=up* b=up* c=down"], "a b"),
                (&["fw down: a=down b=up* c=down"], "b"),
                (&["fw down: a=down b=down c=unknown"], "withdraw"),
                (&["fw up: a=up* b=up* c=unknown"], "a b"),
            ],
        );
    }

    #[test]
    fn nothing_is_made_at_start_if_the_action_says_so() {
        let action = Action {
            at_start: AtStart::None,
            ..action(&["fw"], WhenAllDown::Keep)
        };
        run(
            &action,
            &[
                (&["fw unknown: a=unknown b=unknown"], "-"),
                (&["fw up: a=up* b=unknown"], "a"),
                (&["fw up: a=up* b=up*"], "a b"),
            ],
        );
    }
}

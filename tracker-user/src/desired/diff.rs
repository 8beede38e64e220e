//! What changes from one desired state to another (pure).
//!
//! A start, a reload, a restart, `tracker service add` and `remove`, the reporting state and the check for room all go by one
//! [`Diff`]. What changes no packet of a probe ends nothing: a member goes on while its probes leave by the same interface, to
//! the same endpoint, from the same source address; a tracker while its probes are the same.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::model::{Desired, MemberId, Service, ServiceId};
use crate::config::{self, Expect, Flow, Probe, Protocol, Tracker};

/// What changes. Services whose settings stay are not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// Services that end, in the order in which they were reported.
    pub removed: Vec<Arc<Service>>,
    /// Services that come or change, in the order in which they are reported from now on.
    pub changed: Vec<ServiceDiff>,
}

/// A service that comes or changes.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceDiff {
    /// What it was; `None` if it comes.
    pub old: Option<Arc<Service>>,
    /// What it is from now on.
    pub new: Arc<Service>,
    /// Members that end, with their settings.
    pub removed: Vec<(MemberId, Arc<config::Member>)>,
    /// Its members from now on, in the order of the settings.
    pub members: Vec<MemberDiff>,
}

/// A member of a service that comes or changes.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberDiff {
    /// The member.
    pub id: MemberId,
    /// What it was; `None` if it comes.
    pub old: Option<Arc<config::Member>>,
    /// What it is from now on.
    pub new: Arc<config::Member>,
    /// For each of its trackers the position that it had in the old settings; `None` if it comes.
    pub trackers: Vec<Option<usize>>,
}

impl MemberDiff {
    /// Positions in the old settings of trackers that end.
    pub fn ended(&self) -> impl Iterator<Item = usize> {
        let count = self.old.as_ref().map_or(0, |old| old.trackers.len());
        let kept: HashSet<usize> = self.trackers.iter().flatten().copied().collect();
        (0..count).filter(move |at| !kept.contains(at))
    }
}

impl Diff {
    /// All members that end, with their settings.
    pub fn removed_members(&self) -> impl Iterator<Item = (MemberId, &Arc<config::Member>)> {
        let of_services = self.removed.iter().flat_map(|service| service.members());
        let of_changed = self.changed.iter().flat_map(|service| &service.removed);
        of_services.chain(of_changed.map(|(id, member)| (*id, member)))
    }

    /// All members that come or change, in the order in which they are reported.
    pub fn members(&self) -> impl Iterator<Item = &MemberDiff> {
        self.changed.iter().flat_map(|service| &service.members)
    }

    /// Whether a tracker comes.
    pub fn adds(&self) -> bool {
        self.members()
            .any(|member| member.trackers.iter().any(Option::is_none))
    }
}

/// What changes from `old` to `new`. Linear in the number of services, and in that of the members and trackers of services
/// that changed.
pub fn diff(old: &Desired, new: &Desired) -> Diff {
    let same = |(old, new): &(&Arc<Service>, &Arc<Service>)| Arc::ptr_eq(old, new);
    let (old, new) = (old.services(), new.services());
    // One service that comes or goes leaves most of both lists the same.
    let head = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev());
    let tail = tail.take_while(same).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);

    let mut before: HashMap<ServiceId, &Arc<Service>> =
        old.iter().map(|service| (service.id, service)).collect();
    let mut changed = Vec::new();
    for new in new {
        match before.remove(&new.id) {
            Some(old) if Arc::ptr_eq(old, new) => {}
            old => changed.push(service(old, new)),
        }
    }
    let removed = old.iter().filter(|old| before.contains_key(&old.id));
    Diff {
        removed: removed.cloned().collect(),
        changed,
    }
}

fn service(old: Option<&Arc<Service>>, new: &Arc<Service>) -> ServiceDiff {
    let mut before: HashMap<MemberId, &Arc<config::Member>> =
        old.into_iter().flat_map(|old| old.members()).collect();
    let members = new.members().map(|(id, member)| {
        let old = before.remove(&id);
        MemberDiff {
            id,
            old: old.cloned(),
            new: member.clone(),
            trackers: match old {
                Some(old) if Arc::ptr_eq(old, member) => {
                    (0..member.trackers.len()).map(Some).collect()
                }
                Some(old) => trackers(&old.trackers, &member.trackers),
                None => vec![None; member.trackers.len()],
            },
        }
    });
    let members = members.collect();
    let ids = old.into_iter().flat_map(|old| old.members());
    let removed = ids.filter(|(id, _)| before.contains_key(id));
    ServiceDiff {
        old: old.cloned(),
        new: new.clone(),
        removed: removed.map(|(id, member)| (id, member.clone())).collect(),
        members,
    }
}

/// What of a tracker shows in its probes, or turns the meaning of a reply round.
type Stream = (IpAddr, Probe, Option<u16>, Protocol, u16, Flow, u8, Expect);

fn stream(tracker: &Tracker) -> Stream {
    // Every key is named, so that a new one is decided about here.
    let Tracker {
        behind,
        probe,
        port,
        protocol,
        interval: _,
        timeout: _,
        fall: _,
        rise: _,
        payload,
        expect,
        flow,
        dscp,
        refused: _,
        hold_down: _,
        return_ttl: _,
    } = *tracker;
    (behind, probe, port, protocol, payload, flow, dscp, expect)
}

/// The position of the old tracker that goes on as each of the new ones: an equal one, else one whose probes are the
/// same. Linear in the number of trackers.
fn trackers(old: &[Tracker], new: &[Tracker]) -> Vec<Option<usize>> {
    if old == new {
        return (0..new.len()).map(Some).collect();
    }
    let mut equal: HashMap<&Tracker, Vec<usize>> = HashMap::new();
    for (at, tracker) in old.iter().enumerate().rev() {
        equal.entry(tracker).or_default().push(at);
    }
    let mut pairs: Vec<Option<usize>> = new
        .iter()
        .map(|tracker| equal.get_mut(tracker)?.pop())
        .collect();
    let mut left: HashMap<Stream, Vec<usize>> = HashMap::new();
    for at in equal.into_values().flatten() {
        left.entry(stream(&old[at])).or_default().push(at);
    }
    for at in left.values_mut() {
        at.sort_unstable_by(|one, other| other.cmp(one));
    }
    for (pair, tracker) in pairs.iter_mut().zip(new) {
        if pair.is_none() {
            *pair = left.get_mut(&stream(tracker)).and_then(Vec::pop);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path, time::Duration};

    use proptest::prelude::*;

    use super::{
        super::model::{Used, goes_on},
        *,
    };
    use crate::config::{Owner, Policy, ReturnHop};

    fn service(lines: &str) -> Vec<config::Service> {
        let text = format!(
            "[[service]]\nname = \"fw\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n{lines}\n"
        );
        config::parse(&text, Path::new("test.toml"))
            .unwrap()
            .services
    }

    /// The number of the only member before and after, and what changes.
    fn step(
        before: &[config::Service],
        after: &[config::Service],
        used: &Used,
    ) -> (MemberId, MemberId, Diff) {
        let old = Desired::new(before.to_vec(), Vec::new());
        let new = old.next(after.to_vec(), Vec::new(), |_| used.clone());
        let only = |desired: &Desired| desired.members().next().unwrap().0;
        (only(&old), only(&new), diff(&old, &new))
    }

    #[test]
    fn what_is_written_down_goes_on_and_what_differs_does_not() {
        let used = Used {
            interface: vec!["eth1".to_owned(), "firewall-uplink".to_owned()],
            sources: vec!["10.9.0.1".parse().unwrap()],
        };
        let (none, eth1) = ("", "interface = \"eth1\"");
        for (old, new, goes_on) in [
            (none, none, true),
            (none, eth1, true),
            (eth1, none, true),
            (none, "interface = \"firewall-uplink\"", true),
            (eth1, "interface = \"firewall-uplink\"", true),
            (none, "interface = \"eth2\"", false),
            (eth1, "interface = \"eth2\"", false),
            (none, "source = \"10.9.0.1\"", true),
            ("source = \"10.9.0.1\"", none, true),
            (none, "source = \"10.9.0.7\"", false),
            (none, "returns = [\"eth1\"]", true),
            (
                "returns = [\"eth1\", \"eth2\"]",
                "returns = [\"eth2\", \"eth1\"]",
                true,
            ),
            (eth1, "interface = \"eth1\"\nreturns = [\"eth2\"]", true),
            (
                none,
                "fall = 5\nrise = 1\nhold_down = \"3s\"\npolicy = \"all\"",
                true,
            ),
        ] {
            let (before, after, diff) = step(&service(old), &service(new), &used);
            assert_eq!(before == after, goes_on, "{old:?}, then {new:?}");
            assert_eq!(diff.removed, [], "the service goes on");
            // There is one answer to this.
            let removed: Vec<_> = diff.removed_members().map(|(id, _)| id).collect();
            assert_eq!(
                removed.is_empty(),
                goes_on,
                "{old:?}, then {new:?}: {diff:?}"
            );
            for member in diff.members() {
                assert_eq!(member.old.is_some(), goes_on);
                assert_eq!(member.trackers, [goes_on.then_some(0)]);
            }
            assert_eq!(diff.adds(), !goes_on);
        }
    }

    #[test]
    fn another_service_name_or_endpoint_is_another_member() {
        let before = service("");
        let ends = |after: &[config::Service]| {
            let (_, _, diff) = step(&before, after, &Used::default());
            diff.removed_members().count() == 1 && diff.adds()
        };
        let mut after = before.clone();
        after[0].name = "other".to_owned();
        assert!(ends(&after));
        let member = |after: &mut config::Service, change: fn(&mut config::Member)| {
            change(Arc::make_mut(&mut after.members[0]));
        };
        let mut after = before.clone();
        member(&mut after[0], |member| member.name = "standby".into());
        assert!(ends(&after));
        // Where it stands among others changes no probe.
        let mut after = before.clone();
        member(&mut after[0], |member| {
            (member.role, member.priority, member.weight) = (None, 7, 9);
        });
        after[0].preempt = false;
        after[0].members_up = Policy::All;
        assert!(!ends(&after));
        let diff = step(&before, &after, &Used::default()).2;
        assert_eq!(diff.changed.len(), 1);
        let mut after = before.clone();
        member(&mut after[0], |member| {
            member.endpoint = "10.9.0.3".parse().unwrap();
        });
        assert!(ends(&after));
    }

    #[test]
    fn a_tracker_is_its_probes() {
        let member = service("").remove(0).members.remove(0);
        let tracker = member.trackers[0].clone();
        let one =
            |new: &Tracker| trackers(std::slice::from_ref(&tracker), std::slice::from_ref(new));
        type Change = fn(&mut Tracker);
        let same: [Change; 7] = [
            |tracker| tracker.fall += 1,
            |tracker| tracker.rise += 1,
            |tracker| tracker.hold_down = Duration::from_secs(5),
            |tracker| tracker.interval *= 2,
            |tracker| tracker.timeout /= 2,
            |tracker| tracker.return_ttl = Some(62),
            |tracker| tracker.refused = config::Refused::Up,
        ];
        let other: [Change; 5] = [
            |tracker| tracker.dscp = 46,
            |tracker| tracker.payload += 1,
            |tracker| tracker.flow = Flow::Rotate,
            |tracker| tracker.expect = Expect::Silence,
            |tracker| tracker.behind = "10.20.0.8".parse().unwrap(),
        ];
        for (changes, expected) in [(&same[..], Some(0)), (&other[..], None)] {
            for (number, change) in changes.iter().enumerate() {
                let mut new = tracker.clone();
                change(&mut new);
                assert_eq!(one(&new), [expected], "{number}");
            }
        }
        // Equal ones first, whatever their order.
        let slow = Tracker {
            interval: tracker.interval * 2,
            ..tracker.clone()
        };
        let old = [tracker.clone(), slow.clone()];
        assert_eq!(trackers(&old, &[slow, tracker]), [Some(1), Some(0)]);
    }

    #[test]
    fn a_service_that_comes_or_goes_touches_no_other() {
        let services: Vec<_> = (0..5)
            .map(|number| {
                let mut service = service("").remove(0);
                service.name = format!("fw-{number}");
                service
            })
            .collect();
        let all = Desired::new(services[..4].to_vec(), Vec::new());
        let (more, id) = all.with(services[4].clone());
        let added = diff(&all, &more);
        assert_eq!(
            (id, added.removed.len(), added.changed.len(), added.adds()),
            (4, 0, 1, true)
        );
        let fewer = more.without(1);
        let removed = diff(&more, &fewer);
        assert_eq!((removed.removed.len(), removed.changed.len()), (1, 0));
        assert_eq!(removed.removed[0].settings.name, "fw-1");
        // Its number is not given again.
        let (again, id) = fewer.with(services[1].clone());
        assert_eq!(
            (id, again.service(1), again.named("fw-1").unwrap().id),
            (5, None, 5)
        );
    }

    #[test]
    fn settings_that_stay_are_held_once() {
        let before = Desired::new(service(""), Vec::new());
        let mut services = service("policy = \"all\"");
        services.extend(service(""));
        services[1].name = "other".to_owned();
        let after = before.next(services.clone(), Vec::new(), |_| Used::default());
        let again = after.next(services, Vec::new(), |_| Used::default());
        for (old, new) in after.services().iter().zip(again.services()) {
            assert!(Arc::ptr_eq(old, new));
        }
        assert!(Arc::ptr_eq(after.chains(), again.chains()));
    }

    /// Services by name: their members by name, endpoint, interface and source, by priority and weight, and these members' trackers by
    /// behind address and `fall`.
    type Wanted = Vec<(u8, Vec<WantedMember>)>;
    type WantedMember = ((u8, u8, Option<u8>, Option<u8>), (u16, u16), Vec<(u8, u8)>);

    fn wanted() -> impl Strategy<Value = Wanted> {
        let trackers = prop::collection::vec((0u8..4, 1u8..4), 1..5);
        let optional = || prop::option::of(0u8..3);
        let member = (
            (0u8..5, 0u8..3, optional(), optional()),
            (0u16..3, 1u16..3),
            trackers,
        );
        prop::collection::vec((0u8..5, prop::collection::vec(member, 1..7)), 0..6)
    }

    fn address(network: u8, last: u8) -> IpAddr {
        IpAddr::from([10, network, 0, last])
    }

    /// The services; of those, and of members, that have one name, the first.
    fn services(wanted: &Wanted) -> Vec<config::Service> {
        let mut names = HashSet::new();
        let first = wanted.iter().filter(|(name, _)| names.insert(*name));
        let services = first.map(|(name, members)| {
            let mut names = HashSet::new();
            let first = members
                .iter()
                .filter(|((name, ..), ..)| names.insert(*name));
            config::Service {
                name: format!("fw-{name}"),
                owner: Owner::File,
                after: Vec::new(),
                members_up: Policy::Any,
                preempt: true,
                members: first.map(member).map(Arc::new).collect(),
            }
        });
        services.collect()
    }

    fn member(wanted: &WantedMember) -> config::Member {
        let ((name, endpoint, interface, source), (priority, weight), trackers) = wanted;
        config::Member {
            name: format!("m-{name}").into(),
            role: None,
            priority: *priority,
            weight: *weight,
            endpoint: address(9, *endpoint),
            interface: interface.map(|number| format!("eth{number}")),
            source: source.map(|last| address(8, last)),
            returns: Vec::new(),
            return_hop: ReturnHop::Any,
            policy: Policy::Any,
            mark: None,
            trackers: trackers
                .iter()
                .map(|&(behind, fall)| Tracker {
                    behind: address(20, behind),
                    fall,
                    ..Tracker::default()
                })
                .collect(),
        }
    }

    /// What the members that leave it open use: the same for all, so that any may go on as any.
    fn used() -> Used {
        Used {
            interface: vec!["eth0".to_owned()],
            sources: vec![address(8, 0)],
        }
    }

    /// A kernel as the diff alone makes it: each member's settings, and a number that each of its trackers got when it came.
    #[derive(Default)]
    struct Installed {
        members: HashMap<MemberId, (Arc<config::Member>, Vec<usize>)>,
        came: usize,
    }

    impl Installed {
        fn apply(&mut self, diff: &Diff) {
            for (id, member) in diff.removed_members() {
                let (known, _) = self.members.remove(&id).expect("a member that was there");
                assert!(Arc::ptr_eq(&known, member));
            }
            for member in diff.members() {
                let before = self.members.remove(&member.id);
                assert_eq!(
                    before.as_ref().map(|(settings, _)| settings),
                    member.old.as_ref()
                );
                let (old, numbers) = before.unzip();
                let numbers = numbers.unwrap_or_default();
                let ended: BTreeSet<usize> = member.ended().collect();
                let kept: BTreeSet<usize> = member.trackers.iter().flatten().copied().collect();
                assert_eq!(ended.len() + kept.len(), numbers.len());
                assert!(ended.is_disjoint(&kept));
                assert_eq!(kept.len(), member.trackers.iter().flatten().count());
                let new = member.trackers.iter().zip(&member.new.trackers);
                let new = new.map(|(from, tracker)| match from {
                    Some(from) => {
                        let old = &old.as_ref().expect("a member that was there").trackers[*from];
                        assert_eq!(stream(old), stream(tracker));
                        numbers[*from]
                    }
                    None => {
                        self.came += 1;
                        self.came
                    }
                });
                let new = new.collect();
                self.members.insert(member.id, (member.new.clone(), new));
            }
        }
    }

    proptest! {
        /// A diff makes the new state of the old one: nothing is missing, nothing is left, no tracker goes on as two, and what
        /// goes on is the same. No number is given twice. What ends and what comes could not have gone on as each other.
        #[test]
        fn a_diff_leads_from_one_state_to_the_next(steps in prop::collection::vec(wanted(), 1..5)) {
            let mut desired = Desired::default();
            let mut installed = Installed::default();
            let mut ever: HashSet<MemberId> = HashSet::new();
            for wanted in steps {
                let services = services(&wanted);
                let new = desired.next(services.clone(), Vec::new(), |_| used());
                let diff = super::diff(&desired, &new);
                installed.apply(&diff);

                let settings: Vec<_> = new.services().iter().map(|service| service.settings.clone()).collect();
                prop_assert_eq!(&settings, &services);
                let ids: Vec<_> = new.members().map(|(id, _)| id).collect();
                prop_assert_eq!(ids.len(), installed.members.len());
                for (id, member) in new.members() {
                    prop_assert!(Arc::ptr_eq(&installed.members[&id].0, member));
                }
                let before: HashSet<MemberId> = desired.members().map(|(id, _)| id).collect();
                for id in &ids {
                    prop_assert!(before.contains(id) || !ever.contains(id), "{:?} was given before", id);
                }
                ever.extend(&ids);
                prop_assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());

                for service in &diff.changed {
                    let Some(old) = &service.old else { continue };
                    prop_assert_eq!(&old.settings.name, &service.new.settings.name);
                    let came = service.members.iter().filter(|member| member.old.is_none());
                    for came in came {
                        for (_, ended) in &service.removed {
                            let key = |member: &config::Member| (member.name.clone(), member.endpoint);
                            let one = key(ended) == key(&came.new) && goes_on(ended, &came.new, &used());
                            prop_assert!(!one, "{:?} ended and {:?} came", ended, came.new);
                        }
                    }
                }

                let again = new.next(services, Vec::new(), |_| used());
                prop_assert_eq!(super::diff(&new, &again), Diff::default());
                desired = new;
            }
        }

        /// A change of some members of a service ends nothing of the others, and priorities and weights end nothing at all.
        #[test]
        fn a_change_of_one_member_disturbs_no_other(
            wanted in wanted(),
            changed in any::<prop::sample::Index>(),
            endpoint in 3u8..5,
            ranks in prop::collection::vec((any::<u16>(), 1u16..=256), 7),
        ) {
            let services = services(&wanted);
            prop_assume!(!services.is_empty());
            let old = Desired::new(services.clone(), Vec::new());
            let mut moved = services;
            let at = changed.index(moved.len());
            let service = &mut moved[at];
            for (member, rank) in service.members.iter_mut().zip(&ranks) {
                let member = Arc::make_mut(member);
                (member.priority, member.weight) = *rank;
            }
            let last = service.members.len() - 1;
            Arc::make_mut(&mut service.members[last]).endpoint = address(9, endpoint);
            let new = old.next(moved, Vec::new(), |_| used());
            let diff = super::diff(&old, &new);
            let ended: Vec<_> = diff.removed_members().map(|(id, _)| id).collect();
            let name = |desired: &Desired, id: MemberId| {
                let mut members = desired.members();
                members.find(|(known, _)| *known == id).map(|(_, member)| member.name.clone())
            };
            prop_assert_eq!(ended.len(), 1);
            prop_assert_eq!(name(&old, ended[0]), old.services()[at].settings.members.last().map(|member| member.name.clone()));
            let came: Vec<_> = diff.members().filter(|member| member.trackers.contains(&None)).collect();
            prop_assert!(came.iter().all(|member| member.old.is_none()));
            prop_assert_eq!(came.len(), 1);
        }

        /// The order of services and members ends nothing.
        #[test]
        fn another_order_ends_nothing(wanted in wanted()) {
            let services = services(&wanted);
            let old = Desired::new(services.clone(), Vec::new());
            let mut turned = services;
            turned.reverse();
            for service in &mut turned {
                service.members.reverse();
            }
            let new = old.next(turned, Vec::new(), |_| used());
            let diff = super::diff(&old, &new);
            prop_assert_eq!(diff.removed_members().count(), 0);
            prop_assert!(!diff.adds());
        }

        /// No old tracker goes on as two, equal ones go on as themselves, and as many as can go on do.
        #[test]
        fn pairs_are_one_to_one(
            old in prop::collection::vec((0u8..4, 1u8..4), 0..12),
            new in prop::collection::vec((0u8..4, 1u8..4), 0..12),
        ) {
            let build = |list: &[(u8, u8)]| -> Vec<Tracker> {
                let tracker = |&(behind, fall): &(u8, u8)| Tracker {
                    behind: IpAddr::from([10, 20, 0, behind]),
                    fall,
                    ..Tracker::default()
                };
                list.iter().map(tracker).collect()
            };
            let (old, new) = (build(&old), build(&new));
            let pairs = trackers(&old, &new);
            let used: Vec<usize> = pairs.iter().flatten().copied().collect();
            prop_assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), used.len());
            let count = |list: &[Tracker], wanted: &dyn Fn(&Tracker) -> bool| list.iter().filter(|one| wanted(one)).count();
            for behind in 0..4u8 {
                let same = |tracker: &Tracker| tracker.behind == IpAddr::from([10, 20, 0, behind]);
                let paired = pairs.iter().flatten().filter(|at| same(&old[**at])).count();
                prop_assert_eq!(paired, count(&old, &same).min(count(&new, &same)));
                for fall in 1..4u8 {
                    let equal = |tracker: &Tracker| same(tracker) && tracker.fall == fall;
                    let paired = pairs.iter().zip(&new).filter(|(at, new)| equal(new) && at.is_some_and(|at| equal(&old[at]))).count();
                    prop_assert_eq!(paired, count(&old, &equal).min(count(&new, &equal)));
                }
            }
        }
    }
}

//! Which members and trackers of one configuration go on as which of another (pure).
//!
//! A reload, a restart, the reporting state and the check for room all ask here, so that they agree. What changes no
//! packet of a probe ends nothing: a member goes on while its probes leave by the same interface, to the same endpoint,
//! from the same source address; a tracker while its probes are the same.

use std::{collections::HashMap, net::IpAddr};

use crate::config::{Expect, Flow, Member, Probe, Protocol, Role, Service, Tracker};

/// A member by the number of its service and its position therein.
pub type Place = (u32, u32);

/// What a member uses that its configuration may leave open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Names of the outgoing interface; the first is the one that the kernel shows, alternative names follow.
    pub interface: Vec<String>,
    /// Source addresses of its probes.
    pub sources: Vec<IpAddr>,
}

/// The places of members that go on: new place, old place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(HashMap<Place, Place>);

impl Pairs {
    /// The old place of a member that goes on.
    pub fn old(&self, new: Place) -> Option<Place> {
        self.0.get(&new).copied()
    }
}

/// What names a member over all services: its service, role and endpoint.
type Name<'a> = (&'a str, Role, IpAddr);

/// Pairs the members of `new` services, whose numbers are their positions, with `old` ones: place, name of the
/// service, configuration. `used` says what an old member uses. Linear in the number of members.
pub fn members<'o>(
    old: impl IntoIterator<Item = (Place, &'o str, &'o Member)>,
    new: &[Service],
    used: impl Fn(Place) -> Used,
) -> Pairs {
    let mut left: HashMap<Name<'_>, Vec<(Place, &Member)>> = HashMap::new();
    for (place, service, member) in old {
        let key = (service, member.role, member.endpoint);
        left.entry(key).or_default().push((place, member));
    }
    let mut pairs = HashMap::new();
    for (number, service) in (0..).zip(new) {
        for (at, member) in (0..).zip(&service.members) {
            let key = (service.name.as_str(), member.role, member.endpoint);
            let Some(candidates) = left.get_mut(&key) else {
                continue;
            };
            let found = candidates
                .iter()
                .position(|(place, old)| goes_on(old, member, &used(*place)));
            if let Some(found) = found {
                pairs.insert((number, at), candidates.swap_remove(found).0);
            }
        }
    }
    Pairs(pairs)
}

/// Whether a member's probes leave as before. `returns` are only where replies may arrive: they change no probe.
fn goes_on(old: &Member, new: &Member, used: &Used) -> bool {
    let same_interface = old.interface == new.interface
        || (new.interface.as_ref()).is_none_or(|name| used.interface.contains(name));
    let same_source = old.source == new.source
        || new
            .source
            .is_none_or(|source| used.sources.contains(&source));
    same_interface && same_source
}

/// What of a tracker shows in its probes, or turns the meaning of a reply round.
type Stream = (IpAddr, Probe, Option<u16>, Protocol, u16, Flow, Expect);

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
        refused: _,
        hold_down: _,
        return_ttl: _,
    } = *tracker;
    (behind, probe, port, protocol, payload, flow, expect)
}

/// The position of the old tracker that goes on as each of the new ones: an equal one, else one whose probes are the
/// same. Linear in the number of trackers.
pub fn trackers(old: &[Tracker], new: &[Tracker]) -> Vec<Option<usize>> {
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

    use super::*;
    use crate::config;

    fn service(lines: &str) -> Vec<Service> {
        let text = format!(
            "[[service]]\nname = \"fw\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n{lines}\n"
        );
        config::parse(&text, Path::new("test.toml"))
            .unwrap()
            .services
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
            let (before, after) = (service(old), service(new));
            let old_members = [((7, 0), "fw", &before[0].members[0])];
            let pairs = members(old_members, &after, |_| used.clone());
            let expected = goes_on.then_some((7, 0));
            assert_eq!(pairs.old((0, 0)), expected, "{old:?}, then {new:?}");
        }
    }

    #[test]
    fn another_service_role_or_endpoint_is_another_member() {
        let before = service("");
        let old = || [((0, 0), "fw", &before[0].members[0])];
        let mut after = before.clone();
        after[0].name = "other".to_owned();
        assert_eq!(
            members(old(), &after, |_| Used::default()),
            Pairs::default()
        );
        let mut after = before.clone();
        after[0].members[0].role = Role::Standby;
        assert_eq!(
            members(old(), &after, |_| Used::default()),
            Pairs::default()
        );
        let mut after = before.clone();
        after[0].members[0].endpoint = "10.9.0.3".parse().unwrap();
        assert_eq!(
            members(old(), &after, |_| Used::default()),
            Pairs::default()
        );
    }

    #[test]
    fn a_tracker_is_its_probes() {
        let tracker = service("").remove(0).members.remove(0).trackers.remove(0);
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
        let other: [Change; 4] = [
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

    proptest! {
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

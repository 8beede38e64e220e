//! The members' next hops: neighbour entries, members that get no reply, and routes that moved.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use tracker_ebpf::{
    abi,
    verdict::{Cause, Verdict},
};

use crate::{
    config::{Member, ModeChoice},
    datapath::adopt,
    desired::model::MemberId,
    net::{neighbours::Neighbours, requests::Requests},
    plan::{
        member::{self, MemberPlan, NotLeaving, Ways},
        observed::{Neighbour, Observed, Owners},
    },
};

/// How long a member stays with an interface that works while its endpoint is asked for on the one to
/// which its route moved.
const MOVE: Duration = Duration::from_millis(300);

/// Next hops of members.
pub struct NextHops {
    neighbours: Neighbours,
    /// Members whose last word was that no reply comes: their next hop is asked again and again.
    silent: HashSet<MemberId>,
    moves: Moves,
}

impl NextHops {
    /// Next hops that are not known yet, with a way to ask the kernel.
    pub fn new(requests: Requests) -> Self {
        Self {
            neighbours: Neighbours::new(requests),
            silent: HashSet::new(),
            moves: Moves::default(),
        }
    }

    /// Learns the endpoints' MAC addresses from the paths of an earlier daemon: it would take time to learn them anew.
    pub fn learn(&mut self, paths: &[abi::Path]) {
        for path in paths {
            if let Some(key) = adopt::neighbour(path)
                && path.next_hop_mac != [0; 6]
                && path.egress != abi::Egress::None.into()
            {
                self.neighbours.learn(key, path.next_hop_mac);
            }
        }
    }

    /// Forgets interfaces that went.
    pub fn forget(&mut self, gone: &HashSet<u32>) {
        self.neighbours.forget(gone);
    }

    /// Takes what is observed of neighbours.
    pub fn observe(&mut self, observed: &Observed) {
        self.neighbours.observe(observed);
    }

    /// Plans members, each with the plan that was last installed for it. Returns their plans in order, and neighbour entries
    /// that are needed beside those of the plans.
    pub fn plan<'m>(
        &mut self,
        members: impl IntoIterator<Item = (MemberId, &'m Member, Option<&'m MemberPlan>)>,
        observed: &Observed,
        mode: ModeChoice,
        not_leaving: &NotLeaving,
    ) -> (Vec<MemberPlan>, Vec<(u32, IpAddr)>) {
        let ways = Ways {
            mode,
            not_leaving,
            last_macs: self.neighbours.last_macs(),
        };
        self.moves.plan(members, observed, ways)
    }

    /// Whether a member stays with its last interface for the moment.
    pub fn is_moving(&self) -> bool {
        !self.moves.since.is_empty()
    }

    /// Has the kernel keep these neighbour entries, and no others.
    pub fn keep(&mut self, observed: &Observed, needed: HashSet<(u32, IpAddr)>) {
        self.neighbours.keep(observed, needed);
    }

    /// Takes a tracker's verdict: the next hop of a member that gets no reply is solicited, now and again until it does.
    /// Another box may have taken its place without announcing itself.
    pub fn take_verdict(
        &mut self,
        id: MemberId,
        plan: Option<&MemberPlan>,
        verdict: (Verdict, Cause),
        observed: &Observed,
    ) {
        match verdict {
            (Verdict::Down, Cause::NoReply) => {
                self.silent.insert(id);
                self.solicit(plan, observed);
            }
            _ => {
                self.silent.remove(&id);
            }
        }
    }

    fn solicit(&mut self, plan: Option<&MemberPlan>, observed: &Observed) {
        if let Some(key) = plan.and_then(|plan| plan.neighbour) {
            self.neighbours.solicit(observed, key);
        }
    }

    /// Asks again for next hops that did not answer, or may have changed since. `plan` says how a member is sent for; a
    /// member that is no more has none.
    pub fn retry<'p>(
        &mut self,
        plan: impl Fn(MemberId) -> Option<Option<&'p MemberPlan>>,
        observed: &Observed,
    ) {
        // The endpoint may get another MAC address at any time, also just after it was asked.
        self.silent.retain(|id| plan(*id).is_some());
        for id in self.silent.clone() {
            self.solicit(plan(id).flatten(), observed);
        }
        self.neighbours.retry(observed);
    }

    /// How a member's next hop changed shortly before a verdict did.
    pub fn change(&self, plan: Option<&MemberPlan>, cause: Cause) -> Option<String> {
        let is_explained = matches!(cause, Cause::Replied | Cause::NoReply);
        let neighbour = plan?.neighbour.filter(|_| is_explained)?;
        self.neighbours.change(neighbour)
    }

    /// Gives back those neighbour entries of an earlier daemon that are not needed.
    pub fn release_left(&self, paths: &[abi::Path]) {
        let left = paths.iter().filter_map(adopt::neighbour);
        self.neighbours.release_left(left);
    }

    /// Gives back all neighbour entries.
    pub async fn release(mut self) {
        self.neighbours.release().await;
    }
}

/// Members that stay with their last interface while their endpoint is asked for on another one, and since when.
#[derive(Debug, Default)]
struct Moves {
    since: HashMap<MemberId, Instant>,
}

impl Moves {
    fn plan<'m>(
        &mut self,
        members: impl IntoIterator<Item = (MemberId, &'m Member, Option<&'m MemberPlan>)>,
        observed: &Observed,
        ways: Ways<'_>,
    ) -> (Vec<MemberPlan>, Vec<(u32, IpAddr)>) {
        let owners = observed.owners();
        let (mut plans, mut asked) = (Vec::new(), Vec::new());
        let before = std::mem::take(&mut self.since);
        for (id, settings, last) in members {
            let plan = member::plan(settings, observed, &owners, ways);
            let since = before.get(&id).copied();
            let known = (observed, &owners, ways);
            match meanwhile(settings, last, &plan, since, known) {
                Some(meanwhile) => {
                    self.since.insert(id, since.unwrap_or_else(Instant::now));
                    asked.extend(plan.neighbour);
                    plans.push(meanwhile);
                }
                None => plans.push(plan),
            }
        }
        (plans, asked)
    }
}

/// The way that a member goes on with while its endpoint is asked for on the interface to which the route moved: a route
/// that moves breaks nothing by itself. `since` says for how long it has done so.
fn meanwhile(
    settings: &Member,
    last: Option<&MemberPlan>,
    plan: &MemberPlan,
    since: Option<Instant>,
    (observed, owners, ways): (&Observed, &Owners, Ways<'_>),
) -> Option<MemberPlan> {
    let is_failed = |key| observed.neighbours.get(&key) == Some(&Neighbour::Failed);
    let is_asking = matches!(&plan.path, Err(fault) if fault.cause == Cause::NextHopUnresolved)
        && !plan.neighbour.is_some_and(is_failed);
    let last = last.and_then(MemberPlan::ifindex);
    let last = last.filter(|last| is_asking && plan.ifindex() != Some(*last))?;
    if since.is_some_and(|since| since.elapsed() >= MOVE) {
        return None;
    }
    let by_last = Member {
        interface: Some(observed.links.get(&last)?.name.clone()),
        ..settings.clone()
    };
    let plan = member::plan(&by_last, observed, owners, ways);
    plan.path.is_ok().then_some(plan)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config,
        plan::observed::{Address, Link},
    };

    const ENDPOINT: &str = "10.9.0.2";

    fn observed(route: u32, known: &[(u32, Neighbour)]) -> Observed {
        let endpoint: IpAddr = ENDPOINT.parse().unwrap();
        let link = |index: u32| Link {
            index,
            name: format!("eth{index}"),
            is_running: true,
            mtu: 1500,
            addresses: vec![Address::new(
                format!("10.9.0.{}", 100 + index).parse().unwrap(),
                24,
            )],
            ..Link::default()
        };
        let neighbours = known.iter().map(|(at, known)| ((*at, endpoint), *known));
        Observed {
            links: (1..3).map(|index| (index, link(index))).collect(),
            neighbours: neighbours.collect(),
            routes: HashMap::from([((endpoint, None), route)]),
            ..Observed::default()
        }
    }

    #[test]
    fn a_member_stays_where_it_works_while_its_endpoint_is_asked_for_elsewhere() {
        let text = format!(
            "[[service]]\nname = \"fw\"\nendpoint = \"{ENDPOINT}\"\nbehind = [\"10.20.0.9\"]\n"
        );
        let config = config::parse(&text, Path::new("test.toml")).unwrap();
        let settings = &config.services[0].members[0];
        let id = MemberId {
            service: 0,
            member: 0,
        };
        let resolved = Neighbour::Resolved([2, 0, 0, 0, 0, 9]);
        let mut moves = Moves::default();
        let plan = |moves: &mut Moves, last: Option<&MemberPlan>, observed: &Observed| {
            let ways = Ways::at_start(ModeChoice::Auto);
            let (mut plans, asked) = moves.plan([(id, &**settings, last)], observed, ways);
            (plans.remove(0), asked)
        };
        let (first, asked) = plan(&mut moves, None, &observed(1, &[(1, resolved)]));
        assert_eq!((first.ifindex(), asked), (Some(1), vec![]));

        let moved = observed(2, &[(1, resolved)]);
        let (second, asked) = plan(&mut moves, Some(&first), &moved);
        assert_eq!(second.ifindex(), Some(1), "it works, and nothing else does");
        assert_eq!(asked, [(2, ENDPOINT.parse().unwrap())]);
        assert_eq!(moves.since.len(), 1);

        let (third, _) = plan(
            &mut moves,
            Some(&second),
            &observed(2, &[(1, resolved), (2, resolved)]),
        );
        assert_eq!((third.ifindex(), moves.since.len()), (Some(2), 0));

        // An endpoint that does not answer there is not waited for, and neither is one for longer than a moment.
        let failed = observed(2, &[(1, resolved), (2, Neighbour::Failed)]);
        assert_eq!(
            plan(&mut moves, Some(&second), &failed).0.ifindex(),
            Some(2)
        );
        moves.since.insert(id, Instant::now() - MOVE);
        assert_eq!(plan(&mut moves, Some(&second), &moved).0.ifindex(), Some(2));
    }
}

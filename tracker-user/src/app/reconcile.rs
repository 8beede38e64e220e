//! The kernel brought in line with what is configured and observed, after each change of either.

use std::collections::HashSet;

use tokio::time::Instant;
use tracing::Level;
use tracker_ebpf::{
    abi::{self, Via},
    verdict::Cause,
};

use super::{Attachment, Daemon, MOVE, RETRY, Tracker, stamp};
use crate::{
    config::{Member, ModeChoice},
    datapath::{
        loader::{Check, Kernel},
        steering::Steering,
    },
    detector::engine::Command,
    host::repeats,
    net::rtnetlink::Followed,
    plan::{
        address::address_bytes,
        member::{self, Fault, MemberPlan, Probing, Ways},
        mode::Mode,
        observed::{Neighbour, Observed, Owners, private_names},
        steering::Point,
    },
    reconcile::sender::Sender,
    state::tree::MemberPath,
};

/// What tells of each attached program whether it still is.
pub(super) struct Checks {
    receive: Vec<(u32, Check)>,
    steering: Vec<(Point, Check)>,
}

/// Programs that others detached.
pub(super) struct Detached {
    receive: Vec<u32>,
    steering: Vec<Point>,
}

impl Checks {
    /// Asks the kernel. That may wait for RTNL: not to be called by the daemon's loop.
    pub(super) fn look(self) -> Detached {
        fn detached<K>(checks: Vec<(K, Check)>) -> Vec<K> {
            let detached = checks.into_iter().filter(|(_, check)| check.is_detached());
            detached.map(|(key, _)| key).collect()
        }
        Detached {
            receive: detached(self.receive),
            steering: detached(self.steering),
        }
    }
}

impl Daemon {
    /// Has the kernel's changes of what the members depend on reported, and no others.
    pub(super) async fn follow_members(&mut self) {
        self.is_following_more = false;
        let members = self.members.values().map(|member| &member.config);
        let followed = Followed {
            endpoints: members.clone().map(|member| member.endpoint).collect(),
            routes: members.filter_map(member::route_key).collect(),
        };
        if let Err(error) = self.netlink.follow(followed).await {
            tracing::error!("{error:#}");
        }
    }

    /// Brings the kernel in line with what is configured and observed.
    pub(super) async fn reconcile(&mut self) {
        if self.is_following_more {
            self.follow_members().await;
        }
        self.forget_gone();
        self.keep_private_pair().await;
        self.neighbours.observe(&self.netlink.observed);
        let links = &self.netlink.observed.links;
        self.not_leaving
            .retain(|ifindex, means| links.get(ifindex).is_some_and(|link| link.caps() == *means));
        let ways = Ways {
            mode: self.config.hub.mode,
            not_leaving: &self.not_leaving,
            last_macs: self.neighbours.last_macs(),
        };
        let observed = &self.netlink.observed;
        let owners = observed.owners();
        let mut plans = Vec::with_capacity(self.members.len());
        let mut asked = Vec::new();
        for member in self.members.values_mut() {
            let plan = member::plan(&member.config, observed, &owners, ways);
            let meanwhile = way_meanwhile(member, &plan, observed, &owners, ways);
            asked.extend(plan.neighbour.filter(|_| meanwhile.is_some()));
            plans.push(meanwhile.unwrap_or(plan));
        }

        let before = self.steering_fault.take();
        if let Err(error) = self.keep_steering() {
            let fault = format!("{error:#}");
            if before.as_ref() != Some(&fault) {
                tracing::error!("{fault}; others' packets are not steered, trying again");
            }
            self.steering_fault = Some(fault);
        }
        // Planned before a member's own faults of receiving: others' replies do not depend on it.
        let steering = self.plan_steering(&plans);
        if let (Some(plan), Some(installed)) = (&steering, &mut self.steering) {
            installed.detach(plan);
        }
        self.attach(&plans);
        for plan in &mut plans {
            let refused = plan
                .receive
                .iter()
                .find_map(|ifindex| self.refused.get(ifindex));
            if let (Some((why, _)), Ok(_)) = (refused, &plan.path) {
                plan.path = Err(Fault::cannot_receive(why));
            }
        }
        let devices = self.add_devices(&plans);
        if let Some(plan) = steering {
            self.steer(plan);
        }
        let of_plans = plans.iter().filter_map(|plan| plan.neighbour);
        let needed = of_plans.chain(asked).collect();
        self.neighbours.keep(&self.netlink.observed, needed);
        let receive = plans.iter().flat_map(|plan| &plan.receive);
        let receive: HashSet<u32> = receive.copied().collect();
        let places: Vec<_> = self.members.keys().copied().collect();
        for (place, plan) in places.into_iter().zip(plans) {
            self.apply(place, plan);
        }
        self.keep_devices(devices);
        self.detach(&receive);
    }

    /// Forgets what was made for interfaces that went: what has their index now is another one, or was in
    /// another namespace meanwhile, where the kernel took it out of DEVICES.
    fn forget_gone(&mut self) {
        let gone = std::mem::take(&mut self.netlink.gone);
        if gone.is_empty() {
            return;
        }
        self.devices.retain(|ifindex, _| !gone.contains(ifindex));
        self.not_leaving
            .retain(|ifindex, _| !gone.contains(ifindex));
        self.neighbours.forget(&gone);
        let Checks { receive, steering } = self.checks();
        let of_gone = |ifindex: &u32| gone.contains(ifindex);
        let receive = receive.into_iter().map(|(key, _)| key);
        let steering = steering.into_iter().map(|(point, _)| point);
        let suspects = Detached {
            receive: receive.filter(|ifindex| of_gone(ifindex)).collect(),
            steering: steering.filter(|point| of_gone(&point.ifindex)).collect(),
        };
        self.forget_detached(suspects);
    }

    /// What tells of each attached program whether it still is.
    pub(super) fn checks(&self) -> Checks {
        let steering = self.steering.iter().flat_map(Steering::checks);
        Checks {
            receive: self.kernel.checks().collect(),
            steering: steering.collect(),
        }
    }

    /// Attaches anew what others detached.
    pub(super) async fn attach_detached(&mut self, suspects: Detached) {
        if self.forget_detached(suspects) {
            self.reconcile().await;
        }
    }

    /// Forgets those of these programs that are attached no longer; true if there are any. A program that was attached anew
    /// since they were looked at is asked for again.
    fn forget_detached(&mut self, suspects: Detached) -> bool {
        let mut detached = suspects.receive;
        let kernel = &self.kernel;
        detached.retain(|ifindex| {
            kernel
                .check(*ifindex)
                .is_some_and(|check| check.is_detached())
        });
        for ifindex in &detached {
            // No notification tells of it; the interface itself may be gone, which one does.
            if let Some(link) = self.netlink.observed.links.get(ifindex) {
                tracing::warn!("{}: somebody detached the receive program", link.name);
            }
            self.kernel.detach(*ifindex);
            // Replies to what is under way went unheard: nobody is to blame.
            let hearing = |plan: &MemberPlan| plan.receive.contains(ifindex);
            let deaf = self
                .members
                .values()
                .filter(|member| member.plan.as_ref().is_some_and(hearing));
            for tracker in deaf.flat_map(|member| &member.trackers) {
                self.sender
                    .command(Command::Renew(tracker.slot, tracker.entry.epoch));
            }
        }
        let steering = self.steering.as_mut();
        let unsteered = steering.map(|steering| steering.forget_detached(&suspects.steering));
        let unsteered = unsteered.unwrap_or_default();
        for point in &unsteered {
            if let Some(link) = self.netlink.observed.links.get(&point.ifindex) {
                tracing::warn!("{}: somebody detached a steering program", link.name);
            }
        }
        !detached.is_empty() || !unsteered.is_empty()
    }

    /// Makes the private interfaces anew where somebody deleted them or moved them away.
    async fn keep_private_pair(&mut self) {
        if self
            .netlink
            .observed
            .links
            .contains_key(&self.kernel.private_ifindex())
        {
            return;
        }
        let names = private_names(&self.config.hub.instance);
        let moved = match self.netlink.make_private_pair(&names).await {
            Ok(private) => self.kernel.move_send(private).map(|()| private),
            Err(error) => Err(error),
        };
        match moved {
            Ok(private) => {
                self.sender.command(Command::SetPrivate(private));
                repeats::warn(
                    "private interface made anew",
                    format_args!("the private interface {} was gone; made it anew", names[0]),
                );
            }
            Err(error) => repeats::log(
                Level::ERROR,
                "private interface",
                format_args!("{error:#}; no probe can be sent until it exists"),
            ),
        }
    }

    /// Attaches the receive program wherever replies may arrive. All other interfaces are watched for replies that come a wrong
    /// way.
    fn attach(&mut self, plans: &[MemberPlan]) {
        let observed = &self.netlink.observed;
        let links = &observed.links;
        let wanted: HashSet<u32> = plans
            .iter()
            .flat_map(|plan| &plan.receive)
            .copied()
            .collect();
        self.kernel
            .watch_more(&member::expecting(observed, &wanted));
        let now = Instant::now();
        self.refused.retain(|ifindex, _| wanted.contains(ifindex));
        for ifindex in member::lowest_first(observed, &wanted) {
            let is_fresh = |(_, since): &(String, Instant)| now - *since < RETRY;
            if self.kernel.mode(ifindex).is_some()
                || self.refused.get(&ifindex).is_some_and(is_fresh)
            {
                continue;
            }
            let Some(link) = links.get(&ifindex) else {
                continue;
            };
            match self.kernel.attach(link, self.config.hub.mode) {
                Ok((mode, refusals)) => {
                    self.refused.remove(&ifindex);
                    let mut why = String::new();
                    for refusal in refusals {
                        why.push_str("; ");
                        why.push_str(&refusal);
                    }
                    if let (Some(id), Mode::Tc, ModeChoice::Auto) =
                        (link.xdp_program, mode, self.config.hub.mode)
                    {
                        why.push_str(&format!(
                            "; XDP program {id} of somebody else stays where it is"
                        ));
                    }
                    tracing::info!("{}: receiving by {}{why}", link.name, mode.as_str());
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    let before = self.refused.insert(ifindex, (why.clone(), now));
                    if before.is_none_or(|(before, _)| before != why) {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }

    /// Detaches the receive program where it is no longer wanted: after the new ones were attached, so that an
    /// interface that changes its purpose is never without, and after the paths were told, so that replies to what
    /// leaves by the old ones are heard until then.
    fn detach(&mut self, wanted: &HashSet<u32>) {
        let observed = &self.netlink.observed;
        for ifindex in self.kernel.attached() {
            if !wanted.contains(&ifindex) || !observed.links.contains_key(&ifindex) {
                self.kernel.detach(ifindex);
            }
        }
        self.kernel.watch_less(&member::expecting(observed, wanted));
    }

    /// Lets probes be redirected to the devices that are used as such, and says which are.
    fn add_devices(&mut self, plans: &[MemberPlan]) -> HashSet<u32> {
        let paths = plans.iter().filter_map(|plan| plan.path.as_ref().ok());
        let wanted: HashSet<u32> = paths
            .filter(|path| path.via == Via::XdpRedirect)
            .map(|path| path.ifindex)
            .collect();
        for &ifindex in &wanted {
            if self.devices.contains_key(&ifindex) {
                continue;
            }
            if let Err(error) = self.kernel.set_device(ifindex, true) {
                tracing::error!("{error:#}");
            }
            self.devices.insert(ifindex, stamp().mono_ns);
            self.sender.command(Command::UseDevice(ifindex));
            // A veth says exactly when it takes redirected frames; some drivers drop them on some processors (mlx5, i40e).
            let links = &self.netlink.observed.links;
            if links.get(&ifindex).is_none_or(|link| !link.is_veth) {
                self.sender.command(Command::TryDevice(ifindex));
            }
        }
        wanted
    }

    /// Keeps the redirect targets to those that are used, once no path leads to the others.
    fn keep_devices(&mut self, wanted: HashSet<u32>) {
        self.devices.retain(|ifindex, _| {
            let is_wanted = wanted.contains(ifindex);
            if !is_wanted && let Err(error) = self.kernel.set_device(*ifindex, false) {
                tracing::error!("{error:#}");
            }
            is_wanted
        });
    }

    /// Installs one member's plan where it differs from the present one.
    fn apply(&mut self, place: (u32, u32), plan: MemberPlan) {
        let Some(member) = self.members.get_mut(&place) else {
            return;
        };
        let mode = plan
            .receive
            .iter()
            .find_map(|ifindex| self.kernel.mode(*ifindex));
        let path = MemberPath {
            interface: plan
                .interface
                .as_ref()
                .map(|(_, name)| name.clone())
                .or_else(|| member.config.interface.clone()),
            mode,
            send: plan.send_way(),
            proofs: plan.proofs(),
        };
        self.shared
            .core()
            .tree
            .member_path(member.service, member.member, path);
        if member.plan.as_ref() == Some(&plan) {
            return;
        }
        let before = member.plan.as_ref().and_then(MemberPlan::ifindex);
        // Replies under way may arrive where nothing hears them any more.
        let deaf = member.plan.as_ref().is_some_and(|before| {
            let mut heard = before.receive.iter();
            heard.any(|ifindex| !plan.receive.contains(ifindex))
        });
        let moved = deaf || (before.is_some() && before != plan.ifindex());
        for (tracker, probing) in member.trackers.iter_mut().zip(&plan.probings) {
            self.epoch = self.epoch.wrapping_add(1);
            let epoch = self.epoch;
            set_probing(
                &mut self.kernel,
                &self.sender,
                tracker,
                probing,
                epoch,
                moved,
            );
        }
        let (entry, cause) = match &plan.path {
            Ok(entry) => (*entry, None),
            // Replies under way came by the last one: they are still expected where they arrive, and count or are late.
            Err(fault) => {
                let last = abi::Path {
                    via: Via::Nowhere,
                    ..member.entry
                };
                (last, Some(fault.cause))
            }
        };
        let entry = abi::Path {
            endpoint: address_bytes(member.config.endpoint),
            endpoint_family: member.config.endpoint.into(),
            interface: plan.neighbour.map_or(0, |(ifindex, _)| ifindex),
            ..entry
        };
        member.plan = Some(plan);
        member.entry = entry;
        self.sender
            .command(Command::SetPath(member.path, entry, cause));
    }

    /// Tries again what was refused: attachments, and endpoints that did not answer.
    pub(super) async fn retry(&mut self) {
        // The endpoint may get another MAC address at any time, also just after it was asked.
        let members = &self.members;
        self.silent.retain(|member| members.contains_key(member));
        for member in self.silent.clone() {
            self.solicit_next_hop(member);
        }
        self.neighbours.retry(&self.netlink.observed);
        let moving = self.members.values().any(|member| member.moving.is_some());
        let is_refused = !self.refused.is_empty() || self.steering_fault.is_some();
        if moving || is_refused {
            self.reconcile().await;
        } else {
            self.retry_steering();
        }
    }
}

/// The way that a member goes on with while its endpoint is asked for on the interface to which the route moved: a route
/// that moves breaks nothing by itself.
fn way_meanwhile(
    member: &mut Attachment,
    plan: &MemberPlan,
    observed: &Observed,
    owners: &Owners,
    ways: Ways<'_>,
) -> Option<MemberPlan> {
    let is_failed = |key| observed.neighbours.get(&key) == Some(&Neighbour::Failed);
    let is_asking = matches!(&plan.path, Err(fault) if fault.cause == Cause::NextHopUnresolved)
        && !plan.neighbour.is_some_and(is_failed);
    let last = member.plan.as_ref().and_then(MemberPlan::ifindex);
    let last = last.filter(|last| is_asking && plan.ifindex() != Some(*last));
    let patient = member.moving.is_none_or(|since| since.elapsed() < MOVE);
    let meanwhile = last.filter(|_| patient).and_then(|last| {
        let by_last = Member {
            interface: Some(observed.links.get(&last)?.name.clone()),
            ..member.config.clone()
        };
        let plan = member::plan(&by_last, observed, owners, ways);
        plan.path.is_ok().then_some(plan)
    });
    match &meanwhile {
        Some(_) => member.moving = member.moving.or_else(|| Some(Instant::now())),
        None => member.moving = None,
    }
    meanwhile
}

/// Gives a tracker its source address and its proof, or the reason why it can't probe.
fn set_probing(
    kernel: &mut Kernel,
    sender: &Sender,
    tracker: &mut Tracker,
    probing: &Result<Probing, Fault>,
    epoch: u32,
    moved: bool,
) {
    let fault = match probing {
        Ok(probing) => {
            let (source, proof) = (address_bytes(probing.source), probing.proof);
            let was_active = tracker.entry.active != 0;
            if was_active
                && (tracker.entry.source, tracker.entry.proof) == (source, proof)
                && !moved
            {
                None
            } else {
                if was_active {
                    // What proves the old probes must not count for the new ones, and nobody waits for what comes
                    // back by an interface on which nobody listens any more.
                    tracker.entry.epoch = epoch;
                }
                (tracker.entry.source, tracker.entry.proof) = (source, proof);
                tracker.entry.active = 1;
                let written = kernel.set_tracker(tracker.slot, &tracker.entry);
                if written.is_err() && !was_active {
                    // To be written again.
                    tracker.entry.active = 0;
                }
                if was_active {
                    // After the map: a probe sent in between bears the new epoch already, and is ignored.
                    sender.command(Command::Renew(tracker.slot, epoch));
                }
                written.err().map(|error| Fault::cannot_write(&error))
            }
        }
        Err(fault) => Some(fault.clone()),
    };
    if tracker.fault != fault {
        sender.command(Command::SetFault(
            tracker.slot,
            fault.as_ref().map(|fault| fault.cause),
        ));
        tracker.fault = fault;
    }
}

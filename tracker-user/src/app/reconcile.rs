//! The kernel brought in line with what is desired and observed, after each change of either.

use std::{collections::HashSet, time::Duration};

use anyhow::Error;
use tracing::Level;

use super::{App, RETRY};
use crate::{
    api::{answers::KnownSteering, types::UplinkStatus},
    datapath::{attach::Check, error::DatapathError},
    desired::model::Desired,
    detector::engine::Command,
    error::full,
    host::{clock, repeats},
    net::rtnetlink::Followed,
    plan::{
        member::{self, Fault, MemberPlan},
        observed::private_names,
        steering::{self, AttachPoint, Plan, Planned, Room},
    },
    reconcile::steering::Kept,
    state::tree::MemberPath,
};

/// What tells of each attached program whether it still is.
pub(super) struct Checks {
    receive: Vec<(u32, Check)>,
    steering: Vec<(AttachPoint, Check)>,
}

/// Programs that others detached.
pub(super) struct Detached {
    receive: Vec<u32>,
    steering: Vec<AttachPoint>,
}

impl Checks {
    /// Asks the kernel. That may wait for RTNL: not to be called by the main loop.
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

impl App {
    /// Has the kernel's changes of what the members depend on reported, and no others.
    pub(super) async fn follow_members(&mut self) {
        self.is_following_more = false;
        let members = self.desired.members().map(|(_, member)| member);
        let followed = Followed {
            endpoints: members.clone().map(|member| member.endpoint).collect(),
            routes: members
                .filter_map(|member| member::route_key(member))
                .collect(),
        };
        if let Err(error) = self.netlink.follow(followed).await {
            tracing::error!("{}", full(&error));
        }
    }

    /// Brings the kernel in line with what is desired and observed.
    pub(super) async fn reconcile(&mut self) {
        if self.is_following_more {
            self.follow_members().await;
        }
        self.forget_gone();
        self.keep_private_pair().await;
        let mode = self.hub.mode;
        let observed = &self.netlink.observed;
        self.next_hops.observe(observed);
        self.devices.observe(observed);
        let installer = &self.installer;
        let members = self.desired.members().filter_map(|(id, settings)| {
            let installed = installer.member(id)?;
            Some((id, &**settings, installed.plan.as_ref()))
        });
        let not_leaving = self.devices.not_leaving();
        let ids: Vec<_> = members.clone().map(|(id, _, _)| id).collect();
        let (mut plans, asked) = self.next_hops.plan(members, observed, mode, not_leaving);

        let desired = self.desired.clone();
        let kept = self.keep_steering(&desired);
        self.steering.take_fault(kept);
        // Planned before a member's own faults of receiving: others' replies do not depend on it.
        let steering = self.plan_steering(&plans);
        if let Some(plan) = &steering {
            self.steering.detach(plan);
        }
        let receive = plans.iter().flat_map(|plan| &plan.receive);
        let receive: HashSet<u32> = receive.copied().collect();
        let observed = &self.netlink.observed;
        self.devices
            .attach(&receive, observed, mode, RETRY, &mut self.kernel);
        for plan in &mut plans {
            if let (Some(why), Ok(_)) = (self.devices.refusal(plan), &plan.path) {
                plan.path = Err(Fault::cannot_receive(why));
            }
        }
        let now_ns = clock::monotonic_ns();
        let targets =
            self.devices
                .add_targets(&plans, observed, now_ns, &mut self.kernel, &self.sender);
        if let Some(plan) = steering {
            self.steering.apply(plan, &mut self.kernel, observed, mode);
            self.show_uplinks();
        }
        let of_plans = plans.iter().filter_map(|plan| plan.neighbour);
        let needed = of_plans.chain(asked).collect();
        self.next_hops.keep(&self.netlink.observed, needed);
        for (id, plan) in ids.into_iter().zip(plans) {
            if let Some(member) = self.installer.member(id) {
                let path = self.member_path(&plan, member.settings.interface.as_ref());
                self.known().tree.member_path(id, path);
            }
            self.installer
                .set_plan(id, plan, &mut self.kernel, &self.sender);
        }
        self.devices.keep_targets(&targets, &mut self.kernel);
        self.devices
            .detach(&receive, &self.netlink.observed, &mut self.kernel);
    }

    /// How a member's probes go out, for reports.
    fn member_path(&self, plan: &MemberPlan, configured: Option<&String>) -> MemberPath {
        let known = plan.interface.as_ref().map(|(_, name)| name);
        MemberPath {
            interface: known.or(configured).cloned(),
            mode: plan
                .receive
                .iter()
                .find_map(|ifindex| self.kernel.mode(*ifindex)),
            send: plan.send_way(),
            proofs: plan.proofs(),
        }
    }

    /// Forgets what was made for interfaces that went: what has their index now is another one, or was in
    /// another namespace meanwhile.
    fn forget_gone(&mut self) {
        let gone = std::mem::take(&mut self.netlink.gone);
        if gone.is_empty() {
            return;
        }
        self.devices.forget(&gone);
        self.next_hops.forget(&gone);
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
        Checks {
            receive: self.kernel.checks().collect(),
            steering: self.steering.checks().collect(),
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
        let links = &self.netlink.observed.links;
        let mut detached = suspects.receive;
        let kernel = &self.kernel;
        detached.retain(|ifindex| {
            kernel
                .check(*ifindex)
                .is_some_and(|check| check.is_detached())
        });
        for ifindex in &detached {
            // No notification tells of it; the interface itself may be gone, which one does.
            if let Some(link) = links.get(ifindex) {
                tracing::warn!("{}: somebody detached the receive program", link.name);
            }
            self.kernel.detach(*ifindex);
            // Replies to what is under way were not received: no service is to blame.
            self.installer.renew_receiving(*ifindex, &self.sender);
        }
        let unsteered = self.steering.forget_detached(&suspects.steering);
        for point in &unsteered {
            if let Some(link) = links.get(&point.ifindex) {
                tracing::warn!("{}: somebody detached a steering program", link.name);
            }
        }
        !detached.is_empty() || !unsteered.is_empty()
    }

    /// Makes the private interfaces anew if they were deleted or moved to another namespace.
    async fn keep_private_pair(&mut self) {
        let links = &self.netlink.observed.links;
        if links.contains_key(&self.kernel.private_ifindex()) {
            return;
        }
        let names = private_names(&self.hub.instance);
        let moved = match self.netlink.make_private_pair(&names).await {
            Ok(private) => self
                .kernel
                .move_send(private)
                .map(|()| private)
                .map_err(Error::from),
            Err(error) => Err(error.into()),
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

    /// Loads steering if it is configured, and takes it away if it is not.
    pub(super) fn keep_steering(&mut self, desired: &Desired) -> Result<(), DatapathError> {
        let config = self.steering_config.as_ref();
        let members = || desired.members().map(|(_, member)| &**member);
        let needed = config.map(|config| Room::needed(members(), config));
        if !self.steering.is_kept(needed) {
            // What is read of it goes before it does.
            self.known().steering = None;
        }
        match self.steering.keep(needed, &self.kernel)? {
            Kept::Same => {}
            Kept::Off => tracing::info!("steering is off"),
            Kept::Loaded(counters) => {
                self.known().steering = Some(KnownSteering {
                    counters,
                    uplinks: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// What steering needs of the kernel now. `plans` are those of the installed members, in the desired order.
    fn plan_steering(&self, plans: &[MemberPlan]) -> Option<Plan> {
        let config = self.steering_config.as_ref()?;
        let installed = self.desired.members();
        let installed = installed.filter_map(|(id, _)| self.installer.member(id));
        let members: Vec<Planned<'_>> = installed
            .zip(plans)
            .map(|(member, plan)| (&*member.settings, plan, member.path))
            .collect();
        let (observed, mode) = (&self.netlink.observed, self.hub.mode);
        Some(steering::plan(config, &members, observed, mode))
    }

    fn show_uplinks(&self) {
        let config = self.steering_config.as_ref();
        let (observed, mode) = (&self.netlink.observed, self.hub.mode);
        let uplinks = self.steering.uplinks(config, observed, mode);
        let uplinks = uplinks
            .into_iter()
            .map(|(interface, mode)| UplinkStatus { interface, mode });
        if let Some(steering) = &mut self.known().steering {
            steering.uplinks = uplinks.collect();
        }
    }

    /// What is done at every turn of the timer, which came this late.
    pub(super) async fn tick(&mut self, late: Duration) {
        let now = clock::stamp();
        let late_ns = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        self.sender.health.timer.note(now.mono_ns, late_ns);
        self.known().tree.keep_clock(now);
        self.look_for_forgery();
        self.publisher.end_log_window(now.mono_ns);
        self.retry().await;
    }

    /// Tries again what was refused: attachments, and endpoints that did not answer.
    async fn retry(&mut self) {
        let (installer, observed) = (&self.installer, &self.netlink.observed);
        let plan = |id| installer.member(id).map(|member| member.plan.as_ref());
        self.next_hops.retry(plan, observed);
        let is_refused = self.devices.has_refused() || self.steering.has_fault();
        if self.next_hops.is_moving() || is_refused {
            self.reconcile().await;
        } else if self.steering.is_loaded() {
            let mode = self.hub.mode;
            self.steering.retry(&mut self.kernel, observed, mode);
            self.show_uplinks();
        }
    }
}

//! Steering, as the daemon keeps it: loaded while the config has it, planned with everything else.

use std::sync::Arc;

use anyhow::Result;

use super::{Daemon, SteeringCore};
use crate::{
    api::types::UplinkStatus,
    datapath::steering::Steering,
    plan::{
        member::MemberPlan,
        steering::{self, Plan, Planned, Room},
    },
};

impl Daemon {
    /// Loads steering where the config has it, and takes it away where it does not.
    pub(super) fn keep_steering(&mut self) -> Result<()> {
        let Some(config) = &self.config.steering else {
            if self.steering.take().is_some() {
                self.shared.core().steering = None;
                tracing::info!("steering is off");
            }
            return Ok(());
        };
        let needed = Room::needed(&self.config, config);
        let steering = self.steering.as_ref();
        if steering.is_some_and(|steering| steering.holds(needed)) {
            return Ok(());
        }
        // The old maps are too small. What they know of flows comes back with each prober's next packet.
        self.shared.core().steering = None;
        self.steering = None;
        let steering = Steering::load(&self.kernel, needed.with_more())?;
        self.shared.core().steering = Some(SteeringCore {
            counters: steering.counters(),
            members: Arc::default(),
            uplinks: Vec::new(),
        });
        self.steering = Some(steering);
        Ok(())
    }

    /// What steering needs of the kernel now.
    pub(super) fn plan_steering(&self, plans: &[MemberPlan]) -> Option<Plan> {
        let steering = self.config.steering.as_ref()?;
        let members: Vec<Planned<'_>> = self
            .members
            .values()
            .zip(plans)
            .map(|(member, plan)| (&member.config, plan, member.path))
            .collect();
        let (observed, mode) = (&self.netlink.observed, self.config.hub.mode);
        Some(steering::plan(steering, &members, observed, mode))
    }

    /// Installs a plan of steering.
    pub(super) fn steer(&mut self, plan: Plan) {
        let Some(steering) = &mut self.steering else {
            return;
        };
        let (links, mode) = (&self.netlink.observed.links, self.config.hub.mode);
        self.steering_fault = steering.apply(plan, &mut self.kernel, links, mode);
        let members = self.members.values().map(|member| {
            let name = (member.service_name.clone(), member.config.role);
            (name, member.path)
        });
        if let Some(core) = &mut self.shared.core().steering {
            core.members = Arc::new(members.collect());
        }
        self.show_uplinks();
    }

    /// Tries again what no change of the kernel's tells that it may now succeed.
    pub(super) fn retry_steering(&mut self) {
        if let Some(steering) = &mut self.steering {
            let (links, mode) = (&self.netlink.observed.links, self.config.hub.mode);
            steering.retry(&mut self.kernel, links, mode);
            self.show_uplinks();
        }
    }

    fn show_uplinks(&self) {
        let Some(steering) = &self.steering else {
            return;
        };
        let names = self
            .config
            .steering
            .iter()
            .flat_map(|steering| &steering.uplinks);
        let uplinks = names.map(|name| {
            let link = self.netlink.observed.by_name(name);
            UplinkStatus {
                interface: name.clone(),
                mode: link.and_then(|link| steering.mode(link.index, self.config.hub.mode)),
            }
        });
        let uplinks = uplinks.collect();
        if let Some(core) = &mut self.shared.core().steering {
            core.uplinks = uplinks;
        }
    }
}

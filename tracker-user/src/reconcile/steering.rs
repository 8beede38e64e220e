//! Steering: loaded while it is configured, planned with everything else.

use crate::{
    config::{self, ModeChoice},
    datapath::{
        attach::Check,
        error::DatapathError,
        loader::Kernel,
        steering::{SteeredReader, Steering as Programs},
    },
    error::full,
    plan::{
        mode::Mode,
        observed::Observed,
        steering::{AttachPoint, Plan, Room},
    },
};

/// What was done to keep steering as it is configured.
pub enum Kept {
    /// It is as before.
    Same,
    /// It was taken away.
    Off,
    /// It was loaded, for the first time or into larger maps. What the old ones knew of flows comes back with each prober's
    /// next packet.
    Loaded(SteeredReader),
}

/// The programs and maps of steering, and what the kernel refused of them.
#[derive(Default)]
pub struct Steering {
    programs: Option<Programs>,
    /// To be tried again.
    fault: Option<String>,
}

impl Steering {
    /// Whether [`Self::keep`] would leave it as it is.
    pub fn is_kept(&self, needed: Option<Room>) -> bool {
        match (&self.programs, needed) {
            (None, None) => true,
            (Some(programs), Some(needed)) => programs.holds(needed),
            _ => false,
        }
    }

    /// Loads steering with this much room, or takes it away if none is needed.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn keep(&mut self, needed: Option<Room>, kernel: &Kernel) -> Result<Kept, DatapathError> {
        if self.is_kept(needed) {
            return Ok(Kept::Same);
        }
        self.programs = None;
        let Some(needed) = needed else {
            return Ok(Kept::Off);
        };
        let programs = Programs::load(kernel, needed.with_more())?;
        let counters = programs.counters();
        self.programs = Some(programs);
        Ok(Kept::Loaded(counters))
    }

    /// Takes what became of [`Self::keep`]. A fault that was not there before is logged.
    pub fn take_fault(&mut self, kept: Result<(), DatapathError>) {
        let before = self.fault.take();
        if let Err(error) = kept {
            let fault = full(&error).to_string();
            if before.as_ref() != Some(&fault) {
                tracing::error!("{fault}; others' packets are not steered, trying again");
            }
            self.fault = Some(fault);
        }
    }

    /// Whether it is loaded.
    pub const fn is_loaded(&self) -> bool {
        self.programs.is_some()
    }

    /// Whether something is to be tried again.
    pub const fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Forgets what was counted of a path that another member gets.
    pub fn reset(&self, path: u32) {
        if let Some(programs) = &self.programs {
            programs.reset(path);
        }
    }

    /// Detaches programs that a plan does not have, before interfaces get others.
    pub fn detach(&mut self, plan: &Plan) {
        if let Some(programs) = &mut self.programs {
            programs.detach(plan);
        }
    }

    /// Installs a plan.
    pub fn apply(
        &mut self,
        plan: Plan,
        kernel: &mut Kernel,
        observed: &Observed,
        mode: ModeChoice,
    ) {
        if let Some(programs) = &mut self.programs {
            self.fault = programs.apply(plan, kernel, &observed.links, mode);
        }
    }

    /// Tries again what may succeed without any change that the kernel tells of.
    pub fn retry(&mut self, kernel: &mut Kernel, observed: &Observed, mode: ModeChoice) {
        if let Some(programs) = &mut self.programs {
            programs.retry(kernel, &observed.links, mode);
        }
    }

    /// The configured uplinks, with the mode of the fastest program that is attached to each.
    pub fn uplinks(
        &self,
        config: Option<&config::Steering>,
        observed: &Observed,
        mode: ModeChoice,
    ) -> Vec<(String, Option<Mode>)> {
        let Some(programs) = &self.programs else {
            return Vec::new();
        };
        let names = config.into_iter().flat_map(|steering| &steering.uplinks);
        let uplinks = names.map(|name| {
            let link = observed.by_name(name);
            let mode = link.and_then(|link| programs.mode(link.index, mode));
            (name.clone(), mode)
        });
        uplinks.collect()
    }

    /// What tells of each attached program whether it still is.
    pub fn checks(&self) -> impl Iterator<Item = (AttachPoint, Check)> {
        self.programs.iter().flat_map(Programs::checks)
    }

    /// Forgets those of these programs that are attached no longer, and says which.
    pub fn forget_detached(&mut self, suspects: &[AttachPoint]) -> Vec<AttachPoint> {
        let programs = self.programs.as_mut();
        let detached = programs.map(|programs| programs.forget_detached(suspects));
        detached.unwrap_or_default()
    }

    /// Leaves everything to the next daemon.
    pub fn leave(self) {
        if let Some(programs) = self.programs {
            programs.keep();
        }
    }
}

//! The interfaces that replies arrive on and that probes are redirected to, and the programs there.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tracker_ebpf::abi::{self, Egress};

use crate::{
    config::ModeChoice,
    datapath::{error::DatapathError, loader::Kernel},
    detector::engine::Command,
    error::full,
    plan::{
        member::{self, MemberPlan, NotLeaving},
        mode::Mode,
        observed::{Link, Observed},
    },
    reconcile::installer::Commands,
};

/// The hooks of the receive program, and the map DEVICES.
pub trait Hooks {
    /// How the receive program is attached to an interface.
    fn mode(&self, ifindex: u32) -> Option<Mode>;
    /// The interfaces to which it is attached.
    fn attached(&self) -> Vec<u32>;
    /// Attaches it, and says how and why not better.
    ///
    /// # Errors
    /// What the kernel answered to all modes that were tried.
    fn attach(
        &mut self,
        link: &Link,
        choice: ModeChoice,
    ) -> Result<(Mode, Vec<String>), DatapathError>;
    /// Detaches it.
    fn detach(&mut self, ifindex: u32);
    /// Watches all interfaces but these for replies that come a wrong way, once nothing is expected there.
    fn watch_more(&mut self, expecting: &HashSet<u32>);
    /// Ends watching interfaces on which replies are expected.
    fn watch_less(&mut self, expecting: &HashSet<u32>);
    /// Lets probes be redirected to a device, or no more.
    ///
    /// # Errors
    /// What the kernel answered.
    fn set_device(&mut self, ifindex: u32, is_target: bool) -> Result<(), DatapathError>;
}

impl Hooks for Kernel {
    fn mode(&self, ifindex: u32) -> Option<Mode> {
        Self::mode(self, ifindex)
    }

    fn attached(&self) -> Vec<u32> {
        Self::attached(self)
    }

    fn attach(
        &mut self,
        link: &Link,
        choice: ModeChoice,
    ) -> Result<(Mode, Vec<String>), DatapathError> {
        Self::attach(self, link, choice)
    }

    fn detach(&mut self, ifindex: u32) {
        Self::detach(self, ifindex);
    }

    fn watch_more(&mut self, expecting: &HashSet<u32>) {
        Self::watch_more(self, expecting);
    }

    fn watch_less(&mut self, expecting: &HashSet<u32>) {
        Self::watch_less(self, expecting);
    }

    fn set_device(&mut self, ifindex: u32, is_target: bool) -> Result<(), DatapathError> {
        Self::set_device(self, ifindex, is_target)
    }
}

/// What is known of interfaces beyond what the kernel tells.
#[derive(Debug, Default)]
pub struct Devices {
    /// What probes may be redirected to, and since when, by the monotonic clock.
    targets: HashMap<u32, u64>,
    /// Devices by which redirected frames were seen not to leave.
    not_leaving: NotLeaving,
    /// Why the receive program could not be attached, and when that was tried last.
    refused: HashMap<u32, (String, Instant)>,
}

impl Devices {
    /// The devices of a start; an earlier daemon let probes be redirected to `targets`.
    pub fn new(targets: impl IntoIterator<Item = u32>) -> Self {
        Self {
            targets: targets.into_iter().map(|ifindex| (ifindex, 0)).collect(),
            ..Self::default()
        }
    }

    /// Learns from the paths of an earlier daemon of the same mode by which devices redirected frames do not leave.
    pub fn learn(&mut self, paths: &[abi::Path], observed: &Observed) {
        for path in paths
            .iter()
            .filter(|path| path.egress == Egress::TcRedirect.into())
        {
            let link = observed.links.get(&path.ifindex);
            if let Some(link) = link.filter(|link| link.takes_frames()) {
                self.not_leaving.insert(path.ifindex, link.caps());
            }
        }
    }

    /// Devices by which redirected frames were seen not to leave.
    pub const fn not_leaving(&self) -> &NotLeaving {
        &self.not_leaving
    }

    /// Whether attaching was refused somewhere.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Why a member's replies can't be received, if they can't.
    pub fn refusal(&self, plan: &MemberPlan) -> Option<&str> {
        let mut receive = plan.receive.iter();
        let (why, _) = receive.find_map(|ifindex| self.refused.get(ifindex))?;
        Some(why)
    }

    /// Forgets interfaces that went: what has their index now is another one, or was in another namespace meanwhile,
    /// where the kernel took it out of DEVICES.
    pub fn forget(&mut self, gone: &HashSet<u32>) {
        self.targets.retain(|ifindex, _| !gone.contains(ifindex));
        self.not_leaving
            .retain(|ifindex, _| !gone.contains(ifindex));
    }

    /// Forgets what was seen of devices that can do other things now.
    pub fn observe(&mut self, observed: &Observed) {
        self.not_leaving.retain(|ifindex, caps| {
            let link = observed.links.get(ifindex);
            link.is_some_and(|link| link.caps() == *caps)
        });
    }

    /// Whether a report on a device is about its present use, which began before that time.
    fn is_of_this_use(&self, ifindex: u32, since_mono_ns: u64) -> bool {
        let used = self.targets.get(&ifindex);
        used.is_some_and(|&used_mono_ns| since_mono_ns >= used_mono_ns)
    }

    /// Takes the report that probes redirected to a device do not leave it; true if that changes how they are sent.
    pub fn take_not_leaving(
        &mut self,
        ifindex: u32,
        since_mono_ns: u64,
        observed: &Observed,
    ) -> bool {
        let link = observed.links.get(&ifindex);
        let caps = link.map(Link::caps).unwrap_or_default();
        let name = link.map_or_else(|| ifindex.to_string(), |link| link.name.clone());
        // Old news of a device that took no frames meanwhile and can again says nothing.
        let is_new = self.is_of_this_use(ifindex, since_mono_ns)
            && self.not_leaving.insert(ifindex, caps).is_none();
        match is_new {
            true => {
                tracing::warn!("{name}: redirected probes do not leave it; sending by TC instead");
            }
            false => tracing::debug!("{name}: probes do not leave it"),
        }
        is_new
    }

    /// Takes the report that no probe redirected to a device was answered; true if that changes how they are sent.
    pub fn take_never_answered(
        &mut self,
        ifindex: u32,
        since_mono_ns: u64,
        observed: &Observed,
    ) -> bool {
        let Some(link) = observed.links.get(&ifindex) else {
            return false;
        };
        let is_new = self.is_of_this_use(ifindex, since_mono_ns)
            && self.not_leaving.insert(ifindex, link.caps()).is_none();
        if is_new {
            tracing::info!(
                "{}: no redirected probe was answered yet; sending by TC before a service is said to be down",
                link.name
            );
        }
        is_new
    }

    /// Attaches the receive program to every interface on which replies may arrive. All other interfaces are watched for
    /// replies that come a wrong way. What was refused less than `retry` ago is not tried.
    pub fn attach(
        &mut self,
        wanted: &HashSet<u32>,
        observed: &Observed,
        choice: ModeChoice,
        retry: Duration,
        hooks: &mut impl Hooks,
    ) {
        hooks.watch_more(&member::expecting(observed, wanted));
        let now = Instant::now();
        self.refused.retain(|ifindex, _| wanted.contains(ifindex));
        for ifindex in member::lowest_first(observed, wanted) {
            let is_fresh = |(_, since): &(String, Instant)| now - *since < retry;
            if hooks.mode(ifindex).is_some() || self.refused.get(&ifindex).is_some_and(is_fresh) {
                continue;
            }
            let Some(link) = observed.links.get(&ifindex) else {
                continue;
            };
            match hooks.attach(link, choice) {
                Ok((mode, refusals)) => {
                    self.refused.remove(&ifindex);
                    let mut why = String::new();
                    for refusal in refusals {
                        why.push_str("; ");
                        why.push_str(&refusal);
                    }
                    if let (Some(id), Mode::Tc, ModeChoice::Auto) = (link.xdp_program, mode, choice)
                    {
                        why.push_str(&format!(
                            "; XDP program {id} of somebody else stays where it is"
                        ));
                    }
                    tracing::info!("{}: receiving by {}{why}", link.name, mode.as_str());
                }
                Err(error) => {
                    let why = full(&error).to_string();
                    let before = self.refused.insert(ifindex, (why.clone(), now));
                    if before.is_none_or(|(before, _)| before != why) {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }

    /// Detaches the receive program from interfaces on which no reply is wanted any more: after the new ones were attached,
    /// so that an interface that changes its purpose is never without, and after the paths were told, so that replies to what
    /// leaves by the old ones are received until then.
    pub fn detach(&self, wanted: &HashSet<u32>, observed: &Observed, hooks: &mut impl Hooks) {
        for ifindex in hooks.attached() {
            if !wanted.contains(&ifindex) || !observed.links.contains_key(&ifindex) {
                hooks.detach(ifindex);
            }
        }
        hooks.watch_less(&member::expecting(observed, wanted));
    }

    /// Lets probes be redirected to the devices that the plans use as such, and says which are.
    pub fn add_targets(
        &mut self,
        plans: &[MemberPlan],
        observed: &Observed,
        now_mono_ns: u64,
        hooks: &mut impl Hooks,
        engine: &impl Commands,
    ) -> HashSet<u32> {
        let paths = plans.iter().filter_map(|plan| plan.path.as_ref().ok());
        let wanted: HashSet<u32> = paths
            .filter(|path| path.egress == Egress::XdpRedirect.into())
            .map(|path| path.ifindex)
            .collect();
        for &ifindex in &wanted {
            if self.targets.contains_key(&ifindex) {
                continue;
            }
            if let Err(error) = hooks.set_device(ifindex, true) {
                tracing::error!("{}", full(&error));
            }
            self.targets.insert(ifindex, now_mono_ns);
            engine.command(Command::UseDevice(ifindex));
            // A veth says exactly when it takes redirected frames; some drivers drop them on some processors (mlx5, i40e).
            let link = observed.links.get(&ifindex);
            if link.is_none_or(|link| !link.is_veth) {
                engine.command(Command::TryDevice(ifindex));
            }
        }
        wanted
    }

    /// Keeps the redirect targets to those that are used, once no path leads to the others.
    pub fn keep_targets(&mut self, wanted: &HashSet<u32>, hooks: &mut impl Hooks) {
        self.targets.retain(|ifindex, _| {
            let is_wanted = wanted.contains(ifindex);
            if !is_wanted && let Err(error) = hooks.set_device(*ifindex, false) {
                tracing::error!("{}", full(&error));
            }
            is_wanted
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tracker_ebpf::verdict::Cause;

    use super::*;
    use crate::{plan::member::Fault, reconcile::installer::tests::Recorded};

    /// Hooks that refuse some interfaces.
    #[derive(Default)]
    struct Fake {
        refusing: HashSet<u32>,
        attached: Vec<u32>,
        targets: Vec<u32>,
        tried: RefCell<Vec<u32>>,
    }

    impl Hooks for Fake {
        fn mode(&self, ifindex: u32) -> Option<Mode> {
            self.attached.contains(&ifindex).then_some(Mode::Tc)
        }

        fn attached(&self) -> Vec<u32> {
            self.attached.clone()
        }

        fn attach(
            &mut self,
            link: &Link,
            _: ModeChoice,
        ) -> Result<(Mode, Vec<String>), DatapathError> {
            self.tried.borrow_mut().push(link.index);
            if self.refusing.contains(&link.index) {
                return Err(DatapathError::Unfit("refused".to_owned()));
            }
            self.attached.push(link.index);
            Ok((Mode::Tc, Vec::new()))
        }

        fn detach(&mut self, ifindex: u32) {
            self.attached.retain(|known| *known != ifindex);
        }

        fn watch_more(&mut self, _: &HashSet<u32>) {}

        fn watch_less(&mut self, _: &HashSet<u32>) {}

        fn set_device(&mut self, ifindex: u32, is_target: bool) -> Result<(), DatapathError> {
            match is_target {
                true => self.targets.push(ifindex),
                false => self.targets.retain(|known| *known != ifindex),
            }
            Ok(())
        }
    }

    fn observed() -> Observed {
        let link = |index: u32| Link {
            index,
            name: format!("eth{index}"),
            is_running: true,
            mtu: 1500,
            ..Link::default()
        };
        Observed {
            links: (1..4).map(|index| (index, link(index))).collect(),
            ..Observed::default()
        }
    }

    fn plan(ifindex: u32) -> MemberPlan {
        MemberPlan {
            interface: Some((ifindex, format!("eth{ifindex}"))),
            path: Ok(abi::Path {
                ifindex,
                egress: Egress::XdpRedirect.into(),
                ..abi::Path::default()
            }),
            receive: vec![ifindex],
            neighbour: None,
            probings: Vec::new(),
        }
    }

    #[test]
    fn what_is_refused_is_told_to_its_members_and_tried_again_after_a_while() {
        let (mut devices, observed) = (Devices::default(), observed());
        let mut hooks = Fake {
            refusing: HashSet::from([2]),
            ..Fake::default()
        };
        let wanted = HashSet::from([1, 2]);
        let hour = Duration::from_secs(3600);
        for _ in 0..3 {
            devices.attach(&wanted, &observed, ModeChoice::Auto, hour, &mut hooks);
        }
        assert_eq!(*hooks.tried.borrow(), [1, 2]);
        assert!(devices.has_refused());
        assert_eq!(devices.refusal(&plan(1)), None);
        assert_eq!(devices.refusal(&plan(2)), Some("refused"));
        hooks.refusing.clear();
        devices.attach(
            &wanted,
            &observed,
            ModeChoice::Auto,
            Duration::ZERO,
            &mut hooks,
        );
        assert!(!devices.has_refused());
        devices.detach(&HashSet::from([2]), &observed, &mut hooks);
        assert_eq!(hooks.attached, [2]);
    }

    #[test]
    fn a_device_is_a_target_while_a_path_leads_to_it() {
        let (mut devices, observed) = (Devices::new([3]), observed());
        let (mut hooks, engine) = (Fake::default(), Recorded::default());
        hooks.targets.push(3);
        let down = MemberPlan {
            path: Err(Fault {
                cause: Cause::InterfaceDown,
                detail: String::new(),
            }),
            ..plan(2)
        };
        let wanted = devices.add_targets(&[plan(1), down], &observed, 7, &mut hooks, &engine);
        assert_eq!(wanted, HashSet::from([1]));
        // Before the paths lead elsewhere, the old target stays.
        assert_eq!(hooks.targets, [3, 1]);
        devices.keep_targets(&wanted, &mut hooks);
        assert_eq!(hooks.targets, [1]);
        assert_eq!(engine.taken().len(), 2, "one use, one trial");
        devices.add_targets(&[plan(1)], &observed, 9, &mut hooks, &engine);
        assert_eq!(engine.taken().len(), 0, "the same use goes on");
    }

    #[test]
    fn old_news_of_a_device_says_nothing_of_its_present_use() {
        let (mut devices, mut observed) = (Devices::default(), observed());
        let (mut hooks, engine) = (Fake::default(), Recorded::default());
        devices.add_targets(&[plan(1)], &observed, 100, &mut hooks, &engine);
        assert!(!devices.take_not_leaving(1, 99, &observed));
        assert!(!devices.take_not_leaving(2, 100, &observed), "no target");
        assert!(devices.take_not_leaving(1, 100, &observed));
        assert!(!devices.take_never_answered(1, 100, &observed), "known");
        devices.observe(&observed);
        assert!(devices.not_leaving().contains_key(&1));
        // A device that can do something else now is another device.
        observed.links.get_mut(&1).unwrap().mtu = 9000;
        devices.observe(&observed);
        assert!(devices.not_leaving().is_empty());
        assert!(devices.take_never_answered(1, 100, &observed));
        devices.forget(&HashSet::from([1]));
        assert!(devices.not_leaving().is_empty());
    }
}

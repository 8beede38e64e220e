//! The one thread that sends, judges and decides.
//!
//! Each tick it takes early replies, judges the probes whose timeout has passed, and sends what is
//! due. Everything it needs of the kernel is behind [`Datapath`], so the whole engine also runs on a
//! simulated one. Each tracker's [`TrackerAccount`] is its own; nothing else decides a verdict.

use std::{
    collections::{HashSet, VecDeque},
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tracker_ebpf::{
    abi,
    verdict::{Cause, Rules, Verdict},
    window::Window,
};

use crate::detector::{
    flows::{FlowRule, Moved, Ports, Share},
    in_flight::{DueProbe, InFlight, STALL_MIN_NS},
    lateness::Health,
    schedule::{self, Cohort, TICK_NS, Turn},
    tracker::TrackerAccount,
    tx_check::{Trust, TxCheck},
};

/// How often at least each device's own counter is held against what was sent by it, while there is
/// something to do: a system call of some ten microseconds.
const DEVICE_CHECK_NS: u64 = 10_000_000;
/// How long, beyond the longest timeout, a device that is not known may keep its counter still
/// before that is taken for the truth; some drivers refresh theirs once a second.
const PATIENCE_NS: u64 = 2_000_000_000;
/// How long silence proves nothing after it was asked that probes leave by TC.
const TRIAL_NS: u64 = 2_000_000_000;
/// Trackers of at least this interval are sent for as soon as they can be (again), not only at their next
/// turn: it may be an hour away.
const PROMPT_NS: u64 = 1_000_000_000;
/// Of those, so many a tick: a million that can be sent for at once are still spread.
const PROMPT_MAX: usize = 64;

/// What the engine needs of the kernel.
pub trait Datapath {
    /// Now, in nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;
    /// How long the machine has slept (been suspended) so far, which the monotonic clock leaves out.
    fn slept_ns(&self) -> u64 {
        0
    }
    /// Does what each job says, in order; says how many it attempted.
    ///
    /// # Errors
    /// What the kernel answered if it attempted none.
    fn send(&mut self, jobs: &[abi::Job]) -> io::Result<usize>;
    /// Probes that the slot has really been built and handed to its device so far.
    fn sent(&self, slot: u32) -> u64;
    /// True if the probe was answered within its timeout.
    fn is_replied(&self, window: Window, sequence: u64) -> bool;
    /// The receive program's notes on the slot.
    fn trouble(&self, slot: u32) -> abi::TroubleState;
    /// Tells the receive program the verdict; ordered before later [`Datapath::is_replied`].
    fn set_verdict(&mut self, slot: u32, verdict: Verdict);
    /// Keeps the judge's part of the state where others can read it.
    fn set_judge(&mut self, slot: u32, judge: &abi::JudgeState);
    /// What an earlier daemon kept there.
    fn judge(&self, slot: u32) -> abi::JudgeState;
    /// The next connection that a peer holds open.
    fn next_answered(&mut self) -> Option<abi::Answered> {
        None
    }
    /// Installs a path.
    fn set_path(&mut self, path: u32, entry: &abi::Path);
    /// The next early reply.
    fn next_reply(&mut self) -> Option<abi::Event>;
    /// Frames come from this private interface from now on.
    fn set_private(&mut self, _ifindex: u32) {}
    /// Frames that the device itself says it has transmitted.
    fn transmitted(&mut self, ifindex: u32) -> Option<u64>;
}

/// What the engine must know of a tracker; the rest is in the kernel's TRACKERS map.
#[derive(Clone, Copy, Debug)]
pub struct TrackerSpec {
    /// Slot in TRACKERS and STATE.
    pub slot: u32,
    /// The slot's epoch, which also tells this tracker from the one that had the slot before.
    pub epoch: u32,
    /// Index into PATHS.
    pub path: u32,
    /// Time between two probes.
    pub interval_ns: u64,
    /// How long a probe may stay unanswered.
    pub timeout_ns: u64,
    /// How many outcomes decide.
    pub rules: Rules,
    /// Its bit set.
    pub window: Window,
    /// Why it can't be sent for yet, path aside.
    pub fault: Option<Cause>,
    /// The service must stop the probes; every reply is then reported (`expects_silence` in TRACKERS).
    pub expects_silence: bool,
    /// By which flows its probes go.
    pub flows: FlowRule,
    /// The verdict and cause with which it goes on, if an earlier daemon had it. Its `fault` is not known
    /// yet then.
    pub resume: Option<(Verdict, Cause)>,
}

/// What the daemon tells the engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Starts a tracker whose maps are written.
    Install(TrackerSpec),
    /// Stops a tracker.
    Remove(u32),
    /// Replaces a path, with the cause why it leads nowhere, if it does.
    SetPath(u32, abi::Path, Option<Cause>),
    /// Says whether a tracker can be sent for at all, path aside.
    SetFault(u32, Option<Cause>),
    /// How many outcomes decide from here on.
    SetRules(u32, Rules),
    /// The ports that probes may have.
    SetPorts(Arc<Ports>),
    /// The ports that a tracker may have.
    SetShare(u32, Share),
    /// A tracker's probes are different from here on, under this epoch.
    Renew(u32, u32),
    /// Probes may be redirected to this device, for the first time or again: how those before left tells nothing of it.
    UseDevice(u32),
    /// A device that is used from now on may drop redirected probes, uncounted: their silence proves nothing before one was
    /// answered.
    TryDevice(u32),
    /// The private interface was made anew.
    SetPrivate(u32),
    /// The first paths are told: from here on probes are sent.
    Begin,
    /// Ends the thread.
    Stop,
}

/// How a probe that was due did not leave the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The kernel does not run the send program: the error's number.
    Call(i32),
    /// The send program could not build or redirect the frame.
    Frame,
    /// Frames were handed to the device, which by its own account transmitted none.
    Device,
}

/// What the engine tells the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A tracker's verdict or cause changed.
    Changed {
        /// The tracker.
        slot: u32,
        /// The epoch with which it was installed.
        generation: u32,
        /// Its verdict now.
        verdict: Verdict,
        /// Why.
        cause: Cause,
        /// When it was decided.
        mono_ns: u64,
        /// From the first probe that told, to the decision.
        detection_ns: Option<u64>,
        /// How sending failed last, if that is the cause and no fault that the daemon told of.
        failure: Option<SendFailure>,
        /// That it went on by another flow since it was down.
        moved: Option<Moved>,
    },
    /// Probes redirected to a device do not leave it.
    NotLeaving {
        /// The device.
        ifindex: u32,
        /// Since when its frames were counted: its use from then on is meant.
        since_mono_ns: u64,
    },
    /// No probe that was redirected to a device was answered, and a verdict would rest on that: they should leave by TC.
    NeverAnswered {
        /// The device.
        ifindex: u32,
        /// The use of the device from then on is meant.
        since_mono_ns: u64,
    },
    /// The engine could not send at all: the error's number.
    SendFailed(i32),
    /// A tick came this late.
    Stalled(u64),
    /// The machine was suspended for this long; what was under way proves nothing.
    Slept(u64),
}

#[derive(Clone, Debug)]
struct Slot {
    spec: TrackerSpec,
    generation: u32,
    cohort: usize,
    device: Option<usize>,
    /// Since when it is sent for by that device.
    device_since_ns: u64,
    account: TrackerAccount,
    fault: Option<Cause>,
    /// How it last could not be sent for.
    failure: Option<SendFailure>,
    /// It goes on from an earlier daemon's verdict, and whether it can be sent for was not said yet.
    is_resumed: bool,
    /// It stands in its group's queue of those that should not wait for their turn.
    is_prompt: bool,
}

#[derive(Debug, Default)]
struct PathState {
    fault: Option<Cause>,
    ifindex: u32,
    /// Its probes are redirected by XDP.
    is_redirected: bool,
    slots: Vec<u32>,
}

#[derive(Debug)]
struct Group {
    cohort: Cohort,
    in_flight: InFlight,
    /// Trackers that can be sent for again and should not wait for their turn.
    prompt: VecDeque<u32>,
}

impl Group {
    /// Has a tracker that can be sent for again not wait for its turn. An interface that flaps makes that so again and again:
    /// it stands in the queue once.
    fn prompt(&mut self, slot: u32, state: &mut Slot) {
        if state.spec.interval_ns >= PROMPT_NS && !state.is_prompt {
            state.is_prompt = true;
            self.prompt.push_back(slot);
        }
    }
}

/// A device by which probes leave.
#[derive(Debug)]
struct Device {
    ifindex: u32,
    tx_check: TxCheck,
    began_ns: u64,
    checked_ns: u64,
    trial: Trial,
}

/// Whether probes that are redirected to a device by XDP are known to leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// One was answered, or the device is known to count what it drops.
    Over,
    /// None was answered. What a verdict would rest on is tried once more by TC, which was asked for at that time.
    Open { asked_ns: Option<u64> },
}

/// The engine's state.
pub struct Engine<P> {
    datapath: P,
    slots: Vec<Option<Box<Slot>>>,
    /// Places of trackers that went, and their paths, until the next sweep.
    gone: HashSet<u32>,
    gone_paths: HashSet<u32>,
    paths: Vec<PathState>,
    groups: Vec<Group>,
    devices: Vec<Device>,
    batch: Vec<abi::Job>,
    refused: Vec<u32>,
    ports: Arc<Ports>,
    identifiers: Ports,
    reports: Vec<Report>,
    /// When the next tick should be; 0 before the first.
    planned_ns: u64,
    /// How long the machine had slept by then.
    slept_ns: u64,
    next_device: usize,
    /// The number of the error by which the last call failed.
    send_failing: Option<i32>,
}

impl<P: Datapath> Engine<P> {
    /// An engine without trackers.
    pub fn new(datapath: P) -> Self {
        Self {
            slept_ns: datapath.slept_ns(),
            datapath,
            slots: Vec::new(),
            gone: HashSet::new(),
            gone_paths: HashSet::new(),
            paths: Vec::new(),
            groups: Vec::new(),
            devices: Vec::new(),
            batch: Vec::with_capacity(abi::BATCH_MAX as usize),
            refused: Vec::new(),
            ports: Arc::default(),
            identifiers: Ports::identifiers(),
            reports: Vec::new(),
            planned_ns: 0,
            next_device: 0,
            send_failing: None,
        }
    }

    /// The kernel, real or simulated.
    pub const fn datapath(&self) -> &P {
        &self.datapath
    }

    /// The kernel, real or simulated.
    pub const fn datapath_mut(&mut self) -> &mut P {
        &mut self.datapath
    }

    /// Takes what there is to report.
    pub fn reports(&mut self) -> std::vec::Drain<'_, Report> {
        self.reports.drain(..)
    }

    /// Obeys one command; false for [`Command::Stop`].
    pub fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Install(spec) => self.install(spec),
            Command::Remove(slot) => self.remove(slot),
            Command::SetPath(path, entry, fault) => self.set_path(path, &entry, fault),
            Command::SetFault(slot, fault) => self.set_slot_fault(slot, fault),
            Command::SetRules(slot, rules) => self.set_rules(slot, rules),
            Command::SetPorts(ports) => self.ports = ports,
            Command::SetShare(slot, share) => {
                if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
                    state.account.flows_mut().set_share(share, &self.ports);
                }
            }
            Command::Renew(slot, epoch) => self.renew(slot, epoch),
            Command::UseDevice(ifindex) => {
                let at = self.device(ifindex);
                self.devices[at] = Self::begin_device(&mut self.datapath, ifindex);
            }
            Command::TryDevice(ifindex) => {
                let at = self.device(ifindex);
                self.devices[at].trial = Trial::Open { asked_ns: None };
            }
            Command::SetPrivate(ifindex) => self.datapath.set_private(ifindex),
            Command::Begin => {}
            Command::Stop => return false,
        }
        true
    }

    fn install(&mut self, spec: TrackerSpec) {
        let now_ns = self.datapath.now_ns();
        let index = spec.slot as usize;
        if self.gone.contains(&spec.slot) || self.gone_paths.contains(&spec.path) {
            // Lists that name the slot mean its last tracker, and what a path has seen is of its last member.
            self.sweep();
        }
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let at = self.groups.iter().position(|group| {
            (group.cohort.interval_ns, group.cohort.timeout_ns)
                == (spec.interval_ns, spec.timeout_ns)
        });
        let cohort = at.unwrap_or_else(|| {
            let new = Group {
                cohort: Cohort::new(spec.interval_ns, spec.timeout_ns),
                in_flight: InFlight::default(),
                prompt: VecDeque::new(),
            };
            // One that was left by all is forgotten with its in_flight, which are empty.
            let mut groups = self.groups.iter();
            if let Some(left) = groups.position(|group| group.cohort.is_empty()) {
                self.groups[left] = new;
                return left;
            }
            self.groups.push(new);
            self.groups.len() - 1
        });
        self.groups[cohort].cohort.add(spec.slot, now_ns);
        let sent = self.datapath.sent(spec.slot);
        let left = spec.resume.map(|(verdict, cause)| {
            let account = self.resume_account(&spec, cohort, sent, now_ns);
            (verdict, cause, account)
        });
        let mut slot = Box::new(Slot {
            spec,
            generation: spec.epoch,
            cohort,
            device: None,
            device_since_ns: now_ns,
            failure: None,
            account: TrackerAccount::new(
                spec.rules,
                spec.expects_silence,
                spec.interval_ns,
                sent,
                left,
            )
            .with_flows(
                spec.flows,
                ports_of(spec.flows, &self.ports, &self.identifiers),
                spec.resume.is_some(),
            ),
            fault: spec.fault,
            is_resumed: spec.resume.is_some(),
            is_prompt: false,
        });
        let path = self.path_mut(spec.path);
        path.slots.push(spec.slot);
        let (fault, ifindex) = (path.fault, path.ifindex);
        if ifindex != 0 {
            slot.device = Some(self.device(ifindex));
        }
        if spec.resume.is_none() {
            // Its slot may have been another's until now.
            slot.account.renew(sent, now_ns + spec.timeout_ns);
        }
        let verdict = slot.account.machine().verdict();
        self.datapath.set_verdict(spec.slot, verdict);
        if let Some(cause) = fault.or(spec.fault)
            && spec.resume.is_none()
        {
            slot.account.fault(cause);
        }
        self.slots[index] = Some(slot);
        self.report(spec.slot, now_ns, None);
    }

    /// Goes on from what an earlier daemon kept of a tracker. Its probes under way are still waited for, so that
    /// each counts: as a reply, or as one that proves nothing, never as a loss.
    fn resume_account(
        &mut self,
        spec: &TrackerSpec,
        cohort: usize,
        sent: u64,
        now_ns: u64,
    ) -> abi::JudgeState {
        let mut judge = self.datapath.judge(spec.slot);
        let under_way = sent.saturating_sub(judge.judged);
        if judge.judged > sent || under_way > u64::from(spec.window.mask + 1) * 64 {
            judge.judged = sent;
            return judge;
        }
        if under_way > 0 {
            let deadline_ns = now_ns + spec.timeout_ns;
            let in_flight = &mut self.groups[cohort].in_flight;
            in_flight.inherit(spec.slot, under_way, deadline_ns);
        }
        judge
    }

    /// Brings a slot's machine in line with what keeps the hub from sending for it, as reported for its path
    /// for the first time or anew.
    fn apply_path(&mut self, slot: u32, has_changed: bool, now_ns: u64) {
        let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let is_resumed = std::mem::take(&mut state.is_resumed);
        let fault = self.paths[state.spec.path as usize].fault.or(state.fault);
        if is_resumed && fault.is_none() && !state.account.machine().cause().is_of_hub() {
            // It could be sent for before, and still can.
            self.groups[state.cohort].prompt(slot, state);
        } else if is_resumed || has_changed {
            self.apply_fault(slot, now_ns);
        }
    }

    /// Takes a tracker out at once; lists that may name it are swept once for all that went since the last tick, so that
    /// the removal of n trackers is one walk over these and not n.
    fn remove(&mut self, slot: u32) {
        let gone = self.slots.get_mut(slot as usize).and_then(Option::take);
        if let Some(gone) = gone {
            self.gone.insert(slot);
            self.gone_paths.insert(gone.spec.path);
        }
    }

    /// Takes those that went out of all lists.
    fn sweep(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let gone = std::mem::take(&mut self.gone);
        for group in &mut self.groups {
            group.cohort.remove_all(|slot| gone.contains(&slot));
            group.prompt.retain(|slot| !gone.contains(slot));
            group.in_flight.forget_all(|slot| gone.contains(&slot));
        }
        for path in self.gone_paths.drain() {
            if let Some(path) = self.paths.get_mut(path as usize) {
                path.slots.retain(|slot| !gone.contains(slot));
            }
        }
    }

    fn path_mut(&mut self, path: u32) -> &mut PathState {
        let index = path as usize;
        if self.paths.len() <= index {
            self.paths.resize_with(index + 1, || PathState {
                fault: Some(Cause::InterfaceMissing),
                ..Default::default()
            });
        }
        &mut self.paths[index]
    }

    fn set_path(&mut self, path: u32, entry: &abi::Path, fault: Option<Cause>) {
        let now_ns = self.datapath.now_ns();
        self.datapath.set_path(path, entry);
        let device = (fault.is_none() && entry.ifindex != 0).then(|| self.device(entry.ifindex));
        let is_redirected = fault.is_none() && entry.egress.get() == abi::Egress::XdpRedirect;
        let state = self.path_mut(path);
        let was_redirected = std::mem::replace(&mut state.is_redirected, is_redirected);
        let before = std::mem::replace(&mut state.fault, fault);
        // A path that leads nowhere keeps its entry for the replies that are under way, and uses no device.
        state.ifindex = if fault.is_none() { entry.ifindex } else { 0 };
        let slots = std::mem::take(&mut state.slots);
        // The silence of probes that may never have left counts for nothing from here on.
        let is_void = was_redirected && !is_redirected;
        for &slot in &slots {
            if let Some(state) = self.slots[slot as usize].as_mut()
                && is_void
                && let Some(last) = state.device
                && self.devices[last].trial != Trial::Over
            {
                let until_ns = now_ns + state.spec.timeout_ns;
                state.account.renew(self.datapath.sent(slot), until_ns);
            }
            if let Some(slot) = self.slots[slot as usize].as_mut()
                && device.is_some()
                && slot.device != device
            {
                (slot.device, slot.device_since_ns) = (device, now_ns);
            }
            self.apply_path(slot, before != fault, now_ns);
        }
        self.path_mut(path).slots = slots;
    }

    fn set_slot_fault(&mut self, slot: u32, fault: Option<Cause>) {
        let now_ns = self.datapath.now_ns();
        if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut)
            && state.fault != fault
        {
            state.fault = fault;
            self.apply_fault(slot, now_ns);
        }
    }

    fn set_rules(&mut self, slot: u32, rules: Rules) {
        if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
            state.spec.rules = rules;
            state.account.set_rules(rules);
        }
    }

    fn renew(&mut self, slot: u32, epoch: u32) {
        let (sent, now_ns) = (self.datapath.sent(slot), self.datapath.now_ns());
        if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
            state.spec.epoch = epoch;
            let until_ns = now_ns + state.spec.timeout_ns;
            state.account.renew(sent, until_ns);
        }
    }

    /// Brings a slot's machine in line with what now keeps the hub from sending for it.
    fn apply_fault(&mut self, slot: u32, now_ns: u64) {
        let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        match self.paths[state.spec.path as usize].fault.or(state.fault) {
            Some(cause) => state.account.fault(cause),
            None => {
                state.account.mended();
                self.groups[state.cohort].prompt(slot, state);
            }
        }
        self.report(slot, now_ns, None);
    }

    fn device(&mut self, ifindex: u32) -> usize {
        if let Some(at) = self
            .devices
            .iter()
            .position(|device| device.ifindex == ifindex)
        {
            return at;
        }
        self.devices
            .push(Self::begin_device(&mut self.datapath, ifindex));
        self.devices.len() - 1
    }

    fn begin_device(datapath: &mut P, ifindex: u32) -> Device {
        let transmitted = datapath.transmitted(ifindex);
        let now_ns = datapath.now_ns();
        Device {
            ifindex,
            tx_check: TxCheck::new(transmitted, now_ns),
            began_ns: now_ns,
            checked_ns: now_ns,
            trial: Trial::Over,
        }
    }

    /// Does what is due and says when the next tick should be.
    pub fn tick(&mut self, health: &Health) -> u64 {
        self.sweep();
        let now_ns = self.datapath.now_ns();
        self.note_lateness(now_ns, health);
        self.take_replies(now_ns, health);
        self.judge(now_ns);
        self.reset();
        self.send();
        self.check_devices(now_ns);
        self.planned_ns = self.next_tick_ns(now_ns);
        health.tick.expect(self.planned_ns);
        self.planned_ns
    }

    fn next_tick_ns(&self, now_ns: u64) -> u64 {
        let due = self
            .groups
            .iter()
            .filter_map(|group| group.cohort.next_due_ns());
        let deadlines = self
            .groups
            .iter()
            .filter_map(|group| group.in_flight.next_deadline_ns());
        let prompt = self
            .groups
            .iter()
            .any(|group| !group.prompt.is_empty())
            .then_some(now_ns);
        // A hub that stands still is seen by its lateness only: if something is under way, none longer than this.
        let watch = self.groups.iter().filter_map(|group| {
            group.in_flight.next_deadline_ns()?;
            Some(now_ns + (group.cohort.timeout_ns / 4).max(STALL_MIN_NS))
        });
        let next_ns = due
            .chain(deadlines)
            .chain(prompt)
            .chain(watch)
            .min()
            .unwrap_or(u64::MAX);
        schedule::next_tick_ns(self.planned_ns, now_ns, next_ns)
    }

    /// A tick that comes late is the hub's fault: losses under way then prove nothing.
    fn note_lateness(&mut self, now_ns: u64, health: &Health) {
        let late_ns = if self.planned_ns == 0 {
            0
        } else {
            now_ns.saturating_sub(self.planned_ns)
        };
        health.tick.note(now_ns, late_ns);
        let slept_ns = self.datapath.slept_ns();
        let slept_now_ns = slept_ns.saturating_sub(self.slept_ns);
        let has_slept = slept_now_ns >= STALL_MIN_NS;
        if has_slept {
            self.slept_ns = slept_ns;
            self.reports.push(Report::Slept(slept_now_ns));
        }
        let mut any = false;
        for group in &mut self.groups {
            let is_void = has_slept || InFlight::is_stall(late_ns, group.cohort.timeout_ns);
            any |= is_void && group.in_flight.void(now_ns);
        }
        if any {
            health.stalls.fetch_add(1, Ordering::Relaxed);
            if !has_slept {
                self.reports.push(Report::Stalled(late_ns));
            }
        }
    }

    /// Early replies: a tracker that is not up may be so at once.
    fn take_replies(&mut self, now_ns: u64, health: &Health) {
        while let Some(event) = self.datapath.next_reply() {
            let waited_ns = now_ns.saturating_sub(event.received_mono_ns);
            health.ring.note(now_ns, waited_ns);
            let Some(slot) = self
                .slots
                .get_mut(event.tracker as usize)
                .and_then(Option::as_mut)
            else {
                continue;
            };
            if slot.spec.epoch != event.epoch {
                continue;
            }
            let (datapath, window) = (&self.datapath, slot.spec.window);
            let is_replied = |sequence| datapath.is_replied(window, sequence);
            let since_ns = (slot.account).early(event.sequence, event.received_mono_ns, is_replied);
            if let Some(since_ns) = since_ns {
                let detection_ns = now_ns.saturating_sub(since_ns);
                self.doubt_silence(event.tracker, event.received_mono_ns);
                self.report(event.tracker, now_ns, Some(detection_ns));
            }
        }
    }

    /// A reply came where silence is expected: until the member's other trackers would have found that nothing passes any
    /// more, silence does not prove that the service stops the probes again.
    fn doubt_silence(&mut self, index: u32, received_ns: u64) {
        let Some(slot) = self.slots[index as usize].as_ref() else {
            return;
        };
        if !slot.spec.expects_silence {
            return;
        }
        let others = self.paths[slot.spec.path as usize].slots.iter();
        let others = others.filter_map(|other| self.slots[*other as usize].as_ref());
        let longest_ns = others
            .filter(|other| !other.spec.expects_silence)
            .map(|other| {
                // One interval more: a turn that comes late is skipped.
                let TrackerSpec {
                    interval_ns,
                    timeout_ns,
                    rules,
                    ..
                } = other.spec;
                (u64::from(rules.fall) + 1) * interval_ns + timeout_ns
            })
            .max();
        if let (Some(longest_ns), Some(slot)) = (longest_ns, self.slots[index as usize].as_mut()) {
            slot.account.doubt_silence(received_ns + longest_ns);
        }
    }

    /// Judges every probe whose timeout has passed, in the order in which they were sent.
    fn judge(&mut self, now_ns: u64) {
        for at in 0..self.groups.len() {
            while let Some(landed) = self.groups[at].in_flight.due(now_ns) {
                self.judge_one(landed, now_ns);
            }
        }
    }

    fn judge_one(&mut self, landed: DueProbe, now_ns: u64) {
        let index = landed.slot;
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let sequence = slot.account.next();
        let is_replied = self.datapath.is_replied(slot.spec.window, sequence);
        let (device, device_since_ns) = (slot.device, slot.device_since_ns);
        if let Some(device) = device
            && is_replied
            && landed.sent_ns > device_since_ns.max(self.devices[device].began_ns)
        {
            self.devices[device].tx_check.reply();
            if self.paths[slot.spec.path as usize].is_redirected {
                self.devices[device].trial = Trial::Over;
            }
        }
        let judged = (slot.account).judge(is_replied, landed.is_void, landed.sent_ns);
        if let Some(claim) = judged.claim
            && let Some(device) = device
            && self.paths[slot.spec.path as usize].is_redirected
            && Self::is_on_trial(&mut self.devices[device], now_ns, &mut self.reports)
        {
            slot.account.withdraw(claim);
        } else if let Some(claim) = judged.claim {
            // The last check before anyone is blamed: did the probes of this run leave at all?
            let has_left = match (claim.sent_since_ns, device) {
                (Some(since_ns), Some(device)) => self.left(device, since_ns, now_ns),
                _ => true,
            };
            let trouble = self.datapath.trouble(index);
            if let Some(slot) = self.slots[index as usize].as_mut() {
                if !has_left {
                    slot.failure = Some(SendFailure::Device);
                }
                slot.account.conclude(claim, has_left, &trouble);
            }
        }
        if !is_replied && let Some(slot) = self.slots[index as usize].as_mut() {
            let (datapath, window) = (&self.datapath, slot.spec.window);
            let ports = ports_of(slot.spec.flows, &self.ports, &self.identifiers);
            let is_replied = |sequence| datapath.is_replied(window, sequence);
            slot.account.lose_flow(ports, landed.is_void, is_replied);
        }
        if is_replied {
            self.doubt_silence(index, landed.sent_ns);
        }
        let since_ns = judged.since_ns;
        let detection_ns = since_ns.map(|since_ns| now_ns.saturating_sub(since_ns));
        self.report(index, now_ns, detection_ns);
    }

    /// Whether silence of probes that were redirected to a device proves nothing yet; has them sent by TC. That is done within
    /// [`TRIAL_NS`], or silence counts.
    fn is_on_trial(device: &mut Device, now_ns: u64, reports: &mut Vec<Report>) -> bool {
        let Trial::Open { asked_ns } = device.trial else {
            return false;
        };
        let Some(asked_ns) = asked_ns else {
            device.trial = Trial::Open {
                asked_ns: Some(now_ns),
            };
            reports.push(Report::NeverAnswered {
                ifindex: device.ifindex,
                since_mono_ns: device.began_ns,
            });
            return true;
        };
        now_ns.saturating_sub(asked_ns) < TRIAL_NS
    }

    /// True if what was handed to a device since a time is believed to have left it.
    fn left(&mut self, device: usize, since_ns: u64, now_ns: u64) -> bool {
        // Once a tick: a thousand trackers that fall together ask only one question.
        self.check_device(device, now_ns, 1, true);
        !self.devices[device].tx_check.is_doubtful(since_ns)
    }

    /// Publishes a slot's state, and reports it if verdict or cause changed.
    fn report(&mut self, index: u32, now_ns: u64, detection_ns: Option<u64>) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let change = slot.account.take_change();
        self.datapath.set_judge(index, slot.account.judge_state());
        let Some(change) = change else {
            return;
        };
        if change.has_turned {
            self.datapath.set_verdict(index, change.verdict);
        }
        self.reports.push(Report::Changed {
            slot: index,
            generation: slot.generation,
            verdict: change.verdict,
            cause: change.cause,
            mono_ns: now_ns,
            detection_ns: detection_ns.filter(|_| change.has_turned),
            failure: slot.failure.filter(|_| change.cause == Cause::SendFailed),
            moved: slot.account.flows().moved(),
        });
        if change.misses_replies {
            self.catch_up(index, now_ns);
        }
    }

    /// Replies that arrived while the tracker was still up were not reported as early ones; they may
    /// already make it up again.
    fn catch_up(&mut self, index: u32, now_ns: u64) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let (datapath, window) = (&self.datapath, slot.spec.window);
        let is_replied = |sequence| datapath.is_replied(window, sequence);
        if slot.account.catch_up(now_ns, is_replied) {
            self.report(index, now_ns, Some(0));
        }
    }

    /// Ends the connections that peers hold open, and sends those SYNs once more that were not taken for them.
    fn reset(&mut self) {
        let mut leaks = Vec::new();
        loop {
            self.batch.clear();
            while self.batch.len() + 1 < abi::BATCH_MAX as usize
                && let Some(answered) = self.datapath.next_answered()
            {
                let slot = self.slots.get_mut(answered.tracker as usize);
                let Some(slot) = slot.and_then(Option::as_mut) else {
                    continue;
                };
                // Its number would be another one under another epoch. Without a way out it ends by itself.
                let fault = slot.fault.or(self.paths[slot.spec.path as usize].fault);
                if slot.spec.epoch != answered.epoch || fault.is_some() {
                    continue;
                }
                let sequence = answered.sequence(self.datapath.sent(answered.tracker));
                // A challenge ACK answers a later SYN than the one that it acknowledges: that one passed too.
                if answered.is_held != 0 && slot.spec.expects_silence {
                    leaks.push((answered.tracker, sequence + 1));
                }
                let (datapath, window) = (&self.datapath, slot.spec.window);
                let is_replied = |sequence| datapath.is_replied(window, sequence);
                let judged = slot.account.judge_state().judged;
                let ports = ports_of(slot.spec.flows, &self.ports, &self.identifiers);
                let again = (slot.account.flows_mut()).again(
                    ports,
                    sequence,
                    answered.flow,
                    judged,
                    is_replied,
                );
                if answered.is_held == 0 || again.is_some() {
                    let reset = abi::Job::reset(answered.tracker, sequence, answered.flow);
                    self.batch.push(reset);
                }
                if let Some((sequence, flow)) = again {
                    let again = abi::Job::again(answered.tracker, sequence, flow);
                    self.batch.push(again);
                }
            }
            for (index, sequence) in leaks.drain(..) {
                let now_ns = self.datapath.now_ns();
                let slot = self.slots[index as usize].as_mut();
                if slot.is_some_and(|slot| slot.account.early(sequence, now_ns, |_| true).is_some())
                {
                    self.doubt_silence(index, now_ns);
                    self.report(index, now_ns, None);
                }
            }
            if self.batch.is_empty() {
                return;
            }
            for job in &self.batch {
                if let Some(device) = self.slots[job.tracker as usize]
                    .as_ref()
                    .and_then(|slot| slot.device)
                {
                    self.devices[device].tx_check.hand();
                }
            }
            let mut taken = 0;
            // A batch of the send program may be smaller than a ring of events. What is not sent ends by itself.
            while taken < self.batch.len()
                && let Ok(more) = self.datapath.send(&self.batch[taken..])
                && more > 0
            {
                taken += more;
            }
            for job in &self.batch[taken..] {
                if let Some(device) = self.slots[job.tracker as usize]
                    .as_ref()
                    .and_then(|slot| slot.device)
                {
                    self.devices[device].tx_check.take_back();
                }
            }
        }
    }

    /// Sends what is due, at most one batch of each cohort: if more is due, the next tick follows at
    /// once, so that replies, deadlines and commands never wait for more than a batch.
    fn send(&mut self) {
        for at in 0..self.groups.len() {
            self.batch.clear();
            let now_ns = self.datapath.now_ns();
            let (slots, paths) = (&mut self.slots, &self.paths);
            let (batch, devices) = (&mut self.batch, &mut self.devices);
            let datapath = &mut self.datapath;
            let (ports, identifiers) = (&self.ports, &self.identifiers);
            let group = &mut self.groups[at];
            let spacing_ns = if group.cohort.interval_ns >= PROMPT_NS {
                group.cohort.interval_ns / 2
            } else {
                0
            };
            let mut turn = |tracker: u32, turn: Turn, is_prompt: bool| {
                let Some(slot) = slots[tracker as usize].as_mut() else {
                    return;
                };
                let fault = slot.fault.or(paths[slot.spec.path as usize].fault);
                if is_prompt {
                    slot.is_prompt = false;
                    if fault.is_some() {
                        // Not its turn, so that nothing is skipped; once mended it stands in the queue again.
                        return;
                    }
                }
                if !slot.account.turn(turn, fault.is_none(), now_ns, spacing_ns) {
                    datapath.set_judge(tracker, slot.account.judge_state());
                    return;
                }
                if let Some(device) = slot.device {
                    devices[device].tx_check.hand();
                }
                let window = slot.spec.window;
                let ports = ports_of(slot.spec.flows, ports, identifiers);
                let is_replied = |sequence| datapath.is_replied(window, sequence);
                let flow = slot.account.flow(ports, is_replied);
                batch.push(abi::Job::probe(tracker, flow));
            };
            for _ in 0..PROMPT_MAX.min(group.prompt.len()) {
                if let Some(tracker) = group.prompt.pop_front() {
                    turn(tracker, Turn::Take, true);
                }
            }
            let limit = abi::BATCH_MAX as usize - PROMPT_MAX;
            let regular = |tracker, at_turn| turn(tracker, at_turn, false);
            group.cohort.tick(now_ns, limit, regular);
            if !self.batch.is_empty() {
                self.send_batch(at, now_ns);
            }
        }
    }

    fn send_batch(&mut self, at: usize, sent_ns: u64) {
        let taken = match self.datapath.send(&self.batch) {
            Ok(taken) => {
                self.send_failing = None;
                taken
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                if self.send_failing.replace(errno).is_none() {
                    self.reports.push(Report::SendFailed(errno));
                }
                0
            }
        };
        // A probe's timeout counts from when the kernel certainly had handed it over.
        let group = &mut self.groups[at];
        let deadline_ns = self.datapath.now_ns() + group.cohort.timeout_ns;
        for (position, job) in self.batch.iter().enumerate() {
            let tracker = job.tracker;
            let Some(slot) = self.slots[tracker as usize].as_mut() else {
                continue;
            };
            if position < taken && slot.account.was_sent(self.datapath.sent(tracker)) {
                group.in_flight.queue(tracker);
                continue;
            }
            if let Some(device) = slot.device {
                self.devices[device].tx_check.take_back();
            }
            let failure = match self.send_failing {
                Some(errno) => Some(SendFailure::Call(errno)),
                None => (position < taken).then_some(SendFailure::Frame),
            };
            slot.failure = failure.or(slot.failure);
            slot.account.was_not_sent(failure.is_some());
            self.refused.push(tracker);
        }
        group.in_flight.sent(sent_ns, deadline_ns);
        while let Some(tracker) = self.refused.pop() {
            self.report(tracker, sent_ns, None);
        }
    }

    /// Looks at one device a tick.
    fn check_devices(&mut self, now_ns: u64) {
        if self.devices.is_empty() {
            return;
        }
        self.next_device = (self.next_device + 1) % self.devices.len();
        // As fine as the fastest trackers' runs, or what left before a break would hide what did not after.
        let intervals = self.groups.iter().map(|group| group.cohort.interval_ns);
        let fresh_ns = intervals.min().unwrap_or(0).clamp(TICK_NS, DEVICE_CHECK_NS);
        self.check_device(self.next_device, now_ns, fresh_ns, false);
        for device in &mut self.devices {
            device.tx_check.age(now_ns);
        }
    }

    /// Holds a device's own counter against what was handed to it, unless that was done just now.
    fn check_device(&mut self, at: usize, now_ns: u64, fresh_ns: u64, decisive: bool) {
        let device = &mut self.devices[at];
        if now_ns.saturating_sub(device.checked_ns) < fresh_ns
            || device.tx_check.trust() == Trust::Denied
        {
            return;
        }
        device.checked_ns = now_ns;
        // Before a reply could have been judged, silence says nothing.
        let timeouts = self.groups.iter().map(|group| group.cohort.timeout_ns);
        let patience_ns = PATIENCE_NS + timeouts.max().unwrap_or(0);
        if let Some(transmitted) = self.datapath.transmitted(device.ifindex)
            && device
                .tx_check
                .check(transmitted, now_ns, patience_ns, decisive)
        {
            self.reports.push(Report::NotLeaving {
                ifindex: device.ifindex,
                since_mono_ns: device.began_ns,
            });
        }
    }

    /// Sleep until the planned tick.
    pub fn sleep(&self) -> Duration {
        Duration::from_nanos(self.planned_ns.saturating_sub(self.datapath.now_ns()))
    }
}

/// The flows from which a tracker takes its own.
const fn ports_of<'p>(rule: FlowRule, ports: &'p Ports, identifiers: &'p Ports) -> &'p Ports {
    match rule.is_identifier {
        true => identifiers,
        false => ports,
    }
}

#[cfg(test)]
mod tests;

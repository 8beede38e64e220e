//! The one thread that sends, judges and decides.
//!
//! Each tick it takes early replies, judges the probes whose timeout has passed, and sends what is
//! due. Everything it needs of the kernel is behind [`Plane`], so the whole engine also runs on a
//! simulated one. It owns every tracker's [`Machine`]; nobody else decides a verdict.

use std::{collections::VecDeque, io, sync::atomic::Ordering, time::Duration};

use tracker_ebpf::{
    abi,
    verdict::{Cause, Machine, Outcome, Rules, Verdict},
};

use crate::{
    health::Health,
    ledger::{Ledger, Trust},
    schedule::{Cohort, TICK_NS, Turn},
};

/// A tick later than this is a stall for every probe under way, however long its timeout.
const STALL_MIN_NS: u64 = 5_000_000;
/// How often at least each device's own counter is held against what was sent by it, while there is
/// something to do: a system call of some ten microseconds.
const DEVICE_CHECK_NS: u64 = 10_000_000;
/// How long, beyond the longest timeout, a device of which nothing is known may keep its counter still
/// before that is taken for the truth; some drivers refresh theirs once a second.
const PATIENCE_NS: u64 = 2_000_000_000;
/// Trackers of at least this interval are sent for as soon as they can be (again), not only at their next
/// turn: it may be an hour away.
const PROMPT_NS: u64 = 1_000_000_000;
/// Of those, so many a tick: a million that can be sent for at once are still spread.
const PROMPT_MAX: usize = 64;
/// Hosts and routers limit how often they complain: Linux tells a destination once a second of what it can't reach
/// (`icmp_ratelimit`). For so long an ICMP error explains the losses after it.
const ERROR_PAUSE_NS: u64 = 2_000_000_000;
/// Longest sleep: commands wake the thread, so this only bounds the age of device checks.
const IDLE_NS: u64 = 1_000_000_000;

/// What the engine needs of the kernel.
pub trait Plane {
    /// Now, in nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;
    /// How long the machine has slept (been suspended) so far, of which the monotonic clock knows nothing.
    fn slept_ns(&self) -> u64 {
        0
    }
    /// Sends one probe for each slot, in order; says for how many it was attempted.
    ///
    /// # Errors
    /// What the kernel answered, where it attempted none.
    fn send(&mut self, slots: &[u32]) -> io::Result<usize>;
    /// Probes that the slot has really been built and handed to its device so far.
    fn sent(&self, slot: u32) -> u64;
    /// True where the probe was answered within its timeout.
    fn is_replied(&self, window: Window, sequence: u64) -> bool;
    /// The receive program's notes on the slot.
    fn trouble(&self, slot: u32) -> abi::TroubleState;
    /// Tells the receive program the verdict; ordered before later [`Plane::is_replied`].
    fn set_verdict(&mut self, slot: u32, verdict: Verdict);
    /// Keeps the judge's part of the state where others can read it.
    fn set_judge(&mut self, slot: u32, judge: &abi::JudgeState);
    /// What an earlier daemon kept there.
    fn judge(&self, slot: u32) -> abi::JudgeState;
    /// Installs a path.
    fn set_path(&mut self, path: u32, entry: &abi::Path);
    /// The next early reply.
    fn next_reply(&mut self) -> Option<abi::Event>;
    /// Frames come from this private interface from now on.
    fn set_private(&mut self, _ifindex: u32) {}
    /// Frames that the device itself says it has transmitted.
    fn transmitted(&mut self, ifindex: u32) -> Option<u64>;
}

/// A tracker's bit set in WINDOWS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First word.
    pub first: u32,
    /// Words, less one; words are a power of two.
    pub mask: u32,
}

impl Window {
    /// The word and bit of a sequence number.
    pub const fn position(self, sequence: u64) -> (u32, u64) {
        (
            self.first + ((sequence >> 6) as u32 & self.mask),
            1 << (sequence & 63),
        )
    }

    /// Words that a tracker needs: all probes under way, the longest run, and the words being
    /// cleared and filled.
    pub const fn words(interval_ns: u64, timeout_ns: u64) -> u32 {
        let in_flight = timeout_ns / interval_ns + 2;
        let longest_run = 64;
        ((in_flight + longest_run).div_ceil(64) as u32 + 1).next_power_of_two()
    }
}

/// What the engine must know of a tracker; the rest is in the kernel's TRACKERS map.
#[derive(Clone, Copy, Debug)]
pub struct TrackerSpec {
    /// Slot in TRACKERS and STATE.
    pub slot: u32,
    /// The slot's epoch, which also tells this tracker from who had the slot before.
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
    /// The service must stop the probes; every reply is then reported (`reports_all` in TRACKERS).
    pub expects_silence: bool,
    /// The verdict and cause with which it goes on, where an earlier daemon had it. Its `fault` is not known
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
    /// A tracker's probes are different from here on, under this epoch.
    Renew(u32, u32),
    /// Probes may be redirected to this device, for the first time or again: how those before left tells nothing of it.
    UseDevice(u32),
    /// The private interface was made anew.
    SetPrivate(u32),
    /// The first paths are told: from here on probes are sent.
    Begin,
    /// Ends the thread.
    Stop,
}

/// What the engine tells the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A tracker's verdict or cause changed.
    Changed {
        /// The tracker.
        slot: u32,
        /// The epoch with which it was installed.
        tenant: u32,
        /// Its verdict now.
        verdict: Verdict,
        /// Why.
        cause: Cause,
        /// When it was decided.
        mono_ns: u64,
        /// From the first probe that told, to the decision.
        detection_ns: Option<u64>,
    },
    /// Probes redirected to a device do not leave it.
    NotLeaving {
        /// The device.
        ifindex: u32,
        /// Since when its frames were counted: its use from then on is meant.
        since_mono_ns: u64,
    },
    /// The engine could not send at all.
    SendFailed(i32),
    /// A tick came this late.
    Stalled(u64),
    /// The machine was suspended for so long; what was under way proves nothing.
    Slept(u64),
}

#[derive(Clone, Debug)]
struct Slot {
    spec: TrackerSpec,
    tenant: u32,
    cohort: usize,
    device: Option<usize>,
    machine: Machine,
    reported: (Verdict, Cause),
    judge: abi::JudgeState,
    fault: Option<Cause>,
    /// It goes on from an earlier daemon's verdict, and whether it can be sent for was not said yet.
    is_resumed: bool,
    /// Probes that the kernel is known to have sent.
    handed: u64,
    /// When it was last sent for; 0 before the first time.
    sent_ns: u64,
    /// When the first probe of the present run of losses (or of silence, where that is expected) was sent.
    losing_since_ns: u64,
    /// When the first early reply of the present run came, and which probe it answered; 0 for none.
    replying_since_ns: u64,
    replying_from: u64,
}

#[derive(Debug, Default)]
struct PathState {
    fault: Option<Cause>,
    ifindex: u32,
    slots: Vec<u32>,
}

/// A tick's probes of one cohort.
#[derive(Clone, Copy, Debug)]
struct Flight {
    sent_ns: u64,
    deadline_ns: u64,
    count: u32,
}

impl Flight {
    /// `sent_ns` of what an earlier daemon sent, whenever that was.
    const INHERITED_NS: u64 = 0;
}

#[derive(Debug)]
struct Group {
    cohort: Cohort,
    flights: VecDeque<Flight>,
    in_flight: VecDeque<u32>,
    /// Trackers that can be sent for again and should not wait for their turn.
    prompt: VecDeque<u32>,
    /// Losses of probes sent before this prove nothing.
    void_until_ns: u64,
}

/// A device by which probes leave.
#[derive(Debug)]
struct Device {
    ifindex: u32,
    ledger: Ledger,
    began_ns: u64,
    checked_ns: u64,
}

/// The engine's state.
pub struct Engine<P> {
    plane: P,
    slots: Vec<Option<Box<Slot>>>,
    paths: Vec<PathState>,
    groups: Vec<Group>,
    devices: Vec<Device>,
    batch: Vec<u32>,
    refused: Vec<u32>,
    reports: Vec<Report>,
    /// When the next tick should be; 0 before the first.
    planned_ns: u64,
    /// How long the machine had slept by then.
    slept_ns: u64,
    next_device: usize,
    send_failing: bool,
}

impl<P: Plane> Engine<P> {
    /// An engine without trackers.
    pub fn new(plane: P) -> Self {
        Self {
            slept_ns: plane.slept_ns(),
            plane,
            slots: Vec::new(),
            paths: Vec::new(),
            groups: Vec::new(),
            devices: Vec::new(),
            batch: Vec::with_capacity(abi::BATCH_MAX as usize),
            refused: Vec::new(),
            reports: Vec::new(),
            planned_ns: 0,
            next_device: 0,
            send_failing: false,
        }
    }

    /// The kernel, real or simulated.
    pub const fn plane(&self) -> &P {
        &self.plane
    }

    /// The kernel, real or simulated.
    pub const fn plane_mut(&mut self) -> &mut P {
        &mut self.plane
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
            Command::Renew(slot, epoch) => self.renew(slot, epoch),
            Command::UseDevice(ifindex) => {
                let at = self.device(ifindex);
                self.devices[at] = Self::begin_device(&mut self.plane, ifindex);
            }
            Command::SetPrivate(ifindex) => self.plane.set_private(ifindex),
            Command::Begin => {}
            Command::Stop => return false,
        }
        true
    }

    fn install(&mut self, spec: TrackerSpec) {
        let now_ns = self.plane.now_ns();
        let index = spec.slot as usize;
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
                flights: VecDeque::new(),
                in_flight: VecDeque::new(),
                prompt: VecDeque::new(),
                void_until_ns: 0,
            };
            // One that was left by all is forgotten with its flights, which are empty.
            let mut groups = self.groups.iter();
            if let Some(left) = groups.position(|group| group.cohort.is_empty()) {
                self.groups[left] = new;
                return left;
            }
            self.groups.push(new);
            self.groups.len() - 1
        });
        self.groups[cohort].cohort.add(spec.slot, now_ns);
        let sent = self.plane.sent(spec.slot);
        // Outcomes that nobody judged prove nothing, and runs begin anew: what is decided from here on was
        // seen from here on.
        let (verdict, cause) = spec.resume.unwrap_or_default();
        let machine = Machine::resume(verdict, cause, sent);
        let judge = match spec.resume {
            Some(_) => self.resume_judge(&spec, cohort, sent, now_ns),
            None => abi::JudgeState {
                judged: sent,
                ..Default::default()
            },
        };
        let mut slot = Box::new(Slot {
            spec,
            tenant: spec.epoch,
            cohort,
            device: None,
            reported: (machine.verdict(), machine.cause()),
            machine,
            judge,
            fault: spec.fault,
            is_resumed: spec.resume.is_some(),
            handed: sent,
            sent_ns: 0,
            losing_since_ns: 0,
            replying_since_ns: 0,
            replying_from: 0,
        });
        let path = self.path_mut(spec.path);
        path.slots.push(spec.slot);
        let (fault, ifindex) = (path.fault, path.ifindex);
        if ifindex != 0 {
            slot.device = Some(self.device(ifindex));
        }
        self.plane.set_verdict(spec.slot, verdict);
        if let Some(cause) = fault.or(spec.fault)
            && spec.resume.is_none()
        {
            slot.machine.fault(cause, sent);
        }
        self.slots[index] = Some(slot);
        self.settle(spec.slot, now_ns, None);
    }

    /// Goes on from what an earlier daemon kept of a tracker. Its probes under way are still waited for, so that
    /// each counts: as a reply, or as one of which nothing is known, never as a loss.
    fn resume_judge(
        &mut self,
        spec: &TrackerSpec,
        cohort: usize,
        sent: u64,
        now_ns: u64,
    ) -> abi::JudgeState {
        let mut judge = self.plane.judge(spec.slot);
        let under_way = sent.saturating_sub(judge.judged);
        if judge.judged > sent || under_way > u64::from(spec.window.mask + 1) * 64 {
            judge.judged = sent;
            return judge;
        }
        let group = &mut self.groups[cohort];
        for _ in 0..under_way {
            group.in_flight.push_back(spec.slot);
        }
        if under_way > 0 {
            group.void_until_ns = group.void_until_ns.max(Flight::INHERITED_NS + 1);
            group.flights.push_back(Flight {
                sent_ns: Flight::INHERITED_NS,
                deadline_ns: now_ns + spec.timeout_ns,
                count: under_way as u32,
            });
        }
        judge
    }

    /// Brings a slot's machine in line with what keeps the hub from sending for it, of which its path was told
    /// for the first time or anew.
    fn apply_path(&mut self, slot: u32, has_changed: bool, now_ns: u64) {
        let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let is_resumed = std::mem::take(&mut state.is_resumed);
        let fault = self.paths[state.spec.path as usize].fault.or(state.fault);
        if is_resumed && fault.is_none() && !state.machine.cause().is_of_hub() {
            // It could be sent for before, and still can.
            if state.spec.interval_ns >= PROMPT_NS {
                self.groups[state.cohort].prompt.push_back(slot);
            }
        } else if is_resumed || has_changed {
            self.apply_fault(slot, now_ns);
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(gone) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let group = &mut self.groups[gone.cohort];
        group.cohort.remove(slot);
        group.prompt.retain(|&entry| entry != slot);
        // Its probes under way are forgotten: each flight loses the entries that were this slot's.
        let mut entries = std::mem::take(&mut group.in_flight).into_iter();
        for flight in &mut group.flights {
            let before = group.in_flight.len();
            let of_flight = entries.by_ref().take(flight.count as usize);
            group
                .in_flight
                .extend(of_flight.filter(|&entry| entry != slot));
            flight.count = (group.in_flight.len() - before) as u32;
        }
        self.paths[gone.spec.path as usize]
            .slots
            .retain(|&other| other != slot);
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
        let now_ns = self.plane.now_ns();
        self.plane.set_path(path, entry);
        let device = (fault.is_none() && entry.ifindex != 0).then(|| self.device(entry.ifindex));
        let state = self.path_mut(path);
        let before = std::mem::replace(&mut state.fault, fault);
        state.ifindex = entry.ifindex;
        let slots = std::mem::take(&mut state.slots);
        for &slot in &slots {
            if let Some(slot) = self.slots[slot as usize].as_mut()
                && device.is_some()
            {
                slot.device = device;
            }
            self.apply_path(slot, before != fault, now_ns);
        }
        self.path_mut(path).slots = slots;
    }

    fn set_slot_fault(&mut self, slot: u32, fault: Option<Cause>) {
        let now_ns = self.plane.now_ns();
        if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut)
            && state.fault != fault
        {
            state.fault = fault;
            self.apply_fault(slot, now_ns);
        }
    }

    fn renew(&mut self, slot: u32, epoch: u32) {
        let sent = self.plane.sent(slot);
        if let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
            state.spec.epoch = epoch;
            state.machine.renew(sent);
            state.replying_since_ns = 0;
        }
    }

    /// Brings a slot's machine in line with what now keeps the hub from sending for it.
    fn apply_fault(&mut self, slot: u32, now_ns: u64) {
        let Some(state) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let sent = state.handed;
        state.replying_since_ns = 0;
        match self.paths[state.spec.path as usize].fault.or(state.fault) {
            Some(cause) => state.machine.fault(cause, sent),
            None => {
                state.machine.mended();
                if state.spec.interval_ns >= PROMPT_NS {
                    self.groups[state.cohort].prompt.push_back(slot);
                }
            }
        }
        self.settle(slot, now_ns, None);
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
            .push(Self::begin_device(&mut self.plane, ifindex));
        self.devices.len() - 1
    }

    fn begin_device(plane: &mut P, ifindex: u32) -> Device {
        let transmitted = plane.transmitted(ifindex);
        let now_ns = plane.now_ns();
        Device {
            ifindex,
            ledger: Ledger::new(transmitted, now_ns),
            began_ns: now_ns,
            checked_ns: now_ns,
        }
    }

    /// Does what is due and says when the next tick should be.
    pub fn tick(&mut self, health: &Health) -> u64 {
        let now_ns = self.plane.now_ns();
        self.note_lateness(now_ns, health);
        self.take_replies(now_ns, health);
        self.judge(now_ns);
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
            .filter_map(|group| Some(group.flights.front()?.deadline_ns));
        let prompt = self
            .groups
            .iter()
            .any(|group| !group.prompt.is_empty())
            .then_some(now_ns);
        let next_ns = due.chain(deadlines).chain(prompt).min().unwrap_or(u64::MAX);
        // An early wake-up (a reply, a command) does not shift the grid of ticks.
        let soonest_ns = if self.planned_ns > now_ns {
            self.planned_ns.min(now_ns + TICK_NS)
        } else {
            now_ns + TICK_NS
        };
        next_ns.clamp(soonest_ns, now_ns + IDLE_NS)
    }

    /// A tick that comes late is the hub's fault: losses under way then prove nothing.
    fn note_lateness(&mut self, now_ns: u64, health: &Health) {
        let late_ns = if self.planned_ns == 0 {
            0
        } else {
            now_ns.saturating_sub(self.planned_ns)
        };
        health.tick.note(now_ns, late_ns);
        let slept_ns = self.plane.slept_ns();
        let slept_now_ns = slept_ns.saturating_sub(self.slept_ns);
        let has_slept = slept_now_ns >= STALL_MIN_NS;
        if has_slept {
            self.slept_ns = slept_ns;
            self.reports.push(Report::Slept(slept_now_ns));
        } else if late_ns < STALL_MIN_NS {
            return;
        }
        let mut any = false;
        for group in &mut self.groups {
            // Whoever sleeps hears no reply; how long it was does not matter.
            let is_void = has_slept || late_ns >= group.cohort.timeout_ns / 2;
            if is_void && !group.flights.is_empty() {
                group.void_until_ns = now_ns;
                any = true;
            }
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
        while let Some(event) = self.plane.next_reply() {
            let waited_ns = now_ns.saturating_sub(event.received_mono_ns);
            health.ring.note(now_ns, waited_ns);
            let Some(slot) = self
                .slots
                .get_mut(event.tracker as usize)
                .and_then(Option::as_mut)
            else {
                continue;
            };
            if slot.spec.epoch != event.epoch || !slot.machine.counts(event.sequence) {
                continue;
            }
            if slot.spec.expects_silence {
                slot.machine.unexpected(event.sequence);
                let detection_ns = now_ns.saturating_sub(event.received_mono_ns);
                self.settle(event.tracker, now_ns, Some(detection_ns));
                continue;
            }
            if slot.replying_since_ns == 0 {
                slot.replying_since_ns = event.received_mono_ns;
                slot.replying_from = event.sequence;
            }
            let (plane, window, rules) = (&self.plane, slot.spec.window, slot.spec.rules);
            // Replies may overtake each other: the one that completes a run need not be its last.
            let last = (event.sequence + u64::from(rules.rise) - 1).min(slot.handed);
            for end in event.sequence..=last {
                slot.machine
                    .replied(rules, end, |sequence| plane.is_replied(window, sequence));
            }
            let detection_ns = now_ns.saturating_sub(slot.replying_since_ns);
            self.settle(event.tracker, now_ns, Some(detection_ns));
        }
    }

    /// Judges every probe whose timeout has passed, in the order in which they were sent.
    fn judge(&mut self, now_ns: u64) {
        for at in 0..self.groups.len() {
            while let Some(&flight) = self.groups[at].flights.front()
                && flight.deadline_ns <= now_ns
            {
                let group = &mut self.groups[at];
                group.flights.pop_front();
                let void = flight.sent_ns < group.void_until_ns;
                for _ in 0..flight.count {
                    if let Some(slot) = self.groups[at].in_flight.pop_front() {
                        self.judge_one(slot, flight, void, now_ns);
                    }
                }
            }
        }
    }

    fn judge_one(&mut self, index: u32, flight: Flight, void: bool, now_ns: u64) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let sequence = slot.judge.judged + 1;
        slot.judge.judged = sequence;
        if self.plane.is_replied(slot.spec.window, sequence) {
            if let Some(device) = slot.device
                && flight.sent_ns != Flight::INHERITED_NS
            {
                self.devices[device].ledger.reply();
            }
            let outcome = match slot.spec.expects_silence {
                true => Outcome::Unexpected,
                false => Outcome::Replied,
            };
            slot.machine.judge(slot.spec.rules, sequence, outcome);
            let since_ns = slot.replying_since_ns;
            let detection_ns = (since_ns != 0).then(|| now_ns.saturating_sub(since_ns));
            self.settle(index, now_ns, detection_ns);
            return;
        }
        if void {
            slot.judge.skipped += 1;
            slot.judge.not_sent += 1;
            slot.machine
                .judge(slot.spec.rules, sequence, Outcome::Void(Cause::Stalled));
            self.settle(index, now_ns, None);
            return;
        }
        if slot.spec.expects_silence {
            self.stay_silent(index, sequence, flight.sent_ns, now_ns);
        } else {
            self.lose(index, sequence, flight.sent_ns, now_ns);
        }
    }

    /// A probe that the service must stop had its full timeout and no reply came. That is worth something
    /// only if it left the hub.
    fn stay_silent(&mut self, index: u32, sequence: u64, sent_ns: u64, now_ns: u64) {
        let Some(slot) = self.slots[index as usize].as_mut() else {
            return;
        };
        slot.judge.lost += 1;
        if slot.machine.replied_run() == 0 {
            slot.losing_since_ns = sent_ns;
        }
        let before = slot.machine;
        slot.machine
            .judge(slot.spec.rules, sequence, Outcome::Silent);
        let (since_ns, device) = (slot.losing_since_ns, slot.device);
        let is_new = before.verdict() != Verdict::Up;
        let told_ns = if is_new { since_ns } else { sent_ns };
        let left = slot.machine.verdict() != Verdict::Up
            || device.is_none_or(|device| self.left(device, told_ns, now_ns));
        if let (false, Some(slot)) = (left, self.slots[index as usize].as_mut()) {
            slot.machine = before;
            slot.machine.fault(Cause::SendFailed, sequence);
            slot.judge.lost = slot.judge.lost.saturating_sub(1);
            slot.judge.not_sent += 1;
            slot.judge.skipped += 1;
        }
        self.settle(index, now_ns, Some(now_ns.saturating_sub(since_ns)));
    }

    /// A probe had its full timeout and no reply came.
    fn lose(&mut self, index: u32, sequence: u64, sent_ns: u64, now_ns: u64) {
        let Some(slot) = self.slots[index as usize].as_mut() else {
            return;
        };
        slot.judge.lost += 1;
        if sequence > slot.replying_from {
            slot.replying_since_ns = 0;
        }
        if slot.machine.lost_run() == 0 {
            slot.losing_since_ns = sent_ns;
        }
        let (before, counts) = (slot.machine, slot.machine.counts(sequence));
        slot.machine.judge(slot.spec.rules, sequence, Outcome::Lost);
        let (since_ns, device) = (slot.losing_since_ns, slot.device);
        let is_open = slot.machine.cause() == Cause::NoReply;
        if counts && is_open && slot.machine.verdict() == Verdict::Down {
            // The last check before anyone is blamed: did the probes of this run leave at all?
            let decides = slot.machine.lost_run() == slot.spec.rules.fall;
            let left = !decides || device.is_none_or(|device| self.left(device, since_ns, now_ns));
            if left {
                self.explain(index, sequence, sent_ns);
            } else {
                self.excuse(index, before, sequence);
            }
        }
        self.settle(index, now_ns, Some(now_ns.saturating_sub(since_ns)));
    }

    /// True where what was handed to a device since a time is believed to have left it.
    fn left(&mut self, device: usize, since_ns: u64, now_ns: u64) -> bool {
        // Once a tick: a thousand trackers that fall together ask only one question.
        self.check_device(device, now_ns, 1, true);
        !self.devices[device].ledger.is_doubtful(since_ns)
    }

    /// Takes a verdict back: the probes of its run did not leave the hub.
    fn excuse(&mut self, index: u32, before: Machine, sequence: u64) {
        let Some(slot) = self.slots[index as usize].as_mut() else {
            return;
        };
        let run = u64::from(slot.machine.lost_run());
        slot.machine = before;
        slot.machine.fault(Cause::SendFailed, sequence);
        slot.judge.lost = slot.judge.lost.saturating_sub(run);
        slot.judge.not_sent += run;
        slot.judge.skipped += run;
        slot.replying_since_ns = 0;
    }

    /// Says why a tracker is down, by what is known of its latest `fall` losses. What explained earlier ones
    /// counts no more: a reply that once came around the service says nothing of probes that vanish.
    fn explain(&mut self, index: u32, sequence: u64, sent_ns: u64) {
        let trouble = self.plane.trouble(index);
        let Some(slot) = self.slots[index as usize].as_mut() else {
            return;
        };
        let (machine, rules) = (&mut slot.machine, slot.spec.rules);
        let reach = machine.reach(rules);
        let concerns = |about: u64, reach: u64| machine.counts(about) && about + reach >= sequence;
        let patience = ERROR_PAUSE_NS / slot.spec.interval_ns;
        let corrupt_since_ns = match machine.lost_run() == rules.fall {
            true => slot.losing_since_ns,
            false => sent_ns.saturating_sub(reach * slot.spec.interval_ns),
        };
        if trouble.wrong_path != 0 && concerns(trouble.wrong_path_sequence, reach) {
            machine.explain(Cause::WrongPath);
        } else if trouble.complaint != abi::Complaint::None
            && concerns(trouble.complaint_sequence, reach.max(patience))
        {
            machine.explain(Cause::Unreachable);
        } else if trouble.corrupt_mono_ns >= corrupt_since_ns {
            machine.explain(Cause::Corrupt);
        }
    }

    /// Publishes a slot's state, and reports it where verdict or cause changed.
    fn settle(&mut self, index: u32, now_ns: u64, detection_ns: Option<u64>) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        let (verdict, cause) = (slot.machine.verdict(), slot.machine.cause());
        slot.judge.lost_run = slot.machine.lost_run();
        slot.judge.replied_run = slot.machine.replied_run();
        slot.judge.cause = cause as u8;
        self.plane.set_judge(index, &slot.judge);
        if slot.reported == (verdict, cause) {
            return;
        }
        let turned = slot.reported.0 != verdict;
        slot.reported = (verdict, cause);
        if turned {
            self.plane.set_verdict(index, verdict);
        }
        let detection_ns = detection_ns.filter(|_| turned);
        self.reports.push(Report::Changed {
            slot: index,
            tenant: slot.tenant,
            verdict,
            cause,
            mono_ns: now_ns,
            detection_ns,
        });
        let misses_replies = turned && verdict == Verdict::Down;
        if misses_replies && !slot.spec.expects_silence {
            self.catch_up(index, now_ns);
        }
    }

    /// Replies that arrived while the tracker was still up were not reported as early ones; they may
    /// already make it up again.
    fn catch_up(&mut self, index: u32, now_ns: u64) {
        let sent = self.plane.sent(index);
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        slot.replying_since_ns = 0;
        let (plane, window, rules) = (&self.plane, slot.spec.window, slot.spec.rules);
        for sequence in slot.judge.judged + 1..=sent {
            if plane.is_replied(window, sequence) {
                if slot.replying_since_ns == 0 {
                    slot.replying_since_ns = now_ns;
                    slot.replying_from = sequence;
                }
                slot.machine
                    .replied(rules, sequence, |earlier| plane.is_replied(window, earlier));
            }
        }
        if slot.machine.verdict() == Verdict::Up {
            self.settle(index, now_ns, Some(0));
        }
    }

    /// Sends what is due, at most one batch of each cohort: where more is due, the next tick follows at
    /// once, so that replies, deadlines and commands never wait for more than a batch.
    fn send(&mut self) {
        for at in 0..self.groups.len() {
            self.batch.clear();
            let now_ns = self.plane.now_ns();
            let (slots, paths) = (&mut self.slots, &self.paths);
            let (batch, devices) = (&mut self.batch, &mut self.devices);
            let plane = &mut self.plane;
            let group = &mut self.groups[at];
            let spacing_ns = if group.cohort.interval_ns >= PROMPT_NS {
                group.cohort.interval_ns / 2
            } else {
                0
            };
            let mut turn = |tracker: u32, turn: Turn| {
                let Some(slot) = slots[tracker as usize].as_mut() else {
                    return;
                };
                if slot.sent_ns != 0 && now_ns.saturating_sub(slot.sent_ns) < spacing_ns {
                    // It was sent for out of turn just before.
                    return;
                }
                let fault = slot.fault.or(paths[slot.spec.path as usize].fault);
                if turn == Turn::Skip || fault.is_some() {
                    slot.judge.skipped += 1;
                    plane.set_judge(tracker, &slot.judge);
                    return;
                }
                if let Some(device) = slot.device {
                    devices[device].ledger.hand();
                }
                slot.sent_ns = now_ns;
                batch.push(tracker);
            };
            for _ in 0..PROMPT_MAX.min(group.prompt.len()) {
                if let Some(tracker) = group.prompt.pop_front() {
                    turn(tracker, Turn::Take);
                }
            }
            let limit = abi::BATCH_MAX as usize - PROMPT_MAX;
            group.cohort.tick(now_ns, limit, turn);
            if !self.batch.is_empty() {
                self.send_batch(at, now_ns);
            }
        }
    }

    fn send_batch(&mut self, at: usize, sent_ns: u64) {
        let taken = match self.plane.send(&self.batch) {
            Ok(taken) => {
                self.send_failing = false;
                taken
            }
            Err(error) => {
                if !self.send_failing {
                    self.send_failing = true;
                    self.reports
                        .push(Report::SendFailed(error.raw_os_error().unwrap_or(0)));
                }
                0
            }
        };
        // A probe's timeout counts from when the kernel certainly had handed it over.
        let group = &mut self.groups[at];
        let deadline_ns = self.plane.now_ns() + group.cohort.timeout_ns;
        let before = group.in_flight.len();
        for (position, &tracker) in self.batch.iter().enumerate() {
            let Some(slot) = self.slots[tracker as usize].as_mut() else {
                continue;
            };
            // The send program has the last word: it refuses a frame that the kernel won't size.
            if position < taken && self.plane.sent(tracker) > slot.handed {
                slot.handed += 1;
                group.in_flight.push_back(tracker);
                continue;
            }
            if let Some(device) = slot.device {
                self.devices[device].ledger.take_back();
            }
            slot.judge.skipped += 1;
            if position < taken || self.send_failing {
                slot.machine.fault(Cause::SendFailed, slot.handed);
                slot.replying_since_ns = 0;
            }
            self.refused.push(tracker);
        }
        let count = (group.in_flight.len() - before) as u32;
        if count > 0 {
            group.flights.push_back(Flight {
                sent_ns,
                deadline_ns,
                count,
            });
        }
        while let Some(tracker) = self.refused.pop() {
            self.settle(tracker, sent_ns, None);
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
            device.ledger.age(now_ns);
        }
    }

    /// Holds a device's own counter against what was handed to it, unless that was done just now.
    fn check_device(&mut self, at: usize, now_ns: u64, fresh_ns: u64, decisive: bool) {
        let device = &mut self.devices[at];
        if now_ns.saturating_sub(device.checked_ns) < fresh_ns
            || device.ledger.trust() == Trust::Denied
        {
            return;
        }
        device.checked_ns = now_ns;
        // Before a reply could have been judged, silence says nothing.
        let timeouts = self.groups.iter().map(|group| group.cohort.timeout_ns);
        let patience_ns = PATIENCE_NS + timeouts.max().unwrap_or(0);
        if let Some(transmitted) = self.plane.transmitted(device.ifindex)
            && device
                .ledger
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
        Duration::from_nanos(self.planned_ns.saturating_sub(self.plane.now_ns()))
    }
}

#[cfg(test)]
mod tests;

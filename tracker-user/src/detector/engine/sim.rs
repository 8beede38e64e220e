//! A simulated kernel, network and clock under the engine: deterministic from a seed.
//!
//! The send and receive programs are modelled step by step (sequence numbers, bit sets, epochs, early
//! replies), so that the engine sees what it would see of the real ones. Beyond that the simulation
//! keeps what does not exist in reality: the full record of what became of each probe.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet, VecDeque},
    io,
};

use tracker_ebpf::{
    abi,
    verdict::{Cause, Rules, Verdict},
    window::{Window, Worth},
};

use crate::detector::{
    engine::{Command, Datapath, Engine, Health, Report, SendFailure, TrackerSpec},
    flows::{FlowRule, Moved, Turnover},
};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000_000_000;

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

/// The network between a tracker's interface and its behind address, there and back.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// Nothing passes.
    pub is_out: bool,
    pub loss_per_mille: u64,
    pub twice_per_mille: u64,
    /// Round trip, shortest and longest: jitter reorders.
    pub delay_ns: (u64, u64),
    /// Replies arrive on an interface outside `returns`.
    pub is_wrong_way: bool,
    /// Replies arrive with a token that does not fit.
    pub is_corrupting: bool,
    /// ICMP errors arrive instead of replies.
    pub is_unreachable: bool,
    /// What the service does with flows.
    pub flows: FlowState,
}

/// What a service that keeps state does with flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowState {
    /// It passes all.
    #[default]
    Passes,
    /// It drops those that were seen while it dropped, for ever, and passes others.
    Condemns,
    /// It passes those that it passed before and drops new ones.
    KeepsOld,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            is_out: false,
            loss_per_mille: 0,
            twice_per_mille: 0,
            delay_ns: (100 * US, 100 * US),
            is_wrong_way: false,
            is_corrupting: false,
            is_unreachable: false,
            flows: FlowState::Passes,
        }
    }
}

/// What really became of one probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub sent_ns: u64,
    /// From here on it may be called lost.
    pub deadline_ns: u64,
    /// False if the device swallowed it.
    pub has_left: bool,
    /// When a genuine reply was counted.
    pub answered_ns: Option<u64>,
    /// Its ICMP identifier or source port.
    pub flow: u16,
}

/// One tracker as the kernel knows it.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub is_active: bool,
    pub epoch: u32,
    pub path: u32,
    pub timeout_ns: u64,
    pub window: Window,
    /// Each reply is reported.
    pub expects_silence: bool,
    pub net: Net,
    /// Flows that the service passed, and that it dropped.
    pub passed: HashSet<u16>,
    pub condemned: HashSet<u16>,
    pub state: abi::State,
    /// By sequence number, from 1.
    pub probes: Vec<Probe>,
    /// The send program refuses its frames.
    pub is_refused: bool,
    /// A probe was refused since the flag was last cleared.
    pub was_refused: bool,
    /// Early replies that the full ring buffer did not take.
    pub events_dropped: u64,
}

impl Slot {
    pub fn verdict(&self) -> Verdict {
        Verdict::from_u8(self.state.receive.verdict)
    }
}

/// A device and its counter.
#[derive(Clone, Debug)]
pub struct Device {
    /// False: frames vanish without an error.
    pub is_transmitting: bool,
    /// False: redirected frames leave, but its counter knows nothing of them.
    pub is_counting: bool,
    pub counter_lag_ns: u64,
    /// Frames that it drops here and there.
    pub drops_per_mille: u64,
    /// Frames it counted that were well apart: after some of them its counter is known to be good.
    pub proofs: u32,
    /// When it stopped transmitting, and began again.
    pub deaths: Vec<(u64, u64)>,
    proved_ns: u64,
    counted: u64,
    recent: VecDeque<u64>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            is_transmitting: true,
            is_counting: true,
            counter_lag_ns: 0,
            drops_per_mille: 0,
            proofs: 0,
            deaths: Vec::new(),
            proved_ns: 0,
            counted: 0,
            recent: VecDeque::new(),
        }
    }
}

impl Device {
    /// Stops or goes on transmitting.
    pub fn set_transmitting(&mut self, transmits: bool, now_ns: u64) {
        match (self.is_transmitting, transmits) {
            (true, false) => self.deaths.push((now_ns, u64::MAX)),
            (false, true) => {
                if let Some(death) = self.deaths.last_mut() {
                    death.1 = now_ns;
                }
            }
            _ => {}
        }
        self.is_transmitting = transmits;
    }
}

/// How the next calls of the send program end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    #[default]
    Succeed,
    /// With this error, nothing sent.
    Fail(i32),
    /// Cut short after so many probes.
    StopAfter(usize),
}

/// Arrival time, tie-breaker, slot, epoch, sequence number, time sent.
type Arrival = (u64, u64, u32, u32, u64, u64);

/// The simulated kernel.
#[derive(Debug)]
pub struct Kernel {
    pub now_ns: u64,
    pub slept_ns: u64,
    pub rng: Rng,
    pub slots: Vec<Slot>,
    pub devices: BTreeMap<u32, Device>,
    pub calls: Calls,
    /// What a call of the send program takes.
    pub send_cost_ns: u64,
    pub ring_room: usize,
    ring: VecDeque<abi::Event>,
    paths: Vec<abi::Path>,
    words: Vec<u64>,
    wire: BinaryHeap<Reverse<Arrival>>,
    order: u64,
}

impl Kernel {
    pub fn new(seed: u64) -> Self {
        Self {
            now_ns: 1000 * S,
            slept_ns: 0,
            rng: Rng(seed),
            slots: Vec::new(),
            devices: BTreeMap::new(),
            calls: Calls::Succeed,
            send_cost_ns: 0,
            ring_room: usize::MAX,
            ring: VecDeque::new(),
            paths: Vec::new(),
            words: Vec::new(),
            wire: BinaryHeap::new(),
            order: 0,
        }
    }

    /// Zeroes a slot and its bit set for a new user, as the daemon does.
    pub fn reset(&mut self, spec: &TrackerSpec) {
        let at = spec.slot as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        let end = (spec.window.first + spec.window.mask + 1) as usize;
        if self.words.len() < end {
            self.words.resize(end, 0);
        }
        self.words[spec.window.first as usize..end].fill(0);
        self.slots[at] = Slot {
            is_active: true,
            epoch: spec.epoch,
            path: spec.path,
            timeout_ns: spec.timeout_ns,
            window: spec.window,
            expects_silence: spec.expects_silence,
            ..Default::default()
        };
    }

    pub fn device(&mut self, ifindex: u32) -> &mut Device {
        self.devices.entry(ifindex).or_default()
    }

    /// When the next packet arrives.
    fn next_arrival_ns(&self) -> Option<u64> {
        self.wire.peek().map(|Reverse(arrival)| arrival.0)
    }

    /// The receive program.
    fn receive(&mut self) {
        let Some(Reverse((at_ns, _, slot, epoch, sequence, sent_ns))) = self.wire.pop() else {
            return;
        };
        self.now_ns = self.now_ns.max(at_ns);
        let slot_index = slot;
        let slot = &mut self.slots[slot as usize];
        if !slot.is_active || slot.net.is_out {
            return;
        }
        let trouble = &mut slot.state.trouble;
        if slot.epoch != epoch || slot.net.is_corrupting {
            trouble.corrupt += 1;
            trouble.corrupt_mono_ns = at_ns;
        } else if slot.net.is_unreachable {
            trouble.error = abi::ProbeError::Icmp.into();
            trouble.error_sequence = trouble.error_sequence.max(sequence);
        } else if slot.net.is_wrong_way {
            trouble.wrong_path += 1;
            trouble.wrong_path_sequence = trouble.wrong_path_sequence.max(sequence);
        } else {
            let entry = abi::Tracker {
                timeout_ns: slot.timeout_ns,
                window_first: slot.window.first,
                window_mask: slot.window.mask,
                expects_silence: slot.expects_silence.into(),
                ..Default::default()
            };
            let words = &mut self.words;
            match entry.admit(sequence, sent_ns, at_ns, |word, bit| {
                let word = words.get_mut(word as usize)?;
                let was_set = *word & bit != 0;
                *word |= bit;
                Some(was_set)
            }) {
                Worth::Counts { .. } => {}
                Worth::Late => {
                    trouble.late += 1;
                    return;
                }
                Worth::Duplicate | Worth::Nowhere => {
                    trouble.duplicate += 1;
                    return;
                }
            }
            slot.state.receive.received += 1;
            slot.probes[sequence as usize - 1].answered_ns = Some(at_ns);
            if !entry.reports(slot.state.receive.verdict) {
                return;
            }
            if self.ring.len() < self.ring_room {
                self.ring.push_back(abi::Event {
                    tracker: slot_index,
                    epoch,
                    sequence,
                    received_mono_ns: at_ns,
                });
            } else {
                slot.events_dropped += 1;
            }
        }
    }

    /// The send program; false if it refuses.
    fn send_one(&mut self, index: u32, flow: u16) -> bool {
        let Self {
            slots,
            words,
            devices,
            paths,
            rng,
            wire,
            now_ns,
            ..
        } = self;
        let slot = &mut slots[index as usize];
        let path = paths.get(slot.path as usize).copied().unwrap_or_default();
        if !slot.is_active || slot.is_refused || path.egress == abi::Egress::None.into() {
            slot.was_refused = true;
            return false;
        }
        slot.state.send.sent += 1;
        slot.state.send.sent_mono_ns = *now_ns;
        let sequence = slot.state.send.sent;
        if let Some(word) = slot.window.stale_word(sequence) {
            words[word as usize] = 0;
        }
        let device = devices.entry(path.ifindex).or_default();
        let has_left = device.is_transmitting && !rng.chance(device.drops_per_mille);
        if has_left && device.is_counting {
            device.recent.push_back(*now_ns);
            if *now_ns >= device.proved_ns + 12 * MS {
                device.proofs += 1;
                device.proved_ns = *now_ns;
            }
        }
        slot.probes.push(Probe {
            sent_ns: *now_ns,
            deadline_ns: 0,
            has_left,
            answered_ns: None,
            flow,
        });
        let net = slot.net;
        let is_stopped = match net.flows {
            FlowState::Passes => false,
            FlowState::Condemns => slot.condemned.contains(&flow),
            FlowState::KeepsOld => !slot.passed.contains(&flow),
        };
        match net.is_out || is_stopped {
            true => slot.condemned.insert(flow),
            false => slot.passed.insert(flow),
        };
        if has_left && !net.is_out && !is_stopped && !rng.chance(net.loss_per_mille) {
            let copies = 1 + u64::from(rng.chance(net.twice_per_mille));
            for _ in 0..copies {
                self.order += 1;
                let at_ns = *now_ns + rng.range(net.delay_ns.0, net.delay_ns.1);
                wire.push(Reverse((
                    at_ns, self.order, index, slot.epoch, sequence, *now_ns,
                )));
            }
        }
        true
    }
}

impl Datapath for Kernel {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn slept_ns(&self) -> u64 {
        self.slept_ns
    }

    fn send(&mut self, jobs: &[abi::Job]) -> io::Result<usize> {
        let taken = match self.calls {
            Calls::Succeed => jobs.len(),
            Calls::StopAfter(count) => count.min(jobs.len()),
            Calls::Fail(errno) => {
                for job in jobs {
                    self.slots[job.tracker as usize].was_refused = true;
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
        };
        let mut sent = Vec::new();
        for job in &jobs[..taken] {
            if self.send_one(job.tracker, job.flow()) {
                sent.push(job.tracker);
            }
        }
        self.now_ns += self.send_cost_ns;
        for slot in sent {
            let slot = &mut self.slots[slot as usize];
            if let Some(probe) = slot.probes.last_mut() {
                probe.deadline_ns = self.now_ns + slot.timeout_ns;
            }
        }
        Ok(taken)
    }

    fn sent(&self, slot: u32) -> u64 {
        self.slots[slot as usize].state.send.sent
    }

    fn is_replied(&self, window: Window, sequence: u64) -> bool {
        let (word, bit) = window.position(sequence);
        self.words[word as usize] & bit != 0
    }

    fn trouble(&self, slot: u32) -> abi::TroubleState {
        self.slots[slot as usize].state.trouble
    }

    fn set_verdict(&mut self, slot: u32, verdict: Verdict) {
        self.slots[slot as usize].state.receive.verdict = verdict as u8;
    }

    fn set_judge(&mut self, slot: u32, judge: &abi::JudgeState) {
        let before = &mut self.slots[slot as usize].state.judge;
        let counters = |judge: &abi::JudgeState| [judge.lost, judge.skipped, judge.void];
        let falls = counters(before)
            .iter()
            .zip(counters(judge))
            .any(|(before, after)| *before > after);
        assert!(
            !falls,
            "a counter of slot {slot} falls: {before:?}, {judge:?}"
        );
        *before = *judge;
    }

    fn judge(&self, slot: u32) -> abi::JudgeState {
        self.slots[slot as usize].state.judge
    }

    fn set_path(&mut self, path: u32, entry: &abi::Path) {
        let at = path as usize;
        if self.paths.len() <= at {
            self.paths.resize(at + 1, abi::Path::default());
        }
        self.paths[at] = *entry;
    }

    fn next_reply(&mut self) -> Option<abi::Event> {
        self.ring.pop_front()
    }

    fn transmitted(&mut self, ifindex: u32) -> Option<u64> {
        let now_ns = self.now_ns;
        let device = self.devices.get_mut(&ifindex)?;
        while device
            .recent
            .front()
            .is_some_and(|sent_ns| sent_ns + device.counter_lag_ns <= now_ns)
        {
            device.recent.pop_front();
            device.counted += 1;
        }
        Some(device.counted)
    }
}

/// A verdict or cause that the engine reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub slot: u32,
    pub verdict: Verdict,
    pub cause: Cause,
    pub at_ns: u64,
    pub detection_ns: Option<u64>,
    pub moved: Option<Moved>,
}

/// A tick that came late.
#[derive(Clone, Copy, Debug)]
pub struct Lateness {
    pub previous_tick_ns: u64,
    pub tick_ns: u64,
    pub late_ns: u64,
}

/// The engine on the simulated kernel, and the thread that ticks it.
pub struct World {
    pub engine: Engine<Kernel>,
    pub health: Health,
    pub changes: Vec<Change>,
    /// Devices that do not transmit, and since when their frames were counted.
    pub not_leaving: Vec<(u32, u64)>,
    /// Devices by which no redirected probe was answered.
    pub never_answered: Vec<u32>,
    pub send_failed: Vec<i32>,
    /// How probes of trackers that became `send-failed` did not leave.
    pub failures: Vec<SendFailure>,
    pub stalled: usize,
    /// Ticks later than a millisecond.
    pub late: Vec<Lateness>,
    /// How late the thread wakes up, least and most.
    pub late_ns: (u64, u64),
    planned_ns: u64,
    tick_at_ns: u64,
    last_tick_ns: u64,
    stopped_until_ns: u64,
    rng: Rng,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let kernel = Kernel::new(seed);
        let now_ns = kernel.now_ns;
        Self {
            engine: Engine::new(kernel),
            health: Health::default(),
            changes: Vec::new(),
            not_leaving: Vec::new(),
            never_answered: Vec::new(),
            send_failed: Vec::new(),
            failures: Vec::new(),
            stalled: 0,
            late: Vec::new(),
            late_ns: (0, 0),
            planned_ns: now_ns,
            tick_at_ns: now_ns,
            last_tick_ns: now_ns,
            stopped_until_ns: 0,
            rng: Rng(seed ^ 0x5eed),
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.engine.datapath().now_ns
    }

    pub fn kernel(&mut self) -> &mut Kernel {
        self.engine.datapath_mut()
    }

    pub fn slot(&mut self, slot: u32) -> &mut Slot {
        &mut self.kernel().slots[slot as usize]
    }

    pub fn net(&mut self, slot: u32) -> &mut Net {
        &mut self.slot(slot).net
    }

    pub fn verdict(&mut self, slot: u32) -> Verdict {
        self.slot(slot).verdict()
    }

    /// Gives an order as the daemon does: the thread is woken for it.
    pub fn command(&mut self, command: Command) {
        self.engine.command(command);
        self.tick_at_ns = self.tick_at_ns.min(self.now_ns());
        self.collect();
    }

    /// Makes a path lead out of a device, or nowhere for a cause.
    pub fn path(&mut self, path: u32, ifindex: u32, fault: Option<Cause>) {
        let _ = self.kernel().device(ifindex);
        let entry = match fault {
            Some(_) => abi::Path::default(),
            None => abi::Path {
                egress: abi::Egress::XdpRedirect.into(),
                ifindex,
                interface: ifindex,
                ..Default::default()
            },
        };
        self.command(Command::SetPath(path, entry, fault));
    }

    pub fn install(&mut self, spec: TrackerSpec) {
        self.kernel().reset(&spec);
        self.command(Command::Install(spec));
    }

    /// Another engine takes the kernel over, `ns` after this one was killed; which tracker goes on how is as the
    /// daemon would find it in the maps.
    pub fn restart(
        mut self,
        ns: u64,
        specs: &[TrackerSpec],
        paths: &[(u32, u32, Option<Cause>)],
    ) -> Self {
        self.stop_for(ns);
        let end_ns = self.stopped_until_ns;
        while let Some(arrival_ns) = self.engine.datapath().next_arrival_ns()
            && arrival_ns <= end_ns
        {
            self.kernel().receive();
        }
        self.kernel().now_ns = end_ns;
        let Self { engine, .. } = self;
        let mut next = Self {
            engine: Engine::new(engine.datapath),
            health: Health::default(),
            planned_ns: 0,
            tick_at_ns: end_ns,
            last_tick_ns: end_ns,
            ..self
        };
        for spec in specs {
            let state = next.slot(spec.slot).state;
            let cause = Cause::from_u8(state.judge.cause);
            let resume = Some((Verdict::from_u8(state.receive.verdict), cause));
            next.engine
                .command(Command::Install(TrackerSpec { resume, ..*spec }));
        }
        for (path, ifindex, fault) in paths {
            next.path(*path, *ifindex, *fault);
        }
        next.collect();
        next
    }

    pub fn remove(&mut self, slot: u32) {
        self.command(Command::Remove(slot));
        self.slot(slot).is_active = false;
    }

    pub fn renew(&mut self, slot: u32, epoch: u32) {
        self.slot(slot).epoch = epoch;
        self.command(Command::Renew(slot, epoch));
    }

    /// The hub does nothing for this long; the kernel goes on.
    pub fn stop_for(&mut self, ns: u64) {
        self.stopped_until_ns = self.now_ns() + ns;
    }

    fn collect(&mut self) {
        for report in self.engine.reports() {
            match report {
                Report::Changed {
                    slot,
                    verdict,
                    cause,
                    mono_ns,
                    detection_ns,
                    failure,
                    moved,
                    ..
                } => {
                    self.changes.push(Change {
                        slot,
                        verdict,
                        cause,
                        at_ns: mono_ns,
                        detection_ns,
                        moved,
                    });
                    self.failures.extend(failure);
                }
                Report::NotLeaving {
                    ifindex,
                    since_mono_ns,
                } => self.not_leaving.push((ifindex, since_mono_ns)),
                Report::NeverAnswered { ifindex, .. } => self.never_answered.push(ifindex),
                Report::SendFailed(errno) => self.send_failed.push(errno),
                Report::Stalled(_) | Report::Slept(_) => self.stalled += 1,
            }
        }
    }

    /// What happens next: an arrival, or a tick, whose time is returned; `None` at `end_ns`.
    fn step(&mut self, end_ns: u64) -> Option<Option<u64>> {
        let tick_ns = self
            .tick_at_ns
            .max(self.stopped_until_ns)
            .max(self.now_ns());
        if let Some(arrival_ns) = self.engine.datapath().next_arrival_ns()
            && arrival_ns <= tick_ns
            && arrival_ns <= end_ns
        {
            self.kernel().receive();
            if !self.engine.datapath().ring.is_empty() {
                // The ring buffer wakes the thread.
                self.tick_at_ns = self.tick_at_ns.min(self.now_ns());
            }
            return Some(None);
        }
        if tick_ns > end_ns {
            self.kernel().now_ns = end_ns.max(self.now_ns());
            return None;
        }
        self.kernel().now_ns = tick_ns;
        let late_ns = tick_ns.saturating_sub(self.planned_ns);
        if late_ns > MS {
            self.late.push(Lateness {
                previous_tick_ns: self.last_tick_ns,
                tick_ns,
                late_ns,
            });
        }
        self.planned_ns = self.engine.tick(&self.health);
        self.last_tick_ns = tick_ns;
        self.tick_at_ns = self.planned_ns + self.rng.range(self.late_ns.0, self.late_ns.1);
        self.collect();
        Some(Some(tick_ns))
    }

    /// Lets time pass; `on_tick` sees the world after each tick.
    pub fn run_until(&mut self, end_ns: u64, mut on_tick: impl FnMut(&mut Self, u64)) {
        while let Some(happened) = self.step(end_ns) {
            if let Some(tick_ns) = happened {
                on_tick(self, tick_ns);
            }
        }
    }

    pub fn run(&mut self, ns: u64) {
        self.run_until(self.now_ns() + ns, |_, _| {});
    }
}

/// A tracker on path 0.
pub fn tracker(slot: u32, interval_ns: u64, timeout_ns: u64, fall: u8, rise: u8) -> TrackerSpec {
    let words = Window::words(interval_ns, timeout_ns);
    TrackerSpec {
        slot,
        epoch: 1 + slot,
        path: 0,
        interval_ns,
        timeout_ns,
        rules: Rules { fall, rise },
        window: Window {
            first: slot * 4096,
            mask: words - 1,
        },
        fault: None,
        expects_silence: false,
        flows: FlowRule {
            turnover: Turnover::OnLoss,
            first: 61_440,
            ..Default::default()
        },
        resume: None,
    }
}

//! By which flow each probe of a tracker goes: its ICMP identifier or source port (pure).
//!
//! A firewall that keeps state judges flows, not packets: what it decided for one, it goes on doing to that one after it
//! was mended (an IDS that drops or rejects a flow, a translation to an address that is gone). So a tracker that keeps one
//! flow and is not up sends every second probe by a new one. A TCP tracker has another reason for new ports: a server
//! whose SYN-ACK, or the reset after it, was lost holds the port's connection open for a minute (SYN-RECEIVED, RFC 9293
//! section 3.3.2) and takes no other SYN from it.

use tracker_ebpf::abi::{self, FIXED_PORTS, JudgeState, PORTS_MASK};

/// Of so many of the latest probes a TCP tracker remembers the ports.
const RECENT: u64 = 16;
/// After resets were found not to arrive, so many probes have new ports before one is used again.
const RESTLESS: u16 = 600;
/// Ports that were not to be had again, one after the other, before resets are taken to be lost on their way.
const REUSE_FAILURES: u8 = 2;
/// More ranges than these are not looked through for each probe: the smallest are left out.
const RANGES_MAX: usize = 64;

/// Ports, or identifiers, that probes may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First and last of each range, in order.
    ranges: Vec<(u16, u16)>,
}

/// One tracker's share of [`Ports`]: those with these lowest bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The bits.
    pub class: u16,
    /// Which bits; a power of two, less one.
    pub mask: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self::outside(abi::FOREIGN_PORTS, &[])
    }
}

impl Ports {
    /// All identifiers of ICMP echo.
    pub fn identifiers() -> Self {
        Self {
            ranges: vec![(0, u16::MAX)],
        }
    }

    /// What is neither given to sockets by the kernel, by its setting or by default, nor reserved. Where that leaves a
    /// share without port, the ports with which fixed flows begin and those above them.
    pub fn outside(local: (u16, u16), reserved: &[(u16, u16)]) -> Self {
        let mut is_free: Vec<bool> = (0..=u16::MAX).map(abi::is_own_port).collect();
        for (first, last) in reserved.iter().chain([&local]) {
            if let Some(taken) = is_free.get_mut(usize::from(*first)..=usize::from(*last)) {
                taken.fill(false);
            }
        }
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for port in (0..=u16::MAX).filter(|port| is_free[usize::from(*port)]) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == port => *last = port,
                _ => ranges.push((port, port)),
            }
        }
        if ranges.len() > RANGES_MAX {
            ranges.sort_by_key(|(first, last)| std::cmp::Reverse(last - first));
            ranges.truncate(RANGES_MAX);
            ranges.sort_unstable();
        }
        let ports = Self { ranges };
        let mut classes = 0..=PORTS_MASK;
        let has_all = classes.all(|class| {
            let mask = PORTS_MASK;
            ports.count(Share { class, mask }) > 0
        });
        match has_all {
            true => ports,
            false => Self {
                ranges: vec![(FIXED_PORTS, u16::MAX)],
            },
        }
    }

    /// How many a share has.
    pub fn count(&self, share: Share) -> u32 {
        let each = self.ranges.iter().map(|(low, high)| {
            let first = u32::from(*low) + share.ahead(*low);
            match first <= u32::from(*high) {
                true => (u32::from(*high) - first) / (u32::from(share.mask) + 1) + 1,
                false => 0,
            }
        });
        each.sum()
    }

    /// Whether a share has this one.
    pub fn has(&self, share: Share, flow: u16) -> bool {
        let mut ranges = self.ranges.iter();
        flow & share.mask == share.class & share.mask
            && ranges.any(|(low, high)| (low..=high).contains(&&flow))
    }

    /// One of a share: this, or the next.
    pub fn fit(&self, share: Share, flow: u16) -> u16 {
        match self.has(share, flow) {
            true => flow,
            false => self.after(share, flow),
        }
    }

    /// The one of a share that is used after another: all of them in turn, so that each rests as long as it can.
    pub fn after(&self, share: Share, flow: u16) -> u16 {
        let next = |above: u32| {
            self.ranges.iter().find_map(|(low, high)| {
                let from = above.max(u32::from(*low));
                let from = u16::try_from(from).ok()?;
                let next = u32::from(from) + share.ahead(from);
                u16::try_from(next).ok().filter(|next| next <= high)
            })
        };
        next(u32::from(flow) + 1)
            .or_else(|| next(0))
            .unwrap_or(flow)
    }

    /// The one of a share that was used before another.
    fn before(&self, share: Share, flow: u16) -> u16 {
        let last = |below: i32| {
            self.ranges.iter().rev().find_map(|(low, high)| {
                let from = u16::try_from(below.min(i32::from(*high))).ok()?;
                let back = from.wrapping_sub(share.class) & share.mask;
                from.checked_sub(back).filter(|last| last >= low)
            })
        };
        last(i32::from(flow) - 1)
            .or_else(|| last(i32::from(u16::MAX)))
            .unwrap_or(flow)
    }
}

impl Share {
    /// How many ports further the next of the share is, or 0 at one.
    fn ahead(self, port: u16) -> u32 {
        u32::from(self.class.wrapping_sub(port) & self.mask)
    }
}

/// When a tracker takes another flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turnover {
    /// Never: silence proves something of the flow that is in use.
    #[default]
    Never,
    /// When it loses.
    OnLoss,
    /// For each probe.
    Always,
}

/// What a tracker's flows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRule {
    /// When it takes another.
    pub turnover: Turnover,
    /// Each probe is a connection: a port whose last SYN is not answered can't be used.
    pub is_connection: bool,
    /// Its flows are ICMP identifiers, not ports.
    pub is_identifier: bool,
    /// The one with which it begins.
    pub first: u16,
    /// Those that it may use.
    pub share: Share,
}

/// A tracker went on by another flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The flow before.
    pub from: u16,
    /// The flow in use.
    pub to: u16,
    /// A probe by the flow before was lost after a reply had come by the new one.
    pub is_old_lost: bool,
}

/// Every second probe takes a new flow, until one passes.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The first probe of it; it, and each second after it, take a new flow.
    since: u64,
    /// What passed.
    passed: Option<Passed>,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    /// Its flow, if that is remembered.
    flow: Option<u16>,
    /// How many new flows were taken after the one that passed.
    back: u64,
    /// The last probe that was sent before that was known.
    known_at: u64,
    /// The probe by the old flow that tells whether that passes too.
    test: Option<u64>,
}

/// By which flow a tracker's next probe goes.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    rule: FlowRule,
    /// The flow that is kept.
    current: u16,
    /// The last that was taken for a new one.
    newest: u16,
    /// The last probe that was sent.
    sent: u64,
    /// The choice for the next one.
    chosen: Choice,
    /// Flows of the latest probes, by sequence number, and which of them were used before; only of connections.
    recent: [u16; RECENT as usize],
    reused: u16,
    /// The first probe for which that is known.
    recent_from: u64,
    trial: Option<Trial>,
    /// What is lost up to this probe says nothing of the flow in use.
    settled: u64,
    moved: Option<Moved>,
    /// That is new.
    is_news: bool,
    reuse_failures: u8,
    restless: u16,
    /// The probe that was last sent once more.
    again: u64,
    /// The flow in use is that of a connection which the peer still holds.
    is_held: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    flow: u16,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Kept,
    New,
    Reused,
    Test,
}

impl Default for Flows {
    fn default() -> Self {
        Self::new(FlowRule::default(), 0)
    }
}

impl Flows {
    /// Of a tracker after `sent` probes.
    pub fn new(rule: FlowRule, sent: u64) -> Self {
        Self {
            rule,
            current: rule.first,
            newest: rule.first,
            sent,
            chosen: Choice::default(),
            recent: [0; RECENT as usize],
            reused: 0,
            recent_from: sent + 1,
            trial: None,
            settled: sent,
            moved: None,
            is_news: false,
            reuse_failures: 0,
            restless: 0,
            again: 0,
            is_held: false,
        }
    }

    /// Goes on with what an earlier daemon wrote down.
    pub fn resume(&mut self, left: &JudgeState, ports: &Ports) {
        let is_known = left.flow_newest != 0 || left.flow != 0;
        if is_known && ports.has(self.rule.share, left.flow) {
            self.current = left.flow;
        }
        if is_known && ports.has(self.rule.share, left.flow_newest) {
            self.newest = left.flow_newest;
        }
    }

    /// What a successor needs.
    pub const fn note(&self, account: &mut JudgeState) {
        account.flow = self.current;
        account.flow_newest = self.newest;
    }

    /// The tracker's share of the ports has become another.
    pub fn set_share(&mut self, share: Share, ports: &Ports) {
        self.rule.share = share;
        for flow in [&mut self.current, &mut self.newest] {
            *flow = ports.fit(share, *flow);
        }
        self.forget(self.sent);
    }

    /// What is under way says nothing of flows.
    pub fn forget(&mut self, sent: u64) {
        self.trial = None;
        self.settled = sent;
        self.recent_from = sent + 1;
    }

    /// That it went on by another flow since it was last down.
    pub const fn moved(&self) -> Option<Moved> {
        self.moved
    }

    /// Whether [`Flows::moved`] is new since this was last asked.
    pub const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.is_news, false)
    }

    /// What the flows are, as text.
    pub const fn rule(&self) -> &FlowRule {
        &self.rule
    }

    /// The flow of the next probe: the same until that is sent.
    #[inline]
    pub fn choose(&mut self, ports: &Ports, is_up: bool, is_replied: impl Fn(u64) -> bool) -> u16 {
        self.chosen = match self.rule.turnover {
            Turnover::Never => self.kept(),
            Turnover::Always => self.new_flow(ports),
            Turnover::OnLoss if self.trial.is_some() => self.try_one(ports, is_up, is_replied),
            Turnover::OnLoss if self.rule.is_connection => self.connect(ports, is_replied),
            Turnover::OnLoss => self.kept(),
        };
        self.chosen.flow
    }

    const fn kept(&self) -> Choice {
        Choice {
            flow: self.current,
            kind: Kind::Kept,
        }
    }

    fn new_flow(&self, ports: &Ports) -> Choice {
        let share = self.rule.share;
        let mut flow = ports.after(share, self.newest);
        if flow == self.current && self.rule.turnover == Turnover::OnLoss {
            flow = ports.after(share, flow);
        }
        Choice {
            flow,
            kind: Kind::New,
        }
    }

    /// For a connection: the port whose SYN was answered last, if none is under way from it, else a new one.
    fn connect(&self, ports: &Ports, is_replied: impl Fn(u64) -> bool) -> Choice {
        if self.restless > 0 {
            return self.new_flow(ports);
        }
        if self.sent < self.recent_from {
            return self.kept();
        }
        let oldest = self.recent_from.max((self.sent + 1).saturating_sub(RECENT));
        for sequence in (oldest..=self.sent).rev() {
            let flow = self.recent[(sequence % RECENT) as usize];
            let mut later = sequence + 1..=self.sent;
            let is_busy = later.any(|later| self.recent[(later % RECENT) as usize] == flow);
            if !is_busy && is_replied(sequence) {
                return Choice {
                    flow,
                    kind: Kind::Reused,
                };
            }
        }
        self.new_flow(ports)
    }

    /// While it is not up: the flow that passed, else a new one and the old one in turn.
    fn try_one(&mut self, ports: &Ports, is_up: bool, is_replied: impl Fn(u64) -> bool) -> Choice {
        let Some(trial) = self.trial else {
            return self.kept();
        };
        let Some(passed) = trial.passed else {
            if is_up {
                self.stay();
                return self.kept();
            }
            return match (self.sent + 1 - trial.since).is_multiple_of(2) {
                true => self.new_flow(ports),
                false => self.kept(),
            };
        };
        match passed.test {
            // Both pass.
            Some(test) if is_replied(test) => self.stay(),
            Some(_) => {}
            None if !is_up => {
                return Choice {
                    flow: self.current,
                    kind: Kind::Test,
                };
            }
            None => self.go_on(ports, passed, false),
        }
        if self.rule.is_connection {
            return self.connect(ports, is_replied);
        }
        let flow = match self.trial {
            Some(_) => self.passed_flow(ports, passed),
            None => self.current,
        };
        Choice {
            flow,
            kind: Kind::Kept,
        }
    }

    fn passed_flow(&self, ports: &Ports, passed: Passed) -> u16 {
        if let Some(flow) = passed.flow {
            return flow;
        }
        let share = self.rule.share;
        let mut flow = self.newest;
        for _ in 0..passed.back {
            flow = ports.before(share, flow);
            if flow == self.current {
                flow = ports.before(share, flow);
            }
        }
        flow
    }

    /// The old flow passes.
    fn stay(&mut self) {
        self.trial = None;
        self.settled = self.sent;
    }

    /// The new flow is the one in use from here on.
    fn go_on(&mut self, ports: &Ports, passed: Passed, is_old_lost: bool) {
        let (from, to) = (self.current, self.passed_flow(ports, passed));
        self.moved = Some(Moved {
            from,
            to,
            is_old_lost,
        });
        self.is_news = true;
        self.current = to;
        self.is_held = false;
        self.stay();
    }

    /// The probe of the last choice was sent.
    #[inline]
    pub fn sent(&mut self) {
        self.sent += 1;
        let Choice { flow, kind } = self.chosen;
        if kind == Kind::New {
            self.newest = flow;
            self.restless = self.restless.saturating_sub(1);
        }
        if kind == Kind::Test
            && let Some(passed) = self.trial.as_mut().and_then(|trial| trial.passed.as_mut())
        {
            passed.test = Some(self.sent);
        }
        if self.rule.is_connection {
            let at = self.sent % RECENT;
            self.recent[at as usize] = flow;
            self.reused = self.reused & !(1 << at) | u16::from(kind == Kind::Reused) << at;
            if self.trial.is_none() && kind != Kind::Kept && self.rule.turnover != Turnover::Never {
                self.current = flow;
                self.is_held = false;
            }
        }
    }

    /// A probe was answered in time.
    pub fn replied(&mut self, sequence: u64) {
        let is_recent = self.is_recent(sequence);
        if is_recent && self.was_reused(sequence) {
            self.reuse_failures = 0;
        }
        let flow = is_recent.then(|| self.recent[(sequence % RECENT) as usize]);
        let Some(trial) = &mut self.trial else {
            return;
        };
        if sequence < trial.since || self.rule.is_connection && !is_recent {
            return;
        }
        let is_new = match flow {
            Some(flow) => flow != self.current,
            None => (sequence - trial.since).is_multiple_of(2),
        };
        match trial.passed {
            None if is_new => {
                trial.passed = Some(Passed {
                    flow,
                    back: (self.sent - trial.since) / 2 - (sequence - trial.since) / 2,
                    known_at: self.sent,
                    test: None,
                });
            }
            None => self.stay(),
            Some(passed)
                if passed.test == Some(sequence) || !is_new && sequence <= passed.known_at =>
            {
                self.stay();
            }
            Some(_) => {}
        }
    }

    /// A probe was lost; `is_up` is what is said of the tracker all the same.
    pub fn lost(
        &mut self,
        ports: &Ports,
        sequence: u64,
        is_up: bool,
        is_replied: impl Fn(u64) -> bool,
    ) {
        if self.rule.turnover != Turnover::OnLoss {
            return;
        }
        self.note_reuse(sequence, &is_replied);
        match self.trial {
            Some(Trial {
                passed: Some(passed),
                since,
            }) => {
                if passed.test == Some(sequence) {
                    // A port that is held tells nothing of the service.
                    self.go_on(ports, passed, !self.is_held);
                    return;
                }
                let is_of_it =
                    sequence > passed.known_at && passed.test.is_none_or(|test| sequence != test);
                if is_of_it && since <= sequence && !is_up {
                    self.begin();
                }
            }
            Some(_) => {}
            None if !is_up && sequence > self.settled => self.begin(),
            None => {}
        }
    }

    /// Counts ports that could not be used again though others can: resets do not arrive.
    fn note_reuse(&mut self, sequence: u64, is_replied: impl Fn(u64) -> bool) {
        if !self.is_recent(sequence) || !self.was_reused(sequence) {
            return;
        }
        let flow = self.recent[(sequence % RECENT) as usize];
        let mut later = sequence + 1..=self.sent;
        let passes =
            later.any(|later| self.recent[(later % RECENT) as usize] != flow && is_replied(later));
        if passes {
            self.note_reuse_failure();
        }
    }

    const fn note_reuse_failure(&mut self) {
        self.reuse_failures = self.reuse_failures.saturating_add(1);
        if self.reuse_failures >= REUSE_FAILURES {
            self.restless = RESTLESS;
            // The next that fails is enough.
            self.reuse_failures = REUSE_FAILURES - 1;
        }
    }

    fn begin(&mut self) {
        self.moved = None;
        self.trial = Some(Trial {
            since: self.sent + 1,
            passed: None,
        });
    }

    /// A probe proves nothing.
    pub fn void(&mut self, ports: &Ports, sequence: u64) {
        if let Some(Trial {
            passed: Some(passed),
            ..
        }) = self.trial
            && passed.test == Some(sequence)
        {
            self.go_on(ports, passed, false);
        }
    }

    const fn is_recent(&self, sequence: u64) -> bool {
        self.rule.is_connection
            && sequence >= self.recent_from
            && sequence <= self.sent
            && self.sent - sequence < RECENT
    }

    const fn was_reused(&self, sequence: u64) -> bool {
        self.reused >> (sequence % RECENT) & 1 != 0
    }

    /// The peer holds a connection that the probe `held` opened from this port: says which later probe it did not take
    /// for that, and from which port to send its SYN once more. Once for each probe, so that no replay makes more.
    pub fn again(
        &mut self,
        ports: &Ports,
        held: u64,
        flow: u16,
        judged: u64,
        is_replied: impl Fn(u64) -> bool,
    ) -> Option<(u64, u16)> {
        if !self.rule.is_connection || self.rule.turnover == Turnover::Never {
            return None;
        }
        let oldest = self.recent_from.max((self.sent + 1).saturating_sub(RECENT));
        let mut sent = (oldest.max(judged + 1)..=self.sent).rev();
        let refused = sent.find(|sent| self.recent[(sent % RECENT) as usize] == flow)?;
        if refused <= held || refused == self.again || is_replied(refused) {
            return None;
        }
        let new = self.new_flow(ports).flow;
        if self.was_reused(refused) && is_replied(held) {
            self.note_reuse_failure();
        }
        if flow == self.current {
            self.is_held = true;
        }
        self.again = refused;
        self.newest = new;
        self.recent[(refused % RECENT) as usize] = new;
        self.reused &= !(1 << (refused % RECENT));
        if self.trial.is_none() && self.rule.turnover == Turnover::OnLoss {
            self.current = new;
            self.is_held = false;
        }
        Some((refused, new))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const ALL: Share = Share { class: 0, mask: 0 };

    #[test]
    fn ports_are_those_that_sockets_do_not_get() {
        let ports = Ports::default();
        assert_eq!(ports.count(ALL), 31_744 + 4_536);
        assert_eq!(ports.after(ALL, 65_535), 1_024);
        assert_eq!(ports.after(ALL, 32_767), 61_000);
        assert_eq!(ports.before(ALL, 1_024), 65_535);
        assert_eq!(ports.before(ALL, 61_000), 32_767);
        let ports = Ports::outside((10_000, 60_999), &[(61_000, 61_500), (8_080, 8_080)]);
        assert!(ports.has(ALL, 8_079) && !ports.has(ALL, 8_080) && !ports.has(ALL, 61_500));
        assert_eq!(ports.after(ALL, 9_999), 61_501);
        // Nothing is left, or a share without port: what Linux gives to no socket by default.
        for ports in [
            Ports::outside((1_024, 65_535), &[]),
            Ports::outside((32_768, 60_999), &[(1_024, 63_500)]),
        ] {
            assert_eq!(ports.count(ALL), 4_096);
            assert!(ports.has(ALL, FIXED_PORTS));
        }
        assert_eq!(Ports::identifiers().after(ALL, 65_535), 0);
    }

    #[test]
    fn two_minutes_pass_before_a_port_returns() {
        // At 100 ms, for up to 16 trackers of one port of one address.
        let share = Share { class: 3, mask: 15 };
        assert!(Ports::default().count(share) >= 1_200);
    }

    proptest! {
        #[test]
        fn each_share_is_gone_through_in_turn(bits in 0u32..=11, class: u16, first: u16) {
            let mask = (1u16 << bits) - 1;
            let share = Share { class: class & mask, mask };
            let ports = Ports::default();
            let start = ports.after(share, first);
            let mut seen = HashSet::new();
            let mut flow = start;
            loop {
                prop_assert!(ports.has(share, flow) && seen.insert(flow));
                prop_assert_eq!(ports.before(share, ports.after(share, flow)), flow);
                flow = ports.after(share, flow);
                if flow == start { break; }
            }
            prop_assert_eq!(seen.len() as u32, ports.count(share));
        }
    }

    fn connection() -> Flows {
        let rule = FlowRule {
            turnover: Turnover::OnLoss,
            is_connection: true,
            first: 61_440,
            ..Default::default()
        };
        Flows::new(rule, 0)
    }

    /// Sends one probe; which flow it has.
    fn send(flows: &mut Flows, is_up: bool, replied: &HashSet<u64>) -> u16 {
        let flow = flows.choose(&Ports::default(), is_up, |sequence| {
            replied.contains(&sequence)
        });
        flows.sent();
        flow
    }

    #[test]
    fn a_port_is_used_again_once_its_connection_was_answered() {
        let (mut flows, mut replied) = (connection(), HashSet::new());
        for sequence in 1..50 {
            assert_eq!(send(&mut flows, true, &replied), 61_440);
            replied.insert(sequence);
        }
        // One is lost: the next has another port, and stays there.
        assert_eq!(send(&mut flows, true, &replied), 61_440);
        for sequence in 51..60 {
            assert_eq!(send(&mut flows, true, &replied), 61_441);
            replied.insert(sequence);
        }
        // More under way than one: as many ports in turn.
        let mut seen = HashSet::new();
        for sequence in 60..200 {
            seen.insert(send(&mut flows, true, &replied));
            replied.insert(sequence - 3);
        }
        assert!(seen.len() <= 4, "{seen:?}");
    }

    #[test]
    fn a_held_port_is_left_once_for_each_probe() {
        let (mut flows, mut replied) = (connection(), HashSet::from([1]));
        let ports = Ports::default();
        send(&mut flows, true, &replied);
        assert_eq!(send(&mut flows, true, &replied), 61_440);
        let again = |flows: &mut Flows, held, flow, replied: &HashSet<u64>| {
            flows.again(&ports, held, flow, 0, |sequence| {
                replied.contains(&sequence)
            })
        };
        assert_eq!(again(&mut flows, 1, 61_440, &replied), Some((2, 61_441)));
        assert_eq!(again(&mut flows, 1, 61_440, &replied), None);
        assert_eq!(again(&mut flows, 1, 61_441, &replied), None);
        replied.insert(2);
        assert_eq!(send(&mut flows, true, &replied), 61_441);
        // The second in a row: resets do not arrive, so each has a port of its own from here on.
        assert_eq!(again(&mut flows, 2, 61_441, &replied), Some((3, 61_442)));
        let seen: HashSet<u16> = (4..400)
            .map(|sequence| {
                replied.insert(sequence - 1);
                send(&mut flows, true, &replied)
            })
            .collect();
        assert_eq!(seen.len(), 396);
    }

    #[test]
    fn a_held_port_proves_nothing_of_the_service() {
        let (mut flows, mut replied) = (connection(), HashSet::new());
        let ports = Ports::default();
        send(&mut flows, false, &replied);
        flows.lost(&ports, 1, false, |_| false);
        assert_eq!(send(&mut flows, false, &replied), 61_441);
        flows.replied(2);
        replied.insert(2);
        // The old one is tried once more, and is held.
        assert_eq!(send(&mut flows, false, &replied), 61_440);
        let again = flows.again(&ports, 1, 61_440, 1, |sequence| replied.contains(&sequence));
        assert_eq!(again, Some((3, 61_442)));
        flows.lost(&ports, 3, false, |sequence| replied.contains(&sequence));
        let moved = flows.moved().expect("it moved");
        assert_eq!(
            (moved.from, moved.to, moved.is_old_lost),
            (61_440, 61_441, false)
        );
    }
}

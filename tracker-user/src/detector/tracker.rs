//! What became of one tracker's probes, and what follows from it: the pure part of the engine, which brings time,
//! the kernel's bits and the device's account.

use tracker_ebpf::{
    abi::{JudgeState, ProbeError, TroubleState},
    verdict::{Cause, Machine, Outcome, Rules, Verdict},
};

use crate::detector::{
    flows::{FlowRule, Flows, Ports},
    schedule::Turn,
};

/// Hosts and routers limit how often they complain: Linux tells a destination once a second of what it can't reach
/// (`icmp_ratelimit`). For this long an ICMP error explains the losses after it.
const ERROR_PAUSE_NS: u64 = 2_000_000_000;

/// One tracker's probes, counted and judged.
#[derive(Clone, Copy, Debug)]
pub struct TrackerAccount {
    rules: Rules,
    /// The service must stop the probes.
    expects_silence: bool,
    interval_ns: u64,
    machine: Machine,
    reported: (Verdict, Cause),
    account: JudgeState,
    /// Probes that the kernel is known to have sent.
    handed: u64,
    /// When it was last sent for; 0 before the first time.
    sent_ns: u64,
    /// When the first probe of the present run of losses (or of silence, if that is expected) was sent.
    losing_since_ns: u64,
    /// When the first early reply of the present run came, and which probe it answered; 0 for none.
    replying_since_ns: u64,
    replying_from: u64,
    /// The last probe judged as answered.
    answered: u64,
    flows: Flows,
    /// What fails the token before that may answer probes of before [`TrackerAccount::renew`].
    renewed_until_ns: u64,
    /// Silence of probes sent before that proves nothing; see [`TrackerAccount::doubt_silence`].
    silent_from_ns: u64,
}

/// What judging a probe led to.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// A verdict that rests on silence: it is decided by [`TrackerAccount::conclude`].
    pub claim: Option<Claim>,
    /// When what was judged began to tell.
    pub since_ns: Option<u64>,
}

/// A verdict that rests on silence, which proves something only if the probes left the hub.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Whether what was sent since then left must be asked before anything is said.
    pub sent_since_ns: Option<u64>,
    before: Machine,
    sequence: u64,
    sent_ns: u64,
}

/// A verdict or cause that is new, or what is to be said of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// Not only the cause changed.
    pub has_turned: bool,
    /// Replies that came before this were not reported as early ones: see [`TrackerAccount::catch_up`], once the receive
    /// program knows the verdict.
    pub misses_replies: bool,
}

impl TrackerAccount {
    /// A tracker that sent `sent` probes, and none counts: outcomes that were not judged prove nothing,
    /// and runs begin anew. It goes on from the verdict, cause and account that an earlier daemon left.
    pub fn new(
        rules: Rules,
        expects_silence: bool,
        interval_ns: u64,
        sent: u64,
        left: Option<(Verdict, Cause, JudgeState)>,
    ) -> Self {
        let new = JudgeState {
            judged: sent,
            ..JudgeState::default()
        };
        let (verdict, cause, mut account) =
            left.unwrap_or((Verdict::default(), Cause::default(), new));
        // Runs begin anew, so these losses can no longer be taken back.
        account.lost += u64::from(std::mem::take(&mut account.lost_pending));
        Self {
            rules,
            expects_silence,
            interval_ns,
            machine: Machine::resume(verdict, cause, sent),
            reported: (verdict, cause),
            account,
            handed: sent,
            sent_ns: 0,
            losing_since_ns: 0,
            replying_since_ns: 0,
            replying_from: 0,
            answered: 0,
            renewed_until_ns: 0,
            silent_from_ns: 0,
            flows: Flows::new(FlowRule::default(), sent),
        }
    }

    /// Its probes go by flows of this rule, and by those that an earlier daemon wrote down.
    #[must_use]
    pub fn with_flows(mut self, rule: FlowRule, ports: &Ports, goes_on: bool) -> Self {
        let first = ports.fit(rule.share, rule.first);
        self.flows = Flows::new(FlowRule { first, ..rule }, self.handed);
        if goes_on {
            self.flows.resume(&self.account, ports);
        }
        self.flows.note(&mut self.account);
        self
    }

    /// By which flows its probes go.
    pub const fn flows(&self) -> &Flows {
        &self.flows
    }

    /// By which flows its probes go.
    pub const fn flows_mut(&mut self) -> &mut Flows {
        &mut self.flows
    }

    /// The ICMP identifier or source port of the next probe.
    #[inline]
    pub fn flow(&mut self, ports: &Ports, is_replied: impl Fn(u64) -> bool) -> u16 {
        let is_up = matches!(self.machine.verdict(), Verdict::Up);
        self.flows.choose(ports, is_up, is_replied)
    }

    /// The state machine.
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What others may read.
    pub const fn judge_state(&self) -> &JudgeState {
        &self.account
    }

    /// So many outcomes decide from the next one on.
    pub const fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The hub can't send.
    pub fn fault(&mut self, cause: Cause) {
        self.commit_losses();
        self.machine.fault(cause, self.handed);
        self.flows.forget(self.handed);
        self.replying_since_ns = 0;
    }

    /// The hub can send again.
    pub const fn mended(&mut self) {
        self.machine.mended();
        self.replying_since_ns = 0;
    }

    /// The service passed a probe that it must stop. Silence after that may be that of a service which passes nothing any
    /// more: it counts for probes sent from this time on, by when trackers that expect replies have found out.
    pub const fn doubt_silence(&mut self, until_ns: u64) {
        self.silent_from_ns = until_ns;
    }

    /// Probes are different from here on; `sent` were sent before.
    pub fn renew(&mut self, sent: u64, until_ns: u64) {
        self.commit_losses();
        self.machine.renew(sent);
        self.flows.forget(self.handed);
        self.renewed_until_ns = until_ns;
        self.replying_since_ns = 0;
    }

    /// Its turn has come: true if it is to be sent for. Not if that was done out of turn just before.
    #[inline]
    pub fn turn(&mut self, turn: Turn, can_send: bool, now_ns: u64, spacing_ns: u64) -> bool {
        if self.sent_ns != 0 && now_ns.saturating_sub(self.sent_ns) < spacing_ns {
            return false;
        }
        let missed = match turn {
            Turn::Skip(turns) => turns,
            Turn::Take => u64::from(!can_send),
        };
        if missed > 0 {
            self.account.skipped += missed;
            return false;
        }
        self.sent_ns = now_ns;
        true
    }

    /// After a call that attempted it: true if the kernel did send a probe, `sent` so far. The send program has the
    /// last word: it refuses a frame that the kernel won't size.
    #[inline]
    pub fn was_sent(&mut self, sent: u64) -> bool {
        let is_sent = sent > self.handed;
        if is_sent {
            self.handed += 1;
            self.flows.sent();
        }
        is_sent
    }

    /// Its turn came to nothing, because the kernel can't send for it (or did not come that far).
    pub fn was_not_sent(&mut self, is_fault: bool) {
        self.account.skipped += 1;
        if is_fault {
            self.fault(Cause::SendFailed);
        }
    }

    /// A reply ahead of its turn: a tracker that is not up may be so at once. Says since when that was telling, or
    /// nothing if the probe does not count.
    pub fn early(
        &mut self,
        sequence: u64,
        received_ns: u64,
        is_replied: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        if !self.machine.counts(sequence) {
            return None;
        }
        if self.expects_silence {
            self.machine.unexpected(sequence);
            return Some(received_ns);
        }
        self.flows.replied(sequence);
        if self.replying_since_ns == 0 {
            self.replying_since_ns = received_ns;
            self.replying_from = sequence;
        }
        // Replies may overtake each other: the one that completes a run need not be its last.
        let last = (sequence + u64::from(self.rules.rise) - 1).min(self.handed);
        for end in sequence..=last {
            self.machine.replied(self.rules, end, &is_replied);
        }
        Some(self.replying_since_ns)
    }

    /// Replies that arrived while the tracker was still up were not reported as early ones; they may
    /// already make it up again. Says whether they do.
    pub fn catch_up(&mut self, now_ns: u64, is_replied: impl Fn(u64) -> bool) -> bool {
        self.replying_since_ns = 0;
        for sequence in self.account.judged + 1..=self.handed {
            if self.machine.counts(sequence) && is_replied(sequence) {
                if self.replying_since_ns == 0 {
                    self.replying_since_ns = now_ns;
                    self.replying_from = sequence;
                }
                self.machine.replied(self.rules, sequence, &is_replied);
            }
        }
        self.machine.verdict() == Verdict::Up
    }

    /// The probe that is judged next.
    pub const fn next(&self) -> u64 {
        self.account.judged + 1
    }

    /// Judges that probe, whose timeout has passed.
    #[inline]
    pub fn judge(&mut self, is_replied: bool, is_void: bool, sent_ns: u64) -> Judged {
        let sequence = self.next();
        self.account.judged = sequence;
        if is_replied {
            self.commit_losses();
            self.answered = sequence;
            self.flows.replied(sequence);
            let outcome = match self.expects_silence {
                true => Outcome::Unexpected,
                false => Outcome::Replied,
            };
            self.machine.judge(self.rules, sequence, outcome);
            return Judged {
                claim: None,
                since_ns: (self.replying_since_ns != 0).then_some(self.replying_since_ns),
            };
        }
        if is_void {
            self.account.void += 1;
            let outcome = Outcome::Void(Cause::Stalled);
            self.machine.judge(self.rules, sequence, outcome);
            return Judged {
                claim: None,
                since_ns: None,
            };
        }
        let is_down = matches!(self.machine.verdict(), Verdict::Down);
        if self.expects_silence && is_down && sent_ns < self.silent_from_ns {
            self.commit_losses();
            self.account.lost += 1;
            if self.machine.counts(sequence) {
                self.machine.renew(sequence);
            }
            return Judged {
                claim: None,
                since_ns: None,
            };
        }
        let counts = self.machine.counts(sequence);
        self.account.lost_pending = self.account.lost_pending.saturating_add(1);
        let (claim, run, decides) = if self.expects_silence {
            let claim = self.stay_silent(sequence, sent_ns);
            (claim, self.machine.replied_run(), self.rules.rise)
        } else {
            let claim = self.lose(sequence, sent_ns);
            (claim, self.machine.lost_run(), self.rules.fall)
        };
        // A claim commits them, or takes them back. Later losses of a run are only explained.
        if claim.is_none() && (!counts || run >= decides) {
            self.commit_losses();
        }
        Judged {
            claim,
            since_ns: Some(self.losing_since_ns),
        }
    }

    /// What the probe that was judged last, and was not answered, tells of its flow; after [`TrackerAccount::conclude`].
    pub fn lose_flow(&mut self, ports: &Ports, is_void: bool, is_replied: impl Fn(u64) -> bool) {
        let sequence = self.account.judged;
        if is_void {
            self.flows.void(ports, sequence);
            return;
        }
        let is_up = matches!(self.machine.verdict(), Verdict::Up);
        if self.machine.counts(sequence) || is_up {
            self.flows.lost(ports, sequence, is_up, is_replied);
        }
    }

    /// A probe that the service must stop had its full timeout and no reply came. That is worth something
    /// only if it left the hub.
    fn stay_silent(&mut self, sequence: u64, sent_ns: u64) -> Option<Claim> {
        if self.machine.replied_run() == 0 {
            self.losing_since_ns = sent_ns;
        }
        let before = self.machine;
        self.machine.judge(self.rules, sequence, Outcome::Silent);
        let is_new = before.verdict() != Verdict::Up;
        let since_ns = if is_new {
            self.losing_since_ns
        } else {
            sent_ns
        };
        (self.machine.verdict() == Verdict::Up).then_some(Claim {
            sent_since_ns: Some(since_ns),
            before,
            sequence,
            sent_ns,
        })
    }

    /// A probe had its full timeout and no reply came.
    fn lose(&mut self, sequence: u64, sent_ns: u64) -> Option<Claim> {
        if sequence > self.replying_from {
            self.replying_since_ns = 0;
        }
        if self.machine.lost_run() == 0 {
            self.losing_since_ns = sent_ns;
        }
        let (before, counts) = (self.machine, self.machine.counts(sequence));
        self.machine.judge(self.rules, sequence, Outcome::Lost);
        let is_open = self.machine.cause() == Cause::NoReply;
        let is_down = is_open && self.machine.verdict() == Verdict::Down;
        // Once, when it decides; later losses only tell more of the cause.
        let decides =
            self.machine.lost_run() == self.rules.fall || before.verdict() != Verdict::Down;
        (counts && is_down).then_some(Claim {
            sent_since_ns: decides.then_some(self.losing_since_ns),
            before,
            sequence,
            sent_ns,
        })
    }

    /// Settles a verdict that rests on silence: takes it back if the probes did not leave the hub, else says why a
    /// tracker is down.
    pub fn conclude(&mut self, claim: Claim, has_left: bool, trouble: &TroubleState) {
        if has_left {
            // Before a run decides, the device has not been asked.
            if claim.sent_since_ns.is_some() || self.machine.lost_run() > self.rules.fall {
                self.commit_losses();
            }
            if !self.expects_silence {
                self.explain(claim, trouble);
            }
            return;
        }
        self.machine = claim.before;
        self.machine.fault(Cause::SendFailed, claim.sequence);
        self.account.void += u64::from(std::mem::take(&mut self.account.lost_pending));
        self.replying_since_ns = 0;
    }

    /// Takes a verdict back that rests on the silence of probes that prove nothing; later ones tell.
    pub fn withdraw(&mut self, claim: Claim) {
        self.machine = claim.before;
        self.machine.renew(self.handed);
        self.account.void += u64::from(std::mem::take(&mut self.account.lost_pending));
        self.replying_since_ns = 0;
    }

    /// Counts the losses of the present run: nothing takes them back any more.
    const fn commit_losses(&mut self) {
        self.account.lost += self.account.lost_pending as u64;
        self.account.lost_pending = 0;
    }

    /// Says why a tracker is down, by what is known of its latest `fall` losses. What explained earlier ones
    /// counts no more: a reply that once came around the service says nothing of probes that vanish.
    fn explain(&mut self, claim: Claim, trouble: &TroubleState) {
        let (machine, rules) = (&mut self.machine, self.rules);
        let reach = machine.reach(rules);
        let concerns =
            |about: u64, reach: u64| machine.counts(about) && about + reach >= claim.sequence;
        let (complained, patience) = match trouble.error.get() {
            ProbeError::None => (None, 0),
            // Each SYN is refused for itself.
            ProbeError::Reset => (Some(Cause::Refused), 0),
            // The daemon says whose reply it was.
            ProbeError::Elsewhere => (Some(Cause::NoReply), 0),
            ProbeError::Port => (Some(Cause::Refused), ERROR_PAUSE_NS / self.interval_ns),
            ProbeError::Icmp | ProbeError::Icmpv6 => {
                (Some(Cause::Unreachable), ERROR_PAUSE_NS / self.interval_ns)
            }
        };
        let corrupt_since_ns = match machine.lost_run() == rules.fall {
            true => self.losing_since_ns,
            false => claim.sent_ns.saturating_sub(reach * self.interval_ns),
        };
        if trouble.wrong_path != 0 && concerns(trouble.wrong_path_sequence, reach) {
            machine.explain(Cause::WrongPath);
        } else if let Some(cause) = complained
            && concerns(
                trouble.error_sequence,
                // Whatever was complained of before a reply is over.
                match trouble.error_sequence > self.answered {
                    true => reach.max(patience),
                    false => reach,
                },
            )
        {
            machine.explain(cause);
        } else if trouble.corrupt_mono_ns >= corrupt_since_ns.max(self.renewed_until_ns) {
            machine.explain(Cause::Corrupt);
        }
    }

    /// What is to be reported, if anything.
    #[inline]
    pub fn take_change(&mut self) -> Option<Change> {
        let (verdict, cause) = (self.machine.verdict(), self.machine.cause());
        self.account.lost_run = self.machine.lost_run();
        self.account.replied_run = self.machine.replied_run();
        self.account.cause = cause as u8;
        self.flows.note(&mut self.account);
        // While it is not up, what is in use changes with each attempt.
        let has_news = self.flows.take_news() && verdict == Verdict::Up;
        if self.reported == (verdict, cause) && !has_news {
            return None;
        }
        let has_turned = self.reported.0 != verdict;
        self.reported = (verdict, cause);
        Some(Change {
            verdict,
            cause,
            has_turned,
            misses_replies: has_turned && verdict != Verdict::Up && !self.expects_silence,
        })
    }
}

//! Verdicts, their causes, and the pure state machine that decides them for one tracker.
//!
//! The machine knows nothing of clocks, sockets or maps: it is told, probe by probe and in the
//! order of their sequence numbers, what became of each, and says when the verdict changes.

/// What is known of a tracker, a member, a service or a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "user",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "kebab-case")
)]
#[repr(u8)]
pub enum Verdict {
    /// Not decided yet, or not decidable because the hub cannot send.
    #[default]
    Unknown = 0,
    /// `rise` consecutive probes were answered.
    Up = 1,
    /// `fall` consecutive probes were really sent and went unanswered for their full timeout.
    Down = 2,
}

impl Verdict {
    /// The word used in config, output and documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "user",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "kebab-case")
)]
#[repr(u8)]
pub enum Cause {
    /// Probes left and nothing came back; also the cause before the first outcome.
    ///
    /// Effect: `down` after `fall` of them; with `expect = "silence"`, `up` after `rise` of them.
    #[default]
    NoReply = 0,
    /// Genuine replies arrive.
    ///
    /// Effect: `up` after `rise` of them.
    Replied = 1,
    /// The endpoint does not answer ARP or neighbour discovery.
    ///
    /// Effect: As `interface-down`.
    NextHopUnresolved = 2,
    /// The interface is down or has no carrier, or all interfaces that `returns` names are.
    ///
    /// Effect: `up` becomes `down`; a tracker that was never decided stays `unknown`.
    InterfaceDown = 3,
    /// There is no interface of that name, or no route leads to the endpoint without a gateway; or none of `returns`
    /// exists.
    ///
    /// Effect: As `interface-down`.
    InterfaceMissing = 4,
    /// No reply, and an ICMP error came back that quotes one of these probes; `detail` has its type, code and sender.
    ///
    /// Effect: `down` after `fall` probes.
    Unreachable = 5,
    /// No reply, and a TCP reset came back from the behind address or, in its name, from a firewall: no program listens
    /// there, or the connection is not permitted. Of `udp`: a port-unreachable from the behind address itself, whose quote
    /// bears the token.
    ///
    /// Effect: `down` after `fall` probes; with `refused = "up"` it is a reply.
    Refused = 6,
    /// Genuine replies, but on an interface outside `returns`, not brought by the endpoint if `return_hop` requires that,
    /// or with another TTL than `return_ttl`.
    ///
    /// Effect: `down` after `fall` probes.
    WrongPath = 7,
    /// A packet bears Tracker's probe header but fails checksum, destination or token.
    ///
    /// Effect: `down` after `fall` probes.
    Corrupt = 8,
    /// A reply, although the service must stop the probe.
    ///
    /// Effect: `down` at once.
    UnexpectedReply = 9,
    /// The hub could not send: no source address, a configured `source` that the hub does not have, no program attached,
    /// frames that do not leave the device.
    ///
    /// Effect: `up` becomes `unknown`, and so does a `down` that the hub's own interface or next hop alone had made.
    SendFailed = 10,
    /// The hub did not keep up, or was suspended.
    ///
    /// Effect: The verdict stays as it is; unanswered probes of that time count as nothing. When the daemon itself has
    /// stood for more than 3 s, `status` and metrics say `unknown`.
    Stalled = 11,
    /// A service that this one names in `after` counts as down: whether this one passes traffic cannot be told.
    ///
    /// Effect: The service is `unknown` while that lasts; a `down` that was told before stays.
    Depends = 12,
}

impl Cause {
    /// All of them, each at its number.
    pub const ALL: [Self; 13] = [
        Self::NoReply,
        Self::Replied,
        Self::NextHopUnresolved,
        Self::InterfaceDown,
        Self::InterfaceMissing,
        Self::Unreachable,
        Self::Refused,
        Self::WrongPath,
        Self::Corrupt,
        Self::UnexpectedReply,
        Self::SendFailed,
        Self::Stalled,
        Self::Depends,
    ];

    /// The word used in output and documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoReply => "no-reply",
            Self::Replied => "replied",
            Self::NextHopUnresolved => "next-hop-unresolved",
            Self::InterfaceDown => "interface-down",
            Self::InterfaceMissing => "interface-missing",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::WrongPath => "wrong-path",
            Self::Corrupt => "corrupt",
            Self::UnexpectedReply => "unexpected-reply",
            Self::SendFailed => "send-failed",
            Self::Stalled => "stalled",
            Self::Depends => "depends",
        }
    }
}

impl Cause {
    /// The cause that [`crate::abi::JudgeState::cause`] holds; a number of no cause is [`Self::NoReply`].
    pub fn from_u8(value: u8) -> Self {
        Self::ALL
            .get(usize::from(value))
            .copied()
            .unwrap_or_default()
    }

    /// True if it tells why the hub can't send, not what became of a probe.
    pub const fn is_of_hub(self) -> bool {
        matches!(
            self,
            Self::NextHopUnresolved
                | Self::InterfaceDown
                | Self::InterfaceMissing
                | Self::SendFailed
        )
    }
}

impl Verdict {
    /// The verdict that [`crate::abi::ReceiveState::verdict`] holds; what is no verdict is unknown.
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Up,
            2 => Self::Down,
            _ => Self::Unknown,
        }
    }
}

/// How many consecutive outcomes decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Losses that make a tracker down; at least 1.
    pub fall: u8,
    /// Replies that make it up; at least 1.
    pub rise: u8,
}

/// What became of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its reply came within the timeout.
    Replied,
    /// It was really sent, had its full timeout, and no reply came.
    Lost,
    /// It should be stopped, and no reply came within the timeout.
    Silent,
    /// It should be stopped, and a reply came.
    Unexpected,
    /// It proves nothing: the hub did not send it, or did not keep up while it was under way.
    Void(Cause),
}

/// The state machine of one tracker.
///
/// Outcomes are judged in the order of sequence numbers, each once. A run of `rise` replies may be
/// reported ahead of that order by [`Machine::replied`]: the result is the one that judging in order
/// would reach, only sooner, because what came before the run can no longer change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    verdict: Verdict,
    cause: Cause,
    lost_run: u8,
    replied_run: u8,
    /// Which of the last 64 probes that count were lost; bit 0 is the last one.
    lost: u64,
    /// Outcomes up to this sequence number no longer count.
    settled: u64,
    /// It was up when the hub stopped being able to send, and nothing was decided since.
    was_up: bool,
}

impl Machine {
    /// A machine that goes on from an earlier verdict and ignores probes up to `settled`.
    pub const fn resume(verdict: Verdict, cause: Cause, settled: u64) -> Self {
        Self {
            verdict,
            cause,
            lost_run: 0,
            replied_run: 0,
            lost: 0,
            settled,
            was_up: false,
        }
    }

    /// The verdict.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Its cause.
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// Consecutive losses so far; saturates at 255.
    pub const fn lost_run(&self) -> u8 {
        self.lost_run
    }

    /// Consecutive outcomes so far that were as they should be; saturates at 255.
    pub const fn replied_run(&self) -> u8 {
        self.replied_run
    }

    /// How many probes before the last one the earliest of the latest `fall` losses was: what is known of that
    /// probe or a later one explains them. Looks back over 64 probes.
    pub const fn reach(&self, rules: Rules) -> u64 {
        let mut lost = self.lost;
        let mut later = 1;
        while later < rules.fall && lost & lost.wrapping_sub(1) != 0 {
            lost &= lost - 1;
            later += 1;
        }
        if lost == 0 {
            return 0;
        }
        lost.trailing_zeros() as u64
    }

    /// True if the outcome of this probe can still change the verdict.
    pub const fn counts(&self, sequence: u64) -> bool {
        sequence > self.settled
    }

    /// Takes the outcome of the next probe in order.
    pub const fn judge(&mut self, rules: Rules, sequence: u64, outcome: Outcome) {
        if sequence <= self.settled {
            return;
        }
        self.lost = self.lost << 1 | matches!(outcome, Outcome::Lost) as u64;
        match outcome {
            Outcome::Replied => {
                self.lost_run = 0;
                self.replied_run = self.replied_run.saturating_add(1);
                self.cause = match self.verdict {
                    // A tracker that is down says why it went down until it is up again.
                    Verdict::Down => self.cause,
                    Verdict::Unknown | Verdict::Up => Cause::Replied,
                };
                if self.replied_run >= rules.rise {
                    self.verdict = Verdict::Up;
                    self.cause = Cause::Replied;
                    self.was_up = false;
                }
            }
            Outcome::Lost => {
                self.replied_run = 0;
                self.lost_run = self.lost_run.saturating_add(1);
                if self.lost_run >= rules.fall {
                    self.verdict = Verdict::Down;
                    self.cause = Cause::NoReply;
                    self.was_up = false;
                }
                // The cause of what is down is that of the latest `fall` losses, be they in a row or not.
                if matches!(self.verdict, Verdict::Down)
                    && self.lost.count_ones() >= rules.fall as u32
                {
                    self.cause = Cause::NoReply;
                }
            }
            Outcome::Silent => {
                self.replied_run = self.replied_run.saturating_add(1);
                if !matches!(self.verdict, Verdict::Down) {
                    self.cause = Cause::NoReply;
                }
                if self.replied_run >= rules.rise {
                    self.verdict = Verdict::Up;
                    self.cause = Cause::NoReply;
                    self.was_up = false;
                }
            }
            Outcome::Unexpected => self.unexpected(sequence),
            Outcome::Void(cause) => self.cause = cause,
        }
    }

    /// Takes a reply ahead of its turn: `is_replied` tells which earlier probes are answered. Nothing
    /// changes unless the run of replies that ends at `sequence` decides.
    pub fn replied(&mut self, rules: Rules, sequence: u64, is_replied: impl Fn(u64) -> bool) {
        if matches!(self.verdict, Verdict::Up) || sequence <= self.settled {
            return;
        }
        let run = u64::from(rules.rise);
        if sequence - self.settled < run {
            return;
        }
        if (0..run).all(|back| is_replied(sequence - back)) {
            self.verdict = Verdict::Up;
            self.cause = Cause::Replied;
            self.lost_run = 0;
            self.replied_run = rules.rise;
            self.lost = 0;
            self.settled = sequence;
            self.was_up = false;
        }
    }

    /// A reply came to a probe that the service must stop, in its turn or ahead of it. One is enough: a loss
    /// may be an accident, a genuine reply can't be. Silence counts from the next probe on.
    pub const fn unexpected(&mut self, sequence: u64) {
        if sequence <= self.settled {
            return;
        }
        self.verdict = Verdict::Down;
        self.cause = Cause::UnexpectedReply;
        self.replied_run = 0;
        self.lost = 0;
        self.settled = sequence;
        self.was_up = false;
    }

    /// The hub can't send: what was up is down if the fault proves that nothing can pass, else
    /// unknown; what was not decided stays so. Faults may come one after the other (an interface that
    /// goes down loses its addresses first), so what was up counts until probes decide. Probes up to
    /// `sent` no longer count.
    pub const fn fault(&mut self, cause: Cause, sent: u64) {
        self.cause = cause;
        self.lost_run = 0;
        self.replied_run = 0;
        self.lost = 0;
        self.settled = sent;
        self.was_up |= matches!(self.verdict, Verdict::Up);
        let proves = matches!(
            cause,
            Cause::InterfaceDown | Cause::InterfaceMissing | Cause::NextHopUnresolved
        );
        self.verdict = match self.verdict {
            Verdict::Up | Verdict::Unknown if self.was_up && proves => Verdict::Down,
            Verdict::Up => Verdict::Unknown,
            // It is down by such a fault alone, which is over: no probe found anything wrong with the service.
            Verdict::Down if self.was_up && !proves => Verdict::Unknown,
            verdict => verdict,
        };
    }

    /// The hub can send again; probes tell from here on.
    pub const fn mended(&mut self) {
        self.cause = Cause::NoReply;
    }

    /// Probes are different from here on: those up to `sent` no longer count, the verdict stays.
    pub const fn renew(&mut self, sent: u64) {
        self.lost_run = 0;
        self.replied_run = 0;
        self.lost = 0;
        self.settled = sent;
    }

    /// Replaces `no-reply` by what is known of the losses.
    pub const fn explain(&mut self, cause: Cause) {
        self.cause = cause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules { fall: 3, rise: 2 };

    fn run(outcomes: &[Outcome]) -> Machine {
        let mut machine = Machine::default();
        for (at, outcome) in outcomes.iter().enumerate() {
            machine.judge(RULES, at as u64 + 1, *outcome);
        }
        machine
    }

    /// The plain specification: the verdict after a list of outcomes, found by looking at the list.
    fn specified(rules: Rules, outcomes: &[Outcome]) -> Verdict {
        let real: Vec<_> = outcomes
            .iter()
            .filter(|outcome| !matches!(outcome, Outcome::Void(_)))
            .collect();
        (0..=real.len())
            .rev()
            .find_map(|end| {
                let last = |count: u8, wanted: Outcome| {
                    end >= usize::from(count)
                        && real[end - usize::from(count)..end]
                            .iter()
                            .all(|&&got| got == wanted)
                };
                if last(rules.rise, Outcome::Replied) {
                    Some(Verdict::Up)
                } else if last(rules.fall, Outcome::Lost) {
                    Some(Verdict::Down)
                } else {
                    None
                }
            })
            .unwrap_or_default()
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            4 => Just(Outcome::Replied),
            4 => Just(Outcome::Lost),
            1 => Just(Outcome::Void(Cause::Stalled)),
        ]
    }

    #[test]
    fn decides_at_the_last_of_the_run() {
        use Outcome::{Lost, Replied};
        assert_eq!(run(&[Replied]).verdict(), Verdict::Unknown);
        assert_eq!(run(&[Replied, Replied]).verdict(), Verdict::Up);
        assert_eq!(run(&[Replied, Replied, Lost, Lost]).verdict(), Verdict::Up);
        let down = run(&[Replied, Replied, Lost, Lost, Lost]);
        assert_eq!(
            (down.verdict(), down.cause()),
            (Verdict::Down, Cause::NoReply)
        );
        assert_eq!(
            run(&[Lost, Lost, Replied, Lost, Lost]).verdict(),
            Verdict::Unknown
        );
    }

    #[test]
    fn a_local_fault_takes_an_up_tracker_down_and_leaves_an_undecided_one() {
        let mut up = run(&[Outcome::Replied, Outcome::Replied]);
        up.fault(Cause::InterfaceDown, 2);
        assert_eq!(
            (up.verdict(), up.cause()),
            (Verdict::Down, Cause::InterfaceDown)
        );
        let mut unknown = Machine::default();
        unknown.fault(Cause::NextHopUnresolved, 0);
        assert_eq!(unknown.verdict(), Verdict::Unknown);
        let mut unsendable = run(&[Outcome::Replied, Outcome::Replied]);
        unsendable.fault(Cause::SendFailed, 2);
        assert_eq!(unsendable.verdict(), Verdict::Unknown);
        unsendable.fault(Cause::InterfaceDown, 2);
        assert_eq!(unsendable.verdict(), Verdict::Down);
        // The interface is up again without its address: nothing is known of the service.
        unsendable.fault(Cause::SendFailed, 2);
        assert_eq!(unsendable.verdict(), Verdict::Unknown);
        unsendable.fault(Cause::InterfaceMissing, 2);
        assert_eq!(unsendable.verdict(), Verdict::Down);
        // What probes found stays.
        let mut found = run(&[Outcome::Lost, Outcome::Lost, Outcome::Lost]);
        found.fault(Cause::SendFailed, 3);
        assert_eq!(
            (found.verdict(), found.cause()),
            (Verdict::Down, Cause::SendFailed)
        );
        // Once probes decided, what was before does not count.
        let mut decided = run(&[Outcome::Replied, Outcome::Replied]);
        decided.fault(Cause::SendFailed, 2);
        decided.mended();
        for sequence in 3..=5 {
            decided.judge(RULES, sequence, Outcome::Lost);
        }
        assert_eq!(
            (decided.verdict(), decided.cause()),
            (Verdict::Down, Cause::NoReply)
        );
    }

    #[test]
    fn what_explains_reaches_back_to_the_earliest_of_the_latest_losses() {
        use Outcome::{Lost, Replied};
        const VOID: Outcome = Outcome::Void(Cause::Stalled);
        assert_eq!(run(&[]).reach(RULES), 0);
        assert_eq!(run(&[Replied, Lost]).reach(RULES), 0);
        assert_eq!(run(&[Lost, Lost, Lost]).reach(RULES), 2);
        assert_eq!(run(&[Lost, Lost, Lost, Lost]).reach(RULES), 2);
        assert_eq!(
            run(&[Lost, Lost, Replied, VOID, Lost, Lost]).reach(RULES),
            4
        );
        let long = run(&[Lost; 200]);
        let rules = Rules { fall: 60, rise: 2 };
        assert_eq!(long.reach(rules), 59);
        // Nothing of before a fault explains what is lost after it.
        let mut faulty = run(&[Lost, Lost, Lost]);
        faulty.fault(Cause::InterfaceDown, 5);
        faulty.mended();
        faulty.judge(RULES, 6, Lost);
        assert_eq!(faulty.reach(RULES), 0);
    }

    #[test]
    fn a_cause_lasts_until_fall_later_losses() {
        use Outcome::{Lost, Replied};
        let mut machine = run(&[Lost, Lost, Lost]);
        machine.explain(Cause::WrongPath);
        for (sequence, outcome) in (4..).zip([Replied, Lost]) {
            machine.judge(RULES, sequence, outcome);
        }
        assert_eq!(machine.cause(), Cause::NoReply);
        // One that goes on from an earlier daemon knows nothing of the losses that made it down.
        let mut resumed = Machine::resume(Verdict::Down, Cause::Unreachable, 9);
        for (sequence, outcome) in (10..).zip([Lost, Replied, Lost]) {
            resumed.judge(RULES, sequence, outcome);
            assert_eq!(resumed.cause(), Cause::Unreachable);
        }
        resumed.judge(RULES, 13, Lost);
        assert_eq!(resumed.cause(), Cause::NoReply);
    }

    #[test]
    fn one_reply_where_silence_should_be_is_enough() {
        use Outcome::{Silent, Unexpected};
        let up = run(&[Silent, Silent]);
        assert_eq!((up.verdict(), up.cause()), (Verdict::Up, Cause::NoReply));
        assert_eq!(run(&[Silent]).verdict(), Verdict::Unknown);
        let mut down = run(&[Silent, Silent, Silent, Unexpected]);
        let is = |machine: &Machine| (machine.verdict(), machine.cause());
        assert_eq!(is(&down), (Verdict::Down, Cause::UnexpectedReply));
        down.judge(RULES, 5, Silent);
        assert_eq!(is(&down), (Verdict::Down, Cause::UnexpectedReply));
        // Ahead of its turn: what was sent before it and stays silent counts no more.
        down.unexpected(8);
        for sequence in 6..=9 {
            down.judge(RULES, sequence, Silent);
        }
        assert_eq!(is(&down), (Verdict::Down, Cause::UnexpectedReply));
        down.judge(RULES, 10, Silent);
        assert_eq!(is(&down), (Verdict::Up, Cause::NoReply));
        // Late news of what is settled changes nothing.
        down.unexpected(8);
        assert_eq!(down.verdict(), Verdict::Up);
    }

    #[test]
    fn probes_in_flight_at_a_fault_do_not_count() {
        let mut machine = Machine::default();
        machine.fault(Cause::InterfaceDown, 10);
        for sequence in 8..=10 {
            machine.judge(RULES, sequence, Outcome::Lost);
        }
        assert_eq!(machine.verdict(), Verdict::Unknown);
    }

    proptest! {
        #[test]
        fn equals_the_plain_specification(
            fall in 1u8..6, rise in 1u8..6, outcomes in prop::collection::vec(outcome(), 0..200),
        ) {
            let rules = Rules { fall, rise };
            let mut machine = Machine::default();
            for (at, outcome) in outcomes.iter().enumerate() {
                machine.judge(rules, at as u64 + 1, *outcome);
                prop_assert_eq!(machine.verdict(), specified(rules, &outcomes[..=at]));
            }
        }

        /// Replies reported ahead of their turn, in any order, never lead elsewhere than judging in
        /// order: after all probes are judged both agree, and never was there an `up` without a run.
        #[test]
        fn early_replies_change_only_the_time(
            fall in 1u8..6, rise in 1u8..6,
            outcomes in prop::collection::vec(
                prop_oneof![Just(Outcome::Replied), Just(Outcome::Lost)], 1..120),
            ahead in 0usize..20,
        ) {
            let rules = Rules { fall, rise };
            let replied = |sequence: u64| {
                sequence >= 1 && outcomes.get(sequence as usize - 1) == Some(&Outcome::Replied)
            };
            let mut machine = Machine::default();
            for at in 0..outcomes.len() + ahead {
                if at < outcomes.len() && outcomes[at] == Outcome::Replied {
                    let newest = at as u64 + 1;
                    machine.replied(rules, newest, |sequence| sequence <= newest && replied(sequence));
                }
                if let Some(judged) = at.checked_sub(ahead) {
                    machine.judge(rules, judged as u64 + 1, outcomes[judged]);
                }
            }
            prop_assert_eq!(machine.verdict(), specified(rules, &outcomes));
        }
    }
}

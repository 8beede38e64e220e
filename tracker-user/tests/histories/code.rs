//! The code under test, and broken variants of it that the simulation must catch.

use tracker_ebpf::{
    abi::Tracker,
    verdict::Rules,
    window::{Window, Worth},
};
use tracker_user::detector::{
    in_flight::InFlight,
    schedule::Turn,
    tracker::{Judged, TrackerAccount},
};

/// Every place where a mistake can be put in. What is here is what runs in kernel and daemon; a variant replaces one.
pub trait Code {
    /// How many outcomes decide.
    #[inline(always)]
    fn rules(rules: Rules) -> Rules {
        rules
    }
    /// The clock by which the daemon goes.
    #[inline(always)]
    fn clock(mono_ns: u64, _wall_ns: u64) -> u64 {
        mono_ns
    }
    /// The receive program's decision on a reply.
    #[inline(always)]
    fn admit(
        tracker: &Tracker,
        sequence: u64,
        sent_ns: u64,
        now_ns: u64,
        set: impl FnMut(u32, u64) -> Option<bool>,
    ) -> Worth {
        tracker.admit(sequence, sent_ns, now_ns, set)
    }
    /// Whether it reports it.
    #[inline(always)]
    fn reports(tracker: &Tracker, verdict: u8) -> bool {
        tracker.reports(verdict)
    }
    /// The word that the send program clears.
    #[inline(always)]
    fn stale_word(window: Window, sequence: u64) -> Option<u32> {
        window.stale_word(sequence)
    }
    /// A late tick.
    #[inline(always)]
    fn note_late(in_flight: &mut InFlight, now_ns: u64, late_ns: u64, timeout_ns: u64) -> bool {
        InFlight::is_stall(late_ns, timeout_ns) && in_flight.void(now_ns)
    }
    /// When a probe is judged that was sent by `sent_ns`.
    #[inline(always)]
    fn deadline(sent_ns: u64, timeout_ns: u64) -> u64 {
        sent_ns + timeout_ns
    }
    /// A turn.
    #[inline(always)]
    fn turn(
        account: &mut TrackerAccount,
        turn: Turn,
        can_send: bool,
        now_ns: u64,
        spacing_ns: u64,
    ) -> bool {
        account.turn(turn, can_send, now_ns, spacing_ns)
    }
    /// A call that attempted to send.
    #[inline(always)]
    fn was_sent(account: &mut TrackerAccount, sent: u64) -> bool {
        account.was_sent(sent)
    }
    /// A probe's timeout has passed.
    #[inline(always)]
    fn judge(
        account: &mut TrackerAccount,
        is_replied: bool,
        is_void: bool,
        sent_ns: u64,
    ) -> Judged {
        account.judge(is_replied, is_void, sent_ns)
    }
    /// A reply ahead of its turn.
    #[inline(always)]
    fn early(
        account: &mut TrackerAccount,
        sequence: u64,
        received_ns: u64,
        is_replied: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        account.early(sequence, received_ns, is_replied)
    }
    /// Just down: what came meanwhile.
    #[inline(always)]
    fn catch_up(
        account: &mut TrackerAccount,
        now_ns: u64,
        is_replied: impl Fn(u64) -> bool,
    ) -> bool {
        account.catch_up(now_ns, is_replied)
    }
    /// Whether the device's account is believed.
    #[inline(always)]
    fn has_left(has_left: bool) -> bool {
        has_left
    }
    /// Probes are different from here on.
    #[inline(always)]
    fn renew(account: &mut TrackerAccount, sent: u64) {
        account.renew(sent, 0);
    }
}

/// The code as it is.
pub struct Real;
impl Code for Real {}

/// Down one loss too soon.
pub struct FallShort;
impl Code for FallShort {
    fn rules(Rules { fall, rise }: Rules) -> Rules {
        let fall = if fall > 1 { fall - 1 } else { fall };
        Rules { fall, rise }
    }
}

/// Down one loss too late.
pub struct FallLong;
impl Code for FallLong {
    fn rules(Rules { fall, rise }: Rules) -> Rules {
        Rules {
            fall: fall + 1,
            rise,
        }
    }
}

/// Up one reply too soon.
pub struct RiseShort;
impl Code for RiseShort {
    fn rules(Rules { fall, rise }: Rules) -> Rules {
        let rise = if rise > 1 { rise - 1 } else { rise };
        Rules { fall, rise }
    }
}

/// A duplicate counts for the next probe.
pub struct DuplicateHelps;
impl Code for DuplicateHelps {
    fn admit(
        tracker: &Tracker,
        sequence: u64,
        sent_ns: u64,
        now_ns: u64,
        mut set: impl FnMut(u32, u64) -> Option<bool>,
    ) -> Worth {
        let worth = tracker.admit(sequence, sent_ns, now_ns, &mut set);
        if worth == Worth::Duplicate {
            let (word, bit) = tracker.window().position(sequence + 1);
            set(word, bit);
        }
        worth
    }
}

/// A duplicate counts as another reply.
pub struct DuplicateCounts;
impl Code for DuplicateCounts {
    fn admit(
        tracker: &Tracker,
        sequence: u64,
        sent_ns: u64,
        now_ns: u64,
        set: impl FnMut(u32, u64) -> Option<bool>,
    ) -> Worth {
        match tracker.admit(sequence, sent_ns, now_ns, set) {
            Worth::Duplicate => Worth::Counts { rtt_ns: 0 },
            worth => worth,
        }
    }
}

/// A reply counts however late.
pub struct LateCounts;
impl Code for LateCounts {
    fn admit(
        tracker: &Tracker,
        sequence: u64,
        _: u64,
        now_ns: u64,
        set: impl FnMut(u32, u64) -> Option<bool>,
    ) -> Worth {
        tracker.admit(sequence, now_ns, now_ns, set)
    }
}

/// What a word of the bit set held in the last round stays.
pub struct WordsStay;
impl Code for WordsStay {
    fn stale_word(_: Window, _: u64) -> Option<u32> {
        None
    }
}

/// A tracker that is not up is not told of replies either.
pub struct RepliesUnreported;
impl Code for RepliesUnreported {
    fn reports(_: &Tracker, _: u8) -> bool {
        false
    }
}

/// A late tick is no service's fault.
pub struct StallsBlame;
impl Code for StallsBlame {
    fn note_late(_: &mut InFlight, _: u64, _: u64, _: u64) -> bool {
        false
    }
}

/// A late tick excuses what is sent after it, too.
pub struct StallsExcuse;
impl Code for StallsExcuse {
    fn note_late(in_flight: &mut InFlight, now_ns: u64, late_ns: u64, timeout_ns: u64) -> bool {
        InFlight::is_stall(late_ns, timeout_ns) && in_flight.void(now_ns + timeout_ns)
    }
}

/// A probe has not its full timeout: the call that sends it takes of it.
pub struct TimeoutShort;
impl Code for TimeoutShort {
    fn deadline(sent_ns: u64, timeout_ns: u64) -> u64 {
        sent_ns + timeout_ns - timeout_ns / 8
    }
}

/// A probe is judged a good while after its timeout.
pub struct TimeoutLong;
impl Code for TimeoutLong {
    fn deadline(sent_ns: u64, timeout_ns: u64) -> u64 {
        sent_ns + timeout_ns + timeout_ns / 4 + 3_000_000
    }
}

/// A turn that is skipped is a loss.
pub struct SkipIsLoss;
impl Code for SkipIsLoss {
    fn turn(
        account: &mut TrackerAccount,
        turn: Turn,
        can_send: bool,
        now_ns: u64,
        spacing_ns: u64,
    ) -> bool {
        let takes = account.turn(turn, can_send, now_ns, spacing_ns);
        if !takes {
            account.judge(false, false, now_ns);
        }
        takes
    }
}

/// A turn long past is taken all the same.
pub struct StaleTurns;
impl Code for StaleTurns {
    fn turn(
        account: &mut TrackerAccount,
        _: Turn,
        can_send: bool,
        now_ns: u64,
        spacing_ns: u64,
    ) -> bool {
        account.turn(Turn::Take, can_send, now_ns, spacing_ns)
    }
}

/// A frame that the kernel refused was sent.
pub struct RefusedIsSent;
impl Code for RefusedIsSent {
    fn was_sent(account: &mut TrackerAccount, sent: u64) -> bool {
        account.was_sent(sent) || account.was_sent(u64::MAX)
    }
}

/// The daemon goes by the clock on the wall.
pub struct WallClock;
impl Code for WallClock {
    fn clock(_: u64, wall_ns: u64) -> u64 {
        wall_ns
    }
}

/// A void probe is a loss.
pub struct VoidIsLoss;
impl Code for VoidIsLoss {
    fn judge(account: &mut TrackerAccount, is_replied: bool, _: bool, sent_ns: u64) -> Judged {
        account.judge(is_replied, false, sent_ns)
    }
}

/// Whatever is reported early was the whole run.
pub struct EarlyIsEnough;
impl Code for EarlyIsEnough {
    fn early(
        account: &mut TrackerAccount,
        sequence: u64,
        received_ns: u64,
        _: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        account.early(sequence, received_ns, |_| true)
    }
}

/// Only a run that ends with the reply at hand is looked at.
pub struct NoReordering;
impl Code for NoReordering {
    fn early(
        account: &mut TrackerAccount,
        sequence: u64,
        received_ns: u64,
        is_replied: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        account.early(sequence, received_ns, |other| {
            other <= sequence && is_replied(other)
        })
    }
}

/// Replies that came just before a tracker went down wait for their timeouts.
pub struct NoCatchUp;
impl Code for NoCatchUp {
    fn catch_up(_: &mut TrackerAccount, _: u64, _: impl Fn(u64) -> bool) -> bool {
        false
    }
}

/// What the device swallowed was lost on the way.
pub struct DeviceBelieved;
impl Code for DeviceBelieved {
    fn has_left(_: bool) -> bool {
        true
    }
}

/// Probes under way count although the others are different.
pub struct RenewForgets;
impl Code for RenewForgets {
    fn renew(_: &mut TrackerAccount, _: u64) {}
}

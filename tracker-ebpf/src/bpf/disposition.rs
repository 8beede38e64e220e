//! What happens to a packet: one exhaustive match for each side, from the reason to the action and the counter.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};

use super::{
    maps::count,
    receive::Outcome,
    send::{Refusal, Sent},
    steer,
};

/// What a program has the kernel do with a packet.
#[derive(Clone, Copy)]
pub enum Action {
    /// It goes on as if there were no Tracker: to the next program, or to the stack.
    Pass,
    /// It ends here.
    Drop,
    /// The answer of a redirect helper, which holds the way out.
    Redirect(u32),
}

impl Action {
    /// The action's number in XDP.
    #[inline(always)]
    pub const fn xdp(self) -> u32 {
        match self {
            Self::Pass => xdp_action::XDP_PASS,
            Self::Drop => xdp_action::XDP_DROP,
            Self::Redirect(action) => action,
        }
    }

    /// The action's number at TC.
    #[inline(always)]
    pub const fn tc(self) -> i32 {
        match self {
            Self::Pass => TC_ACT_UNSPEC,
            Self::Drop => TC_ACT_SHOT,
            Self::Redirect(action) => action as i32,
        }
    }
}

/// What becomes of a frame of the send program, which is counted; and how many of its kind there are now.
///
/// A frame that is passed goes up the private veth, from where TC sends it out.
#[inline(always)]
pub fn of_frame(outcome: &Result<Sent, Refusal>) -> (Action, u64) {
    match outcome {
        Ok(Sent::Redirect(action)) => (
            Action::Redirect(*action),
            count(|counters| &mut counters.send_built),
        ),
        Ok(Sent::ToTc) => (Action::Pass, count(|counters| &mut counters.send_built)),
        Err(Refusal::Idle) => (Action::Drop, count(|counters| &mut counters.send_idle)),
        Err(Refusal::Inactive) => (Action::Drop, count(|counters| &mut counters.send_inactive)),
        Err(Refusal::NoPath) => (Action::Drop, count(|counters| &mut counters.send_no_path)),
        Err(Refusal::Failed) => (Action::Drop, count(|counters| &mut counters.send_failed)),
    }
}

/// What becomes of a packet that is, or claims to be, about a probe; it is counted. And how many of its kind there are now.
///
/// Only what is provably ours ends here. A reply on an interface outside `returns` is ours and passes: this may be a bridge's
/// port or a macvlan's parent, and the device above, to which the reply is on its way, the one of `returns`. If it is not, the
/// stack drops the reply. A probe that came back passes: the hub may be a router on its way. The stack has sent nothing that an error about a probe could be for.
#[inline(always)]
pub fn of_reply(outcome: Outcome) -> (Action, u64) {
    match outcome {
        Outcome::Counted => (Action::Drop, count(|counters| &mut counters.reply_counted)),
        Outcome::Duplicate => (
            Action::Drop,
            count(|counters| &mut counters.reply_duplicate),
        ),
        Outcome::Late => (Action::Drop, count(|counters| &mut counters.reply_late)),
        Outcome::Error => (Action::Drop, count(|counters| &mut counters.probe_refused)),
        Outcome::Elsewhere => (
            Action::Drop,
            count(|counters| &mut counters.reply_elsewhere),
        ),
        Outcome::WrongPath => (
            Action::Pass,
            count(|counters| &mut counters.reply_wrong_path),
        ),
        Outcome::Tagged => (Action::Pass, count(|counters| &mut counters.reply_tagged)),
        Outcome::Returned => (Action::Pass, count(|counters| &mut counters.probe_returned)),
        Outcome::Corrupt => (Action::Pass, count(|counters| &mut counters.reply_corrupt)),
        Outcome::Stale => (Action::Pass, count(|counters| &mut counters.reply_stale)),
    }
}

/// What becomes of a packet of others; steering counts by member (STEERED).
#[inline(always)]
pub const fn of_steered(outcome: Option<steer::Outcome>) -> Action {
    match outcome {
        Some(steer::Outcome::Redirected(action)) => Action::Redirect(action),
        Some(steer::Outcome::NoWay | steer::Outcome::Broken) => Action::Drop,
        Some(steer::Outcome::Changed) | None => Action::Pass,
    }
}

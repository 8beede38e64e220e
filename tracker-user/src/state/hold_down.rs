//! What is known of a tracker, and changes that are reported once they have lasted (pure).

use std::time::Duration;

use tracker_ebpf::verdict::{Cause, Verdict};

/// What is known of one tracker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackerState {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// More about the cause, such as who sent an ICMP error.
    pub detail: Option<String>,
}

/// A change of a tracker's verdict that is reported once it has lasted for `hold_down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is to be reported.
    pub state: TrackerState,
    /// Since when, by the monotonic clock.
    pub since_mono_ns: u64,
    /// From the first probe that showed it to then.
    pub detection_ns: Option<u64>,
}

impl Held {
    /// When it is to be reported, by the monotonic clock.
    pub fn due_ns(&self, hold_down: Duration) -> u64 {
        let hold_down_ns = u64::try_from(hold_down.as_nanos()).unwrap_or(u64::MAX);
        self.since_mono_ns.saturating_add(hold_down_ns)
    }
}

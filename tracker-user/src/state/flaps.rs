//! How often a service left a verdict of `up` or `down` (pure).

use std::collections::VecDeque;

/// Most flaps of a service that are remembered one by one.
pub const FLAPS_MAX: usize = 1024;

/// When a service left a verdict of `up` or `down`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaps {
    /// By the monotonic clock: the newest of them, oldest first.
    pub recent_mono_ns: VecDeque<u64>,
    /// How often in all.
    pub total: u64,
}

impl Flaps {
    /// Notes one more.
    pub fn note(&mut self, now_mono_ns: u64) {
        self.total = self.total.saturating_add(1);
        if self.recent_mono_ns.len() == FLAPS_MAX {
            self.recent_mono_ns.pop_front();
        }
        self.recent_mono_ns.push_back(now_mono_ns);
    }

    /// How many were in the last `window_ns`.
    pub fn recent(&self, now_mono_ns: u64, window_ns: u64) -> u64 {
        let is_old = |flap_ns: &u64| now_mono_ns.saturating_sub(*flap_ns) > window_ns;
        let old = self.recent_mono_ns.partition_point(is_old);
        (self.recent_mono_ns.len() - old) as u64
    }
}

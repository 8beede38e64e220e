//! Whether probes really left a device: what was handed to it, held against what it says it transmitted.
//!
//! Redirect errors are invisible to programs, so a probe counts as sent only while the device's own
//! counter keeps up. Not every counter can be held to that: some drivers do not count redirected frames,
//! some refresh their counters once a second. A device is believed ([`Trust::Proven`]) after a few checks
//! in a row in which everything handed over was counted promptly, and no more ([`Trust::Denied`]) once
//! replies outnumber its count or a shortfall turns out to have been lag. Others' traffic can hide a
//! shortfall, never feign one.

use std::collections::VecDeque;

/// A frame younger than this may still be on its way to the counter.
const LAG_NS: u64 = 500_000;
/// Clean checks in a row that prove a counter.
const PROOF: u32 = 3;
/// Shortfalls that are remembered.
const MEMORY: usize = 64;

/// How far a device's counter is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Not known yet.
    Unproven,
    /// It counts every frame promptly.
    Proven,
    /// It does not.
    Denied,
}

/// One device's account.
#[derive(Clone, Debug)]
pub struct TxCheck {
    handed: u64,
    replies: u64,
    /// An older and a newer value of `handed`, and when the newer one was taken.
    older: u64,
    newer: u64,
    newer_ns: u64,
    started_ns: u64,
    start_transmitted: u64,
    base_handed: u64,
    base_transmitted: u64,
    trust: Trust,
    clean: u32,
    /// When a check found that most of what was handed over had not left, newest last.
    shortfalls: VecDeque<u64>,
    /// Most of all frames so far never left.
    is_silent: bool,
}

impl TxCheck {
    /// An account of a device whose counter is at `transmitted`; without one nothing can be said.
    pub fn new(transmitted: Option<u64>, now_ns: u64) -> Self {
        Self {
            handed: 0,
            replies: 0,
            older: 0,
            newer: 0,
            newer_ns: now_ns,
            started_ns: now_ns,
            start_transmitted: transmitted.unwrap_or(0),
            base_handed: 0,
            base_transmitted: transmitted.unwrap_or(0),
            trust: if transmitted.is_some() {
                Trust::Unproven
            } else {
                Trust::Denied
            },
            clean: 0,
            shortfalls: VecDeque::new(),
            is_silent: false,
        }
    }

    /// How far the counter is believed.
    pub const fn trust(&self) -> Trust {
        self.trust
    }

    /// A frame was handed over.
    pub const fn hand(&mut self) {
        self.handed += 1;
    }

    /// A frame was not handed over after all.
    pub const fn take_back(&mut self) {
        self.handed -= 1;
    }

    /// A reply came to a frame of this device.
    pub const fn reply(&mut self) {
        self.replies += 1;
    }

    /// Ages what was handed over; call once a tick, after sending.
    pub const fn age(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.newer_ns) >= LAG_NS {
            self.older = self.newer;
            self.newer = self.handed;
            self.newer_ns = now_ns;
        }
    }

    /// Frames handed over long enough ago to have been counted.
    const fn settled(&self, now_ns: u64) -> u64 {
        if now_ns.saturating_sub(self.newer_ns) >= LAG_NS {
            self.newer
        } else {
            self.older
        }
    }

    /// Takes the device's counter; true if most of what was handed over since the last check is
    /// believed not to have left. An unproven counter that stands still is believed after `patience_ns`.
    /// A `decisive` look, just before a loss is put down to a service, doubts more readily: the
    /// frames at stake may be a small part of what was handed over since the last check.
    pub fn check(
        &mut self,
        transmitted: u64,
        now_ns: u64,
        patience_ns: u64,
        decisive: bool,
    ) -> bool {
        if self.trust == Trust::Denied {
            return false;
        }
        let settled = self.settled(now_ns);
        let left_ever = transmitted.saturating_sub(self.start_transmitted);
        if self.replies > left_ever {
            self.deny();
            return false;
        }
        let handed = settled.saturating_sub(self.base_handed);
        if handed == 0 {
            return false;
        }
        let left = transmitted.saturating_sub(self.base_transmitted);
        // What left beyond `handed` may be the younger frames already.
        let younger = self.handed.saturating_sub(settled);
        self.base_handed = settled;
        self.base_transmitted = transmitted - left.saturating_sub(handed).min(younger);
        self.is_silent = settled.saturating_sub(left_ever) * 2 >= settled;
        let missing = handed.saturating_sub(left);
        if missing == 0 {
            self.clean += 1;
            if !self.shortfalls.is_empty() && left_ever >= settled {
                // All of it left after all: the counter only lags.
                self.deny();
            } else if self.clean >= PROOF {
                self.trust = Trust::Proven;
            }
            return false;
        }
        self.clean = 0;
        let most = missing * 2 >= handed;
        let doubt = most || (decisive && missing * 4 >= handed);
        if !doubt {
            // What a full queue drops here and there is the path's business.
            return false;
        }
        match self.trust {
            Trust::Proven => {
                if self.shortfalls.len() == MEMORY {
                    self.shortfalls.pop_front();
                }
                self.shortfalls.push_back(now_ns);
                most
            }
            Trust::Unproven => {
                self.is_silent && now_ns.saturating_sub(self.started_ns) >= patience_ns
            }
            Trust::Denied => false,
        }
    }

    fn deny(&mut self) {
        self.trust = Trust::Denied;
        self.shortfalls.clear();
    }

    /// True if frames handed over since a time may not have left, as of the last check.
    pub fn is_doubtful(&self, since_ns: u64) -> bool {
        match self.trust {
            Trust::Proven => self
                .shortfalls
                .back()
                .is_some_and(|last_ns| *last_ns >= since_ns),
            Trust::Unproven => self.is_silent,
            Trust::Denied => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A device on which a frame is handed over each 10 ms and `counted` tells the counter's growth.
    struct Lab {
        tx_check: TxCheck,
        now_ns: u64,
        transmitted: u64,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                tx_check: TxCheck::new(Some(1_000), 0),
                now_ns: 0,
                transmitted: 1_000,
            }
        }

        /// One frame, counted or not, and a check 9 ms later.
        fn step(&mut self, counted: u64) -> bool {
            self.tx_check.hand();
            self.tx_check.age(self.now_ns + LAG_NS);
            self.transmitted += counted;
            self.now_ns += 10 * MS;
            self.tx_check
                .check(self.transmitted, self.now_ns, 2_000 * MS, false)
        }

        fn proven() -> Self {
            let mut lab = Self::new();
            for _ in 0..10 {
                assert!(!lab.step(1));
                lab.tx_check.reply();
            }
            assert_eq!(lab.tx_check.trust(), Trust::Proven);
            lab
        }
    }

    #[test]
    fn a_prompt_counter_is_believed_and_its_stop_is_seen() {
        let mut lab = Lab::proven();
        let stopped_ns = lab.now_ns;
        assert!(!lab.tx_check.is_doubtful(0));
        assert!(lab.step(0) | lab.step(0) | lab.step(0));
        assert!(lab.tx_check.is_doubtful(stopped_ns));
        // A later run of losses has nothing to do with it.
        assert!(!lab.tx_check.is_doubtful(lab.now_ns + 1));
    }

    #[test]
    fn a_device_that_does_not_count_is_denied_by_its_replies() {
        let mut lab = Lab::new();
        lab.step(0);
        assert!(lab.tx_check.is_doubtful(0), "nothing has ever left");
        lab.tx_check.reply();
        lab.step(0);
        assert_eq!(lab.tx_check.trust(), Trust::Denied);
        assert!(!lab.tx_check.is_doubtful(0));
    }

    #[test]
    fn a_lagging_counter_is_not_believed() {
        let mut lab = Lab::new();
        for step in 1..400u64 {
            // Refreshed once a second, long before replies are judged.
            assert!(
                !lab.step(if step % 100 == 0 { 100 } else { 0 }),
                "step {step}"
            );
        }
        assert_ne!(lab.tx_check.trust(), Trust::Proven);
        assert!(!lab.tx_check.is_doubtful(0));
    }

    #[test]
    fn a_shortfall_that_was_lag_is_forgotten() {
        let mut lab = Lab::proven();
        lab.step(0);
        lab.step(0);
        assert!(lab.tx_check.is_doubtful(0));
        for _ in 0..5 {
            lab.step(3);
        }
        assert_eq!(lab.tx_check.trust(), Trust::Denied);
    }

    #[test]
    fn a_few_drops_are_no_shortfall() {
        let mut lab = Lab::proven();
        for _ in 0..10 {
            for _ in 0..9 {
                lab.tx_check.hand();
                lab.transmitted += 1;
            }
            assert!(!lab.step(0));
        }
        assert!(!lab.tx_check.is_doubtful(0));
    }

    #[test]
    fn a_device_that_never_transmitted_is_reported_in_time() {
        let mut lab = Lab::new();
        let reported = (0..300).find(|_| lab.step(0));
        assert!(
            reported.is_some_and(|step| (195..210).contains(&step)),
            "{reported:?}"
        );
    }
}

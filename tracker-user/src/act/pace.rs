//! How often an action may change something (pure): a limit on its rate, and pauses after failures and while another program undoes
//! what it does.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many changes may follow one another at once.
const BURST: u32 = 20;
/// After these, one more each time this has passed.
const REFILL: Duration = Duration::from_millis(100);
/// So many times within [`FIGHT`] what another program undid is done again at once.
const FIGHTS: usize = 3;
/// How long it counts that another program undid something.
const FIGHT: Duration = Duration::from_secs(60);
/// The first pause after a failure, and after another program has undone too much; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The changes of one action.
#[derive(Debug)]
pub struct Pace {
    tokens: u32,
    refilled: Instant,
    failures: u32,
    fights: VecDeque<Instant>,
    until: Instant,
}

impl Pace {
    /// That of an action that did nothing yet.
    pub const fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            refilled: now,
            failures: 0,
            fights: VecDeque::new(),
            until: now,
        }
    }

    /// Whether a change may be made now; else when.
    pub fn may(&mut self, now: Instant) -> Result<(), Instant> {
        if now < self.until {
            return Err(self.until);
        }
        let passed = now.saturating_duration_since(self.refilled).as_millis() / REFILL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            self.tokens = self.tokens.saturating_add(passed).min(BURST);
            self.refilled = now;
        }
        match self.tokens {
            0 => Err(self.refilled + REFILL),
            _ => Ok(()),
        }
    }

    /// A change was made.
    pub const fn done(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
        self.failures = 0;
    }

    /// A change failed; returns the pause before the next attempt.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let pause = pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.until = self.until.max(now + pause);
        pause
    }

    /// Another program changed what is this action's. Returns how often it did so in the last minute and the pause, if that is too
    /// often to go on at once.
    pub fn fought(&mut self, now: Instant) -> Option<(usize, Duration)> {
        self.fights.push_back(now);
        while let Some(first) = self.fights.front()
            && (now.saturating_duration_since(*first) > FIGHT || self.fights.len() > 64)
        {
            self.fights.pop_front();
        }
        let count = self.fights.len();
        let more = count.checked_sub(FIGHTS + 1)?;
        let pause = pause(u32::try_from(more).unwrap_or(u32::MAX));
        self.until = self.until.max(now + pause);
        Some((count, pause))
    }
}

fn pause(times: u32) -> Duration {
    PAUSE.saturating_mul(1 << times.min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_limited_and_the_limit_recovers() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut made = 0;
        for ms in 0..5_000 {
            let now = start + Duration::from_millis(ms);
            if pace.may(now).is_ok() {
                pace.done();
                made += 1;
            }
        }
        // The burst, and ten a second.
        assert!((BURST + 48..=BURST + 50).contains(&made), "{made}");
    }

    #[test]
    fn failures_and_fights_make_pauses() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let pauses = [(); 8].map(|()| pace.failed(start).as_millis());
        assert_eq!(
            pauses,
            [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
        );
        assert_eq!(pace.may(start), Err(start + PAUSE_MAX));
        let later = start + PAUSE_MAX;
        assert_eq!(pace.may(later), Ok(()));
        pace.done();
        assert_eq!(pace.failed(later), PAUSE);

        let mut pace = Pace::new(start);
        let fights = [(); 6].map(|()| pace.fought(start));
        let second = Duration::from_secs(1);
        let expected = [
            None,
            None,
            None,
            Some((4, second / 2)),
            Some((5, second)),
            Some((6, second * 2)),
        ];
        assert_eq!(fights, expected);
        assert_eq!(pace.may(start), Err(start + second * 2));
        // A minute later all is forgotten.
        assert_eq!(pace.fought(start + FIGHT + second), None);
    }
}

//! For tests: how much more work four times as much to do is.

use std::time::Duration;

use nix::time::ClockId;

/// Processor time of this thread that the work takes; other load of the machine does not count.
pub(crate) fn processor_time<T>(work: impl FnOnce() -> T) -> Duration {
    let now = || Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
    let begin = now();
    std::hint::black_box(work());
    now() - begin
}

/// Asserts that the work grows in proportion: 4 times as much to do takes 4 times as long, and not 16 times, as it would
/// if it were quadratic. The best of a few attempts counts.
pub(crate) fn assert_linear(what: &str, few: usize, work: impl Fn(usize) -> Duration) {
    let best = |count: usize| (0..3).map(|_| work(count)).min().unwrap_or_default();
    let (small, large) = (best(few), best(4 * few));
    let ratio = large.as_secs_f64() / small.as_secs_f64().max(1e-6);
    assert!(
        ratio < 9.0,
        "{what}: {few} took {small:?}, {} took {large:?}",
        4 * few
    );
}

//! How much slower than real hardware the machine under the tests is.
//!
//! `TRACKER_TEST_SLOWNESS` says so, under emulation; it is 1 elsewhere. All times of a test are longer by that factor:
//! what it waits for, how long it pauses, and the intervals and timeouts in its configs. So what is true of the daemon
//! does not depend on the machine: a probe that has 200 ms on hardware has as much work done in its time here.

use std::sync::LazyLock;
use std::thread::sleep;
use std::time::Duration;

/// The variable that [`slow`] obeys.
pub const SLOWNESS: &str = "TRACKER_TEST_SLOWNESS";

static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    std::env::var(SLOWNESS)
        .ok()
        .and_then(|factor| factor.parse().ok())
        .filter(|factor| (1..=100).contains(factor))
        .unwrap_or(1)
});

/// A time of real hardware, as it is on this machine.
#[must_use]
pub fn slow(time: Duration) -> Duration {
    time * *FACTOR
}

/// True if times are longer than on hardware.
#[must_use]
pub fn is_slow() -> bool {
    *FACTOR > 1
}

/// Has this thread run before ordinary ones: it stands for a wire or for another machine, which do not wait until this
/// machine has finished something else. Best effort; it still comes after the daemon's own thread.
pub fn stand_for_hardware() {
    let parameters = libc::sched_param { sched_priority: 5 };
    // SAFETY: a system call on this thread with a valid structure.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// Sleeps for a time of real hardware.
pub fn pause(time: Duration) {
    sleep(slow(time));
}

/// A config whose intervals, timeouts and hold-downs are times of real hardware, with those of this machine.
#[must_use]
pub fn slow_config(toml: &str) -> String {
    stretch(toml, *FACTOR)
}

/// Only milliseconds and seconds, and not beyond the longest timeout: an hour stands for never.
fn stretch(toml: &str, factor: u32) -> String {
    const LONGEST_MS: u32 = 60_000;
    if factor == 1 {
        return toml.to_owned();
    }
    let lines = toml.lines().map(|line| {
        let stretched = line.split_once('=').and_then(|(key, value)| {
            let is_time = ["interval", "timeout", "hold_down"].contains(&key.trim());
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            let ms: u32 = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
                (Some(ms), _) => ms.parse().ok()?,
                (None, Some(seconds)) => seconds.parse::<u32>().ok()?.checked_mul(1000)?,
                (None, None) => return None,
            };
            let longer = ms.saturating_mul(factor).min(LONGEST_MS.max(ms));
            is_time.then(|| format!("{key}= \"{longer}ms\"\n"))
        });
        stretched.unwrap_or_else(|| format!("{line}\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::stretch;

    #[test]
    fn only_times_are_stretched() {
        let config = "# interval\ninterval = \"20ms\"\ntimeout = \"1s\"\nname = \"2s\"\nfall = 3\n";
        assert_eq!(stretch(config, 1), config);
        assert_eq!(
            stretch(config, 5),
            "# interval\ninterval = \"100ms\"\ntimeout = \"5000ms\"\nname = \"2s\"\nfall = 3\n"
        );
    }

    #[test]
    fn nothing_gets_longer_than_a_config_may_say() {
        assert_eq!(stretch("timeout = \"59s\"", 5), "timeout = \"60000ms\"\n");
        assert_eq!(
            stretch("interval = \"300s\"", 5),
            "interval = \"300000ms\"\n"
        );
        assert_eq!(stretch("interval = \"1h\"", 5), "interval = \"1h\"\n");
    }
}

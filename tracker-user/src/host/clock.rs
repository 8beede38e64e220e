//! Clocks of the host.
//!
//! The kernel's programs stamp with `bpf_ktime_get_ns`, which knows no time namespace, while `clock_gettime(2)` adds the
//! offsets of the process's own (`time_namespaces(7)`, Linux 5.6). So these are taken off again.

use std::{fs, sync::LazyLock};

use nix::time::ClockId;

use crate::state::tree::Stamp;

/// Offsets of the time namespace, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic_ns: i64,
    boot_ns: i64,
}

static OFFSETS: LazyLock<Offsets> = LazyLock::new(|| {
    // A kernel without time namespaces has no such file.
    let text = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    offsets(&text)
});

/// Now on the clock of `bpf_ktime_get_ns`, nanoseconds: `CLOCK_MONOTONIC` of the initial time namespace.
pub fn monotonic_ns() -> u64 {
    clock_ns(ClockId::CLOCK_MONOTONIC).wrapping_add_signed(-OFFSETS.monotonic_ns)
}

/// Now on `CLOCK_BOOTTIME` of the initial time namespace, nanoseconds. Unlike the monotonic clock it goes on while
/// the machine is suspended.
pub fn boot_ns() -> u64 {
    clock_ns(ClockId::CLOCK_BOOTTIME).wrapping_add_signed(-OFFSETS.boot_ns)
}

/// Now, by all clocks.
pub fn stamp() -> Stamp {
    Stamp {
        mono_ns: monotonic_ns(),
        boot_ns: boot_ns(),
        wall: jiff::Timestamp::now(),
    }
}

fn clock_ns(clock: ClockId) -> u64 {
    clock.now().map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}

/// Reads lines of clock, seconds and nanoseconds (fs/proc/base.c, `timens_offsets_show`).
fn offsets(text: &str) -> Offsets {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let clock = words.next();
        let mut number = || words.next()?.parse::<i64>().ok();
        let (Some(seconds), Some(nanoseconds)) = (number(), number()) else {
            continue;
        };
        let offset_ns = seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds);
        match clock {
            Some("monotonic") => offsets.monotonic_ns = offset_ns,
            Some("boottime") => offsets.boot_ns = offset_ns,
            _ => {}
        }
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read() {
        let text = "monotonic      86400         5\nboottime          -1 999999999\n";
        let wanted = Offsets {
            monotonic_ns: 86_400_000_000_005,
            boot_ns: -1,
        };
        assert_eq!(offsets(text), wanted);
        for nothing in ["", "monotonic\n", "monotonic x y\n", "realtime 1 1\n"] {
            assert_eq!(offsets(nothing), Offsets::default(), "{nothing:?}");
        }
    }
}

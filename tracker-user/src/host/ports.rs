//! Which source ports the kernel gives to sockets, and which are reserved for programs: those of probes are others.

use std::fs;

use crate::detector::flows::Ports;

/// First and last port that the kernel gives to sockets without one (Documentation/networking/ip-sysctl.rst).
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports that it does not give, because programs will want them: numbers and ranges, with commas between.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports that probes may have in this network namespace. What can't be read is the kernel's default.
pub fn read() -> Ports {
    let local = fs::read_to_string(LOCAL).ok();
    let local = local.as_deref().and_then(local_range);
    let reserved = fs::read_to_string(RESERVED).unwrap_or_default();
    Ports::outside(
        local.unwrap_or(tracker_ebpf::abi::FOREIGN_PORTS),
        &reserved_ranges(&reserved),
    )
}

fn local_range(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace();
    let mut port = || ports.next()?.parse().ok();
    Some((port()?, port()?))
}

fn reserved_ranges(text: &str) -> Vec<(u16, u16)> {
    let each = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(local_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(local_range("\n"), None);
        let ranges = [(8_080, 8_080), (61_000, 61_100)];
        assert_eq!(reserved_ranges("8080,61000-61100\n"), ranges);
        assert_eq!(reserved_ranges("\n"), []);
    }
}

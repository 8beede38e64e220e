//! Addresses of the hub, and the choice of a probe's source address among them.
//!
//! The kernel cannot be asked for the source: the hub needs no route to an address behind a service, and without one RTM_GETROUTE
//! gives ENETUNREACH (IPv6) or the interface's first address (IPv4, `ip_route_output_key_hash_rcu`). So its rules are followed here,
//! over what it says of the addresses: the same addresses give the same source, also after a restart.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv6Addr},
};

use tracker_ebpf::abi::Family;

use super::observed::{Address, Link};

/// The source address of probes to `behind` that leave by `link` to `endpoint`: one of the interface's, as the kernel would
/// take it.
pub fn choose(link: &Link, endpoint: IpAddr, behind: IpAddr) -> Option<IpAddr> {
    let usable = link.addresses.iter().filter(|address| address.is_usable);
    let best = match behind {
        IpAddr::V4(_) => usable
            .filter(|address| address.ip.is_ipv4())
            .min_by_key(|address| rank_ipv4(address, endpoint)),
        IpAddr::V6(behind) => usable
            .filter_map(|address| Some((address, rank_ipv6(address, endpoint, behind)?)))
            .min_by_key(|(_, rank)| *rank)
            .map(|(address, _)| address),
    };
    best.map(|address| address.ip)
}

/// The order in which `inet_select_addr` (net/ipv4/devinet.c) takes addresses for a next hop, the first one first: primary
/// addresses of no host scope, the one in whose network the next hop is, then as they are listed (by scope, then by age).
fn rank_ipv4(address: &Address, endpoint: IpAddr) -> impl Ord + use<> {
    (
        address.is_secondary,
        address.scope == HOST,
        !address.reaches(endpoint),
        Reverse(address.scope),
        address.created,
        address.ip,
    )
}

/// RT_SCOPE_HOST (linux/rtnetlink.h).
const HOST: u8 = 254;

/// The order of RFC 6724 section 5 as Linux has it (`ipv6_get_saddr_eval`, net/ipv6/addrconf.c), the first one first; `None` for
/// what is no source for `behind`: routers forward nothing to a link-local address (RFC 4291 section 2.5.6).
///
/// As in Linux, the stable address comes before temporary ones, since a firewall's rules name it. Between rules 7 and 8 comes the
/// address in whose network the next hop is (rule 5.5, which Linux lacks; it is a question of routes back, which rule 8 guesses).
fn rank_ipv6(
    address: &Address,
    endpoint: IpAddr,
    behind: Ipv6Addr,
) -> Option<impl Ord + Copy + use<>> {
    let IpAddr::V6(ip) = address.ip else {
        return None;
    };
    let is_local = ip.is_unicast_link_local();
    if is_local && !behind.is_unicast_link_local() {
        return None;
    }
    let matching = (u128::from(ip) ^ u128::from(behind)).leading_zeros();
    Some((
        // An address of the hub itself behind the service: a packet from an address to itself is dropped everywhere.
        ip == behind,
        // Rule 2: a link-local source for a link-local destination.
        behind.is_unicast_link_local() && !is_local,
        // Rule 3.
        address.is_deprecated,
        // Rule 6.
        label(ip) != label(behind),
        // Rule 7.
        address.is_secondary,
        !address.reaches(endpoint),
        // Rule 8.
        Reverse(matching.min(address.prefix.into())),
        // The kernel lists the newest first.
        Reverse(address.created),
        ip,
    ))
}

/// The kernel's default labels (`ip6addrlbl_init_table`, net/ipv6/addrlabel.c), RFC 6724 section 2.1. Those that an operator
/// sets (`ip addrlabel`) are not read.
fn label(ip: Ipv6Addr) -> u8 {
    let segments = ip.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => 0,
        [0, 0, 0, 0, 0, 0xffff, ..] => 4,
        [0, 0, 0, 0, 0, 0, ..] => 3,
        [0x2002, ..] => 2,
        // Teredo and ORCHID.
        [0x2001, 0, ..] => 6,
        [0x2001, second, ..] if second & 0xfff0 == 0x10 => 7,
        [first, ..] if first & 0xfe00 == 0xfc00 => 5,
        _ => 1,
    }
}

/// The address in the maps' form.
pub fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An address as the maps have it.
pub fn address_from(family: Family, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    match family {
        Family::Ipv4 => IpAddr::from([a, b, c, d]),
        Family::Ipv6 => IpAddr::from(bytes),
    }
}

/// A MAC address in its usual notation.
pub fn mac_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn at(text: &str) -> Address {
        let (ip_text, prefix) = text.split_once('/').expect("a prefix length");
        Address::new(ip(ip_text), prefix.parse().expect("a number"))
    }

    fn chosen(addresses: Vec<Address>, endpoint: &str, behind: &str) -> Option<String> {
        let mut link = Link {
            addresses,
            ..Link::default()
        };
        let first = choose(&link, ip(endpoint), ip(behind));
        // The order in which they became known says nothing.
        link.addresses.reverse();
        assert_eq!(choose(&link, ip(endpoint), ip(behind)), first);
        first.map(|ip| ip.to_string())
    }

    #[test]
    fn ipv4() {
        let behind = "10.20.0.9";
        let cases: [(&str, Vec<Address>, &str); 6] = [
            (
                "the network of the next hop",
                vec![at("192.0.2.1/24"), at("10.9.0.1/24")],
                "10.9.0.1",
            ),
            (
                "the peer is the next hop",
                vec![
                    at("192.0.2.10/32"),
                    Address {
                        peer: Some(ip("10.9.0.2")),
                        ..at("10.9.0.1/32")
                    },
                ],
                "10.9.0.1",
            ),
            (
                "a secondary address is none of the kernel's choice",
                vec![
                    Address {
                        is_secondary: true,
                        ..at("10.9.0.7/24")
                    },
                    Address {
                        created: 9,
                        ..at("10.9.0.9/24")
                    },
                ],
                "10.9.0.9",
            ),
            (
                "the older one",
                vec![
                    Address {
                        created: 9,
                        ..at("10.9.0.7/25")
                    },
                    Address {
                        created: 8,
                        ..at("10.9.0.9/24")
                    },
                ],
                "10.9.0.9",
            ),
            (
                "an address of host scope comes last",
                vec![
                    Address {
                        scope: HOST,
                        ..at("10.9.0.7/24")
                    },
                    at("192.0.2.1/24"),
                ],
                "192.0.2.1",
            ),
            (
                "a deprecated address is as good as any",
                vec![
                    Address {
                        is_deprecated: true,
                        ..at("10.9.0.7/24")
                    },
                    at("192.0.2.1/24"),
                ],
                "10.9.0.7",
            ),
        ];
        for (what, addresses, expected) in cases {
            let found = chosen(addresses, "10.9.0.2", behind);
            assert_eq!(found.as_deref(), Some(expected), "{what}");
        }
        let unusable = Address {
            is_usable: false,
            ..at("10.9.0.1/24")
        };
        assert_eq!(
            chosen(vec![unusable, at("fe80::1/64")], "10.9.0.2", behind),
            None
        );
    }

    #[test]
    fn ipv6() {
        let global = "2001:db8:9::1/64";
        let deprecated = |text| Address {
            is_deprecated: true,
            ..at(text)
        };
        let temporary = |text| Address {
            is_secondary: true,
            ..at(text)
        };
        type Case<'a> = (&'a str, Vec<Address>, &'a str, &'a str, Option<&'a str>);
        let cases: [Case<'_>; 10] = [
            (
                "rule 3: a deprecated address comes after others",
                vec![deprecated("2001:db8:9::2/64"), at("2001:db8:7::1/64")],
                "2001:db8:9::9",
                "2001:db8:20::9",
                Some("2001:db8:7::1"),
            ),
            (
                "a deprecated address alone",
                vec![deprecated(global)],
                "2001:db8:9::9",
                "2001:db8:20::9",
                Some("2001:db8:9::1"),
            ),
            (
                "rule 6: a global address for a global destination",
                vec![at(global), at("fd00:9::1/64")],
                "fe80::2",
                "2001:db8:20::9",
                Some("2001:db8:9::1"),
            ),
            (
                "rule 6 comes before the next hop's network",
                vec![at(global), at("fd00:9::1/64")],
                "fd00:9::2",
                "2001:db8:20::9",
                Some("2001:db8:9::1"),
            ),
            (
                "rule 6: a local address for a local destination",
                vec![at(global), at("fd00:9::1/64")],
                "fe80::2",
                "fd00:20::9",
                Some("fd00:9::1"),
            ),
            (
                "rule 7: the stable address",
                vec![temporary("2001:db8:20::7/64"), at(global)],
                "fe80::2",
                "2001:db8:20::9",
                Some("2001:db8:9::1"),
            ),
            (
                "the network of the next hop",
                vec![at("2001:db8:20::7/64"), at(global)],
                "2001:db8:9::9",
                "2001:db8:20::9",
                Some("2001:db8:9::1"),
            ),
            (
                "rule 8: the longest match",
                vec![at("2001:db8:20::7/64"), at(global)],
                "fe80::2",
                "2001:db8:20::9",
                Some("2001:db8:20::7"),
            ),
            (
                "rule 2: a link-local address for a link-local destination alone",
                vec![at("fe80::1/64"), at(global)],
                "fe80::2",
                "fe80::9",
                Some("fe80::1"),
            ),
            (
                "a link-local address is no source for others",
                vec![at("fe80::1/64")],
                "fe80::2",
                "2001:db8:20::9",
                None,
            ),
        ];
        for (what, addresses, endpoint, behind, expected) in cases {
            let found = chosen(addresses, endpoint, behind);
            assert_eq!(found.as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn the_newest_of_two_equal_ones() {
        let newer = Address {
            created: 7,
            ..at("2001:db8:9::b/64")
        };
        let found = chosen(
            vec![at("2001:db8:9::1/64"), newer],
            "2001:db8:9::2",
            "2001:db8:20::9",
        );
        assert_eq!(found.as_deref(), Some("2001:db8:9::b"));
    }
}

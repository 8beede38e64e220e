//! Routes and interfaces: RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE and RTM_GETLINK in bytes (pure).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    nexthop::{Family, Hop, ONLINK, Put},
    plan::{Lead, Link, RouteKey},
    wire::{Request, address, attributes, flag, text, u32_of},
};
use crate::net::exchange::{HEADER_LEN, u16_at};

/// Bytes of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// Bytes of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;
/// `RT_SCOPE_NOWHERE`: of a deletion, any scope.
const ANY_SCOPE: u8 = 255;
/// `RT_SCOPE_LINK`: what is reached without a gateway.
const SCOPE_LINK: u8 = 253;
/// `RTN_UNICAST`
const UNICAST: u8 = 1;

/// Types of interfaces (linux/if_arp.h) that libc does not have.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;

/// Types of messages (linux/rtnetlink.h).
pub mod kind {
    /// `RTM_NEWLINK`
    pub const NEW_LINK: u16 = 16;
    /// `RTM_DELLINK`
    pub const DELETE_LINK: u16 = 17;
    /// `RTM_GETLINK`
    pub const GET_LINK: u16 = 18;
    /// `RTM_NEWROUTE`
    pub const NEW_ROUTE: u16 = 24;
    /// `RTM_DELROUTE`
    pub const DELETE_ROUTE: u16 = 25;
    /// `RTM_GETROUTE`
    pub const GET_ROUTE: u16 = 26;
}

/// Multicast groups of notifications about interfaces, IPv4 and IPv6 routes (`RTNLGRP_*`).
pub const NOTIFICATIONS: [u32; 3] = [1, 7, 11];

/// Attributes of routes (linux/rtnetlink.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const MULTIPATH: u16 = 9;
    pub(super) const TABLE: u16 = 15;
    pub(super) const VIA: u16 = 18;
    pub(super) const NH_ID: u16 = 30;
}

/// Attributes of interfaces (linux/if_link.h).
mod link_attribute {
    pub(super) const NAME: u16 = 3;
    pub(super) const EXT_MASK: u16 = 29;
    pub(super) const PROPERTIES: u16 = 52;
    /// Within `PROPERTIES`.
    pub(super) const ALTERNATIVE: u16 = 53;
    /// `RTEXT_FILTER_SKIP_STATS`
    pub(super) const SKIP_STATS: u32 = 8;
}

/// A route as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What identifies it.
    pub key: RouteKey,
    /// What made it (`RTPROT_*`).
    pub protocol: u8,
    /// Where it leads.
    pub lead: Lead,
    /// The interface by which it leads, if it has a next hop of its own.
    pub interface: Option<u32>,
    /// Its type (`RTN_*`).
    pub kind: u8,
}

fn family(prefix: &IpNet) -> Family {
    match prefix {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

/// `struct rtmsg`. The table has an attribute of its own, since it may not fit into a byte.
fn header(prefix: &IpNet, protocol: u8, scope: u8, kind: u8, flags: u32) -> [u8; RTMSG_LEN] {
    let [a, b, c, d] = flags.to_ne_bytes();
    let family = family(prefix).number();
    let len = prefix.prefix_len();
    [family, len, 0, 0, 0, protocol, scope, kind, a, b, c, d]
}

fn keyed(request: Request, key: &RouteKey) -> Request {
    request
        .address(attribute::DESTINATION, key.prefix.network())
        .attribute(attribute::TABLE, &key.table.to_ne_bytes())
        .attribute(attribute::PRIORITY, &key.metric.to_ne_bytes())
}

/// A request for a route that leads there. A new one is refused if there is one of this key, also one of another program; an old one is
/// replaced at once.
pub fn put(key: &RouteKey, lead: Lead, protocol: u8, put: Put) -> Vec<u8> {
    let flags = match put {
        Put::Create => flag::CREATE | flag::EXCLUSIVE,
        Put::Replace => flag::REPLACE,
    };
    let (scope, of_hop) = match lead {
        Lead::Hop(Hop::Interface(..)) => (SCOPE_LINK, 0),
        Lead::Hop(Hop::Gateway(..)) => (0, ONLINK),
        Lead::Hop(Hop::Blackhole(_)) | Lead::Group(_) | Lead::Other => (0, 0),
    };
    let header = header(&key.prefix, protocol, scope, UNICAST, of_hop);
    let request = keyed(Request::new(kind::NEW_ROUTE, flags, &header), key);
    let request = match lead {
        Lead::Group(id) => request.attribute(attribute::NH_ID, &id.to_ne_bytes()),
        Lead::Hop(Hop::Interface(_, index)) => {
            request.attribute(attribute::OIF, &index.to_ne_bytes())
        }
        Lead::Hop(Hop::Gateway(gateway, index)) => {
            let request = request.attribute(attribute::OIF, &index.to_ne_bytes());
            match (key.prefix, gateway) {
                // `struct rtvia`: a gateway of another family.
                (IpNet::V4(_), IpAddr::V6(gateway)) => {
                    let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
                    via.extend(gateway.octets());
                    request.attribute(attribute::VIA, &via)
                }
                _ => request.address(attribute::GATEWAY, gateway),
            }
        }
        Lead::Hop(Hop::Blackhole(_)) | Lead::Other => request,
    };
    request.finish()
}

/// A request to remove a route of this protocol.
pub fn delete(key: &RouteKey, protocol: u8) -> Vec<u8> {
    let header = header(&key.prefix, protocol, ANY_SCOPE, 0, 0);
    keyed(Request::new(kind::DELETE_ROUTE, 0, &header), key).finish()
}

/// A request for all routes of a family, or of one protocol of it, which the kernel filters by if the socket asks for strict checks.
pub fn list(family: Family, protocol: u8) -> Vec<u8> {
    let mut header = [0; RTMSG_LEN];
    header[0] = family.number();
    header[5] = protocol;
    Request::new(kind::GET_ROUTE, 0, &header).finish()
}

/// A request for the way to one address.
pub fn look_up(to: IpAddr) -> Vec<u8> {
    let header = header(&IpNet::from(to), 0, 0, 0, 0);
    Request::new(kind::GET_ROUTE, 0, &header)
        .address(attribute::DESTINATION, to)
        .finish()
}

/// The route that an answer or a notification is about, with whether it is gone; `None` of other messages.
pub fn read(message: &[u8]) -> Option<(Route, bool)> {
    let is_gone = match u16_at(message, 4)? {
        kind::NEW_ROUTE => false,
        kind::DELETE_ROUTE => true,
        _ => return None,
    };
    let header = message.get(HEADER_LEN..HEADER_LEN + RTMSG_LEN)?;
    let (len, protocol, kind) = (header[1], header[5], header[7]);
    let unspecified = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut destination, mut table, mut metric) = (unspecified, u32::from(header[4]), 0);
    let (mut oif, mut gateway, mut group, mut is_multipath) = (None, None, None, false);
    for (kind, value) in attributes(message.get(HEADER_LEN + RTMSG_LEN..)?) {
        match kind {
            attribute::DESTINATION => destination = address(value)?,
            attribute::TABLE => table = u32_of(value)?,
            attribute::PRIORITY => metric = u32_of(value)?,
            attribute::OIF => oif = u32_of(value),
            attribute::GATEWAY => gateway = address(value),
            attribute::VIA => gateway = address(value.get(2..)?),
            attribute::NH_ID => group = u32_of(value),
            attribute::MULTIPATH => is_multipath = true,
            _ => {}
        }
    }
    let prefix = match destination {
        IpAddr::V4(address) => Ipv4Net::new(address, len).ok()?.into(),
        IpAddr::V6(address) => Ipv6Net::new(address, len).ok()?.into(),
    };
    let family = family(&prefix);
    let lead = match (group, oif, gateway) {
        (Some(id), _, _) => Lead::Group(id),
        _ if is_multipath || kind != UNICAST => Lead::Other,
        (None, Some(index), Some(gateway)) => Lead::Hop(Hop::Gateway(gateway, index)),
        (None, Some(index), None) => Lead::Hop(Hop::Interface(family, index)),
        (None, None, _) => Lead::Other,
    };
    let key = RouteKey {
        prefix,
        table,
        metric,
    };
    let route = Route {
        key,
        protocol,
        lead,
        interface: oif.filter(|_| group.is_none()),
        kind,
    };
    Some((route, is_gone))
}

impl Route {
    /// The interface by which the address of a look-up is reached without a router in between.
    pub fn on_link(&self) -> Option<u32> {
        match self.lead {
            Lead::Hop(Hop::Interface(_, index)) if self.kind == UNICAST => Some(index),
            _ => None,
        }
    }
}

/// A request for all interfaces, without their counters.
pub fn links() -> Vec<u8> {
    Request::new(kind::GET_LINK, 0, &[0; IFINFOMSG_LEN])
        .attribute(
            link_attribute::EXT_MASK,
            &link_attribute::SKIP_STATS.to_ne_bytes(),
        )
        .finish()
}

/// The interface that an answer or a notification is about, with its index and whether it is gone; `None` of other messages.
pub fn read_link(message: &[u8]) -> Option<(u32, Link, bool)> {
    let is_gone = match u16_at(message, 4)? {
        kind::NEW_LINK => false,
        kind::DELETE_LINK => true,
        _ => return None,
    };
    let header = message.get(HEADER_LEN..HEADER_LEN + IFINFOMSG_LEN)?;
    // Messages of bridges about their ports have the same type.
    if header[0] != libc::AF_UNSPEC as u8 {
        return None;
    }
    let flags = u32_of(&header[8..12])?;
    let needed = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
    let mut names = Vec::new();
    for (kind, value) in attributes(message.get(HEADER_LEN + IFINFOMSG_LEN..)?) {
        match kind {
            link_attribute::NAME => names.insert(0, text(value)),
            link_attribute::PROPERTIES => {
                let alternatives = attributes(value)
                    .filter(|(kind, _)| *kind == link_attribute::ALTERNATIVE)
                    .map(|(_, name)| text(name));
                names.extend(alternatives);
            }
            _ => {}
        }
    }
    let link = Link {
        names,
        is_usable: flags & needed == needed,
        has_gateways: has_gateways(u16_at(header, 2)?),
    };
    Some((u32_of(&header[4..8])?, link, is_gone))
}

/// Whether packets need a gateway's MAC address on an interface of this type: all but those whose driver takes a bare IP packet
/// (`dev_is_mac_header_xmit`).
const fn has_gateways(kind: u16) -> bool {
    !matches!(
        kind,
        libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT
            | libc::ARPHRD_IPGRE
            | ARPHRD_IP6GRE
            | libc::ARPHRD_NONE
            | ARPHRD_RAWIP
            | libc::ARPHRD_PPP
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str) -> RouteKey {
        RouteKey {
            prefix: prefix.parse().expect("a prefix"),
            table: 300,
            metric: 7,
        }
    }

    #[test]
    fn a_route_is_laid_out_as_the_kernel_reads_it() {
        let bytes = put(&key("10.5.0.0/16"), Lead::Group(4_000), 116, Put::Create);
        let expected = [
            &[60, 0, 0, 0, 24, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..],
            // rtmsg: family, destination and source length, TOS, table, protocol, scope, type, flags.
            &[2, 16, 0, 0, 0, 116, 0, 1, 0, 0, 0, 0],
            &[8, 0, 1, 0, 10, 5, 0, 0],
            &[8, 0, 15, 0, 44, 1, 0, 0],
            &[8, 0, 6, 0, 7, 0, 0, 0],
            &[8, 0, 30, 0, 0xa0, 0x0f, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn routes_are_read_as_they_are_written() {
        let v6 = "2001:db8:9::2".parse().expect("an address");
        for (prefix, lead) in [
            ("10.5.0.0/16", Lead::Group(4_000)),
            (
                "10.5.0.0/16",
                Lead::Hop(Hop::Gateway([10, 9, 0, 2].into(), 3)),
            ),
            ("10.5.0.0/16", Lead::Hop(Hop::Gateway(v6, 3))),
            ("10.5.0.0/16", Lead::Hop(Hop::Interface(Family::V4, 3))),
            ("0.0.0.0/0", Lead::Group(1)),
            ("::/0", Lead::Group(1)),
            ("2001:db8::/32", Lead::Hop(Hop::Gateway(v6, 3))),
            ("2001:db8::/32", Lead::Hop(Hop::Interface(Family::V6, 3))),
        ] {
            let bytes = put(&key(prefix), lead, 116, Put::Replace);
            let (route, is_gone) = read(&bytes).expect("a route");
            assert!(!is_gone);
            assert_eq!((route.key, route.lead), (key(prefix), lead), "{prefix}");
            assert_eq!(route.protocol, 116);
        }
        let (route, is_gone) = read(&delete(&key("10.5.0.0/16"), 116)).expect("a route");
        assert!(is_gone);
        assert_eq!((route.key, route.protocol), (key("10.5.0.0/16"), 116));
    }

    proptest::proptest! {
        /// Whatever the bytes are, nothing panics.
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 16_u16..26) {
            let mut bytes = bytes;
            if bytes.len() >= 6 {
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = (read(&bytes), read_link(&bytes));
        }
    }
}

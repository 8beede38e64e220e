//! Next-hop objects of the kernel (`linux/nexthop.h`): RTM_NEWNEXTHOP, RTM_DELNEXTHOP and RTM_GETNEXTHOP in bytes (pure).
//!
//! A route may refer to a next-hop object by its id instead of having gateways of its own. A group is such an object too: replacing
//! it is one message, and every route that refers to it follows at once. `netlink-packet-route` has no types for these messages.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::wire::{NESTED, Request, address, attribute, attributes, flag, u32_of};
use crate::net::exchange::{HEADER_LEN, u16_at};

/// Bytes of `struct nhmsg`.
const NHMSG_LEN: usize = 8;
/// Bytes of `struct nexthop_grp`.
const ENTRY_LEN: usize = 8;
/// Ticks a second of `clock_t` in messages (`USER_HZ`), in which the timers of resilient groups are given.
const USER_HZ: u64 = 100;
/// `RTNH_F_ONLINK` (linux/rtnetlink.h): the gateway is on the interface, whatever addresses that has.
pub const ONLINK: u32 = 4;
/// Multicast group of notifications about next-hop objects (`RTNLGRP_NEXTHOP`).
pub const NOTIFICATIONS: u32 = 32;
/// The greatest weight that every kernel with next-hop groups takes.
pub const WEIGHT_MAX: u16 = 256;

/// Types of messages (linux/rtnetlink.h).
pub mod kind {
    /// `RTM_NEWNEXTHOP`
    pub const NEW: u16 = 104;
    /// `RTM_DELNEXTHOP`
    pub const DELETE: u16 = 105;
    /// `RTM_GETNEXTHOP`
    pub const GET: u16 = 106;
}

/// Attributes (linux/nexthop.h).
mod attribute {
    pub(super) const ID: u16 = 1;
    pub(super) const GROUP: u16 = 2;
    pub(super) const GROUP_TYPE: u16 = 3;
    pub(super) const BLACKHOLE: u16 = 4;
    pub(super) const OIF: u16 = 5;
    pub(super) const GATEWAY: u16 = 6;
    pub(super) const FDB: u16 = 11;
    pub(super) const RES_GROUP: u16 = 12;

    /// Within `RES_GROUP`.
    pub(super) const BUCKETS: u16 = 1;
    pub(super) const IDLE_TIMER: u16 = 2;
    pub(super) const UNBALANCED_TIMER: u16 = 3;
}

/// `NEXTHOP_GRP_TYPE_RES` (linux/nexthop.h).
const RESILIENT: u16 = 1;

/// The family of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }
}

/// Where a single next hop leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Hop {
    /// To a gateway on an interface.
    Gateway(IpAddr, u32),
    /// Out of an interface that needs no gateway, such as a tunnel without Ethernet header.
    Interface(Family, u32),
    /// Nowhere: packets are dropped silently.
    Blackhole(Family),
}

impl Display for Hop {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway, index) => write!(f, "via {gateway} on interface {index}"),
            Self::Interface(_, index) => write!(f, "out of interface {index}"),
            Self::Blackhole(_) => f.write_str("that drops packets"),
        }
    }
}

/// The timers and the size of a resilient group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resilient {
    /// Number of buckets, into which flows fall by their hash.
    pub buckets: u16,
    /// How long a bucket must see no packet before it may go to another next hop.
    pub idle_timer: Duration,
    /// How long the group may stay unbalanced before buckets move although they are in use; zero: for ever.
    pub unbalanced_timer: Duration,
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Id of the next hop.
    pub id: u32,
    /// Its share, from 1.
    pub weight: u16,
}

/// A group of next hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// In the kernel's order.
    pub entries: Vec<Entry>,
    /// Present if it is resilient.
    pub resilient: Option<Resilient>,
}

/// What a next-hop object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A single next hop.
    Hop(Hop),
    /// A group.
    Group(Group),
    /// Something else: one for a forwarding database, or of a kind that these messages do not make.
    Other,
}

/// A next-hop object as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Its id.
    pub id: u32,
    /// What made it (`RTPROT_*`).
    pub protocol: u8,
    /// What it is.
    pub what: What,
}

/// `struct nhmsg`: family, scope, which must be zero in requests, protocol, and flags of the next hop.
fn header(family: u8, protocol: u8, flags: u32) -> [u8; NHMSG_LEN] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, 0, protocol, 0, a, b, c, d]
}

/// A request for a new single next hop whose id the kernel chooses. The answer, by the flag for an echo, has the id.
pub fn create(hop: Hop, protocol: u8) -> Vec<u8> {
    let flags = flag::CREATE | flag::EXCLUSIVE | flag::ECHO;
    let new = |family: Family, of_hop| {
        Request::new(kind::NEW, flags, &header(family.number(), protocol, of_hop))
    };
    match hop {
        Hop::Gateway(gateway, ifindex) => {
            let request = new(Family::of(gateway), ONLINK);
            let request = request.attribute(attribute::OIF, &ifindex.to_ne_bytes());
            request.address(attribute::GATEWAY, gateway)
        }
        Hop::Interface(family, ifindex) => {
            new(family, 0).attribute(attribute::OIF, &ifindex.to_ne_bytes())
        }
        Hop::Blackhole(family) => new(family, 0).attribute(attribute::BLACKHOLE, &[]),
    }
    .finish()
}

/// How a group of an id is to come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// There must be no object of this id.
    Create,
    /// There must be a group of this id, whose content is replaced at once.
    Replace,
}

/// A request for a group of this id with this content.
pub fn put_group(id: u32, group: &Group, protocol: u8, put: Put) -> Vec<u8> {
    let flags = match put {
        Put::Create => flag::CREATE | flag::EXCLUSIVE,
        Put::Replace => flag::REPLACE,
    };
    let mut entries = Vec::with_capacity(group.entries.len() * ENTRY_LEN);
    for entry in &group.entries {
        entries.extend(entry.id.to_ne_bytes());
        // The kernel keeps the weight less one in a byte; the byte after it is for weights above 256, from Linux 6.12 on.
        let weight = entry.weight.clamp(1, WEIGHT_MAX) - 1;
        entries.extend([weight as u8, 0, 0, 0]);
    }
    let request = Request::new(
        kind::NEW,
        flags,
        &header(libc::AF_UNSPEC as u8, protocol, 0),
    );
    let request = request
        .attribute(attribute::ID, &id.to_ne_bytes())
        .attribute(attribute::GROUP, &entries);
    let request = match &group.resilient {
        None => request,
        Some(resilient) => {
            let mut nested = Vec::new();
            attribute(
                &mut nested,
                attribute::BUCKETS,
                &resilient.buckets.to_ne_bytes(),
            );
            for (kind, timer) in [
                (attribute::IDLE_TIMER, resilient.idle_timer),
                (attribute::UNBALANCED_TIMER, resilient.unbalanced_timer),
            ] {
                attribute(&mut nested, kind, &ticks(timer).to_ne_bytes());
            }
            request
                .attribute(attribute::GROUP_TYPE, &RESILIENT.to_ne_bytes())
                .attribute(attribute::RES_GROUP | NESTED, &nested)
        }
    };
    request.finish()
}

/// A time in ticks of `clock_t`.
fn ticks(time: Duration) -> u32 {
    let ticks = time.as_millis() * u128::from(USER_HZ) / 1_000;
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// A request to delete an object. The kernel takes it out of groups, and deletes groups that it was the last of, with their routes.
pub fn delete(id: u32) -> Vec<u8> {
    Request::new(kind::DELETE, 0, &header(libc::AF_UNSPEC as u8, 0, 0))
        .attribute(attribute::ID, &id.to_ne_bytes())
        .finish()
}

/// A request for all objects.
pub fn list() -> Vec<u8> {
    Request::new(kind::GET, 0, &header(libc::AF_UNSPEC as u8, 0, 0)).finish()
}

/// The object that an answer or a notification is about, with whether it is gone; `None` of other messages.
pub fn read(message: &[u8]) -> Option<(NextHop, bool)> {
    let is_gone = match u16_at(message, 4)? {
        kind::NEW => false,
        kind::DELETE => true,
        _ => return None,
    };
    let family = match i32::from(*message.get(HEADER_LEN)?) {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    };
    let protocol = *message.get(HEADER_LEN + 2)?;
    let (mut id, mut oif, mut gateway, mut entries, mut group_type) = (None, None, None, None, 0);
    let (mut is_blackhole, mut is_other, mut resilient) = (false, false, None);
    for (kind, value) in attributes(message.get(HEADER_LEN + NHMSG_LEN..)?) {
        match kind {
            attribute::ID => id = u32_of(value),
            attribute::OIF => oif = u32_of(value),
            attribute::GATEWAY => gateway = address(value),
            attribute::BLACKHOLE => is_blackhole = true,
            attribute::GROUP => entries = Some(entries_of(value)),
            attribute::GROUP_TYPE => group_type = u16_at(value, 0)?,
            attribute::RES_GROUP => resilient = Some(resilient_of(value)),
            attribute::FDB => is_other = true,
            _ => {}
        }
    }
    let what = match (entries, family) {
        _ if is_other => What::Other,
        (Some(entries), _) => What::Group(Group {
            entries,
            resilient: resilient.filter(|_| group_type == RESILIENT),
        }),
        (None, Some(family)) if is_blackhole => What::Hop(Hop::Blackhole(family)),
        (None, Some(family)) => match (gateway, oif) {
            (Some(gateway), Some(ifindex)) => What::Hop(Hop::Gateway(gateway, ifindex)),
            (None, Some(ifindex)) => What::Hop(Hop::Interface(family, ifindex)),
            (_, None) => What::Other,
        },
        (None, None) => What::Other,
    };
    let id = id?;
    let object = NextHop { id, protocol, what };
    Some((object, is_gone))
}

fn entries_of(value: &[u8]) -> Vec<Entry> {
    let entries = value.chunks_exact(ENTRY_LEN).map(|entry| Entry {
        id: u32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]),
        weight: u16::from_le_bytes([entry[4], entry[5]]).saturating_add(1),
    });
    entries.collect()
}

fn resilient_of(value: &[u8]) -> Resilient {
    let (mut buckets, mut idle, mut unbalanced) = (0, 0, 0);
    for (kind, value) in attributes(value) {
        match kind {
            attribute::BUCKETS => buckets = u16_at(value, 0).unwrap_or_default(),
            attribute::IDLE_TIMER => idle = u32_of(value).unwrap_or_default(),
            attribute::UNBALANCED_TIMER => unbalanced = u32_of(value).unwrap_or_default(),
            _ => {}
        }
    }
    let time = |ticks: u32| Duration::from_millis(u64::from(ticks) * 1_000 / USER_HZ);
    Resilient {
        buckets,
        idle_timer: time(idle),
        unbalanced_timer: time(unbalanced),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a little-endian machine, as every supported one is.
    #[test]
    fn a_gateway_is_laid_out_as_the_kernel_reads_it() {
        let bytes = create(Hop::Gateway([10, 9, 0, 2].into(), 7), 116);
        let expected = [
            // nlmsghdr: length, type, flags (create, exclusive, echo), sequence, port.
            &[40, 0, 0, 0, 104, 0, 0x08, 0x06, 0, 0, 0, 0, 0, 0, 0, 0][..],
            // nhmsg: family, scope, protocol, reserved, flags.
            &[2, 0, 116, 0, 4, 0, 0, 0],
            // NHA_OIF, NHA_GATEWAY.
            &[8, 0, 5, 0, 7, 0, 0, 0],
            &[8, 0, 6, 0, 10, 9, 0, 2],
        ];
        assert_eq!(bytes, expected.concat());
        let bytes = create(Hop::Blackhole(Family::V6), 116);
        assert_eq!(bytes[16..], [10, 0, 116, 0, 0, 0, 0, 0, 4, 0, 4, 0]);
    }

    #[test]
    fn a_group_is_laid_out_as_the_kernel_reads_it() {
        let group = Group {
            entries: vec![
                Entry { id: 5, weight: 1 },
                Entry {
                    id: 0x0102,
                    weight: 256,
                },
            ],
            resilient: Some(Resilient {
                buckets: 128,
                idle_timer: Duration::from_secs(60),
                unbalanced_timer: Duration::from_millis(1_500),
            }),
        };
        let bytes = put_group(4_000, &group, 116, Put::Replace);
        let expected = [
            &[88, 0, 0, 0, 104, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 116, 0, 0, 0, 0, 0],
            &[8, 0, 1, 0, 0xa0, 0x0f, 0, 0],
            &[
                20, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 255, 0, 0, 0,
            ],
            &[6, 0, 3, 0, 1, 0, 0, 0],
            &[28, 0, 12, 0x80],
            &[6, 0, 1, 0, 128, 0, 0, 0],
            &[8, 0, 2, 0, 0x70, 0x17, 0, 0],
            &[8, 0, 3, 0, 150, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        let plain = Group {
            resilient: None,
            ..group.clone()
        };
        let bytes = put_group(4_000, &plain, 116, Put::Create);
        assert_eq!(bytes[..8], [52, 0, 0, 0, 104, 0, 0, 6]);

        // What is written is what is read.
        for group in [group, plain] {
            let bytes = put_group(4_000, &group, 116, Put::Replace);
            let (object, is_gone) = read(&bytes).expect("a message");
            assert!(!is_gone);
            assert_eq!((object.id, object.protocol), (4_000, 116));
            assert_eq!(object.what, What::Group(group));
        }
    }

    #[test]
    fn single_next_hops_are_read_as_they_are_written() {
        let v6 = "2001:db8:9::2".parse().expect("an address");
        for hop in [
            Hop::Gateway([10, 9, 0, 2].into(), 7),
            Hop::Gateway(v6, 7),
            Hop::Interface(Family::V4, 9),
            Hop::Interface(Family::V6, 9),
            Hop::Blackhole(Family::V4),
            Hop::Blackhole(Family::V6),
        ] {
            let mut bytes = create(hop, 116);
            attribute(&mut bytes, attribute::ID, &3_u32.to_ne_bytes());
            let (object, _) = read(&bytes).expect("a message");
            assert_eq!(object.what, What::Hop(hop));
            assert_eq!(object.id, 3);
        }
        let (gone, is_gone) = read(&delete(77)).expect("a message");
        assert!(is_gone);
        assert_eq!(gone.id, 77);
    }

    proptest::proptest! {
        /// Whatever the bytes are, nothing panics, and what has no id is no object.
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 104_u16..106) {
            let mut bytes = bytes;
            if bytes.len() >= 6 {
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = read(&bytes);
        }
    }
}

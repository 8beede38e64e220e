//! What the kernel tells unasked, read by a thread that waits for nothing else, and kept until the daemon's loop takes it: one
//! message for each interface, address and neighbour at most, and one mark for all routes.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::LinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_GENERIC, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{setsockopt, sockopt},
    },
};
use tokio::sync::Notify;

use super::{
    exchange::{DATAGRAM_MAX, HEADER_LEN, messages, u16_at, u32_at},
    netdev::{self, Family},
};
use crate::error::full;
use crate::host::{privileges, realtime};
use crate::plan::observed::RouteKey;

/// Receive buffer of each socket, bytes of the kernel's memory: some 3,000 RTM_NEWLINK of Linux 6.18.
const BUFFER: usize = 8 << 20;

/// So many changes are kept; more make everything be read again.
const KEPT_MAX: usize = 65_536;

/// Changes that concern nothing are taken once there are so many.
const IDLE_MAX: usize = 4_096;

/// Groups of changes that are always followed: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV6_IFADDR (linux/rtnetlink.h).
const GROUPS: [u32; 4] = [1, 3, 5, 9];

/// Groups that are followed while a way out is found by route: RTNLGRP_IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE, _IPV6_RULE,
/// _NEXTHOP. Routes that a next-hop object leads elsewhere are not told of one by one.
const ROUTE_GROUPS: [u32; 5] = [7, 8, 11, 19, 32];

/// Types of messages (linux/rtnetlink.h).
mod kind {
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const DEL_LINK: u16 = 17;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const DEL_ADDRESS: u16 = 21;
    pub(super) const NEW_NEIGHBOUR: u16 = 28;
    pub(super) const DEL_NEIGHBOUR: u16 = 29;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const DEL_ROUTE: u16 = 25;
    pub(super) const NEW_RULE: u16 = 32;
    pub(super) const DEL_RULE: u16 = 33;
    pub(super) const NEW_NEXTHOP: u16 = 104;
    pub(super) const DEL_NEXTHOP: u16 = 105;
}

/// `RTM_F_CLONED`: an entry of the route cache.
const CLONED: u32 = 0x200;
/// `RTA_DST`.
const A_DESTINATION: u16 = 1;
/// Bytes of `struct rtmsg`.
const RTMSG_LEN: usize = 12;

/// What a change is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// An interface.
    Link(u32),
    /// An address: interface, prefix length, IFA_LOCAL, IFA_ADDRESS.
    Address(u32, u8, Option<IpAddr>, Option<IpAddr>),
    /// A neighbour entry.
    Neighbour(u32, IpAddr),
    /// What a device can do with XDP.
    Features(u32),
}

/// The last that the kernel told of a [`Key`].
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// An interface; with the mark that one of the same index went before it.
    Link {
        /// What it is now; `None` if it is gone.
        now: Option<Box<LinkMessage>>,
        /// True if one of the same index went.
        went: bool,
    },
    /// An address, and whether it is there.
    Address(AddressMessage, bool),
    /// A neighbour entry, and whether it is there.
    Neighbour(NeighbourMessage, bool),
}

/// Reads an interface; `None` for that of a protocol family: a port that leaves its bridge is told as deleted there.
fn link(message: LinkMessage, is_there: bool) -> Option<(Key, Change)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let key = Key::Link(message.header.index);
    let now = is_there.then(|| Box::new(message));
    Some((
        key,
        Change::Link {
            now,
            went: !is_there,
        },
    ))
}

fn address(message: AddressMessage, is_there: bool) -> (Key, Change) {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let header = &message.header;
    let key = Key::Address(header.index, header.prefix_len, local, address);
    (key, Change::Address(message, is_there))
}

fn neighbour(message: NeighbourMessage, is_there: bool) -> Option<(Key, Change)> {
    // A VXLAN's forwarding entries have IP addresses too, in the bridge's family.
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return None;
    }
    let ip = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        })?;
    let key = Key::Neighbour(message.header.ifindex, ip);
    Some((key, Change::Neighbour(message, is_there)))
}

/// Reads a change of an interface, an address or a neighbour entry.
pub(super) fn change(message: &[u8]) -> Option<(Key, Change)> {
    if !matches!(
        u16_at(message, 4)?,
        kind::NEW_LINK
            | kind::DEL_LINK
            | kind::NEW_ADDRESS
            | kind::DEL_ADDRESS
            | kind::NEW_NEIGHBOUR
            | kind::DEL_NEIGHBOUR
    ) {
        return None;
    }
    let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    let NetlinkPayload::InnerMessage(inner) = read
        .inspect_err(|error| tracing::debug!("cannot read a message of rtnetlink: {error}"))
        .ok()?
        .payload
    else {
        return None;
    };
    match inner {
        RouteNetlinkMessage::NewLink(message) => link(message, true),
        RouteNetlinkMessage::DelLink(message) => link(message, false),
        RouteNetlinkMessage::NewAddress(message) => Some(address(message, true)),
        RouteNetlinkMessage::DelAddress(message) => Some(address(message, false)),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, true),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(message, false),
        _ => None,
    }
}

/// What is of interest to the daemon, so that other changes do not wake it.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Endpoints whose neighbour entries are followed.
    pub(super) endpoints: HashSet<IpAddr>,
    /// Endpoints to which a way out is found by route.
    routed: HashSet<IpAddr>,
    /// The networks of a prefix length in which those are, by IPv4 or not and length; made when first needed.
    networks: HashMap<(bool, u8), HashSet<u128>>,
}

/// An address as a number whose upper bits are the network.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn network(bits: u128, len: u8) -> u128 {
    match len {
        0 => 0,
        len => bits & (u128::MAX << (128 - u32::from(len.min(128)))),
    }
}

impl Interest {
    /// Follows the ways to these endpoints.
    pub(super) fn route(&mut self, routed: HashSet<IpAddr>) {
        self.networks.clear();
        self.routed = routed;
    }

    /// Follows the way to one endpoint more.
    pub(super) fn route_one(&mut self, endpoint: Option<IpAddr>) {
        if let Some(endpoint) = endpoint {
            self.networks.clear();
            self.routed.insert(endpoint);
        }
    }

    /// True if a routed endpoint is in this network: what else happens to routes does not lead elsewhere.
    fn is_routed(&mut self, is_ipv4: bool, destination: u128, len: u8) -> bool {
        let routed = &self.routed;
        let networks = self.networks.entry((is_ipv4, len)).or_insert_with(|| {
            let family = routed.iter().filter(|ip| ip.is_ipv4() == is_ipv4);
            family.map(|ip| network(bits(*ip), len)).collect()
        });
        networks.contains(&network(destination, len))
    }

    /// True if a message may change the way to a routed endpoint.
    fn is_of_a_way(&mut self, message: &[u8]) -> bool {
        if self.routed.is_empty() {
            return false;
        }
        match u16_at(message, 4) {
            Some(kind::NEW_ROUTE | kind::DEL_ROUTE) => {
                let (Some(&family), Some(&len)) =
                    (message.get(HEADER_LEN), message.get(HEADER_LEN + 1))
                else {
                    return false;
                };
                if u32_at(message, HEADER_LEN + 8).is_none_or(|flags| flags & CLONED != 0) {
                    return false;
                }
                let is_ipv4 = family == libc::AF_INET as u8;
                if !is_ipv4 && family != libc::AF_INET6 as u8 {
                    return false;
                }
                let attributes = message.get(HEADER_LEN + RTMSG_LEN..).unwrap_or_default();
                let destination = destination(attributes).unwrap_or(0);
                self.is_routed(is_ipv4, destination, len)
            }
            Some(kind::NEW_RULE | kind::DEL_RULE | kind::NEW_NEXTHOP | kind::DEL_NEXTHOP) => true,
            _ => false,
        }
    }
}

/// The destination of a route; `None` for the default route.
fn destination(mut attributes: &[u8]) -> Option<u128> {
    loop {
        let (len, kind) = (u16_at(attributes, 0)?, u16_at(attributes, 2)?);
        let value = attributes.get(4..usize::from(len))?;
        if kind == A_DESTINATION {
            let mut bytes = [0; 16];
            bytes.get_mut(..value.len())?.copy_from_slice(value);
            return Some(u128::from_be_bytes(bytes));
        }
        attributes = attributes.get(usize::from(len).next_multiple_of(4)..)?;
    }
}

/// Everything read anew.
#[derive(Debug, Default)]
pub(super) struct Reread {
    /// Interfaces, addresses and neighbours, in the kernel's order.
    pub(super) changes: Vec<(Key, Change)>,
    /// What devices can do with XDP.
    pub(super) features: HashMap<u32, Option<u64>>,
    /// False if something may be missing.
    pub(super) is_complete: bool,
}

/// The ways to endpoints as they were looked up.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The interface, or that there is none.
    pub(super) found: Vec<(RouteKey, Option<u32>)>,
    /// True if an answer was lost for good.
    pub(super) is_short: bool,
    /// How long it took.
    pub(super) took: std::time::Duration,
}

/// What the daemon's loop takes at once.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Changes, each with its place in the order of arrival.
    changes: HashMap<Key, (u64, Change)>,
    next: u64,
    /// What devices can do with XDP.
    pub(super) features: HashMap<u32, Option<u64>>,
    /// A routed endpoint may have another way.
    pub(super) is_unrouted: bool,
    /// How often notifications were lost.
    pub(super) lost: u64,
    /// Answers of the requests that the loop does not wait for.
    pub(super) reread: Option<Result<Reread, super::exchange::RequestError>>,
    /// As `reread`.
    pub(super) ways: Option<Ways>,
    /// Features were asked for, and are all here.
    pub(super) has_features: bool,
    /// Why no more comes.
    pub(super) closed: Option<String>,
}

impl Kept {
    /// The changes in the order of arrival.
    pub(super) fn take_changes(&mut self) -> Vec<(Key, Change)> {
        let mut changes: Vec<_> = std::mem::take(&mut self.changes).into_iter().collect();
        changes.sort_unstable_by_key(|(_, (at, _))| *at);
        let changes = changes.into_iter();
        changes.map(|(key, (_, change))| (key, change)).collect()
    }

    fn keep(&mut self, key: Key, mut change: Change) {
        self.next += 1;
        let mut at = self.next;
        if let Some((before_at, Change::Link { went: before, .. })) = self.changes.get(&key)
            && let Change::Link { now: Some(_), went } = &mut change
        {
            // Addresses told since belong to this interface: they come after it, and after one of the same index went.
            (*went, at) = (*went || *before, *before_at);
        }
        self.changes.insert(key, (at, change));
    }
}

#[derive(Debug, Default)]
struct Inner {
    kept: Kept,
    interest: Interest,
    /// What was told since everything is being read anew: of that, what is read is older.
    told: Option<HashSet<Key>>,
    is_woken: bool,
}

/// What the threads of netlink and the daemon's loop share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    wake: Notify,
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What a panic left is as good as lost notifications; the next change makes the loop look.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is kept, and lets the threads wake the loop again. Beside what was read anew stands what was told since
    /// that began; `None` if that is not known, which leaves what was read worth nothing.
    pub(super) fn take(&self) -> (Kept, Option<HashSet<Key>>) {
        let mut inner = self.inner();
        inner.is_woken = false;
        let kept = std::mem::take(&mut inner.kept);
        let told = match &kept.reread {
            Some(_) => inner.told.take(),
            None => None,
        };
        (kept, told)
    }

    /// Waits until something of interest is kept.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Changes what is of interest.
    pub(super) fn set_interest(&self, change: impl FnOnce(&mut Interest)) {
        change(&mut self.inner().interest);
    }

    /// Adds to what is kept, and wakes the loop.
    pub(super) fn add(&self, add: impl FnOnce(&mut Kept)) {
        let mut inner = self.inner();
        add(&mut inner.kept);
        self.wake(inner);
    }

    /// From now on, what is told is newer than what is read.
    pub(super) fn begin_reread(&self) {
        self.inner().told = Some(HashSet::new());
    }

    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        if !std::mem::replace(&mut inner.is_woken, true) {
            drop(inner);
            self.wake.notify_one();
        }
    }

    fn take_datagram(&self, datagram: &[u8]) {
        // Read in full before the lock is taken: the loop is not to wait for that.
        let mut changes = Vec::new();
        let mut others = false;
        for message in messages(datagram) {
            match change(message) {
                Some(change) => changes.push(change),
                None => others = true,
            }
        }
        let mut inner = self.inner();
        let mut is_of_interest = false;
        for (key, change) in changes {
            is_of_interest |= match &key {
                Key::Link(_) | Key::Address(..) => true,
                Key::Neighbour(_, ip) => inner.interest.endpoints.contains(ip),
                Key::Features(_) => false,
            };
            if let Some(told) = &mut inner.told {
                told.insert(key.clone());
            }
            inner.kept.keep(key, change);
        }
        if others && !inner.kept.is_unrouted {
            for message in messages(datagram) {
                if inner.interest.is_of_a_way(message) {
                    inner.kept.is_unrouted = true;
                    is_of_interest = true;
                }
            }
        }
        let told = inner.told.as_ref().map_or(0, HashSet::len);
        let kept = inner.kept.changes.len();
        if kept.max(told) > KEPT_MAX {
            // Both are bounded; whatever was in them is read again, also if it is being read now.
            inner.kept.changes.clear();
            inner.told = None;
            inner.kept.lost += 1;
            is_of_interest = true;
        }
        if is_of_interest || kept >= IDLE_MAX {
            self.wake(inner);
        }
    }

    fn take_device(&self, datagram: &[u8]) {
        let devices = messages(datagram).filter_map(netdev::device_of);
        let devices: Vec<_> = devices.collect();
        if devices.is_empty() {
            return;
        }
        let mut inner = self.inner();
        if let Some(told) = &mut inner.told {
            told.extend(devices.iter().map(|(ifindex, _)| Key::Features(*ifindex)));
        }
        inner.kept.features.extend(devices);
        self.wake(inner);
    }
}

/// The notification sockets, and the thread that reads them.
pub(super) struct Notifications {
    routes: Arc<Socket>,
    follows_routes: bool,
    stop: Arc<EventFd>,
}

impl Notifications {
    /// Subscribes to changes, which are in `shared` from then on.
    ///
    /// # Errors
    /// If the kernel gives no socket, or the system no thread.
    pub(super) fn start(shared: Arc<Shared>, family: Option<Family>) -> io::Result<Self> {
        Self::start_with(shared, family, BUFFER)
    }

    pub(super) fn start_with(
        shared: Arc<Shared>,
        family: Option<Family>,
        buffer: usize,
    ) -> io::Result<Self> {
        let routes = Arc::new(open(NETLINK_ROUTE, buffer)?);
        for group in GROUPS {
            routes.add_membership(group)?;
        }
        let devices = match family {
            Some(family) => {
                let devices = open(NETLINK_GENERIC, buffer)?;
                devices.add_membership(family.changes)?;
                Some(devices)
            }
            None => None,
        };
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        std::thread::Builder::new()
            .name("tracker-events".to_owned())
            .spawn({
                let (routes, stop) = (routes.clone(), stop.clone());
                move || {
                    realtime::block_signals();
                    if let Err(error) = privileges::limit_to_run() {
                        tracing::warn!("{}", full(&error));
                    }
                    if let Err(error) = follow(&routes, devices.as_ref(), &stop, &shared) {
                        let why = format!("cannot read notifications of netlink: {error}");
                        shared.add(|kept| kept.closed = Some(why));
                    }
                }
            })?;
        Ok(Self {
            routes,
            follows_routes: false,
            stop,
        })
    }

    /// Joins the groups of routes or leaves them.
    ///
    /// # Errors
    /// As the kernel answers.
    pub(super) fn follow_routes(&mut self, follow: bool) -> io::Result<()> {
        if self.follows_routes == follow {
            return Ok(());
        }
        for group in ROUTE_GROUPS {
            match follow {
                true => self.routes.add_membership(group)?,
                false => self.routes.drop_membership(group)?,
            }
        }
        self.follows_routes = follow;
        Ok(())
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        // It ends by itself; nothing of it outlasts the sockets.
        let _ = self.stop.write(1);
    }
}

fn open(protocol: isize, buffer: usize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // Without CAP_NET_ADMIN, as far as net.core.rmem_max goes.
    setsockopt(&socket, sockopt::RcvBufForce, &buffer)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &buffer))?;
    Ok(socket)
}

/// Reads both sockets until told to stop.
fn follow(
    routes: &Socket,
    devices: Option<&Socket>,
    stop: &EventFd,
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(DATAGRAM_MAX);
    loop {
        let fds = [stop.as_fd(), routes.as_fd()].into_iter();
        let fds = fds.chain(devices.map(Socket::as_fd));
        let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[0].any().unwrap_or(true) {
            return Ok(());
        }
        read(routes, &mut buffer, shared, |datagram| {
            shared.take_datagram(datagram);
        })?;
        if let Some(devices) = devices {
            read(devices, &mut buffer, shared, |datagram| {
                shared.take_device(datagram);
            })?;
        }
    }
}

/// Reads a socket until it is empty, or the other one had to wait long enough.
fn read(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    shared: &Shared,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    for _ in 0..256 {
        buffer.clear();
        match socket.recv(buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Ok(len) if len <= buffer.len() => take(buffer),
            // Too long for any buffer: as good as lost.
            Ok(_) => shared.add(|kept| kept.lost += 1),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(()),
                Some(libc::EINTR) => {}
                // The buffer was full.
                Some(libc::ENOBUFS) => shared.add(|kept| kept.lost += 1),
                _ => {
                    tracing::debug!("socket {}: {error}", socket.as_raw_fd());
                    return Err(error);
                }
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that is told before its interface has nowhere to be kept.
    #[test]
    fn a_new_interface_comes_before_its_addresses() {
        let mut kept = Kept::default();
        let up = || Change::Link {
            now: Some(Box::default()),
            went: false,
        };
        let address = Key::Address(3, 24, None, None);
        kept.keep(Key::Link(3), up());
        let there = Change::Address(AddressMessage::default(), true);
        kept.keep(address.clone(), there);
        // It is set up after it got its address.
        kept.keep(Key::Link(3), up());
        let changes = kept.take_changes().into_iter();
        let order: Vec<_> = changes.map(|(key, _)| key).collect();
        assert_eq!(order, [Key::Link(3), address]);
    }

    #[test]
    fn an_interface_that_went_and_came_again_keeps_its_new_addresses() {
        let mut kept = Kept::default();
        let link = |is_there: bool| Change::Link {
            now: is_there.then(Box::default),
            went: !is_there,
        };
        let address = Key::Address(3, 24, None, None);
        kept.keep(Key::Link(3), link(false));
        kept.keep(Key::Link(3), link(true));
        let there = Change::Address(AddressMessage::default(), true);
        kept.keep(address.clone(), there);
        // It is set up after it got its address.
        kept.keep(Key::Link(3), link(true));
        let changes = kept.take_changes().into_iter();
        let order: Vec<_> = changes
            .map(|(key, change)| (key, matches!(change, Change::Link { went: true, .. })))
            .collect();
        assert_eq!(order, [(Key::Link(3), true), (address, false)]);
    }
}

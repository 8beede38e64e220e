//! Neighbour entries of endpoints: what the kernel says of them, which of them are kept for Tracker, and requests to keep,
//! release and confirm one.
//!
//! An entry that an operator or another program made (permanent, NOARP, `extern_learn`, `managed`, or marked with a protocol) is
//! used and never changed. `__neigh_update` (net/core/neighbour.c, Linux 5.16 to 6.18) clears NUD_PERMANENT and NTF_EXT_LEARNED
//! for each request with NTF_EXT_MANAGED or NTF_USE, so such a request is made only for an entry that was read just before. Entries
//! that do not exist are made with NLM_F_EXCL, which is atomic. What is kept for Tracker bears [`PROTOCOL`], in the kernel: a later
//! daemon, and `cleanup` after a killed one, know it by that.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::{RouteProtocol, RouteType},
};

use super::{
    exchange::RequestError,
    observed::{Link, Observed},
    requests::Requests,
    rtnetlink::Netlink,
    solicit::Solicitor,
};

/// The routing protocol number (`NDA_PROTOCOL`, Linux 5.0) of the entries that are kept for Tracker, as of the routes that it
/// installs; `ip neigh` shows it as `proto 116`.
pub const PROTOCOL: u8 = 116;

/// How often at most an endpoint is solicited whose trackers get no reply.
const SOLICIT: Duration = Duration::from_secs(3);

/// How often at most a failed neighbour is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a change of a MAC address may explain a change of a verdict.
const EXPLAINS: Duration = Duration::from_secs(30);

/// How many requests are under way at a time.
const REQUESTS: usize = 32;

/// An interface and an address.
pub type Key = (u32, IpAddr);

/// What the neighbour table knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its MAC address.
    Resolved([u8; 6]),
    /// Its MAC address by an operator's or another program's word: the kernel does not ask for it (permanent, NOARP).
    Permanent([u8; 6]),
    /// The kernel is asking.
    Asking,
    /// The kernel asked and got no answer.
    Failed,
}

/// Whose an entry is, and so what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Kept for Tracker.
    Tracker,
    /// The kernel's own, made for the hub's traffic.
    Kernel,
    /// An operator's or another program's: never changed.
    Other,
}

/// An entry as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub neighbour: Neighbour,
    /// Whose it is.
    pub owner: Owner,
}

/// What to do to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Make it, if there is still none.
    Create,
    /// Have the kernel keep it resolved, or try again.
    Manage,
    /// Give it back to the kernel's ordinary care.
    GiveBack,
    /// Remove it: it never was resolved.
    Remove,
}

impl Entry {
    /// What keeps an endpoint resolved.
    fn to_keep(found: Option<Self>) -> Option<Change> {
        match found {
            None => Some(Change::Create),
            Some(entry) => match (entry.owner, entry.neighbour) {
                (Owner::Kernel, _) | (Owner::Tracker, Neighbour::Failed) => Some(Change::Manage),
                (Owner::Tracker | Owner::Other, _) => None,
            },
        }
    }

    /// What takes Tracker's part away.
    fn to_release(found: Option<Self>) -> Option<Change> {
        let entry = found.filter(|entry| entry.owner == Owner::Tracker)?;
        match entry.neighbour {
            Neighbour::Resolved(_) | Neighbour::Permanent(_) => Some(Change::GiveBack),
            Neighbour::Asking | Neighbour::Failed => Some(Change::Remove),
        }
    }

    /// Reads a message of the kernel's; `None` where it is not about an IPv4 or IPv6 neighbour.
    fn read(message: &NeighbourMessage) -> Option<(Key, Self)> {
        // A VXLAN's forwarding entries have IP addresses too, in the bridge family.
        if !matches!(
            message.header.family,
            AddressFamily::Inet | AddressFamily::Inet6
        ) {
            return None;
        }
        let mut ip = None;
        let mut mac = None;
        let mut protocol = 0;
        let mut more = NeighbourExtFlags::empty();
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    ip = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    ip = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
                }
                NeighbourAttribute::Protocol(by) => protocol = u8::from(*by),
                NeighbourAttribute::ExtFlags(flags) => more = *flags,
                _ => {}
            }
        }
        let state = message.header.state;
        let neighbour = match (state, mac) {
            (
                NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe,
                Some(mac),
            ) => Neighbour::Resolved(mac),
            (NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
                Neighbour::Permanent(mac)
            }
            (NeighbourState::Failed, _) => Neighbour::Failed,
            _ => Neighbour::Asking,
        };
        let is_static = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
        // A router's flag is the kernel's own: it comes from router advertisements.
        let is_flagged = message
            .header
            .flags
            .intersects(!(NeighbourFlags::Router | NeighbourFlags::Use));
        let owner = match (protocol, more.contains(NeighbourExtFlags::Managed)) {
            _ if is_static || is_flagged => Owner::Other,
            _ if more.intersects(!NeighbourExtFlags::Managed) => Owner::Other,
            (PROTOCOL, true) => Owner::Tracker,
            (PROTOCOL | UNSPECIFIED | BY_KERNEL, false) => Owner::Kernel,
            _ => Owner::Other,
        };
        Some(((message.header.ifindex, ip?), Self { neighbour, owner }))
    }
}

/// RTPROT_UNSPEC and RTPROT_KERNEL (linux/rtnetlink.h).
const UNSPECIFIED: u8 = 0;
const BY_KERNEL: u8 = 2;

/// How an endpoint's MAC address changed.
#[derive(Clone, Copy, Debug)]
struct Moved {
    from: [u8; 6],
    to: [u8; 6],
    at: Instant,
}

/// The neighbour entries of endpoints.
#[derive(Default)]
pub struct Neighbours {
    /// Those that are needed: kept for Tracker, or used as they are.
    needed: HashSet<Key>,
    /// The last MAC address known of each: good while the kernel asks anew, until it fails.
    last_macs: HashMap<Key, [u8; 6]>,
    /// The last MAC address seen of each, also after it failed.
    seen: HashMap<Key, [u8; 6]>,
    moved: HashMap<Key, Moved>,
    solicitor: Option<Solicitor>,
    solicited: HashMap<Key, Instant>,
    tried: HashMap<Key, Instant>,
    /// The kernel's table took no more entries.
    is_full: bool,
}

impl Neighbours {
    /// No entry yet. Opens a packet socket, which takes CAP_NET_RAW; without it endpoints are not solicited.
    pub fn new() -> Self {
        let solicitor = Solicitor::new();
        if let Err(error) = &solicitor {
            tracing::warn!(
                "cannot open a packet socket: {error}; a next hop that changes its MAC address without announcing it is found late"
            );
        }
        Self {
            solicitor: solicitor.ok(),
            ..Self::default()
        }
    }

    /// The last MAC address known of each endpoint.
    pub const fn last_macs(&self) -> &HashMap<Key, [u8; 6]> {
        &self.last_macs
    }

    /// Takes the MAC address of an endpoint from an earlier daemon.
    pub fn learn(&mut self, key: Key, mac: [u8; 6]) {
        self.last_macs.insert(key, mac);
        self.seen.insert(key, mac);
    }

    /// Forgets what was known of interfaces that went.
    pub fn forget(&mut self, gone: &HashSet<u32>) {
        self.last_macs
            .retain(|(ifindex, _), _| !gone.contains(ifindex));
    }

    /// Takes over what was observed of the entries that are needed.
    pub fn observe(&mut self, observed: &Observed) {
        for key in &self.needed {
            match observed.neighbours.get(key) {
                Some(Neighbour::Resolved(mac) | Neighbour::Permanent(mac)) => {
                    self.last_macs.insert(*key, *mac);
                    if let Some(from) = self.seen.insert(*key, *mac)
                        && from != *mac
                    {
                        let (to, at) = (*mac, Instant::now());
                        self.moved.insert(*key, Moved { from, to, at });
                    }
                }
                Some(Neighbour::Failed) => {
                    self.last_macs.remove(key);
                }
                Some(Neighbour::Asking) | None => {}
            }
        }
        let links = &observed.links;
        self.last_macs
            .retain(|(ifindex, _), _| links.get(ifindex).is_some_and(|link| link.is_running));
        self.moved.retain(|_, moved| moved.at.elapsed() < EXPLAINS);
    }

    /// Says how an endpoint's MAC address changed within the last 30 s.
    pub fn change(&self, key: Key) -> Option<String> {
        let Moved { from, to, at } = self.moved.get(&key)?;
        let text = |mac: &[u8; 6]| {
            let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            bytes.join(":")
        };
        (at.elapsed() < EXPLAINS).then(|| {
            let (from, to) = (text(from), text(to));
            format!("the MAC address of {} changed from {from} to {to}", key.1)
        })
    }

    /// Has the kernel keep the entries of these endpoints resolved, and releases those that are no longer needed.
    pub async fn keep(&mut self, netlink: &Netlink, needed: HashSet<Key>) {
        let there = &netlink.observed.neighbours;
        // An entry that the kernel dropped (interface down, `ip neigh flush`) is made anew.
        let keep: Vec<Key> = needed
            .iter()
            .filter(|key| !self.needed.contains(key) || !there.contains_key(key))
            .copied()
            .collect();
        let release: Vec<Key> = self.needed.difference(&needed).copied().collect();
        self.seen.retain(|key, _| needed.contains(key));
        self.solicited.retain(|key, _| needed.contains(key));
        self.tried.retain(|key, _| needed.contains(key));
        self.needed = needed;
        self.keep_all(netlink, keep).await;
        release_all(netlink, release).await;
    }

    /// Tries again what is not resolved. An IPv4 endpoint is solicited: the kernel takes the answer into a failed entry
    /// (`arp_process`). For IPv6 it does not (`ndisc_recv_na`), so that the kernel itself must try again.
    pub async fn retry(&mut self, netlink: &Netlink) {
        let now = Instant::now();
        let observed = &netlink.observed;
        let mut again = Vec::new();
        for key in self.needed.iter().copied() {
            let is_due = |last: &Instant| now - *last >= AGAIN;
            match observed.neighbours.get(&key) {
                None => again.push(key),
                Some(Neighbour::Failed) if self.tried.get(&key).is_none_or(is_due) => {
                    self.tried.insert(key, now);
                    match key.1 {
                        IpAddr::V4(_) => send(self.solicitor.as_ref(), observed, key),
                        IpAddr::V6(_) => again.push(key),
                    }
                }
                Some(_) => {}
            }
        }
        self.keep_all(netlink, again).await;
    }

    /// Solicits an endpoint that has a MAC address: there may be another box by now, which did not announce itself. The kernel
    /// takes the answer as any other, so that an entry which it does not maintain stays as it is.
    pub fn solicit(&mut self, observed: &Observed, key: Key) {
        let now = Instant::now();
        let is_due = |last: &Instant| now - *last >= SOLICIT;
        if matches!(observed.neighbours.get(&key), Some(Neighbour::Resolved(_)))
            && self.solicited.get(&key).is_none_or(is_due)
        {
            self.solicited.insert(key, now);
            send(self.solicitor.as_ref(), observed, key);
        }
    }

    /// Releases everything.
    pub async fn release(&mut self, netlink: &Netlink) {
        let needed = std::mem::take(&mut self.needed);
        release_all(netlink, needed).await;
    }

    /// Releases those of an earlier daemon's entries that are not needed.
    pub async fn release_left(&self, netlink: &Netlink, left: impl IntoIterator<Item = Key>) {
        let left = left.into_iter().filter(|key| !self.needed.contains(key));
        release_all(netlink, left.collect::<Vec<_>>()).await;
    }

    async fn keep_all(&mut self, netlink: &Netlink, keys: Vec<Key>) {
        let there = &netlink.observed.neighbours;
        let all = keys.into_iter().map(|key| {
            let may_be_new = !there.contains_key(&key);
            async move { (key, keep_one(netlink.requests(), key, may_be_new).await) }
        });
        let results: Vec<_> = stream::iter(all).buffer_unordered(REQUESTS).collect().await;
        let mut is_full = false;
        for ((_, ip), done) in &results {
            if let Err(error) = done {
                is_full |= error.is(libc::ENOBUFS);
                tracing::debug!("cannot keep the neighbour entry of {ip}: {error}");
            }
        }
        if is_full && !self.is_full {
            tracing::warn!(
                "the kernel's neighbour table is full, so that endpoints are not resolved; raise net.ipv4.neigh.default.gc_thresh3 and \
                 net.ipv6.neigh.default.gc_thresh3"
            );
        }
        if !results.is_empty() {
            self.is_full = is_full;
        }
    }
}

/// Releases those of these entries that are kept for Tracker.
pub async fn release_all(netlink: &Netlink, keys: impl IntoIterator<Item = Key>) {
    let all = keys
        .into_iter()
        .map(|key| async move { (key, release_one(netlink.requests(), key).await) });
    let results: Vec<_> = stream::iter(all).buffer_unordered(REQUESTS).collect().await;
    for ((_, ip), done) in results {
        if let Err(error) = done {
            tracing::debug!("cannot release the neighbour entry of {ip}: {error}");
        }
    }
}

fn send(solicitor: Option<&Solicitor>, observed: &Observed, (ifindex, ip): Key) {
    let link: Option<&Link> = observed.links.get(&ifindex);
    if let (Some(solicitor), Some(link)) = (solicitor, link)
        && let Err(error) = solicitor.solicit(link, ip)
    {
        tracing::debug!("cannot solicit {ip} on {}: {error}", link.name);
    }
}

async fn keep_one(requests: &Requests, key: Key, may_be_new: bool) -> Result<(), RequestError> {
    if may_be_new {
        match change(requests, key, Change::Create).await {
            Err(error) if error.is(libc::EEXIST) => {}
            done => return done,
        }
    }
    match Entry::to_keep(read_one(requests, key).await?) {
        Some(wanted) => change(requests, key, wanted).await,
        None => Ok(()),
    }
}

async fn release_one(requests: &Requests, key: Key) -> Result<(), RequestError> {
    match Entry::to_release(read_one(requests, key).await?) {
        Some(wanted) => change(requests, key, wanted).await,
        None => Ok(()),
    }
}

fn message((ifindex, ip): Key) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, destination) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
    let destination = NeighbourAttribute::Destination(destination);
    message.attributes.push(destination);
    message
}

/// Reads an entry (RTM_GETNEIGH of one entry: Linux 5.0).
async fn read_one(requests: &Requests, key: Key) -> Result<Option<Entry>, RequestError> {
    let request = RouteNetlinkMessage::GetNeighbour(message(key));
    match requests.get(request).await {
        Ok(RouteNetlinkMessage::NewNeighbour(found)) => {
            Ok(Entry::read(&found).map(|(_, entry)| entry))
        }
        Ok(_) => Ok(None),
        Err(error) if error.is(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn change(requests: &Requests, key: Key, change: Change) -> Result<(), RequestError> {
    let mut message = message(key);
    let by = |number| NeighbourAttribute::Protocol(RouteProtocol::from(number));
    match change {
        Change::Create | Change::Manage => {
            let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
            message.attributes.extend([managed, by(PROTOCOL)]);
        }
        // A protocol can be replaced, and not taken away.
        Change::GiveBack => {
            message.header.flags = NeighbourFlags::Use;
            message.attributes.push(by(BY_KERNEL));
        }
        Change::Remove => {}
    }
    match change {
        Change::Create => {
            let new = RouteNetlinkMessage::NewNeighbour(message);
            requests.create(new).await
        }
        // None of these makes an entry that went meanwhile.
        Change::Manage | Change::GiveBack => {
            let new = RouteNetlinkMessage::NewNeighbour(message);
            requests.change(new).await
        }
        Change::Remove => {
            let gone = RouteNetlinkMessage::DelNeighbour(message);
            requests.change(gone).await
        }
    }
}

impl Netlink {
    pub(super) fn take_neighbour(&mut self, message: &NeighbourMessage, is_there: bool) {
        let Some((key, entry)) = Entry::read(message) else {
            return;
        };
        if is_there {
            self.observed.neighbours.insert(key, entry.neighbour);
        } else {
            self.observed.neighbours.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn key() -> Key {
        (3, "10.9.0.2".parse().expect("an address"))
    }

    fn told(
        state: NeighbourState,
        flags: NeighbourFlags,
        more: NeighbourExtFlags,
        protocol: Option<u8>,
    ) -> Entry {
        let mut message = message(key());
        message.header.state = state;
        message.header.flags = flags;
        let mac = NeighbourAttribute::LinkLayerAddress(MAC.to_vec());
        message.attributes.push(mac);
        message.attributes.push(NeighbourAttribute::ExtFlags(more));
        if let Some(protocol) = protocol {
            let protocol = NeighbourAttribute::Protocol(protocol.into());
            message.attributes.push(protocol);
        }
        let (of, entry) = Entry::read(&message).expect("an entry");
        assert_eq!(of, key());
        entry
    }

    #[test]
    fn whose_an_entry_is_and_what_may_be_done_to_it() {
        use NeighbourState::{Failed, Incomplete, Noarp, Permanent, Reachable, Stale};
        let none = NeighbourFlags::empty();
        let plain = NeighbourExtFlags::empty();
        let managed = NeighbourExtFlags::Managed;
        let ours = Some(PROTOCOL);
        let keep = Some(Change::Manage);
        let give_back = Some(Change::GiveBack);
        let remove = Some(Change::Remove);
        let rows = [
            // The kernel's own.
            (Reachable, none, plain, None, Owner::Kernel, keep, None),
            (
                Stale,
                NeighbourFlags::Router,
                plain,
                None,
                Owner::Kernel,
                keep,
                None,
            ),
            (Failed, none, plain, None, Owner::Kernel, keep, None),
            (
                Stale,
                none,
                plain,
                Some(BY_KERNEL),
                Owner::Kernel,
                keep,
                None,
            ),
            // Given back once, or replaced by hand.
            (Stale, none, plain, ours, Owner::Kernel, keep, None),
            // Kept for Tracker.
            (
                Reachable,
                none,
                managed,
                ours,
                Owner::Tracker,
                None,
                give_back,
            ),
            (
                Incomplete,
                none,
                managed,
                ours,
                Owner::Tracker,
                None,
                remove,
            ),
            (Failed, none, managed, ours, Owner::Tracker, keep, remove),
            // Made by others, or made permanent by them after it was kept for Tracker.
            (Permanent, none, plain, None, Owner::Other, None, None),
            (Permanent, none, plain, ours, Owner::Other, None, None),
            (Noarp, none, managed, ours, Owner::Other, None, None),
            (
                Noarp,
                NeighbourFlags::ExtLearned,
                plain,
                Some(11),
                Owner::Other,
                None,
                None,
            ),
            (
                Reachable,
                NeighbourFlags::ExtLearned,
                plain,
                None,
                Owner::Other,
                None,
                None,
            ),
            (
                Failed,
                NeighbourFlags::ExtLearned,
                managed,
                ours,
                Owner::Other,
                None,
                None,
            ),
            (Reachable, none, managed, None, Owner::Other, None, None),
            (Failed, none, managed, None, Owner::Other, None, None),
            (Reachable, none, managed, Some(4), Owner::Other, None, None),
            (Reachable, none, plain, Some(4), Owner::Other, None, None),
            (
                Stale,
                none,
                NeighbourExtFlags::Locked,
                ours,
                Owner::Other,
                None,
                None,
            ),
        ];
        for (state, flags, more, protocol, owner, keep, release) in rows {
            let entry = told(state, flags, more, protocol);
            let what = format!("{state:?} {flags:?} {more:?} {protocol:?}");
            assert_eq!(entry.owner, owner, "{what}");
            assert_eq!(Entry::to_keep(Some(entry)), keep, "{what}");
            assert_eq!(Entry::to_release(Some(entry)), release, "{what}");
        }
        assert_eq!(Entry::to_keep(None), Some(Change::Create));
        assert_eq!(Entry::to_release(None), None);
    }

    #[test]
    fn a_forwarding_entry_is_no_neighbour() {
        let mut message = message(key());
        message.header.family = AddressFamily::Bridge;
        assert_eq!(Entry::read(&message), None);
    }

    #[test]
    fn the_last_address_lasts_until_it_fails() {
        let mut observed = Observed::default();
        let link = Link {
            index: 3,
            is_running: true,
            ..Link::default()
        };
        observed.links.insert(3, link);
        let mut neighbours = Neighbours::default();
        neighbours.needed.insert(key());
        let mut see = |neighbour| {
            observed.neighbours.insert(key(), neighbour);
            neighbours.observe(&observed);
            let last = neighbours.last_macs().get(&key()).copied();
            (last, neighbours.change(key()))
        };
        assert_eq!(see(Neighbour::Resolved(MAC)), (Some(MAC), None));
        assert_eq!(see(Neighbour::Asking), (Some(MAC), None));
        assert_eq!(see(Neighbour::Failed), (None, None));
        let other = [2, 0, 0, 0, 0, 10];
        let (last, change) = see(Neighbour::Permanent(other));
        assert_eq!(last, Some(other));
        assert_eq!(
            change.as_deref(),
            Some("the MAC address of 10.9.0.2 changed from 02:00:00:00:00:09 to 02:00:00:00:00:0a")
        );
    }
}

//! Neighbour entries one by one: whose each is, and requests to keep or release it.
//!
//! An entry that an operator or another program made (permanent, NOARP, `extern_learn`, `managed`, or marked with a protocol) is
//! used and never changed. `__neigh_update` (net/core/neighbour.c, Linux 5.16 to 6.18) clears NUD_PERMANENT and NTF_EXT_LEARNED
//! for each request with NTF_EXT_MANAGED or NTF_USE, so such a request is made only for an entry that was read just before. Entries
//! that do not exist are made with NLM_F_EXCL, which is atomic. What is kept for Tracker bears [`PROTOCOL`], in the kernel: a later
//! daemon, and `cleanup` after a killed one, know it by that.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
use tokio::{sync::Notify, task::JoinHandle};

use super::{exchange::RequestError, requests::Requests};
use crate::plan::observed::Neighbour;

/// The routing protocol number (`NDA_PROTOCOL`, Linux 5.0) of the entries that are kept for Tracker, as of the routes that it
/// installs; `ip neigh` shows it as `proto 116`.
pub const PROTOCOL: u8 = 116;

/// How many requests are under way at a time.
const REQUESTS: usize = 32;

/// An interface and an address.
pub type Key = (u32, IpAddr);

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

    /// Reads a message of the kernel's; `None` if it is not about an IPv4 or IPv6 neighbour.
    pub(super) fn read(message: &NeighbourMessage) -> Option<(Key, Self)> {
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

/// Releases those of these entries that are kept for Tracker.
pub async fn release_all(requests: &Requests, keys: impl IntoIterator<Item = Key>) {
    let all = keys
        .into_iter()
        .map(|key| async move { (key, release_one(requests, key).await) });
    let results: Vec<_> = stream::iter(all).buffer_unordered(REQUESTS).collect().await;
    for ((_, ip), done) in results {
        if let Err(error) = done {
            tracing::debug!("cannot release the neighbour entry of {ip}: {error}");
        }
    }
}

/// What an entry is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Kept,
    Released,
}

#[derive(Default)]
struct Queue {
    wanted: HashMap<Key, Wanted>,
    is_busy: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Notify,
    idle: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps and releases entries in a task of its own: a request may take as long as another process holds the kernel's lock of
/// network configuration (RTNL). Of several wishes for one entry the last counts, and those for one entry follow each other.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts the task, in the present runtime.
    pub(super) fn start(requests: Requests) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(work_off(requests, shared.clone()));
        Self { shared, task }
    }

    pub(super) fn keep(&self, keys: impl IntoIterator<Item = Key>) {
        self.add(keys, Wanted::Kept);
    }

    pub(super) fn release(&self, keys: impl IntoIterator<Item = Key>) {
        self.add(keys, Wanted::Released);
    }

    fn add(&self, keys: impl IntoIterator<Item = Key>, wanted: Wanted) {
        let mut queue = self.shared.queue();
        queue
            .wanted
            .extend(keys.into_iter().map(|key| (key, wanted)));
        if !queue.wanted.is_empty() {
            self.shared.work.notify_one();
        }
    }

    /// Waits until nothing is left to do.
    pub(super) async fn done(&self) {
        loop {
            let idle = self.shared.idle.notified();
            {
                let queue = self.shared.queue();
                if queue.wanted.is_empty() && !queue.is_busy {
                    return;
                }
            }
            idle.await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn work_off(requests: Requests, shared: Arc<Shared>) {
    let mut was_full = false;
    loop {
        let batch = {
            let mut queue = shared.queue();
            let batch = std::mem::take(&mut queue.wanted);
            queue.is_busy = !batch.is_empty();
            batch
        };
        if batch.is_empty() {
            shared.idle.notify_one();
            shared.work.notified().await;
            continue;
        }
        let requests = &requests;
        let all = batch.into_iter().map(|(key, wanted)| async move {
            match wanted {
                Wanted::Kept => (key, keep_one(requests, key).await),
                Wanted::Released => (key, release_one(requests, key).await),
            }
        });
        let results: Vec<_> = stream::iter(all).buffer_unordered(REQUESTS).collect().await;
        let mut is_full = false;
        for ((_, ip), done) in results {
            if let Err(error) = done {
                is_full |= error.is(libc::ENOBUFS);
                tracing::debug!("cannot keep or release the neighbour entry of {ip}: {error}");
            }
        }
        if is_full && !was_full {
            tracing::warn!(
                "the kernel's neighbour table is full, so that endpoints are not resolved; raise net.ipv4.neigh.default.gc_thresh3 and \
                 net.ipv6.neigh.default.gc_thresh3"
            );
        }
        was_full = is_full;
    }
}

async fn keep_one(requests: &Requests, key: Key) -> Result<(), RequestError> {
    match change(requests, key, Change::Create).await {
        Err(error) if error.is(libc::EEXIST) => {}
        done => return done,
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
}

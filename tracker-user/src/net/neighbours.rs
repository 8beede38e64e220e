//! Neighbour entries of endpoints: which of them are kept for Tracker, what was learnt from them, and when an endpoint is
//! solicited.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_route::neighbour::NeighbourMessage;

use super::{
    neighbour_entries::{Entry, Keeper, Key},
    requests::Requests,
    rtnetlink::Netlink,
    solicit::Solicitor,
};
use crate::plan::observed::{Link, Neighbour, Observed};

/// How often at most an endpoint is solicited whose trackers get no reply.
const SOLICIT: Duration = Duration::from_secs(3);

/// How often at most a failed neighbour is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a change of a MAC address may explain a change of a verdict.
const EXPLAINS: Duration = Duration::from_secs(30);
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
    keeper: Option<Keeper>,
}

impl Neighbours {
    /// No entry yet. Opens a packet socket, which takes CAP_NET_RAW; without it endpoints are not solicited. Starts a task in the
    /// present runtime.
    pub fn new(requests: Requests) -> Self {
        let solicitor = Solicitor::new();
        if let Err(error) = &solicitor {
            tracing::warn!(
                "cannot open a packet socket: {error}; a next hop that changes its MAC address without announcing it is found late"
            );
        }
        Self {
            solicitor: solicitor.ok(),
            keeper: Some(Keeper::start(requests)),
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

    /// Has the kernel keep the entries of these endpoints resolved, and releases those that are no longer needed. Does not wait
    /// for the kernel: its answers come as notifications.
    pub fn keep(&mut self, observed: &Observed, needed: HashSet<Key>) {
        let there = &observed.neighbours;
        // An entry that the kernel dropped (interface down, `ip neigh flush`) is made anew.
        let is_new = |key: &&Key| !self.needed.contains(key) || !there.contains_key(key);
        if let Some(keeper) = &self.keeper {
            keeper.keep(needed.iter().filter(is_new).copied());
            keeper.release(self.needed.difference(&needed).copied());
        }
        self.seen.retain(|key, _| needed.contains(key));
        self.solicited.retain(|key, _| needed.contains(key));
        self.tried.retain(|key, _| needed.contains(key));
        self.needed = needed;
    }

    /// Tries again what is not resolved. An IPv4 endpoint is solicited: the kernel takes the answer into a failed entry
    /// (`arp_process`). For IPv6 it does not (`ndisc_recv_na`), so that the kernel itself must try again.
    pub fn retry(&mut self, observed: &Observed) {
        let now = Instant::now();
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
        if let Some(keeper) = &self.keeper {
            keeper.keep(again);
        }
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

    /// Releases everything, and waits for the kernel.
    pub async fn release(&mut self) {
        let needed = std::mem::take(&mut self.needed);
        if let Some(keeper) = &self.keeper {
            keeper.release(needed);
            keeper.done().await;
        }
    }

    /// Releases those of an earlier daemon's entries that are not needed.
    pub fn release_left(&self, left: impl IntoIterator<Item = Key>) {
        let left = left.into_iter().filter(|key| !self.needed.contains(key));
        if let Some(keeper) = &self.keeper {
            keeper.release(left);
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

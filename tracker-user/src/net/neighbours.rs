//! Neighbour entries: what the kernel says of them, and the requests to keep, release and confirm one.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};

use super::rtnetlink::Netlink;

/// What the neighbour table knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its MAC address.
    Resolved([u8; 6]),
    /// Its MAC address by the operator's own word, which nobody doubts.
    Permanent([u8; 6]),
    /// The kernel is asking.
    Asking,
    /// The kernel asked and nobody answered.
    Failed,
}

impl Netlink {
    pub(super) fn take_neighbour(&mut self, message: &NeighbourMessage, is_there: bool) {
        let mut ip = None;
        let mut mac = None;
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
                _ => {}
            }
        }
        let Some(ip) = ip else {
            return;
        };
        let key = (message.header.ifindex, ip);
        let neighbour = match (message.header.state, mac) {
            (
                NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Noarp,
                Some(mac),
            ) => Neighbour::Resolved(mac),
            (NeighbourState::Permanent, Some(mac)) => Neighbour::Permanent(mac),
            (NeighbourState::Failed, _) => Neighbour::Failed,
            _ => Neighbour::Asking,
        };
        if is_there {
            self.observed.neighbours.insert(key, neighbour);
        } else {
            self.observed.neighbours.remove(&key);
        }
    }

    /// Asks the kernel to resolve an endpoint and to keep it resolved (`NTF_EXT_MANAGED`, Linux
    /// 5.16). An entry that the operator made permanent stays as it is.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn manage_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> {
        let mut message = entry(ifindex, ip);
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        message.attributes.push(managed);
        self.set_neighbour(message, ip).await
    }

    /// Gives a neighbour entry back to the kernel's ordinary care.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn release_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> {
        let mut message = entry(ifindex, ip);
        message.header.flags = NeighbourFlags::Use;
        self.set_neighbour(message, ip).await
    }

    /// Has the kernel confirm a neighbour entry now: it asks the endpoint directly, and everybody when
    /// that fails. For a next hop that may have changed its MAC address without saying so.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn confirm_neighbour(
        &self,
        ifindex: u32,
        ip: IpAddr,
        mac: [u8; 6],
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let mut message = entry(ifindex, ip);
        message.header.state = NeighbourState::Probe;
        let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
        message.attributes.push(mac);
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        message.attributes.push(managed);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let done = self.requests().replace(message);
        async move {
            done.await
                .with_context(|| format!("cannot confirm the neighbour {ip}"))
        }
    }

    async fn set_neighbour(&self, message: NeighbourMessage, ip: IpAddr) -> Result<()> {
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let done = self.requests().replace(message).await;
        done.with_context(|| format!("cannot manage the neighbour {ip}"))
    }
}

/// A message about a neighbour entry.
fn entry(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, destination) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::None;
    let destination = NeighbourAttribute::Destination(destination);
    message.attributes.push(destination);
    message
}

//! Addresses of the hub, and the choice of a probe's source address among them.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::{observed::Link, rtnetlink::Netlink};

/// One address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// False while duplicate address detection runs or after it failed.
    pub is_usable: bool,
}

/// The source address of probes to `behind` that leave by `link`: one of its usable addresses of that family, first one that
/// shares a prefix with the endpoint. A link-local source serves only a link-local destination, since routers do not forward
/// the reply to one (RFC 4291 section 2.5.6).
pub fn choose(link: &Link, endpoint: IpAddr, behind: IpAddr) -> Option<IpAddr> {
    let fits = |ip: IpAddr| match (ip, behind) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(ip), IpAddr::V6(behind)) => {
            !ip.is_unicast_link_local() || behind.is_unicast_link_local()
        }
        _ => false,
    };
    let usable = link
        .addresses
        .iter()
        .filter(|address| address.is_usable && fits(address.ip));
    let shares_prefix = |address: &&Address| {
        ipnet::IpNet::new(address.ip, address.prefix)
            .is_ok_and(|network| network.contains(&endpoint))
    };
    let best = usable
        .clone()
        .find(shares_prefix)
        .or_else(|| usable.clone().next());
    best.map(|address| address.ip)
}

impl Netlink {
    pub(super) fn take_address(&mut self, message: &AddressMessage, is_there: bool) {
        let Some(link) = self.observed.links.get_mut(&message.header.index) else {
            return;
        };
        // IFA_LOCAL is the interface's own where a peer address is set; IPv6 has only IFA_ADDRESS.
        let mut ip = None;
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(local) => ip = Some(*local),
                AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let Some(ip) = ip else {
            return;
        };
        let address = Address {
            ip,
            prefix: message.header.prefix_len,
            is_usable: !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
                || flags.contains(AddressFlags::Optimistic),
        };
        let known = link.addresses.iter().position(|known| known.ip == ip);
        match (known, is_there) {
            (Some(at), true) => link.addresses[at] = address,
            (None, true) => link.addresses.push(address),
            (Some(at), false) => {
                link.addresses.remove(at);
            }
            (None, false) => {}
        }
    }
}

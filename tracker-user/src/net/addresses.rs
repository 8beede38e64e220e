//! What the kernel's messages say of addresses.

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::rtnetlink::Netlink;
use crate::plan::observed::Address;

impl Netlink {
    pub(super) fn take_address(&mut self, message: &AddressMessage, is_there: bool) {
        let Some(link) = self.observed.links.get_mut(&message.header.index) else {
            return;
        };
        let Some(address) = read(message) else {
            return;
        };
        let known = link.addresses.iter().position(|known| known.is(&address));
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

/// What a message of the kernel's says of an address.
fn read(message: &AddressMessage) -> Option<Address> {
    // IFA_LOCAL is the interface's own address and IFA_ADDRESS the peer's, or again its own. Without a peer IPv6 has only
    // IFA_ADDRESS.
    let (mut local, mut other) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut created = 0;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::CacheInfo(info) => created = info.cstamp,
            _ => {}
        }
    }
    let ip = local.or(other)?;
    Some(Address {
        ip,
        prefix: message.header.prefix_len,
        peer: other.filter(|other| *other != ip),
        is_usable: !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            || flags.contains(AddressFlags::Optimistic),
        is_deprecated: flags.contains(AddressFlags::Deprecated),
        is_secondary: flags.contains(AddressFlags::Secondary),
        scope: message.header.scope.into(),
        created,
    })
}

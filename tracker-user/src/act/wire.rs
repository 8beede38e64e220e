//! Messages of rtnetlink in bytes: how requests are put together and attributes are read (pure).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::exchange::{HEADER_LEN, u16_at};

/// Flags of a request (linux/netlink.h).
pub(super) mod flag {
    pub(in crate::act) const ECHO: u16 = 0x8;
    pub(in crate::act) const REPLACE: u16 = 0x100;
    pub(in crate::act) const EXCLUSIVE: u16 = 0x200;
    pub(in crate::act) const CREATE: u16 = 0x400;
}

/// `NLA_F_NESTED`: the attribute consists of attributes.
pub(super) const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`
const TYPE_MASK: u16 = 0x3fff;

/// A request under construction: `struct nlmsghdr`, the header of its kind, attributes.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(header);
        Self(bytes)
    }

    #[must_use]
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.0, kind, value);
        self
    }

    /// With an address.
    #[must_use]
    pub(super) fn address(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(value) => self.attribute(kind, &value.octets()),
            IpAddr::V6(value) => self.attribute(kind, &value.octets()),
        }
    }

    /// The finished message; the exchange fills in the sequence number and the flags of every request.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// Appends an attribute.
pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (4 + value.len()) as u16;
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of a message, each by its type without flags; what is cut short ends them.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number of four bytes.
pub(super) fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// An address of either family.
pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// A text that ends with a zero byte.
pub(super) fn text(value: &[u8]) -> String {
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(text).into_owned()
}

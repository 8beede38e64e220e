//! Addresses as the maps hold them.

use super::ipv6;
#[cfg(test)]
use crate::abi::Family;

/// The sixteen bytes of a map's address, as two words of memory: of IPv4 the first four, then zeros.
pub type Address = [u64; 2];

/// As it stands in a map.
#[inline(always)]
pub fn of_map(address: &[u8; 16]) -> Address {
    of_ipv6(ipv6::address(address))
}

/// Of a header of IPv4.
#[inline(always)]
pub const fn of_ipv4(address: u32) -> Address {
    [address.to_be() as u64, 0]
}

/// Of a header of IPv6.
#[inline(always)]
pub fn of_ipv6(address: ipv6::Address) -> Address {
    address.map(u64::to_be)
}

/// The bytes of a map's address, of any sixteen.
#[cfg(test)]
pub fn made_of(mut bytes: [u8; 16], family: Family) -> [u8; 16] {
    if matches!(family, Family::Ipv4) {
        bytes[4..].fill(0);
    }
    bytes
}

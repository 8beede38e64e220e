//! 802.1Q tag: the four bytes between the MAC addresses' EtherType and what they carry.

use super::{be16, put};

/// Bytes of the tag after the Ethernet header's own EtherType.
pub const LEN: usize = 4;
/// Mask of the VLAN identifier in the tag control information.
pub const ID_MASK: u16 = 0x0fff;

/// The tag control information and the EtherType of what follows.
#[inline(always)]
pub fn parse(tag: &[u8; LEN]) -> (u16, u16) {
    (be16(tag, 0), be16(tag, 2))
}

/// Writes a tag.
#[inline(always)]
pub const fn emit(tag: &mut [u8; LEN], control: u16, ethertype: u16) {
    put(tag, 0, control.to_be_bytes());
    put(tag, 2, ethertype.to_be_bytes());
}

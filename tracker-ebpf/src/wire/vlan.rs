//! 802.1Q tag: the four bytes between the MAC addresses' EtherType and what they carry.

use super::{be16, put16};

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
pub fn emit(tag: &mut [u8; LEN], control: u16, ethertype: u16) {
    put16(tag, 0, control);
    put16(tag, 2, ethertype);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ethernet::EtherType;
    use pnet_packet::vlan::{ClassOfService, MutableVlanPacket, VlanPacket};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(control: u16, ethertype: u16) {
            let mut tag = [0xaa; LEN];
            emit(&mut tag, control, ethertype);
            let packet = VlanPacket::new(&tag).expect("a whole tag");
            prop_assert_eq!(u16::from(packet.get_priority_code_point().0), control >> 13);
            prop_assert_eq!(u16::from(packet.get_drop_eligible_indicator()), control >> 12 & 1);
            prop_assert_eq!(packet.get_vlan_identifier(), control & ID_MASK);
            prop_assert_eq!(packet.get_ethertype().0, ethertype);
        }

        #[test]
        fn parses_what_pnet_writes(priority in 0u8..8, drop in 0u8..2, id in 0u16..4096, ethertype: u16) {
            let mut tag = [0xaa; LEN];
            let mut packet = MutableVlanPacket::new(&mut tag).expect("a whole tag");
            packet.set_priority_code_point(ClassOfService(priority));
            packet.set_drop_eligible_indicator(drop);
            packet.set_vlan_identifier(id);
            packet.set_ethertype(EtherType(ethertype));
            let control = u16::from(priority) << 13 | u16::from(drop) << 12 | id;
            prop_assert_eq!(parse(&tag), (control, ethertype));
        }
    }
}

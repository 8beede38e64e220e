//! Packets of others' trackers: ICMP echo, UDP and TCP, told apart by addresses and ports and given other
//! addresses with all checksums kept right.

use super::{
    Bytes, BytesMut, be16, be32,
    checksum::{self, Sum},
    ethernet, icmp,
    ip::{V4, V6, Version},
    ipv4, ipv6, put16,
    tcp::LEN as TCP_LEN,
};
use crate::abi::{Family, FlowKey};

pub use super::tcp::{PROTOCOL as TCP, flags};
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Bytes within which all that is read lies, link-layer header included.
pub const HEAD: usize = ethernet::LEN + IPV4_LONGEST + TCP_LEN;
/// Bytes of the longest IPv4 header (RFC 791).
const IPV4_LONGEST: usize = 60;

/// Bytes of a UDP header (RFC 768).
const UDP_LEN: usize = 8;

/// Next header of an IPv6 fragment (RFC 8200 section 4.5), and its bytes.
const FRAGMENT: u8 = 44;
const FRAGMENT_LEN: usize = 8;

/// Where an IPv4 header has flags and fragment offset, and its checksum.
const IPV4_FRAGMENT: usize = 6;
const IPV4_CHECKSUM: usize = 10;

/// Which way a packet goes, as far as it tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// A question: an echo request.
    Request,
    /// An answer: an echo reply.
    Reply,
    /// UDP or TCP: either.
    #[default]
    Either,
}

/// Which of the two addresses is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// What is read of a packet. Aligned so that the compiler clears it by words: BPF has no other way than a
/// loop over bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(8))]
pub struct Head {
    /// Family of the addresses.
    pub family: Family,
    /// IP protocol number: ICMP of either family, UDP or TCP.
    pub protocol: u8,
    /// Which way it goes.
    pub way: Way,
    /// TCP's flags; 0 for others.
    pub tcp_flags: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port; the identifier of an echo request; 0 for an echo reply.
    pub source_port: u16,
    /// Destination port; the identifier of an echo reply; 0 for an echo request.
    pub destination_port: u16,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Routers may fragment it: an IPv4 packet without "don't fragment".
    pub may_be_fragmented: bool,
    /// Bytes of the IP packet, as its header says.
    pub ip_len: u32,
    /// Bytes of the IP header and that of the protocol above it.
    pub headers_len: u32,
    /// Checksum of the protocol above IP, as received.
    pub checksum: u16,
}

impl Head {
    /// The flow of a packet to be steered whose replies arrive on `ifindex`.
    #[inline(always)]
    pub fn flow(&self, behind: &[u8; 16], ifindex: u32) -> FlowKey {
        FlowKey {
            prober: self.source,
            behind: *behind,
            ifindex,
            prober_port: self.source_port,
            behind_port: self.destination_port,
            protocol: self.protocol,
            family: self.family.into(),
            pad: [0; 2],
        }
    }

    /// The flow that a packet which arrived on `ifindex` would reply to.
    #[inline(always)]
    pub fn replied_flow(&self, ifindex: u32) -> FlowKey {
        FlowKey {
            prober: self.destination,
            behind: self.source,
            ifindex,
            prober_port: self.destination_port,
            behind_port: self.source_port,
            protocol: self.protocol,
            family: self.family.into(),
            pad: [0; 2],
        }
    }

    /// Bytes of the IP header.
    #[inline(always)]
    pub const fn ip_header_len(&self) -> usize {
        match self.family {
            Family::Ipv4 => ipv4::LEN,
            Family::Ipv6 => ipv6::LEN,
        }
    }

    /// Where in the IP header an address lies.
    #[inline(always)]
    pub const fn address_at(&self, side: Side) -> usize {
        match (self.family, side) {
            (Family::Ipv4, Side::Source) => ipv4::SOURCE_AT,
            (Family::Ipv4, Side::Destination) => ipv4::DESTINATION_AT,
            (Family::Ipv6, Side::Source) => ipv6::SOURCE_AT,
            (Family::Ipv6, Side::Destination) => ipv6::DESTINATION_AT,
        }
    }

    /// Where in the IP header the time to live or hop limit lies.
    #[inline(always)]
    pub const fn hops_at(&self) -> usize {
        match self.family {
            Family::Ipv4 => ipv4::TTL_AT,
            Family::Ipv6 => ipv6::HOP_LIMIT_AT,
        }
    }

    /// Where in the packet the checksum lies that covers the addresses, if one does: ICMP's over IPv4
    /// does not, and UDP may do without (RFC 768; over IPv6 RFC 6935).
    #[inline(always)]
    pub const fn checksum_at(&self) -> Option<usize> {
        let at = match (self.family, self.protocol) {
            (_, TCP) => 16,
            (_, UDP) if self.checksum == 0 => return None,
            (_, UDP) => 6,
            (Family::Ipv4, _) => return None,
            (Family::Ipv6, _) => 2,
        };
        Some(self.ip_header_len() + at)
    }

    /// The address of one side.
    #[inline(always)]
    pub const fn address(&self, side: Side) -> &[u8; 16] {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// True if the checksum may be only the pseudo-header's sum, which a device without the kernel's
    /// own record of that (veth, `CHECKSUM_PARTIAL`) passes on to XDP like a complete one. A complete one
    /// has this value once in 65,536 packets.
    #[inline(always)]
    pub fn may_be_partial(&self) -> bool {
        if self.checksum_at().is_none() {
            return false;
        }
        let above = self.ip_len - self.ip_header_len() as u32;
        let sum = sum(self.family, &self.source)
            .plus(sum(self.family, &self.destination))
            .u32(above)
            .u16(u16::from(self.protocol));
        sum.folded() == self.checksum
    }
}

/// The four bytes of an address by which [`crate::abi::Filter::place`] knows it.
#[inline(always)]
pub fn last_word(family: Family, address: &[u8; 16]) -> u32 {
    match family {
        Family::Ipv4 => be32(address, 0),
        Family::Ipv6 => be32(address, 12),
    }
}

/// The addresses' part of a checksum.
#[inline(always)]
fn sum(family: Family, address: &[u8; 16]) -> Sum {
    match family {
        Family::Ipv4 => Sum::new().u32(be32(address, 0)),
        Family::Ipv6 => {
            let [high, low] = ipv6::address(address);
            Sum::new().u64(high).u64(low)
        }
    }
}

/// Bytes of the packet that begins so, as its header says; those of IPv6 are of the first 20, too.
#[inline(always)]
pub fn ip_len(begin: &[u8; ipv4::LEN]) -> usize {
    match begin[0] >> 4 {
        6 => ipv6::LEN + usize::from(be16(begin, 4)),
        _ => usize::from(be16(begin, 2)),
    }
}

/// The last words of a packet's source and destination address, as [`last_word`]: what a foreign packet pays
/// before anything else is read of it. The IP header is `AT` bytes after the packet's beginning.
#[inline(always)]
pub fn last_words<B: Bytes + ?Sized, const AT: usize>(
    packet: &B,
    ethertype: u16,
) -> Option<(u32, u32)> {
    match ethertype {
        ethernet::IPV4 => V4::header(packet, AT).map(V4::last_words),
        ethernet::IPV6 => V6::header(packet, AT).map(V6::last_words),
        _ => None,
    }
}

/// Reads a packet into a fresh `head`. The IP header is `AT` bytes after the packet's beginning, and there are
/// `len` bytes from there.
///
/// `None` means that it cannot be given other addresses: other protocols, ICMP other than echo, fragments, IPv4 options, IPv6
/// extension headers, and packets whose headers promise more bytes than there are.
// Not returned: the verifier sees through no half-made Option of this size.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized, const AT: usize>(
    packet: &B,
    ethertype: u16,
    len: usize,
    head: &mut Head,
) -> Option<()> {
    match ethertype {
        ethernet::IPV4 => parse_ip::<V4, B, AT>(packet, head)?,
        ethernet::IPV6 => parse_ip::<V6, B, AT>(packet, head)?,
        _ => return None,
    }
    (head.ip_len >= head.headers_len && head.ip_len as usize <= len).then_some(())
}

#[inline(always)]
fn parse_ip<V: Version, B: Bytes + ?Sized, const AT: usize>(
    packet: &B,
    head: &mut Head,
) -> Option<()> {
    let ip = V::header(packet, AT)?;
    let protocol = V::protocol(ip);
    if !V::carries(ip, protocol) {
        return None;
    }
    (head.family, head.protocol) = (V::FAMILY, protocol);
    head.hops = V::fields(ip).hops;
    head.may_be_fragmented = V::may_be_fragmented(ip);
    head.ip_len = V::total_len(ip);
    V::copy_addresses(ip, &mut head.source, &mut head.destination);
    parse_above::<V, B, AT>(packet, head)
}

/// Reads addresses and ports of a packet that [`parse`] refuses: a first fragment, and an IPv4 packet with options.
/// Only addresses, protocol, ports and the way are set. Later fragments tell nothing, and are worth nothing without the first.
#[inline(always)]
pub fn parse_unsteerable<B: Bytes + ?Sized, const AT: usize>(
    packet: &B,
    ethertype: u16,
    head: &mut Head,
) -> Option<()> {
    let (above, icmp_protocol) = match ethertype {
        ethernet::IPV4 => {
            let ip: &[u8; ipv4::LEN] = packet.at(AT)?;
            let fragment = be16(ip, IPV4_FRAGMENT);
            let header_len = usize::from(ip[0] & 15) * 4;
            let is_plain = header_len == ipv4::LEN && fragment & 0x2000 == 0;
            if ip[0] >> 4 != 4 || header_len < ipv4::LEN || fragment & 0x1fff != 0 || is_plain {
                return None;
            }
            (head.family, head.protocol) = (Family::Ipv4, ip[9]);
            V4::copy_addresses(ip, &mut head.source, &mut head.destination);
            (AT + header_len, ipv4::ICMP)
        }
        ethernet::IPV6 => {
            let ip: &[u8; ipv6::LEN] = packet.at(AT)?;
            if !ipv6::carries(ip, FRAGMENT) {
                return None;
            }
            let fragment: &[u8; FRAGMENT_LEN] = packet.at(AT + ipv6::LEN)?;
            if be16(fragment, 2) & 0xfff8 != 0 {
                return None;
            }
            (head.family, head.protocol) = (Family::Ipv6, fragment[0]);
            V6::copy_addresses(ip, &mut head.source, &mut head.destination);
            (AT + ipv6::LEN + FRAGMENT_LEN, ipv6::ICMP)
        }
        _ => return None,
    };
    let first: &[u8; 4] = packet.at(above)?;
    match head.protocol {
        TCP | UDP => head.destination_port = be16(first, 2),
        protocol if protocol == icmp_protocol => {
            let request = match head.family {
                Family::Ipv4 => icmp::ECHO,
                Family::Ipv6 => icmp::ECHO_V6,
            };
            if first[0] != request || first[1] != 0 {
                return None;
            }
            head.way = Way::Request;
        }
        _ => return None,
    }
    Some(())
}

/// Reads what is above an IP header.
#[inline(always)]
fn parse_above<V: Version, B: Bytes + ?Sized, const AT: usize>(
    packet: &B,
    head: &mut Head,
) -> Option<()> {
    match head.protocol {
        TCP => {
            let tcp: &[u8; TCP_LEN] = packet.at(AT + V::LEN)?;
            let header_len = u32::from(tcp[12] >> 4) * 4;
            if header_len < TCP_LEN as u32 {
                return None;
            }
            (head.source_port, head.destination_port) = (be16(tcp, 0), be16(tcp, 2));
            head.tcp_flags = tcp[13];
            head.checksum = be16(tcp, 16);
            head.headers_len = V::LEN as u32 + header_len;
        }
        UDP => {
            let udp: &[u8; UDP_LEN] = packet.at(AT + V::LEN)?;
            let len = u32::from(be16(udp, 4));
            if len < UDP_LEN as u32 || V::LEN as u32 + len > head.ip_len {
                return None;
            }
            (head.source_port, head.destination_port) = (be16(udp, 0), be16(udp, 2));
            head.checksum = be16(udp, 6);
            head.headers_len = (V::LEN + UDP_LEN) as u32;
        }
        protocol if protocol == V::ICMP => {
            let echo = icmp::parse(packet.at(AT + V::LEN)?);
            if echo.code != 0 {
                return None;
            }
            if echo.kind == V::ECHO {
                (head.way, head.source_port) = (Way::Request, echo.identifier);
            } else if echo.kind == V::ECHO_REPLY {
                (head.way, head.destination_port) = (Way::Reply, echo.identifier);
            } else {
                return None;
            }
            head.checksum = echo.checksum;
            head.headers_len = (V::LEN + icmp::LEN) as u32;
        }
        _ => return None,
    }
    Some(())
}

/// Gives the packet that `head` was read of another destination, and takes one of its hops; every
/// checksum is as right as before. `None` leaves the packet as it was.
#[inline(always)]
pub fn redirect<B: BytesMut + ?Sized, const AT: usize>(
    packet: &mut B,
    head: &Head,
    destination: &[u8; 16],
) -> Option<()> {
    let (old, new) = (
        sum(head.family, &head.destination),
        sum(head.family, destination),
    );
    match head.family {
        Family::Ipv4 => {
            redirect_above::<B, AT, { ipv4::LEN }>(packet, head, old, new)?;
            let ip: &mut [u8; ipv4::LEN] = packet.at_mut(AT)?;
            let before = be16(ip, ipv4::TTL_AT);
            let after = before.wrapping_sub(1 << 8);
            let checksum = be16(ip, IPV4_CHECKSUM);
            let checksum = checksum::replaced(checksum, old.u16(before), new.u16(after));
            put16(ip, ipv4::TTL_AT, after);
            put16(ip, IPV4_CHECKSUM, checksum);
            ip[ipv4::DESTINATION_AT..].copy_from_slice(&destination[..4]);
        }
        Family::Ipv6 => {
            redirect_above::<B, AT, { ipv6::LEN }>(packet, head, old, new)?;
            let ip: &mut [u8; ipv6::LEN] = packet.at_mut(AT)?;
            ip[ipv6::HOP_LIMIT_AT] = ip[ipv6::HOP_LIMIT_AT].wrapping_sub(1);
            ip[ipv6::DESTINATION_AT..].copy_from_slice(destination);
        }
    }
    Some(())
}

#[inline(always)]
fn redirect_above<B: BytesMut + ?Sized, const AT: usize, const IP: usize>(
    packet: &mut B,
    head: &Head,
    old: Sum,
    new: Sum,
) -> Option<()> {
    if head.checksum_at().is_none() {
        return Some(());
    }
    let checksum = checksum::replaced(head.checksum, old, new);
    match head.protocol {
        TCP => put16::<2>(packet.at_mut(AT + IP + 16)?, 0, checksum),
        // Zero would say that there is none (RFC 768).
        UDP if checksum == 0 => put16::<2>(packet.at_mut(AT + IP + 6)?, 0, 0xffff),
        UDP => put16::<2>(packet.at_mut(AT + IP + 6)?, 0, checksum),
        _ => put16::<2>(packet.at_mut(AT + IP + 2)?, 0, checksum),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::ip::IpNextHeaderProtocols;
    use pnet_packet::ipv4::{self as pnet_ipv4, MutableIpv4Packet};
    use pnet_packet::ipv6::MutableIpv6Packet;
    use pnet_packet::tcp::{self as pnet_tcp, MutableTcpPacket};
    use pnet_packet::udp::{self as pnet_udp, MutableUdpPacket};
    use proptest::prelude::*;

    fn read(packet: &[u8], ethertype: u16) -> Option<Head> {
        let mut head = Head::default();
        parse::<_, 0>(packet, ethertype, packet.len(), &mut head)?;
        Some(head)
    }

    fn udp4(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; ipv4::LEN + UDP_LEN];
        packet.extend_from_slice(payload);
        let total = packet.len() as u16;
        let mut udp = MutableUdpPacket::new(&mut packet[ipv4::LEN..]).expect("room");
        udp.set_source(ports[0]);
        udp.set_destination(ports[1]);
        udp.set_length(total - ipv4::LEN as u16);
        let sum = pnet_udp::ipv4_checksum(&udp.to_immutable(), &source.into(), &destination.into());
        udp.set_checksum(if sum == 0 { 0xffff } else { sum });
        let mut ip = MutableIpv4Packet::new(&mut packet).expect("room");
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_total_length(total);
        ip.set_ttl(64);
        ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
        ip.set_source(source.into());
        ip.set_destination(destination.into());
        let sum = pnet_ipv4::checksum(&ip.to_immutable());
        ip.set_checksum(sum);
        packet
    }

    fn tcp6(source: [u8; 16], destination: [u8; 16], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; ipv6::LEN + TCP_LEN];
        packet.extend_from_slice(payload);
        let above = (packet.len() - ipv6::LEN) as u16;
        let mut tcp = MutableTcpPacket::new(&mut packet[ipv6::LEN..]).expect("room");
        tcp.set_source(ports[0]);
        tcp.set_destination(ports[1]);
        tcp.set_data_offset(5);
        let sum = pnet_tcp::ipv6_checksum(&tcp.to_immutable(), &source.into(), &destination.into());
        tcp.set_checksum(sum);
        let mut ip = MutableIpv6Packet::new(&mut packet).expect("room");
        ip.set_version(6);
        ip.set_payload_length(above);
        ip.set_next_header(IpNextHeaderProtocols::Tcp);
        ip.set_hop_limit(64);
        ip.set_source(source.into());
        ip.set_destination(destination.into());
        packet
    }

    proptest! {
        /// Given another destination, a packet is what it would have been had it been built so.
        #[test]
        fn udp_over_ipv4(source: [u8; 4], old: [u8; 4], new: [u8; 4], ports: [u16; 2], payload: Vec<u8>) {
            let mut packet = udp4(source, old, ports, &payload);
            let head = read(&packet, ethernet::IPV4).expect("a packet");
            prop_assert_eq!((head.source_port, head.destination_port), (ports[0], ports[1]));
            prop_assert_eq!((&head.source[..4], &head.destination[..4]), (&source[..], &old[..]));
            let mut address = [0; 16];
            address[..4].copy_from_slice(&new);
            redirect::<_, 0>(packet.as_mut_slice(), &head, &address).expect("room");
            let mut wanted = udp4(source, new, ports, &payload);
            wanted[ipv4::TTL_AT] = 63;
            let mut ip = MutableIpv4Packet::new(&mut wanted).expect("room");
            let sum = pnet_ipv4::checksum(&ip.to_immutable());
            ip.set_checksum(sum);
            prop_assert_eq!(packet, wanted);
        }

        #[test]
        fn tcp_over_ipv6(source: [u8; 16], old: [u8; 16], new: [u8; 16], ports: [u16; 2], payload: Vec<u8>) {
            let mut packet = tcp6(source, old, ports, &payload);
            let head = read(&packet, ethernet::IPV6).expect("a packet");
            prop_assert_eq!((head.source, head.destination), (source, old));
            redirect::<_, 0>(packet.as_mut_slice(), &head, &new).expect("room");
            let mut wanted = tcp6(source, new, ports, &payload);
            wanted[ipv6::HOP_LIMIT_AT] = 63;
            prop_assert_eq!(packet, wanted);
        }

        #[test]
        fn a_reply_has_the_flow_of_its_request(source: [u8; 16], behind: [u8; 16], ports: [u16; 2], ifindex: u32) {
            let packet = tcp6(source, [7; 16], ports, &[]);
            let request = read(&packet, ethernet::IPV6).expect("a packet");
            let packet = tcp6(behind, source, [ports[1], ports[0]], &[]);
            let reply = read(&packet, ethernet::IPV6).expect("a packet");
            prop_assert_eq!(request.flow(&behind, ifindex), reply.replied_flow(ifindex));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, first in prop::sample::select(vec![0x45u8, 0x60]), ethertype in prop::sample::select(vec![ethernet::IPV4, ethernet::IPV6])) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if let Some(head) = read(&bytes, ethertype) {
                let _ = head.may_be_partial();
                let _ = redirect::<_, 0>(bytes.as_mut_slice(), &head, &[9; 16]);
            }
        }
    }
}

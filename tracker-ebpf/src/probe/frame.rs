//! The frame that carries a probe: Ethernet, a VLAN tag, IP; what is above IP is each kind's own.

use super::{HEADER_LEN, LEN, ProbeHeader, icmp, stamp, tcp, udp};
use crate::{
    abi::{Family, Path, Probe, Tracker},
    wire::{self, BytesMut, be32, checksum::Sum, ethernet, ipv4, ipv6, vlan},
};

/// Bytes of an untagged IPv4 probe with the smallest payload.
pub const LEN_V4: usize = ethernet::LEN + ipv4::LEN + HEADER_LEN + LEN;
/// Bytes of an untagged IPv6 probe with the smallest payload.
pub const LEN_V6: usize = ethernet::LEN + ipv6::LEN + HEADER_LEN + LEN;

/// Bytes on the wire of a probe with `payload` bytes after the ICMP or UDP header.
#[inline(always)]
pub const fn wire_len(tagged: bool, family: Family, payload: u16) -> u32 {
    let shortest = match family {
        Family::Ipv4 => LEN_V4,
        Family::Ipv6 => LEN_V6,
    };
    let tag = if tagged { vlan::LEN } else { 0 };
    (shortest + tag - LEN) as u32 + payload as u32
}

/// Writes a probe of this ICMP identifier or source port over the first bytes of a frame of [`wire_len`] bytes, whose
/// rest is zeros. `None` if the frame is too short.
#[inline(always)]
pub fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    path: &Path,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
) -> Option<()> {
    let content = Content {
        tracker,
        probe_header,
        flow,
        what: What::Probe,
    };
    emit_frame(frame, path, &content)
}

/// Writes the segment that ends the connection which the answer to a SYN would open; see [`emit`].
#[inline(always)]
pub fn emit_reset<B: BytesMut + ?Sized>(
    frame: &mut B,
    path: &Path,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
) -> Option<()> {
    let content = Content {
        tracker,
        probe_header,
        flow,
        what: What::Reset,
    };
    emit_frame(frame, path, &content)
}

/// What is written for a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Probe,
    Reset,
}

/// What a frame is made of.
pub(super) struct Content<'a> {
    /// The tracker that sends it.
    pub(super) tracker: &'a Tracker,
    /// What the probe says of itself, if its kind has room for that.
    pub(super) probe_header: &'a ProbeHeader,
    /// ICMP identifier or source port.
    pub(super) flow: u16,
    what: What,
}

impl Content<'_> {
    /// Bytes above the IP header.
    #[inline(always)]
    fn message_len(&self) -> u16 {
        match self.what {
            What::Probe => self.tracker.payload.wrapping_add(HEADER_LEN as u16),
            What::Reset => wire::tcp::LEN as u16,
        }
    }

    /// Writes what is above the IP header at `at`; `pseudo` is what a checksum covers beside it.
    #[inline(always)]
    fn emit<B: BytesMut + ?Sized>(&self, frame: &mut B, at: usize, pseudo: Sum) -> Option<()> {
        match (self.tracker.probe.get(), self.what) {
            (Probe::Icmp, _) => icmp::emit(frame, at, self, pseudo),
            (Probe::Udp, _) => udp::emit(frame, at, self, pseudo),
            (Probe::Stamp, _) => stamp::emit(frame, at, self, pseudo),
            (Probe::Tcp, What::Probe) => tcp::emit(frame, at, self, pseudo),
            (Probe::Tcp, What::Reset) => tcp::emit_reset(frame, at, self, pseudo),
        }
    }
}

#[inline(always)]
fn emit_frame<B: BytesMut + ?Sized>(frame: &mut B, path: &Path, content: &Content) -> Option<()> {
    let ethertype = match content.tracker.family.get() {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    };
    if path.vlan == 0 {
        let header = frame.at_mut(0)?;
        ethernet::emit(header, &path.next_hop_mac, &path.source_mac, ethertype);
        return emit_ip::<B, { ethernet::LEN }>(frame, content);
    }
    let header = frame.at_mut(0)?;
    ethernet::emit(header, &path.next_hop_mac, &path.source_mac, ethernet::VLAN);
    vlan::emit(frame.at_mut(ethernet::LEN)?, path.vlan, ethertype);
    emit_ip::<B, { ethernet::LEN + vlan::LEN }>(frame, content)
}

#[inline(always)]
fn emit_ip<B: BytesMut + ?Sized, const AT: usize>(frame: &mut B, content: &Content) -> Option<()> {
    let tracker = content.tracker;
    let len = content.message_len();
    let protocol = super::protocol(tracker.probe.get(), tracker.family.get());
    match tracker.family.get() {
        Family::Ipv4 => {
            let (source, behind) = (be32(&tracker.source, 0), be32(&tracker.behind, 0));
            let header = frame.at_mut(AT)?;
            let total_len = len.wrapping_add(ipv4::LEN as u16);
            ipv4::emit(header, tracker.dscp, total_len, protocol, source, behind);
            let pseudo = match tracker.probe.get() {
                // That of ICMP covers no addresses.
                Probe::Icmp => Sum::new(),
                _ => ipv4::pseudo_header(source, behind, len, protocol),
            };
            content.emit(frame, AT + ipv4::LEN, pseudo)
        }
        Family::Ipv6 => {
            let source = ipv6::address(&tracker.source);
            let behind = ipv6::address(&tracker.behind);
            let header = frame.at_mut(AT)?;
            ipv6::emit(header, tracker.dscp, len, protocol, source, behind);
            let pseudo = ipv6::pseudo_header(source, behind, len, protocol);
            content.emit(frame, AT + ipv6::LEN, pseudo)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::stamp::Claim;
    use super::*;
    use crate::wire::tcp as segment;
    use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
    use pnet_packet::icmp::echo_request::EchoRequestPacket;
    use pnet_packet::icmp::{self as pnet_icmp, IcmpPacket, IcmpTypes};
    use pnet_packet::icmpv6::{self as pnet_icmpv6, Icmpv6Packet, Icmpv6Types};
    use pnet_packet::ip::IpNextHeaderProtocols;
    use pnet_packet::ipv4::Ipv4Packet;
    use pnet_packet::ipv6::Ipv6Packet;
    use pnet_packet::tcp::{self as pnet_tcp, TcpPacket};
    use pnet_packet::udp::{self as pnet_udp, UdpPacket};
    use pnet_packet::vlan::VlanPacket;
    use pnet_packet::{Packet as _, ipv4 as pnet_ipv4};
    use proptest::prelude::*;
    use std::net::IpAddr;

    prop_compose! {
        fn probe_headers()(tracker: u32, number: u64, sent_mono_ns: u64, token: u64) -> ProbeHeader {
            ProbeHeader { tracker, number, sent_mono_ns, token }
        }
    }

    prop_compose! {
        fn trackers()(
            behind: [u8; 16], source: [u8; 16], payload in LEN as u16..9_000, is_v6: bool,
            flow_first: u16, port: u16, salt: u8, probe in 0usize..4, dscp in 0u8..64,
        ) -> Tracker {
            let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
            let probe = [Probe::Icmp, Probe::Udp, Probe::Tcp, Probe::Stamp][probe];
            let payload = match probe {
                Probe::Icmp | Probe::Udp => payload,
                Probe::Tcp => tcp::SYN_PAYLOAD,
                Probe::Stamp if payload < 1_000 => stamp::LEN as u16,
                Probe::Stamp => payload,
            };
            Tracker { behind, source, payload, flow_first, port, family: family.into(), probe: probe.into(), salt, dscp, ..Default::default() }
        }
    }

    prop_compose! {
        fn paths()(next_hop_mac: [u8; 6], source_mac: [u8; 6], vlan: u16, is_tagged: bool) -> Path {
            let vlan = if is_tagged { vlan } else { 0 };
            Path { next_hop_mac, source_mac, vlan, ..Default::default() }
        }
    }

    /// The frame as it leaves, with the zeros of a larger payload.
    fn built(tracker: &Tracker, path: &Path, probe_header: &ProbeHeader) -> Vec<u8> {
        let len = wire_len(path.vlan != 0, tracker.family.get(), tracker.payload);
        let mut bytes = vec![0; len as usize];
        emit(
            bytes.as_mut_slice(),
            path,
            tracker,
            probe_header,
            tracker.flow_first,
        )
        .expect("room for it");
        bytes
    }

    #[test]
    fn a_frame_that_is_too_short_is_refused() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let tracker = Tracker {
                family: family.into(),
                payload: LEN as u16,
                ..Default::default()
            };
            let probe_header = ProbeHeader {
                tracker: 0,
                number: 1,
                sent_mono_ns: 2,
                token: 3,
            };
            for vlan in [0, 7] {
                let path = Path {
                    vlan,
                    ..Default::default()
                };
                let len = wire_len(vlan != 0, family, tracker.payload) as usize;
                let mut bytes = vec![0; len];
                assert!(
                    emit(
                        &mut bytes[..len - 1],
                        &path,
                        &tracker,
                        &probe_header,
                        tracker.flow_first
                    )
                    .is_none()
                );
                assert!(
                    emit(
                        &mut bytes[..],
                        &path,
                        &tracker,
                        &probe_header,
                        tracker.flow_first
                    )
                    .is_some()
                );
            }
        }
    }

    #[test]
    fn shortest_frames_have_the_shortest_lengths() {
        assert_eq!(wire_len(false, Family::Ipv4, LEN as u16) as usize, LEN_V4);
        assert_eq!(wire_len(false, Family::Ipv6, LEN as u16) as usize, LEN_V6);
        for family in [Family::Ipv4, Family::Ipv6] {
            let untagged = wire_len(false, family, 100);
            assert_eq!(wire_len(true, family, 100), untagged + vlan::LEN as u32);
        }
    }

    proptest! {
        #[test]
        fn pnet_reads_the_frame(tracker in trackers(), path in paths(), probe_header in probe_headers()) {
            let frame = built(&tracker, &path, &probe_header);
            let ethernet = EthernetPacket::new(&frame).expect("a whole header");
            prop_assert_eq!(ethernet.get_destination().octets(), path.next_hop_mac);
            prop_assert_eq!(ethernet.get_source().octets(), path.source_mac);
            let (ethertype, packet) = if path.vlan == 0 {
                (ethernet.get_ethertype(), ethernet.payload())
            } else {
                prop_assert_eq!(ethernet.get_ethertype(), EtherTypes::Vlan);
                let tag = VlanPacket::new(ethernet.payload()).expect("a whole tag");
                prop_assert_eq!(tag.get_vlan_identifier(), path.vlan & vlan::ID_MASK);
                (tag.get_ethertype(), &ethernet.payload()[vlan::LEN..])
            };
            let (protocol, source, destination, message) = match tracker.family.get() {
                Family::Ipv4 => {
                    prop_assert_eq!(ethertype, EtherTypes::Ipv4);
                    let ip = Ipv4Packet::new(packet).expect("a whole header");
                    prop_assert_eq!(usize::from(ip.get_total_length()), packet.len());
                    prop_assert_eq!(ip.get_checksum(), pnet_ipv4::checksum(&ip));
                    prop_assert_eq!((ip.get_dscp(), ip.get_ecn()), (tracker.dscp, 0));
                    prop_assert_eq!(&ip.get_source().octets()[..], &tracker.source[..4]);
                    prop_assert_eq!(&ip.get_destination().octets()[..], &tracker.behind[..4]);
                    let (source, destination) = (ip.get_source().into(), ip.get_destination().into());
                    (ip.get_next_level_protocol(), source, destination, &packet[ipv4::LEN..])
                }
                Family::Ipv6 => {
                    prop_assert_eq!(ethertype, EtherTypes::Ipv6);
                    let ip = Ipv6Packet::new(packet).expect("a whole header");
                    prop_assert_eq!(usize::from(ip.get_payload_length()), packet.len() - ipv6::LEN);
                    prop_assert_eq!(ip.get_traffic_class(), tracker.dscp << 2);
                    prop_assert_eq!(ip.get_source().octets(), tracker.source);
                    prop_assert_eq!(ip.get_destination().octets(), tracker.behind);
                    let (source, destination) = (ip.get_source().into(), ip.get_destination().into());
                    (ip.get_next_header(), source, destination, &packet[ipv6::LEN..])
                }
            };
            let flow = tracker.flow_first;
            match tracker.probe.get() {
                Probe::Icmp => {
                    let right = match (source, destination) {
                        (IpAddr::V6(source), IpAddr::V6(destination)) => {
                            prop_assert_eq!(protocol, IpNextHeaderProtocols::Icmpv6);
                            let icmp = Icmpv6Packet::new(message).expect("a whole message");
                            prop_assert_eq!(icmp.get_icmpv6_type(), Icmpv6Types::EchoRequest);
                            pnet_icmpv6::checksum(&icmp, &source, &destination)
                        }
                        _ => {
                            prop_assert_eq!(protocol, IpNextHeaderProtocols::Icmp);
                            let icmp = IcmpPacket::new(message).expect("a whole message");
                            prop_assert_eq!(icmp.get_icmp_type(), IcmpTypes::EchoRequest);
                            pnet_icmp::checksum(&icmp)
                        }
                    };
                    let echo = EchoRequestPacket::new(message).expect("a whole message");
                    prop_assert_eq!(echo.get_checksum(), right);
                    prop_assert_eq!(echo.get_identifier(), flow);
                    prop_assert_eq!(echo.get_sequence_number(), probe_header.number as u16);
                }
                Probe::Tcp => {
                    prop_assert_eq!(protocol, IpNextHeaderProtocols::Tcp);
                    let tcp = TcpPacket::new(message).expect("a whole header");
                    let right = match (source, destination) {
                        (IpAddr::V4(source), IpAddr::V4(destination)) => {
                            pnet_tcp::ipv4_checksum(&tcp, &source, &destination)
                        }
                        (IpAddr::V6(source), IpAddr::V6(destination)) => {
                            pnet_tcp::ipv6_checksum(&tcp, &source, &destination)
                        }
                        _ => unreachable!("addresses of one packet"),
                    };
                    prop_assert_eq!(tcp.get_checksum(), right);
                    prop_assert_eq!((tcp.get_source(), tcp.get_destination()), (flow, tracker.port));
                    prop_assert_eq!(message.len(), segment::SYN_LEN);
                    let number = tcp::initial_sequence(probe_header.token, tracker.salt, probe_header.number);
                    prop_assert_eq!((tcp.get_sequence(), tcp.get_flags()), (number, segment::flags::SYN));
                    // Its end fits the same frame, and is a packet of its own length.
                    let mut end = frame.clone();
                    emit_reset(end.as_mut_slice(), &path, &tracker, &probe_header, tracker.flow_first).expect("room for it");
                    let at = frame.len() - message.len();
                    let reset = TcpPacket::new(&end[at..at + segment::LEN]).expect("a whole header");
                    prop_assert_eq!((reset.get_sequence(), reset.get_flags()), (number.wrapping_add(1), segment::flags::RST));
                    prop_assert_eq!((reset.get_source(), reset.get_destination()), (flow, tracker.port));
                    prop_assert_eq!(&end[at + segment::LEN..], &[0; segment::SYN_LEN - segment::LEN]);
                    let right = match (source, destination) {
                        (IpAddr::V4(source), IpAddr::V4(destination)) => {
                            pnet_tcp::ipv4_checksum(&reset, &source, &destination)
                        }
                        (IpAddr::V6(source), IpAddr::V6(destination)) => {
                            pnet_tcp::ipv6_checksum(&reset, &source, &destination)
                        }
                        _ => unreachable!("addresses of one packet"),
                    };
                    prop_assert_eq!(reset.get_checksum(), right);
                    let len = match tracker.family.get() {
                        Family::Ipv4 => Ipv4Packet::new(&end[at - ipv4::LEN..]).expect("a header").get_total_length() - 20,
                        Family::Ipv6 => Ipv6Packet::new(&end[at - ipv6::LEN..]).expect("a header").get_payload_length(),
                    };
                    prop_assert_eq!(usize::from(len), segment::LEN);
                    return Ok(());
                }
                Probe::Udp | Probe::Stamp => {
                    prop_assert_eq!(protocol, IpNextHeaderProtocols::Udp);
                    let udp = UdpPacket::new(message).expect("a whole header");
                    let right = match (source, destination) {
                        (IpAddr::V4(source), IpAddr::V4(destination)) => {
                            pnet_udp::ipv4_checksum(&udp, &source, &destination)
                        }
                        (IpAddr::V6(source), IpAddr::V6(destination)) => {
                            pnet_udp::ipv6_checksum(&udp, &source, &destination)
                        }
                        _ => unreachable!("addresses of one packet"),
                    };
                    prop_assert_eq!(udp.get_checksum(), if right == 0 { 0xffff } else { right });
                    prop_assert_eq!((udp.get_source(), udp.get_destination()), (flow, tracker.port));
                    prop_assert_eq!(usize::from(udp.get_length()), message.len());
                }
            }
            prop_assert_eq!(message.len(), HEADER_LEN + usize::from(tracker.payload));
            if tracker.probe.get() == Probe::Stamp {
                let packet = &message[HEADER_LEN..];
                let claim = Claim::of_probe(packet.first_chunk().expect("a whole claim"));
                prop_assert_eq!(claim, Some(Claim::new(probe_header.tag(), probe_header.tracker, probe_header.number, probe_header.token)));
                let padding = &packet[stamp::LEN..];
                if let Some((header, rest)) = padding.split_first_chunk::<4>() {
                    let len = u16::try_from(rest.len()).expect("a length").to_be_bytes();
                    prop_assert_eq!(header, &[0x80, 1, len[0], len[1]]);
                    prop_assert!(rest.iter().all(|byte| *byte == 0));
                }
                return Ok(());
            }
            let payload: &[u8; LEN] = message[HEADER_LEN..].first_chunk().expect("a whole probe_header");
            prop_assert_eq!(ProbeHeader::parse(payload), probe_header);
            prop_assert!(message[HEADER_LEN + LEN..].iter().all(|byte| *byte == 0));
            prop_assert_eq!(message.len(), HEADER_LEN + usize::from(tracker.payload));
        }
    }
}

//! A probe: what it says of itself, and the frame that carries it.

use super::{
    BytesMut, be32, be64,
    checksum::Sum,
    ethernet, icmp, ipv4, ipv6, put32, put64,
    stamp::{self, Claim},
    tcp, udp, vlan,
};
use crate::abi::{Family, Path, Probe, Tracker};

/// Bytes of the header before the probe header, whatever the kind of probe. Of TCP, which has no probe header, the first bytes of a
/// longer one.
pub const HEADER_LEN: usize = icmp::LEN;
const _: () = assert!(udp::LEN == HEADER_LEN && tcp::PORTS_LEN == HEADER_LEN);
/// [`Tracker::payload`] of TCP.
pub const SYN_PAYLOAD: u16 = (tcp::SYN_LEN - HEADER_LEN) as u16;
/// [`Tracker::payload`] of the segment that ends a connection of TCP.
pub const RESET_PAYLOAD: u16 = (tcp::LEN - HEADER_LEN) as u16;

/// Bytes of [`ProbeHeader`] on the wire: the first bytes after the ICMP or UDP header.
pub const LEN: usize = 32;
/// The first four bytes of every probe's payload: "TRKR".
pub const MAGIC: u32 = 0x5452_4b52;

/// What a probe says of itself. All but `token` is claimed; `token` proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeHeader {
    /// Tracker slot.
    pub tracker: u32,
    /// The instance's tag above the low half of the sequence number, which is from 1. Builds before there were tags
    /// wrote the whole sequence number.
    pub number: u64,
    /// When the probe was sent.
    pub sent_mono_ns: u64,
    /// [`super::token::token`] of the above and the slot's epoch.
    pub token: u64,
}

impl ProbeHeader {
    /// What a probe of the instance with this tag bears for a sequence number.
    #[inline(always)]
    pub const fn number(tag: u32, sequence: u64) -> u64 {
        ((tag as u64) << 32) | (sequence as u32 as u64)
    }

    /// The tag of the instance that sent it.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        (self.number >> 32) as u32
    }

    /// The low half of its sequence number.
    #[inline(always)]
    pub const fn sequence(&self) -> u32 {
        self.number as u32
    }

    /// True if a payload begins with [`MAGIC`].
    #[inline(always)]
    pub fn is_present(payload: &[u8; LEN]) -> bool {
        be32(payload, 0) == MAGIC
    }

    /// Reads a payload for which [`ProbeHeader::is_present`] holds.
    #[inline(always)]
    pub fn parse(payload: &[u8; LEN]) -> Self {
        Self {
            tracker: be32(payload, 4),
            number: be64(payload, 8),
            sent_mono_ns: be64(payload, 16),
            token: be64(payload, 24),
        }
    }

    /// Writes a payload.
    #[inline(always)]
    pub fn emit(&self, payload: &mut [u8; LEN]) {
        put32(payload, 0, MAGIC);
        put32(payload, 4, self.tracker);
        put64(payload, 8, self.number);
        put64(payload, 16, self.sent_mono_ns);
        put64(payload, 24, self.token);
    }

    /// The payload's part of a checksum.
    #[inline(always)]
    pub const fn sum(&self) -> Sum {
        Sum::new()
            .u32(MAGIC)
            .u32(self.tracker)
            .u64(self.number)
            .u64(self.sent_mono_ns)
            .u64(self.token)
    }
}

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
/// rest is zeros. `None` where the frame is too short.
#[inline(always)]
pub fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    path: &Path,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
) -> Option<()> {
    emit_frame(frame, path, tracker, probe_header, flow, What::Probe)
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
    emit_frame(frame, path, tracker, probe_header, flow, What::Reset)
}

/// What is written for a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Probe,
    Reset,
}

#[inline(always)]
fn emit_frame<B: BytesMut + ?Sized>(
    frame: &mut B,
    path: &Path,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
    what: What,
) -> Option<()> {
    let ethertype = match tracker.family.get() {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    };
    if path.vlan == 0 {
        let header = frame.at_mut(0)?;
        ethernet::emit(header, &path.next_hop_mac, &path.source_mac, ethertype);
        return emit_ip::<B, { ethernet::LEN }>(frame, tracker, probe_header, flow, what);
    }
    let header = frame.at_mut(0)?;
    ethernet::emit(header, &path.next_hop_mac, &path.source_mac, ethernet::VLAN);
    vlan::emit(frame.at_mut(ethernet::LEN)?, path.vlan, ethertype);
    emit_ip::<B, { ethernet::LEN + vlan::LEN }>(frame, tracker, probe_header, flow, what)
}

#[inline(always)]
fn emit_ip<B: BytesMut + ?Sized, const AT: usize>(
    frame: &mut B,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
    what: What,
) -> Option<()> {
    let message_len = match what {
        What::Probe => tracker.payload.wrapping_add(HEADER_LEN as u16),
        What::Reset => tcp::LEN as u16,
    };
    let protocol = match tracker.probe.get() {
        Probe::Icmp => match tracker.family.get() {
            Family::Ipv4 => ipv4::ICMP,
            Family::Ipv6 => ipv6::ICMP,
        },
        Probe::Udp | Probe::Stamp => ipv4::UDP,
        Probe::Tcp => tcp::PROTOCOL,
    };
    match tracker.family.get() {
        Family::Ipv4 => {
            let (source, behind) = (be32(&tracker.source, 0), be32(&tracker.behind, 0));
            let total_len = message_len.wrapping_add(ipv4::LEN as u16);
            ipv4::emit(
                frame.at_mut(AT)?,
                tracker.dscp,
                total_len,
                protocol,
                source,
                behind,
            );
            let pseudo = match tracker.probe.get() {
                // That of ICMP covers no addresses.
                Probe::Icmp => Sum::new(),
                _ => ipv4::pseudo_header(source, behind, message_len, protocol),
            };
            emit_message(
                frame,
                AT + ipv4::LEN,
                tracker,
                probe_header,
                flow,
                what,
                pseudo,
            )
        }
        Family::Ipv6 => {
            let source = ipv6::address(&tracker.source);
            let behind = ipv6::address(&tracker.behind);
            ipv6::emit(
                frame.at_mut(AT)?,
                tracker.dscp,
                message_len,
                protocol,
                source,
                behind,
            );
            let pseudo = ipv6::pseudo_header(source, behind, message_len, protocol);
            emit_message(
                frame,
                AT + ipv6::LEN,
                tracker,
                probe_header,
                flow,
                what,
                pseudo,
            )
        }
    }
}

/// Writes what is above IP; `pseudo` is what a checksum covers beside it.
#[inline(always)]
fn emit_message<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    tracker: &Tracker,
    probe_header: &ProbeHeader,
    flow: u16,
    what: What,
    pseudo: Sum,
) -> Option<()> {
    let datagram = udp::Header {
        source: flow,
        destination: tracker.port,
        len: tracker.payload.wrapping_add(HEADER_LEN as u16),
    };
    match tracker.probe.get() {
        Probe::Icmp => {
            let kind = match tracker.family.get() {
                Family::Ipv4 => icmp::ECHO,
                Family::Ipv6 => icmp::ECHO_V6,
            };
            let rest = probe_header.sum().plus(pseudo);
            icmp::emit(
                frame.at_mut(at)?,
                kind,
                flow,
                probe_header.number as u16,
                rest,
            );
            probe_header.emit(frame.at_mut(at + HEADER_LEN)?);
        }
        Probe::Udp => {
            datagram.emit(frame.at_mut(at)?, probe_header.sum().plus(pseudo));
            probe_header.emit(frame.at_mut(at + HEADER_LEN)?);
        }
        Probe::Stamp => {
            let claim = Claim::new(
                probe_header.tag(),
                probe_header.tracker,
                probe_header.number,
                probe_header.token,
            );
            let mut rest = claim.sum().plus(pseudo);
            if tracker.payload as usize >= stamp::LEN + stamp::TLV_LEN {
                let padding = frame.at_mut(at + HEADER_LEN + stamp::LEN)?;
                rest = rest.plus(stamp::emit_padding(padding, tracker.payload));
            }
            datagram.emit(frame.at_mut(at)?, rest);
            claim.emit(frame.at_mut(at + HEADER_LEN)?);
        }
        Probe::Tcp => {
            let sequence =
                tcp::initial_sequence(probe_header.token, tracker.salt, probe_header.number);
            let header = tcp::Header {
                source: flow,
                destination: tracker.port,
                sequence,
                acknowledged: 0,
                flags: tcp::flags::SYN,
            };
            match what {
                What::Probe => header.emit_syn(frame.at_mut(at)?, pseudo),
                What::Reset => {
                    let reset = tcp::Header {
                        sequence: sequence.wrapping_add(1),
                        flags: tcp::flags::RST,
                        ..header
                    };
                    reset.emit(frame.at_mut(at)?, pseudo);
                    // A frame of Ethernet's least size has bytes behind it.
                    if let Some(padding) =
                        frame.at_mut::<{ tcp::SYN_LEN - tcp::LEN }>(at + tcp::LEN)
                    {
                        put64(padding, 0, 0);
                    }
                }
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
                Probe::Tcp => SYN_PAYLOAD,
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
        fn marks_come_back(probe_header in probe_headers(), old: [u8; LEN]) {
            let mut payload = old;
            probe_header.emit(&mut payload);
            prop_assert_eq!(ProbeHeader::number(probe_header.tag(), u64::from(probe_header.sequence()) | 5 << 32), probe_header.number);
            prop_assert!(ProbeHeader::is_present(&payload));
            prop_assert_eq!(&payload[..4], b"TRKR");
            prop_assert_eq!(ProbeHeader::parse(&payload), probe_header);
            let sum = payload.chunks(2).fold(Sum::new(), |sum, word| {
                sum.u16(u16::from_be_bytes([word[0], word[1]]))
            });
            prop_assert_eq!(probe_header.sum().folded(), sum.folded());
        }

        #[test]
        fn only_marks_are_present(payload: [u8; LEN]) {
            prop_assert_eq!(ProbeHeader::is_present(&payload), payload.starts_with(b"TRKR"));
        }

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
                    prop_assert_eq!(message.len(), tcp::SYN_LEN);
                    let number = tcp::initial_sequence(probe_header.token, tracker.salt, probe_header.number);
                    prop_assert_eq!((tcp.get_sequence(), tcp.get_flags()), (number, tcp::flags::SYN));
                    // Its end fits the same frame, and is a packet of its own length.
                    let mut end = frame.clone();
                    emit_reset(end.as_mut_slice(), &path, &tracker, &probe_header, tracker.flow_first).expect("room for it");
                    let at = frame.len() - message.len();
                    let reset = TcpPacket::new(&end[at..at + tcp::LEN]).expect("a whole header");
                    prop_assert_eq!((reset.get_sequence(), reset.get_flags()), (number.wrapping_add(1), tcp::flags::RST));
                    prop_assert_eq!((reset.get_source(), reset.get_destination()), (flow, tracker.port));
                    prop_assert_eq!(&end[at + tcp::LEN..], &[0; tcp::SYN_LEN - tcp::LEN]);
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
                    prop_assert_eq!(usize::from(len), tcp::LEN);
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

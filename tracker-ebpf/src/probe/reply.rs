//! Recognising what may be a reply to one of our probes, cheapest test first.

use super::{HEADER_LEN, LEN, ProbeHeader, icmp, udp};
use crate::{
    abi::{Family, Probe, Proof, Tracker},
    wire::{
        Bytes,
        address::{self, Address},
        ethernet,
        ip::{Fields, V4, V6, Version},
        udp as datagram, vlan,
    },
};

/// Bytes above the IP header in which a reply is recognised. An error quotes as many of a probe, behind another IP header.
pub const REPLY_LEN: usize = HEADER_LEN + LEN;

/// A message that bears the probe header: a reply, one of our probes that came back, or an error about one. Nothing
/// of it is proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What carries the probe header.
    pub message: Message,
    /// What it says of the probe.
    pub probe_header: ProbeHeader,
    /// Tag control information, 0 if the frame has no tag of its own.
    pub vlan: u16,
    /// True if the lengths of all headers agree with each other, and their checksums: of ICMP all, of
    /// UDP none. A UDP checksum may be missing or left for hardware to complete; the token says more.
    pub is_intact: bool,
    /// The router or host from which it arrived.
    pub last_hop: LastHop,
    /// ICMP type and code. Of UDP they mean nothing, and are read nevertheless: the verifier refuses what is
    /// not set on each way, even if nothing depends on it.
    pub kind: [u8; 2],
    pub(super) family: Family,
    /// Its source address.
    pub sender: Address,
    receiver: Address,
    /// Those of UDP; the same of ICMP.
    ports: Ports,
}

/// The router or host from which a frame arrived: one word, the MAC address above a byte of zeros above the TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastHop(u64);

impl LastHop {
    /// Without an Ethernet header.
    #[inline(always)]
    pub const fn new(ttl: u8) -> Self {
        Self(ttl as u64)
    }

    /// With the source MAC address of its frame, as [`ethernet::source`] reads it.
    #[inline(always)]
    pub const fn by(self, mac: u64) -> Self {
        Self(self.0 | mac)
    }

    /// The frame's source MAC address; zeros if there is no Ethernet header.
    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Hops that it has left (TTL, hop limit).
    #[inline(always)]
    pub const fn ttl(self) -> u8 {
        self.0 as u8
    }

    /// The bytes of a map, as a word of memory: the address, a zero, the TTL.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0.to_be()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    source: u16,
    destination: u16,
}

/// What carries a probe header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An ICMP echo reply.
    EchoReply,
    /// An ICMP echo request.
    EchoRequest,
    /// A UDP datagram. It does not say itself whether it is a probe or the answer to one.
    Datagram,
    /// An ICMP error that quotes a probe as far as its probe header.
    Error,
}

impl Reply {
    /// A message without meaning: all its words are zero.
    pub const ZERO: Self = Self {
        message: Message::EchoReply,
        probe_header: ProbeHeader {
            tracker: 0,
            number: 0,
            sent_mono_ns: 0,
            token: 0,
        },
        vlan: 0,
        is_intact: false,
        last_hop: LastHop::new(0),
        kind: [0; 2],
        family: Family::Ipv4,
        sender: [0; 2],
        receiver: [0; 2],
        ports: Ports {
            source: 0,
            destination: 0,
        },
    };

    /// What it is to a tracker: the reply to one of its probes, or the probe itself. `None` for what is
    /// nothing to it.
    #[inline(always)]
    pub fn proof(&self, tracker: &Tracker) -> Option<Proof> {
        match tracker.probe.get() {
            Probe::Icmp => icmp::proof(self.message),
            Probe::Udp => udp::proof(self, tracker),
            Probe::Tcp | Probe::Stamp => None,
        }
    }

    /// True if it goes between the tracker's addresses and ports: a reply from its behind address to its
    /// source, a probe the other way.
    #[inline(always)]
    pub fn belongs_to(&self, tracker: &Tracker, proof: Proof) -> bool {
        let (from, to) = match proof {
            Proof::Reply => (&tracker.behind, &tracker.source),
            Proof::Arrival => (&tracker.source, &tracker.behind),
        };
        let is_of_port = match (self.message, proof) {
            // The other port is one of the tracker's own, which a NAT may have replaced on the way there.
            (Message::Datagram, Proof::Reply) => self.ports.source == tracker.port,
            (Message::Datagram, Proof::Arrival) => self.ports.destination == tracker.port,
            (Message::EchoReply | Message::EchoRequest | Message::Error, _) => true,
        };
        is_of_port && self.goes_to(tracker, to) && self.sender == address::of_map(from)
    }

    /// True if it is an error by which the behind address says of a UDP probe that no program has its port.
    #[inline(always)]
    pub fn refuses(&self, tracker: &Tracker) -> bool {
        udp::refuses(self, tracker)
    }

    /// True if it came to the tracker's source, as an error about a probe does, from wherever.
    #[inline(always)]
    pub fn is_told_to(&self, tracker: &Tracker) -> bool {
        self.goes_to(tracker, &tracker.source)
    }

    #[inline(always)]
    fn goes_to(&self, tracker: &Tracker, address: &[u8; 16]) -> bool {
        tracker.family == self.family.into() && self.receiver == address::of_map(address)
    }
}

/// Looks for a reply in an Ethernet frame. `None` means foreign: other protocols, other messages,
/// fragments, IPv4 options and IPv6 extension headers (a probe has none, so neither has what answers
/// it: RFC 1122 section 3.2.2.6), more than one VLAN tag, truncated frames, other payloads.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Option<Reply> {
    let header: &[u8; ethernet::LEN] = frame.at(0)?;
    let ethertype = ethernet::parse(header);
    let reply = if ethertype == ethernet::VLAN {
        let (control, ethertype) = vlan::parse(frame.at(ethernet::LEN)?);
        parse_ip::<B, { ethernet::LEN + vlan::LEN }>(frame, ethertype, control)?
    } else {
        parse_ip::<B, { ethernet::LEN }>(frame, ethertype, 0)?
    };
    Some(Reply {
        last_hop: reply.last_hop.by(ethernet::source(header)),
        ..reply
    })
}

#[inline(always)]
fn parse_ip<B: Bytes + ?Sized, const AT: usize>(
    frame: &B,
    ethertype: u16,
    vlan: u16,
) -> Option<Reply> {
    match ethertype {
        ethernet::IPV4 => parse_packet::<V4, B, AT>(frame, vlan),
        ethernet::IPV6 => parse_packet::<V6, B, AT>(frame, vlan),
        _ => None,
    }
}

/// Looks for a reply in an IP packet that begins at `AT`; see [`parse`].
#[inline(always)]
pub fn parse_packet<V: Version, B: Bytes + ?Sized, const AT: usize>(
    frame: &B,
    vlan: u16,
) -> Option<Reply> {
    read::<V, B, AT>(frame, vlan, false)
}

/// Looks for an ICMP error about one of our probes in an IP packet that begins at `AT`. A copy of the packet cannot have the
/// probe header of both a reply and an error aligned, so each is looked for by itself.
#[inline(always)]
pub fn parse_error<V: Version, B: Bytes + ?Sized, const AT: usize>(frame: &B) -> Option<Reply> {
    read::<V, B, AT>(frame, 0, true)
}

#[inline(always)]
fn read<V: Version, B: Bytes + ?Sized, const AT: usize>(
    frame: &B,
    vlan: u16,
    only_errors: bool,
) -> Option<Reply> {
    let ip = V::header(frame, AT)?;
    let is_icmp = V::carries(ip, V::ICMP);
    if !is_icmp && !V::carries(ip, datagram::PROTOCOL) {
        return None;
    }
    let head: &[u8; HEADER_LEN] = frame.at(AT + V::LEN)?;
    let message = match is_icmp {
        true if V::is_error(head[0]) => Message::Error,
        true => icmp::message::<V>(head)?,
        false => Message::Datagram,
    };
    if only_errors && !matches!(message, Message::Error) {
        return None;
    }
    let probe_header = match message {
        Message::Error => probe_header(frame, AT + 2 * (V::LEN + HEADER_LEN))?,
        _ => probe_header(frame, AT + V::LEN + HEADER_LEN)?,
    };
    let Fields {
        source,
        destination,
        hops,
        room,
    } = V::fields(ip);
    // An error's sum covers more than can be read.
    let is_whole = match is_icmp {
        true if matches!(message, Message::Error) => true,
        true => icmp::is_whole::<V>(head, &probe_header, ip),
        false => udp::is_whole(head, room),
    };
    Some(Reply {
        message,
        probe_header,
        vlan,
        is_intact: is_whole && room >= REPLY_LEN && V::checksum_ok(ip),
        family: V::FAMILY,
        sender: source,
        receiver: destination,
        last_hop: LastHop::new(hops),
        kind: [head[0], head[1]],
        ports: ports(head),
    })
}

#[inline(always)]
fn ports(header: &[u8; datagram::LEN]) -> Ports {
    let datagram::Header {
        source,
        destination,
        ..
    } = datagram::parse(header);
    Ports {
        source,
        destination,
    }
}

/// The probe header at `at`, if there is one.
#[inline(always)]
fn probe_header<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<ProbeHeader> {
    let payload: &[u8; LEN] = frame.at(at)?;
    ProbeHeader::is_present(payload).then(|| ProbeHeader::parse(payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Path;
    use crate::{
        probe,
        wire::{ipv4, ipv6},
    };
    use pnet_packet::icmp::{self as pnet_icmp, IcmpCode, IcmpTypes, MutableIcmpPacket};
    use pnet_packet::icmpv6::{self as pnet_icmpv6, Icmpv6Types, MutableIcmpv6Packet};
    use pnet_packet::ip::IpNextHeaderProtocols;
    use pnet_packet::ipv4::{self as pnet_ipv4, MutableIpv4Packet};
    use pnet_packet::ipv6::MutableIpv6Packet;
    use pnet_packet::udp::MutableUdpPacket;
    use proptest::prelude::*;

    prop_compose! {
        fn exchanges()(
            behind: [u8; 16], source: [u8; 16], flow_first: u16, port: u16, is_v6: bool, is_udp: bool,
            control: u16, is_tagged: bool,
            payload in probe::LEN as u16..2_000, tracker: u32, number: u64, sent_mono_ns: u64, token: u64,
        ) -> Exchange {
            let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
            let vlan = if is_tagged { control } else { 0 };
            let probe = if is_udp { Probe::Udp } else { Probe::Icmp };
            let [behind, source] = [behind, source].map(|bytes| address::made_of(bytes, family));
            Exchange {
                tracker: Tracker { behind, source, payload, flow_first, port, family: family.into(), probe: probe.into(), ..Default::default() },
                path: Path { vlan, ..Default::default() },
                probe_header: ProbeHeader { tracker, number, sent_mono_ns, token },
            }
        }
    }

    #[derive(Clone, Debug)]
    struct Exchange {
        tracker: Tracker,
        path: Path,
        probe_header: ProbeHeader,
    }

    impl Exchange {
        fn ip_at(&self) -> usize {
            ethernet::LEN + if self.path.vlan == 0 { 0 } else { vlan::LEN }
        }

        fn icmp_at(&self) -> usize {
            self.ip_at()
                + match self.tracker.family.get() {
                    Family::Ipv4 => ipv4::LEN,
                    Family::Ipv6 => ipv6::LEN,
                }
        }

        /// True if source and destination are the same.
        fn is_to_itself(&self) -> bool {
            self.tracker.behind == self.tracker.source
        }

        /// Bytes without which there is no reply.
        fn head(&self) -> usize {
            self.icmp_at() + HEADER_LEN + probe::LEN
        }

        fn probe(&self) -> Vec<u8> {
            let Self {
                tracker,
                path,
                probe_header,
            } = self;
            let len = probe::wire_len(path.vlan != 0, tracker.family.get(), tracker.payload);
            let mut bytes = vec![0; len as usize];
            probe::emit(
                bytes.as_mut_slice(),
                path,
                tracker,
                probe_header,
                tracker.flow_first,
            )
            .expect("room for it");
            bytes
        }

        fn is_udp(&self) -> bool {
            self.tracker.probe.get() == Probe::Udp
        }

        /// What a reply is read as.
        fn replied(&self) -> Message {
            match self.tracker.probe.get() {
                Probe::Icmp => Message::EchoReply,
                Probe::Udp | Probe::Tcp | Probe::Stamp => Message::Datagram,
            }
        }

        /// What a host does with the probe: addresses and ports exchanged, the type changed, checksums anew.
        fn reply(&self) -> Vec<u8> {
            let mut frame = self.probe();
            let (ip, message) = frame[self.ip_at()..].split_at_mut(self.icmp_at() - self.ip_at());
            let is_udp = self.is_udp();
            if is_udp {
                let mut udp = MutableUdpPacket::new(message).expect("a whole header");
                let (source, destination) = (udp.get_source(), udp.get_destination());
                udp.set_source(destination);
                udp.set_destination(source);
                // As of a packet that stays within a machine.
                udp.set_checksum(0x1234);
            }
            match self.tracker.family.get() {
                Family::Ipv4 => {
                    let mut ip = MutableIpv4Packet::new(ip).expect("a whole header");
                    let (source, destination) = (ip.get_source(), ip.get_destination());
                    ip.set_source(destination);
                    ip.set_destination(source);
                    ip.set_ttl(61);
                    let right = pnet_ipv4::checksum(&ip.to_immutable());
                    ip.set_checksum(right);
                    if !is_udp {
                        let mut icmp = MutableIcmpPacket::new(message).expect("a whole message");
                        icmp.set_icmp_type(IcmpTypes::EchoReply);
                        let right = pnet_icmp::checksum(&icmp.to_immutable());
                        icmp.set_checksum(right);
                    }
                }
                Family::Ipv6 => {
                    let mut ip = MutableIpv6Packet::new(ip).expect("a whole header");
                    let (source, destination) = (ip.get_source(), ip.get_destination());
                    ip.set_source(destination);
                    ip.set_destination(source);
                    ip.set_hop_limit(61);
                    if !is_udp {
                        let mut icmp = MutableIcmpv6Packet::new(message).expect("a whole message");
                        icmp.set_icmpv6_type(Icmpv6Types::EchoReply);
                        let right =
                            pnet_icmpv6::checksum(&icmp.to_immutable(), &destination, &source);
                        icmp.set_checksum(right);
                    }
                }
            }
            frame
        }
    }

    proptest! {
        #[test]
        fn a_genuine_reply_is_recognised(exchange in exchanges()) {
            let frame = exchange.reply();
            let reply = parse(&frame[..]).expect("a reply");
            prop_assert_eq!((reply.message, reply.probe_header), (exchange.replied(), exchange.probe_header));
            prop_assert_eq!((reply.vlan, reply.last_hop.ttl()), (exchange.path.vlan, 61));
            prop_assert_eq!(reply.last_hop.mac(), exchange.path.source_mac);
            prop_assert!(reply.is_intact);
            prop_assert_eq!(reply.proof(&exchange.tracker), Some(Proof::Reply));
            prop_assert!(reply.belongs_to(&exchange.tracker, Proof::Reply));
        }

        #[test]
        fn a_probe_that_comes_back_is_recognised(exchange in exchanges()) {
            let arrived = parse(&exchange.probe()[..]).expect("a probe");
            prop_assert_eq!(arrived.probe_header, exchange.probe_header);
            let is_to_itself = exchange.is_to_itself() && exchange.is_udp();
            let proof = if is_to_itself { Proof::Reply } else { Proof::Arrival };
            prop_assert_eq!(arrived.proof(&exchange.tracker), Some(proof));
            prop_assert_eq!(arrived.vlan, exchange.path.vlan);
            prop_assert!(arrived.is_intact);
            prop_assert!(arrived.belongs_to(&exchange.tracker, Proof::Arrival));
            // Of the reply's direction it is not.
            let Tracker { behind, source, .. } = exchange.tracker;
            let turned = Tracker { behind: source, source: behind, ..exchange.tracker };
            prop_assert_eq!(arrived.belongs_to(&turned, Proof::Arrival), exchange.is_to_itself());
        }

        /// What begins with the IP header is read the same.
        #[test]
        fn without_an_ethernet_header(exchange in exchanges(), is_reply: bool) {
            let frame = if is_reply { exchange.reply() } else { exchange.probe() };
            let packet = &frame[exchange.ip_at()..];
            let bare = match exchange.tracker.family.get() {
                Family::Ipv4 => parse_packet::<V4, _, 0>(packet, exchange.path.vlan),
                Family::Ipv6 => parse_packet::<V6, _, 0>(packet, exchange.path.vlan),
            };
            let framed = parse(&frame[..]).map(|reply| Reply { last_hop: LastHop::new(reply.last_hop.ttl()), ..reply });
            prop_assert_eq!(bare, framed);
            prop_assert!(bare.is_some());
        }

        /// An error quotes the probe as it came there: with fewer hops left, or altered by a NAT.
        #[test]
        fn an_error_is_recognised(exchange in exchanges(), kind: u8, code: u8, from: [u8; 16], cut in 0usize..300) {
            let (ip_at, is_v6) = (exchange.ip_at(), exchange.tracker.family == Family::Ipv6.into());
            let probe = exchange.probe();
            let (ip, quote) = (&probe[ip_at..exchange.icmp_at()], &probe[ip_at..]);
            let mut quote = quote.to_vec();
            quote[if is_v6 { 7 } else { 8 }] = 1;
            let mut frame = probe[..ip_at].to_vec();
            frame.extend_from_slice(ip);
            frame.extend([kind, code, 0, 0, 0, 0, 0, 0]);
            frame.extend_from_slice(&quote);
            let head = &mut frame[ip_at..];
            if is_v6 {
                let mut ip = MutableIpv6Packet::new(head).expect("a whole header");
                ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
                ip.set_destination(ip.get_source());
                ip.set_source(from.into());
            } else {
                let mut ip = MutableIpv4Packet::new(head).expect("a whole header");
                ip.set_next_level_protocol(IpNextHeaderProtocols::Icmp);
                ip.set_destination(ip.get_source());
                ip.set_source(<[u8; 4]>::try_from(&from[..4]).expect("four bytes").into());
                let right = pnet_ipv4::checksum(&ip.to_immutable());
                ip.set_checksum(right);
            }
            let full = ip_at + 2 * (exchange.head() - ip_at) - probe::LEN;
            let is_error = if is_v6 { (1..5).contains(&kind) } else { [3, 11, 12].contains(&kind) };
            let error = parse(&frame[..]);
            let is_echo = [0, 8, 128, 129].contains(&kind);
            prop_assert!(error.is_some() == is_error || is_echo);
            if let (Some(error), true) = (error, is_error) {
                prop_assert_eq!((error.message, error.probe_header), (Message::Error, exchange.probe_header));
                prop_assert_eq!(error.kind, [kind, code]);
                let alone = match is_v6 {
                    false => parse_error::<V4, [u8], 0>(&frame[ip_at..]),
                    true => parse_error::<V6, [u8], 0>(&frame[ip_at..]),
                };
                prop_assert_eq!(alone, Some(Reply { vlan: 0, last_hop: LastHop::new(error.last_hop.ttl()), ..error }));
                prop_assert!(error.is_intact && error.is_told_to(&exchange.tracker));
                prop_assert_eq!(error.proof(&exchange.tracker), None);
                let sender: Vec<u8> = error.sender.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let len = if is_v6 { 16 } else { 4 };
                prop_assert_eq!(&sender[..len], &from[..len]);
                prop_assert!(sender[len..].iter().all(|byte| *byte == 0));
                // A quote that ends before the token proves nothing.
                let cut = cut % frame.len();
                prop_assert_eq!(parse(&frame[..cut]).is_some(), cut >= full);
            }
        }

        #[test]
        fn a_truncated_mark_is_no_mark(exchange in exchanges(), cut in 0usize..2_000) {
            let frame = exchange.reply();
            let len = cut % frame.len();
            let reply = parse(&frame[..len]);
            prop_assert_eq!(reply.is_some(), len >= exchange.head());
        }

        #[test]
        fn a_reply_answers_only_its_own_addresses(exchange in exchanges(), bit in 0usize..128) {
            let reply = parse(&exchange.reply()[..]).expect("a reply");
            let bits = match exchange.tracker.family.get() { Family::Ipv4 => 32, Family::Ipv6 => 128 };
            let bit = bit % bits;
            let mut other = exchange.tracker;
            other.behind[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!reply.belongs_to(&other, Proof::Reply));
            let mut other = exchange.tracker;
            other.source[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!reply.belongs_to(&other, Proof::Reply));
            let family = match exchange.tracker.family.get() {
                Family::Ipv4 => Family::Ipv6,
                Family::Ipv6 => Family::Ipv4,
            };
            let other = Tracker { family: family.into(), ..exchange.tracker };
            prop_assert!(!reply.belongs_to(&other, Proof::Reply));
        }

        /// Any single bit between the IP header and the end of the probe header either makes the frame foreign, or is
        /// caught, or is one that routers may change (IPv6 has no checksum over those).
        #[test]
        fn a_flipped_bit_is_caught(exchange in exchanges(), bit: usize) {
            let mut frame = exchange.reply();
            let (ip, icmp, head) = (exchange.ip_at(), exchange.icmp_at(), exchange.head());
            let bit = ip * 8 + bit % ((head - ip) * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            // Of UDP, what a NAT may change and no checksum covers: the tracker's own port and the checksum.
            // Lengths need only be possible.
            let of_udp = exchange.is_udp() && bit / 8 >= icmp;
            let is_free = match bit / 8 - if of_udp { icmp } else { ip } {
                2..4 | 6..8 if of_udp => true,
                4..6 if of_udp => {
                    let len = u16::from_be_bytes([frame[icmp + 4], frame[icmp + 5]]);
                    (HEADER_LEN + probe::LEN..=HEADER_LEN + usize::from(exchange.tracker.payload))
                        .contains(&usize::from(len))
                }
                _ if of_udp || exchange.tracker.family == Family::Ipv4.into() => false,
                // The version is in the upper half of the first byte.
                0 => bit % 8 < 4,
                1..4 | 7 => true,
                // Longer than its UDP message.
                4..6 if exchange.is_udp() => {
                    let len = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]);
                    usize::from(len) >= HEADER_LEN + usize::from(exchange.tracker.payload)
                }
                _ => false,
            };
            let is_accepted = parse(&frame[..])
                .is_some_and(|reply| reply.is_intact && reply.belongs_to(&exchange.tracker, Proof::Reply)
                    && reply.proof(&exchange.tracker).is_some()
                    && reply.probe_header == exchange.probe_header);
            prop_assert_eq!(is_accepted, is_free, "byte {} of the packet, ICMP at {}", bit / 8 - ip, icmp - ip);
        }

        #[test]
        fn a_code_is_not_accepted(mut exchange in exchanges(), code in 1u8..) {
            exchange.tracker.probe = Probe::Icmp.into();
            let mut frame = exchange.reply();
            let mut icmp = MutableIcmpPacket::new(&mut frame[exchange.icmp_at()..]).expect("a message");
            icmp.set_icmp_code(IcmpCode(code));
            // Keep the sum: the checksum gives what the code takes.
            let (sum, carry) = icmp.get_checksum().overflowing_sub(u16::from(code));
            icmp.set_checksum(sum.wrapping_sub(u16::from(carry)));
            let reply = parse(&frame[..]).expect("a reply");
            prop_assert!(!reply.is_intact);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes[..]);
        }

        /// Bytes that get further than noise does.
        #[test]
        fn no_damage_makes_it_panic(
            exchange in exchanges(),
            damage in proptest::collection::vec((0usize..200, any::<u8>()), 0..8),
            cut in 0usize..200,
        ) {
            let mut frame = exchange.reply();
            for (at, value) in damage {
                let at = at % frame.len();
                frame[at] = value;
            }
            frame.truncate(frame.len().saturating_sub(cut));
            let _ = parse(&frame[..]);
        }
    }
}

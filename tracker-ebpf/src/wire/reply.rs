//! Recognising what may be a reply to one of our probes, cheapest test first.

use super::{
    Bytes, ethernet, icmp, ipv4, ipv6,
    probe::{self, Mark},
    vlan,
};
use crate::abi::{Family, Proof, Tracker};

/// An echo message that bears the mark: a reply, or one of our probes that came back. Nothing of it is
/// proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it is: the probe that has arrived, or the reply to it.
    pub proof: Proof,
    /// What it says of that probe.
    pub mark: Mark,
    /// Tag control information, 0 where the frame has no tag of its own.
    pub vlan: u16,
    /// True where the lengths and checksums of all headers agree with each other.
    pub is_intact: bool,
    addresses: Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    Ipv4 {
        source: u32,
        destination: u32,
    },
    Ipv6 {
        source: ipv6::Address,
        destination: ipv6::Address,
    },
}

impl Reply {
    /// True where it goes between the tracker's addresses: a reply from its behind address to its source, a
    /// probe the other way.
    #[inline(always)]
    pub fn belongs_to(&self, tracker: &Tracker) -> bool {
        let (from, to) = match self.proof {
            Proof::Reply => (&tracker.behind, &tracker.source),
            Proof::Arrival => (&tracker.source, &tracker.behind),
        };
        match self.addresses {
            Addresses::Ipv4 {
                source,
                destination,
            } => {
                matches!(tracker.family, Family::Ipv4)
                    && source == super::be32(from, 0)
                    && destination == super::be32(to, 0)
            }
            Addresses::Ipv6 {
                source,
                destination,
            } => {
                matches!(tracker.family, Family::Ipv6)
                    && source == ipv6::address(from)
                    && destination == ipv6::address(to)
            }
        }
    }
}

/// Looks for a reply in an Ethernet frame. `None` means foreign: other protocols, other messages,
/// fragments, IPv4 options and IPv6 extension headers (a probe has none, so neither has what answers
/// it: RFC 1122 section 3.2.2.6), more than one VLAN tag, truncated frames, other payloads.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Option<Reply> {
    let ethertype = ethernet::parse(frame.at(0)?);
    if ethertype == ethernet::VLAN {
        let (control, ethertype) = vlan::parse(frame.at(ethernet::LEN)?);
        return parse_ip::<B, { ethernet::LEN + vlan::LEN }>(frame, ethertype, control);
    }
    parse_ip::<B, { ethernet::LEN }>(frame, ethertype, 0)
}

#[inline(always)]
fn parse_ip<B: Bytes + ?Sized, const AT: usize>(
    frame: &B,
    ethertype: u16,
    vlan: u16,
) -> Option<Reply> {
    match ethertype {
        ethernet::IPV4 => parse_ipv4::<B, AT>(frame, vlan),
        ethernet::IPV6 => parse_ipv6::<B, AT>(frame, vlan),
        _ => None,
    }
}

/// The same of an IPv4 packet that begins at `AT`.
#[inline(always)]
pub fn parse_ipv4<B: Bytes + ?Sized, const AT: usize>(frame: &B, vlan: u16) -> Option<Reply> {
    let ip: &[u8; ipv4::LEN] = frame.at(AT)?;
    if !ipv4::carries(ip, ipv4::ICMP) {
        return None;
    }
    let (proof, echo, mark) = marked(frame, AT + ipv4::LEN, icmp::ECHO_REPLY, icmp::ECHO)?;
    let header = ipv4::parse(ip);
    // A larger payload is zeros, which add nothing to the sum.
    let is_intact = usize::from(header.total_len) >= ipv4::LEN + icmp::LEN + probe::LEN
        && echo.code == 0
        && ipv4::checksum_ok(ip)
        && echo.sum(mark.sum()).u16(echo.checksum).folded() == 0xffff;
    let addresses = Addresses::Ipv4 {
        source: header.source,
        destination: header.destination,
    };
    Some(Reply {
        proof,
        mark,
        vlan,
        is_intact,
        addresses,
    })
}

/// The same of an IPv6 packet that begins at `AT`.
#[inline(always)]
pub fn parse_ipv6<B: Bytes + ?Sized, const AT: usize>(frame: &B, vlan: u16) -> Option<Reply> {
    let ip: &[u8; ipv6::LEN] = frame.at(AT)?;
    if !ipv6::carries(ip, ipv6::ICMP) {
        return None;
    }
    let (proof, echo, mark) = marked(frame, AT + ipv6::LEN, icmp::ECHO_REPLY_V6, icmp::ECHO_V6)?;
    let header = ipv6::parse(ip);
    let pseudo = ipv6::pseudo_header(
        header.source,
        header.destination,
        header.payload_len,
        ipv6::ICMP,
    );
    let sum = echo.sum(mark.sum().plus(pseudo)).u16(echo.checksum);
    let is_intact = usize::from(header.payload_len) >= icmp::LEN + probe::LEN
        && echo.code == 0
        && sum.folded() == 0xffff;
    let addresses = Addresses::Ipv6 {
        source: header.source,
        destination: header.destination,
    };
    Some(Reply {
        proof,
        mark,
        vlan,
        is_intact,
        addresses,
    })
}

/// The echo message at `at`, of one of two types, whose payload begins with the mark.
#[inline(always)]
fn marked<B: Bytes + ?Sized>(
    frame: &B,
    at: usize,
    reply: u8,
    request: u8,
) -> Option<(Proof, icmp::Echo, Mark)> {
    let echo: &[u8; icmp::LEN] = frame.at(at)?;
    let proof = match echo[0] {
        kind if kind == reply => Proof::Reply,
        kind if kind == request => Proof::Arrival,
        _ => return None,
    };
    let payload: &[u8; probe::LEN] = frame.at(at + icmp::LEN)?;
    if !Mark::is_present(payload) {
        return None;
    }
    Some((proof, icmp::parse(echo), Mark::parse(payload)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Path;
    use pnet_packet::icmp::{self as pnet_icmp, IcmpCode, IcmpTypes, MutableIcmpPacket};
    use pnet_packet::icmpv6::{self as pnet_icmpv6, Icmpv6Types, MutableIcmpv6Packet};
    use pnet_packet::ipv4::{self as pnet_ipv4, MutableIpv4Packet};
    use pnet_packet::ipv6::MutableIpv6Packet;
    use proptest::prelude::*;

    prop_compose! {
        fn exchanges()(
            behind: [u8; 16], source: [u8; 16], icmp_id: u16, is_v6: bool, control: u16, is_tagged: bool,
            payload in probe::LEN as u16..2_000, tracker: u32, sequence: u64, sent_mono_ns: u64, token: u64,
        ) -> Exchange {
            let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
            let vlan = if is_tagged { control } else { 0 };
            Exchange {
                tracker: Tracker { behind, source, payload, icmp_id, family, ..Default::default() },
                path: Path { vlan, ..Default::default() },
                mark: Mark { tracker, sequence, sent_mono_ns, token },
            }
        }
    }

    #[derive(Clone, Debug)]
    struct Exchange {
        tracker: Tracker,
        path: Path,
        mark: Mark,
    }

    impl Exchange {
        fn ip_at(&self) -> usize {
            ethernet::LEN + if self.path.vlan == 0 { 0 } else { vlan::LEN }
        }

        fn icmp_at(&self) -> usize {
            self.ip_at()
                + match self.tracker.family {
                    Family::Ipv4 => ipv4::LEN,
                    Family::Ipv6 => ipv6::LEN,
                }
        }

        /// True where source and destination are the same.
        fn is_to_itself(&self) -> bool {
            let len = self.icmp_at() - self.ip_at();
            let len = if len == ipv4::LEN { 4 } else { 16 };
            self.tracker.behind[..len] == self.tracker.source[..len]
        }

        /// Bytes without which there is no reply.
        fn head(&self) -> usize {
            self.icmp_at() + icmp::LEN + probe::LEN
        }

        fn probe(&self) -> Vec<u8> {
            let Self {
                tracker,
                path,
                mark,
            } = self;
            let len = probe::wire_len(path.vlan != 0, tracker.family, tracker.payload);
            let mut bytes = vec![0; len as usize];
            probe::emit(bytes.as_mut_slice(), path, tracker, mark).expect("room for it");
            bytes
        }

        /// What a host does with the probe: addresses exchanged, the type changed, checksums anew.
        fn reply(&self) -> Vec<u8> {
            let mut frame = self.probe();
            let (ip, message) = frame[self.ip_at()..].split_at_mut(self.icmp_at() - self.ip_at());
            match self.tracker.family {
                Family::Ipv4 => {
                    let mut ip = MutableIpv4Packet::new(ip).expect("a whole header");
                    let (source, destination) = (ip.get_source(), ip.get_destination());
                    ip.set_source(destination);
                    ip.set_destination(source);
                    ip.set_ttl(61);
                    let right = pnet_ipv4::checksum(&ip.to_immutable());
                    ip.set_checksum(right);
                    let mut icmp = MutableIcmpPacket::new(message).expect("a whole message");
                    icmp.set_icmp_type(IcmpTypes::EchoReply);
                    let right = pnet_icmp::checksum(&icmp.to_immutable());
                    icmp.set_checksum(right);
                }
                Family::Ipv6 => {
                    let mut ip = MutableIpv6Packet::new(ip).expect("a whole header");
                    let (source, destination) = (ip.get_source(), ip.get_destination());
                    ip.set_source(destination);
                    ip.set_destination(source);
                    ip.set_hop_limit(61);
                    let mut icmp = MutableIcmpv6Packet::new(message).expect("a whole message");
                    icmp.set_icmpv6_type(Icmpv6Types::EchoReply);
                    let right = pnet_icmpv6::checksum(&icmp.to_immutable(), &destination, &source);
                    icmp.set_checksum(right);
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
            prop_assert_eq!((reply.proof, reply.mark), (Proof::Reply, exchange.mark));
            prop_assert_eq!(reply.vlan, exchange.path.vlan);
            prop_assert!(reply.is_intact);
            prop_assert!(reply.belongs_to(&exchange.tracker));
        }

        #[test]
        fn a_probe_that_comes_back_is_recognised(exchange in exchanges()) {
            let arrived = parse(&exchange.probe()[..]).expect("a probe");
            prop_assert_eq!((arrived.proof, arrived.mark), (Proof::Arrival, exchange.mark));
            prop_assert_eq!(arrived.vlan, exchange.path.vlan);
            prop_assert!(arrived.is_intact);
            prop_assert!(arrived.belongs_to(&exchange.tracker));
            // Of the reply's direction it is not.
            let Tracker { behind, source, .. } = exchange.tracker;
            let turned = Tracker { behind: source, source: behind, ..exchange.tracker };
            prop_assert_eq!(arrived.belongs_to(&turned), exchange.is_to_itself());
        }

        /// What begins with the IP header is read the same.
        #[test]
        fn without_an_ethernet_header(exchange in exchanges(), is_reply: bool) {
            let frame = if is_reply { exchange.reply() } else { exchange.probe() };
            let packet = &frame[exchange.ip_at()..];
            let bare = match exchange.tracker.family {
                Family::Ipv4 => parse_ipv4::<_, 0>(packet, exchange.path.vlan),
                Family::Ipv6 => parse_ipv6::<_, 0>(packet, exchange.path.vlan),
            };
            prop_assert_eq!(bare, parse(&frame[..]));
            prop_assert!(bare.is_some());
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
            let bits = match exchange.tracker.family { Family::Ipv4 => 32, Family::Ipv6 => 128 };
            let bit = bit % bits;
            let mut other = exchange.tracker;
            other.behind[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!reply.belongs_to(&other));
            let mut other = exchange.tracker;
            other.source[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!reply.belongs_to(&other));
            let family = match exchange.tracker.family {
                Family::Ipv4 => Family::Ipv6,
                Family::Ipv6 => Family::Ipv4,
            };
            let other = Tracker { family, ..exchange.tracker };
            prop_assert!(!reply.belongs_to(&other));
        }

        /// Any single bit between the IP header and the end of the mark either makes the frame foreign, or is
        /// caught, or is one that routers may change (IPv6 has no checksum over those).
        #[test]
        fn a_flipped_bit_is_caught(exchange in exchanges(), bit: usize) {
            let mut frame = exchange.reply();
            let (ip, icmp, head) = (exchange.ip_at(), exchange.icmp_at(), exchange.head());
            let bit = ip * 8 + bit % ((head - ip) * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            let is_free = exchange.tracker.family == Family::Ipv6
                && match bit / 8 - ip {
                    // The version is in the upper half of the first byte.
                    0 => bit % 8 < 4,
                    1..4 | 7 => true,
                    _ => false,
                };
            let is_accepted = parse(&frame[..])
                .is_some_and(|reply| reply.is_intact && reply.belongs_to(&exchange.tracker));
            prop_assert_eq!(is_accepted, is_free, "byte {} of the packet, ICMP at {}", bit / 8 - ip, icmp - ip);
        }

        #[test]
        fn a_code_is_not_accepted(exchange in exchanges(), code in 1u8..) {
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

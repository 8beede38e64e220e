//! Recognising what may answer a probe that carries no probe header of ours back: of TCP and STAMP, cheapest test first.

use super::{
    reply::LastHop,
    stamp::{self, Claim},
    tcp,
};
use crate::{
    abi::{Family, Probe, StreamKey, Tracker, is_own_port},
    wire::{
        Bytes,
        address::{self, Address},
        be16, ethernet, icmp,
        ip::{Fields, V4, V6, Version},
        tcp as segment, udp, vlan,
    },
};

/// A message to or from one of the ports of our probes: an answer, a probe that came back, or an error about one.
/// Nothing of it is proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it is.
    pub message: Message,
    /// What proves it.
    pub evidence: Evidence,
    /// The address and port that were probed.
    pub behind: Address,
    /// See `behind`.
    pub port: u16,
    /// Source address of the probe (for an error: the address it is sent to), and its source port.
    pub source: Address,
    /// See `source`.
    pub own_port: u16,
    /// Its source address.
    pub sender: Address,
    /// Family of the addresses.
    pub family: Family,
    /// Tag control information, 0 if the frame has no tag of its own.
    pub vlan: u16,
    /// True if the lengths of all headers agree with each other, and the IPv4 header's checksum is right.
    pub is_intact: bool,
    /// The router or host from which it arrived.
    pub last_hop: LastHop,
    /// ICMP type and code; of others they mean nothing.
    pub kind: [u8; 2],
}

/// What a message is to our probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The peer takes the connection, or reflects the datagram.
    Reply,
    /// The peer, or a firewall in its name, resets the connection.
    Reset,
    /// The peer holds a connection that an earlier probe from the same port opened, and says so in answer to a
    /// later one (RFC 9293 section 3.10.7.4, a challenge ACK of RFC 5961 section 4.2).
    Held,
    /// A probe.
    Probe,
    /// An ICMP error that quotes a probe as far as what proves it.
    Error,
}

/// What of a probe is in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The sequence number of a SYN.
    Syn(u32),
    /// The first bytes of a STAMP packet.
    Stamp(Claim),
}

impl Evidence {
    /// The kind of probe.
    #[inline(always)]
    pub const fn probe(&self) -> Probe {
        match self {
            Self::Syn(_) => Probe::Tcp,
            Self::Stamp(_) => Probe::Stamp,
        }
    }

    /// The sequence number of the probe, if `sent` is that of its tracker's last one: never a later one.
    #[inline(always)]
    pub const fn sequence(&self, salt: u8, sent: u64) -> u64 {
        match self {
            Self::Syn(number) => tcp::probe_sequence(*number, salt, sent),
            Self::Stamp(claim) => claim.sequence(sent),
        }
    }

    /// True if it proves the probe of this sequence number and token, sent for the tracker in `slot` by the instance with this tag.
    #[inline(always)]
    pub fn is_of(&self, salt: u8, tag: u32, slot: u32, sequence: u64, token: u64) -> bool {
        match self {
            Self::Syn(number) => tcp::initial_sequence(token, salt, sequence) == *number,
            Self::Stamp(claim) => *claim == Claim::new(tag, slot, sequence, token),
        }
    }
}

impl Answer {
    /// True if it is about the tracker's kind of probe and came to the tracker's source, from wherever.
    #[inline(always)]
    pub fn is_told_to(&self, tracker: &Tracker) -> bool {
        tracker.probe == self.evidence.probe().into()
            && tracker.family == self.family.into()
            && address::of_map(&tracker.source) == self.source
    }

    /// True if it is an error by which the behind address says of a UDP probe that no program has its port.
    #[inline(always)]
    pub fn refuses(&self) -> bool {
        matches!(self.evidence, Evidence::Stamp(_))
            && icmp::is_port_unreachable(self.kind, self.family)
            && self.sender == self.behind
    }

    /// By which the trackers are found that ask the port of a SYN.
    #[inline(always)]
    pub fn stream(&self) -> StreamKey {
        let [high, low] = self.behind.map(u64::to_ne_bytes);
        let mut behind = [0; 16];
        behind[..8].copy_from_slice(&high);
        behind[8..].copy_from_slice(&low);
        StreamKey::new(behind, self.port, self.family)
    }

    /// True if it is between the tracker's addresses and ports, and about its kind of probe.
    #[inline(always)]
    pub fn belongs_to(&self, tracker: &Tracker) -> bool {
        self.is_told_to(tracker)
            && tracker.port == self.port
            && address::of_map(&tracker.behind) == self.behind
    }
}

/// What is read above IP.
pub(super) struct Above {
    message: Message,
    evidence: Evidence,
    /// Those of a message from the behind address are the other way round.
    source: u16,
    destination: u16,
    is_whole: bool,
}

impl Above {
    pub(super) const fn new(
        message: Message,
        evidence: Evidence,
        ports: [u16; 2],
        is_whole: bool,
    ) -> Self {
        let [source, destination] = ports;
        Self {
            message,
            evidence,
            source,
            destination,
            is_whole,
        }
    }
}

/// Looks for an answer in an Ethernet frame. `None` means foreign, for the same reasons as with
/// [`super::reply::parse`], and other ports or flags.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Option<Answer> {
    let header: &[u8; ethernet::LEN] = frame.at(0)?;
    let (at, ethertype, vlan) = match ethernet::parse(header) {
        ethernet::VLAN => {
            let (control, ethertype) = vlan::parse(frame.at(ethernet::LEN)?);
            (ethernet::LEN + vlan::LEN, ethertype, control)
        }
        ethertype => (ethernet::LEN, ethertype, 0),
    };
    let answer = match ethertype {
        ethernet::IPV4 => parse_packet::<V4, B>(frame, at)?,
        ethernet::IPV6 => parse_packet::<V6, B>(frame, at)?,
        _ => return None,
    };
    Some(Answer {
        last_hop: answer.last_hop.by(ethernet::source(header)),
        vlan,
        ..answer
    })
}

/// Looks for an answer in an IP packet that begins at `at`; see [`parse`].
#[inline(always)]
pub fn parse_packet<V: Version, B: Bytes + ?Sized>(packet: &B, at: usize) -> Option<Answer> {
    let ip = V::header(packet, at)?;
    let protocol = V::protocol(ip);
    if !V::carries(ip, protocol) {
        return None;
    }
    let Fields {
        source,
        destination,
        hops,
        room,
    } = V::fields(ip);
    let mut answer = if protocol == V::ICMP {
        let icmp: &[u8; icmp::LEN] = packet.at(at + V::LEN)?;
        if !V::is_error(icmp[0]) {
            return None;
        }
        let quoted_at = at + V::LEN + icmp::LEN;
        let quoted = V::header(packet, quoted_at)?;
        let protocol = V::protocol(quoted);
        if !V::carries(quoted, protocol) {
            return None;
        }
        let behind = V::fields(quoted).destination;
        let room = room.saturating_sub(icmp::LEN + V::LEN);
        let above = quote(packet, quoted_at + V::LEN, protocol, room)?;
        let answer = answer(above, [destination, behind], source, V::FAMILY);
        Answer {
            kind: [icmp[0], icmp[1]],
            ..answer
        }
    } else {
        let above = above(packet, at + V::LEN, protocol, room)?;
        answer(above, [source, destination], source, V::FAMILY)
    };
    answer.is_intact &= V::checksum_ok(ip);
    answer.last_hop = LastHop::new(hops);
    Some(answer)
}

/// Puts a message together. The two addresses are source and destination of the segment or datagram that it is or quotes.
#[inline(always)]
fn answer(above: Above, [from, to]: [Address; 2], sender: Address, family: Family) -> Answer {
    let (behind, port, source, own_port) = match above.message {
        Message::Reply | Message::Reset | Message::Held => {
            (from, above.source, to, above.destination)
        }
        Message::Probe | Message::Error => (to, above.destination, from, above.source),
    };
    Answer {
        message: above.message,
        evidence: above.evidence,
        behind,
        port,
        source,
        own_port,
        sender,
        family,
        vlan: 0,
        is_intact: above.is_whole,
        last_hop: LastHop::new(0),
        kind: [0; 2],
    }
}

/// Reads what is above an IP header, in a packet that has `room` for it.
#[inline(always)]
fn above<B: Bytes + ?Sized>(packet: &B, at: usize, protocol: u8, room: usize) -> Option<Above> {
    match protocol {
        segment::PROTOCOL => tcp::read(packet, at, room),
        udp::PROTOCOL => stamp::read(packet, at, room),
        _ => None,
    }
}

/// Reads the beginning of a probe that an error quotes, in a packet that has `room` for it.
#[inline(always)]
fn quote<B: Bytes + ?Sized>(packet: &B, at: usize, protocol: u8, room: usize) -> Option<Above> {
    let ports: &[u8; segment::PORTS_LEN] = packet.at(at)?;
    let (source, destination) = (be16(ports, 0), be16(ports, 2));
    if !is_own_port(source) {
        return None;
    }
    let (evidence, len) = match protocol {
        segment::PROTOCOL => (tcp::quoted(ports), tcp::QUOTE_LEN),
        udp::PROTOCOL => (stamp::quoted(packet, at)?, stamp::QUOTE_LEN),
        _ => return None,
    };
    let ports = [source, destination];
    Some(Above::new(Message::Error, evidence, ports, len <= room))
}

/// Reads whose probe a frame is that the send program built, or the end of one: an untagged one.
#[inline(always)]
pub fn parse_sent<B: Bytes + ?Sized>(frame: &B) -> Option<Answer> {
    match ethernet::parse(frame.at(0)?) {
        ethernet::IPV4 => sent::<V4, B>(frame),
        ethernet::IPV6 => sent::<V6, B>(frame),
        _ => None,
    }
}

#[inline(always)]
fn sent<V: Version, B: Bytes + ?Sized>(frame: &B) -> Option<Answer> {
    let ip = V::header(frame, ethernet::LEN)?;
    let Fields {
        source,
        destination,
        ..
    } = V::fields(ip);
    let at = ethernet::LEN + V::LEN;
    let sent = quote(frame, at, V::protocol(ip), usize::MAX)?;
    Some(answer(sent, [source, destination], source, V::FAMILY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Path;
    use crate::probe::{self, ProbeHeader};
    use proptest::prelude::*;

    prop_compose! {
        /// A tracker of either kind, its path, and a probe.
        fn probes()(
            behind: [u8; 16], source: [u8; 16], own in 0u16..4_096, port: u16, salt: u8, is_v6: bool, is_tcp: bool,
            control: u16, is_tagged: bool, tracker in 0u32..1 << 24, number in 1u64.., token: u64,
        ) -> (Tracker, Path, ProbeHeader) {
            let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
            let only = |bytes| address::made_of(bytes, family);
            let (probe, payload) = match is_tcp {
                true => (Probe::Tcp, tcp::SYN_PAYLOAD),
                false => (Probe::Stamp, stamp::LEN as u16),
            };
            let tracker_entry = Tracker {
                behind: only(behind), source: only(source), payload, port, salt, family: family.into(), probe: probe.into(),
                flow_first: crate::abi::FIXED_PORTS | own,
                ..Default::default()
            };
            let path = Path { vlan: if is_tagged { control } else { 0 }, ..Default::default() };
            (tracker_entry, path, ProbeHeader { tracker, number, sent_mono_ns: 0, token })
        }
    }

    fn frame(tracker: &Tracker, path: &Path, probe_header: &ProbeHeader) -> Vec<u8> {
        let len = probe::wire_len(path.vlan != 0, tracker.family.get(), tracker.payload);
        let mut frame = vec![0; len as usize];
        probe::emit(
            &mut frame[..],
            path,
            tracker,
            probe_header,
            tracker.flow_first,
        )
        .expect("room for it");
        frame
    }

    proptest! {
        #[test]
        fn a_probe_is_known_again((tracker, path, probe_header) in probes()) {
            let frame = frame(&tracker, &path, &probe_header);
            let seen = parse(&frame[..]).expect("a probe");
            prop_assert_eq!(seen.message, Message::Probe);
            prop_assert!(seen.is_intact && seen.belongs_to(&tracker));
            prop_assert_eq!((seen.last_hop.ttl(), seen.vlan), (64, path.vlan));
            let evidence = match tracker.probe.get() {
                Probe::Tcp => Evidence::Syn(tcp::initial_sequence(probe_header.token, tracker.salt, probe_header.number)),
                _ => Evidence::Stamp(Claim::new(probe_header.tag(), probe_header.tracker, probe_header.number, probe_header.token)),
            };
            prop_assert_eq!(seen.evidence, evidence);
            prop_assert_eq!(seen.stream(), tracker.stream());
            if path.vlan == 0 {
                let sent = parse_sent(&frame[..]).expect("what was sent");
                prop_assert_eq!((sent.evidence, sent.stream()), (evidence, tracker.stream()));
            }
            let mut other = tracker;
            other.source[3] ^= 1;
            prop_assert!(!seen.belongs_to(&other));
            let other = Tracker { probe: Probe::Udp.into(), ..tracker };
            prop_assert!(!seen.belongs_to(&other));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes[..]);
            let _ = parse_sent(&bytes[..]);
        }

        /// Bytes that get further than noise does.
        #[test]
        fn no_damage_makes_it_panic(
            (tracker, path, probe_header) in probes(),
            damage in proptest::collection::vec((0usize..200, any::<u8>()), 0..8),
            cut in 0usize..100,
        ) {
            let mut frame = frame(&tracker, &path, &probe_header);
            for (at, value) in damage {
                let at = at % frame.len();
                frame[at] = value;
            }
            frame.truncate(frame.len().saturating_sub(cut));
            let _ = parse(&frame[..]);
            let _ = parse_sent(&frame[..]);
        }
    }
}

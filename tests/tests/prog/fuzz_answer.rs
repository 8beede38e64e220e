//! Answers to probes of TCP and STAMP, which carry no mark, by the hundred thousand: genuine ones, what differs from them in
//! one thing, and the hub's own connections from ports of ours to the same address and port. Several trackers are judged
//! beside each other. Two oracles as in `fuzz.rs`: [`read`] goes by pnet_packet and the product's rules, [`genuine`] holds
//! a frame byte for byte against the answers that there are.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use anyhow::Result;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::tcp::TcpPacket;
use pnet_packet::udp::UdpPacket;
use pnet_packet::vlan::VlanPacket;
use tracker_ebpf::abi::{Complaint, Family, Probe, Proof};
use tracker_tests::packets::{self, ECHO, ETHERNET, IPV4, IPV6, TAG, Tag};
use tracker_tests::random::{Random, Round, Rounds, Tally};

use super::answer::{Row, Want};
use super::frames::{self, Pool, be16};
use super::fuzz::{self, Probes};
use super::receive::{self, Actions, V4, V6, header};
use super::{ARRIVAL, BEHIND_V4, BEHIND_V6, Beside, ENDPOINT_MAC, HUB_MAC, HUB_V4, HUB_V6};
use super::{Object, SLOTS, World, now_mono_ns};

/// Frames of one round, fewer than a bit set has bits, so that no sequence number comes round again.
const FRAMES: u64 = 240;
/// Ports from here on are those of probes.
const OWN_PORTS: u16 = 61_440;
/// Words of a tracker's bit set, and as many times behind it.
const WORDS: u64 = 4;
/// How many probes a SYN's number tells apart.
const FLIGHTS: u64 = 256;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Flags that tell what a segment is, FIN among them.
const TELLING: u8 = 0x17;
/// The error estimate of STAMP packets that are ours.
const ESTIMATE: [u8; 2] = [0x1f, 0x54];
/// Bytes of a STAMP packet.
const STAMP: usize = 44;
/// Where a reflector's packet has what was sent, of which so much comes back.
const REFLECTED: usize = 24;
const CLAIM: usize = 14;

/// A tracker and its probes.
struct Peer {
    world: World,
    /// When the last probes were sent, by sequence number.
    times: HashMap<u64, u64>,
    answered: HashSet<u64>,
}

impl Peer {
    const fn sent(&self) -> u64 {
        self.world.state.send.sent
    }

    const fn probe(&self) -> Probe {
        self.world.tracker.probe
    }

    /// Whether this may be the source port of one of its probes: even or odd ones are its share.
    fn has_port(&self, port: u16) -> bool {
        is_own(port) && port % 2 == self.world.tracker.flow_first % 2
    }

    /// The sequence numbers that an answer can be of.
    fn answerable(&self) -> Range<u64> {
        let flights = match self.probe() {
            Probe::Tcp => FLIGHTS,
            // As many as a round comes to; a STAMP packet tells all of them apart.
            _ => 4 * FLIGHTS,
        };
        let sent = self.sent();
        (sent + 1).saturating_sub(flights).max(1)..sent + 1
    }

    /// Notes a probe as sent, as the send program does.
    fn send(&mut self, object: &mut Object, sent: u64) -> Result<()> {
        let window = u64::from(self.world.tracker.window_first);
        let word = window + sent / 64 % WORDS;
        if sent.is_multiple_of(64) {
            object.windows.set(word as u32, 0, 0)?;
        }
        let at = now_mono_ns() - 1_000_000;
        let time = window + WORDS + sent % WORDS;
        object.windows.set(time as u32, at, 0)?;
        self.times.insert(sent, at);
        self.world.state.send.sent = sent;
        let mut state = object.states.get(&self.world.slot, 0)?;
        state.send.sent = sent;
        object.states.set(self.world.slot, state, 0)?;
        Ok(())
    }
}

/// What differs between the trackers of one world and those of another.
fn peers(random: &mut Random, family: Family, actions: Actions) -> Vec<Peer> {
    let mut peers = Vec::new();
    for slot in 1..=3u32 {
        let other = if family == V4 { V6 } else { V4 };
        let family = if random.is_one_in(4) { other } else { family };
        let probe = match slot {
            1 => Probe::Tcp,
            2 if random.is_one_in(2) => Probe::Tcp,
            _ => Probe::Stamp,
        };
        let world = World::new(family).with(|world| {
            world.slot = slot;
            let tracker = &mut world.tracker;
            tracker.probe = probe;
            tracker.epoch += slot * random.below(2) as u32;
            tracker.path = slot - 1;
            tracker.window_first = 8 + 8 * slot;
            tracker.window_mask = WORDS as u32 - 1;
            tracker.payload = if probe == Probe::Tcp { 20 } else { 44 };
            tracker.port = *random.pick(&[443, 443, 862]);
            tracker.salt = random.byte();
            // Two of TCP are never told by the same port; one of STAMP may have that of one of TCP.
            (tracker.flow_first, tracker.flow_mask) = match (probe, slot) {
                (Probe::Tcp, 1) => (*random.pick(&[61_445, 1_025, 32_767]), 0),
                (Probe::Tcp, _) => (*random.pick(&[63_680, 1_024, 8_080]), 0),
                _ if random.is_one_in(2) => (63_488, 2_047),
                _ => (61_445, 0),
            };
            tracker.timeout_ns = if random.is_one_in(8) { 0 } else { u64::MAX };
            tracker.refused_is_reply = u8::from(random.is_one_in(3));
            tracker.active = u8::from(!random.is_one_in(16));
            if random.is_one_in(4) {
                tracker.proof = Proof::Arrival;
            }
            if random.is_one_in(8) {
                tracker.return_ttl = 64;
            }
            world.path.arrivals = world.path.returns;
            if random.is_one_in(8) {
                world.path.returns = [901, 0, 0, 0];
                world.path.arrivals = [902, 0, 0, 0];
            }
            if actions.sees_hop && random.is_one_in(8) {
                world.path.checks_hop = 1;
                world.path.interface = ARRIVAL;
            }
            // At the beginning of its life, in the middle, where the number of a STAMP packet wraps, and where it is the
            // word that others begin with.
            world.state.send.sent = *random.pick(&[2, 5, 300, 1_000, (1 << 32) - 2, 0x5452_4b4e]);
            world.state.receive.verdict = u8::from(!random.is_one_in(4));
        });
        peers.push(Peer {
            world,
            times: HashMap::new(),
            answered: HashSet::new(),
        });
    }
    peers
}

/// Frames of one round.
struct Fuzzer {
    random: Random,
    marked: fuzz::Fuzzer,
    pool: Pool,
    /// A frame of before, of which parts get into others.
    last: Vec<u8>,
}

/// What a frame is made to be.
#[derive(Clone, Copy, Debug)]
enum Made {
    Noise,
    Marked,
    Answer,
    Nearly,
    Damaged,
    Others,
}

impl Fuzzer {
    fn new(mut random: Random, peers: &[Peer], marked: &World) -> Self {
        let ports = peers.iter().flat_map(|peer| {
            let tracker = peer.world.tracker;
            [tracker.port, tracker.flow_first]
        });
        let payloads = peers.iter().flat_map(|peer| {
            let claim = peer.world.claim(peer.sent());
            [reflection(&[0; REFLECTED], &claim), claim]
        });
        Self {
            marked: fuzz::Fuzzer::new(Random::new(random.word()), marked.clone()),
            pool: Pool {
                macs: vec![HUB_MAC, ENDPOINT_MAC, [0; 6]],
                v4: vec![HUB_V4, BEHIND_V4],
                v6: vec![HUB_V6, BEHIND_V6],
                ports: ports.collect(),
                payloads: payloads.collect(),
            },
            random,
            last: Vec::new(),
        }
    }

    fn next(&mut self, peers: &[Peer]) -> (Made, Vec<u8>) {
        let peer = self.random.below(peers.len());
        let peer = &peers[peer];
        let (made, frame) = match self.random.below(32) {
            0 => (Made::Noise, frames::noise(&mut self.random)),
            1 | 2 => (
                Made::Noise,
                frames::structured(&mut self.random, &self.pool),
            ),
            3 | 4 => {
                self.marked.go_on();
                (Made::Marked, self.marked.marked())
            }
            5..=13 => (Made::Answer, self.answer(peer)),
            14..=19 => (Made::Nearly, self.nearly(peer)),
            20..=25 => {
                let genuine = self.answer(peer);
                let damaged = frames::damaged(&mut self.random, &genuine, &self.last);
                (Made::Damaged, damaged)
            }
            _ => (Made::Others, self.others(peer)),
        };
        self.last.clone_from(&frame);
        (made, frame)
    }

    /// A frame around a packet of which a hop or two may have changed something.
    fn link(&mut self, peer: &Peer, is_probe: bool, packet: &[u8]) -> Vec<u8> {
        let random = &mut self.random;
        let mut link = peer.world.inbound();
        if is_probe {
            link.destination = [0; 6];
        }
        if random.is_one_in(16) {
            link.destination = peer.world.path.next_hop_mac;
        }
        if random.is_one_in(16) {
            link.source = *random.pick(&[HUB_MAC, [0; 6], [0xff; 6]]);
        }
        link.tags = match random.below(16) {
            0..=2 => vec![Tag::dot1q(*random.pick(&[0, 7, 0xe000, 0xe064, 0xffff]))],
            3 if random.is_one_in(2) => vec![Tag::dot1ad(1), Tag::dot1q(2)],
            _ => Vec::new(),
        };
        let mut frame = link.ip(packet);
        if random.is_one_in(4)
            && let Some((ip, ethertype)) = frames::ip_at(&frame)
        {
            // Class, identification, "don't fragment", hops.
            let (class, hops) = if ethertype == 0x0800 { (1, 8) } else { (2, 7) };
            frame[ip + class] = random.byte();
            frame[ip + hops] = *random.pick(&[1, 63, 64, 255]);
            if ethertype == 0x0800 {
                frame[ip + 6] = *random.pick(&[0, 0x40]);
                packets::mend_ipv4(&mut frame[ip..ip + IPV4]);
            }
        }
        if random.is_one_in(8) {
            let more = random.below(20);
            frame.extend(random.bytes(more));
        }
        frame
    }

    /// An answer as a peer may give it, of a probe that was sent or would be, a probe that came back, or an error.
    fn answer(&mut self, peer: &Peer) -> Vec<u8> {
        let world = &peer.world;
        let (hub, behind) = world.addresses();
        let before =
            *self
                .random
                .pick(&[0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 7, 255, 256, 257, u64::MAX]);
        let sequence = peer.sent().wrapping_sub(before);
        let probe = world.probe(world.mark(sequence, 0)).split_off(ETHERNET);
        let form = self.random.below(16);
        if (form < 3) ^ (world.tracker.proof == Proof::Arrival && form < 12) {
            return self.link(peer, true, &probe);
        }
        if form < 5 {
            let hop = match hub {
                IpAddr::V4(_) => IpAddr::from([10, 9, 0, 2]),
                IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 2]),
            };
            let kinds: &[u8] = if hub.is_ipv4() {
                &[3, 3, 11, 12, 4, 5]
            } else {
                &[1, 2, 3, 4, 5]
            };
            let kind = [*self.random.pick(kinds), self.random.byte() & 15];
            let least = if hub.is_ipv4() { IPV4 } else { IPV6 } + ECHO;
            let len = match self.random.below(3) {
                0 => least,
                1 => least + CLAIM,
                _ => probe.len(),
            };
            let quoted = &probe[..len.min(probe.len())];
            return self.link(peer, false, &packets::error(hop, hub, kind, quoted));
        }
        let ports = [world.tracker.port, world.flow(sequence)];
        if world.tracker.probe == Probe::Tcp {
            let right = world.initial_sequence(sequence).wrapping_add(1);
            let number = self.random.word() as u32;
            let (flags, options): (_, &[u8]) = match self.random.is_one_in(4) {
                true => (RST | ACK, &[]),
                false => (SYN | ACK, &[2, 4, 5, 0xb4, 1, 1, 4, 2]),
            };
            // What ECN and others have there.
            let more = *self.random.pick(&[0, 0, 0, 0x08, 0x20, 0x40, 0xc0]);
            let segment = packets::segment(
                [behind, hub],
                ports,
                [number, right],
                flags | more,
                self.random.word() as u16,
                options,
            );
            return self.link(peer, false, &segment);
        }
        let mut own = self.random.bytes(REFLECTED);
        if self.random.is_one_in(2) {
            // A reflector without a state repeats the sender's number.
            own[..4].copy_from_slice(&world.claim(sequence)[..4]);
        }
        let mut packet = reflection(&own, &world.claim(sequence));
        let more = *self.random.pick(&[0, 0, 0, 1, 4, 60]);
        packet.extend(self.random.bytes(more));
        let datagram = packets::datagram([behind, hub], ports, &packet);
        self.link(peer, false, &datagram)
    }

    /// An answer in which a field or two are another's, with checksums that agree mostly.
    fn nearly(&mut self, peer: &Peer) -> Vec<u8> {
        let mut frame = self.answer(peer);
        let random = &mut self.random;
        let Some((ip, ethertype)) = frames::ip_at(&frame) else {
            return frame;
        };
        let (len, protocol, hops) = match ethertype {
            0x0800 => (IPV4, 9, 8),
            _ => (IPV6, 6, 7),
        };
        for _ in 0..*random.pick(&[1, 1, 1, 2]) {
            // Of what an error quotes as often as of itself.
            let is_error = [1, 58].contains(&frame[ip + protocol]);
            let ip = match is_error && random.is_one_in(2) {
                true => ip + len + ECHO,
                false => ip,
            };
            let above = ip + len;
            let stamp = above + ECHO;
            let (at, len) = *random.pick(&[
                // Addresses, protocol, hops, length, version and length of the header.
                (above - 1, 1),
                (above - len.min(5), 1),
                (ip + protocol, 1),
                (ip + hops, 1),
                (ip + if len == IPV4 { 2 } else { 4 }, 2),
                (ip, 1),
                // Ports.
                (above, 2),
                (above, 2),
                (above + 2, 2),
                (above + 2, 2),
                // Numbers, offset and flags of TCP; length of UDP.
                (above + 4, 4),
                (above + 4, 2),
                (above + 8, 4),
                (above + 8, 4),
                (above + 12, 1),
                (above + 13, 1),
                (above + 13, 1),
                // Number, slot, token and estimate of STAMP, as sent and as reflected.
                (stamp, 4),
                (stamp + 4, 3),
                (stamp + 7, 5),
                (stamp + 12, 2),
                (stamp + 24, 4),
                (stamp + 28, 3),
                (stamp + 31, 5),
                (stamp + 31, 5),
                (stamp + 36, 2),
            ]);
            let theirs = self.last.get(at..at + len).map(<[u8]>::to_vec);
            let Some(field) = frame.get_mut(at..at + len) else {
                continue;
            };
            match (random.below(8), theirs) {
                (0..=3, _) => field[random.below(len)] ^= 1 << random.below(8),
                (4, _) => field[len - 1] = field[len - 1].wrapping_add(1),
                (5, _) => field[len - 1] = field[len - 1].wrapping_sub(1),
                (6, Some(theirs)) => field.copy_from_slice(&theirs),
                (6, None) => field.fill(0),
                _ => field.copy_from_slice(&random.bytes(len)),
            }
        }
        if random.is_one_in(16) {
            let len = ETHERNET + random.below(frame.len() - ETHERNET);
            frame.truncate(len);
        }
        if !random.is_one_in(4) {
            frames::mend(&mut frame);
        }
        frame
    }

    /// What belongs to a connection or a socket of the hub's own, from one of our ports to the peer's address and port.
    fn others(&mut self, peer: &Peer) -> Vec<u8> {
        let random = &mut self.random;
        let world = &peer.world;
        let (hub, behind) = world.addresses();
        let own = match random.below(4) {
            0 => OWN_PORTS + random.below(4_096) as u16,
            1 => world.tracker.flow_first ^ 1,
            2 => world.tracker.flow_first.wrapping_add(64),
            _ => world.flow(peer.sent()),
        };
        let port = match random.is_one_in(16) {
            true => random.word() as u16,
            false => world.tracker.port,
        };
        let is_sent = random.is_one_in(4);
        let (addresses, ports) = match is_sent {
            true => ([hub, behind], [own, port]),
            false => ([behind, hub], [port, own]),
        };
        let is_tcp = (peer.probe() == Probe::Tcp) ^ random.is_one_in(8);
        if is_tcp {
            let flags = *random.pick(&[
                SYN,
                SYN | ACK,
                SYN | ACK,
                RST,
                RST | ACK,
                ACK,
                ACK | 1,
                ACK | 8,
                0xff,
                0,
            ]);
            let right = world.initial_sequence(peer.sent());
            let mut number = || match random.below(4) {
                // As if somebody had counted on from a SYN of ours, or from one of another tracker.
                0 => right.wrapping_add(1 << (8 + random.below(24))),
                1 => right ^ 1 << random.below(32),
                _ => random.word() as u32,
            };
            let numbers = [number(), number()];
            let words = random.below(4);
            let segment =
                packets::segment(addresses, ports, numbers, flags, 500, &vec![1; 4 * words]);
            return self.link(peer, is_sent, &segment);
        }
        let len = random.below(90);
        let mut packet = random.bytes(len);
        for at in [12, 36] {
            // Somebody's packets have our estimate, and name a tracker at that.
            if let Some(estimate) = packet.get_mut(at..at + 2)
                && random.is_one_in(2)
            {
                estimate.copy_from_slice(&ESTIMATE);
                let slot = random.below(SLOTS as usize) as u8;
                packet[at - 8..at - 5].copy_from_slice(&[0, 0, slot]);
            }
        }
        let datagram = packets::datagram(addresses, ports, &packet);
        self.link(peer, is_sent, &datagram)
    }
}

/// A reflector's packet: its own things, then the sender's.
fn reflection(own: &[u8], claim: &[u8]) -> Vec<u8> {
    let mut packet = [own, claim].concat();
    packet.resize(STAMP, 0);
    packet
}

/// What a frame is that is of no concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Neither TCP nor UDP nor an error about such, or not to be read.
    Unread,
    /// A segment with flags that no answer has.
    Flags,
    /// A datagram without the estimate, or neither to nor from a port of ours.
    Unmarked,
    /// Between other addresses or ports, or of nobody's slot.
    Nobodys,
    /// Of one of the trackers, it seems, but lengths or a checksum are wrong.
    Broken,
    /// The number or the token is not that of a probe.
    Unproven,
    /// Proves what the tracker does not wait for.
    Unasked,
}

/// What has to come of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Foreign(Why),
    /// Of nobody's probe, but in the name of this tracker.
    Corrupt(usize),
    /// Proves this probe of this tracker.
    Proven(usize, u64, Want, Form),
}

/// What may be an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Reply,
    Reset,
    Probe,
    Error,
}

/// An IP packet without extensions, as somebody else reads it.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNextHeaderProtocol,
    /// What is in the frame after the header.
    above: &'a [u8],
    /// How much there should be.
    room: Option<usize>,
    is_right: bool,
}

impl<'a> Ip<'a> {
    fn v4(bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv4Packet::new(bytes)?;
        let is_plain = ip.get_version() == 4
            && ip.get_header_length() == 5
            && ip.get_flags() & 1 == 0
            && ip.get_fragment_offset() == 0;
        // Zero is also ffff.
        let (is, should) = (ip.get_checksum(), ipv4::checksum(&ip));
        is_plain.then(|| Self {
            source: ip.get_source().into(),
            destination: ip.get_destination().into(),
            protocol: ip.get_next_level_protocol(),
            above: &bytes[IPV4..],
            room: usize::from(ip.get_total_length()).checked_sub(IPV4),
            is_right: is == should || (is == 0xffff && should == 0),
        })
    }

    fn v6(bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv6Packet::new(bytes)?;
        (ip.get_version() == 6).then(|| Self {
            source: ip.get_source().into(),
            destination: ip.get_destination().into(),
            protocol: ip.get_next_header(),
            above: &bytes[IPV6..],
            room: Some(ip.get_payload_length().into()),
            is_right: true,
        })
    }

    fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let ethernet = EthernetPacket::new(frame)?;
        let (ethertype, packet) = match ethernet.get_ethertype() {
            EtherTypes::Vlan => {
                let tag = VlanPacket::new(&frame[ETHERNET..])?;
                (tag.get_ethertype(), &frame[ETHERNET + TAG..])
            }
            ethertype => (ethertype, &frame[ETHERNET..]),
        };
        match ethertype {
            EtherTypes::Ipv4 => Self::v4(packet),
            EtherTypes::Ipv6 => Self::v6(packet),
            _ => None,
        }
    }
}

/// What proves a probe.
enum Claim {
    Number(u32),
    Stamp(Vec<u8>),
}

/// What may be an answer, as somebody else reads it.
struct Seen {
    form: Form,
    claim: Claim,
    hub: IpAddr,
    behind: IpAddr,
    port: u16,
    own_port: u16,
    is_whole: bool,
    sender: IpAddr,
    kind: [u8; 2],
}

/// Reads a frame; the first oracle.
fn read(frame: &[u8]) -> Result<Seen, Why> {
    let ip = Ip::of_frame(frame).ok_or(Why::Unread)?;
    let (source, destination) = (ip.source, ip.destination);
    let room = ip.room.unwrap_or(0);
    let whole = |is_whole: bool| is_whole && ip.is_right && ip.room.is_some();
    match ip.protocol {
        IpNextHeaderProtocols::Tcp => {
            let tcp = TcpPacket::new(ip.above).ok_or(Why::Unread)?;
            let acknowledged = tcp.get_acknowledgement().wrapping_sub(1);
            let (form, number) = match tcp.get_flags() & TELLING {
                0x12 => (Form::Reply, acknowledged),
                0x14 => (Form::Reset, acknowledged),
                SYN => (Form::Probe, tcp.get_sequence()),
                _ => return Err(Why::Flags),
            };
            let is_whole = (20..=room).contains(&(4 * usize::from(tcp.get_data_offset())));
            let ports = (tcp.get_source(), tcp.get_destination());
            let (hub, behind, own_port, port) = match form {
                Form::Probe => (source, destination, ports.0, ports.1),
                _ => (destination, source, ports.1, ports.0),
            };
            Ok(Seen {
                form,
                claim: Claim::Number(number),
                hub,
                behind,
                port,
                own_port,
                is_whole: whole(is_whole),
                sender: source,
                kind: [0; 2],
            })
        }
        IpNextHeaderProtocols::Udp => {
            let udp = UdpPacket::new(ip.above).ok_or(Why::Unread)?;
            let ports = (udp.get_source(), udp.get_destination());
            // Not what pnet_packet takes for the payload: a length that is wrong is for `is_whole`.
            let claim = |at: usize| {
                let claim = ip.above.get(ECHO + at..ECHO + at + CLAIM)?;
                claim.ends_with(&ESTIMATE).then(|| claim.to_vec())
            };
            let reflected = claim(REFLECTED).filter(|_| is_own(ports.1));
            let (form, claim) = match (reflected, claim(0)) {
                (Some(claim), _) => (Form::Reply, claim),
                (None, Some(claim)) if is_own(ports.0) => (Form::Probe, claim),
                _ => return Err(Why::Unmarked),
            };
            let (hub, behind, own_port, port) = match form {
                Form::Probe => (source, destination, ports.0, ports.1),
                _ => (destination, source, ports.1, ports.0),
            };
            let len = usize::from(udp.get_length());
            let least = match form {
                Form::Reply => REFLECTED + CLAIM,
                _ => STAMP,
            };
            Ok(Seen {
                form,
                claim: Claim::Stamp(claim),
                hub,
                behind,
                port,
                own_port,
                is_whole: whole((ECHO + least..=room).contains(&len)),
                sender: source,
                kind: [0; 2],
            })
        }
        IpNextHeaderProtocols::Icmp | IpNextHeaderProtocols::Icmpv6 => {
            let is_v4 = source.is_ipv4();
            let errors: &[u8] = if is_v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
            let of_family = match is_v4 {
                true => IpNextHeaderProtocols::Icmp,
                false => IpNextHeaderProtocols::Icmpv6,
            };
            let icmp = ip.above.get(..ECHO).ok_or(Why::Unread)?;
            if ip.protocol != of_family || !errors.contains(&icmp[0]) {
                return Err(Why::Unread);
            }
            let quoted = &ip.above[ECHO..];
            let quoted = if is_v4 {
                Ip::v4(quoted)
            } else {
                Ip::v6(quoted)
            };
            let quoted = quoted.ok_or(Why::Unread)?;
            let head = ip.above.len() - quoted.above.len();
            let above = quoted.above;
            let number = || {
                let bytes = above.get(4..8)?.try_into().ok()?;
                Some(Claim::Number(u32::from_be_bytes(bytes)))
            };
            let (claim, len) = match quoted.protocol {
                IpNextHeaderProtocols::Tcp => (number(), 8),
                IpNextHeaderProtocols::Udp => {
                    let claim = above.get(ECHO..ECHO + CLAIM);
                    let claim = claim.filter(|claim| claim.ends_with(&ESTIMATE));
                    (
                        claim.map(|claim| Claim::Stamp(claim.to_vec())),
                        ECHO + CLAIM,
                    )
                }
                _ => return Err(Why::Unread),
            };
            let claim = claim.ok_or(Why::Unmarked)?;
            let port = |at| be16(above, at).ok_or(Why::Unread);
            let (own_port, port) = (port(0)?, port(2)?);
            if !is_own(own_port) {
                return Err(Why::Unmarked);
            }
            Ok(Seen {
                form: Form::Error,
                claim,
                hub: destination,
                behind: quoted.destination,
                port,
                own_port,
                is_whole: whole(room >= head + len),
                sender: source,
                kind: [icmp[0], icmp[1]],
            })
        }
        _ => Err(Why::Unread),
    }
}

/// What has to come of a frame, by the product's rules and pnet_packet's reading of it.
fn oracle(peers: &[Peer], frame: &[u8], beside: Beside, actions: Actions) -> Outcome {
    if frame[12..ETHERNET] == [0x81, 0x00] && !actions.takes_tag {
        return Outcome::Foreign(Why::Unread);
    }
    let seen = match read(frame) {
        Ok(seen) => seen,
        Err(why) => return Outcome::Foreign(why),
    };
    let is_its = |peer: &Peer| {
        let is_between = (seen.hub, seen.behind) == peer.world.addresses()
            && seen.port == peer.world.tracker.port
            && peer.world.tracker.active == 1;
        let is_told = seen.form == Form::Reply
            && seen.hub == peer.world.addresses().0
            && peer.world.tracker.active == 1;
        (is_between || (is_told && matches!(seen.claim, Claim::Stamp(_))))
            && match &seen.claim {
                Claim::Number(_) => peer.probe() == Probe::Tcp && peer.has_port(seen.own_port),
                Claim::Stamp(claim) => {
                    let slot = [&[0], &claim[4..7]].concat();
                    peer.probe() == Probe::Stamp && peer.world.slot.to_be_bytes() == slot[..]
                }
            }
    };
    let Some(at) = peers.iter().position(is_its) else {
        return Outcome::Foreign(Why::Nobodys);
    };
    if !seen.is_whole {
        return Outcome::Foreign(Why::Broken);
    }
    let peer = &peers[at];
    let world = &peer.world;
    let proven = peer.answerable().find(|sequence| match &seen.claim {
        Claim::Number(number) => world.initial_sequence(*sequence) == *number,
        Claim::Stamp(claim) => world.claim(*sequence) == *claim,
    });
    let is_between = seen.behind == world.addresses().1 && seen.port == world.tracker.port;
    let Some(sequence) = proven else {
        return match (&seen.claim, seen.form) {
            (Claim::Stamp(_), Form::Reply) if is_between => Outcome::Corrupt(at),
            _ => Outcome::Foreign(Why::Unproven),
        };
    };
    let proven = |want| Outcome::Proven(at, sequence, want, seen.form);
    if !is_between {
        return match world.tracker.proof {
            Proof::Reply => proven(Want::Elsewhere(seen.sender)),
            Proof::Arrival => Outcome::Foreign(Why::Unasked),
        };
    }
    let closed = match world.tracker.family {
        V4 => [3, 3],
        V6 => [1, 4],
    };
    let is_closed = seen.form == Form::Error
        && matches!(seen.claim, Claim::Stamp(_))
        && seen.kind == closed
        && seen.sender == seen.behind;
    let proof = match seen.form {
        Form::Error if is_closed && world.tracker.refused_is_reply != 0 => Proof::Reply,
        Form::Error if is_closed => {
            return proven(Want::Refused(Complaint::Port, seen.kind, seen.sender));
        }
        Form::Error => {
            let complaint = match world.tracker.family {
                V4 => Complaint::Icmp,
                V6 => Complaint::Icmpv6,
            };
            return proven(Want::Refused(complaint, seen.kind, seen.sender));
        }
        Form::Reset if world.tracker.refused_is_reply == 0 => {
            return proven(Want::Refused(Complaint::Reset, [0; 2], seen.sender));
        }
        Form::Reset | Form::Reply => Proof::Reply,
        Form::Probe => Proof::Arrival,
    };
    let is_probe = proof == Proof::Arrival;
    let is_as_sent = is_probe && frame.first_chunk().is_some_and(actions.is_as_sent);
    if proof != world.tracker.proof || is_as_sent {
        return Outcome::Foreign(Why::Unasked);
    }
    let expected = match is_probe {
        true => world.path.arrivals,
        false => world.path.returns,
    };
    if fuzz::is_tagged(frame, beside) {
        return proven(Want::Tagged);
    }
    if !fuzz::is_of_right_way(world, frame, is_probe, expected) {
        return proven(Want::WrongPath);
    }
    // The time of an older one is forgotten.
    if peer.sent() - sequence >= WORDS || world.tracker.timeout_ns == 0 {
        return proven(Want::Late);
    }
    let is_up = world.state.receive.verdict == 1;
    proven(match (peer.answered.contains(&sequence), is_up) {
        (true, _) => Want::Duplicate,
        (false, true) => Want::Counted,
        (false, false) => Want::CountedWithEvent,
    })
}

/// The answers that there are, by what proves them: of TCP a number, of STAMP what comes back.
fn provable(peers: &[Peer]) -> HashMap<Vec<u8>, (usize, u64)> {
    let mut provable = HashMap::new();
    for (at, peer) in peers.iter().enumerate() {
        for sequence in peer.answerable() {
            let key = match peer.probe() {
                Probe::Tcp => peer.world.initial_sequence(sequence).to_be_bytes().to_vec(),
                _ => peer.world.claim(sequence),
            };
            provable.insert(key, (at, sequence));
        }
    }
    provable
}

/// The bytes of an IP header that a network may change.
fn free_ip(family: Family, at: usize) -> Vec<Range<usize>> {
    match family {
        // Type of service; total length, identification; the reserved flag and "don't fragment"; time to live; checksum.
        V4 => vec![at + 1..at + 7, at + 8..at + 9, at + 10..at + 12],
        // Traffic class and flow label; payload length; hop limit.
        V6 => vec![at..at + 6, at + 7..at + 8],
    }
}

/// The tracker and the probe that a frame proves: it is, byte for byte, an answer that somebody could have made of that
/// probe, or the probe, or an error about it. The second oracle.
fn genuine(
    peers: &[Peer],
    provable: &HashMap<Vec<u8>, (usize, u64)>,
    frame: &[u8],
    actions: Actions,
) -> Option<(usize, u64)> {
    let (at, ethertype) = match frame.get(12..ETHERNET)? {
        [0x81, 0x00] if actions.takes_tag => (ETHERNET + TAG, be16(frame, ETHERNET + 2)?),
        _ => (ETHERNET, be16(frame, 12)?),
    };
    let packet = frame.get(at..)?;
    let (head, protocol_at) = match ethertype {
        0x0800 => (IPV4, 9),
        0x86dd => (IPV6, 6),
        _ => return None,
    };
    let protocol = *packet.get(protocol_at)?;
    let room = match head {
        IPV4 => usize::from(be16(packet, 2)?).checked_sub(IPV4)?,
        _ => usize::from(be16(packet, 4)?),
    };
    let find = |range: Range<usize>| provable.get(packet.get(range)?).copied();
    let above = head;
    let is_error = protocol == if head == IPV4 { 1 } else { 58 };
    let quoted = head + ECHO;
    let answered = packet.get(above + 8..above + 12).and_then(|bytes| {
        let number = u32::from_be_bytes(bytes.try_into().ok()?).wrapping_sub(1);
        provable.get(&number.to_be_bytes()[..]).copied()
    });
    let stamp = above + ECHO;
    // Where what proves it is, and what bytes of `wanted` are anybody's choice.
    let (tracker, sequence, form) = match protocol {
        6 if packet.get(above + 13)? & TELLING == SYN => {
            let (tracker, sequence) = find(above + 4..above + 8)?;
            (tracker, sequence, Form::Probe)
        }
        6 => {
            let (tracker, sequence) = answered?;
            let is_reset = packet[above + 13] & RST != 0;
            let form = if is_reset { Form::Reset } else { Form::Reply };
            (tracker, sequence, form)
        }
        17 => {
            let is_reply = is_own(be16(packet, above + 2)?)
                && packet.get(stamp + 36..stamp + 38) == Some(&ESTIMATE[..]);
            let (claim, form) = match is_reply {
                true => (stamp + REFLECTED, Form::Reply),
                false => (stamp, Form::Probe),
            };
            let (tracker, sequence) = find(claim..claim + CLAIM)?;
            (tracker, sequence, form)
        }
        _ if is_error => {
            let above = quoted + head;
            let claim = match packet.get(quoted + protocol_at)? {
                6 => above + 4..above + 8,
                17 => above + ECHO..above + ECHO + CLAIM,
                _ => return None,
            };
            let (tracker, sequence) = find(claim)?;
            (tracker, sequence, Form::Error)
        }
        _ => return None,
    };
    let peer = &peers[tracker];
    let world = &peer.world;
    let family = world.tracker.family;
    let is_asked = match form {
        Form::Error if is_closed(world, packet, head) => {
            world.tracker.refused_is_reply == 0 || world.tracker.proof == Proof::Reply
        }
        Form::Error => true,
        Form::Reset if world.tracker.refused_is_reply == 0 => true,
        Form::Reply | Form::Reset => world.tracker.proof == Proof::Reply,
        Form::Probe => {
            world.tracker.proof == Proof::Arrival
                && !frame.first_chunk().is_some_and(actions.is_as_sent)
        }
    };
    if !is_asked || world.tracker.active == 0 || header(family) != head {
        return None;
    }
    let (hub, behind) = world.addresses();
    let is_tcp = peer.probe() == Probe::Tcp;
    let probe = world.probe(world.mark(sequence, 0)).split_off(ETHERNET);
    let ports = [world.tracker.port, world.flow(sequence)];
    let mut free = free_ip(family, 0);
    let (mut wanted, own_at, least) = match (form, is_tcp) {
        (Form::Probe, true) => {
            // What is acknowledged, and all from the header's length on, but for the flags.
            free.extend([head + 8..head + 13, head + 14..head + 20]);
            (probe[..head + 20].to_vec(), head, 20)
        }
        (Form::Probe, false) => {
            free.push(head + 4..head + 8);
            (probe[..stamp + CLAIM].to_vec(), head, ECHO + STAMP)
        }
        (Form::Reply | Form::Reset, true) => {
            let flags = if form == Form::Reset { RST } else { SYN } | ACK;
            let right = world.initial_sequence(sequence).wrapping_add(1);
            let wanted = packets::segment([behind, hub], ports, [0, right], flags, 0, &[]);
            free.extend([head + 4..head + 8, head + 12..head + 13]);
            free.push(head + 14..head + 20);
            (wanted, head + 2, 20)
        }
        (Form::Reply | Form::Reset, false) => {
            let packet = reflection(&[0; REFLECTED], &world.claim(sequence));
            let packet = packets::datagram([behind, hub], ports, &packet[..REFLECTED + CLAIM]);
            free.push(head + 4..stamp + REFLECTED);
            (packet, head + 2, ECHO + REFLECTED + CLAIM)
        }
        (Form::Error, is_tcp) => {
            let len = if is_tcp { 8 } else { ECHO + CLAIM };
            let mut wanted = packets::error(behind, hub, [0; 2], &probe[..head + len]);
            // Whoever sent it, and all that it says.
            free.push(
                head - if head == IPV4 { 8 } else { 32 }..head - if head == IPV4 { 4 } else { 16 },
            );
            free.push(head + 1..head + ECHO);
            let kinds: &[u8] = if head == IPV4 {
                &[3, 11, 12]
            } else {
                &[1, 2, 3, 4]
            };
            wanted[head] = *kinds.iter().find(|kind| packet.get(head) == Some(kind))?;
            free.extend(free_ip(family, quoted));
            // A NAT on the way puts its own address there.
            let source = quoted + if head == IPV4 { 12 } else { 8 };
            free.push(source..source + if head == IPV4 { 4 } else { 16 });
            if !is_tcp {
                let above = quoted + head;
                free.push(above + 4..above + 8);
            }
            (wanted, quoted + head, ECHO + head + len)
        }
    };
    let seen = packet.get(..wanted.len())?;
    for range in free {
        wanted[range.clone()].copy_from_slice(&seen[range]);
    }
    // Within the bytes that may change: the version, that it is no fragment, and the flags that tell what it is.
    let mut fixed = vec![0];
    if form == Form::Error {
        fixed.push(quoted);
    }
    for ip in fixed {
        match family {
            V4 => wanted[ip + 6] &= 0xc0,
            V6 => wanted[ip] = 0x60 | wanted[ip] & 15,
        }
    }
    let mut least = least;
    if is_tcp && form != Form::Error {
        wanted[head + 13] = wanted[head + 13] & TELLING | seen[head + 13] & !TELLING;
        least = usize::from(seen[head + 12] >> 4) * 4;
        if least < 20 {
            return None;
        }
    }
    // A port of the tracker's own: of STAMP any will do, which a NAT has made of another.
    let own = be16(seen, own_at)?;
    let is_own = match is_tcp {
        true => peer.has_port(own),
        false => is_own(own),
    };
    wanted[own_at..own_at + 2].copy_from_slice(&own.to_be_bytes());
    let is_long = match (is_tcp, form) {
        (false, Form::Reply | Form::Probe) => {
            (least..=room).contains(&usize::from(be16(seen, head + 4)?))
        }
        _ => room >= least,
    };
    let is_ip_right = head == IPV6 || frames::sum(&[&seen[..IPV4]]) == 0xffff;
    (wanted == seen && is_own && is_long && is_ip_right).then_some((tracker, sequence))
}

/// Random frames, and answers with random damage, to trackers beside each other: whatever is not provably ours passes
/// unaltered, and no map knows of it.
pub fn check(program: &'static str, actions: Actions, rounds: u64) -> Result<()> {
    let mut object = Object::load(program)?;
    let (mut tally, mut passed) = (Tally::default(), Tally::default());
    let mut rounds = Rounds::new(rounds);
    while let Some(round) = rounds.next() {
        let frames = check_round(&mut object, round, actions, &mut tally, &mut passed)?;
        rounds.took(frames);
    }
    rounds.sum_up(program, "frames", &tally);
    println!("{program}: what passed: {passed}");
    tally.require(&["foreign"], 4);
    tally.require(
        &["stamp corrupt", "tcp reply Counted", "stamp reply Counted"],
        100,
    );
    for what in ["tcp", "stamp"] {
        let rarer = [
            "reply Late",
            "reply WrongPath",
            "reply Duplicate",
            "reply CountedWithEvent",
            "probe Counted",
            "error Refused",
        ];
        let rarer = rarer.map(|outcome| format!("{what} {outcome}"));
        tally.require(&rarer, 1_000);
        tally.require(&[format!("{what} reply Tagged")], 4_000);
    }
    tally.require(&["tcp reset Refused", "tcp reset Counted", "marked"], 1_000);
    let why = [
        Why::Unread,
        Why::Flags,
        Why::Unmarked,
        Why::Nobodys,
        Why::Broken,
        Why::Unproven,
        Why::Unasked,
    ];
    passed.require(&why, 100);
    Ok(())
}

fn check_round(
    object: &mut Object,
    mut round: Round,
    actions: Actions,
    tally: &mut Tally,
    passed: &mut Tally,
) -> Result<u64> {
    let family = *round.random.pick(&[V4, V6]);
    let marked = World::new(family).with(|world| {
        world.tracker.window_mask = 7;
        world.tracker.timeout_ns = u64::MAX;
        world.tracker.probe = *round.random.pick(&[Probe::Icmp, Probe::Udp]);
        world.tracker.port = *round.random.pick(&[443, 862]);
    });
    marked.install(object)?;
    let mut probes = Probes::new(&marked);
    let mut peers = peers(&mut round.random, family, actions);
    for peer in &mut peers {
        peer.world.install_beside(object)?;
        let sent = peer.sent();
        for sequence in (sent + 1).saturating_sub(WORDS).max(1)..=sent {
            peer.send(object, sequence)?;
        }
    }
    let mut fuzzer = Fuzzer::new(Random::new(round.random.word()), &peers, &marked);
    let mut provable = provable(&peers);
    let mut before = object.snapshot()?;
    let mut ran_frames = 0;
    for number in 1..=FRAMES {
        if round.random.is_one_in(2) {
            let at = round.random.below(peers.len());
            let peer = &mut peers[at];
            let sent = peer.sent() + 1;
            peer.send(object, sent)?;
            // Told by the number of a SYN that was sent so long before, it is another's.
            if peer.probe() == Probe::Tcp && sent > FLIGHTS {
                let gone = peer.world.initial_sequence(sent - FLIGHTS).to_be_bytes();
                provable.remove(&gone[..]);
            }
            let key = match peer.probe() {
                Probe::Tcp => peer.world.initial_sequence(sent).to_be_bytes().to_vec(),
                _ => peer.world.claim(sent),
            };
            provable.insert(key, (at, sent));
            before = object.snapshot()?;
        }
        let (made, frame) = fuzzer.next(&peers);
        if !object.takes(&frame) || is_challenge(&provable, &frame) {
            continue;
        }
        ran_frames += 1;
        let beside = Beside::any(&mut round.random, object);
        let what = format!("frame {number}, {made:?}, {beside:?}");

        let by_mark = probes.want(&frame, beside, actions);
        if by_mark != receive::Want::Foreign && !names_another(&peers, &frame) {
            tally.add("marked");
            let want = (by_mark, beside);
            before = probes.check(object, before, &what, &frame, want, actions)?;
            continue;
        }
        let (outcome, proven) = match is_cut_short(&frame, actions) {
            true => (Outcome::Foreign(Why::Broken), None),
            false => (
                oracle(&peers, &frame, beside, actions),
                genuine(&peers, &provable, &frame, actions),
            ),
        };
        let says = match &outcome {
            // The byte oracle knows replies from the address that was asked alone.
            Outcome::Proven(_, _, Want::Elsewhere(_), _) => None,
            Outcome::Proven(at, sequence, ..) => Some((*at, *sequence)),
            Outcome::Foreign(_) | Outcome::Corrupt(_) => None,
        };
        let trackers: Vec<_> = peers
            .iter()
            .map(|peer| (peer.world.tracker, peer.sent()))
            .collect();
        let what = || format!("{what}, {outcome:?}, {trackers:?}: {frame:02x?}");
        assert_eq!(says, proven, "{}", what());
        let ran = object.run_with(&frame, beside)?;
        let after = object.snapshot()?;
        let (at, sequence, want, form) = match outcome.clone() {
            Outcome::Foreign(why) => {
                tally.add("foreign");
                passed.add(why);
                assert_eq!(ran.action, actions.pass, "{}", what());
                assert!(ran.frame == frame, "altered: {}", what());
                assert!(after.is_same(&before), "counted: {}", what());
                let records = object.records()?;
                assert!(records.0.is_empty() && records.1.is_empty(), "{}", what());
                before = after;
                continue;
            }
            Outcome::Corrupt(at) => (at, 0, Want::Corrupt, None),
            Outcome::Proven(at, sequence, want, form) => (at, sequence, want, Some(form)),
        };
        let is_tcp = peers[at].probe() == Probe::Tcp;
        tally.add(told(is_tcp, &want, form));
        let sent = peers[at].times.get(&sequence).copied().unwrap_or(0);
        if matches!(want, Want::Counted | Want::CountedWithEvent) {
            peers[at].answered.insert(sequence);
        }
        let row = Row {
            what: what(),
            world: peers[at].world.clone(),
            is_held: false,
            is_answered: is_tcp && form == Some(Form::Reply) && want != Want::Tagged,
            frame,
            sequence,
            want,
        };
        row.settle(object, before, &ran, sent, actions)?;
        before = after;
    }
    Ok(ran_frames)
}

/// Whether a frame is an acknowledgement alone of a probe's number: tables have those.
fn is_challenge(provable: &HashMap<Vec<u8>, (usize, u64)>, frame: &[u8]) -> bool {
    let Some(ip) = Ip::of_frame(frame).filter(|ip| ip.protocol == IpNextHeaderProtocols::Tcp)
    else {
        return false;
    };
    TcpPacket::new(ip.above).is_some_and(|tcp| {
        let number = tcp.get_acknowledgement().wrapping_sub(1).to_be_bytes();
        ip.room == Some(20)
            && tcp.get_flags() & TELLING == ACK
            && provable.contains_key(&number[..])
    })
}

/// Whether an error is the behind address's word that nobody has a STAMP tracker's port.
fn is_closed(world: &World, packet: &[u8], head: usize) -> bool {
    let (from, kind) = match world.addresses().1 {
        IpAddr::V4(behind) => (12..16, (behind.octets().to_vec(), [3, 3])),
        IpAddr::V6(behind) => (8..24, (behind.octets().to_vec(), [1, 4])),
    };
    let (behind, kind) = kind;
    world.tracker.probe == Probe::Stamp
        && packet.get(from) == Some(&behind[..])
        && packet.get(head..head + 2) == Some(&kind[..])
}

/// Whether a port may be that of a probe.
fn is_own(port: u16) -> bool {
    port >= 1_024 && !(32_768..61_000).contains(&port)
}

/// Whether a frame holds less of a datagram than the program of devices without Ethernet header asks for: it copies
/// one of a few lengths, and no STAMP packet is whole with so little.
fn is_cut_short(frame: &[u8], actions: Actions) -> bool {
    let is_short = |(ip, ethertype)| {
        let (protocol, least) = match ethertype {
            0x0800 => (9, 2 * (IPV4 + ECHO)),
            _ => (6, IPV6 + ECHO + REFLECTED + CLAIM),
        };
        frame.get(ip + protocol) == Some(&17) && frame.len() - ip < least
    };
    !actions.sees_hop && frames::ip_at(frame).is_some_and(is_short)
}

/// Whether a frame bears the mark and names one of these trackers, whose probes bear none.
fn names_another(peers: &[Peer], frame: &[u8]) -> bool {
    let marked = packets::read_marked(frame).map(|seen| seen.mark);
    let mark = marked.or_else(|| packets::read_error(frame).map(|error| error.mark));
    let is_of = |peer: &Peer| {
        let slot = mark.map(|mark| mark.tracker);
        peer.world.tracker.active == 1 && slot == Some(peer.world.slot)
    };
    peers.iter().any(is_of)
}

/// The outcome in a word, for the tally.
fn told(is_tcp: bool, want: &Want, form: Option<Form>) -> String {
    let probe = if is_tcp { "tcp" } else { "stamp" };
    let form = match form {
        None => return format!("{probe} corrupt"),
        Some(Form::Reply) => "reply",
        Some(Form::Reset) => "reset",
        Some(Form::Probe) => "probe",
        Some(Form::Error) => "error",
    };
    match want {
        Want::Refused(..) => format!("{probe} {form} Refused"),
        Want::Elsewhere(_) => format!("{probe} {form} Elsewhere"),
        want => format!("{probe} {form} {want:?}"),
    }
}

//! The programs of steering, frame by frame: frame in, action, frame out, flows and counters. What comes out is held
//! against a frame built anew by pnet_packet with the other address, all checksums computed in full.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::maps::{
    Array, HashMap, MapData, PerCpuArray,
    lpm_trie::{Key, LpmTrie},
    xdp::DevMapHash,
};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use pnet_packet::icmp::{self, MutableIcmpPacket};
use pnet_packet::icmpv6::{self, MutableIcmpv6Packet};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::tcp::{self, MutableTcpPacket};
use pnet_packet::udp::{self, MutableUdpPacket};
use tracker_ebpf::abi::{
    self, Family, Filter, Flow, FlowKey, Source, Steer, SteerKey, Steered, Uplink, Via,
};
use tracker_tests::packets::{self, ETHERNET, IPV4, IPV6, Ipv4, Link, Tag, with};
use tracker_tests::tagger::Tagger;
use tracker_user::kernel::loader;

use super::{
    ARRIVAL, BEHIND_V4, BEHIND_V6, ENDPOINT_MAC, HUB_MAC, TC_ACT_REDIRECT, TC_ACT_SHOT,
    TC_ACT_UNSPEC, XDP_PASS, XDP_REDIRECT, now_mono_ns, tagger, take_map, widen,
};

pub const ENDPOINT_V4: [u8; 4] = [10, 9, 0, 2];
pub const ENDPOINT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub const PROBER_V4: [u8; 4] = [192, 0, 2, 9];
pub const PROBER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
pub const PROBER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const PORT: u16 = 443;
pub const PROBER_PORT: u16 = 50_000;
pub const MEMBER: u32 = 2;
const MTU: u32 = 1_500;
pub const MARK: u32 = 0x7472;
/// Another interface than the one on which runs arrive.
pub const ELSEWHERE: u32 = 77;
const HOUR_NS: u64 = 3_600_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// One program of steering, with maps of its own.
pub struct Object {
    ebpf: Ebpf,
    program: &'static str,
    filter: Array<MapData, Filter>,
    table: HashMap<MapData, SteerKey, Steer>,
    sources: LpmTrie<MapData, Source, u32>,
    uplinks: HashMap<MapData, u32, Uplink>,
    pub flows: HashMap<MapData, FlowKey, Flow>,
    pub tagger: Option<Tagger>,
    counters: PerCpuArray<MapData, Steered>,
    devices: DevMapHash<MapData>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Icmp,
    Udp,
    Tcp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Udp, Self::Tcp];

    fn number(self, family: Family) -> IpNextHeaderProtocol {
        match (self, family) {
            (Self::Icmp, Family::Ipv4) => IpNextHeaderProtocols::Icmp,
            (Self::Icmp, Family::Ipv6) => IpNextHeaderProtocols::Icmpv6,
            (Self::Udp, _) => IpNextHeaderProtocols::Udp,
            (Self::Tcp, _) => IpNextHeaderProtocols::Tcp,
        }
    }
}

/// A packet, from which frames are built.
#[derive(Clone, Debug)]
pub struct Packet {
    link: Link,
    family: Family,
    protocol: Protocol,
    source: [u8; 16],
    destination: [u8; 16],
    /// The ICMP identifier, too.
    source_port: u16,
    destination_port: u16,
    pub hops: u8,
    /// An answer: echo reply.
    is_reply: bool,
    pub tcp_flags: u8,
    /// UDP does without checksum.
    pub is_unsummed: bool,
    pub payload: Vec<u8>,
}

impl Packet {
    /// From the prober to the endpoint, for a program that wants its device's address to be `mac`.
    pub fn to_endpoint(family: Family, protocol: Protocol, mac: [u8; 6]) -> Self {
        let (source, destination) = match family {
            Family::Ipv4 => (widen(PROBER_V4), widen(ENDPOINT_V4)),
            Family::Ipv6 => (PROBER_V6, ENDPOINT_V6),
        };
        Self {
            link: Link {
                destination: mac,
                source: PROBER_MAC,
                tags: Vec::new(),
            },
            family,
            protocol,
            source,
            destination,
            source_port: PROBER_PORT,
            destination_port: PORT,
            hops: 64,
            is_reply: false,
            tcp_flags: 0x18,
            is_unsummed: false,
            payload: (0..56).collect(),
        }
    }

    /// From the behind address back to the prober.
    pub fn from_behind(family: Family, protocol: Protocol) -> Self {
        let forward = Self::to_endpoint(family, protocol, [0; 6]);
        Self {
            source: behind(family),
            destination: forward.source,
            source_port: PORT,
            destination_port: PROBER_PORT,
            is_reply: true,
            ..forward
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// The same as it has to leave by the member's interface.
    fn steered(&self, takes_hop: bool) -> Self {
        self.with(|packet| {
            packet.destination = behind(packet.family);
            packet.hops -= u8::from(takes_hop);
            packet.link.destination = ENDPOINT_MAC;
            packet.link.source = HUB_MAC;
        })
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        let address = |bytes: [u8; 16]| match self.family {
            Family::Ipv4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Family::Ipv6 => IpAddr::from(bytes),
        };
        (address(self.source), address(self.destination))
    }

    /// The protocol above IP, with its full checksum.
    fn message(&self) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut bytes = match self.protocol {
            Protocol::Icmp => {
                let (request, reply, id) = match self.family {
                    Family::Ipv4 => (8, 0, self.source_port),
                    Family::Ipv6 => (128, 129, self.source_port),
                };
                let (kind, id) = match self.is_reply {
                    true => (reply, self.destination_port),
                    false => (request, id),
                };
                let [high, low] = id.to_be_bytes();
                vec![kind, 0, 0, 0, high, low, 0, 1]
            }
            Protocol::Udp => vec![0; 8],
            Protocol::Tcp => vec![0; 20],
        };
        bytes.extend_from_slice(&self.payload);
        let len = bytes.len();
        match (self.protocol, source, destination) {
            (Protocol::Icmp, IpAddr::V4(_), _) => {
                let mut icmp = MutableIcmpPacket::new(&mut bytes).expect("room");
                let sum = icmp::checksum(&icmp.to_immutable());
                icmp.set_checksum(sum);
            }
            (Protocol::Icmp, IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut icmp = MutableIcmpv6Packet::new(&mut bytes).expect("room");
                let sum = icmpv6::checksum(&icmp.to_immutable(), &source, &destination);
                icmp.set_checksum(sum);
            }
            (Protocol::Udp, ..) => {
                let mut udp = MutableUdpPacket::new(&mut bytes).expect("room");
                udp.set_source(self.source_port);
                udp.set_destination(self.destination_port);
                udp.set_length(len as u16);
                let sum = match (source, destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        udp::ipv4_checksum(&udp.to_immutable(), &source, &destination)
                    }
                    (IpAddr::V6(source), IpAddr::V6(destination)) => {
                        udp::ipv6_checksum(&udp.to_immutable(), &source, &destination)
                    }
                    _ => unreachable!("one family"),
                };
                // RFC 768: zero says that there is none.
                let sum = if sum == 0 { 0xffff } else { sum };
                udp.set_checksum(if self.is_unsummed { 0 } else { sum });
            }
            (Protocol::Tcp, ..) => {
                let mut tcp = MutableTcpPacket::new(&mut bytes).expect("room");
                tcp.set_source(self.source_port);
                tcp.set_destination(self.destination_port);
                tcp.set_data_offset(5);
                tcp.set_flags(self.tcp_flags);
                tcp.set_sequence(0x0102_0304);
                let sum = match (source, destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        tcp::ipv4_checksum(&tcp.to_immutable(), &source, &destination)
                    }
                    (IpAddr::V6(source), IpAddr::V6(destination)) => {
                        tcp::ipv6_checksum(&tcp.to_immutable(), &source, &destination)
                    }
                    _ => unreachable!("one family"),
                };
                tcp.set_checksum(sum);
            }
            _ => unreachable!("one family"),
        }
        bytes
    }

    fn ip(&self) -> Vec<u8> {
        self.around(&self.message())
    }

    /// The IP packet around a message.
    fn around(&self, message: &[u8]) -> Vec<u8> {
        match self.addresses() {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ipv4(source, destination).packet(message)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let protocol = self.protocol.number(self.family);
                let packet = packets::ipv6(source, destination, protocol, message);
                with(packet, |packet| packet[7] = self.hops)
            }
            _ => unreachable!("one family"),
        }
    }

    fn ipv4(&self, source: std::net::Ipv4Addr, destination: std::net::Ipv4Addr) -> Ipv4 {
        Ipv4 {
            protocol: self.protocol.number(self.family),
            ttl: self.hops,
            ..Ipv4::icmp(source, destination)
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        self.link.ip(&self.ip())
    }

    /// Where the message begins in the frame.
    fn message_at(&self) -> usize {
        ETHERNET
            + match self.family {
                Family::Ipv4 => IPV4,
                Family::Ipv6 => IPV6,
            }
    }

    /// The flow it is part of.
    pub fn flow(&self) -> FlowKey {
        let (prober, prober_port) = match self.is_reply {
            true => (self.destination, self.destination_port),
            false => (self.source, self.source_port),
        };
        FlowKey {
            prober,
            behind: behind(self.family),
            ifindex: ARRIVAL,
            prober_port,
            behind_port: if self.protocol == Protocol::Icmp {
                0
            } else {
                PORT
            },
            protocol: self.protocol.number(self.family).0,
            family: self.family,
            pad: [0; 2],
        }
    }
}

pub fn behind(family: Family) -> [u8; 16] {
    match family {
        Family::Ipv4 => widen(BEHIND_V4),
        Family::Ipv6 => BEHIND_V6,
    }
}

pub fn endpoint(family: Family) -> [u8; 16] {
    match family {
        Family::Ipv4 => widen(ENDPOINT_V4),
        Family::Ipv6 => ENDPOINT_V6,
    }
}

/// What a run must do.
#[derive(Clone, Debug)]
enum Outcome {
    /// Pass the frame as it is.
    Pass,
    /// The same, counted as not fit.
    Unfit,
    /// Drop it: no way.
    Drop,
    /// Let this frame leave instead.
    Steer(Vec<u8>),
}

/// A frame, and what must become of it.
struct Row {
    what: String,
    frame: Vec<u8>,
    outcome: Outcome,
    steer: Steer,
    gso_size: u32,
    mark: u32,
}

/// The way through the member in the tests' maps.
pub fn way() -> Steer {
    Steer {
        next_hop_mac: ENDPOINT_MAC,
        source_mac: HUB_MAC,
        interface: ELSEWHERE,
        mtu: MTU,
        returns: [ARRIVAL, 0, 0, 0],
        member: MEMBER,
        via: Via::XdpRedirect,
        is_ethernet: 1,
        ..Default::default()
    }
}

impl Object {
    pub fn load(program: &'static str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(abi::map::STEERING, 64)
            .map_max_entries(abi::map::SOURCES, 64)
            .map_max_entries(abi::map::UPLINKS, 4)
            .map_max_entries(abi::map::FLOWS, 1_024)
            .map_max_entries(abi::map::STEERED, 8)
            .load(tracker_user::kernel::OBJECT)
            .context("load the object")?;
        loader::load(&mut ebpf, program)?;
        let tagger = tagger(&ebpf, program)?;
        let mut take = |name: &str| take_map(&mut ebpf, name);
        let mut object = Self {
            program,
            filter: take(abi::map::FILTER)?.try_into()?,
            table: take(abi::map::STEERING)?.try_into()?,
            sources: take(abi::map::SOURCES)?.try_into()?,
            uplinks: take(abi::map::UPLINKS)?.try_into()?,
            flows: take(abi::map::FLOWS)?.try_into()?,
            counters: take(abi::map::STEERED)?.try_into()?,
            devices: take(abi::map::DEVICES)?.try_into()?,
            tagger,
            ebpf,
        };
        // All endpoints and behind addresses might be ours: the maps themselves are what is tested.
        let filter = Filter {
            endpoints: [u64::MAX; 4],
            behinds: [u64::MAX; 4],
            mark: MARK,
            mark_mask: u32::MAX,
        };
        object.filter.set(0, filter, 0)?;
        object.devices.insert(ELSEWHERE, ARRIVAL, None, 0)?;
        let uplink = Uplink {
            mac: HUB_MAC,
            ..Default::default()
        };
        object.uplinks.insert(ARRIVAL, uplink, 0)?;
        for (family, address, bits) in [
            (Family::Ipv4, widen([192, 0, 2, 0]), 24),
            (Family::Ipv6, PROBER_V6, 64),
        ] {
            let source = Source {
                family,
                address,
                ..Default::default()
            };
            object.sources.insert(&Key::new(32 + bits, source), 1, 0)?;
        }
        object.set_way(way())?;
        Ok(object)
    }

    fn is_xdp(&self) -> bool {
        self.program == abi::program::STEER
    }

    pub fn set_way(&mut self, steer: Steer) -> Result<()> {
        for family in [Family::Ipv4, Family::Ipv6] {
            for protocol in Protocol::ALL {
                let key = SteerKey {
                    endpoint: endpoint(family),
                    port: if protocol == Protocol::Icmp { 0 } else { PORT },
                    protocol: protocol.number(family).0,
                    family,
                };
                let steer = Steer {
                    behind: behind(family),
                    ..steer
                };
                self.table.insert(key, steer, 0)?;
            }
        }
        Ok(())
    }

    /// Runs the program on a frame: action and frame.
    pub fn run(&self, frame: &[u8], mark: u32, gso_size: u32) -> Result<(i32, Vec<u8>)> {
        let mut out = vec![0; 4_096.max(2 * frame.len())];
        // struct __sk_buff: of what may be given, only these two are not zero.
        let mut context = [0u32; 48];
        context[2] = mark;
        context[44] = gso_size;
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (!self.is_xdp()).then_some(&context[..]),
            ..Default::default()
        };
        let result = match self.ebpf.program(self.program) {
            Some(Program::Xdp(xdp)) => xdp.test_run(options),
            Some(Program::SchedClassifier(classifier)) => classifier.test_run(options),
            _ => bail!("the object has no program {}", self.program),
        }
        .with_context(|| format!("run {} on {} bytes", self.program, frame.len()))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value as i32, out))
    }

    /// Whether the kernel makes a packet of a frame for this program; see [`super::Object::takes`].
    pub fn takes(&self, frame: &[u8]) -> bool {
        let header = match frame.get(12..ETHERNET) {
            Some([0x08, 0x00]) => IPV4,
            Some([0x86, 0xdd]) => IPV6,
            _ => 1,
        };
        frame.len() >= ETHERNET + if self.is_xdp() { 0 } else { header }
    }

    pub fn counters(&self) -> Result<Steered> {
        let mut sum = Steered::default();
        for cpu in self.counters.get(&MEMBER, 0)?.iter() {
            sum.steered += cpu.steered;
            sum.replied += cpu.replied;
            sum.no_way += cpu.no_way;
            sum.unfit += cpu.unfit;
        }
        Ok(sum)
    }

    pub fn forget_flows(&mut self) -> Result<()> {
        let keys: Vec<FlowKey> = self.flows.keys().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|key| Ok(self.flows.remove(key)?))
    }
}

/// What passes, whatever protocol it carries: the frames of one packet that could be steered, damaged or changed.
fn foreign(packet: &Packet, add: &mut dyn FnMut(&str, Vec<u8>)) {
    let frame = packet.frame();
    for len in ETHERNET..frame.len() {
        add(&format!("the first {len} bytes"), frame[..len].to_vec());
    }
    for tags in [
        vec![Tag::dot1q(100)],
        vec![Tag::dot1q(0)],
        vec![Tag::dot1ad(1), Tag::dot1q(2)],
    ] {
        let what = format!("tags {tags:?}");
        let tagged = packet.with(|packet| packet.link.tags = tags);
        add(&what, tagged.frame());
    }
    let at = packet.message_at();
    for ethertype in [[0x08, 0x06], [0x88, 0xcc], [0, 40], [0x88, 0x47]] {
        let other = with(frame.clone(), |frame| {
            frame[12..14].copy_from_slice(&ethertype)
        });
        add(&format!("EtherType {ethertype:x?}"), other);
    }
    match packet.addresses() {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = packet.ipv4(source, destination);
            let message = packet.message();
            for (flags, offset) in [(1, 0), (3, 0), (0, 1), (1, 185), (0, 0x1fff)] {
                let fragment = Ipv4 {
                    flags,
                    fragment_offset: offset,
                    ..header.clone()
                };
                let what = format!("a fragment: flags {flags}, offset {offset}");
                add(&what, packet.link.ip(&fragment.packet(&message)));
            }
            for len in [4, 40] {
                let options = Ipv4 {
                    options: vec![1; len],
                    ..header.clone()
                };
                add("IPv4 options", packet.link.ip(&options.packet(&message)));
            }
            for first in [0x44, 0x46, 0x55, 0x65, 0x05] {
                let other = with(frame.clone(), |frame| frame[ETHERNET] = first);
                add(&format!("first byte {first:#x}"), other);
            }
            let total = (frame.len() - ETHERNET) as u16;
            for wrong in [0, 20, 27, total + 1, u16::MAX] {
                let other = with(frame.clone(), |frame| {
                    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&wrong.to_be_bytes());
                });
                add(&format!("total length {wrong}"), other);
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            for extension in [0, 43, 44, 60, 51] {
                let number = packet.protocol.number(Family::Ipv6).0;
                let payload = [&[number, 0, 0, 0, 0, 0, 0, 0][..], &packet.message()].concat();
                let protocol = IpNextHeaderProtocol::new(extension);
                let extended = packets::ipv6(source, destination, protocol, &payload);
                add(
                    &format!("extension header {extension}"),
                    packet.link.ip(&extended),
                );
            }
            let other = with(frame.clone(), |frame| frame[ETHERNET] = 0x40);
            add("version 4", other);
            let total = (frame.len() - ETHERNET - IPV6) as u16;
            for wrong in [0, 7, total + 1, u16::MAX] {
                let other = with(frame.clone(), |frame| {
                    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&wrong.to_be_bytes());
                });
                add(&format!("payload length {wrong}"), other);
            }
        }
        _ => unreachable!("one family"),
    }
    for protocol in 0..=255u8 {
        let own = Protocol::ALL.map(|own| own.number(packet.family).0);
        if !own.contains(&protocol) {
            let at = ETHERNET + if packet.family == Family::Ipv4 { 9 } else { 6 };
            let other = with(frame.clone(), |frame| frame[at] = protocol);
            add(&format!("protocol {protocol}"), other);
        }
    }
    match packet.protocol {
        Protocol::Icmp => {
            for kind in 0..=255u8 {
                if kind != frame[at] {
                    let other = with(frame.clone(), |frame| frame[at] = kind);
                    add(&format!("type {kind}"), other);
                }
            }
            for code in [1, 255] {
                let other = with(frame.clone(), |frame| frame[at + 1] = code);
                add(&format!("code {code}"), other);
            }
        }
        Protocol::Udp => {
            let len = (frame.len() - at) as u16;
            for wrong in [0, 7, len + 1, u16::MAX] {
                let other = with(frame.clone(), |frame| {
                    frame[at + 4..at + 6].copy_from_slice(&wrong.to_be_bytes());
                });
                add(&format!("UDP length {wrong}"), other);
            }
        }
        Protocol::Tcp => {
            for offset in [0, 4] {
                let other = with(frame.clone(), |frame| frame[at + 12] = offset << 4);
                add(&format!("data offset {offset}"), other);
            }
        }
    }
    add("zeros", vec![0; 100]);
    add("ones", vec![0xff; 100]);
}

/// A payload of two bytes with which a UDP datagram's sum is zero once it is steered.
fn payload_of_zero_sum(packet: &Packet, takes_hop: bool) -> Packet {
    let tried = (0..=u16::MAX)
        .map(|word| packet.with(|packet| packet.payload = word.to_be_bytes().to_vec()));
    let at = packet.message_at() + 6;
    tried
        .into_iter()
        .find(|packet| packet.steered(takes_hop).frame()[at..at + 2] == [0xff, 0xff])
        .expect("one of 65,536 words makes the sum zero")
}

/// The table of the three programs that send packets through the service.
fn rows(object: &Object) -> Vec<Row> {
    let (is_xdp, is_marked) = (object.is_xdp(), object.program == abi::program::MARKED);
    let takes_hop = !is_marked;
    // The loopback device, on which runs arrive, has a MAC address of zeros.
    let mac = if is_xdp { HUB_MAC } else { [0; 6] };
    let mut rows = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        for protocol in Protocol::ALL {
            let packet = Packet::to_endpoint(family, protocol, mac);
            let mut add =
                |what: &str, frame: Vec<u8>, outcome: Outcome, change: &dyn Fn(&mut Row)| {
                    let mut row = Row {
                        what: format!("{family:?} {protocol:?}: {what}"),
                        frame,
                        outcome,
                        steer: way(),
                        gso_size: 0,
                        mark: MARK,
                    };
                    change(&mut row);
                    rows.push(row);
                };
            let as_it_is = |_: &mut Row| {};
            let steered = |packet: &Packet| Outcome::Steer(packet.steered(takes_hop).frame());

            for len in [0, 1, 2, 3, 31, 500, 1_201] {
                let packet = packet
                    .with(|packet| packet.payload = (0..len).map(|at| at as u8 ^ 0x5a).collect());
                add(
                    &format!("{len} bytes"),
                    packet.frame(),
                    steered(&packet),
                    &as_it_is,
                );
            }
            for hops in [2, 255] {
                let packet = packet.with(|packet| packet.hops = hops);
                add(
                    &format!("{hops} hops"),
                    packet.frame(),
                    steered(&packet),
                    &as_it_is,
                );
            }
            for hops in [0, 1] {
                let packet = packet.with(|packet| packet.hops = hops);
                add(
                    &format!("{hops} hops"),
                    packet.frame(),
                    Outcome::Unfit,
                    &as_it_is,
                );
            }
            for port in [0, 1, 443, u16::MAX] {
                let packet = packet.with(|packet| packet.source_port = port);
                add(
                    &format!("from {port}"),
                    packet.frame(),
                    steered(&packet),
                    &as_it_is,
                );
            }
            // A short frame is padded, and keeps its padding.
            let short = packet.with(|packet| packet.payload.clear());
            let pad = |frame: Vec<u8>| with(frame, |frame| frame.extend([0xee; 14]));
            let padded = Outcome::Steer(pad(short.steered(takes_hop).frame()));
            add("padding", pad(short.frame()), padded, &as_it_is);
            // What was corrupt stays as corrupt: nobody vouches for it.
            let flip =
                |frame: Vec<u8>| with(frame, |frame| *frame.last_mut().expect("a byte") ^= 1);
            let corrupt = Outcome::Steer(flip(packet.steered(takes_hop).frame()));
            add("a corrupt byte", flip(packet.frame()), corrupt, &as_it_is);
            if family == Family::Ipv4 {
                let cleared = |packet: &Packet| {
                    let frame = with(packet.frame(), |frame| frame[ETHERNET + 6] = 0);
                    with(frame, |frame| packets::mend_ipv4(&mut frame[ETHERNET..]))
                };
                let out = Outcome::Steer(cleared(&packet.steered(takes_hop)));
                add("fragments allowed", cleared(&packet), out, &as_it_is);
            }
            if protocol == Protocol::Udp {
                let unsummed = packet.with(|packet| packet.is_unsummed = true);
                add(
                    "no checksum",
                    unsummed.frame(),
                    steered(&unsummed),
                    &as_it_is,
                );
                let zero = payload_of_zero_sum(&packet, takes_hop);
                add("a sum of zero", zero.frame(), steered(&zero), &as_it_is);
            }

            let total = (packet.frame().len() - ETHERNET) as u32;
            add(
                "as large as the MTU",
                packet.frame(),
                steered(&packet),
                &|row| row.steer.mtu = total,
            );
            add(
                "larger than the MTU",
                packet.frame(),
                Outcome::Unfit,
                &|row| row.steer.mtu = total - 1,
            );
            if !is_xdp && protocol != Protocol::Icmp {
                let large = packet.with(|packet| packet.payload = vec![7; 3_001]);
                let headers = (large.frame().len() - ETHERNET - 3_001) as u32;
                add("merged segments", large.frame(), steered(&large), &|row| {
                    row.gso_size = 1_000;
                    row.steer.mtu = headers + 1_000;
                });
                add(
                    "merged segments too large",
                    large.frame(),
                    Outcome::Unfit,
                    &|row| {
                        row.gso_size = 1_000;
                        row.steer.mtu = headers + 999;
                    },
                );
                add("a large packet", large.frame(), Outcome::Unfit, &as_it_is);
            }

            let other = if is_xdp {
                Outcome::Pass
            } else {
                steered(&packet)
            };
            add("by TC", packet.frame(), other, &|row| {
                row.steer.via = Via::TcRedirect
            });
            let other = if is_xdp { Outcome::Pass } else { Outcome::Drop };
            add("no way", packet.frame(), other, &|row| {
                row.steer.via = Via::Nowhere
            });
            if is_xdp {
                add("no device", packet.frame(), Outcome::Pass, &|row| {
                    row.steer.interface = ELSEWHERE + 1
                });
            }
            if is_marked {
                // On the member's own interface it goes on where it is.
                add(
                    "the own interface",
                    packet.frame(),
                    steered(&packet),
                    &|row| row.steer.interface = ARRIVAL,
                );
                for mark in [0, 1, MARK | 1 << 31] {
                    add(
                        &format!("mark {mark:#x}"),
                        packet.frame(),
                        Outcome::Pass,
                        &|row| row.mark = mark,
                    );
                }
            }
            // The sum of the pseudo-header alone, as a device leaves it that completes it later.
            if is_xdp && !(protocol == Protocol::Icmp && family == Family::Ipv4) {
                let partial = with(packet.frame(), |frame| make_partial(&packet, frame));
                add("a partial checksum", partial, Outcome::Pass, &as_it_is);
            }

            for bit in 0..8 * 16 {
                let bits = if family == Family::Ipv4 { 32 } else { 128 };
                if bit >= bits {
                    continue;
                }
                let flip = |address: &mut [u8; 16]| address[bit / 8] ^= 0x80 >> (bit % 8);
                let other = packet.with(|packet| flip(&mut packet.destination));
                add(
                    &format!("bit {bit} of the destination"),
                    other.frame(),
                    Outcome::Pass,
                    &as_it_is,
                );
                let other = packet.with(|packet| flip(&mut packet.source));
                // The first bits of the source are those of the permitted prefix.
                let prefix = if family == Family::Ipv4 { 24 } else { 64 };
                let outcome = match is_marked || bit >= prefix {
                    true => steered(&other),
                    false => Outcome::Pass,
                };
                add(
                    &format!("bit {bit} of the source"),
                    other.frame(),
                    outcome,
                    &as_it_is,
                );
            }
            if protocol != Protocol::Icmp {
                for bit in 0..16 {
                    let other = packet.with(|packet| packet.destination_port ^= 1 << bit);
                    add(
                        &format!("bit {bit} of the port"),
                        other.frame(),
                        Outcome::Pass,
                        &as_it_is,
                    );
                }
            }
            if !is_marked {
                for byte in 0..6 {
                    let other = packet.with(|packet| packet.link.destination[byte] ^= 4);
                    add(
                        &format!("byte {byte} of another host's MAC"),
                        other.frame(),
                        Outcome::Pass,
                        &as_it_is,
                    );
                }
            }
            foreign(&packet, &mut |what, frame| {
                add(what, frame, Outcome::Pass, &as_it_is)
            });
            let reply = packet.with(|packet| packet.is_reply = true);
            if protocol == Protocol::Icmp {
                add("an echo reply", reply.frame(), Outcome::Pass, &as_it_is);
            }
        }
    }
    rows
}

/// Leaves only the pseudo-header's sum in a frame's checksum, computed byte by byte.
fn make_partial(packet: &Packet, frame: &mut [u8]) {
    let at = packet.message_at();
    let len = (frame.len() - at) as u32;
    let bytes = if packet.family == Family::Ipv4 { 4 } else { 16 };
    let pseudo: Vec<u8> = [
        &packet.source[..bytes],
        &packet.destination[..bytes],
        &len.to_be_bytes(),
        &[0, packet.protocol.number(packet.family).0],
    ]
    .concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = at
        + match packet.protocol {
            Protocol::Icmp => 2,
            Protocol::Udp => 6,
            Protocol::Tcp => 16,
        };
    frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
}

/// Runs the table of a program that sends packets through the service.
pub fn check_table(program: &'static str) -> Result<()> {
    let mut object = Object::load(program)?;
    let (rows, refused): (Vec<_>, Vec<_>) = rows(&object)
        .into_iter()
        .partition(|row| object.takes(&row.frame));
    let is_xdp = object.is_xdp();
    let untouched = if is_xdp { XDP_PASS } else { TC_ACT_UNSPEC };
    let mut steered_rows = 0;
    for Row {
        what,
        frame,
        outcome,
        steer,
        gso_size,
        mark,
    } in &rows
    {
        object.set_way(*steer)?;
        object.forget_flows()?;
        let before = object.counters()?;
        let begun = now_mono_ns();
        let (action, out) = object
            .run(frame, *mark, *gso_size)
            .with_context(|| what.clone())?;
        let mut counters = before;
        let is_gone = steer.interface != ARRIVAL;
        let (wanted_action, wanted) = match outcome {
            Outcome::Pass => (untouched, frame),
            Outcome::Unfit => {
                counters.unfit += u64::from(!is_xdp);
                (untouched, frame)
            }
            Outcome::Drop => {
                counters.no_way += 1;
                (TC_ACT_SHOT, frame)
            }
            Outcome::Steer(frame) => {
                counters.steered += 1;
                steered_rows += 1;
                let action = match (is_xdp, is_gone) {
                    (true, _) => XDP_REDIRECT,
                    (false, true) => TC_ACT_REDIRECT,
                    (false, false) => TC_ACT_UNSPEC,
                };
                (action, frame)
            }
        };
        assert_eq!(action, wanted_action, "{what}: action");
        assert_eq!(&out, wanted, "{what}: the frame");
        assert_eq!(object.counters()?, counters, "{what}: counters");
        let flows: Vec<(FlowKey, Flow)> = object.flows.iter().collect::<Result<_, _>>()?;
        if matches!(outcome, Outcome::Steer(_)) {
            let [(key, flow)] = flows[..] else {
                panic!("{what}: {} flows", flows.len());
            };
            assert_eq!(
                (key.behind, key.ifindex),
                (behind(key.family), ARRIVAL),
                "{what}"
            );
            assert_eq!(
                (flow.endpoint, flow.member),
                (endpoint(key.family), MEMBER),
                "{what}"
            );
            assert!(
                (begun..=now_mono_ns()).contains(&flow.used_mono_ns),
                "{what}"
            );
        } else {
            assert!(flows.is_empty(), "{what}: {flows:?}");
        }
    }
    assert!(steered_rows > 100, "{steered_rows} rows were steered");
    println!(
        "{} rows, {} more that the kernel refuses to run",
        rows.len(),
        refused.len()
    );
    Ok(())
}

/// A packet of several buffers is not redirected by XDP, also if the IP packet ends in the first one: TC steers it.
pub fn check_large(program: &'static str) -> Result<()> {
    let mut object = Object::load(program)?;
    object.set_way(way())?;
    for family in [Family::Ipv4, Family::Ipv6] {
        for protocol in Protocol::ALL {
            let packet = Packet::to_endpoint(family, protocol, HUB_MAC);
            let what = format!("{family:?} {protocol:?}");
            let small = packet.frame();
            assert_eq!(object.run(&small, 0, 0)?.0, XDP_REDIRECT, "{what}");
            let mut padded = small;
            padded.resize(6_000, 0);
            let large = packet
                .with(|packet| packet.payload = vec![7; 6_000])
                .frame();
            for frame in [padded, large] {
                let before = object.counters()?;
                let (action, out) = object.run(&frame, 0, 0).with_context(|| what.clone())?;
                assert_eq!((action, out), (XDP_PASS, frame), "{what}");
                assert_eq!(object.counters()?, before, "{what}");
            }
        }
    }
    Ok(())
}

/// A flow is one for each interface of `returns`, and is refreshed; TCP's end is seen.
pub fn check_flows(program: &'static str) -> Result<()> {
    let mut object = Object::load(program)?;
    let mac = if object.is_xdp() { HUB_MAC } else { [0; 6] };
    object.set_way(Steer {
        returns: [ARRIVAL, 5, 6, 7],
        ..way()
    })?;
    let packet = Packet::to_endpoint(Family::Ipv4, Protocol::Tcp, mac);
    let run = |packet: &Packet| object.run(&packet.frame(), MARK, 0).map(drop);
    let flow = |ifindex| -> Result<Flow> {
        let key = FlowKey {
            ifindex,
            ..packet.flow()
        };
        Ok(object.flows.get(&key, 0)?)
    };
    run(&packet)?;
    for ifindex in [ARRIVAL, 5, 6, 7] {
        let first = flow(ifindex)?;
        assert_eq!(first.is_closing, 0);
        run(&packet)?;
        assert!(flow(ifindex)?.used_mono_ns > first.used_mono_ns);
    }
    assert_eq!(object.flows.keys().count(), 4);
    // FIN, data, RST, SYN.
    for (flags, is_closing) in [
        (0x11, 1),
        (0x10, 1),
        (0x04, 1),
        (0x02, 0),
        (0x04, 1),
        (0x12, 0),
    ] {
        run(&packet.with(|packet| packet.tcp_flags = flags))?;
        assert_eq!(flow(7)?.is_closing, is_closing, "flags {flags:#x}");
    }
    Ok(())
}

/// Runs the table of the program that gives replies the endpoint's address.
pub fn check_replies() -> Result<()> {
    let mut object = Object::load(abi::program::RETURN)?;
    let mut count = 0;
    for family in [Family::Ipv4, Family::Ipv6] {
        for protocol in Protocol::ALL {
            let packet = Packet::from_behind(family, protocol);
            let answered = |packet: &Packet| {
                packet
                    .with(|packet| packet.source = endpoint(family))
                    .frame()
            };
            let flow = |age_ns: u64, is_closing| Flow {
                used_mono_ns: now_mono_ns().saturating_sub(age_ns),
                endpoint: endpoint(family),
                member: MEMBER,
                is_closing,
                ..Default::default()
            };
            let mut check = |what: &str,
                             frame: &[u8],
                             key: FlowKey,
                             flow: Flow,
                             wanted: Option<Vec<u8>>|
             -> Result<()> {
                let what = format!("{family:?} {protocol:?}: {what}");
                object.forget_flows()?;
                object.flows.insert(key, flow, 0)?;
                let mut counters = object.counters()?;
                counters.replied += u64::from(wanted.is_some());
                let (action, out) = object.run(frame, 0, 0).with_context(|| what.clone())?;
                assert_eq!(action, TC_ACT_UNSPEC, "{what}: action");
                assert_eq!(out, wanted.as_deref().unwrap_or(frame), "{what}: the frame");
                assert_eq!(object.counters()?, counters, "{what}: counters");
                count += 1;
                Ok(())
            };
            let key = packet.flow();
            for len in [0, 1, 2, 3, 500, 1_201] {
                let packet = packet
                    .with(|packet| packet.payload = (0..len).map(|at| at as u8 ^ 0xa5).collect());
                check(
                    &format!("{len} bytes"),
                    &packet.frame(),
                    key,
                    flow(0, 0),
                    Some(answered(&packet)),
                )?;
            }
            if protocol == Protocol::Udp {
                let unsummed = packet.with(|packet| packet.is_unsummed = true);
                check(
                    "no checksum",
                    &unsummed.frame(),
                    key,
                    flow(0, 0),
                    Some(answered(&unsummed)),
                )?;
            }
            // Its hops are the stack's to take.
            let last = packet.with(|packet| packet.hops = 1);
            check(
                "one hop",
                &last.frame(),
                key,
                flow(0, 0),
                Some(answered(&last)),
            )?;

            let is_tcp = protocol == Protocol::Tcp;
            for (age_ns, is_closing, lasts) in [
                (29 * SECOND_NS, 1, true),
                (31 * SECOND_NS, 0, is_tcp),
                (31 * SECOND_NS, 1, false),
                (HOUR_NS - 10 * SECOND_NS, 0, is_tcp),
                (HOUR_NS + SECOND_NS, 0, false),
            ] {
                // The clock begins at zero when the machine starts.
                if age_ns < now_mono_ns() {
                    let what = format!("{} s old, closing {is_closing}", age_ns / SECOND_NS);
                    let wanted = lasts.then(|| answered(&packet));
                    check(
                        &what,
                        &packet.frame(),
                        key,
                        flow(age_ns, is_closing),
                        wanted,
                    )?;
                }
            }
            type Change = fn(&mut FlowKey);
            let changes: [(&str, Change); 6] = [
                ("another prober", |key| key.prober[3] ^= 1),
                ("another behind", |key| key.behind[3] ^= 1),
                ("another interface", |key| key.ifindex += 1),
                ("another port of the prober", |key| key.prober_port ^= 1),
                ("another port behind", |key| key.behind_port ^= 1),
                ("another protocol", |key| key.protocol ^= 1),
            ];
            for (what, change) in changes {
                let mut other = key;
                change(&mut other);
                check(what, &packet.frame(), other, flow(0, 0), None)?;
            }
            for byte in 0..6 {
                let other = packet.with(|packet| packet.link.destination[byte] ^= 4);
                check("another host's MAC", &other.frame(), key, flow(0, 0), None)?;
            }
            if protocol == Protocol::Icmp {
                let request = packet.with(|packet| packet.is_reply = false);
                check("an echo request", &request.frame(), key, flow(0, 0), None)?;
            }
            let mut frames = Vec::new();
            foreign(&packet, &mut |what, frame| {
                frames.push((what.to_owned(), frame))
            });
            for (what, frame) in frames {
                let header = match family {
                    Family::Ipv4 => IPV4,
                    Family::Ipv6 => IPV6,
                };
                if frame.len() >= ETHERNET + header {
                    check(&what, &frame, key, flow(0, 0), None)?;
                }
            }
        }
    }
    assert!(count > 500, "{count} rows");
    // A reset from behind ends the flow.
    let reset =
        Packet::from_behind(Family::Ipv6, Protocol::Tcp).with(|packet| packet.tcp_flags = 0x14);
    let flow = Flow {
        used_mono_ns: now_mono_ns(),
        endpoint: ENDPOINT_V6,
        member: MEMBER,
        ..Default::default()
    };
    object.flows.insert(reset.flow(), flow, 0)?;
    object.run(&reset.frame(), 0, 0)?;
    assert_eq!(object.flows.get(&reset.flow(), 0)?.is_closing, 1);
    println!("{count} rows");
    Ok(())
}

/// A packet that FILTER knows nothing of is passed before any other look-up, and so is everything without it.
pub fn check_filter(program: &'static str) -> Result<()> {
    let mut object = Object::load(program)?;
    let mac = if object.is_xdp() { HUB_MAC } else { [0; 6] };
    let is_marked = program == abi::program::MARKED;
    for family in [Family::Ipv4, Family::Ipv6] {
        let packet = Packet::to_endpoint(family, Protocol::Udp, mac);
        let last = match family {
            Family::Ipv4 => u32::from_be_bytes(ENDPOINT_V4),
            Family::Ipv6 => 2,
        };
        let (word, bit) = Filter::place(last);
        let mut filter = Filter {
            mark: MARK,
            mark_mask: u32::MAX,
            ..Default::default()
        };
        filter.endpoints[word] = bit;
        object.filter.set(0, filter, 0)?;
        let (_, out) = object.run(&packet.frame(), MARK, 0)?;
        assert_eq!(out, packet.steered(!is_marked).frame());
        // Others' bits in the mark do not matter outside the mask, and do inside.
        if is_marked {
            for (mark_mask, is_steered) in [(0xffff, true), (0x1_ffff, true), (0x8000_ffff, false)]
            {
                filter.mark_mask = mark_mask;
                object.filter.set(0, filter, 0)?;
                let (_, out) = object.run(&packet.frame(), MARK | 1 << 31, 0)?;
                let wanted = match is_steered {
                    true => packet.steered(false).frame(),
                    false => packet.frame(),
                };
                assert_eq!(out, wanted, "mask {mark_mask:#x}");
            }
        }
        filter.endpoints[word] = !bit;
        object.filter.set(0, filter, 0)?;
        let (_, out) = object.run(&packet.frame(), MARK, 0)?;
        assert_eq!(out, packet.frame());
    }
    Ok(())
}

/// On an interface without Ethernet header, where a packet begins is known by its length. One that is longer than it
/// says, and goes on where it would begin by that with a copy of its own header, is not what it looks like: it passes.
pub fn check_false_beginning(program: &'static str) -> Result<()> {
    let mut object = Object::load(program)?;
    object.set_way(Steer {
        is_ethernet: 0,
        ..way()
    })?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let packet = match program {
            abi::program::RETURN_IP => Packet::from_behind(family, Protocol::Udp),
            _ => Packet::to_endpoint(family, Protocol::Udp, [0; 6]),
        };
        let flow = Flow {
            used_mono_ns: now_mono_ns(),
            endpoint: endpoint(family),
            member: MEMBER,
            ..Default::default()
        };
        object.flows.insert(packet.flow(), flow, 0)?;
        let genuine = packet.ip();
        let header = packet.message_at() - ETHERNET;
        let frame = packet.link.ip(&[&genuine[..header], &genuine].concat());
        let (action, out) = object.run(&frame, MARK, 0)?;
        assert_eq!(action, TC_ACT_UNSPEC, "{family:?}");
        assert_eq!(out, frame, "{family:?}: the frame");
        assert_eq!(object.counters()?, Steered::default(), "{family:?}");
    }
    Ok(())
}

//! Frames by the hundred thousand through the programs of steering. The oracle reads a frame by itself and says what has
//! to become of it; what a checksum covers that is right or wrong before must be as right or wrong after.

use anyhow::{Context as _, Result};
use tracker_ebpf::abi::{Family, Flow, Steer, Via, program};
use tracker_tests::packets::{ETHERNET, IPV4, IPV6};
use tracker_tests::random::{Random, Round, Rounds, Tally};

use super::frames::{self, Pool, be16, sum};
use super::steer::{
    ELSEWHERE, ENDPOINT_V4, ENDPOINT_V6, MARK, MEMBER, Object, PORT, PROBER_MAC, PROBER_PORT,
    PROBER_V4, PROBER_V6, Packet, Protocol, behind, endpoint, way,
};
use super::{
    ARRIVAL, BEHIND_V4, BEHIND_V6, ENDPOINT_MAC, HUB_MAC, TC_ACT_REDIRECT, TC_ACT_SHOT,
    TC_ACT_UNSPEC, XDP_PASS, XDP_REDIRECT, now_mono_ns, widen,
};

/// Frames of one round.
const FRAMES: u64 = 500;
const ICMP: [u8; 2] = [1, 58];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Which of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// XDP at an uplink.
    Fast,
    /// TC at an uplink.
    Uplink,
    /// TC egress of local packets.
    Marked,
    /// TC ingress of replies.
    Reply,
}

/// What has to come of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    /// It passes, unaltered and uncounted.
    Foreign,
    /// It passes, counted as one that does not fit.
    Unfit,
    /// It is dropped: it was to be steered, and there is no way.
    NoWay,
    /// It leaves, or goes on, as this; but for checksums, which are as right as before.
    Changed(Vec<u8>),
}

/// A packet as somebody else would read it: addresses, ports and lengths of an unfragmented echo, UDP or TCP packet
/// without IP options, all within the frame.
struct Seen {
    family: Family,
    protocol: u8,
    is_request: bool,
    is_reply: bool,
    source: Vec<u8>,
    destination: Vec<u8>,
    ports: [u16; 2],
    hops: u8,
    ip_len: usize,
    headers: usize,
    /// Of the message, within the frame.
    at: usize,
    checksum_at: usize,
    checksum: u16,
}

fn read(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(ETHERNET..)?;
    let ethertype = be16(frame, 12)?;
    let (family, head, protocol, hops, ip_len) = match ethertype {
        0x0800 => {
            let plain = *packet.first()? == 0x45 && be16(packet, 6)? & 0x3fff == 0;
            plain.then_some(())?;
            let (hops, protocol) = (*packet.get(8)?, *packet.get(9)?);
            (
                Family::Ipv4,
                IPV4,
                protocol,
                hops,
                usize::from(be16(packet, 2)?),
            )
        }
        0x86dd => {
            (*packet.first()? >> 4 == 6).then_some(())?;
            let (protocol, hops) = (*packet.get(6)?, *packet.get(7)?);
            (
                Family::Ipv6,
                IPV6,
                protocol,
                hops,
                IPV6 + usize::from(be16(packet, 4)?),
            )
        }
        _ => return None,
    };
    let header = packet.get(..head)?;
    let len = if family == Family::Ipv4 { 4 } else { 16 };
    let source = header[head - 2 * len..head - len].to_vec();
    let destination = header[head - len..].to_vec();
    let message = packet.get(head..)?;
    let (mut is_request, mut is_reply) = (false, false);
    let own_icmp = ICMP[usize::from(family == Family::Ipv6)];
    let (ports, checksum_at, bytes) = match protocol {
        TCP => {
            message.get(..20)?;
            let bytes = usize::from(message[12] >> 4) * 4;
            (bytes >= 20).then_some(())?;
            ([be16(message, 0)?, be16(message, 2)?], 16, bytes)
        }
        UDP => {
            message.get(..8)?;
            let len = usize::from(be16(message, 4)?);
            (len >= 8 && head + len <= ip_len).then_some(())?;
            ([be16(message, 0)?, be16(message, 2)?], 6, 8)
        }
        icmp if icmp == own_icmp => {
            message.get(..8)?;
            let kinds = if family == Family::Ipv4 {
                [8, 0]
            } else {
                [128, 129]
            };
            is_request = message[0] == kinds[0];
            is_reply = message[0] == kinds[1];
            ((is_request || is_reply) && message[1] == 0).then_some(())?;
            let identifier = be16(message, 4)?;
            let ports = if is_request {
                [identifier, 0]
            } else {
                [0, identifier]
            };
            (ports, 2, 8)
        }
        _ => return None,
    };
    let headers = head + bytes;
    (ip_len >= headers && ip_len <= packet.len()).then_some(())?;
    Some(Seen {
        family,
        protocol,
        is_request,
        is_reply,
        source,
        destination,
        ports,
        hops,
        ip_len,
        headers,
        at: ETHERNET + head,
        checksum_at: ETHERNET + head + checksum_at,
        checksum: be16(message, checksum_at)?,
    })
}

impl Seen {
    fn is_icmp(&self) -> bool {
        ICMP.contains(&self.protocol)
    }

    /// Whether a checksum covers the addresses.
    fn covers_addresses(&self) -> bool {
        match (self.family, self.protocol) {
            (Family::Ipv4, 1) => false,
            (_, UDP) => self.checksum != 0,
            _ => true,
        }
    }

    /// What the checksums add up to: of the IP header, and of addresses and the checksum above.
    fn sums(&self, frame: &[u8]) -> [u16; 2] {
        let above = match self.covers_addresses() {
            true => sum(&[
                &frame[addresses_at(self)..self.at],
                &frame[self.checksum_at..self.checksum_at + 2],
            ]),
            false => sum(&[&frame[self.checksum_at..self.checksum_at + 2]]),
        };
        let header = match self.family {
            Family::Ipv4 => sum(&[&frame[ETHERNET..self.at]]),
            Family::Ipv6 => 0,
        };
        // Of two zeros in ones' complement, one.
        [header, above].map(|sum| if sum == 0xffff { 0 } else { sum })
    }

    /// The frame with nothing in the places of its checksums.
    fn unsummed(&self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        if self.family == Family::Ipv4 {
            frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        }
        frame[self.checksum_at..self.checksum_at + 2].fill(0);
        frame
    }
}

/// Where the addresses begin; they end with the IP header.
fn addresses_at(seen: &Seen) -> usize {
    seen.at - 2 * seen.source.len()
}

/// What the programs are given besides the frame.
#[derive(Clone, Copy, Debug)]
struct Given {
    kind: Kind,
    /// The program for interfaces without Ethernet header.
    is_bare: bool,
    steer: Steer,
    mark: u32,
    gso_size: u32,
    tag: Option<u16>,
}

fn oracle(frame: &[u8], given: &Given) -> (Want, Option<Seen>) {
    match read(frame) {
        Some(seen) => (judge(frame, &seen, given), Some(seen)),
        None => (Want::Foreign, None),
    }
}

fn judge(frame: &[u8], seen: &Seen, given: &Given) -> Want {
    let Given {
        kind,
        is_bare,
        steer,
        ..
    } = *given;
    // Outer headers are what is before the packet, so there must be nothing after it.
    if given.tag.is_some() || (is_bare && seen.ip_len != frame.len() - ETHERNET) {
        return Want::Foreign;
    }
    let family = seen.family;
    let len = seen.source.len();
    let own_mac = if kind == Kind::Fast { HUB_MAC } else { [0; 6] };
    let is_for_us = frame[..6] == own_mac || kind == Kind::Marked;
    let mut changed = frame.to_vec();
    if kind == Kind::Reply {
        let is_flow = seen.source == behind(family)[..len]
            && seen.destination == prober(family)[..len]
            && match seen.is_icmp() {
                true => seen.is_reply && seen.ports[1] == PROBER_PORT,
                false => seen.ports == [PORT, PROBER_PORT],
            };
        if !is_for_us || !is_flow {
            return Want::Foreign;
        }
        let at = addresses_at(seen);
        changed[at..at + len].copy_from_slice(&endpoint(family)[..len]);
        return Want::Changed(changed);
    }

    let prefix = if family == Family::Ipv4 { 3 } else { 8 };
    let is_permitted = match kind {
        Kind::Marked => given.mark == MARK,
        _ => seen.source[..prefix] == prober(family)[..prefix],
    };
    let is_asked = seen.destination == endpoint(family)[..len]
        && match seen.is_icmp() {
            true => seen.is_request,
            false => seen.ports[1] == PORT,
        };
    if !is_for_us || !is_permitted || !is_asked {
        return Want::Foreign;
    }
    let size = match given.gso_size {
        0 => seen.ip_len,
        segment => seen.headers + segment as usize,
    };
    let fits = size <= steer.mtu as usize && seen.hops > 1;
    if kind == Kind::Fast {
        // A sum of the pseudo-header alone is yet to be completed by a device, which TC knows of.
        let message_len = (seen.ip_len - (seen.at - ETHERNET)) as u32;
        let pseudo = sum(&[
            &frame[addresses_at(seen)..seen.at],
            &message_len.to_be_bytes(),
            &[0, seen.protocol],
        ]);
        let is_partial = seen.covers_addresses() && pseudo == seen.checksum;
        if steer.via != Via::XdpRedirect || !fits || is_partial {
            return Want::Foreign;
        }
    } else if steer.via == Via::Nowhere {
        return Want::NoWay;
    } else if !fits || (is_bare && steer.is_ethernet != 0) {
        return Want::Unfit;
    }
    changed[seen.at - len..seen.at].copy_from_slice(&behind(family)[..len]);
    if kind != Kind::Marked {
        changed[ETHERNET + if family == Family::Ipv4 { 8 } else { 7 }] -= 1;
    }
    if steer.is_ethernet != 0 {
        changed[..6].copy_from_slice(&ENDPOINT_MAC);
        changed[6..12].copy_from_slice(&HUB_MAC);
    }
    Want::Changed(changed)
}

fn prober(family: Family) -> [u8; 16] {
    match family {
        Family::Ipv4 => widen(PROBER_V4),
        Family::Ipv6 => PROBER_V6,
    }
}

/// Frames of one round.
struct Fuzzer {
    random: Random,
    pool: Pool,
    kind: Kind,
    last: Vec<u8>,
}

impl Fuzzer {
    fn new(random: Random, kind: Kind) -> Self {
        let own_mac = if kind == Kind::Fast { HUB_MAC } else { [0; 6] };
        let pool = Pool {
            macs: vec![own_mac, own_mac, own_mac, PROBER_MAC, ENDPOINT_MAC],
            v4: vec![PROBER_V4, ENDPOINT_V4, BEHIND_V4],
            v6: vec![PROBER_V6, ENDPOINT_V6, BEHIND_V6],
            ports: vec![PORT, PROBER_PORT],
            payloads: vec![b"TRKR".repeat(12), vec![0; 56], (0..=255).collect()],
        };
        Self {
            random,
            pool,
            kind,
            last: Vec::new(),
        }
    }

    fn next(&mut self) -> Vec<u8> {
        let frame = match self.random.below(16) {
            0 => frames::noise(&mut self.random),
            1..=4 => frames::structured(&mut self.random, &self.pool),
            5..=7 => self.genuine(),
            _ => {
                let genuine = self.genuine();
                frames::damaged(&mut self.random, &genuine, &self.last)
            }
        };
        self.last.clone_from(&frame);
        frame
    }

    /// A packet to an endpoint, or from a behind address.
    fn genuine(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let family = *random.pick(&[Family::Ipv4, Family::Ipv6]);
        let protocol = *random.pick(&Protocol::ALL);
        let own_mac = if self.kind == Kind::Fast {
            HUB_MAC
        } else {
            [0; 6]
        };
        let is_reply = (self.kind == Kind::Reply) ^ random.is_one_in(16);
        let mut packet = match is_reply {
            true => Packet::from_behind(family, protocol),
            false => Packet::to_endpoint(family, protocol, own_mac),
        };
        if random.is_one_in(2) {
            let len = random.below(100);
            packet.payload = random.bytes(len);
        }
        packet.hops = *random.pick(&[1, 2, 64, 64, 64, 255]);
        packet.is_unsummed = random.is_one_in(4);
        // No RST: it would end the flow.
        packet.tcp_flags = random.byte() & !4;
        packet.frame()
    }
}

/// The ways that a member may have.
fn steers(kind: Kind) -> Vec<Steer> {
    let mut steers = vec![
        way(),
        way(),
        Steer { mtu: 70, ..way() },
        Steer {
            via: Via::TcRedirect,
            ..way()
        },
        Steer {
            via: Via::Nowhere,
            ..way()
        },
    ];
    if kind != Kind::Fast {
        // A tunnel: XDP never redirects to one.
        let is_tunnel = |steer: &Steer| Steer {
            is_ethernet: 0,
            via: match steer.via {
                Via::Nowhere => Via::Nowhere,
                _ => Via::TcRedirect,
            },
            ..*steer
        };
        let tunnels: Vec<Steer> = steers.iter().map(is_tunnel).collect();
        steers.extend(tunnels);
    }
    if kind == Kind::Marked {
        let there = |steer: &Steer| Steer {
            interface: ARRIVAL,
            ..*steer
        };
        let there: Vec<Steer> = steers.iter().map(there).collect();
        steers.extend(there);
    }
    steers
}

/// Random frames, and packets that are steered with random damage: whatever is not to be steered passes unaltered and
/// uncounted, and what is differs from before in what steering changes alone.
pub fn check(program: &'static str, rounds: u64) -> Result<()> {
    let (kind, is_bare) = match program {
        program::STEER => (Kind::Fast, false),
        program::UPLINK => (Kind::Uplink, false),
        program::UPLINK_IP => (Kind::Uplink, true),
        program::MARKED => (Kind::Marked, false),
        program::MARKED_IP => (Kind::Marked, true),
        program::RETURN => (Kind::Reply, false),
        _ => (Kind::Reply, true),
    };
    let mut object = Object::load(program)?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(rounds);
    while let Some(round) = rounds.next() {
        let done = check_round(&mut object, round, (kind, is_bare), &mut tally);
        rounds.took(done.with_context(|| format!("fuzz {program}"))?);
    }
    rounds.sum_up(program, "frames", &tally);
    tally.require(&["foreign", "changed"], 30);
    if matches!(kind, Kind::Uplink | Kind::Marked) {
        tally.require(&["unfit", "no way"], 100);
    }
    Ok(())
}

fn check_round(
    object: &mut Object,
    mut round: Round,
    (kind, is_bare): (Kind, bool),
    tally: &mut Tally,
) -> Result<u64> {
    let steer = *round.random.pick(&steers(kind));
    object.set_way(steer)?;
    object.forget_flows()?;
    let mut flows = Vec::new();
    if kind == Kind::Reply {
        for family in [Family::Ipv4, Family::Ipv6] {
            for protocol in Protocol::ALL {
                let flow = Flow {
                    used_mono_ns: now_mono_ns(),
                    endpoint: endpoint(family),
                    member: MEMBER,
                    ..Default::default()
                };
                let key = Packet::from_behind(family, protocol).flow();
                object.flows.insert(key, flow, 0)?;
                flows.push(key);
            }
        }
    }
    let mut fuzzer = Fuzzer::new(Random::new(round.random.word()), kind);
    let mut ran_frames = 0;
    for number in 1..=FRAMES {
        let frame = fuzzer.next();
        if !object.takes(&frame) {
            continue;
        }
        ran_frames += 1;
        let is_tc = kind != Kind::Fast;
        let random = &mut round.random;
        let given = Given {
            kind,
            is_bare,
            steer,
            mark: match kind {
                Kind::Marked if !random.is_one_in(8) => MARK,
                _ => *random.pick(&[0, MARK ^ 1, u32::MAX]),
            },
            gso_size: if is_tc && random.is_one_in(16) { 30 } else { 0 },
            tag: (is_tc && random.is_one_in(16)).then(|| *random.pick(&[0, 7, 0xffff])),
        };
        let (want, seen) = oracle(&frame, &given);
        let what = || format!("frame {number}, {given:?}, {want:?}: {frame:02x?}");
        let mut counters = object.counters()?;
        let (action, out) = match (given.tag, &object.tagger) {
            (Some(tag), Some(tagger)) => tagger.run(&frame, tag, given.mark)?,
            _ => object.run(&frame, given.mark, given.gso_size)?,
        };
        let untouched = if is_tc { TC_ACT_UNSPEC } else { XDP_PASS };
        let (wanted_action, name) = match &want {
            Want::Foreign => (untouched, "foreign"),
            Want::Unfit => (untouched, "unfit"),
            Want::NoWay => (TC_ACT_SHOT, "no way"),
            Want::Changed(_) => match kind {
                Kind::Fast => (XDP_REDIRECT, "changed"),
                Kind::Uplink => (TC_ACT_REDIRECT, "changed"),
                Kind::Marked if steer.interface == ELSEWHERE => (TC_ACT_REDIRECT, "changed"),
                Kind::Marked | Kind::Reply => (TC_ACT_UNSPEC, "changed"),
            },
        };
        tally.add(name);
        assert_eq!(action, wanted_action, "{}", what());
        match (&want, seen) {
            (Want::Changed(wanted), Some(seen)) => {
                assert_eq!(seen.unsummed(&out), seen.unsummed(wanted), "{}", what());
                assert_eq!(
                    seen.sums(&out),
                    seen.sums(&frame),
                    "checksums of {}",
                    what()
                );
                let was_there = seen.protocol != UDP || seen.checksum != 0;
                let is_there = seen.protocol != UDP || be16(&out, seen.checksum_at) != Some(0);
                assert_eq!(is_there, was_there, "a UDP checksum of {}", what());
            }
            _ => assert!(out == frame, "altered: {}", what()),
        }
        match want {
            Want::Foreign => {}
            Want::Unfit => counters.unfit += 1,
            Want::NoWay => counters.no_way += 1,
            Want::Changed(_) if kind == Kind::Reply => counters.replied += 1,
            Want::Changed(_) => counters.steered += 1,
        }
        assert_eq!(object.counters()?, counters, "{}", what());
        if kind != Kind::Reply {
            let noted = object.flows.keys().count();
            let should = usize::from(matches!(want, Want::Changed(_)));
            assert_eq!(noted, should, "flows after {}", what());
            if noted > 0 {
                object.forget_flows()?;
            }
        }
    }
    for key in flows {
        let flow = object.flows.get(&key, 0)?;
        assert_eq!((flow.endpoint, flow.member), (endpoint(key.family), MEMBER));
    }
    Ok(ran_frames)
}

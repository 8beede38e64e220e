//! Frames by the hundred thousand through the receive programs, and two oracles that share no code with them: one
//! reads a frame as pnet_packet does and says what has to come of it, the other holds it byte for byte against the
//! replies that there are.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use anyhow::Result;
use tracker_ebpf::abi::{Family, Probe, Proof};
use tracker_ebpf::wire::token;
use tracker_tests::packets::{self, Carrier, ECHO, ETHERNET, IPV4, MARK, Mark, TAG, Tag};
use tracker_tests::random::{Random, Round, Rounds, Tally};

use super::frames::{self, Pool};
use super::receive::{Actions, Reply, Row, V4, V6, Want, header};
use super::{ARRIVAL, BEHIND_V4, BEHIND_V6, Beside, ENDPOINT_MAC, HUB_MAC, HUB_V4, HUB_V6};
use super::{KEY, OTHER, Object, SLOT, SLOTS, Snapshot, World};

/// Frames of one round, fewer than a bit set has bits, so that no sequence number comes round again.
const FRAMES: u64 = 480;
/// When all probes were sent: the same frames in every run.
const SENT_MONO_NS: u64 = 1_000;

/// The kinds of probes that are answered here. One more is named here, in [`free`] and [`is_whole`], and in [`oracle`].
const PROBES: [Probe; 2] = [Probe::Icmp, Probe::Udp];

/// The trackers under test: every family, kind of probe and proof, and what makes a genuine reply something else.
fn worlds(actions: Actions) -> Vec<World> {
    let mut worlds = Vec::new();
    for family in [V4, V6] {
        for probe in PROBES {
            for proof in [Proof::Reply, Proof::Arrival] {
                let world = World::new(family).with(|world| {
                    world.tracker.window_mask = 7;
                    world.tracker.proof = proof;
                    world.tracker.probe = probe;
                    world.tracker.timeout_ns = u64::MAX;
                    world.path.arrivals = world.path.returns;
                });
                worlds.push(world.clone());
                worlds.push(world.clone().with(|world| world.state.receive.verdict = 0));
                let impatient = |world: &mut World| world.tracker.timeout_ns = 0;
                worlds.push(world.clone().with(impatient));
                worlds.push(world.clone().with(|world| {
                    world.path.returns = [901, 0, 0, 0];
                    world.path.arrivals = [902, 0, 0, 0];
                }));
                worlds.push(world.clone().with(|world| world.tracker.return_ttl = 64));
                if actions.sees_hop {
                    worlds.push(world.with(|world| {
                        world.path.checks_hop = 1;
                        world.path.interface = ARRIVAL;
                    }));
                }
            }
        }
    }
    worlds
}

/// Frames of one round.
pub struct Fuzzer {
    random: Random,
    world: World,
    pool: Pool,
    sequence: u64,
    /// A frame of before, of which parts get into others.
    last: Vec<u8>,
}

impl Fuzzer {
    pub fn new(random: Random, world: World) -> Self {
        let mark = |sequence| world.mark(sequence, SENT_MONO_NS).payload(MARK);
        let pool = Pool {
            macs: vec![HUB_MAC, ENDPOINT_MAC, [0; 6]],
            v4: vec![HUB_V4, BEHIND_V4],
            v6: vec![HUB_V6, BEHIND_V6],
            ports: vec![world.tracker.port, world.flow(1)],
            payloads: (1..FRAMES).step_by(7).map(mark).collect(),
        };
        Self {
            random,
            world,
            pool,
            sequence: 0,
            last: Vec::new(),
        }
    }

    fn next(&mut self) -> Vec<u8> {
        self.go_on();
        let frame = match self.random.below(16) {
            0 => frames::noise(&mut self.random),
            1..=3 => frames::structured(&mut self.random, &self.pool),
            4..=7 => self.marked(),
            _ => {
                let genuine = self.marked();
                frames::damaged(&mut self.random, &genuine, &self.last)
            }
        };
        self.last.clone_from(&frame);
        frame
    }

    /// Comes to the next probe, or has the last one again.
    pub fn go_on(&mut self) {
        self.sequence += 1;
        if self.random.is_one_in(8) && self.sequence > 1 {
            self.sequence -= 1;
        }
    }

    /// A genuine reply or probe, an error about a probe, or what somebody would send who knows all but the key.
    pub fn marked(&mut self) -> Vec<u8> {
        let world = &self.world;
        let random = &mut self.random;
        let mut mark = world.mark(self.sequence, SENT_MONO_NS);
        if random.is_one_in(16) {
            mark.tracker = *random.pick(&[0, SLOT, OTHER, SLOTS, u32::MAX]);
        }
        let is_probe = random.is_one_in(16) ^ (world.tracker.proof == Proof::Arrival);
        let mut reply = match is_probe {
            true => Reply::arrived(world, mark),
            false => Reply::new(world, mark),
        };
        if random.is_one_in(16) {
            reply.link.destination = world.path.next_hop_mac;
        }
        if random.is_one_in(16) {
            reply.link.source = *random.pick(&[HUB_MAC, [0; 6], [0xff; 6]]);
        }
        let more = *random.pick(&[0, 0, 1, 8, 40]);
        reply.echo.payload.resize(MARK + more, 0);
        reply.link.tags = match random.below(8) {
            0 | 1 => vec![Tag::dot1q(*random.pick(&[0, 7, 0xe000, 0xe064, 0xffff]))],
            2 if random.is_one_in(4) => vec![Tag::dot1ad(1), Tag::dot1q(2)],
            _ => Vec::new(),
        };
        if random.is_one_in(12) {
            let hub = world.addresses().0;
            let kind = *random.pick(&[1, 2, 3, 3, 4, 11, 12, 13]);
            let probe = world.probe(mark);
            let error = packets::error(hub, hub, [kind, 1], &probe[ETHERNET..]);
            return reply.link.ip(&error);
        }
        reply.frame()
    }
}

/// What has to come of a frame, by the product's rules and pnet_packet's reading of it.
pub fn oracle(
    world: &World,
    answered: &HashSet<u64>,
    frame: &[u8],
    beside: Beside,
    actions: Actions,
) -> Want {
    if let Some(error) = packets::read_error(frame) {
        let Mark {
            tracker,
            sequence,
            sent_mono_ns,
            token,
        } = error.mark;
        let epoch = world.tracker.epoch;
        let is_ours = error.checksum
            && error.announced.is_some_and(|len| len >= MARK)
            && error.destination == world.addresses().0
            && [SLOT, OTHER].contains(&tracker)
            && token == token::token(KEY, tracker, epoch, sequence, sent_mono_ns);
        let closed = match error.source {
            IpAddr::V4(_) => [3, 3],
            IpAddr::V6(_) => [1, 4],
        };
        let is_closed = world.tracker.probe == Probe::Udp
            && error.source == world.addresses().1
            && error.kind == closed;
        return match is_ours {
            true if is_closed => Want::Closed,
            true => Want::Refused,
            false => Want::Foreign,
        };
    }
    let Some(seen) = packets::read_marked(frame) else {
        return Want::Foreign;
    };
    let (hub, behind) = world.addresses();
    let is_known = [SLOT, OTHER].contains(&seen.mark.tracker);
    let port = world.tracker.port;
    let (probe, is_probe, is_of_port) = match seen.carrier {
        Carrier::Icmp { kind, .. } if kind == packets::echo_request(seen.source) => {
            (Probe::Icmp, true, true)
        }
        Carrier::Icmp { kind, .. } if kind == packets::echo_reply(seen.source) => {
            (Probe::Icmp, false, true)
        }
        Carrier::Icmp { .. } => return Want::Foreign,
        Carrier::Udp {
            source,
            destination,
            ..
        } => match seen.destination == hub {
            true => (Probe::Udp, false, source == port),
            false => (Probe::Udp, true, destination == port),
        },
    };
    let waits_for_probe = world.tracker.proof == Proof::Arrival;
    let ends = match is_probe {
        true => (hub, behind),
        false => (behind, hub),
    };
    let is_between = (seen.source, seen.destination) == ends && is_of_port;
    let is_another = probe != world.tracker.probe || is_probe != waits_for_probe;
    let tells_by_itself = probe == Probe::Icmp && !is_probe;
    if (is_known && is_another) || (is_probe && !is_between) || (!is_known && !tells_by_itself) {
        return Want::Foreign;
    }
    let [corrupt, strange] = match seen.mark.tracker {
        SLOT => [Want::Corrupt, Want::Stranger],
        OTHER => [Want::CorruptOther, Want::StrangerOther],
        _ => return Want::Stale,
    };
    let epoch = world.tracker.epoch;
    let Mark {
        tracker,
        sequence,
        sent_mono_ns,
        token,
    } = seen.mark;
    let right = token::token(KEY, tracker, epoch, sequence, sent_mono_ns);
    let is_ours = seen.checksums
        && !matches!(seen.carrier, Carrier::Icmp { code: 1.., .. })
        && seen.announced.is_some_and(|len| len >= MARK)
        && seen.destination == ends.1
        && token == right;
    if is_ours && !is_between {
        return Want::Elsewhere;
    }
    if !is_ours {
        return match is_between || token == right {
            true => corrupt,
            false => strange,
        };
    }
    if is_probe && frame.first_chunk().is_some_and(actions.is_as_sent) {
        return Want::Foreign;
    }
    let expected = match is_probe {
        true => world.path.arrivals,
        false => world.path.returns,
    };
    if is_tagged(frame, beside) {
        return Want::Tagged;
    }
    if !is_of_right_way(world, frame, is_probe, expected) {
        return Want::WrongPath;
    }
    if world.tracker.timeout_ns == 0 {
        return Want::Late;
    }
    match (answered.contains(&sequence), world.state.receive.verdict) {
        (true, _) => Want::Duplicate,
        (false, 0) => Want::CountedWithEvent,
        (false, _) => Want::Counted,
    }
}

/// Whether a genuine reply, or probe, came where and by whom it has to.
pub fn is_of_right_way(world: &World, frame: &[u8], is_probe: bool, expected: [u32; 4]) -> bool {
    let is_by_another = world.path.checks_hop != 0 && !is_probe && frame[6..12] != ENDPOINT_MAC;
    let is_of_another_way = match world.tracker.return_ttl {
        0 => false,
        wanted => hops(frame) != Some(wanted),
    };
    !is_by_another && !is_of_another_way && expected.contains(&ARRIVAL)
}

/// Whether a frame's tag, in it or beside it, names a VLAN.
pub fn is_tagged(frame: &[u8], beside: Beside) -> bool {
    let is_inside = frame[12..ETHERNET] == [0x81, 0x00];
    let control = match (is_inside, beside.tag) {
        (_, Some(control)) if control & 0xfff != 0 => control,
        (true, _) => frames::be16(frame, ETHERNET).unwrap_or(0),
        (false, _) => 0,
    };
    control & 0xfff != 0
}

/// Hops that a frame's packet has left, tagged or not.
pub fn hops(frame: &[u8]) -> Option<u8> {
    let (at, ethertype) = frames::ip_at(frame)?;
    frame
        .get(at + if ethertype == 0x0800 { 8 } else { 7 })
        .copied()
}

/// The bytes that a network may change in a reply, or in a probe that comes back, from the IP header on; checksums with
/// them, but they must be right. Nothing else may differ from what was sent. Of Ethernet it may change both addresses
/// and put one 802.1Q tag in front; what follows the mark, and how long that is, is of no concern.
fn free(family: Family, probe: Probe, is_probe: bool) -> Vec<Range<usize>> {
    let head = header(family);
    let mut free = match family {
        // Type of service; total length, identification; the reserved flag and "don't fragment"; time to live; checksum.
        V4 => vec![1..6, 6..7, 8..9, 10..12],
        // Traffic class and flow label; payload length; hop limit.
        V6 => vec![0..6, 7..8],
    };
    match (probe, is_probe) {
        // Checksum, identifier, sequence number.
        (Probe::Icmp, _) => free.push(head + 2..head + ECHO),
        // The port that was the tracker's own, which a NAT rewrites; length; checksum.
        (Probe::Udp, false) => free.push(head + 2..head + ECHO),
        (Probe::Udp, true) => free.extend([head..head + 2, head + 4..head + ECHO]),
        (Probe::Tcp | Probe::Stamp, _) => unreachable!("they carry no mark: see answer.rs"),
    }
    free
}

/// Whether a message of so many bytes, seen as far as its mark, is as long as it says, and its checksum right.
fn is_whole(world: &World, message: &[u8], len: usize) -> Option<bool> {
    let (hub, behind) = world.addresses();
    Some(match world.tracker.probe {
        Probe::Icmp => {
            let pseudo = match world.tracker.family {
                V4 => Vec::new(),
                V6 => {
                    let len = (len as u32).to_be_bytes();
                    [&as_bytes(hub)[..], &as_bytes(behind), &len, &[0, 0, 0, 58]].concat()
                }
            };
            len >= ECHO + MARK && frames::sum(&[message, &pseudo]) == 0xffff
        }
        // Its checksum may be missing, or left for a device to complete.
        Probe::Udp => (ECHO + MARK..=len).contains(&usize::from(frames::be16(message, 4)?)),
        Probe::Tcp | Probe::Stamp => unreachable!("they carry no mark: see answer.rs"),
    })
}

pub fn as_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sequence number of the probe that a frame proves to have passed, or of which it is an error: it is, byte for byte,
/// one that the network could have made of `sent`.
fn genuine(
    world: &World,
    sent: &HashMap<Vec<u8>, u64>,
    frame: &[u8],
    actions: Actions,
) -> Option<u64> {
    let (at, ethertype) = match frame.get(12..ETHERNET)? {
        [0x81, 0x00] if actions.takes_tag => (ETHERNET + TAG, frames::be16(frame, ETHERNET + 2)?),
        _ => (ETHERNET, frames::be16(frame, 12)?),
    };
    let packet = frame.get(at..)?;
    let family = world.tracker.family;
    let head = header(family);
    if ethertype != if family == V4 { 0x0800 } else { 0x86dd } {
        return None;
    }
    let is_ip_right = |packet: &[u8]| family == V6 || frames::sum(&[&packet[..IPV4]]) == 0xffff;
    let len = match family {
        V4 => usize::from(frames::be16(packet, 2)?).checked_sub(IPV4)?,
        V6 => usize::from(frames::be16(packet, 4)?),
    };
    let hub = world.addresses().0;

    let quoted = packet.get(2 * (head + ECHO)..2 * (head + ECHO) + MARK);
    if let Some(sequence) = quoted.and_then(|mark| sent.get(mark)) {
        let (protocol_at, protocol, kinds): (_, _, &[u8]) = match family {
            V4 => (9, 1, &[3, 11, 12]),
            V6 => (6, 58, &[1, 2, 3, 4]),
        };
        let is_plain = match family {
            V4 => packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0,
            V6 => packet[0] >> 4 == 6,
        };
        let is_told_us = packet[..head].ends_with(&as_bytes(hub));
        if is_plain
            && is_told_us
            && is_ip_right(packet)
            && packet[protocol_at] == protocol
            && kinds.contains(&packet[head])
            && len >= ECHO + MARK
        {
            return Some(*sequence);
        }
    }

    let mark_at = head + ECHO;
    let seen = packet.get(..mark_at + MARK)?;
    let sequence = *sent.get(&seen[mark_at..])?;
    let is_probe = world.tracker.proof == Proof::Arrival;
    if is_probe && frame.first_chunk().is_some_and(actions.is_as_sent) {
        return None;
    }
    let mark = world.mark(sequence, SENT_MONO_NS);
    let mut wanted = match is_probe {
        true => Reply::arrived(world, mark).frame(),
        false => Reply::new(world, mark).frame(),
    }
    .split_off(ETHERNET);
    for range in free(family, world.tracker.probe, is_probe) {
        wanted[range.clone()].copy_from_slice(&seen[range]);
    }
    // Within the bytes that may change: the version, and that it is no fragment.
    match family {
        V4 => wanted[6] &= 0xc0,
        V6 => wanted[0] = 0x60 | wanted[0] & 15,
    }
    let is_whole = is_whole(world, &seen[head..], len)?;
    (wanted == seen && is_whole && is_ip_right(seen)).then_some(sequence)
}

/// The probes of a tracker and what came of them so far.
pub struct Probes {
    world: World,
    sent: HashMap<Vec<u8>, u64>,
    answered: HashSet<u64>,
}

impl Probes {
    pub fn new(world: &World) -> Self {
        let mark = |sequence| world.mark(sequence, SENT_MONO_NS).payload(MARK);
        Self {
            world: world.clone(),
            sent: (1..=FRAMES)
                .map(|sequence| (mark(sequence), sequence))
                .collect(),
            answered: HashSet::new(),
        }
    }

    /// What has to come of a frame.
    pub fn want(&self, frame: &[u8], beside: Beside, actions: Actions) -> Want {
        let want = oracle(&self.world, &self.answered, frame, beside, actions);
        actions.want(frame, want)
    }

    /// Runs the program on a frame of which `want` has to come, and tells what the maps hold then.
    pub fn check(
        &mut self,
        object: &mut Object,
        before: Snapshot,
        what: &str,
        frame: &[u8],
        (want, beside): (Want, Beside),
        actions: Actions,
    ) -> Result<Snapshot> {
        let what = || format!("{what}, {:?}: {frame:02x?}", self.world.tracker);
        let ran = object.run_with(frame, beside)?;
        let proves = genuine(&self.world, &self.sent, frame, actions);
        // Those two never agreed on anything but the outcome.
        let is_genuine = want.is_consumed() && want != Want::Elsewhere;
        let is_proven = is_genuine || matches!(want, Want::WrongPath | Want::Tagged);
        assert_eq!(
            is_proven,
            proves.is_some(),
            "{want:?}, but {proves:?}: {}",
            what()
        );
        let after = object.snapshot()?;
        if want == Want::Foreign {
            assert_eq!(ran.action, actions.pass, "{}", what());
            assert!(ran.frame == frame, "altered: {}", what());
            assert!(after.is_same(&before), "counted: {}", what());
            return Ok(after);
        }
        let mark = match want {
            Want::Refused | Want::Closed => packets::read_error(frame).map(|error| error.mark),
            _ => packets::read_marked(frame).map(|seen| seen.mark),
        };
        let mark = mark.unwrap_or_else(|| panic!("no mark: {}", what()));
        let row = Row {
            what: what(),
            world: self.world.clone(),
            mark,
            frame: frame.to_vec(),
            want,
        };
        if matches!(want, Want::Counted | Want::CountedWithEvent) {
            self.answered.insert(mark.sequence);
        }
        row.check(object, before, &ran, actions)?;
        Ok(after)
    }
}

/// Random frames, and replies with random damage: whatever is not a genuine reply passes unaltered, and nothing in any map
/// knows of it but the counters of what bears the mark and fails the proof.
pub fn check(program: &'static str, actions: Actions, rounds: u64) -> Result<()> {
    let mut object = Object::load(program)?;
    let worlds = worlds(actions);
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(rounds);
    while let Some(round) = rounds.next() {
        rounds.took(check_round(
            &mut object,
            &worlds,
            round,
            actions,
            &mut tally,
        )?);
    }
    rounds.sum_up(program, "frames", &tally);
    tally.require(&[Want::Foreign, Want::Corrupt, Want::Counted], 50);
    let rarer = [
        Want::Stale,
        Want::CorruptOther,
        Want::WrongPath,
        Want::Refused,
        Want::Late,
        Want::Duplicate,
        Want::CountedWithEvent,
        Want::Tagged,
    ];
    tally.require(&rarer, 1_000);
    Ok(())
}

fn check_round(
    object: &mut Object,
    worlds: &[World],
    mut round: Round,
    actions: Actions,
    tally: &mut Tally,
) -> Result<u64> {
    let world = round.random.pick(worlds).clone();
    world.install(object)?;
    let mut probes = Probes::new(&world);
    let mut fuzzer = Fuzzer::new(Random::new(round.random.word()), world.clone());
    let mut before = object.snapshot()?;
    let mut ran_frames = 0;
    for number in 1..=FRAMES {
        let frame = fuzzer.next();
        if !object.takes(&frame) {
            continue;
        }
        ran_frames += 1;
        let beside = Beside::any(&mut round.random, object);
        let want = probes.want(&frame, beside, actions);
        tally.add(want);
        let what = format!("frame {number}, {beside:?}");
        before = probes.check(object, before, &what, &frame, (want, beside), actions)?;
    }
    assert!(object.events()?.is_empty(), "an event of nobody's");
    Ok(ran_frames)
}

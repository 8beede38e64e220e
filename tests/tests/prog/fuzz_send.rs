//! The send programs on whatever frames and maps hold: what leaves is a whole probe of an active tracker, built anew by
//! pnet_packet for comparison, and what cannot is refused, counted, and spends nothing.

use anyhow::Result;
use tracker_ebpf::abi::{self, Family, Probe, Via};
use tracker_ebpf::wire::probe;
use tracker_tests::packets::{self, ETHERNET, MARK};
use tracker_tests::random::{Random, Rounds, Tally};

use super::frames::{self, Pool, be16};
use super::receive::header;
use super::{
    ARRIVAL, BEHIND_V4, BEHIND_V6, ENDPOINT_MAC, HUB_MAC, HUB_V4, HUB_V6, OTHER, Object, PATHS,
    SLOT, SLOTS, TC_ACT_OK, TC_ACT_REDIRECT, WORDS, World, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    assert_same,
};

/// Frames of one round.
const FRAMES: u64 = 200;
/// Payloads up to this size certainly find room; the kernel decides about those above.
const FITS: u16 = 3_000;

/// A tracker and a path of which anything may be true that the maps' types allow.
fn any_world(random: &mut Random) -> World {
    let mut world = World::new(*random.pick(&[Family::Ipv4, Family::Ipv6]));
    let tracker = &mut world.tracker;
    if random.is_one_in(2) {
        tracker.source = std::array::from_fn(|_| random.byte());
        tracker.behind = std::array::from_fn(|_| random.byte());
    }
    tracker.probe = *random.pick(&[Probe::Icmp, Probe::Udp]);
    tracker.payload = match random.below(8) {
        0 => random.below(MARK) as u16,
        1 => random.word() as u16,
        _ => (MARK + random.below(1_500)) as u16,
    };
    tracker.epoch = random.word() as u32;
    tracker.port = random.word() as u16;
    tracker.flow_first = random.word() as u16;
    tracker.flow_mask = *random.pick(&[0, 0, 0x7ff, 0xffff]);
    tracker.active = u8::from(!random.is_one_in(16));
    if random.is_one_in(16) {
        tracker.path = *random.pick(&[0, PATHS, u32::MAX]);
    }
    if random.is_one_in(8) {
        tracker.window_first = *random.pick(&[0, WORDS - 1, WORDS, u32::MAX - 3]);
        tracker.window_mask = *random.pick(&[0, 1, 7]);
    }
    world.path.via = *random.pick(&[
        Via::XdpRedirect,
        Via::XdpRedirect,
        Via::TcRedirect,
        Via::TcRedirect,
        Via::Nowhere,
    ]);
    world.path.next_hop_mac = std::array::from_fn(|_| random.byte());
    world.path.source_mac = std::array::from_fn(|_| random.byte());
    world.path.vlan = *random.pick(&[0, 0, 1, 0xefff]);
    if random.is_one_in(16) {
        world.path.ifindex = *random.pick(&[0, 7_777, u32::MAX]);
    }
    world.state.send.sent = *random.pick(&[0, 1, 62, 63, 64, 1_000, 65_535, 1 << 40, u64::MAX - 1]);
    world
}

/// What a run does with a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// A probe leaves.
    Built,
    /// The slot is not in use.
    Inactive,
    /// There is no way out.
    NoPath,
    /// The maps or the kernel refuse.
    Failed,
}

fn oracle(world: &World, slot: u32) -> Want {
    let tracker = world.tracker;
    let is_used = slot == SLOT || slot == OTHER;
    if !is_used || tracker.active == 0 {
        return Want::Inactive;
    }
    let path = (tracker.path < PATHS).then_some(match tracker.path {
        super::PATH => world.path,
        _ => abi::Path::default(),
    });
    let Some(path) = path.filter(|path| path.via != Via::Nowhere) else {
        return Want::NoPath;
    };
    let sequence = world.state.send.sent + 1;
    let first = match slot {
        SLOT => tracker.window_first,
        _ => 4,
    };
    let (word, _) = world.bit(sequence);
    let word = word as u64 - u64::from(tracker.window_first) + u64::from(first);
    let clears = sequence == 1 || sequence.is_multiple_of(64);
    let is_out = clears && word % (1 << 32) >= u64::from(WORDS);
    let is_no_target = path.via == Via::XdpRedirect && path.ifindex != ARRIVAL;
    match usize::from(tracker.payload) < MARK || is_out || is_no_target {
        true => Want::Failed,
        false => Want::Built,
    }
}

/// The send program, out of random frames, for random trackers.
pub fn check_send(rounds: u64) -> Result<()> {
    let mut object = Object::load(abi::program::SEND)?;
    object.devices.insert(ARRIVAL, ARRIVAL, None, 0)?;
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(rounds);
    while let Some(mut round) = rounds.next() {
        for number in 1..=FRAMES {
            let random = &mut round.random;
            let world = any_world(random);
            world.install(&mut object)?;
            let slot = match random.is_one_in(8) {
                true => *random.pick(&[0, OTHER, SLOTS, u32::MAX]),
                false => SLOT,
            };
            object.set_batch(&[slot])?;
            // Not longer than the daemon's: what a frame gets beyond that, the kernel fills with zeros.
            let len = ETHERNET + random.below(probe::LEN_V4 - ETHERNET + 1);
            let old = random.bytes(len);
            let before = object.snapshot()?;
            let ran = object.run(&old)?;
            let mut want = oracle(&world, slot);
            // Where a frame ends is the kernel's to say.
            if want == Want::Built && world.tracker.payload > FITS && ran.action == XDP_DROP {
                want = Want::Failed;
            }
            tally.add(want);
            let what = format!("frame {number}, {want:?}, slot {slot}, {world:?}");
            let mut should = before;
            should.cursor.next = 1;
            let counters = &mut should.counters;
            match want {
                Want::Built => counters.send_built += 1,
                Want::Inactive => counters.send_inactive += 1,
                Want::NoPath => counters.send_no_path += 1,
                Want::Failed => counters.send_failed += 1,
            }
            let sequence = world.state.send.sent.wrapping_add(1);
            if want != Want::Built {
                assert_eq!(ran.action, XDP_DROP, "{what}");
                // A bit set is cleared before a device refuses; nobody waits in it, and it is cleared once more.
                should.words.clone_from(&object.snapshot()?.words);
            } else {
                let action = match world.path.via {
                    Via::XdpRedirect => XDP_REDIRECT,
                    _ => XDP_PASS,
                };
                assert_eq!(ran.action, action, "{what}");
                let sent_mono_ns = object.states.get(&slot, 0)?.send.sent_mono_ns;
                assert!(ran.mono_ns.contains(&sent_mono_ns), "{what}");
                let epoch = world.tracker.epoch;
                let mark = packets::Mark {
                    tracker: slot,
                    token: tracker_ebpf::wire::token::token(
                        super::KEY,
                        slot,
                        epoch,
                        sequence,
                        sent_mono_ns,
                    ),
                    ..world.mark(sequence, sent_mono_ns)
                };
                assert!(ran.frame == world.probe(mark), "{what}: {:02x?}", ran.frame);
                let state = &mut should.states[slot as usize];
                (state.send.sent, state.send.sent_mono_ns) = (sequence, sent_mono_ns);
                if sequence == 1 || sequence.is_multiple_of(64) {
                    let first = if slot == SLOT {
                        world.tracker.window_first
                    } else {
                        4
                    };
                    let word = world.bit(sequence).0 - world.tracker.window_first as usize;
                    should.words[first as usize + word] = 0;
                }
            }
            let is = object.snapshot()?;
            if !is.is_same(&should) {
                assert_same(&what, "maps", &is, &should);
            }
        }
        rounds.took(FRAMES);
    }
    rounds.sum_up(abi::program::SEND, "frames", &tally);
    tally.require(
        &[Want::Built, Want::Inactive, Want::NoPath, Want::Failed],
        100,
    );
    Ok(())
}

/// The other half at TC: a frame with a mark where probes have it, of a tracker that there may be, leaves by its path as
/// it is; all others stay.
pub fn check_tc_send(rounds: u64) -> Result<()> {
    let mut object = Object::load(abi::program::TC_SEND)?;
    let pool = Pool {
        macs: vec![HUB_MAC, ENDPOINT_MAC],
        v4: vec![HUB_V4, BEHIND_V4],
        v6: vec![HUB_V6, BEHIND_V6],
        ports: vec![7_007, 0xbeef],
        payloads: vec![World::new(Family::Ipv4).mark(1, 1).payload(40)],
    };
    let mut tally = Tally::default();
    let mut rounds = Rounds::new(rounds);
    while let Some(mut round) = rounds.next() {
        let random = &mut round.random;
        let world = any_world(random);
        world.install(&mut object)?;
        let before = object.snapshot()?;
        let mut last = Vec::new();
        for number in 1..=FRAMES {
            let mut probed = World::new(*random.pick(&[Family::Ipv4, Family::Ipv6]));
            probed.tracker.probe = *random.pick(&[Probe::Icmp, Probe::Udp]);
            probed.tracker.payload = (MARK + random.below(100)) as u16;
            let mut mark = probed.mark(number, 1);
            if random.is_one_in(8) {
                mark.tracker = *random.pick(&[0, OTHER, SLOTS - 1, SLOTS, u32::MAX]);
            }
            let frame = match random.below(8) {
                0 => frames::noise(random),
                1 | 2 => frames::structured(random, &pool),
                3..=5 => frames::damaged(random, &probed.probe(mark), &last),
                _ => probed.probe(mark),
            };
            last.clone_from(&frame);
            if !object.takes(&frame) {
                continue;
            }
            let is_probe = has_mark(&world, &frame);
            tally.add(if is_probe { "redirected" } else { "left" });
            let what = || format!("frame {number}, {:?}: {frame:02x?}", world.tracker);
            let ran = object.run(&frame)?;
            let action = if is_probe { TC_ACT_REDIRECT } else { TC_ACT_OK };
            assert_eq!(ran.action, action, "{}", what());
            assert!(ran.frame == frame, "altered: {}", what());
            assert!(object.snapshot()?.is_same(&before), "counted: {}", what());
            rounds.took(1);
        }
    }
    rounds.sum_up(abi::program::TC_SEND, "frames", &tally);
    tally.require(&["redirected", "left"], 10);
    Ok(())
}

fn has_mark(world: &World, frame: &[u8]) -> bool {
    let head = match be16(frame, 12) {
        Some(0x0800) => header(Family::Ipv4),
        Some(0x86dd) => header(Family::Ipv6),
        _ => return false,
    };
    let payload = frame
        .get(ETHERNET + head + packets::ECHO..)
        .unwrap_or_default();
    let Some(mark) = packets::Mark::read(payload) else {
        return false;
    };
    // Slots that were never used name path 0.
    let path = match mark.tracker {
        SLOT | OTHER => world.tracker.path,
        _ => 0,
    };
    mark.tracker < SLOTS && path < PATHS
}

//! Replies of one flow that the kernel merged into one packet (GRO): each counts, and the packet ends only if all are ours.

use crate::fixtures::{
    Beside, Object, TC_ACT_SHOT, TC_ACT_UNSPEC, World, answer, assert_same, now_mono_ns,
};
use anyhow::Result;
use tracker_ebpf::abi::{
    Family, Probe,
    program::{TC_RECEIVE, TC_RECEIVE_IP},
};
use tracker_ebpf::rtt;
use tracker_lab::packets::{self, PROBE_HEADER};

/// The last probe that was sent.
const SENT: u64 = 1_000;
/// Probes of STAMP whose times are kept.
const TIMES: u64 = 16;
/// Datagrams that are judged: one for each tail call that the kernel allows (`MAX_TAIL_CALL_CNT`).
const JUDGED: usize = 33;

/// What the payload of one datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payload {
    /// The right answer.
    Right,
    /// With another token.
    Forged,
    /// Not of a tracker at all.
    Foreign,
}

/// What became of a packet: the action, and how many datagrams were counted.
fn run(
    object: &mut Object,
    (family, probe): (Family, Probe),
    payloads: &[Payload],
) -> Result<(i32, u64)> {
    let what = format!("{family:?} {probe:?} {payloads:?}");
    let world = match probe {
        Probe::Stamp => answer::world(family, probe).with(|world| {
            // Words enough for the times of all.
            (world.tracker.window_first, world.tracker.window_mask) = (0, TIMES as u32 - 1);
        }),
        _ => World::new(family).with(|world| world.tracker.probe = probe.into()),
    };
    let first = match probe {
        Probe::Stamp => SENT + 1 - TIMES,
        _ => SENT - 50,
    };
    world.install(object)?;
    let sent = now_mono_ns() - 1_000_000;
    let mut merged = Vec::new();
    let mut size = 0;
    for (sequence, payload) in (first..).zip(payloads) {
        let mut bytes = match probe {
            Probe::Stamp => {
                object
                    .windows
                    .set(world.tracker.time_at(sequence), sent, 0)?;
                answer::reflection(&world, sequence, 44)
            }
            _ => world.probe_header(sequence, sent).payload(PROBE_HEADER),
        };
        size = bytes.len();
        match payload {
            Payload::Right => {}
            // The last byte that is the token's.
            Payload::Forged if probe == Probe::Stamp => bytes[35] ^= 1,
            Payload::Forged => bytes[31] ^= 1,
            Payload::Foreign => bytes.fill(0),
        }
        merged.extend(bytes);
    }
    let (hub, behind) = world.addresses();
    let ports = [world.tracker.port, world.flow(first)];
    let packet = packets::datagram([behind, hub], ports, &merged);
    let frame = world.inbound().ip(&packet);
    let beside = Beside {
        merged: (payloads.len() > 1).then_some([size as u32, payloads.len() as u32]),
        ..Beside::default()
    };
    let before = object.snapshot()?;
    let ran = object.run_with(&frame, beside)?;
    assert_eq!(ran.frame, frame, "{what}: the frame was altered");
    let mut should = before.clone();
    let is = object.snapshot()?;
    let counted = is.counters.reply_counted - before.counters.reply_counted;
    let (slot, other) = (world.slot as usize, is.states[world.slot as usize]);
    should.counters = is.counters;
    should.words.clone_from(&is.words);
    should.states[slot].receive = other.receive;
    should.rtts.clone_from(&is.rtts);
    should.states[slot].trouble.corrupt = other.trouble.corrupt;
    should.states[slot].trouble.corrupt_mono_ns = other.trouble.corrupt_mono_ns;
    assert_same(&what, "maps", &is, &should);
    let received = other.receive.received - before.states[slot].receive.received;
    assert_eq!(received, counted, "{what}: of the tracker");
    let path = world.tracker.path as usize;
    let more = |words: std::ops::Range<usize>| -> u64 {
        let of = |rtts: &[rtt::Rtts]| rtts[path][words.clone()].iter().sum::<u64>();
        of(&is.rtts) - of(&before.rtts)
    };
    assert_eq!(more(0..rtt::BUCKETS), counted, "{what}: of the member");
    let took = other.receive.rtt_sum_ns - before.states[slot].receive.rtt_sum_ns;
    assert_eq!(more(rtt::SUM..rtt::WORDS), took, "{what}: of the member");
    let forged = payloads
        .iter()
        .take(JUDGED)
        .filter(|payload| **payload == Payload::Forged);
    let corrupt = is.counters.reply_corrupt - before.counters.reply_corrupt;
    assert_eq!(corrupt, forged.count() as u64, "{what}: corrupt");
    Ok((ran.action, counted))
}

fn check(program: &'static str) -> Result<()> {
    use Payload::{Foreign, Forged, Right};
    let mut object = Object::load(program)?;
    for family in [Family::Ipv4, Family::Ipv6] {
        for probe in [Probe::Udp, Probe::Stamp] {
            let kind = (family, probe);
            let most = match probe {
                Probe::Stamp => TIMES as usize,
                _ => JUDGED,
            };
            for count in (1..=most).step_by(3).chain([2, most]) {
                let all = vec![Right; count];
                assert_eq!(
                    run(&mut object, kind, &all)?,
                    (TC_ACT_SHOT, count as u64),
                    "{kind:?}: {count} in one packet"
                );
            }
            // What is not ours passes, and what was merged with it passes too, counted.
            for (payloads, counted) in [
                (vec![Right, Forged], 1),
                (vec![Right, Foreign], 1),
                (vec![Right, Foreign, Right], 2),
                (vec![Forged, Right, Right], 2),
                (vec![Right, Right, Right, Foreign], 3),
                (vec![Foreign, Right], 0),
                (vec![Foreign, Foreign], 0),
            ] {
                assert_eq!(
                    run(&mut object, kind, &payloads)?,
                    (TC_ACT_UNSPEC, counted),
                    "{kind:?}: {payloads:?}"
                );
            }
        }
        // What is beyond the kernel's limit of tail calls is not judged, and passes.
        let many = vec![Right; JUDGED + 1];
        let ran = run(&mut object, (family, Probe::Udp), &many)?;
        assert_eq!(ran, (TC_ACT_UNSPEC, JUDGED as u64));
    }
    Ok(())
}

#[test]
fn merged_replies_count_each() -> Result<()> {
    tracker_lab::needs_root!();
    check(TC_RECEIVE)
}

#[test]
fn merged_replies_count_each_without_ethernet_header() -> Result<()> {
    tracker_lab::needs_root!();
    check(TC_RECEIVE_IP)
}

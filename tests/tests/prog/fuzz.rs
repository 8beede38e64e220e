//! Frames by the hundred thousand through the receive programs, and an oracle that shares no code with them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracker_ebpf::abi::{self, Probe, Proof};
use tracker_ebpf::wire::token;
use tracker_tests::pace::slow;
use tracker_tests::packets::{self, Carrier, ECHO, ETHERNET, MARK, Mark, TAG, Tag};

use super::receive::{Actions, Reply, V4, V6, Want, header};
use super::{KEY, OTHER, Object, SLOT, SLOTS, World, now_mono_ns};

/// xorshift64* (Vigna 2014): the same choices in every run.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    fn is_one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Frames of the fuzzer: mostly replies with something done to them, the rest noise.
struct Fuzzer {
    random: Random,
    worlds: Vec<World>,
    sequence: u64,
    sent: u64,
}

impl Fuzzer {
    fn frame(&mut self, world: usize) -> Vec<u8> {
        if self.random.is_one_in(8) {
            let len = ETHERNET + self.random.below(120);
            let mut noise: Vec<u8> = (0..len).map(|_| self.random.word() as u8).collect();
            // Let some of it get past the first look.
            let ethertype = [0x0800u16, 0x86dd, 0x8100, 0x0806][self.random.below(4)];
            noise[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
            if self.random.is_one_in(2) && len > ETHERNET + 9 {
                noise[ETHERNET] = [0x45, 0x60][self.random.below(2)];
                noise[ETHERNET + 6] = [0, 58, 17][self.random.below(3)];
                noise[ETHERNET + 9] = [1, 17][self.random.below(2)];
            }
            return noise;
        }
        let world = self.worlds[world].clone();
        let mut mark = world.mark(self.sequence, self.sent);
        if self.random.is_one_in(16) {
            mark.tracker = [0, SLOT, OTHER, SLOTS, u32::MAX][self.random.below(5)];
        }
        let is_probe = match world.tracker.proof {
            Proof::Reply => self.random.is_one_in(16),
            Proof::Arrival => !self.random.is_one_in(16),
        };
        let mut reply = match is_probe {
            true => Reply::arrived(&world, mark),
            false => Reply::new(&world, mark),
        };
        if self.random.is_one_in(16) {
            reply.link.destination = world.path.next_hop_mac;
        }
        reply
            .echo
            .payload
            .resize(MARK + [0, 0, 1, 8, 40][self.random.below(5)], 0);
        reply.link.tags = match self.random.below(8) {
            0 | 1 => vec![Tag::dot1q(self.random.word() as u16)],
            2 => vec![Tag::dot1ad(1), Tag::dot1q(2)],
            _ => Vec::new(),
        };
        let mut frame = match self.random.is_one_in(16) {
            true => {
                let hub = world.addresses().0;
                let kind = [1, 2, 3, 4, 11, 12, 13][self.random.below(7)];
                let probe = world.probe(mark);
                reply
                    .link
                    .ip(&packets::error(hub, hub, [kind, 1], &probe[ETHERNET..]))
            }
            false => reply.frame(),
        };
        // As often as not in the headers: the payload is the larger part.
        for _ in 0..[0, 1, 1, 1, 2, 3, 8][self.random.below(7)] {
            let at = self.random.below(frame.len());
            let headers = header(world.tracker.family) + TAG + ECHO;
            let at = if self.random.is_one_in(2) {
                at
            } else {
                ETHERNET + at % headers
            };
            if let Some(byte) = frame.get_mut(at) {
                match self.random.below(3) {
                    0 => *byte ^= 1 << self.random.below(8),
                    1 => *byte = self.random.word() as u8,
                    _ => *byte = [0, 1, 0x7f, 0x80, 0xff][self.random.below(5)],
                }
            }
        }
        if self.random.is_one_in(6) {
            let len = self.random.below(frame.len() + 1).max(ETHERNET);
            frame.truncate(len);
        }
        if self.random.is_one_in(12) {
            let at = self.random.below(frame.len());
            let byte = self.random.word() as u8;
            frame.insert(at, byte);
        }
        frame
    }
}

/// What has to come of a frame, by the product's rules and pnet_packet's reading of it.
fn oracle(world: &World, answered: &HashSet<u64>, frame: &[u8], actions: Actions) -> Want {
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
        return if is_ours {
            Want::Refused
        } else {
            Want::Foreign
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
    let corrupt = match seen.mark.tracker {
        SLOT => Want::Corrupt,
        OTHER => Want::CorruptOther,
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
        && is_between
        && token == right;
    if is_ours && is_probe && frame.first_chunk().is_some_and(actions.is_as_sent) {
        return Want::Foreign;
    }
    match (is_ours, answered.contains(&sequence)) {
        (false, _) => corrupt,
        (true, false) => Want::Counted,
        (true, true) => Want::Duplicate,
    }
}

/// Random frames and damaged replies, the same damage each time: whatever is not a genuine reply passes unaltered.
pub fn check(program: &'static str, actions: Actions, frames: u64) -> Result<()> {
    let deadline = Instant::now() + slow(Duration::from_secs(20));
    let mut object = Object::load(program)?;
    let mut fuzzer = Fuzzer {
        random: Random(0x5eed_0fa1_1f3a_7e57),
        worlds: [Probe::Icmp, Probe::Udp]
            .into_iter()
            .flat_map(|probe| [Proof::Reply, Proof::Arrival].map(|proof| (probe, proof)))
            .flat_map(|(probe, proof)| [V4, V6].map(|family| (family, probe, proof)))
            .map(|(family, probe, proof)| {
                World::new(family).with(|world| {
                    world.tracker.window_mask = 7;
                    world.tracker.proof = proof;
                    world.tracker.probe = probe;
                    world.path.arrivals = world.path.returns;
                })
            })
            .collect(),
        sequence: 0,
        sent: now_mono_ns(),
    };
    let mut wants: [(Want, u64); 11] = [
        Want::Foreign,
        Want::Stale,
        Want::Corrupt,
        Want::CorruptOther,
        Want::Tagged,
        Want::WrongPath,
        Want::Refused,
        Want::Late,
        Want::Duplicate,
        Want::Counted,
        Want::CountedWithEvent,
    ]
    .map(|want| (want, 0));
    let mut answered = HashSet::new();
    let mut done = 0;
    let mut should = abi::Counters::default();
    while done < frames && Instant::now() < deadline {
        // Alternate worlds and forget what was answered before the bit set comes round.
        if done % 256 == 0 {
            let world = &fuzzer.worlds[(done / 256) as usize % fuzzer.worlds.len()];
            world.install(&mut object)?;
            answered.clear();
            fuzzer.sequence = 0;
            fuzzer.sent = now_mono_ns();
        }
        fuzzer.sequence += 1;
        if fuzzer.random.is_one_in(8) && fuzzer.sequence > 1 {
            fuzzer.sequence -= 1;
        }
        let world = (done / 256) as usize % fuzzer.worlds.len();
        let frame = fuzzer.frame(world);
        done += 1;
        if !object.takes(&frame) {
            continue;
        }
        let want = oracle(&fuzzer.worlds[world], &answered, &frame, actions);
        let want = actions.want(&frame, want);
        let ran = object.run(&frame)?;
        let shown = || format!("frame {done} of {program}, {want:?}: {frame:02x?}");
        let action = if want.is_consumed() {
            actions.consume
        } else {
            actions.pass
        };
        assert_eq!(ran.action, action, "{}", shown());
        assert!(ran.frame == frame, "altered: {}", shown());
        match want {
            Want::Foreign => {}
            Want::Stale => should.reply_stale += 1,
            Want::Corrupt | Want::CorruptOther => should.reply_corrupt += 1,
            Want::Tagged => should.reply_tagged += 1,
            Want::WrongPath => should.reply_wrong_path += 1,
            Want::Refused => should.probe_refused += 1,
            Want::Late => should.reply_late += 1,
            Want::Duplicate => should.reply_duplicate += 1,
            Want::Counted | Want::CountedWithEvent => {
                should.reply_counted += 1;
                if let Some(seen) = packets::read_marked(&frame) {
                    answered.insert(seen.mark.sequence);
                }
            }
        }
        assert_eq!(object.counters()?, should, "{}", shown());
        for (kind, count) in &mut wants {
            *count += u64::from(*kind == want);
        }
    }
    println!("{program}: {done} frames, {wants:?}");
    // A generator that never gets past the first look, or always, would prove nothing.
    for (want, count) in wants {
        let is_possible = !matches!(
            want,
            Want::Tagged | Want::WrongPath | Want::Late | Want::CountedWithEvent
        );
        assert_eq!(count > 0, is_possible, "{want:?}: {count} of {done} frames");
    }
    Ok(())
}

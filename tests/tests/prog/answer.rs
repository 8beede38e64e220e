//! What the receive programs do with what carries no mark: one table for all, of TCP and STAMP.

use std::net::IpAddr;

use anyhow::Result;
use tracker_ebpf::abi::{self, Complaint, Family, Probe, Proof};
use tracker_tests::packets::{self, ECHO, ETHERNET, Link, Tag, with};

use super::receive::{Actions, V4, V6};
use super::{ARRIVAL, Object, Ran, Snapshot, World, assert_same, fuzz, now_mono_ns};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SEQUENCE: u64 = 1_000;
/// Bytes of the words of times, and where they begin.
const TIMES: usize = 12;

/// What is to come of a frame; as with replies, nothing else changes anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    Foreign,
    Corrupt,
    Tagged,
    WrongPath,
    Refused(Complaint, [u8; 2], IpAddr),
    Elsewhere(IpAddr),
    Late,
    Duplicate,
    Counted,
    CountedWithEvent,
}

/// One line of the table: frame in, and what comes of it.
pub struct Row {
    pub what: String,
    pub world: World,
    pub frame: Vec<u8>,
    pub sequence: u64,
    pub want: Want,
    /// A connection is to be reset.
    pub is_answered: bool,
    /// It is one of an earlier probe, and stands in the way of a later one.
    pub is_held: bool,
}

struct Table {
    rows: Vec<Row>,
    family: Family,
}

impl Table {
    fn row(&mut self, what: &str, world: &World, frame: Vec<u8>, want: Want) {
        self.add(what, world, frame, SEQUENCE, want, false);
    }

    fn answered(&mut self, what: &str, world: &World, frame: Vec<u8>, sequence: u64, want: Want) {
        self.add(what, world, frame, sequence, want, true);
    }

    fn add(
        &mut self,
        what: &str,
        world: &World,
        frame: Vec<u8>,
        sequence: u64,
        want: Want,
        is_answered: bool,
    ) {
        let (family, probe) = (self.family, world.tracker.probe);
        self.rows.push(Row {
            what: format!("{family:?}, {probe:?}: {what}"),
            world: world.clone(),
            frame,
            sequence,
            want,
            is_answered,
            is_held: false,
        });
    }

    /// A connection that the peer holds, of an earlier probe.
    fn held(&mut self, what: &str, world: &World, frame: Vec<u8>, sequence: u64) {
        self.add(what, world, frame, sequence, Want::Duplicate, true);
        if let Some(row) = self.rows.last_mut() {
            row.is_held = true;
        }
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [V4, V6] {
        let mut table = Table {
            rows: Vec::new(),
            family,
        };
        table.segments();
        table.resets();
        table.reflected();
        for probe in [Probe::Tcp, Probe::Stamp] {
            table.arrivals(probe);
            table.errors(probe);
            table.elsewhere(probe);
        }
        rows.append(&mut table.rows);
    }
    rows
}

/// A tracker of the kind, that waits for an answer on the interface of the run.
fn world(family: Family, probe: Probe) -> World {
    World::new(family).with(|world| {
        world.tracker.probe = probe;
        world.tracker.port = if probe == Probe::Tcp { 443 } else { 862 };
        world.tracker.flow_first = 61_445;
        world.tracker.payload = if probe == Probe::Tcp { 20 } else { 44 };
    })
}

/// A segment from the tracker's behind address that acknowledges `number`.
fn segment(world: &World, flags: u8, number: u32) -> Vec<u8> {
    let (hub, behind) = world.addresses();
    let ports = [world.tracker.port, world.tracker.flow_first];
    let numbers = [0x1234_5678, number];
    let options = if flags & SYN == 0 {
        &[][..]
    } else {
        &[2, 4, 5, 0xb4]
    };
    let segment = packets::segment([behind, hub], ports, numbers, flags, 65_160, options);
    world.inbound().ip(&segment)
}

/// What a server answers to a SYN.
fn syn_ack(world: &World, sequence: u64) -> Vec<u8> {
    let number = world.initial_sequence(sequence).wrapping_add(1);
    segment(world, SYN | ACK, number)
}

/// What a reflector answers: its own things, then the sender's, then whatever follows.
fn reflection(world: &World, sequence: u64, len: usize) -> Vec<u8> {
    let mut packet = vec![0x77; 24];
    packet.extend(world.claim(sequence));
    packet.resize(44.max(len), 0);
    packet
}

/// The same in its frame.
fn reflected(world: &World, packet: &[u8]) -> Vec<u8> {
    let (hub, behind) = world.addresses();
    let ports = [world.tracker.port, world.tracker.flow_first];
    world
        .inbound()
        .ip(&packets::datagram([behind, hub], ports, packet))
}

/// The right answer.
fn answer(world: &World, sequence: u64) -> Vec<u8> {
    match world.tracker.probe {
        Probe::Tcp => syn_ack(world, sequence),
        _ => reflected(world, &reflection(world, sequence, 44)),
    }
}

fn header(family: Family) -> usize {
    ETHERNET
        + if family == V4 {
            packets::IPV4
        } else {
            packets::IPV6
        }
}

impl Table {
    fn segments(&mut self) {
        let world = world(self.family, Probe::Tcp);
        let genuine = syn_ack(&world, SEQUENCE);
        let right = world.initial_sequence(SEQUENCE).wrapping_add(1);
        for flags in 0..=255 {
            let frame = segment(&world, flags, right);
            let what = format!("flags {flags:#04x}");
            match flags & (FIN | SYN | RST | ACK) {
                0x12 => self.answered(&what, &world, frame, SEQUENCE, Want::Counted),
                0x14 => {
                    let behind = world.addresses().1;
                    let want = Want::Refused(Complaint::Reset, [0, 0], behind);
                    self.row(&what, &world, frame, want);
                }
                _ => self.row(&what, &world, frame, Want::Foreign),
            }
        }
        for bit in 0..32 {
            let what = format!("bit {bit} of what is acknowledged");
            let frame = segment(&world, SYN | ACK, right ^ (1 << bit));
            self.row(&what, &world, frame, Want::Foreign);
        }
        let frame = segment(&world, SYN | ACK, right.wrapping_sub(1));
        self.row("the number itself", &world, frame, Want::Foreign);
        for len in ETHERNET..header(self.family) + 20 {
            let what = format!("the first {len} bytes");
            self.row(&what, &world, genuine[..len].to_vec(), Want::Foreign);
        }
        for (what, at) in [("source port", 1), ("own port", 3)] {
            let at = header(self.family) + at;
            let frame = with(genuine.clone(), |frame| frame[at] ^= 1);
            self.row(&format!("another {what}"), &world, frame, Want::Foreign);
        }
        // Any of its share of the ports: no port that the kernel gives to sockets, no system port, no other's.
        let at = header(self.family) + 2;
        let ports = [1_025, 8_081, 32_767, 61_001, 65_535];
        let foreign = [1_023, 32_769, 60_999, 1_024, 8_080, 65_534];
        for port in ports.into_iter().chain(foreign) {
            let mut frame = syn_ack(&world, SEQUENCE);
            frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(port));
            let what = format!("to port {port}");
            match ports.contains(&port) {
                true => self.answered(&what, &world, frame, SEQUENCE, Want::Counted),
                false => self.row(&what, &world, frame, Want::Foreign),
            }
        }
        // A challenge ACK has no data and no options, and says which earlier SYN its sender holds.
        for (sequence, is_held) in [(999, true), (745, true), (1_000, false), (744, false)] {
            let number = world.initial_sequence(sequence).wrapping_add(1);
            let frame = segment(&world, ACK, number);
            let what = format!("probe {sequence} of 1000 is held");
            match is_held {
                true => self.held(&what, &world, frame, sequence),
                false => self.row(&what, &world, frame, Want::Foreign),
            }
            let frame = segment(&world, ACK, number.wrapping_add(0x100));
            self.row("something is held", &world, frame, Want::Foreign);
        }
        let answered = world.clone().with(|world| {
            let (word, bit) = world.bit(1_000);
            let first = world.tracker.window_first as usize;
            world.words[word - first] |= bit;
        });
        let number = world.initial_sequence(999).wrapping_add(1);
        let frame = segment(&world, ACK, number);
        let what = "one is held, and nothing waits for it";
        self.row(what, &answered, frame.clone(), Want::Duplicate);
        let arriving = world
            .clone()
            .with(|world| world.tracker.proof = abi::Proof::Arrival);
        self.row(
            "one is held of what arrives",
            &arriving,
            frame,
            Want::Foreign,
        );
        // Of more than 256 probes the number of one is not told from that of another, but their tokens are.
        for (sequence, want) in [(745, Some(Want::Late)), (744, None), (1_001, None)] {
            let what = format!("an answer to probe {sequence} of 1000");
            let frame = syn_ack(&world, sequence);
            match want {
                Some(want) => self.answered(&what, &world, frame, sequence, want),
                None => self.row(&what, &world, frame, Want::Foreign),
            }
        }
        self.common(Probe::Tcp);
    }

    /// What both kinds have in common.
    fn common(&mut self, probe: Probe) {
        let world = world(self.family, probe);
        let genuine = answer(&world, SEQUENCE);
        let is_tcp = probe == Probe::Tcp;
        let mut add = |what: &str, world: &World, frame: Vec<u8>, sequence: u64, want: Want| {
            self.add(what, world, frame, sequence, want, is_tcp);
        };
        add(
            "an answer",
            &world,
            genuine.clone(),
            SEQUENCE,
            Want::Counted,
        );
        for sequence in [997, 998, 999] {
            let frame = answer(&world, sequence);
            add("an older one", &world, frame, sequence, Want::Counted);
        }
        let frame = answer(&world, 996);
        add(
            "one whose time is forgotten",
            &world,
            frame,
            996,
            Want::Late,
        );
        let impatient = world.clone().with(|world| world.tracker.timeout_ns = 1);
        add(
            "after the timeout",
            &impatient,
            genuine.clone(),
            SEQUENCE,
            Want::Late,
        );
        let again = world.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words[word - world.tracker.window_first as usize] = bit;
        });
        add("again", &again, genuine.clone(), SEQUENCE, Want::Duplicate);
        for verdict in [0, 2] {
            let world = world
                .clone()
                .with(|world| world.state.receive.verdict = verdict);
            let (frame, want) = (genuine.clone(), Want::CountedWithEvent);
            add("while it is not up", &world, frame, SEQUENCE, want);
        }
        let eager = world
            .clone()
            .with(|world| world.tracker.expects_silence = 1);
        let (frame, want) = (genuine.clone(), Want::CountedWithEvent);
        add("of which each is reported", &eager, frame, SEQUENCE, want);
        let leak = eager.with(|world| world.path.returns = [901, 0, 0, 0]);
        let (frame, want) = (genuine.clone(), Want::CountedWithEvent);
        add("that must not come at all", &leak, frame, SEQUENCE, want);
        let priority = Link {
            tags: vec![Tag::dot1q(0xe000)],
            ..world.inbound()
        };
        let frame = priority.ip(&genuine[ETHERNET..]);
        add(
            "with a priority tag",
            &world,
            frame,
            SEQUENCE,
            Want::Counted,
        );
        let tagged = Link {
            tags: vec![Tag::dot1q(100)],
            ..world.inbound()
        };
        let frame = tagged.ip(&genuine[ETHERNET..]);
        add("with a tag", &world, frame, SEQUENCE, Want::Tagged);
        let frame = tagged.ip(&genuine[ETHERNET..]);
        let want = Want::CountedWithEvent;
        add(
            "that must not come, with a tag",
            &leak,
            frame,
            SEQUENCE,
            want,
        );
        let trailer = with(genuine.clone(), |frame| frame.extend([0xee; 6]));
        add(
            "with padding behind it",
            &world,
            trailer,
            SEQUENCE,
            Want::Counted,
        );
        let other_way = world
            .clone()
            .with(|world| world.path.returns = [901, 0, 0, 0]);
        add(
            "another way",
            &other_way,
            genuine.clone(),
            SEQUENCE,
            Want::WrongPath,
        );

        let frame = tagged.ip(&genuine[ETHERNET..]);
        self.row("another way, with a tag", &other_way, frame, Want::Tagged);
        for (what, change) in [
            (
                "a tracker that is gone",
                (|world| world.tracker.active = 0) as fn(&mut World),
            ),
            ("another address behind", |world| {
                world.tracker.behind[3] ^= 1
            }),
            ("another address of the hub", |world| {
                world.tracker.source[3] ^= 1
            }),
            ("another port", |world| world.tracker.port ^= 1),
            ("an ICMP tracker", |world| world.tracker.probe = Probe::Icmp),
            ("a UDP tracker", |world| world.tracker.probe = Probe::Udp),
            ("a tracker of which nothing was sent", |world| {
                world.state.send.sent = 0
            }),
        ] {
            // It is not theirs whatever token is in it; a reflector's packet is of no stranger.
            let frame = genuine.clone();
            let changed = world.clone().with(change);
            let is_sent = changed.state.send.sent != 0;
            let is_elsewhere = ["another address behind", "another port"].contains(&what);
            let want = match is_tcp {
                false if is_elsewhere => Want::Elsewhere(world.addresses().1),
                false if !is_sent => Want::Corrupt,
                _ => Want::Foreign,
            };
            self.row(what, &changed, frame, want);
        }
        let later = world.clone().with(|world| world.tracker.epoch += 1);
        let want = if is_tcp { Want::Foreign } else { Want::Corrupt };
        self.row("another epoch", &later, genuine.clone(), want);
        if self.family == V4 {
            let at = ETHERNET;
            for (what, byte, bits) in [
                ("a wrong checksum", 10, 1),
                ("a fragment", 6, 0x20),
                ("a later fragment", 7, 1),
                ("options", 0, 3),
                ("another protocol", 9, 1),
            ] {
                let frame = with(genuine.clone(), |frame| frame[at + byte] ^= bits);
                self.row(what, &world, frame, Want::Foreign);
            }
        } else {
            let frame = with(genuine.clone(), |frame| frame[ETHERNET + 6] = 44);
            self.row("a fragment", &world, frame, Want::Foreign);
        }
    }

    fn resets(&mut self) {
        let down = world(self.family, Probe::Tcp);
        let behind = down.addresses().1;
        let up = down
            .clone()
            .with(|world| world.tracker.refused_is_reply = 1);
        let right = down.initial_sequence(SEQUENCE).wrapping_add(1);
        let refused = segment(&down, RST | ACK, right);
        let want = Want::Refused(Complaint::Reset, [0, 0], behind);
        self.row("refused", &down, refused.clone(), want.clone());
        self.row(
            "refused, which is a reply",
            &up,
            refused.clone(),
            Want::Counted,
        );
        for world in [&down, &up] {
            // Nothing in it proves that who sent it saw the SYN.
            let frame = segment(world, RST, right);
            self.row(
                "reset without an acknowledgement",
                world,
                frame,
                Want::Foreign,
            );
            let frame = segment(world, RST | ACK, right ^ 0x100);
            self.row("of another's SYN", world, frame, Want::Foreign);
        }
        let other_way =
            |world: &World| (world.clone()).with(|world| world.path.returns = [901, 0, 0, 0]);
        // Like an ICMP error it may come by any way.
        self.row(
            "refused another way",
            &other_way(&down),
            refused.clone(),
            want,
        );
        let what = "refused another way, which is a reply";
        self.row(what, &other_way(&up), refused, Want::WrongPath);
    }

    fn reflected(&mut self) {
        let world = world(self.family, Probe::Stamp);
        for len in [45, 48, 100, 1_400] {
            let frame = reflected(&world, &reflection(&world, SEQUENCE, len));
            let what = format!("{len} bytes");
            self.row(&what, &world, frame, Want::Counted);
        }
        let packet = reflection(&world, SEQUENCE, 44);
        for byte in 0..44 {
            let altered = with(packet.clone(), |packet| packet[byte] ^= 0x10);
            let want = match byte {
                // The reflector's own, and what comes after the sender's.
                0..24 | 38.. => Want::Counted,
                // The slot: nobody's.
                28..31 => Want::Foreign,
                36..38 => Want::Foreign,
                _ => Want::Corrupt,
            };
            let what = format!("byte {byte} altered");
            self.row(&what, &world, reflected(&world, &altered), want);
        }
        let own = [world.claim(SEQUENCE), vec![0; 30]].concat();
        self.row(
            "sent back as it was",
            &world,
            reflected(&world, &own),
            Want::Foreign,
        );
        for (len, want) in [
            (37, Want::Foreign),
            (38, Want::Counted),
            (43, Want::Counted),
        ] {
            // Shorter than RFC 8762 wants it, which is 44; 38 bytes prove all that there is to prove.
            let frame = reflected(&world, &packet[..len]);
            self.row(&format!("{len} bytes"), &world, frame, want);
        }
        let (hub, behind) = world.addresses();
        let other = match behind {
            IpAddr::V4(_) => IpAddr::from([10, 20, 0, 77]),
            IpAddr::V6(_) => "2001:db8:20::77".parse().expect("an address"),
        };
        let [port, own_port] = [world.tracker.port, world.tracker.flow_first];
        let silent = (world.clone()).with(|world| world.tracker.expects_silence = 1);
        let arrival = (world.clone()).with(|world| world.tracker.proof = Proof::Arrival);
        for (what, from, port) in [
            ("from another address", other, port),
            ("from another port", behind, 863),
        ] {
            let frame = |packet: &[u8]| {
                let datagram = packets::datagram([from, hub], [port, own_port], packet);
                world.inbound().ip(&datagram)
            };
            self.row(what, &world, frame(&packet), Want::Elsewhere(from));
            self.row(what, &silent, frame(&packet), Want::CountedWithEvent);
            self.row(what, &arrival, frame(&packet), Want::Foreign);
            let forged = with(packet.clone(), |packet| packet[32] ^= 1);
            self.row(what, &world, frame(&forged), Want::Foreign);
        }
        let whole = reflected(&world, &packet);
        for len in ETHERNET..header(self.family) + ECHO + 38 {
            let what = format!("the first {len} bytes");
            self.row(&what, &world, whole[..len].to_vec(), Want::Foreign);
        }
        let longer = with(whole, |frame| frame[header(self.family) + 4] = 1);
        self.row("longer than its packet", &world, longer, Want::Foreign);
        let elsewhere = with(reflected(&world, &packet), |frame| {
            let at = header(self.family) + 2;
            frame[at..at + 2].copy_from_slice(&50_000u16.to_be_bytes());
        });
        self.row(
            "to a port that is not ours",
            &world,
            elsewhere,
            Want::Foreign,
        );
        self.common(Probe::Stamp);
    }

    /// The probe itself, come back to the hub.
    fn arrivals(&mut self, probe: Probe) {
        let waiting = world(self.family, probe);
        let arriving = waiting.clone().with(|world| {
            world.tracker.proof = Proof::Arrival;
            world.path.arrivals = world.path.returns;
            world.path.returns = [0; 4];
        });
        let mark = arriving.mark(SEQUENCE, 0);
        let sent = arriving.probe(mark);
        let link = Link {
            destination: [0; 6],
            ..arriving.inbound()
        };
        let probe = link.ip(&sent[ETHERNET..]);
        self.row("it arrives", &arriving, probe.clone(), Want::Counted);
        self.row(
            "it arrives, unasked",
            &waiting,
            probe.clone(),
            Want::Foreign,
        );
        let answer = answer(&arriving, SEQUENCE);
        self.row("it is answered, unasked", &arriving, answer, Want::Foreign);
        let forwarded = arriving
            .clone()
            .with(|world| world.path.arrivals = [901, 0, 0, 0]);
        self.row(
            "it arrives elsewhere",
            &forwarded,
            probe.clone(),
            Want::WrongPath,
        );
        self.row("on its way to the next hop", &arriving, sent, Want::Foreign);
        // The token is somewhere in the first bytes after the ports, of STAMP after the header.
        let at = header(self.family)
            + if arriving.tracker.probe == Probe::Tcp {
                4
            } else {
                ECHO + 8
            };
        let other = with(probe, |frame| frame[at] ^= 1);
        self.row("another's arrives", &arriving, other, Want::Foreign);
    }

    fn errors(&mut self, probe: Probe) {
        // It may come by any way.
        let world = world(self.family, probe).with(|world| world.path.returns = [901, 0, 0, 0]);
        let (hub, behind) = world.addresses();
        let from = match behind {
            IpAddr::V4(_) => IpAddr::from([10, 9, 0, 2]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 2]),
        };
        let quoted = world.probe(world.mark(SEQUENCE, 0))[ETHERNET..].to_vec();
        let error = |to: IpAddr, kind: [u8; 2], quoted: &[u8]| {
            world.inbound().ip(&packets::error(from, to, kind, quoted))
        };
        let (kinds, complaint): (&[u8], _) = match self.family {
            V4 => (&[3, 11, 12], Complaint::Icmp),
            V6 => (&[1, 2, 3, 4], Complaint::Icmpv6),
        };
        for kind in 0..=255 {
            let want = match kinds.contains(&kind) {
                true => Want::Refused(complaint, [kind, 13], from),
                false => Want::Foreign,
            };
            let what = format!("an error of type {kind}");
            self.row(&what, &world, error(hub, [kind, 13], &quoted), want);
        }
        let kind = [kinds[0], 3];
        let refused = Want::Refused(complaint, kind, from);
        let head = header(self.family) - ETHERNET + 8 + if probe == Probe::Tcp { 0 } else { 14 };
        for len in 0..head {
            let what = format!("a quote of {len} bytes");
            self.row(
                &what,
                &world,
                error(hub, kind, &quoted[..len]),
                Want::Foreign,
            );
        }
        let frame = error(hub, kind, &quoted[..head]);
        self.row("as much as proves it", &world, frame, refused.clone());
        let frame = error(from, kind, &quoted);
        self.row("told to another", &world, frame, Want::Foreign);
        let ip = header(self.family) - ETHERNET;
        let of_tcp = [("its number", ip + 4, 1), ("its token", ip + 6, 2)];
        let of_stamp = [("its number", ip + 11, 1), ("its token", ip + 19, 2)];
        let altered = if probe == Probe::Tcp {
            of_tcp
        } else {
            of_stamp
        };
        let elsewhere = ("where it went", ip - 1, 1);
        let port = ("its port", ip + 3, 1);
        for (what, at, bits) in altered.into_iter().chain([elsewhere, port]) {
            let quoted = with(quoted.clone(), |quoted| quoted[at] ^= bits);
            let what = format!("an error with {what} altered");
            self.row(&what, &world, error(hub, kind, &quoted), Want::Foreign);
        }
        // Hops and checksums are what routers change.
        let hops = if self.family == V4 { 8 } else { 7 };
        let routed = with(quoted, |quoted| quoted[hops] = 3);
        self.row(
            "with fewer hops",
            &world,
            error(hub, kind, &routed),
            refused,
        );
    }

    /// Where answers are not looked for.
    fn elsewhere(&mut self, probe: Probe) {
        let world = world(self.family, probe);
        let genuine = answer(&world, SEQUENCE);
        for tags in [vec![Tag::dot1ad(1)], vec![Tag::dot1q(1), Tag::dot1q(2)]] {
            let link = Link {
                tags,
                ..world.inbound()
            };
            let frame = link.ip(&genuine[ETHERNET..]);
            self.row("with other tags", &world, frame, Want::Foreign);
        }
        let frame = with(genuine, |frame| frame[13] ^= 0x55);
        self.row("of another EtherType", &world, frame, Want::Foreign);
    }
}

/// Runs the program on each row.
pub fn check_table(program: &'static str, actions: Actions) -> Result<()> {
    let mut object = Object::load(program)?;
    let (rows, refused): (Vec<_>, Vec<_>) =
        rows().into_iter().partition(|row| object.takes(&row.frame));
    for row in &rows {
        row.check(&mut object, actions)?;
    }
    println!(
        "{program}: {} rows, {} more that the kernel refuses to run",
        rows.len(),
        refused.len()
    );
    assert!(refused.len() < rows.len() / 4, "too many rows were not run");
    Ok(())
}

impl Row {
    fn check(&self, object: &mut Object, actions: Actions) -> Result<()> {
        self.world.install(object)?;
        let sent = now_mono_ns() - 1_000_000;
        for word in TIMES..TIMES + 4 {
            object.windows.set(word as u32, sent, 0)?;
        }
        let before = object.snapshot()?;
        let ran = object.run(&self.frame)?;
        self.settle(object, before, &ran, sent, actions)
    }

    /// Holds what a run did, and what the maps hold now, against what should be. `sent` is when the probe was sent.
    pub fn settle(
        &self,
        object: &mut Object,
        before: Snapshot,
        ran: &Ran,
        sent: u64,
        actions: Actions,
    ) -> Result<()> {
        let what = self.what.as_str();
        let is_tagged = self.frame.get(12..ETHERNET) == Some(&[0x81, 0x00]);
        let is_unseen = is_tagged && !actions.takes_tag;
        let want = if is_unseen {
            &Want::Foreign
        } else {
            &self.want
        };
        // The connection of what is in a VLAN is that interface's own to reset.
        let mut is_answered = self.is_answered && !is_unseen && *want != Want::Tagged;
        let is = object.snapshot()?;
        let action = match want {
            Want::Foreign | Want::Corrupt | Want::Tagged | Want::WrongPath => actions.pass,
            Want::Refused(..)
            | Want::Elsewhere(_)
            | Want::Late
            | Want::Duplicate
            | Want::Counted
            | Want::CountedWithEvent => actions.consume,
        };
        assert_eq!(ran.action, action, "{what}: action");
        assert_eq!(ran.frame, self.frame, "{what}: the frame was altered");

        let mut should = before;
        let slot = self.world.slot;
        let hops = fuzz::hops(&self.frame).unwrap_or(0);
        let tracker = &mut should.states[slot as usize];
        let seen = &is.states[slot as usize];
        match want {
            Want::Foreign => {}
            Want::Corrupt => {
                should.counters.reply_corrupt += 1;
                tracker.trouble.corrupt += 1;
                let at = seen.trouble.corrupt_mono_ns;
                assert!(ran.mono_ns.contains(&at), "{what}: corrupt at {at}");
                tracker.trouble.corrupt_mono_ns = at;
            }
            Want::Tagged => should.counters.reply_tagged += 1,
            Want::WrongPath => {
                should.counters.reply_wrong_path += 1;
                tracker.trouble.wrong_path += 1;
                if self.sequence >= tracker.trouble.wrong_path_sequence {
                    tracker.trouble.wrong_path_ifindex = ARRIVAL;
                    tracker.trouble.wrong_path_ttl = hops;
                    tracker.trouble.wrong_path_sequence = self.sequence;
                }
            }
            Want::Refused(complaint, kind, from) => {
                should.counters.probe_refused += 1;
                let trouble = &mut tracker.trouble;
                if self.sequence >= trouble.complaint_sequence {
                    trouble.complaint = *complaint;
                    [trouble.complaint_type, trouble.complaint_code] = *kind;
                    trouble.complaint_from = match from {
                        IpAddr::V4(from) => super::widen(from.octets()),
                        IpAddr::V6(from) => from.octets(),
                    };
                    trouble.complaint_sequence = self.sequence;
                }
            }
            Want::Elsewhere(from) => {
                should.counters.reply_elsewhere += 1;
                tracker.receive.elsewhere += 1;
                let trouble = &mut tracker.trouble;
                if self.sequence >= trouble.complaint_sequence {
                    trouble.complaint = Complaint::Elsewhere;
                    [trouble.complaint_type, trouble.complaint_code] = [0; 2];
                    trouble.complaint_from = match from {
                        IpAddr::V4(from) => super::widen(from.octets()),
                        IpAddr::V6(from) => from.octets(),
                    };
                    trouble.complaint_sequence = self.sequence;
                }
            }
            Want::Late => {
                should.counters.reply_late += 1;
                tracker.trouble.late += 1;
            }
            Want::Duplicate => {
                should.counters.reply_duplicate += 1;
                tracker.trouble.duplicate += 1;
            }
            Want::Counted | Want::CountedWithEvent => {
                should.counters.reply_counted += 1;
                let last = seen.receive.rtt_last_ns;
                let bounds = ran.mono_ns.start() - sent..=ran.mono_ns.end() - sent;
                assert!(bounds.contains(&last), "{what}: {last} not in {bounds:?}");
                let receive = &mut tracker.receive;
                receive.received += 1;
                receive.rtt_last_ns = last;
                receive.rtt_sum_ns += last;
                receive.rtt_min_ns = receive.rtt_min_ns.min(last);
                receive.rtt_max_ns = receive.rtt_max_ns.max(last);
                receive.ttl = hops;
                if actions.sees_hop {
                    receive.hop_mac.copy_from_slice(&self.frame[6..12]);
                }
                let (word, bit) = self.world.bit(self.sequence);
                should.words[word] |= bit;
            }
        }
        if is_answered && self.is_held {
            tracker.receive.held = tracker.send.sent as u8;
        } else if is_answered && !matches!(want, Want::Counted | Want::CountedWithEvent) {
            // One that does not count is reported once in a while for each flow.
            let before = tracker.receive.resets;
            let known = abi::Resets::of_word(before);
            let flow = own_port(&self.frame).unwrap_or(0);
            let resets = seen.receive.resets;
            is_answered = resets != before;
            let possible = [ran.mono_ns.start(), ran.mono_ns.end()];
            let possible = possible.map(|at| known.report(flow, *at));
            let reported = is_answered.then_some(resets);
            assert!(
                possible.contains(&reported),
                "{what}: {resets:#x} after {before:#x}"
            );
            tracker.receive.resets = resets;
        }
        if !is.is_same(&should) {
            assert_same(what, "maps", &is, &should);
        }

        let (events, answered) = object.records()?;
        let epoch = self.world.tracker.epoch;
        let wanted = is_answered.then_some(abi::Answered {
            tracker: slot,
            epoch,
            sequence: self.sequence as u32,
            flow: own_port(&self.frame).unwrap_or(0),
            is_held: self.is_held.into(),
            pad: 0,
        });
        assert_eq!(
            answered,
            Vec::from_iter(wanted),
            "{what}: connections to reset"
        );
        let reported: Vec<_> = events
            .iter()
            .map(|event| (event.tracker, event.epoch, event.sequence))
            .collect();
        let is_reported = *want == Want::CountedWithEvent;
        let wanted = is_reported.then_some((slot, epoch, self.sequence));
        assert_eq!(reported, Vec::from_iter(wanted), "{what}: events");
        Ok(())
    }
}

/// A SYN-ACK or challenge ACK that is replayed costs no reset each.
pub fn check_replays(program: &'static str, actions: Actions) -> Result<()> {
    const REPLAYS: usize = 200;
    for family in [V4, V6] {
        let mut object = Object::load(program)?;
        let world = world(family, Probe::Tcp).with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            let first = world.tracker.window_first as usize;
            world.words[word - first] |= bit;
        });
        world.install(&mut object)?;
        let sent = now_mono_ns() - 1_000_000;
        for word in TIMES..TIMES + 4 {
            object.windows.set(word as u32, sent, 0)?;
        }
        let replay = |object: &mut Object, frame: &[u8]| -> Result<usize> {
            let begun = now_mono_ns();
            let mut reported = 0;
            for _ in 0..REPLAYS {
                let ran = object.run(frame)?;
                assert_eq!(ran.action, actions.consume);
                reported += object.records()?.1.len();
            }
            let periods = (now_mono_ns() >> 27) - (begun >> 27) + 1;
            assert!(
                reported as u64 <= periods,
                "{reported} in {periods} periods"
            );
            Ok(reported)
        };
        let again = syn_ack(&world, SEQUENCE);
        assert!(replay(&mut object, &again)? > 0, "the first is reported");
        let number = world.initial_sequence(SEQUENCE - 1).wrapping_add(1);
        // Nothing waits for it while the last probe is answered.
        let held = segment(&world, ACK, number);
        assert_eq!(replay(&mut object, &held)?, 0);
        for later in [1, 2] {
            let mut state = object.states.get(&world.slot, 0)?;
            state.send.sent = SEQUENCE + later;
            object.states.set(world.slot, state, 0)?;
            assert_eq!(replay(&mut object, &held)?, 1, "once for each probe");
        }
    }
    Ok(())
}

/// The port to which a segment is addressed.
fn own_port(frame: &[u8]) -> Option<u16> {
    let tag = if frame.get(12..ETHERNET)? == [0x81, 0x00] {
        4
    } else {
        0
    };
    let head = match frame.get(ETHERNET + tag)? >> 4 {
        4 => packets::IPV4,
        _ => packets::IPV6,
    };
    let at = ETHERNET + tag + head + 2;
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

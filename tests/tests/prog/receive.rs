//! What the receive programs do with a frame: one table for both, XDP and TC.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use pnet_packet::ethernet::{EtherType, EtherTypes};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use tracker_ebpf::abi::{self, Complaint, Family, Probe};
use tracker_tests::packets::{
    self, ECHO, ETHERNET, Echo, IPV4, IPV6, Ipv4, Link, MARK, Mark, Tag, with,
};

use super::{ARRIVAL, OTHER, Object, Ran, SLOT, SLOTS, World, assert_same, now_mono_ns};

/// What a receive program is to do with a frame. Where the tracker waits for
/// its probe to come back, that is what these mean. Whatever it is, a frame that passes is not altered, and
/// nothing but what is named here changes in any map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Passes; counts nothing at all.
    Foreign,
    /// Passes; `reply_stale`.
    Stale,
    /// Passes; `reply_corrupt`, and the tracker's `corrupt`.
    Corrupt,
    /// Passes; `reply_corrupt`, and the `corrupt` of the tracker in `OTHER`.
    CorruptOther,
    /// The same, but with other addresses than the tracker's: it explains no loss.
    Stranger,
    /// The same of the tracker in `OTHER`.
    StrangerOther,
    /// Passes; `reply_tagged`.
    Tagged,
    /// Is consumed; `reply_wrong_path`, and where it arrived.
    WrongPath,
    /// Is consumed; `probe_refused`, and what the error says.
    Refused,
    /// The same of an error by which the behind address says that nobody has the port.
    Closed,
    /// Is consumed; `reply_elsewhere`, and from where it came.
    Elsewhere,
    /// Is consumed; `reply_late`.
    Late,
    /// Is consumed; `reply_duplicate`.
    Duplicate,
    /// Is consumed; `reply_counted`, round-trip time, bit; no event.
    Counted,
    /// The same, and an event.
    CountedWithEvent,
}

impl Want {
    pub const fn is_consumed(self) -> bool {
        match self {
            Self::Foreign
            | Self::Stale
            | Self::Corrupt
            | Self::CorruptOther
            | Self::Stranger
            | Self::StrangerOther
            | Self::Tagged
            | Self::WrongPath => false,
            Self::Refused
            | Self::Closed
            | Self::Elsewhere
            | Self::Late
            | Self::Duplicate
            | Self::Counted
            | Self::CountedWithEvent => true,
        }
    }
}

/// One line of the table: frame in, and what comes of it.
#[derive(Clone)]
pub struct Row {
    pub what: String,
    pub world: World,
    /// Sequence number and time of the probe that is answered, for the rows in which it matters.
    pub mark: Mark,
    pub frame: Vec<u8>,
    pub want: Want,
}

/// How a program passes and consumes, and what it sees.
#[derive(Clone, Copy, Debug)]
pub struct Actions {
    pub pass: i32,
    pub consume: i32,
    /// Whether a frame with this destination is not for this host, but on its way to the next hop still.
    pub is_as_sent: fn(&[u8; 6]) -> bool,
    /// Whether it looks behind a VLAN tag among the frame's bytes.
    pub takes_tag: bool,
    /// Whether it sees who sent the frame.
    pub sees_hop: bool,
}

impl Actions {
    /// What is to come of a frame of which an XDP program makes `want`.
    pub fn want(self, frame: &[u8], want: Want) -> Want {
        let is_tagged = frame.get(12..ETHERNET) == Some(&[0x81, 0x00]);
        match is_tagged && !self.takes_tag {
            true => Want::Foreign,
            false => want,
        }
    }
}

/// A reply to one probe, before anything is wrong with it.
#[derive(Clone, Debug)]
pub struct Reply {
    world: World,
    pub link: Link,
    from: IpAddr,
    to: IpAddr,
    mark: Mark,
    pub echo: Echo,
    /// Of UDP, where the tracker's probes are.
    pub ports: [u16; 2],
}

impl Reply {
    pub fn new(world: &World, mark: Mark) -> Self {
        let (hub, behind) = world.addresses();
        Self {
            world: world.clone(),
            link: world.inbound(),
            from: behind,
            to: hub,
            mark,
            echo: Echo {
                kind: packets::echo_reply(hub),
                code: 0,
                identifier: world.flow(mark.sequence),
                sequence: mark.sequence as u16,
                payload: mark.payload(MARK),
            },
            ports: [world.tracker.port, world.flow(mark.sequence)],
        }
    }

    /// The probe itself, come back to the hub.
    pub fn arrived(world: &World, mark: Mark) -> Self {
        Self::new(world, mark).with(|probe| {
            (probe.from, probe.to) = (probe.to, probe.from);
            probe.echo.kind = packets::echo_request(probe.to);
            probe.ports.reverse();
            // Runs are in the name of the loopback interface: at TC a frame is for this host where it has
            // that one's address.
            probe.link.destination = [0; 6];
        })
    }

    #[must_use]
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    #[must_use]
    fn marked(self, change: impl FnOnce(&mut Mark)) -> Self {
        self.with(|reply| {
            change(&mut reply.mark);
            reply.echo.payload = reply.mark.payload(reply.echo.payload.len());
        })
    }

    fn packet(&self) -> Vec<u8> {
        match self.world.tracker.probe {
            Probe::Icmp => self.echo.packet(self.from, self.to),
            Probe::Udp => packets::datagram([self.from, self.to], self.ports, &self.echo.payload),
            Probe::Tcp | Probe::Stamp => unreachable!("their answers carry no mark: see answer.rs"),
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        self.link.ip(&self.packet())
    }

    /// The frame around a packet that was changed, with what a checksum covers as it was.
    fn tampered(&self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.link.ip(&with(self.packet(), change))
    }
}

pub const V4: Family = Family::Ipv4;
pub const V6: Family = Family::Ipv6;
const SEQUENCE: u64 = 1_000;

/// The table.
pub fn rows() -> Vec<Row> {
    let sent = now_mono_ns() - 1_000_000;
    let mut table = Table {
        rows: Vec::new(),
        sent,
    };
    for family in [V4, V6] {
        table.genuine(family);
        table.not_in_time(family);
        table.not_ours(family);
        table.tampered(family);
        table.foreign(family);
        table.truncated(family);
        table.arrivals(family);
        table.datagrams(family);
        table.errors(family);
        table.refusals(family);
    }
    table.ipv4_only();
    table.ipv6_only();
    table.other_protocols();
    table.rows
}

/// What is to become of a reply, or probe, by the right interface with this tag: one whose identifier is zero tells the
/// priority alone.
fn counted_unless_in_vlan(control: u16) -> Want {
    match control & 0xfff {
        0 => Want::Counted,
        _ => Want::Tagged,
    }
}

struct Table {
    rows: Vec<Row>,
    sent: u64,
}

impl Table {
    /// A row in which the reply arrives as it is.
    fn row(&mut self, what: impl std::fmt::Display, reply: &Reply, want: Want) {
        self.frame(what, reply, reply.frame(), want);
    }

    /// A row in which something was done to the reply's frame.
    fn frame(&mut self, what: impl std::fmt::Display, reply: &Reply, frame: Vec<u8>, want: Want) {
        let family = reply.world.tracker.family;
        self.rows.push(Row {
            what: format!("{family:?}: {what}"),
            world: reply.world.clone(),
            mark: reply.mark,
            frame,
            want,
        });
    }

    fn reply(&self, world: &World) -> Reply {
        Reply::new(world, world.mark(SEQUENCE, self.sent))
    }

    fn genuine(&mut self, family: Family) {
        let world = World::new(family);
        let reply = self.reply(&world);
        self.row("a reply", &reply, Want::Counted);
        for control in [0, 1, 100, 4_095, 0xe064] {
            let tagged = reply
                .clone()
                .with(|reply| reply.link.tags = vec![Tag::dot1q(control)]);
            let what = format!("a reply with tag {control:#x}");
            self.row(what, &tagged, counted_unless_in_vlan(control));
        }
        for payload in [33, 34, 63, 64, 1_000, 1_472] {
            let larger = reply
                .clone()
                .with(|reply| reply.echo.payload.resize(payload, 0));
            let what = format!("a reply with {payload} bytes");
            self.row(what, &larger, Want::Counted);
        }
        let trailer = with(reply.frame(), |frame| frame.extend([0xee; 6]));
        self.frame(
            "Ethernet padding after the packet",
            &reply,
            trailer,
            Want::Counted,
        );
        let odd = reply.clone().with(|reply| reply.echo.identifier ^= 0xffff);
        let what = "another identifier: the token proves enough";
        self.row(what, &odd, Want::Counted);

        for sequence in [1, 2, 63, 64, 65, 127, 128, 255, 256, 1 << 33 | 77, u64::MAX] {
            let reply = Reply::new(&world, world.mark(sequence, self.sent));
            let what = format!("sequence number {sequence}");
            self.row(what, &reply, Want::Counted);
        }
        let narrow = world.clone().with(|world| world.tracker.window_mask = 0);
        let reply = self.reply(&narrow);
        self.row("a bit set of one word", &reply, Want::Counted);

        let neighbours = world.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words = [u64::MAX; 4];
            world.words[word - world.tracker.window_first as usize] = !bit;
        });
        let reply = self.reply(&neighbours);
        self.row("the first reply among answered ones", &reply, Want::Counted);

        let settled = world.clone().with(|world| {
            world.state.receive.rtt_min_ns = 1;
            world.state.receive.rtt_max_ns = u64::MAX;
        });
        let reply = self.reply(&settled);
        self.row(
            "neither the shortest nor the longest",
            &reply,
            Want::Counted,
        );

        let fresh = world
            .clone()
            .with(|world| world.state = abi::State::default());
        let reply = Reply::new(&fresh, fresh.mark(1, self.sent));
        self.row("the first of all replies", &reply, Want::CountedWithEvent);
        let eager = world
            .clone()
            .with(|world| world.tracker.expects_silence = 1);
        let reply = self.reply(&eager);
        let what = "one of which each is reported";
        self.row(what, &reply, Want::CountedWithEvent);
        for (verdict, want) in [
            (0, Want::CountedWithEvent),
            (1, Want::Counted),
            (2, Want::CountedWithEvent),
        ] {
            let world = world
                .clone()
                .with(|world| world.state.receive.verdict = verdict);
            let reply = self.reply(&world);
            self.row(format!("verdict {verdict}"), &reply, want);
        }
        for at in 0..abi::RETURNS_MAX {
            let world = world.clone().with(|world| {
                world.path.returns = [901, 902, 903, 904];
                world.path.returns[at] = ARRIVAL;
            });
            let reply = self.reply(&world);
            self.row(format!("entry {at} of returns"), &reply, Want::Counted);
        }
        for (what, interface, source, want) in [
            ("the endpoint", ARRIVAL, super::ENDPOINT_MAC, Want::Counted),
            ("another", ARRIVAL, [2, 0, 0, 0, 0, 3], Want::WrongPath),
            ("another, elsewhere", 901, [2, 0, 0, 0, 0, 3], Want::Counted),
        ] {
            let world = world.clone().with(|world| {
                world.path.checks_hop = 1;
                world.path.interface = interface;
            });
            let reply = self.reply(&world).with(|reply| reply.link.source = source);
            self.row(format!("brought by {what}"), &reply, want);
        }
        let silent = world.clone().with(|world| {
            world.tracker.expects_silence = 1;
            world.tracker.return_ttl = 65;
            world.path.returns = [901, 0, 0, 0];
        });
        let reply = self.reply(&silent);
        let what = "the way of what must not come";
        self.row(what, &reply, Want::CountedWithEvent);
        let tagged = reply.with(|reply| reply.link.tags = vec![Tag::dot1q(100)]);
        let what = "what must not come, in a VLAN";
        self.row(what, &tagged, Want::CountedWithEvent);
        for (what, ttl, want) in [
            ("as many hops as it must have", 64, Want::Counted),
            ("a hop more than that", 63, Want::WrongPath),
            ("a hop less than that", 65, Want::WrongPath),
        ] {
            let world = world.clone().with(|world| world.tracker.return_ttl = ttl);
            let reply = self.reply(&world);
            self.row(format!("{what} left"), &reply, want);
        }
        let nowhere = world.with(|world| world.path.via = abi::Via::Nowhere);
        let reply = self.reply(&nowhere);
        let what = "a reply after the way out was lost";
        self.row(what, &reply, Want::Counted);
    }

    /// Trackers whose behind address is the hub's own: the probe that comes back is the proof.
    fn arrivals(&mut self, family: Family) {
        let world = World::new(family).with(|world| {
            world.tracker.proof = abi::Proof::Arrival;
            world.path.returns = [901, 0, 0, 0];
            world.path.arrivals = [902, ARRIVAL, 0, 0];
        });
        let probe = Reply::arrived(&world, world.mark(SEQUENCE, self.sent));
        self.row("a probe", &probe, Want::Counted);
        for control in [0, 0xe000, 1, 0xe064] {
            let tagged = probe
                .clone()
                .with(|probe| probe.link.tags = vec![Tag::dot1q(control)]);
            let want = counted_unless_in_vlan(control);
            self.row(format!("a probe, tag {control:#x}"), &tagged, want);
        }
        let larger = probe
            .clone()
            .with(|probe| probe.echo.payload.resize(1_000, 0));
        self.row("a larger probe", &larger, Want::Counted);
        for at in 0..abi::RETURNS_MAX {
            let world = world.clone().with(|world| {
                world.path.arrivals = [902, 903, 904, 905];
                world.path.arrivals[at] = ARRIVAL;
            });
            let probe = Reply::arrived(&world, world.mark(SEQUENCE, self.sent));
            self.row(format!("entry {at} of arrivals"), &probe, Want::Counted);
        }
        let fresh = world
            .clone()
            .with(|world| world.state = abi::State::default());
        let first = Reply::arrived(&fresh, fresh.mark(1, self.sent));
        self.row("the first of all probes", &first, Want::CountedWithEvent);
        let answered = world.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words[word - world.tracker.window_first as usize] = bit;
        });
        let again = Reply::arrived(&answered, answered.mark(SEQUENCE, self.sent));
        self.row("a probe again", &again, Want::Duplicate);
        let impatient = world
            .clone()
            .with(|world| world.tracker.timeout_ns = 1_000_000);
        let late = Reply::arrived(&impatient, impatient.mark(SEQUENCE, self.sent - 50_000_000));
        self.row("a late probe", &late, Want::Late);

        // By the way that it went out, or anywhere but where it is to come back.
        for arrivals in [[0; 4], [901, 902, 903, 904]] {
            let world = world.clone().with(|world| {
                world.path.arrivals = arrivals;
                world.path.returns = [ARRIVAL, 0, 0, 0];
            });
            let probe = Reply::arrived(&world, world.mark(SEQUENCE, self.sent));
            let what = format!("a probe, arrivals {arrivals:?}");
            self.row(what, &probe, Want::WrongPath);
            let tagged = probe.with(|probe| probe.link.tags = vec![Tag::dot1q(100)]);
            let what = format!("a probe on the parent, arrivals {arrivals:?}");
            self.row(what, &tagged, Want::Tagged);
        }
        let flooded = probe
            .clone()
            .with(|probe| probe.link.destination = world.path.next_hop_mac);
        let what = "a probe on its way to the next hop still";
        self.row(what, &flooded, Want::Foreign);

        // The one proof does not stand for the other.
        let replied = world.clone().with(|world| world.path.returns[1] = ARRIVAL);
        let reply = self.reply(&replied);
        self.row("a reply where a probe is to arrive", &reply, Want::Foreign);
        let asks = world
            .clone()
            .with(|world| world.tracker.proof = abi::Proof::Reply);
        let stray = Reply::arrived(&asks, asks.mark(SEQUENCE, self.sent));
        let what = "a probe that arrives where a reply is to";
        self.row(what, &stray, Want::Foreign);

        let (hub, behind) = world.addresses();
        for (what, from, to) in [
            ("from elsewhere", next(hub), behind),
            ("to elsewhere", hub, next(behind)),
            ("the other way", behind, hub),
        ] {
            let other = probe
                .clone()
                .with(|probe| (probe.from, probe.to) = (from, to));
            self.row(format!("a probe {what}"), &other, Want::Foreign);
        }
        for (what, change) in [
            (
                "token",
                (|mark: &mut Mark| mark.token ^= 1) as fn(&mut Mark),
            ),
            ("sequence number", |mark| mark.sequence += 1),
            ("time", |mark| mark.sent_mono_ns -= 1),
        ] {
            let forged = probe.clone().marked(change);
            let what = format!("a probe with another {what}");
            self.row(what, &forged, Want::Corrupt);
        }
        let frame = probe.tampered(|packet| packet[header(family) + 2] ^= 1);
        self.frame("a probe's ICMP checksum", &probe, frame, Want::Corrupt);
        // Others' probes pass through a hub that is a router.
        for slot in [0, SLOTS, u32::MAX] {
            let others = probe.clone().marked(|mark| mark.tracker = slot);
            self.row(format!("a probe of tracker {slot}"), &others, Want::Foreign);
        }
        let retired = world.clone().with(|world| world.tracker.active = 0);
        let probe = Reply::arrived(&retired, retired.mark(SEQUENCE, self.sent));
        self.row("a probe of no tracker any more", &probe, Want::Foreign);
    }

    /// Errors that quote a probe.
    fn errors(&mut self, family: Family) {
        let kinds: &[u8] = match family {
            V4 => &[3, 11, 12],
            V6 => &[1, 2, 3, 4],
        };
        let elsewhere = |world: &mut World| world.path.returns = [901, 0, 0, 0];
        for probe in [Probe::Icmp, Probe::Udp] {
            let world = World::new(family).with(|world| {
                world.tracker.probe = probe;
                // It may come from anywhere, and by any way.
                elsewhere(world);
            });
            let (hub, behind) = world.addresses();
            let from = next(behind);
            let mark = world.mark(SEQUENCE, self.sent);
            let quoted = world.probe(mark)[ETHERNET..].to_vec();
            let reply = self.reply(&world);
            let error = |to: IpAddr, kind: [u8; 2], quoted: &[u8]| {
                reply.link.ip(&packets::error(from, to, kind, quoted))
            };
            for newer in [0, 1] {
                let known = world.clone().with(|world| {
                    world.state.trouble.complaint_sequence = SEQUENCE + newer;
                });
                let what = format!("{probe:?}: one about a probe {newer} later was before");
                let frame = error(hub, [kinds[0], 1], &quoted);
                self.frame(what, &self.reply(&known), frame, Want::Refused);
            }
            let mut row = |what: String, frame: Vec<u8>, want: Want| {
                self.frame(format!("{probe:?}: {what}"), &reply, frame, want);
            };
            for kind in 0..=255 {
                let is_error = kinds.contains(&kind);
                let want = if is_error {
                    Want::Refused
                } else {
                    Want::Foreign
                };
                let frame = error(hub, [kind, 13], &quoted);
                row(format!("type {kind} that quotes a probe"), frame, want);
            }
            let kind = [kinds[0], 1];
            let head = header(family) + ECHO + MARK;
            for len in 0..head {
                let what = format!("a quote of {len} bytes");
                row(what, error(hub, kind, &quoted[..len]), Want::Foreign);
            }
            row(
                "a quote of the mark".into(),
                error(hub, kind, &quoted[..head]),
                Want::Refused,
            );
            let longer = [quoted.clone(), vec![0xee; 400]].concat();
            row(
                "a longer quote".into(),
                error(hub, kind, &longer),
                Want::Refused,
            );
            row(
                "told to another".into(),
                error(from, kind, &quoted),
                Want::Foreign,
            );
            let altered = |at: usize, bits: u8| {
                let quoted = with(quoted.clone(), |quoted| quoted[at] ^= bits);
                error(hub, kind, &quoted)
            };
            let mark_at = header(family) + ECHO;
            for (what, at, want) in [
                (
                    "fewer hops",
                    if family == V4 { 8 } else { 7 },
                    Want::Refused,
                ),
                (
                    "the address that a NAT put there",
                    if family == V4 { 15 } else { 23 },
                    Want::Refused,
                ),
                (
                    "the identifier or checksum that a NAT put there",
                    mark_at - 1,
                    Want::Refused,
                ),
                ("another mark", mark_at, Want::Foreign),
                ("another tracker", mark_at + 7, Want::Foreign),
                ("another sequence number", mark_at + 15, Want::Foreign),
                ("another time", mark_at + 23, Want::Foreign),
                ("another token", mark_at + 31, Want::Foreign),
            ] {
                row(format!("a quote with {what}"), altered(at, 2), want);
            }
            let frame = error(hub, kind, &quoted);
            if family == V4 {
                let damaged = with(frame.clone(), |frame| frame[ETHERNET + 8] ^= 1);
                row("an error's IPv4 checksum".into(), damaged, Want::Foreign);
            }
            let tagged = Link {
                tags: vec![Tag::dot1q(100)],
                ..reply.link.clone()
            };
            row(
                "an error with a tag".into(),
                tagged.ip(&frame[ETHERNET..]),
                Want::Refused,
            );
            let gone = world.clone().with(|world| world.tracker.active = 0);
            let nobody = self.reply(&gone);
            self.frame("an error of nobody's", &nobody, frame, Want::Foreign);
        }
    }

    /// Errors by which a host says that nobody has a port.
    fn refusals(&mut self, family: Family) {
        let closed = match family {
            V4 => [3, 3],
            V6 => [1, 4],
        };
        for (probe, refused_is_reply) in [(Probe::Udp, 0), (Probe::Udp, 1), (Probe::Icmp, 1)] {
            let world = World::new(family).with(|world| {
                world.tracker.probe = probe;
                world.tracker.refused_is_reply = refused_is_reply;
            });
            let (hub, behind) = world.addresses();
            let mark = world.mark(SEQUENCE, self.sent);
            let quoted = world.probe(mark)[ETHERNET..].to_vec();
            let reply = self.reply(&world);
            let mut row = |what: &str, from: IpAddr, kind: [u8; 2], tag: u16, want: Want| {
                let link = reply.clone().with(|reply| {
                    if tag != 0 {
                        reply.link.tags = vec![Tag::dot1q(tag)];
                    }
                });
                let frame = link.link.ip(&packets::error(from, hub, kind, &quoted));
                let what = format!("{probe:?}, refused {refused_is_reply}: {what}");
                self.frame(what, &reply, frame, want);
            };
            let [of_behind, in_vlan] = match (probe, refused_is_reply) {
                (Probe::Udp, 1) => [Want::Counted, Want::Tagged],
                (Probe::Udp, _) => [Want::Closed; 2],
                _ => [Want::Refused; 2],
            };
            row("no port", behind, closed, 0, of_behind);
            row("no port, in a VLAN", behind, closed, 100, in_vlan);
            row(
                "no port, says another",
                next(behind),
                closed,
                0,
                Want::Refused,
            );
            row("no host", behind, [closed[0], 0], 0, Want::Refused);
        }
    }

    /// UDP, as an echo service answers it.
    fn datagrams(&mut self, family: Family) {
        let world = World::new(family).with(|world| world.tracker.probe = Probe::Udp);
        let reply = self.reply(&world);
        self.row("UDP: a reply", &reply, Want::Counted);
        let tagged = reply
            .clone()
            .with(|reply| reply.link.tags = vec![Tag::dot1q(0xe064)]);
        self.row("UDP: a reply with a tag", &tagged, Want::Tagged);
        for payload in [33, 64, 1_000, 1_472] {
            let larger = reply
                .clone()
                .with(|reply| reply.echo.payload.resize(payload, 0xee));
            let what = format!("UDP: a reply with {payload} bytes, not zeros");
            self.row(what, &larger, Want::Counted);
        }
        for port in [0, 1, 65_535] {
            let moved = reply.clone().with(|reply| reply.ports[1] = port);
            let what = format!("UDP: to port {port}, which a NAT made of the probe's");
            self.row(what, &moved, Want::Counted);
            let other = reply.clone().with(|reply| reply.ports[0] = port);
            self.row(format!("UDP: from port {port}"), &other, Want::Elsewhere);
        }
        let at = header(family);
        for checksum in [[0, 0], [0x12, 0x34], [0xff, 0xff]] {
            let frame = reply.tampered(|packet| packet[at + 6..at + 8].copy_from_slice(&checksum));
            let what = format!("UDP: checksum {checksum:02x?}");
            self.frame(what, &reply, frame, Want::Counted);
        }
        let full = (ECHO + MARK) as u16;
        for (len, want) in [
            (0, Want::Corrupt),
            (8, Want::Corrupt),
            (full - 1, Want::Corrupt),
            (full, Want::Counted),
            (full + 1, Want::Corrupt),
            (u16::MAX, Want::Corrupt),
        ] {
            let frame =
                reply.tampered(|packet| packet[at + 4..at + 6].copy_from_slice(&len.to_be_bytes()));
            self.frame(format!("UDP: length {len}"), &reply, frame, want);
        }
        let fresh = world
            .clone()
            .with(|world| world.state = abi::State::default());
        let first = Reply::new(&fresh, fresh.mark(1, self.sent));
        self.row("UDP: the first of all", &first, Want::CountedWithEvent);
        let answered = world.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words[word - world.tracker.window_first as usize] = bit;
        });
        self.row(
            "UDP: a second reply",
            &self.reply(&answered),
            Want::Duplicate,
        );
        let impatient = world
            .clone()
            .with(|world| world.tracker.timeout_ns = 1_000_000);
        let late = Reply::new(&impatient, impatient.mark(SEQUENCE, self.sent - 50_000_000));
        self.row("UDP: a late reply", &late, Want::Late);
        let elsewhere = world
            .clone()
            .with(|world| world.path.returns = [901, 0, 0, 0]);
        let strayed = self.reply(&elsewhere);
        self.row("UDP: a reply elsewhere", &strayed, Want::WrongPath);
        for (what, change) in [
            (
                "token",
                (|mark: &mut Mark| mark.token ^= 1) as fn(&mut Mark),
            ),
            ("sequence number", |mark| mark.sequence += 1),
            ("time", |mark| mark.sent_mono_ns -= 1),
        ] {
            let forged = reply.clone().marked(change);
            self.row(format!("UDP: another {what}"), &forged, Want::Corrupt);
        }
        let (hub, behind) = world.addresses();
        for (what, from, to, want) in [
            ("from elsewhere", next(behind), hub, Want::Elsewhere),
            ("to elsewhere", behind, next(hub), Want::Foreign),
            ("the other way", hub, behind, Want::Foreign),
        ] {
            let other = reply
                .clone()
                .with(|reply| (reply.from, reply.to) = (from, to));
            self.row(format!("UDP: {what}"), &other, want);
        }
        for slot in [0, SLOTS, u32::MAX] {
            let others = reply.clone().marked(|mark| mark.tracker = slot);
            self.row(format!("UDP: of tracker {slot}"), &others, Want::Foreign);
        }
        let retired = world.clone().with(|world| world.tracker.active = 0);
        let what = "UDP: of no tracker any more";
        self.row(what, &self.reply(&retired), Want::Foreign);
        // Each kind of probe has its own reply.
        for (what, sent, answered) in [
            ("UDP answers ICMP", Probe::Icmp, Probe::Udp),
            ("ICMP answers UDP", Probe::Udp, Probe::Icmp),
        ] {
            let asks = world.clone().with(|world| world.tracker.probe = sent);
            let answers = world.clone().with(|world| world.tracker.probe = answered);
            let frame = self.reply(&answers).frame();
            self.frame(what, &self.reply(&asks), frame, Want::Foreign);
        }
        let frame = reply.frame();
        for len in ETHERNET..frame.len() {
            let what = format!("UDP: the first {len} of {} bytes", frame.len());
            self.frame(what, &reply, frame[..len].to_vec(), Want::Foreign);
        }
        if family == V4 {
            let frame = reply.tampered(|packet| packet[8] ^= 1);
            self.frame("UDP: IPv4 checksum", &reply, frame, Want::Corrupt);
            for (what, at, value) in [("first", 6, 0x20), ("later", 7, 4)] {
                let frame = reply.tampered(|packet| {
                    packet[at] = value;
                    packets::mend_ipv4(packet);
                });
                let what = format!("UDP: the {what} fragment");
                self.frame(what, &reply, frame, Want::Foreign);
            }
        }

        // A probe to the hub itself.
        let comes = world.with(|world| {
            world.tracker.proof = abi::Proof::Arrival;
            world.path.returns = [901, 0, 0, 0];
            world.path.arrivals = [902, ARRIVAL, 0, 0];
        });
        let probe = Reply::arrived(&comes, comes.mark(SEQUENCE, self.sent));
        self.row("UDP: a probe", &probe, Want::Counted);
        let moved = probe.clone().with(|probe| probe.ports[0] = 1);
        let what = "UDP: a probe whose source port a NAT changed";
        self.row(what, &moved, Want::Counted);
        let other = probe.clone().with(|probe| probe.ports[1] ^= 1);
        self.row("UDP: a probe to another port", &other, Want::Foreign);
        let forged = probe.clone().marked(|mark| mark.token ^= 1);
        self.row("UDP: a forged probe", &forged, Want::Corrupt);
        let flooded = probe.with(|probe| probe.link.destination = comes.path.next_hop_mac);
        self.row("UDP: a probe on its way", &flooded, Want::Foreign);
        let what = "UDP: a reply where a probe is to arrive";
        self.row(what, &self.reply(&comes), Want::Foreign);
    }

    fn not_in_time(&mut self, family: Family) {
        let world = World::new(family);
        let answered = world.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words[word - world.tracker.window_first as usize] = bit;
            world.state.receive.verdict = 0;
        });
        let reply = self.reply(&answered);
        self.row("a second reply", &reply, Want::Duplicate);

        let impatient = world.clone().with(|world| {
            world.tracker.timeout_ns = 1_000_000;
            world.state.receive.verdict = 0;
        });
        let reply = Reply::new(&impatient, impatient.mark(SEQUENCE, self.sent - 50_000_000));
        self.row("a late reply", &reply, Want::Late);
        let reply = Reply::new(&impatient, impatient.mark(SEQUENCE, 0));
        self.row("a reply from before the beginning", &reply, Want::Late);
        let silent = impatient.with(|world| {
            world.tracker.expects_silence = 1;
            world.state.send.sent = SEQUENCE + 20;
        });
        let late = silent.mark(SEQUENCE, self.sent - 50_000_000);
        let reply = Reply::new(&silent, late);
        let what = "a late reply that must not come at all: it is reported";
        self.row(what, &reply, Want::Late);
        let reported = silent.clone().with(|world| {
            let (word, bit) = world.bit(SEQUENCE);
            world.words[word - world.tracker.window_first as usize] = bit;
        });
        let reply = Reply::new(&reported, late);
        self.row(
            "another one to the same probe: it is not",
            &reply,
            Want::Late,
        );

        for returns in [[0; 4], [901, 902, 903, 904]] {
            let world = world.clone().with(|world| {
                world.path.returns = returns;
                world.state.receive.verdict = 0;
            });
            let reply = self.reply(&world);
            self.row(format!("returns {returns:?}"), &reply, Want::WrongPath);
        }

        for newer in [0, 1] {
            let world = world.clone().with(|world| {
                world.path.returns = [0; 4];
                world.state.trouble.wrong_path_sequence = SEQUENCE + newer;
                world.state.trouble.wrong_path_ifindex = 77;
            });
            let reply = self.reply(&world);
            let what = format!("elsewhere, and one to a probe {newer} later was before");
            self.row(what, &reply, Want::WrongPath);
        }

        // Runs arrive on the parent of the VLAN device by which this reply is to come.
        let tagged = world
            .clone()
            .with(|world| world.path.returns = [901, 0, 0, 0]);
        for (control, want) in [(0x0064, Want::Tagged), (0xe064, Want::Tagged)] {
            let reply = self.reply(&tagged);
            let reply = reply.with(|reply| reply.link.tags = vec![Tag::dot1q(control)]);
            self.row(format!("on the parent, tag {control:#06x}"), &reply, want);
        }
        // A tag without identifier only tells the priority: no VLAN device takes it.
        let reply = self.reply(&tagged);
        let reply = reply.with(|reply| reply.link.tags = vec![Tag::dot1q(0xe000)]);
        self.row("elsewhere with a priority tag", &reply, Want::WrongPath);
    }

    fn not_ours(&mut self, family: Family) {
        let world = World::new(family);
        let reply = self.reply(&world);
        let predecessor = world.clone().with(|world| world.tracker.epoch -= 1);
        let stolen = predecessor.mark(SEQUENCE, self.sent);
        let mut corrupt = |what: &str, reply: Reply| {
            self.row(what, &reply, Want::Corrupt);
        };
        corrupt("wrong token", reply.clone().marked(|mark| mark.token ^= 1));
        corrupt("no token", reply.clone().marked(|mark| mark.token = 0));
        corrupt(
            "wrong token, upper half",
            reply.clone().marked(|mark| mark.token ^= 1 << 63),
        );
        corrupt(
            "another sequence number",
            reply.clone().marked(|mark| mark.sequence += 1),
        );
        corrupt(
            "another time",
            reply.clone().marked(|mark| mark.sent_mono_ns += 1),
        );
        corrupt(
            "the slot's last epoch",
            reply.clone().marked(|mark| *mark = stolen),
        );
        let (hub, behind) = world.addresses();
        for (what, from, to) in [
            ("another source", next(behind), hub),
            ("another destination", behind, next(hub)),
        ] {
            let strange = reply
                .clone()
                .with(|reply| (reply.from, reply.to) = (from, to));
            let strange = strange.marked(|mark| mark.token ^= 1);
            self.row(format!("wrong token, {what}"), &strange, Want::Stranger);
        }
        let strange = reply.clone().with(|reply| reply.from = next(behind));
        self.row("another source", &strange, Want::Elsewhere);
        for newer in [0, 1] {
            let known = world.clone().with(|world| {
                world.state.trouble.complaint_sequence = SEQUENCE + newer;
            });
            let strange = self.reply(&known).with(|reply| reply.from = next(behind));
            let what = format!("another source, and a complaint {newer} later was before");
            self.row(what, &strange, Want::Elsewhere);
        }
        let silent = world
            .clone()
            .with(|world| world.tracker.expects_silence = 1);
        let strange = self.reply(&silent).with(|reply| reply.from = next(behind));
        let what = "what must not come, from another source";
        self.row(what, &strange, Want::CountedWithEvent);
        let mut corrupt = |what: &str, reply: Reply| {
            self.row(what, &reply, Want::Corrupt);
        };
        corrupt(
            "another destination",
            reply.clone().with(|reply| reply.to = next(hub)),
        );
        corrupt("a reply in the direction of a probe", {
            reply
                .clone()
                .with(|reply| (reply.from, reply.to) = (hub, behind))
        });
        corrupt("code 1", reply.clone().with(|reply| reply.echo.code = 1));
        corrupt(
            "code 255",
            reply.clone().with(|reply| reply.echo.code = 255),
        );
        corrupt("a larger payload with something in it", {
            reply.clone().with(|reply| {
                reply.echo.payload.resize(64, 0);
                reply.echo.payload[63] = 1;
            })
        });
        let (other_hub, other_behind) = World::new(other(family)).addresses();
        corrupt("the addresses' other family", {
            reply.clone().with(|reply| {
                (reply.from, reply.to) = (other_behind, other_hub);
                reply.echo.kind = packets::echo_reply(other_hub);
            })
        });

        // A slot that is someone else's is judged by that one's state.
        let theirs = reply.clone().marked(|mark| mark.tracker = OTHER);
        self.row("another tracker's number", &theirs, Want::CorruptOther);
        for slot in [0, SLOT - 1, SLOTS, SLOTS + SLOT, 1 << 31, u32::MAX] {
            let stale = reply.clone().marked(|mark| {
                *mark = Mark {
                    tracker: slot,
                    ..*mark
                };
            });
            self.row(format!("tracker {slot}"), &stale, Want::Stale);
        }
        let retired = world.clone().with(|world| world.tracker.active = 0);
        let reply = self.reply(&retired);
        self.row("a tracker that is not active", &reply, Want::Stale);
        for (what, world) in [
            (
                "a path that does not exist",
                world
                    .clone()
                    .with(|world| world.tracker.path = super::PATHS),
            ),
            (
                "a bit set that does not exist",
                world.with(|world| world.tracker.window_first = super::WORDS),
            ),
        ] {
            let reply = self.reply(&world);
            self.row(what, &reply, Want::Stale);
        }
    }

    fn tampered(&mut self, family: Family) {
        let reply = self.reply(&World::new(family));
        let icmp = header(family);
        for (what, at) in [
            ("ICMP checksum, first byte", icmp + 2),
            ("ICMP checksum, second byte", icmp + 3),
            ("identifier under the checksum", icmp + 4),
            ("sequence number under the checksum", icmp + 7),
            ("time under the checksum", icmp + ECHO + 20),
            ("token under the checksum", icmp + ECHO + 31),
        ] {
            let frame = reply.tampered(|packet| packet[at] ^= 0x10);
            self.frame(what, &reply, frame, Want::Corrupt);
        }
        let zero = reply.tampered(|packet| packet[icmp + 2..icmp + 4].fill(0));
        self.frame("no ICMP checksum", &reply, zero, Want::Corrupt);
        let length_at = match family {
            V4 => 2,
            V6 => 4,
        };
        let full = reply.packet().len() - if family == V6 { IPV6 } else { 0 };
        for len in [0, 1, ECHO, full - MARK, full - 2, full - 1] {
            let frame = reply.tampered(|packet| {
                packet[length_at..length_at + 2].copy_from_slice(&(len as u16).to_be_bytes());
                if family == V4 {
                    packets::mend_ipv4(packet);
                }
            });
            self.frame(format!("length field {len}"), &reply, frame, Want::Corrupt);
        }
    }

    fn foreign(&mut self, family: Family) {
        let world = World::new(family);
        let reply = self.reply(&world);
        let (hub, _) = world.addresses();
        let mut foreign = |what: &dyn std::fmt::Display, reply: Reply| {
            self.row(what, &reply, Want::Foreign);
        };
        for tags in [
            vec![Tag::dot1ad(100)],
            vec![Tag::dot1ad(100), Tag::dot1q(7)],
            vec![Tag::dot1q(100), Tag::dot1q(7)],
            vec![Tag::dot1q(1), Tag::dot1ad(2)],
            vec![Tag::dot1q(1), Tag::dot1q(2), Tag::dot1q(3)],
            vec![Tag {
                protocol: 0x9100,
                control: 5,
            }],
        ] {
            let what = format!("tags {tags:04x?}");
            foreign(&what, reply.clone().with(|reply| reply.link.tags = tags));
        }
        foreign(&"an ordinary ping's reply", {
            reply
                .clone()
                .with(|reply| reply.echo.payload = (0x10..0x40).collect())
        });
        foreign(&"a ping's reply without payload", {
            reply.clone().with(|reply| reply.echo.payload.clear())
        });
        foreign(&"a reply with most of a mark", {
            reply
                .clone()
                .with(|reply| reply.echo.payload.truncate(MARK - 1))
        });
        for at in 0..4 {
            foreign(&format!("byte {at} of the mark is wrong"), {
                reply.clone().with(|reply| reply.echo.payload[at] ^= 0x20)
            });
        }
        foreign(&"the mark one byte on", {
            reply.clone().with(|reply| reply.echo.payload.insert(0, 0))
        });
        foreign(&"a request that bears the mark", {
            reply
                .clone()
                .with(|reply| reply.echo.kind = packets::echo_request(hub))
        });
        let own = packets::echo_reply(hub);
        let others = [
            0, 3, 5, 8, 11, 13, 1, 2, 4, 128, 129, 133, 134, 135, 136, 255,
        ];
        for kind in others.into_iter().filter(|kind| *kind != own) {
            let what = format!("ICMP type {kind} that bears the mark");
            foreign(&what, reply.clone().with(|reply| reply.echo.kind = kind));
        }

        let version = match family {
            V4 => [0x55, 0x65, 0x05, 0xf5],
            V6 => [0x50, 0x40, 0x00, 0xf0],
        };
        for first in version {
            let frame = reply.tampered(|packet| {
                packet[0] = first;
                if family == V4 {
                    // The checksum as for a version 4 header, then the version.
                    packet[0] = 0x45;
                    packets::mend_ipv4(packet);
                    packet[0] = first;
                }
            });
            // `tampered` picks the EtherType by the version: put the family's own.
            let frame = with(frame, |frame| {
                let ethertype: u16 = if family == V4 { 0x0800 } else { 0x86dd };
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            });
            self.frame(
                format!("first byte {first:#x}"),
                &reply,
                frame,
                Want::Foreign,
            );
        }
        let packet = reply.packet();
        for ethertype in [
            0x0000, 0x0026, 0x0806, 0x8847, 0x8863, 0x88cc, 0x9000, 0xffff,
        ] {
            let frame = reply.link.frame(EtherType(ethertype), &packet);
            let what = format!("EtherType {ethertype:#06x}");
            self.frame(what, &reply, frame, Want::Foreign);
        }
        let swapped = if family == V4 {
            EtherTypes::Ipv6
        } else {
            EtherTypes::Ipv4
        };
        let frame = reply.link.frame(swapped, &packet);
        self.frame("the other family's EtherType", &reply, frame, Want::Foreign);
        let message = with(packet, |packet| drop(packet.drain(..header(family))));
        let misplaced = match (reply.from, reply.to) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4 {
                protocol: IpNextHeaderProtocols::Icmpv6,
                ..Ipv4::icmp(source, destination)
            }
            .packet(
                &Echo {
                    kind: 129,
                    ..reply.echo.clone()
                }
                .v4(),
            ),
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let icmp = Echo {
                    kind: 0,
                    ..reply.echo.clone()
                }
                .v4();
                packets::ipv6(source, destination, IpNextHeaderProtocols::Icmp, &icmp)
            }
            _ => message,
        };
        let frame = reply.link.ip(&misplaced);
        self.frame("the other family's ICMP", &reply, frame, Want::Foreign);
    }

    /// Every length that is too short for the mark passes, tagged or not. What is cut after the mark is only
    /// zeros, and counts.
    fn truncated(&mut self, family: Family) {
        for tags in [Vec::new(), vec![Tag::dot1q(0xe000)]] {
            let reply = self
                .reply(&World::new(family))
                .with(|reply| reply.link.tags = tags);
            let full = reply.frame();
            for len in ETHERNET..full.len() {
                let what = format!("the first {len} of {} bytes", full.len());
                self.frame(what, &reply, full[..len].to_vec(), Want::Foreign);
            }
            let larger = reply
                .clone()
                .with(|reply| reply.echo.payload.resize(100, 0));
            let frame = larger.frame();
            for len in [full.len() - 1, full.len(), full.len() + 1, frame.len() - 1] {
                let what = format!("the first {len} of {} bytes", frame.len());
                let want = if len < full.len() {
                    Want::Foreign
                } else {
                    Want::Counted
                };
                self.frame(what, &larger, frame[..len].to_vec(), want);
            }
        }
    }

    fn ipv4_only(&mut self) {
        let world = World::new(V4);
        let reply = self.reply(&world);
        let (IpAddr::V4(hub), IpAddr::V4(behind)) = world.addresses() else {
            return;
        };
        let message = reply.echo.v4();
        let ip = Ipv4::icmp(behind, hub);
        let mut row = |what: String, ip: Ipv4, want: Want| {
            let frame = reply.link.ip(&ip.packet(&message));
            self.frame(what, &reply, frame, want);
        };
        for ttl in [0, 1, 255] {
            row(
                format!("TTL {ttl}"),
                Ipv4 { ttl, ..ip.clone() },
                Want::Counted,
            );
        }
        for flags in [0, 2, 4, 6] {
            row(
                format!("flags {flags}"),
                Ipv4 {
                    flags,
                    ..ip.clone()
                },
                Want::Counted,
            );
        }
        row(
            "an identification".into(),
            Ipv4 {
                identification: 4_711,
                ..ip.clone()
            },
            Want::Counted,
        );
        for (what, flags, fragment_offset) in [
            ("the first fragment", 1, 0),
            ("the first fragment, and don't fragment", 3, 0),
            ("a middle fragment", 1, 1),
            ("the last fragment", 0, 1),
            ("the last fragment, far out", 0, 0x1fff),
            ("a fragment at 256", 0, 0x100),
        ] {
            row(
                what.into(),
                Ipv4 {
                    flags,
                    fragment_offset,
                    ..ip.clone()
                },
                Want::Foreign,
            );
        }
        for words in 6..=15 {
            // No-operation options, and an end of the list.
            let mut options = vec![1; (words - 5) * 4];
            options.pop();
            options.push(0);
            row(
                format!("header length {words}"),
                Ipv4 {
                    options,
                    ..ip.clone()
                },
                Want::Foreign,
            );
        }
        for protocol in [0, 2, 4, 6, 17, 41, 47, 50, 58, 255] {
            let protocol = IpNextHeaderProtocol(protocol);
            row(
                format!("protocol {protocol:?}"),
                Ipv4 {
                    protocol,
                    ..ip.clone()
                },
                Want::Foreign,
            );
        }
        for at in [1, 4, 8, 10, 11] {
            let frame = reply.tampered(|packet| packet[at] ^= 1);
            let what = format!("IPv4 header under the checksum, byte {at}");
            self.frame(what, &reply, frame, Want::Corrupt);
        }
        let frame = reply.tampered(|packet| packet[10..12].fill(0));
        self.frame("no IPv4 checksum", &reply, frame, Want::Corrupt);
        for words in 0..5u8 {
            let frame = reply.tampered(|packet| packet[0] = 0x40 | words);
            self.frame(
                format!("header length {words}"),
                &reply,
                frame,
                Want::Foreign,
            );
        }
        let nested = Ipv4 {
            protocol: IpNextHeaderProtocols::Ipv4,
            ..ip.clone()
        }
        .packet(&ip.packet(&message));
        self.frame(
            "a reply in a tunnel",
            &reply,
            reply.link.ip(&nested),
            Want::Foreign,
        );
        let mut quoted = reply.clone();
        quoted.echo.kind = 3;
        quoted.echo.payload = reply.packet();
        let what = "an ICMP error that quotes a reply";
        self.frame(what, &reply, quoted.frame(), Want::Refused);
    }

    fn ipv6_only(&mut self) {
        let world = World::new(V6);
        let reply = self.reply(&world);
        let (IpAddr::V6(hub), IpAddr::V6(behind)) = world.addresses() else {
            return;
        };
        let message = reply.echo.v6(behind, hub);
        // Each with the next header ICMPv6 and eight bytes, as the protocols have it at the least.
        for (what, protocol, extension) in [
            (
                "hop-by-hop options",
                IpNextHeaderProtocols::Hopopt,
                [58, 0, 1, 4, 0, 0, 0, 0],
            ),
            (
                "routing",
                IpNextHeaderProtocols::Ipv6Route,
                [58, 0, 4, 0, 0, 0, 0, 0],
            ),
            (
                "the first fragment",
                IpNextHeaderProtocols::Ipv6Frag,
                [58, 0, 0, 1, 0, 0, 0, 9],
            ),
            (
                "the only fragment",
                IpNextHeaderProtocols::Ipv6Frag,
                [58, 0, 0, 0, 0, 0, 0, 9],
            ),
            (
                "a later fragment",
                IpNextHeaderProtocols::Ipv6Frag,
                [58, 0, 0, 8, 0, 0, 0, 9],
            ),
            (
                "authentication",
                IpNextHeaderProtocols::Ah,
                [58, 0, 0, 0, 0, 0, 0, 1],
            ),
            (
                "destination options",
                IpNextHeaderProtocols::Ipv6Opts,
                [58, 0, 1, 4, 0, 0, 0, 0],
            ),
            (
                "mobility",
                IpNextHeaderProtocol(135),
                [58, 0, 0, 0, 0, 0, 0, 0],
            ),
        ] {
            let packet = packets::ipv6(behind, hub, protocol, &[&extension[..], &message].concat());
            let frame = reply.link.ip(&packet);
            self.frame(
                format!("extension header: {what}"),
                &reply,
                frame,
                Want::Foreign,
            );
        }
        for next in [0, 1, 6, 17, 43, 44, 50, 51, 59, 60, 255] {
            let protocol = IpNextHeaderProtocol(next);
            let frame = reply
                .link
                .ip(&packets::ipv6(behind, hub, protocol, &message));
            self.frame(format!("next header {next}"), &reply, frame, Want::Foreign);
        }
        for (what, at, value) in [
            ("a traffic class", 0, 0x6f),
            ("a flow label", 3, 0xff),
            ("hop limit 0", 7, 0),
            ("hop limit 255", 7, 255),
        ] {
            let frame = reply.tampered(|packet| packet[at] = value);
            self.frame(what, &reply, frame, Want::Counted);
        }
        // A length that is too small, and a checksum that agrees with it.
        let full = message.len() as u16;
        for len in [0, 1, ECHO as u16, full - 1] {
            let frame = reply.tampered(|packet| {
                packet[4..6].copy_from_slice(&len.to_be_bytes());
                // What the sum loses, its complement gains.
                let at = IPV6 + 2..IPV6 + 4;
                let checksum = u16::from_be_bytes([packet[at.start], packet[at.start + 1]]);
                let (sum, carry) = checksum.overflowing_add(full - len);
                packet[at].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            });
            let what = format!("length field {len} under the checksum");
            self.frame(what, &reply, frame, Want::Corrupt);
        }
        // The checksum of another family's rules: without pseudo-header.
        let frame = reply.link.ip(&packets::ipv6(
            behind,
            hub,
            IpNextHeaderProtocols::Icmpv6,
            &reply.echo.v4(),
        ));
        self.frame(
            "a checksum without pseudo-header",
            &reply,
            frame,
            Want::Corrupt,
        );
    }

    fn other_protocols(&mut self) {
        let world = World::new(V4);
        let reply = self.reply(&world);
        let (IpAddr::V4(hub), IpAddr::V4(behind)) = world.addresses() else {
            return;
        };
        let mark = &reply.echo.payload;
        for (what, frame) in [
            (
                "UDP that bears the mark",
                reply.link.ip(&packets::udp(behind, hub, mark)),
            ),
            (
                "TCP that bears the mark",
                reply.link.ip(&packets::tcp(behind, hub, mark)),
            ),
            ("ARP", packets::arp(&reply.link, behind, hub)),
            (
                "a bare Ethernet header",
                reply.link.frame(EtherTypes::Ipv4, &[]),
            ),
            ("zeros", vec![0; 74]),
            ("ones", vec![0xff; 74]),
            ("the mark everywhere", b"TRKR".repeat(30)),
        ] {
            self.frame(what, &reply, frame, Want::Foreign);
        }
    }
}

pub const fn header(family: Family) -> usize {
    match family {
        V4 => IPV4,
        V6 => IPV6,
    }
}

const fn other(family: Family) -> Family {
    match family {
        V4 => V6,
        V6 => V4,
    }
}

/// The next address.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + 1).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + 1).into(),
    }
}

/// Runs all rows through `program` and checks action, frame, counters, state, bit sets and events of each.
pub fn check_table(program: &'static str, actions: Actions) -> Result<()> {
    let mut object = Object::load(program)?;
    let mut rows = rows();
    // Without an Ethernet header there is nothing to check, and no path says so.
    rows.retain(|row| row.world.path.checks_hop == 0 || actions.sees_hop);
    let (rows, refused): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| object.takes(&row.frame));
    for mut row in rows.iter().cloned() {
        row.want = actions.want(&row.frame, row.want);
        row.world.install(&mut object)?;
        let before = object.snapshot()?;
        let ran = object.run(&row.frame)?;
        row.check(&mut object, before, &ran, actions)?;
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
    /// Hops that the frame's packet has left.
    fn ttl(&self) -> u8 {
        let is_tagged = self.frame[12..ETHERNET] == [0x81, 0x00];
        let packet = &self.frame[ETHERNET + if is_tagged { packets::TAG } else { 0 }..];
        packet[if packet[0] >> 4 == 4 { 8 } else { 7 }]
    }

    /// Holds what a run did, and what the maps hold now, against what should be.
    pub fn check(
        &self,
        object: &mut Object,
        before: super::Snapshot,
        ran: &Ran,
        actions: Actions,
    ) -> Result<()> {
        let what = self.what.as_str();
        let action = if self.want.is_consumed() {
            actions.consume
        } else {
            actions.pass
        };
        assert_eq!(ran.action, action, "{what}: action");
        assert_eq!(ran.frame, self.frame, "{what}: the frame was altered");

        let is = object.snapshot()?;
        let mut should = before;
        let state = |slot: u32| slot as usize;
        let tracker = &mut should.states[state(SLOT)];
        let seen = &is.states[state(SLOT)];
        let rtt = |at: &u64| at.saturating_sub(self.mark.sent_mono_ns);
        // A late reply that must not come at all.
        let mut is_leak = false;
        match self.want {
            Want::Foreign => {}
            Want::Stale => should.counters.reply_stale += 1,
            Want::Stranger | Want::StrangerOther => {
                should.counters.reply_corrupt += 1;
                let slot = match self.want {
                    Want::Stranger => SLOT,
                    _ => OTHER,
                };
                should.states[state(slot)].trouble.corrupt += 1;
            }
            Want::Corrupt | Want::CorruptOther => {
                should.counters.reply_corrupt += 1;
                let slot = match self.want {
                    Want::Corrupt => SLOT,
                    _ => OTHER,
                };
                let at = is.states[state(slot)].trouble.corrupt_mono_ns;
                assert!(
                    ran.mono_ns.contains(&at),
                    "{what}: corrupt at {at}, ran {:?}",
                    ran.mono_ns
                );
                let trouble = &mut should.states[state(slot)].trouble;
                trouble.corrupt += 1;
                trouble.corrupt_mono_ns = at;
            }
            Want::Tagged => should.counters.reply_tagged += 1,
            Want::WrongPath => {
                should.counters.reply_wrong_path += 1;
                tracker.trouble.wrong_path += 1;
                if self.mark.sequence >= tracker.trouble.wrong_path_sequence {
                    tracker.trouble.wrong_path_ttl = self.ttl();
                    tracker.trouble.wrong_path_ifindex = ARRIVAL;
                    tracker.trouble.wrong_path_sequence = self.mark.sequence;
                }
            }
            Want::Elsewhere => {
                should.counters.reply_elsewhere += 1;
                tracker.receive.elsewhere += 1;
                let trouble = &mut tracker.trouble;
                if self.mark.sequence >= trouble.complaint_sequence {
                    let sender = packets::read_marked(&self.frame).expect("a reply").source;
                    trouble.complaint_from = match sender {
                        IpAddr::V4(sender) => super::widen(sender.octets()),
                        IpAddr::V6(sender) => sender.octets(),
                    };
                    trouble.complaint = Complaint::Elsewhere;
                    [trouble.complaint_type, trouble.complaint_code] = [0; 2];
                    trouble.complaint_sequence = self.mark.sequence;
                }
            }
            Want::Refused | Want::Closed => {
                should.counters.probe_refused += 1;
                let error = packets::read_error(&self.frame).expect("an error");
                let trouble = &mut tracker.trouble;
                if self.mark.sequence >= trouble.complaint_sequence {
                    (trouble.complaint, trouble.complaint_from) = match error.source {
                        IpAddr::V4(source) => (Complaint::Icmp, super::widen(source.octets())),
                        IpAddr::V6(source) => (Complaint::Icmpv6, source.octets()),
                    };
                    if self.want == Want::Closed {
                        trouble.complaint = Complaint::Port;
                    }
                    [trouble.complaint_type, trouble.complaint_code] = error.kind;
                    trouble.complaint_sequence = self.mark.sequence;
                }
            }
            Want::Late => {
                should.counters.reply_late += 1;
                tracker.trouble.late += 1;
                is_leak = self.world.tracker.expects_silence != 0;
                if is_leak {
                    let (word, bit) = self.world.bit(self.mark.sequence);
                    is_leak = should.words[word] & bit == 0;
                    should.words[word] |= bit;
                }
            }
            Want::Duplicate => {
                should.counters.reply_duplicate += 1;
                tracker.trouble.duplicate += 1;
            }
            Want::Counted | Want::CountedWithEvent => {
                should.counters.reply_counted += 1;
                let last = seen.receive.rtt_last_ns;
                let bounds = rtt(ran.mono_ns.start())..=rtt(ran.mono_ns.end());
                assert!(
                    bounds.contains(&last),
                    "{what}: round trip {last}, should be in {bounds:?}"
                );
                let receive = &mut tracker.receive;
                receive.rtt_last_ns = last;
                receive.rtt_sum_ns += last;
                receive.rtt_min_ns = match (receive.received, receive.rtt_min_ns) {
                    (0, _) => last,
                    (_, min) => min.min(last),
                };
                receive.rtt_max_ns = receive.rtt_max_ns.max(last);
                receive.received += 1;
                receive.ttl = self.ttl();
                if actions.sees_hop {
                    receive.hop_mac.copy_from_slice(&self.frame[6..12]);
                }
                let (word, bit) = self.world.bit(self.mark.sequence);
                assert_eq!(should.words[word] & bit, 0, "{what}: the row is wrong");
                should.words[word] |= bit;
            }
        }
        if !is.is_same(&should) {
            assert_same(what, "maps", &is, &should);
        }

        let events = object.events()?;
        let expected = if self.want == Want::CountedWithEvent {
            let received = events.first().map_or(0, |event| event.received_mono_ns);
            assert_eq!(
                rtt(&received),
                seen.receive.rtt_last_ns,
                "{what}: the event's time"
            );
            vec![abi::Event {
                tracker: SLOT,
                epoch: self.world.tracker.epoch,
                sequence: self.mark.sequence,
                received_mono_ns: received,
            }]
        } else if is_leak {
            let received = events.first().map_or(0, |event| event.received_mono_ns);
            assert!(ran.mono_ns.contains(&received), "{what}: the event's time");
            vec![abi::Event {
                tracker: SLOT,
                epoch: self.world.tracker.epoch,
                sequence: self.mark.sequence,
                received_mono_ns: received,
            }]
        } else {
            Vec::new()
        };
        assert_same(what, "events", &events, &expected);
        Ok(())
    }
}

/// Packets that do not fit one buffer of a driver: replies count, and others' packets stay as they were.
pub fn check_large(program: &'static str, actions: Actions) -> Result<()> {
    let mut object = Object::load(program)?;
    for family in [V4, V6] {
        let world = World::new(family);
        let mark = world.mark(1, now_mono_ns());
        let reply = Reply::new(&world, mark).with(|reply| {
            reply.echo.payload = mark.payload(8_000);
        });
        let foreign = reply.clone().with(|reply| {
            reply.echo.payload = vec![0x55; 8_000];
        });
        for (what, reply, want) in [
            ("a large reply", reply, Want::Counted),
            ("a large foreign reply", foreign, Want::Foreign),
        ] {
            let row = Row {
                what: format!("{what}, {family:?}"),
                frame: reply.frame(),
                world: world.clone(),
                mark,
                want,
            };
            row.world.install(&mut object)?;
            let before = object.snapshot()?;
            let ran = object.run(&row.frame)?;
            row.check(&mut object, before, &ran, actions)?;
        }
    }
    Ok(())
}

/// A full ring buffer loses events and nothing else.
pub fn check_full_ring(program: &'static str, actions: Actions) -> Result<()> {
    let mut object = Object::load(program)?;
    let world = World::new(V4).with(|world| {
        world.state = abi::State::default();
        world.tracker.window_mask = 3;
    });
    world.install(&mut object)?;
    // More than the 4096 bytes hold, and no more than the bit set does.
    let replies = 200;
    for sequence in 1..=replies {
        let mark = world.mark(sequence, now_mono_ns());
        let ran = object.run(&Reply::new(&world, mark).frame())?;
        assert_eq!(ran.action, actions.consume, "reply {sequence}");
    }
    let counters = object.counters()?;
    let events = object.events()?;
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert!(events.len() > 100, "{} events came through", events.len());
    assert_eq!(sequences, (1..=events.len() as u64).collect::<Vec<_>>());
    let should = abi::Counters {
        reply_counted: replies,
        event_dropped: replies - events.len() as u64,
        ..Default::default()
    };
    assert!(should.event_dropped > 0, "the ring buffer was never full");
    assert_eq!(counters, should);
    assert_eq!(object.states.get(&SLOT, 0)?.receive.received, replies);

    // With room again, events come again.
    let reply = Reply::new(&world, world.mark(replies + 1, now_mono_ns()));
    object.run(&reply.frame())?;
    assert_eq!(object.events()?.len(), 1);
    Ok(())
}

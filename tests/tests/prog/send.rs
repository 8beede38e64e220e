//! The send program, frame by frame: what leaves for a tracker and a path, and what is refused.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fixtures::{
    ARRIVAL, OTHER, Object, PATHS, SLOT, SLOTS, WORDS, World, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    assert_same,
};
use anyhow::{Context as _, Result, bail};
use tracker_ebpf::abi::{self, Egress, Family};
use tracker_ebpf::probe;
use tracker_lab::Namespace;
use tracker_lab::netns::Owner;
use tracker_lab::packets;

/// What frames hold before the program runs: nothing of it may be seen on the wire.
const OLD: [u8; probe::LEN_V4] = [0xaa; probe::LEN_V4];

struct Sends {
    what: String,
    world: World,
    /// The frame's bytes before the run.
    old: Vec<u8>,
}

/// All probes that leave: families, tags, sizes, ways out, and where in its bit set a tracker is.
fn sends() -> Vec<Sends> {
    let mut rows = Vec::new();
    let mut row = |what: String, world: World, old: &[u8]| {
        let family = world.tracker.family;
        let what = format!("{family:?}: {what}");
        rows.push(Sends {
            what,
            world,
            old: old.to_vec(),
        });
    };
    for family in [Family::Ipv4, Family::Ipv6] {
        for (rotates, port) in [(0, 7), (1, 7), (1, 65_535), (0, 0)] {
            for (probe, sent) in [abi::Probe::Icmp, abi::Probe::Udp]
                .into_iter()
                .flat_map(|probe| [0, 1_000, 65_535, 1 << 40].map(|sent| (probe, sent)))
            {
                let world = World::new(family).with(|world| {
                    world.tracker.probe = probe.into();
                    world.tracker.rotates = rotates;
                    world.tracker.port = port;
                    world.state.send.sent = sent;
                });
                let what = format!("{probe:?} to {port}, rotates {rotates}, {sent} sent before");
                row(what, world, &OLD);
            }
        }
        for dscp in [1, 8, 46, 63] {
            for vlan in [0, 0xe064] {
                let world = World::new(family).with(|world| {
                    world.tracker.dscp = dscp;
                    world.path.vlan = vlan;
                });
                row(format!("DSCP {dscp}, tag {vlan:#x}"), world, &OLD);
            }
        }
        for payload in [32, 33, 34, 63, 64, 1_000, 1_472] {
            for vlan in [0, 100] {
                let world = World::new(family).with(|world| {
                    world.tracker.probe = abi::Probe::Udp.into();
                    world.tracker.payload = payload;
                    world.path.vlan = vlan;
                });
                row(format!("UDP, tag {vlan}, {payload} bytes"), world, &OLD);
            }
        }
        let world = World::new(family);
        for egress in [Egress::XdpRedirect, Egress::TcRedirect] {
            for vlan in [0, 1, 100, 0xefff] {
                for payload in [32, 33, 34, 63, 64, 1_000, 1_472] {
                    let world = world.clone().with(|world| {
                        world.path.egress = egress.into();
                        world.path.vlan = vlan;
                        world.tracker.payload = payload;
                    });
                    let what = format!("{egress:?}, tag {vlan:#x}, {payload} bytes");
                    row(what, world, &OLD);
                }
            }
        }
        for sent in [
            0,
            1,
            62,
            63,
            64,
            126,
            127,
            191,
            255,
            256,
            65_534,
            65_535,
            1 << 40,
        ] {
            let world = world.clone().with(|world| world.state.send.sent = sent);
            row(format!("{sent} sent before"), world, &OLD);
        }
        let narrow = world.clone().with(|world| {
            world.tracker.window_mask = 0;
            world.state.send.sent = 127;
        });
        row("a bit set of one word".into(), narrow, &OLD);
        for len in [14, 15, 60, 73, 75, 93, 95, 1_500, 3_000] {
            row(
                format!("out of a frame of {len} bytes"),
                world.clone(),
                &vec![0xaa; len],
            );
        }
        for (what, change) in [
            (
                "identifier 0",
                (|world| world.tracker.flow_first = 0) as fn(&mut World),
            ),
            ("identifier ffff", |world| world.tracker.flow_first = 0xffff),
            ("epoch 0", |world| world.tracker.epoch = 0),
            ("a timeout of 0", |world| world.tracker.timeout_ns = 0),
            ("from and to all ones", |world| {
                world.tracker.source = [0xff; 16];
                world.tracker.behind = [0xff; 16];
            }),
            ("other link addresses", |world| {
                world.path.next_hop_mac = [0, 1, 2, 3, 4, 5];
                world.path.source_mac = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54];
            }),
            ("no returns", |world| world.path.returns = [0; 4]),
        ] {
            row(what.into(), world.clone().with(change), &OLD);
        }
    }
    rows
}

#[test]
fn each_probe_is_complete() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::SEND)?;
    object.devices.insert(ARRIVAL, ARRIVAL, None, 0)?;
    let rows = sends();
    for Sends { what, world, old } in &rows {
        let world = world.clone().with(|world| world.words = [u64::MAX; 4]);
        world.install(&mut object)?;
        object.set_batch(&[SLOT])?;
        let before = object.snapshot()?;
        let ran = object.run(old)?;
        let is = object.snapshot()?;

        let action = match world.path.egress.get() {
            Egress::XdpRedirect => XDP_REDIRECT,
            Egress::TcRedirect => XDP_PASS,
            Egress::None => bail!("{what}: the row is wrong"),
        };
        assert_eq!(ran.action, action, "{what}: action");

        // What it says, as far as it can be known: all but the time.
        let seen = packets::read_marked(&ran.frame)
            .with_context(|| format!("{what}: no probe in {:02x?}", ran.frame))?;
        let sequence = world.state.send.sent + 1;
        let sent_mono_ns = seen.probe_header.sent_mono_ns;
        assert!(
            ran.mono_ns.contains(&sent_mono_ns),
            "{what}: sent at {sent_mono_ns}, ran {:?}",
            ran.mono_ns
        );
        assert!(
            seen.checksums,
            "{what}: wrong checksum in {:02x?}",
            ran.frame
        );
        let probe_header = world.probe_header(sequence, sent_mono_ns);
        let low = packets::ProbeHeader {
            sequence: u64::from(sequence as u32),
            ..probe_header
        };
        assert_eq!(seen.probe_header, low, "{what}: probe_header");
        let frame = world.probe(probe_header);
        assert_eq!(ran.frame, frame, "{what}: frame");

        let mut should = before;
        should.counters.send_built += 1;
        should.cursor.next = 1;
        let tracker = &mut should.states[SLOT as usize];
        tracker.send.sent = sequence;
        tracker.send.sent_mono_ns = sent_mono_ns;
        if sequence == 1 || sequence % 64 == 0 {
            should.words[world.bit(sequence).0] = 0;
        }
        assert_same(what, "maps", &is, &should);
    }
    assert!(object.events()?.is_empty());
    println!("{} rows", rows.len());
    Ok(())
}

/// Probes that bear no probe header, and the ends of connections: each byte, the time that is kept, and nothing else.
#[test]
fn each_unmarked_frame_is_complete() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::SEND)?;
    object.devices.insert(ARRIVAL, ARRIVAL, None, 0)?;
    let mut worlds = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        for (probe, payload) in [
            (abi::Probe::Tcp, 20),
            (abi::Probe::Stamp, 44),
            (abi::Probe::Stamp, 48),
            (abi::Probe::Stamp, 49),
            (abi::Probe::Stamp, 1_452),
        ] {
            for (egress, vlan) in [
                (Egress::XdpRedirect, 0),
                (Egress::XdpRedirect, 100),
                (Egress::TcRedirect, 0),
            ] {
                for sent in [
                    0,
                    1,
                    63,
                    255,
                    256,
                    1_000,
                    65_535,
                    (1 << 32) - 1,
                    1 << 32,
                    1 << 40,
                ] {
                    for (flow_first, rotates) in [(61_440, 0), (63_488, 1)] {
                        worlds.push(World::new(family).with(|world| {
                            world.tracker.probe = probe.into();
                            world.tracker.payload = payload;
                            world.tracker.flow_first = flow_first;
                            world.tracker.rotates = rotates;
                            world.tracker.dscp = if rotates == 0 { 0 } else { 46 };
                            world.path.egress = egress.into();
                            world.path.vlan = vlan;
                            world.state.send.sent = sent;
                            world.words = [u64::MAX; 4];
                        }));
                    }
                }
            }
        }
    }
    for world in &worlds {
        let tracker = &world.tracker;
        let (sent, egress) = (world.state.send.sent, world.path.egress);
        let what = format!(
            "{:?} {:?} {egress:?} after {sent}",
            tracker.family, tracker.probe
        );
        let action = match egress.get() {
            Egress::XdpRedirect => XDP_REDIRECT,
            _ => XDP_PASS,
        };
        world.install(&mut object)?;
        object.set_batch(&[SLOT])?;
        let before = object.snapshot()?;
        let ran = object.run(&OLD)?;
        let is = object.snapshot()?;
        let sequence = sent + 1;
        assert_eq!(ran.action, action, "{what}: action");
        assert_eq!(
            ran.frame,
            world.probe(world.probe_header(sequence, 0)),
            "{what}: frame"
        );
        let sent_mono_ns = is.states[SLOT as usize].send.sent_mono_ns;
        assert!(
            ran.mono_ns.contains(&sent_mono_ns),
            "{what}: sent at {sent_mono_ns}"
        );
        let mut should = before;
        should.counters.send_built += 1;
        should.cursor.next = 1;
        should.states[SLOT as usize].send.sent = sequence;
        should.states[SLOT as usize].send.sent_mono_ns = sent_mono_ns;
        if sequence == 1 || sequence % 64 == 0 {
            should.words[world.bit(sequence).0] = 0;
        }
        should.words[12 + (sequence % 4) as usize] = sent_mono_ns;
        assert_same(&what, "maps", &is, &should);

        // The end of what an answer to this one, or an earlier one, would open.
        for back in [0, 1, 200] {
            let Some(ended) = sequence.checked_sub(back).filter(|ended| *ended > 0) else {
                continue;
            };
            let flow = world.flow(ended);
            object.set_jobs(&[abi::Job::reset(SLOT, ended, flow)])?;
            let before = object.snapshot()?;
            let ran = object.run(&OLD)?;
            let mut should = before;
            should.cursor.next = 1;
            if tracker.probe == abi::Probe::Tcp.into() {
                assert_eq!(ran.action, action, "{what}: action of a reset");
                assert_eq!(ran.frame, reset(world, ended), "{what}: reset of {ended}");
                should.counters.send_built += 1;
            } else {
                assert_eq!(ran.action, XDP_DROP, "{what}: there is no connection");
                should.counters.send_inactive += 1;
            }
            assert_same(&what, "maps after a reset", &object.snapshot()?, &should);

            // The SYN once more, from another port: the same number, and nothing is counted.
            let flow = world.flow(ended) ^ 2;
            object.set_jobs(&[abi::Job::again(SLOT, ended, flow)])?;
            let ran = object.run(&OLD)?;
            if tracker.probe == abi::Probe::Tcp.into() {
                let other = world.clone().with(|world| {
                    world.tracker.flow_first = flow;
                    world.tracker.rotates = 0;
                });
                assert_eq!(ran.action, action, "{what}: action of a SYN sent again");
                let syn = other.probe(other.probe_header(ended, 0));
                assert_eq!(ran.frame, syn, "{what}: {ended} again");
                should.counters.send_built += 1;
            } else {
                assert_eq!(ran.action, XDP_DROP, "{what}: there is no SYN");
                should.counters.send_inactive += 1;
            }
            assert_same(
                &what,
                "maps after a SYN sent again",
                &object.snapshot()?,
                &should,
            );
        }
    }
    assert!(object.events()?.is_empty());
    println!("{} rows", worlds.len());
    Ok(())
}

/// The end of a connection, as it has to leave: by XDP in a frame of the SYN's size, which no driver has to pad.
fn reset(world: &World, sequence: u64) -> Vec<u8> {
    let (hub, behind) = world.addresses();
    let ports = [world.flow(sequence), world.tracker.port];
    let numbers = [world.initial_sequence(sequence).wrapping_add(1), 0];
    let segment = packets::segment([hub, behind], ports, numbers, 0x04, 0, &[]);
    let probe = world.probe(world.probe_header(sequence, 0));
    let link = if world.path.vlan == 0 { 14 } else { 18 };
    let mut frame = world.classify([&probe[..link], &segment].concat());
    if world.path.egress == Egress::XdpRedirect.into() {
        frame.resize(probe.len(), 0);
        assert!(frame.len() >= 60);
    }
    frame
}

type Count = fn(&mut abi::Counters) -> &mut u64;

/// Frames that come to nothing: dropped, counted, and neither a sequence number nor a time is spent.
#[test]
fn each_refusal_is_counted_and_spends_nothing() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::SEND)?;
    object.devices.insert(ARRIVAL, ARRIVAL, None, 0)?;
    let inactive: Count = |counters| &mut counters.send_inactive;
    let no_path: Count = |counters| &mut counters.send_no_path;
    let failed: Count = |counters| &mut counters.send_failed;
    let idle: Count = |counters| &mut counters.send_idle;
    let change = |change: fn(&mut World)| move |world: World| world.with(change);
    let same = change(|_| ());
    let one = abi::Cursor { next: 0, end: 1 };
    let at = |next, end| abi::Cursor { next, end };

    for family in [Family::Ipv4, Family::Ipv6] {
        let rows = [
            (
                "a slot that is not active",
                change(|world| world.tracker.active = 0),
                SLOT,
                one,
                inactive,
            ),
            ("a slot never used", same, 0, one, inactive),
            (
                "the first slot that does not exist",
                same,
                SLOTS,
                one,
                inactive,
            ),
            (
                "the last slot that does not exist",
                same,
                u32::MAX,
                one,
                inactive,
            ),
            (
                "nowhere to go",
                change(|world| world.path.egress = Egress::None.into()),
                SLOT,
                one,
                no_path,
            ),
            (
                "a path that does not exist",
                change(|world| world.tracker.path = PATHS),
                SLOT,
                one,
                no_path,
            ),
            (
                "a path never used",
                change(|world| world.tracker.path = 0),
                SLOT,
                one,
                no_path,
            ),
            (
                "a device that is no redirect target",
                change(|world| world.path.ifindex = 7_777),
                SLOT,
                one,
                failed,
            ),
            (
                "no device",
                change(|world| world.path.ifindex = 0),
                SLOT,
                one,
                failed,
            ),
            (
                "a payload that no frame holds",
                change(|world| world.tracker.payload = 3_600),
                SLOT,
                one,
                failed,
            ),
            (
                "the largest payload",
                change(|world| world.tracker.payload = u16::MAX),
                SLOT,
                one,
                failed,
            ),
            (
                "a bit set that does not exist, to be cleared",
                change(|world| {
                    world.tracker.window_first = WORDS;
                    world.state.send.sent = 63;
                }),
                SLOT,
                one,
                failed,
            ),
            ("an empty batch", same, SLOT, at(0, 0), idle),
            ("a batch that is through", same, SLOT, at(1, 1), idle),
            ("a cursor beyond the batch", same, SLOT, at(9, 3), idle),
        ];
        for (what, change, slot, cursor, count) in rows {
            let what = format!("{family:?}: {what}");
            let world = change(World::new(family));
            world.install(&mut object)?;
            object.set_batch(&[slot])?;
            object.set_cursor(cursor)?;
            let mut should = object.snapshot()?;
            let ran = object.run(&OLD)?;
            assert_eq!(ran.action, XDP_DROP, "{what}: action");
            *count(&mut should.counters) += 1;
            if cursor.next < cursor.end {
                should.cursor.next += 1;
            }
            assert_same(&what, "maps", &object.snapshot()?, &should);
        }
    }
    Ok(())
}

#[test]
fn fuzz_what_leaves_is_a_whole_probe() -> Result<()> {
    tracker_lab::needs_root!();
    crate::fixtures::fuzz_send::check_send(100)
}

/// Once the device is a target again, the same sequence number leaves.
#[test]
fn a_refused_sequence_number_is_used_later() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::SEND)?;
    let world = World::new(Family::Ipv4);
    world.install(&mut object)?;
    object.set_batch(&[SLOT, SLOT, SLOT])?;
    assert_eq!(object.run(&OLD)?.action, XDP_DROP);
    object.devices.insert(ARRIVAL, ARRIVAL, None, 0)?;
    for expected in [1_001, 1_002] {
        let ran = object.run(&OLD)?;
        assert_eq!(ran.action, XDP_REDIRECT);
        let sequence = packets::read_marked(&ran.frame).map(|seen| seen.probe_header.sequence);
        assert_eq!(sequence, Some(expected));
    }
    let should = abi::Counters {
        send_failed: 1,
        send_built: 2,
        ..Default::default()
    };
    assert_eq!(object.counters()?, should);
    Ok(())
}

/// The cursor walks through the batch in its order, once, and the batch's end in the map is no end.
#[test]
fn a_batch_is_sent_in_its_order() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::SEND)?;
    let world =
        World::new(Family::Ipv4).with(|world| world.path.egress = Egress::TcRedirect.into());
    world.install(&mut object)?;
    let batch = [SLOT, OTHER, OTHER, SLOT, OTHER];
    object.set_batch(&batch)?;
    let mut sent = Vec::new();
    for _ in 0..batch.len() + 3 {
        let ran = object.run(&OLD)?;
        if ran.action == XDP_PASS {
            sent.extend(packets::read_marked(&ran.frame).map(|seen| seen.probe_header.tracker));
        }
    }
    assert_eq!(sent, batch);
    let should = abi::Counters {
        send_built: 5,
        send_idle: 3,
        ..Default::default()
    };
    assert_eq!(object.counters()?, should);

    object.set_batch(&[OTHER])?;
    let next = abi::BATCH_MAX;
    object.set_cursor(abi::Cursor {
        next,
        end: next + 1,
    })?;
    let ran = object.run(&OLD)?;
    let slot = packets::read_marked(&ran.frame).map(|seen| seen.probe_header.tracker);
    assert_eq!((ran.action, slot), (XDP_PASS, Some(OTHER)));
    Ok(())
}

/// Live frames: the kernel hands the program frames that it used before, with what was in them. Long and short
/// probes take turns, and each that arrives is complete, with zeros where zeros belong.
#[test]
fn recycled_frames_show_nothing_of_the_last_probe() -> Result<()> {
    tracker_lab::needs_root!();
    let owner = Owner::new()?;
    let hub = Namespace::new(&owner, "send")?;
    hub.ip("link add p0 type veth peer name p1\nlink set p0 up\nlink set p1 up\n")?;
    hub.enter(|| {
        let mut object = Object::load(abi::program::SEND)?;
        let worlds: Vec<World> = [
            (Family::Ipv4, 1_400, 0),
            (Family::Ipv6, 32, 0),
            (Family::Ipv4, 33, 0),
            (Family::Ipv6, 1_000, 0),
            (Family::Ipv4, 32, 0),
            (Family::Ipv4, 600, 0),
        ]
        .into_iter()
        .map(|(family, payload, vlan)| {
            World::new(family).with(|world| {
                world.tracker.payload = payload;
                world.path.vlan = vlan;
                world.path.egress = Egress::TcRedirect.into();
            })
        })
        .collect();
        for (slot, world) in (0..).zip(&worlds) {
            object.trackers.set(slot, world.tracker, 0)?;
            object.paths.set(
                world.tracker.path,
                crate::fixtures::entry(world.path, true),
                0,
            )?;
        }
        let ifindex = nix::net::if_::if_nametoindex("p0")?;
        let tap = Tap::new(ifindex)?;
        let count = worlds.len() as u64;
        let each = u64::from(abi::BATCH_MAX) / count;
        let slots: Vec<u32> = (0..each * count).map(|at| (at % count) as u32).collect();
        let (mut seen_in_all, mut used_before) = (0, 0);
        for round in 1..=1_000 {
            object.set_batch(&slots)?;
            let frames = tap.during(|| object.run_live(&OLD, slots.len() as u32, ifindex))?;
            assert_eq!(object.counters()?.send_built, round * each * count);
            for frame in &frames {
                let seen = packets::read_marked(frame).context("not a probe")?;
                let slot = seen.probe_header.tracker;
                let sequence = seen.probe_header.sequence;
                let world = worlds.get(slot as usize).context("nobody's probe")?;
                let token = crate::fixtures::token_of(&seen.probe_header, world.tracker.epoch);
                assert_eq!(
                    seen.probe_header.token, token,
                    "probe {sequence} of tracker {slot}"
                );
                assert_eq!(
                    frame,
                    &world.probe(seen.probe_header),
                    "probe {sequence} of tracker {slot}"
                );
                // The kernel makes a few hundred frames in a call and uses those.
                used_before += usize::from((sequence - 1) % each > each / 2);
            }
            seen_in_all += frames.len();
            if used_before >= 100 {
                println!("{seen_in_all} probes seen in {round} rounds");
                return Ok(());
            }
        }
        bail!(
            "of {seen_in_all} probes seen, {used_before} were in frames that had been used before"
        )
    })
}

/// A sample of what an interface receives: of every [`Tap::ONE_IN`] frames one, taken at random. With all of
/// them its buffer would be full after the first few, and a frame that waits in it is not used again.
struct Tap(OwnedFd);

impl Tap {
    const ONE_IN: u32 = 32;

    fn new(ifindex: u32) -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("open a packet socket");
        }
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let patience = nix::sys::time::TimeVal::new(0, 100_000);
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &patience)?;
        sample(&fd, Self::ONE_IN)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is valid for its whole length.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if bound < 0 {
            return Err(std::io::Error::last_os_error()).context("bind the packet socket");
        }
        Ok(Self(fd))
    }

    /// Marked frames that arrive while `work` goes on, as far as the socket's buffer keeps up.
    fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Vec<u8>>> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut frames = Vec::new();
                while let Some(frame) = self.next(|| is_over.load(Ordering::SeqCst)) {
                    frames.push(frame);
                }
                frames
            });
            let done = work();
            is_over.store(true, Ordering::SeqCst);
            let frames = reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.map(|()| frames)
        })
    }

    /// The next marked frame; `None` when there is none and `is_over`. The kernel's own frames (neighbour
    /// discovery) are left out.
    fn next(&self, is_over: impl Fn() -> bool) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4_096];
        loop {
            let over = is_over();
            let flags = nix::sys::socket::MsgFlags::empty();
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut frame, flags) {
                Ok(len) if packets::read_marked(&frame[..len]).is_some() => {
                    frame.truncate(len);
                    return Some(frame);
                }
                Err(nix::errno::Errno::EAGAIN) if over => return None,
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Lets the socket have one frame of `one_in`, a power of two (classic BPF, Linux
/// Documentation/networking/filter.rst).
fn sample(fd: &OwnedFd, one_in: u32) -> Result<()> {
    let statement = |code, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, one_in - 1)
        },
        statement(libc::BPF_RET | libc::BPF_K, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as u32,
        )
    };
    nix::errno::Errno::result(done).context("attach the packet socket's filter")?;
    Ok(())
}

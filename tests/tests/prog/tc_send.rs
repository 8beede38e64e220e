//! The send program's TC half: what the private veth passes up leaves by its tracker's path, and nothing else.

use crate::fixtures::{
    OTHER, Object, PATHS, SLOTS, TC_ACT_OK, TC_ACT_REDIRECT, World, assert_same, now_mono_ns,
};
use anyhow::Result;
use pnet_packet::ethernet::EtherTypes;
use tracker_ebpf::abi::{self, Family};
use tracker_lab::packets::{self, Echo, Link, PROBE_HEADER, ProbeHeader, Tag, with};

struct Row {
    what: String,
    world: World,
    frame: Vec<u8>,
    action: i32,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let world = World::new(family);
        let probe_header = world.probe_header(1, now_mono_ns());
        let probe = world.probe(probe_header);
        let mut row = |what: &dyn std::fmt::Display, world: &World, frame: Vec<u8>, action: i32| {
            let what = format!("{family:?}: {what}");
            rows.push(Row {
                what,
                world: world.clone(),
                frame,
                action,
            });
        };

        row(&"a probe", &world, probe.clone(), TC_ACT_REDIRECT);
        for payload in [33, 1_000, 1_472] {
            let world = world.clone().with(|world| world.tracker.payload = payload);
            let what = format!("a probe of {payload} bytes");
            row(&what, &world, world.probe(probe_header), TC_ACT_REDIRECT);
        }
        let udp = world
            .clone()
            .with(|world| world.tracker.probe = abi::Probe::Udp.into());
        row(
            &"a UDP probe",
            &udp,
            udp.probe(probe_header),
            TC_ACT_REDIRECT,
        );
        for (kind, payload, flow) in [
            (abi::Probe::Tcp, 20, 61_441),
            (abi::Probe::Tcp, 20, 63_488),
            (abi::Probe::Stamp, 44, 61_441),
            (abi::Probe::Stamp, 100, 63_488),
        ] {
            let world = world.clone().with(|world| {
                world.tracker.probe = kind.into();
                world.tracker.payload = payload;
                world.tracker.flow_first = flow;
            });
            let probe = world.probe(probe_header);
            row(
                &format!("{kind:?} from {flow}"),
                &world,
                probe.clone(),
                TC_ACT_REDIRECT,
            );
            let ip = packets::ETHERNET
                + if family == Family::Ipv4 {
                    packets::IPV4
                } else {
                    packets::IPV6
                };
            // A source port that no probe has.
            for (what, at, bits) in [
                ("source port", ip, 0x70),
                ("address", ip - 1, 0x80),
                ("slot", ip + 8 + 4, 0x80),
            ] {
                // Of STAMP the slot says whose it is, of TCP addresses and ports.
                let is_told_by =
                    (what == "slot") == (kind == abi::Probe::Stamp) || what == "source port";
                let frame = with(probe.clone(), |frame| frame[at] ^= bits);
                let action = if is_told_by {
                    TC_ACT_OK
                } else {
                    TC_ACT_REDIRECT
                };
                row(
                    &format!("{kind:?} with another {what}"),
                    &world,
                    frame,
                    action,
                );
            }
        }
        let other = ProbeHeader {
            tracker: OTHER,
            ..probe_header
        };
        row(
            &"another tracker's probe",
            &world,
            world.probe(other),
            TC_ACT_REDIRECT,
        );

        for slot in [SLOTS, u32::MAX] {
            let stray = ProbeHeader {
                tracker: slot,
                ..probe_header
            };
            row(
                &format!("tracker {slot}"),
                &world,
                world.probe(stray),
                TC_ACT_OK,
            );
        }
        let lost = world.clone().with(|world| world.tracker.path = PATHS);
        row(
            &"a path that does not exist",
            &lost,
            probe.clone(),
            TC_ACT_OK,
        );

        let head = probe.len() - PROBE_HEADER;
        for at in head..head + 4 {
            let frame = with(probe.clone(), |frame| frame[at] ^= 0x20);
            row(
                &format!("byte {} of the probe_header is wrong", at - head),
                &world,
                frame,
                TC_ACT_OK,
            );
        }
        for len in packets::ETHERNET..probe.len() {
            row(
                &format!("the first {len} bytes"),
                &world,
                probe[..len].to_vec(),
                TC_ACT_OK,
            );
        }
        let (hub, behind) = world.addresses();
        let link = Link {
            tags: Vec::new(),
            ..world.inbound()
        };
        let ping = Echo {
            kind: packets::echo_request(hub),
            code: 0,
            identifier: 1,
            sequence: 1,
            payload: (0x10..0x40).collect(),
        };
        row(
            &"an ordinary ping",
            &world,
            link.ip(&ping.packet(hub, behind)),
            TC_ACT_OK,
        );
        for tags in [
            // The kernel takes a tag out of the frame before TC sees it: one that is still there is a second one.
            vec![Tag::dot1q(100)],
            vec![Tag::dot1ad(1), Tag::dot1q(2)],
        ] {
            let link = Link {
                tags,
                ..link.clone()
            };
            let what = format!("tags {:?}", link.tags);
            row(
                &what,
                &world,
                link.ip(&probe[packets::ETHERNET..]),
                TC_ACT_OK,
            );
        }
        for ethertype in [EtherTypes::Arp, EtherTypes::Lldp, EtherTypes::Mpls] {
            let frame = link.frame(ethertype, &probe[packets::ETHERNET..]);
            row(&format!("EtherType {ethertype}"), &world, frame, TC_ACT_OK);
        }
        row(&"zeros", &world, vec![0; 100], TC_ACT_OK);
        row(&"ones", &world, vec![0xff; 100], TC_ACT_OK);
    }
    rows
}

#[test]
fn only_probes_are_redirected() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(abi::program::TC_SEND)?;
    let (rows, refused): (Vec<_>, Vec<_>) =
        rows().into_iter().partition(|row| object.takes(&row.frame));
    for Row {
        what,
        world,
        frame,
        action,
    } in &rows
    {
        world.install(&mut object)?;
        let before = object.snapshot()?;
        let ran = object.run(frame)?;
        assert_eq!(ran.action, *action, "{what}: action");
        assert_eq!(&ran.frame, frame, "{what}: the frame was altered");
        assert_same(what, "maps", &object.snapshot()?, &before);
    }
    assert!(object.events()?.is_empty());
    println!(
        "{} rows, {} more that the kernel refuses to run",
        rows.len(),
        refused.len()
    );
    Ok(())
}

#[test]
fn fuzz_only_probes_are_redirected() -> Result<()> {
    tracker_lab::needs_root!();
    crate::fixtures::fuzz_send::check_tc_send(400)
}

//! The filter of the packet socket, which counts replies on interfaces where none is expected: the table of the receive programs
//! again. It takes no packet, so it answers 0 to all of them, and sees the packet from its IP header on.

use crate::fixtures::receive::{self, Actions, V4, V6};
use crate::fixtures::{ARRIVAL, Object, World, answer, fuzz, now_mono_ns};
use anyhow::{Context as _, Result};
use aya::{EbpfLoader, programs::Program};
use tracker_ebpf::abi::{Probe, program::WATCH};
use tracker_user::datapath::{OBJECT, object};

/// What the kernel is told of a packet that the socket does not take.
const NOT_TAKEN: i32 = 0;

const ACTIONS: Actions = Actions {
    pass: NOT_TAKEN,
    consume: NOT_TAKEN,
    // The kernel's word (PACKET_OTHERHOST): neither the device's own address nor one of many.
    is_as_sent: |destination| *destination != [0; 6] && destination[0] & 1 == 0,
    takes_tag: false,
    sees_hop: false,
};

#[test]
fn each_row_of_the_table() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_table(WATCH, ACTIONS)
}

#[test]
fn each_answer_without_a_mark() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_table(WATCH, ACTIONS)
}

#[test]
fn a_full_ring_loses_only_events() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_full_ring(WATCH, ACTIONS)
}

#[test]
fn fuzz_only_genuine_replies_are_counted() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz::check(WATCH, ACTIONS, 100)
}

/// The kernel counts a filter as memory of the socket's options (`sk_filter_charge`), which is 20 KiB at most unless the operator
/// says otherwise, before Linux 6.8.
#[test]
fn the_filter_fits_the_memory_of_a_sockets_options() -> Result<()> {
    tracker_lab::needs_root!();
    const OPTMEM_MAX: u32 = 20 * 1024;
    /// More than `struct bpf_prog` has before the instructions.
    const HEAD: u32 = 256;
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    object::load(&mut ebpf, WATCH)?;
    let Some(Program::SocketFilter(filter)) = ebpf.program(WATCH) else {
        panic!("the object has no filter {WATCH}");
    };
    let bytes = filter.info()?.size_translated();
    let bytes = bytes.context("the kernel does not say how large the filter is")?;
    assert!(HEAD + bytes < OPTMEM_MAX, "{bytes} bytes");
    Ok(())
}

/// Where a receive program is attached, the filter counts nothing: neither replies nor what is wrong with them.
#[test]
fn what_arrives_where_replies_are_expected_is_left_to_others() -> Result<()> {
    tracker_lab::needs_root!();
    let mut object = Object::load(WATCH)?;
    for family in [V4, V6] {
        for probe in [Probe::Icmp, Probe::Udp] {
            for is_expected in [false, true] {
                let world = World::new(family).with(|world| world.tracker.probe = probe.into());
                world.install(&mut object)?;
                match is_expected {
                    true => object.expecting.insert(ARRIVAL, 1, 0)?,
                    // It is missing in the first round.
                    false => drop(object.expecting.remove(&ARRIVAL)),
                }
                for token_bit in [0, 1] {
                    let mut probe_header = world.probe_header(1_000 - token_bit, now_mono_ns());
                    probe_header.token ^= token_bit;
                    let before = object.snapshot()?;
                    let frame = receive::Reply::new(&world, probe_header).frame();
                    assert_eq!(object.run(&frame)?.action, NOT_TAKEN);
                    let is_same = object.snapshot()?.is_same(&before);
                    assert_eq!(is_same, is_expected, "{family:?} {probe:?} {token_bit}");
                }
            }
        }
    }
    Ok(())
}

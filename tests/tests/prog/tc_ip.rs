//! The receive program for interfaces without Ethernet header: the same table again.
//!
//! It passes with `TC_ACT_UNSPEC`, so that programs after it still see the packet. It reads from the IP header on,
//! wherever that is; `BPF_PROG_TEST_RUN` insists on an Ethernet header before it, so that packets that begin with
//! the IP header are for `tunnel_tun.rs`.

use crate::fixtures::receive::{self, Actions};
use crate::fixtures::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use crate::fixtures::{answer, fuzz, fuzz_answer};
use anyhow::Result;
use tracker_ebpf::abi::program::TC_RECEIVE_IP;

const ACTIONS: Actions = Actions {
    pass: TC_ACT_UNSPEC,
    consume: TC_ACT_SHOT,
    // The kernel's word (PACKET_OTHERHOST): neither the device's own address nor one of many.
    is_as_sent: |destination| *destination != [0; 6] && destination[0] & 1 == 0,
    takes_tag: false,
    sees_hop: false,
};

#[test]
fn each_row_of_the_table() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_table(TC_RECEIVE_IP, ACTIONS)
}

#[test]
fn each_answer_without_a_mark() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_table(TC_RECEIVE_IP, ACTIONS)
}

#[test]
fn a_full_ring_loses_only_events() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_full_ring(TC_RECEIVE_IP, ACTIONS)
}

#[test]
fn fuzz_only_genuine_replies_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz::check(TC_RECEIVE_IP, ACTIONS, 300)
}

#[test]
fn fuzz_only_proven_answers_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_answer::check(TC_RECEIVE_IP, ACTIONS, 400)
}

#[test]
fn replayed_answers_cost_no_reset_each() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_replays(TC_RECEIVE_IP, ACTIONS)
}

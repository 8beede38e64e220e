//! The receive program at TC ingress: the same table as for XDP, other actions.
//!
//! It passes with `TC_ACT_UNSPEC`, so that programs after it still see the packet.

use crate::fixtures::receive::{self, Actions};
use crate::fixtures::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use crate::fixtures::{answer, fuzz, fuzz_answer};
use anyhow::Result;
use tracker_ebpf::abi::program::TC_RECEIVE;

const ACTIONS: Actions = Actions {
    pass: TC_ACT_UNSPEC,
    consume: TC_ACT_SHOT,
    // The kernel's word (PACKET_OTHERHOST): neither the device's own address nor one of many.
    is_as_sent: |destination| *destination != [0; 6] && destination[0] & 1 == 0,
    takes_tag: true,
    sees_hop: true,
};

#[test]
fn each_row_of_the_table() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_table(TC_RECEIVE, ACTIONS)
}

#[test]
fn each_answer_without_a_mark() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_table(TC_RECEIVE, ACTIONS)
}

#[test]
fn a_full_ring_loses_only_events() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_full_ring(TC_RECEIVE, ACTIONS)
}

#[test]
fn fuzz_only_genuine_replies_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz::check(TC_RECEIVE, ACTIONS, 300)
}

#[test]
fn fuzz_only_proven_answers_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_answer::check(TC_RECEIVE, ACTIONS, 400)
}

#[test]
fn replayed_answers_cost_no_reset_each() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_replays(TC_RECEIVE, ACTIONS)
}

//! The receive program on XDP, frame by frame: the table is in `prog/receive.rs`, the fuzzer in `prog/fuzz.rs`.

use crate::fixtures::receive::{self, Actions};
use crate::fixtures::{XDP_DROP, XDP_PASS};
use crate::fixtures::{answer, fuzz, fuzz_answer};
use anyhow::Result;
use tracker_ebpf::abi::program::RECEIVE;

const ACTIONS: Actions = Actions {
    pass: XDP_PASS,
    consume: XDP_DROP,
    is_as_sent: |destination| *destination == crate::fixtures::ENDPOINT_MAC,
    takes_tag: true,
    sees_hop: true,
};

#[test]
fn each_row_of_the_table() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_table(RECEIVE, ACTIONS)
}

#[test]
fn packets_of_several_buffers() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_large(RECEIVE, ACTIONS)
}

#[test]
fn each_answer_without_a_mark() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_table(RECEIVE, ACTIONS)
}

#[test]
fn a_full_ring_loses_only_events() -> Result<()> {
    tracker_lab::needs_root!();
    receive::check_full_ring(RECEIVE, ACTIONS)
}

#[test]
fn fuzz_only_genuine_replies_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz::check(RECEIVE, ACTIONS, 300)
}

#[test]
fn fuzz_only_proven_answers_are_consumed() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_answer::check(RECEIVE, ACTIONS, 400)
}

#[test]
fn replayed_answers_cost_no_reset_each() -> Result<()> {
    tracker_lab::needs_root!();
    answer::check_replays(RECEIVE, ACTIONS)
}

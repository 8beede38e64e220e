//! The programs of steering, frame by frame: the table is in `prog/steer.rs`.

use crate::fixtures::{fuzz_steer, steer};
use anyhow::Result;
use tracker_ebpf::abi::program::{MARKED, MARKED_IP, RETURN, RETURN_IP, STEER, UPLINK, UPLINK_IP};

#[test]
fn each_row_by_xdp() -> Result<()> {
    tracker_lab::needs_root!();
    steer::check_table(STEER)
}

#[test]
fn a_packet_of_several_buffers_is_left_to_tc() -> Result<()> {
    tracker_lab::needs_root!();
    steer::check_large(STEER)
}

#[test]
fn each_row_at_an_uplinks_tc() -> Result<()> {
    tracker_lab::needs_root!();
    steer::check_table(UPLINK)
}

#[test]
fn each_row_of_marked_local_packets() -> Result<()> {
    tracker_lab::needs_root!();
    steer::check_table(MARKED)
}

#[test]
fn each_row_of_replies() -> Result<()> {
    tracker_lab::needs_root!();
    steer::check_replies()
}

#[test]
fn flows_are_noted_refreshed_and_ended() -> Result<()> {
    tracker_lab::needs_root!();
    [STEER, UPLINK, MARKED]
        .into_iter()
        .try_for_each(steer::check_flows)
}

#[test]
fn what_the_filter_does_not_know_passes() -> Result<()> {
    tracker_lab::needs_root!();
    [STEER, UPLINK, MARKED]
        .into_iter()
        .try_for_each(steer::check_filter)
}

#[test]
fn fuzz_only_what_is_to_be_steered_is_by_xdp() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(STEER, 150)
}

#[test]
fn fuzz_only_what_is_to_be_steered_is_at_an_uplinks_tc() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(UPLINK, 150)
}

#[test]
fn fuzz_only_what_is_to_be_steered_is_at_a_tunnel_that_is_an_uplink() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(UPLINK_IP, 150)
}

#[test]
fn fuzz_only_marked_local_packets_are_steered() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(MARKED, 150)
}

#[test]
fn fuzz_only_marked_local_packets_are_steered_at_a_tunnel() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(MARKED_IP, 150)
}

#[test]
fn fuzz_only_replies_of_flows_change() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(RETURN, 150)
}

#[test]
fn fuzz_only_replies_of_flows_change_at_a_tunnel() -> Result<()> {
    tracker_lab::needs_root!();
    fuzz_steer::check(RETURN_IP, 150)
}

#[test]
fn a_packet_that_does_not_end_where_it_says_passes_on_tunnels() -> Result<()> {
    tracker_lab::needs_root!();
    [UPLINK_IP, MARKED_IP, RETURN_IP]
        .into_iter()
        .try_for_each(steer::check_false_beginning)
}

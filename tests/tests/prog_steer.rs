//! The programs of steering, frame by frame: the table is in `prog/steer.rs`.

mod prog;

use anyhow::Result;
use prog::steer;
use tracker_ebpf::abi::program::{MARKED, STEER, UPLINK};

#[test]
fn each_row_by_xdp() -> Result<()> {
    needs_root!();
    steer::check_table(STEER)
}

#[test]
fn each_row_at_an_uplinks_tc() -> Result<()> {
    needs_root!();
    steer::check_table(UPLINK)
}

#[test]
fn each_row_of_marked_local_packets() -> Result<()> {
    needs_root!();
    steer::check_table(MARKED)
}

#[test]
fn each_row_of_replies() -> Result<()> {
    needs_root!();
    steer::check_replies()
}

#[test]
fn flows_are_noted_refreshed_and_ended() -> Result<()> {
    needs_root!();
    [STEER, UPLINK, MARKED]
        .into_iter()
        .try_for_each(steer::check_flows)
}

#[test]
fn what_the_filter_does_not_know_passes() -> Result<()> {
    needs_root!();
    [STEER, UPLINK, MARKED]
        .into_iter()
        .try_for_each(steer::check_filter)
}

//! A flood: the same few frames out of an interface, as fast as the kernel can build them (live frames, Linux 5.18).

use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bpf::{PROG_TEST_RUN, TestRun, bpf, instruction, load};
use crate::netns::Namespace;

/// Constants of linux/bpf.h.
const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 2;
const REDIRECT: i32 = 23;
/// Frames of one call: some ten milliseconds.
const BURST: u32 = 50_000;

/// A program that sends every frame out of one interface.
fn redirect(ifindex: u32) -> Result<OwnedFd> {
    let instructions = [
        instruction(0xb7, 0x01, 0, ifindex.cast_signed()), // r1 = ifindex
        instruction(0xb7, 0x02, 0, 0),                     // r2 = 0
        instruction(0x85, 0, 0, REDIRECT),                 // r0 = bpf_redirect(r1, r2)
        instruction(0x95, 0, 0, 0),                        // exit
    ];
    load(PROG_TYPE_XDP, &instructions).context("load the flood's program")
}

/// Sends these frames out of an interface of `from` in turn, for this long; returns how many.
///
/// # Errors
/// As the kernel answers.
pub fn flood(from: &Namespace, interface: &str, frames: &[Vec<u8>], time: Duration) -> Result<u64> {
    from.enter(|| {
        let program = redirect(nix::net::if_::if_nametoindex(interface)?)?;
        let end = Instant::now() + time;
        let mut sent = 0;
        for frame in frames.iter().cycle() {
            crate::interrupt::check()?;
            let mut run = TestRun {
                program: program.as_raw_fd() as u32,
                data_size_in: frame.len() as u32,
                data_in: frame.as_ptr() as u64,
                repeat: BURST,
                flags: TEST_XDP_LIVE_FRAMES,
                ..Default::default()
            };
            debug_assert_eq!(size_of::<TestRun>(), 80);
            bpf(PROG_TEST_RUN, &mut run).context("flood")?;
            sent += u64::from(BURST);
            // After a call: a busy machine may take longer to begin than a short flood lasts.
            if Instant::now() >= end {
                break;
            }
        }
        Ok(sent)
    })
}

//! What this kernel can do, tried with programs of two instructions that are attached to nothing. A version number does not tell:
//! distributions port features back, and a container or a security module may forbid what the kernel has.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Commands and constants of bpf(2), as in linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 2;
const TCX_INGRESS: u32 = 46;
/// `XDP_DROP`.
const DROP: u64 = 1;
/// More than any interface has.
const NO_INTERFACE: u32 = i32::MAX as u32;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version: u32,
    flags: u32,
}

/// That for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context: [u64; 3],
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// That for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is a structure of this file, which is the beginning of what the command reads, with its size; what
    // it points to outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match answer {
        ..0 => Err(io::Error::last_os_error()),
        answer => Ok(answer as libc::c_int),
    }
}

/// A program that returns a number.
fn load(prog_type: u32, result: u64) -> io::Result<OwnedFd> {
    // r0 = result; exit
    let instructions = [0xb7 | result << 32, 0x95];
    let mut load = ProgLoad {
        prog_type,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Default::default()
    };
    let fd = bpf(PROG_LOAD, &mut load)?;
    // SAFETY: the kernel has just made it, for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a live frame (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18) to a program that drops it.
///
/// # Errors
/// As the kernel answers: EINVAL if it has none.
pub fn live_frames() -> io::Result<()> {
    let program = load(PROG_TYPE_XDP, DROP)?;
    let frame = [0_u8; 64];
    let mut run = TestRun {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        flags: TEST_XDP_LIVE_FRAMES,
        ..Default::default()
    };
    bpf(PROG_TEST_RUN, &mut run).map(drop)
}

/// Whether the kernel has TCX (Linux 6.6): it then looks for the interface, which does not exist, and else does not know the
/// kind of attachment.
///
/// # Errors
/// As the kernel answers, if it does not even load the program.
pub fn tcx() -> io::Result<bool> {
    let program = load(PROG_TYPE_SCHED_CLS, 0)?;
    let mut create = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex: NO_INTERFACE,
        attach_type: TCX_INGRESS,
        flags: 0,
    };
    match bpf(LINK_CREATE, &mut create) {
        Ok(link) => {
            // SAFETY: the kernel has just made it, for this process.
            drop(unsafe { OwnedFd::from_raw_fd(link) });
            Ok(true)
        }
        Err(error) => Ok(error.raw_os_error() == Some(libc::ENODEV)),
    }
}

/// Whether something keeps the wall clock in step (`STA_UNSYNC` of adjtimex(2)).
pub fn is_clock_synchronised() -> Option<bool> {
    // SAFETY: integers, for which zeros are valid; without modes the call only reads.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure, which is its own.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_as_its_version_promises() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: loading programs needs root");
            return;
        }
        live_frames().expect("live frames: the tests need Linux 5.18");
        let version = super::super::preflight::linux_version();
        // Debian and Linux itself name versions truly.
        assert_eq!(tcx().expect("a program"), version >= (6, 6), "{version:?}");
        assert!(is_clock_synchronised().is_some());
    }
}

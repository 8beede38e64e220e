//! bpf(2) as labs use it: programs and maps of their own, made of a few instructions.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Commands of bpf(2), as in linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
pub(crate) const PROG_TEST_RUN: libc::c_int = 10;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// What look-ups and updates of a map's element take.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MapElement {
    pub map: u32,
    pub _pad: u32,
    pub key: u64,
    pub value: u64,
    pub flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct TestRun {
    pub program: u32,
    pub returned: u32,
    pub data_size_in: u32,
    pub data_size_out: u32,
    pub data_in: u64,
    pub data_out: u64,
    pub repeat: u32,
    pub duration: u32,
    pub context_size_in: u32,
    pub context_size_out: u32,
    pub context_in: u64,
    pub context_out: u64,
    pub flags: u32,
    pub cpu: u32,
    pub batch_size: u32,
    pub _pad: u32,
}

pub(crate) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: each caller passes the structure that bpf(2) wants for this command, and its size; addresses in it are
    // of memory that outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}

pub(crate) fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: bpf(2) just returned this descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One instruction: operation, destination and source register, offset, immediate.
pub(crate) const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (registers as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// Makes a map of one element, whose key has four bytes.
pub(crate) fn create_map(map_type: u32, value_size: u32) -> io::Result<OwnedFd> {
    let mut create = MapCreate {
        map_type,
        key_size: 4,
        value_size,
        max_entries: 1,
    };
    bpf(MAP_CREATE, &mut create).map(owned)
}

/// Loads a program.
pub(crate) fn load(prog_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut load = ProgLoad {
        prog_type,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    bpf(PROG_LOAD, &mut load).map(owned)
}

//! Asking a pinned link where it is attached, detaching it, and reading a pinned program's id. aya keeps its links' descriptors to itself and shows only
//! ids, so these system calls are made here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD` and `BPF_LINK_DETACH` (Linux 5.9) of `enum bpf_cmd` (linux/bpf.h).
const OBJ_GET: i32 = 7;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_DETACH: i32 = 34;
/// Where `struct bpf_link_info` has the ifindex, for XDP and TCX alike.
const IFINDEX_AT: usize = 16;

/// Where `struct bpf_prog_info` has the id.
const ID_AT: usize = 4;

/// The interface to which a pinned XDP or TCX link is attached; 0 once it was detached.
///
/// # Errors
/// Where the pin is gone or the kernel refuses.
pub fn attached_to(pin: &Path) -> io::Result<u32> {
    word_of(&open(pin)?, IFINDEX_AT)
}

/// Detaches a pinned link and removes the pin. Removal alone would detach as well, but later: the kernel frees
/// what the last pin held in its own time, and meanwhile an interface's one place for XDP is taken.
///
/// # Errors
/// Where the pin can't be removed.
pub fn remove(pin: &Path) -> io::Result<()> {
    if let Ok(link) = open(pin) {
        // It may be detached already, or be a pinned program, which goes with its pin.
        let _ = bpf(LINK_DETACH, &mut [link.as_raw_fd() as u64, 0]);
    }
    std::fs::remove_file(pin)
}

/// The id of a pinned program; `None` if the pin is gone, or one of something else.
pub fn pinned_program(pin: &Path) -> Option<u32> {
    let object = open(pin).ok()?;
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd())).ok()?;
    if kind != Path::new("anon_inode:bpf-prog") {
        return None;
    }
    word_of(&object, ID_AT).ok()
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = [0u64; 2];
    attributes[0] = path.as_ptr() as u64;
    let fd = bpf(OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A word of what the kernel says of a link or a program.
fn word_of(object: &OwnedFd, at: usize) -> io::Result<u32> {
    let mut info = [0u8; 128];
    let length = (info.len() as u64) << 32;
    let mut attributes = [object.as_raw_fd() as u64 | length, info.as_mut_ptr() as u64];
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let bytes = [0, 1, 2, 3].map(|byte| info[at + byte]);
    Ok(u32::from_ne_bytes(bytes))
}

fn bpf(command: i32, attributes: &mut [u64; 2]) -> io::Result<i32> {
    let size = size_of_val(attributes);
    // SAFETY: the structure is valid for its size, and what it points to lives in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

//! Asking a pinned link where it is attached. aya keeps its links' descriptors to itself and shows only
//! ids, so the two system calls are made here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_OBJ_GET` and `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd` (linux/bpf.h).
const OBJ_GET: i32 = 7;
const OBJ_GET_INFO_BY_FD: i32 = 15;
/// Where `struct bpf_link_info` has the ifindex, for XDP and TCX alike.
const IFINDEX_AT: usize = 16;

/// The interface to which a pinned XDP or TCX link is attached; 0 once somebody detached it.
///
/// # Errors
/// Where the pin is gone or the kernel refuses.
pub fn attached_to(pin: &Path) -> io::Result<u32> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = [0u64; 2];
    attributes[0] = path.as_ptr() as u64;
    let fd = bpf(OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };

    let mut info = [0u8; 128];
    let length = (info.len() as u64) << 32;
    let mut attributes = [link.as_raw_fd() as u64 | length, info.as_mut_ptr() as u64];
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let bytes = [0, 1, 2, 3].map(|at| info[IFINDEX_AT + at]);
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

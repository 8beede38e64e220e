//! A listener to a group of rtnetlink that holds up the sender of a notification.
//!
//! The kernel runs a socket's filter in the sender's context (`do_one_broadcast`), and serves the sockets of a group from
//! the one that joined last: a socket that joins after a slow listener is told while the sender is still in the middle of its
//! change.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};

use crate::bpf::{instruction, load};
use crate::netns::Namespace;

/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u32 = 1;

/// How long the filter takes, ns: the processor does nothing else meanwhile.
const PAUSE: i32 = 20_000_000;

/// The listener; it reads nothing, and ends when dropped.
#[derive(Debug)]
pub struct SlowListener {
    _socket: OwnedFd,
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: the value outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl SlowListener {
    /// Listens to a group (`enum rtnetlink_groups`) inside a namespace; `None` if the kernel has no endless loops in
    /// programs (`may_goto`, Linux 6.9). A notification takes some 20 ms.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn new(namespace: &Namespace, group: u32) -> Result<Option<Self>> {
        let instructions = [
            instruction(0x85, 0, 0, 5),      // r0 = bpf_ktime_get_ns()
            instruction(0xbf, 0x06, 0, 0),   // r6 = r0
            instruction(0xe5, 0, 3, 0),      // may_goto +3: once the kernel's budget is used up
            instruction(0x85, 0, 0, 5),      // r0 = bpf_ktime_get_ns()
            instruction(0x1f, 0x60, 0, 0),   // r0 -= r6
            instruction(0xa5, 0, -4, PAUSE), // if r0 < PAUSE goto -4
            instruction(0xb7, 0, 0, 0),      // r0 = 0: keep nothing
            instruction(0x95, 0, 0, 0),      // exit
        ];
        let program = match load(SOCKET_FILTER, &instructions) {
            Ok(program) => program,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error).context("load a program"),
        };
        let socket = namespace.enter(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )
            .context("a netlink socket")?;
            // A notification leaves out the sockets of its sender's port, which is 0 in one that the kernel sends by itself.
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("bind a netlink socket")?;
            set(
                &socket,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                program.as_raw_fd(),
            )
            .context("attach a filter")?;
            set(
                &socket,
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                group,
            )
            .context("join a group")?;
            Ok(socket)
        })?;
        Ok(Some(Self { _socket: socket }))
    }
}

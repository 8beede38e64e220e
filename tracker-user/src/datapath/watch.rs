//! One packet socket that watches the interfaces on which no reply is expected: its filter counts those that come a wrong way.
//!
//! A program at TC on each of them would do too, but each attachment waits for RCU under RTNL, about 12 ms.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData},
    programs::SocketFilter,
};
use tracker_ebpf::abi;

use super::{error::DatapathError, object};

/// `PACKET_IGNORE_OUTGOING` of linux/if_packet.h (Linux 4.20): what the hub sends is not even copied for the socket.
const IGNORE_OUTGOING: libc::c_int = 23;

/// The socket and what its filter leaves out.
pub(super) struct Watch {
    socket: OwnedFd,
    expecting: BpfHashMap<MapData, u32, u32>,
    known: HashSet<u32>,
    is_bound: bool,
}

impl Watch {
    /// A socket in the calling thread's network namespace that sees nothing yet. The filter is loaded.
    ///
    /// # Errors
    /// As the kernel answers: EPERM without CAP_NET_RAW.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let system = |attempt| move |source| DatapathError::System { attempt, source };
        let expecting = object::take(ebpf, abi::map::EXPECTING)?;
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; protocol 0 receives nothing (packet(7)), and the descriptor has no other owner.
        let socket = unsafe {
            let socket = libc::socket(libc::AF_PACKET, kind, 0);
            if socket < 0 {
                return Err(system("open a packet socket")(io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(socket)
        };
        let filter: &mut SocketFilter = object::program(ebpf, abi::program::WATCH)?;
        filter.attach(&socket)?;
        let yes: libc::c_int = 1;
        // SAFETY: the pointer is to a value of the length that is given, borrowed for the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                IGNORE_OUTGOING,
                (&raw const yes).cast(),
                size_of_val(&yes) as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(system("set up the packet socket")(
                io::Error::last_os_error(),
            ));
        }
        Ok(Self {
            socket,
            expecting: BpfHashMap::try_from(expecting)?,
            known: HashSet::new(),
            is_bound: false,
        })
    }

    /// Leaves these interfaces out too; all others are watched from the first call on.
    ///
    /// # Errors
    /// As the kernel answers.
    pub(super) fn leave_out(&mut self, interfaces: &HashSet<u32>) -> Result<(), DatapathError> {
        for ifindex in interfaces {
            if !self.known.contains(ifindex) {
                let written = self.expecting.insert(ifindex, 1, 0);
                written.map_err(|source| DatapathError::Write {
                    map: abi::map::EXPECTING,
                    source,
                })?;
                self.known.insert(*ifindex);
            }
        }
        if !self.is_bound {
            self.bind().map_err(|source| DatapathError::System {
                attempt: "bind the packet socket",
                source,
            })?;
            self.is_bound = true;
        }
        Ok(())
    }

    /// Watches all interfaces but these.
    pub(super) fn watch_all_but(&mut self, interfaces: &HashSet<u32>) {
        let expecting = &mut self.expecting;
        self.known.retain(|ifindex| {
            let is_left_out = interfaces.contains(ifindex);
            // What can't be removed is tried again.
            is_left_out || expecting.remove(ifindex).is_err()
        });
    }

    /// On all interfaces, before TC and before bridges and bonds take what arrives on their ports.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: plain numbers and bytes, and zero is a value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the pointer is to an address of the length that is given, borrowed for the call.
        let bound = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        match bound {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

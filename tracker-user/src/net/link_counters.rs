//! Interfaces' own counters, read by the sending thread.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::sysfs::Sysfs;

/// The file of an interface in sysfs that shows how many frames it has transmitted.
const TRANSMITTED: &str = "statistics/tx_packets";

/// Reads interfaces' own counters: from sysfs, which takes no RTNL. Where that can't be mounted, by netlink: whatever holds RTNL
/// then delays each answer, and the sending thread.
pub enum LinkCounters {
    /// The files are kept open: each shows its interface until that is deleted.
    Sysfs(Sysfs, HashMap<u32, File>),
    /// By netlink.
    Netlink(Requests),
}

impl LinkCounters {
    /// Of the interfaces of the calling thread's network namespace.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn new() -> std::io::Result<Self> {
        match Sysfs::mount() {
            Ok(sysfs) => Ok(Self::Sysfs(sysfs, HashMap::new())),
            Err(error) => {
                tracing::warn!(
                    "cannot mount a sysfs to read interfaces' counters from ({error}); they are asked by netlink, and whatever \
                     keeps the kernel's RTNL lock delays verdicts"
                );
                Ok(Self::Netlink(Requests::new()?))
            }
        }
    }

    /// Frames the interface says it has transmitted; `None` if it is gone.
    pub fn transmitted(&mut self, ifindex: u32) -> Option<u64> {
        let (sysfs, files) = match self {
            Self::Sysfs(sysfs, files) => (sysfs, files),
            Self::Netlink(requests) => return requests.transmitted(ifindex),
        };
        if let Some(count) = files.get(&ifindex).and_then(read) {
            return Some(count);
        }
        // The interface was deleted, and another one may have its index.
        files.remove(&ifindex);
        let file = sysfs.open(ifindex, TRANSMITTED).ok()?;
        let count = read(&file)?;
        files.insert(ifindex, file);
        Some(count)
    }
}

/// The number in a file.
fn read(file: &File) -> Option<u64> {
    let mut bytes = [0; 32];
    let len = file.read_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(&bytes[..len]).ok()?.trim().parse().ok()
}

/// Reads interfaces' own counters over a blocking netlink socket: a few microseconds a question.
pub struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// A socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// As the kernel answers.
    fn new() -> std::io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(16_384),
        })
    }

    /// Frames the interface says it has transmitted; `None` if it is gone.
    fn transmitted(&mut self, ifindex: u32) -> Option<u64> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
        self.sequence = self.sequence.wrapping_add(1);
        request.header.flags = NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).ok()?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0).ok()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer).ok()?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload
            else {
                return None;
            };
            return link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some(stats.tx_packets),
                    _ => None,
                });
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// The loopback of the calling thread's namespace and no other, whatever /sys shows.
    #[test]
    fn each_namespace_has_its_own() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let (lo, wait) = (1, std::time::Duration::from_secs(5));
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
                let mut counters = LinkCounters::new().expect("counters");
                assert!(matches!(counters, LinkCounters::Sysfs(..)));
                let mut requests = Requests::new().expect("a netlink socket");
                assert_eq!(counters.transmitted(lo), Some(0));
                let up = std::process::Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status();
                assert!(up.expect("ip").success());
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
                let to = socket.local_addr().expect("its address");
                socket.set_read_timeout(Some(wait)).expect("a time limit");
                for _ in 0..7 {
                    socket.send_to(b"x", to).expect("sent");
                    socket.recv(&mut [0; 8]).expect("received");
                }
                // IPv6 may send something of its own.
                let before = requests.transmitted(lo).expect("by netlink");
                let count = counters.transmitted(lo).expect("by sysfs");
                let after = requests.transmitted(lo).expect("by netlink");
                assert!(before >= 7 && (before..=after).contains(&count), "{count}");
                assert_eq!(counters.transmitted(999_999), None);
                (counters, count)
            });
            let (mut counters, count) = inside.join().expect("no panic");
            // Where it is read does not matter.
            assert!(
                counters
                    .transmitted(lo)
                    .is_some_and(|now| now >= count && now < count + 100)
            );
        });
    }
}

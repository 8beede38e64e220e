//! A layer-3 tunnel without Ethernet header: a tun device in each of two namespaces, and a thread that carries packets
//! from one to the other, as a VPN's process does. It may do more to them than that: see [`Carrier`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::netns::Namespace;
use crate::pace;

/// One of a tunnel's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The first that was named.
    Left,
    /// The second.
    Right,
}

impl End {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// A packet that the carrier hands to an end.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Where it comes out.
    pub to: End,
    /// How much later.
    pub after: Duration,
    /// The IP packet.
    pub packet: Vec<u8>,
}

/// What becomes of a packet that was sent into an end.
pub type Carrier = Box<dyn FnMut(End, Vec<u8>) -> Vec<Parcel> + Send>;

/// Carries each packet to the other end, at once and as it is.
#[must_use]
pub fn faithful() -> Carrier {
    Box::new(|from, packet| {
        vec![Parcel {
            to: from.other(),
            after: Duration::ZERO,
            packet,
        }]
    })
}

/// A running tunnel; dropped, its process is gone, and with it the devices' carrier, or the devices themselves.
pub struct Tunnel {
    carrier: Arc<Mutex<Carrier>>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Connects `name` in both namespaces. A device that exists already gets its carrier, another is made, without
    /// address and down, and goes away with the tunnel.
    ///
    /// # Errors
    /// When the kernel has no tun devices, or refuses.
    pub fn new(name: &str, ends: [&Namespace; 2]) -> Result<Self> {
        let ends = [open(name, ends[0])?, open(name, ends[1])?];
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let carrier = Arc::new(Mutex::new(faithful()));
        let shared = Arc::clone(&carrier);
        let thread = thread::spawn(move || carry(ends, &stopped, &shared));
        Ok(Self {
            carrier,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// From now on packets are carried like this; what is under way comes out as it would have.
    pub fn carry_by(&self, carrier: Carrier) {
        *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = carrier;
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; were it to, the devices are closed all the same.
            let _ = thread.join();
        }
    }
}

/// When a packet comes out, its place among those of the same time, where, and the packet.
type UnderWay = (Instant, u64, End, Vec<u8>);

/// Carries until the other end of `stopped` is closed.
fn carry(mut ends: [File; 2], stopped: &OwnedFd, carrier: &Mutex<Carrier>) {
    pace::stand_for_hardware();
    let mut waiting: BinaryHeap<Reverse<UnderWay>> = BinaryHeap::new();
    let mut order = 0_u64;
    let mut packet = [0; 65_536];
    loop {
        let mut sources: Vec<_> = ends
            .iter()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN))
            .collect();
        sources.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
        let patience = match waiting.peek() {
            None => PollTimeout::NONE,
            Some(Reverse((due, ..))) => {
                let left = due.saturating_duration_since(Instant::now());
                // Rounded up, or it would be awake all the time for less than a millisecond.
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        if poll(&mut sources, patience).is_err_and(|error| error != nix::Error::EINTR) {
            return;
        }
        // Nothing is ever written here: an event means that the other end is closed.
        if sources[2].any().unwrap_or(true) {
            return;
        }
        drop(sources);
        for from in [End::Left, End::Right] {
            while let Ok(len @ 1..) = ends[from as usize].read(&mut packet) {
                let packet = packet[..len].to_vec();
                let mut carrier = carrier.lock().unwrap_or_else(PoisonError::into_inner);
                for parcel in carrier(from, packet) {
                    order += 1;
                    let due = Instant::now() + parcel.after;
                    waiting.push(Reverse((due, order, parcel.to, parcel.packet)));
                }
            }
        }
        while let Some(Reverse((due, ..))) = waiting.peek()
            && *due <= Instant::now()
            && let Some(Reverse((_, _, to, packet))) = waiting.pop()
        {
            // What an end does not take (its interface is down) is lost, as on any wire.
            let _ = ends[to as usize].write(&packet);
        }
    }
}

/// Attaches to a tun device, without packet information before each packet.
fn open(name: &str, namespace: &Namespace) -> Result<File> {
    namespace.enter(|| {
        let path = "/dev/net/tun";
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .with_context(|| format!("open {path}"))?;
        // SAFETY: all zeros are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the descriptor is open, and TUNSETIFF takes an `ifreq`.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &request) };
        if result < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("attach to {name}"));
        }
        Ok(device)
    })
}

//! A layer-3 tunnel without Ethernet header: a tun device in each of two namespaces, and a thread that carries packets
//! from one to the other, as a VPN's process does.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::netns::Namespace;

/// A running tunnel; dropped, its process is gone, and with it the devices' carrier, or the devices themselves.
#[derive(Debug)]
pub struct Tunnel {
    stop: Option<std::os::fd::OwnedFd>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Connects `name` in both namespaces. A device that exists already gets its carrier, another is made, without
    /// address and down, and goes away with the tunnel.
    ///
    /// # Errors
    /// When the kernel has no tun devices, or refuses.
    pub fn new(name: &str, ends: [&Namespace; 2]) -> Result<Self> {
        let [mut left, mut right] = [open(name, ends[0])?, open(name, ends[1])?];
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let carrier = thread::spawn(move || {
            loop {
                let mut waiting = [&left, &right]
                    .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN))
                    .to_vec();
                waiting.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
                if poll(&mut waiting, PollTimeout::NONE)
                    .is_err_and(|error| error != nix::Error::EINTR)
                {
                    return;
                }
                // Nobody ever writes: something to see means that the other end is closed.
                if waiting[2].any().unwrap_or(true) {
                    return;
                }
                drop(waiting);
                carry(&mut left, &mut right);
                carry(&mut right, &mut left);
            }
        });
        Ok(Self {
            stop: Some(stop),
            carrier: Some(carrier),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(carrier) = self.carrier.take() {
            // It does not panic; were it to, the devices are closed all the same.
            let _ = carrier.join();
        }
    }
}

/// Carries all that waits. What the other end does not take (its interface is down) is lost, as on any wire.
fn carry(from: &mut File, to: &mut File) {
    let mut packet = [0; 65_536];
    while let Ok(len @ 1..) = from.read(&mut packet) {
        let _ = to.write(&packet[..len]);
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

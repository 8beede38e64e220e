//! Servers behind a service, for probes that need one.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::daemon::SOON;
use crate::netns::Namespace;

/// How often a server looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// A UDP echo service (RFC 862); dropped, it ends.
#[derive(Debug)]
pub struct UdpEcho {
    is_over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<SocketAddr>>>,
    threads: Vec<JoinHandle<()>>,
}

impl UdpEcho {
    /// Answers on one port of each address.
    ///
    /// # Errors
    /// Where the namespace has no such address, or the port is taken.
    pub fn start(host: &Namespace, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let mut echo = Self {
            is_over: Arc::default(),
            seen: Arc::default(),
            threads: Vec::new(),
        };
        for &address in addresses {
            let socket = host.enter(|| {
                let socket = when_usable(|| UdpSocket::bind((address, port)))
                    .with_context(|| format!("listen on {address}, UDP port {port}"))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Ok(socket)
            })?;
            let (is_over, seen) = (Arc::clone(&echo.is_over), Arc::clone(&echo.seen));
            echo.threads
                .push(thread::spawn(move || answer(&socket, &is_over, &seen)));
        }
        Ok(echo)
    }

    /// Who has asked so far.
    #[must_use]
    pub fn seen(&self) -> BTreeSet<SocketAddr> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The kernel takes a moment to make an IPv6 address that was just added usable.
fn when_usable<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match bind() {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < deadline =>
            {
                thread::sleep(PATIENCE);
            }
            result => return result,
        }
    }
}

fn answer(socket: &UdpSocket, is_over: &AtomicBool, seen: &Mutex<BTreeSet<SocketAddr>>) {
    crate::pace::stand_for_hardware();
    let mut datagram = [0; 65_536];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut datagram) {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(from);
            // What can't be sent is a reply lost, as anywhere.
            let _ = socket.send_to(&datagram[..len], from);
        }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

//! Servers behind a service, for probes that need one: UDP echo, a STAMP reflector, TCP.

use std::collections::BTreeSet;
use std::io;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
pub struct UdpEcho(UdpServer);

/// A STAMP reflector without authentication (RFC 8762 section 4.3); dropped, it ends.
#[derive(Debug)]
pub struct Reflector(UdpServer);

/// Answers each datagram with one, or with none.
#[derive(Debug)]
struct UdpServer {
    is_over: Arc<AtomicBool>,
    is_paused: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<SocketAddr>>>,
    threads: Vec<JoinHandle<()>>,
}

impl UdpEcho {
    /// Answers on one port of each address.
    ///
    /// # Errors
    /// If the namespace has no such address, or the port is taken.
    pub fn start(host: &Namespace, addresses: &[IpAddr], port: u16) -> Result<Self> {
        UdpServer::start(host, addresses, port, |datagram| Some(datagram.to_vec())).map(Self)
    }

    /// The clients that have sent something so far.
    #[must_use]
    pub fn seen(&self) -> BTreeSet<SocketAddr> {
        self.0.seen()
    }

    /// Stands still for this long; what came meanwhile is then answered at once.
    pub fn pause(&self, time: Duration) {
        self.0.is_paused.store(true, Ordering::Relaxed);
        thread::sleep(time);
        self.0.is_paused.store(false, Ordering::Relaxed);
    }
}

impl Reflector {
    /// Reflects on one port of each address.
    ///
    /// # Errors
    /// If the namespace has no such address, or the port is taken.
    pub fn start(host: &Namespace, addresses: &[IpAddr], port: u16) -> Result<Self> {
        UdpServer::start(host, addresses, port, reflected).map(Self)
    }

    /// Reflects, and alters what it sends back.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_altering(
        host: &Namespace,
        addresses: &[IpAddr],
        port: u16,
        alter: fn(&mut Vec<u8>),
    ) -> Result<Self> {
        let answer = move |packet: &[u8]| {
            let mut reply = reflected(packet)?;
            alter(&mut reply);
            Some(reply)
        };
        UdpServer::start(host, addresses, port, answer).map(Self)
    }

    /// The clients that have sent something so far.
    #[must_use]
    pub fn seen(&self) -> BTreeSet<SocketAddr> {
        self.0.seen()
    }
}

/// What a stateless reflector answers (RFC 8762 section 4.3.1): the sender's number and its own times first, then
/// what came, and whatever made it longer.
fn reflected(packet: &[u8]) -> Option<Vec<u8>> {
    const LEN: usize = 44;
    if packet.len() < LEN || packet[13] == 0 {
        // Too short, or an error estimate without multiplier, which there is not (RFC 4656 section 4.1.2).
        return None;
    }
    let now = std::time::SystemTime::now();
    let since_1970 = now.duration_since(std::time::UNIX_EPOCH).ok()?;
    let seconds = (since_1970.as_secs() + 2_208_988_800) as u32;
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    let time = [seconds.to_be_bytes(), (fraction as u32).to_be_bytes()].concat();
    let mut reply = Vec::with_capacity(packet.len());
    reply.extend_from_slice(&packet[..4]);
    reply.extend_from_slice(&time);
    reply.extend_from_slice(&[0x80 | 10, 1, 0, 0]);
    reply.extend_from_slice(&time);
    reply.extend_from_slice(&packet[..14]);
    reply.extend_from_slice(&[0, 0, 63, 0, 0, 0]);
    assert_eq!(reply.len(), LEN);
    reply.extend_from_slice(&packet[LEN..]);
    Some(reply)
}

impl UdpServer {
    fn start(
        host: &Namespace,
        addresses: &[IpAddr],
        port: u16,
        reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Clone + Send + 'static,
    ) -> Result<Self> {
        let mut echo = Self {
            is_over: Arc::default(),
            is_paused: Arc::default(),
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
            let is_paused = Arc::clone(&echo.is_paused);
            let reply = reply.clone();
            let answer = move || answer(&socket, [&is_over, &is_paused], &seen, reply);
            echo.threads.push(thread::spawn(answer));
        }
        Ok(echo)
    }

    fn seen(&self) -> BTreeSet<SocketAddr> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The kernel takes a moment to make an IPv6 address that was just added usable, and a process that another test just
/// starts holds the sockets of a server that ended until it has become another program.
fn when_usable<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match bind() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
                ) && Instant::now() < deadline =>
            {
                thread::sleep(PATIENCE);
            }
            result => return result,
        }
    }
}

fn answer(
    socket: &UdpSocket,
    [is_over, is_paused]: [&AtomicBool; 2],
    seen: &Mutex<BTreeSet<SocketAddr>>,
    reply: impl Fn(&[u8]) -> Option<Vec<u8>>,
) {
    crate::pace::stand_for_hardware();
    let mut datagram = [0; 65_536];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut datagram) {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(from);
            while is_paused.load(Ordering::Relaxed) && !is_over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            if let Some(reply) = reply(&datagram[..len]) {
                // What can't be sent is a reply lost, as anywhere.
                let _ = socket.send_to(&reply, from);
            }
        }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A TCP server that sends back what it gets; dropped, it ends.
#[derive(Debug)]
pub struct TcpEcho {
    is_over: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl TcpEcho {
    /// Listens on one port of each address. Its backlog is as short as can be: a client that leaves connections
    /// half open fills it at once.
    ///
    /// # Errors
    /// If the namespace has no such address, or the port is taken.
    pub fn start(host: &Namespace, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let mut echo = Self {
            is_over: Arc::default(),
            accepted: Arc::default(),
            threads: Vec::new(),
        };
        for &address in addresses {
            let listener = host.enter(|| {
                let listener = when_usable(|| TcpListener::bind((address, port)))
                    .with_context(|| format!("listen on {address}, TCP port {port}"))?;
                nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })?;
            let (is_over, accepted) = (Arc::clone(&echo.is_over), Arc::clone(&echo.accepted));
            let serve = move || serve(&listener, &is_over, &accepted);
            echo.threads.push(thread::spawn(serve));
        }
        Ok(echo)
    }

    /// Connections that were opened in full.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn serve(listener: &TcpListener, is_over: &AtomicBool, accepted: &AtomicUsize) {
    crate::pace::stand_for_hardware();
    while !is_over.load(Ordering::Relaxed) {
        let Ok((mut connection, _)) = listener.accept() else {
            thread::sleep(PATIENCE / 10);
            continue;
        };
        accepted.fetch_add(1, Ordering::Relaxed);
        // A connection that fails is its other end's concern.
        let _ = connection.set_nonblocking(false);
        let _ = connection.set_read_timeout(Some(PATIENCE));
        let mut bytes = [0; 4_096];
        while !is_over.load(Ordering::Relaxed) {
            match connection.read(&mut bytes) {
                Ok(0) => break,
                Ok(len) if connection.write_all(&bytes[..len]).is_ok() => {}
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Connections of a host that are half open: a SYN was answered, and nothing came after it.
///
/// # Errors
/// If /proc has no tables.
pub fn half_open(host: &Namespace) -> Result<usize> {
    const SYN_RECV: &str = "03";
    host.enter(|| {
        let mut count = 0;
        for table in ["tcp", "tcp6"] {
            let path = format!("/proc/thread-self/net/{table}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let states = text
                .lines()
                .filter_map(|line| line.split_whitespace().nth(3));
            count += states.filter(|state| *state == SYN_RECV).count();
        }
        Ok(count)
    })
}

/// One of a host's own counters of TCP, by its name in /proc/net/snmp or netstat.
///
/// # Errors
/// If there is none of that name.
pub fn tcp_counter(host: &Namespace, name: &str) -> Result<u64> {
    counter(host, &["Tcp:", "TcpExt:"], name)
}

/// One of a host's own counters of UDP over IPv4, by its name in /proc/net/snmp.
///
/// # Errors
/// If there is none of that name.
pub fn udp_counter(host: &Namespace, name: &str) -> Result<u64> {
    counter(host, &["Udp:"], name)
}

fn counter(host: &Namespace, protocols: &[&str], name: &str) -> Result<u64> {
    host.enter(|| {
        for table in ["snmp", "netstat"] {
            let path = format!("/proc/thread-self/net/{table}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let lines: Vec<Vec<&str>> = text
                .lines()
                .map(|line| line.split_whitespace().collect())
                .collect();
            for pair in lines.chunks(2) {
                if let [names, values] = pair
                    && protocols.contains(&names[0])
                    && let Some(at) = names.iter().position(|one| *one == name)
                {
                    return Ok(values[at].parse()?);
                }
            }
        }
        anyhow::bail!("no counter {name}")
    })
}

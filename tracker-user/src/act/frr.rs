//! FRR's distributed BFD: `bfdd --dplaneaddr unix:PATH` leaves the detection to a data plane, and this is one. A peer goes up and down
//! with the verdict of the member or tracker of its address; BFD packets are not sent.
//!
//! `bfdd` listens. What FRR 8.4.4 does decides how connections are kept (`docs/internals/surprises.md`):
//! - It tells a new connection of at most 58 sessions (FRR issue 22638: a buffer of 8,192 bytes) and the next connection of the next 58. So
//!   one more connection is opened for as long as the newest is told of that many.
//! - When a connection ends, its sessions move to the oldest one that is left, 58 of them at once. So a successor goes on with its
//!   predecessor's connections, which the service manager keeps (`FDSTORE=1`); their sessions are kept in a file. Messages stay in the
//!   socket's buffer until what follows from them is in that file.

pub mod sessions;
pub mod wire;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, recv};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tracker_ebpf::verdict::{Cause, Verdict};

pub use self::sessions::Peers;
use self::{
    sessions::{By, Connection, Peer},
    wire::{Counters, Diagnostic, Session, State, Told, WireError},
};
use super::view::{Member, Service, Tracker};
use crate::{
    error::full,
    host::{
        clock::monotonic_ns,
        notify::{KeptFile, Supervisor},
        repeats,
    },
    state::admin::AdminState,
};

/// Sessions that `bfdd` tells a new connection of: 58 messages of 140 bytes fill its buffer.
const AT_ONCE: usize = 58;
/// Connections to one `bfdd`, at most.
const CONNECTIONS: usize = 64;
/// Time between two attempts to connect.
const AGAIN: Duration = Duration::from_secs(1);
/// Time after which a new connection has been told of its sessions.
const REGISTRATION: Duration = Duration::from_millis(500);
/// Time between echo requests.
const ECHO: Duration = Duration::from_secs(1);
/// Time after the last request for counters after which an echo request follows. `bfdd` reclaims the buffer of what it read only when it
/// reads something that it does not wait for (FRR issue 22693): without that, the second `show bfd peers counters` ends the connection, and
/// 8.4.4 with it.
const ASKED: Duration = Duration::from_millis(2);
/// How long `bfdd` may take nothing before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the rest of a message may take.
const REST: Duration = Duration::from_millis(10);
/// Bytes that are read at once; more than the longest message.
const READ: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum FrrError {
    /// There is none.
    #[error("cannot connect to {}; start bfdd with `--dplaneaddr unix:{}`", .path.display(), .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It broke.
    #[error("the connection to bfdd broke")]
    Broken(#[source] io::Error),
    /// `bfdd` closed it.
    #[error("bfdd closed the connection")]
    Closed,
    /// What came cannot be read.
    #[error("bfdd sent what cannot be understood")]
    Wire(#[from] WireError),
    /// It does not read.
    #[error("bfdd has taken nothing for {} s", PATIENCE.as_secs())]
    Stuck,
    /// The sessions cannot be kept for the next process.
    #[error("cannot write {}", .path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// The sessions of each connection, by the name under which the service manager keeps it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    connections: BTreeMap<String, Vec<Session>>,
}

/// What the tasks of one `bfdd` share.
struct Shared {
    socket: PathBuf,
    file: PathBuf,
    peers: watch::Receiver<Arc<Peers>>,
    supervisor: Arc<Supervisor>,
    saved: Mutex<Saved>,
}

impl Shared {
    /// Keeps the sessions of a connection for the next process; none when the connection has ended.
    fn save(&self, name: &str, connection: Option<&Connection>) -> Result<(), FrrError> {
        let mut saved = self.saved.lock();
        match connection {
            Some(connection) => {
                let sessions = connection.sessions().cloned().collect();
                saved.connections.insert(name.to_owned(), sessions);
            }
            None => drop(saved.connections.remove(name)),
        }
        let failed = |source| FrrError::Keep {
            path: self.file.clone(),
            source,
        };
        let text = serde_json::to_vec(&*saved).map_err(|error| failed(error.into()))?;
        let next = self.file.with_extension("next");
        fs::write(&next, text).map_err(failed)?;
        fs::rename(&next, &self.file).map_err(failed)
    }
}

/// What a connection's task says.
enum News {
    /// A new connection has been told of so many sessions.
    Registered(usize),
    /// It has ended.
    Ended,
}

/// What names of connections of one `bfdd` begin with, and its file is called.
fn name_of(socket: &Path) -> String {
    let socket = crc32fast::hash(socket.as_os_str().as_encoded_bytes());
    format!("frr-{socket:08x}")
}

/// Takes the connections of one `bfdd` out of the files that the supervisor kept.
pub fn of_socket(socket: &Path, passed: &mut Vec<KeptFile>) -> Vec<KeptFile> {
    let name = name_of(socket);
    passed
        .extract_if(.., |kept| kept.name.starts_with(&name))
        .collect()
}

/// What sessions of `bfdd` may be about: the members of services and their trackers.
pub fn peers<'s>(services: impl IntoIterator<Item = &'s Service>) -> Peers {
    let mut peers = Peers::default();
    for service in services {
        for member in &service.members {
            let count = |count: fn(&Tracker) -> u64| member.trackers.iter().map(count).sum();
            peers.add(
                member.endpoint,
                Peer {
                    by: By::Interface(member.interface.clone()),
                    told: told(member.effective, member.cause, service, member),
                    counters: Counters {
                        received: count(|tracker| tracker.received),
                        sent: count(|tracker| tracker.sent),
                    },
                },
            );
            for tracker in &member.trackers {
                let is_imposed = |state| [service.admin, member.admin].contains(&state);
                // What counts of a tracker: nothing new during maintenance.
                let verdict = match tracker.verdict {
                    _ if is_imposed(AdminState::Maintenance) => Verdict::Unknown,
                    _ if is_imposed(AdminState::Down) => Verdict::Down,
                    _ if is_imposed(AdminState::Up) => Verdict::Up,
                    verdict => verdict,
                };
                peers.add(
                    tracker.behind,
                    Peer {
                        by: By::Source(None),
                        told: told(verdict, tracker.cause, service, member),
                        counters: Counters {
                            received: tracker.received,
                            sent: tracker.sent,
                        },
                    },
                );
            }
        }
    }
    peers
}

/// What `bfdd` is told of a verdict that counts; nothing of one that is not known.
fn told(verdict: Verdict, cause: Cause, service: &Service, member: &Member) -> Option<Told> {
    let is_imposed = [service.admin, member.admin].contains(&AdminState::Down);
    match verdict {
        Verdict::Unknown => None,
        Verdict::Up => Some(Told {
            state: State::Up,
            diagnostic: Diagnostic::None,
        }),
        Verdict::Down => Some(Told {
            state: State::Down,
            diagnostic: match cause {
                _ if is_imposed => Diagnostic::AdministrativelyDown,
                Cause::InterfaceDown | Cause::InterfaceMissing | Cause::NextHopUnresolved => {
                    Diagnostic::PathDown
                }
                Cause::WrongPath | Cause::Corrupt | Cause::UnexpectedReply => {
                    Diagnostic::ForwardingReset
                }
                Cause::Unreachable | Cause::Refused => Diagnostic::ConcatenatedPathDown,
                _ => Diagnostic::ControlTimeExpired,
            },
        }),
    }
}

/// Keeps `bfdd` told, until dropped. `kept` are a predecessor's connections, whose sessions are in a file of the state directory.
pub async fn run(
    socket: PathBuf,
    state: PathBuf,
    peers: watch::Receiver<Arc<Peers>>,
    supervisor: Arc<Supervisor>,
    kept: Vec<KeptFile>,
) {
    let prefix = name_of(&socket);
    let file = state.join(format!("{prefix}.json"));
    let mut saved: Saved = fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let mut resumed = Vec::new();
    for KeptFile { name, file } in kept {
        match (saved.connections.remove(&name), resume(file)) {
            (Some(sessions), Ok(stream)) => resumed.push((name, sessions, stream)),
            // What its sessions are is not known: `bfdd` moves them to another connection when the last copy is closed.
            _ => supervisor.forget(&name),
        }
    }
    let saved = resumed
        .iter()
        .map(|(name, sessions, _)| (name.clone(), sessions.clone()));
    let saved = Saved {
        connections: saved.collect(),
    };
    let mut wanted = peers.clone();
    let shared = Arc::new(Shared {
        socket,
        file,
        peers,
        supervisor,
        saved: Mutex::new(saved),
    });
    let (tell, mut news) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for (name, sessions, stream) in resumed {
        let (shared, tell) = (shared.clone(), tell.clone());
        tasks.spawn(async move {
            stay(&shared, &name, stream, Connection::of(sessions), None).await;
            // The receiver lives as long as the task.
            let _ = tell.send(News::Ended);
        });
    }
    // Names of an earlier process are others.
    let begun = monotonic_ns();
    let mut opened = 0u64;
    let mut open_at = Some(Instant::now());
    loop {
        let is_wanted = !wanted.borrow_and_update().is_empty();
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(news) = news.recv() => match news {
                News::Registered(sessions) if sessions < AT_ONCE => {}
                News::Registered(_) => open_at = Some(Instant::now()),
                // Sessions that no connection has are told to the next new one.
                News::Ended => open_at = Some(Instant::now() + AGAIN),
            },
            () = until(open_at), if is_wanted => {
                open_at = None;
                if tasks.len() >= CONNECTIONS {
                    continue;
                }
                opened += 1;
                let name = format!("{prefix}-{begun}-{opened}");
                let (shared, tell) = (shared.clone(), tell.clone());
                tasks.spawn(async move {
                    connect(&shared, &name, &tell).await;
                    // The receiver lives as long as the task.
                    let _ = tell.send(News::Ended);
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// A connection that the service manager kept.
fn resume(file: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdStream::from(file);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Opens a connection, and stays until it ends.
async fn connect(shared: &Shared, name: &str, tell: &mpsc::UnboundedSender<News>) {
    match UnixStream::connect(&shared.socket).await {
        Ok(stream) => stay(shared, name, stream, Connection::default(), Some(tell)).await,
        Err(source) => failed(&FrrError::Connect {
            path: shared.socket.clone(),
            source,
        }),
    }
}

fn failed(error: &FrrError) {
    let text = format_args!("FRR is not told of verdicts: {}", full(error));
    repeats::warn("frr", text);
}

/// Stays with a connection until it ends.
async fn stay(
    shared: &Shared,
    name: &str,
    stream: UnixStream,
    mut connection: Connection,
    registered: Option<&mpsc::UnboundedSender<News>>,
) {
    shared.supervisor.keep(name, &stream);
    let result = match shared.save(name, Some(&connection)) {
        Ok(()) => follow(shared, name, &stream, &mut connection, registered).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        failed(&error);
    }
    shared.supervisor.forget(name);
    if let Err(error) = shared.save(name, None) {
        failed(&error);
    }
}

/// Keeps one connection's sessions told.
async fn follow(
    shared: &Shared,
    name: &str,
    stream: &UnixStream,
    connection: &mut Connection,
    mut registered: Option<&mpsc::UnboundedSender<News>>,
) -> Result<(), FrrError> {
    let mut peers = shared.peers.clone();
    let mut echo = time::interval(ECHO);
    let registration = time::sleep(REGISTRATION);
    tokio::pin!(registration);
    let mut asked = None;
    let mut bytes = vec![0; READ];
    let known = peers.borrow_and_update().clone();
    send(stream, &connection.follow(&known)).await?;
    loop {
        tokio::select! {
            looked = look(stream, &mut bytes) => {
                let known = peers.borrow().clone();
                let waiting = bytes.get(..looked?).unwrap_or_default();
                let taken = connection.take(waiting, &known)?;
                // `bfdd` does nothing else until it has them.
                send(stream, &taken.answers).await?;
                if taken.has_changed {
                    shared.save(name, Some(connection))?;
                }
                send(stream, &taken.messages).await?;
                consume(stream, &mut bytes, taken.read)?;
                if taken.has_asked {
                    asked = Some(Instant::now() + ASKED);
                }
                if taken.read == 0 {
                    time::sleep(REST).await;
                }
            }
            changed = peers.changed() => {
                changed.map_err(|_| FrrError::Closed)?;
                let known = peers.borrow_and_update().clone();
                send(stream, &connection.follow(&known)).await?;
            }
            _ = echo.tick() => send(stream, &[wire::echo_request(monotonic_ns() / 1_000)]).await?,
            () = until(asked) => {
                asked = None;
                send(stream, &[wire::echo_request(monotonic_ns() / 1_000)]).await?;
            }
            () = &mut registration, if registered.is_some() => {
                if let Some(tell) = registered.take() {
                    // The receiver lives as long as the task.
                    let _ = tell.send(News::Registered(connection.count()));
                }
            }
        }
        for stranger in connection.take_strangers() {
            tracing::warn!(
                "bfdd has a session with {stranger}, which is neither an endpoint nor a behind address of a service of this action: it is \
                 reported neither up nor down, and with --dplaneaddr bfdd runs no BFD of its own"
            );
        }
    }
}

/// Waits for messages, which stay in the socket's buffer: says how many bytes there are.
async fn look(stream: &UnixStream, bytes: &mut [u8]) -> Result<usize, FrrError> {
    let looked = stream.async_io(Interest::READABLE, || {
        Ok(recv(stream.as_raw_fd(), bytes, MsgFlags::MSG_PEEK)?)
    });
    match looked.await {
        Ok(0) => Err(FrrError::Closed),
        Ok(len) => Ok(len),
        Err(error) => Err(FrrError::Broken(error)),
    }
}

/// Takes messages out of the socket's buffer.
fn consume(stream: &UnixStream, bytes: &mut [u8], len: usize) -> Result<(), FrrError> {
    let mut left = len;
    while left > 0 {
        let into = bytes.get_mut(..left).unwrap_or_default();
        match recv(stream.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(FrrError::Closed),
            Ok(len) => left -= len.min(left),
            Err(errno) => return Err(FrrError::Broken(errno.into())),
        }
    }
    Ok(())
}

/// Sends messages, each by one call: `bfdd` waits for the rest of one that comes in pieces.
async fn send(stream: &UnixStream, messages: &[Vec<u8>]) -> Result<(), FrrError> {
    let sent = time::timeout(PATIENCE, async {
        for message in messages {
            let mut left = message.as_slice();
            while !left.is_empty() {
                stream.writable().await?;
                match stream.try_write(left) {
                    Ok(len) => left = left.get(len..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    });
    match sent.await {
        Ok(result) => result.map_err(FrrError::Broken),
        Err(_) => Err(FrrError::Stuck),
    }
}

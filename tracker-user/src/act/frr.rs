//! FRR's distributed BFD: `bfdd --dplaneaddr unix:PATH` leaves the detection to a data plane, and this is one. A peer goes up and down
//! with the verdict of the member or tracker of its address; BFD packets are not sent.
//!
//! `bfdd` listens. It tells a new connection of at most 58 sessions at once (FRR issue 22638: a buffer of 8,192 bytes), so there are as many
//! connections as may be needed, and one more. When a connection ends, `bfdd` moves its sessions to another one without a word to its
//! protocols, if there is one: so a successor connects before the predecessor's connections, which the service manager keeps
//! (`FDSTORE=1`), are closed.

pub mod sessions;
pub mod wire;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::UnixStream, sync::watch, task::JoinSet, time};

use self::{
    sessions::{Connection, Peers},
    wire::WireError,
};
use crate::{
    error::full,
    host::{
        clock::monotonic_ns,
        notify::{KeptFile, Supervisor},
        repeats,
    },
};

/// Sessions that `bfdd` tells a new connection of at once: 58 messages of 140 bytes fill its buffer.
const AT_ONCE: usize = 58;
/// Connections to one `bfdd`, at most.
const CONNECTIONS: usize = 64;
/// Time between two attempts to connect.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between echo requests. `bfdd` reclaims the buffer of what it read only when it reads something that it did not wait for (FRR issue
/// 22693): without them, repeated requests for counters end the connection.
const ECHO: Duration = Duration::from_secs(1);
/// How long `bfdd` may take nothing before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a predecessor's connections are kept beside new ones: `bfdd` accepts one at a turn of its loop.
const OVERLAP: Duration = Duration::from_secs(1);
/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum FrrError {
    /// There is none.
    #[error("cannot connect to {}: start bfdd with `--dplaneaddr unix:{0}`", .path.display())]
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
}

/// Keeps `bfdd` told, until dropped. `kept` are a predecessor's connections.
pub async fn run(
    socket: PathBuf,
    peers: watch::Receiver<Arc<Peers>>,
    supervisor: Arc<Supervisor>,
    kept: Vec<KeptFile>,
) {
    // Names of an earlier process are others.
    let begun = monotonic_ns();
    let mut connections = JoinSet::new();
    let (open, mut opened) = watch::channel(0usize);
    let open = Arc::new(open);
    let mut wanted = peers.clone();
    let mut kept = (!kept.is_empty()).then_some(kept);
    let mut release = None::<Instant>;
    loop {
        let count = wanted.borrow_and_update().len();
        let count = match count {
            0 => 0,
            count => (count.div_ceil(AT_ONCE) + 1).min(CONNECTIONS),
        };
        while connections.len() < count {
            let number = connections.len();
            let (socket, peers, open) = (socket.clone(), peers.clone(), open.clone());
            let supervisor = supervisor.clone();
            connections.spawn(async move {
                let name = format!("frr-{begun}-{number}");
                stay(&name, number == 0, &socket, peers, &supervisor, &open).await;
            });
        }
        if kept.is_some() && release.is_none() && *opened.borrow_and_update() >= count {
            release = Some(Instant::now() + OVERLAP);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = opened.changed(), if kept.is_some() => if changed.is_err() { return },
            () = until(release), if kept.is_some() => {
                for KeptFile { name, .. } in kept.take().into_iter().flatten() {
                    supervisor.forget(&name);
                }
            }
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// Stays connected.
async fn stay(
    name: &str,
    is_first: bool,
    path: &Path,
    peers: watch::Receiver<Arc<Peers>>,
    supervisor: &Supervisor,
    open: &watch::Sender<usize>,
) {
    loop {
        let ended = match UnixStream::connect(path).await {
            Err(source) => FrrError::Connect {
                path: path.to_owned(),
                source,
            },
            Ok(stream) => {
                supervisor.keep(name, &stream);
                open.send_modify(|open| *open += 1);
                let ended = follow(stream, peers.clone()).await;
                open.send_modify(|open| *open -= 1);
                supervisor.forget(name);
                ended
            }
        };
        // Each of many connections would say the same.
        if is_first {
            let text = format_args!("FRR is not told of verdicts: {}", full(&ended));
            repeats::warn("frr", text);
        }
        time::sleep(AGAIN).await;
    }
}

/// Keeps one connection's sessions told, until it ends.
async fn follow(stream: UnixStream, mut peers: watch::Receiver<Arc<Peers>>) -> FrrError {
    let mut connection = Connection::default();
    let mut echo = time::interval(ECHO);
    let mut bytes = vec![0; READ];
    let mut out = Vec::new();
    loop {
        let result = tokio::select! {
            readable = stream.readable() => match readable.and_then(|()| stream.try_read(&mut bytes)) {
                Ok(0) => return FrrError::Closed,
                Ok(len) => {
                    let known = peers.borrow().clone();
                    let read = bytes.get(..len).unwrap_or_default();
                    connection.take(read, &known, &mut out).map_err(FrrError::from)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => return FrrError::Broken(error),
            },
            changed = peers.changed() => match changed {
                Ok(()) => {
                    let known = peers.borrow_and_update().clone();
                    connection.follow(&known, &mut out);
                    Ok(())
                }
                Err(_) => return FrrError::Closed,
            },
            _ = echo.tick() => {
                out.push(wire::echo_request(monotonic_ns() / 1_000));
                Ok(())
            }
        };
        for stranger in connection.take_strangers() {
            tracing::warn!(
                "bfdd has a session with {stranger}, which is neither an endpoint nor a behind address of a service of this action: it is \
                 reported neither up nor down, and with --dplaneaddr bfdd runs no BFD of its own"
            );
        }
        for message in out.drain(..) {
            if let Err(error) = send(&stream, &message).await {
                return error;
            }
        }
        if let Err(error) = result {
            return error;
        }
    }
}

/// Sends a message by one call: `bfdd` waits for the rest of one that comes in pieces.
async fn send(stream: &UnixStream, message: &[u8]) -> Result<(), FrrError> {
    let sent = time::timeout(PATIENCE, async {
        let mut left = message;
        while !left.is_empty() {
            stream.writable().await?;
            match stream.try_write(left) {
                Ok(len) => left = left.get(len..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    match sent.await {
        Ok(result) => result.map_err(FrrError::Broken),
        Err(_) => Err(FrrError::Stuck),
    }
}

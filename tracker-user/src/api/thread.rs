//! The thread that answers clients. It shares with the main loop no more than what it answers from, so a main loop
//! that hangs does not hide that it does.

use std::{io, net::SocketAddr, thread, time::Duration};

use tokio::{net::TcpListener, sync::oneshot};

use super::answers::Answers;
use crate::{
    api::{
        http,
        routes::{self, Scope},
        socket::Socket,
    },
    config::{
        self,
        keys::{Key, METRICS},
    },
    error::full,
    host::{privileges, repeats},
};

/// Ports below this one need a capability (`ip_unprivileged_port_start` is 1,024 by default).
const FIRST_FREE_PORT: u16 = 1_024;
/// Time between two attempts to listen on an address that is not there.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The running thread, seen from the main loop.
pub struct ApiThread {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

/// Why the thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ApiThreadError {
    /// The system has no descriptor.
    #[error("cannot start the runtime of the thread that answers clients")]
    Runtime(#[source] io::Error),
    /// The system has no thread.
    #[error("cannot start the thread that answers clients")]
    Thread(#[source] io::Error),
}

/// Starts the thread.
///
/// # Errors
/// When the system has no thread or descriptor left.
pub fn start(
    socket: Socket,
    metrics: Option<SocketAddr>,
    _api: &config::Api,
    answers: Answers,
) -> Result<ApiThread, ApiThreadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ApiThreadError::Runtime)?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("tracker-answer".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Also when the sender is dropped.
                    _ = stopped => {}
                    () = answer(socket, metrics, answers) => {}
                }
            });
        })
        .map_err(ApiThreadError::Thread)?;
    Ok(ApiThread { stop, thread })
}

impl ApiThread {
    /// Ends all connections and removes the socket.
    pub fn stop(self) {
        // A thread that is gone has done so.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

async fn answer(socket: Socket, metrics: Option<SocketAddr>, answers: Answers) {
    let scrapes = async {
        let Some(address) = metrics else {
            return limit();
        };
        let listener = bind(address, "metrics", &METRICS).await;
        limit();
        tracing::info!("serving metrics on {address}");
        http::serve_tcp(listener, routes::router(&answers, Scope::Metrics)).await;
    };
    let clients = http::serve_unix(socket, routes::router(&answers, Scope::All));
    tokio::join!(clients, scrapes);
}

/// Listens on an address, which may come late.
async fn bind(address: SocketAddr, what: &str, key: &Key) -> TcpListener {
    let listen = async || {
        TcpListener::bind(address).await.map_err(|error| {
            format!(
                "cannot serve {what} on {address}: {error}; set {} to a free address of this hub",
                key.quoted()
            )
        })
    };
    let mut listener = listen().await;
    if listener.is_ok() || address.port() >= FIRST_FREE_PORT {
        limit();
    }
    loop {
        match listener {
            Ok(listener) => return listener,
            Err(error) => repeats::warn(what, format_args!("{error}; trying again every second")),
        }
        tokio::time::sleep(BIND_AGAIN).await;
        listener = listen().await;
    }
}

/// Gives up what this thread does not need (any more).
fn limit() {
    if let Err(error) = privileges::limit_to_run() {
        tracing::error!(
            "{}; the thread that answers clients keeps more than it needs",
            full(&error)
        );
    }
}

//! The thread that answers clients. It shares with the main loop no more than what it answers from, so a main loop
//! that hangs does not hide that it does.

use std::{io, net::SocketAddr, thread};

use tokio::sync::oneshot;

use super::answers::Answers;
use crate::{
    api::{
        metrics,
        server::{self, Socket},
    },
    error::full,
    host::{privileges, repeats},
};

/// Ports below this one need a capability (`ip_unprivileged_port_start` is 1,024 by default).
const FIRST_FREE_PORT: u16 = 1_024;

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
        let mut listener = metrics::bind(address).await;
        if listener.is_ok() || address.port() >= FIRST_FREE_PORT {
            limit();
        }
        let listener = loop {
            match listener {
                Ok(listener) => break listener,
                Err(error) => repeats::warn(
                    "metrics address",
                    format_args!("{error}; trying again every second"),
                ),
            }
            tokio::time::sleep(metrics::BIND_AGAIN).await;
            listener = metrics::bind(address).await;
        };
        limit();
        tracing::info!("serving metrics on {address}");
        metrics::serve(listener, answers.clone()).await;
    };
    tokio::join!(server::serve(socket, answers.clone()), scrapes);
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

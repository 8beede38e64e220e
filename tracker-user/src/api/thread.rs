//! The thread that answers clients. It shares with the main loop no more than what it answers from, so a main loop
//! that hangs does not hide that it does.

use std::{cell::Cell, io, net::SocketAddr, thread, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use super::answers::Answers;
use crate::{
    api::{
        http,
        listen::Listen,
        routes::{self, Scope},
        socket::Socket,
        web,
    },
    config::keys::{Key, LISTEN, METRICS},
    host::{privileges, repeats},
};

/// Ports below this one need a capability (`ip_unprivileged_port_start` is 1,024 by default).
const FIRST_FREE_PORT: u16 = 1_024;
/// Time between two attempts to listen on an address that is not there.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The running thread, seen from the main loop.
pub struct ApiThread {
    stop: oneshot::Sender<()>,
    listen: watch::Sender<Option<Listen>>,
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
    listen: Option<Listen>,
    answers: Answers,
) -> Result<ApiThread, ApiThreadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ApiThreadError::Runtime)?;
    let (stop, stopped) = oneshot::channel();
    let (listen, wanted) = watch::channel(listen);
    let thread = thread::Builder::new()
        .name("tracker-answer".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Also when the sender is dropped.
                    _ = stopped => {}
                    () = answer(socket, metrics, wanted, answers) => {}
                }
            });
        })
        .map_err(ApiThreadError::Thread)?;
    Ok(ApiThread {
        stop,
        listen,
        thread,
    })
}

impl ApiThread {
    /// Serves the API over TCP like this from now on; connections as before are ended.
    pub fn listen(&self, listen: Option<Listen>) {
        // A thread that is gone has said so.
        let _ = self.listen.send(listen);
    }

    /// Ends all connections and removes the socket.
    pub fn stop(self) {
        // A thread that is gone has done so.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

async fn answer(
    socket: Socket,
    metrics: Option<SocketAddr>,
    mut listen: watch::Receiver<Option<Listen>>,
    answers: Answers,
) {
    let ports = Ports::new(
        metrics
            .into_iter()
            .chain(listen.borrow().as_ref().map(|listen| listen.address)),
    );
    let scrapes = async {
        let Some(address) = metrics else { return };
        let listener = ports.bind(address, "metrics", &METRICS).await;
        tracing::info!("serving metrics on {address}");
        http::serve_tcp(listener, None, routes::router(&answers, Scope::Metrics)).await;
    };
    let over_tcp = async {
        loop {
            let now = listen.borrow_and_update().clone();
            let served = async {
                let Some(listen) = now else {
                    return std::future::pending().await;
                };
                let listener = ports.bind(listen.address, "the API", &LISTEN).await;
                let scheme = if listen.tls.is_some() {
                    "https"
                } else {
                    "http"
                };
                tracing::info!("serving the API on {scheme}://{}", listen.address);
                let mut router = routes::router(&answers, Scope::ReadOnly);
                if listen.web {
                    router = router.merge(web::router());
                }
                let router = listen.guard(router);
                http::serve_tcp(listener, listen.tls, router).await;
            };
            tokio::select! {
                changed = listen.changed() => if changed.is_err() { return },
                () = served => {}
            }
        }
    };
    let clients = http::serve_unix(socket, routes::router(&answers, Scope::All));
    tokio::join!(clients, scrapes, over_tcp);
}

/// The privilege to listen on ports below 1024, which is given up once those of the start are bound. A port that a reload brings
/// is bound without it.
struct Ports {
    /// How many such ports are not bound yet.
    left: Cell<usize>,
}

impl Ports {
    fn new(addresses: impl Iterator<Item = SocketAddr>) -> Self {
        let left = addresses.filter(|address| address.port() < FIRST_FREE_PORT);
        let ports = Self {
            left: Cell::new(left.count()),
        };
        ports.limit();
        ports
    }

    /// Listens on an address, which may come late.
    async fn bind(&self, address: SocketAddr, what: &str, key: &Key) -> TcpListener {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    if address.port() < FIRST_FREE_PORT {
                        self.left.set(self.left.get().saturating_sub(1));
                        self.limit();
                    }
                    return listener;
                }
                Err(error) => {
                    let text = format_args!(
                        "cannot serve {what} on {address}: {error}; set {} to a free address of this hub; trying again every second",
                        key.quoted()
                    );
                    repeats::warn(what, text);
                }
            }
            tokio::time::sleep(BIND_AGAIN).await;
        }
    }

    /// Gives up what this thread does not need any more.
    fn limit(&self) {
        if self.left.get() > 0 {
            return;
        }
        privileges::limit_thread("the thread that answers clients");
    }
}

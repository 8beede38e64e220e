//! HTTP/1.1 connections: accepts clients of the Unix socket and of TCP, and gives each request to the router.
//!
//! Every connection is a task of its own that shares nothing with others. Their number, the time for a request's head and body,
//! and the time for which a client may leave an answer unread are limited; only a reader that follows events may be slow.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf, unix::AsyncFd},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, Sleep},
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::socket::{Socket, again};
use crate::host::repeats;

/// A client has this long for the head of a request, for its body, and for each piece of an answer that it takes.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// More clients of the Unix socket at a time are turned away.
pub const MAX_CLIENTS: usize = 256;
/// More clients of one TCP address at a time are turned away.
const MAX_TCP_CLIENTS: usize = 64;
/// How often the socket's file is looked for.
const SOCKET_LOOK: Duration = Duration::from_secs(1);
/// Pause after a client could not be accepted: most likely descriptors are short, which only time mends.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// What a client is told that finds no place.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\n\
    Content-Length: 167\r\n\r\n{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"as many clients are connected as the daemon serves at a time; end some, or try again later\"}";

/// What is known of a client beside its requests.
#[derive(Clone, Debug)]
pub struct Client {
    /// User at the other end of the Unix socket; `None` over TCP.
    pub uid: Option<u32>,
    /// Set once the client follows a stream: it may then leave it unread for as long as it likes, and leaves by closing its side.
    pub follows: Arc<watch::Sender<bool>>,
}

/// Answers clients of the Unix socket for ever; makes the socket anew when its file was removed. Dropping the future ends
/// every connection.
pub async fn serve_unix(socket: Socket, router: Router) {
    let (listener, mut file) = socket.into_parts();
    let Ok(mut listener) = UnixListener::from_std(listener) else {
        tracing::error!(
            "this thread has no runtime for the daemon's socket; this is a bug, please report it"
        );
        return;
    };
    let mut clients = Clients::new(MAX_CLIENTS);
    let mut look = tokio::time::interval(SOCKET_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let uid = peer(&stream);
                    clients.serve(stream, uid, &router);
                }
                Err(error) => accept_failed("the daemon's socket", &error).await,
            },
            Some(_) = clients.tasks.join_next() => {}
            _ = look.tick() => {
                if file.is_gone() && let Some(made) = again(&file) {
                    (listener, file) = made;
                }
            }
        }
    }
}

/// Answers clients of a TCP address for ever, by TLS if there is an acceptor. Dropping the future ends every connection.
pub async fn serve_tcp(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    let mut clients = Clients::new(MAX_TCP_CLIENTS);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match &tls {
                    Some(tls) => clients.serve_tls(stream, tls.clone(), &router),
                    None => clients.serve(stream, None, &router),
                },
                Err(error) => accept_failed("a TCP address", &error).await,
            },
            Some(_) = clients.tasks.join_next() => {}
        }
    }
}

/// The user at the other end; none if the kernel does not say, so that it may write nothing.
fn peer(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|peer| peer.uid())
}

async fn accept_failed(on: &str, error: &io::Error) {
    let text = format_args!("cannot accept a client on {on}: {error}; trying again");
    repeats::warn("accept a client", text);
    tokio::time::sleep(ACCEPT_AGAIN).await;
}

struct Clients {
    slots: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Clients {
    fn new(most: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(most)),
            tasks: JoinSet::new(),
        }
    }

    fn serve<S>(&mut self, stream: S, uid: Option<u32>, router: &Router)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        match self.slots.clone().try_acquire_owned() {
            Ok(slot) => {
                let router = router.clone();
                let closed = closed(&stream);
                self.tasks
                    .spawn(connection(stream, closed, uid, router, slot));
            }
            Err(_) => drop(self.tasks.spawn(turn_away(stream))),
        }
    }
}

impl Clients {
    fn serve_tls(&mut self, stream: TcpStream, tls: TlsAcceptor, router: &Router) {
        // What does not find a place is not worth a handshake.
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        let router = router.clone();
        let closed = closed(&stream);
        self.tasks.spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                connection(stream, closed, None, router, slot).await;
            }
        });
    }
}

async fn turn_away<S: AsyncWrite + Unpin>(mut stream: S) {
    // Into an empty buffer, so this does not wait; if it would, the client does without.
    let _ = tokio::time::timeout(Duration::from_millis(100), stream.write_all(FULL)).await;
}

/// Waits until the client has closed its side; for ever if that cannot be watched.
fn closed<S: AsFd>(stream: &S) -> impl Future<Output = ()> + Send + use<S> {
    let watch = |stream: OwnedFd| -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: an OwnedFd is open, and the same descriptor, until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(stream, Interest::READABLE) }?)
    };
    let watched = stream.as_fd().try_clone_to_owned().and_then(watch);
    async move {
        let Ok(watched) = watched else {
            return std::future::pending().await;
        };
        while let Ok(mut ready) = watched.ready(Interest::READABLE).await {
            if ready.ready().is_read_closed() {
                return;
            }
            // Only what comes after this wakes again.
            ready.clear_ready();
        }
    }
}

/// Serves one connection until its client leaves or breaks a limit.
///
/// A client that has closed its side gets the answer to what it has sent, except one that follows: it has no other way to end
/// that.
pub(super) async fn connection<S>(
    stream: S,
    closed: impl Future<Output = ()>,
    uid: Option<u32>,
    router: Router,
    slot: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = Client {
        uid,
        follows: Arc::default(),
    };
    let stream = Patient::new(stream, client.follows.clone());
    let mut follows = client.follows.subscribe();
    let leaves = async {
        // The sender lives as long as the connection.
        let _ = follows.wait_for(|follows| *follows).await;
        closed.await;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(client.clone());
        async move {
            Ok::<_, Infallible>(
                router
                    .call(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    // A client that went away or sent nonsense is no fault of the daemon.
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = served => {}
        () = leaves => {}
    }
    drop(slot);
}

/// A stream whose reader must take something within [`PATIENCE`], unless it follows.
struct Patient<S> {
    stream: S,
    /// Until when the write that waits must go on.
    until: Option<Pin<Box<Sleep>>>,
    follows: Arc<watch::Sender<bool>>,
}

impl<S> Patient<S> {
    const fn new(stream: S, follows: Arc<watch::Sender<bool>>) -> Self {
        Self {
            stream,
            until: None,
            follows,
        }
    }

    /// What a write answers: an error if it has waited too long.
    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || *self.follows.borrow() {
            self.until = None;
            return written;
        }
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + PATIENCE)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_full_server_is_whole() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
        let problem: super::super::problem::Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, 503);
    }
}

//! The command line's end of the API: HTTP over the daemon's Unix socket, with time limits.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::problem::Problem;

/// How long a client waits for an answer, and for each piece of a long one, before it says that there is none.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long a client waits for the answer to a change: not knowing whether it was is worse than waiting.
const CHANGE_WAIT: Duration = Duration::from_secs(60);
/// Characters that stand for themselves in a path or a query (RFC 3986, section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why a client has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers.
    #[error("cannot reach the daemon at {}: {source}; {}", .path.display(), remedy(.source.kind()))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon says why not.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// The answer makes no sense.
    #[error("cannot understand the daemon at {}: {why}; use a `tracker` of the daemon's version", .path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl ClientError {
    /// The daemon ended an answer that goes on.
    pub fn ended(path: &Path) -> Self {
        Self::Unreachable {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "it ended the connection"),
        }
    }
}

/// What to do about a daemon that cannot be reached.
const fn remedy(why: io::ErrorKind) -> &'static str {
    match why {
        io::ErrorKind::NotFound => "is `tracker run` running? give --socket if it uses another one",
        io::ErrorKind::ConnectionRefused => {
            "no daemon listens there any more; start `tracker run`, or give --socket if it uses another one"
        }
        io::ErrorKind::PermissionDenied => {
            "run this as root, or as a member of [hub] socket_group to read"
        }
        io::ErrorKind::TimedOut => {
            "it is there and busy, or stands still: look at its log, and try again"
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it ends or is replaced by another one; try again",
        _ => "give --socket if the daemon uses another one",
    }
}

/// A request.
pub struct Call<'c> {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, &'static str)>,
    body: Vec<u8>,
    socket: &'c Path,
}

impl<'c> Call<'c> {
    /// A request to a path, whose parts are `parts`.
    pub fn new(socket: &'c Path, method: Method, parts: &[&str]) -> Self {
        let parts = parts
            .iter()
            .map(|part| utf8_percent_encode(part, UNRESERVED));
        let path = parts.map(|part| format!("/{part}")).collect();
        Self {
            method,
            path,
            headers: Vec::new(),
            body: Vec::new(),
            socket,
        }
    }

    /// With a query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        let value = utf8_percent_encode(value, UNRESERVED);
        self.path = format!("{}{mark}{name}={value}", self.path);
        self
    }

    /// With these names, each as a query parameter.
    #[must_use]
    pub fn names(self, names: &[String]) -> Self {
        names
            .iter()
            .fold(self, |call, name| call.query("service", name))
    }

    /// With a body of JSON.
    #[must_use]
    pub fn body(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.headers
            .push((header::CONTENT_TYPE, "application/json"));
        self
    }

    /// Only if what it makes does not exist.
    #[must_use]
    pub fn only_new(mut self) -> Self {
        self.headers.push((header::IF_NONE_MATCH, "*"));
        self
    }

    /// Sends it and returns the answer: its text, and what it says.
    ///
    /// # Errors
    /// When there is no answer in time, the daemon refuses, or the answer makes no sense.
    pub fn ask<T: DeserializeOwned>(self) -> Result<(String, T), ClientError> {
        let path = self.socket.to_owned();
        let text = self.ask_text()?;
        match serde_json::from_str(&text) {
            Ok(said) => Ok((text, said)),
            Err(error) => Err(ClientError::Garbled {
                path,
                why: error.to_string(),
            }),
        }
    }

    /// Sends it and returns the answer's text.
    ///
    /// # Errors
    /// When there is no answer in time, or the daemon refuses.
    pub fn ask_text(self) -> Result<String, ClientError> {
        let mut bytes = Vec::new();
        let wait = match self.method {
            Method::GET => ANSWER_WAIT,
            _ => CHANGE_WAIT,
        };
        let path = self.socket.to_owned();
        self.run(wait, Some(wait), |piece| {
            bytes.extend_from_slice(piece);
            ControlFlow::Continue(())
        })?;
        String::from_utf8(bytes).map_err(|error| ClientError::Garbled {
            path,
            why: error.to_string(),
        })
    }

    /// Sends it and gives each line of the answer to `each`, until that breaks or the answer ends. Between lines any time may
    /// pass.
    ///
    /// # Errors
    /// When there is no answer in time, or the daemon refuses.
    pub fn lines(self, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Result<(), ClientError> {
        let mut rest = Vec::new();
        self.run(ANSWER_WAIT, None, |piece| {
            rest.extend_from_slice(piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                each(String::from_utf8_lossy(&line).trim_end())?;
            }
            ControlFlow::Continue(())
        })
    }

    /// Sends the request; the head of the answer must come within `wait`, and each piece of it within `next`.
    fn run(
        self,
        wait: Duration,
        next: Option<Duration>,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let path = self.socket.to_owned();
        let unreachable = |source: io::Error| ClientError::Unreachable {
            path: path.clone(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(unreachable)?;
        runtime.block_on(async {
            let late = |_| unreachable(no_answer());
            let (status, mut body) = timeout(wait, self.send())
                .await
                .map_err(late)?
                .map_err(unreachable)?;
            let is_refused = !status.is_success();
            let next = if is_refused { Some(ANSWER_WAIT) } else { next };
            let mut refusal = Vec::new();
            loop {
                let frame = match next {
                    Some(next) => timeout(next, body.frame()).await.map_err(late)?,
                    None => body.frame().await,
                };
                let Some(frame) = frame else { break };
                let Ok(piece) = frame
                    .map_err(|error| unreachable(of_hyper(&error)))?
                    .into_data()
                else {
                    continue;
                };
                if is_refused {
                    refusal.extend_from_slice(&piece);
                } else if each(&piece).is_break() {
                    return Ok(());
                }
            }
            match is_refused {
                false => Ok(()),
                true => Err(refused(&refusal, &path, status, &self.path)),
            }
        })
    }

    async fn send(&self) -> io::Result<(StatusCode, Incoming)> {
        self.send_by(&mut connect(self.socket).await?).await
    }

    async fn send_by(&self, sender: &mut Sender) -> io::Result<(StatusCode, Incoming)> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .header(header::HOST, "localhost");
        for (name, value) in &self.headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(Bytes::from(self.body.clone())));
        let request = request.map_err(io::Error::other)?;
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(|error| of_hyper(&error))?.into_parts();
        Ok((head.status, body))
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn connect(socket: &Path) -> io::Result<Sender> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| of_hyper(&error))?;
    // Ends with the connection.
    tokio::spawn(connection);
    Ok(sender)
}

/// A client that asks again and again, in a runtime of its caller's: its connection stays open as long as the daemon lets it.
pub struct Client {
    path: PathBuf,
    sender: Option<Sender>,
}

impl Client {
    /// A client of the daemon at this socket, which is not connected yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            sender: None,
        }
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// When there is no answer in time, or the daemon refuses. The next request begins with a new connection then.
    pub async fn ask(&mut self, call: Call<'_>) -> Result<Bytes, ClientError> {
        let asked = timeout(ANSWER_WAIT, self.try_ask(&call)).await;
        let (status, body) = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => return Err(self.failed(source)),
            Err(_) => return Err(self.failed(no_answer())),
        };
        match status.is_success() {
            true => Ok(body),
            false => Err(refused(&body, &self.path, status, &call.path)),
        }
    }

    fn failed(&mut self, source: io::Error) -> ClientError {
        self.sender = None;
        ClientError::Unreachable {
            path: self.path.clone(),
            source,
        }
    }

    async fn try_ask(&mut self, call: &Call<'_>) -> io::Result<(StatusCode, Bytes)> {
        // One that was idle for long may have been closed by the daemon, which shows only when it is used.
        let (status, body) = match self.sender.take() {
            Some(mut old) => match call.send_by(&mut old).await {
                Ok(answer) => {
                    self.sender = Some(old);
                    answer
                }
                Err(_) => self.send_anew(call).await?,
            },
            None => self.send_anew(call).await?,
        };
        let body = body.collect().await.map_err(|error| of_hyper(&error))?;
        Ok((status, body.to_bytes()))
    }

    async fn send_anew(&mut self, call: &Call<'_>) -> io::Result<(StatusCode, Incoming)> {
        let mut sender = connect(&self.path).await?;
        let answer = call.send_by(&mut sender).await?;
        self.sender = Some(sender);
        Ok(answer)
    }
}

/// An answer that goes on, line by line.
pub struct Lines {
    path: PathBuf,
    body: Incoming,
    rest: Vec<u8>,
    /// How much of `rest` was given out.
    read: usize,
}

impl Lines {
    /// Sends a request and returns its answer.
    ///
    /// # Errors
    /// When there is no answer in time, or the daemon refuses.
    pub async fn of(call: Call<'_>) -> Result<Self, ClientError> {
        let path = call.socket.to_owned();
        let unreachable = |source| ClientError::Unreachable {
            path: path.clone(),
            source,
        };
        let (status, body) = timeout(ANSWER_WAIT, call.send())
            .await
            .map_err(|_| unreachable(no_answer()))?
            .map_err(unreachable)?;
        if !status.is_success() {
            let body = timeout(ANSWER_WAIT, body.collect())
                .await
                .map_err(|_| unreachable(no_answer()))?
                .map_err(|error| unreachable(of_hyper(&error)))?;
            return Err(refused(&body.to_bytes(), &path, status, &call.path));
        }
        Ok(Self {
            path,
            body,
            rest: Vec::new(),
            read: 0,
        })
    }

    /// The next line that is here already.
    pub fn at_hand(&mut self) -> Option<String> {
        let rest = &self.rest[self.read..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            self.rest.drain(..self.read);
            self.read = 0;
            return None;
        };
        let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
        self.read += end + 1;
        Some(line)
    }

    /// Waits until more is here, for any time; false at the end of the answer. Nothing is lost if it is dropped before that.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn more(&mut self) -> Result<bool, ClientError> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    self.rest.extend_from_slice(&piece);
                }
                Ok(true)
            }
            Some(Err(error)) => Err(ClientError::Unreachable {
                path: self.path.clone(),
                source: of_hyper(&error),
            }),
        }
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// What a refusal says.
fn refused(body: &[u8], path: &Path, status: StatusCode, asked: &str) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Garbled {
            path: path.to_owned(),
            why: format!("it answers {status} to {asked}"),
        },
    }
}

/// What the system answered, if that is behind an error of the library.
fn of_hyper(error: &hyper::Error) -> io::Error {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return io::Error::new(inner.kind(), inner.to_string());
        }
        source = inner.source();
    }
    let kind = match error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        true => io::ErrorKind::UnexpectedEof,
        false => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn no_daemon_is_said_in_one_line() {
        let ask = |path: &Path| {
            let asked = Call::new(path, Method::GET, &["v1", "status"]).ask_text();
            asked.unwrap_err().to_string()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let error = ask(&path);
        let start = format!("cannot reach the daemon at {}: ", path.display());
        assert!(error.starts_with(&start), "{error}");
        assert!(
            error.ends_with("; is `tracker run` running? give --socket if it uses another one")
        );
        // If a daemon is or was there, the text does not ask whether it runs.
        let left = dir.path().join("left.sock");
        drop(UnixListener::bind(&left).unwrap());
        let error = ask(&left);
        assert!(
            error.contains("; no daemon listens there any more"),
            "{error}"
        );
        let silent = dir.path().join("silent.sock");
        let _listener = UnixListener::bind(&silent).unwrap();
        let call = Call::new(&silent, Method::GET, &["v1", "status"]);
        let asked = call.run(Duration::from_millis(20), None, |_| ControlFlow::Break(()));
        let error = asked.unwrap_err().to_string();
        assert!(
            error.contains("no answer in time; it is there and busy"),
            "{error}"
        );
    }

    #[test]
    fn names_are_encoded() {
        let call = Call::new(Path::new("/x"), Method::GET, &["v1", "services", "a b?%é"]);
        let call = call.names(&["fw-*".to_owned(), "x&y".to_owned()]);
        let path = "/v1/services/a%20b%3F%25%C3%A9?service=fw-%2A&service=x%26y";
        assert_eq!(call.path, path);
    }
}

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
            let late =
                |_| unreachable(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
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
                true => Err(match serde_json::from_slice(&refusal) {
                    Ok(problem) => ClientError::Refused(Box::new(problem)),
                    Err(_) => ClientError::Garbled {
                        path: path.clone(),
                        why: format!("it answers {status} to {}", self.path),
                    },
                }),
            }
        })
    }

    async fn send(&self) -> io::Result<(StatusCode, Incoming)> {
        let stream = UnixStream::connect(self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| of_hyper(&error))?;
        // Ends with the connection.
        tokio::spawn(connection);
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

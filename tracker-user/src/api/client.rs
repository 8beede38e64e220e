//! The client's end of the daemon's Unix socket: sends a request and reads the answer, with a time limit.

use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::protocol::{Done, Refusal, Request, line};
use super::types::{List, Status};

/// How long a client waits for an answer of one line before it says that there is none.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long a client waits for the answer to a change: not knowing whether it was is worse than waiting.
const CHANGE_WAIT: Duration = Duration::from_secs(60);

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
    #[error("{0}")]
    Refused(String),
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
        io::ErrorKind::PermissionDenied => "run this as root, whose the socket is",
        io::ErrorKind::TimedOut => {
            "it is there and busy, or stands still: look at its log, and try again"
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it ends or is replaced by another one; try again",
        _ => "give --socket if the daemon uses another one",
    }
}

/// Sends a request and gives each line of the answer to `each`, until that breaks or the answer
/// ends. Without `wait`, a line may take any time.
pub fn ask(
    socket: &Path,
    request: &Request,
    wait: Option<Duration>,
    mut each: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let unreachable = |source: io::Error| {
        let source = match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
            }
            _ => source,
        };
        ClientError::Unreachable {
            path: socket.to_owned(),
            source,
        }
    };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(wait).map_err(unreachable)?;
    // A daemon that turns this client away has said why before it closed the connection.
    let sent = stream.write_all(&line(request));
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    loop {
        text.clear();
        if reader.read_line(&mut text).map_err(unreachable)? == 0 {
            return sent.map_err(unreachable);
        }
        if let Ok(Refusal { error }) = serde_json::from_str(&text) {
            return Err(ClientError::Refused(error));
        }
        if each(text.trim_end()).is_break() {
            return Ok(());
        }
    }
}

/// Asks for the status: the daemon's own line, and what it says.
pub fn ask_status(socket: &Path, name: Option<&str>) -> Result<(String, Status), ClientError> {
    let request = Request::Status {
        name: name.map(str::to_owned),
    };
    ask_one(socket, &request, ANSWER_WAIT)
}

/// Asks for the services: the daemon's own line, and what it says.
pub fn ask_services(socket: &Path, name: Option<&str>) -> Result<(String, List), ClientError> {
    let request = Request::ServiceList {
        name: name.map(str::to_owned),
    };
    ask_one(socket, &request, ANSWER_WAIT)
}

/// Asks for a service to be added or removed; says what was done.
pub fn ask_change(socket: &Path, request: &Request) -> Result<String, ClientError> {
    let (_, Done { done }) = ask_one(socket, request, CHANGE_WAIT)?;
    Ok(done)
}

/// Asks for an answer of one line: the line, and what it says.
fn ask_one<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    wait: Duration,
) -> Result<(String, T), ClientError> {
    let mut answer = String::new();
    ask(socket, request, Some(wait), |line| {
        line.clone_into(&mut answer);
        ControlFlow::Break(())
    })?;
    if answer.is_empty() {
        let source = io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
        let path = socket.to_owned();
        return Err(ClientError::Unreachable { path, source });
    }
    match serde_json::from_str(&answer) {
        Ok(said) => Ok((answer, said)),
        Err(error) => Err(ClientError::Garbled {
            path: socket.to_owned(),
            why: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn no_daemon_is_said_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let error = ask_status(&path, None).unwrap_err().to_string();
        let start = format!("cannot reach the daemon at {}: ", path.display());
        assert!(error.starts_with(&start), "{error}");
        assert!(
            error.ends_with("; is `tracker run` running? give --socket if it uses another one")
        );
        // Where a daemon is or was, the text does not ask whether it runs.
        let left = dir.path().join("left.sock");
        drop(UnixListener::bind(&left).unwrap());
        let error = ask_status(&left, None).unwrap_err().to_string();
        assert!(
            error.contains("; no daemon listens there any more"),
            "{error}"
        );
        let silent = dir.path().join("silent.sock");
        let _listener = UnixListener::bind(&silent).unwrap();
        let wait = Some(Duration::from_millis(20));
        let asked = ask(&silent, &Request::ServiceList { name: None }, wait, |_| {
            ControlFlow::Break(())
        });
        let error = asked.unwrap_err().to_string();
        assert!(
            error.contains("no answer in time; it is there and busy"),
            "{error}"
        );
    }
}

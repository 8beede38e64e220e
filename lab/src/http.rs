//! HTTP/1.1 over the daemon's Unix socket, as a program would speak it that does not use the command.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{daemon::LATER, pace::slow};

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its header fields, names in small letters.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub text: String,
}

impl Answer {
    /// Reads an answer from the bytes of a connection that has ended.
    ///
    /// # Errors
    /// When they are no whole answer of HTTP/1.1.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
        let end = bytes
            .windows(4)
            .position(|part| part == b"\r\n\r\n")
            .with_context(shown)?;
        let head = std::str::from_utf8(&bytes[..end]).with_context(shown)?;
        let mut lines = head.split("\r\n");
        let first = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.1 "))
            .with_context(shown)?;
        let status = first
            .get(..3)
            .and_then(|code| code.parse().ok())
            .with_context(shown)?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers: Vec<_> = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self {
            status,
            headers,
            text: String::new(),
        };
        let mut body = &bytes[end + 4..];
        let mut whole = Vec::new();
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = body
                    .windows(2)
                    .position(|part| part == b"\r\n")
                    .with_context(shown)?;
                let size = std::str::from_utf8(&body[..line]).with_context(shown)?;
                let size = usize::from_str_radix(size, 16).with_context(shown)?;
                let rest = &body[line + 2..];
                if size == 0 {
                    break;
                }
                ensure!(rest.len() >= size + 2, "a chunk of the answer is cut short");
                whole.extend_from_slice(&rest[..size]);
                body = &rest[size + 2..];
            }
        } else {
            let length = answer
                .header("content-length")
                .map_or(Ok(0), str::parse::<usize>);
            let length = length.with_context(shown)?;
            // The answer to HEAD names a length and has no body.
            ensure!(
                body.is_empty() || body.len() == length,
                "{} bytes of a body of {length}: {}",
                body.len(),
                shown()
            );
            whole.extend_from_slice(body);
        }
        answer.text = String::from_utf8(whole).with_context(shown)?;
        Ok(answer)
    }

    /// A header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body, as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.text).with_context(|| self.text.clone())
    }
}

/// A request that ends its connection.
#[must_use]
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        // Writing to a string does not fail.
        let _ = write!(text, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let _ = write!(
            text,
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Connects to a socket; what is read waits no longer than a busy machine takes.
///
/// # Errors
/// When nothing listens there.
pub fn connect(socket: &Path, patience: Duration) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).context("connect to the daemon")?;
    stream.set_read_timeout(Some(slow(patience)))?;
    Ok(stream)
}

/// Sends bytes over a connection of their own and returns what comes until the daemon ends it.
///
/// # Errors
/// When there is no end of the answer.
pub fn exchange(socket: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(socket, LATER)?;
    // A daemon that has seen enough of a request answers, and closes the connection.
    let is_sent = stream.write_all(bytes).is_ok();
    if !is_sent {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // What it did not read is reset.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => {}
        read => drop(read.context("read the answer")?),
    }
    Ok(answer)
}

/// Sends a request and returns the answer.
///
/// # Errors
/// When there is none, or it is not whole.
pub fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let bytes = exchange(socket, &request(method, path, headers, body))?;
    Answer::parse(&bytes).with_context(|| format!("{method} {path}"))
}

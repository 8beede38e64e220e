//! A headless Chromium on the hub, driven by the WebDriver protocol (W3C) as chromedriver speaks it: JSON over HTTP/1.1.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tracker_lab::daemon::LATER;
use tracker_lab::pace::slow;
use tracker_lab::{Namespace, interrupt};

/// Pause between two looks at the page.
const POLL: Duration = Duration::from_millis(50);

/// A browser with one window. Dropped, it ends with everything that it started, and its profile is removed.
pub struct Browser<'lab> {
    hub: &'lab Namespace,
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // The first process of the PID namespace dies with this one, and all others with that.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl<'lab> Browser<'lab> {
    /// Starts a browser on the hub, with a window of this size.
    ///
    /// # Errors
    /// When chromedriver or Chromium cannot be started.
    pub fn start(hub: &'lab Namespace, width: u32, height: u32) -> Result<Self> {
        // Chromium is unwilling to start twice with one profile, and keeps what pages store in it.
        let profile = tempfile::tempdir().context("make a directory for the profile")?;
        let port = hub.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
            Ok(listener.local_addr()?.port())
        })?;
        let mut command = hub.command_that_dies_of(Signal::SIGKILL, "unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child=SIGKILL",
                "chromedriver",
            ])
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .env("TZ", "UTC")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = command.spawn().context("start chromedriver")?;
        let mut browser = Self {
            hub,
            driver,
            port,
            session: String::new(),
            _profile: profile,
        };
        let deadline = Instant::now() + slow(LATER);
        while browser.call("GET", "/status", None).is_err() {
            interrupt::check()?;
            if let Some(status) = browser.driver.try_wait()? {
                bail!("start chromedriver: it ended at once ({status})");
            }
            ensure!(
                Instant::now() < deadline,
                "start chromedriver: it does not answer"
            );
            sleep(POLL);
        }
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--lang=en",
            &format!("--window-size={width},{height}"),
            &format!(
                "--user-data-dir={}",
                browser._profile.path().join("profile").display()
            ),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": slow(LATER).as_millis() as u64, "pageLoad": slow(LATER).as_millis() as u64},
        }}});
        let session = browser
            .call("POST", "/session", Some(&wanted))
            .context("start Chromium")?;
        browser.session = session["sessionId"]
            .as_str()
            .context("read the session")?
            .to_owned();
        Ok(browser)
    }

    /// A request to chromedriver, and the value that it answers.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let (status, answer) = exchange(self.hub, self.port, request.as_bytes())?;
        let value: Value =
            serde_json::from_slice(&answer.body).context("parse the answer of chromedriver")?;
        ensure!(
            status == 200,
            "{method} {path}: {}",
            value["value"]["message"]
        );
        Ok(value["value"].clone())
    }

    fn command(&self, what: &str, body: &Value) -> Result<Value> {
        self.call(
            "POST",
            &format!("/session/{}/{what}", self.session),
            Some(body),
        )
    }

    /// Opens a page.
    ///
    /// # Errors
    /// When the browser cannot.
    pub fn open(&self, url: &str) -> Result<()> {
        self.command("url", &json!({"url": url})).map(drop)
    }

    /// Runs a script in the page and returns what it returns; a promise is waited for.
    ///
    /// # Errors
    /// When the script throws.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.command("execute/sync", &json!({"script": script, "args": []}))
            .with_context(|| format!("run {}", script.get(..200).unwrap_or(script)))
    }

    /// Waits until an expression is true in the page. One that throws is not true: what it is about may not be in the page yet.
    ///
    /// # Errors
    /// When it is not soon; the error has the text of the page and what the console says.
    pub fn wait_for(&self, what: &str, expression: &str) -> Result<Duration> {
        let begun = Instant::now();
        let script = format!(
            "try {{ return Boolean({expression}) }} catch (error) {{ return String(error) }}"
        );
        loop {
            interrupt::check()?;
            let value = self.run(&script)?;
            if value == true {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > slow(LATER) {
                bail!(
                    "waited in vain for {what}: {expression} is {value}\nthe page:\n{}\nthe console: {:?}",
                    self.text()?,
                    self.console()?
                );
            }
            sleep(POLL);
        }
    }

    /// The text of the page, as it is shown.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn text(&self) -> Result<String> {
        let text = self.run("return document.body.innerText")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Types keys, one after the other, to what has the focus. Special ones have code points of their own (WebDriver, 17.4.2).
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn press(&self, keys: &str) -> Result<()> {
        let strokes = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}))
        });
        let keyboard =
            json!({"type": "key", "id": "keyboard", "actions": strokes.collect::<Vec<_>>()});
        self.command("actions", &json!({"actions": [keyboard]}))
            .map(drop)
    }

    /// What the console got since it was last asked: messages of warnings and errors.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn console(&self) -> Result<Vec<String>> {
        let entries = self.command("se/log", &json!({"type": "browser"}))?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let said = entries
            .iter()
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        Ok(said.map(|entry| entry["message"].to_string()).collect())
    }

    /// Sets the size of the window.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.command("window/rect", &json!({"width": width, "height": height}))
            .map(drop)
    }

    /// A picture of the window, as PNG.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let picture = self.call(
            "GET",
            &format!("/session/{}/screenshot", self.session),
            None,
        )?;
        from_base64(picture.as_str().context("read the picture")?)
    }
}

/// The bytes that base64 stands for (RFC 4648, section 4).
fn from_base64(text: &str) -> Result<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = DIGITS
            .iter()
            .position(|known| *known == digit)
            .context("read base64")?;
        bits = (bits << 6) | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

/// Key of the WebDriver protocol.
pub const ESCAPE: &str = "\u{e00c}";
/// Key of the WebDriver protocol.
pub const ENTER: &str = "\u{e007}";
/// Key of the WebDriver protocol.
pub const DOWN: &str = "\u{e015}";

/// An answer over HTTP.
pub struct Answer {
    /// Its head, as it was sent.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// Sends a request to a port of the hub, and reads the answer until its end.
///
/// # Errors
/// When there is no whole answer.
pub fn exchange(hub: &Namespace, port: u16, request: &[u8]) -> Result<(u16, Answer)> {
    hub.enter(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
        stream.set_read_timeout(Some(slow(LATER) * 2))?;
        stream.write_all(request)?;
        let mut bytes = Vec::new();
        let mut piece = [0; 65536];
        let whole = |bytes: &[u8]| {
            let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            length
                .is_some_and(|length| bytes.len() >= end + length)
                .then_some((end, head))
        };
        let mut found = None;
        while found.is_none() {
            let count = stream.read(&mut piece).context("read the answer")?;
            if count == 0 {
                break;
            }
            bytes.extend(&piece[..count]);
            found = whole(&bytes);
        }
        let (end, head) = match found {
            Some(found) => found,
            // Without a length, the end of the connection ends the answer.
            None => {
                let end = bytes
                    .windows(4)
                    .position(|window| window == b"\r\n\r\n")
                    .context("find the head")?
                    + 4;
                (end, String::from_utf8_lossy(&bytes[..end]).into_owned())
            }
        };
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((
            status.context("read the status")?,
            Answer {
                head,
                body: bytes[end..].to_vec(),
            },
        ))
    })
}

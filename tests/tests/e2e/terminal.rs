//! A terminal of its own for a command, and what it shows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use tracker_lab::daemon::SOON;
use tracker_lab::netns::Namespace;
use tracker_lab::pace::slow;

/// A command on a terminal; dropped, it is killed.
pub struct Terminal {
    child: Child,
    keys: File,
    slave: OwnedFd,
    before: Termios,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

/// What is left when a command on a terminal has ended.
pub struct Ended {
    pub status: ExitStatus,
    /// Everything that it wrote.
    pub bytes: String,
    /// What the screen shows.
    pub text: String,
}

impl Terminal {
    /// Starts a program with these arguments on a terminal of this size, in a session of its own.
    pub fn start(
        hub: &Namespace,
        (columns, lines): (u16, u16),
        environment: &[(&str, &str)],
        words: &[&str],
    ) -> Result<Self> {
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).context("open a terminal")?;
        for end in [&pty.master, &pty.slave] {
            // No other program that the test starts may hold the terminal open.
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let stdio = || Ok::<_, std::io::Error>(Stdio::from(pty.slave.try_clone()?));
        let mut command: Command = hub.command("setsid");
        command.args(["--ctty", "--wait"]).args(words);
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color");
        command.envs(environment.iter().copied());
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
        let before = tcgetattr(&pty.slave)?;
        let child = command.spawn().context("start setsid")?;
        // The command holds the slave as well.
        drop(command);
        let seen = Arc::new(Mutex::new(Seen {
            screen: vt100::Parser::new(lines, columns, 0),
            bytes: Vec::new(),
        }));
        let mut master = File::from(pty.master);
        let keys = master.try_clone()?;
        let into = seen.clone();
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            // Ends with an error when the last slave is closed.
            while let Ok(length @ 1..) = master.read(&mut piece) {
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                seen.screen.process(&piece[..length]);
                seen.bytes.extend_from_slice(&piece[..length]);
            }
        });
        Ok(Self {
            child,
            keys,
            slave: pty.slave,
            before,
            seen,
            reader: Some(reader),
        })
    }

    /// What the screen shows.
    pub fn text(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.screen.screen().contents()
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("press keys")
    }

    /// Waits until the screen is as wanted; returns its text.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + slow(SOON);
        loop {
            let text = self.text();
            if wanted(&text) {
                return Ok(text);
            }
            if Instant::now() > deadline {
                bail!("wait for {what}; the screen:\n{text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // No leader of a process group, setsid(1) becomes the command.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).context("signal the command")
    }

    /// Waits for the end of the command; the terminal's settings must be as before.
    pub fn end(mut self) -> Result<Ended> {
        let deadline = Instant::now() + slow(SOON);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("wait for the end; the screen:\n{}", self.text());
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(
            tcgetattr(&self.slave)?,
            self.before,
            "the terminal's settings"
        );
        // With the last slave the reader ends, once it has read everything.
        self.slave = File::open("/dev/null")?.into();
        if let Some(reader) = self.reader.take() {
            reader.join().ok().context("read the terminal")?;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let screen = seen.screen.screen();
        assert!(!screen.alternate_screen(), "the alternate screen is left");
        assert!(!screen.hide_cursor(), "the cursor is shown");
        Ok(Ended {
            status,
            bytes: String::from_utf8_lossy(&seen.bytes).into_owned(),
            text: screen.contents(),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

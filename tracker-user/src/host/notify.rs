//! Messages to the supervisor, by the protocol of `sd_notify(3)`.
//!
//! Written here and not taken from a crate, because a message must never wait: it is sent by the thread that
//! also takes SIGTERM, and the crates send on blocking sockets. One that the supervisor has no room for is lost,
//! as the next one follows soon.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

/// The supervisor, if there is one.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    ///
    /// # Errors
    /// When its socket can't be reached.
    pub fn of_environment() -> io::Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::default());
        };
        let usec = std::env::var("WATCHDOG_USEC").ok();
        let pid = std::env::var("WATCHDOG_PID").ok();
        Ok(Self {
            socket: Some(connect(&name)?),
            watchdog: watchdog(usec.as_deref(), pid.as_deref(), std::process::id()),
        })
    }

    /// How long the supervisor waits for [`Self::alive`] before it ends the daemon; `None` when it does not wait.
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start is complete.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// The daemon works.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// One line about what the daemon does, for `systemctl status`.
    pub fn status(&self, line: &str) {
        self.say(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// Has the supervisor keep an open file for the next process (`FDSTORE=1`). It is forgotten when its other end closes.
    pub fn keep(&self, name: &str, file: &impl AsFd) {
        let Some(socket) = &self.socket else {
            return;
        };
        let message = format!("FDSTORE=1\nFDNAME={name}");
        let files = [file.as_fd().as_raw_fd()];
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(message.as_bytes())],
            &[ControlMessage::ScmRights(&files)],
            MsgFlags::MSG_DONTWAIT,
            None,
        );
        if let Err(errno) = sent {
            tracing::debug!("cannot have the supervisor keep {name}: {errno}");
        }
    }

    /// Has the supervisor keep the files of this name no longer (`FDSTOREREMOVE=1`).
    pub fn forget(&self, name: &str) {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    fn say(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!("cannot tell the supervisor {message}: {error}");
        }
    }
}

/// A file that the supervisor kept, with the name by which an earlier process had it kept.
#[derive(Debug)]
pub struct KeptFile {
    /// The name.
    pub name: String,
    /// The file.
    pub file: OwnedFd,
}

/// The first descriptor that a supervisor passes (`SD_LISTEN_FDS_START`).
const FIRST_PASSED: RawFd = 3;

/// The files that the supervisor passes to this process (`sd_listen_fds_with_names(3)`), which own their descriptors from now on.
///
/// # Safety
/// To be called once, before anything else in the process opens a file.
pub unsafe fn kept_files() -> Vec<KeptFile> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let count = number("LISTEN_FDS").unwrap_or_default();
    let passed = (FIRST_PASSED..).take(count as usize).zip(names);
    passed
        .filter_map(|(descriptor, name)| {
            // Not for programs that this process may start.
            fcntl(
                // SAFETY: only looked at; a descriptor that is not open is refused.
                unsafe { BorrowedFd::borrow_raw(descriptor) },
                FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC),
            )
            .ok()?;
            Some(KeptFile {
                name: name.to_owned(),
                // SAFETY: open, and by the caller's promise no one else's.
                file: unsafe { OwnedFd::from_raw_fd(descriptor) },
            })
        })
        .collect()
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A leading @ stands for the null byte of an abstract name.
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsString::from(name))?,
    };
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The time of the supervisor's watchdog, as `sd_watchdog_enabled(3)` reads it: of no effect in other processes
/// than the one that is meant.
fn watchdog(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    let is_meant = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let usec: u64 = usec?.parse().ok()?;
    (is_meant && usec > 0).then_some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = listener.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("tracker-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = OsString::from(format!("@{name}"));
        for (listener, name) in [(by_path, path.as_os_str()), (by_name, &abstract_name)] {
            let supervisor = Supervisor {
                socket: Some(connect(name).unwrap()),
                watchdog: None,
            };
            supervisor.ready();
            supervisor.status("two\nlines");
            supervisor.alive();
            supervisor.stopping();
            let all = [(); 4].map(|()| received(&listener));
            assert_eq!(
                all,
                ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]
            );
        }
    }

    #[test]
    fn a_supervisor_that_does_not_read_holds_up_nothing() {
        let (socket, _reader) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let supervisor = Supervisor {
            socket: Some(socket),
            watchdog: None,
        };
        (0..10_000).for_each(|_| supervisor.alive());
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let second = Some(Duration::from_secs(1));
        for (usec, pid, wanted) in [
            (None, None, None),
            (Some("1000000"), None, second),
            (Some("1000000"), Some("7"), second),
            (Some("1000000"), Some("8"), None),
            (Some("0"), Some("7"), None),
            (Some("x"), Some("7"), None),
        ] {
            assert_eq!(watchdog(usec, pid, 7), wanted, "{usec:?} {pid:?}");
        }
    }
}

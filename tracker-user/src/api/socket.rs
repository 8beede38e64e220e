//! The daemon's Unix socket: makes it, replaces what a killed daemon left, makes it anew if its file is removed, and removes it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::unistd::{Group, chown};
use tokio::net::UnixListener;

use crate::host::{privileges, repeats};

/// Why the daemon's socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon is there.
    #[error(
        "cannot listen on {}: another daemon answers there; stop it, or give this one its own [hub] instance and socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error("cannot listen on {}: it exists and is not a socket; remove it or set [hub] socket", .0.display())]
    NotASocket(PathBuf),
    /// The host has no such group.
    #[error("cannot listen on {}: this host has no group {group:?}; make it, or set [hub] socket_group to one that exists", .path.display())]
    NoGroup {
        /// The socket.
        path: PathBuf,
        /// The group.
        group: String,
    },
    /// The system refused.
    #[error("cannot listen on {}: cannot {attempt}: {why}; check the path and its permissions", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system refused.
        attempt: &'static str,
        /// Why.
        why: io::Error,
    },
}

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct Socket {
    listener: BlockingListener,
    file: SocketFile,
}

impl Socket {
    /// The listener and the file.
    pub(super) fn into_parts(self) -> (BlockingListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Owns the socket's file, which is removed with it unless another daemon has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The group that may connect beside the owner.
    group: Option<String>,
    /// Open so that no other file can get its inode number.
    inode: File,
}

impl SocketFile {
    /// Whether the path leads elsewhere, or nowhere.
    pub(super) fn is_gone(&self) -> bool {
        let identity = |meta: io::Result<Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let there = identity(fs::symlink_metadata(&self.path));
        there.is_none() || there != identity(self.inode.metadata())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_gone() {
            // Best effort: a stale socket is replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, for the owner alone or for a group too: makes its directory, and replaces what a killed daemon left.
///
/// # Errors
/// When another daemon answers there, something else is there, the group is not known, or the system refuses.
pub fn bind(path: &Path, group: Option<&str>) -> Result<Socket, BindError> {
    let system = |attempt| {
        move |why| BindError::System {
            path: path.to_owned(),
            attempt,
            why,
        }
    };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(system("create its directory"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => match BlockingStream::connect(path) {
            Ok(_) => return Err(BindError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(system("remove the stale socket"))?;
            }
            Err(error) => return Err(system("find out who answers there")(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system("look at it")(error)),
    }
    let refused = |attempt| move |errno: Errno| system(attempt)(errno.into());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(refused("make a socket"))?;
    let address = UnixAddr::new(path).map_err(refused("bind"))?;
    socket::bind(socket.as_raw_fd(), &address).map_err(refused("bind"))?;
    // Before it listens, so that no other user can connect in between.
    let mode = match group {
        Some(name) => {
            let group = Group::from_name(name).map_err(refused("find its group"))?;
            let group = group.ok_or_else(|| BindError::NoGroup {
                path: path.to_owned(),
                group: name.to_owned(),
            })?;
            privileges::join(group.gid).map_err(refused(
                "join its group, which takes CAP_SETGID or, under systemd, SupplementaryGroups= in the unit",
            ))?;
            chown(path, None, Some(group.gid)).map_err(refused("give it to its group"))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(system("set its permissions"))?;
    // A socket can be held, though not read, by O_PATH.
    let inode = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .map_err(system("look at it"))?;
    let file = SocketFile {
        path: path.to_owned(),
        group: group.map(str::to_owned),
        inode,
    };
    socket::listen(&socket, Backlog::MAXCONN).map_err(refused("listen"))?;
    let listener = BlockingListener::from(socket);
    Ok(Socket { listener, file })
}

/// Makes the socket anew, if that is possible now.
pub(super) fn again(file: &SocketFile) -> Option<(UnixListener, SocketFile)> {
    let path = &file.path;
    let made = bind(path, file.group.as_deref())
        .map_err(|error| error.to_string())
        .and_then(|Socket { listener, file }| {
            let listener = UnixListener::from_std(listener).map_err(|error| error.to_string())?;
            Ok((listener, file))
        });
    match made {
        Ok(made) => {
            tracing::warn!("the socket {} was removed; made it anew", path.display());
            Some(made)
        }
        Err(error) => {
            let text = format_args!(
                "the socket {} was removed, and cannot be made anew: {error}; trying again",
                path.display()
            );
            repeats::warn("make the socket anew", text);
            None
        }
    }
}

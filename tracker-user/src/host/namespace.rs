//! Which network namespace the daemon runs in.

use std::{
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
};

/// The namespace of this process.
const OWN: &str = "/proc/self/ns/net";
/// Of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why the network namespace is not known.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Its inode number cannot be read.
    #[error("cannot look at {OWN}")]
    Inode(#[source] io::Error),
    /// The kernel does not tell its cookie.
    #[error("cannot ask for the cookie of the network namespace")]
    Cookie(#[source] io::Error),
}

/// What tells this network namespace from all others of this boot: its inode number, with the namespace's cookie, which
/// the kernel never gives again (SO_NETNS_COOKIE, Linux 5.14). An inode number is soon that of another namespace.
///
/// # Errors
/// What the kernel answered.
pub fn identity() -> Result<(u64, u64), NamespaceError> {
    let found = std::fs::metadata(OWN).map_err(NamespaceError::Inode)?;
    let cookie = cookie().map_err(NamespaceError::Cookie)?;
    Ok((found.ino(), cookie))
}

fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`, through the pointer, and `len` itself.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match got {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Each namespace is gone before the next one is made, which may get its inode number.
    #[test]
    fn no_two_network_namespaces_are_taken_for_one() {
        let own = identity().expect("an identity");
        assert_eq!(identity().expect("an identity"), own);
        let make = || -> Option<(u64, u64)> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            identity().ok()
        };
        let made = (0..16).map(|_| std::thread::spawn(make).join().expect("a thread"));
        let Some(made) = made.collect::<Option<Vec<_>>>() else {
            println!("skipped: cannot make network namespaces");
            return;
        };
        let all: HashSet<_> = made.iter().map(|(_, cookie)| *cookie).collect();
        assert_eq!(all.len(), made.len(), "{made:?}");
        assert!(!all.contains(&own.1));
    }
}

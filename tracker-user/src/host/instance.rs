//! One daemon of an instance in a network namespace, whatever it sees of the file system.
//!
//! The pins are locked too, but two processes may see different BPF file systems: a unit on a host without a mounted
//! one, a container that shares the host's network. What both see is the network namespace, in which the instance's
//! private interfaces are, and with it the abstract names of Unix sockets (`unix(7)`). Such a name goes away with the
//! process that has it.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
        socket, sockopt::PeerCredentials,
    },
};

/// The name of an instance, held until it is dropped.
#[derive(Debug)]
pub struct InstanceLock {
    _socket: Option<OwnedFd>,
}

/// Why an instance cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another process of this user has it.
    #[error(
        "another daemon of the instance {instance} runs in this network namespace (process {holder}); stop it, or set \
         another hub.instance"
    )]
    Taken {
        /// The instance.
        instance: String,
        /// The process.
        holder: libc::pid_t,
    },
    /// A process has it that answers no connection.
    #[error(
        "cannot find out which process has the instance {0} in this network namespace; `ss -xlp src @tracker/{0}` \
         shows it"
    )]
    Silent(String),
    /// A process has it, and the kernel does not tell which.
    #[error("cannot find out which process has the instance")]
    Holder(#[source] Errno),
    /// The system refuses.
    #[error("cannot take the name of the instance {instance}")]
    System {
        /// The instance.
        instance: String,
        /// What the kernel answered.
        source: Errno,
    },
}

/// Takes an instance of this network namespace for this process.
///
/// # Errors
/// When another process of this user has it. A name that another user took is no lock, since everybody could take one.
pub fn lock(instance: &str) -> Result<InstanceLock, InstanceError> {
    let attempt = || -> nix::Result<Result<OwnedFd, OwnedFd>> {
        let name = format!("tracker/{instance}");
        let address = UnixAddr::new_abstract(name.as_bytes())?;
        // Nothing waits: a connection is refused with EAGAIN when too many wait already.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let own = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match bind(own.as_raw_fd(), &address) {
            Ok(()) => {
                // Not for clients: what connects learns the credentials of this process.
                listen(&own, Backlog::new(1)?)?;
                Ok(Ok(own))
            }
            Err(Errno::EADDRINUSE) => {
                connect(own.as_raw_fd(), &address)?;
                Ok(Err(own))
            }
            Err(errno) => Err(errno),
        }
    };
    // A holder that ends between the two calls has left the name free.
    let taken = match attempt() {
        Err(Errno::ECONNREFUSED) => attempt(),
        taken => taken,
    };
    let name = || instance.to_owned();
    let taken = taken.map_err(|errno| match errno {
        Errno::EAGAIN => InstanceError::Silent(name()),
        source => InstanceError::System {
            instance: name(),
            source,
        },
    })?;
    let holder = match taken {
        Ok(own) => {
            return Ok(InstanceLock { _socket: Some(own) });
        }
        Err(connected) => getsockopt(&connected, PeerCredentials).map_err(InstanceError::Holder)?,
    };
    if holder.uid() == nix::unistd::geteuid().as_raw() {
        return Err(InstanceError::Taken {
            instance: name(),
            holder: holder.pid(),
        });
    }
    tracing::warn!(
        "user {} holds the name of the instance {instance} (process {}), which keeps no daemon from running",
        holder.uid(),
        holder.pid()
    );
    Ok(InstanceLock { _socket: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_taken_once_and_free_again() {
        let instance = format!("lock-test-{}", std::process::id());
        let held = lock(&instance).unwrap();
        let refused = lock(&instance).unwrap_err().to_string();
        assert!(refused.contains("another daemon"), "{refused}");
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        lock(&format!("{instance}-2")).unwrap();
        drop(held);
        lock(&instance).unwrap();
    }
}

//! Why something of the data path cannot be done.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::{MapError, xdp::XdpMapError},
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use nix::errno::Errno;

use super::pins::PinsError;

/// Why something of the data path cannot be done: what was attempted, and as the source what the kernel answered.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The object lacks something, so it is not this daemon's.
    #[error("the eBPF object has no {kind} {name}")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object lacks a map that programs share.
    #[error("{0} is not in the object")]
    NotInObject(&'static str),
    /// A map cannot be read as memory, because it is no array.
    #[error("the map {0} of the eBPF object is no array")]
    NoArray(String),
    /// A map cannot be read as memory.
    #[error("cannot map {map} into memory")]
    Memory {
        /// The map.
        map: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel takes no such maps.
    #[error("the kernel refused the eBPF maps; `tracker doctor` tells what it lacks")]
    Maps(#[source] EbpfError),
    /// The kernel takes no such maps of steering.
    #[error("the kernel refused the eBPF maps of steering")]
    SteeringMaps(#[source] EbpfError),
    /// The kernel does not take a program; the verifier's last words are in the source.
    #[error("the kernel refused the program {program}")]
    Refused {
        /// The program.
        program: String,
        /// What the kernel answered.
        source: ProgramError,
    },
    /// A link or a program cannot be pinned.
    #[error("cannot pin a {kind} at {}", .path.display())]
    Pin {
        /// `link` or `program`.
        kind: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel answered.
        source: PinError,
    },
    /// An interface cannot be named to the kernel.
    #[error("interface {0} has a name that is not UTF-8")]
    Name(u32),
    /// Half of the send side cannot be attached.
    #[error("cannot attach the send program{half} to the private veth")]
    Send {
        /// Which half, if it is not the program itself.
        half: &'static str,
        /// Why.
        source: Box<Self>,
    },
    /// Replies cannot be received on an interface of this kind.
    #[error("cannot receive on {interface}: {why}")]
    Receive {
        /// The interface.
        interface: String,
        /// Why.
        why: String,
    },
    /// The receive program cannot be attached in any mode.
    #[error("cannot attach the receive program to {interface}: {refusals}{remedy}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel answered, by mode.
        refusals: String,
        /// What to do.
        remedy: String,
    },
    /// A mode would cost the interface something.
    #[error("{0}")]
    Unfit(String),
    /// A map cannot be written.
    #[error("cannot write the map {map}")]
    Write {
        /// The map.
        map: &'static str,
        /// What the kernel answered.
        source: MapError,
    },
    /// A tracker's entry cannot be written.
    #[error("cannot write tracker {slot}")]
    Tracker {
        /// Its slot.
        slot: u32,
        /// What the kernel answered.
        source: MapError,
    },
    /// An interface cannot be written into DEVICES.
    #[error("cannot make interface {ifindex} a redirect target")]
    Device {
        /// The interface.
        ifindex: u32,
        /// What the kernel answered.
        source: XdpMapError,
    },
    /// The system refuses something that is attempted.
    #[error("cannot {attempt}")]
    System {
        /// What is attempted.
        attempt: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The kernel gives no random number.
    #[error("cannot get random bytes of the kernel by getrandom(2)")]
    Random(#[source] getrandom::Error),
    /// The programs' log cannot be read.
    #[cfg(feature = "bpf-log")]
    #[error("cannot read the programs' log")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The programs' log cannot be waited for.
    #[cfg(feature = "bpf-log")]
    #[error("cannot wait for the programs' log")]
    LogWait,
    /// Pins cannot be made or removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A program cannot be used.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A link cannot be used.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A map cannot be pinned.
    #[error(transparent)]
    MapPin(#[from] PinError),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The system refuses.
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl DatapathError {
    /// Makes the error of a map that the object lacks.
    pub(super) fn no_map(name: &str) -> Self {
        let name = name.to_owned();
        Self::Missing { kind: "map", name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::full;

    #[test]
    fn errors_say_what_was_attempted_and_why_it_failed() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let why = "Operation not permitted (os error 1)";
        let missing = |kind| DatapathError::Missing {
            kind,
            name: "X".to_owned(),
        };
        let path = || PathBuf::from("/sys/fs/bpf/x");
        let rows: [(DatapathError, String); 9] = [
            (missing("map"), "the eBPF object has no map X".to_owned()),
            (
                missing("program"),
                "the eBPF object has no program X".to_owned(),
            ),
            (
                DatapathError::Send {
                    half: "'s TC half",
                    source: Box::new(missing("program")),
                },
                "cannot attach the send program's TC half to the private veth: the eBPF object has no program X"
                    .to_owned(),
            ),
            (
                DatapathError::System {
                    attempt: "open a packet socket",
                    source: refused(),
                },
                format!("cannot open a packet socket: {why}"),
            ),
            (DatapathError::Io(refused()), why.to_owned()),
            (
                PinsError::File {
                    attempt: "make the pin directory",
                    path: path(),
                    source: refused(),
                }
                .into(),
                format!("cannot make the pin directory /sys/fs/bpf/x: {why}"),
            ),
            (
                PinsError::Rename {
                    from: path(),
                    to: "/y".into(),
                    source: refused(),
                }
                .into(),
                format!("cannot rename /sys/fs/bpf/x to /y: {why}"),
            ),
            (
                PinsError::MountPoint {
                    path: path(),
                    why: refused(),
                }
                .into(),
                format!(
                    "cannot make /sys/fs/bpf/x for the BPF file system: {why}; set hub.bpffs to another path"
                ),
            ),
            (
                PinsError::Mount {
                    path: path(),
                    why: Errno::EPERM,
                }
                .into(),
                "cannot mount the BPF file system at /sys/fs/bpf/x: EPERM: Operation not permitted; mount it with \
                 `mount -t bpf bpf /sys/fs/bpf/x`"
                    .to_owned(),
            ),
        ];
        for (error, text) in rows {
            assert_eq!(full(&error).to_string(), text);
        }
    }
}

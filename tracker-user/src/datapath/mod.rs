//! The eBPF programs and maps: loaded, pinned, attached, read and written.

pub mod adopt;
pub mod attach;
pub mod clsact;
pub mod error;
pub mod journal;
pub mod links;
pub mod live_frames;
pub mod loader;
pub mod mmap;
pub mod object;
pub mod pins;
pub mod public;
pub mod steering;
mod watch;

/// The eBPF object, built from source by this crate's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

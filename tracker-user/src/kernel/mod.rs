//! Everything that touches the kernel.

pub mod bpffs;
pub mod clsact;
pub mod journal;
pub mod links;
pub mod loader;
pub mod mapped;
pub mod plane;
pub mod ports;
pub mod preflight;
pub mod privileges;
pub mod realtime;
pub mod steering;
mod watch;

/// The eBPF object, built from source by this crate's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

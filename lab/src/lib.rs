//! Harness of Tracker's end-to-end tests and of `cargo xtask demo` and `bench`.
//!
//! A [`Lab`] is a hub with real services behind it, in network namespaces of its own; a [`Tracker`] is the real daemon
//! running on that hub, spoken to only through its command line. Everything a test made goes away when it goes out of
//! scope, also after a panic; what a killed test left is removed by the next one.
//!
//! ```no_run
//! use tracker_lab::{Lab, Tracker};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new()?; // hub --eth1-- firewall -- host
//! let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
//! tracker.wait_verdict("fw-1", "up", "replied")?;
//!
//! lab.service().break_forwarding()?;
//! tracker.wait_verdict("fw-1", "down", "no-reply")?;
//! # Ok(())
//! # }
//! ```

mod bpf;
pub mod clock;
pub mod daemon;
pub mod flood;
pub mod foreign;
pub mod frr;
pub mod hang;
pub mod hog;
pub mod http;
pub mod interrupt;
pub mod netns;
pub mod pace;
pub mod packets;
pub mod random;
pub mod servers;
pub mod skip;
pub mod slow_listener;
pub mod status;
pub mod tagger;
pub mod topology;
pub mod transfer;
pub mod tun;

pub use daemon::{Config, Tracker};
pub use netns::Namespace;
pub use status::{Event, Status};
pub use topology::{Lab, Service};

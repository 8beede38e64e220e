//! `tracker act`: what follows from verdicts. A process of its own, which reads the daemon's API and changes what its actions own.

pub mod actor;
pub mod choice;
pub mod feed;
pub mod frr;
pub mod hook;
pub mod kernel;
pub mod nexthop;
pub mod nftables;
pub mod pace;
pub mod plan;
pub mod route;
pub mod store;
pub mod track_file;
pub mod view;
pub mod webhook;
mod wire;

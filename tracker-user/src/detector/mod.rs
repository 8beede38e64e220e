//! When probes are due, what became of them, and the verdict of each tracker. Pure: what is needed of the kernel is behind
//! [`engine::Datapath`].

pub mod engine;
pub mod flows;
pub mod in_flight;
pub mod lateness;
pub mod schedule;
pub mod streams;
pub mod tracker;
pub mod tx_check;

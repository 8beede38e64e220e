//! The per-host daemon and command line of Tracker.
//!
//! [`config`] says what is wanted, [`desired`] what of it goes on, [`net`] and [`datapath`] what is there, [`plan`] what must be
//! installed; [`detector`] sends, judges and decides on its own thread; [`state`] turns trackers' verdicts into those of members,
//! services and chains; [`api`] shows them; [`app`] joins all.

pub mod act;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod desired;
pub mod detector;
pub mod doctor;
pub mod error;
#[cfg(test)]
mod growth;
pub mod host;
pub mod net;
pub mod plan;
pub mod reconcile;
pub mod state;

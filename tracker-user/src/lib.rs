//! The per-host daemon and command line of Tracker.
//!
//! [`config`] says what is wanted, [`desired`] what of it goes on, [`net`] and [`kernel`] what is there, [`plan`] what must be installed;
//! [`engine`] sends, judges and decides on its own thread ([`sender`]), with one [`docket`] for each tracker;
//! [`board`] turns trackers' verdicts into those of members, services and chains; [`report`] shows them; [`daemon`] joins all.

pub mod board;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod desired;
pub mod docket;
pub mod doctor;
pub mod engine;
pub mod flights;
pub mod flows;
#[cfg(test)]
mod growth;
pub mod health;
pub mod host;
pub mod journal;
pub mod kernel;
pub mod ledger;
pub mod mode;
pub mod net;
pub mod plan;
pub mod report;
pub mod schedule;
pub mod sender;
pub mod slots;
pub mod steering;
pub mod streams;

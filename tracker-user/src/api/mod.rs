//! What clients ask, and what they are answered.

pub mod answers;
pub mod client;
pub mod events;
pub mod explain;
pub mod history;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod routes;
pub mod sampler;
pub mod socket;
pub mod status;
#[cfg(test)]
mod tests;
pub mod thread;
pub mod types;
pub mod verdict_map;
pub mod web;

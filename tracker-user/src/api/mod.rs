//! What clients ask, and what they are answered.

pub mod answers;
pub mod client;
pub mod explain;
pub mod metrics;
pub mod protocol;
pub mod server;
pub mod status;
pub mod thread;
pub mod types;

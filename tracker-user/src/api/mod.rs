//! What clients ask, and what they are answered.

pub mod answers;
pub mod clients;
pub mod explain;
pub mod metrics;
pub mod protocol;
pub mod status;
pub mod types;

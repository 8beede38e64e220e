//! What clients ask, and what they are answered.

pub mod metrics;
pub mod protocol;
pub mod types;

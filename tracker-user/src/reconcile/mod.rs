//! Brings the kernel in line with what is configured and observed.

pub mod cleanup;
pub mod forgery_log;
pub mod sender;

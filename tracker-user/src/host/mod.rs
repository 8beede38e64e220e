//! What the daemon needs of the host beside the kernel's network.

pub mod log;

//! Brings the kernel in line with what is desired and observed. Each part owns its state; `app` joins them.

pub mod cleanup;
pub mod devices;
pub mod forgery_log;
pub mod handover;
pub mod installer;
pub mod map_space;
pub mod next_hops;
pub mod publisher;
pub mod sender;
pub mod steering;

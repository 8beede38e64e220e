//! What is known and reported of trackers, members, services and chains, and what is written down of it (pure).

pub mod admin;
pub mod events;
pub mod flaps;
pub mod hold_down;
pub mod journal;
pub mod policy;
pub mod selection;
pub mod tree;
pub mod verdict_log;

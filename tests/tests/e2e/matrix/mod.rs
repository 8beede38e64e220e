//! The fault matrix: what can be wrong, and what the daemon must say of it.

pub mod line;
pub mod rows;
pub mod stage;
pub mod table;

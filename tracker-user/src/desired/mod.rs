//! What is wanted, held against what was wanted before (pure).

pub mod diff;
pub mod model;
pub mod slots;

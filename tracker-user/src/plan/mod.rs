//! From what is configured and what is observed to what must be installed (pure).

pub mod address;
pub mod member;
pub mod mode;
pub mod observed;
pub mod remarks;
pub mod steering;

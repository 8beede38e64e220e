//! What follows from a verdict.

pub mod frr;

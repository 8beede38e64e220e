//! `tracker act`: what follows from verdicts. A process of its own, which reads the daemon's API and changes what its actions own.

pub mod nexthop;

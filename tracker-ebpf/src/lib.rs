//! What kernel and userspace of Tracker share: the layout of maps and events ([`abi`]), packet
//! views and builders ([`wire`]), the kinds of probes ([`probe`]), how long replies
//! take ([`rtt`]), which probes were answered ([`window`]), the verdict's state machine
//! ([`verdict`]), and the maps that other programs read ([`public`]).
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod probe;
pub mod public;
pub mod rtt;
pub mod verdict;
pub mod window;
pub mod wire;

//! The programs' logic. Entry points are in `main.rs`.

pub mod answer;
pub mod atomic;
pub mod disposition;
pub mod maps;
pub mod packet;
pub mod path;
pub mod receive;
pub mod segments;
pub mod send;
pub mod steer;

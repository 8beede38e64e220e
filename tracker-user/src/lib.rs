//! The per-host daemon and command line of Tracker.
//!
//! [`config`] says what is wanted, [`desired`] what of it goes on, [`net`] and [`datapath`] what is there, [`plan`] what must be
//! installed; [`detector`] sends, judges and decides on its own thread; [`state`] turns trackers' verdicts into those of members,
//! services and chains; [`api`] shows them; [`app`] joins all.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod desired;
pub mod detector;
#[cfg(test)]
mod growth;
pub mod host;
pub mod net;
pub mod plan;
pub mod reconcile;
pub mod state;

/// Names by which the tests' crate reaches what has moved.
#[doc(hidden)]
mod moved {
    pub mod board {
        pub use crate::state::tree::{Stamp, StateTree as Board};
    }
    pub mod daemon {
        pub use crate::plan::observed::private_names;
    }
    pub mod journal {
        pub use crate::state::journal::*;
    }
    pub mod kernel {
        pub use crate::{
            datapath::{OBJECT, loader, mmap as mapped},
            host::privileges,
        };
    }
    pub mod report {
        pub use crate::{
            api::{metrics, protocol, types as status},
            cli::table,
            state::events,
        };
    }
}
#[doc(hidden)]
pub use moved::*;

//! What the daemon has to do with the host that runs it: its supervisor, signals, limits and log.

pub mod clock;
pub mod directory;
pub mod history;
pub mod instance;
pub mod limits;
pub mod log;
pub mod namespace;
pub mod notify;
pub mod ports;
pub mod preflight;
pub mod privileges;
pub mod realtime;
pub mod repeats;
pub mod store;
pub mod tag;
pub mod trial;
pub mod watchdog;

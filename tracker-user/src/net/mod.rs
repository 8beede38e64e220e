//! What the hub's network is like now, and requests to change the little of it that is Tracker's: rtnetlink and the generic
//! netlink family `netdev`.

mod addresses;
pub mod ethtool;
pub(crate) mod exchange;
pub mod link_counters;
pub mod neighbour_entries;
pub mod neighbours;
mod netdev;
mod notifications;
pub mod requests;
pub mod rtnetlink;
pub mod solicit;
pub mod sysfs;

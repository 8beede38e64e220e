//! What the hub's network is like now, and requests to change the little of it that is Tracker's: rtnetlink and the generic
//! netlink family `netdev`.

pub mod address;
pub mod link_counters;
pub mod neighbours;
pub mod netdev;
pub mod observed;
pub mod rtnetlink;

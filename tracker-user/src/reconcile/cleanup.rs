//! What a killed daemon leaves, and its removal.

use std::path::Path;

use crate::plan::observed::private_names;
use crate::{
    datapath::{
        adopt, clsact,
        pins::{Pins, PinsError},
    },
    host::{
        instance::{self, InstanceError},
        preflight::{self, PreflightError},
    },
    net::{
        neighbour_entries,
        rtnetlink::{Netlink, NetlinkError, PrivateError},
    },
};

/// Why what an instance left cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// This process may not.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// A daemon of the instance runs.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A daemon of the instance runs, or its pins cannot be removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The hub's network cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The private interfaces cannot be removed.
    #[error(transparent)]
    Private(#[from] PrivateError),
}

/// Gives back the neighbour entries that a killed daemon had the kernel keep; its PATHS tell which.
pub async fn release_pinned_neighbours(netlink: &Netlink, pins: &Pins) {
    let paths = adopt::pinned_paths(pins);
    neighbour_entries::release_all(
        netlink.requests(),
        paths.iter().filter_map(adopt::neighbour),
    )
    .await;
}

/// Removes what an instance left whose pins this process has locked; says how many pins there were, and whether there
/// were private interfaces.
///
/// # Errors
/// When something can't be removed.
pub async fn remove(pins: &Pins, instance: &str) -> Result<(usize, bool), CleanupError> {
    let netlink = Netlink::connect().await?;
    let mut count = 0;
    if pins.exist() {
        release_pinned_neighbours(&netlink, pins).await;
        clsact::remove_left(pins);
        count = pins.remove()?;
    }
    let names = private_names(instance);
    Ok((count, netlink.delete_private_pair(&names).await?))
}

/// `tracker cleanup`: removes what a killed daemon left.
///
/// # Errors
/// When the daemon still runs, whatever BPF file system it sees, or something can't be removed.
pub async fn cleanup(bpffs: &Path, instance: &str) -> Result<String, CleanupError> {
    preflight::require_root()?;
    let pins = Pins::new(bpffs, instance);
    let had_pins = pins.exist();
    let locked = had_pins.then(|| pins.lock()).transpose()?;
    let name = instance::lock(instance)?;
    let (count, had_interfaces) = remove(&pins, instance).await?;
    drop((locked, name));
    let pins = had_pins.then(|| format!("{count} pins"));
    let interfaces = had_interfaces.then(|| "the private interfaces".to_owned());
    let removed: Vec<_> = pins.into_iter().chain(interfaces).collect();
    if removed.is_empty() {
        return Ok(format!("instance {instance}: nothing was left"));
    }
    Ok(format!(
        "instance {instance}: removed {}",
        removed.join(" and ")
    ))
}

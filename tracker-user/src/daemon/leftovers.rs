//! What a killed daemon leaves, and its removal.

use std::path::Path;

use anyhow::Result;

use super::private_names;
use crate::{
    kernel::{bpffs::Pins, clsact, loader, preflight},
    net::{neighbours, rtnetlink::Netlink},
};

/// Gives back the neighbour entries that a killed daemon had the kernel keep; its PATHS tell which.
pub(super) async fn release_pinned_neighbours(netlink: &Netlink, pins: &Pins) {
    let paths = loader::pinned_paths(pins);
    neighbours::release_all(netlink, paths.iter().filter_map(loader::neighbour)).await;
}

/// `tracker cleanup`: removes what a killed daemon left.
///
/// # Errors
/// Where the daemon still runs, or something can't be removed.
pub async fn cleanup(bpffs: &Path, instance: &str) -> Result<String> {
    preflight::require_root()?;
    let pins = Pins::new(bpffs, instance);
    let netlink = Netlink::connect().await?;
    let mut removed = Vec::new();
    if pins.exist() {
        let lock = pins.lock()?;
        release_pinned_neighbours(&netlink, &pins).await;
        clsact::remove_left(&pins);
        let count = pins.remove()?;
        drop(lock);
        removed.push(format!("{count} pins"));
    }
    let names = private_names(instance);
    if netlink.delete_private_pair(&names).await? {
        removed.push("the private interfaces".to_owned());
    }
    if removed.is_empty() {
        return Ok(format!("instance {instance}: nothing was left"));
    }
    Ok(format!(
        "instance {instance}: removed {}",
        removed.join(" and ")
    ))
}

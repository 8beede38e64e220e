//! The maps that an earlier daemon pinned: what becomes of them, and what they hold.

use std::{net::IpAddr, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use tracker_ebpf::abi::{self, earlier};

use super::{OBJECT, error::DatapathError, mmap::Mapped, object::mapped, pins::Pins};
use crate::plan::address::address_from;

/// How large the maps must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tracker slots.
    pub trackers: u32,
    /// Path slots.
    pub paths: u32,
    /// Words of WINDOWS.
    pub words: u32,
}

impl Sizes {
    /// Large enough for both.
    const fn max(self, other: Self) -> Self {
        const fn larger(a: u32, b: u32) -> u32 {
            if a > b { a } else { b }
        }
        Self {
            trackers: larger(self.trackers, other.trackers),
            paths: larger(self.paths, other.paths),
            words: larger(self.words, other.words),
        }
    }
}

/// A value of COUNTERS until [`earlier::COUNTED`].
type CountedCounters = [u64; 15];

/// Whether pins of a version can be read: what they hold is copied if it is an earlier one.
const fn is_readable(version: u32) -> bool {
    matches!(version, abi::VERSION | earlier::COUNTED | earlier::UNTAGGED)
}

/// Bytes that the values of a map had in an earlier version, if they were others than now.
fn earlier_size(version: u32, name: &str) -> Option<usize> {
    match name {
        abi::map::HUB if version == earlier::UNTAGGED => Some(size_of::<earlier::Hub>()),
        abi::map::PATHS if version != abi::VERSION => Some(size_of::<abi::Path>()),
        abi::map::COUNTERS if version != abi::VERSION => Some(size_of::<CountedCounters>()),
        _ => None,
    }
}

/// What becomes of the maps that an earlier daemon left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// They are used as they are.
    Adopt,
    /// They are too small, or of an earlier version: what they hold is copied into new ones.
    Grow,
    /// New ones: there are none, or none that this version can read.
    Anew,
}

/// Why pinned maps are not taken over.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    /// A daemon of another version pinned them.
    #[error("their layout is {theirs:#x}, this daemon's {:#x}", abi::VERSION)]
    Version {
        /// The version.
        theirs: u32,
    },
    /// HUB, which has the version, is of another size.
    #[error("HUB is of another version than this daemon's")]
    Hub,
    /// This daemon's own object cannot be read.
    #[error("cannot read the eBPF object")]
    Object(#[source] aya_obj::ParseError),
    /// This daemon's own object has no such map.
    #[error("no such map")]
    NoMap,
    /// A map is not pinned.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A map has another layout.
    #[error("{0} or its entries are of another kind or size")]
    Unlike(&'static str),
    /// Maps of different daemons.
    #[error("TRACKERS and STATE do not fit together")]
    Unfit,
    /// The kernel does not tell what a map is like.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What can become of the pinned maps of an instance, if so much must find place, and how large they will be. Says
/// so if they are of no use.
pub fn survey(pins: &Pins, wanted: Sizes) -> Result<(Maps, Sizes), DatapathError> {
    let hub = pins.map(abi::map::HUB);
    if !hub.exists() {
        return Ok((Maps::Anew, wanted));
    }
    let old = match readable(pins) {
        Ok(old) => old,
        Err(why) => {
            tracing::warn!(
                "the maps that an earlier daemon left are not taken over: {why}; verdicts, event numbers and counters \
                 that can be read go on"
            );
            return Ok((Maps::Anew, wanted));
        }
    };
    let sizes = old.max(wanted);
    let adopts = sizes == old
        && pinned_version(pins) == Some(abi::VERSION)
        && entries(pins, abi::map::EVENTS)? >= events_bytes(sizes);
    let how = if adopts { Maps::Adopt } else { Maps::Grow };
    Ok((how, sizes))
}

/// The sizes of the pinned maps, or why this version can't read them.
fn readable(pins: &Pins) -> Result<Sizes, Unreadable> {
    let version = pinned_version(pins);
    match version {
        Some(version) if is_readable(version) => {}
        Some(theirs) => return Err(Unreadable::Version { theirs }),
        None => return Err(Unreadable::Hub),
    }
    let version = version.unwrap_or_default();
    let object = aya_obj::Object::parse(OBJECT).map_err(Unreadable::Object)?;
    for name in abi::map::ALL {
        let pinned = MapData::from_pin(pins.map(name)).map_err(|_| Unreadable::Missing(name))?;
        let info = pinned.info()?;
        let expected = object.maps.get(name).ok_or(Unreadable::NoMap)?;
        let is_of_kind = matches!(info.map_type(), Ok(kind) if kind as u32 == expected.map_type());
        // aya fits the size of a device map's value to the kernel, which adds flags of its own.
        let is_fitted = name == abi::map::DEVICES;
        let value_size = earlier_size(version, name).and_then(|size| u32::try_from(size).ok());
        let is_like = (info.key_size(), info.value_size(), info.map_flags())
            == (
                expected.key_size(),
                value_size.unwrap_or_else(|| expected.value_size()),
                expected.map_flags(),
            );
        if !is_of_kind || !(is_like || is_fitted) {
            return Err(Unreadable::Unlike(name));
        }
    }
    let sizes = Sizes {
        trackers: entries(pins, abi::map::TRACKERS)?,
        paths: entries(pins, abi::map::PATHS)?,
        words: entries(pins, abi::map::WINDOWS)?,
    };
    if entries(pins, abi::map::STATE)? != sizes.trackers {
        return Err(Unreadable::Unfit);
    }
    Ok(sizes)
}

fn entries(pins: &Pins, name: &str) -> Result<u32, MapError> {
    Ok(MapData::from_pin(pins.map(name))?.info()?.max_entries())
}

/// Bytes of EVENTS: room for an early reply of every other tracker; the state is re-read if that is too little.
pub(super) fn events_bytes(sizes: Sizes) -> u32 {
    (sizes.trackers.saturating_mul(16))
        .next_power_of_two()
        .clamp(page_size(), abi::EVENTS_BYTES)
}

/// What the pinned PATHS of an instance hold. Nothing if there is no such map or it has another layout.
pub fn pinned_paths(pins: &Pins) -> Vec<abi::Path> {
    let pin = pins.map(abi::map::PATHS);
    match pinned_version(pins) {
        Some(abi::VERSION) => values::<abi::PathEntry>(&pin)
            .iter()
            .map(abi::PathEntry::path)
            .collect(),
        Some(version) if is_readable(version) => values(&pin),
        _ => Vec::new(),
    }
}

/// All entries of a pinned array. None if there is no such map or its entries have another size.
fn values<T: Pod + Default>(pin: &Path) -> Vec<T> {
    pinned_array(pin).map_or_else(Vec::new, |array| {
        array.iter().map(Result::unwrap_or_default).collect()
    })
}

/// The first version of the ABI with the present layout of STATE.
const STATE_SINCE: u32 = 5;

/// What the pinned STATE of an instance holds, for maps that are not taken over. Nothing if its version is known to
/// have another layout, or its entries have another size.
pub fn pinned_states(pins: &Pins) -> Vec<abi::State> {
    let version = pinned_version(pins);
    let is_like =
        |version| version == abi::VERSION || (STATE_SINCE..=earlier::COUNTED).contains(&version);
    if version.is_some_and(|version| !is_like(version)) {
        return Vec::new();
    }
    values(&pins.map(abi::map::STATE))
}

/// The neighbour entry of a path, which its daemon had the kernel keep.
pub fn neighbour(path: &abi::Path) -> Option<(u32, IpAddr)> {
    let ip = address_from(path.endpoint_family.get(), path.endpoint);
    (path.interface != 0).then_some((path.interface, ip))
}

/// The entry of the pinned HUB, in the present layout or in that of before there were tags; the tag is then 0.
fn pinned_hub(pins: &Pins) -> Option<abi::Hub> {
    let pin = pins.map(abi::map::HUB);
    if let Some(hub) = pinned_array::<abi::Hub>(&pin) {
        return hub.get(&0, 0).ok();
    }
    let hub = pinned_array::<earlier::Hub>(&pin)?.get(&0, 0).ok()?;
    Some(abi::Hub {
        key: hub.key,
        version: hub.version,
        private_ifindex: hub.private_ifindex,
        ..abi::Hub::default()
    })
}

/// The version of the pinned maps.
fn pinned_version(pins: &Pins) -> Option<u32> {
    pinned_hub(pins).map(|hub| hub.version)
}

/// The key of the pinned maps' tokens.
pub(super) fn pinned_key(pins: &Pins) -> Option<[u64; 2]> {
    pinned_hub(pins).map(|hub| hub.key)
}

/// The tag of the probes of an instance whose maps are pinned, if they are of a version that has it.
pub fn pinned_tag(pins: &Pins) -> Option<u32> {
    let hub = pinned_hub(pins)?;
    (is_readable(hub.version) && hub.tag != 0).then_some(hub.tag)
}

/// A pinned array whose values have the size of `T`.
fn pinned_array<T: Pod>(path: &Path) -> Option<Array<MapData, T>> {
    let map = MapData::from_pin(path).ok()?;
    if map.info().ok()?.value_size() as usize != size_of::<T>() {
        return None;
    }
    Array::try_from(Map::Array(map)).ok()
}

fn page_size() -> u32 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u32::try_from(size).ok())
        .unwrap_or(4096)
}

/// Copies what an earlier daemon's maps hold of trackers into larger ones, at the same places.
pub(super) fn copy(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), DatapathError> {
    fn words<T: Pod>(ebpf: &Ebpf, pins: &Pins, name: &str) -> Result<(), DatapathError> {
        let old = Mapped::<T>::new(&MapData::from_pin(pins.map(name))?)?;
        let new = mapped::<T>(ebpf, name)?;
        for at in 0..old.len() {
            if let (Some(from), Some(to)) = (old.at(at), new.at(at)) {
                // SAFETY: valid elements of plain words; a reply that is counted meanwhile may be missing.
                unsafe { to.write_volatile(from.read_volatile()) };
            }
        }
        Ok(())
    }
    words::<abi::State>(ebpf, pins, abi::map::STATE)?;
    words::<u64>(ebpf, pins, abi::map::WINDOWS)?;
    let version = pinned_version(pins).unwrap_or_default();
    let paths = mapped::<abi::PathEntry>(ebpf, abi::map::PATHS)?;
    for (at, path) in (0..).zip(pinned_paths(pins)) {
        if let Some(to) = paths.at(at) {
            // SAFETY: a valid element, which no program reads yet.
            unsafe { to.write_volatile(abi::PathEntry::new(path)) };
        }
    }
    let missing = DatapathError::no_map;
    let name = abi::map::TRACKERS;
    let old = pinned_array::<abi::Tracker>(&pins.map(name)).ok_or_else(|| missing(name))?;
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut new: Array<_, abi::Tracker> = Array::try_from(new)?;
    for (at, entry) in (0u32..).zip(old.iter()) {
        let mut entry = entry?;
        if version != abi::VERSION {
            (entry.rotates, entry.dscp) = (u8::from(entry.rotates != 0), 0);
        }
        new.set(at, entry, 0)?;
    }
    let name = abi::map::STREAMS;
    let old = Map::HashMap(MapData::from_pin(pins.map(name))?);
    let old: BpfHashMap<_, abi::StreamKey, u32> = BpfHashMap::try_from(old)?;
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut new: BpfHashMap<_, abi::StreamKey, u32> = BpfHashMap::try_from(new)?;
    for entry in old.iter() {
        let (key, word) = entry?;
        new.insert(key, word, 0)?;
    }
    let name = abi::map::COUNTERS;
    let old = Map::PerCpuArray(MapData::from_pin(pins.map(name))?);
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    if version == abi::VERSION {
        let old: PerCpuArray<_, abi::Counters> = PerCpuArray::try_from(old)?;
        let mut new: PerCpuArray<_, abi::Counters> = PerCpuArray::try_from(new)?;
        new.set(0, old.get(&0, 0)?, 0)?;
        return Ok(());
    }
    // What is new is the last one.
    let old: PerCpuArray<_, CountedCounters> = PerCpuArray::try_from(old)?;
    let mut new: PerCpuArray<_, [u64; 16]> = PerCpuArray::try_from(new)?;
    let old = old.get(&0, 0)?;
    let grown = old.iter().map(|counters| {
        let mut grown = [0; 16];
        grown[..counters.len()].copy_from_slice(counters);
        grown
    });
    new.set(0, PerCpuValues::try_from(grown.collect::<Vec<_>>())?, 0)?;
    Ok(())
}

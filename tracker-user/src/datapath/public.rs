//! The maps that other eBPF programs read ([`tracker_ebpf::public`]): taken over as an earlier daemon left them, and written.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError, MapType},
};
use tracker_ebpf::public::{self, CAPACITY, Name, PublicVerdict};

use super::{error::DatapathError, mmap::Mapped, object::take, pins::Pins};

/// Where both maps are pinned; a pin that is not one of these maps is removed first, so that the loader makes a new map.
///
/// # Errors
/// As the file system answers.
pub(super) fn paths(pins: &Pins) -> Result<[(&'static str, PathBuf); 2], DatapathError> {
    let paths = public::ALL.map(|name| (name, pins.public(name)));
    for (name, path) in &paths {
        if path.exists() && !is_ours(name, path) {
            tracing::warn!(
                "{} is not the map of the documented layout; it is made anew, and programs that use it must open it again",
                path.display()
            );
            fs::remove_file(path)?;
        }
    }
    Ok(paths)
}

/// Whether a pin is the map of the documented layout.
fn is_ours(name: &str, path: &Path) -> bool {
    let Ok(info) = MapData::from_pin(path).and_then(|map| map.info()) else {
        return false;
    };
    let (kind, key, value) = match name {
        public::NAMES => (MapType::Hash, size_of::<Name>(), size_of::<u32>()),
        _ => (MapType::Array, size_of::<u32>(), size_of::<PublicVerdict>()),
    };
    info.map_type().is_ok_and(|it| it == kind)
        && (info.key_size() as usize, info.value_size() as usize) == (key, value)
        && info.max_entries() == CAPACITY
}

/// What is published of a service or member, but for times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// What counts: [`PublicVerdict::verdict`].
    pub verdict: u8,
    /// The measured cause.
    pub cause: u8,
    /// The admin state.
    pub admin: u8,
    /// The weight.
    pub weight: u32,
    /// How many members are in use.
    pub selected: u32,
}

/// An entry with a name.
#[derive(Debug)]
struct Entry {
    index: u32,
    /// What it has, if that is whole.
    last: Option<Published>,
}

/// The maps, open for writing. No other process writes them.
#[derive(Debug)]
pub struct VerdictMaps {
    names: BpfHashMap<MapData, Name, u32>,
    verdicts: Mapped<PublicVerdict>,
    entries: HashMap<Name, Entry>,
    /// Indices without a name. The one that has been free for longest is given first, so that a reader that keeps an index
    /// beyond its name's life finds an entry that is no longer refreshed, and not soon another service.
    free: VecDeque<u32>,
}

impl VerdictMaps {
    /// Takes the maps out of the object that was loaded with [`paths`], and lets everybody read them.
    ///
    /// # Errors
    /// As the kernel answers.
    pub(super) fn take(ebpf: &mut Ebpf, pins: &Pins) -> Result<Self, DatapathError> {
        for name in public::ALL {
            fs::set_permissions(pins.public(name), fs::Permissions::from_mode(0o644))?;
        }
        let verdicts = super::object::mapped(ebpf, public::VERDICTS)?;
        let mut names = BpfHashMap::try_from(take(ebpf, public::NAMES)?)?;
        let mut entries: HashMap<Name, Entry> = HashMap::new();
        let mut is_free = vec![true; CAPACITY as usize];
        let found: Vec<_> = names.iter().filter_map(Result::ok).collect();
        for (name, index) in found {
            // Other processes of root can write here: an index beyond the end, or of another name, is none.
            match is_free.get_mut(index as usize) {
                Some(is_free) if *is_free => {
                    *is_free = false;
                    let last = read(&verdicts, index);
                    entries.insert(name, Entry { index, last });
                }
                _ => names.remove(&name)?,
            }
        }
        let free = (0..CAPACITY).filter(|index| is_free[*index as usize]);
        Ok(Self {
            free: free.collect(),
            names,
            verdicts,
            entries,
        })
    }

    /// Says what counts of a service or member now. Returns false if all entries are taken.
    ///
    /// # Errors
    /// If the kernel does not take the name.
    pub fn publish(
        &mut self,
        name: &Name,
        published: Published,
        now_mono_ns: u64,
    ) -> Result<bool, MapError> {
        if let Some(entry) = self.entries.get_mut(name) {
            // What an earlier daemon wrote and is still so has not changed.
            if entry.last == Some(published) {
                refresh(&self.verdicts, entry.index, now_mono_ns);
            } else {
                entry.last = Some(published);
                write(&self.verdicts, entry.index, published, now_mono_ns);
            }
            return Ok(true);
        }
        let Some(&index) = self.free.front() else {
            return Ok(false);
        };
        // The entry is true before its name can be found.
        write(&self.verdicts, index, published, now_mono_ns);
        self.names.insert(name, index, 0)?;
        self.free.pop_front();
        let last = Some(published);
        self.entries.insert(*name, Entry { index, last });
        Ok(true)
    }

    /// Forgets the names that `is_kept` denies. What they meant becomes unknown first.
    ///
    /// # Errors
    /// If the kernel does not remove a name.
    pub fn retain(
        &mut self,
        is_kept: impl Fn(&Name) -> bool,
        now_mono_ns: u64,
    ) -> Result<(), MapError> {
        let gone: Vec<Name> = self
            .entries
            .keys()
            .filter(|name| !is_kept(name))
            .copied()
            .collect();
        for name in gone {
            let Some(entry) = self.entries.remove(&name) else {
                continue;
            };
            write(
                &self.verdicts,
                entry.index,
                Published::default(),
                now_mono_ns,
            );
            self.free.push_back(entry.index);
            match self.names.remove(&name) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl From<PublicVerdict> for Published {
    fn from(entry: PublicVerdict) -> Self {
        Self {
            verdict: entry.verdict,
            cause: entry.cause,
            admin: entry.admin,
            weight: entry.weight,
            selected: entry.selected,
        }
    }
}

/// What an entry has, if it was written to its end.
fn read(verdicts: &Mapped<PublicVerdict>, index: u32) -> Option<Published> {
    // SAFETY: an entry of the mapping.
    let entry = unsafe { PublicVerdict::read(verdicts.at(index)?) }?;
    (entry.layout == public::LAYOUT).then(|| entry.into())
}

fn refresh(verdicts: &Mapped<PublicVerdict>, index: u32, now_mono_ns: u64) {
    if let Some(at) = verdicts.at(index) {
        // SAFETY: an entry of the mapping, which only this daemon writes.
        unsafe { PublicVerdict::refresh(at, now_mono_ns) };
    }
}

fn write(verdicts: &Mapped<PublicVerdict>, index: u32, published: Published, now_mono_ns: u64) {
    let Some(at) = verdicts.at(index) else {
        return;
    };
    let Published {
        verdict,
        cause,
        admin,
        weight,
        selected,
    } = published;
    let entry = PublicVerdict {
        verdict,
        cause,
        admin,
        weight,
        selected,
        changed_mono_ns: now_mono_ns,
        refreshed_mono_ns: now_mono_ns,
        ..PublicVerdict::default()
    };
    // SAFETY: an entry of the mapping, which only this daemon writes.
    unsafe { entry.write(at) };
}

/// Whether the directories above the maps let other users pass, by the first that does not: its path and mode.
pub fn closed_above(bpffs: &Path) -> io::Result<Option<(PathBuf, u32)>> {
    for directory in bpffs.ancestors() {
        let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
        if mode & 0o001 == 0 {
            return Ok(Some((directory.to_owned(), mode)));
        }
    }
    Ok(None)
}

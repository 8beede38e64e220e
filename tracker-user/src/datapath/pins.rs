//! The BPF file system: where pins live.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::links;

/// Why pins cannot be made, moved or removed.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The file system refuses something that is attempted with a file.
    #[error("cannot {attempt} {}", .path.display())]
    File {
        /// What is attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A directory cannot be renamed.
    #[error("cannot rename {} to {}", .from.display(), .to.display())]
    Rename {
        /// The directory.
        from: PathBuf,
        /// Its new name.
        to: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// Another process has the instance.
    #[error("another daemon of this instance holds {}; stop it, or set another hub.instance", .0.display())]
    Taken(PathBuf),
    /// The instance cannot be locked.
    #[error("cannot lock {}: {why}", .path.display())]
    Lock {
        /// The instance's directory.
        path: PathBuf,
        /// What the kernel answered.
        why: Errno,
    },
    /// There is no directory for the BPF file system.
    #[error("cannot make {} for the BPF file system: {why}; set hub.bpffs to another path", .path.display())]
    MountPoint {
        /// The directory.
        path: PathBuf,
        /// What the file system answered.
        why: io::Error,
    },
    /// The BPF file system cannot be mounted.
    #[error(
        "cannot mount the BPF file system at {0}: {why}; mount it with `mount -t bpf bpf {0}`",
        .path.display()
    )]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        why: Errno,
    },
}

impl PinsError {
    /// Makes the error of an attempt that the file system refuses.
    fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }
}

/// The pins of one instance: `<bpffs>/tracker/<instance>/{maps,links,public}`, and the journal beside them.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Where an instance's pins are, whether or not they exist.
    pub fn new(bpffs: &Path, instance: &str) -> Self {
        Self {
            root: bpffs.join("tracker").join(instance),
        }
    }

    /// The instance's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where a link is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Where the maps that other programs read are pinned.
    pub fn public(&self, name: &str) -> PathBuf {
        self.root.join("public").join(name)
    }

    /// Where the journal is pinned.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Where the next journal is pinned until it is complete.
    pub fn next_journal(&self) -> PathBuf {
        self.root.join("journal-next")
    }

    /// Where maps are pinned.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn next_maps(&self) -> PathBuf {
        self.root.join("maps-next")
    }

    /// Makes the directory for maps that are to take the place of the present ones.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn create_next_maps(&self) -> Result<PathBuf, PinsError> {
        let next = self.next_maps();
        remove_all(&next)?;
        fs::create_dir_all(&next).map_err(PinsError::file("make the pin directory", &next))?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o700))
            .map_err(PinsError::file("set the mode of", &next))?;
        Ok(next)
    }

    fn last_maps(&self) -> PathBuf {
        self.root.join("maps-last")
    }

    /// Puts the next maps in the place of the present ones.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn take_next_maps(&self) -> Result<(), PinsError> {
        let (maps, last) = (self.maps(), self.last_maps());
        remove_all(&last)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|source| PinsError::Rename {
                from: from.to_owned(),
                to: to.to_owned(),
                source,
            })
        };
        rename(&maps, &last)?;
        rename(&self.next_maps(), &maps)?;
        remove_all(&last)?;
        Ok(())
    }

    /// Brings in order what a daemon left that was killed while it changed pins.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn mend(&self) -> Result<(), PinsError> {
        // Between the two renames of `take_next_maps`: the next ones were complete.
        if !self.maps().exists() && self.next_maps().exists() {
            fs::rename(self.next_maps(), self.maps())
                .map_err(PinsError::file("rename", &self.next_maps()))?;
        }
        remove_all(&self.next_maps())?;
        remove_all(&self.last_maps())?;
        let _ = fs::remove_file(self.next_journal());
        self.create()
    }

    /// Where links are pinned now.
    pub fn links(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join("links"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// True if anything is left of an instance.
    pub fn exist(&self) -> bool {
        self.root.exists()
    }

    /// Makes the directories. Only the owner may enter them, but for the one of the maps that other programs read; the
    /// directories above are only passed through.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn create(&self) -> Result<(), PinsError> {
        let [maps, links, public] = ["maps", "links", "public"].map(|name| self.root.join(name));
        for directory in [&maps, &links, &public] {
            fs::create_dir_all(directory)
                .map_err(PinsError::file("make the pin directory", directory))?;
        }
        // What is private is closed before the way to it is opened.
        let modes = [
            (maps.as_path(), 0o700),
            (&links, 0o700),
            (&public, 0o755),
            (&self.root, 0o711),
        ];
        let above = self.root.parent().map(|parent| (parent, 0o711));
        for (directory, mode) in modes.into_iter().chain(above) {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode))
                .map_err(PinsError::file("set the mode of", directory))?;
        }
        Ok(())
    }

    /// Removes the directories that hold nothing.
    pub fn remove_empty(&self) {
        let parent = self.root.parent().map(Path::to_owned);
        let below = ["links", "maps", "public"].map(|name| self.root.join(name));
        let below = below.into_iter().chain([self.root.clone()]);
        for directory in below.chain(parent) {
            // Fails if there is something, as it should.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Takes the instance for this process, until the lock is dropped.
    ///
    /// # Errors
    /// Where another process has it.
    pub fn lock(&self) -> Result<Flock<File>, PinsError> {
        let directory = File::open(&self.root).map_err(PinsError::file("open", &self.root))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let path = self.root.clone();
            match errno {
                Errno::EWOULDBLOCK => PinsError::Taken(path),
                why => PinsError::Lock { path, why },
            }
        })
    }

    /// Removes the pins of maps and links, and keeps the directories.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn clear(&self) -> Result<(), PinsError> {
        remove_all(&self.root.join("links"))?;
        remove_all(&self.maps())?;
        self.create()
    }

    /// Removes all pins of the instance, and `tracker/` itself when it was the last; a link without
    /// pin and holder is detached by the kernel. Says how many pins there were.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn remove(&self) -> Result<usize, PinsError> {
        let mut removed = 0;
        let mut failure = None;
        for directory in [
            self.root.join("links"),
            self.root.join("maps"),
            self.root.join("public"),
            self.next_maps(),
            self.last_maps(),
            self.root.clone(),
        ] {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    failure.get_or_insert((directory, error));
                    continue;
                }
            };
            for entry in entries.flatten().filter(|entry| !entry.path().is_dir()) {
                match links::remove(&entry.path()) {
                    Ok(()) => removed += 1,
                    Err(error) => {
                        failure.get_or_insert((entry.path(), error));
                    }
                }
            }
            if let Err(error) = fs::remove_dir(&directory) {
                failure.get_or_insert((directory, error));
            }
        }
        if let Some(parent) = self.root.parent() {
            // Fails while other instances have pins, as it should.
            let _ = fs::remove_dir(parent);
        }
        match failure {
            Some((path, error)) => Err(PinsError::file("remove", &path)(error)),
            None => Ok(removed),
        }
    }
}

/// Removes a directory of pins, which need not exist.
fn remove_all(directory: &Path) -> Result<(), PinsError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::file("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// True if a BPF file system is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `path` unless one is there.
///
/// # Errors
/// Where the directory or the mount fails.
pub fn ensure_mounted(path: &Path) -> Result<(), PinsError> {
    // A path inside a BPF file system is as good as its mount point.
    if is_mounted(path) {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|why| PinsError::MountPoint {
        path: path.to_owned(),
        why,
    })?;
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|why| PinsError::Mount {
        path: path.to_owned(),
        why,
    })
}
/// What the name of the pin of an uplink's XDP link begins with.
const FAST_PIN: &str = "steer-";

/// What an uplink's XDP link is pinned as.
pub(super) fn fast_pin(ifindex: u32) -> String {
    format!("{FAST_PIN}{ifindex}")
}

/// Whether a pin is of that kind.
pub(super) fn is_fast_pin(pin: &Path) -> bool {
    let name = pin.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(FAST_PIN))
}

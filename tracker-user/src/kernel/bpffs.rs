//! The BPF file system: where pins live.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// The pins of one instance: `<bpffs>/tracker/<instance>/{maps,links}`.
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

    /// True where anything is left of an instance.
    pub fn exist(&self) -> bool {
        self.root.exists()
    }

    /// Makes the directories, for the owner only.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn create(&self) -> Result<()> {
        for directory in [self.root.join("maps"), self.root.join("links")] {
            fs::create_dir_all(&directory).with_context(|| {
                format!("cannot make the pin directory {}", directory.display())
            })?;
        }
        for directory in [self.root.parent(), Some(self.root.as_path())]
            .into_iter()
            .flatten()
        {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("cannot restrict {}", directory.display()))?;
        }
        Ok(())
    }

    /// Removes the directories that hold nothing.
    pub fn remove_empty(&self) {
        let parent = self.root.parent().map(Path::to_owned);
        let below = [
            self.root.join("links"),
            self.root.join("maps"),
            self.root.clone(),
        ];
        for directory in below.into_iter().chain(parent) {
            // Fails where there is something, as it should.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Takes the instance for this process, until the lock is dropped.
    ///
    /// # Errors
    /// Where another process has it.
    pub fn lock(&self) -> Result<Flock<File>> {
        let directory = File::open(&self.root)
            .with_context(|| format!("cannot open {}", self.root.display()))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == Errno::EWOULDBLOCK {
                anyhow!(
                    "another daemon of this instance holds {}; stop it, or set another hub.instance",
                    self.root.display()
                )
            } else {
                anyhow!("cannot lock {}: {errno}", self.root.display())
            }
        })
    }

    /// Removes the pins and keeps the directories.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn clear(&self) -> Result<()> {
        for directory in [self.root.join("links"), self.root.join("maps")] {
            for entry in fs::read_dir(&directory)
                .with_context(|| format!("cannot read {}", directory.display()))?
                .flatten()
            {
                let path = entry.path();
                fs::remove_file(&path)
                    .with_context(|| format!("cannot remove the old pin {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Removes all pins of the instance, and `tracker/` itself when it was the last; a link without
    /// pin and holder is detached by the kernel. Says how many pins there were.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn remove(&self) -> Result<usize> {
        let mut removed = 0;
        let mut failure = None;
        for directory in [
            self.root.join("links"),
            self.root.join("maps"),
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
                match fs::remove_file(entry.path()) {
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
            Some((path, error)) => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            None => Ok(removed),
        }
    }
}

/// True where a BPF file system is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `path` unless one is there.
///
/// # Errors
/// Where the directory or the mount fails.
pub fn ensure_mounted(path: &Path) -> Result<()> {
    // A path inside a BPF file system is as good as its mount point.
    if is_mounted(path) {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|error| {
        anyhow!(
            "cannot make {} for the BPF file system: {error}; set hub.bpffs to another path",
            path.display()
        )
    })?;
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|error| {
        anyhow!(
            "cannot mount the BPF file system at {0}: {error}; mount it with `mount -t bpf bpf {0}`",
            path.display()
        )
    })
}

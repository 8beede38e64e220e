//! What `tracker act` keeps in the state directory: what of the kernel is its own, and where the traffic of its actions goes.
//!
//! The file is replaced by renaming, so that it is whole whenever the process is killed. It is not synced to the disk: what it says
//! of the kernel counts for one boot only.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{choice::Choice, nexthop::Hop, plan::Owned};
use crate::host::{directory, namespace};

/// The file in the state directory.
const FILE: &str = "act.json";
/// Its version.
const VERSION: u32 = 1;
/// What names this boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Why what is kept cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made.
    #[error(
        "cannot make the state directory {}; set [hub] state to one that can be written", .path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file cannot be read or written.
    #[error("cannot {attempt} {}; check the disk, or set [hub] state to a directory that can be written", .path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is not what this version writes.
    #[error(
        "cannot read {}: {why}; if it is not of a newer `tracker`, delete it, and the next-hop groups of the actions too", .path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The boot or the network namespace cannot be told from others.
    #[error("cannot tell this boot and network namespace from others")]
    Place(#[source] io::Error),
}

/// The place in the event stream up to which hooks have run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The sequence of numbers.
    pub run: String,
    /// The number.
    pub seq: u64,
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    version: u32,
    /// Boot and network namespace for which `owned`, `pending` and `choices` count.
    place: String,
    /// What of the kernel is ours.
    pub owned: Owned,
    /// Next hops that are being made: their ids are not known yet.
    pub pending: Vec<Hop>,
    /// Where the traffic of actions goes, by their names.
    pub choices: BTreeMap<String, Choice>,
    /// How far hooks are; `None` if none ever ran.
    pub events: Option<Cursor>,
}

/// The file, and what it says.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    written: Option<Kept>,
    /// To be written by [`State::save`].
    pub kept: Kept,
}

impl State {
    /// Reads what was kept in a state directory. Of another boot, and of another network namespace, only the place in the event
    /// stream counts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join(FILE);
        let place = place().map_err(StateError::Place)?;
        let written: Option<Kept> = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) if kept.version == VERSION => Some(kept),
                Ok(kept) => {
                    let why = format!("it is of version {}", kept.version);
                    return Err(StateError::Content { path, why });
                }
                Err(error) => {
                    let why = error.to_string();
                    return Err(StateError::Content { path, why });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                let attempt = "read";
                return Err(StateError::File {
                    attempt,
                    path,
                    source,
                });
            }
        };
        let kept = match &written {
            Some(kept) if kept.place == place => kept.clone(),
            other => Kept {
                version: VERSION,
                place,
                events: other.as_ref().and_then(|kept| kept.events.clone()),
                ..Kept::default()
            },
        };
        Ok(Self {
            path,
            written,
            kept,
        })
    }

    /// Writes what is to be kept, if that has changed.
    ///
    /// # Errors
    /// When it cannot be written; what was kept before is whole then.
    pub fn save(&mut self) -> Result<(), StateError> {
        if self.written.as_ref() == Some(&self.kept) {
            return Ok(());
        }
        if self.written.is_none()
            && let Some(directory) = self.path.parent()
        {
            directory::make(directory).map_err(|source| StateError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        }
        // Plain structures with string keys cannot fail to be written.
        let bytes = serde_json::to_vec(&self.kept).unwrap_or_default();
        let new = self.path.with_extension("json.new");
        let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &self.path));
        written.map_err(|source| StateError::File {
            attempt: "write",
            path: self.path.clone(),
            source,
        })?;
        self.written = Some(self.kept.clone());
        Ok(())
    }
}

/// What tells this boot and this network namespace from all others.
fn place() -> io::Result<String> {
    let boot = fs::read_to_string(BOOT)?;
    let (_, cookie) = namespace::identity().map_err(io::Error::other)?;
    Ok(format!("{} {cookie}", boot.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_counts_for_one_boot() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("a/b");
        let mut state = State::read(&directory).unwrap();
        assert_eq!(state.kept.owned, Owned::default());
        state.kept.owned.hops.insert(7);
        state
            .kept
            .owned
            .routes
            .insert(super::super::plan::RouteKey {
                prefix: "10.5.0.0/16".parse().unwrap(),
                table: 254,
                metric: 3,
            });
        state
            .kept
            .pending
            .push(Hop::Gateway([10, 9, 0, 2].into(), 3));
        state.kept.choices.insert("x".to_owned(), Choice::Withdraw);
        state.kept.events = Some(Cursor {
            run: "ab".to_owned(),
            seq: 9,
        });
        state.save().unwrap();
        let again = State::read(&directory).unwrap();
        assert_eq!(again.kept, state.kept);

        state.kept.place = "another boot".to_owned();
        state.save().unwrap();
        let after = State::read(&directory).unwrap();
        assert_eq!(after.kept.owned, Owned::default());
        assert!(after.kept.choices.is_empty() && after.kept.pending.is_empty());
        assert_eq!(after.kept.events, state.kept.events);

        for bad in ["", "{}", "{\"version\":2}"] {
            fs::write(directory.join(FILE), bad).unwrap();
            let error = State::read(&directory).unwrap_err().to_string();
            assert!(
                error.contains("act.json") && error.contains("delete it"),
                "{error}"
            );
        }
    }
}

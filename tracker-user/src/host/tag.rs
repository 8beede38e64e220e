//! The instance's tag: 32 random bits by which its probes are told from those of all other instances, on this hub and on others.
//!
//! It is in the pinned map HUB while that is there, and in a file of the state directory for the time after.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use super::directory::make;

/// The file in the state directory.
const FILE: &str = "tag";
/// The file until it is complete.
const NEXT: &str = "tag.next";

/// Why a tag cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// The file system refuses to read or write the file.
    #[error("cannot {attempt} {}", .path.display())]
    File {
        /// What is attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// Something else is in the file.
    #[error("{} holds no tag (eight hexadecimal digits)", .0.display())]
    Foreign(PathBuf),
}

/// The tag that the state directory has, if it has one.
///
/// # Errors
/// When the file is there and cannot be read, or holds no tag.
pub fn read(directory: &Path) -> Result<Option<u32>, TagError> {
    let path = directory.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let attempt = "read";
            return Err(TagError::File {
                attempt,
                path,
                source,
            });
        }
        Ok(text) => text,
    };
    let tag = u32::from_str_radix(text.trim(), 16).ok();
    let tag = tag.filter(|tag| *tag != 0 && text.trim().len() == 8);
    tag.map(Some).ok_or(TagError::Foreign(path))
}

/// Keeps the tag in the state directory, which is made if it is missing. After a crash at any moment the file is whole, or the
/// one that was there before.
///
/// # Errors
/// As the file system answers.
pub fn keep(directory: &Path, tag: u32) -> Result<(), TagError> {
    let written = || -> io::Result<()> {
        make(directory)?;
        let next = directory.join(NEXT);
        let mut file = File::create(&next)?;
        writeln!(file, "{tag:08x}")?;
        file.sync_all()?;
        fs::rename(&next, directory.join(FILE))?;
        File::open(directory)?.sync_all()
    };
    written().map_err(|source| TagError::File {
        attempt: "write",
        path: directory.join(FILE),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("tracker/default");
        assert_eq!(read(&state).unwrap(), None);
        for tag in [1, 0xdead_beef, u32::MAX] {
            keep(&state, tag).unwrap();
            assert_eq!(read(&state).unwrap(), Some(tag));
            let names: Vec<_> = fs::read_dir(&state)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, [FILE]);
        }
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "1", "00000000", "0000000g", "100000000", "dead beef"] {
            fs::write(directory.path().join(FILE), text).unwrap();
            assert!(read(directory.path()).is_err(), "{text:?}");
        }
    }
}

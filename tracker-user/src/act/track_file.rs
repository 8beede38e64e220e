//! A file with one number, for keepalived's `track_file` and for scripts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why the number is not in the file.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}; check that its directory exists and can be written", .path.display())]
pub struct TrackFileError {
    path: PathBuf,
    source: io::Error,
}

/// The number that a file has; `None` if it has none.
pub fn read(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a number: a reader finds the old one or the new one, never half of it.
///
/// # Errors
/// As the file system answers.
pub fn write(path: &Path, value: i32) -> Result<(), TrackFileError> {
    let attempt = || {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!(".{name}.tracker"));
        fs::write(&new, format!("{value}\n"))?;
        // For readers that run as another user, whatever the umask is.
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        fs::rename(&new, path).inspect_err(|_| drop(fs::remove_file(&new)))
    };
    attempt().map_err(|source| TrackFileError {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fw-1");
        assert_eq!(read(&path), None);
        for value in [0, -254, i32::MAX] {
            write(&path, value).unwrap();
            assert_eq!(read(&path), Some(value));
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{value}\n"));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let error = write(&directory.path().join("none/fw-1"), 1).unwrap_err();
        assert!(error.to_string().contains("its directory exists"));
    }
}

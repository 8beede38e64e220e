//! The state directory, and directories in it.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path};

/// Makes a directory, and those above it, for the owner alone; nothing if it is there.
///
/// # Errors
/// What the file system answered.
pub fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

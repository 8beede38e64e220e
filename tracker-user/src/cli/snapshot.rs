//! For tests: what a terminal shows, compared with a file in `src/cli/snapshots`.

use std::{env, fs, path::Path};

/// Asserts that this is what the file of this name has. With the environment variable `TRACKER_SNAPSHOTS=write` the file is
/// written instead: read it before it is committed.
pub(crate) fn assert_snapshot(name: &str, shown: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/snapshots");
    let path = directory.join(name).with_extension("txt");
    if env::var_os("TRACKER_SNAPSHOTS").is_some_and(|value| value == "write") {
        fs::create_dir_all(&directory).unwrap();
        fs::write(&path, shown).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        wanted == shown,
        "{name} is not as in {}:\n{shown}",
        path.display()
    );
}

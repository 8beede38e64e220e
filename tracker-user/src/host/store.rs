//! What outlives a reboot: services and admin states that the API was given, in a database file of the state directory.
//!
//! The file is made by the first change. Each change is one transaction, on disk before it is answered (redb: atomic, checksummed
//! and synced), on a thread of its own: a disk that is slow delays no verdict.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::oneshot;

use super::{directory::make, privileges};

/// A table of texts by name.
pub type Table = TableDefinition<'static, &'static str, &'static str>;

/// Services of the API: JSON by name.
pub const SERVICES: Table = TableDefinition::new("services");
/// Admin states: JSON by `service` or `service/member`.
pub const ADMIN: Table = TableDefinition::new("admin");
/// What the file is.
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
/// Key of the version in [`META`].
const VERSION_KEY: &str = "version";
/// Version of the texts in the tables.
const VERSION: u64 = 1;
/// The file in the state directory.
const FILE: &str = "api.redb";

/// Why something cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("cannot make the state directory {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The database refuses.
    #[error("cannot {attempt} {}; check the disk, or set [hub] state to a directory that can be written", .path.display())]
    Database {
        /// What is attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What it answered.
        source: Box<redb::Error>,
    },
    /// A later version wrote the file.
    #[error("{} is of version {found}, and this `tracker` reads version {VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version.
        found: u64,
    },
    /// The library gave up on what is in the file.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
    /// The thread ended.
    #[error(
        "the thread that writes the state directory has ended; this is a bug, please report it"
    )]
    Ended,
}

/// A change of one entry.
#[derive(Clone)]
pub struct Edit {
    table: Table,
    name: String,
    text: Option<String>,
}

impl Edit {
    /// Sets an entry.
    pub const fn put(table: Table, name: String, text: String) -> Self {
        Self {
            table,
            name,
            text: Some(text),
        }
    }

    /// Removes an entry, if it is there.
    pub const fn remove(table: Table, name: String) -> Self {
        Self {
            table,
            name,
            text: None,
        }
    }
}

/// What was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Services of the API: name and JSON, by name.
    pub services: Vec<(String, String)>,
    /// Admin states: what they are of, and JSON.
    pub admin: Vec<(String, String)>,
}

struct Job {
    edits: Vec<Edit>,
    answer: oneshot::Sender<Result<Vec<Edit>, StoreError>>,
}

/// Where changes are kept. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Starts the thread that writes the file of a state directory.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (jobs, wanted) = mpsc::channel::<Job>();
        let directory = directory.to_owned();
        thread::Builder::new()
            .name("tracker-store".to_owned())
            .spawn(move || {
                // Root's own directory needs no capability.
                privileges::limit_thread("the thread that writes the state directory");
                let mut database = None;
                for Job { edits, answer } in wanted {
                    // A client that left knows what it asked for.
                    let _ = answer.send(guarded(&path(&directory), || {
                        write(&directory, &mut database, &edits)
                    }));
                }
            })?;
        Ok(Self { jobs })
    }

    /// Makes all of these changes or none, and returns once they are on disk; the edits returned undo them.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is changed then.
    pub async fn commit(&self, edits: Vec<Edit>) -> Result<Vec<Edit>, StoreError> {
        if edits.is_empty() {
            return Ok(edits);
        }
        let (answer, answered) = oneshot::channel();
        self.jobs
            .send(Job { edits, answer })
            .map_err(|_| StoreError::Ended)?;
        answered.await.map_err(|_| StoreError::Ended)?
    }

    /// Makes these changes soon, in order with others; a failure is logged.
    pub fn commit_later(&self, edits: Vec<Edit>) {
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.commit(edits).await {
                tracing::error!("{}", crate::error::full(&error));
            }
        });
    }
}

/// The file of a state directory.
fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Does something with the database: what is damaged may make the library panic.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // The work leaves nothing behind that is looked at again after a panic, but for a handle to the file, which checks itself.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StoreError::Damaged(path.to_owned())))
}

fn refused<E: Into<redb::Error>>(attempt: &'static str, path: &Path) -> impl Fn(E) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Database {
        attempt,
        path: path.clone(),
        source: Box::new(error.into()),
    }
}

fn write(
    directory: &Path,
    database: &mut Option<Database>,
    edits: &[Edit],
) -> Result<Vec<Edit>, StoreError> {
    let path = path(directory);
    if database.is_none() {
        make(directory).map_err(|source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        *database = Some(Database::create(&path).map_err(refused("open", &path))?);
    }
    let Some(open) = database else {
        return Err(StoreError::Damaged(path));
    };
    let written = edit(open, &path, edits);
    if written.is_err() {
        // It is opened anew by the next change, which then finds what is wrong, or nothing.
        *database = None;
    }
    written
}

fn edit(database: &Database, path: &Path, edits: &[Edit]) -> Result<Vec<Edit>, StoreError> {
    let transaction = database.begin_write().map_err(refused("write", path))?;
    let mut undo = Vec::with_capacity(edits.len());
    {
        let mut meta = transaction
            .open_table(META)
            .map_err(refused("write", path))?;
        meta.insert(VERSION_KEY, VERSION)
            .map_err(refused("write", path))?;
        for Edit { table, name, text } in edits {
            let mut open = transaction
                .open_table(*table)
                .map_err(refused("write", path))?;
            let before = match text {
                Some(text) => open.insert(name.as_str(), text.as_str()),
                None => open.remove(name.as_str()),
            };
            let before = before.map_err(refused("write", path))?;
            undo.push(Edit {
                table: *table,
                name: name.clone(),
                text: before.map(|text| text.value().to_owned()),
            });
        }
    }
    transaction.commit().map_err(refused("write", path))?;
    undo.reverse();
    Ok(undo)
}

/// What the file of a state directory has; `None` if there is none. A file that cannot be read is kept aside under another name,
/// which the log says, and is none.
pub fn read(directory: &Path) -> Option<Contents> {
    let path = path(directory);
    if !path.exists() {
        return None;
    }
    let error = match guarded(&path, || contents(&path)) {
        Ok(contents) => return Some(contents),
        Err(error) => error,
    };
    let suffix = match &error {
        StoreError::Version { found, .. } => format!("version-{found}"),
        _ => "damaged".to_owned(),
    };
    let aside = (0..).map(|number: u32| path.with_extension(format!("redb.{suffix}-{number}")));
    let aside = aside.take(1_000).find(|aside| !aside.exists());
    let kept = aside.map(|aside| (fs::rename(&path, &aside), aside));
    let what = "what the API was given before this start is not known any more";
    match kept {
        Some((Ok(()), aside)) => tracing::error!(
            "{}; {what}; the file is kept as {}",
            crate::error::full(&error),
            aside.display()
        ),
        _ => tracing::error!("{}; {what}; remove the file", crate::error::full(&error)),
    }
    None
}

fn contents(path: &Path) -> Result<Contents, StoreError> {
    let database = Database::open(path).map_err(refused("open", path))?;
    let transaction = database.begin_read().map_err(refused("read", path))?;
    let found = match transaction.open_table(META) {
        Ok(meta) => meta
            .get(VERSION_KEY)
            .map_err(refused("read", path))?
            .map(|version| version.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(refused("read", path)(error)),
    };
    if let Some(found) = found.filter(|found| *found != VERSION) {
        return Err(StoreError::Version {
            path: path.to_owned(),
            found,
        });
    }
    let all = |table: Table| match transaction.open_table(table) {
        Ok(table) => {
            let entries = table.iter().map_err(refused("read", path))?.map(|entry| {
                let (name, text) = entry.map_err(refused("read", path))?;
                Ok((name.value().to_owned(), text.value().to_owned()))
            });
            entries.collect::<Result<Vec<_>, _>>()
        }
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
        Err(error) => Err(refused("read", path)(error)),
    };
    Ok(Contents {
        services: all(SERVICES)?,
        admin: all(ADMIN)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    fn entry(name: &str, text: &str) -> Edit {
        Edit::put(SERVICES, name.to_owned(), text.to_owned())
    }

    fn kept(directory: &Path, edits: Vec<Edit>) -> Result<Vec<Edit>, StoreError> {
        let store = Store::start(directory).unwrap();
        runtime().block_on(store.commit(edits))
    }

    /// The thread of a store that was dropped closes the file soon.
    fn read_soon(directory: &Path) -> Contents {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let found = guarded(&path(directory), || contents(&path(directory)));
            if let Ok(contents) = found {
                return contents;
            }
            assert!(std::time::Instant::now() < until, "{:?}", found.err());
        }
    }

    #[test]
    fn what_is_kept_is_read_and_what_is_undone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        assert_eq!(read(&state), None);
        let undo = kept(
            &state,
            vec![entry("fw-1", "{}"), entry("fw-2", "{\"x\":1}")],
        )
        .unwrap();
        assert_eq!(read_soon(&state).services.len(), 2);
        let changed = vec![
            entry("fw-1", "{\"y\":2}"),
            Edit::remove(SERVICES, "fw-2".to_owned()),
            Edit::put(ADMIN, "fw-1".to_owned(), "m".to_owned()),
        ];
        let back = kept(&state, changed).unwrap();
        let now = read_soon(&state);
        assert_eq!(now.services, [("fw-1".to_owned(), "{\"y\":2}".to_owned())]);
        assert_eq!(now.admin, [("fw-1".to_owned(), "m".to_owned())]);
        kept(&state, back).unwrap();
        let before = read_soon(&state);
        assert_eq!((before.services.len(), before.admin.len()), (2, 0));
        kept(&state, undo).unwrap();
        assert_eq!(read_soon(&state), Contents::default());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        kept(dir.path(), vec![entry("fw-1", "{}")]).unwrap();
        read_soon(dir.path());
        let whole = fs::read(path(dir.path())).unwrap();
        let names = || {
            let entries = fs::read_dir(dir.path()).unwrap();
            entries.count()
        };
        // Cut short, zeroed, and something else.
        let zeros = vec![0; whole.len()];
        let all: [&[u8]; 3] = [&whole[..whole.len() / 3], &zeros, b"nonsense"];
        for (count, damaged) in (1..).zip(all) {
            fs::write(path(dir.path()), damaged).unwrap();
            assert_eq!(read(dir.path()), None);
            assert!(!path(dir.path()).exists());
            assert_eq!(names(), count);
        }
        // It is written anew.
        kept(dir.path(), vec![entry("fw-2", "{}")]).unwrap();
        assert_eq!(read_soon(dir.path()).services.len(), 1);
    }

    #[test]
    fn a_later_version_is_kept_aside_and_named() {
        let dir = tempfile::tempdir().unwrap();
        kept(dir.path(), vec![entry("fw-1", "{}")]).unwrap();
        read_soon(dir.path());
        let database = Database::open(path(dir.path())).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert(VERSION_KEY, 9)
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert_eq!(read(dir.path()), None);
        assert!(dir.path().join("api.redb.version-9-0").exists());
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = kept(&file.join("state"), vec![entry("fw-1", "{}")])
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::Directory { .. }), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}

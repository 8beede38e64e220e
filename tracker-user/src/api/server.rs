//! The daemon's end of its Unix socket: makes it, accepts clients, and answers each request.
//!
//! Every connection is a task of its own that shares nothing but the log, and each only keeps its
//! place in it: a client that does not read holds up no other. A client that can connect may also change
//! what is watched, so the socket is for its owner alone.

use std::fs::{self, File, Metadata, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};

use super::protocol::{Done, Refusal, Request, line};
use super::types::{List, Status};
use crate::config::{Addition, NAME_MAX};
use crate::host::repeats;
use crate::state::events::{EventFeed, Missed, Place, Reset};

/// A request is a line of at most this many bytes: a service with a thousand addresses behind it.
const MAX_REQUEST: u64 = 1 << 16;
/// So many characters of a request that is not understood are quoted at most.
const MAX_QUOTE: usize = 200;
/// A client has this long to send its request, and to take an answer that is not followed.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer about more services or trackers is written down by a thread of its own.
const LONG: usize = 1_000;
/// More clients at a time are turned away.
const MAX_CLIENTS: usize = 256;
/// How often the socket's file is looked for.
const SOCKET_LOOK: Duration = Duration::from_secs(1);
/// So many events are copied out of the log at a time.
const BATCH: usize = 256;

/// What the daemon answers from.
pub trait Api: Clone + Send + Sync + 'static {
    /// What is known of everything, or of the service or chain `name`; the error names what there is.
    fn status(&self, name: Option<&str>) -> impl Future<Output = Result<Status, String>> + Send;
    /// The event stream.
    fn events(&self) -> EventFeed;
}

/// What the daemon's owner may do besides.
pub trait Control: Api {
    /// The services: all, or the service or those of the chain `name`; the error names what there is.
    fn services(&self, name: Option<&str>) -> impl Future<Output = Result<List, String>> + Send;
    /// Adds a service, and says so; the error says why nothing was changed.
    fn add_service(&self, service: Addition)
    -> impl Future<Output = Result<String, String>> + Send;
    /// Removes a service, and says so; the error says why nothing was changed.
    fn remove_service(&self, name: String) -> impl Future<Output = Result<String, String>> + Send;
}

/// Answers clients for ever; makes the socket anew when its file was removed. Dropping the future ends every connection.
pub async fn serve(socket: Socket, api: impl Control) {
    let Socket { listener, mut file } = socket;
    let Ok(mut listener) = UnixListener::from_std(listener) else {
        tracing::error!(
            "this thread has no runtime for the daemon's socket; this is a bug, please report it"
        );
        return;
    };
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    let mut look = tokio::time::interval(SOCKET_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            _ = look.tick() => {
                if file.is_gone() && let Some(made) = again(&file.path) {
                    (listener, file) = made;
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely out of file descriptors, which only time can mend.
                let text = format_args!(
                    "cannot accept a client on the daemon's socket: {error}; trying again"
                );
                repeats::warn("accept on the socket", text);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match slots.clone().try_acquire_owned() {
            Ok(slot) => {
                let api = api.clone();
                clients.spawn(async move {
                    // A client that went away is no fault of the daemon.
                    let _ = answer(stream, api).await;
                    drop(slot);
                });
            }
            Err(_) => {
                let line = refusal(format!(
                    "{MAX_CLIENTS} clients are connected already; end some"
                ));
                // Into an empty buffer, so this does not wait; if it would, the client does without.
                let _ = stream.try_write(&line);
            }
        }
    }
}

/// Makes the socket anew, if that is possible now.
fn again(path: &Path) -> Option<(UnixListener, SocketFile)> {
    let made =
        bind(path)
            .map_err(|error| error.to_string())
            .and_then(|Socket { listener, file }| {
                let listener =
                    UnixListener::from_std(listener).map_err(|error| error.to_string())?;
                Ok((listener, file))
            });
    match made {
        Ok(made) => {
            tracing::warn!("the socket {} was removed; made it anew", path.display());
            Some(made)
        }
        Err(error) => {
            let text = format_args!(
                "the socket {} was removed, and cannot be made anew: {error}; trying again",
                path.display()
            );
            repeats::warn("make the socket anew", text);
            None
        }
    }
}

fn refusal(error: String) -> Vec<u8> {
    line(&Refusal { error })
}

async fn answer(stream: UnixStream, api: impl Control) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let request = match timeout(PATIENCE, request(&mut read)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return write_within(&mut write, &refusal(error)).await,
        Err(_) => return Ok(()),
    };
    match request {
        Request::Status { name } => {
            let mut is_long = false;
            let bytes = match api.status(name.as_deref()).await {
                Ok(status) => {
                    is_long = status.services.len() > LONG
                        || status
                            .services
                            .iter()
                            .any(|service| service.is_longer(LONG));
                    if is_long {
                        // Others' answers do not wait for it.
                        let line = tokio::task::spawn_blocking(move || line(&status));
                        line.await.map_err(io::Error::other)?
                    } else {
                        line(&status)
                    }
                }
                Err(error) => refusal(error),
            };
            let written = write_within(&mut write, &bytes).await;
            if is_long {
                drop(bytes);
                let freed = tokio::task::spawn_blocking(return_memory);
                freed.await.map_err(io::Error::other)?;
            }
            written
        }
        Request::Events { since, run, follow } => {
            let since = since.map(|seq| Place { run, seq });
            events(&mut read, &mut write, &api.events(), since, follow).await
        }
        Request::ServiceList { name } => {
            let bytes = match api.services(name.as_deref()).await {
                Ok(list) => line(&list),
                Err(error) => refusal(error),
            };
            write_within(&mut write, &bytes).await
        }
        Request::ServiceAdd { service } => {
            let answer = done(api.add_service(*service).await);
            write_within(&mut write, &answer).await
        }
        Request::ServiceRemove { name } => {
            let answer = done(api.remove_service(name).await);
            write_within(&mut write, &answer).await
        }
    }
}

/// Gives free memory back to the kernel. The C library keeps what a long answer took, 10 MB of 65,000 trackers, until the
/// end of its arena is free, and from then on takes long buffers out of the arena too, unless it has a fixed threshold.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; any thread may call them (mallopt(3), malloc_trim(3): MT-Safe).
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 18);
        libc::malloc_trim(0);
    }
}

fn done(result: Result<String, String>) -> Vec<u8> {
    match result {
        Ok(done) => line(&Done { done }),
        Err(error) => refusal(error),
    }
}

async fn request(read: &mut OwnedReadHalf) -> Result<Request, String> {
    let mut text = Vec::new();
    let mut limited = tokio::io::BufReader::new(read.take(MAX_REQUEST));
    limited
        .read_until(b'\n', &mut text)
        .await
        .map_err(|error| format!("cannot read the request: {error}"))?;
    if text.last() != Some(&b'\n') {
        return Err(format!(
            "the request is not a line of at most {MAX_REQUEST} bytes"
        ));
    }
    let request = serde_json::from_slice(&text).map_err(|error| {
        // It may quote most of the request.
        let error: String = error.to_string().chars().take(MAX_QUOTE).collect();
        format!("cannot understand the request: {error}; use a `tracker` of the daemon's version")
    })?;
    let name = match &request {
        Request::Status { name } | Request::ServiceList { name } => name.as_deref(),
        Request::ServiceAdd { service } => Some(service.name.as_str()),
        Request::ServiceRemove { name } => Some(name.as_str()),
        Request::Events { .. } => None,
    };
    match name.map(str::len).filter(|len| *len > NAME_MAX) {
        Some(len) => Err(format!(
            "a name of {len} bytes: the longest has {NAME_MAX}; give a shorter one"
        )),
        None => Ok(request),
    }
}

async fn write_within(write: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    timeout(PATIENCE, write.write_all(bytes)).await?
}

async fn events(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    feed: &EventFeed,
    since: Option<Place>,
    follow: bool,
) -> io::Result<()> {
    // Subscribed before the first look, so that nothing falls between the two.
    let mut news = feed.subscribe();
    let (first, next) = feed.bounds();
    let run = feed.run();
    let mut cursor = match since {
        // A number that was not given yet is of another sequence.
        Some(Place { run: named, seq })
            if named.as_ref().is_some_and(|named| **named != *run)
                || (named.is_none() && seq >= next) =>
        {
            write_within(write, &line(&Reset { reset: true, run })).await?;
            first - 1
        }
        Some(Place { seq, .. }) if seq >= next => {
            let error = format!(
                "event {seq} of run {run} has not happened yet, the last is {}; leave out --since, or give at most that",
                next - 1
            );
            return write_within(write, &refusal(error)).await;
        }
        Some(Place { seq, .. }) => seq,
        None => first - 1,
    };
    loop {
        let batch = feed.read(cursor, BATCH);
        let mut bytes = Vec::new();
        if batch.missed > 0 {
            cursor += batch.missed;
            bytes.extend(line(&Missed {
                missed: batch.missed,
                next: cursor + 1,
            }));
        }
        for event in &batch.events {
            // One that only wants what there was is not kept by what happens meanwhile.
            if !follow && event.seq >= next {
                break;
            }
            bytes.extend(line(event));
        }
        cursor += batch.events.len() as u64;
        if follow {
            // However slow: all that waits is this task.
            write.write_all(&bytes).await?;
        } else {
            write_within(write, &bytes).await?;
            if cursor + 1 >= next {
                return Ok(());
            }
        }
        if batch.events.is_empty() {
            let mut rest = [0; 64];
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return Ok(()) },
                // Nothing more is expected: this is how a client that left is noticed.
                read = read.read(&mut rest) => if read? == 0 { return Ok(()) },
            }
        }
    }
}

/// Why the daemon's socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon is there.
    #[error(
        "cannot listen on {}: another daemon answers there; stop it, or give this one its own [hub] instance and socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error("cannot listen on {}: it exists and is not a socket; remove it or set [hub] socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {}: cannot {attempt}: {why}; check the path and its permissions", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system refused.
        attempt: &'static str,
        /// Why.
        why: io::Error,
    },
}

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct Socket {
    listener: BlockingListener,
    file: SocketFile,
}

/// Owns the socket's file, which is removed with it unless another daemon has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Open so that no other file can get its inode number.
    inode: File,
}

impl SocketFile {
    /// Whether the path leads elsewhere, or nowhere.
    fn is_gone(&self) -> bool {
        let identity = |meta: io::Result<Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let there = identity(fs::symlink_metadata(&self.path));
        there.is_none() || there != identity(self.inode.metadata())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_gone() {
            // Best effort: a stale socket is replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, for root alone: makes its directory, and replaces what a killed daemon left.
///
/// # Errors
/// When another daemon answers there, something else is there, or the system refuses.
pub fn bind(path: &Path) -> Result<Socket, BindError> {
    let system = |attempt| {
        move |why| BindError::System {
            path: path.to_owned(),
            attempt,
            why,
        }
    };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(system("create its directory"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => match BlockingStream::connect(path) {
            Ok(_) => return Err(BindError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(system("remove the stale socket"))?;
            }
            Err(error) => return Err(system("find out who answers there")(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system("look at it")(error)),
    }
    let refused = |attempt| move |errno: Errno| system(attempt)(errno.into());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(refused("make a socket"))?;
    let address = UnixAddr::new(path).map_err(refused("bind"))?;
    socket::bind(socket.as_raw_fd(), &address).map_err(refused("bind"))?;
    // Before it listens, so that no other user can connect in between.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(system("set its permissions"))?;
    // A socket can be held, though not read, by O_PATH.
    let inode = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .map_err(system("look at it"))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode,
    };
    socket::listen(&socket, Backlog::MAXCONN).map_err(refused("listen"))?;
    let listener = BlockingListener::from(socket);
    Ok(Socket { listener, file })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;
    use crate::api::client::{ClientError, ask_change, ask_services, ask_status};
    use crate::config::Given;
    use crate::state::events::{Event, EventLog, Numbered};
    use crate::{api::types as status, state::events};

    #[derive(Clone)]
    struct Fixed(EventFeed);

    impl Api for Fixed {
        async fn status(&self, name: Option<&str>) -> Result<Status, String> {
            match name {
                None | Some("fw-1") => Ok(status::tests::example()),
                Some(name) => Err(format!("no {name}")),
            }
        }

        fn events(&self) -> EventFeed {
            self.0.clone()
        }
    }

    impl Control for Fixed {
        async fn services(&self, _: Option<&str>) -> Result<List, String> {
            Ok(List {
                services: Vec::new(),
                free: 7,
            })
        }

        async fn add_service(&self, service: Addition) -> Result<String, String> {
            match service.keys.get("port") {
                None => Ok(format!("added {}", service.name)),
                Some(port) => Err(format!("no {port:?}")),
            }
        }

        async fn remove_service(&self, name: String) -> Result<String, String> {
            Err(format!("no {name}"))
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    struct Daemon {
        dir: tempfile::TempDir,
        feed: EventFeed,
    }

    impl Daemon {
        fn start(capacity: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let feed = EventFeed::new(EventLog::new(capacity, 1).of_run("r1"));
            let daemon = Self { dir, feed };
            let (path, feed) = (daemon.socket(), daemon.feed.clone());
            let (ready, wait) = std::sync::mpsc::channel();
            // Ends with the test's process.
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let socket = bind(&path).unwrap();
                    ready.send(()).unwrap();
                    serve(socket, Fixed(feed)).await;
                });
            });
            wait.recv().unwrap();
            daemon
        }

        fn socket(&self) -> PathBuf {
            self.dir.path().join("run/d.sock")
        }

        fn publish(&self, count: usize) {
            self.feed
                .publish(std::iter::repeat_n(events::tests::example(), count));
        }

        fn lines(&self, request: &str) -> Vec<String> {
            let mut stream = BlockingStream::connect(self.socket()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            // What follows a refused request is reset rather than read.
            let lines = BufReader::new(stream).lines();
            lines.map_while(Result::ok).collect()
        }
    }

    fn seqs(lines: &[String]) -> Vec<u64> {
        let seq = |line: &String| serde_json::from_str::<Numbered>(line).expect(line).seq;
        lines.iter().map(seq).collect()
    }

    #[test]
    fn status_is_one_line_and_unknown_names_are_refused() {
        let daemon = Daemon::start(8);
        let (line, status) = ask_status(&daemon.socket(), Some("fw-1")).unwrap();
        assert_eq!(line, status::tests::CONTRACT);
        assert_eq!(status, status::tests::example());
        let error = ask_status(&daemon.socket(), Some("x")).unwrap_err();
        assert!(
            matches!(&error, ClientError::Refused(why) if why == "no x"),
            "{error}"
        );
        let lines = daemon.lines("{\"command\":\"status\",\"name\":null}\n");
        assert_eq!(lines, [status::tests::CONTRACT]);
    }

    #[test]
    fn bad_requests_are_refused_and_do_no_harm() {
        let daemon = Daemon::start(8);
        let long = format!("{{\"command\":\"{}\"}}\n", "x".repeat(70_000));
        let unknown = format!("{{\"command\":\"{}\"}}\n", "x".repeat(60_000));
        let remove = format!(
            "{{\"command\":\"service-remove\",\"name\":\"{}\"}}\n",
            "x".repeat(60_000)
        );
        let cases = [
            "\n",
            "{}\n",
            "{\"command\":\"reboot\"}\n",
            "{\"command\":\"status\",\"nam\":\"x\"}\n",
            "{\"command\":\"events\",\"since\":-1}\n",
            "{\"command\":\"service-add\"}\n",
            "{\"command\":\"service-add\",\"service\":{\"name\":\"x\"}}\n",
            "{\"command\":\"service-add\",\"service\":{\"name\":\"x\",\"endpoint\":\"10.9.0.2\",\"behind\":[],\"x\":1}}\n",
            "{\"command\":\"service-remove\",\"name\":7}\n",
            "\u{0}\u{1b}[2J\n",
            "[[[[[[[[\n",
            long.as_str(),
            unknown.as_str(),
            remove.as_str(),
        ];
        for request in cases {
            let lines = daemon.lines(request);
            assert_eq!(lines.len(), 1, "{request}: {lines:?}");
            assert!(lines[0].starts_with("{\"error\":\""), "{lines:?}");
            assert!(lines[0].len() < 600, "{lines:?}");
        }
        assert!(ask_status(&daemon.socket(), None).is_ok());
    }

    #[test]
    fn services_are_listed_added_and_removed() {
        let daemon = Daemon::start(8);
        let (line, list) = ask_services(&daemon.socket(), None).unwrap();
        assert_eq!(
            (line.as_str(), list.free),
            ("{\"services\":[],\"free\":7}", 7)
        );
        let mut service = Addition {
            name: "fw-1".to_owned(),
            keys: [
                ("endpoint".to_owned(), "10.9.0.2".into()),
                (
                    "behind".to_owned(),
                    Given::List(vec!["10.20.0.9".to_owned()]),
                ),
            ]
            .into(),
        };
        let add = |service: &Addition| {
            let service = Box::new(service.clone());
            ask_change(&daemon.socket(), &Request::ServiceAdd { service })
        };
        assert_eq!(add(&service).unwrap(), "added fw-1");
        service.keys.insert("port".to_owned(), Given::Number(9));
        assert_eq!(add(&service).unwrap_err().to_string(), "no Number(9)");
        let name = "fw-1".to_owned();
        let gone = ask_change(&daemon.socket(), &Request::ServiceRemove { name });
        assert_eq!(gone.unwrap_err().to_string(), "no fw-1");
        let wire = "{\"command\":\"service-add\",\"service\":{\"name\":\"a\",\"endpoint\":\"b\",\"behind\":[\"c\"],\"policy\":2}}\n";
        assert_eq!(daemon.lines(wire), ["{\"done\":\"added a\"}"]);
    }

    #[test]
    fn events_are_what_there_was_when_not_followed() {
        let daemon = Daemon::start(1000);
        assert_eq!(daemon.lines("{\"command\":\"events\"}\n"), [""; 0]);
        daemon.publish(700);
        let all = daemon.lines("{\"command\":\"events\"}\n");
        assert_eq!(seqs(&all), (1..=700).collect::<Vec<_>>());
        let after = daemon.lines("{\"command\":\"events\",\"since\":698}\n");
        assert_eq!(seqs(&after), [699, 700]);
        assert_eq!(
            daemon.lines("{\"command\":\"events\",\"since\":700}\n"),
            [""; 0]
        );
        // Numbers that were not given yet are of another run; so is what says so.
        for request in [
            r#"{"command":"events","since":701}"#,
            r#"{"command":"events","since":3,"run":"other"}"#,
        ] {
            let anew = daemon.lines(&format!("{request}\n"));
            assert_eq!(anew[0], r#"{"reset":true,"run":"r1"}"#);
            assert_eq!(seqs(&anew[1..]), (1..=700).collect::<Vec<_>>());
        }
        let same = daemon.lines("{\"command\":\"events\",\"since\":699,\"run\":\"r1\"}\n");
        assert_eq!(seqs(&same), [700]);
        let ahead = daemon.lines("{\"command\":\"events\",\"since\":701,\"run\":\"r1\"}\n");
        assert!(
            ahead[0].contains("event 701 of run r1 has not happened yet, the last is 700"),
            "{ahead:?}"
        );
    }

    #[test]
    fn what_is_no_longer_kept_is_told() {
        let daemon = Daemon::start(10);
        daemon.publish(25);
        let lines = daemon.lines("{\"command\":\"events\",\"since\":3}\n");
        assert_eq!(lines[0], "{\"missed\":12,\"next\":16}");
        assert_eq!(seqs(&lines[1..]), (16..=25).collect::<Vec<_>>());
        let all = daemon.lines("{\"command\":\"events\"}\n");
        assert_eq!(seqs(&all), (16..=25).collect::<Vec<_>>());
    }

    #[test]
    fn stuck_clients_hold_up_nobody_and_a_slow_follower_learns_what_it_missed() {
        let daemon = Daemon::start(2000);
        let request = b"{\"command\":\"events\",\"follow\":true}\n";
        let connect = || {
            let stream = BlockingStream::connect(daemon.socket()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let _silent: Vec<_> = (0..8).map(|_| connect()).collect();
        let mut slow = connect();
        slow.write_all(request).unwrap();
        let mut quick = connect();
        quick.write_all(request).unwrap();
        let mut quick = BufReader::new(quick).lines();

        // Far more than a socket's buffers hold, while `slow` does not read.
        let mut seen = 0;
        for _ in 0..30 {
            daemon.publish(500);
            for _ in 0..500 {
                let line = quick.next().unwrap().unwrap();
                seen += 1;
                assert_eq!(seqs(&[line]), [seen]);
            }
        }
        assert!(ask_status(&daemon.socket(), None).is_ok());

        let mut next = 1;
        let mut missed = 0;
        for line in BufReader::new(slow).lines() {
            let line = line.unwrap();
            if let Ok(gap) = serde_json::from_str::<Missed>(&line) {
                missed += gap.missed;
                assert_eq!(gap.next, next + gap.missed);
                next = gap.next;
            } else {
                assert_eq!(seqs(&[line]), [next]);
                next += 1;
            }
            if next > seen {
                break;
            }
        }
        assert!(missed > 0, "the buffers held everything");
    }

    #[test]
    fn a_follower_that_leaves_frees_its_place() {
        let daemon = Daemon::start(8);
        for _ in 0..3 {
            let clients: Vec<_> = (0..MAX_CLIENTS)
                .map(|_| {
                    let mut stream = BlockingStream::connect(daemon.socket()).unwrap();
                    stream
                        .write_all(b"{\"command\":\"events\",\"follow\":true}\n")
                        .unwrap();
                    stream
                })
                .collect();
            let until = std::time::Instant::now() + PATIENCE;
            // One too many is told so at once ...
            loop {
                match ask_status(&daemon.socket(), None) {
                    Err(ClientError::Refused(why)) if why.contains("clients are connected") => {
                        break;
                    }
                    _ => assert!(std::time::Instant::now() < until, "nobody is turned away"),
                }
            }
            drop(clients);
            // ... and let in once the others have left.
            while ask_status(&daemon.socket(), None).is_err() {
                assert!(std::time::Instant::now() < until, "nobody was forgotten");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn the_socket_is_private_replaced_when_stale_and_removed() {
        let daemon = Daemon::start(8);
        let path = daemon.socket();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let runtime = runtime();
        let _guard = runtime.enter();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");

        let stale = daemon.dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let Socket {
            listener,
            file: first,
        } = bind(&stale).unwrap();
        // One that lost its place leaves the new one's alone.
        drop(listener);
        let second = bind(&stale).unwrap();
        drop(first);
        assert!(stale.exists());
        drop(second);
        assert!(!stale.exists());

        let file = daemon.dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = bind(&file).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let error = bind(&file.join("x.sock")).unwrap_err().to_string();
        assert!(error.contains("cannot create its directory"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn events_of_the_wire_are_those_of_the_log() {
        let _: fn(Event) -> Numbered = |event| Numbered {
            seq: 1,
            event,
            run: "r1".into(),
        };
        let daemon = Daemon::start(8);
        daemon.publish(1);
        let lines = daemon.lines("{\"command\":\"events\"}\n");
        let numbered: Numbered = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(numbered.event, events::tests::example());
    }
}

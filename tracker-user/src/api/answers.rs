//! What clients are told, put together in slices: the state is never locked for more than a few trackers, however many
//! there are, so that an answer delays no report.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures::stream;
use glob::Pattern;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value as Json;
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tracker_ebpf::abi;

use super::{
    history::{self, HistoryWanted, ServiceHistory},
    http::PATIENCE,
    metrics::ReadRtts,
    openapi,
    problem::Refused,
    routes::{Api, ServiceChange, ServicesWanted},
    status::{self, Cursor, Facts, Outline},
    types::{
        self, Changed, List, ReloadStatus, ServiceStatus, Status, SteeringStatus, UplinkStatus,
    },
};
use crate::{
    config::{self, Config, Invalid, Service, keys::SERVICE_NAME},
    datapath::{
        loader::{RttReader, StateReader},
        steering::SteeredReader,
    },
    desired::model::TrackerRef,
    detector::lateness::Health,
    doctor::{self, By, Report},
    error::full,
    host::{
        clock,
        history::History,
        store::{Edit, Store},
    },
    state::{
        admin::Admin,
        events::EventFeed,
        tree::{Stamp, StateTree},
    },
};

/// How many trackers (or services) are read while the state is locked.
const SLICE: usize = 128;
/// How long an answer waits for the state. Longer than this only a main loop that hangs in the middle of a change
/// keeps it.
const STATE_WAIT: Duration = Duration::from_secs(2);
/// How often an answer is begun anew because a reload changed what it is about.
const ATTEMPTS: u32 = 3;
/// A long answer is sent in pieces of at least this many bytes.
const PIECE: usize = 32 << 10;

/// What clients want to be different. Only the main loop changes anything, one change after the other.
pub struct Change {
    /// What is wanted.
    pub wanted: Wanted,
    /// Only check it, and say what would be done.
    pub is_trial: bool,
    /// Takes what was done, or why nothing was.
    pub answer: oneshot::Sender<Result<Done, Refused>>,
}

/// A change that clients may want.
#[derive(Clone)]
pub enum Wanted {
    /// A service of the API is to be as this one.
    Put {
        /// The service.
        service: Box<Service>,
        /// Whether one of its name must not exist.
        is_new: bool,
    },
    /// The API is to own these services and no others.
    All(Vec<Service>),
    /// The service of this name is to be removed.
    Remove(String),
    /// A service or member is to be in this admin state.
    Admin {
        /// Name of the service.
        service: String,
        /// Name, role or endpoint of the member.
        member: Option<String>,
        /// The admin state.
        admin: Admin,
    },
}

/// What a change did, or would do.
#[derive(Clone, Default)]
pub struct Done {
    /// For the client.
    pub changed: Changed,
    /// What is to be kept of it.
    pub kept: Vec<Edit>,
}

/// What the main loop keeps up to date, and answers are read from.
pub struct Known {
    /// What is reported.
    pub tree: StateTree,
    /// Counters, by slot.
    pub states: StateReader,
    /// Round-trip times, by the members' places in PATHS.
    pub rtts: RttReader,
    /// How many trackers find place in the maps.
    pub free: u32,
    /// Steering, while it is loaded.
    pub steering: Option<KnownSteering>,
    /// How well the daemon keeps up.
    pub health: Arc<Health>,
    /// The configuration, without its services and chains.
    pub config: Arc<Config>,
    /// The last reload.
    pub reload: Option<ReloadStatus>,
}

/// What is known of steering.
#[derive(Clone)]
pub struct KnownSteering {
    /// Counters, by the members' places in PATHS.
    pub counters: SteeredReader,
    /// The configured uplinks.
    pub uplinks: Vec<UplinkStatus>,
}

impl KnownSteering {
    /// What was steered to a member; nothing before it has its place.
    fn steered(&self, path: Option<u32>) -> abi::Steered {
        path.map(|path| self.counters.get(path)).unwrap_or_default()
    }
}

/// What clients are answered from.
#[derive(Clone)]
pub struct Answers {
    known: Arc<Mutex<Known>>,
    feed: EventFeed,
    changes: UnboundedSender<Change>,
    health: Arc<Health>,
    /// Held while a change is checked, kept and made: two changes never mix.
    writing: Arc<tokio::sync::Mutex<()>>,
    store: Store,
    history: History,
}

impl Answers {
    /// Answers from what is known, with the feed of events, the way by which changes reach the main loop, and what keeps them.
    pub fn new(
        known: Known,
        feed: EventFeed,
        changes: UnboundedSender<Change>,
        store: Store,
        history: History,
    ) -> Self {
        Self {
            health: known.health.clone(),
            known: Arc::new(Mutex::new(known)),
            feed,
            changes,
            writing: Arc::default(),
            store,
            history,
        }
    }

    /// What is known, for the main loop. To be held for a moment only.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// The feed of events.
    pub const fn feed(&self) -> &EventFeed {
        &self.feed
    }

    /// What keeps the API's changes.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// What is kept of loss, round-trip time and events.
    pub const fn history(&self) -> &History {
        &self.history
    }

    async fn ask(&self, wanted: Wanted, is_trial: bool) -> Result<Done, Refused> {
        let (answer, answered) = oneshot::channel();
        let ends = |()| Refused::Unavailable("the daemon ends; nothing was changed".to_owned());
        let change = Change {
            wanted,
            is_trial,
            answer,
        };
        self.changes.send(change).map_err(|_| ends(()))?;
        answered.await.map_err(|_| ends(()))?
    }

    /// Reads what is known.
    ///
    /// # Errors
    /// When the main loop stands in the middle of a change.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> Result<T, Refused> {
        match self.known.try_lock_for(STATE_WAIT) {
            Some(known) => Ok(read(&known)),
            None => Err(Refused::Unavailable(format!(
                "the daemon's main loop has stood in the middle of a change for more than {} s, so nothing is known; it is ended \
                 when that lasts",
                STATE_WAIT.as_secs()
            ))),
        }
    }

    /// Makes a change that was checked.
    async fn make(&self, wanted: Wanted, kept: Vec<Edit>) -> Result<Changed, Refused> {
        // Kept before it is made: what a client was told of survives whatever happens then.
        let undo =
            self.store.commit(kept).await.map_err(|error| {
                Refused::Storage(format!("nothing was changed: {}", full(&error)))
            })?;
        let done = self.ask(wanted, false).await;
        if done.is_err() {
            // The main loop changed its mind since the trial, by a reload in between.
            let _ = self.store.commit(undo).await;
        }
        Ok(done?.changed)
    }

    /// Begins a status: what it is about, and what it says beside services.
    fn begin(&self, names: &[Pattern]) -> Result<Reading, Refused> {
        let (outline, steering, reload) = self.read(|known| {
            let outline = status::outline(&known.tree, names).map_err(Refused::Unknown)?;
            Ok::<_, Refused>((outline, known.steering.clone(), known.reload.clone()))
        })??;
        Ok(Reading {
            answers: self.clone(),
            outline,
            steering,
            reload,
            health: self.health.clone(),
            cursor: Cursor::default(),
            now: clock::stamp(),
            services: Vec::new(),
        })
    }
}

/// A status that is being read in slices.
struct Reading {
    answers: Answers,
    outline: Outline,
    steering: Option<KnownSteering>,
    reload: Option<ReloadStatus>,
    health: Arc<Health>,
    cursor: Cursor,
    now: Stamp,
    /// What was read; trackers of the last one may still be missing.
    services: Vec<ServiceStatus>,
}

/// What reading a slice found.
enum Slice {
    More,
    Whole,
    /// A reload changed what the rest is about.
    Changed,
}

impl Reading {
    fn slice(&mut self) -> Result<Slice, Refused> {
        let Self {
            answers,
            outline,
            steering,
            cursor,
            now,
            services,
            ..
        } = self;
        answers.read(|known| {
            let facts = Facts {
                counters: |_: TrackerRef, slot: Option<u32>| {
                    let state = slot.map(|slot| known.states.state(slot));
                    state.map_or_else(Default::default, |state| status::counters(&state))
                },
                steered: steering
                    .as_ref()
                    .map(|steering| |path: Option<u32>| steering.steered(path)),
            };
            let more = status::slice(&known.tree, outline, cursor, SLICE, *now, &facts, services);
            match (known.tree.generation() == outline.generation, more) {
                (false, _) => Slice::Changed,
                (true, true) => Slice::More,
                (true, false) => Slice::Whole,
            }
        })
    }

    /// The status, without services.
    fn frame(&self) -> Status {
        let steering = self.steering.as_ref().map(|steering| SteeringStatus {
            uplinks: steering.uplinks.clone(),
        });
        let run = self.answers.feed.run().to_string();
        let now_ns = clock::monotonic_ns();
        Status {
            last_reload: self.reload.clone(),
            ..self.outline.frame(steering, run, &self.health, now_ns)
        }
    }

    fn status(self) -> Status {
        let mut status = self.frame();
        status.services = self.services;
        if status.is_stalled() {
            status.services.iter_mut().for_each(ServiceStatus::stall);
        }
        status
    }
}

/// A long status on its way to a client, in pieces.
struct Pieces {
    reading: Reading,
    frame: Status,
    trackers: bool,
    place: Place,
}

/// How far a long status has come.
enum Place {
    Head,
    /// Whether a service was written already, and whether all were read.
    Services(bool, bool),
    End,
}

impl Pieces {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let mut text = Vec::new();
        loop {
            match self.place {
                Place::Head => {
                    let (head, _) = self.ends();
                    text.extend(head.into_bytes());
                    self.place = Place::Services(false, false);
                }
                Place::Services(is_begun, true) => {
                    let services = std::mem::take(&mut self.reading.services);
                    self.write(services, is_begun, &mut text);
                    // The age of what it says is that of its end: what stood still while it was made counts.
                    if self.reading.frame().is_stalled() != self.frame.is_stalled() {
                        let text =
                            "the daemon stopped or began to keep up while the status was made";
                        return Some((Err(io::Error::other(text)), self));
                    }
                    let (_, tail) = self.ends();
                    text.extend(tail.into_bytes());
                    self.place = Place::End;
                }
                Place::Services(is_begun, false) => {
                    match self.reading.slice() {
                        Ok(slice) => {
                            let is_whole = !matches!(slice, Slice::More)
                                && !matches!(slice, Slice::Changed if self.has_more());
                            // The last one may be taken up in the middle.
                            let last = self.reading.services.pop();
                            let services = std::mem::take(&mut self.reading.services);
                            let has_some = !services.is_empty();
                            self.write(services, is_begun, &mut text);
                            self.reading.services.extend(last);
                            self.place = Place::Services(is_begun || has_some, is_whole);
                        }
                        Err(_) => {
                            let text = "the daemon's main loop stands in the middle of a change";
                            return Some((Err(io::Error::other(text)), self));
                        }
                    }
                    tokio::task::yield_now().await;
                }
                Place::End => {
                    // Others' answers do not wait for it.
                    let _ = tokio::task::spawn_blocking(return_memory).await;
                    return None;
                }
            }
            if text.len() >= PIECE || matches!(self.place, Place::End) {
                return Some((Ok(text.into()), self));
            }
        }
    }

    /// Whether services are left to be read, when a reload changed others.
    fn has_more(&self) -> bool {
        self.reading.cursor.has_more(&self.reading.outline)
    }

    /// What stands before the services, and after them.
    fn ends(&self) -> (String, String) {
        // Plain structures with string keys cannot fail to be written.
        let text = serde_json::to_string(&self.frame).unwrap_or_default();
        // Quotes within texts are escaped, so this is the key itself.
        let (head, tail) = text.split_once("\"services\":[]").unwrap_or_default();
        (format!("{head}\"services\":["), format!("]{tail}"))
    }

    fn write(&self, services: Vec<ServiceStatus>, mut is_begun: bool, into: &mut Vec<u8>) {
        for mut service in services {
            finish(&mut service, self.trackers, self.frame.is_stalled());
            if std::mem::replace(&mut is_begun, true) {
                into.push(b',');
            }
            // As above; what fails to be written leaves nothing.
            let _ = serde_json::to_writer(&mut *into, &service);
        }
    }
}

/// Makes a service what the client wants to see of it.
fn finish(service: &mut ServiceStatus, trackers: bool, is_stalled: bool) {
    if is_stalled {
        service.stall();
    }
    if !trackers {
        for member in &mut service.members {
            member.trackers = Vec::new();
        }
    }
}

/// Gives free memory back to the kernel. The C library keeps what a long answer took until the end of its arena is free, and from
/// then on takes long buffers out of the arena too, unless it has a fixed threshold.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; any thread may call them (mallopt(3), malloc_trim(3): MT-Safe).
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 18);
        libc::malloc_trim(0);
    }
}

impl Api for Answers {
    fn document(&self) -> Json {
        openapi::document::<Self>()
    }

    async fn status(&self, names: &[Pattern]) -> Result<Status, Refused> {
        let mut attempts = 1..ATTEMPTS;
        loop {
            let mut reading = self.begin(names)?;
            let is_whole = loop {
                match reading.slice()? {
                    Slice::More => tokio::task::yield_now().await,
                    Slice::Whole => break true,
                    Slice::Changed => break false,
                }
            };
            // What was read before and after a reload may not go together.
            if is_whole || attempts.next().is_none() {
                return Ok(reading.status());
            }
        }
    }

    async fn status_body(&self, names: Vec<Pattern>, trackers: bool) -> Result<Body, Refused> {
        let mut reading = self.begin(&names)?;
        match reading.slice()? {
            Slice::More => {}
            Slice::Whole | Slice::Changed => {
                let mut status = match reading.cursor.has_more(&reading.outline) {
                    false => reading.status(),
                    true => self.status(&names).await?,
                };
                let services = &mut status.services;
                services
                    .iter_mut()
                    .for_each(|service| finish(service, trackers, false));
                // Plain structures with string keys cannot fail to be written.
                return Ok(Body::from(serde_json::to_vec(&status).unwrap_or_default()));
            }
        }
        let pieces = Pieces {
            frame: reading.frame(),
            reading,
            trackers,
            place: Place::Head,
        };
        Ok(Body::from_stream(stream::unfold(pieces, Pieces::next)))
    }

    fn events(&self) -> EventFeed {
        self.feed.clone()
    }

    fn chained(&self, names: &[Pattern]) -> Vec<String> {
        self.read(|known| status::chained(&known.tree, names))
            .unwrap_or_default()
    }

    fn rtts(&self) -> Result<ReadRtts, Refused> {
        let rtts = self.read(|known| known.rtts.clone())?;
        Ok(Box::new(move |path| rtts.rtts(path)))
    }

    fn health(&self) -> types::Health {
        // Not under the lock of the state: whether that is ever given back is the question.
        types::Health::new(&self.health, clock::monotonic_ns())
    }

    async fn doctor(&self) -> Result<Report, Refused> {
        let (config, desired) =
            self.read(|known| (known.config.clone(), known.tree.desired().clone()))?;
        let runtime = tokio::runtime::Handle::current();
        // It asks drivers and reads files, and others' answers do not wait for that.
        let report = tokio::task::spawn_blocking(move || {
            let services = desired.services().iter();
            let config = Config {
                services: services.map(|service| service.settings.clone()).collect(),
                ..(*config).clone()
            };
            let report = doctor::report(Some(&config), By::Daemon);
            runtime.block_on(async { tokio::time::timeout(PATIENCE, report).await })
        });
        match report.await {
            Ok(Ok(Ok(report))) => Ok(report),
            Ok(Ok(Err(error))) => Err(Refused::Unavailable(format!("{}; try again", full(&error)))),
            Ok(Err(_)) => Err(Refused::Unavailable(
                "the kernel did not list its interfaces in time; try again".to_owned(),
            )),
            Err(_) => Err(Refused::Unavailable(
                "looking at this host failed; this is a bug, please report it".to_owned(),
            )),
        }
    }

    async fn services(&self, names: &[Pattern]) -> Result<List, Refused> {
        let (outline, free) =
            self.read(|known| (status::outline(&known.tree, names), known.free))?;
        let numbers = outline.map_err(Refused::Unknown)?.services;
        let mut services = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(SLICE) {
            services.extend(self.read(|known| status::list(&known.tree, numbers))?);
            tokio::task::yield_now().await;
        }
        Ok(List { services, free })
    }

    fn service(&self, name: &str) -> Result<Json, Refused> {
        self.read(|known| {
            let service = known.tree.settings(name);
            let body = service.map(|service| config::body(&service.settings));
            body.ok_or_else(|| Refused::Unknown(status::no_such_service(&known.tree, name)))
        })?
    }

    async fn history(&self, name: &str, wanted: HistoryWanted) -> Result<ServiceHistory, Refused> {
        let unknown = self.read(|known| match known.tree.find(name) {
            Some(_) => None,
            None => Some(status::no_such_service(&known.tree, name)),
        })?;
        let (history, feed, name) = (self.history.clone(), self.feed.clone(), name.to_owned());
        // Files are read, and others' answers do not wait for that.
        let read =
            tokio::task::spawn_blocking(move || history::read(&history, &feed, &name, wanted));
        let read = read.await.map_err(|_| {
            Refused::Unavailable(
                "reading the history failed; this is a bug, please report it".to_owned(),
            )
        })??;
        match unknown {
            // A service that was removed still has a history.
            Some(why) if read.is_empty() => Err(Refused::Unknown(why)),
            _ => Ok(read),
        }
    }

    async fn change(&self, change: ServiceChange) -> Result<Changed, Refused> {
        let ServiceChange { wanted, is_trial } = change;
        let defaults = self.read(|known| known.config.defaults.clone())?;
        // A body may be long, and others' answers do not wait for it.
        let wanted = tokio::task::spawn_blocking(move || checked(wanted, &defaults));
        let wanted = wanted.await.map_err(|_| {
            Refused::Unavailable(
                "checking the request failed; this is a bug, please report it".to_owned(),
            )
        })??;
        let _writing = self.writing.lock().await;
        let done = self.ask(wanted.clone(), true).await?;
        if is_trial {
            return Ok(Changed {
                dry_run: true,
                ..done.changed
            });
        }
        self.make(wanted, done.kept).await
    }

    fn admin(&self, service: &str, member: Option<&str>) -> Result<Admin, Refused> {
        self.read(|known| {
            let of = status::admin_of(&known.tree, service, member).map_err(Refused::Unknown)?;
            let admin = known.tree.admin(of).map(|(admin, _)| (**admin).clone());
            Ok(admin.unwrap_or_default())
        })?
    }

    async fn set_admin(
        &self,
        service: &str,
        member: Option<&str>,
        admin: Admin,
    ) -> Result<Admin, Refused> {
        let wanted = Wanted::Admin {
            service: service.to_owned(),
            member: member.map(str::to_owned),
            admin,
        };
        let _writing = self.writing.lock().await;
        let done = self.ask(wanted.clone(), true).await?;
        self.make(wanted, done.kept).await?;
        self.admin(service, member)
    }
}

/// The services of a request, completed and validated.
fn checked(wanted: ServicesWanted, defaults: &config::Defaults) -> Result<Wanted, Refused> {
    match wanted {
        ServicesWanted::Removed(name) => Ok(Wanted::Remove(name)),
        ServicesWanted::Put { name, body, is_new } => {
            let service = config::requested(Some(&name), &body, defaults);
            let service = service.map_err(|errors| Refused::Invalid {
                attempt: format!("cannot add service {name:?}"),
                errors,
            })?;
            Ok(Wanted::Put {
                service: Box::new(service),
                is_new,
            })
        }
        ServicesWanted::All(bodies) => {
            let (mut services, mut errors, mut names) = (Vec::new(), Vec::new(), HashSet::new());
            for (at, body) in bodies.iter().enumerate() {
                match config::requested(None, body, defaults) {
                    Ok(service) => {
                        if !names.insert(service.name.clone()) {
                            let pointer = format!("/services/{at}/{}", SERVICE_NAME.name);
                            let problem = format!(
                                "an earlier service is named {:?} too; give each its own name",
                                service.name
                            );
                            errors.push(Invalid::at(pointer, problem));
                        }
                        services.push(service);
                    }
                    Err(invalid) => errors.extend(invalid.into_iter().map(|invalid| Invalid {
                        pointer: format!("/services/{at}{}", invalid.pointer),
                        ..invalid
                    })),
                }
            }
            match errors.is_empty() {
                true => Ok(Wanted::All(services)),
                false => Err(Refused::Invalid {
                    attempt: "cannot replace services".to_owned(),
                    errors,
                }),
            }
        }
    }
}

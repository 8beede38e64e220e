//! What clients are told, put together in slices: the state is never locked for more than a few trackers, however many
//! there are, so that an answer delays no report.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tracker_ebpf::abi;

use crate::{
    api::{
        server::{Api, Control},
        status::{self, Cursor, Facts},
        types::{List, Status, SteeringStatus, UplinkStatus},
    },
    config::Addition,
    datapath::{loader::StateReader, steering::SteeredReader},
    desired::model::TrackerRef,
    detector::lateness::Health,
    host::clock,
    state::{events::EventFeed, tree::StateTree},
};

/// How many trackers (or services) are read while the state is locked.
const SLICE: usize = 128;
/// How long an answer waits for the state. Longer than this only a main loop that hangs in the middle of a change
/// keeps it.
const STATE_WAIT: Duration = Duration::from_secs(2);
/// How often an answer is begun anew because a reload changed what it is about.
const ATTEMPTS: u32 = 3;

/// What clients want to be different. Only the main loop changes anything, one change after the other.
pub struct Change {
    /// What is wanted.
    pub wanted: Wanted,
    /// Takes what was done, or why nothing was.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// A change that clients may want.
pub enum Wanted {
    /// A service is to be added.
    Add(Box<Addition>),
    /// The service of this name is to be removed.
    Remove(String),
}

/// What the main loop keeps up to date, and answers are read from.
pub struct Known {
    /// What is reported.
    pub tree: StateTree,
    /// Counters, by slot.
    pub states: StateReader,
    /// How many trackers find place in the maps.
    pub free: u32,
    /// Steering, while it is loaded.
    pub steering: Option<KnownSteering>,
    /// How well the daemon keeps up.
    pub health: Arc<Health>,
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
}

impl Answers {
    /// Answers from what is known, with the feed of events and the way by which changes reach the main loop.
    pub fn new(known: Known, feed: EventFeed, changes: UnboundedSender<Change>) -> Self {
        Self {
            known: Arc::new(Mutex::new(known)),
            feed,
            changes,
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

    async fn change(&self, wanted: Wanted) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let ends = |()| "the daemon ends; nothing was changed".to_owned();
        let sent = self.changes.send(Change { wanted, answer });
        sent.map_err(|_| ends(()))?;
        answered.await.map_err(|_| ends(()))?
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> Result<T, String> {
        match self.known.try_lock_for(STATE_WAIT) {
            Some(known) => Ok(read(&known)),
            None => Err(format!(
                "the daemon's main loop has stood in the middle of a change for more than {} s, so nothing is known; it is ended \
                 when that lasts",
                STATE_WAIT.as_secs()
            )),
        }
    }
}

impl Api for Answers {
    async fn status(&self, name: Option<&str>) -> Result<Status, String> {
        let mut attempts = 1..ATTEMPTS;
        loop {
            let now = clock::stamp();
            let outline = self.read(|known| {
                let outline = status::outline(&known.tree, name)?;
                Ok::<_, String>((outline, known.steering.clone(), known.health.clone()))
            })?;
            let (outline, steering, health) = outline?;
            let (mut services, mut cursor) = (Vec::new(), Cursor::default());
            services.reserve(outline.services.len());
            let is_whole = loop {
                let more = self.read(|known| {
                    let facts = Facts {
                        counters: |_: TrackerRef, slot: Option<u32>| {
                            let state = slot.map(|slot| known.states.state(slot));
                            state.map_or_else(Default::default, |state| status::counters(&state))
                        },
                        steered: steering
                            .as_ref()
                            .map(|steering| |path: Option<u32>| steering.steered(path)),
                    };
                    let (tree, into) = (&known.tree, &mut services);
                    (tree.generation() == outline.generation).then(|| {
                        status::slice(tree, &outline, &mut cursor, SLICE, now, &facts, into)
                    })
                })?;
                match more {
                    Some(true) => tokio::task::yield_now().await,
                    Some(false) => break true,
                    None => break false,
                }
            };
            // What was read before and after a reload may not go together.
            if is_whole || attempts.next().is_none() {
                let steering = steering.map(|steering| SteeringStatus {
                    uplinks: steering.uplinks,
                });
                let run = self.feed.run().to_string();
                let now_ns = clock::monotonic_ns();
                return Ok(outline.status(services, steering, run, &health, now_ns));
            }
        }
    }

    fn events(&self) -> EventFeed {
        self.feed.clone()
    }
}

impl Control for Answers {
    async fn services(&self, name: Option<&str>) -> Result<List, String> {
        let (outline, free) =
            self.read(|known| (status::outline(&known.tree, name), known.free))?;
        let numbers = outline?.services;
        let mut services = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(SLICE) {
            services.extend(self.read(|known| status::list(&known.tree, numbers))?);
            tokio::task::yield_now().await;
        }
        Ok(List { services, free })
    }

    async fn add_service(&self, service: Addition) -> Result<String, String> {
        self.change(Wanted::Add(Box::new(service))).await
    }

    async fn remove_service(&self, name: String) -> Result<String, String> {
        self.change(Wanted::Remove(name)).await
    }
}

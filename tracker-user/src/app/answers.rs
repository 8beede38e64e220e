//! What clients are told, put together in slices: the state is never locked for more than a few trackers, however many
//! there are, so that an answer delays no report.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::oneshot;

use super::{Change, Core, Shared, SteeringCore, Wanted, counters, stamp};
use crate::{
    api::{
        protocol::{Api, Control},
        types::{LatenessUs, List, ServiceStatus, Status, SteeringStatus},
    },
    config::Addition,
    state::{
        events::EventFeed,
        tree::{Cursor, TrackerRef},
    },
};

/// How many trackers (or services) are read while the state is locked.
const SLICE: usize = 128;
/// How long an answer waits for the state. Longer than this only a main loop that hangs in the middle of a change
/// keeps it.
const STATE_WAIT: Duration = Duration::from_secs(2);
/// How often an answer is begun anew because a reload changed what it is about.
const ATTEMPTS: u32 = 3;

impl Shared {
    async fn change(&self, wanted: Wanted) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let ends = |()| "the daemon ends; nothing was changed".to_owned();
        let sent = self.changes.send(Change { wanted, answer });
        sent.map_err(|_| ends(()))?;
        answered.await.map_err(|_| ends(()))?
    }

    fn read<T>(&self, read: impl FnOnce(&Core) -> T) -> Result<T, String> {
        match self.core.try_lock_for(STATE_WAIT) {
            Some(core) => Ok(read(&core)),
            None => Err(format!(
                "the daemon's main loop has stood in the middle of a change for more than {} s, so nothing is known; it is ended \
                 when that lasts",
                STATE_WAIT.as_secs()
            )),
        }
    }
}

impl Api for Shared {
    async fn status(&self, name: Option<&str>) -> Result<Status, String> {
        let mut attempts = 1..ATTEMPTS;
        let (mut status, steering) = loop {
            let now = stamp();
            let (outline, steering, health) = self.read(|core| {
                let outline = core.tree.outline(name)?;
                Ok::<_, String>((outline, core.steering.clone(), core.health.clone()))
            })??;
            let (mut status, numbers, generation) = outline;
            let mut cursor = Cursor::default();
            let is_whole = loop {
                let more = self.read(|core| {
                    let counters = |at: TrackerRef| {
                        let slot = core.slots.get(&at);
                        slot.map_or_else(Default::default, |slot| {
                            counters(&core.states.state(*slot))
                        })
                    };
                    let is_same = core.tree.generation() == generation;
                    is_same.then(|| {
                        let into = &mut status.services;
                        core.tree
                            .status_slice(&numbers, &mut cursor, SLICE, now, counters, into)
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
                // The age is that of the end: what hung meanwhile counts.
                let now_ns = stamp().mono_ns;
                let age_ns = health.age_ns(now_ns);
                status.as_of_ms = age_ns / 1_000_000;
                status.lateness_us = LatenessUs::new(&health, now_ns);
                status.run = self.feed.run().to_string();
                status.stalls = health.stalls.load(Ordering::Relaxed);
                if status.is_stalled() {
                    status.stall();
                }
                break (status, steering);
            }
        };
        if let Some(steering) = steering {
            status.steering = Some(SteeringStatus {
                uplinks: steering.uplinks.clone(),
            });
            for (at, service) in status.services.iter_mut().enumerate() {
                steering.complete(service);
                if at % SLICE == SLICE - 1 {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(status)
    }

    fn events(&self) -> EventFeed {
        self.feed.clone()
    }
}

impl Control for Shared {
    async fn services(&self) -> Result<List, String> {
        let (numbers, free) = self.read(|core| (core.tree.numbers(), core.free))?;
        let mut services = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(SLICE) {
            services.extend(self.read(|core| core.tree.list(numbers))?);
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

impl SteeringCore {
    /// Adds what is known of steering to the status of a service.
    fn complete(&self, service: &mut ServiceStatus) {
        let mut sum = (0, 0);
        for member in &mut service.members {
            let slot = self.members.get(&(service.name.clone(), member.role));
            let counters = slot
                .map(|slot| self.counters.get(*slot))
                .unwrap_or_default();
            member.steered = Some(counters.steered);
            member.replied = Some(counters.replied);
            sum = (sum.0 + counters.steered, sum.1 + counters.replied);
        }
        service.steered = Some(sum.0);
        service.replied = Some(sum.1);
    }
}

//! Another desired state: at a reload, and when clients add or remove a service.

use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{App, say_taken_over};
use crate::{
    api::answers::{Change, Wanted},
    config::{self, Addition, Config},
    desired::{
        diff::{Diff, diff},
        model::Desired,
    },
    detector::engine::Command,
    error::full,
    host::{clock, ports},
    plan::member,
    reconcile::{
        installer::{LeftTrackers, Placed},
        publisher::LogLines,
    },
    state::{events::Event, hold_down::TrackerState, journal::SavedService},
};

impl App {
    /// Has another state desired from now on, and the maps follow. Returns what is known of trackers whose probes go on at
    /// another pace.
    pub(super) fn install(
        &mut self,
        desired: &Desired,
        changed: &Diff,
        left: &mut LeftTrackers,
    ) -> Vec<(u32, TrackerState)> {
        let (maps, engine) = (&mut self.kernel, &self.sender);
        let repaced = self.installer.apply(changed, left, maps, engine);
        self.desired = desired.clone();
        repaced
    }

    /// Tells the parts that read by places which were given.
    pub(super) fn place(&mut self) {
        let mut known = self.answers.known();
        for placed in self.installer.placed() {
            match placed {
                Placed::Member { id, path, is_new } => {
                    if is_new {
                        self.steering.reset(path);
                    }
                    known.tree.place_member(id, path);
                }
                Placed::Tracker(at, slot) => known.tree.place_tracker(at, slot),
            }
        }
    }

    /// Frees some places of removed members.
    pub(super) fn free_some(&mut self) {
        self.installer.free_some(&mut self.kernel, &self.sender);
        self.tell_room();
    }

    /// Has `tracker service list` say how many trackers still find place.
    pub(super) fn tell_room(&self) {
        self.known().free = self.installer.available();
    }

    /// Does what clients want. Those that wait already are served together: bringing the kernel in line
    /// is the greater part of the work.
    pub(super) async fn change(&mut self, first: Change, wanted: &mut UnboundedReceiver<Change>) {
        let mut next = Some(first);
        let mut answers = Vec::new();
        while let Some(change) = next {
            let result = match change.wanted {
                Wanted::Add(addition) => self.add_service(&addition).await,
                Wanted::Remove(name) => self.remove_service(&name),
            };
            answers.push((change.answer, result));
            next = wanted.try_recv().ok();
        }
        self.reconcile().await;
        for (answer, result) in answers {
            // A client that left knows what it asked for.
            let _ = answer.send(result);
        }
    }

    /// Adds a service; returns what was done, or why nothing was changed.
    async fn add_service(&mut self, addition: &Addition) -> Result<String, String> {
        let name = addition.name.clone();
        let refused = |why: String| format!("cannot add service {name:?}: {why}");
        let service = addition.service(&self.defaults).map_err(refused)?;
        if self.desired.named(&service.name).is_some() {
            return Err(refused(format!(
                "there is one of this name; give another, or remove that one first with `tracker service remove {name}`"
            )));
        }
        let (desired, id) = self.desired.with(service);
        if let Some(why) = config::crowded(desired.trackers()) {
            return Err(refused(why));
        }
        let changed = diff(&self.desired, &desired);
        let room = self.installer.check(&changed);
        room.map_err(|error| refused(error.to_string()))?;
        // Nothing is known of it, so nothing is told.
        let _ = self.known().tree.apply(&desired, &changed, clock::stamp());
        self.install(&desired, &changed, &mut LeftTrackers::default());
        self.place();
        self.tell_room();
        if let Some(service) = desired.service(id) {
            self.report(
                |_| (),
                |(), tree, publisher, snapshot| {
                    if let Some(saved) = SavedService::new(service, tree) {
                        publisher.add(saved, snapshot);
                    }
                    LogLines::default()
                },
            );
            for (_, member) in service.members() {
                let followed = self
                    .netlink
                    .follow_one(member.endpoint, member::route_key(member));
                if let Err(error) = followed.await {
                    tracing::error!("{}", full(&error));
                }
            }
        }
        tracing::info!("added service {name}");
        Ok(format!("added {name}"))
    }

    /// Removes a service; returns what was done, or why nothing was changed.
    fn remove_service(&mut self, name: &str) -> Result<String, String> {
        let refused = |why: String| format!("cannot remove service {name:?}: {why}");
        let Some(service) = self.desired.named(name) else {
            let known = self.desired.services().iter();
            let known = known.map(|service| service.settings.name.as_str());
            return Err(refused(match config::likeliest(name, known) {
                Some(likeliest) => {
                    format!("there is none of this name; did you mean {likeliest:?}?")
                }
                None => "this hub has no services; `tracker service add` makes one".to_owned(),
            }));
        };
        let mut chains = self.desired.chains().iter();
        if let Some(chain) =
            chains.find(|chain| chain.services.iter().any(|service| service == name))
        {
            return Err(refused(format!(
                "the chain {:?} names it; take it out of the chain in the configuration and reload first",
                chain.name
            )));
        }
        let desired = self.desired.without(service.id);
        let changed = diff(&self.desired, &desired);
        let now = clock::stamp();
        self.report(
            |tree| tree.apply(&desired, &changed, now),
            |events, _, publisher, snapshot| {
                publisher.publish_removal(name, events, now.mono_ns, snapshot)
            },
        );
        self.install(&desired, &changed, &mut LeftTrackers::default());
        self.free_some();
        self.is_following_more = true;
        tracing::info!("removed service {name}");
        Ok(format!("removed {name}"))
    }

    pub(super) async fn reload(&mut self, config: Config) {
        match self.try_reload(config).await {
            Ok(()) => tracing::info!("reloaded, watching {}", self.extent()),
            Err(error) => tracing::error!("not reloaded, the running config stays: {error:#}"),
        }
    }

    async fn try_reload(&mut self, config: Config) -> Result<()> {
        let Config {
            hub: new,
            mut services,
            chains,
            steering,
            defaults,
        } = config;
        let old = &self.hub;
        if (
            &old.instance,
            &old.socket,
            &old.bpffs,
            &old.state,
            &old.metrics,
            old.mode,
            old.room,
        ) != (
            &new.instance,
            &new.socket,
            &new.bpffs,
            &new.state,
            &new.metrics,
            new.mode,
            new.room,
        ) {
            bail!(
                "instance, socket, bpffs, state, metrics, mode and room of [hub] change only with a restart"
            );
        }
        let before = self.desired.clone();
        let (added, taken_over) = before.added(&services);
        services.extend(added);
        let observed = &self.netlink.observed;
        let used = |id| self.installer.used(id, observed);
        let desired = before.next(services, chains, used);
        if let Some(why) = config::crowded(desired.trackers()) {
            bail!(why);
        }
        let changed = diff(&before, &desired);
        self.installer.check(&changed)?;
        say_taken_over(&taken_over);
        (self.hub, self.defaults, self.steering_config) = (new, defaults, steering);
        let mut events = {
            let mut known = self.known();
            known.tree.set_hub(&self.hub);
            known.tree.apply(&desired, &changed, clock::stamp())
        };
        self.sender
            .command(Command::SetPorts(Arc::new(ports::read())));
        let repaced = self.install(&desired, &changed, &mut LeftTrackers::default());
        self.place();
        self.installer.free_all(&mut self.kernel, &self.sender);
        events.extend(self.catch_up(repaced));
        self.begin_journal(events);
        self.tell_room();
        self.follow_members().await;
        self.reconcile().await;
        Ok(())
    }

    /// Reports what the maps tell of trackers and was not reported yet.
    pub(super) fn catch_up(&mut self, found: Vec<(u32, TrackerState)>) -> Vec<Event> {
        let mut known = self.answers.known();
        let tree = &mut known.tree;
        let mut events = Vec::new();
        for (slot, state) in found {
            let Some(at) = self.installer.at(slot) else {
                continue;
            };
            let is_known = tree
                .tracker(at)
                .is_some_and(|shown| (shown.verdict, shown.cause) == (state.verdict, state.cause));
            if state.detail.is_none() && tree.held(at).is_none() && is_known {
                // Its detail stands.
                continue;
            }
            events.extend(tree.tracker_changed(at, state, clock::stamp(), None));
        }
        events
    }
}

//! Another desired state: at a reload, and when clients add or remove a service.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Error, Result, bail};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{App, admin, disown};
use crate::{
    api::{
        answers::{Change, Done, Wanted},
        listen::Listen,
        problem::Refused,
        types::ReloadStatus,
    },
    config::{self, Chain, Config, Invalid, Owner, Service},
    desired::{
        self,
        diff::{Diff, diff},
        model::Desired,
    },
    detector::engine::Command,
    error::full,
    host::{
        clock, log, ports,
        store::{Edit, SERVICES},
    },
    plan::member,
    reconcile::{
        installer::{LeftTrackers, Placed},
        publisher::LogLines,
    },
    state::{events::Event, hold_down::TrackerState, journal::SavedService},
};

/// What clients want, checked.
#[derive(Default)]
struct Planned {
    desired: Desired,
    changed: Diff,
    done: Done,
}

fn owned(attempt: &str) -> Refused {
    Refused::Owned(format!(
        "{attempt}: the configuration's file owns it; change it there and reload"
    ))
}

/// What of the API's services is new, changed and gone in another desired state.
fn done(old: &Desired, new: &Desired) -> Done {
    let of_api = |service: &&Arc<desired::model::Service>| service.settings.owner == Owner::Api;
    let mut before: HashMap<&str, &Service> = (old.services().iter().filter(of_api))
        .map(|service| (service.settings.name.as_str(), &service.settings))
        .collect();
    let mut done = Done::default();
    for service in new.services().iter().filter(of_api) {
        let settings = &service.settings;
        let names = match before.remove(settings.name.as_str()) {
            Some(old) if old == settings => {
                done.changed.unchanged += 1;
                continue;
            }
            Some(_) => &mut done.changed.changed,
            None => &mut done.changed.added,
        };
        names.push(settings.name.clone());
        let body = config::body(settings).to_string();
        done.kept
            .push(Edit::put(SERVICES, settings.name.clone(), body));
    }
    let removed = old
        .services()
        .iter()
        .map(|service| service.settings.name.as_str());
    let removed = removed.filter(|name| before.contains_key(name));
    done.changed.removed = removed.map(str::to_owned).collect();
    for name in &done.changed.removed {
        done.kept.push(Edit::remove(SERVICES, name.clone()));
    }
    done.kept.extend(admin::gone(old, new));
    done
}

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
                        known.rtts.reset(path);
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
        let mut is_changed = false;
        while let Some(change) = next {
            if let Wanted::Admin {
                service,
                member,
                admin,
            } = change.wanted
            {
                let result = self.change_admin(&service, member.as_deref(), admin, change.is_trial);
                answers.push((change.answer, result));
                next = wanted.try_recv().ok();
                continue;
            }
            let result = match self.next_desired(&change.wanted) {
                Ok(planned) if change.is_trial => Ok(planned.done),
                Ok(planned) => {
                    is_changed = true;
                    let done = planned.done.clone();
                    self.follow_change(planned).await;
                    Ok(done)
                }
                Err(refused) => Err(refused),
            };
            answers.push((change.answer, result));
            next = wanted.try_recv().ok();
        }
        if is_changed {
            self.reconcile().await;
        }
        for (answer, result) in answers {
            // A client that left knows what it asked for.
            let _ = answer.send(result);
        }
    }

    /// What would be desired if clients had what they want, and what that changes; or why they cannot have it.
    fn next_desired(&self, wanted: &Wanted) -> Result<Planned, Refused> {
        let (attempt, desired) = match wanted {
            Wanted::Put { service, is_new } => self.with_service(service, *is_new)?,
            Wanted::All(services) => self.with_all(services)?,
            Wanted::Remove(name) => self.without_service(name)?,
            // It changes nothing that is desired.
            Wanted::Admin { .. } => return Ok(Planned::default()),
        };
        let refused = |why: String| Refused::Invalid {
            attempt: attempt.clone(),
            errors: vec![Invalid::whole(why)],
        };
        let changed = self.checked(&desired).map_err(refused)?;
        let done = done(&self.desired, &desired);
        Ok(Planned {
            desired,
            changed,
            done,
        })
    }

    /// What another desired state changes, if the daemon can have it; else why it cannot.
    fn checked(&self, desired: &Desired) -> Result<Diff, String> {
        if let Some(why) = config::crowded(desired.trackers()) {
            return Err(why);
        }
        let settings = desired.services().iter().map(|service| &service.settings);
        if let Some((_, why)) = config::misplaced(settings).into_iter().next() {
            return Err(why);
        }
        let changed = diff(&self.desired, desired);
        let room = self.installer.check(&changed);
        room.map_err(|error| full(&error).to_string())?;
        Ok(changed)
    }

    fn with_service(&self, service: &Service, is_new: bool) -> Result<(String, Desired), Refused> {
        let name = &service.name;
        let attempt = format!("cannot add service {name:?}");
        match self.desired.named(name) {
            None => Ok((attempt, self.desired.with(service.clone()).0)),
            Some(_) if is_new => Err(Refused::Exists(format!(
                "{attempt}: there is one of this name; give another, or remove that one first with `tracker service remove {name}`"
            ))),
            Some(old) if old.settings.owner == Owner::File => {
                Err(owned(&format!("cannot change service {name:?}")))
            }
            Some(_) => {
                let services =
                    self.desired
                        .services()
                        .iter()
                        .map(|old| match old.settings.name == *name {
                            true => service.clone(),
                            false => old.settings.clone(),
                        });
                let desired = self.next_with(services.collect());
                Ok((format!("cannot change service {name:?}"), desired))
            }
        }
    }

    fn with_all(&self, services: &[Service]) -> Result<(String, Desired), Refused> {
        let attempt = "cannot replace services".to_owned();
        let is_of_file = |service: &&Service| service.owner == Owner::File;
        let old = self
            .desired
            .services()
            .iter()
            .map(|service| &service.settings);
        let of_file: Vec<Service> = old.filter(is_of_file).cloned().collect();
        let named: HashMap<&str, usize> = (services.iter().enumerate())
            .map(|(at, service)| (service.name.as_str(), at))
            .collect();
        let taken = of_file.iter().filter_map(|service| {
            let at = named.get(service.name.as_str())?;
            Some(format!(
                "service {:?} (number {at} of the list) is the file's",
                service.name
            ))
        });
        let taken: Vec<_> = taken.collect();
        if !taken.is_empty() {
            let why = format!(
                "{attempt}: {}; change it in the file and reload",
                taken.join(", ")
            );
            return Err(Refused::Owned(why));
        }
        let kept: HashSet<&str> = named.keys().copied().collect();
        let mut old = self
            .desired
            .services()
            .iter()
            .map(|service| &service.settings);
        if let Some(gone) = old.find(|service| {
            service.owner == Owner::Api
                && !kept.contains(service.name.as_str())
                && self.chain_of(&service.name).is_some()
        }) {
            return Err(self.in_chain(&attempt, &gone.name));
        }
        let all = of_file.into_iter().chain(services.iter().cloned());
        let desired = self.next_with(all.collect());
        Ok((attempt, desired))
    }

    fn without_service(&self, name: &str) -> Result<(String, Desired), Refused> {
        let attempt = format!("cannot remove service {name:?}");
        let Some(service) = self.desired.named(name) else {
            let known = self.desired.services().iter();
            let known = known.map(|service| service.settings.name.as_str());
            return Err(Refused::Unknown(match config::likeliest(name, known) {
                Some(likeliest) => {
                    format!("{attempt}: there is none of this name; did you mean {likeliest:?}?")
                }
                None => {
                    format!("{attempt}: this hub has no services; `tracker service add` makes one")
                }
            }));
        };
        if self.chain_of(name).is_some() {
            return Err(self.in_chain(&attempt, name));
        }
        if service.settings.owner == Owner::File {
            return Err(owned(&attempt));
        }
        Ok((attempt, self.desired.without(service.id)))
    }

    /// The desired state with these services instead of the present ones.
    fn next_with(&self, services: Vec<Service>) -> Desired {
        let observed = &self.netlink.observed;
        let used = |id| self.installer.used(id, observed);
        self.desired
            .next(services, self.desired.chains().to_vec(), used)
    }

    fn chain_of(&self, name: &str) -> Option<&Chain> {
        let mut chains = self.desired.chains().iter();
        chains.find(|chain| chain.services.iter().any(|service| service == name))
    }

    fn in_chain(&self, attempt: &str, name: &str) -> Refused {
        let chain = self.chain_of(name).map_or("", |chain| chain.name.as_str());
        Refused::Owned(format!(
            "{attempt}: the chain {chain:?} names it; take it out of the chain in the configuration and reload first"
        ))
    }

    /// Makes what was planned so.
    async fn follow_change(&mut self, planned: Planned) {
        let Planned {
            desired,
            changed,
            done: Done { changed: names, .. },
        } = planned;
        let now = clock::stamp();
        match (&names.added[..], &names.changed[..], &names.removed[..]) {
            ([], [], []) => return,
            ([name], [], []) => {
                // Nothing is known of it, so nothing is told.
                let _ = self.known().tree.apply(&desired, &changed, now);
                self.install(&desired, &changed, &mut LeftTrackers::default());
                self.place();
                if let Some(service) = desired.named(name) {
                    self.report(
                        |_| (),
                        |(), tree, publisher, snapshot| {
                            if let Some(saved) = SavedService::new(service, tree) {
                                publisher.add(saved, snapshot);
                            }
                            LogLines::default()
                        },
                    );
                }
                self.follow_new(desired.named(name)).await;
            }
            ([], [], [name]) => {
                self.report(
                    |tree| tree.apply(&desired, &changed, now),
                    |events, _, publisher, snapshot| {
                        publisher.publish_removal(name, events, now.mono_ns, snapshot)
                    },
                );
                self.install(&desired, &changed, &mut LeftTrackers::default());
                self.free_some();
                self.is_following_more = true;
            }
            _ => {
                let mut events = self.known().tree.apply(&desired, &changed, now);
                let repaced = self.install(&desired, &changed, &mut LeftTrackers::default());
                self.place();
                events.extend(self.catch_up(repaced));
                self.begin_journal(events);
                self.follow_members().await;
            }
        }
        self.tell_room();
        for (what, names) in [
            ("added", &names.added),
            ("changed", &names.changed),
            ("removed", &names.removed),
        ] {
            match &names[..] {
                [] => {}
                [name] => tracing::info!("{what} service {name}"),
                names => tracing::info!("{what} {} services", names.len()),
            }
        }
    }

    /// Follows what the kernel says of the members of a new service.
    async fn follow_new(&mut self, service: Option<&Arc<desired::model::Service>>) {
        for (_, member) in service.iter().flat_map(|service| service.members()) {
            let followed = self
                .netlink
                .follow_one(member.endpoint, member::route_key(member));
            if let Err(error) = followed.await {
                tracing::error!("{}", full(&error));
            }
        }
    }

    /// Has another configuration count, if it can; returns how the API is served over TCP from then on.
    pub(super) async fn reload(&mut self, config: Config) -> Option<Option<Listen>> {
        let result = self.try_reload(config).await;
        self.reloaded(result.is_ok());
        match result {
            Ok(listen) => {
                tracing::info!("reloaded, watching {}", self.extent());
                Some(listen)
            }
            Err(error) => {
                tracing::error!(
                    target: log::ANSWER,
                    "not reloaded, the running config stays: {error:#}"
                );
                None
            }
        }
    }

    /// Notes that there was a reload, and whether it took the configuration.
    pub(super) fn reloaded(&self, ok: bool) {
        let time = clock::stamp().wall;
        self.known().reload = Some(ReloadStatus { time, ok });
    }

    async fn try_reload(&mut self, config: Config) -> Result<Option<Listen>> {
        let listen = Listen::read(&config.api)?;
        let without_services = Arc::new(config.without_services());
        let Config {
            hub: new,
            mut services,
            chains,
            steering,
            api: _,
            history_size,
            defaults: _,
            // `tracker act` carries them out.
            actions: _,
        } = config;
        let old = &self.hub;
        if (
            &old.instance,
            &old.socket,
            &old.bpffs,
            &old.state,
            &old.socket_group,
            &old.metrics,
            old.mode,
            old.room,
        ) != (
            &new.instance,
            &new.socket,
            &new.bpffs,
            &new.state,
            &new.socket_group,
            &new.metrics,
            new.mode,
            new.room,
        ) {
            bail!(
                "instance, socket, socket_group, bpffs, state, metrics, mode and room of [hub] change only with a restart"
            );
        }
        let before = self.desired.clone();
        let (added, taken_over) = before.added(&services);
        services.extend(added);
        let taken_over: Vec<String> = taken_over.into_iter().map(str::to_owned).collect();
        let observed = &self.netlink.observed;
        let used = |id| self.installer.used(id, observed);
        let desired = before.next(services, chains, used);
        let changed = self.checked(&desired).map_err(Error::msg)?;
        disown(self.answers.store(), &taken_over);
        let gone = admin::gone(&before, &desired);
        self.answers.store().commit_later(gone);
        self.answers.history().set_size(history_size);
        (self.hub, self.steering_config) = (new, steering);
        let mut events = {
            let mut known = self.known();
            known.config = without_services;
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
        Ok(listen)
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

//! The daemon: wires its parts, which own their state, and runs the main loop.

mod admin;
mod changes;
mod kept;
mod reconcile;
mod reports;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use parking_lot::MutexGuard;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    api::{
        answers::{Answers, Change, Known},
        listen::Listen,
        sampler, socket, thread,
    },
    config::{self, Config, Hub},
    datapath::{
        adopt::{self, Maps},
        clsact,
        journal::Journal,
        loader::Kernel,
        pins::{self, Pins},
        steering,
    },
    desired::{
        diff::diff,
        model::{Desired, MemberId},
    },
    detector::{
        engine::{Command, Report},
        lateness::Health,
    },
    host::{
        clock::{self, monotonic_ns},
        history::History,
        instance, limits, log, namespace, ports, preflight, privileges,
        store::{self, Contents, Edit, SERVICES, Store},
        watchdog::{Phase, Watchdog},
    },
    net::rtnetlink::Netlink,
    plan::observed::private_names,
    reconcile::{
        cleanup,
        devices::Devices,
        forgery_log::ForgeryLog,
        handover::{self, Handover},
        installer::{self, Installer, LeftMaps, LeftTrackers},
        map_space,
        next_hops::NextHops,
        publisher::{LogLines, Publisher},
        sender::Sender,
        steering::Steering,
    },
    state::{
        events::{CAPACITY, Event, EventFeed, EventLog},
        journal::{SavedService, Snapshot},
        tree::StateTree,
    },
};

/// How often what the kernel gave up on (a next hop, an attachment) is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long the end waits for the kernel to take neighbour entries back.
const RELEASE: Duration = Duration::from_secs(2);

/// How long what the main loop is at may go on after SIGTERM, before it is cut short.
const GRACE: Duration = Duration::from_millis(1_500);

/// The parts of a running daemon.
struct App {
    hub: Hub,
    steering_config: Option<config::Steering>,
    desired: Desired,
    namespace: (u64, u64),
    netlink: Netlink,
    /// More is followed than there are members to need it.
    is_following_more: bool,
    /// Before what it shares maps with.
    steering: Steering,
    kernel: Kernel,
    sender: Sender,
    installer: Installer,
    devices: Devices,
    next_hops: NextHops,
    publisher: Publisher<Journal>,
    forgery_log: ForgeryLog,
    answers: Answers,
}

/// Makes this process ready to become a daemon: to be called before any thread is started and any file is opened. What
/// cannot be read or removed later fails early like this, and no signal is lost.
///
/// # Errors
/// When the kernel or the process lacks what a daemon needs.
pub fn prepare() -> Result<Watchdog> {
    preflight::require()?;
    limits::raise_open_files();
    privileges::limit_to_start()?;
    Ok(Watchdog::start()?)
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, or from leaving a clean hub behind.
pub async fn run(file: &Path, config: Config, keep: bool, watchdog: Watchdog) -> Result<()> {
    watchdog.phase(Phase::Starting);
    let hub = &config.hub;
    pins::ensure_mounted(&hub.bpffs)?;
    let pins = Pins::new(&hub.bpffs, &hub.instance);
    pins.create()?;
    let result = run_locked(file, config, keep, &pins, &watchdog).await;
    if result.is_err() {
        // A start that failed leaves nothing that was not there before.
        pins.remove_empty();
    }
    result
}

async fn run_locked(
    file: &Path,
    config: Config,
    keep: bool,
    pins: &Pins,
    watchdog: &Watchdog,
) -> Result<()> {
    let hub = &config.hub;
    let _lock = pins.lock()?;
    let _instance = instance::lock(&hub.instance)?;
    let listen = Listen::read(&config.api)?;
    let socket = socket::bind(&hub.socket, hub.socket_group.as_deref())?;
    let name = hub.instance.clone();
    let is_first = !pins.journal().exists();

    let (changes, mut wanted) = mpsc::unbounded_channel();
    let started = tokio::select! {
        biased;
        () = watchdog.ended() => None,
        started = App::start(config, pins, changes, watchdog.health().clone()) => Some(started?),
    };
    let Some((mut app, mut reports)) = started else {
        watchdog.phase(Phase::Ending);
        tracing::info!("ended while it started");
        if is_first || !keep {
            cleanup::remove(pins, &name).await?;
        }
        return Ok(());
    };
    let clients = thread::start(socket, app.hub.metrics, listen, app.answers.clone())?;
    let history = sampler::start(app.answers.clone())
        .context("cannot start the thread that writes the history")?;
    privileges::limit_to_run()?;
    tracing::info!("watching {}", app.extent());
    watchdog.status(format!("watching {}", app.extent()));
    watchdog.phase(Phase::Running);

    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut loading = None;
    let mut looking = None;
    let result = loop {
        watchdog.health().main.turn(monotonic_ns());
        let due = app.known().tree.next_due();
        let due = due.map(|due_ns| {
            Instant::now() + Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()))
        });
        let turn = async {
            tokio::select! {
                // A file may be large, and others' verdicts do not wait for it.
                () = watchdog.hung_up(), if loading.is_none() => {
                    let file = file.to_owned();
                    loading = Some(tokio::task::spawn_blocking(move || config::load(&file)));
                }
                loaded = joined(&mut loading) => match loaded.and_then(|loaded| Ok(loaded?)) {
                    Ok(config) => {
                        if let Some(listen) = app.reload(config).await {
                            clients.listen(listen);
                        }
                        watchdog.status(format!("watching {}", app.extent()));
                    }
                    Err(error) => {
                        app.reloaded(false);
                        for line in error.to_string().lines() {
                            tracing::error!(target: log::ANSWER, "not reloaded, the running config stays: {line}");
                        }
                    }
                },
                changed = app.netlink.changed() => {
                    changed?;
                    app.reconcile().await;
                }
                report = reports.recv() => match report {
                    Some(report) => app.take(report).await,
                    None => return Err(anyhow!("the sending thread ended; this is a bug, please report the log")),
                },
                () = std::future::ready(()), if app.installer.is_freeing() => app.free_some(),
                Some(change) = wanted.recv() => app.change(change, &mut wanted).await,
                at = retry.tick() => {
                    app.tick(at.elapsed()).await;
                    app.end_admin();
                    if looking.is_none() {
                        let checks = app.checks();
                        looking = Some(tokio::task::spawn_blocking(move || checks.look()));
                    }
                }
                detached = joined(&mut looking) => app.attach_detached(detached?).await,
                () = sleep_until(due) => app.report_due(),
            }
            Ok(())
        };
        let ended = async {
            watchdog.ended().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            biased;
            turn = turn => if let Err(error) = turn { break Err(error) },
            () = ended => break Ok(()),
        }
        if watchdog.is_ended() {
            break Ok(());
        }
    };
    watchdog.phase(Phase::Ending);
    clients.stop();
    history.stop();
    let ended = app.stop(keep, pins).await;
    result.and(ended)
}

/// What a task on a thread of its own returns, once it does; never ready while there is none.
async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> Result<T> {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await;
    *task = None;
    result.context("a background task failed; this is a bug, please report it")
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl App {
    async fn start(
        config: Config,
        pins: &Pins,
        changes: UnboundedSender<Change>,
        health: Arc<Health>,
    ) -> Result<(Self, UnboundedReceiver<Report>)> {
        pins.mend()?;
        let is_first = !pins.journal().exists();
        let contents = store::read(&config.hub.state);
        let store = Store::start(&config.hub.state)
            .context("cannot start the thread that writes the state directory")?;
        let kept = (&contents, &store);
        let mut started = Self::follow(&config, pins, &changes, &health, kept, None).await;
        if let Ok(None) = started {
            tracing::warn!(
                "the maps that an earlier daemon left have no room for what is new; taking new ones"
            );
            let anew = Some(Maps::Anew);
            started = Self::follow(&config, pins, &changes, &health, kept, anew).await;
        }
        let started = started.and_then(|started| {
            started.context("no place was found for all trackers; this is a bug, please report it")
        });
        if started.is_err() && is_first {
            // What failed to start leaves nothing either; its own error matters more than these.
            if let Ok(netlink) = Netlink::connect().await {
                let names = private_names(&config.hub.instance);
                let _ = netlink.delete_private_pair(&names).await;
            }
            let _ = pins.remove();
        }
        started
    }

    /// Starts where an earlier daemon of the instance ended, if one did. `None` if its maps are to be taken over and have no
    /// room for what is new.
    async fn follow(
        config: &Config,
        pins: &Pins,
        changes: &UnboundedSender<Change>,
        health: &Arc<Health>,
        (contents, store): (&Option<Contents>, &Store),
        maps: Option<Maps>,
    ) -> Result<Option<(Self, UnboundedReceiver<Report>)>> {
        let mut netlink = Netlink::connect().await?;
        let namespace = namespace::identity()?;
        let now = clock::stamp();
        let (journal, handover) = handover::read(pins, namespace, now.wall.as_nanosecond());
        let Handover {
            snapshot,
            events,
            next,
            run,
        } = handover;
        // Filters have no links that could be taken over (before Linux 6.6).
        clsact::remove_left(pins);
        let mut config = config.clone();
        let mut before = Desired::default();
        if let Some(snapshot) = &snapshot {
            let services = snapshot.services.iter().map(|saved| saved.service.clone());
            before = Desired::new(services.collect(), snapshot.chains.clone());
        }
        let kept = kept::services(contents.as_ref(), &before);
        store.commit_later(kept.unkept());
        let (added, taken_over) = kept.beside(&config.services);
        disown(store, &taken_over);
        config.services.extend(added);
        if snapshot.is_none() {
            // What was left without a journal, or elsewhere, is nothing to go on from.
            cleanup::release_pinned_neighbours(&netlink, pins).await;
            pins.clear()?;
        }
        let names = private_names(&config.hub.instance);
        let private = netlink.private_pair(&names).await?;
        let paths = adopt::pinned_paths(pins);
        let wanted = map_space::sizes(&config);
        let (maps, sizes) = match maps {
            Some(maps) => (maps, wanted),
            None => adopt::survey(pins, wanted)?,
        };
        let states = match (maps, &snapshot) {
            (Maps::Anew, Some(_)) => adopt::pinned_states(pins),
            _ => Vec::new(),
        };
        let tag = handover::tag(&config.hub.state, pins)?;
        let (kernel, datapath) = Kernel::load(pins, maps, sizes, config.hub.mode, private, tag)?;
        let (sender, reports) =
            Sender::start(datapath, health.clone()).context("cannot start the sending thread")?;
        sender.command(Command::SetPorts(Arc::new(ports::read())));

        let mut tree = StateTree::new(&config.hub, &before, now);
        let saved = snapshot.iter().flat_map(|snapshot| &snapshot.services);
        let known = before.services().iter().zip(saved);
        tree.restore(
            known.map(|(service, saved)| (service.id, saved.shown())),
            now,
        );
        let feed = EventFeed::new(
            EventLog::resume(CAPACITY, events, next)
                .of_run(&run)
                .of_hub(&config.hub.name, &config.hub.instance),
        );
        let known = Known {
            tree,
            states: kernel.states(),
            rtts: kernel.rtts(),
            free: 0,
            steering: None,
            health: sender.health.clone(),
            config: Arc::new(config.without_services()),
            reload: None,
        };
        let next_hops = NextHops::new(netlink.requests().clone());
        let Config {
            hub,
            services,
            chains,
            steering: steering_config,
            api: _,
            history_size,
            defaults: _,
            // `tracker act` carries them out.
            actions: _,
        } = config;
        let mut app = Self {
            desired: before,
            namespace,
            netlink,
            is_following_more: false,
            steering: Steering::default(),
            installer: Installer::new(sizes, hub.room, monotonic_ns()),
            devices: Devices::new(match maps {
                Maps::Adopt => kernel.devices().collect(),
                Maps::Grow | Maps::Anew => Vec::new(),
            }),
            next_hops,
            publisher: Publisher::new(journal, feed.clone()),
            forgery_log: ForgeryLog::default(),
            answers: Answers::new(
                known,
                feed,
                changes.clone(),
                store.clone(),
                History::new(&hub.state, history_size),
            ),
            hub,
            steering_config,
            kernel,
            sender,
        };
        let entries = match (maps, &snapshot) {
            (Maps::Adopt | Maps::Grow, Some(_)) => app.kernel.trackers(),
            _ => Vec::new(),
        };
        let left = LeftMaps {
            maps,
            entries,
            paths,
            states,
        };
        let used = |id: MemberId| {
            // The numbers of what an earlier daemon desired are its positions.
            let saved = snapshot.as_ref();
            let saved = saved.and_then(|saved| saved.services.get(id.service as usize));
            installer::left_used(&left, saved, id.member as usize, &app.netlink.observed)
        };
        let desired = app.desired.next(services, chains, used);
        if let Err(error) = app.keep_steering(&desired) {
            if snapshot.is_some() {
                app.kernel.keep();
            }
            return Err(error.into());
        }
        let changed = diff(&app.desired, &desired);
        let (mut found, mut handed_over) = (Vec::new(), LeftTrackers::default());
        if let Some(snapshot) = &snapshot {
            if snapshot.mode != app.hub.mode {
                app.kernel.forget_fast();
            } else {
                app.devices.learn(&left.paths, &app.netlink.observed);
            }
            app.next_hops.learn(&left.paths);
            (found, handed_over) = app.installer.adopt(
                &app.desired,
                &snapshot.services,
                &left,
                &mut app.kernel,
                &app.sender,
            );
            app.place();
        }
        let repaced = app.install(&desired, &changed, &mut handed_over);
        app.installer
            .complete(&desired, &mut handed_over, &mut app.kernel, &app.sender);
        if !app.installer.is_complete(&app.desired) {
            app.kernel.keep();
            return Ok(None);
        }
        let mut events = app.known().tree.apply(&app.desired, &changed, now);
        app.restore_admin(contents.as_ref());
        app.place();
        app.installer.free_all(&mut app.kernel, &app.sender);
        if snapshot.is_some() {
            app.installer.clear_left(&left.paths, &app.sender);
            found.retain(|(slot, _)| app.installer.at(*slot).is_some());
            tracing::info!(
                "going on from an earlier daemon, with {} of its trackers",
                found.len()
            );
            events.extend(app.catch_up(found));
            events.extend(app.catch_up(repaced));
        }
        app.begin_journal(events);
        app.tell_room();
        app.follow_members().await;
        app.reconcile().await;
        app.kernel.forget_left();
        if !app.steering.is_loaded() {
            steering::forget_left(pins);
        }
        app.next_hops.release_left(&left.paths);
        app.sender.command(Command::Begin);
        Ok(Some((app, reports)))
    }

    /// Takes the instance off the hub; with `keep`, leaves maps and links pinned.
    async fn stop(self, keep: bool, pins: &Pins) -> Result<()> {
        if !keep {
            // The kernel may be busy with others' requests; the end does not wait for that.
            let released = self.next_hops.release();
            if tokio::time::timeout(RELEASE, released).await.is_err() {
                tracing::warn!(
                    "the kernel did not take all neighbour entries back within {} s; it goes on refreshing the others",
                    RELEASE.as_secs()
                );
            }
        }
        drop(self.sender);
        if keep {
            self.steering.leave();
            self.kernel.keep();
            return Ok(());
        }
        drop(self.steering);
        drop(self.kernel);
        let pins = pins.remove().map(|_| ()).map_err(Into::into);
        let names = private_names(&self.hub.instance);
        let link = self.netlink.delete_private_pair(&names).await;
        pins.and(link.map(|_| ()).map_err(Into::into))
    }

    /// What answers are read from.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.answers.known()
    }

    /// How much is watched, for the log.
    fn extent(&self) -> String {
        let count = |number: usize, what: &str| {
            format!("{number} {what}{}", if number == 1 { "" } else { "s" })
        };
        let services = count(self.desired.services().len(), "service");
        let trackers = self.desired.trackers().count();
        format!("{services} with {}", count(trackers, "tracker"))
    }

    /// Changes what is reported, and publishes the events of that before anything else can read the change: a status never
    /// tells what no event has told.
    fn report<R>(
        &mut self,
        change: impl FnOnce(&mut StateTree) -> R,
        publish: impl FnOnce(R, &StateTree, &mut Publisher<Journal>, &dyn Fn() -> Snapshot) -> LogLines,
    ) {
        let Self {
            publisher,
            desired,
            answers,
            ..
        } = self;
        let (namespace, mode) = (self.namespace, self.hub.mode);
        let mut known = answers.known();
        let changed = change(&mut known.tree);
        let kept = known.tree.take_kept();
        let tree = &known.tree;
        // What is written if the journal has to begin anew.
        let snapshot = || {
            let (events, next) = answers.feed().last(CAPACITY);
            let services = desired.services().iter();
            Snapshot {
                namespace,
                mode,
                services: services
                    .filter_map(|service| SavedService::new(service, tree))
                    .collect(),
                chains: desired.chains().to_vec(),
                events,
                next,
                run: answers.feed().run().to_string(),
            }
        };
        for (service, kept) in kept {
            publisher.keep(&service, kept, snapshot);
        }
        let lines = publish(changed, tree, publisher, &snapshot);
        drop(known);
        lines.write();
    }

    /// Changes what is reported, and publishes the events that come of it.
    fn publish(&mut self, change: impl FnOnce(&mut StateTree) -> Vec<Event>) {
        self.report(change, |events, _, publisher, snapshot| {
            publisher.publish(events, monotonic_ns(), snapshot)
        });
    }

    /// Writes everything down anew, and reports events.
    fn begin_journal(&mut self, events: Vec<Event>) {
        self.report(
            |_| events,
            |events, _, publisher, snapshot| publisher.begin(events, monotonic_ns(), snapshot()),
        );
    }
}

/// Gives up services that the API owned and that the file names now.
fn disown(store: &Store, names: &[String]) {
    for name in names {
        tracing::info!(
            "service {name}, added by the API, is now in the configuration, which owns it from here on"
        );
    }
    let edits = names
        .iter()
        .map(|name| Edit::remove(SERVICES, name.clone()));
    store.commit_later(edits.collect());
}

//! The process that carries out actions: one loop that takes what the daemon tells and what the kernel tells, plans, and does.
//!
//! It changes nothing that it cannot prove to be its own, and ends without undoing anything: what it did stays.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use nix::errno::Errno;
use tokio::{
    io::{Interest as Readiness, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::Level;
use tracker_ebpf::verdict::Verdict;

use super::{
    choice::{Choice, Chosen, Selector},
    feed::{self, Happened, Told},
    frr,
    hook::{HookError, Hooks},
    kernel::{Interest, Kernel, KernelError, Monitor, News, Touched},
    nexthop::{Entry, Group, Hop, NextHop, Put, What},
    nftables::{self, Map, Share, Wanted},
    pace::Pace,
    plan::{Lead, Operation, Owned, PROTOCOL, Plan, Planner, RouteKey, Rule, Seen},
    store::{State, StateError},
    track_file,
    view::View,
};
use crate::{
    api::client::ClientError,
    config::{self, Action, ActionKind, AtStart, Config, Hub, MapName},
    error::full,
    host::{
        instance::{self, InstanceError},
        notify::{KeptFile, Supervisor},
        privileges, repeats,
    },
};

/// Shortest time between two readings of what the kernel has, but for the first.
const READ_AGAIN: Duration = Duration::from_millis(50);
/// How often what the kernel has is read although nothing was told.
const AUDIT: Duration = Duration::from_secs(5);
/// How long a next hop that the kernel refused is not tried again.
const REFUSED: Duration = Duration::from_millis(500);
/// How long after a change of a verdict a change of an action may be due to it.
const RECENT: SignedDuration = SignedDuration::from_secs(30);
/// How long hooks that run may go on at the end.
const GRACE: Duration = Duration::from_secs(3);
/// How often the place in the event stream is written.
const CURSOR: Duration = Duration::from_millis(200);
/// How many times notifications are read before something else has its turn.
const BATCHES: usize = 16;
/// How many messages of the daemon's wait at most.
const TOLD_MAX: usize = 256;
/// So many members are named by a line of the log.
const NAMED: usize = 8;

/// Why actions are not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// There is nothing to do.
    #[error("{} has no [[action]]; add one, or do not run `tracker act`", .0.display())]
    NoAction(PathBuf),
    /// Another process does it.
    #[error(
        "another `tracker act` of the instance {instance} runs in this network namespace (process {holder}); end it first"
    )]
    Running {
        /// The instance.
        instance: String,
        /// The process.
        holder: libc::pid_t,
    },
    /// It is not known whether another process does it.
    #[error(transparent)]
    Instance(InstanceError),
    /// What is kept cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A hook cannot run.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The kernel cannot be asked.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Signals cannot be taken.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The daemon does not answer.
    #[error(transparent)]
    Daemon(#[from] ClientError),
    /// Something of ours is in use by others.
    #[error("{0}")]
    Used(String),
    /// Standard output cannot be written.
    #[error("cannot write to standard output; check where it is redirected to")]
    Output(#[source] io::Error),
}

fn lock(hub: &Hub) -> Result<instance::InstanceLock, ActError> {
    // No instance's name has a slash.
    instance::lock(&format!("{}/act", hub.instance)).map_err(|error| match error {
        InstanceError::Taken { holder, .. } => ActError::Running {
            instance: hub.instance.clone(),
            holder,
        },
        other => ActError::Instance(other),
    })
}

/// Carries out the actions of a configuration until a signal ends it; `socket` is the daemon's, if it is not to be that of the
/// configuration. `passed` are files that the supervisor kept.
///
/// # Errors
/// When it cannot begin; afterwards it goes on whatever happens.
pub async fn run(
    path: &Path,
    mut config: Config,
    socket: Option<&Path>,
    mut passed: Vec<KeptFile>,
) -> Result<(), ActError> {
    if let Some(socket) = socket {
        socket.clone_into(&mut config.hub.socket);
    }
    if config.actions.is_empty() {
        return Err(ActError::NoAction(path.to_owned()));
    }
    let _lock = lock(&config.hub)?;
    let supervisor = Supervisor::of_environment().unwrap_or_else(|error| {
        tracing::warn!("cannot reach the supervisor that NOTIFY_SOCKET names: {error}");
        Supervisor::default()
    });
    let supervisor = Arc::new(supervisor);
    let mut signals = Signals::new().map_err(ActError::Signals)?;
    let mut actor = Actor::new(path, config)?;
    actor.socket = socket.map(Path::to_owned);
    privileges::limit_to_act();
    actor.begin()?;
    actor.keep_sessions(&supervisor, &mut passed);
    supervisor.ready();
    let mut feed = Feed::start(&actor);
    loop {
        let next = actor.next();
        let sleep = tokio::time::sleep_until(next.into());
        tokio::select! {
            told = feed.told.recv() => {
                actor.tell(told, &supervisor);
                while let Ok(told) = feed.told.try_recv() {
                    actor.tell(Some(told), &supervisor);
                }
            }
            ready = actor.monitor.readable_mut() => match ready {
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => tracing::error!("cannot wait for notifications: {error}"),
            },
            done = actor.hooks.done() => done.log(),
            signal = signals.next() => match signal {
                Signal::Reload => if actor.reload(&supervisor) {
                    actor.keep_sessions(&supervisor, &mut Vec::new());
                    feed = Feed::start(&actor);
                },
                Signal::End => break,
            },
            () = sleep => {}
        }
        actor.turn();
    }
    supervisor.stopping();
    drop(feed);
    actor.end().await;
    Ok(())
}

/// What signals ask for.
enum Signal {
    Reload,
    End,
}

struct Signals {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
        }
    }
}

/// The task that follows the daemon.
struct Feed {
    told: mpsc::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Feed {
    fn start(actor: &Actor) -> Self {
        let (sender, told) = mpsc::channel(TOLD_MAX);
        let task = tokio::spawn(feed::follow(actor.wanted(), sender));
        Self { told, task }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of a track file.
struct Track {
    selector: Selector,
    path: PathBuf,
    values: (i32, i32),
    at_start: AtStart,
    /// What it has, as far as is known.
    written: Option<i32>,
}

/// A map of nftables, and what it is to have.
struct KeptMap {
    map: Map,
    bypass_via: Option<IpAddr>,
    wanted: watch::Sender<Wanted>,
    /// The task that keeps it; absent of a dry run.
    task: Option<JoinHandle<()>>,
}

impl Drop for KeptMap {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl KeptMap {
    /// What the map is to have while traffic goes there.
    fn wanted(&self, choice: &Choice) -> Wanted {
        match (choice, self.bypass_via) {
            (Choice::Members(members), _) => {
                let shares = members.iter().map(|member| Share {
                    name: format!("{}/{}", member.service, member.member),
                    endpoint: member.endpoint,
                    mark: member.mark,
                    weight: member.weight,
                });
                Wanted::Shares(shares.collect())
            }
            (Choice::Bypass, Some(endpoint)) => Wanted::Shares(vec![Share {
                name: "bypass_via".to_owned(),
                endpoint,
                mark: None,
                weight: 1,
            }]),
            (Choice::Withdraw | Choice::Bypass, _) => Wanted::Nothing,
        }
    }
}

/// Sessions of a `bfdd`.
struct KeptSessions {
    selector: Selector,
    socket: PathBuf,
    peers: watch::Sender<Arc<frr::Peers>>,
    /// The task that keeps them; absent of a dry run.
    task: Option<JoinHandle<()>>,
}

impl Drop for KeptSessions {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn map_of(action: &Action) -> Option<Map> {
    let ActionKind::Nftables {
        map,
        buckets,
        lease,
    } = &action.kind
    else {
        return None;
    };
    Some(Map {
        action: action.name.clone(),
        name: map.clone(),
        buckets: *buckets,
        lease: *lease,
    })
}

/// Everything that the loop knows.
struct Actor {
    path: PathBuf,
    /// The daemon's socket, if another one than that of the configuration was asked for.
    socket: Option<PathBuf>,
    hub: Hub,
    actions: Vec<Action>,
    rules: Vec<Rule>,
    tracks: BTreeMap<String, Track>,
    maps: BTreeMap<String, KeptMap>,
    sessions: BTreeMap<String, KeptSessions>,
    /// Addresses around services.
    ways: BTreeSet<IpAddr>,
    state: State,
    kernel: Kernel,
    monitor: AsyncFd<Monitor>,
    interest: Interest,
    seen: Seen,
    view: Option<View>,
    hooks: Hooks,
    paces: HashMap<String, Pace>,
    refused: HashMap<Hop, Instant>,
    /// The services that changed since the last plan, each with the time of the last event.
    changed: BTreeMap<String, Timestamp>,
    /// Anything may have changed since the last plan.
    is_changed: bool,
    /// What the kernel has is to be read again.
    is_stale: bool,
    read: Instant,
    /// When something that was put off is due.
    due: Option<Instant>,
    cursor_written: Instant,
    /// Whether the daemon answered the last time.
    is_connected: Option<bool>,
}

impl Actor {
    fn new(path: &Path, config: Config) -> Result<Self, ActError> {
        let state = State::read(&config.hub.state)?;
        let kernel = Kernel::open().map_err(ActError::Netlink)?;
        let monitor = Monitor::open(kernel.port()).map_err(ActError::Netlink)?;
        // SAFETY: a monitor has one socket as long as it lives, and gives out no other descriptor.
        let monitor = unsafe { AsyncFd::register_with_interest(monitor, Readiness::READABLE) };
        let monitor = monitor.map_err(io::Error::from);
        let now = Instant::now();
        let mut actor = Self {
            path: path.to_owned(),
            socket: None,
            hub: config.hub,
            actions: Vec::new(),
            rules: Vec::new(),
            tracks: BTreeMap::new(),
            maps: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ways: BTreeSet::new(),
            state,
            kernel,
            monitor: monitor.map_err(ActError::Netlink)?,
            interest: Interest::default(),
            seen: Seen::default(),
            view: None,
            hooks: Hooks::default(),
            paces: HashMap::new(),
            refused: HashMap::new(),
            changed: BTreeMap::new(),
            is_changed: true,
            is_stale: true,
            read: now,
            due: None,
            cursor_written: now,
            is_connected: None,
        };
        if let Some(cursor) = &actor.state.kept.events {
            actor.hooks.resume(cursor);
        }
        actor.set_actions(config.actions)?;
        Ok(actor)
    }

    fn set_actions(&mut self, actions: Vec<Action>) -> Result<(), HookError> {
        self.hooks.set(&actions)?;
        self.rules = actions
            .iter()
            .filter(|action| {
                matches!(
                    action.kind,
                    ActionKind::NexthopGroup { .. }
                        | ActionKind::Route { .. }
                        | ActionKind::Nftables { .. }
                )
            })
            .map(Rule::of)
            .collect();
        let tracks = actions.iter().filter_map(|action| match &action.kind {
            ActionKind::TrackFile { path, up, down } => {
                let track = Track {
                    selector: Selector::of(action),
                    path: path.clone(),
                    values: (*up, *down),
                    at_start: action.at_start,
                    written: track_file::read(path),
                };
                Some((action.name.clone(), track))
            }
            _ => None,
        });
        self.tracks = tracks.collect();
        let maps = actions.iter().filter_map(|action| {
            let kept = KeptMap {
                map: map_of(action)?,
                bypass_via: action.bypass_via,
                wanted: watch::Sender::new(Wanted::Keep),
                task: None,
            };
            Some((action.name.clone(), kept))
        });
        self.maps = maps.collect();
        let mut before = std::mem::take(&mut self.sessions);
        for action in &actions {
            let ActionKind::Frr { socket } = &action.kind else {
                continue;
            };
            // `bfdd` would take the end of its connections for the end of its sessions.
            let kept = before.remove(&action.name);
            let kept = kept.filter(|kept| kept.socket == *socket);
            let mut kept = kept.unwrap_or_else(|| KeptSessions {
                selector: Selector::of(action),
                socket: socket.clone(),
                peers: watch::Sender::default(),
                task: None,
            });
            kept.selector = Selector::of(action);
            self.sessions.insert(action.name.clone(), kept);
        }
        self.ways = actions
            .iter()
            .filter_map(|action| action.bypass_via)
            .collect();
        let names: HashSet<&str> = actions.iter().map(|action| action.name.as_str()).collect();
        let kept = &mut self.state.kept;
        kept.choices.retain(|name, _| names.contains(name.as_str()));
        self.paces.retain(|name, _| names.contains(name.as_str()));
        self.actions = actions;
        self.is_changed = true;
        self.is_stale = true;
        Ok(())
    }

    /// Which services are followed, and from where on.
    fn wanted(&self) -> feed::Wanted {
        let services = self.actions.iter().flat_map(|action| &action.services);
        feed::Wanted {
            socket: self.hub.socket.clone(),
            services: services.cloned().collect(),
            cursor: match self.hooks.is_empty() {
                true => None,
                false => self.hooks.seen(),
            },
            has_hooks: !self.hooks.is_empty(),
            has_trackers: !self.sessions.is_empty(),
        }
    }

    /// Has the maps of nftables kept from now on, and those emptied that no action keeps any longer.
    fn keep_maps(&mut self) {
        let names = self.maps.values().map(|kept| &kept.map.name);
        let names: BTreeSet<MapName> = names.cloned().collect();
        let owned = &mut self.state.kept.owned.maps;
        for name in owned.iter().filter(|name| !names.contains(name)).cloned() {
            let map = Map {
                action: format!("(none any longer) {name}"),
                name,
                buckets: 0,
                lease: None,
            };
            tokio::spawn(async move {
                if let Err(error) = nftables::apply(&map, &Wanted::Nothing).await {
                    tracing::warn!(
                        "cannot take elements out of a map that no action keeps any longer: {}",
                        full(&error)
                    );
                }
            });
        }
        owned.extend(names);
        for kept in self.maps.values_mut() {
            if kept.task.is_none() {
                let keep = nftables::keep(kept.map.clone(), kept.wanted.subscribe());
                kept.task = Some(tokio::spawn(keep));
            }
        }
    }

    /// Has the sessions of `bfdd` kept from now on; `passed` are connections of an earlier process.
    fn keep_sessions(&mut self, supervisor: &Arc<Supervisor>, passed: &mut Vec<KeptFile>) {
        for kept in self.sessions.values_mut() {
            if kept.task.is_some() {
                continue;
            }
            let run = frr::run(
                kept.socket.clone(),
                self.hub.state.clone(),
                kept.peers.subscribe(),
                supervisor.clone(),
                frr::of_socket(&kept.socket, passed),
            );
            kept.task = Some(tokio::spawn(run));
        }
    }

    /// Tells `bfdd` what members and trackers are like.
    fn tell_sessions(&self) {
        let Some(view) = &self.view else {
            return;
        };
        for kept in self.sessions.values() {
            let peers = frr::peers(kept.selector.select(view));
            kept.peers.send_if_modified(|now| {
                let is_new = **now != peers;
                if is_new {
                    *now = Arc::new(peers);
                }
                is_new
            });
        }
    }

    /// Tells what maps of nftables are to have.
    fn tell_maps(&self) {
        for (action, kept) in &self.maps {
            if let Some(choice) = self.state.kept.choices.get(action) {
                let wanted = kept.wanted(choice);
                kept.wanted.send_if_modified(|now| {
                    let is_new = *now != wanted;
                    *now = wanted;
                    is_new
                });
            }
        }
    }

    /// Reads what the kernel has for the first time, and puts right what is known to be wrong already.
    fn begin(&mut self) -> Result<(), ActError> {
        let count = self.actions.len();
        let plural = if count == 1 { "" } else { "s" };
        tracing::info!(
            "{count} action{plural} of {}, by the daemon at {}",
            self.path.display(),
            self.hub.socket.display()
        );
        self.look()?;
        self.keep_maps();
        self.turn();
        Ok(())
    }

    /// Takes a new configuration; true if the daemon is to be asked anew.
    fn reload(&mut self, supervisor: &Supervisor) -> bool {
        let path = self.path.display().to_string();
        let refused = |why: &dyn std::fmt::Display| {
            tracing::error!("{why}");
            tracing::error!("the actions stay as they are; correct {path} and send SIGHUP again");
        };
        let config = match config::load(&self.path) {
            Ok(mut config) => {
                if let Some(socket) = &self.socket {
                    config.hub.socket.clone_from(socket);
                }
                config
            }
            Err(error) => {
                refused(&error);
                return false;
            }
        };
        let (old, new) = (&self.hub, &config.hub);
        if (&old.socket, &old.state, &old.instance) != (&new.socket, &new.state, &new.instance) {
            refused(&"socket, state and instance of [hub] count only from the next start");
            return false;
        }
        let count = config.actions.len();
        if let Err(error) = self.set_actions(config.actions) {
            refused(&full(&error));
            return false;
        }
        self.keep_maps();
        tracing::info!("{path}: {count} actions from now on");
        supervisor.status(&format!("{count} actions"));
        true
    }

    /// When the next turn is due.
    fn next(&self) -> Instant {
        let audit = self.read + AUDIT;
        let next = match self.is_stale {
            true => self.read + READ_AGAIN,
            false => audit,
        };
        let cursor = match self.hooks.is_empty() || self.hooks.cursor() == self.state.kept.events {
            true => audit,
            false => self.cursor_written + CURSOR,
        };
        self.due.into_iter().fold(next.min(cursor), Instant::min)
    }

    /// Takes what the daemon tells.
    fn tell(&mut self, told: Option<Told>, supervisor: &Supervisor) {
        let connected = match told {
            None => return,
            Some(Told::Whole { view, times }) => {
                self.view = Some(view);
                self.is_changed = true;
                self.changed.extend(times);
                true
            }
            Some(Told::Some {
                services,
                gone,
                times,
            }) => {
                if let Some(view) = &mut self.view {
                    view.take(services, &gone);
                }
                // One that went may have been the reason for a next hop.
                self.is_changed |= !gone.is_empty();
                for (name, time) in times {
                    let last = self.changed.entry(name).or_insert(time);
                    *last = time.max(*last);
                }
                true
            }
            Some(Told::Place(cursor)) => {
                self.hooks.begin(cursor);
                true
            }
            Some(Told::Event(happened)) => {
                let happened: Happened = *happened;
                self.hooks.take(happened);
                true
            }
            Some(Told::Lost(error)) => {
                repeats::warn(
                    "daemon",
                    format_args!("{error}; everything stays as it is until it answers"),
                );
                false
            }
        };
        if self.is_connected.replace(connected) != Some(connected) {
            let count = self.actions.len();
            let state = match connected {
                true => "follows the daemon",
                false => "the daemon does not answer: everything stays as it is",
            };
            tracing::info!("{state}");
            supervisor.status(&format!("{count} actions; {state}"));
        }
    }

    /// Reads what the kernel has.
    fn look(&mut self) -> Result<(), KernelError> {
        self.read = Instant::now();
        self.seen = self.kernel.read(&self.ways)?;
        self.is_stale = false;
        self.is_changed = true;
        let kept = &mut self.state.kept;
        adopt(&mut kept.owned, &kept.pending, &self.seen);
        kept.pending.clear();
        // A route of our protocol where one of ours is to be was made before this process was killed.
        for key in self.rules.iter().filter_map(Rule::route_key) {
            if self.seen.routes.contains_key(&key) {
                kept.owned.routes.insert(key);
            }
        }
        let seen = &self.seen;
        let owned = &mut kept.owned;
        owned.hops.retain(|id| is_ours(seen, *id));
        self.set_interest();
        Ok(())
    }

    fn set_interest(&mut self) {
        let owned = &self.state.kept.owned;
        let groups = self.rules.iter().filter_map(Rule::group_id);
        let objects = owned.hops.iter().chain(&owned.groups).copied();
        let routes = self.rules.iter().filter_map(Rule::route_key);
        self.interest = Interest {
            objects: objects.chain(groups).collect(),
            routes: routes.chain(owned.routes.iter().copied()).collect(),
        };
    }

    /// Takes notifications of the kernel.
    fn listen(&mut self) {
        let mut news = News::default();
        let mut is_more = true;
        for _ in 0..BATCHES {
            let monitor = self.monitor.get_mut();
            match monitor.read(&self.seen, &self.interest, &mut news) {
                Ok(true) => {}
                Ok(false) => {
                    is_more = false;
                    break;
                }
                Err(error) => {
                    repeats::warn(
                        "notifications",
                        format_args!(
                            "cannot read notifications of the kernel: {error}; reading all every few seconds"
                        ),
                    );
                    break;
                }
            }
        }
        if is_more {
            // What waits is not told again; other work has its turn first.
            self.due = Some(Instant::now());
        }
        self.is_stale |= news.is_stale;
        let touched: BTreeSet<String> = news
            .touched
            .iter()
            .filter_map(|touched| self.action_of(touched))
            .collect();
        let now = Instant::now();
        for action in touched {
            let pace = pace(&mut self.paces, &action, now);
            if let Some((count, pause)) = pace.fought(now) {
                repeats::warn(
                    &action,
                    format_args!(
                        "action {action}: another program changed what is this action's {count} times within a minute; it is put right again in {} ms. Find that program, or remove the action",
                        pause.as_millis()
                    ),
                );
            }
        }
    }

    /// The action whose group or route another program changed.
    fn action_of(&self, touched: &Touched) -> Option<String> {
        let mut rules = self.rules.iter();
        let rule = match touched {
            Touched::Object(id) => rules.find(|rule| rule.group_id() == Some(*id)),
            Touched::Route(key) => rules.find(|rule| rule.route_key() == Some(*key)),
        };
        Some(rule?.action.name.clone())
    }

    /// Does what there is to do.
    fn turn(&mut self) {
        self.listen();
        let now = Instant::now();
        self.refused.retain(|_, until| *until > now);
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.is_changed = true;
        }
        let is_audit = now >= self.read + AUDIT;
        if is_audit || (self.is_stale && now >= self.read + READ_AGAIN) {
            if let Err(error) = self.look() {
                self.is_stale = true;
                repeats::warn("read", format_args!("{}; trying again", full(&error)));
                return;
            }
            if is_audit {
                for track in self.tracks.values_mut() {
                    track.written = track_file::read(&track.path);
                }
            }
        }
        if self.is_changed || !self.changed.is_empty() {
            let plan = self.plan();
            self.carry_out(plan, now);
            self.write_tracks(now);
            self.tell_maps();
            self.tell_sessions();
            self.changed.clear();
            self.is_changed = false;
        }
        if !self.hooks.is_empty() && now >= self.cursor_written + CURSOR {
            self.state.kept.events = self.hooks.cursor();
            self.cursor_written = now;
        }
        self.save();
        repeats::flush();
    }

    fn plan(&self) -> Plan {
        let kept = &self.state.kept;
        let refused: HashSet<Hop> = self.refused.keys().copied().collect();
        let changed: BTreeSet<String> = self.changed.keys().cloned().collect();
        let planner = Planner {
            rules: &self.rules,
            view: self.view.as_ref(),
            choices: &kept.choices,
            seen: &self.seen,
            owned: &kept.owned,
            refused: &refused,
            changed: (!self.is_changed).then_some(&changed),
        };
        planner.plan()
    }

    fn carry_out(&mut self, plan: Plan, now: Instant) {
        for trouble in &plan.troubles {
            repeats::warn(
                &trouble.action,
                format_args!("action {}: {}", trouble.action, trouble.text),
            );
        }
        let before: BTreeMap<&String, Option<Choice>> = plan
            .choices
            .keys()
            .map(|name| (name, self.state.kept.choices.get(name).cloned()))
            .collect();
        let times = self.times(&plan, &before);
        let mut operations = Vec::with_capacity(plan.operations.len());
        for operation in plan.operations {
            let action = match &operation {
                Operation::PutGroup { action, .. } | Operation::PutRoute { action, .. } => action,
                _ => {
                    operations.push(operation);
                    continue;
                }
            };
            match pace(&mut self.paces, action, now).may(now) {
                Ok(()) => operations.push(operation),
                Err(due) => self.due = Some(self.due.map_or(due, |earlier| earlier.min(due))),
            }
        }
        // Written before the kernel is changed: whenever this process is killed, the next one knows what is its own and where
        // the traffic was to go.
        let kept = &mut self.state.kept;
        kept.choices.extend(plan.choices);
        for operation in &operations {
            match operation {
                Operation::CreateHop(hop) => kept.pending.push(*hop),
                Operation::PutGroup { id, .. } => drop(kept.owned.groups.insert(*id)),
                Operation::PutRoute { key, .. } => drop(kept.owned.routes.insert(*key)),
                _ => {}
            }
        }
        let is_saved = self.save();
        let is_any = !operations.is_empty();
        for operation in operations {
            let is_new = matches!(
                operation,
                Operation::PutGroup {
                    put: Put::Create,
                    ..
                } | Operation::PutRoute {
                    put: Put::Create,
                    ..
                }
            );
            if is_new && !is_saved {
                // It could not be told from another program's after the next start.
                continue;
            }
            self.operate(&operation, &times, now);
        }
        self.state.kept.pending.clear();
        if is_any {
            self.set_interest();
        }
    }

    /// The time of the last event behind each action's change.
    fn times(
        &self,
        plan: &Plan,
        before: &BTreeMap<&String, Option<Choice>>,
    ) -> HashMap<String, Timestamp> {
        let now = Timestamp::now();
        let mut times = HashMap::new();
        for (name, choice) in &plan.choices {
            let old = before.get(name).and_then(Option::as_ref);
            let members = |choice: &Choice| match choice {
                Choice::Members(members) => members.clone(),
                Choice::Withdraw | Choice::Bypass => Vec::new(),
            };
            let members: Vec<Chosen> = [Some(choice), old]
                .into_iter()
                .flatten()
                .flat_map(members)
                .collect();
            let told = members.iter().filter_map(|member| {
                let time = self.changed.get(&member.service);
                time.copied()
            });
            // Of many events at once, the state may be known before each of them was read.
            let since = members.iter().filter_map(|member| {
                let known = self.view.as_ref()?.get(&member.service)?.since?;
                (old.is_some() && now.duration_since(known) < RECENT).then_some(known)
            });
            if let Some(last) = told.chain(since).max() {
                times.insert(name.clone(), last);
            }
        }
        times
    }

    fn operate(&mut self, operation: &Operation, times: &HashMap<String, Timestamp>, now: Instant) {
        let result = self.attempt(operation);
        let action = match operation {
            Operation::PutGroup { action, .. } | Operation::PutRoute { action, .. } => Some(action),
            _ => None,
        };
        match (result, action) {
            (Ok(()), Some(action)) => {
                pace(&mut self.paces, action, now).done();
                let age = times.get(action).map(|time| {
                    let age = Timestamp::now().duration_since(*time);
                    format!(", {:.1} ms after the event", age.as_secs_f64() * 1_000.0)
                });
                tracing::info!(
                    "action {action}: {}{}",
                    self.describe(operation),
                    age.unwrap_or_default()
                );
            }
            (Ok(()), None) => tracing::debug!("{}", self.describe(operation)),
            (Err(error), action) => {
                // It may be no longer what it was when it was read.
                self.is_stale = true;
                if let Operation::CreateHop(hop) = operation {
                    self.refused.insert(*hop, now + REFUSED);
                    let due = now + REFUSED;
                    self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
                }
                let (subject, pause) = match action {
                    Some(action) => {
                        let pause = pace(&mut self.paces, action, now).failed(now);
                        (format!("action {action}"), pause)
                    }
                    None => (self.describe(operation), REFUSED),
                };
                repeats::log(
                    Level::ERROR,
                    &subject,
                    format_args!(
                        "{subject}: {}; trying again in {} ms",
                        full(&error),
                        pause.as_millis()
                    ),
                );
            }
        }
    }

    /// Has the kernel do it, and notes what it has then.
    fn attempt(&mut self, operation: &Operation) -> Result<(), KernelError> {
        let (seen, owned) = (&mut self.seen, &mut self.state.kept.owned);
        match operation {
            Operation::CreateHop(hop) => {
                let id = self.kernel.create_hop(*hop)?;
                let object = NextHop {
                    id,
                    protocol: PROTOCOL,
                    what: What::Hop(*hop),
                };
                seen.objects.insert(id, object);
                owned.hops.insert(id);
            }
            Operation::PutGroup {
                id,
                put,
                entries,
                resilient,
                ..
            } => {
                let ids = ids(seen, owned);
                let entries = entries.iter().filter_map(|(hop, weight)| {
                    let id = *ids.get(hop)?;
                    Some(Entry {
                        id,
                        weight: *weight,
                    })
                });
                let group = Group {
                    entries: entries.collect(),
                    resilient: *resilient,
                };
                if group.entries.is_empty() {
                    // None of its next hops could be made, which was told; a group is never emptied.
                    self.is_stale = true;
                    return Ok(());
                }
                let result = self.kernel.put_group(*id, &group, *put);
                if let (Err(_), Put::Create) = (&result, put) {
                    owned.groups.remove(id);
                }
                result?;
                let object = NextHop {
                    id: *id,
                    protocol: PROTOCOL,
                    what: What::Group(group),
                };
                seen.objects.insert(*id, object);
            }
            Operation::PutRoute { key, lead, put, .. } => {
                let result = self.kernel.put_route(key, *lead, *put);
                if let (Err(_), Put::Create) = (&result, put) {
                    owned.routes.remove(key);
                }
                result?;
                seen.routes.insert(*key, *lead);
            }
            Operation::DeleteRoute(key) => {
                self.kernel.delete_route(key)?;
                seen.routes.remove(key);
                owned.routes.remove(key);
            }
            Operation::DeleteGroup(id) => {
                let others = self.kernel.others_routes(*id)?;
                if !others.is_empty() {
                    repeats::warn(
                        &format!("group {id}"),
                        format_args!("{}", used(*id, &others)),
                    );
                    return Ok(());
                }
                self.kernel.delete_object(*id)?;
                seen.objects.remove(id);
                owned.groups.remove(id);
                tracing::info!("group {id} removed: no action keeps it any longer");
            }
            Operation::DeleteHop(id) => {
                self.kernel.delete_object(*id)?;
                seen.objects.remove(id);
                owned.hops.remove(id);
            }
        }
        Ok(())
    }

    /// Writes the numbers of track files that are to change.
    fn write_tracks(&mut self, now: Instant) {
        let Some(view) = &self.view else { return };
        for (action, track) in &mut self.tracks {
            let Some(value) = number(track, view).filter(|value| track.written != Some(*value))
            else {
                continue;
            };
            let pace = pace(&mut self.paces, action, now);
            if let Err(due) = pace.may(now) {
                self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
                continue;
            }
            match track_file::write(&track.path, value) {
                Ok(()) => {
                    pace.done();
                    track.written = Some(value);
                    tracing::info!("action {action}: {} has {value}", track.path.display());
                }
                Err(error) => {
                    let pause = pace.failed(now);
                    let due = now + pause;
                    self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
                    repeats::log(
                        Level::ERROR,
                        action,
                        format_args!("action {action}: {}", full(&error)),
                    );
                }
            }
        }
    }

    fn save(&mut self) -> bool {
        match self.state.save() {
            Ok(()) => true,
            Err(error) => {
                let text = format_args!("{}; nothing new is made until then", full(&error));
                repeats::log(Level::ERROR, "state", text);
                false
            }
        }
    }

    fn describe(&self, operation: &Operation) -> String {
        describe(operation, &self.seen)
    }

    /// Lets hooks end, and leaves everything else as it is.
    async fn end(mut self) {
        let until = tokio::time::Instant::now() + GRACE;
        while !self.hooks.is_idle() {
            match tokio::time::timeout_at(until, self.hooks.done()).await {
                Ok(done) => done.log(),
                Err(_) => {
                    tracing::warn!("hooks still run and are killed; the next start repeats them");
                    break;
                }
            }
        }
        if !self.hooks.is_empty() {
            self.state.kept.events = self.hooks.cursor();
        }
        self.save();
        tracing::info!("ended; everything stays as it is");
    }
}

fn pace<'p>(paces: &'p mut HashMap<String, Pace>, action: &str, now: Instant) -> &'p mut Pace {
    if !paces.contains_key(action) {
        paces.insert(action.to_owned(), Pace::new(now));
    }
    paces
        .entry(action.to_owned())
        .or_insert_with(|| Pace::new(now))
}

fn is_ours(seen: &Seen, id: u32) -> bool {
    let object = seen.objects.get(&id);
    object.is_some_and(|object| object.protocol == PROTOCOL && matches!(object.what, What::Hop(_)))
}

/// Our next hops, each by one of its ids.
fn ids(seen: &Seen, owned: &Owned) -> HashMap<Hop, u32> {
    let mut ids = HashMap::new();
    for id in owned.hops.iter().filter(|id| is_ours(seen, **id)) {
        if let Some(NextHop {
            what: What::Hop(hop),
            ..
        }) = seen.objects.get(id)
        {
            ids.entry(*hop).or_insert(*id);
        }
    }
    ids
}

/// Takes next hops as ours that were made by a process that was killed before it could note their ids: they are as it was about
/// to make them, and no group refers to them.
fn adopt(owned: &mut Owned, pending: &[Hop], seen: &Seen) {
    if pending.is_empty() {
        return;
    }
    let used = seen.referred();
    let left = seen.objects.values().filter(|object| {
        object.protocol == PROTOCOL
            && !used.contains(&object.id)
            && matches!(object.what, What::Hop(hop) if pending.contains(&hop))
    });
    owned.hops.extend(left.map(|object| object.id));
}

/// The number that a track file is to have; `None` if what it has is to stay.
fn number(track: &Track, view: &View) -> Option<i32> {
    let services = track.selector.select(view);
    let (up, down) = track.values;
    let of = |verdict| services.iter().any(|service| service.effective == verdict);
    if of(Verdict::Up) {
        return Some(up);
    }
    if services.is_empty() || of(Verdict::Unknown) {
        return match (track.written, track.at_start) {
            (Some(_), _) => None,
            (None, AtStart::All) => Some(up),
            (None, AtStart::None) => Some(down),
        };
    }
    Some(down)
}

/// Why a group stays.
fn used(group: u32, routes: &[RouteKey]) -> String {
    let named: Vec<String> = routes.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match routes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "group {group} stays, since routes of other programs lead by it ({}{more}); remove these first",
        named.join(", ")
    )
}

/// What an operation does, in the words of `ip`.
fn describe(operation: &Operation, seen: &Seen) -> String {
    let interface = |index: &u32| {
        let link = seen.links.get(index).and_then(|link| link.names.first());
        link.map_or_else(|| format!("interface {index}"), Clone::clone)
    };
    let hop = |hop: &Hop| match hop {
        Hop::Gateway(gateway, index) => format!("{gateway} on {}", interface(index)),
        Hop::Interface(_, index) => interface(index),
        Hop::Blackhole(_) => "nowhere (packets are dropped)".to_owned(),
    };
    match operation {
        Operation::CreateHop(one) => format!("next hop {}", hop(one)),
        Operation::PutGroup {
            id, put, entries, ..
        } => {
            let named = entries.iter().take(NAMED).map(|(one, weight)| {
                let weight = match weight {
                    1 => String::new(),
                    weight => format!(" weight {weight}"),
                };
                format!("{}{weight}", hop(one))
            });
            let named: Vec<String> = named.collect();
            let more = match entries.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let verb = match put {
                Put::Create => "made, leads to",
                Put::Replace => "leads to",
            };
            format!("group {id} {verb} {}{more}", named.join(", "))
        }
        Operation::PutRoute { key, lead, put, .. } => {
            let verb = match put {
                Put::Create => "made, leads by",
                Put::Replace => "leads by",
            };
            let lead = match lead {
                Lead::Hop(one) => hop(one),
                other => other.to_string(),
            };
            format!("route {key} {verb} {lead}")
        }
        Operation::DeleteRoute(key) => format!("route {key} removed"),
        Operation::DeleteGroup(id) => format!("group {id} removed"),
        Operation::DeleteHop(id) => format!("next hop of id {id} removed"),
    }
}

fn print(line: &str) -> Result<(), ActError> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.raw_os_error() != Some(Errno::EPIPE as i32) => {
            Err(ActError::Output(error))
        }
        _ => Ok(()),
    }
}

/// Prints what would be done now, and changes nothing.
///
/// # Errors
/// When the daemon or the kernel does not answer.
pub async fn dry_run(path: &Path, config: Config) -> Result<(), ActError> {
    if config.actions.is_empty() {
        return Err(ActError::NoAction(path.to_owned()));
    }
    let mut actor = Actor::new(path, config)?;
    actor.view = Some(feed::look(&actor.wanted()).await?);
    actor.look()?;
    let plan = actor.plan();
    for trouble in &plan.troubles {
        print(&format!(
            "trouble: action {}: {}",
            trouble.action, trouble.text
        ))?;
    }
    let mut is_nothing = plan.operations.is_empty();
    for operation in &plan.operations {
        let action = match operation {
            Operation::PutGroup { action, .. } | Operation::PutRoute { action, .. } => {
                format!("action {action}: ")
            }
            _ => String::new(),
        };
        print(&format!("would: {action}{}", actor.describe(operation)))?;
    }
    for (action, track) in &actor.tracks {
        let value = actor.view.as_ref().and_then(|view| number(track, view));
        if let Some(value) = value.filter(|value| track.written != Some(*value)) {
            is_nothing = false;
            let path = track.path.display();
            print(&format!("would: action {action}: {path} has {value}"))?;
        }
    }
    for (action, kept) in &actor.maps {
        let choices = &actor.state.kept.choices;
        let choice = plan.choices.get(action).or(choices.get(action));
        let Some(wanted) = choice.map(|choice| kept.wanted(choice)) else {
            continue;
        };
        let name = &kept.map.name;
        match nftables::would(&kept.map, &wanted).await {
            Ok(0) => {}
            Ok(moved) => {
                is_nothing = false;
                let leads = nftables::described(&wanted);
                print(&format!(
                    "would: action {action}: map {name} leads to {leads}, {moved} of {} buckets moved",
                    kept.map.buckets
                ))?;
            }
            Err(error) => print(&format!("trouble: action {action}: {}", full(&error)))?,
        }
    }
    if is_nothing {
        print("nothing to do")?;
    }
    Ok(())
}

/// Undoes what actions did: routes, groups, next hops and elements of maps that are ours go.
///
/// # Errors
/// When `tracker act` runs, the kernel refuses, or routes of other programs lead by a group of ours.
pub async fn withdraw(config: &Config) -> Result<(), ActError> {
    let _lock = lock(&config.hub)?;
    let mut state = State::read(&config.hub.state)?;
    let mut kernel = Kernel::open().map_err(ActError::Netlink)?;
    let seen = kernel.read(&BTreeSet::new())?;
    let kept = &mut state.kept;
    adopt(&mut kept.owned, &kept.pending, &seen);
    kept.pending.clear();
    kept.choices.clear();
    let mut is_nothing = true;
    let mut stays = Vec::new();
    for key in kept.owned.routes.clone() {
        if seen.routes.contains_key(&key) {
            kernel.delete_route(&key)?;
            print(&format!("route {key} removed"))?;
            is_nothing = false;
        }
        kept.owned.routes.remove(&key);
    }
    for id in kept.owned.groups.clone() {
        let is_there = seen.objects.get(&id).is_some_and(|object| {
            object.protocol == PROTOCOL && matches!(object.what, What::Group(_))
        });
        if is_there {
            let others = kernel.others_routes(id)?;
            if !others.is_empty() {
                stays.push(used(id, &others));
                continue;
            }
            kernel.delete_object(id)?;
            print(&format!("group {id} removed"))?;
            is_nothing = false;
        }
        kept.owned.groups.remove(&id);
    }
    // What a group refers to that stays, stays with it.
    let seen = kernel.read(&BTreeSet::new())?;
    let referred = seen.referred();
    for id in kept.owned.hops.clone() {
        if referred.contains(&id) {
            continue;
        }
        if is_ours(&seen, id) {
            kernel.delete_object(id)?;
            print(&format!("next hop of id {id} removed"))?;
            is_nothing = false;
        }
        kept.owned.hops.remove(&id);
    }
    for name in kept.owned.maps.clone() {
        let map = Map {
            action: String::new(),
            name: name.clone(),
            buckets: 0,
            lease: None,
        };
        match nftables::apply(&map, &Wanted::Nothing).await {
            Ok(0) => {}
            Ok(count) => {
                print(&format!("map {name}: {count} elements removed"))?;
                is_nothing = false;
            }
            // The map may be gone with its table.
            Err(error) => tracing::warn!("{}", full(&error)),
        }
        kept.owned.maps.remove(&name);
    }
    state.save()?;
    if !stays.is_empty() {
        return Err(ActError::Used(stays.join("; ")));
    }
    if is_nothing {
        print("nothing to undo")?;
    }
    Ok(())
}

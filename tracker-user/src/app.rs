//! The loop that joins everything: what the kernel says, what the engine finds, what clients ask.

mod answers;
mod clients;
mod install;
mod reconcile;
mod restart;
mod steer;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        oneshot,
    },
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tracing::Level;
use tracker_ebpf::{
    abi,
    verdict::{Cause, Verdict},
};

use crate::{
    api::{
        protocol,
        types::{Counters, UplinkStatus},
    },
    config::{self, Addition, Config, Member, ReturnHop, Role},
    datapath::{
        clsact,
        journal::Journal,
        loader::{self, Kernel, Maps, StateReader},
        pins::{self, Pins},
        steering::{self, SteeredReader, Steering},
    },
    desired::diff::Pairs,
    detector::{
        engine::{Command, Report, SendFailure},
        flows::Moved,
        lateness::Health,
    },
    host::{
        clock::{boot_ns, monotonic_ns},
        instance, limits, ports, preflight, privileges, repeats,
        watchdog::{Phase, Watchdog},
    },
    net::{neighbours::Neighbours, rtnetlink::Netlink},
    plan::{
        member::{Fault, MemberPlan, NotLeaving, Probing},
        mode::Mode,
        observed::{Link, private_names},
    },
    reconcile::{
        cleanup,
        forgery_log::{Counts, Suspicion},
        sender::Sender,
    },
    state::{
        events::{CAPACITY, EventFeed, EventLog},
        tree::{Stamp, StateTree, TrackerRef, TrackerState},
        verdict_log::VerdictLog,
    },
};

use install::{Members, Places};
use restart::Predecessor;

/// How often what the kernel gave up on (a next hop, an attachment) is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long the end waits for the kernel to take neighbour entries back.
const RELEASE: Duration = Duration::from_secs(2);

/// How long a member stays with an interface that works while its endpoint is asked for on the one to
/// which its route moved.
const MOVE: Duration = Duration::from_millis(300);

/// What clients are answered from.
#[derive(Clone)]
struct Shared {
    core: Arc<Mutex<Core>>,
    feed: EventFeed,
    changes: UnboundedSender<Change>,
}

/// What a client wants to be different. Only the loop changes anything, one change after the other.
struct Change {
    wanted: Wanted,
    answer: oneshot::Sender<Result<String, String>>,
}

enum Wanted {
    Add(Box<Addition>),
    Remove(String),
}

struct Core {
    tree: StateTree,
    slots: HashMap<TrackerRef, u32>,
    states: StateReader,
    /// So many trackers find place in the maps.
    free: u32,
    steering: Option<SteeringCore>,
    health: Arc<Health>,
}

/// What `status` shows of steering.
#[derive(Clone)]
struct SteeringCore {
    counters: SteeredReader,
    /// Path slots, by service and role.
    members: Arc<HashMap<(String, Role), u32>>,
    uplinks: Vec<UplinkStatus>,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }
}

/// What `status` shows of a slot's state.
fn counters(state: &abi::State) -> Counters {
    let abi::State {
        send,
        receive,
        trouble,
        judge,
    } = state;
    let rtt = |ns: u64| (receive.received > 0).then_some(ns);
    Counters {
        sent: send.sent,
        received: receive.received,
        lost: judge.lost,
        duplicate: trouble.duplicate.into(),
        late: trouble.late.into(),
        corrupt: trouble.corrupt.into(),
        wrong_path: trouble.wrong_path.into(),
        elsewhere: receive.elsewhere.into(),
        skipped: judge.skipped,
        void: judge.void,
        rtt_last_ns: rtt(receive.rtt_last_ns),
        rtt_min_ns: rtt(receive.rtt_min_ns),
        rtt_avg_ns: rtt(receive
            .rtt_sum_ns
            .checked_div(receive.received)
            .unwrap_or(0)),
        rtt_max_ns: rtt(receive.rtt_max_ns),
        return_ttl: (receive.ttl > 0).then_some(receive.ttl),
        return_mac: (receive.hop_mac != [0; 6]).then_some(receive.hop_mac),
    }
}

/// A tracker that has its place in the kernel's maps.
struct Tracker {
    slot: u32,
    /// What tells it from who had the slot before.
    generation: u32,
    config: config::Tracker,
    entry: abi::Tracker,
    fault: Option<Fault>,
}

/// A member that has its place in the kernel's maps.
struct Attachment {
    service: u32,
    member: u32,
    service_name: String,
    config: Member,
    path: u32,
    plan: Option<MemberPlan>,
    /// What PATHS holds of it, or will once the sending thread has obeyed.
    entry: abi::Path,
    /// Since when the endpoint is asked for on another interface.
    moving: Option<Instant>,
    trackers: Vec<Tracker>,
}

/// A member that is removed: nothing is sent for it any more, and its places are not free yet.
struct Leaving {
    path: u32,
    trackers: Vec<Tracker>,
}

struct Daemon {
    config: Config,
    netlink: Netlink,
    /// Before what it shares maps with.
    steering: Option<Steering>,
    /// What the kernel refused of it, to be tried again.
    steering_fault: Option<String>,
    kernel: Kernel,
    sender: Sender,
    shared: Shared,
    members: Members,
    /// The tracker of each slot.
    by_slot: HashMap<u32, TrackerRef>,
    places: Places,
    leaving: Vec<Leaving>,
    epoch: u32,
    icmp_base: u16,
    neighbours: Neighbours,
    /// What probes may be redirected to, and since when.
    devices: HashMap<u32, u64>,
    /// More is followed than there are members to need it.
    is_following_more: bool,
    not_leaving: NotLeaving,
    refused: HashMap<u32, (String, Instant)>,
    /// Members whose last word was that no reply comes: their next hop is asked again and again.
    silent: HashSet<(u32, u32)>,
    suspicion: Suspicion,
    verdict_log: VerdictLog,
    journal: Journal,
    /// The journal can't be written.
    is_forgetful: bool,
    namespace: (u64, u64),
}

fn stamp() -> Stamp {
    Stamp {
        mono_ns: monotonic_ns(),
        boot_ns: boot_ns(),
        wall: jiff::Timestamp::now(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How long what the main loop is at may go on after SIGTERM, before it is cut short.
const GRACE: Duration = Duration::from_millis(1_500);

/// Makes this process ready to become a daemon: to be called before any thread is started and any file is opened. What
/// cannot be read or removed later fails early like this, and no signal is lost.
///
/// # Errors
/// When the kernel or the process lacks what a daemon needs.
pub fn prepare() -> Result<Watchdog> {
    preflight::require()?;
    limits::raise_open_files();
    privileges::limit_to_start()?;
    Watchdog::start()
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
    let socket = protocol::bind(&hub.socket)?;
    let name = hub.instance.clone();
    let is_first = !pins.journal().exists();

    let (changes, mut wanted) = mpsc::unbounded_channel();
    let started = tokio::select! {
        biased;
        () = watchdog.ended() => None,
        started = Daemon::start(config, pins, changes, watchdog.health().clone()) => Some(started?),
    };
    let Some((mut daemon, mut reports)) = started else {
        watchdog.phase(Phase::Ending);
        tracing::info!("ended while it started");
        if is_first || !keep {
            cleanup::remove(pins, &name).await?;
        }
        return Ok(());
    };
    let clients = clients::start(socket, daemon.config.hub.metrics, daemon.shared.clone())?;
    privileges::limit_to_run()?;
    tracing::info!("watching {}", daemon.extent());
    watchdog.status(format!("watching {}", daemon.extent()));
    watchdog.phase(Phase::Running);

    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut loading = None;
    let mut looking = None;
    let result = loop {
        watchdog.health().main.turn(monotonic_ns());
        let due = daemon.shared.core().tree.next_due();
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
                        daemon.reload(config).await;
                        watchdog.status(format!("watching {}", daemon.extent()));
                    }
                    Err(error) => {
                        for line in error.to_string().lines() {
                            tracing::error!("not reloaded, the running config stays: {line}");
                        }
                    }
                },
                changed = daemon.netlink.changed() => {
                    changed?;
                    daemon.reconcile().await;
                }
                report = reports.recv() => match report {
                    Some(report) => daemon.take(report).await,
                    None => return Err(anyhow!("the sending thread ended; this is a bug, please report the log")),
                },
                () = std::future::ready(()), if !daemon.leaving.is_empty() => daemon.free_some(),
                Some(change) = wanted.recv() => daemon.change(change, &mut wanted).await,
                at = retry.tick() => {
                    daemon.sender.health.timer.note(monotonic_ns(), nanoseconds(at.elapsed()));
                    daemon.shared.core().tree.keep_clock(stamp());
                    daemon.look_for_forgery();
                    daemon.end_log_window();
                    daemon.retry().await;
                    if looking.is_none() {
                        let checks = daemon.checks();
                        looking = Some(tokio::task::spawn_blocking(move || checks.look()));
                    }
                }
                detached = joined(&mut looking) => daemon.attach_detached(detached?).await,
                () = sleep_until(due) => {
                    let events = daemon.shared.core().tree.tick(stamp());
                    daemon.publish(events);
                }
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
    let ended = daemon.stop(keep, pins).await;
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

impl Daemon {
    async fn start(
        config: Config,
        pins: &Pins,
        changes: UnboundedSender<Change>,
        health: Arc<Health>,
    ) -> Result<(Self, UnboundedReceiver<Report>)> {
        pins.mend()?;
        let is_first = !pins.journal().exists();
        let mut started = Self::follow(&config, pins, &changes, &health, None).await;
        if let Ok(None) = started {
            tracing::warn!(
                "the maps that an earlier daemon left have no room for what is new; taking new ones"
            );
            started = Self::follow(&config, pins, &changes, &health, Some(Maps::Anew)).await;
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

    /// Starts where an earlier daemon of the instance ended, if one did. `None` where its maps, if they are to be
    /// taken over, have no room for what is new.
    async fn follow(
        config: &Config,
        pins: &Pins,
        changes: &UnboundedSender<Change>,
        health: &Arc<Health>,
        maps: Option<Maps>,
    ) -> Result<Option<(Self, UnboundedReceiver<Report>)>> {
        let mut netlink = Netlink::connect().await?;
        let namespace = restart::namespace()?;
        let (journal, predecessor) = restart::read_journal(pins, namespace);
        let Predecessor {
            snapshot,
            events,
            next,
            run,
        } = predecessor;
        // Filters have no links that could be taken over (before Linux 6.6).
        clsact::remove_left(pins);
        let mut config = config.clone();
        if let Some(snapshot) = &snapshot {
            let services = snapshot.services.iter().map(|saved| saved.service.clone());
            let services: Vec<_> = services.collect();
            install::say_taken_over(&install::keep_added(&mut config, &services));
        } else {
            // What was left without a journal, or elsewhere, is nothing to go on from.
            cleanup::release_pinned_neighbours(&netlink, pins).await;
            pins.clear()?;
        }
        let names = private_names(&config.hub.instance);
        let private = netlink.private_pair(&names).await?;
        let paths = loader::pinned_paths(pins);
        let wanted = install::sizes(&config);
        let (maps, sizes) = match maps {
            Some(maps) => (maps, wanted),
            None => loader::survey(pins, wanted)?,
        };
        let states = match (maps, &snapshot) {
            (Maps::Anew, Some(_)) => loader::pinned_states(pins),
            _ => Vec::new(),
        };
        let tag = restart::tag(&config.hub.state, pins)?;
        let (kernel, datapath) = Kernel::load(pins, maps, sizes, config.hub.mode, private, tag)?;
        let (sender, reports) =
            Sender::start(datapath, health.clone()).context("cannot start the sending thread")?;
        sender.command(Command::SetPorts(Arc::new(ports::read())));
        let tree = match &snapshot {
            Some(snapshot) => restart::tree(snapshot, &config),
            None => StateTree::new(&config, stamp()),
        };
        let shared = Shared {
            core: Arc::new(Mutex::new(Core {
                tree,
                slots: HashMap::new(),
                states: kernel.states(),
                free: 0,
                steering: None,
                health: sender.health.clone(),
            })),
            feed: EventFeed::new(EventLog::resume(CAPACITY, events, next).of_run(&run)),
            changes: changes.clone(),
        };
        let seed = monotonic_ns();
        let neighbours = Neighbours::new(netlink.requests().clone());
        let mut daemon = Self {
            netlink,
            sender,
            shared,
            members: Members::new(),
            by_slot: HashMap::new(),
            places: Places::new(sizes, config.hub.room),
            leaving: Vec::new(),
            epoch: seed as u32 >> 1,
            icmp_base: (seed >> 10) as u16,
            neighbours,
            devices: match maps {
                Maps::Adopt => kernel.devices().map(|ifindex| (ifindex, 0)).collect(),
                Maps::Grow | Maps::Anew => HashMap::new(),
            },
            is_following_more: false,
            not_leaving: NotLeaving::new(),
            refused: HashMap::new(),
            silent: HashSet::new(),
            steering: None,
            steering_fault: None,
            suspicion: Suspicion::default(),
            verdict_log: VerdictLog::default(),
            journal,
            is_forgetful: false,
            namespace,
            kernel,
            config,
        };
        if let Err(error) = daemon.keep_steering() {
            if snapshot.is_some() {
                daemon.kernel.keep();
            }
            return Err(error);
        }
        let mut events = Vec::new();
        if let Some(snapshot) = &snapshot {
            if snapshot.mode != daemon.config.hub.mode {
                daemon.kernel.forget_fast();
            }
            daemon.learn(&paths, snapshot);
            let entries = match maps {
                Maps::Adopt | Maps::Grow => daemon.kernel.trackers(),
                Maps::Anew => Vec::new(),
            };
            let Some(found) = daemon.install_left(snapshot, maps, &paths, states) else {
                daemon.kernel.keep();
                return Ok(None);
            };
            tracing::info!(
                "going on from an earlier daemon, with {} of its trackers",
                found.len()
            );
            let used = |place| daemon.left_used(snapshot, &paths, &entries, place);
            let replaced = daemon
                .shared
                .core()
                .tree
                .replace(&daemon.config, stamp(), used);
            events.extend(replaced);
            events.extend(daemon.catch_up(found));
        } else {
            daemon.install(&Pairs::default());
        }
        daemon.begin_journal(events);
        daemon.tell_room();
        daemon.follow_members().await;
        daemon.reconcile().await;
        daemon.kernel.forget_left();
        if daemon.steering.is_none() {
            steering::forget_left(pins);
        }
        daemon.release_left(&paths);
        daemon.sender.command(Command::Begin);
        Ok(Some((daemon, reports)))
    }

    /// Takes the instance off the hub; with `keep`, leaves maps and links pinned.
    async fn stop(mut self, keep: bool, pins: &Pins) -> Result<()> {
        if !keep {
            // The kernel may be busy with others' requests; the end does not wait for that.
            let released = self.neighbours.release();
            if tokio::time::timeout(RELEASE, released).await.is_err() {
                tracing::warn!(
                    "the kernel did not take all neighbour entries back within {} s; it goes on refreshing the others",
                    RELEASE.as_secs()
                );
            }
        }
        drop(self.sender);
        if keep {
            if let Some(steering) = self.steering {
                steering.keep();
            }
            self.kernel.keep();
            return Ok(());
        }
        drop(self.steering);
        drop(self.kernel);
        let pins = pins.remove().map(|_| ());
        let names = private_names(&self.config.hub.instance);
        let link = self.netlink.delete_private_pair(&names).await.map(|_| ());
        pins.and(link)
    }

    /// How much is watched, for the log.
    fn extent(&self) -> String {
        let count = |number: usize, what: &str| {
            format!("{number} {what}{}", if number == 1 { "" } else { "s" })
        };
        let services = count(self.config.services.len(), "service");
        format!("{services} with {}", count(self.by_slot.len(), "tracker"))
    }

    /// Does what clients want. Those that wait already are served together: bringing the kernel in line
    /// is the greater part of the work.
    async fn change(&mut self, first: Change, wanted: &mut UnboundedReceiver<Change>) {
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

    /// Takes what the engine found.
    async fn take(&mut self, report: Report) {
        match report {
            Report::Changed {
                slot,
                generation,
                verdict,
                cause,
                detection_ns,
                failure,
                moved,
                ..
            } => {
                let Some(&at) = self.by_slot.get(&slot) else {
                    return;
                };
                let member = (at.service, at.member);
                if !self.is_generation(at, generation) {
                    return;
                }
                let told = self.detail(member, at.tracker, cause);
                let detail = told
                    .or_else(|| self.describe_flows(moved?, at, cause))
                    .or_else(|| Some(self.describe(failure?, member)))
                    .or_else(|| self.next_hop_change(member, cause));
                let state = TrackerState {
                    verdict,
                    cause,
                    detail,
                };
                let (events, held) = {
                    let tree = &mut self.shared.core().tree;
                    let before = tree.held(at).cloned();
                    let events = tree.tracker_changed(at, state, stamp(), detection_ns);
                    let after = tree.held(at);
                    (events, (before.as_ref() != after).then(|| after.cloned()))
                };
                if let Some(held) = held {
                    self.journal_held(at, held.as_ref());
                }
                self.publish(events);
                if (verdict, cause) == (Verdict::Down, Cause::NoReply) {
                    self.silent.insert(member);
                    self.solicit_next_hop(member);
                } else {
                    self.silent.remove(&member);
                }
            }
            Report::NotLeaving {
                ifindex,
                since_mono_ns,
            } => {
                let link = self.netlink.observed.links.get(&ifindex);
                let caps = link.map(Link::caps).unwrap_or_default();
                let name = link.map_or_else(|| ifindex.to_string(), |link| link.name.clone());
                // Old news of a device that took no frames meanwhile and can again says nothing.
                let is_of_this_use = self
                    .devices
                    .get(&ifindex)
                    .is_some_and(|&used_mono_ns| since_mono_ns >= used_mono_ns);
                if is_of_this_use && self.not_leaving.insert(ifindex, caps).is_none() {
                    tracing::warn!(
                        "{name}: redirected probes do not leave it; sending by TC instead"
                    );
                    self.reconcile().await;
                } else {
                    tracing::debug!("{name}: probes do not leave it");
                }
            }
            Report::NeverAnswered {
                ifindex,
                since_mono_ns,
            } => {
                let used = self.devices.get(&ifindex);
                if let Some(link) = self.netlink.observed.links.get(&ifindex)
                    && used.is_some_and(|&used_mono_ns| since_mono_ns >= used_mono_ns)
                    && self.not_leaving.insert(ifindex, link.caps()).is_none()
                {
                    tracing::info!(
                        "{}: no redirected probe was answered yet; sending by TC before a service is said to be down",
                        link.name
                    );
                    self.reconcile().await;
                }
            }
            Report::SendFailed(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                let text = format_args!(
                    "cannot send any probe: {error}; `tracker doctor` tells what is missing"
                );
                repeats::log(Level::ERROR, "send failed", text);
            }
            Report::Slept(ns) => {
                tracing::warn!(
                    "the machine slept for {} ms; unanswered probes of that time count as nothing",
                    ns / 1_000_000
                );
            }
            Report::Stalled(late_ns) => {
                let text = format_args!(
                    "the hub did not keep up: {} ms late; unanswered probes of that time count as nothing",
                    late_ns / 1_000_000
                );
                repeats::warn("stalled", text);
            }
        }
    }

    /// Says that replies are forged, replayed or altered.
    fn look_for_forgery(&mut self) {
        let Ok(counted) = self.kernel.counters() else {
            return;
        };
        let sum = |field: fn(&abi::Counters) -> u64| counted.iter().map(field).sum();
        let hub = Counts {
            corrupt: sum(|counters| counters.reply_corrupt),
            duplicate: sum(|counters| counters.reply_duplicate),
            stale: sum(|counters| counters.reply_stale),
        };
        let (by_slot, states) = (&self.by_slot, self.kernel.states());
        let of = |slot: u32| {
            by_slot.get(&slot)?;
            let trouble = states.state(slot).trouble;
            Some(Counts {
                corrupt: trouble.corrupt.into(),
                duplicate: trouble.duplicate.into(),
                stale: 0,
            })
        };
        let slots = self.kernel.sizes().trackers;
        let now = Instant::now().into_std();
        let Some(finding) = self.suspicion.look(now, hub, slots, of) else {
            return;
        };
        let Counts {
            corrupt,
            duplicate,
            stale,
        } = finding.counts;
        let at = finding.slot.and_then(|slot| self.by_slot.get(&slot));
        let member = at.and_then(|at| self.members.get(&(at.service, at.member)));
        if let (Some(at), Some(member)) = (at, member)
            && let Some(tracker) = member.trackers.get(at.tracker as usize)
        {
            tracing::warn!(
                "{}/{} {}: {corrupt} packets with its mark fail the token (corrupt), {duplicate} replies came again \
                 (duplicate); none counts",
                member.service_name,
                member.config.role,
                tracker.config.behind
            );
        } else if stale > 0 {
            tracing::warn!(
                "{stale} packets bear a probe's mark and are of no tracker of this daemon; they were passed on"
            );
        }
    }

    /// Solicits the next hop of a member that gets no reply: another box may have taken its place without announcing itself.
    fn solicit_next_hop(&mut self, member: (u32, u32)) {
        let member = self.members.get(&member);
        if let Some(key) = member.and_then(|member| member.plan.as_ref()?.neighbour) {
            self.neighbours.solicit(&self.netlink.observed, key);
        }
    }

    /// How the next hop's MAC address changed shortly before a verdict did.
    fn next_hop_change(&self, member: (u32, u32), cause: Cause) -> Option<String> {
        let plan = self.members.get(&member)?.plan.as_ref()?;
        let is_explained = matches!(cause, Cause::Replied | Cause::NoReply);
        self.neighbours
            .change(plan.neighbour.filter(|_| is_explained)?)
    }

    /// Whether a report is about this tracker, not about who had its slot before.
    fn is_generation(&self, at: TrackerRef, generation: u32) -> bool {
        let member = self.members.get(&(at.service, at.member));
        let tracker = member.and_then(|member| member.trackers.get(at.tracker as usize));
        tracker.is_some_and(|tracker| tracker.generation == generation)
    }

    /// The rest of the story of a tracker's cause.
    fn detail(&self, member: (u32, u32), tracker: u32, cause: Cause) -> Option<String> {
        let member = self.members.get(&member)?;
        let of_path = member
            .plan
            .as_ref()
            .and_then(|plan| plan.path.as_ref().err());
        let probing = |plan: &MemberPlan| plan.probings.get(tracker as usize)?.clone().ok();
        if cause == Cause::NoReply
            && let Some(probing) = member.plan.as_ref().and_then(probing)
            && probing.is_stranded
        {
            return Some(Probing::STRANDED.to_owned());
        }
        if cause == Cause::NoReply
            && let Some(foreign) = member.plan.as_ref().and_then(|plan| self.foreign_xdp(plan))
        {
            return Some(foreign);
        }
        let installed = member.trackers.get(tracker as usize)?;
        if cause == Cause::NoReply {
            let state = self.kernel.states().state(installed.slot);
            let fall = installed.config.fall;
            return elsewhere(&state, fall, installed.config.behind);
        }
        if cause == Cause::WrongPath {
            let trouble = self.kernel.states().state(installed.slot).trouble;
            let name = self
                .netlink
                .observed
                .links
                .get(&trouble.wrong_path_ifindex)?
                .name
                .as_str();
            return Some(wrong_path(member, tracker, &trouble, name));
        }
        if matches!(cause, Cause::Unreachable | Cause::Refused) {
            return complaint(&self.kernel.states().state(installed.slot).trouble);
        }
        let of_source = installed.fault.as_ref();
        let fault = of_path
            .into_iter()
            .chain(of_source)
            .find(|fault| fault.cause == cause);
        fault.map(|fault| fault.detail.clone())
    }

    /// The XDP program of others that sees a member's replies before the receive program does.
    fn foreign_xdp(&self, plan: &MemberPlan) -> Option<String> {
        plan.receive.iter().find_map(|ifindex| {
            let link = self.netlink.observed.links.get(ifindex)?;
            let id = link.xdp_program?;
            let uplinks = self.config.steering.iter();
            let mut uplinks = uplinks.flat_map(|steering| &steering.uplinks);
            let is_ours = uplinks.any(|name| link.names().any(|one| one == name));
            let is_behind = self.kernel.mode(*ifindex) == Some(Mode::Tc) && !is_ours;
            is_behind.then(|| {
                let name = &link.name;
                format!(
                    "XDP program {id} of somebody else on {name} sees replies first and may drop them"
                )
            })
        })
    }

    /// Why a tracker that is answered is so by another flow than before.
    fn describe_flows(&self, moved: Moved, at: TrackerRef, cause: Cause) -> Option<String> {
        if cause != Cause::Replied {
            return None;
        }
        let member = self.members.get(&(at.service, at.member))?;
        let tracker = member.trackers.get(at.tracker as usize)?;
        let what = match tracker.entry.probe {
            abi::Probe::Icmp => "identifier",
            abi::Probe::Udp | abi::Probe::Tcp | abi::Probe::Stamp => "source port",
        };
        let Moved {
            from,
            to,
            is_old_lost,
        } = moved;
        Some(match is_old_lost {
            true => format!(
                "old flows are still dropped, new ones pass: {what} {to} is answered, {from} is not"
            ),
            false => format!("answered by a new flow, {what} {to}; that of {what} {from} failed"),
        })
    }

    /// How a member's probes did not leave the hub.
    fn describe(&self, failure: SendFailure, member: (u32, u32)) -> String {
        let plan = self
            .members
            .get(&member)
            .and_then(|member| member.plan.as_ref());
        let link = plan
            .and_then(MemberPlan::ifindex)
            .and_then(|ifindex| self.netlink.observed.links.get(&ifindex));
        let name = link.map_or("its interface", |link| link.name.as_str());
        match failure {
            SendFailure::Call(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                format!("the kernel does not run the send program: {error}")
            }
            SendFailure::Frame => {
                format!("the kernel gave no frame for the packet, or would not hand it to {name}")
            }
            SendFailure::Device => format!("what is handed to {name} does not leave it"),
        }
    }
}

/// What was wrong with the way of a reply that arrived on the interface `name`.
fn wrong_path(
    member: &Attachment,
    tracker: u32,
    trouble: &abi::TroubleState,
    name: &str,
) -> String {
    let own = member.plan.as_ref().and_then(MemberPlan::ifindex);
    let by =
        own == Some(trouble.wrong_path_ifindex) && member.config.return_hop == ReturnHop::Endpoint;
    let ttl = trouble.wrong_path_ttl;
    let expected = member.config.trackers.get(tracker as usize);
    match expected.and_then(|tracker| tracker.return_ttl) {
        Some(expected) if expected != ttl => {
            format!("a reply arrived on {name} with TTL {ttl}, not {expected}")
        }
        _ if by => {
            format!("a reply arrived on {name}, brought by another MAC address than the endpoint's")
        }
        _ => format!("a reply arrived on {name}"),
    }
}

/// From where the replies to the latest probes came, if not from the address and port that were asked.
fn elsewhere(state: &abi::State, fall: u8, behind: IpAddr) -> Option<String> {
    let abi::State { trouble, judge, .. } = state;
    let is_latest = trouble.complaint == abi::Complaint::Elsewhere
        && trouble.complaint_sequence + u64::from(fall) > judge.judged;
    if !is_latest {
        return None;
    }
    let from = loader::address(behind.into(), trouble.complaint_from);
    Some(match from == behind {
        true => format!("replies come from another port of {from} than the one that is asked"),
        false => format!("replies come from {from}, not from {behind}"),
    })
}

/// Who complained last about a tracker's probes, and how.
fn complaint(trouble: &abi::TroubleState) -> Option<String> {
    let from = trouble.complaint_from;
    let (protocol, from) = match trouble.complaint {
        // That of a reset is the behind address, whoever sent it.
        abi::Complaint::None | abi::Complaint::Reset | abi::Complaint::Elsewhere => return None,
        abi::Complaint::Icmp => ("ICMP", loader::address(abi::Family::Ipv4, from)),
        abi::Complaint::Icmpv6 => ("ICMPv6", loader::address(abi::Family::Ipv6, from)),
        // Type 3 of ICMP is type 1 of ICMPv6.
        abi::Complaint::Port if trouble.complaint_type == 3 => {
            ("ICMP", loader::address(abi::Family::Ipv4, from))
        }
        abi::Complaint::Port => ("ICMPv6", loader::address(abi::Family::Ipv6, from)),
    };
    let (kind, code) = (trouble.complaint_type, trouble.complaint_code);
    let meaning = match protocol {
        "ICMP" => icmp_words(kind, code),
        _ => icmpv6_words(kind, code),
    };
    let meaning = meaning.map_or(String::new(), |words| format!(" ({words})"));
    Some(format!(
        "{protocol} type {kind} code {code}{meaning} from {from}"
    ))
}

/// What an ICMP error says (IANA's registry of ICMP parameters).
const fn icmp_words(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "fragmentation needed",
        (3, 5) => "source route failed",
        (3, 6) => "network unknown",
        (3, 7) => "host unknown",
        (3, 9) => "network administratively prohibited",
        (3, 10) => "host administratively prohibited",
        (3, 11) => "network unreachable for this type of service",
        (3, 12) => "host unreachable for this type of service",
        (3, 13) => "administratively prohibited",
        (11, 0) => "TTL exceeded, as in a routing loop",
        (11, 1) => "fragment reassembly time exceeded",
        (12, _) => "parameter problem",
        _ => return None,
    })
}

/// What an ICMPv6 error says (IANA's registry of ICMPv6 parameters).
const fn icmpv6_words(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "no route to destination",
        (1, 1) => "administratively prohibited",
        (1, 2) => "beyond scope of source address",
        (1, 3) => "address unreachable",
        (1, 4) => "port unreachable",
        (1, 5) => "source address failed policy",
        (1, 6) => "reject route",
        (2, _) => "packet too big",
        (3, 0) => "hop limit exceeded, as in a routing loop",
        (3, 1) => "fragment reassembly time exceeded",
        (4, _) => "parameter problem",
        _ => return None,
    })
}

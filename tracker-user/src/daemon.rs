//! The loop that joins everything: what the kernel says, what the engine finds, what clients ask.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc::UnboundedReceiver,
    time::{Instant, MissedTickBehavior},
};
use tracker_ebpf::{
    abi::{self, Family, Via},
    verdict::{Cause, Rules, Verdict},
};

use crate::{
    board::{Board, MemberPath, Stamp, TrackerRef, TrackerState},
    config::{self, Config, Member},
    engine::{Command, Report, TrackerSpec, Window},
    kernel::{
        bpffs::{self, Pins},
        interfaces::Neighbour,
        loader::{self, Kernel, Sizes, StateReader},
        netlink::Netlink,
        plane::monotonic_ns,
        preflight,
    },
    plan::{self, Fault, MemberPlan, Ways},
    report::{
        events::{CAPACITY, EventFeed, EventLog},
        metrics,
        protocol::{self, Api},
        status::{Counters, Status},
    },
    sender::Sender,
    slots::{Slots, Words},
};

/// How often what the kernel gave up on (a next hop, an attachment) is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often at most a next hop is asked to confirm its MAC address.
const CONFIRM: Duration = Duration::from_secs(5);

/// What clients are answered from.
#[derive(Clone)]
struct Shared {
    core: Arc<Mutex<Core>>,
    feed: EventFeed,
}

struct Core {
    board: Board,
    slots: HashMap<TrackerRef, u32>,
    states: StateReader,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic in another task leaves the board as it was; answering from it is better than not.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Api for Shared {
    async fn status(&self, name: Option<&str>) -> Result<Status, String> {
        let core = self.core();
        let counters = |at: TrackerRef| {
            core.slots
                .get(&at)
                .map_or_else(Default::default, |slot| counters(&core.states.state(*slot)))
        };
        match name {
            Some(name) => core.board.status_of(name, counters),
            None => Ok(core.board.status(counters)),
        }
    }

    fn events(&self) -> EventFeed {
        self.feed.clone()
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
        sent: send.sent.saturating_sub(judge.not_sent),
        received: receive.received,
        lost: judge.lost,
        duplicate: trouble.duplicate.into(),
        late: trouble.late.into(),
        corrupt: trouble.corrupt.into(),
        wrong_path: trouble.wrong_path.into(),
        skipped: judge.skipped,
        rtt_last_ns: rtt(receive.rtt_last_ns),
        rtt_min_ns: rtt(receive.rtt_min_ns),
        rtt_avg_ns: rtt(receive
            .rtt_sum_ns
            .checked_div(receive.received)
            .unwrap_or(0)),
        rtt_max_ns: rtt(receive.rtt_max_ns),
    }
}

/// A tracker that has its place in the kernel's maps.
struct Tracker {
    slot: u32,
    words: u32,
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
    trackers: Vec<Tracker>,
}

struct Daemon {
    config: Config,
    netlink: Netlink,
    kernel: Kernel,
    sender: Sender,
    shared: Shared,
    members: Vec<Attachment>,
    /// The tracker of each slot: position in `members` and in its trackers.
    by_slot: HashMap<u32, TrackerRef>,
    slots: Slots,
    paths: Slots,
    words: Words,
    epoch: u32,
    icmp_base: u16,
    neighbours: HashSet<(u32, IpAddr)>,
    last_macs: HashMap<(u32, IpAddr), [u8; 6]>,
    devices: HashSet<u32>,
    not_leaving: HashSet<u32>,
    refused: HashMap<u32, (String, Instant)>,
    confirmed: HashMap<(u32, IpAddr), Instant>,
}

/// Names of the two private interfaces of an instance; they fit the kernel's 15 characters.
pub fn private_names(instance: &str) -> [String; 2] {
    // FNV-1a: stable across builds, so that `cleanup` finds what an older daemon made.
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    ["a", "b"].map(|end| format!("trk-{hash:08x}{end}"))
}

fn stamp() -> Stamp {
    Stamp {
        mono_ns: monotonic_ns(),
        wall: jiff::Timestamp::now(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn window_words(tracker: &config::Tracker) -> u32 {
    Window::words(nanoseconds(tracker.interval), nanoseconds(tracker.timeout))
}

/// Map sizes for a config, with room for services that come later.
fn sizes(config: &Config) -> Sizes {
    let members = config.services.iter().flat_map(|service| &service.members);
    let trackers = members.clone().flat_map(|member| &member.trackers);
    let with_room = |count: usize| count + (count / 16).max(64);
    let count = trackers.clone().count();
    let words: usize = trackers.map(|tracker| window_words(tracker) as usize).sum();
    Sizes {
        trackers: u32::try_from(with_room(count)).unwrap_or(u32::MAX),
        paths: u32::try_from(with_room(members.count())).unwrap_or(u32::MAX),
        words: u32::try_from(words + (words / 16).max(256)).unwrap_or(u32::MAX),
    }
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, or from leaving a clean hub behind.
pub async fn run(file: &Path, config: Config, keep: bool) -> Result<()> {
    preflight::require()?;
    let hub = &config.hub;
    bpffs::ensure_mounted(&hub.bpffs)?;
    let pins = Pins::new(&hub.bpffs, &hub.instance);
    pins.create()?;
    let _lock = pins.lock()?;
    let (listener, _socket) = protocol::bind(&hub.socket)?;
    let metrics = match hub.metrics {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve metrics on {address}; set hub.metrics to a free address")
        })?),
        None => None,
    };
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let (mut daemon, mut reports) = Daemon::start(config, &pins).await?;
    let clients = tokio::spawn(protocol::serve(listener, daemon.shared.clone()));
    let scrapes =
        metrics.map(|listener| tokio::spawn(metrics::serve(listener, daemon.shared.clone())));
    tracing::info!("watching {}", daemon.extent());

    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        let due = daemon.shared.core().board.next_due();
        let due = due.map(|due_ns| {
            Instant::now() + Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()))
        });
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => match config::load(file) {
                Ok(config) => daemon.reload(config).await,
                Err(error) => {
                    for line in error.to_string().lines() {
                        tracing::error!("not reloaded, the running config stays: {line}");
                    }
                }
            },
            changed = daemon.netlink.changed() => {
                if let Err(error) = changed.and(daemon.netlink.follow_up().await) {
                    break Err(error);
                }
                daemon.reconcile().await;
            }
            report = reports.recv() => match report {
                Some(report) => daemon.take(report).await,
                None => break Err(anyhow!("the sending thread ended; this is a bug, please report the log")),
            },
            _ = retry.tick() => daemon.retry().await,
            () = sleep_until(due) => {
                let events = daemon.shared.core().board.tick(stamp());
                daemon.shared.feed.publish(events);
            }
        }
    };
    clients.abort();
    if let Some(scrapes) = scrapes {
        scrapes.abort();
    }
    let ended = daemon.stop(keep, &pins).await;
    result.and(ended)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    async fn start(config: Config, pins: &Pins) -> Result<(Self, UnboundedReceiver<Report>)> {
        let mut netlink = Netlink::connect().await?;
        // What a killed daemon of this instance left.
        release_pinned_neighbours(&netlink, pins).await;
        pins.clear()?;
        let names = private_names(&config.hub.instance);
        netlink.delete_link(&names[0]).await?;
        let private_ifindex = netlink.make_private_pair(&names).await?;
        let sizes = sizes(&config);
        let loaded = Kernel::load(pins, sizes, private_ifindex);
        let (kernel, plane) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                netlink.delete_link(&names[0]).await?;
                pins.remove()?;
                return Err(error);
            }
        };
        let (sender, reports) = Sender::start(plane).context("cannot start the sending thread")?;
        let shared = Shared {
            core: Arc::new(Mutex::new(Core {
                board: Board::new(&config, stamp()),
                slots: HashMap::new(),
                states: kernel.states(),
            })),
            feed: EventFeed::new(EventLog::new(CAPACITY, 1)),
        };
        let seed = monotonic_ns();
        let mut daemon = Self {
            netlink,
            kernel,
            sender,
            shared,
            members: Vec::new(),
            by_slot: HashMap::new(),
            slots: Slots::new(sizes.trackers),
            paths: Slots::new(sizes.paths),
            words: Words::new(sizes.words),
            epoch: seed as u32,
            icmp_base: (seed >> 10) as u16,
            neighbours: HashSet::new(),
            last_macs: HashMap::new(),
            devices: HashSet::new(),
            not_leaving: HashSet::new(),
            refused: HashMap::new(),
            confirmed: HashMap::new(),
            config,
        };
        daemon.install(Vec::new())?;
        daemon.follow_routes().await;
        daemon.reconcile().await;
        Ok((daemon, reports))
    }

    /// Takes the instance off the hub; with `keep`, leaves maps and links pinned.
    async fn stop(mut self, keep: bool, pins: &Pins) -> Result<()> {
        for (ifindex, ip) in std::mem::take(&mut self.neighbours) {
            if self.netlink.observed.links.contains_key(&ifindex)
                && let Err(error) = self.netlink.release_neighbour(ifindex, ip).await
            {
                tracing::warn!("{error:#}; the kernel goes on refreshing it");
            }
        }
        drop(self.sender);
        if keep {
            self.kernel.keep();
            return Ok(());
        }
        drop(self.kernel);
        let pins = pins.remove().map(|_| ());
        let names = private_names(&self.config.hub.instance);
        let link = self.netlink.delete_link(&names[0]).await.map(|_| ());
        pins.and(link)
    }

    /// Gives every member and tracker of the config its place, keeping those of `old` that are the
    /// same; the rest of `old` gives its places back.
    fn install(&mut self, mut old: Vec<Attachment>) -> Result<()> {
        let mut refs = HashMap::new();
        let services = self.config.services.clone();
        for (service_at, service) in services.iter().enumerate() {
            for (member_at, member) in service.members.iter().enumerate() {
                let known = old
                    .iter()
                    .position(|known| is_same(known, &service.name, member));
                let mut attachment = match known {
                    Some(at) => old.swap_remove(at),
                    None => Attachment {
                        service: 0,
                        member: 0,
                        service_name: service.name.clone(),
                        config: member.clone(),
                        path: self.paths.take().ok_or_else(|| full("members"))?,
                        plan: None,
                        trackers: Vec::new(),
                    },
                };
                attachment.service = service_at as u32;
                attachment.member = member_at as u32;
                attachment.config = member.clone();
                let mut before = std::mem::take(&mut attachment.trackers);
                for (tracker_at, tracker) in member.trackers.iter().enumerate() {
                    let same = before.iter().position(|known| known.config == *tracker);
                    let installed = match same {
                        Some(at) => before.swap_remove(at),
                        None => {
                            // Its source is not known before the next reconciliation.
                            attachment.plan = None;
                            self.install_tracker(tracker, attachment.path)?
                        }
                    };
                    let at = TrackerRef {
                        service: service_at as u32,
                        member: member_at as u32,
                        tracker: tracker_at as u32,
                    };
                    refs.insert(installed.slot, at);
                    attachment.trackers.push(installed);
                }
                for tracker in before {
                    self.uninstall_tracker(&tracker);
                }
                self.members.push(attachment);
            }
        }
        for attachment in old {
            for tracker in &attachment.trackers {
                self.uninstall_tracker(tracker);
            }
            self.paths.give(attachment.path);
        }
        self.shared.core().slots = refs.iter().map(|(slot, at)| (*at, *slot)).collect();
        self.by_slot = refs;
        Ok(())
    }

    fn install_tracker(&mut self, tracker: &config::Tracker, path: u32) -> Result<Tracker> {
        let words = window_words(tracker);
        let slot = self.slots.take().ok_or_else(|| full("trackers"))?;
        let first = self.words.take(words).ok_or_else(|| full("trackers"))?;
        self.epoch = self.epoch.wrapping_add(1);
        let entry = abi::Tracker {
            behind: address_bytes(tracker.behind),
            timeout_ns: nanoseconds(tracker.timeout),
            path,
            epoch: self.epoch,
            window_first: first,
            window_mask: words - 1,
            payload: tracker.payload,
            icmp_id: self.icmp_base ^ slot as u16,
            family: family(tracker.behind),
            ..Default::default()
        };
        self.kernel.reset(slot, &entry);
        let fault = Fault::pending();
        self.sender.command(Command::Install(TrackerSpec {
            slot,
            epoch: entry.epoch,
            path,
            interval_ns: nanoseconds(tracker.interval),
            timeout_ns: nanoseconds(tracker.timeout),
            rules: Rules {
                fall: tracker.fall,
                rise: tracker.rise,
            },
            window: Window {
                first,
                mask: words - 1,
            },
            fault: Some(fault.cause),
        }));
        Ok(Tracker {
            slot,
            words,
            config: tracker.clone(),
            entry,
            fault: Some(fault),
        })
    }

    fn uninstall_tracker(&mut self, tracker: &Tracker) {
        self.sender.command(Command::Remove(tracker.slot));
        let gone = abi::Tracker {
            active: 0,
            ..tracker.entry
        };
        if let Err(error) = self.kernel.set_tracker(tracker.slot, &gone) {
            tracing::warn!("{error:#}");
        }
        self.slots.give(tracker.slot);
        self.words.give(tracker.entry.window_first, tracker.words);
    }

    /// How much is watched, for the log.
    fn extent(&self) -> String {
        let count = |number: usize, what: &str| {
            format!("{number} {what}{}", if number == 1 { "" } else { "s" })
        };
        let services = count(self.config.services.len(), "service");
        format!("{services} with {}", count(self.by_slot.len(), "tracker"))
    }

    async fn reload(&mut self, config: Config) {
        match self.try_reload(config).await {
            Ok(()) => tracing::info!("reloaded, watching {}", self.extent()),
            Err(error) => tracing::error!("not reloaded, the running config stays: {error:#}"),
        }
    }

    async fn try_reload(&mut self, config: Config) -> Result<()> {
        let (old, new) = (&self.config.hub, &config.hub);
        if (
            &old.instance,
            &old.socket,
            &old.bpffs,
            &old.metrics,
            old.mode,
        ) != (
            &new.instance,
            &new.socket,
            &new.bpffs,
            &new.metrics,
            new.mode,
        ) {
            bail!("instance, socket, bpffs, metrics and mode of [hub] change only with a restart");
        }
        self.check_room(&config)?;
        let events = self.shared.core().board.replace(&config, stamp());
        self.config = config;
        let old = std::mem::take(&mut self.members);
        self.install(old)?;
        self.shared.feed.publish(events);
        self.follow_routes().await;
        self.reconcile().await;
        Ok(())
    }

    /// Whether what is new in a config finds a place beside what is there: nothing is taken.
    fn check_room(&self, config: &Config) -> Result<()> {
        let (mut slots, mut paths, mut words) =
            (self.slots.clone(), self.paths.clone(), self.words.clone());
        for service in &config.services {
            for member in &service.members {
                let known = self
                    .members
                    .iter()
                    .find(|known| is_same(known, &service.name, member));
                if known.is_none() {
                    paths.take().ok_or_else(|| full("members"))?;
                }
                let old = known.map_or(&[][..], |known| &known.trackers);
                for tracker in &member.trackers {
                    if !old.iter().any(|old| old.config == *tracker) {
                        slots.take().ok_or_else(|| full("trackers"))?;
                        words
                            .take(window_words(tracker))
                            .ok_or_else(|| full("trackers"))?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn follow_routes(&mut self) {
        let unnamed = self
            .members
            .iter()
            .filter(|member| member.config.interface.is_none());
        let endpoints = unnamed.map(|member| member.config.endpoint).collect();
        self.netlink.follow_routes(endpoints).await;
    }

    /// Brings the kernel in line with what is configured and observed.
    async fn reconcile(&mut self) {
        for (key, neighbour) in &self.netlink.observed.neighbours {
            match neighbour {
                Neighbour::Resolved(mac) if self.neighbours.contains(key) => {
                    self.last_macs.insert(*key, *mac);
                }
                Neighbour::Failed => {
                    self.last_macs.remove(key);
                }
                Neighbour::Resolved(_) | Neighbour::Asking => {}
            }
        }
        let links = &self.netlink.observed.links;
        self.last_macs
            .retain(|(ifindex, _), _| links.get(ifindex).is_some_and(|link| link.is_running));
        self.not_leaving
            .retain(|ifindex| links.contains_key(ifindex));
        let ways = Ways {
            mode: self.config.hub.mode,
            not_leaving: &self.not_leaving,
            last_macs: &self.last_macs,
        };
        let observed = &self.netlink.observed;
        let mut plans: Vec<MemberPlan> = self
            .members
            .iter()
            .map(|member| plan::member(&member.config, observed, ways))
            .collect();

        self.attach(&plans);
        for plan in &mut plans {
            let refused = plan
                .receive
                .iter()
                .find_map(|ifindex| self.refused.get(ifindex));
            if let (Some((why, _)), Ok(_)) = (refused, &plan.path) {
                plan.path = Err(Fault::cannot_receive(why));
            }
        }
        self.set_devices(&plans);
        self.manage_neighbours(&plans).await;
        for (at, plan) in plans.into_iter().enumerate() {
            self.apply(at, plan);
        }
    }

    /// Attaches the receive program wherever replies may arrive, and nowhere else.
    fn attach(&mut self, plans: &[MemberPlan]) {
        let links = &self.netlink.observed.links;
        let wanted: HashSet<u32> = plans
            .iter()
            .flat_map(|plan| &plan.receive)
            .copied()
            .collect();
        for ifindex in self.kernel.attached() {
            if !wanted.contains(&ifindex) || !links.contains_key(&ifindex) {
                self.kernel.detach(ifindex);
            }
        }
        let now = Instant::now();
        self.refused.retain(|ifindex, _| wanted.contains(ifindex));
        for ifindex in wanted {
            let is_fresh = |(_, since): &(String, Instant)| now - *since < RETRY;
            if self.kernel.mode(ifindex).is_some()
                || self.refused.get(&ifindex).is_some_and(is_fresh)
            {
                continue;
            }
            let Some(link) = links.get(&ifindex) else {
                continue;
            };
            match self.kernel.attach(link, self.config.hub.mode) {
                Ok(mode) => {
                    self.refused.remove(&ifindex);
                    tracing::info!("{}: receiving by {}", link.name, mode.as_str());
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    let before = self.refused.insert(ifindex, (why.clone(), now));
                    if before.is_none_or(|(before, _)| before != why) {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }

    /// Keeps the redirect targets to the devices that are used as such.
    fn set_devices(&mut self, plans: &[MemberPlan]) {
        let paths = plans.iter().filter_map(|plan| plan.path.as_ref().ok());
        let wanted: HashSet<u32> = paths
            .filter(|path| path.via == Via::XdpRedirect)
            .map(|path| path.ifindex)
            .collect();
        for &ifindex in wanted.difference(&self.devices) {
            if let Err(error) = self.kernel.set_device(ifindex, true) {
                tracing::error!("{error:#}");
            }
        }
        for &ifindex in self.devices.difference(&wanted) {
            if let Err(error) = self.kernel.set_device(ifindex, false) {
                tracing::error!("{error:#}");
            }
        }
        self.devices = wanted;
    }

    /// Has the kernel keep every endpoint's neighbour entry, and no other.
    async fn manage_neighbours(&mut self, plans: &[MemberPlan]) {
        let wanted: HashSet<(u32, IpAddr)> =
            plans.iter().filter_map(|plan| plan.neighbour).collect();
        for &(ifindex, ip) in &wanted {
            // An entry that the kernel dropped (interface down, `ip neigh flush`) is made anew.
            let is_there = self
                .netlink
                .observed
                .neighbours
                .contains_key(&(ifindex, ip));
            if (!is_there || !self.neighbours.contains(&(ifindex, ip)))
                && let Err(error) = self.netlink.manage_neighbour(ifindex, ip).await
            {
                tracing::debug!("{error:#}");
            }
        }
        for &(ifindex, ip) in self.neighbours.difference(&wanted) {
            if self
                .netlink
                .observed
                .links
                .get(&ifindex)
                .is_some_and(|link| link.is_running)
                && let Err(error) = self.netlink.release_neighbour(ifindex, ip).await
            {
                tracing::debug!("{error:#}");
            }
        }
        self.neighbours = wanted;
    }

    /// Installs one member's plan where it differs from the present one.
    fn apply(&mut self, at: usize, plan: MemberPlan) {
        let member = &mut self.members[at];
        let mode = plan
            .interface
            .as_ref()
            .and_then(|(ifindex, _)| self.kernel.mode(*ifindex));
        let path = MemberPath {
            interface: plan
                .interface
                .as_ref()
                .map(|(_, name)| name.clone())
                .or_else(|| member.config.interface.clone()),
            mode,
            send: plan.send_way(),
        };
        self.shared
            .core()
            .board
            .member_path(member.service, member.member, path);
        if member.plan.as_ref() == Some(&plan) {
            return;
        }
        for (tracker, source) in member.trackers.iter_mut().zip(&plan.sources) {
            self.epoch = self.epoch.wrapping_add(1);
            set_source(&mut self.kernel, &self.sender, tracker, source, self.epoch);
        }
        let (entry, cause) = match &plan.path {
            Ok(entry) => (*entry, None),
            Err(fault) => (abi::Path::default(), Some(fault.cause)),
        };
        let entry = abi::Path {
            endpoint: address_bytes(member.config.endpoint),
            endpoint_family: family(member.config.endpoint),
            interface: plan.neighbour.map_or(0, |(ifindex, _)| ifindex),
            ..entry
        };
        member.plan = Some(plan);
        self.sender
            .command(Command::SetPath(member.path, entry, cause));
    }

    /// Tries again what was refused: attachments, and endpoints that did not answer.
    async fn retry(&mut self) {
        for member in &self.members {
            if let Some(plan) = &member.plan
                && let Some(key) = plan.neighbour
                && !matches!(
                    self.netlink.observed.neighbours.get(&key),
                    Some(Neighbour::Resolved(_))
                )
                && let Err(error) = self.netlink.manage_neighbour(key.0, key.1).await
            {
                tracing::debug!("{error:#}");
            }
        }
        if !self.refused.is_empty() {
            self.reconcile().await;
        }
    }

    /// Takes what the engine found.
    async fn take(&mut self, report: Report) {
        match report {
            Report::Changed {
                slot,
                verdict,
                cause,
                detection_ns,
                ..
            } => {
                let Some(&at) = self.by_slot.get(&slot) else {
                    return;
                };
                let detail = self.detail(at, cause);
                let state = TrackerState {
                    verdict,
                    cause,
                    detail,
                };
                let events =
                    self.shared
                        .core()
                        .board
                        .tracker_changed(at, state, stamp(), detection_ns);
                self.shared.feed.publish(events);
                if (verdict, cause) == (Verdict::Down, Cause::NoReply) {
                    self.confirm_next_hop(at);
                }
            }
            Report::NotLeaving(ifindex) => {
                let name = self
                    .netlink
                    .observed
                    .links
                    .get(&ifindex)
                    .map(|link| link.name.clone());
                let name = name.unwrap_or_else(|| ifindex.to_string());
                if self.devices.contains(&ifindex) && self.not_leaving.insert(ifindex) {
                    tracing::warn!(
                        "{name}: redirected probes do not leave it; sending by TC instead"
                    );
                    self.reconcile().await;
                } else {
                    tracing::debug!("{name}: probes do not leave it");
                }
            }
            Report::SendFailed(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::error!(
                    "cannot send any probe: {error}; `tracker doctor` tells what is missing"
                );
            }
            Report::Stalled(late_ns) => {
                tracing::warn!(
                    "the hub did not keep up: {} ms late; unanswered probes of that time count as nothing",
                    late_ns / 1_000_000
                );
            }
        }
    }

    /// A service that stopped answering may have been replaced by a box with another MAC address: has
    /// the kernel ask, which the hub's own traffic would do only after up to a minute.
    fn confirm_next_hop(&mut self, at: TrackerRef) {
        let member = self
            .members
            .iter()
            .find(|member| (member.service, member.member) == (at.service, at.member));
        let key = member.and_then(|member| member.plan.as_ref()?.neighbour);
        let now = Instant::now();
        if let Some((ifindex, ip)) = key
            && let Some(Neighbour::Resolved(mac)) =
                self.netlink.observed.neighbours.get(&(ifindex, ip))
            && self
                .confirmed
                .get(&(ifindex, ip))
                .is_none_or(|last| now - *last >= CONFIRM)
        {
            self.confirmed.insert((ifindex, ip), now);
            // Beside the loop: the next events do not wait for the kernel's answer.
            let confirmed = self.netlink.confirm_neighbour(ifindex, ip, *mac);
            tokio::spawn(async move {
                if let Err(error) = confirmed.await {
                    tracing::debug!("{error:#}");
                }
            });
        }
    }

    /// The rest of the story of a tracker's cause.
    fn detail(&self, at: TrackerRef, cause: Cause) -> Option<String> {
        let member = self
            .members
            .iter()
            .find(|member| (member.service, member.member) == (at.service, at.member))?;
        let of_path = member
            .plan
            .as_ref()
            .and_then(|plan| plan.path.as_ref().err());
        let of_source = member.trackers.get(at.tracker as usize)?.fault.as_ref();
        let fault = of_path
            .into_iter()
            .chain(of_source)
            .find(|fault| fault.cause == cause);
        fault.map(|fault| fault.detail.clone())
    }
}

/// True where an installed member can go on as this one: only its trackers and policy may differ.
fn is_same(known: &Attachment, service: &str, member: &Member) -> bool {
    let way = |member: &Member| {
        (
            member.role,
            member.endpoint,
            member.interface.clone(),
            member.source,
            member.returns.clone(),
        )
    };
    known.service_name == service && way(&known.config) == way(member)
}

fn full(what: &str) -> anyhow::Error {
    anyhow!("no room for more {what} in this daemon's maps; restart it")
}

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() {
        Family::Ipv4
    } else {
        Family::Ipv6
    }
}

/// The address in the maps' form.
fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Gives a tracker its source address, or the reason why it has none.
fn set_source(
    kernel: &mut Kernel,
    sender: &Sender,
    tracker: &mut Tracker,
    source: &Result<IpAddr, Fault>,
    epoch: u32,
) {
    let fault = match source {
        Ok(ip) => {
            let source = address_bytes(*ip);
            let was_active = tracker.entry.active != 0;
            if was_active && tracker.entry.source == source {
                None
            } else {
                if was_active {
                    // Replies to the old source must not count for the new one.
                    tracker.entry.epoch = epoch;
                }
                tracker.entry.source = source;
                tracker.entry.active = 1;
                let written = kernel.set_tracker(tracker.slot, &tracker.entry);
                if was_active {
                    // After the map: a probe sent in between bears the new epoch already, and is ignored.
                    sender.command(Command::Renew(tracker.slot, epoch));
                }
                written.err().map(|error| Fault::cannot_write(&error))
            }
        }
        Err(fault) => Some(fault.clone()),
    };
    if tracker.fault != fault {
        sender.command(Command::SetFault(
            tracker.slot,
            fault.as_ref().map(|fault| fault.cause),
        ));
        tracker.fault = fault;
    }
}

/// Gives back the neighbour entries that a killed daemon had the kernel keep; its PATHS tell which.
async fn release_pinned_neighbours(netlink: &Netlink, pins: &Pins) {
    for (ifindex, ip) in loader::pinned_neighbours(pins) {
        if netlink.observed.neighbours.contains_key(&(ifindex, ip))
            && let Err(error) = netlink.release_neighbour(ifindex, ip).await
        {
            tracing::debug!("{error:#}");
        }
    }
}

/// `tracker cleanup`: removes what a killed daemon left.
///
/// # Errors
/// Where the daemon still runs, or something can't be removed.
pub async fn cleanup(bpffs: &Path, instance: &str) -> Result<String> {
    preflight::require_root()?;
    let pins = Pins::new(bpffs, instance);
    let netlink = Netlink::connect().await?;
    let mut removed = Vec::new();
    if pins.exist() {
        let lock = pins.lock()?;
        release_pinned_neighbours(&netlink, &pins).await;
        let count = pins.remove()?;
        drop(lock);
        removed.push(format!("{count} pins"));
    }
    let names = private_names(instance);
    if netlink.delete_link(&names[0]).await? {
        removed.push("the private interfaces".to_owned());
    }
    if removed.is_empty() {
        return Ok(format!("instance {instance}: nothing was left"));
    }
    Ok(format!(
        "instance {instance}: removed {}",
        removed.join(" and ")
    ))
}

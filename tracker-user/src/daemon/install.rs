//! Places in the kernel's maps for what the config names, at the start and at each reload.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use anyhow::{Result, anyhow, bail};
use tracker_ebpf::{abi, verdict::Rules};

use super::{Attachment, Daemon, Tracker, address_bytes, nanoseconds, stamp};
use crate::{
    board::TrackerRef,
    config::{self, Config, Member, Role},
    engine::{Command, TrackerSpec, Window},
    kernel::loader::Sizes,
    plan::Fault,
};

impl Daemon {
    /// Gives every member and tracker of the config its place, keeping those of `old` that are the
    /// same; the rest of `old` gives its places back.
    pub(super) fn install(&mut self, old: Vec<Attachment>) -> Result<()> {
        let mut refs = HashMap::new();
        let services = self.config.services.clone();
        let mut old: HashMap<Key, Attachment> = old
            .into_iter()
            .map(|known| (key(&known.service_name, &known.config), known))
            .collect();
        for (service_at, service) in services.iter().enumerate() {
            for (member_at, member) in service.members.iter().enumerate() {
                let mut attachment = match old.remove(&key(&service.name, member)) {
                    Some(known) => known,
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
                let before = std::mem::take(&mut attachment.trackers);
                let mut before: HashMap<config::Tracker, Tracker> = before
                    .into_iter()
                    .map(|known| (known.config.clone(), known))
                    .collect();
                for (tracker_at, tracker) in member.trackers.iter().enumerate() {
                    let installed = match before.remove(tracker) {
                        Some(known) => known,
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
                    refs.insert(installed.slot, (at, self.members.len()));
                    attachment.trackers.push(installed);
                }
                for tracker in before.values() {
                    self.uninstall_tracker(tracker);
                }
                self.members.push(attachment);
            }
        }
        for attachment in old.values() {
            for tracker in &attachment.trackers {
                self.uninstall_tracker(tracker);
            }
            self.paths.give(attachment.path);
        }
        self.shared.core().slots = refs.iter().map(|(slot, (at, _))| (*at, *slot)).collect();
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
            family: tracker.behind.into(),
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

    pub(super) async fn reload(&mut self, config: Config) {
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
        let known: HashMap<Key, &Attachment> = self
            .members
            .iter()
            .map(|known| (key(&known.service_name, &known.config), known))
            .collect();
        for service in &config.services {
            for member in &service.members {
                let known = known.get(&key(&service.name, member));
                if known.is_none() {
                    paths.take().ok_or_else(|| full("members"))?;
                }
                let trackers = known.map_or(&[][..], |known| &known.trackers);
                let old: HashSet<&config::Tracker> =
                    trackers.iter().map(|tracker| &tracker.config).collect();
                for tracker in member
                    .trackers
                    .iter()
                    .filter(|tracker| !old.contains(tracker))
                {
                    slots.take().ok_or_else(|| full("trackers"))?;
                    words
                        .take(window_words(tracker))
                        .ok_or_else(|| full("trackers"))?;
                }
            }
        }
        Ok(())
    }
}

/// What an installed member and a configured one have in common where the one can go on as the other:
/// everything but trackers and policy.
type Key = (
    String,
    Role,
    IpAddr,
    Option<String>,
    Option<IpAddr>,
    Vec<String>,
);

fn key(service: &str, member: &Member) -> Key {
    (
        service.to_owned(),
        member.role,
        member.endpoint,
        member.interface.clone(),
        member.source,
        member.returns.clone(),
    )
}

fn full(what: &str) -> anyhow::Error {
    anyhow!("no room for more {what} in this daemon's maps; restart it")
}

fn window_words(tracker: &config::Tracker) -> u32 {
    Window::words(nanoseconds(tracker.interval), nanoseconds(tracker.timeout))
}

/// Map sizes for a config, with room for services that come later.
pub(super) fn sizes(config: &Config) -> Sizes {
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

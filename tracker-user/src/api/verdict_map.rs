//! The thread that publishes what counts of every service and member in the maps that other eBPF programs read.
//!
//! Changes are written as soon as their events are there; once a second everything is gone through, which refreshes the entries and
//! takes up what makes no event. A main loop or sending thread that does not keep up is told from here, where it does no harm; when
//! this thread is gone too, the entries' refresh times tell it.

use std::{collections::HashSet, io, thread, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use tracker_ebpf::{
    public::{self, Name},
    verdict::{Cause, Verdict},
};

use super::answers::{Answers, Known};
use crate::{
    datapath::public::{Published, VerdictMaps},
    desired::model::ServiceId,
    detector::lateness::STALLED_NS,
    error::full,
    host::{clock::monotonic_ns, privileges, repeats},
    state::{
        admin::{Admin, AdminState},
        tree::{MemberState, ServiceState},
    },
};

/// How often everything is gone through.
const REFRESH: Duration = Duration::from_secs(1);
/// How many services are read while what is known is locked.
const SLICE: usize = 128;
/// Services of more events than this are not looked up one by one: everything is gone through.
const FEW: usize = 32;
/// How many events are taken at once.
const EVENTS: usize = 1_024;

/// The running thread, seen from the main loop.
pub struct VerdictMapThread {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

/// Starts the thread.
///
/// # Errors
/// When the system has no thread or descriptor left.
pub fn start(answers: Answers, maps: VerdictMaps) -> io::Result<VerdictMapThread> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("tracker-public".to_owned())
        .spawn(move || {
            privileges::limit_thread("the thread that publishes verdicts");
            runtime.block_on(async {
                tokio::select! {
                    // Also when the sender is dropped.
                    _ = stopped => {}
                    () = publish(&answers, maps) => {}
                }
            });
        })?;
    Ok(VerdictMapThread { stop, thread })
}

impl VerdictMapThread {
    /// Ends the thread: nothing is published any more.
    pub fn stop(self) {
        // A thread that is gone has done so.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Publishes for ever.
async fn publish(answers: &Answers, maps: VerdictMaps) {
    let feed = answers.feed();
    let mut news = feed.subscribe();
    let (_, mut next) = feed.bounds();
    let mut publisher = Publisher {
        maps,
        is_full: false,
    };
    loop {
        publisher.everything(answers);
        let again = Instant::now() + REFRESH;
        loop {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(again) => break,
            }
            news.mark_unchanged();
            let batch = feed.read(next - 1, EVENTS);
            next += batch.missed + batch.events.len() as u64;
            let changed: HashSet<_> = batch
                .events
                .iter()
                .filter_map(|numbered| numbered.event.service.clone())
                .collect();
            if batch.missed > 0 || batch.events.len() == EVENTS || changed.len() > FEW {
                (_, next) = feed.bounds();
                break;
            }
            let services = answers.read(|known| {
                let found = changed.iter().filter_map(|name| known.tree.find(name));
                found.collect::<Vec<_>>()
            });
            if let Ok(services) = services {
                publisher.some(answers, &services, &mut |_| {});
            }
        }
    }
}

/// Writes entries.
struct Publisher {
    maps: VerdictMaps,
    /// That there is no place left was logged.
    is_full: bool,
}

impl Publisher {
    /// Publishes every service and member, and removes what is there no more.
    fn everything(&mut self, answers: &Answers) {
        // A main loop that hangs in the middle of a change leaves the entries to their lease.
        let Ok(services) = answers.read(|known| known.tree.numbers()) else {
            return;
        };
        let mut present = HashSet::new();
        let is_whole = self.some(answers, &services, &mut |name| {
            present.insert(name);
        });
        if is_whole
            && let Err(error) = self
                .maps
                .retain(|name| present.contains(name), monotonic_ns())
        {
            failed(&error);
        }
    }

    /// Publishes some services with their members, and says which names these have. Returns whether all could be read.
    fn some(
        &mut self,
        answers: &Answers,
        services: &[ServiceId],
        found: &mut dyn FnMut(Name),
    ) -> bool {
        for slice in services.chunks(SLICE) {
            let Ok(entries) = answers.read(|known| entries(known, slice)) else {
                return false;
            };
            for (name, published) in entries {
                found(name);
                match self.maps.publish(&name, published, monotonic_ns()) {
                    Ok(true) => {}
                    Ok(false) => self.full(),
                    Err(error) => failed(&error),
                }
            }
        }
        true
    }

    fn full(&mut self) {
        if !std::mem::replace(&mut self.is_full, true) {
            tracing::warn!(
                "the verdict maps hold {} services and members and are full; what came later is not published in them",
                public::CAPACITY
            );
        }
    }
}

fn failed(error: &aya::maps::MapError) {
    let text = format_args!("cannot publish a verdict: {}", full(error));
    repeats::warn("verdict maps", text);
}

/// What is published of services and their members.
fn entries(known: &Known, services: &[ServiceId]) -> Vec<(Name, Published)> {
    let is_stalled = known.health.age_ns(monotonic_ns()) > STALLED_NS;
    let mut entries = Vec::new();
    let services = services.iter().filter_map(|id| known.tree.service(*id));
    for service in services {
        let selected = service.selected();
        let selected: HashSet<&str> = selected.names().iter().map(|name| &**name).collect();
        let members = service.members.iter().map(|member| {
            let name = public::name(&service.name, Some(&member.settings.name));
            (
                name,
                of_member(member, selected.contains(&*member.settings.name)),
            )
        });
        let own = (
            public::name(&service.name, None),
            of_service(service, &selected),
        );
        let named = std::iter::once(own).chain(members);
        entries.extend(named.filter_map(|(name, published)| {
            let published = match is_stalled {
                true => Published {
                    verdict: Verdict::Unknown as u8,
                    cause: Cause::Stalled as u8,
                    ..published
                },
                false => published,
            };
            Some((name?, published))
        }));
    }
    entries
}

fn of_service(service: &ServiceState, selected: &HashSet<&str>) -> Published {
    let members = service.members.iter();
    let carries = |member: &&MemberState| {
        member.effective == Verdict::Up && selected.contains(&*member.settings.name)
    };
    Published {
        verdict: service.effective as u8,
        cause: service.deciding().cause as u8,
        admin: admin(&service.admin),
        weight: members
            .filter(carries)
            .map(|member| u32::from(member.settings.weight))
            .sum(),
        selected: selected.len() as u32,
    }
}

fn of_member(member: &MemberState, is_selected: bool) -> Published {
    Published {
        verdict: member.effective as u8,
        cause: member.deciding().cause as u8,
        admin: admin(&member.admin),
        weight: member.settings.weight.into(),
        selected: is_selected.into(),
    }
}

const fn admin(admin: &Admin) -> u8 {
    match admin.state {
        AdminState::Auto => 0,
        AdminState::Maintenance => 1,
        AdminState::Up => 2,
        AdminState::Down => 3,
    }
}

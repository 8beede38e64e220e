//! What the engine found, and what it means.

use std::time::Instant;

use tracing::Level;
use tracker_ebpf::{abi, verdict::Cause};

use super::App;
use crate::{
    api::explain::Facts,
    desired::model::TrackerRef,
    detector::{
        engine::{Report, SendFailure},
        flows::Moved,
    },
    host::{
        clock::{self, monotonic_ns},
        repeats,
    },
    plan::mode::Mode,
    reconcile::forgery_log::Counts,
    state::{hold_down::TrackerState, journal::SavedHeld},
};

impl App {
    /// Takes what the engine found.
    pub(super) async fn take(&mut self, report: Report) {
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
                // A report may be about a tracker that had the slot before.
                let Some(at) = self.installer.of_generation(slot, generation) else {
                    return;
                };
                let state = TrackerState {
                    verdict,
                    cause,
                    detail: self.detail(at, cause, failure, moved),
                };
                self.tracker_changed(at, state, detection_ns);
                let plan = self.installer.member(at.of());
                let plan = plan.and_then(|member| member.plan.as_ref());
                let observed = &self.netlink.observed;
                self.next_hops
                    .take_verdict(at.of(), plan, (verdict, cause), observed);
            }
            Report::NotLeaving {
                ifindex,
                since_mono_ns,
            } => {
                let observed = &self.netlink.observed;
                if self
                    .devices
                    .take_not_leaving(ifindex, since_mono_ns, observed)
                {
                    self.reconcile().await;
                }
            }
            Report::NeverAnswered {
                ifindex,
                since_mono_ns,
            } => {
                let observed = &self.netlink.observed;
                if self
                    .devices
                    .take_never_answered(ifindex, since_mono_ns, observed)
                {
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

    /// Takes a tracker's verdict: what is held back of it is written down, what changes is reported.
    fn tracker_changed(&mut self, at: TrackerRef, state: TrackerState, detection_ns: Option<u64>) {
        self.report(
            |tree| {
                let before = tree.held(at).cloned();
                let events = tree.tracker_changed(at, state, clock::stamp(), detection_ns);
                (events, before)
            },
            |(events, before), tree, publisher, snapshot| {
                let after = tree.held(at);
                if before.as_ref() != after
                    && let Some((service, tracker)) = tree.position(at)
                {
                    publisher.hold(&service, tracker, after.map(SavedHeld::from), snapshot);
                }
                publisher.publish(events, monotonic_ns(), snapshot)
            },
        );
    }

    /// Reports changes that have lasted long enough.
    pub(super) fn report_due(&mut self) {
        self.publish(|tree| tree.tick(clock::stamp()));
    }

    /// What is known beside a tracker's cause.
    fn detail(
        &self,
        at: TrackerRef,
        cause: Cause,
        failure: Option<SendFailure>,
        moved: Option<Moved>,
    ) -> Option<String> {
        let member = self.installer.member(at.of())?;
        let (installed, tracker) = member.tracker(at.tracker)?;
        let facts = Facts {
            member: &member.settings,
            plan: member.plan.as_ref(),
            at: at.tracker,
            tracker,
            fault: installed.fault.as_ref(),
            state: &self.kernel.states().state(installed.slot),
            observed: &self.netlink.observed,
        };
        facts
            .detail(cause, |ifindex| self.is_behind_foreign_xdp(ifindex))
            .or_else(|| facts.flows(moved?, cause))
            .or_else(|| Some(facts.failure(failure?)))
            .or_else(|| self.next_hops.change(member.plan.as_ref(), cause))
    }

    /// Whether an XDP program on an interface is not ours and sees replies before the receive program does.
    fn is_behind_foreign_xdp(&self, ifindex: u32) -> bool {
        let link = self.netlink.observed.links.get(&ifindex);
        let uplinks = self.steering_config.iter();
        let mut uplinks = uplinks.flat_map(|steering| &steering.uplinks);
        let is_ours =
            uplinks.any(|name| link.is_some_and(|link| link.names().any(|one| one == name)));
        self.kernel.mode(ifindex) == Some(Mode::Tc) && !is_ours
    }

    /// Logs that replies are forged, replayed or altered.
    pub(super) fn look_for_forgery(&mut self) {
        let Ok(counted) = self.kernel.counters() else {
            return;
        };
        let sum = |field: fn(&abi::Counters) -> u64| counted.iter().map(field).sum();
        let hub = Counts {
            corrupt: sum(|counters| counters.reply_corrupt),
            duplicate: sum(|counters| counters.reply_duplicate),
            stale: sum(|counters| counters.reply_stale),
        };
        let (installer, states) = (&self.installer, self.kernel.states());
        let of = |slot: u32| {
            installer.at(slot)?;
            let trouble = states.state(slot).trouble;
            Some(Counts {
                corrupt: trouble.corrupt.into(),
                duplicate: trouble.duplicate.into(),
                stale: 0,
            })
        };
        let slots = self.kernel.sizes().trackers;
        let Some(finding) = self.forgery_log.look(Instant::now(), hub, slots, of) else {
            return;
        };
        let Counts {
            corrupt,
            duplicate,
            stale,
        } = finding.counts;
        let at = finding.slot.and_then(|slot| self.installer.at(slot));
        let member = at.and_then(|at| self.installer.member(at.of()));
        let service = at.and_then(|at| self.desired.service(at.service));
        if let (Some(at), Some(member), Some(service)) = (at, member, service)
            && let Some((_, tracker)) = member.tracker(at.tracker)
        {
            tracing::warn!(
                "{}/{} {}: {corrupt} packets with its mark fail the token (corrupt), {duplicate} replies came again \
                 (duplicate); none counts",
                service.settings.name,
                member.settings.name,
                tracker.behind
            );
        } else if stale > 0 {
            tracing::warn!(
                "{stale} packets bear a probe's mark and are of no tracker of this daemon; they were passed on"
            );
        }
    }
}

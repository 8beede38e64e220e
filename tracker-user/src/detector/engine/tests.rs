//! The engine on a simulated kernel: each promise one by one, then random histories against a plain
//! specification.

#[path = "sim.rs"]
mod sim;

use tracker_ebpf::verdict::{Cause, Rules, Verdict};

use self::sim::{Calls, Change, FlowState, MS, Net, S, US, World, tracker};
use super::{Command, SendFailure, TrackerSpec};

/// A world with one path, out of device 7.
fn world() -> World {
    let mut world = World::new(1);
    world.path(0, 7, None);
    world
}

/// A world with one tracker that has long been up.
fn up(spec: TrackerSpec) -> World {
    let mut world = world();
    world.install(spec);
    settle(&mut world, spec);
    world
}

fn settle(world: &mut World, spec: TrackerSpec) {
    world.run(spec.interval_ns * (u64::from(spec.rules.rise) + 2) + spec.timeout_ns + 4 * S);
    assert_eq!(world.verdict(spec.slot), Verdict::Up);
    world.changes.clear();
}

/// Interval 100 ms, timeout 50 ms, fall 3, rise 2.
fn usual() -> TrackerSpec {
    tracker(0, 100 * MS, 50 * MS, 3, 2)
}

fn words(changes: &[Change]) -> Vec<(&'static str, &'static str)> {
    let word = |change: &Change| (change.verdict.as_str(), change.cause.as_str());
    changes.iter().map(word).collect()
}

/// When the tracker went down, and the change itself.
fn downs(world: &World, slot: u32) -> Vec<Change> {
    let mut before = Verdict::Unknown;
    let of_slot = world.changes.iter().filter(|change| change.slot == slot);
    of_slot
        .filter(|change| {
            let turned = change.verdict != before;
            before = change.verdict;
            turned && change.verdict == Verdict::Down
        })
        .copied()
        .collect()
}

/// Every probe sent is accounted for, once nothing is under way.
fn assert_accounts(world: &mut World, slot: u32) {
    let state = world.slot(slot).state;
    let (judge, received) = (state.judge, state.receive.received);
    assert_eq!(judge.judged, state.send.sent);
    let lost = judge.lost + u64::from(judge.lost_pending);
    assert_eq!(state.send.sent, received + lost + judge.void);
}

/// An interface flaps while trackers with a long interval wait for a probe out of turn: nothing grows by that, neither the
/// queue nor what is skipped.
#[test]
fn a_flapping_interface_leaves_nothing_behind() {
    const TRACKERS: u32 = 500;
    let mut world = world();
    for slot in 0..TRACKERS {
        world.install(tracker(slot, 60 * S, 50 * MS, 3, 2));
    }
    for _ in 0..30 {
        world.path(0, 7, Some(Cause::InterfaceDown));
        world.path(0, 7, None);
    }
    let waiting = |world: &World| {
        let groups = world.engine.groups.iter();
        groups.map(|group| group.prompt.len()).sum::<usize>()
    };
    assert_eq!(waiting(&world), TRACKERS as usize);
    world.run(S);
    assert_eq!(waiting(&world), 0);
    let skipped = (0..TRACKERS).map(|slot| world.slot(slot).state.judge.skipped);
    assert!(skipped.sum::<u64>() <= u64::from(TRACKERS));
    let sent = (0..TRACKERS).map(|slot| world.slot(slot).state.send.sent);
    assert!(sent.sum::<u64>() >= u64::from(TRACKERS));
}

// --- Many at once ------------------------------------------------------------------------------------

#[test]
fn a_removal_grows_in_proportion_to_the_trackers() {
    crate::growth::assert_linear("a removal", 2_000, |count| {
        let mut world = World::new(1);
        world.path(0, 7, None);
        for slot in 0..count as u32 {
            world.install(tracker(slot, 100 * MS, 50 * MS, 3, 2));
        }
        world.run(300 * MS);
        let stays = count as u32 / 2;
        crate::growth::processor_time(|| {
            for slot in (0..count as u32).filter(|slot| *slot != stays) {
                world.command(Command::Remove(slot));
            }
            world.run(20 * MS);
        })
    });
}

// --- Another daemon goes on ----------------------------------------------------------------------

/// Interval 10 ms, timeout 200 ms: some twenty probes are under way at any time.
fn many_under_way() -> TrackerSpec {
    tracker(0, 10 * MS, 200 * MS, 3, 2)
}

#[test]
fn a_successor_changes_nothing_and_counts_every_probe() {
    for gap_ns in [0, MS, 150 * MS, 3 * S] {
        let spec = many_under_way();
        let mut world = up(spec);
        world.net(0).delay_ns = (100 * MS, 110 * MS);
        world.run(S);
        let before = world.slot(0).state;
        world.changes.clear();
        let mut world = world.restart(gap_ns, &[spec], &[(0, 7, None)]);
        assert_eq!(world.slot(0).state.judge.lost, before.judge.lost);
        world.run(S);
        assert_eq!(world.changes, [], "after {gap_ns}");
        let after = world.slot(0).state;
        assert!(after.send.sent > before.send.sent + 90);
        assert_eq!(after.judge.lost, before.judge.lost);
        world.kernel().slots[0].net.is_out = false;
        world.path(0, 7, Some(Cause::InterfaceDown));
        world.run(S);
        assert_accounts(&mut world, 0);
    }
}

#[test]
fn what_broke_while_nobody_ran_is_down_after_fall_losses_of_the_successor() {
    let spec = usual();
    let mut world = up(spec);
    world.net(0).is_out = true;
    // Two of three losses do not make the third of a successor's the last.
    world.run(spec.interval_ns * 2 + spec.timeout_ns + 20 * MS);
    let judge = world.slot(0).state.judge;
    let lost = judge.lost + u64::from(judge.lost_pending);
    assert!(lost >= 2, "{lost}");
    let mut world = world.restart(S, &[spec], &[(0, 7, None)]);
    let from = world.slot(0).probes.len();
    world.run(S);
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "no-reply")]);
    assert!(down[0].at_ns >= world.slot(0).probes[from + 2].deadline_ns);

    // Down stays down, with its cause, and up is earned.
    world.changes.clear();
    let mut world = world.restart(S, &[spec], &[(0, 7, None)]);
    world.run(S);
    assert_eq!(world.changes, []);
    assert_eq!(world.verdict(0), Verdict::Down);
    world.net(0).is_out = false;
    let mut world = world.restart(0, &[spec], &[(0, 7, None)]);
    world.run(S);
    assert_eq!(words(&world.changes), [("up", "replied")]);
}

#[test]
fn a_successor_says_what_is_the_matter_with_the_hub() {
    let spec = usual();
    let world = up(spec);
    // It went down while no daemon ran, and is what an unknown path is taken for.
    let cause = Cause::InterfaceMissing;
    let world = world.restart(S, &[spec], &[(0, 7, Some(cause))]);
    assert_eq!(words(&world.changes), [("down", "interface-missing")]);
    let mut world = world.restart(S, &[spec], &[(0, 7, Some(cause))]);
    assert_eq!(words(&world.changes[1..]), []);
    // It is there again.
    world.changes.clear();
    let mut world = world.restart(S, &[spec], &[(0, 7, None)]);
    world.run(S);
    assert_eq!(
        words(&world.changes),
        [("down", "no-reply"), ("up", "replied")]
    );
}

#[test]
fn nonsense_that_is_left_is_not_waited_for() {
    let spec = usual();
    for (judged, sent) in [(9, 5), (0, 1 << 40)] {
        let mut world = up(spec);
        let state = &mut world.slot(0).state;
        (state.judge.judged, state.send.sent) = (judged, sent);
        let mut world = world.restart(0, &[spec], &[(0, 7, Some(Cause::InterfaceDown))]);
        world.run(S);
        assert_eq!(world.slot(0).state.judge.judged, sent);
    }
}

/// As a reload has it: the tracker leaves its cohort, and goes on in another one from the same verdict.
#[test]
fn another_pace_is_no_change_and_what_was_under_way_is_void() {
    let spec = many_under_way();
    let mut world = up(spec);
    world.net(0).is_out = true;
    world.run(50 * MS);
    let before = world.slot(0).state;
    world.command(Command::Remove(0));
    let slower = TrackerSpec {
        interval_ns: 50 * MS,
        resume: Some((Verdict::Up, Cause::Replied)),
        ..spec
    };
    world.command(Command::Install(slower));
    world.path(0, 7, None);
    world.net(0).is_out = false;
    world.run(2 * S);
    assert_eq!(world.changes, []);
    let after = world.slot(0).state;
    assert!(after.judge.void > before.judge.void);
    assert_eq!(after.judge.lost, before.judge.lost);
    let sent = after.send.sent - before.send.sent;
    assert!((35..=42).contains(&sent), "{sent} in two seconds");
}

#[test]
fn other_thresholds_count_from_the_next_outcome_on() {
    let mut world = up(usual());
    let rules = Rules { fall: 1, rise: 4 };
    world.command(Command::SetRules(0, rules));
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&world.changes), [("down", "no-reply")]);
    let first = world.slot(0).probes.len();
    world.net(0).is_out = false;
    world.run(S);
    let up = *world.changes.last().expect("a change");
    assert_eq!(words(&[up]), [("up", "replied")]);
    assert!(up.at_ns >= world.slot(0).probes[first + 3].sent_ns);
}

// --- Down is counted, not timed ---------------------------------------------------------------

#[test]
fn down_at_the_deadline_of_the_last_of_fall_losses_and_not_before() {
    let mut world = up(usual());
    world.late_ns = (0, 300 * US);
    world.net(0).is_out = true;
    let first_lost = world.slot(0).probes.len();
    world.run(S);
    let run: Vec<_> = world.slot(0).probes[first_lost..first_lost + 3].to_vec();
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "no-reply")]);
    let (down, last) = (down[0], run[2].deadline_ns);
    assert!(down.at_ns >= last, "before the last probe's timeout");
    assert!(down.at_ns <= last + 2 * MS, "late by {}", down.at_ns - last);
    assert_eq!(down.detection_ns, Some(down.at_ns - run[0].sent_ns));
}

#[test]
fn fewer_losses_than_fall_never_make_it_down() {
    let mut world = up(usual());
    for _ in 0..20 {
        world.net(0).is_out = true;
        world.run(200 * MS);
        world.net(0).is_out = false;
        world.run(100 * MS);
    }
    assert_eq!(downs(&world, 0), []);
    assert!(world.slot(0).state.judge.lost >= 40);
}

#[test]
fn a_reply_after_the_timeout_is_a_loss() {
    let mut world = up(usual());
    world.net(0).delay_ns = (50 * MS + 1, 50 * MS + 1);
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
    world.net(0).delay_ns = (50 * MS, 50 * MS);
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
}

#[test]
fn timeout_longer_than_the_interval() {
    // 100 probes are under way at any time.
    let spec = tracker(0, 10 * MS, S, 3, 2);
    let mut world = up(spec);
    world.net(0).delay_ns = (900 * MS, 990 * MS);
    world.run(5 * S);
    assert_eq!(world.changes, []);
    world.net(0).is_out = true;
    let out_ns = world.now_ns();
    world.run(3 * S);
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "no-reply")]);
    // What was under way when it broke was lost as well.
    assert!(down[0].at_ns <= out_ns + S + 30 * MS + 4 * MS);
    world.net(0).is_out = false;
    world.net(0).delay_ns = (100 * US, 100 * US);
    let mended_ns = world.now_ns();
    world.run(100 * MS);
    let up = *world.changes.last().expect("a change");
    assert_eq!(words(&[up]), [("up", "replied")]);
    assert!(up.at_ns <= mended_ns + 22 * MS);
}

#[test]
fn timeout_shorter_than_the_interval() {
    let spec = tracker(0, 60 * S, MS, 2, 1);
    let mut world = up(spec);
    world.run(65 * S);
    assert_eq!(world.verdict(0), Verdict::Up);
    world.net(0).is_out = true;
    world.run(130 * S);
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "no-reply")]);
    let last = world.slot(0).probes.last().expect("a probe").deadline_ns;
    assert!((last..last + 2 * MS).contains(&down[0].at_ns));
}

// --- Up at once --------------------------------------------------------------------------------

#[test]
fn up_at_the_reply_that_completes_the_run_without_waiting_for_a_timeout() {
    let spec = tracker(0, 100 * MS, 10 * S, 3, 3);
    let mut world = world();
    world.install(spec);
    world.net(0).is_out = true;
    world.run(15 * S);
    assert_eq!(world.verdict(0), Verdict::Down);
    world.changes.clear();
    world.net(0).is_out = false;
    let first = world.slot(0).probes.len();
    world.run(S);
    let run: Vec<_> = world.slot(0).probes[first..first + 3].to_vec();
    assert_eq!(words(&world.changes), [("up", "replied")]);
    let (up, first, last) = (world.changes[0], run[0], run[2]);
    assert_eq!(Some(up.at_ns), last.answered_ns);
    let since_ns = first.answered_ns.expect("answered");
    assert_eq!(up.detection_ns, Some(up.at_ns - since_ns));
}

#[test]
fn up_needs_consecutive_replies() {
    let mut world = world();
    world.install(usual());
    world.run(50 * MS);
    for _ in 0..20 {
        world.net(0).is_out = true;
        world.run(100 * MS);
        world.net(0).is_out = false;
        world.run(100 * MS);
    }
    assert_eq!(world.verdict(0), Verdict::Unknown);
    assert_eq!(world.slot(0).state.receive.received, 21);
}

#[test]
fn duplicates_are_one_reply() {
    let mut world = world();
    world.install(tracker(0, 100 * MS, 50 * MS, 3, 3));
    world.net(0).twice_per_mille = 1000;
    world.run(150 * MS);
    assert_eq!(world.slot(0).state.trouble.duplicate, 2);
    assert_eq!(world.verdict(0), Verdict::Unknown);
}

#[test]
fn a_full_ring_buffer_delays_up_to_the_timeout_at_most() {
    let mut world = world();
    world.install(usual());
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Down);
    world.net(0).is_out = false;
    world.kernel().ring_room = 0;
    let first = world.slot(0).probes.len();
    world.run(S);
    let second = world.slot(0).probes[first + 1];
    let up = *world.changes.last().expect("a change");
    assert_eq!(words(&[up]), [("up", "replied")]);
    assert!(up.at_ns <= second.deadline_ns + 2 * MS);
    assert!(world.slot(0).events_dropped > 0);
}

#[test]
fn replies_that_came_while_it_was_still_up_count_when_it_goes_down() {
    // Three probes lost; those after them were answered long before the three are judged.
    let mut world = up(tracker(0, 10 * MS, 500 * MS, 3, 2));
    world.net(0).is_out = true;
    world.run(30 * MS);
    world.net(0).is_out = false;
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    let (down, up) = (world.changes[0], world.changes[1]);
    assert_eq!(down.verdict, Verdict::Down);
    assert_eq!(up.verdict, Verdict::Up);
    assert_eq!(down.at_ns, up.at_ns);
}

#[test]
fn runs_are_published_as_they_are() {
    let mut world = up(usual());
    world.net(0).is_out = true;
    world.run(200 * MS);
    assert!(world.slot(0).state.judge.lost_run > 0);
    world.net(0).is_out = false;
    world.run(S);
    let judge = world.slot(0).state.judge;
    assert_eq!(judge.lost_run, 0);
    assert!(judge.replied_run >= 5, "{judge:?}");
}

// --- Self-doubt ----------------------------------------------------------------------------------

#[test]
fn a_stall_blames_nobody_and_a_real_outage_after_it_is_found() {
    let mut world = up(tracker(0, 10 * MS, 200 * MS, 3, 2));
    world.net(0).is_out = true;
    world.run(100 * MS);
    world.stop_for(10 * S);
    world.run(10 * S + MS);
    assert_eq!(world.stalled, 1);
    assert_eq!(downs(&world, 0), []);
    let continued_ns = world.now_ns();
    world.run(S);
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "no-reply")]);
    assert!(down[0].at_ns >= continued_ns + 200 * MS);
    assert!(down[0].at_ns <= continued_ns + 200 * MS + 30 * MS + 4 * MS);
    assert_eq!(world.slot(0).state.judge.cause, Cause::NoReply as u8);
}

#[test]
fn a_stall_of_a_healthy_tracker_goes_by_without_a_down() {
    for ms in [6, 20, 50, 100, 101, 150, 1000, 10_000, 3_600_000] {
        let mut world = up(usual());
        world.stop_for(ms * MS);
        world.run(ms * MS + 2 * S);
        assert_eq!(downs(&world, 0), [], "{ms} ms");
        assert_eq!(world.verdict(0), Verdict::Up);
        // What became due meanwhile is skipped, each turn of it, and not sent in a bunch.
        let skipped = world.slot(0).state.judge.skipped;
        let missed = ms / 100;
        assert!(
            (missed..=missed + 1).contains(&(skipped + 1)),
            "{skipped} in {ms} ms"
        );
        for pair in world.slot(0).probes.windows(2) {
            assert!(pair[1].sent_ns - pair[0].sent_ns >= 50 * MS, "{ms} ms");
        }
    }
}

#[test]
fn a_stalled_tracker_says_so_until_the_next_reply() {
    let mut world = up(tracker(0, 10 * MS, 200 * MS, 3, 2));
    world.net(0).is_out = true;
    world.run(50 * MS);
    world.stop_for(S);
    world.run(S + MS);
    assert_eq!(words(&world.changes), [("up", "stalled")]);
    world.net(0).is_out = false;
    world.run(S);
    assert_eq!(
        words(&world.changes),
        [("up", "stalled"), ("up", "replied")]
    );
}

/// While the machine is suspended the monotonic clock stands still, and replies are not received.
#[test]
fn a_machine_that_slept_blames_nobody_and_finds_a_real_outage_after_it() {
    for slept_ns in [10 * MS, S, 3_600 * S, 30 * 24 * 3_600 * S] {
        let mut world = up(tracker(0, 10 * MS, 200 * MS, 3, 2));
        // Fallen asleep: more probes are under way than make it down.
        world.net(0).is_out = true;
        world.run(100 * MS);
        world.kernel().slept_ns += slept_ns;
        world.net(0).is_out = false;
        world.run(S);
        assert_eq!(world.stalled, 1);
        assert_eq!(downs(&world, 0), [], "{slept_ns} ns");
        assert_eq!(
            words(&world.changes),
            [("up", "stalled"), ("up", "replied")]
        );
        world.net(0).is_out = true;
        world.run(S);
        assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
    }
}

// --- Probes that do not leave the hub --------------------------------------------------------------

fn is_not_leaving(world: &World) -> bool {
    world.not_leaving.iter().any(|(ifindex, _)| *ifindex == 7)
}

/// A device that may drop redirected probes uncounted takes no tracker down before TC was tried.
#[test]
fn a_device_that_never_brought_a_reply_makes_nobody_down() {
    for (interval_ns, timeout_ns, fall) in [(10 * MS, 50 * MS, 3), (MS, 5 * MS, 1)] {
        let mut world = world();
        world.command(Command::UseDevice(7));
        world.command(Command::TryDevice(7));
        world.install(tracker(0, interval_ns, timeout_ns, fall, 2));
        world.net(0).is_out = true;
        world.run(S);
        assert_eq!(world.never_answered, [7]);
        assert_eq!(downs(&world, 0), []);
        // The way there may be broken too: by TC as well, it is down for that.
        let by_tc = tracker_ebpf::abi::Path {
            egress: tracker_ebpf::abi::Egress::TcRedirect.into(),
            ifindex: 7,
            ..Default::default()
        };
        let switched_ns = world.now_ns();
        world.command(Command::SetPath(0, by_tc, None));
        world.run(S);
        let down = downs(&world, 0);
        assert_eq!(words(&down), [("down", "no-reply")]);
        let least_ns = u64::from(fall - 1) * interval_ns + timeout_ns;
        assert!(down[0].at_ns >= switched_ns + least_ns, "{down:?}");
        world.net(0).is_out = false;
        world.run(S);
        assert_eq!(world.verdict(0), Verdict::Up);
    }
}

/// Once a redirected probe was answered, a break is told as ever; and it is told also if the way is not changed.
#[test]
fn a_device_that_brought_a_reply_is_tried() {
    let mut world = world();
    world.command(Command::UseDevice(7));
    world.command(Command::TryDevice(7));
    world.install(usual());
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
    assert!(world.never_answered.is_empty());

    let mut world = self::world();
    world.command(Command::UseDevice(7));
    world.command(Command::TryDevice(7));
    world.install(usual());
    world.net(0).is_out = true;
    world.run(10 * S);
    assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
}

/// What a device did with earlier frames says nothing of a later use: it is known from the report which one is meant.
#[test]
fn a_device_that_is_used_again_is_judged_anew() {
    let mut world = up(tracker(0, 10 * MS, 50 * MS, 3, 2));
    world.kernel().device(7).is_transmitting = false;
    world.run(3 * S);
    assert!(is_not_leaving(&world));
    world.kernel().device(7).is_transmitting = true;
    world.not_leaving.clear();
    let again_ns = world.now_ns();
    world.command(Command::UseDevice(7));
    world.run(3 * S);
    assert_eq!(world.not_leaving, []);
    world.kernel().device(7).is_transmitting = false;
    world.run(3 * S);
    assert!(is_not_leaving(&world));
    let since = world.not_leaving.iter().map(|(_, since_ns)| *since_ns);
    assert!(since.min() >= Some(again_ns));
}

/// A device stops transmitting in the middle of everything: no service goes down.
fn device_dies(spec: TrackerSpec, after_ns: u64) {
    let mut world = up(spec);
    world.run(after_ns);
    world.kernel().device(7).is_transmitting = false;
    let what = format!(
        "interval {} ms, timeout {} ms, {} ms after",
        spec.interval_ns / MS,
        spec.timeout_ns / MS,
        after_ns / MS
    );
    world.run(spec.timeout_ns + spec.interval_ns * 20 + 3 * S);
    assert_eq!(downs(&world, 0), [], "{what}");
    assert_eq!(world.verdict(0), Verdict::Unknown, "{what}");
    assert_eq!(world.slot(0).state.judge.cause, Cause::SendFailed as u8);
    assert!(is_not_leaving(&world), "{what}");
    assert_eq!(world.failures.last(), Some(&SendFailure::Device), "{what}");
    let lost = world.slot(0).state.judge.lost;
    assert!(lost < u64::from(spec.rules.fall), "{what}: {lost} lost");
    world.kernel().device(7).is_transmitting = true;
    world.run(spec.timeout_ns + spec.interval_ns * 5);
    assert_eq!(world.verdict(0), Verdict::Up, "{what}");
    // A real outage is still found, one run later at most.
    world.net(0).is_out = true;
    world.run(3 * S + 2 * (spec.timeout_ns + spec.interval_ns * 4));
    assert_eq!(world.verdict(0), Verdict::Down, "{what}");
}

#[test]
fn a_device_that_never_transmitted_makes_nobody_down() {
    for interval_ms in [1, 10, 100, 250, 1000, 3000] {
        let spec = tracker(0, interval_ms * MS, interval_ms * MS / 2 + MS, 3, 2);
        let mut world = world();
        world.kernel().device(7).is_transmitting = false;
        world.install(spec);
        world.run(20 * spec.interval_ns + 3 * S);
        assert_eq!(downs(&world, 0), [], "{interval_ms} ms");
        assert_eq!(world.verdict(0), Verdict::Unknown);
        assert_eq!(world.slot(0).state.judge.cause, Cause::SendFailed as u8);
        assert!(is_not_leaving(&world));
    }
}

#[test]
fn a_device_that_stops_makes_nobody_down_with_the_default_interval() {
    for after_ms in (0..1000).step_by(90) {
        device_dies(tracker(0, S, 500 * MS, 3, 2), after_ms * MS);
    }
}

#[test]
fn a_device_that_stops_makes_nobody_down_with_a_short_interval() {
    for after_ms in (0..1000).step_by(90) {
        device_dies(tracker(0, 10 * MS, 10 * MS, 3, 2), after_ms * MS);
    }
}

#[test]
fn a_device_that_stops_makes_nobody_down_with_many_probes_under_way() {
    for after_ms in (0..1000).step_by(90) {
        device_dies(tracker(0, 50 * MS, 700 * MS, 3, 2), after_ms * MS);
    }
}

#[test]
fn a_device_that_stops_makes_nobody_down_at_the_shortest_times() {
    for fall in [1, 2, 5] {
        for after_us in (0..5000).step_by(130) {
            device_dies(tracker(0, MS, MS, fall, 1), after_us * US);
        }
    }
}

#[test]
fn a_run_of_which_some_probes_did_not_leave_does_not_count() {
    let mut world = up(usual());
    // Two that do not leave, then one that does and is lost.
    world.kernel().device(7).is_transmitting = false;
    world.run(200 * MS);
    world.kernel().device(7).is_transmitting = true;
    world.net(0).is_out = true;
    world.run(100 * MS);
    world.net(0).is_out = false;
    world.run(S);
    assert_eq!(downs(&world, 0), []);
}

#[test]
fn a_device_that_does_not_count_redirected_frames_is_not_believed() {
    let mut world = world();
    world.kernel().device(7).is_counting = false;
    world.install(usual());
    world.run(5 * S);
    assert_eq!(world.verdict(0), Verdict::Up);
    assert!(world.not_leaving.is_empty());
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
}

#[test]
fn a_device_that_does_not_count_is_not_accused_while_replies_are_not_judged_yet() {
    let mut world = world();
    world.kernel().device(7).is_counting = false;
    world.install(tracker(0, 100 * MS, 5 * S, 3, 2));
    world.run(20 * S);
    assert_eq!(world.verdict(0), Verdict::Up);
    assert!(world.not_leaving.is_empty());
}

#[test]
fn drops_here_and_there_do_not_excuse_an_outage() {
    // 50 trackers, one really out, on a device that loses a frame now and then.
    let mut world = world();
    for slot in 0..50 {
        world.install(tracker(slot, 100 * MS, 50 * MS, 3, 2));
    }
    world.run(5 * S);
    world.net(3).is_out = true;
    world.kernel().device(7).drops_per_mille = 100;
    world.run(2 * S);
    assert_eq!(world.verdict(3), Verdict::Down);
    assert!(world.not_leaving.len() < 50);
}

#[test]
fn what_the_kernel_refuses_was_not_sent() {
    let mut world = up(usual());
    let sent = world.slot(0).state.send.sent;
    world.kernel().calls = Calls::Fail(105);
    world.run(S);
    assert_eq!(words(&world.changes), [("unknown", "send-failed")]);
    assert_eq!(world.send_failed, [105]);
    assert_eq!(world.failures, [SendFailure::Call(105)]);
    assert_eq!(world.slot(0).state.send.sent, sent);
    let judge = world.slot(0).state.judge;
    assert_eq!((judge.skipped, judge.lost), (10, 0));
    world.kernel().calls = Calls::Succeed;
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
}

#[test]
fn what_the_send_program_refuses_is_that_trackers_fault_alone() {
    let mut world = world();
    world.install(usual());
    world.install(tracker(1, 100 * MS, 50 * MS, 3, 2));
    world.run(5 * S);
    world.changes.clear();
    world.slot(0).is_refused = true;
    world.run(2 * S);
    assert_eq!(words(&world.changes), [("unknown", "send-failed")]);
    assert_eq!(world.changes[0].slot, 0);
    assert!(world.not_leaving.is_empty());
    assert_eq!(world.slot(0).state.judge.lost, 0);
}

#[test]
fn a_call_cut_short_loses_no_count() {
    let mut world = world();
    for slot in 0..8 {
        world.install(tracker(slot, MS, 5 * MS, 3, 2));
    }
    world.run(S);
    world.changes.clear();
    world.kernel().calls = Calls::StopAfter(3);
    world.run(20 * MS);
    world.kernel().calls = Calls::Succeed;
    world.run(S);
    assert_eq!(world.changes, []);
    world.path(0, 7, Some(Cause::InterfaceDown));
    world.run(S);
    for slot in 0..8 {
        assert_accounts(&mut world, slot);
    }
    assert!((0..8).any(|slot| world.slot(slot).state.judge.skipped > 100));
}

// --- Faults of the hub's own ---------------------------------------------------------------------

#[test]
fn a_path_that_leads_nowhere_is_down_for_that_cause_at_once() {
    for cause in [
        Cause::InterfaceDown,
        Cause::InterfaceMissing,
        Cause::NextHopUnresolved,
    ] {
        let mut world = up(usual());
        let sent = world.slot(0).state.send.sent;
        world.path(0, 7, Some(cause));
        assert_eq!(words(&world.changes), [("down", cause.as_str())]);
        world.run(2 * S);
        assert_eq!(world.slot(0).state.send.sent, sent);
        assert_eq!(world.slot(0).state.judge.skipped, 20);
        let first = world.slot(0).probes.len();
        world.path(0, 7, None);
        world.run(S);
        let second = world.slot(0).probes[first + 1];
        let up = *world.changes.last().expect("a change");
        assert_eq!(words(&[up]), [("up", "replied")]);
        assert_eq!(Some(up.at_ns), second.answered_ns);
    }
}

#[test]
fn what_was_never_decided_stays_unknown_on_a_path_that_leads_nowhere() {
    let mut world = World::new(1);
    world.install(usual());
    world.run(2 * S);
    world.path(0, 7, Some(Cause::NextHopUnresolved));
    world.run(2 * S);
    assert!(
        world
            .changes
            .iter()
            .all(|change| change.verdict == Verdict::Unknown)
    );
    let last = world.changes.last().map(|change| change.cause);
    assert_eq!(last, Some(Cause::NextHopUnresolved));
    world.path(0, 7, None);
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
}

#[test]
fn probes_under_way_when_a_path_broke_never_count() {
    // Fall 1: one loss too many would show.
    let mut world = up(tracker(0, 100 * MS, 5 * S, 1, 3));
    world.net(0).is_out = true;
    world.run(2 * S);
    world.path(0, 7, Some(Cause::InterfaceDown));
    world.net(0).is_out = false;
    world.path(0, 7, None);
    world.changes.clear();
    world.run(10 * S);
    assert_eq!(words(&world.changes), [("up", "replied")]);
}

#[test]
fn replies_under_way_when_a_path_broke_do_not_make_it_up() {
    let mut world = up(tracker(0, 100 * MS, 5 * S, 3, 2));
    world.net(0).delay_ns = (4 * S, 4 * S);
    world.run(2 * S);
    world.path(0, 7, Some(Cause::InterfaceDown));
    world.run(6 * S);
    assert_eq!(words(&world.changes), [("down", "interface-down")]);
}

#[test]
fn one_trackers_fault_is_not_anothers() {
    let mut world = world();
    world.install(usual());
    world.install(tracker(1, 100 * MS, 50 * MS, 3, 2));
    world.run(5 * S);
    world.changes.clear();
    world.command(Command::SetFault(0, Some(Cause::SendFailed)));
    world.run(S);
    assert_eq!(words(&world.changes), [("unknown", "send-failed")]);
    world.command(Command::SetFault(0, None));
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    assert_eq!(downs(&world, 1), []);
}

// --- Causes --------------------------------------------------------------------------------------

#[test]
fn replies_by_another_way_are_its_cause() {
    let mut world = up(usual());
    world.net(0).is_wrong_way = true;
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "wrong-path")]);
}

#[test]
fn a_wrong_way_of_long_ago_is_not_the_cause() {
    let mut world = up(usual());
    world.net(0).is_wrong_way = true;
    world.run(100 * MS);
    world.net(0).is_wrong_way = false;
    world.run(S);
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
}

/// What is down says of what its latest `fall` losses died, whatever it was at first.
#[test]
fn the_cause_follows_the_latest_losses() {
    let mut world = up(usual());
    world.net(0).is_wrong_way = true;
    world.run(S);
    let goes_wrong = world.slot(0).probes.len();
    world.net(0).is_wrong_way = false;
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(
        words(&world.changes),
        [("down", "wrong-path"), ("down", "no-reply")]
    );
    // With the third loss without an explanation, and not before.
    let third = world.slot(0).probes[goes_wrong + 2];
    let told_ns = world.changes[1].at_ns;
    assert!((third.deadline_ns..third.deadline_ns + 2 * MS).contains(&told_ns));
    assert_eq!(world.changes[1].detection_ns, None);

    for (trouble, cause) in [
        (
            Net {
                is_corrupting: true,
                ..Default::default()
            },
            "corrupt",
        ),
        (
            Net {
                is_wrong_way: true,
                ..Default::default()
            },
            "wrong-path",
        ),
        (
            Net {
                is_out: true,
                ..Default::default()
            },
            "no-reply",
        ),
    ] {
        world.changes.clear();
        *world.net(0) = trouble;
        world.run(S);
        assert_eq!(words(&world.changes), [("down", cause)]);
    }
    assert_accounts(&mut world, 0);
}

/// Now and then a reply, never `rise` of them: still it is the latest losses that tell.
#[test]
fn a_reply_in_between_keeps_no_cause_alive() {
    let mut world = up(usual());
    world.net(0).is_wrong_way = true;
    world.run(S);
    assert_eq!(words(&world.changes), [("down", "wrong-path")]);
    world.changes.clear();
    world.net(0).is_wrong_way = false;
    for round in 0..40 {
        world.net(0).is_out = round % 2 == 0;
        world.run(usual().interval_ns);
    }
    assert_eq!(words(&world.changes), [("down", "no-reply")]);
}

/// An error names the cause of a loss, and the loss still takes its full timeout.
#[test]
fn errors_are_its_cause_and_make_no_loss() {
    let mut world = up(usual());
    world.net(0).is_unreachable = true;
    let first_lost = world.slot(0).probes.len();
    world.run(S);
    let down = downs(&world, 0);
    assert_eq!(words(&down), [("down", "unreachable")]);
    assert!(down[0].at_ns >= world.slot(0).probes[first_lost + 2].deadline_ns);
    // Errors come once in a while only; a source that sends no more of them does not explain what vanishes.
    world.net(0).is_unreachable = false;
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&world.changes), [("down", "unreachable")]);
    world.run(2 * S);
    assert_eq!(
        words(&world.changes),
        [("down", "unreachable"), ("down", "no-reply")]
    );
    world.net(0).is_out = false;
    world.run(S);
    world.changes.clear();
    world.net(0).is_out = true;
    world.run(S);
    assert_eq!(words(&world.changes), [("down", "no-reply")]);
}

// --- Silence --------------------------------------------------------------------------------------

fn silent() -> TrackerSpec {
    TrackerSpec {
        expects_silence: true,
        flows: Default::default(),
        ..usual()
    }
}

/// A tracker whose probes are stopped, and that is up for it.
fn stopped() -> World {
    let mut world = world();
    world.install(silent());
    world.net(0).is_out = true;
    world.run(5 * S);
    assert_eq!(world.verdict(0), Verdict::Up);
    assert_eq!(words(&world.changes), [("up", "no-reply")]);
    world
}

#[test]
fn silence_is_up_after_rise_full_timeouts() {
    let mut world = stopped();
    let up = world.changes[0];
    let last = world.slot(0).probes[1];
    assert!(up.at_ns >= last.deadline_ns, "before the timeout");
    assert!(up.at_ns <= last.deadline_ns + 2 * MS, "late");
}

#[test]
fn one_reply_breaks_silence_at_once() {
    for room in [usize::MAX, 0] {
        let mut world = stopped();
        world.kernel().ring_room = room;
        world.net(0).is_out = false;
        let opened_ns = world.now_ns();
        world.run(160 * MS);
        let down = downs(&world, 0);
        assert_eq!(words(&down), [("down", "unexpected-reply")]);
        // With the ring buffer full, its turn tells.
        let within_ns = if room == 0 { 152 * MS } else { 102 * MS };
        assert!(down[0].at_ns <= opened_ns + within_ns);
        world.run(S);
        assert_eq!(downs(&world, 0).len(), 1, "a reply is no recovery");
        world.net(0).is_out = true;
        world.run(S);
        assert_eq!(world.verdict(0), Verdict::Up);
        let last = *world.changes.last().expect("a change");
        assert_eq!(words(&[last]), [("up", "no-reply")]);
        assert_accounts(&mut world, 0);
    }
}

/// What did not leave the hub was not stopped by the service.
#[test]
fn probes_that_do_not_leave_prove_no_silence() {
    let mut world = world();
    world.kernel().device(7).is_transmitting = false;
    world.install(silent());
    world.net(0).is_out = true;
    world.run(20 * S);
    assert!(is_not_leaving(&world));
    assert_eq!(world.verdict(0), Verdict::Unknown);

    let mut world = stopped();
    world.kernel().device(7).is_transmitting = false;
    world.run(10 * S);
    assert_eq!(world.verdict(0), Verdict::Unknown);
    assert_eq!(world.slot(0).state.judge.cause, Cause::SendFailed as u8);
}

#[test]
fn replies_that_fail_the_token_are_its_cause() {
    let mut world = up(usual());
    world.net(0).is_corrupting = true;
    world.run(S);
    assert_eq!(words(&downs(&world, 0)), [("down", "corrupt")]);
}

#[test]
fn detection_counts_from_what_really_told() {
    // A reply of long before a fault has nothing to do with the recovery after it.
    let mut world = world();
    world.install(tracker(0, 100 * MS, 50 * MS, 3, 2));
    world.run(150 * MS);
    assert_eq!(world.verdict(0), Verdict::Up);
    world.run(5 * S);
    world.kernel().calls = Calls::Fail(12);
    world.run(20 * S);
    world.kernel().calls = Calls::Succeed;
    world.run(S);
    let up = *world.changes.last().expect("a change");
    assert_eq!(words(&[up]), [("up", "replied")]);
    let detection_ns = up.detection_ns.unwrap_or(0);
    assert!(detection_ns <= 200 * MS, "{} ms", detection_ns / MS);
}

#[test]
fn a_wake_up_between_ticks_does_not_starve_a_short_interval() {
    let mut world = world();
    world.install(tracker(0, MS, MS, 3, 2));
    // The reply wakes the thread shortly before the next probe is due.
    world.net(0).delay_ns = (950 * US, 950 * US);
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    assert!(world.slot(0).state.send.sent >= 990);
}

// --- Coming and going ------------------------------------------------------------------------------

#[test]
fn coming_and_going_costs_no_other_tracker_a_probe() {
    let mut world = world();
    for slot in 0..10 {
        world.install(tracker(slot, 100 * MS, 250 * MS, 3, 2));
    }
    world.run(3 * S);
    world.changes.clear();
    for round in 0..40 {
        let slot = 5 + round % 5;
        world.remove(slot);
        world.run(37 * MS);
        let mut spec = tracker(slot, 100 * MS, 250 * MS, 3, 2);
        spec.epoch = 100 + round;
        world.install(spec);
        world.renew(1, 1000 + round);
        world.run(90 * MS);
    }
    for slot in 0..5 {
        assert!(world.changes.iter().all(|change| change.slot != slot));
        let state = world.slot(slot).state;
        assert_eq!(state.judge.skipped, 0);
        assert_eq!(state.judge.lost, 0, "slot {slot}");
        let probes = &world.slot(slot).probes;
        for pair in probes.windows(2) {
            let gap_ns = pair[1].sent_ns - pair[0].sent_ns;
            assert!((80 * MS..=125 * MS).contains(&gap_ns), "{gap_ns}");
        }
    }
    world.path(0, 7, Some(Cause::InterfaceDown));
    world.run(S);
    for slot in 0..10 {
        assert_accounts(&mut world, slot);
    }
}

#[test]
fn removing_others_does_not_bunch_the_probes_of_who_stays() {
    for stays in 0..10 {
        let mut world = world();
        for slot in 0..10 {
            world.install(tracker(slot, 100 * MS, 50 * MS, 3, 2));
        }
        world.run(3 * S + 47 * MS);
        for slot in (0..10).filter(|slot| *slot != stays) {
            world.remove(slot);
        }
        world.run(S);
        for pair in world.slot(stays).probes.windows(2) {
            let gap_ns = pair[1].sent_ns - pair[0].sent_ns;
            assert!(gap_ns >= 50 * MS, "{stays}: {} ms", gap_ns / MS);
        }
    }
}

#[test]
fn the_next_user_of_a_slot_inherits_nothing() {
    let spec = tracker(0, 10 * MS, 500 * MS, 2, 3);
    let mut world = up(spec);
    world.net(0).delay_ns = (300 * MS, 300 * MS);
    world.run(S);
    // Replies and losses of the old user are under way.
    world.remove(0);
    let mut next = spec;
    next.epoch = 77;
    world.install(next);
    world.net(0).is_out = true;
    world.changes.clear();
    world.run(300 * MS);
    assert_eq!(world.changes, []);
    assert_eq!(world.slot(0).state.receive.received, 0);
    world.run(S);
    assert_eq!(downs(&world, 0).len(), 1);
    let second = world.slot(0).probes[1].deadline_ns;
    assert!(world.changes[0].at_ns >= second);
}

#[test]
fn an_early_reply_to_the_last_user_of_a_slot_tells_nothing_of_the_next() {
    let spec = tracker(0, 100 * MS, 50 * MS, 3, 5);
    let mut world = world();
    world.install(spec);
    world.net(0).delay_ns = (20 * MS, 20 * MS);
    world.run(105 * MS);
    // The reply waits in the ring buffer while the slot changes hands.
    world.stop_for(40 * MS);
    world.run(30 * MS);
    world.remove(0);
    let installed_ns = world.now_ns();
    world.install(TrackerSpec { epoch: 77, ..spec });
    world.run(S);
    let up = *world.changes.last().expect("a change");
    assert_eq!(words(&[up]), [("up", "replied")]);
    let first = world.slot(0).probes[0].answered_ns.expect("answered");
    assert!(first > installed_ns);
    assert_eq!(up.detection_ns, Some(up.at_ns - first));
}

/// Two hundred others come and go one by one: each probe of the one that stays is sent, in its turn.
#[test]
fn others_that_come_and_go_cost_no_probe() {
    let spec = tracker(0, 10 * MS, 500 * MS, 3, 2);
    let mut world = up(spec);
    let (skipped, first) = (
        world.slot(0).state.judge.skipped,
        world.slot(0).probes.len(),
    );
    let mut there = std::collections::VecDeque::new();
    for step in 1..=200_u32 {
        let slot = 1 + step % 40;
        let epoch = 1000 + step;
        // Of its cohort and of others.
        let interval_ns = [10 * MS, 10 * MS, 7 * MS, S][step as usize % 4];
        world.install(TrackerSpec {
            epoch,
            ..tracker(slot, interval_ns, 500 * MS, 3, 2)
        });
        there.push_back(slot);
        world.run(u64::from(step % 9) * MS);
        while there.len() > step as usize % 30 {
            let gone = if step % 2 == 0 {
                there.pop_front()
            } else {
                there.pop_back()
            };
            world.remove(gone.expect("one that is there"));
            world.run(u64::from(step % 5) * MS);
        }
    }
    world.run(S);
    let of_0: Vec<_> = world
        .changes
        .iter()
        .filter(|change| change.slot == 0)
        .collect();
    assert_eq!(of_0, Vec::<&Change>::new());
    let slot = world.slot(0);
    assert_eq!(
        (slot.state.judge.skipped, slot.state.judge.lost),
        (skipped, 0)
    );
    for pair in slot.probes[first - 1..].windows(2) {
        let gap_ns = pair[1].sent_ns - pair[0].sent_ns;
        // Places move while everybody is spread anew: not bunched, and never as far as two turns.
        assert!((5 * MS..30 * MS).contains(&gap_ns), "{gap_ns} ns");
    }
    // Cohorts without trackers are used again, not kept.
    assert!(world.engine.groups.len() <= 4);
}

#[test]
fn a_renewed_tracker_keeps_its_verdict_and_forgets_what_was_under_way() {
    // Fall 1: one loss of the old probes too many would show.
    let mut world = up(tracker(0, 100 * MS, S, 1, 2));
    world.net(0).delay_ns = (500 * MS, 500 * MS);
    world.run(2 * S);
    world.renew(0, 99);
    world.run(5 * S);
    assert_eq!(world.changes, []);
    assert!(world.slot(0).state.trouble.corrupt > 0);
    world.net(0).is_out = true;
    world.run(3 * S);
    assert_eq!(world.verdict(0), Verdict::Down);
}

#[test]
fn bit_sets_serve_through_many_rounds() {
    for (interval_ns, timeout_ns) in [(MS, MS), (MS, 60 * MS), (MS, 62 * MS), (MS, 190 * MS)] {
        let mut world = world();
        world.install(tracker(0, interval_ns, timeout_ns, 3, 60));
        world.net(0).delay_ns = (timeout_ns / 2, timeout_ns);
        world.run(S);
        assert_eq!(world.verdict(0), Verdict::Up);
        for _ in 0..10 {
            world.run(S);
            assert_eq!(downs(&world, 0), []);
            world.net(0).is_out = true;
            world.run(10 * MS + timeout_ns);
            world.net(0).is_out = false;
            world.run(70 * MS + 2 * timeout_ns);
            assert_eq!(world.verdict(0), Verdict::Up);
            world.changes.clear();
        }
    }
}

/// Random histories against a specification that sees the full record of probes and is no state
/// machine: it looks back from the end for the newest run that decides.
mod histories {
    use std::time::Instant;

    use tracker_ebpf::verdict::{Cause, Verdict};

    use super::super::{Command, TrackerSpec};
    use super::sim::{
        Calls, Change, FlowState, Lateness, MS, Net, Probe, Rng, S, Slot, US, World, tracker,
    };
    use crate::detector::flows::Turnover;

    /// A tracker and what the history did to it.
    struct Tracked {
        spec: TrackerSpec,
        is_installed: bool,
        /// Probes up to this one do not count.
        barrier: u64,
        /// The verdict that stands until probes after the barrier decide.
        base: Verdict,
        /// Its device was not reliable: it may be excused, but never blamed.
        is_excusable: bool,
        /// Its device does not count, or died too early to know: it is not known what left.
        is_blind: bool,
        fault: Option<Cause>,
        /// A verdict that must have been reached by a time, if nothing interferes.
        due: Option<(Verdict, u64)>,
        reported: Verdict,
        /// It was up when the hub stopped being able to send, and nothing was decided since.
        was_up: bool,
        /// Probes may have found it down since then: its device was not reliable.
        may_be_lost: bool,
        epochs: u32,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Answered,
        Lost,
        Void,
        UnderWay,
    }

    /// Looks, going back, for the newest run of so many.
    struct Run {
        needed: u8,
        count: u8,
        end: u64,
        found: Option<u64>,
    }

    impl Run {
        const fn of(needed: u8) -> Self {
            Self {
                needed,
                count: 0,
                end: 0,
                found: None,
            }
        }

        fn see(&mut self, sequence: u64, belongs: bool) {
            if self.found.is_some() {
                return;
            }
            if !belongs {
                self.count = 0;
                return;
            }
            if self.count == 0 {
                self.end = sequence;
            }
            self.count += 1;
            if self.count == self.needed {
                self.found = Some(self.end);
            }
        }

        fn may_beat(&self, end: u64) -> bool {
            self.found.is_none() && self.count > 0 && self.end > end
        }
    }

    /// A probe that was under way in a tick so late that the hub was in no position to judge it.
    fn is_void(probe: &Probe, timeout_ns: u64, late: &[Lateness]) -> bool {
        late.iter()
            .rev()
            .take_while(|late| late.tick_ns > probe.sent_ns)
            .any(|late| {
                late.late_ns >= (timeout_ns / 2).max(5 * MS)
                    && late.previous_tick_ns < probe.deadline_ns
            })
    }

    fn fate(slot: &Slot, probe: &Probe, now_ns: u64, late: &[Lateness]) -> Fate {
        if probe.answered_ns.is_some() {
            Fate::Answered
        } else if probe.deadline_ns > now_ns {
            Fate::UnderWay
        } else if is_void(probe, slot.timeout_ns, late) {
            Fate::Void
        } else {
            Fate::Lost
        }
    }

    /// What decides, by the record alone.
    #[derive(Debug, Default)]
    struct Decided {
        /// Newest run of `rise` replies, counted at their arrival.
        up_at_once: Option<u64>,
        /// Newest run of `rise` replies, counted at their probes' timeouts.
        up_in_order: Option<u64>,
        /// Newest run of `fall` losses of probes that left the hub, as far as anybody can know.
        down: Option<u64>,
    }

    /// Reads the record back from its end: to the newest run, or for the newest of each kind.
    fn decided(
        slot: &Slot,
        tracked: &Tracked,
        now_ns: u64,
        late: &[Lateness],
        dead: &[(u64, u64)],
        only_newest: bool,
    ) -> Decided {
        let has_left = |probe: &Probe| {
            let sent_ns = probe.sent_ns;
            let is_dead = |(from_ns, to_ns): &(u64, u64)| (*from_ns..*to_ns).contains(&sent_ns);
            probe.has_left || tracked.is_blind || !dead.iter().any(is_dead)
        };
        let rules = tracked.spec.rules;
        let mut at_once = Run::of(rules.rise);
        let mut in_order = Run::of(rules.rise);
        let mut down = Run::of(rules.fall);
        for sequence in (tracked.barrier + 1..=slot.probes.len() as u64).rev() {
            let probe = &slot.probes[sequence as usize - 1];
            let fate = fate(slot, probe, now_ns, late);
            at_once.see(sequence, fate == Fate::Answered);
            if probe.deadline_ns <= now_ns && fate != Fate::Void {
                in_order.see(sequence, fate == Fate::Answered);
                down.see(sequence, fate == Fate::Lost && has_left(probe));
            }
            let best = at_once.found.max(in_order.found).max(down.found);
            let is_open = |end| {
                [&at_once, &in_order, &down]
                    .iter()
                    .any(|run| run.may_beat(end))
            };
            if only_newest && best.is_some_and(|end| !is_open(end)) {
                break;
            }
        }
        Decided {
            up_at_once: at_once.found,
            up_in_order: in_order.found,
            down: down.found,
        }
    }

    impl Decided {
        fn verdict(&self, base: Verdict, up: Option<u64>) -> Verdict {
            match (up, self.down) {
                (None, None) => base,
                (up, down) if up > down => Verdict::Up,
                _ => Verdict::Down,
            }
        }
    }

    struct History {
        seed: u64,
        rng: Rng,
        world: World,
        tracked: Vec<Tracked>,
        path_faults: [Option<Cause>; 2],
        is_timely: bool,
        has_moved: bool,
        seen: usize,
    }

    const DEVICES: [u32; 2] = [7, 8];

    impl History {
        fn new(seed: u64) -> Self {
            let mut rng = Rng(seed);
            let mut world = World::new(rng.next());
            let is_timely = rng.chance(600);
            world.late_ns = match (is_timely, rng.range(0, 2)) {
                (true, 0) => (0, 0),
                (true, _) => (0, 300 * US),
                (false, 0) => (0, 3 * MS),
                (false, _) => (0, 25 * MS),
            };
            world.kernel().send_cost_ns = rng.pick(&[0, 0, 10 * US, 100 * US]);
            let base_ns = rng.pick(&[1, 2, 5, 10, 20, 50, 100, 333, 1000]) * MS;
            let mut history = Self {
                seed,
                world,
                tracked: Vec::new(),
                path_faults: [None; 2],
                is_timely,
                has_moved: false,
                seen: 0,
                rng,
            };
            for (path, ifindex) in DEVICES.into_iter().enumerate() {
                history.world.path(path as u32, ifindex, None);
                let counts = !history.rng.chance(100);
                let lag_ns = history.rng.pick(&[0, 0, 500 * US]);
                let device = history.world.kernel().device(ifindex);
                (device.is_counting, device.counter_lag_ns) = (counts, lag_ns);
            }
            let cohorts = [0, 1].map(|_| {
                let interval_ns = base_ns * history.rng.pick(&[1, 1, 2, 3]);
                let timeout_ns = match history.rng.range(0, 3) {
                    0 => interval_ns / 2,
                    1 => interval_ns,
                    _ => interval_ns * history.rng.range(1, 40) / 4,
                };
                (interval_ns, timeout_ns.max(MS))
            });
            for slot in 0..history.rng.range(1, 4) as u32 {
                let (interval_ns, timeout_ns) = history.rng.pick(&cohorts);
                let fall = history.rng.range(1, 5) as u8;
                let rise = history.rng.range(1, 4) as u8;
                let mut spec = tracker(slot, interval_ns, timeout_ns, fall, rise);
                spec.path = history.rng.range(0, 1) as u32;
                spec.flows.turnover = history.rng.pick(&[
                    Turnover::OnLoss,
                    Turnover::OnLoss,
                    Turnover::Always,
                    Turnover::Never,
                ]);
                spec.flows.is_connection = history.rng.chance(300);
                spec.flows.is_identifier = history.rng.chance(300);
                let device = history.world.kernel().device(DEVICES[spec.path as usize]);
                let is_blind = !device.is_counting;
                history.tracked.push(Tracked {
                    spec,
                    is_installed: false,
                    barrier: 0,
                    base: Verdict::Unknown,
                    is_excusable: is_blind,
                    is_blind,
                    fault: None,
                    due: None,
                    reported: Verdict::Unknown,
                    was_up: false,
                    may_be_lost: false,
                    epochs: 0,
                });
                history.install(slot as usize);
            }
            history
        }

        /// Fails, saying how to see it again.
        #[track_caller]
        fn require(&self, holds: bool, slot: u32, what: impl FnOnce() -> String) {
            if holds {
                return;
            }
            let kernel = self.world.engine.datapath();
            let (now_ns, state) = (kernel.now_ns, &kernel.slots[slot as usize]);
            let tracked = &self.tracked[slot as usize];
            let skip = state.probes.len().saturating_sub(12);
            let tail: Vec<_> = state.probes[skip..]
                .iter()
                .map(|probe| match fate(state, probe, now_ns, &self.world.late) {
                    Fate::Answered => '+',
                    Fate::Void => '0',
                    Fate::UnderWay => '?',
                    Fate::Lost if probe.has_left => '-',
                    Fate::Lost => 'x',
                })
                .collect();
            panic!(
                "TRACKER_SIM_SEED={} TRACKER_SIM_RUNS=1: tracker {slot} at {} us: {}; last probes {tail:?} \
                 of {}, counting after {}; {:?}",
                self.seed,
                (now_ns - 1000 * S) / US,
                what(),
                state.probes.len(),
                tracked.barrier,
                tracked.spec,
            );
        }

        fn install(&mut self, at: usize) {
            let tracked = &mut self.tracked[at];
            tracked.epochs += 1;
            tracked.spec.epoch = tracked.epochs;
            tracked.is_installed = true;
            tracked.barrier = 0;
            tracked.was_up = false;
            tracked.base = Verdict::Unknown;
            tracked.reported = Verdict::Unknown;
            tracked.fault = None;
            self.world.install(tracked.spec);
            self.seen = self.world.changes.len();
        }

        fn no_more_promises(&mut self) {
            for tracked in &mut self.tracked {
                tracked.due = None;
            }
        }

        /// Time that the hub may add to what the rules say.
        fn slack_ns(&self, spec: TrackerSpec, count: u8) -> u64 {
            let late_ns = self.world.late_ns.1 + MS;
            let short = if spec.interval_ns <= 2 * MS { 2 } else { 0 };
            // Who comes and goes moves the others' turns by up to an interval.
            let moved_ns = u64::from(self.has_moved) * spec.interval_ns;
            4 * late_ns + moved_ns + short * u64::from(count) * spec.interval_ns
        }

        /// From now on a tracker is out, or well: what it must be, and when at the latest.
        fn promise(&mut self, at: usize, verdict: Verdict) {
            let tracked = &self.tracked[at];
            let spec = tracked.spec;
            let device = DEVICES[spec.path as usize];
            let (calls, room) = (self.world.kernel().calls, self.world.kernel().ring_room);
            let is_undisturbed = self.is_timely
                && tracked.is_installed
                && !tracked.is_excusable
                && tracked.fault.is_none()
                && self.path_faults[spec.path as usize].is_none()
                && calls == Calls::Succeed
                && !self.world.slot(spec.slot).is_refused
                && self.world.kernel().device(device).is_transmitting;
            let count = match verdict {
                Verdict::Down => spec.rules.fall,
                _ => spec.rules.rise,
            };
            let wait_ns = match verdict {
                Verdict::Up if room == usize::MAX => self.world.net(spec.slot).delay_ns.1,
                _ => spec.timeout_ns,
            };
            let within_ns = u64::from(count) * spec.interval_ns + wait_ns;
            let at_ns = self.world.now_ns() + within_ns + self.slack_ns(spec, count);
            self.tracked[at].due = is_undisturbed.then_some((verdict, at_ns));
        }

        fn run(&mut self, ns: u64) {
            let end_ns = self.world.now_ns() + ns;
            let mut world = std::mem::replace(&mut self.world, World::new(0));
            world.run_until(end_ns, |world, tick_ns| {
                std::mem::swap(&mut self.world, world);
                self.check(tick_ns);
                std::mem::swap(&mut self.world, world);
            });
            self.world = world;
        }

        /// Holds the engine against the specification after a tick.
        fn check(&mut self, tick_ns: u64) {
            for at in self.seen..self.world.changes.len() {
                self.check_change(self.world.changes[at]);
            }
            self.seen = self.world.changes.len();
            for at in 0..self.tracked.len() {
                if self.tracked[at].is_installed {
                    self.check_tracker(at, tick_ns);
                }
            }
        }

        /// When a tracker's device was certainly dead: what left just before or after hides what did
        /// not just then.
        fn dead(&self, at: usize) -> Vec<(u64, u64)> {
            let spec = self.tracked[at].spec;
            let late_ns = if self.is_timely { 0 } else { 60 * MS };
            let edge_ns = spec.interval_ns + 12 * MS + late_ns;
            let device = &self.world.engine.datapath().devices[&DEVICES[spec.path as usize]];
            let deaths = device.deaths.iter();
            deaths
                .map(|(from_ns, to_ns)| (from_ns + edge_ns, to_ns.saturating_sub(edge_ns)))
                .collect()
        }

        fn check_tracker(&mut self, at: usize, tick_ns: u64) {
            let index = self.tracked[at].spec.slot;
            let tracked = &self.tracked[at];
            let slot = &self.world.engine.datapath().slots[index as usize];
            let (base, sent) = (tracked.base, slot.probes.len() as u64);
            let (got, dropped) = (slot.verdict(), slot.events_dropped > 0);
            let decided = decided(
                slot,
                tracked,
                tick_ns,
                &self.world.late,
                &self.dead(at),
                !dropped,
            );
            let up = decided.up_at_once.max(decided.up_in_order);
            let mut at_once = decided.verdict(base, up);
            let mut in_order = decided.verdict(base, decided.up_in_order);
            let (is_lost, was_refused) = (decided.down.is_some(), slot.was_refused);
            let is_by_fault = tracked.was_up && !is_lost;
            if was_refused {
                // Sending comes after judging: what was up by then is undecided now, and what a fault alone took down.
                for verdict in [&mut at_once, &mut in_order] {
                    if *verdict == Verdict::Up || *verdict == Verdict::Down && is_by_fault {
                        *verdict = Verdict::Unknown;
                    }
                }
                self.world.slot(index).was_refused = false;
                let tracked = &mut self.tracked[at];
                (tracked.barrier, tracked.base) = (sent, got);
                tracked.due = None;
            }
            let tracked = &self.tracked[at];
            let is_right = got == at_once || dropped && got == in_order;
            self.require(is_right || tracked.is_excusable, index, || {
                format!("is {got:?}, must be {at_once:?}: {decided:?}")
            });
            let tracked = &mut self.tracked[at];
            tracked.may_be_lost |= is_lost && tracked.is_excusable;
            tracked.was_up &= !is_lost || tracked.is_excusable;
            let tracked = &self.tracked[at];
            self.require(got == tracked.reported, index, || {
                format!("is {got:?}, but {:?} was reported", tracked.reported)
            });
            if let Some((verdict, at_ns)) = tracked.due
                && tick_ns >= at_ns
            {
                self.require(got == verdict, index, || {
                    format!("should long be {verdict:?}, is {got:?}: {decided:?}")
                });
                self.tracked[at].due = None;
            }
        }

        /// Nobody is called up or down without its run, and detection counts from what told.
        fn check_change(&mut self, change: Change) {
            let at = change.slot as usize;
            let tracked = &self.tracked[at];
            let turned = tracked.reported != change.verdict;
            let slot = &self.world.engine.datapath().slots[at];
            let decided = decided(
                slot,
                tracked,
                change.at_ns,
                &self.world.late,
                &self.dead(at),
                false,
            );
            let first = slot.probes.get(tracked.barrier as usize);
            if turned && change.verdict != Verdict::Unknown {
                let found = match change.verdict {
                    Verdict::Down => decided.down,
                    _ => decided.up_at_once.max(decided.up_in_order),
                };
                self.require(found.is_some(), change.slot, || {
                    format!("{change:?} without its run")
                });
            }
            if let (Some(detection_ns), Some(first)) = (change.detection_ns, first) {
                self.require(
                    change.at_ns - detection_ns >= first.sent_ns,
                    change.slot,
                    || format!("{change:?} counts from before the first probe that does"),
                );
                let since_ns = change.at_ns - detection_ns;
                let told = slot
                    .probes
                    .iter()
                    .filter(|probe| probe.sent_ns >= since_ns && probe.answered_ns.is_none());
                let fall = usize::from(tracked.spec.rules.fall);
                self.require(
                    change.verdict != Verdict::Down || told.take(fall).count() == fall,
                    change.slot,
                    || format!("{change:?}: too late to have seen all losses"),
                );
            }
            let tracked = &mut self.tracked[at];
            if turned {
                tracked.was_up = change.verdict == Verdict::Unknown
                    && (tracked.was_up || tracked.reported == Verdict::Up);
                tracked.may_be_lost &= tracked.was_up;
            }
            tracked.reported = change.verdict;
        }

        /// A fault of the hub's own: what was up, or was when the faults began, is down or undecided at
        /// once; nothing else changes.
        fn faulted(&mut self, at: usize, cause: Cause, before: Verdict) {
            let index = self.tracked[at].spec.slot;
            let got = self.world.verdict(index);
            let tracked = &mut self.tracked[at];
            let was_up = before == Verdict::Up || tracked.was_up;
            tracked.was_up = was_up;
            let expected = match (before, cause) {
                (Verdict::Up, Cause::SendFailed) => Verdict::Unknown,
                (Verdict::Unknown, Cause::SendFailed) => Verdict::Unknown,
                (Verdict::Down, Cause::SendFailed) if was_up && tracked.may_be_lost => got,
                (Verdict::Down, Cause::SendFailed) if was_up => Verdict::Unknown,
                (Verdict::Up | Verdict::Unknown, _) if was_up => Verdict::Down,
                (other, _) => other,
            };
            self.require(got == expected, index, || {
                format!("{before:?} became {got:?} by {}", cause.as_str())
            });
            self.barrier(at);
        }

        fn barrier(&mut self, at: usize) {
            let index = self.tracked[at].spec.slot;
            let verdict = self.world.verdict(index);
            let sent = self.world.slot(index).probes.len() as u64;
            let tracked = &mut self.tracked[at];
            (tracked.barrier, tracked.base, tracked.reported) = (sent, verdict, verdict);
            tracked.due = None;
            self.seen = self.world.changes.len();
        }

        fn set_path_fault(&mut self, path: usize, fault: Option<Cause>) {
            let of_path =
                |tracked: &Tracked| tracked.is_installed && tracked.spec.path as usize == path;
            let before: Vec<_> = (0..self.tracked.len())
                .map(|at| self.world.verdict(self.tracked[at].spec.slot))
                .collect();
            let changes = self.path_faults[path] != fault;
            self.path_faults[path] = fault;
            self.world.path(path as u32, DEVICES[path], fault);
            for (at, before) in before.into_iter().enumerate() {
                if changes && of_path(&self.tracked[at]) {
                    match fault.or(self.tracked[at].fault) {
                        Some(cause) => self.faulted(at, cause, before),
                        None => self.tracked[at].due = None,
                    }
                }
            }
            self.seen = self.world.changes.len();
        }

        fn set_fault(&mut self, at: usize, fault: Option<Cause>) {
            let spec = self.tracked[at].spec;
            let before = self.world.verdict(spec.slot);
            let changes = self.tracked[at].fault != fault;
            self.tracked[at].fault = fault;
            self.world.command(Command::SetFault(spec.slot, fault));
            if changes && let Some(cause) = self.path_faults[spec.path as usize].or(fault) {
                self.faulted(at, cause, before);
            }
            self.tracked[at].due = None;
            self.seen = self.world.changes.len();
        }

        /// One thing happens.
        fn act(&mut self) {
            let at = self.rng.range(0, self.tracked.len() as u64 - 1) as usize;
            let spec = self.tracked[at].spec;
            let index = spec.slot;
            let cause = self.rng.pick(&[
                Cause::InterfaceDown,
                Cause::InterfaceMissing,
                Cause::NextHopUnresolved,
            ]);
            match self.rng.range(0, 29) {
                0..=5 => {
                    self.world.net(index).is_out = true;
                    self.promise(at, Verdict::Down);
                }
                6..=10 => {
                    let low_ns = self.rng.range(20 * US, spec.timeout_ns / 2);
                    let high_ns = self.rng.range(low_ns, spec.timeout_ns);
                    *self.world.net(index) = Net {
                        delay_ns: (low_ns, high_ns),
                        twice_per_mille: self.rng.pick(&[0, 200]),
                        ..Default::default()
                    };
                    self.promise(at, Verdict::Up);
                }
                11..=15 => {
                    let low_ns = self.rng.range(20 * US, spec.timeout_ns);
                    let high_ns = self.rng.range(low_ns, 2 * spec.timeout_ns);
                    *self.world.net(index) = Net {
                        loss_per_mille: self.rng.pick(&[0, 50, 300, 600, 900]),
                        twice_per_mille: self.rng.pick(&[0, 200]),
                        delay_ns: (low_ns, high_ns),
                        is_wrong_way: self.rng.chance(50),
                        is_corrupting: self.rng.chance(50),
                        flows: self.rng.pick(&[
                            FlowState::Passes,
                            FlowState::Passes,
                            FlowState::Condemns,
                            FlowState::KeepsOld,
                        ]),
                        ..Default::default()
                    };
                    self.tracked[at].due = None;
                }
                16 => self.set_path_fault(spec.path as usize, Some(cause)),
                17..=18 => self.set_path_fault(spec.path as usize, None),
                19 if self.tracked[at].is_installed => {
                    let cause = self.rng.pick(&[cause, Cause::SendFailed]);
                    self.set_fault(at, Some(cause));
                }
                20..=21 if self.tracked[at].is_installed => self.set_fault(at, None),
                22 if self.tracked[at].is_installed => {
                    self.tracked[at].epochs += 1;
                    self.world.renew(index, self.tracked[at].epochs);
                    self.barrier(at);
                }
                23 => {
                    self.has_moved = true;
                    self.no_more_promises();
                    if self.tracked[at].is_installed {
                        self.tracked[at].is_installed = false;
                        self.world.remove(index);
                    } else {
                        self.install(at);
                    }
                }
                24 if !self.is_timely => {
                    let most_ns = self
                        .rng
                        .pick(&[10 * MS, spec.timeout_ns, 10 * S])
                        .max(2 * MS);
                    let stop_ns = self.rng.range(MS, most_ns);
                    self.world.stop_for(stop_ns);
                    self.run(stop_ns);
                }
                25 => {
                    self.no_more_promises();
                    self.world.kernel().calls = match self.rng.range(0, 5) {
                        0 => Calls::Fail(105),
                        1 => Calls::StopAfter(self.rng.range(0, 2) as usize),
                        _ => Calls::Succeed,
                    };
                }
                26 => {
                    self.no_more_promises();
                    let refuses = self.rng.chance(400);
                    self.world.slot(index).is_refused = refuses;
                }
                27 => {
                    self.no_more_promises();
                    self.world.kernel().ring_room = self.rng.pick(&[0, 1, usize::MAX, usize::MAX]);
                }
                28 if self.rng.chance(200) => {
                    let now_ns = self.world.now_ns();
                    let device = self.world.kernel().device(DEVICES[spec.path as usize]);
                    device.set_transmitting(false, now_ns);
                    let is_blind = device.proofs < 6;
                    for tracked in &mut self.tracked {
                        if tracked.spec.path == spec.path {
                            tracked.is_excusable = true;
                            tracked.is_blind |= is_blind;
                            tracked.due = None;
                        }
                    }
                }
                29 => {
                    let now_ns = self.world.now_ns();
                    let device = self.world.kernel().device(DEVICES[spec.path as usize]);
                    device.set_transmitting(true, now_ns);
                }
                _ => {}
            }
        }

        /// All is well again: everybody is up, and every probe is accounted for.
        fn end(&mut self) {
            self.no_more_promises();
            self.world.late_ns = (0, 200 * US);
            self.world.kernel().calls = Calls::Succeed;
            self.world.kernel().ring_room = usize::MAX;
            let mut quiet_ns = 0;
            for (path, ifindex) in DEVICES.into_iter().enumerate() {
                self.set_path_fault(path, None);
                let now_ns = self.world.now_ns();
                let device = self.world.kernel().device(ifindex);
                device.set_transmitting(true, now_ns);
            }
            for at in 0..self.tracked.len() {
                let spec = self.tracked[at].spec;
                self.world.slot(spec.slot).is_refused = false;
                *self.world.net(spec.slot) = Net::default();
                if self.tracked[at].is_installed {
                    self.set_fault(at, None);
                }
                let runs = u64::from(spec.rules.rise + spec.rules.fall) + 2;
                quiet_ns = quiet_ns.max(runs * spec.interval_ns + 2 * spec.timeout_ns);
            }
            self.run(quiet_ns + 20 * MS);
            for at in 0..self.tracked.len() {
                let index = self.tracked[at].spec.slot;
                let verdict = self.world.verdict(index);
                let is_up = verdict == Verdict::Up || !self.tracked[at].is_installed;
                self.require(is_up, index, || {
                    format!("is {verdict:?} although all is well")
                });
            }
            for path in 0..DEVICES.len() {
                self.set_path_fault(path, Some(Cause::InterfaceDown));
            }
            self.run(quiet_ns);
            for at in 0..self.tracked.len() {
                if self.tracked[at].is_installed {
                    self.check_counters(at);
                }
            }
        }

        fn check_counters(&mut self, at: usize) {
            let spec = self.tracked[at].spec;
            let state = self.world.slot(spec.slot).state;
            let (sent, received, judge) = (state.send.sent, state.receive.received, state.judge);
            let lost = judge.lost + u64::from(judge.lost_pending);
            let is_even = judge.judged == sent && received + lost + judge.void == sent;
            self.require(is_even, spec.slot, || {
                format!("counters do not add up: {state:?}")
            });
            let slot = &self.world.engine.datapath().slots[spec.slot as usize];
            let count = |wanted: Fate| {
                let fates = slot.probes.iter();
                fates
                    .filter(|probe| fate(slot, probe, u64::MAX, &self.world.late) == wanted)
                    .count() as u64
            };
            let is_exact = (received, lost, judge.void)
                == (count(Fate::Answered), count(Fate::Lost), count(Fate::Void));
            self.require(is_exact || self.tracked[at].is_excusable, spec.slot, || {
                format!("counters tell another story: {state:?}")
            });
            let mut gaps = slot
                .probes
                .windows(2)
                .map(|pair| pair[1].sent_ns - pair[0].sent_ns);
            let shortest_ns = gaps.by_ref().min().unwrap_or(u64::MAX);
            self.require(
                self.has_moved
                    || spec.interval_ns <= MS
                    || shortest_ns + 200 * US >= spec.interval_ns / 2,
                spec.slot,
                || format!("two probes within {shortest_ns} ns"),
            );
        }

        /// The whole history; says how many probes it had.
        fn play(mut self) -> usize {
            let longest_ns = self
                .tracked
                .iter()
                .map(|tracked| tracked.spec.interval_ns)
                .max();
            let longest_ns = longest_ns.unwrap_or(MS);
            for _ in 0..self.rng.range(5, 40) {
                let wait_ns = match self.rng.range(0, 3) {
                    0 => 0,
                    1 => self.rng.range(0, longest_ns),
                    _ => self.rng.range(0, 10 * longest_ns),
                };
                self.run(wait_ns);
                self.act();
            }
            self.end();
            let kernel = self.world.engine.datapath();
            kernel.slots.iter().map(|slot| slot.probes.len()).sum()
        }
    }

    fn number(name: &str) -> Option<u64> {
        std::env::var(name).ok()?.parse().ok()
    }

    /// `TRACKER_SIM_SEED` starts elsewhere, `TRACKER_SIM_RUNS` goes on for longer.
    #[test]
    fn random_histories_agree_with_the_plain_specification() {
        let seed = number("TRACKER_SIM_SEED").unwrap_or(1);
        let runs = number("TRACKER_SIM_RUNS").unwrap_or(2000);
        let started = Instant::now();
        let probes: usize = (seed..seed + runs)
            .map(|seed| History::new(seed).play())
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{runs} histories from seed {seed}, {probes} probes: {:.0} histories and {:.0} probes a second",
            runs as f64 / seconds,
            probes as f64 / seconds,
        );
    }
}

/// What came from before, and what it must not touch.
mod before {
    use super::*;

    /// Replies to probes of the old epoch fail the new token: they are no forgeries.
    #[test]
    fn replies_of_the_old_epoch_are_no_cause() {
        let mut world = up(tracker(0, 100 * MS, 500 * MS, 3, 2));
        world.net(0).delay_ns = (350 * MS, 350 * MS);
        world.run(2 * S);
        world.renew(0, 99);
        world.slot(0).net.loss_per_mille = 1_000;
        world.run(3 * S);
        assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
    }

    /// An error that replies have refuted since explains nothing.
    #[test]
    fn an_error_before_replies_is_no_cause() {
        let mut world = up(usual());
        world.net(0).is_unreachable = true;
        world.run(100 * MS);
        world.net(0).is_unreachable = false;
        world.run(S);
        assert_eq!(words(&world.changes), []);
        world.net(0).is_out = true;
        world.run(S);
        assert_eq!(words(&downs(&world, 0)), [("down", "no-reply")]);
    }

    /// Everything stands still after a probe was sent, until after its timeout: it could not be answered.
    #[test]
    fn a_pause_between_two_ticks_blames_nobody() {
        for pause_ms in [100, 300, 490, 510, 600, 740, 760, 900, 1_200] {
            let mut world = up(tracker(0, S, 500 * MS, 1, 1));
            world.net(0).delay_ns = (pause_ms * MS, pause_ms * MS);
            let sent = world.slot(0).probes.len();
            while world.slot(0).probes.len() == sent {
                world.run(MS / 2);
            }
            world.net(0).delay_ns = (100 * US, 100 * US);
            world.stop_for(pause_ms * MS);
            world.run(pause_ms * MS + 3 * S);
            assert_eq!(words(&downs(&world, 0)), [], "{pause_ms} ms");
        }
    }

    /// Replies to what left otherwise say nothing of a device's counter, which later tells that frames stay.
    #[test]
    fn a_device_is_not_denied_by_replies_to_what_left_otherwise() {
        for timeout_ms in [50, 150, 250, 450, 500, 1_000] {
            for after_ms in [0, 10, 30, 60, 90] {
                for device in [7, 8] {
                    let what =
                        format!("timeout {timeout_ms}, after {after_ms} ms, device {device}");
                    let mut world = up(tracker(0, 100 * MS, timeout_ms * MS, 3, 2));
                    world.run(after_ms * MS);
                    let _ = world.kernel().device(device);
                    world.command(Command::UseDevice(device));
                    if device == 8 {
                        world.path(0, device, None);
                        world.renew(0, 99);
                    }
                    world.run(5 * S);
                    world.changes.clear();
                    world.kernel().device(device).is_transmitting = false;
                    world.run(5 * S);
                    assert_eq!(words(&downs(&world, 0)), [], "{what}");
                    assert!(
                        words(&world.changes).contains(&("unknown", "send-failed")),
                        "{what}: {:?}",
                        words(&world.changes)
                    );
                }
            }
        }
    }
}

/// Flows of the probes of a tracker from the `since`-th on.
fn flows_since(world: &mut World, since: usize) -> Vec<u16> {
    let probes = &world.slot(0).probes;
    probes[since..].iter().map(|probe| probe.flow).collect()
}

#[test]
fn a_service_that_condemned_flows_is_up_again_once_it_passes_new_ones() {
    for (interval_ns, delay_ns) in [
        (100 * MS, MS),
        (100 * MS, 40 * MS),
        (10 * MS, 45 * MS),
        (S, MS),
    ] {
        for (fall, rise) in [(1, 1), (3, 2), (5, 4)] {
            let spec = tracker(0, interval_ns, 50 * MS, fall, rise);
            let mut world = up(spec);
            world.net(0).delay_ns = (delay_ns, delay_ns);
            world.run(2 * S);
            assert!(
                flows_since(&mut world, 0)
                    .iter()
                    .all(|flow| *flow == 61_440)
            );
            world.net(0).is_out = true;
            world.run(20 * interval_ns);
            assert_eq!(world.verdict(0), Verdict::Down);
            let since = world.slot(0).probes.len();
            world.changes.clear();
            world.net(0).is_out = false;
            world.net(0).flows = FlowState::Condemns;
            let under_way = delay_ns / interval_ns + 1;
            world.run((u64::from(rise) + 4 + 2 * under_way) * interval_ns + 50 * MS);
            assert_eq!(
                world.verdict(0),
                Verdict::Up,
                "{interval_ns} {delay_ns} {fall} {rise}"
            );
            world.run(50 * interval_ns);
            assert_eq!(world.verdict(0), Verdict::Up);
            // It stays on the flow that passes, and says so.
            let flows = flows_since(&mut world, since);
            let last = flows[flows.len() - 1];
            assert!(flows[flows.len() - 30..].iter().all(|flow| *flow == last) && last != 61_440);
            let moved = world.changes.last().and_then(|change| change.moved);
            let moved = moved.unwrap_or_else(|| panic!("{:?}", world.changes));
            assert_eq!((moved.from, moved.to), (61_440, last));
            assert!(moved.is_old_lost || rise == 1, "{moved:?}");
            // A successor goes on with it.
            let before = world.slot(0).probes.len();
            let mut world = world.restart(MS, &[spec], &[(0, 7, None)]);
            world.run(20 * interval_ns);
            assert!(
                flows_since(&mut world, before)
                    .iter()
                    .all(|flow| *flow == last)
            );
            assert_eq!(world.verdict(0), Verdict::Up);
        }
    }
}

#[test]
fn a_flow_that_passes_again_is_kept() {
    let mut world = up(usual());
    world.net(0).is_out = true;
    world.run(2 * S);
    world.net(0).is_out = false;
    let since = world.slot(0).probes.len();
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    let flows = flows_since(&mut world, since + 2);
    assert!(flows.iter().all(|flow| *flow == 61_440), "{flows:?}");
    assert!(world.changes.iter().all(|change| change.moved.is_none()));
}

#[test]
fn what_passes_old_flows_alone_is_up_and_stays_so() {
    let mut world = up(usual());
    world.run(S);
    world.net(0).flows = FlowState::KeepsOld;
    world.net(0).loss_per_mille = 50;
    let before = world.slot(0).probes.len();
    world.changes.clear();
    world.run(100 * S);
    // A loss here and there is no reason to try what is known to be dropped.
    let flows = flows_since(&mut world, before);
    let others = flows.iter().filter(|flow| **flow != 61_440).count();
    let downs = downs(&world, 0).len();
    assert!(
        others == 0 || downs > 0,
        "{others} new flows, {downs} times down"
    );
    world.net(0).loss_per_mille = 0;
    world.net(0).is_out = true;
    world.run(S);
    world.net(0).is_out = false;
    world.run(S);
    assert_eq!(world.verdict(0), Verdict::Up);
    let last = world.slot(0).probes.last().map(|probe| probe.flow);
    assert_eq!(last, Some(61_440));
}

#[test]
fn a_service_that_passes_each_flow_once_is_not_up() {
    let mut world = up(usual());
    world.net(0).flows = FlowState::Condemns;
    world.net(0).is_out = true;
    world.run(2 * S);
    world.net(0).is_out = false;
    world.changes.clear();
    // Each flow is condemned by its first probe.
    let end_ns = world.now_ns() + 20 * S;
    world.run_until(end_ns, |world, _| {
        let slot = world.slot(0);
        let seen: Vec<u16> = slot.passed.drain().collect();
        slot.condemned.extend(seen);
    });
    assert!(
        world
            .changes
            .iter()
            .all(|change| change.verdict != Verdict::Up)
    );
}

#[test]
fn every_second_probe_of_what_is_down_takes_a_new_flow_and_none_is_more() {
    let mut world = up(usual());
    world.net(0).is_out = true;
    world.run(S);
    let since = world.slot(0).probes.len();
    world.run(100 * S);
    let flows = flows_since(&mut world, since);
    assert!((999..=1_001).contains(&flows.len()), "{}", flows.len());
    let new: Vec<u16> = flows
        .iter()
        .copied()
        .filter(|flow| *flow != 61_440)
        .collect();
    assert!(new.len().abs_diff(flows.len() / 2) <= 1, "{}", new.len());
    let different: std::collections::HashSet<u16> = new.iter().copied().collect();
    assert_eq!(different.len(), new.len(), "none returns within 100 s");
}

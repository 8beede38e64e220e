//! Random histories of one tracker, by the million, held against a plain specification.
//!
//! Schedule, verdict, and what a reply is worth are the code that runs in daemon and kernel: [`tracker_user::detector::schedule`],
//! [`tracker_user::detector::in_flight`], [`tracker_user::detector::tracker`], [`tracker_ebpf::verdict`] and [`tracker_ebpf::window`]. The
//! engine that joins them has a simulation of its own (`src/engine/sim.rs`), with the kernel's maps, devices and several
//! trackers, and is much slower.
//!
//! A history that fails prints its seed and what happened, step by step. `TRACKER_SEED` starts at another history,
//! `TRACKER_HISTORIES` says how many, `TRACKER_SOAK_SECONDS` goes on for this long, from a seed of the moment unless one
//! is given.

#[path = "histories/cases.rs"]
mod cases;
#[path = "histories/code.rs"]
mod code;
#[path = "histories/spec.rs"]
mod spec;
#[path = "histories/world.rs"]
mod world;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use cases::Case;
use code::{Code, Real};
use spec::{PROBES, newest_run, newest_run_around};
use tracker_ebpf::verdict::Rules;
use world::{Played, World};

/// Histories that a thread takes at a time.
const CHUNK: u64 = 4_096;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays so many histories from this seed on; the count of those before the first that goes wrong, if any does.
fn play<C: Code>(world: &mut World<C, false>, seed: u64, count: u64) -> Result<Played, u64> {
    let mut all = Played::default();
    for at in 0..count {
        all += world.play(seed.wrapping_add(at)).map_err(|_| at)?;
    }
    Ok(all)
}

#[test]
fn random_histories_agree_with_the_plain_specification() {
    let soak = number("TRACKER_SOAK_SECONDS").map(Duration::from_secs);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let fresh = soak.map(|_| now.map_or(1, |now| now.as_nanos() as u64));
    let seed = number("TRACKER_SEED").or(fresh).unwrap_or(1);
    let usual = if cfg!(debug_assertions) {
        200_000
    } else {
        3_000_000
    };
    let most = number("TRACKER_HISTORIES").unwrap_or(usual);
    println!("TRACKER_SEED={seed}");
    let (begun, taken) = (Instant::now(), AtomicU64::new(0));
    let failed = Mutex::new(None);
    // Each processor takes the next few, until all are done or one went wrong.
    let work = || {
        let mut world = World::<Real, false>::new();
        let mut all = Played::default();
        loop {
            let from = taken.fetch_add(CHUNK, Ordering::Relaxed);
            let count = match soak {
                Some(soak) if begun.elapsed() < soak => CHUNK,
                None if from < most => CHUNK.min(most - from),
                _ => return all,
            };
            match play(&mut world, seed.wrapping_add(from), count) {
                Ok(played) => all += played,
                Err(at) => {
                    *failed.lock().expect("no thread panics") = Some(seed.wrapping_add(from + at));
                    taken.store(u64::MAX / 2, Ordering::Relaxed);
                    return all;
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let played = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Played::default();
        for thread in threads {
            all += thread.join().expect("no thread panics");
        }
        all
    });
    if let Some(failed) = *failed.lock().expect("no thread panics") {
        panic!(
            "{}TRACKER_SEED={failed} TRACKER_HISTORIES=1 shows it again",
            World::<Real, true>::new().tell(failed)
        );
    }
    println!(
        "{} histories from TRACKER_SEED={seed}: {:.0} a second on {threads} processors, {} probes, {} ticks, {} changes",
        played.histories,
        played.histories as f64 / begun.elapsed().as_secs_f64(),
        played.probes,
        played.ticks,
        played.changes,
    );
}

/// Each mistake is found within so many histories.
#[test]
fn broken_variants_are_caught() {
    fn caught<C: Code>(name: &str) -> Option<String> {
        match play(&mut World::<C, false>::new(), 1, 20_000) {
            Err(before) => {
                println!("{name}: caught by history {}", before + 1);
                None
            }
            Ok(_) => Some(name.to_owned()),
        }
    }
    macro_rules! escaped {
        ($($variant:ident),* $(,)?) => { [$(caught::<code::$variant>(stringify!($variant))),*] };
    }
    let escaped = escaped!(
        FallShort,
        FallLong,
        RiseShort,
        DuplicateHelps,
        DuplicateCounts,
        LateCounts,
        WordsStay,
        RepliesUnreported,
        StallsBlame,
        StallsExcuse,
        TimeoutShort,
        TimeoutLong,
        SkipIsLoss,
        StaleTurns,
        RefusedIsSent,
        WallClock,
        VoidIsLoss,
        EarlyIsEnough,
        NoReordering,
        NoCatchUp,
        DeviceBelieved,
        RenewForgets,
    );
    let escaped: Vec<_> = escaped.into_iter().flatten().collect();
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

/// All histories of up to ten turns that are answered, lost, answered twice or skipped, and of up to eight with late
/// replies too.
#[test]
fn all_short_histories_agree_with_the_plain_specification() {
    let shorter = if cfg!(debug_assertions) { 3 } else { 0 };
    let four = [Case::Reply, Case::Loss, Case::Duplicate, Case::Skip];
    let five = [four.as_slice(), &[Case::Late]].concat();
    for fall in 1..=3 {
        for rise in 1..=3 {
            let rules = Rules { fall, rise };
            let count = cases::walk(rules, &four, 10 - shorter);
            assert_eq!(count, (4u64.pow(11 - shorter as u32) - 4) / 3);
            let count = cases::walk(rules, &five, 8 - shorter);
            assert_eq!(count, (5u64.pow(9 - shorter as u32) - 5) / 4);
        }
    }
}

/// The specification's quick way with bits says what its plain one says.
#[test]
fn runs_are_found() {
    let mut bits = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..20_000 {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) ^ 0x1405;
        let dense = bits | bits.rotate_left(7);
        for count in 1..12 {
            for bits in [bits, dense, 0, u64::MAX] {
                let plain = newest_run_around(bits, 0, PROBES, count);
                assert_eq!(newest_run(bits, count), plain);
            }
        }
    }
    assert_eq!(newest_run(0b0110_1110, 3), 4);
    assert_eq!(newest_run_around(0b0110_1110, 0b0001_0000, 8, 5), 7);
    assert_eq!(newest_run(u64::MAX, 60), 64);
}

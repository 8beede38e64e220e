//! Random histories of one tracker, by the million, held against a plain specification.
//!
//! Schedule, verdict, and what a reply is worth are the code that runs in daemon and kernel: [`tracker_user::schedule`],
//! [`tracker_user::flights`], [`tracker_user::docket`], [`tracker_ebpf::verdict`] and [`tracker_ebpf::window`]. The
//! engine that joins them has a simulation of its own (`src/engine/sim.rs`), with the kernel's maps, devices and many
//! trackers, a hundred times slower.
//!
//! A history that fails prints its seed and what happened, step by step. `TRACKER_SEED` starts at another history,
//! `TRACKER_HISTORIES` says how many, `TRACKER_SOAK_SECONDS` goes on for so long, from a seed of the moment unless one
//! is given.

#[path = "histories/code.rs"]
mod code;
#[path = "histories/spec.rs"]
mod spec;
#[path = "histories/world.rs"]
mod world;

use std::time::{Duration, Instant, SystemTime};

use code::{Code, Real};
use world::{Played, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays histories until one goes wrong, or `goes_on` ends it.
fn play<C: Code>(seed: u64, mut goes_on: impl FnMut(u64) -> bool) -> Result<(u64, Played), u64> {
    let mut world = World::<C>::new();
    let mut all = Played::default();
    let mut count = 0;
    while goes_on(count) {
        match world.play(seed + count) {
            Ok(Played {
                probes,
                changes,
                downs,
                ticks,
            }) => {
                all.probes += probes;
                all.changes += changes;
                all.downs += downs;
                all.ticks += ticks;
            }
            Err(_) => return Err(count),
        }
        count += 1;
    }
    Ok((count, all))
}

#[test]
fn random_histories_agree_with_the_plain_specification() {
    let soak = number("TRACKER_SOAK_SECONDS").map(Duration::from_secs);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let fresh = soak.map(|_| now.map_or(1, |now| now.as_nanos() as u64 >> 1));
    let seed = number("TRACKER_SEED").or(fresh).unwrap_or(1);
    let usual = if cfg!(debug_assertions) {
        200_000
    } else {
        3_000_000
    };
    let most = number("TRACKER_HISTORIES").unwrap_or(usual);
    println!("TRACKER_SEED={seed}");
    let begun = Instant::now();
    let result = play::<Real>(seed, |count| match soak {
        Some(soak) => count % 4096 != 0 || begun.elapsed() < soak,
        None => count < most,
    });
    match result {
        Ok((count, played)) => {
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{count} histories from TRACKER_SEED={seed}: {:.0} a second, {:.0} probes a second; {played:?}",
                count as f64 / seconds,
                played.probes as f64 / seconds,
            );
        }
        Err(count) => {
            let failed = seed + count;
            panic!(
                "{}TRACKER_SEED={failed} TRACKER_HISTORIES=1 shows it again",
                World::<Real>::new().tell(failed)
            );
        }
    }
}

/// Each mistake is found within so many histories.
#[test]
fn broken_variants_are_caught() {
    fn caught<C: Code>(name: &str) -> Option<String> {
        match play::<C>(1, |count| count < 20_000) {
            Err(count) => {
                println!("{name}: caught by history {}", count + 1);
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

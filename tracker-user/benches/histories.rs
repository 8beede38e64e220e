//! How many random histories of one tracker are played and checked in a second of one processor's time. Prints one
//! JSON object.
//!
//! `cargo bench -p tracker-user --bench histories`; `cargo xtask bench` runs it among the rest.

#[path = "../tests/histories/code.rs"]
#[allow(dead_code, reason = "the broken variants are for the test")]
mod code;
#[path = "../tests/histories/spec.rs"]
mod spec;
#[path = "../tests/histories/world.rs"]
#[allow(dead_code, reason = "what only the test shows")]
mod world;

use nix::time::ClockId;

/// Histories of a round.
const HISTORIES: u64 = 100_000;
/// Rounds, of which the median counts: these machines are shared.
const ROUNDS: u64 = 15;

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` must not measure.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let mut world = world::World::<code::Real, false>::new();
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        // What this thread uses, not what it waits for others.
        let begun = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?;
        for seed in round * HISTORIES..(round + 1) * HISTORIES {
            if let Err(what) = world.play(seed) {
                anyhow::bail!("history {seed} is not as specified: {what}");
            }
        }
        let used = ClockId::CLOCK_THREAD_CPUTIME_ID.now()? - begun;
        rates.push(HISTORIES as f64 / std::time::Duration::from(used).as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let rate = rates[rates.len() / 2].round();
    println!("{}", serde_json::json!({ "histories_per_s": rate }));
    Ok(())
}

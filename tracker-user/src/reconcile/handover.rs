//! What an earlier daemon of the instance left in its journal.

use std::path::Path;

use crate::{
    datapath::{adopt, error::DatapathError, journal::Journal, loader, pins::Pins},
    error::full,
    host::tag,
    state::{events::Event, journal::Snapshot},
};

/// What an earlier daemon left.
pub struct Handover {
    /// What it watched and reported; `None` if nothing can go on.
    pub snapshot: Option<Snapshot>,
    /// The last events before the next one.
    pub events: Vec<Event>,
    /// The number of the next event.
    pub next: u64,
    /// Names the sequence of event numbers that goes on, or a new one.
    pub run: String,
}

/// Opens the journal of the instance and reads what an earlier daemon wrote. `now_ns` tells sequences of events apart if the
/// kernel gives no random number.
pub fn read(pins: &Pins, namespace: (u64, u64), now_ns: i128) -> (Journal, Handover) {
    let (journal, text) = Journal::open(pins);
    let read = text.map(|text| {
        let text = text.map_err(|error| full(&error).to_string())?;
        Snapshot::read(&text)
    });
    let snapshot = match read {
        Some(Ok(snapshot)) => Some(snapshot),
        Some(Err(why)) => {
            let journal = pins.journal();
            tracing::warn!(
                "cannot read the journal that an earlier daemon left at {}: {why}; beginning anew, with event 1",
                journal.display()
            );
            None
        }
        None => None,
    };
    let Some(mut snapshot) = snapshot else {
        let handover = Handover {
            snapshot: None,
            events: Vec::new(),
            next: 1,
            run: new_run(now_ns),
        };
        return (journal, handover);
    };
    let (events, next) = (std::mem::take(&mut snapshot.events), snapshot.next);
    let run = match snapshot.run.is_empty() {
        true => new_run(now_ns),
        false => std::mem::take(&mut snapshot.run),
    };
    let is_here = snapshot.namespace == namespace;
    if !is_here {
        tracing::warn!(
            "an earlier daemon of this instance ran in another network namespace; beginning anew, with event {next}"
        );
    }
    let handover = Handover {
        snapshot: is_here.then_some(snapshot),
        events,
        next,
        run,
    };
    (journal, handover)
}

/// A name for a sequence of event numbers that no other one has.
fn new_run(now_ns: i128) -> String {
    match loader::random() {
        Ok([run, _]) => format!("{run:016x}"),
        // Time alone tells sequences of one hub apart unless its clock goes back.
        Err(_) => format!("{now_ns:016x}"),
    }
}

/// The instance's tag: that of the pinned maps, else that of the state directory, else a new one. The state directory keeps it.
///
/// # Errors
/// What the kernel answered, if it gives no random number.
pub fn tag(state: &Path, pins: &Pins) -> Result<u32, DatapathError> {
    let kept = tag::read(state);
    let known = *kept.as_ref().unwrap_or(&None);
    let tag = match adopt::pinned_tag(pins).or(known) {
        Some(tag) => tag,
        None => (loader::random()?[0] as u32).max(1),
    };
    if known != Some(tag)
        && let Err(error) = tag::keep(state, tag)
    {
        tracing::warn!(
            "the tag of this instance's probes does not outlive its pins: {}",
            full(&kept.err().unwrap_or(error))
        );
    }
    Ok(tag)
}

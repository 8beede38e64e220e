//! The event stream as a body: JSON lines, or server-sent events (WHATWG HTML, section 9.2).
//!
//! A reader only keeps its own place in the log: one that does not read holds up no other, and learns what it missed.

use std::{convert::Infallible, time::Duration};

use axum::body::{Body, Bytes};
use futures::stream;
use glob::Pattern;
use serde::Serialize;
use tokio::sync::watch;

use super::problem::Refused;
use crate::{
    config::Invalid,
    state::events::{EventFeed, Missed, Numbered, Place, Reset},
};

/// So many events are copied out of the log at a time.
const BATCH: usize = 256;
/// How often a comment is sent to a follower of server-sent events while nothing happens: proxies end connections that are
/// silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Lines,
    /// Server-sent events.
    ServerSent,
}

/// What a reader wants.
#[derive(Debug)]
pub struct Wanted {
    /// Only events after this one.
    pub since: Option<Place>,
    /// Without `since`: only so many events of the past.
    pub last: Option<u64>,
    /// Whether to go on with what happens from now on.
    pub follow: bool,
    /// Names and patterns of services and chains; every event if empty.
    pub names: Vec<Pattern>,
    /// How events are written.
    pub format: Format,
}

/// The events that a reader wants, as a body.
///
/// # Errors
/// When the reader names an event of the present sequence that has not happened yet.
pub fn body(feed: EventFeed, wanted: Wanted) -> Result<Body, Refused> {
    // Subscribed before the first look, so that nothing falls between the two.
    let news = feed.subscribe();
    let (first, next) = feed.bounds();
    let run = feed.run();
    let mut head = Vec::new();
    let cursor = match &wanted.since {
        // A number that was not given yet is of another sequence.
        Some(Place { run: named, seq })
            if named.as_ref().is_some_and(|named| **named != *run)
                || (named.is_none() && *seq >= next) =>
        {
            let reset = Reset { reset: true, run };
            wanted.format.write(&mut head, None, "reset", &reset);
            first - 1
        }
        Some(Place { seq, .. }) if *seq >= next => {
            let problem = format!(
                "event {seq} of run {run} has not happened yet, the last is {}; leave out `since`, or give at most that",
                next - 1
            );
            return Err(Refused::Invalid {
                attempt: "cannot read events".to_owned(),
                errors: vec![Invalid {
                    key: "since".to_owned(),
                    pointer: String::new(),
                    problem,
                }],
            });
        }
        Some(Place { seq, .. }) => *seq,
        // Numbers are from 1, and without gap.
        None => {
            wanted
                .last
                .map_or(first, |last| next.saturating_sub(last).max(first))
                - 1
        }
    };
    let reader = Reader {
        feed,
        news,
        cursor,
        end: (!wanted.follow).then_some(next),
        wanted,
        head,
    };
    Ok(Body::from_stream(stream::unfold(reader, Reader::next)))
}

impl Format {
    /// Media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            Self::ServerSent => "text/event-stream",
        }
    }

    fn write(
        self,
        into: &mut Vec<u8>,
        id: Option<(&str, u64)>,
        kind: &str,
        value: &impl Serialize,
    ) {
        // Plain structures with string keys cannot fail to be written.
        let json = serde_json::to_vec(value).unwrap_or_default();
        if self == Self::ServerSent {
            if let Some((run, seq)) = id {
                into.extend(format!("id: {run}:{seq}\n").into_bytes());
            }
            into.extend(format!("event: {kind}\ndata: ").into_bytes());
        }
        into.extend(json);
        into.extend(match self {
            Self::Lines => &b"\n"[..],
            Self::ServerSent => b"\n\n",
        });
    }
}

struct Reader {
    feed: EventFeed,
    news: watch::Receiver<u64>,
    /// The last event that was read.
    cursor: u64,
    /// The event at which to end.
    end: Option<u64>,
    wanted: Wanted,
    /// What is written before all else.
    head: Vec<u8>,
}

impl Reader {
    /// The next piece of the body.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut bytes = std::mem::take(&mut self.head);
        loop {
            let is_read = self.read(&mut bytes);
            if !bytes.is_empty() {
                return Some((Ok(bytes.into()), self));
            }
            if is_read {
                // Events that are not wanted may be many, and others' answers come by the same thread.
                tokio::task::yield_now().await;
                continue;
            }
            if self.end.is_some_and(|end| self.cursor + 1 >= end) {
                return None;
            }
            let changed = tokio::time::timeout(KEEP_ALIVE, self.news.changed()).await;
            match changed {
                Ok(Ok(())) => {}
                // The daemon ends.
                Ok(Err(_)) => return None,
                Err(_) if self.wanted.format == Format::ServerSent => {
                    return Some((Ok(Bytes::from_static(b": \n\n")), self));
                }
                Err(_) => {}
            }
        }
    }

    /// Writes the next events; false if there are none.
    fn read(&mut self, into: &mut Vec<u8>) -> bool {
        let batch = self.feed.read(self.cursor, BATCH);
        let format = self.wanted.format;
        if batch.missed > 0 {
            self.cursor += batch.missed;
            let missed = Missed {
                missed: batch.missed,
                next: self.cursor + 1,
            };
            format.write(into, None, "missed", &missed);
        }
        for event in &batch.events {
            // A reader that does not follow is not kept by what happens meanwhile.
            if self.end.is_some_and(|end| event.seq >= end) {
                break;
            }
            if self.is_wanted(event) {
                format.write(into, Some((&event.run, event.seq)), "event", event);
            }
        }
        self.cursor += batch.events.len() as u64;
        batch.missed > 0 || !batch.events.is_empty()
    }

    fn is_wanted(&self, event: &Numbered) -> bool {
        let names = &self.wanted.names;
        let mut named = event.event.service.iter().chain(&event.event.chain);
        names.is_empty() || named.any(|name| names.iter().any(|pattern| pattern.matches(name)))
    }
}

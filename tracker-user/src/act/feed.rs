//! What the daemon tells: the whole state at each connection, then what changed, by its event stream.
//!
//! An event only says that something of a service changed. What it is now is asked for, so that the newest state wins when this
//! process is behind, and what the daemon counts (`effective`, `selected`) is never computed twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use axum::http::Method;
use glob::Pattern;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

use super::{
    choice::Selector,
    store::Cursor,
    view::{Service, View},
};
use crate::api::client::{Call, Client, ClientError, Lines};

/// How often all services are asked for, for changes that are no event: weights, addresses, services that were added.
const LOOK: Duration = Duration::from_secs(5);
/// The shortest and the longest pause before another connection.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// More services than this are asked for as all are.
const NAMED_MAX: usize = 32;
/// Most bytes of the names in a request.
const QUERY_MAX: usize = 4_096;

/// What is told.
#[derive(Debug)]
pub enum Told {
    /// All services that any action names.
    Whole {
        /// As they are.
        view: View,
        /// The time of the last event of each that this follows.
        times: BTreeMap<String, Timestamp>,
    },
    /// Some services.
    Some {
        /// As they are.
        services: Vec<Service>,
        /// Names of those that there are no longer.
        gone: Vec<String>,
        /// The time of the last event of each that this follows.
        times: BTreeMap<String, Timestamp>,
    },
    /// Where hooks begin: after the last event that there was.
    Place(Cursor),
    /// An event that a hook may run for.
    Event(Box<Happened>),
    /// The daemon does not answer.
    Lost(ClientError),
}

/// An event, as its line and what hooks need of it.
#[derive(Clone, Debug)]
pub struct Happened {
    /// The whole line.
    pub line: String,
    /// What it says.
    pub event: EventLine,
}

/// What is read of an event's line.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EventLine {
    /// Its number.
    pub seq: u64,
    /// The sequence of numbers.
    pub run: String,
    /// When it was reported.
    pub time: Option<Timestamp>,
    /// What it tells.
    pub kind: String,
    /// The service.
    pub service: Option<String>,
    /// The member.
    pub member: Option<String>,
    /// The behind address of a tracker's own change.
    pub behind: Option<String>,
    /// The chain, of its own change.
    pub chain: Option<String>,
    /// Verdict before.
    pub from: String,
    /// Verdict from now on.
    pub to: String,
    /// Cause.
    pub cause: String,
    /// More about the cause.
    pub detail: Option<String>,
    /// The verdict that counts, if an admin state makes it another one than `to`.
    pub effective: Option<String>,
    /// Of what stands in the place of lost events: how many.
    missed: Option<u64>,
    /// Of what says that numbers began anew.
    reset: bool,
}

/// Which services are followed.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Names and patterns of services.
    pub services: BTreeSet<String>,
    /// Where hooks are; `None`: they begin with what happens from now on.
    pub cursor: Option<Cursor>,
    /// Whether there is any hook.
    pub has_hooks: bool,
    /// Whether anything follows single trackers.
    pub has_trackers: bool,
}

/// Follows the daemon for ever, whatever happens to it; ends when nothing takes what is told.
pub async fn follow(mut wanted: Wanted, told: mpsc::Sender<Told>) {
    let mut pause = PAUSE.0;
    loop {
        let began = Instant::now();
        match session(&mut wanted, &told).await {
            Ok(()) => return,
            Err(error) => {
                if told.send(Told::Lost(error)).await.is_err() {
                    return;
                }
            }
        }
        if began.elapsed() > PAUSE.1 {
            pause = PAUSE.0;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks once for all services that are followed.
///
/// # Errors
/// When the daemon does not answer.
pub async fn look(wanted: &Wanted) -> Result<View, ClientError> {
    let mut client = Client::new(&wanted.socket);
    ask_all(wanted, &mut client).await
}

/// One connection to the daemon. Ends without an error when nothing takes what is told.
async fn session(wanted: &mut Wanted, told: &mpsc::Sender<Told>) -> Result<(), ClientError> {
    if wanted.has_hooks && wanted.cursor.is_none() {
        wanted.cursor = last(wanted).await?;
        if let Some(cursor) = wanted.cursor.clone()
            && told.send(Told::Place(cursor)).await.is_err()
        {
            return Ok(());
        }
    }
    // Followed before the state is asked for, so that nothing falls between the two.
    let call = Call::new(&wanted.socket, Method::GET, &["v1", "events"]);
    let call = call.query("follow", "true");
    let call = match &wanted.cursor {
        Some(Cursor { run, seq }) => call.query("since", &format!("{run}:{seq}")),
        None => call.query("last", "0"),
    };
    let mut lines = match Lines::of(call).await {
        Err(ClientError::Refused(problem)) => {
            // It has not so many events, and never had them: what was kept is of no use.
            wanted.cursor = None;
            return Err(ClientError::Refused(problem));
        }
        lines => lines?,
    };
    let mut client = Client::new(&wanted.socket);
    let view = ask_all(wanted, &mut client).await?;
    let times = BTreeMap::new();
    if told.send(Told::Whole { view, times }).await.is_err() {
        return Ok(());
    }
    let selector = Selector::new(&wanted.services);
    let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut news = News::default();
        tokio::select! {
            biased;
            more = lines.more() => if !more? {
                return Err(ClientError::ended(&wanted.socket));
            },
            _ = look.tick() => news.is_all = true,
            () = told.closed() => return Ok(()),
        }
        while let Some(line) = lines.at_hand() {
            let event = read(&line, &wanted.socket)?;
            if event.reset || event.missed.is_some() {
                news.is_all = true;
            } else {
                news.take(&event, &selector, wanted.has_trackers);
                wanted.cursor = Some(Cursor {
                    run: event.run.clone(),
                    seq: event.seq,
                });
                if wanted.has_hooks
                    && told
                        .send(Told::Event(Box::new(Happened { line, event })))
                        .await
                        .is_err()
                {
                    return Ok(());
                }
            }
        }
        let message = if news.is_all || news.times.len() > NAMED_MAX {
            let view = ask_all(wanted, &mut client).await?;
            Told::Whole {
                view,
                times: news.times,
            }
        } else if !news.times.is_empty() {
            let names: Vec<&str> = news.times.keys().map(String::as_str).collect();
            let mut services = ask(wanted, &names, &mut client).await?.into_services();
            services.retain(|one| news.times.contains_key(&one.name));
            let found: BTreeSet<&str> = services.iter().map(|one| one.name.as_str()).collect();
            let gone: Vec<String> = names
                .iter()
                .filter(|name| !found.contains(*name))
                .map(|name| (*name).to_owned())
                .collect();
            Told::Some {
                gone,
                services,
                times: news.times,
            }
        } else {
            continue;
        };
        if told.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// The place of the last event that there is.
async fn last(wanted: &Wanted) -> Result<Option<Cursor>, ClientError> {
    let call = Call::new(&wanted.socket, Method::GET, &["v1", "events"]).query("last", "1");
    let mut lines = Lines::of(call).await?;
    let mut place = None;
    loop {
        while let Some(line) = lines.at_hand() {
            let event = read(&line, &wanted.socket)?;
            place = (!event.run.is_empty()).then_some(Cursor {
                run: event.run,
                seq: event.seq,
            });
        }
        if !lines.more().await? {
            return Ok(place);
        }
    }
}

/// What lines said.
#[derive(Default)]
struct News {
    /// Anything may have changed.
    is_all: bool,
    /// Services that changed, each with the time of its last event.
    times: BTreeMap<String, Timestamp>,
}

impl News {
    fn take(&mut self, event: &EventLine, selector: &Selector, has_trackers: bool) {
        let Some(service) = &event.service else {
            return;
        };
        // What a tracker's own change does to its member or service is an event of that.
        if event.behind.is_some() && !has_trackers {
            return;
        }
        if !selector.matches(service) {
            return;
        }
        let time = event.time.unwrap_or_else(Timestamp::now);
        let last = self.times.entry(service.clone()).or_insert(time);
        *last = time.max(*last);
    }
}

fn read(line: &str, socket: &std::path::Path) -> Result<EventLine, ClientError> {
    serde_json::from_str(line).map_err(|error| ClientError::Garbled {
        path: socket.to_owned(),
        why: error.to_string(),
    })
}

/// Asks for all services that are followed; for all that there are if their names are too long for a request.
async fn ask_all(wanted: &Wanted, client: &mut Client) -> Result<View, ClientError> {
    let names: Vec<&str> = wanted.services.iter().map(String::as_str).collect();
    let length: usize = names.iter().map(|name| name.len()).sum();
    let is_short = names.len() <= NAMED_MAX && length <= QUERY_MAX;
    let view = match is_short {
        true => {
            let patterns = names
                .iter()
                .map(|name| match Pattern::escape(name) == *name {
                    true => open(name),
                    false => (*name).to_owned(),
                });
            request(wanted, patterns, client).await?
        }
        false => request(wanted, [], client).await?,
    };
    let selector = Selector::new(&wanted.services);
    let mut services = view.into_services();
    services.retain(|one| selector.matches(&one.name));
    Ok(View::of(services))
}

/// Asks for these services and no patterns.
async fn ask(wanted: &Wanted, names: &[&str], client: &mut Client) -> Result<View, ClientError> {
    let patterns = names.iter().map(|name| open(&Pattern::escape(name)));
    request(wanted, patterns, client).await
}

/// A pattern that matches a name and is no name: the daemon refuses a name that it does not know, and a service may go at any time.
fn open(name: &str) -> String {
    format!("{name}*")
}

async fn request(
    wanted: &Wanted,
    patterns: impl IntoIterator<Item = String>,
    client: &mut Client,
) -> Result<View, ClientError> {
    let patterns: Vec<String> = patterns.into_iter().collect();
    let call = Call::new(&wanted.socket, Method::GET, &["v1", "status"]).names(&patterns);
    let body = client
        .ask(call.query(
            "trackers",
            if wanted.has_trackers { "true" } else { "false" },
        ))
        .await?;
    View::read(&body).map_err(|error| ClientError::Garbled {
        path: wanted.socket.clone(),
        why: error.to_string(),
    })
}

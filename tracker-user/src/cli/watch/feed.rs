//! What brings messages to the live view: answers, events, keys and signals, each from a thread of its own.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{process, thread};

use axum::http::Method;
use nix::sys::signal::SigSet;
use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};
use ratatui::crossterm::terminal::disable_raw_mode;

use super::model::{Message, Wanted, pause};
use crate::api::client::{Call, ClientError};
use crate::api::types::Status;
use crate::cli::events_call;
use crate::state::events::{Missed, Numbered, Place, Reset};

/// How long to wait before a daemon that does not answer is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The least time between two questions: keys may come faster.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// How long the view may take to end in order after a signal.
const END_WAIT: Duration = Duration::from_secs(2);

/// Why a thread of these ends: the view is gone.
struct Gone;

/// Asks for all services of the view.
pub fn picture(socket: &Path, wanted: &Wanted) -> Result<Status, ClientError> {
    let mut call = Call::new(socket, Method::GET, &["v1", "status"]).names(&wanted.names);
    if !wanted.all_trackers {
        call = call.query("trackers", "false");
    }
    call.ask().map(|(_, status)| status)
}

/// Polls the daemon for what is wanted, which may change at any time, until the view is gone.
pub fn poll(socket: &Path, mut wanted: Wanted, changes: &Receiver<Wanted>, view: &Sender<Message>) {
    let mut is_due = true;
    let mut due = Instant::now();
    loop {
        let asked = Instant::now();
        if ask(socket, &wanted, is_due, view).is_err() {
            return;
        }
        if is_due {
            due = Instant::now() + pause(asked.elapsed());
        }
        thread::sleep(LEAST_PAUSE);
        let before = wanted.clone();
        wanted = match changes.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(changed) => changes.try_iter().last().unwrap_or(changed),
            Err(RecvTimeoutError::Timeout) => wanted,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        is_due = Instant::now() >= due
            || before.names != wanted.names
            || (wanted.all_trackers && !before.all_trackers);
    }
}

fn ask(socket: &Path, wanted: &Wanted, is_due: bool, view: &Sender<Message>) -> Result<(), Gone> {
    let send = |message| view.send(message).map_err(|_| Gone);
    if is_due {
        match picture(socket, wanted) {
            Ok(status) => send(Message::Picture(Box::new(status)))?,
            Err(error) => return send(Message::NoAnswer(error.to_string())),
        }
    }
    if wanted.all_trackers || wanted.closer.is_empty() {
        return Ok(());
    }
    let call = Call::new(socket, Method::GET, &["v1", "status"]).names(&wanted.closer);
    match call.ask() {
        Ok((_, status)) => send(Message::Closer(Box::new(status))),
        // One of the services may be gone since; the next picture tells.
        Err(ClientError::Refused(_)) => Ok(()),
        Err(error) => send(Message::NoAnswer(error.to_string())),
    }
}

/// Follows the event stream, from the last event that was seen, until the view is gone.
pub fn follow(socket: &Path, names: &[String], view: &Sender<Message>) {
    let mut place: Option<Place> = None;
    let mut is_gone = false;
    while !is_gone {
        let since = place.clone();
        let ended = events_call(socket, names, since.as_ref(), true).lines(|line| {
            let Some(message) = message(line, &mut place) else {
                return ControlFlow::Continue(());
            };
            is_gone = view.send(message).is_err();
            match is_gone {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        // The daemon does not know this place: all that is kept is read again.
        if matches!(ended, Err(ClientError::Refused(_))) {
            place = None;
        }
        thread::sleep(AGAIN);
    }
}

/// The message of a line of the event stream, and the place after it; `None` if the line means nothing to this version.
fn message(line: &str, place: &mut Option<Place>) -> Option<Message> {
    if let Ok(missed) = serde_json::from_str::<Missed>(line) {
        return Some(Message::Missed(missed));
    }
    if serde_json::from_str::<Reset>(line).is_ok() {
        return Some(Message::Reset);
    }
    let event = serde_json::from_str::<Numbered>(line).ok()?;
    *place = Some(Place {
        run: Some(event.run.to_string()).filter(|run| !run.is_empty()),
        seq: event.seq,
    });
    Some(Message::Event(Box::new(event)))
}

/// Reads keys and sizes from the terminal.
pub fn input(view: &Sender<Message>) {
    loop {
        let message = match event::read() {
            Ok(Input::Key(key)) if key.kind == KeyEventKind::Press => Message::Key(key),
            Ok(Input::Resize(columns, lines)) => Message::Size(columns, lines),
            Ok(_) => continue,
            Err(error) => Message::End(Some(format!(
                "cannot read keys from the terminal: {error}; start it again"
            ))),
        };
        let is_last = matches!(message, Message::End(_));
        if view.send(message).is_err() || is_last {
            return;
        }
    }
}

/// Waits for one of the signals, which every thread must have blocked; then the view ends, or the process.
pub fn signals(signals: &SigSet, view: &Sender<Message>) {
    // Fails only for a set that has no signal; the view ends then as well.
    let _ = signals.wait();
    // If it cannot be sent, the view is gone already.
    let _ = view.send(Message::End(None));
    // A terminal that takes no output would keep the view for ever.
    thread::sleep(END_WAIT);
    let _ = disable_raw_mode();
    process::exit(1);
}

/// Starts a thread that may outlive the view: what it waits for cannot be interrupted.
pub fn start(
    name: &str,
    socket: PathBuf,
    work: impl FnOnce(&Path) + Send + 'static,
) -> std::io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(move || work(&socket)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::events::tests::example;

    #[test]
    fn the_place_follows_the_events() {
        let mut place = None;
        let event = Numbered {
            seq: 7,
            event: example(),
            run: "r1".into(),
            hub: "hub-1".into(),
            instance: "default".into(),
        };
        let line = serde_json::to_string(&event).unwrap();
        let read = message(&line, &mut place);
        assert!(matches!(read, Some(Message::Event(read)) if *read == event));
        assert_eq!(place.as_ref().unwrap().to_string(), "r1:7");
        let reset = message(r#"{"reset":true,"run":"r2"}"#, &mut place);
        assert!(matches!(reset, Some(Message::Reset)));
        let missed = message(r#"{"missed":3,"next":5}"#, &mut place);
        assert!(matches!(missed, Some(Message::Missed(_))));
        // Kinds that this version does not know are skipped.
        assert!(message(r#"{"kind":"tide","seq":9}"#, &mut place).is_none());
        assert_eq!(place.unwrap().seq, 7);
    }
}

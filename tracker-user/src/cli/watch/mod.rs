//! `tracker watch`: the live view of a terminal.
//!
//! `model` is what it knows and does, `draw` how that looks, `feed` what brings it answers, events and keys, `screen` the
//! terminal; here they are joined.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal};

use super::args::WatchArgs;
use super::{fail, is_coloured};
use model::{Message, Model, Wanted};
use screen::Screen;

mod draw;
mod feed;
mod model;
mod screen;
mod series;

/// How often the ages on the screen are renewed.
const TICK: Duration = Duration::from_secs(1);
/// The least time between two pictures: a burst of events is one.
const LEAST_PAUSE: Duration = Duration::from_millis(40);

/// `tracker watch`.
pub fn watch(args: &WatchArgs) -> ExitCode {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return fail(
            "cannot show the live view: standard input and output must be a terminal; use `tracker status` or `tracker events --follow` here",
        );
    }
    let mut model = Model::new(args.names.clone(), Timestamp::now());
    // A name that does not exist and a daemon that is not there are said before the terminal is taken over.
    match feed::picture(&args.socket.path, &model.wanted()) {
        Ok(status) => model.update(Message::Picture(Box::new(status))),
        Err(error) => return fail(error),
    };
    // Blocked before there are threads, so that none of them ends the process with the terminal taken over.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    let result = match signals.thread_block() {
        Ok(()) => show(args, model, signals),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(why)) => fail(why),
        Err(error) => fail(format_args!(
            "cannot show the live view on this terminal: {error}; use `tracker status` here"
        )),
    }
}

/// Shows the view until it ends; returns why, if that is a failure.
fn show(args: &WatchArgs, mut model: Model, signals: SigSet) -> io::Result<Option<String>> {
    let (view, messages) = mpsc::channel();
    let (changes, wanted) = mpsc::channel();
    let mut screen = Screen::enter()?;
    let size = screen.terminal.size()?;
    model.update(Message::Size(size.width, size.height));
    start(args, &model, signals, &view, wanted)?;
    let theme = draw::Theme::new(is_coloured(&args.colour));
    let mut asked = model.wanted();
    loop {
        screen
            .terminal
            .draw(|frame| draw::draw(&model, theme, frame.area(), frame.buffer_mut()))?;
        let drawn = Instant::now();
        if let Some(end) = turn(&mut model, &messages, drawn + TICK) {
            return Ok(end);
        }
        let now_wanted = model.wanted();
        if now_wanted != asked {
            // If nothing takes it, the thread has panicked, and the process ends.
            let _ = changes.send(now_wanted.clone());
            asked = now_wanted;
        }
        std::thread::sleep(LEAST_PAUSE.saturating_sub(drawn.elapsed()));
    }
}

/// Waits for a message, and takes in all that are there; returns why the view ends, if it does.
fn turn(model: &mut Model, messages: &Receiver<Message>, until: Instant) -> Option<Option<String>> {
    let first = match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(message) => Some(message),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => return Some(None),
    };
    model.update(Message::Time(Timestamp::now()));
    for message in first.into_iter().chain(messages.try_iter()) {
        if let Message::End(why) = message {
            return Some(why);
        }
        if model.update(message) {
            return Some(None);
        }
    }
    None
}

fn start(
    args: &WatchArgs,
    model: &Model,
    signals: SigSet,
    view: &Sender<Message>,
    changes: Receiver<Wanted>,
) -> io::Result<()> {
    let (wanted, names) = (model.wanted(), args.names.clone());
    let path = || args.socket.path.clone();
    let [to_view, events, keys, ends] = [view.clone(), view.clone(), view.clone(), view.clone()];
    feed::start("watch-poll", path(), move |socket| {
        feed::poll(socket, wanted, &changes, &to_view)
    })?;
    feed::start("watch-events", path(), move |socket| {
        feed::follow(socket, &names, &events)
    })?;
    feed::start("watch-keys", path(), move |_| feed::input(&keys))?;
    feed::start("watch-signals", path(), move |_| {
        feed::signals(&signals, &ends)
    })
}

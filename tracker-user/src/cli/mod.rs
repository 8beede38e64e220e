//! The commands that only ask or read.
//!
//! Exit codes are the same everywhere: 0 done, 1 not done (one line on standard error says why),
//! 64 wrong usage (`EX_USAGE` of sysexits.h); `status` exits 2 when something is not up.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use axum::http::Method;
use jiff::Timestamp;
use ratatui::crossterm::terminal::size;
use tracker_ebpf::verdict::Verdict;

use args::{
    CheckArgs, ColourArg, EventsArgs, HistoryArgs, ListArgs, LogArgs, ServiceArgs, ServiceCommand,
    SetArgs, StatusArgs, When,
};
use fold::Fold;
use table::{Layout, Screen};
use text::Rank;

use crate::api::client::{Call, ClientError};
use crate::api::history::ServiceHistory;
use crate::api::types::{AdminWanted, Changed, List, LogFilter, Status};
use crate::config::{self, Config, ServiceOptions};
use crate::plan::remarks;
use crate::state::admin::Admin;
use crate::state::events::{Missed, Numbered, Place, Reset};

pub mod args;
pub mod check;
pub mod fold;
pub mod history;
#[cfg(test)]
mod snapshot;
pub mod table;
pub mod text;
pub mod watch;

/// What wrong usage exits with: `EX_USAGE` of sysexits.h.
pub const WRONG_USAGE: u8 = 64;

/// How often events that a burst holds back are looked at.
const FOLD_TICK: Duration = Duration::from_millis(200);

/// One line on standard error, and exit code 1.
pub fn fail(error: impl Display) -> ExitCode {
    eprintln!("tracker: {error}");
    ExitCode::FAILURE
}

/// `tracker check FILE`: the configuration, if it is valid.
///
/// # Errors
/// The exit code, if it is not valid; standard error says what is wrong.
pub fn check(args: &CheckArgs) -> Result<Config, ExitCode> {
    match config::load(&args.file) {
        Ok(config) => {
            let count = |number: usize, what| {
                let plural = if number == 1 { "" } else { "s" };
                format!("{number} {what}{plural}")
            };
            let file = args.file.display();
            let actions = match config.actions.len() {
                0 => String::new(),
                number => format!(", {}", count(number, "action")),
            };
            let mut text = format!(
                "{file}: {}, {}{actions}, ok\n",
                count(config.services.len(), "service"),
                count(config.tracker_count(), "tracker")
            );
            for line in check::plan(&config)
                .into_iter()
                .chain(history::check(&config))
            {
                text.push_str(&format!("{file}: {line}\n"));
            }
            for remark in remarks::remarks(&config) {
                text.push_str(&format!("{file}: remark: {remark}\n"));
            }
            match print(&text) {
                Ok(()) | Err(Stop::Enough) => Ok(config),
                printed => Err(finish(printed, ExitCode::SUCCESS)),
            }
        }
        Err(error) => {
            let is_coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            // If it is not read, the exit code still tells.
            let _ = io::stderr().write_all(check::errors(&error, is_coloured).as_bytes());
            Err(ExitCode::FAILURE)
        }
    }
}

/// `tracker status`.
pub fn status(args: &StatusArgs) -> ExitCode {
    let call = Call::new(&args.socket.path, Method::GET, &["v1", "status"]);
    let (line, status): (String, Status) = match call.names(&args.names).ask() {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    let text = match (args.json, args.down) {
        (true, true) => only_down(&status) + "\n",
        (true, false) => line + "\n",
        (false, only_down) => table::status(
            &status,
            &Layout {
                only_down,
                ..layout(&args.colour, args.wide)
            },
        ),
    };
    let code = if status.all_up() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    };
    finish(print(&text), code)
}

/// The services and chains of a status that are not up, or not in all their parts, as JSON.
fn only_down(status: &Status) -> String {
    let mut status = status.clone();
    status
        .services
        .retain(|service| text::rank(service) != Rank::Up);
    status.chains.retain(|chain| chain.verdict != Verdict::Up);
    // Plain structures with string keys cannot fail to be written.
    serde_json::to_string(&status).unwrap_or_default()
}

/// How tables go to standard output.
fn layout(colour: &ColourArg, is_wide: bool) -> Layout {
    let screen = io::stdout().is_terminal().then(|| Screen {
        width: columns(),
        is_wide,
        now: Timestamp::now(),
    });
    Layout {
        colour: is_coloured(colour),
        screen,
        only_down: false,
    }
}

/// The columns of the terminal; 80 if it does not say.
fn columns() -> usize {
    match size() {
        Ok((columns, _)) if columns > 0 => usize::from(columns),
        _ => 80,
    }
}

/// Whether standard output gets colours.
pub fn is_coloured(colour: &ColourArg) -> bool {
    match colour.when {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            io::stdout().is_terminal() && !no_colour
        }
    }
}

/// `tracker service`.
pub fn service(args: ServiceArgs) -> ExitCode {
    match args.command {
        ServiceCommand::List(args) => service_list(&args),
        ServiceCommand::Set(args) => service_set(&args),
        ServiceCommand::Add(args) => {
            let ServiceOptions { name, keys } = *args.service;
            let call = Call::new(&args.socket.path, Method::PUT, &["v1", "services", &name]);
            let call = call.body(&keys.into()).only_new();
            match call.ask::<Changed>() {
                Ok(_) => finish(print(&format!("added {name}\n")), ExitCode::SUCCESS),
                Err(error) => fail(error),
            }
        }
        ServiceCommand::Remove(args) => {
            let name = &args.name;
            let call = Call::new(&args.socket.path, Method::DELETE, &["v1", "services", name]);
            match call.ask_text() {
                Ok(_) => finish(print(&format!("removed {name}\n")), ExitCode::SUCCESS),
                Err(error) => fail(error),
            }
        }
    }
}

fn service_set(args: &SetArgs) -> ExitCode {
    let until = match args.time.map(|time| Timestamp::now().checked_add(time)) {
        None => None,
        Some(Ok(until)) => Some(until),
        Some(Err(error)) => return fail(format_args!("--for is too long: {error}; give less")),
    };
    let mut parts = vec!["v1", "services", &args.name];
    parts.extend(args.member.iter().flat_map(|member| ["members", member]));
    parts.push("admin");
    let wanted = AdminWanted {
        state: args.state,
        reason: args.reason.clone(),
        until,
    };
    let body = serde_json::json!(wanted);
    let call = Call::new(&args.socket.path, Method::PUT, &parts).body(&body);
    match call.ask::<Admin>() {
        Ok((_, admin)) => {
            let name = &args.name;
            let member = args.member.iter().map(|member| format!("/{member}"));
            let member: String = member.collect();
            let text = format!("set {name}{member} to {}\n", admin.text());
            finish(print(&text), ExitCode::SUCCESS)
        }
        Err(error) => fail(error),
    }
}

fn service_list(args: &ListArgs) -> ExitCode {
    let call = Call::new(&args.socket.path, Method::GET, &["v1", "services"]);
    let (line, list): (String, List) = match call.names(&args.names).ask() {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    let text = if args.json {
        line + "\n"
    } else {
        table::list(&list, &layout(&args.colour, true))
    };
    finish(print(&text), ExitCode::SUCCESS)
}

/// `tracker log`.
pub fn log(args: &LogArgs) -> ExitCode {
    let body = args
        .filter
        .as_ref()
        .map(|filter| serde_json::json!({LogFilter::KEY: filter}));
    let method = if body.is_some() {
        Method::PUT
    } else {
        Method::GET
    };
    let mut call = Call::new(&args.socket.path, method, &["v1", "log"]);
    if let Some(body) = &body {
        call = call.body(body);
    }
    match call.ask::<LogFilter>() {
        Ok((_, now)) => finish(print(&format!("{}\n", now.filter)), ExitCode::SUCCESS),
        Err(error) => fail(error),
    }
}

/// `tracker history`.
pub fn history(args: &HistoryArgs) -> ExitCode {
    let call = Call::new(
        &args.socket.path,
        Method::GET,
        &["v1", "history", &args.name],
    );
    let mut call = call.query("since", &args.since);
    if let Some(step) = &args.step {
        call = call.query("step", step);
    }
    let (line, history): (String, ServiceHistory) = match call.ask() {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    let text = match &args.svg {
        Some(path) => match history::save(path, &history::svg(&history)) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                let path = path.display();
                return fail(format_args!(
                    "cannot draw the history into {path}: {error}; give a new file, or a regular one"
                ));
            }
        },
        None if args.json => line + "\n",
        None => history::text(&history),
    };
    finish(print(&text), ExitCode::SUCCESS)
}

/// `tracker events`.
pub fn events(args: &EventsArgs) -> ExitCode {
    let socket = &args.socket.path;
    let mut stopped = None;
    let answer = if io::stdout().is_terminal() && !args.json {
        folded(args, &mut stopped)
    } else {
        let call = events_call(socket, &args.names, args.since.as_ref(), args.follow);
        call.lines(|line| {
            let result = match args.json {
                true => print(&format!("{line}\n")),
                false => human(socket, line, None).and_then(|text| print(&text)),
            };
            flow(result, &mut stopped)
        })
    };
    match (answer, stopped) {
        (_, Some(stop)) => finish(Err(stop), ExitCode::SUCCESS),
        (Err(ClientError::Unreachable { source, .. }), None)
            if args.follow && source.kind() == io::ErrorKind::UnexpectedEof =>
        {
            ended(socket)
        }
        (Err(error), None) => fail(error),
        (Ok(()), None) if args.follow => ended(socket),
        (Ok(()), None) => ExitCode::SUCCESS,
    }
}

fn flow(result: Result<(), Stop>, stopped: &mut Option<Stop>) -> ControlFlow<()> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(stop) => {
            *stopped = Some(stop);
            ControlFlow::Break(())
        }
    }
}

/// Prints events as they come, each burst folded; a burst ends by time, also if no event comes after it.
fn folded(args: &EventsArgs, stopped: &mut Option<Stop>) -> Result<(), ClientError> {
    let (sender, lines) = mpsc::channel();
    let (socket, names) = (args.socket.path.clone(), args.names.clone());
    let (since, is_following) = (args.since.clone(), args.follow);
    let reader = thread::spawn(move || {
        events_call(&socket, &names, since.as_ref(), is_following).lines(|line| {
            match sender.send(line.to_owned()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })
    });
    let mut fold = Fold::default();
    loop {
        let line = match fold.is_open() {
            true => lines.recv_timeout(FOLD_TICK),
            false => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let (text, is_end) = match line {
            Ok(line) => (human(&args.socket.path, &line, Some(&mut fold)), false),
            // Only a follower's events are as old as the clock says.
            Err(RecvTimeoutError::Timeout) if args.follow => {
                (Ok(fold.over(Timestamp::now())), false)
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => (Ok(fold.end()), true),
        };
        if flow(text.and_then(|text| print(&text)), stopped).is_break() {
            // The reader is left behind: it sees that nothing reads it any more only with the next event.
            return Ok(());
        }
        if is_end {
            break;
        }
    }
    reader.join().unwrap_or(Ok(()))
}

/// Asks for events.
pub fn events_call<'c>(
    socket: &'c Path,
    names: &[String],
    since: Option<&Place>,
    is_following: bool,
) -> Call<'c> {
    let mut call = Call::new(socket, Method::GET, &["v1", "events"]).names(names);
    if let Some(since) = since {
        call = call.query("since", &since.to_string());
    }
    if is_following {
        call = call.query("follow", "true");
    }
    call
}

fn ended(socket: &Path) -> ExitCode {
    fail(format_args!(
        "cannot follow events any longer: the daemon at {} ended; start it again",
        socket.display()
    ))
}

fn human(socket: &Path, line: &str, fold: Option<&mut Fold>) -> Result<String, Stop> {
    if let Ok(missed) = serde_json::from_str::<Missed>(line) {
        return Ok(table::missed(&missed) + "\n");
    }
    if let Ok(reset) = serde_json::from_str::<Reset>(line) {
        let over = fold.map_or_else(String::new, Fold::end);
        return Ok(over + &table::reset(&reset) + "\n");
    }
    match (serde_json::from_str::<Numbered>(line), fold) {
        (Ok(event), Some(fold)) => Ok(fold.event(event)),
        (Ok(event), None) => Ok(table::event(&event) + "\n"),
        (Err(error), _) => Err(Stop::Garbled(ClientError::Garbled {
            path: socket.to_owned(),
            why: error.to_string(),
        })),
    }
}

/// Why printing ended early.
enum Stop {
    /// The reader has seen enough, as `head` does.
    Enough,
    Failed(io::Error),
    Garbled(ClientError),
}

fn print(text: &str) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::Enough),
        Err(error) => Err(Stop::Failed(error)),
    }
}

fn finish(printed: Result<(), Stop>, code: ExitCode) -> ExitCode {
    match printed {
        Ok(()) | Err(Stop::Enough) => code,
        Err(Stop::Failed(error)) => fail(format_args!(
            "cannot write to standard output: {error}; check where it is redirected to"
        )),
        Err(Stop::Garbled(error)) => fail(error),
    }
}

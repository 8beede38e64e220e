//! The commands that only ask or read.
//!
//! Exit codes are the same everywhere: 0 done, 1 not done (one line on standard error says why),
//! 64 wrong usage (`EX_USAGE` of sysexits.h); `status` exits 2 when something is not up.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use axum::http::Method;
use jiff::Timestamp;

use args::{CheckArgs, EventsArgs, ListArgs, ServiceArgs, ServiceCommand, SetArgs, StatusArgs};

use crate::api::client::{Call, ClientError};
use crate::api::types::{AdminWanted, Changed, List, Status};
use crate::config::{self, Config, ServiceOptions};
use crate::plan::remarks;
use crate::state::admin::Admin;
use crate::state::events::{Missed, Numbered, Reset};

pub mod args;
pub mod doctor;
pub mod table;

/// What wrong usage exits with: `EX_USAGE` of sysexits.h.
pub const WRONG_USAGE: u8 = 64;

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
            let mut text = format!(
                "{file}: {}, {}, ok\n",
                count(config.services.len(), "service"),
                count(config.tracker_count(), "tracker")
            );
            for remark in remarks::remarks(&config) {
                text.push_str(&format!("{file}: remark: {remark}\n"));
            }
            match print(&text) {
                Ok(()) | Err(Stop::Enough) => Ok(config),
                printed => Err(finish(printed, ExitCode::SUCCESS)),
            }
        }
        Err(error) => {
            // As compilers do, so that editors find the line.
            eprintln!("{error}");
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
    let text = if args.json {
        line + "\n"
    } else {
        table::status(&status, colour())
    };
    let code = if status.all_up() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    };
    finish(print(&text), code)
}

fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
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
        table::list(&list, colour())
    };
    finish(print(&text), ExitCode::SUCCESS)
}

/// `tracker events`.
pub fn events(args: &EventsArgs) -> ExitCode {
    let socket = &args.socket.path;
    let mut call = Call::new(socket, Method::GET, &["v1", "events"]).names(&args.names);
    if let Some(since) = &args.since {
        call = call.query("since", &since.to_string());
    }
    if args.follow {
        call = call.query("follow", "true");
    }
    let mut stopped = None;
    let answer = call.lines(|line| {
        let result = if args.json {
            print(&format!("{line}\n"))
        } else {
            human(socket, line).and_then(|text| print(&text))
        };
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(stop) => {
                stopped = Some(stop);
                ControlFlow::Break(())
            }
        }
    });
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

fn ended(socket: &Path) -> ExitCode {
    fail(format_args!(
        "cannot follow events any longer: the daemon at {} ended; start it again",
        socket.display()
    ))
}

fn human(socket: &Path, line: &str) -> Result<String, Stop> {
    if let Ok(missed) = serde_json::from_str::<Missed>(line) {
        return Ok(table::missed(&missed) + "\n");
    }
    if let Ok(reset) = serde_json::from_str::<Reset>(line) {
        return Ok(table::reset(&reset) + "\n");
    }
    match serde_json::from_str::<Numbered>(line) {
        Ok(event) => Ok(table::event(&event) + "\n"),
        Err(error) => Err(Stop::Garbled(ClientError::Garbled {
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

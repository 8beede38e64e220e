//! The thread around the [`Engine`]: sleeps until something is due, a reply waits or a command came.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};
use tokio::sync::mpsc as tokio_mpsc;

use crate::{
    datapath::live_frames::KernelDatapath,
    detector::{
        engine::{Command, Engine, Report},
        lateness::Health,
    },
    host::{clock::monotonic_ns, privileges, realtime},
};

/// Commands that are obeyed between two ticks: ten thousands that come at once, as by a reload, delay no probe.
const COMMANDS: usize = 512;

/// The running thread, seen from the daemon.
pub struct Sender {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// How well it keeps up.
    pub health: Arc<Health>,
}

impl Sender {
    /// Starts the thread, which waits for [`Command::Begin`] and notes its turns in `health`; reports come by the
    /// returned channel, which closes when the thread ends.
    ///
    /// # Errors
    /// Where the system has no thread or descriptor left.
    pub fn start(
        datapath: KernelDatapath,
        health: Arc<Health>,
    ) -> io::Result<(Self, tokio_mpsc::UnboundedReceiver<Report>)> {
        let (commands, inbox) = mpsc::channel();
        let (outbox, reports) = tokio_mpsc::unbounded_channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let thread = std::thread::Builder::new()
            .name("tracker-send".to_owned())
            .spawn({
                let (wake, health) = (wake.clone(), health.clone());
                move || run(datapath, &inbox, &wake, &outbox, &health)
            })?;
        Ok((
            Self {
                commands,
                wake,
                thread: Some(thread),
                health,
            },
            reports,
        ))
    }

    /// Hands over a command. All are obeyed in order, and soon: as many as `COMMANDS` before a tick.
    pub fn command(&self, command: Command) {
        // A thread that ended takes nothing more; the daemon learns it by the closed reports.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }

    /// Hands over several commands, and wakes the thread once.
    pub fn commands(&self, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            // As a single command, none is lost but to a thread that ended.
            let _ = self.commands.send(command);
        }
        let _ = self.wake.write(1);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    datapath: KernelDatapath,
    inbox: &mpsc::Receiver<Command>,
    wake: &EventFd,
    outbox: &tokio_mpsc::UnboundedSender<Report>,
    health: &Health,
) {
    realtime::block_signals();
    if let Err(error) = realtime::prefer() {
        tracing::warn!(
            "the sending thread gets no real-time priority ({error}): a busy hub may delay probes; \
             grant CAP_SYS_NICE"
        );
    }
    privileges::limit_thread("the sending thread");
    let mut engine = Engine::new(datapath);
    // What goes on from an earlier daemon is not sent for, or called faulty, before its path is known.
    for command in inbox {
        let is_begin = matches!(command, Command::Begin);
        if !engine.command(command) {
            return;
        }
        if is_begin {
            break;
        }
    }
    loop {
        let mut obeyed = 0;
        for command in inbox.try_iter().take(COMMANDS) {
            if !engine.command(command) {
                return;
            }
            obeyed += 1;
        }
        engine.tick(health);
        for report in engine.reports() {
            let _ = outbox.send(report);
        }
        health.send.turn(monotonic_ns());
        // Where more commands wait, only what is due comes before them.
        let nap = if obeyed == COMMANDS {
            Duration::ZERO
        } else {
            engine.sleep()
        };
        let nap = TimeSpec::from_duration(nap);
        let mut events = [
            PollFd::new(engine.datapath().events_fd(), PollFlags::POLLIN),
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
        ];
        // An error means a signal, which the tick takes like any early wake-up.
        let _ = ppoll(&mut events, Some(nap), None);
        let _ = wake.read();
    }
}

//! The thread that never waits for the others: it takes signals, feeds the supervisor's watchdog, and ends the process
//! when a thread hangs.
//!
//! Signals are blocked in all threads and read here from a descriptor, so that SIGTERM ends a daemon in any state and
//! SIGHUP is kept until the main loop can take it.
//!
//! A thread hangs when it has shown no sign of progress for a number of this thread's own turns. Turns, not time: while
//! the whole process is stopped (SIGSTOP, freezer), the machine is suspended or all threads lack processor time, this
//! thread does not turn either, so none of these is taken for a hang.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        time::TimeSpec,
    },
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{clock::monotonic_ns, notify::Supervisor, repeats};
use crate::{
    detector::lateness::{Beat, Health, STALLED_NS},
    host::privileges,
};

/// Time between two turns of the thread, nanoseconds.
const TURN_NS: u64 = 250_000_000;
/// How long a thread of a running daemon may hang.
const HANG_NS: u64 = 30_000_000_000;
/// How long the main loop may show no progress while the daemon starts: the verifier takes its time on an emulated
/// machine.
const START_HANG_NS: u64 = 300_000_000_000;
/// How long the end of the daemon may take.
const END_NS: u64 = 4_500_000_000;
/// Exit code of a daemon that hung (`EX_SOFTWARE` of sysexits.h).
const EXIT_HUNG: i32 = 70;

/// What the daemon is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It has made nothing yet.
    Reading,
    /// It loads, attaches and reads what is there.
    Starting,
    /// It watches.
    Running,
    /// It takes down what it made.
    Ending,
}

impl Phase {
    const fn of(value: u8) -> Self {
        match value {
            0 => Self::Reading,
            1 => Self::Starting,
            2 => Self::Running,
            _ => Self::Ending,
        }
    }
}

/// Why the watching thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// The signals cannot be blocked.
    #[error("cannot block signals")]
    Block(#[source] Errno),
    /// There is no descriptor to read them from.
    #[error("cannot receive signals")]
    Receive(#[source] Errno),
    /// The system has no thread.
    #[error("cannot start the watching thread")]
    Thread(#[source] io::Error),
}

/// The signals that the daemon takes, and its side of the watchdog.
#[derive(Clone, Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    end: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    health: Arc<Health>,
    phase: AtomicU8,
    hangup: Notify,
    /// For the supervisor, once the daemon runs.
    status: Mutex<String>,
}

impl Watchdog {
    /// Blocks the signals in this thread and those that it starts later, and starts the watching thread. To be called
    /// before any other thread is started.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub fn start() -> Result<Self, WatchdogError> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().map_err(WatchdogError::Block)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).map_err(WatchdogError::Receive)?;
        let supervisor = Supervisor::of_environment().unwrap_or_else(|error| {
            tracing::warn!("cannot reach the supervisor that NOTIFY_SOCKET names: {error}");
            Supervisor::default()
        });
        let shared = Arc::new(Shared {
            health: Arc::new(Health::default()),
            phase: AtomicU8::new(Phase::Reading as u8),
            hangup: Notify::new(),
            status: Mutex::default(),
        });
        let (stop, end) = watch::channel(false);
        let watch = Watch {
            shared: shared.clone(),
            signals,
            stop,
            supervisor,
            is_ready: false,
            turned_ns: monotonic_ns(),
            fed_ns: 0,
            ending_since_ns: None,
            main: Standing::default(),
            send: Standing::default(),
        };
        thread::Builder::new()
            .name("tracker-watch".to_owned())
            .spawn(move || watch.run())
            .map_err(WatchdogError::Thread)?;
        Ok(Self { shared, end })
    }

    /// Where threads note their turns.
    pub fn health(&self) -> &Arc<Health> {
        &self.shared.health
    }

    /// Says what the daemon is about from now on.
    pub fn phase(&self, phase: Phase) {
        self.shared.health.main.progress();
        self.shared.phase.store(phase as u8, Ordering::Release);
    }

    /// Has the supervisor show this line.
    pub fn status(&self, line: String) {
        *self.shared.status.lock() = line;
    }

    /// Waits for SIGTERM or SIGINT.
    pub async fn ended(&self) {
        // Fails when the watching thread is gone, which it never is.
        let _ = self.end.clone().wait_for(|is_end| *is_end).await;
    }

    /// Whether SIGTERM or SIGINT came.
    pub fn is_ended(&self) -> bool {
        *self.end.borrow()
    }

    /// Waits for SIGHUP. One that came before counts, and several that came count once.
    pub async fn hung_up(&self) {
        self.shared.hangup.notified().await;
    }
}

/// For how many nanoseconds of the watching thread's own turns another thread has shown no progress.
#[derive(Debug, Default)]
struct Standing {
    signs: u64,
    stood_ns: u64,
}

impl Standing {
    /// Looks once more, after a turn that took this long; returns how long the thread has stood.
    fn look(&mut self, beat: &Beat, turn_ns: u64) -> u64 {
        let signs = beat.signs();
        if signs == self.signs {
            // A turn that came late says that this thread did not run either.
            self.stood_ns += turn_ns.min(TURN_NS);
        } else {
            (self.signs, self.stood_ns) = (signs, 0);
        }
        self.stood_ns
    }
}

struct Watch {
    shared: Arc<Shared>,
    signals: SignalFd,
    stop: watch::Sender<bool>,
    supervisor: Supervisor,
    is_ready: bool,
    turned_ns: u64,
    fed_ns: u64,
    ending_since_ns: Option<u64>,
    main: Standing,
    send: Standing,
}

impl Watch {
    fn run(mut self) {
        // Nothing here needs any; without its bounding set emptied, this thread could not get more either.
        privileges::limit_thread("the watching thread");
        loop {
            let nap = TimeSpec::from_duration(Duration::from_nanos(TURN_NS));
            let mut events = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // Errors mean an early turn.
            let _ = ppoll(&mut events, Some(nap), None);
            self.take_signals();
            let now_ns = monotonic_ns();
            let turn_ns = now_ns.saturating_sub(self.turned_ns);
            self.turned_ns = now_ns;
            self.turn(now_ns, turn_ns);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                self.shared.hangup.notify_one();
                continue;
            }
            if self.phase() == Phase::Reading {
                exit(0);
            }
            self.stop.send_replace(true);
            self.ending_since_ns.get_or_insert_with(monotonic_ns);
        }
    }

    fn phase(&self) -> Phase {
        Phase::of(self.shared.phase.load(Ordering::Acquire))
    }

    fn turn(&mut self, now_ns: u64, turn_ns: u64) {
        repeats::flush();
        let phase = self.phase();
        if phase == Phase::Ending {
            self.ending_since_ns.get_or_insert(now_ns);
        }
        if let Some(since_ns) = self.ending_since_ns {
            self.supervisor.stopping();
            if now_ns.saturating_sub(since_ns) >= END_NS {
                tracing::error!(
                    "the daemon did not end within {} s; ending it as a crash would: programs, pins and journal stay, \
                     for the next daemon or `tracker cleanup`",
                    END_NS as f64 / 1e9
                );
                exit(EXIT_HUNG);
            }
            return;
        }
        let health = self.shared.health.clone();
        let main_ns = self.main.look(&health.main, turn_ns);
        let send_ns = self.send.look(&health.send, turn_ns);
        match phase {
            Phase::Starting => self.end_if(main_ns >= START_HANG_NS, "the start", main_ns),
            Phase::Running => {
                self.end_if(main_ns >= HANG_NS, "the main loop", main_ns);
                self.end_if(send_ns >= HANG_NS, "the sending thread", send_ns);
                self.tell(now_ns, &health);
            }
            Phase::Reading | Phase::Ending => {}
        }
    }

    fn end_if(&self, is_hung: bool, what: &str, stood_ns: u64) {
        if is_hung {
            let stood = jiff::SignedDuration::from_nanos(stood_ns.cast_signed());
            let since = Timestamp::now().checked_sub(stood).unwrap_or_default();
            tracing::error!(
                "{what} has hung for {} s, since {since:.0}; ending the daemon as a crash would (exit code {EXIT_HUNG}): \
                 programs, pins and journal stay, and the next daemon goes on",
                stood_ns / 1_000_000_000
            );
            exit(EXIT_HUNG);
        }
    }

    /// Tells the supervisor that the daemon is ready, and that it works.
    fn tell(&mut self, now_ns: u64, health: &Health) {
        let turned_ns = health
            .main
            .turned_mono_ns()
            .min(health.send.turned_mono_ns());
        if turned_ns == 0 {
            return;
        }
        if !self.is_ready {
            self.is_ready = true;
            self.supervisor.ready();
        }
        let is_alive = health.age_ns(now_ns) < STALLED_NS;
        // Twice within the supervisor's time, as sd_watchdog_enabled(3) asks for, and often enough for a person to see.
        let pause_ns = self.supervisor.watchdog().map_or(10_000_000_000, |limit| {
            u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX) / 3
        });
        if now_ns.saturating_sub(self.fed_ns) < pause_ns.min(10_000_000_000) {
            return;
        }
        self.fed_ns = now_ns;
        let status = self.shared.status.lock().clone();
        if is_alive {
            self.supervisor.alive();
            self.supervisor.status(&status);
        } else {
            let age_s = health.age_ns(now_ns) / 1_000_000_000;
            self.supervisor
                .status(&format!("stalled for {age_s} s; {status}"));
        }
    }
}

/// Ends the process without running destructors, which could hang too.
fn exit(code: i32) -> ! {
    // SAFETY: no memory is concerned; the kernel ends all threads.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_by_the_watching_thread_s_turns() {
        let (beat, mut standing) = (Beat::default(), Standing::default());
        beat.turn(1);
        assert_eq!(standing.look(&beat, TURN_NS), 0);
        for turn in 1..=10 {
            assert_eq!(standing.look(&beat, TURN_NS), turn * TURN_NS);
        }
        // The whole process stood for an hour: that is one turn.
        let hour_ns = 3_600_000_000_000;
        assert_eq!(standing.look(&beat, hour_ns), 11 * TURN_NS);
        // Early turns (signals) count for what they took.
        assert_eq!(standing.look(&beat, 5), 11 * TURN_NS + 5);
        beat.progress();
        assert_eq!(standing.look(&beat, TURN_NS), 0);
    }
}

//! The terminal of the live view: taken over, and given back on every way out.

use std::io::{self, Stdout, stdout};
use std::panic;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// What Rust's runtime exits with after a panic.
const PANICKED: i32 = 101;

/// Whether the terminal is taken over.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is taken over; dropped, it is as before.
#[derive(Debug)]
pub struct Screen {
    /// What is drawn to.
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal over. From then on a panic of any thread gives it back first, then prints its message and ends the
    /// process.
    ///
    /// # Errors
    /// When the terminal cannot be taken over.
    pub fn enter() -> io::Result<Self> {
        let main = thread::current().id();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
            // The main thread's panic ends the process by itself; one of another thread would leave a view that stands still.
            if thread::current().id() != main {
                process::exit(PANICKED);
            }
        }));
        IS_TAKEN.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Makes the terminal what it was, once.
fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing more.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::*;

    const VICTIM: &str = "TRACKER_SCREEN_VICTIM";

    /// The victim is this same test, in a process of its own with a terminal of its own.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        match std::env::var(VICTIM).as_deref() {
            Ok("main") => {
                let _screen = Screen::enter().unwrap();
                panic!("on purpose");
            }
            Ok(_) => {
                let _screen = Screen::enter().unwrap();
                let _ = thread::spawn(|| panic!("on purpose")).join();
                unreachable!("a panic of another thread ends the process");
            }
            Err(_) => {}
        }
        for victim in ["main", "thread"] {
            let pty = openpty(None, None).unwrap();
            let before = tcgetattr(&pty.slave).unwrap();
            let stdio = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
            let name = "cli::watch::screen::tests::a_panic_gives_the_terminal_back";
            let mut command = Command::new("setsid");
            command.args(["--ctty", "--wait"]);
            command.arg(std::env::current_exe().unwrap());
            command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
            command.env(VICTIM, victim);
            command.stdin(stdio(&pty.slave)).stdout(stdio(&pty.slave));
            command.stderr(stdio(&pty.slave));
            let mut child = command.spawn().unwrap();
            // It holds the slave as well.
            drop(command);
            // Read while it writes: the terminal's buffer is small.
            let mut master = File::from(pty.master);
            let reader = thread::spawn(move || {
                let mut said = Vec::new();
                let mut piece = [0; 4096];
                // Ends with an error when the last slave is closed.
                while let Ok(length @ 1..) = master.read(&mut piece) {
                    said.extend_from_slice(&piece[..length]);
                }
                String::from_utf8_lossy(&said).into_owned()
            });
            assert!(!child.wait().unwrap().success(), "{victim}");
            let after = tcgetattr(&pty.slave).unwrap();
            drop(pty.slave);
            let said = reader.join().unwrap();
            let at = |what: &str| {
                said.find(what)
                    .unwrap_or_else(|| panic!("{victim}: {what:?} is not in {said:?}"))
            };
            assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l"), "{said:?}");
            // The message is on the screen that stays.
            assert!(at("\u{1b}[?1049l") < at("on purpose"), "{said:?}");
            assert!(
                after
                    .local_flags
                    .contains(LocalFlags::ICANON | LocalFlags::ECHO)
            );
            assert_eq!(after.local_flags, before.local_flags, "{victim}");
        }
    }
}

//! What the sending thread asks of the scheduler.

use nix::sys::signal::SigSet;

/// Priority among real-time threads: above ordinary work, below the kernel's own threads (50).
const PRIORITY: i32 = 10;

/// Keeps signals off the calling thread: one that arrives ends a live-frames call early (EINTR).
pub fn block_signals() {
    // Fails only for an invalid argument, and this one is a constant.
    let _ = SigSet::all().thread_block();
}

/// Makes the calling thread run before ordinary work, so that a busy hub does not delay probes.
///
/// # Errors
/// Where CAP_SYS_NICE is missing or the limit forbids it; the thread then runs as before.
pub fn prefer() -> std::io::Result<()> {
    // Children (there are none, but aya or libc may fork helpers) do not inherit the priority.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: a system call on this thread with a valid structure.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

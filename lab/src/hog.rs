//! A thread that takes the processor from all other threads.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps a processor busy at the highest real-time priority there is, for this long.
///
/// # Errors
/// When the kernel refuses the priority or the processor.
///
/// # Panics
/// Never.
pub fn hog(processor: usize, time: Duration) -> Result<()> {
    // Ends by itself after the time, also if this thread unwinds.
    let thread = std::thread::spawn(move || -> Result<()> {
        let mut only = CpuSet::new();
        only.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &only)?;
        let parameters = libc::sched_param { sched_priority: 99 };
        // SAFETY: a system call on this thread with a valid structure.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        Ok(())
    });
    thread.join().expect("the hog does not panic")
}

/// Has all threads of a process run on one processor only.
///
/// # Errors
/// When there is no such process, or the kernel refuses.
pub fn confine(process: u32, processor: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    let tasks = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))?;
    for task in tasks {
        let thread = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(thread), &only)?;
    }
    Ok(())
}

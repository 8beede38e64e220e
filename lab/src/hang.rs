//! One thread of another process that stands still while the others go on: the real thing, without a hook in the program.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A thread that stands still until this is dropped, on the thread that made it.
#[derive(Debug)]
pub struct Hang {
    process: Pid,
    thread: Pid,
}

impl Hang {
    /// Stops the thread of this name of a process; the main thread if the name is that of the program.
    ///
    /// # Errors
    /// When there is no such thread, or it can't be stopped.
    pub fn new(process: u32, name: &str) -> Result<Self> {
        let tasks = format!("/proc/{process}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm"))?.trim_end() == name {
                let id = path.file_name().and_then(|id| id.to_str());
                let id = id.context("a thread without id")?.parse()?;
                return Self::thread(Pid::from_raw(process.cast_signed()), Pid::from_raw(id));
            }
        }
        bail!("process {process} has no thread {name}")
    }

    fn thread(process: Pid, thread: Pid) -> Result<Self> {
        // Unlike PTRACE_ATTACH these two stop the one thread alone, and leave no signal behind.
        ptrace::seize(thread, Options::empty()).context("seize the thread")?;
        let hang = Self { process, thread };
        ptrace::interrupt(thread).context("interrupt the thread")?;
        let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).context("wait for its stop")?;
        match stopped {
            WaitStatus::PtraceEvent(..) => Ok(hang),
            other => bail!("the thread did not stop: {other:?}"),
        }
    }
}

impl Hang {
    /// Takes note of the thread's end, if it has ended: until its tracer has done so, the kernel does not report the end of
    /// the whole process to its parent (`delay_group_leader`).
    pub fn reap(&self) {
        // The end of a process's first thread is that of the process, for which the parent waits.
        if self.thread != self.process {
            let _ = waitpid(
                self.thread,
                Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG),
            );
        }
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // Its process may have ended.
        let _ = ptrace::detach(self.thread, None);
        self.reap();
    }
}

//! A wall clock that steps, and a machine that slept, for one process only.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::Config;
use crate::netns::check;

/// Stands between the daemon and the C library: the clocks are what a file says they are.
const STEPPED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* How far off the wall clock is, and how long the machine slept. */
static volatile int64_t *seconds;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("STEPPED_CLOCK"), O_RDONLY);
    void *mapped = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) abort();
    seconds = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds[0];
    if (result == 0 && seconds && clock == CLOCK_BOOTTIME) now->tv_sec += seconds[1];
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    int result = syscall(SYS_gettimeofday, now, zone);
    if (result == 0 && seconds) now->tv_sec += seconds[0];
    return result;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// A file that says how many seconds the clocks are off, and a library that has a process believe it.
#[derive(Debug)]
pub struct SteppedClock {
    directory: TempDir,
    file: File,
}

impl SteppedClock {
    /// Compiles the library.
    ///
    /// # Errors
    /// When there is no C compiler.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("make a temporary directory")?;
        let [source, library, file] =
            ["clock.c", "clock.so", "clock"].map(|name| directory.path().join(name));
        fs::write(&source, STEPPED_CLOCK).context("write the library's source")?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
        check(compiler.arg(&source))?;
        let file = File::create_new(&file).context("make the file of the clock")?;
        let clock = Self { directory, file };
        clock.step(0)?;
        clock.sleep(0)?;
        Ok(clock)
    }

    /// A configuration for a daemon that has this clock.
    #[must_use]
    pub fn rules(&self, config: Config) -> Config {
        let path = |name| self.directory.path().join(name).display().to_string();
        config
            .environment("STEPPED_CLOCK", path("clock"))
            .environment("LD_PRELOAD", path("clock.so"))
    }

    /// From now on the clock is off by so many seconds.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn step(&self, seconds: i64) -> Result<()> {
        // In place: the daemon has it mapped.
        self.file
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .context("step the clock")
    }

    /// From now on the machine has slept so many seconds in all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn sleep(&self, seconds: i64) -> Result<()> {
        self.file
            .write_all_at(&seconds.to_ne_bytes(), size_of::<i64>() as u64)
            .context("have slept")
    }
}

//! A signal that comes while the kernel verifies a program does not make the load fail.

use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tracker_ebpf::abi::program;
use tracker_user::datapath::{OBJECT, object};

static HEARD: AtomicU64 = AtomicU64::new(0);

extern "C" fn hear(_: libc::c_int) {
    HEARD.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn programs_load_under_signals() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(hear),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only counts.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let loading = thread::spawn(|| -> Result<()> {
        let mut ebpf = aya::EbpfLoader::new().load(OBJECT)?;
        for name in [program::SEND, program::RECEIVE, program::TC_RECEIVE] {
            object::load(&mut ebpf, name)?;
        }
        Ok(())
    });
    while !loading.is_finished() {
        pthread_kill(loading.as_pthread_t(), Signal::SIGUSR1)?;
        thread::sleep(Duration::from_millis(1));
    }
    loading
        .join()
        .expect("it does not panic")
        .context("load under signals")?;
    assert!(HEARD.load(Ordering::Relaxed) > 0, "no signal came");
    Ok(())
}

//! The real [`Datapath`]: live frames, mapped memory and the ring buffer.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use aya::{
    TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{MapData, RingBuf},
    programs::Xdp,
};
use tracker_ebpf::{abi, probe, verdict::Verdict, window::Window};

use super::mmap::Mapped;
use crate::{
    detector::engine::Datapath,
    host::clock::{self, monotonic_ns},
    net::link_counters::LinkCounters,
};

/// Frames per round inside the kernel; 256 is the most it takes, and more than 64 gained nothing.
const LIVE_BATCH: u32 = 64;

/// The kernel, as the engine sees it.
pub struct KernelDatapath {
    pub(super) send: Xdp,
    pub(super) private_ifindex: u32,
    pub(super) paths: Mapped<abi::PathEntry>,
    pub(super) state: Arc<Mapped<abi::State>>,
    pub(super) windows: Arc<Mapped<u64>>,
    pub(super) batch: Mapped<abi::Job>,
    pub(super) cursor: Mapped<abi::Cursor>,
    pub(super) events: RingBuf<MapData>,
    pub(super) answered: VecDeque<abi::Answered>,
    pub(super) counters: LinkCounters,
}

/// Context of a live-frames call (`struct xdp_md`): the frames come from the private veth, so that
/// what is passed up arrives at its TC ingress.
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl KernelDatapath {
    /// The ring buffer's descriptor, readable when early replies wait.
    pub fn events_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.events)
    }

    fn call(&self, repeat: u32) -> io::Result<()> {
        // What a frame holds before the program runs; the program overwrites all of it.
        let data = [0u8; probe::LEN_V4];
        let context = Context {
            data: 0,
            data_end: data.len() as u32,
            data_meta: 0,
            ingress_ifindex: self.private_ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        // SAFETY: `Context` is plain integers without padding.
        let context = unsafe {
            std::slice::from_raw_parts((&raw const context).cast::<u8>(), size_of::<Context>())
        };
        let options = TestRunOptions {
            data_in: Some(&data),
            ctx_in: Some(context),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
            ..Default::default()
        };
        match self.send.test_run(options) {
            Ok(_) => Ok(()),
            Err(aya::programs::ProgramError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl KernelDatapath {
    /// Has the send program do as many jobs as a batch takes, in order; says how many it attempted.
    fn run(&mut self, jobs: impl Iterator<Item = abi::Job>) -> io::Result<usize> {
        let Some(cursor) = self.cursor.at(0) else {
            return Ok(0);
        };
        let mut count = 0;
        for (at, job) in (0..self.batch.len()).zip(jobs) {
            if let Some(entry) = self.batch.at(at) {
                // SAFETY: inside the mapping; the send program reads it only during the call below.
                unsafe { entry.write(job) };
                count += 1;
            }
        }
        // SAFETY: inside the mapping; the send program reads and writes it only during the call below.
        unsafe {
            cursor.write(abi::Cursor {
                next: 0,
                end: count,
            })
        };
        fence(Ordering::SeqCst);
        let result = self.call(count);
        fence(Ordering::SeqCst);
        // SAFETY: inside the mapping; volatile because the kernel wrote it.
        let taken = unsafe { cursor.read_volatile() }.next as usize;
        match result {
            Err(error) if taken == 0 => Err(error),
            // A call cut short (EINTR, ENOMEM) has sent what the cursor says.
            Ok(()) | Err(_) => Ok(taken.min(count as usize)),
        }
    }
}

impl Datapath for KernelDatapath {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn slept_ns(&self) -> u64 {
        // CLOCK_BOOTTIME goes on while the machine is suspended (Linux 2.6.39). It is read first: what passes before
        // the other one is read makes the difference smaller, and is not taken for sleep.
        let boot_ns = clock::boot_ns();
        boot_ns.saturating_sub(monotonic_ns())
    }

    fn send(&mut self, jobs: &[abi::Job]) -> io::Result<usize> {
        self.run(jobs.iter().copied())
    }

    fn sent(&self, slot: u32) -> u64 {
        self.state.at(slot).map_or(0, |state| {
            // SAFETY: a valid, aligned element; the kernel writes this word whole.
            unsafe { AtomicU64::from_ptr(&raw mut (*state).send.sent) }.load(Ordering::Acquire)
        })
    }

    fn is_replied(&self, window: Window, sequence: u64) -> bool {
        let (word, bit) = window.position(sequence);
        self.windows.at(word).is_some_and(|word| {
            // SAFETY: a valid, aligned element; the kernel changes it atomically.
            unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Acquire) & bit != 0
        })
    }

    fn trouble(&self, slot: u32) -> abi::TroubleState {
        self.state.at(slot).map_or_else(Default::default, |state| {
            // SAFETY: a valid element; fields may be of different moments, which does no harm.
            unsafe { (&raw const (*state).trouble).read_volatile() }
        })
    }

    fn set_verdict(&mut self, slot: u32, verdict: Verdict) {
        if let Some(state) = self.state.at(slot) {
            // SAFETY: a valid element; a byte is written whole.
            unsafe { AtomicU8::from_ptr(&raw mut (*state).receive.verdict) }
                .store(verdict as u8, Ordering::SeqCst);
        }
        // A reply after this store is reported as early; one before it is seen in the bit set.
        fence(Ordering::SeqCst);
    }

    fn set_judge(&mut self, slot: u32, judge: &abi::JudgeState) {
        if let Some(state) = self.state.at(slot) {
            // SAFETY: a valid element; only this thread writes this part.
            unsafe { (&raw mut (*state).judge).write_volatile(*judge) };
        }
    }

    fn judge(&self, slot: u32) -> abi::JudgeState {
        self.state.at(slot).map_or_else(Default::default, |state| {
            // SAFETY: a valid element; only this thread writes this part.
            unsafe { (&raw const (*state).judge).read_volatile() }
        })
    }

    fn set_path(&mut self, path: u32, entry: &abi::Path) {
        let Some(slot) = self.paths.at(path) else {
            return;
        };
        // SAFETY: a valid element, which begins with a path and which only this thread writes. What programs read is not written to
        // until the generation tells them of the other path (see `abi::PathEntry`).
        unsafe {
            let generation = AtomicU32::from_ptr(&raw mut (*slot).generation);
            let (main, next) = (slot.cast::<abi::Path>(), &raw mut (*slot).next);
            let publish = |to: *mut abi::Path, path: abi::Path, number: u32| {
                to.write_volatile(path);
                generation.store(number, Ordering::Release);
                fence(Ordering::SeqCst);
            };
            let mut number = generation.load(Ordering::Relaxed);
            if number & 1 != 0 {
                // An earlier daemon was killed between the two steps.
                number = number.wrapping_add(1);
                publish(main, next.read_volatile(), number);
            }
            publish(next, *entry, number.wrapping_add(1));
            publish(main, *entry, number.wrapping_add(2));
        }
    }

    fn next_reply(&mut self) -> Option<abi::Event> {
        loop {
            let item = self.events.next()?;
            if item.len() == size_of::<abi::Event>() {
                // SAFETY: the length fits and any bytes are a valid `Event`.
                return Some(unsafe { item.as_ptr().cast::<abi::Event>().read_unaligned() });
            }
            if item.len() == size_of::<abi::Answered>() {
                // SAFETY: the length fits and any bytes are a valid `Answered`.
                let answered = unsafe { item.as_ptr().cast::<abi::Answered>().read_unaligned() };
                self.answered.push_back(answered);
            }
        }
    }

    fn next_answered(&mut self) -> Option<abi::Answered> {
        self.answered.pop_front()
    }

    fn set_private(&mut self, ifindex: u32) {
        self.private_ifindex = ifindex;
    }

    fn transmitted(&mut self, ifindex: u32) -> Option<u64> {
        self.counters.transmitted(ifindex)
    }
}

//! Atomic read-modify-write, which `core::sync::atomic` does not offer on BPF (the target has no
//! compare-and-swap in its description, although the instructions exist: Linux 5.12).
//!
//! The orderings are AcqRel: with Relaxed, LLVM drops the "fetch" form and the returned old value
//! is wrong.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

/// Sets `bits` and returns the word's old value.
///
/// # Safety
/// `word` is valid, aligned, and accessed by others only atomically.
#[inline(always)]
pub unsafe fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: by this function's contract.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::AcqRel }>(word, bits) }
}

/// Adds to a counter that several CPUs may write.
///
/// # Safety
/// `counter` is valid and aligned.
#[inline(always)]
pub unsafe fn add32(counter: *mut u32, value: u32) {
    // SAFETY: by this function's contract.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(counter, value) };
}

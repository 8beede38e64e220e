//! Reading a path while the daemon may be publishing another one.

use core::{
    mem::offset_of,
    sync::atomic::{Ordering, compiler_fence},
};

use tracker_ebpf::abi::{Path, PathEntry};

use super::maps::PATHS;

/// How often a path is looked at that changes meanwhile. One publication raises the generation twice, and spoils two looks at most;
/// a second one would have to fall into the same nanoseconds, and the daemon's are a pass of its main loop apart.
const LOOKS: usize = 3;

/// What `read` makes of the path in use, whole. `None` if there is no such slot.
#[inline(always)]
pub fn look<T>(slot: u32, read: impl Fn(&Path) -> T) -> Option<T> {
    let entry = PATHS.get_ptr(slot)?;
    let mut looks = 0;
    loop {
        let generation = generation(entry);
        compiler_fence(Ordering::SeqCst);
        let seen = read(copy(entry, generation));
        compiler_fence(Ordering::SeqCst);
        looks += 1;
        if self::generation(entry) == generation || looks == LOOKS {
            return Some(seen);
        }
    }
}

/// The path in use, for programs that run in a call of the thread that publishes paths: none changes meanwhile.
#[inline(always)]
pub fn path<'a>(slot: u32) -> Option<&'a Path> {
    let entry = PATHS.get_ptr(slot)?;
    Some(copy(entry, generation(entry)))
}

#[inline(always)]
fn generation(entry: *const PathEntry) -> u32 {
    // SAFETY: a valid map value; a word is read whole.
    unsafe { (&raw const (*entry).generation).read_volatile() }
}

/// The path that readers of a generation take.
#[inline(always)]
fn copy<'a>(entry: *const PathEntry, generation: u32) -> &'a Path {
    let at = (generation & 1) as usize * offset_of!(PathEntry, next);
    // SAFETY: a valid map value, which has a path at its beginning (asserted with the layout) and in `next`. Every byte may have any
    // value; what is read of a path that is being written is thrown away.
    unsafe { &*entry.byte_add(at).cast::<Path>() }
}

//! Reading a path while the daemon may be publishing another one.

use core::sync::atomic::{Ordering, compiler_fence};

use tracker_ebpf::abi::Path;

use super::maps::PATHS;

/// How often a path is read that changes meanwhile. One publication spoils one look at most: two in a row would have to fall into
/// the same nanoseconds, and the daemon's are a pass of its main loop apart.
const LOOKS: usize = 2;

/// A whole copy of the path in use. Of its fields only those that are used are read. `None` if there is no such slot.
#[inline(always)]
pub fn path(slot: u32) -> Option<Path> {
    let entry = PATHS.get_ptr(slot)?;
    let mut looks = 0;
    loop {
        // SAFETY: a valid map value, and an index below 2. Every byte may have any value, so that a copy that is being written to
        // is a `Path` as well; it is thrown away.
        let (generation, path, after) = unsafe {
            let generation = (&raw const (*entry).generation).read_volatile();
            compiler_fence(Ordering::SeqCst);
            let copy = (&raw const (*entry).copies).cast::<Path>();
            let path = copy.add((generation & 1) as usize).read();
            compiler_fence(Ordering::SeqCst);
            let after = (&raw const (*entry).generation).read_volatile();
            (generation, path, after)
        };
        looks += 1;
        if generation == after || looks == LOOKS {
            return Some(path);
        }
    }
}

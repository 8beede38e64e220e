//! The maps that other eBPF programs read: what counts of each service and member. The layout is frozen: readers share the map
//! by its pin, and the kernel compares type, sizes and flags. `dist/include/tracker_verdicts.h` is the same for C.
//!
//! A reader looks a name up once in NAMES, keeps the index, and reads VERDICTS by it. An entry whose last refresh is older than
//! [`LEASE_NS`] means unknown: the daemon that wrote it has ended or does not keep up.

use core::mem::{offset_of, size_of};

/// Name of the map from a [`Name`] to an index of [`VERDICTS`]: a hash.
pub const NAMES: &str = "NAMES";
/// Name of the map of [`PublicVerdict`]s by index: an array, memory-mappable.
pub const VERDICTS: &str = "VERDICTS";
/// Both.
pub const ALL: [&str; 2] = [NAMES, VERDICTS];
/// Entries of either map. Services and members beyond are not published; the maps are never replaced by larger ones.
pub const CAPACITY: u32 = 65_536;
/// Value of [`PublicVerdict::layout`].
pub const LAYOUT: u8 = 1;
/// Time after the last refresh from which on an entry means unknown, in nanoseconds. The daemon refreshes once a second.
pub const LEASE_NS: u64 = 3_000_000_000;
/// Bytes of a name.
pub const NAME_LEN: usize = 64;

/// `service` or `service/member`, zeros behind it.
pub type Name = [u8; NAME_LEN];

/// Makes the key of a service, or of one of its members. `None` if it is longer than [`NAME_LEN`].
pub fn name(service: &str, member: Option<&str>) -> Option<Name> {
    let mut name = [0; NAME_LEN];
    let parts: [&[u8]; 3] = match member {
        Some(member) => [service.as_bytes(), b"/", member.as_bytes()],
        None => [service.as_bytes(), b"", b""],
    };
    let mut at = 0;
    for part in parts {
        name.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    Some(name)
}

/// What counts of a service or member.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublicVerdict {
    /// Grows by two with each change; odd while the entry is written.
    pub generation: u32,
    /// [`LAYOUT`], once the entry has been written.
    pub layout: u8,
    /// What counts, by verdict and admin state: 0 unknown, 1 up, 2 down.
    pub verdict: u8,
    /// The measured cause, by its number in `docs/reference/causes.md`.
    pub cause: u8,
    /// The admin state: 0 auto, 1 maintenance, 2 up, 3 down.
    pub admin: u8,
    /// Weight of a member; of a service, the sum of the weights of its selected members that are up.
    pub weight: u32,
    /// 1 if a member is in use; of a service, how many members are.
    pub selected: u32,
    /// When verdict, cause, admin state, weight or selection last changed.
    pub changed_mono_ns: u64,
    /// When the daemon last found the entry to be true.
    pub refreshed_mono_ns: u64,
}

const _: () = assert!(
    size_of::<PublicVerdict>() == 32
        && offset_of!(PublicVerdict, layout) == 4
        && offset_of!(PublicVerdict, weight) == 8
        && offset_of!(PublicVerdict, changed_mono_ns) == 16
        && offset_of!(PublicVerdict, refreshed_mono_ns) == 24
);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding, no pointers, every byte may have any value.
unsafe impl aya::Pod for PublicVerdict {}

impl PublicVerdict {
    /// Whether the entry can be relied on at a time of `CLOCK_MONOTONIC`.
    pub const fn is_fresh(&self, now_mono_ns: u64) -> bool {
        self.layout == LAYOUT && now_mono_ns.saturating_sub(self.refreshed_mono_ns) <= LEASE_NS
    }
}

/// Access to entries of the mapped array while other processes read it, which programs do not need: the BPF target has no
/// atomics of 32 bits.
#[cfg(not(target_arch = "bpf"))]
mod access {
    use core::{
        ptr::{addr_of, addr_of_mut},
        sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    };

    use super::{LAYOUT, PublicVerdict};

    /// How often a reader tries to find an entry that is not being written.
    const ATTEMPTS: u32 = 8;

    impl PublicVerdict {
        /// Reads an entry of the mapped array that another process may write at the same time. `None` if it was being written each
        /// time.
        ///
        /// # Safety
        /// `entry` is valid for reads and aligned.
        pub unsafe fn read(entry: *const Self) -> Option<Self> {
            for _ in 0..ATTEMPTS {
                // SAFETY: the caller's; the generation is accessed by atomics alone, here and by the writer.
                let generation =
                    unsafe { AtomicU32::from_ptr(addr_of!((*entry).generation).cast_mut()) };
                let before = generation.load(Ordering::Acquire);
                // SAFETY: the caller's; any bytes are a value of these integers.
                let value = unsafe { entry.read_volatile() };
                fence(Ordering::Acquire);
                if before & 1 == 0 && generation.load(Ordering::Relaxed) == before {
                    return Some(Self {
                        generation: before,
                        ..value
                    });
                }
            }
            None
        }

        /// Writes all but the generation, which grows by two.
        ///
        /// # Safety
        /// `entry` is valid for reads and writes and aligned, and no one else writes it.
        pub unsafe fn write(self, entry: *mut Self) {
            // SAFETY: the caller's; readers access the generation by atomics alone.
            let generation = unsafe { AtomicU32::from_ptr(addr_of_mut!((*entry).generation)) };
            // A writer that was killed half-way left it odd.
            let odd = generation.load(Ordering::Relaxed) | 1;
            generation.store(odd, Ordering::Relaxed);
            fence(Ordering::Release);
            // SAFETY: the caller's. Field by field, as the generation is not to be overwritten.
            unsafe {
                addr_of_mut!((*entry).layout).write_volatile(LAYOUT);
                addr_of_mut!((*entry).verdict).write_volatile(self.verdict);
                addr_of_mut!((*entry).cause).write_volatile(self.cause);
                addr_of_mut!((*entry).admin).write_volatile(self.admin);
                addr_of_mut!((*entry).weight).write_volatile(self.weight);
                addr_of_mut!((*entry).selected).write_volatile(self.selected);
                addr_of_mut!((*entry).changed_mono_ns).write_volatile(self.changed_mono_ns);
                addr_of_mut!((*entry).refreshed_mono_ns).write_volatile(self.refreshed_mono_ns);
            }
            generation.store(odd.wrapping_add(1), Ordering::Release);
        }

        /// Says that the entry is still true.
        ///
        /// # Safety
        /// As for [`PublicVerdict::write`].
        pub unsafe fn refresh(entry: *mut Self, now_mono_ns: u64) {
            // SAFETY: the caller's; one aligned word.
            let refreshed =
                unsafe { AtomicU64::from_ptr(addr_of_mut!((*entry).refreshed_mono_ns)) };
            refreshed.store(now_mono_ns, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_or_is_none() {
        assert_eq!(&name("fw-1", None).unwrap()[..5], b"fw-1\0");
        assert_eq!(
            &name("fw-1", Some("active")).unwrap()[..12],
            b"fw-1/active\0"
        );
        let long = "x".repeat(NAME_LEN);
        assert!(name(&long, None).is_some());
        assert!(name(&long[1..], Some("")).is_some());
        assert_eq!(name(&long, Some("")), None);
        assert_eq!(name(&long[..60], Some("abcd")), None);
    }

    #[test]
    fn an_entry_is_whole_or_not_read() {
        let mut entry = PublicVerdict::default();
        assert!(!entry.is_fresh(0), "never written");
        let value = PublicVerdict {
            verdict: 1,
            cause: 1,
            weight: 3,
            changed_mono_ns: 5,
            refreshed_mono_ns: 7,
            ..PublicVerdict::default()
        };
        // SAFETY: a valid entry that only this thread has.
        let read = unsafe {
            value.write(&raw mut entry);
            PublicVerdict::read(&raw const entry).unwrap()
        };
        assert_eq!(
            read,
            PublicVerdict {
                generation: 2,
                layout: LAYOUT,
                ..value
            }
        );
        assert!(read.is_fresh(7 + LEASE_NS) && !read.is_fresh(8 + LEASE_NS));
        entry.generation = 3;
        // SAFETY: a valid entry that only this thread has.
        unsafe {
            assert_eq!(PublicVerdict::read(&raw const entry), None);
            // What a killed writer left half-way is written whole.
            value.write(&raw mut entry);
            PublicVerdict::refresh(&raw mut entry, 9);
            let read = PublicVerdict::read(&raw const entry).unwrap();
            assert_eq!((read.generation, read.refreshed_mono_ns), (4, 9));
        }
    }

    #[test]
    fn readers_never_see_half_of_a_change() {
        use std::{sync::Arc, thread};
        struct Shared(core::cell::UnsafeCell<PublicVerdict>);
        // SAFETY: accessed by `read` and `write` alone.
        unsafe impl Sync for Shared {}
        // SAFETY: plain integers.
        unsafe impl Send for Shared {}
        let shared = Arc::new(Shared(PublicVerdict::default().into()));
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                for at in 1..200_000u64 {
                    let value = PublicVerdict {
                        weight: at as u32,
                        selected: at as u32,
                        changed_mono_ns: at,
                        refreshed_mono_ns: at,
                        ..PublicVerdict::default()
                    };
                    // SAFETY: the only writer.
                    unsafe { value.write(shared.0.get()) };
                }
            })
        };
        let mut seen = 0;
        while !writer.is_finished() {
            // SAFETY: valid as long as `shared`.
            if let Some(read) = unsafe { PublicVerdict::read(shared.0.get()) } {
                let at = read.changed_mono_ns;
                assert_eq!((u64::from(read.weight), u64::from(read.selected)), (at, at));
                assert_eq!(u64::from(read.generation), 2 * at);
                assert!(at >= seen);
                seen = at;
            }
        }
        writer.join().unwrap();
    }
}

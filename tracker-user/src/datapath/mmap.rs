//! Array maps as memory: `BPF_F_MMAPABLE` arrays (Linux 5.5) read and written without system calls.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};

/// An array map's memory. The kernel's programs read and write it at the same time, so elements are
/// only ever accessed through raw pointers, field by field.
pub struct Mapped<T> {
    memory: memmap2::MmapRaw,
    len: u32,
    stride: usize,
    _element: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Maps an array map whose values are `T`.
    ///
    /// # Errors
    /// Where the map's value size is another, or the kernel refuses.
    pub fn new(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(io::Error::other(format!(
                "the map's values have {} bytes, this program's {}",
                info.value_size(),
                size_of::<T>()
            )));
        }
        let len = info.max_entries();
        // The kernel rounds each element up to 8 bytes (array_map_alloc).
        let stride = size_of::<T>().next_multiple_of(8);
        let memory = memmap2::MmapOptions::new()
            .len(len as usize * stride)
            .map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self {
            memory,
            len,
            stride,
            _element: PhantomData,
        })
    }

    /// Number of elements.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// True for a map without elements, which the kernel does not make.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element, or `None` beyond the end.
    pub fn at(&self, index: u32) -> Option<*mut T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: `index` is inside the mapping, which lives as long as `self`; the mapping is page
        // aligned and the stride a multiple of `T`'s alignment (the abi asserts sizes of 8n).
        Some(unsafe {
            self.memory
                .as_mut_ptr()
                .add(index as usize * self.stride)
                .cast()
        })
    }
}

impl<T> std::fmt::Debug for Mapped<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

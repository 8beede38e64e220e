//! The one place that touches packet memory.

use tracker_ebpf::wire::{Bytes, BytesMut};

/// A packet's linear bytes, as the verifier knows them.
#[derive(Clone, Copy)]
pub struct Packet {
    data: usize,
    data_end: usize,
}

impl Packet {
    /// `data` and `data_end` of a program's context, both read in this run.
    #[inline(always)]
    pub fn new(data: usize, data_end: usize) -> Self {
        Self { data, data_end }
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let start = self.data + offset;
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: `data..data_end` is readable while the program runs, nobody else writes it, the
        // range was checked just above (the verifier insists), and bytes need no alignment.
        Some(unsafe { &*(start as *const [u8; N]) })
    }
}

impl BytesMut for Packet {
    #[inline(always)]
    fn at_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let start = self.data + offset;
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: as above, and `&mut self` makes it the only reference into the packet.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }
}

//! The one place that touches packet memory.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET,
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_skb_pull_data},
    programs::TcContext,
};
use tracker_ebpf::{
    probe,
    wire::{Bytes, BytesMut, icmp, ipv6},
};

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
        // SAFETY: `data..data_end` is readable while the program runs, nothing else writes it, the
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
        // SAFETY: the bytes are inside the packet, and `&mut self` makes it the only reference into the packet.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }
}

/// Bytes that hold the head of a reply whatever lies before its IP header: a tunnel's packet may begin with
/// the outer headers.
const LINEAR: u32 = 256;

/// Room for the head of a reply, or of an error that quotes a probe, from its IP header on. Words, because the verifier refuses a misaligned
/// word of the stack, and not set to zero, which would be a loop over its bytes.
pub type Memory = MaybeUninit<[u64; (2 * (ipv6::LEN + icmp::LEN) + probe::LEN) / 8]>;

/// The first `LEN` bytes of a packet at TC ingress from its IP header on, wherever that is: behind an
/// Ethernet header, at the packet's first byte (tun, WireGuard), or behind the outer headers (GRE, whose MAC
/// header is the outer IP header: `ipgre_rcv` of Linux 6.12). A copy, `SHIFT` bytes into `memory`; `None`
/// if there are fewer.
#[inline(always)]
pub fn head<'a, const SHIFT: usize, const LEN: usize>(
    ctx: &TcContext,
    memory: &'a mut Memory,
) -> Option<&'a [u8; LEN]> {
    const { assert!(SHIFT + LEN <= size_of::<Memory>()) };
    // SAFETY: the range was checked just above.
    unsafe {
        let to = memory.as_mut_ptr().byte_add(SHIFT).cast::<[u8; LEN]>();
        // The helper wrote all of it, or says that it did not.
        load(ctx, 0, to).then(|| &*to)
    }
}

/// The `LEN` bytes at `offset` from the IP header, as a copy in `memory`; `None` if there are fewer.
#[inline(always)]
pub fn copy<'a, const LEN: usize>(
    ctx: &TcContext,
    offset: usize,
    memory: &'a mut Memory,
) -> Option<&'a [u8; LEN]> {
    const { assert!(LEN <= size_of::<Memory>()) };
    // SAFETY: the range was checked just above.
    unsafe {
        let to = memory.as_mut_ptr().cast::<[u8; LEN]>();
        // The helper wrote all of it, or says that it did not.
        load(ctx, offset, to).then(|| &*to)
    }
}

/// A copy of the first bytes of a packet, of one of several lengths: neither is what may be ours of one length, nor
/// does an error quote more than it likes to.
pub struct Head<'a> {
    memory: &'a Memory,
    len: usize,
}

impl<'a> Head<'a> {
    /// Copies the longest that the packet has from its IP header on; the longest comes first.
    #[inline(always)]
    pub fn longest<const A: usize, const B: usize, const C: usize, const D: usize>(
        ctx: &TcContext,
        memory: &'a mut Memory,
    ) -> Option<Self> {
        const { assert!(A <= size_of::<Memory>() && B < A && C < B && D < C) };
        // The first try leaves nothing uninitialised: the helper writes zeros if it fails.
        let to = memory.as_mut_ptr();
        // SAFETY: the range was checked just above.
        let len = unsafe {
            if load(ctx, 0, to.cast::<[u8; A]>()) {
                A
            } else if load(ctx, 0, to.cast::<[u8; B]>()) {
                B
            } else if load(ctx, 0, to.cast::<[u8; C]>()) {
                C
            } else if load(ctx, 0, to.cast::<[u8; D]>()) {
                D
            } else {
                return None;
            }
        };
        Some(Self { memory, len })
    }
}

impl Bytes for Head<'_> {
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        if offset + N > self.len {
            return None;
        }
        // SAFETY: `len` bytes were written, and are not more than the memory has.
        Some(unsafe { &*self.memory.as_ptr().byte_add(offset).cast::<[u8; N]>() })
    }
}

/// The `LEN` bytes at `offset` from the IP header; `None` if the packet has fewer.
#[inline(always)]
pub fn network_bytes<const LEN: usize>(ctx: &TcContext, offset: usize) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    // SAFETY: a reference is valid for writing.
    unsafe { load(ctx, offset, &raw mut bytes) }.then_some(bytes)
}

/// Copies bytes from `offset` after the start of the IP header; false if there are not so many.
///
/// # Safety
/// `to` must be valid for writing.
#[inline(always)]
unsafe fn load<const LEN: usize>(ctx: &TcContext, offset: usize, to: *mut [u8; LEN]) -> bool {
    let (skb, offset, len) = (ctx.skb.skb.cast(), offset as u32, LEN as u32);
    // SAFETY: helper call on this program's own context; the caller vouches for the room.
    unsafe { bpf_skb_load_bytes_relative(skb, offset, to.cast(), len, BPF_HDR_START_NET) == 0 }
}

/// True if a part of the bytes in which a reply is recognised is not in the packet's linear part.
#[inline(always)]
pub fn is_scattered(ctx: &TcContext) -> bool {
    ctx.data() + ctx.len().min(LINEAR) as usize > ctx.data_end()
}

/// Has the kernel put them there, if they are not. If it cannot, the packet stays as it was.
#[inline(always)]
pub fn gather(ctx: &TcContext) {
    if is_scattered(ctx) {
        pull(ctx, ctx.len().min(LINEAR));
    }
}

/// Has the kernel put the first `len` bytes of a packet in its linear part. If it cannot, the packet stays as it was.
#[inline(always)]
pub fn pull(ctx: &TcContext, len: u32) {
    // SAFETY: helper call on this program's own context; no packet pointer is held across it.
    unsafe { bpf_skb_pull_data(ctx.skb.skb, len) };
}

//! The one place that touches packet memory.

use aya_ebpf::{
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET,
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_skb_pull_data},
    programs::TcContext,
};
use tracker_ebpf::wire::{Bytes, BytesMut, icmp, ipv6, probe};

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

/// Bytes of the largest head of a reply from its IP header on.
const HEAD: usize = ipv6::LEN + icmp::LEN + probe::LEN;
/// Bytes that hold such a head whatever lies before it: a tunnel's packet may begin with the outer headers.
const LINEAR: u32 = 256;

/// The first bytes of a packet at TC ingress from its IP header on, wherever that is: behind an Ethernet
/// header, at the packet's first byte (tun, WireGuard) or behind the outer headers (GRE, whose MAC header
/// is the outer IP header: `ipgre_rcv` of Linux 6.12). A copy, at `SHIFT` in memory that is aligned to 8: the verifier refuses a
/// misaligned word of the stack.
#[repr(align(8))]
pub struct Head<const SHIFT: usize>([u8; HEAD]);

impl<const SHIFT: usize> Head<SHIFT> {
    /// The first `LEN` bytes; `None` where there are fewer.
    #[inline(always)]
    pub fn load<const LEN: usize>(ctx: &TcContext) -> Option<Self> {
        const { assert!(SHIFT + LEN <= HEAD) };
        let mut head = Self([0; HEAD]);
        let to = head.0.get_mut(SHIFT..SHIFT + LEN)?.as_mut_ptr().cast();
        let skb = ctx.skb.skb.cast();
        // SAFETY: helper call on this program's own context, with room for `LEN` bytes.
        let error =
            unsafe { bpf_skb_load_bytes_relative(skb, 0, to, LEN as u32, BPF_HDR_START_NET) };
        (error == 0).then_some(head)
    }
}

impl<const SHIFT: usize> Bytes for Head<SHIFT> {
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.0.get(SHIFT + offset..)?.first_chunk()
    }
}

/// Has the kernel put what [`Head::load`] reads into the packet's linear part, where it is not.
#[inline(always)]
pub fn make_linear(ctx: &TcContext) {
    let len = ctx.len().min(LINEAR);
    if ctx.data() + len as usize > ctx.data_end() {
        // A failure leaves the packet as it was.
        // SAFETY: helper call on this program's own context; no packet pointer is held across it.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, len) };
    }
}

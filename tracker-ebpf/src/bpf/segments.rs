//! Replies that the kernel merged before TC sees them. UDP datagrams of one flow become one packet on a device with
//! `rx-udp-gro-forwarding` or `rx-gro-list` (`udp_gro_receive_segment`, Linux 5.6): its payload is theirs in a row, each of
//! `gso_size` bytes but the last. Each datagram is judged by a run of its own, by a tail call: the verifier would follow a loop around
//! the whole judgement once for each state.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use tracker_ebpf::{
    probe::{
        self, HEADER_LEN, ProbeHeader,
        answer::{Answer, Evidence},
        stamp::{self, Claim},
    },
    wire::{ethernet, ipv4, ipv6},
};

use super::{
    maps::SEGMENTS,
    packet::{self, Memory},
    receive::{self, Parsed},
};

/// Places of SEGMENTS: the program for packets with an Ethernet header, and that for packets without one.
pub const ETHERNET: u32 = 0;
/// See [`ETHERNET`].
pub const BARE: u32 = 1;

/// Words of `skb->cb` that pass from one run to the next: which datagram is next, and whether all before are dropped.
const NEXT: usize = 0;
/// See [`NEXT`].
const DROPS: usize = 1;

/// Whether the kernel merged several packets into this one.
#[inline(always)]
pub fn are_merged(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

/// Has each datagram of a packet judged that may be ours, from the first one on. All of it is put where a program can read it: merged
/// datagrams are in fragments or in a list of buffers, and `bpf_skb_load_bytes_relative` reads the linear part alone.
#[inline(always)]
pub fn begin(ctx: &TcContext, program: u32) -> i32 {
    packet::pull(ctx, ctx.len());
    go_on(ctx, 0, true, program)
}

/// Has the next run judge the datagram `next`. If there is none, because the kernel stops after 33 tail calls
/// (`MAX_TAIL_CALL_CNT`), the packet passes: what was not judged is not proven to be ours.
#[inline(always)]
fn go_on(ctx: &TcContext, next: u32, drops: bool, program: u32) -> i32 {
    // SAFETY: the context is valid while the program runs, and its `cb` may be written; the map holds programs of this type.
    unsafe {
        (*ctx.skb.skb).cb[NEXT] = next;
        (*ctx.skb.skb).cb[DROPS] = u32::from(drops);
        SEGMENTS.tail_call(ctx, program);
        (*ctx.skb.skb).cb[NEXT] = 0;
        (*ctx.skb.skb).cb[DROPS] = 0;
    }
    TC_ACT_UNSPEC
}

/// One of several datagrams that are one packet.
pub struct Segment {
    /// Where its payload begins, counted from the IP header.
    at: usize,
}

impl Segment {
    /// The datagram that is this run's.
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        // SAFETY: the context is valid while the program runs.
        let (number, size) = unsafe { ((*ctx.skb.skb).cb[NEXT], (*ctx.skb.skb).gso_size) };
        let header = match receive::ethertype(ctx) {
            ethernet::IPV4 => ipv4::LEN + HEADER_LEN,
            _ => ipv6::LEN + HEADER_LEN,
        };
        let at = header + number.wrapping_mul(size) as usize;
        Self { at }
    }

    /// What was read of the first datagram, with the probe header of this one.
    #[inline(always)]
    pub fn reply(&self, ctx: &TcContext, first: Parsed) -> Parsed {
        let mut memory = Memory::uninit();
        match packet::copy::<{ probe::LEN }>(ctx, self.at, &mut memory) {
            Some(payload) if ProbeHeader::is_present(payload) => {
                first.with(ProbeHeader::parse(payload))
            }
            _ => Parsed::NONE,
        }
    }

    /// What was read of the first datagram, with what proves this one. `None` if that was no reflected STAMP packet, or this one
    /// is none.
    #[inline(always)]
    pub fn answer(&self, ctx: &TcContext, first: Option<Answer>) -> Option<Answer> {
        let first = first?;
        let mut memory = Memory::uninit();
        let payload = packet::copy::<{ stamp::REFLECTED_LEN }>(ctx, self.at, &mut memory)?;
        match first.evidence {
            Evidence::Stamp(_) => Some(Answer {
                evidence: Evidence::Stamp(Claim::of_reply(payload)?),
                ..first
            }),
            Evidence::Syn(_) => None,
        }
    }
}

/// The end of a run: what becomes of the packet, if the datagram was its last one. It is dropped if each datagram is ours.
#[inline(always)]
pub fn finish(ctx: &TcContext, drops: bool, program: u32) -> i32 {
    // SAFETY: the context is valid while the program runs, and its `cb` may be written.
    unsafe {
        let skb = &mut *ctx.skb.skb;
        let drops = drops && skb.cb[DROPS] != 0;
        let next = skb.cb[NEXT].wrapping_add(1);
        if next < skb.gso_segs {
            return go_on(ctx, next, drops, program);
        }
        (skb.cb[NEXT], skb.cb[DROPS]) = (0, 0);
        match drops {
            true => TC_ACT_SHOT,
            false => TC_ACT_UNSPEC,
        }
    }
}

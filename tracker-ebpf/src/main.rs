//! Entry points of the programs. Each turns one outcome into one action.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "atomic read-modify-write exists on BPF only as intrinsics; see bpf/atomic.rs"
)]
#![allow(missing_docs, reason = "a binary has no public items")]

mod bpf;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, socket_filter, xdp},
    programs::{SkBuffContext, TcContext, XdpContext},
};
use bpf::{
    answer,
    disposition::{self, Action},
    maps::{EXPECTING, NAMES, VERDICTS, WATCHED},
    packet::{self, Packet},
    receive::{self, Arrival, Outcome, Parsed},
    segments::{self, Segment},
    send::{self, Refusal},
    steer::{self, BARE, ETHERNET},
};
use tracker_ebpf::{
    abi::Path,
    probe::{self, answer::Answer, reply},
    public,
    wire::{Bytes as _, flow},
};

/// `PACKET_OTHERHOST` of linux/if_packet.h: the frame's destination is not this device.
const PACKET_OTHERHOST: u32 = 3;

/// `PACKET_OUTGOING`: this host sends it.
const PACKET_OUTGOING: u32 = 4;

/// A diagnostic through aya-log, at the 1st, 2nd, 4th, 8th ... time: rare by construction, so that no
/// flood of packets becomes a flood of messages. Nothing without the feature `log`.
macro_rules! rarely {
    ($count:expr, $ctx:expr, $message:literal) => {
        #[cfg(feature = "log")]
        if $count.is_power_of_two() {
            aya_log_ebpf::warn!($ctx, $message, $count);
        }
        #[cfg(not(feature = "log"))]
        let _ = ($count, $ctx);
    };
}

/// Live frames: each run turns the frame at hand into the batch's next probe.
#[xdp]
#[inline(always)]
pub fn trk_xdp_send(ctx: XdpContext) -> u32 {
    let outcome = send::send(&ctx);
    let (action, count) = disposition::of_frame(&outcome);
    if let Err(Refusal::Failed) = outcome {
        rarely!(
            count,
            &ctx,
            "the kernel refused to size or redirect {} probes"
        );
    }
    action.xdp()
}

/// TC ingress of the private veth: sends out what the send program passed up.
#[classifier]
pub fn trk_tc_send(ctx: TcContext) -> i32 {
    send::redirect(&ctx).unwrap_or(TC_ACT_OK)
}

/// XDP on an interface on which replies may arrive. It takes packets of several buffers (`frags`), so that drivers limit neither
/// the MTU nor merging because of it, and reads their first buffer, which has the headers.
#[xdp(frags)]
#[inline(always)]
pub fn trk_xdp_recv(ctx: XdpContext) -> u32 {
    receive_by_xdp(&ctx)
}

/// XDP there in the generic hook, without `frags`: for a program that takes several buffers the hook makes another packet of
/// each (`skb_pp_cow_data`), and replies that are steered back at TC get lost then (seen on Linux 6.18).
#[xdp]
#[inline(always)]
pub fn trk_gen_recv(ctx: XdpContext) -> u32 {
    receive_by_xdp(&ctx)
}

#[inline(always)]
fn receive_by_xdp(ctx: &XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let arrival = Arrival {
        ifindex: ctx.ingress_ifindex() as u32,
        vlan: 0,
    };
    let is_as_sent = |path: &Path| packet.at(0) == Some(&path.next_hop_mac);
    if let Some(reply) = reply::parse(&packet)
        && let Some(outcome) = receive::recognise(&reply, arrival, is_as_sent)
    {
        return dispose(ctx, outcome).xdp();
    }
    // The number of a STAMP probe comes to be the magic number once in its life.
    match probe::answer::parse(&packet) {
        Some(answer) => match answer::recognise(&answer, arrival, is_as_sent) {
            Some(outcome) => dispose(ctx, outcome).xdp(),
            None => xdp_action::XDP_PASS,
        },
        None => xdp_action::XDP_PASS,
    }
}

/// TC ingress of an interface on which replies may arrive.
// Inlined into the entry that the macro makes, as all programs that make tail calls: the kernel allows them in other functions only
// with BTF of functions, which libbpf and bpftool do not load from this object.
#[classifier]
#[inline(always)]
pub fn trk_tc_recv(ctx: TcContext) -> i32 {
    if segments::are_merged(&ctx) {
        return match gather_ours(ctx.skb.skb) {
            true => segments::begin(&ctx, segments::ETHERNET),
            false => TC_ACT_UNSPEC,
        };
    }
    if packet::is_scattered(&ctx) && !gather_ours(ctx.skb.skb) {
        return TC_ACT_UNSPEC;
    }
    judge(ctx.skb.skb)
}

/// Judges a packet with an Ethernet header at TC. A function of its own, as the others below: inlined, it takes the verifier half
/// as long again, and on Linux 6.1 too long.
#[inline(never)]
fn judge(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let parsed = receive::parse_skb(&ctx);
    recognise_at_tc(&ctx, parsed, || answer::parse_skb(&ctx)).tc()
}

/// Tail call of `trk_tc_recv`: one of several datagrams that the kernel merged into a packet.
#[classifier]
#[inline(always)]
pub fn trk_tc_segment(ctx: TcContext) -> i32 {
    let drops = judge_segment(ctx.skb.skb) == TC_ACT_SHOT;
    segments::finish(&ctx, drops, segments::ETHERNET)
}

/// Judges one datagram of a packet with an Ethernet header.
#[inline(never)]
fn judge_segment(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let segment = Segment::of(&ctx);
    let parsed = segment.reply(&ctx, receive::parse_skb(&ctx));
    let parse_answer = || segment.answer(&ctx, answer::parse_skb(&ctx));
    recognise_at_tc(&ctx, parsed, parse_answer).tc()
}

/// TC ingress of an interface without Ethernet header on which replies may arrive.
#[classifier]
#[inline(always)]
pub fn trk_l3_recv(ctx: TcContext) -> i32 {
    if !receive::may_be_ours(&ctx) {
        return TC_ACT_UNSPEC;
    }
    if segments::are_merged(&ctx) {
        return segments::begin(&ctx, segments::BARE);
    }
    judge_bare(ctx.skb.skb)
}

/// Judges a packet without Ethernet header, which may be ours.
#[inline(never)]
fn judge_bare(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let parsed = receive::parse_bare_skb(&ctx);
    recognise_at_tc(&ctx, parsed, || answer::parse_bare_skb(&ctx)).tc()
}

/// Tail call of `trk_l3_recv`: one of several datagrams that the kernel merged into a packet.
#[classifier]
#[inline(always)]
pub fn trk_l3_segment(ctx: TcContext) -> i32 {
    let drops = judge_bare_segment(ctx.skb.skb) == TC_ACT_SHOT;
    segments::finish(&ctx, drops, segments::BARE)
}

/// Judges one datagram of a packet without Ethernet header.
#[inline(never)]
fn judge_bare_segment(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let segment = Segment::of(&ctx);
    let parsed = segment.reply(&ctx, receive::parse_copy(&ctx));
    let parse_answer = || segment.answer(&ctx, answer::parse_bare_skb(&ctx));
    recognise_at_tc(&ctx, parsed, parse_answer).tc()
}

/// The filter of one packet socket, which sees what arrives on every interface of the network namespace, before TC does: counts
/// replies that come by an interface on which none is expected. The socket takes no packet.
///
/// It judges by a tail call: a filter counts as memory of the socket's options, 20 KiB at most before Linux 6.8
/// (`sk_filter_charge`, `net.core.optmem_max`), and the judgement is larger.
// Inlined into the entry that the macro makes: the compiler leaves a constant result of a function of its own unset, and the
// verifier refuses what is in the register then.
#[socket_filter]
#[inline(always)]
pub fn trk_sock_watch(ctx: SkBuffContext) -> i64 {
    let ctx = TcContext::new(ctx.skb.skb);
    // SAFETY: the context is valid while the program runs.
    let (ifindex, kind) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).pkt_type) };
    if kind != PACKET_OUTGOING
        && receive::may_be_ours(&ctx)
        // SAFETY: only whether there is an entry is asked.
        && unsafe { EXPECTING.get(ifindex) }.is_none()
    {
        // SAFETY: the map holds programs of this type.
        unsafe { WATCHED.tail_call(&ctx, 0) };
    }
    0
}

/// Tail call of `trk_sock_watch`: judges a packet that may be ours.
#[socket_filter]
#[inline(always)]
pub fn trk_sock_judge(ctx: SkBuffContext) -> i64 {
    let ctx = TcContext::new(ctx.skb.skb);
    let parsed = receive::parse_copy(&ctx);
    recognise_at_tc(&ctx, parsed, || answer::parse_bare_skb(&ctx));
    0
}

/// Reads the verdict maps as programs of others do. The daemon never loads it: the linker leaves out maps that no program refers
/// to.
#[socket_filter]
#[inline(always)]
pub fn trk_sock_public(_: SkBuffContext) -> i64 {
    let Some(index) = NAMES.get_ptr([0; public::NAME_LEN]) else {
        return 0;
    };
    // SAFETY: a valid map value.
    let entry = VERDICTS.get_ptr(unsafe { *index });
    // SAFETY: a valid map value, which userspace may write at the same time; any byte is a value.
    entry.map_or(0, |entry| unsafe { (*entry).verdict }.into())
}

/// What becomes of a packet at TC: of one that is, or claims to be, about a probe, it is counted; a foreign one passes.
#[inline(always)]
fn recognise_at_tc(
    ctx: &TcContext,
    parsed: Parsed,
    parse_answer: impl FnOnce() -> Option<Answer>,
) -> Action {
    // SAFETY: the context is valid while the program runs.
    let skb = unsafe { &*ctx.skb.skb };
    let arrival = Arrival {
        ifindex: skb.ifindex,
        // Without a branch, which would double the ways that the verifier follows.
        vlan: skb.vlan_tci & skb.vlan_present.wrapping_neg(),
    };
    // The device says for whom the frame is; a tunnel's packet is for this host.
    let is_as_sent = |_: &Path| skb.pkt_type == PACKET_OTHERHOST;
    if let Some(reply) = parsed.reply()
        && let Some(outcome) = receive::recognise(reply, arrival, is_as_sent)
    {
        return dispose(ctx, outcome);
    }
    // As in XDP: the magic number may be the number of a STAMP probe.
    let answered =
        parse_answer().and_then(|answer| answer::recognise(&answer, arrival, is_as_sent));
    match answered {
        Some(outcome) => dispose(ctx, outcome),
        None => Action::Pass,
    }
}

#[inline(always)]
fn dispose<C: EbpfContext>(ctx: &C, outcome: Outcome) -> Action {
    let (action, count) = disposition::of_reply(outcome);
    if let Outcome::Corrupt = outcome {
        rarely!(
            count,
            ctx,
            "{} packets bear a probe header and fail the token"
        );
    }
    action
}

/// XDP on an uplink: others' tracker packets, the fast way.
#[xdp(frags)]
pub fn trk_xdp_steer(ctx: XdpContext) -> u32 {
    disposition::of_steered(steer::fast(&ctx)).xdp()
}

/// XDP there in the generic hook, without `frags`.
#[xdp]
pub fn trk_gen_steer(ctx: XdpContext) -> u32 {
    disposition::of_steered(steer::fast(&ctx)).xdp()
}

/// TC ingress of an uplink.
#[classifier]
pub fn trk_tc_uplink(ctx: TcContext) -> i32 {
    pull(&ctx, flow::HEAD as u32);
    disposition::of_steered(steer::uplink::<ETHERNET>(&ctx)).tc()
}

/// TC ingress of an uplink without Ethernet header.
#[classifier]
pub fn trk_l3_uplink(ctx: TcContext) -> i32 {
    packet::gather(&ctx);
    disposition::of_steered(steer::uplink::<BARE>(&ctx)).tc()
}

/// TC egress where local tracker packets may leave.
#[classifier]
pub fn trk_tc_marked(ctx: TcContext) -> i32 {
    pull(&ctx, flow::HEAD as u32);
    disposition::of_steered(steer::marked::<ETHERNET>(&ctx)).tc()
}

/// TC egress where local tracker packets may leave, on an interface without Ethernet header.
#[classifier]
pub fn trk_l3_marked(ctx: TcContext) -> i32 {
    packet::gather(&ctx);
    disposition::of_steered(steer::marked::<BARE>(&ctx)).tc()
}

/// TC ingress where replies to others' tracker packets arrive.
#[classifier]
pub fn trk_tc_return(ctx: TcContext) -> i32 {
    pull(&ctx, flow::HEAD as u32);
    disposition::of_steered(steer::reply::<ETHERNET>(&ctx)).tc()
}

/// TC ingress where replies to others' tracker packets arrive, on an interface without Ethernet header.
#[classifier]
pub fn trk_l3_return(ctx: TcContext) -> i32 {
    packet::gather(&ctx);
    disposition::of_steered(steer::reply::<BARE>(&ctx)).tc()
}

/// Has the kernel put the head of a scattered packet where a program can read it, if the packet may be ours. What is large
/// is mostly foreign, and stays as it is: false.
///
/// A function of its own: the compiler merges its ways with those of the caller otherwise, and words that mean nothing on
/// one of them are refused by the verifier.
#[inline(never)]
fn gather_ours(skb: *mut __sk_buff) -> bool {
    let ctx = TcContext::new(skb);
    if !receive::may_be_ours(&ctx) {
        return false;
    }
    packet::gather(&ctx);
    true
}

/// Has the first `head` bytes of a packet, if it has so many, where a program can read them.
#[inline(always)]
fn pull(ctx: &TcContext, head: u32) {
    let head = ctx.len().min(head);
    if ctx.data() + head as usize > ctx.data_end() {
        // The rest of the head is in fragments of the buffer.
        packet::pull(ctx, head);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program in which this could be reached.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

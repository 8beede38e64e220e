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
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use bpf::{
    maps::count,
    packet::Packet,
    receive::{self, Arrival, Outcome},
    send::{self, Refusal, Sent},
};
use tracker_ebpf::{
    abi::Path,
    wire::{
        Bytes as _,
        reply::{self, Reply},
        vlan,
    },
};

/// `PACKET_OTHERHOST` of linux/if_packet.h: the frame's destination is not this device.
const PACKET_OTHERHOST: u32 = 3;

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
pub fn tracker_send(ctx: XdpContext) -> u32 {
    let outcome = send::send(&ctx);
    let count = match outcome {
        Ok(Sent::Redirect(_) | Sent::ToTc) => count(|counters| &mut counters.send_built),
        Err(Refusal::Idle) => count(|counters| &mut counters.send_idle),
        Err(Refusal::Inactive) => count(|counters| &mut counters.send_inactive),
        Err(Refusal::NoPath) => count(|counters| &mut counters.send_no_path),
        Err(Refusal::Failed) => count(|counters| &mut counters.send_failed),
    };
    if let Err(Refusal::Failed) = outcome {
        rarely!(
            count,
            &ctx,
            "the kernel refused to size or redirect {} probes"
        );
    }
    send::action(&outcome)
}

/// TC ingress of the private veth: sends out what the send program passed up.
#[classifier]
pub fn tracker_tc_send(ctx: TcContext) -> i32 {
    send::redirect(&ctx).unwrap_or(TC_ACT_OK)
}

/// XDP on an interface on which replies may arrive.
#[xdp]
pub fn tracker_receive(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let arrival = Arrival {
        ifindex: ctx.ingress_ifindex() as u32,
        is_tagged: false,
    };
    let Some(reply) = reply::parse(&packet) else {
        return xdp_action::XDP_PASS;
    };
    let is_as_sent = |path: &Path| packet.at(0) == Some(&path.next_hop_mac);
    let Some(outcome) = receive::recognise(&reply, arrival, is_as_sent) else {
        return xdp_action::XDP_PASS;
    };
    let count = receive::count_outcome(outcome);
    if let Outcome::Corrupt = outcome {
        rarely!(count, &ctx, "{} packets bear the mark and fail the token");
    }
    match outcome.is_done() {
        true => xdp_action::XDP_DROP,
        false => xdp_action::XDP_PASS,
    }
}

/// The same at TC ingress.
#[classifier]
pub fn tracker_tc_recv(ctx: TcContext) -> i32 {
    settle_at_tc(&ctx, receive::parse_skb(&ctx))
}

/// The same of a device whose packets have no Ethernet header.
#[classifier]
pub fn tracker_tc_ip(ctx: TcContext) -> i32 {
    settle_at_tc(&ctx, receive::parse_bare_skb(&ctx))
}

#[inline(always)]
fn settle_at_tc(ctx: &TcContext, reply: Option<Reply>) -> i32 {
    let Some(reply) = reply else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context is valid while the program runs.
    let skb = unsafe { &*ctx.skb.skb };
    let arrival = Arrival {
        ifindex: skb.ifindex,
        is_tagged: skb.vlan_tci as u16 & vlan::ID_MASK != 0,
    };
    // The device says for whom the frame is; a tunnel's packet is for this host.
    let is_as_sent = |_: &Path| skb.pkt_type == PACKET_OTHERHOST;
    let Some(outcome) = receive::recognise(&reply, arrival, is_as_sent) else {
        return TC_ACT_UNSPEC;
    };
    let count = receive::count_outcome(outcome);
    if let Outcome::Corrupt = outcome {
        rarely!(count, ctx, "{} packets bear the mark and fail the token");
    }
    match outcome.is_done() {
        true => TC_ACT_SHOT,
        // Not ours, or not ours alone: the next program, or the stack, decides.
        false => TC_ACT_UNSPEC,
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

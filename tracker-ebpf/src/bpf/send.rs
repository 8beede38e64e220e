//! From a tracker slot to a frame on its way to the endpoint.

use aya_ebpf::{
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_tail},
    programs::{TcContext, XdpContext},
};
use tracker_ebpf::{
    abi::{BATCH_MAX, Egress, Job, Path, Probe},
    probe::{self, HEADER_LEN, ProbeHeader, tcp::RESET_PAYLOAD},
    wire::{Bytes, ethernet, ipv4, ipv6, token},
};

use super::{
    answer,
    maps::{BATCH, CURSOR, DEVICES, HUB, STATE, TRACKERS, WINDOWS},
    packet::Packet,
    path::path,
};

/// Where a built frame goes.
pub enum Sent {
    /// Out of a device, by XDP.
    Redirect(u32),
    /// Up the private veth, from where TC sends it out.
    ToTc,
}

/// Why a frame was not sent.
#[derive(Clone, Copy)]
pub enum Refusal {
    /// The batch is through; the kernel rounds a call's frames up.
    Idle,
    /// The slot is not in use.
    Inactive,
    /// The path leads nowhere now.
    NoPath,
    /// The kernel refused to size, fill or redirect the frame.
    Failed,
}

/// Builds the batch's next frame into the one at hand.
#[inline(always)]
pub fn send(ctx: &XdpContext) -> Result<Sent, Refusal> {
    let job = next_job()?;
    let slot = job.tracker;
    let tracker = TRACKERS.get(slot).ok_or(Refusal::Inactive)?;
    if tracker.active == 0 {
        return Err(Refusal::Inactive);
    }
    let path = path(tracker.path).ok_or(Refusal::NoPath)?;
    let (egress, kind) = (path.egress.get(), tracker.probe.get());
    if matches!(egress, Egress::None) {
        return Err(Refusal::NoPath);
    }
    let state = STATE.get_ptr_mut(slot).ok_or(Refusal::Inactive)?;
    let hub = HUB.get(0).ok_or(Refusal::Failed)?;
    // SAFETY: the send program alone writes this part, one call at a time; aligned 64-bit accesses
    // are whole for the daemon that reads along.
    let send = unsafe { &mut (*state).send };
    let is_reset = job.is_reset();
    if !job.is_probe() && !matches!(kind, Probe::Tcp) {
        return Err(Refusal::Inactive);
    }

    // Frames keep their length and old bytes only as far as the call's input; set the length first.
    let tagged = path.vlan != 0;
    let payload = match is_reset && matches!(egress, Egress::TcRedirect) {
        // Where it may leave without Ethernet header nothing pads it.
        true => RESET_PAYLOAD,
        false => tracker.payload,
    };
    let wire_len = probe::wire_len(tagged, tracker.family.get(), payload);
    let delta = wire_len as i32 - (ctx.data_end() as i32 - ctx.data() as i32);
    // SAFETY: helper call on this program's own context.
    if delta != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return Err(Refusal::Failed);
    }
    let mut packet = Packet::new(ctx.data(), ctx.data_end());
    if !job.is_probe() {
        let sequence = job.answered(send.sent);
        let probe_header = ProbeHeader {
            tracker: slot,
            number: ProbeHeader::number(hub.tag, sequence),
            sent_mono_ns: 0,
            token: token::token(hub.key, slot, tracker.epoch, sequence, 0),
        };
        match is_reset {
            true => probe::emit_reset(&mut packet, path, tracker, &probe_header, job.flow()),
            false => probe::emit(&mut packet, path, tracker, &probe_header, job.flow()),
        }
        .ok_or(Refusal::Failed)?;
        return leave(path);
    }

    let sequence = send.sent + 1;
    if let Some(word) = tracker.window().stale_word(sequence) {
        set_word(word, 0)?;
    }
    // SAFETY: no arguments, always available.
    let sent_mono_ns = unsafe { bpf_ktime_get_ns() };
    let number = ProbeHeader::number(hub.tag, sequence);
    // A reply that brings no probe header back is proven by what the receive program knows.
    let time_at = match kind.keeps_times() {
        true => Some(tracker.time_at(sequence)),
        false => None,
    };
    let (proven, claimed_mono_ns) = match time_at {
        Some(at) if WINDOWS.get_ptr_mut(at).is_none() => return Err(Refusal::Failed),
        Some(_) => (sequence, 0),
        None => (number, sent_mono_ns),
    };
    let probe_header = ProbeHeader {
        tracker: slot,
        number,
        sent_mono_ns: claimed_mono_ns,
        token: token::token(hub.key, slot, tracker.epoch, proven, claimed_mono_ns),
    };
    probe::emit(&mut packet, path, tracker, &probe_header, job.flow()).ok_or(Refusal::Failed)?;

    let sent = leave(path)?;
    send.sent_mono_ns = sent_mono_ns;
    // SAFETY: a reference, and a valid map value. The number first: a reader of the new time in the place of an older
    // probe's then reads the new number too, and takes the reply to that one for late.
    unsafe {
        (&raw mut send.sent).write_volatile(sequence);
        // Looked up once more: the verifier of Linux 6.1 loses what a pointer is that only one of two ways has set.
        if let Some(time) = time_at.and_then(|at| WINDOWS.get_ptr_mut(at)) {
            time.write_volatile(sent_mono_ns);
        }
    }
    Ok(sent)
}

/// Stores a word of WINDOWS.
#[inline(always)]
fn set_word(at: u32, value: u64) -> Result<(), Refusal> {
    let word = WINDOWS.get_ptr_mut(at).ok_or(Refusal::Failed)?;
    // SAFETY: a valid map value; whole 64-bit store.
    unsafe { *word = value };
    Ok(())
}

/// The way out of a frame that is built.
#[inline(always)]
fn leave(path: &Path) -> Result<Sent, Refusal> {
    match path.egress.get() {
        Egress::XdpRedirect => {
            let action = DEVICES
                .redirect(path.ifindex, 0)
                .map_err(|_| Refusal::Failed)?;
            Ok(Sent::Redirect(action))
        }
        Egress::TcRedirect => Ok(Sent::ToTc),
        Egress::None => Err(Refusal::NoPath),
    }
}

/// The job under the batch's cursor; the cursor moves on.
#[inline(always)]
fn next_job() -> Result<Job, Refusal> {
    let cursor = CURSOR.get_ptr_mut(0).ok_or(Refusal::Idle)?;
    // SAFETY: the daemon sets the cursor before the call and reads it after; one call at a time.
    let cursor = unsafe { &mut *cursor };
    let next = cursor.next;
    if next >= cursor.end {
        return Err(Refusal::Idle);
    }
    cursor.next = next + 1;
    BATCH
        .get(next & (BATCH_MAX - 1))
        .copied()
        .ok_or(Refusal::Idle)
}

/// TC ingress of the private veth: the way out of a frame that the send program passed up, or
/// `None` for anything else.
#[inline(always)]
pub fn redirect(ctx: &TcContext) -> Option<i32> {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let payload: Option<&[u8; probe::LEN]> = match ethernet::parse(packet.at(0)?) {
        ethernet::IPV4 => packet.at(ethernet::LEN + ipv4::LEN + HEADER_LEN),
        ethernet::IPV6 => packet.at(ethernet::LEN + ipv6::LEN + HEADER_LEN),
        _ => return None,
    };
    let slot = match payload {
        Some(payload) if ProbeHeader::is_present(payload) => ProbeHeader::parse(payload).tracker,
        _ => answer::place(&probe::answer::parse_sent(&packet)?)?.slot,
    };
    let path = path(TRACKERS.get(slot)?.path)?;
    // SAFETY: plain helper call.
    Some(unsafe { bpf_redirect(path.ifindex, 0) } as i32)
}

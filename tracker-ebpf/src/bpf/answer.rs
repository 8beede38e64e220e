//! From what carries no probe header to a counted reply: answers to TCP and STAMP probes.
//!
//! A packet that is not proven to be one passes as if there were no Tracker: the hub's own connections may use the same
//! ports to the same address.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};
use tracker_ebpf::{
    abi::{Answered, Hub, Path, ProbeError, Proof, Resets, State, Streams, Tracker},
    probe::{
        answer::{self, Answer, Evidence, Message},
        stamp, tcp,
    },
    wire::{
        ethernet, icmp,
        ip::{V4, V6},
        ipv4, ipv6, token,
    },
};

use super::{
    maps::{EVENTS, HUB, STATE, STREAMS, TRACKERS, WINDOWS, count},
    packet::{Head, Memory, Packet},
    receive::{self, Arrival, Outcome},
};

/// Looks for an answer in a packet at TC ingress. What is scattered was gathered, if it may be ours.
#[inline(always)]
pub fn parse_skb(ctx: &TcContext) -> Option<Answer> {
    answer::parse(&Packet::new(ctx.data(), ctx.data_end()))
}

/// Looks for an answer in a packet that may be ours, at TC ingress of a device whose packets have no Ethernet header.
#[inline(always)]
pub fn parse_bare_skb(ctx: &TcContext) -> Option<Answer> {
    let mut memory = Memory::uninit();
    match receive::ethertype(ctx) {
        ethernet::IPV4 => {
            const QUOTE: usize = 2 * ipv4::LEN + icmp::LEN;
            const QUOTED_STAMP: usize = QUOTE + stamp::QUOTE_LEN;
            const REFLECTED: usize = ipv4::LEN + stamp::REPLY_LEN;
            const QUOTED_SYN: usize = QUOTE + tcp::QUOTE_LEN;
            const SEGMENT: usize = ipv4::LEN + tcp::REPLY_LEN;
            let head =
                Head::longest::<QUOTED_STAMP, REFLECTED, QUOTED_SYN, SEGMENT>(ctx, &mut memory)?;
            answer::parse_packet::<V4, Head>(&head, 0)
        }
        ethernet::IPV6 => {
            const QUOTE: usize = 2 * ipv6::LEN + icmp::LEN;
            const QUOTED_STAMP: usize = QUOTE + stamp::QUOTE_LEN;
            const QUOTED_SYN: usize = QUOTE + tcp::QUOTE_LEN;
            const REFLECTED: usize = ipv6::LEN + stamp::REPLY_LEN;
            const SEGMENT: usize = ipv6::LEN + tcp::REPLY_LEN;
            let head =
                Head::longest::<QUOTED_STAMP, QUOTED_SYN, REFLECTED, SEGMENT>(ctx, &mut memory)?;
            answer::parse_packet::<V6, Head>(&head, 0)
        }
        _ => None,
    }
}

/// Where the tracker is to whose probe a packet seems to belong.
pub struct Place {
    /// Its slot.
    pub slot: u32,
    /// The tag that hides the slot in a STAMP packet: 0 in those of builds before there were tags.
    tag: u32,
}

/// The place of the tracker to whose probe a packet seems to belong.
#[inline(always)]
pub fn place(answer: &Answer) -> Option<Place> {
    match answer.evidence {
        Evidence::Syn(_) => {
            // SAFETY: userspace replaces a value whole.
            let streams = Streams::of_word(*unsafe { STREAMS.get(answer.stream()) }?);
            let place = WINDOWS.get_ptr(streams.place(answer.own_port))?;
            // SAFETY: a valid map value, which userspace writes whole. Zero wraps to no slot.
            let taken = unsafe { place.read_volatile() } as u32;
            let slot = taken.wrapping_sub(1);
            Some(Place { slot, tag: 0 })
        }
        Evidence::Stamp(claim) => {
            let tag = HUB.get(0)?.tag;
            let slot = claim.tracker(tag);
            let tag = match TRACKERS.get(slot) {
                Some(tracker) if tracker.active != 0 => tag,
                _ => 0,
            };
            let slot = claim.tracker(tag);
            Some(Place { slot, tag })
        }
    }
}

/// Judges an answer. `None`: not proven ours, or of no concern here; nothing was counted. `is_as_sent` tells
/// whether the frame is on its way to the next hop still.
#[inline(always)]
pub fn recognise(
    answer: &Answer,
    arrival: Arrival,
    is_as_sent: impl Fn(&Path) -> bool,
) -> Option<Outcome> {
    let Place { slot, tag } = place(answer)?;
    let (hub, tracker, state) = (HUB.get(0)?, TRACKERS.get(slot)?, STATE.get_ptr_mut(slot)?);
    let is_between = answer.belongs_to(tracker);
    // Of TCP the way to the tracker begins with the address that was asked.
    let is_reflected = matches!(
        (answer.message, answer.evidence),
        (Message::Reply, Evidence::Stamp(_))
    ) && answer.is_told_to(tracker);
    if tracker.active == 0 || !answer.is_intact || !(is_between || is_reflected) {
        return None;
    }
    // SAFETY: a valid map value; the send program writes the word whole.
    let sent = unsafe { (&raw const (*state).send.sent).read_volatile() };
    let Some(sequence) = proven(answer, slot, tag, hub, tracker, sent) else {
        // A reflector's packet bears what no other instance puts there. Of a segment it cannot be told whose it is.
        if is_between && is_reflected && tag == hub.tag {
            receive::note_corrupt(state, true);
            return Some(Outcome::Corrupt);
        }
        return None;
    };
    // What must be stopped was not, whatever address answers it.
    if !is_between && tracker.expects_silence == 0 {
        return match tracker.proof.get() {
            Proof::Reply => Some(receive::note_elsewhere(
                state,
                answer.sender,
                sequence as u32,
            )),
            Proof::Arrival => None,
        };
    }
    let proof = match answer.message {
        Message::Reply => Proof::Reply,
        Message::Reset if tracker.refused_is_reply != 0 => Proof::Reply,
        Message::Error if tracker.refused_is_reply != 0 && answer.refuses() => Proof::Reply,
        Message::Probe => Proof::Arrival,
        Message::Held => return hold(answer, slot, tracker, state, sequence, sent),
        Message::Reset | Message::Error => return note_refused(answer, tracker, state, sequence),
    };
    // Any host that sees a probe can answer it.
    if matches!(proof, Proof::Reply) && matches!(tracker.proof.get(), Proof::Arrival) {
        return None;
    }
    let way = receive::Way {
        proof,
        last_hop: answer.last_hop,
        vlan: answer.vlan,
        arrival,
    };
    let outcome = match receive::refused(tracker, state, sequence as u32, &way, is_as_sent) {
        Some(refused) => refused?,
        None => count_answer(slot, tracker, state, sequence),
    };
    if matches!(outcome, Outcome::Counted) {
        receive::note_last_hop(state, answer.last_hop);
    }
    // Of a reply in a VLAN the program of the VLAN device decides.
    if matches!(outcome, Outcome::Tagged) {
        return Some(outcome);
    }
    let opens = matches!(
        (answer.message, answer.evidence),
        (Message::Reply, Evidence::Syn(_))
    );
    if opens && (matches!(outcome, Outcome::Counted) || is_to_be_reset(state, answer.own_port)) {
        let answered = Answered {
            tracker: slot,
            epoch: tracker.epoch,
            sequence: sequence as u32,
            flow: answer.own_port,
            is_held: 0,
            pad: 0,
        };
        if EVENTS.output_untyped::<Answered>(answered, 0).is_err() {
            count(|counters| &mut counters.event_dropped);
        }
    }
    Some(outcome)
}

/// Whether the connection of a SYN-ACK that does not count is to be reset once more.
#[inline(always)]
fn is_to_be_reset(state: *mut State, flow: u16) -> bool {
    // SAFETY: a valid map value, and a helper without arguments. Two processors may both report: rarely, and one reset
    // too many does no harm.
    unsafe {
        let resets = &raw mut (*state).receive.resets;
        let known = Resets::of_word(resets.read_volatile());
        let Some(word) = known.report(flow, bpf_ktime_get_ns()) else {
            return false;
        };
        resets.write_volatile(word);
    }
    true
}

/// Reports a connection of an earlier probe that the peer still holds. It proves nothing of the later SYN that was
/// refused: the daemon resets the connection and sends that SYN once more, and only its own SYN-ACK counts. While the
/// last probe is answered nothing waits for that, and replayed challenge ACKs wake nothing.
#[inline(always)]
fn hold(
    answer: &Answer,
    slot: u32,
    tracker: &Tracker,
    state: *mut State,
    sequence: u64,
    sent: u64,
) -> Option<Outcome> {
    if !matches!(tracker.proof.get(), Proof::Reply) || sequence == sent {
        return None;
    }
    let (word, bit) = tracker.window().position(sent);
    let word = WINDOWS.get_ptr(word)?;
    // SAFETY: valid map values, read and written whole. Once for each probe: what comes more often is replayed.
    let is_news = unsafe {
        let held = &raw const (*state).receive.held;
        held.read_volatile() != sent as u8 && word.read_volatile() & bit == 0
    };
    if is_news {
        // SAFETY: a valid map value.
        unsafe { (&raw mut (*state).receive.held).write_volatile(sent as u8) };
        let held = Answered {
            tracker: slot,
            epoch: tracker.epoch,
            sequence: sequence as u32,
            flow: answer.own_port,
            is_held: 1,
            pad: 0,
        };
        if EVENTS.output_untyped::<Answered>(held, 0).is_err() {
            count(|counters| &mut counters.event_dropped);
        }
    }
    Some(receive::note_duplicate(state))
}

/// The sequence number of the probe that is answered, if the token says so.
#[inline(always)]
fn proven(
    answer: &Answer,
    slot: u32,
    tag: u32,
    hub: &Hub,
    tracker: &Tracker,
    sent: u64,
) -> Option<u64> {
    let sequence = answer.evidence.sequence(tracker.salt, sent);
    // Before the first probe.
    if sequence == 0 || sequence > sent {
        return None;
    }
    let token = token::token(hub.key, slot, tracker.epoch, sequence, 0);
    let is_right = answer
        .evidence
        .is_of(tracker.salt, tag, slot, sequence, token);
    is_right.then_some(sequence)
}

/// Counts an answer that came by the right way.
#[inline(always)]
fn count_answer(slot: u32, tracker: &Tracker, state: *mut State, sequence: u64) -> Outcome {
    let Some(time) = WINDOWS.get_ptr(tracker.time_at(sequence)) else {
        return receive::note_late(slot, tracker, state, sequence as u32);
    };
    // SAFETY: valid map values; the send program writes both words whole, first the number, then the time.
    let (sent_mono_ns, sent) = unsafe {
        let time = time.read_volatile();
        (time, (&raw const (*state).send.sent).read_volatile())
    };
    // Later probes have the place of its time: it was sent more than the timeout ago.
    if sent.wrapping_sub(sequence) > u64::from(tracker.window_mask) {
        return receive::note_late(slot, tracker, state, sequence as u32);
    }
    receive::count_reply(slot, sequence as u32, sent_mono_ns, tracker, state)
}

/// Notes what says that a probe did not get through; see [`receive::note_error`].
#[inline(always)]
fn note_refused(
    answer: &Answer,
    tracker: &Tracker,
    state: *mut State,
    sequence: u64,
) -> Option<Outcome> {
    let error = match answer.message {
        Message::Reset => ProbeError::Reset,
        _ => receive::error_of(tracker.family.get(), answer.refuses()),
    };
    receive::note_error(state, error, answer.kind, answer.sender, sequence as u32);
    Some(Outcome::Error)
}

//! From a frame on a hub's interface to a counted reply.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};
use tracker_ebpf::{
    abi::{Event, Family, Hub, Path, ProbeError, Proof, RETURNS_MAX, State, Tracker},
    probe::{
        self, FIRST_LEN, ProbeHeader,
        reply::{self, LastHop, Message, Reply},
    },
    rtt,
    window::{Worth, whole_sequence},
    wire::{
        ethernet, icmp,
        ip::{V4, V6},
        ipv4, ipv6, token, vlan,
    },
};

use super::{
    atomic,
    maps::{EVENTS, HUB, RTTS, STATE, TRACKERS, WINDOWS, count},
    packet::{self, Memory, Packet},
    path,
};

/// What became of a packet that bears the probe header.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Ours, in time, the first: counted.
    Counted,
    /// Ours, but this probe was answered before.
    Duplicate,
    /// Ours, but after the timeout.
    Late,
    /// Ours, but on an interface outside `returns`.
    WrongPath,
    /// Ours, but in a VLAN: of no concern to the interface that it arrives on. If a VLAN device takes it, that one's
    /// own program judges it next.
    Tagged,
    /// One of our probes, which came back to the hub although it is not its own proof.
    Returned,
    /// An ICMP error about one of ours.
    Error,
    /// Ours, but from another address or port than the one that was asked.
    Elsewhere,
    /// Not proven ours: checksum, addresses or token are wrong.
    Corrupt,
    /// Not provable: no tracker in use has that number.
    Stale,
}

/// Where a packet arrived.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// The interface.
    pub ifindex: u32,
    /// Tag control information beside the packet's bytes (in the skb); 0 if there is none.
    pub vlan: u32,
}

/// What a packet was found to carry; of a foreign one, words that are set and mean nothing. The compiler leaves the words of
/// an [`Option`] unset if it is `None`, and may store them nevertheless, which the verifier refuses.
pub struct Parsed {
    reply: Reply,
    is_some: bool,
}

impl Parsed {
    /// That of a foreign packet.
    pub const NONE: Self = Self {
        reply: Reply::ZERO,
        is_some: false,
    };

    /// This message, with the probe header of another datagram.
    #[inline(always)]
    pub fn with(mut self, probe_header: ProbeHeader) -> Self {
        self.reply.probe_header = probe_header;
        self
    }

    #[inline(always)]
    fn new(reply: Option<Reply>) -> Self {
        match reply {
            Some(reply) => Self {
                reply,
                is_some: true,
            },
            None => Self::NONE,
        }
    }

    /// The reply, if there is one.
    #[inline(always)]
    pub fn reply(&self) -> Option<&Reply> {
        match self.is_some {
            true => Some(&self.reply),
            false => None,
        }
    }
}

/// Looks for a reply in a packet at TC ingress, where the kernel has taken the outer tag of a tagged frame
/// out of its bytes. What is scattered was gathered, if it may be ours.
#[inline(always)]
pub fn parse_skb(ctx: &TcContext) -> Parsed {
    Parsed::new(reply::parse(&Packet::new(ctx.data(), ctx.data_end())))
}

/// Looks for a reply in a packet that may be ours, at TC ingress of a device whose packets have no Ethernet header.
#[inline(always)]
pub fn parse_bare_skb(ctx: &TcContext) -> Parsed {
    packet::gather(ctx);
    parse_copy(ctx)
}

/// Looks for a reply in a copy of a packet's bytes from its IP header on, of one that may be ours.
#[inline(always)]
pub fn parse_copy(ctx: &TcContext) -> Parsed {
    let mut memory = Memory::uninit();
    // The shifts put 64-bit words of the probe header, and of IPv6 addresses, where they are aligned.
    match ethertype(ctx) {
        ethernet::IPV4 => {
            const LEN: usize = ipv4::LEN + reply::REPLY_LEN;
            const ERROR_LEN: usize = ipv4::LEN + icmp::LEN + LEN;
            let Some(head) = packet::head::<4, LEN>(ctx, &mut memory) else {
                return Parsed::new(None);
            };
            let kind = head[ipv4::LEN];
            if head[ipv4::PROTOCOL_AT] == ipv4::ICMP && icmp::is_error(kind) {
                let head = packet::head::<0, ERROR_LEN>(ctx, &mut memory);
                return Parsed::new(head.and_then(|head| reply::parse_error::<V4, [u8], 0>(head)));
            }
            Parsed::new(reply::parse_packet::<V4, [u8], 0>(head, 0))
        }
        ethernet::IPV6 => {
            const LEN: usize = ipv6::LEN + reply::REPLY_LEN;
            const ERROR_LEN: usize = ipv6::LEN + icmp::LEN + LEN;
            let Some(head) = packet::head::<0, LEN>(ctx, &mut memory) else {
                return Parsed::new(None);
            };
            let kind = head[ipv6::LEN];
            if head[ipv6::NEXT_HEADER_AT] == ipv6::ICMP && icmp::is_error_v6(kind) {
                let head = packet::head::<0, ERROR_LEN>(ctx, &mut memory);
                return Parsed::new(head.and_then(|head| reply::parse_error::<V6, [u8], 0>(head)));
            }
            Parsed::new(reply::parse_packet::<V6, [u8], 0>(head, 0))
        }
        _ => Parsed::new(None),
    }
}

/// False if a packet carries neither ICMP nor a datagram with a probe header nor what may answer a probe without one, as nearly all
/// do: only a few bytes of it are looked at.
#[inline(always)]
pub fn may_be_ours(ctx: &TcContext) -> bool {
    // From the protocol's number on; nothing of ours is shorter.
    match ethertype(ctx) {
        ethernet::IPV4 => {
            const LEN: usize = ipv4::LEN - ipv4::PROTOCOL_AT + FIRST_LEN;
            let bytes = packet::network_bytes::<LEN>(ctx, ipv4::PROTOCOL_AT);
            bytes.is_some_and(|bytes| is_suspect(ctx, &bytes, Family::Ipv4, ipv4::LEN))
        }
        ethernet::IPV6 => {
            const LEN: usize = ipv6::LEN - ipv6::NEXT_HEADER_AT + FIRST_LEN;
            let bytes = packet::network_bytes::<LEN>(ctx, ipv6::NEXT_HEADER_AT);
            bytes.is_some_and(|bytes| is_suspect(ctx, &bytes, Family::Ipv6, ipv6::LEN))
        }
        _ => false,
    }
}

/// Bytes that may stand before an IP header in a packet: Ethernet's, or those of a tunnel over IPv6.
const LOWER_LEN: usize = 56;

/// True if a packet may be ours, as far as these bytes tell. They begin with the protocol's number and end with the first ones
/// above the IP header, which has `ip` bytes.
#[inline(always)]
fn is_suspect<const LEN: usize>(
    ctx: &TcContext,
    bytes: &[u8; LEN],
    family: Family,
    ip: usize,
) -> bool {
    let Some(first) = bytes.last_chunk() else {
        return false;
    };
    // Whatever a tunnel's headers before the IP header.
    let is_short = |len| ctx.len() as usize <= ip + len + LOWER_LEN;
    let word = |at| packet::network_bytes(ctx, ip + at).map(u16::from_be_bytes);
    probe::may_be_ours(bytes[0], family, first, is_short, word)
}

/// What the kernel knows of a packet's protocol.
#[inline(always)]
pub fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    u16::from_be(protocol as u16)
}

/// Judges a packet that bears the probe header. `None`: of no concern here, and nothing was counted. `is_as_sent`
/// tells whether the frame is on its way to the next hop still.
#[inline(always)]
pub fn recognise(
    reply: &Reply,
    arrival: Arrival,
    is_as_sent: impl Fn(&Path) -> bool,
) -> Option<Outcome> {
    let hub = HUB.get(0)?;
    let probe_header = &reply.probe_header;
    let is_tagged_ours = probe_header.tag() == hub.tag;
    // Probes of others pass by wherever the hub is a router; only replies must be of a tracker here.
    let stale = match reply.message {
        Message::EchoReply if is_tagged_ours => Some(Outcome::Stale),
        _ => None,
    };
    let slot = probe_header.tracker;
    let (Some(tracker), Some(state)) = (TRACKERS.get(slot), STATE.get_ptr_mut(slot)) else {
        return stale;
    };
    if tracker.active == 0 {
        return stale;
    }
    // Another instance's, or of a build before there were tags: its number was the whole sequence number.
    if !is_tagged_ours && probe_header.tag() != (sent(state) >> 32) as u32 {
        return None;
    }
    if matches!(reply.message, Message::Error)
        && let Some(outcome) = note_refused(reply, hub, tracker, state)?
    {
        return Some(outcome);
    }
    let is_error = matches!(reply.message, Message::Error);
    let proof = match is_error {
        // That no program has the port, from the address that was asked: as good as a reply.
        true => Proof::Reply,
        false => reply.proof(tracker)?,
    };
    // Any host that sees a probe can answer it.
    if matches!(proof, Proof::Reply) && matches!(tracker.proof.get(), Proof::Arrival) {
        return None;
    }
    let is_between = is_error || reply.belongs_to(tracker, proof);
    if !is_between && matches!(proof, Proof::Arrival) {
        return None;
    }
    let sequence = probe_header.sequence();
    let is_ours = probe_header.token == token(hub, tracker, probe_header);
    let is_told = is_between || reply.is_told_to(tracker);
    if !is_ours || !reply.is_intact || !is_told {
        if !is_tagged_ours || proof != tracker.proof.get() {
            return None;
        }
        note_corrupt(state, is_ours || is_between);
        return Some(Outcome::Corrupt);
    }
    // What must be stopped was not, whatever address answers it.
    if !is_between && tracker.expects_silence == 0 {
        return Some(note_elsewhere(state, reply.sender, sequence));
    }
    let way = Way {
        proof,
        last_hop: reply.last_hop,
        vlan: reply.vlan,
        arrival,
    };
    if let Some(outcome) = refused(tracker, state, sequence, &way, is_as_sent) {
        return outcome;
    }
    let outcome = count_reply(slot, sequence, probe_header.sent_mono_ns, tracker, state);
    if matches!(outcome, Outcome::Counted) {
        note_last_hop(state, reply.last_hop);
    }
    Some(outcome)
}

/// The end of both ladders of rules: what becomes of a genuine reply, or of a probe that came back, that must not count. `None`: it
/// is to be counted. `Some(None)`: it is of no concern here.
///
/// The caller counts: a closure that counted here would be a function of its own, with all that it needs in memory.
#[inline(always)]
pub fn refused(
    tracker: &Tracker,
    state: *mut State,
    sequence: u32,
    way: &Way,
    is_as_sent: impl Fn(&Path) -> bool,
) -> Option<Option<Outcome>> {
    if matches!(way.proof, Proof::Arrival) {
        // A switch that floods it, or a port that takes everything, is not the service.
        if path::look(tracker.path, is_as_sent).unwrap_or(true) {
            return Some(None);
        }
        if matches!(tracker.proof.get(), Proof::Reply) {
            // In a VLAN it is of no concern to the interface below the VLAN device.
            let is_here = !way.is_tagged();
            return Some(is_here.then(|| note_returned(state, sequence, way)));
        }
    }
    refused_way(tracker, way, state, sequence).map(Some)
}

/// Notes a probe that came back to the hub and proves nothing. It explains a loss: the service, or a router behind it, sends
/// probes to the hub instead of the behind address.
#[inline(always)]
fn note_returned(state: *mut State, sequence: u32, way: &Way) -> Outcome {
    // SAFETY: a valid map value; whole stores; the last ones count. The MAC address is aligned to a word (asserted with
    // the layout).
    unsafe {
        let notice = &raw mut (*state).notice;
        atomic::add32(&raw mut (*notice).returned, 1);
        (&raw mut (*notice).returned_ifindex).write(way.arrival.ifindex);
        (&raw mut (*notice).returned_mac)
            .cast::<u64>()
            .write(way.last_hop.word());
        (&raw mut (*notice).returned_sequence).write(sequence);
    }
    Outcome::Returned
}

/// The token that a probe header must have.
#[inline(always)]
fn token(hub: &Hub, tracker: &Tracker, probe_header: &ProbeHeader) -> u64 {
    token::token(
        hub.key,
        probe_header.tracker,
        tracker.epoch,
        probe_header.number,
        probe_header.sent_mono_ns,
    )
}

/// The sequence number of the tracker's last probe.
#[inline(always)]
fn sent(state: *mut State) -> u64 {
    // SAFETY: a valid map value; the send program writes the number whole.
    unsafe { (&raw const (*state).send.sent).read_volatile() }
}

/// Records an ICMP error whose quoted packet bears a valid token. The probe is authenticated, the sender is not, so an error
/// may explain a loss but never create one. `None`: an error about others' packets, of no concern here. `Some(None)`: it is
/// to be taken for a reply.
#[inline(always)]
fn note_refused(
    error: &Reply,
    hub: &Hub,
    tracker: &Tracker,
    state: *mut State,
) -> Option<Option<Outcome>> {
    let probe_header = &error.probe_header;
    if probe_header.token != token(hub, tracker, probe_header)
        || !error.is_intact
        || !error.is_told_to(tracker)
    {
        return None;
    }
    let refuses = error.refuses(tracker);
    if refuses && tracker.refused_is_reply != 0 {
        return Some(None);
    }
    let found = error_of(tracker.family.get(), refuses);
    note_error(
        state,
        found,
        error.kind,
        error.sender,
        probe_header.sequence(),
    );
    Some(Some(Outcome::Error))
}

/// What an ICMP error to a family is; `refuses` if the behind address says that no program has the port.
#[inline(always)]
pub const fn error_of(family: Family, refuses: bool) -> ProbeError {
    match family {
        _ if refuses => ProbeError::Port,
        Family::Ipv4 => ProbeError::Icmp,
        Family::Ipv6 => ProbeError::Icmpv6,
    }
}

/// Notes a genuine reply from another address or port than the one that was asked.
#[inline(always)]
pub fn note_elsewhere(state: *mut State, sender: [u64; 2], sequence: u32) -> Outcome {
    // SAFETY: a valid map value.
    unsafe { atomic::add32(&raw mut (*state).receive.elsewhere, 1) };
    note_error(state, ProbeError::Elsewhere, [0; 2], sender, sequence);
    Outcome::Elsewhere
}

/// Notes what says that a probe did not get through, and from which address.
#[inline(always)]
pub fn note_error(
    state: *mut State,
    error: ProbeError,
    [kind, code]: [u8; 2],
    sender: [u64; 2],
    sequence: u32,
) {
    let sequence = whole_sequence(sequence, sent(state));
    let is_icmp = matches!(
        error,
        ProbeError::Icmp | ProbeError::Icmpv6 | ProbeError::Port
    );
    // SAFETY: a valid map value; whole stores; the last ones count. The address is aligned to a word
    // (asserted with the layout).
    unsafe {
        if is_icmp {
            atomic::add32(&raw mut (*state).notice.icmp_errors, 1);
        }
        let trouble = &raw mut (*state).trouble;
        // As of a wrong path: only what is said of the newest probe is of use.
        if sequence < (&raw const (*trouble).error_sequence).read() {
            return;
        }
        (&raw mut (*trouble).error).write(error.into());
        (&raw mut (*trouble).error_type).write(kind);
        (&raw mut (*trouble).error_code).write(code);
        (&raw mut (*trouble).error_from)
            .cast::<[u64; 2]>()
            .write(sender);
        (&raw mut (*trouble).error_sequence).write(sequence);
    }
}

/// Notes what claims to be ours and is not. It explains a loss if it may have been a reply once: what has
/// neither the addresses nor the token of this tracker's is of another hub's, or another instance's.
#[inline(always)]
pub fn note_corrupt(state: *mut State, explains: bool) {
    // SAFETY: a valid map value, and a helper without arguments.
    unsafe {
        let trouble = &raw mut (*state).trouble;
        atomic::add32(&raw mut (*trouble).corrupt, 1);
        if explains {
            (&raw mut (*trouble).corrupt_mono_ns).write(bpf_ktime_get_ns());
        }
    }
}

/// Notes a reply after the timeout. If the service must stop the probes, the first one to a probe proves that it did not.
#[inline(always)]
pub fn note_late(slot: u32, tracker: &Tracker, state: *mut State, sequence: u32) -> Outcome {
    // SAFETY: a valid map value.
    unsafe { atomic::add32(&raw mut (*state).trouble.late, 1) };
    let sent = sent(state);
    let sequence = whole_sequence(sequence, sent);
    if tracker.expects_silence == 0 || !tracker.window().remembers(sequence, sent) {
        return Outcome::Late;
    }
    let (word, bit) = tracker.window().position(sequence);
    if let Some(word) = WINDOWS.get_ptr_mut(word)
        // SAFETY: a valid map value, whose bits are of probes that were sent before.
        && unsafe { atomic::fetch_or(word, bit) } & bit == 0
    {
        // SAFETY: no arguments, always available.
        report(slot, tracker, sequence, unsafe { bpf_ktime_get_ns() });
    }
    Outcome::Late
}

/// Tells the daemon of a reply at once.
#[inline(always)]
fn report(slot: u32, tracker: &Tracker, sequence: u64, received_mono_ns: u64) {
    let event = Event {
        tracker: slot,
        epoch: tracker.epoch,
        sequence,
        received_mono_ns,
    };
    if EVENTS.output_untyped::<Event>(event, 0).is_err() {
        count(|counters| &mut counters.event_dropped);
    }
}

/// Notes a genuine reply to a probe that was answered before, or to one before the last.
#[inline(always)]
pub fn note_duplicate(state: *mut State) -> Outcome {
    // SAFETY: a valid map value.
    unsafe { atomic::add32(&raw mut (*state).trouble.duplicate, 1) };
    Outcome::Duplicate
}

/// Notes from which router or host the last counted reply arrived.
#[inline(always)]
pub fn note_last_hop(state: *mut State, last_hop: LastHop) {
    // SAFETY: a valid map value; one whole store, of an aligned word (asserted with the layout).
    unsafe {
        (&raw mut (*state).receive.hop_mac)
            .cast::<u64>()
            .write(last_hop.word());
    }
}

/// By which way a reply came.
pub struct Way {
    /// What it is: a reply, or the probe itself.
    pub proof: Proof,
    /// The router or host from which it arrived.
    pub last_hop: LastHop,
    /// The tag control information of its frame.
    pub vlan: u16,
    /// Where it arrived.
    pub arrival: Arrival,
}

impl Way {
    /// True if it arrived where it must, and was brought by the endpoint if that is asked for.
    #[inline(always)]
    fn is_of(&self, path: &Path) -> bool {
        let ifindex = self.arrival.ifindex;
        match self.proof {
            Proof::Arrival => expects(&path.arrivals, ifindex),
            // Elsewhere the endpoint has another MAC address, or none.
            Proof::Reply => {
                let is_by_another = path.checks_hop != 0
                    && ifindex == path.interface
                    && self.last_hop.mac() != path.next_hop_mac;
                !is_by_another && expects(&path.returns, ifindex)
            }
        }
    }

    /// True if the frame is of a VLAN.
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        (self.arrival.vlan | u32::from(self.vlan)) & u32::from(vlan::ID_MASK) != 0
    }
}

/// What becomes of a genuine reply, or probe, that came by another way than it should.
#[inline(always)]
fn refused_way(tracker: &Tracker, way: &Way, state: *mut State, sequence: u32) -> Option<Outcome> {
    // What must be stopped was not, wherever its reply arrives.
    if tracker.expects_silence != 0 {
        return None;
    }
    if way.is_tagged() {
        return Some(Outcome::Tagged);
    }
    let Some(is_of_path) = path::look(tracker.path, |path| way.is_of(path)) else {
        return Some(Outcome::Stale);
    };
    let is_of_another_way = tracker.return_ttl != 0 && way.last_hop.ttl() != tracker.return_ttl;
    if is_of_path && !is_of_another_way {
        return None;
    }
    let arrival = way.arrival;
    let sequence = whole_sequence(sequence, sent(state));
    // SAFETY: a valid map value; whole stores; the last one counts.
    unsafe {
        let trouble = &raw mut (*state).trouble;
        atomic::add32(&raw mut (*trouble).wrong_path, 1);
        // One that was overtaken, or is replayed, must not hide what explains the newest loss.
        if sequence >= (&raw const (*trouble).wrong_path_sequence).read() {
            (&raw mut (*trouble).wrong_path_ifindex).write(arrival.ifindex);
            (&raw mut (*trouble).wrong_path_ttl).write(way.last_hop.ttl());
            (&raw mut (*state).notice.wrong_path_mac)
                .cast::<u64>()
                .write(way.last_hop.word());
            (&raw mut (*trouble).wrong_path_sequence).write(sequence);
        }
    }
    Some(Outcome::WrongPath)
}

/// Counts a reply that the token proved to be ours and that came by the right way.
#[inline(always)]
pub fn count_reply(
    slot: u32,
    sequence: u32,
    sent_mono_ns: u64,
    tracker: &Tracker,
    state: *mut State,
) -> Outcome {
    // SAFETY: no arguments, always available.
    let now_mono_ns = unsafe { bpf_ktime_get_ns() };
    let worth = tracker.admit(sequence.into(), sent_mono_ns, now_mono_ns, |word, bit| {
        let word = WINDOWS.get_ptr_mut(word)?;
        // SAFETY: a valid map value, set only here and cleared by the send program before any reply to
        // these sequence numbers can exist.
        Some(unsafe { atomic::fetch_or(word, bit) } & bit != 0)
    });
    let rtt_ns = match worth {
        Worth::Counts { rtt_ns } => rtt_ns,
        Worth::Duplicate => return note_duplicate(state),
        Worth::Late => return note_late(slot, tracker, state, sequence),
        Worth::Nowhere => return Outcome::Stale,
    };
    // SAFETY: a valid map value. Plain additions, which cost a third of a locked one: first replies to
    // one tracker are an interval apart, at least a millisecond, so that two CPUs meet here only if
    // replies were delayed past each other; a count is then lost, never a verdict, which reads the bits.
    let verdict = unsafe {
        let receive = &mut (*state).receive;
        receive.received = receive.received.wrapping_add(1);
        receive.rtt_last_ns = rtt_ns;
        receive.rtt_sum_ns = receive.rtt_sum_ns.wrapping_add(rtt_ns);
        if rtt_ns < receive.rtt_min_ns || receive.rtt_min_ns == 0 {
            receive.rtt_min_ns = rtt_ns;
        }
        if rtt_ns > receive.rtt_max_ns {
            receive.rtt_max_ns = rtt_ns;
        }
        receive.verdict
    };
    count_rtt(tracker.path, rtt_ns);
    if tracker.reports(verdict) {
        let sequence = whole_sequence(sequence, sent(state));
        report(slot, tracker, sequence, now_mono_ns);
    }
    Outcome::Counted
}

/// Counts a round-trip time of a member.
#[inline(always)]
fn count_rtt(path: u32, rtt_ns: u64) {
    let Some(rtts) = RTTS.get_ptr_mut(path) else {
        return;
    };
    let words = rtts.cast::<u64>();
    // SAFETY: a valid map value, and places within it. Plain additions as in STATE: where two CPUs count a reply of one
    // member at the same moment, one of them may be lost, and no verdict depends on it.
    unsafe {
        let count = words.add(rtt::bucket(rtt_ns) & (rtt::WORDS - 1));
        *count = (*count).wrapping_add(1);
        let sum = words.add(rtt::SUM);
        *sum = (*sum).wrapping_add(rtt_ns);
    }
}

#[inline(always)]
fn expects([a, b, c, d]: &[u32; RETURNS_MAX], ifindex: u32) -> bool {
    ifindex == *a || ifindex == *b || ifindex == *c || ifindex == *d
}

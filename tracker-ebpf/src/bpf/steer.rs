//! Tracker packets that others send: addressed to an endpoint, and sent through the service instead; and
//! their replies, which come back as if from the endpoint.
//!
//! Every program goes the same way: what the packet's own bytes and FILTER tell, then STEERING, then
//! whether the sender may, and only then a change. A packet is changed whole or not at all.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_csum_diff, bpf_ktime_get_ns, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect,
        bpf_skb_change_head, bpf_skb_store_bytes, bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use tracker_ebpf::{
    abi::{
        Egress, FLOW_LONG_NS, FLOW_SHORT_NS, Family, Filter, Flow, FlowKey, OwnMac, Source, Steer,
        SteerKey, Steered,
    },
    wire::{
        Bytes, BytesMut, ethernet,
        flow::{self, Head, Side, Way, flags},
        ipv4, ipv6,
    },
};

use super::{
    maps::{DEVICES, FILTER, FLOWS, SOURCES, STEERED, STEERING, UPLINKS},
    packet::{self, Packet},
};

/// Where the IP header begins behind an Ethernet header.
pub const ETHERNET: usize = ethernet::LEN;
/// Where it begins on interfaces that have none.
pub const BARE: usize = 0;

/// Bits of a [`Source`] that must match a host's: family and address.
const SOURCE_BITS: u32 = 8 * size_of::<Source>() as u32;
/// `PACKET_HOST` (linux/if_packet.h): addressed to this host, not merely seen by it.
const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`: addressed to another MAC address than the device's, as frames to a macvlan device on it are.
const PACKET_OTHERHOST: u32 = 3;
/// Most bytes of outer headers before a packet's IP header: IPv6, and GRE with all its options.
const OUTER_MAX: usize = ipv6::LEN + 16;
/// Where an IPv4 header has its checksum.
const IPV4_CHECKSUM: u32 = 10;

/// What becomes of a packet of others.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Steered; it goes where the redirect helper was told to, whose answer this is.
    Redirected(u32),
    /// Given other addresses, and on its right way already.
    Changed,
    /// Ours, and it cannot be sent, now or at all. Passed on, the endpoint itself would answer, and the prober
    /// would take that for a reply from behind the service.
    NoWay,
    /// Ours, and the kernel refused what began.
    Broken,
}

/// XDP at an uplink: steers what can be redirected there. `None` leaves a packet to [`uplink`], which sees what XDP does not.
#[inline(always)]
pub fn fast(ctx: &XdpContext) -> Option<Outcome> {
    let mut packet = Packet::new(ctx.data(), ctx.data_end());
    let ethertype = ethernet::parse(packet.at(0)?);
    let (_, destination) = flow::last_words::<_, ETHERNET>(&packet, ethertype)?;
    if !is_endpoint(destination) {
        return None;
    }
    let len = ctx.data_end() - ctx.data() - ETHERNET;
    let mut head = Head::default();
    flow::parse::<_, ETHERNET>(&packet, ethertype, len, &mut head)?;
    let steer = find(&head)?;
    if !matches!(steer.egress.get(), Egress::XdpRedirect)
        || !fits(&head, steer, 0)
        || !has_hops(&head, true)
        || head.may_be_partial()
    {
        return None;
    }
    // Devices drop a redirected packet of several buffers unless they say that they take it (`__xdp_enqueue`).
    // SAFETY: helper call on this program's own context.
    if unsafe { bpf_xdp_get_buff_len(ctx.ctx) } != (len + ETHERNET) as u64 {
        return None;
    }
    if !is_own_mac(ctx.ingress_ifindex() as u32, packet.at(0)?) || !may_send(&head) {
        return None;
    }
    let action = DEVICES.redirect(steer.interface, 0).ok()?;
    remember(&head, steer)?;
    flow::redirect::<_, ETHERNET>(&mut packet, &head, &steer.behind)?;
    let header = packet.at_mut(0)?;
    ethernet::emit(header, &steer.next_hop_mac, &steer.source_mac, ethertype);
    count(steer.member, |counters| &mut counters.steered);
    Some(Outcome::Redirected(action))
}

/// TC ingress of an uplink whose packets have the IP header at `AT`. `None`: not ours, or not to be
/// steered; untouched.
#[inline(always)]
pub fn uplink<const AT: usize>(ctx: &TcContext) -> Option<Outcome> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (is_tagged, gso_size) = unsafe { ((*skb).vlan_present != 0, (*skb).gso_size) };
    if is_tagged || !may_be_for_us::<AT>(ctx) {
        return None;
    }
    let at = ip_at::<AT>(ctx)?;
    if !is_endpoint(last_words::<AT>(ctx, at)?.1) || !is_for_us::<AT>(ctx) {
        return None;
    }
    let mut head = Head::default();
    if parse::<AT>(ctx, at, &mut head).is_none() {
        return unsteerable::<AT>(ctx, at, &mut head, may_send);
    }
    let steer = find(&head)?;
    if !may_send(&head) {
        return None;
    }
    match turn::<AT>(ctx, at, &head, steer, gso_size, true) {
        Ok(()) => Some(send::<AT>(ctx, &head, steer)),
        Err(outcome) => outcome,
    }
}

/// TC egress, for local packets that bear the mark.
#[inline(always)]
pub fn marked<const AT: usize>(ctx: &TcContext) -> Option<Outcome> {
    let skb = ctx.skb.skb;
    let filter = FILTER.get(0)?;
    // SAFETY: the context is valid while the program runs.
    let (is_ours, gso_size, ifindex) = unsafe {
        // What the hub forwards came in by an interface, whatever mark a rule may have given it.
        let is_local = (*skb).ingress_ifindex == 0 && (*skb).vlan_present == 0;
        let is_marked = filter.mark != 0 && (*skb).mark & filter.mark_mask == filter.mark;
        (is_local && is_marked, (*skb).gso_size, (*skb).ifindex)
    };
    if !is_ours {
        return None;
    }
    let at = ip_at::<AT>(ctx)?;
    if !is_endpoint(last_words::<AT>(ctx, at)?.1) {
        return None;
    }
    let mut head = Head::default();
    if parse::<AT>(ctx, at, &mut head).is_none() {
        return unsteerable::<AT>(ctx, at, &mut head, |_| true);
    }
    let steer = find(&head)?;
    if let Err(outcome) = turn::<AT>(ctx, at, &head, steer, gso_size, false) {
        return outcome;
    }
    if steer.interface == ifindex {
        return Some(match address::<AT>(ctx, &head, steer) {
            Some(()) => Outcome::Changed,
            None => Outcome::Broken,
        });
    }
    // Where it goes now it must not be taken for a marked packet once more: the behind address may be
    // another service's endpoint.
    // SAFETY: the context is valid while the program runs, and `mark` may be written.
    unsafe { (*skb).mark &= !filter.mark_mask };
    Some(send::<AT>(ctx, &head, steer))
}

/// TC ingress where replies arrive.
#[inline(always)]
pub fn reply<const AT: usize>(ctx: &TcContext) -> Option<Outcome> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (is_tagged, ifindex) = unsafe { ((*skb).vlan_present != 0, (*skb).ifindex) };
    if is_tagged || !may_be_for_us::<AT>(ctx) {
        return None;
    }
    let at = ip_at::<AT>(ctx)?;
    if !is_behind(last_words::<AT>(ctx, at)?.0) || !is_for_us::<AT>(ctx) {
        return None;
    }
    let mut head = Head::default();
    parse::<AT>(ctx, at, &mut head)?;
    if matches!(head.way, Way::Request) {
        return None;
    }
    let flow = FLOWS.get_ptr_mut(head.replied_flow(ifindex))?;
    // SAFETY: a valid map value; other processors store whole words that mean the same at any moment.
    let flow = unsafe { &mut *flow };
    let is_open = head.protocol == flow::TCP && flow.is_closing == 0;
    let lasts_ns = if is_open { FLOW_LONG_NS } else { FLOW_SHORT_NS };
    if now_mono_ns().saturating_sub(flow.used_mono_ns) > lasts_ns {
        return None;
    }
    if head.tcp_flags & flags::RST != 0 {
        flow.is_closing = 1;
    }
    let (member, endpoint) = (flow.member, flow.endpoint);
    if change(ctx, at, &head, Side::Source, &endpoint, false).is_none() {
        return Some(Outcome::Broken);
    }
    count(member, |counters| &mut counters.replied);
    Some(Outcome::Changed)
}

/// Whether the interface has a MAC address of the hub.
#[inline(always)]
fn is_own_mac(ifindex: u32, mac: &[u8; 6]) -> bool {
    let key = OwnMac {
        ifindex,
        mac: *mac,
        pad: [0; 2],
    };
    // SAFETY: only whether there is an entry is asked.
    unsafe { UPLINKS.get(key) }.is_some()
}

/// Whether a packet may be for the hub, by what the device says of it.
#[inline(always)]
fn may_be_for_us<const AT: usize>(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    kind == PACKET_HOST || (AT != BARE && kind == PACKET_OTHERHOST)
}

/// Whether a packet for which [`may_be_for_us`] holds is for the hub: to the device's own MAC address, or to that of a macvlan
/// device on it.
#[inline(always)]
fn is_for_us<const AT: usize>(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let (kind, ifindex) = unsafe { ((*ctx.skb.skb).pkt_type, (*ctx.skb.skb).ifindex) };
    if kind == PACKET_HOST {
        return true;
    }
    let packet = Packet::new(ctx.data(), ctx.data_end());
    packet.at(0).is_some_and(|mac| is_own_mac(ifindex, mac))
}

/// Where the IP header begins. On an interface without Ethernet header that is the first byte, but on a GRE
/// tunnel the outer headers come before (the MAC header is the outer IP header: `ipgre_rcv` of Linux 6.12). No
/// helper tells the offset. It should be what the packet has beyond its own length, and that is so if and only if the
/// bytes of the linear part that can be read from the IP header on are those behind it.
#[inline(always)]
fn ip_at<const AT: usize>(ctx: &TcContext) -> Option<usize> {
    if AT != BARE {
        return Some(AT);
    }
    let own = packet::network_bytes::<{ ipv4::LEN }>(ctx, 0)?;
    let at = (ctx.len() as usize).checked_sub(flow::ip_len(&own))?;
    if at > OUTER_MAX {
        return None;
    }
    let behind = (ctx.data_end() - ctx.data()).checked_sub(at)?;
    let last = packet::network_bytes::<1>(ctx, behind.checked_sub(1)?);
    let beyond = packet::network_bytes::<1>(ctx, behind);
    (last.is_some() && beyond.is_none()).then_some(at)
}

#[inline(always)]
fn last_words<const AT: usize>(ctx: &TcContext, at: usize) -> Option<(u32, u32)> {
    let (packet, ethertype) = packet::<AT>(ctx, at)?;
    flow::last_words::<_, 0>(&packet, ethertype)
}

#[inline(always)]
fn parse<const AT: usize>(ctx: &TcContext, at: usize, head: &mut Head) -> Option<()> {
    let (packet, ethertype) = packet::<AT>(ctx, at)?;
    let len = (ctx.len() as usize).checked_sub(at)?;
    flow::parse::<_, 0>(&packet, ethertype, len, head)
}

/// What becomes of a packet that cannot be given another address: it is dropped if it was to be steered.
#[inline(always)]
fn unsteerable<const AT: usize>(
    ctx: &TcContext,
    at: usize,
    head: &mut Head,
    may_send: impl FnOnce(&Head) -> bool,
) -> Option<Outcome> {
    let (packet, ethertype) = packet::<AT>(ctx, at)?;
    *head = Head::default();
    flow::parse_unsteerable::<_, 0>(&packet, ethertype, head)?;
    let steer = find(head)?;
    if !may_send(head) {
        return None;
    }
    count(steer.member, |counters| &mut counters.unfit);
    Some(Outcome::NoWay)
}

/// The packet from its IP header on, and what that is.
#[inline(always)]
fn packet<const AT: usize>(ctx: &TcContext, at: usize) -> Option<(Packet, u16)> {
    let ethertype = match AT {
        // SAFETY: the context is valid while the program runs.
        BARE => u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16),
        _ => ethernet::parse(Packet::new(ctx.data(), ctx.data_end()).at(0)?),
    };
    Some((Packet::new(ctx.data() + at, ctx.data_end()), ethertype))
}

/// The cheapest test of a packet to be steered.
#[inline(always)]
fn is_endpoint(destination: u32) -> bool {
    FILTER
        .get(0)
        .is_some_and(|filter| is_in(&filter.endpoints, destination))
}

/// The cheapest test of a reply to one.
#[inline(always)]
fn is_behind(source: u32) -> bool {
    FILTER
        .get(0)
        .is_some_and(|filter| is_in(&filter.behinds, source))
}

/// True if a set of [`Filter`] may have an address that ends in these bytes.
#[inline(always)]
fn is_in(set: &[u64; 4], last: u32) -> bool {
    let (word, bit) = Filter::place(last);
    set.get(word).is_some_and(|word| word & bit != 0)
}

#[inline(always)]
fn find(head: &Head) -> Option<&'static Steer> {
    if matches!(head.way, Way::Reply) {
        return None;
    }
    let key = SteerKey {
        endpoint: head.destination,
        port: head.destination_port,
        protocol: head.protocol,
        family: head.family.into(),
    };
    // SAFETY: a value is replaced whole by userspace, and freed only after this run.
    unsafe { STEERING.get(key) }
}

#[inline(always)]
fn may_send(head: &Head) -> bool {
    let source = Source {
        family: head.family.into(),
        pad: [0; 3],
        address: head.source,
    };
    SOURCES.get(&Key::new(SOURCE_BITS, source)).is_some()
}

/// Whether the member's interface takes the packet, or each of its segments, whole.
#[inline(always)]
fn fits(head: &Head, steer: &Steer, gso_size: u32) -> bool {
    let len = match gso_size {
        0 => head.ip_len,
        segment => head.headers_len + segment,
    };
    len <= steer.mtu
}

/// Whether the packet has hops left after a router has taken one.
#[inline(always)]
fn has_hops(head: &Head, takes_hop: bool) -> bool {
    head.hops > takes_hop as u8
}

/// Notes that replies are to be expected, wherever they may arrive.
#[inline(always)]
fn remember(head: &Head, steer: &Steer) -> Option<()> {
    let now_mono_ns = now_mono_ns();
    let is_closing = head.tcp_flags & (flags::FIN | flags::RST) != 0;
    let mut key = head.flow(&steer.behind, 0);
    for ifindex in steer.returns {
        if ifindex == 0 {
            break;
        }
        key.ifindex = ifindex;
        remember_one(head, steer, &key, is_closing, now_mono_ns)?;
    }
    Some(())
}

#[inline(always)]
fn remember_one(
    head: &Head,
    steer: &Steer,
    key: &FlowKey,
    is_closing: bool,
    now_mono_ns: u64,
) -> Option<()> {
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a valid map value; other processors store whole words that mean the same.
        let flow = unsafe { &mut *flow };
        let is_same = ipv6::address(&flow.endpoint) == ipv6::address(&head.destination);
        if is_same && flow.member == steer.member {
            flow.used_mono_ns = now_mono_ns;
            if head.tcp_flags & flags::SYN != 0 {
                flow.is_closing = 0;
            } else if is_closing {
                flow.is_closing = 1;
            }
            return Some(());
        }
    }
    let flow = Flow {
        used_mono_ns: now_mono_ns,
        endpoint: head.destination,
        member: steer.member,
        is_closing: is_closing.into(),
        pad: [0; 3],
    };
    FLOWS.insert(key, flow, 0).ok()
}

/// Gives the packet the behind address as destination, and notes it; or what becomes of it if that is impossible.
#[inline(always)]
fn turn<const AT: usize>(
    ctx: &TcContext,
    at: usize,
    head: &Head,
    steer: &Steer,
    gso_size: u32,
    takes_hop: bool,
) -> Result<(), Option<Outcome>> {
    if matches!(steer.egress.get(), Egress::None) {
        count(steer.member, |counters| &mut counters.no_way);
        return Err(Some(Outcome::NoWay));
    }
    // No helper takes outer headers off for an interface that wants an Ethernet header.
    let is_framed = at == AT || steer.is_ethernet == 0;
    let (fits, has_hops) = (fits(head, steer, gso_size), has_hops(head, takes_hop));
    if !fits || !has_hops || !is_framed {
        count(steer.member, |counters| &mut counters.unfit);
        // The stack, as a router, does not send it on but tells its sender. Of others it makes fragments, and what leaves it
        // has no router: these might come to the endpoint.
        let is_told = takes_hop && is_framed && (!has_hops || !head.may_be_fragmented);
        return Err((!is_told).then_some(Outcome::NoWay));
    }
    let broken = Err(Some(Outcome::Broken));
    if remember(head, steer).is_none() {
        return broken;
    }
    if change(ctx, at, head, Side::Destination, &steer.behind, takes_hop).is_none() {
        return broken;
    }
    count(steer.member, |counters| &mut counters.steered);
    Ok(())
}

/// Gives the packet another address on one side. The kernel's own helpers keep the checksums right, those
/// that are yet to be completed by a device (`CHECKSUM_PARTIAL`) and those of merged segments too.
#[inline(always)]
fn change(
    ctx: &TcContext,
    ip_at: usize,
    head: &Head,
    side: Side,
    to: &[u8; 16],
    takes_hop: bool,
) -> Option<()> {
    let skb = ctx.skb.skb;
    let from = head.address(side);
    let words = |bytes: &[u8; 16]| {
        let [a, b, c, d, ..] = *bytes;
        u64::from(u32::from_ne_bytes([a, b, c, d]))
    };
    let (old, new) = (words(from), words(to));
    if let Some(at) = head.checksum_at() {
        let at = (ip_at + at) as u32;
        let mangled = match head.protocol {
            // A sum of zero becomes 0xffff, for zero would say that there is none (RFC 768).
            flow::UDP => u64::from(BPF_F_MARK_MANGLED_0),
            _ => 0,
        };
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
        // SAFETY: helper calls on this program's own context and on sixteen readable bytes each; no packet
        // pointer is held across them.
        let result = unsafe {
            match head.family {
                Family::Ipv4 => bpf_l4_csum_replace(skb, at, old, new, flags | 4),
                Family::Ipv6 => {
                    let (from, to) = (from.as_ptr(), to.as_ptr());
                    let diff =
                        bpf_csum_diff(from.cast_mut().cast(), 16, to.cast_mut().cast(), 16, 0);
                    bpf_l4_csum_replace(skb, at, 0, diff as u32 as u64, flags)
                }
            }
        };
        if result != 0 {
            return None;
        }
    }
    let address_at = (ip_at + head.address_at(side)) as u32;
    let hops_at = (ip_at + head.hops_at()) as u32;
    let hops = [head.hops.wrapping_sub(1)];
    match head.family {
        Family::Ipv4 => {
            let checksum_at = ip_at as u32 + IPV4_CHECKSUM;
            let before = u64::from(u16::from_ne_bytes([head.hops, head.protocol]));
            let after = u64::from(u16::from_ne_bytes([hops[0], head.protocol]));
            // SAFETY: helper call on this program's own context; no packet pointer is held across it.
            if unsafe { bpf_l3_csum_replace(skb, checksum_at, old, new, 4) } != 0 {
                return None;
            }
            store(ctx, address_at, to.first_chunk::<4>()?, 0)?;
            if takes_hop {
                // SAFETY: helper call on this program's own context; no packet pointer is held across it.
                if unsafe { bpf_l3_csum_replace(skb, checksum_at, before, after, 2) } != 0 {
                    return None;
                }
                store(ctx, hops_at, &hops, 0)?;
            }
        }
        Family::Ipv6 => {
            // No checksum covers this header, so a device's sum over the whole packet (CHECKSUM_COMPLETE)
            // changes with it; bpf_l4_csum_replace has taken the same difference off that sum.
            let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
            store(ctx, address_at, to, recompute)?;
            if takes_hop {
                store(ctx, hops_at, &hops, recompute)?;
            }
        }
    }
    Some(())
}

/// Sends a turned packet out of the member's interface.
#[inline(always)]
fn send<const AT: usize>(ctx: &TcContext, head: &Head, steer: &Steer) -> Outcome {
    if address::<AT>(ctx, head, steer).is_none() {
        return Outcome::Broken;
    }
    // An interface without Ethernet header strips what there is (`__bpf_redirect_no_mac`).
    // SAFETY: plain helper call.
    Outcome::Redirected(unsafe { bpf_redirect(steer.interface, 0) } as u32)
}

/// Gives a turned packet the Ethernet header that the member's interface needs.
#[inline(always)]
fn address<const AT: usize>(ctx: &TcContext, head: &Head, steer: &Steer) -> Option<()> {
    if steer.is_ethernet == 0 {
        return Some(());
    }
    if AT == BARE {
        // SAFETY: helper call on this program's own context; no packet pointer is held across it.
        if unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0) } != 0 {
            return None;
        }
    }
    let ethertype = match head.family {
        Family::Ipv4 => ethernet::IPV4,
        Family::Ipv6 => ethernet::IPV6,
    };
    let mut header = [0; ETHERNET];
    ethernet::emit(
        &mut header,
        &steer.next_hop_mac,
        &steer.source_mac,
        ethertype,
    );
    store(ctx, 0, &header, 0)
}

#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, at: u32, bytes: &[u8; N], flags: u64) -> Option<()> {
    let from = bytes.as_ptr().cast();
    // SAFETY: helper call on this program's own context and on `N` readable bytes; no packet pointer is
    // held across it.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at, from, N as u32, flags) };
    (result == 0).then_some(())
}

#[inline(always)]
fn now_mono_ns() -> u64 {
    // SAFETY: no arguments, always available.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one to a member's counter on this CPU.
#[inline(always)]
fn count(member: u32, field: impl FnOnce(&mut Steered) -> &mut u64) {
    if let Some(counters) = STEERED.get_ptr_mut(member) {
        // SAFETY: the slot belongs to this CPU, on which neither a program of this kind nor the softirqs
        // in which they run interrupt each other.
        let counter = field(unsafe { &mut *counters });
        *counter = counter.wrapping_add(1);
    }
}

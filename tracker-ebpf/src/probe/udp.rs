//! Probes that are UDP datagrams with a probe header, which an echo service sends back.

use super::{
    FIRST_LEN, HEADER_LEN, MAGIC, first_word,
    frame::Content,
    reply::{Message, REPLY_LEN, Reply},
};
use crate::{
    abi::{Probe, Proof, Tracker},
    wire::{BytesMut, address, checksum::Sum, icmp, udp},
};

/// Writes the probe above IP.
#[inline(always)]
pub(super) fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    content: &Content,
    pseudo: Sum,
) -> Option<()> {
    let probe_header = content.probe_header;
    datagram(content).emit(frame.at_mut(at)?, probe_header.sum().plus(pseudo));
    probe_header.emit(frame.at_mut(at + HEADER_LEN)?);
    Some(())
}

/// True if the first bytes above IP may be those of a reply.
#[inline(always)]
pub(super) fn may_be_ours(first: &[u8; FIRST_LEN]) -> bool {
    let (high, low) = (
        first_word(first, HEADER_LEN),
        first_word(first, HEADER_LEN + 2),
    );
    (u32::from(high) << 16) | u32::from(low) == MAGIC
}

/// The UDP header of a probe.
#[inline(always)]
pub(super) fn datagram(content: &Content) -> udp::Header {
    udp::Header {
        source: content.flow,
        destination: content.tracker.port,
        len: content.tracker.payload.wrapping_add(HEADER_LEN as u16),
    }
}

/// True if the datagram's length is possible in a packet that has `room` for it. Its checksum may be missing or left for hardware to
/// complete; the token says more.
#[inline(always)]
pub(super) fn is_whole(header: &[u8; udp::LEN], room: usize) -> bool {
    let len = usize::from(udp::parse(header).len);
    len >= REPLY_LEN && len <= room
}

/// What a message with a probe header is to a tracker of this kind: addressed to the tracker's source it is a reply, good or bad.
#[inline(always)]
pub(super) fn proof(reply: &Reply, tracker: &Tracker) -> Option<Proof> {
    match reply.message {
        Message::Datagram if reply.is_told_to(tracker) => Some(Proof::Reply),
        Message::Datagram => Some(Proof::Arrival),
        Message::EchoReply | Message::EchoRequest | Message::Error => None,
    }
}

/// True if an error is the behind address's own, and says that no program has the probe's port.
#[inline(always)]
pub(super) fn refuses(error: &Reply, tracker: &Tracker) -> bool {
    tracker.probe == Probe::Udp.into()
        && icmp::is_port_unreachable(error.kind, error.family)
        && error.sender == address::of_map(&tracker.behind)
}

//! Probes that are ICMP or ICMPv6 echo requests with a probe header, which the echo reply brings back.

use super::{HEADER_LEN, ProbeHeader, frame::Content, reply::Message};
use crate::{
    abi::{Family, Proof},
    wire::{BytesMut, checksum::Sum, icmp, ip::Version, ipv4, ipv6},
};

/// The IP protocol number.
#[inline(always)]
pub const fn protocol(family: Family) -> u8 {
    match family {
        Family::Ipv4 => ipv4::ICMP,
        Family::Ipv6 => ipv6::ICMP,
    }
}

/// Writes the probe above IP.
#[inline(always)]
pub(super) fn emit<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    content: &Content,
    pseudo: Sum,
) -> Option<()> {
    let kind = match content.tracker.family.get() {
        Family::Ipv4 => icmp::ECHO,
        Family::Ipv6 => icmp::ECHO_V6,
    };
    let probe_header = content.probe_header;
    let rest = probe_header.sum().plus(pseudo);
    let sequence = probe_header.number as u16;
    icmp::emit(frame.at_mut(at)?, kind, content.flow, sequence, rest);
    probe_header.emit(frame.at_mut(at + HEADER_LEN)?);
    Some(())
}

/// The echo message, if it is one.
#[inline(always)]
pub(super) fn message<V: Version>(header: &[u8; icmp::LEN]) -> Option<Message> {
    match icmp::parse(header).kind {
        kind if kind == V::ECHO_REPLY => Some(Message::EchoReply),
        kind if kind == V::ECHO => Some(Message::EchoRequest),
        _ => None,
    }
}

/// True if the code and the checksum of an echo message are right. A payload beyond the probe header is zeros, which add nothing.
#[inline(always)]
pub(super) fn is_whole<V: Version>(
    header: &[u8; icmp::LEN],
    probe_header: &ProbeHeader,
    ip: &V::Header,
) -> bool {
    let echo = icmp::parse(header);
    let rest = probe_header.sum().plus(V::icmp_pseudo_header(ip));
    echo.code == 0 && echo.sum(rest).u16(echo.checksum).folded() == 0xffff
}

/// What a message with a probe header is to a tracker of this kind.
#[inline(always)]
pub(super) const fn proof(message: Message) -> Option<Proof> {
    match message {
        Message::EchoReply => Some(Proof::Reply),
        Message::EchoRequest => Some(Proof::Arrival),
        Message::Datagram | Message::Error => None,
    }
}

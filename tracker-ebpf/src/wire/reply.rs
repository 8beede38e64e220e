//! Recognising what may be a reply to one of our probes, cheapest test first.

use super::{Bytes, ethernet, icmp, ipv4, ipv6, probe, vlan};
use crate::abi::{Family, Tracker};

/// An echo reply that bears the mark. Nothing of it is proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it says of the probe that it answers.
    pub mark: probe::Mark,
    /// Tag control information, 0 where the frame has no tag of its own.
    pub vlan: u16,
    /// True where the lengths and checksums of all headers agree with each other.
    pub is_intact: bool,
    addresses: Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    Ipv4 { source: u32, destination: u32 },
    Ipv6 { source: ipv6::Address, destination: ipv6::Address },
}

impl Reply {
    /// True where the reply comes from the tracker's behind address to its source.
    #[inline(always)]
    pub fn answers(&self, tracker: &Tracker) -> bool {
        match self.addresses {
            Addresses::Ipv4 { source, destination } => {
                matches!(tracker.family, Family::Ipv4)
                    && source == super::be32(&tracker.behind, 0)
                    && destination == super::be32(&tracker.source, 0)
            }
            Addresses::Ipv6 { source, destination } => {
                matches!(tracker.family, Family::Ipv6)
                    && source == ipv6::address(&tracker.behind)
                    && destination == ipv6::address(&tracker.source)
            }
        }
    }
}

/// Looks for a reply in an Ethernet frame. `None` means foreign: other protocols, other messages,
/// fragments, IPv4 options and IPv6 extension headers (a probe has none, so neither has what answers
/// it: RFC 1122 section 3.2.2.6), more than one VLAN tag, truncated frames, other payloads.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Option<Reply> {
    let ethertype = ethernet::parse(frame.at(0)?);
    if ethertype == ethernet::VLAN {
        let (control, ethertype) = vlan::parse(frame.at(ethernet::LEN)?);
        return parse_ip::<B, { ethernet::LEN + vlan::LEN }>(frame, ethertype, control);
    }
    parse_ip::<B, { ethernet::LEN }>(frame, ethertype, 0)
}

#[inline(always)]
fn parse_ip<B: Bytes + ?Sized, const AT: usize>(
    frame: &B,
    ethertype: u16,
    vlan: u16,
) -> Option<Reply> {
    match ethertype {
        ethernet::IPV4 => parse_ipv4::<B, AT>(frame, vlan),
        ethernet::IPV6 => parse_ipv6::<B, AT>(frame, vlan),
        _ => None,
    }
}

#[inline(always)]
fn parse_ipv4<B: Bytes + ?Sized, const AT: usize>(frame: &B, vlan: u16) -> Option<Reply> {
    let ip: &[u8; ipv4::LEN] = frame.at(AT)?;
    if !ipv4::carries(ip, ipv4::ICMP) {
        return None;
    }
    let echo: &[u8; icmp::LEN] = frame.at(AT + ipv4::LEN)?;
    if echo[0] != icmp::ECHO_REPLY {
        return None;
    }
    let payload: &[u8; probe::LEN] = frame.at(AT + ipv4::LEN + icmp::LEN)?;
    if !probe::Mark::is_present(payload) {
        return None;
    }
    let echo = icmp::parse(echo);
    let mark = probe::Mark::parse(payload);
    let header = ipv4::parse(ip);
    // A larger payload is zeros, which add nothing to the sum.
    let is_intact = usize::from(header.total_len) >= ipv4::LEN + icmp::LEN + probe::LEN
        && echo.code == 0
        && ipv4::checksum_ok(ip)
        && echo.sum(mark.sum()).u16(echo.checksum).folded() == 0xffff;
    let addresses = Addresses::Ipv4 { source: header.source, destination: header.destination };
    Some(Reply { mark, vlan, is_intact, addresses })
}

#[inline(always)]
fn parse_ipv6<B: Bytes + ?Sized, const AT: usize>(frame: &B, vlan: u16) -> Option<Reply> {
    let ip: &[u8; ipv6::LEN] = frame.at(AT)?;
    if !ipv6::carries(ip, ipv6::ICMP) {
        return None;
    }
    let echo: &[u8; icmp::LEN] = frame.at(AT + ipv6::LEN)?;
    if echo[0] != icmp::ECHO_REPLY_V6 {
        return None;
    }
    let payload: &[u8; probe::LEN] = frame.at(AT + ipv6::LEN + icmp::LEN)?;
    if !probe::Mark::is_present(payload) {
        return None;
    }
    let echo = icmp::parse(echo);
    let mark = probe::Mark::parse(payload);
    let header = ipv6::parse(ip);
    let pseudo =
        ipv6::pseudo_header(header.source, header.destination, header.payload_len, ipv6::ICMP);
    let is_intact = usize::from(header.payload_len) >= icmp::LEN + probe::LEN
        && echo.code == 0
        && echo.sum(mark.sum().plus(pseudo)).u16(echo.checksum).folded() == 0xffff;
    let addresses = Addresses::Ipv6 { source: header.source, destination: header.destination };
    Some(Reply { mark, vlan, is_intact, addresses })
}

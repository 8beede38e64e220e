//! The `detail` beside a tracker's cause: what is known of it in a sentence.

use std::net::IpAddr;

use tracker_ebpf::{abi, verdict::Cause, window};

use crate::{
    config::{self, ReturnHop},
    detector::{engine::SendFailure, flows::Moved},
    plan::{
        address::{address_from, mac_text},
        member::{Fault, MemberPlan, Probing},
        observed::Observed,
    },
};

/// The MAC address by which a frame was sent, if it had one.
fn sender(address: [u8; 6]) -> Option<String> {
    (address != [0; 6]).then(|| mac_text(address))
}

/// By which MAC address a frame was sent, if it had one.
fn sent_by(address: [u8; 6]) -> String {
    sender(address).map_or_else(String::new, |mac| format!(", sent by {mac}"))
}

/// What is known of a tracker.
pub struct Facts<'a> {
    /// The member's settings.
    pub member: &'a config::Member,
    /// How the member is sent for, once that is known.
    pub plan: Option<&'a MemberPlan>,
    /// Position of the tracker in the member's settings.
    pub at: u32,
    /// The tracker's settings.
    pub tracker: &'a config::Tracker,
    /// Why the tracker can't probe, the member's path aside.
    pub fault: Option<&'a Fault>,
    /// What is counted of it.
    pub state: &'a abi::State,
    /// The hub's interfaces.
    pub observed: &'a Observed,
}

impl Facts<'_> {
    /// What is known beside a cause. `foreign_xdp` says whether an XDP program that is not ours sees replies on an
    /// interface first.
    pub fn detail(&self, cause: Cause, foreign_xdp: impl Fn(u32) -> bool) -> Option<String> {
        match cause {
            Cause::NoReply => {
                let probing = self
                    .plan
                    .and_then(|plan| plan.probings.get(self.at as usize));
                if matches!(probing, Some(Ok(probing)) if probing.is_stranded) {
                    return Some(Probing::STRANDED.to_owned());
                }
                self.foreign_xdp(foreign_xdp)
                    .or_else(|| self.elsewhere())
                    .or_else(|| self.returned())
            }
            Cause::WrongPath => {
                let ifindex = self.state.trouble.wrong_path_ifindex;
                let link = self.observed.links.get(&ifindex)?;
                Some(self.wrong_path(&link.name))
            }
            Cause::Unreachable | Cause::Refused => icmp_error(&self.state.trouble),
            _ => {
                let of_path = self.plan.and_then(|plan| plan.path.as_ref().err());
                let faults = of_path.into_iter().chain(self.fault);
                let fault = faults.into_iter().find(|fault| fault.cause == cause);
                fault.map(|fault| fault.detail.clone())
            }
        }
    }

    /// An XDP program that is not ours and sees the member's replies before the receive program does.
    fn foreign_xdp(&self, sees_first: impl Fn(u32) -> bool) -> Option<String> {
        self.plan?.receive.iter().find_map(|ifindex| {
            let link = self.observed.links.get(ifindex)?;
            let id = link.xdp_program?;
            sees_first(*ifindex).then(|| {
                let name = &link.name;
                format!(
                    "XDP program {id} of somebody else on {name} sees replies first and may drop them"
                )
            })
        })
    }

    /// What was wrong with the way of a reply that arrived on the interface `name`.
    fn wrong_path(&self, name: &str) -> String {
        let trouble = &self.state.trouble;
        let own = self.plan.and_then(MemberPlan::ifindex);
        let is_by_hop = own == Some(trouble.wrong_path_ifindex)
            && self.member.return_hop == ReturnHop::Endpoint;
        let ttl = trouble.wrong_path_ttl;
        match self.tracker.return_ttl {
            Some(expected) if expected != ttl => {
                format!("a reply arrived on {name} with TTL {ttl}, not {expected}")
            }
            _ if is_by_hop => {
                let by = sender(self.state.notice.wrong_path_mac);
                let by = by.map_or_else(String::new, |mac| format!(" {mac}"));
                format!(
                    "a reply arrived on {name}, brought by another MAC address{by} than the endpoint's"
                )
            }
            _ => format!(
                "a reply arrived on {name}{}",
                sent_by(self.state.notice.wrong_path_mac)
            ),
        }
    }

    /// From where the replies to the latest probes came, if not from the address and port that were asked.
    fn elsewhere(&self) -> Option<String> {
        let behind: IpAddr = self.tracker.behind;
        let abi::State { trouble, judge, .. } = self.state;
        let is_latest = trouble.error.get() == abi::ProbeError::Elsewhere
            && trouble.error_sequence + u64::from(self.tracker.fall) > judge.judged;
        if !is_latest {
            return None;
        }
        let from = address_from(behind.into(), trouble.error_from);
        Some(match from == behind {
            true => format!("replies come from another port of {from} than the one that is asked"),
            false => format!("replies come from {from}, not from {behind}"),
        })
    }

    /// Where the latest probes came back to the hub, if they did.
    fn returned(&self) -> Option<String> {
        let abi::State { notice, judge, .. } = self.state;
        let newest = window::whole_sequence(notice.returned_sequence, self.state.send.sent);
        if notice.returned == 0 || newest + u64::from(self.tracker.fall) <= judge.judged {
            return None;
        }
        let link = self.observed.links.get(&notice.returned_ifindex)?;
        Some(format!(
            "its probes come back to the hub on {}{}, with TTL {}: a routing loop, unless the hub is the next router on the way \
             to {}",
            link.name,
            sent_by(notice.returned_mac),
            notice.returned_ttl,
            self.tracker.behind
        ))
    }

    /// How a tracker that is answered again is so by another flow than before.
    pub fn flows(&self, moved: Moved, cause: Cause) -> Option<String> {
        if cause != Cause::Replied {
            return None;
        }
        let what = match self.tracker.kind() {
            abi::Probe::Icmp => "identifier",
            abi::Probe::Udp | abi::Probe::Tcp | abi::Probe::Stamp => "source port",
        };
        let Moved {
            from,
            to,
            is_old_lost,
        } = moved;
        Some(match is_old_lost {
            true => format!(
                "old flows are still dropped, new ones pass: {what} {to} is answered, {from} is not"
            ),
            false => format!("answered by a new flow, {what} {to}; that of {what} {from} failed"),
        })
    }

    /// How the member's probes did not leave the hub.
    pub fn failure(&self, failure: SendFailure) -> String {
        let link = self
            .plan
            .and_then(MemberPlan::ifindex)
            .and_then(|ifindex| self.observed.links.get(&ifindex));
        let name = link.map_or("its interface", |link| link.name.as_str());
        match failure {
            SendFailure::Call(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                format!("the kernel does not run the send program: {error}")
            }
            SendFailure::Frame => {
                format!("the kernel gave no frame for the packet, or would not hand it to {name}")
            }
            SendFailure::Device => format!("what is handed to {name} does not leave it"),
        }
    }
}

/// The latest ICMP error that quotes one of a tracker's probes: type, code, meaning and sender.
fn icmp_error(trouble: &abi::TroubleState) -> Option<String> {
    let from = trouble.error_from;
    let (protocol, from) = match trouble.error.get() {
        // A reset has the behind address as source, whatever sent it.
        abi::ProbeError::None | abi::ProbeError::Reset | abi::ProbeError::Elsewhere => return None,
        abi::ProbeError::Icmp => ("ICMP", address_from(abi::Family::Ipv4, from)),
        abi::ProbeError::Icmpv6 => ("ICMPv6", address_from(abi::Family::Ipv6, from)),
        // Type 3 of ICMP is type 1 of ICMPv6.
        abi::ProbeError::Port if trouble.error_type == 3 => {
            ("ICMP", address_from(abi::Family::Ipv4, from))
        }
        abi::ProbeError::Port => ("ICMPv6", address_from(abi::Family::Ipv6, from)),
    };
    let (kind, code) = (trouble.error_type, trouble.error_code);
    let meaning = match protocol {
        "ICMP" => icmp_words(kind, code),
        _ => icmpv6_words(kind, code),
    };
    let meaning = meaning.map_or(String::new(), |words| format!(" ({words})"));
    Some(format!(
        "{protocol} type {kind} code {code}{meaning} from {from}"
    ))
}

/// What an ICMP error says (IANA's registry of ICMP parameters).
const fn icmp_words(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "fragmentation needed",
        (3, 5) => "source route failed",
        (3, 6) => "network unknown",
        (3, 7) => "host unknown",
        (3, 9) => "network administratively prohibited",
        (3, 10) => "host administratively prohibited",
        (3, 11) => "network unreachable for this type of service",
        (3, 12) => "host unreachable for this type of service",
        (3, 13) => "administratively prohibited",
        (11, 0) => "TTL exceeded, as in a routing loop",
        (11, 1) => "fragment reassembly time exceeded",
        (12, _) => "parameter problem",
        _ => return None,
    })
}

/// What an ICMPv6 error says (IANA's registry of ICMPv6 parameters).
const fn icmpv6_words(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "no route to destination",
        (1, 1) => "administratively prohibited",
        (1, 2) => "beyond scope of source address",
        (1, 3) => "address unreachable",
        (1, 4) => "port unreachable",
        (1, 5) => "source address failed policy",
        (1, 6) => "reject route",
        (2, _) => "packet too big",
        (3, 0) => "hop limit exceeded, as in a routing loop",
        (3, 1) => "fragment reassembly time exceeded",
        (4, _) => "parameter problem",
        _ => return None,
    })
}

//! What a line, or a box in it, does to the packets of probes, beyond forwarding them.
//!
//! The left end of each [`tracker_lab::tun::Tunnel`] here is the firewall, the right one the host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tracker_lab::packets::{self, ECHO, Echo, IPV4, IPV6};
use tracker_lab::tun::{Carrier, End, Parcel};

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Where the token begins in a probe's payload.
const TOKEN_AT: usize = 24;

fn at_once(to: End, packet: Vec<u8>) -> Parcel {
    Parcel {
        to,
        after: Duration::ZERO,
        packet,
    }
}

/// Carries everything; replies pass through `edit`.
fn on_replies(mut edit: impl FnMut(Parcel) -> Vec<Parcel> + Send + 'static) -> Carrier {
    Box::new(move |from, packet| {
        let parcel = at_once(from.other(), packet);
        match from {
            End::Left => vec![parcel],
            End::Right => edit(parcel),
        }
    })
}

/// Replies come so much later.
pub fn delay(after: Duration) -> Carrier {
    on_replies(move |parcel| vec![Parcel { after, ..parcel }])
}

/// Each reply comes twice.
pub fn double() -> Carrier {
    on_replies(|parcel| vec![parcel.clone(), parcel])
}

/// Every other reply to each tracker comes so much later, after those to later probes.
pub fn reorder(after: Duration) -> Carrier {
    let mut is_late = BTreeMap::new();
    on_replies(move |parcel| {
        let Some(reply) = Message::read(&parcel.packet) else {
            return vec![parcel];
        };
        let is_late: &mut bool = is_late.entry(reply.kind_of_probe()).or_default();
        *is_late = !*is_late;
        match *is_late {
            true => vec![Parcel { after, ..parcel }],
            false => vec![parcel],
        }
    })
}

/// Flips a bit of each reply and leaves the checksum as it was.
pub fn flip_a_bit() -> Carrier {
    on_replies(|mut parcel| {
        if let Some(byte) = payload(&mut parcel.packet).and_then(|bytes| bytes.get_mut(TOKEN_AT)) {
            *byte ^= 4;
        }
        vec![parcel]
    })
}

/// Replies have two words of the token exchanged, which no checksum notices.
pub fn exchange_words() -> Carrier {
    on_replies(|mut parcel| {
        let token = payload(&mut parcel.packet).and_then(|bytes| bytes.get_mut(TOKEN_AT..));
        if let Some([a, b, c, d, ..]) = token {
            std::mem::swap(a, c);
            std::mem::swap(b, d);
        }
        vec![parcel]
    })
}

/// Replies lose the end of their payload.
pub fn cut() -> Carrier {
    on_replies(|mut parcel| {
        if let Some(message) = Message::read(&parcel.packet) {
            let half = message.payload[..TOKEN_AT].to_vec();
            parcel.packet = message.with(half);
        }
        vec![parcel]
    })
}

/// Answers probes in the place of the host, which gets none: with what `answer` makes of the payload.
pub fn proxy(mut answer: impl FnMut(Vec<u8>) -> Vec<u8> + Send + 'static) -> Carrier {
    Box::new(move |from, packet| {
        let probe = Message::read(&packet).filter(|_| from == End::Left);
        let answered = probe.map(|probe| {
            let payload = answer(probe.payload.clone());
            at_once(End::Left, probe.reply(payload))
        });
        answered.into_iter().collect()
    })
}

/// As [`proxy`]; it repeats the first answer that it ever saw, of each kind of probe.
pub fn cache() -> Carrier {
    let mut first = BTreeMap::new();
    Box::new(move |from, packet| {
        let Some(probe) = Message::read(&packet).filter(|_| from == End::Left) else {
            return Vec::new();
        };
        let payload = first
            .entry(probe.kind_of_probe())
            .or_insert_with(|| probe.payload.clone());
        let payload = payload.clone();
        vec![at_once(End::Left, probe.reply(payload))]
    })
}

fn payload(packet: &mut [u8]) -> Option<&mut [u8]> {
    let head = match packet.first()? >> 4 {
        4 => IPV4,
        _ => IPV6,
    };
    // The headers of ICMP echo and of UDP are equally long.
    packet.get_mut(head + ECHO..)
}

/// An echo or a datagram.
struct Message {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Of ICMP.
    kind: u8,
    /// Identifier and sequence number, or both ports.
    words: [u16; 2],
    payload: Vec<u8>,
}

impl Message {
    fn read(packet: &[u8]) -> Option<Self> {
        let v4 = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let v6 = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
        let (source, destination, protocol, head): (IpAddr, IpAddr, _, _) =
            match packet.first()? >> 4 {
                4 => (v4(12)?.into(), v4(16)?.into(), *packet.get(9)?, IPV4),
                _ => (v6(8)?.into(), v6(24)?.into(), *packet.get(6)?, IPV6),
            };
        let message = packet.get(head..).filter(|rest| rest.len() > ECHO)?;
        let words_at = match protocol {
            ICMP | ICMPV6 => 4,
            UDP => 0,
            _ => return None,
        };
        let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        Some(Self {
            source,
            destination,
            protocol,
            kind: message[0],
            words: [word(words_at), word(words_at + 2)],
            payload: message[ECHO..].to_vec(),
        })
    }

    /// Tells the trackers of a row apart.
    const fn kind_of_probe(&self) -> (u8, bool) {
        (self.protocol, self.source.is_ipv4())
    }

    /// The packet with another payload.
    fn with(&self, payload: Vec<u8>) -> Vec<u8> {
        if self.protocol == UDP {
            return packets::datagram([self.source, self.destination], self.words, &payload);
        }
        let echo = Echo {
            kind: self.kind,
            code: 0,
            identifier: self.words[0],
            sequence: self.words[1],
            payload,
        };
        echo.packet(self.source, self.destination)
    }

    /// What its receiver would answer.
    fn reply(self, payload: Vec<u8>) -> Vec<u8> {
        let words = match self.protocol {
            UDP => [self.words[1], self.words[0]],
            _ => self.words,
        };
        let kind = packets::echo_reply(self.source);
        Self {
            source: self.destination,
            destination: self.source,
            kind,
            words,
            ..self
        }
        .with(payload)
    }
}

//! Frames for the fuzzers: anything that Ethernet carries, and what is genuine with something done to it. Written byte by
//! byte, without the parsers and builders of Tracker or of pnet_packet, which would not make the worst of it.

use std::ops::Range;

use tracker_tests::packets::{ETHERNET, IPV4, IPV6, TAG};
use tracker_tests::random::Random;

/// EtherTypes that announce a VLAN tag.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// IPv6 extension headers: hop-by-hop, routing, fragment, authentication, destination options, mobility.
const EXTENSIONS: [u8; 6] = [0, 43, 44, 51, 60, 135];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// What the programs under test know, so that frames made of it get far.
#[derive(Clone, Debug)]
pub struct Pool {
    pub macs: Vec<[u8; 6]>,
    pub v4: Vec<[u8; 4]>,
    pub v6: Vec<[u8; 16]>,
    pub ports: Vec<u16>,
    /// What may follow the header of ICMP, UDP or TCP.
    pub payloads: Vec<Vec<u8>>,
}

/// Random bytes, the first of them sometimes such that they get past the first look.
pub fn noise(random: &mut Random) -> Vec<u8> {
    let len = ETHERNET + random.below(140);
    let mut noise = random.bytes(len);
    if !random.is_one_in(4) {
        let ethertype = random.pick(&[0x0800u16, 0x86dd, 0x8100, 0x0806]);
        noise[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
    }
    if random.is_one_in(2) && len > ETHERNET + 9 {
        noise[ETHERNET] = *random.pick(&[0x45, 0x60]);
        noise[ETHERNET + 6] = *random.pick(&[0, ICMPV6, UDP, TCP]);
        noise[ETHERNET + 9] = *random.pick(&[ICMP, UDP, TCP]);
    }
    noise
}

/// A frame with headers in their order, and whatever may be in them: tags, options, extension headers, fragments, packets
/// in packets; at times cut off, padded, or with lengths and checksums that are wrong.
pub fn structured(random: &mut Random, pool: &Pool) -> Vec<u8> {
    let is_v6 = random.is_one_in(2);
    let mut frame = Vec::new();
    frame.extend(mac(random, pool));
    frame.extend(mac(random, pool));
    let tags = *random.pick(&[0, 0, 0, 0, 0, 1, 1, 2, 3]);
    for _ in 0..tags {
        frame.extend(random.pick(&TAGS).to_be_bytes());
        let control = *random.pick(&[0, 1, 100, 0xe000, 0xffff]);
        frame.extend(u16::to_be_bytes(control));
    }
    let ethertype = match (random.is_one_in(16), is_v6) {
        (true, _) => random.word() as u16,
        (false, true) => 0x86dd,
        (false, false) => 0x0800,
    };
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet(random, pool, is_v6, 0));
    mend(&mut frame);
    if random.is_one_in(8) {
        // A length field, or what just happens to be there.
        let at =
            ETHERNET + usize::from(tags > 0) * TAG + random.pick(&[2, 3, 4, 5, 24, 25, 44, 45]);
        if let Some(byte) = frame.get_mut(at) {
            *byte = random.byte();
        }
        if random.is_one_in(2) {
            mend(&mut frame);
        }
    }
    if random.is_one_in(8) {
        let len = random.below(frame.len()).max(ETHERNET);
        frame.truncate(len);
    }
    if random.is_one_in(8) {
        let more = random.below(20);
        frame.extend(random.bytes(more));
    }
    frame
}

/// A genuine frame, damaged: mostly in its headers, sometimes with another's parts, and sometimes with checksums that
/// agree with the damage.
pub fn damaged(random: &mut Random, genuine: &[u8], other: &[u8]) -> Vec<u8> {
    let mut frame = genuine.to_vec();
    for _ in 0..*random.pick(&[1, 1, 1, 1, 2, 3, 8]) {
        if random.is_one_in(2) {
            random.damage(&mut frame, other);
            continue;
        }
        // As often as not in the headers alone: the payload is the larger part.
        let head = frame.len().min(ETHERNET + IPV6 + 20);
        let mut headers = frame[..head].to_vec();
        random.damage(&mut headers, &other[..other.len().min(head)]);
        frame.splice(..head, headers);
    }
    if frame.len() < ETHERNET {
        frame.resize(ETHERNET, 0);
    }
    if random.is_one_in(3) {
        mend(&mut frame);
    }
    if random.is_one_in(10) {
        // Alone as often as with other damage.
        if random.is_one_in(2) {
            frame = genuine.to_vec();
        }
        relabel(random, &mut frame);
    }
    frame.truncate(3_000);
    frame
}

fn mac(random: &mut Random, pool: &Pool) -> [u8; 6] {
    let mut mac = *random.pick(&pool.macs);
    if random.is_one_in(16) {
        mac[random.below(6)] = random.byte();
    }
    mac
}

fn address(random: &mut Random, pool: &Pool, is_v6: bool) -> Vec<u8> {
    let mut address = match is_v6 {
        true => random.pick(&pool.v6).to_vec(),
        false => random.pick(&pool.v4).to_vec(),
    };
    if random.is_one_in(16) {
        let at = random.below(address.len());
        address[at] = random.byte();
    }
    address
}

fn port(random: &mut Random, pool: &Pool) -> u16 {
    match random.is_one_in(8) {
        true => random.word() as u16,
        false => *random.pick(&pool.ports),
    }
}

/// An IP packet, whose checksums are yet to be mended.
fn packet(random: &mut Random, pool: &Pool, is_v6: bool, depth: usize) -> Vec<u8> {
    let (protocol, message) = message(random, pool, is_v6, depth);
    let (source, destination) = (address(random, pool, is_v6), address(random, pool, is_v6));
    let hops = *random.pick(&[0, 1, 2, 64, 255]);
    let mut packet = Vec::new();
    if is_v6 {
        let (first, extensions) = extensions(random, protocol);
        let len = (extensions.len() + message.len()) as u16;
        packet.extend([0x60 | random.below(16) as u8, 0, 0, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([first, hops]);
        packet.extend([source, destination, extensions].concat());
    } else {
        let words = match random.is_one_in(8) {
            true => random.below(11),
            false => 0,
        };
        let len = (IPV4 + 4 * words + message.len()) as u16;
        let fragment = match random.is_one_in(8) {
            true => random.word() as u16,
            false => *random.pick(&[0, 0x4000]),
        };
        packet.extend([0x45 + words as u8, random.byte() & 3]);
        packet.extend(len.to_be_bytes());
        packet.extend(random.bytes(2));
        packet.extend(fragment.to_be_bytes());
        packet.extend([hops, protocol, 0, 0]);
        packet.extend([source, destination].concat());
        // No operation, mostly.
        let options = (0..4 * words).map(|_| *random.pick(&[1, 1, 1, 0, 7, 0x83]));
        packet.extend(options.collect::<Vec<u8>>());
    }
    packet.extend(message);
    packet
}

/// Extension headers that lead to `protocol`, and what the first of them is.
fn extensions(random: &mut Random, protocol: u8) -> (u8, Vec<u8>) {
    let count = match random.is_one_in(6) {
        true => 1 + random.below(3),
        false => 0,
    };
    let kinds: Vec<u8> = (0..count).map(|_| *random.pick(&EXTENSIONS)).collect();
    let mut bytes = Vec::new();
    for at in 0..count {
        let mut header = [0u8; 8];
        header[0] = kinds.get(at + 1).copied().unwrap_or(protocol);
        if kinds[at] == FRAGMENT {
            header[2..4].copy_from_slice(&random.pick(&[0u16, 1, 8, 0xfff9]).to_be_bytes());
        }
        bytes.extend(header);
    }
    (kinds.first().copied().unwrap_or(protocol), bytes)
}

/// What an IP packet carries, and its protocol number.
fn message(random: &mut Random, pool: &Pool, is_v6: bool, depth: usize) -> (u8, Vec<u8>) {
    let payload = match random.below(6) {
        0 => Vec::new(),
        1 => {
            let len = random.below(60);
            random.bytes(len)
        }
        _ => random.pick(&pool.payloads).clone(),
    };
    let (source, destination) = (port(random, pool), port(random, pool));
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    let icmp = if is_v6 { ICMPV6 } else { ICMP };
    let mut bytes = Vec::new();
    let protocol = match random.below(16) {
        0..=4 => {
            let kinds: &[u8] = if is_v6 { &[128, 129] } else { &[8, 0] };
            let kind = match random.is_one_in(8) {
                true => random.byte(),
                false => *random.pick(kinds),
            };
            let code = *random.pick(&[0, 0, 0, 0, 0, 0, 1, 0xff]);
            bytes.extend([kind, code, 0, 0]);
            bytes.extend(ports);
            icmp
        }
        5..=8 => {
            bytes.extend(ports);
            let len = (8 + payload.len()) as u16;
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0]);
            UDP
        }
        9..=12 => {
            let words = *random.pick(&[0, 0, 0, 1, 3, 10]);
            bytes.extend(ports);
            bytes.extend(random.bytes(8));
            let offset = match random.is_one_in(8) {
                true => random.byte(),
                false => (5 + words as u8) << 4,
            };
            // SYN, SYN and ACK, ACK, RST, RST and ACK, FIN, all of them.
            let flags = *random.pick(&[0x02, 0x12, 0x10, 0x04, 0x14, 0x11, 0xff]);
            bytes.extend([offset, flags, 4, 0, 0, 0, 0, 0]);
            bytes.extend(vec![1; 4 * words]);
            TCP
        }
        13 | 14 if depth < 2 => {
            // An error about another packet, or a packet in a tunnel.
            let is_inner_v6 = is_v6 ^ random.is_one_in(8);
            let inner = packet(random, pool, is_inner_v6, depth + 1);
            if random.is_one_in(3) {
                bytes.extend(inner);
                let protocol = if is_inner_v6 { 41 } else { 4 };
                return (protocol, bytes);
            }
            let kinds: &[u8] = if is_v6 {
                &[1, 2, 3, 4]
            } else {
                &[3, 4, 5, 11, 12]
            };
            bytes.extend([*random.pick(kinds), random.byte() & 15, 0, 0, 0, 0, 0, 0]);
            bytes.extend(inner);
            return (icmp, bytes);
        }
        _ => *random.pick(&[0, 2, 4, 41, 47, 50, 59, ICMP, ICMPV6, 132, 255]),
    };
    bytes.extend(payload);
    (protocol, bytes)
}

/// Where an IP packet of a frame begins, and its EtherType.
pub fn ip_at(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    loop {
        let ethertype = be16(frame, at)?;
        at += 2;
        if !TAGS.contains(&ethertype) {
            return Some((at, ethertype));
        }
        at += 2;
    }
}

pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The sum of RFC 1071, carries added: all ones where what it covers has a right checksum among it.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Puts right checksums into whatever the frame turns out to be, as far as it can be read.
pub fn mend(frame: &mut [u8]) -> Option<()> {
    let (ip, ethertype) = ip_at(frame)?;
    let Above {
        at,
        end,
        protocol,
        pseudo,
    } = above(frame, ip, ethertype)?;
    if ethertype == 0x0800 {
        let header = ip..ip + usize::from(*frame.get(ip)? & 15) * 4;
        put(frame, ip + 10, &header, &[])?;
    }
    let message = at..end;
    match protocol {
        ICMP => put(frame, at + 2, &message, &[]),
        ICMPV6 => put(frame, at + 2, &message, &pseudo),
        UDP => {
            put(frame, at + 6, &message, &pseudo)?;
            // Zero would say that there is none (RFC 768).
            if frame[at + 6..at + 8] == [0, 0] {
                frame[at + 6..at + 8].fill(0xff);
            }
            Some(())
        }
        TCP => put(frame, at + 16, &message, &pseudo),
        _ => None,
    }
}

/// Gives a packet, or a datagram in it, another length, and checksums that are right for all that they cover but what is
/// cut off.
fn relabel(random: &mut Random, frame: &mut [u8]) -> Option<()> {
    let (ip, ethertype) = ip_at(frame)?;
    let is_v4 = ethertype == 0x0800;
    let at = match random.is_one_in(3) {
        // The length of UDP.
        true => ip + if is_v4 { IPV4 } else { IPV6 } + 4,
        false => ip + if is_v4 { 2 } else { 4 },
    };
    let old = be16(frame, at)?;
    let new = *random.pick(&[
        0,
        8,
        39,
        40,
        59,
        60,
        old.wrapping_sub(1),
        old.wrapping_add(1),
        0xffff,
    ]);
    frame
        .get_mut(at..at + 2)?
        .copy_from_slice(&new.to_be_bytes());
    if is_v4 {
        return put(frame, ip + 10, &(ip..ip + IPV4), &[]);
    }
    if at == ip + 4 && frame.get(ip + 6) == Some(&ICMPV6) {
        // The pseudo-header has it, too: what its sum gains, its complement loses.
        let checksum_at = ip + IPV6 + 2;
        let parts = [!be16(frame, checksum_at)?, new, !old].map(u16::to_be_bytes);
        let checksum = !sum(&[&parts.concat()]);
        frame[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    Some(())
}

/// What an IP packet carries.
struct Above {
    at: usize,
    end: usize,
    protocol: u8,
    pseudo: Vec<u8>,
}

fn above(frame: &[u8], ip: usize, ethertype: u16) -> Option<Above> {
    let (mut at, end, mut protocol, addresses) = match ethertype {
        0x0800 => {
            let at = ip + usize::from(*frame.get(ip)? & 15) * 4;
            let end = ip + usize::from(be16(frame, ip + 2)?);
            (at, end, *frame.get(ip + 9)?, ip + 12..ip + IPV4)
        }
        0x86dd => {
            let end = ip + IPV6 + usize::from(be16(frame, ip + 4)?);
            (ip + IPV6, end, *frame.get(ip + 6)?, ip + 8..ip + IPV6)
        }
        _ => return None,
    };
    if ethertype == 0x86dd {
        while EXTENSIONS.contains(&protocol) && at < end {
            let len = usize::from(*frame.get(at + 1)?);
            let bytes = match protocol {
                FRAGMENT => 8,
                AUTHENTICATION => 4 * (len + 2),
                _ => 8 * (len + 1),
            };
            protocol = *frame.get(at)?;
            at += bytes;
        }
    }
    let end = end.min(frame.len());
    let len = end.checked_sub(at)? as u32;
    let addresses = frame.get(addresses)?;
    let pseudo = [addresses, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
    Some(Above {
        at,
        end,
        protocol,
        pseudo,
    })
}

fn put(frame: &mut [u8], at: usize, covered: &Range<usize>, pseudo: &[u8]) -> Option<()> {
    frame.get_mut(at..at + 2)?.fill(0);
    let checksum = !sum(&[frame.get(covered.clone())?, pseudo]);
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

//! Frames for the tests of the kernel programs, built with pnet_packet alone: what these builders and
//! Tracker's own agree on is right, and not merely the same mistake twice.
//!
//! Each function makes one layer around what it is given. Checksums are right; a test of a wrong one
//! changes the bytes afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::ethernet::{EtherType, EtherTypes, MutableEthernetPacket};
use pnet_packet::icmp::{IcmpCode, IcmpPacket, IcmpType, IcmpTypes, MutableIcmpPacket};
use pnet_packet::icmpv6::{Icmpv6Code, Icmpv6Packet, Icmpv6Type, Icmpv6Types, MutableIcmpv6Packet};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::{Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::tcp::{MutableTcpPacket, TcpPacket};
use pnet_packet::udp::{MutableUdpPacket, UdpPacket};
use pnet_packet::vlan::{ClassOfService, MutableVlanPacket};
use pnet_packet::{icmp, icmpv6, ipv4, tcp, udp};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG: usize = 4;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of an ICMP echo header.
pub const ECHO: usize = 8;
/// Bytes of a probe's probe header.
pub const PROBE_HEADER: usize = 32;

/// A VLAN tag: EtherType that announces it, and tag control information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 (802.1Q), 0x88a8 (802.1ad) or whatever else announces a tag.
    pub protocol: u16,
    /// Priority, drop eligibility and VLAN identifier.
    pub control: u16,
}

impl Tag {
    /// An 802.1Q tag.
    #[must_use]
    pub const fn dot1q(control: u16) -> Self {
        Self {
            protocol: 0x8100,
            control,
        }
    }

    /// An 802.1ad tag.
    #[must_use]
    pub const fn dot1ad(control: u16) -> Self {
        Self {
            protocol: 0x88a8,
            control,
        }
    }
}

/// Both ends of an Ethernet frame and its tags, outermost first.
#[derive(Clone, Debug)]
pub struct Link {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// VLAN tags.
    pub tags: Vec<Tag>,
}

impl Link {
    /// The frame that carries `payload`.
    ///
    /// # Panics
    /// Never: the buffer has room for the headers.
    #[must_use]
    pub fn frame(&self, ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
        let head = ETHERNET + TAG * self.tags.len();
        let mut frame = vec![0; head];
        frame.extend_from_slice(payload);
        let protocols: Vec<EtherType> = self
            .tags
            .iter()
            .map(|tag| EtherType(tag.protocol))
            .chain([ethertype])
            .collect();
        let mut header = MutableEthernetPacket::new(&mut frame).expect("room for a header");
        header.set_destination(self.destination.into());
        header.set_source(self.source.into());
        header.set_ethertype(protocols[0]);
        for (at, tag) in self.tags.iter().enumerate() {
            let bytes = &mut frame[ETHERNET + TAG * at..];
            let mut header = MutableVlanPacket::new(bytes).expect("room for a tag");
            header.set_priority_code_point(ClassOfService((tag.control >> 13) as u8));
            header.set_drop_eligible_indicator((tag.control >> 12 & 1) as u8);
            header.set_vlan_identifier(tag.control & 0xfff);
            header.set_ethertype(protocols[at + 1]);
        }
        frame
    }

    /// The frame that carries an IP packet, whose version decides the EtherType.
    #[must_use]
    pub fn ip(&self, packet: &[u8]) -> Vec<u8> {
        let ethertype = match packet.first().map(|byte| byte >> 4) {
            Some(6) => EtherTypes::Ipv6,
            _ => EtherTypes::Ipv4,
        };
        self.frame(ethertype, packet)
    }
}

/// An IPv4 header's fields.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol.
    pub protocol: IpNextHeaderProtocol,
    /// Identification.
    pub identification: u16,
    /// Time to live.
    pub ttl: u8,
    /// The three flags: 2 is "don't fragment", 1 is "more fragments".
    pub flags: u8,
    /// Offset of the fragment in units of eight bytes.
    pub fragment_offset: u16,
    /// Options, padded to a multiple of four bytes.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// ICMP from one address to another, unfragmented, without options.
    #[must_use]
    pub const fn icmp(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            protocol: IpNextHeaderProtocols::Icmp,
            identification: 0,
            ttl: 64,
            flags: 2,
            fragment_offset: 0,
            options: Vec::new(),
        }
    }

    /// The packet that carries `payload`.
    ///
    /// # Panics
    /// Where the packet would be longer than IPv4 allows.
    #[must_use]
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let head = IPV4 + self.options.len();
        let mut packet = vec![0; head];
        packet.extend_from_slice(payload);
        let total = u16::try_from(packet.len()).expect("an IPv4 packet has at most 65535 bytes");
        packet[IPV4..head].copy_from_slice(&self.options);
        let mut header = MutableIpv4Packet::new(&mut packet).expect("room for a header");
        header.set_version(4);
        header.set_header_length((head / 4) as u8);
        header.set_total_length(total);
        header.set_identification(self.identification);
        header.set_flags(self.flags);
        header.set_fragment_offset(self.fragment_offset);
        header.set_ttl(self.ttl);
        header.set_next_level_protocol(self.protocol);
        header.set_source(self.source);
        header.set_destination(self.destination);
        mend_ipv4(&mut packet);
        packet
    }
}

/// Puts the right checksum into the IPv4 header that `packet` begins with.
///
/// # Panics
/// Where there is no whole header.
pub fn mend_ipv4(packet: &mut [u8]) {
    let mut header = MutableIpv4Packet::new(packet).expect("an IPv4 header");
    let checksum = ipv4::checksum(&header.to_immutable());
    header.set_checksum(checksum);
}

/// An IPv6 packet, with hop limit 64, no traffic class and no flow label.
///
/// # Panics
/// Where the payload is longer than IPv6 allows without a jumbogram.
#[must_use]
pub fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: IpNextHeaderProtocol,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0; IPV6];
    packet.extend_from_slice(payload);
    let mut header = MutableIpv6Packet::new(&mut packet).expect("room for a header");
    header.set_version(6);
    header.set_payload_length(u16::try_from(payload.len()).expect("at most 65535 bytes"));
    header.set_next_header(next_header);
    header.set_hop_limit(64);
    header.set_source(source);
    header.set_destination(destination);
    packet
}

/// An ICMP echo message, or any other: identifier and sequence are what its second word says.
#[derive(Clone, Debug)]
pub struct Echo {
    /// Message type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier.
    pub identifier: u16,
    /// Sequence number.
    pub sequence: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Echo {
    fn bytes(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend_from_slice(&self.identifier.to_be_bytes());
        message.extend_from_slice(&self.sequence.to_be_bytes());
        message.extend_from_slice(&self.payload);
        message
    }

    /// The ICMP message.
    ///
    /// # Panics
    /// Never: the buffer has room for the header.
    #[must_use]
    pub fn v4(&self) -> Vec<u8> {
        let mut message = self.bytes();
        let mut header = MutableIcmpPacket::new(&mut message).expect("room for a header");
        header.set_icmp_type(IcmpType(self.kind));
        header.set_icmp_code(IcmpCode(self.code));
        let checksum = icmp::checksum(&header.to_immutable());
        header.set_checksum(checksum);
        message
    }

    /// The ICMPv6 message, whose checksum covers the addresses.
    ///
    /// # Panics
    /// Never: the buffer has room for the header.
    #[must_use]
    pub fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut message = self.bytes();
        let mut header = MutableIcmpv6Packet::new(&mut message).expect("room for a header");
        header.set_icmpv6_type(Icmpv6Type(self.kind));
        header.set_icmpv6_code(Icmpv6Code(self.code));
        let checksum = icmpv6::checksum(&header.to_immutable(), &source, &destination);
        header.set_checksum(checksum);
        message
    }

    /// The whole IP packet, of the addresses' family.
    ///
    /// # Panics
    /// Where the addresses are of different families.
    #[must_use]
    pub fn packet(&self, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Ipv4::icmp(source, destination).packet(&self.v4())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(
                source,
                destination,
                IpNextHeaderProtocols::Icmpv6,
                &self.v6(source, destination),
            ),
            _ => panic!("{source} and {destination} are of different families"),
        }
    }
}

/// An ICMP error of the addresses' family about `quoted`, the bytes of an IP packet.
///
/// # Panics
/// Where the addresses are of different families.
#[must_use]
pub fn error(from: IpAddr, to: IpAddr, [kind, code]: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    let message = Echo {
        kind,
        code,
        identifier: 0,
        sequence: 0,
        payload: quoted.to_vec(),
    };
    message.packet(from, to)
}

/// Message type of an echo request of the address's family.
#[must_use]
pub const fn echo_request(family: IpAddr) -> u8 {
    match family {
        IpAddr::V4(_) => IcmpTypes::EchoRequest.0,
        IpAddr::V6(_) => Icmpv6Types::EchoRequest.0,
    }
}

/// Message type of an echo reply of the address's family.
#[must_use]
pub const fn echo_reply(family: IpAddr) -> u8 {
    match family {
        IpAddr::V4(_) => IcmpTypes::EchoReply.0,
        IpAddr::V6(_) => Icmpv6Types::EchoReply.0,
    }
}

/// What a probe says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeHeader {
    /// Tracker slot.
    pub tracker: u32,
    /// The instance's tag; the upper half of the sequence number in probes of the time before there were tags.
    pub tag: u32,
    /// Sequence number; its low half is on the wire.
    pub sequence: u64,
    /// When it was sent.
    pub sent_mono_ns: u64,
    /// The token, right or not.
    pub token: u64,
}

impl ProbeHeader {
    /// What the token covers: the tag above the low half of the sequence number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        ((self.tag as u64) << 32) + self.sequence % (1 << 32)
    }

    /// A payload of `len` bytes: the probe header, then zeros.
    #[must_use]
    pub fn payload(&self, len: usize) -> Vec<u8> {
        let mut payload = b"TRKR".to_vec();
        payload.extend_from_slice(&self.tracker.to_be_bytes());
        payload.extend_from_slice(&self.number().to_be_bytes());
        payload.extend_from_slice(&self.sent_mono_ns.to_be_bytes());
        payload.extend_from_slice(&self.token.to_be_bytes());
        payload.resize(len, 0);
        payload
    }

    /// Reads a payload; `None` if it does not begin with a probe header.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(b"TRKR")?;
        let word = |at: usize| Some(u64::from_be_bytes(*rest.get(at..)?.first_chunk()?));
        Some(Self {
            tracker: u32::from_be_bytes(*rest.first_chunk()?),
            tag: u32::from_be_bytes(*rest.get(4..)?.first_chunk()?),
            sequence: u64::from(u32::from_be_bytes(*rest.get(8..)?.first_chunk()?)),
            sent_mono_ns: word(12)?,
            token: word(20)?,
        })
    }
}

/// A UDP datagram, from and to addresses and ports, as a whole IP packet.
///
/// # Panics
/// Where the datagram would be longer than UDP allows, or the addresses are of different families.
#[must_use]
pub fn datagram(addresses: [IpAddr; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; UdpPacket::minimum_packet_size()];
    datagram.extend_from_slice(payload);
    let len = u16::try_from(datagram.len()).expect("at most 65535 bytes");
    let mut header = MutableUdpPacket::new(&mut datagram).expect("room for a header");
    header.set_source(ports[0]);
    header.set_destination(ports[1]);
    header.set_length(len);
    let checksum = match addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            udp::ipv4_checksum(&header.to_immutable(), &source, &destination)
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            udp::ipv6_checksum(&header.to_immutable(), &source, &destination)
        }
        _ => panic!("{addresses:?} are of different families"),
    };
    header.set_checksum(if checksum == 0 { 0xffff } else { checksum });
    match addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => Ipv4 {
            protocol: IpNextHeaderProtocols::Udp,
            ..Ipv4::icmp(source, destination)
        }
        .packet(&datagram),
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            ipv6(source, destination, IpNextHeaderProtocols::Udp, &datagram)
        }
        _ => panic!("{addresses:?} are of different families"),
    }
}

/// A UDP datagram over IPv4 that is not Tracker's.
///
/// # Panics
/// Where the datagram would be longer than UDP allows.
#[must_use]
pub fn udp(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    datagram([source.into(), destination.into()], [7, 33_434], payload)
}

/// A TCP segment over IPv4.
///
/// # Panics
/// Where the segment would be longer than IPv4 allows.
#[must_use]
pub fn tcp(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; TcpPacket::minimum_packet_size()];
    segment.extend_from_slice(payload);
    let mut header = MutableTcpPacket::new(&mut segment).expect("room for a header");
    header.set_source(443);
    header.set_destination(50_000);
    header.set_data_offset(5);
    header.set_flags(0x18);
    header.set_window(1_024);
    let checksum = tcp::ipv4_checksum(&header.to_immutable(), &source, &destination);
    header.set_checksum(checksum);
    let ip = Ipv4 {
        protocol: IpNextHeaderProtocols::Tcp,
        ..Ipv4::icmp(source, destination)
    };
    ip.packet(&segment)
}

/// A TCP segment without data: ports, sequence and acknowledgement number, flags, and options, which are a multiple of
/// four bytes.
///
/// # Panics
/// Where the addresses are of different families.
#[must_use]
pub fn segment(
    addresses: [IpAddr; 2],
    ports: [u16; 2],
    [sequence, acknowledged]: [u32; 2],
    flags: u8,
    window: u16,
    options: &[u8],
) -> Vec<u8> {
    let mut segment = vec![0; TcpPacket::minimum_packet_size()];
    segment.extend_from_slice(options);
    let words = (segment.len() / 4) as u8;
    let mut header = MutableTcpPacket::new(&mut segment).expect("room for a header");
    header.set_source(ports[0]);
    header.set_destination(ports[1]);
    header.set_sequence(sequence);
    header.set_acknowledgement(acknowledged);
    header.set_data_offset(words);
    header.set_flags(flags);
    header.set_window(window);
    match addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            let right = tcp::ipv4_checksum(&header.to_immutable(), &source, &destination);
            header.set_checksum(right);
            let ip = Ipv4 {
                protocol: IpNextHeaderProtocols::Tcp,
                ..Ipv4::icmp(source, destination)
            };
            ip.packet(&segment)
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            let right = tcp::ipv6_checksum(&header.to_immutable(), &source, &destination);
            header.set_checksum(right);
            ipv6(source, destination, IpNextHeaderProtocols::Tcp, &segment)
        }
        _ => panic!("{addresses:?} are of different families"),
    }
}

/// An ARP request.
///
/// # Panics
/// Never: the buffer has the size of the packet.
#[must_use]
pub fn arp(link: &Link, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    use pnet_packet::arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket};
    let mut packet = vec![0; ArpPacket::minimum_packet_size()];
    let mut request = MutableArpPacket::new(&mut packet).expect("room for a request");
    request.set_hardware_type(ArpHardwareTypes::Ethernet);
    request.set_protocol_type(EtherTypes::Ipv4);
    request.set_hw_addr_len(6);
    request.set_proto_addr_len(4);
    request.set_operation(ArpOperations::Request);
    request.set_sender_hw_addr(link.source.into());
    request.set_sender_proto_addr(sender);
    request.set_target_proto_addr(target);
    link.frame(EtherTypes::Arp, &packet)
}

/// A marked message, read by a parser that is independent of the product's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What carries the probe header.
    pub carrier: Carrier,
    /// Whether the checksums over headers and the first [`PROBE_HEADER`] bytes after them are right. That of UDP has a
    /// field of its own.
    pub checksums: bool,
    /// What the headers say is left for the payload, if not negative.
    pub announced: Option<usize>,
    /// The probe header.
    pub probe_header: ProbeHeader,
}

/// What carries a probe header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// An ICMP message.
    Icmp {
        /// Message type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier.
        identifier: u16,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Whether its checksum is right.
        checksum: bool,
    },
}

/// Reads a frame for a marked message, ICMP of its own family or UDP, with at most one 802.1Q tag, neither
/// fragmented nor with anything between the IP header and the message's. What follows the probe header is not looked at:
/// it is zeros.
#[must_use]
pub fn read_marked(frame: &[u8]) -> Option<Seen> {
    use pnet_packet::Packet as _;
    use pnet_packet::ethernet::EthernetPacket;
    use pnet_packet::ipv6::Ipv6Packet;
    use pnet_packet::vlan::VlanPacket;

    let ethernet = EthernetPacket::new(frame)?;
    let (ethertype, packet) = match ethernet.get_ethertype() {
        EtherTypes::Vlan => {
            let tag = VlanPacket::new(&frame[ETHERNET..])?;
            (tag.get_ethertype(), &frame[ETHERNET + TAG..])
        }
        ethertype => (ethertype, ethernet.payload()),
    };
    let (source, destination, protocol, head, room, is_right): (IpAddr, IpAddr, _, _, _, _) =
        match ethertype {
            EtherTypes::Ipv4 => {
                let ip = Ipv4Packet::new(packet)?;
                let is_plain = ip.get_version() == 4
                    && ip.get_header_length() == 5
                    && ip.get_flags() & 1 == 0
                    && ip.get_fragment_offset() == 0;
                if !is_plain {
                    return None;
                }
                (
                    ip.get_source().into(),
                    ip.get_destination().into(),
                    ip.get_next_level_protocol(),
                    IPV4,
                    usize::from(ip.get_total_length()).checked_sub(IPV4),
                    same(ip.get_checksum(), ipv4::checksum(&ip)),
                )
            }
            EtherTypes::Ipv6 => {
                let ip = Ipv6Packet::new(packet)?;
                if ip.get_version() != 6 {
                    return None;
                }
                (
                    ip.get_source().into(),
                    ip.get_destination().into(),
                    ip.get_next_header(),
                    IPV6,
                    Some(usize::from(ip.get_payload_length())),
                    true,
                )
            }
            _ => return None,
        };
    let mut message = packet.get(head..head + ECHO + PROBE_HEADER)?.to_vec();
    let probe_header = ProbeHeader::read(&message[ECHO..])?;
    // A pseudo-header counts the announced length: let the message have it.
    if head == IPV6 {
        message.resize(room.unwrap_or(0).max(ECHO + PROBE_HEADER), 0);
    }
    let (carrier, checksum, announced) = match (protocol, source, destination) {
        (IpNextHeaderProtocols::Icmp, IpAddr::V4(_), _) => {
            let icmp = IcmpPacket::new(&message)?;
            let right = same(icmp.get_checksum(), icmp::checksum(&icmp));
            (carrier(&message), right, room)
        }
        (IpNextHeaderProtocols::Icmpv6, IpAddr::V6(source), IpAddr::V6(destination)) => {
            let icmp = Icmpv6Packet::new(&message)?;
            let sum = icmpv6::checksum(&icmp, &source, &destination);
            (carrier(&message), same(icmp.get_checksum(), sum), room)
        }
        (IpNextHeaderProtocols::Udp, ..) => {
            let udp = UdpPacket::new(&message)?;
            let len = usize::from(udp.get_length());
            message.resize(len.max(ECHO + PROBE_HEADER), 0);
            let whole = UdpPacket::new(&message)?;
            let sum = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    udp::ipv4_checksum(&whole, &source, &destination)
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    udp::ipv6_checksum(&whole, &source, &destination)
                }
                _ => return None,
            };
            let carrier = Carrier::Udp {
                source: whole.get_source(),
                destination: whole.get_destination(),
                checksum: whole.get_checksum() != 0 && same(whole.get_checksum(), sum),
            };
            // The datagram has to fit the packet.
            let announced = room.filter(|room| len <= *room).map(|_| len);
            (carrier, true, announced)
        }
        _ => return None,
    };
    Some(Seen {
        source,
        destination,
        carrier,
        checksums: is_right && checksum,
        announced: announced.and_then(|len| len.checked_sub(ECHO)),
        probe_header,
    })
}

/// An ICMP error that quotes a marked probe, read by a parser that is independent of the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The address that sent it.
    pub source: IpAddr,
    /// The address that it is sent to.
    pub destination: IpAddr,
    /// ICMP type and code.
    pub kind: [u8; 2],
    /// Whether the checksum of its own IP header is right.
    pub checksum: bool,
    /// What that says is left for the quote, if not negative.
    pub announced: Option<usize>,
    /// The probe header in what it quotes.
    pub probe_header: ProbeHeader,
}

/// Reads a frame for an ICMP error of its own family, with at most one 802.1Q tag, whose quote has a probe header where
/// probes have it.
#[must_use]
pub fn read_error(frame: &[u8]) -> Option<Quoted> {
    let tag = match frame.get(12..ETHERNET)? {
        [0x81, 0x00] => TAG,
        _ => 0,
    };
    let packet = frame.get(ETHERNET + tag..)?;
    let (head, errors): (_, &[u8]) = match frame.get(12 + tag..ETHERNET + tag)? {
        [0x08, 0x00] => (IPV4, &[3, 11, 12]),
        [0x86, 0xdd] => (IPV6, &[1, 2, 3, 4]),
        _ => return None,
    };
    let kind: [u8; 2] = *packet.get(head..)?.first_chunk()?;
    // With the quote's own headers taken out, the probe header is where a reply has it.
    let mark_at = 2 * (head + ECHO);
    let marked = packet.get(mark_at..mark_at + PROBE_HEADER)?;
    let reply = [&frame[..ETHERNET + tag], &packet[..head + ECHO], marked].concat();
    let seen = read_marked(&reply)?;
    let is_icmp = matches!(seen.carrier, Carrier::Icmp { .. });
    (is_icmp && errors.contains(&kind[0])).then(|| Quoted {
        source: seen.source,
        destination: seen.destination,
        kind,
        checksum: head == IPV6
            || Ipv4Packet::new(packet)
                .is_some_and(|ip| same(ip.get_checksum(), ipv4::checksum(&ip))),
        announced: seen.announced,
        probe_header: seen.probe_header,
    })
}

fn carrier(message: &[u8]) -> Carrier {
    Carrier::Icmp {
        kind: message[0],
        code: message[1],
        identifier: u16::from_be_bytes([message[4], message[5]]),
    }
}

/// Equal in ones' complement, which has two zeros.
const fn same(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

/// Changes bytes that a builder made.
#[must_use]
pub fn with(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    bytes
}

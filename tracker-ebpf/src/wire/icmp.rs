//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4).

use super::{be16, checksum::Sum, put16};
use crate::abi::Family;

/// Bytes of an echo header.
pub const LEN: usize = 8;

/// Message type of an IPv4 echo request.
pub const ECHO: u8 = 8;
/// Message type of an IPv4 echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Message type of an IPv6 echo request.
pub const ECHO_V6: u8 = 128;
/// Message type of an IPv6 echo reply.
pub const ECHO_REPLY_V6: u8 = 129;

/// True for a message of IPv4 that says what became of a packet: unreachable, time exceeded, parameter
/// problem. Its header is as long as that of an echo.
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// True for a message of ICMPv6 that says what became of a packet: unreachable, packet too big, time exceeded, parameter
/// problem.
#[inline(always)]
pub const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// True for a type and code by which a host says that no program has a port (RFC 792, RFC 4443 section 3.1).
#[inline(always)]
pub const fn is_port_unreachable([kind, code]: [u8; 2], family: Family) -> bool {
    match family {
        Family::Ipv4 => kind == 3 && code == 3,
        Family::Ipv6 => kind == 1 && code == 4,
    }
}

/// An echo header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Message type.
    pub kind: u8,
    /// Code; 0 for both messages.
    pub code: u8,
    /// Checksum as received.
    pub checksum: u16,
    /// Identifier.
    pub identifier: u16,
    /// Sequence number.
    pub sequence: u16,
}

/// Reads a header.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Echo {
    Echo {
        kind: header[0],
        code: header[1],
        checksum: be16(header, 2),
        identifier: be16(header, 4),
        sequence: be16(header, 6),
    }
}

impl Echo {
    /// The header's words without the checksum.
    #[inline(always)]
    pub const fn sum(&self, rest: Sum) -> Sum {
        rest.u16(((self.kind as u16) << 8) | self.code as u16)
            .u16(self.identifier)
            .u16(self.sequence)
    }
}

/// Writes an echo request whose checksum also covers `rest`: payload and pseudo-header.
#[inline(always)]
pub fn emit(header: &mut [u8; LEN], kind: u8, identifier: u16, sequence: u16, rest: Sum) {
    let echo = Echo {
        kind,
        code: 0,
        checksum: 0,
        identifier,
        sequence,
    };
    put16(header, 0, u16::from(kind) << 8);
    put16(header, 2, echo.sum(rest).checksum());
    put16(header, 4, identifier);
    put16(header, 6, sequence);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::icmp::{IcmpPacket, IcmpTypes, checksum, echo_request::EchoRequestPacket};
    use pnet_packet::icmpv6::Icmpv6Types;
    use proptest::prelude::*;

    #[test]
    fn types_are_those_of_pnet() {
        assert_eq!(
            (ECHO, ECHO_REPLY),
            (IcmpTypes::EchoRequest.0, IcmpTypes::EchoReply.0)
        );
        let v6 = (Icmpv6Types::EchoRequest.0, Icmpv6Types::EchoReply.0);
        assert_eq!((ECHO_V6, ECHO_REPLY_V6), v6);
        let errors = [
            IcmpTypes::DestinationUnreachable.0,
            IcmpTypes::TimeExceeded.0,
            IcmpTypes::ParameterProblem.0,
        ];
        let errors_v6 = [
            Icmpv6Types::DestinationUnreachable.0,
            Icmpv6Types::PacketTooBig.0,
            Icmpv6Types::TimeExceeded.0,
            Icmpv6Types::ParameterProblem.0,
        ];
        for kind in 0..=255 {
            assert_eq!(is_error(kind), errors.contains(&kind), "{kind}");
            assert_eq!(is_error_v6(kind), errors_v6.contains(&kind), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(kind: u8, identifier: u16, sequence: u16, payload: u64) {
            let mut header = [0xaa; LEN];
            emit(&mut header, kind, identifier, sequence, Sum::new().u64(payload));
            let message = [header, payload.to_be_bytes()].concat();
            let packet = IcmpPacket::new(&message).expect("a whole message");
            prop_assert_eq!((packet.get_icmp_type().0, packet.get_icmp_code().0), (kind, 0));
            prop_assert_eq!(packet.get_checksum(), checksum(&packet));
            let echo = EchoRequestPacket::new(&message).expect("a whole message");
            prop_assert_eq!((echo.get_identifier(), echo.get_sequence_number()), (identifier, sequence));
        }

        #[test]
        fn parses_what_pnet_reads(header: [u8; LEN], payload: u64) {
            let message = [header, payload.to_be_bytes()].concat();
            let packet = IcmpPacket::new(&message).expect("a whole message");
            let echo = EchoRequestPacket::new(&message).expect("a whole message");
            let parsed = parse(&header);
            prop_assert_eq!(parsed, Echo {
                kind: packet.get_icmp_type().0,
                code: packet.get_icmp_code().0,
                checksum: packet.get_checksum(),
                identifier: echo.get_identifier(),
                sequence: echo.get_sequence_number(),
            });
            prop_assert_eq!(parsed.sum(Sum::new().u64(payload)).checksum(), checksum(&packet));
        }
    }
}

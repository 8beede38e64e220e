//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4).

use super::{be16, checksum::Sum, put};

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
pub const fn emit(header: &mut [u8; LEN], kind: u8, identifier: u16, sequence: u16, rest: Sum) {
    let echo = Echo { kind, code: 0, checksum: 0, identifier, sequence };
    put(header, 0, [kind, 0]);
    put(header, 2, echo.sum(rest).checksum().to_be_bytes());
    put(header, 4, identifier.to_be_bytes());
    put(header, 6, sequence.to_be_bytes());
}

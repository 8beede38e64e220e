//! UDP header (RFC 768).

use super::{be16, checksum::Sum, put16};

/// Protocol number.
pub const PROTOCOL: u8 = 17;
/// Bytes of a header: as many as an ICMP echo header has.
pub const LEN: usize = 8;

/// A header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Bytes of header and payload.
    pub len: u16,
}

/// Reads a header. Not its checksum: over IPv4 it may be missing (zero), and on a virtual device it may be the
/// sum of the pseudo-header alone, left to be completed by hardware that is not there.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Header {
    Header {
        source: be16(header, 0),
        destination: be16(header, 2),
        len: be16(header, 4),
    }
}

impl Header {
    /// Writes the header, with a checksum that also covers `rest`: payload and pseudo-header.
    #[inline(always)]
    pub fn emit(&self, header: &mut [u8; LEN], rest: Sum) {
        let sum = rest.u16(self.source).u16(self.destination).u16(self.len);
        // Zero would mean that there is none; its other form in ones' complement does not (RFC 768).
        let checksum = match sum.checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        put16(header, 0, self.source);
        put16(header, 2, self.destination);
        put16(header, 4, self.len);
        put16(header, 6, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::udp::{UdpPacket, ipv4_checksum};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn pseudo_header(source: u32, destination: u32, len: u16) -> Sum {
        Sum::new().u32(source).u32(destination).u16(17).u16(len)
    }

    fn emitted(fields: Header, rest: Sum, payload: u64) -> Vec<u8> {
        let mut header = [0xaa; LEN];
        fields.emit(&mut header, rest.u64(payload));
        [header, payload.to_be_bytes()].concat()
    }

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(
            source: u16, destination: u16, from: u32, to: u32, payload: u64,
        ) {
            let fields = Header { source, destination, len: 16 };
            let datagram = emitted(fields, pseudo_header(from, to, 16), payload);
            let packet = UdpPacket::new(&datagram).expect("a whole header");
            prop_assert_eq!((packet.get_source(), packet.get_destination()), (source, destination));
            prop_assert_eq!(packet.get_length(), 16);
            let right = ipv4_checksum(&packet, &Ipv4Addr::from(from), &Ipv4Addr::from(to));
            prop_assert_eq!(packet.get_checksum(), if right == 0 { 0xffff } else { right });
            prop_assert_eq!(parse(datagram.first_chunk().expect("a whole header")), fields);
        }
    }

    #[test]
    fn a_checksum_is_never_left_out() {
        let fields = Header {
            source: 0,
            destination: 0,
            len: 16,
        };
        // What makes the sum of everything ffff makes the checksum zero.
        let datagram = emitted(fields, Sum::new(), 0xffff - 16);
        assert_eq!(datagram[6..8], [0xff, 0xff]);
        let datagram = emitted(fields, Sum::new(), 0xffff - 17);
        assert_eq!(datagram[6..8], [0, 1]);
    }
}

//! TCP header (RFC 9293 section 3.1), as far as a SYN and its end need it.

use super::{be16, be32, checksum::Sum, put16, put32};

/// Protocol number.
pub const PROTOCOL: u8 = 6;
/// Bytes of a header without options.
pub const LEN: usize = 20;
/// Where a header has its [`flags`].
pub const FLAGS_AT: usize = 13;
/// Bytes of a SYN, with the options that every host sends: firewalls know no others.
pub const SYN_LEN: usize = LEN + 8;
/// Bytes of ports and sequence number, as many of a header as RFC 792 has an error quote.
pub const PORTS_LEN: usize = 8;

/// What Linux offers for a first window.
const WINDOW: u16 = 64_240;
/// Options of a SYN: a maximum segment size that fits IPv6 over Ethernet, two no-operations, selective
/// acknowledgements permitted (RFC 9293 section 3.2, RFC 2018 section 2).
const OPTIONS: [u32; 2] = [0x0204_05a0, 0x0101_0402];

/// Flags of a segment, as in its header's fourteenth byte.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// A new connection.
    pub const SYN: u8 = 0x02;
    /// The connection is over.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number means something.
    pub const ACK: u8 = 0x10;
}

/// A header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Those of [`flags`].
    pub flags: u8,
}

/// Reads a header. Not its checksum: on a virtual device it may be left to be completed by hardware that is
/// not there.
#[inline(always)]
pub fn parse(header: &[u8; LEN]) -> Header {
    Header {
        source: be16(header, 0),
        destination: be16(header, 2),
        sequence: be32(header, 4),
        acknowledged: be32(header, 8),
        flags: header[FLAGS_AT] & (flags::FIN | flags::SYN | flags::RST | flags::ACK),
    }
}

/// Bytes of a header with its options, as it says itself.
#[inline(always)]
pub const fn len(header: &[u8; LEN]) -> usize {
    (header[12] >> 4) as usize * 4
}

impl Header {
    /// Writes a SYN, with a checksum that also covers `pseudo`.
    #[inline(always)]
    pub fn emit_syn(&self, segment: &mut [u8; SYN_LEN], pseudo: Sum) {
        let [first, second] = OPTIONS;
        let above = ((SYN_LEN as u32 / 4) << 28) | ((self.flags as u32) << 16) | WINDOW as u32;
        let sum = self.sum(above, pseudo).u32(first).u32(second);
        put32(segment, 20, first);
        put32(segment, 24, second);
        self.emit_fixed(segment, above, sum);
    }

    /// Writes a segment without options, data and window, with a checksum that also covers `pseudo`.
    #[inline(always)]
    pub fn emit(&self, segment: &mut [u8; LEN], pseudo: Sum) {
        let above = ((LEN as u32 / 4) << 28) | ((self.flags as u32) << 16);
        self.emit_fixed(segment, above, self.sum(above, pseudo));
    }

    #[inline(always)]
    const fn sum(&self, above: u32, pseudo: Sum) -> Sum {
        pseudo
            .u16(self.source)
            .u16(self.destination)
            .u32(self.sequence)
            .u32(self.acknowledged)
            .u32(above)
    }

    #[inline(always)]
    fn emit_fixed<const N: usize>(&self, segment: &mut [u8; N], above: u32, sum: Sum) {
        put16(segment, 0, self.source);
        put16(segment, 2, self.destination);
        put32(segment, 4, self.sequence);
        put32(segment, 8, self.acknowledged);
        put32(segment, 12, above);
        put16(segment, 16, sum.checksum());
        put16(segment, 18, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::tcp::{TcpOptionNumbers, TcpPacket, ipv4_checksum};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn pseudo(source: u32, destination: u32, len: usize) -> Sum {
        (Sum::new().u32(source).u32(destination))
            .u16(u16::from(PROTOCOL))
            .u16(len as u16)
    }

    proptest! {
        #[test]
        fn pnet_reads_what_is_emitted(
            source: u16, destination: u16, sequence: u32, acknowledged: u32, from: u32, to: u32, is_syn: bool,
        ) {
            let flags = if is_syn { flags::SYN } else { flags::RST };
            let header = Header { source, destination, sequence, acknowledged, flags };
            let mut segment = [0xaa; SYN_LEN];
            let len = if is_syn {
                header.emit_syn(&mut segment, pseudo(from, to, SYN_LEN));
                SYN_LEN
            } else {
                header.emit(segment.first_chunk_mut().expect("a whole header"), pseudo(from, to, LEN));
                LEN
            };
            let packet = TcpPacket::new(&segment[..len]).expect("a whole header");
            prop_assert_eq!((packet.get_source(), packet.get_destination()), (source, destination));
            prop_assert_eq!((packet.get_sequence(), packet.get_acknowledgement()), (sequence, acknowledged));
            prop_assert_eq!((packet.get_flags(), packet.get_urgent_ptr()), (flags, 0));
            prop_assert_eq!(usize::from(packet.get_data_offset()) * 4, len);
            let right = ipv4_checksum(&packet, &Ipv4Addr::from(from), &Ipv4Addr::from(to));
            prop_assert_eq!(packet.get_checksum(), right);
            let options: Vec<_> = packet.get_options_iter().map(|option| option.get_number()).collect();
            let (nop, mss) = (TcpOptionNumbers::NOP, TcpOptionNumbers::MSS);
            let wanted = [mss, nop, nop, TcpOptionNumbers::SACK_PERMITTED];
            prop_assert_eq!(&options[..], if is_syn { &wanted[..] } else { &[] });
            prop_assert_eq!(parse(segment.first_chunk().expect("a whole header")), header);
        }
    }
}

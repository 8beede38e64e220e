//! Packet views and builders, the same code in the kernel and on the host.
//!
//! Every header is read from and written to a fixed-size byte array, so no accessor can panic:
//! whoever has a `&[u8; LEN]` has already been through the one bounds check, [`Bytes::at`].
//! Protocol modules use the same names: `LEN`, `parse`, `emit`.

pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod probe;
pub mod reply;
pub mod token;
pub mod vlan;

/// Bounds-checked access to a packet's bytes.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` where the packet is too short.
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;
}

impl Bytes for [u8] {
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }
}

/// Big-endian `u16` at a constant offset of a header.
#[inline(always)]
const fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Big-endian `u32` at a constant offset of a header.
#[inline(always)]
const fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    ((be16(bytes, at) as u32) << 16) | be16(bytes, at + 2) as u32
}

/// Big-endian `u64` at a constant offset of a header.
#[inline(always)]
const fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    ((be32(bytes, at) as u64) << 32) | be32(bytes, at + 4) as u64
}

/// Copies a field into a header at a constant offset.
#[inline(always)]
const fn put<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, field: [u8; M]) {
    let mut i = 0;
    while i < M {
        bytes[at + i] = field[i];
        i += 1;
    }
}

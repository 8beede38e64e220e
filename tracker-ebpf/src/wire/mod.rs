//! Packet views and builders, the same code in the kernel and on the host.
//!
//! Every header is read from and written to a fixed-size byte array, so no accessor can panic:
//! a `&[u8; LEN]` exists only after the one bounds check, [`Bytes::at`].
//! Protocol modules use the same names: `LEN`, `parse`, `emit`.

pub mod address;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod token;
pub mod udp;
pub mod vlan;

/// Bounds-checked access to a packet's bytes.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` if the packet is too short.
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;
}

/// Bounds-checked access to a packet that may be written.
pub trait BytesMut {
    /// The `N` bytes at `offset`, or `None` if the packet is too short.
    fn at_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
}

impl BytesMut for [u8] {
    fn at_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.get_mut(offset..)?.first_chunk_mut()
    }
}

impl Bytes for [u8] {
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }
}

/// Big-endian `u16` at a constant offset of a header.
#[inline(always)]
pub(crate) fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be(word::load_u16(bytes, at))
}

/// Big-endian `u32` at a constant offset of a header.
#[inline(always)]
pub(crate) fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be(word::load_u32(bytes, at))
}

/// Big-endian `u64` at a constant offset of a header.
#[inline(always)]
pub(crate) fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be(word::load_u64(bytes, at))
}

/// Words in the machine's own order, wherever they lie.
#[cfg(not(target_arch = "bpf"))]
mod word {
    macro_rules! word {
        ($word:ident, $load:ident, $store:ident) => {
            pub(super) fn $load<const N: usize>(bytes: &[u8; N], at: usize) -> $word {
                let word = bytes[at..at + size_of::<$word>()].try_into();
                $word::from_ne_bytes(word.unwrap_or_default())
            }

            pub(super) fn $store<const N: usize>(bytes: &mut [u8; N], at: usize, value: $word) {
                bytes[at..at + size_of::<$word>()].copy_from_slice(&value.to_ne_bytes());
            }
        };
    }
    word!(u16, load_u16, store_u16);
    word!(u32, load_u32, store_u32);
    word!(u64, load_u64, store_u64);
}

/// Words in the machine's own order, wherever they lie, in one instruction each. LLVM's BPF target assumes strict alignment and would take a word
/// of a byte array one byte at a time, which doubled the cost of a reply; the kernel allows unaligned
/// packet access wherever the machine does it well (x86-64 and arm64 do). LLVM's own switch for it
/// (`allows-misaligned-mem-access`) also misaligns the stack, which the verifier refuses.
#[cfg(target_arch = "bpf")]
mod word {
    use core::arch::asm;

    macro_rules! word {
        ($word:ident, $load:ident, $load_asm:literal, $store:ident, $store_asm:literal) => {
            #[inline(always)]
            pub(super) fn $load<const N: usize>(bytes: &[u8; N], at: usize) -> $word {
                let Some(from) = bytes.get(at..at + size_of::<$word>()) else {
                    return 0;
                };
                let word: u64;
                // SAFETY: the slice is readable for the whole word, and the load has no other effect.
                unsafe {
                    asm!(
                        $load_asm,
                        word = lateout(reg) word,
                        from = in(reg) from.as_ptr(),
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                word as $word
            }

            #[inline(always)]
            pub(super) fn $store<const N: usize>(bytes: &mut [u8; N], at: usize, value: $word) {
                let Some(to) = bytes.get_mut(at..at + size_of::<$word>()) else {
                    return;
                };
                // SAFETY: the slice is writable for the whole word.
                unsafe {
                    asm!(
                        $store_asm,
                        to = in(reg) to.as_mut_ptr(),
                        word = in(reg) u64::from(value),
                        options(nostack, preserves_flags),
                    );
                }
            }
        };
    }
    word!(
        u16,
        load_u16,
        "{word} = *(u16 *)({from} + 0)",
        store_u16,
        "*(u16 *)({to} + 0) = {word}"
    );
    word!(
        u32,
        load_u32,
        "{word} = *(u32 *)({from} + 0)",
        store_u32,
        "*(u32 *)({to} + 0) = {word}"
    );
    word!(
        u64,
        load_u64,
        "{word} = *(u64 *)({from} + 0)",
        store_u64,
        "*(u64 *)({to} + 0) = {word}"
    );
}

/// Writes a big-endian `u16` at a constant offset of a header.
#[inline(always)]
pub(crate) fn put16<const N: usize>(bytes: &mut [u8; N], at: usize, value: u16) {
    word::store_u16(bytes, at, value.to_be());
}

/// Writes a big-endian `u32` at a constant offset of a header.
#[inline(always)]
pub(crate) fn put32<const N: usize>(bytes: &mut [u8; N], at: usize, value: u32) {
    word::store_u32(bytes, at, value.to_be());
}

/// Writes a big-endian `u64` at a constant offset of a header.
#[inline(always)]
pub(crate) fn put64<const N: usize>(bytes: &mut [u8; N], at: usize, value: u64) {
    word::store_u64(bytes, at, value.to_be());
}

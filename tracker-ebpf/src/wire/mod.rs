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
fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be(load::u16(bytes, at))
}

/// Big-endian `u32` at a constant offset of a header.
#[inline(always)]
fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be(load::u32(bytes, at))
}

/// Big-endian `u64` at a constant offset of a header.
#[inline(always)]
fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be(load::u64(bytes, at))
}

/// Words in the machine's own order, wherever they lie.
#[cfg(not(target_arch = "bpf"))]
mod load {
    macro_rules! word {
        ($word:ident) => {
            pub(super) fn $word<const N: usize>(bytes: &[u8; N], at: usize) -> $word {
                let word = bytes[at..at + size_of::<$word>()].try_into();
                $word::from_ne_bytes(word.unwrap_or_default())
            }
        };
    }
    word!(u16);
    word!(u32);
    word!(u64);
}

/// The same in one instruction each. LLVM's BPF target assumes strict alignment and would load a word
/// of a byte array one byte at a time, which doubled the cost of a reply; the kernel allows unaligned
/// packet access wherever the machine does it well (x86-64 and arm64 do). LLVM's own switch for it
/// (`allows-misaligned-mem-access`) also misaligns the stack, which the verifier refuses.
#[cfg(target_arch = "bpf")]
mod load {
    use core::arch::asm;

    macro_rules! word {
        ($word:ident, $instruction:literal) => {
            #[inline(always)]
            pub(super) fn $word<const N: usize>(bytes: &[u8; N], at: usize) -> $word {
                let word: u64;
                let Some(bytes) = bytes.get(at..at + size_of::<$word>()) else {
                    return 0;
                };
                // SAFETY: the slice is readable for the whole word, and the load has no other effect.
                unsafe {
                    asm!(
                        $instruction,
                        word = lateout(reg) word,
                        from = in(reg) bytes.as_ptr(),
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                word as $word
            }
        };
    }
    word!(u16, "{word} = *(u16 *)({from} + 0)");
    word!(u32, "{word} = *(u32 *)({from} + 0)");
    word!(u64, "{word} = *(u64 *)({from} + 0)");
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

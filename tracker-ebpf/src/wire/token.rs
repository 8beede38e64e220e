//! The keyed token: SipHash-2-4 (Aumasson, Bernstein 2012) over what a probe says of itself.
//!
//! The input is always three words, so the length block of general SipHash is a constant and is
//! kept: the result equals SipHash-2-4 of the 24 bytes in little-endian order.

/// The token of one probe. `key` is the instance's secret.
#[inline(always)]
pub const fn token(
    key: [u64; 2],
    tracker: u32,
    epoch: u32,
    sequence: u64,
    sent_mono_ns: u64,
) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v = compress(v, ((epoch as u64) << 32) | tracker as u64);
    v = compress(v, sequence);
    v = compress(v, sent_mono_ns);
    v = compress(v, 24 << 56);
    v[2] ^= 0xff;
    v = round(round(round(round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn compress(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(round(v));
    v[0] ^= word;
    v
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher as _;
    use proptest::prelude::*;

    proptest! {
        #[test]
        #[allow(deprecated, reason = "the standard library's SipHash-2-4 is the oracle")]
        fn equals_siphash_2_4(k0: u64, k1: u64, tracker: u32, epoch: u32, sequence: u64, sent: u64) {
            let mut oracle = core::hash::SipHasher::new_with_keys(k0, k1);
            let first = (u64::from(epoch) << 32) | u64::from(tracker);
            for word in [first, sequence, sent] {
                oracle.write(&word.to_le_bytes());
            }
            prop_assert_eq!(token([k0, k1], tracker, epoch, sequence, sent), oracle.finish());
        }
    }
}

//! The Internet checksum (RFC 1071), summed over values instead of memory.

/// A running ones' complement sum of 16-bit words. Holds any sum of fewer than 2^32 words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds one word.
    #[inline(always)]
    pub const fn u16(self, value: u16) -> Self {
        Self(self.0 + value as u64)
    }

    /// Adds two words.
    #[inline(always)]
    pub const fn u32(self, value: u32) -> Self {
        Self(self.0 + (value >> 16) as u64 + (value & 0xffff) as u64)
    }

    /// Adds four words.
    #[inline(always)]
    pub const fn u64(self, value: u64) -> Self {
        self.u32((value >> 32) as u32).u32(value as u32)
    }

    /// Adds another sum.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The folded sum: 0xffff over data that includes its own correct checksum.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        // A sum of fewer than 2^32 words has at most 48 bits: three folds leave 16.
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

    /// The checksum to put on the wire.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// A checksum after `old` words under it were replaced by `new` ones (RFC 1624 equation 3).
#[inline(always)]
pub const fn replaced(checksum: u16, old: Sum, new: Sum) -> u16 {
    Sum(0)
        .u16(!checksum)
        .u16(!old.folded())
        .plus(new)
        .checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 section 3: 0001 f203 f4f5 f6f7 sums to ddf2 after folding.
        let sum = Sum::new().u16(0x0001).u16(0xf203).u32(0xf4f5_f6f7);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
        assert_eq!(Sum::new().u64(0x0001_f203_f4f5_f6f7).folded(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 section 4: 0x5555 becomes 0x3285 under a checksum of 0xdd2f.
        let (old, new) = (Sum::new().u16(0x5555), Sum::new().u16(0x3285));
        assert_eq!(replaced(0xdd2f, old, new), 0x0000);
    }

    #[test]
    fn folds_every_carry() {
        assert_eq!(Sum(0xffff_ffff_ffff).folded(), 0xffff);
        assert_eq!(Sum(0x1_0000_0000).folded(), 1);
        assert_eq!(Sum::new().folded(), 0);
    }
}

//! Round-trip times of a member by bucket, as the receive program counts them. Pure.
//!
//! A bucket ends at a power of two of 1024 ns, or half-way between two: wide enough for few words, and narrow enough that a
//! percentile is right within a third.

/// Buckets. The last one takes what is longer: probes' timeouts end below 69 s.
pub const BUCKETS: usize = 63;
/// Place of the sum of all round-trip times, in nanoseconds, behind the buckets.
pub const SUM: usize = BUCKETS;
/// Words of a member: the buckets' counts, then the sum.
pub const WORDS: usize = 64;
/// What is counted of a member.
pub type Rtts = [u64; WORDS];

/// Nanoseconds of the unit, as a power of two.
const UNIT_BITS: u32 = 9;

/// The bucket of a time by comparisons alone: a search that halves `$span * 2` buckets from `$first` on.
macro_rules! search {
    ($ns:expr, $first:expr, 0) => {
        $first
    };
    ($ns:expr, $first:expr, $span:tt) => {
        if $ns >= const { begin_ns($first + $span) } {
            search!($ns, $first + $span, @ $span)
        } else {
            search!($ns, $first, @ $span)
        }
    };
    ($ns:expr, $first:expr, @ 32) => { search!($ns, $first, 16) };
    ($ns:expr, $first:expr, @ 16) => { search!($ns, $first, 8) };
    ($ns:expr, $first:expr, @ 8) => { search!($ns, $first, 4) };
    ($ns:expr, $first:expr, @ 4) => { search!($ns, $first, 2) };
    ($ns:expr, $first:expr, @ 2) => { search!($ns, $first, 1) };
    ($ns:expr, $first:expr, @ 1) => { search!($ns, $first, 0) };
}

/// The bucket of a round-trip time below `u64::MAX`. Six comparisons with constants: BPF has no instruction that counts leading zeros, and to halve the
/// range by shifts takes three times as many instructions.
#[inline(always)]
pub const fn bucket(rtt_ns: u64) -> usize {
    search!(rtt_ns, 0, 32)
}

/// Where a bucket ends, in nanoseconds; times of just that are in the next one.
pub const fn end_ns(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else {
        return 2 << UNIT_BITS;
    };
    let (octave, half) = (above / 2, above as u64 % 2);
    (3 + half) << octave << UNIT_BITS
}

/// Where a bucket begins, in nanoseconds.
pub const fn begin_ns(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        // The last bucket has no end.
        Some(below) if below == BUCKETS - 1 => u64::MAX,
        Some(below) => end_ns(below),
        None => 0,
    }
}

/// The time within which `share` (0 to 1) of what was counted lies, in nanoseconds, as if each bucket's were spread evenly over it;
/// `None` if nothing was counted.
#[cfg(feature = "user")]
pub fn quantile_ns(counts: &[u64; BUCKETS], share: f64) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    let mut rest = share * total as f64;
    let last = counts.iter().rposition(|count| *count > 0)?;
    for (bucket, count) in counts.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && (rest <= count || bucket == last) {
            let (begin, end) = (begin_ns(bucket) as f64, end_ns(bucket) as f64);
            return Some((begin + (end - begin) * (rest / count).min(1.0)) as u64);
        }
        rest -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_between_the_ends_of_its_bucket() {
        let mut times: std::vec::Vec<u64> = (0..37)
            .flat_map(|bit| {
                let power = 1u64 << bit;
                [
                    power - 1,
                    power,
                    power + 1,
                    power + power / 2 - 1,
                    power + power / 2,
                    power + power / 3,
                ]
            })
            .collect();
        times.extend([0, 60_000_000_000]);
        for time in times {
            let bucket = bucket(time);
            assert!(
                begin_ns(bucket) <= time && time < end_ns(bucket),
                "{time}: {bucket}"
            );
        }
        assert_eq!(bucket(60_000_000_000), 52);
        assert_eq!(bucket(u64::MAX - 1), BUCKETS - 1);
        assert_eq!(
            (end_ns(0), end_ns(1), end_ns(2), end_ns(3)),
            (1_024, 1_536, 2_048, 3_072)
        );
    }

    #[cfg(feature = "user")]
    #[test]
    fn quantiles_are_within_their_buckets() {
        let mut counts = [0; BUCKETS];
        assert_eq!(quantile_ns(&counts, 0.99), None);
        counts[bucket(40_000)] = 99;
        counts[bucket(9_000_000)] = 1;
        let of = |share| bucket(quantile_ns(&counts, share).unwrap());
        assert_eq!(of(0.5), bucket(40_000));
        let most = quantile_ns(&counts, 1.0).unwrap();
        assert_eq!(most, end_ns(bucket(9_000_000)));
        assert_eq!(quantile_ns(&counts, 0.0), Some(begin_ns(bucket(40_000))));
    }
}

//! Rows of a longer step, made of those of a shorter one. Pure.

use tracker_ebpf::rtt::{self, BUCKETS};

use super::{Rtt, Value, p99_us};

/// What is known of a step that is not over.
#[derive(Debug)]
pub(super) struct Bucket {
    step_s: i64,
    /// When it began, if anything is known of it.
    start: Option<i64>,
    /// By the columns' numbers.
    sums: Vec<Option<Sum>>,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    sent: u64,
    lost: u64,
    /// Shortest and longest round-trip time, sum of the means by their weights, and these.
    rtt: Option<(u64, u64, u128, u128)>,
    /// How many replies took how long: of each row, one of a hundred its 99th percentile, and the others its mean.
    spread: Option<Box<[u64; BUCKETS]>>,
}

impl Sum {
    fn add(&mut self, value: &Value) {
        self.sent = self.sent.saturating_add(value.sent);
        self.lost = self.lost.saturating_add(value.lost);
        let Some(Rtt {
            min_us,
            mean_us,
            p99_us,
            max_us,
        }) = value.rtt
        else {
            return;
        };
        // So many replies the mean is of; one that came in the second after its probe is of one.
        let replies = value.sent.saturating_sub(value.lost).max(1);
        let spread = self.spread.get_or_insert_with(|| Box::new([0; BUCKETS]));
        let tail = replies.div_ceil(100);
        for (us, count) in [(mean_us, replies - tail), (p99_us, tail)] {
            let counted = &mut spread[rtt::bucket(us.saturating_mul(1_000))];
            *counted = counted.saturating_add(count);
        }
        let weight = u128::from(replies);
        let (min, max, sum, weights) = self.rtt.get_or_insert((min_us, max_us, 0, 0));
        (*min, *max) = ((*min).min(min_us), (*max).max(max_us));
        *sum += u128::from(mean_us) * weight;
        *weights += weight;
    }

    fn value(&self) -> Value {
        Value {
            sent: self.sent,
            lost: self.lost,
            rtt: self.rtt.map(|(min_us, max_us, sum, weights)| Rtt {
                min_us,
                mean_us: u64::try_from((sum + weights / 2) / weights).unwrap_or(max_us),
                p99_us: p99_us(
                    self.spread
                        .as_deref()
                        .and_then(|counts| rtt::quantile_ns(counts, 0.99)),
                    min_us,
                    max_us,
                ),
                max_us,
            }),
        }
    }
}

/// A row: the columns' numbers, and their values.
pub(super) type Row = Vec<(u32, Value)>;

impl Bucket {
    pub(super) const fn new(step_s: i64) -> Self {
        Self {
            step_s,
            start: None,
            sums: Vec::new(),
        }
    }

    /// Adds a row that began at `time`; returns the row of the step before it, if this one begins another.
    pub(super) fn add(&mut self, time: i64, row: &[(u32, Value)]) -> Option<(i64, Row)> {
        let start = time - time.rem_euclid(self.step_s);
        let ended = if self.start.is_some_and(|begun| begun != start) {
            self.take()
        } else {
            None
        };
        self.start = Some(start);
        for (column, value) in row {
            let column = *column as usize;
            if column >= self.sums.len() {
                self.sums.resize(column + 1, None);
            }
            self.sums[column].get_or_insert_default().add(value);
        }
        ended
    }

    fn take(&mut self) -> Option<(i64, Row)> {
        let start = self.start.take()?;
        let sums = (0u32..).zip(&mut self.sums);
        let row = sums.filter_map(|(column, sum)| Some((column, sum.take()?.value())));
        Some((start, row.collect()))
    }

    /// The columns with values.
    pub(super) fn columns(&self) -> impl Iterator<Item = u32> {
        let sums = (0u32..).zip(&self.sums);
        sums.filter_map(|(column, sum)| sum.is_some().then_some(column))
    }

    /// Gives the columns other numbers; those that have none were not known.
    pub(super) fn renumber(&mut self, numbers: &[Option<u32>]) {
        let sums = std::mem::take(&mut self.sums);
        for (sum, number) in sums.into_iter().zip(numbers) {
            let Some(number) = number.map(|number| number as usize) else {
                continue;
            };
            if number >= self.sums.len() {
                self.sums.resize(number + 1, None);
            }
            self.sums[number] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Round-trip times: shortest, mean, 99th percentile, longest.
    fn value(sent: u64, lost: u64, rtt: Option<(u64, u64, u64, u64)>) -> Value {
        Value {
            sent,
            lost,
            rtt: rtt.map(|(min_us, mean_us, p99_us, max_us)| Rtt {
                min_us,
                mean_us,
                p99_us,
                max_us,
            }),
        }
    }

    #[test]
    fn a_step_is_the_sum_of_its_rows() {
        let mut bucket = Bucket::new(60);
        assert_eq!(
            bucket.add(120, &[(0, value(3, 0, Some((10, 20, 30, 30))))]),
            None
        );
        assert_eq!(
            bucket.add(
                121,
                &[
                    (0, value(10, 9, Some((5, 60, 60, 70)))),
                    (2, value(1, 1, None))
                ]
            ),
            None
        );
        assert_eq!(bucket.add(179, &[]), None);
        let (start, row) = bucket.add(180, &[(0, value(1, 0, None))]).unwrap();
        // Three replies of 20 and one of 60.
        let wanted = vec![
            (0, value(13, 9, Some((5, 30, 64, 70)))),
            (2, value(1, 1, None)),
        ];
        assert_eq!((start, row), (120, wanted));
        // A step without rows has none, and a clock that is set back begins another step.
        assert_eq!(
            bucket.add(60, &[]),
            Some((180, vec![(0, value(1, 0, None))]))
        );
        assert_eq!(bucket.add(300, &[]), Some((60, vec![])));
    }

    #[test]
    fn the_percentile_is_that_of_the_replies_of_all_rows() {
        let mut bucket = Bucket::new(60);
        // One reply a second, two of sixty slow: the slow ones are more than one of a hundred.
        for second in 0..60 {
            let us = if second < 2 { 9_000 } else { 40 };
            bucket.add(second, &[(0, value(1, 0, Some((us, us, us, us))))]);
        }
        // And 600 in one row, one of a hundred slow.
        bucket.add(59, &[(1, value(600, 0, Some((10, 40, 9_000, 9_000))))]);
        let (_, row) = bucket.add(60, &[]).unwrap();
        let p99 = |at: usize| row[at].1.rtt.unwrap().p99_us;
        assert!((6_000..=9_000).contains(&p99(0)), "{}", p99(0));
        assert!((30..=50).contains(&p99(1)), "{}", p99(1));
    }

    #[test]
    fn times_before_1970_have_steps_too() {
        let mut bucket = Bucket::new(60);
        bucket.add(-1, &[]);
        assert_eq!(bucket.add(0, &[]).map(|(start, _)| start), Some(-60));
    }
}

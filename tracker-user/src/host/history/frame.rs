//! The format of the history's files: a header, then frames. Pure.
//!
//! A frame is its length (4 bytes, of what follows the checksum), a CRC-32 of that, a kind, and what the kind says. Numbers are
//! little-endian; those within rows are LEB128.

use std::sync::Arc;

use super::{Rtt, Value};

/// What every file begins with.
const MAGIC: [u8; 8] = *b"TRKHIST\n";
/// Version of the format.
pub(super) const VERSION: u32 = 1;
/// Bytes of a file's header: magic, version, step, time of creation, CRC-32 of these.
pub(super) const HEADER_LEN: usize = 28;
/// Bytes before a frame's kind.
pub(super) const FRAME_HEAD: usize = 8;
/// Longer frames are not written, and are damage when read: a row of a million members has about ten megabytes.
pub(super) const FRAME_MAX: usize = 64 << 20;
/// A frame of column names ends once it is longer than this.
const COLUMNS_MAX: usize = 32 << 10;

/// Names of columns; their numbers go on from those of the file's earlier frames.
pub(super) const COLUMNS: u8 = 1;
/// The values of all columns in one step.
pub(super) const ROW: u8 = 2;
/// An event as JSON.
pub(super) const EVENT: u8 = 3;

/// Whether a column has a value: in the first byte of each.
const PRESENT: u8 = 1;
/// The number of lost probes follows.
const HAS_LOST: u8 = 1 << 1;
/// Round-trip times follow.
const HAS_RTT: u8 = 1 << 2;
/// From this bit on: the number of sent probes, or [`SENT_FOLLOWS`].
const SENT_SHIFT: u32 = 3;
const SENT_FOLLOWS: u8 = u8::MAX >> SENT_SHIFT;

/// Why a header is not one of a file of this version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It is damaged, or of something else.
    Damaged,
    /// It is of this other version.
    Version(u32),
}

/// The header of a file with rows of `step_s` seconds (0: events), made at `created`.
pub(super) fn header(step_s: u32, created: i64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&step_s.to_le_bytes());
    bytes[16..24].copy_from_slice(&created.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// When a file with this header was made.
pub(super) fn parse_header(bytes: &[u8; HEADER_LEN], step_s: u32) -> Result<i64, Foreign> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    if bytes[..8] != MAGIC {
        return Err(Foreign::Damaged);
    }
    if word(8) != VERSION {
        return Err(Foreign::Version(word(8)));
    }
    if word(24) != crc32fast::hash(&bytes[..24]) || word(12) != step_s {
        return Err(Foreign::Damaged);
    }
    Ok(i64::from_le_bytes(std::array::from_fn(|byte| {
        bytes[16 + byte]
    })))
}

/// Appends a frame, whose content `write` appends.
pub(super) fn frame(into: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend([0; FRAME_HEAD]);
    into.push(kind);
    write(into);
    let content = &into[start + FRAME_HEAD..];
    let (len, crc) = (content.len() as u32, crc32fast::hash(content));
    into[start..start + 4].copy_from_slice(&len.to_le_bytes());
    into[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Appends the names of columns, in as many frames as they need.
pub(super) fn columns(into: &mut Vec<u8>, keys: &[Arc<str>]) {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut taken = 0;
        frame(into, COLUMNS, |bytes| {
            let start = bytes.len();
            for key in rest {
                number(bytes, key.len() as u64);
                bytes.extend(key.as_bytes());
                taken += 1;
                if bytes.len() - start >= COLUMNS_MAX {
                    break;
                }
            }
        });
        rest = &rest[taken..];
    }
}

/// Appends a row: the values of the columns by their numbers.
pub(super) fn row(into: &mut Vec<u8>, time: i64, values: &[Option<Value>]) {
    frame(into, ROW, |bytes| {
        bytes.extend(time.to_le_bytes());
        let mut absent = 0;
        for value in values {
            let Some(value) = value else {
                absent += 1;
                continue;
            };
            if absent > 0 {
                bytes.push(0);
                number(bytes, std::mem::take(&mut absent));
            }
            cell(bytes, value);
        }
    });
}

fn cell(into: &mut Vec<u8>, value: &Value) {
    let is_short = value.sent < u64::from(SENT_FOLLOWS);
    let sent = if is_short {
        value.sent as u8
    } else {
        SENT_FOLLOWS
    };
    let mut head = PRESENT | sent << SENT_SHIFT;
    if value.lost > 0 {
        head |= HAS_LOST;
    }
    if value.rtt.is_some() {
        head |= HAS_RTT;
    }
    into.push(head);
    if !is_short {
        number(into, value.sent);
    }
    if value.lost > 0 {
        number(into, value.lost);
    }
    if let Some(Rtt {
        min_us,
        mean_us,
        p99_us,
        max_us,
    }) = value.rtt
    {
        number(into, min_us);
        number(into, mean_us.saturating_sub(min_us));
        number(into, p99_us.saturating_sub(min_us));
        number(into, max_us.saturating_sub(mean_us));
    }
}

/// Appends an event.
pub(super) fn event(into: &mut Vec<u8>, time: i64, json: &[u8]) {
    frame(into, EVENT, |bytes| {
        bytes.extend(time.to_le_bytes());
        bytes.extend(json);
    });
}

fn number(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Takes a number off the front of `bytes`.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a time off the front of a frame's content.
pub(super) fn take_time(bytes: &mut &[u8]) -> Option<i64> {
    let (time, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(i64::from_le_bytes(*time))
}

/// The names in a frame of them.
pub(super) fn keys(mut bytes: &[u8]) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let len = usize::try_from(take_number(&mut bytes)?).ok()?;
        let (key, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        std::str::from_utf8(key).ok()
    })
}

/// The values of a row, less its time, by the columns' numbers.
pub(super) fn cells(mut bytes: &[u8]) -> impl Iterator<Item = (usize, Value)> {
    let mut column = 0usize;
    std::iter::from_fn(move || {
        loop {
            let (head, rest) = bytes.split_first()?;
            bytes = rest;
            if head & PRESENT != 0 {
                let value = take_cell(*head, &mut bytes)?;
                column += 1;
                return Some((column - 1, value));
            }
            column = column.checked_add(usize::try_from(take_number(&mut bytes)?).ok()?)?;
        }
    })
}

fn take_cell(head: u8, bytes: &mut &[u8]) -> Option<Value> {
    let sent = match head >> SENT_SHIFT {
        SENT_FOLLOWS => take_number(bytes)?,
        sent => sent.into(),
    };
    let lost = if head & HAS_LOST != 0 {
        take_number(bytes)?
    } else {
        0
    };
    let rtt = if head & HAS_RTT != 0 {
        let min_us = take_number(bytes)?;
        let mean_us = min_us.checked_add(take_number(bytes)?)?;
        let p99_us = min_us.checked_add(take_number(bytes)?)?;
        let max_us = mean_us.checked_add(take_number(bytes)?)?;
        Some(Rtt {
            min_us,
            mean_us,
            p99_us,
            max_us,
        })
    } else {
        None
    };
    Some(Value { sent, lost, rtt })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let counts = (
            prop_oneof![0u64..40, any::<u64>()],
            prop_oneof![Just(0), 0u64..40, any::<u64>()],
        );
        let rtt = prop::option::of((0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40));
        (counts, rtt).prop_map(|((sent, lost), rtt)| Value {
            sent,
            lost,
            rtt: rtt.map(|(min_us, more, most)| Rtt {
                min_us,
                mean_us: min_us + more,
                p99_us: min_us + most,
                max_us: min_us + more + most,
            }),
        })
    }

    proptest! {
        #[test]
        fn a_row_is_read_as_it_was_written(time in any::<i64>(), values in prop::collection::vec(prop::option::of(value()), 0..40)) {
            let mut bytes = Vec::new();
            row(&mut bytes, time, &values);
            let mut content = &bytes[FRAME_HEAD + 1..];
            prop_assert_eq!(take_time(&mut content), Some(time));
            let mut read = vec![None; values.len()];
            for (column, value) in cells(content) {
                read[column] = Some(value);
            }
            prop_assert_eq!(read, values);
        }

        #[test]
        fn no_bytes_are_too_odd_to_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = cells(&bytes).count();
            let _ = keys(&bytes).count();
        }
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let names: Vec<Arc<str>> = (0..5_000)
            .map(|number| format!("fw-{number}/active/10.0.0.1").into())
            .collect();
        let mut bytes = Vec::new();
        columns(&mut bytes, &names);
        let (mut read, mut rest, mut frames) = (Vec::new(), &bytes[..], 0);
        while !rest.is_empty() {
            let len = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
            let (content, after) = rest[FRAME_HEAD..].split_at(len);
            assert_eq!(content[0], COLUMNS);
            read.extend(keys(&content[1..]).map(str::to_owned));
            (rest, frames) = (after, frames + 1);
        }
        assert!(frames > 1);
        assert!(read.iter().eq(names.iter().map(|name| &**name)));
    }

    #[test]
    fn a_header_says_what_it_is_of() {
        let bytes = header(60, 1_700_000_000);
        assert_eq!(parse_header(&bytes, 60), Ok(1_700_000_000));
        assert_eq!(parse_header(&bytes, 1), Err(Foreign::Damaged));
        for at in 0..HEADER_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            let error = parse_header(&damaged, 60).unwrap_err();
            assert_eq!(
                matches!(error, Foreign::Version(_)),
                (8..12).contains(&at),
                "{at}"
            );
        }
    }
}

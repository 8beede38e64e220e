//! `[steering]`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Steering,
    document::Section,
    keys::{self, Table},
    values::{checked_interface, distinct},
};

/// Reads the table.
pub(super) fn read(section: &Section<'_>) -> Steering {
    section.only(Table::Steering);
    let uplinks = section.entry(&keys::UPLINKS).map(|entry| {
        distinct(&entry, "a list of interface names", |element| {
            element.parsed("an interface name", checked_interface)
        })
    });
    let sources = section.entry(&keys::SOURCES).map(|entry| {
        distinct(&entry, "a list of prefixes", |element| {
            element.parsed("a prefix", |text| {
                text.parse::<IpNet>()
                    .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                    .map_err(|_| "not a prefix; give one such as \"192.0.2.0/24\"".to_owned())
            })
        })
    });
    let mark = section.entry(&keys::MARK).and_then(|entry| entry.integer());
    if section.has(&keys::UPLINKS) && !section.has(&keys::SOURCES) {
        let _ = section.required(&keys::SOURCES, "[\"PREFIX\"], who may send tracker packets");
    }
    if let (Some(entry), false) = (section.entry(&keys::SOURCES), section.has(&keys::UPLINKS))
        && section.has(&keys::MARK)
    {
        entry.refuse("there are no `uplinks` on which their packets could arrive; add `uplinks`, or delete it");
    }
    if !section.has(&keys::UPLINKS) && !section.has(&keys::MARK) {
        section.problem(
            section.at,
            "neither `uplinks` nor `mark`, so nothing would be steered; add one",
        );
    }
    let mask = section.entry(&keys::MARK_MASK);
    let mark_mask = mask.as_ref().and_then(|entry| entry.integer());
    let mark_mask = mark_mask.map_or_else(
        || mark.as_ref().map_or(u32::MAX, |mark| bits_of(mark.value)),
        |mask| mask.value,
    );
    if let Some(mask) = &mask {
        match &mark {
            None => mask.refuse("there is no `mark` to compare with; add `mark`, or delete it"),
            Some(mark) if mark.value & !mark_mask != 0 => {
                mask.refuse("`mark` has bits outside it, so no packet would be steered; give all bits of `mark`");
            }
            Some(_) => {}
        }
    }
    Steering {
        uplinks: uplinks.unwrap_or_default(),
        sources: sources.unwrap_or_default(),
        mark: mark.map(|mark| mark.value),
        mark_mask,
    }
}

/// The bits of a packet's mark that are compared if the file names none: as far as the mark's highest one. Other agents set
/// bits of their own, mostly high ones, and a packet that is not steered because of one is answered by the endpoint
/// itself, as if the service passed it.
const fn bits_of(mark: u32) -> u32 {
    match mark {
        0 => u32::MAX,
        mark => u32::MAX >> mark.leading_zeros(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_compared_as_far_as_its_highest_bit() {
        for (mark, bits) in [
            (1, 1),
            (2, 3),
            (0x7472, 0x7fff),
            (0x8000, 0xffff),
            (0x0001_0000, 0x0001_ffff),
            (1 << 31, u32::MAX),
        ] {
            assert_eq!(bits_of(mark), bits, "{mark:#x}");
        }
    }
}

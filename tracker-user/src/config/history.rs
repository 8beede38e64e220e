//! `[history]`.

use super::{
    document::Section,
    keys::{self, Table},
};

/// Reads the table, or takes its default if there is none: most bytes that the history takes.
pub(super) fn read(section: Option<Section<'_>>) -> u64 {
    let size = section.and_then(|section| {
        section.only(Table::History);
        Some(section.entry(&keys::HISTORY_SIZE)?.size()?.value)
    });
    size.unwrap_or_else(|| keys::HISTORY_SIZE.default_size())
}

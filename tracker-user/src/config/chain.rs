//! `[[chain]]`.

use super::{
    Chain,
    document::{Entry, Section, likeliest},
    keys::{self, Table},
    values::{Names, distinct},
};

/// Reads one chain of these services.
pub(super) fn read(section: &Section<'_>, services: &Names, names: &mut Names) -> Chain {
    section.only(Table::Chain);
    let name = names.read(section, &keys::CHAIN_NAME, "chain");
    let known = |entry: &Entry<'_>| {
        entry.parsed("the name of a service", |text| {
            if services.has(text) {
                return Ok(text.to_owned());
            }
            Err(match likeliest(text, services.all()) {
                Some(likely) => format!("no [[service]] has this name; did you mean {likely:?}?"),
                None => "no [[service]] has this name: there are none; add one".to_owned(),
            })
        })
    };
    let services = section
        .required(&keys::SERVICES, "[\"NAME\", ...]")
        .map(|entry| distinct(&entry, "a list of service names", known))
        .unwrap_or_default();
    Chain { name, services }
}

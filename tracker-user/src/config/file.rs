//! The whole file: from a document to a complete, valid [`Config`].
//!
//! Every function reports what is wrong and goes on with a stand-in, so that one run finds all
//! problems; the caller discards the result when there were any.

use std::collections::HashMap;

use tracker_ebpf::abi;

use super::{
    Api, Config, Probe, Service, Tracker, action, api, chain, document::Section, history, hub,
    keys, keys::Table, misplaced, service, settings::Settings, steering, values::Names,
};

/// Reads the file.
pub(super) fn config(mut root: Section<'_>) -> Config {
    root.only(Table::Root);
    let hub = hub::read(root.take_table(&keys::HUB));
    let defaults = match root.take_table(&keys::DEFAULTS) {
        Some(section) => {
            section.only(Table::Defaults);
            Settings::read(&section, Table::Defaults)
        }
        None => Settings::default(),
    };

    let mut names = Names::default();
    let services: Vec<Service> = root
        .take_named(&keys::SERVICE, &keys::SERVICE_NAME)
        .into_iter()
        .map(|section| service::read(section, &defaults, &mut names))
        .collect();

    for (name, why) in misplaced(services.iter()) {
        root.sink.problem(names.at(name).unwrap_or(root.at), why);
    }

    let mut chain_names = Names::default();
    let chains = root
        .take_named(&keys::CHAIN, &keys::CHAIN_NAME)
        .into_iter()
        .map(|section| chain::read(&section, &names, &mut chain_names))
        .collect();

    let actions = action::read(root.take_named(&keys::ACTION, &keys::ACTION_NAME));

    let trackers = services.iter().flat_map(|service| &service.members);
    if let Some(why) = crowded(trackers.flat_map(|member| &member.trackers)) {
        root.sink.problem(root.at, why);
    }

    let steering = root.take_table(&keys::STEERING);
    let api = root.take_table(&keys::API);
    Config {
        api: api.map_or_else(Api::default, |section| api::read(section, hub.metrics)),
        history_size: history::read(root.take_table(&keys::HISTORY)),
        hub,
        services,
        chains,
        steering: steering.map(|section| steering::read(&section)),
        defaults: Defaults(defaults),
        actions,
    }
}

/// Why trackers of TCP are too many for the source ports by which their replies are told apart, if they are.
pub fn crowded<'t>(trackers: impl Iterator<Item = &'t Tracker>) -> Option<String> {
    let mut of = HashMap::new();
    for tracker in trackers.filter(|tracker| tracker.probe == Probe::Tcp) {
        let count = of.entry((tracker.behind, tracker.port)).or_insert(0);
        *count += 1;
        let most = abi::PORTS_MASK + 1;
        if *count > most {
            return Some(format!(
                "more than {most} trackers with probe \"tcp\" ask port {} of {}, and their replies could not be told \
                 apart; take some away, or have them ask another port or address",
                tracker.port.unwrap_or_default(),
                tracker.behind
            ));
        }
    }
    None
}

/// `[defaults]` of a configuration, for services that are added to it later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults(Settings);

/// A service beside those of the file: as a `[[service]]`.
pub(super) fn service(mut section: Section<'_>, defaults: &Defaults) -> Service {
    section.title = "the service".to_owned();
    service::read(section, &defaults.0, &mut Names::default())
}

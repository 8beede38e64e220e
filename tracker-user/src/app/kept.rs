//! Services of the API at a start: what the state directory keeps, else what the journal of an earlier daemon has.

use std::collections::{HashMap, HashSet};

use crate::{
    config::{self, Defaults, Owner, Service},
    desired::model::Desired,
    host::store::{Contents, Edit, SERVICES},
};

/// The services of the API.
pub(super) struct Kept {
    services: Vec<Service>,
    is_of_journal: bool,
}

/// Reads the services that the state directory keeps. If it has no file, which an older version did not write, those of the journal
/// count.
pub(super) fn services(contents: Option<&Contents>, before: &Desired) -> Kept {
    let Some(contents) = contents else {
        let services = before.services().iter().map(|service| &service.settings);
        let services = services.filter(|service| service.owner == Owner::Api);
        return Kept {
            services: services.cloned().collect(),
            is_of_journal: true,
        };
    };
    let mut services = Vec::new();
    for (name, text) in &contents.services {
        let body = serde_json::from_str(text).map_err(|error| error.to_string());
        let service = body.and_then(|body| {
            config::requested(Some(name), &body, &Defaults::default()).map_err(|invalid| {
                let problems: Vec<_> = invalid.into_iter().map(|one| one.problem).collect();
                problems.join("; and ")
            })
        });
        match service {
            Ok(service) => services.push(service),
            Err(why) => tracing::error!(
                "service {name:?}, which the API was given, cannot be read: {why}; it stays in the state directory until one of \
                 this name is added"
            ),
        }
    }
    // In the order in which they were added, as far as an earlier daemon of this boot knew it; others in that of their names.
    let before = before
        .services()
        .iter()
        .map(|service| service.settings.name.as_str());
    let order: HashMap<&str, usize> = before.zip(0..).collect();
    services.sort_by_key(|service: &Service| {
        order
            .get(service.name.as_str())
            .copied()
            .unwrap_or(usize::MAX)
    });
    Kept {
        services,
        is_of_journal: false,
    }
}

impl Kept {
    /// What the state directory does not keep yet.
    pub(super) fn unkept(&self) -> Vec<Edit> {
        let services = self.services.iter().filter(|_| self.is_of_journal);
        let edits = services.map(|service| {
            Edit::put(
                SERVICES,
                service.name.clone(),
                config::body(service).to_string(),
            )
        });
        edits.collect()
    }

    /// The services that go beside those of the file, and the names of those that the file names too.
    pub(super) fn beside(self, file: &[Service]) -> (Vec<Service>, Vec<String>) {
        let named: HashSet<&str> = file.iter().map(|service| service.name.as_str()).collect();
        let (taken_over, beside): (Vec<_>, Vec<_>) =
            (self.services.into_iter()).partition(|service| named.contains(service.name.as_str()));
        let names = taken_over.into_iter().map(|service| service.name);
        (beside, names.collect())
    }
}

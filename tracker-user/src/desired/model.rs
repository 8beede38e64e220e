//! The desired state: the services of a configuration, with numbers that stay the same while a service or a member goes on
//! (pure).
//!
//! Every part of the daemon that keeps something of a service, member or tracker does so by these numbers, and shares the
//! settings. Which member of a new configuration goes on as which of the old ones is decided here alone, in [`Desired::next`].

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::config::{self, Chain, Owner, Tracker};

/// A service's number. No other service of the same daemon ever has it.
pub type ServiceId = u32;

/// A member's number: its service's, and one that no other member of the service ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// The service.
    pub service: ServiceId,
    /// The member within it.
    pub member: u32,
}

/// A tracker: its member, and its position in the member's present settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackerRef {
    /// The service's number.
    pub service: ServiceId,
    /// The member's number within the service.
    pub member: u32,
    /// Position in [`config::Member::trackers`].
    pub tracker: u32,
}

impl TrackerRef {
    /// The member that it belongs to.
    pub const fn of(self) -> MemberId {
        MemberId {
            service: self.service,
            member: self.member,
        }
    }
}

impl MemberId {
    /// One of the member's trackers.
    pub const fn tracker(self, tracker: u32) -> TrackerRef {
        TrackerRef {
            service: self.service,
            member: self.member,
            tracker,
        }
    }
}

/// A service with its number and those of its members.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its number.
    pub id: ServiceId,
    /// What is configured.
    pub settings: config::Service,
    /// The members' numbers within the service, in the order of the settings.
    members: Vec<u32>,
    /// The number of the next new member.
    next: u32,
}

impl Service {
    fn new(id: ServiceId, settings: config::Service) -> Self {
        let next = settings.members.len() as u32;
        Self {
            id,
            settings,
            members: (0..next).collect(),
            next,
        }
    }

    /// Its members, in the order of the settings.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &Arc<config::Member>)> + Clone {
        let ids = self.members.iter().map(|&member| MemberId {
            service: self.id,
            member,
        });
        ids.zip(&self.settings.members)
    }
}

/// What a member uses that its settings may leave open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Names of the outgoing interface; the first is the one that the kernel shows, alternative names follow.
    pub interface: Vec<String>,
    /// Source addresses of its probes.
    pub sources: Vec<IpAddr>,
}

/// Everything that is wanted. Cheap to clone: services and chains are shared.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    services: Arc<Vec<Arc<Service>>>,
    chains: Arc<[Chain]>,
    /// The number of the next new service.
    next: ServiceId,
}

impl Desired {
    /// The desired state of a configuration that follows no other one.
    pub fn new(services: Vec<config::Service>, chains: Vec<Chain>) -> Self {
        Self::default().next(services, chains, |_| Used::default())
    }

    /// The services, in the order in which they are reported.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The chains, in the order in which they are reported.
    pub const fn chains(&self) -> &Arc<[Chain]> {
        &self.chains
    }

    /// The service of a number.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.id == id)
    }

    /// The service of a name.
    pub fn named(&self, name: &str) -> Option<&Arc<Service>> {
        let mut services = self.services.iter();
        services.find(|service| service.settings.name == name)
    }

    /// All members, in the order of the services and of their settings.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &Arc<config::Member>)> + Clone {
        self.services.iter().flat_map(|service| service.members())
    }

    /// The settings of all trackers.
    pub fn trackers(&self) -> impl Iterator<Item = &Tracker> + Clone {
        self.members().flat_map(|(_, member)| &member.trackers)
    }

    /// The desired state that follows this one when the configuration is replaced. A service goes on if its name stays, a
    /// member if its name stays and its probes leave as before (`goes_on`); `used` says what a present member uses. Settings that did not
    /// change stay the same allocation. Linear in the number of members.
    #[must_use]
    pub fn next(
        &self,
        services: Vec<config::Service>,
        chains: Vec<Chain>,
        used: impl Fn(MemberId) -> Used,
    ) -> Self {
        let mut old: HashMap<&str, &Arc<Service>> = self
            .services
            .iter()
            .map(|service| (service.settings.name.as_str(), service))
            .collect();
        let mut next = self.next;
        let services: Vec<Arc<Service>> = services
            .into_iter()
            .map(|settings| match old.remove(settings.name.as_str()) {
                Some(old) if old.settings == settings => old.clone(),
                Some(old) => Arc::new(followed(old, settings, &used)),
                None => {
                    next += 1;
                    Arc::new(Service::new(next - 1, settings))
                }
            })
            .collect();
        Self {
            services: Arc::new(services),
            chains: match *chains == *self.chains {
                true => self.chains.clone(),
                false => chains.into(),
            },
            next,
        }
    }

    /// The desired state with one more service, whose name must be new; says its number too.
    #[must_use]
    pub fn with(&self, settings: config::Service) -> (Self, ServiceId) {
        let id = self.next;
        let mut new = self.clone();
        let service = Arc::new(Service::new(id, settings));
        Arc::make_mut(&mut new.services).push(service);
        new.next += 1;
        (new, id)
    }

    /// The desired state without a service, which no chain may name.
    #[must_use]
    pub fn without(&self, id: ServiceId) -> Self {
        let mut new = self.clone();
        Arc::make_mut(&mut new.services).retain(|service| service.id != id);
        new
    }

    /// The services that were added at run time and that a new configuration does not name itself, as they are to be added
    /// to it; and the names of those that it does name, which are the configuration's from then on.
    pub fn added(&self, services: &[config::Service]) -> (Vec<config::Service>, Vec<&str>) {
        let named: HashSet<&str> = services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        let added = self.services.iter().map(|service| &service.settings);
        let added = added.filter(|service| service.owner == Owner::Api);
        let (taken_over, stay): (Vec<_>, Vec<_>) =
            added.partition(|service| named.contains(service.name.as_str()));
        let names = taken_over.into_iter().map(|service| service.name.as_str());
        (stay.into_iter().cloned().collect(), names.collect())
    }
}

/// A service in a new configuration, with the numbers of the members that go on. Names are unique in a service, and a member that
/// goes on has the name that it had.
fn followed(
    old: &Service,
    mut settings: config::Service,
    used: &impl Fn(MemberId) -> Used,
) -> Service {
    let before: HashMap<&str, (MemberId, &Arc<config::Member>)> = old
        .members()
        .map(|(id, member)| (&*member.name, (id, member)))
        .collect();
    let mut next = old.next;
    let mut members = Vec::with_capacity(settings.members.len());
    for member in &mut settings.members {
        let found = before.get(&*member.name).copied();
        let found = found.filter(|(id, old)| {
            **old == *member
                || (old.endpoint == member.endpoint && goes_on(old, member, &used(*id)))
        });
        let Some((id, old)) = found else {
            members.push(next);
            next += 1;
            continue;
        };
        if *old == *member {
            *member = old.clone();
        }
        members.push(id.member);
    }
    Service {
        id: old.id,
        settings,
        members,
        next,
    }
}

/// Whether a member of the same service, name and endpoint is the same one: its probes leave by the same interface, from the
/// same source address. `returns` are only where replies may arrive: they change no probe. Role, priority and weight change none
/// either.
pub(super) fn goes_on(old: &config::Member, new: &config::Member, used: &Used) -> bool {
    let same_interface = old.interface == new.interface
        || (new.interface.as_ref()).is_none_or(|name| used.interface.contains(name));
    let same_source = old.source == new.source
        || new
            .source
            .is_none_or(|source| used.sources.contains(&source));
    same_interface && same_source
}

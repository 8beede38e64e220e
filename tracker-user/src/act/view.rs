//! What the daemon's status says of services and members, as far as actions need it (pure).
//!
//! The only place that reads the JSON of status: a member is called by its `name` if it has one, else by its role, else by its
//! endpoint.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::Deserialize;
use tracker_ebpf::verdict::{Cause, Verdict};

use crate::state::admin::{Admin, AdminState};

/// What is known of services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// In the order of the status; later additions after it.
    services: Vec<Service>,
    places: HashMap<String, usize>,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The verdict that counts.
    pub effective: Verdict,
    /// When its verdict last changed, if that is known.
    pub since: Option<Timestamp>,
    /// What an operator imposes on it.
    pub admin: AdminState,
    /// In the order of the status.
    pub members: Vec<Member>,
}

/// A member of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// What it is called within the service.
    pub name: String,
    /// Its address on the hub's side.
    pub endpoint: IpAddr,
    /// The way out to it, if that is known.
    pub interface: Option<String>,
    /// The verdict that counts.
    pub effective: Verdict,
    /// Whether it is among those in use.
    pub is_selected: bool,
    /// Lower first.
    pub priority: u32,
    /// Its share among members of equal priority.
    pub weight: u16,
    /// The mark of packets that go to it, if it has one.
    pub mark: Option<u32>,
    /// The measured cause.
    pub cause: Cause,
    /// What an operator imposes on it.
    pub admin: AdminState,
    /// Its trackers, if they were asked for.
    pub trackers: Vec<Tracker>,
}

/// A tracker of a member.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Tracker {
    /// The behind address.
    pub behind: IpAddr,
    /// The verdict.
    pub verdict: Verdict,
    /// The cause.
    pub cause: Cause,
    /// Probes.
    #[serde(default)]
    pub sent: u64,
    /// Replies.
    #[serde(default)]
    pub received: u64,
}

#[derive(Deserialize)]
struct ToldStatus {
    services: Vec<ToldService>,
}

#[derive(Deserialize)]
struct ToldService {
    name: String,
    verdict: Verdict,
    effective: Option<Verdict>,
    since: Option<Timestamp>,
    #[serde(default)]
    admin: Admin,
    #[serde(default)]
    selected: Selected,
    members: Vec<ToldMember>,
}

/// `selected`: a name of a single member or of a pair, a list of a pool.
#[derive(Deserialize)]
#[serde(untagged)]
enum Selected {
    One(String),
    Many(Vec<String>),
    None(()),
}

impl Default for Selected {
    fn default() -> Self {
        Self::None(())
    }
}

#[derive(Deserialize)]
struct ToldMember {
    name: Option<String>,
    role: Option<String>,
    endpoint: IpAddr,
    interface: Option<String>,
    verdict: Verdict,
    effective: Option<Verdict>,
    priority: Option<u32>,
    weight: Option<u16>,
    mark: Option<u32>,
    #[serde(default)]
    cause: Cause,
    #[serde(default)]
    admin: Admin,
    #[serde(default)]
    trackers: Vec<Tracker>,
}

impl View {
    /// Reads a status.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let ToldStatus { services } = serde_json::from_slice(json)?;
        Ok(Self::of(services.into_iter().map(Service::of).collect()))
    }

    /// What is known of these services.
    pub fn of(services: Vec<Service>) -> Self {
        let names = services.iter().enumerate();
        let places = names.map(|(at, service)| (service.name.clone(), at));
        Self {
            places: places.collect(),
            services,
        }
    }

    /// All services.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// All services, taken out.
    pub fn into_services(self) -> Vec<Service> {
        self.services
    }

    /// The service of a name.
    pub fn get(&self, name: &str) -> Option<&Service> {
        Some(&self.services[*self.places.get(name)?])
    }

    /// The place of a service in the order.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// Takes what is known of some services now, and which there are no longer.
    pub fn take(&mut self, services: Vec<Service>, gone: &[String]) {
        for service in services {
            match self.places.get(&service.name) {
                Some(at) => self.services[*at] = service,
                None => {
                    let at = self.services.len();
                    self.places.insert(service.name.clone(), at);
                    self.services.push(service);
                }
            }
        }
        if !gone.is_empty() {
            let gone: HashSet<&String> = gone.iter().collect();
            let mut services = std::mem::take(&mut self.services);
            services.retain(|service| !gone.contains(&service.name));
            *self = Self::of(services);
        }
    }
}

impl Service {
    fn of(told: ToldService) -> Self {
        let selected = &told.selected;
        let is_selected = |name: &str| match selected {
            Selected::One(one) => one == name,
            Selected::Many(many) => many.iter().any(|one| one == name),
            Selected::None(()) => false,
        };
        let members = told.members.into_iter().map(|told| {
            let role = told.role.as_deref();
            let priority = u32::from(role == Some("standby"));
            let priority = told.priority.unwrap_or(priority);
            let name = told.name.filter(|name| !name.is_empty()).or(told.role);
            let name = name.unwrap_or_else(|| told.endpoint.to_string());
            Member {
                is_selected: is_selected(&name),
                name,
                endpoint: told.endpoint,
                interface: told.interface,
                effective: told.effective.unwrap_or(told.verdict),
                priority,
                weight: told.weight.unwrap_or(1).max(1),
                mark: told.mark,
                cause: told.cause,
                admin: told.admin.state,
                trackers: told.trackers,
            }
        });
        Self {
            members: members.collect(),
            effective: told.effective.unwrap_or(told.verdict),
            since: told.since,
            admin: told.admin.state,
            name: told.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_pools_are_read() {
        let text = br#"{"hub":"h","instance":"default","run":"ab","services":[
            {"name":"pair","verdict":"up","cause":"replied","selected":"standby","effective":"up","members":[
              {"role":"active","endpoint":"10.9.0.2","interface":null,"verdict":"down","effective":"down","trackers":[]},
              {"role":"standby","endpoint":"10.9.1.2","interface":"eth2","verdict":"up","effective":"up","trackers":[]}]},
            {"name":"pool","verdict":"up","effective":"down","admin":{"state":"up","reason":null,"until":null,"by":null},
             "selected":["a","10.9.3.2"],"members":[
              {"name":"a","priority":3,"weight":7,"endpoint":"10.9.2.2","interface":"eth3","verdict":"up"},
              {"endpoint":"10.9.3.2","interface":"eth4","verdict":"unknown"}]}],"chains":[]}"#;
        let view = View::read(text).expect("a status");
        let short = |service: &Service| -> Vec<_> {
            let members = service.members.iter();
            members
                .map(|member| {
                    let Member {
                        name,
                        effective,
                        is_selected,
                        priority,
                        weight,
                        ..
                    } = member.clone();
                    (name, effective, is_selected, priority, weight)
                })
                .collect()
        };
        let [pair, pool] = view.services() else {
            panic!("{view:?}");
        };
        let expected = [
            ("active".to_owned(), Verdict::Down, false, 0, 1),
            ("standby".to_owned(), Verdict::Up, true, 1, 1),
        ];
        assert_eq!(short(pair), expected);
        assert_eq!(
            (pair.effective, pair.admin),
            (Verdict::Up, AdminState::Auto)
        );
        let expected = [
            ("a".to_owned(), Verdict::Up, true, 3, 7),
            ("10.9.3.2".to_owned(), Verdict::Unknown, true, 0, 1),
        ];
        assert_eq!(short(pool), expected);
        assert_eq!(
            (pool.effective, pool.admin),
            (Verdict::Down, AdminState::Up)
        );
        assert!(View::read(b"{}").is_err());

        let mut view = view;
        let names = |view: &View| -> Vec<String> {
            let services = view.services().iter();
            services.map(|one| one.name.clone()).collect()
        };
        let renamed = |name: &str| Service {
            name: name.to_owned(),
            ..view.services()[0].clone()
        };
        let (new, changed) = (renamed("new"), renamed("pool"));
        view.take(vec![new, changed], &["pair".to_owned()]);
        assert_eq!(names(&view), ["pool", "new"]);
        assert_eq!(view.get("pool").map(|one| one.effective), Some(Verdict::Up));
        assert_eq!(view.get("pair"), None);
    }
}

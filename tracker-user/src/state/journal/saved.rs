//! Services and chains as version 1 of the journal has them: structures of their own, so that the configuration's types can
//! change without a change of what older daemons wrote and newer ones read. Conversions name every field, so that a new setting
//! does not compile until it is decided what a journal without it means.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{self, Expect, Flow, Owner, Probe, Protocol, Refused, ReturnHop, Role};

/// [`Owner`] in the words of version 1.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Origin {
    Config,
    RunTime,
}

#[derive(Serialize, Deserialize)]
struct Service {
    name: String,
    origin: Origin,
    members: Vec<Member>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
    #[serde(default, skip_serializing_if = "Policy::is_any")]
    members_up: Policy,
    /// The opposite of `preempt`, so that a journal without it means what it meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keeps: bool,
}

#[derive(Serialize, Deserialize)]
struct Member {
    /// What a version before pools wrote is always there; such a version does not read a member without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    /// Absent if it is the role, else the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Absent if the role says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    /// Absent if it is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    endpoint: IpAddr,
    interface: Option<String>,
    source: Option<IpAddr>,
    returns: Vec<String>,
    return_hop: ReturnHop,
    policy: Policy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
    trackers: Vec<Tracker>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
enum Policy {
    #[default]
    Any,
    All,
    AtLeast(u16),
}

impl Policy {
    const fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }
}

impl From<config::Policy> for Policy {
    fn from(policy: config::Policy) -> Self {
        match policy {
            config::Policy::Any => Self::Any,
            config::Policy::All => Self::All,
            config::Policy::AtLeast(count) => Self::AtLeast(count),
        }
    }
}

impl From<Policy> for config::Policy {
    fn from(saved: Policy) -> Self {
        match saved {
            Policy::Any => Self::Any,
            Policy::All => Self::All,
            Policy::AtLeast(count) => Self::AtLeast(count),
        }
    }
}

/// A tracker's settings, and both conversions: each setting is named once.
macro_rules! tracker {
    ($($setting:ident: $type:ty),+ $(,)?) => {
        /// What an older daemon did not write has its default of the configuration.
        #[derive(Serialize, Deserialize)]
        #[serde(default)]
        struct Tracker {
            $($setting: $type),+
        }

        impl From<&config::Tracker> for Tracker {
            fn from(tracker: &config::Tracker) -> Self {
                let config::Tracker { $($setting),+ } = *tracker;
                Self { $($setting),+ }
            }
        }

        impl From<Tracker> for config::Tracker {
            fn from(saved: Tracker) -> Self {
                let Tracker { $($setting),+ } = saved;
                Self { $($setting),+ }
            }
        }
    };
}

tracker! {
    behind: IpAddr,
    probe: Probe,
    port: Option<u16>,
    protocol: Protocol,
    interval: Duration,
    timeout: Duration,
    fall: u8,
    rise: u8,
    payload: u16,
    expect: Expect,
    flow: Flow,
    dscp: u8,
    refused: Refused,
    hold_down: Duration,
    return_ttl: Option<u8>,
}

#[derive(Serialize, Deserialize)]
struct Chain {
    name: String,
    services: Vec<String>,
}

impl Default for Tracker {
    fn default() -> Self {
        Self::from(&config::Tracker::default())
    }
}

impl From<&config::Service> for Service {
    fn from(service: &config::Service) -> Self {
        let config::Service {
            name,
            owner,
            members,
            members_up,
            preempt,
            after,
        } = service;
        Self {
            name: name.clone(),
            members_up: (*members_up).into(),
            keeps: !preempt,
            origin: match owner {
                Owner::File => Origin::Config,
                Owner::Api => Origin::RunTime,
            },
            members: members
                .iter()
                .map(|member| Member::from(&**member))
                .collect(),
            after: after.clone(),
        }
    }
}

impl From<Service> for config::Service {
    fn from(saved: Service) -> Self {
        let Service {
            name,
            origin,
            members,
            after,
            members_up,
            keeps,
        } = saved;
        Self {
            name,
            after,
            members_up: members_up.into(),
            preempt: !keeps,
            owner: match origin {
                Origin::Config => Owner::File,
                Origin::RunTime => Owner::Api,
            },
            members: members
                .into_iter()
                .map(|member| Arc::new(config::Member::from(member)))
                .collect(),
        }
    }
}

impl From<&config::Member> for Member {
    fn from(member: &config::Member) -> Self {
        let config::Member {
            name,
            role,
            priority,
            weight,
            endpoint,
            interface,
            source,
            returns,
            return_hop,
            policy,
            mark,
            trackers,
        } = member;
        let is_default = *name == config::default_name(*role, *endpoint);
        Self {
            role: *role,
            name: (!is_default).then(|| name.to_string()),
            priority: role.is_none().then_some(*priority),
            weight: Some(*weight).filter(|weight| *weight != 1),
            endpoint: *endpoint,
            interface: interface.clone(),
            source: *source,
            returns: returns.clone(),
            return_hop: *return_hop,
            policy: (*policy).into(),
            mark: *mark,
            trackers: trackers.iter().map(Tracker::from).collect(),
        }
    }
}

impl From<Member> for config::Member {
    fn from(saved: Member) -> Self {
        let Member {
            role,
            name,
            priority,
            weight,
            endpoint,
            interface,
            source,
            returns,
            return_hop,
            policy,
            mark,
            trackers,
        } = saved;
        Self {
            name: match name {
                Some(name) => name.into(),
                None => config::default_name(role, endpoint),
            },
            role,
            priority: priority.unwrap_or_else(|| role.map_or(0, Role::priority)),
            weight: weight.unwrap_or(1),
            endpoint,
            interface,
            source,
            returns,
            return_hop,
            policy: policy.into(),
            mark,
            trackers: trackers.into_iter().map(config::Tracker::from).collect(),
        }
    }
}

/// For serde: a service.
pub(super) mod service {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Service, config};

    pub(in super::super) fn serialize<S: Serializer>(
        service: &config::Service,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Service::from(service).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<config::Service, D::Error> {
        Service::deserialize(deserializer).map(config::Service::from)
    }
}

/// For serde: chains.
pub(super) mod chains {
    use super::{Chain, Deserialize, Deserializer, Serializer, config};

    pub(in super::super) fn serialize<S: Serializer>(
        chains: &[config::Chain],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(chains.iter().map(|config::Chain { name, services }| Chain {
            name: name.clone(),
            services: services.clone(),
        }))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<config::Chain>, D::Error> {
        let chains = Vec::<Chain>::deserialize(deserializer)?.into_iter();
        let chains = chains.map(|Chain { name, services }| config::Chain { name, services });
        Ok(chains.collect())
    }
}

//! The hub and the real services behind it.
//!
//! ```text
//!   hub ---------------------------- firewall ---------------------------- host
//!       eth1     10.9.0.0/24     eth0        eth1    10.30.0.0/24     eth0
//!       10.9.0.1          10.9.0.2           10.30.0.1            10.30.0.2
//!                         (endpoint)                              10.20.0.9 (behind)
//!       2001:db8:9::1  2001:db8:9::2                         2001:db8:20::9
//! ```
//! The hub has no route to 10.20.0.0/24 nor to 2001:db8:20::/64. Service `n` is on the hub's `ethN`, with `n - 1` in
//! the place of the zero; namespaces isolate, so that every lab has the same addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::netns::{Namespace, Owner};

/// The firewall: what comes from the hub's side is counted and forwarded, unless the chain `outage` drops it.
const FIREWALL: &str = r#"
table inet firewall {
  counter forwarded {}
  chain outage {}
  chain forward {
    type filter hook forward priority filter; policy drop;
    jump outage
    iifname "eth0" counter name forwarded accept
    iifname "eth1" accept
  }
}
"#;

/// A hub and its services.
#[derive(Debug)]
pub struct Lab {
    /// Where the daemon runs.
    pub hub: Namespace,
    services: Vec<Service>,
    owner: Owner,
}

impl Lab {
    /// A hub with one service.
    ///
    /// # Errors
    /// Those of the `ip` and `nft` commands that build it.
    pub fn new() -> Result<Self> {
        Self::with_services(1)
    }

    /// A hub with `count` services, on `eth1`, `eth2` and so on.
    ///
    /// # Errors
    /// Those of the `ip` and `nft` commands that build it.
    pub fn with_services(count: u8) -> Result<Self> {
        let owner = Owner::new()?;
        let hub = Namespace::new(&owner, "hub")?;
        let services = (1..=count)
            .map(|number| Service::new(&owner, &hub, number))
            .collect::<Result<_>>()?;
        Ok(Self {
            hub,
            services,
            owner,
        })
    }

    /// The first service: the only one, in most tests.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.services[0]
    }

    /// All services.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The name that this lab's namespaces share.
    #[must_use]
    pub fn id(&self) -> &str {
        self.owner.id()
    }
}

/// A firewall and the host behind it.
#[derive(Debug)]
pub struct Service {
    /// The inline device; `eth0` is on the hub's side, `eth1` on the host's.
    pub firewall: Namespace,
    /// What can be reached only through it; `eth0`.
    pub host: Namespace,
    /// The hub's interface.
    pub interface: String,
    /// The hub's address on it.
    pub hub_address: Ipv4Addr,
    /// The hub's IPv6 address on it.
    pub hub_address6: Ipv6Addr,
    /// The firewall's own address.
    pub endpoint: Ipv4Addr,
    /// The firewall's own IPv6 address.
    pub endpoint6: Ipv6Addr,
    /// The host's address.
    pub behind: Ipv4Addr,
    /// The host's IPv6 address.
    pub behind6: Ipv6Addr,
}

impl Service {
    fn new(owner: &Owner, hub: &Namespace, number: u8) -> Result<Self> {
        let net = number - 1;
        let at = |third, host| Ipv6Addr::new(0x2001, 0xdb8, third, net.into(), 0, 0, 0, host);
        let service = Self {
            firewall: Namespace::new(owner, &format!("fw{number}"))?,
            host: Namespace::new(owner, &format!("host{number}"))?,
            interface: format!("eth{number}"),
            hub_address: Ipv4Addr::new(10, 9, net, 1),
            hub_address6: at(0x9, 1),
            endpoint: Ipv4Addr::new(10, 9, net, 2),
            endpoint6: at(0x9, 2),
            behind: Ipv4Addr::new(10, 20, net, 9),
            behind6: at(0x20, 9),
        };
        let (firewall, host) = (&service.firewall, &service.host);
        firewall.sysctl("net/ipv4/ip_forward", "1")?;
        firewall.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        firewall.nft(FIREWALL)?;
        let (behind, behind6) = (service.behind, service.behind6);
        let [gateway, host_address] = [1, 2].map(|last| Ipv4Addr::new(10, 30, net, last));
        let [gateway6, host_address6] = [1, 2].map(|last| at(0x30, last));
        firewall.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}\n\
             address add {gateway}/24 dev eth1\n\
             address add {gateway6}/64 dev eth1\n\
             link set eth1 up\n",
            host.name()
        ))?;
        host.ip(&format!(
            "address add {host_address}/24 dev eth0\n\
             address add {host_address6}/64 dev eth0\n\
             address add {behind}/32 dev eth0\n\
             address add {behind6}/128 dev eth0\n\
             link set eth0 up\n\
             route add default via {gateway}\n\
             route add ::/0 via {gateway6}\n"
        ))?;
        firewall.ip(&format!(
            "route add 10.20.0.0/16 via {host_address}\n\
             route add 2001:db8:20::/48 via {host_address6}\n"
        ))?;
        service.plug(hub)?;
        Ok(service)
    }

    /// Connects hub and firewall: a new veth pair with all addresses, as after a technician's visit.
    ///
    /// # Errors
    /// When they are connected already.
    pub fn plug(&self, hub: &Namespace) -> Result<()> {
        let interface = &self.interface;
        hub.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\n\
             address add {}/24 dev {interface}\n\
             address add {}/64 dev {interface}\n",
            self.firewall.name(),
            self.hub_address,
            self.hub_address6,
        ))?;
        self.firewall.ip(&format!(
            "address add {}/24 dev eth0\n\
             address add {}/64 dev eth0\n\
             link set eth0 up\n",
            self.endpoint, self.endpoint6
        ))?;
        hub.ip(&format!("link set {interface} up\n"))
    }

    /// The whole of 10.20.0.0/16 answers on the host, for many behind addresses (AnyIP).
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn answer_for_all(&self) -> Result<()> {
        self.host.ip("route add local 10.20.0.0/16 dev lo\n")
    }

    /// The firewall forwards nothing any more; its own address still answers.
    ///
    /// # Errors
    /// Those of nft.
    pub fn break_forwarding(&self) -> Result<()> {
        self.firewall.nft("add rule inet firewall outage drop\n")
    }

    /// The firewall no longer forwards to one IPv4 address.
    ///
    /// # Errors
    /// Those of nft.
    pub fn block(&self, address: impl std::fmt::Display) -> Result<()> {
        self.firewall.nft(&format!(
            "add rule inet firewall outage ip daddr {address} drop\n"
        ))
    }

    /// The firewall forwards everything again.
    ///
    /// # Errors
    /// Those of nft.
    pub fn mend(&self) -> Result<()> {
        self.firewall.nft("flush chain inet firewall outage\n")
    }

    /// How many packets the firewall has forwarded from the hub's side, by its own count.
    ///
    /// # Errors
    /// Those of nft, or when its output is not what it should be.
    pub fn forwarded(&self) -> Result<u64> {
        let listing = self
            .firewall
            .run("nft -j list counter inet firewall forwarded")?;
        let listing: serde_json::Value =
            serde_json::from_str(&listing).context("parse nft's JSON")?;
        listing["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|item| item["counter"]["packets"].as_u64())
            .with_context(|| format!("find the packet count in {listing}"))
    }

    /// The config of this service in the short form, with its IPv4 behind address.
    #[must_use]
    pub fn toml(&self, name: &str) -> String {
        self.toml_with(name, "")
    }

    /// Like [`Self::toml`], with more lines of TOML.
    #[must_use]
    pub fn toml_with(&self, name: &str, more: &str) -> String {
        format!(
            "[[service]]\nname = \"{name}\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\"]\n{more}\n",
            self.endpoint, self.interface, self.behind
        )
    }
}

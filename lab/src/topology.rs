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

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    /// Whatever else the hub's side has.
    others: Vec<Namespace>,
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
            others: Vec::new(),
            owner,
        })
    }

    /// A hub with `count` services on its one `eth1`: a switch connects it with all firewalls; the `n`-th is
    /// 10.9.0.`n + 1`.
    ///
    /// # Errors
    /// Those of the `ip` and `nft` commands that build it.
    pub fn with_services_on_one_interface(count: u8) -> Result<Self> {
        let mut lab = Self::with_services(count)?;
        let switch = lab.add_namespace("switch")?;
        switch.ip("link add bridge type bridge\nlink set bridge up\n")?;
        let attach = |port: &str| {
            switch.ip(&format!(
                "link set {port} master bridge\nlink set {port} up\n"
            ))
        };
        for (number, service) in (1..).zip(&mut lab.services) {
            lab.hub.ip(&format!(
                "link set {} netns {} name port{number}\n",
                service.interface,
                switch.name()
            ))?;
            attach(&format!("port{number}"))?;
            let old = format!(
                "address del {}/24 dev eth0\naddress del {}/64 dev eth0\n",
                service.endpoint, service.endpoint6
            );
            service.interface = "eth1".to_owned();
            service.hub_address = Ipv4Addr::new(10, 9, 0, 1);
            service.hub_address6 = Ipv6Addr::new(0x2001, 0xdb8, 0x9, 0, 0, 0, 0, 1);
            service.endpoint = Ipv4Addr::new(10, 9, 0, number + 1);
            service.endpoint6 =
                Ipv6Addr::new(0x2001, 0xdb8, 0x9, 0, 0, 0, 0, u16::from(number) + 1);
            service.firewall.ip(&format!(
                "{old}address add {}/24 dev eth0\naddress add {}/64 dev eth0\n",
                service.endpoint, service.endpoint6
            ))?;
        }
        lab.hub.ip(&format!(
            "link add eth1 type veth peer name port0 netns {}\n\
             address add 10.9.0.1/24 dev eth1\n\
             address add 2001:db8:9::1/64 dev eth1\n\
             link set eth1 up\n",
            switch.name()
        ))?;
        attach("port0")?;
        lab.others.push(switch);
        Ok(lab)
    }

    /// One more namespace of this lab's, for whatever a test needs.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn add_namespace(&self, role: &str) -> Result<Namespace> {
        Namespace::new(&self.owner, role)
    }

    /// The kernel believes a neighbour for up to 45 seconds, and takes ten more to find out. From now on, on the hub's
    /// `eth1`, for about two.
    ///
    /// # Errors
    /// When the interface does not exist.
    pub fn doubt_neighbours_soon(&self) -> Result<()> {
        for (timer, value) in [
            ("base_reachable_time_ms", "1000"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "100"),
            ("interval_probe_time_ms", "500"),
        ] {
            self.hub
                .sysctl(&format!("net/ipv4/neigh/eth1/{timer}"), value)?;
        }
        Ok(())
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

    /// A second cable between hub and firewall, `ethN` at both ends, in 10.9.`100 + N`.0/24 and its IPv6 like.
    ///
    /// # Errors
    /// When there is such an interface already.
    pub fn second_cable(&self, hub: &Namespace, number: u8) -> Result<()> {
        let net = 100 + number;
        hub.ip(&format!(
            "link add eth{number} type veth peer name eth{number} netns {}\n\
             address add 10.9.{net}.1/24 dev eth{number}\n\
             address add 2001:db8:9:{net}::1/64 dev eth{number}\n\
             link set eth{number} up\n",
            self.firewall.name(),
        ))?;
        self.firewall.ip(&format!(
            "address add 10.9.{net}.2/24 dev eth{number}\n\
             address add 2001:db8:9:{net}::2/64 dev eth{number}\n\
             link set eth{number} up\n"
        ))
    }

    /// From now on what the firewall sends to the hub takes the [`Self::second_cable`] of this number.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn reply_by_cable(&self, number: u8) -> Result<()> {
        let net = 100 + number;
        self.firewall.ip(&format!(
            "route replace {}/32 via 10.9.{net}.1\nroute replace {}/128 via 2001:db8:9:{net}::1\n",
            self.hub_address, self.hub_address6
        ))
    }

    /// From now on what the firewall sends to the hub takes the first cable again.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn reply_directly(&self) -> Result<()> {
        self.firewall.ip(&format!(
            "route replace {}/32 dev eth0\nroute replace {}/128 dev eth0\n",
            self.hub_address, self.hub_address6
        ))
    }

    /// The whole of 10.20.0.0/16 and 2001:db8:20::/48 answers on the host, for many behind addresses (AnyIP).
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn answer_for_all(&self) -> Result<()> {
        self.host
            .ip("route add local 10.20.0.0/16 dev lo\nroute add local 2001:db8:20::/48 dev lo\n")
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

    /// Changes the MAC address of the firewall's interface to the hub without an announcement: until
    /// [`Service::asks_for_neighbours`] the firewall solicits no neighbour. A reply that it is forwarding in the moment of the
    /// change would make it solicit the hub, whose kernel learns the new address from the solicitation; so this is to last until
    /// trackers are down.
    ///
    /// # Errors
    /// Those of nft and `ip`.
    pub fn change_mac_silently(&self, mac: &str) -> Result<()> {
        self.firewall.nft(
            "add table arp mute\n\
             add chain arp mute out { type filter hook output priority 0; }\n\
             add rule arp mute out arp operation request drop\n\
             add table ip6 mute\n\
             add chain ip6 mute out { type filter hook output priority 0; }\n\
             add rule ip6 mute out icmpv6 type nd-neighbor-solicit drop\n",
        )?;
        self.firewall.ip(&format!("link set eth0 address {mac}\n"))
    }

    /// Lets the firewall solicit neighbours again after [`Service::change_mac_silently`]: it needs that to send replies to an IPv6
    /// address that it has not heard from.
    ///
    /// # Errors
    /// Those of nft.
    pub fn asks_for_neighbours(&self) -> Result<()> {
        self.firewall
            .nft("delete table arp mute\ndelete table ip6 mute\n")
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
        self.toml_to(name, self.behind, more)
    }

    /// Like [`Self::toml_with`], with another behind address.
    #[must_use]
    pub fn toml_to(&self, name: &str, behind: impl Display, more: &str) -> String {
        format!(
            "[[service]]\nname = \"{name}\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{behind}\"]\n{more}\n",
            self.endpoint, self.interface
        )
    }

    /// The behind addresses of both families.
    #[must_use]
    pub fn behinds(&self) -> [IpAddr; 2] {
        [self.behind.into(), self.behind6.into()]
    }
}

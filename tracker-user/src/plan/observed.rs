//! What the hub's kernel says of its interfaces, addresses and neighbours.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

/// `NETDEV_XDP_ACT_NDO_XMIT` of the netdev family (Linux 6.3): the device takes redirected frames.
pub const XDP_ACT_NDO_XMIT: u64 = 1 << 2;
/// `NETDEV_XDP_ACT_BASIC`: the driver runs XDP programs itself.
pub const XDP_ACT_BASIC: u64 = 1;
/// `NETDEV_XDP_ACT_RX_SG`: the driver runs XDP programs also on packets of several buffers, if they are made for it.
pub const XDP_ACT_RX_SG: u64 = 1 << 5;

/// One address of an interface. The kernel tells addresses apart by address, prefix length and peer: an interface may have one
/// address with two prefix lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length: the peer's, if there is one.
    pub prefix: u8,
    /// The other end, if one is set (`ip address add A peer B/L`).
    pub peer: Option<IpAddr>,
    /// False while duplicate address detection runs or after it failed.
    pub is_usable: bool,
    /// Its preferred lifetime is over (RFC 4862 section 5.5.4).
    pub is_deprecated: bool,
    /// IPv6: a temporary address (RFC 8981). IPv4: not the first address of its network.
    pub is_secondary: bool,
    /// `RT_SCOPE_*`: 0 is universe, 253 link, 254 host.
    pub scope: u8,
    /// When it was set, hundredths of a second since the machine started.
    pub created: u32,
}

impl Address {
    /// An address that may be used.
    pub const fn new(ip: IpAddr, prefix: u8) -> Self {
        Self {
            ip,
            prefix,
            peer: None,
            is_usable: true,
            is_deprecated: false,
            is_secondary: false,
            scope: 0,
            created: 0,
        }
    }

    /// Whether an address is in this one's network.
    pub fn reaches(&self, ip: IpAddr) -> bool {
        let network = ipnet::IpNet::new(self.peer.unwrap_or(self.ip), self.prefix);
        network.is_ok_and(|network| network.contains(&ip))
    }

    /// Whether the kernel takes both for one address of an interface.
    pub fn is(&self, other: &Self) -> bool {
        (self.ip, self.prefix, self.peer) == (other.ip, other.prefix, other.peer)
    }
}

/// An 802.1Q device's place on its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// ifindex of the device that carries the tagged frames.
    pub parent: u32,
    /// VLAN identifier.
    pub id: u16,
}

/// What packets of an interface begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkType {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// The IP header: tun, WireGuard, GRE, IPIP, SIT. There are no MAC addresses and no neighbours.
    Ip,
    /// Anything else: the loopback interface, InfiniBand.
    Other,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub alternatives: Vec<String>,
    /// Its MAC address; zeros if it has none.
    pub mac: [u8; 6],
    /// What its packets begin with.
    pub link_type: LinkType,
    /// True if the kernel resolves no neighbours (`IFF_NOARP`).
    pub is_noarp: bool,
    /// True if it is a bond, whose driver runs XDP programs on the legs.
    pub is_bond: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// True if it is a bridge.
    pub is_bridge: bool,
    /// True if nothing arrives from outside: the loopback, a dummy.
    pub is_dead_end: bool,
    /// True when it is administratively up and has a carrier.
    pub is_running: bool,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Where it is an 802.1Q device.
    pub vlan: Option<Vlan>,
    /// The device that first sees what arrives on this one: a VLAN's, macvlan's or ipvlan's parent.
    pub parent: Option<u32>,
    /// Whether frames to its own MAC address, which is not its parent's, arrive on the parent first: a macvlan, macvtap.
    pub is_macvlan: bool,
    /// The device that takes over what arrives on this one: the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// Its `xdp-features`; `None` if the kernel doesn't tell (before Linux 6.3).
    pub xdp_features: Option<u64>,
    /// The XDP program that is attached to it, ours or another.
    pub xdp_program: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

/// What the names of private interfaces begin with; eight hexadecimal digits and `a` or `b` follow.
pub const PRIVATE_PREFIX: &str = "trk-";

/// Names of the two private interfaces of an instance; they fit the kernel's 15 characters.
pub fn private_names(instance: &str) -> [String; 2] {
    // FNV-1a: stable across builds, so that `cleanup` finds what an older daemon made.
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    ["a", "b"].map(|end| format!("{PRIVATE_PREFIX}{hash:08x}{end}"))
}

/// What decides whether a device takes a redirected frame: its MTU and its `xdp-features`.
pub type DeviceCaps = (u32, Option<u64>);

impl Link {
    /// Its name and its alternative names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let alternatives = self.alternatives.iter().map(String::as_str);
        std::iter::once(self.name.as_str()).chain(alternatives)
    }

    /// What it can take now.
    pub const fn caps(&self) -> DeviceCaps {
        (self.mtu, self.xdp_features)
    }

    /// True if the device says that it takes redirected frames.
    pub fn takes_frames(&self) -> bool {
        self.xdp_features
            .is_some_and(|features| features & XDP_ACT_NDO_XMIT != 0)
    }

    /// True if no packet of a service arrives: the loopback, and the private interfaces of this
    /// instance and of others.
    pub fn is_private(&self) -> bool {
        let of_instance = |rest: &str| {
            let (digits, end) = rest.split_at_checked(8).unwrap_or_default();
            digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && matches!(end, "a" | "b")
        };
        self.name == "lo"
            || self
                .name
                .strip_prefix(PRIVATE_PREFIX)
                .is_some_and(of_instance)
    }

    /// True if a next hop has a MAC address that the kernel finds out.
    pub fn has_neighbours(&self) -> bool {
        self.link_type == LinkType::Ethernet && !self.is_noarp
    }
}

/// What the neighbour table knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its MAC address.
    Resolved([u8; 6]),
    /// Its MAC address by an operator's or another program's word: the kernel does not ask for it (permanent, NOARP).
    Permanent([u8; 6]),
    /// The kernel is asking.
    Asking,
    /// The kernel asked and got no answer.
    Failed,
}

/// The interfaces that have an address, by address.
pub type Owners = HashMap<IpAddr, Vec<u32>>;

/// What a route is looked up for: an endpoint, and the source address of its family if one is configured, by which rules may
/// choose.
pub type RouteKey = (IpAddr, Option<IpAddr>);

/// Everything observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Neighbours by interface and address.
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
    /// Interfaces by which endpoints without a configured one are reached.
    pub routes: HashMap<RouteKey, u32>,
    /// What is looked up often; `None` if interfaces are looked at one by one.
    pub(crate) index: Option<Index>,
}

/// Interfaces by what they are looked up by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    names: HashMap<String, u32>,
    ports: HashMap<u32, HashSet<u32>>,
}

impl Index {
    fn remove(&mut self, link: &Link) {
        for name in link.names() {
            if self.names.get(name) == Some(&link.index) {
                self.names.remove(name);
            }
        }
        if let Some(master) = link.master
            && let Some(ports) = self.ports.get_mut(&master)
        {
            ports.remove(&link.index);
            if ports.is_empty() {
                self.ports.remove(&master);
            }
        }
    }

    fn insert(&mut self, link: &Link) {
        for name in link.names() {
            self.names.insert(name.to_owned(), link.index);
        }
        if let Some(master) = link.master {
            self.ports.entry(master).or_default().insert(link.index);
        }
    }
}

impl Observed {
    /// The interfaces that see what arrives on `ifindex` before it does, themselves included: ports and
    /// parents, at any depth.
    pub fn below(&self, ifindex: u32) -> HashSet<u32> {
        let mut below = HashSet::from([ifindex]);
        let mut upper = vec![ifindex];
        while let Some(ifindex) = upper.pop() {
            let parent = self.links.get(&ifindex).and_then(|link| link.parent);
            for lower in parent.into_iter().chain(self.ports(ifindex)) {
                if below.insert(lower) {
                    upper.push(lower);
                }
            }
        }
        below
    }

    /// The hub's own addresses.
    pub fn owners(&self) -> Owners {
        let mut owners = Owners::new();
        for link in self.links.values() {
            for address in &link.addresses {
                owners.entry(address.ip).or_default().push(link.index);
            }
        }
        owners
    }

    /// The interfaces that belong to a bridge, bond or VRF.
    fn ports(&self, master: u32) -> Vec<u32> {
        match &self.index {
            Some(index) => {
                let ports = index.ports.get(&master).into_iter().flatten();
                ports.copied().collect()
            }
            None => {
                let mut links = self.links.values();
                let ports = links.by_ref().filter(|link| link.master == Some(master));
                ports.map(|link| link.index).collect()
            }
        }
    }

    /// The interface of a name, which may be an alternative one.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        match &self.index {
            Some(index) => self.links.get(index.names.get(name)?),
            None => {
                let mut links = self.links.values();
                links.find(|link| link.names().any(|one| one == name))
            }
        }
    }

    /// The names of an interface, the one that the kernel shows first; none if there is no such interface.
    pub fn names(&self, ifindex: u32) -> Vec<String> {
        let link = self.links.get(&ifindex);
        link.map_or_else(Vec::new, |link| link.names().map(str::to_owned).collect())
    }

    /// Keeps an index of names and ports from now on, which [`Observed::reindex`] must be told of changes.
    pub(crate) fn begin_index(&mut self) {
        let index = self.index.insert(Index::default());
        for link in self.links.values() {
            index.insert(link);
        }
    }

    /// Brings the index in line with an interface that was another or none before.
    pub(crate) fn reindex(&mut self, before: Option<&Link>, ifindex: u32) {
        let Some(index) = &mut self.index else {
            return;
        };
        if let Some(before) = before {
            index.remove(before);
        }
        if let Some(link) = self.links.get(&ifindex) {
            index.insert(link);
        }
    }
}

//! Interfaces, addresses, neighbours and routes, by rtnetlink: dumped once, then followed.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage, LinkXdp,
    },
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::SocketAddr;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder};
use tokio::time::Instant;

use super::{
    netdev::XdpFeatures,
    observed::{Header, Observed, Vlan},
};

/// After a first change, others are awaited this long and taken together.
const SETTLE: Duration = Duration::from_millis(1);

/// The hub's connection to rtnetlink and the netdev family.
pub struct Netlink {
    pub(super) handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    features: Option<XdpFeatures>,
    /// What the kernel says, as of the last [`Netlink::changed`].
    pub observed: Observed,
    /// Interfaces that went, or may have; there may be another one of the same index by now.
    pub gone: HashSet<u32>,
    /// Endpoints whose interface is found from their route.
    routed: HashSet<IpAddr>,
    /// True from a change to the next [`Netlink::follow_up`].
    is_dirty: bool,
    /// Notifications were lost.
    is_overrun: bool,
    /// Routes changed.
    pub(super) unrouted: bool,
    /// Until then routes are not asked for again: on a hub whose routes change all the time, that is
    /// not to be all that the daemon does.
    rest_until: Instant,
    /// New interfaces, whose XDP features are not known.
    unasked: HashSet<u32>,
}

impl Netlink {
    /// Connects, subscribes to changes, and reads everything once.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn connect() -> Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
        .context("cannot open a route netlink socket")?;
        tokio::spawn(connection);
        let mut netlink = Self {
            handle,
            messages,
            features: XdpFeatures::connect().await?,
            observed: Observed::default(),
            gone: HashSet::new(),
            routed: HashSet::new(),
            is_dirty: false,
            is_overrun: false,
            unrouted: false,
            rest_until: Instant::now(),
            unasked: HashSet::new(),
        };
        netlink.dump().await?;
        Ok(netlink)
    }

    /// True where the kernel tells what devices can do with XDP.
    pub const fn has_xdp_features(&self) -> bool {
        self.features.is_some()
    }

    /// Reads everything anew.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn dump(&mut self) -> Result<()> {
        self.gone.extend(self.observed.links.keys());
        self.observed.links.clear();
        self.observed.neighbours.clear();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links
            .try_next()
            .await
            .context("cannot list the interfaces")?
        {
            self.take_link(&link);
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses
            .try_next()
            .await
            .context("cannot list the addresses")?
        {
            self.take_address(&address, true);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut neighbours = self
                .handle
                .neighbours()
                .get()
                .set_address_family(family)
                .execute();
            while let Some(neighbour) = neighbours
                .try_next()
                .await
                .context("cannot list the neighbours")?
            {
                self.take_neighbour(&neighbour, true);
            }
        }
        for ifindex in self.observed.links.keys().copied().collect::<Vec<_>>() {
            self.ask_features(ifindex).await?;
        }
        self.find_routes().await;
        Ok(())
    }

    async fn ask_features(&mut self, ifindex: u32) -> Result<()> {
        if let Some(features) = &mut self.features {
            let features = features.of(ifindex).await?;
            if let Some(link) = self.observed.links.get_mut(&ifindex) {
                link.xdp_features = features;
            }
        }
        Ok(())
    }

    /// Follows the interface by which these addresses are routed, in [`Observed::routes`], and that of
    /// no other.
    pub async fn follow_routes(&mut self, endpoints: HashSet<IpAddr>) {
        self.forget_routes(endpoints);
        self.find_routes().await;
    }

    /// Follows one address more.
    pub async fn follow_route(&mut self, endpoint: IpAddr) {
        if self.routed.insert(endpoint) {
            self.find_route(endpoint).await;
        }
    }

    /// Follows these addresses only, of which none is new.
    pub fn forget_routes(&mut self, endpoints: HashSet<IpAddr>) {
        self.observed
            .routes
            .retain(|endpoint, _| endpoints.contains(endpoint));
        self.routed = endpoints;
    }

    async fn find_routes(&mut self) {
        self.unrouted = false;
        let started = Instant::now();
        for endpoint in self.routed.clone() {
            self.find_route(endpoint).await;
        }
        self.rest_until = Instant::now() + started.elapsed() * 4;
    }

    async fn find_route(&mut self, endpoint: IpAddr) {
        if let Some(ifindex) = self.route(endpoint).await {
            self.observed.routes.insert(endpoint, ifindex);
            return;
        }
        // IPv4 routes go with their interface when that is set down: it is down then, not missing.
        let last = self.observed.routes.get(&endpoint);
        let is_down = last.is_some_and(|last| {
            let link = self.observed.links.get(last);
            link.is_some_and(|link| !link.is_running)
        });
        if !is_down {
            self.observed.routes.remove(&endpoint);
        }
    }

    /// The interface by which the hub's own routing table would reach an address without a gateway: an
    /// endpoint is a next hop itself.
    async fn route(&self, address: IpAddr) -> Option<u32> {
        let message = match address {
            IpAddr::V4(ip) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(ip, 128)
                .build(),
        };
        let answer = self.handle.route().get(message).execute();
        let route = std::pin::pin!(answer).try_next().await.ok()??;
        direct_interface(&route)
    }

    /// Waits for a change and takes all that come with it. Nothing is lost where this is dropped before
    /// it returns; once it has, [`Netlink::follow_up`] completes [`Netlink::observed`].
    ///
    /// # Errors
    /// Where the connection ended.
    pub async fn changed(&mut self) -> Result<()> {
        if !self.is_dirty {
            let (unrouted, rested) = (self.unrouted, self.rest_until);
            tokio::select! {
                taken = self.take_next() => taken?,
                () = tokio::time::sleep_until(rested), if unrouted => return Ok(()),
            }
        }
        let until = Instant::now() + SETTLE;
        while let Ok(taken) = tokio::time::timeout_at(until, self.take_next()).await {
            taken?;
        }
        Ok(())
    }

    /// Asks what notifications did not say.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn follow_up(&mut self) -> Result<()> {
        self.is_dirty = false;
        if std::mem::take(&mut self.is_overrun) {
            self.unasked.clear();
            return self.dump().await;
        }
        for ifindex in std::mem::take(&mut self.unasked) {
            self.ask_features(ifindex).await?;
        }
        if self.unrouted && Instant::now() >= self.rest_until {
            self.find_routes().await;
        }
        Ok(())
    }

    /// Takes one message. Only waiting for it can be cut short, never the taking.
    async fn take_next(&mut self) -> Result<()> {
        let features = async {
            match &mut self.features {
                Some(features) => features.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.messages.next() => {
                let (message, _) = message.ok_or_else(|| anyhow!("the route netlink socket closed"))?;
                self.take(message.payload);
            }
            device = features => match device {
                Some((ifindex, features)) => {
                    if let Some(link) = self.observed.links.get_mut(&ifindex) {
                        link.xdp_features = features;
                    }
                }
                None => self.features = None,
            },
        }
        self.is_dirty = true;
        Ok(())
    }

    fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if self.take_link(&link) =>
            {
                self.unasked.insert(link.header.index);
            }
            // A bridge port leaving its bridge is reported as deleted, in the bridge's family.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                let gone = link.header.index;
                self.unrouted = true;
                self.gone.insert(gone);
                self.observed.links.remove(&gone);
                self.observed
                    .neighbours
                    .retain(|(ifindex, _), _| *ifindex != gone);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                self.take_address(&address, true);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
                self.take_address(&address, false);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                self.take_neighbour(&neighbour, true);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                self.take_neighbour(&neighbour, false);
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewRule(_)
                | RouteNetlinkMessage::DelRule(_),
            ) => self.unrouted = true,
            // The socket's buffer overran and notifications are lost: only a new reading helps.
            NetlinkPayload::Overrun(_) => self.is_overrun = true,
            _ => {}
        }
    }

    /// Takes an interface; true where it is new.
    fn take_link(&mut self, message: &LinkMessage) -> bool {
        let family = message.header.interface_family;
        if family != AddressFamily::Unspec {
            return false;
        }
        let index = message.header.index;
        let is_new = !self.observed.links.contains_key(&index);
        let link = self.observed.links.entry(index).or_default();
        let flags = message.header.flags;
        link.index = index;
        link.header = match message.header.link_layer_type {
            LinkLayerType::Ether => Header::Ethernet,
            // Of the kernel's list of devices whose xmit takes a bare IP packet (`dev_is_mac_header_xmit`).
            LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp => Header::Ip,
            _ => Header::Other,
        };
        link.is_noarp = flags.contains(LinkFlags::Noarp);
        link.is_dead_end = flags.contains(LinkFlags::Loopback);
        let is_running = flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        // The kernel does not notify of IPv4 routes that it drops with an interface or an address.
        self.unrouted |= is_running != link.is_running;
        link.is_running = is_running;
        link.xdp_program = None;
        let mut lower = None;
        let mut vlan_id = None;
        let mut is_stacked = false;
        link.master = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(mac) => {
                    link.mac = mac.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Xdp(xdp) => {
                    link.xdp_program = xdp.iter().find_map(|xdp| match xdp {
                        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                        _ => None,
                    });
                }
                LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
                LinkAttribute::Controller(ifindex) => link.master = Some(*ifindex),
                LinkAttribute::LinkInfo(info) => {
                    for info in info {
                        match info {
                            // Others use IFLA_LINK too, for what is no parent: a veth for its peer, a
                            // tunnel for the device of its outer packets.
                            LinkInfo::Kind(kind) => {
                                link.is_dead_end |= *kind == InfoKind::Dummy;
                                link.is_bond = *kind == InfoKind::Bond;
                                is_stacked = matches!(
                                    kind,
                                    InfoKind::Vlan
                                        | InfoKind::MacVlan
                                        | InfoKind::MacVtap
                                        | InfoKind::IpVlan
                                );
                            }
                            LinkInfo::Data(InfoData::Vlan(vlan)) => {
                                vlan_id = vlan.iter().find_map(|info| match info {
                                    InfoVlan::Id(id) => Some(*id),
                                    _ => None,
                                });
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link.parent = lower.filter(|_| is_stacked);
        let parent = link.parent;
        link.vlan = parent.zip(vlan_id).map(|(parent, id)| Vlan { parent, id });
        is_new
    }

    /// The pair of private interfaces that an earlier daemon made, or a new one.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn private_pair(&mut self, names: &[String; 2]) -> Result<u32> {
        let found = names.each_ref().map(|name| self.observed.by_name(name));
        match found {
            // Complete: it was set up last of all.
            [Some(first), Some(second)] if first.is_running && second.is_running => Ok(first.index),
            _ => self.make_private_pair(names).await,
        }
    }

    /// Makes the pair of private interfaces anew: the send program is attached to the first. They carry
    /// no address and no traffic of the stack.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn make_private_pair(&mut self, names: &[String; 2]) -> Result<u32> {
        self.delete_private_pair(names).await?;
        let [name, peer] = names;
        let message = LinkVeth::new(name, peer).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .with_context(|| format!("cannot make the private veth {name}"))?;
        for name in names {
            // No IPv6 address means no neighbour discovery and no router solicitation on them.
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            if std::path::Path::new(&path).exists() {
                std::fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
            }
        }
        for name in names {
            let message = LinkUnspec::new_with_name(name).up().arp(false).build();
            let request = self.handle.link().set(message);
            request
                .execute()
                .await
                .with_context(|| format!("cannot set {name} up"))?;
        }
        let mut found = self.handle.link().get().match_name(name.clone()).execute();
        let link = found
            .try_next()
            .await
            .with_context(|| format!("cannot find {name}"))?;
        let link = link.ok_or_else(|| anyhow!("cannot find {name}"))?;
        // Known from now on, not only from its notification on.
        self.take_link(&link);
        Ok(link.header.index)
    }

    /// Deletes the private interfaces, each of which may be gone or elsewhere; true where any was there.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn delete_private_pair(&self, names: &[String; 2]) -> Result<bool> {
        let [first, second] = names;
        // One takes the other along, unless somebody moved it to another namespace.
        Ok(self.delete_link(first).await? | self.delete_link(second).await?)
    }

    /// Deletes an interface if it exists; true where it did.
    ///
    /// # Errors
    /// As the kernel answers.
    async fn delete_link(&self, name: &str) -> Result<bool> {
        let mut found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        let Ok(Some(link)) = found.try_next().await else {
            return Ok(false);
        };
        let request = self.handle.link().del(link.header.index);
        request
            .execute()
            .await
            .with_context(|| format!("cannot delete {name}"))?;
        Ok(true)
    }
}

/// The interface of a route that leads to its destination without a gateway.
fn direct_interface(route: &RouteMessage) -> Option<u32> {
    let is_direct = !route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
        )
    });
    let interface = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        });
    interface.filter(|_| is_direct && route.header.kind == RouteType::Unicast)
}

//! The hub's interfaces, addresses, neighbours and routes: read once, then followed; and the two private interfaces.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, Prop,
    },
};
use tokio::time::Instant;

use super::{
    exchange::RequestError,
    notifications::{Change, Kept, Key, Notifications, Reread, Shared, Ways},
    requests::Requests,
};
use crate::plan::observed::{LinkType, Observed, RouteKey, Vlan};

/// After a first change, others are awaited this long and taken together.
const SETTLE: Duration = Duration::from_millis(1);

/// What must be asked about a change (a new device's XDP features, a route) is awaited this long at most before the change is
/// reported without it.
const ANSWERED: Duration = Duration::from_millis(200);

/// After changes were dealt with, others wait nine times as long as that took, and this long at most: a hub whose network
/// changes all the time costs a tenth of a processor.
const REST_MAX: Duration = Duration::from_millis(500);

/// The ways are looked up again this long after each look-up: Linux announces an IPv6 route to a prefix that had none before
/// look-ups find it (`fib6_add_rt2node` sets `RTN_RTINFO` after `inet6_rt_notify`, up to Linux 6.18), and nothing tells when
/// they do. A virtual processor may be held up between the two for any time.
const CONFIRM: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

/// Everything is read again this often at most.
const REREAD_MIN: Duration = Duration::from_secs(1);

/// How often at most it is said that notifications were lost.
const SAY: Duration = Duration::from_secs(60);

/// The first reading takes this long at most.
const START: Duration = Duration::from_secs(30);

/// Why the hub's network cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no socket or thread for requests.
    #[error("cannot open a netlink socket for requests")]
    Requests(#[source] io::Error),
    /// There is no socket or thread for notifications.
    #[error("cannot subscribe to changes of the hub's network by netlink")]
    Subscribe(#[source] io::Error),
    /// The kernel does not answer.
    #[error(
        "the kernel did not list the hub's interfaces within {} s; another process may hold its lock of \
         network configuration (RTNL)",
        START.as_secs()
    )]
    Slow,
    /// The first reading failed.
    #[error("cannot read the hub's interfaces")]
    Read(#[source] FollowError),
    /// A later reading failed.
    #[error(transparent)]
    Follow(#[from] FollowError),
}

/// Why what the kernel says of the hub's network is not known any longer.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The notifications ended.
    #[error("{0}")]
    Ended(String),
    /// The kernel does not list what there is.
    #[error("cannot list the hub's interfaces")]
    List(#[source] RequestError),
}

/// Why the private interfaces cannot be made or deleted.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The kernel refuses something that is attempted with an interface.
    #[error("cannot {attempt} {name}")]
    Refused {
        /// What is attempted.
        attempt: &'static str,
        /// The interface.
        name: String,
        /// What the kernel answered.
        source: RequestError,
    },
    /// It would get IPv6 addresses.
    #[error("cannot write {path} ({write}), nor keep IPv6 off {name} by netlink")]
    Ipv6 {
        /// The file that keeps IPv6 off an interface.
        path: String,
        /// Why it cannot be written.
        write: io::Error,
        /// The interface.
        name: String,
        /// What the kernel answered.
        source: RequestError,
    },
    /// It cannot be set up.
    #[error("cannot set {name} up")]
    Up {
        /// The interface.
        name: String,
        /// What the kernel answered.
        source: RequestError,
    },
    /// It was made, and is gone.
    #[error("cannot find {0}")]
    Missing(String),
}

impl PrivateError {
    /// Makes the error of an attempt that the kernel refuses.
    fn refused(attempt: &'static str, name: &str) -> impl FnOnce(RequestError) -> Self {
        let name = name.to_owned();
        move |source| Self::Refused {
            attempt,
            name,
            source,
        }
    }
}

/// What the daemon watches, and so wants to be told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Endpoints whose neighbour entries matter.
    pub endpoints: HashSet<IpAddr>,
    /// Endpoints whose way out is found by route.
    pub routes: HashSet<RouteKey>,
}

/// What the kernel says of the hub's network, and requests to it.
pub struct Netlink {
    requests: Requests,
    notifications: Notifications,
    shared: Arc<Shared>,
    has_xdp_features: bool,
    /// What the kernel says, as of the last [`Netlink::changed`].
    pub observed: Observed,
    /// Interfaces that went; there may be another one of the same index by now.
    pub gone: HashSet<u32>,
    /// The addresses and neighbour entries in [`Netlink::observed`], as the kernel told them.
    known: HashMap<Key, Change>,
    followed: Followed,
    /// Since when a change waits to be reported.
    concern: Option<Instant>,
    /// When a change was last reported.
    reported: Option<Instant>,
    /// Until then none is reported.
    rest_until: Instant,
    /// A route may lead elsewhere than is known.
    unrouted: bool,
    /// Until then routes are not looked up again.
    routes_rest_until: Instant,
    is_asking_ways: bool,
    /// How many look-ups have confirmed the last one that a change caused, and when the next one does.
    confirmed: usize,
    confirm_at: Option<Instant>,
    /// New interfaces, whose XDP features are not known.
    unasked: HashSet<u32>,
    is_asking_features: bool,
    is_overrun: bool,
    is_rereading: bool,
    reread_rest_until: Instant,
    /// How often notifications were lost and that was not said yet, and when it was.
    lost: u64,
    said: Option<Instant>,
}

impl Netlink {
    /// Subscribes to changes and reads everything once.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn connect() -> Result<Self, NetlinkError> {
        let shared = Arc::new(Shared::default());
        let (requests, family) = Requests::start(shared.clone()).map_err(NetlinkError::Requests)?;
        let notifications =
            Notifications::start(shared.clone(), family).map_err(NetlinkError::Subscribe)?;
        Self::read(shared, requests, notifications, family.is_some()).await
    }

    /// Reads everything once, after the subscription.
    async fn read(
        shared: Arc<Shared>,
        requests: Requests,
        notifications: Notifications,
        has_xdp_features: bool,
    ) -> Result<Self, NetlinkError> {
        let now = Instant::now();
        let mut netlink = Self {
            requests,
            notifications,
            shared,
            has_xdp_features,
            observed: Observed::default(),
            gone: HashSet::new(),
            known: HashMap::new(),
            followed: Followed::default(),
            concern: None,
            reported: None,
            rest_until: now,
            unrouted: false,
            routes_rest_until: now,
            is_asking_ways: false,
            confirmed: 0,
            confirm_at: None,
            unasked: HashSet::new(),
            is_asking_features: false,
            is_overrun: false,
            is_rereading: true,
            reread_rest_until: now,
            lost: 0,
            said: None,
        };
        netlink.observed.begin_index();
        netlink.requests.reread();
        let until = now + START;
        while netlink.is_rereading {
            let woken = tokio::time::timeout_at(until, netlink.shared.woken()).await;
            if woken.is_err() {
                return Err(NetlinkError::Slow);
            }
            netlink.take_kept().map_err(NetlinkError::Read)?;
        }
        // What there was from the start did not come, and is no change.
        netlink.gone.clear();
        netlink.answered(Duration::from_secs(1)).await?;
        netlink.concern = None;
        Ok(netlink)
    }

    /// True if the kernel tells what devices can do with XDP.
    pub const fn has_xdp_features(&self) -> bool {
        self.has_xdp_features
    }

    /// Requests to the kernel.
    pub const fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Follows this and nothing else. The ways of what is new are in [`Observed::routes`] afterwards, unless the kernel took
    /// too long; they come as a change then.
    pub async fn follow(&mut self, followed: Followed) -> Result<(), FollowError> {
        let is_new = |key: &RouteKey| !self.followed.routes.contains(key);
        let new: Vec<RouteKey> = followed.routes.iter().copied().filter(is_new).collect();
        let routes = &mut self.observed.routes;
        routes.retain(|key, _| followed.routes.contains(key));
        self.followed = followed;
        self.tell_interest();
        self.ask_ways(new).await
    }

    /// Follows one endpoint more, and with `route` the way to it; as [`Netlink::follow`].
    ///
    /// # Errors
    /// If the notifications ended.
    pub async fn follow_one(
        &mut self,
        endpoint: IpAddr,
        route: Option<RouteKey>,
    ) -> Result<(), FollowError> {
        self.followed.endpoints.insert(endpoint);
        let new = route.filter(|key| self.followed.routes.insert(*key));
        self.shared.set_interest(|interest| {
            interest.endpoints.insert(endpoint);
            interest.route_one(new.map(|(endpoint, _)| endpoint));
        });
        self.join_route_groups();
        self.ask_ways(new.into_iter().collect()).await
    }

    /// Has the notifications wake this loop for what is followed.
    fn tell_interest(&mut self) {
        let (endpoints, routes) = (&self.followed.endpoints, &self.followed.routes);
        let routed = routes.iter().map(|(endpoint, _)| *endpoint).collect();
        self.shared.set_interest(|interest| {
            interest.endpoints.clone_from(endpoints);
            interest.route(routed);
        });
        self.join_route_groups();
    }

    fn join_route_groups(&mut self) {
        let follow = !self.followed.routes.is_empty();
        if let Err(error) = self.notifications.follow_routes(follow) {
            tracing::error!("cannot subscribe to changes of routes by netlink: {error}");
        }
    }

    async fn ask_ways(&mut self, new: Vec<RouteKey>) -> Result<(), FollowError> {
        if new.is_empty() {
            return Ok(());
        }
        self.answered(ANSWERED).await?;
        // Asked after the groups were joined: what changes later is told.
        match self.is_asking_ways {
            true => self.unrouted = true,
            false => {
                self.is_asking_ways = true;
                self.confirmed = 0;
                self.requests.ways(new);
            }
        }
        self.answered(ANSWERED).await
    }

    /// Takes what comes until nothing that was asked is open, for a limited time.
    async fn answered(&mut self, limit: Duration) -> Result<(), FollowError> {
        let until = Instant::now() + limit;
        loop {
            self.take_kept()?;
            self.ask();
            let is_open = self.is_asking_ways || self.is_asking_features;
            if !is_open {
                return Ok(());
            }
            let woken = tokio::time::timeout_at(until, self.shared.woken());
            if woken.await.is_err() {
                return Ok(());
            }
        }
    }

    /// Waits until something that matters has changed, and the changes that come with it are in [`Netlink::observed`]. Nothing
    /// is lost if this is dropped before it returns.
    ///
    /// # Errors
    /// If the notifications ended.
    pub async fn changed(&mut self) -> Result<(), FollowError> {
        if let Some(reported) = self.reported.take() {
            // Between the two calls the change was dealt with.
            self.rest_until = Instant::now() + (reported.elapsed() * 9).min(REST_MAX);
        }
        loop {
            self.take_kept()?;
            self.ask();
            let now = Instant::now();
            let is_asking = self.is_asking_ways || self.is_asking_features;
            let due = self.concern.map(|since| {
                let settled = since + if is_asking { ANSWERED } else { SETTLE };
                settled.max(self.rest_until)
            });
            if due.is_some_and(|due| due <= now) {
                self.concern = None;
                self.reported = Some(now);
                return Ok(());
            }
            let look_up = self.look_up_at();
            let reread = (self.is_overrun && !self.is_rereading).then_some(self.reread_rest_until);
            let say = self.said.filter(|_| self.lost > 0).map(|said| said + SAY);
            let alarm = [due, look_up, reread, say].into_iter().flatten().min();
            tokio::select! {
                () = self.shared.woken() => {}
                () = tokio::time::sleep_until(alarm.unwrap_or(now)), if alarm.is_some() => {}
            }
        }
    }

    /// Asks what notifications did not say, without waiting for the answers.
    fn ask(&mut self) {
        let now = Instant::now();
        if !self.is_asking_features && !self.unasked.is_empty() {
            let interfaces = self.unasked.drain().collect();
            self.is_asking_features = true;
            self.requests.features(interfaces);
        }
        if self.look_up_at().is_some_and(|at| at <= now) {
            self.confirm_at = None;
            self.confirmed = match std::mem::take(&mut self.unrouted) {
                true => 0,
                false => self.confirmed + 1,
            };
            if !self.followed.routes.is_empty() {
                self.is_asking_ways = true;
                let keys = self.followed.routes.iter().copied().collect();
                self.requests.ways(keys);
            }
        }
        if self.is_overrun && !self.is_rereading && self.reread_rest_until <= now {
            self.is_overrun = false;
            self.is_rereading = true;
            self.requests.reread();
        }
        if self.lost > 0 && self.said.is_none_or(|said| said + SAY <= now) {
            tracing::warn!(
                "netlink notifications were lost {} times; reading the hub's interfaces, addresses and neighbours again",
                std::mem::take(&mut self.lost)
            );
            self.said = Some(now);
        }
    }

    /// When the ways are to be looked up next.
    fn look_up_at(&self) -> Option<Instant> {
        let wanted = match self.unrouted {
            true => Some(self.routes_rest_until),
            false => self.confirm_at.map(|at| at.max(self.routes_rest_until)),
        };
        wanted.filter(|_| !self.is_asking_ways)
    }

    /// Takes what the threads of netlink have.
    fn take_kept(&mut self) -> Result<(), FollowError> {
        let (mut kept, told) = self.shared.take();
        if let Some(why) = kept.closed.take() {
            return Err(FollowError::Ended(why));
        }
        let mut went = HashSet::new();
        for (key, change) in kept.take_changes() {
            self.take(key, change, &mut went);
        }
        self.forget_interfaces(&went);
        let Kept {
            features,
            is_unrouted,
            lost,
            reread,
            ways,
            has_features,
            ..
        } = kept;
        for (ifindex, features) in features {
            self.take_features(ifindex, features);
        }
        self.is_asking_features &= !has_features;
        self.unrouted |= is_unrouted;
        self.lost += lost;
        self.is_overrun |= lost > 0;
        if let Some(reread) = reread {
            self.is_rereading = false;
            self.reread_rest_until = Instant::now() + REREAD_MIN;
            match (reread, told) {
                (Ok(reread), Some(told)) => self.take_reread(reread, &told),
                (Ok(_), None) => self.is_overrun = true,
                (Err(error), _) if self.observed.links.is_empty() => {
                    return Err(FollowError::List(error));
                }
                (Err(error), _) => {
                    tracing::debug!("cannot read the hub's interfaces again: {error}");
                    self.is_overrun = true;
                }
            }
        }
        if let Some(ways) = ways {
            self.take_ways(ways);
        }
        Ok(())
    }

    /// Something changed that matters.
    fn concern(&mut self) {
        self.concern.get_or_insert_with(Instant::now);
    }

    fn take(&mut self, key: Key, change: Change, went: &mut HashSet<u32>) {
        let link_of = |observed: &Observed, ifindex: u32| observed.links.get(&ifindex).cloned();
        match change {
            Change::Link { now, went: is_gone } => {
                let Key::Link(ifindex) = key else { return };
                if is_gone && let Some(gone) = self.observed.links.remove(&ifindex) {
                    self.observed.reindex(Some(&gone), ifindex);
                    self.unrouted = true;
                    self.gone.insert(ifindex);
                    went.insert(ifindex);
                    self.concern();
                }
                let Some(message) = now else { return };
                let before = link_of(&self.observed, ifindex);
                if self.take_link(&message) {
                    self.unasked.insert(ifindex);
                }
                let now = self.observed.links.get(&ifindex);
                if now != before.as_ref() {
                    self.observed.reindex(before.as_ref(), ifindex);
                    self.concern();
                }
            }
            Change::Address(message, is_there) => {
                let ifindex = message.header.index;
                let before = link_of(&self.observed, ifindex);
                self.take_address(&message, is_there);
                if link_of(&self.observed, ifindex) != before {
                    self.unrouted |= !is_there;
                    self.concern();
                }
                self.know(key, Change::Address(message, is_there), is_there);
            }
            Change::Neighbour(message, is_there) => {
                let Key::Neighbour(ifindex, ip) = key else {
                    return;
                };
                let before = self.observed.neighbours.get(&(ifindex, ip)).copied();
                self.take_neighbour(&message, is_there);
                let now = self.observed.neighbours.get(&(ifindex, ip)).copied();
                if now != before && self.followed.endpoints.contains(&ip) {
                    self.concern();
                }
                self.know(key, Change::Neighbour(message, is_there), is_there);
            }
        }
    }

    fn know(&mut self, key: Key, change: Change, is_there: bool) {
        match is_there {
            true => self.known.insert(key, change),
            false => self.known.remove(&key),
        };
    }

    /// Forgets the neighbours of interfaces that went, unless they came again.
    fn forget_interfaces(&mut self, went: &HashSet<u32>) {
        let links = &self.observed.links;
        let is_gone = |ifindex: u32| went.contains(&ifindex) && !links.contains_key(&ifindex);
        if went.is_empty() {
            return;
        }
        self.observed
            .neighbours
            .retain(|(ifindex, _), _| !is_gone(*ifindex));
        self.known.retain(|key, _| match key {
            Key::Link(ifindex)
            | Key::Address(ifindex, ..)
            | Key::Neighbour(ifindex, _)
            | Key::Features(ifindex) => !is_gone(*ifindex),
        });
    }

    fn take_features(&mut self, ifindex: u32, features: Option<u64>) {
        if let Some(link) = self.observed.links.get_mut(&ifindex)
            && link.xdp_features != features
        {
            link.xdp_features = features;
            self.concern();
        }
    }

    /// Compares what was read anew with what is known, but for what was told meanwhile, which is newer.
    fn take_reread(&mut self, reread: Reread, told: &HashSet<Key>) {
        let mut went = HashSet::new();
        let read: HashSet<&Key> = reread.changes.iter().map(|(key, _)| key).collect();
        let is_left = |key: &Key| !read.contains(key) && !told.contains(key);
        // What is missing of an incomplete list may be there.
        if reread.is_complete {
            let links = self.observed.links.keys();
            let left: Vec<Key> = links.map(|ifindex| Key::Link(*ifindex)).collect();
            let left = left.into_iter().chain(self.known.keys().cloned());
            for key in left.filter(is_left).collect::<Vec<_>>() {
                let gone = match self.known.get(&key) {
                    Some(Change::Address(message, _)) => Change::Address(message.clone(), false),
                    Some(Change::Neighbour(message, _)) => {
                        Change::Neighbour(message.clone(), false)
                    }
                    Some(Change::Link { .. }) | None => Change::Link {
                        now: None,
                        went: true,
                    },
                };
                self.take(key, gone, &mut went);
            }
        } else {
            self.is_overrun = true;
        }
        let changes = reread.changes.into_iter();
        for (key, change) in changes.filter(|(key, _)| !told.contains(key)) {
            self.take(key, change, &mut went);
        }
        self.forget_interfaces(&went);
        for (ifindex, features) in reread.features {
            self.unasked.remove(&ifindex);
            if !told.contains(&Key::Features(ifindex)) {
                self.take_features(ifindex, features);
            }
        }
        self.unrouted = true;
    }

    fn take_ways(&mut self, ways: Ways) {
        self.is_asking_ways = false;
        self.unrouted |= ways.is_short;
        let now = Instant::now();
        self.routes_rest_until = now + ways.took * 4;
        self.confirm_at = CONFIRM.get(self.confirmed).map(|after| now + *after);
        for (key, found) in ways.found {
            if !self.followed.routes.contains(&key) {
                continue;
            }
            let last = self.observed.routes.get(&key).copied();
            let now = found.or_else(|| {
                // IPv4 routes go with their interface when that is set down: it is down then, not missing.
                last.filter(|last| {
                    let link = self.observed.links.get(last);
                    link.is_some_and(|link| !link.is_running)
                })
            });
            if now == last {
                continue;
            }
            match now {
                Some(ifindex) => self.observed.routes.insert(key, ifindex),
                None => self.observed.routes.remove(&key),
            };
            self.concern();
        }
    }

    /// Takes an interface; true if it is new.
    fn take_link(&mut self, message: &LinkMessage) -> bool {
        let index = message.header.index;
        let is_new = !self.observed.links.contains_key(&index);
        let link = self.observed.links.entry(index).or_default();
        let flags = message.header.flags;
        link.index = index;
        link.link_type = match message.header.link_layer_type {
            LinkLayerType::Ether => LinkType::Ethernet,
            // Of the kernel's list of devices whose xmit takes a bare IP packet (`dev_is_mac_header_xmit`).
            LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp => LinkType::Ip,
            _ => LinkType::Other,
        };
        link.is_noarp = flags.contains(LinkFlags::Noarp);
        link.is_dead_end = flags.contains(LinkFlags::Loopback);
        let is_running = flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        // The kernel does not notify of IPv4 routes that it drops with an interface or an address.
        self.unrouted |= is_running != link.is_running;
        link.is_running = is_running;
        link.xdp_program = None;
        link.alternatives.clear();
        let mut lower = None;
        let mut vlan_id = None;
        let mut is_stacked = false;
        // The parent's index is one of another namespace, in which this one has another interface of that index or none.
        let mut is_elsewhere = false;
        link.master = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::PropList(properties) => {
                    let names = properties.iter().filter_map(|property| match property {
                        Prop::AltIfName(name) => Some(name.clone()),
                        _ => None,
                    });
                    link.alternatives.extend(names);
                }
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
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                LinkAttribute::Controller(ifindex) => link.master = Some(*ifindex),
                LinkAttribute::LinkInfo(info) => {
                    for info in info {
                        match info {
                            // Others use IFLA_LINK too, for what is no parent: a veth for its peer, a
                            // tunnel for the device of its outer packets.
                            LinkInfo::Kind(kind) => {
                                link.is_dead_end |= *kind == InfoKind::Dummy;
                                link.is_bond = *kind == InfoKind::Bond;
                                link.is_bridge = *kind == InfoKind::Bridge;
                                link.is_veth = *kind == InfoKind::Veth;
                                link.is_macvlan =
                                    matches!(kind, InfoKind::MacVlan | InfoKind::MacVtap);
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
        link.parent = lower.filter(|_| is_stacked && !is_elsewhere);
        let parent = link.parent;
        link.vlan = parent.zip(vlan_id).map(|(parent, id)| Vlan { parent, id });
        is_new
    }

    /// The pair of private interfaces that an earlier daemon made, or a new one.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn private_pair(&mut self, names: &[String; 2]) -> Result<u32, PrivateError> {
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
    pub async fn make_private_pair(&mut self, names: &[String; 2]) -> Result<u32, PrivateError> {
        self.delete_private_pair(names).await?;
        let [name, peer] = names;
        let mut message = named(name);
        let peer = InfoData::Veth(InfoVeth::Peer(named(peer)));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let made = self.requests.create(RouteNetlinkMessage::NewLink(message));
        made.await
            .map_err(PrivateError::refused("make the private veth", name))?;
        for name in names {
            // No IPv6 address means no neighbour discovery and no router solicitation on them.
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            if !std::path::Path::new(&path).exists() {
                continue;
            }
            // In a container /proc/sys may be read-only; then the kernel is told by netlink to give them none.
            if let Err(error) = std::fs::write(&path, "1") {
                let mut message = named(name);
                let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                let none = AfSpecUnspec::Inet6(vec![none]);
                let attribute = LinkAttribute::AfSpecUnspec(vec![none]);
                message.attributes.push(attribute);
                let set = self.requests.change(RouteNetlinkMessage::SetLink(message));
                set.await.map_err(|source| PrivateError::Ipv6 {
                    path,
                    write: error,
                    name: name.clone(),
                    source,
                })?;
            }
        }
        for name in names {
            let mut message = named(name);
            message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
            message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
            let set = self.requests.change(RouteNetlinkMessage::SetLink(message));
            set.await.map_err(|source| PrivateError::Up {
                name: name.clone(),
                source,
            })?;
        }
        let link = self.find_link(name).await?;
        let link = link.ok_or_else(|| PrivateError::Missing(name.clone()))?;
        // Known from now on, not only from its notification on.
        let index = link.header.index;
        let (key, now) = (Key::Link(index), Some(Box::new(link)));
        self.take(key, Change::Link { now, went: false }, &mut HashSet::new());
        Ok(index)
    }

    /// Deletes the private interfaces, which may be gone or elsewhere; true if any was there.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn delete_private_pair(&self, names: &[String; 2]) -> Result<bool, PrivateError> {
        let [first, second] = names;
        // One takes the other along, unless it was moved to another namespace.
        Ok(self.delete_link(first).await? | self.delete_link(second).await?)
    }

    /// Deletes an interface if it exists; true if it did.
    async fn delete_link(&self, name: &str) -> Result<bool, PrivateError> {
        let Some(link) = self.find_link(name).await? else {
            return Ok(false);
        };
        let deleted = self.requests.delete_link(link.header.index);
        deleted
            .await
            .map_err(PrivateError::refused("delete", name))?;
        Ok(true)
    }

    async fn find_link(&self, name: &str) -> Result<Option<LinkMessage>, PrivateError> {
        let found = self.requests.get(RouteNetlinkMessage::GetLink(named(name)));
        match found.await {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Ok(None),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(PrivateError::refused("look for", name)(error)),
        }
    }
}

/// A message about the interface of a name.
fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    let name = LinkAttribute::IfName(name.to_owned());
    message.attributes.push(name);
    message
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, process::Command};

    use super::*;
    use crate::error::full;
    use crate::net::exchange::{Exchange, tests::Lossy};

    /// Runs lines of iproute2 in the calling thread's network namespace.
    fn ip(lines: &str) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), lines).expect("lines");
        let status = Command::new("ip").arg("-batch").arg(file.path()).status();
        assert!(status.expect("ip").success(), "ip refused: {lines}");
    }

    fn names(netlink: &Netlink) -> BTreeSet<String> {
        let links = netlink.observed.links.values();
        links.map(|link| link.name.clone()).collect()
    }

    /// What the daemon's loop does, until the interfaces are these.
    async fn follow_until(netlink: &mut Netlink, wanted: &BTreeSet<String>) {
        let until = Instant::now() + Duration::from_secs(20);
        while names(netlink) != *wanted {
            let changed = tokio::time::timeout_at(until, netlink.changed()).await;
            let Ok(changed) = changed else {
                panic!("{:?} is not {wanted:?}", names(netlink));
            };
            changed.expect("notifications");
        }
    }

    #[test]
    fn errors_say_what_was_attempted_and_why_it_failed() {
        let refused = || RequestError::Refused(io::Error::from_raw_os_error(libc::EPERM));
        let why = "Operation not permitted (os error 1)";
        let rows: [(&(dyn std::error::Error + 'static), String); 5] = [
            (
                &NetlinkError::Read(FollowError::List(refused())),
                format!("cannot read the hub's interfaces: cannot list the hub's interfaces: {why}"),
            ),
            (
                &NetlinkError::from(FollowError::List(refused())),
                format!("cannot list the hub's interfaces: {why}"),
            ),
            (
                &NetlinkError::Slow,
                "the kernel did not list the hub's interfaces within 30 s; another process may hold its lock of \
                 network configuration (RTNL)"
                    .to_owned(),
            ),
            (
                &PrivateError::refused("make the private veth", "trk0-default")(refused()),
                format!("cannot make the private veth trk0-default: {why}"),
            ),
            (
                &PrivateError::Ipv6 {
                    path: "/proc/x".to_owned(),
                    write: io::Error::from_raw_os_error(libc::EROFS),
                    name: "trk0-default".to_owned(),
                    source: refused(),
                },
                format!(
                    "cannot write /proc/x (Read-only file system (os error 30)), nor keep IPv6 off trk0-default by \
                     netlink: {why}"
                ),
            ),
        ];
        for (error, text) in rows {
            assert_eq!(full(error).to_string(), text);
        }
    }

    /// Every tenth answer is lost, and the notification socket overruns again and again: what is known is right each time,
    /// what was learnt of an interface that stays is not forgotten, and nothing piles up.
    #[tokio::test]
    async fn lost_answers_and_overruns_are_made_up_for() {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: cannot make a network namespace: {errno}");
            return;
        }
        ip(
            "link set lo up\nlink add keep type veth peer name kept\nlink set keep up\nlink set kept up\n\
            address add 10.9.0.1/24 dev keep\n",
        );
        let shared = Arc::new(Shared::default());
        let lossy = Exchange::new(Lossy::open());
        let requests = Requests::start_with(shared.clone(), lossy, None).expect("requests");
        // The kernel's smallest buffer (`SOCK_MIN_RCVBUF`): one notification fits.
        let notifications =
            Notifications::start_with(shared.clone(), None, 1).expect("notifications");
        let read = Netlink::read(shared.clone(), requests, notifications, false);
        let mut netlink = read.await.expect("the interfaces");
        let keep = netlink.observed.by_name("keep").expect("keep").index;
        let all: BTreeSet<String> = names(&netlink);
        let has_address = |netlink: &Netlink| {
            let addresses = &netlink.observed.links[&keep].addresses;
            addresses
                .iter()
                .any(|address| address.ip.to_string() == "10.9.0.1")
        };
        assert!(has_address(&netlink));

        let mut lost = 0;
        for round in 0..4 {
            let more = (0..100).map(|at| (format!("a{round}x{at}"), format!("b{round}x{at}")));
            let more: Vec<_> = more.collect();
            let add = more.iter().map(|(one, other)| {
                format!("link add {one} type veth peer name {other}\nlink set {one} up\n")
            });
            ip(&add.collect::<String>());
            let with = all.iter().cloned();
            let with = with.chain(
                more.iter()
                    .flat_map(|(one, other)| [one, other].map(Clone::clone)),
            );
            follow_until(&mut netlink, &with.collect()).await;
            let del = more.iter().map(|(one, _)| format!("link del {one}\n"));
            ip(&del.collect::<String>());
            follow_until(&mut netlink, &all).await;
            assert!(!netlink.gone.contains(&keep), "keep was never gone");
            assert_eq!(netlink.gone.drain().count(), 200);
            assert!(has_address(&netlink));
            lost += netlink.lost;
        }
        assert!(
            lost > 0 || netlink.said.is_some(),
            "the socket never overran"
        );
        // Requests still work, and none waits.
        let route = ("10.9.0.7".parse().expect("an address"), None);
        netlink
            .follow_one(route.0, Some(route))
            .await
            .expect("a route");
        assert_eq!(netlink.observed.routes.get(&route), Some(&keep));
        assert!(
            netlink.known.len() < 64,
            "{} are known",
            netlink.known.len()
        );
    }
}

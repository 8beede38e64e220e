//! Requests to the kernel, sent by a thread of their own: the daemon's loop waits for none longer than a time limit, and for
//! lists and look-ups not at all.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use tokio::sync::oneshot;

use super::{
    exchange::{Answer, Exchange, Expect, RequestError, RequestSocket, Transport, request},
    netdev::{self, Family},
    notifications::{Reread, Shared, Ways, change},
};
use crate::error::full;
use crate::host::{privileges, realtime};
use crate::plan::observed::RouteKey;

/// How long the daemon waits for an answer. Another process may hold the kernel's lock of network configuration (RTNL).
const LIMIT: Duration = Duration::from_secs(2);

/// So many requests wait at most.
const WAITING_MAX: usize = 262_144;

/// Work for the thread.
enum Job {
    /// One request, with what it needs, and where its answer goes.
    Ask(
        Vec<u8>,
        Expect,
        oneshot::Sender<Result<Vec<RouteNetlinkMessage>, RequestError>>,
    ),
    /// Everything is read anew.
    Reread,
    /// What these devices can do with XDP.
    Features(Vec<u32>),
    /// By which interfaces these are reached.
    Ways(Vec<RouteKey>),
}

/// Sends requests; clones use the same thread and socket.
#[derive(Clone)]
pub struct Requests {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

impl Requests {
    /// Starts the thread; answers that the loop does not wait for go to `shared`.
    ///
    /// # Errors
    /// If the kernel gives no socket, or the system no thread.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<(Self, Option<Family>)> {
        let routes = Exchange::new(RequestSocket::open(NETLINK_ROUTE)?);
        let mut generic = Exchange::new(RequestSocket::open(NETLINK_GENERIC)?);
        let family = netdev::family(&mut generic)
            .inspect_err(|error| tracing::debug!("cannot ask for the netdev family: {error}"))
            .ok()
            .flatten();
        let devices = family.map(|family| (generic, family));
        let requests = Self::start_with(shared, routes, devices)?;
        Ok((requests, family))
    }

    pub(super) fn start_with<T: Transport + Send + 'static>(
        shared: Arc<Shared>,
        routes: Exchange<T>,
        devices: Option<(Exchange<RequestSocket>, Family)>,
    ) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            routes,
            devices,
            shared,
            waiting: waiting.clone(),
        };
        std::thread::Builder::new()
            .name("tracker-netlink".to_owned())
            .spawn(move || worker.run(&inbox))?;
        Ok(Self { jobs, waiting })
    }

    /// Hands over a request now; what is returned waits for its answer, and need not be awaited.
    fn ask(
        &self,
        bytes: Vec<u8>,
        expect: Expect,
    ) -> impl Future<Output = Result<Vec<RouteNetlinkMessage>, RequestError>> + Send + 'static {
        let (sender, answer) = oneshot::channel();
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let handed = match waiting < WAITING_MAX {
            true => {
                let sent = self.jobs.send(Job::Ask(bytes, expect, sender));
                sent.map_err(|_| RequestError::Ended)
            }
            false => Err(RequestError::Crowded(waiting)),
        };
        if handed.is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        async move {
            handed?;
            match tokio::time::timeout(LIMIT, answer).await {
                Ok(answered) => answered.map_err(|_| RequestError::Ended)?,
                Err(_) => Err(RequestError::Late(LIMIT)),
            }
        }
    }

    /// Makes an object, which must not exist.
    ///
    /// # Errors
    /// As the kernel answers, or without an answer in time.
    pub fn create(
        &self,
        message: RouteNetlinkMessage,
    ) -> impl Future<Output = Result<(), RequestError>> + Send + 'static {
        let bytes = request(message, NLM_F_CREATE | NLM_F_EXCL);
        self.done(bytes, Some(libc::EEXIST))
    }

    /// Makes an object, or changes the present one.
    ///
    /// # Errors
    /// As the kernel answers, or without an answer in time.
    pub fn replace(
        &self,
        message: RouteNetlinkMessage,
    ) -> impl Future<Output = Result<(), RequestError>> + Send + 'static {
        self.done(request(message, NLM_F_CREATE | NLM_F_REPLACE), None)
    }

    /// Changes an object, which must exist.
    ///
    /// # Errors
    /// As the kernel answers, or without an answer in time.
    pub fn change(
        &self,
        message: RouteNetlinkMessage,
    ) -> impl Future<Output = Result<(), RequestError>> + Send + 'static {
        self.done(request(message, 0), None)
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// As the kernel answers, or without an answer in time.
    pub fn delete_link(
        &self,
        ifindex: u32,
    ) -> impl Future<Output = Result<(), RequestError>> + Send + 'static {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let bytes = request(RouteNetlinkMessage::DelLink(message), 0);
        self.done(bytes, Some(libc::ENODEV))
    }

    fn done(
        &self,
        bytes: Vec<u8>,
        already: Option<i32>,
    ) -> impl Future<Output = Result<(), RequestError>> + Send + 'static {
        let answer = self.ask(bytes, Expect::Done(already));
        async move { answer.await.map(|_| ()) }
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// As the kernel answers, or without an answer in time.
    pub fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> impl Future<Output = Result<RouteNetlinkMessage, RequestError>> + Send + 'static {
        let answer = self.ask(request(message, 0), Expect::One);
        async move { answer.await?.into_iter().next().ok_or(RequestError::Lost) }
    }

    pub(super) fn reread(&self) {
        self.submit(Job::Reread);
    }

    pub(super) fn features(&self, interfaces: Vec<u32>) {
        self.submit(Job::Features(interfaces));
    }

    pub(super) fn ways(&self, keys: Vec<RouteKey>) {
        self.submit(Job::Ways(keys));
    }

    fn submit(&self, job: Job) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // It ends only with the daemon, or by a panic, which later requests tell of.
        let _ = self.jobs.send(job);
    }
}

/// What the thread has.
struct Worker<T> {
    routes: Exchange<T>,
    devices: Option<(Exchange<RequestSocket>, Family)>,
    shared: Arc<Shared>,
    waiting: Arc<AtomicUsize>,
}

impl<T: Transport> Worker<T> {
    fn run(mut self, inbox: &Receiver<Job>) {
        realtime::block_signals();
        if let Err(error) = privileges::limit_to_run() {
            tracing::warn!("{}", full(&error));
        }
        while let Ok(job) = inbox.recv() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match job {
                Job::Ask(mut bytes, expect, sender) => {
                    let answer = self.routes.run(&mut bytes, expect, read);
                    // Who asked may wait no longer.
                    let _ = sender.send(answer.map(|answer| answer.items));
                }
                Job::Reread => {
                    self.shared.begin_reread();
                    let reread = self.reread();
                    self.shared.add(|kept| kept.reread = Some(reread));
                }
                Job::Features(interfaces) => {
                    let devices = self.devices.as_mut();
                    let found: HashMap<u32, Option<u64>> = devices
                        .map(|(generic, family)| {
                            let features = interfaces.iter().map(|ifindex| {
                                (*ifindex, netdev::features(generic, *family, *ifindex))
                            });
                            features.collect()
                        })
                        .unwrap_or_default();
                    self.shared.add(|kept| {
                        kept.features.extend(found);
                        kept.has_features = true;
                    });
                }
                Job::Ways(keys) => {
                    let ways = self.ways(keys);
                    self.shared.add(|kept| kept.ways = Some(ways));
                }
            }
        }
    }

    fn reread(&mut self) -> Result<Reread, RequestError> {
        let mut reread = Reread {
            is_complete: true,
            ..Default::default()
        };
        let mut links = LinkMessage::default();
        let skip = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        links.attributes.push(skip);
        let neighbours = |family| {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetNeighbour(message)
        };
        for list in [
            RouteNetlinkMessage::GetLink(links),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            neighbours(AddressFamily::Inet),
            neighbours(AddressFamily::Inet6),
        ] {
            let Answer { items, is_complete } =
                self.routes
                    .run(&mut request(list, 0), Expect::List, change)?;
            reread.changes.extend(items);
            reread.is_complete &= is_complete;
        }
        if let Some((generic, family)) = &mut self.devices {
            let all = netdev::all_features(generic, *family);
            reread.features = match all {
                Ok(all) => all.into_iter().collect(),
                Err(error) => {
                    tracing::debug!("cannot list XDP features: {error}");
                    HashMap::new()
                }
            };
        }
        Ok(reread)
    }

    fn ways(&mut self, keys: Vec<RouteKey>) -> Ways {
        let began = Instant::now();
        let mut ways = Ways::default();
        for key in keys {
            match self.way(key) {
                Ok(interface) => ways.found.push((key, interface)),
                Err(error) => {
                    tracing::debug!("cannot look up the route to {}: {error}", key.0);
                    ways.is_short = true;
                }
            }
        }
        ways.took = began.elapsed();
        ways
    }

    fn way(&mut self, (endpoint, source): RouteKey) -> Result<Option<u32>, RequestError> {
        let message = RouteNetlinkMessage::GetRoute(route_request(endpoint, source));
        let mut bytes = request(message, 0);
        let found = self.routes.run(&mut bytes, Expect::One, |message| {
            let RouteNetlinkMessage::NewRoute(route) = read(message)? else {
                return None;
            };
            Some(direct_interface(&route, endpoint))
        });
        match found {
            Ok(answer) => Ok(answer.items.into_iter().next().flatten()),
            // The source is none of the hub's addresses (`ip_route_output_key_hash_rcu`, Linux 6.18), now: the way is
            // that of a packet that could be sent.
            Err(error) if source.is_some() && error.is(libc::EINVAL) => self.way((endpoint, None)),
            // ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL: no route, or one of another type.
            Err(RequestError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read(message: &[u8]) -> Option<RouteNetlinkMessage> {
    let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    match read.ok()?.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    }
}

/// A question for the route to an address from a source address.
fn route_request(to: IpAddr, from: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, len) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let header = &mut message.header;
    header.address_family = family;
    header.destination_prefix_length = len;
    let destination = RouteAttribute::Destination(RouteAddress::from(to));
    message.attributes.push(destination);
    if let Some(from) = from {
        message.header.source_prefix_length = len;
        let source = RouteAttribute::Source(RouteAddress::from(from));
        message.attributes.push(source);
    }
    message
}

/// The interface of a route that leads to the endpoint without another hop: without a gateway, or with the endpoint itself as
/// its gateway.
fn direct_interface(route: &RouteMessage, endpoint: IpAddr) -> Option<u32> {
    let is_direct = route.attributes.iter().all(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => *gateway == RouteAddress::from(endpoint),
        RouteAttribute::Via(_) => false,
        _ => true,
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

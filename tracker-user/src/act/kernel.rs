//! Requests to the kernel about interfaces, next hops and routes, and notifications about them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    nexthop::{self, Family, Group, Hop, NextHop, Put},
    plan::{Lead, PROTOCOL, RouteKey, Seen},
    route,
};
use crate::net::exchange::{Exchange, Expect, RequestError, RequestSocket, messages, u32_at};

/// Bytes of the receive buffer for notifications.
const BUFFER: usize = 4 << 20;
/// Longest datagram that is read.
const DATAGRAM_MAX: usize = 65_536;
/// How many datagrams are read before something else has its turn.
const BATCH: usize = 256;

/// What the kernel does not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}{}", hint(.source))]
pub struct KernelError {
    /// What was attempted, on what.
    pub attempt: String,
    /// What the kernel answered.
    pub source: RequestError,
}

/// What to do, by the kernel's answer, before which this stands.
fn hint(source: &RequestError) -> &'static str {
    if source.is(libc::EPERM) {
        " (it needs CAP_NET_ADMIN: run it as root, or by its unit)"
    } else if source.is(libc::EOPNOTSUPP) {
        " (this kernel has no such objects; next-hop groups need Linux 5.3, resilient ones 5.13)"
    } else if source.is(libc::ENETDOWN) {
        " (the interface is down; of a next hop that drops packets that is lo)"
    } else {
        ""
    }
}

/// The kernel's network, asked over a socket of the network namespace in which it was opened.
pub struct Kernel {
    exchange: Exchange<RequestSocket>,
    port: u32,
}

impl Kernel {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// As the system answers.
    pub fn open() -> io::Result<Self> {
        let socket = RequestSocket::open(NETLINK_ROUTE)?;
        // Then the kernel lists only routes of the protocol that is asked for.
        socket.set_strict()?;
        let port = socket.port()?;
        Ok(Self {
            exchange: Exchange::new(socket),
            port,
        })
    }

    /// The port by which notifications name these requests as their reason.
    pub const fn port(&self) -> u32 {
        self.port
    }

    fn run<A>(
        &mut self,
        attempt: impl FnOnce() -> String,
        mut request: Vec<u8>,
        expect: Expect,
        read: impl FnMut(&[u8]) -> Option<A>,
    ) -> Result<Vec<A>, KernelError> {
        match self.exchange.run(&mut request, expect, read) {
            Ok(answer) => Ok(answer.items),
            Err(source) => Err(KernelError {
                attempt: attempt(),
                source,
            }),
        }
    }

    /// Reads what there is, with the ways to these addresses.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn read(&mut self, ways: &BTreeSet<IpAddr>) -> Result<Seen, KernelError> {
        let links = self.run(
            || "list the interfaces".to_owned(),
            route::links(),
            Expect::List,
            |message| route::read_link(message).map(|(index, link, _)| (index, link)),
        )?;
        let objects = self.objects()?;
        let mut routes = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let found = self.run(
                || "list the routes of protocol 116".to_owned(),
                route::list(family, PROTOCOL),
                Expect::List,
                |message| route::read(message).map(|(route, _)| route),
            )?;
            let ours = found.into_iter().filter(|route| route.protocol == PROTOCOL);
            routes.extend(ours.map(|route| (route.key, route.lead)));
        }
        let mut on_link = HashMap::new();
        for address in ways {
            if let Some(index) = self.on_link(*address)? {
                on_link.insert(*address, index);
            }
        }
        Ok(Seen {
            links: links.into_iter().collect(),
            objects: objects
                .into_iter()
                .map(|object| (object.id, object))
                .collect(),
            routes,
            on_link,
        })
    }

    fn objects(&mut self) -> Result<Vec<NextHop>, KernelError> {
        self.run(
            || "list the next hops".to_owned(),
            nexthop::list(),
            Expect::List,
            |message| nexthop::read(message).map(|(object, _)| object),
        )
    }

    /// The interface by which an address is reached without a router in between.
    fn on_link(&mut self, address: IpAddr) -> Result<Option<u32>, KernelError> {
        let found = self.run(
            || format!("look up the route to {address}"),
            route::look_up(address),
            Expect::One,
            |message| route::read(message).map(|(route, _)| route.on_link()),
        );
        match found {
            Ok(found) => Ok(found.into_iter().next().flatten()),
            // There is no way.
            Err(KernelError {
                source: RequestError::Refused(_),
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a next hop and returns its id.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn create_hop(&mut self, hop: Hop) -> Result<u32, KernelError> {
        let made = self.run(
            || format!("make a next hop {hop}"),
            nexthop::create(hop, PROTOCOL),
            Expect::One,
            |message| nexthop::read(message).map(|(object, _)| object.id),
        )?;
        // The exchange returns one answer at least.
        Ok(made.first().copied().unwrap_or_default())
    }

    /// Makes a group, or replaces its content at once.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn put_group(&mut self, id: u32, group: &Group, put: Put) -> Result<(), KernelError> {
        let attempt = match put {
            Put::Create => "make",
            Put::Replace => "replace the content of",
        };
        self.run(
            || format!("{attempt} next-hop group {id}"),
            nexthop::put_group(id, group, PROTOCOL, put),
            Expect::Done(None),
            |_| None::<()>,
        )?;
        Ok(())
    }

    /// Deletes a next hop or a group; it is no error if it is gone.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn delete_object(&mut self, id: u32) -> Result<(), KernelError> {
        let done = self.run(
            || format!("delete the next hop of id {id}"),
            nexthop::delete(id),
            Expect::Done(Some(libc::ENOENT)),
            |_| None::<()>,
        );
        match done {
            Err(error) if error.source.is(libc::ENOENT) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Makes a route, or has it lead elsewhere at once.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn put_route(&mut self, key: &RouteKey, lead: Lead, put: Put) -> Result<(), KernelError> {
        self.run(
            || format!("lead the route {key} by {lead}"),
            route::put(key, lead, PROTOCOL, put),
            Expect::Done(None),
            |_| None::<()>,
        )?;
        Ok(())
    }

    /// Removes a route of protocol 116; it is no error if it is gone.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn delete_route(&mut self, key: &RouteKey) -> Result<(), KernelError> {
        let done = self.run(
            || format!("remove the route {key}"),
            route::delete(key, PROTOCOL),
            Expect::Done(Some(libc::ESRCH)),
            |_| None::<()>,
        );
        match done {
            Err(error) if error.source.is(libc::ESRCH) => Ok(()),
            done => done.map(drop),
        }
    }

    /// The routes of other programs that lead by a group.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn others_routes(&mut self, group: u32) -> Result<Vec<RouteKey>, KernelError> {
        let mut others = Vec::new();
        for family in [Family::V4, Family::V6] {
            let found = self.run(
                || format!("list the routes by group {group}"),
                route::list(family, 0),
                Expect::List,
                |message| {
                    let (route, _) = route::read(message)?;
                    let is_others = route.protocol != PROTOCOL && route.lead == Lead::Group(group);
                    is_others.then_some(route.key)
                },
            )?;
            others.extend(found);
        }
        Ok(others)
    }
}

/// What notifications are about, of all that happens on a host.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Ids of next hops and groups that are ours, or are to be.
    pub objects: BTreeSet<u32>,
    /// Routes that are ours, or are to be.
    pub routes: BTreeSet<RouteKey>,
}

/// Something of ours that another program changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// A next hop or group, by its id.
    Object(u32),
    /// A route.
    Route(RouteKey),
}

/// What notifications told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// What is known is no longer so: an interface came, went or changed, something of ours was changed, or notifications were lost.
    pub is_stale: bool,
    /// What of ours others changed.
    pub touched: Vec<Touched>,
}

/// Notifications about interfaces, next hops and routes.
pub struct Monitor {
    socket: Socket,
    /// Port of our own requests, whose effects are known.
    own: u32,
    buffer: Vec<u8>,
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Monitor {
    /// Subscribes to what is not the effect of requests from this port.
    ///
    /// # Errors
    /// As the system answers.
    pub fn open(own: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // Without CAP_NET_ADMIN, as far as net.core.rmem_max goes.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
        for group in route::NOTIFICATIONS
            .into_iter()
            .chain([nexthop::NOTIFICATIONS])
        {
            socket.add_membership(group)?;
        }
        Ok(Self {
            socket,
            own,
            buffer: Vec::with_capacity(DATAGRAM_MAX),
        })
    }

    /// Reads what was told since; true if there is more.
    ///
    /// # Errors
    /// When the socket fails; lost notifications are no failure.
    pub fn read(&mut self, seen: &Seen, interest: &Interest, news: &mut News) -> io::Result<bool> {
        for _ in 0..BATCH {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(len) if len <= self.buffer.len() => {
                    for message in messages(&self.buffer) {
                        if u32_at(message, 12) != Some(self.own) {
                            judge(message, seen, interest, news);
                        }
                    }
                }
                Ok(_) => news.is_stale = true,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(false),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => news.is_stale = true,
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }
}

/// Adds what a message tells to the news, if it is any.
fn judge(message: &[u8], seen: &Seen, interest: &Interest, news: &mut News) {
    if let Some((index, link, is_gone)) = route::read_link(message) {
        let known = seen.links.get(&index);
        news.is_stale |= match is_gone {
            true => known.is_some(),
            false => known != Some(&link),
        };
    } else if let Some((object, is_gone)) = nexthop::read(message) {
        if interest.objects.contains(&object.id) {
            let known = seen.objects.get(&object.id);
            let is_known = match is_gone {
                true => known.is_none(),
                false => known == Some(&object),
            };
            if !is_known {
                news.is_stale = true;
                news.touched.push(Touched::Object(object.id));
            }
        }
    } else if let Some((route, is_gone)) = route::read(message)
        && interest.routes.contains(&route.key)
    {
        let known = seen.routes.get(&route.key);
        let is_ours = route.protocol == PROTOCOL;
        let is_known = match is_gone {
            true => !is_ours || known.is_none(),
            false => is_ours && known == Some(&route.lead),
        };
        if !is_known {
            news.is_stale = true;
            news.touched.push(Touched::Route(route.key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;
    use crate::{
        act::nexthop::{Entry, Resilient, What},
        error::full,
    };

    fn ip(lines: &str) {
        for line in lines.lines() {
            let output = Command::new("ip").args(line.split_whitespace()).output();
            let output = output.expect("ip");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {line}: {error}");
        }
    }

    /// Runs a test in a network namespace of its own with a veth `near`, whose peer is `far`; skipped without the right to make one.
    fn in_namespace(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let flags = nix::sched::CloneFlags::CLONE_NEWNET;
                if let Err(errno) = nix::sched::unshare(flags) {
                    println!("skipped: cannot make a network namespace: {errno}");
                    return;
                }
                ip("link set lo up\n\
                    link add near type veth peer name far\n\
                    link set near up\n\
                    link set far up\n\
                    address add 10.9.0.1/24 dev near\n");
                test();
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn index(seen: &Seen, name: &str) -> u32 {
        let mut links = seen.links.iter();
        let (index, _) = links
            .find(|(_, link)| link.names.iter().any(|known| known == name))
            .expect("the interface");
        *index
    }

    fn key(prefix: &str) -> RouteKey {
        RouteKey {
            prefix: prefix.parse().expect("a prefix"),
            table: 254,
            metric: 77,
        }
    }

    #[test]
    fn groups_and_routes_are_as_the_kernel_lists_them() {
        in_namespace(|| {
            let mut kernel = Kernel::open().expect("a socket");
            let way = [10, 9, 0, 9].into();
            let ways = [way, [192, 0, 2, 1].into()].into();
            let seen = kernel.read(&ways).expect("what there is");
            let a = index(&seen, "near");
            assert!(seen.links[&a].is_usable && seen.links[&a].has_gateways);
            assert_eq!(seen.on_link, [(way, a)].into());

            let v6 = "2001:db8:9::2".parse().expect("an address");
            let hops = [
                Hop::Gateway([10, 9, 0, 2].into(), a),
                Hop::Gateway([10, 9, 0, 3].into(), a),
                // No address of the interface is in its network.
                Hop::Gateway([192, 0, 2, 7].into(), a),
                Hop::Gateway(v6, a),
                Hop::Interface(Family::V4, a),
                Hop::Blackhole(Family::V4),
                Hop::Blackhole(Family::V6),
            ];
            let ids = hops.map(|hop| {
                kernel
                    .create_hop(hop)
                    .unwrap_or_else(|error| panic!("{}", full(&error)))
            });
            let entry = |at: usize, weight| Entry {
                id: ids[at],
                weight,
            };
            let plain = Group {
                entries: vec![entry(0, 1), entry(1, 256), entry(2, 7)],
                resilient: None,
            };
            let resilient = Group {
                entries: vec![entry(0, 1), entry(3, 2)],
                resilient: Some(Resilient {
                    buckets: 32,
                    idle_timer: Duration::from_millis(1_500),
                    unbalanced_timer: Duration::from_secs(90),
                }),
            };
            let nowhere = Group {
                entries: vec![entry(5, 1)],
                resilient: None,
            };
            for (id, group) in [(4_000, &plain), (4_001, &resilient)] {
                kernel
                    .put_group(id, group, Put::Create)
                    .unwrap_or_else(|error| panic!("{}", full(&error)));
            }
            let again = kernel.put_group(4_000, &plain, Put::Create);
            assert!(again.expect_err("there is one").source.is(libc::EEXIST));
            let absent = kernel.put_group(4_009, &plain, Put::Replace);
            assert!(absent.expect_err("there is none").source.is(libc::ENOENT));

            let leads = [
                ("10.5.0.0/16", Lead::Group(4_000)),
                ("10.6.0.0/16", Lead::Hop(hops[2])),
                // IPv4 over an IPv6 next hop.
                ("10.7.0.0/16", Lead::Hop(hops[3])),
                ("2001:db8:5::/48", Lead::Hop(hops[3])),
                ("10.8.0.0/16", Lead::Hop(hops[4])),
                ("10.11.0.0/16", Lead::Group(4_001)),
            ];
            for (prefix, lead) in leads {
                kernel
                    .put_route(&key(prefix), lead, Put::Create)
                    .unwrap_or_else(|error| panic!("{}", full(&error)));
            }
            ip("route add 10.12.0.0/16 nhid 4000 proto static\n");
            let seen = kernel.read(&ways).expect("what there is");
            for (at, hop) in hops.iter().enumerate() {
                let object = &seen.objects[&ids[at]];
                assert_eq!(
                    (&object.what, object.protocol),
                    (&What::Hop(*hop), PROTOCOL)
                );
            }
            assert_eq!(seen.objects[&4_000].what, What::Group(plain.clone()));
            assert_eq!(seen.objects[&4_001].what, What::Group(resilient.clone()));
            let expected = leads.map(|(prefix, lead)| (key(prefix), lead));
            assert_eq!(seen.routes, expected.into());
            let others = kernel.others_routes(4_000).expect("routes");
            assert_eq!(others.len(), 1, "{others:?}");
            assert_eq!(others[0].prefix.to_string(), "10.12.0.0/16");

            // One message replaces the content: of a resilient group too, and by a next hop that drops.
            for (id, group) in [(4_000, &nowhere), (4_000, &plain)] {
                kernel.put_group(id, group, Put::Replace).expect("replaced");
                let seen = kernel.read(&ways).expect("what there is");
                assert_eq!(seen.objects[&id].what, What::Group(group.clone()));
                assert_eq!(seen.routes.len(), leads.len());
            }
            let drops = Group {
                entries: vec![entry(5, 1)],
                ..resilient.clone()
            };
            kernel
                .put_group(4_001, &drops, Put::Replace)
                .expect("a resilient group drops too");
            let fewer = Group {
                entries: vec![entry(3, 1)],
                ..resilient
            };
            kernel
                .put_group(4_001, &fewer, Put::Replace)
                .expect("replaced");
            let other = Lead::Hop(hops[1]);
            kernel
                .put_route(&key("10.6.0.0/16"), other, Put::Replace)
                .expect("replaced");
            for (prefix, _) in &leads[1..] {
                for _ in 0..2 {
                    kernel.delete_route(&key(prefix)).expect("removed");
                }
            }
            let seen = kernel.read(&ways).expect("what there is");
            assert_eq!(seen.routes.len(), 1);
            for id in ids.into_iter().chain([4_000]) {
                for _ in 0..2 {
                    kernel.delete_object(id).expect("deleted");
                }
            }
            assert_eq!(
                kernel.read(&ways).expect("what there is").objects,
                BTreeMap::new()
            );
        });
    }

    #[test]
    fn what_others_do_and_lost_carriers_are_news_and_our_own_changes_are_not() {
        in_namespace(|| {
            let mut kernel = Kernel::open().expect("a socket");
            let mut monitor = Monitor::open(kernel.port()).expect("a monitor");
            let none = BTreeSet::new();
            let mut news = |kernel: &mut Kernel, interest: &Interest, seen: &mut Seen| {
                std::thread::sleep(Duration::from_millis(50));
                let mut news = News::default();
                while monitor.read(seen, interest, &mut news).expect("readable") {}
                *seen = kernel.read(&none).expect("what there is");
                news
            };
            let mut interest = Interest::default();
            let mut seen = kernel.read(&none).expect("what there is");
            news(&mut kernel, &interest, &mut seen);
            let a = index(&seen, "near");
            let hop = Hop::Gateway([10, 9, 0, 2].into(), a);
            let id = kernel.create_hop(hop).expect("a next hop");
            let group = Group {
                entries: vec![Entry { id, weight: 1 }],
                resilient: None,
            };
            interest.objects = [id, 4_000].into();
            interest.routes = [key("10.5.0.0/16")].into();
            kernel
                .put_group(4_000, &group, Put::Create)
                .expect("a group");
            let lead = Lead::Group(4_000);
            kernel
                .put_route(&key("10.5.0.0/16"), lead, Put::Create)
                .expect("a route");
            // What does not concern us.
            ip("nexthop add id 7 via 10.9.0.7 dev near\nroute add 10.66.0.0/16 via 10.9.0.7\n");
            assert_eq!(news(&mut kernel, &interest, &mut seen), News::default());

            ip("route del 10.5.0.0/16 metric 77\n");
            let told = news(&mut kernel, &interest, &mut seen);
            assert!(told.is_stale);
            assert_eq!(told.touched, [Touched::Route(key("10.5.0.0/16"))]);
            ip("nexthop replace id 4000 group 7\n");
            let told = news(&mut kernel, &interest, &mut seen);
            assert_eq!(told.touched, [Touched::Object(4_000)]);
            ip("nexthop del id 4000\n");
            let told = news(&mut kernel, &interest, &mut seen);
            assert_eq!(told.touched, [Touched::Object(4_000)]);
            ip("link set far down\n");
            let told = news(&mut kernel, &interest, &mut seen);
            assert!(told.is_stale);
            assert_eq!(told.touched, []);
            assert!(!seen.links[&a].is_usable);
            // The kernel deleted the next hop with the carrier.
            assert_eq!(seen.objects.len(), 0);
            ip("link set far up\n");
            assert!(news(&mut kernel, &interest, &mut seen).is_stale);
            assert!(seen.links[&a].is_usable);
        });
    }
}

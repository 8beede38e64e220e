//! One request after the other over a netlink socket that is in no multicast group: an answer that is lost is asked for again.
//!
//! The kernel drops an acknowledgement, and the answer of a single get, if the receive buffer of the socket is full
//! (`netlink_unicast`, Linux 6.18). Nothing tells the requester afterwards. Here nothing but answers fills the buffer, each
//! request waits for its answer before the next one is sent, and a wait has a time limit.

use std::{io, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

/// How long an answer is awaited after the request was taken. The kernel works on a request within `sendmsg`, however long
/// that has to wait for a lock: once it returns, the answer is in the receive buffer, or was dropped.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often a request is sent at most.
const ATTEMPTS: usize = 4;

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

/// Longest datagram that is read: the kernel's dumps come in parts of at most 32 KiB (`netlink_recvmsg`).
pub(super) const DATAGRAM_MAX: usize = 65_536;

mod kind {
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The kernel refuses it.
    #[error("{0}")]
    Refused(io::Error),
    /// No answer came to any of the attempts.
    #[error("the kernel's answer was lost {ATTEMPTS} times")]
    Lost,
    /// The request, or those before it, took too long; it may still be done.
    #[error("the kernel did not answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// Too many requests wait.
    #[error("{0} requests wait for the kernel already")]
    Crowded(usize),
    /// The thread that sends requests ended.
    #[error("the thread for netlink requests ended; this is a bug, please report it")]
    Ended,
}

impl RequestError {
    /// True if the kernel refuses with this error number.
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused(error) if error.raw_os_error() == Some(errno))
    }
}

/// What carries requests and answers: a netlink socket, or in tests one that loses some.
pub(crate) trait Transport {
    /// Sends one datagram.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()>;

    /// Replaces the content of the buffer by the next datagram. The error kind is `WouldBlock` if none comes within a time
    /// limit.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()>;
}

/// A netlink socket for requests, in the network namespace of the thread that opened it.
pub(crate) struct RequestSocket(Socket);

impl RequestSocket {
    /// Opens a socket of a netlink protocol.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let patience = TimeVal::new(0, PATIENCE.as_micros() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self(socket))
    }

    /// From now on the kernel checks requests for lists strictly, and filters the lists by what their headers say
    /// (NETLINK_GET_STRICT_CHK).
    pub(crate) fn set_strict(&self) -> io::Result<()> {
        self.0.set_netlink_get_strict_chk(true)
    }

    /// The port by which the kernel names this socket.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.0.get_address(&mut address)?;
        Ok(address.port_number())
    }
}

impl Transport for RequestSocket {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.0.send(datagram, 0).map(|_| ())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(DATAGRAM_MAX);
        let len = self.0.recv(buffer, libc::MSG_TRUNC)?;
        match len <= buffer.len() {
            true => Ok(()),
            // As if it were lost.
            false => Err(Errno::ENOBUFS.into()),
        }
    }
}

/// What ends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An acknowledgement alone. If an earlier attempt was lost, this error number says that it was done.
    Done(Option<i32>),
    /// One answer, and an acknowledgement.
    One,
    /// A list.
    List,
}

/// A request in bytes, with room for what [`Exchange::run`] fills in.
pub(crate) fn request<M: NetlinkSerializable>(message: M, flags: u16) -> Vec<u8>
where
    NetlinkMessage<M>: From<M>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The messages of a datagram, each with its header; what is cut short ends it.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..len).filter(|_| len >= HEADER_LEN)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A number of two bytes at an offset of a message.
pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number of four bytes at an offset of a message.
pub(crate) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// What a request brought.
#[derive(Debug)]
pub(crate) struct Answer<A> {
    /// What was answered, in the kernel's order.
    pub(crate) items: Vec<A>,
    /// False if the list changed while the kernel made it, at each attempt (NLM_F_DUMP_INTR): some of it may be missing.
    pub(crate) is_complete: bool,
}

/// Sends requests and awaits their answers.
pub(crate) struct Exchange<T> {
    transport: T,
    sequence: u32,
    buffer: Vec<u8>,
}

impl<T: Transport> Exchange<T> {
    pub(crate) const fn new(transport: T) -> Self {
        Self {
            transport,
            sequence: 0,
            buffer: Vec::new(),
        }
    }

    /// Sends a request until it is answered, at most four times. Messages for which `read` returns `None` are left out.
    ///
    /// # Errors
    /// As the kernel refuses it, or if no answer arrives.
    pub(crate) fn run<A>(
        &mut self,
        request: &mut [u8],
        expect: Expect,
        mut read: impl FnMut(&[u8]) -> Option<A>,
    ) -> Result<Answer<A>, RequestError> {
        let flags = match expect {
            Expect::Done(_) | Expect::One => NLM_F_ACK,
            Expect::List => NLM_F_DUMP,
        };
        let flags = flags | NLM_F_REQUEST | u16_at(request, 6).unwrap_or_default();
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        let mut interrupted = None;
        for attempt in 0..ATTEMPTS {
            match self.attempt(request, expect, &mut read) {
                Ok(answer) if answer.is_complete => return Ok(answer),
                Ok(answer) => interrupted = Some(answer),
                Err(RequestError::Lost) => {}
                Err(error) => {
                    let done = match expect {
                        Expect::Done(done) if attempt > 0 => done,
                        _ => None,
                    };
                    return match done.is_some_and(|errno| error.is(errno)) {
                        true => Ok(Answer {
                            items: Vec::new(),
                            is_complete: true,
                        }),
                        false => Err(error),
                    };
                }
            }
        }
        interrupted.ok_or(RequestError::Lost)
    }

    fn attempt<A>(
        &mut self,
        request: &mut [u8],
        expect: Expect,
        read: &mut impl FnMut(&[u8]) -> Option<A>,
    ) -> Result<Answer<A>, RequestError> {
        self.sequence = self.sequence.wrapping_add(1);
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        while let Err(error) = self.transport.send(request) {
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                _ if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(RequestError::Lost),
                _ => return Err(RequestError::Refused(error)),
            }
        }
        let mut answer = Answer {
            items: Vec::new(),
            is_complete: true,
        };
        loop {
            match self.transport.receive(&mut self.buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // ENOBUFS: an answer was dropped, which may be this one or a part of it.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    return Err(RequestError::Lost);
                }
                Err(error) => return Err(RequestError::Refused(error)),
            }
            for message in messages(&self.buffer) {
                if u32_at(message, 8) != Some(self.sequence) {
                    // That of an earlier attempt.
                    continue;
                }
                let flags = u16_at(message, 6).unwrap_or_default();
                answer.is_complete &= flags & NLM_F_DUMP_INTR == 0;
                match u16_at(message, 4) {
                    Some(end @ (kind::ERROR | kind::DONE)) => {
                        // The kernel ends some lists without a code.
                        let code = u32_at(message, HEADER_LEN).unwrap_or_default() as i32;
                        if code < 0 {
                            let error = io::Error::from_raw_os_error(-code);
                            return Err(RequestError::Refused(error));
                        }
                        let is_short = match expect {
                            Expect::Done(_) => false,
                            Expect::One => answer.items.is_empty(),
                            Expect::List => end != kind::DONE,
                        };
                        return match is_short {
                            true => Err(RequestError::Lost),
                            false => Ok(answer),
                        };
                    }
                    _ => answer.items.extend(read(message)),
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::LinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage},
    };
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::*;

    /// A socket that loses every tenth answer: of a list a part, which the kernel tells by ENOBUFS.
    pub(in crate::net) struct Lossy {
        socket: RequestSocket,
        requests: usize,
        is_losing: bool,
        lost: usize,
    }

    impl Lossy {
        pub(in crate::net) fn open() -> Self {
            Self {
                socket: RequestSocket::open(NETLINK_ROUTE).expect("a socket"),
                requests: 0,
                is_losing: false,
                lost: 0,
            }
        }
    }

    impl Transport for Lossy {
        fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
            self.requests += 1;
            self.is_losing = self.requests.is_multiple_of(10);
            self.socket.send(datagram)
        }

        fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
            self.socket.receive(buffer)?;
            if !std::mem::take(&mut self.is_losing) {
                return Ok(());
            }
            self.lost += 1;
            let flags = u16_at(buffer, 6).unwrap_or_default();
            match flags & netlink_packet_core::NLM_F_MULTIPART {
                0 => self.socket.receive(buffer),
                _ => Err(Errno::ENOBUFS.into()),
            }
        }
    }

    fn link_list() -> Vec<u8> {
        request(RouteNetlinkMessage::GetLink(LinkMessage::default()), 0)
    }

    /// Of lists, single answers and acknowledgements alike, each is complete in the end.
    #[test]
    fn every_tenth_answer_is_lost_and_asked_for_again() {
        let index = |message: &[u8]| u32_at(message, HEADER_LEN + 4);
        let all = Exchange::new(RequestSocket::open(NETLINK_ROUTE).expect("a socket"))
            .run(&mut link_list(), Expect::List, index)
            .expect("a list");
        assert!(all.items.contains(&1), "no loopback in {all:?}");

        let mut exchange = Exchange::new(Lossy::open());
        for _ in 0..40 {
            let listed = exchange.run(&mut link_list(), Expect::List, index);
            assert_eq!(listed.expect("a list").items, all.items);
            let mut message = LinkMessage::default();
            message.header.index = 1;
            let mut one = request(RouteNetlinkMessage::GetLink(message), 0);
            let found = exchange.run(&mut one, Expect::One, index);
            assert_eq!(found.expect("the loopback").items, [1]);
        }
        assert!(exchange.transport.lost >= 8, "{}", exchange.transport.lost);
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let mut exchange = Exchange::new(RequestSocket::open(NETLINK_ROUTE).expect("a socket"));
        let mut message = LinkMessage::default();
        message.header.index = 0x7fff_fff0;
        let mut one = request(RouteNetlinkMessage::GetLink(message), 0);
        let refused = exchange.run(&mut one, Expect::One, |_| Some(()));
        assert!(refused.expect_err("no such interface").is(libc::ENODEV));
        // Nothing of it is left for the next request.
        let mut route = RouteMessage::default();
        route.header.address_family = netlink_packet_route::AddressFamily::Inet;
        route.header.destination_prefix_length = 32;
        let to = RouteAddress::Inet([127, 0, 0, 1].into());
        route.attributes.push(RouteAttribute::Destination(to));
        let mut one = request(RouteNetlinkMessage::GetRoute(route), 0);
        let found = exchange.run(&mut one, Expect::One, |_| Some(()));
        assert_eq!(found.expect("a local route").items.len(), 1);
    }

    /// One that never answers costs the time of four attempts, and no more.
    #[test]
    fn an_answer_that_never_comes_is_given_up() {
        struct Mute;
        impl Transport for Mute {
            fn send(&mut self, _: &[u8]) -> io::Result<()> {
                Ok(())
            }
            fn receive(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
        let lost = Exchange::new(Mute).run(&mut link_list(), Expect::List, |_| Some(()));
        assert!(matches!(lost, Err(RequestError::Lost)), "{lost:?}");
    }

    #[test]
    fn what_is_cut_short_ends_a_datagram() {
        let message = |len: u32, size: usize| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.resize(size, 7);
            bytes
        };
        let lens = |datagram: &[u8]| messages(datagram).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lens(&[message(17, 20), message(16, 16)].concat()), [17, 16]);
        for bad in [message(15, 16), message(40, 20), vec![16, 0], Vec::new()] {
            assert_eq!(lens(&bad), [0; 0]);
            assert_eq!(lens(&[message(16, 16), bad].concat()), [16]);
        }
    }
}

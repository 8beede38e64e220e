//! Messages of FRR's distributed BFD (`bfdd/bfddp_packet.h`, unchanged from FRR 8.0 to 10.7), the data plane's side.
//!
//! All integers are big-endian, structures have C's natural alignment, and a message ends where the header's `length` says. `bfdd` reads a
//! message of another version or of length 0 for ever, and waits for the rest of one that is sent in pieces: each message is built whole.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The only version of the protocol.
const VERSION: u8 = 1;
/// Bytes of the header: version, zero, type (2), id (2), length of the whole message (2).
pub const HEADER_LEN: usize = 8;
/// Longest message that `bfdd` sends: a session.
pub const LONGEST: usize = HEADER_LEN + 132;

/// `enum bfddp_message_type`.
mod kind {
    pub const ECHO_REQUEST: u16 = 0;
    pub const ECHO_REPLY: u16 = 1;
    pub const ADD_SESSION: u16 = 2;
    pub const DELETE_SESSION: u16 = 3;
    pub const STATE_CHANGE: u16 = 4;
    pub const REQUEST_COUNTERS: u16 = 5;
    pub const COUNTERS: u16 = 6;
}

/// Offsets in `struct bfddp_session`, and its size.
mod session {
    pub const SRC: usize = 4;
    pub const DST: usize = 20;
    pub const LID: usize = 36;
    pub const MIN_TX: usize = 40;
    pub const MIN_RX: usize = 44;
    pub const MULTIPLIER: usize = 61;
    pub const IFNAME: usize = 68;
    pub const LEN: usize = 132;
    pub const MULTIHOP: u32 = 1;
    pub const IPV6: u32 = 16;
    pub const SHUTDOWN: u32 = 64;
}

/// A session that `bfdd` wants, or no longer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session's number: random, and unique within one run of `bfdd`.
    pub lid: u32,
    /// Address of the peer.
    pub peer: IpAddr,
    /// The hub's own address, if the session names it.
    pub local: Option<IpAddr>,
    /// Interface, if the session names it.
    pub interface: Option<String>,
    /// Whether the peer is beyond other routers.
    pub is_multihop: bool,
    /// Whether an operator has shut the session down.
    pub is_shut_down: bool,
    /// Time between packets that the session's configuration asks for, and that it takes, microseconds.
    pub timers_us: [u32; 2],
    /// Its detection multiplier.
    pub multiplier: u8,
}

/// What `bfdd` sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A session is wanted, or is to be as this.
    Add(Session),
    /// A session is no longer wanted.
    Delete(u32),
    /// The counters of a session are wanted, and `bfdd` waits for them.
    Counters {
        /// Number of the request.
        id: u16,
        /// Number of the session.
        lid: u32,
    },
    /// An echo request, to be answered with the same times.
    Echo {
        /// Number of the request.
        id: u16,
        /// Both times of the request.
        times: [u8; 16],
    },
    /// Something that needs no answer.
    Other,
}

/// Why a stream of messages cannot be read on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header has another version.
    #[error("version {0} of the protocol, of which this data plane knows 1")]
    Version(u8),
    /// The header's length is impossible.
    #[error("a message of type {kind} with {length} bytes")]
    Length {
        /// The type.
        kind: u16,
        /// Bytes of the whole message, as the header says.
        length: u16,
    },
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The first message of a stream, and its bytes; `None` if it is not complete.
///
/// # Errors
/// When the stream cannot be read on.
pub fn parse(bytes: &[u8]) -> Result<Option<(Inbound, usize)>, WireError> {
    let (Some(&version), Some(kind), Some(id), Some(length)) = (
        bytes.first(),
        be16(bytes, 2),
        be16(bytes, 4),
        be16(bytes, 6),
    ) else {
        return Ok(None);
    };
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let impossible = WireError::Length { kind, length };
    let len = usize::from(length);
    if !(HEADER_LEN..=4 * LONGEST).contains(&len) {
        return Err(impossible);
    }
    let Some(body) = bytes.get(HEADER_LEN..len) else {
        return Ok(None);
    };
    let message = match kind {
        kind::ADD_SESSION => read_session(body).map(Inbound::Add),
        kind::DELETE_SESSION => read_session(body).map(|session| Inbound::Delete(session.lid)),
        kind::REQUEST_COUNTERS => be32(body, 0).map(|lid| Inbound::Counters { id, lid }),
        kind::ECHO_REQUEST => body
            .get(..16)
            .and_then(|times| times.try_into().ok())
            .map(|times| Inbound::Echo { id, times }),
        _ => Some(Inbound::Other),
    };
    Ok(Some((message.ok_or(impossible)?, len)))
}

fn read_session(body: &[u8]) -> Option<Session> {
    if body.len() < session::LEN {
        return None;
    }
    let flags = be32(body, 0)?;
    let is_ipv6 = flags & session::IPV6 != 0;
    let address = |at: usize| -> Option<IpAddr> {
        Some(match is_ipv6 {
            true => IpAddr::from(<[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?),
            // The first four bytes of the sixteen.
            false => IpAddr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?),
        })
    };
    let name = body.get(session::IFNAME..session::LEN)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let local = address(session::SRC)?;
    Some(Session {
        lid: be32(body, session::LID)?,
        peer: address(session::DST)?,
        local: (!local.is_unspecified()).then_some(local),
        interface: (!name.is_empty()).then_some(name),
        is_multihop: flags & session::MULTIHOP != 0,
        is_shut_down: flags & session::SHUTDOWN != 0,
        timers_us: [be32(body, session::MIN_TX)?, be32(body, session::MIN_RX)?],
        multiplier: *body.get(session::MULTIPLIER)?,
    })
}

/// The state of a session as `bfdd` takes it over: its own, not the peer's (FRR 04d7fcb783 corrects the older comment).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The path does not pass.
    Down = 1,
    /// The path passes.
    Up = 3,
}

/// Why a session is down (RFC 5880, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    /// It is not down, or never was up.
    None = 0,
    /// Nothing came back.
    ControlTimeExpired = 1,
    /// The forwarding plane was reset.
    ForwardingReset = 4,
    /// The path to the peer is down.
    PathDown = 5,
    /// The path beyond is down.
    ConcatenatedPathDown = 6,
    /// An operator says so.
    AdministrativelyDown = 7,
}

/// What `bfdd` is told of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its state.
    pub state: State,
    /// Why.
    pub diagnostic: Diagnostic,
}

/// `CPI` of `enum bfddp_remote_flags`: the session does not share the fate of the control plane (RFC 5882, section 4.3), so that a protocol
/// in graceful restart believes a down.
const REMOTE_CPI: u32 = 1;

fn message(kind: u16, id: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend([VERSION, 0]);
    message.extend(kind.to_be_bytes());
    message.extend(id.to_be_bytes());
    message.extend(((HEADER_LEN + body.len()) as u16).to_be_bytes());
    message.extend(body);
    message
}

/// Tells the state of a session. Its timers come back as they are configured: `bfdd` only shows them, and what counts are interval and
/// `fall` of the tracker.
pub fn state_change(session: &Session, told: &Told) -> Vec<u8> {
    let Session {
        lid,
        timers_us: [tx, rx],
        multiplier,
        ..
    } = *session;
    let mut body = Vec::with_capacity(28);
    // Any number but 0 may stand for the peer, which speaks no BFD.
    for word in [
        lid,
        lid | 1,
        REMOTE_CPI,
        tx,
        rx,
        // No echo packets.
        0,
    ] {
        body.extend(word.to_be_bytes());
    }
    body.extend([told.state as u8, told.diagnostic as u8, multiplier, 0]);
    message(kind::STATE_CHANGE, 0, &body)
}

/// Packets of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Replies.
    pub received: u64,
    /// Probes.
    pub sent: u64,
}

/// Answers a request for counters.
pub fn counters(id: u16, lid: u32, counters: Counters) -> Vec<u8> {
    let mut body = Vec::with_capacity(72);
    body.extend(lid.to_be_bytes());
    body.extend([0; 4]);
    // Bytes and packets: control in and out, echo in and out.
    let Counters { received, sent } = counters;
    for word in [0, received, 0, sent, 0, 0, 0, 0] {
        body.extend(word.to_be_bytes());
    }
    message(kind::COUNTERS, id, &body)
}

/// Answers an echo request.
pub fn echo_reply(id: u16, times: [u8; 16]) -> Vec<u8> {
    message(kind::ECHO_REPLY, id, &times)
}

/// Asks for an echo.
pub fn echo_request(now_us: u64) -> Vec<u8> {
    let mut times = [0; 16];
    times[..8].copy_from_slice(&now_us.to_be_bytes());
    message(kind::ECHO_REQUEST, 0, &times)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A session message as `bfdd` makes it.
    pub fn session_message(kind: u16, session: &Session) -> Vec<u8> {
        let mut body = vec![0; session::LEN];
        let mut flags = 0;
        let mut put = |at: usize, address: IpAddr| match address {
            IpAddr::V4(address) => body[at..at + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => body[at..at + 16].copy_from_slice(&address.octets()),
        };
        put(session::DST, session.peer);
        if let Some(local) = session.local {
            put(session::SRC, local);
        }
        if session.peer.is_ipv6() {
            flags |= session::IPV6;
        }
        if session.is_multihop {
            flags |= session::MULTIHOP;
        }
        if session.is_shut_down {
            flags |= session::SHUTDOWN;
        }
        body[..4].copy_from_slice(&flags.to_be_bytes());
        let words = [
            (session::LID, session.lid),
            (session::MIN_TX, session.timers_us[0]),
            (session::MIN_RX, session.timers_us[1]),
        ];
        for (at, word) in words {
            body[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        body[session::MULTIPLIER] = session.multiplier;
        if let Some(name) = &session.interface {
            body[session::IFNAME..session::IFNAME + name.len()].copy_from_slice(name.as_bytes());
        }
        message(kind, 0, &body)
    }

    /// A message that wants a session.
    pub fn add(session: &Session) -> Vec<u8> {
        session_message(kind::ADD_SESSION, session)
    }

    /// A message that no longer wants a session.
    pub fn delete(session: &Session) -> Vec<u8> {
        session_message(kind::DELETE_SESSION, session)
    }

    pub fn single(peer: &str, interface: Option<&str>, lid: u32) -> Session {
        Session {
            lid,
            peer: peer.parse().unwrap(),
            local: None,
            interface: interface.map(str::to_owned),
            is_multihop: false,
            is_shut_down: false,
            timers_us: [100_000, 200_000],
            multiplier: 3,
        }
    }

    #[test]
    fn sessions_are_read() {
        let v4 = single("10.9.0.2", Some("eth1"), 7);
        let v6 = Session {
            local: Some("2001:db8::1".parse().unwrap()),
            is_multihop: true,
            is_shut_down: true,
            interface: None,
            ..single("2001:db8:20::9", None, u32::MAX)
        };
        for session in [v4, v6] {
            let bytes = add(&session);
            assert_eq!(bytes.len(), 140);
            assert_eq!(
                parse(&bytes),
                Ok(Some((Inbound::Add(session.clone()), 140)))
            );
            let bytes = delete(&session);
            let lid = session.lid;
            assert_eq!(parse(&bytes), Ok(Some((Inbound::Delete(lid), 140))));
            // A message that is not there to its end is waited for.
            for len in 0..140 {
                assert_eq!(parse(&bytes[..len]), Ok(None), "{len}");
            }
        }
    }

    /// Whole messages, byte by byte, as gcc lays `bfddp_packet.h` out.
    #[test]
    fn messages_have_the_layout_of_the_header_file() {
        let told = Told {
            state: State::Up,
            diagnostic: Diagnostic::None,
        };
        let up = state_change(&single("10.9.0.2", None, 0x0102_0304), &told);
        assert_eq!(up.len(), 36);
        assert_eq!(up[..8], [1, 0, 0, 4, 0, 0, 0, 36]);
        assert_eq!(up[8..16], [1, 2, 3, 4, 1, 2, 3, 5]);
        assert_eq!(up[16..20], [0, 0, 0, 1]);
        assert_eq!(up[20..28], [0, 1, 0x86, 0xa0, 0, 3, 0x0d, 0x40]);
        assert_eq!(up[28..], [0, 0, 0, 0, 3, 0, 3, 0]);

        let answer = counters(
            9,
            5,
            Counters {
                received: 2,
                sent: 3,
            },
        );
        assert_eq!(answer.len(), 80);
        assert_eq!(
            answer[..16],
            [1, 0, 0, 6, 0, 9, 0, 80, 0, 0, 0, 5, 0, 0, 0, 0]
        );
        assert_eq!((answer[31], answer[47]), (2, 3));

        let request = message(kind::REQUEST_COUNTERS, 9, &5u32.to_be_bytes());
        let wanted = Inbound::Counters { id: 9, lid: 5 };
        assert_eq!(parse(&request), Ok(Some((wanted, 12))));

        let echo = echo_request(258);
        assert_eq!(echo.len(), 24);
        assert_eq!(echo[8..16], [0, 0, 0, 0, 0, 0, 1, 2]);
        let Ok(Some((Inbound::Echo { id: 0, times }, 24))) = parse(&echo) else {
            panic!("{echo:?}");
        };
        assert_eq!(echo_reply(0, times)[..8], [1, 0, 0, 1, 0, 0, 0, 24]);
    }

    #[test]
    fn what_cannot_be_read_on_is_an_error() {
        assert_eq!(parse(&[2; 8]), Err(WireError::Version(2)));
        let length = |length: u16| {
            let mut bytes = message(kind::ADD_SESSION, 0, &[0; 300]);
            bytes[6..8].copy_from_slice(&length.to_be_bytes());
            parse(&bytes).map(|_| ())
        };
        for bad in [0, 7, 139, u16::MAX] {
            let kind = kind::ADD_SESSION;
            assert_eq!(length(bad), Err(WireError::Length { kind, length: bad }));
        }
        // A later version may append to it.
        assert_eq!(length(150), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((_, len))) = parse(&bytes) {
                prop_assert!((HEADER_LEN..=bytes.len()).contains(&len));
            }
        }
    }
}

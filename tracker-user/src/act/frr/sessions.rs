//! What `bfdd` is told: which of its sessions are members or behind addresses, and what became of their verdicts (pure).
//!
//! A single-hop session is a member's endpoint, a multihop session is a behind address. A verdict that is not known is not reported: the
//! session stays as it is, so that neither a start nor a stalled hub takes a route away. Sessions of other peers get no answer at all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use super::wire::{self, Counters, Inbound, Session, State, Told, WireError};

/// One member or tracker that a session may be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The member's interface, or the source address of the tracker's probes: what else a session may name.
    pub by: By,
    /// What counts of it; `None` while that is unknown or stalled.
    pub told: Option<Told>,
    /// Its probes and replies.
    pub counters: Counters,
}

/// What tells peers of one address apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Interface of a member, once it is known.
    Interface(Option<String>),
    /// Source address of a tracker's probes, if it is configured.
    Source(Option<IpAddr>),
}

/// All members and trackers that sessions may be about, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    members: HashMap<IpAddr, Vec<Peer>>,
    behinds: HashMap<IpAddr, Vec<Peer>>,
}

impl Peers {
    /// Adds a member by its endpoint, or a tracker by its behind address.
    pub fn add(&mut self, address: IpAddr, peer: Peer) {
        let peers = match peer.by {
            By::Interface(_) => &mut self.members,
            By::Source(_) => &mut self.behinds,
        };
        peers.entry(address).or_default().push(peer);
    }

    /// How many sessions there may be.
    pub fn len(&self) -> usize {
        let count = |peers: &HashMap<_, Vec<_>>| peers.values().map(Vec::len).sum::<usize>();
        count(&self.members) + count(&self.behinds)
    }

    /// Whether no session can be about anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a session is about. Of several peers one that is up counts, then one that is unknown: a session that names neither interface
    /// nor source is up while any way to the address is.
    fn find(&self, session: &Session) -> Option<&Peer> {
        let of_address = match session.is_multihop {
            true => self.behinds.get(&session.peer),
            false => self.members.get(&session.peer),
        }?;
        let is_meant = |peer: &&Peer| match &peer.by {
            By::Interface(name) => session.interface.is_none() || *name == session.interface,
            By::Source(source) => {
                session.local.is_none() || source.is_none() || *source == session.local
            }
        };
        let rank = |peer: &&Peer| match peer.told {
            Some(Told {
                state: State::Up, ..
            }) => 0,
            None => 1,
            Some(_) => 2,
        };
        of_address.iter().filter(is_meant).min_by_key(rank)
    }
}

/// A session of a connection.
#[derive(Debug)]
struct Known {
    session: Session,
    /// What it was last told.
    last: Option<Told>,
}

/// The sessions of a connection, and what becomes of its messages.
#[derive(Debug, Default)]
pub struct Connection {
    sessions: BTreeMap<u32, Known>,
    /// Addresses of sessions that are about nothing, for the log: each is told once.
    strangers: HashSet<IpAddr>,
    new_strangers: Vec<IpAddr>,
}

/// What a connection's messages lead to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of whole messages that were read. The rest is the begin of a message.
    pub read: usize,
    /// Answers that `bfdd` waits for.
    pub answers: Vec<Vec<u8>>,
    /// Other messages for it.
    pub messages: Vec<Vec<u8>>,
    /// Whether there are other sessions than before.
    pub has_changed: bool,
    /// Whether it asked for counters.
    pub has_asked: bool,
}

impl Connection {
    /// A connection that an earlier process had, with its sessions.
    pub fn of(sessions: impl IntoIterator<Item = Session>) -> Self {
        let sessions = sessions.into_iter().map(|session| {
            let lid = session.lid;
            // What the earlier process told is not known here; to be told twice does no harm.
            let known = Known {
                session,
                last: None,
            };
            (lid, known)
        });
        Self {
            sessions: sessions.collect(),
            ..Self::default()
        }
    }

    /// The sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|known| &known.session)
    }

    /// Takes the messages that received bytes begin with.
    ///
    /// # Errors
    /// When the stream cannot be read on: the connection is of no use.
    pub fn take(&mut self, bytes: &[u8], peers: &Peers) -> Result<Taken, WireError> {
        let mut taken = Taken::default();
        while let Some((message, len)) = wire::parse(bytes.get(taken.read..).unwrap_or_default())? {
            taken.read += len;
            self.take_message(message, peers, &mut taken);
        }
        Ok(taken)
    }

    fn take_message(&mut self, message: Inbound, peers: &Peers, taken: &mut Taken) {
        match message {
            Inbound::Counters { id, lid } => {
                let session = self.sessions.get(&lid);
                let peer = session.and_then(|known| peers.find(&known.session));
                let counters = peer.map(|peer| peer.counters).unwrap_or_default();
                taken.answers.push(wire::counters(id, lid, counters));
                taken.has_asked = true;
            }
            Inbound::Echo { id, times } => taken.messages.push(wire::echo_reply(id, times)),
            Inbound::Add(session) => {
                let address = session.peer;
                if peers.find(&session).is_none() && self.strangers.insert(address) {
                    self.new_strangers.push(address);
                }
                let mut known = Known {
                    session,
                    // `bfdd` has set the session down, and tells its clients of nothing before it is told.
                    last: None,
                };
                taken.messages.extend(known.follow(peers));
                self.sessions.insert(known.session.lid, known);
                taken.has_changed = true;
            }
            Inbound::Delete(lid) => taken.has_changed |= self.sessions.remove(&lid).is_some(),
            Inbound::Other => {}
        }
    }

    /// The messages for what has changed.
    pub fn follow(&mut self, peers: &Peers) -> Vec<Vec<u8>> {
        let known = self.sessions.values_mut();
        known.filter_map(|known| known.follow(peers)).collect()
    }

    /// How many sessions the connection has.
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Peers of new sessions that are neither endpoint nor behind address, each once.
    pub fn take_strangers(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.new_strangers)
    }
}

impl Known {
    fn follow(&mut self, peers: &Peers) -> Option<Vec<u8>> {
        // A session that an operator shut down is told to protocols by `bfdd` itself.
        if self.session.is_shut_down {
            return None;
        }
        let told = peers.find(&self.session)?.told?;
        if self.last == Some(told) {
            return None;
        }
        self.last = Some(told);
        Some(wire::state_change(&self.session, &told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::frr::wire::{
        Diagnostic,
        tests::{add, delete, single},
    };

    const UP: Told = Told {
        state: State::Up,
        diagnostic: Diagnostic::None,
    };
    const DOWN: Told = Told {
        state: State::Down,
        diagnostic: Diagnostic::ControlTimeExpired,
    };

    fn member(interface: &str, told: Option<Told>) -> Peer {
        Peer {
            by: By::Interface(Some(interface.to_owned())),
            told,
            counters: Counters {
                received: 2,
                sent: 3,
            },
        }
    }

    fn peers(of: &[(&str, Peer)]) -> Peers {
        let mut peers = Peers::default();
        for (address, peer) in of {
            peers.add(address.parse().unwrap(), peer.clone());
        }
        peers
    }

    fn taken(connection: &mut Connection, bytes: &[u8], peers: &Peers) -> Vec<Vec<u8>> {
        let taken = connection.take(bytes, peers).unwrap();
        assert_eq!(taken.read, bytes.len());
        [taken.answers, taken.messages].concat()
    }

    #[test]
    fn a_session_follows_its_member() {
        let mut connection = Connection::default();
        let unknown = peers(&[("10.9.0.2", member("eth1", None))]);
        let session = single("10.9.0.2", Some("eth1"), 7);
        // With the begin of another message behind it, which stays where it is.
        let bytes = add(&session);
        let more = [&bytes[..], &bytes[..50]].concat();
        let only = Taken {
            read: bytes.len(),
            has_changed: true,
            ..Taken::default()
        };
        assert_eq!(
            connection.take(&more, &unknown),
            Ok(only),
            "unknown is not told"
        );
        let up = peers(&[("10.9.0.2", member("eth1", Some(UP)))]);
        assert_eq!(connection.follow(&up), [wire::state_change(&session, &UP)]);
        assert!(connection.follow(&up).is_empty(), "told already");
        assert!(connection.follow(&unknown).is_empty(), "stalled");
        assert!(connection.follow(&up).is_empty(), "as it was before");
        let down = peers(&[("10.9.0.2", member("eth1", Some(DOWN)))]);
        assert_eq!(
            connection.follow(&down),
            [wire::state_change(&session, &DOWN)]
        );
        // `bfdd` sets it down by itself when it wants it anew, so it is told again.
        assert_eq!(
            taken(&mut connection, &bytes, &up),
            [wire::state_change(&session, &UP)]
        );
        assert!(taken(&mut connection, &delete(&session), &up).is_empty());
        assert!(connection.follow(&down).is_empty());
        assert_eq!(connection.count(), 0);
        // The next process goes on with the sessions, and tells them once.
        let mut next = Connection::of([session.clone()]);
        assert_eq!(next.follow(&up), [wire::state_change(&session, &UP)]);
        assert!(next.follow(&up).is_empty());
    }

    #[test]
    fn counters_come_before_states() {
        let mut connection = Connection::default();
        let up = peers(&[("10.9.0.2", member("eth1", Some(UP)))]);
        let session = single("10.9.0.2", Some("eth1"), 7);
        let request = [&[1, 0, 0, 5, 0, 9, 0, 12][..], &7u32.to_be_bytes()].concat();
        let both = [add(&session), request].concat();
        let counters = Counters {
            received: 2,
            sent: 3,
        };
        assert_eq!(
            taken(&mut connection, &both, &up),
            [
                wire::counters(9, 7, counters),
                wire::state_change(&session, &UP)
            ]
        );
        // A session that is not known gets an answer too: `bfdd` waits for it.
        let request = [&[1, 0, 0, 5, 0, 10, 0, 12][..], &8u32.to_be_bytes()].concat();
        assert_eq!(
            taken(&mut connection, &request, &up),
            [wire::counters(10, 8, Counters::default())]
        );
    }

    #[test]
    fn what_a_session_names_decides_which_peer_is_meant() {
        let two = peers(&[
            ("10.9.0.2", member("eth1", Some(DOWN))),
            ("10.9.0.2", member("eth2", Some(UP))),
        ]);
        let told =
            |session: &Session, peers: &Peers| peers.find(session).and_then(|peer| peer.told);
        assert_eq!(told(&single("10.9.0.2", Some("eth1"), 1), &two), Some(DOWN));
        assert_eq!(told(&single("10.9.0.2", Some("eth2"), 1), &two), Some(UP));
        assert_eq!(told(&single("10.9.0.2", None, 1), &two), Some(UP));
        assert_eq!(two.find(&single("10.9.0.2", Some("eth3"), 1)), None);
        // An endpoint is no behind address.
        let multihop = Session {
            is_multihop: true,
            ..single("10.9.0.2", None, 1)
        };
        assert_eq!(two.find(&multihop), None);
        let half = peers(&[
            ("10.9.0.2", member("eth1", Some(DOWN))),
            ("10.9.0.2", member("eth2", None)),
        ]);
        assert_eq!(
            told(&single("10.9.0.2", None, 1), &half),
            None,
            "not known yet"
        );

        let behind = |source: Option<&str>, told| Peer {
            by: By::Source(source.map(|source| source.parse().unwrap())),
            ..member("", Some(told))
        };
        let behinds = peers(&[
            ("10.20.0.9", behind(Some("10.9.0.1"), DOWN)),
            ("10.20.0.9", behind(Some("10.9.1.1"), UP)),
        ]);
        let from = |local: &str| Session {
            local: Some(local.parse().unwrap()),
            is_multihop: true,
            ..single("10.20.0.9", None, 1)
        };
        assert_eq!(told(&from("10.9.0.1"), &behinds), Some(DOWN));
        assert_eq!(told(&from("10.9.1.1"), &behinds), Some(UP));
        assert_eq!(behinds.find(&from("10.9.2.1")), None);
    }

    #[test]
    fn an_operator_who_shuts_a_session_down_is_obeyed() {
        let mut connection = Connection::default();
        let up = peers(&[("10.9.0.2", member("eth1", Some(UP)))]);
        let session = single("10.9.0.2", Some("eth1"), 7);
        let shut = Session {
            is_shut_down: true,
            ..session.clone()
        };
        assert!(taken(&mut connection, &add(&shut), &up).is_empty());
        assert!(connection.follow(&up).is_empty());
        assert_eq!(taken(&mut connection, &add(&session), &up).len(), 1);
    }

    #[test]
    fn strangers_are_told_once_and_get_no_answer() {
        let mut connection = Connection::default();
        let none = Peers::default();
        for lid in [1, 2] {
            let session = single("192.0.2.7", None, lid);
            assert!(taken(&mut connection, &add(&session), &none).is_empty());
        }
        assert_eq!(connection.take_strangers().len(), 1);
        assert!(connection.take_strangers().is_empty());
        // One that is named later is a stranger no more.
        let up = peers(&[("192.0.2.7", member("eth1", Some(UP)))]);
        assert_eq!(connection.follow(&up).len(), 2);
    }
}

//! What goes over the daemon's Unix socket: one JSON request a connection, answered with JSON lines.
//!
//! - `{"command":"status","name":null}` is answered with a [`Status`](super::types::Status).
//! - `{"command":"events","since":null,"follow":false}` is answered with one [`Numbered`](crate::state::events::Numbered) a
//!   line, from the oldest that is kept, or after number `since` of the sequence `run`; with `follow` the lines go on for
//!   ever. A [`Missed`](crate::state::events::Missed) takes the place of events that the log no longer has, and a
//!   [`Reset`](crate::state::events::Reset) comes first if the numbers began anew since.
//! - `{"command":"service-list"}` is answered with a [`List`](super::types::List).
//! - `{"command":"service-add","service":{..}}`, with an [`Addition`], and `{"command":"service-remove","name":".."}` are
//!   answered with `{"done":".."}`.
//!
//! A request that cannot be answered gets `{"error":"..."}`. [`super::server`] and [`super::client`] are the two ends.

use serde::{Deserialize, Serialize};

use crate::config::Addition;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is known of everything, or of one service or chain.
    Status {
        /// The service or chain.
        #[serde(default)]
        name: Option<String>,
    },
    /// The event stream.
    Events {
        /// Only events after this number.
        #[serde(default)]
        since: Option<u64>,
        /// The sequence of numbers that `since` is of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<String>,
        /// Whether to go on with what happens from now on.
        #[serde(default)]
        follow: bool,
    },
    /// What services there are, and who named them.
    ServiceList {
        /// Only this service, or the services of this chain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// One more service.
    ServiceAdd {
        /// The service.
        service: Box<Addition>,
    },
    /// One service less.
    ServiceRemove {
        /// The service.
        name: String,
    },
}

/// What was done, for people.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) done: String,
}

/// Why a request cannot be answered, for people.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) error: String,
}

/// Formats a value as one line of JSON, with its newline.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    // Only maps with keys that are not strings, and failing Serialize impls, fail; there are none.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

//! Why a request is refused, as `application/problem+json` (RFC 9457).

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Invalid;

/// Media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request is refused. Nothing is changed then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `about:blank`: the status says what kind it is (RFC 9457 section 4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    /// Reason phrase of the status.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What was attempted, on what, why it failed and what to do, in one line.
    pub detail: String,
    /// What is wrong with the body or the query, if that is why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Invalid>,
}

impl Problem {
    /// A problem of this status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// What is wrong with a body or a query: the detail names all of it.
    pub fn invalid(status: StatusCode, attempt: &str, errors: Vec<Invalid>) -> Self {
        let texts: Vec<_> = errors.iter().map(|error| error.problem.as_str()).collect();
        Self {
            errors: errors.clone(),
            ..Self::new(status, format!("{attempt}: {}", texts.join("; and ")))
        }
    }

    /// The answer.
    pub fn response(&self) -> Response<Body> {
        // Plain structures with string keys cannot fail to be written.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = HeaderValue::from_static(PROBLEM_JSON);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// Why the daemon does not do what a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing has this name.
    Unknown(String),
    /// The file owns it.
    Owned(String),
    /// There is one already, and only a new one was wanted.
    Exists(String),
    /// It is not valid, or does not fit.
    Invalid {
        /// What was attempted.
        attempt: String,
        /// Everything that is wrong.
        errors: Vec<Invalid>,
    },
    /// The daemon does not keep up, or ends.
    Unavailable(String),
    /// The state directory does not take it.
    Storage(String),
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(why) => Self::new(StatusCode::NOT_FOUND, why),
            Refused::Owned(why) => Self::new(StatusCode::CONFLICT, why),
            Refused::Exists(why) => Self::new(StatusCode::PRECONDITION_FAILED, why),
            Refused::Invalid { attempt, errors } => {
                Self::invalid(StatusCode::UNPROCESSABLE_ENTITY, &attempt, errors)
            }
            Refused::Unavailable(why) => Self::new(StatusCode::SERVICE_UNAVAILABLE, why),
            Refused::Storage(why) => Self::new(StatusCode::INSUFFICIENT_STORAGE, why),
        }
    }
}

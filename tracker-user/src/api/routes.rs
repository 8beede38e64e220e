//! Every call of the API in one table: path, query, body, answers, and what carries it out. The router and the OpenAPI document are
//! made from it.

use std::{error::Error as _, sync::Arc};

use axum::{
    Router,
    body::{self, Body, Bytes},
    extract::{RawPathParams, Request},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::{MethodFilter, on},
};
use futures::future::BoxFuture;
use glob::Pattern;
use jiff::Timestamp;
use serde::{Deserialize as _, Serialize};
use serde_json::Value as Json;

use super::{
    events::{self, Format},
    history::{self, HistoryWanted, ServiceHistory},
    http::{Client, PATIENCE},
    metrics,
    problem::{Problem, Refused},
    types::{AdminWanted, Changed, Health, List, LogFilter, Status},
};
use crate::{
    config::{Invalid, NAME_MAX},
    doctor::Report,
    host::log,
    state::{
        admin::{Admin, AdminState},
        events::{EventFeed, Place},
    },
};

/// Most bytes of a request's body: 1,000 services with 65 addresses behind each.
pub const MAX_BODY: usize = 4 << 20;
/// Patterns of names in one request at most.
pub const MAX_NAMES: usize = 256;
/// Most digits of a number in a query.
const COUNT_DIGITS: usize = 9;
/// Most bytes of the reason for an admin state.
const REASON_MAX: usize = 1_000;

/// What the daemon answers from.
pub trait Api: Clone + Send + Sync + 'static {
    /// What is known of everything, or of the services and chains that `names` match.
    fn status(&self, names: &[Pattern]) -> impl Future<Output = Result<Status, Refused>> + Send;
    /// A status as JSON, with or without trackers, in pieces if it is long; of everything, or of what `names` match.
    fn status_body(
        &self,
        names: Vec<Pattern>,
        trackers: bool,
    ) -> impl Future<Output = Result<Body, Refused>> + Send;
    /// What reads the members' round-trip times.
    fn rtts(&self) -> Result<metrics::ReadRtts, Refused>;
    /// The event stream.
    fn events(&self) -> EventFeed;
    /// The names of the services in the chains that `names` match.
    fn chained(&self, names: &[Pattern]) -> Vec<String>;
    /// The OpenAPI document.
    fn document(&self) -> Json;
    /// Whether the daemon keeps up.
    fn health(&self) -> Health;
    /// The services: all, or those that `names` match.
    fn services(&self, names: &[Pattern]) -> impl Future<Output = Result<List, Refused>> + Send;
    /// The body of a request that makes a service.
    fn service(&self, name: &str) -> Result<Json, Refused>;
    /// What is kept of a service's loss, round-trip times and events.
    fn history(
        &self,
        name: &str,
        wanted: HistoryWanted,
    ) -> impl Future<Output = Result<ServiceHistory, Refused>> + Send;
    /// What is imposed on a service, or on one of its members.
    fn admin(&self, service: &str, member: Option<&str>) -> Result<Admin, Refused>;
    /// Imposes an admin state on a service, or on one of its members.
    fn set_admin(
        &self,
        service: &str,
        member: Option<&str>,
        admin: Admin,
    ) -> impl Future<Output = Result<Admin, Refused>> + Send;
    /// What this host can do, as the daemon finds it now.
    fn doctor(&self) -> impl Future<Output = Result<Report, Refused>> + Send;
    /// Changes services.
    fn change(
        &self,
        change: ServiceChange,
    ) -> impl Future<Output = Result<Changed, Refused>> + Send;
}

/// A change of the services that the API owns.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceChange {
    /// What is wanted.
    pub wanted: ServicesWanted,
    /// Only say what would be done.
    pub is_trial: bool,
}

/// Which services are wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum ServicesWanted {
    /// This one, as the body says.
    Put {
        /// Name of the service.
        name: String,
        /// Its keys.
        body: Json,
        /// Whether one of this name must not exist.
        is_new: bool,
    },
    /// These and no others.
    All(Vec<Json>),
    /// Not this one.
    Removed(String),
}

/// The type of a query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// Text that may be given several times.
    Names,
    /// A place in the event stream.
    Place,
    /// A time, or how long ago it was.
    Time,
    /// The step of a history.
    Step,
    /// A number of things.
    Count,
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it means.
    pub doc: &'static str,
}

/// A body, in a request or in an answer, by its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// None.
    Empty,
    /// A [`Status`].
    Status,
    /// A [`List`].
    List,
    /// A `[[service]]`.
    Service,
    /// All services of the API.
    Services,
    /// A [`Changed`].
    Changed,
    /// Events.
    Events,
    /// An [`Admin`].
    Admin,
    /// An [`AdminWanted`].
    AdminWanted,
    /// A [`Health`].
    Health,
    /// A [`ServiceHistory`].
    History,
    /// The text formats of Prometheus.
    Metrics,
    /// A [`LogFilter`].
    Log,
    /// A [`Report`].
    Doctor,
    /// The OpenAPI document.
    OpenApi,
}

/// A call.
pub struct Route<A> {
    /// Its method.
    pub method: Method,
    /// Its path, with names in braces.
    pub path: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// What its query may have.
    pub query: &'static [Parameter],
    /// The body of the request.
    pub body: Content,
    /// What it answers if it does not refuse: status and body.
    pub answers: &'static [(u16, Content)],
    /// The statuses by which it refuses, beside those of every call.
    pub refusals: &'static [u16],
    handle: Handle<A>,
}

/// What carries a call out.
type Handle<A> = fn(Call<A>) -> BoxFuture<'static, Result<Response<Body>, Problem>>;

/// The statuses by which every call may refuse: a query that is not valid, a method that the path does not have, a daemon
/// that does not keep up.
pub const REFUSALS: [u16; 3] = [400, 405, 503];

const NAMES: Parameter = Parameter {
    name: "service",
    kind: Kind::Names,
    doc: "Name or pattern (`*`, `?`, `[...]`) of services and chains; several may be given. All if absent.",
};
const TRACKERS: Parameter = Parameter {
    name: "trackers",
    kind: Kind::Flag,
    doc: "Whether members list their trackers; `true` by default.",
};
const DRY_RUN: Parameter = Parameter {
    name: "dry_run",
    kind: Kind::Flag,
    doc: "Whether only to say what would be changed; `false` by default.",
};
const SINCE: Parameter = Parameter {
    name: "since",
    kind: Kind::Place,
    doc: "Only events after this one: SEQ, or RUN:SEQ. The header Last-Event-ID says the same.",
};
const LAST: Parameter = Parameter {
    name: "last",
    kind: Kind::Count,
    doc: "Without `since`: begin with the last so many events of those that are kept, instead of all.",
};
const FOLLOW: Parameter = Parameter {
    name: "follow",
    kind: Kind::Flag,
    doc: "Whether to go on with what happens from now on; `false` by default, `true` for server-sent events.",
};
const FROM: Parameter = Parameter {
    name: "since",
    kind: Kind::Time,
    doc: "From when on: how long ago (`90s`, `6h`, `30d`), or a time (`2026-01-31T18:00:00Z`); an hour ago by default.",
};
const STEP: Parameter = Parameter {
    name: "step",
    kind: Kind::Step,
    doc: "How fine: `1s` is kept for an hour, `1m` for a week, `1h` for two years, if `[history] size` allows. The finest that reaches \
          back to `since` by default.",
};
const SERIES: Parameter = Parameter {
    name: "trackers",
    kind: Kind::Names,
    doc: "Name or pattern of services whose trackers have series of their own.",
};

macro_rules! handler {
    ($call:ident => $work:expr) => {
        |$call| Box::pin(async move { $work })
    };
}

/// Path of the metrics.
pub const METRICS: &str = "/metrics";

fn get<A>(
    path: &'static str,
    summary: &'static str,
    query: &'static [Parameter],
    answers: &'static [(u16, Content)],
    refusals: &'static [u16],
    handle: Handle<A>,
) -> Route<A> {
    Route {
        method: Method::GET,
        path,
        summary,
        query,
        body: Content::Empty,
        answers,
        refusals,
        handle,
    }
}

fn put_admin<A: Api>(path: &'static str, summary: &'static str) -> Route<A> {
    Route {
        method: Method::PUT,
        path,
        summary,
        query: &[],
        body: Content::AdminWanted,
        answers: &[(200, Content::Admin)],
        refusals: &[403, 404, 413, 422, 507],
        handle: handler!(call => {
            let admin = admin(&call.json()?, &call.client)?;
            Ok(json(StatusCode::OK, &call.set_admin(admin).await?))
        }),
    }
}

fn delete_admin<A: Api>(path: &'static str, summary: &'static str) -> Route<A> {
    Route {
        method: Method::DELETE,
        path,
        summary,
        query: &[],
        body: Content::Empty,
        answers: &[(204, Content::Empty)],
        refusals: &[403, 404, 507],
        handle: handler!(call => {
            call.set_admin(Admin::default()).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }),
    }
}

/// The admin state that a body wants, checked.
fn admin(body: &Json, client: &Client) -> Result<Admin, Problem> {
    let invalid = |key: &str, problem: String| {
        let errors = vec![Invalid {
            pointer: if key.is_empty() {
                String::new()
            } else {
                format!("/{key}")
            },
            key: key.to_owned(),
            problem,
        }];
        Problem::invalid(
            StatusCode::UNPROCESSABLE_ENTITY,
            "cannot set the admin state",
            errors,
        )
    };
    let wanted = AdminWanted::deserialize(body).map_err(|error| {
        let keys = ["state", "reason", "until"];
        let text = error.to_string();
        let text: String = text.chars().take(200).collect();
        // The library names a key that is missing or unknown, not one whose value it does not take.
        let of = keys.into_iter().find(|key| {
            body.get(key).is_some_and(|value| match *key {
                "state" => AdminState::deserialize(value).is_err(),
                "until" => Option::<Timestamp>::deserialize(value).is_err(),
                _ => Option::<String>::deserialize(value).is_err(),
            })
        });
        let states: Vec<_> = AdminState::WORDS.iter().map(|(word, _)| *word).collect();
        let hint = format!(
            "give `state` ({}), and, if wanted, `reason` (a text) and `until` (a time as 2026-01-31T18:00:00Z)",
            states.join(", ")
        );
        invalid(of.unwrap_or_default(), format!("{text}; {hint}"))
    })?;
    let AdminWanted {
        state,
        reason,
        until,
    } = wanted;
    if reason
        .as_ref()
        .is_some_and(|reason| reason.len() > REASON_MAX || reason.contains(char::is_control))
    {
        let problem =
            format!("a reason is one line of at most {REASON_MAX} bytes; give a shorter one");
        return Err(invalid("reason", problem));
    }
    if until.is_some_and(|until| until <= Timestamp::now()) {
        return Err(invalid(
            "until",
            "this time is over; give one to come".to_owned(),
        ));
    }
    if state == AdminState::Auto {
        if until.is_some() {
            let problem = "`auto` has no end; leave `until` out";
            return Err(invalid("until", problem.to_owned()));
        }
        return Ok(Admin::default());
    }
    Ok(Admin {
        state,
        reason: reason.map(Arc::from),
        until,
        by: client.uid.map(|uid| format!("uid {uid}").into()),
    })
}

/// Every call of the API.
pub fn table<A: Api>() -> Vec<Route<A>> {
    vec![
        get(
            "/v1/status",
            "Verdicts and counters of all services, or of some",
            &[NAMES, TRACKERS],
            &[(200, Content::Status)],
            &[404],
            handler!(call => {
                let trackers = call.flag(&TRACKERS, true);
                let body = call.api.status_body(call.names(&NAMES)?, trackers).await?;
                Ok(answer(StatusCode::OK, "application/json", body))
            }),
        ),
        get(
            "/v1/services",
            "The services, what owns each, and the room that is left",
            &[NAMES],
            &[(200, Content::List)],
            &[404],
            handler!(call => Ok(json(StatusCode::OK, &call.api.services(&call.names(&NAMES)?).await?))),
        ),
        Route {
            method: Method::PUT,
            path: "/v1/services",
            summary: "Replace all services that the API owns, or none",
            query: &[DRY_RUN],
            body: Content::Services,
            answers: &[(200, Content::Changed)],
            refusals: &[403, 409, 413, 422, 507],
            handle: handler!(call => {
                let wanted = ServicesWanted::All(services(call.json()?)?);
                Ok(json(StatusCode::OK, &call.change(wanted).await?))
            }),
        },
        get(
            "/v1/services/{name}",
            "A service as the body that makes it",
            &[],
            &[(200, Content::Service)],
            &[404],
            handler!(call => Ok(json(StatusCode::OK, &call.api.service(call.path("name"))?))),
        ),
        Route {
            method: Method::PUT,
            path: "/v1/services/{name}",
            summary: "Add a service, or change one that the API owns; `If-None-Match: *` only adds",
            query: &[DRY_RUN],
            body: Content::Service,
            answers: &[(201, Content::Changed), (200, Content::Changed)],
            refusals: &[403, 409, 412, 413, 422, 507],
            handle: handler!(call => {
                let wanted = ServicesWanted::Put {
                    name: call.path("name").to_owned(),
                    body: call.json()?,
                    is_new: call.headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag == "*"),
                };
                let changed = call.change(wanted).await?;
                let is_made = !changed.dry_run && !changed.added.is_empty();
                Ok(json(if is_made { StatusCode::CREATED } else { StatusCode::OK }, &changed))
            }),
        },
        Route {
            method: Method::DELETE,
            path: "/v1/services/{name}",
            summary: "Remove a service that the API owns",
            query: &[DRY_RUN],
            body: Content::Empty,
            answers: &[(204, Content::Empty), (200, Content::Changed)],
            refusals: &[403, 404, 409, 507],
            handle: handler!(call => {
                let wanted = ServicesWanted::Removed(call.path("name").to_owned());
                let changed = call.change(wanted).await?;
                Ok(match changed.dry_run {
                    true => json(StatusCode::OK, &changed),
                    false => StatusCode::NO_CONTENT.into_response(),
                })
            }),
        },
        get(
            "/v1/services/{name}/admin",
            "What an operator imposes on a service",
            &[],
            &[(200, Content::Admin)],
            &[404],
            handler!(call => call.admin()),
        ),
        put_admin(
            "/v1/services/{name}/admin",
            "Impose an admin state on a service",
        ),
        delete_admin(
            "/v1/services/{name}/admin",
            "Let the verdict of a service count",
        ),
        get(
            "/v1/services/{name}/members/{member}/admin",
            "What an operator imposes on a member, which is named by its name, role or endpoint",
            &[],
            &[(200, Content::Admin)],
            &[404],
            handler!(call => call.admin()),
        ),
        put_admin(
            "/v1/services/{name}/members/{member}/admin",
            "Impose an admin state on a member, which is named by its name, role or endpoint",
        ),
        delete_admin(
            "/v1/services/{name}/members/{member}/admin",
            "Let the verdict of a member count, which is named by its name, role or endpoint",
        ),
        get(
            "/v1/events",
            "The event stream, as JSON lines or, for `Accept: text/event-stream`, as server-sent events",
            &[SINCE, LAST, FOLLOW, NAMES],
            &[(200, Content::Events)],
            &[422],
            handler!(call => {
                let accepts = call.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let format = match accepts.is_some_and(|accept| accept.contains(Format::ServerSent.media_type())) {
                    true => Format::ServerSent,
                    false => Format::Lines,
                };
                let mut names = call.names(&NAMES)?;
                let chained = call.api.chained(&names);
                names.extend(chained.iter().filter_map(|name| Pattern::new(&Pattern::escape(name)).ok()));
                let wanted = events::Wanted {
                    since: call.place()?,
                    last: call.count(&LAST),
                    follow: call.flag(&FOLLOW, format == Format::ServerSent),
                    names,
                    format,
                };
                if wanted.follow {
                    call.client.follows.send_replace(true);
                }
                let body = events::body(call.api.events(), wanted)?;
                Ok(answer(StatusCode::OK, format.media_type(), body))
            }),
        ),
        get(
            "/v1/history/{name}",
            "Loss, round-trip times and events of a service over time",
            &[FROM, STEP],
            &[(200, Content::History)],
            &[404],
            handler!(call => {
                let wanted = call.history()?;
                Ok(json(StatusCode::OK, &call.api.history(call.path("name"), wanted).await?))
            }),
        ),
        get(
            "/v1/health",
            "Whether every thread of the daemon keeps up",
            &[],
            &[(200, Content::Health), (503, Content::Health)],
            &[],
            handler!(call => {
                let health = call.api.health();
                let status = match health.ok {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                Ok(json(status, &health))
            }),
        ),
        get(
            "/v1/doctor",
            "What stops, slows or falsifies probing on this host, as the daemon finds it now",
            &[],
            &[(200, Content::Doctor)],
            &[],
            handler!(call => Ok(json(StatusCode::OK, &call.api.doctor().await?))),
        ),
        get(
            "/v1/log",
            "What the daemon logs",
            &[],
            &[(200, Content::Log)],
            &[],
            handler!(_call => Ok(log_filter())),
        ),
        Route {
            method: Method::PUT,
            path: "/v1/log",
            summary: "Log more or less, until the daemon ends",
            query: &[],
            body: Content::Log,
            answers: &[(200, Content::Log)],
            refusals: &[403, 413, 422],
            handle: handler!(call => {
                set_log_filter(&call.json()?)?;
                Ok(log_filter())
            }),
        },
        get(
            METRICS,
            "Metrics in the text formats of Prometheus",
            &[SERIES],
            &[(200, Content::Metrics)],
            &[],
            handler!(call => {
                let series = call.names(&SERIES)?;
                let format = metrics::Format::accepted(call.headers.get(header::ACCEPT));
                let status = call.api.status(&[]).await?;
                let rtts = call.api.rtts()?;
                // A page may be long, and others' answers do not wait for it.
                let page = tokio::task::spawn_blocking(move || metrics::render(status, rtts, series, format));
                let page = page.await.map_err(|_| {
                    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "making the page failed; this is a bug, please report it")
                })?;
                Ok(answer(StatusCode::OK, format.media_type(), Body::from(page)))
            }),
        ),
        get(
            "/v1/openapi.json",
            "This document",
            &[],
            &[(200, Content::OpenApi)],
            &[],
            handler!(call => Ok(json(StatusCode::OK, &call.api.document()))),
        ),
    ]
}

/// What a router serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// What changes nothing; anything else is refused with 405.
    ReadOnly,
    /// Only the metrics.
    Metrics,
}

/// The router of a scope.
pub fn router<A: Api>(api: &A, scope: Scope) -> Router {
    let mut router = Router::new();
    for route in table::<A>() {
        let is_read = route.method == Method::GET;
        let is_served = match scope {
            Scope::All => true,
            Scope::ReadOnly => is_read,
            Scope::Metrics => route.path == METRICS,
        };
        let Some(filter) = MethodFilter::try_from(route.method.clone())
            .ok()
            .filter(|_| is_served)
        else {
            continue;
        };
        let (path, route) = (route.path, Arc::new(route));
        let api = api.clone();
        let handle = move |parameters: RawPathParams, request: Request| {
            let (api, route) = (api.clone(), route.clone());
            async move {
                let work = async {
                    let call = Call::read(api, &route, &parameters, request).await?;
                    (route.handle)(call).await
                };
                work.await.unwrap_or_else(|problem| problem.response())
            }
        };
        router = router.route(path, on(filter, handle));
    }
    let known = match scope {
        Scope::Metrics => "see /metrics",
        Scope::All | Scope::ReadOnly => "see /v1/openapi.json for what there is",
    };
    router
        .fallback(move |request: Request| async move {
            let detail = format!("there is nothing at {:?}; {known}", request.uri().path());
            Problem::new(StatusCode::NOT_FOUND, detail).response()
        })
        .method_not_allowed_fallback(move |request: Request| async move {
            let why = match scope {
                Scope::All => "see /v1/openapi.json for the methods that it has",
                Scope::ReadOnly | Scope::Metrics => {
                    "this address only answers GET; use the daemon's Unix socket to change anything"
                }
            };
            let detail = format!(
                "{} {}: no such method; {why}",
                request.method(),
                request.uri().path()
            );
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).response()
        })
}

fn answer(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Plain structures with string keys cannot fail to be written.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    answer(status, "application/json", Body::from(bytes))
}

fn log_filter() -> Response<Body> {
    let filter = log::filter().unwrap_or_default();
    json(StatusCode::OK, &LogFilter { filter })
}

fn set_log_filter(body: &Json) -> Result<(), Problem> {
    let key = LogFilter::KEY;
    let wanted = LogFilter::deserialize(body)
        .map_err(|error| format!("{error}; give an object with the key `{key}` alone, a text"));
    wanted
        .and_then(|wanted| log::set_filter(&wanted.filter))
        .map_err(|why| {
            let errors = vec![match body.get(key) {
                Some(_) => Invalid::at(format!("/{key}"), why),
                None => Invalid::whole(why),
            }];
            Problem::invalid(
                StatusCode::UNPROCESSABLE_ENTITY,
                "cannot change the log",
                errors,
            )
        })
}

/// The services of a body that replaces all.
fn services(body: Json) -> Result<Vec<Json>, Problem> {
    let list = match body {
        Json::Object(mut object) if object.len() == 1 => object.remove("services"),
        _ => None,
    };
    match list {
        Some(Json::Array(services)) => Ok(services),
        _ => {
            let problem =
                "the body must be an object with the key `services` alone, a list of services";
            let errors = vec![Invalid::whole(problem)];
            Err(Problem::invalid(
                StatusCode::UNPROCESSABLE_ENTITY,
                "cannot replace services",
                errors,
            ))
        }
    }
}

/// A request, taken apart.
struct Call<A> {
    api: A,
    client: Client,
    parameters: Vec<(String, String)>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl<A: Api> Call<A> {
    async fn read(
        api: A,
        route: &Route<A>,
        parameters: &RawPathParams,
        request: Request,
    ) -> Result<Self, Problem> {
        let query = query(request.uri().query().unwrap_or_default(), route.query)?;
        let pairs = parameters.iter();
        let parameters = pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (mut parts, body) = request.into_parts();
        let client = parts.extensions.remove::<Client>();
        let client = client.unwrap_or_else(|| Client {
            uid: None,
            follows: Arc::default(),
        });
        if route.method != Method::GET && !may_write(&client) {
            let detail = format!(
                "{} {}: only root may change anything; run this as root",
                route.method,
                parts.uri.path()
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        let body = match route.body {
            Content::Empty => Bytes::new(),
            _ => read_body(body).await?,
        };
        Ok(Self {
            api,
            client,
            parameters,
            query,
            headers: parts.headers,
            body,
        })
    }

    /// A name in the path.
    fn path(&self, name: &str) -> &str {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    }

    fn member(&self) -> Option<&str> {
        Some(self.path("member")).filter(|name| !name.is_empty())
    }

    fn admin(&self) -> Result<Response<Body>, Problem> {
        let admin = self.api.admin(self.path("name"), self.member())?;
        Ok(json(StatusCode::OK, &admin))
    }

    async fn set_admin(&self, admin: Admin) -> Result<Admin, Problem> {
        let set = self.api.set_admin(self.path("name"), self.member(), admin);
        Ok(set.await?)
    }

    fn values<'c>(&'c self, parameter: &'c Parameter) -> impl Iterator<Item = &'c str> {
        let given = self.query.iter();
        given
            .filter(|(name, _)| name == parameter.name)
            .map(|(_, value)| value.as_str())
    }

    fn flag(&self, parameter: &Parameter, default: bool) -> bool {
        self.values(parameter)
            .last()
            .map_or(default, |value| value != "false")
    }

    fn names(&self, parameter: &Parameter) -> Result<Vec<Pattern>, Problem> {
        let names = self.values(parameter);
        // What is no pattern is a name.
        let patterns =
            names.map(|name| Pattern::new(name).or_else(|_| Pattern::new(&Pattern::escape(name))));
        let patterns: Result<Vec<_>, _> = patterns.collect();
        patterns.map_err(|error| bad_query(parameter, error.to_string()))
    }

    fn place(&self) -> Result<Option<Place>, Problem> {
        let header = self.headers.get("last-event-id");
        let header = header.map(|id| id.to_str().unwrap_or_default());
        let Some(text) = self.values(&SINCE).last().or(header) else {
            return Ok(None);
        };
        let place = text.parse().map_err(|why: String| bad_query(&SINCE, why))?;
        Ok(Some(place))
    }

    fn history(&self) -> Result<HistoryWanted, Problem> {
        let now = Timestamp::now();
        let since = self.values(&FROM).last();
        let since =
            since.map(|text| history::since(text, now).map_err(|why| bad_query(&FROM, why)));
        let step = self.values(&STEP).last();
        let step = step.map(|text| history::step(text).map_err(|why| bad_query(&STEP, why)));
        Ok(HistoryWanted::new(
            since.transpose()?,
            step.transpose()?,
            now,
        ))
    }

    fn json(&self) -> Result<Json, Problem> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // It may quote most of the body.
            let error: String = error.to_string().chars().take(200).collect();
            let errors = vec![Invalid::whole(format!(
                "the body is not JSON: {error}; correct it"
            ))];
            Problem::invalid(StatusCode::BAD_REQUEST, "cannot read the request", errors)
        })
    }

    fn count(&self, parameter: &Parameter) -> Option<u64> {
        self.values(parameter).last()?.parse().ok()
    }

    async fn change(&self, wanted: ServicesWanted) -> Result<Changed, Problem> {
        let is_trial = self.flag(&DRY_RUN, false);
        Ok(self.api.change(ServiceChange { wanted, is_trial }).await?)
    }
}

/// Whether a client may change anything: root, and the user of the daemon itself.
fn may_write(client: &Client) -> bool {
    client
        .uid
        .is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
}

async fn read_body(body: Body) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(PATIENCE, body::to_bytes(body, MAX_BODY)).await;
    let late = |_| {
        let detail = format!("the body did not come within {} s", PATIENCE.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    };
    read.map_err(late)?.map_err(|error| {
        let mut cause = error.source();
        let mut is_of_connection = false;
        while let Some(found) = cause {
            is_of_connection |= found.is::<hyper::Error>();
            cause = found.source();
        }
        // Else the limit was met.
        if is_of_connection {
            let detail = "the body ended before its end; send as many bytes as Content-Length says";
            return Problem::new(StatusCode::BAD_REQUEST, detail);
        }
        let detail = format!("the body has more than {MAX_BODY} bytes; send less at a time");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    })
}

fn bad_query(parameter: &Parameter, why: impl Into<String>) -> Problem {
    let errors = vec![Invalid {
        key: parameter.name.to_owned(),
        pointer: String::new(),
        problem: why.into(),
    }];
    let attempt = format!("cannot read the query parameter `{}`", parameter.name);
    Problem::invalid(StatusCode::BAD_REQUEST, &attempt, errors)
}

/// The parameters of a query that a call has, checked.
fn query(text: &str, known: &[Parameter]) -> Result<Vec<(String, String)>, Problem> {
    let mut given = Vec::new();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
            let list: Vec<_> = known.iter().map(|parameter| parameter.name).collect();
            let list = match list.is_empty() {
                true => "this call has none".to_owned(),
                false => format!("this call has {}", list.join(", ")),
            };
            let name: String = name.chars().take(60).collect();
            let detail = format!("unknown query parameter {name:?}; {list}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        };
        let is_valid = match parameter.kind {
            Kind::Flag => matches!(&*value, "true" | "false" | ""),
            Kind::Names => {
                !value.is_empty() && value.chars().count() <= NAME_MAX && given.len() < MAX_NAMES
            }
            Kind::Place | Kind::Time | Kind::Step => true,
            Kind::Count => value.len() <= COUNT_DIGITS && value.parse::<u64>().is_ok(),
        };
        if !is_valid {
            let wanted = match parameter.kind {
                Kind::Flag => "give true or false".to_owned(),
                Kind::Count => format!("give a number of at most {COUNT_DIGITS} digits"),
                _ => format!("give at most {MAX_NAMES} names of 1 to {NAME_MAX} characters"),
            };
            return Err(bad_query(parameter, wanted));
        }
        given.push((name.into_owned(), value.into_owned()));
    }
    Ok(given)
}

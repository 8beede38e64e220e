//! A service as JSON: the body of a request to the API, and what the state directory keeps. It has the keys of `[[service]]`, in any
//! shape that the file can have, and is checked by what checks the file.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::{
    Defaults, Member, Owner, Policy, Probe, ReturnHop, Role, Service, Tracker, document, file,
    keys, service,
};

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Invalid {
    /// Name of the key that is wrong, unknown or missing; empty if it is the body as a whole.
    pub key: String,
    /// JSON pointer (RFC 6901) of the place in the body; empty of the whole body.
    #[serde(default)]
    pub pointer: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl Invalid {
    /// A problem of the value that a JSON pointer names. The key is the last name in the pointer.
    pub fn at(pointer: String, problem: impl Into<String>) -> Self {
        let mut names = pointer
            .rsplit('/')
            .filter(|name| name.parse::<usize>().is_err());
        let key = names.next().unwrap_or_default();
        Self {
            key: key.replace("~1", "/").replace("~0", "~"),
            pointer,
            problem: problem.into(),
        }
    }

    /// A problem of the body as a whole.
    pub fn whole(problem: impl Into<String>) -> Self {
        Self {
            key: String::new(),
            pointer: String::new(),
            problem: problem.into(),
        }
    }
}

/// Completes and validates a service of the API. If the body has no name, it gets `name`.
///
/// # Errors
/// Everything that is wrong with it, each with its key and place.
pub fn service(
    name: Option<&str>,
    body: &Json,
    defaults: &Defaults,
) -> Result<Service, Vec<Invalid>> {
    let Some(object) = body.as_object() else {
        let problem = "a service must be a JSON object with the keys of [[service]]";
        return Err(vec![Invalid::whole(problem)]);
    };
    let mut writer = Writer::default();
    writer.pointers.push((0, String::new()));
    let key = keys::SERVICE_NAME.name;
    match (name, object.get(key)) {
        (Some(name), Some(given)) if given != name => {
            let problem = format!(
                "{key} = {given} but the request's path names {name:?}; leave the key out, or give the same name"
            );
            return Err(vec![Invalid::at(format!("/{key}"), problem)]);
        }
        (Some(name), None) => writer.line(key, &Json::from(name)),
        _ => {}
    }
    for (key, value) in object {
        writer.line(key, value);
    }
    let Writer {
        text,
        pointers,
        nulls,
        ..
    } = writer;
    if !nulls.is_empty() {
        let invalid = nulls
            .into_iter()
            .map(|pointer| Invalid::at(pointer, "null is not a value; leave the key out"));
        return Err(invalid.collect());
    }
    let sink = document::Sink::of_request(&text, &pointers);
    let service = document::root(&sink).map(|section| file::service(section, defaults));
    let invalid = sink.into_invalid();
    match service {
        Some(service) if invalid.is_empty() => Ok(Service {
            owner: Owner::Api,
            ..service
        }),
        _ => Err(invalid),
    }
}

/// Writes JSON as TOML, and where each value begins.
#[derive(Default)]
struct Writer {
    text: String,
    /// JSON pointers, by the byte offset at which each begins.
    pointers: Vec<(usize, String)>,
    pointer: String,
    /// JSON pointers of what is null.
    nulls: Vec<String>,
}

impl Writer {
    /// A key of the top level.
    fn line(&mut self, key: &str, value: &Json) {
        self.key(key, value);
        self.text.push('\n');
    }

    fn key(&mut self, key: &str, value: &Json) {
        let outer = self.pointer.len();
        self.pointer.push('/');
        self.pointer
            .push_str(&key.replace('~', "~0").replace('/', "~1"));
        self.mark();
        self.string(key);
        self.text.push_str(" = ");
        self.value(value);
        self.pointer.truncate(outer);
    }

    fn mark(&mut self) {
        self.pointers.push((self.text.len(), self.pointer.clone()));
    }

    fn string(&mut self, text: &str) {
        // A basic string (TOML 1.0) has the escapes of JSON, but for the slash, which serde_json does not escape, and DEL.
        let quoted = Json::from(text).to_string().replace('\u{7f}', "\\u007f");
        self.text.push_str(&quoted);
    }

    fn value(&mut self, value: &Json) {
        self.mark();
        match value {
            // TOML has no null.
            Json::Null => {
                self.nulls.push(self.pointer.clone());
                self.text.push_str("\"\"");
            }
            Json::Bool(value) => self.text.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => self.number(number),
            Json::String(text) => self.string(text),
            Json::Array(elements) => {
                self.text.push('[');
                for (at, element) in elements.iter().enumerate() {
                    let outer = self.pointer.len();
                    self.text.push_str(if at == 0 { "" } else { ", " });
                    // Writing to a string does not fail.
                    let _ = write!(self.pointer, "/{at}");
                    self.value(element);
                    self.pointer.truncate(outer);
                }
                self.text.push(']');
            }
            Json::Object(object) => {
                self.text.push('{');
                for (at, (key, value)) in object.iter().enumerate() {
                    self.text.push_str(if at == 0 { "" } else { ", " });
                    self.key(key, value);
                }
                self.text.push('}');
            }
        }
    }

    fn number(&mut self, number: &serde_json::Number) {
        let text = number.to_string();
        match number.is_f64() && !text.contains(['.', 'e', 'E']) {
            true => self.text.push_str(&format!("{text}.0")),
            false => self.text.push_str(&text),
        }
    }
}

/// A service as the body of a request that makes the same one, whatever `[defaults]` say: every setting of its trackers is in it,
/// those that all trackers have in common once.
pub fn body(service: &Service) -> Json {
    let mut object = Map::new();
    object.insert(keys::SERVICE_NAME.name.to_owned(), json!(service.name));
    if !service.after.is_empty() {
        object.insert(keys::AFTER.name.to_owned(), json!(service.after));
    }
    match service.members_up {
        Policy::Any => {}
        wanted => {
            object.insert(keys::MEMBERS_UP.name.to_owned(), policy(wanted));
        }
    }
    if !service.preempt {
        object.insert(keys::PREEMPT.name.to_owned(), json!(false));
    }
    let trackers = service.members.iter().flat_map(|member| &member.trackers);
    let common = common(trackers);
    object.extend(common.clone());
    match &service.members[..] {
        [member] if has_short_form(member) && of_behinds(member, &common).is_some() => {
            object.extend(attachment(member, &common));
        }
        members => {
            let members = members.iter().map(|member| {
                let mut inner = rank(member);
                inner.extend(attachment(member, &common));
                Json::Object(inner)
            });
            object.insert(keys::MEMBER.name.to_owned(), members.collect());
        }
    }
    Json::Object(object)
}

/// How many must be up.
fn policy(policy: Policy) -> Json {
    match policy {
        Policy::Any => json!("any"),
        Policy::All => json!("all"),
        Policy::AtLeast(count) => json!(count),
    }
}

/// Whether the only member of a service is as the short form makes it.
fn has_short_form(member: &Member) -> bool {
    let name = service::default_name(member.role, member.endpoint);
    member.role == Some(Role::Active) && member.name == name && member.weight == default_weight()
}

fn default_weight() -> u16 {
    keys::WEIGHT.default_integer() as u16
}

/// The keys of a member that tell it from the others.
fn rank(member: &Member) -> Map<String, Json> {
    let mut object = Map::new();
    let mut set = |key: &keys::Key, value: Json| object.insert(key.name.to_owned(), value);
    if member.name != service::default_name(member.role, member.endpoint) {
        set(&keys::MEMBER_NAME, json!(&*member.name));
    }
    match member.role {
        Some(role) => set(&keys::ROLE, json!(role)),
        // Without it, an only member would have a role.
        None => set(&keys::PRIORITY, json!(member.priority)),
    };
    if member.weight != default_weight() {
        set(&keys::WEIGHT, json!(member.weight));
    }
    object
}

/// The behind addresses of a member whose trackers differ in nothing else.
fn of_behinds<'m>(
    member: &'m Member,
    common: &Map<String, Json>,
) -> Option<impl Iterator<Item = IpAddr> + use<'m>> {
    let mut trackers = member.trackers.iter();
    let is_plain = trackers.all(|tracker| {
        settings(tracker)
            .iter()
            .all(|(key, value)| common.get(key) == Some(value))
    });
    is_plain.then(|| member.trackers.iter().map(|tracker| tracker.behind))
}

/// The other keys of a member, its trackers with the settings that `common` has not.
fn attachment(member: &Member, common: &Map<String, Json>) -> Map<String, Json> {
    let Member {
        name: _,
        role: _,
        priority: _,
        weight: _,
        endpoint,
        interface,
        source,
        returns,
        return_hop,
        policy: wanted,
        mark,
        trackers,
    } = member;
    let mut object = Map::new();
    let mut set = |key: &keys::Key, value: Json| object.insert(key.name.to_owned(), value);
    set(&keys::ENDPOINT, json!(endpoint));
    if let Some(interface) = interface {
        set(&keys::INTERFACE, json!(interface));
    }
    if let Some(source) = source {
        set(&keys::SOURCE, json!(source));
    }
    if !returns.is_empty() {
        set(&keys::RETURNS, json!(returns));
    }
    if *return_hop != keys::RETURN_HOP.default_word(ReturnHop::WORDS) {
        set(&keys::RETURN_HOP, json!(return_hop));
    }
    if *wanted != Policy::Any {
        set(&keys::POLICY, policy(*wanted));
    }
    if let Some(mark) = mark {
        set(&keys::MEMBER_MARK, json!(mark));
    }
    match of_behinds(member, common) {
        Some(behinds) => drop(set(
            &keys::BEHIND,
            behinds.map(|behind| json!(behind)).collect(),
        )),
        None => {
            let trackers = trackers.iter().map(|tracker| {
                let mut inner = settings(tracker);
                inner.retain(|key, value| common.get(key) != Some(value));
                inner.insert(keys::BEHIND.name.to_owned(), json!(tracker.behind));
                Json::Object(inner)
            });
            set(&keys::TRACKER, trackers.collect());
        }
    }
    object
}

/// The settings that all these trackers have in common.
fn common<'t>(mut trackers: impl Iterator<Item = &'t Tracker>) -> Map<String, Json> {
    let mut common = trackers.next().map(settings).unwrap_or_default();
    for tracker in trackers {
        let settings = settings(tracker);
        common.retain(|key, value| settings.get(key) == Some(value));
    }
    common
}

/// The settings of a tracker that its kind of probe can have.
fn settings(tracker: &Tracker) -> Map<String, Json> {
    let Tracker {
        behind: _,
        probe,
        port,
        protocol,
        interval,
        timeout,
        fall,
        rise,
        payload,
        expect,
        flow,
        dscp,
        refused,
        hold_down,
        return_ttl,
    } = *tracker;
    let time = |time: Duration| json!(humantime::format_duration(time).to_string());
    let mut object = Map::new();
    let mut set = |key: &keys::Key, value: Json| object.insert(key.name.to_owned(), value);
    set(&keys::PROBE, json!(probe));
    set(&keys::INTERVAL, time(interval));
    set(&keys::TIMEOUT, time(timeout));
    set(&keys::FALL, json!(fall));
    set(&keys::RISE, json!(rise));
    set(&keys::EXPECT, json!(expect));
    set(&keys::FLOW, json!(flow));
    set(&keys::DSCP, json!(dscp));
    set(&keys::REFUSED, json!(refused));
    set(&keys::HOLD_DOWN, time(hold_down));
    if let Some(port) = port {
        set(&keys::PORT, json!(port));
    }
    if probe == Probe::Udp {
        set(&keys::PROTOCOL, json!(protocol));
    }
    if probe != Probe::Tcp {
        set(&keys::PAYLOAD, json!(payload));
    }
    if let Some(ttl) = return_ttl {
        set(&keys::RETURN_TTL, json!(ttl));
    }
    object
}

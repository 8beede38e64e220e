//! What the daemon says of itself, read from its JSON.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The object that `tracker status --json` prints.
///
/// Look-ups of what is not there give `Null`, "" or 0, so that a wait can ask for what is still to come.
#[derive(Debug, Clone, Default)]
pub struct Status(pub Value);

impl Status {
    /// A service by its name.
    #[must_use]
    pub fn service(&self, name: &str) -> &Value {
        find(&self.0["services"], |service| service["name"] == name)
    }

    /// A service's verdict.
    #[must_use]
    pub fn verdict(&self, service: &str) -> &str {
        text(&self.service(service)["verdict"])
    }

    /// A service's cause.
    #[must_use]
    pub fn cause(&self, service: &str) -> &str {
        text(&self.service(service)["cause"])
    }

    /// The name of the member in use, of a service with one member or a pair.
    #[must_use]
    pub fn selected(&self, service: &str) -> &str {
        text(&self.service(service)["selected"])
    }

    /// The names of the members in use of a pool.
    #[must_use]
    pub fn in_use(&self, service: &str) -> Vec<&str> {
        let names = self.service(service)["selected"].as_array();
        names.into_iter().flatten().map(text).collect()
    }

    /// A member of a service by its name.
    #[must_use]
    pub fn member(&self, service: &str, name: &str) -> &Value {
        find(&self.service(service)["members"], |member| {
            // Builds before this one have roles only.
            member["name"] == name || (member["name"].is_null() && member["role"] == name)
        })
    }

    /// The first tracker of a service that probes an address.
    #[must_use]
    pub fn tracker(&self, service: &str, behind: impl std::fmt::Display) -> &Value {
        let behind = behind.to_string();
        self.service(service)["members"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|member| {
                find(&member["trackers"], |tracker| {
                    tracker["behind"] == behind.as_str()
                })
            })
            .find(|tracker| !tracker.is_null())
            .unwrap_or(&Value::Null)
    }

    /// A counter (`sent`, `received`, `lost`, `duplicate`), summed over the trackers of a service.
    #[must_use]
    pub fn count(&self, service: &str, counter: &str) -> u64 {
        self.service(service)["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|member| member["trackers"].as_array())
            .flatten()
            .filter_map(|tracker| tracker[counter].as_u64())
            .sum()
    }
}

fn find(array: &Value, wanted: impl Fn(&Value) -> bool) -> &Value {
    array
        .as_array()
        .into_iter()
        .flatten()
        .find(|item| wanted(item))
        .unwrap_or(&Value::Null)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// One line of `tracker events --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of the instance.
    pub seq: u64,
    /// The service it is about; none for a change of a chain.
    pub service: Option<String>,
    /// The name of the member; none for a change of the service itself.
    pub member: Option<String>,
    /// The address behind; none for a change of the service or of the member itself.
    pub behind: Option<String>,
    /// The verdict before.
    pub from: String,
    /// The verdict after.
    pub to: String,
    /// Why.
    pub cause: String,
    /// How long it took to find out, if that is known.
    pub detection_us: Option<u64>,
}

impl Event {
    /// Reads one event, insisting on the keys of the contract. More keys are no fault: programs ignore what they do not
    /// know.
    ///
    /// # Errors
    /// Names the key that is missing or of another type.
    pub fn parse(line: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("parse event {line:?}"))?;
        for key in ["service", "member", "behind", "detection_us"] {
            ensure!(value.get(key).is_some(), "event {line} lacks {key}");
        }
        let string = |key: &str| {
            value[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{key} of event {line} is no string"))
        };
        let optional = |key: &str| {
            if value[key].is_null() {
                Ok(None)
            } else {
                string(key).map(Some)
            }
        };
        string("time")?;
        Ok(Self {
            seq: value["seq"]
                .as_u64()
                .with_context(|| format!("seq of event {line} is no number"))?,
            service: optional("service")?,
            member: optional("member")?,
            behind: optional("behind")?,
            from: string("from")?,
            to: string("to")?,
            cause: string("cause")?,
            detection_us: value["detection_us"].as_u64(),
        })
    }

    /// Whether it tells of a change of the service itself, not of a part of it.
    #[must_use]
    pub fn is_of_service(&self, name: &str) -> bool {
        self.service.as_deref() == Some(name) && self.member.is_none() && self.behind.is_none()
    }
}

/// One line, for people.
impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.seq)?;
        for part in [&self.service, &self.member, &self.behind]
            .into_iter()
            .flatten()
        {
            write!(f, " {part}")?;
        }
        write!(f, ": {} -> {}, {}", self.from, self.to, self.cause)?;
        if let Some(us) = self.detection_us {
            write!(f, " after {us} us")?;
        }
        Ok(())
    }
}

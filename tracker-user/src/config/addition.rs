//! A service that is added at run time: the short form of `[[service]]`, as options of a command and
//! as the request that carries them. Both are validated by what validates the file.

use std::convert::Infallible;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Config, Origin, Service, document, file};

/// What is known of a service that is to be added; endpoint and behind are enough. What is not given
/// is as in `[defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// What the service is called; no other service of the hub may have this name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The service's own address, the next hop of its probes
    #[arg(long, value_name = "IP")]
    pub endpoint: String,
    /// Addresses that are reached only through the service; each becomes a tracker
    #[arg(long, value_name = "IP", num_args = 1.., required = true)]
    pub behind: Vec<String>,
    /// The only way out for its probes; unless given, found from the endpoint's own route
    #[arg(long, value_name = "IF")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The source address of probes of its family
    #[arg(long, value_name = "IP")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The kind of probe: icmp, udp or tcp
    #[arg(long, value_name = "P")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// The destination port, for probes that have one
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// What the datagrams of udp probes are: echo or stamp
    #[arg(long, value_name = "P")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// From one probe to the next, such as 100ms
    #[arg(long, value_name = "D")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// How long a reply may take, such as 500ms
    #[arg(long, value_name = "D")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// So many losses in a row make it down
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<i64>,
    /// So many replies in a row make it up
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<i64>,
    /// Bytes after the probe's own header
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<i64>,
    /// Interfaces on which a reply may arrive; unless given, the outgoing one
    #[arg(long, value_name = "IF", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returns: Vec<String>,
    /// How many of its trackers must be up: any, all, or a number
    #[arg(long, value_name = "any|all|N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyWord>,
}

/// A policy as it was given, valid or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PolicyWord {
    /// At least so many trackers.
    Number(i64),
    /// What should be `any` or `all`.
    Word(String),
}

impl FromStr for PolicyWord {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let number = text.parse().map(Self::Number);
        Ok(number.unwrap_or_else(|_| Self::Word(text.to_owned())))
    }
}

impl Addition {
    /// Completes and validates the service, as one of the configuration's file would be. The error is
    /// one line that names what is wrong as the command's options.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn service(&self, config: &Config) -> Result<Service, String> {
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        let sink = document::Sink::of_command(&text);
        let service =
            document::root(&sink).map(|section| file::addition(section, &config.defaults));
        match (sink.into_line(), service) {
            (None, Some(service)) => Ok(Service {
                origin: Origin::RunTime,
                ..service
            }),
            (Some(line), _) => Err(line),
            // A document that does not parse leaves a problem in the sink.
            (None, None) => unreachable!("no document and no problem"),
        }
    }
}

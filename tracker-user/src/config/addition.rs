//! A service that is added at run time: the short form of `[[service]]`, as options of a command and as the request that
//! carries them. The table of keys makes the options, and what validates the file validates both.

use std::collections::BTreeMap;

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind, value_parser,
};
use serde::{Deserialize, Serialize};

use super::{
    Defaults, Origin, Service, document, file,
    keys::{self, Default as KeyDefault, Key, SERVICE_NAME, Table, Value},
};

/// A service that is to be added; endpoint and behind are enough. What is not given is as in `[defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Request")]
pub struct Addition {
    /// What the service is called; no other service of the hub may have this name.
    pub name: String,
    /// Its keys, valid or not.
    #[serde(flatten)]
    pub keys: BTreeMap<String, Given>,
}

/// An [`Addition`] as it is read, with any keys.
#[derive(Deserialize)]
struct Request {
    name: String,
    #[serde(flatten)]
    keys: BTreeMap<String, Given>,
}

impl TryFrom<Request> for Addition {
    type Error = String;

    fn try_from(Request { name, keys }: Request) -> Result<Self, String> {
        let is_known = |name: &String| options().any(|key| key.name == name);
        if let Some(unknown) = keys.keys().find(|name| !is_known(name)) {
            return Err(format!("unknown key `{}`", unknown.escape_debug()));
        }
        let mut required = options().filter(|key| key.default == KeyDefault::Required);
        match required.find(|key| !keys.contains_key(key.name)) {
            Some(missing) => Err(format!("missing key `{}`", missing.name)),
            None => Ok(Self { name, keys }),
        }
    }
}

/// A value as it was given, valid or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Given {
    /// A whole number.
    Number(i64),
    /// A word, an address, a time.
    Text(String),
    /// A list of addresses or names.
    List(Vec<String>),
}

impl From<&str> for Given {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The keys that a service added at run time may have, beside its name.
pub fn options() -> impl Iterator<Item = &'static Key> {
    let keys = keys::of(Table::Service).filter(|key| key.name != SERVICE_NAME.name);
    keys.filter(|key| !matches!(key.value, Value::Tables(_)))
}

fn option(key: &'static Key) -> Arg {
    let default = match key.default {
        KeyDefault::Required => String::new(),
        KeyDefault::Is(text) | KeyDefault::Text(text) => format!(" [default: {text}]"),
    };
    let argument = Arg::new(key.name)
        .long(key.name.replace('_', "-"))
        .value_name(key.placeholder().unwrap_or_default())
        .help(format!("{}{default}", key.doc.trim_end_matches('.')))
        .required(key.default == KeyDefault::Required);
    match key.value {
        Value::Integer { .. } => argument
            .value_parser(value_parser!(i64))
            .allow_negative_numbers(true),
        _ if key.is_list() => argument.num_args(1..).action(ArgAction::Append),
        _ => argument,
    }
}

impl Args for Addition {
    fn augment_args(command: Command) -> Command {
        let name = Arg::new(SERVICE_NAME.name)
            .value_name("NAME")
            .help(SERVICE_NAME.doc.trim_end_matches('.'))
            .required(true);
        command.arg(name).args(options().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Addition {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::new(ErrorKind::MissingRequiredArgument);
        let name = matches.get_one::<String>(SERVICE_NAME.name);
        let given = options().filter_map(|key| Some((key.name.to_owned(), given(matches, key)?)));
        Ok(Self {
            name: name.ok_or_else(missing)?.clone(),
            keys: given.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What was given for a key on the command line.
fn given(matches: &ArgMatches, key: &Key) -> Option<Given> {
    let text = || matches.get_one::<String>(key.name).cloned();
    match key.value {
        Value::Integer { .. } => matches.get_one(key.name).copied().map(Given::Number),
        Value::Policy | Value::Code { .. } => {
            let text = text()?;
            let number = text.parse().map(Given::Number);
            Some(number.unwrap_or(Given::Text(text)))
        }
        _ if key.is_list() => {
            let list = matches.get_many::<String>(key.name)?;
            Some(Given::List(list.cloned().collect()))
        }
        _ => text().map(Given::Text),
    }
}

impl Addition {
    /// The service as a document, in the order of the table of keys: so are the problems that are found in it.
    fn document(&self) -> Result<String, String> {
        let name = Given::Text(self.name.clone());
        let known = options().filter_map(|key| Some((key.name, self.keys.get(key.name)?)));
        let all = [(SERVICE_NAME.name, &name)].into_iter().chain(known);
        let mut text = String::new();
        for (key, given) in all {
            let value = toml::Value::try_from(given).map_err(|error| error.to_string())?;
            text.push_str(&format!("{key} = {value}\n"));
        }
        Ok(text)
    }

    /// Completes and validates the service, as one of the configuration's file would be. The error is
    /// one line that names what is wrong as the command's options.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn service(&self, defaults: &Defaults) -> Result<Service, String> {
        let text = self.document()?;
        let sink = document::Sink::of_command(&text);
        let service = document::root(&sink).map(|section| file::addition(section, defaults));
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

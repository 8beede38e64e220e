//! The options of `tracker service add`, made from the table of keys: the short form of `[[service]]`.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind, value_parser,
};
use serde_json::{Map, Value as Json};

use super::keys::{self, Default as KeyDefault, Key, SERVICE_NAME, Table, Value};

/// A service of one member as options give it. Values are checked by the daemon, which knows `[defaults]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceOptions {
    /// Name of the service.
    pub name: String,
    /// Its keys, valid or not.
    pub keys: Map<String, Json>,
}

/// The keys that have an option.
pub fn options() -> impl Iterator<Item = &'static Key> {
    let keys = keys::of(Table::Service).filter(|key| key.name != SERVICE_NAME.name);
    keys.filter(|key| !matches!(key.value, Value::Tables(_)) && !key.is_of_several())
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

impl Args for ServiceOptions {
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

impl FromArgMatches for ServiceOptions {
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
fn given(matches: &ArgMatches, key: &Key) -> Option<Json> {
    let text = || matches.get_one::<String>(key.name).cloned();
    match key.value {
        Value::Integer { .. } => matches.get_one::<i64>(key.name).copied().map(Json::from),
        Value::Policy(_) | Value::Code { .. } => {
            let text = text()?;
            let number = text.parse::<i64>().map(Json::from);
            Some(number.unwrap_or(Json::String(text)))
        }
        _ if key.is_list() => {
            let list = matches.get_many::<String>(key.name)?;
            Some(list.cloned().collect())
        }
        _ => text().map(Json::String),
    }
}

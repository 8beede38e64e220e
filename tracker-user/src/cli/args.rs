//! The arguments of each command, with their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::history;
use crate::api;
use crate::config::{self, ServiceOptions};
use crate::state::admin::AdminState;
use crate::state::events::Place;

const DEFAULT_SOCKET: &str = "/run/tracker/default.sock";

/// Tells, per inline service, whether traffic passes: probes an address that can be reached only
/// through the service, and counts the replies in the kernel.
#[derive(Debug, Parser)]
#[command(name = "tracker", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon of this host, in the foreground
    ///
    /// Loads and attaches the programs, pins their maps, sends probes and reports.
    ///
    /// SIGHUP reloads the configuration; one that is not valid changes nothing. SIGTERM and SIGINT
    /// detach everything and leave nothing behind.
    Run(RunArgs),
    /// Carry out the actions of a configuration, in the foreground
    ///
    /// Follows the daemon, and does what the `[[action]]` tables say: next-hop groups, routes, hooks, track files. What is not known
    /// changes nothing, and what was done stays when it ends.
    ///
    /// SIGHUP reloads the configuration; one that is not valid changes nothing. SIGTERM and SIGINT end it.
    Act(ActArgs),
    /// Validate a configuration without touching the kernel
    ///
    /// Reads and validates a configuration; needs no privileges.
    ///
    /// Every problem is one line on standard error, FILE:LINE:COLUMN: what is wrong and what to do, with the place underlined
    /// below it. A valid configuration is summed up: members, interfaces, probes a second, memory. Remarks on what is valid and
    /// may not be meant follow on standard output; they change no exit code.
    Check(CheckArgs),
    /// Show what is up and what is not
    ///
    /// Asks the daemon for the verdict of every service, member, tracker and chain, or of some.
    ///
    /// On a terminal what is not up comes first, and a narrow one has fewer columns and shorter details, but always verdict and
    /// cause. On a pipe the order is that of the configuration, and nothing is cut or left out.
    Status(StatusArgs),
    /// Print the ordered stream of verdict changes
    ///
    /// Prints every change of a verdict that the daemon still has, oldest first.
    ///
    /// Events are numbered from 1 without gap or repeat. Where events are no longer kept, one line says
    /// how many, and the number of the next.
    ///
    /// On a terminal, what one fault does to other services than the first is one line, a second later. `--json` and pipes have
    /// each event.
    Events(EventsArgs),
    /// Watch services live on the terminal
    ///
    /// Shows chains, services and members live: verdict, cause, loss and round-trip time, what is not up first, and events below.
    ///
    /// Enter opens a service and shows its trackers; `?` shows all keys; `q` ends it. While the daemon does not answer, the last
    /// picture stays, and it goes on when the daemon is back.
    Watch(WatchArgs),
    /// Add, remove and list services while the daemon runs
    ///
    /// Adds, removes and lists services without touching the others and without changing the
    /// configuration's file.
    ///
    /// What is added lives until it is removed: reload, restart and reboot keep it, unless the file then names a service of the
    /// same name, which counts from then on. What the file names is changed in the file.
    Service(ServiceArgs),
    /// Show loss, round-trip times and events of a service over time
    ///
    /// Prints the events, and a table of loss and round-trip times, of the last hour or of another time. With --svg, draws them.
    ///
    /// The daemon keeps a step a second for an hour, a step a minute for a week and a step an hour for two years, as far as
    /// `[history] size` allows; `tracker check` says how far.
    History(HistoryArgs),
    /// Show or change what the daemon logs
    ///
    /// Without a filter, prints what is logged. What is changed counts until the daemon ends; TRACKER_LOG in its environment says
    /// with what it begins, `info` if that is not set.
    Log(LogArgs),
    /// Say what this kernel and these interfaces can do, and which mode each would get
    ///
    /// Tries what the daemon needs, one line for each, and says what to do about what is missing.
    Doctor(DoctorArgs),
    /// Remove programs and pins that a killed daemon left
    ///
    /// Removes the programs, links, pins, journal and interfaces of an instance whose daemon is gone. Not
    /// needed before another one runs: that goes on with what is left.
    Cleanup(CleanupArgs),
}

/// Arguments of `tracker run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 ended by a signal; 1 could not run, standard error says why; 64 wrong usage."
)]
pub struct RunArgs {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// On SIGTERM, leave everything in place: the next daemon of the instance goes on, or `tracker cleanup` removes it
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `tracker act`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 ended by a signal, or printed, or undone; 1 could not, standard error says why; 64 wrong usage."
)]
pub struct ActArgs {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print what would be done now, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Undo what was done: remove routes, next-hop groups and next hops that are this program's, and end
    #[arg(long, conflicts_with = "dry_run")]
    pub withdraw: bool,
    /// The daemon's socket; that of the configuration if not given
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `tracker check`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 valid; 1 not valid or not readable; 64 wrong usage.")]
pub struct CheckArgs {
    /// The configuration, in TOML
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Also read this host's links, addresses and routes, change nothing, and say what would be done
    #[arg(long)]
    pub here: bool,
}

/// Arguments of `tracker status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all up; 2 something is not up; 1 no answer, or no such name; 64 wrong usage."
)]
pub struct StatusArgs {
    /// Only these services, and these chains and their services; `*`, `?` and `[...]` match as in a shell
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only what is not up: services and chains that are not, and members and trackers that are not
    #[arg(long)]
    pub down: bool,
    /// All columns and details, however narrow the terminal is
    #[arg(long)]
    pub wide: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Colours.
    #[command(flatten)]
    pub colour: ColourArg,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker watch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 ended by a key or a signal; 1 no answer at the start, no such name, or no terminal; 64 wrong usage."
)]
pub struct WatchArgs {
    /// Only these services, and these chains and their services; `*`, `?` and `[...]` match as in a shell
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Colours.
    #[command(flatten)]
    pub colour: ColourArg,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Whether there are colours.
#[derive(Debug, Args)]
pub struct ColourArg {
    /// When to use colours; `auto`: on a terminal, unless the environment variable NO_COLOR is set
    #[arg(long = "color", value_name = "WHEN", value_enum, default_value_t)]
    pub when: When,
}

/// When there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// On a pipe too.
    Always,
    /// Never.
    Never,
}

/// Arguments of `tracker events`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 printed; 1 no answer, or the daemon ended; 64 wrong usage.")]
pub struct EventsArgs {
    /// Only events of these services, and of these chains and their services; `*`, `?` and `[...]` match as in a shell
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after number SEQ, the last that was seen. Where numbers began anew since (another RUN, or a SEQ that
    /// was not given yet), one line says so, and all that is kept follows
    #[arg(long, value_name = "SEQ|RUN:SEQ")]
    pub since: Option<Place>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker history`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 printed or drawn; 1 no answer, no such service, nothing is kept, or FILE cannot be written; 64 wrong usage."
)]
pub struct HistoryArgs {
    /// The service
    #[arg(value_name = "NAME")]
    pub name: String,
    /// From when on: how long ago, such as 6h, or a time, such as 2026-01-31T18:00:00Z
    #[arg(long, value_name = "D|TIME", default_value = "1h", value_parser = since)]
    pub since: String,
    /// How fine; the finest that reaches back so far if not given
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(history::steps()))]
    pub step: Option<String>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "svg")]
    pub json: bool,
    /// Draw it into this file, which is made, or replaced if it is a regular file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// A time, or how long ago it was, as the daemon reads it.
fn since(text: &str) -> Result<String, String> {
    api::history::since(text, Timestamp::now()).map(|_| text.to_owned())
}

/// Arguments of `tracker log`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 printed or changed; 1 no such filter, no answer or not root; 64 wrong usage."
)]
pub struct LogArgs {
    /// What to log from now on: off, error, warn, info, debug, trace, or directives as tracker_user::net=debug,info
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker service`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 done; 1 refused or no answer; 64 wrong usage.")]
pub struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// The commands of `tracker service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Add a service; endpoint and behind are enough
    ///
    /// Adds a service of one member. What is not given is as in `[defaults]` of the configuration.
    ///
    /// A service that is not valid, has the name of another one, or finds no room is refused whole. The state directory keeps
    /// it: it survives restart and reboot.
    Add(AddArgs),
    /// Remove a service that was added
    ///
    /// Removes a service that was added at run time. One of the configuration's file is refused: the file owns it.
    Remove(RemoveArgs),
    /// Impose an admin state on a service, or on one of its members
    ///
    /// `maintenance`: probing goes on, the last verdict counts, and events are held back until the end. `up` and `down`: this counts
    /// instead of the verdict. `auto`: the verdict counts again. It survives restart and reboot.
    Set(SetArgs),
    /// List the services, and what owns each
    ///
    /// Lists the services in the order of the configuration, and those that were added after them.
    List(ListArgs),
}

/// Arguments of `tracker service add`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 added; 1 refused, nothing was changed, or no answer; 64 wrong usage."
)]
pub struct AddArgs {
    /// The service.
    #[command(flatten)]
    pub service: Box<ServiceOptions>,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker service remove`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 removed; 1 refused, nothing was changed, or no answer; 64 wrong usage."
)]
pub struct RemoveArgs {
    /// The service
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker service set`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 set; 1 refused, nothing was changed, or no answer; 64 wrong usage."
)]
pub struct SetArgs {
    /// The service
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Only this member, by its name, role or endpoint
    #[arg(long, value_name = "M")]
    pub member: Option<String>,
    /// What to impose
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(states()).map(|word| state(&word)))]
    pub state: AdminState,
    /// Why, in one line; shown by status and events
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// How long it lasts, such as 2h; until it is changed if not given
    #[arg(long = "for", value_name = "D", value_parser = humantime::parse_duration)]
    pub time: Option<Duration>,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

fn states() -> impl Iterator<Item = &'static str> {
    AdminState::WORDS.iter().map(|(word, _)| *word)
}

/// The admin state of a word that is one.
fn state(word: &str) -> AdminState {
    let mut words = AdminState::WORDS.iter();
    words
        .find(|(known, _)| *known == word)
        .map_or(AdminState::Auto, |(_, state)| *state)
}

/// Arguments of `tracker service list`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 listed; 1 no answer; 64 wrong usage.")]
pub struct ListArgs {
    /// Only these services, and those of these chains; `*`, `?` and `[...]` match as in a shell
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Colours.
    #[command(flatten)]
    pub colour: ColourArg,
    /// Where the daemon listens
    #[command(flatten)]
    pub socket: SocketArg,
}

/// Arguments of `tracker doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the daemon can run; 1 it cannot, or something could not be found out; 64 wrong usage."
)]
pub struct DoctorArgs {
    /// Also look at the interfaces that this configuration names
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tracker cleanup`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing is left; 1 something could not be removed, or its daemon runs; 64 wrong usage."
)]
pub struct CleanupArgs {
    /// The instance
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = config::checked_instance)]
    pub instance: String,
    /// Where the BPF file system is mounted
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// Where the daemon listens.
#[derive(Debug, Args)]
pub struct SocketArg {
    /// The daemon's socket
    #[arg(long = "socket", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;
    use serde_json::json;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, ErrorKind> {
        let arguments = std::iter::once(&"tracker").chain(arguments);
        Cli::try_parse_from(arguments)
            .map(|cli| cli.command)
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_its_exit_codes() {
        fn look(command: &mut clap::Command) {
            let name = command.get_name().to_owned();
            if name == "help" {
                return;
            }
            let help = command.render_long_help().to_string();
            assert!(help.contains("Exit codes: 0 "), "{name}: {help}");
            assert!(command.get_about().is_some(), "{name}");
            command.get_subcommands_mut().for_each(look);
        }
        Cli::command().get_subcommands_mut().for_each(look);
    }

    #[test]
    fn arguments_are_those_of_the_contract() {
        let Ok(Command::Status(status)) = parse(&["status", "fw-1", "--json"]) else {
            panic!("status");
        };
        assert_eq!(status.names, ["fw-1"]);
        assert_eq!(
            (status.down, status.wide, status.colour.when),
            (false, false, When::Auto)
        );
        let Ok(Command::Watch(watch)) = parse(&["watch", "fw-*", "vpn", "--color", "never"]) else {
            panic!("watch");
        };
        assert_eq!((watch.names.len(), watch.colour.when), (2, When::Never));
        assert!(status.json);
        assert_eq!(status.socket.path, Path::new("/run/tracker/default.sock"));
        let Ok(Command::Events(events)) =
            parse(&["events", "--follow", "--since", "7", "--socket", "/x"])
        else {
            panic!("events");
        };
        assert_eq!(
            (events.follow, events.since.unwrap(), events.json),
            (true, Place { run: None, seq: 7 }, false)
        );
        assert_eq!(events.socket.path, Path::new("/x"));
        let Ok(Command::Cleanup(cleanup)) = parse(&["cleanup"]) else {
            panic!("cleanup");
        };
        assert_eq!(cleanup.instance, "default");
        assert_eq!(cleanup.bpffs, Path::new("/sys/fs/bpf"));
        assert!(matches!(
            parse(&["run", "--config", "f", "--keep"]),
            Ok(Command::Run(RunArgs { keep: true, .. }))
        ));
        assert!(matches!(
            parse(&["doctor", "--json"]),
            Ok(Command::Doctor(_))
        ));
        assert!(matches!(parse(&["check", "f"]), Ok(Command::Check(_))));
        let words = [
            "history", "fw-1", "--since", "2d", "--step", "1m", "--svg", "f",
        ];
        let Ok(Command::History(history)) = parse(&words) else {
            panic!("history");
        };
        assert_eq!(
            (history.since.as_str(), history.step.as_deref()),
            ("2d", Some("1m"))
        );
        assert!(parse(&["history", "fw-1", "--since", "soon"]).is_err());
        assert!(parse(&["history", "fw-1", "--step", "2s"]).is_err());
        assert!(parse(&["history", "fw-1", "--json", "--svg", "f"]).is_err());
        let add = "service add fw-9 --endpoint 10.9.0.2 --behind 10.20.0.9 10.20.0.8 --behind ::1 \
                   --interface eth1 --source 10.9.0.1 --probe udp --port 9 --protocol stamp --interval 10ms --timeout 1s \
                   --fall 4 --rise 5 --payload 64 --returns eth1 eth2 --policy 2 --expect silence --flow rotate --refused up \
                   --hold-down 3s --return-hop endpoint --return-ttl -7 --socket /x";
        let words: Vec<_> = add.split_whitespace().collect();
        let Ok(Command::Service(ServiceArgs {
            command: ServiceCommand::Add(add),
        })) = parse(&words)
        else {
            panic!("service add");
        };
        let keys = json!({
            "endpoint": "10.9.0.2",
            "behind": ["10.20.0.9", "10.20.0.8", "::1"],
            "interface": "eth1",
            "source": "10.9.0.1",
            "probe": "udp",
            "port": 9,
            "protocol": "stamp",
            "interval": "10ms",
            "timeout": "1s",
            "fall": 4,
            "rise": 5,
            "payload": 64,
            "returns": ["eth1", "eth2"],
            "policy": 2,
            "expect": "silence",
            "flow": "rotate",
            "refused": "up",
            "hold_down": "3s",
            "return_hop": "endpoint",
            "return_ttl": -7,
        });
        assert_eq!(add.service.name, "fw-9");
        assert_eq!(serde_json::Value::Object(add.service.keys), keys);
        assert_eq!(add.socket.path, Path::new("/x"));
    }

    #[test]
    fn wrong_usage_is_refused() {
        let refused = |arguments: &[&str]| parse(arguments).err();
        assert_eq!(refused(&["run"]), Some(ErrorKind::MissingRequiredArgument));
        assert_eq!(
            refused(&["check"]),
            Some(ErrorKind::MissingRequiredArgument)
        );
        assert_eq!(refused(&["stop"]), Some(ErrorKind::InvalidSubcommand));
        for missing in [
            "service add fw-9 --endpoint 10.9.0.2",
            "service add fw-9 --behind 10.20.0.9",
            "service add --endpoint 10.9.0.2 --behind 10.20.0.9",
            "service remove",
        ] {
            let words: Vec<_> = missing.split(' ').collect();
            let kind = refused(&words);
            assert_eq!(kind, Some(ErrorKind::MissingRequiredArgument), "{missing}");
        }
        assert_eq!(
            refused(&["events", "--since", "-1"]),
            Some(ErrorKind::UnknownArgument)
        );
        // An instance is a directory that is removed: it must not lead elsewhere.
        for instance in ["..", "a/b", ""] {
            let arguments = ["cleanup", "--instance", instance];
            assert!(refused(&arguments).is_some(), "{instance}");
        }
    }
}

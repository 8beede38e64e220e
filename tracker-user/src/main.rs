//! `tracker`: parse arguments, choose an exit code; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use tracker_user::{
    act::actor,
    app,
    cli::{
        self,
        args::{ActArgs, Cli, Command},
        watch,
    },
    config::{self, Config},
    doctor::{self, By},
    host, reconcile,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If it is not read, the exit code still tells.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(cli::WRONG_USAGE),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match cli.command {
        Command::Check(args) => match cli::check(&args) {
            Ok(config) if args.here => block_on(async move {
                for line in doctor::here(&config).await? {
                    println!("{line}");
                }
                Ok(())
            }),
            Ok(_) => ExitCode::SUCCESS,
            Err(code) => code,
        },
        Command::Status(args) => cli::status(&args),
        Command::Events(args) => cli::events(&args),
        Command::Watch(args) => watch::watch(&args),
        Command::History(args) => cli::history(&args),
        Command::Service(args) => cli::service(args),
        Command::Log(args) => cli::log(&args),
        Command::Run(args) => {
            host::log::begin();
            let watchdog = match app::prepare() {
                Ok(watchdog) => watchdog,
                Err(error) => return cli::fail(format_args!("{error:#}")),
            };
            match config::load(&args.config) {
                Ok(config) => block_on(app::run(&args.config, config, args.keep, watchdog)),
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Act(args) => match config::load(&args.config) {
            Ok(config) => act(&args, config),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Command::Doctor(args) => match doctor::config(args.config.as_deref()) {
            Ok(config) => block_on(async move {
                let report = doctor::report(config.as_ref(), By::Command).await?;
                if args.json {
                    println!("{}", serde_json::to_string(&report)?);
                } else {
                    print!("{}", doctor::table(&report));
                }
                anyhow::ensure!(
                    report.ok,
                    "this host lacks what the daemon needs; see above"
                );
                Ok(())
            }),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Command::Cleanup(args) => block_on(async {
            let done = reconcile::cleanup::cleanup(&args.bpffs, &args.instance).await?;
            println!("{done}");
            Ok(())
        }),
    }
}

/// `tracker act`.
fn act(args: &ActArgs, mut config: Config) -> ExitCode {
    if let Some(socket) = &args.socket {
        config.hub.socket.clone_from(socket);
    }
    host::log::begin();
    // SAFETY: called once, and nothing else here knows descriptors that were passed to the process.
    let passed = unsafe { host::notify::kept_files() };
    block_on(async {
        match (args.withdraw, args.dry_run) {
            (true, _) => actor::withdraw(&config).await?,
            (_, true) => actor::dry_run(&args.config, config).await?,
            _ => actor::run(&args.config, config, args.socket.as_deref(), passed).await?,
        }
        Ok(())
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(work);
            // A background task may still wait for the kernel, as long as another process holds its locks.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(format_args!("{error:#}")),
    }
}

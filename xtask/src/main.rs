//! Developer commands of Tracker: `cargo xtask COMMAND`.

mod bench;
mod bpf;
mod build;
mod demo;
mod docs;
mod kernel;
mod layers;
mod lint;
mod load;
mod package;
mod python;
mod setup;
mod sh;
mod soak;
mod test;
mod toolchain;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use toolchain::Need;

/// Developer commands of Tracker. Each sets up by itself what it needs and is missing.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the eBPF toolchain and the programs that demo, test and bench run
    ///
    /// Debian packages come from apt, bpf-linker from crates.io. Nothing is asked; when all is there,
    /// nothing is done. The toolchain is recorded in ${XDG_CACHE_HOME:-~/.cache}/tracker/toolchain, which
    /// the build reads.
    Setup {
        /// Install nothing: list what is missing, and exit 1 if anything is
        #[arg(long)]
        check: bool,
        /// Take the compiler from there, whatever else is installed
        #[arg(long, conflicts_with = "check")]
        way: Option<Way>,
    },
    /// Build target/release/tracker, with the eBPF object inside
    Build,
    /// Build, then load, attach and run the daemon in the foreground (root)
    Load {
        /// The daemon's config
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show a firewall that answers pings but no longer passes traffic being found out (root)
    ///
    /// Builds a hub, an nftables firewall and a host behind it in network namespaces, breaks the firewall's
    /// forwarding, mends it, and says how long each detection took. Leaves nothing behind.
    Demo {
        /// Print, last, one JSON object with the result
        #[arg(long)]
        json: bool,
    },
    /// Run all tests, the end-to-end tests in network namespaces included (root)
    Test(test::Args),
    /// Measure cost, throughput and detection time, against fping on the same path (root)
    Bench {
        /// Print, last, one JSON object with the figures
        #[arg(long)]
        json: bool,
    },
    /// Write the generated documentation: docs/reference, man pages, shell completions, tracker.schema.json
    Docs {
        /// Take the pictures of the web page in docs/images anew, too (root)
        #[arg(long)]
        screenshots: bool,
    },
    /// Make the Debian package, its debug symbols, and the root of a container image
    ///
    /// All of it goes to target/package, and its sizes are printed. cargo-deb comes from crates.io and stays in the cache.
    Package(package::Args),
    /// Check formatting, clippy, documentation, and what keeps the tree honest
    Lint,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// Debian's rustc with its prebuilt core
    Debian,
    /// Your own rustc with the rust-src component
    RustSrc,
}

impl From<Way> for bpf::Way {
    fn from(way: Way) -> Self {
        match way {
            Way::Debian => Self::Debian,
            Way::RustSrc => Self::RustSrc,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup { check, way } => setup::run(check, way.map(Into::into)),
        Command::Build => build::run(),
        Command::Load { config } => load::run(&config),
        Command::Demo { json } => {
            sh::require_root("the demo makes network namespaces and", "cargo xtask demo")?;
            demo::run(json, &build::tracker(&[Need::Build, Need::Demo])?)
        }
        Command::Test(args) => test::run(&args),
        Command::Bench { json } => {
            sh::require_root(
                "the bench makes network namespaces and",
                "cargo xtask bench",
            )?;
            bench::run(
                json,
                &build::tracker(&[Need::Build, Need::Demo, Need::Bench])?,
            )
        }
        Command::Docs { screenshots } => docs::run(screenshots),
        Command::Package(args) => package::run(&args),
        Command::Lint => lint::run(&Cli::command()),
    }
}

//! `cargo xtask setup`: ends with a working toolchain and the programs that the demo, the tests and the
//! bench run, or with one line that says what to do.

use anyhow::{Result, bail};

use crate::{
    bpf::{Toolchain, Way},
    sh,
    toolchain::{self, Missing, Need},
};

/// Everything that any developer command needs.
const ALL: &[Need] = &[Need::Build, Need::Lint, Need::Demo, Need::Test, Need::Bench];

/// The command itself.
pub fn run(check: bool, way: Option<Way>) -> Result<()> {
    let missing = toolchain::missing(ALL);
    if check {
        for missing in &missing {
            sh::say(format_args!("missing: {missing}"));
        }
        if !missing.is_empty() {
            bail!("{} missing: run `cargo xtask setup`", missing.len());
        }
    }
    let toolchain =
        if !check && way.is_some_and(|way| toolchain::recorded().is_ok_and(|now| now.way != way)) {
            toolchain::install(way)?
        } else {
            provide(missing, way)?
        };
    sh::say(format_args!(
        "ready: {} (way {}) and {}",
        toolchain.rustc_version, toolchain.way, toolchain.linker_version
    ));
    Ok(())
}

/// Sets up what is missing of `needs`; silent when nothing is.
pub fn ensure(needs: &[Need]) -> Result<Toolchain> {
    provide(toolchain::missing(needs), None)
}

fn provide(missing: Vec<Missing>, way: Option<Way>) -> Result<Toolchain> {
    let (mut tools, mut components, mut toolchain_is_missing) = (Vec::new(), Vec::new(), false);
    for missing in &missing {
        sh::say(format_args!("missing: {missing}"));
    }
    toolchain::require_root_for_packages(&missing)?;
    for missing in missing {
        match missing {
            Missing::Toolchain(_) => toolchain_is_missing = true,
            Missing::Tool(tool) => tools.push(tool),
            Missing::Component(name) => components.push(name),
        }
    }
    if !tools.is_empty() {
        toolchain::install_tools(&tools)?;
    }
    if !components.is_empty() {
        toolchain::install_components(&components)?;
    }
    if toolchain_is_missing {
        return toolchain::install(way);
    }
    toolchain::recorded().map_err(|why| anyhow::anyhow!("{why}"))
}

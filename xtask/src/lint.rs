//! `cargo xtask lint`: formatting, clippy, documentation, and what keeps the tree honest.
//!
//! The checks of the tree are plain text searches. What they look for is put together with `concat!`, so
//! that they do not find themselves.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf::{self, Toolchain, Way},
    build, docs, layers, setup, sh,
    toolchain::{self, Need},
};

/// Runs every check; each that fails is told before this fails. `cli` is xtask's own command line.
pub fn run(cli: &clap::Command) -> Result<()> {
    let toolchain = setup::ensure(&[Need::Build, Need::Lint])?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, run: &mut dyn FnMut() -> Result<()>| {
        sh::say(format_args!("lint: {name}"));
        if let Err(error) = run() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };

    check("formatting", &mut || {
        sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
    });
    // In the release profile, as the tests are: one eBPF object serves both.
    check("clippy", &mut || {
        sh::run(
            sh::cargo()
                .args([
                    "clippy",
                    "--quiet",
                    "--release",
                    "--workspace",
                    "--all-targets",
                    "--locked",
                ])
                .args(["--", "--deny", "warnings"]),
        )
    });
    check("clippy of the eBPF crate", &mut || lint_bpf(&toolchain));
    check("documentation", &mut || {
        sh::run(
            sh::cargo()
                .args([
                    "doc",
                    "--quiet",
                    "--release",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ])
                .arg("--locked")
                .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    });
    check("generated documentation", &mut docs::check);
    let tree = Tree::read()?;
    check("tree", &mut || report(tree.problems()));
    check("imports go down and in no circle", &mut || {
        report(tree.imports())
    });
    check("keys stand in the table of keys alone", &mut || {
        report(tree.keys_elsewhere())
    });
    check("the book names every command and map", &mut || {
        let tracker = build::tracker(&[])?;
        report(tree.unnamed_in_book(commands(&tracker, &[])?, cli))
    });

    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    println!("lint: clean");
    Ok(())
}

fn report(problems: Vec<String>) -> Result<()> {
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

/// The eBPF crate is compiled by another compiler, so it takes that compiler's clippy. If there is none,
/// the crate is at least built with warnings denied.
fn lint_bpf(toolchain: &Toolchain) -> Result<()> {
    let target_dir = build::target_dir()?.join("bpf");
    let clippy = match toolchain.way {
        Way::Debian => toolchain::debian_clippy(toolchain),
        Way::RustSrc => Some("clippy-driver".into()),
    };
    let cargo = sh::cargo_path();
    let mut command = match clippy {
        Some(driver) => {
            let mut check = toolchain.cargo(&cargo, "check", &target_dir, &[]);
            check
                .env("RUSTC_WORKSPACE_WRAPPER", driver)
                // What `cargo clippy -- -D warnings` hands its driver.
                .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings");
            check
        }
        None => {
            sh::say("no clippy for this compiler: building with warnings denied instead");
            toolchain.cargo(&cargo, "build", &target_dir, &["-Dwarnings"])
        }
    };
    sh::run(
        command
            .arg("--quiet")
            .args(bpf::PACKAGE_ARGS)
            .current_dir(sh::root()),
    )
}

/// Files that must be there and say something.
const PAPERS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    SUMMARY,
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Cargo.lock",
    ".ci/run",
];

/// Files that must stay short, and their most lines: what is longer belongs in the book.
const SHORT: &[(&str, usize)] = &[("README.md", 150), ("ARCHITECTURE.md", 250)];
/// The table of contents of the book, which lies in the same directory.
const SUMMARY: &str = "docs/SUMMARY.md";
/// Pages of the book that are generated. What these name is not thereby explained.
const REFERENCE: &str = "docs/reference/";
/// Public places that the tree may point to; any other host in a URL is a mistake or a leak.
const HOSTS: &[&str] = &[
    "bpf.dev",
    "crates.io",
    "datatracker.ietf.org",
    "doc.rust-lang.org",
    "docs.ebpf.io",
    "docs.kernel.org",
    "docs.rs",
    "schemathesis.io",
    // Names of XML namespaces.
    "www.w3.org",
    "example.com",
    "example.net",
    "example.org",
    "git.kernel.org",
    "github.com",
    "json-schema.org",
    "keepachangelog.com",
    "localhost",
    "opensource.org",
    "prometheus.io",
    "rustup.rs",
    "semver.org",
    "sh.rustup.rs",
    "spdx.org",
    "www.apache.org",
    "www.debian.org",
    "www.rfc-editor.org",
    "www.rust-lang.org",
];

/// Files of the daemon's crate that are the binary's: there errors of all modules meet.
const BINARY: &[&str] = &["main.rs", "app.rs", "app/", "cli/"];

/// Directories of a developer's machine.
const MACHINE_DIRS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/work", "space/"),
    concat!("/mn", "t/"),
];

/// Git's own: a directory, or in a further worktree a file that names one.
const GIT: &str = ".git";

/// How keys and tokens begin.
const SECRETS: &[&str] = &[
    concat!("-----BEGIN", " "),
    concat!("AKI", "A"),
    concat!("gh", "p_"),
    concat!("github", "_pat_"),
    concat!("gl", "pat-"),
    concat!("xo", "xb-"),
    concat!("eyJh", "bGci"),
];

/// What unfinished Rust looks like. Clippy knows these too, but sees neither every feature nor every target.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
];

/// The committed text files: path from the root, contents.
struct Tree(Vec<(String, Vec<u8>)>);

impl Tree {
    /// Everything in the tree but git's own and cargo's target directory. Not `git ls-files`: a file that
    /// was not added is checked, and a source archive without git can be.
    fn read() -> Result<Self> {
        let left_out = [GIT, "target"].map(|name| sh::root().join(name));
        let mut files = Vec::new();
        for path in sh::files(sh::root(), |dir| {
            !left_out.iter().any(|left_out| left_out == dir)
        })? {
            let name = path
                .strip_prefix(sh::root())?
                .to_string_lossy()
                .into_owned();
            if name != GIT {
                let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
                files.push((name, bytes));
            }
        }
        files.sort();
        Ok(Self(files))
    }

    fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(file, _)| file == name)
            .and_then(|(_, bytes)| str::from_utf8(bytes).ok())
            .unwrap_or("")
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for paper in PAPERS {
            if self.text(paper).trim().is_empty() {
                problems.push(format!("{paper}: missing or empty"));
            }
        }
        let executable = |path: &Path| {
            fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
        };
        if !executable(&sh::root().join(".ci/run")) {
            problems.push(".ci/run: not executable".into());
        }
        if self.text(".gitignore").contains("Cargo.lock") {
            problems.push(".gitignore: Cargo.lock must be committed".into());
        }
        let version = env!("CARGO_PKG_VERSION");
        if !self.text("CHANGELOG.md").contains(version) {
            problems.push(format!("CHANGELOG.md: says nothing of version {version}"));
        }
        for (name, bytes) in &self.0 {
            match str::from_utf8(bytes) {
                Ok(text) if !text.contains('\0') => {
                    let leads = |target: &str| self.leads_somewhere(name, target);
                    problems.extend(text_problems(name, text, &leads));
                }
                // Pictures of the book.
                _ if name.starts_with("docs/images/") && name.ends_with(".png") => {}
                _ => problems.push(format!("{name}: a binary file")),
            }
        }
        for (name, most) in SHORT {
            let lines = self.text(name).lines().count();
            if lines > *most {
                problems.push(format!(
                    "{name}: {lines} lines, more than {most}; move what is not needed first to docs/"
                ));
            }
        }
        let contents: Vec<&str> = links(self.text(SUMMARY)).collect();
        for (page, _) in self.book().filter(|(name, _)| *name != SUMMARY) {
            if !contents.iter().any(|link| joined(SUMMARY, link) == page) {
                problems.push(format!("{SUMMARY}: no link to {page}"));
            }
        }
        problems
    }

    /// Imports of the daemon's crate that go up or round.
    fn imports(&self) -> Vec<String> {
        let files = self.0.iter().filter_map(|(name, bytes)| {
            let path = name.strip_prefix(layers::DIR)?;
            let text = str::from_utf8(bytes).ok()?;
            path.ends_with(".rs").then_some((path, text))
        });
        layers::problems(files)
    }

    /// Names of configuration keys that stand in the configuration's code outside of the table of keys.
    fn keys_elsewhere(&self) -> Vec<String> {
        const DIR: &str = "tracker-user/src/config/";
        let names: Vec<String> = key_names(self.text(&format!("{DIR}keys.rs")))
            .map(|name| format!("\"{name}\""))
            .collect();
        let product = self.0.iter().filter(|(file, _)| {
            file.starts_with(DIR) && !file.ends_with("/keys.rs") && !file.ends_with("/tests.rs")
        });
        let mut problems = Vec::new();
        if names.len() < 30 {
            problems.push(format!("{DIR}keys.rs: has no table of keys any more"));
        }
        for (file, bytes) in product {
            let text = String::from_utf8_lossy(bytes);
            let code = text.split("#[cfg(test)]\nmod tests {").next();
            for (number, line) in code.unwrap_or_default().lines().enumerate() {
                // A word that a value of a key has is no name: `Endpoint = "endpoint"` of `return_hop`.
                let is_name = |name: &&String| {
                    line.match_indices(name.as_str())
                        .any(|(at, _)| !line[..at].ends_with(" = "))
                };
                if let Some(name) = names.iter().find(is_name) {
                    problems.push(format!(
                        "{file}:{}: the key {name} by name; take it from config/keys.rs",
                        number + 1
                    ));
                }
            }
        }
        problems
    }

    /// The pages of the book, paths and texts.
    fn book(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, bytes)| {
            let is_page = name.starts_with("docs/") && name.ends_with(".md");
            is_page.then_some((name.as_str(), str::from_utf8(bytes).ok()?))
        })
    }

    /// Whether the relative target of a link in the file `from` exists, its anchor included.
    fn leads_somewhere(&self, from: &str, target: &str) -> bool {
        let (path, anchor) = match target.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (target, None),
        };
        let file = match path {
            "" => from.to_owned(),
            path => joined(from, path),
        };
        match anchor {
            Some(anchor) => anchors(self.text(&file))
                .iter()
                .any(|known| known == anchor),
            None => sh::root().join(file).exists(),
        }
    }

    /// Commands and maps that an operator or a developer meets, and that no written page of the book names.
    fn unnamed_in_book(&self, tracker: Vec<String>, cli: &clap::Command) -> Vec<String> {
        let written = self.book().filter(|(name, _)| !name.starts_with(REFERENCE));
        let pages: Vec<&str> = written.map(|(_, text)| text).collect();
        let book = pages.concat();
        let mut problems = Vec::new();
        let mut names: Vec<String> = cli
            .get_subcommands()
            .map(|command| format!("cargo xtask {}", command.get_name()))
            .collect();
        names.extend(tracker);
        for (file, bytes) in &self.0 {
            if file.starts_with("tracker-ebpf/src/") {
                names.extend(maps(&String::from_utf8_lossy(bytes)));
            }
        }
        let unnamed = names.into_iter().filter(|name| !mentions(&book, name));
        problems.extend(unnamed.map(|name| format!("docs: no page names `{name}`")));
        problems
    }
}

/// The names in the table of keys, but for tables: `hub` is a word too.
fn key_names(source: &str) -> impl Iterator<Item = &str> {
    let keys = source.split("pub static ").skip(1);
    let keys = keys.filter(|key| !key.contains("value: Value::Tables("));
    keys.filter_map(|key| {
        let (_, name) = key.split_once("name: \"")?;
        Some(name.split_once('"')?.0)
    })
}

/// The commands of `tracker` below `path`, and theirs, each as one types it.
fn commands(tracker: &Path, path: &[&str]) -> Result<Vec<String>> {
    let help = sh::output(Command::new(tracker).args(path).arg("--help"))
        .with_context(|| format!("`{} {} --help` failed", tracker.display(), path.join(" ")))?;
    let mut names = Vec::new();
    for name in subcommands(&help) {
        let path = [path, &[name]].concat();
        names.push(format!("tracker {}", path.join(" ")));
        names.extend(commands(tracker, &path)?);
    }
    Ok(names)
}

/// The subcommands in clap's help text, but for `help` itself.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // Deeper lines continue a description.
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name != "help")
}

/// The maps that a source file of the eBPF crate declares.
fn maps(source: &str) -> Vec<String> {
    let mut lines = source.lines().map(str::trim);
    let mut names = Vec::new();
    while lines.any(|line| line.starts_with("#[btf_map")) {
        let declared = lines
            .by_ref()
            .find_map(|line| line.split_once("static ")?.1.split(':').next());
        names.extend(declared.map(|name| name.trim_start_matches("mut ").to_owned()));
    }
    names
}

/// Whether `text` has `name` as words of their own.
fn mentions(text: &str, name: &str) -> bool {
    let part_of_word =
        |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
    text.match_indices(name).any(|(at, _)| {
        !part_of_word(text[..at].chars().next_back())
            && !part_of_word(text[at + name.len()..].chars().next())
    })
}

/// What is wrong with one text file; `leads` says whether the relative target of a link leads somewhere.
fn text_problems(name: &str, text: &str, leads: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    let is_license = name.starts_with("LICENSE");
    let is_rust = name.ends_with(".rs");
    let lines: Vec<&str> = text.lines().collect();
    let is_module = name.strip_prefix(layers::DIR).is_some_and(|path| {
        let is_part = |part: &str| path == part || (part.ends_with('/') && path.starts_with(part));
        !BINARY.iter().any(|part| is_part(part))
    });
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let product = if is_module {
        product.lines().count()
    } else {
        0
    };
    for (index, &line) in lines.iter().enumerate() {
        let mut found = |what: String| problems.push(format!("{name}:{}: {what}", index + 1));
        if line.ends_with([' ', '\t', '\r']) {
            found("trailing white space".into());
        }
        for dir in MACHINE_DIRS {
            // At the start of a path only: `docs/work/` is in the tree.
            if line.match_indices(dir).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-$}*".contains(c))
            }) {
                found(format!("a path of somebody's machine ({dir})"));
            }
        }
        for secret in SECRETS.iter().filter(|secret| line.contains(**secret)) {
            found(format!("looks like a secret ({secret})"));
        }
        for host in hosts(line).filter(|host| !is_license && !is_public(host)) {
            found(format!(
                "a host that lint.rs does not know as public ({host})"
            ));
        }
        if name == "Cargo.lock"
            && line.starts_with("source = ")
            && !line.contains("registry+https://github.com/rust-lang/crates.io-index")
        {
            found("a dependency that is not from crates.io".into());
        }
        if is_rust {
            for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
                found(format!("unfinished ({word})"));
            }
            let code = line.trim_start();
            if (code.starts_with("#[ignore]"))
                || (is_suppression(code) && !gives_reason(&lines[index..]))
            {
                found("gives no reason".into());
            }
            if index < product && !code.starts_with("//") {
                if code.contains("anyhow::") {
                    found("anyhow in a module; its errors are typed, by thiserror".into());
                }
                if code.contains(":#}") && code.contains("error") {
                    found("prints a typed error without its sources; use error::full".into());
                }
            }
            if takes_unsafe(code)
                && !lines[index.saturating_sub(8)..=index]
                    .iter()
                    .any(|line| line.contains("SAFETY"))
            {
                found("unsafe without a SAFETY comment".into());
            }
        }
    }
    if name.ends_with(".md") {
        for (number, line) in prose(text) {
            for link in links(line).filter(|link| !leads(link)) {
                problems.push(format!(
                    "{name}:{number}: a link to {link}, which does not exist"
                ));
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push(format!("{name}: no newline at the end"));
    }
    problems
}

fn is_suppression(code: &str) -> bool {
    ["allow(", "expect("].iter().any(|word| {
        code.strip_prefix("#[")
            .or(code.strip_prefix("#!["))
            .is_some_and(|code| code.starts_with(word))
    })
}

/// Whether the attribute that starts these lines has a reason.
fn gives_reason(lines: &[&str]) -> bool {
    let end = lines
        .iter()
        .position(|line| line.trim_end().ends_with(']'))
        .unwrap_or(0);
    lines[..=end].iter().any(|line| line.contains("reason = "))
}

fn takes_unsafe(code: &str) -> bool {
    !code.starts_with("//")
        && (code.contains(concat!("unsafe", " {")) || code.starts_with(concat!("unsafe", " impl")))
}

/// The hosts of the URLs in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.split("://").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-'));
        rest[..end.unwrap_or(rest.len())].trim_end_matches('.')
    })
}

/// Whether a host is on the list, or is no name at all: an address (documentation and tests use many), or
/// a placeholder.
fn is_public(host: &str) -> bool {
    HOSTS.contains(&host) || host.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// The relative targets of the Markdown links in a text, with their anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ']).next()?;
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
            .then_some(target)
    })
}

/// The lines of a Markdown text outside of fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        (!fenced && !is_fence).then_some((index + 1, line))
    })
}

/// The anchors that GitHub gives to the headings of a Markdown text.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let anchor: String = words.chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        // A heading that a page has twice gets a number the second time.
        let mut unique = anchor.clone();
        let mut twins = 0;
        while anchors.contains(&unique) {
            twins += 1;
            unique = format!("{anchor}-{twins}");
        }
        anchors.push(unique);
    }
    anchors
}

/// A path that stands in the file `from`, from the root.
fn joined(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, text: &str) -> Vec<String> {
        text_problems(name, text, &|target| {
            ["there.md", "#part"].contains(&target)
        })
    }

    #[test]
    fn each_check_finds_what_it_is_for() {
        let bad = [
            ("a.toml", "key = 1 \n".into(), "trailing white space"),
            (
                "a.md",
                format!("see {}me/notes\n", MACHINE_DIRS[0]),
                "somebody's machine",
            ),
            ("a.sh", format!("TOKEN={}0123\n", SECRETS[2]), "secret"),
            (
                "a.toml",
                format!("index = \"https{}registry.corp.test/index\"\n", "://"),
                "registry.corp.test",
            ),
            (
                "Cargo.lock",
                "source = \"git+ssh\"\n".into(),
                "not from crates.io",
            ),
            ("a.rs", format!("    {})\n", UNFINISHED[0]), "unfinished"),
            ("a.rs", format!("#[{}(dead_code)]\n", "allow"), "no reason"),
            (
                "a.rs",
                format!("#![{}(\n    dead_code\n)]\n", "expect"),
                "no reason",
            ),
            (
                "a.rs",
                format!("let x = unsafe{} f() }};\n", " {"),
                "SAFETY",
            ),
            (
                "tracker-user/src/net/a.rs",
                "use anyhow::Result;\n".into(),
                "anyhow in a module",
            ),
            (
                "tracker-user/src/api/a.rs",
                "    tracing::warn!(\"{error:#}\");\n".into(),
                "without its sources",
            ),
            ("a.md", "[here](gone.md#part)\n".into(), "gone.md"),
            ("a.md", "[here](there.md#gone)\n".into(), "there.md#gone"),
            ("a.md", "[here](#gone)\n".into(), "#gone"),
            ("a.md", "text".into(), "no newline"),
        ];
        for (name, text, expected) in bad {
            let found = problems(name, &text);
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{name} {text:?}: {found:?}"
            );
        }
    }

    #[test]
    fn honest_lines_pass() {
        let good = [
            (
                "a.md",
                "[a](there.md) [b](https://docs.rs/aya) [c](#part) http://192.0.2.1:9469/metrics\n"
                    .into(),
            ),
            ("a.md", "```console\n$ echo [a](gone.md)\n```\n".into()),
            ("a.sh", "cd \"$base/work/\" # target/root/x\n".into()),
            (
                "a.rs",
                format!("#[{}(dead_code, reason = \"why\")]\n", "allow"),
            ),
            (
                "tracker-user/src/app/a.rs",
                "use anyhow::Result;\ntracing::warn!(\"{error:#}\");\n".into(),
            ),
            (
                "tracker-user/src/net/a.rs",
                "#[cfg(test)]\nmod tests {\n    use anyhow::Result;\n}\n".into(),
            ),
            (
                "a.rs",
                format!(
                    "#![{}(\n    dead_code,\n    reason = \"why\"\n)]\n",
                    "allow"
                ),
            ),
            (
                "a.rs",
                format!("// SAFETY: it is.\nlet x = unsafe{} f() }};\n", " {"),
            ),
        ];
        for (name, text) in good {
            assert_eq!(problems(name, &text), [""; 0], "{name} {text:?}");
        }
    }

    #[test]
    fn a_key_by_name_is_found_outside_the_table() {
        let keys: String = (0..30)
            .map(|at| format!("pub static KEY: Key = Key {{\n    name: \"key{at}\",\n}};\n"))
            .collect();
        let file = |name: &str, text: &str| {
            (
                format!("tracker-user/src/config/{name}"),
                text.as_bytes().to_vec(),
            )
        };
        let tests = "#[cfg(test)]\nmod tests {\n    \"key7\"\n}\n";
        let mut tree = Tree(vec![file("keys.rs", &keys), file("hub.rs", tests)]);
        assert_eq!(tree.keys_elsewhere(), [""; 0]);
        tree.0.push(file("file.rs", "\nread(\"key7\")\n"));
        let problems = tree.keys_elsewhere();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("tracker-user/src/config/file.rs:2: the key \"key7\""));
        assert_eq!(Tree(Vec::new()).keys_elsewhere().len(), 1);
    }

    #[test]
    fn anchors_are_those_of_headings() {
        let text = "# What `tracker run` does, and why\n\n```console\n# tracker run\n```\n\n## Keys\n### 0.0.0.0\n## Keys\n";
        assert_eq!(
            anchors(text),
            ["what-tracker-run-does-and-why", "keys", "0000", "keys-1"]
        );
        assert_eq!(joined("docs/internals/a.md", "../b.md"), "docs/b.md");
        assert_eq!(joined("README.md", "docs/a.md"), "docs/a.md");
    }

    #[test]
    fn names_are_found_in_help_sources_and_text() {
        let help = "About.\n\nUsage: tracker <COMMAND>\n\nCommands:\n  run      Runs\n           on\n  cleanup  Removes\n  help     Print\n\nOptions:\n  -h\n";
        assert_eq!(subcommands(help).collect::<Vec<_>>(), ["run", "cleanup"]);
        let source = "#[btf_map]\n/// Doc.\npub static TRACKERS: Array<u32, 1> = Array::new();\n#[btf_map(name = \"x\")]\nstatic mut STATE: X = X::new();\n";
        assert_eq!(maps(source), ["TRACKERS", "STATE"]);
        assert!(mentions("run `tracker run --config`", "tracker run"));
        assert!(!mentions("run `tracker runner`", "tracker run"));
        assert!(!mentions("STATES and OLD_STATE", "STATE"));
    }
}

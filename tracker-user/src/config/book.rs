//! Holds the book against the program: its examples are valid, and its tables name every key of the config.

use std::fs;
use std::path::{Path, PathBuf};

use super::keys::{self, Default, Key, Table, Value};
use crate::api::types::{List, Status};
use crate::state::events::{Missed, Numbered, Reset};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README.md and the pages of the book.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut dirs = vec![root().join("docs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory of the book") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The fenced blocks of a text in one language, with the number of the line above each.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let mut open: Option<bool> = None;
    for (index, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(info), None) => {
                open = Some(info == language);
                if info == language {
                    blocks.push((index + 1, String::new()));
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(true)) => {
                if let Some((_, block)) = blocks.last_mut() {
                    block.push_str(line);
                    block.push('\n');
                }
            }
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn each_example_of_a_config_is_valid() {
    let mut count = 0;
    for path in pages() {
        let text = fs::read_to_string(&path).expect("a page");
        for (line, example) in blocks(&text, "toml") {
            count += 1;
            let name = format!("{} (block of line {line})", path.display());
            if let Err(error) = super::parse(&example, Path::new(&name)) {
                panic!("{error}");
            }
        }
    }
    assert!(count >= 8, "{count} examples");
}

#[test]
fn each_shipped_config_is_valid() {
    let mut count = 0;
    for directory in ["dist/conf", "dist/examples"] {
        for entry in fs::read_dir(root().join(directory)).expect("a directory of examples") {
            let path = entry.expect("an entry").path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                count += 1;
                if let Err(error) = super::load(&path) {
                    panic!("{error}");
                }
            }
        }
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn each_example_of_json_is_what_the_program_prints() {
    let text = page("docs/json.md");
    let blocks = blocks(&text, "json");
    let [(_, status), (_, list), (_, event)] = &blocks[..] else {
        panic!("{} blocks: a status, a list, an event", blocks.len());
    };
    let status: Status = serde_json::from_str(status).expect("a status");
    assert_eq!(status.services.len(), 1);
    let list: List = serde_json::from_str(list).expect("a list");
    assert_eq!(list.services.len(), 1);
    serde_json::from_str::<Numbered>(event).expect("an event");
    assert!(text.contains(r#"{"missed":N,"next":SEQ}"#));
    serde_json::from_str::<Missed>(r#"{"missed":1,"next":2}"#).expect("what stands for events");
    serde_json::from_str::<Reset>(r#"{"reset":true,"run":"..."}"#).expect("a new sequence");
}

/// The section of a page below a heading of the third level.
fn section<'t>(page: &'t str, heading: &str) -> &'t str {
    let start = format!("\n### {heading}\n");
    let (_, rest) = page.split_once(&start).expect(heading);
    rest.split("\n#").next().unwrap_or(rest)
}

#[test]
fn the_key_tables_have_each_key_and_its_default() {
    let page = page("docs/configuration.md");
    let is_of_service = |key: &&Key| !key.is_setting() && !matches!(key.value, Value::Tables(_));
    let tables: [(&str, Vec<&Key>); 6] = [
        ("hub", keys::of(Table::Hub).collect()),
        ("api", keys::of(Table::Api).collect()),
        (
            keys::SERVICE.name,
            keys::of(Table::Service).filter(is_of_service).collect(),
        ),
        ("member and tracker", keys::settings().collect()),
        ("steering", keys::of(Table::Steering).collect()),
        ("action", keys::of(Table::Action).collect()),
    ];
    for (heading, known) in tables {
        let rows: Vec<(&str, &str)> = section(&page, heading)
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .collect();
        let mut listed: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
        let mut names: Vec<&str> = known.iter().map(|key| key.name).collect();
        listed.sort_unstable();
        names.sort_unstable();
        assert_eq!(listed, names, "{heading}");
        for key in known {
            let (_, row) = rows
                .iter()
                .find(|(name, _)| *name == key.name)
                .expect("a row");
            let default = row.split(" | ").next().unwrap_or_default();
            if let Default::Is(text) = key.default {
                assert_eq!(
                    default.trim_matches(['`', '"']),
                    text,
                    "{heading}: {}",
                    key.name
                );
            }
            if let Value::Integer { least, most, .. } = key.value
                && key.is_setting()
            {
                assert!(
                    row.contains(&format!(" {least} to {most} |")),
                    "{heading}: {row}"
                );
            }
        }
    }
    let member = section(&page, "member and tracker");
    let both = [section(&page, keys::SERVICE.name), member].concat();
    let named = |text: &str, key: &Key| {
        let name = key.name;
        ["`", " = "]
            .iter()
            .any(|end| text.contains(&format!("`{name}{end}")))
    };
    for key in keys::of(Table::Member).filter(is_of_service) {
        assert!(named(&both, key), "{}", key.name);
    }
    for table in [Table::Member, Table::Tracker] {
        assert!(
            member.contains(&format!("`{}`", table.title())),
            "{table:?}"
        );
    }
    for key in keys::of(Table::Chain) {
        assert!(named(section(&page, "chain"), key), "{}", key.name);
    }
}

//! The direction of imports in the daemon's crate: no file imports a layer above its own, and no files import each other in a
//! circle. Tests are free to.

use std::collections::{BTreeMap, BTreeSet};

/// Where the files are.
pub const DIR: &str = "tracker-user/src/";

/// The layers, lowest first. A file may import those below its own, and others of its own.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["config"],
    &["desired"],
    // Pure.
    &["plan", "detector", "state"],
    &["datapath", "net", "host"],
    &["reconcile"],
    &["doctor"],
    &["api", "cli"],
    &["app", "act"],
];

/// Files that only wire or list.
const FREE: &[&str] = &["lib.rs", "main.rs"];
/// Files that are for tests alone.
const TESTS: &[&str] = &["tests.rs", "sim.rs", "book.rs", "growth.rs"];

/// What is wrong with the imports of these files, by path below [`DIR`] and text.
pub fn problems<'t>(files: impl IntoIterator<Item = (&'t str, &'t str)>) -> Vec<String> {
    let files: BTreeMap<Vec<&str>, (&str, &str)> = files
        .into_iter()
        .filter(|(path, _)| !FREE.contains(path))
        .filter(|(path, _)| !TESTS.contains(&path.rsplit('/').next().unwrap_or_default()))
        .map(|(path, text)| (module(path), (path, text)))
        .collect();
    let mut problems = Vec::new();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, (path, text)) in &files {
        let Some(layer) = layer(module) else {
            problems.push(format!(
                "{DIR}{path}: a directory that the table of layers in xtask/src/layers.rs does not have"
            ));
            continue;
        };
        let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
        let product = product.split("#[cfg(test)]\npub").next().unwrap_or(product);
        for import in imported(module, product) {
            let file = (1..=import.len()).rev().find_map(|len| {
                let import: Vec<&str> = import[..len].iter().map(String::as_str).collect();
                Some((files.get(&import)?.0, self::layer(&import)))
            });
            let Some((target, of_target)) = file.filter(|(target, _)| target != path) else {
                continue;
            };
            let is_new = imports.entry(path).or_default().insert(target);
            if is_new && of_target.is_some_and(|of_target| of_target > layer) {
                problems.push(format!("{DIR}{path}: imports {target}, which is above it"));
            }
        }
    }
    if let Some(circle) = circle(&imports) {
        problems.push(format!(
            "{DIR}: a circle of imports: {}",
            circle.join(" -> ")
        ));
    }
    problems
}

/// The path of a file's module.
fn module(path: &str) -> Vec<&str> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').collect()
}

fn layer(module: &[&str]) -> Option<usize> {
    let top = module.first()?;
    LAYERS.iter().position(|layer| layer.contains(top))
}

/// The paths that a text imports from its own crate, or names by `crate::`.
fn imported(module: &[&str], text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: Vec<&str> = code.collect();
    let code = code.join("\n");
    for (at, _) in code.match_indices("use ") {
        let begins = code[..at].ends_with(['\n', ' ', ')']) || at == 0;
        let tree = code[at + 4..].split(';').next().unwrap_or_default();
        if begins
            && ["crate::", "super::"]
                .iter()
                .any(|root| tree.starts_with(root))
        {
            let tree: String = tree.split_whitespace().collect();
            expand(&tree, &[], &mut paths);
        }
    }
    for (at, _) in code.match_indices("crate::") {
        let is_path = |c: &char| c.is_alphanumeric() || matches!(c, '_' | ':');
        let path: String = code[at..].chars().take_while(is_path).collect();
        paths.push(path.split("::").map(str::to_owned).collect());
    }
    let absolute = paths.into_iter().map(|path| {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let base = match path.first().map(String::as_str) {
            Some("super") => &module[..module.len().saturating_sub(ups)],
            _ => &[],
        };
        let from = if ups == 0 { 1 } else { ups };
        let base = base.iter().map(|part| (*part).to_owned());
        base.chain(path.into_iter().skip(from)).collect()
    });
    absolute.collect()
}

/// The paths of a tree of imports.
fn expand(tree: &str, outer: &[String], into: &mut Vec<Vec<String>>) {
    let (head, inner) = match tree.split_once('{') {
        Some((head, rest)) => (head, Some(rest.trim_end_matches('}'))),
        None => (tree, None),
    };
    let parts = head.split("::").filter(|part| !part.is_empty());
    let path: Vec<String> = outer
        .iter()
        .cloned()
        .chain(parts.map(str::to_owned))
        .collect();
    let Some(_) = inner else {
        into.push(path);
        return;
    };
    // The braces that belong together.
    let inner = &tree[head.len() + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&inner[from..at], &path, into);
                from = at + 1;
            }
            _ => {}
        }
    }
    if from < inner.len() {
        expand(&inner[from..], &path, into);
    }
}

/// A circle of imports, if there is one: the last file imports the first.
fn circle<'f>(imports: &BTreeMap<&'f str, BTreeSet<&'f str>>) -> Option<Vec<&'f str>> {
    fn walk<'f>(
        file: &'f str,
        imports: &BTreeMap<&'f str, BTreeSet<&'f str>>,
        way: &mut Vec<&'f str>,
        done: &mut BTreeSet<&'f str>,
    ) -> Option<Vec<&'f str>> {
        if let Some(at) = way.iter().position(|known| *known == file) {
            return Some(way[at..].to_vec());
        }
        if done.contains(file) {
            return None;
        }
        way.push(file);
        let targets = imports.get(file).into_iter().flatten();
        let found = targets
            .into_iter()
            .find_map(|target| walk(target, imports, way, done));
        way.pop();
        done.insert(file);
        found
    }
    let mut done = BTreeSet::new();
    let mut files = imports.keys();
    files.find_map(|file| walk(file, imports, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_go_down() {
        let good = [
            ("config/mod.rs", "mod file;\nuse std::path::Path;\n"),
            ("config/file.rs", "use super::Config;\n"),
            ("plan/mod.rs", ""),
            (
                "plan/member.rs",
                "use crate::{\n    config::{self, Member},\n    plan::mode::Mode,\n};\n",
            ),
            ("plan/mode.rs", "//! [`crate::api`] shows it.\n"),
            (
                "datapath/loader.rs",
                "use super::pins::{self, Pins};\nuse crate::plan::mode::Mode;\n",
            ),
            (
                "datapath/pins.rs",
                "#[cfg(test)]\nmod tests {\n    use crate::app;\n}\n",
            ),
            ("state/tests.rs", "use crate::app;\n"),
            ("app.rs", "use crate::datapath::loader;\n"),
            ("main.rs", "use tracker_user::app;\n"),
        ];
        assert_eq!(problems(good), [""; 0]);
    }

    #[test]
    fn an_import_of_what_is_above_is_found() {
        let app = ("app.rs", "");
        for text in [
            "use crate::app;\n",
            "use crate::{config, app::{self, App}};\n",
            "    pub(super) use crate::app::App;\n",
            "fn f() {\n    crate::app::g();\n}\n",
        ] {
            let found = problems([app, ("plan/mode.rs", text)]);
            assert_eq!(
                found,
                ["tracker-user/src/plan/mode.rs: imports app.rs, which is above it"],
                "{text}"
            );
        }
        assert!(problems([("misc/a.rs", "")])[0].contains("table of layers"));
    }

    #[test]
    fn a_circle_is_found() {
        let found = problems([
            ("plan/a.rs", "use super::b::B;\n"),
            ("plan/b.rs", "use crate::{state::c::C};\n"),
            ("state/c.rs", "use crate::plan::{a::A};\n"),
        ]);
        assert_eq!(
            found,
            ["tracker-user/src/: a circle of imports: plan/a.rs -> plan/b.rs -> state/c.rs"]
        );
    }
}

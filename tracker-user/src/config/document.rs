//! Reading a TOML document key by key, with the place of everything that is read.
//!
//! The document is walked rather than deserialised, so that one pass finds every problem, each with
//! its own line, and so that a value can be judged together with where it was written.

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::{
    ConfigError, Excerpt, Invalid, Problem,
    keys::{self, Key, Table, Value},
};

/// Longer values are cut if an error quotes them.
const QUOTED_CHARS: usize = 60;

/// Where a document comes from, for the places that errors name.
enum Origin<'a> {
    /// A file: lines.
    File(&'a Path),
    /// A JSON value that was written as TOML: its JSON pointers (RFC 6901) by the byte offset at which each begins, ascending.
    Request(&'a [(usize, String)]),
}

/// Something wrong in a document.
struct Found {
    /// The bytes that are wrong; none if a place is.
    span: Range<usize>,
    /// Name of the key, if it is not the one that stands there.
    key: Option<&'static str>,
    text: String,
}

/// Where problems are collected.
pub(super) struct Sink<'a> {
    text: &'a str,
    origin: Origin<'a>,
    problems: RefCell<Vec<Found>>,
    /// Where each line begins, once that is asked for: a walk over the file for each of ten thousand problems would take
    /// minutes.
    lines: OnceCell<Vec<usize>>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(text: &'a str, file: &'a Path) -> Self {
        Self::of(text, Origin::File(file))
    }

    /// A sink for a JSON value that was written as TOML, with the JSON pointer of each byte offset at which a key or a value
    /// begins, ascending.
    pub(super) fn of_request(text: &'a str, pointers: &'a [(usize, String)]) -> Self {
        Self::of(text, Origin::Request(pointers))
    }

    fn of(text: &'a str, origin: Origin<'a>) -> Self {
        Self {
            text,
            origin,
            problems: RefCell::default(),
            lines: OnceCell::new(),
        }
    }

    /// A key with a value, as the file would have it.
    pub(super) fn setting(&self, key: &Key, value: &str) -> String {
        format!("{} = {value}", key.name)
    }

    /// What stands at a byte offset, for the reader to find.
    pub(super) fn place(&self, at: usize) -> String {
        match self.origin {
            Origin::File(_) => format!("line {}", self.line(at)),
            Origin::Request(_) => self.pointer(at).to_owned(),
        }
    }

    /// The JSON pointer of a byte offset; empty of the whole document, and in a file.
    fn pointer(&self, at: usize) -> &str {
        let Origin::Request(pointers) = self.origin else {
            return "";
        };
        let after = pointers.partition_point(|(begin, _)| *begin <= at);
        after.checked_sub(1).map_or("", |last| &pointers[last].1)
    }

    pub(super) fn problem(&self, at: usize, text: impl Into<String>) {
        self.found_in(at..at, None, text.into());
    }

    /// Reports a problem of what stands in these bytes.
    pub(super) fn problem_in(&self, span: Range<usize>, text: impl Into<String>) {
        self.found_in(span, None, text.into());
    }

    fn found_in(&self, span: Range<usize>, key: Option<&'static str>, text: String) {
        self.problems.borrow_mut().push(Found { span, key, text });
    }

    /// The line of a byte offset, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines()
            .partition_point(|begin| *begin <= at.min(self.text.len()))
    }

    /// Where each line begins.
    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let ends = self.text.match_indices('\n').map(|(end, _)| end + 1);
            std::iter::once(0).chain(ends).collect()
        })
    }

    /// The first line of what stands in these bytes; the rest of the line if they are none.
    fn excerpt(&self, span: &Range<usize>) -> Excerpt {
        let line = self.line(span.start);
        let begin = self.lines().get(line - 1).copied().unwrap_or_default();
        let rest = self.text.get(begin..).unwrap_or_default();
        let text = rest.lines().next().unwrap_or_default();
        let length = text.trim_end().len();
        let from = span.start.saturating_sub(begin).min(length);
        let to = match span.is_empty() {
            true => length,
            false => (span.end - begin).min(length),
        };
        Excerpt {
            text: text.to_owned(),
            marked: from..to.max(from),
        }
    }

    /// The source text of a span, on one line and not too long.
    fn quote(&self, span: std::ops::Range<usize>) -> String {
        one_line(self.text.get(span).unwrap_or_default())
    }

    /// What was found wrong, in the order of the file, each once.
    pub(super) fn into_error(self) -> Option<ConfigError> {
        let Origin::File(file) = self.origin else {
            return None;
        };
        // A value that several trackers inherit is wrong once.
        let mut told = HashSet::new();
        let found = self.found().into_iter();
        let found = found.map(|found| (self.line(found.span.start), found.span, found.text));
        let problems: Vec<_> = found
            .filter(|(line, _, text)| told.insert((*line, text.clone())))
            .map(|(line, span, text)| Problem {
                file: file.to_owned(),
                line: Some(line),
                excerpt: Some(self.excerpt(&span)),
                text,
            })
            .collect();
        (!problems.is_empty()).then_some(ConfigError { problems })
    }

    /// What was found wrong with a request, in its order, each once.
    pub(super) fn into_invalid(self) -> Vec<Invalid> {
        let mut told = HashSet::new();
        let invalid = self.found().into_iter().map(|found| {
            let mut pointer = self.pointer(found.span.start).to_owned();
            if let Some(missing) = found.key {
                pointer = format!("{pointer}/{missing}");
            }
            Invalid::at(pointer, found.text)
        });
        invalid
            .filter(|invalid| told.insert(invalid.problem.clone()))
            .collect()
    }

    fn found(&self) -> Vec<Found> {
        let mut found = self.problems.take();
        found.sort_by_key(|found| found.span.start);
        found
    }
}

/// A text, or the beginning of one that has more lines or is too long.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, char) in text.chars().enumerate() {
        if char == '\n' || char == '\r' || count == QUOTED_CHARS {
            line.push_str("...");
            break;
        }
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line
}

/// The whole document as an owner of its sections; `None` when it is not TOML, which is then in the
/// sink.
pub(super) fn root<'a>(sink: &'a Sink<'a>) -> Option<Section<'a>> {
    match DeTable::parse(sink.text) {
        Ok(document) => Some(Section {
            sink,
            table: document.into_inner(),
            title: "the file".to_owned(),
            at: 0,
        }),
        Err(error) => {
            let message = error.message().split_whitespace().collect::<Vec<_>>();
            let text = format!(
                "not valid TOML: {}; correct the syntax here",
                message.join(" ")
            );
            let end = sink.text.len();
            sink.problem_in(error.span().unwrap_or(end..end), text);
            None
        }
    }
}

/// A value and the byte offset at which it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A value of a key whose type is a whole number, a time or a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Integer(u32),
    Duration(Duration),
    Word(&'static str),
}

/// One table of the document.
pub(super) struct Section<'a> {
    pub(super) sink: &'a Sink<'a>,
    table: DeTable<'a>,
    /// What errors call it.
    pub(super) title: String,
    pub(super) at: usize,
}

/// One value of a table, or one element of a list that is a value.
pub(super) struct Entry<'s> {
    pub(super) sink: &'s Sink<'s>,
    key: &'static Key,
    title: &'s str,
    value: &'s Spanned<DeValue<'s>>,
}

impl<'a> Section<'a> {
    /// Reports every key that `table` does not have.
    pub(super) fn only(&self, table: Table) {
        for key in self.table.keys() {
            let (name, span) = (key.get_ref().as_ref(), key.span());
            if keys::of(table).any(|known| known.name == name) {
                continue;
            }
            let hint = nearest(name, keys::of(table).map(|known| known.name)).unwrap_or_default();
            let belongs = elsewhere(name).unwrap_or_default();
            let text = format!(
                "unknown key `{}` in {}; {hint}{belongs}",
                name.escape_debug(),
                self.title
            );
            self.sink.problem_in(span, text);
        }
    }

    pub(super) fn problem(&self, at: usize, text: impl Display) {
        self.sink.problem(at, format!("{text} in {}", self.title));
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.table.contains_key(key.name)
    }

    pub(super) fn entry<'s>(&'s self, key: &'static Key) -> Option<Entry<'s>> {
        Some(Entry {
            sink: self.sink,
            key,
            title: &self.title,
            value: self.table.get(key.name)?,
        })
    }

    /// The value of a key; a missing key is a problem of the table.
    pub(super) fn required<'s>(&'s self, key: &'static Key, example: &str) -> Option<Entry<'s>> {
        let entry = self.entry(key);
        if entry.is_none() {
            self.missing(key, example, "");
        }
        entry
    }

    /// Reports a key that is missing.
    pub(super) fn missing(&self, key: &Key, example: &str, what: &str) {
        let setting = self.sink.setting(key, example);
        let text = format!(
            "missing key `{}` in {}; add {setting}{what}",
            key.name, self.title
        );
        self.sink.found_in(self.at..self.at, Some(key.name), text);
    }

    /// Takes the table `[key]` out of this one.
    pub(super) fn take_table(&mut self, key: &Key) -> Option<Section<'a>> {
        let key = key.name;
        let value = self.table.remove(key)?;
        let at = value.span().start;
        match value.into_inner() {
            DeValue::Table(table) => Some(Section {
                sink: self.sink,
                table,
                title: format!("[{key}]"),
                at,
            }),
            other => {
                let kind = kind(&other);
                let text = format!("`{key}` must be a table, not {kind}; write it as [{key}]");
                self.sink.problem(at, text);
                None
            }
        }
    }

    /// Takes the tables `[[key]]` out of this one, each called by its name, or by its number if it has none.
    pub(super) fn take_named(&mut self, key: &Key, name: &Key) -> Vec<Section<'a>> {
        self.take_tables(key, key.name, |index, table| {
            let name = table
                .get(name.name)
                .and_then(|name| name.get_ref().as_str());
            match name {
                Some(name) => format!("[[{}]] \"{}\"", key.name, name.escape_debug()),
                None => format!("[[{}]] {}", key.name, index + 1),
            }
        })
    }

    /// Takes the tables `[[key]]` out of this one, each with its title.
    pub(super) fn take_tables(
        &mut self,
        key: &Key,
        path: &str,
        title: impl Fn(usize, &DeTable<'_>) -> String,
    ) -> Vec<Section<'a>> {
        let key = key.name;
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let wrong = |at: usize, kind: &str| {
            let text =
                format!("`{key}` must be a list of tables, not {kind}; write each as [[{path}]]");
            self.sink.problem(at, text);
        };
        let at = value.span().start;
        let elements = match value.into_inner() {
            DeValue::Array(elements) => elements,
            other => {
                wrong(at, kind(&other));
                return Vec::new();
            }
        };
        let mut sections = Vec::with_capacity(elements.len());
        for (index, element) in elements.into_iter().enumerate() {
            let at = element.span().start;
            match element.into_inner() {
                DeValue::Table(table) => sections.push(Section {
                    sink: self.sink,
                    title: title(index, &table),
                    table,
                    at,
                }),
                other => wrong(at, kind(&other)),
            }
        }
        sections
    }
}

impl<'s> Entry<'s> {
    pub(super) fn at(&self) -> usize {
        self.value.span().start
    }

    fn found<T>(&self, value: T) -> Option<At<T>> {
        Some(At {
            value,
            at: self.at(),
        })
    }

    /// Reports the value; `why` says why and what to do.
    pub(super) fn refuse(&self, why: impl Display) {
        let setting = self
            .sink
            .setting(self.key, &self.sink.quote(self.value.span()));
        let text = format!("{setting} in {}: {why}", self.title);
        self.sink.problem_in(self.value.span(), text);
    }

    fn wrong_type(&self, wanted: &str) {
        self.refuse(format_args!(
            "must be {wanted}, not {}",
            kind(self.value.get_ref())
        ));
    }

    pub(super) fn string(&self, wanted: &str) -> Option<At<&'s str>> {
        match self.value.get_ref() {
            DeValue::String(text) => self.found(text.as_ref()),
            _ => {
                self.wrong_type(wanted);
                None
            }
        }
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<At<bool>> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => self.found(*value),
            _ => {
                self.wrong_type("true or false");
                None
            }
        }
    }

    /// The elements of a list that is not empty.
    pub(super) fn list(&self, wanted: &str) -> Vec<Entry<'s>> {
        let elements: &DeArray<'s> = match self.value.get_ref() {
            DeValue::Array(elements) => elements,
            _ => {
                self.wrong_type(wanted);
                return Vec::new();
            }
        };
        if elements.is_empty() {
            self.refuse(format_args!("an empty list; give {wanted} or leave it out"));
        }
        elements
            .iter()
            .map(|value| Entry { value, ..*self })
            .collect()
    }

    /// A whole number within the key's range.
    pub(super) fn integer(&self) -> Option<At<u32>> {
        let range = self.key.integers();
        let Value::Integer {
            why_least: Some(why),
            ..
        } = self.key.value
        else {
            return self.integer_of(range);
        };
        let (least, most) = (*range.start(), *range.end());
        let found = self.integer_of(0..=most)?;
        if found.value < least {
            self.refuse(format_args!("too small: {why}; give {least} to {most}"));
            return None;
        }
        Some(found)
    }

    pub(super) fn integer_of(&self, range: RangeInclusive<u32>) -> Option<At<u32>> {
        let (low, high) = (range.start(), range.end());
        let DeValue::Integer(integer) = self.value.get_ref() else {
            self.wrong_type(&format!("a whole number from {low} to {high}"));
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if range.contains(&value) => self.found(value),
            _ => {
                self.refuse(format_args!(
                    "out of range; give a whole number from {low} to {high}"
                ));
                None
            }
        }
    }

    /// A whole number with a sign, within the key's range.
    pub(super) fn signed(&self) -> Option<At<i32>> {
        let range = self.key.signed();
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(integer) = self.value.get_ref() else {
            self.wrong_type(&wanted);
            return None;
        };
        match i32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if range.contains(&value) => self.found(value),
            _ => {
                self.refuse(format_args!("out of range; give {wanted}"));
                None
            }
        }
    }

    /// A whole number within the key's range, or a word for one.
    fn code(&self, words: &[(&str, u32)]) -> Option<At<u32>> {
        let DeValue::String(text) = self.value.get_ref() else {
            return self.integer();
        };
        match words.iter().find(|(word, _)| *word == &**text) {
            Some((_, number)) => self.found(*number),
            None => {
                let list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let range = self.key.integers();
                self.refuse(format_args!(
                    "not a name of a value; give {} to {}, or one of {}",
                    range.start(),
                    range.end(),
                    list.join(", ")
                ));
                None
            }
        }
    }

    /// A time within the key's range.
    pub(super) fn duration(&self) -> Option<At<Duration>> {
        let range = self.key.durations();
        let low = humantime::format_duration(*range.start());
        let high = humantime::format_duration(*range.end());
        let wanted = "a duration in quotes with its unit, such as \"100ms\"";
        let text = self.string(wanted)?.value;
        match humantime::parse_duration(text) {
            Ok(value) if range.contains(&value) => self.found(value),
            Ok(_) => {
                self.refuse(format_args!("out of range; give {low} to {high}"));
                None
            }
            Err(error) => {
                self.refuse(format_args!("not a duration ({error}); give {wanted}"));
                None
            }
        }
    }

    /// A size within the key's range, or 0.
    pub(super) fn size(&self) -> Option<At<u64>> {
        let range = self.key.sizes();
        let limits = format!(
            "{} to {}, or \"0\"",
            keys::size_text(*range.start()),
            keys::size_text(*range.end())
        );
        self.parsed("a size in quotes with its unit, such as \"256MiB\"", |text| match keys::parsed_size(text) {
            Some(size) if size == 0 || range.contains(&size) => Ok(size),
            Some(_) => Err(format!("out of range; give {limits}")),
            None => Err(format!(
                "not a size; give a whole number with KiB, MiB, GiB or TiB, such as \"256MiB\", from {limits}"
            )),
        })
    }

    /// A value of a whole number, a time or a word.
    pub(super) fn setting(&self) -> Option<At<Setting>> {
        let (value, at) = match self.key.value {
            Value::Integer { .. } => {
                let At { value, at } = self.integer()?;
                (Setting::Integer(value), at)
            }
            Value::Code { words, .. } => {
                let At { value, at } = self.code(words)?;
                (Setting::Integer(value), at)
            }
            Value::Duration { .. } => {
                let At { value, at } = self.duration()?;
                (Setting::Duration(value), at)
            }
            Value::Word(words) => {
                let words: Vec<_> = words().into_iter().map(|word| (word, word)).collect();
                let At { value, at } = self.word(&words)?;
                (Setting::Word(value), at)
            }
            _ => return None,
        };
        Some(At { value, at })
    }

    /// One of a key's words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<At<T>> {
        let list = || {
            let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            quoted.join(", ")
        };
        let text = self.string(&format!("one of {}", list()))?.value;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => self.found(*value),
            None => {
                self.refuse(format_args!("not one of {}", list()));
                None
            }
        }
    }

    /// A value that `parse` makes of the text, or says why it cannot and what to do.
    pub(super) fn parsed<T>(
        &self,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        match parse(self.string(wanted)?.value) {
            Ok(value) => self.found(value),
            Err(why) => {
                self.refuse(why);
                None
            }
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Where a key that is unknown in one table belongs, if it is known in another.
fn elsewhere(name: &str) -> Option<String> {
    let places = [
        (Table::Defaults, "[defaults] or a [[service]]"),
        (Table::Service, "a [[service]]"),
        (Table::Member, "a [[service.member]]"),
        (Table::Chain, "a [[chain]]"),
        (Table::Hub, "[hub]"),
        (Table::Steering, "[steering]"),
        (Table::Api, "[api]"),
        (Table::Action, "an [[action]]"),
        (Table::Root, "the top level of the file"),
    ];
    let (_, place) = places
        .iter()
        .find(|(table, _)| keys::of(*table).any(|key| key.name == name))?;
    Some(format!(" (`{name}` belongs in {place})"))
}

/// Of these, the name that is most like `name`; the first of several.
pub(super) fn likeliest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    known.min_by(|a, b| likeness(b).total_cmp(&likeness(a)))
}

/// Names the known key that is most like `name`, as a question when it is very like it.
fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<String> {
    let likeness = |key: &str| {
        // Edits find slips of the finger, Jaro-Winkler finds abbreviations.
        strsim::normalized_damerau_levenshtein(name, key) + strsim::jaro_winkler(name, key)
    };
    let (score, key) = known
        .map(|key| (likeness(key), key))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    Some(if score > 1.0 {
        format!("did you mean `{key}`?")
    } else {
        format!("the nearest known key is `{key}`")
    })
}

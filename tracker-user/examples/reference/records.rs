//! Pages of what is printed as JSON, from the schemas that the types' own documentation makes.

use std::fmt::Write as _;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

/// A page that has the keys of a record and of all records in it, a section each.
pub struct Page {
    text: String,
    generator: SchemaGenerator,
    /// Records that have a section, or will have.
    known: Vec<String>,
}

impl Page {
    /// A page with its title and first paragraph.
    pub fn new(title: &str, intro: &str) -> Self {
        Self {
            text: format!("# {title}\n\n{intro}\n"),
            generator: SchemaSettings::draft2020_12().into_generator(),
            known: Vec::new(),
        }
    }

    /// Adds the sections of a record and of those in it.
    pub fn record<T: JsonSchema>(&mut self) {
        self.generator.subschema_for::<T>();
        let all: Map<String, Value> = self.generator.definitions().clone();
        let first = T::schema_name().into_owned();
        let begin = self.known.len();
        if !self.known.contains(&first) {
            self.known.push(first);
        }
        let mut at = begin;
        while let Some(name) = self.known.get(at).cloned() {
            at += 1;
            if let Some(schema) = all.get(&name) {
                self.section(&name, schema, &all);
            }
        }
    }

    /// The page.
    pub fn finish(self) -> String {
        self.text
    }

    fn section(&mut self, name: &str, schema: &Value, all: &Map<String, Value>) {
        // Writing to a string does not fail.
        let _ = write!(self.text, "\n## {name}\n\n");
        if let Some(text) = schema["description"].as_str() {
            let _ = write!(self.text, "{}\n\n", one_line(text));
        }
        self.text
            .push_str("| key | type | meaning |\n|---|---|---|\n");
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        for (key, property) in properties {
            let mut kind = self.kind(property, all);
            if !required.contains(&key.as_str()) && !kind.contains("null") {
                kind.push_str(", may be absent");
            }
            let meaning = property["description"].as_str().unwrap_or_default();
            let _ = writeln!(self.text, "| `{key}` | {kind} | {} |", one_line(meaning));
        }
    }

    /// The type of a value in words; a record gets a section.
    fn kind(&mut self, schema: &Value, all: &Map<String, Value>) -> String {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap_or_default();
            let target = &all[name];
            if let Some(words) = words(target) {
                return words;
            }
            if !self.known.iter().any(|known| known == name) {
                self.known.push(name.to_owned());
            }
            return format!("[{name}](#{})", name.to_lowercase());
        }
        if let Some(words) = words(schema) {
            return words;
        }
        if let Some(parts) = schema["anyOf"].as_array() {
            let parts: Vec<_> = parts.iter().map(|part| self.kind(part, all)).collect();
            return parts.join(" or ");
        }
        match &schema["type"] {
            Value::Array(types) => {
                let types = types.iter().filter_map(Value::as_str);
                let types: Vec<_> = types.map(|kind| scalar(kind, schema)).collect();
                types.join(" or ")
            }
            Value::String(kind) if kind == "array" => {
                format!("list of {}", self.kind(&schema["items"], all))
            }
            Value::String(kind) => scalar(kind, schema),
            _ => String::new(),
        }
    }
}

/// The words of an enum.
fn words(schema: &Value) -> Option<String> {
    let of = |values: &[Value]| {
        let words = values.iter().filter_map(Value::as_str);
        let words: Vec<_> = words.map(|word| format!("`{word}`")).collect();
        (!words.is_empty()).then(|| words.join(", "))
    };
    if let Some(values) = schema["enum"].as_array() {
        return of(values);
    }
    let variants = schema["oneOf"].as_array()?;
    let values: Vec<Value> = variants
        .iter()
        .map(|variant| variant["const"].clone())
        .collect();
    // A list of many is told on a page of its own.
    match values.len() {
        0..=4 => of(&values),
        _ => Some("a [cause](causes.md)".to_owned()),
    }
}

fn scalar(kind: &str, schema: &Value) -> String {
    match (kind, schema["format"].as_str()) {
        ("integer", _) => "number".to_owned(),
        ("string", Some("ip")) => "IP address".to_owned(),
        ("string", Some("date-time")) => "time (RFC 3339)".to_owned(),
        (kind, _) => kind.to_owned(),
    }
}

/// The variants of an enum with what their documentation says: the word, the meaning, and what follows `Effect:`.
pub fn variants<T: JsonSchema>() -> Vec<(String, String, String)> {
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>();
    let variants = schema.as_value()["oneOf"].as_array().cloned();
    let variants = variants.unwrap_or_default().into_iter();
    variants
        .map(|variant| {
            let text = variant["description"].as_str().unwrap_or_default();
            let (meaning, effect) = text.split_once("\n\nEffect: ").unwrap_or((text, ""));
            let word = variant["const"].as_str().unwrap_or_default();
            (word.to_owned(), one_line(meaning), one_line(effect))
        })
        .collect()
}

/// A text as a cell of a table.
pub fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

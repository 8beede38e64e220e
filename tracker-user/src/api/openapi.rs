//! The OpenAPI document (version 3.1), made from the table of calls, the schemas of what they answer, and the table of keys.

use axum::http::StatusCode;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value as Json, json};

use super::{
    events::Format,
    history::ServiceHistory,
    metrics,
    problem::{PROBLEM_JSON, Problem},
    routes::{self, Api, Content, Kind, MAX_NAMES, Parameter, REFUSALS, Route},
    types::{AdminWanted, Changed, Health, List, LogFilter, Status},
};
use crate::{
    config::{NAME_MAX, reference},
    doctor::Report,
    host::history::Tier,
    state::{
        admin::Admin,
        events::{Missed, Numbered, Reset},
    },
};

/// The document.
pub fn document<A: Api>() -> Json {
    let mut schemas = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    schemas.inline_subschemas = false;
    let mut generator = schemas.into_generator();
    let mut paths = Map::new();
    for route in routes::table::<A>() {
        let operation = operation(&route, &mut generator);
        let path = paths
            .entry(route.path.to_owned())
            .or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.as_str().to_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tracker",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API of Tracker's per-host daemon, on its Unix socket; what changes nothing also on `[api] listen`.",
        },
        "paths": paths,
        "components": {"schemas": generator.take_definitions(true)},
    })
}

fn operation<A>(route: &Route<A>, generator: &mut SchemaGenerator) -> Json {
    let mut parameters: Vec<Json> = names_in(route.path)
        .map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
        })
        .collect();
    parameters.extend(route.query.iter().map(parameter));
    let mut responses = Map::new();
    for (status, content) in route.answers {
        responses.insert(status.to_string(), response(*status, *content, generator));
    }
    let mut refusals = [&REFUSALS[..], route.refusals].concat();
    if route.body != Content::Empty {
        refusals.push(408);
    }
    for status in refusals {
        let problem = generator.subschema_for::<Problem>();
        // A status may say the same of itself in its own words, or in those of every call.
        let response = responses
            .entry(status.to_string())
            .or_insert_with(|| json!({"description": reason(status)}));
        response["content"][PROBLEM_JSON] = json!({"schema": problem});
    }
    // The head of a request is limited before any call is known, so there is no text.
    let long = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16();
    responses.insert(long.to_string(), json!({"description": reason(long)}));
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "parameters": parameters,
        "responses": responses,
    });
    if let Some((media, schema)) = content(route.body, generator) {
        operation["requestBody"] =
            json!({"required": true, "content": {media: {"schema": schema}}});
    }
    operation
}

/// The names in braces of a path.
fn names_in(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.split('/');
    parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn operation_id<A>(route: &Route<A>) -> String {
    let words = route.path.split(['/', '.']).filter(|part| !part.is_empty());
    let words: Vec<_> = words.map(|word| word.trim_matches(['{', '}'])).collect();
    format!(
        "{}_{}",
        route.method.as_str().to_lowercase(),
        words.join("_")
    )
}

fn parameter(parameter: &Parameter) -> Json {
    let schema = match parameter.kind {
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Names => {
            json!({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": NAME_MAX}, "maxItems": MAX_NAMES})
        }
        Kind::Time => json!({"anyOf": [
            {"type": "string", "pattern": "^[0-9]{1,5}[smhd]$"},
            {"type": "string", "format": "date-time"},
        ]}),
        Kind::Count => json!({"type": "integer", "minimum": 0, "maximum": 999_999_999}),
        Kind::Step => {
            json!({"enum": Tier::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>()})
        }
        Kind::Place => json!({"type": "string", "pattern": "^([0-9a-f]{16}:)?[0-9]{1,15}$"}),
    };
    json!({"name": parameter.name, "in": "query", "required": false, "description": parameter.doc, "schema": schema})
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}

fn response(status: u16, of: Content, generator: &mut SchemaGenerator) -> Json {
    let mut response = json!({"description": reason(status)});
    match of {
        Content::Events => {
            response["content"] = json!({
                Format::Lines.media_type(): {"schema": {"type": "string"}},
                Format::ServerSent.media_type(): {"schema": {"type": "string"}},
            });
            // The lines of the stream, for readers of the document: media types of streams have no schema of their parts.
            let lines = [
                generator.subschema_for::<Numbered>(),
                generator.subschema_for::<Missed>(),
                generator.subschema_for::<Reset>(),
            ];
            response["x-lines"] = json!({"anyOf": lines});
        }
        Content::Metrics => {
            response["content"] = json!({
                metrics::Format::Prometheus.media_type(): {"schema": {"type": "string"}},
                metrics::Format::OpenMetrics.media_type(): {"schema": {"type": "string"}},
            });
        }
        of => {
            if let Some((media, schema)) = content(of, generator) {
                response["content"] = json!({media: {"schema": schema}});
            }
        }
    }
    response
}

/// The media type and the schema of a body; none if there is no body.
fn content(of: Content, generator: &mut SchemaGenerator) -> Option<(&'static str, Json)> {
    let schema = match of {
        Content::Empty | Content::Events | Content::Metrics => return None,
        Content::Status => generator.subschema_for::<Status>().to_value(),
        Content::List => generator.subschema_for::<List>().to_value(),
        Content::Changed => generator.subschema_for::<Changed>().to_value(),
        Content::Admin => generator.subschema_for::<Admin>().to_value(),
        Content::AdminWanted => generator.subschema_for::<AdminWanted>().to_value(),
        Content::History => generator.subschema_for::<ServiceHistory>().to_value(),
        Content::Health => generator.subschema_for::<Health>().to_value(),
        Content::Service => reference::service_schema(),
        Content::Services => json!({
            "type": "object",
            "properties": {"services": {"type": "array", "items": reference::named_service_schema()}},
            "required": ["services"],
            "additionalProperties": false,
        }),
        Content::Doctor => generator.subschema_for::<Report>().to_value(),
        Content::Log => generator.subschema_for::<LogFilter>().to_value(),
        Content::OpenApi => json!({"type": "object"}),
    };
    Some(("application/json", schema))
}

//! `[api]`.

use std::net::SocketAddr;

use super::{
    Api, Tls,
    document::{At, Section},
    keys::{self, Table},
    values::{absolute, socket_address},
};

/// Reads the table; `metrics` is the address of `[hub] metrics`.
pub(super) fn read(mut section: Section<'_>, metrics: Option<SocketAddr>) -> Api {
    section.only(Table::Api);
    let tls = section
        .take_table(&keys::TLS)
        .and_then(|section| tls(&section));
    let listen = section
        .entry(&keys::LISTEN)
        .and_then(|entry| entry.parsed("an address and port", socket_address));
    let token_file = section
        .entry(&keys::TOKEN_FILE)
        .and_then(|entry| entry.parsed("a path", absolute));
    let web = section.entry(&keys::WEB).and_then(|entry| entry.boolean());
    if let Some(At { value: listen, .. }) = listen {
        if Some(listen) == metrics
            && let Some(entry) = section.entry(&keys::LISTEN)
        {
            entry.refuse(format_args!(
                "{} of [hub] is the same address; give each its own, or leave that one out: this one serves /metrics too",
                keys::METRICS.quoted()
            ));
        }
        if !listen.ip().is_loopback() {
            let what = ", without which only a loopback address may be given";
            if tls.is_none() {
                section.missing(
                    &keys::TLS,
                    "{ certificate = \"PATH\", key = \"PATH\" }",
                    what,
                );
            }
            if token_file.is_none() {
                section.missing(&keys::TOKEN_FILE, "\"PATH\"", what);
            }
        }
    } else {
        let is_wanted = tls.is_some() || token_file.is_some() || web.is_some_and(|web| web.value);
        if is_wanted && !section.has(&keys::LISTEN) {
            let what = ", the address to serve on";
            section.missing(&keys::LISTEN, "\"127.0.0.1:9470\"", what);
        }
    }
    Api {
        listen: listen.map(|listen| listen.value),
        token_file: token_file.map(|file| file.value),
        tls,
        web: web.is_some_and(|web| web.value),
    }
}

fn tls(section: &Section<'_>) -> Option<Tls> {
    section.only(Table::Tls);
    let file = |key| {
        let entry = section.required(key, "\"PATH\"")?;
        Some(entry.parsed("a path", absolute)?.value)
    };
    let (certificate, key) = (file(&keys::CERTIFICATE), file(&keys::TLS_KEY));
    Some(Tls {
        certificate: certificate?,
        key: key?,
    })
}

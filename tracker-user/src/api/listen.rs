//! The API over TCP (`[api]`): which requests it takes, and with which certificate.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, Version, header},
    middleware::{self, Next},
    routing::Router,
};
use subtle::ConstantTimeEq as _;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject as _},
        },
    },
};

use super::problem::Problem;
use crate::config;

/// Most bytes of a token.
const TOKEN_MAX: usize = 4_096;

/// Why the API cannot be served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The token's file cannot be read.
    #[error("cannot read the token of [api] from {}; check the path and its permissions", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file has no token.
    #[error("{} has no token of 1 to {TOKEN_MAX} printable ASCII characters; write one, as of `openssl rand -hex 32`", .0.display())]
    NoToken(PathBuf),
    /// A file of `tls` cannot be read.
    #[error("cannot read {what} of [api] tls from {}; give a file in PEM", .path.display())]
    Pem {
        /// What it should have.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The certificate cannot be used.
    #[error("cannot use the certificate of [api] tls; check that the key is the certificate's")]
    Certificate(#[source] rustls::Error),
}

/// How the API is served over TCP.
#[derive(Clone)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// For HTTPS.
    pub tls: Option<TlsAcceptor>,
    /// Whether the web page is served.
    pub web: bool,
    token: Option<Arc<str>>,
}

impl Listen {
    /// Reads what the configuration names; `None` if it names no address.
    ///
    /// # Errors
    /// When a file cannot be read or has something else.
    pub fn read(config: &config::Api) -> Result<Option<Self>, ListenError> {
        let Some(address) = config.listen else {
            return Ok(None);
        };
        Ok(Some(Self {
            address,
            tls: config.tls.as_ref().map(acceptor).transpose()?,
            web: config.web,
            token: config.token_file.as_deref().map(token).transpose()?,
        }))
    }

    /// The router with the checks that every request over TCP passes first.
    pub fn guard(&self, router: Router) -> Router {
        let listen = Arc::new(self.clone());
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let listen = listen.clone();
            async move {
                match listen.check(&request) {
                    Ok(()) => next.run(request).await,
                    Err(refusal) => *refusal,
                }
            }
        }))
    }

    fn check(&self, request: &Request) -> Result<(), Box<Response<Body>>> {
        if !self.is_host(request.version(), request.uri(), request.headers()) {
            // A page of another site that had its name lead here would be told everything (DNS rebinding).
            let detail = format!(
                "this host is known as {} and as localhost here, and the request is for another one",
                self.address
            );
            let problem = Problem::new(StatusCode::MISDIRECTED_REQUEST, detail);
            return Err(Box::new(problem.response()));
        }
        let is_page = !request.uri().path().starts_with("/v1/")
            && request.uri().path() != super::routes::METRICS;
        let Some(token) = self.token.as_ref().filter(|_| !is_page) else {
            return Ok(());
        };
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|given| given.as_bytes().split_at_checked(7));
        let is_it = given.is_some_and(|(scheme, given)| {
            scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.ct_eq(token.as_bytes()))
        });
        if is_it {
            return Ok(());
        }
        let detail = "the request does not bear the token of [api] token_file; send `Authorization: Bearer TOKEN`";
        let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).response();
        let scheme = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, scheme);
        Err(Box::new(response))
    }

    /// Whether a request is for this address or for a loopback name.
    fn is_host(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (uri.host(), hosts.next(), hosts.next()) {
            (Some(host), ..) => Some(host),
            (None, Some(host), None) => host.to_str().ok(),
            // Before HTTP/1.1 no host was named, and no browser speaks that.
            (None, None, None) => return version < Version::HTTP_11,
            _ => None,
        };
        let Some(host) = host else { return false };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => host,
        };
        let name = name.trim_end_matches('.');
        let address = name.trim_start_matches('[').trim_end_matches(']');
        match address.parse::<IpAddr>() {
            Ok(address) => {
                let own = self.address.ip();
                // Any address of the host leads to one that listens on all.
                address.is_loopback() || address == own || own.is_unspecified()
            }
            Err(_) => {
                let name = name.to_ascii_lowercase();
                name == "localhost" || name.ends_with(".localhost")
            }
        }
    }
}

fn token(path: &Path) -> Result<Arc<str>, ListenError> {
    let text = fs::read_to_string(path).map_err(|source| ListenError::Token {
        path: path.to_owned(),
        source,
    })?;
    let token = text.trim();
    let is_valid =
        (1..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    match is_valid {
        true => Ok(token.into()),
        false => Err(ListenError::NoToken(path.to_owned())),
    }
}

fn acceptor(tls: &config::Tls) -> Result<TlsAcceptor, ListenError> {
    let refused = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ListenError::Pem { what, path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|certificates| match certificates.is_empty() {
            true => Err(pem::Error::NoItemsFound),
            false => Ok(certificates),
        })
        .map_err(refused("the certificate", &tls.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(refused("the key", &tls.key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let builder = builder.with_no_client_auth();
            builder.with_single_cert(certificates, key)
        })
        .map_err(ListenError::Certificate)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str) -> Listen {
        Listen {
            address: address.parse().unwrap(),
            tls: None,
            web: false,
            token: Some("secret".into()),
        }
    }

    fn request(path: &str, host: &str, authorization: Option<&str>) -> Request {
        let mut request = Request::builder().uri(path).header(header::HOST, host);
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn only_its_own_names_are_served() {
        let of = |listen: &Listen, host: &str| {
            let request = request("/", host, None);
            listen.check(&request).map_err(|refusal| refusal.status())
        };
        let one = listen("192.0.2.1:9470");
        for host in [
            "192.0.2.1:9470",
            "192.0.2.1",
            "localhost:9470",
            "LOCALHOST",
            "127.0.0.1:9470",
            "[::1]:9470",
            "hub.localhost.",
        ] {
            assert_eq!(of(&one, host), Ok(()), "{host}");
        }
        for host in [
            "192.0.2.2",
            "example.com",
            "localhost.example.com",
            "[2001:db8::1]:9470",
            "",
            "[",
            "a:b:c",
        ] {
            assert_eq!(
                of(&one, host),
                Err(StatusCode::MISDIRECTED_REQUEST),
                "{host}"
            );
        }
        assert_eq!(of(&listen("0.0.0.0:9470"), "192.0.2.9:9470"), Ok(()));
        assert_eq!(of(&listen("[2001:db8::1]:1"), "[2001:db8::1]:1"), Ok(()));
        let mut twice = request("/", "localhost", None);
        twice
            .headers_mut()
            .append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(one.check(&twice).is_err());
    }

    #[test]
    fn a_token_is_asked_for_but_for_the_page() {
        let listen = listen("127.0.0.1:9470");
        let of = |path: &str, authorization: Option<&str>| {
            let request = request(path, "localhost", authorization);
            listen.check(&request).map_err(|refusal| {
                assert_eq!(refusal.headers()[header::WWW_AUTHENTICATE], "Bearer");
                refusal.status()
            })
        };
        for path in ["/v1/status", "/metrics", "/v1/openapi.json"] {
            assert_eq!(of(path, Some("Bearer secret")), Ok(()));
            assert_eq!(of(path, Some("bearer secret")), Ok(()));
            for wrong in [
                None,
                Some("Bearer secre"),
                Some("Bearer secret2"),
                Some("Basic secret"),
                Some("secret"),
                Some(""),
            ] {
                assert_eq!(of(path, wrong), Err(StatusCode::UNAUTHORIZED), "{wrong:?}");
            }
        }
        assert_eq!(of("/", None), Ok(()));
    }

    #[test]
    fn what_the_configuration_names_is_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let config = |token: PathBuf| config::Api {
            listen: Some("127.0.0.1:9470".parse().unwrap()),
            token_file: Some(token),
            ..config::Api::default()
        };
        let read = Listen::read(&config(file("good", "  secret\n")))
            .unwrap()
            .unwrap();
        assert_eq!(read.token.as_deref(), Some("secret"));
        for bad in ["", "\n", "two words", "caf\u{e9}"] {
            let read = Listen::read(&config(file("bad", bad)));
            assert!(matches!(read, Err(ListenError::NoToken(_))), "{bad}");
        }
        let read = Listen::read(&config(dir.path().join("none")));
        assert!(matches!(read, Err(ListenError::Token { .. })));
        let with_tls = config::Api {
            tls: Some(config::Tls {
                certificate: file("cert", "nonsense"),
                key: file("key", "nonsense"),
            }),
            ..config(file("good", "secret"))
        };
        let read = Listen::read(&with_tls);
        assert!(matches!(
            read,
            Err(ListenError::Pem {
                what: "the certificate",
                ..
            })
        ));
        assert!(Listen::read(&config::Api::default()).unwrap().is_none());
    }
}

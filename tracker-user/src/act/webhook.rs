//! Webhooks: an event as the body of a POST.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    body::Bytes,
    http::{HeaderName, HeaderValue, Method, Request, Uri, header},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject as _},
    },
};

use crate::error::full;

/// Where systems keep the certificates of authorities, beside what SSL_CERT_FILE names.
const AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Most bytes of a file with headers.
const HEADERS_MAX: u64 = 65_536;
/// Most bytes that are read of an answer.
const ANSWER_MAX: usize = 65_536;
/// Most characters of an answer that are told.
const TOLD_MAX: usize = 120;

/// Why a webhook cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The URL has no host.
    #[error("{0:?} is no URL of a host; give one such as \"https://example.net/path\"")]
    Url(String),
    /// The file with headers cannot be read.
    #[error("cannot read headers_file {}; check the path and its permissions", .path.display())]
    Headers {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A line of the file is no header.
    #[error("{}:{line}: not a header; write each as `Name: value`, comments after #", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// No authority is known by which a server could be trusted.
    #[error(
        "no certificates of authorities in {}; install ca-certificates, or name a file by SSL_CERT_FILE", AUTHORITIES[0]
    )]
    NoAuthorities,
    /// The host's name can be in no certificate.
    #[error("no certificate can be for the host {host:?}")]
    Host {
        /// The host.
        host: String,
        /// Why.
        source: InvalidDnsNameError,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] tokio_rustls::rustls::Error),
}

/// Where events are sent.
pub struct Webhook {
    host: String,
    port: u16,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Present of https.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Webhook {
    /// Without headers, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}{}", self.host, self.port, self.path)
    }
}

impl Webhook {
    /// A webhook to a URL that the configuration has checked.
    ///
    /// # Errors
    /// When the headers cannot be read, or the system has no authorities.
    pub fn of(url: &str, headers_file: Option<&Path>) -> Result<Self, WebhookError> {
        let invalid = || WebhookError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let host = uri.host().ok_or_else(invalid)?;
        // An IPv6 address stands in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_tls = uri.scheme_str() == Some("https");
        let tls = match is_tls {
            true => {
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|source| WebhookError::Host {
                    host: host.to_owned(),
                    source,
                })?;
                Some((connector()?, name))
            }
            false => None,
        };
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            path: uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
            headers: headers_file.map_or_else(|| Ok(Vec::new()), headers)?,
            tls,
        })
    }

    /// Sends an event; `key` names it, so that a receiver can tell a repetition.
    ///
    /// # Errors
    /// Why it did not arrive, in one line.
    pub async fn post(&self, body: &str, key: &str) -> Result<(), String> {
        let to = (self.host.as_str(), self.port);
        let stream = TcpStream::connect(to)
            .await
            .map_err(|error| format!("cannot connect to {self:?}: {error}"))?;
        match &self.tls {
            None => self.exchange(stream, body, key).await,
            Some((connector, name)) => {
                let stream = connector
                    .connect(name.clone(), stream)
                    .await
                    .map_err(|error| format!("no TLS with {self:?}: {error}"))?;
                self.exchange(stream, body, key).await
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        body: &str,
        key: &str,
    ) -> Result<(), String> {
        let failed = |error: hyper::Error| format!("no answer of {self:?}: {}", full(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // Ends with the connection.
        tokio::spawn(connection);
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("tracker/", env!("CARGO_PKG_VERSION")),
            )
            .header("idempotency-key", key);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .map_err(|error| error.to_string())?;
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(failed)?
            .into_parts();
        if head.status.is_success() {
            return Ok(());
        }
        let said = Limited::new(body, ANSWER_MAX).collect().await;
        let said = said.map(|body| body.to_bytes()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let plain = said.chars().filter(|c| !c.is_control());
        let said: String = plain.take(TOLD_MAX).collect();
        Err(format!("{self:?} answers {} {said}", head.status)
            .trim_end()
            .to_owned())
    }
}

/// Reads a file of headers.
fn headers(path: &Path) -> Result<Vec<(HeaderName, HeaderValue)>, WebhookError> {
    let unreadable = |source| WebhookError::Headers {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    io::Read::read_to_string(&mut io::Read::take(file, HEADERS_MAX), &mut text)
        .map_err(unreadable)?;
    let lines = text.lines().zip(1..).map(|(line, number)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let header = line.split_once(':').and_then(|(name, value)| {
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            Some((name.trim().parse().ok()?, value))
        });
        header.map(Some).ok_or_else(|| WebhookError::Header {
            path: path.to_owned(),
            line: number,
        })
    });
    lines.filter_map(Result::transpose).collect()
}

/// TLS with servers that the system's authorities vouch for.
fn connector() -> Result<TlsConnector, WebhookError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = named.into_iter().chain(AUTHORITIES.map(PathBuf::from));
    let mut roots = RootCertStore::empty();
    for file in files {
        if let Ok(certificates) = CertificateDer::pem_file_iter(&file) {
            let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            if added > 0 {
                break;
            }
        }
    }
    if roots.is_empty() {
        return Err(WebhookError::NoAuthorities);
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(WebhookError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that answers once, and returns what it was sent.
    async fn serve(listener: TcpListener, answer: &'static str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.ends_with(b"}") {
            let len = stream.read(&mut piece).await.unwrap();
            assert!(len > 0);
            request.extend(&piece[..len]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn an_event_is_posted_and_a_refusal_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("headers");
        fs::write(&file, "# secret\n\nAuthorization: Bearer x y\nX-Hub: 1\n").unwrap();
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 500 Oops\r\ncontent-length: 7\r\n\r\nno room",
                Err("answers 500 Internal Server Error no room"),
            ),
            ("x\r\n\r\n", Err("no answer of")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let url = format!("http://127.0.0.1:{port}/a?b=c");
            let webhook = Webhook::of(&url, Some(&file)).unwrap();
            let (request, result) = tokio::join!(
                serve(listener, answer),
                webhook.post(r#"{"seq":7}"#, "ab:7")
            );
            match expected {
                Ok(()) => assert_eq!(result, Ok(())),
                Err(why) => {
                    let said = result.unwrap_err();
                    assert!(said.contains(why) && !said.contains("Bearer"), "{said}");
                }
            }
            let request = request.to_ascii_lowercase();
            assert!(request.starts_with("post /a?b=c http/1.1\r\n"), "{request}");
            for line in [
                "authorization: bearer x y",
                "x-hub: 1",
                "content-type: application/json",
                "idempotency-key: ab:7",
            ] {
                assert!(request.contains(line), "{request}");
            }
            assert!(request.ends_with("\r\n\r\n{\"seq\":7}"), "{request}");
        }
    }

    /// By certificates that `openssl` makes: one of an authority that is known is taken, another is not.
    #[tokio::test]
    async fn a_server_must_be_vouched_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = std::process::Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout".split(' '))
            .arg(path("key"))
            .arg("-out")
            .arg(path("certificate"))
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            println!("skipped: no openssl that makes certificates");
            return;
        }
        let certificates: Vec<_> = CertificateDer::pem_file_iter(path("certificate"))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::from_pem_file(path("key"));
        let provider = Arc::new(ring::default_provider());
        let server = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.clone(), key.unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let mut known = RootCertStore::empty();
        known.add(certificates[0].clone()).unwrap();
        for (roots, expected) in [(known, true), (RootCertStore::empty(), false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let config = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let webhook = Webhook {
                host: "127.0.0.1".to_owned(),
                port,
                path: "/".to_owned(),
                headers: Vec::new(),
                tls: Some((TlsConnector::from(Arc::new(config)), name)),
            };
            let serve = async {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut piece = [0; 4096];
                let _ = stream.read(&mut piece).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
                let _ = stream.flush().await;
            };
            let ((), result) = tokio::join!(serve, webhook.post("{}", "ab:7"));
            assert_eq!(result.is_ok(), expected, "{result:?}");
            if let Err(why) = result {
                assert!(why.starts_with("no TLS with 127.0.0.1"), "{why}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_headers_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("headers");
        let of = |file: &Path| {
            let error = Webhook::of("http://localhost/", Some(file)).unwrap_err();
            error.to_string()
        };
        assert!(of(&file).starts_with("cannot read headers_file "));
        fs::write(&file, "A: b\n\nnothing\n").unwrap();
        assert!(
            of(&file).ends_with(
                "headers:3: not a header; write each as `Name: value`, comments after #"
            )
        );
    }
}

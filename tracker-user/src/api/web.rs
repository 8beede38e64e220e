//! The web page (`[api] web`): static files that are part of the program. Their scripts read the API as every client does, so the
//! files themselves say nothing of this hub and need no token.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::get,
};

use super::problem::Problem;

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($path:literal, $name:literal, $kind:expr) => {
        File {
            path: $path,
            kind: $kind,
            text: include_str!(concat!("web/", $name)),
        }
    };
}

/// Every file of the page.
const FILES: [File; 10] = [
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/style.css", "style.css", "text/css; charset=utf-8"),
    file!("/icon.svg", "icon.svg", "image/svg+xml"),
    file!("/app.js", "app.js", SCRIPT),
    file!("/source.js", "source.js", SCRIPT),
    file!("/words.js", "words.js", SCRIPT),
    file!("/services.js", "services.js", SCRIPT),
    file!("/detail.js", "detail.js", SCRIPT),
    file!("/timeline.js", "timeline.js", SCRIPT),
    file!("/chart.js", "chart.js", SCRIPT),
];

/// What each answer bears. The page takes nothing from elsewhere, runs and draws only its own files, and stands in no frame.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-ancestors 'none'; \
         base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    // Kept by the browser, and asked for again by its tag: another version of the daemon has other files.
    (header::CACHE_CONTROL, "no-cache"),
];

/// A router with the files of the page.
pub fn router() -> Router {
    let mut router = Router::new();
    for file in &FILES {
        let answer = move |headers: HeaderMap| async move { file.answer(&headers) };
        let refuse = move |method: Method| async move {
            let detail = format!("{method} {}: the web page only answers GET", file.path);
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).response()
        };
        router = router.route(file.path, get(answer).fallback(refuse));
    }
    router
}

impl File {
    /// The tag of what it has, which is the same for the same text.
    fn tag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    }

    fn answer(&self, headers: &HeaderMap) -> Response<Body> {
        let tag = self.tag();
        let known = headers.get_all(header::IF_NONE_MATCH).iter();
        let mut known = known
            .filter_map(|tags| tags.to_str().ok())
            .flat_map(|tags| tags.split(','));
        let is_known = known.any(|known| known.trim().trim_start_matches("W/") == tag);
        let mut response = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => self.text.into_response(),
        };
        let into = response.headers_mut();
        into.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        for (name, value) in HEADERS {
            into.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            into.insert(header::ETAG, tag);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(file: &File, tag: Option<&str>) -> Response<Body> {
        let mut headers = HeaderMap::new();
        if let Some(tag) = tag {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap());
        }
        file.answer(&headers)
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let [page, style, ..] = &FILES;
        let first = asked(page, None);
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}")] {
            let again = asked(page, Some(&known));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(again.headers()[header::ETAG], tag);
        }
        assert_eq!(asked(style, Some(&tag)).status(), StatusCode::OK);
    }

    /// Each file that a file of the page names is served, and none comes from elsewhere.
    #[test]
    fn the_page_is_whole_and_has_no_inline_code() {
        let page = FILES[0].text;
        for attribute in ["style=", "onclick=", "onload=", "<style", "javascript:"] {
            assert!(!page.contains(attribute), "{attribute}");
        }
        let quoted = |text: &'static str, before: &'static str| {
            text.split(before)
                .skip(1)
                .filter_map(|rest| rest.split('"').next())
        };
        let mut named: Vec<_> = quoted(page, "href=\"")
            .chain(quoted(page, "src=\""))
            .collect();
        named.retain(|name| !name.starts_with('#'));
        assert!(named.len() >= 3, "{named:?}");
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            named.extend(quoted(file.text, "from \"./"));
        }
        for name in named {
            let path = format!("/{}", name.trim_start_matches('/'));
            assert!(FILES.iter().any(|file| file.path == path), "{name}");
        }
    }
}

//! The page at `/`: a conversation in the browser, and what the server is doing meanwhile.
//!
//! Its parts are in the program and name nothing outside of it, and the browser is told to load
//! from nowhere else: the page works without a network, and text of a model cannot reach one.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

/// What the document may do: run and show its own files, and talk to this server. No script or
/// style stands in the document itself, nothing is sent by forms, and no other page frames it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, content type and text of every part.
const PARTS: [(&str, &str, &str); 13] = [
    ("/", HTML, include_str!("index.html")),
    ("/page/style.css", CSS, include_str!("style.css")),
    ("/page/icon.svg", SVG, include_str!("icon.svg")),
    ("/page/chat.js", JAVASCRIPT, include_str!("chat.js")),
    ("/page/server.js", JAVASCRIPT, include_str!("server.js")),
    ("/page/status.js", JAVASCRIPT, include_str!("status.js")),
    ("/page/chats.js", JAVASCRIPT, include_str!("chats.js")),
    ("/page/markup.js", JAVASCRIPT, include_str!("markup.js")),
    ("/page/settings.js", JAVASCRIPT, include_str!("settings.js")),
    ("/page/store.js", JAVASCRIPT, include_str!("store.js")),
    ("/page/trouble.js", JAVASCRIPT, include_str!("trouble.js")),
    (
        "/page/vendor/marked.js",
        JAVASCRIPT,
        include_str!("vendor/marked.js"),
    ),
    (
        "/page/vendor/prism.js",
        JAVASCRIPT,
        include_str!("vendor/prism.js"),
    ),
];

/// Whether a path is one of the page's, which holds nothing secret and asks for the key itself.
pub(super) fn is_part(path: &str) -> bool {
    PARTS.iter().any(|(part, _, _)| *part == path)
}

/// Adds the page to the routes.
pub(super) fn with_page<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    PARTS
        .into_iter()
        .fold(router, |router, (path, kind, text)| {
            router.route(path, get(move || async move { part(kind, text) }))
        })
}

fn part(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next version of the program has another page at the same place.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

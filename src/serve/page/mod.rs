//! The page, and what it asks for: read-only, from the metrics address. Everything it shows it builds as text; the policy of its
//! content lets it load nothing from elsewhere.

mod files;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use files::FILES;

use super::control::{json, refuse};
use super::http::Stays;
use super::live::Event;
use super::past::{Past, Unanswered};
use crate::kernel::clock;
use crate::model::moment;
use crate::report;

/// Streams at once; each is one page that somebody looks at.
const STREAMS: usize = 64;
/// A silent stream says so often that it is there: proxies close those that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// An evidence file has its style in itself, and nothing else.
const EVIDENCE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the routes need.
#[derive(Debug, Clone)]
struct Desk {
    past: Past,
    streams: Arc<Semaphore>,
}

/// Routes of the page.
pub fn router(past: Past) -> Router {
    let desk = Desk { past, streams: Arc::new(Semaphore::new(STREAMS)) };
    Router::new()
        .route("/", get(|| async { file("index.html") }))
        .route("/page/{name}", get(|Path(name): Path<String>| async move { file(&name) }))
        .route("/v1/timeline", get(timeline))
        .route("/v1/report", get(evidence))
        .route("/v1/stream", get(stream))
        .layer(from_fn(guarded))
        .with_state(desk)
}

/// Lets in who asks for this host by its address, and adds what a browser has to know. A name that was made to lead here
/// (DNS rebinding) would let any web page of the world read what runs on this host.
async fn guarded(request: Request, next: Next) -> Response {
    if !is_ours(request.headers()) {
        return refuse(
            StatusCode::MISDIRECTED_REQUEST,
            "the page is served to those who ask for it by an address or as localhost; a proxy must send such a Host".to_owned(),
        );
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn is_ours(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

fn file(name: &str) -> Response {
    let Some((_, text)) = FILES.iter().find(|(file, _)| *file == name) else {
        return refuse(StatusCode::NOT_FOUND, "the page has no such file".to_owned());
    };
    let kind = match name.rsplit_once('.').map(|(_, kind)| kind) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        _ => "text/javascript; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind)], *text).into_response()
}

#[derive(Debug, Deserialize)]
struct Window {
    since: Option<String>,
    until: Option<String>,
}

async fn timeline(State(desk): State<Desk>, Query(Window { since, until }): Query<Window>) -> Response {
    let read = |text: Option<String>| {
        text.map(|text| moment::parse(&text, clock::now(), &TimeZone::UTC)).transpose()
    };
    let (since, until) = match (read(since), read(until)) {
        (Ok(since), Ok(until)) => (since, until),
        (Err(why), _) | (_, Err(why)) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    answered(desk.past.timeline(since, until).await.map(|timeline| json(StatusCode::OK, &timeline)))
}

#[derive(Debug, Deserialize)]
struct Wanted {
    id: String,
    ci: Option<String>,
    format: Option<String>,
}

async fn evidence(State(desk): State<Desk>, Query(Wanted { id, ci, format }): Query<Wanted>) -> Response {
    let report = desk.past.report(id, ci).await;
    answered(report.map(|report| {
        if format.as_deref() != Some("html") {
            return json(StatusCode::OK, &report);
        }
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, EVIDENCE_POLICY),
            (header::CONTENT_DISPOSITION, "attachment; filename=\"sniffer-report.html\""),
        ];
        (headers, report::evidence_html(&report, &TimeZone::UTC)).into_response()
    }))
}

pub(super) fn answered(answer: Result<Response, Unanswered>) -> Response {
    answer.unwrap_or_else(|why| match why {
        Unanswered::NotFound(why) => refuse(StatusCode::NOT_FOUND, why),
        Unanswered::Unavailable(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, why),
    })
}

/// A stream, with its place among those that there may be.
type Streaming = (tokio::sync::broadcast::Receiver<Event>, OwnedSemaphorePermit);

async fn stream(State(desk): State<Desk>, stays: Option<Extension<Stays>>) -> Response {
    let Ok(place) = Arc::clone(&desk.streams).try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open".to_owned());
    };
    if let Some(Extension(stays)) = stays {
        stays.stay();
    }
    let events = futures_util::stream::unfold((desk.past.watch(), place), next);
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

async fn next((mut events, place): Streaming) -> Option<(Result<Sent, std::convert::Infallible>, Streaming)> {
    let event = match events.recv().await {
        Ok(event) => event,
        Err(RecvError::Lagged(_)) => Event::lagged(),
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(Sent::default().event(event.name).data(&*event.data)), (events, place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/page");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".rs"))
            .collect();
        there.sort();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        served.sort_unstable();
        assert_eq!(there, served);
        assert!(
            FILES.iter().all(|(name, _)| matches!(name.rsplit_once('.'), Some((_, "html" | "css" | "js"))))
        );
    }

    #[test]
    fn a_name_that_was_made_to_lead_here_is_turned_away() {
        let host = |host: &str| is_ours(&HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]));
        assert!(host("127.0.0.1:9817") && host("[::1]:9817") && host("localhost") && host("10.0.0.7"));
        assert!(!host("evil.example") && !host("evil.example:9817") && !host("localhost.evil.example"));
        assert!(!host("") && !is_ours(&HeaderMap::new()));
    }
}

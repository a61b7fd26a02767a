//! A question over HTTP/1.1 to whoever serves a Unix socket: our daemon, or a container engine.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Asks for a path, and waits so long at most for the whole answer. Blocking; not to be called within a runtime.
/// Errors: nobody serves the socket, or not in time, or not HTTP, or more than `limit` bytes.
pub fn get(socket: &Path, path: &str, timeout: Duration, limit: usize) -> io::Result<(StatusCode, Bytes)> {
    request(socket, Request::get(path), Bytes::new(), timeout, limit)
}

/// The same, with a JSON document that is sent there.
pub fn post(
    socket: &Path,
    path: &str,
    document: Vec<u8>,
    timeout: Duration,
    limit: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let head = Request::post(path).header(CONTENT_TYPE, "application/json");
    request(socket, head, document.into(), timeout, limit)
}

fn request(
    socket: &Path,
    head: Builder,
    body: Bytes,
    timeout: Duration,
    limit: usize,
) -> io::Result<(StatusCode, Bytes)> {
    // Without anybody to ask there is no need for a runtime.
    if !socket.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(timeout, fetch(socket, head, body, limit))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    })
}

async fn fetch(socket: &Path, head: Builder, body: Bytes, limit: usize) -> io::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = head.header(HOST, "sniffer").body(Full::new(body)).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limit).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

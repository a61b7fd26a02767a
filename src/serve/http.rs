//! HTTP/1.1 for strangers: bounded connections, bounded headers, bounded time. Serves an axum router on any listener.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections at once on one listener; the next one waits for a place.
const MAX_CONNECTIONS: usize = 512;
/// A request's head must arrive within this time; an idle connection is closed after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Nobody is served for longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream ends after so long; a browser opens another.
const STREAM_TIMEOUT: Duration = Duration::from_hours(12);
/// Head of a request, and its body.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// After a failed accept (descriptors used up) the listener rests.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Who is at the other end of a Unix socket: the user that connected (`SO_PEERCRED` of unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user; `None` where the kernel does not tell.
    pub uid: Option<u32>,
    /// Process, in this pid namespace.
    pub pid: Option<u32>,
}

/// Lets a connection stay open for longer: it is a stream.
#[derive(Debug, Clone, Default)]
pub struct Stays(Arc<AtomicBool>);

impl Stays {
    /// It is one.
    pub fn stay(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves for ever on a TCP listener. A request may let its connection [`Stays`].
pub async fn serve_tcp(listener: TcpListener, router: Router) {
    let router = |stays: &Stays| router.clone().layer(Extension(stays.clone()));
    serve(|| async {
        let stays = Stays::default();
        listener.accept().await.map(|(stream, _)| (stream, router(&stays), stays))
    })
    .await;
}

/// Serves for ever on a Unix socket. A request knows its [`Peer`].
pub async fn serve_unix(listener: UnixListener, router: Router) {
    let router = |peer| router.clone().layer(Extension(peer));
    serve(|| async {
        listener.accept().await.map(|(stream, _)| {
            let peer = stream.peer_cred().ok();
            let pid = peer.and_then(|peer| u32::try_from(peer.pid()?).ok());
            (stream, router(Peer { uid: peer.map(|peer| peer.uid()), pid }), Stays::default())
        })
    })
    .await;
}

async fn serve<S, A>(accept: impl Fn() -> A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = io::Result<(S, Router, Stays)>>,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, router, stays) = match accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accept failed: {error}");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router);
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_REQUEST_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // A peer that sends garbage or goes away is its own business.
            let mut connection = pin!(connection);
            let served = tokio::time::timeout(CONNECTION_TIMEOUT, &mut connection).await;
            if served.is_err() && stays.0.load(Ordering::Relaxed) {
                let _ = tokio::time::timeout(STREAM_TIMEOUT, connection).await;
            }
            drop(place);
        });
    }
}

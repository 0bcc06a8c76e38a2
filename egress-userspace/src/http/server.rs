//! Accepts connections within limits.

use std::{future::Future, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{Pages, router};

/// How much a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at one time; more wait to be accepted.
    pub(super) connections: usize,
    /// Time to send the request's head.
    pub(super) head: Duration,
    /// Time for all of a connection: one request and its answer.
    pub(super) whole: Duration,
}

const LIMITS: Limits = Limits {
    connections: 64,
    head: Duration::from_secs(5),
    whole: Duration::from_secs(30),
};
/// Bytes of a request that are kept in memory.
const MAX_HEAD: usize = 16 * 1024;

/// Serves the pages until `shutdown`, then lets requests under way finish.
pub async fn serve(listener: TcpListener, pages: Pages, shutdown: impl Future<Output = ()>) {
    serve_within(listener, pages, LIMITS, shutdown).await;
}

pub(super) async fn serve_within(
    listener: TcpListener,
    pages: Pages,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(pages);
    let seats = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await.ok();
            (listener.accept().await, seat)
        };
        let (accepted, seat) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = answer(stream, router.clone(), limits);
                connections.spawn(async move {
                    connection.await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                // Without file descriptors the next accept fails at once, too.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers one request. A connection is not kept, so that one deadline bounds all a client can do slowly.
async fn answer(stream: TcpStream, router: Router, limits: Limits) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(limits.whole, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection failed: {error}"),
        Err(_) => tracing::debug!("a connection was too slow"),
    }
}

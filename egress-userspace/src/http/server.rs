//! Accepts connections within limits.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use super::{Pages, router};

/// How much a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at one time; who comes then takes the place of one that has not asked anything yet.
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
    let mut seats = Seats::default();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let accepted = listener.accept().await;
            seats.make_room(limits.connections).await;
            accepted
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => seats.take(stream, router.clone(), limits),
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                // Without file descriptors the next accept fails at once, too.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while seats.connections.join_next().await.is_some() {}
}

/// The connections there are.
#[derive(Default)]
struct Seats {
    connections: JoinSet<()>,
    /// In the order in which they came.
    taken: VecDeque<Seat>,
}

struct Seat {
    connection: AbortHandle,
    /// Whether the request's head has been read.
    asked: Arc<AtomicBool>,
}

impl Seats {
    /// Frees a seat unless one is free: whoever has said nothing for longest goes, else whoever ends first.
    ///
    /// So clients that only hold connections keep nobody out.
    async fn make_room(&mut self, most: usize) {
        loop {
            while self.connections.try_join_next().is_some() {}
            self.taken.retain(|seat| !seat.connection.is_finished());
            if self.taken.len() < most {
                return;
            }
            let mut taken = self.taken.iter();
            if let Some(silent) = taken.position(|seat| !seat.asked.load(Ordering::Relaxed)) {
                if let Some(seat) = self.taken.remove(silent) {
                    seat.connection.abort();
                }
                return;
            }
            if self.connections.join_next().await.is_none() {
                return;
            }
        }
    }

    fn take(&mut self, stream: TcpStream, router: Router, limits: Limits) {
        let asked = Arc::new(AtomicBool::new(false));
        let connection = answer(stream, router, limits, Arc::clone(&asked));
        let connection = self.connections.spawn(connection);
        self.taken.push_back(Seat { connection, asked });
    }
}

/// Answers one request. A connection is not kept, so that one deadline bounds all a client can do slowly.
async fn answer(stream: TcpStream, router: Router, limits: Limits, asked: Arc<AtomicBool>) {
    let pages = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        pages.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.whole, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection failed: {error}"),
        Err(_) => tracing::debug!("a connection was too slow"),
    }
}

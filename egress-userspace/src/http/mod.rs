//! The agent over HTTP: `/metrics`, `/livez`, `/readyz`, `/status`, `/explain`.
//!
//! Read-only, without authentication, and bounded in connections, time and header size: the caller
//! chooses where it listens.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::{
    explain::{self, Answer},
    metrics::{Format, Metrics},
    model::ObjectName,
    snapshot::Snapshot,
    state::KernelState,
};

pub mod client;
mod server;
pub mod status;

pub use server::serve;

/// Reads back what the kernel's maps say.
pub type ReadMaps = dyn Fn() -> anyhow::Result<KernelState> + Send + Sync;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// What the agent publishes.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Reads the maps for `/explain`; without it the snapshot's word is taken for theirs.
    pub maps: Option<Arc<ReadMaps>>,
}

/// Pages that are made at one time. Whoever asks and leaves would otherwise pile up work that nobody waits for.
const MAX_WORK: usize = 4;

/// What answers have in common.
#[derive(Clone)]
struct Desk {
    pages: Pages,
    work: Arc<Semaphore>,
}

impl Desk {
    /// Does what may block on a thread of its own, when its turn has come.
    async fn work<T: Send + 'static>(
        self,
        make: impl FnOnce(&Pages) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let turn = self.work.acquire_owned().await?;
        let made = tokio::task::spawn_blocking(move || {
            let made = make(&self.pages);
            drop(turn);
            made
        });
        made.await.context("it was cut short").flatten()
    }
}

/// Every page.
pub fn router(pages: Pages) -> Router {
    let desk = Desk {
        pages,
        work: Arc::new(Semaphore::new(MAX_WORK)),
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/explain", get(explain_page))
        .fallback(async || {
            let pages = "no such page; there are /metrics /livez /readyz /status /explain\n";
            (StatusCode::NOT_FOUND, pages)
        })
        .with_state(desk)
}

async fn metrics(State(desk): State<Desk>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let format = Format::negotiate(accept);
    // Reading the counters is a system call for each of them.
    match desk.work(move |pages| pages.metrics.render(format)).await {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => {
            tracing::error!("a scrape failed: {error:#}");
            let text = format!("the kernel's counters cannot be read: {error:#}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn readyz(State(desk): State<Desk>) -> Response {
    match desk.pages.snapshot.load().not_ready_because() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    }
}

async fn status(State(desk): State<Desk>) -> Response {
    let made = desk
        .work(|pages| json_text(&status::Status::of(&pages.snapshot.load())))
        .await;
    json(made)
}

#[derive(Deserialize)]
struct Question {
    pod: String,
    dst: String,
}

async fn explain_page(
    State(desk): State<Desk>,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let asked = question
        .map_err(|e| format!("{e}; ask /explain?pod=NAMESPACE/NAME&dst=ADDRESS"))
        .and_then(|Query(q)| Ok((explain::parse_pod(&q.pod)?, explain::parse_address(&q.dst)?)));
    let (pod, dst): (ObjectName, IpAddr) = match asked {
        Ok(asked) => asked,
        Err(error) => return (StatusCode::BAD_REQUEST, error + "\n").into_response(),
    };
    match desk.work(move |pages| answer(pages, &pod, dst)).await {
        Ok(answer) => json(json_text(&answer)),
        Err(error) => {
            tracing::error!("an explanation failed: {error:#}");
            let text = format!("the kernel's maps cannot be read: {error:#}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// Explains, and asks again where the kernel disagrees: an apply may be on its way.
fn answer(pages: &Pages, pod: &ObjectName, dst: IpAddr) -> anyhow::Result<Answer> {
    const TRIES: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(50);
    let explain_now = || -> anyhow::Result<Answer> {
        let snapshot = pages.snapshot.load_full();
        Ok(match &pages.maps {
            None => explain::against_kernel(&snapshot, pod, dst),
            Some(read) => {
                let live = Snapshot {
                    kernel: Arc::new(read()?),
                    ..(*snapshot).clone()
                };
                explain::against_kernel(&live, pod, dst)
            }
        })
    };
    let mut answer = explain_now()?;
    for _ in 1..TRIES {
        if answer.disagreements.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        answer = explain_now()?;
    }
    Ok(answer)
}

fn json_text(page: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(page)? + "\n")
}

fn json(text: anyhow::Result<String>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!("a page cannot be written as JSON: {error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests;

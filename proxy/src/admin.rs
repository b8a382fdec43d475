//! The admin socket: whoever may open it (the proxy's own user, root) sees what the proxy knows and changes its log.
//!
//! `run` binds and starts it; `countersign status` and preStop hooks call it. It must never show a key or a token, and never
//! listen on TCP.

mod socket;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_credentials::{Status, Watch};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::sync::{Semaphore, watch};

use crate::config::Config;
use crate::discovery::Discovery;
use crate::drain::Drain;
use crate::http::{self, Answer};
use crate::logging::{Log, MAX_FILTER};
use crate::metrics::Metrics;
use crate::ready::Readiness;
pub use socket::{AdminSocket, SocketError, bind};

/// Most connections at once; one more is closed.
const CONNECTIONS: usize = 16;
/// Wait after an accept that failed for want of files or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// All that it shows.
#[derive(Debug)]
pub struct Admin {
    /// Settings.
    pub config: Arc<Config>,
    /// Own SVID and bundles.
    pub credentials: Watch,
    /// How their renewal fares.
    pub ca_status: watch::Receiver<Status>,
    /// Rules and addresses.
    pub discovery: Discovery,
    /// Counters.
    pub metrics: Metrics,
    /// Readiness.
    pub readiness: Readiness,
    /// The end.
    pub drain: Drain,
    /// The process's log.
    pub log: Log,
    /// When the process started.
    pub started: Instant,
}

/// Serves until dropped.
pub async fn serve(socket: AdminSocket, admin: Arc<Admin>) {
    let budget = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&budget).try_acquire_owned() else {
            admin.metrics.shed("admin_connections");
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let _slot = slot;
            http::serve(stream, |request| Arc::clone(&admin).answer(request)).await;
        });
    }
}

impl Admin {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let method = request.method().clone();
        match (request.uri().path(), method) {
            ("/status", Method::GET) => http::json(StatusCode::OK, &view::status(&self)),
            ("/config_dump", Method::GET) => http::json(StatusCode::OK, &view::dump(&self)),
            ("/log", Method::GET) => self.log_filter(),
            ("/log", Method::PUT) => self.change_log(request).await,
            ("/drain", Method::POST) => self.withdraw(),
            ("/status" | "/config_dump", _) => http::only("GET"),
            ("/log", _) => http::only("GET, PUT"),
            ("/drain", _) => http::only("POST"),
            _ => http::text(StatusCode::NOT_FOUND, "here are /status, /config_dump, /log and /drain\n"),
        }
    }

    fn log_filter(&self) -> Answer {
        http::json(StatusCode::OK, &json!({ "filter": self.log.filter() }))
    }

    /// The body is the filter itself, in the syntax of `RUST_LOG`.
    async fn change_log(&self, request: Request<Incoming>) -> Answer {
        let filter = match http::body(request, MAX_FILTER).await {
            Ok(filter) => filter,
            Err(answer) => return answer,
        };
        match self.log.change(filter.trim()) {
            Ok(()) => {
                tracing::info!(filter = filter.trim(), "log: another filter");
                self.log_filter()
            }
            Err(error) => http::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    fn withdraw(&self) -> Answer {
        self.drain.withdraw();
        tracing::info!("told to withdraw: not ready from now on, serving as before");
        http::json(StatusCode::OK, &json!({ "phase": self.drain.phase().label() }))
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;

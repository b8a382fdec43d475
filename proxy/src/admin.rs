//! The admin socket: whoever may open it (the proxy's own user, root) sees what the proxy knows and changes its log.
//!
//! `run` binds and starts it, `countersign_admin` serves it; `countersign status` and preStop hooks call it. It must never show
//! a key or a token.

mod view;

use std::sync::Arc;
use std::time::Instant;

use countersign_admin::http::{self, Answer, StatusCode};
use countersign_admin::{Log, Routes};
use countersign_credentials::{Status, Watch};
use serde_json::json;
use tokio::sync::watch;

use crate::config::Config;
use crate::discovery::Discovery;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::permit::{DenialId, Permits};
use crate::proof::Proof;
use crate::ready::Readiness;

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
    /// Decisions, and what was denied lately.
    pub permits: Arc<Permits>,
    /// Counters.
    pub metrics: Metrics,
    /// Readiness.
    pub readiness: Readiness,
    /// Whether the redirects are in force.
    pub proof: Proof,
    /// The end.
    pub drain: Drain,
    /// The process's log.
    pub log: Log,
    /// When the process started.
    pub started: Instant,
}

impl Admin {
    /// What the socket answers.
    pub fn routes(self: &Arc<Self>) -> Routes {
        let (status, dump, drain) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        let (list, one) = (Arc::clone(&self.permits), Arc::clone(&self.permits));
        Routes::new(self.log.clone())
            .get("/status", move || http::json(&view::status(&status)))
            .get("/config_dump", move || http::json(&view::dump(&dump)))
            .get("/denials", move || http::json(&list.denials().list()))
            .get_under("/denials/", move |id| explain(&one, id))
            .post("/drain", move || drain.withdraw())
    }

    fn withdraw(&self) -> Answer {
        self.drain.withdraw();
        tracing::info!("told to withdraw: not ready from now on, serving as before");
        http::json(&json!({ "phase": self.drain.phase().label() }))
    }
}

fn explain(permits: &Permits, id: &str) -> Answer {
    match DenialId::parse(id).and_then(|id| permits.explain(id)) {
        Some(explained) => http::json(&explained),
        None => http::text(StatusCode::NOT_FOUND, "no such denial is remembered here\n"),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;

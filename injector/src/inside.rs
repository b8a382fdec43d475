//! What the injector tells about itself: ready or not, status, metrics. Asked through `countersign_admin`; it must never show a key.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_admin::health::{self, Check, Health};
use countersign_admin::{Log, Routes, http};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Facts, Metrics};
use crate::tls::Serving;
use crate::upkeep::Clock;

/// The parts that are asked.
pub struct Inside {
    /// The certificate in force.
    pub serving: Serving,
    /// Whether the API server knows its root.
    pub published: Arc<AtomicBool>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Wall time.
    pub clock: Clock,
    /// The configuration in force.
    pub config: Value,
    /// The logs' filter.
    pub log: Log,
    /// Set when the process is told to end.
    pub ending: CancellationToken,
}

impl Health for Inside {
    /// There is a certificate that has not ended; and we were not told to end. An API server that does not answer us makes nobody
    /// unready: it could not ask us either.
    fn checks(&self) -> Vec<Check> {
        let certificate = match self.serving.ends() {
            None => Some("no serving certificate yet"),
            Some(ends) if ends <= (self.clock)() => Some("the serving certificate has expired"),
            Some(_) => None,
        };
        let ending = self.ending.is_cancelled().then_some("shutting down");
        vec![Check::new("drain", ending), Check::new("certificate", certificate)]
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let published = self.published.load(Ordering::Relaxed);
        self.metrics.render(Facts { certificate_end: self.serving.ends().unwrap_or(0), published })
    }
}

impl Inside {
    /// What the admin socket answers.
    pub fn routes(self: &Arc<Self>) -> Routes {
        let (status, dump) = (Arc::clone(self), Arc::clone(self));
        Routes::new(self.log.clone())
            .get("/status", move || http::json(&status.status()))
            .get("/config_dump", move || http::json(&dump.config))
    }

    fn status(&self) -> Value {
        let ready = health::ready(&self.checks());
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready.is_ok(),
            "not_ready_because": ready.err(),
            "certificate_ends": self.serving.ends(),
            "webhooks_in_step": self.published.load(Ordering::Relaxed),
        })
    }
}

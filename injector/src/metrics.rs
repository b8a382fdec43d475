//! What is counted, as OpenMetrics. Labels come from bounded sets of words only: never a name, an address or a text of a pod.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    webhook: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What is read from the parts when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// End of the certificate in force, seconds since 1970; 0 = none.
    pub certificate_end: u64,
    /// Whether the API server knows the roots.
    pub published: bool,
}

/// All of the injector's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    duration: Histogram,
    refused: Family<Reason, Counter>,
    upkeep: Family<Outcome, Counter>,
    end: Gauge<f64, AtomicU64>,
    published: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("countersign_injector"),
            requests: Family::default(),
            duration: Histogram::new([0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0]),
            refused: Family::default(),
            upkeep: Family::default(),
            end: Gauge::default(),
            published: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Admission requests, by webhook and outcome", self.requests.clone());
        let help = "Time from a request's head to its answer";
        registry.register_with_unit("request_duration", help, Unit::Seconds, self.duration.clone());
        registry.register("connections_refused", "Connections closed before a request came", self.refused.clone());
        let help = "Looks at the serving certificate and the webhooks' caBundle, by outcome";
        registry.register("certificate_upkeep", help, self.upkeep.clone());
        let help = "End of the serving certificate's life, Unix time";
        registry.register_with_unit("certificate_expiration_timestamp", help, Unit::Seconds, self.end.clone());
        let help = "1 while the webhooks' caBundle was as it should be at the last look";
        registry.register("certificate_published", help, self.published.clone());
        registry.register("build", "The version that runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// A request was answered.
    pub fn answered(&self, webhook: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&Request { webhook, outcome }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A connection was closed before it was one.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// A look at the certificate has ended.
    pub fn looked(&self, outcome: &'static str) {
        self.upkeep.get_or_create(&Outcome { outcome }).inc();
    }

    /// The text that a scraper gets.
    ///
    /// # Errors
    /// It cannot be printed.
    pub fn render(&self, facts: Facts) -> Result<String, std::fmt::Error> {
        self.end.set(facts.certificate_end as f64);
        self.published.set(i64::from(facts.published));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

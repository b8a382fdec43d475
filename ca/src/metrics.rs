//! What is counted, as OpenMetrics. Counted by the steps; printed by `inside`. Labels come from bounded sets of words only:
//! never an identity, an address or a text that a caller wrote.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::audit;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Certificate {
    certificate: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// What is read from the parts when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// End of the root's life, seconds since 1970.
    pub root_end: u64,
    /// End of the issuer's life.
    pub issuer_end: u64,
    /// End of the CA's own SVID; 0 = none.
    pub own_end: u64,
    /// Number of the bundle.
    pub generation: u64,
    /// Open WatchBundle streams.
    pub watchers: usize,
    /// False while it is not known that the state in force is the one that is stored.
    pub state_in_step: bool,
    /// How the audit log is.
    pub audit: audit::Facts,
    /// Token keys in force, and whether their file is good as it stands; none where tokens are reviewed.
    pub token_keys: Option<(usize, bool)>,
}

/// All of the CA's metrics.
pub struct Metrics {
    registry: Registry,
    refused: Family<Reason, Counter>,
    issued: Family<Outcome, Counter>,
    duration: Histogram,
    unrecorded: Counter,
    watches: Family<Outcome, Counter>,
    reloads: Family<Outcome, Counter>,
    ends: Family<Certificate, Seconds>,
    generation: Gauge,
    watchers: Gauge,
    token_keys: Gauge,
    token_keys_good: Gauge,
    state_in_step: Gauge,
    bundle_writes: Family<Outcome, Counter>,
    bundles_behind: Gauge,
    audit_writable: Gauge,
    audit_copied: Gauge,
    audit_alarm: Gauge,
    audit_room_used: Seconds,
    audit_reserve: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("countersign_ca"),
            refused: Family::default(),
            issued: Family::default(),
            duration: Histogram::new([0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
            unrecorded: Counter::default(),
            watches: Family::default(),
            reloads: Family::default(),
            ends: Family::default(),
            generation: Gauge::default(),
            watchers: Gauge::default(),
            token_keys: Gauge::default(),
            token_keys_good: Gauge::default(),
            state_in_step: Gauge::default(),
            bundle_writes: Family::default(),
            bundles_behind: Gauge::default(),
            audit_writable: Gauge::default(),
            audit_copied: Gauge::default(),
            audit_alarm: Gauge::default(),
            audit_room_used: Gauge::default(),
            audit_reserve: Gauge::default(),
        };
        metrics.register();
        metrics.begin();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let help =
            "Connections closed before they were one, by the bound that was reached or why the TLS handshake failed";
        registry.register("connections_refused", help, self.refused.clone());
        registry.register("svid_requests", "SVIDs asked for, by outcome", self.issued.clone());
        let help = "Time from a request to its answer, the audit record's way to the disk included";
        registry.register_with_unit("svid_request_duration", help, Unit::Seconds, self.duration.clone());
        let help = "Refusals to unattested callers left out of the audit log, because their address had too many";
        registry.register("refusals_unrecorded", help, self.unrecorded.clone());
        registry.register("bundle_watches", "WatchBundle calls, by outcome", self.watches.clone());
        registry.register("token_key_reloads", "Changes of the token keys' file, by outcome", self.reloads.clone());
        let help = "End of a certificate's life, Unix time";
        registry.register_with_unit("certificate_expiration_timestamp", help, Unit::Seconds, self.ends.clone());
        registry.register("bundle_generation", "Number of the trust bundle in force", self.generation.clone());
        registry.register("bundle_watchers", "WatchBundle streams that are open", self.watchers.clone());
        registry.register(
            "token_keys",
            "Token keys in force; 0 where the API server reviews tokens",
            self.token_keys.clone(),
        );
        let help = "1 while the token keys' file is in force as it stands, 0 while it is bad";
        registry.register("token_keys_good", help, self.token_keys_good.clone());
        let help = "1 while the state in force is known to be the one that is stored";
        registry.register("state_in_step", help, self.state_in_step.clone());
        let help = "ConfigMaps with the roots that were written, by outcome";
        registry.register("bundle_config_map_writes", help, self.bundle_writes.clone());
        let help = "Namespaces whose ConfigMap is missing or does not hold the roots in force";
        registry.register("bundle_config_maps_behind", help, self.bundles_behind.clone());
        let help = "1 while audit records reach the disk; while 0, nothing is signed";
        registry.register("audit_writable", help, self.audit_writable.clone());
        let help = "1 while audit records reach standard output too, or need not";
        registry.register("audit_copied", help, self.audit_copied.clone());
        let help = "1 while the audit log's room is 80% used, or its reserve is not whole";
        registry.register("audit_alarm", help, self.audit_alarm.clone());
        let help = "How full the audit log's file system or its own bound is, whichever is fuller";
        registry.register_with_unit("audit_room_used", help, Unit::Ratios, self.audit_room_used.clone());
        let help = "Room that is allocated ahead of the audit log's end";
        registry.register_with_unit("audit_reserve", help, Unit::Bytes, self.audit_reserve.clone());
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
    }

    /// What can be known beforehand begins at zero.
    fn begin(&self) {
        for outcome in [crate::audit::GRANTED, "busy", "rate"] {
            drop(self.issued.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["open", "no_svid", "stranger", "too_many"] {
            drop(self.watches.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["loaded", "bad"] {
            drop(self.reloads.get_or_create(&Outcome { outcome }));
        }
        for reason in
            ["connections", "source_connections", "handshakes", "source_handshakes", "nameless", "source_nameless"]
        {
            drop(self.refused.get_or_create(&Reason { reason }));
        }
    }

    /// A connection was closed before it was one. `reason`: a bounded word.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// One IssueSvid has ended.
    pub fn issued(&self, outcome: &'static str, took: Duration) {
        self.issued.get_or_create(&Outcome { outcome }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A refusal was left out of the audit log.
    pub fn unrecorded(&self) {
        self.unrecorded.inc();
    }

    /// One WatchBundle was accepted, or not.
    pub fn watch(&self, outcome: &'static str) {
        self.watches.get_or_create(&Outcome { outcome }).inc();
    }

    /// The token keys' file changed.
    pub fn keys_reloaded(&self, good: bool) {
        self.reloads.get_or_create(&Outcome { outcome: if good { "loaded" } else { "bad" } }).inc();
    }

    /// A ConfigMap with the roots was written, or not.
    pub fn bundle_write(&self, good: bool) {
        self.bundle_writes.get_or_create(&Outcome { outcome: if good { "written" } else { "failed" } }).inc();
    }

    /// So many namespaces lack the roots in force.
    pub fn bundles_behind(&self, namespaces: usize) {
        self.bundles_behind.set(i64::try_from(namespaces).unwrap_or(i64::MAX));
    }

    /// The text that a scraper gets.
    pub fn render(&self, facts: Facts) -> Result<String, std::fmt::Error> {
        for (certificate, end) in [("root", facts.root_end), ("issuer", facts.issuer_end), ("own", facts.own_end)] {
            self.ends.get_or_create(&Certificate { certificate }).set(end as f64);
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.generation.set(i64::try_from(facts.generation).unwrap_or(i64::MAX));
        self.watchers.set(count(facts.watchers));
        self.state_in_step.set(i64::from(facts.state_in_step));
        self.audit_writable.set(i64::from(facts.audit.writable));
        self.audit_copied.set(i64::from(facts.audit.copied));
        self.audit_alarm.set(i64::from(facts.audit.room.alarm));
        self.audit_room_used.set(facts.audit.room.used);
        self.audit_reserve.set(i64::try_from(facts.audit.room.reserve).unwrap_or(i64::MAX));
        let (keys, good) = facts.token_keys.unwrap_or((0, true));
        self.token_keys.set(count(keys));
        self.token_keys_good.set(i64::from(good));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

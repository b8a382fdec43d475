//! What is counted, as OpenMetrics. Counted by the steps; printed by `inside`. Labels come from bounded sets of words, and
//! from the paths of bad files, of which only so many are named.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::source::Snapshot;

/// Bad files that are named; all are counted.
const MAX_FILES: usize = 100;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Word {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    answer: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct File {
    file: String,
}

/// What is read from the parts when somebody asks.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The picture.
    pub snapshot: &'a Snapshot,
    /// Connected proxies.
    pub streams: usize,
    /// Of them, those that have not confirmed what was sent last.
    pub lagging: usize,
    /// End of our own SVID, Unix time; 0 = none.
    pub own_end: u64,
    /// SVIDs obtained, and attempts that failed.
    pub renewals: (u64, u64),
}

/// All of the controller's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    files: Gauge,
    problems: Gauge,
    bad_files: Family<File, Gauge>,
    withheld: Gauge,
    change: Gauge,
    objects: Family<Kind, Gauge>,
    streams: Gauge,
    lagging: Gauge,
    ended: Family<Word, Counter>,
    refused: Family<Reason, Counter>,
    shed: Counter,
    answers: Family<Answered, Counter>,
    unfollowed: Counter,
    rules_sent: Counter,
    acks: Family<Word, Counter>,
    propagation: Histogram,
    own_end: Gauge<f64, AtomicU64>,
    renewals: Family<Word, Gauge>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("countersign_controller"),
            files: Gauge::default(),
            problems: Gauge::default(),
            bad_files: Family::default(),
            withheld: Gauge::default(),
            change: Gauge::default(),
            objects: Family::default(),
            streams: Gauge::default(),
            lagging: Gauge::default(),
            ended: Family::default(),
            refused: Family::default(),
            shed: Counter::default(),
            answers: Family::default(),
            unfollowed: Counter::default(),
            rules_sent: Counter::default(),
            acks: Family::default(),
            propagation: Histogram::new([0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
            own_end: Gauge::default(),
            renewals: Family::default(),
        };
        metrics.register();
        metrics.begin();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("source_files", "Files of the source", self.files.clone());
        let help = "Problems of the source: files of which an older state, or none, is in force";
        registry.register("source_problems", help, self.problems.clone());
        let help = "1 for each file whose newest text is not in force; the first 100 by name";
        registry.register("source_bad_file", help, self.bad_files.clone());
        let help = "1 while no rules are sent because some file was never good";
        registry.register("rules_withheld", help, self.withheld.clone());
        registry.register("source_change", "Number of the change that is in force", self.change.clone());
        registry.register("objects", "Objects in force, by kind", self.objects.clone());
        registry.register("streams", "Connected proxies", self.streams.clone());
        let help = "Connected proxies that have not confirmed the rules sent last";
        registry.register("streams_lagging", help, self.lagging.clone());
        registry.register("streams_ended", "Streams that ended or were refused, by reason", self.ended.clone());
        let help =
            "Connections closed before they were one, by the bound that was reached or why the TLS handshake failed";
        registry.register("connections_refused", help, self.refused.clone());
        let help = "Connections closed because their source had enough";
        registry.register("connections_shed", help, self.shed.clone());
        let help = "Answers sent, by what they say and whether they were asked for or changed";
        registry.register("answers", help, self.answers.clone());
        let help = "Answers sent that are not followed: the proxy asked for too many addresses";
        registry.register("answers_unfollowed", help, self.unfollowed.clone());
        registry.register("rules_sent", "Sets of rules sent", self.rules_sent.clone());
        registry.register("acks", "What proxies said of rules sent", self.acks.clone());
        let help = "Time from a change being in force here to a proxy confirming it";
        registry.register_with_unit("propagation", help, Unit::Seconds, self.propagation.clone());
        let help = "End of our own SVID, Unix time";
        registry.register_with_unit("identity_cert_expiration_timestamp", help, Unit::Seconds, self.own_end.clone());
        let help = "Attempts to obtain our own SVID since the start";
        registry.register("identity_cert_refreshes", help, self.renewals.clone());
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
    }

    /// What can be known beforehand begins at zero.
    fn begin(&self) {
        for outcome in ["gone", "replaced", "unknown_pod", "other_account", "other_address"] {
            drop(self.ended.get_or_create(&Word { outcome }));
        }
        for outcome in ["in_force", "refused"] {
            drop(self.acks.get_or_create(&Word { outcome }));
        }
        for reason in ["connections", "source_connections", "handshakes", "source_handshakes"] {
            drop(self.refused.get_or_create(&Reason { reason }));
        }
        for answer in ["unknown", "not_meshed", "endpoint", "service"] {
            for cause in ["asked", "changed"] {
                drop(self.answers.get_or_create(&Answered { answer, cause }));
            }
        }
    }

    /// A connection was closed before it was one. `reason`: a bounded word.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// A connection was closed because its source had enough.
    pub fn connection_shed(&self) {
        self.shed.inc();
    }

    /// A stream ended.
    pub fn stream_ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Word { outcome: reason }).inc();
    }

    /// An answer was sent.
    pub fn answer_sent(&self, answer: &'static str, asked: bool, followed: bool) {
        let cause = if asked { "asked" } else { "changed" };
        self.answers.get_or_create(&Answered { answer, cause }).inc();
        if !followed {
            self.unfollowed.inc();
        }
    }

    /// Rules were sent.
    pub fn rules_sent(&self) {
        self.rules_sent.inc();
    }

    /// A proxy said what became of its rules.
    pub fn acked(&self, in_force: bool, propagated: Option<Duration>) {
        let outcome = if in_force { "in_force" } else { "refused" };
        self.acks.get_or_create(&Word { outcome }).inc();
        if let Some(took) = propagated {
            self.propagation.observe(took.as_secs_f64());
        }
    }

    /// The text that a scraper gets.
    pub fn render(&self, facts: &Facts<'_>) -> Result<String, std::fmt::Error> {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let snapshot = facts.snapshot;
        self.files.set(count(snapshot.files));
        self.problems.set(count(snapshot.problems.len()));
        self.withheld.set(i64::from(!snapshot.withheld.is_empty()));
        self.change.set(number(snapshot.change));
        self.bad_files.clear();
        for problem in snapshot.problems.iter().take(MAX_FILES) {
            self.bad_files.get_or_create(&File { file: problem.file.clone() }).set(1);
        }
        if let Some(index) = &snapshot.index {
            for (kind, objects) in index.counts() {
                self.objects.get_or_create(&Kind { kind }).set(count(objects));
            }
        }
        self.streams.set(count(facts.streams));
        self.lagging.set(count(facts.lagging));
        self.own_end.set(facts.own_end as f64);
        let (good, failed) = facts.renewals;
        self.renewals.get_or_create(&Word { outcome: "good" }).set(number(good));
        self.renewals.get_or_create(&Word { outcome: "failed" }).set(number(failed));
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

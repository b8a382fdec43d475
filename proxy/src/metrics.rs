//! What the proxy counts, in OpenMetrics. Names and labels as users of other meshes expect them.
//!
//! The journeys, discovery and the TLS steps call it through cheap clones; `health` serves [`Metrics::encode`].
//! It must never grow with what peers do: every label is a bounded word, or capped with `other` for the rest.

mod begin;
mod counts;
mod follow;
mod labels;
mod process;

pub use follow::follow_credentials;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_api::ca::ConnectionCounts;
use countersign_identity::SpiffeId;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::outcome::{Blame, Direction, Outcome, Security};
use counts::Counts;
use labels::{Authz, Bounded, Build, Destination, Domain, End, Handshake, OTHER, Peers, Reason, UNKNOWN, Way};

/// Most pairs of peers counted apart, per direction and kind of security taken together.
const MAX_PEERS: usize = 512;
/// Most rules counted apart.
const MAX_RULES: usize = 512;
/// Most plaintext destinations inside the mesh counted apart.
const MAX_PLAINTEXT: usize = 256;
/// Most trust domains shown.
const MAX_DOMAINS: usize = 64;

/// Every metric of the process; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    ours: Registry,
    process: Registry,
    inbound: Journey,
    outbound: Journey,
    closed: Family<Peers, Counter>,
    sent: Family<Peers, Counter>,
    received: Family<Peers, Counter>,
    by_peers: Mutex<HashMap<PeersKey, PeerCounters>>,
    ended: Family<End, Counter>,
    /// Ends as the CA's report counts them ([`Counts`]).
    good: Counter,
    failed: Counter,
    reused: Family<Way, Counter>,
    shed: Family<Reason, Counter>,
    authz: Family<Authz, Counter>,
    rules: Bounded,
    handshakes: Family<Handshake, Counter>,
    handshake_seconds: Family<Way, Histogram, fn() -> Histogram>,
    pool_idle: Gauge,
    pool_takes: Family<labels::Outcome, Counter>,
    lookups: Family<labels::Outcome, Counter>,
    plaintext: Family<Destination, Counter>,
    plaintext_seen: Bounded,
    certificate_expires: Gauge,
    certificate_refreshes: Family<labels::Outcome, Counter>,
    bundle_generation: Family<Domain, Gauge>,
    domains: Bounded,
    controller_connected: Gauge,
    controller_attempts: Family<labels::Outcome, Counter>,
    policy_updates: Family<labels::Outcome, Counter>,
    policy_rules: Gauge,
    access_log_dropped: Counter,
    reauthentications: Family<labels::Attempt, Counter>,
    interception_lost: Family<Way, Gauge>,
    interception_proof: Family<Way, Gauge>,
}

/// The counters of one direction, held by each open connection.
#[derive(Clone)]
struct Journey {
    opened: Counter,
    open: Gauge,
}

type PeersKey = (Direction, Security, Option<SpiffeId>, Option<SpiffeId>);

#[derive(Clone)]
struct PeerCounters {
    closed: Counter,
    sent: Counter,
    received: Counter,
}

/// Counts a connection as open until it is dropped.
#[must_use = "the connection counts as open until this is dropped"]
pub struct OpenGuard(Gauge);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for OpenGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenGuard")
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut ours = Registry::with_prefix("countersign");
        let r = &mut ours;
        r.register("build", "What runs here", Info::new(Build { version: env!("CARGO_PKG_VERSION") }));
        let opened = Family::<Way, Counter>::default();
        let open = Family::<Way, Gauge>::default();
        let journey = |direction: Direction| {
            let way = Way { direction: direction.label() };
            Journey { opened: opened.get_or_create_owned(&way), open: open.get_or_create_owned(&way) }
        };
        let (inbound, outbound) = (journey(Direction::Inbound), journey(Direction::Outbound));
        r.register("tcp_connections_opened", "Application connections accepted", opened);
        r.register("tcp_connections_open", "Application connections open now", open);
        let mut process = Registry::default();
        process.register_collector(Box::new(process::Process::new()));
        let inner = Inner {
            inbound,
            outbound,
            closed: family(r, "tcp_connections_closed", "Application connections ended, by peers"),
            sent: bytes(r, "tcp_sent", "Bytes from client to server"),
            received: bytes(r, "tcp_received", "Bytes from server to client"),
            by_peers: Mutex::default(),
            ended: family(r, "tcp_connection_ends", "Application connections ended, by how and whose doing"),
            good: Counter::default(),
            failed: Counter::default(),
            reused: family(r, "tcp_connections_reused", "Application connections over a kept TLS connection"),
            shed: family(r, "connections_shed", "Connections closed at once because a bound was reached"),
            authz: family(r, "authz_decisions", "Rule decisions; would_deny counts beside allow"),
            rules: Bounded::new(MAX_RULES),
            handshakes: family(r, "tls_handshakes", "TLS handshakes ended"),
            handshake_seconds: handshake_seconds(r),
            pool_idle: gauge(r, "pool_idle_connections", "Kept TLS connections that wait to be used"),
            pool_takes: family(r, "pool_takes", "Askings of the pool, by what came of them"),
            lookups: family(r, "discovery_lookups", "Askings of who is at an address, by answer"),
            plaintext: family(
                r,
                "plaintext_inside_mesh",
                "Plaintext connections to addresses inside the mesh's ranges",
            ),
            plaintext_seen: Bounded::new(MAX_PLAINTEXT),
            certificate_expires: expiry(r),
            certificate_refreshes: family(r, "identity_cert_refresh", "SVIDs asked for, by what came of it"),
            bundle_generation: family(r, "trust_bundle_generation", "Generation of the trust bundle in force"),
            domains: Bounded::new(MAX_DOMAINS),
            controller_connected: gauge(r, "controller_connected", "1 while the controller's stream is up"),
            controller_attempts: family(r, "controller_connections", "Attempts to reach the controller"),
            policy_updates: family(r, "policy_updates", "Rule sets received, by whether they were put in force"),
            policy_rules: gauge(r, "policy_rules", "Rules in force that bind this workload"),
            access_log_dropped: counter(r, "access_log_dropped", "Access-log lines lost to a slow reader of stdout"),
            reauthentications: family(r, "reauthentications", "Open connections proven anew, or not, and why"),
            interception_lost: family(r, "interception_lost", "1 while the redirect rules of a direction are lost"),
            interception_proof: last_proof(r),
            ours,
            process,
        };
        Self(Arc::new(inner)).begin()
    }

    /// An application connection was accepted; it counts as open until the guard is dropped.
    pub fn connection_opened(&self, direction: Direction) -> OpenGuard {
        let journey = match direction {
            Direction::Inbound => &self.0.inbound,
            Direction::Outbound => &self.0.outbound,
        };
        journey.opened.inc();
        journey.open.inc();
        OpenGuard(journey.open.clone())
    }

    /// An application connection ended.
    pub fn record(&self, outcome: &Outcome) {
        let direction = outcome.direction.label();
        let counters = self.peer_counters(outcome);
        counters.closed.inc();
        counters.sent.inc_by(outcome.sent);
        counters.received.inc_by(outcome.received);
        let end = End { direction, result: outcome.result, blame: outcome.blame.label() };
        self.0.ended.get_or_create(&end).inc();
        match Counts::of(outcome.result, outcome.direction) {
            Counts::Good => self.0.good.inc(),
            Counts::Failed => self.0.failed.inc(),
            Counts::Neither => 0,
        };
        if outcome.reused {
            self.0.reused.get_or_create(&Way { direction }).inc();
        }
        self.record_decision(outcome);
    }

    /// A TLS handshake ended after `took`. `result` is `ok`, or the bounded word of why it failed; `group` the key
    /// exchange where one was agreed.
    pub fn handshake(&self, direction: Direction, result: &'static str, group: Option<&'static str>, took: Duration) {
        let direction = direction.label();
        let (result, reason) = if result == "ok" { ("ok", "") } else { ("failed", result) };
        let labels = Handshake { direction, result, reason, group: group.unwrap_or("") };
        self.0.handshakes.get_or_create(&labels).inc();
        self.0.handshake_seconds.get_or_create(&Way { direction }).observe(took.as_secs_f64());
    }

    /// A connection was closed at once because the bound `reason` was reached.
    pub fn shed(&self, reason: &'static str) {
        self.0.shed.get_or_create(&Reason { reason }).inc();
    }

    /// Plaintext goes to an address inside the mesh's ranges: a lying controller would show here.
    pub fn plaintext_inside_mesh(&self, destination: IpAddr) {
        let destination = self.0.plaintext_seen.label(&destination.to_canonical().to_string());
        self.0.plaintext.get_or_create(&Destination { destination }).inc();
    }

    /// The addresses counted apart by [`Metrics::plaintext_inside_mesh`], sorted; `/status` shows them.
    #[must_use]
    pub fn plaintext_destinations(&self) -> Vec<Arc<str>> {
        self.0.plaintext_seen.values()
    }

    /// Application connections open now: inbound, outbound.
    #[must_use]
    pub fn open_connections(&self) -> (i64, i64) {
        (self.0.inbound.open.get(), self.0.outbound.open.get())
    }

    /// Application connections since the start, in both directions: open now, failed for want of trust or of a proven peer, and those that
    /// ended otherwise. docs/errors.md names the words.
    #[must_use]
    pub fn tally(&self) -> ConnectionCounts {
        let (inbound, outbound) = self.open_connections();
        let open = u64::try_from(inbound.saturating_add(outbound)).unwrap_or(0);
        ConnectionCounts { open, good: self.0.good.get(), failed: self.0.failed.get(), behind: 0 }
    }

    /// How many idle connections the pool holds, for the pool to say.
    #[must_use]
    pub fn pool_idle(&self) -> Gauge {
        self.0.pool_idle.clone()
    }

    /// The pool was asked; `result` is a bounded word, e.g. `reused`, `empty`, `stale`.
    pub fn pool_take(&self, result: &'static str) {
        self.0.pool_takes.get_or_create(&labels::Outcome { result }).inc();
    }

    /// Discovery was asked who is at an address; `result` is a bounded word.
    pub fn lookup(&self, result: &'static str) {
        self.0.lookups.get_or_create(&labels::Outcome { result }).inc();
    }

    /// SVIDs were put in force since the last call, or could not be obtained.
    pub fn renewals(&self, good: u64, failed: u64) {
        for (result, count) in [("ok", good), ("failed", failed)] {
            self.0.certificate_refreshes.get_or_create(&labels::Outcome { result }).inc_by(count);
        }
    }

    /// New credentials are in force: when the own SVID ends (Unix seconds), and each bundle's generation.
    pub fn credentials<'a>(&self, expires: u64, bundles: impl Iterator<Item = (&'a str, u64)>) {
        self.0.certificate_expires.set(i64::try_from(expires).unwrap_or(i64::MAX));
        for (domain, generation) in bundles {
            let trust_domain = self.0.domains.label(domain);
            let generation = i64::try_from(generation).unwrap_or(i64::MAX);
            self.0.bundle_generation.get_or_create(&Domain { trust_domain }).set(generation);
        }
    }

    /// The controller's stream came up or went down.
    pub fn controller_connected(&self, connected: bool) {
        self.0.controller_connected.set(i64::from(connected));
    }

    /// The controller was dialled; `result` is a bounded word.
    pub fn controller_attempt(&self, result: &'static str) {
        self.0.controller_attempts.get_or_create(&labels::Outcome { result }).inc();
    }

    /// A rule set came: `applied` or `refused`, and how many rules are in force now.
    pub fn policy_update(&self, result: &'static str, rules_in_force: usize) {
        self.0.policy_updates.get_or_create(&labels::Outcome { result }).inc();
        self.0.policy_rules.set(i64::try_from(rules_in_force).unwrap_or(i64::MAX));
    }

    /// An access-log line was lost.
    pub fn access_log_dropped(&self) {
        self.0.access_log_dropped.inc();
    }

    /// An open connection was proven anew (`ok`), or not; `result` is a bounded word.
    pub fn reauthentication(&self, direction: Direction, result: &'static str) {
        let labels = labels::Attempt { direction: direction.label(), result };
        self.0.reauthentications.get_or_create(&labels).inc();
    }

    /// The redirect of one direction was lost, or is there again.
    pub fn interception_lost(&self, direction: Direction, lost: bool) {
        self.0.interception_lost.get_or_create(&Way { direction: direction.label() }).set(i64::from(lost));
    }

    /// The redirect of one direction was just seen at work.
    pub fn interception_proven(&self, direction: Direction) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let gauge = self.0.interception_proof.get_or_create(&Way { direction: direction.label() });
        gauge.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// The whole as OpenMetrics text, `# EOF` last.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a String cannot fail.
        let _ = text::encode_registry(&mut out, &self.0.ours);
        let _ = text::encode_registry(&mut out, &self.0.process);
        let _ = text::encode_eof(&mut out);
        out
    }

    /// Counts the decision, where it was ours: a refusal that a peer told us of carries an id, but no revision of ours.
    fn record_decision(&self, outcome: &Outcome) {
        let refused = outcome.denial_id.is_some();
        if refused && outcome.blame != Blame::Policy {
            return; // no rule was asked
        }
        if outcome.revision.is_none() && !(refused && outcome.direction == Direction::Inbound) {
            return;
        }
        let count = |decision, rule: Option<&Arc<str>>| {
            let policy = self.0.rules.label(rule.map_or("none", |rule| rule));
            let labels = Authz { direction: outcome.direction.label(), decision, policy };
            self.0.authz.get_or_create(&labels).inc();
        };
        count(if refused { "deny" } else { "allow" }, outcome.rule.as_ref());
        if outcome.would_deny.is_some() {
            count("would_deny", outcome.would_deny.as_ref());
        }
    }

    fn peer_counters(&self, outcome: &Outcome) -> PeerCounters {
        let (source, destination) = (outcome.source_id.clone(), outcome.destination_id.clone());
        let key = (outcome.direction, outcome.security, source, destination);
        let mut by_peers = self.0.by_peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = by_peers.get(&key) {
            return counters.clone();
        }
        let fits = by_peers.len() < MAX_PEERS;
        let name = |id: &Option<SpiffeId>| {
            let name = id.as_ref().map_or(UNKNOWN, SpiffeId::as_str);
            Arc::from(if fits { name } else { OTHER })
        };
        let labels = Peers {
            direction: outcome.direction.label(),
            source_principal: name(&key.2),
            destination_principal: name(&key.3),
            connection_security_policy: outcome.security.label(),
        };
        let counters = PeerCounters {
            closed: self.0.closed.get_or_create_owned(&labels),
            sent: self.0.sent.get_or_create_owned(&labels),
            received: self.0.received.get_or_create_owned(&labels),
        };
        if fits {
            by_peers.insert(key, counters.clone());
        }
        counters
    }
}

fn family<S, M>(registry: &mut Registry, name: &str, help: &str) -> Family<S, M>
where
    S: Clone + std::hash::Hash + Eq + prometheus_client::encoding::EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
    M: Default + prometheus_client::encoding::EncodeMetric + prometheus_client::metrics::TypedMetric,
    M: fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<S, M>::default();
    registry.register(name, help, family.clone());
    family
}

fn bytes(registry: &mut Registry, name: &str, help: &str) -> Family<Peers, Counter> {
    let family = Family::<Peers, Counter>::default();
    registry.register_with_unit(name, help, Unit::Bytes, family.clone());
    family
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn last_proof(registry: &mut Registry) -> Family<Way, Gauge> {
    let family = Family::<Way, Gauge>::default();
    let help = "Unix time at which the redirect of a direction was last seen at work";
    registry.register_with_unit("interception_last_proof_timestamp", help, Unit::Seconds, family.clone());
    family
}

fn expiry(registry: &mut Registry) -> Gauge {
    let gauge = Gauge::default();
    let help = "Unix time at which the own SVID ends";
    registry.register_with_unit("identity_cert_expiration_timestamp", help, Unit::Seconds, gauge.clone());
    gauge
}

fn handshake_seconds(registry: &mut Registry) -> Family<Way, Histogram, fn() -> Histogram> {
    fn buckets() -> Histogram {
        Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
    }
    let family = Family::new_with_constructor(buckets as fn() -> Histogram);
    registry.register_with_unit(
        "tls_handshake_duration",
        "How long TLS handshakes took",
        Unit::Seconds,
        family.clone(),
    );
    family
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;

//! What the controller shows of itself: ready or not, status, a dump. Asked through `countersign_admin`, and by whoever waits
//! for ready. A secret never leaves: there is none here but our own key, which nothing here reads.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use countersign_admin::health::{self, Check, Health};
use countersign_admin::{Log, Routes, http};
use countersign_credentials::{SharedClock, Status as CaStatus, Watch};
use ipnet::IpNet;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::drift;
use crate::index::Index;
use crate::metrics::{Facts, Metrics};
use crate::server::{Record, Registry};
use crate::source::Snapshot;

/// The parts that are asked.
pub struct Inside {
    /// The picture of the mesh.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Our own SVID.
    pub credentials: Watch,
    /// How its renewal fares.
    pub ca: watch::Receiver<CaStatus>,
    /// Wall time.
    pub clock: SharedClock,
    /// The configuration in force.
    pub config: Value,
    /// The logs' filter.
    pub log: Log,
    /// Cancelled when this process ends.
    pub shutdown: CancellationToken,
}

impl Health for Inside {
    /// Our SVID is good, the mesh is known, and rules may be sent; and we were not told to end.
    fn checks(&self) -> Vec<Check> {
        let drain = self.shutdown.is_cancelled().then_some("shutting down");
        vec![
            Check::new("drain", drain),
            Check::new("credentials", self.no_svid()),
            Check::new("rules", no_rules(&self.snapshot())),
        ]
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let (records, now) = (self.registry.records(), Instant::now());
        let ca = self.ca.borrow().clone();
        self.metrics.render(&Facts {
            snapshot: &self.snapshot(),
            streams: records.len(),
            lagging: records.iter().filter(|record| record.told().lag(now).is_some()).count(),
            own_end: ca.expires_at.map_or(0, |end| end.as_secs()),
            renewals: (ca.renewals, ca.failures),
        })
    }
}

impl Inside {
    /// Whether proxies can be served.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn ready(&self) -> Result<(), Cow<'static, str>> {
        health::ready(&self.checks())
    }

    /// What the admin socket answers.
    pub fn routes(self: &Arc<Self>) -> Routes {
        let (status, dump) = (Arc::clone(self), Arc::clone(self));
        Routes::new(self.log.clone())
            .get("/status", move || http::json(&status.status()))
            .get("/config_dump", move || http::json(&dump.dump()))
    }

    fn no_svid(&self) -> Option<Cow<'static, str>> {
        match &*self.credentials.borrow() {
            Some(credentials) if credentials.expired() => Some("our own SVID has expired".into()),
            Some(_) => None,
            None => Some(match &self.ca.borrow().last_error {
                Some(error) => format!("no SVID of our own yet: {}", error.text).into(),
                None => "no SVID of our own yet".into(),
            }),
        }
    }

    /// What `countersign status` shows.
    pub fn status(&self) -> Value {
        let snapshot = self.snapshot();
        let ready = self.ready();
        let records = self.registry.records();
        let proxies: Vec<Value> = records.iter().map(|record| proxy(record)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "time": unix_time(self.clock.now().as_secs()),
            "ready": ready.is_ok(),
            "not_ready_because": ready.err(),
            "trust_domain": snapshot.index.as_ref().map(|index| index.mesh().trust_domain.as_str()),
            "pod_ranges": snapshot.index.as_ref().map(|index| ranges(&index.mesh().pod_ranges)),
            "service_ranges": snapshot.index.as_ref().map(|index| ranges(&index.mesh().service_ranges)),
            "own_svid": self.own_svid(),
            "source": source(&snapshot),
            "drift": snapshot.index.as_ref().map(|index| drift::drift(index, &records)),
            "proxies": proxies,
        })
    }

    fn own_svid(&self) -> Value {
        let ca = self.ca.borrow().clone();
        json!({
            "id": self.credentials.borrow().as_ref().map(|credentials| credentials.id().as_str().to_owned()),
            "not_after": ca.expires_at.map(|end| unix_time(end.as_secs())),
            "next_renewal": ca.next_attempt.map(|at| unix_time(at.as_secs())),
            "bundle_generation": ca.bundle_generation,
            "follows_bundle": ca.following,
            "problem": ca.last_error.map(|error| error.text),
        })
    }

    /// The configuration and the whole picture.
    pub fn dump(&self) -> Value {
        let snapshot = self.snapshot();
        json!({
            "config": self.config,
            "source": source(&snapshot),
            "mesh": snapshot.index.as_deref().map(mesh),
        })
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}

fn no_rules(snapshot: &Snapshot) -> Option<Cow<'static, str>> {
    if snapshot.serves_rules() {
        return None;
    }
    let problems: Vec<String> = snapshot.problems.iter().take(10).map(ToString::to_string).collect();
    Some(match (snapshot.change, &snapshot.index) {
        (0, _) => "the source is not read yet".into(),
        (_, None) => format!("the mesh is not known: {}", problems.join("; ")).into(),
        (_, Some(_)) => format!("rules are withheld until each file was good once: {}", problems.join("; ")).into(),
    })
}

fn source(snapshot: &Snapshot) -> Value {
    let objects: serde_json::Map<String, Value> = match &snapshot.index {
        Some(index) => index.counts().into_iter().map(|(kind, count)| (kind.to_owned(), count.into())).collect(),
        None => serde_json::Map::new(),
    };
    json!({
        "revision": snapshot.index.as_ref().map(|index| index.revision()),
        "change": snapshot.change,
        "since": ago(snapshot.since),
        "files": snapshot.files,
        "objects": objects,
        "problems": snapshot.problems,
        "warnings": snapshot.warnings,
        "rules_withheld_for": snapshot.withheld,
    })
}

fn proxy(record: &Record) -> Value {
    let told = record.told();
    json!({
        "pod_uid": record.claim.pod_uid,
        "namespace": &*record.name.namespace,
        "name": &*record.name.name,
        "id": record.claim.id.as_str(),
        "address": record.address,
        "version": record.proxy_version,
        "feature_level": record.feature_level,
        "since": ago(record.since),
        "sent_revision": told.sent.as_ref().map(|(revision, _)| revision),
        "acked_revision": told.acked,
        "lag_seconds": told.lag(Instant::now()).map_or(0.0, |lag| lag.as_secs_f64()),
        "problem": told.problem,
        "unknown_rules": told.unknown_rules,
        "rules_beyond_its_level": told.beyond_level,
        "followed_addresses": told.followed,
    })
}

fn ranges(ranges: &[IpNet]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

fn mesh(index: &Index) -> Value {
    let workloads = index.members().iter().map(|member| {
        let workload = &member.workload;
        json!({
            "namespace": &*member.name.namespace, "name": &*member.name.name, "uid": &*workload.uid.value,
            "id": member.id.as_str(), "labels": workload.labels, "meshed": workload.meshed, "ready": workload.ready,
            "node": workload.node, "addresses": workload.addresses.iter().map(|at| at.value).collect::<Vec<_>>(),
        })
    });
    let services = index.services().iter().map(|of| {
        let service = &of.service;
        json!({
            "namespace": &*of.name.namespace, "name": &*of.name.name, "ports": service.ports,
            "addresses": service.addresses.iter().map(|at| at.value).collect::<Vec<_>>(),
            "local_only": service.local_only, "affinity_seconds": service.affinity_seconds,
            "workloads": index.behind(of).map(|member| member.name.to_string()).collect::<Vec<_>>(),
            "left_out": of.left_out,
        })
    });
    let namespaces = index.namespaces().map(|(name, rules)| {
        let policies = rules.rules.iter().map(|rule| {
            serde_json::from_str::<Value>(&rule.wire.policy_json)
                .unwrap_or_else(|_| rule.wire.policy_json.clone().into())
        });
        json!({ "name": name, "modes": rules.modes, "policies": policies.collect::<Vec<_>>() })
    });
    json!({
        "trust_domain": index.mesh().trust_domain.as_str(),
        "pod_ranges": ranges(&index.mesh().pod_ranges),
        "service_ranges": ranges(&index.mesh().service_ranges),
        "workloads": workloads.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

fn unix_time(seconds: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    at.format(&Rfc3339).ok()
}

/// When that was, by the wall clock of now.
fn ago(at: Instant) -> Option<String> {
    let then = SystemTime::now().checked_sub(at.elapsed())?;
    unix_time(then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs())
}

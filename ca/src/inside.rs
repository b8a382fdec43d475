//! What the CA tells about itself: ready or not, status, metrics. Asked through `countersign_admin`; it must never hold or show
//! a key or a token.

use std::fmt;
use std::sync::Arc;

use countersign_admin::health::{self, Check, Health};
use countersign_admin::{Log, Routes, http};
use countersign_credentials::SharedClock;
use serde_json::{Value, json};

use crate::attest::Jwks;
use crate::audit::{self, Audit};
use crate::clock::{millis, rfc3339};
use crate::metrics::{Facts, Metrics};
use crate::own::Own;
use crate::rotation::{self, RotationError, Rotations, Step};
use crate::state::{Pair, State, hex};
use crate::watch::Bundles;

/// The parts that are asked.
pub struct Inside {
    /// Root, issuer, bundle.
    pub state: Arc<State>,
    /// The CA's own SVID.
    pub own: Arc<Own>,
    /// Where every decision is recorded.
    pub audit: Audit,
    /// The token issuer's keys, where tokens are verified by them.
    pub jwks: Option<Arc<Jwks>>,
    /// Open streams.
    pub bundles: Arc<Bundles>,
    /// How one root takes another's place.
    pub rotations: Arc<Rotations>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Wall time.
    pub clock: SharedClock,
    /// The configuration in force, secrets left out.
    pub config: Value,
    /// The logs' filter.
    pub log: Log,
    /// Set when the process is told to end.
    pub shutdown: tokio_util::sync::CancellationToken,
}

impl Health for Inside {
    /// Our own SVID is valid, so that callers can be served; and we were not told to end.
    fn checks(&self) -> Vec<Check> {
        let own = match self.own.not_after() {
            None => Some("no SVID of our own yet"),
            Some(end) if end < self.clock.now() => Some("our own SVID has expired"),
            Some(_) => None,
        };
        let drain = self.shutdown.is_cancelled().then_some("shutting down");
        let audit = (!self.audit.facts().writable).then_some("the audit log cannot be written");
        vec![Check::new("drain", drain), Check::new("credentials", own), Check::new("audit", audit)]
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let authority = self.state.authority();
        self.metrics.render(Facts {
            root_end: authority.root().not_after().as_secs(),
            issuer_end: authority.issuer().not_after().as_secs(),
            own_end: self.own.not_after().map_or(0, |end| end.as_secs()),
            generation: authority.generation(),
            watchers: self.bundles.open(),
            state_in_step: self.state.problem().is_none(),
            audit: self.audit.facts(),
            token_keys: self.jwks.as_ref().map(|jwks| (jwks.key_ids().len(), jwks.problem().is_none())),
        })
    }
}

impl Inside {
    /// What the admin socket answers.
    pub fn routes(self: &Arc<Self>) -> Routes {
        let (status, dump) = (Arc::clone(self), Arc::clone(self));
        let (rotation, report) = (Arc::clone(&self.rotations), Arc::clone(&self.rotations));
        let routes = Routes::new(self.log.clone())
            .get("/status", move || http::json(&status.status()))
            .get("/config_dump", move || http::json(&dump.config))
            .get_later("/rotation", move || {
                let rotation = Arc::clone(&rotation);
                async move { http::json(&rotation.status().await) }
            })
            .get_later("/rotation/report", move || {
                let report = Arc::clone(&report);
                async move {
                    match report.report().await {
                        Ok(report) => http::json(&report),
                        Err(error) => refused(&error, &Value::Null),
                    }
                }
            });
        let steps = [
            ("/rotation/prepare", Step::Prepare, false),
            ("/rotation/activate", Step::Activate, false),
            ("/rotation/activate/forced", Step::Activate, true),
            ("/rotation/retire", Step::Retire, false),
            ("/rotation/retire/forced", Step::Retire, true),
            ("/rotation/abort", Step::Abort, false),
        ];
        steps.into_iter().fold(routes, |routes, (path, step, forced)| {
            let rotations = Arc::clone(&self.rotations);
            routes.post_later(path, move || {
                let rotations = Arc::clone(&rotations);
                async move {
                    match rotations.step(step, forced).await {
                        Ok(status) => http::json(&status),
                        Err(error) => {
                            tracing::warn!(step = step.word(), forced, %error, "a step of a rotation was refused");
                            let gate = match &error {
                                RotationError::TooEarly(gate) => rotation::told_gate(gate),
                                _ => Value::Null,
                            };
                            refused(&error, &gate)
                        }
                    }
                }
            })
        })
    }

    /// What `countersign status` shows.
    pub fn status(&self) -> Value {
        let authority = self.state.authority();
        let ready = health::ready(&self.checks());
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "time": rfc3339(millis(&*self.clock)),
            "ready": ready.is_ok(),
            "not_ready_because": ready.err(),
            "trust_domain": authority.trust_domain().as_str(),
            "state": self.state.place(),
            "state_problem": self.state.problem(),
            "bundle_generation": authority.generation(),
            "root": pair(authority.root()),
            "issuer": pair(authority.issuer()),
            "own_svid": {
                "id": self.own.id().as_str(),
                "not_after": self.own.not_after().map(|end| rfc3339(end.as_secs().saturating_mul(1000))),
            },
            "token_keys": self.jwks.as_ref().map(|jwks| jwks.key_ids()),
            "token_keys_problem": self.jwks.as_ref().and_then(|jwks| jwks.problem()).map(|problem| problem.to_string()),
            "bundle_watchers": self.bundles.open(),
            "audit": audit(&self.audit.facts()),
            "rotation": authority.rotation().map(|rotation| rotation.stage().word()),
        })
    }
}

fn audit(facts: &audit::Facts) -> Value {
    json!({
        "writable": facts.writable,
        "copied": facts.copied,
        "alarm": facts.room.alarm,
        "room_used": facts.room.used,
        "reserve_bytes": facts.room.reserve,
        "checkpoints": facts.checkpoints,
    })
}

/// Not done, and why: told as JSON, since a gate has much to say.
fn refused(error: &dyn std::error::Error, gate: &Value) -> http::Answer {
    let mut answer = http::json(&json!({ "refused": error.to_string(), "gate": gate }));
    *answer.status_mut() = http::StatusCode::CONFLICT;
    answer
}

fn pair(pair: &Pair) -> Value {
    json!({
        "serial": pair.serial(),
        "key_sha256": hex(&pair.key_sha256()),
        "not_after": rfc3339(pair.not_after().as_secs().saturating_mul(1000)),
    })
}

//! Every family whose labels are known beforehand begins at zero: an alarm on the first of something needs to have seen that there was
//! none, and a dashboard to know that the metric is there.
//!
//! Called once by [`Metrics::new`]. Families labelled by identities, destinations or rules begin with their first event.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::labels::{Authz, End, Handshake, Outcome, Reason, Way};
use super::{Inner, Metrics};
use crate::outcome::Direction;

/// Bounds that shed connections.
const SHED: &[&str] = &["connections", "handshake_slots", "accept_failed", "health_connections", "admin_connections"];
const LOOKUPS: &[&str] = &["outside", "unknown", "not_meshed", "endpoint", "service", "no_answer", "too_many"];

impl Metrics {
    pub(super) fn begin(self) -> Self {
        self.0.begin();
        self
    }
}

impl Inner {
    fn begin(&self) {
        for direction in [Direction::Inbound.label(), Direction::Outbound.label()] {
            let way = Way { direction };
            drop(self.reused.get_or_create(&way));
            drop(self.handshake_seconds.get_or_create(&way));
            drop(self.ended.get_or_create(&End { direction, result: "ok", blame: "none" }));
            for group in ["X25519MLKEM768", "X25519", "P-256"] {
                drop(self.handshakes.get_or_create(&Handshake { direction, result: "ok", reason: "", group }));
            }
        }
        let none = Authz { direction: Direction::Inbound.label(), decision: "deny", policy: Arc::from("none") };
        drop(self.authz.get_or_create(&none));
        SHED.iter().for_each(|reason| drop(self.shed.get_or_create(&Reason { reason })));
        let families: [(&Family<Outcome, Counter>, &[&'static str]); 5] = [
            (&self.lookups, LOOKUPS),
            (&self.pool_takes, &["reused", "empty"]),
            (&self.certificate_refreshes, &["ok", "failed"]),
            (&self.controller_attempts, &["ok", "connect", "stream"]),
            (&self.policy_updates, &["applied", "refused"]),
        ];
        for (family, results) in families {
            results.iter().for_each(|result| drop(family.get_or_create(&Outcome { result })));
        }
    }
}

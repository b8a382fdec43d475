//! The proof of a rotation: stages with their times, and for each holder of a living leaf its bundle, its leaf and what became of its connections;
//! signed with the CA's own SVID, so that whoever has the bundle can check it (`countersign ca report verify`). Called by `inside`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::report::{ALGORITHM, FORMAT, canonical};
use serde_json::{Value, json};

use super::{Rotations, time, told, told_replicas};
use crate::holders::{Connections, Holder, Leaf};
use crate::own::signature;
use crate::state::hex;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nothing to report of.
    #[error("there was no rotation yet")]
    None,
    /// Nothing to sign with.
    #[error("the CA has no SVID to sign it with")]
    NoSvid,
    /// It cannot be signed. Our fault.
    #[error("it cannot be signed")]
    Sign,
}

impl Rotations {
    /// What is known of the last rotation, or of the one under way, signed.
    pub async fn report(&self) -> Result<Value, ReportError> {
        let seen = self.state.seen();
        let known = self.siblings.gather(&seen).await;
        let authority = seen.authority;
        let rotation = authority.rotation().ok_or(ReportError::None)?;
        let own = self.own.subscribe().borrow().clone().ok_or(ReportError::NoSvid)?;
        let now = self.clock.now().as_secs();
        let holders = known.holders;
        let generation = authority.generation();
        let signing = authority.bundle().root_sha256s().map(|sha| hex(sha)).collect::<Vec<_>>();
        let new_root = &rotation.new.sha256;
        let on_new = |holder: &&Holder| holder.newest().is_some_and(|leaf| hex(&leaf.root) == *new_root);
        let counted: Vec<Connections> = holders.iter().filter_map(during).collect();
        let began = rotation.passed.first().map_or(0, |passed| passed.at);
        let counted_since = holders.iter().filter_map(|holder| left_out_until(holder, now)).fold(began, u64::max);
        let complete = |since: u64| since == 0 || now >= since.saturating_add(rotation.leaf_life);
        let all_known = known.waits.is_empty() && known.complete_since.is_some_and(complete);
        let document = json!({
            "format": FORMAT,
            "trust_domain": authority.trust_domain().as_str(),
            "made_at": time(now),
            "made_at_unix": now,
            "made_by": self.own.id().as_str(),
            "rotation": told(rotation),
            "bundle_generation": generation,
            "bundle_roots_sha256": signing,
            "replicas": told_replicas(&known.replicas),
            "holders": holders.iter().map(row).collect::<Vec<_>>(),
            "totals": {
                "holders": holders.len(),
                "all_holders_known": all_known,
                "holding_the_bundle": holders.iter().filter(|holder| holder.holds(generation)).count(),
                "leaves_of_the_new_root": holders.iter().filter(on_new).count(),
                "holders_that_told_of_connections": counted.len(),
                "connections_good": counted.iter().fold(0, |sum: u64, count| sum.saturating_add(count.good)),
                "connections_failed": counted.iter().fold(0, |sum: u64, count| sum.saturating_add(count.failed)),
                "counted_since": time(counted_since),
            },
        });
        let signature = signature(own.svid(), &canonical(&document)).map_err(|_| ReportError::Sign)?;
        let chain: Vec<_> = own.svid().chain().iter().map(|der| STANDARD.encode(der)).collect();
        Ok(json!({
            "report": document,
            "signature": { "algorithm": ALGORITHM, "chain": chain, "value": signature },
        }))
    }
}

fn row(holder: &Holder) -> Value {
    let leaf = |leaf: &Leaf| {
        json!({
            "serial": leaf.serial, "root_sha256": hex(&leaf.root), "not_after": time(leaf.not_after), "seen_in_use": leaf.report.is_some(),
        })
    };
    let report = holder.last_report();
    json!({
        "namespace": holder.namespace, "pod": holder.pod, "uid": holder.uid, "id": holder.id,
        "bundle_generation": report.map(|report| report.generation),
        "reported_at": report.map(|report| time(report.at)),
        "leaves": holder.leaves.iter().map(leaf).collect::<Vec<_>>(),
        "connections": during(holder),
    })
}

/// What it carried since it had the rotation's first bundle; all that it carried where it was started anew since. Nothing is told of one that never
/// said that it has it.
fn during(holder: &Holder) -> Option<Connections> {
    let (now, first) = (holder.connections()?, holder.counted_from?.carried);
    if now.good < first.good || now.failed < first.failed {
        return Some(now);
    }
    Some(Connections { good: now.good - first.good, failed: now.failed - first.failed, ..now })
}

/// Until when connections of its are left out: seconds before its first report with the rotation's bundle, but after a restart of the CA whatever was
/// carried before that. `None`: nothing is left out, or nothing told.
fn left_out_until(holder: &Holder, now: u64) -> Option<u64> {
    let from = holder.counted_from.filter(|from| from.leaves_out())?;
    Some(if from.at == 0 { now } else { from.at })
}

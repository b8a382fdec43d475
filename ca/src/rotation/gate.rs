//! When a step of a rotation may be taken. Pure: what is known of the holders, and the time. Called by `rotation` before each step, and to say
//! who is missing.
//!
//! Two ways lead through a gate. *All have reported*: every holder of a living leaf that we know said what is needed, we know of all, and
//! [`PROPAGATION`] has passed since the last of them came to it, for those who cannot report. *Time*: a leaf is not renewed for a holder that does not follow, so after the
//! longest life of a leaf (and [`GRACE`]) nobody with an older leaf is left. The second is always complete: after a restart, and where a
//! replica does not tell.

use serde::Serialize;

use crate::clock::rfc3339;
use crate::holders::Holder;
use crate::state::{Rotation, Stage};

/// After a new bundle is in force, callers are let in without it for so long: it is on its way to them. Other replicas sign from the older state for
/// a part of it. Seconds.
pub const GRACE: u64 = 10;
/// Between the last report and the step: open connections are proven anew every 5 s while a root is being replaced (decision 0014), and files
/// with the bundle are written within a second. Seconds.
pub const PROPAGATION: u64 = 10;
/// Of those who are missing, so many are named.
pub const NAMED: usize = 100;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The rotation under way.
    pub rotation: &'a Rotation,
    /// SHA-256 of the root that does not sign.
    pub second_root: [u8; 32],
    /// Everybody with a living leaf, as far as known.
    pub holders: &'a [Holder],
    /// Whoever got a leaf after that is among them; `None`: never known.
    pub complete_since: Option<u64>,
    /// Since when all who sign do so by what is in force; 0: since their starts.
    pub in_force_since: u64,
    /// What else there is to wait for before all holders are known.
    pub unknown: &'a [String],
    /// Now, seconds since 1970.
    pub now: u64,
}

/// Whether the next step may be taken, and if not, why.
#[derive(Clone, Debug, Serialize)]
pub struct Gate {
    /// The step behind it.
    pub step: &'static str,
    /// Whether it may be taken.
    pub open: bool,
    /// Holders of a living leaf that are known.
    pub holders: usize,
    /// Those of them that have reported what is needed.
    pub ready: usize,
    /// Those that have not, the first hundred.
    pub missing: Vec<Missing>,
    /// What else is waited for.
    pub waits: Vec<String>,
    /// When it opens whoever is missing, seconds since 1970.
    pub opens_at: u64,
}

/// Somebody who has not reported what is needed.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// Namespace of the pod; empty where only its leaf was seen.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// SPIFFE id.
    pub id: String,
    /// Serial of its newest leaf.
    pub serial: String,
    /// It is waited for until then at the latest, seconds since 1970: its leaf ends.
    pub until: u64,
    /// What it lacks.
    pub why: String,
}

/// The gate before the next step; none where the next step is to begin anew.
pub fn gate(view: View<'_>) -> Option<Gate> {
    let (rotation, holders) = (view.rotation, view.holders);
    let (step, lacking): (_, Vec<(&Holder, String)>) = match rotation.stage() {
        Stage::Prepared | Stage::Distributed => {
            ("activate", holders.iter().filter_map(|holder| behind(holder, rotation.generation())).collect())
        }
        Stage::Active | Stage::Returning => {
            ("retire", holders.iter().filter_map(|holder| on_old(holder, &view.second_root)).collect())
        }
        Stage::Retired | Stage::Aborted => return None,
    };
    let opens_at = rotation.since().saturating_add(GRACE).saturating_add(rotation.leaf_life);
    // What was once known of all stays so: whoever came later got the bundle with its leaf.
    let passed = view.now >= opens_at || rotation.stage() == Stage::Distributed;
    let waits = if passed { Vec::new() } else { waits(view) };
    let open = passed || lacking.is_empty() && waits.is_empty();
    let missing = lacking.iter().take(NAMED).map(|(holder, why)| missing(holder, why)).collect();
    Some(Gate { step, open, holders: holders.len(), ready: holders.len() - lacking.len(), missing, waits, opens_at })
}

/// What all reports together do not say.
fn waits(view: View<'_>) -> Vec<String> {
    let mut waits = Vec::new();
    match view.complete_since {
        None => waits.push("nobody knows who has signed from the state before: a leaf's life must pass".to_owned()),
        Some(since) if since > 0 && view.now < since.saturating_add(view.rotation.leaf_life) => waits.push(format!(
            "leaves signed before {} are not all known: they have all ended in {} s",
            rfc3339(since.saturating_mul(1000)),
            since.saturating_add(view.rotation.leaf_life) - view.now
        )),
        Some(_) => {}
    }
    waits.extend(view.unknown.iter().cloned());
    let settled = settled(view).max(view.in_force_since).saturating_add(PROPAGATION);
    if view.now < settled {
        waits.push(format!("for those who cannot report, {} s more", settled - view.now));
    }
    waits
}

/// When the last of those who were there before this stage came to where they stand. Whoever came later got the bundle with its leaf; and a renewal
/// that changes nothing is no news: in a mesh of some size there is always one.
fn settled(view: View<'_>) -> u64 {
    let began = view.rotation.since();
    let before = view.holders.iter().filter(|holder| holder.joined <= began);
    before.map(|holder| holder.moved).fold(began, u64::max)
}

fn behind(holder: &Holder, generation: u64) -> Option<(&Holder, String)> {
    if holder.holds(generation) {
        return None;
    }
    let why = match holder.newest().and_then(|leaf| leaf.report) {
        Some(report) => format!("has bundle generation {} in force, not {generation}", report.generation),
        None => "was not heard since it got its leaf".to_owned(),
    };
    Some((holder, why))
}

fn on_old<'a>(holder: &'a Holder, root: &[u8; 32]) -> Option<(&'a Holder, String)> {
    let why = match (holder.newest(), holder.behind()) {
        (_, 0) if holder.left(root) => return None,
        (_, open) if holder.left(root) => {
            format!("{open} of its open connections are not yet proven anew under the root that stays")
        }
        (Some(leaf), _) if leaf.root == *root => "its newest leaf stands on the root that is to go".to_owned(),
        _ => "was not seen yet with the leaf that it got last".to_owned(),
    };
    Some((holder, why))
}

fn missing(holder: &Holder, why: &str) -> Missing {
    Missing {
        namespace: holder.namespace.clone(),
        pod: holder.pod.clone(),
        uid: holder.uid.clone(),
        id: holder.id.clone(),
        serial: holder.newest().map(|leaf| leaf.serial.clone()).unwrap_or_default(),
        until: holder.leaves.iter().map(|leaf| leaf.not_after).max().unwrap_or(0),
        why: why.to_owned(),
    }
}

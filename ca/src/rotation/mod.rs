//! The operator's half of a rotation: a step is asked for on the admin socket, its gate is looked at, it is recorded, stored, and in force. Called
//! by `inside` for the routes, and run by `run` as one task that notes when a new bundle is held by all.
//!
//! It must never take a step whose gate is shut, but when it is forced; and never one that is not stored. What stage comes after which is
//! `state::rotation`'s.

use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::SharedClock;
use serde_json::{Value, json};

mod gate;
mod report;

pub use gate::{GRACE, Gate, Missing, PROPAGATION, View, gate};
pub use report::ReportError;

use crate::audit::{Audit, AuditError, Entry, Event, GRANTED, SUPERSEDED};
use crate::clock::{millis, rfc3339};
use crate::holders::Holders;
use crate::own::Own;
use crate::siblings::{Known, Siblings, Told};
use crate::state::{Authority, Passed, Race, Rotation, Stage, State, StateError, StepError, hex};

/// How often it is looked whether the bundle is held by all.
const LOOK: Duration = Duration::from_secs(1);
/// The same, where others were asked and did not say so.
const LOOK_ALL: Duration = Duration::from_secs(3);
/// After a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// So often a step is begun anew when the state changed under it.
const TRIES: usize = 5;

/// A step that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new root beside the old one.
    Prepare,
    /// The new root signs.
    Activate,
    /// The root that does not sign goes.
    Retire,
    /// Back to the old root.
    Abort,
}

impl Step {
    /// The path under which it is asked for.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Retire => "retire",
            Self::Abort => "abort",
        }
    }
}

/// Why a step was not taken. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// It does not follow on the stage that there is.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Its gate is shut.
    #[error("{} is too early: {}", .0.step, reasons(.0))]
    TooEarly(Box<Gate>),
    /// It could not be recorded.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// It could not be stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// Others change the state all the time.
    #[error("the state changed each time that it was to be written; try again")]
    Busy,
}

fn reasons(gate: &Gate) -> String {
    let missing = gate.holders - gate.ready;
    let first = (missing > 0).then(|| format!("{missing} of {} holders of a leaf have not reported", gate.holders));
    first.into_iter().chain(gate.waits.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// What it works with; one for the process.
pub struct Rotations {
    /// The two roots, and the stage.
    pub state: Arc<State>,
    /// Who holds what.
    pub holders: Arc<Holders>,
    /// Where every step is recorded.
    pub audit: Audit,
    /// What reports are signed with.
    pub own: Arc<Own>,
    /// Wall time.
    pub clock: SharedClock,
    /// The longest life that a leaf may have, where the state does not say what was given.
    pub max_leaf: Duration,
    /// What all replicas know together.
    pub siblings: Arc<Siblings>,
}

impl Rotations {
    /// Notes when a new bundle is held by all, and from which bundle on connections are counted, whoever prepared it. Never ends.
    pub async fn run(self: Arc<Self>) {
        let mut changes = self.state.subscribe();
        // Of a rotation that is under way when we start all that is carried from now on belongs to it; its report says since when (`counted_since`).
        let mut counted = changes.borrow_and_update().generation();
        loop {
            let authority = Arc::clone(&changes.borrow_and_update());
            let began = authority.under_way().map(Rotation::generation).filter(|began| *began > counted);
            if let Some(began) = began {
                counted = began;
                self.holders.count_from(began);
            }
            let pause = match self.note_distributed().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(%error, "that the new bundle is held by all could not be stored; trying again");
                    AFTER_FAILURE
                }
            };
            let _ = tokio::time::timeout(pause, changes.changed()).await;
        }
    }

    /// How long until it is worth to look again.
    async fn note_distributed(&self) -> Result<Duration, RotationError> {
        let seen = self.state.seen();
        let prepared = seen.authority.under_way().is_some_and(|rotation| rotation.stage() == Stage::Prepared);
        // Others are asked only when nobody is missing here.
        let here = |gate: Gate| gate.open || gate.ready == gate.holders;
        if !prepared || !gate_of(&seen.authority, &self.siblings.alone(&seen)).is_some_and(here) {
            return Ok(LOOK);
        }
        let known = self.siblings.gather(&seen).await;
        if !gate_of(&seen.authority, &known).is_some_and(|gate| gate.open) {
            return Ok(if self.state.is_shared() { LOOK_ALL } else { LOOK });
        }
        let now = self.clock.now();
        let draft = self.state.draft(|current| current.distributed(now))?;
        if draft.is_of(&seen) && self.state.commit(draft, now).await? == Race::Won {
            tracing::info!(generation = seen.authority.generation(), "the new trust bundle is held by all");
        }
        Ok(LOOK)
    }

    /// Takes a step, and says where that leads. `forced`: whoever is missing.
    pub async fn step(&self, step: Step, forced: bool) -> Result<Value, RotationError> {
        for _ in 0..TRIES {
            let seen = self.state.seen();
            // All are asked before, and the draft is over the very version that said who they are: nobody can have come meanwhile.
            let known = match step {
                Step::Activate | Step::Retire => self.siblings.gather(&seen).await,
                Step::Prepare | Step::Abort => self.siblings.alone(&seen),
            };
            let now = self.clock.now();
            let draft = self.state.draft(|current| self.next(current, step, forced, &known))?;
            if !draft.is_of(&seen) {
                continue;
            }
            let made = draft.authority();
            self.record(step, &made, GRANTED).await?;
            if self.state.commit(draft, now).await? == Race::Won {
                let rotation = made.rotation();
                let stage = rotation.map_or("none", |rotation| rotation.stage().word());
                let (id, signs) = (rotation.map(|rotation| rotation.id.as_str()), made.root().serial());
                let generation = made.generation();
                tracing::warn!(
                    step = step.word(),
                    stage,
                    id,
                    forced,
                    signs,
                    generation,
                    "a step of a rotation of the root"
                );
                return Ok(self.status().await);
            }
            self.record(step, &made, SUPERSEDED).await?;
        }
        Err(RotationError::Busy)
    }

    fn next(&self, current: &Authority, step: Step, forced: bool, known: &Known) -> Result<Authority, RotationError> {
        let (now, lifetimes) = (self.clock.now(), self.state.lifetimes());
        let gate = gate_of(current, known).filter(|gate| gate.step == step.word());
        let shut = gate.filter(|gate| !gate.open);
        Ok(match step {
            Step::Prepare => {
                let life = current.longest_leaf().unwrap_or(self.max_leaf.as_secs());
                current.prepared(lifetimes, life, now)?
            }
            Step::Activate => self.through(shut, forced, |forced| current.activated(lifetimes, forced, now))?,
            Step::Retire => self.through(shut, forced, |forced| current.retired(forced, now))?,
            Step::Abort => current.aborted(lifetimes, now)?,
        })
    }

    /// Forced only where the gate is shut, so that the report says what was.
    fn through(
        &self,
        shut: Option<Gate>,
        forced: bool,
        take: impl FnOnce(bool) -> Result<Authority, StepError>,
    ) -> Result<Authority, RotationError> {
        match shut {
            Some(gate) if !forced => Err(RotationError::TooEarly(Box::new(gate))),
            shut => Ok(take(shut.is_some())?),
        }
    }

    /// Recorded before it is stored: what it makes, then the step itself.
    async fn record(&self, step: Step, made: &Authority, outcome: &'static str) -> Result<(), AuditError> {
        let now_ms = millis(&*self.clock);
        let pair = match step {
            Step::Prepare => made.second_root().map(|root| (Event::Root, root)),
            Step::Activate | Step::Abort => Some((Event::Issuer, made.issuer())),
            Step::Retire => None,
        };
        let stage = made.rotation().map_or("none", |rotation| rotation.stage().word());
        if let Some((event, pair)) = pair.filter(|_| stage != Stage::Aborted.word()) {
            let entry = Entry {
                serial: Some(pair.serial()),
                key_sha256: Some(hex(&pair.key_sha256())),
                not_after: Some(pair.not_after().as_secs()),
                bundle_generation: Some(made.generation()),
                ..Entry::new(event, outcome)
            };
            let _recorded = self.audit.record(&entry, now_ms).await?;
        }
        let entry = Entry {
            detail: Some(format!("{}: {stage}", step.word())),
            serial: Some(made.root().serial()),
            bundle_generation: Some(made.generation()),
            ..Entry::new(Event::Rotation, outcome)
        };
        let _recorded = self.audit.record(&entry, now_ms).await?;
        Ok(())
    }

    /// Where it is, and what it waits for.
    pub async fn status(&self) -> Value {
        let seen = self.state.seen();
        let known = self.siblings.gather(&seen).await;
        let authority = seen.authority;
        let now = self.clock.now().as_secs();
        let under_way = authority.under_way().is_some();
        let own_root = self.own.subscribe().borrow().as_ref().and_then(|own| own.anchor_sha256().map(|sha| hex(sha)));
        json!({
            "time": time(now),
            "trust_domain": authority.trust_domain().as_str(),
            "bundle_generation": authority.generation(),
            "signing_root": root(&authority),
            "own_svid_root_sha256": own_root,
            "holders": known.holders.len(),
            "replicas": told_replicas(&known.replicas),
            "under_way": under_way,
            "rotation": authority.rotation().map(told),
            "gate": gate_of(&authority, &known).map(|gate| told_gate(&gate)),
        })
    }
}

/// The gate before the next step of the rotation under way.
fn gate_of(authority: &Authority, known: &Known) -> Option<Gate> {
    gate(View {
        rotation: authority.under_way()?,
        second_root: authority.second_root()?.certificate_sha256(),
        holders: &known.holders,
        complete_since: known.complete_since,
        in_force_since: known.in_force_since,
        unknown: &known.waits,
        now: known.at,
    })
}

/// Who was asked, for people.
fn told_replicas(replicas: &[Told]) -> Value {
    let told = |told: &Told| {
        json!({
            "id": told.replica.id, "address": told.replica.address, "since": time(told.replica.since),
            "told": told.silent.is_none(), "why": told.silent,
        })
    };
    replicas.iter().map(told).collect()
}

fn root(authority: &Authority) -> Value {
    let root = authority.root();
    json!({
        "serial": root.serial(), "sha256": hex(&root.certificate_sha256()), "not_after": time(root.not_after().as_secs()),
    })
}

/// A rotation for people.
fn told(rotation: &Rotation) -> Value {
    let passed = |passed: &Passed| {
        json!({
            "stage": passed.stage.word(), "at": time(passed.at), "bundle_generation": passed.generation, "forced": passed.forced,
        })
    };
    json!({
        "id": rotation.id,
        "stage": rotation.stage().word(),
        "old_root": { "serial": rotation.old.serial, "sha256": rotation.old.sha256, "not_after": time(rotation.old.not_after) },
        "new_root": { "serial": rotation.new.serial, "sha256": rotation.new.sha256, "not_after": time(rotation.new.not_after) },
        "longest_leaf_s": rotation.leaf_life,
        "stages": rotation.passed.iter().map(passed).collect::<Vec<_>>(),
    })
}

/// A gate for people.
pub(crate) fn told_gate(gate: &Gate) -> Value {
    let missing = |missing: &Missing| {
        json!({
            "namespace": missing.namespace, "pod": missing.pod, "uid": missing.uid, "id": missing.id, "serial": missing.serial,
            "until": time(missing.until), "why": missing.why,
        })
    };
    json!({
        "step": gate.step, "open": gate.open, "holders": gate.holders, "ready": gate.ready,
        "missing": gate.missing.iter().map(missing).collect::<Vec<_>>(),
        "waits": gate.waits, "opens_at": time(gate.opens_at),
    })
}

fn time(seconds: u64) -> String {
    rfc3339(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests;

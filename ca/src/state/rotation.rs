//! How one root takes another's place: the stages, and what each makes of an [`Authority`]. Stored with the state, so that who is killed
//! at any stage, or another replica, goes on from there. Called by `rotation`, which decides when a step may be taken; here is only what it
//! does. Pure but for new keys; every step is one new `Authority`, stored whole or not at all.
//!
//! While a rotation is under way both roots are in the bundle; which of them signs is what the stages change.

use std::sync::Arc;

use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, AuthorityError, Lifetimes, Pair, hex, make_issuer, make_root, random_serial};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The new root is in the bundle, and signs nothing.
    Prepared,
    /// The same, and whoever holds a living leaf was seen to hold that bundle, or has had a leaf's life for it.
    Distributed,
    /// The new root's issuer signs; the old root is still in the bundle.
    Active,
    /// Given up while active: the old root's issuer signs again; the new root is still in the bundle.
    Returning,
    /// Over: the old root has left the bundle.
    Retired,
    /// Over: the new root has left the bundle.
    Aborted,
}

impl Stage {
    /// True while two roots are in the bundle.
    pub fn under_way(self) -> bool {
        !matches!(self, Self::Retired | Self::Aborted)
    }

    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Distributed => "distributed",
            Self::Active => "active",
            Self::Returning => "returning",
            Self::Retired => "retired",
            Self::Aborted => "aborted",
        }
    }
}

/// A root as it is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootName {
    /// Serial number, hex.
    pub serial: String,
    /// SHA-256 of the certificate, hex.
    pub sha256: String,
    /// End of its life, seconds since 1970.
    pub not_after: u64,
}

impl RootName {
    fn of(pair: &Pair) -> Self {
        Self {
            serial: pair.serial().to_owned(),
            sha256: hex(&pair.certificate_sha256()),
            not_after: pair.not_after().as_secs(),
        }
    }
}

/// A stage that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    /// Which.
    pub stage: Stage,
    /// When, seconds since 1970.
    pub at: u64,
    /// Generation of the bundle from then on.
    pub generation: u64,
    /// True if its gate was shut, and it was passed all the same.
    pub forced: bool,
}

/// One rotation, under way or the last that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// A random name.
    pub id: String,
    /// The root that was there.
    pub old: RootName,
    /// The root that takes its place.
    pub new: RootName,
    /// Longest life that a leaf of before may have had, in seconds.
    pub leaf_life: u64,
    /// All stages reached, in order; never empty, at most six.
    pub passed: Vec<Passed>,
}

impl Rotation {
    /// The stage reached last.
    pub fn stage(&self) -> Stage {
        self.passed.last().map_or(Stage::Aborted, |last| last.stage)
    }

    /// When a stage was reached last, seconds since 1970.
    pub fn reached(&self, stage: Stage) -> Option<u64> {
        self.passed.iter().rev().find(|passed| passed.stage == stage).map(|passed| passed.at)
    }

    /// When the stage reached last was, seconds since 1970.
    pub fn since(&self) -> u64 {
        self.passed.last().map_or(0, |last| last.at)
    }

    /// Generation of the bundle with both roots.
    pub fn generation(&self) -> u64 {
        self.passed.first().map_or(0, |first| first.generation)
    }

    fn and(&self, stage: Stage, at: UnixTime, generation: u64, forced: bool) -> Self {
        let mut next = self.clone();
        next.passed.push(Passed { stage, at: at.as_secs(), generation, forced });
        next
    }
}

/// Why a step is none from here.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The stage does not lead there.
    #[error("{step}: {why}")]
    Stage {
        /// What was asked for.
        step: &'static str,
        /// What is there instead.
        why: String,
    },
    /// Key or certificate cannot be made.
    #[error(transparent)]
    Make(#[from] AuthorityError),
}

impl Authority {
    /// The rotation under way, or the last one.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// The rotation, while it is under way.
    pub fn under_way(&self) -> Option<&Rotation> {
        self.rotation.as_ref().filter(|rotation| rotation.stage().under_way())
    }

    /// A new root beside the one in force, which signs on. The bundle's generation grows.
    pub fn prepared(&self, lifetimes: Lifetimes, leaf_life: u64, now: UnixTime) -> Result<Self, StepError> {
        if let Some(rotation) = self.under_way() {
            return Err(no_step("prepare", format!("a rotation is {} already", rotation.stage().word())));
        }
        let new = Arc::new(make_root(&self.trust_domain, lifetimes.root, now)?);
        let generation = self.generation() + 1;
        let first = Passed { stage: Stage::Prepared, at: now.as_secs(), generation, forced: false };
        let id = random_serial().map_err(|reason| AuthorityError::Make { what: "name", reason: reason.to_owned() })?;
        let rotation = Rotation {
            id: hex(&id.to_bytes()[..8]),
            old: RootName::of(&self.root),
            new: RootName::of(&new),
            leaf_life,
            passed: vec![first],
        };
        Ok(self.with(Arc::clone(&self.root), Arc::clone(&self.issuer), Some(new), generation, rotation, now)?)
    }

    /// Prepared, and known to be held by all.
    pub fn distributed(&self, now: UnixTime) -> Result<Self, StepError> {
        let rotation = self.at("distribute", &[Stage::Prepared])?;
        let rotation = rotation.and(Stage::Distributed, now, self.generation(), false);
        let (root, issuer, second) = (Arc::clone(&self.root), Arc::clone(&self.issuer), self.second.clone());
        Ok(self.with(root, issuer, second, self.generation(), rotation, now)?)
    }

    /// A new issuer under the new root signs from now on. The bundle stays as it is. Where it is not forced, all hold the new root,
    /// noted as [`Authority::distributed`] or not yet.
    pub fn activated(&self, lifetimes: Lifetimes, forced: bool, now: UnixTime) -> Result<Self, StepError> {
        let rotation = self.at("activate", &[Stage::Prepared, Stage::Distributed])?;
        let rotation = match rotation.stage() {
            Stage::Prepared if !forced => &rotation.and(Stage::Distributed, now, self.generation(), false),
            _ => rotation,
        };
        self.turned(rotation.and(Stage::Active, now, self.generation(), forced), lifetimes, now)
    }

    /// The root that no longer signs leaves the bundle. The bundle's generation grows.
    pub fn retired(&self, forced: bool, now: UnixTime) -> Result<Self, StepError> {
        let rotation = self.at("retire", &[Stage::Active, Stage::Returning])?;
        let end = if rotation.stage() == Stage::Active { Stage::Retired } else { Stage::Aborted };
        self.ended(rotation.and(end, now, self.generation() + 1, forced), now)
    }

    /// Back to the old root. Before the new one has signed, it leaves at once; after, its leaves must go first, as before
    /// [`Authority::retired`].
    pub fn aborted(&self, lifetimes: Lifetimes, now: UnixTime) -> Result<Self, StepError> {
        let rotation = self.at("abort", &[Stage::Prepared, Stage::Distributed, Stage::Active])?;
        match rotation.stage() {
            Stage::Active => self.turned(rotation.and(Stage::Returning, now, self.generation(), false), lifetimes, now),
            _ => self.ended(rotation.and(Stage::Aborted, now, self.generation() + 1, false), now),
        }
    }

    /// The two roots change places.
    fn turned(&self, rotation: Rotation, lifetimes: Lifetimes, now: UnixTime) -> Result<Self, StepError> {
        let root = self.second.clone().ok_or(AuthorityError::Malformed("rotation"))?;
        let issuer = Arc::new(make_issuer(&self.trust_domain, &root, lifetimes.issuer, now)?);
        Ok(self.with(root, issuer, Some(Arc::clone(&self.root)), self.generation(), rotation, now)?)
    }

    fn ended(&self, rotation: Rotation, now: UnixTime) -> Result<Self, StepError> {
        let (root, issuer) = (Arc::clone(&self.root), Arc::clone(&self.issuer));
        Ok(self.with(root, issuer, None, self.generation() + 1, rotation, now)?)
    }

    /// The rotation, if it is at one of these stages.
    fn at(&self, step: &'static str, stages: &[Stage]) -> Result<&Rotation, StepError> {
        let stage = self.rotation.as_ref().map(Rotation::stage);
        match &self.rotation {
            Some(rotation) if stages.contains(&rotation.stage()) => Ok(rotation),
            _ => Err(no_step(
                step,
                match stage {
                    Some(stage) if stage.under_way() => format!("the rotation is {}", stage.word()),
                    Some(stage) => format!("no rotation is under way; the last one is {}", stage.word()),
                    None => "no rotation is under way".to_owned(),
                },
            )),
        }
    }
}

fn no_step(step: &'static str, why: String) -> StepError {
    StepError::Stage { step, why }
}

#[cfg(test)]
mod tests;

//! What a caller gets: identity from who it is, life from our limits. Called by `issue`; pure. Nothing here has ever seen the
//! CSR, so nothing in it can be granted.

use std::time::Duration;

use countersign_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use rustls_pki_types::UnixTime;

use crate::attest::Caller;
use crate::clock::{rfc3339, seconds};

/// Why nothing is granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// Less than the hard floor was asked for.
    #[error("a life of {asked} s was asked for; the least is {} s", FLOOR.as_secs())]
    TooShort {
        /// Seconds asked for.
        asked: u32,
    },
    /// The clocks differ by more than back-dating may bridge.
    #[error(
        "the clocks differ too much: the caller's says {theirs}, the CA's says {ours}; at most {} s are bridged for a life \
         of {} s. Set the caller's clock",
        bound.as_secs(), life.as_secs()
    )]
    Skew {
        /// The caller's clock.
        theirs: String,
        /// Ours.
        ours: String,
        /// The most that is accepted.
        bound: Duration,
        /// The life that the bound is for.
        life: Duration,
    },
    /// Namespace and account do not make a SPIFFE id.
    #[error("no SPIFFE id can be made of the caller's account: {0}")]
    Identity(#[from] SpiffeIdError),
    /// The CA's own identity, which it gives to itself alone.
    #[error("{0} is the CA's own identity and is never issued on request")]
    Reserved(SpiffeId),
    /// Our issuer is about to end: our fault.
    #[error("the CA's issuer ends in {left} s; it should have been renewed")]
    IssuerEnding {
        /// Seconds that it has left.
        left: u64,
    },
}

impl GrantError {
    /// A bounded word for metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "ttl_too_short",
            Self::Skew { .. } => "clock_skew",
            Self::Identity(_) => "identity",
            Self::Reserved(_) => "identity_reserved",
            Self::IssuerEnding { .. } => "issuer_ending",
        }
    }
}

/// No leaf lives shorter: renewal at half life must have the time for a retry.
pub const FLOOR: Duration = Duration::from_secs(10);
/// A shorter life is granted, with a warning: a CA away for minutes would then stop the mesh.
pub const SHORT: Duration = Duration::from_secs(600);
/// Clocks that differ by more are refused, whatever the life.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// Differences up to this pass even where a tenth of the life is less: what is measured includes the request's way to us.
const MIN_BOUND: Duration = Duration::from_secs(2);
/// Back-dating for clocks that we never measured: those of whom the caller will talk to.
const BASE: Duration = Duration::from_secs(60);

/// Lives of leaves. From the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What is granted when nothing is asked for.
    pub default: Duration,
    /// The most that is granted.
    pub max: Duration,
}

/// What the caller may ask for: no identity among it.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Seconds; 0 = the default.
    pub ttl_seconds: u32,
    /// The caller's clock, Unix milliseconds.
    pub client_time_ms: i64,
}

/// Who grants: the trust domain, how long its issuer lives, and the CA's own id.
#[derive(Clone, Copy, Debug)]
pub struct Granter<'a> {
    /// Domain of every identity granted.
    pub trust_domain: &'a TrustDomain,
    /// No leaf ends later.
    pub issuer_end: UnixTime,
    /// Never granted.
    pub own_id: &'a SpiffeId,
    /// Lives of leaves.
    pub terms: Terms,
}

/// An identity for a time. Made by this module alone.
#[derive(Clone, Debug)]
pub struct Grant {
    id: SpiffeId,
    not_before: UnixTime,
    not_after: UnixTime,
    skew_ms: i64,
}

impl Grant {
    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Begin of the life.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// End of the life.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The caller's clock minus ours, in milliseconds; negative = it is behind (or the request was long under way).
    pub fn skew_ms(&self) -> i64 {
        self.skew_ms
    }
}

/// What `caller` gets at `now_ms` (Unix milliseconds).
pub fn decide(caller: &Caller, wish: Wish, granter: Granter<'_>, now_ms: u64) -> Result<Grant, GrantError> {
    let id = SpiffeId::for_service_account(granter.trust_domain, caller.namespace(), caller.service_account())?;
    if id == *granter.own_id {
        return Err(GrantError::Reserved(id));
    }
    let life = life(wish.ttl_seconds, granter, now_ms / 1000)?;
    let skew_ms = wish.client_time_ms.saturating_sub(i64::try_from(now_ms).unwrap_or(i64::MAX));
    check_skew(skew_ms, wish.client_time_ms, life, now_ms)?;
    let behind = Duration::from_millis(u64::try_from(skew_ms.saturating_neg()).unwrap_or(0));
    // Whole seconds, and the certificate must already be valid in the second that the caller's clock shows.
    let backdate = Duration::from_secs(behind.as_secs() + 1).max(BASE);
    Ok(dated(id, life, backdate, skew_ms, now_ms))
}

/// What the CA gives to itself: the default life, back-dated as far as any caller's clock may be behind, so that it can be
/// told so over TLS.
pub fn for_self(granter: Granter<'_>, now_ms: u64) -> Result<Grant, GrantError> {
    let life = life(0, granter, now_ms / 1000)?;
    Ok(dated(granter.own_id.clone(), life, MAX_SKEW, 0, now_ms))
}

fn life(ttl_seconds: u32, granter: Granter<'_>, now: u64) -> Result<Duration, GrantError> {
    let asked = Duration::from_secs(u64::from(ttl_seconds));
    if !asked.is_zero() && asked < FLOOR {
        return Err(GrantError::TooShort { asked: ttl_seconds });
    }
    let wanted = if asked.is_zero() { granter.terms.default } else { asked };
    let left = granter.issuer_end.as_secs().saturating_sub(now);
    let life = wanted.min(granter.terms.max).min(Duration::from_secs(left));
    if life < FLOOR { Err(GrantError::IssuerEnding { left }) } else { Ok(life) }
}

fn check_skew(skew_ms: i64, client_time_ms: i64, life: Duration, now_ms: u64) -> Result<(), GrantError> {
    let bound = MAX_SKEW.min((life / 10).max(MIN_BOUND));
    if u128::from(skew_ms.unsigned_abs()) <= bound.as_millis() {
        return Ok(());
    }
    let theirs = match u64::try_from(client_time_ms) {
        Ok(0) => "nothing (client_time_ms is not set)".to_owned(),
        Ok(ms) => rfc3339(ms),
        Err(_) => "a time before 1970".to_owned(),
    };
    Err(GrantError::Skew { theirs, ours: rfc3339(now_ms), bound, life })
}

fn dated(id: SpiffeId, life: Duration, backdate: Duration, skew_ms: i64, now_ms: u64) -> Grant {
    let now = now_ms / 1000;
    let backdate = backdate.min(life / 10).as_secs();
    let not_before = seconds(now.saturating_sub(backdate));
    Grant { id, not_before, not_after: seconds(now.saturating_add(life.as_secs())), skew_ms }
}

#[cfg(test)]
mod tests;

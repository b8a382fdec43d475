//! The journey of a CSR, top to bottom: shed or taken -> who asks -> how often -> the key and proof that the caller holds it
//! -> what is granted -> signed and verified by ourselves -> recorded -> answered. Called by `server` for each IssueSvid.
//!
//! Each step takes what the one before it proved ([`Caller`], `ProvenKey`, `Grant`, `Signed`, `Recorded`); none can be left
//! out. Nothing of the CSR but its key has a way into the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_api::ca::{IssueSvidRequest, IssueSvidResponse, TrustBundle};
use countersign_credentials::SharedClock;
use countersign_identity::SpiffeId;
use rustls_pki_types::UnixTime;
use tokio::sync::Semaphore;

use crate::attest::{AttestError, Attestor, Caller};
use crate::audit::{Audit, AuditError, Entry, Event, GRANTED, Recorded, Who};
use crate::clock::{millis, seconds};
use crate::csr::{self, CsrError, ProvenKey};
use crate::grant::{self, Grant, GrantError, Granter, SHORT, Terms, Wish};
use crate::holders::{Holders, Leaf};
use crate::limits::{Buckets, Rate};
use crate::metrics::Metrics;
use crate::rotation::GRACE;
use crate::sign::{self, SignError, Signed};
use crate::state::{Authority, State, StateError, hex};

/// Why a caller gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// All slots are taken. Not the caller's fault.
    #[error("the CA is busy; try again")]
    Busy,
    /// Too many calls from one address or one pod.
    #[error("too many calls from this {whose}; try again in {} ms", wait.as_millis())]
    Rate {
        /// `address` or `pod`.
        whose: &'static str,
        /// When the next call will pass.
        wait: Duration,
    },
    /// The token attests nobody.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The CSR is no good.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Nothing can be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A root is being replaced, and the caller does not follow.
    #[error(
        "the caller holds bundle generation {held}, and {needed} is in force: a root is being replaced, and no leaf is renewed \
         for who does not follow; WatchBundle has the bundle"
    )]
    Behind {
        /// What it says that it holds.
        held: u64,
        /// What is in force.
        needed: u64,
    },
    /// The life that was granted is longer than any before, and that could not be stored.
    #[error("a leaf's life could not be noted in the state: {0}")]
    State(#[from] StateError),
    /// Our signer failed, or its product did.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No record, no certificate.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl Refusal {
    /// A bounded word for metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Rate { .. } => "rate",
            Self::Attest(error) => error.label(),
            Self::Csr(error) => error.label(),
            Self::Grant(error) => error.label(),
            Self::Behind { .. } => "bundle_behind",
            Self::State(_) => "state_unavailable",
            Self::Sign(error) => error.label(),
            Self::Audit(error) => error.label(),
        }
    }

    /// Shed before any work was done for it: counted, but neither recorded nor logged.
    fn is_shed(&self) -> bool {
        matches!(self, Self::Busy | Self::Rate { .. })
    }
}

/// How much one may ask for.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Calls under way at once, over all connections; more are shed.
    pub concurrent: usize,
    /// Calls of one source address, before anything is known of the caller.
    pub per_source: Rate,
    /// Calls of one attested pod.
    pub per_caller: Rate,
}

/// Records of refusals to one address whose callers could not be attested. More are only counted: the log must not be a
/// means for strangers to fill the disk, and so to stop all signing. (Refusals to a known pod are bounded by its own rate.)
const STRANGER_RECORDS: Rate = Rate { per_second: 1.0, burst: 20 };
/// Keys in each table of buckets.
const MAX_KEYS: usize = 65_536;

/// What the journey works with.
pub struct Parts {
    /// Who asks.
    pub attestor: Attestor,
    /// What signs.
    pub state: Arc<State>,
    /// Where every decision is recorded.
    pub audit: Audit,
    /// Wall time.
    pub clock: SharedClock,
    /// The CA's own identity, which nobody else gets.
    pub own_id: SpiffeId,
    /// Lives of leaves.
    pub terms: Terms,
    /// Who holds what.
    pub holders: Arc<Holders>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The journey; one for the process.
pub struct Issuance {
    parts: Parts,
    slots: Semaphore,
    sources: Buckets<IpAddr>,
    callers: Buckets<String>,
    strangers: Buckets<IpAddr>,
}

/// One call, and what is known of it so far.
struct Call {
    source: IpAddr,
    arrived_ms: u64,
    bundle_generation: u64,
    caller: Option<Caller>,
    key: Option<ProvenKey>,
}

impl Issuance {
    /// Nobody has asked yet.
    pub fn new(parts: Parts, limits: CallLimits) -> Self {
        let now = Instant::now();
        Self {
            parts,
            slots: Semaphore::new(limits.concurrent),
            sources: Buckets::new(limits.per_source, MAX_KEYS, now),
            callers: Buckets::new(limits.per_caller, MAX_KEYS, now),
            strangers: Buckets::new(STRANGER_RECORDS, MAX_KEYS, now),
        }
    }

    /// The one place where an outcome is recorded, counted and logged.
    pub async fn issue(&self, request: IssueSvidRequest, source: IpAddr) -> Result<IssueSvidResponse, Refusal> {
        let began = Instant::now();
        let mut call = Call {
            source,
            arrived_ms: millis(&*self.parts.clock),
            bundle_generation: request.bundle_generation,
            caller: None,
            key: None,
        };
        let answer = match self.slots.try_acquire() {
            Err(_) => Err(Refusal::Busy),
            Ok(_slot) => {
                let answer = self.journey(&request, &mut call).await;
                if let Err(refusal) = &answer {
                    self.record_refused(&call, refusal).await;
                }
                answer
            }
        };
        let outcome = answer.as_ref().map_or_else(Refusal::label, |_| GRANTED);
        self.parts.metrics.issued(outcome, began.elapsed());
        answer
    }

    /// The steps. What is learned on the way is left in `call`, for the record of a refusal.
    async fn journey(&self, request: &IssueSvidRequest, call: &mut Call) -> Result<IssueSvidResponse, Refusal> {
        let now = seconds(call.arrived_ms / 1000);
        self.sources.take(call.source, Instant::now()).map_err(|wait| Refusal::Rate { whose: "address", wait })?;
        let caller = call.caller.insert(self.parts.attestor.attest(&request.token, now).await?);
        let uid = caller.pod_uid().to_owned();
        self.callers.take(uid, Instant::now()).map_err(|wait| Refusal::Rate { whose: "pod", wait })?;
        let key = call.key.insert(csr::verify(&request.csr)?);
        follows(&self.parts.state.authority(), request.bundle_generation, now)?;
        let authority = self.parts.state.authority();
        let wish = Wish { ttl_seconds: request.ttl_seconds, client_time_ms: request.client_time_ms };
        let grant = grant::decide(caller, wish, self.granter(&authority), call.arrived_ms)?;
        let life = lifetime(&grant, now).as_secs();
        let authority = self.noting_life(authority, life, now).await?;
        let signed = sign::leaf(&authority, &grant, key.public(), now)?;
        let recorded = self.record_granted(call, &grant, &signed).await?;
        self.tell_holder(call, &grant, &signed, &authority);
        Ok(answer(call, &signed, &authority, recorded))
    }

    /// The state knows how long leaves may live: the gates of a rotation wait for as long. A longer life is stored first.
    async fn noting_life(&self, held: Arc<Authority>, life: u64, now: UnixTime) -> Result<Arc<Authority>, Refusal> {
        if held.longest_leaf().is_none_or(|longest| life <= longest) {
            return Ok(held);
        }
        let state = &self.parts.state;
        loop {
            let draft = state.draft(|current| current.with_longest_leaf(life, now)).map_err(StateError::from)?;
            state.commit(draft, now).await?;
            let held = state.authority();
            if held.longest_leaf().is_none_or(|longest| life <= longest) {
                return Ok(held);
            }
        }
    }

    /// Who has which leaf from now on.
    fn tell_holder(&self, call: &Call, grant: &Grant, signed: &Signed, authority: &Authority) {
        let (Some(caller), Some(key)) = (&call.caller, &call.key) else { return };
        let leaf = Leaf {
            key: *key.sha256(),
            serial: signed.serial().to_owned(),
            root: authority.root().certificate_sha256(),
            signed_at: call.arrived_ms / 1000,
            not_after: grant.not_after().as_secs(),
            asked_with: call.bundle_generation,
            report: None,
        };
        let (namespace, pod, uid) = (caller.namespace(), caller.pod_name(), caller.pod_uid());
        self.parts.holders.signed(namespace, pod, uid, grant.id().as_str(), leaf, call.arrived_ms / 1000);
    }

    fn granter<'a>(&'a self, authority: &'a Authority) -> Granter<'a> {
        Granter {
            trust_domain: authority.trust_domain(),
            issuer_end: authority.issuer().not_after(),
            own_id: &self.parts.own_id,
            terms: self.parts.terms,
        }
    }

    async fn record_granted(&self, call: &Call, grant: &Grant, signed: &Signed) -> Result<Recorded, AuditError> {
        let entry = Entry {
            spiffe_id: Some(grant.id().as_str()),
            serial: Some(signed.serial()),
            not_before: Some(grant.not_before().as_secs()),
            not_after: Some(grant.not_after().as_secs()),
            skew_ms: Some(grant.skew_ms()),
            ..call.entry(GRANTED)
        };
        let recorded = self.parts.audit.record(&entry, call.arrived_ms).await?;
        let life = lifetime(grant, seconds(call.arrived_ms / 1000));
        let (id, serial) = (grant.id(), signed.serial());
        if life < SHORT {
            tracing::warn!(%id, serial, life_s = life.as_secs(), "SVID issued with a short life: renewals must not fail for long");
        } else {
            tracing::info!(%id, serial, life_s = life.as_secs(), "SVID issued");
        }
        Ok(recorded)
    }

    /// A refusal stands even when it cannot be recorded; the audit log itself has then said so.
    async fn record_refused(&self, call: &Call, refusal: &Refusal) {
        if refusal.is_shed() {
            return;
        }
        if call.caller.is_none() && self.strangers.take(call.source, Instant::now()).is_err() {
            self.parts.metrics.unrecorded();
            return;
        }
        let detail = Some(refusal.to_string());
        let _ = self.parts.audit.record(&Entry { detail, ..call.entry(refusal.label()) }, call.arrived_ms).await;
        tracing::warn!(
            reason = refusal.label(), source = %call.source, pod = call.caller.as_ref().map(Caller::pod_name),
            %refusal, "SVID refused"
        );
    }
}

impl Call {
    fn entry(&self, outcome: &'static str) -> Entry<'_> {
        Entry {
            source: Some(self.source.to_string()),
            caller: self.caller.as_ref().map(who),
            key_sha256: self.key.as_ref().map(|key| hex(key.sha256())),
            bundle_generation: Some(self.bundle_generation),
            ..Entry::new(Event::Leaf, outcome)
        }
    }
}

fn who(caller: &Caller) -> Who<'_> {
    Who {
        namespace: caller.namespace(),
        service_account: caller.service_account(),
        pod: caller.pod_name(),
        pod_uid: caller.pod_uid(),
        token_id: caller.token_id(),
    }
}

/// While a root is being replaced no leaf is renewed for who does not follow, so that one life of a leaf later nobody is left who does
/// not. Who holds nothing yet (0) gets bundle and leaf in one answer. What is under way to the callers is waited for.
fn follows(authority: &Authority, held: u64, now: UnixTime) -> Result<(), Refusal> {
    let needed = authority.generation();
    match authority.under_way() {
        Some(rotation)
            if held != 0
                && held < needed
                && now.as_secs() >= rotation.passed.first().map_or(0, |first| first.at).saturating_add(GRACE) =>
        {
            Err(Refusal::Behind { held, needed })
        }
        _ => Ok(()),
    }
}

/// Nothing leaves without its record.
fn answer(call: &Call, signed: &Signed, authority: &Authority, _recorded: Recorded) -> IssueSvidResponse {
    IssueSvidResponse {
        chain: signed.chain().iter().map(|certificate| certificate.to_vec()).collect(),
        ca_time_ms: i64::try_from(call.arrived_ms).unwrap_or(i64::MAX),
        bundle: Some(bundle(authority)),
    }
}

/// The bundle in force, as it is sent.
pub fn bundle(authority: &Authority) -> TrustBundle {
    TrustBundle {
        trust_domain: authority.trust_domain().as_str().to_owned(),
        generation: authority.generation(),
        roots: authority.bundle().roots().iter().map(|root| root.to_vec()).collect(),
        signing_root_sha256: authority.root().certificate_sha256().to_vec(),
    }
}

fn lifetime(grant: &Grant, now: UnixTime) -> Duration {
    Duration::from_secs(grant.not_after().as_secs().saturating_sub(now.as_secs()))
}

#[cfg(test)]
mod tests;

//! Interception proves itself: whether the redirect rules are in force, in both directions, at start and ever after.
//!
//! `outbound`: the proxy dials a destination of its own pod that the first rule of the outbound chain redirects even for the
//! proxy, and must find itself there. `inbound`: nothing listens on 15021, so whoever is answered there (the kubelet) came through
//! the inbound redirect. `run` starts it, both journeys report to it, `ready`, `metrics` and `/status` read it.
//!
//! It finds rules that are lost, or were never there. It is no guard against whoever holds NET_ADMIN in the pod, and it must never
//! call a redirect proven because a question could not be asked.

pub mod inbound;
pub mod outbound;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_credentials::Places;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::outcome::Direction;

/// Connections that are answered on 15021 at once; a quarter of them for one source.
const MOST_ASKING: usize = 16;

/// How a redirect stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was never seen at work.
    Unproven,
    /// It was at work a moment ago.
    Proven,
    /// It was at work once, and is no longer.
    Lost,
}

impl Standing {
    /// The word in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Proven => "proven",
            Self::Lost => "lost",
        }
    }
}

/// What is known of both redirects; clones share it.
#[derive(Clone, Debug)]
pub struct Proof(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    outbound: watch::Sender<Standing>,
    /// Why the last attempt failed; none after one that did not.
    problem: Mutex<Option<String>>,
    /// Unix seconds of the last outbound proof; 0: none.
    last_outbound: AtomicU64,
    awaited: Mutex<Vec<outbound::Awaited>>,
    witness: Mutex<inbound::Witness>,
    asking: Arc<Places>,
    began: Instant,
    /// Milliseconds since `began`, plus one, at which the inbound redirect was last seen at work; 0: never.
    seen: AtomicU64,
    /// The same in Unix seconds.
    last_inbound: AtomicU64,
}

/// What `/status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct ProofView {
    outbound: OneView,
    inbound: OneView,
}

#[derive(Clone, Debug, Serialize)]
struct OneView {
    /// `unproven`, `proven` or `lost`.
    state: &'static str,
    /// Unix seconds at which it was last seen at work.
    last_proof: Option<u64>,
    /// What is wrong, or cannot be told here.
    problem: Option<String>,
}

impl Proof {
    /// Nothing proven yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            metrics,
            outbound: watch::Sender::new(Standing::Unproven),
            problem: Mutex::default(),
            last_outbound: AtomicU64::new(0),
            awaited: Mutex::default(),
            witness: Mutex::default(),
            asking: Places::in_quarters(MOST_ASKING),
            began: Instant::now(),
            seen: AtomicU64::new(0),
            last_inbound: AtomicU64::new(0),
        }))
    }

    /// Follows the outbound redirect.
    #[must_use]
    pub fn outbound(&self) -> watch::Receiver<Standing> {
        self.0.outbound.subscribe()
    }

    /// All of it, for `/status`.
    #[must_use]
    pub fn view(&self) -> ProofView {
        let at = |seconds: &AtomicU64| Some(seconds.load(std::sync::atomic::Ordering::Relaxed)).filter(|at| *at > 0);
        let outbound = OneView {
            state: self.0.outbound.borrow().label(),
            last_proof: at(&self.0.last_outbound),
            problem: lock(&self.0.problem).clone(),
        };
        let (state, problem) = lock(&self.0.witness).shown();
        let state =
            if state == Standing::Unproven && at(&self.0.last_inbound).is_some() { Standing::Proven } else { state };
        let inbound =
            OneView { state: state.label(), last_proof: at(&self.0.last_inbound), problem: problem.map(str::to_owned) };
        ProofView { outbound, inbound }
    }

    /// Says so once, where it counts: log and alarm metric.
    fn turned(&self, direction: Direction, lost: bool, why: &str) {
        self.0.metrics.interception_lost(direction, lost);
        let redirect = direction.label();
        if lost {
            tracing::error!(redirect, why, "the redirect is lost: connections pass by this proxy");
        } else {
            tracing::info!(redirect, "the redirect is proven");
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

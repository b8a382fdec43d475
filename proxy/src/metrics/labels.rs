//! Label sets, and the bound on how many values a peer can make us remember.
//!
//! Called by `metrics` only. It must never let a value that a peer chose (an identity, an address) through unbounded.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;

/// The value that stands for all that no longer fit.
pub const OTHER: &str = "other";
/// The value of an identity that is not known.
pub const UNKNOWN: &str = "unknown";

/// One connection's peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Peers {
    pub direction: &'static str,
    pub source_principal: Arc<str>,
    pub destination_principal: Arc<str>,
    pub connection_security_policy: &'static str,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct End {
    pub direction: &'static str,
    pub result: &'static str,
    pub blame: &'static str,
}

/// A journey.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Way {
    pub direction: &'static str,
}

/// What came of something in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempt {
    pub direction: &'static str,
    pub result: &'static str,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Authz {
    pub direction: &'static str,
    pub decision: &'static str,
    pub policy: Arc<str>,
}

/// A TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Handshake {
    pub direction: &'static str,
    pub result: &'static str,
    pub reason: &'static str,
    pub group: &'static str,
}

/// A bounded word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

/// A bounded word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    pub result: &'static str,
}

/// An address inside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Destination {
    pub destination: Arc<str>,
}

/// A trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Domain {
    pub trust_domain: Arc<str>,
}

/// What runs here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Build {
    pub version: &'static str,
}

/// Lets at most `cap` distinct values through; all later ones become [`OTHER`].
#[derive(Debug)]
pub struct Bounded {
    cap: usize,
    seen: Mutex<HashSet<Arc<str>>>,
}

impl Bounded {
    pub fn new(cap: usize) -> Self {
        Self { cap, seen: Mutex::default() }
    }

    pub fn values(&self) -> Vec<Arc<str>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values: Vec<_> = seen.iter().cloned().collect();
        values.sort_unstable();
        values
    }

    pub fn label(&self, value: &str) -> Arc<str> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get(value) {
            return Arc::clone(known);
        }
        if seen.len() >= self.cap {
            return Arc::from(OTHER);
        }
        let value: Arc<str> = Arc::from(value);
        seen.insert(Arc::clone(&value));
        value
    }
}

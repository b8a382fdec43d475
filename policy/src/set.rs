//! The rules that bind one workload, compiled.

use crate::model::Policy;
use crate::modes::Modes;
use crate::parse::ParseError;

/// What came over the stream for one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Understood.
    Known(Policy),
    /// Of a feature this build does not know, or unreadable: an Allow never matches, a Deny always does.
    Unknown {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Whether it is a Deny.
        deny: bool,
        /// The feature it needs.
        feature: u32,
    },
}

impl Received {
    /// Sorts what the stream said: `Known` only if the feature is known, the JSON is a policy, and that policy is the one announced.
    /// The error says why a policy of a known feature became `Unknown`.
    pub fn from_wire(
        namespace: &str,
        name: &str,
        deny: bool,
        feature: u32,
        json: &str,
    ) -> (Self, Option<ParseError>) {
        let _ = json;
        (
            Self::Unknown {
                namespace: namespace.into(),
                name: name.into(),
                deny,
                feature,
            },
            None,
        )
    }
}

/// The rules that bind one workload, compiled. Immutable; share it in an `Arc`.
#[derive(Debug, Clone)]
pub struct PolicySet {
    modes: Modes,
    revision: String,
    policies: Vec<Received>,
}

impl PolicySet {
    /// Compiles what binds one workload. `trust_domain` is the mesh's own; order of `received` never matters.
    pub fn compile(
        trust_domain: &str,
        modes: Modes,
        revision: &str,
        received: Vec<Received>,
    ) -> Self {
        let _ = trust_domain;
        Self {
            modes,
            revision: revision.into(),
            policies: received,
        }
    }
    /// The revision it was compiled from.
    pub fn revision(&self) -> &str {
        &self.revision
    }
    /// The namespace's modes.
    pub fn modes(&self) -> Modes {
        self.modes
    }
    /// Number of policies.
    pub fn len(&self) -> usize {
        self.policies.len()
    }
    /// Whether there is no policy at all.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
    /// Whether an enforced Allow opens the port to some unauthenticated source.
    pub fn opens_unauthenticated(&self, port: u16) -> bool {
        let _ = port;
        false
    }
    /// Whether any rule, of either action and mode, concerns the port.
    pub fn speaks_of(&self, port: u16) -> bool {
        let _ = port;
        false
    }
    /// "namespace/name" of each policy that was received as `Unknown`.
    pub fn unknown(&self) -> impl Iterator<Item = String> + '_ {
        self.policies.iter().filter_map(|p| match p {
            Received::Unknown {
                namespace, name, ..
            } => Some(format!("{namespace}/{name}")),
            Received::Known(_) => None,
        })
    }
}

//! One AuthorizationPolicy as written: what the parser makes and what goes over the stream.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::parse::ParseError;

/// `apiVersion` of an AuthorizationPolicy.
pub const API_VERSION: &str = "policy.countersign.dev/v1alpha1";
/// `kind` of an AuthorizationPolicy.
pub const KIND: &str = "AuthorizationPolicy";
/// The newest rule feature this build understands.
pub const FEATURE_LEVEL: u32 = 1;

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Action {
    /// Admits, unless a Deny matches.
    Allow,
    /// Refuses, whatever any Allow says.
    Deny,
}

/// Whether a policy's rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Mode {
    /// They count. The default.
    Enforce,
    /// They are only reported: a Deny refuses nobody, an Allow admits nobody.
    Audit,
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    namespace: String,
    name: String,
    action: Action,
    mode: Mode,
    selector: Option<BTreeMap<String, String>>,
}

impl Policy {
    /// The namespace whose workloads it binds.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    /// Its name, unique in the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Allow or Deny.
    pub fn action(&self) -> Action {
        self.action
    }
    /// Enforce or Audit.
    pub fn mode(&self) -> Mode {
        self.mode
    }
    /// Number of the newest feature that its rules use, at least 1.
    pub fn feature_level(&self) -> u32 {
        1
    }
    /// Whether it binds a workload of this namespace with these labels.
    pub fn binds(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.namespace == namespace
            && self
                .selector
                .as_ref()
                .is_none_or(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
    /// The policy as JSON, for `from_json` at the other end of the stream.
    pub fn to_json(&self) -> String {
        String::new()
    }
    /// Reads what `to_json` wrote, as strictly as the text a person writes.
    pub fn from_json(json: &str) -> Result<Self, ParseError> {
        let _ = json;
        Err(ParseError::unbuilt())
    }
}

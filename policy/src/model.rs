//! One AuthorizationPolicy as its author wrote it: made by the parser, sent over the stream as JSON, compiled by
//! `set`. Holds only what the parser accepted. Must never be decided on directly: that is the compiled form's part.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::principal::Principal;

/// `apiVersion` of an AuthorizationPolicy.
pub const API_VERSION: &str = "policy.countersign.dev/v1alpha1";
/// `kind` of an AuthorizationPolicy.
pub const KIND: &str = "AuthorizationPolicy";
/// The newest rule feature that this build understands. A rule that needs a newer one is `Received::Unknown` here.
pub const FEATURE_LEVEL: u32 = Feature::L4 as u32;

/// What a rule may use, by number. A new condition adds a feature here and names it in `Rule::features`; a proxy that
/// does not know the number then refuses rather than ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Feature {
    /// Identities, unauthenticated sources with IP blocks, ports.
    L4 = 1,
}

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

/// One AuthorizationPolicy: who may come where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    namespace: String,
    name: String,
    spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) selector: Option<Selector>,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Selector {
    pub(crate) match_labels: BTreeMap<String, String>,
}

/// `None` is left out by the author, which is not the same as an empty list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Vec<Origin>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Vec<Destination>>,
}

/// One entry of `from`. All that it says must hold; an empty list or `None` says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) spiffe_ids: Vec<Principal>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) service_accounts: Vec<Account>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespaces: Option<Names>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trust_domains: Option<Names>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unauthenticated: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ip_blocks: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: AccountName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AccountName {
    /// `"*"`: every account of the namespace.
    Any,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Names {
    /// `["*"]`.
    Any,
    These(Vec<String>),
}

/// One entry of `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Destination {
    pub(crate) ports: Vec<u16>,
}

impl Policy {
    pub(crate) fn new(namespace: String, name: String, spec: Spec) -> Self {
        Self { namespace, name, spec }
    }

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
        self.spec.action
    }

    /// Enforce or Audit.
    pub fn mode(&self) -> Mode {
        self.spec.mode
    }

    /// Number of the newest feature that its rules use, at least 1: what a proxy must know to apply it.
    pub fn feature_level(&self) -> u32 {
        let newest = self.spec.rules.iter().map(Rule::newest_feature).max();
        newest.unwrap_or(Feature::L4) as u32
    }

    /// Whether it binds a workload of this namespace with these labels.
    pub fn binds(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let selected = |s: &Selector| {
            let mut wanted = s.match_labels.iter();
            wanted.all(|(key, value)| labels.get(key) == Some(value))
        };
        self.namespace == namespace && self.spec.selector.as_ref().is_none_or(selected)
    }

    /// The policy as JSON, for `from_json` at the other end of the stream. Equal policies give equal text.
    pub fn to_json(&self) -> String {
        let document = Written {
            api_version: API_VERSION,
            kind: KIND,
            metadata: Metadata { name: &self.name, namespace: &self.namespace },
            spec: &self.spec,
        };
        // Fails only for maps without text keys, of which there are none; an empty text would be refused by the reader.
        serde_json::to_string(&document).unwrap_or_default()
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }
}

impl Rule {
    fn newest_feature(&self) -> Feature {
        let Self { from, to } = self;
        let origins = from.iter().flatten().map(Origin::feature);
        let destinations = to.iter().flatten().map(Destination::feature);
        origins.chain(destinations).max().unwrap_or(Feature::L4)
    }

    /// Ports of all `to` entries, sorted; `None` = any port.
    pub(crate) fn ports(&self) -> Option<Vec<u16>> {
        let to = self.to.as_ref()?;
        let mut ports: Vec<u16> = to.iter().flat_map(|to| &to.ports).copied().collect();
        ports.sort_unstable();
        ports.dedup();
        Some(ports)
    }
}

impl Origin {
    /// Names every field, so that a new one does not compile until its feature is decided here.
    fn feature(&self) -> Feature {
        let Self {
            spiffe_ids: _,
            service_accounts: _,
            namespaces: _,
            trust_domains: _,
            unauthenticated: _,
            ip_blocks: _,
        } = self;
        Feature::L4
    }

    /// Whether it asks who the source is.
    pub(crate) fn asks_identity(&self) -> bool {
        !self.spiffe_ids.is_empty()
            || !self.service_accounts.is_empty()
            || self.namespaces.is_some()
            || self.trust_domains.is_some()
    }
}

impl Destination {
    fn feature(&self) -> Feature {
        let Self { ports: _ } = self;
        Feature::L4
    }
}

/// "namespace/name".
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: &'a Spec,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => ["*"].serialize(serializer),
            Self::These(names) => names.serialize(serializer),
        }
    }
}

impl Serialize for AccountName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

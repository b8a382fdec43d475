//! May: authorization rules, from text to decision.
//!
//! Pure: no clock, no environment, no network, no other room of the workspace. The controller parses and selects policies,
//! the proxy compiles what binds its workload and decides every application connection, and `countersign policy` does
//! both with no cluster, with this same code. What is not understood is never taken for consent.
//!
//! # For authors of rules
//!
//! ```
//! # use std::collections::BTreeMap;
//! # use countersign_policy::*;
//! let text = r#"
//! apiVersion: policy.countersign.dev/v1alpha1
//! kind: AuthorizationPolicy
//! metadata:
//!   name: frontend-to-backend
//!   namespace: shop
//! spec:
//!   selector: {matchLabels: {app: backend}}   # left out: every workload of the namespace
//!   action: Allow                             # Allow or Deny
//!   mode: Enforce                             # Enforce (default) or Audit
//!   rules:                                    # any of them may match
//!   - from:                                   # any entry may match; all that one entry says must hold
//!     - serviceAccounts: [{namespace: shop, name: frontend}]
//!     - namespaces: [jobs]
//!       ipBlocks: [10.1.0.0/16]
//!     - spiffeIds: ["spiffe://partner.example/billing/worker"]
//!     to:                                     # left out: any port
//!     - ports: [8080]
//!   - from:                                   # the spelled way in for what has no sidecar
//!     - unauthenticated: true
//!       ipBlocks: [192.0.2.10/32]
//!     to:
//!     - ports: [9090]
//! "#;
//! let policies = parse("rules.yaml", text)?;
//! let labels = BTreeMap::from([("app".to_owned(), "backend".to_owned())]);
//! assert!(policies[0].binds("shop", &labels));
//!
//! let received = policies.into_iter().map(Received::Known).collect();
//! let set = PolicySet::compile("cluster.local", Modes::default(), "r1", received);
//! let frontend = Principal::parse("spiffe://cluster.local/ns/shop/sa/frontend")?;
//! let mut attempt = Attempt {
//!     source: Source::Authenticated(&frontend),
//!     source_ip: [10, 0, 0, 7].into(),
//!     port: 8080,
//! };
//! assert!(decide(&set, &attempt).allowed());
//!
//! attempt.port = 9090;
//! let refused = decide(&set, &attempt);
//! assert_eq!((refused.allowed(), refused.reason()), (false, Reason::NoRuleMatched));
//! let why = trace(&set, &attempt);
//! assert_eq!(
//!     why.nearest().unwrap().to_string(),
//!     "Allow shop/frontend-to-backend#0: to asks 8080; saw 9090",
//! );
//!
//! let bad = text.replace("[8080]", "[8080, 70000]");
//! assert_eq!(
//!     parse("rules.yaml", &bad).unwrap_err().to_string(),
//!     "rules.yaml:18:21: spec.rules[0].to[0].ports[1]: 70000 is not a port (1-65535)",
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The rules that a person writes:
//!
#![doc = include_str!("../../docs/rules.md")]
//!
//! # Between versions
//!
//! Each policy carries the number of the newest feature it uses ([`Policy::feature_level`]). A build that knows less keeps
//! it as [`Received::Unknown`]: as an Allow it never matches, as a Deny it matches everything.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// In the order in which a rule travels (rustfmt keeps the blank-free block sorted, so one by one).
mod parse;

mod model;

mod modes;

mod principal;

mod set;

mod decide;

mod trace;

pub use decide::{Attempt, Audited, Decision, Reason, RuleRef, Source, decide};
pub use model::{API_VERSION, Action, FEATURE_LEVEL, KIND, Mode, Policy};
pub use modes::{Egress, LABEL_EGRESS, LABEL_MTLS, LABEL_POSTURE, LabelProblem, Modes, Mtls, Posture};
pub use parse::{
    Document, MAX_DOCUMENTS, MAX_ENTRIES, MAX_RULES, MAX_TEXT_BYTES, ParseError, documents, parse, parse_document,
};
pub use principal::{Principal, PrincipalError};
pub use set::{Condition, PolicySet, Received};
pub use trace::{Attempted, Failed, Trace, Try, trace};

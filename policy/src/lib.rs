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
//! ## What decides
//!
//! 1. A matching Deny refuses. 2. Else a matching Allow admits. 3. Else it is refused; also where there is no policy at all.
//!
//! Order, of policies or of rules, never matters. A policy in mode `Audit` is only reported: its Deny refuses nobody, its
//! Allow admits nobody.
//!
//! ## Fields
//!
//! Every field not named here is an error, and so is a field without a value, a key given twice, an anchor, an alias and
//! a merge key. `metadata` may hold `labels` and `annotations` besides; they are not read.
//!
//! | field | may be | means |
//! | --- | --- | --- |
//! | `spec.selector.matchLabels` | label keys and values, not empty | the workload has all of them |
//! | `spec.action` | `Allow`, `Deny` | required |
//! | `spec.mode` | `Enforce`, `Audit` | left out: `Enforce` |
//! | `spec.rules` | 1 to 1024 rules | a rule matches if its `from` and its `to` do |
//! | `from` | entries; `[]` | left out: see below; `[]`: nobody |
//! | `from[].spiffeIds` | whole ids with a path | it is one of these |
//! | `from[].serviceAccounts` | `{namespace, name}`, both required | the id's path is `/ns/<namespace>/sa/<name>` |
//! | `from[].namespaces` | names | the id's path is `/ns/<one of these>/sa/...` |
//! | `from[].trustDomains` | names | the id's trust domain is one of these |
//! | `from[].ipBlocks` | CIDRs without host bits | the connection comes from one of these |
//! | `from[].unauthenticated` | `true`, beside `ipBlocks` alone | the source has no identity |
//! | `to` | entries, not empty | left out: any port |
//! | `to[].ports` | 1 to 65535, not empty | it was sent to one of these |
//!
//! Lists hold at most 4096 entries, and an empty list is an error but for `from: []`.
//!
//! **The mesh's own trust domain** is meant by `serviceAccounts` and `namespaces`, unless the entry names `trustDomains`.
//!
//! **An entry that does not ask who** (`from` left out, or `ipBlocks` alone) means any *authenticated* source in an Allow,
//! of any trust domain; in a Deny it means *every* source, with an identity or without. Leaving something out never
//! makes an Allow wider than authenticated sources, and never makes a Deny narrower.
//!
//! **`"*"` must be spelled**, and has a meaning in three places: `trustDomains: ["*"]` any authenticated source of any
//! trust domain; `namespaces: ["*"]` any service account (of the mesh's own trust domain, if none is named);
//! `serviceAccounts: [{namespace: shop, name: "*"}]` any account of that namespace. It stands alone in its list. Anywhere
//! else it is an error: a namespace beside an account's name cannot be `"*"`, because whoever may create a namespace
//! could then take the name; any port is `to` left out; any address is `0.0.0.0/0` and `::/0`.
//!
//! **IPv4 and IPv6** do not mix: an IPv4 source is only ever in IPv4 blocks, also where a dual-stack socket shows it as
//! `::ffff:a.b.c.d`.
//!
//! ## Namespace labels
//!
//! `countersign.dev/posture`: under `Audit` what rules deny is admitted and reported ([`Decision::would_deny`]); under
//! `Off` rules are not asked. Neither opens a port to plaintext under `countersign.dev/mtls: Strict`: there a source without
//! an identity needs an enforced Allow with `unauthenticated` that matches it, whatever the posture. Under `Permissive` it is
//! decided like any other source: no identity, so only `unauthenticated` matches it in an Allow, or the posture
//! lets it pass. A namespace that moves into the mesh therefore starts with `Permissive` and `Audit`.
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

//! The rules that bind one workload, compiled. Made by the proxy whenever rules arrive (and by `countersign policy`);
//! asked by `decide` and `trace`. Immutable. Must never lose a Deny or widen an Allow on the way from text.
//!
//! A rule becomes one clause for each entry of its `from`; `index` finds the few clauses that can concern an attempt;
//! `clause` is the truth about whether one matches.

mod blocks;
mod clause;
mod index;

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::decide::{Attempt, RuleRef, Source};
use crate::model::{Action, FEATURE_LEVEL, Mode, Policy};
use crate::modes::Modes;
use crate::parse::{ParseError, clip};
use crate::principal::Principal;
pub use clause::Condition;
pub(crate) use clause::{CONDITIONS, Clause};
use index::Index;

/// What the stream said about one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Understood.
    Known(Policy),
    /// Of a feature that this build does not know, or unreadable: an Allow never matches, a Deny always does, in Enforce
    /// mode whatever it says.
    Unknown {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Whether it is a Deny.
        deny: bool,
        /// The feature it needs, as announced.
        feature: u32,
    },
}

impl Received {
    /// Sorts what the stream said. `Known` only if the feature is known, the JSON is a policy, and it is the one that was
    /// announced; otherwise `Unknown`, and the error says why if the feature was not the reason.
    pub fn from_wire(namespace: &str, name: &str, deny: bool, feature: u32, json: &str) -> (Self, Option<ParseError>) {
        let unknown = Self::Unknown { namespace: namespace.into(), name: name.into(), deny, feature };
        if feature > FEATURE_LEVEL {
            return (unknown, None);
        }
        let announced = |policy: &Policy| {
            policy.namespace() == namespace && policy.name() == name && (policy.action() == Action::Deny) == deny
        };
        match Policy::from_json(json) {
            Ok(policy) if announced(&policy) => (Self::Known(policy), None),
            Ok(policy) => {
                // Envelope and text disagree: whichever of the two says Deny is believed.
                let deny = deny || policy.action() == Action::Deny;
                let message =
                    format!("announced as {}/{}, but is {policy}, or of the other action", clip(namespace), clip(name));
                let unknown = Self::Unknown { namespace: namespace.into(), name: name.into(), deny, feature };
                (unknown, Some(ParseError::about_json(message)))
            }
            Err(error) => (unknown, Some(error)),
        }
    }

    fn key(&self) -> (&str, &str) {
        match self {
            Self::Known(policy) => (policy.namespace(), policy.name()),
            Self::Unknown { namespace, name, .. } => (namespace, name),
        }
    }
}

/// The rules that bind one workload, compiled. Share it in an `Arc`.
#[derive(Debug, Clone)]
pub struct PolicySet {
    trust_domain: Box<str>,
    modes: Modes,
    revision: Box<str>,
    /// Sorted by namespace and name, so that no answer depends on the order of arrival.
    policies: Vec<Received>,
    rules: Vec<CompiledRule>,
    clauses: Vec<Clause>,
    index: Index,
}

/// One rule of one policy, or a whole policy that is not understood.
#[derive(Debug, Clone)]
pub(crate) struct CompiledRule {
    pub(crate) name: RuleRef,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    /// Place in `policies`.
    pub(crate) policy: usize,
    /// Sorted; `None` = any.
    pub(crate) ports: Option<Vec<u16>>,
    pub(crate) clauses: Range<usize>,
}

/// An attempt with what every clause needs taken apart once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) principal: Option<&'a Principal>,
    pub(crate) account: Option<(&'a str, &'a str)>,
    /// Never an IPv4-mapped IPv6 address: dual-stack listeners see those where a rule says IPv4.
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(attempt: &Attempt<'a>) -> Self {
        let principal = match attempt.source {
            Source::Authenticated(principal) => Some(principal),
            Source::Unauthenticated => None,
        };
        Self {
            principal,
            account: principal.and_then(Principal::service_account),
            ip: attempt.source_ip.to_canonical(),
            port: attempt.port,
        }
    }
}

impl PolicySet {
    /// Compiles the policies that bind one workload (whoever calls has selected them by `Policy::binds`).
    /// `trust_domain` is the mesh's own, meant by service accounts and namespaces where a rule names none.
    /// The order of `received` never matters.
    pub fn compile(trust_domain: &str, modes: Modes, revision: &str, mut received: Vec<Received>) -> Self {
        // As `Principal` keeps it.
        let trust_domain = &trust_domain.to_ascii_lowercase();
        received.sort_by(|a, b| a.key().cmp(&b.key()));
        let mut set = Self {
            trust_domain: trust_domain.as_str().into(),
            modes,
            revision: revision.into(),
            policies: Vec::new(),
            rules: Vec::new(),
            clauses: Vec::new(),
            index: Index::default(),
        };
        for (at, policy) in received.iter().enumerate() {
            set.add(at, policy, trust_domain);
        }
        set.policies = received;
        set
    }

    fn add(&mut self, at: usize, received: &Received, trust_domain: &str) {
        let (namespace, name) = received.key();
        let full: Arc<str> = format!("{namespace}/{name}").into();
        match received {
            Received::Known(policy) => {
                for (index, rule) in (0..).zip(&policy.spec().rules) {
                    let clauses = Clause::of_rule(rule, policy.action(), trust_domain);
                    self.add_rule(
                        CompiledRule {
                            name: RuleRef::new(full.clone(), Some(index)),
                            action: policy.action(),
                            mode: policy.mode(),
                            policy: at,
                            ports: rule.ports(),
                            clauses: 0..clauses.len(),
                        },
                        clauses,
                    );
                }
            }
            Received::Unknown { deny, .. } => {
                // A Deny that nobody here can read might concern anything; an Allow might concern nothing.
                let clauses = if *deny { vec![Clause::everyone()] } else { Vec::new() };
                self.add_rule(
                    CompiledRule {
                        name: RuleRef::new(full, None),
                        action: if *deny { Action::Deny } else { Action::Allow },
                        mode: Mode::Enforce,
                        policy: at,
                        ports: if *deny { None } else { Some(Vec::new()) },
                        clauses: 0..clauses.len(),
                    },
                    clauses,
                );
            }
        }
    }

    fn add_rule(&mut self, mut rule: CompiledRule, clauses: Vec<Clause>) {
        let first = self.clauses.len();
        rule.clauses = first..first + clauses.len();
        self.index.add(self.rules.len(), &rule, &clauses);
        self.clauses.extend(clauses);
        self.rules.push(rule);
    }

    /// The revision it was compiled from.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The namespace's modes.
    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// Number of policies, known and unknown.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there is no policy at all: everything is denied.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether an enforced Allow opens the port to some source without an identity. If not, Strict refuses plaintext there
    /// unseen; if so, `decide` still says whether this source is one of them.
    pub fn opens_unauthenticated(&self, port: u16) -> bool {
        self.index.opens_unauthenticated(port)
    }

    /// Whether any rule, of either action and mode, names the port or concerns every port.
    pub fn speaks_of(&self, port: u16) -> bool {
        self.index.speaks_of(port)
    }

    /// "namespace/name" of each policy that this build does not understand, for the report to the controller.
    pub fn unknown(&self) -> impl Iterator<Item = String> + '_ {
        self.policies.iter().filter_map(|received| match received {
            Received::Unknown { namespace, name, .. } => Some(format!("{namespace}/{name}")),
            Received::Known(_) => None,
        })
    }

    pub(crate) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(crate) fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    pub(crate) fn clauses_of(&self, rule: &CompiledRule) -> &[Clause] {
        self.clauses.get(rule.clauses.clone()).unwrap_or_default()
    }

    pub(crate) fn policy_of(&self, rule: &CompiledRule) -> Option<&Received> {
        self.policies.get(rule.policy)
    }

    /// Calls `found` with the place of each rule that matches; a rule may come more than once, in no order.
    pub(crate) fn matching(&self, asked: &Asked<'_>, mut found: impl FnMut(usize, &CompiledRule)) {
        self.index.candidates(asked, |candidate| {
            if let Some(rule) = self.rules.get(candidate.rule)
                && rule.ports.as_ref().is_none_or(|ports| ports.binary_search(&asked.port).is_ok())
                && let Some(clause) = self.clauses.get(rule.clauses.start + candidate.entry)
                && clause.matches(asked)
            {
                found(candidate.rule, rule);
            }
        });
    }
}

#[cfg(test)]
mod tests;

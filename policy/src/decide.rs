//! The decision: one attempt against one workload's rules. Called by the proxy for each application connection and again
//! whenever rules change, and by `countersign policy`. Must never admit what it is not sure of.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Action, Mode};
use crate::modes::{Mtls, Posture};
use crate::principal::Principal;
use crate::set::{Asked, PolicySet};

/// One application connection that asks to come in.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Who asks.
    pub source: Source<'a>,
    /// The address it comes from.
    pub source_ip: IpAddr,
    /// The port it was sent to (the original destination's).
    pub port: u16,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A peer whose SVID was verified.
    Authenticated(&'a Principal),
    /// Plaintext, or the application's own TLS: nobody we know.
    Unauthenticated,
}

/// What the rules said. What happens is `Decision::allowed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An Allow matched and no Deny.
    Allowed,
    /// A Deny matched.
    DeniedByRule,
    /// A Deny that this build does not understand binds the workload.
    DeniedByUnknownRule,
    /// There are policies, and no Allow matched.
    NoRuleMatched,
    /// No policy is known for the workload.
    NoPolicy,
    /// Plaintext under Strict, and no Allow opens the port to this source.
    PlaintextUnderStrict,
    /// The posture is Off.
    NotEvaluated,
}

impl Reason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::Allowed,
        Self::DeniedByRule,
        Self::DeniedByUnknownRule,
        Self::NoRuleMatched,
        Self::NoPolicy,
        Self::PlaintextUnderStrict,
        Self::NotEvaluated,
    ];

    /// For metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::DeniedByRule => "denied_by_rule",
            Self::DeniedByUnknownRule => "denied_by_unknown_rule",
            Self::NoRuleMatched => "no_rule_matched",
            Self::NoPolicy => "no_policy",
            Self::PlaintextUnderStrict => "plaintext_under_strict",
            Self::NotEvaluated => "not_evaluated",
        }
    }
}

/// One rule: `namespace/name#index`, the index being that in `spec.rules`; without index an unknown policy as a whole.
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleRef {
    policy: Arc<str>,
    index: Option<u32>,
}

impl RuleRef {
    pub(crate) fn new(policy: Arc<str>, index: Option<u32>) -> Self {
        Self { policy, index }
    }

    /// "namespace/name".
    pub fn policy(&self) -> &str {
        &self.policy
    }
    /// Which of `spec.rules`, from 0.
    pub fn index(&self) -> Option<u32> {
        self.index
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}#{index}", self.policy),
            None => f.write_str(&self.policy),
        }
    }
}

/// What an Audit-mode rule would have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// The first matching rule of its policy.
    pub rule: RuleRef,
    /// Deny: would have refused. Allow: would have admitted.
    pub action: Action,
}

/// The answer to an `Attempt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    allowed: bool,
    reason: Reason,
    rule: Option<RuleRef>,
    audit: Vec<Audited>,
}

impl Decision {
    /// Whether it may come in. This alone decides.
    pub fn allowed(&self) -> bool {
        self.allowed
    }
    /// What the rules said, whatever the posture made of it.
    pub fn reason(&self) -> Reason {
        self.reason
    }
    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<&RuleRef> {
        self.rule.as_ref()
    }
    /// What Audit-mode rules would have done: at most one entry a policy.
    pub fn audit(&self) -> &[Audited] {
        &self.audit
    }
    /// Admitted only because something is in audit: the posture (rules said no), or an Audit-mode Deny that matched.
    pub fn would_deny(&self) -> bool {
        self.allowed
            && (!matches!(self.reason, Reason::Allowed | Reason::NotEvaluated)
                || self.audit.iter().any(|a| a.action == Action::Deny))
    }
}

/// Decides one attempt.
///
/// A matching enforced Deny refuses; else a matching enforced Allow admits; else it is refused. Then the posture: under
/// `Audit` what rules deny is admitted and reported, under `Off` it is admitted unasked. One thing no posture opens: under
/// `Strict` a source without an identity needs an enforced Allow that matches it.
///
/// Does not allocate, but for the list of Audit-mode rules that match. Takes time for the rules that name this port (or
/// none) and something of this source, and for no others.
pub fn decide(set: &PolicySet, attempt: &Attempt<'_>) -> Decision {
    let modes = set.modes();
    let plaintext = attempt.source == Source::Unauthenticated && modes.mtls == Mtls::Strict;
    if modes.posture == Posture::Off && !plaintext {
        return Decision::unasked();
    }
    let found = Found::search(set, &Asked::new(attempt));
    let rule = |at: Option<usize>| at.and_then(|at| set.rules().get(at)).map(|rule| rule.name.clone());
    let refused_by_mode = plaintext && found.allow.is_none();
    let (reason, rule) = match (found.deny, found.allow) {
        _ if modes.posture == Posture::Off && !refused_by_mode => return Decision::unasked(),
        (Some(deny), _) => {
            let deny = rule(Some(deny));
            let known = deny.as_ref().is_some_and(|rule| rule.index().is_some());
            match known {
                true => (Reason::DeniedByRule, deny),
                false => (Reason::DeniedByUnknownRule, deny),
            }
        }
        (None, Some(allow)) => (Reason::Allowed, rule(Some(allow))),
        (None, None) if refused_by_mode => (Reason::PlaintextUnderStrict, None),
        (None, None) if set.is_empty() => (Reason::NoPolicy, None),
        (None, None) => (Reason::NoRuleMatched, None),
    };
    let admitted = reason == Reason::Allowed || modes.posture != Posture::Enforce;
    Decision { allowed: admitted && !refused_by_mode, reason, rule, audit: audited(set, found.audit) }
}

/// Places of the rules that match: the first of each enforced action, and all that are only audited.
#[derive(Default)]
struct Found {
    deny: Option<usize>,
    allow: Option<usize>,
    audit: Vec<usize>,
}

impl Found {
    fn search(set: &PolicySet, asked: &Asked<'_>) -> Self {
        let mut found = Self::default();
        let first = |at: &mut Option<usize>, new: usize| *at = Some(at.map_or(new, |old| old.min(new)));
        set.matching(asked, |at, rule| match (rule.mode, rule.action) {
            (Mode::Enforce, Action::Deny) => first(&mut found.deny, at),
            (Mode::Enforce, Action::Allow) => first(&mut found.allow, at),
            (Mode::Audit, _) => found.audit.push(at),
        });
        found
    }
}

fn audited(set: &PolicySet, mut places: Vec<usize>) -> Vec<Audited> {
    places.sort_unstable();
    let rules = places.iter().filter_map(|at| set.rules().get(*at));
    let mut audited: Vec<Audited> =
        rules.map(|rule| Audited { rule: rule.name.clone(), action: rule.action }).collect();
    audited.dedup_by(|later, first| later.rule.policy == first.rule.policy);
    audited
}

impl Decision {
    fn unasked() -> Self {
        Self { allowed: true, reason: Reason::NotEvaluated, rule: None, audit: Vec::new() }
    }
}

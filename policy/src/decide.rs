//! The decision.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::Action;
use crate::principal::Principal;
use crate::set::PolicySet;

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
pub fn decide(set: &PolicySet, attempt: &Attempt<'_>) -> Decision {
    let _ = (set, attempt);
    Decision {
        allowed: false,
        reason: Reason::NoPolicy,
        rule: None,
        audit: Vec::new(),
    }
}

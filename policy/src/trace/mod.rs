//! Why: every rule tried, what each one failed on, and which came nearest. Called when a denial is explained and by
//! `countersign policy`; not on the data path, because it looks at every rule. Must never say other than `decide`:
//! it carries decide's own answer, and each rule's line comes from the same conditions.

mod change;
mod words;

use std::cmp::Reverse;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use crate::decide::{Attempt, Decision, Reason, Source, decide};
use crate::model::{Action, Mode, Policy};
use crate::modes::Modes;
use crate::set::{Asked, CONDITIONS, Clause, CompiledRule, Condition, PolicySet, Received};

/// A decision explained. As JSON in camelCase; as text with `Display`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// What was asked.
    pub attempt: Attempted,
    /// As `Decision::allowed`.
    pub allowed: bool,
    /// As `Decision::would_deny`.
    pub would_deny: bool,
    /// As `Decision::reason`; in JSON its label.
    pub reason: Reason,
    /// As `Decision::rule`.
    pub rule: Option<String>,
    /// The namespace's modes.
    pub modes: Modes,
    /// The policy revision.
    pub revision: String,
    /// Every rule, by namespace, name and index.
    pub tried: Vec<Try>,
    /// Place in `tried` of the enforced Allow that fails on the fewest conditions (then: that meets the most, then: the
    /// first). Only where the want of an Allow is what denies.
    pub nearest: Option<usize>,
}

/// The attempt, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempted {
    /// SPIFFE id; `None` for a source without an identity.
    pub identity: Option<String>,
    /// Where it comes from.
    pub source_ip: IpAddr,
    /// The port it wants.
    pub port: u16,
}

/// One rule tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Try {
    /// `namespace/name#index`.
    pub rule: String,
    /// What it would do if it matched.
    pub action: Action,
    /// Whether it counts.
    pub mode: Mode,
    /// Whether it matches.
    pub matched: bool,
    /// The first condition that fails, in the entry of `from` that comes nearest; `None` if it matches.
    pub failed: Option<Failed>,
    /// Conditions that hold, in that entry.
    pub held: usize,
    /// Conditions asked, in that entry.
    pub asked: usize,
}

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Which one.
    pub condition: Condition,
    /// Where the rule says it, inside the rule: `from[1].namespaces`.
    pub field: String,
    /// What the rule asks, the first few of many.
    pub wanted: String,
    /// What the attempt brings.
    pub seen: String,
}

/// Explains the decision for one attempt. Takes time and memory in proportion to all rules of the set.
pub fn trace(set: &PolicySet, attempt: &Attempt<'_>) -> Trace {
    let decision = decide(set, attempt);
    let asked = Asked::new(attempt);
    let tried: Vec<Try> = set.rules().iter().map(|rule| try_rule(set, rule, &asked)).collect();
    Trace {
        attempt: Attempted {
            identity: match attempt.source {
                Source::Authenticated(principal) => Some(principal.to_string()),
                Source::Unauthenticated => None,
            },
            source_ip: asked.ip,
            port: attempt.port,
        },
        allowed: decision.allowed(),
        would_deny: decision.would_deny(),
        reason: decision.reason(),
        rule: decision.rule().map(ToString::to_string),
        modes: set.modes(),
        revision: set.revision().into(),
        nearest: nearest(&decision, &tried),
        tried,
    }
}

impl Trace {
    /// The rule that comes nearest to admitting, if that is what is missing.
    pub fn nearest(&self) -> Option<&Try> {
        self.tried.get(self.nearest?)
    }
}

fn nearest(decision: &Decision, tried: &[Try]) -> Option<usize> {
    if !matches!(decision.reason(), Reason::NoRuleMatched | Reason::PlaintextUnderStrict) {
        return None;
    }
    let allows =
        tried.iter().enumerate().filter(|(_, t)| t.action == Action::Allow && t.mode == Mode::Enforce && t.asked > 0);
    allows.min_by_key(|(at, t)| (t.asked - t.held, Reverse(t.held), *at)).map(|(at, _)| at)
}

fn try_rule(set: &PolicySet, rule: &CompiledRule, asked: &Asked<'_>) -> Try {
    let policy = match set.policy_of(rule) {
        Some(Received::Known(policy)) => Some(policy),
        _ => None,
    };
    let entries = set.clauses_of(rule).iter().enumerate();
    let best = entries
        .map(|(entry, clause)| Outcome::of(rule, Some((entry, clause)), asked))
        .min_by_key(|outcome| (outcome.failed, Reverse(outcome.held)))
        .unwrap_or_else(|| Outcome::of(rule, None, asked));
    let failed = best.first.map(|condition| Failed {
        condition,
        field: words::field(condition, best.entry),
        wanted: words::wanted(condition, best.entry, rule, policy, set),
        seen: words::seen(condition, asked),
    });
    Try {
        rule: rule.name.to_string(),
        action: rule.action,
        mode: rule.mode,
        matched: failed.is_none(),
        failed,
        held: best.held,
        asked: best.held + best.failed,
    }
}

/// How one clause of a rule fared, its rule's ports included.
struct Outcome {
    /// Which entry of `from`; `None` if the rule has none.
    entry: Option<usize>,
    first: Option<Condition>,
    held: usize,
    failed: usize,
}

impl Outcome {
    fn of(rule: &CompiledRule, clause: Option<(usize, &Clause)>, asked: &Asked<'_>) -> Self {
        let mut outcome = Self { entry: clause.map(|(entry, _)| entry), first: None, held: 0, failed: 0 };
        // Only a policy as a whole has no index, and only an Allow of those has no clause.
        if rule.name.index().is_none() {
            if clause.is_none() {
                outcome.note(Condition::Feature, false);
            }
            return outcome;
        }
        if let Some(ports) = &rule.ports {
            outcome.note(Condition::Ports, ports.binary_search(&asked.port).is_ok());
        }
        match clause {
            None => outcome.note(Condition::Anybody, false),
            Some((_, clause)) => {
                for condition in CONDITIONS {
                    if let Some(holds) = clause.holds(condition, asked) {
                        outcome.note(condition, holds);
                    }
                }
            }
        }
        outcome
    }

    fn note(&mut self, condition: Condition, holds: bool) {
        if holds {
            self.held += 1;
        } else {
            self.failed += 1;
            self.first = self.first.or(Some(condition));
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

#[cfg(test)]
mod tests;

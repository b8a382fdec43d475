//! Rules of the API server: read by the one strict parser; a bad one keeps what the same object said last. Pure.
//!
//! Called by `world`; `status` writes what is said here into the objects. What it says must follow from the object alone, so that
//! two replicas never say different things about it.

use std::sync::Arc;

use countersign_policy::Policy;
use serde_json::{Value, json};

use crate::model::{Problem, Rule};
use crate::source::kubernetes::objects::{AuthorizationPolicy, Condition, PolicyStatus, key};

/// The condition that says whether the rule is understood.
pub const ACCEPTED: &str = "Accepted";
/// Characters of a condition's message.
const MAX_MESSAGE: usize = 1024;

/// What is known of one policy object.
#[derive(Debug, Clone)]
pub struct Known {
    uid: Option<String>,
    generation: Option<i64>,
    /// In force; `None`: it was never good since we began to read.
    pub good: Option<Arc<Rule>>,
    /// Why its newest text is not in force.
    pub bad: Option<Problem>,
    /// It was there when we began to read, and was never good since: nobody knows what it denied before.
    pub withholds: bool,
    /// As written by some replica.
    status: PolicyStatus,
}

/// What a policy's status is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Of the object: one of the same name made anew is another.
    pub uid: Option<String>,
    /// What was read.
    pub generation: i64,
    /// Whether it is understood.
    pub accepted: bool,
    /// A word for programs.
    pub reason: &'static str,
    /// For people; names the field.
    pub message: String,
    /// When that began, if the object says so already.
    pub since: Option<String>,
}

/// Reads one policy. `first`: it stands in the first list since we began.
pub fn read(old: Option<&Known>, object: AuthorizationPolicy, first: bool) -> Known {
    let same = old.filter(|old| old.uid == object.metadata.uid);
    if let Some(old) = same
        && old.generation.is_some()
        && old.generation == object.metadata.generation
    {
        return Known { status: object.status, ..old.clone() };
    }
    let (uid, generation) = (object.metadata.uid.clone(), object.metadata.generation);
    let status = object.status.clone();
    match parse(&object) {
        Ok(rule) => {
            let good = match same.and_then(|old| old.good.as_ref()).filter(|old| old.digest == rule.digest) {
                Some(old) => Arc::clone(old),
                None => Arc::new(rule),
            };
            Known { uid, generation, good: Some(good), bad: None, withholds: false, status }
        }
        Err(problem) => {
            let good = same.and_then(|old| old.good.clone());
            let withholds = good.is_none() && (first || same.is_some_and(|old| old.withholds));
            Known { uid, generation, good, bad: Some(problem), withholds, status }
        }
    }
}

fn parse(object: &AuthorizationPolicy) -> Result<Rule, Problem> {
    let (namespace, name) = key(&object.metadata);
    let text = json!({
        "apiVersion": countersign_policy::API_VERSION,
        "kind": countersign_policy::KIND,
        "metadata": { "name": name, "namespace": namespace },
        "spec": object.spec,
    });
    let policy = Policy::from_json(&text.to_string()).map_err(|error| Problem {
        file: format!("AuthorizationPolicy {namespace}/{name}"),
        line: 0,
        column: 0,
        field: error.field,
        message: error.message,
    })?;
    Ok(Rule::new(policy))
}

impl Known {
    /// What its status should say and does not; `None`: it does.
    pub fn verdict(&self) -> Option<Verdict> {
        let generation = self.generation.unwrap_or(0);
        let (accepted, reason, message) = match &self.bad {
            None => (true, "Accepted", "understood".to_owned()),
            Some(problem) => {
                let field = if problem.field.is_empty() { "spec" } else { &problem.field };
                let message = format!("{field}: {}; what it said before, if that was good, holds", problem.message);
                (false, "Invalid", message.chars().take(MAX_MESSAGE).collect())
            }
        };
        let word = if accepted { "True" } else { "False" };
        let written = self.status.conditions.iter().find(|is| is.kind == ACCEPTED);
        let says = |is: &Condition| {
            is.status == word && is.reason == reason && is.message == message && is.observed_generation == generation
        };
        if written.is_some_and(says) {
            return None;
        }
        let since = written.filter(|is| is.status == word).map(|is| is.last_transition_time.clone());
        let since = since.filter(|since| !since.is_empty());
        Some(Verdict { uid: self.uid.clone(), generation, accepted, reason, message, since })
    }
}

impl Verdict {
    /// The condition as it is written; `now` in RFC 3339.
    pub fn condition(&self, now: &str) -> Value {
        json!({
            "type": ACCEPTED,
            "status": if self.accepted { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.generation,
            "lastTransitionTime": self.since.as_deref().unwrap_or(now),
        })
    }
}

#[cfg(test)]
#[path = "policies/tests.rs"]
mod tests;

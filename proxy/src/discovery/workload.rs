//! The controller's `Workload` message, from protobuf to what is in force.
//!
//! Called by `stream`. It must never open anything by what it does not understand: such a rule, if an Allow, never matches,
//! and if a Deny, always does; such a message as a whole is refused, and the last good one stays.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_api::controller as api;
use countersign_policy::{Egress, Modes, Mtls, PolicySet, Posture, Received};
use ipnet::IpNet;

use super::Settings;

/// Most ranges that a mesh may have.
const MAX_RANGES: usize = 1024;
/// Most rules that may bind one workload.
const MAX_RULES: usize = 20_000;
/// Most unknown rules that an `Ack` names.
const MAX_NAMED: usize = 100;

/// All that one message put in force.
#[derive(Debug)]
pub struct InForce {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub rules: Arc<PolicySet>,
    /// As received, for the admin socket.
    pub received: Vec<api::Rule>,
    pub ranges: Vec<IpNet>,
    pub node: Arc<str>,
}

impl InForce {
    /// Whether an address is inside the mesh's ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&ip))
    }
}

/// Why a message was refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The message is of another pod's namespace: its rules bind somebody else.
    #[error("namespace: {got:?} is not this pod's ({ours:?})")]
    Namespace { got: String, ours: String },
    /// A range that is no CIDR.
    #[error("mesh_ranges[{0}]: {1:?} is not a CIDR")]
    Range(usize, String),
    /// Without ranges all traffic would leave unencrypted.
    #[error("mesh_ranges: empty; nobody would be in the mesh")]
    NoRanges,
    /// Beyond what a proxy takes.
    #[error("{field}: {got} are more than {most}")]
    TooMany { field: &'static str, got: usize, most: usize },
    /// Reading it came to no end.
    #[error("the message could not be read")]
    Unreadable,
}

/// A message, understood.
#[derive(Debug)]
pub struct Read {
    pub in_force: InForce,
    /// Rules that are not understood: "namespace/name", at most [`MAX_NAMED`].
    pub unknown: Vec<String>,
    /// Why, where there is more to say than that the feature is newer.
    pub problems: Vec<String>,
}

/// Reads a message.
///
/// # Errors
/// Where nothing of it can be put in force.
pub fn read(settings: &Settings, workload: api::Workload) -> Result<Read, Refused> {
    if workload.namespace != settings.namespace {
        let ours = settings.namespace.clone();
        return Err(Refused::Namespace { got: bounded(&workload.namespace), ours });
    }
    let ranges = read_ranges(&workload.mesh_ranges)?;
    at_most("rules", workload.rules.len(), MAX_RULES)?;
    let mut problems = Vec::new();
    let received = workload.rules.iter().map(|rule| receive(rule, &mut problems)).collect();
    let modes = modes(workload.modes.unwrap_or_default());
    let domain = settings.trust_domain.as_str();
    let rules = PolicySet::compile(domain, modes, &workload.revision, received);
    let unknown = rules.unknown().take(MAX_NAMED).collect();
    let in_force = InForce {
        namespace: workload.namespace.into(),
        name: workload.name.into(),
        rules: Arc::new(rules),
        received: workload.rules,
        ranges,
        node: workload.node.into(),
    };
    Ok(Read { in_force, unknown, problems })
}

fn read_ranges(texts: &[String]) -> Result<Vec<IpNet>, Refused> {
    at_most("mesh_ranges", texts.len(), MAX_RANGES)?;
    if texts.is_empty() {
        return Err(Refused::NoRanges);
    }
    let parse = |(i, text): (usize, &String)| text.parse().map_err(|_| Refused::Range(i, bounded(text)));
    texts.iter().enumerate().map(parse).collect()
}

fn at_most(field: &'static str, got: usize, most: usize) -> Result<(), Refused> {
    if got > most { Err(Refused::TooMany { field, got, most }) } else { Ok(()) }
}

/// An action that is not known is a Deny: unknown means no.
fn receive(rule: &api::Rule, problems: &mut Vec<String>) -> Received {
    let name = || format!("{}/{}", bounded(&rule.namespace), bounded(&rule.name));
    let known = matches!(rule.action(), api::Action::Allow | api::Action::Deny);
    let deny = rule.action() != api::Action::Allow;
    if !known {
        note(problems, || format!("{}: action {} is not known; treated as Deny", name(), rule.action));
        let (namespace, name) = (rule.namespace.clone(), rule.name.clone());
        return Received::Unknown { namespace, name, deny, feature: rule.feature };
    }
    let (namespace, short) = (rule.namespace.as_str(), rule.name.as_str());
    let (received, problem) = Received::from_wire(namespace, short, deny, rule.feature, &rule.policy_json);
    if let Some(problem) = problem {
        note(problems, || format!("{}: {problem}", name()));
    }
    received
}

fn note(problems: &mut Vec<String>, problem: impl FnOnce() -> String) {
    if problems.len() < MAX_NAMED {
        problems.push(problem());
    }
}

/// A word that is unknown or absent is the strictest one.
fn modes(words: api::Modes) -> Modes {
    Modes {
        mtls: Mtls::from_word(&words.mtls),
        posture: Posture::from_word(&words.posture),
        egress: Egress::from_word(&words.egress),
    }
}

/// What may be quoted of a text that somebody else wrote.
fn bounded(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;

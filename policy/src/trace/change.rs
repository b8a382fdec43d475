//! What would have to change for a denied attempt to be let in, in one sentence. Called by whoever explains a denial. Must never
//! propose more than the attempt needs: one source, one port.

use super::{Failed, Trace, Try};
use crate::decide::Reason;
use crate::model::{Action, Mode};
use crate::set::Condition;

impl Trace {
    /// The smallest change that would let it in; `None` where it is let in.
    pub fn change(&self) -> Option<String> {
        let rule = self.rule.as_deref().unwrap_or_default();
        if self.allowed {
            return None;
        }
        Some(match self.reason {
            Reason::Allowed | Reason::NotEvaluated => return None,
            Reason::DeniedByRule => {
                let also = if self.some_allow_matches() { String::new() } else { format!("; and {}", self.an_allow()) };
                format!("change or remove the Deny {rule}, which wins over every Allow{also}")
            }
            Reason::DeniedByUnknownRule => {
                format!("update this proxy: it cannot read the Deny {rule}, which so counts as matching everything")
            }
            Reason::NoPolicy => format!("{} (no rule binds this workload yet)", self.an_allow()),
            Reason::PlaintextUnderStrict => format!("give the source a sidecar; or {}", self.an_allow()),
            Reason::NoRuleMatched => match self.nearest() {
                Some(nearest) if nearest.asked - nearest.held == 1 => match &nearest.failed {
                    Some(failed) => self.mend(nearest, failed),
                    None => self.an_allow(),
                },
                _ => self.an_allow(),
            },
        })
    }

    fn some_allow_matches(&self) -> bool {
        self.tried.iter().any(|one| one.action == Action::Allow && one.mode == Mode::Enforce && one.matched)
    }

    /// All but one condition of a rule hold.
    fn mend(&self, rule: &Try, failed: &Failed) -> String {
        let (name, field, seen) = (&rule.rule, &failed.field, &failed.seen);
        match failed.condition {
            Condition::Ports => format!("add port {seen} to `{field}` of {name}"),
            Condition::SpiffeIds | Condition::ServiceAccounts if self.attempt.identity.is_none() => self.an_allow(),
            // Spelling a domain there would shut out the mesh's own, which is meant unspoken.
            Condition::TrustDomains if failed.wanted.starts_with("the mesh's own") => self.an_allow(),
            Condition::SpiffeIds
            | Condition::ServiceAccounts
            | Condition::Namespaces
            | Condition::TrustDomains
            | Condition::IpBlocks => format!("add {seen} to `{field}` of {name}"),
            Condition::Feature => format!("update this proxy: it cannot read {name}, which so matches nothing"),
            Condition::Anybody => format!("say in `{field}` of {name} who may come: [] is nobody"),
            Condition::Authenticated if self.attempt.identity.is_none() => {
                format!("give the source a sidecar: `{field}` of {name} asks for an identity")
            }
            Condition::Authenticated => self.an_allow(),
        }
    }

    /// The Allow that lets in exactly this source on this port, and no more.
    pub fn an_allow(&self) -> String {
        let port = self.attempt.port;
        let from = match &self.attempt.identity {
            Some(id) => format!("spiffeIds: [\"{id}\"]"),
            None => {
                let ip = self.attempt.source_ip;
                format!("unauthenticated: true, ipBlocks: [\"{ip}/{}\"]", if ip.is_ipv4() { 32 } else { 128 })
            }
        };
        format!("an Allow with the rule {{from: [{{{from}}}], to: [{{ports: [{port}]}}]}}")
    }
}

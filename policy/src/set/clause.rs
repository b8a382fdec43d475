//! One `from` entry of one rule (or its absence) as conditions that can be asked quickly. The one place that says what
//! a condition means: `decide` and `trace` both come here. Ports are the rule's, not the clause's.

use std::collections::HashSet;

use super::Asked;
use super::blocks::Blocks;
use crate::model::{Account, AccountName, Action, Names, Origin, Rule};

/// What a rule can ask of an attempt, in the order in which it is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// This build knows the rule's feature.
    Feature,
    /// `to[].ports`.
    Ports,
    /// `from` is not `[]`.
    Anybody,
    /// The source has an identity, or has none, as the entry asks.
    Authenticated,
    /// `spiffeIds`.
    SpiffeIds,
    /// `serviceAccounts`.
    ServiceAccounts,
    /// `namespaces`.
    Namespaces,
    /// `trustDomains`, also the unspoken one.
    TrustDomains,
    /// `ipBlocks`.
    IpBlocks,
}

/// Those that a clause asks.
pub(crate) const CONDITIONS: [Condition; 6] = [
    Condition::Authenticated,
    Condition::SpiffeIds,
    Condition::ServiceAccounts,
    Condition::Namespaces,
    Condition::TrustDomains,
    Condition::IpBlocks,
];

#[derive(Debug, Clone)]
pub(crate) struct Clause {
    pub(super) who: Who,
    pub(super) ids: Option<HashSet<Box<str>>>,
    pub(super) accounts: Option<Accounts>,
    pub(super) namespaces: Option<Listed>,
    pub(super) domains: Option<Listed>,
    blocks: Option<Blocks>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Authenticated,
    Unauthenticated,
    /// Only in a Deny that does not ask who: leaving a condition out must not make a Deny narrower.
    Everyone,
}

#[derive(Debug, Clone)]
pub(super) enum Listed {
    Any,
    These(HashSet<Box<str>>),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Accounts {
    /// As paths: `/ns/X/sa/Y`.
    pub(super) paths: HashSet<Box<str>>,
    /// Namespaces of which every account is meant.
    pub(super) whole: HashSet<Box<str>>,
}

impl Clause {
    /// One clause for each entry of `from`; one if it is left out; none if it is `[]`.
    pub(super) fn of_rule(rule: &Rule, action: Action, trust_domain: &str) -> Vec<Self> {
        match &rule.from {
            None => vec![Self::of_entry(&Origin::default(), action, trust_domain)],
            Some(entries) => entries.iter().map(|entry| Self::of_entry(entry, action, trust_domain)).collect(),
        }
    }

    /// Matches every attempt.
    pub(super) fn everyone() -> Self {
        Self { who: Who::Everyone, ids: None, accounts: None, namespaces: None, domains: None, blocks: None }
    }

    fn of_entry(entry: &Origin, action: Action, trust_domain: &str) -> Self {
        let who = match action {
            _ if entry.unauthenticated => Who::Unauthenticated,
            Action::Deny if !entry.asks_identity() => Who::Everyone,
            _ => Who::Authenticated,
        };
        let local = !entry.service_accounts.is_empty() || entry.namespaces.is_some();
        let ids = entry.spiffe_ids.iter().map(|id| id.as_str().into());
        Self {
            who,
            ids: (!entry.spiffe_ids.is_empty()).then(|| ids.collect()),
            accounts: Accounts::new(&entry.service_accounts),
            namespaces: entry.namespaces.as_ref().map(Listed::new),
            domains: match &entry.trust_domains {
                Some(names) => Some(Listed::new(names)),
                None => local.then(|| Listed::These(HashSet::from([trust_domain.into()]))),
            },
            blocks: (!entry.ip_blocks.is_empty()).then(|| Blocks::new(&entry.ip_blocks)),
        }
    }

    /// Whether all that is asked holds.
    pub(crate) fn matches(&self, asked: &Asked<'_>) -> bool {
        CONDITIONS.iter().all(|condition| self.holds(*condition, asked) != Some(false))
    }

    /// Whether one condition holds; `None` if it is not asked.
    pub(crate) fn holds(&self, condition: Condition, asked: &Asked<'_>) -> Option<bool> {
        let namespace = asked.account.map(|(namespace, _)| namespace);
        match condition {
            Condition::Feature | Condition::Ports | Condition::Anybody => None,
            Condition::Authenticated => match self.who {
                Who::Authenticated => Some(asked.principal.is_some()),
                Who::Unauthenticated => Some(asked.principal.is_none()),
                Who::Everyone => None,
            },
            Condition::SpiffeIds => {
                self.ids.as_ref().map(|ids| asked.principal.is_some_and(|p| ids.contains(p.as_str())))
            }
            Condition::ServiceAccounts => self.accounts.as_ref().map(|accounts| accounts.hold(asked)),
            Condition::Namespaces => self.namespaces.as_ref().map(|list| list.holds(namespace)),
            Condition::TrustDomains => {
                self.domains.as_ref().map(|list| list.holds(asked.principal.map(|p| p.trust_domain())))
            }
            Condition::IpBlocks => self.blocks.as_ref().map(|blocks| blocks.contain(asked.ip)),
        }
    }
}

impl Listed {
    fn new(names: &Names) -> Self {
        match names {
            Names::Any => Self::Any,
            Names::These(names) => Self::These(names.iter().map(|name| name.as_str().into()).collect()),
        }
    }

    /// `Any` still needs one: an id without a namespace is in no namespace.
    fn holds(&self, name: Option<&str>) -> bool {
        match (self, name) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(names), Some(name)) => names.contains(name),
        }
    }
}

impl Accounts {
    fn new(listed: &[Account]) -> Option<Self> {
        let mut accounts = Self::default();
        for Account { namespace, name } in listed {
            match name {
                AccountName::Any => accounts.whole.insert(namespace.as_str().into()),
                AccountName::Named(name) => accounts.paths.insert(format!("/ns/{namespace}/sa/{name}").into()),
            };
        }
        (!listed.is_empty()).then_some(accounts)
    }

    fn hold(&self, asked: &Asked<'_>) -> bool {
        let (Some(principal), Some((namespace, _))) = (asked.principal, asked.account) else {
            return false;
        };
        self.paths.contains(principal.path()) || self.whole.contains(namespace)
    }
}

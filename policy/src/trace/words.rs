//! A trace in words. Called by `trace` and its `Display`. Must bound what it prints: a rule may list thousands of names.

use std::fmt;

use super::{Failed, Policy, Trace, Try};
use crate::model::{Account, Mode, Names, Origin};
use crate::set::{Asked, CompiledRule, Condition, PolicySet, Received};

/// Names printed of a list.
const MOST: usize = 4;

/// Where a rule says a condition, inside the rule.
pub(super) fn field(condition: Condition, entry: Option<usize>) -> String {
    let within = match condition {
        Condition::Feature => return "spec".into(),
        Condition::Ports => return "to".into(),
        Condition::Anybody | Condition::Authenticated => "",
        Condition::SpiffeIds => ".spiffeIds",
        Condition::ServiceAccounts => ".serviceAccounts",
        Condition::Namespaces => ".namespaces",
        Condition::TrustDomains => ".trustDomains",
        Condition::IpBlocks => ".ipBlocks",
    };
    match entry {
        Some(entry) => format!("from[{entry}]{within}"),
        None => "from".into(),
    }
}

/// What the rule asks.
pub(super) fn wanted(
    condition: Condition,
    entry: Option<usize>,
    rule: &CompiledRule,
    policy: Option<&Policy>,
    set: &PolicySet,
) -> String {
    let origin = policy
        .zip(rule.name.index())
        .and_then(|(policy, index)| policy.spec().rules.get(usize::try_from(index).ok()?))
        .and_then(|rule| rule.from.as_ref()?.get(entry?));
    let none = Origin::default();
    let origin_or_none = origin.unwrap_or(&none);
    match condition {
        Condition::Feature => feature(rule, set),
        Condition::Ports => some(rule.ports.iter().flatten()),
        Condition::Anybody => "nobody ([])".into(),
        Condition::Authenticated if origin_or_none.unauthenticated => "no identity".into(),
        Condition::Authenticated => "an identity".into(),
        Condition::SpiffeIds => some(&origin_or_none.spiffe_ids),
        Condition::ServiceAccounts => some(&origin_or_none.service_accounts),
        Condition::Namespaces => names(origin_or_none.namespaces.as_ref()),
        Condition::TrustDomains => match &origin_or_none.trust_domains {
            None => format!("the mesh's own, {}", set.trust_domain()),
            spoken => names(spoken.as_ref()),
        },
        Condition::IpBlocks => some(&origin_or_none.ip_blocks),
    }
}

fn feature(rule: &CompiledRule, set: &PolicySet) -> String {
    match set.policy_of(rule) {
        Some(Received::Unknown { feature, .. }) => format!("feature {feature}"),
        _ => String::new(),
    }
}

fn names(names: Option<&Names>) -> String {
    match names {
        None => String::new(),
        Some(Names::Any) => "any (*)".into(),
        Some(Names::These(names)) => some(names),
    }
}

fn some<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items = items.into_iter();
    let mut text = String::new();
    for item in items.by_ref().take(MOST) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&item.to_string());
    }
    match items.count() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// What the attempt brings.
pub(super) fn seen(condition: Condition, asked: &Asked<'_>) -> String {
    let Some(principal) = asked.principal else {
        return match condition {
            Condition::Feature => known_feature(),
            Condition::Ports => asked.port.to_string(),
            Condition::IpBlocks => asked.ip.to_string(),
            _ => "no identity".into(),
        };
    };
    match condition {
        Condition::Feature => known_feature(),
        Condition::Ports => asked.port.to_string(),
        Condition::IpBlocks => asked.ip.to_string(),
        Condition::TrustDomains => principal.trust_domain().into(),
        Condition::Namespaces | Condition::ServiceAccounts => match asked.account {
            Some((namespace, _)) if condition == Condition::Namespaces => namespace.into(),
            Some((namespace, name)) => format!("{namespace}/{name}"),
            None => format!("{principal}, which names no service account"),
        },
        Condition::Authenticated | Condition::SpiffeIds | Condition::Anybody => principal.to_string(),
    }
}

fn known_feature() -> String {
    format!("a proxy that knows up to {}", crate::FEATURE_LEVEL)
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} asks {}; saw {}", self.field, self.wanted, self.seen)
    }
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.action, self.rule)?;
        if self.mode == Mode::Audit {
            f.write_str(" (audit only)")?;
        }
        match &self.failed {
            None => f.write_str(": matches"),
            Some(failed) => write!(f, ": {failed}"),
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.allowed, self.would_deny) {
            (true, false) => "allowed",
            (true, true) => "allowed only by audit",
            (false, _) => "denied",
        };
        write!(f, "{verdict}: {}", self.reason.label())?;
        if let Some(rule) = &self.rule {
            write!(f, " ({rule})")?;
        }
        let identity = self.attempt.identity.as_deref().unwrap_or("no identity");
        writeln!(f, "\n  source    {identity} at {}", self.attempt.source_ip)?;
        writeln!(f, "  port      {}", self.attempt.port)?;
        let modes = self.modes;
        writeln!(
            f,
            "  revision  {} (mtls {}, posture {}, egress {})",
            self.revision, modes.mtls, modes.posture, modes.egress
        )?;
        if let Some(nearest) = self.nearest() {
            writeln!(f, "  nearest   {nearest}")?;
        }
        match self.tried.len() {
            0 => write!(f, "  no rule binds this workload"),
            n => write!(f, "  {n} rule{} tried:", if n == 1 { "" } else { "s" }),
        }?;
        self.tried.iter().try_for_each(|one| write!(f, "\n    {one}"))
    }
}

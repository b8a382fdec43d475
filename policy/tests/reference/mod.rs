//! Policies and attempts at random, and what they mean, told as naively as possible: strings, loops, nothing shared
//! with the crate but the text it parses. From a small world, so that things often meet.

use std::fmt::Write as _;
use std::net::IpAddr;

use countersign_policy::{Attempt, Egress, Modes, Mtls, Policy, Posture, Principal, Received, Source, parse};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub const OWN: &str = "td";
const IDS: &[&str] = &[
    "spiffe://td/ns/a/sa/x",
    "spiffe://td/ns/a/sa/y",
    "spiffe://td/ns/b/sa/x",
    "spiffe://other/ns/a/sa/x",
    "spiffe://other/ns/b/sa/y",
    "spiffe://td/machine/1",
    "spiffe://td/ns/a/sa/x/more",
    "spiffe://td/ns/a",
];
const IPS: &[&str] = &["10.0.0.1", "10.0.1.1", "192.168.0.1", "::ffff:10.0.0.1", "fd00::1", "::1"];
const BLOCKS: &[&str] = &["10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "192.168.0.1/32", "fd00::/8", "::/0"];
const PORTS: &[u16] = &[80, 81, 82];

#[derive(Debug, Clone)]
pub struct APolicy {
    pub deny: bool,
    pub audit: bool,
    /// Of a feature that nobody knows: the rest is not to be had.
    pub unknown: bool,
    pub rules: Vec<ARule>,
}

#[derive(Debug, Clone)]
pub struct ARule {
    pub from: Option<Vec<AnEntry>>,
    pub to: Option<Vec<Vec<u16>>>,
}

#[derive(Debug, Clone, Default)]
pub struct AnEntry {
    ids: Vec<&'static str>,
    accounts: Vec<(&'static str, &'static str)>,
    namespaces: Vec<&'static str>,
    domains: Vec<&'static str>,
    plain: bool,
    blocks: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub struct AnAttempt {
    pub id: Option<&'static str>,
    pub ip: &'static str,
    pub port: u16,
}

/// What the naive reference says: admitted?, reason, deciding rule, audited rules with "deny" or "allow".
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: &'static str,
    pub rule: Option<String>,
    pub audit: Vec<(String, bool)>,
}

fn names(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        4 => Just(vec![]),
        3 => vec(select(of), 1..3),
        1 => Just(vec!["*"]),
    ]
}

fn entry() -> impl Strategy<Value = AnEntry> {
    let known = (
        prop_oneof![3 => Just(vec![]), 1 => vec(select(IDS), 1..3)],
        prop_oneof![
            3 => Just(vec![]),
            1 => vec((select(&["a", "b"][..]), select(&["x", "y", "*"][..])), 1..3),
        ],
        names(&["a", "b"]),
        names(&["td", "other"]),
        prop_oneof![4 => Just(vec![]), 1 => vec(select(BLOCKS), 1..3)],
    );
    let known = known.prop_map(|(ids, accounts, namespaces, domains, blocks)| AnEntry {
        ids,
        accounts,
        namespaces,
        domains,
        plain: false,
        blocks,
    });
    let known = known.prop_map(|mut e| {
        if !asks_identity(&e) && e.blocks.is_empty() {
            e.domains = vec!["*"];
        }
        e
    });
    let plain = vec(select(BLOCKS), 1..3).prop_map(|blocks| AnEntry { plain: true, blocks, ..AnEntry::default() });
    prop_oneof![4 => known, 1 => plain]
}

fn rule() -> impl Strategy<Value = ARule> {
    let from = option::weighted(0.8, vec(entry(), 0..3));
    let to = option::weighted(0.6, vec(vec(select(PORTS), 1..3), 1..3));
    let narrow = (from, to).prop_map(|(from, to)| ARule { from, to });
    // Of so many ports and sources that it is found otherwise.
    let wide = (vec(entry(), 6..9), vec(select(PORTS), 1..3)).prop_map(|(from, ports)| {
        let unused = (1000..1040).collect();
        ARule { from: Some(from), to: Some(vec![ports, unused]) }
    });
    prop_oneof![6 => narrow, 1 => wide]
}

pub fn policy() -> impl Strategy<Value = APolicy> {
    (prop::bool::weighted(0.3), prop::bool::weighted(0.25), prop::bool::weighted(0.05), vec(rule(), 1..4))
        .prop_map(|(deny, audit, unknown, rules)| APolicy { deny, audit, unknown, rules })
}

pub fn policies() -> impl Strategy<Value = Vec<APolicy>> {
    vec(policy(), 0..6)
}

pub fn attempt() -> impl Strategy<Value = AnAttempt> {
    (option::weighted(0.8, select(IDS)), select(IPS), select(&[80u16, 81, 82, 83][..]))
        .prop_map(|(id, ip, port)| AnAttempt { id, ip, port })
}

pub fn modes() -> impl Strategy<Value = Modes> {
    let posture = prop_oneof![
        4 => Just(Posture::Enforce),
        2 => Just(Posture::Audit),
        1 => Just(Posture::Off),
    ];
    (select(Mtls::ALL), posture).prop_map(|(mtls, posture)| Modes { mtls, posture, egress: Egress::Any })
}

impl AnAttempt {
    /// Hands the crate's form of it to `with`.
    pub fn ask<T>(&self, with: impl FnOnce(&Attempt<'_>) -> T) -> T {
        let principal = self.id.map(|id| Principal::parse(id).unwrap());
        with(&Attempt {
            source: principal.as_ref().map_or(Source::Unauthenticated, Source::Authenticated),
            source_ip: self.ip.parse().unwrap(),
            port: self.port,
        })
    }
}

/// Named by their places: `n/p0`, `n/p1`, ...
pub fn received(policies: &[APolicy]) -> Vec<Received> {
    policies.iter().enumerate().map(|(at, policy)| policy.receive(at)).collect()
}

impl APolicy {
    pub fn receive(&self, at: usize) -> Received {
        match self.unknown {
            true => Received::Unknown { namespace: "n".into(), name: format!("p{at}"), deny: self.deny, feature: 99 },
            false => Received::Known(self.parsed(at)),
        }
    }

    pub fn parsed(&self, at: usize) -> Policy {
        let text = self.text(at);
        parse("random.yaml", &text).unwrap_or_else(|e| panic!("{e}\n{text}")).remove(0)
    }

    /// As a person would write it.
    pub fn text(&self, at: usize) -> String {
        let mut text = format!(
            "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  \
             namespace: n\n  name: p{at}\nspec:\n  action: {}\n  mode: {}\n  rules:\n",
            if self.deny { "Deny" } else { "Allow" },
            if self.audit { "Audit" } else { "Enforce" },
        );
        for rule in &self.rules {
            rule.write(&mut text);
        }
        text
    }
}

impl ARule {
    fn write(&self, text: &mut String) {
        match (&self.from, &self.to) {
            (None, None) => text.push_str("  - {}\n"),
            _ => text.push_str("  -\n"),
        }
        match &self.from {
            None => (),
            Some(entries) if entries.is_empty() => text.push_str("    from: []\n"),
            Some(entries) => {
                text.push_str("    from:\n");
                for entry in entries {
                    writeln!(text, "    - {{{}}}", entry.fields().join(", ")).unwrap();
                }
            }
        }
        if let Some(to) = &self.to {
            text.push_str("    to:\n");
            for ports in to {
                writeln!(text, "    - ports: {ports:?}").unwrap();
            }
        }
    }
}

impl AnEntry {
    fn fields(&self) -> Vec<String> {
        let mut fields = Vec::new();
        for (name, list) in [
            ("spiffeIds", &self.ids),
            ("namespaces", &self.namespaces),
            ("trustDomains", &self.domains),
            ("ipBlocks", &self.blocks),
        ] {
            if !list.is_empty() {
                fields.push(format!("{name}: {list:?}"));
            }
        }
        if !self.accounts.is_empty() {
            let accounts = self.accounts.iter();
            let accounts: Vec<_> = accounts.map(|(ns, sa)| format!("{{namespace: {ns}, name: \"{sa}\"}}")).collect();
            fields.push(format!("serviceAccounts: [{}]", accounts.join(", ")));
        }
        if self.plain {
            fields.push("unauthenticated: true".into());
        }
        fields
    }
}

fn asks_identity(e: &AnEntry) -> bool {
    !e.ids.is_empty() || !e.accounts.is_empty() || !e.namespaces.is_empty() || !e.domains.is_empty()
}

fn within(blocks: &[&str], ip: &str) -> bool {
    let ip: IpAddr = ip.strip_prefix("::ffff:").unwrap_or(ip).parse().unwrap();
    blocks.iter().any(|block| block.parse::<IpNet>().unwrap().contains(&ip))
}

fn entry_matches(e: &AnEntry, deny: bool, attempt: &AnAttempt) -> bool {
    if !e.blocks.is_empty() && !within(&e.blocks, attempt.ip) {
        return false;
    }
    let Some(id) = attempt.id else {
        return e.plain || (deny && !asks_identity(e));
    };
    if e.plain {
        return false;
    }
    let parts: Vec<&str> = id.split('/').collect();
    let domain = parts[2];
    let account = match parts[3..] {
        ["ns", ns, "sa", sa] => Some((ns, sa)),
        _ => None,
    };
    if !e.ids.is_empty() && !e.ids.contains(&id) {
        return false;
    }
    if !e.accounts.is_empty() {
        let Some((ns, sa)) = account else { return false };
        if !e.accounts.contains(&(ns, sa)) && !e.accounts.contains(&(ns, "*")) {
            return false;
        }
    }
    if !e.namespaces.is_empty() {
        let Some((ns, _)) = account else { return false };
        if !e.namespaces.contains(&ns) && !e.namespaces.contains(&"*") {
            return false;
        }
    }
    if !e.domains.is_empty() {
        return e.domains.contains(&domain) || e.domains.contains(&"*");
    }
    if !e.accounts.is_empty() || !e.namespaces.is_empty() {
        return domain == OWN;
    }
    true
}

fn rule_matches(rule: &ARule, deny: bool, attempt: &AnAttempt) -> bool {
    let to = rule.to.as_ref().is_none_or(|to| to.iter().any(|ports| ports.contains(&attempt.port)));
    let from = match &rule.from {
        Some(entries) => entries.iter().any(|e| entry_matches(e, deny, attempt)),
        None => deny || attempt.id.is_some(),
    };
    to && from
}

/// The first matching rule of each policy, in the policies' order.
fn matching(policies: &[APolicy], attempt: &AnAttempt) -> Vec<(usize, Option<usize>)> {
    let mut found = Vec::new();
    for (at, policy) in policies.iter().enumerate() {
        if policy.unknown {
            if policy.deny {
                found.push((at, None));
            }
            continue;
        }
        let first = policy.rules.iter().position(|r| rule_matches(r, policy.deny, attempt));
        if let Some(index) = first {
            found.push((at, Some(index)));
        }
    }
    found
}

pub fn verdict(modes: Modes, policies: &[APolicy], attempt: &AnAttempt) -> Verdict {
    let matching = matching(policies, attempt);
    let name = |(at, index): &(usize, Option<usize>)| match index {
        Some(index) => format!("n/p{at}#{index}"),
        None => format!("n/p{at}"),
    };
    let enforced = |at: usize| policies[at].unknown || !policies[at].audit;
    let deny = matching.iter().find(|(at, _)| policies[*at].deny && enforced(*at));
    let allow = matching.iter().find(|(at, _)| !policies[*at].deny && enforced(*at));
    let audit = matching.iter().filter(|(at, _)| !enforced(*at));
    let audit = audit.map(|m| (name(m), policies[m.0].deny)).collect();

    let stranger = attempt.id.is_none() && modes.mtls == Mtls::Strict && allow.is_none();
    if modes.posture == Posture::Off && !stranger {
        return Verdict { allowed: true, reason: "not_evaluated", rule: None, audit: vec![] };
    }
    let (ok, reason, rule) = match (deny, allow) {
        (Some(m @ (_, None)), _) => (false, "denied_by_unknown_rule", Some(name(m))),
        (Some(m), _) => (false, "denied_by_rule", Some(name(m))),
        (None, Some(m)) => (true, "allowed", Some(name(m))),
        (None, None) if stranger => (false, "plaintext_under_strict", None),
        (None, None) if policies.is_empty() => (false, "no_policy", None),
        (None, None) => (false, "no_rule_matched", None),
    };
    let allowed = (ok || modes.posture != Posture::Enforce) && !stranger;
    Verdict { allowed, reason, rule, audit }
}

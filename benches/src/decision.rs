//! How long a decision takes with many rules of which few concern the workload: what the controller selects, the proxy compiles and asks.
//!
//! Called once a run. The slowest allowed attempt counts: the one that the last rule of the workload lets in.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use countersign_policy::{Attempt, Modes, Policy, PolicySet, Principal, Received, Source, decide, parse};
use serde::Serialize;

/// Rules that concern the workload.
pub const CONCERNING: usize = 20;
/// Rules in one text, of a size that parser and controller take.
pub const RULES_IN_FILE: usize = 250;

/// Time of one decision.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decision {
    /// Rules of the mesh.
    pub rules: usize,
    /// Nanoseconds when the last rule that concerns the workload allows; best of many turns, as others can only slow it down.
    pub allowed_ns: f64,
    /// Nanoseconds when none does.
    pub denied_ns: f64,
}

/// A rule set for one workload, out of a mesh with so many rules.
pub struct Rules {
    /// What the proxy decides with.
    pub set: PolicySet,
    /// Whom only the last rule allows.
    pub last: Principal,
    /// Whom none allows.
    pub nobody: Principal,
}

/// Makes `rules` rules, of which [`CONCERNING`] bind the workload `app: backend`, and selects them as the controller does.
///
/// # Errors
/// If a rule does not parse: not of this text.
pub fn rules(rules: usize) -> Result<Rules> {
    select(rules, CONCERNING.min(rules))
}

/// Makes `rules` rules that all bind the workload: the worst that a namespace can do to itself.
///
/// # Errors
/// If a rule does not parse: not of this text.
pub fn rules_all_binding(rules: usize) -> Result<Rules> {
    select(rules, rules)
}

fn select(rules: usize, concerning: usize) -> Result<Rules> {
    let labels = BTreeMap::from([("app".to_owned(), "backend".to_owned())]);
    let (numbers, mut binding): (Vec<usize>, Vec<Policy>) = ((0..rules).collect(), Vec::new());
    for file in numbers.chunks(RULES_IN_FILE) {
        let text = file.iter().map(|number| {
            let app = if *number < concerning { "backend" } else { "other" };
            rule(&format!("rule-{number}"), app, &format!("client-{number}"), 8080)
        });
        let policies = parse("rules.yaml", &text.collect::<String>())?;
        binding.extend(policies.into_iter().filter(|policy| policy.binds("shop", &labels)));
    }
    ensure!(binding.len() == concerning, "{} rules bind", binding.len());
    let account = |name: &str| Principal::parse(&format!("spiffe://cluster.local/ns/shop/sa/{name}"));
    let last = account(&format!("client-{}", binding.len() - 1))?;
    let received = binding.into_iter().map(Received::Known).collect();
    Ok(Rules {
        set: PolicySet::compile("cluster.local", Modes::default(), "r", received),
        last,
        nobody: account("nobody")?,
    })
}

/// The attempt of this client.
#[must_use]
pub fn attempt(client: &Principal) -> Attempt<'_> {
    Attempt { source: Source::Authenticated(client), source_ip: [10, 0, 0, 7].into(), port: 8080 }
}

/// Measures it.
///
/// # Errors
/// If the rules are not what they should be.
pub fn measure(number: usize) -> Result<Decision> {
    let rules = rules(number)?;
    let (allowed, denied) = (attempt(&rules.last), attempt(&rules.nobody));
    ensure!(
        decide(&rules.set, &allowed).allowed() && !decide(&rules.set, &denied).allowed(),
        "the rules are not right"
    );
    Ok(Decision {
        rules: number,
        allowed_ns: best(|| drop(black_box(decide(&rules.set, black_box(&allowed))))),
        denied_ns: best(|| drop(black_box(decide(&rules.set, black_box(&denied))))),
    })
}

fn best(work: impl Fn()) -> f64 {
    const TURNS: usize = 50;
    const EACH: u32 = 2000;
    let turn = |_| {
        let began = Instant::now();
        (0..EACH).for_each(|_| work());
        began.elapsed().as_nanos() as f64 / f64::from(EACH)
    };
    (0..TURNS).map(turn).fold(f64::INFINITY, f64::min)
}

/// One document: that account may reach that port of that app, all in namespace `shop`.
#[must_use]
pub fn rule(name: &str, app: &str, account: &str, port: u16) -> String {
    format!(
        "---\napiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  action: Allow\n  rules:\n  \
         - from: [{{serviceAccounts: [{{namespace: shop, name: {account}}}]}}]\n    to: [{{ports: [{port}]}}]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_of_the_workload_decides_however_many_there_are() {
        for number in [CONCERNING, 200] {
            let rules = rules(number).unwrap();
            assert_eq!(decide(&rules.set, &attempt(&rules.last)).rule().unwrap().to_string(), "shop/rule-19#0");
            assert!(!decide(&rules.set, &attempt(&rules.nobody)).allowed());
        }
    }
}

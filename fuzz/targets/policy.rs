//! `policy`: any text as rules, and good rules with something done to them.
//!
//! Run by `cargo xtask fuzz`. No text makes the parser fail; what parses is read again from its own JSON, decides the same in whatever order
//! it came, and is explained as it was decided; what is said of a bad text is one line at a place of it.

#![no_main]

use std::net::IpAddr;

use countersign_fuzz::{Input, edited};
use countersign_policy::{
    Action, Attempt, FEATURE_LEVEL, Modes, Policy, PolicySet, Principal, Received, Source, decide, documents, parse,
    trace,
};
use libfuzzer_sys::fuzz_target;

const GOOD: &str = r#"apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend-to-backend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: Allow
  mode: Enforce
  rules:
  - from:
    - serviceAccounts: [{namespace: shop, name: frontend}]
    - namespaces: [jobs]
      ipBlocks: [10.1.0.0/16, "fd00::/8"]
    - spiffeIds: ["spiffe://partner.example/billing/worker"]
    to:
    - ports: [8080]
  - from:
    - unauthenticated: true
      ipBlocks: [192.0.2.10/32]
---
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: none
  namespace: shop
spec: {action: Deny, mode: Audit, rules: [{from: [{trustDomains: ["*"]}], to: [{ports: [9090, 1]}]}, {}]}
"#;

const WORDS: [&str; 40] = [
    "apiVersion: ",
    "kind: ",
    "metadata:",
    "name: ",
    "namespace: ",
    "spec:",
    "selector:",
    "matchLabels:",
    "action: ",
    "Allow",
    "Deny",
    "mode: ",
    "Enforce",
    "Audit",
    "rules:",
    "from:",
    "to:",
    "serviceAccounts:",
    "namespaces:",
    "trustDomains:",
    "spiffeIds:",
    "ipBlocks:",
    "unauthenticated: ",
    "ports:",
    "true",
    "false",
    "null",
    "~",
    "\"*\"",
    "[]",
    "{}",
    "- ",
    "\n---\n",
    "\n...\n",
    "\r\n",
    "|\n",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
];

const IDS: [&str; 4] = [
    "spiffe://cluster.local/ns/shop/sa/frontend",
    "spiffe://cluster.local/ns/jobs/sa/any",
    "spiffe://partner.example/billing/worker",
    "spiffe://cluster.local",
];

/// All that a set answers, as text.
fn answers(set: &PolicySet) -> Vec<String> {
    let ids = IDS.map(|id| Principal::parse(id).expect("an id"));
    let sources = ids.iter().map(Source::Authenticated).chain([Source::Unauthenticated]);
    let places: [(IpAddr, u16); 3] =
        [([10, 1, 2, 3].into(), 8080), ([192, 0, 2, 10].into(), 1), ([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), 9090)];
    let attempts = sources.flat_map(|source| places.map(|(source_ip, port)| Attempt { source, source_ip, port }));
    let answer = |attempt: Attempt<'_>| {
        let (decision, why) = (decide(set, &attempt), trace(set, &attempt));
        assert_eq!((decision.allowed(), decision.reason()), (why.allowed, why.reason));
        format!("{decision:?} {:?} {:?}", why.nearest().map(ToString::to_string), why.change())
    };
    attempts.map(answer).collect()
}

fn compiled(policies: impl IntoIterator<Item = Policy>) -> PolicySet {
    PolicySet::compile("cluster.local", Modes::default(), "r1", policies.into_iter().map(Received::Known).collect())
}

fn survives(policy: &Policy) {
    let json = policy.to_json();
    assert_eq!(Policy::from_json(&json).as_ref(), Ok(policy), "{json}");
    assert!((1..=FEATURE_LEVEL).contains(&policy.feature_level()));
    let deny = policy.action() == Action::Deny;
    let received = Received::from_wire(policy.namespace(), policy.name(), deny, policy.feature_level(), &json);
    assert_eq!(received, (Received::Known(policy.clone()), None));
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let bytes = match input.byte() {
        None => return,
        Some(0..=63) => input.0.to_vec(),
        Some(_) => edited(GOOD.as_bytes(), &WORDS, input),
    };
    let Ok(text) = String::from_utf8(bytes) else { return };
    if let Ok(policy) = Policy::from_json(&text) {
        survives(&policy);
    }
    let parsed = parse("f", &text);
    match &parsed {
        Ok(policies) => {
            policies.iter().for_each(survives);
            let forwards = answers(&compiled(policies.iter().cloned()));
            assert_eq!(forwards, answers(&compiled(policies.iter().rev().cloned())), "the order counts");
        }
        Err(error) => {
            assert!(!error.message.chars().any(char::is_control), "{error:?}");
            assert!(error.file == "f" && error.line > 0 && error.column > 0, "{error:?}");
            assert!(error.line <= text.split(['\n', '\r']).count() + 1, "{error:?}");
        }
    }
    match documents("f", &text) {
        Ok(documents) => documents.iter().for_each(|one| assert!(one.first_line > 0 && text.contains(one.text))),
        Err(_) => assert!(parsed.is_err()),
    }
});

//! What an explanation says.

use crate::{Attempt, Condition, Modes, PolicySet, Principal, Received, Source, Trace, parse, trace};

const RULES: &str = r#"
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend, namespace: shop}
spec:
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: frontend}]}]
    to: [{ports: [8080, 8443]}]
  - from:
    - unauthenticated: true
      ipBlocks: [10.0.0.0/8]
    - {namespaces: [jobs], ipBlocks: [10.0.0.0/8]}
  - from: []
---
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-tests, namespace: shop}
spec: {action: Deny, mode: Audit, rules: [{from: [{namespaces: [a, b, c, d, e, f]}]}]}
"#;

fn traced(id: Option<&str>, port: u16) -> Trace {
    let mut received: Vec<_> = parse("t", RULES).unwrap().into_iter().map(Received::Known).collect();
    received.push(Received::Unknown { namespace: "shop".into(), name: "http".into(), deny: false, feature: 9 });
    let set = PolicySet::compile("cluster.local", Modes::default(), "r7", received);
    let principal = id.map(|id| Principal::parse(id).unwrap());
    let source = principal.as_ref().map_or(Source::Unauthenticated, Source::Authenticated);
    trace(&set, &Attempt { source, source_ip: "::ffff:10.0.0.9".parse().unwrap(), port })
}

#[test]
fn a_denial_names_every_rule_its_first_failing_condition_and_the_nearest() {
    let trace = traced(Some("spiffe://cluster.local/ns/shop/sa/intruder"), 8080);
    assert_eq!(
        trace.to_string(),
        "denied: no_rule_matched
  source    spiffe://cluster.local/ns/shop/sa/intruder at 10.0.0.9
  port      8080
  revision  r7 (mtls Strict, posture Enforce, egress Any)
  nearest   Allow shop/frontend#0: from[0].serviceAccounts asks shop/frontend; saw shop/intruder
  5 rules tried:
    Allow shop/frontend#0: from[0].serviceAccounts asks shop/frontend; saw shop/intruder
    Allow shop/frontend#1: from[1].namespaces asks jobs; saw shop
    Allow shop/frontend#2: from asks nobody ([]); saw spiffe://cluster.local/ns/shop/sa/intruder
    Allow shop/http: spec asks feature 9; saw a proxy that knows up to 1
    Deny shop/no-tests#0 (audit only): from[0].namespaces asks a, b, c, d and 2 more; saw shop"
    );
    let nearest = trace.nearest().unwrap();
    assert_eq!((nearest.held, nearest.asked), (3, 4));
    assert_eq!(nearest.failed.as_ref().unwrap().condition, Condition::ServiceAccounts);
}

#[test]
fn the_nearest_rule_fails_on_the_fewest_conditions() {
    let failed = |id, port| {
        let trace = traced(Some(id), port);
        let nearest = trace.nearest().unwrap();
        (nearest.rule.clone(), nearest.failed.as_ref().unwrap().to_string())
    };
    assert_eq!(
        failed("spiffe://cluster.local/ns/shop/sa/frontend", 9090),
        ("shop/frontend#0".into(), "to asks 8080, 8443; saw 9090".into())
    );
    let own = "trustDomains asks the mesh's own, cluster.local; saw elsewhere";
    assert_eq!(
        failed("spiffe://elsewhere/ns/shop/sa/frontend", 8080),
        ("shop/frontend#0".into(), format!("from[0].{own}"))
    );
    assert_eq!(
        failed("spiffe://elsewhere/ns/jobs/sa/frontend", 8080),
        ("shop/frontend#1".into(), format!("from[1].{own}"))
    );
}

#[test]
fn an_admission_names_the_rule_and_no_nearest() {
    let trace = traced(Some("spiffe://cluster.local/ns/shop/sa/frontend"), 8080);
    assert!(trace.to_string().starts_with("allowed: allowed (shop/frontend#0)\n"), "{trace}");
    assert!(trace.nearest.is_none() && trace.tried[0].matched);
}

#[test]
fn a_source_without_identity_is_said_to_have_none() {
    let trace = traced(None, 8080);
    assert!(trace.to_string().starts_with("allowed: allowed (shop/frontend#1)\n  source    no identity at 10.0.0.9\n"));
    assert_eq!(trace.tried[0].failed.as_ref().unwrap().to_string(), "from[0] asks an identity; saw no identity");
}

#[test]
fn a_trace_is_json_for_machines() {
    let json = serde_json::to_value(traced(Some("spiffe://cluster.local/ns/shop/sa/intruder"), 8080)).unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!(json["reason"], "no_rule_matched");
    assert_eq!(json["attempt"]["identity"], "spiffe://cluster.local/ns/shop/sa/intruder");
    assert_eq!(json["attempt"]["sourceIp"], "10.0.0.9");
    assert_eq!(json["modes"]["mtls"], "Strict");
    assert_eq!(json["nearest"], 0);
    assert_eq!(json["tried"][0]["failed"]["condition"], "serviceAccounts");
    assert_eq!(json["tried"][0]["failed"]["field"], "from[0].serviceAccounts");
}

#[test]
fn no_policy_is_said_in_words() {
    let set = PolicySet::compile("td", Modes::default(), "r0", Vec::new());
    let attempt = Attempt { source: Source::Unauthenticated, source_ip: "10.0.0.1".parse().unwrap(), port: 1 };
    let text = trace(&set, &attempt).to_string();
    assert!(text.ends_with("\n  no rule binds this workload"), "{text}");
}

/// The rule that a sentence proposes, as a policy.
fn proposed(change: &str) -> String {
    let rule = change.split("an Allow with the rule ").nth(1).unwrap();
    let rule = &rule[..=rule.rfind('}').unwrap()];
    format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: proposed, namespace: shop}}\nspec: {{action: Allow, rules: [{rule}]}}\n"
    )
}

#[test]
fn each_denial_names_one_change_that_would_let_it_in() {
    let change = |id: Option<&str>, port| traced(id, port).change().unwrap();
    let [frontend, intruder] = ["frontend", "intruder"].map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}"));
    assert_eq!(change(Some(&intruder), 8080), "add shop/intruder to `from[0].serviceAccounts` of shop/frontend#0");
    assert_eq!(change(Some(&frontend), 9090), "add port 9090 to `to` of shop/frontend#0");
    assert_eq!(
        change(Some("spiffe://elsewhere/ns/shop/sa/frontend"), 8080),
        "an Allow with the rule {from: [{spiffeIds: [\"spiffe://elsewhere/ns/shop/sa/frontend\"]}], to: [{ports: [8080]}]}"
    );
    assert_eq!(traced(Some(&frontend), 8080).change(), None);

    let asks = |text: &str, id: Option<&str>, ip: &str| {
        let received = if text.is_empty() { Vec::new() } else { parse("t", text).unwrap() };
        let received = received.into_iter().map(Received::Known).collect();
        let set = PolicySet::compile("cluster.local", Modes::default(), "r1", received);
        let principal = id.map(|id| Principal::parse(id).unwrap());
        let source = principal.as_ref().map_or(Source::Unauthenticated, Source::Authenticated);
        trace(&set, &Attempt { source, source_ip: ip.parse().unwrap(), port: 80 })
    };
    let none = asks("", Some(&intruder), "10.0.0.1").change().unwrap();
    assert!(none.ends_with("(no rule binds this workload yet)"), "{none}");
    assert!(asks(&proposed(&none), Some(&intruder), "10.0.0.1").allowed);
    for ip in ["10.0.0.1", "fd00::1"] {
        let plaintext = asks("", None, ip).change().unwrap();
        assert!(plaintext.starts_with("give the source a sidecar; or an Allow"), "{plaintext}");
        assert!(asks(&proposed(&plaintext), None, ip).allowed);
    }
    let deny = RULES.split("---").next().unwrap().replace("action: Allow", "action: Deny");
    let denied = asks(&deny.replace("to: [{ports: [8080, 8443]}]", ""), Some(&frontend), "10.0.0.1").change().unwrap();
    let start = "change or remove the Deny shop/frontend#0, which wins over every Allow; and an Allow with the rule";
    assert!(denied.starts_with(start), "{denied}");
}

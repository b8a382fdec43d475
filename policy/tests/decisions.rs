//! What the words of a rule mean, one promise a test.
#![allow(clippy::unwrap_used, missing_docs)]

use countersign_policy::{
    Action, Attempt, Decision, Modes, Mtls, PolicySet, Posture, Principal, Reason, Received, Source, decide, parse,
};

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const INTRUDER: &str = "spiffe://cluster.local/ns/dark/sa/intruder";
const FOREIGN: &str = "spiffe://elsewhere.example/ns/shop/sa/frontend";
const MACHINE: &str = "spiffe://cluster.local/machine/1";

/// Policies from lines `name, action and mode, rules`, in namespace `shop`.
fn known(policies: &[(&str, &str, &str)]) -> Vec<Received> {
    let known = policies.iter().map(|(name, action, rules)| {
        let text = format!(
            "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: {rules}}}\n"
        );
        Received::Known(parse("t", &text).unwrap().remove(0))
    });
    known.collect()
}

fn set_in(modes: Modes, policies: &[(&str, &str, &str)]) -> PolicySet {
    PolicySet::compile("cluster.local", modes, "r", known(policies))
}

fn set(policies: &[(&str, &str, &str)]) -> PolicySet {
    set_in(Modes::default(), policies)
}

fn posture(posture: Posture) -> Modes {
    Modes { posture, ..Modes::default() }
}

fn ask(set: &PolicySet, id: &str, ip: &str, port: u16) -> Decision {
    let principal = Principal::parse(id).unwrap();
    let source = Source::Authenticated(&principal);
    decide(set, &Attempt { source, source_ip: ip.parse().unwrap(), port })
}

fn ask_plain(set: &PolicySet, ip: &str, port: u16) -> Decision {
    let source = Source::Unauthenticated;
    decide(set, &Attempt { source, source_ip: ip.parse().unwrap(), port })
}

fn admits(rules: &str, id: &str) -> bool {
    ask(&set(&[("a", "Allow", rules)]), id, "10.0.0.1", 80).allowed()
}

fn outcome(decision: &Decision) -> (bool, Reason, Option<String>) {
    (decision.allowed(), decision.reason(), decision.rule().map(ToString::to_string))
}

#[test]
fn no_policy_denies() {
    let decision = ask(&set(&[]), FRONTEND, "10.0.0.1", 80);
    assert_eq!(outcome(&decision), (false, Reason::NoPolicy, None));
}

#[test]
fn some_allow_must_match() {
    let set = set(&[
        ("a", "Allow", "[{from: [{namespaces: [jobs]}]}, {from: [{namespaces: [shop]}], to: [{ports: [80]}]}]"),
        ("b", "Allow", "[{to: [{ports: [81]}]}]"),
    ]);
    assert_eq!(outcome(&ask(&set, FRONTEND, "10.0.0.1", 80)), (true, Reason::Allowed, Some("shop/a#1".into())));
    assert_eq!(outcome(&ask(&set, FRONTEND, "10.0.0.1", 81)).2.unwrap(), "shop/b#0");
    assert_eq!(outcome(&ask(&set, FRONTEND, "10.0.0.1", 82)), (false, Reason::NoRuleMatched, None));
    assert_eq!(outcome(&ask(&set, INTRUDER, "10.0.0.1", 80)), (false, Reason::NoRuleMatched, None));
}

#[test]
fn deny_wins() {
    let set = set(&[
        ("a", "Allow", "[{}]"),
        ("b", "Deny", "[{from: [{namespaces: [dark]}]}]"),
        ("c", "Allow", "[{from: [{namespaces: [dark]}]}]"),
    ]);
    assert!(ask(&set, FRONTEND, "10.0.0.1", 80).allowed());
    assert_eq!(outcome(&ask(&set, INTRUDER, "10.0.0.1", 80)), (false, Reason::DeniedByRule, Some("shop/b#0".into())));
}

#[test]
fn from_left_out_is_any_authenticated_source_and_empty_is_nobody() {
    for id in [FRONTEND, INTRUDER, FOREIGN, MACHINE] {
        assert!(admits("[{}]", id));
        assert!(admits("[{from: [{trustDomains: [\"*\"]}]}]", id));
        assert!(!admits("[{from: []}]", id));
    }
    let permissive = Modes { mtls: Mtls::Permissive, ..Modes::default() };
    assert!(!ask_plain(&set_in(permissive, &[("a", "Allow", "[{}]")]), "10.0.0.1", 80).allowed());
}

#[test]
fn a_deny_that_does_not_ask_who_means_everyone() {
    let open = ("a", "Allow", "[{from: [{unauthenticated: true, ipBlocks: [0.0.0.0/0]}]}, {}]");
    for (deny, plain, known) in [
        ("[{to: [{ports: [80]}]}]", false, false),
        ("[{from: [{ipBlocks: [10.0.0.0/8]}]}]", false, false),
        ("[{from: [{trustDomains: [\"*\"]}]}]", true, false),
        ("[{from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8]}]}]", false, true),
        ("[{from: [{unauthenticated: true, ipBlocks: [10.1.0.0/16]}]}]", true, true),
        ("[{from: []}]", true, true),
    ] {
        let set = set(&[open, ("b", "Deny", deny)]);
        assert_eq!(ask_plain(&set, "10.0.0.1", 80).allowed(), plain, "{deny}");
        assert_eq!(ask(&set, FRONTEND, "10.0.0.1", 80).allowed(), known, "{deny}");
    }
}

#[test]
fn accounts_and_namespaces_are_the_meshs_own_unless_a_trust_domain_is_named() {
    for rules in [
        "[{from: [{namespaces: [shop]}]}]",
        "[{from: [{serviceAccounts: [{namespace: shop, name: frontend}]}]}]",
        "[{from: [{serviceAccounts: [{namespace: shop, name: \"*\"}]}]}]",
        "[{from: [{namespaces: [\"*\"]}]}]",
    ] {
        assert!(admits(rules, FRONTEND), "{rules}");
        assert!(!admits(rules, FOREIGN), "{rules}");
        let named = rules.replace("from: [{", "from: [{trustDomains: [elsewhere.example], ");
        assert!(!admits(&named, FRONTEND) && admits(&named, FOREIGN), "{named}");
        let any = rules.replace("from: [{", "from: [{trustDomains: [\"*\"], ");
        assert!(admits(&any, FRONTEND) && admits(&any, FOREIGN), "{any}");
    }
}

#[test]
fn an_id_of_another_shape_is_in_no_namespace() {
    for id in [MACHINE, "spiffe://cluster.local/ns/shop", "spiffe://cluster.local/ns/shop/sa/frontend/x"] {
        assert!(!admits("[{from: [{namespaces: [\"*\"]}]}]", id), "{id}");
        assert!(!admits("[{from: [{namespaces: [shop]}]}]", id), "{id}");
        assert!(!admits("[{from: [{serviceAccounts: [{namespace: shop, name: \"*\"}]}]}]", id), "{id}");
        assert!(admits("[{from: [{trustDomains: [cluster.local]}]}]", id), "{id}");
        assert!(admits(&format!("[{{from: [{{spiffeIds: [\"{id}\"]}}]}}]"), id));
    }
}

#[test]
fn an_id_is_compared_whole() {
    let rule = format!("[{{from: [{{spiffeIds: [\"{FRONTEND}\"]}}]}}]");
    assert!(admits(&rule, FRONTEND));
    for other in
        [FOREIGN, INTRUDER, "spiffe://cluster.local/ns/shop/sa/frontend2", "spiffe://cluster.local/ns/shop/sa/Frontend"]
    {
        assert!(!admits(&rule, other), "{other}");
    }
}

#[test]
fn entries_are_or_and_conditions_inside_one_are_and() {
    assert!(admits("[{from: [{namespaces: [dark]}, {namespaces: [shop]}]}]", FRONTEND));
    let both = "[{from: [{namespaces: [shop], ipBlocks: [10.0.0.0/24]}]}]";
    let set = set(&[("a", "Allow", both)]);
    assert!(ask(&set, FRONTEND, "10.0.0.7", 80).allowed());
    assert!(!ask(&set, FRONTEND, "10.0.1.7", 80).allowed());
    assert!(!ask(&set, INTRUDER, "10.0.0.7", 80).allowed());
    assert!(!admits(&format!("[{{from: [{{spiffeIds: [\"{FRONTEND}\"], namespaces: [dark]}}]}}]"), FRONTEND));
}

#[test]
fn strict_admits_plaintext_only_where_an_allow_matches_it() {
    let rules = "[{from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8, \"fd00::/8\"]}], to: [{ports: [80]}]}]";
    for posture_is in [Posture::Enforce, Posture::Audit, Posture::Off] {
        let set = set_in(posture(posture_is), &[("a", "Allow", rules), ("b", "Allow", "[{}]")]);
        assert!(ask_plain(&set, "10.9.9.9", 80).allowed());
        assert!(ask_plain(&set, "::ffff:10.9.9.9", 80).allowed(), "as a dual-stack listener sees it");
        assert!(ask_plain(&set, "fd00::1", 80).allowed());
        for (ip, port) in [("11.0.0.1", 80), ("fe00::1", 80), ("10.9.9.9", 81)] {
            let decision = ask_plain(&set, ip, port);
            assert_eq!(outcome(&decision), (false, Reason::PlaintextUnderStrict, None), "{ip} {port}");
        }
    }
    let set = set(&[("a", "Allow", rules)]);
    assert!(!ask(&set, FRONTEND, "10.9.9.9", 80).allowed(), "an identity is not no identity");
}

#[test]
fn permissive_lets_rules_decide_plaintext_like_any_source() {
    let rules = "[{from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8]}], to: [{ports: [80]}]}]";
    let modes = |posture| Modes { mtls: Mtls::Permissive, ..self::posture(posture) };
    let set = |posture| set_in(modes(posture), &[("a", "Allow", rules), ("b", "Allow", "[{}]")]);
    assert!(ask_plain(&set(Posture::Enforce), "10.0.0.1", 80).allowed());
    let decision = ask_plain(&set(Posture::Enforce), "10.0.0.1", 81);
    assert_eq!(outcome(&decision), (false, Reason::NoRuleMatched, None));
    let decision = ask_plain(&set(Posture::Audit), "10.0.0.1", 81);
    assert_eq!(outcome(&decision), (true, Reason::NoRuleMatched, None));
    assert!(decision.would_deny());
    assert!(ask_plain(&set(Posture::Off), "10.0.0.1", 81).allowed());
}

#[test]
fn posture_audit_admits_and_reports_what_rules_deny() {
    let set = set_in(
        posture(Posture::Audit),
        &[("a", "Deny", "[{from: [{namespaces: [dark]}]}]"), ("b", "Allow", "[{to: [{ports: [80]}]}]")],
    );
    let fine = ask(&set, FRONTEND, "10.0.0.1", 80);
    assert!(fine.allowed() && !fine.would_deny());
    let denied = ask(&set, INTRUDER, "10.0.0.1", 80);
    assert_eq!(outcome(&denied), (true, Reason::DeniedByRule, Some("shop/a#0".into())));
    assert!(denied.would_deny());
    let unmatched = ask(&set, FRONTEND, "10.0.0.1", 81);
    assert_eq!(outcome(&unmatched), (true, Reason::NoRuleMatched, None));
    assert!(unmatched.would_deny());
    let nothing = ask(&set_in(posture(Posture::Audit), &[]), FRONTEND, "10.0.0.1", 80);
    assert_eq!(outcome(&nothing), (true, Reason::NoPolicy, None));
    assert!(nothing.would_deny());
}

#[test]
fn posture_off_asks_no_rule() {
    let set = set_in(posture(Posture::Off), &[("a", "Deny", "[{}]"), ("b", "Deny, mode: Audit", "[{}]")]);
    let decision = ask(&set, INTRUDER, "10.0.0.1", 80);
    assert_eq!(outcome(&decision), (true, Reason::NotEvaluated, None));
    assert!(!decision.would_deny() && decision.audit().is_empty());
}

#[test]
fn an_audited_deny_refuses_nobody_and_is_reported() {
    let set = set(&[
        ("a", "Allow", "[{}]"),
        ("b", "Deny, mode: Audit", "[{from: [{namespaces: [shop]}]}, {to: [{ports: [80]}]}]"),
        ("c", "Deny, mode: Audit", "[{to: [{ports: [80]}]}]"),
    ]);
    let decision = ask(&set, FRONTEND, "10.0.0.1", 80);
    assert!(decision.allowed() && decision.would_deny());
    assert_eq!(decision.reason(), Reason::Allowed);
    let audit: Vec<_> = decision.audit().iter().map(|a| (a.rule.to_string(), a.action)).collect();
    assert_eq!(audit, [("shop/b#0".into(), Action::Deny), ("shop/c#0".into(), Action::Deny)]);
    let other = ask(&set, INTRUDER, "10.0.0.1", 81);
    assert!(other.allowed() && !other.would_deny() && other.audit().is_empty());
}

#[test]
fn an_audited_allow_admits_nobody_and_is_reported() {
    let set = set(&[("a", "Allow, mode: Audit", "[{}]")]);
    let decision = ask(&set, FRONTEND, "10.0.0.1", 80);
    assert_eq!(outcome(&decision), (false, Reason::NoRuleMatched, None));
    assert_eq!((decision.audit().len(), decision.audit()[0].action), (1, Action::Allow));
    assert!(!decision.would_deny());
}

#[test]
fn an_unknown_allow_never_matches_and_an_unknown_deny_always_does() {
    let unknown = |deny| Received::Unknown { namespace: "shop".into(), name: "newer".into(), deny, feature: 2 };
    let with_unknown = |deny, policies: &[_]| {
        let received = [known(policies), vec![unknown(deny)]].concat();
        PolicySet::compile("cluster.local", Modes::default(), "r", received)
    };
    let anyone = [("z", "Allow", "[{}]")];
    let alone = with_unknown(false, &[]);
    assert_eq!(outcome(&ask(&alone, FRONTEND, "10.0.0.1", 80)), (false, Reason::NoRuleMatched, None));
    assert!(!alone.opens_unauthenticated(80));
    assert!(ask(&with_unknown(false, &anyone), FRONTEND, "10.0.0.1", 80).allowed());
    let denied = with_unknown(true, &anyone);
    for port in [1, 80, 65535] {
        let decision = ask(&denied, FRONTEND, "10.0.0.1", port);
        assert_eq!(outcome(&decision), (false, Reason::DeniedByUnknownRule, Some("shop/newer".into())));
    }
}

#[test]
fn what_arrives_in_another_order_is_decided_by_the_same_rule() {
    let a = ("a", "Allow", "[{}]");
    let b = ("b", "Allow", "[{}]");
    for policies in [[a, b], [b, a]] {
        assert_eq!(outcome(&ask(&set(&policies), FRONTEND, "10.0.0.1", 80)).2.unwrap(), "shop/a#0");
    }
}

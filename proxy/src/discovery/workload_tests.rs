//! What a rule set may and may not do to us.

use countersign_policy::{Attempt, FEATURE_LEVEL, Policy, Principal, Source, decide};

use super::*;

fn settings() -> Settings {
    let domain = countersign_identity::TrustDomain::parse("cluster.local").unwrap();
    let controller = countersign_identity::SpiffeId::for_service_account(&domain, "countersign-system", "c").unwrap();
    Settings {
        trust_domain: domain,
        controller,
        addresses: Vec::new(),
        namespace: "shop".to_owned(),
        pod_uid: String::new(),
        mark: None,
    }
}

/// A rule of the stream about `frontend`, as the controller writes it.
fn rule(name: &str, action: api::Action) -> api::Rule {
    let word = if action == api::Action::Allow { "Allow" } else { "Deny" };
    let text = format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  action: {word}\n  rules:\n  - from:\n    \
         - serviceAccounts: [{{namespace: shop, name: frontend}}]\n"
    );
    let policy: Policy = countersign_policy::parse("rules.yaml", &text).unwrap().remove(0);
    api::Rule {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        action: action.into(),
        feature: policy.feature_level(),
        policy_json: policy.to_json(),
    }
}

fn workload(rules: Vec<api::Rule>) -> api::Workload {
    let word = |word: &str| word.to_owned();
    api::Workload {
        namespace: word("shop"),
        name: word("backend-1"),
        revision: word("r1"),
        modes: Some(api::Modes { mtls: word("Permissive"), posture: word("Audit"), egress: word("Any") }),
        rules,
        mesh_ranges: vec![word("10.77.0.0/24"), word("fd77::/64")],
        node: word("node-a"),
    }
}

fn allows_frontend(rules: Vec<api::Rule>) -> bool {
    let mut message = workload(rules);
    message.modes = None;
    let read = read(&settings(), message).unwrap();
    let frontend = Principal::parse("spiffe://cluster.local/ns/shop/sa/frontend").unwrap();
    let source = Source::Authenticated(&frontend);
    let attempt = Attempt { source, source_ip: [10, 77, 0, 9].into(), port: 80 };
    decide(&read.in_force.rules, &attempt).allowed()
}

#[test]
fn a_good_message_is_in_force_whole() {
    let read = read(&settings(), workload(vec![rule("a", api::Action::Allow)])).unwrap();
    let now = read.in_force;
    assert_eq!((now.rules.revision(), now.rules.len(), &*now.node), ("r1", 1, "node-a"));
    assert_eq!(now.rules.modes(), Modes { mtls: Mtls::Permissive, posture: Posture::Audit, egress: Egress::Any });
    assert!(now.contains([10, 77, 0, 200].into()) && !now.contains([10, 77, 1, 1].into()));
    assert!(now.contains("fd77::9".parse().unwrap()) && !now.contains("fd78::9".parse().unwrap()));
    assert!(read.unknown.is_empty() && read.problems.is_empty());
    assert!(allows_frontend(vec![rule("a", api::Action::Allow)]));
}

#[test]
fn an_absent_or_unknown_mode_is_the_strictest() {
    let strictest = Modes { mtls: Mtls::Strict, posture: Posture::Enforce, egress: Egress::MeshOnly };
    let mut absent = workload(Vec::new());
    absent.modes = None;
    let mut unknown = workload(Vec::new());
    unknown.modes =
        Some(api::Modes { mtls: "permissive".to_owned(), posture: "Never".to_owned(), egress: String::new() });
    for message in [absent, unknown] {
        assert_eq!(read(&settings(), message).unwrap().in_force.rules.modes(), strictest);
    }
}

#[test]
fn an_unreadable_allow_never_matches_and_an_unreadable_deny_always_does() {
    let (allow, mut torn) = (rule("a", api::Action::Allow), rule("torn", api::Action::Allow));
    torn.policy_json.truncate(20);
    assert!(!allows_frontend(vec![torn.clone()]));
    assert!(allows_frontend(vec![allow.clone(), torn.clone()]));
    torn.action = api::Action::Deny.into();
    assert!(!allows_frontend(vec![allow.clone(), torn.clone()]));
    let read = read(&settings(), workload(vec![allow, torn])).unwrap();
    assert_eq!(read.unknown, ["shop/torn"]);
    assert!(read.problems[0].starts_with("shop/torn: "), "{:?}", read.problems);
}

#[test]
fn an_action_that_is_not_known_denies() {
    let (allow, mut odd) = (rule("a", api::Action::Allow), rule("odd", api::Action::Allow));
    for action in [0, 3, -1] {
        odd.action = action;
        assert!(!allows_frontend(vec![allow.clone(), odd.clone()]), "action {action}");
    }
    let read = read(&settings(), workload(vec![odd])).unwrap();
    assert_eq!(read.unknown, ["shop/odd"]);
}

#[test]
fn a_newer_feature_never_allows_and_always_denies_and_is_named() {
    let (allow, mut newer) = (rule("a", api::Action::Allow), rule("newer", api::Action::Allow));
    newer.feature = FEATURE_LEVEL + 1;
    assert!(!allows_frontend(vec![newer.clone()]));
    newer.action = api::Action::Deny.into();
    assert!(!allows_frontend(vec![allow, newer.clone()]));
    let read = read(&settings(), workload(vec![newer])).unwrap();
    assert_eq!((read.unknown, read.problems.len()), (vec!["shop/newer".to_owned()], 0));
}

#[test]
fn a_message_for_another_namespace_is_refused() {
    let mut message = workload(Vec::new());
    message.namespace = "other".to_owned();
    assert!(matches!(read(&settings(), message), Err(Refused::Namespace { .. })));
}

#[test]
fn a_range_that_is_none_refuses_the_message_and_names_it() {
    let mut message = workload(Vec::new());
    message.mesh_ranges.push("10.0.0.0/40".to_owned());
    let refused = read(&settings(), message).unwrap_err();
    assert_eq!(refused.to_string(), r#"mesh_ranges[2]: "10.0.0.0/40" is not a CIDR"#);
}

#[test]
fn without_ranges_nothing_would_be_encrypted_so_the_message_is_refused() {
    let mut message = workload(Vec::new());
    message.mesh_ranges.clear();
    assert!(matches!(read(&settings(), message), Err(Refused::NoRanges)));
}

#[test]
fn counts_are_bounded() {
    let mut message = workload(Vec::new());
    message.rules = vec![api::Rule::default(); MAX_RULES + 1];
    assert!(matches!(read(&settings(), message), Err(Refused::TooMany { field: "rules", .. })));
    let mut message = workload(Vec::new());
    message.mesh_ranges = vec!["10.0.0.0/8".to_owned(); MAX_RANGES + 1];
    assert!(matches!(read(&settings(), message), Err(Refused::TooMany { field: "mesh_ranges", .. })));
    let odd = api::Rule { name: "x".repeat(5000), ..api::Rule::default() };
    let read = read(&settings(), workload(vec![odd; 500])).unwrap();
    assert_eq!((read.unknown.len(), read.problems.len()), (MAX_NAMED, MAX_NAMED));
    assert!(read.problems.iter().all(|problem| problem.len() < 300));
}

//! What is remembered of denials, what gives way, and how each kind is explained.

use countersign_policy::{Modes, Principal, Received};
use tokio::sync::watch;

use super::*;
use crate::permit::Permits;
use crate::testing::rules;

const ALLOW: &str = "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
     metadata: {name: frontend, namespace: shop}\nspec: {action: Allow, rules: [{from: [{serviceAccounts: \
     [{namespace: shop, name: frontend}]}], to: [{ports: [80]}]}]}\n";

fn by(account: &str, port: u16) -> Asking {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    Asking::In { who: Some(Arc::new(Principal::parse(&id).unwrap())), source_ip: [10, 0, 0, 9].into(), port }
}

fn nameless(ip: &str, port: u16) -> Asking {
    Asking::In { who: None, source_ip: ip.parse().unwrap(), port }
}

struct Case {
    rules: watch::Sender<Option<Arc<PolicySet>>>,
    permits: Arc<Permits>,
}

impl Case {
    fn new(set: Option<Arc<PolicySet>>) -> Self {
        let (rules, watch) = watch::channel(set);
        Self { rules, permits: Permits::new(watch) }
    }

    fn denied(&self, asking: Asking) -> u64 {
        self.permits.admit(asking).unwrap_err().id
    }

    fn explained(&self, asking: Asking) -> serde_json::Value {
        let id = DenialId(self.denied(asking));
        let explained = serde_json::to_value(self.permits.explain(id).unwrap()).unwrap();
        assert_eq!(explained["denial"]["id"], id.to_string());
        explained
    }
}

#[test]
fn repeats_carry_the_id_of_the_first_and_count() {
    let case = Case::new(Some(rules(ALLOW)));
    let first = case.denied(by("intruder", 80));
    for _ in 0..9 {
        assert_eq!(case.denied(by("intruder", 80)), first);
    }
    let others =
        [case.denied(by("intruder", 81)), case.denied(by("stranger", 80)), case.denied(nameless("10.0.0.9", 80))];
    assert!(others.iter().all(|id| *id != first));
    let list = serde_json::to_value(case.permits.denials().list()).unwrap();
    let counts: Vec<_> = list.as_array().unwrap().iter().map(|one| one["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 1, 1, 10], "the latest first");
    assert_eq!(case.permits.explain(DenialId(first)).unwrap().denial.count, 10);
    // Another revision that denies it for the same reason is the same denial.
    case.rules.send_replace(Some(rules(&ALLOW.replace("80", "90"))));
    assert_eq!(case.denied(by("intruder", 80)), first);
    // Another rule that denies it is another denial, and the first is explained by its own.
    let deny = |name: &str| {
        let text = ALLOW.replace("Allow", "Deny").replace("{name: frontend, ", &format!("{{name: {name}, "));
        case.rules.send_replace(Some(rules(&text)));
        case.denied(by("frontend", 80))
    };
    let (by_one, by_other) = (deny("one"), deny("other"));
    assert_ne!(by_one, by_other);
    for (id, rule) in [(by_one, "shop/one#0"), (by_other, "shop/other#0")] {
        let explained = case.permits.explain(DenialId(id)).unwrap();
        assert_eq!((explained.denial.rule.as_deref(), explained.denial.count), (Some(rule), 1));
        assert!(explained.text.contains(rule), "{}", explained.text);
    }
}

#[test]
fn a_scan_evicts_no_evidence_but_its_own() {
    let case = Case::new(Some(rules(ALLOW)));
    let evidence = [
        case.denied(by("intruder", 80)),
        case.denied(nameless("192.0.2.1", 80)),
        case.denied(nameless("2001:db8::1", 80)),
    ];
    let scanned: Vec<_> = (1..=2000).map(|port| case.denied(by("scanner", port))).collect();
    for port in 1..=2000 {
        case.denied(nameless("198.51.100.1", port));
        case.denied(nameless(&format!("198.51.100.{}", port % 250), port)); // the same network
    }
    let held = |id: u64| case.permits.explain(DenialId(id)).is_some();
    assert!(evidence.into_iter().all(held));
    assert_eq!(scanned.iter().filter(|id| held(**id)).count(), EACH);
    assert!(held(*scanned.last().unwrap()), "its latest stay");
    assert_eq!(case.permits.denials().list().len(), evidence.len() + 2 * EACH);
}

#[test]
fn sources_without_identity_share_one_quota_and_all_is_bounded() {
    let case = Case::new(Some(rules(ALLOW)));
    let evidence = case.denied(by("intruder", 80));
    for net in 0..=255_u16 {
        for port in 1..=4 {
            case.denied(nameless(&format!("10.{net}.0.1"), port));
        }
    }
    assert_eq!(case.permits.denials().list().len(), 1 + NAMELESS);
    for account in 0..200 {
        for port in 1..=10 {
            case.denied(by(&format!("account-{account}"), port));
        }
    }
    let ring = case.permits.denials().lock();
    assert_eq!((ring.entries.len(), ring.by_id.len()), (NAMED + NAMELESS, NAMED + NAMELESS));
    assert_eq!(ring.by_source.values().sum::<usize>(), NAMED + NAMELESS);
    assert!(ring.by_source.values().all(|count| *count <= EACH) && ring.nameless <= NAMELESS);
    assert!(ring.by_id.contains_key(&evidence), "one entry is never of the source that has most");
}

#[test]
fn only_a_few_outdated_rule_sets_are_held() {
    let case = Case::new(Some(rules(ALLOW)));
    let first = case.denied(by("intruder", 80));
    for port in 1..=10 {
        case.rules.send_replace(Some(rules(ALLOW)));
        case.denied(by("scanner", port));
    }
    assert_eq!(case.permits.denials().lock().sets.len(), SETS);
    let explain =
        |in_force: Option<&Arc<PolicySet>>| case.permits.denials().explain(DenialId(first), in_force).unwrap();
    let other = Arc::new(PolicySet::compile("cluster.local", Modes::default(), "r2", Vec::new()));
    for in_force in [None, Some(&other)] {
        let explained = explain(in_force);
        assert!(explained.trace.is_none() && explained.change.contains("no longer held"), "{explained:?}");
    }
    // The same revision is the same rules.
    let explained = explain(Some(&rules(ALLOW)));
    assert!(explained.trace.is_some() && explained.change.contains("shop/intruder"), "{explained:?}");
    assert!(case.permits.explain(DenialId(first)).unwrap().trace.is_some(), "those in force are asked");
    case.denied(by("intruder", 80));
    case.rules.send_replace(Some(rules(&ALLOW.replace("80", "8080"))));
    assert_eq!(case.denied(by("intruder", 80)), first);
    assert!(case.permits.explain(DenialId(first)).is_some());
}

/// Every way to be denied by rules: exactly one reason each, and what to do.
#[test]
fn every_deny_path_gives_exactly_one_reason_and_one_change() {
    let deny = ALLOW
        .replace("name: frontend, namespace: shop}\nspec", "name: no, namespace: shop}\nspec")
        .replace("Allow", "Deny");
    let unknown = Received::Unknown { namespace: "shop".into(), name: "newer".into(), deny: true, feature: 9 };
    let unknown = Arc::new(PolicySet::compile("cluster.local", Modes::default(), "r1", vec![unknown]));
    let mesh_only = std::collections::BTreeMap::from([("countersign.dev/egress".to_owned(), "MeshOnly".to_owned())]);
    let mesh_only = Arc::new(PolicySet::compile("cluster.local", Modes::from_labels(&mesh_only).0, "r1", Vec::new()));
    let out = Asking::Out { meshed: false, address: ([192, 0, 2, 7], 443).into() };
    let cases = [
        (None, by("frontend", 80), "no_rules_known", "let this proxy reach its controller"),
        (Some(rules("")), by("frontend", 80), "no_policy", "no rule binds this workload yet"),
        (Some(rules(ALLOW)), by("intruder", 80), "no_rule_matched", "add shop/intruder to `from[0].serviceAccounts`"),
        (Some(rules(ALLOW)), by("frontend", 81), "no_rule_matched", "add port 81 to `to` of shop/frontend#0"),
        (Some(rules(&format!("{ALLOW}---\n{deny}"))), by("frontend", 80), "denied_by_rule", "the Deny shop/no#0"),
        (Some(unknown), by("frontend", 80), "denied_by_unknown_rule", "update this proxy"),
        (Some(rules(ALLOW)), nameless("192.0.2.7", 80), "plaintext_under_strict", "give the source a sidecar"),
        (Some(mesh_only), out, "egress_mesh_only", "countersign.dev/egress: Any"),
    ];
    let mut reasons = std::collections::BTreeSet::new();
    for (set, asking, reason, change) in cases {
        let known = set.is_some();
        let explained = Case::new(set).explained(asking);
        assert_eq!(explained["denial"]["reason"], reason);
        assert_eq!(explained["denial"]["revision"].as_str(), known.then_some("r1"), "{explained}");
        assert!(explained["change"].as_str().unwrap().contains(change), "{explained}");
        let text = explained["text"].as_str().unwrap();
        assert_eq!(text.matches("denied: ").count(), 1, "{text}");
        assert!(text.contains(&format!("denied: {reason}")) && text.contains(change), "{text}");
        if let Some(trace) = explained["trace"].as_object() {
            assert_eq!(trace["reason"], reason, "the explanation is the decision's own");
        }
        reasons.insert(reason);
    }
    let admits = ["allowed", "not_evaluated"];
    let of_policy = countersign_policy::Reason::ALL.iter().map(|reason| reason.label()).filter(|r| !admits.contains(r));
    for reason in of_policy.chain(["no_rules_known", "egress_mesh_only"]) {
        assert!(reasons.contains(reason), "{reason} is not shown here");
    }
}

#[test]
fn an_explanation_reads_as_this() {
    let case = Case::new(Some(rules(ALLOW)));
    case.denied(by("intruder", 80));
    let explained = case.explained(by("intruder", 80));
    let id = explained["denial"]["id"].as_str().unwrap();
    let expected = format!(
        "{id}, 2 times: denied: no_rule_matched
  source    spiffe://cluster.local/ns/shop/sa/intruder at 10.0.0.9
  port      80
  revision  r1 (mtls Strict, posture Enforce, egress Any)
  nearest   Allow shop/frontend#0: from[0].serviceAccounts asks shop/frontend; saw shop/intruder
  1 rule tried:
    Allow shop/frontend#0: from[0].serviceAccounts asks shop/frontend; saw shop/intruder
  change    add shop/intruder to `from[0].serviceAccounts` of shop/frontend#0
"
    );
    assert_eq!(explained["text"], expected);
}

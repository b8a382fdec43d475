use super::*;

fn object(uid: &str, generation: i64, spec: Value) -> AuthorizationPolicy {
    let metadata =
        json!({"name": "rule", "namespace": "shop", "uid": uid, "generation": generation, "labels": {"a": "b"}});
    serde_json::from_value(json!({"apiVersion": "x", "kind": "y", "metadata": metadata, "spec": spec})).unwrap()
}

fn good() -> Value {
    json!({"action": "Deny", "rules": [{"from": [{"namespaces": ["shop"]}]}]})
}

fn bad() -> Value {
    json!({"action": "Deny", "rules": [{"to": [{"ports": [70000]}]}]})
}

#[test]
fn the_text_of_files_works_unchanged() {
    let known = read(None, object("u", 1, good()), true);
    assert_eq!(known.good.unwrap().policy.name(), "rule");
    assert!(known.bad.is_none() && !known.withholds);
}

#[test]
fn a_bad_one_keeps_what_the_same_object_said_and_the_field_is_named() {
    let first = read(None, object("u", 1, good()), true);
    let second = read(Some(&first), object("u", 2, bad()), false);
    assert!(Arc::ptr_eq(first.good.as_ref().unwrap(), second.good.as_ref().unwrap()) && !second.withholds);
    let problem = second.bad.as_ref().unwrap();
    assert_eq!(
        problem.to_string(),
        "AuthorizationPolicy shop/rule: spec.rules[0].to[0].ports[0]: 70000 is not a port (1-65535)"
    );
    // What was made anew under the name is another: nothing of the old holds.
    let third = read(Some(&second), object("v", 1, bad()), false);
    assert!(third.good.is_none() && !third.withholds);
    let mended = read(Some(&second), object("u", 3, good()), false);
    assert!(mended.bad.is_none());
}

#[test]
fn only_one_that_was_there_at_the_start_and_never_good_withholds() {
    let first = read(None, object("u", 1, bad()), true);
    assert!(first.withholds);
    let still = read(Some(&first), object("u", 2, bad()), false);
    assert!(still.withholds);
    assert!(!read(Some(&still), object("u", 3, good()), false).withholds);
    assert!(!read(None, object("w", 1, bad()), false).withholds);
}

#[test]
fn a_change_of_the_status_alone_is_not_read_again() {
    let first = read(None, object("u", 1, good()), true);
    let mut same = object("u", 1, json!("never read"));
    same.status.conditions.push(Condition { kind: ACCEPTED.into(), ..Condition::default() });
    let second = read(Some(&first), same, false);
    assert!(Arc::ptr_eq(first.good.as_ref().unwrap(), second.good.as_ref().unwrap()) && second.bad.is_none());
    assert_eq!(second.status.conditions.len(), 1);
}

/// As the API server shows it after our write.
fn written(verdict: &Verdict, spec: Value) -> AuthorizationPolicy {
    let mut object = object("u", verdict.generation, spec);
    object.status = serde_json::from_value(json!({"conditions": [verdict.condition("2026-01-01T00:00:00Z")]})).unwrap();
    object
}

#[test]
fn a_status_is_wanted_until_it_is_written_and_every_replica_wants_the_same() {
    let first = read(None, object("u", 1, good()), true);
    let verdict = first.verdict().unwrap();
    assert!(verdict.accepted && verdict.since.is_none() && verdict.generation == 1);
    let told = read(Some(&first), written(&verdict, good()), false);
    assert_eq!(told.verdict(), None);

    // It turns bad. One replica saw it good before, another did not: they say the same.
    let mut turned = written(&verdict, bad());
    turned.metadata.generation = Some(2);
    let saw = read(Some(&told), turned.clone(), false).verdict().unwrap();
    let came_later = read(None, turned, true).verdict().unwrap();
    assert_eq!(saw, came_later);
    assert!(!saw.accepted && saw.since.is_none());
    assert!(saw.message.starts_with("spec.rules[0].to[0].ports[0]: 70000 is not a port"), "{}", saw.message);
    assert_eq!(read(Some(&told), written(&saw, bad()), false).verdict(), None);

    // Bad for another reason: it is bad since the same time.
    let mut worse = written(&saw, json!({"action": "Deny", "rules": []}));
    worse.metadata.generation = Some(3);
    let worse = read(Some(&told), worse, false).verdict().unwrap();
    assert_eq!(worse.since.as_deref(), Some("2026-01-01T00:00:00Z"));
}

#[test]
fn a_status_that_is_none_of_ours_takes_no_rule_away() {
    for status in
        [json!(null), json!("x"), json!({"conditions": "x"}), json!({"conditions": [{"type": 1}]}), json!({"other": 1})]
    {
        let metadata = json!({"name": "rule", "namespace": "shop", "uid": "u", "generation": 1});
        let object = serde_json::from_value(json!({"metadata": metadata, "spec": good(), "status": status})).unwrap();
        assert!(read(None, object, true).good.is_some(), "{status}");
    }
}

#[test]
fn a_spec_that_is_missing_or_none_is_a_bad_policy_and_not_a_broken_list() {
    for spec in [json!(null), json!(1), json!([])] {
        let known = read(None, object("u", 1, spec), true);
        assert!(known.bad.is_some() && known.good.is_none());
    }
}

use super::*;
use crate::index::BuildError;
use crate::testing::{MESH, index, objects, policy, small_mesh, trust_domain, workload, workloads};

fn names(index: &Index, uid: &str) -> Vec<String> {
    let member = index.by_uid(uid).unwrap();
    message(index, member).rules.iter().map(|rule| format!("{}/{}", rule.namespace, rule.name)).collect()
}

fn some_policies() -> Vec<String> {
    vec![
        policy("shop", "b-backend-only", Some("backend"), "Allow"),
        policy("shop", "a-everyone", None, "Deny"),
        policy("other", "theirs", None, "Allow"),
        policy("nobody", "lonely", Some("backend"), "Allow"),
    ]
}

fn mesh_with(policies: &[String]) -> Index {
    small_mesh(&policies.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_rule_is_sent_only_to_workloads_that_it_binds() {
    let index = mesh_with(&some_policies());
    assert_eq!(names(&index, "uid-frontend"), ["shop/a-everyone"]);
    assert_eq!(names(&index, "uid-backend-1"), ["shop/a-everyone", "shop/b-backend-only"]);
    assert_eq!(names(&index, "uid-stranger"), ["other/theirs"]);
}

#[test]
fn a_message_carries_all_that_binds() {
    let index = mesh_with(&some_policies());
    let message = message(&index, index.by_uid("uid-backend-1").unwrap());
    assert_eq!(
        (message.namespace.as_str(), message.name.as_str(), message.node.as_str()),
        ("shop", "backend-1", "node-a")
    );
    let modes = message.modes.unwrap();
    assert_eq!([modes.mtls.as_str(), &modes.posture, &modes.egress], ["Permissive", "Enforce", "Any"]);
    assert_eq!(message.mesh_ranges, ["10.77.0.0/24", "fd77::/64", "10.96.0.0/16", "fd96::/112"]);
    let actions: Vec<_> = message.rules.iter().map(|rule| rule.action()).collect();
    assert_eq!(actions, [api::Action::Deny, api::Action::Allow]);
    for rule in &message.rules {
        let policy = countersign_policy::Policy::from_json(&rule.policy_json).unwrap();
        assert_eq!((policy.namespace(), policy.name()), (rule.namespace.as_str(), rule.name.as_str()));
        assert_eq!(rule.feature, policy.feature_level());
        assert!(rule.feature >= 1);
    }
}

#[test]
fn a_namespace_that_nobody_wrote_down_is_strict() {
    let index = mesh_with(&[]);
    let modes = message(&index, index.by_uid("uid-stranger").unwrap()).modes.unwrap();
    assert_eq!([modes.mtls.as_str(), &modes.posture, &modes.egress], ["Strict", "Enforce", "Any"]);
}

#[test]
fn a_revision_does_not_depend_on_files_nor_on_their_order() {
    let policies = some_policies();
    let one = mesh_with(&policies);
    let together = policies.iter().rev().cloned().collect::<Vec<_>>().join("---\n");
    let workloads = workloads();
    let other = index(&[&together, crate::testing::SERVICES, &workloads, MESH]);
    assert_eq!(one.revision(), other.revision());
    for uid in ["uid-frontend", "uid-backend-1", "uid-stranger"] {
        let (a, b) = (one.by_uid(uid).unwrap(), other.by_uid(uid).unwrap());
        assert_eq!(revision(&one, a), revision(&other, b));
        assert_eq!(message(&one, a), message(&other, b));
    }
}

#[test]
fn a_revision_is_the_same_in_every_build() {
    // Golden: replicas and restarts must agree. It changes when the wire form of a rule does.
    let index = mesh_with(&[]);
    assert_eq!(revision(&index, index.by_uid("uid-frontend").unwrap()), "e1bf7b320fc65e2b1f7aa84819137452");
}

#[test]
fn a_revision_changes_exactly_when_what_binds_changes() {
    let base = mesh_with(&some_policies());
    let of = |index: &Index| revision(index, index.by_uid("uid-frontend").unwrap());
    let mut more = some_policies();
    more.push(policy("shop", "c-backend-too", Some("backend"), "Deny"));
    assert_eq!(of(&base), of(&mesh_with(&more)), "a rule that does not bind it");
    more.push(policy("shop", "d-frontend", Some("frontend"), "Allow"));
    assert_ne!(of(&base), of(&mesh_with(&more)), "a rule that binds it");
    let fewer = &some_policies()[..1];
    assert_ne!(of(&base), of(&mesh_with(fewer)), "a rule is gone");

    let texts = |mesh: &str, workloads: &str| {
        let policies = some_policies();
        let mut texts = vec![mesh, workloads];
        texts.extend(policies.iter().map(String::as_str));
        of(&index(&texts))
    };
    let workloads = workloads();
    let same = texts(MESH, &workloads);
    assert_eq!(of(&base), same, "services do not matter");
    assert_ne!(same, texts(&MESH.replace("Permissive", "Strict"), &workloads), "the mode");
    assert_ne!(same, texts(&MESH.replace("10.96.0.0/16", "10.97.0.0/16"), &workloads), "the ranges");
    assert_ne!(same, texts(MESH, &workloads.replace("node-a", "node-b")), "the node");
    let ready = workloads.replace(", ready: false", "");
    assert_eq!(same, texts(MESH, &ready), "readiness of others");
}

#[test]
fn a_bad_namespace_label_is_reported_and_strict() {
    let index =
        index(&[&MESH.replace("Permissive", "permissive"), &workload("shop", "a", "a", "10.77.0.1", "fd77::1", "")]);
    let rules = index.namespace("shop").unwrap();
    assert_eq!(rules.label_problems.len(), 1);
    assert_eq!(message(&index, index.by_uid("uid-a").unwrap()).modes.unwrap().mtls, "Strict");
}

#[test]
fn two_objects_that_claim_the_same_are_named_both() {
    let conflicts = |second: &str| {
        let (first, second) =
            (objects("a.yaml", &workload("shop", "one", "one", "10.77.0.1", "fd77::1", "")), objects("b.yaml", second));
        let mesh = objects("mesh.yaml", MESH);
        let all: Vec<_> = mesh.iter().chain(&first).chain(&second).collect();
        match Index::build(&all, &trust_domain()) {
            Err(BuildError::Conflicts(conflicts)) => {
                conflicts.iter().map(|conflict| conflict.sides.last().unwrap().to_string()).collect::<Vec<_>>()
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    assert_eq!(
        conflicts(&workload("shop", "two", "two", "10.77.0.1", "fd77::2", "")),
        [
            "b.yaml:4:55: spec.addresses[0]: 10.77.0.1 is claimed by Workload shop/two here and by Workload shop/one at a.yaml:4:55"
        ]
    );
    assert_eq!(
        conflicts(&workload("shop", "two", "two", "10.77.0.2", "::ffff:10.77.0.1", ""))[0],
        "b.yaml:4:66: spec.addresses[1]: 10.77.0.1 is claimed by Workload shop/two here and by Workload shop/one at a.yaml:4:55"
    );
    assert_eq!(
        conflicts(&workload("shop", "two", "two", "10.77.0.2", "fd77::2", "").replace("uid-two", "uid-one")),
        [
            "b.yaml:4:13: spec.uid: UID uid-one is claimed by Workload shop/two here and by Workload shop/one at a.yaml:4:13"
        ]
    );
    assert_eq!(
        conflicts(&workload("shop", "one", "two", "10.77.0.2", "fd77::2", "").replace("uid-one", "uid-2")),
        [
            "b.yaml:3:18: metadata.name: Workload shop/one is claimed by Workload shop/one here and by Workload shop/one at a.yaml:3:18"
        ]
    );
    assert_eq!(
        conflicts(&workload("shop", "two", "two", "10.78.0.2", "fd77::2", "")),
        [
            "b.yaml:4:55: spec.addresses[0]: 10.78.0.2 of Workload shop/two is outside the mesh's podRanges (mesh.yaml:3:18)"
        ]
    );
    let virtual_one = "\
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: s, namespace: shop}
spec: {addresses: [10.95.0.1, 10.77.0.1]}
";
    let said = conflicts(virtual_one);
    assert!(
        said.iter().any(|said| said.contains("10.95.0.1 of Service shop/s is outside the mesh's serviceRanges")),
        "{said:?}"
    );
    assert!(said.iter().any(|said| said.contains("10.77.0.1 is claimed by Service shop/s here")), "{said:?}");
    assert!(
        conflicts(MESH)[0]
            .contains("the one Mesh of a source is claimed by Mesh mesh here and by Mesh mesh at mesh.yaml")
    );
}

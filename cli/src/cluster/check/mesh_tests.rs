use serde_json::json;

use super::*;
use crate::cluster::check::world::tests::{at, world};
use crate::cluster::kinds::Name;

fn refused(message: &str) -> CallError {
    CallError::Refused { code: 403, message: message.to_owned() }
}

fn pod(namespace: &str, sidecar: bool) -> Value {
    let inits = if sidecar {
        json!([{ "name": names::SIDECAR_CONTAINER, "restartPolicy": "Always", "image": "old" }])
    } else {
        json!([])
    };
    json!({
        "metadata": { "namespace": namespace, "name": "a", "creationTimestamp": "1970-01-01T00:00:00Z" },
        "spec": { "initContainers": inits },
        "status": { "phase": "Running" },
    })
}

/// A root that ends so many days from now.
fn root(days: i64) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.not_after = at(0) + time::Duration::days(days);
    params.not_before = at(0) - time::Duration::days(1);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

fn map(namespace: &str, pem: &str) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": names::BUNDLE_CONFIG_MAP }, "data": { names::BUNDLE_KEY: pem } })
}

#[test]
fn an_object_that_is_gone_is_named() {
    let mut world = world();
    world.ours = vec![(Name::new("ClusterRole", None, "countersign-ca").unwrap(), Ok(None))];
    let found = objects(&world);
    assert_eq!(found.state, State::Problem);
    assert!(found.says.contains("ClusterRole countersign-ca"));
}

#[test]
fn a_replica_that_is_missing_is_a_problem() {
    let mut world = world();
    let name = Name::new("Deployment", Some("countersign-system"), names::CA_ACCOUNT).unwrap();
    let with = |have: i64| json!({ "spec": { "replicas": 2 }, "status": { "availableReplicas": have } });
    world.ours = vec![(name.clone(), Ok(Some(with(1))))];
    assert_eq!(processes(&world).state, State::Problem);
    world.ours = vec![(name, Ok(Some(with(2))))];
    assert_eq!(processes(&world).state, State::Ok);
}

#[test]
fn the_webhook_is_reached_if_the_pod_comes_back_with_its_sidecar_or_with_the_injectors_no() {
    let mut world = world();
    for (answer, state) in [
        (Ok(pod("default", true)), State::Ok),
        (Ok(pod("default", false)), State::Problem),
        (Err(refused("admission webhook \"pod.inject.countersign.dev\" denied the request: pod security")), State::Ok),
        (Err(refused("failed calling webhook \"pod.inject.countersign.dev\": no endpoints")), State::Problem),
        (Err(CallError::Forbidden("pods".to_owned())), State::Unknown),
    ] {
        world.tried_pod = answer;
        assert_eq!(injection(&world).state, state);
    }
}

#[test]
fn where_the_api_server_itself_forbids_the_sidecar_the_label_is_named() {
    let mut world = world();
    let message = "pods \"countersign-check-x\" is forbidden: violates PodSecurity \"baseline:latest\": non-default \
                   capabilities (container \"countersign-intercept\" must not include \"NET_ADMIN\")";
    world.tried_pod = Err(CallError::Forbidden(message.to_owned()));
    let found = injection(&world);
    assert_eq!(found.state, State::Problem);
    assert!(found.says.contains(message), "{found:?}");
    assert!(found.todo.unwrap().contains("pod-security.kubernetes.io/enforce=privileged"));
}

#[test]
fn a_bad_rule_that_is_let_in_is_a_problem() {
    let mut world = world();
    for (answer, state) in [
        (Err(refused("spec.checkedField: unknown field")), State::Ok),
        (Ok(json!({ "kind": "AuthorizationPolicy" })), State::Problem),
        (Ok(Value::Null), State::Problem),
        (Err(refused("failed calling webhook")), State::Problem),
    ] {
        world.tried_policy = answer;
        assert_eq!(validation(&world).state, state);
    }
}

#[test]
fn a_webhook_without_a_ca_bundle_or_with_one_that_ended_is_a_problem() {
    use base64::Engine as _;
    let mut world = world();
    let with = |bundle: &str| {
        let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
        json!({ "webhooks": [{ "name": "x", "clientConfig": { "caBundle": bundle } }] })
    };
    for (bundle, state) in [(String::new(), State::Problem), (root(-1 + 1), State::Problem), (root(9), State::Ok)] {
        world.ours = WEBHOOKS.map(|(kind, name)| (named(kind, name), Ok(Some(with(&bundle))))).into();
        assert_eq!(webhook_certificates(&world).state, state, "{bundle}");
    }
    // One of the two is enough for a problem.
    world.ours = WEBHOOKS.map(|(kind, name)| (named(kind, name), Ok(Some(with(&root(9)))))).into();
    world.ours[1].1 = Ok(Some(with("")));
    assert_eq!(webhook_certificates(&world).state, State::Problem);
}

#[test]
fn a_webhooks_certificate_that_nobody_saw_is_never_well() {
    use base64::Engine as _;
    let mut world = world();
    let bundle = base64::engine::general_purpose::STANDARD.encode(root(9));
    let good = || Ok(Some(json!({ "webhooks": [{ "name": "x", "clientConfig": { "caBundle": bundle } }] })));
    let forbidden = || Err(CallError::Forbidden("webhooks".to_owned()));
    let empty = || Ok(Some(json!({ "webhooks": [] })));
    assert_eq!(webhook_certificates(&world).state, State::Problem, "not even asked for");
    for (first, second, state, word) in [
        (good(), good(), State::Ok, "ends"),
        (Ok(None), Ok(None), State::Problem, "MutatingWebhookConfiguration countersign-injector is missing"),
        (good(), Ok(None), State::Problem, "ValidatingWebhookConfiguration countersign-policies is missing"),
        (Ok(None), good(), State::Problem, "countersign-injector"),
        (good(), empty(), State::Problem, "countersign-policies has no webhook"),
        (forbidden(), forbidden(), State::Unknown, "not permitted"),
        (good(), forbidden(), State::Unknown, "not permitted"),
        // What is bad is worse than what could not be seen, and both are said.
        (forbidden(), Ok(None), State::Problem, "not permitted"),
    ] {
        world.ours =
            WEBHOOKS.iter().zip([first, second]).map(|((kind, name), found)| (named(kind, name), found)).collect();
        let found = webhook_certificates(&world);
        assert_eq!(found.state, state, "{found:?}");
        assert!(found.says.contains(word) && !found.says.contains("none"), "{found:?}");
    }
}

fn named(kind: &str, name: &str) -> Name {
    Name::new(kind, None, name).unwrap()
}

#[test]
fn a_root_that_ends_within_a_month_is_to_be_rotated() {
    let mut world = world();
    for (days, state) in [(20, State::Problem), (400, State::Ok)] {
        world.roots = Ok(vec![map("countersign-system", &root(days))]);
        assert_eq!(roots(&world).state, state);
    }
    world.roots = Ok(Vec::new());
    assert_eq!(roots(&world).state, State::Problem);
}

#[test]
fn a_meshed_namespace_with_other_roots_or_none_is_named() {
    let mut world = world();
    let namespace =
        |name: &str, word: &str| json!({ "metadata": { "name": name, "labels": { names::LABEL_INJECT: word } } });
    world.namespaces = Ok(vec![namespace("shop", "enabled"), namespace("other", "disabled")]);
    world.roots = Ok(vec![map("countersign-system", "x"), map("shop", "x")]);
    assert_eq!(copies(&world).state, State::Ok);
    world.roots = Ok(vec![map("countersign-system", "x"), map("shop", "y")]);
    assert!(copies(&world).says.contains("shop"));
}

#[test]
fn a_pod_that_should_be_meshed_and_is_not_is_named() {
    let mut world = world();
    world.namespaces =
        Ok(vec![json!({ "metadata": { "name": "shop", "labels": { names::LABEL_INJECT: "enabled" } } })]);
    world.pods = Ok(vec![pod("shop", false), pod("else", false)]);
    let found = unmeshed(&world);
    assert_eq!((found.state, found.says.as_str()), (State::Problem, "shop/a"));
    world.pods = Ok(vec![pod("shop", true)]);
    assert_eq!(unmeshed(&world).state, State::Ok);
}

#[test]
fn a_pod_with_the_label_among_its_annotations_is_named() {
    let mut world = world();
    world.pods = Ok(vec![pod("shop", false)]);
    assert_eq!(misplaced(&world).state, State::Ok);
    let mut annotated = pod("shop", false);
    annotated["metadata"]["annotations"] = json!({ names::LABEL_INJECT: "enabled" });
    world.pods = Ok(vec![pod("else", false), annotated]);
    let found = misplaced(&world);
    assert_eq!((found.state, found.says.as_str()), (State::Problem, "shop/a"));
    assert!(found.todo.unwrap().contains("metadata.labels"));
    world.pods = Err(CallError::Forbidden("pods".to_owned()));
    assert_eq!(misplaced(&world).state, State::Unknown);
}

#[test]
fn a_sidecar_that_does_not_start_is_named_after_a_minute() {
    let mut world = world();
    world.pods = Ok(vec![pod("shop", true)]);
    world.date = Some("Thu, 01 Jan 1970 00:00:30 GMT".to_owned());
    assert_eq!(sidecars(&world).state, State::Ok);
    world.date = Some("Thu, 01 Jan 1970 00:02:00 GMT".to_owned());
    assert_eq!(sidecars(&world).state, State::Problem);
}

#[test]
fn a_sidecar_of_another_image_than_the_injectors_is_named_and_is_no_problem() {
    let mut world = world();
    world.pods = Ok(vec![pod("shop", true), pod("else", false)]);
    assert_eq!(versions(&world).state, State::Unknown, "nobody says which is the right one");
    let name = Name::new("Deployment", Some("countersign-system"), names::INJECTOR_ACCOUNT).unwrap();
    for (image, says, todo) in [("old", "all run old", false), ("new", "1 do not run new: shop/a", true)] {
        let args = ["--proxy-image-pull-policy=Never".to_owned(), format!("--proxy-image={image}")];
        let injector = json!({ "spec": { "template": { "spec": { "containers": [{ "args": args }] } } } });
        world.ours = vec![(name.clone(), Ok(Some(injector)))];
        let found = versions(&world);
        assert_eq!((found.state, found.says.as_str(), found.todo.is_some()), (State::Ok, says, todo));
    }
}

#[test]
fn a_rule_that_nobody_understands_or_looked_at_is_named() {
    let mut world = world();
    let rule = |status: Value| json!({ "metadata": { "namespace": "shop", "name": "r" }, "status": status });
    let said =
        |word: &str| json!({ "conditions": [{ "type": "Accepted", "status": word, "message": "spec.rules: why" }] });
    for (status, state) in [(said("True"), State::Ok), (said("False"), State::Problem), (json!({}), State::Problem)] {
        world.policies = Ok(vec![rule(status)]);
        assert_eq!(rules(&world).state, state);
    }
}

#[test]
fn a_namespace_with_a_misspelled_label_is_named() {
    let mut world = world();
    let with = |key: &str, word: &str| json!({ "metadata": { "name": "shop", "labels": { key: word } } });
    for (key, word, state) in [
        (names::LABEL_INJECT, "enabled", State::Ok),
        (names::LABEL_INJECT, "Enabled", State::Problem),
        (names::LABEL_MTLS, "Permissive", State::Ok),
        (names::LABEL_MTLS, "permissive", State::Problem),
    ] {
        world.namespaces = Ok(vec![with(key, word)]);
        assert_eq!(labels(&world).state, state, "{key} {word}");
    }
}

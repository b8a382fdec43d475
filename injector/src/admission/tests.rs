use serde_json::json;

use super::*;
use crate::mesh::tests::mesh;

fn review_of(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "aFieldOfTheFuture": 1,
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": "shop", "dryRun": true,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "object": { "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "a" }] } },
            "oldObject": null,
        },
    });
    change(&mut review);
    review.to_string().into_bytes()
}

fn answer(change: impl FnOnce(&mut Value)) -> Value {
    let request = read(&review_of(change)).unwrap();
    new_pod(&request).unwrap();
    let labels = BTreeMap::from([("countersign.dev/inject".to_owned(), "enabled".to_owned())]);
    let answer = mutate(&mesh(&[]).unwrap(), &labels, &Token::random().unwrap(), &request);
    serde_json::from_slice(&answer.body().unwrap()).unwrap()
}

#[test]
fn a_pod_gets_a_patch_and_the_api_servers_uid_back() {
    let answer = answer(|_| ());
    assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    let response = &answer["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = json!({ "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "a" }] } });
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "countersign-intercept");
}

#[test]
fn a_pod_on_the_hosts_network_passes_with_warning_and_audit_annotation() {
    let answer = answer(|review| review["request"]["object"]["spec"]["hostNetwork"] = true.into());
    let response = &answer["response"];
    assert_eq!(response["allowed"], true);
    assert_eq!(response["auditAnnotations"], json!({ "skipped": "host_network" }));
    assert!(response["warnings"][0].as_str().unwrap().contains("spec.hostNetwork"));
    assert_eq!(response.get("patch"), None);
}

#[test]
fn a_refusal_is_forbidden_and_names_the_field() {
    let answer = answer(|review| {
        review["request"]["object"]["metadata"]["annotations"] = json!({ "proxy.countersign.dev/x": "y" });
    });
    let response = &answer["response"];
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("metadata.annotations[\"proxy.countersign.dev/x\"]: is no setting"), "{message}");
}

#[test]
fn no_warning_is_cut_by_the_api_server() {
    let every = json!({
        "hostPID": true, "shareProcessNamespace": true,
        "containers": [{ "name": "a", "securityContext": { "privileged": true, "capabilities": { "add": ["NET_ADMIN"] } } }],
    });
    let answer = answer(|review| review["request"]["object"]["spec"] = every);
    let warnings = answer["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 4);
    assert!(warnings.iter().all(|warning| warning.as_str().unwrap().len() <= 256), "{warnings:?}");
    assert!(Why::HostNetwork.warning().unwrap().len() <= 240);
}

#[test]
fn what_is_no_review_of_a_new_pod_gets_one_clear_sentence() {
    let error = |change: &dyn Fn(&mut Value)| {
        let read = read(&review_of(change)).and_then(|request| new_pod(&request));
        read.unwrap_err().to_string()
    };
    assert!(read(b"{").unwrap_err().to_string().starts_with("not JSON of an AdmissionReview"));
    assert!(read(b"[]").is_err());
    for (said, change) in [
        (
            "apiVersion \"admission.k8s.io/v1beta1\"",
            (|v| v["apiVersion"] = "admission.k8s.io/v1beta1".into()) as fn(&mut Value),
        ),
        ("kind \"Pod\"", |v| v["kind"] = "Pod".into()),
        ("request: is missing", |v| v["request"] = Value::Null),
        ("request.uid: is empty", |v| v["request"]["uid"] = "".into()),
        ("missing field `uid`", |v| v["request"] = json!({})),
        ("request.operation: UPDATE is not CREATE", |v| v["request"]["operation"] = "UPDATE".into()),
        ("request.kind: apps/v1 Deployment is not v1 Pod", |v| {
            v["request"]["kind"] = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
        }),
    ] {
        let message = error(&change);
        assert!(message.contains(said), "{said}: {message}");
    }
}

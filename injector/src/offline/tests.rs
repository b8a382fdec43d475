use serde_json::json;

use super::*;
use crate::mesh::tests::mesh;

const APP: &str = "\
# the service
apiVersion: v1
kind: Service
metadata: {name: web}   # kept as it is
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  template:
    spec:
      containers:
      - name: web
        image: web:1
        livenessProbe: {httpGet: {port: http}}
        ports: [{name: http, containerPort: 8080}]
      volumes:
      - name: files
        configMap: {name: files, defaultMode: 0644}
---
# nothing
";

fn inject(text: &str) -> Result<Done, OfflineError> {
    let token = Token::of("00112233445566778899aabbccddeeff").unwrap();
    run(Task::Inject(&mesh(&[]).unwrap(), &token), "app.yaml", text)
}

fn values(text: &str) -> Vec<Value> {
    documents(text).into_iter().map(|(_, document)| parse(document).unwrap()).collect()
}

#[test]
fn documents_without_a_pod_pass_byte_by_byte_and_in_order() {
    let done = inject(APP).unwrap();
    assert_eq!(done.changed, 1);
    assert!(done.text.starts_with(APP.split("---").next().unwrap()), "{}", done.text);
    assert!(done.text.ends_with("---\n# nothing\n"), "{}", done.text);
    let template = &values(&done.text)[1]["spec"]["template"];
    assert_eq!(template["spec"]["initContainers"][1]["name"], "countersign-proxy");
    assert_eq!(template["metadata"]["labels"], json!({ "countersign.dev/inject": "enabled" }));
    assert_eq!(template["spec"]["volumes"][0]["configMap"]["defaultMode"], 420, "as kubectl reads it");
}

#[test]
fn uninject_gives_back_what_was() {
    let injected = inject(APP).unwrap();
    let back = run(Task::Uninject, "app.yaml", &injected.text).unwrap();
    assert_eq!(back.changed, 1);
    assert_eq!(values(&back.text), values(APP));
    assert_eq!(run(Task::Uninject, "app.yaml", APP).unwrap().text, APP, "nothing to undo, nothing touched");
}

#[test]
fn injecting_what_is_injected_changes_nothing() {
    let once = inject(APP).unwrap();
    let twice = inject(&once.text).unwrap();
    assert_eq!((twice.changed, twice.text), (0, once.text));
}

#[test]
fn every_kind_with_a_pod_in_it_is_known() {
    let pod = json!({ "spec": { "containers": [{ "name": "a" }] } });
    let deep = json!({ "spec": { "jobTemplate": { "spec": { "template": pod } } } });
    let flat = json!({ "spec": { "template": pod } });
    for (version, kind, body) in [
        ("v1", "Pod", &pod),
        ("v1", "PodTemplate", &json!({ "template": pod })),
        ("v1", "ReplicationController", &flat),
        ("apps/v1", "Deployment", &flat),
        ("apps/v1", "StatefulSet", &flat),
        ("apps/v1", "DaemonSet", &flat),
        ("apps/v1", "ReplicaSet", &flat),
        ("batch/v1", "Job", &flat),
        ("batch/v1", "CronJob", &deep),
    ] {
        let mut object = body.clone();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [object, object] });
        assert_eq!(inject(&object.to_string()).unwrap().changed, 1, "{kind}");
        assert_eq!(inject(&list.to_string()).unwrap().changed, 2, "{kind}");
    }
    let other = json!({ "apiVersion": "other.example/v1", "kind": "Deployment", "spec": 1 }).to_string();
    assert_eq!(inject(&other).unwrap().text, other, "somebody else's kind of the same name");
}

#[test]
fn an_error_names_file_line_document_and_field() {
    let bad = APP.replace("containerPort: 8080", "containerPort: 15021");
    let error = inject(&bad).unwrap_err();
    assert_eq!(
        error.to_string(),
        "app.yaml:6: Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort: 15021 is a port of the \
         sidecar itself; spec.template.spec.containers[0].livenessProbe.httpGet.port: 15021 is a port of the sidecar itself"
    );
    let error = inject("a: 1\n---\nb: [1\n").unwrap_err();
    assert!(error.to_string().starts_with("app.yaml:"), "{error}");
    assert!((3..=4).contains(&error.line), "{error}");
    let error = inject("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n").unwrap_err();
    assert_eq!(error.to_string(), "app.yaml:1: Deployment x: spec.template: is missing");
    let list = json!({ "apiVersion": "v1", "kind": "PodList", "items": [{ "apiVersion": "v1", "kind": "Pod" }] });
    assert!(inject(&list.to_string()).unwrap_err().to_string().contains("items[0].spec: is missing"));
}

#[test]
fn who_is_left_out_is_said() {
    let pod = |spec: Value, labels: Value| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "labels": labels }, "spec": spec })
            .to_string()
    };
    let out = inject(&pod(json!({}), json!({ "countersign.dev/inject": "disabled" }))).unwrap();
    assert_eq!((out.changed, out.notes), (0, vec!["app.yaml: Pod p: left out (pod_label)".to_owned()]));
    let host = inject(&pod(json!({ "hostNetwork": true }), json!({}))).unwrap();
    assert!(host.changed == 0 && host.notes[0].contains("spec.hostNetwork"), "{:?}", host.notes);
    let warned = inject(&pod(json!({ "hostPID": true }), json!({}))).unwrap();
    assert!(warned.changed == 1 && warned.notes[0].contains("spec.hostPID"), "{:?}", warned.notes);
}

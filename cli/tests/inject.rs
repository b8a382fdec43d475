//! `countersign inject` and `uninject` as they are typed.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const APP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web} # stays
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: nginx, ports: [{containerPort: 80}]}
";

fn countersign(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        // One that refuses its flags, or a file, reads nothing.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_deployment_gets_its_sidecar_and_loses_it_again() {
    let injected = countersign(&["inject", "-f", "-", "--proxy-image", "example/proxy:7"], APP);
    assert_eq!((injected.status.code(), text(&injected.stderr).as_str()), (Some(0), ""));
    let injected = text(&injected.stdout);
    assert!(injected.starts_with("apiVersion: v1\nkind: Service\nmetadata: {name: web} # stays\n---\n"), "{injected}");
    assert!(injected.contains("image: \"example/proxy:7\""), "{injected}");
    assert_eq!(
        text(&countersign(&["inject", "-f", "-", "--proxy-image", "example/proxy:7"], &injected).stdout),
        injected
    );
    let back = text(&countersign(&["uninject", "-f", "-"], &injected).stdout);
    assert!(!back.contains("countersign"), "{back}");
    assert!(back.contains("containerPort: 80"), "{back}");
}

#[test]
fn a_refusal_prints_nothing_to_apply_and_names_document_and_field() {
    let refused = countersign(&["inject", "-f", "-"], &APP.replace("containerPort: 80", "containerPort: 15021"));
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    let said = text(&refused.stderr);
    assert!(
        said.contains("-:5: Deployment shop/web: spec.template.spec.containers[0].ports[0].containerPort: 15021"),
        "{said}"
    );
    assert_eq!(countersign(&["inject", "-f", "/nonexistent"], "").status.code(), Some(2));
    assert_eq!(countersign(&["inject", "-f", "-", "--max-cpu", "x"], APP).status.code(), Some(2));
}

#[test]
fn who_is_left_out_is_said_on_standard_error() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: true, containers: [{name: a}]}\n";
    let output = countersign(&["inject", "-f", "-"], pod);
    assert_eq!(text(&output.stdout), pod, "byte by byte");
    assert!(text(&output.stderr).contains("Pod p: spec.hostNetwork"), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&countersign(&["inject", "-f", "-", "-o", "json"], APP).stdout).unwrap();
    assert_eq!(json["changed"], 1);
}

/// It would do nothing, and whoever wrote it believes that the pod is left out.
#[test]
fn the_label_among_the_annotations_is_refused_and_told_where_it_belongs() {
    let bad = APP.replace("{labels: {app: web}}", "{annotations: {countersign.dev/inject: disabled}}");
    assert_ne!(bad, APP);
    let refused = countersign(&["inject", "-f", "-"], &bad);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    let said = text(&refused.stderr);
    let field = "-:5: Deployment shop/web: spec.template.metadata.annotations[\"countersign.dev/inject\"]: is a label";
    assert!(said.contains(field), "{said}");
}

/// Probes with a named port, a hook, volumes, an init container, an empty list, an octal mode, numbers and words that other readers take for
/// something else, a list in a list, and documents without a pod.
const MANY: &str = r#"# the shop
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: db
  annotations: {note: "on", version: "1.10"}
spec:
  serviceName: db
  template:
    metadata:
      annotations: {proxy.countersign.dev/log-level: warn}
    spec:
      terminationGracePeriodSeconds: 5
      initContainers:
      - {name: schema, image: "db:1", command: [sh, -c, "a && b\n"]}
      containers:
      - name: db
        image: db:1
        ports: [{name: http, containerPort: 8080}]
        env: [{name: EMPTY, value: ""}, {name: YES, value: "yes"}, {name: N, value: "0x1F"}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 8080}}
        lifecycle: {preStop: {httpGet: {path: /bye, port: http}}}
      volumes:
      - {name: conf, configMap: {name: conf, defaultMode: 0640}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {text: "a: |\n  b\n"}}
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: nightly}
  spec:
    schedule: "0 3 * * *"
    jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: job}], volumes: []}}}}
- apiVersion: v1
  kind: PodList
  items:
  - {apiVersion: v1, kind: Pod, metadata: {name: one, labels: {countersign.dev/inject: enabled}}, spec: {containers: [{name: a, image: a}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: left, labels: {countersign.dev/inject: disabled}}, spec: {containers: [{name: a, image: a}]}}
"#;

/// What a text says to Kubernetes: its documents, read as kubectl reads them, where an empty list or map is none.
fn meaning(text: &str) -> Vec<Value> {
    let documents = text.split("---\n").map(|document| countersign_injector::offline::parse(document).unwrap());
    documents.filter(|document| !document.is_null()).map(without_empty).collect()
}

fn without_empty(value: Value) -> Value {
    let empty =
        |value: &Value| matches!(value, Value::Array(list) if list.is_empty()) || *value == serde_json::json!({});
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(key, value)| (key, without_empty(value)));
            kept.filter(|(_, value)| !empty(value)).collect()
        }
        Value::Array(list) => list.into_iter().map(without_empty).collect(),
        other => other,
    }
}

fn ran(verb: &str, files: &[&Path]) -> Output {
    let files = files.iter().flat_map(|file| ["-f", file.to_str().unwrap()]);
    countersign(&[verb].into_iter().chain(files).collect::<Vec<_>>(), "")
}

#[test]
fn a_file_of_many_kinds_comes_back_with_the_meaning_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let (file, injected) = (dir.path().join("shop.yaml"), dir.path().join("injected.yaml"));
    std::fs::write(&file, MANY).unwrap();
    let output = ran("inject", &[&file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("shop.yaml: Pod left: left out (pod_label)"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), MANY, "the file itself is only read");
    std::fs::write(&injected, &output.stdout).unwrap();

    let documents = meaning(&text(&output.stdout));
    let sidecar = |pod: &Value| pod["spec"]["initContainers"][1]["name"] == "countersign-proxy";
    assert_eq!(documents.len(), 3);
    assert!(sidecar(&documents[1]["spec"]["template"]), "{}", documents[1]);
    let items = &documents[2]["items"];
    assert!(sidecar(&items[1]["spec"]["jobTemplate"]["spec"]["template"]), "{items}");
    assert_eq!((sidecar(&items[2]["items"][0]), sidecar(&items[2]["items"][1])), (true, false), "{items}");
    let probe = &documents[1]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"];
    assert_eq!(*probe, 15020, "the kubelet asks the sidecar");

    let again = ran("inject", &[&injected]);
    assert_eq!(text(&again.stdout), text(&output.stdout), "what is injected stays as it is");
    let back = ran("uninject", &[&injected]);
    assert_eq!(back.status.code(), Some(0), "{}", text(&back.stderr));
    assert_eq!(meaning(&text(&back.stdout)), meaning(MANY));
}

#[test]
fn several_files_come_out_as_one_text_in_their_order_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    // Without a line's end, as editors leave them; JSON, as kubectl prints it.
    let pod =
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}}"#;
    let (app, json) = (file("app.yaml", APP.trim_end()), file("pod.json", pod));
    let map = file("map.yaml", "---\nkind: ConfigMap\napiVersion: v1\nmetadata: {name: m}\n");
    let output = ran("inject", &[&app, &json, &map]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let documents = meaning(&text(&output.stdout));
    let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Service", "Deployment", "Pod", "ConfigMap"], "{}", text(&output.stdout));
    let both = file("both.yaml", &text(&output.stdout));
    let back = meaning(&text(&ran("uninject", &[&both]).stdout));
    let before: Vec<_> = [APP, pod].into_iter().flat_map(meaning).collect();
    assert_eq!(back[..3], before);

    let bad = file("bad.yaml", &APP.replace("containerPort: 80", "containerPort: 15006"));
    let refused = ran("inject", &[&json, &bad]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "nothing of the good one either");
    assert!(text(&refused.stderr).contains("bad.yaml:5: Deployment shop/web: "), "{}", text(&refused.stderr));
}

//! `countersign inject` and `uninject` as they are typed.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

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
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
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
    let json: serde_json::Value =
        serde_json::from_slice(&countersign(&["inject", "-f", "-", "-o", "json"], APP).stdout).unwrap();
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

//! The chart and the plain manifests, before the judges: the real Helm, kubeconform with the schemas of a real API server.
//!
//! Run by `cargo xtask test`. What a judge is missing for is said, and counted as not run. After a change of the chart:
//! `COUNTERSIGN_WRITE=1 cargo test -p countersign-cli --test manifests` writes manifests/install/mesh.yaml anew.
#![allow(clippy::unwrap_used)]

mod demo;
mod judged;
mod least;
mod roads;
mod schemas;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The version of Kubernetes that the chart is rendered for.
const KUBERNETES: &str = "1.34.4";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Helm's or our own values, as a file that goes with the test.
fn values_file(values: &Value) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    file
}

/// `helm template` with these values; what it says if it refuses.
fn chart(helm: &Path, namespace: &str, values: &Value, more: &[&str]) -> Result<String, String> {
    let file = values_file(values);
    let mut command = Command::new(helm);
    command.args(["template", "countersign", "--namespace", namespace, "--kube-version", KUBERNETES]);
    let output =
        command.arg("--values").arg(file.path()).args(more).arg(root().join("manifests/countersign")).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(text(&output)),
    }
}

/// `countersign install` with these values; what it says if it refuses.
fn plain(namespace: &str, values: &Value, more: &[&str]) -> Result<String, String> {
    let file = values_file(values);
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    let output =
        command.args(["install", "--namespace", namespace, "--values"]).arg(file.path()).args(more).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(text(&output)),
    }
}

/// The documents of a manifest, as objects.
fn objects(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

//! Pairs of pods and what becomes of them, to be read by people: `tests/golden/NAME.in.yaml` and either `NAME.out.yaml` (warnings,
//! the places of the patch, the pod) or `NAME.refused.txt` (the message that the API server shows).
//!
//! `# flags: ...` in an input gives flags of the injector, `# namespace: KEY=VALUE ...` labels of the namespace. With
//! `UPDATE_GOLDEN=1` the outputs are written anew, to be looked at in the diff.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use countersign_injector::mesh::{Mesh, MeshArgs};
use countersign_injector::offline;
use countersign_injector::probes::Token;
use countersign_injector::review::{Namespace, Reviewed, review};
use serde_json::{Value, json};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    mesh: MeshArgs,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What `# KEY: ...` says at the beginning of an input.
fn said<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": "));
    lines.flat_map(str::split_whitespace).collect()
}

fn mesh(text: &str) -> Mesh {
    let fixed = ["x", "--proxy-image", "registry.example/countersign-proxy:1"];
    Mesh::check(&Flags::try_parse_from(fixed.into_iter().chain(said(text, "flags"))).unwrap().mesh).unwrap()
}

/// The output's ending and text.
fn outcome(text: &str) -> (&'static str, String) {
    let pod = offline::parse(text).unwrap();
    let labels: BTreeMap<String, String> = said(text, "namespace")
        .iter()
        .map(|label| label.split_once('=').unwrap())
        .map(|(k, v)| (k.into(), v.into()))
        .collect();
    let token = Token::of("00112233445566778899aabbccddeeff").unwrap();
    match review(&mesh(text), Namespace::Known(&labels), &token, &pod) {
        Err(refusal) => ("refused.txt", refusal.to_string().replace("; ", ";\n") + "\n"),
        Ok(Reviewed::Skipped(why)) => {
            ("out.yaml", format!("# skipped: {}\n# warning: {}\n", why.label(), why.warning().unwrap_or("none")))
        }
        Ok(Reviewed::Injected { pod: after, patch, warnings }) => {
            let patch = json!(patch);
            let mut patched = pod;
            let steps: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
            json_patch::patch(&mut patched, &steps).unwrap();
            assert_eq!(patched, after, "the patch is the pod");
            let mut text = String::new();
            warnings.iter().for_each(|warning| text += &format!("# warning: {warning}\n"));
            let ops = patch.as_array().unwrap().iter();
            ops.for_each(|op| text += &format!("# {} {}\n", op["op"].as_str().unwrap(), op["path"].as_str().unwrap()));
            ("out.yaml", text + &offline::to_yaml(&after))
        }
    }
}

#[test]
fn every_pod_becomes_what_it_became() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".in.yaml") else { continue };
        seen += 1;
        let (ending, text) = outcome(&std::fs::read_to_string(entry.path()).unwrap());
        let file = folder().join(format!("{name}.{ending}"));
        if update {
            std::fs::write(&file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|_| format!("{} is not there", file.display()));
        if expected != text {
            wrong.push(format!("{name}: expected\n{expected}\nis\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 15, "only {seen} pods");
}

#[test]
fn every_output_has_its_input() {
    for entry in std::fs::read_dir(folder()).unwrap().map(Result::unwrap) {
        let file = entry.file_name().into_string().unwrap();
        let name = file.split('.').next().unwrap();
        assert!(folder().join(format!("{name}.in.yaml")).exists(), "{file}");
    }
}

/// The order is what holds an app back until the redirect is there, and the settings are what keeps a hijacked sidecar small.
#[test]
fn in_every_output_ours_come_first_with_no_more_rights_than_they_need() {
    for entry in std::fs::read_dir(folder()).unwrap().map(Result::unwrap) {
        let file = entry.file_name().into_string().unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        if !file.ends_with(".out.yaml") || text.starts_with("# skipped") {
            continue;
        }
        let pod = offline::parse(&text).unwrap();
        let init = pod["spec"]["initContainers"].as_array().unwrap();
        let context = |i: usize| &init[i]["securityContext"];
        assert_eq!(
            (&init[0]["name"], &init[1]["name"]),
            (&json!("countersign-intercept"), &json!("countersign-proxy"))
        );
        assert_eq!(context(0)["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }), "{file}");
        assert_eq!(context(1)["capabilities"], json!({ "drop": ["ALL"] }), "{file}");
        assert_eq!((&context(1)["runAsUser"], &context(1)["runAsNonRoot"]), (&json!(1337), &json!(true)), "{file}");
        assert_eq!(init[1]["restartPolicy"], "Always", "{file}");
        for i in 0..2 {
            assert_eq!(context(i)["readOnlyRootFilesystem"], true, "{file}");
            assert_eq!(context(i)["allowPrivilegeEscalation"], false, "{file}");
            assert_eq!(context(i)["privileged"], false, "{file}");
            assert_eq!(context(i)["seccompProfile"], json!({ "type": "RuntimeDefault" }), "{file}");
        }
        // The kubelet gives a projected token to one user alone if all containers name the same.
        assert_ne!(context(0)["runAsUser"], context(1)["runAsUser"], "{file}");
        let token =
            &pod["spec"]["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "countersign-token").unwrap();
        assert_eq!(token["projected"]["defaultMode"], Value::from(0o644), "{file}");
    }
}

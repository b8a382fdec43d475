//! Schemas for kubeconform, one file a kind: from the API server's own description, and from our CRD.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::root;

const DEFINITIONS: &str = "#/definitions/";

/// Writes a schema for each kind that the API server describes, and for our own.
pub fn write(openapi: &Path, out: &Path) {
    let openapi: Value = serde_json::from_str(&std::fs::read_to_string(openapi).unwrap()).unwrap();
    let mut definitions = openapi["definitions"].as_object().unwrap().clone();
    for (name, definition) in &mut definitions {
        tighten(name, definition);
    }
    for definition in definitions.values() {
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let word = |key: &str| kind[key].as_str().unwrap_or_default().to_lowercase();
            let group = word("group")
                .split('.')
                .next()
                .map(|group| format!("-{group}"))
                .filter(|group| group.len() > 1)
                .unwrap_or_default();
            let mut schema = definition.clone();
            let needed = needed(definition, &definitions);
            schema["definitions"] = needed.into_iter().map(|name| (name.clone(), definitions[&name].clone())).collect();
            std::fs::write(out.join(format!("{}{group}-{}.json", word("kind"), word("version"))), schema.to_string())
                .unwrap();
        }
    }
    let crd = std::fs::read_to_string(root().join("manifests/crds/authorizationpolicies.yaml")).unwrap();
    let crd: Value = serde_saphyr::from_str(&crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema.is_object());
    std::fs::write(out.join("authorizationpolicy-policy-v1alpha1.json"), schema.to_string()).unwrap();
}

/// The API server drops what it does not know; here that is a fault. Two types that are written as text or as a number say so.
fn tighten(name: &str, definition: &mut Value) {
    if name.ends_with(".IntOrString") || name.ends_with(".Quantity") {
        *definition = json!({ "type": ["string", "integer", "number"] });
    }
    if definition["properties"].is_object() && definition["additionalProperties"].is_null() {
        definition["additionalProperties"] = json!(false);
    }
}

/// Every definition that one names, through others too.
fn needed(definition: &Value, all: &Map<String, Value>) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut open = named(definition);
    while let Some(name) = open.pop() {
        if needed.insert(name.clone()) {
            open.extend(named(&all[&name]));
        }
    }
    needed
}

fn named(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(DEFINITIONS));
            own.map(str::to_owned).into_iter().chain(fields.values().flat_map(named)).collect()
        }
        Value::Array(items) => items.iter().flat_map(named).collect(),
        _ => Vec::new(),
    }
}

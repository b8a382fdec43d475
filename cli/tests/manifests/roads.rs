//! One mesh, two roads: what Helm installs and what `countersign install` prints are the same objects, whatever the values.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{chart, objects, plain, root, tools};

/// Values that differ from the defaults in every place, and such that leave things out.
fn many() -> Vec<(&'static str, Value)> {
    let everything = json!({
        "mesh": { "trustDomain": "mesh.example", "podRanges": ["10.244.0.0/16", "fd00:10::/48"], "serviceRanges": ["10.96.0.0/12"], "listen": "[::]" },
        "image": { "registry": "registry.example:5000/a/b", "tag": "1.2.3-rc.1", "pullPolicy": "Always", "pullSecrets": [{ "name": "pull" }] },
        "log": "warn,countersign_ca::issue=debug",
        "ca": { "replicas": 3, "leafTTL": "30m", "maxLeafTTL": "2h", "issuerTTL": "7d", "rootTTL": "365d", "auditSize": "2Gi",
                "resources": { "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "cpu": 2, "memory": "2Gi" } } },
        "controller": { "replicas": 1, "resources": { "limits": { "memory": "4Gi" } } },
        "injector": { "replicas": 5, "resources": { "requests": { "cpu": 0.5 } } },
        "proxy": { "cpuRequest": "100m", "memoryRequest": "64Mi", "cpuLimit": "2", "memoryLimit": "none", "logLevel": "debug",
                   "permitAnnotations": ["none"], "maxCpu": "1", "maxMemory": "1Gi", "maxLogLevel": "info", "podSecurityExempt": true },
        "webhooks": { "timeoutSeconds": 5 },
        "networkPolicies": { "enabled": true, "apiServerPorts": [{ "port": 8443, "protocol": "TCP" }],
                             "metricsFrom": [{ "namespaceSelector": { "matchLabels": { "name": "monitoring" } } }, { "ipBlock": { "cidr": "10.0.0.0/8" } }] },
        "scheduling": { "priorityClassName": "mine", "nodeSelector": { "role": "system", "true": "1" },
                        "tolerations": [{ "key": "a", "operator": "Equal", "value": "\"quoted\" ${x}", "effect": "NoSchedule" }] },
        "namespace": { "create": true },
    });
    let empty = json!({
        "ca": { "resources": { "requests": null, "limits": null } },
        "networkPolicies": { "metricsFrom": [] },
        "scheduling": { "priorityClassName": "" },
        "namespace": { "create": true },
    });
    vec![
        ("defaults", json!({ "namespace": { "create": true } })),
        ("everything", everything),
        ("empty", empty),
        (
            "no policies, no namespace",
            json!({ "networkPolicies": { "enabled": false }, "namespace": { "create": false } }),
        ),
    ]
}

/// By kind, namespace and name; without what Helm alone needs to be told.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for mut object in objects(text) {
        let text = |at: &Value| at.as_str().unwrap_or_default().to_owned();
        let name = [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]].map(text).join(" ");
        let metadata = object["metadata"].as_object_mut().unwrap();
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("helm.sh/resource-policy");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        assert!(all.insert(name.clone(), object).is_none(), "{name} stands twice");
    }
    all
}

#[test]
fn helm_and_install_give_equal_objects_whatever_the_values() {
    let Some(helm) = tools::helm() else { return };
    for (what, values) in many() {
        for namespace in ["countersign-system", "mesh"] {
            let ours = by_name(&plain(namespace, &values, &[]).unwrap());
            let helms = by_name(&chart(&helm, namespace, &values, &[]).unwrap());
            let names = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&ours), names(&helms), "{what}");
            for (name, object) in &ours {
                let (ours, helms) = (
                    serde_json::to_string_pretty(object).unwrap(),
                    serde_json::to_string_pretty(&helms[name]).unwrap(),
                );
                assert!(ours == helms, "{what}: {name}:\n{ours}\nand by Helm:\n{helms}");
            }
        }
    }
}

#[test]
fn the_plain_manifest_is_the_chart_with_its_values_names() {
    let Some(helm) = tools::helm() else { return };
    // No name of a namespace, and so nowhere else in the text.
    let namespace = "namespace-of-the-mesh";
    let text = chart(&helm, namespace, &names(), &["--skip-schema-validation"]).unwrap();
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    let documents: Vec<_> =
        documents.filter(|document| !document.contains("\nkind: CustomResourceDefinition\n")).collect();
    let rendered = documents.join("---\n").replace(namespace, "${namespace.name}");
    let file = root().join("manifests/install/mesh.yaml");
    if std::env::var_os("COUNTERSIGN_WRITE").is_some() {
        std::fs::write(&file, &rendered).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap();
    assert!(there == rendered, "{} is not the chart any more: COUNTERSIGN_WRITE=1 writes it anew", file.display());
}

/// Each value's name in its place.
fn names() -> Value {
    let defaults: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(root().join("manifests/countersign/values.yaml")).unwrap())
            .unwrap();
    let rooms = defaults.as_object().unwrap().iter().map(|(room, values)| {
        let named = match values.as_object() {
            Some(values) => {
                values.keys().map(|name| (name.clone(), Value::from(format!("${{{room}.{name}}}")))).collect()
            }
            None => Value::from(format!("${{{room}}}")),
        };
        (room.clone(), named)
    });
    rooms.collect()
}

#[test]
fn bad_values_are_refused_by_both_with_their_names() {
    let helm = tools::helm();
    for (values, name) in [
        (json!({ "mesh": { "trustDomain": "Upper" } }), "trustDomain"),
        (json!({ "mesh": { "podRanges": ["10.0.0.0"] } }), "podRanges"),
        (json!({ "mesh": { "podRanges": "10.0.0.0/8" } }), "podRanges"),
        (json!({ "mesh": { "unknown": 1 } }), "unknown"),
        (json!({ "unknown": {} }), "unknown"),
        (json!({ "image": { "tag": 1.1 } }), "tag"),
        (json!({ "image": { "tag": "a b" } }), "tag"),
        (json!({ "image": { "pullPolicy": "Sometimes" } }), "pullPolicy"),
        (json!({ "log": "info\n  x: y" }), "log"),
        (json!({ "ca": { "replicas": 0 } }), "replicas"),
        (json!({ "ca": { "leafTTL": "1 hour" } }), "leafTTL"),
        (json!({ "ca": { "resources": { "request": {} } } }), "request"),
        (json!({ "proxy": { "permitAnnotations": [] } }), "permitAnnotations"),
        (json!({ "proxy": { "permitAnnotations": ["root"] } }), "permitAnnotations"),
        (json!({ "webhooks": { "timeoutSeconds": 31 } }), "timeoutSeconds"),
        (json!({ "networkPolicies": { "apiServerPorts": [] } }), "apiServerPorts"),
        (json!({ "networkPolicies": { "enabled": "yes" } }), "enabled"),
    ] {
        let said = plain("system", &values, &[]).expect_err(&format!("install took {values}"));
        assert!(said.contains(name), "{values}: {said}");
        if let Some(helm) = &helm {
            let said = chart(helm, "system", &values, &[]).expect_err(&format!("Helm took {values}"));
            assert!(said.contains(name), "{values}: {said}");
        }
    }
}

#[test]
fn every_value_is_documented_and_has_a_schema() {
    let text = std::fs::read_to_string(root().join("manifests/countersign/values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(
        &std::fs::read_to_string(root().join("manifests/countersign/values.schema.json")).unwrap(),
    )
    .unwrap();
    // Each key has a comment of its own, right above it; that of the key before does not count.
    let is_key = |line: &&str| !line.trim_start().starts_with('#') && line.contains(':');
    let is_shallow = |line: &&str| !line.starts_with("   ") && !line.trim_start().starts_with('-');
    let lines: Vec<&str> = text.lines().collect();
    let keys: Vec<_> = (1..lines.len())
        .filter(|at| Some(lines[*at]).as_ref().is_some_and(|line| is_key(line) && is_shallow(line)))
        .collect();
    assert!(keys.len() > 30, "{keys:?}");
    for at in keys {
        assert!(lines[at - 1].trim_start().starts_with("# "), "values.yaml:{}: {} has no comment", at + 1, lines[at]);
    }
    let defaults: Value = serde_saphyr::from_str(&text).unwrap();
    for (room, values) in defaults.as_object().unwrap() {
        assert!(!schema["properties"][room].is_null(), "{room} has no schema");
        for name in values.as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(!schema["properties"][room]["properties"][name].is_null(), "{room}.{name} has no schema");
            assert!(!schema["properties"][room]["required"].as_array().unwrap().is_empty(), "{room}.{name}");
        }
    }
    // `${room.name}` is used somewhere: a value that nothing reads would be a promise that nobody keeps.
    let mesh = std::fs::read_to_string(root().join("manifests/install/mesh.yaml")).unwrap();
    for (room, values) in names().as_object().unwrap() {
        for placeholder in values.as_object().map_or_else(|| vec![values], |values| values.values().collect()) {
            assert!(mesh.contains(placeholder.as_str().unwrap()), "{room}: nothing reads {placeholder}");
        }
    }
}

#[test]
fn chart_programs_and_images_have_one_version() {
    let chart: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(root().join("manifests/countersign/Chart.yaml")).unwrap())
            .unwrap();
    let values: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(root().join("manifests/countersign/values.yaml")).unwrap())
            .unwrap();
    for version in [&chart["version"], &chart["appVersion"], &values["image"]["tag"]] {
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}

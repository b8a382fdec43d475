//! The schema of the kind AuthorizationPolicy, against the parser: it refuses nothing that the parser takes, and by itself most of
//! what the parser refuses. The schema is read here as an API server reads it, as far as it goes; the real judge is in tests/cluster.

#![allow(clippy::unwrap_used)]

use regex::Regex;
use serde_json::{Value, json};

const CRD: &str = include_str!("../../manifests/crds/authorizationpolicies.yaml");

fn crd() -> Value {
    serde_saphyr::from_str(CRD).unwrap()
}

fn schema() -> Value {
    crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the schema says against the value, by field.
fn problems(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut wrong = |what: &str| found.push(format!("{path}: {what}"));
    if value.is_null() && schema["nullable"] == true {
        // Words are asked of a null too, other things are not.
        if schema["enum"].is_array() {
            wrong("enum");
        }
        return;
    }
    let fits = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some(other) => panic!("{other}"),
    };
    if !fits {
        return wrong("type");
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        wrong("enum");
    }
    if let Some(any) = schema["anyOf"].as_array()
        && any.iter().all(|one| !holds(one, value))
    {
        wrong("anyOf");
    }
    if schema["not"].is_object() && holds(&schema["not"], value) {
        wrong("not");
    }
    let beyond = |bound: &str, size: u64, least: bool| {
        schema[bound].as_u64().is_some_and(|bound| if least { size < bound } else { size > bound })
    };
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if beyond("minLength", length, true) || beyond("maxLength", length, false) {
            wrong("length");
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !Regex::new(pattern).unwrap().is_match(text)
        {
            wrong("pattern");
        }
    }
    if let Some(number) = value.as_i64() {
        let below = schema["minimum"].as_i64().is_some_and(|least| number < least);
        if below || schema["maximum"].as_i64().is_some_and(|most| number > most) {
            wrong("bounds");
        }
    }
    if let Some(entries) = value.as_array() {
        let size = entries.len() as u64;
        if beyond("minItems", size, true) || beyond("maxItems", size, false) {
            wrong("items");
        }
        for (i, entry) in entries.iter().enumerate() {
            problems(&schema["items"], entry, &format!("{path}[{i}]"), found);
        }
    }
    if let Some(fields) = value.as_object() {
        let size = fields.len() as u64;
        if beyond("minProperties", size, true) || beyond("maxProperties", size, false) {
            found.push(format!("{path}: properties"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                found.push(format!("{path}.{}: required", name.as_str().unwrap()));
            }
        }
        for (name, field) in fields {
            let known = schema["properties"].get(name).or(schema.get("additionalProperties"));
            if let Some(known) = known {
                problems(known, field, &format!("{path}.{name}"), found);
            }
        }
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let size = |field: &str| match &value[field] {
            Value::Array(entries) => entries.len(),
            Value::Object(fields) => fields.len(),
            _ => usize::MAX,
        };
        // Each expression of the schema, in Rust: a new one must be written here too.
        let (holds, field) = match rule["rule"].as_str().unwrap() {
            "size(self.rules) > 0" => (size("rules") > 0, ".rules"),
            "size(self.matchLabels) > 0" => (size("matchLabels") > 0, ".matchLabels"),
            other => panic!("an expression that this test does not know: {other}"),
        };
        assert_eq!(rule["fieldPath"], field);
        if !holds {
            found.push(format!("{path}{field}: {}", rule["message"].as_str().unwrap()));
        }
    }
}

fn holds(schema: &Value, value: &Value) -> bool {
    let mut found = Vec::new();
    problems(schema, value, "", &mut found);
    found.is_empty()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: rule, namespace: shop}}\nspec: {spec}\n"
    )
}

/// The API server drops a null where the schema does not say `nullable`, and puts in what it says for what is left out.
fn as_stored(schema: &Value, value: &mut Value) {
    let known = |name: &str| schema["properties"].get(name).or(schema.get("additionalProperties"));
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| !field.is_null() || known(name).is_none_or(|known| known["nullable"] == true));
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = field.get("default")
                    && !fields.contains_key(name)
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, field) in fields {
                if let Some(known) = known(name) {
                    as_stored(known, field);
                }
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(|entry| as_stored(&schema["items"], entry)),
        _ => {}
    }
}

/// The object as the API server has it after the schema, and what the schema says against it.
fn stored(text: &str) -> (Value, Vec<String>) {
    let (schema, mut object, mut found) = (schema(), serde_saphyr::from_str(text).unwrap(), Vec::new());
    as_stored(&schema, &mut object);
    problems(&schema, &object, "", &mut found);
    (object, found)
}

fn by_parser(text: &str) -> Option<String> {
    countersign_policy::parse("x", text).err().map(|error| error.to_string())
}

#[test]
fn no_policy_that_the_parser_takes_is_refused_by_the_schema() {
    let many = |count: usize, entry: &str| vec![entry; count].join(", ");
    let good = [
        "{action: Allow, rules: [{}]}".to_owned(),
        "{action: Deny, mode: Audit, selector: {matchLabels: {app: backend, app.kubernetes.io/name: '', x: V1.2_y}}, rules: [{from: []}]}".to_owned(),
        "{action: Allow, mode: Enforce, rules: [{from: [{serviceAccounts: [{namespace: shop, name: frontend}, {namespace: shop, name: '*'}]}]}]}".to_owned(),
        "{action: Allow, rules: [{from: [{serviceAccounts: [{namespace: 0a-b, name: a.b-c.d}]}]}]}".to_owned(),
        "{action: Allow, rules: [{from: [{namespaces: ['*']}, {trustDomains: ['*']}, {namespaces: [shop], trustDomains: [a_b.c-d]}]}]}".to_owned(),
        "{action: Allow, rules: [{from: [{spiffeIds: ['spiffe://partner.example/billing/worker', 'spiffe://a/b']}], to: [{ports: [1, 65535]}]}]}".to_owned(),
        "{action: Allow, rules: [{from: [{unauthenticated: true, ipBlocks: [0.0.0.0/0, '::/0', 'fd00::/8', 10.1.0.0/16]}]}]}".to_owned(),
        "{action: Allow, rules: [{from: [{ipBlocks: ['::ffff:0:0:0/96', '2001:db8::1/128']}]}]}".to_owned(),
        format!("{{action: Allow, rules: [{}]}}", many(1024, "{to: [{ports: [80]}]}")),
        format!("{{action: Allow, rules: [{{to: [{{ports: [{}]}}]}}]}}", many(4096, "80")),
        format!("{{action: Allow, rules: [{{from: [{}]}}]}}", many(4096, "{namespaces: [a]}")),
        format!("{{action: Allow, rules: [{{from: [{{spiffeIds: ['spiffe://td/{}']}}]}}]}}", "a".repeat(2048 - 12)),
        format!("{{action: Allow, rules: [{{from: [{{namespaces: [{}]}}]}}]}}", "n".repeat(63)),
    ];
    for spec in good {
        let (text, short) = (policy(&spec), &spec[..spec.len().min(120)]);
        assert_eq!(by_parser(&text), None, "{short}");
        let (stored, found) = stored(&text);
        assert_eq!(found, [""; 0], "{short}");
        // What is stored means the same.
        let read = countersign_policy::Policy::from_json(&stored.to_string()).map(|policy| vec![policy]);
        assert!(read == countersign_policy::parse("x", &text), "{short} is stored as another policy");
    }
}

#[test]
fn every_bad_policy_is_refused_by_the_parser_and_most_by_the_schema_alone() {
    const FROM: &str = ".spec.rules[0].from[0]";
    let from = |entry: &str| format!("{{action: Allow, rules: [{{from: [{entry}]}}]}}");
    let to = |entry: &str| format!("{{action: Allow, rules: [{{to: {entry}}}]}}");
    // The last: what the schema alone says; empty where only the parser (the webhook) sees it.
    let bad = [
        ("{}".to_owned(), ".spec.action: required".to_owned()),
        ("{action: allow, rules: [{}]}".to_owned(), ".spec.action: enum".to_owned()),
        ("{action: Allow, mode: Loose, rules: [{}]}".to_owned(), ".spec.mode: enum".to_owned()),
        ("{action: Allow}".to_owned(), ".spec.rules: required".to_owned()),
        ("{action: Allow, rules: []}".to_owned(), ".spec.rules: is empty".to_owned()),
        ("{action: Allow, rules: null}".to_owned(), ".spec.rules: required".to_owned()),
        // A null must come as far, too: left out, each of these would mean more.
        ("{action: Allow, selector: null, rules: [{}]}".to_owned(), String::new()),
        ("{action: Allow, selector: {matchLabels: {app: x, tier: null}}, rules: [{}]}".to_owned(), String::new()),
        ("{action: Allow, rules: [{from: null}]}".to_owned(), String::new()),
        ("{action: Allow, rules: [{to: null}]}".to_owned(), String::new()),
        (from("{spiffeIds: null, ipBlocks: [10.0.0.0/8]}"), String::new()),
        (from("{serviceAccounts: null, ipBlocks: [10.0.0.0/8]}"), String::new()),
        (from("{namespaces: null, ipBlocks: [10.0.0.0/8]}"), String::new()),
        (from("{trustDomains: null, ipBlocks: [10.0.0.0/8]}"), String::new()),
        (from("{unauthenticated: null, ipBlocks: [10.0.0.0/8]}"), format!("{FROM}.unauthenticated: enum")),
        (from("{namespaces: [shop], ipBlocks: null}"), String::new()),
        ("{action: Allow, selector: {}, rules: [{}]}".to_owned(), ".spec.selector.matchLabels: required".to_owned()),
        (
            "{action: Allow, selector: {matchLabels: {}}, rules: [{}]}".to_owned(),
            ".spec.selector.matchLabels: is empty".to_owned(),
        ),
        (
            "{action: Allow, selector: {matchLabels: {app: 'a b'}}, rules: [{}]}".to_owned(),
            ".spec.selector.matchLabels.app: pattern".to_owned(),
        ),
        ("{action: Allow, selector: {matchLabels: {'a b': x}}, rules: [{}]}".to_owned(), String::new()),
        // A misspelled field must come as far as to whoever refuses it.
        ("{action: Allow, selectors: {matchLabels: {app: x}}, rules: [{}]}".to_owned(), String::new()),
        ("{action: Allow, rules: [{form: []}]}".to_owned(), String::new()),
        (from("{}"), format!("{FROM}: properties")),
        (from("{unauthenticated: true}"), format!("{FROM}: anyOf")),
        (from("{unauthenticated: false, ipBlocks: [10.0.0.0/8]}"), format!("{FROM}.unauthenticated: enum")),
        (from("{unauthenticated: true, ipBlocks: [10.0.0.0/8], namespaces: [shop]}"), format!("{FROM}: anyOf")),
        (from("{unauthenticated: true, ipBlocks: [10.0.0.0/8], trustDomains: ['*']}"), format!("{FROM}: anyOf")),
        (from("{spiffeIds: ['*']}"), format!("{FROM}.spiffeIds[0]: pattern")),
        (from("{spiffeIds: ['SPIFFE://td/x']}"), format!("{FROM}.spiffeIds[0]: pattern")),
        (from("{spiffeIds: ['spiffe://td']}"), format!("{FROM}.spiffeIds[0]: pattern")),
        (from("{spiffeIds: ['spiffe://td/a/../b']}"), String::new()),
        (from("{spiffeIds: []}"), format!("{FROM}.spiffeIds: items")),
        (from("{namespaces: []}"), format!("{FROM}.namespaces: items")),
        (from("{namespaces: ['']}"), format!("{FROM}.namespaces[0]: pattern")),
        (from("{namespaces: [Shop]}"), format!("{FROM}.namespaces[0]: pattern")),
        (from("{namespaces: ['*', shop]}"), String::new()),
        (
            from("{serviceAccounts: [{namespace: '*', name: x}]}"),
            format!("{FROM}.serviceAccounts[0].namespace: pattern"),
        ),
        (from("{serviceAccounts: [{name: x}]}"), format!("{FROM}.serviceAccounts[0].namespace: required")),
        (from("{trustDomains: [TD]}"), format!("{FROM}.trustDomains[0]: pattern")),
        (from("{ipBlocks: [10.0.0.1]}"), format!("{FROM}.ipBlocks[0]: pattern")),
        (from("{ipBlocks: [10.0.0.1/8]}"), String::new()),
        (from("{ipBlocks: ['::ffff:10.0.0.0/104']}"), String::new()),
        (to("[]"), ".spec.rules[0].to: items".to_owned()),
        (to("[{}]"), ".spec.rules[0].to[0].ports: required".to_owned()),
        (to("[{ports: []}]"), ".spec.rules[0].to[0].ports: items".to_owned()),
        (to("[{ports: [0]}]"), ".spec.rules[0].to[0].ports[0]: bounds".to_owned()),
        (to("[{ports: [70000]}]"), ".spec.rules[0].to[0].ports[0]: bounds".to_owned()),
        (to("[{ports: ['80']}]"), ".spec.rules[0].to[0].ports[0]: type".to_owned()),
        (to("[{ports: [80], methods: [GET]}]"), String::new()),
    ];
    for (spec, schema) in bad {
        let text = policy(&spec);
        assert!(by_parser(&text).is_some(), "the parser takes {spec}");
        let (stored, found) = stored(&text);
        match schema.as_str() {
            "" => {
                assert_eq!(found, [""; 0], "{spec}");
                // What is stored is still what the webhook and the controller refuse: nothing was dropped on the way.
                let refused = countersign_policy::Policy::from_json(&stored.to_string());
                assert!(refused.is_err(), "{spec} is stored as {stored}, which the parser takes");
            }
            want => assert!(found.iter().any(|problem| problem.starts_with(want)), "{spec}: {found:?} without {want}"),
        }
    }
}

/// Structural schemas (apiextensions.k8s.io/v1): a type everywhere, none inside `anyOf` and `not`. Every field of ours is described, and
/// every object below `spec` keeps what it does not know, for the webhook to see.
#[test]
fn the_schema_is_structural_described_and_drops_nothing() {
    fn walk(schema: &Value, path: &str) {
        assert!(schema["type"].is_string(), "{path} has no type");
        let in_spec = path.starts_with(".spec");
        if in_spec && schema["properties"].is_object() {
            assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path} drops what it does not know");
        }
        if in_spec && schema["type"] == "array" {
            assert!(schema["maxItems"].is_u64(), "{path} has no bound");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let inside = format!("{path}.{name}");
            if inside.starts_with(".spec") && !inside.ends_with("ports") {
                assert!(field["description"].is_string() || inside.ends_with("selector"), "{inside} is not described");
            }
            walk(field, &inside);
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if inner.is_object() {
                walk(inner, &format!("{path}[]"));
            }
        }
        let junctors = schema["anyOf"].as_array().into_iter().flatten();
        for junctor in junctors {
            let text = junctor.to_string();
            assert!(!text.contains("\"type\"") && !text.contains("\"description\""), "{path}: {text}");
        }
    }
    walk(&schema(), "");
}

#[test]
fn the_kind_has_status_columns_short_name_and_category() {
    let crd = crd();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(crd["metadata"]["name"], "authorizationpolicies.policy.countersign.dev");
    assert_eq!(
        (&crd["spec"]["names"]["shortNames"], &crd["spec"]["names"]["categories"]),
        (&json!(["azp"]), &json!(["countersign"]))
    );
    assert_eq!(version["subresources"]["status"], json!({}));
    let columns = version["additionalPrinterColumns"].as_array().unwrap().iter();
    let shown: Vec<&str> =
        columns.filter(|column| column["priority"].is_null()).map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(shown, ["Action", "Mode", "Accepted", "Age"]);
    let conditions = &schema()["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
}

//! A rule as it comes to the API server, read by the very parser that the controller uses: what is admitted here is understood there.
//!
//! Called by `server` for `/validate`. Pure. It must never refuse to have labels or finalizers changed on a rule that is bad
//! already: only a new text is judged.

use countersign_policy::{API_VERSION, KIND, Policy};
use serde_json::{Map, Value};

use crate::admission::{Answer, ReadError, Request};

/// Of `metadata`, what a rule's text has; the API server adds more.
const METADATA: [&str; 2] = ["name", "namespace"];
/// Written by the controller, through a door of its own.
const STATUS: &str = "status";

/// Answers for a rule.
///
/// # Errors
/// The request is about something else: the webhook's `rules` are wrong.
pub fn validate(request: &Request) -> Result<Answer, ReadError> {
    let asked = format!("{}/{}", request.kind.group, request.kind.version);
    if asked != API_VERSION || request.kind.kind != KIND {
        let problem = format!(
            "{asked} {} is not {API_VERSION} {KIND}: see `rules` of the webhook's configuration",
            request.kind.kind
        );
        return Err(ReadError::Field { field: "kind", problem });
    }
    if request.operation == "UPDATE" && text(&request.object, "") == text(&request.old_object, "") {
        return Ok(Answer::accepted(request));
    }
    Ok(match Policy::from_json(&Value::from(text(&request.object, &request.namespace)).to_string()) {
        Ok(_) => Answer::accepted(request),
        Err(error) => Answer::denied(request, format!("{}: {}", error.field, error.message)),
    })
}

/// What an author wrote.
fn text(object: &Value, namespace: &str) -> Map<String, Value> {
    let mut text = object.as_object().cloned().unwrap_or_default();
    text.remove(STATUS);
    let metadata = object.get("metadata").and_then(Value::as_object);
    let said = |key: &&str| Some(((*key).to_owned(), metadata?.get(*key)?.clone()));
    let mut kept: Map<String, Value> = METADATA.iter().filter_map(said).collect();
    // The API server fills both in later.
    if let Some(prefix) = metadata.and_then(|metadata| metadata.get("generateName")).and_then(Value::as_str) {
        kept.entry("name")
            .or_insert_with(|| format!("{}x", prefix.get(..prefix.len().min(200)).unwrap_or_default()).into());
    }
    kept.entry("namespace").or_insert_with(|| namespace.into());
    text.insert("metadata".to_owned(), kept.into());
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::read;

    fn rule(ports: Value) -> Value {
        json!({
            "apiVersion": API_VERSION, "kind": KIND,
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "creationTimestamp": null, "generation": 1,
                "managedFields": [{ "manager": "kubectl" }], "labels": { "a": "b" }, "annotations": { "c": "d" },
            },
            "spec": { "action": "Allow", "rules": [{ "to": [{ "ports": ports }] }] },
        })
    }

    fn request(operation: &str, object: Value, old: Value) -> Request {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "operation": operation, "namespace": "shop", "object": object, "oldObject": old,
                "kind": { "group": "policy.countersign.dev", "version": "v1alpha1", "kind": KIND },
            },
        });
        read(review.to_string().as_bytes()).unwrap()
    }

    fn message(operation: &str, object: Value, old: Value) -> Option<String> {
        let answer = validate(&request(operation, object, old)).unwrap();
        assert_eq!(answer.allowed(), answer.message().is_none());
        answer.message().map(str::to_owned)
    }

    #[test]
    fn a_good_rule_passes_with_all_that_the_api_server_adds() {
        assert_eq!(message("CREATE", rule(json!([8080])), Value::Null), None);
        let mut with_status = rule(json!([8080]));
        with_status["status"] = json!({ "conditions": [] });
        assert_eq!(message("UPDATE", with_status, rule(json!([80]))), None);
        let mut unnamed = rule(json!([8080]));
        unnamed["metadata"] = json!({ "generateName": "web-" });
        assert_eq!(message("CREATE", unnamed, Value::Null), None);
    }

    #[test]
    fn a_bad_rule_is_refused_by_its_field() {
        let said = message("CREATE", rule(json!([8080, 70000])), Value::Null).unwrap();
        assert_eq!(said, "spec.rules[0].to[0].ports[1]: 70000 is not a port (1-65535)");
        let mut more = rule(json!([1]));
        more["spec"]["rule"] = json!([]);
        assert!(message("CREATE", more, Value::Null).unwrap().starts_with("spec.rule: "));
        let mut beside = rule(json!([1]));
        beside["specs"] = json!({});
        assert!(message("CREATE", beside, Value::Null).unwrap().starts_with("specs: "));
        assert!(message("UPDATE", rule(json!([0])), rule(json!([1]))).is_some());
    }

    #[test]
    fn a_bad_rule_that_is_there_already_may_lose_its_finalizer() {
        let mut old = rule(json!([0]));
        old["metadata"]["finalizers"] = json!(["x/y"]);
        assert_eq!(message("UPDATE", rule(json!([0])), old), None);
    }

    #[test]
    fn another_kind_is_no_business_of_ours() {
        let mut other = request("CREATE", rule(json!([1])), Value::Null);
        other.kind.kind = "Pod".to_owned();
        assert!(validate(&other).unwrap_err().to_string().starts_with("request.kind: "));
    }
}

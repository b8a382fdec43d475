//! The `caBundle` of our two webhook configurations, kept as the ring says.
//!
//! Called by `upkeep`. Only entries whose service is ours are touched, and each change is bound to the version that was read: what
//! somebody else changed meanwhile is never written over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::names::INJECTOR_ACCOUNT;
use http::header::CONTENT_TYPE;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::Resource as _;
use kube::api::GetParams;
use kube::core::Request;
use kube::core::request::Error as RequestError;
use serde_json::{Value, json};

use super::{CallError, Cluster};

/// The configuration of the injector's own webhooks.
const MUTATING: &str = "countersign-injector";
/// The configuration of the rules' webhook.
const VALIDATING: &str = "countersign-policies";

/// What was found, and is so now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Entries that carry the bundle.
    pub entries: usize,
    /// Entries that did not before.
    pub changed: usize,
}

/// One configuration as it was read.
pub struct Found {
    path: String,
    name: &'static str,
    object: Value,
}

/// Reads both; one that is not installed is left out. To be called *before* the Secret is read: then what is written over them is
/// never older than what they hold.
///
/// # Errors
/// The API server does not tell.
pub async fn find(cluster: &Cluster) -> Result<Vec<Found>, CallError> {
    let both = [
        (MutatingWebhookConfiguration::url_path(&(), None), MUTATING),
        (ValidatingWebhookConfiguration::url_path(&(), None), VALIDATING),
    ];
    let mut found = Vec::new();
    for (path, name) in both {
        let request = Request::new(path.clone()).get(name, &GetParams::default());
        match cluster.ask(request).await {
            Ok(object) => found.push(Found { path, name, object }),
            Err(CallError::Missing) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Puts the bundle (PEM) into every entry of ours that has another.
///
/// # Errors
/// [`CallError::Conflict`]: somebody changed one since it was read.
pub async fn publish(cluster: &Cluster, found: &[Found], bundle: &str) -> Result<Published, CallError> {
    let mut published = Published::default();
    for Found { path, name, object } in found {
        let (entries, patch) = patch(object, &cluster.namespace, &STANDARD.encode(bundle));
        published.entries += entries;
        if patch.is_empty() {
            continue;
        }
        published.changed += patch.len() - 1;
        let request =
            http::Request::patch(format!("{path}/{name}")).header(CONTENT_TYPE, "application/json-patch+json");
        let request = request.body(Value::from(patch).to_string().into_bytes()).map_err(RequestError::BuildRequest);
        match cluster.ask::<Value>(request).await {
            // The test of the version failed.
            Err(CallError::Refused(_)) => return Err(CallError::Conflict),
            other => _ = other?,
        }
    }
    Ok(published)
}

/// How many entries are ours, and the steps for those that have another bundle: none, or the test of the version before them.
fn patch(object: &Value, namespace: &str, bundle: &str) -> (usize, Vec<Value>) {
    let mut entries = 0;
    let mut steps = Vec::new();
    for (i, entry) in object["webhooks"].as_array().into_iter().flatten().enumerate() {
        let service = &entry["clientConfig"]["service"];
        if service["name"] != INJECTOR_ACCOUNT || service["namespace"] != namespace {
            continue;
        }
        entries += 1;
        if entry["clientConfig"]["caBundle"] != bundle {
            steps.push(json!({ "op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": bundle }));
        }
    }
    if !steps.is_empty() {
        let version = &object["metadata"]["resourceVersion"];
        steps.insert(0, json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }));
    }
    (entries, steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_with_our_service_and_another_bundle_are_changed() {
        let entry = |name: &str, namespace: &str, bundle: Value| json!({ "clientConfig": { "service": { "name": name, "namespace": namespace }, "caBundle": bundle } });
        let object = json!({
            "metadata": { "resourceVersion": "7" },
            "webhooks": [
                entry("countersign-injector", "system", json!("new")),
                entry("countersign-injector", "system", json!("old")),
                entry("countersign-injector", "elsewhere", json!("old")),
                entry("other", "system", Value::Null),
                { "clientConfig": { "url": "https://x" } },
                entry("countersign-injector", "system", Value::Null),
            ],
        });
        let (entries, steps) = patch(&object, "system", "new");
        assert_eq!(entries, 3);
        let paths: Vec<_> = steps.iter().map(|step| step["path"].as_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["/metadata/resourceVersion", "/webhooks/1/clientConfig/caBundle", "/webhooks/5/clientConfig/caBundle"]
        );
        assert_eq!((&steps[0]["op"], &steps[0]["value"]), (&json!("test"), &json!("7")));
        assert_eq!(
            patch(&json!({ "webhooks": [entry("countersign-injector", "system", json!("new"))] }), "system", "new"),
            (1, vec![])
        );
    }
}

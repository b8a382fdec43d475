//! Which pods have a sidecar, and which should: the injector's and the controller's words for it, read from objects. Pure.
//!
//! Called by `check` and `uninstall`, and by `places`. It must never take a label of the pod as a sign that it *has* a sidecar.

use countersign_api::names;
use serde_json::Value;

/// Whether a pod has a sidecar: exactly if it has our container among its init containers, with `restartPolicy: Always`.
pub fn has_sidecar(pod: &Value) -> bool {
    let inits = pod["spec"]["initContainers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours =
        |container: &Value| container["name"] == names::SIDECAR_CONTAINER && container["restartPolicy"] == "Always";
    inits.iter().any(ours) && !on_host(pod)
}

/// Whether a pod should have one: its own label goes before its namespace's; pods on the node's network never, nor those that the API server
/// only mirrors: the kubelet has them from a file, and no webhook changes them.
pub fn should(pod: &Value, namespace: Option<&Value>) -> bool {
    let word = label(pod).or_else(|| namespace.and_then(label));
    word == Some("enabled") && !on_host(pod) && !exempt(pod)
}

/// Whether it has not ended and is not about to.
pub fn is_running(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && !has_ended(pod)
}

/// Whether all its containers have ended for good.
pub fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// `namespace/name`.
pub fn place(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// The label by which a namespace or pod is in or out.
pub fn label(object: &Value) -> Option<&str> {
    object["metadata"]["labels"][names::LABEL_INJECT].as_str()
}

/// Whether the label's name stands among a pod's annotations, where it does nothing. The injector refuses such a pod, but is asked only for
/// those that are labelled in.
pub fn has_annotation_for_label(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][names::LABEL_INJECT].is_null()
}

/// Whether it has the node's network.
pub fn on_host(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

/// The webhook leaves these out.
fn exempt(pod: &Value) -> bool {
    pod["metadata"]["namespace"] == "kube-system" || !pod["metadata"]["annotations"][names::MIRROR_POD].is_null()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labelled(word: &str) -> Value {
        json!({ "metadata": { "namespace": "shop", "labels": { names::LABEL_INJECT: word } }, "spec": {} })
    }

    #[test]
    fn the_pods_own_label_goes_before_its_namespaces() {
        let (on, off, none) = (labelled("enabled"), labelled("disabled"), json!({}));
        assert!(should(&on, None) && should(&on, Some(&off)) && should(&none, Some(&on)));
        assert!(!should(&off, Some(&on)) && !should(&none, Some(&off)) && !should(&none, None));
    }

    #[test]
    fn a_mirror_of_a_static_pod_should_have_none() {
        let mut pod = labelled("enabled");
        pod["metadata"]["annotations"] = json!({ names::MIRROR_POD: "2f0a" });
        assert!(!should(&pod, None));
    }

    #[test]
    fn a_pod_on_the_nodes_network_should_have_none_and_has_none() {
        let mut pod = labelled("enabled");
        pod["spec"] = json!({ "hostNetwork": true, "initContainers": [{ "name": names::SIDECAR_CONTAINER, "restartPolicy": "Always" }] });
        assert!(!should(&pod, None) && !has_sidecar(&pod));
    }

    #[test]
    fn a_sidecar_is_a_container_and_not_a_label_or_a_name_alone() {
        let with = |containers: Value| json!({ "spec": containers });
        assert!(has_sidecar(&with(
            json!({ "initContainers": [{ "name": names::SIDECAR_CONTAINER, "restartPolicy": "Always" }] })
        )));
        assert!(!has_sidecar(&with(json!({ "initContainers": [{ "name": names::SIDECAR_CONTAINER }] }))));
        assert!(!has_sidecar(&with(json!({ "containers": [{ "name": names::SIDECAR_CONTAINER }] }))));
        assert!(!has_sidecar(&labelled("enabled")));
    }
}

//! Whether a pod is for us: the namespace's label, the pod's own label, which goes before it, and the host's network.
//!
//! Called by `review`. It must never take a word that it does not know for "no": who labelled a pod wanted something.

use countersign_api::names;

use crate::pod::{Pod, Problem};

/// Whether it gets a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It does.
    In,
    /// It does not, and this is why.
    Out(Why),
}

/// Why a pod gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The pod's own label says so.
    PodLabel,
    /// Neither pod nor namespace is labelled in.
    NamespaceLabel,
    /// It has the node's network: redirect rules there would be the node's.
    HostNetwork,
    /// It only mirrors a static pod, which the kubelet runs from a file and not from what the API server holds.
    MirrorPod,
}

impl Why {
    /// A word for it, in audit annotations and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PodLabel => "pod_label",
            Self::NamespaceLabel => "namespace_label",
            Self::HostNetwork => "host_network",
            Self::MirrorPod => "mirror_pod",
        }
    }

    /// What whoever made the pod should be told.
    #[must_use]
    pub const fn warning(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => Some(
                "spec.hostNetwork: a pod on the node's network gets no sidecar: it is no part of the mesh, and meshed pods \
                 refuse it unless a rule admits it as unauthenticated",
            ),
            Self::MirrorPod => {
                Some("a static pod gets no sidecar at admission: put one into its file (countersign inject)")
            }
            Self::PodLabel | Self::NamespaceLabel => None,
        }
    }
}

/// Decides. `namespace`: the namespace's own label, if it has one.
///
/// # Errors
/// A label with another word than `enabled` and `disabled`.
pub fn of(pod: &Pod, namespace: Option<&str>) -> Result<Membership, Problem> {
    let bad =
        |field: String, word: &str| Problem::new(field, format!("{word:?} is neither \"enabled\" nor \"disabled\""));
    let label = names::LABEL_INJECT;
    match (pod.label(label), namespace) {
        (Some("enabled"), _) | (None, Some("enabled")) => {}
        (Some("disabled"), _) => return Ok(Membership::Out(Why::PodLabel)),
        (None, None | Some("disabled")) => return Ok(Membership::Out(Why::NamespaceLabel)),
        (Some(word), _) => return Err(bad(format!("metadata.labels[{label:?}]"), word)),
        (None, Some(word)) => return Err(bad(format!("the namespace's metadata.labels[{label:?}]"), word)),
    }
    if pod.says("hostNetwork") {
        return Ok(Membership::Out(Why::HostNetwork));
    }
    let mirror = pod.annotations().any(|(key, _)| key == names::MIRROR_POD);
    Ok(if mirror { Membership::Out(Why::MirrorPod) } else { Membership::In })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(label: Option<&str>, namespace: Option<&str>, host: bool) -> Result<Membership, Problem> {
        let mut pod = json!({ "metadata": {}, "spec": { "hostNetwork": host, "containers": [{ "name": "a" }] } });
        if let Some(label) = label {
            pod["metadata"]["labels"] = json!({ names::LABEL_INJECT: label });
        }
        of(&Pod::read(&pod).unwrap(), namespace)
    }

    #[test]
    fn the_pods_own_label_goes_before_its_namespaces() {
        use Membership::{In, Out};
        for (label, namespace, expected) in [
            (None, None, Out(Why::NamespaceLabel)),
            (None, Some("disabled"), Out(Why::NamespaceLabel)),
            (None, Some("enabled"), In),
            (Some("enabled"), None, In),
            (Some("enabled"), Some("disabled"), In),
            (Some("disabled"), Some("enabled"), Out(Why::PodLabel)),
        ] {
            assert_eq!(member(label, namespace, false), Ok(expected), "{label:?} {namespace:?}");
        }
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused_and_never_a_no() {
        assert!(member(Some("true"), Some("enabled"), false).unwrap_err().field.starts_with("metadata.labels"));
        assert!(member(None, Some("yes"), false).unwrap_err().field.starts_with("the namespace's"));
    }

    #[test]
    fn a_pod_on_the_hosts_network_is_left_out_with_a_warning() {
        assert_eq!(member(None, Some("enabled"), true), Ok(Membership::Out(Why::HostNetwork)));
        assert!(Why::HostNetwork.warning().is_some());
        assert_eq!(member(None, None, true), Ok(Membership::Out(Why::NamespaceLabel)), "nobody asked for it");
    }

    #[test]
    fn a_mirror_of_a_static_pod_is_left_alone() {
        let pod = json!({ "metadata": { "annotations": { names::MIRROR_POD: "x" } }, "spec": { "containers": [{ "name": "a" }] } });
        assert_eq!(of(&Pod::read(&pod).unwrap(), Some("enabled")), Ok(Membership::Out(Why::MirrorPod)));
    }
}

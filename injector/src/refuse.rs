//! What no pod with a sidecar can have, and what its author should know of.
//!
//! Called by `review`, on the pod as it was before us. A refusal is for what would break the pod or the mesh's promise to it; a
//! warning is for what weakens it and is the author's to decide.

use countersign_api::ports::PROXY_UID;
use serde_json::Value;

use crate::containers::{OUR_CONTAINERS, OUR_VOLUMES};
use crate::mesh::Mesh;
use crate::pod::{Pod, Problem, name};
use crate::review::Namespace;
use crate::settings::OWN_PORTS;

/// Label by which a namespace asks for a Pod Security level.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// All that speaks against a sidecar in this pod.
pub fn check(mesh: &Mesh, namespace: &Namespace<'_>, pod: &Pod, problems: &mut Vec<Problem>) {
    pod_security(mesh, namespace, problems);
    if pod.spec().pointer("/os/name").and_then(Value::as_str) == Some("windows") {
        problems.push(Problem::new("spec.os.name", "a sidecar runs on Linux only"));
    }
    if pod.spec().get("nodeSelector").and_then(|selector| selector.get(OS)).and_then(Value::as_str) == Some("windows") {
        problems.push(Problem::new(format!("spec.nodeSelector[{OS:?}]"), "a sidecar runs on Linux only"));
    }
    if user(pod.spec()) == Some(PROXY_UID.into()) {
        problems.push(Problem::new("spec.securityContext.runAsUser", own_user()));
    }
    for (list, i, container) in pod.containers() {
        let path = list.path(i);
        if OUR_CONTAINERS.contains(&name(container)) {
            let problem = format!(
                "{:?} is the name of a container that the injector adds, and this one is not it",
                name(container)
            );
            problems.push(Problem::new(format!("{path}.name"), problem));
        }
        if is_own_user(container) {
            problems.push(Problem::new(format!("{path}.securityContext.runAsUser"), own_user()));
        }
        for (j, port) in entries(container, "ports") {
            let number = port.get("containerPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
            if let Some(number) = number.filter(|number| OWN_PORTS.contains(number)) {
                let problem = format!("{number} is a port of the sidecar itself");
                problems.push(Problem::new(format!("{path}.ports[{j}].containerPort"), problem));
            }
        }
        for (j, mount) in entries(container, "volumeMounts") {
            if OUR_VOLUMES.contains(&name(mount)) {
                let problem = format!("{:?} is the sidecar's volume, and no other container's", name(mount));
                problems.push(Problem::new(format!("{path}.volumeMounts[{j}].name"), problem));
            }
        }
    }
    for (i, volume) in pod.list("volumes").iter().enumerate() {
        if OUR_VOLUMES.contains(&name(volume)) {
            let problem = format!("{:?} is the name of a volume that the injector adds", name(volume));
            problems.push(Problem::new(format!("spec.volumes[{i}].name"), problem));
        }
    }
}

/// Label of a node.
const OS: &str = "kubernetes.io/os";

/// Without us saying so, the API server would refuse the pod with a message about a container that its author never wrote.
fn pod_security(mesh: &Mesh, namespace: &Namespace<'_>, problems: &mut Vec<Problem>) {
    let level = namespace.label(POD_SECURITY).filter(|level| matches!(*level, "baseline" | "restricted"));
    let Some(level) = level.filter(|_| !mesh.pod_security_exempt) else { return };
    problems.push(Problem::new(
        format!("the namespace's metadata.labels[{POD_SECURITY:?}]"),
        format!(
            "{level:?} forbids the init container that sets the redirect rules (it needs the capability NET_ADMIN): label the \
             namespace {POD_SECURITY}=privileged, or leave the pod out with countersign.dev/inject=disabled"
        ),
    ));
}

/// Why nobody else may be it.
pub fn own_user() -> String {
    format!("{PROXY_UID} is the sidecar's user: what runs as it passes by the redirect")
}

/// What weakens the sidecar's hold on its pod.
pub fn warnings(pod: &Pod) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, what) in [
        ("hostPID", "processes of this pod see those of the node, and others of the node see the sidecar's"),
        ("shareProcessNamespace", "every container of this pod sees the sidecar's processes"),
    ] {
        if pod.says(key) {
            warnings.push(format!("spec.{key}: {what}; one that runs as root can take the sidecar's keys"));
        }
    }
    for (list, i, container) in pod.containers() {
        let path = format!("{}.securityContext", list.path(i));
        let context = container.get("securityContext").unwrap_or(&Value::Null);
        if context.get("privileged") == Some(&Value::Bool(true)) {
            warnings.push(format!("{path}.privileged: {}", undoes("a privileged container")));
        }
        let added = context.pointer("/capabilities/add").and_then(Value::as_array).into_iter().flatten();
        for (j, capability) in added.enumerate().filter_map(|(j, capability)| Some((j, capability.as_str()?))) {
            // Container runtimes take these in any case, with the kernel's prefix or without.
            if matches!(capability.to_ascii_uppercase().trim_start_matches("CAP_"), "NET_ADMIN" | "ALL") {
                warnings.push(format!("{path}.capabilities.add[{j}]: {}", undoes(capability)));
            }
        }
    }
    warnings
}

fn undoes(what: &str) -> String {
    format!("{what} can remove the redirect rules of its own pod, and so pass by its own sidecar")
}

/// Whether a container asks to run as the sidecar does.
pub fn is_own_user(container: &Value) -> bool {
    user(container) == Some(PROXY_UID.into())
}

fn user(of: &Value) -> Option<u64> {
    of.pointer("/securityContext/runAsUser")?.as_u64()
}

fn entries<'a>(container: &'a Value, key: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    container.get(key).and_then(Value::as_array).into_iter().flatten().enumerate()
}

#[cfg(test)]
mod tests;

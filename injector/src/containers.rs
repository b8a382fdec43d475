//! What is put into a pod: two init containers, three volumes, one annotation.
//!
//! Called by `review`, last before the patch. It must never give a container of ours more than it needs: the one that sets rules
//! has NET_ADMIN and nothing else, and ends; the sidecar has nothing.
//!
//! **Why the sidecar can read its token.** The kubelet writes a projected token with mode 0600 for the one user of the pod, if all
//! containers name the same; with 0640 for the pod's `fsGroup`, which is a group of every container, if there is one; else with the
//! volume's `defaultMode` (kubelet, `FsUserFrom` and `projectedVolumeMounter.collectData`). Our two containers name different users,
//! so the first is never the case, whatever the others are.

use countersign_api::{env, names, ports, probes};
use serde_json::{Value, json};

use crate::mesh::{Mesh, Resources};
use crate::pod::Pod;
use crate::probes::Taken;
use crate::restore::Status;
use crate::settings::Settings;

/// Names of the containers that we add, in their order.
pub const OUR_CONTAINERS: [&str; 2] = [names::INTERCEPT_CONTAINER, names::SIDECAR_CONTAINER];
/// Names of the volumes that we add.
pub const OUR_VOLUMES: [&str; 3] = [TOKEN, BUNDLE, RUN];

const TOKEN: &str = "countersign-token";
const BUNDLE: &str = names::BUNDLE_CONFIG_MAP;
const RUN: &str = "countersign-run";
/// The sidecar's binary; its image holds nothing else.
const BINARY: &str = "/countersign-proxy";
const TOKEN_SECONDS: u64 = 3600;
/// The sidecar's own drain deadline, and what of the pod's grace period is left for the kubelet.
const DRAIN_SECONDS: u64 = 25;
const SPARE_SECONDS: u64 = 5;

/// Puts all of it in. `pod` is as it was before us, its probes turned.
pub fn add(mesh: &Mesh, settings: &Settings, taken: &Taken, labelled: bool, pod: &mut Pod) {
    let grace = pod.spec().get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    let ours = [intercept(mesh, settings), sidecar(mesh, settings, &taken.probes, grace)];
    pod.list_mut("initContainers").splice(0..0, ours);
    pod.list_mut("volumes").extend(volumes());
    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        probes: taken.originals.clone(),
        hook_token: taken.token.as_ref().map(|token| token.as_str().to_owned()),
        labelled,
    };
    let status = json!(status).to_string();
    pod.set("annotations", names::ANNOTATION_STATUS, Some(status));
}

/// Sets the redirect rules, and ends. All that comes after it has the sidecar between itself and the network.
fn intercept(mesh: &Mesh, settings: &Settings) -> Value {
    let mut environment = Vec::new();
    let lists = [
        (env::SKIP_INBOUND_PORTS, joined(&settings.skip_inbound_ports)),
        (env::SKIP_OUTBOUND_PORTS, joined(&settings.skip_outbound_ports)),
        (env::SKIP_OUTBOUND_CIDRS, joined(&settings.skip_outbound_cidrs)),
    ];
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        environment.push(variable(name, &list));
    }
    let mut container = json!({
        "name": names::INTERCEPT_CONTAINER,
        "image": mesh.image,
        "imagePullPolicy": mesh.pull_policy,
        "args": ["intercept", "install"],
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if !environment.is_empty() {
        container["env"] = environment.into();
    }
    container
}

/// A native sidecar: what comes after it waits for its startup probe, and it ends after the apps.
fn sidecar(mesh: &Mesh, settings: &Settings, probes: &probes::Probes, grace: Option<u64>) -> Value {
    json!({
        "name": names::SIDECAR_CONTAINER,
        "image": mesh.image,
        "imagePullPolicy": mesh.pull_policy,
        "restartPolicy": "Always",
        "env": environment(mesh, settings, probes, grace),
        "ports": [{ "name": "cs-metrics", "containerPort": ports::PROXY_HEALTH, "protocol": "TCP" }],
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": ports::PROXY_UID,
            "runAsGroup": ports::PROXY_UID,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        // Nothing listens on this port: only the redirect can make it answer, so the app waits for the rules too.
        "startupProbe": probe("/readyz", ports::SELF_PROOF, 1, 600),
        "readinessProbe": probe("/readyz", ports::SELF_PROOF, 3, 2),
        "livenessProbe": probe("/livez", ports::PROXY_HEALTH, 10, 6),
        // At the beginning of the pod's end, not after the apps: not ready, and serving on.
        "lifecycle": { "preStop": { "exec": { "command": [BINARY, "drain"] } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": TOKEN, "mountPath": names::TOKEN_DIR, "readOnly": true },
            { "name": BUNDLE, "mountPath": names::BUNDLE_DIR, "readOnly": true },
            { "name": RUN, "mountPath": names::RUN_DIR },
        ],
    })
}

fn environment(mesh: &Mesh, settings: &Settings, probes: &probes::Probes, grace: Option<u64>) -> Vec<Value> {
    let mut environment = vec![
        variable(env::TRUST_DOMAIN, &mesh.trust_domain),
        variable(env::SYSTEM_NAMESPACE, &mesh.system_namespace),
        variable(env::CA_ADDRESS, &mesh.ca_address),
        variable(env::CONTROLLER_ADDRESS, &mesh.controller_address),
        variable(env::LOG, &settings.log_level),
        field(env::POD_NAME, "metadata.name"),
        field(env::POD_UID, "metadata.uid"),
        field(env::POD_NAMESPACE, "metadata.namespace"),
        field(env::SERVICE_ACCOUNT, "spec.serviceAccountName"),
        field(env::POD_IPS, "status.podIPs"),
    ];
    if let Some(word) = &settings.access_log {
        environment.push(variable(env::ACCESS_LOG, word));
    }
    // The kubelet kills at the end of the grace period, whatever we still do.
    if let Some(deadline) = grace.map(|grace| grace.saturating_sub(SPARE_SECONDS)).filter(|left| *left < DRAIN_SECONDS)
    {
        environment.push(variable(env::DRAIN_DEADLINE, &format!("{deadline}s")));
    }
    if !probes.is_empty() {
        environment.push(variable(env::PROBES, &json!(probes).to_string()));
    }
    environment
}

/// `$` is doubled: the kubelet would put another variable in place of `$(NAME)`.
fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value.replace('$', "$$") })
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } })
}

fn probe(path: &str, port: u16, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": port, "scheme": "HTTP" },
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    })
}

fn resources(resources: &Resources) -> Value {
    let mut value = json!({
        "requests": { "cpu": resources.cpu_request.as_str(), "memory": resources.memory_request.as_str() },
    });
    let limits = [("cpu", &resources.cpu_limit), ("memory", &resources.memory_limit)];
    for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit.as_ref()?))) {
        value["limits"][name] = limit.as_str().into();
    }
    value
}

fn volumes() -> [Value; 3] {
    let token = json!({
        "audience": names::CA_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "countersign-token",
    });
    [
        json!({ "name": TOKEN, "projected": { "defaultMode": 0o644, "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": BUNDLE, "configMap": { "name": names::BUNDLE_CONFIG_MAP, "defaultMode": 0o644 } }),
        // For the admin socket alone.
        json!({ "name": RUN, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
    ]
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_expands_nothing_in_a_value_of_ours() {
        assert_eq!(variable("A", "/x?a=$(POD_NAME)$$")["value"], "/x?a=$$(POD_NAME)$$$$");
    }
}

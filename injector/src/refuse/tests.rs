use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::mesh::tests::mesh;

fn fields(spec: Value) -> Vec<String> {
    let mut problems = Vec::new();
    let pod = Pod::read(&json!({ "spec": spec })).unwrap();
    check(&mesh(&[]).unwrap(), &Namespace::Asked, &pod, &mut problems);
    problems.into_iter().map(|problem| problem.field).collect()
}

#[test]
fn a_container_that_runs_as_the_sidecars_user_is_refused() {
    let ours = json!({ "runAsUser": 1337 });
    assert_eq!(fields(json!({ "securityContext": ours })), ["spec.securityContext.runAsUser"]);
    assert_eq!(
        fields(json!({
            "initContainers": [{ "name": "i", "securityContext": ours }],
            "containers": [{ "name": "a", "securityContext": { "runAsUser": 1000 } }, { "name": "b", "securityContext": ours }],
        })),
        ["spec.initContainers[0].securityContext.runAsUser", "spec.containers[1].securityContext.runAsUser"]
    );
}

#[test]
fn each_of_the_sidecars_ports_is_refused() {
    for port in [15001, 15006, 15020, 15021] {
        let spec =
            json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80 }, { "containerPort": port }] }] });
        assert_eq!(fields(spec), ["spec.containers[0].ports[1].containerPort"]);
    }
}

#[test]
fn names_of_ours_are_refused_wherever_somebody_else_uses_them() {
    for (list, name) in [
        ("containers", "countersign-proxy"),
        ("initContainers", "countersign-proxy"),
        ("initContainers", "countersign-intercept"),
        ("volumes", "countersign-token"),
        ("volumes", "countersign-bundle"),
        ("volumes", "countersign-run"),
    ] {
        assert_eq!(fields(json!({ list: [{ "name": name }] })), [format!("spec.{list}[0].name")]);
    }
    let mounts = json!([{ "name": "x" }, { "name": "countersign-run" }]);
    assert_eq!(
        fields(json!({ "containers": [{ "name": "a", "volumeMounts": mounts }] })),
        ["spec.containers[0].volumeMounts[1].name"]
    );
}

#[test]
fn windows_is_refused() {
    assert_eq!(fields(json!({ "os": { "name": "windows" } })), ["spec.os.name"]);
    assert_eq!(fields(json!({ "os": { "name": "linux" } })), Vec::<String>::new());
    assert_eq!(fields(json!({ "nodeSelector": { OS: "windows" } })), ["spec.nodeSelector[\"kubernetes.io/os\"]"]);
    assert_eq!(fields(json!({ "nodeSelector": { OS: "linux" } })), Vec::<String>::new());
}

#[test]
fn where_pod_security_forbids_the_init_container_it_is_said() {
    let said = |level: &str, flags: &[&str]| {
        let labels = BTreeMap::from([(POD_SECURITY.to_owned(), level.to_owned())]);
        let mut problems = Vec::new();
        let pod = Pod::read(&json!({ "spec": {} })).unwrap();
        check(&mesh(flags).unwrap(), &Namespace::Known(&labels), &pod, &mut problems);
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for level in ["baseline", "restricted"] {
        let problems = said(level, &[]);
        assert!(problems[0].contains("NET_ADMIN") && problems[0].contains(level), "{problems:?}");
        assert_eq!(said(level, &["--pod-security-exempt"]), Vec::<String>::new());
    }
    assert_eq!(said("privileged", &[]), Vec::<String>::new());
}

#[test]
fn what_only_weakens_the_sidecar_is_warned_about() {
    let pod = Pod::read(&json!({ "spec": {
        "hostPID": true, "shareProcessNamespace": true,
        "containers": [
            { "name": "a", "securityContext": { "privileged": true } },
            { "name": "b", "securityContext": { "capabilities": { "add": ["SYS_TIME", "NET_ADMIN", "CAP_NET_ADMIN", "ALL"] } } },
        ],
    } }));
    let said: Vec<_> = warnings(&pod.unwrap()).into_iter().map(|w| w.split(": ").next().unwrap().to_owned()).collect();
    let add = |i| format!("spec.containers[1].securityContext.capabilities.add[{i}]");
    let expected = ["spec.hostPID", "spec.shareProcessNamespace", "spec.containers[0].securityContext.privileged"];
    assert_eq!(said, expected.map(str::to_owned).into_iter().chain([add(1), add(2), add(3)]).collect::<Vec<_>>());
    let quiet = Pod::read(&json!({ "spec": { "hostPID": false, "containers": [{ "name": "a" }] } })).unwrap();
    assert_eq!(warnings(&quiet), Vec::<String>::new());
}

/// Container runtimes take a capability's name in any case, and with the kernel's prefix.
#[test]
fn a_capability_is_warned_about_however_it_is_spelled() {
    let said = |capability: &str| {
        let added = json!({ "capabilities": { "add": [capability] } });
        let pod = Pod::read(&json!({ "spec": { "containers": [{ "name": "a", "securityContext": added }] } })).unwrap();
        warnings(&pod)
    };
    for capability in [
        "NET_ADMIN",
        "net_admin",
        "Net_Admin",
        "CAP_NET_ADMIN",
        "cap_net_admin",
        "Cap_NET_admin",
        "ALL",
        "all",
        "cap_all",
    ] {
        let said = said(capability);
        assert_eq!(said.len(), 1, "{capability}");
        assert!(said[0].contains(&format!("add[0]: {capability} can remove")), "{said:?}");
    }
    for capability in ["NET_RAW", "net_bind_service", "CAP_SYS_TIME", "NET_ADMINS", "XCAP_NET_ADMIN", "CAP_", ""] {
        assert_eq!(said(capability), Vec::<String>::new(), "{capability}");
    }
}

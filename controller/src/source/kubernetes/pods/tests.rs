use serde_json::{Value, json};

use super::*;
use crate::testing::trust_domain;

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

/// A running pod, changed by JSON merge.
fn known(changes: &Value) -> Known {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "backend-1", "namespace": "shop", "uid": "u1", "labels": {"app": "backend"},
            "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubelet"}], "annotations": {"a": "b"},
        },
        "spec": {
            "serviceAccountName": "backend", "nodeName": "node-a", "containers": [{"name": "app", "image": "x"}],
            "initContainers": [
                {"name": "countersign-intercept", "image": "x"},
                {"name": "countersign-proxy", "image": "x", "restartPolicy": "Always"},
            ],
        },
        "status": {
            "phase": "Running", "podIP": "10.77.0.11", "podIPs": [{"ip": "10.77.0.11"}, {"ip": "fd77::11"}],
            "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}], "startTime": "2026-01-01T00:00:01Z",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
        },
    });
    merge(&mut object, changes);
    read(pod(object), &trust_domain())
}

fn merge(into: &mut Value, changes: &Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                match change {
                    Value::Null => drop(into.remove(key)),
                    change => merge(into.entry(key).or_insert(Value::Null), change),
                }
            }
        }
        (into, changes) => *into = changes.clone(),
    }
}

fn line(known: &Known) -> String {
    let Some(who) = &known.who else { return "nobody".to_owned() };
    let workload = &who.member.workload;
    let addresses: Vec<String> = workload.addresses.iter().map(|at| at.value.to_string()).collect();
    format!(
        "{} {} {}{}{}",
        who.member.id.as_str().trim_start_matches("spiffe://cluster.local"),
        addresses.join(","),
        if workload.meshed { "meshed" } else { "bare" },
        if workload.ready { " ready" } else { "" },
        if workload.node.is_empty() { "" } else { " on a node" },
    )
}

#[test]
fn each_kind_of_pod_has_its_meaning() {
    const WHOLE: &str = "/ns/shop/sa/backend 10.77.0.11,fd77::11";
    let proxy = |container: Value| json!({"spec": {"initContainers": [container]}});
    let table = [
        (json!({}), format!("{WHOLE} meshed ready on a node")),
        // An init container of that name that ends is none of our sidecars, nor is an app's container.
        (proxy(json!({"name": "countersign-proxy"})), format!("{WHOLE} bare ready on a node")),
        (
            proxy(json!({"name": "countersign-proxy", "restartPolicy": "OnFailure"})),
            format!("{WHOLE} bare ready on a node"),
        ),
        (proxy(json!({"name": "other", "restartPolicy": "Always"})), format!("{WHOLE} bare ready on a node")),
        (json!({"spec": {"initContainers": null}}), format!("{WHOLE} bare ready on a node")),
        // The sidecar runs while the pod is still Pending: its address is its own already.
        (
            json!({"status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}}),
            format!("{WHOLE} meshed on a node"),
        ),
        (json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}}), format!("{WHOLE} meshed on a node")),
        (json!({"status": {"phase": "Succeeded"}}), "nobody".to_owned()),
        (json!({"status": {"phase": "Failed"}}), "nobody".to_owned()),
        (json!({"status": {"phase": "Unknown"}}), format!("{WHOLE} meshed ready on a node")),
        (json!({"status": {"podIP": null, "podIPs": null}}), "nobody".to_owned()),
        (json!({"status": {"podIPs": null}}), "/ns/shop/sa/backend 10.77.0.11 meshed ready on a node".to_owned()),
        (
            json!({"spec": {"hostNetwork": true}, "status": {"podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]}}),
            "nobody".to_owned(),
        ),
        (
            json!({"spec": {"serviceAccountName": null, "nodeName": null}}),
            "/ns/shop/sa/default 10.77.0.11,fd77::11 meshed ready".to_owned(),
        ),
        (
            json!({"status": {"podIPs": [{"ip": "::ffff:10.77.0.11"}, {"ip": "nonsense"}, {"ip": "0.0.0.0"}]}}),
            "/ns/shop/sa/backend 10.77.0.11 meshed ready on a node".to_owned(),
        ),
    ];
    for (changes, want) in table {
        assert_eq!(line(&known(&changes)), want, "{changes}");
    }
}

#[test]
fn addresses_of_nodes_are_learned_from_their_pods() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(known(&json!({})).node, [address("192.0.2.1")]);
    let host =
        json!({"spec": {"hostNetwork": true}, "status": {"podIPs": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}});
    let host = known(&host).node;
    assert!(host.contains(&address("192.0.2.1")) && host.contains(&address("2001:db8::1")), "{host:?}");
}

#[test]
fn nothing_that_is_not_used_is_kept() {
    let pod = pod(json!({
        "metadata": {"name": "a", "namespace": "b", "managedFields": [{"manager": "m"}], "annotations": {"k": "v"}, "ownerReferences": []},
        "spec": {"containers": [{"name": "app", "image": "x", "env": [{"name": "a", "value": "b"}]}], "volumes": []},
        "status": {"containerStatuses": [{"name": "app"}]},
    }));
    assert!(pod.metadata.managed_fields.is_none() && pod.metadata.annotations.is_none());
    assert!(!format!("{pod:?}").contains("image"));
}

fn holder_of(pods: &[Known], address: &str) -> Option<String> {
    let address: IpAddr = address.parse().unwrap();
    let members = settle(pods.iter(), &trust_domain());
    let mut holders = members.iter().filter(|m| m.workload.addresses.iter().any(|at| at.value == address));
    let holder = holders.next().map(|member| member.workload.uid.value.to_string());
    assert!(holders.next().is_none(), "two hold {address}");
    holder
}

#[test]
fn a_reused_address_belongs_to_the_newest_pod_that_stays() {
    let pod = |uid: &str, started: &str, more: Value| {
        let mut changes = json!({"metadata": {"uid": uid, "name": uid}, "status": {"startTime": started}});
        merge(&mut changes, &more);
        known(&changes)
    };
    let (early, late) = ("2026-01-01T00:00:01Z", "2026-01-01T09:00:00Z");
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}});
    let table = [
        (pod("old", early, json!({})), pod("new", late, json!({})), "new"),
        // Made earlier and started later: it waited for its node.
        (
            pod("old", early, json!({"metadata": {"creationTimestamp": "2026-01-01T01:00:00Z"}})),
            pod("new", late, json!({})),
            "new",
        ),
        (pod("gone", late, leaving.clone()), pod("stays", early, json!({})), "stays"),
        (pod("ended", late, json!({"status": {"phase": "Succeeded"}})), pod("runs", early, json!({})), "runs"),
        (pod("a", early, json!({})), pod("b", early, json!({})), "b"),
    ];
    for (one, other, want) in table {
        let (one, other) = (&one, &other);
        assert_eq!(holder_of(&[one.clone(), other.clone()], "10.77.0.11").as_deref(), Some(want));
        assert_eq!(holder_of(&[other.clone(), one.clone()], "10.77.0.11").as_deref(), Some(want), "in the other order");
    }
}

#[test]
fn who_lost_an_address_keeps_its_others_and_its_uid() {
    let old = known(&json!({"metadata": {"uid": "old", "name": "old"}}));
    let new = known(&json!({
        "metadata": {"uid": "new", "name": "new"},
        "status": {"startTime": "2026-01-03T00:00:00Z", "podIPs": [{"ip": "10.77.0.11"}]},
    }));
    let pods = [old, new];
    assert_eq!(holder_of(&pods, "10.77.0.11").as_deref(), Some("new"));
    assert_eq!(holder_of(&pods, "fd77::11").as_deref(), Some("old"));
}

use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Option<Known> {
    let object = json!({"metadata": {"name": "backend", "namespace": "shop"}, "spec": spec});
    read(serde_json::from_value(object).unwrap())
}

fn slice(value: Value) -> Slice {
    let mut object = json!({
        "metadata": {"name": "backend-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "backend"}},
        "addressType": "IPv4",
    });
    for (key, value) in value.as_object().unwrap() {
        object[key] = value.clone();
    }
    read_slice(serde_json::from_value(object).unwrap())
}

fn http() -> Known {
    service(json!({"clusterIPs": ["10.96.0.10"], "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]})).unwrap()
}

fn lines(service: &Known, slices: &[Slice]) -> Vec<String> {
    let joined = join(service, slices.iter());
    let line = |listed: &Listed| {
        let ports: Vec<String> = listed.ports.iter().map(|(port, target)| format!("{port}->{target}")).collect();
        let uid = listed.uid.as_deref().unwrap_or("-");
        let ready = if listed.ready { "ready" } else { "unready" };
        format!("{} {uid} {ready} {} [{}]", listed.address, listed.node, ports.join(","))
    };
    joined.listed.iter().map(line).collect()
}

#[test]
fn a_service_is_its_addresses_of_both_families_and_its_tcp_ports() {
    let known = service(json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd96::10"], "selector": {"app": "x"},
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"port": 90}],
        "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
    }))
    .unwrap();
    let joined = join(&known, [].into_iter());
    let addresses: Vec<String> = joined.addresses.iter().map(|at| at.value.to_string()).collect();
    let ports: Vec<u16> = joined.ports.iter().map(|port| port.port).collect();
    assert_eq!((addresses, ports), (vec!["10.96.0.10".to_owned(), "fd96::10".to_owned()], vec![53, 90]));
    assert!(joined.local_only && joined.affinity_seconds == 600 && joined.selector.is_none());
}

#[test]
fn affinity_without_a_time_is_three_hours_and_none_is_none() {
    let seconds = |spec: Value| join(&service(spec).unwrap(), [].into_iter()).affinity_seconds;
    assert_eq!(seconds(json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP"})), 10_800);
    assert_eq!(seconds(json!({"clusterIP": "10.96.0.1", "sessionAffinity": "None"})), 0);
}

#[test]
fn headless_services_have_no_address_and_external_names_are_nothing() {
    let headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]})).unwrap();
    assert!(join(&headless, [].into_iter()).addresses.is_empty());
    assert!(service(json!({"type": "ExternalName", "externalName": "example.org"})).is_none());
}

#[test]
fn named_target_ports_are_what_each_slice_says() {
    let pod = |address: &str, uid: &str| {
        json!({
            "addresses": [address], "conditions": {"ready": true}, "nodeName": "node-a",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "x", "uid": uid},
        })
    };
    let old = slice(
        json!({"endpoints": [pod("10.77.0.11", "u1")], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}),
    );
    let new = slice(json!({"endpoints": [pod("10.77.0.12", "u2")], "ports": [
        {"name": "http", "port": 9090, "protocol": "TCP"}, {"name": "other", "port": 1, "protocol": "TCP"},
    ]}));
    assert_eq!(
        lines(&http(), &[old, new]),
        ["10.77.0.11 u1 ready node-a [80->8080]", "10.77.0.12 u2 ready node-a [80->9090]"]
    );
}

#[test]
fn a_port_of_another_protocol_or_any_port_leads_nowhere() {
    let endpoints = json!([{"addresses": ["10.77.0.11"]}]);
    for port in [
        json!({"name": "http", "port": 8080, "protocol": "UDP"}),
        json!({"name": "http", "protocol": "TCP"}),
        json!({"name": "", "port": 1}),
    ] {
        let slice = slice(json!({"endpoints": endpoints, "ports": [port]}));
        assert_eq!(lines(&http(), &[slice]), ["10.77.0.11 - ready  []"]);
    }
}

#[test]
fn conditions_are_read_as_kubernetes_means_them() {
    let ready = |conditions: Value| {
        let others = json!({"addresses": ["10.77.0.99"], "conditions": {"ready": true}});
        let one = json!({"addresses": ["10.77.0.11"], "conditions": conditions});
        let slice = slice(json!({"endpoints": [one, others], "ports": [{"name": "http", "port": 8080}]}));
        join(&http(), [&slice].into_iter()).listed[0].ready
    };
    assert!(ready(json!({})));
    assert!(ready(json!(null)));
    assert!(ready(json!({"ready": true})));
    assert!(!ready(json!({"ready": false})));
    // On its way out while others are ready: nobody is sent there.
    assert!(!ready(json!({"ready": false, "serving": true, "terminating": true})));
}

#[test]
fn where_nobody_is_ready_those_on_their_way_out_that_serve_are_sent_traffic() {
    let one = |address: &str, conditions: Value| json!({"addresses": [address], "conditions": conditions});
    let slice = slice(json!({"endpoints": [
        one("10.77.0.11", json!({"ready": false, "serving": true, "terminating": true})),
        one("10.77.0.12", json!({"ready": false, "serving": false, "terminating": true})),
        one("10.77.0.13", json!({"ready": false})),
    ], "ports": [{"name": "http", "port": 8080}]}));
    assert_eq!(
        lines(&http(), &[slice]),
        ["10.77.0.11 - ready  [80->8080]", "10.77.0.12 - unready  [80->8080]", "10.77.0.13 - unready  [80->8080]"]
    );
}

#[test]
fn an_endpoint_whose_target_is_in_another_namespace_is_left_out() {
    let target = |namespace: Value| json!({"addresses": ["10.77.0.11"], "targetRef": {"kind": "Pod", "namespace": namespace, "uid": "u"}});
    let read = |namespace: Value| {
        slice(json!({"endpoints": [target(namespace)], "ports": [{"name": "http", "port": 1}]})).endpoints.len()
    };
    assert_eq!((read(json!("other")), read(json!("shop")), read(json!(null))), (0, 1, 1));
}

#[test]
fn an_endpoint_in_two_slices_is_one_and_the_first_address_counts() {
    let in_slice = |ready: bool| {
        slice(json!({
            "endpoints": [{"addresses": ["10.77.0.11", "10.77.0.12"], "conditions": {"ready": ready}}],
            "ports": [{"name": "http", "port": 8080}],
        }))
    };
    assert_eq!(lines(&http(), &[in_slice(false), in_slice(true)]), ["10.77.0.11 - ready  [80->8080]"]);
}

#[test]
fn names_are_no_endpoints_and_a_slice_without_a_service_belongs_to_nobody() {
    assert!(slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]})).endpoints.is_empty());
    let object = json!({"metadata": {"name": "x", "namespace": "shop"}, "addressType": "IPv4", "endpoints": null, "ports": null});
    assert!(read_slice(serde_json::from_value(object).unwrap()).of.is_none());
}

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::answer::{Asked, label, who};
use crate::testing::trust_domain;

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "labels": {"app": "backend"}},
        "spec": {
            "serviceAccountName": "backend", "nodeName": "node-a",
            "initContainers": [{"name": "countersign-proxy", "restartPolicy": "Always"}],
        },
        "status": {
            "phase": "Running", "podIPs": [{"ip": address}], "hostIPs": [{"ip": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIPs": [address], "ports": [{"name": "http", "port": 80}]},
    })
}

/// `(address, uid or "")`.
fn slice(of: &str, endpoints: &[(&str, &str)]) -> Value {
    let endpoints = endpoints.iter().map(|(address, uid)| match *uid {
        "" => json!({"addresses": [address]}),
        uid => json!({"addresses": [address], "targetRef": {"kind": "Pod", "namespace": "shop", "uid": uid}}),
    });
    json!({
        "metadata": {"name": format!("{of}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(), "ports": [{"name": "http", "port": 8080}],
    })
}

fn node(name: &str, range: &str) -> Value {
    json!({
        "metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

fn policy(name: &str, generation: i64, port: i64) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": generation},
        "spec": {"action": "Allow", "rules": [{"to": [{"ports": [port]}]}]},
    })
}

/// One complete list.
fn list<T: DeserializeOwned>(world: &mut World, change: fn(Event<T>) -> Change, objects: &[Value]) {
    world.take(change(Event::Listing));
    for value in objects {
        world.take(change(Event::Listed(object(value.clone()))));
    }
    world.take(change(Event::Complete));
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ranges() -> Ranges {
    Ranges { pods: nets(&["10.77.0.0/16"]), services: nets(&["10.96.0.0/16"]) }
}

/// A small cluster, all of it listed.
fn small() -> World {
    let mut world = World::new(trust_domain(), ranges());
    list(&mut world, Change::Pod, &[pod("shop", "b1", "10.77.0.11"), pod("other", "stranger", "10.77.0.20")]);
    list(&mut world, Change::Service, &[service("backend", "10.96.0.10")]);
    list(&mut world, Change::Slice, &[slice("backend", &[("10.77.0.11", "uid-b1")])]);
    let shop = json!({"metadata": {"name": "shop", "labels": {"countersign.dev/mtls": "Permissive", "x": "y"}}});
    list(&mut world, Change::Namespace, &[shop]);
    list(&mut world, Change::Policy, &[policy("rule", 1, 8080)]);
    list(&mut world, Change::Node, &[node("node-a", "10.77.0.0/24")]);
    world
}

fn index(world: &mut World) -> Arc<Index> {
    world.snapshot().index.unwrap()
}

fn ask(index: &Index, address: &str) -> String {
    let (ip, port) = address.rsplit_once('@').unwrap();
    let answer = who(index, Asked { ip: ip.parse().unwrap(), port: port.parse().unwrap() });
    let Some(countersign_api::controller::answer::Who::Service(service)) = &answer.who else {
        return label(&answer).to_owned();
    };
    let endpoints = service.endpoints.iter().map(|endpoint| {
        use countersign_api::controller::endpoint::Identity;
        let asked = Asked::from_wire(endpoint.address.as_ref().unwrap()).unwrap();
        let who = match endpoint.identity.as_ref().unwrap() {
            Identity::SpiffeId(id) => id.rsplit('/').next().unwrap_or_default().to_owned(),
            Identity::NotMeshed(_) => "bare".to_owned(),
        };
        format!("{}@{}={who}", asked.ip, asked.port)
    });
    endpoints.collect::<Vec<_>>().join(" ")
}

#[test]
fn nothing_is_answered_before_every_watch_was_complete_once() {
    let mut world = World::new(trust_domain(), Ranges { pods: Vec::new(), services: Vec::new() });
    let mut missing = 7;
    let none: [Value; 0] = [];
    let mut listed = |world: &mut World, step: &mut dyn FnMut(&mut World)| {
        let snapshot = world.snapshot();
        assert!(snapshot.index.is_none());
        let waits = snapshot.problems.iter().filter(|problem| problem.message == "is not listed yet").count();
        assert_eq!(waits, missing);
        step(world);
        missing -= 1;
    };
    listed(&mut world, &mut |world| list(world, Change::Pod, &none));
    listed(&mut world, &mut |world| list(world, Change::Service, &none));
    listed(&mut world, &mut |world| list(world, Change::Slice, &none));
    listed(&mut world, &mut |world| list(world, Change::Namespace, &none));
    listed(&mut world, &mut |world| list(world, Change::Policy, &none));
    listed(&mut world, &mut |world| {
        list(
            world,
            Change::Node,
            &[json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.77.0.0/24", "podCIDRs": ["10.77.0.0/24"]}})],
        );
    });
    listed(&mut world, &mut |world| {
        list(
            world,
            Change::Cidr,
            &[json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd96::/108"]}})],
        );
    });
    let index = index(&mut world);
    assert_eq!(index.mesh().pod_ranges, nets(&["10.77.0.0/24"]));
    assert_eq!(index.mesh().service_ranges, nets(&["10.96.0.0/12", "fd96::/108"]));
}

#[test]
fn pods_services_and_rules_are_answered_as_from_files() {
    let mut world = small();
    let snapshot = world.snapshot();
    assert!(snapshot.problems.is_empty() && snapshot.warnings.is_empty(), "{:?}", snapshot.problems);
    let index = snapshot.index.unwrap();
    assert_eq!(ask(&index, "10.77.0.11@8080"), "endpoint");
    assert_eq!(ask(&index, "10.96.0.10@80"), "10.77.0.11@8080=backend");
    assert_eq!(ask(&index, "10.96.0.10@81"), "unknown");
    assert_eq!(ask(&index, "10.77.0.99@80"), "unknown");
    assert_eq!(index.by_uid("uid-b1").unwrap().id.as_str(), "spiffe://cluster.local/ns/shop/sa/backend");
    let shop = index.namespace("shop").unwrap();
    assert_eq!((shop.modes.mtls.as_str(), shop.rules.len()), ("Permissive", 1));
}

#[test]
fn an_endpoint_that_is_not_known_to_be_of_the_services_namespace_is_left_out() {
    let mut world = small();
    type Listed = &'static [(&'static str, &'static str)];
    let table: [(Listed, &str, usize); 8] = [
        // Without saying which pod: whose it is decides.
        (&[("10.77.0.11", "")], "10.77.0.11@8080=backend", 0),
        // A pod of another namespace, meshed or not: neither dialled as itself nor in plaintext.
        (&[("10.77.0.20", "")], "", 1),
        (&[("10.77.0.20", "uid-b1")], "", 1),
        // Inside the ranges, and nobody knows whose.
        (&[("10.77.0.99", "")], "", 1),
        (&[("10.96.0.77", "")], "", 1),
        // The address went to another pod than the slice means.
        (&[("10.77.0.11", "uid-before")], "", 1),
        // Outside: known to be none of the mesh's.
        (&[("203.0.113.5", "")], "203.0.113.5@8080=bare", 0),
        // A service's own address.
        (&[("10.96.0.10", "")], "", 1),
    ];
    for (endpoints, want, left_out) in table {
        world.take(Change::Slice(Event::Set(object(slice("backend", endpoints)))));
        let index = index(&mut world);
        assert_eq!(
            (ask(&index, "10.96.0.10@80").as_str(), index.services()[0].left_out),
            (want, left_out),
            "{endpoints:?}"
        );
    }
}

#[test]
fn a_slice_that_comes_before_its_pod_counts_once_the_pod_is_there() {
    let mut world = small();
    world.take(Change::Slice(Event::Set(object(slice(
        "backend",
        &[("10.77.0.11", "uid-b1"), ("10.77.0.12", "uid-b2")],
    )))));
    assert_eq!(ask(&index(&mut world), "10.96.0.10@80"), "10.77.0.11@8080=backend");
    world.take(Change::Pod(Event::Set(object(pod("shop", "b2", "10.77.0.12")))));
    assert_eq!(ask(&index(&mut world), "10.96.0.10@80"), "10.77.0.11@8080=backend 10.77.0.12@8080=backend");
    // And the pod goes before its slice.
    world.take(Change::Pod(Event::Gone(("shop".into(), "b1".into()))));
    assert_eq!(ask(&index(&mut world), "10.96.0.10@80"), "10.77.0.12@8080=backend");
}

#[test]
fn slices_come_go_and_change_hands() {
    let mut world = small();
    world.take(Change::Service(Event::Set(object(service("front", "10.96.0.11")))));
    assert_eq!(ask(&index(&mut world), "10.96.0.11@80"), "");
    // The same slice is another service's now.
    let mut moved = slice("front", &[("10.77.0.11", "uid-b1")]);
    moved["metadata"]["name"] = "backend-1".into();
    world.take(Change::Slice(Event::Set(object(moved))));
    let now = index(&mut world);
    assert_eq!(
        (ask(&now, "10.96.0.10@80").as_str(), ask(&now, "10.96.0.11@80").as_str()),
        ("", "10.77.0.11@8080=backend")
    );
    world.take(Change::Slice(Event::Gone(("shop".into(), "backend-1".into()))));
    assert_eq!(ask(&index(&mut world), "10.96.0.11@80"), "");
    world.take(Change::Service(Event::Gone(("shop".into(), "front".into()))));
    assert_eq!(ask(&index(&mut world), "10.96.0.11@80"), "unknown");
    // A slice may come before its service, and survive it.
    world.take(Change::Slice(Event::Set(object(slice("front", &[("10.77.0.11", "")])))));
    world.take(Change::Service(Event::Set(object(service("front", "10.96.0.11")))));
    assert_eq!(ask(&index(&mut world), "10.96.0.11@80"), "10.77.0.11@8080=backend");
}

#[test]
fn a_new_list_takes_away_what_is_not_in_it_and_not_before_it_is_complete() {
    let mut world = small();
    world.take(Change::Pod(Event::Listing));
    world.take(Change::Pod(Event::Listed(object(pod("shop", "b2", "10.77.0.12")))));
    let during = index(&mut world);
    assert_eq!((ask(&during, "10.77.0.11@1").as_str(), ask(&during, "10.77.0.12@1").as_str()), ("endpoint", "unknown"));
    world.take(Change::Pod(Event::Complete));
    let after = index(&mut world);
    assert_eq!((ask(&after, "10.77.0.11@1").as_str(), ask(&after, "10.77.0.12@1").as_str()), ("unknown", "endpoint"));
    list::<objects::Service>(&mut world, Change::Service, &[]);
    list::<objects::AuthorizationPolicy>(&mut world, Change::Policy, &[]);
    let none = index(&mut world);
    assert_eq!(ask(&none, "10.96.0.10@80"), "unknown");
    assert!(none.namespace("shop").unwrap().rules.is_empty());
}

#[test]
fn a_broken_watch_takes_nothing_away_and_is_said_until_it_is_well() {
    let mut world = small();
    let before = index(&mut world).revision().to_owned();
    let broke = Change::Broke { what: PODS, why: "connection refused".into() };
    assert!(world.take(broke).picture);
    let again = Change::Broke { what: PODS, why: "connection refused".into() };
    assert!(!world.take(again).picture, "the same again is no news");
    let snapshot = world.snapshot();
    assert_eq!(snapshot.index.unwrap().revision(), before);
    assert_eq!(snapshot.problems[0].to_string(), "pods: is not watched: connection refused; what was known goes on");
    assert!(world.take(Change::Mended(PODS)).picture);
    assert!(world.snapshot().problems.is_empty());
    world.take(Change::Broke { what: PODS, why: "gone".into() });
    world.take(Change::Pod(Event::Set(object(pod("shop", "b1", "10.77.0.11")))));
    assert!(world.snapshot().problems.is_empty());
}

#[test]
fn node_addresses_and_the_api_server_inside_the_ranges_are_known_to_be_bare() {
    // As in networks where nodes and pods share one range.
    let mut world = World::new(trust_domain(), Ranges { pods: nets(&["10.77.0.0/16", "192.0.2.0/24"]), ..ranges() });
    let api = json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"name": "https", "port": 443}]}});
    let at = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.77"]}], "ports": [{"name": "https", "port": 6443}],
    });
    list(&mut world, Change::Pod, &[pod("shop", "b1", "10.77.0.11")]);
    list(&mut world, Change::Service, &[api]);
    list(&mut world, Change::Slice, &[at]);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::Node>(&mut world, Change::Node, &[]);
    list::<objects::AuthorizationPolicy>(&mut world, Change::Policy, &[]);
    let index = index(&mut world);
    assert_eq!(ask(&index, "10.96.0.1@443"), "192.0.2.77@6443=bare");
    assert_eq!(ask(&index, "192.0.2.1@10250"), "not_meshed");
    assert_eq!(ask(&index, "192.0.2.9@1"), "unknown");
}

/// The node's side of its pods' network: its own connections, and what came in by a node port, come from there.
#[test]
fn a_nodes_bridge_is_bare_unless_a_pod_has_that_address_and_heartbeats_change_nothing() {
    let mut world = small();
    let now = index(&mut world);
    assert_eq!((ask(&now, "10.77.0.1@1").as_str(), ask(&now, "10.77.0.2@1").as_str()), ("not_meshed", "unknown"));
    assert!(!world.take(Change::Node(Event::Set(object(node("node-a", "10.77.0.0/24"))))).picture);
    world.take(Change::Pod(Event::Set(object(pod("shop", "first", "10.77.0.1")))));
    assert_eq!(ask(&index(&mut world), "10.77.0.1@1"), "endpoint");
    // Another node: its bridge, too.
    assert!(world.take(Change::Node(Event::Set(object(node("node-b", "10.77.1.0/24"))))).picture);
    assert_eq!(ask(&index(&mut world), "10.77.1.1@1"), "not_meshed");
    world.take(Change::Node(Event::Gone((String::new(), "node-b".into()))));
    assert_eq!(ask(&index(&mut world), "10.77.1.1@1"), "unknown");
}

#[test]
fn ranges_of_nodes_are_put_together() {
    let mut world = World::new(trust_domain(), Ranges { pods: Vec::new(), ..ranges() });
    list::<objects::Pod>(&mut world, Change::Pod, &[]);
    list::<objects::Service>(&mut world, Change::Service, &[]);
    list::<objects::EndpointSlice>(&mut world, Change::Slice, &[]);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::AuthorizationPolicy>(&mut world, Change::Policy, &[]);
    list(&mut world, Change::Node, &[node("a", "10.77.0.0/24"), node("b", "10.77.1.0/24"), node("c", "10.77.9.0/24")]);
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23", "10.77.9.0/24"]));
    world.take(Change::Node(Event::Gone((String::new(), "c".into()))));
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23"]));
    list::<objects::Node>(&mut world, Change::Node, &[]);
    let snapshot = world.snapshot();
    assert_eq!(snapshot.index.unwrap().mesh().pod_ranges, nets(&["10.77.0.0/23"]), "no nodes at all is not believed");
    assert_eq!(snapshot.problems[0].to_string(), "nodes: no node has podCIDRs: set --pod-range");
}

/// Without `--pod-range`: three nodes, and these pods.
fn of_nodes(pods: &[Value]) -> World {
    let mut world = World::new(trust_domain(), Ranges { pods: Vec::new(), ..ranges() });
    list(&mut world, Change::Pod, pods);
    list::<objects::Service>(&mut world, Change::Service, &[]);
    list::<objects::EndpointSlice>(&mut world, Change::Slice, &[]);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::AuthorizationPolicy>(&mut world, Change::Policy, &[]);
    list(&mut world, Change::Node, &[node("a", "10.77.0.0/24"), node("b", "10.77.1.0/24"), node("c", "10.77.9.0/24")]);
    world
}

fn gone(name: &str) -> Change {
    Change::Node(Event::Gone((String::new(), name.to_owned())))
}

fn bare_pod(name: &str, address: &str) -> Value {
    let mut bare = pod("shop", name, address);
    bare["spec"]["initContainers"] = json!([]);
    bare
}

/// Deleting a Node object ends no pod at once; outside the ranges its peers would send it plaintext.
#[test]
fn the_range_of_a_vanished_node_stays_while_a_pod_has_an_address_in_it() {
    let mut world = of_nodes(&[pod("shop", "meshed", "10.77.9.5"), bare_pod("bare", "10.77.9.6")]);
    let all = nets(&["10.77.0.0/23", "10.77.9.0/24"]);
    assert_eq!(index(&mut world).mesh().pod_ranges, all);
    world.take(gone("c"));
    let snapshot = world.snapshot();
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    let now = snapshot.index.unwrap();
    assert_eq!(now.mesh().pod_ranges, all);
    assert_eq!((ask(&now, "10.77.9.5@1").as_str(), ask(&now, "10.77.9.1@1").as_str()), ("endpoint", "not_meshed"));
    world.take(Change::Pod(Event::Gone(("shop".into(), "meshed".into()))));
    assert_eq!(index(&mut world).mesh().pod_ranges, all, "one without a sidecar holds it, too");
    world.take(Change::Pod(Event::Gone(("shop".into(), "bare".into()))));
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23"]));
    // It comes back with another range, while pods of the first still run.
    world.take(Change::Pod(Event::Set(object(pod("shop", "b1", "10.77.1.7")))));
    world.take(Change::Node(Event::Set(object(node("b", "10.77.4.0/24")))));
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23", "10.77.4.0/24"]));
    // So it is if the list says it.
    list(&mut world, Change::Node, &[node("a", "10.77.0.0/24")]);
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23"]));
    list(&mut world, Change::Pod, &[]);
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/24"]));
}

#[test]
fn the_ranges_hold_every_meshed_pod_that_is_known() {
    let mut far = pod("shop", "far", "10.99.0.1");
    far["status"]["podIPs"] = json!([{"ip": "10.99.0.1"}, {"ip": "fd99::1"}]);
    let mut world = of_nodes(&[far, pod("shop", "next", "10.99.0.0"), bare_pod("bare", "10.98.0.1")]);
    let snapshot = world.snapshot();
    let now = snapshot.index.unwrap();
    assert_eq!(now.mesh().pod_ranges, nets(&["10.77.0.0/23", "10.77.9.0/24", "10.99.0.0/31", "fd99::1/128"]));
    assert_eq!((ask(&now, "10.99.0.1@1").as_str(), ask(&now, "10.98.0.1@1").as_str()), ("endpoint", "not_meshed"));
    let said: Vec<String> = snapshot.problems.iter().map(ToString::to_string).collect();
    let outside = |name: &str, at: &str| {
        format!("Pod shop/{name}: status.podIPs: {at} of a meshed pod is outside the pod ranges")
    };
    assert_eq!(said, [outside("far", "10.99.0.1"), outside("far", "fd99::1"), outside("next", "10.99.0.0")]);
    world.take(Change::Pod(Event::Gone(("shop".into(), "far".into()))));
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/23", "10.77.9.0/24", "10.99.0.0/32"]));
    // What the operator set is no reason to send plaintext either.
    let mut world = small();
    world.take(Change::Pod(Event::Set(object(pod("shop", "far", "10.99.0.1")))));
    assert_eq!(index(&mut world).mesh().pod_ranges, nets(&["10.77.0.0/16", "10.99.0.1/32"]));
}

/// A proxy refuses more than 1024 ranges in all, and would go without new rules.
#[test]
fn more_ranges_than_a_proxy_takes_are_widened_and_none_is_dropped() {
    let address = |i: usize| format!("10.{}.{}.{}", 100 + i / 1000, i / 100 % 10, i % 100 * 2);
    let pods: Vec<Value> = (0..3000).map(|i| pod("shop", &format!("p{i}"), &address(i))).collect();
    let mut world = of_nodes(&pods);
    let snapshot = world.snapshot();
    let now = snapshot.index.unwrap();
    assert!(now.mesh().pod_ranges.len() + now.mesh().service_ranges.len() <= 1024);
    assert!((0..3000).all(|i| contains(&now.mesh().pod_ranges, address(i).parse().unwrap())));
    assert!(!contains(&now.mesh().pod_ranges, "10.99.0.1".parse().unwrap()), "no wider than it must be");
    assert!(!contains(&now.mesh().pod_ranges, "10.103.0.1".parse().unwrap()), "no wider than it must be");
    assert_eq!(
        snapshot.problems[0].to_string(),
        "pods: make more ranges than a proxy takes (1024); they are widened: set --pod-range"
    );
    // As many nodes whose ranges lie apart.
    let nodes: Vec<Value> =
        (0..2000).map(|i| node(&format!("n{i}"), &format!("10.{}.{}.0/24", 100 + i / 100, i % 100 * 2))).collect();
    list(&mut world, Change::Node, &nodes);
    list::<objects::Pod>(&mut world, Change::Pod, &[]);
    let now = index(&mut world);
    assert!(now.mesh().pod_ranges.len() + now.mesh().service_ranges.len() <= 1024);
    assert!(nodes.iter().all(|node| {
        let range: IpNet = node["spec"]["podCIDR"].as_str().unwrap().parse().unwrap();
        now.mesh().pod_ranges.iter().any(|wide| wide.contains(&range))
    }));
}

#[test]
fn a_policy_bad_from_the_start_withholds_the_rules_of_its_namespace_alone() {
    let mut world = World::new(trust_domain(), ranges());
    list::<objects::Pod>(&mut world, Change::Pod, &[]);
    list::<objects::Service>(&mut world, Change::Service, &[]);
    list::<objects::EndpointSlice>(&mut world, Change::Slice, &[]);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::Node>(&mut world, Change::Node, &[]);
    list(&mut world, Change::Policy, &[policy("rule", 1, 8080), policy("bad", 1, 70_000)]);
    let snapshot = world.snapshot();
    assert!(snapshot.serves_rules() && snapshot.serves_rules_to("other") && !snapshot.serves_rules_to("shop"));
    assert_eq!(snapshot.withheld, ["AuthorizationPolicy shop/bad"]);
    assert!(snapshot.problems[0].to_string().contains("spec.rules[0].to[0].ports[0]"));
    assert!(!world.verdicts()[&("shop".to_owned(), "bad".to_owned())].accepted);
    let mended = world.take(Change::Policy(Event::Set(object(policy("bad", 2, 80)))));
    assert!(mended.picture && mended.verdicts);
    assert!(world.snapshot().serves_rules_to("shop"));
    // One that turns bad later keeps what it said, and withholds nothing.
    world.take(Change::Policy(Event::Set(object(policy("bad", 3, 70_000)))));
    let snapshot = world.snapshot();
    assert!(snapshot.serves_rules_to("shop") && snapshot.problems.len() == 1);
    assert_eq!(snapshot.index.unwrap().namespace("shop").unwrap().rules.len(), 2);
}

#[test]
fn a_written_status_changes_no_picture() {
    let mut world = small();
    world.snapshot();
    let mut same = policy("rule", 1, 8080);
    let verdict = &world.verdicts()[&("shop".to_owned(), "rule".to_owned())];
    same["status"] = json!({"conditions": [verdict.condition("2026-01-01T00:00:00Z")]});
    let changed = world.take(Change::Policy(Event::Set(object(same))));
    assert_eq!(changed, Changed { picture: false, verdicts: true });
    assert!(world.verdicts().is_empty());
}

#[test]
fn two_replicas_that_heard_the_same_in_different_order_have_one_revision() {
    let mut one = small();
    one.take(Change::Pod(Event::Set(object(pod("shop", "b2", "10.77.0.12")))));
    let mut other = World::new(trust_domain(), ranges());
    list(&mut other, Change::Policy, &[policy("rule", 1, 8080)]);
    let shop =
        json!({"metadata": {"name": "shop", "labels": {"countersign.dev/mtls": "Permissive", "other": "label"}}});
    list(&mut other, Change::Namespace, &[shop]);
    list(&mut other, Change::Slice, &[slice("backend", &[("10.77.0.11", "uid-b1")])]);
    list(&mut other, Change::Node, &[node("node-a", "10.77.0.0/24")]);
    list(&mut other, Change::Service, &[service("backend", "10.96.0.10")]);
    let pods =
        [pod("shop", "b2", "10.77.0.12"), pod("other", "stranger", "10.77.0.20"), pod("shop", "b1", "10.77.0.11")];
    list(&mut other, Change::Pod, &pods);
    assert_eq!(index(&mut one).revision(), index(&mut other).revision());
    other.take(Change::Pod(Event::Gone(("shop".into(), "b2".into()))));
    assert_ne!(index(&mut one).revision(), index(&mut other).revision());
}

#[test]
fn ranges_that_vanish_from_the_api_are_not_forgotten() {
    let mut world = World::new(trust_domain(), Ranges { pods: nets(&["10.77.0.0/16"]), services: Vec::new() });
    list::<objects::Pod>(&mut world, Change::Pod, &[]);
    list::<objects::Service>(&mut world, Change::Service, &[]);
    list::<objects::EndpointSlice>(&mut world, Change::Slice, &[]);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::Node>(&mut world, Change::Node, &[]);
    list::<objects::AuthorizationPolicy>(&mut world, Change::Policy, &[]);
    list::<objects::ServiceCIDR>(&mut world, Change::Cidr, &[]);
    let snapshot = world.snapshot();
    assert!(snapshot.index.is_none() && snapshot.problems[0].message.contains("set --service-range"));
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    list(&mut world, Change::Cidr, &[cidr]);
    assert_eq!(index(&mut world).mesh().service_ranges, nets(&["10.96.0.0/16"]));
    world.take(Change::Cidr(Event::Gone((String::new(), "kubernetes".into()))));
    assert_eq!(index(&mut world).mesh().service_ranges, nets(&["10.96.0.0/16"]));
}

#[test]
fn a_meshed_pod_outside_the_ranges_is_said() {
    let mut world = small();
    world.take(Change::Pod(Event::Set(object(pod("shop", "far", "10.99.0.1")))));
    let snapshot = world.snapshot();
    assert_eq!(
        snapshot.problems[0].to_string(),
        "Pod shop/far: status.podIPs: 10.99.0.1 of a meshed pod is outside the pod ranges"
    );
    // Its proxy gets its rules all the same.
    assert!(snapshot.index.unwrap().by_uid("uid-far").is_some());
}

/// 10,000 pods behind 1,000 services. For its figures: `cargo test -p countersign-controller --release -- --nocapture ten_thousand`
#[test]
fn ten_thousand_pods_behind_a_thousand_services() {
    let mut world =
        World::new(trust_domain(), Ranges { pods: nets(&["10.64.0.0/10"]), services: nets(&["10.32.0.0/16"]) });
    let address = |i: usize| format!("10.64.{}.{}", i / 250, i % 250 + 1);
    let pods: Vec<Value> = (0..10_000).map(|i| pod("shop", &format!("pod-{i}"), &address(i))).collect();
    let services: Vec<Value> =
        (0..1_000).map(|i| service(&format!("s{i}"), &format!("10.32.{}.{}", i / 250, i % 250 + 1))).collect();
    let slices: Vec<Value> = (0..1_000)
        .map(|s| {
            let behind: Vec<(String, String)> =
                (0..10).map(|i| (address(s * 10 + i), format!("uid-pod-{}", s * 10 + i))).collect();
            let behind: Vec<(&str, &str)> =
                behind.iter().map(|(address, uid)| (address.as_str(), uid.as_str())).collect();
            slice(&format!("s{s}"), &behind)
        })
        .collect();
    let policies: Vec<Value> = (0..1_000).map(|i| policy(&format!("rule-{i}"), 1, 8080)).collect();
    let at = std::time::Instant::now();
    list(&mut world, Change::Pod, &pods);
    list(&mut world, Change::Service, &services);
    list(&mut world, Change::Slice, &slices);
    list::<objects::Namespace>(&mut world, Change::Namespace, &[]);
    list::<objects::Node>(&mut world, Change::Node, &[]);
    list(&mut world, Change::Policy, &policies);
    println!("taking all in: {:?}", at.elapsed());
    let mut took: Vec<std::time::Duration> = (0..20)
        .map(|i| {
            let mut changed = pods[i].clone();
            changed["status"]["conditions"][0]["status"] = "False".into();
            let at = std::time::Instant::now();
            world.take(Change::Pod(Event::Set(object(changed))));
            assert!(world.snapshot().index.is_some());
            at.elapsed()
        })
        .collect();
    took.sort();
    println!("one change to a picture: median {:?}, worst {:?}", took[10], took[19]);
}

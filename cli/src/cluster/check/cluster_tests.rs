use serde_json::json;

use super::*;
use crate::cluster::check::State;
use crate::cluster::check::world::tests::{at, world};

fn node(name: &str, kernel: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "podCIDRs": ["10.244.0.0/24"] },
        "status": {
            "nodeInfo": { "kernelVersion": kernel, "kubeletVersion": "v1.34.4", "operatingSystem": "linux" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A pod on `node0` whose container that sets the rules ended with this code.
fn pod(code: i64) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "a" },
        "spec": { "nodeName": "node0" },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.9" }], "initContainerStatuses": [
            { "name": names::INTERCEPT_CONTAINER, "state": { "terminated": { "exitCode": code } } },
        ] },
    })
}

#[test]
fn an_api_server_before_native_sidecars_is_a_problem() {
    let mut world = world();
    world.version = json!({ "major": "1", "minor": "28+", "gitVersion": "v1.28.9" });
    assert_eq!(version(&world).state, State::Problem);
    world.version = json!({ "major": "1", "minor": "29", "gitVersion": "v1.29.0" });
    assert_eq!(version(&world).state, State::Ok);
}

#[test]
fn a_kubelet_before_native_sidecars_is_a_problem_and_its_node_is_named() {
    let mut world = world();
    let with = |name: &str, version: &str| {
        let mut node = node(name, "6.1.0");
        node["status"]["nodeInfo"]["kubeletVersion"] = version.into();
        node
    };
    world.nodes = Ok(vec![with("node0", "v1.29.0"), with("node1", "v1.34.4-eks-1234"), with("node2", "v2.0.0")]);
    let found = kubelets(&world);
    assert_eq!((found.state, found.says.as_str()), (State::Ok, "all 3 are 1.29 or later"));
    // An API server may be three minor versions ahead of its kubelets, and one node be forgotten. What cannot be read is not well.
    for old in ["v1.28.15", "v1.9.0", "v0.99.0", "", "unknown"] {
        world.nodes = Ok(vec![with("node0", "v1.34.4"), with("node1", old)]);
        let found = kubelets(&world);
        assert_eq!(found.state, State::Problem, "{old}");
        assert_eq!(found.says, format!("node1: {old}"));
        assert!(found.todo.unwrap().contains("upgrade these nodes"));
    }
}

#[test]
fn a_kernel_that_is_too_old_is_named_and_one_that_was_not_tried_is_told_as_that() {
    let mut world = world();
    world.nodes = Ok(vec![node("node0", "4.18.0-553.el8"), node("node1", "6.1.0")]);
    let found = kernel(&world);
    assert_eq!(found.state, State::Problem);
    assert!(found.says.contains("node0: Linux 4.18"), "{}", found.says);
    // Rules that were set there say more than a number.
    world.pods = Ok(vec![pod(0)]);
    let found = kernel(&world);
    assert_eq!(found.state, State::Ok);
    assert!(found.says.contains("1 of 2") && found.says.contains("node1 (6.1.0)"), "{}", found.says);
}

#[test]
fn rules_that_could_not_be_set_are_a_problem() {
    let mut world = world();
    world.nodes = Ok(vec![node("node0", "6.1.0")]);
    world.pods = Ok(vec![pod(1)]);
    let found = kernel(&world);
    assert_eq!(found.state, State::Problem);
    assert!(found.says.contains("shop/a") && found.todo.unwrap().contains(names::INTERCEPT_CONTAINER));
}

#[test]
fn nodes_that_may_not_be_seen_are_unknown_and_not_well() {
    let mut world = world();
    world.nodes = Err(crate::cluster::api::CallError::Forbidden("no".to_owned()));
    for found in [kernel(&world), kubelets(&world), node_clocks(&world), pod_ranges(&world)] {
        assert_eq!(found.state, State::Unknown, "{found:?}");
    }
}

#[test]
fn clocks_that_differ_by_more_than_the_ca_makes_good_are_a_problem() {
    let mut world = world();
    assert_eq!(clock(&world).state, State::Ok);
    world.asked = (at(100), at(100));
    world.date = Some("Thu, 01 Jan 1970 00:00:40 GMT".to_owned());
    assert_eq!(clock(&world).state, State::Problem);
    world.date = Some("Thu, 01 Jan 1970 00:02:40 GMT".to_owned());
    assert_eq!(clock(&world).state, State::Problem);
    world.date = None;
    assert_eq!(clock(&world).state, State::Unknown);
}

#[test]
fn a_node_whose_lease_is_from_the_future_is_ahead() {
    let mut world = world();
    world.nodes = Ok(vec![node("node0", "6.1.0")]);
    let lease = |time: &str| json!({ "metadata": { "name": "node0" }, "spec": { "renewTime": time } });
    world.date = Some("Thu, 01 Jan 1970 00:10:00 GMT".to_owned());
    for (time, state) in [
        ("1970-01-01T00:09:55.5Z", State::Ok),
        ("1970-01-01T00:12:00Z", State::Problem),
        ("1970-01-01T00:08:00Z", State::Problem),
    ] {
        world.leases = Ok(vec![lease(time)]);
        assert_eq!(node_clocks(&world).state, state, "{time}");
    }
}

#[test]
fn a_pod_outside_the_ranges_is_a_problem_until_the_range_is_said() {
    let mut world = world();
    world.nodes = Ok(vec![node("node0", "6.1.0")]);
    let mut stray = pod(0);
    stray["status"]["podIPs"] = json!([{ "ip": "10.9.0.1" }]);
    world.pods = Ok(vec![pod(0), stray.clone()]);
    assert_eq!(pod_ranges(&world).state, State::Problem);
    world.values["mesh"]["podRanges"] = json!(["10.0.0.0/8"]);
    assert_eq!(pod_ranges(&world).state, State::Ok);
    world.values["mesh"]["podRanges"] = json!([]);
    stray["spec"]["hostNetwork"] = json!(true);
    world.pods = Ok(vec![stray]);
    assert_eq!(pod_ranges(&world).state, State::Ok);
}

#[test]
fn without_service_cidrs_the_range_must_be_said() {
    let mut world = world();
    world.service_cidrs = Ok(Vec::new());
    assert_eq!(service_ranges(&world).state, State::Problem);
    world.values["mesh"]["serviceRanges"] = json!(["10.96.0.0/16"]);
    assert_eq!(service_ranges(&world).state, State::Ok);
}

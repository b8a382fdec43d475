//! Whether the cluster itself is fit: versions, kernels, clocks, address ranges. Pure.
//!
//! Called by `check`, before and after the install.

use std::net::IpAddr;

use countersign_api::names;
use ipnet::IpNet;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Finding;
use super::world::World;
use crate::cluster::meshed;

/// Native sidecars are on by default from here.
const KUBERNETES: (u32, u32) = (1, 29);
/// Address translation in nftables tables of the family inet, which the redirect rules are in, is there from here.
const KERNEL: (u32, u32) = (5, 2);
/// The CA makes good for clocks that differ by no more than this, with SVIDs of an hour.
const SKEW_SECONDS: i64 = 30;
/// The kubelet renews its lease each 10 s.
const LEASE_SECONDS: i64 = 10;

pub fn findings(world: &World) -> Vec<Finding> {
    vec![
        version(world),
        kubelets(world),
        kernel(world),
        clock(world),
        node_clocks(world),
        pod_ranges(world),
        service_ranges(world),
    ]
}

fn version(world: &World) -> Finding {
    let number = |key: &str| world.version[key].as_str().unwrap_or_default().trim_end_matches('+').parse().unwrap_or(0);
    let (version, said) = ((number("major"), number("minor")), world.version["gitVersion"].as_str().unwrap_or("?"));
    let says = format!("the API server is {said}; {}.{} or later is needed", KUBERNETES.0, KUBERNETES.1);
    match version >= KUBERNETES {
        true => Finding::ok("kubernetes", says),
        false => Finding::problem("kubernetes", says, "upgrade the cluster: older ones know no native sidecars"),
    }
}

fn kubelets(world: &World) -> Finding {
    let nodes = match &world.nodes {
        Ok(nodes) => nodes,
        Err(error) => return Finding::unknown("kubelets", error),
    };
    let old = |node: &&Value| pair(info(node, "kubeletVersion").trim_start_matches('v')) < KUBERNETES;
    let old: Vec<_> =
        nodes.iter().filter(old).map(|node| format!("{}: {}", name(node), info(node, "kubeletVersion"))).collect();
    let well = format!("all {} are {}.{} or later", nodes.len(), KUBERNETES.0, KUBERNETES.1);
    Finding::none_of("kubelets", well, &old, "upgrade these nodes, or keep meshed pods off them")
}

/// A client cannot try a node's kernel. It can read its version, and see that the container that sets the rules has done so there.
fn kernel(world: &World) -> Finding {
    let nodes = match &world.nodes {
        Ok(nodes) => nodes,
        Err(error) => return Finding::unknown("kernel", error),
    };
    let no_pods = Vec::new();
    let pods = world.pods.as_ref().unwrap_or(&no_pods);
    let failed: Vec<_> = pods.iter().filter_map(failed_rules).collect();
    if !failed.is_empty() {
        let todo = format!("read `kubectl logs POD -c {}`: it names what the kernel lacks", names::INTERCEPT_CONTAINER);
        return Finding::problem("kernel", super::some_of(&failed), todo);
    }
    let (mut seen, mut unseen, mut old) = (0, Vec::new(), Vec::new());
    for node in nodes {
        let version = info(node, "kernelVersion");
        if pods.iter().any(|pod| pod["spec"]["nodeName"] == node["metadata"]["name"] && has_set_rules(pod)) {
            seen += 1;
        } else if info(node, "operatingSystem") == "windows" {
            // No sidecar ever gets there.
        } else if pair(version) < KERNEL {
            old.push(format!("{}: Linux {version} is older than {}.{}", name(node), KERNEL.0, KERNEL.1));
        } else {
            unseen.push(format!("{} ({version})", name(node)));
        }
    }
    let by_version = match unseen.as_slice() {
        [] => String::new(),
        some => format!(
            "; judged by its version alone, whether nftables is built in was not looked at: {}",
            super::some_of(some)
        ),
    };
    let well = format!("redirect rules were seen to be set on {seen} of {} nodes{by_version}", nodes.len());
    Finding::none_of("kernel", well, &old, "upgrade the kernel, or keep meshed pods off these nodes")
}

/// The container that sets the rules ended well.
fn has_set_rules(pod: &Value) -> bool {
    rules_ended(pod).is_some_and(|ended| ended["exitCode"] == 0)
}

fn failed_rules(pod: &Value) -> Option<String> {
    let status = init_status(pod, names::INTERCEPT_CONTAINER)?;
    let ended = [&status["state"]["terminated"], &status["lastState"]["terminated"]]
        .into_iter()
        .find(|ended| ended.is_object())?;
    let code = ended["exitCode"].as_i64().filter(|code| *code != 0)?;
    (!has_set_rules(pod)).then(|| format!("{}: redirect rules could not be set (exit code {code})", meshed::place(pod)))
}

fn rules_ended(pod: &Value) -> Option<&Value> {
    Some(&init_status(pod, names::INTERCEPT_CONTAINER)?["state"]["terminated"]).filter(|ended| ended.is_object())
}

/// The status of an init container.
pub fn init_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    pod["status"]["initContainerStatuses"].as_array()?.iter().find(|status| status["name"] == container)
}

fn clock(world: &World) -> Finding {
    let Some(server) = world.server_time() else {
        return Finding { state: super::State::Unknown, ..Finding::ok("clock", "the API server's answer has no date") };
    };
    // Its date has whole seconds: it was somewhere in that second, and somewhere between asking and being answered.
    let (before, after) = world.asked;
    let ahead = (server - after).whole_seconds().max((before - server).whole_seconds() - 1).max(0);
    let says = format!("this machine and the API server differ by {} s", ahead.max(0));
    match ahead > SKEW_SECONDS {
        false => Finding::ok("clock", format!("{says}; up to {SKEW_SECONDS} s is well")),
        true => Finding::problem("clock", says, "set the clocks (NTP): certificates are judged by them"),
    }
}

/// By what each kubelet last wrote, in its own time, against the API server's.
fn node_clocks(world: &World) -> Finding {
    let (leases, nodes) = match (&world.leases, &world.nodes) {
        (Ok(leases), Ok(nodes)) => (leases, nodes),
        (Err(error), _) | (_, Err(error)) => return Finding::unknown("node clocks", error),
    };
    let Some(now) = world.server_time() else {
        return Finding {
            state: super::State::Unknown,
            ..Finding::ok("node clocks", "the API server's answer has no date")
        };
    };
    let ready = |name: &str| nodes.iter().any(|node| node["metadata"]["name"] == name && is_ready(node));
    let mut off = Vec::new();
    for lease in leases.iter().filter(|lease| ready(lease["metadata"]["name"].as_str().unwrap_or_default())) {
        let renewed = lease["spec"]["renewTime"].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let ahead = renewed.map_or(0, |renewed| (renewed - now).whole_seconds());
        if ahead > SKEW_SECONDS {
            off.push(format!("{} is {ahead} s ahead", name(lease)));
        } else if ahead < -(SKEW_SECONDS + LEASE_SECONDS) {
            off.push(format!("{} is behind by up to {} s", name(lease), -ahead));
        }
    }
    let well =
        format!("the API server and {} nodes differ by less than {} s", leases.len(), SKEW_SECONDS + LEASE_SECONDS);
    Finding::none_of("node clocks", well, &off, "set the clocks (NTP): certificates are judged by them")
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// An address outside the ranges is taken for a stranger's: connections to a pod there would not be encrypted.
fn pod_ranges(world: &World) -> Finding {
    let (nodes, pods) = match (&world.nodes, &world.pods) {
        (Ok(nodes), Ok(pods)) => (nodes, pods),
        (Err(error), _) | (_, Err(error)) => return Finding::unknown("pod ranges", error),
    };
    let said = ranges(world, "pod-range", "podRanges");
    let of_nodes =
        nodes.iter().flat_map(|node| strings(&node["spec"]["podCIDRs"])).filter_map(|text| text.parse().ok());
    let ranges: Vec<IpNet> = if said.is_empty() { of_nodes.collect() } else { said };
    let todo = "set mesh.podRanges to the addresses that the network plugin gives to pods";
    if ranges.is_empty() {
        return Finding::problem("pod ranges", "no node says a podCIDR, and mesh.podRanges is empty", todo);
    }
    let inside = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let mut outside = Vec::new();
    for pod in pods.iter().filter(|pod| !meshed::on_host(pod) && meshed::is_running(pod)) {
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|ip| ip["ip"].as_str()?.parse::<IpAddr>().ok());
        outside.extend(
            addresses.filter(|address| !inside(address)).map(|address| format!("{} has {address}", meshed::place(pod))),
        );
    }
    Finding::none_of("pod ranges", format!("every pod's address is in {} ranges", ranges.len()), &outside, todo)
}

fn service_ranges(world: &World) -> Finding {
    let said = ranges(world, "service-range", "serviceRanges").len();
    let found = match &world.service_cidrs {
        _ if said > 0 => said,
        Ok(found) => found.iter().map(|cidr| strings(&cidr["spec"]["cidrs"]).len()).sum(),
        Err(error) => return Finding::unknown("service ranges", error),
    };
    let todo = "set mesh.serviceRanges to the API server's --service-cluster-ip-range";
    match found {
        0 => Finding::problem(
            "service ranges",
            "the cluster has no ServiceCIDR objects, and mesh.serviceRanges is empty",
            todo,
        ),
        some => Finding::ok("service ranges", format!("{some} known")),
    }
}

/// As the running controller was told, else as the values say.
fn ranges(world: &World, flag: &str, value: &str) -> Vec<IpNet> {
    let prefix = format!("--{flag}=");
    let controller = world.our("Deployment", names::CONTROLLER_ACCOUNT);
    let texts: Vec<&str> = match controller {
        Some(controller) => {
            let args = strings(&controller["spec"]["template"]["spec"]["containers"][0]["args"]);
            args.into_iter().filter_map(|arg| arg.strip_prefix(&prefix)).flat_map(|list| list.split(',')).collect()
        }
        None => strings(&world.values["mesh"][value]),
    };
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn info<'a>(node: &'a Value, key: &str) -> &'a str {
    node["status"]["nodeInfo"][key].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The first two numbers of a version.
fn pair(version: &str) -> (u32, u32) {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

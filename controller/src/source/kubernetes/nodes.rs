//! What a node means: a part of the pods' range, and addresses that are its own. Pure.
//!
//! Called by `world`. An address that it names as a node's own is answered as one without a sidecar, unless a pod has it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::source::kubernetes::objects::Node;

/// What is kept of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Of its pods.
    pub ranges: Vec<IpNet>,
    /// Its own addresses. The first two of each range are among them: there a node's bridge or tunnel is, and with its address come the
    /// node's own connections to pods, what came in by a node port, and the API server's calls where it runs on a node.
    pub own: Vec<IpAddr>,
}

/// Reads one node.
pub fn read(node: Node) -> Known {
    let spec = node.spec;
    let one = spec.pod_cidr.filter(|_| spec.pod_cidrs.is_empty());
    let texts = spec.pod_cidrs.iter().chain(&one);
    let ranges: Vec<IpNet> = texts.filter_map(|text| text.parse().ok()).map(|range: IpNet| range.trunc()).collect();
    let named = node.status.addresses.iter().filter_map(|at| at.address.parse::<IpAddr>().ok());
    let own = named.map(|address| address.to_canonical()).chain(ranges.iter().copied().flat_map(first_two)).collect();
    Known { ranges, own }
}

/// Where a bridge or tunnel is.
pub fn first_two(range: IpNet) -> impl Iterator<Item = IpAddr> {
    let second = match range.network() {
        IpAddr::V4(first) => first.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(first) => first.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    std::iter::once(range.network()).chain(second.filter(|second| range.contains(second)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn known(spec: Value, status: Value) -> String {
        let node = json!({"metadata": {"name": "a", "managedFields": []}, "spec": spec, "status": status});
        let known = read(serde_json::from_value(node).unwrap());
        let ranges: Vec<String> = known.ranges.iter().map(ToString::to_string).collect();
        let own: Vec<String> = known.own.iter().map(ToString::to_string).collect();
        format!("{} own {}", ranges.join(" "), own.join(" "))
    }

    #[test]
    fn a_node_says_its_pods_ranges_and_its_own_addresses() {
        let table = [
            (json!({}), json!({}), " own "),
            (
                json!({"podCIDR": "10.77.3.0/24", "podCIDRs": ["10.77.3.0/24", "fd77:3::/64"]}),
                json!({"images": [{"names": ["x"]}], "addresses": [
                    {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "node-a"},
                ]}),
                "10.77.3.0/24 fd77:3::/64 own 192.0.2.1 10.77.3.0 10.77.3.1 fd77:3:: fd77:3::1",
            ),
            (json!({"podCIDR": "10.77.3.0/24"}), json!({"addresses": null}), "10.77.3.0/24 own 10.77.3.0 10.77.3.1"),
            (json!({"podCIDRs": ["10.77.3.7/32", "nonsense"]}), json!({}), "10.77.3.7/32 own 10.77.3.7"),
        ];
        for (spec, status, want) in table {
            assert_eq!(known(spec.clone(), status), want, "{spec}");
        }
    }
}

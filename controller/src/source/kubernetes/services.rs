//! What a service and its endpoint slices mean: which endpoints, at which ports, and which of them may be sent traffic. Pure.
//!
//! Called by `world`. Who stands at an endpoint's address is not decided here but in the index, which knows all pods: a slice's word
//! alone never makes an identity, and never plaintext inside the mesh's ranges.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{At, Listed, Place, Service, ServicePort};
use crate::source::kubernetes::objects::{self, Endpoint, EndpointSlice, Key, Port};

/// Label of a slice: the service, of the slice's own namespace, that it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The API server's own service: its endpoints are where the API servers listen.
pub const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Kubernetes' default for `sessionAffinity: ClientIP`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// What is kept of one service.
#[derive(Debug, Clone)]
pub struct Known {
    addresses: Vec<At<IpAddr>>,
    ports: Vec<Named>,
    local_only: bool,
    affinity_seconds: u32,
}

/// What is kept of one slice.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The service that it belongs to.
    pub of: Option<Key>,
    ports: Vec<Named>,
    endpoints: Vec<One>,
}

/// A TCP port and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    port: u16,
}

#[derive(Debug, Clone)]
struct One {
    address: IpAddr,
    uid: Option<Arc<str>>,
    node: Arc<str>,
    ready: bool,
    /// On its way out, and still serving.
    lingers: bool,
}

/// Reads one service; `None`: it has no address and no endpoints (ExternalName).
pub fn read(service: objects::Service) -> Option<Known> {
    let spec = service.spec;
    if spec.kind.as_deref() == Some("ExternalName") {
        return None;
    }
    let (namespace, name) = objects::key(&service.metadata);
    let place = Place { file: format!("Service {namespace}/{name}").into(), line: 0, column: 0 };
    let mut addresses: Vec<At<IpAddr>> = Vec::new();
    // Headless: "None".
    for text in spec.cluster_ips.iter().chain(&spec.cluster_ip) {
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        let value = address.to_canonical();
        if addresses.iter().all(|known| known.value != value) {
            addresses.push(At { value, place: place.clone() });
        }
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.and_then(|config| config.client_ip);
        config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS)
    });
    Some(Known {
        addresses,
        ports: tcp(&spec.ports),
        local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity_seconds: affinity.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
    })
}

/// Reads one slice.
pub fn read_slice(slice: EndpointSlice) -> Slice {
    let (namespace, _) = objects::key(&slice.metadata);
    let of = objects::label(&slice.metadata, SERVICE_NAME).map(|name| (namespace.clone(), name.to_owned()));
    // FQDN: a name, nothing that a connection's destination could be.
    let endpoints = match slice.address_type.as_str() {
        "IPv4" | "IPv6" => slice.endpoints.into_iter().filter_map(|one| endpoint(one, &namespace)).collect(),
        _ => Vec::new(),
    };
    Slice { of, ports: tcp(&slice.ports), endpoints }
}

fn endpoint(one: Endpoint, namespace: &str) -> Option<One> {
    // All of them are the same endpoint; whoever reads them takes the first (as kube-proxy).
    let address = one.addresses.first()?.parse::<IpAddr>().ok()?.to_canonical();
    let target = one.target_ref.unwrap_or_default();
    let elsewhere = target.namespace.as_deref().is_some_and(|other| !other.is_empty() && other != namespace);
    if elsewhere {
        return None;
    }
    // What is not said counts as ready, and as serving if ready (discovery.k8s.io/v1).
    let ready = one.conditions.ready.unwrap_or(true);
    let serving = one.conditions.serving.unwrap_or(ready);
    let pod = target.kind.as_deref() == Some("Pod");
    Some(One {
        address,
        uid: target.uid.filter(|uid| pod && !uid.is_empty()).map(Into::into),
        node: one.node_name.unwrap_or_default().into(),
        ready,
        lingers: serving && one.conditions.terminating.unwrap_or(false),
    })
}

fn tcp(ports: &[Port]) -> Vec<Named> {
    let tcp = ports.iter().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP" | "")));
    let named = tcp.filter_map(|port| {
        // A slice's port that is not given means "any": nothing that a service's port could become.
        let number = u16::try_from(port.port?).ok().filter(|port| *port > 0)?;
        Some(Named { name: port.name.clone().unwrap_or_default(), port: number })
    });
    named.collect()
}

/// A service's port, and the endpoint's that it leads to, each.
type Ports = Arc<[(u16, u16)]>;

/// A service with all that stands behind it.
pub fn join<'a>(service: &Known, slices: impl Iterator<Item = &'a Slice>) -> Service {
    let mut listed: BTreeMap<(IpAddr, Ports), (One, bool)> = BTreeMap::new();
    for slice in slices {
        let ports: Ports = targets(&service.ports, &slice.ports).into();
        for one in &slice.endpoints {
            // While endpoints move between slices one may stand in two of them.
            let known = listed.entry((one.address, Arc::clone(&ports))).or_insert_with(|| (one.clone(), false));
            known.0.ready |= one.ready;
            known.1 |= one.lingers;
        }
    }
    // Where nobody is ready, those on their way out that still serve are better than nobody (KEP-1669).
    let nobody = |v4: bool| !listed.values().any(|(one, _)| one.ready && one.address.is_ipv4() == v4);
    let nobody = (nobody(true), nobody(false));
    let listed = listed.into_iter().map(|((address, ports), (one, lingers))| {
        let nobody = if address.is_ipv4() { nobody.0 } else { nobody.1 };
        Listed { address, uid: one.uid, ready: one.ready || (nobody && lingers), node: one.node, ports }
    });
    Service {
        addresses: service.addresses.clone(),
        selector: None,
        listed: listed.collect(),
        ports: service.ports.iter().map(|port| ServicePort { port: port.port, target_port: None }).collect(),
        local_only: service.local_only,
        affinity_seconds: service.affinity_seconds,
    }
}

/// A slice says the target of each of its service's ports by the port's name: named target ports are resolved there.
fn targets(service: &[Named], slice: &[Named]) -> Vec<(u16, u16)> {
    let target = |port: &Named| slice.iter().find(|other| other.name == port.name).map(|other| (port.port, other.port));
    service.iter().filter_map(target).collect()
}

#[cfg(test)]
#[path = "services/tests.rs"]
mod tests;

//! What a pod means: whose address, which identity, with a sidecar or without. Pure.
//!
//! Called by `world`. It must never call a pod meshed that has no sidecar of ours (its peers would wait for mTLS that nobody
//! answers), nor let a pod that has ended keep an address that another one got.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use countersign_api::names;
use countersign_identity::{SpiffeIdError, TrustDomain};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::index::Member;
use crate::model::{At, ObjectName, Place, Problem, Workload};
use crate::source::kubernetes::objects::{self, Ip, Pod};

/// What is kept of one pod.
#[derive(Debug, Clone)]
pub struct Known {
    /// Addresses of its node.
    pub node: Vec<IpAddr>,
    /// Who it is; `None`: it has ended, has no address yet, or shares its node's.
    pub who: Option<Who>,
    /// Why it is nobody.
    pub problem: Option<Problem>,
}

/// A pod that has addresses of its own.
#[derive(Debug, Clone)]
pub struct Who {
    /// With all the addresses that its status names.
    pub member: Arc<Member>,
    rank: Rank,
}

/// Of two pods that name one address the greater holds it: one that is not on its way out, the later started, the later made.
/// The UID makes two replicas agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    stays: bool,
    started: i64,
    made: i64,
    uid: Arc<str>,
}

/// Reads one pod.
pub fn read(pod: Pod, trust_domain: &TrustDomain) -> Known {
    let mut node = addresses(&pod.status.host_ips, pod.status.host_ip.as_deref());
    let own = addresses(&pod.status.pod_ips, pod.status.pod_ip.as_deref());
    if pod.spec.host_network {
        node.extend(own);
        return Known { node, who: None, problem: None };
    }
    if own.is_empty() || matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Known { node, who: None, problem: None };
    }
    let (namespace, name) = objects::key(&pod.metadata);
    let place = Place { file: format!("Pod {namespace}/{name}").into(), line: 0, column: 0 };
    match who(pod, own, ObjectName { namespace: namespace.into(), name: name.into() }, &place, trust_domain) {
        Ok(who) => Known { node, who: Some(who), problem: None },
        Err(error) => {
            let problem = Problem::at(&place, "spec.serviceAccountName", error.to_string());
            Known { node, who: None, problem: Some(problem) }
        }
    }
}

fn who(
    pod: Pod,
    own: Vec<IpAddr>,
    name: ObjectName,
    place: &Place,
    trust_domain: &TrustDomain,
) -> Result<Who, SpiffeIdError> {
    let stays = pod.metadata.deletion_timestamp.is_none();
    let uid: Arc<str> = pod.metadata.uid.as_deref().unwrap_or_default().into();
    let rank = Rank {
        stays,
        started: seconds(pod.status.start_time.as_ref()),
        made: seconds(pod.metadata.creation_timestamp.as_ref()),
        uid: Arc::clone(&uid),
    };
    let is_ready = pod.status.conditions.iter().any(|is| is.kind == "Ready" && is.status == "True");
    let workload = Workload {
        uid: At { value: uid, place: place.clone() },
        service_account: pod.spec.service_account_name.filter(|name| !name.is_empty()).unwrap_or("default".to_owned()),
        addresses: own.into_iter().map(|value| At { value, place: place.clone() }).collect(),
        meshed: pod
            .spec
            .init_containers
            .iter()
            .any(|init| init.name == names::SIDECAR_CONTAINER && init.restart_policy.as_deref() == Some("Always")),
        ready: stays && is_ready,
        node: pod.spec.node_name.unwrap_or_default(),
        labels: objects::labels(pod.metadata),
    };
    Ok(Who { member: Arc::new(Member::new(name, Arc::new(workload), trust_domain)?), rank })
}

fn addresses(many: &[Ip], one: Option<&str>) -> Vec<IpAddr> {
    let texts = many.iter().map(|ip| ip.ip.as_str()).chain(one);
    let mut addresses = Vec::new();
    for address in texts.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = address.to_canonical();
        let nobodys = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        if !nobodys && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn seconds(time: Option<&Time>) -> i64 {
    time.map_or(0, |time| time.0.as_second())
}

/// All who are somebody, in order of name, each with the addresses that are its own now.
pub fn settle<'a>(pods: impl Iterator<Item = &'a Known>, trust_domain: &TrustDomain) -> Vec<Arc<Member>> {
    let all: Vec<&Who> = pods.filter_map(|pod| pod.who.as_ref()).collect();
    let mut holders: HashMap<IpAddr, &Who> = HashMap::with_capacity(all.len());
    let mut contested = false;
    for &who in &all {
        for address in &who.member.workload.addresses {
            let holder = holders.entry(address.value).or_insert(who);
            contested |= holder.rank.uid != who.rank.uid;
            if holder.rank < who.rank {
                *holder = who;
            }
        }
    }
    if !contested {
        return all.into_iter().map(|who| Arc::clone(&who.member)).collect();
    }
    let holds = |who: &Who, address: IpAddr| holders.get(&address).is_some_and(|holder| holder.rank == who.rank);
    let members = all.into_iter().filter_map(|who| {
        let workload = &who.member.workload;
        if workload.addresses.iter().all(|address| holds(who, address.value)) {
            return Some(Arc::clone(&who.member));
        }
        let mut left = Workload::clone(workload);
        left.addresses.retain(|address| holds(who, address.value));
        // It was somebody with all of its addresses, so it is with fewer.
        Member::new(who.member.name.clone(), Arc::new(left), trust_domain).ok().map(Arc::new)
    });
    members.collect()
}

#[cfg(test)]
#[path = "pods/tests.rs"]
mod tests;

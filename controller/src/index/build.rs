//! Objects, known to be free of conflicts, to an index: sorted, selected, hashed.
//!
//! Called by `Index::build`. The order in which objects come must never show in what is built.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::Modes;

use super::{Index, Member, NamespaceRules, Slot, Virtual};
use crate::digest::{Content, Digest, short};
use crate::model::{At, Kind, Mesh, Object, ObjectName, Problem, Workload};

#[derive(Default)]
pub(super) struct Building {
    members: Vec<Member>,
    services: Vec<Virtual>,
    namespaces: BTreeMap<Arc<str>, NamespaceRules>,
}

impl Building {
    pub(super) fn add(&mut self, object: &Object, trust_domain: &TrustDomain) -> Result<(), Problem> {
        let name = object.name.clone();
        match &object.kind {
            Kind::Mesh(_) => {}
            Kind::Namespace(namespace) => {
                let rules = self.namespaces.entry(name.name).or_default();
                rules.written = true;
                (rules.modes, rules.label_problems) = Modes::from_labels(&namespace.labels);
            }
            Kind::Policy(policy) => {
                let rules = self.namespaces.entry(name.namespace).or_default();
                rules.rules.push(Arc::clone(policy));
            }
            Kind::Service(service) => self.services.push(Virtual {
                name,
                service: Arc::clone(service),
                members: Vec::new(),
                digest: Digest::default(),
            }),
            Kind::Workload(workload) => {
                let id = SpiffeId::for_service_account(trust_domain, &name.namespace, &workload.service_account)
                    .map_err(|error| Problem::at(&object.place, "spec.serviceAccount", error.to_string()))?;
                let digest = workload_digest(&name, workload, &id);
                self.members.push(Member { name, workload: Arc::clone(workload), id, digest });
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, mesh: Mesh) -> Index {
        self.members.sort_by(|a, b| a.name.cmp(&b.name));
        self.services.sort_by(|a, b| a.name.cmp(&b.name));
        for rules in self.namespaces.values_mut() {
            rules.rules.sort_by(|a, b| a.policy.name().cmp(b.policy.name()));
        }
        self.select();
        let (by_address, by_uid) = self.slots();
        let topology = self.topology(&mesh);
        let mut whole = Content::of("index").bytes(&topology);
        for (name, rules) in &self.namespaces {
            whole = rules.modes_content(whole.text(name)).number(rules.rules.len() as u64);
            for rule in &rules.rules {
                whole = whole.bytes(&rule.digest);
            }
        }
        Index {
            mesh,
            members: self.members,
            services: self.services,
            namespaces: self.namespaces,
            by_address,
            by_uid,
            topology,
            revision: short(&whole.finish()),
        }
    }

    /// Puts behind each service the workloads of its own namespace that it selects.
    fn select(&mut self) {
        let mut by_label: HashMap<(&str, &str, &str), Vec<usize>> = HashMap::new();
        for (i, member) in self.members.iter().enumerate() {
            for (key, value) in &member.workload.labels {
                by_label.entry((&member.name.namespace, key, value)).or_default().push(i);
            }
        }
        for service in &mut self.services {
            let Some(selector) = &service.service.selector else { continue };
            let namespace = &*service.name.namespace;
            let labels = selector.iter().map(|(key, value)| by_label.get(&(namespace, key.as_str(), value.as_str())));
            // A label that nobody wears: nobody is selected. An empty selector is refused by the parser.
            let fewest: &[usize] = match labels.min_by_key(|few| few.map_or(0, Vec::len)) {
                Some(Some(few)) => few,
                Some(None) | None => &[],
            };
            let selected = fewest.iter().copied().filter(|&i| {
                let labels = &self.members[i].workload.labels;
                selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            service.members = selected.collect();
        }
        for service in &mut self.services {
            service.digest = service_digest(service, &self.members);
        }
    }

    fn slots(&self) -> (HashMap<IpAddr, Slot>, HashMap<Arc<str>, usize>) {
        let mut by_address = HashMap::new();
        let mut by_uid = HashMap::new();
        for (i, member) in self.members.iter().enumerate() {
            by_uid.insert(Arc::clone(&member.workload.uid.value), i);
            by_address.extend(member.workload.addresses.iter().map(|a| (a.value, Slot::Workload(i))));
        }
        for (i, service) in self.services.iter().enumerate() {
            by_address.extend(service.service.addresses.iter().map(|a| (a.value, Slot::Service(i))));
        }
        (by_address, by_uid)
    }

    /// Everything that an answer, or the binding of a rule to a workload, is made of.
    fn topology(&self, mesh: &Mesh) -> Digest {
        let mut all = Content::of("topology").text(mesh.trust_domain.as_str());
        for ranges in [&mesh.pod_ranges, &mesh.service_ranges] {
            all = all.number(ranges.len() as u64);
            for range in ranges {
                all = all.text(&range.to_string());
            }
        }
        all = all.number(self.members.len() as u64);
        for member in &self.members {
            all = all.bytes(&member.digest).text(&member.workload.uid.value);
            all = all.number(member.workload.labels.len() as u64);
            for (key, value) in &member.workload.labels {
                all = all.text(key).text(value);
            }
        }
        all = all.number(self.services.len() as u64);
        for service in &self.services {
            all = all.bytes(&service.digest);
        }
        all.finish()
    }
}

fn workload_digest(name: &ObjectName, workload: &Workload, id: &SpiffeId) -> Digest {
    let mut content = Content::of("workload").text(&name.namespace).text(&name.name).text(id.as_str());
    content = content.number(workload.meshed.into()).number(workload.ready.into()).text(&workload.node);
    addresses(content, &workload.addresses).finish()
}

fn service_digest(of: &Virtual, members: &[Member]) -> Digest {
    let service = &of.service;
    let mut content = Content::of("service").text(&of.name.namespace).text(&of.name.name);
    content = content.number(service.local_only.into()).number(service.affinity_seconds.into());
    content = addresses(content, &service.addresses).number(service.ports.len() as u64);
    for port in &service.ports {
        content = content.number(port.port.into()).number(port.target_port.into());
    }
    content = content.number(of.members.len() as u64);
    for member in of.members.iter().filter_map(|&i| members.get(i)) {
        content = content.bytes(&member.digest);
    }
    content.finish()
}

fn addresses(content: Content, addresses: &[At<IpAddr>]) -> Content {
    let content = content.number(addresses.len() as u64);
    addresses.iter().fold(content, |content, address| match address.value {
        IpAddr::V4(ip) => content.bytes(&ip.octets()),
        IpAddr::V6(ip) => content.bytes(&ip.octets()),
    })
}

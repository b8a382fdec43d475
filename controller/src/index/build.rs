//! Objects, known to be free of conflicts, to an index: sorted, selected, hashed.
//!
//! Called by `Index::build` and `Index::settled`. The order in which objects come must never show in what is built.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::Modes;

use super::{Behind, Index, Member, NamespaceRules, Parts, Slot, Virtual, contains};
use crate::digest::{Content, Digest, short};
use crate::drift;
use crate::model::{At, Kind, Listed, Mesh, Object, ObjectName, Problem, Service, Workload};

#[derive(Default)]
pub(super) struct Building {
    members: Vec<Arc<Member>>,
    services: Vec<Virtual>,
    namespaces: BTreeMap<Arc<str>, NamespaceRules>,
    bare: BTreeSet<IpAddr>,
}

impl Building {
    pub(super) fn of(parts: Parts) -> Self {
        let Parts { members, services, namespaces, bare } = parts;
        let services = services.into_iter().map(|(name, service)| service_of(name, service)).collect();
        Building { members, services, namespaces, bare }
    }

    pub(super) fn add(&mut self, object: &Object, trust_domain: &TrustDomain) -> Result<(), Problem> {
        let name = object.name.clone();
        match &object.kind {
            Kind::Mesh(_) => {}
            Kind::Namespace(namespace) => {
                let rules = self.namespaces.entry(name.name).or_default();
                rules.written = true;
                (rules.modes, rules.label_problems) = Modes::from_labels(&namespace.labels);
                rules.inject = drift::asks_for_sidecars(&namespace.labels);
            }
            Kind::Policy(policy) => {
                let rules = self.namespaces.entry(name.namespace).or_default();
                rules.rules.push(Arc::clone(policy));
            }
            Kind::Service(service) => self.services.push(service_of(name, Arc::clone(service))),
            Kind::Workload(workload) => {
                let member = Member::new(name, Arc::clone(workload), trust_domain)
                    .map_err(|error| Problem::at(&object.place, "spec.serviceAccount", error.to_string()))?;
                self.members.push(Arc::new(member));
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
        let (by_address, by_uid) = self.slots();
        self.select();
        self.list(&mesh, &by_address);
        for service in &mut self.services {
            service.digest = service_digest(service, &self.members);
        }
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
        if self.services.iter().all(|service| service.service.selector.is_none()) {
            return;
        }
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
            service.behind = selected.map(|i| Behind { member: Some(i), listed: None }).collect();
        }
    }

    /// Puts behind each service what its source lists and may stand there.
    fn list(&mut self, mesh: &Mesh, by_address: &HashMap<IpAddr, Slot>) {
        for service in &mut self.services {
            let mut behind = Vec::with_capacity(service.service.listed.len());
            for (i, listed) in service.service.listed.iter().enumerate() {
                let at = by_address.get(&listed.address).copied();
                match stands_there(&service.name.namespace, listed, at, &self.members, mesh) {
                    Ok(member) => behind.push(Behind { member, listed: Some(i) }),
                    Err(LeftOut) => service.left_out += 1,
                }
            }
            service.behind.append(&mut behind);
        }
    }

    fn slots(&self) -> (HashMap<IpAddr, Slot>, HashMap<Arc<str>, usize>) {
        let mut by_address = HashMap::with_capacity(self.members.len() + self.services.len());
        let mut by_uid = HashMap::with_capacity(self.members.len());
        by_address.extend(self.bare.iter().map(|address| (*address, Slot::Bare)));
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
            all = all.bytes(&member.whole);
        }
        all = all.number(self.services.len() as u64);
        for service in &self.services {
            all = all.bytes(&service.digest);
        }
        all = all.number(self.bare.len() as u64);
        for address in &self.bare {
            all = ip(all, *address);
        }
        all.finish()
    }
}

struct LeftOut;

/// Who stands at an address that a service lists. What lies inside the ranges and is not known to be a workload of the service's
/// own namespace is left out: whoever may write a service's endpoints could else have it stand for a neighbour's pod, or have
/// its clients talk in plaintext to one (CVE-2021-25740). So is an address that went to another pod than the listed one.
fn stands_there(
    namespace: &str,
    listed: &Listed,
    at: Option<Slot>,
    members: &[Arc<Member>],
    mesh: &Mesh,
) -> Result<Option<usize>, LeftOut> {
    match at {
        Some(Slot::Workload(i)) => {
            let member = members.get(i).ok_or(LeftOut)?;
            let meant = listed.uid.as_ref().is_none_or(|uid| *uid == member.workload.uid.value);
            if meant && *member.name.namespace == *namespace { Ok(Some(i)) } else { Err(LeftOut) }
        }
        Some(Slot::Bare) => Ok(None),
        Some(Slot::Service(_)) => Err(LeftOut),
        None if contains(&mesh.pod_ranges, listed.address) => Err(LeftOut),
        None if contains(&mesh.service_ranges, listed.address) => Err(LeftOut),
        None => Ok(None),
    }
}

fn service_of(name: ObjectName, service: Arc<Service>) -> Virtual {
    Virtual { name, service, behind: Vec::new(), digest: Digest::default(), left_out: 0 }
}

pub(super) fn whole_digest(digest: &Digest, workload: &Workload) -> Digest {
    let mut content = Content::of("chosen").bytes(digest).text(&workload.uid.value);
    content = content.number(workload.labels.len() as u64);
    for (key, value) in &workload.labels {
        content = content.text(key).text(value);
    }
    content.finish()
}

pub(super) fn workload_digest(name: &ObjectName, workload: &Workload, id: &SpiffeId) -> Digest {
    let mut content = Content::of("workload").text(&name.namespace).text(&name.name).text(id.as_str());
    content = content.number(workload.meshed.into()).number(workload.ready.into()).text(&workload.node);
    addresses(content, &workload.addresses).finish()
}

fn service_digest(of: &Virtual, members: &[Arc<Member>]) -> Digest {
    let service = &of.service;
    let mut content = Content::of("service").text(&of.name.namespace).text(&of.name.name);
    content = content.number(service.local_only.into()).number(service.affinity_seconds.into());
    content = addresses(content, &service.addresses).number(service.ports.len() as u64);
    for port in &service.ports {
        content = content.number(port.port.into()).number(port.target_port.map_or(0, u64::from));
    }
    content = content.number(of.behind.len() as u64);
    for behind in &of.behind {
        content = match behind.member.and_then(|i| members.get(i)) {
            Some(member) => content.bytes(&member.digest),
            None => content.number(0),
        };
        if let Some(listed) = behind.listed.and_then(|i| service.listed.get(i)) {
            content = ip(content, listed.address).number(listed.ready.into()).text(&listed.node);
            content = content.number(listed.ports.len() as u64);
            for (port, target) in &*listed.ports {
                content = content.number((*port).into()).number((*target).into());
            }
        }
    }
    content.finish()
}

fn addresses(content: Content, addresses: &[At<IpAddr>]) -> Content {
    let content = content.number(addresses.len() as u64);
    addresses.iter().fold(content, |content, address| ip(content, address.value))
}

fn ip(content: Content, address: IpAddr) -> Content {
    match address {
        IpAddr::V4(ip) => content.bytes(&ip.octets()),
        IpAddr::V6(ip) => content.bytes(&ip.octets()),
    }
}

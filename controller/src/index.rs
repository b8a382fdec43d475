//! One immutable picture of the mesh: who holds which address, what stands behind a service, which rules a namespace has.
//!
//! Built by `source` from all objects in force (`build`), or from parts that can have no conflicts any more (`settled`); shared
//! as `Arc<Index>`; asked by `answer`, `rules` and `server`. It must never change once built: a change is a new index.

mod build;
mod claims;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use countersign_policy::{LabelProblem, Modes};

use self::build::Building;
pub use self::claims::{Conflict, contains};
use crate::digest::{Content, Digest};
use crate::model::{Kind, Mesh, Object, ObjectName, Rule, Service, ServicePort, Workload};

/// The mesh at one moment.
#[derive(Debug)]
pub struct Index {
    mesh: Mesh,
    members: Vec<Arc<Member>>,
    services: Vec<Virtual>,
    namespaces: BTreeMap<Arc<str>, NamespaceRules>,
    by_address: HashMap<IpAddr, Slot>,
    by_uid: HashMap<Arc<str>, usize>,
    topology: Digest,
    revision: String,
}

/// A workload with what follows from it.
#[derive(Debug)]
pub struct Member {
    /// Its namespace and name.
    pub name: ObjectName,
    /// As the source states it.
    pub workload: Arc<Workload>,
    /// The identity that its service account gives it.
    pub id: SpiffeId,
    /// Of all that an answer says about it.
    digest: Digest,
    /// Of that, and of all by which it is chosen.
    whole: Digest,
}

/// A service and what stands behind it.
#[derive(Debug)]
pub struct Virtual {
    /// Its namespace and name.
    pub name: ObjectName,
    /// As the source states it.
    pub service: Arc<Service>,
    /// Its workloads, all of its own namespace (CVE-2021-25740), in order of name; or what its source lists, in that order.
    behind: Vec<Behind>,
    /// Of all that an answer says about it.
    digest: Digest,
    /// Listed, and left out: of another namespace, or nobody knows whose.
    pub left_out: usize,
}

/// One endpoint of a service.
#[derive(Debug)]
struct Behind {
    /// The workload there; `None`: known to be none of the mesh's.
    member: Option<usize>,
    /// Place in `Service::listed`; `None`: selected.
    listed: Option<usize>,
}

/// One endpoint of a service at one of its ports.
#[derive(Debug, Clone, Copy)]
pub struct Backend<'a> {
    /// The workload there; `None`: known to be none of the mesh's.
    pub member: Option<&'a Member>,
    /// Its own address, of the family that was asked for.
    pub address: IpAddr,
    /// Its own port.
    pub port: u16,
    /// Whether the service may send it traffic.
    pub ready: bool,
    /// Node on which it runs; empty if unknown.
    pub node: &'a str,
}

/// What a source puts together that has settled every claim itself: each name and UID is there once.
#[derive(Debug, Default)]
pub struct Parts {
    /// In order of name. Of two with one address the later holds it.
    pub members: Vec<Arc<Member>>,
    /// In order of name. Services go before workloads where both claim an address.
    pub services: Vec<(ObjectName, Arc<Service>)>,
    /// By name.
    pub namespaces: BTreeMap<Arc<str>, NamespaceRules>,
    /// Addresses inside the ranges that are known to be nobody's of the mesh (nodes, the API server), unless a workload holds one.
    pub bare: BTreeSet<IpAddr>,
}

/// What a namespace says about all of its workloads.
#[derive(Debug, Default)]
pub struct NamespaceRules {
    /// There is a Namespace object; otherwise only policies name it.
    pub written: bool,
    /// From its labels.
    pub modes: Modes,
    /// Labels that say what nobody knows; the strictest holds instead.
    pub label_problems: Vec<LabelProblem>,
    /// Its label asks for sidecars.
    pub inject: bool,
    /// Its policies, in order of name.
    pub rules: Vec<Arc<Rule>>,
}

/// Everything that an answer about one address depends on, as a value: while it is equal, so is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    in_ranges: bool,
    holder: Option<Digest>,
}

/// Who holds an address.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// A workload: it is the address's own.
    Workload(&'a Member),
    /// A service.
    Service(&'a Virtual),
    /// Known to be nobody of the mesh.
    Bare,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Workload(usize),
    Service(usize),
    Bare,
}

/// Why no index can be made of the objects.
#[derive(Debug, PartialEq, Eq)]
pub enum BuildError {
    /// There is no Mesh object: nobody knows where the mesh begins.
    NoMesh,
    /// Objects that cannot stand side by side.
    Conflicts(Vec<Conflict>),
}

impl Index {
    /// Builds the index of all these objects, or says which of them cannot be.
    ///
    /// # Errors
    /// No Mesh, or objects at odds with each other, with the mesh's ranges or with the trust domain this process serves.
    pub fn build(objects: &[&Object], trust_domain: &TrustDomain) -> Result<Self, BuildError> {
        let at = objects.iter().find(|object| matches!(object.kind, Kind::Mesh(_))).copied();
        let mut conflicts = claims::conflicts(objects, at, trust_domain);
        let mut building = Building::default();
        for object in objects {
            if let Err(problem) = building.add(object, trust_domain) {
                conflicts.push(Conflict { sides: vec![problem] });
            }
        }
        if !conflicts.is_empty() {
            return Err(BuildError::Conflicts(conflicts));
        }
        match at.map(|object| &object.kind) {
            Some(Kind::Mesh(mesh)) => Ok(building.finish(mesh.clone())),
            _ => Err(BuildError::NoMesh),
        }
    }

    /// Builds the index of parts in which nothing is at odds any more.
    pub fn settled(mesh: Mesh, parts: Parts) -> Self {
        Building::of(parts).finish(mesh)
    }

    /// The mesh itself.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Whether the address may be meshed at all.
    pub fn in_ranges(&self, address: IpAddr) -> bool {
        contains(&self.mesh.pod_ranges, address) || contains(&self.mesh.service_ranges, address)
    }

    /// Who holds the address; it must be canonical.
    pub fn holder(&self, address: IpAddr) -> Option<Holder<'_>> {
        match *self.by_address.get(&address)? {
            Slot::Workload(i) => self.member(i).map(Holder::Workload),
            Slot::Service(i) => self.services.get(i).map(Holder::Service),
            Slot::Bare => Some(Holder::Bare),
        }
    }

    /// What an answer about this (canonical) address depends on; much cheaper than the answer.
    pub fn stamp(&self, address: IpAddr) -> Stamp {
        let holder = self.holder(address).map(|holder| match holder {
            Holder::Workload(member) => member.digest,
            Holder::Service(service) => service.digest,
            Holder::Bare => Digest::default(),
        });
        Stamp { in_ranges: self.in_ranges(address), holder }
    }

    /// The workload of a pod UID.
    pub fn by_uid(&self, uid: &str) -> Option<&Member> {
        self.by_uid.get(uid).and_then(|&i| self.member(i))
    }

    /// The workloads behind a service; one that is listed by two addresses comes twice.
    pub fn behind<'a>(&'a self, service: &'a Virtual) -> impl Iterator<Item = &'a Member> {
        service.behind.iter().filter_map(|behind| self.member(behind.member?))
    }

    /// The endpoints of a service at one of its ports, in the family of its address; `None`: it has no such port.
    pub fn backends<'a>(&'a self, service: &'a Virtual, of: IpAddr, port: u16) -> Option<Vec<Backend<'a>>> {
        let port = service.service.ports.iter().find(|known| known.port == port)?;
        Some(service.behind.iter().filter_map(|behind| self.backend(service, behind, of, *port)).collect())
    }

    fn backend<'a>(
        &'a self,
        service: &'a Virtual,
        behind: &Behind,
        of: IpAddr,
        port: ServicePort,
    ) -> Option<Backend<'a>> {
        let member = behind.member.and_then(|i| self.member(i));
        if let Some(i) = behind.listed {
            let listed = service.service.listed.get(i).filter(|listed| listed.address.is_ipv4() == of.is_ipv4())?;
            let (_, target) = *listed.ports.iter().find(|(known, _)| *known == port.port)?;
            let node = match (&*listed.node, member) {
                ("", Some(member)) => &member.workload.node,
                (node, _) => node,
            };
            return Some(Backend { member, address: listed.address, port: target, ready: listed.ready, node });
        }
        let workload = &member?.workload;
        // Like Kubernetes' EndpointSlices: one address of each family.
        let own = workload.addresses.iter().find(|own| own.value.is_ipv4() == of.is_ipv4())?;
        let (ready, node) = (workload.ready, workload.node.as_str());
        Some(Backend { member, address: own.value, port: port.target_port?, ready, node })
    }

    fn member(&self, i: usize) -> Option<&Member> {
        self.members.get(i).map(|member| &**member)
    }

    /// What binds all workloads of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceRules> {
        self.namespaces.get(name)
    }

    /// Every namespace that has labels or policies.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &NamespaceRules)> {
        self.namespaces.iter().map(|(name, rules)| (&**name, rules))
    }

    /// Every workload, in order of name.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Every service, in order of name.
    pub fn services(&self) -> &[Virtual] {
        &self.services
    }

    /// How many objects of each kind.
    pub fn counts(&self) -> [(&'static str, usize); 5] {
        let namespaces = self.namespaces.values().filter(|rules| rules.written).count();
        let policies = self.namespaces.values().map(|rules| rules.rules.len()).sum();
        [
            ("Mesh", 1),
            ("Namespace", namespaces),
            ("Workload", self.members.len()),
            ("Service", self.services.len()),
            ("AuthorizationPolicy", policies),
        ]
    }

    /// Changes exactly when some answer may: who is where, behind what, in which ranges.
    pub fn topology(&self) -> &Digest {
        &self.topology
    }

    /// Changes exactly when anything here does; the same on every replica.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl Member {
    /// With all that follows from it. Costs some microseconds: a source keeps it while the workload is the same.
    ///
    /// # Errors
    /// Its namespace and service account make no SPIFFE id.
    pub fn new(name: ObjectName, workload: Arc<Workload>, trust_domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        let id = SpiffeId::for_service_account(trust_domain, &name.namespace, &workload.service_account)?;
        let digest = build::workload_digest(&name, &workload, &id);
        let whole = build::whole_digest(&digest, &workload);
        Ok(Member { name, workload, id, digest, whole })
    }
}

impl NamespaceRules {
    /// Adds the three words.
    pub fn modes_content(&self, content: Content) -> Content {
        let Modes { mtls, posture, egress } = self.modes;
        content.text(mtls.as_str()).text(posture.as_str()).text(egress.as_str())
    }
}

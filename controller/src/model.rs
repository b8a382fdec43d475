//! What the mesh is made of, as a source states it: typed objects, each with the place it came from.
//!
//! Made by `source`, read by `index`. It holds values only: it must never decide who is where or which rule binds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use countersign_api::controller as wire;
use countersign_identity::TrustDomain;
use countersign_policy::{Action, Policy};
use ipnet::IpNet;
use prost::Message;
use serde::Serialize;

use crate::digest::{Content, Digest};

/// Longest UID of a pod; Kubernetes' own are UUIDs (36).
pub const MAX_UID_BYTES: usize = 128;

/// Labels of a namespace or a workload.
pub type Labels = BTreeMap<String, String>;

/// Where an object was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Path of the file, relative to the source's directory.
    pub file: Arc<str>,
    /// From 1; 0 where it is not known.
    pub line: u32,
    /// From 1, in characters; 0 where it is not known.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub place: Place,
}

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Empty for objects that live in no namespace.
    pub namespace: Arc<str>,
    /// Unique among its kind in the namespace.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The mesh itself: one object in the whole source.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Where its identities live.
    pub trust_domain: TrustDomain,
    /// Pods' addresses. Outside these and the services' nobody is meshed.
    pub pod_ranges: Vec<IpNet>,
    /// Services' addresses.
    pub service_ranges: Vec<IpNet>,
}

/// A namespace's labels; its modes are read from them.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// All of its labels.
    pub labels: Labels,
}

/// One pod or machine.
#[derive(Debug, Clone)]
pub struct Workload {
    /// What its policies and services select by.
    pub labels: Labels,
    /// The pod's UID: what its proxy says in `Hello`.
    pub uid: At<Arc<str>>,
    /// Its service account, of its own namespace.
    pub service_account: String,
    /// Its own addresses, canonical (never IPv4-mapped IPv6).
    pub addresses: Vec<At<IpAddr>>,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// Whether services may send it traffic.
    pub ready: bool,
    /// Node on which it runs; empty if unknown.
    pub node: String,
}

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The port at the service's address.
    pub port: u16,
    /// The port at the endpoints' addresses; `None`: each endpoint says its own ([`Listed::ports`]).
    pub target_port: Option<u16>,
}

/// One address behind a service, as a source lists it (Kubernetes: an endpoint of an EndpointSlice).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Canonical.
    pub address: IpAddr,
    /// UID of the pod that it is meant to be; `None`: it does not say.
    pub uid: Option<Arc<str>>,
    /// Whether the service may send it traffic.
    pub ready: bool,
    /// Node on which it runs; empty if unknown.
    pub node: Arc<str>,
    /// Port of the service, and the port at this address.
    pub ports: Arc<[(u16, u16)]>,
}

/// One service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its virtual addresses; none for a headless one.
    pub addresses: Vec<At<IpAddr>>,
    /// Which workloads *of its own namespace* stand behind it; `None` selects nobody.
    pub selector: Option<Labels>,
    /// What stands behind it, address by address, where the source says so instead of a selector.
    pub listed: Vec<Listed>,
    /// Its ports, each number once.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `sessionAffinity: ClientIP`, in seconds; 0 = none.
    pub affinity_seconds: u32,
}

/// One AuthorizationPolicy, ready to be sent.
#[derive(Debug)]
pub struct Rule {
    /// The policy itself.
    pub policy: Policy,
    /// As it goes over the stream.
    pub wire: wire::Rule,
    /// Of `wire`.
    pub digest: Digest,
}

impl Rule {
    /// Once for each policy read, however often an index is built of it.
    pub fn new(policy: Policy) -> Self {
        let action = match policy.action() {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        };
        let wire = wire::Rule {
            namespace: policy.namespace().to_owned(),
            name: policy.name().to_owned(),
            action: action.into(),
            feature: policy.feature_level(),
            policy_json: policy.to_json(),
        };
        Rule { digest: Content::of("rule").bytes(&wire.encode_to_vec()).finish(), policy, wire }
    }
}

/// What an object is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The mesh itself.
    Mesh(Mesh),
    /// A namespace.
    Namespace(Namespace),
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A rule.
    Policy(Arc<Rule>),
}

impl Kind {
    /// As spelled in `kind:`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Mesh(_) => "Mesh",
            Kind::Namespace(_) => "Namespace",
            Kind::Workload(_) => "Workload",
            Kind::Service(_) => "Service",
            Kind::Policy(_) => "AuthorizationPolicy",
        }
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Where it was written.
    pub place: Place,
    /// What it is called.
    pub name: ObjectName,
    /// What it is.
    pub kind: Kind,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// What is wrong with a source, and where. One line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
pub struct Problem {
    /// Path relative to the source's directory; the directory itself is `.`.
    pub file: String,
    /// From 1; 0 where no line is to blame.
    pub line: u32,
    /// From 1, in characters; 0 where it is not known.
    pub column: u32,
    /// Like `spec.addresses[0]`; empty where no field is to blame.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Problem { file: file.into(), line: 0, column: 0, field: String::new(), message: message.into() }
    }

    /// A problem of a field at a known place.
    pub fn at(place: &Place, field: impl Into<String>, message: impl Into<String>) -> Self {
        Problem {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

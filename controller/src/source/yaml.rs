//! One YAML text to objects, strictly: what is unknown, doubled or of the wrong type is refused, with file, line, column and field.
//!
//! Called by `source::dir` for each file that changed. It must never repair or skip what it does not understand: half a
//! file is not a file.

mod raw;
mod reader;

use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::TrustDomain;
use countersign_policy::{Document, ParseError};
use ipnet::IpNet;
use serde_saphyr::Spanned;

use self::reader::{Reader, clip};
use crate::model::{
    At, Kind, MAX_UID_BYTES, Mesh, Namespace, Object, ObjectName, Problem, Rule, Service, ServicePort, Workload,
};
use crate::source::Limits;

/// `apiVersion` of Mesh, Workload and Service.
pub const API_VERSION: &str = "countersign.dev/v1alpha1";

/// Of one workload or service: more is a mistake.
const MAX_ADDRESSES: usize = 16;
/// Of one service.
const MAX_PORTS: usize = 256;
/// Of one mesh, each kind.
const MAX_RANGES: usize = 64;
/// Kubernetes' default for `sessionAffinity: ClientIP`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Kubernetes' longest affinity: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Reads every document of one file.
pub fn parse(file: &str, text: &str, limits: &Limits) -> Result<Vec<Object>, Problem> {
    if text.trim().is_empty() {
        return Err(Problem::of_file(file, "is empty; delete the file to remove its objects"));
    }
    let documents = countersign_policy::documents(file, text).map_err(from_policy)?;
    if documents.len() > limits.documents {
        let message = format!("holds {} documents; at most {} are read", documents.len(), limits.documents);
        return Err(Problem::of_file(file, message));
    }
    let file: Arc<str> = file.into();
    documents.iter().map(|d| object(&file, d)).collect()
}

fn object(file: &Arc<str>, document: &Document<'_>) -> Result<Object, Problem> {
    let reader =
        Reader { file, document, before: u32::try_from(document.first_line.saturating_sub(1)).unwrap_or(u32::MAX) };
    match (document.api_version.as_str(), document.kind.as_str()) {
        (countersign_policy::API_VERSION, countersign_policy::KIND) => reader.policy(),
        (API_VERSION, "Mesh") => reader.mesh(),
        ("v1", "Namespace") => reader.namespace(),
        (API_VERSION, "Workload") => reader.workload(),
        (API_VERSION, "Service") => reader.service(),
        (version, kind) => Err(reader.problem_at_start(
            "kind",
            format!(
                "{:?} of apiVersion {:?} is not known; known are v1 Namespace, {API_VERSION} Mesh, Workload and Service, {} {}",
                clip(kind),
                clip(version),
                countersign_policy::API_VERSION,
                countersign_policy::KIND
            ),
        )),
    }
}

impl Reader<'_> {
    fn policy(&self) -> Result<Object, Problem> {
        let policy = countersign_policy::parse_document(self.file, self.document).map_err(from_policy)?;
        Ok(Object {
            place: self.start(),
            name: ObjectName { namespace: policy.namespace().into(), name: policy.name().into() },
            kind: Kind::Policy(Arc::new(Rule::new(policy))),
        })
    }

    fn mesh(&self) -> Result<Object, Problem> {
        let doc: raw::Doc<raw::Mesh> = self.read()?;
        let (place, name) = self.cluster_wide(doc.metadata)?;
        let trust_domain = TrustDomain::parse(&doc.spec.trust_domain.value).map_err(|error| {
            let message = format!("{:?}: {error}", clip(&doc.spec.trust_domain.value));
            self.problem(&doc.spec.trust_domain, "spec.trustDomain", message)
        })?;
        if doc.spec.pod_ranges.is_empty() {
            return Err(self.problem_at_start("spec.podRanges", "is empty: nobody would be meshed"));
        }
        let mesh = Mesh {
            trust_domain,
            pod_ranges: self.ranges("spec.podRanges", doc.spec.pod_ranges)?,
            service_ranges: self.ranges("spec.serviceRanges", doc.spec.service_ranges)?,
        };
        for pod in &mesh.pod_ranges {
            for service in &mesh.service_ranges {
                if pod.contains(service) || service.contains(pod) {
                    return Err(self
                        .problem_at_start("spec.serviceRanges", format!("{service} and {pod} of podRanges overlap")));
                }
            }
        }
        Ok(Object { place, name, kind: Kind::Mesh(mesh) })
    }

    fn namespace(&self) -> Result<Object, Problem> {
        let doc: raw::NamespaceDoc = self.read()?;
        let labels = doc.metadata.labels.clone();
        let (place, name) = self.cluster_wide(doc.metadata)?;
        Ok(Object { place, name, kind: Kind::Namespace(Namespace { labels }) })
    }

    fn workload(&self) -> Result<Object, Problem> {
        let doc: raw::Doc<raw::Workload> = self.read()?;
        let labels = doc.metadata.labels.clone();
        let (place, name) = self.namespaced(doc.metadata)?;
        let spec = doc.spec;
        self.check_name("spec.serviceAccount", &spec.service_account)?;
        if !(1..=MAX_UID_BYTES).contains(&spec.uid.value.len()) {
            return Err(self.problem(&spec.uid, "spec.uid", format!("is empty or longer than {MAX_UID_BYTES} bytes")));
        }
        if let Some(node) = &spec.node {
            self.check_name("spec.node", node)?;
        }
        if spec.addresses.is_empty() {
            return Err(self.problem_at_start("spec.addresses", "is empty"));
        }
        let workload = Workload {
            labels,
            uid: At { place: self.place(&spec.uid), value: spec.uid.value.into() },
            service_account: spec.service_account.value,
            addresses: self.addresses(spec.addresses)?,
            meshed: spec.meshed,
            ready: spec.ready,
            node: spec.node.map(|node| node.value).unwrap_or_default(),
        };
        Ok(Object { place, name, kind: Kind::Workload(Arc::new(workload)) })
    }

    fn service(&self) -> Result<Object, Problem> {
        let doc: raw::Doc<raw::Service> = self.read()?;
        let (place, name) = self.namespaced(doc.metadata)?;
        let spec = doc.spec;
        if let Some(selector) = &spec.selector {
            self.check_labels("spec.selector", selector)?;
            if selector.is_empty() {
                return Err(self.problem_at_start("spec.selector", "is empty; omit it for a service without endpoints"));
            }
        }
        let service = Service {
            addresses: self.addresses(spec.addresses)?,
            selector: spec.selector,
            listed: Vec::new(),
            ports: self.ports(spec.ports)?,
            local_only: matches!(spec.internal_traffic_policy, raw::TrafficPolicy::Local),
            affinity_seconds: self.affinity(&spec.session_affinity, spec.session_affinity_config)?,
        };
        Ok(Object { place, name, kind: Kind::Service(Arc::new(service)) })
    }

    fn ports(&self, ports: Vec<raw::Port>) -> Result<Vec<ServicePort>, Problem> {
        if ports.len() > MAX_PORTS {
            return Err(self.problem_at_start("spec.ports", format!("holds more than {MAX_PORTS}")));
        }
        let mut read: Vec<ServicePort> = Vec::with_capacity(ports.len());
        for (i, raw) in ports.iter().enumerate() {
            let number = |field: &str, value: &Spanned<i64>| {
                u16::try_from(value.value).ok().filter(|port| *port > 0).ok_or_else(|| {
                    let message = format!("{} is not a port (1-65535)", value.value);
                    self.problem(value, format!("spec.ports[{i}].{field}"), message)
                })
            };
            let port = number("port", &raw.port)?;
            let target_port = match &raw.target_port {
                Some(value) => number("targetPort", value)?,
                None => port,
            };
            if read.iter().any(|other| other.port == port) {
                let message = format!("{port} stands there twice");
                return Err(self.problem(&raw.port, format!("spec.ports[{i}].port"), message));
            }
            read.push(ServicePort { port, target_port: Some(target_port) });
        }
        Ok(read)
    }

    fn affinity(&self, affinity: &raw::Affinity, config: Option<raw::AffinityConfig>) -> Result<u32, Problem> {
        match (affinity, config) {
            (raw::Affinity::None, None) => Ok(0),
            (raw::Affinity::None, Some(_)) => {
                Err(self
                    .problem_at_start("spec.sessionAffinityConfig", "has no meaning without sessionAffinity: ClientIP"))
            }
            (raw::Affinity::ClientIp, None) => Ok(DEFAULT_AFFINITY_SECONDS),
            (raw::Affinity::ClientIp, Some(config)) => {
                let seconds = config.client_ip.timeout_seconds;
                u32::try_from(seconds.value).ok().filter(|s| (1..=MAX_AFFINITY_SECONDS).contains(s)).ok_or_else(|| {
                    let message = format!("{} is not 1 to {MAX_AFFINITY_SECONDS}", seconds.value);
                    self.problem(&seconds, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", message)
                })
            }
        }
    }

    fn addresses(&self, raw: Vec<Spanned<String>>) -> Result<Vec<At<IpAddr>>, Problem> {
        if raw.len() > MAX_ADDRESSES {
            return Err(self.problem_at_start("spec.addresses", format!("holds more than {MAX_ADDRESSES}")));
        }
        let mut addresses: Vec<At<IpAddr>> = Vec::with_capacity(raw.len());
        for (i, text) in raw.into_iter().enumerate() {
            let field = format!("spec.addresses[{i}]");
            let Ok(address) = text.value.parse::<IpAddr>() else {
                return Err(self.problem(&text, field, format!("{:?} is not an IP address", clip(&text.value))));
            };
            let address = address.to_canonical();
            if address.is_unspecified() || address.is_multicast() {
                return Err(self.problem(&text, field, format!("{address} is nobody's own address")));
            }
            addresses.push(At { value: address, place: self.place(&text) });
        }
        Ok(addresses)
    }

    fn ranges(&self, field: &str, raw: Vec<Spanned<String>>) -> Result<Vec<IpNet>, Problem> {
        if raw.len() > MAX_RANGES {
            return Err(self.problem_at_start(field, format!("holds more than {MAX_RANGES}")));
        }
        let mut ranges = Vec::with_capacity(raw.len());
        for (i, text) in raw.into_iter().enumerate() {
            let field = format!("{field}[{i}]");
            let Ok(range) = text.value.parse::<IpNet>() else {
                let message = format!("{:?} is not a CIDR like 10.77.0.0/24", clip(&text.value));
                return Err(self.problem(&text, field, message));
            };
            if range.trunc() != range {
                let message = format!("{range} has host bits set; {} is meant?", range.trunc());
                return Err(self.problem(&text, field, message));
            }
            if range.addr().to_canonical() != range.addr() {
                return Err(self.problem(&text, field, "write the range as IPv4"));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }
}

fn from_policy(error: ParseError) -> Problem {
    Problem {
        file: error.file,
        line: u32::try_from(error.line).unwrap_or(u32::MAX),
        column: u32::try_from(error.column).unwrap_or(u32::MAX),
        field: error.field,
        message: error.message,
    }
}

#[cfg(test)]
#[path = "yaml/tests.rs"]
mod tests;

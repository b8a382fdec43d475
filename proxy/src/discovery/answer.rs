//! The controller's answers, from protobuf to what the journeys use.
//!
//! Called by `stream`. It must never make more of an answer than it says: what is not understood is nobody, and an endpoint
//! that is not understood is left out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use countersign_api::controller as api;
use countersign_identity::SpiffeId;

use super::{Endpoint, Identity, Service, Who, canonical};

/// Longest life of an un-meshed answer, whatever the controller says.
pub const MAX_TTL: Duration = Duration::from_secs(30);

/// An answer, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// Who is there.
    pub who: Who,
    /// How long it may be used; set where any part of it is un-meshed.
    pub ttl: Option<Duration>,
    /// What was not understood, and so refused or left out.
    pub problems: Vec<Problem>,
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No address, or one that is none.
    #[error("an address of {0} bytes")]
    Address(usize),
    /// A port above 65535, or none where one must be dialled.
    #[error("{0} is not a port")]
    Port(u32),
    /// An answer of a kind that this proxy does not know.
    #[error("an answer of a kind that is not known here")]
    Kind,
    /// An endpoint without an identity, or with one that is none.
    #[error("endpoint {0}: no identity that is understood")]
    Identity(SocketAddr),
    /// An answer about a pod's address that speaks of another address.
    #[error("asked for {asked}, answered for {answered}")]
    OtherAddress { asked: SocketAddr, answered: SocketAddr },
    /// An endpoint of another namespace than its service's (CVE-2021-25740).
    #[error("endpoint {address} is {id}, outside the service's namespace")]
    OtherNamespace { address: SocketAddr, id: SpiffeId },
}

/// Reads an answer.
///
/// # Errors
/// Where it cannot be told what was asked for; everything else that is wrong is in [`Read::problems`].
pub fn read(answer: api::Answer) -> Result<Read, Problem> {
    let address = address(answer.address.as_ref())?;
    let mut problems = Vec::new();
    let (who, ttl) = match answer.who {
        Some(api::answer::Who::Unknown(_)) => (Who::Unknown, None),
        Some(api::answer::Who::NotMeshed(not_meshed)) => (Who::NotMeshed, Some(ttl(&not_meshed))),
        Some(api::answer::Who::Endpoint(one)) => match own_address(address, &one) {
            Ok((endpoint, ttl)) => (Who::Endpoint(Arc::new(endpoint)), ttl),
            Err(problem) => {
                problems.push(problem);
                (Who::Unknown, None)
            }
        },
        Some(api::answer::Who::Service(service)) => {
            let (service, ttl) = read_service(service, &mut problems);
            (Who::Service(Arc::new(service)), ttl)
        }
        None => {
            problems.push(Problem::Kind);
            (Who::Unknown, None)
        }
    };
    Ok(Read { address, who, ttl, problems })
}

/// Writes an address as the controller wants it.
pub fn write_address(addr: SocketAddr) -> api::Address {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    api::Address { ip, port: u32::from(addr.port()) }
}

fn address(address: Option<&api::Address>) -> Result<SocketAddr, Problem> {
    let address = address.ok_or(Problem::Address(0))?;
    let bytes = address.ip.as_slice();
    let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    let ip = ip.map_err(|_| Problem::Address(bytes.len()))?;
    let port = u16::try_from(address.port).map_err(|_| Problem::Port(address.port))?;
    Ok(canonical(SocketAddr::new(ip, port)))
}

/// The answer for a pod's own address: about that address, and no other.
fn own_address(asked: SocketAddr, one: &api::Endpoint) -> Result<(Endpoint, Option<Duration>), Problem> {
    let answered = address(one.address.as_ref())?;
    if answered.ip() != asked.ip() {
        return Err(Problem::OtherAddress { asked, answered });
    }
    read_endpoint(asked, one)
}

fn read_service(service: api::Service, problems: &mut Vec<Problem>) -> (Service, Option<Duration>) {
    let mut shortest: Option<Duration> = None;
    let mut endpoints = Vec::with_capacity(service.endpoints.len());
    for one in &service.endpoints {
        match service_endpoint(&service.namespace, one) {
            Ok((endpoint, ttl)) => {
                shortest = [shortest, ttl].into_iter().flatten().min();
                endpoints.push(Arc::new(endpoint));
            }
            Err(problem) => problems.push(problem),
        }
    }
    let affinity = (service.affinity_seconds > 0).then(|| Duration::from_secs(service.affinity_seconds.into()));
    let read = Service {
        namespace: service.namespace.into(),
        name: service.name.into(),
        endpoints,
        local_only: service.local_only,
        affinity,
    };
    (read, shortest)
}

fn service_endpoint(namespace: &str, one: &api::Endpoint) -> Result<(Endpoint, Option<Duration>), Problem> {
    let address = address(one.address.as_ref())?;
    if address.port() == 0 {
        return Err(Problem::Port(0));
    }
    let (endpoint, ttl) = read_endpoint(address, one)?;
    if let Identity::Meshed(id) = &endpoint.identity
        && id.service_account().is_some_and(|(its, _)| its != namespace)
    {
        return Err(Problem::OtherNamespace { address, id: id.clone() });
    }
    Ok((endpoint, ttl))
}

fn read_endpoint(address: SocketAddr, one: &api::Endpoint) -> Result<(Endpoint, Option<Duration>), Problem> {
    let (identity, ttl) = match &one.identity {
        Some(api::endpoint::Identity::SpiffeId(id)) => {
            let id = SpiffeId::parse(id).map_err(|_| Problem::Identity(address))?;
            (Identity::Meshed(id), None)
        }
        Some(api::endpoint::Identity::NotMeshed(not_meshed)) => (Identity::NotMeshed, Some(ttl(not_meshed))),
        None => return Err(Problem::Identity(address)),
    };
    Ok((Endpoint { address, identity, ready: one.ready, node: one.node.as_str().into() }, ttl))
}

fn ttl(not_meshed: &api::NotMeshed) -> Duration {
    match not_meshed.ttl_seconds {
        0 => MAX_TTL,
        seconds => Duration::from_secs(seconds.into()).min(MAX_TTL),
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;

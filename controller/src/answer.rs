//! Who is there? One address in, one answer out (ARCHITECTURE.md, controller). Pure.
//!
//! Called by `server` for each lookup and again when the picture changes. It must never answer "not meshed" for an address
//! inside the ranges that it does not know: that would turn encryption off.

use std::net::IpAddr;

use countersign_api::controller as api;
use countersign_api::controller::answer::Who;
use countersign_api::controller::endpoint::Identity;

use crate::index::{Backend, Holder, Index, Virtual};

/// How long "has no sidecar" may be believed, in seconds.
pub const NOT_MESHED_TTL_SECONDS: u32 = 30;

/// What a proxy asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    /// As asked; an IPv4-mapped IPv6 address is looked up as the IPv4 one it is.
    pub ip: IpAddr,
    /// 0 = the address alone.
    pub port: u16,
}

/// Why an `Address` is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither 4 nor 16 bytes.
    #[error("an address of {0} bytes; 4 or 16 are one")]
    Length(usize),
    /// Over 65535.
    #[error("{0} is not a port")]
    Port(u32),
}

impl Asked {
    /// Reads an address from the stream.
    ///
    /// # Errors
    /// The bytes are not an address, or the port is none.
    pub fn from_wire(address: &api::Address) -> Result<Self, AddressError> {
        let ip = if let Ok(four) = <[u8; 4]>::try_from(&address.ip[..]) {
            IpAddr::from(four)
        } else if let Ok(sixteen) = <[u8; 16]>::try_from(&address.ip[..]) {
            IpAddr::from(sixteen)
        } else {
            return Err(AddressError::Length(address.ip.len()));
        };
        let port = u16::try_from(address.port).map_err(|_| AddressError::Port(address.port))?;
        Ok(Self { ip, port })
    }

    /// As it goes over the stream.
    pub fn to_wire(self) -> api::Address {
        let ip = match self.ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        api::Address { ip, port: self.port.into() }
    }
}

/// Who is there.
///
/// - Outside the ranges: not meshed (a proxy does not ask).
/// - A workload's own address: that endpoint, ready or not; `NotMeshed` if it has no sidecar.
/// - A service's address and one of its ports: its endpoints of that address family, ready or not, each at its target port.
/// - Anything else inside the ranges, also a service's address with a port that it does not have, or alone (nobody sends
///   from a service's address): unknown.
pub fn who(index: &Index, asked: Asked) -> api::Answer {
    let ip = asked.ip.to_canonical();
    let who = match index.holder(ip) {
        _ if !index.in_ranges(ip) => Who::NotMeshed(not_meshed()),
        Some(Holder::Workload(member)) if member.workload.meshed => {
            let (ready, node) = (member.workload.ready, member.workload.node.as_str());
            let (address, port) = (asked.ip, asked.port);
            Who::Endpoint(endpoint(&Backend { member: Some(member), address, port, ready, node }))
        }
        Some(Holder::Workload(_) | Holder::Bare) => Who::NotMeshed(not_meshed()),
        Some(Holder::Service(service)) => match index.backends(service, ip, asked.port) {
            Some(backends) => Who::Service(endpoints(service, &backends)),
            None => Who::Unknown(api::Nobody {}),
        },
        None => Who::Unknown(api::Nobody {}),
    };
    api::Answer { address: Some(asked.to_wire()), who: Some(who) }
}

/// The kind of an answer, for metrics.
pub fn label(answer: &api::Answer) -> &'static str {
    match answer.who {
        Some(Who::Endpoint(_)) => "endpoint",
        Some(Who::Service(_)) => "service",
        Some(Who::NotMeshed(_)) => "not_meshed",
        Some(Who::Unknown(_)) | None => "unknown",
    }
}

fn endpoints(service: &Virtual, backends: &[Backend<'_>]) -> api::Service {
    api::Service {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        endpoints: backends.iter().map(endpoint).collect(),
        local_only: service.service.local_only,
        affinity_seconds: service.service.affinity_seconds,
    }
}

fn endpoint(backend: &Backend<'_>) -> api::Endpoint {
    let identity = match backend.member {
        Some(member) if member.workload.meshed => Identity::SpiffeId(member.id.as_str().to_owned()),
        _ => Identity::NotMeshed(not_meshed()),
    };
    api::Endpoint {
        address: Some(Asked { ip: backend.address, port: backend.port }.to_wire()),
        identity: Some(identity),
        ready: backend.ready,
        node: backend.node.to_owned(),
    }
}

fn not_meshed() -> api::NotMeshed {
    api::NotMeshed { ttl_seconds: NOT_MESHED_TTL_SECONDS }
}

#[cfg(test)]
#[path = "answer/tests.rs"]
mod tests;

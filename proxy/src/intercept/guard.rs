//! Guards on destinations: a neighbour on the link chooses the destination of what it sends us, so the original
//! destination is an attacker's word until it passed here. Pure; called by both journeys first of all.
//!
//! The redirect acts before routing: a packet for 127.0.0.1 that arrives on the pod's link is redirected to our listener before
//! the kernel can call it martian, and connection tracking then names that address (docs/decisions/0002).

use std::net::{IpAddr, SocketAddr};

use countersign_api::ports;

/// This pod's addresses and this proxy's ports.
#[derive(Clone, Debug)]
pub struct Own {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// An address and port of this pod that others may name, and that the app may be dialled at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundDestination(SocketAddr);

impl InboundDestination {
    /// The original pod address: the app is never dialled at loopback, which would make every peer local.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.0
    }

    /// The port by which rules are chosen.
    #[must_use]
    pub fn port(self) -> u16 {
        self.0.port()
    }
}

/// Why a destination was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDestination {
    /// 127.0.0.0/8 or `::1`.
    #[error("{0} is a loopback address")]
    Loopback(SocketAddr),
    /// Not one of the pod's own addresses.
    #[error("{0} is not an address of this pod")]
    NotOurs(SocketAddr),
    /// One of the proxy's own ports: a connection that was not redirected, or one that names us.
    #[error("{0} is a port of the proxy itself")]
    OwnPort(SocketAddr),
}

impl Own {
    /// The pod's addresses, and every port on which the proxy listens or answers.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>, ports: impl IntoIterator<Item = u16>) -> Self {
        Self {
            addresses: addresses.into_iter().map(|ip| ip.to_canonical()).collect(),
            ports: ports.into_iter().collect(),
        }
    }

    /// Whether it is an address of this pod.
    #[must_use]
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }

    /// Whether it names the port on which nobody listens, at an address of this pod: reached only by a redirect, and answered by
    /// the proxy itself (`proof`). The one exception to the guards below.
    #[must_use]
    pub fn is_self_proof(&self, named: SocketAddr) -> bool {
        named.port() == ports::SELF_PROOF && self.is_own(named.ip())
    }

    /// Judges where an inbound connection was going.
    ///
    /// # Errors
    /// [`BadDestination`]: loopback, another host, or one of our own ports.
    pub fn inbound(&self, named: SocketAddr) -> Result<InboundDestination, BadDestination> {
        let named = canonical(named);
        if named.ip().is_loopback() {
            return Err(BadDestination::Loopback(named));
        }
        if !self.is_own(named.ip()) {
            return Err(BadDestination::NotOurs(named));
        }
        if self.ports.contains(&named.port()) {
            return Err(BadDestination::OwnPort(named));
        }
        Ok(InboundDestination(named))
    }

    /// Judges where an outbound connection was going.
    ///
    /// # Errors
    /// [`BadDestination`]: a loopback address is never redirected, so somebody dialled our listener itself; or one of our own
    /// ports at an own address.
    pub fn outbound(&self, named: SocketAddr) -> Result<SocketAddr, BadDestination> {
        let named = canonical(named);
        if named.ip().is_loopback() {
            return Err(BadDestination::Loopback(named));
        }
        if self.is_own(named.ip()) && self.ports.contains(&named.port()) {
            return Err(BadDestination::OwnPort(named));
        }
        Ok(named)
    }
}

/// IPv4-mapped IPv6 addresses as what they are, so that no address has two spellings.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own::new(["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()], [15001, 15006, 15020, 15021])
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_pods_own_addresses_pass() {
        for address in ["10.77.0.2:80", "[fd77::2]:80"] {
            assert_eq!(own().inbound(at(address)).unwrap().address(), at(address));
        }
        assert_eq!(own().inbound(at("[::ffff:10.77.0.2]:80")).unwrap().address(), at("10.77.0.2:80"));
    }

    #[test]
    fn a_neighbour_cannot_name_loopback() {
        for address in ["127.0.0.1:80", "127.9.9.9:6379", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(matches!(own().inbound(at(address)), Err(BadDestination::Loopback(_))), "{address}");
        }
    }

    #[test]
    fn a_neighbour_cannot_name_another_host() {
        for address in
            ["10.77.0.3:80", "169.254.169.254:80", "0.0.0.0:80", "[::]:80", "255.255.255.255:80", "[fe80::1]:80"]
        {
            assert!(matches!(own().inbound(at(address)), Err(BadDestination::NotOurs(_))), "{address}");
        }
    }

    #[test]
    fn nobody_can_name_the_proxys_own_ports() {
        for port in [15001, 15006, 15020, 15021] {
            let named = SocketAddr::new("10.77.0.2".parse().unwrap(), port);
            assert!(matches!(own().inbound(named), Err(BadDestination::OwnPort(_))), "{port}");
            assert!(matches!(own().outbound(named), Err(BadDestination::OwnPort(_))), "{port}");
        }
    }

    #[test]
    fn only_an_own_address_proves_a_redirect() {
        for (address, proves) in [
            ("10.77.0.2:15021", true),
            ("[fd77::2]:15021", true),
            ("[::ffff:10.77.0.2]:15021", true),
            ("10.77.0.3:15021", false),
            ("127.0.0.1:15021", false),
            ("[::1]:15021", false),
            ("10.77.0.2:15020", false),
        ] {
            assert_eq!(own().is_self_proof(at(address)), proves, "{address}");
        }
    }

    #[test]
    fn the_outbound_listener_is_never_its_own_destination() {
        for address in ["127.0.0.1:15001", "[::1]:15001", "[::ffff:127.0.0.1]:15001", "127.0.0.1:80"] {
            assert!(own().outbound(at(address)).is_err(), "{address}");
        }
        assert_eq!(own().outbound(at("10.77.0.9:15001")), Ok(at("10.77.0.9:15001")), "another pod's port 15001");
    }
}

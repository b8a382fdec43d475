//! Where an outbound connection goes next: who is at its destination, which endpoint of a service, and what is left to try
//! after a failure. Called by `outbound` only. It must never turn a failure into plaintext: what was meshed stays meshed.

use std::net::SocketAddr;

use countersign_identity::SpiffeId;
use tokio::time::Instant;

use crate::discovery::{Endpoint, Identity, LookupError, Who};
use crate::outcome::Blame;
use crate::proxy::{Proxy, Refusal};

/// Endpoints dialled for one connection: the first, and up to two others.
const MOST_DIALS: usize = 3;
/// Further tries after the server side proved that no byte reached the app.
const MOST_RETRIES: usize = 2;

/// The next place to try.
#[derive(Debug)]
pub enum Hop {
    /// An address of this very pod.
    Own(SocketAddr),
    /// Nobody meshed is there.
    Plain {
        /// What to dial.
        address: SocketAddr,
        /// Inside the mesh's ranges.
        inside: bool,
    },
    /// A sidecar that must prove this identity.
    Meshed {
        /// What to dial.
        address: SocketAddr,
        /// Whom to expect.
        id: SpiffeId,
    },
}

/// One connection's way, and what was tried on it.
#[derive(Debug)]
pub struct Route {
    destination: SocketAddr,
    /// Whether the destination is a service, so that there may be others to try.
    others: bool,
    tried: Vec<SocketAddr>,
    retries: usize,
    asked_again: bool,
    last: Option<Refusal>,
}

impl Route {
    /// Nothing tried yet.
    #[must_use]
    pub fn new(destination: SocketAddr) -> Self {
        Self { destination, others: false, tried: Vec::new(), retries: 0, asked_again: false, last: None }
    }

    /// Who is there, as known now, and which endpoint is next.
    ///
    /// # Errors
    /// Unknown, no answer, nobody ready, or the failure of the last endpoint when no other is left.
    pub async fn next_hop(&mut self, proxy: &Proxy) -> Result<Hop, Refusal> {
        if proxy.own.is_own(self.destination.ip()) {
            return Ok(Hop::Own(self.destination));
        }
        match proxy.discovery.who(self.destination).await {
            Err(error) => Err(no_answer(error)),
            Ok(Who::Unknown) => Err(Refusal::control_plane(
                "unknown_destination",
                "the address is inside the mesh's ranges, and the controller knows nobody there",
            )),
            Ok(Who::Outside) => Ok(Hop::Plain { address: self.destination, inside: false }),
            Ok(Who::NotMeshed) => Ok(Hop::Plain { address: self.destination, inside: true }),
            Ok(Who::Endpoint(endpoint)) => Ok(hop(proxy, &endpoint)),
            Ok(Who::Service(service)) => {
                self.others = true;
                let node = proxy.discovery.node().unwrap_or_default();
                let (tried, now) = (&self.tried, Instant::now());
                let picked = proxy.picks.pick(&service, self.destination, &node, tried, now, &mut rand::rng());
                match picked {
                    Some(endpoint) => Ok(hop(proxy, &endpoint)),
                    None => Err(self.last.take().unwrap_or_else(|| {
                        let detail = format!("no endpoint of {}/{} is ready", service.namespace, service.name);
                        Refusal::control_plane("no_ready_endpoint", detail)
                    })),
                }
            }
        }
    }

    /// An endpoint could not be reached, before any byte of the app was sent.
    ///
    /// # Errors
    /// The refusal, when no other may be tried.
    pub fn failed(&mut self, address: SocketAddr, refusal: Refusal) -> Result<(), Refusal> {
        self.tried.push(address);
        if !self.others || self.tried.len() >= MOST_DIALS {
            return Err(refusal);
        }
        self.last = Some(refusal);
        Ok(())
    }

    /// Somebody else was at the address: the answer is dropped, and asked for once more.
    ///
    /// # Errors
    /// The refusal, when that was done before.
    pub fn mistaken(&mut self, proxy: &Proxy, refusal: Refusal) -> Result<(), Refusal> {
        proxy.discovery.distrust(self.destination);
        if std::mem::replace(&mut self.asked_again, true) {
            return Err(refusal);
        }
        Ok(())
    }

    /// The server side at `address` did not take the connection; every byte is `still_held`, or not.
    ///
    /// # Errors
    /// The refusal, when another try is not possible.
    pub fn retry(&mut self, address: SocketAddr, refusal: Refusal, still_held: bool) -> Result<(), Refusal> {
        // A kept link that was just closing says nothing about the endpoint behind it.
        let same_again = refusal.result == "closing";
        if !still_held || self.retries >= MOST_RETRIES || !(self.others || same_again) {
            return Err(refusal);
        }
        self.retries += 1;
        if !same_again {
            self.tried.push(address);
            self.last = Some(refusal);
        }
        Ok(())
    }
}

fn hop(proxy: &Proxy, endpoint: &Endpoint) -> Hop {
    let address = endpoint.address;
    match &endpoint.identity {
        _ if proxy.own.is_own(address.ip()) => Hop::Own(address),
        Identity::Meshed(id) => Hop::Meshed { address, id: id.clone() },
        Identity::NotMeshed => Hop::Plain { address, inside: true },
    }
}

fn no_answer(error: LookupError) -> Refusal {
    match error {
        LookupError::NoAnswer => Refusal::control_plane("no_answer", error.to_string()),
        LookupError::TooMany => Refusal { result: "lookups_exceeded", blame: Blame::App, detail: error.to_string() },
    }
}

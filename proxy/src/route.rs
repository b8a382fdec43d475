//! Where an outbound connection goes next: who is at its destination, which endpoint of a service, and what is left to try
//! after a failure. Called by `outbound` only. It must never turn a failure into plaintext: what was meshed stays meshed.

use std::net::SocketAddr;

use countersign_identity::SpiffeId;
use tokio::time::Instant;

use crate::discovery::{Endpoint, Identity, LookupError, Service, Who};
use crate::outcome::Blame;
use crate::pick::Load;
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
    /// TLS was begun with somebody: from then on nothing of this connection goes in plaintext.
    sealed: bool,
    last: Option<Refusal>,
    /// Our share of the load of the endpoint that was chosen last.
    load: Option<Load>,
}

impl Route {
    /// Nothing tried yet.
    #[must_use]
    pub fn new(destination: SocketAddr) -> Self {
        Self {
            destination,
            others: false,
            tried: Vec::new(),
            retries: 0,
            asked_again: false,
            sealed: false,
            last: None,
            load: None,
        }
    }

    /// Who is there, as known now, and which endpoint is next.
    ///
    /// # Errors
    /// Unknown, no answer, nobody ready, or the failure of the last endpoint when no other is left.
    pub async fn next_hop(&mut self, proxy: &Proxy) -> Result<Hop, Refusal> {
        self.load = None;
        if proxy.own.is_own(self.destination.ip()) {
            return Ok(Hop::Own(self.destination));
        }
        let hop = match proxy.discovery.who(self.destination).await {
            // That somebody else was there tells more than that nobody says who it is now.
            Err(error) => {
                let other = self.last.take().filter(|last| last.result == "identity_mismatch");
                return Err(other.unwrap_or_else(|| no_answer(error)));
            }
            Ok(Who::Unknown) => {
                return Err(Refusal::control_plane(
                    "unknown_destination",
                    "the address is inside the mesh's ranges, and the controller knows nobody there",
                ));
            }
            Ok(Who::Outside) => Hop::Plain { address: self.destination, inside: false },
            Ok(Who::NotMeshed) => Hop::Plain { address: self.destination, inside: true },
            Ok(Who::Endpoint(endpoint)) => hop(proxy, &endpoint),
            Ok(Who::Service(service)) => self.pick(proxy, &service)?,
        };
        match hop {
            Hop::Plain { .. } if self.sealed => Err(self.nobody_left("no_ready_endpoint", || {
                "nobody meshed is there any more, and what began with TLS does not go on without".to_owned()
            })),
            hop => {
                self.load = match &hop {
                    Hop::Own(_) => None,
                    Hop::Plain { address, .. } | Hop::Meshed { address, .. } => Some(proxy.picks.load(*address)),
                };
                Ok(hop)
            }
        }
    }

    fn pick(&mut self, proxy: &Proxy, service: &Service) -> Result<Hop, Refusal> {
        self.others = true;
        let node = proxy.discovery.node().unwrap_or_default();
        let mut left_out = self.tried.clone();
        if self.sealed {
            let plain = service.endpoints.iter().filter(|endpoint| endpoint.identity == Identity::NotMeshed);
            left_out.extend(plain.map(|endpoint| endpoint.address).filter(|address| !proxy.own.is_own(address.ip())));
        }
        let now = Instant::now();
        match proxy.picks.pick(service, self.destination, &node, &left_out, now, &mut rand::rng()) {
            Some(endpoint) => Ok(hop(proxy, &endpoint)),
            None => Err(self.nobody_left("no_ready_endpoint", || {
                format!("no endpoint of {}/{} is ready", service.namespace, service.name)
            })),
        }
    }

    /// The failure of the last endpoint tells more than that there is no other.
    fn nobody_left(&mut self, result: &'static str, detail: impl FnOnce() -> String) -> Refusal {
        self.last.take().unwrap_or_else(|| Refusal::control_plane(result, detail()))
    }

    /// TLS begins, or a kept link is used.
    pub fn seal(&mut self) {
        self.sealed = true;
    }

    /// The endpoint that was chosen last is there: TLS is up, or TCP where there is none.
    pub fn worked(&self) {
        if let Some(load) = &self.load {
            load.worked();
        }
    }

    /// Others are preferred for a while, by other connections too: one that refuses everybody has ever fewer connections than they.
    pub fn note_failure(&mut self) {
        if let Some(load) = self.load.take() {
            load.failed(Instant::now());
        }
    }

    /// An endpoint could not be reached, before any byte of the app was sent.
    ///
    /// # Errors
    /// The refusal, when no other may be tried.
    pub fn failed(&mut self, address: SocketAddr, refusal: Refusal) -> Result<(), Refusal> {
        self.note_failure();
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
        self.note_failure();
        proxy.discovery.distrust(self.destination);
        if std::mem::replace(&mut self.asked_again, true) {
            return Err(refusal);
        }
        self.last = Some(refusal);
        Ok(())
    }

    /// The server side at `address` did not take the connection; every byte is `still_held`, or not.
    ///
    /// # Errors
    /// The refusal, when another try is not possible.
    pub fn retry(&mut self, address: SocketAddr, refusal: Refusal, still_held: bool) -> Result<(), Refusal> {
        // A kept link that was just closing says nothing about the endpoint behind it.
        let same_again = refusal.result == "closing";
        if !same_again {
            self.note_failure();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, number], 8080))
    }

    /// The way to a service, or to an address that has no others behind it.
    fn route(others: bool) -> Route {
        Route { others, ..Route::new(SocketAddr::from(([10, 96, 0, 10], 80))) }
    }

    fn refusal(result: &'static str) -> Refusal {
        Refusal { result, blame: Blame::Peer, detail: String::new() }
    }

    #[test]
    fn three_endpoints_of_a_service_are_dialled_and_no_fourth() {
        let mut service = route(true);
        let goes_on = [1, 2, 3].map(|number| service.failed(endpoint(number), refusal("connect_failed")).is_ok());
        assert_eq!(goes_on, [true, true, false]);
        assert!(route(false).failed(endpoint(1), refusal("connect_failed")).is_err(), "there is no other");
    }

    #[test]
    fn what_was_not_taken_is_tried_twice_more_while_all_of_it_is_held() {
        for result in ["app_unreachable", "closing"] {
            let mut service = route(true);
            let goes_on = [1, 2, 3].map(|number| service.retry(endpoint(number), refusal(result), true).is_ok());
            assert_eq!(goes_on, [true, true, false], "{result}");
            assert!(route(true).retry(endpoint(1), refusal(result), false).is_err(), "{result}: not all is held");
            // After `CLOSING` it is the same endpoint that is tried again.
            let alone = route(false).retry(endpoint(1), refusal(result), true);
            assert_eq!(alone.is_ok(), result == "closing", "{result}");
        }
    }
}

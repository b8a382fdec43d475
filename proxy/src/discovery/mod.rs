//! What the controller tells this proxy: the rules that bind the workload, and who is at an address.
//!
//! Both journeys ask [`Discovery::who`]; `inbound` and every open permit follow [`Discovery::rules`]; `run` starts it. It must
//! never guess: without an answer nobody is there, and without rules nothing is allowed. What was learned is kept through an
//! outage of the controller, but for un-meshed answers, which expire.

mod answer;
mod cache;
mod stream;
mod view;
mod workload;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use countersign_credentials::Watch;
use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::PolicySet;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::metrics::Metrics;
use cache::{Cache, Find};
pub use view::{AddressView, DiscoveryView, LinkView, WorkloadView};
use workload::InForce;

/// Longest that a connection is held for an answer.
pub const HOLD: Duration = Duration::from_secs(1);

/// What discovery must know to begin.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mesh's own trust domain, which rules mean where they name none.
    pub trust_domain: TrustDomain,
    /// The only identity accepted as controller.
    pub controller: SpiffeId,
    /// `host:port` of the controllers, tried in turn.
    pub addresses: Vec<String>,
    /// The pod's namespace: rules sent for another one are refused.
    pub namespace: String,
    /// The UID this proxy claims; the controller checks it.
    pub pod_uid: String,
    /// Socket mark of the proxy's own connections, where it may set one.
    pub mark: Option<u32>,
}

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Outside the mesh's ranges; nobody was asked.
    Outside,
    /// Inside the ranges, and nobody is known there: refuse.
    Unknown,
    /// Inside the ranges, known to have no sidecar.
    NotMeshed,
    /// A pod's own address.
    Endpoint(Arc<Endpoint>),
    /// A service's address and port.
    Service(Arc<Service>),
}

/// One place to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's own address and target port.
    pub address: SocketAddr,
    /// Who must answer there.
    pub identity: Identity,
    /// Whether it takes traffic for its service. Answers by pod address do not wait for it.
    pub ready: bool,
    /// The node it runs on.
    pub node: Arc<str>,
}

/// Who must answer at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Exactly this id, over our mTLS.
    Meshed(SpiffeId),
    /// It has no sidecar.
    NotMeshed,
}

/// A service's endpoints behind one of its ports, all of its own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Its endpoints, ready or not.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// `internalTrafficPolicy: Local`: only endpoints of our own node.
    pub local_only: bool,
    /// `sessionAffinity: ClientIP`, for how long.
    pub affinity: Option<Duration>,
}

/// Why nobody can say who is at an address. Either way the connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The controller gave no answer within [`HOLD`].
    #[error("the controller gave no answer within 1 s, and none is remembered")]
    NoAnswer,
    /// Too many addresses are being asked for.
    #[error("too many addresses are being asked for; this one was not")]
    TooMany,
}

/// A handle on all that the controller said; clones share it.
#[derive(Clone, Debug)]
pub struct Discovery(Arc<Shared>);

/// What the handle and the stream's task share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    in_force: ArcSwapOption<InForce>,
    rules: watch::Sender<Option<Arc<PolicySet>>>,
    cache: Mutex<Cache>,
    /// Wakes the stream's task when the cache has something to say.
    to_say: Notify,
    link: Mutex<LinkView>,
    metrics: Metrics,
}

impl Discovery {
    /// Makes the handle, and the task that keeps the controller's stream up; it never ends, and nothing is learned until it
    /// is polled.
    pub fn start(
        settings: Settings,
        credentials: Watch,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            settings,
            in_force: ArcSwapOption::empty(),
            rules: watch::Sender::new(None),
            cache: Mutex::new(Cache::new(Instant::now())),
            to_say: Notify::new(),
            link: Mutex::default(),
            metrics,
        });
        (Self(Arc::clone(&shared)), stream::keep(shared, credentials))
    }

    /// Who is at `addr`; port 0 asks for the address alone (who is this source?). Answers come from memory where they can;
    /// all who ask for one address at once share one lookup.
    ///
    /// # Errors
    /// [`LookupError::NoAnswer`] after at most [`HOLD`]; [`LookupError::TooMany`] at once.
    pub async fn who(&self, addr: SocketAddr) -> Result<Who, LookupError> {
        let addr = canonical(addr);
        let deadline = Instant::now() + HOLD;
        let answer = match self.ranges_known(deadline, addr.ip()).await {
            Some(false) => Ok(Who::Outside),
            Some(true) => self.ask(addr, deadline).await,
            None => Err(LookupError::NoAnswer),
        };
        self.0.metrics.lookup(label(&answer));
        answer
    }

    /// Drops the remembered answer for `addr`, whose endpoint proved to be somebody else; the next [`Discovery::who`] asks. At most
    /// once a second, and not while there is no controller to ask.
    pub fn distrust(&self, addr: SocketAddr) {
        self.0.cache().distrust(canonical(addr), Instant::now());
    }

    /// The rules that bind this workload, as they change; `None` until the first came.
    #[must_use]
    pub fn rules(&self) -> watch::Receiver<Option<Arc<PolicySet>>> {
        self.0.rules.subscribe()
    }

    /// The node this workload runs on, once known.
    #[must_use]
    pub fn node(&self) -> Option<Arc<str>> {
        self.0.in_force.load().as_ref().map(|now| Arc::clone(&now.node))
    }

    /// Whether an address is inside the mesh's ranges; `None` while they are not known.
    #[must_use]
    pub fn in_mesh(&self, ip: IpAddr) -> Option<bool> {
        let ip = ip.to_canonical();
        self.0.in_force.load().as_ref().map(|now| now.contains(ip))
    }

    /// All of it, for `/config_dump`. It holds no secret.
    #[must_use]
    pub fn snapshot_for_admin(&self) -> DiscoveryView {
        view::of(&self.0)
    }

    /// How the controller's stream stands.
    #[must_use]
    pub fn link(&self) -> LinkView {
        self.0.link().clone()
    }

    /// [`Discovery::in_mesh`], waiting for the first ranges until `deadline`.
    async fn ranges_known(&self, deadline: Instant, ip: IpAddr) -> Option<bool> {
        if let Some(inside) = self.in_mesh(ip) {
            return Some(inside);
        }
        let mut rules = self.rules();
        // The sender lives in `self`: this ends with rules, or at the deadline.
        let _ = tokio::time::timeout_at(deadline, rules.wait_for(Option::is_some)).await;
        self.in_mesh(ip)
    }

    async fn ask(&self, addr: SocketAddr, deadline: Instant) -> Result<Who, LookupError> {
        let (answered, ask_now) = match self.0.cache().find(addr, Instant::now()) {
            Find::Known { who, refresh } => {
                if refresh {
                    self.0.to_say.notify_one();
                }
                return Ok(who);
            }
            Find::TooMany => return Err(LookupError::TooMany),
            Find::Wait { answered, ask_now } => (answered, ask_now),
        };
        let _waiting = Waiting { shared: &self.0, addr };
        if ask_now {
            self.0.to_say.notify_one();
        }
        loop {
            let next = answered.notified();
            tokio::pin!(next);
            next.as_mut().enable();
            if let Some(who) = self.0.cache().answer_of(addr, Instant::now()) {
                return Ok(who);
            }
            if tokio::time::timeout_at(deadline, next).await.is_err() {
                let last_known = self.0.cache().last_known(addr, Instant::now());
                return last_known.ok_or(LookupError::NoAnswer);
            }
        }
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> MutexGuard<'_, LinkView> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for an answer; told to the cache when they no longer do, however that came.
struct Waiting<'a> {
    shared: &'a Shared,
    addr: SocketAddr,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.cache().waiter_left(self.addr);
    }
}

/// One spelling for each address: an IPv4 address mapped into IPv6 is IPv4; flow label and scope are not part of it.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn label(answer: &Result<Who, LookupError>) -> &'static str {
    match answer {
        Ok(Who::Outside) => "outside",
        Ok(Who::Unknown) => "unknown",
        Ok(Who::NotMeshed) => "not_meshed",
        Ok(Who::Endpoint(_)) => "endpoint",
        Ok(Who::Service(_)) => "service",
        Err(LookupError::NoAnswer) => "no_answer",
        Err(LookupError::TooMany) => "too_many",
    }
}

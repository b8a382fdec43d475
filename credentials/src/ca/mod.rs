//! Where our SVID and our bundle come from: the CA.
//!
//! `start` makes one task with two journeys side by side. `renew`: read the token, make a key, ask, check the product,
//! install. `follow`: watch the bundle, install what is newer. Both install into one `store`, which decides what is
//! published. Called by the mains of proxy and controller. The token and the key must never reach a log or an error.

mod bootstrap;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod follow;
mod issue;
mod renew;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod token;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::ca::ConnectionCounts;
use countersign_identity::{SpiffeId, TrustDomain};
use tokio::sync::watch;

use crate::Watch;
use crate::clock::SharedClock;
pub use status::{LastError, Status};

/// How to reach the CA, and what to show it.
#[derive(Clone, Debug)]
pub struct CaClient {
    /// Our own trust domain: bundles and identities of any other are refused.
    pub trust_domain: TrustDomain,
    /// `host:port`, several separated by commas.
    pub ca_address: String,
    /// The only identity accepted as the CA.
    pub ca_id: SpiffeId,
    /// Projected ServiceAccount token, read anew for each request.
    pub token_file: PathBuf,
    /// PEM roots that vouch for the CA until the first bundle came, and again after our SVID has expired.
    pub bootstrap: PathBuf,
    /// Socket mark that exempts us from our own redirect.
    pub mark: Option<u32>,
    /// Wanted lifetime; `None` = the CA's default.
    pub ttl: Option<Duration>,
    /// What the CA is told of our connections, for the report of a rotation.
    pub tally: Tally,
}

/// Counts the connections that its holder carries, now; nothing where it carries none.
#[derive(Clone)]
pub struct Tally(Arc<dyn Fn() -> Option<ConnectionCounts> + Send + Sync>);

impl Tally {
    /// Asked at each report, some seconds apart.
    pub fn new(count: impl Fn() -> ConnectionCounts + Send + Sync + 'static) -> Self {
        Self(Arc::new(move || Some(count())))
    }

    /// For who carries no connections of others.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(|| None))
    }

    fn count(&self) -> Option<ConnectionCounts> {
        (self.0)()
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tally")
    }
}

/// What [`start`] gives.
pub struct Started {
    /// Our credentials, from the first that our own verifier accepted.
    pub credentials: Watch,
    /// How the renewal fares: for status pages, metrics and readiness.
    pub status: watch::Receiver<Status>,
    /// Does the work; spawn it. It ends never of itself; drop it to stop.
    pub task: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Prepares to obtain `expected` from the CA and to keep it fresh. Nothing happens before `task` is polled.
pub fn start(config: CaClient, expected: SpiffeId, clock: SharedClock) -> Started {
    let (store, credentials, status) = store::Store::new(config.trust_domain.clone(), expected, clock);
    let store = Arc::new(store);
    let config = Arc::new(config);
    let followed = credentials.clone();
    let task = Box::pin(async move {
        tokio::join!(
            renew::run(Arc::clone(&config), Arc::clone(&store)),
            follow::run(Arc::clone(&config), Arc::clone(&store), followed),
        );
    });
    Started { credentials, status, task }
}

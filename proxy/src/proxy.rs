//! What every journey can reach: the parts of this proxy, each made once by `run`, and the few questions that both journeys
//! ask. It must never decide anything itself.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use countersign_credentials::{Credentials, Places, Watch};
use countersign_identity::SpiffeId;
use countersign_policy::PolicySet;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout};

use crate::access_log::AccessLog;
use crate::account::Account;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::drain::Drain;
use crate::health::Shown;
use crate::intercept::guard::{InboundDestination, Own};
use crate::metrics::Metrics;
use crate::outcome::Blame;
use crate::permit::{Denial, Permit, Permits, Rules};
use crate::pick::Picks;
use crate::pool::Pool;
use crate::proof::Proof;
use crate::reauth::Reauth;
use crate::tls::Peer;
use crate::turns::Turns;

/// The parts.
pub struct Proxy {
    /// Settings; never change.
    pub config: Arc<Config>,
    /// Own addresses and ports.
    pub own: Own,
    /// Own SVID and bundles.
    pub credentials: Watch,
    /// Who is at an address.
    pub discovery: Discovery,
    /// Rules in force.
    pub rules: Rules,
    /// Open permits.
    pub permits: Arc<Permits>,
    /// Kept links.
    pub pool: Pool,
    /// Turns at shaking hands.
    pub turns: Arc<Turns>,
    /// Endpoint choice.
    pub picks: Arc<Picks>,
    /// Handshake slots.
    pub slots: Arc<Places>,
    /// Counters.
    pub metrics: Metrics,
    /// One line a connection.
    pub access_log: AccessLog,
    /// Open connections that are to be proven anew.
    pub reauth: Arc<Reauth>,
    /// Whether the redirects are in force.
    pub proof: Proof,
    /// What is said of our health, on 15021 too.
    pub health: Shown,
    /// The end.
    pub drain: Drain,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

/// Why a connection goes no further, in the words of docs/errors.md.
#[derive(Debug)]
pub struct Refusal {
    /// Bounded word.
    pub result: &'static str,
    /// Whose doing.
    pub blame: Blame,
    /// One sentence for people.
    pub detail: String,
}

impl Refusal {
    /// One of our own bounds or lacks.
    pub fn us(result: &'static str, detail: impl Into<String>) -> Self {
        Self { result, blame: Blame::Us, detail: detail.into() }
    }

    /// CA or controller did not tell us what we need.
    pub fn control_plane(result: &'static str, detail: impl Into<String>) -> Self {
        Self { result, blame: Blame::ControlPlane, detail: detail.into() }
    }
}

/// Why an open connection was ended by us.
#[derive(Debug)]
pub enum Cut {
    /// Rules no longer allow it.
    Revoked(Denial),
    /// One of the two leaves ended.
    Expired,
    /// The trust bundle no longer vouches for the peer.
    Distrusted,
    /// The process ends.
    Forced,
}

impl Cut {
    /// Closes the account with this reason.
    pub fn close(self, account: Box<Account>) {
        match self {
            Self::Revoked(denial) => account.denied(&denial),
            Self::Expired => account.close(
                "credentials_expired",
                Blame::ControlPlane,
                "the connection may not outlive its certificates, and was not proven anew in time",
            ),
            Self::Distrusted => {
                account.close("peer_distrusted", Blame::Policy, "the trust bundle no longer vouches for the peer");
            }
            Self::Forced => account.close("drain_forced", Blame::Us, "the drain deadline passed"),
        }
    }
}

impl Proxy {
    /// Own credentials, if they are good now.
    ///
    /// # Errors
    /// None yet, or expired.
    pub fn credentials(&self) -> Result<Arc<Credentials>, Refusal> {
        let current = self.credentials.borrow().clone();
        match current {
            None => Err(Refusal::control_plane("no_svid", "this proxy has no SVID yet")),
            Some(c) if c.expired() => Err(Refusal::control_plane("svid_expired", "this proxy's own SVID has expired")),
            Some(c) => Ok(c),
        }
    }

    /// Own identity, for accounts.
    #[must_use]
    pub fn own_id(&self) -> Option<SpiffeId> {
        self.credentials.borrow().as_ref().map(|c| c.id().clone())
    }

    /// Rules in force; `None` until the first came.
    #[must_use]
    pub fn rules(&self) -> Option<Arc<PolicySet>> {
        self.rules.borrow().clone()
    }

    /// Opens a TCP connection to the app, exempt from our own redirect.
    ///
    /// # Errors
    /// `app_unreachable`, or `overloaded` for want of something of our own.
    pub async fn dial_app(&self, app: InboundDestination) -> Result<TcpStream, Refusal> {
        let dialled = countersign_credentials::dial_local(app.address(), self.config.mark);
        self.in_time(dialled).await.map_err(|e| not_dialled(&e, "app_unreachable", Blame::App))
    }

    /// Opens a TCP connection to somebody on the network, exempt from our own redirect.
    ///
    /// # Errors
    /// `connect_failed`, or `overloaded` for want of something of our own.
    pub async fn dial_peer(&self, address: SocketAddr) -> Result<TcpStream, Refusal> {
        let dialled = countersign_credentials::dial(address, self.config.mark);
        self.in_time(dialled).await.map_err(|e| not_dialled(&e, "connect_failed", Blame::Peer))
    }

    /// Under the connect deadline.
    async fn in_time(&self, dialled: impl Future<Output = io::Result<TcpStream>>) -> io::Result<TcpStream> {
        let limit = self.config.limits.connect;
        match timeout(limit, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis())))
            }
        }
    }

    /// Waits for a reason to end an open connection. `ends` fires at the earlier expiry of the two leaves, or of those that they were
    /// when it was set.
    ///
    /// To be polled before what moves bytes, never after: where there is always something to move, that uses up what tokio lets a
    /// task do at a time, and whatever is polled behind it is never ready. A peer that floods would outlive rule and certificate.
    pub async fn cut(&self, permit: &Permit, peer: &Peer, ends: Pin<&mut Sleep>) -> Cut {
        tokio::select! {
            biased;
            denial = permit.revoked() => Cut::Revoked(denial),
            () = peer.over(ends) => Cut::Expired,
            () = self.distrusts(peer) => Cut::Distrusted,
            () = self.drain.forced() => Cut::Forced,
        }
    }

    /// The same for a connection without identities.
    pub async fn cut_plain(&self, permit: &Permit) -> Cut {
        tokio::select! {
            biased;
            denial = permit.revoked() => Cut::Revoked(denial),
            () = self.drain.forced() => Cut::Forced,
        }
    }

    /// Resolves when a new bundle no longer vouches for the peer; never, if that does not happen.
    pub async fn distrusts(&self, peer: &Peer) {
        let mut credentials = self.credentials.clone();
        loop {
            // Looked at first, and then awaited: a bundle that changed since the handshake is not missed.
            let current = credentials.borrow_and_update().clone();
            if let Some(current) = current
                && let Err(why) = peer.still_trusted(&current)
            {
                tracing::info!(peer = %peer.id.id(), %why, "a connection ends: its peer is no longer trusted");
                return;
            }
            if credentials.changed().await.is_err() {
                return pending().await;
            }
        }
    }
}

/// Files, memory and ports are ours, and nobody else's doing.
fn not_dialled(error: &io::Error, result: &'static str, blame: Blame) -> Refusal {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::AGAIN, Errno::ADDRNOTAVAIL];
    if Errno::from_io_error(error).is_some_and(|errno| ours.contains(&errno)) {
        return Refusal::us("overloaded", error.to_string());
    }
    Refusal { result, blame, detail: error.to_string() }
}

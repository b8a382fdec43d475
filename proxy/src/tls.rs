//! Mutual TLS with the other sidecar: one handshake, in either role, ending in a framed link and a proven peer.
//!
//! Called by both journeys; the only room beside `wire` that names rustls. It must never return a link whose peer did not
//! prove an identity, nor keep handshake state alive beside one.

pub mod reauth;
pub mod unverified;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::names::{ALPN, ALPN_REAUTH};
use countersign_credentials::{
    Credentials, Driven, HandshakeError, PeerError, SharedClock, accept_driven, connect_driven,
};
use countersign_identity::{BundleSet, Purpose, SpiffeId, VerifiedId};
use countersign_policy::Principal;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ConnectionCommon, NamedGroup, SideData};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::first_bytes::Replay;
use crate::wire::link::Link;
use crate::wire::records::{Records, Role};
use crate::wire::talk::Talk;
use reauth::Bond;

/// How often an open connection asks the wall clock.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Our own leaf (by its key) and bundle generation: what a kept connection was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    leaf: [u8; 32],
    bundle: u64,
}

impl Generation {
    /// Of these credentials.
    #[must_use]
    pub fn of(credentials: &Credentials) -> Self {
        Self { leaf: credentials.svid().spki_sha256(), bundle: credentials.generation() }
    }
}

/// The proven other end of a link.
#[derive(Debug)]
pub struct Peer {
    /// Its identity, as our verifier accepted it.
    pub id: VerifiedId,
    /// The same as rules see it.
    pub principal: Arc<Principal>,
    /// Key exchange group.
    pub group: &'static str,
    clock: SharedClock,
    purpose: Purpose,
    bond: Bond,
    since: Instant,
    standing: Mutex<Standing>,
}

/// What a connection stands on: the leaves that its two ends showed last, at first or when it was proven anew.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The earlier end of our leaf and of the whole path that vouches for the peer.
    ends: Instant,
    /// The same end on the wall clock.
    not_after: UnixTime,
    chain: Arc<[CertificateDer<'static>]>,
    /// By whom the chain was judged.
    bundles: BundleSet,
    /// The roots that vouch for us and for the peer.
    anchors: [Option<[u8; 32]>; 2],
}

impl Standing {
    fn of(chain: Option<&[CertificateDer<'static>]>, id: &VerifiedId, credentials: &Credentials) -> Self {
        let not_after = id.path_not_after().min(credentials.expires_at());
        Self {
            ends: ends(not_after, credentials.clock().now()),
            not_after,
            chain: reauth::owned(chain),
            bundles: credentials.bundles().clone(),
            anchors: [credentials.anchor_sha256().copied(), Some(*id.anchor_sha256())],
        }
    }
}

impl Peer {
    fn new(
        id: VerifiedId,
        purpose: Purpose,
        proven: Proven,
        credentials: &Credentials,
    ) -> Result<Self, HandshakeError> {
        let principal = Principal::parse(id.id().as_str()).map_err(|e| {
            HandshakeError::Tls(rustls::Error::General(format!("verified id {} is no principal: {e}", id.id())))
        })?;
        Ok(Self {
            principal: Arc::new(principal),
            group: proven.group,
            clock: Arc::clone(credentials.clock()),
            purpose,
            bond: proven.bond,
            since: Instant::now(),
            standing: Mutex::new(proven.standing),
            id,
        })
    }

    /// When the handshake was over.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When the connection ends at the latest. It may be put off while the connection is open, and is never brought forward.
    #[must_use]
    pub fn ends(&self) -> Instant {
        self.standing().ends
    }

    /// The same on the wall clock.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.standing().not_after
    }

    /// Whether the end has come by the wall clock, which may have been set forward, or gone on while the machine slept: asked
    /// before each application connection.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.clock.now() > self.not_after()
    }

    /// Resolves when the connection must end by its certificates, on whichever clock that comes first; `timer` may fire earlier.
    /// The wall clock is looked at again and again: when it is set forward, or the machine slept, no timer tells.
    pub async fn over(&self, mut timer: Pin<&mut Sleep>) {
        loop {
            let (now, ends) = (Instant::now(), self.ends());
            if now >= ends || self.expired() {
                return;
            }
            timer.as_mut().reset(ends.min(now + LOOK_AGAIN));
            timer.as_mut().await;
        }
    }

    /// Judges the stored chain again after a change of bundle; the same roots need no second look. Roots are compared, and not the
    /// bundles' numbers: a CA that began anew may give others under the same one.
    ///
    /// # Errors
    /// When the bundle no longer vouches for the peer: the connection must end.
    pub fn still_trusted(&self, credentials: &Credentials) -> Result<(), PeerError> {
        let chain = {
            let standing = self.standing();
            if credentials.bundles().fingerprint() == standing.bundles.fingerprint() {
                return Ok(());
            }
            Arc::clone(&standing.chain)
        };
        credentials.reverify(&chain, self.purpose)
    }

    /// Whether one of the two ends showed a leaf of another root than the one that vouches for us now: a root is being replaced, and
    /// the connection should be proven anew before the old one goes.
    #[must_use]
    pub fn behind(&self, credentials: &Credentials) -> bool {
        let own = credentials.anchor_sha256().copied();
        let [ours, theirs] = self.standing().anchors;
        let same_domain = self.id.id().trust_domain() == credentials.id().trust_domain();
        own.is_some() && (ours != own || (same_domain && theirs != own))
    }

    /// The connection's name, and what proves to be an end of it.
    #[must_use]
    pub fn bond(&self) -> &Bond {
        &self.bond
    }

    /// Puts the connection on newer leaves. The deadline is never earlier than it was.
    fn renew(&self, newer: Standing) {
        let mut standing = self.standing();
        let (ends, not_after) = (standing.ends.max(newer.ends), standing.not_after.max(newer.not_after));
        *standing = Standing { ends, not_after, ..newer };
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// A link for application connections.
    Link(Box<Link>, Arc<Peer>),
    /// A second connection, by which an open one is to be proven anew.
    Again(Box<reauth::Asked>),
}

/// Accepts mutual TLS on a connection whose first bytes were read already.
///
/// # Errors
/// Any reason why there is no proven peer; its `label()` is bounded.
pub async fn accept(io: Replay, credentials: &Credentials, limit: Duration) -> Result<Accepted, HandshakeError> {
    // Boxed: the handshake's state is some kilobytes, and must not live in the task that relays afterwards.
    let done = Box::pin(accept_driven(io, credentials, &[ALPN, ALPN_REAUTH], limit)).await?;
    let again = done.tls.alpn_protocol() == Some(ALPN_REAUTH);
    let (proven, records) = Proven::by(&done, Role::Server, credentials)?;
    let (io, first) = done.io.into_parts();
    debug_assert!(first.is_empty(), "a handshake reads all of its own hello");
    if again {
        let talk = Talk::new(io, records, done.unread);
        return Ok(Accepted::Again(Box::new(reauth::Asked::new(talk, done.id, proven, limit))));
    }
    let link = Box::new(Link::new(io, records, done.unread));
    Ok(Accepted::Link(link, Arc::new(Peer::new(done.id, Purpose::Client, proven, credentials)?)))
}

/// Opens mutual TLS to exactly `expected`.
///
/// # Errors
/// Any reason why there is no proven peer, another identity among them. Never answered by plaintext.
pub async fn connect(
    io: TcpStream,
    credentials: &Credentials,
    expected: &SpiffeId,
    limit: Duration,
) -> Result<(Box<Link>, Peer), HandshakeError> {
    let done = Box::pin(connect_driven(io, credentials, &[ALPN], expected, limit)).await?;
    let (proven, records) = Proven::by(&done, Role::Client, credentials)?;
    let link = Box::new(Link::new(done.io, records, done.unread));
    Ok((link, Peer::new(done.id, Purpose::Server, proven, credentials)?))
}

/// What is taken from a handshake before rustls's half of it goes.
struct Proven {
    group: &'static str,
    bond: Bond,
    standing: Standing,
}

impl Proven {
    fn by<IO, T, S>(
        done: &Driven<IO, T>,
        role: Role,
        credentials: &Credentials,
    ) -> Result<(Self, Records), HandshakeError>
    where
        T: Deref<Target = ConnectionCommon<S>>,
        S: SideData,
    {
        let records = Records::new(&done.secrets, role);
        let records = records.map_err(|error| HandshakeError::Tls(rustls::Error::General(error.to_string())))?;
        let proven = Self {
            group: done.tls.negotiated_key_exchange_group().map_or("none", |group| group_name(group.name())),
            bond: Bond::of(&done.tls).map_err(HandshakeError::Tls)?,
            standing: Standing::of(done.tls.peer_certificates(), &done.id, credentials),
        };
        Ok((proven, records))
    }
}

/// A wall-clock end on the monotonic clock.
fn ends(end: UnixTime, now: UnixTime) -> Instant {
    Instant::now() + Duration::from_secs(end.as_secs().saturating_sub(now.as_secs()))
}

fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestCa, links_between, tcp_pair};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn other_roots_under_the_same_number_are_another_bundle() {
        let ca = TestCa::new("cluster.local");
        let [frontend, backend] = ["frontend", "backend"].map(|account| ca.credentials(account, HOUR));
        let ((_, peer), _) = links_between(tcp_pair().await, &frontend, &backend, HOUR).await;
        peer.still_trusted(&frontend).unwrap();

        let renumbered = BundleSet::new(vec![ca.bundle(frontend.generation() + 1)]).unwrap();
        let renumbered = Credentials::new(Arc::clone(frontend.svid()), renumbered, frontend.clock().clone()).unwrap();
        peer.still_trusted(&renumbered).unwrap();

        let replaced = TestCa::new("cluster.local").credentials("frontend", HOUR);
        assert_eq!(replaced.generation(), frontend.generation());
        let refused = peer.still_trusted(&replaced);
        assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    }
}

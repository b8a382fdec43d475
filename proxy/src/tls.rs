//! Mutual TLS with the other sidecar: one handshake, in either role, ending in a framed link and a proven peer.
//!
//! Called by both journeys; the only room beside `wire` that names rustls. It must never return a link whose peer did not
//! prove an identity, nor keep handshake state alive beside one.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::names::ALPN;
use countersign_credentials::{Credentials, HandshakeError, PeerError, SharedClock};
use countersign_identity::{Purpose, SpiffeId, VerifiedId};
use countersign_policy::Principal;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{Connection, NamedGroup};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::first_bytes::Replay;
use crate::wire::link::Link;

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
    /// When the connection ends at the latest: the earlier end of our leaf and of the whole path that vouches for the peer.
    pub ends: Instant,
    /// Key exchange group.
    pub group: &'static str,
    /// The same end on the wall clock, and that clock.
    not_after: UnixTime,
    clock: SharedClock,
    chain: Vec<CertificateDer<'static>>,
    purpose: Purpose,
    generation: u64,
}

impl Peer {
    /// Whether the end has come by the wall clock, which may have been set forward, or gone on while the machine slept: asked
    /// before each application connection.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.clock.now() > self.not_after
    }

    /// Judges the stored chain again after a change of bundle; the same bundle needs no second look.
    ///
    /// # Errors
    /// When the bundle no longer vouches for the peer: the connection must end.
    pub fn still_trusted(&self, credentials: &Credentials) -> Result<(), PeerError> {
        if credentials.generation() == self.generation {
            return Ok(());
        }
        credentials.reverify(&self.chain, self.purpose)
    }
}

/// Accepts mutual TLS on a connection whose first bytes were read already.
///
/// # Errors
/// Any reason why there is no proven peer; its `label()` is bounded.
pub async fn accept(
    io: Replay,
    credentials: &Credentials,
    limit: Duration,
) -> Result<(Box<Link>, Peer), HandshakeError> {
    // Boxed: the handshake's state is some kilobytes, and must not live in the task that relays afterwards.
    let (stream, id) = Box::pin(countersign_credentials::accept(io, credentials, &[ALPN], limit)).await?;
    let (replay, tls) = stream.into_inner();
    let (io, unread) = replay.into_parts();
    debug_assert!(unread.is_empty(), "a handshake reads all of its own hello");
    finish(io, Connection::Server(tls), id, Purpose::Client, credentials)
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
    let (stream, id) = Box::pin(countersign_credentials::connect(io, credentials, &[ALPN], expected, limit)).await?;
    let (io, tls) = stream.into_inner();
    finish(io, Connection::Client(tls), id, Purpose::Server, credentials)
}

fn finish(
    io: TcpStream,
    tls: Connection,
    id: VerifiedId,
    purpose: Purpose,
    credentials: &Credentials,
) -> Result<(Box<Link>, Peer), HandshakeError> {
    let chain = tls.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let group = tls.negotiated_key_exchange_group().map_or("none", |g| group_name(g.name()));
    let principal = Principal::parse(id.id().as_str()).map_err(|e| {
        HandshakeError::Tls(rustls::Error::General(format!("verified id {} is no principal: {e}", id.id())))
    })?;
    let (not_after, clock) = (id.path_not_after().min(credentials.expires_at()), Arc::clone(credentials.clock()));
    let (ends, generation) = (ends(not_after, clock.now()), credentials.generation());
    let peer = Peer { principal: Arc::new(principal), ends, group, not_after, clock, chain, purpose, generation, id };
    Ok((Box::new(Link::new(io, tls)), peer))
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

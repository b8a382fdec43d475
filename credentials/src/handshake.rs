//! One TLS handshake under a deadline, as server or as client, ending in a proven peer and exactly one of our protocols.
//!
//! Called by the proxy's journeys, `channel` and `incoming`. Must never return a stream whose ALPN was not agreed, and never
//! a peer that did not prove its key.

mod driven;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Blame, BundleSet, SpiffeId, VerifiedId};
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use rustls::{AlertDescription, CommonState};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::clock::SharedClock;
use crate::config::{ClientAuth, accept_config, connect_config, connect_config_anonymous};
use crate::credentials::Credentials;
use crate::peer::{PeerError, PeerSlot};

pub use driven::{Driven, accept_driven, connect_driven};

/// Why a handshake ended without a connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer did not finish in time.
    #[error("no TLS handshake within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// We refused the peer's certificate.
    #[error("the peer's certificate is refused: {0}")]
    Peer(#[source] Arc<PeerError>),
    /// The peer showed no certificate where one is required.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer speaks an older TLS, or none of our groups, suites or signature schemes.
    #[error("the peer's TLS does not fit ours: {0}")]
    Incompatible(String),
    /// The peer did not agree to one of our protocols.
    #[error("the peer did not agree to our protocol (ALPN)")]
    Alpn,
    /// The peer ended the handshake with an alert: mostly that it refused our certificate.
    #[error("the peer ended the handshake: {0:?}")]
    Alert(AlertDescription),
    /// Bytes that are no TLS, or break its rules.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// The connection broke.
    #[error("connection lost during the TLS handshake: {0}")]
    Io(#[source] io::Error),
}

impl HandshakeError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Peer(error) => error.label(),
            Self::NoCertificate => "no_certificate",
            Self::Incompatible(_) => "incompatible",
            Self::Alpn => "alpn",
            Self::Alert(_) => "alert",
            Self::Tls(_) => "tls",
            Self::Io(_) => "io",
        }
    }

    /// Who is the first to look at. An alert mostly means that the peer refused our certificate.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Peer(error) => error.blame(),
            Self::Alert(_) => Blame::Us,
            _ => Blame::Peer,
        }
    }

    fn sorted(error: io::Error, slot: &PeerSlot) -> Self {
        if let Some(Err(refused)) = slot.peer() {
            return Self::Peer(refused);
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            None => Self::Io(error),
            Some(rustls::Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(rustls::Error::NoApplicationProtocol) => Self::Alpn,
            Some(rustls::Error::PeerIncompatible(why)) => Self::Incompatible(format!("{why:?}")),
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => Self::Alpn,
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
            Some(error) => Self::Tls(error.clone()),
        }
    }
}

/// Accepts one connection from a peer that must prove its SPIFFE id. Who may do what is decided by the caller.
pub async fn accept<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    limit: Duration,
) -> Result<(server::TlsStream<IO>, VerifiedId), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match accepted(io, credentials, alpn, ClientAuth::Required, limit).await? {
        (stream, Some(peer)) => Ok((stream, peer)),
        (_, None) => Err(HandshakeError::NoCertificate),
    }
}

/// Accepts one connection from a peer that may come without a certificate; one that it shows must be good.
pub async fn accept_optional<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    limit: Duration,
) -> Result<(server::TlsStream<IO>, Option<VerifiedId>), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    accepted(io, credentials, alpn, ClientAuth::Optional, limit).await
}

async fn accepted<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    auth: ClientAuth,
    limit: Duration,
) -> Result<(server::TlsStream<IO>, Option<VerifiedId>), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (config, slot) = accept_config(credentials, alpn, auth);
    let stream = within(limit, TlsAcceptor::from(config).accept(io), &slot).await?;
    if !negotiated_alpn_ok(stream.get_ref().1, alpn) {
        return Err(HandshakeError::Alpn);
    }
    let peer = proven(&slot)?;
    Ok((stream, peer))
}

/// Opens one connection with our SVID, to exactly `expected`.
pub async fn connect<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    expected: &SpiffeId,
    limit: Duration,
) -> Result<(client::TlsStream<IO>, VerifiedId), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (config, slot) = connect_config(credentials, alpn, expected);
    connected(io, config, &slot, alpn, limit).await
}

/// Opens one connection without an SVID, to exactly `expected` as `bundles` vouch for it.
pub async fn connect_anonymous<IO>(
    io: IO,
    bundles: &BundleSet,
    clock: &SharedClock,
    alpn: &[&[u8]],
    expected: &SpiffeId,
    limit: Duration,
) -> Result<(client::TlsStream<IO>, VerifiedId), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (config, slot) = connect_config_anonymous(bundles, alpn, expected, clock).map_err(HandshakeError::Tls)?;
    connected(io, config, &slot, alpn, limit).await
}

async fn connected<IO>(
    io: IO,
    config: Arc<rustls::ClientConfig>,
    slot: &PeerSlot,
    alpn: &[&[u8]],
    limit: Duration,
) -> Result<(client::TlsStream<IO>, VerifiedId), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let stream = within(limit, TlsConnector::from(config).connect(server_name(), io), slot).await?;
    if !negotiated_alpn_ok(stream.get_ref().1, alpn) {
        return Err(HandshakeError::Alpn);
    }
    let peer = proven(slot)?.ok_or(HandshakeError::NoCertificate)?;
    Ok((stream, peer))
}

async fn within<S>(
    limit: Duration,
    handshake: impl Future<Output = io::Result<S>>,
    slot: &PeerSlot,
) -> Result<S, HandshakeError> {
    match timeout(limit, handshake).await {
        Err(_) => Err(HandshakeError::Timeout(limit)),
        Ok(done) => done.map_err(|error| HandshakeError::sorted(error, slot)),
    }
}

fn proven(slot: &PeerSlot) -> Result<Option<VerifiedId>, HandshakeError> {
    slot.peer().transpose().map_err(HandshakeError::Peer)
}

/// Whether the protocol that was agreed is exactly one of `alpn`. False when none was agreed: rustls lets a peer pass that
/// says nothing of ALPN.
pub fn negotiated_alpn_ok(tls: &CommonState, alpn: &[&[u8]]) -> bool {
    tls.alpn_protocol().is_some_and(|agreed| alpn.contains(&agreed))
}

/// What rustls wants as a server's name. It is never sent (no SNI) and never compared: the SPIFFE id is the identity.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])))
}

#[cfg(test)]
mod tests;

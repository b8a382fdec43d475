//! The same handshakes, ending in bare secrets: for the proxy, which seals and opens its records itself.
//!
//! rustls is driven by hand, because it must be fed no byte beyond the handshake: what follows belongs to the record layer that takes
//! over. Everything that is judged is judged as in `handshake`.

use std::io;
use std::ops::DerefMut;
use std::time::Duration;

use countersign_identity::{SpiffeId, VerifiedId};
use rustls::{ClientConnection, ConnectionCommon, ServerConnection, SideData};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{HandshakeError, negotiated_alpn_ok, proven, server_name, within};
use crate::config::{ClientAuth, accept_config_with, connect_config_with};
use crate::credentials::Credentials;
use crate::peer::PeerSlot;
use crate::secrets::{SecretsSlot, TrafficSecrets};

/// Type, version and length of a record (RFC 8446 section 5.1).
const HEADER: usize = 5;

/// A finished handshake.
#[derive(Debug)]
pub struct Driven<IO, T> {
    /// The connection beneath.
    pub io: IO,
    /// What rustls knows of the handshake: groups, protocol, certificates, exporter. It carries nothing more.
    pub tls: T,
    /// What was read beyond the handshake, in records.
    pub unread: Vec<u8>,
    /// Who the peer proved to be.
    pub id: VerifiedId,
    /// What its records are sealed with.
    pub secrets: TrafficSecrets,
}

/// As [`super::accept`].
///
/// # Errors
/// As there.
pub async fn accept_driven<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    limit: Duration,
) -> Result<Driven<IO, ServerConnection>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let kept = SecretsSlot::default();
    let (config, slot) = accept_config_with(credentials, alpn, ClientAuth::Required, Some(&kept));
    let tls = ServerConnection::new(config).map_err(HandshakeError::Tls)?;
    let (io, tls, unread) = within(limit, drive(io, tls), &slot).await?;
    finish(io, tls, unread, alpn, &slot, &kept)
}

/// As [`super::connect`].
///
/// # Errors
/// As there.
pub async fn connect_driven<IO>(
    io: IO,
    credentials: &Credentials,
    alpn: &[&[u8]],
    expected: &SpiffeId,
    limit: Duration,
) -> Result<Driven<IO, ClientConnection>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let kept = SecretsSlot::default();
    let (config, slot) = connect_config_with(credentials, alpn, expected, Some(&kept));
    let tls = ClientConnection::new(config, server_name()).map_err(HandshakeError::Tls)?;
    let (io, tls, unread) = within(limit, drive(io, tls), &slot).await?;
    finish(io, tls, unread, alpn, &slot, &kept)
}

fn finish<IO, T, S>(
    io: IO,
    tls: T,
    unread: Vec<u8>,
    alpn: &[&[u8]],
    slot: &PeerSlot,
    kept: &SecretsSlot,
) -> Result<Driven<IO, T>, HandshakeError>
where
    T: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    let id = proven(slot)?.ok_or(HandshakeError::NoCertificate)?;
    if !negotiated_alpn_ok(&tls, alpn) {
        return Err(HandshakeError::Alpn);
    }
    let secrets = kept.take(tls.negotiated_cipher_suite()).ok_or_else(|| {
        HandshakeError::Tls(rustls::Error::General("the handshake left no traffic secrets".to_owned()))
    })?;
    Ok(Driven { io, tls, unread, id, secrets })
}

/// Runs the handshake to its end; returns what was read beyond it.
async fn drive<IO, T, S>(mut io: IO, mut tls: T) -> io::Result<(IO, T, Vec<u8>)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    T: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    let (mut came, mut going) = (Vec::with_capacity(4096), Vec::new());
    // So many bytes of the record at hand were not given to rustls yet.
    let mut rest = 0;
    // A peer that is gone may have said why: what it said counts more than that nothing can be written to it.
    let mut deaf = None;
    loop {
        if deaf.is_none() {
            deaf = say(&mut io, &mut tls, &mut going).await.err();
        }
        if !tls.is_handshaking() {
            came.shrink_to_fit(); // mostly to nothing: it lives as long as the connection
            return deaf.map_or(Ok((io, tls, came)), Err);
        }
        if rest == 0 && came.len() >= HEADER {
            rest = HEADER + usize::from(u16::from_be_bytes([came[3], came[4]]));
        }
        let now = rest.min(came.len());
        if now == 0 {
            match io.read_buf(&mut came).await {
                Ok(0) => return Err(deaf.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(deaf.unwrap_or(error)),
            }
            continue;
        }
        let mut part = &came[..now];
        while !part.is_empty() {
            if tls.read_tls(&mut part)? == 0 {
                break; // after close_notify nothing counts
            }
            if let Err(error) = tls.process_new_packets() {
                // Best effort: the alert that tells the peer why.
                if deaf.is_none() {
                    let _ = say(&mut io, &mut tls, &mut going).await;
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        came.drain(..now);
        rest -= now;
    }
}

async fn say<IO, T, S>(io: &mut IO, tls: &mut T, going: &mut Vec<u8>) -> io::Result<()>
where
    IO: AsyncWrite + Unpin,
    T: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    while tls.wants_write() {
        tls.write_tls(going)?;
    }
    if !going.is_empty() {
        io.write_all(going).await?;
        io.flush().await?;
        going.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests;

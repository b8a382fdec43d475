//! The second connection that proves an open one anew (docs/decisions/0014): both ends show the leaves that they hold
//! now, and that they are the ends of the old connection.
//!
//! `reauth` calls both halves. What is said fits in one record each way: the old connection's name, and an HMAC of the *new*
//! connection's exporter under a key that only the ends of the *old* one know. So a name alone is worth nothing, what was heard on one
//! connection is worth nothing on another, and neither end's word can be sent back to it. It must never give an older deadline.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::hmac;
use countersign_api::names::ALPN_REAUTH;
use countersign_credentials::{Credentials, Driven, HandshakeError, connect_driven};
use countersign_identity::{SpiffeId, VerifiedId};
use rustls::ConnectionCommon;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;

use super::{Peer, Proven, Standing};
use crate::wire::records::Role;
use crate::wire::talk::Talk;

/// Exporter labels (RFC 8446 section 7.5, RFC 5705).
const KEY_LABEL: &[u8] = b"EXPORTER-countersign-reauth";
const NAME_LABEL: &[u8] = b"EXPORTER-countersign-reauth-id";
/// Which end speaks.
const CLIENT: u8 = b'c';
const SERVER: u8 = b's';
const MAC: usize = 32;

/// Names a connection to its two ends, and to nobody else.
pub type Name = [u8; 32];

/// What both ends of a connection know, and nobody else.
#[derive(Clone)]
pub struct Bond {
    name: Name,
    key: [u8; 32],
}

impl std::fmt::Debug for Bond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bond")
    }
}

impl Bond {
    /// Of a connection whose handshake is complete.
    pub(super) fn of<D>(tls: &ConnectionCommon<D>) -> Result<Self, rustls::Error> {
        let export = |label| tls.export_keying_material([0; 32], label, None);
        Ok(Self { name: export(NAME_LABEL)?, key: export(KEY_LABEL)? })
    }

    /// The connection's name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    fn say(&self, end: u8, new: &Self) -> [u8; 32 + MAC] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.key), &said(end, new));
        let mut words = [0; 32 + MAC];
        words[..32].copy_from_slice(&self.name);
        words[32..].copy_from_slice(tag.as_ref());
        words
    }

    fn hears(&self, end: u8, new: &Self, words: &[u8; 32 + MAC]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        words[..32] == self.name && hmac::verify(&key, &said(end, new), &words[32..]).is_ok()
    }
}

fn said(end: u8, new: &Bond) -> [u8; 33] {
    let mut message = [end; 33];
    message[1..].copy_from_slice(&new.key);
    message
}

/// Why an open connection was not proven anew.
#[derive(Debug, thiserror::Error)]
pub enum ReauthError {
    /// No second connection.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It broke, or the other end closed it: so it refuses without saying why.
    #[error("the second connection ended: {0}")]
    Ended(#[from] io::Error),
    /// No end within the time that a handshake may take.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// The other end does not know what only the old connection's ends know.
    #[error("the other end does not prove that it is the old connection's")]
    Unproven,
    /// There is no such connection here, or it is one that we dialled.
    #[error("no connection of that name was accepted here")]
    UnknownName,
    /// Another identity than the old connection's.
    #[error("{0} is not the old connection's identity")]
    OtherIdentity(SpiffeId),
    /// The rules in force would not let it in.
    #[error("the rules no longer allow it: {0}")]
    Denied(&'static str),
}

impl ReauthError {
    /// A bounded word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Handshake(_) => "no_handshake",
            Self::Ended(_) => "ended",
            Self::Late(_) => "late",
            Self::Unproven => "unproven_end",
            Self::UnknownName => "unknown_name",
            Self::OtherIdentity(_) => "other_identity",
            Self::Denied(_) => "denied_anew",
        }
    }
}

/// The dialling end: proves `old` anew over `io`, a fresh TCP connection to the same endpoint.
///
/// # Errors
/// See [`ReauthError`]; then `old` stands as it did.
pub async fn ask(io: TcpStream, credentials: &Credentials, old: &Peer, limit: Duration) -> Result<(), ReauthError> {
    let asked = async {
        let expected = old.id.id();
        let done = Box::pin(connect_driven(io, credentials, &[ALPN_REAUTH], expected, limit)).await?;
        let (Proven { bond: new, standing, .. }, records) = Proven::by(&done, Role::Client, credentials)?;
        // What the handshake leaves goes before the first word.
        let Driven { io, unread, id, tls, secrets } = done;
        drop((tls, secrets));
        let mut talk = Talk::new(io, records, unread);
        if id.id() != expected {
            return Err(ReauthError::OtherIdentity(id.id().clone()));
        }
        talk.say(&old.bond.say(CLIENT, &new)).await?;
        let words = talk.hear().await?;
        if !old.bond.hears(SERVER, &new, &words) {
            return Err(ReauthError::Unproven);
        }
        old.renew(standing);
        // The other end has nothing to wait for.
        let _ = talk.end().await;
        Ok(())
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(done) => done,
        Err(_) => Err(ReauthError::Late(limit)),
    }
}

/// The accepting end of a second connection, before a word was said.
#[derive(Debug)]
pub struct Asked {
    talk: Talk,
    id: VerifiedId,
    new: Bond,
    standing: Standing,
    limit: Duration,
}

/// Who asks, and for which connection; not proven yet.
#[derive(Debug)]
pub struct Claim {
    asked: Asked,
    words: [u8; 32 + MAC],
}

impl Asked {
    pub(super) fn new(talk: Talk, id: VerifiedId, proven: Proven, limit: Duration) -> Self {
        let Proven { bond: new, standing, .. } = proven;
        Self { talk, id, new, standing, limit }
    }

    /// Who asks, by the certificate that was just shown.
    #[must_use]
    pub fn who(&self) -> &str {
        self.id.id().as_str()
    }

    /// Reads what the dialling end says.
    ///
    /// # Errors
    /// It says too little, or too late.
    pub async fn claim(mut self) -> Result<Claim, ReauthError> {
        let words = match tokio::time::timeout(self.limit, self.talk.hear()).await {
            Ok(heard) => heard?,
            Err(_) => return Err(ReauthError::Late(self.limit)),
        };
        Ok(Claim { asked: self, words })
    }
}

impl Claim {
    /// The connection that is claimed.
    #[must_use]
    pub fn name(&self) -> Name {
        let mut name = [0; 32];
        name.copy_from_slice(&self.words[..32]);
        name
    }

    /// Judges the claim to `old`, the connection of that name; if it holds and is `allowed`, `old` is renewed, and the dialling end
    /// told.
    ///
    /// # Errors
    /// [`ReauthError::Unproven`], [`ReauthError::OtherIdentity`], what `allowed` says; or it could not be told, which makes no
    /// difference here.
    pub async fn settle(
        mut self,
        old: &Peer,
        allowed: impl FnOnce() -> Result<(), ReauthError>,
    ) -> Result<(), ReauthError> {
        let asked = &mut self.asked;
        if !old.bond.hears(CLIENT, &asked.new, &self.words) {
            return Err(ReauthError::Unproven);
        }
        if asked.id.id() != old.id.id() {
            return Err(ReauthError::OtherIdentity(asked.id.id().clone()));
        }
        allowed()?;
        let words = old.bond.say(SERVER, &asked.new);
        old.renew(asked.standing.clone());
        let told = async {
            asked.talk.say(&words).await?;
            asked.talk.end().await
        };
        match tokio::time::timeout(asked.limit, told).await {
            Ok(told) => Ok(told?),
            Err(_) => Err(ReauthError::Late(asked.limit)),
        }
    }
}

/// Chains remembered so that they are shared.
const MOST_SHARED: usize = 64;
/// The latest chains that open connections stand on. Only they keep them alive.
static SHARED: Mutex<VecDeque<Weak<[CertificateDer<'static>]>>> = Mutex::new(VecDeque::new());

/// A chain as owned certificates. All connections with the same peer share one: it is a kilobyte or more.
pub(super) fn owned(chain: Option<&[CertificateDer<'static>]>) -> Arc<[CertificateDer<'static>]> {
    let chain = chain.unwrap_or_default();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = shared.iter().rev().filter_map(Weak::upgrade).find(|known| **known == *chain) {
        return same;
    }
    let owned: Arc<[CertificateDer<'static>]> = chain.to_vec().into();
    shared.retain(|known| known.strong_count() > 0);
    if shared.len() >= MOST_SHARED {
        shared.pop_front();
    }
    shared.push_back(Arc::downgrade(&owned));
    owned
}

#[cfg(test)]
mod tests;

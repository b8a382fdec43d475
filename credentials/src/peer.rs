//! What the handshake learned about the peer. Filled by `verify`, read by whoever ran the handshake.

use std::sync::{Arc, OnceLock};

use countersign_identity::{Blame, SpiffeId, VerifiedId, VerifyError};

/// Why a peer's certificate was refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The chain is not an X.509-SVID that our bundle vouches for at this moment.
    #[error("{0}")]
    Refused(#[source] VerifyError),
    /// A good SVID of somebody else than the one who was dialled.
    #[error("expected {expected}, but the peer is {seen}")]
    Unexpected {
        /// Whom we wanted to reach.
        expected: SpiffeId,
        /// Who answered, fully verified.
        seen: SpiffeId,
    },
}

impl PeerError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.label(),
            Self::Unexpected { .. } => "unexpected_identity",
        }
    }

    /// Who is the first to look at.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Refused(error) => error.blame(),
            Self::Unexpected { .. } => Blame::Peer,
        }
    }
}

/// The verifier's finding for one connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct PeerSlot(Arc<OnceLock<Result<VerifiedId, Arc<PeerError>>>>);

impl PeerSlot {
    /// Who the peer is, or why it was refused; `None` before it showed a certificate (or when it has none and need not).
    ///
    /// `Ok` appears only after the peer proved that it holds the key, not when its chain alone was good. The handshake must
    /// still have ended well before anybody acts on it.
    pub fn peer(&self) -> Option<Result<VerifiedId, Arc<PeerError>>> {
        self.0.get().cloned()
    }

    /// The first finding stays: one handshake shows one certificate.
    pub(crate) fn fill(&self, finding: Result<VerifiedId, Arc<PeerError>>) {
        let _ = self.0.set(finding);
    }
}

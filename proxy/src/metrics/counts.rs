//! What the end of a connection counts as in the CA's report of a rotation, where "0 failed" is the proof that the rotation cost nothing.
//!
//! Called by [`Metrics::record`](super::Metrics::record). It goes by the word, not by whose doing it was: a root that goes too early ends
//! connections as written (`policy`), and a scan of ports is a peer's doing. It must never count as failed what a stranger can bring
//! about without speaking our protocol, nor what an app or a rule does.

use crate::outcome::Direction;

/// What one end counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// It ended well, or by what no certificate has to do with.
    Good,
    /// It failed for want of trust, of a certificate, or of the peer that had been proven.
    Failed,
    /// A second connection by which an open one is proven anew: it carries nothing of the app's.
    Neither,
}

impl Counts {
    /// `result` is a word of docs/errors.md.
    pub(super) fn of(result: &str, direction: Direction) -> Self {
        match result {
            "reauthenticated" | "reauth_refused" => Self::Neither,
            // Certificates and trust, of either end.
            "handshake_failed"
            | "identity_mismatch"
            | "no_svid"
            | "svid_expired"
            | "credentials_expired"
            | "peer_distrusted" => Self::Failed,
            // The controller was not to be had, and its certificates are replaced as well.
            "no_answer" | "no_rules_known" => Self::Failed,
            // Between two sidecars that had proven themselves; one cuts kept connections as its bundle changes. What the other app
            // resets looks no other than what its sidecar cut: the side that cuts counts it.
            "peer_gone" | "tls_broken" | "protocol_error" | "closing" | "cut" => Self::Failed,
            // When all are proven anew at once they take turns and slots. In: a scan takes its share of the slots, too, and who is
            // meshed and was turned away counts it at its own end.
            "overloaded" if direction == Direction::Outbound => Self::Failed,
            _ => Self::Good,
        }
    }
}

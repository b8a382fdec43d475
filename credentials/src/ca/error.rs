//! What can go wrong between us and the CA. Each error says whose turn it is; none may carry a token or a key.

use std::io;
use std::path::PathBuf;

use countersign_identity::{BundleError, SpiffeId, SvidError, TrustDomain};

use crate::credentials::CredentialsError;

/// Why no SVID was obtained, or why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The token file cannot be read, is empty, too large or no text.
    #[error("token file {path}: {source}")]
    Token {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bootstrap file cannot be read or holds no certificate.
    #[error("bootstrap bundle {path}: {why}")]
    Bootstrap {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Roots that `identity` refuses.
    #[error("trust bundle: {0}")]
    Bundle(#[from] BundleError),
    /// No key, or no CSR.
    #[error("making a key and CSR: {0}")]
    Csr(#[source] rcgen::Error),
    /// The CA did not answer, or refused.
    #[error("{reason}")]
    Call {
        /// Bounded word for metrics: why the connection failed, or the gRPC code.
        label: &'static str,
        /// What happened, as deep as is known.
        reason: String,
    },
    /// No answer in time.
    #[error("the CA did not answer within {0} s")]
    Timeout(u64),
    /// The answer has no bundle.
    #[error("the CA's answer holds no trust bundle")]
    NoBundle,
    /// The chain is not an SVID.
    #[error("the CA's chain: {0}")]
    Chain(#[from] SvidError),
    /// A good SVID, but for somebody else.
    #[error("the CA issued {got}, but we are {expected}")]
    WrongId {
        /// Who we are.
        expected: SpiffeId,
        /// For whom the SVID is.
        got: SpiffeId,
    },
    /// The two clocks are too far apart to trust either's idea of expiry.
    #[error(
        "clocks differ by {skew_ms} ms, more than {bound_ms} ms: ours says {ours_ms}, the CA's {theirs_ms} (Unix ms)"
    )]
    Skew {
        /// Our clock, in the middle of the exchange.
        ours_ms: i64,
        /// The CA's clock while it signed.
        theirs_ms: i64,
        /// Their distance.
        skew_ms: u64,
        /// What would have been borne: a tenth of the SVID's life.
        bound_ms: u64,
    },
    /// Our own verifier refuses what the CA issued.
    #[error("not published: {0}")]
    Product(#[from] CredentialsError),
    /// A bundle of another trust domain.
    #[error("a bundle of trust domain {got:?} came, ours is {ours}")]
    OtherTrustDomain {
        /// Ours.
        ours: TrustDomain,
        /// As sent, cut to a bound.
        got: String,
    },
    /// A bundle older than the one in force.
    #[error("bundle generation {got} came, {held} is in force")]
    OlderBundle {
        /// In force.
        held: u64,
        /// As sent.
        got: u64,
    },
    /// Other roots under a generation that we hold already.
    #[error("bundle generation {0} came again with other roots")]
    ChangedBundle(u64),
}

impl CaError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Bootstrap { .. } => "bootstrap",
            Self::Bundle(_) => "bad_bundle",
            Self::Csr(_) => "csr",
            Self::Call { label, .. } => label,
            Self::Timeout(_) => "timeout",
            Self::NoBundle => "no_bundle",
            Self::Chain(_) => "bad_chain",
            Self::WrongId { .. } => "wrong_id",
            Self::Skew { .. } => "clock_skew",
            Self::Product(error) => error.label(),
            Self::OtherTrustDomain { .. } => "other_trust_domain",
            Self::OlderBundle { .. } => "older_bundle",
            Self::ChangedBundle(_) => "changed_bundle",
        }
    }
}

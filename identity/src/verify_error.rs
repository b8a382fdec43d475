//! Why a chain was refused, for logs, metrics and whoever must put it right.
//!
//! Made by `verify` alone. Texts and labels are bounded: nothing in them is longer than a trust domain's name, whatever the
//! peer sent.

use crate::certificate::CertificateError;
use crate::chain::ChainError;
use crate::leaf::LeafError;
use crate::signer::SignerError;
use crate::spiffe_id::TrustDomain;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Why a chain is no SVID that we accept now. Texts tell times in UTC (RFC 3339).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No certificate, or more than we look into.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A certificate of the chain cannot be read.
    #[error("certificate {index} of the chain: {reason}")]
    Certificate {
        /// Its place in the chain, the leaf being 0.
        index: usize,
        /// What is wrong with it.
        reason: CertificateError,
    },
    /// The leaf breaks a rule of X509-SVID.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A certificate begins later than now. The clocks of both sides and of the CA are worth a look.
    #[error("not valid before {} (now {})", utc(*not_before), utc(*now))]
    NotYetValid {
        /// When it begins.
        not_before: UnixTime,
        /// The time asked for.
        now: UnixTime,
    },
    /// A certificate of the chain ended.
    #[error("expired at {} (now {})", utc(*not_after), utc(*now))]
    Expired {
        /// When it ended.
        not_after: UnixTime,
        /// The time asked for.
        now: UnixTime,
    },
    /// The only root that would vouch for it ended.
    #[error("the root expired at {} (now {})", utc(*not_after), utc(*now))]
    RootExpired {
        /// When it ended.
        not_after: UnixTime,
        /// The time asked for.
        now: UnixTime,
    },
    /// We hold no bundle for the leaf's trust domain.
    #[error("no bundle for trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// The bundle of the leaf's trust domain is empty: it trusts nobody.
    #[error("the bundle of trust domain {0} is empty")]
    NoRoots(TrustDomain),
    /// No path leads from the leaf to a root of its trust domain.
    #[error("no path to a root of its trust domain")]
    UnknownIssuer,
    /// A signature on the path is wrong.
    #[error("a signature in the chain is wrong")]
    BadSignature,
    /// A signature on the path, or the key it needs, is of a kind that we do not accept.
    #[error("a signature in the chain is of a kind that is not accepted")]
    SignatureAlgorithm,
    /// More intermediates than the path length of the root, or of one among them, allows.
    #[error("more intermediates than a path length constraint allows")]
    PathTooLong,
    /// The extended key usage of the leaf or an intermediate does not hold the purpose.
    #[error("the extended key usage does not allow this side of a connection")]
    ExtendedKeyUsage,
    /// An intermediate may not sign, or not for this trust domain.
    #[error("intermediate: {0}")]
    Intermediate(#[from] SignerError),
    /// Name constraints in the chain exclude the leaf.
    #[error(
        "name constraints in the chain exclude the leaf (URI and directory name constraints are not supported and \
         exclude every leaf)"
    )]
    NameConstraints,
    /// Path validation gave up: too many signatures or constraints to try.
    #[error("the chain takes too much work to verify")]
    TooMuchWork,
    /// Path validation refused the chain for another reason (malformed parts, mostly).
    #[error("path validation refused the chain")]
    Path,
}

/// Who has to put a refusal right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The peer showed something wrong, or is a stranger.
    Peer,
    /// The peer's CA issued something wrong, or its root ended.
    Ca,
    /// We lack a bundle.
    Us,
}

impl Blame {
    /// `peer`, `ca` or `us`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Ca => "ca",
            Self::Us => "us",
        }
    }
}

impl VerifyError {
    /// A word from a fixed list, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Chain(ChainError::Empty) => "no_certificate",
            Self::Chain(_) => "chain_too_long",
            Self::Certificate { .. } => "malformed_certificate",
            Self::Leaf(reason) => reason.label(),
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::RootExpired { .. } => "root_expired",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::NoRoots(_) => "no_roots",
            Self::UnknownIssuer => "unknown_issuer",
            Self::BadSignature => "bad_signature",
            Self::SignatureAlgorithm => "signature_algorithm",
            Self::PathTooLong => "path_too_long",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::Intermediate(_) => "intermediate",
            Self::NameConstraints => "name_constraints",
            Self::TooMuchWork => "too_much_work",
            Self::Path => "path",
        }
    }

    /// Who is the first to look at.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::UnknownTrustDomain(_) | Self::NoRoots(_) => Blame::Us,
            Self::RootExpired { .. }
            | Self::PathTooLong
            | Self::ExtendedKeyUsage
            | Self::Intermediate(_)
            | Self::NameConstraints => Blame::Ca,
            _ => Blame::Peer,
        }
    }
}

pub(crate) fn from_webpki(error: webpki::Error, now: UnixTime) -> VerifyError {
    use webpki::Error;
    match error {
        Error::CertNotValidYet { not_before, .. } => VerifyError::NotYetValid { not_before, now },
        Error::CertExpired { not_after, .. } => VerifyError::Expired { not_after, now },
        Error::UnknownIssuer => VerifyError::UnknownIssuer,
        Error::InvalidSignatureForPublicKey => VerifyError::BadSignature,
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            VerifyError::SignatureAlgorithm
        }
        Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => VerifyError::PathTooLong,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => VerifyError::ExtendedKeyUsage,
        Error::EndEntityUsedAsCa => VerifyError::Intermediate(SignerError::NotCa),
        Error::NameConstraintViolation => VerifyError::NameConstraints,
        Error::MaximumSignatureChecksExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => VerifyError::TooMuchWork,
        _ => VerifyError::Path,
    }
}

/// A time for people, RFC 3339 in UTC; its seconds since 1970 where that cannot say it (beyond the year 9999).
pub fn utc(time: UnixTime) -> String {
    let known =
        i64::try_from(time.as_secs()).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    known.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{} s since 1970", time.as_secs()))
}

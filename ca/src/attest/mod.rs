//! Who asks? Called by `issue`, first of all steps. A [`Caller`] comes only from here; no lock is held while it is found out.
//!
//! Offline, a token is checked against a JWKS (`jwks`, `token`). In a cluster the API server is asked (TokenReview), and its
//! answer is judged (`review`); the call itself is in `kubernetes`.

use std::sync::Arc;

use rustls_pki_types::UnixTime;

use crate::kubernetes::{CallError, TokenReviews};

pub mod jwks;
pub mod review;
#[cfg(test)]
mod tests;
pub mod token;

pub use jwks::{Jwks, JwksError};
pub use review::Review;
pub use token::TokenRules;

/// Why a token attests nobody. All are the caller's doing, but for a key set that has not caught up with its issuer, and an
/// API server that cannot be asked ([`AttestError::is_refusal`]).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum AttestError {
    #[error("no token")]
    Missing,
    #[error("the token has {bytes} bytes, more than {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the token is not a JWT: {0}")]
    Malformed(String),
    #[error("the token's algorithm is not one of {allowed}")]
    Algorithm { allowed: String },
    #[error("the token names no key (kid)")]
    NoKeyId,
    #[error("the token's key {0:?} is not in the key set")]
    UnknownKey(String),
    #[error("the token's signature does not verify")]
    Signature,
    #[error("the token's claims do not parse: {0}")]
    Claims(String),
    #[error("the token's issuer is {seen:?}, wanted is {wanted:?}")]
    Issuer { seen: String, wanted: String },
    #[error("the token is for the audience {seen:?}, wanted is exactly [{wanted:?}]")]
    Audience { seen: Vec<String>, wanted: String },
    #[error("the token expired at {exp}, the CA's clock says {now} (seconds since 1970)")]
    Expired { exp: u64, now: u64 },
    #[error("the token is not valid before {nbf}, the CA's clock says {now} (seconds since 1970)")]
    NotYetValid { nbf: u64, now: u64 },
    #[error("the token was issued {age} s ago, more than {max} s")]
    TooOld { age: u64, max: u64 },
    #[error("the token is not bound to a pod: claim kubernetes.io/{0} is missing")]
    Unbound(&'static str),
    #[error("the token's subject {0:?} is not system:serviceaccount:NAMESPACE:NAME")]
    Subject(String),
    #[error("the token's subject and its claim kubernetes.io/{0} disagree")]
    Disagrees(&'static str),
    #[error("the token's {0} is empty, too long, or holds characters that Kubernetes does not allow")]
    Name(&'static str),
    #[error("the API server refuses the token: {0}")]
    Refused(String),
    #[error("the token's user is not in the groups of service accounts")]
    Groups,
    #[error("the token could not be reviewed, which says nothing about it; try again: {0}")]
    NotReviewed(CallError),
}

impl AttestError {
    /// A bounded word for metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::TooLarge { .. } => "token_too_large",
            Self::Malformed(_) => "token_malformed",
            Self::Algorithm { .. } => "token_algorithm",
            Self::NoKeyId | Self::UnknownKey(_) => "token_key_unknown",
            Self::Signature => "token_signature",
            Self::Claims(_) => "token_claims",
            Self::Issuer { .. } => "token_issuer",
            Self::Audience { .. } => "token_audience",
            Self::Expired { .. } => "token_expired",
            Self::NotYetValid { .. } => "token_not_yet_valid",
            Self::TooOld { .. } => "token_too_old",
            Self::Unbound(_) => "token_unbound",
            Self::Subject(_) | Self::Disagrees(_) | Self::Name(_) | Self::Groups => "token_subject",
            Self::Refused(_) => "token_refused",
            Self::NotReviewed(CallError::Unavailable(_)) => "token_review_unavailable",
            Self::NotReviewed(_) => "token_review_forbidden",
        }
    }

    /// False when nothing was found out about the token.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::NotReviewed(_))
    }
}

/// How callers are attested.
pub enum Attestor {
    /// Offline: the token's signature is checked with a key set from a file. A pod's deletion is noticed only when its token
    /// expires.
    Jwks(Arc<Jwks>),
    /// The API server is asked about each token, and remembers a good one for 10 s at most. Without it nobody is attested.
    Review(TokenReviews),
}

/// Tokens are about 1.2 KiB; a larger one is not looked at.
pub const MAX_TOKEN: usize = 16 * 1024;

impl Attestor {
    /// The caller that `token` attests at `now`.
    pub async fn attest(&self, token: &str, now: UnixTime) -> Result<Caller, AttestError> {
        sized(token)?;
        match self {
            Self::Jwks(jwks) => jwks.attest(token, now),
            Self::Review(reviews) => {
                let answer = reviews.review(token).await.map_err(AttestError::NotReviewed)?;
                review::judge(answer, reviews.audience())
            }
        }
    }
}

fn sized(token: &str) -> Result<(), AttestError> {
    match token.len() {
        0 => Err(AttestError::Missing),
        bytes if bytes > MAX_TOKEN => Err(AttestError::TooLarge { bytes, max: MAX_TOKEN }),
        _ => Ok(()),
    }
}

/// An attested pod and its account. Made by this module alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    namespace: String,
    service_account: String,
    pod_name: String,
    pod_uid: String,
    token_id: Option<String>,
}

impl Caller {
    /// From names that were proven; they must also be ones that Kubernetes allows.
    fn new(
        namespace: &str,
        service_account: &str,
        pod_name: &str,
        pod_uid: &str,
        token_id: Option<&str>,
    ) -> Result<Self, AttestError> {
        let names = [
            ("namespace", namespace, 63),
            ("service account", service_account, 253),
            ("pod name", pod_name, 253),
            ("pod uid", pod_uid, 128),
        ];
        if let Some((what, ..)) = names.iter().find(|(_, name, max)| !token::is_name(name, *max)) {
            return Err(AttestError::Name(what));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name: pod_name.to_owned(),
            pod_uid: pod_uid.to_owned(),
            token_id: token_id.map(token::excerpt),
        })
    }

    /// The account's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The account's name.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The pod's name.
    pub fn pod_name(&self) -> &str {
        &self.pod_name
    }

    /// The pod's UID: what calls are counted by.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// The token's own id (`jti`), when it has one.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }
}

#[cfg(test)]
impl Caller {
    /// For tests of later steps.
    pub(crate) fn for_test(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name: "pod-1".to_owned(),
            pod_uid: "uid-1".to_owned(),
            token_id: None,
        }
    }
}

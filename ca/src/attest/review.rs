//! What the API server said of a token (TokenReview), judged. Pure; called by `attest` once the answer is there. Nothing of
//! the token itself is read: account, pod name and UID are the API server's words.

use std::collections::BTreeMap;

use super::token::{account, cut, excerpt};
use super::{AttestError, Caller};

/// Keys under which the API server names the pod that a token is bound to (KEP-1205), and the token's own id (KEP-4193).
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// See [`POD_NAME`].
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// See [`POD_NAME`]: `JTI=` and the token's `jti`.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Characters of the API server's reason that are passed on.
const REASON: usize = 300;

/// Every service account is in this group, and in one more with its namespace behind a colon.
const ACCOUNTS: &str = "system:serviceaccounts";

/// The answer of a TokenReview.
#[derive(Clone, Debug, Default)]
pub struct Review {
    /// Whether the token is good.
    pub authenticated: bool,
    /// Why it could not be found out.
    pub error: Option<String>,
    /// Those of the audiences asked for that the token is for.
    pub audiences: Vec<String>,
    /// The user's name.
    pub username: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What more is known of the token.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The caller that a review speaks of.
pub(super) fn judge(review: Review, audience: &str) -> Result<Caller, AttestError> {
    if !review.authenticated || review.error.is_some() {
        let why = review.error.map_or_else(|| "no reason was given".to_owned(), |error| cut(&error, REASON));
        return Err(AttestError::Refused(why));
    }
    // Empty where the API server knows nothing of audiences: then the token is for the API server itself, and not for us.
    if review.audiences.as_slice() != [audience] {
        let seen = review.audiences.iter().take(4).map(|one| excerpt(one)).collect();
        return Err(AttestError::Audience { seen, wanted: audience.to_owned() });
    }
    let (namespace, name) = account(&review.username).ok_or_else(|| AttestError::Subject(excerpt(&review.username)))?;
    // Whoever else may call himself so (by certificate, by OIDC) is not in the groups that only the token authenticator gives.
    let of_namespace = format!("{ACCOUNTS}:{namespace}");
    if ![ACCOUNTS, &of_namespace].iter().all(|group| review.groups.iter().any(|one| one == group)) {
        return Err(AttestError::Groups);
    }
    let pod_name = one(&review.extra, POD_NAME).ok_or(AttestError::Unbound("pod/name"))?;
    let pod_uid = one(&review.extra, POD_UID).ok_or(AttestError::Unbound("pod/uid"))?;
    let token_id = one(&review.extra, CREDENTIAL_ID).and_then(|id| id.strip_prefix("JTI="));
    Caller::new(namespace, name, pod_name, pod_uid, token_id)
}

/// The one value of a key: of two, nobody knows which is meant.
fn one<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! The claims of a ServiceAccount token, judged. Pure; called by `jwks` once the signature has been verified. Every rule
//! stands here and not in the JWT library, whose defaults are wide (60 s leeway, `nbf` ignored, any one matching audience).

use std::fmt::Write as _;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use rustls_pki_types::UnixTime;
use serde::Deserialize;

use super::{AttestError, Caller};

/// What a token must be. From the configuration.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// The one accepted `iss`.
    pub issuer: String,
    /// The one accepted `aud`: a token that is good elsewhere too could have been taken there.
    pub audience: String,
    /// Accepted signature algorithms; all asymmetric.
    pub algorithms: Vec<Algorithm>,
    /// A token is not used longer than this after it was issued, whatever its `exp`.
    pub max_age: Duration,
}

/// Difference of clocks that is forgiven, in seconds.
pub const LEEWAY: u64 = 10;

/// Claims as Kubernetes writes them; what is not listed is ignored.
#[derive(Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: Audience,
    sub: String,
    exp: u64,
    iat: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(default)]
    jti: Option<String>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
    serviceaccount: Option<Object>,
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: Option<String>,
    uid: Option<String>,
}

/// The caller that verified claims speak of.
pub(super) fn judge(claims: Claims, rules: &TokenRules, now: UnixTime) -> Result<Caller, AttestError> {
    if claims.iss != rules.issuer {
        return Err(AttestError::Issuer { seen: excerpt(&claims.iss), wanted: rules.issuer.clone() });
    }
    check_audience(claims.aud, rules)?;
    check_times(claims.exp, claims.nbf, claims.iat, rules, now.as_secs())?;
    bound_pod(claims.sub, claims.kubernetes, claims.jti)
}

fn check_audience(seen: Audience, rules: &TokenRules) -> Result<(), AttestError> {
    let seen = match seen {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    };
    if seen.as_slice() == std::slice::from_ref(&rules.audience) {
        return Ok(());
    }
    let seen = seen.iter().take(4).map(|one| excerpt(one)).collect();
    Err(AttestError::Audience { seen, wanted: rules.audience.clone() })
}

fn check_times(exp: u64, nbf: u64, iat: u64, rules: &TokenRules, now: u64) -> Result<(), AttestError> {
    if exp.saturating_add(LEEWAY) <= now {
        return Err(AttestError::Expired { exp, now });
    }
    let begins = nbf.max(iat);
    if begins > now.saturating_add(LEEWAY) {
        return Err(AttestError::NotYetValid { nbf: begins, now });
    }
    let (age, max) = (now.saturating_sub(iat), rules.max_age.as_secs());
    if age > max.saturating_add(LEEWAY) {
        return Err(AttestError::TooOld { age, max });
    }
    Ok(())
}

fn bound_pod(sub: String, claim: Option<Kubernetes>, token_id: Option<String>) -> Result<Caller, AttestError> {
    let claim = claim.ok_or(AttestError::Unbound("pod"))?;
    let pod = claim.pod.ok_or(AttestError::Unbound("pod"))?;
    let pod_name = pod.name.ok_or(AttestError::Unbound("pod/name"))?;
    let pod_uid = pod.uid.ok_or(AttestError::Unbound("pod/uid"))?;
    let (namespace, service_account) = account(&sub).ok_or_else(|| AttestError::Subject(excerpt(&sub)))?;
    if claim.namespace.as_deref() != Some(namespace) {
        return Err(AttestError::Disagrees("namespace"));
    }
    if claim.serviceaccount.and_then(|object| object.name).as_deref() != Some(service_account) {
        return Err(AttestError::Disagrees("serviceaccount/name"));
    }
    Caller::new(namespace, service_account, &pod_name, &pod_uid, token_id.as_deref())
}

/// Namespace and name of an account, by the user name that Kubernetes gives it.
pub(super) fn account(sub: &str) -> Option<(&str, &str)> {
    let (namespace, name) = sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!name.contains(':')).then_some((namespace, name))
}

/// DNS-1123 characters, which are also a SPIFFE path's and safe in logs.
pub(crate) fn is_name(name: &str, max: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= max && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().copied().all(inner)
}

/// At most 100 characters of what a caller wrote, escaped: for messages and records.
pub(super) fn excerpt(text: &str) -> String {
    cut(text, 100)
}

/// At most `max` characters of a text from outside, escaped.
pub(super) fn cut(text: &str, max: usize) -> String {
    let mut out = String::new();
    for shown in text.chars().take(max).map(char::escape_debug) {
        let _ = write!(out, "{shown}");
    }
    if text.chars().nth(max).is_some() {
        out.push('…');
    }
    out
}

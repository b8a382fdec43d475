//! SPIFFE ids and trust domains: parsed once, segment by segment, and compared as values ever after.
//!
//! Every room names peers with these types. Nothing here may guess: no prefix or suffix matching, no percent-decoding, no
//! repair of what came in, but for the letter case of scheme and trust domain, which the specification calls insensitive
//! and which is kept in lower case. Source: the SPIFFE-ID specification, section 2.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE id accepted or made, in bytes, scheme included (SPIFFE-ID 2.3).
pub const MAX_ID_BYTES: usize = 2048;

/// Longest trust domain name, in bytes (SPIFFE-ID 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE id or no trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// It does not begin with `spiffe://`.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// Longer than [`MAX_ID_BYTES`].
    #[error("longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// Nothing stands between `spiffe://` and the path, or the trust domain is empty.
    #[error("the trust domain is missing")]
    NoTrustDomain,
    /// Longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")]
    TrustDomainTooLong,
    /// A character outside `[a-z0-9._-]`: a port, user, query, fragment or percent sign is one, too.
    #[error("the trust domain holds a character other than a-z 0-9 . _ -")]
    TrustDomainChar,
    /// A path segment is empty: `//` within, or a trailing `/`.
    #[error("a path segment is empty (a double or trailing slash)")]
    EmptySegment,
    /// A path segment is `.` or `..`.
    #[error("a path segment is . or ..")]
    DotSegment,
    /// A character outside `[a-zA-Z0-9._-]` in a path segment.
    #[error("a path segment holds a character other than a-z A-Z 0-9 . _ -")]
    SegmentChar,
}

/// The name of a trust domain, in lower case: `cluster.local`.
///
/// Cloning copies a pointer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a bare name (not a URI). Upper-case letters become lower case.
    ///
    /// # Errors
    /// Empty, longer than 255 bytes, or any character outside `[a-zA-Z0-9._-]`.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name)?;
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name: `cluster.local`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SPIFFE id: `spiffe://cluster.local/ns/shop/sa/backend`.
///
/// The path may be empty (`spiffe://cluster.local` names the trust domain itself); the verifier refuses such an id on a
/// leaf. Two ids are equal when their trust domains and all path segments are. Cloning copies two pointers.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The whole id, scheme and trust domain in lower case.
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Reads an id. Scheme and trust domain are read without regard to case and kept in lower case; the path as it is.
    ///
    /// # Errors
    /// Whatever the SPIFFE-ID specification forbids; see [`SpiffeIdError`].
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let scheme = text.get(..SCHEME.len()).ok_or(SpiffeIdError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(SpiffeIdError::Scheme);
        }
        let rest = &text[SCHEME.len()..];
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = TrustDomain::parse(name)?;
        if let Some(segments) = path.strip_prefix('/') {
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self::assemble(trust_domain, path))
    }

    /// The id of a Kubernetes service account: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    /// A name that is no path segment (empty, `.`, `..`, or with a character outside `[a-zA-Z0-9._-]`), or an id longer
    /// than [`MAX_ID_BYTES`].
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        check_segment(account)?;
        let id = Self::assemble(trust_domain.clone(), &format!("/ns/{namespace}/sa/{account}"));
        if id.text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        Ok(id)
    }

    /// The whole id, in its one canonical spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain; copies a pointer.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.trust_domain.clone()
    }

    /// The path with its leading slash, or `""` for the id of the trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain.0.len()..]
    }

    /// The path's segments in order; none for the id of the trust domain itself.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }

    /// Namespace and service account, for exactly `/ns/<namespace>/sa/<account>` and nothing longer or shorter.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.segments();
        let four = (segments.next(), segments.next(), segments.next(), segments.next());
        match (four, segments.next()) {
            ((Some("ns"), Some(namespace), Some("sa"), Some(account)), None) => Some((namespace, account)),
            _ => None,
        }
    }

    /// `path` was checked, or is empty.
    fn assemble(trust_domain: TrustDomain, path: &str) -> Self {
        let text = format!("{SCHEME}{}{path}", trust_domain.as_str()).into();
        Self { text, trust_domain }
    }
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong);
    }
    if !name.bytes().all(is_name_byte) {
        return Err(SpiffeIdError::TrustDomainChar);
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => Err(SpiffeIdError::EmptySegment),
        "." | ".." => Err(SpiffeIdError::DotSegment),
        _ if !segment.bytes().all(is_name_byte) => Err(SpiffeIdError::SegmentChar),
        _ => Ok(()),
    }
}

/// The characters of both a trust domain (whose case is folded afterwards) and a path segment (whose case is kept).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.as_str())
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.as_str())
    }
}

#[cfg(test)]
mod tests;

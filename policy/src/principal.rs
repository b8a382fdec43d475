//! Whose rules are asked for: a SPIFFE id taken apart segment by segment. Called by the proxy once a
//! connection (from the verified id's text) and by the parser for `spiffeIds`. Never by regex or suffix.
//!
//! The grammar is SPIFFE-ID section 2, the same as `countersign-identity`'s, written again because this
//! crate is a leaf: a test elsewhere holds the two against each other.

use std::fmt;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// An authenticated identity as rules see it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal {
    id: Arc<str>,
    /// Where the trust domain ends and the path (empty or starting with `/`) begins.
    path_at: usize,
}

/// Why a text is not a SPIFFE id. Source: SPIFFE-ID specification, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// Over 2048 bytes.
    #[error("is longer than 2048 bytes")]
    TooLong,
    /// Does not begin with `spiffe://`.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// Empty, over 255 bytes, or a character other than `a-z 0-9 . - _` (so also user info and port), in either case.
    #[error("has a trust domain that is not 1 to 255 of a-z 0-9 . - _")]
    TrustDomain,
    /// An empty segment (also a trailing slash), `.`, `..`, or a character other than `a-z A-Z 0-9 . - _`.
    #[error("has a path segment that is empty, . or .., or not of a-z A-Z 0-9 . - _")]
    Path,
}

impl Principal {
    /// Reads a SPIFFE id. Scheme and trust domain are read without regard to case and kept in lower case. An id without
    /// a path (a trust domain's own) is one by the grammar, although no leaf may carry it.
    pub fn parse(spiffe_id: &str) -> Result<Self, PrincipalError> {
        if spiffe_id.len() > MAX_ID {
            return Err(PrincipalError::TooLong);
        }
        let (scheme, rest) = spiffe_id.split_at_checked(SCHEME.len()).ok_or(PrincipalError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(PrincipalError::Scheme);
        }
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = trust_domain.to_ascii_lowercase();
        if !is_trust_domain(&trust_domain) {
            return Err(PrincipalError::TrustDomain);
        }
        if let Some(segments) = path.strip_prefix('/')
            && !segments.split('/').all(is_segment)
        {
            return Err(PrincipalError::Path);
        }
        Ok(Self { id: format!("{SCHEME}{trust_domain}{path}").into(), path_at: SCHEME.len() + trust_domain.len() })
    }

    /// The whole id, `spiffe://...`.
    pub fn as_str(&self) -> &str {
        &self.id
    }

    /// The trust domain's name, without scheme.
    pub fn trust_domain(&self) -> &str {
        &self.id[SCHEME.len()..self.path_at]
    }

    /// The path: empty, or `/` and its segments.
    pub fn path(&self) -> &str {
        &self.id[self.path_at..]
    }

    /// Namespace and service account, only of a path that is exactly `/ns/X/sa/Y`.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().strip_prefix('/')?.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({})", self.id)
    }
}

impl serde::Serialize for Principal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.id)
    }
}

/// Whether `text` is a trust domain's name in its canonical, lower case.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    (1..=MAX_TRUST_DOMAIN).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_id_is_taken_apart() {
        let p = Principal::parse("spiffe://cluster.local/ns/shop/sa/frontend").unwrap();
        assert_eq!(p.trust_domain(), "cluster.local");
        assert_eq!(p.path(), "/ns/shop/sa/frontend");
        assert_eq!(p.service_account(), Some(("shop", "frontend")));
        assert_eq!(p.to_string(), "spiffe://cluster.local/ns/shop/sa/frontend");
    }

    #[test]
    fn only_exactly_ns_and_sa_name_a_service_account() {
        for path in ["", "/ns/a", "/ns/a/sa", "/ns/a/sa/b/c", "/x/ns/a/sa/b", "/NS/a/sa/b", "/ns/a/SA/b", "/sa/a/ns/b"]
        {
            let p = Principal::parse(&format!("spiffe://td{path}")).unwrap();
            assert_eq!(p.service_account(), None, "{path}");
        }
    }

    #[test]
    fn what_is_not_a_spiffe_id_is_refused() {
        let long_domain = format!("spiffe://{}/a", "d".repeat(256));
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        for (text, error) in [
            ("", PrincipalError::Scheme),
            ("cluster.local/ns/a/sa/b", PrincipalError::Scheme),
            ("spiffe:/\u{e9}td/a", PrincipalError::Scheme),
            ("spiffe:/é/td", PrincipalError::Scheme),
            ("https://td/a", PrincipalError::Scheme),
            ("spiffe:/td/a", PrincipalError::Scheme),
            ("spiffe://", PrincipalError::TrustDomain),
            ("spiffe:///a", PrincipalError::TrustDomain),
            ("spiffe://T D/a", PrincipalError::TrustDomain),
            ("spiffe://user@td/a", PrincipalError::TrustDomain),
            ("spiffe://td:443/a", PrincipalError::TrustDomain),
            ("spiffe://td?q", PrincipalError::TrustDomain),
            ("spiffe://t%64/a", PrincipalError::TrustDomain),
            ("spiffe://tü/a", PrincipalError::TrustDomain),
            (&long_domain, PrincipalError::TrustDomain),
            ("spiffe://td/", PrincipalError::Path),
            ("spiffe://td/a/", PrincipalError::Path),
            ("spiffe://td//a", PrincipalError::Path),
            ("spiffe://td/a/./b", PrincipalError::Path),
            ("spiffe://td/a/../b", PrincipalError::Path),
            ("spiffe://td/a%2fb", PrincipalError::Path),
            ("spiffe://td/a?b", PrincipalError::Path),
            ("spiffe://td/a#b", PrincipalError::Path),
            ("spiffe://td/a b", PrincipalError::Path),
            ("spiffe://td/\u{e9}", PrincipalError::Path),
            (&long, PrincipalError::TooLong),
        ] {
            assert_eq!(Principal::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn letter_case_counts_in_the_path_alone() {
        let shouted = Principal::parse("SPIFFE://Cluster.LOCAL/ns/A/sa/b").unwrap();
        assert_eq!(shouted, Principal::parse("spiffe://cluster.local/ns/A/sa/b").unwrap());
        assert_eq!(shouted.trust_domain(), "cluster.local");
        assert_ne!(shouted, Principal::parse("spiffe://cluster.local/ns/a/sa/b").unwrap());
    }

    #[test]
    fn what_the_grammar_allows_is_accepted() {
        for text in ["spiffe://td", "spiffe://10.0.0.1/a", "spiffe://a_b-c.d/...", "spiffe://td/A/b/0"] {
            assert_eq!(Principal::parse(text).unwrap().as_str(), text);
        }
    }
}

//! The injector's own serving certificate, and the root that the API server verifies it by: made here, short, never signed by anybody
//! else's key.
//!
//! Called by `keeper`. The root's key signs one leaf and is gone before this returns, so a root of ours can never vouch for
//! anything else.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroize;

/// A clock that is behind ours by up to this part of a certificate's life takes it all the same.
const BACKDATE: u64 = 10;

/// A leaf with its key and its root, all PEM. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The root; for `caBundle`.
    pub root: String,
    /// The leaf.
    pub leaf: String,
    /// The leaf's key, PKCS#8.
    pub key: Key,
    /// When both were made.
    pub made: u64,
    /// When both end.
    pub ends: u64,
    /// Not served before: the root has to come to every API server first.
    pub serve_from: u64,
}

/// A private key; wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why none could be made. Ours.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MakeError {
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("cannot make a certificate: a time is out of range")]
    Time(#[from] time::error::ComponentRange),
}

impl Pair {
    /// A new root and leaf for `names`, the first of which names them; served at once.
    ///
    /// # Errors
    /// A name that is none, or no random numbers.
    pub fn make(names: &[String], now: u64, life: Duration) -> Result<Self, MakeError> {
        let life = life.as_secs();
        let (begin, end) = (now.saturating_sub(life / BACKDATE), now.saturating_add(life));
        let common = |params: &mut CertificateParams, what: &str| -> Result<(), MakeError> {
            params.not_before = OffsetDateTime::from_unix_timestamp(i64::try_from(begin).unwrap_or(0))?;
            params.not_after = OffsetDateTime::from_unix_timestamp(i64::try_from(end).unwrap_or(0))?;
            params.distinguished_name = DistinguishedName::new();
            // Two roots of one name would be taken for each other by some verifiers: the time is in it.
            params.distinguished_name.push(DnType::CommonName, format!("countersign-injector {what} {now}"));
            Ok(())
        };
        let mut root = CertificateParams::default();
        common(&mut root, "root")?;
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;

        let mut leaf = CertificateParams::new(names.to_vec())?;
        common(&mut leaf, "webhook")?;
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = leaf.signed_by(&key, &root)?;
        Ok(Self {
            root: root.pem(),
            leaf: leaf.pem(),
            key: Key(key.serialize_pem()),
            made: now,
            ends: end,
            serve_from: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let pair = Pair::make(&["x.y.svc".to_owned()], 1_800_000_000, Duration::from_secs(3600)).unwrap();
        let printed = format!("{pair:?}");
        assert!(!printed.contains("PRIVATE"), "{printed}");
        assert!(pair.key.pem().contains("PRIVATE KEY"));
        assert_eq!((pair.made, pair.ends), (1_800_000_000, 1_800_003_600));
    }
}

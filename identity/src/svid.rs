//! Our own X509-SVID: a certificate chain and the private key of its leaf.
//!
//! Made by whoever obtains one (credentials, the CA for itself), used to configure TLS. It is checked for form and for
//! belonging together; whether others will accept it is for `verify_svid` to say, before it is published. The key never
//! shows in debug output and is overwritten in memory when the value is dropped.

use crate::certificate::{Certificate, CertificateError};
use crate::chain::{self, ChainError};
use crate::leaf::{Leaf, LeafError};
use crate::spiffe_id::SpiffeId;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::fmt;
use zeroize::Zeroizing;

/// Why a chain and a key do not make an SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// No certificate, or more than a chain may hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The first certificate is no leaf of an SVID.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A later certificate of the chain cannot be read.
    #[error("certificate {index} of the chain: {reason}")]
    Certificate {
        /// Its place in the chain, the leaf being 0.
        index: usize,
        /// What is wrong with it.
        reason: CertificateError,
    },
    /// The key cannot be read, or is of a kind that we do not use.
    #[error("the private key is none of ECDSA P-256, ECDSA P-384, Ed25519, RSA of 2048 bits or more")]
    Key,
    /// The key is not the leaf's.
    #[error("the private key does not belong to the leaf")]
    KeyMismatch,
}

/// A certificate chain, leaf first, and the leaf's private key.
pub struct Svid {
    leaf: Leaf,
    serial: String,
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<PrivateKeyDer<'static>>,
}

impl Svid {
    /// Takes a chain, leaf first (a root at its end is allowed, not needed), and the key that belongs to the leaf.
    ///
    /// # Errors
    /// A leaf that breaks a rule of X509-SVID, a certificate that cannot be read, a key of another kind or another leaf.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        let key = Zeroizing::new(key);
        let certificates = read(&chain)?;
        let first = certificates.first().ok_or(ChainError::Empty)?;
        let leaf = Leaf::check(first)?;
        let public = public_key(&key).ok_or(SvidError::Key)?;
        if public != first.public_key().subject_public_key.data.as_ref() {
            return Err(SvidError::KeyMismatch);
        }
        let serial = hex(first.serial());
        Ok(Self { leaf, serial, chain, key })
    }

    /// Who this says we are.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The certificates, leaf first, as they are sent.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// When the leaf begins to be valid (that second included).
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.leaf.not_before
    }

    /// When the leaf ends (that second included).
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.leaf.not_after
    }

    /// SHA-256 of the leaf's SubjectPublicKeyInfo: the name of its key in reports and audit records.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.leaf.spki_sha256
    }

    /// The leaf's serial number in lower-case hexadecimal, two digits a byte.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", self.id())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after().as_secs())
            .finish_non_exhaustive()
    }
}

fn read<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<Certificate<'a>>, SvidError> {
    chain::check_size(chain)?;
    let read_one = |(index, der): (usize, &'a CertificateDer<'_>)| {
        Certificate::read(der).map_err(|reason| match index {
            0 => SvidError::Leaf(reason.into()),
            _ => SvidError::Certificate { index, reason },
        })
    };
    chain.iter().enumerate().map(read_one).collect()
}

/// The public half, as it stands in a certificate's BIT STRING, of a key of a kind that TLS may use here.
fn public_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
    let der = key.secret_der();
    let curves = [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING];
    let ecdsa = || {
        let read = |curve| EcdsaKeyPair::from_private_key_der(curve, der).ok();
        let pair = curves.into_iter().find_map(read)?;
        Some(pair.public_key().as_ref().to_vec())
    };
    let ed25519 = || {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        Some(pair.public_key().as_ref().to_vec())
    };
    let rsa = |pair: RsaKeyPair| pair.public_key().as_ref().to_vec();
    match key {
        PrivateKeyDer::Pkcs8(_) => ecdsa().or_else(ed25519).or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(rsa)),
        PrivateKeyDer::Sec1(_) => ecdsa(),
        PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(der).ok().map(rsa),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

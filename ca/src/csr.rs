//! A certificate signing request, of which nothing is used but the public key. Called by `issue`. Subject, names, usages,
//! CA flag: whatever the request asks for is not even read (rcgen's own `signed_by` would grant it).

use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use x509_parser::asn1_rs::Tag;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_RSASSAPSS, OID_SIG_ED448, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

use crate::state::sha256;

/// Why a request is refused; all are the caller's doing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than any request with an allowed key.
    #[error("the CSR has {bytes} bytes, more than {MAX_CSR}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not one PKCS#10 request in DER.
    #[error("the CSR is not a PKCS#10 request in DER")]
    Malformed,
    /// A key of a kind that no leaf may have.
    #[error("the CSR's key is {0}; allowed are ECDSA P-256, ECDSA P-384 and Ed25519")]
    KeyType(String),
    /// An allowed kind, but not encoded as RFC 5480 or RFC 8410 say (uncompressed point, whole octets).
    #[error("the CSR's {0} key is not well encoded")]
    KeyEncoding(KeyKind),
    /// The signature was not made by the key in the request.
    #[error("the CSR's signature does not prove possession of its key")]
    NoPossession,
}

impl CsrError {
    /// A bounded word for metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "csr_too_large",
            Self::Malformed => "csr_malformed",
            Self::KeyType(_) => "csr_key_type",
            Self::KeyEncoding(_) => "csr_key_encoding",
            Self::NoPossession => "csr_no_possession",
        }
    }
}

/// A request with a P-384 key and many names is under 2 KiB.
pub const MAX_CSR: usize = 8 * 1024;

/// Kinds of key that a leaf may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl std::fmt::Display for KeyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::P256 => "ECDSA P-256",
            Self::P384 => "ECDSA P-384",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// A public key whose holder signed the request with it. Made by [`verify`] alone.
#[derive(Debug)]
pub struct ProvenKey {
    public: SubjectPublicKeyInfo,
    sha256: [u8; 32],
    kind: KeyKind,
}

impl ProvenKey {
    /// The public key, for the certificate.
    pub fn public(&self) -> &SubjectPublicKeyInfo {
        &self.public
    }

    /// SHA-256 of the SPKI, for records.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }
}

/// Size, form, kind of key, proof of possession: the cheap checks first.
pub fn verify(der: &[u8]) -> Result<ProvenKey, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::TooLarge { bytes: der.len() });
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let parsed = &csr.certification_request_info.subject_pki;
    let kind = kind_of(parsed)?;
    check_encoding(kind, parsed)?;
    csr.verify_signature().map_err(|_| CsrError::NoPossession)?;
    // The algorithm is that of the key itself, not of the signature (rcgen's CSR type takes the signature's).
    let public = SubjectPublicKeyInfo::from_der(parsed.raw).map_err(|_| CsrError::KeyEncoding(kind))?;
    let sha256 = sha256(&public.subject_public_key_info());
    Ok(ProvenKey { public, sha256, kind })
}

fn kind_of(key: &ParsedKey<'_>) -> Result<KeyKind, CsrError> {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(KeyKind::Ed25519);
    }
    if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(CsrError::KeyType(name(key)));
    }
    // `as_oid` reads the content of any tag.
    let named = key.algorithm.parameters.as_ref().filter(|parameters| parameters.tag() == Tag::Oid);
    let curve = named.and_then(|parameters| parameters.as_oid().ok());
    match curve {
        Some(curve) if curve == OID_EC_P256 => Ok(KeyKind::P256),
        Some(curve) if curve == OID_NIST_EC_P384 => Ok(KeyKind::P384),
        Some(curve) if curve == OID_NIST_EC_P521 => Err(CsrError::KeyType("ECDSA P-521".to_owned())),
        Some(curve) => Err(CsrError::KeyType(format!("ECDSA on the curve {}", short(&curve)))),
        None => Err(CsrError::KeyType("ECDSA with explicit curve parameters".to_owned())),
    }
}

fn name(key: &ParsedKey<'_>) -> String {
    let algorithm = &key.algorithm.algorithm;
    if [OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS].contains(algorithm) {
        return match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => format!("RSA with {} bits", rsa.key_size()),
            _ => "RSA".to_owned(),
        };
    }
    if *algorithm == OID_SIG_ED448 {
        return "Ed448".to_owned();
    }
    format!("of the algorithm {}", short(algorithm))
}

/// An OID's dotted text, cut: its length is the caller's choice.
fn short(oid: &x509_parser::der_parser::Oid<'_>) -> String {
    oid.to_id_string().chars().take(64).collect()
}

fn check_encoding(kind: KeyKind, key: &ParsedKey<'_>) -> Result<(), CsrError> {
    let bits = &key.subject_public_key;
    let (len, point) = match kind {
        KeyKind::P256 => (65, true),
        KeyKind::P384 => (97, true),
        KeyKind::Ed25519 => (32, false),
    };
    let uncompressed = !point || bits.data.first() == Some(&4);
    if bits.unused_bits == 0 && bits.data.len() == len && uncompressed {
        Ok(())
    } else {
        Err(CsrError::KeyEncoding(kind))
    }
}

#[cfg(test)]
mod tests;

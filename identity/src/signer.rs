//! The rules for certificates that sign others: intermediates in a chain, roots in a bundle.
//!
//! Called by `verify` for every intermediate of a path that is otherwise right, and by `bundle` for every root as it is
//! loaded. Path validation itself (signatures, names, pathLen of intermediates) is rustls-webpki's; this holds what it
//! leaves out. Nothing here may trust a certificate: it can only refuse one.

use crate::certificate::{Certificate, CertificateError};
use crate::spiffe_id::TrustDomain;
use x509_parser::asn1_rs::FromDer;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, NameConstraints};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// RSA key sizes that the signature check accepts, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a certificate may not sign others here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// It cannot be read at all.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// BasicConstraints is missing or says cA=false: a leaf, for one.
    #[error("not a CA certificate")]
    NotCa,
    /// A root without KeyUsage (X509-SVID 4.3).
    #[error("no key usage")]
    NoKeyUsage,
    /// KeyUsage without keyCertSign (RFC 5280, 6.1.4 n).
    #[error("its key usage does not allow signing certificates")]
    NoKeyCertSign,
    /// Its URI name is not exactly one that is a SPIFFE trust domain (X509-SVID 3.2).
    #[error("its URI name is not the id of a trust domain")]
    BadId,
    /// Its URI name is another trust domain's.
    #[error("its URI name belongs to another trust domain")]
    ForeignId,
    /// ExtendedKeyUsage present without both serverAuth and clientAuth: it could sign for one direction only.
    #[error("its extended key usage must be absent or hold both serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// URI name constraints: path validation cannot process them, and would refuse every leaf.
    #[error(
        "it carries URI name constraints, which are not supported: every identity below it would be refused. Issue the CA \
         certificate without them; a trust domain is already confined to its own bundle"
    )]
    UriNameConstraints,
    /// Directory name constraints: path validation cannot process them, and would refuse every leaf.
    #[error(
        "it carries directory name constraints, which are not supported: every identity below it would be refused. Issue \
         the CA certificate without them"
    )]
    DirectoryNameConstraints,
    /// Its key could not verify any signature that we accept.
    #[error("its key is none of ECDSA P-256, ECDSA P-384, Ed25519, RSA of 2048 to 8192 bits")]
    UnsupportedKey,
}

/// An intermediate of a path whose leaf is in `trust_domain` (its cA and pathLen are webpki's).
pub(crate) fn check_intermediate(certificate: &Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), SignerError> {
    if certificate.key_usage.is_some_and(|usage| !usage.cert_sign) {
        return Err(SignerError::NoKeyCertSign);
    }
    check_id(certificate, trust_domain)
}

/// A root about to be trusted for `trust_domain`: all that could make it useless or too powerful, before it is needed.
pub(crate) fn check_root(certificate: &Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), SignerError> {
    if !certificate.basic_constraints.is_some_and(|c| c.ca) {
        return Err(SignerError::NotCa);
    }
    let usage = certificate.key_usage.ok_or(SignerError::NoKeyUsage)?;
    if !usage.cert_sign {
        return Err(SignerError::NoKeyCertSign);
    }
    check_id(certificate, trust_domain)?;
    check_extended_key_usage(certificate)?;
    check_name_constraints(certificate)?;
    if !is_supported(certificate.public_key()) {
        return Err(SignerError::UnsupportedKey);
    }
    Ok(())
}

/// A signer need not have an id; if it has, it is the trust domain's own (with or without the slash of the
/// specification's example).
fn check_id(certificate: &Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), SignerError> {
    let text = match (certificate.uris.count, certificate.uris.first) {
        (0, _) => return Ok(()),
        (1, Some(text)) => text,
        _ => return Err(SignerError::BadId),
    };
    let own = crate::SpiffeId::parse(text.strip_suffix('/').unwrap_or(text)).map_err(|_| SignerError::BadId)?;
    if !own.path().is_empty() {
        return Err(SignerError::BadId);
    }
    if own.trust_domain() != *trust_domain {
        return Err(SignerError::ForeignId);
    }
    Ok(())
}

fn check_extended_key_usage(certificate: &Certificate<'_>) -> Result<(), SignerError> {
    let Some(value) = certificate.extended_key_usage else {
        return Ok(());
    };
    match ExtendedKeyUsage::from_der(value) {
        Ok(([], usage)) if usage.server_auth && usage.client_auth => Ok(()),
        Ok(([], _)) => Err(SignerError::ExtendedKeyUsage),
        _ => Err(CertificateError::BadExtension("extended key usage").into()),
    }
}

fn check_name_constraints(certificate: &Certificate<'_>) -> Result<(), SignerError> {
    const BAD: CertificateError = CertificateError::BadExtension("name constraints");
    let Some(value) = certificate.name_constraints else {
        return Ok(());
    };
    let Ok(([], constraints)) = NameConstraints::from_der(value) else {
        return Err(BAD.into());
    };
    let permitted = constraints.permitted_subtrees.iter().flatten();
    for subtree in permitted.chain(constraints.excluded_subtrees.iter().flatten()) {
        match subtree.base {
            GeneralName::URI(_) => return Err(SignerError::UriNameConstraints),
            GeneralName::DirectoryName(_) => return Err(SignerError::DirectoryNameConstraints),
            GeneralName::Invalid(..) => return Err(BAD.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The keys for which `verify::ALGORITHMS` holds an algorithm.
fn is_supported(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        return curve.is_some_and(|oid| oid == OID_EC_P256 || oid == OID_NIST_EC_P384);
    }
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        return matches!(key.parsed(), Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&bits(rsa.modulus)));
    }
    algorithm.algorithm == OID_SIG_ED25519
}

/// Bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let significant = number.iter().skip_while(|byte| **byte == 0);
    let leading = significant.clone().next().map_or(0, |b| b.leading_zeros());
    significant.count() * 8 - leading as usize
}

#[cfg(test)]
mod tests {
    use super::bits;

    #[test]
    fn leading_zeros_do_not_lengthen_a_key() {
        assert_eq!(bits(&[]), 0);
        assert_eq!(bits(&[0, 0]), 0);
        assert_eq!(bits(&[1]), 1);
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0, 0, 0x7f, 0xff]), 15);
    }
}

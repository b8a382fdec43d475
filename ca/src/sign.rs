//! A grant and a proven key made into a certificate, which our own verifier must accept before anybody sees it. Called by
//! `issue` and `own`. The template is made anew from the grant; nothing of a CSR reaches it but the public key.
//!
//! Signing runs where it is called: request checked, leaf signed and verified take some 0.18 ms together (`cargo xtask bench
//! micro csr`), not worth another thread. A signer behind a network (KMS) would be.

use countersign_identity::{VerifiedId, VerifyError, verify_svid_at_both_ends};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::grant::Grant;
use crate::state::{Authority, date, hex, random_serial, sha256};

/// Why a grant did not become a certificate. All our own fault.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The certificate cannot be made.
    #[error("cannot make the certificate: {0}")]
    Make(String),
    /// Our own verifier refuses our own product.
    #[error("our own product is refused by our own verifier: {0}")]
    Refused(#[from] VerifyError),
    /// The product does not say what was granted.
    #[error("our own product does not hold what was granted: {0}")]
    Differs(&'static str),
}

impl SignError {
    /// A bounded word for metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Make(_) => "sign_failed",
            Self::Refused(_) => "sign_product_refused",
            Self::Differs(_) => "sign_product_differs",
        }
    }
}

/// A signed leaf with its chain, verified as its peers will verify it. Made by [`leaf`] alone.
#[derive(Debug)]
pub struct Signed {
    chain: Vec<CertificateDer<'static>>,
    serial: String,
    verified: VerifiedId,
}

impl Signed {
    /// Leaf first, then the issuer; no root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's serial number in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// What our own verifier saw in it.
    pub fn verified(&self) -> &VerifiedId {
        &self.verified
    }
}

/// Signs `key` for what `grant` says, and checks the product.
pub fn leaf(
    authority: &Authority,
    grant: &Grant,
    key: &impl PublicKeyData,
    now: UnixTime,
) -> Result<Signed, SignError> {
    let (params, serial) = template(grant)?;
    let certificate = params.signed_by(key, authority.issuer().signer()).map_err(make)?;
    let chain = vec![certificate.der().clone(), authority.issuer().certificate().clone()];
    let verified = check(&chain, authority, grant, key, now)?;
    Ok(Signed { chain, serial, verified })
}

/// A leaf as X509-SVID, sections 2 to 4, asks for it. The empty subject makes the SAN critical; rcgen writes the CA flag as false only when told to.
fn template(grant: &Grant) -> Result<(CertificateParams, String), SignError> {
    let serial = random_serial().map_err(make)?;
    let hex = hex(&serial.to_bytes());
    let mut params = CertificateParams::default();
    params.not_before = date(grant.not_before()).map_err(make)?;
    params.not_after = date(grant.not_after()).map_err(make)?;
    params.serial_number = Some(serial);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(grant.id().as_str().try_into().map_err(make)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok((params, hex))
}

fn check(
    chain: &[CertificateDer<'static>],
    authority: &Authority,
    grant: &Grant,
    key: &impl PublicKeyData,
    now: UnixTime,
) -> Result<VerifiedId, SignError> {
    let verified = verify_svid_at_both_ends(chain, authority.bundles(), authority.known(), now)?;
    if verified.id() != grant.id() {
        return Err(SignError::Differs("identity"));
    }
    if *verified.spki_sha256() != sha256(&key.subject_public_key_info()) {
        return Err(SignError::Differs("key"));
    }
    if verified.not_after() != grant.not_after() || verified.not_after() > authority.issuer().not_after() {
        return Err(SignError::Differs("end"));
    }
    Ok(verified)
}

fn make(error: impl std::fmt::Display) -> SignError {
    SignError::Make(error.to_string())
}

#[cfg(test)]
mod tests;

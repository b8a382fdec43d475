//! Checkpoints: whose key signed, whether that key was the CA's at that time, and whether the signature holds. Called by `chain`.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::audit::signed_text;
use countersign_identity::{BundleSet, Purpose, SpiffeId, TrustBundle, verify_svid};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::identity::show::hex;

/// Why a checkpoint proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("its {0} cannot be read")]
    Malformed(&'static str),
    #[error("its signer's certificates are in none of the files given")]
    UnknownSigner,
    #[error("its signer is not who its certificate says")]
    OtherKey,
    #[error("no root that was given was valid at its time")]
    NoRoot,
    #[error("its signer's certificate is refused: {0}")]
    Refused(#[from] countersign_identity::VerifyError),
    #[error("it is signed by {0}, which is not the CA")]
    NotTheCa(SpiffeId),
    #[error("its signature does not hold: it, or a line before it, was changed")]
    Wrong,
}

/// Roots that are trusted, and the one who signs.
pub struct Roots {
    ca: SpiffeId,
    roots: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Of the trust domain of `ca`.
    pub fn new(ca: SpiffeId, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { ca, roots }
    }

    /// Those that were valid then: a log outlives roots.
    fn at(&self, now: UnixTime) -> Result<BundleSet, SignatureError> {
        let domain = self.ca.trust_domain();
        let good =
            |root: &&CertificateDer<'static>| TrustBundle::new(domain.clone(), 1, vec![(*root).clone()], now).is_ok();
        let roots: Vec<_> = self.roots.iter().filter(good).cloned().collect();
        if roots.is_empty() {
            return Err(SignatureError::NoRoot);
        }
        let bundle = TrustBundle::new(domain.clone(), 1, roots, now).map_err(|_| SignatureError::NoRoot)?;
        BundleSet::new(vec![bundle]).map_err(|_| SignatureError::NoRoot)
    }
}

struct Signer {
    chain: Vec<CertificateDer<'static>>,
    /// The public key's point.
    point: Vec<u8>,
}

/// Signers whose certificates were seen, by the hash of their key.
pub struct Signers {
    roots: Option<Roots>,
    known: HashMap<String, Signer>,
}

impl Signers {
    /// None was seen yet.
    pub fn new(roots: Option<Roots>) -> Self {
        Self { roots, known: HashMap::new() }
    }

    /// One checkpoint.
    pub fn check(&mut self, record: &Value, chain: &str, n: u64, prev: &str, time: &str) -> Result<(), SignatureError> {
        let name = record["signer"].as_str().ok_or(SignatureError::Malformed("signer"))?;
        if let Some(certificates) = record["certificates"].as_array() {
            let signer = read(certificates, name)?;
            self.known.insert(name.to_owned(), signer);
        }
        let signer = self.known.get(name).ok_or(SignatureError::UnknownSigner)?;
        if let Some(roots) = &self.roots {
            let now = unix(time)?;
            let verified = verify_svid(&signer.chain, &roots.at(now)?, Purpose::Client, now)?;
            if *verified.id() != roots.ca {
                return Err(SignatureError::NotTheCa(verified.id().clone()));
            }
        }
        let signature = record["signature"].as_str().and_then(|text| STANDARD.decode(text).ok());
        let signature = signature.ok_or(SignatureError::Malformed("signature"))?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &signer.point);
        key.verify(signed_text(chain, n, prev, time).as_bytes(), &signature).map_err(|_| SignatureError::Wrong)
    }
}

fn read(certificates: &[Value], name: &str) -> Result<Signer, SignatureError> {
    let bad = || SignatureError::Malformed("certificates");
    let der = |value: &Value| value.as_str().and_then(|text| STANDARD.decode(text).ok()).map(CertificateDer::from);
    let chain = certificates.iter().map(der).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    let (_, leaf) = X509Certificate::from_der(chain.first().ok_or_else(bad)?).map_err(|_| bad())?;
    let spki = leaf.public_key();
    if hex(digest(&SHA256, spki.raw).as_ref()) != name {
        return Err(SignatureError::OtherKey);
    }
    let point = spki.subject_public_key.data.to_vec();
    Ok(Signer { chain, point })
}

fn unix(time: &str) -> Result<UnixTime, SignatureError> {
    let bad = || SignatureError::Malformed("time");
    let time = OffsetDateTime::parse(time, &Rfc3339).map_err(|_| bad())?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time.unix_timestamp()).map_err(|_| bad())?)))
}

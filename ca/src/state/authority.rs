//! Root and issuer: their keys, their certificates, and the bundle they make. Made and stored by `state`; `sign` uses the
//! issuer. One value never changes: a renewed issuer is a new `Authority`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use countersign_identity::{BundleSet, CheckedSignature, TrustBundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::rotation::Rotation;
use crate::clock::seconds;

/// Why root and issuer cannot be made, or those that were stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A stored certificate or key does not parse.
    #[error("the stored {0} does not parse")]
    Malformed(&'static str),
    /// A stored key is not the key of its certificate.
    #[error("the stored {0} key is not the key of its certificate")]
    KeyMismatch(&'static str),
    /// The stored issuer was not signed by the stored root.
    #[error("the stored issuer was not signed by the stored root")]
    NotSignedByRoot,
    /// The root does not make a bundle (as when it has expired).
    #[error("the root makes no trust bundle: {0}")]
    Bundle(String),
    /// Making a key or a certificate failed.
    #[error("cannot make the {what}: {reason}")]
    Make {
        /// Root or issuer.
        what: &'static str,
        /// What failed.
        reason: String,
    },
}

/// How long certificates live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The root's life.
    pub root: Duration,
    /// The issuer's life; at least three times the longest leaf's, so that renewal at a third left never shortens a leaf.
    pub issuer: Duration,
    /// The life that leaves get when nothing is asked for.
    pub leaf: Duration,
}

/// CA certificates begin this long before they are made: longer than any clock skew that issuance accepts.
pub const BACKDATE: Duration = Duration::from_secs(600);

/// A CA certificate and its key.
pub struct Pair {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    serial: String,
    not_after: UnixTime,
}

/// Everything that signing needs, and the bundle that verifies it.
pub struct Authority {
    pub(super) trust_domain: TrustDomain,
    pub(super) root: Arc<Pair>,
    pub(super) issuer: Arc<Pair>,
    /// While a rotation is under way, the root that does not sign.
    pub(super) second: Option<Arc<Pair>>,
    pub(super) rotation: Option<Rotation>,
    longest_leaf: Option<u64>,
    bundles: BundleSet,
    bundle: TrustBundle,
    checked: CheckedSignature,
}

/// What was stored, besides the one root and issuer that there always are.
#[derive(Default)]
pub struct Beside<'a> {
    /// Certificate and key of the root that does not sign.
    pub second: Option<(&'a [u8], &'a [u8])>,
    /// The rotation under way, or the last one.
    pub rotation: Option<Rotation>,
    /// The longest life that a leaf was ever given, in seconds.
    pub longest_leaf: Option<u64>,
}

impl Authority {
    /// A new root with a new issuer, bundle generation 1.
    pub fn create(trust_domain: &TrustDomain, lifetimes: Lifetimes, now: UnixTime) -> Result<Self, AuthorityError> {
        let root = Arc::new(make_root(trust_domain, lifetimes.root, now)?);
        let issuer = Arc::new(make_issuer(trust_domain, &root, lifetimes.issuer, now)?);
        Self::assemble(trust_domain, 1, root, issuer, Held::first(lifetimes), now)
    }

    /// The same root and bundle with a new issuer.
    pub fn with_new_issuer(&self, lifetimes: Lifetimes, now: UnixTime) -> Result<Self, AuthorityError> {
        let issuer = Arc::new(make_issuer(&self.trust_domain, &self.root, lifetimes.issuer, now)?);
        Self::assemble(&self.trust_domain, self.generation(), Arc::clone(&self.root), issuer, self.held(), now)
    }

    /// The same, and leaves may have this life, too: a rotation under way waits for it as well.
    pub fn with_longest_leaf(&self, life: u64, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut held = Held { longest_leaf: Some(life.max(self.longest_leaf.unwrap_or(0))), ..self.held() };
        if let Some(rotation) = held.rotation.as_mut().filter(|rotation| rotation.stage().under_way()) {
            rotation.leaf_life = rotation.leaf_life.max(life);
        }
        let (root, issuer) = (Arc::clone(&self.root), Arc::clone(&self.issuer));
        Self::assemble(&self.trust_domain, self.generation(), root, issuer, held, now)
    }

    /// Another step of a rotation.
    pub(super) fn with(
        &self,
        root: Arc<Pair>,
        issuer: Arc<Pair>,
        second: Option<Arc<Pair>>,
        generation: u64,
        rotation: Rotation,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let held = Held { second, rotation: Some(rotation), longest_leaf: self.longest_leaf };
        Self::assemble(&self.trust_domain, generation, root, issuer, held, now)
    }

    /// From what was stored, with every claim of the stored bytes checked again.
    pub fn restore(
        trust_domain: &TrustDomain,
        generation: u64,
        root: (&[u8], &[u8]),
        issuer: (&[u8], &[u8]),
        beside: Beside<'_>,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let root = Pair::restore("root", root)?;
        let issuer = Pair::restore("issuer", issuer)?;
        check_signed(&issuer.certificate, &root.certificate)?;
        let second = beside.second.map(|second| Pair::restore("second root", second)).transpose()?.map(Arc::new);
        let Beside { rotation, longest_leaf, .. } = beside;
        if second.is_some() != rotation.as_ref().is_some_and(|rotation| rotation.stage().under_way()) {
            return Err(AuthorityError::Malformed("rotation"));
        }
        let held = Held { second, rotation, longest_leaf };
        Self::assemble(trust_domain, generation, Arc::new(root), Arc::new(issuer), held, now)
    }

    fn held(&self) -> Held {
        Held { second: self.second.clone(), rotation: self.rotation.clone(), longest_leaf: self.longest_leaf }
    }

    fn assemble(
        trust_domain: &TrustDomain,
        generation: u64,
        root: Arc<Pair>,
        issuer: Arc<Pair>,
        held: Held,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let bad = |error: &dyn std::fmt::Display| AuthorityError::Bundle(error.to_string());
        let Held { second, rotation, longest_leaf } = held;
        let mut roots: Vec<_> =
            [Some(&root), second.as_ref()].into_iter().flatten().map(|p| p.certificate.clone()).collect();
        // Always the same order, whichever signs: the same generation must be the same bundle.
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        let bundle = TrustBundle::new(trust_domain.clone(), generation, roots, now).map_err(|e| bad(&e))?;
        let bundles = BundleSet::new(vec![bundle.clone()]).map_err(|e| bad(&e))?;
        let checked =
            CheckedSignature::of(&issuer.certificate, &bundle).map_err(|_| AuthorityError::NotSignedByRoot)?;
        let trust_domain = trust_domain.clone();
        Ok(Self { trust_domain, root, issuer, second, rotation, longest_leaf, bundles, bundle, checked })
    }

    /// True when a new issuer is due: a third of its life or less is left, and a new one would live longer.
    pub fn issuer_due(&self, lifetimes: Lifetimes, now: UnixTime) -> bool {
        let left = self.issuer.not_after.as_secs().saturating_sub(now.as_secs());
        let new_end = end(now, lifetimes.issuer).min(self.root.not_after);
        left <= lifetimes.issuer.as_secs() / 3 && new_end > self.issuer.not_after
    }

    /// Why `other` may not take the place of this one while the process lives; `None` if it may. Proxies refuse a bundle that
    /// goes back, and another one under the same number.
    pub fn why_not_next(&self, other: &Self) -> Option<String> {
        let (held, stored) = (self.generation(), other.generation());
        if stored < held {
            return Some(format!("bundle generation {stored}, older than {held} which is in force"));
        }
        if stored == held && self.bundle.roots() != other.bundle.roots() {
            return Some(format!("other roots under the bundle generation {held} which is in force"));
        }
        None
    }

    /// The same root, issuer and bundle, and the same stage of the same rotation.
    pub fn is_same(&self, other: &Self) -> bool {
        self.generation() == other.generation()
            && self.root.certificate == other.root.certificate
            && self.issuer.certificate == other.issuer.certificate
            && self.rotation == other.rotation
            && self.longest_leaf == other.longest_leaf
    }

    /// The root that does not sign, while a rotation is under way.
    pub fn second_root(&self) -> Option<&Pair> {
        self.second.as_deref()
    }

    /// The longest life that a leaf was ever given, in seconds; `None`: not known, as the state is of a time when it was not kept.
    pub fn longest_leaf(&self) -> Option<u64> {
        self.longest_leaf
    }

    /// All roots of the bundle as PEM, one after the other.
    pub fn bundle_pem(&self) -> String {
        self.bundle.roots().iter().map(|root| pem(root)).collect()
    }

    /// The trust domain that this authority speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Number of the bundle; grows with each change of content, over restarts too.
    pub fn generation(&self) -> u64 {
        self.bundle.generation()
    }

    /// The bundle in force.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The bundle as verifiers take it.
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// The root's signature on the issuer, checked when this value was made: it is the same below each leaf.
    pub fn known(&self) -> &[CheckedSignature] {
        std::slice::from_ref(&self.checked)
    }

    /// The root.
    pub fn root(&self) -> &Pair {
        &self.root
    }

    /// The issuer that signs leaves.
    pub fn issuer(&self) -> &Pair {
        &self.issuer
    }
}

/// What an authority holds besides root, issuer and bundle.
struct Held {
    second: Option<Arc<Pair>>,
    rotation: Option<Rotation>,
    longest_leaf: Option<u64>,
}

impl Held {
    fn first(lifetimes: Lifetimes) -> Self {
        Self { second: None, rotation: None, longest_leaf: Some(lifetimes.leaf.as_secs()) }
    }
}

impl Pair {
    /// SHA-256 of the certificate: how a root is named.
    pub fn certificate_sha256(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Serial number in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Nothing signed by this key is valid later.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// SHA-256 of the public key (SPKI), for records.
    pub fn key_sha256(&self) -> [u8; 32] {
        sha256(&self.issuer.key().subject_public_key_info())
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        pem(&self.certificate)
    }

    pub(crate) fn signer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The private key, PKCS#8 DER: for the encrypted state only.
    pub(super) fn key_der(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    fn restore(what: &'static str, (certificate, key): (&[u8], &[u8])) -> Result<Self, AuthorityError> {
        let key = KeyPair::try_from(key).map_err(|_| AuthorityError::Malformed(what))?;
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| AuthorityError::Malformed(what))?;
        if !rest.is_empty() {
            return Err(AuthorityError::Malformed(what));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch(what));
        }
        let serial = hex(parsed.raw_serial());
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let certificate = CertificateDer::from(certificate.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityError::Malformed(what))?;
        Ok(Self { certificate, issuer, serial, not_after: seconds(not_after) })
    }
}

#[cfg(test)]
impl Pair {
    /// The private key, for tests that build a state by hand.
    pub(crate) fn secret_for_test(&self) -> Vec<u8> {
        self.key_der().to_vec()
    }
}

pub(super) fn make_root(trust_domain: &TrustDomain, life: Duration, now: UnixTime) -> Result<Pair, AuthorityError> {
    let what = "root";
    let key = new_key(what)?;
    let not_after = end(now, life);
    let params = ca_params(what, trust_domain, 1, now, not_after)?;
    let certificate = params.self_signed(&key).map_err(|e| make(what, e))?.der().clone();
    Pair::restore(what, (&certificate, key.serialized_der()))
}

pub(super) fn make_issuer(
    trust_domain: &TrustDomain,
    root: &Pair,
    life: Duration,
    now: UnixTime,
) -> Result<Pair, AuthorityError> {
    let what = "issuer";
    let key = new_key(what)?;
    let not_after = end(now, life).min(root.not_after);
    let params = ca_params(what, trust_domain, 0, now, not_after)?;
    let certificate = params.signed_by(&key, &root.issuer).map_err(|e| make(what, e))?.der().clone();
    Pair::restore(what, (&certificate, key.serialized_der()))
}

/// A signing certificate as X509-SVID, sections 3 and 4, asks for it: cA, pathLen, keyCertSign alone, the trust domain as URI SAN without a path, no EKU. No URI name
/// constraints: rustls-webpki fails closed on any (RFC 5280, 4.2.1.10).
fn ca_params(
    what: &'static str,
    trust_domain: &TrustDomain,
    path_len: u8,
    now: UnixTime,
    not_after: UnixTime,
) -> Result<CertificateParams, AuthorityError> {
    let serial = random_serial().map_err(|reason| AuthorityError::Make { what, reason: reason.to_owned() })?;
    let mut params = CertificateParams::default();
    params.not_before = date(seconds(now.as_secs().saturating_sub(BACKDATE.as_secs()))).map_err(|e| make(what, e))?;
    params.not_after = date(not_after).map_err(|e| make(what, e))?;
    params.distinguished_name = DistinguishedName::new();
    // A name of its own for each, so that tools that chain by name do not take an old one for a new one.
    let name = format!("Countersign {what} {}", &hex(&serial.to_bytes())[..8]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial);
    let uri = format!("spiffe://{}", trust_domain.as_str());
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(|e: rcgen::Error| make(what, e))?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn check_signed(issuer: &CertificateDer<'_>, root: &CertificateDer<'_>) -> Result<(), AuthorityError> {
    let malformed = |_| AuthorityError::Malformed("chain");
    let (_, root) = X509Certificate::from_der(root).map_err(malformed)?;
    let (_, issuer) = X509Certificate::from_der(issuer).map_err(malformed)?;
    issuer.verify_signature(Some(root.public_key())).map_err(|_| AuthorityError::NotSignedByRoot)
}

fn new_key(what: &'static str) -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| make(what, e))
}

fn make(what: &'static str, error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Make { what, reason: error.to_string() }
}

fn end(now: UnixTime, life: Duration) -> UnixTime {
    seconds(now.as_secs().saturating_add(life.as_secs()))
}

/// A random positive serial of exactly 16 octets (RFC 5280 allows 20). rcgen's own would be the key's hash: the same at
/// each renewal.
pub(crate) fn random_serial() -> Result<SerialNumber, &'static str> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A name that nobody else has: so many random bytes, in hex.
pub(crate) fn random_name<const BYTES: usize>() -> Result<String, &'static str> {
    Ok(hex(&random::<BYTES>()?))
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], &'static str> {
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers")?;
    Ok(bytes)
}

pub(crate) fn date(at: UnixTime) -> Result<OffsetDateTime, time::error::ComponentRange> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at.as_secs()).unwrap_or(i64::MAX))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// PEM (RFC 7468) of one certificate.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

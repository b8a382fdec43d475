//! Certificates for tests: a root, an issuer and a leaf that are right, each of which a test may spoil.

use countersign_identity::{BundleSet, Purpose, TrustBundle, TrustDomain, VerifiedId, VerifyError, verify_svid};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SigningKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::time::Duration;
use time::OffsetDateTime;

/// 2026-11-21 12:00:00 UTC. Every certificate's times count from here; nothing reads a clock.
pub const NOW: i64 = 1_795_262_400;
pub const ID: &str = "spiffe://cluster.local/ns/shop/sa/backend";
pub const HOUR: i64 = 3600;

pub fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap()))
}

pub fn now() -> UnixTime {
    at(NOW)
}

pub fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A name that no other certificate of this process bears.
fn fresh_name(kind: &str) -> DistinguishedName {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut name = DistinguishedName::new();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(DnType::CommonName, format!("{kind} {n}"));
    name
}

fn valid_for(params: &mut CertificateParams, from: i64, to: i64) {
    params.not_before = OffsetDateTime::from_unix_timestamp(NOW + from).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW + to).unwrap();
}

/// Validity in seconds from [`NOW`].
pub fn validity(params: &mut CertificateParams, from: i64, to: i64) {
    valid_for(params, from, to);
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// An extension in the arc 2.5.29, by number.
pub fn extension(number: u64, critical: bool, value: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, number], value);
    extension.set_criticality(critical);
    extension
}

/// One DER value.
pub fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut out = vec![tag];
    match body.len() {
        n @ 0..=0x7f => out.push(u8::try_from(n).unwrap()),
        n @ 0x80..=0xff => out.extend([0x81, u8::try_from(n).unwrap()]),
        n => {
            out.push(0x82);
            out.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
    }
    out.extend(body);
    out
}

/// A SubjectAltName of raw names, in place of rcgen's.
pub fn san(params: &mut CertificateParams, names: &[(u8, &[u8])]) {
    params.subject_alt_names.clear();
    let names: Vec<_> = names.iter().map(|(tag, name)| der(*tag, &[name])).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let value = der(0x30, &names);
    params.custom_extensions.push(extension(17, true, value));
}

pub fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = fresh_name("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, -24 * HOUR, 240 * HOUR);
    params
}

pub fn issuer_params() -> CertificateParams {
    let mut params = root_params();
    params.distinguished_name = fresh_name("issuer");
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, -HOUR, 24 * HOUR);
    params
}

pub fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(ID)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, -60, HOUR);
    params
}

pub fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// A CA certificate and its key.
pub struct Ca(pub CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn root() -> Self {
        Self::self_signed(root_params(), key())
    }

    pub fn self_signed(params: CertificateParams, key: KeyPair) -> Self {
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn sign_ca(&self, params: CertificateParams) -> Self {
        self.sign_ca_with(params, key())
    }

    pub fn sign_ca_with(&self, params: CertificateParams, key: KeyPair) -> Self {
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    pub fn sign_leaf(&self, params: &CertificateParams) -> Held {
        self.sign_leaf_with(params, &key())
    }

    pub fn sign_leaf_with(&self, params: &CertificateParams, key: &KeyPair) -> Held {
        let der = params.signed_by(key, &self.0).unwrap().der().clone();
        Held { der, key: key.serialize_der() }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// Changes the signed part of a certificate and signs it again with this CA's (P-256) key. The length stays.
    pub fn resign(&self, certificate: &CertificateDer<'_>, edit: impl FnOnce(&mut Vec<u8>)) -> CertificateDer<'static> {
        let (_, read) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let mut tbs = read.tbs_certificate.as_ref().to_vec();
        edit(&mut tbs);
        let signature = self.0.key().sign(&tbs).unwrap();
        let algorithm = der(0x30, &[&der(0x06, &[ECDSA_SHA256])]);
        der(0x30, &[&tbs, &algorithm, &der(0x03, &[&[0], &signature])]).into()
    }
}

pub const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// Puts `to` where `from` is, which must be exactly once.
pub fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let places: Vec<_> = (0..=bytes.len() - from.len()).filter(|i| bytes[*i..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "{from:02x?} at {places:?}");
    bytes[places[0]..places[0] + to.len()].copy_from_slice(to);
}

/// A leaf and its key in PKCS#8.
pub struct Held {
    pub der: CertificateDer<'static>,
    pub key: Vec<u8>,
}

impl Held {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// A chain, what is trusted, and when and for what it is shown.
pub struct Case {
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS#8.
    pub key: Vec<u8>,
    /// The roots of each trust domain, as loaded at [`NOW`].
    pub trusted: Vec<(&'static str, Vec<CertificateDer<'static>>)>,
    pub purpose: Purpose,
    pub now: i64,
}

impl Case {
    pub fn new(leaf: Held, above: &[&Ca], root: &Ca) -> Self {
        let mut chain = vec![leaf.der];
        chain.extend(above.iter().map(|ca| ca.der()));
        Self {
            chain,
            key: leaf.key,
            trusted: vec![("cluster.local", vec![root.der()])],
            purpose: Purpose::Client,
            now: NOW,
        }
    }

    pub fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    pub fn of_server(mut self) -> Self {
        self.purpose = Purpose::Server;
        self
    }

    /// Changes the leaf's bytes after it was signed.
    pub fn leaf_bytes(mut self, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = self.chain[0].to_vec();
        edit(&mut bytes);
        self.chain[0] = bytes.into();
        self
    }

    pub fn bundles(&self) -> BundleSet {
        let load = |(name, roots): &(&str, Vec<CertificateDer<'static>>)| {
            TrustBundle::new(td(name), 1, roots.clone(), now()).unwrap()
        };
        BundleSet::new(self.trusted.iter().map(load).collect()).unwrap()
    }

    pub fn verify(&self) -> Result<VerifiedId, VerifyError> {
        verify_svid(&self.chain, &self.bundles(), self.purpose, at(self.now))
    }

    #[track_caller]
    pub fn accepted(&self) -> VerifiedId {
        self.verify().unwrap()
    }

    #[track_caller]
    pub fn refused(&self) -> VerifyError {
        self.verify().unwrap_err()
    }
}

/// Leaf (spoilt by `edit`) under issuer under root.
pub fn with_leaf(edit: impl FnOnce(&mut CertificateParams)) -> Case {
    let root = Ca::root();
    let issuer = root.sign_ca(issuer_params());
    let mut params = leaf_params();
    edit(&mut params);
    Case::new(issuer.sign_leaf(&params), &[&issuer], &root)
}

/// Leaf under issuer (spoilt by `edit`) under root.
pub fn with_issuer(edit: impl FnOnce(&mut CertificateParams)) -> Case {
    let root = Ca::root();
    let mut params = issuer_params();
    edit(&mut params);
    let issuer = root.sign_ca(params);
    Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &root)
}

/// Leaf under issuer under root (changed by `edit`; it must still load at [`NOW`]).
pub fn with_root(edit: impl FnOnce(&mut CertificateParams)) -> Case {
    let mut params = root_params();
    edit(&mut params);
    let root = Ca::self_signed(params, key());
    let issuer = root.sign_ca(issuer_params());
    Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &root)
}

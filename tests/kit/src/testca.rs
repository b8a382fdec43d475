//! A test CA: roots, issuers and leaves with any fault that a test wants to see refused.
//!
//! Called by tests of refusals. A new root is trusted by no mesh; with [`TestCa::stolen`] the mesh's own issuer signs the fault, so
//! that nothing but the fault can be the reason of a refusal.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
};
pub use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde_json::Value;

/// A CA with its key: a root, an issuer below one, or a mesh's own, stolen.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    /// Sent behind a leaf: our own certificate and those above it, but for the root.
    issuers: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Leaf {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// Those above it, DER, without the root.
    pub issuers: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

/// What a leaf says. Start from [`LeafSpec::of`] and spoil what the test is about.
#[derive(Clone, Debug)]
pub struct LeafSpec {
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub names: Vec<String>,
    /// Seconds from now at which it begins; may be negative.
    pub begins: i64,
    /// Seconds from now at which it ends; may be negative.
    pub ends: i64,
    /// Whether it is a CA certificate.
    pub is_ca: bool,
    /// Extended key usages; none = the extension is left out.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Key usages; none = the extension is left out.
    pub usages: Vec<KeyUsagePurpose>,
}

impl LeafSpec {
    /// A good leaf for this SPIFFE id, for an hour.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self {
            uris: vec![id.into()],
            names: Vec::new(),
            begins: -60,
            ends: 3600,
            is_ca: false,
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            usages: vec![KeyUsagePurpose::DigitalSignature],
        }
    }
}

impl TestCa {
    /// A new root, which no mesh trusts.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let root =
            CertifiedIssuer::self_signed(ca_params(name, BasicConstraints::Unconstrained), KeyPair::generate()?)?;
        let certificate = root.der().clone();
        let key = KeyPair::try_from(root.key().serialized_der())?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, issuers: Vec::new(), root: certificate })
    }

    /// A new issuer below this one.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn issuer(&self, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate =
            ca_params(name, BasicConstraints::Constrained(0)).signed_by(&key, &self.issuer)?.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let issuers = std::iter::once(certificate).chain(self.issuers.iter().cloned()).collect();
        Ok(Self { issuer, issuers, root: self.root.clone() })
    }

    /// The issuer of a running mesh, opened with the key of its CA's state: what it signs has only the faults that it was asked to
    /// have. Reads the format of `ca/src/state/seal.rs` and `record.rs` on its own.
    ///
    /// # Errors
    /// If the state is not there, not of version 1, or sealed with another key.
    pub fn stolen(state_dir: &Path, key_file: &Path) -> Result<Self> {
        let sealed = fs::read(state_dir.join("ca.state")).with_context(|| state_dir.display().to_string())?;
        let line = sealed.iter().position(|byte| *byte == b'\n').context("no first line")? + 1;
        let (line, rest) = sealed.split_at(line);
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).context("cut short")?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| anyhow!("nonce"))?;
        let cipher =
            RandomizedNonceKey::new(&AES_256_GCM_SIV, &fs::read(key_file)?).map_err(|_| anyhow!("state key"))?;
        let mut body = body.to_vec();
        let plain =
            cipher.open_in_place(nonce, Aad::from(line), &mut body).map_err(|_| anyhow!("another key sealed it"))?;
        let state: Value = serde_json::from_slice(plain)?;
        let bytes = |of: &str, what: &str| -> Result<Vec<u8>> {
            Ok(STANDARD.decode(state[of][what].as_str().with_context(|| format!("no {what} of {of}"))?)?)
        };
        let certificate = CertificateDer::from(bytes("issuer", "certificate")?);
        let key = KeyPair::try_from(bytes("issuer", "key")?)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, issuers: vec![certificate], root: bytes("root", "certificate")?.into() })
    }

    /// The root, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// Signs a leaf as asked.
    ///
    /// # Errors
    /// If a URI or name is no ASCII text.
    pub fn leaf(&self, spec: &LeafSpec) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in &spec.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for name in &spec.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.key_usages = spec.usages.clone();
        params.is_ca = IsCa::ExplicitNoCa;
        if spec.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        params.extended_key_usages = spec.purposes.clone();
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (from_now(spec.begins).into(), from_now(spec.ends).into());
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Leaf { certificate, issuers: self.issuers.clone(), key })
    }
}

fn ca_params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Leaf {
    /// Leaf first, then its issuers.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.issuers).cloned().collect()
    }

    /// Writes `chain.pem` and `key.pem`, for foreign programs.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let chain: String = self.chain().iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        fs::write(folder.join("chain.pem"), chain)?;
        fs::write(folder.join("key.pem"), pem("PRIVATE KEY", self.key.secret_der()))?;
        Ok(())
    }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn from_now(seconds: i64) -> SystemTime {
    let now = SystemTime::now();
    let span = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { now - span } else { now + span }
}

/// A client that believes any server, and shows `leaf` (or nothing).
///
/// # Errors
/// If the leaf's key cannot be used.
pub fn careless_client(
    leaf: Option<Leaf>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain(), leaf.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A server that shows `leaf` to anybody and asks nobody who they are: an endpoint whose identity is not the expected one.
///
/// # Errors
/// If the leaf's key cannot be used.
pub fn careless_server(leaf: Leaf, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(leaf.chain(), leaf.key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::{BundleSet, Purpose, TrustBundle, TrustDomain, verify_svid};

    use super::*;

    const ID: &str = "spiffe://test.example/ns/shop/sa/frontend";

    fn verified(ca: &TestCa, leaf: &Leaf) -> Result<String, String> {
        let now = UnixTime::now();
        let domain = TrustDomain::parse("test.example").unwrap();
        let bundle = TrustBundle::new(domain, 1, vec![ca.root.clone()], now).unwrap();
        let bundles = BundleSet::new(vec![bundle]).unwrap();
        let verified = verify_svid(&leaf.chain(), &bundles, Purpose::Client, now);
        verified.map(|id| id.id().to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_leaf_without_a_fault_has_none() {
        let root = TestCa::new("root").unwrap();
        for ca in [&root, &root.issuer("issuer").unwrap()] {
            assert_eq!(verified(ca, &ca.leaf(&LeafSpec::of(ID)).unwrap()).unwrap(), ID);
        }
    }

    #[test]
    fn each_fault_is_one_that_a_verifier_refuses() {
        let ca = TestCa::new("root").unwrap().issuer("issuer").unwrap();
        let good = || LeafSpec::of(ID);
        let faults = [
            LeafSpec { uris: vec![], ..good() },
            LeafSpec { uris: vec![ID.into(), ID.into()], ..good() },
            LeafSpec { uris: vec![], names: vec!["frontend.shop".into()], ..good() },
            LeafSpec { uris: vec!["spiffe://elsewhere.example/ns/shop/sa/frontend".into()], ..good() },
            LeafSpec { begins: -7200, ends: -3600, ..good() },
            LeafSpec { begins: 3600, ends: 7200, ..good() },
            LeafSpec { is_ca: true, ..good() },
            LeafSpec { purposes: vec![ExtendedKeyUsagePurpose::ServerAuth], ..good() },
            LeafSpec { usages: vec![KeyUsagePurpose::KeyAgreement], ..good() },
            LeafSpec { usages: vec![], ..good() },
        ];
        for fault in faults {
            assert!(verified(&ca, &ca.leaf(&fault).unwrap()).is_err(), "{fault:?}");
        }
        let stranger = TestCa::new("root").unwrap();
        assert!(verified(&ca, &stranger.leaf(&good()).unwrap()).is_err());
    }
}

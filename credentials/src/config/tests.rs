use std::path::Path;
use std::process::Command;

use countersign_kit::programs::need;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::SupportedKxGroup;
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, NamedGroup, PeerMisbehaved, ProtocolVersion, SignatureScheme,
};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::testing;
use crate::testing::{TestCa, id};
use countersign_api::names::ALPN;

const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

fn groups(provider: &rustls::crypto::CryptoProvider) -> Vec<NamedGroup> {
    provider.kx_groups.iter().map(|group: &&dyn SupportedKxGroup| group.name()).collect()
}

#[tokio::test]
async fn a_server_configuration_leaves_no_way_around_the_verifier() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let (config, slot) = accept_config(&credentials, &[ALPN], ClientAuth::Required);
    assert!(!config.session_storage.can_cache());
    assert!(!config.ticketer.enabled());
    assert_eq!(config.send_tls13_tickets, 0);
    assert_eq!(config.max_tls13_tickets, 0);
    assert_eq!(config.max_early_data_size, 0);
    assert!(!config.send_half_rtt_data);
    assert!(!config.enable_secret_extraction);
    assert!(!config.key_log.will_log("CLIENT_HANDSHAKE_TRAFFIC_SECRET"));
    assert!(config.cert_compressors.is_empty() && config.cert_decompressors.is_empty());
    assert_eq!(config.alpn_protocols, [ALPN]);
    assert!(slot.peer().is_none());
}

#[tokio::test]
async fn a_client_configuration_never_resumes_and_sends_no_name() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let (with, _) = connect_config(&credentials, &[ALPN], &id(ME));
    let clock = testing::shared(&testing::clock());
    let (without, _) = connect_config_anonymous(credentials.bundles(), &[ALPN], &id(ME), &clock).unwrap();
    for config in [&with, &without] {
        assert!(!config.enable_early_data);
        assert!(!config.enable_sni);
        assert!(!config.enable_secret_extraction);
        assert!(config.check_selected_alpn);
        assert!(!config.key_log.will_log("CLIENT_HANDSHAKE_TRAFFIC_SECRET"));
        assert!(config.cert_compressors.is_empty() && config.cert_decompressors.is_empty());
        // The type does not show its fields; its Debug text is all there is.
        assert!(format!("{:?}", config.resumption).contains("NoClientSessionStorage"), "{:?}", config.resumption);
    }
    assert!(with.client_auth_cert_resolver.has_certs());
    assert!(!without.client_auth_cert_resolver.has_certs());
}

#[tokio::test]
async fn tls_1_3_and_our_three_groups_are_all_there_is() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let (server, _) = accept_config(&credentials, &[ALPN], ClientAuth::Required);
    let (client, _) = connect_config(&credentials, &[ALPN], &id(ME));
    for provider in [server.crypto_provider(), client.crypto_provider()] {
        let wanted = [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1];
        assert_eq!(groups(provider), wanted);
        let tls13 = |suite: &rustls::SupportedCipherSuite| suite.version().version == ProtocolVersion::TLSv1_3;
        assert!(!provider.cipher_suites.is_empty() && provider.cipher_suites.iter().all(tls13));
    }
}

#[tokio::test]
async fn only_modern_signatures_prove_possession() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let verifier = Verifier::of_clients(Arc::clone(&credentials.trust), true, PeerSlot::default());
    let schemes = ClientCertVerifier::supported_verify_schemes(&verifier);
    let allowed = [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::ED25519,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
    ];
    assert_eq!(schemes, allowed);
}

/// A peer's signature as it comes over the wire (RFC 8446, 4.4.3).
fn signed(scheme: u16, signature: &[u8]) -> DigitallySignedStruct {
    use rustls::internal::msgs::codec::{Codec as _, Reader};
    let length = u16::try_from(signature.len()).unwrap();
    let wire = [scheme.to_be_bytes().as_slice(), &length.to_be_bytes(), signature].concat();
    DigitallySignedStruct::read(&mut Reader::init(&wire)).unwrap()
}

const ECDSA_P256_SHA256: u16 = 0x0403;
const RSA_PSS_SHA256: u16 = 0x0804;
const RSA_PKCS1_SHA256: u16 = 0x0401;
const MESSAGE: &[u8] = b"what CertificateVerify covers";

fn verifiers(credentials: &Credentials) -> [Verifier; 2] {
    let trust = || Arc::clone(&credentials.trust);
    let clients = Verifier::of_clients(trust(), true, PeerSlot::default());
    [clients, Verifier::of_server(trust(), id(ME), PeerSlot::default())]
}

/// Why the proof of possession of this leaf's key is refused, in either role. A good one is, too, as [`unasked`]: here no
/// certificate was judged before.
fn refused(credentials: &Credentials, leaf: &CertificateDer<'_>, proof: &DigitallySignedStruct) -> Error {
    let [clients, server] = verifiers(credentials);
    let of_client = ClientCertVerifier::verify_tls13_signature(&clients, MESSAGE, leaf, proof);
    let of_server = ServerCertVerifier::verify_tls13_signature(&server, MESSAGE, leaf, proof);
    let refused = of_client.unwrap_err();
    assert_eq!(of_server.unwrap_err(), refused);
    refused
}

fn unasked() -> Error {
    Error::General("signature before certificate".into())
}

fn unadvertised() -> Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

#[tokio::test]
async fn a_tls_1_2_signature_is_refused_in_either_role() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let (leaf, proof) = (&credentials.svid().chain()[0], signed(ECDSA_P256_SHA256, b""));
    let [clients, server] = verifiers(&credentials);
    ClientCertVerifier::verify_tls12_signature(&clients, b"", leaf, &proof).unwrap_err();
    ServerCertVerifier::verify_tls12_signature(&server, b"", leaf, &proof).unwrap_err();
}

#[tokio::test]
async fn possession_is_not_proven_by_pkcs1_nor_sha1_nor_p521() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let leaf = &credentials.svid().chain()[0];
    // rsa_pkcs1_sha256, _sha384, _sha512, _sha1; ecdsa_sha1; ecdsa_secp521r1_sha512.
    for scheme in [RSA_PKCS1_SHA256, 0x0501, 0x0601, 0x0201, 0x0203, 0x0603] {
        assert_eq!(refused(&credentials, leaf, &signed(scheme, b"")), unadvertised(), "{scheme:#06x}");
    }
    // One that is allowed is looked at, and found wrong.
    let wrong = Error::InvalidCertificate(CertificateError::BadSignature);
    assert_eq!(refused(&credentials, leaf, &signed(ECDSA_P256_SHA256, b"")), wrong);
}

/// A certificate with an RSA key of so many bits, and the message signed with it: by RSA-PSS, and by PKCS #1.
fn rsa(folder: &Path, bits: u32) -> (CertificateDer<'static>, [Vec<u8>; 2]) {
    let openssl = |arguments: &str| {
        let mut command = Command::new(need("openssl").unwrap());
        let done = command.args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    std::fs::write(folder.join("message"), MESSAGE).unwrap();
    openssl(&format!(
        "req -x509 -newkey rsa:{bits} -nodes -keyout leaf.key -out leaf.der -outform DER -subj /CN=leaf -days 1 \
         -addext keyUsage=critical,digitalSignature"
    ));
    let pss = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest";
    let signatures = [pss, ""].map(|options| {
        openssl(&format!("dgst -sha256 {options} -sign leaf.key -out signature message"));
        read("signature")
    });
    (CertificateDer::from(read("leaf.der")), signatures)
}

#[tokio::test]
async fn possession_of_a_short_rsa_key_is_not_proven_and_of_a_long_one_by_pss_alone() {
    if let Err(missing) = need("openssl") {
        return println!("NOT RUN: {missing}");
    }
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let folder = std::env::temp_dir().join(format!("countersign-credentials-rsa-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let found = [2048, 1024].map(|bits| {
        let (leaf, [pss, pkcs1]) = rsa(&folder, bits);
        [(RSA_PSS_SHA256, pss), (RSA_PKCS1_SHA256, pkcs1)]
            .map(|(scheme, signature)| refused(&credentials, &leaf, &signed(scheme, &signature)))
    });
    std::fs::remove_dir_all(&folder).unwrap();
    let short = Error::InvalidCertificate(CertificateError::BadSignature);
    assert_eq!(found, [[unasked(), unadvertised()], [short, unadvertised()]]);
}

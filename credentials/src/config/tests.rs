use rustls::crypto::SupportedKxGroup;
use rustls::{NamedGroup, ProtocolVersion, SignatureScheme};

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
    let schemes = rustls::server::danger::ClientCertVerifier::supported_verify_schemes(&verifier);
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

/// ecdsa_secp256r1_sha256, and an empty signature.
fn signature() -> rustls::DigitallySignedStruct {
    use rustls::internal::msgs::codec::{Codec as _, Reader};
    rustls::DigitallySignedStruct::read(&mut Reader::init(&[4, 3, 0, 0])).unwrap()
}

#[tokio::test]
async fn a_tls_1_2_signature_is_refused_in_either_role() {
    let credentials = TestCa::new("cluster.local").credentials(ME, &testing::clock());
    let leaf = &credentials.svid().chain()[0];
    let clients = Verifier::of_clients(Arc::clone(&credentials.trust), true, PeerSlot::default());
    rustls::server::danger::ClientCertVerifier::verify_tls12_signature(&clients, b"", leaf, &signature()).unwrap_err();
    let server = Verifier::of_server(Arc::clone(&credentials.trust), id(ME), PeerSlot::default());
    rustls::client::danger::ServerCertVerifier::verify_tls12_signature(&server, b"", leaf, &signature()).unwrap_err();
}

use rcgen::KeyPair;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group, sign::any_supported_type};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, SignatureScheme};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::provider::provider;
use crate::testing;
use crate::testing::{HOUR, START, TestCa, TestClock, id, private};
use countersign_api::names::{ALPN, ALPN_H2};

pub(super) const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
pub(super) const BACK: &str = "spiffe://cluster.local/ns/shop/sa/backend";
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Both ends of a handshake: the client's finding, the server's.
type Ends = (
    Result<(client::TlsStream<DuplexStream>, VerifiedId), HandshakeError>,
    Result<(server::TlsStream<DuplexStream>, VerifiedId), HandshakeError>,
);

/// The client also reads, because a TLS 1.3 client learns of its refusal only after its own handshake is done.
async fn shake(client: &Credentials, server: &Credentials, expected: &str) -> Ends {
    let (near, far) = duplex(64 * 1024);
    let expected = id(expected);
    tokio::join!(connect(near, client, &[ALPN], &expected, LIMIT), async { accept(far, server, &[ALPN], LIMIT).await })
}

/// A client of our server whose rustls configuration is the test's own.
async fn raw_client(config: ClientConfig, server: &Credentials) -> (io::Result<()>, HandshakeError) {
    let (near, far) = duplex(64 * 1024);
    let client = async {
        let mut tls = TlsConnector::from(Arc::new(config)).connect(server_name(), near).await?;
        tls.read_u8().await.map(drop)
    };
    let (client, server) = tokio::join!(client, accept(far, server, &[ALPN], LIMIT));
    (client, server.map(drop).unwrap_err())
}

pub(super) struct Mesh {
    pub(super) ca: TestCa,
    pub(super) clock: TestClock,
    pub(super) front: Credentials,
    pub(super) back: Credentials,
}

pub(super) fn mesh() -> Mesh {
    let (ca, clock) = (TestCa::new("cluster.local"), testing::clock());
    let (front, back) = (ca.credentials(FRONT, &clock), ca.credentials(BACK, &clock));
    Mesh { ca, clock, front, back }
}

fn refusal(error: &HandshakeError) -> &'static str {
    assert!(matches!(error, HandshakeError::Peer(_)), "{error}");
    error.label()
}

#[tokio::test(start_paused = true)]
async fn both_sides_prove_who_they_are() {
    let mesh = mesh();
    let (client, server) = shake(&mesh.front, &mesh.back, BACK).await;
    let ((client, seen_server), (server, seen_client)) = (client.unwrap(), server.unwrap());
    assert_eq!(seen_server.id().as_str(), BACK);
    assert_eq!(seen_client.id().as_str(), FRONT);
    assert_eq!(seen_client.not_after().as_secs(), START + HOUR);
    let ends: [&CommonState; 2] = [client.get_ref().1, server.get_ref().1];
    for tls in ends {
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(tls.negotiated_cipher_suite().unwrap(), cipher_suite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(tls.alpn_protocol(), Some(ALPN));
        assert_eq!(tls.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = mesh();
    let (near, far) = duplex(64 * 1024);
    let (clock, expected) = (testing::shared(&mesh.clock), id(BACK));
    let anonymous = async {
        let bundles = mesh.ca.bundles();
        let (mut tls, _) = connect_anonymous(near, &bundles, &clock, &[ALPN], &expected, LIMIT).await.unwrap();
        tls.read_u8().await.unwrap_err()
    };
    let (client, server) = tokio::join!(anonymous, accept(far, &mesh.back, &[ALPN], LIMIT));
    assert!(matches!(server.map(drop).unwrap_err(), HandshakeError::NoCertificate));
    assert!(client.to_string().contains("CertificateRequired"), "{client}");
}

#[tokio::test(start_paused = true)]
async fn where_a_certificate_is_optional_none_is_fine_and_a_bad_one_is_not() {
    let mesh = mesh();
    let (clock, expected) = (testing::shared(&mesh.clock), id(BACK));

    let (near, far) = duplex(64 * 1024);
    let bundles = mesh.ca.bundles();
    let (client, server) = tokio::join!(
        connect_anonymous(near, &bundles, &clock, &[ALPN_H2], &expected, LIMIT),
        accept_optional(far, &mesh.back, &[ALPN_H2], LIMIT)
    );
    assert_eq!(client.unwrap().1.id().as_str(), BACK);
    assert!(server.unwrap().1.is_none());

    let (near, far) = duplex(64 * 1024);
    let (client, server) = tokio::join!(
        connect(near, &mesh.front, &[ALPN_H2], &expected, LIMIT),
        accept_optional(far, &mesh.back, &[ALPN_H2], LIMIT)
    );
    client.unwrap();
    assert_eq!(server.unwrap().1.unwrap().id().as_str(), FRONT);

    let stranger = stranger_who_trusts(&mesh.ca, "cluster.local", &mesh.clock);
    let (near, far) = duplex(64 * 1024);
    let (client, server) = tokio::join!(
        async {
            let (config, _) = stranger(&expected);
            let mut tls = TlsConnector::from(config).connect(server_name(), near).await?;
            tls.read_u8().await
        },
        accept_optional(far, &mesh.back, &[ALPN], LIMIT)
    );
    client.unwrap_err();
    assert_eq!(refusal(&server.map(drop).unwrap_err()), "unknown_issuer");
}

/// Somebody whose own CA has our trust domain's name, and who knows our root.
fn stranger_who_trusts(
    ours: &TestCa,
    trust_domain: &str,
    clock: &TestClock,
) -> impl Fn(&SpiffeId) -> (Arc<ClientConfig>, PeerSlot) {
    let theirs = TestCa::new(trust_domain);
    let own = theirs.credentials(&format!("spiffe://{trust_domain}/ns/shop/sa/frontend"), clock);
    let (bundles, clock) = (ours.bundles(), testing::shared(clock));
    move |expected| {
        let (config, slot) = connect_config_anonymous(&bundles, &[ALPN], expected, &clock).unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        let (with_key, _) = connect_config(&own, &[ALPN], expected);
        config.client_auth_cert_resolver = Arc::clone(&with_key.client_auth_cert_resolver);
        (Arc::new(config), slot)
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_a_strangers_ca_is_refused() {
    let mesh = mesh();
    let stranger = stranger_who_trusts(&mesh.ca, "cluster.local", &mesh.clock);
    let (config, _) = stranger(&id(BACK));
    let (client, error) = raw_client(Arc::unwrap_or_clone(config), &mesh.back).await;
    assert_eq!(refusal(&error), "unknown_issuer");
    client.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_client_of_another_trust_domain_is_refused() {
    let mesh = mesh();
    let stranger = stranger_who_trusts(&mesh.ca, "elsewhere.example", &mesh.clock);
    let (config, _) = stranger(&id(BACK));
    let (client, error) = raw_client(Arc::unwrap_or_clone(config), &mesh.back).await;
    assert_eq!(refusal(&error), "unknown_trust_domain");
    client.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_server_of_a_strangers_ca_is_refused() {
    let mesh = mesh();
    let stranger = TestCa::new("cluster.local").credentials(BACK, &mesh.clock);
    let (client, server) = shake(&mesh.front, &stranger, BACK).await;
    assert_eq!(refusal(&client.map(drop).unwrap_err()), "unknown_issuer");
    let error = server.map(drop).unwrap_err();
    assert!(matches!(error, HandshakeError::Alert(_)), "{error}");
    assert_eq!(error.blame(), Blame::Us);
}

#[tokio::test(start_paused = true)]
async fn an_expired_peer_is_refused_on_either_side() {
    let mesh = mesh();
    let later = testing::clock();
    later.step(2 * HOUR as i64);
    let svid = Arc::new(mesh.ca.svid_during(BACK, START, START + 9 * HOUR));
    let back = Credentials::new(svid, mesh.ca.bundles(), testing::shared(&later)).unwrap();
    let (_, server) = shake(&mesh.front, &back, BACK).await;
    assert_eq!(refusal(&server.map(drop).unwrap_err()), "expired");
    let (client, _) = shake(&back, &mesh.front, FRONT).await;
    assert_eq!(refusal(&client.map(drop).unwrap_err()), "expired");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_yet_valid_is_refused_on_either_side() {
    let mesh = mesh();
    let earlier = testing::clock();
    earlier.step(-2 * HOUR as i64);
    let svid = Arc::new(mesh.ca.svid_during(BACK, START - 9 * HOUR, START + HOUR));
    let back = Credentials::new(svid, mesh.ca.bundles(), testing::shared(&earlier)).unwrap();
    let (_, server) = shake(&mesh.front, &back, BACK).await;
    assert_eq!(refusal(&server.map(drop).unwrap_err()), "not_yet_valid");
    let (client, _) = shake(&back, &mesh.front, FRONT).await;
    assert_eq!(refusal(&client.map(drop).unwrap_err()), "not_yet_valid");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_somebody_else_is_refused_and_named() {
    let mesh = mesh();
    let wanted = "spiffe://cluster.local/ns/shop/sa/database";
    let (client, server) = shake(&mesh.front, &mesh.back, wanted).await;
    server.map(drop).unwrap_err();
    match client.map(drop).unwrap_err() {
        HandshakeError::Peer(error) => match &*error {
            PeerError::Unexpected { expected, seen } => {
                assert_eq!((expected.as_str(), seen.as_str()), (wanted, BACK));
                assert_eq!(error.label(), "unexpected_identity");
            }
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

/// A client that shows one chain and signs with another key.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesClientCert for Impostor {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_stolen_chain_without_its_key_proves_nothing() {
    let mesh = mesh();
    let own_key = any_supported_type(&private(&KeyPair::generate().unwrap())).unwrap();
    let stolen = mesh.front.svid().chain().to_vec();
    let (config, _) = connect_config(&mesh.front, &[ALPN], &id(BACK));
    let mut config = Arc::unwrap_or_clone(config);
    config.client_auth_cert_resolver = Arc::new(Impostor(Arc::new(CertifiedKey::new(stolen, own_key))));

    let (near, far) = duplex(64 * 1024);
    let (server_config, slot) = accept_config(&mesh.back, &[ALPN], ClientAuth::Required);
    let (client, server) = tokio::join!(
        async {
            let mut tls = TlsConnector::from(Arc::new(config)).connect(server_name(), near).await?;
            tls.read_u8().await
        },
        TlsAcceptor::from(server_config).accept(far)
    );
    client.unwrap_err();
    server.map(drop).unwrap_err();
    assert!(slot.peer().is_none(), "an identity was told before its key was proved");
}

fn own_groups(mesh: &Mesh, groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>) -> ClientConfig {
    let (ours, _) = connect_config(&mesh.front, &[ALPN], &id(BACK));
    let provider = rustls::crypto::CryptoProvider { kx_groups: groups, ..(*provider()).clone() };
    let time = Arc::clone(&ours.time_provider);
    let mut config = ClientConfig::builder_with_details(Arc::new(provider), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(crate::verify::Verifier::of_server(
            Arc::clone(&mesh.front.trust),
            id(BACK),
            PeerSlot::default(),
        )))
        .with_client_cert_resolver(Arc::clone(&ours.client_auth_cert_resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

#[tokio::test(start_paused = true)]
async fn x25519_and_p256_are_accepted_and_p384_is_not() {
    let mesh = mesh();
    for group in [kx_group::X25519, kx_group::SECP256R1] {
        let (near, far) = duplex(64 * 1024);
        let config = Arc::new(own_groups(&mesh, vec![group]));
        let (client, server) = tokio::join!(
            TlsConnector::from(config).connect(server_name(), near),
            accept(far, &mesh.back, &[ALPN], LIMIT)
        );
        client.unwrap();
        let (server, _) = server.unwrap();
        assert_eq!(server.get_ref().1.negotiated_key_exchange_group().unwrap().name(), group.name());
    }
    let (_, error) = raw_client(own_groups(&mesh, vec![kx_group::SECP384R1]), &mesh.back).await;
    assert_eq!(error.label(), "incompatible");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_another_protocol_or_none_is_refused() {
    let mesh = mesh();
    for offered in [vec![b"http/1.1".to_vec()], vec![]] {
        let (config, _) = connect_config(&mesh.front, &[ALPN], &id(BACK));
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = offered;
        let (_, error) = raw_client(config, &mesh.back).await;
        assert!(matches!(error, HandshakeError::Alpn), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_agrees_to_no_protocol_is_refused() {
    let mesh = mesh();
    let (near, far) = duplex(64 * 1024);
    let (config, _) = accept_config(&mesh.back, &[], ClientAuth::Required);
    let expected = id(BACK);
    let (client, _server) =
        tokio::join!(connect(near, &mesh.front, &[ALPN], &expected, LIMIT), TlsAcceptor::from(config).accept(far));
    assert!(matches!(client.map(drop).unwrap_err(), HandshakeError::Alpn));
}

#[tokio::test(start_paused = true)]
async fn one_of_several_protocols_is_agreed() {
    let mesh = mesh();
    let (near, far) = duplex(64 * 1024);
    let (ours, expected): ([&[u8]; 2], _) = ([ALPN, b"countersign-reauth/1"], id(BACK));
    let (client, server) = tokio::join!(
        connect(near, &mesh.front, &[b"countersign-reauth/1"], &expected, LIMIT),
        accept(far, &mesh.back, &ours, LIMIT)
    );
    client.unwrap();
    assert_eq!(server.unwrap().0.get_ref().1.alpn_protocol(), Some(&b"countersign-reauth/1"[..]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_ever_resumed_even_by_a_client_that_wants_to() {
    let mesh = mesh();
    let (config, _) = connect_config(&mesh.front, &[ALPN], &id(BACK));
    let mut config = Arc::unwrap_or_clone(config);
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let (client, server) = tokio::join!(
            TlsConnector::from(Arc::clone(&config)).connect(server_name(), near),
            accept(far, &mesh.back, &[ALPN], LIMIT)
        );
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_u8().await.unwrap();
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

/// A TLS 1.2 ClientHello: version 0x0303, one suite, no supported_versions extension.
fn tls12_hello() -> Vec<u8> {
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let mut extensions = vec![0, 10, 0, 4, 0, 2, 0, 23];
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

#[tokio::test(start_paused = true)]
async fn a_tls_1_2_client_is_refused() {
    let mesh = mesh();
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(&tls12_hello()).await.unwrap();
    let error = accept(far, &mesh.back, &[ALPN], LIMIT).await.map(drop).unwrap_err();
    assert_eq!(error.label(), "incompatible", "{error}");
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[..1], [21], "an alert");
    assert_eq!(answer[5..7], [2, 70], "fatal, protocol_version");
}

#[tokio::test(start_paused = true)]
async fn a_tls_1_2_server_is_refused() {
    let mesh = mesh();
    let (near, mut far) = duplex(64 * 1024);
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0, 0xc0, 0x2b, 0]);
    let mut hello = vec![22, 3, 3, 0, body.len() as u8 + 4, 2, 0, 0, body.len() as u8];
    hello.extend(body);
    far.write_all(&hello).await.unwrap();
    let error = connect(near, &mesh.front, &[ALPN], &id(BACK), LIMIT).await.map(drop).unwrap_err();
    assert_eq!(error.label(), "incompatible", "{error}");
}

#[tokio::test(start_paused = true)]
async fn garbage_is_refused() {
    let mesh = mesh();
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n").await.unwrap();
    let error = accept(far, &mesh.back, &[ALPN], LIMIT).await.map(drop).unwrap_err();
    assert_eq!(error.label(), "tls", "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut() {
    let mesh = mesh();
    let (_near, far) = duplex(64 * 1024);
    let began = tokio::time::Instant::now();
    let error = accept(far, &mesh.back, &[ALPN], LIMIT).await.map(drop).unwrap_err();
    assert!(matches!(error, HandshakeError::Timeout(LIMIT)));
    assert_eq!(began.elapsed(), LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_no_protocol_error() {
    let mesh = mesh();
    let (near, far) = duplex(64 * 1024);
    drop(near);
    let error = accept(far, &mesh.back, &[ALPN], LIMIT).await.map(drop).unwrap_err();
    assert_eq!(error.label(), "io", "{error}");
}

#[tokio::test(start_paused = true)]
async fn p384_ed25519_and_rsa_pss_keys_prove_possession_too() {
    let mesh = mesh();
    for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(kind).unwrap();
        let chain = mesh.ca.sign(FRONT, &key, START - 60, START + HOUR);
        let svid = countersign_identity::Svid::new(chain, private(&key)).unwrap();
        let front = Credentials::new(Arc::new(svid), mesh.ca.bundles(), testing::shared(&mesh.clock)).unwrap();
        let (client, server) = shake(&front, &mesh.back, BACK).await;
        client.unwrap();
        assert_eq!(server.unwrap().1.id().as_str(), FRONT);
    }
}

#[tokio::test(start_paused = true)]
async fn a_p521_key_proves_nothing() {
    let mesh = mesh();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let chain = mesh.ca.sign(FRONT, &key, START - 60, START + HOUR);
    let (config, _) = connect_config(&mesh.front, &[ALPN], &id(BACK));
    let mut config = Arc::unwrap_or_clone(config);
    let key = any_supported_type(&private(&key)).unwrap();
    config.client_auth_cert_resolver = Arc::new(Impostor(Arc::new(CertifiedKey::new(chain, key))));
    let (client, error) = raw_client(config, &mesh.back).await;
    client.unwrap_err();
    assert!(!matches!(error, HandshakeError::Timeout(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_holds_few_kilobytes_of_state() {
    let mesh = mesh();
    let (near, far) = duplex(64);
    let expected = id(BACK);
    assert!(size_of_val(&connect(near, &mesh.front, &[ALPN], &expected, LIMIT)) < 4096);
    assert!(size_of_val(&accept(far, &mesh.back, &[ALPN], LIMIT)) < 4096);
}

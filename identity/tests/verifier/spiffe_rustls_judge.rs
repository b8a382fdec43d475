//! The judge `spiffe-rustls`: an independent SPIFFE verifier, driven by whole TLS handshakes in memory.
//!
//! It takes the part of the verifying side and we show it the chain with its key. It must never refuse what we accept;
//! where it accepts what we refuse, the case is listed with the reason.

use crate::corpus::CORPUS;
use crate::support::*;
use crate::workload_api::{FetchResponse, OneSvid, serve};
use countersign_identity::Purpose;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use spiffe::X509Source;
use spiffe_rustls::Authorizer;
use spiffe_rustls::authorizer::{any, exact};
use std::sync::Arc;
use std::time::Duration;

/// Refused by us, accepted by spiffe-rustls 0.11 over spiffe 0.19, and why we go further. There is nothing the other way.
const LAXER: &[(&str, &[&str])] = &[
    (
        "it counts only URIs that it can read, and skips names that it cannot",
        &["second_uri_not_text", "unreadable_other_name", "constructed_uri", "name_of_unknown_kind"],
    ),
    (
        "it reads a leaf's key usage loosely (an issuer's it reads as strictly as we do)",
        &["leaf_with_padded_key_usage", "leaf_with_key_usage_and_more"],
    ),
    ("of a root it keeps name and key: no end, no path length", &["root_expired", "root_path_len_exceeded"]),
    (
        "it does not look at an intermediate's identity (X509-SVID 3.2)",
        &["issuer_of_another_domain", "issuer_with_workload_id", "issuer_with_two_uris", "issuer_with_web_uri"],
    ),
    ("an unknown extension twice is nothing to it (RFC 5280 4.2)", &["unknown_extension_twice"]),
    ("our bounds and algorithms are our own", &["five_certificates", "signed_by_p521"]),
];

/// The judge's own SVID, of a trust domain of its own, and the bundles of the case as federated ones.
async fn source(case: &Case) -> Result<X509Source, String> {
    let root = Ca::self_signed(
        {
            let mut params = root_params();
            for_ever(&mut params);
            params
        },
        key(),
    );
    let mut params = leaf_params();
    params.subject_alt_names = vec![uri("spiffe://judge.example/judge")];
    for_ever(&mut params);
    let own = root.sign_leaf(&params);
    let bundles = case.trusted.iter().map(|(name, roots)| {
        let ders: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
        (format!("spiffe://{name}"), ders.concat())
    });
    let response = FetchResponse {
        svids: vec![OneSvid {
            spiffe_id: "spiffe://judge.example/judge".to_owned(),
            x509_svid: own.der.to_vec(),
            x509_svid_key: own.key,
            bundle: root.der().to_vec(),
        }],
        federated_bundles: bundles.collect(),
    };
    let builder = X509Source::builder().endpoint(serve(response).await).initial_sync_timeout(Duration::from_secs(20));
    builder.build().await.map_err(|error| format!("no source: {error}"))
}

/// The source looks at the real clock; its own certificates are not what is judged.
fn for_ever(params: &mut rcgen::CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
}

#[derive(Debug)]
struct Clock(i64);

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0))
    }
}

/// What is shown: the chain and its key, whatever they are.
pub fn shown(case: &Case) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(case.key.clone()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Arc::new(CertifiedKey::new(case.chain.clone(), key))
}

/// Its word on a chain, a key and a bundle.
pub fn verdict(case: &Case) -> Result<(), String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(judge(case, any()))
}

/// The same, where nobody but `expected` is to be let in.
pub fn verdict_expecting(case: &Case, expected: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(judge(case, exact([expected]).unwrap()))
}

async fn judge(case: &Case, who: impl Authorizer) -> Result<(), String> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let source = source(case).await?;
    let now = case.now;
    let verdict = match case.purpose {
        Purpose::Client => {
            let judge = spiffe_rustls::mtls_server(source.clone())
                .authorize(who)
                .with_config_customizer(move |config| config.time_provider = Arc::new(Clock(now)))
                .build();
            let judge = judge.map_err(|error| error.to_string())?;
            let us = ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody))
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown(case))));
            handshake(us, judge)
        }
        Purpose::Server => {
            let judge = spiffe_rustls::mtls_client(source.clone())
                .authorize(who)
                .with_config_customizer(move |config| config.time_provider = Arc::new(Clock(now)))
                .build();
            let judge = judge.map_err(|error| error.to_string())?;
            let certificates: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(shown(case)));
            let us = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificates);
            handshake(judge, us)
        }
    };
    source.shutdown().await;
    verdict
}

/// Both ends until nothing more is to be said, or one of them objects.
fn handshake(client: ClientConfig, server: ServerConfig) -> Result<(), String> {
    let name = ServerName::try_from("judged.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut left = &wire[..];
        while !left.is_empty() {
            server.read_tls(&mut left).unwrap();
            server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut left = &wire[..];
        while !left.is_empty() {
            client.read_tls(&mut left).unwrap();
            client.process_new_packets().map_err(|e| format!("client: {e}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

/// Our side of the judging: who the judge is does not matter.
#[derive(Debug)]
pub struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn spiffe_rustls_agrees_and_where_it_is_laxer_the_reason_is_known() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut surprises = Vec::new();
    for entry in CORPUS {
        let theirs = runtime.block_on(judge(&(entry.make)(), any()));
        let laxer = LAXER.iter().any(|(_, names)| names.contains(&entry.name));
        if theirs.is_ok() != (entry.ours.is_empty() || laxer) {
            surprises.push(format!("{}: ours {:?}, spiffe-rustls {theirs:?}", entry.name, entry.ours));
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

//! The whole CA in this process, on free ports and the machine's clock, met by the client that proxies use.

use std::time::{Duration, SystemTime};

use clap::Parser as _;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_api::ca::{IssueSvidRequest, IssueSvidResponse, WatchBundleRequest};
use countersign_credentials::{CaClient, ChannelSettings, Started, TlsAs, channel, system_clock};
use countersign_identity::{BundleSet, Purpose, SpiffeId, TrustBundle, verify_svid};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::*;
use crate::config::Args;
use crate::testing::{ISSUER, TokenIssuer, claims, csr, exchange, p256, private_dir, rsa, write_jwks};

mod clocks;
mod outage;

struct Desk {
    dir: TempDir,
    tokens: TokenIssuer,
    ca: Running,
}

fn config(dir: &TempDir, more: &[&str]) -> Config {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (state, jwks, ready) = (path("state"), path("jwks"), path("ready.json"));
    let fixed = [
        "countersign-ca",
        "--state-dir",
        &state,
        "--jwks-file",
        &jwks,
        "--token-issuer",
        ISSUER,
        "--trust-domain",
        "mesh.test",
        "--listen",
        "127.0.0.1:0",
        "--health-listen",
        "127.0.0.1:0",
        "--ready-file",
        &ready,
    ];
    let args = Args::try_parse_from(fixed.iter().chain(more)).unwrap();
    Config::check(args, Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")).unwrap()
}

async fn desk(more: &[&str]) -> Desk {
    let dir = private_dir();
    let tokens = TokenIssuer::es256("k1");
    write_jwks(&dir.path().join("jwks"), &[tokens.jwk()]);
    let ca = start(config(&dir, more), system_clock(), Log::none()).await.unwrap();
    Desk { dir, tokens, ca }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.test/ns/shop/sa/{account}")).unwrap()
}

fn ca_id() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.test/ns/countersign-system/sa/countersign-ca").unwrap()
}

impl Desk {
    fn token(&self, account: &str) -> String {
        self.tokens.sign(&claims("shop", account, &format!("{account}-1"), unix_now()))
    }

    fn bundles(&self) -> BundleSet {
        let pem = std::fs::read(&self.ca.bundle).unwrap();
        let roots = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().unwrap();
        let domain = countersign_identity::TrustDomain::parse("mesh.test").unwrap();
        let bundle = TrustBundle::new(domain, 0, roots, crate::clock::seconds(unix_now())).unwrap();
        BundleSet::new(vec![bundle]).unwrap()
    }

    /// A client without an SVID.
    fn nobody(&self) -> CertificateAuthorityClient<Channel> {
        CertificateAuthorityClient::new(self.anonymous())
    }

    fn anonymous(&self) -> Channel {
        channel(ChannelSettings {
            address: self.ca.listen.to_string(),
            expected: ca_id(),
            tls: TlsAs::Nobody(self.bundles(), system_clock()),
            mark: None,
        })
    }

    fn request(&self) -> IssueSvidRequest {
        IssueSvidRequest {
            csr: csr(&p256()),
            token: self.token("frontend"),
            client_time_ms: system_clock().now_ms(),
            ttl_seconds: 0,
            bundle_generation: 0,
        }
    }

    async fn refusal(&self, request: IssueSvidRequest) -> Status {
        self.nobody().issue_svid(request).await.unwrap_err()
    }

    /// The client of proxies, for `account`.
    fn workload(&self, account: &str, ttl: Option<Duration>) -> Started {
        self.workload_by(account, ttl, system_clock())
    }

    /// By a clock of its own.
    fn workload_by(&self, account: &str, ttl: Option<Duration>, clock: SharedClock) -> Started {
        countersign_credentials::start(self.client(account, ttl, self.ca.listen), id(account), clock)
    }

    /// By another road than straight to the CA.
    fn workload_at(&self, account: &str, address: SocketAddr) -> Started {
        countersign_credentials::start(self.client(account, None, address), id(account), system_clock())
    }

    fn client(&self, account: &str, ttl: Option<Duration>, address: SocketAddr) -> CaClient {
        let token_file = self.dir.path().join(format!("token-{account}"));
        std::fs::write(&token_file, self.token(account)).unwrap();
        CaClient {
            trust_domain: countersign_identity::TrustDomain::parse("mesh.test").unwrap(),
            ca_address: address.to_string(),
            ca_id: ca_id(),
            token_file,
            bootstrap: self.ca.bundle.clone(),
            mark: None,
            ttl,
            tally: countersign_credentials::Tally::none(),
        }
    }

    async fn health(&self, request: &str) -> String {
        let tcp = tokio::net::TcpStream::connect(self.ca.health).await.unwrap();
        exchange(tcp, request).await.unwrap()
    }

    async fn admin(&self, request: &str) -> String {
        let unix = tokio::net::UnixStream::connect(&self.ca.admin).await.unwrap();
        exchange(unix, request).await.unwrap()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\nconnection: close\r\n\r\n")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn a_workload_gets_its_svid_and_follows_the_bundle() {
    let desk = desk(&[]).await;
    let Started { mut credentials, mut status, task } = desk.workload("frontend", None);
    let task = tokio::spawn(task);
    let held = credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(*held.id(), id("frontend"));
    assert_eq!(held.generation(), 1);
    let life = held.expires_at().as_secs() - unix_now();
    assert!((3590..=3600).contains(&life), "{life}");
    let now = crate::clock::seconds(unix_now());
    let seen = verify_svid(held.svid().chain(), &desk.bundles(), Purpose::Client, now).unwrap();
    assert_eq!(*seen.id(), id("frontend"), "the public bundle vouches for it");
    status.wait_for(|status| status.following).await.unwrap();
    assert!(desk.health(&get("/metrics")).await.contains("countersign_ca_bundle_watchers 1"));
    task.abort();
}

#[tokio::test]
async fn an_svid_of_ten_seconds_is_renewed_before_it_ends() {
    let desk = desk(&["--leaf-ttl", "10s", "--max-leaf-ttl", "10s"]).await;
    let Started { mut credentials, task, .. } = desk.workload("frontend", Some(Duration::from_secs(10)));
    let task = tokio::spawn(task);
    let first = credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let serial = first.svid().serial().to_owned();
    let renewed = |held: &Option<Arc<countersign_credentials::Credentials>>| {
        held.as_ref().is_some_and(|held| held.svid().serial() != serial)
    };
    let second = credentials.wait_for(renewed).await.unwrap().clone().unwrap();
    assert!(unix_now() <= first.expires_at().as_secs());
    assert!(second.expires_at() > first.expires_at());
    assert_ne!(second.svid().spki_sha256(), first.svid().spki_sha256(), "a new key each time");
    task.abort();
}

#[tokio::test]
async fn refusals_say_why_with_the_right_code() {
    let desk = desk(&[]).await;
    let good = desk.request();
    let claims_for = |audience: &str| {
        let mut claims = claims("shop", "frontend", "frontend-1", unix_now());
        claims["aud"] = audience.into();
        desk.tokens.sign(&claims)
    };
    let cases = [
        (IssueSvidRequest { csr: csr(rsa()), ..good.clone() }, Code::InvalidArgument, "RSA with 2048 bits"),
        (IssueSvidRequest { token: claims_for("vault"), ..good.clone() }, Code::Unauthenticated, "audience"),
        (IssueSvidRequest { ttl_seconds: 5, ..good.clone() }, Code::InvalidArgument, "the least is 10 s"),
        (IssueSvidRequest { client_time_ms: 1, ..good.clone() }, Code::FailedPrecondition, "1970-01-01T00:00:00.001Z"),
        (IssueSvidRequest { csr: vec![0; 100_000], ..good.clone() }, Code::OutOfRange, ""),
    ];
    for (request, code, said) in cases {
        let status = desk.refusal(request).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(said), "{status}");
    }
    desk.nobody().issue_svid(good).await.unwrap();
}

#[tokio::test]
async fn nobody_gets_the_cas_identity_whatever_its_token() {
    let desk = desk(&[]).await;
    let token = desk.tokens.sign(&claims("countersign-system", "countersign-ca", "ca-0", unix_now()));
    let status = desk.refusal(IssueSvidRequest { token, ..desk.request() }).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[tokio::test]
async fn the_bundle_stream_needs_an_svid() {
    let desk = desk(&[]).await;
    let status = desk.nobody().watch_bundle(WatchBundleRequest { known_generation: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test]
async fn a_flood_from_one_address_is_shed() {
    let desk = desk(&["--source-rate", "0.001/3"]).await;
    let mut client = desk.nobody();
    let garbage = IssueSvidRequest { token: "x".to_owned(), ..desk.request() };
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(client.issue_svid(garbage.clone()).await.unwrap_err().code());
    }
    use Code::{ResourceExhausted as Shed, Unauthenticated as Refused};
    assert_eq!(codes, [Refused, Refused, Refused, Shed, Shed]);
}

#[tokio::test]
async fn the_health_port_tells_life_and_metrics_and_nothing_else() {
    let desk = desk(&[]).await;
    for (request, expected) in [
        (get("/livez"), "HTTP/1.1 200"),
        (get("/readyz"), "HTTP/1.1 200"),
        (get("/status"), "HTTP/1.1 404"),
        (get("/config_dump"), "HTTP/1.1 404"),
        (
            "POST /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 405",
        ),
        ("\x16\x03\x01 garbage\r\n\r\n".to_owned(), "HTTP/1.1 400"),
    ] {
        let answer = desk.health(&request).await;
        assert!(answer.starts_with(expected), "{request}: {answer}");
    }
    let metrics = desk.health(&get("/metrics")).await;
    assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
}

#[tokio::test]
async fn a_connection_that_does_not_become_one_is_counted() {
    let desk = desk(&[]).await;
    let mut tcp = tokio::net::TcpStream::connect(desk.ca.listen).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = tcp.read_to_end(&mut Vec::new()).await;
    while !desk.health(&get("/metrics")).await.contains("countersign_ca_connections_refused_total{reason=\"tls\"} 1\n")
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_admin_socket_shows_status_and_configuration_without_secrets() {
    let desk = desk(&[]).await;
    let status: Value = serde_json::from_str(body(&desk.admin(&get("/status")).await)).unwrap();
    assert_eq!((&status["ready"], &status["trust_domain"]), (&Value::from(true), &Value::from("mesh.test")));
    assert_eq!(status["token_keys"], serde_json::json!(["k1"]));
    let dump = desk.admin(&get("/config_dump")).await;
    assert!(dump.contains("\"token_issuer\"") && !dump.contains("AAAAAAAAAAAA"), "{dump}");
    let put = "PUT /log HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\ndebug";
    assert!(desk.admin(put).await.starts_with("HTTP/1.1 400"), "the logs are not the CA's here");
    let huge = format!(
        "PUT /log HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9000\r\n\r\n{}",
        "x".repeat(9000)
    );
    assert!(desk.admin(&huge).await.starts_with("HTTP/1.1 400"));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&desk.ca.admin).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn the_ready_file_tells_where_everything_is() {
    let desk = desk(&[]).await;
    let text = std::fs::read_to_string(desk.dir.path().join("ready.json")).unwrap();
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ready["listen"], desk.ca.listen.to_string());
    assert_eq!(ready["health"], desk.ca.health.to_string());
    assert_eq!(ready["bundle"], desk.ca.bundle.to_str().unwrap());
}

#[tokio::test]
async fn shutdown_ends_streams_and_a_restart_keeps_the_root() {
    let desk = desk(&[]).await;
    let Started { mut credentials, mut status, task } = desk.workload("frontend", None);
    let client = tokio::spawn(task);
    credentials.wait_for(Option::is_some).await.unwrap();
    status.wait_for(|status| status.following).await.unwrap();
    let root = std::fs::read(&desk.ca.bundle).unwrap();
    let Desk { dir, ca, .. } = desk;
    let admin = ca.admin.clone();
    assert!(ca.shutdown(Duration::from_secs(10)).await, "an open bundle stream does not hold the end up");
    status.wait_for(|status| !status.following).await.unwrap();
    assert!(!admin.exists());
    client.abort();
    let again = start(config(&dir, &[]), system_clock(), Log::none()).await.unwrap();
    assert_eq!(std::fs::read(&again.bundle).unwrap(), root);
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_no_root() {
    let dir = private_dir();
    let failed = |config: Config| async { start(config, system_clock(), Log::none()).await.err().unwrap() };
    let error = failed(config(&dir, &[])).await;
    assert!(matches!(&error, StartError::Jwks(_)), "{error}");
    assert!(!dir.path().join("state").exists(), "nothing was made");
    write_jwks(&dir.path().join("jwks"), &[TokenIssuer::es256("k1").jwk()]);
    let error = failed(config(&dir, &["--audit-log", "/dev/null/x"])).await;
    assert!(matches!(&error, StartError::Audit(_)), "{error}");
    assert!(!dir.path().join("state/ca.state").exists(), "no root without a record");
    let mut elsewhere = config(&dir, &[]);
    elsewhere.listen = "192.0.2.1:1".parse().unwrap();
    let error = failed(elsewhere).await;
    assert!(matches!(&error, StartError::Bind { flag: "--listen", .. }), "{error}");
    let error = failed(config(&dir, &["--admin-socket", dir.path().join("jwks").to_str().unwrap()])).await;
    assert!(matches!(&error, StartError::Admin(SocketError::NotASocket(_))), "{error}");
}

/// A caller that opens a call and then says nothing holds its place on the connection for ten seconds, not for ever.
#[tokio::test]
async fn a_call_whose_request_does_not_come_is_ended() {
    let desk = desk(&[]).await;
    let mut client = tonic::client::Grpc::new(desk.anonymous());
    desk.nobody().issue_svid(desk.request()).await.unwrap(); // all that is made once is made
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/countersign.ca.v1.CertificateAuthority/IssueSvid");
    let codec = tonic_prost::ProstCodec::<IssueSvidRequest, IssueSvidResponse>::default();
    let silent = tonic::Request::new(tokio_stream::pending::<IssueSvidRequest>());
    tokio::time::pause(); // nothing is on its way but what is bounded by a timer
    let began = tokio::time::Instant::now();
    let end = client.client_streaming(silent, path, codec).await.unwrap_err();
    let took = began.elapsed();
    assert_eq!(end.code(), Code::Cancelled, "{end:?}");
    assert!((Duration::from_secs(10)..Duration::from_secs(12)).contains(&took), "{took:?}");
    tokio::time::resume();
    desk.nobody().issue_svid(desk.request()).await.unwrap();
}

//! The whole CA, as in a cluster: two replicas on an API server that speaks HTTP, met by the client that proxies use.

use clap::Parser as _;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_api::ca::{IssueSvidRequest, IssueSvidResponse};
use countersign_api::names;
use countersign_credentials::{ChannelSettings, TlsAs, channel, system_clock};
use countersign_identity::{BundleSet, SpiffeId, Svid, TrustBundle};
use countersign_kit::TestClock;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::*;
use crate::config::Args;
use crate::kubernetes::testing::{ApiServer, Fault};
use crate::testing::{csr, p256, private_dir};

mod hanging;
mod leader;
mod race;
mod together;

const SYSTEM: &str = "countersign-system";

struct Replica {
    _dir: TempDir,
    ca: Running,
    clock: SharedClock,
}

async fn api_server() -> (ApiServer, SocketAddr) {
    let server = ApiServer::new();
    server.reviews(|token, audiences| match token.strip_prefix("good") {
        Some(pod) => json!({
            "authenticated": true,
            "audiences": audiences,
            "user": {
                "username": "system:serviceaccount:shop:frontend",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": [format!("frontend-1{pod}")],
                    "authentication.kubernetes.io/pod-uid": [format!("uid-of-frontend-1{pod}")],
                },
            },
        }),
        None => json!({ "authenticated": false, "error": "[invalid bearer token, Pod frontend-1 not found]" }),
    });
    let address = server.listen().await;
    (server, address)
}

fn config(dir: &TempDir, api: SocketAddr, more: &[&str]) -> Config {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": format!("http://{api}") } }],
        "users": [{ "name": "x", "user": {} }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
    });
    std::fs::write(path("kubeconfig"), kubeconfig.to_string()).unwrap();
    let (state, kubeconfig) = (path("state"), path("kubeconfig"));
    let fixed = ["countersign-ca", "--state-dir", &state, "--kubeconfig", &kubeconfig];
    let cluster = ["--attest", "token-review", "--state-secret", names::CA_STATE_SECRET, "--publish-bundle"];
    let key = ["--state-key-secret", names::CA_KEY_SECRET, "--trust-domain", "mesh.test", "--listen", "127.0.0.1:0"];
    let health = ["--health-listen", "127.0.0.1:0"];
    let all = fixed.iter().chain(&cluster).chain(&key).chain(if more.is_empty() { &health[..] } else { more });
    Config::check(Args::try_parse_from(all).unwrap(), None).unwrap()
}

async fn replica(api: SocketAddr) -> Replica {
    started(api, system_clock()).await
}

async fn replica_by(api: SocketAddr, clock: &TestClock) -> Replica {
    started(api, clock.clock()).await
}

async fn started(api: SocketAddr, clock: SharedClock) -> Replica {
    let dir = private_dir();
    let ca = start(config(&dir, api, &[]), clock.clone(), Log::none()).await.unwrap();
    Replica { _dir: dir, ca, clock }
}

impl Replica {
    fn bundle(&self) -> String {
        std::fs::read_to_string(&self.ca.bundle).unwrap()
    }

    async fn ask(&self, token: &str) -> Result<IssueSvidResponse, Status> {
        Ok(self.leaf(token, 0).await?.0)
    }

    fn trusted(&self) -> BundleSet {
        let roots = CertificateDer::pem_slice_iter(self.bundle().as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let domain = countersign_identity::TrustDomain::parse("mesh.test").unwrap();
        let bundle = TrustBundle::new(domain, 0, roots, self.clock.now()).unwrap();
        BundleSet::new(vec![bundle]).unwrap()
    }

    fn channel(&self, tls: TlsAs) -> Channel {
        let expected = SpiffeId::parse("spiffe://mesh.test/ns/countersign-system/sa/countersign-ca").unwrap();
        channel(ChannelSettings { address: self.ca.listen.to_string(), expected, tls, mark: None })
    }

    fn anonymous(&self) -> Channel {
        self.channel(TlsAs::Nobody(self.trusted(), self.clock.clone()))
    }

    /// For who says to hold that bundle.
    async fn leaf(&self, token: &str, bundle_generation: u64) -> Result<(IssueSvidResponse, Svid), Status> {
        let mut client = CertificateAuthorityClient::new(self.anonymous());
        let key = p256();
        let request = IssueSvidRequest {
            csr: csr(&key),
            token: token.to_owned(),
            client_time_ms: self.clock.now_ms(),
            ttl_seconds: 0,
            bundle_generation,
        };
        let answer = client.issue_svid(request).await?.into_inner();
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let svid = Svid::new(chain, PrivateKeyDer::from(key)).unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://mesh.test/ns/shop/sa/frontend");
        Ok((answer, svid))
    }
}

async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let tcp = tokio::net::TcpStream::connect(address).await.ok()?;
    crate::testing::exchange(tcp, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await.ok()
}

#[tokio::test]
async fn two_replicas_sign_from_one_state_and_a_third_goes_on_with_it() {
    let (server, api) = api_server().await;
    let (one, two) = tokio::join!(replica(api), replica(api));
    assert_eq!(one.bundle(), two.bundle(), "whoever made the root first");
    let (first, second) = (one.ask("good").await.unwrap(), two.ask("good").await.unwrap());
    assert_eq!(first.chain[1], second.chain[1], "one issuer");
    assert_eq!(first.bundle, second.bundle);
    let root = one.bundle();
    drop((one, two));
    assert_eq!(replica(api).await.bundle(), root);
    let good = |map: Option<&Value>| map.is_some_and(|map| map["data"][names::BUNDLE_KEY] == root);
    server.until("configmaps", SYSTEM, names::BUNDLE_CONFIG_MAP, good).await;
}

#[tokio::test]
async fn a_refused_token_is_told_from_an_api_server_that_is_away() {
    let (server, api) = api_server().await;
    let one = replica(api).await;
    let refused = one.ask("of a deleted pod").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("Pod frontend-1 not found"), "{refused}");
    server.fail("create", "tokenreviews", Fault::Status(503, "ServiceUnavailable"), 1);
    let away = one.ask("good").await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away}");
    assert!(away.message().contains("try again"), "{away}");
    server.fail("create", "tokenreviews", Fault::Status(403, "Forbidden"), 1);
    assert_eq!(one.ask("good").await.unwrap_err().code(), Code::Unavailable);
    one.ask("good").await.unwrap();
    let metrics = get(one.ca.health, "/metrics").await.unwrap();
    for word in ["granted", "token_refused", "token_review_unavailable", "token_review_forbidden"] {
        let line = format!("countersign_ca_svid_requests_total{{outcome=\"{word}\"}} 1\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[tokio::test]
async fn until_the_state_is_loaded_it_is_alive_and_not_ready() {
    let (server, api) = api_server().await;
    server.fail("get", "secrets", Fault::Status(503, "ServiceUnavailable"), 1);
    let dir = private_dir();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config(&dir, api, &["--health-listen", &free.to_string()]);
    let starting = tokio::spawn(start(config, system_clock(), Log::none()));
    let answer = loop {
        if let Some(answer) = get(free, "/readyz").await {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("state"), "{answer}");
    assert!(get(free, "/livez").await.unwrap().starts_with("HTTP/1.1 200"));
    let ca = starting.await.unwrap().unwrap();
    assert!(get(ca.health, "/readyz").await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_time_does_not_mend_ends_the_start() {
    let (server, api) = api_server().await;
    drop(replica(api).await);
    server.remove("secrets", SYSTEM, names::CA_KEY_SECRET);
    let dir = private_dir();
    let error = start(config(&dir, api, &[]), system_clock(), Log::none()).await.err().unwrap();
    assert!(error.to_string().contains("restore the key's Secret"), "{error}");
    let dir = private_dir();
    let mut broken = config(&dir, api, &[]);
    broken.kubeconfig = Some(dir.path().join("none"));
    let error = start(broken, system_clock(), Log::none()).await.err().unwrap();
    assert!(matches!(error, StartError::Cluster(_)), "{error}");
}

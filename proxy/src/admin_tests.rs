//! What can and cannot be had through the admin socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;
use countersign_policy::PolicySet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;
use crate::config::args::Cli;
use crate::discovery::Settings;
use crate::testing::TestCa;

/// A folder of its own, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("countersign-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("proxy.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.very-secret-token.signature";

/// A whole admin socket, and what it serves.
struct Served {
    folder: Folder,
    admin: Arc<Admin>,
    key: Vec<u8>,
}

async fn served(name: &str) -> Served {
    let folder = Folder::new(name);
    let token_file = folder.0.join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let config = config(&folder, &token_file);
    let ca = TestCa::new("cluster.local");
    let held = ca.credentials("backend", Duration::from_secs(3600));
    let key = held.svid().key().secret_der().to_vec();
    let credentials = watch::Sender::new(Some(held)).subscribe();
    let settings = Settings {
        trust_domain: config.trust_domain.clone(),
        controller: config.controller.id.clone(),
        addresses: config.controller.addresses.clone(),
        namespace: config.pod.namespace.clone(),
        pod_uid: config.pod.uid.clone(),
        mark: None,
    };
    let (metrics, drain) = (Metrics::new(), Drain::new(Duration::ZERO));
    let (discovery, _) = Discovery::start(settings, credentials.clone(), metrics.clone());
    let (_, rules) = watch::channel::<Option<Arc<PolicySet>>>(None);
    let proof = Proof::new(metrics.clone());
    let readiness = Readiness::new(credentials.clone(), rules, proof.outbound(), drain.clone());
    let ca_status = watch::Sender::new(Status::default()).subscribe();
    let log = Log::none();
    let started = Instant::now();
    let config = Arc::new(config);
    let admin = Arc::new(Admin {
        permits: Permits::new(discovery.rules()),
        config,
        credentials,
        ca_status,
        discovery,
        metrics,
        readiness,
        proof,
        drain,
        log,
        started,
    });
    let socket = countersign_admin::bind(&folder.socket()).unwrap();
    tokio::spawn(countersign_admin::serve(socket, admin.routes(), |_| ()));
    Served { folder, admin, key }
}

fn config(folder: &Folder, token_file: &Path) -> Config {
    let socket = format!("--admin-socket={}", folder.socket().display());
    let token = format!("--token-file={}", token_file.display());
    let cli = Cli::parse_from([
        "countersign-proxy",
        "--ca-address=ca:1",
        "--controller-address=controller:1",
        "--pod-name=backend-1",
        "--pod-uid=uid-1",
        "--pod-namespace=shop",
        "--service-account=backend",
        "--pod-ips=10.77.0.11",
        &socket,
        &token,
    ]);
    Config::read(&cli.run).unwrap()
}

impl Served {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.folder.socket()).await.unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    async fn get(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn status_says_who_we_are_and_how_we_are() {
    let served = served("status").await;
    let status = served.get("/status").await;
    assert_eq!(status["process"], "countersign-proxy");
    assert_eq!(status["id"], "spiffe://cluster.local/ns/shop/sa/backend");
    assert_eq!((&status["ready"], &status["phase"]), (&false.into(), &"serving".into()));
    assert_eq!(status["credentials"]["bundles"][0]["generation"], 1);
    assert_eq!(status["checks"][0]["ok"], true);
}

#[tokio::test]
async fn a_dump_holds_settings_rules_and_addresses_but_no_key_and_no_token() {
    let served = served("secrets").await;
    let dump = served.get("/config_dump").await;
    assert_eq!(dump["config"]["ports"]["inbound"], 15006);
    assert_eq!(dump["config"]["token_file"], served.folder.0.join("token").display().to_string());
    assert_eq!(dump["credentials"]["id"], "spiffe://cluster.local/ns/shop/sa/backend");
    assert!(dump["discovery"]["addresses"].is_array());
    let hex: String = served.key.iter().map(|byte| format!("{byte:02x}")).collect();
    for path in ["/config_dump", "/status", "/log"] {
        let (_, text) = served.ask("GET", path, "").await;
        assert!(!text.contains("secret-token"), "{path}");
        assert!(!text.contains("PRIVATE") && !text.contains(&base64_of(&served.key)), "{path}");
        // No part of the key that is longer than chance, in hex.
        assert!(hex.as_bytes().windows(32).all(|part| !text.contains(std::str::from_utf8(part).unwrap())), "{path}");
    }
}

/// Standard base64, first 30 bytes: enough to find a key by.
fn base64_of(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |bits: u32| char::from(LETTERS[(bits & 63) as usize]);
    let three = |c: &[u8]| u32::from(c[0]) << 16 | u32::from(c[1]) << 8 | u32::from(c[2]);
    let chunks = bytes[..30].chunks_exact(3).map(three);
    chunks.flat_map(|bits| [letter(bits >> 18), letter(bits >> 12), letter(bits >> 6), letter(bits)]).collect()
}

#[tokio::test]
async fn drain_makes_it_not_ready_but_does_not_stop_serving() {
    let served = served("drain").await;
    assert_eq!(served.ask("GET", "/drain", "").await.0, 405);
    assert_eq!(served.admin.drain.phase().label(), "serving");
    let (status, body) = served.ask("POST", "/drain", "").await;
    assert_eq!(status, 200);
    assert!(body.contains("withdrawn"));
    assert!(!served.admin.drain.draining());
    assert_eq!(served.get("/status").await["phase"], "withdrawn");
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let served = served("paths").await;
    assert_eq!(served.ask("GET", "/", "").await.0, 404);
    assert_eq!(served.ask("POST", "/status", "").await.0, 405);
    assert_eq!(served.ask("DELETE", "/log", "").await.0, 405);
}

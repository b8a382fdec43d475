//! The server over real sockets, asked as the API server asks: TLS with the root of the `caBundle`, HTTP/1.1.

use std::sync::atomic::{AtomicU32, Ordering};

use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::*;
use crate::apiserver::{ApiServer, SYSTEM};
use crate::certificate::Pair;
use crate::kubernetes::Cluster;
use crate::mesh::tests::mesh;

const NOW: u64 = 1_800_000_000;
const NAME: &str = "i.s.svc";

struct Server {
    api: ApiServer,
    address: SocketAddr,
    serving: Serving,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// As long as the machine's own clock says.
fn pair() -> Pair {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Pair::make(&[NAME.to_owned()], now, Duration::from_secs(3600)).unwrap()
}

async fn start() -> (Server, Pair) {
    started(|webhooks, listener, serving, shutdown| tokio::spawn(webhooks.serve(listener, serving, shutdown))).await
}

async fn started(
    serve: impl FnOnce(Arc<Webhooks>, TcpListener, Serving, CancellationToken) -> tokio::task::JoinHandle<()>,
) -> (Server, Pair) {
    let api = ApiServer::start().await;
    let cluster = Cluster::connect(Some(&api.kubeconfig()), SYSTEM).await.unwrap();
    let (serving, metrics, shutdown) = (Serving::default(), Arc::new(Metrics::default()), CancellationToken::new());
    let pair = pair();
    serving.put(&pair, NAME, pair.made).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let webhooks = Arc::new(Webhooks::new(mesh(&[]).unwrap(), Namespaces::new(cluster), Arc::clone(&metrics)));
    let task = serve(webhooks, listener, serving.clone(), shutdown.clone());
    (Server { api, address, serving, metrics, shutdown, task }, pair)
}

/// A connection that trusts one root.
async fn connect(address: SocketAddr, root: &str) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(NAME.try_into().unwrap(), tcp).await
}

/// Code and body of one request on an open connection.
async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), head: &str, body: &[u8]) -> (u16, String) {
    let head = format!("{head} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
    let head = if head.contains("content-type") { head } else { head + "content-type: application/json\r\n" };
    io.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    // It may be refused by its head alone.
    let _ = io.write_all(body).await;
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= length.unwrap().parse().unwrap() {
                return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
            }
        }
        let mut more = [0; 4096];
        let n = io.read(&mut more).await.unwrap();
        assert!(n > 0, "closed after {text:?}");
        answer.extend_from_slice(&more[..n]);
    }
}

fn review(namespace: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": namespace, "dryRun": false,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "object": { "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "a" }] } },
        },
    });
    change(&mut review);
    review.to_string().into_bytes()
}

async fn posted(server: &Server, root: &str, path: &str, body: &[u8]) -> Value {
    let mut io = connect(server.address, root).await.unwrap();
    let (code, body) = ask(&mut io, &format!("POST {path}"), body).await;
    assert_eq!(code, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
}

#[tokio::test]
async fn a_pod_is_patched_and_a_rule_is_judged() {
    let (server, pair) = start().await;
    let response = posted(&server, &pair.root, "/mutate?timeout=10s", &review("shop", |_| ())).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let rule = json!({
        "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "r", "namespace": "shop" },
        "spec": { "action": "Allow", "rules": [{ "to": [{ "ports": [0] }] }] },
    });
    let rule = review("shop", |review| {
        review["request"]["object"] = rule;
        review["request"]["kind"] =
            json!({ "group": "policy.countersign.dev", "version": "v1alpha1", "kind": "AuthorizationPolicy" });
    });
    let response = posted(&server, &pair.root, "/validate", &rule).await;
    assert_eq!(response["allowed"], false);
    assert!(
        response["status"]["message"].as_str().unwrap().starts_with("spec.rules[0].to[0].ports[0]: "),
        "{response}"
    );
    let metrics = server.metrics.render(crate::metrics::Facts { certificate_end: NOW, published: true }).unwrap();
    assert!(metrics.contains("requests_total{webhook=\"mutate\",outcome=\"injected\"} 1"), "{metrics}");
    assert!(metrics.contains("requests_total{webhook=\"validate\",outcome=\"refused\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_namespace_labelled_a_moment_ago_is_not_left_out() {
    let (server, pair) = start().await;
    server.api.namespace("new", &[]);
    let response = posted(&server, &pair.root, "/mutate", &review("new", |_| ())).await;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None), "not labelled: nothing is done");
    server.api.namespace("new", &[("countersign.dev/inject", "enabled")]);
    let response = posted(&server, &pair.root, "/mutate", &review("new", |_| ())).await;
    assert!(response["patch"].is_string(), "{response}");

    let security = "pod-security.kubernetes.io/enforce";
    server.api.namespace("strict", &[("countersign.dev/inject", "enabled"), (security, "restricted")]);
    assert_eq!(posted(&server, &pair.root, "/mutate", &review("strict", |_| ())).await["allowed"], false);
    server.api.namespace("strict", &[("countersign.dev/inject", "enabled"), (security, "privileged")]);
    assert_eq!(posted(&server, &pair.root, "/mutate", &review("strict", |_| ())).await["allowed"], true);
}

#[tokio::test]
async fn without_the_namespaces_labels_nothing_passes() {
    let (server, pair) = start().await;
    server.api.hook(|_, _, _| Some(500));
    let response = posted(&server, &pair.root, "/mutate", &review("shop", |_| ())).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(503)));
    assert!(response["status"]["message"].as_str().unwrap().contains("namespace \"shop\""), "{response}");
}

#[tokio::test]
async fn what_is_no_review_gets_one_clear_error_and_the_connection_goes_on() {
    let (server, pair) = start().await;
    let mut io = connect(server.address, &pair.root).await.unwrap();
    for (body, said) in [
        (&b"{"[..], "not JSON of an AdmissionReview"),
        (b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\"}", "is not AdmissionReview"),
    ] {
        let (code, answer) = ask(&mut io, "POST /mutate", body).await;
        assert!(code == 400 && answer.contains(said), "{code} {answer}");
    }
    assert_eq!(ask(&mut io, "POST /mutate", &review("shop", |_| ())).await.0, 200);
    // What is refused by its head alone is not read on.
    for (head, code, said) in [("POST /elsewhere", 404, "/mutate"), ("GET /mutate", 405, "POST")] {
        let mut io = connect(server.address, &pair.root).await.unwrap();
        let (is, answer) = ask(&mut io, head, b"").await;
        assert!(is == code && answer.contains(said), "{is} {answer}");
    }
}

#[tokio::test]
async fn another_content_type_and_an_endless_body_are_refused() {
    let (server, pair) = start().await;
    let mut io = connect(server.address, &pair.root).await.unwrap();
    let head = "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: text/yaml\r\ncontent-length: 2\r\n\r\n{}";
    io.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 415");

    let mut io = connect(server.address, &pair.root).await.unwrap();
    let (code, _) = ask(&mut io, "POST /mutate", &vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(code, 413);
}

#[tokio::test]
async fn a_connection_outlives_the_change_of_the_certificate() {
    let (server, old) = start().await;
    let mut open = connect(server.address, &old.root).await.unwrap();
    assert_eq!(ask(&mut open, "POST /mutate", &review("shop", |_| ())).await.0, 200);
    let new = pair();
    server.serving.put(&new, NAME, new.made).unwrap();
    assert_eq!(ask(&mut open, "POST /mutate", &review("shop", |_| ())).await.0, 200, "not dropped");
    assert!(connect(server.address, &old.root).await.is_err(), "new connections get the new one");
    assert_eq!(posted(&server, &new.root, "/mutate", &review("shop", |_| ())).await["allowed"], true);
}

#[tokio::test]
async fn an_accept_that_fails_is_tried_again_after_a_pause_and_serves_once_there_are_files() {
    const FAILURES: u32 = 3;
    let (tries, began) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let counted = Arc::clone(&tries);
    let (server, pair) = started(move |webhooks, listener, serving, shutdown| {
        tokio::spawn(async move {
            let accept = || async {
                match counted.fetch_add(1, Ordering::Relaxed) {
                    0..FAILURES => Err(io::Error::from_raw_os_error(24)), // EMFILE
                    _ => listener.accept().await,
                }
            };
            webhooks.take_all(accept, &mut JoinSet::new(), &serving, &shutdown).await;
        })
    })
    .await;
    // It waits in the kernel meanwhile.
    assert_eq!(posted(&server, &pair.root, "/mutate", &review("shop", |_| ())).await["allowed"], true);
    assert!(began.elapsed() >= PAUSE * FAILURES, "{:?}", began.elapsed());
    // The one that brought it, and one for the next.
    assert_eq!(tries.load(Ordering::Relaxed), FAILURES + 2);
    server.shutdown.cancel();
    server.task.await.unwrap();
}

#[tokio::test]
async fn the_end_waits_for_a_request_under_way() {
    let (server, pair) = start().await;
    let mut io = connect(server.address, &pair.root).await.unwrap();
    let body = review("shop", |_| ());
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    io.write_all(head.as_bytes()).await.unwrap();
    io.write_all(&body[..10]).await.unwrap();
    // It has come so far when a second connection was answered.
    let mut other = connect(server.address, &pair.root).await.unwrap();
    assert_eq!(ask(&mut other, "POST /mutate", &body).await.0, 200);
    server.shutdown.cancel();
    io.write_all(&body[10..]).await.unwrap();
    let mut answer = [0; 12];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop((io, other));
    server.task.await.unwrap();
}

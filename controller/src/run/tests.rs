//! The whole controller in this process, over loopback: a CA that signs, files that change, proxies that connect.

use std::net::Ipv4Addr;
use std::time::Instant;

use countersign_api::ca as wire;
use countersign_api::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use countersign_api::controller::controller_client::ControllerClient;
use countersign_api::controller::{FromProxy, Hello, ToProxy, Workload, from_proxy, to_proxy};
use countersign_api::names::ALPN_H2;
use countersign_credentials::{Credentials, connect, system_clock};
use countersign_identity::SpiffeId;
use hyper_util::rt::TokioIo;
use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::service_fn;

use super::*;
use crate::config::Args;
use crate::testing::{Temp, TestCa, account, policy, workload};

const LIMIT: Duration = Duration::from_secs(30);

const MESH: &str = "\
apiVersion: countersign.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {trustDomain: cluster.local, podRanges: [127.0.0.0/24], serviceRanges: [10.96.0.0/16]}
";

/// Frontend and two backends on loopback addresses of their own.
fn pods() -> String {
    let one = |name: &str, app: &str, host: u8| {
        workload("shop", name, app, &format!("127.0.0.{host}"), "X", "").replace(", 'X'", "")
    };
    [one("frontend", "frontend", 10), one("backend-1", "backend", 11), one("backend-2", "backend", 12)].join("---\n")
}

/// A CA that signs for the controller whoever asks.
struct FakeCa(Arc<TestCa>);

#[tonic::async_trait]
impl CertificateAuthority for FakeCa {
    type WatchBundleStream = ReceiverStream<Result<wire::TrustBundle, Status>>;

    async fn issue_svid(
        &self,
        request: Request<wire::IssueSvidRequest>,
    ) -> Result<Response<wire::IssueSvidResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.token, "our-token");
        let csr = CertificateSigningRequestDer::from(request.csr);
        let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let leaf = self.0.sign(&account("countersign-system", "countersign-controller"), &csr.public_key);
        let ca_time_ms = system_clock().now_ms();
        let answer = wire::IssueSvidResponse { chain: vec![leaf.to_vec()], ca_time_ms, bundle: Some(self.bundle()) };
        Ok(Response::new(answer))
    }

    async fn report_holding(
        &self,
        _: Request<wire::HoldingReport>,
    ) -> Result<Response<wire::HoldingReportAnswer>, Status> {
        Err(Status::unimplemented("a CA of before"))
    }

    async fn watch_bundle(
        &self,
        _: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let (send, stream) = mpsc::channel(1);
        let bundle = self.bundle();
        tokio::spawn(async move {
            let _ = send.send(Ok(bundle)).await;
            send.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl FakeCa {
    fn bundle(&self) -> wire::TrustBundle {
        wire::TrustBundle {
            trust_domain: "cluster.local".into(),
            generation: 1,
            roots: vec![self.0.root().to_vec()],
            ..Default::default()
        }
    }

    async fn serve(ca: &Arc<TestCa>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let credentials = ca.credentials(&account("countersign-system", "countersign-ca"));
        let service = CertificateAuthorityServer::new(FakeCa(Arc::clone(ca)));
        tokio::spawn(async move {
            let (_keep, credentials) = watch::channel(Some(credentials));
            let connections = incoming(listener, credentials, ClientAuth::Optional, IncomingLimits::default(), |_| ());
            Server::builder().add_service(service).serve_with_incoming(connections).await
        });
        address
    }
}

struct Whole {
    temp: Temp,
    ca: Arc<TestCa>,
    running: Running,
}

impl Whole {
    /// Started, perhaps not ready.
    async fn start(files: &[(&str, &str)]) -> Self {
        let (temp, ca) = (Temp::new(), Arc::new(TestCa::new()));
        temp.put("token", "our-token\n");
        temp.put("roots.pem", &ca.pem());
        temp.put("mesh/mesh.yaml", MESH);
        for (file, text) in files {
            temp.put(&format!("mesh/{file}"), text);
        }
        let ca_address = FakeCa::serve(&ca).await;
        let args = Args {
            source: format!("dir:{}", temp.join("mesh").display()),
            pod_ranges: Vec::new(),
            service_ranges: Vec::new(),
            trust_domain: "cluster.local".into(),
            system_namespace: "countersign-system".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            health_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_socket: temp.join("admin.sock"),
            ca_address: ca_address.to_string(),
            token_file: temp.join("token"),
            bootstrap_bundle: temp.join("roots.pem"),
            svid_ttl: None,
            mark: None,
            ready_file: Some(temp.join("ready.json")),
            drain: Duration::from_secs(5),
            log: None,
        };
        let running = start(Config::check(args).unwrap(), system_clock(), Log::none()).await.unwrap();
        Whole { temp, ca, running }
    }

    async fn ready(files: &[(&str, &str)]) -> Self {
        let whole = Self::start(files).await;
        timeout(LIMIT, whole.running.ready()).await.expect("not ready").unwrap();
        whole
    }

    /// A proxy from this loopback address, with this SVID.
    async fn dial(&self, host: u8, credentials: &Arc<Credentials>) -> Result<Proxy, String> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
        let tcp = socket.connect(self.running.listen).await.map_err(|error| error.to_string())?;
        let expected = SpiffeId::parse(&account("countersign-system", "countersign-controller")).unwrap();
        let (tls, _) =
            connect(tcp, credentials, &[ALPN_H2], &expected, LIMIT).await.map_err(|error| error.to_string())?;
        let mut tls = Some(TokioIo::new(tls));
        let connector = service_fn(move |_| {
            let tls = tls.take();
            async move { tls.ok_or_else(|| io::Error::other("connected once already")) }
        });
        let endpoint = Endpoint::from_static("http://controller");
        let channel: Channel = endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())?;
        let (out, messages) = mpsc::channel(16);
        let from = ControllerClient::new(channel).connect(ReceiverStream::new(messages)).await;
        Ok(Proxy { out, from: from.map_err(|error| error.to_string())?.into_inner() })
    }

    async fn proxy(&self, uid: &str, account_name: &str, host: u8) -> Proxy {
        let proxy = self.dial(host, &self.ca.credentials(&account("shop", account_name))).await.unwrap();
        proxy.hello(uid).await;
        proxy
    }

    async fn health(&self, path: &str) -> (u16, String) {
        http(TcpStream::connect(self.running.health).await.unwrap(), "GET", path, "").await
    }

    async fn admin(&self, path: &str) -> serde_json::Value {
        let (code, body) = http(UnixStream::connect(&self.running.admin).await.unwrap(), "GET", path, "").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

async fn http(mut io: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

struct Proxy {
    out: mpsc::Sender<FromProxy>,
    from: Streaming<ToProxy>,
}

impl Proxy {
    async fn hello(&self, uid: &str) {
        let hello = Hello { pod_uid: uid.into(), proxy_version: "test".into(), feature_level: 1 };
        self.out.send(FromProxy { kind: Some(from_proxy::Kind::Hello(hello)) }).await.unwrap();
    }

    async fn workload(&mut self) -> Result<Workload, Status> {
        let message = timeout(LIMIT, self.from.message()).await.expect("nothing came")?;
        match message.unwrap().kind.unwrap() {
            to_proxy::Kind::Workload(workload) => Ok(workload),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_file_reaches_the_proxies_that_it_binds() {
    let whole = Whole::ready(&[("pods.yaml", &pods())]).await;
    let mut frontend = whole.proxy("uid-frontend", "frontend", 10).await;
    let mut backend = whole.proxy("uid-backend-1", "backend", 11).await;
    assert!(frontend.workload().await.unwrap().rules.is_empty());
    backend.workload().await.unwrap();
    let began = Instant::now();
    whole.temp.put("mesh/rules.yaml", &policy("shop", "only-frontend", Some("frontend"), "Deny"));
    let workload = frontend.workload().await.unwrap();
    println!("from the file to the proxy: {:?}", began.elapsed());
    assert_eq!(workload.rules[0].name, "only-frontend");

    // A bad change changes nothing, and is named everywhere; the next good one comes through.
    whole.temp.put("mesh/rules.yaml", &policy("shop", "only-frontend", Some("frontend"), "Refuse"));
    let mut snapshots = whole.running.inside.snapshots.clone();
    let bad = snapshots.wait_for(|snapshot| !snapshot.problems.is_empty());
    drop(timeout(LIMIT, bad).await.expect("the bad file was not noticed").unwrap());
    let status = whole.admin("/status").await;
    assert_eq!(status["source"]["problems"][0]["file"], "rules.yaml");
    assert_eq!(status["source"]["objects"]["AuthorizationPolicy"], 1);
    assert_eq!(status["ready"], true);
    assert!(whole.health("/metrics").await.1.contains("source_bad_file{file=\"rules.yaml\"} 1"));
    assert_eq!(whole.health("/readyz").await.0, 200);
    whole.temp.put("mesh/rules.yaml", &policy("shop", "another", None, "Deny"));
    assert_eq!(frontend.workload().await.unwrap().rules[0].name, "another");
    assert_eq!(backend.workload().await.unwrap().rules[0].name, "another");
    assert!(!whole.health("/metrics").await.1.contains("rules.yaml"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_is_what_is() {
    let whole = Whole::ready(&[("pods.yaml", &pods()), ("p.yaml", &policy("shop", "p", None, "Allow"))]).await;
    let mut frontend = whole.proxy("uid-frontend", "frontend", 10).await;
    let revision = frontend.workload().await.unwrap().revision;
    let ready: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(whole.temp.join("ready.json")).unwrap()).unwrap();
    assert_eq!(ready["listen"], whole.running.listen.to_string());
    assert_eq!(ready["health"], whole.running.health.to_string());

    let status = whole.admin("/status").await;
    let proxy = &status["proxies"][0];
    assert_eq!(proxy["id"], account("shop", "frontend"));
    assert_eq!((&proxy["namespace"], &proxy["name"]), (&"shop".into(), &"frontend".into()));
    assert_eq!(proxy["sent_revision"], revision);
    assert_eq!(proxy["acked_revision"], serde_json::Value::Null);
    assert_eq!(status["own_svid"]["id"], account("countersign-system", "countersign-controller"));
    let ranges = (&status["pod_ranges"], &status["service_ranges"]);
    assert_eq!(ranges, (&serde_json::json!(["127.0.0.0/24"]), &serde_json::json!(["10.96.0.0/16"])));
    let dump = whole.admin("/config_dump").await;
    assert_eq!(dump["mesh"]["workloads"].as_array().unwrap().len(), 3);
    assert_eq!(dump["mesh"]["namespaces"][0]["policies"].as_array().unwrap().len(), 1);
    assert!(!dump.to_string().contains("our-token"));

    assert_eq!(whole.health("/livez").await, (200, "ok\n".into()));
    assert_eq!(whole.health("/status").await.0, 404, "administration is not on TCP");
    let metrics = whole.health("/metrics").await.1;
    for line in ["countersign_controller_streams 1", "objects{kind=\"Workload\"} 3", "# EOF"] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&whole.running.admin).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let socket = UnixStream::connect(&whole.running.admin).await.unwrap();
    assert_eq!(http(socket, "PUT", "/log", "debug").await.0, 400, "in tests the logs are not ours");

    let (admin, file) = (whole.running.admin.clone(), whole.temp.join("ready.json"));
    assert!(whole.running.shutdown(LIMIT).await);
    assert_eq!(frontend.workload().await.unwrap_err().code(), Code::Unavailable);
    assert!(!admin.exists() && !file.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_a_sibling_over_the_wire() {
    let whole = Whole::ready(&[("pods.yaml", &pods())]).await;
    for (uid, account_name, host) in
        [("uid-backend-1", "backend", 12), ("uid-backend-1", "frontend", 10), ("uid-frontend", "backend", 11)]
    {
        let mut proxy = whole.proxy(uid, account_name, host).await;
        assert_eq!(proxy.workload().await.unwrap_err().code(), Code::PermissionDenied);
    }
    let mut proxy = whole.proxy("uid-backend-1", "backend", 11).await;
    assert_eq!(proxy.workload().await.unwrap().name, "backend-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_certificate_gets_no_stream() {
    let whole = Whole::ready(&[("pods.yaml", &pods())]).await;
    // Its chain is of another root; it trusts ours, so that only the server can refuse.
    let stranger = TestCa::new();
    let id = account("shop", "frontend");
    let tcp = TcpStream::connect(whole.running.listen).await.unwrap();
    let refused = match stranger_connects(tcp, &whole.ca, &stranger, &id).await {
        Err(_) => true,
        // TLS 1.3: the client learns of its refusal with the first read.
        Ok(mut tls) => !matches!(tls.read(&mut [0; 64]).await, Ok(n) if n > 0),
    };
    assert!(refused);
    assert!(whole.running.inside.registry.is_empty());
    let counted = "countersign_controller_connections_refused_total{reason=";
    while !whole.health("/metrics").await.1.contains(counted) {
        tokio::task::yield_now().await;
    }
}

async fn stranger_connects(
    tcp: TcpStream,
    ours: &TestCa,
    stranger: &TestCa,
    id: &str,
) -> Result<impl AsyncRead + Unpin + use<>, String> {
    let both = countersign_identity::TrustBundle::new(
        crate::testing::trust_domain(),
        1,
        vec![ours.root(), stranger.root()],
        rustls_pki_types::UnixTime::now(),
    );
    let bundles = countersign_identity::BundleSet::new(vec![both.unwrap()]).unwrap();
    let credentials = Credentials::new(Arc::new(stranger.svid(id)), bundles, system_clock()).unwrap();
    let expected = SpiffeId::parse(&account("countersign-system", "countersign-controller")).unwrap();
    let connected = connect(tcp, &credentials, &[ALPN_H2], &expected, LIMIT).await;
    connected.map(|(tls, _)| tls).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_at_the_start_holds_ready_back_and_says_why() {
    let whole = Whole::start(&[("pods.yaml", &pods()), ("deny.yaml", "kind: [")]).await;
    let mut credentials = whole.running.inside.credentials.clone();
    drop(timeout(LIMIT, credentials.wait_for(Option::is_some)).await.unwrap().unwrap());
    let mut snapshots = whole.running.inside.snapshots.clone();
    drop(timeout(LIMIT, snapshots.wait_for(|snapshot| snapshot.index.is_some())).await.unwrap().unwrap());
    let (code, why) = whole.health("/readyz").await;
    assert_eq!(code, 503);
    assert!(why.contains("rules are withheld") && why.contains("deny.yaml:"), "{why}");
    let mut proxy = whole.proxy("uid-frontend", "frontend", 10).await;
    assert!(!whole.temp.join("ready.json").exists());
    whole.temp.put("mesh/deny.yaml", &policy("shop", "deny", None, "Deny"));
    assert_eq!(proxy.workload().await.unwrap().rules[0].name, "deny", "the first rules come whole");
    timeout(LIMIT, whole.running.ready()).await.unwrap().unwrap();
    assert!(whole.temp.join("ready.json").exists());
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_is_left() {
    let whole = Whole::ready(&[]).await;
    let taken = whole.running.listen;
    let error = match tcp("--listen", taken).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("bound twice"),
    };
    assert!(error.starts_with(&format!("cannot listen on {taken} (--listen): ")), "{error}");
}

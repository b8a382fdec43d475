//! For tests only: a CA that speaks the real gRPC over the real TLS on loopback, and does what a test tells it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use countersign_api::ca as wire;
use countersign_api::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use countersign_identity::BundleSet;
use rcgen::CertificateSigningRequestParams;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::CaClient;
use crate::testing;
use crate::testing::{HOUR, START, TestCa, TestClock, bundle_of, id, soon, wire_bundle};
use crate::{Clock as _, Credentials, IncomingLimits, PeerInfo, Watch, incoming};

pub(crate) const CA_ID: &str = "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca";
pub(crate) const ME: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

/// What one request for an SVID held.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) token: String,
    pub(crate) generation: u64,
    pub(crate) ttl: u32,
    pub(crate) key: Vec<u8>,
}

/// How the next requests are answered.
pub(crate) struct Manners {
    pub(crate) signer: Arc<TestCa>,
    pub(crate) life: u64,
    pub(crate) id: String,
    pub(crate) refuse: Option<Status>,
    pub(crate) clock_off_ms: i64,
    /// Sent with an SVID; `None`: what the stream sends.
    pub(crate) bundle: Option<wire::TrustBundle>,
}

pub(crate) struct FakeCa {
    pub(crate) clock: TestClock,
    pub(crate) manners: Mutex<Manners>,
    pub(crate) asked: watch::Sender<Vec<Asked>>,
    /// Leaf keys of those who opened the bundle stream, in order.
    pub(crate) followers: watch::Sender<Vec<[u8; 32]>>,
    /// What holders reported, in order: leaf key, generation of the bundle.
    pub(crate) reports: watch::Sender<Vec<([u8; 32], u64)>>,
    pub(crate) bundle: watch::Sender<wire::TrustBundle>,
    pub(crate) own: watch::Sender<Option<Arc<Credentials>>>,
    pub(crate) port: u16,
    /// How often it was stopped: open streams end with each.
    starts: watch::Sender<u32>,
    server: Mutex<Option<JoinHandle<()>>>,
    directory: PathBuf,
}

impl FakeCa {
    /// A running CA, and the client configuration of a pod that trusts it.
    pub(crate) async fn start() -> (Arc<Self>, CaClient) {
        Self::start_as(CA_ID).await
    }

    /// The same, but the server's own SVID is `server_id`.
    pub(crate) async fn start_as(server_id: &str) -> (Arc<Self>, CaClient) {
        let (clock, signer) = (testing::clock(), Arc::new(TestCa::new("cluster.local")));
        let own = watch::Sender::new(Some(Arc::new(long_lived(&signer, server_id, &clock))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bundle = watch::Sender::new(signer.wire_bundle(1));
        let manners = Manners { signer, life: HOUR, id: ME.into(), refuse: None, clock_off_ms: 0, bundle: None };
        let directory = std::env::temp_dir().join(format!("countersign-credentials-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let ca = Arc::new(Self {
            clock,
            manners: Mutex::new(manners),
            asked: watch::Sender::default(),
            followers: watch::Sender::default(),
            reports: watch::Sender::default(),
            bundle,
            own,
            port,
            starts: watch::Sender::new(0),
            server: Mutex::new(None),
            directory,
        });
        ca.serve(listener);
        ca.write_token("token-1\n");
        ca.write_bootstrap(&ca.signer());
        let config = CaClient {
            trust_domain: ca.signer().trust_domain.clone(),
            ca_address: format!("127.0.0.1:{port}"),
            ca_id: id(CA_ID),
            token_file: ca.path("token"),
            bootstrap: ca.path("roots.pem"),
            mark: None,
            ttl: None,
            tally: super::Tally::none(),
        };
        (ca, config)
    }

    fn serve(self: &Arc<Self>, listener: TcpListener) {
        let own: Watch = self.own.subscribe();
        let connections = incoming(listener, own, crate::ClientAuth::Optional, IncomingLimits::default(), |_| ());
        let service = CertificateAuthorityServer::new(Service(Arc::clone(self)));
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections);
        *self.server.lock().unwrap() = Some(tokio::spawn(async move { server.await.unwrap() }));
    }

    /// Closes the listener and ends every stream.
    pub(crate) async fn stop(&self) {
        let server = self.server.lock().unwrap().take().unwrap();
        server.abort();
        let _ = server.await;
        self.starts.send_modify(|starts| *starts += 1);
        soon(async { while TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {} }).await;
    }

    pub(crate) async fn start_again(self: &Arc<Self>) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.serve(listener);
    }

    pub(crate) fn signer(&self) -> Arc<TestCa> {
        Arc::clone(&self.manners.lock().unwrap().signer)
    }

    pub(crate) fn refuse(&self, status: Option<Status>) {
        self.manners.lock().unwrap().refuse = status;
    }

    /// From now on everything is signed below another root. The CA still accepts clients of the old one.
    pub(crate) fn rotate(&self) -> Arc<TestCa> {
        let (old, new) = (self.signer(), Arc::new(TestCa::new("cluster.local")));
        self.manners.lock().unwrap().signer = Arc::clone(&new);
        let both = bundle_of(2, &[&old, &new]);
        let svid = Arc::new(new.svid_during(CA_ID, START - 60, START + 900 * HOUR));
        let own = Credentials::new(svid, BundleSet::new(vec![both]).unwrap(), testing::shared(&self.clock)).unwrap();
        self.own.send_replace(Some(Arc::new(own)));
        new
    }

    pub(crate) fn publish(&self, generation: u64, cas: &[&TestCa]) {
        self.bundle.send_replace(wire_bundle(&self.signer().trust_domain, generation, cas));
    }

    pub(crate) fn write_token(&self, token: &str) {
        std::fs::write(self.path("token"), token).unwrap();
    }

    pub(crate) fn write_bootstrap(&self, ca: &TestCa) {
        std::fs::write(self.path("roots.pem"), ca.root_pem()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.directory).join(name)
    }

    fn issue(&self, request: wire::IssueSvidRequest) -> Result<wire::IssueSvidResponse, Status> {
        let csr = CertificateSigningRequestParams::from_der(&request.csr.into()).unwrap();
        assert!(csr.params.subject_alt_names.is_empty(), "the CSR must name nobody");
        let key = rcgen::PublicKeyData::der_bytes(&csr.public_key).to_vec();
        let (token, generation, ttl) = (request.token, request.bundle_generation, request.ttl_seconds);
        self.asked.send_modify(|asked| asked.push(Asked { token, generation, ttl, key }));
        let manners = self.manners.lock().unwrap();
        if let Some(status) = &manners.refuse {
            return Err(status.clone());
        }
        let now = self.clock.now().as_secs();
        let chain = manners.signer.sign(&manners.id, &csr.public_key, now, now + manners.life);
        Ok(wire::IssueSvidResponse {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            ca_time_ms: self.clock.now_ms() + manners.clock_off_ms,
            bundle: Some(manners.bundle.clone().unwrap_or_else(|| self.bundle.borrow().clone())),
        })
    }
}

impl Drop for FakeCa {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn long_lived(ca: &TestCa, id: &str, clock: &TestClock) -> Credentials {
    let svid = ca.svid_during(id, START - 60, START + 900 * HOUR);
    Credentials::new(Arc::new(svid), ca.bundles(), testing::shared(clock)).unwrap()
}

struct Service(Arc<FakeCa>);

#[tonic::async_trait]
impl CertificateAuthority for Service {
    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<wire::TrustBundle, Status>> + Send>>;

    async fn issue_svid(
        &self,
        request: Request<wire::IssueSvidRequest>,
    ) -> Result<Response<wire::IssueSvidResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().unwrap();
        assert!(peer.id.is_none(), "a token attests, not a certificate");
        self.0.issue(request.into_inner()).map(Response::new)
    }

    async fn report_holding(
        &self,
        request: Request<wire::HoldingReport>,
    ) -> Result<Response<wire::HoldingReportAnswer>, Status> {
        let peer = request.extensions().get::<PeerInfo>().unwrap().clone();
        let id = peer.id.ok_or_else(|| Status::unauthenticated("no SVID"))?;
        let generation = request.get_ref().bundle_generation;
        self.0.reports.send_modify(|all| all.push((*id.spki_sha256(), generation)));
        Ok(Response::new(wire::HoldingReportAnswer {}))
    }

    async fn watch_bundle(
        &self,
        request: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().unwrap().clone();
        let id = peer.id.ok_or_else(|| Status::unauthenticated("no SVID"))?;
        self.0.followers.send_modify(|all| all.push(*id.spki_sha256()));
        let stopped = WatchStream::from_changes(self.0.starts.subscribe()).map(|_| None);
        let bundles = WatchStream::new(self.0.bundle.subscribe()).map(|bundle| Some(Ok(bundle)));
        let bundles = bundles.merge(stopped).map_while(|bundle| bundle);
        Ok(Response::new(Box::pin(bundles)))
    }
}

//! A controller that says exactly what the test tells it to, over mutual TLS on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::controller::controller_server::{Controller, ControllerServer};
use countersign_api::controller::{self as api, FromProxy, ToProxy};
use countersign_credentials::{ClientAuth, Credentials, IncomingLimits, PeerInfo, incoming};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// What a test waits for comes within this time, or the test fails.
pub const SOON: Duration = Duration::from_secs(20);

pub struct FakeController {
    pub address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
    server: JoinHandle<()>,
    _credentials: watch::Sender<Option<Arc<Credentials>>>,
}

/// One proxy's stream, as the controller sees it.
pub struct Stream {
    pub peer: PeerInfo,
    heard: mpsc::UnboundedReceiver<FromProxy>,
    says: mpsc::Sender<Result<ToProxy, Status>>,
}

struct Service(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl Controller for Service {
    type ConnectStream = ReceiverStream<Result<ToProxy, Status>>;

    async fn connect(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Self::ConnectStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned().unwrap();
        let mut messages = request.into_inner();
        let (hear, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if hear.send(message).is_err() {
                    return;
                }
            }
        });
        let (says, said) = mpsc::channel(16);
        let _ = self.0.send(Stream { peer, heard, says });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

/// A port that was let go may for a moment be the source of somebody's attempt to reach it.
async fn bound(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
            Err(error) => panic!("{address}: {error}"),
        }
    }
}

impl FakeController {
    pub async fn start(credentials: Arc<Credentials>) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), credentials).await
    }

    pub async fn start_at(address: SocketAddr, credentials: Arc<Credentials>) -> Self {
        let listener = soon(bound(address)).await;
        let address = listener.local_addr().unwrap();
        let (sender, watch) = watch::channel(Some(credentials));
        // A whole mesh may come from one address here.
        let limits = IncomingLimits { of_one_address: 4096, handshakes: 4096, ..IncomingLimits::default() };
        let connections = incoming(listener, watch, ClientAuth::Required, limits, |_| ());
        let (opened, streams) = mpsc::unbounded_channel();
        let server = Server::builder().add_service(ControllerServer::new(Service(opened)));
        let server = tokio::spawn(async move { server.serve_with_incoming(connections).await.unwrap() });
        Self { address, streams, server, _credentials: sender }
    }

    /// The next stream that a proxy opens.
    pub async fn stream(&mut self) -> Stream {
        soon(self.streams.recv()).await.unwrap()
    }

    /// Whether any proxy ever got in.
    pub fn was_reached(&mut self) -> bool {
        self.streams.try_recv().is_ok()
    }

    /// No longer listens; streams that are open end when they are dropped.
    pub async fn stop(self) -> SocketAddr {
        self.server.abort();
        let _ = self.server.await;
        self.address
    }
}

impl Stream {
    pub async fn hear(&mut self) -> api::from_proxy::Kind {
        soon(self.heard.recv()).await.expect("the proxy ended the stream").kind.unwrap()
    }

    /// The stream's other end is gone.
    pub async fn ended(&mut self) {
        while soon(self.heard.recv()).await.is_some() {}
    }

    pub async fn hello(&mut self) -> api::Hello {
        match self.hear().await {
            api::from_proxy::Kind::Hello(hello) => hello,
            other => panic!("{other:?} instead of Hello"),
        }
    }

    pub async fn lookup(&mut self) -> SocketAddr {
        match self.hear().await {
            api::from_proxy::Kind::Lookup(address) => read_address(&address),
            other => panic!("{other:?} instead of Lookup"),
        }
    }

    pub async fn ack(&mut self) -> api::Ack {
        match self.hear().await {
            api::from_proxy::Kind::Ack(ack) => ack,
            other => panic!("{other:?} instead of Ack"),
        }
    }

    pub async fn say(&self, kind: api::to_proxy::Kind) {
        self.says.send(Ok(ToProxy { kind: Some(kind) })).await.unwrap();
    }

    /// A message of a kind that came later: an older reader sees none.
    pub async fn say_unknown(&self) {
        self.says.send(Ok(ToProxy { kind: None })).await.unwrap();
    }

    /// Rules without any rule; what was said before is in force when this returns.
    pub async fn rules(&mut self, revision: &str) {
        self.say(workload(revision)).await;
        let ack = self.ack().await;
        assert_eq!((ack.revision.as_str(), ack.problem.as_str()), (revision, ""));
    }

    pub async fn answer(&self, address: SocketAddr, who: api::answer::Who) {
        let address = Some(crate::discovery::answer::write_address(address));
        self.say(api::to_proxy::Kind::Answer(api::Answer { address, who: Some(who) })).await;
    }

    /// Says Hello was heard and gives the first rules.
    pub async fn begin(mut self) -> Self {
        self.hello().await;
        self.rules("r1").await;
        self
    }
}

pub fn workload(revision: &str) -> api::to_proxy::Kind {
    api::to_proxy::Kind::Workload(api::Workload {
        namespace: "shop".to_owned(),
        name: "frontend-1".to_owned(),
        revision: revision.to_owned(),
        modes: None,
        rules: Vec::new(),
        mesh_ranges: vec!["10.77.0.0/24".to_owned(), "fd77::/64".to_owned()],
        node: "node-a".to_owned(),
    })
}

pub fn pod(address: SocketAddr, account: &str) -> api::answer::Who {
    api::answer::Who::Endpoint(api::Endpoint {
        address: Some(crate::discovery::answer::write_address(address)),
        identity: Some(api::endpoint::Identity::SpiffeId(format!("spiffe://cluster.local/ns/shop/sa/{account}"))),
        ready: true,
        node: "node-b".to_owned(),
    })
}

pub async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(SOON, what).await.expect("it did not come")
}

fn read_address(address: &api::Address) -> SocketAddr {
    let ip = <[u8; 4]>::try_from(address.ip.as_slice()).map(std::net::IpAddr::from);
    let ip = ip.or_else(|_| <[u8; 16]>::try_from(address.ip.as_slice()).map(std::net::IpAddr::from)).unwrap();
    SocketAddr::new(ip, u16::try_from(address.port).unwrap())
}

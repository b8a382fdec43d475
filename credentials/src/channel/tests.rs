use std::sync::{Arc, Mutex};

use countersign_api::ca as wire;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_api::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::server::Connected as _;

use super::*;
use crate::ca::fake::{CA_ID, FakeCa, ME};
use crate::testing;
use crate::testing::{HOUR, START, TestCa, advance, freeze, id, settle, soon};
use crate::{ClientAuth, Credentials, IncomingLimits, incoming};

/// A pod's channel to the fake CA, and what it publishes to itself.
struct Pod {
    ca: Arc<FakeCa>,
    published: watch::Sender<Option<Arc<Credentials>>>,
    client: CertificateAuthorityClient<Channel>,
}

impl Pod {
    async fn new(expected: &str) -> Self {
        let (ca, config) = FakeCa::start().await;
        let (published, watch) = watch::channel(None);
        let client = CertificateAuthorityClient::new(channel(ChannelSettings {
            address: config.ca_address,
            expected: id(expected),
            tls: TlsAs::Ourselves(watch),
            mark: None,
        }));
        Self { ca, published, client }
    }

    fn publish(&self) -> [u8; 32] {
        let credentials = self.ca.signer().credentials(ME, &self.ca.clock);
        let leaf = credentials.svid().spki_sha256();
        self.published.send_replace(Some(Arc::new(credentials)));
        leaf
    }

    async fn open(&mut self) -> Result<tonic::Streaming<wire::TrustBundle>, Status> {
        let request = wire::WatchBundleRequest { known_generation: 0 };
        soon(self.client.watch_bundle(request)).await.map(tonic::Response::into_inner)
    }

    async fn fails(&mut self) -> (&'static str, String) {
        let status = self.open().await.map(drop).unwrap_err();
        (ChannelError::behind(&status).unwrap().label(), reason(&status))
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_without_credentials_says_so_and_works_once_there_are_some() {
    let _frozen = freeze();
    let mut pod = Pod::new(CA_ID).await;
    assert_eq!(pod.fails().await, ("no_credentials", "no SVID of our own yet".into()));
    let leaf = pod.publish();
    let mut stream = pod.open().await.unwrap();
    assert_eq!(soon(stream.message()).await.unwrap().unwrap().generation, 1);
    assert_eq!(*pod.ca.followers.borrow(), [leaf]);
}

#[tokio::test(start_paused = true)]
async fn each_connect_uses_the_credentials_of_that_moment() {
    let _frozen = freeze();
    let mut pod = Pod::new(CA_ID).await;
    let first = pod.publish();
    let mut stream = pod.open().await.unwrap();
    let second = pod.publish();
    // The old connection goes on until its own leaf ends ...
    pod.open().await.unwrap();
    assert_eq!(*pod.ca.followers.borrow(), [first, first]);
    soon(stream.message()).await.unwrap();
    advance(Duration::from_secs(HOUR + 1)).await;
    let status = soon(stream.message()).await.unwrap_err();
    assert!(reason(&status).contains("expired"), "{}", reason(&status));
    // ... and so would the second now.
    assert_eq!(pod.fails().await.0, "own_svid_expired");
    let svid = pod.ca.signer().svid_during(ME, START, START + 5 * HOUR);
    let third = Credentials::new(Arc::new(svid), pod.ca.signer().bundles(), testing::shared(&pod.ca.clock)).unwrap();
    let leaf = third.svid().spki_sha256();
    pod.published.send_replace(Some(Arc::new(third)));
    pod.open().await.unwrap();
    assert_eq!(pod.ca.followers.borrow().last(), Some(&leaf));
    assert_ne!(leaf, second);
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_identity_is_named_in_the_reason() {
    let _frozen = freeze();
    let wanted = "spiffe://cluster.local/ns/countersign-system/sa/countersign-controller";
    let mut pod = Pod::new(wanted).await;
    pod.publish();
    let (label, text) = pod.fails().await;
    assert_eq!(label, "unexpected_identity");
    assert!(text.contains(wanted) && text.contains(CA_ID) && text.contains(&pod.ca.port.to_string()), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_lost_the_servers_root_ends_the_open_stream() {
    let _frozen = freeze();
    let mut pod = Pod::new(CA_ID).await;
    pod.publish();
    let mut stream = pod.open().await.unwrap();
    soon(stream.message()).await.unwrap();
    let stranger = TestCa::new("cluster.local").credentials(ME, &pod.ca.clock);
    pod.published.send_replace(Some(Arc::new(stranger)));
    let status = soon(stream.message()).await.unwrap_err();
    assert!(reason(&status).contains("no longer vouches"), "{}", reason(&status));
}

#[tokio::test(start_paused = true)]
async fn a_server_ends_the_connection_of_a_client_whose_root_it_lost() {
    let _frozen = freeze();
    let mut pod = Pod::new(CA_ID).await;
    pod.publish();
    let mut stream = pod.open().await.unwrap();
    soon(stream.message()).await.unwrap();
    let own = TestCa::new("cluster.local").credentials(CA_ID, &pod.ca.clock);
    pod.ca.own.send_replace(Some(Arc::new(own)));
    soon(stream.message()).await.unwrap_err();
    assert_eq!(pod.fails().await.0, "unknown_issuer");
}

/// A listener at work.
struct Listening {
    incoming: crate::Incoming,
    address: std::net::SocketAddr,
    refused: Refused,
    _published: watch::Sender<Option<Arc<Credentials>>>,
}

async fn listening(limits: IncomingLimits, held: Option<Credentials>) -> Listening {
    listening_to(ClientAuth::Required, limits, held).await
}

async fn listening_to(auth: ClientAuth, limits: IncomingLimits, held: Option<Credentials>) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_published, watch) = watch::channel(held.map(Arc::new));
    let refused = Refused::default();
    let counted = Arc::clone(&refused);
    let count = move |why| counted.lock().unwrap().push(why);
    Listening { incoming: incoming(listener, watch, auth, limits, count), address, refused, _published }
}

async fn closed_at_once(address: std::net::SocketAddr) -> bool {
    let mut client = TcpStream::connect(address).await.unwrap();
    matches!(soon(client.read(&mut [0; 8])).await, Ok(0) | Err(_))
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_holds_up_nobody_and_is_cut() {
    let _frozen = freeze();
    let mut pod = Pod::new(CA_ID).await;
    pod.publish();
    let mut silent = TcpStream::connect(("127.0.0.1", pod.ca.port)).await.unwrap();
    pod.open().await.unwrap();
    advance(Duration::from_secs(5)).await;
    assert_eq!(soon(silent.read(&mut [0; 8])).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_credentials_nobody_is_accepted() {
    let _frozen = freeze();
    let it = listening(IncomingLimits::default(), None).await;
    assert!(closed_at_once(it.address).await);
}

#[tokio::test(start_paused = true)]
async fn with_expired_credentials_nobody_is_accepted() {
    let _frozen = freeze();
    let clock = testing::clock();
    let credentials = TestCa::new("cluster.local").credentials(CA_ID, &clock);
    clock.step(HOUR as i64 + 1);
    let it = listening(IncomingLimits::default(), Some(credentials)).await;
    assert!(closed_at_once(it.address).await);
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_limit_are_shed_not_queued() {
    let _frozen = freeze();
    let clock = testing::clock();
    let credentials = TestCa::new("cluster.local").credentials(CA_ID, &clock);
    let limits = IncomingLimits { connections: 1, ..IncomingLimits::default() };
    let it = listening(limits, Some(credentials)).await;
    let first = TcpStream::connect(it.address).await.unwrap();
    assert!(closed_at_once(it.address).await);
    drop(first);
    // The place is free again once the first one's end was seen: then a newcomer is kept waiting for its hello.
    loop {
        let mut client = TcpStream::connect(it.address).await.unwrap();
        let mut byte = [0; 1];
        tokio::select! {
            _ = client.read(&mut byte) => continue,
            () = settle() => break,
        }
    }
}

/// What `listening` counted as refused.
type Refused = Arc<Mutex<Vec<&'static str>>>;

/// A connection from `source` that says nothing; `None` if it was closed at once.
async fn idle_from(source: &str, address: std::net::SocketAddr) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    let mut byte = [0; 1];
    tokio::select! {
        _ = client.read(&mut byte) => None,
        () = settle() => Some(client),
    }
}

#[tokio::test(start_paused = true)]
async fn one_source_holds_a_quarter_of_the_connections_at_most() {
    let _frozen = freeze();
    let clock = testing::clock();
    let credentials = TestCa::new("cluster.local").credentials(CA_ID, &clock);
    // Handshakes are plenty: it is the connections that run out.
    let limits = IncomingLimits { connections: 8, handshakes: 100, ..IncomingLimits::default() };
    let it = listening(limits, Some(credentials)).await;
    let held = [idle_from("127.0.0.1", it.address).await.unwrap(), idle_from("127.0.0.1", it.address).await.unwrap()];
    assert!(closed_at_once(it.address).await, "a third of eight");
    assert_eq!(*it.refused.lock().unwrap(), ["source_connections"]);
    let _other = idle_from("127.0.0.2", it.address).await.expect("kept out by its neighbour");
    drop(held);
    while idle_from("127.0.0.1", it.address).await.is_none() {}
}

#[tokio::test(start_paused = true)]
async fn one_address_holds_no_more_connections_than_it_can_need() {
    let _frozen = freeze();
    let clock = testing::clock();
    let credentials = TestCa::new("cluster.local").credentials(CA_ID, &clock);
    let limits = IncomingLimits { of_one_address: 2, ..IncomingLimits::default() };
    let it = listening(limits, Some(credentials)).await;
    let held = [idle_from("127.0.0.1", it.address).await.unwrap(), idle_from("127.0.0.1", it.address).await.unwrap()];
    assert!(closed_at_once(it.address).await, "a third");
    assert_eq!(*it.refused.lock().unwrap(), ["source_connections"]);
    let _other = idle_from("127.0.0.2", it.address).await.expect("kept out by its neighbour");
    drop(held);
    while idle_from("127.0.0.1", it.address).await.is_none() {}
}

#[tokio::test(start_paused = true)]
async fn clients_without_a_certificate_take_no_place_of_those_with_one() {
    let _frozen = freeze();
    let (ca, clock) = (TestCa::new("cluster.local"), testing::clock());
    let limits = IncomingLimits { nameless: 1, ..IncomingLimits::default() };
    let mut it = listening_to(ClientAuth::Optional, limits, Some(ca.credentials(CA_ID, &clock))).await;
    let (me, limit, ca_id) = (ca.credentials(ME, &clock), Duration::from_secs(5), id(CA_ID));
    let (bundles, shared) = (ca.bundles(), testing::shared(&clock));
    let dial = || TcpStream::connect(it.address);
    let mut nameless = Vec::new();
    for _ in 0..2 {
        let tcp = dial().await.unwrap();
        nameless.push(connect_anonymous(tcp, &bundles, &shared, &[ALPN_H2], &ca_id, limit).await.unwrap().0);
    }
    let mut theirs = vec![it.incoming.next().await.unwrap().unwrap()];
    // The client side is done before the server's: its end comes as the first thing that is read.
    assert!(!matches!(soon(nameless[1].read(&mut [0; 1])).await, Ok(1..)), "a second one");
    assert_eq!(*it.refused.lock().unwrap(), ["nameless"]);
    let tcp = dial().await.unwrap();
    let (_named, member) = tokio::join!(connect(tcp, &me, &[ALPN_H2], &ca_id, limit), it.incoming.next());
    theirs.push(member.unwrap().unwrap());
    assert!(theirs[1].connect_info().id.is_some());
    theirs.clear();
    let tcp = dial().await.unwrap();
    let (_third, third) =
        tokio::join!(connect_anonymous(tcp, &bundles, &shared, &[ALPN_H2], &ca_id, limit), it.incoming.next());
    assert!(third.unwrap().unwrap().connect_info().id.is_none(), "the place was not given back");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_fails_is_counted_by_its_reason() {
    let _frozen = freeze();
    let clock = testing::clock();
    let credentials = TestCa::new("cluster.local").credentials(CA_ID, &clock);
    let it = listening(IncomingLimits::default(), Some(credentials)).await;
    let mut client = TcpStream::connect(it.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = soon(client.read_to_end(&mut Vec::new())).await;
    while it.refused.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*it.refused.lock().unwrap(), ["tls"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_certificate_holds_its_place_no_longer_than_it_needs() {
    let _frozen = freeze();
    let clock = testing::clock();
    let ca = TestCa::new("cluster.local");
    let mut it =
        listening_to(ClientAuth::Optional, IncomingLimits::default(), Some(ca.credentials(CA_ID, &clock))).await;
    let (me, limit) = (ca.credentials(ME, &clock), Duration::from_secs(5));
    let dial = || TcpStream::connect(it.address);
    let (bundles, shared, ca_id) = (ca.bundles(), testing::shared(&clock), id(CA_ID));
    let nameless = connect_anonymous(dial().await.unwrap(), &bundles, &shared, &[ALPN_H2], &ca_id, limit);
    let (nameless, theirs) = tokio::join!(nameless, it.incoming.next());
    let (_nameless, mut theirs) = (nameless.unwrap(), theirs.unwrap().unwrap());
    let named = connect(TcpStream::connect(it.address).await.unwrap(), &me, &[ALPN_H2], &ca_id, limit);
    let (named, members) = tokio::join!(named, it.incoming.next());
    let (_named, mut members) = (named.unwrap(), members.unwrap().unwrap());

    let mut byte = [0; 1];
    advance(Duration::from_secs(29)).await;
    assert!(timeout(Duration::ZERO, theirs.read(&mut byte)).await.is_err(), "there is time for a call");
    advance(Duration::from_secs(2)).await;
    let end = soon(theirs.read(&mut byte)).await.unwrap_err();
    assert!(end.to_string().contains("without a certificate"), "{end}");
    assert!(timeout(Duration::ZERO, members.read(&mut byte)).await.is_err(), "a member stays");
}

/// Sends small messages, each in a frame of its own, and says how many it got rid of.
struct Chatty(Mutex<Option<watch::Sender<u64>>>);

const MANY: u64 = 8_000;
/// So many of them fit a stream's window.
const WAITING: u64 = 3_000;

#[tonic::async_trait]
impl CertificateAuthority for Chatty {
    type WatchBundleStream = ReceiverStream<Result<wire::TrustBundle, Status>>;

    async fn issue_svid(
        &self,
        _: tonic::Request<wire::IssueSvidRequest>,
    ) -> Result<tonic::Response<wire::IssueSvidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn report_holding(
        &self,
        _: tonic::Request<wire::HoldingReport>,
    ) -> Result<tonic::Response<wire::HoldingReportAnswer>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn watch_bundle(
        &self,
        _: tonic::Request<wire::WatchBundleRequest>,
    ) -> Result<tonic::Response<Self::WatchBundleStream>, Status> {
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let sent = self.0.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            for generation in 1..=MANY {
                let trust_domain = "of the size of an answer to a lookup, or thereabouts".to_owned();
                let message = wire::TrustBundle { trust_domain, generation, ..wire::TrustBundle::default() };
                if send.send(Ok(message)).await.is_err() {
                    break;
                }
                sent.send_replace(generation);
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(receive)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_that_wait_for_a_busy_reader_do_not_end_the_connection() {
    let (ca, clock) = (TestCa::new("cluster.local"), testing::clock());
    let it = listening(IncomingLimits::default(), Some(ca.credentials(CA_ID, &clock))).await;
    let (sent, mut on_the_way) = watch::channel(0);
    let service = CertificateAuthorityServer::new(Chatty(Mutex::new(Some(sent))));
    tokio::spawn(crate::grpc_server().add_service(service).serve_with_incoming(it.incoming));
    let (_published, watch) = watch::channel(Some(Arc::new(ca.credentials(ME, &clock))));
    let mut client = CertificateAuthorityClient::new(channel(ChannelSettings {
        address: it.address.to_string(),
        expected: id(CA_ID),
        tls: TlsAs::Ourselves(watch),
        mark: None,
    }));
    let request = wire::WatchBundleRequest { known_generation: 0 };
    let mut stream = client.watch_bundle(request).await.unwrap().into_inner();
    // Busy until the window is almost full; an error is that the connection ended, as the next read shows.
    let _ = on_the_way.wait_for(|sent| *sent >= WAITING).await;
    for generation in 1..=MANY {
        assert_eq!(stream.message().await.unwrap().unwrap().generation, generation);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_stream_closes_the_port() {
    let _frozen = freeze();
    let Listening { incoming, address, .. } = listening(IncomingLimits::default(), None).await;
    drop(incoming);
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
}

//! TLS connections accepted for a gRPC server (CA, controller): accept, handshake under a deadline in a bounded number of
//! slots, and a connection that ends with its credentials.
//!
//! Called by the CA and the controller; feeds `tonic::transport::Server::serve_with_incoming`. Must never wait for one
//! client's handshake before accepting the next, and never spin when the process has no file left.

mod connection;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use countersign_api::names::ALPN_H2;
use countersign_identity::{Purpose, VerifiedId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::{debug, warn};

use crate::Watch;
use crate::clock::SharedClock;
use crate::config::ClientAuth;
use crate::credentials::Credentials;
use crate::dial::notice_dead_peers;
use crate::handshake::{HandshakeError, accept, accept_optional};
use crate::lived::{Life, Lived};
use crate::places::{Full, Place, Places};
pub use connection::{Connection, PeerInfo};

/// After a failed accept: long enough not to spin, short enough to be ready when files are free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Refusals logged in one second; more are counted, and the count is logged with the next.
const LOGGED_A_SECOND: u32 = 10;

/// What one client may have on its way to us, bytes; on a stream, and on all of a connection.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Headers of one request, bytes.
const HEADER_LIST: u32 = 16 * 1024;
/// Resets that a client may send for streams that nobody has looked at yet (rapid reset, CVE-2023-44487).
const PENDING_RESETS: usize = 20;

/// What strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct IncomingLimits {
    /// Connections at once, handshakes included; shared out as [`Places::in_quarters`] says. More are closed at once, not
    /// queued.
    pub connections: usize,
    /// Handshakes at once; shared out likewise.
    pub handshakes: usize,
    /// The time for one handshake.
    pub handshake_limit: Duration,
    /// Connections of one address, whatever its share would be: each costs us tens of KiB, and a pod needs one or two.
    pub of_one_address: usize,
    /// Connections at once of clients that showed no certificate; shared out likewise. Nobody knows who they are.
    pub nameless: usize,
    /// The time for a connection of a client that showed no certificate, handshake excluded: it is there to ask for its
    /// first one, and must not hold a place beyond that.
    pub nameless_limit: Duration,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 256,
            handshake_limit: Duration::from_secs(5),
            of_one_address: 128,
            nameless: 512,
            nameless_limit: Duration::from_secs(30),
        }
    }
}

/// Connections as tonic wants them. Dropping it stops the accepting.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts until the returned stream is dropped. Each handshake takes the credentials that are current when it begins; while
/// there are none, or they have expired, connections are closed at once. `refused` is told of each connection that ends before
/// it is one, by a bounded word.
pub fn incoming(
    listener: TcpListener,
    watch: Watch,
    auth: ClientAuth,
    limits: IncomingLimits,
    refused: impl Fn(&'static str) + Send + Sync + 'static,
) -> Incoming {
    let (done, connections) = mpsc::channel(64);
    let acceptor = Arc::new(Acceptor {
        watch,
        auth,
        limits,
        connections: Places::in_quarters(limits.connections),
        addresses: Places::for_each_address(limits.of_one_address),
        handshakes: Places::in_quarters(limits.handshakes),
        nameless: Places::in_quarters(limits.nameless),
        refusals: Refusals::new(refused),
        done,
    });
    tokio::spawn(accept_all(listener, acceptor));
    ReceiverStream::new(connections)
}

/// A gRPC server for these connections, with HTTP/2 within bounds. Time, streams and calls are the caller's to bound; and where
/// streams bring many small messages, the connection's window is the caller's to set ([`crate::connection_window`]).
pub fn grpc_server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .http2_max_header_list_size(HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
}

struct Acceptor {
    watch: Watch,
    auth: ClientAuth,
    limits: IncomingLimits,
    connections: Arc<Places>,
    addresses: Arc<Places>,
    handshakes: Arc<Places>,
    nameless: Arc<Places>,
    refusals: Refusals,
    done: mpsc::Sender<io::Result<Connection>>,
}

async fn accept_all(listener: TcpListener, acceptor: Arc<Acceptor>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = acceptor.done.closed() => return,
        };
        match accepted {
            Ok((tcp, address)) => Arc::clone(&acceptor).take(tcp, address),
            // The client gave up before we came to it: nothing is wrong here, and no reason to pause for others.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a connection was closed before it became one.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no place for another connection{}", of_whom(.0))]
    Connections(Full),
    #[error("no place for another handshake{}", of_whom(.0))]
    Handshakes(Full),
    #[error("no place for another connection without a certificate{}", of_whom(.0))]
    Nameless(Full),
    #[error("we have no SVID of our own yet")]
    NoCredentials,
    #[error("our own SVID has expired")]
    Expired,
    #[error("socket: {0}")]
    Socket(io::Error),
    #[error(transparent)]
    Handshake(HandshakeError),
}

impl Refused {
    /// A bounded word for metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Connections(Full::All) => "connections",
            Self::Connections(Full::Source) => "source_connections",
            Self::Handshakes(Full::All) => "handshakes",
            Self::Handshakes(Full::Source) => "source_handshakes",
            Self::Nameless(Full::All) => "nameless",
            Self::Nameless(Full::Source) => "source_nameless",
            Self::NoCredentials => "no_credentials",
            Self::Expired => "expired_credentials",
            Self::Socket(_) => "socket",
            Self::Handshake(error) => error.label(),
        }
    }
}

fn of_whom(full: &Full) -> &'static str {
    match full {
        Full::All => "",
        Full::Source => " of this source",
    }
}

impl Acceptor {
    fn take(self: Arc<Self>, tcp: TcpStream, address: SocketAddr) {
        let ip = address.ip();
        let places = match self.addresses.take(ip).and_then(|own| Ok((own, self.connections.take(ip)?))) {
            Ok((own, shared)) => vec![own, shared],
            Err(full) => return self.refusals.tell(address, &Refused::Connections(full)),
        };
        let handshake = match self.handshakes.take(ip) {
            Ok(handshake) => handshake,
            Err(full) => return self.refusals.tell(address, &Refused::Handshakes(full)),
        };
        tokio::spawn(async move {
            match self.handshake(tcp, address, places).await {
                Ok(connection) => {
                    drop(handshake);
                    let _ = self.done.send(Ok(connection)).await;
                }
                Err(refused) => self.refusals.tell(address, &refused),
            }
        });
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        mut places: Vec<Place>,
    ) -> Result<Connection, Refused> {
        let mut watch = self.watch.clone();
        // Marks this value as seen: what is published from here on wakes the connection's own end.
        let credentials = watch.borrow_and_update().clone().ok_or(Refused::NoCredentials)?;
        if credentials.expired() {
            return Err(Refused::Expired);
        }
        tcp.set_nodelay(true).and_then(|()| notice_dead_peers(&tcp)).map_err(Refused::Socket)?;
        let (stream, id) = self.accept(tcp, &credentials).await.map_err(Refused::Handshake)?;
        if id.is_none() {
            places.push(self.nameless.take(address.ip()).map_err(Refused::Nameless)?);
        }
        let ours = credentials.expires_at();
        let life = Life {
            until: id.as_ref().map_or(ours, |peer| ours.min(peer.path_not_after())),
            clock: SharedClock::clone(credentials.clock()),
            watch: Some(watch),
            bundles: credentials.bundles().clone(),
            chain: stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec(),
            purpose: Purpose::Client,
            most: id.is_none().then_some(self.limits.nameless_limit),
        };
        Ok(Connection::new(Lived::new(stream, life), PeerInfo { id, address }, places))
    }

    async fn accept(
        &self,
        tcp: TcpStream,
        credentials: &Credentials,
    ) -> Result<(TlsStream<TcpStream>, Option<VerifiedId>), HandshakeError> {
        let limit = self.limits.handshake_limit;
        match self.auth {
            ClientAuth::Required => {
                accept(tcp, credentials, &[ALPN_H2], limit).await.map(|(stream, peer)| (stream, Some(peer)))
            }
            ClientAuth::Optional => accept_optional(tcp, credentials, &[ALPN_H2], limit).await,
        }
    }
}

/// Counts refusals, and logs them, but not faster than anybody can read: a stranger decides how many there are.
struct Refusals {
    count: Box<dyn Fn(&'static str) + Send + Sync>,
    since: Instant,
    second: AtomicU64,
    in_it: AtomicU32,
    unsaid: AtomicU32,
}

impl Refusals {
    fn new(count: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        let zero = AtomicU32::default;
        let count = Box::new(count);
        Self { count, since: Instant::now(), second: AtomicU64::default(), in_it: zero(), unsaid: zero() }
    }

    fn tell(&self, address: SocketAddr, why: &Refused) {
        (self.count)(why.label());
        // Silence and broken connections are everyday (port scans, load balancers' checks).
        if let Refused::Handshake(HandshakeError::Timeout(_) | HandshakeError::Io(_)) = why {
            return debug!(%address, %why, "connection refused");
        }
        if self.may_speak(self.since.elapsed().as_secs()) {
            let unsaid = self.unsaid.swap(0, Ordering::Relaxed);
            warn!(%address, %why, unsaid, "connection refused");
        }
    }

    /// Counts of two threads may be off by a few at a second's edge; the bound is what matters.
    fn may_speak(&self, second: u64) -> bool {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.in_it.store(0, Ordering::Relaxed);
        }
        let may = self.in_it.fetch_add(1, Ordering::Relaxed) < LOGGED_A_SECOND;
        if !may {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
        }
        may
    }
}

#[cfg(test)]
mod tests;

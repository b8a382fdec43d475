//! TLS connections accepted for a gRPC server (CA, controller): accept, handshake under a deadline in a bounded number of
//! slots, and a connection that ends with its credentials.
//!
//! Called by the CA and the controller; feeds `tonic::transport::Server::serve_with_incoming`. Must never wait for one
//! client's handshake before accepting the next, and never spin when the process has no file left.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_api::names::ALPN_H2;
use countersign_identity::{Purpose, VerifiedId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::Watch;
use crate::clock::SharedClock;
use crate::config::ClientAuth;
use crate::credentials::Credentials;
use crate::handshake::{HandshakeError, accept, accept_optional};
use crate::lived::{Life, Lived};

/// After a failed accept: long enough not to spin, short enough to be ready when files are free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct IncomingLimits {
    /// Connections at once, handshakes included. More are closed at once, not queued.
    pub connections: usize,
    /// Handshakes at once; a quarter of them (at least one) for one source address.
    pub handshakes: usize,
    /// The time for one handshake.
    pub handshake_limit: Duration,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self { connections: 16_384, handshakes: 256, handshake_limit: Duration::from_secs(5) }
    }
}

/// Who is on a connection; tonic puts it into each request's extensions.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The proven identity; `None` only under [`ClientAuth::Optional`].
    pub id: Option<VerifiedId>,
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// One accepted connection: TLS, who is there, and its place among the connections.
pub struct Connection {
    io: Lived<TlsStream<TcpStream>>,
    info: PeerInfo,
    _place: OwnedSemaphorePermit,
}

/// Connections as tonic wants them. Dropping it stops the accepting.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts until the returned stream is dropped. Each handshake takes the credentials that are current when it begins; while
/// there are none, or they have expired, connections are closed at once.
pub fn incoming(listener: TcpListener, watch: Watch, auth: ClientAuth, limits: IncomingLimits) -> Incoming {
    let (done, connections) = mpsc::channel(64);
    let acceptor = Arc::new(Acceptor {
        watch,
        auth,
        limits,
        places: Arc::new(Semaphore::new(limits.connections)),
        slots: Slots::new(limits.handshakes),
        done,
    });
    tokio::spawn(accept_all(listener, acceptor));
    ReceiverStream::new(connections)
}

struct Acceptor {
    watch: Watch,
    auth: ClientAuth,
    limits: IncomingLimits,
    places: Arc<Semaphore>,
    slots: Slots,
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

impl Acceptor {
    fn take(self: Arc<Self>, tcp: TcpStream, address: SocketAddr) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return debug!(%address, reason = "connections", "connection shed");
        };
        let Some(slot) = self.slots.take(address.ip()) else {
            return debug!(%address, reason = "handshakes", "connection shed");
        };
        tokio::spawn(async move {
            match self.handshake(tcp, address, place).await {
                Ok(connection) => {
                    drop(slot);
                    let _ = self.done.send(Ok(connection)).await;
                }
                Err(reason) => debug!(%address, reason, "connection refused"),
            }
        });
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Result<Connection, &'static str> {
        let mut watch = self.watch.clone();
        let credentials = watch.borrow_and_update().clone().ok_or("no_credentials")?;
        if credentials.expired() {
            return Err("own_svid_expired");
        }
        tcp.set_nodelay(true).map_err(|_| "socket")?;
        let (stream, id) = self.accept(tcp, &credentials).await.map_err(|error| {
            debug!(%address, %error, "handshake failed");
            error.label()
        })?;
        let mut until = credentials.expires_at();
        if let Some(peer) = &id {
            until = until.min(peer.not_after());
        }
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let clock = SharedClock::clone(credentials.clock());
        let life = Life { until, clock, watch: Some(watch), chain, purpose: Purpose::Client };
        Ok(Connection { io: Lived::new(stream, life), info: PeerInfo { id, address }, _place: place })
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

/// Handshakes under way: so many in all, a quarter for one source.
#[derive(Clone)]
struct Slots {
    all: usize,
    each: usize,
    used: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

struct Slot {
    slots: Slots,
    source: IpAddr,
}

impl Slots {
    fn new(all: usize) -> Self {
        Self { all, each: (all / 4).max(1), used: Arc::default() }
    }

    fn take(&self, source: IpAddr) -> Option<Slot> {
        let source = source.to_canonical();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = used.get(&source).copied().unwrap_or(0);
        if mine >= self.each || used.values().sum::<usize>() >= self.all {
            return None;
        }
        used.insert(source, mine + 1);
        Some(Slot { slots: self.clone(), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = self.slots.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get_mut(&self.source) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(used.remove(&self.source)),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
#[cfg(test)]
mod tests;

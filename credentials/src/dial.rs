//! TCP connections that we open: the socket mark that exempts them from our own redirect, Nagle off, keepalive.
//!
//! Called by the proxy (to endpoints and to its own app) and by `channel`. Must never connect before the mark is set: an
//! unmarked connection would come back to our own outbound listener.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// Addresses tried of all that the names resolve to.
const MAX_ADDRESSES: usize = 16;
/// One address may not eat the whole deadline.
const PER_ADDRESS: Duration = Duration::from_secs(3);
/// A dead peer is noticed after 60 s of silence and six probes. TCP_USER_TIMEOUT is *not* set here: with it Linux also ends a
/// connection whose peer answers every probe but keeps its window closed, as a paused program does for hours.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EACH: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Why no server was reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name did not resolve.
    #[error("{name}: {source}")]
    Resolve {
        /// `host:port` as configured.
        name: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The name resolved to nothing.
    #[error("{0} resolves to no address")]
    NoAddress(String),
    /// Each address was tried; this is what the last one said.
    #[error("{address}: {source}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The deadline passed.
    #[error("{name}: not reached within {} ms", .limit.as_millis())]
    Timeout {
        /// `host:port` as configured.
        name: String,
        /// The whole time allowed.
        limit: Duration,
    },
}

impl DialError {
    /// A bounded word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Resolve { .. } | Self::NoAddress(_) => "resolve",
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "connect_timeout",
        }
    }
}

/// Connects to one address, without a deadline of its own. Refused, it tries once more, from another port: our own rules refuse a port for
/// which an earlier connection of the app has left its translation behind (docs/decisions/0002). `mark` needs CAP_NET_ADMIN in the socket's network namespace.
pub async fn dial(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    match dial_once(addr, mark).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        done => return done,
    }
    // Boxed: it is rare, and each connection's state would have a place for it.
    Box::pin(dial_once(addr, mark)).await
}

async fn dial_once(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = socket(addr, mark)?;
    notice_dead_peers(&socket)?;
    socket.connect(addr).await
}

/// The same to an address of this very machine or pod, where no keepalive is needed: the kernel that would answer it is our own.
pub async fn dial_local(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    match socket(addr, mark)?.connect(addr).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        done => return done,
    }
    Box::pin(socket(addr, mark)?.connect(addr)).await
}

fn socket(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Sets keepalive: a peer that vanished without a word ends the connection after two minutes.
pub(crate) fn notice_dead_peers(socket: &impl AsFd) -> io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EACH).with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Connects to the first address that answers of `names`: `host:port`, several separated by commas, in this order. `limit`
/// bounds resolving and all attempts together.
pub async fn dial_host(names: &str, mark: Option<u32>, limit: Duration) -> Result<TcpStream, DialError> {
    match timeout(limit, first_that_answers(names, mark)).await {
        Ok(done) => done,
        Err(_) => Err(DialError::Timeout { name: names.into(), limit }),
    }
}

async fn first_that_answers(names: &str, mark: Option<u32>) -> Result<TcpStream, DialError> {
    let mut last = DialError::NoAddress(names.into());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let addresses: Vec<_> = match lookup_host(name).await {
            Ok(found) => found.take(MAX_ADDRESSES).collect(),
            Err(source) => {
                last = DialError::Resolve { name: name.into(), source };
                continue;
            }
        };
        for address in addresses {
            match timeout(PER_ADDRESS, dial(address, mark)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = DialError::Connect { address, source },
                Err(_) => {
                    let source = io::Error::from(io::ErrorKind::TimedOut);
                    last = DialError::Connect { address, source };
                }
            }
        }
    }
    Err(last)
}
#[cfg(test)]
mod tests;

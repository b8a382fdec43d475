//! Listening sockets: binding, the original destination of what they accept, and accept loops that neither spin nor grow
//! without bound. Called by `run`; hands each connection to a journey.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::outcome::Direction;

/// Connections that the kernel may hold before we accept them.
const BACKLOG: i32 = 1024;
/// Silence after which the kernel asks whether the other side is still there; then how often, and how many times.
const IDLE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;
/// Waits after an accept that failed for want of files or memory: from the first, doubling to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Binds for one direction: inbound on all addresses, outbound on loopback only. IPv6 is left out where the system has none.
///
/// # Errors
/// When the IPv4 socket cannot be bound, or the IPv6 one for another reason than that there is no IPv6.
pub fn bind(direction: Direction, port: u16) -> io::Result<Vec<TcpListener>> {
    let (v4, v6) = match direction {
        Direction::Inbound => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        Direction::Outbound => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    };
    let first = bind_one(SocketAddr::new(v4.into(), port))?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    match bind_one(SocketAddr::new(v6.into(), port)) {
        Ok(listener) => listeners.push(listener),
        Err(e) if no_ipv6(&e) => tracing::info!(direction = direction.label(), "this system has no IPv6"),
        Err(e) => return Err(e),
    }
    Ok(listeners)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it. With Nagle a kept connection falls to a few hundred uses a second.
    socket.set_tcp_nodelay(true)?;
    // Inherited, too: a peer that vanished without a word is noticed, and its place given back, within two minutes.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE).with_interval(PROBE).with_retries(PROBES))?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// Where the connection from `source` was going before a redirect, by the kernel's connection tracking. A connection that was
/// not redirected has its local address as destination.
///
/// # Errors
/// When the kernel cannot tell.
pub fn original_destination(io: &TcpStream, source: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(io);
    // Each listener takes one kind of address only, so the source's is the local one's.
    let told = match source.ip() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    match told {
        Ok(address) => address.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address")),
        // Not tracked, so not redirected.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => io.local_addr(),
        Err(e) => Err(e),
    }
}

/// A place among the connections that this proxy holds; given back on drop.
pub type Place = OwnedSemaphorePermit;

/// Accepts until draining starts. A connection without a place is shed at once, never queued.
pub async fn accept_loop<F>(
    listener: TcpListener,
    direction: Direction,
    places: Arc<Semaphore>,
    metrics: Metrics,
    drain: Drain,
    mut serve: F,
) where
    F: FnMut(TcpStream, SocketAddr, Place),
{
    let mut pause = PAUSES.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.started() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, source)) => {
                pause = PAUSES.0;
                match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => serve(io, source, place),
                    Err(_) => {
                        metrics.shed("connections");
                        reset(io);
                    }
                }
            }
            Err(e) if concerns_one_connection(&e) => {}
            Err(e) => {
                // Out of files or memory: the listener stays readable, so without a pause this loop would spin.
                metrics.shed("accept_failed");
                tracing::warn!(direction = direction.label(), error = %e, pause_ms = pause.as_millis(), "accept failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Closes so that the other side sees a reset, not a clean end.
pub fn reset(io: TcpStream) {
    reset_on_close(&io);
}

/// The same for when it will be dropped.
pub fn reset_on_close(io: &TcpStream) {
    // Best effort: if the option cannot be set the socket is closed all the same.
    let _ = SockRef::from(io).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a direction listens. The port that was free for IPv4 may be taken for IPv6: then another.
    fn bound(direction: Direction) -> Vec<IpAddr> {
        let listeners = (0..8).find_map(|_| bind(direction, 0).ok()).unwrap();
        listeners.iter().map(|listener| listener.local_addr().unwrap().ip()).collect()
    }

    #[tokio::test]
    async fn a_neighbour_cannot_reach_the_listener_for_what_goes_out() {
        let mut loopback: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            loopback.push(Ipv6Addr::LOCALHOST.into());
        }
        assert_eq!(bound(Direction::Outbound), loopback);
        let inbound = bound(Direction::Inbound);
        assert!(inbound.len() >= loopback.len() && inbound.iter().all(IpAddr::is_unspecified), "{inbound:?}");
    }
}

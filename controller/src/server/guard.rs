//! What one source may hold: some connections, and none of them idle for long.
//!
//! Between `countersign_credentials::incoming` (TLS, identity, the bounds of strangers) and the gRPC server. A member of the
//! mesh must not be able to take all connections by opening them and saying nothing.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use countersign_credentials::{Connection, Incoming, PeerInfo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;
use tracing::debug;

use crate::metrics::Metrics;

/// Connections of one address. A pod needs one, and a second while it reconnects.
const PER_SOURCE: usize = 8;
/// A connection without a stream ends after this, or twice this.
const IDLE: Duration = Duration::from_secs(10);

/// Connections, bounded. The shed ones are closed and counted.
pub fn guard(incoming: Incoming, metrics: Arc<Metrics>) -> impl Stream<Item = io::Result<Guarded<Connection>>> {
    let sources = Sources::default();
    incoming.filter_map(move |accepted| {
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => return Some(Err(error)),
        };
        let peer = connection.connect_info();
        let Some(place) = sources.take(peer.address.ip().to_canonical()) else {
            debug!(address = %peer.address, "connection shed: its source has enough");
            metrics.connection_shed();
            return None;
        };
        Some(Ok(Guarded::new(connection, Caller::new(peer), place)))
    })
}

/// Who is on a connection; each request has it in its extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The proven identity and the source address.
    pub peer: PeerInfo,
    streams: Arc<AtomicUsize>,
}

impl Caller {
    /// Of a connection without streams.
    pub fn new(peer: PeerInfo) -> Self {
        Caller { peer, streams: Arc::default() }
    }

    /// A stream begins: while the value lives, the connection is not idle.
    pub fn busy(&self) -> Busy {
        self.streams.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(&self.streams))
    }
}

/// See [`Caller::busy`].
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection within its bounds.
pub struct Guarded<IO> {
    io: IO,
    caller: Caller,
    idle: Pin<Box<Sleep>>,
    _place: Place,
}

impl<IO> Guarded<IO> {
    fn new(io: IO, caller: Caller, place: Place) -> Self {
        Guarded { io, caller, idle: Box::pin(sleep(IDLE)), _place: place }
    }

    /// A connection that some test made.
    #[cfg(test)]
    pub fn for_test(io: IO, caller: Caller) -> Self {
        let place = Place { sources: Sources::default(), source: caller.peer.address.ip() };
        Self::new(io, caller, place)
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.idle.as_mut().poll(cx));
            if self.caller.streams.load(Ordering::SeqCst) == 0 {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "a connection without a stream"));
            }
            self.idle.as_mut().reset(Instant::now() + IDLE);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

#[derive(Debug)]
struct Place {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    fn take(&self, source: IpAddr) -> Option<Place> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = sources.entry(source).or_insert(0);
        if *held >= PER_SOURCE {
            return None;
        }
        *held += 1;
        Some(Place { sources: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sources.get_mut(&self.source) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(sources.remove(&self.source)),
        }
    }
}

impl<IO> Connected for Guarded<IO> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_idle(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
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
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn one_source_holds_a_few_places_and_gives_them_back() {
        let sources = Sources::default();
        let one: Vec<_> = (0..PER_SOURCE).map(|_| sources.take([10, 0, 0, 1].into()).unwrap()).collect();
        assert!(sources.take([10, 0, 0, 1].into()).is_none());
        assert!(sources.take([10, 0, 0, 2].into()).is_some());
        drop(one);
        assert!(sources.take([10, 0, 0, 1].into()).is_some());
        assert!(sources.0.lock().unwrap().is_empty(), "nothing is kept of who has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lives_while_it_has_a_stream_and_not_much_longer() {
        let (_far, near) = tokio::io::duplex(64);
        let caller = Caller::new(PeerInfo { id: None, address: ([10, 0, 0, 1], 1).into() });
        let place = Sources::default().take([10, 0, 0, 1].into()).unwrap();
        let mut guarded = Guarded::new(near, caller.clone(), place);
        let busy = caller.busy();
        let mut byte = [0];
        let read = tokio::time::timeout(10 * IDLE, guarded.read(&mut byte)).await;
        assert!(read.is_err(), "a busy one waits as long as it likes");
        drop(busy);
        let began = Instant::now();
        let read = tokio::time::timeout(10 * IDLE, guarded.read(&mut byte)).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= 2 * IDLE);
    }
}

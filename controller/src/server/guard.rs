//! What one source may hold: some connections, and none of them idle for long.
//!
//! Between `countersign_credentials::incoming` (TLS, identity, the bounds of strangers) and the gRPC server. A member of the
//! mesh must not be able to take all connections by opening them and saying nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use countersign_credentials::{Connection, Incoming, PeerInfo, Place, Places};
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
    let places = Places::for_each_address(PER_SOURCE);
    incoming.filter_map(move |accepted| {
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => return Some(Err(error)),
        };
        let peer = connection.connect_info();
        let Ok(place) = places.take(peer.address.ip()) else {
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
        let place = Places::for_each_address(1).take(caller.peer.address.ip()).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn a_connection_lives_while_it_has_a_stream_and_not_much_longer() {
        let (_far, near) = tokio::io::duplex(64);
        let caller = Caller::new(PeerInfo { id: None, address: ([10, 0, 0, 1], 1).into() });
        let mut guarded = Guarded::for_test(near, caller.clone());
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

//! What slow, rude and broken peers are made of.
//!
//! Called by tests inside a pod's own runtime ([`crate::Namespace::run`]), which bound each in time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// Bytes that are no protocol, the same for the same seed.
#[must_use]
pub fn garbage(seed: u64, length: usize) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Ends a connection by a reset, whatever is on its way.
///
/// # Errors
/// If the socket is gone already.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

/// A connection that can never hold much for us: a small receive buffer, of which the caller reads nothing.
///
/// # Errors
/// If the connection is refused.
pub async fn unreading(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_recv_buffer_size(4096)?;
    socket.connect(target).await
}

/// Passes on one byte with each write, and flushes it: a TLS client over this sends each record byte by byte.
#[derive(Debug)]
pub struct OneByteWrites<S>(pub S);

impl<S: AsyncRead + Unpin> AsyncRead for OneByteWrites<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OneByteWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_the_same_for_the_same_seed_alone() {
        assert_eq!(garbage(1, 64), garbage(1, 64));
        assert_ne!(garbage(1, 64), garbage(2, 64));
    }
}

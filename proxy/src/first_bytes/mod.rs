//! The first bytes of an inbound connection: read under a deadline, bounded by one TLS record, and given back to
//! whoever reads next. Called by `inbound` only. It decides nothing: it says what the bytes are.

pub mod hello;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use hello::Seen;

/// Room for a hybrid key share at once; grows to [`hello::MAX_RECORD`] only while a hello goes on.
const FIRST_READ: usize = 2048;

/// What came first.
#[derive(Debug)]
pub struct First {
    /// The bytes read so far, to be replayed.
    pub bytes: Vec<u8>,
    /// What they are.
    pub what: What,
}

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A ClientHello that offers our ALPN.
    Ours,
    /// A ClientHello of somebody else's TLS.
    OtherTls,
    /// Not TLS.
    NotTls,
    /// The deadline passed before it could be told.
    Silent,
    /// The peer said all that it will say, before it could be told.
    Ended,
    /// The peer reset before it could be told.
    Reset,
}

/// Reads until it can be told what the bytes are, or the deadline passes.
pub async fn read(io: &mut TcpStream, deadline: Instant) -> First {
    let mut bytes = Vec::with_capacity(FIRST_READ);
    let read = tokio::time::timeout_at(deadline, read_hello(io, &mut bytes)).await;
    let what = match read {
        Err(_) => What::Silent,
        Ok(Ok(what)) => what,
        Ok(Err(_)) => What::Reset,
    };
    First { bytes, what }
}

async fn read_hello(io: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<What> {
    loop {
        match hello::look(bytes) {
            Seen::ClientHello { ours: true } => return Ok(What::Ours),
            Seen::ClientHello { ours: false } => return Ok(What::OtherTls),
            Seen::NotTls => return Ok(What::NotTls),
            // `look` asks for more only inside one record, so the buffer is bounded by it.
            Seen::More { missing } => bytes.reserve(missing.min(hello::MAX_RECORD)),
        }
        if io.read_buf(bytes).await? == 0 {
            return Ok(What::Ended);
        }
    }
}

/// A socket with bytes to give back first. The buffer is empty for ever after the first reads.
#[derive(Debug)]
pub struct Replay {
    first: Vec<u8>,
    at: usize,
    io: TcpStream,
}

impl Replay {
    /// `first` will be read before anything else of `io`.
    #[must_use]
    pub fn new(first: Vec<u8>, io: TcpStream) -> Self {
        Self { first, at: 0, io }
    }

    /// The socket, and what was not read of the buffer.
    #[must_use]
    pub fn into_parts(mut self) -> (TcpStream, Vec<u8>) {
        self.first.drain(..self.at);
        (self.io, self.first)
    }
}

impl AsyncRead for Replay {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.at < self.first.len() {
            let end = (self.at + buf.remaining()).min(self.first.len());
            buf.put_slice(&self.first[self.at..end]);
            self.at = end;
            if self.at == self.first.len() {
                self.first = Vec::new();
                self.at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::reset;
    use crate::testing::tcp_pair;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt as _;

    async fn read_from(mut io: TcpStream) -> First {
        read(&mut io, Instant::now() + Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn an_end_is_told_from_a_reset() {
        let (mut peer, io) = tcp_pair().await;
        peer.write_all(&[22, 3]).await.unwrap();
        peer.shutdown().await.unwrap();
        let first = read_from(io).await;
        assert_eq!((first.what, first.bytes.as_slice()), (What::Ended, &[22, 3][..]));
        let (peer, io) = tcp_pair().await;
        reset(peer);
        assert_eq!(read_from(io).await.what, What::Reset);
    }
}

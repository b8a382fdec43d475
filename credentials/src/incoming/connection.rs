//! One accepted connection, as tonic serves it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use countersign_identity::VerifiedId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::lived::Lived;
use crate::places::Place;

/// Who is on a connection; tonic puts it into each request's extensions.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The proven identity; `None` only under [`crate::ClientAuth::Optional`].
    pub id: Option<VerifiedId>,
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// One accepted connection: TLS, who is there, and its places: of its address, of all, of those without a certificate.
pub struct Connection {
    io: Lived<TlsStream<TcpStream>>,
    info: PeerInfo,
    _places: Vec<Place>,
}

impl Connection {
    pub(super) fn new(io: Lived<TlsStream<TcpStream>>, info: PeerInfo, places: Vec<Place>) -> Self {
        Self { io, info, _places: places }
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

//! Slow, rude and broken peers.
//!
//! Called by tests inside a pod's own runtime ([`crate::Namespace::run`]). Each is bounded in time: a test that waits for ever
//! proves nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// How the other side treated us.
#[derive(Debug)]
pub struct Ended {
    /// After how long.
    pub after: Duration,
    /// What it said before, at most 1 MiB.
    pub received: Vec<u8>,
    /// How.
    pub how: End,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side closed it.
    Closed,
    /// The other side reset it.
    Reset,
    /// It did not, as long as we waited.
    StillOpen,
}

const MOST: usize = 1024 * 1024;

/// Reads until the end, at most for `limit`.
pub async fn until_end(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Ended {
    let begun = Instant::now();
    let mut received = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let how = match timeout(left, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => End::Closed,
            Ok(Ok(length)) => {
                received.extend(&buffer[..length.min(MOST - received.len())]);
                continue;
            }
            Ok(Err(_)) => End::Reset,
            Err(_) => End::StillOpen,
        };
        return Ended { after: begun.elapsed(), received, how };
    }
}

/// Connects and says nothing.
///
/// # Errors
/// If the connection is refused.
pub async fn silent(target: SocketAddr, limit: Duration) -> io::Result<Ended> {
    let mut stream = TcpStream::connect(target).await?;
    Ok(until_end(&mut stream, limit).await)
}

/// Connects, says `bytes` at once, and waits for the end.
///
/// # Errors
/// If the connection is refused.
pub async fn blurt(target: SocketAddr, bytes: &[u8], limit: Duration) -> io::Result<Ended> {
    let mut stream = TcpStream::connect(target).await?;
    let _ = stream.write_all(bytes).await; // it may end while we speak
    Ok(until_end(&mut stream, limit).await)
}

/// Connects and says one byte of `bytes` at a time, with a pause behind each, for as long as anybody listens.
///
/// # Errors
/// If the connection is refused.
pub async fn drip(target: SocketAddr, bytes: &[u8], pause: Duration, limit: Duration) -> io::Result<Ended> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut reading, mut writing) = stream.into_split();
    let dripping = async {
        for byte in bytes {
            if writing.write_all(std::slice::from_ref(byte)).await.is_err() {
                break;
            }
            sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = until_end(&mut reading, limit) => Ok(ended),
        () = dripping => unreachable!("never ends"),
    }
}

/// Bytes that are no protocol, the same for the same seed.
#[must_use]
pub fn garbage(seed: u64, length: usize) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// The hello of a client that knows no TLS newer than 1.2: one good cipher suite, X25519, no `supported_versions`.
#[must_use]
pub fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, ECDHE-ECDSA-AES128-GCM-SHA256, no compression
    let extensions: &[&[u8]] = &[&[0, 10, 0, 4, 0, 2, 0, 0x1d], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3]];
    let extensions = extensions.concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
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

/// A server that says nothing until its client has said all, then says all of it back and closes.
/// Ends with the first connection that fails.
///
/// # Errors
/// What the system says.
pub async fn echo_after_end(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(&all).await?;
            stream.shutdown().await
        });
    }
}

/// A server that speaks first, then says back what it hears.
///
/// # Errors
/// What the system says.
pub async fn banner(listener: TcpListener, word: &'static [u8]) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            stream.write_all(word).await?;
            let (mut reading, mut writing) = stream.split();
            tokio::io::copy(&mut reading, &mut writing).await?;
            stream.shutdown().await
        });
    }
}

/// A server that sends `bytes` of its own and then resets.
///
/// # Errors
/// What the system says.
pub async fn reset_after(listener: TcpListener, bytes: usize) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            stream.write_all(&vec![b'x'; bytes]).await?;
            reset(stream)
        });
    }
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

    const LIMIT: Duration = Duration::from_secs(20);

    async fn here() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn ends_are_told_apart() {
        let (listener, address) = here().await;
        tokio::spawn(reset_after(listener, 7));
        let ended = silent(address, LIMIT).await.unwrap();
        assert_eq!((ended.how, ended.received.len()), (End::Reset, 7));

        let (listener, address) = here().await;
        tokio::spawn(echo_after_end(listener));
        assert_eq!(silent(address, Duration::from_millis(20)).await.unwrap().how, End::StillOpen);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"all of it").await.unwrap();
        stream.shutdown().await.unwrap();
        let ended = until_end(&mut stream, LIMIT).await;
        assert_eq!((ended.how, ended.received), (End::Closed, b"all of it".to_vec()));
    }

    #[tokio::test]
    async fn drops_fall_one_by_one_while_the_other_side_is_heard() {
        let (listener, address) = here().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut drop = [0; 16];
            let lengths = [stream.read(&mut drop).await.unwrap(), stream.read(&mut drop).await.unwrap()];
            stream.write_all(b"enough").await.unwrap();
            lengths
        });
        let ended = drip(address, b"drops", Duration::from_millis(50), LIMIT).await.unwrap();
        assert_eq!(server.await.unwrap(), [1, 1]);
        assert!(ended.received == b"enough" && ended.how != End::StillOpen, "{ended:?}");
    }

    #[test]
    fn the_old_hello_is_a_hello_and_offers_nothing_new() {
        let hello = crate::tls::client_hello(&tls12_hello()).unwrap();
        assert_eq!((hello.versions, hello.groups), (vec![], vec![0x1d]));
        assert_eq!(garbage(1, 64), garbage(1, 64));
        assert_ne!(garbage(1, 64), garbage(2, 64));
    }
}
